"""Means, intervals and paired differences against scipy, and the rules by which records may be compared at all."""

import math
from dataclasses import replace
from itertools import chain, combinations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from made_up_records import made_up_record
from scipy import stats

from apd.report.comparisons import corrected_gains, factorial_effects, holm, holm_corrected, p_value, subsets
from apd.report.statistics import (
    ComparisonError,
    compare,
    mean_interval,
    method_of,
    paired_difference,
    planned_and_done,
    spread,
)
from apd.study.ablations import OTHER_METHODS, variant_names
from apd.study.campaigns import CAMPAIGNS, experiments_of
from apd.study.recipes import METHOD_NAMES, METHODS, recipe

SCORES = st.lists(st.integers(0, 1000).map(lambda value: value / 1000), min_size=2, max_size=12)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0, -0.95])
@pytest.mark.parametrize("pairs", [0, 1, 3])
def test_an_interval_that_cannot_be_is_refused_with_its_numbers(confidence, pairs):
    with pytest.raises(ValueError, match=f"confidence={confidence}: expected"):
        mean_interval(dict.fromkeys(range(pairs), 0.5), confidence)


@given(SCORES)
def test_spread_is_the_sample_mean_and_deviation(values):
    found = spread(values)
    assert found.mean == pytest.approx(stats.tmean(values))
    assert found.deviation == pytest.approx(stats.tstd(values), abs=1e-12)
    assert found.count == len(values)


def test_one_value_has_no_deviation_and_no_value_no_mean():
    assert math.isnan(spread([0.5]).deviation)
    assert math.isnan(spread([]).mean)


@settings(deadline=None)
@given(SCORES, st.randoms(use_true_random=False), st.sampled_from([0.8, 0.95]))
def test_a_paired_difference_is_scipys(values, random, confidence):
    reference = [random.random() for _ in values]
    found = paired_difference(dict(enumerate(values)), dict(enumerate(reference)), confidence)
    expected = stats.ttest_rel(values, reference).confidence_interval(confidence)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([0.02, 0.03, 0.025], "above"),
        ([-0.02, -0.03, -0.025], "below"),
        ([0.02, -0.03, 0.01], "not distinguishable from"),
        ([0.0, 0.0, 0.0], "not distinguishable from"),
        ([0.1], "not yet comparable with"),
        ([], "not yet comparable with"),
    ],
)
def test_the_verdict_is_above_only_when_the_interval_leaves_out_zero(differences, verdict):
    values = {seed: 0.5 + difference for seed, difference in enumerate(differences)}
    assert paired_difference(values, dict.fromkeys(values, 0.5)).verdict == verdict


def test_only_seeds_that_both_methods_have_are_paired():
    found = paired_difference({0: 0.5, 2: 0.7, 7: 0.9}, {2: 0.6, 0: 0.5, 5: 0.1})
    assert found.pairs == pytest.approx({0: 0.0, 2: 0.1})


def test_pairing_takes_out_what_seeds_share():
    luck = {0: -0.2, 1: 0.0, 2: 0.2}
    ahead = {seed: 0.5 + value + 0.01 for seed, value in luck.items()}
    assert paired_difference(ahead, {seed: 0.5 + value for seed, value in luck.items()}).verdict == "above"


@given(SCORES)
def test_the_standard_error_is_scipys(values):
    assert spread(values).error == pytest.approx(stats.sem(values), abs=1e-12)
    assert math.isnan(spread(values[:1]).error)


# many comparisons


@settings(deadline=None)
@given(SCORES, st.randoms(use_true_random=False), st.sampled_from([0.8, 0.95]))
def test_a_p_value_is_scipys_and_agrees_with_the_interval(values, random, confidence):
    reference = {seed: random.random() for seed in range(len(values))}
    found = paired_difference(dict(enumerate(values)), reference, confidence)
    assume(spread(found.pairs.values()).error > 1e-9)
    assert p_value(found) == pytest.approx(stats.ttest_rel(values, list(reference.values())).pvalue, abs=1e-9)
    assert (p_value(found) < 1 - confidence) == (found.verdict in ("above", "below"))


