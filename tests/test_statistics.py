"""Means, intervals and paired differences against scipy, and the rules by which records may be compared at all."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_records import made_up_record
from scipy import stats

from apd.study.campaign import CAMPAIGNS, experiments_of
from apd.study.recipes import METHODS, recipe
from apd.study.statistics import (
    ComparisonError,
    compare,
    method_of,
    paired_difference,
    planned_and_done,
    spread,
    t_central,
    t_factor,
)

SCORES = st.lists(st.integers(0, 1000).map(lambda value: value / 1000), min_size=2, max_size=12)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 9, 10, 30, 101])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99])
def test_the_factor_of_an_interval_is_that_of_students_distribution(degrees, confidence):
    assert t_factor(confidence, degrees) == pytest.approx(stats.t.ppf(0.5 + confidence / 2, degrees), rel=1e-9)


@given(st.floats(0, 50), st.integers(1, 40))
def test_the_closed_form_is_students_distribution(t, degrees):
    assert t_central(t, degrees) == pytest.approx(1 - 2 * stats.t.sf(t, degrees), abs=1e-12)


@pytest.mark.parametrize(("confidence", "degrees"), [(0.0, 3), (1.0, 3), (95.0, 3), (0.95, 0)])
def test_an_interval_that_cannot_be_is_refused_with_its_numbers(confidence, degrees):
    with pytest.raises(ValueError, match=r"(confidence|degrees)=.*expected"):
        t_factor(confidence, degrees)


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
        assert list(comparison.arms) == ["student", "student_equal_seconds", "pixel_kd", "apd_without_kd", "apd"]
        assert all(list(arm) == comparison.seeds for arm in comparison.arms.values())
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
