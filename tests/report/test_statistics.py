"""Means, intervals, corrections and effects against scipy, which records may be compared, and how it is worded."""

import math
from dataclasses import replace
from itertools import chain, combinations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from made_up_records import made_up_campaign, made_up_record
from scipy import stats

from apd.report.comparisons import corrected_gains, factorial_effects, holm, holm_corrected, p_value, subsets
from apd.report.figures.answers import POWER, answer, detectable, statement, tally
from apd.report.statistics import ComparisonError, compare, mean_interval, method_of, paired_difference, spread
from apd.study.ablations import OTHER_METHODS, variant_names
from apd.study.recipes import METHOD_NAMES, METHODS, recipe

SCORES = st.lists(st.integers(0, 1000).map(lambda value: value / 1000), min_size=2, max_size=12)
LABELS = {"head_1e-5-context1-seed0": "head_1e-5", "terms_a_o_kd-seed0": "terms_a_o_kd", "kd_3": "kd_3"}
LABELS |= {"apd_and_cwd-context1-seed0": "apd_and_cwd", "tiny-apd-seed0": "apd"}
APD = recipe("tiny", "apd")
CLEAR, OPEN = {0: 0.020, 1: 0.024, 2: 0.022}, {0: -0.01, 1: 0.0, 2: 0.012}


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0, -0.95])
def test_an_interval_that_cannot_be_is_refused_with_its_numbers(confidence):
    with pytest.raises(ValueError, match=f"confidence={confidence}: expected"):
        mean_interval({}, confidence)