def test_a_p_value_without_spread_or_without_pairs():
    ahead = {0: 0.75, 1: 0.75}
    assert p_value(paired_difference(ahead, ahead)) == 1.0
    assert p_value(paired_difference(ahead, {0: 0.5, 1: 0.5})) == 0.0
    assert math.isnan(p_value(paired_difference({0: 0.75}, ahead)))


def holm_by_closed_testing(p_values):
    """A hypothesis is given up when Bonferroni's test gives up every set of hypotheses that it belongs to."""
    sets = list(chain.from_iterable(combinations(p_values, size) for size in range(1, len(p_values) + 1)))
    return {
        name: max(min(1.0, len(those) * min(p_values[other] for other in those)) for those in sets if name in those)
        for name in p_values
    }


@given(st.lists(st.integers(0, 1000).map(lambda value: value / 1000), min_size=1, max_size=7))
def test_holms_correction_is_closed_testing_with_bonferronis_test(values):
    p_values = {str(place): value for place, value in enumerate(values)}
    assert holm(p_values) == pytest.approx(holm_by_closed_testing(p_values))


def test_what_has_no_p_value_yet_is_not_counted_by_the_correction():
    corrected = holm({"a": 0.02, "b": math.nan, "c": 0.5})
    assert math.isnan(corrected.pop("b"))
    assert corrected == {"a": 0.04, "c": 0.5}


def test_where_nothing_is_there_the_correction_errs_once_in_twenty_families_at_most():
    none = dict.fromkeys(range(5), 0.0)
    draws = stats.norm.rvs(size=(300, 20, 5), random_state=0).tolist()
    families = [
        holm_corrected({str(i): paired_difference(dict(enumerate(row)), none) for i, row in enumerate(family)})
        for family in draws
    ]
    found = [any(row.found.verdict in ("above", "below") for row in family.values()) for family in families]
    sure = [any(row.significant for row in family.values()) for family in families]
    assert sum(found) / len(found) > 0.5  # 1 - 0.95^20 = 0.64
    assert 0 < sum(sure) / len(sure) < 0.09


FACTORS = "ABCD"


def effects_by_regression(scores):
    """Twice the coefficients of a linear model in products of ±1, solved cell by cell without any contrast."""
    cells = list(subsets(FACTORS))
    rows = [[math.prod(1 if f in cell else -1 for f in of) for of in cells] for cell in cells]
    coefficients = torch.linalg.solve(
        torch.tensor(rows, dtype=torch.float64), torch.tensor([scores[cell] for cell in cells], dtype=torch.float64)
    )
    return {of: 2 * float(value) for of, value in zip(cells, coefficients, strict=True) if of}


def test_effects_of_a_design_are_those_of_a_linear_model_for_each_seed():
    random = torch.Generator().manual_seed(0)
    tables = [{cell: float(torch.rand((), generator=random)) for cell in subsets(FACTORS)} for _ in range(2)]
    scores = {cell: {seed: table[cell] for seed, table in enumerate(tables)} for cell in tables[0]}
    scores[frozenset("A")][2] = 0.5  # a seed that the other combinations lack
    found = factorial_effects(scores, FACTORS)
    assert len(found) == 15
    for seed, table in enumerate(tables):
        expected = effects_by_regression(table)
        assert {of: effect[seed] for of, effect in found.items()} == pytest.approx(expected)
    assert all(set(effect) == {0, 1} for effect in found.values())


def test_a_design_that_lacks_a_combination_is_refused_by_its_name():
    scores = {cell: {0: 0.5} for cell in subsets("AB") if cell != {"A", "B"}}
    with pytest.raises(ValueError, match=r"lacks the combination \['A', 'B'\]"):
        factorial_effects(scores, "AB")


# methods and arms


@pytest.mark.parametrize(
    "name",
    ["scenes-terms", "scenes-options", "scenes-rivals", "scenes-combined", "scenes-rivals-tuning", "scenes-tuned"],
)
def test_every_experiment_of_a_campaign_of_arms_is_one_of_its_arms(name):
    names = METHOD_NAMES | variant_names()
    planned = experiments_of(name)
    found = [method_of(experiment, names) for experiment in planned]
    assert [f"{key}-context1-seed{e.seed}" for key, e in zip(found, planned, strict=True)] == [e.name for e in planned]
    assert {names[key] for key in found} <= set(variant_names().values())


@pytest.mark.parametrize("name", ["camvid-small-ablations", "camvid-small-rivals"])
def test_arms_on_camvid_differ_from_its_run_of_apd_in_their_distillers_only(name):
    apd = {e.seed: e for e in experiments_of("camvid-small") if e.name.startswith("apd-")}
    planned = experiments_of(name)
    assert len({(method_of(e, variant_names()), e.seed) for e in planned}) == len(planned)
    for arm in planned:
        assert arm.distillers != apd[arm.seed].distillers
        assert replace(arm, name="any", distillers=()) == replace(apd[arm.seed], name="any", distillers=())


@pytest.mark.parametrize(
    ("label", "key"),
    [
        ("head_1e-5-context1-seed0", "head_1e-5"),
        ("terms_a-context1-seed0", "terms_a"),
        ("terms_a_o_kd-seed0", "terms_a_o_kd"),
        ("terms_r_a_o-seed0", "terms_r_a_o"),
        ("apd_and_cwd-context1-seed0", "apd_and_cwd"),
        ("observation_0.3-context1-seed0", "observation_0.3"),
        ("tiny-apd-seed0", "apd"),
        ("kd_3", "kd_3"),
    ],
)
def test_a_label_names_the_longest_key_that_stands_in_it_between_hyphens(label, key):
    assert method_of(replace(recipe("tiny", "apd"), name=label), METHOD_NAMES | variant_names()) == key


def test_arms_stand_beside_methods_in_one_comparison_in_the_order_of_their_names():
    names = METHOD_NAMES | variant_names()
    planned = [e for name in ("scenes-rivals", "scenes-tiny") for e in experiments_of(name) if e.seed < 2]
    (comparison,) = compare([made_up_record(e) for e in planned if e.data.context_shift == 1], names)
    assert list(comparison.variants) == [*METHOD_NAMES, *OTHER_METHODS]
    assert comparison.names["cwd"] == "CWD"
    assert list(comparison.only(["cwd", "apd", "terms_a"]).variants) == ["cwd", "apd"]
    with pytest.raises(ComparisonError, match=r"fitnet-context1-seed0.*names none of"):
        compare([made_up_record(e) for e in planned])


def test_arms_are_judged_together_against_one_of_them():
    scores = {"student": 0.6, "pixel_kd": 0.61, "apd": 0.7}
    luck = {"student": (0, 0.01, 0.02), "pixel_kd": (0.02, 0.03, 0.0), "apd": (0.0, 0.012, 0.02)}
    records = [made_up_record(recipe("tiny", m, seed=s), scores[m] + luck[m][s]) for m in scores for s in range(3)]
    alone = made_up_record(recipe("tiny", "apd_without_kd", seed=9))
    (comparison,) = compare([*records, alone])
    rows = corrected_gains(comparison, METHODS, "student")
    assert list(rows) == ["pixel_kd", "apd"]  # in the order asked for, without the reference and what shares no seed
    assert rows["apd"].significant
    assert not rows["pixel_kd"].significant
    assert rows["apd"].corrected == pytest.approx(2 * p_value(comparison.difference("apd", "student")))


def test_a_step_is_timed_where_nothing_else_ran_beside_it():
    seconds = {"student": (0.1, 0.1, 0.4), "apd": (0.5, 0.9, 0.2)}
    records = [
        made_up_record(recipe("tiny", method, seed=seed), seconds=values[seed])
        for method, values in seconds.items()
        for seed in range(3)
    ]
    (comparison,) = compare(records)
    assert comparison.step_seconds("apd") == 0.2
    assert comparison.times_the_plain_step("apd") == pytest.approx(2.0)
    assert comparison.times_the_plain_step("student") == 1.0
    assert math.isnan(comparison.times_the_plain_step("pixel_kd"))
    assert math.isnan(comparison.only(["apd"]).times_the_plain_step("apd"))


@pytest.mark.parametrize("name", ["scenes-tiny", "camvid-small"])
def test_every_experiment_of_a_campaign_is_one_of_its_methods(name):
    assert name in CAMPAIGNS
    assert {method_of(experiment) for experiment in experiments_of(name)} == set(METHODS)


def test_a_label_without_a_method_is_refused():
    with pytest.raises(ComparisonError, match="'mine-seed0'"):
        method_of(replace(recipe("tiny", "apd"), name="mine-seed0"))