@settings(deadline=None)
@given(SCORES, st.randoms(use_true_random=False), st.sampled_from([0.8, 0.95]))
def test_means_errors_intervals_and_p_values_are_scipys(values, random, confidence):
    found = spread(values)
    assert found[:2] == pytest.approx((stats.tmean(values), stats.tstd(values)), abs=1e-12)
    assert found.error == pytest.approx(stats.sem(values), abs=1e-12)
    reference = [random.random() for _ in values]
    difference = paired_difference(dict(enumerate(values)), dict(enumerate(reference)), confidence)
    test = stats.ttest_rel(values, reference)
    expected = test.confidence_interval(confidence)
    assert (difference.low, difference.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assume(spread(difference.pairs.values()).error > 1e-9)
    assert p_value(difference) == pytest.approx(test.pvalue, abs=1e-9)
    assert (p_value(difference) < 1 - confidence) == difference.significant


def test_one_value_has_no_deviation_no_value_no_mean_and_equal_ones_no_doubt():
    ahead = {0: 0.75, 1: 0.75}
    assert p_value(paired_difference(ahead, ahead)) == 1.0
    assert p_value(paired_difference(ahead, {0: 0.5, 1: 0.5})) == 0.0
    unknown = p_value(paired_difference({0: 0.75}, ahead)), spread([0.5]).deviation, spread([0.5]).error
    assert all(math.isnan(value) for value in (*unknown, spread([]).mean))
    assert not any(paired_difference(*two).significant for two in ((ahead, ahead), ({0: 0.75}, ahead), ({}, {})))


def test_pairing_takes_the_seeds_that_both_have_and_takes_out_what_they_share():
    found = paired_difference({0: 0.5, 2: 0.7, 7: 0.9}, {2: 0.6, 0: 0.5, 5: 0.1})
    assert found.pairs == pytest.approx({0: 0.0, 2: 0.1})
    luck = {0: -0.2, 1: 0.0, 2: 0.2}
    ahead = {seed: 0.5 + value + 0.01 for seed, value in luck.items()}
    assert paired_difference(ahead, {seed: 0.5 + value for seed, value in luck.items()}).significant


@given(st.lists(st.integers(0, 1000).map(lambda value: value / 1000), min_size=1, max_size=7))
def test_holms_correction_is_closed_testing_with_bonferronis_test(values):
    """A hypothesis is given up when Bonferroni's test gives up every set of hypotheses that it belongs to."""
    p_values, corrected = {str(place): value for place, value in enumerate(values)}, {}
    for those in chain.from_iterable(combinations(p_values, size + 1) for size in range(len(p_values))):
        bonferroni = min(1.0, len(those) * min(p_values[name] for name in those))
        corrected |= {name: max(bonferroni, corrected.get(name, 0.0)) for name in those}
    assert holm(p_values) == pytest.approx(corrected)


def test_what_has_no_p_value_yet_is_not_counted_and_what_has_no_pair_is_left_out():
    corrected = holm({"a": 0.02, "b": math.nan, "c": 0.5})
    assert math.isnan(corrected.pop("b"))
    assert corrected == {"a": 0.04, "c": 0.5}
    nothing, one = paired_difference({}, {}), paired_difference({0: 0.5}, {0: 0.4})
    rows = holm_corrected({"nothing": nothing, "one": one})
    assert list(rows) == ["one"]
    assert not rows["one"].significant


def test_effects_of_a_design_are_those_of_a_linear_model_for_each_seed():
    """Twice the coefficients of products of ±1, solved cell by cell without any contrast."""
    cells = list(subsets("ABCD"))
    values = torch.rand(len(cells), 2, dtype=torch.float64)
    scores = {cell: dict(enumerate(of_seeds)) for cell, of_seeds in zip(cells, values.tolist(), strict=True)}
    scores[frozenset("A")][2] = 0.5  # a seed that the other combinations lack
    found = factorial_effects(scores, "ABCD")
    assert len(found) == 15
    rows = [[math.prod(1.0 if f in cell else -1.0 for f in of) for of in cells] for cell in cells]
    solved = (2 * torch.linalg.solve(torch.tensor(rows, dtype=torch.float64), values)).tolist()
    for of, expected in zip(cells, solved, strict=True):
        assert not of or found[of] == pytest.approx(dict(enumerate(expected)))


@pytest.mark.parametrize(("label", "key"), LABELS.items())
def test_a_label_names_the_longest_key_that_stands_in_it_between_hyphens(label, key):
    assert method_of(replace(recipe("tiny", "apd"), name=label), METHOD_NAMES | variant_names()) == key


def test_a_campaign_becomes_one_comparison_for_each_data_configuration():
    found = compare(list(reversed(made_up_campaign("scenes-tiny"))))
    assert [c.data.context_shift for c in found] == [0.0, 1.0]
    for comparison in found:
        assert list(comparison.variants) == ["student", "student_equal_seconds", "pixel_kd", "apd_without_kd", "apd"]
        assert all(list(runs) == [0, 1, 2, 3, 4] for runs in comparison.variants.values())
    assert compare([]) == []
    assert replace(found[0], remark="longer").title == "scenes, context shift 0, 400 steps, longer"


def test_variants_stand_beside_methods_in_one_comparison_in_the_order_of_their_names():
    records = [r for n in ("scenes-rivals", "scenes-tiny") for r in made_up_campaign(n, keep=lambda e: e.seed < 2)]
    (comparison,) = compare([r for r in records if r.experiment.data.context_shift], METHOD_NAMES | variant_names())
    assert list(comparison.variants) == [*METHOD_NAMES, *OTHER_METHODS]
    assert list(comparison.only(["cwd", "apd", "terms_a"]).variants) == ["cwd", "apd"]
    with pytest.raises(ComparisonError, match=r"fitnet-context1-seed0.*names none of"):
        compare(records)


def test_scores_of_a_comparison_are_those_of_its_records():
    right = {"apd": 0.8, "student": 0.7}
    records = [made_up_record(recipe("tiny", m, seed=s), r - 0.1 * s) for m, r in right.items() for s in (0, 1)]
    (comparison,) = compare(records)
    # a share r of each class right, the others called the next class: IoU = r / (2 - r)
    assert comparison.values("apd") == pytest.approx({0: 0.8 / 1.2, 1: 0.7 / 1.3})
    assert comparison.teacher_score == pytest.approx(0.9 / 1.1)
    rows = corrected_gains(comparison, METHODS, "student")
    assert list(rows) == ["apd"]  # without the reference and what has no record
    assert rows["apd"].found == comparison.difference("apd", "student")


def changed(method="apd", seed=0, **fields):
    """A record of the tiny recipe with other fields of its training, or of itself."""
    experiment = recipe("tiny", method, seed=seed)
    own = {name: value for name, value in fields.items() if hasattr(experiment, name)}
    training = {name: value for name, value in fields.items() if name not in own}
    return made_up_record(replace(experiment, **own, training=replace(experiment.training, **training)))


@pytest.mark.parametrize(
    ("other", "differs"),
    [
        (made_up_record(APD, 0.6), "same method and seed"),
        (changed(seed=1, distillers=(replace(APD.distillers[0], alignment=3.0),)), "settings of apd"),
        (changed(seed=1, iterations=201), "number of iterations"),
        (changed("student", iterations=201), "number of iterations"),
        (changed(seed=1, learning_rate=0.3), "learning rate of apd"),
        (changed("student", momentum=0.5), "recipe"),
        (made_up_record(replace(APD, seed=1), images="a" * 64), "images of the evaluation"),
        (made_up_record(replace(APD, seed=1), teacher_right=0.5), "teacher's confusion"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_records_that_differ_in_more_than_seed_and_method_are_not_compared(other, differs):
    with pytest.raises(ComparisonError, match=differs):
        compare([made_up_record(APD), other])


def test_a_method_may_have_its_own_learning_rate_and_the_equal_time_baseline_its_own_length():
    equal = [recipe("tiny", "student_equal_seconds", seed=seed) for seed in (0, 1)]
    records = [made_up_record(APD), changed("student", learning_rate=0.5), *map(made_up_record, equal)]
    (comparison,) = compare(records)
    assert set(comparison.variants) == {"apd", "student", "student_equal_seconds"}
    shorter = changed("student_equal_seconds", 1, iterations=7)
    with pytest.raises(ComparisonError, match="iterations"):
        compare([*records[:3], shorter])


def worded(values):
    return statement(holm_corrected({"only": mean_interval(values)})["only"], "APD", "pixel KD")


def test_a_significant_difference_is_worded_with_its_direction_size_and_interval():
    assert worded(CLEAR) == "APD outperforms pixel KD by 2.2 points of mIoU (95 % CI 1.7 to 2.7, 3 seeds)"
    negated = {seed: -value for seed, value in CLEAR.items()}
    assert worded(negated) == worded(CLEAR).replace("outperforms", "underperforms")


def test_one_that_is_not_significant_names_what_could_have_been_detected_and_one_seed_compares_nothing():
    missed = f"{100 * detectable(mean_interval(OPEN)):.1f}"
    assert "do not differ significantly" in worded(OPEN)
    assert f"detectable with {len(OPEN)} seeds: {missed})" in worded(OPEN)
    assert "cannot be compared yet" in worded({0: 0.01})
    assert math.isnan(detectable(mean_interval({0: 0.01})))


@pytest.mark.parametrize("seeds", [3, 5])
def test_the_detectable_difference_is_found_in_that_share_of_simulated_studies(seeds):
    found = mean_interval(OPEN)
    deviation, generator = np.std(list(OPEN.values()), ddof=1), np.random.default_rng(0)
    drawn = generator.normal(detectable(found, seeds=seeds), deviation, (20_000, seeds))
    share = (stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05).mean()
    assert share == pytest.approx(POWER, abs=0.01)


def test_a_tally_counts_better_worse_and_open_comparisons_and_leaves_out_those_of_one_seed():
    rows = holm_corrected({"a": mean_interval(CLEAR), "b": mean_interval(OPEN), "c": mean_interval({0: 0.5})}).values()
    said = "APD outperforms KD in 1 of 2 comparisons (by 2.2 points); in the other there is"
    assert tally(rows, "APD", "KD").startswith(said)
    assert tally([], "APD", "KD") == "APD has no runs yet"
    small = holm_corrected({"a": mean_interval({0: 3e-4, 1: 3.1e-4, 2: 3.2e-4})}).values()
    assert "(by 0.03 points)" in tally(small, "APD", "KD")


def test_an_answer_is_read_as_sentences():
    assert repr(answer("the first", "APD is second")) == "The first. APD is second."