def campaign_records(name="scenes-tiny", **changes):
    return [made_up_record(experiment, **changes) for experiment in experiments_of(name)]


def test_a_campaign_becomes_one_comparison_for_each_data_configuration():
    found = compare(list(reversed(campaign_records())))
    assert [c.data.context_shift for c in found] == [0.0, 1.0]
    for comparison in found:
        assert list(comparison.variants) == ["student", "student_equal_seconds", "pixel_kd", "apd_without_kd", "apd"]
        assert all(list(arm) == comparison.seeds for arm in comparison.variants.values())
    assert compare([]) == []


def test_scores_of_a_comparison_are_those_of_its_records():
    right = {"apd": 0.8, "student": 0.7}
    records = [made_up_record(recipe("tiny", m, seed=s), r - 0.1 * s) for m, r in right.items() for s in (0, 1)]
    (comparison,) = compare(records)
    # a share r of each class right, the others called the next class: IoU = r / (2 - r)
    assert comparison.miou("apd") == pytest.approx({0: 0.8 / 1.2, 1: 0.7 / 1.3})
    gain = ((0.8 / 1.2 - 0.7 / 1.3) + (0.7 / 1.3 - 0.6 / 1.4)) / 2
    assert comparison.class_gain("apd").tolist() == pytest.approx([gain] * 10)
    assert comparison.teacher_miou == pytest.approx(0.9 / 1.1)
    assert comparison.agreement("student") == pytest.approx({0: 0.8, 1: 0.8})
    assert comparison.class_gain("pixel_kd").isnan().all()


def changed(experiment, **fields):
    return made_up_record(replace(experiment, **fields))


APD = recipe("tiny", "apd")
LONGER = replace(APD.training, iterations=APD.training.iterations + 1)
WEIGHT = (replace(APD.distillers[0], alignment=3.0),)


@pytest.mark.parametrize(
    ("records", "differs"),
    [
        ([made_up_record(APD), made_up_record(APD, 0.6)], "same method and seed"),
        ([made_up_record(APD), changed(APD, seed=1, distillers=WEIGHT)], "settings of apd"),
        ([made_up_record(APD), changed(APD, seed=1, training=LONGER)], "number of iterations"),
        ([made_up_record(APD), changed(recipe("tiny", "student"), training=LONGER)], "number of iterations"),
        (
            [made_up_record(APD), changed(APD, seed=1, training=replace(APD.training, learning_rate=0.3))],
            "rate of apd",
        ),
        (
            [made_up_record(APD), changed(recipe("tiny", "student"), training=replace(APD.training, momentum=0.5))],
            "recipe",
        ),
        ([made_up_record(APD), made_up_record(replace(APD, seed=1), images="a" * 64)], "images of the evaluation"),
        ([made_up_record(APD), made_up_record(replace(APD, seed=1), teacher_right=0.5)], "teacher's confusion"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_records_that_differ_in_more_than_seed_and_method_are_not_compared(records, differs):
    with pytest.raises(ComparisonError, match=differs):
        compare(records)


def test_a_method_may_have_a_rate_of_its_own():
    slower = replace(APD.training, learning_rate=APD.training.learning_rate / 2)
    (comparison,) = compare([made_up_record(APD), changed(recipe("tiny", "student"), training=slower)])
    assert set(comparison.variants) == {"apd", "student"}


def test_only_the_arm_of_equal_seconds_may_train_longer():
    equal = [recipe("tiny", "student_equal_seconds", seed=seed) for seed in (0, 1)]
    records = [made_up_record(APD), *map(made_up_record, equal)]
    (comparison,) = compare(records)
    assert comparison.iterations("student_equal_seconds") > comparison.iterations("apd")
    shorter = replace(equal[1], training=replace(equal[1].training, iterations=7))
    with pytest.raises(ComparisonError, match="iterations"):
        compare([*records[:2], made_up_record(shorter)])


def test_records_of_other_settings_than_planned_are_left_out_and_missing_ones_counted():
    planned = [recipe("tiny", "apd", seed=seed) for seed in range(3)]
    stale = changed(planned[1], training=LONGER)
    kept, missing = planned_and_done(planned, [made_up_record(planned[0]), stale])
    assert [record.experiment.seed for record in kept] == [0]
    assert missing == 2
