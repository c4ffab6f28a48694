"""The dial: gains and slopes from records, what is said of them, and records that do not belong on one dial."""

import re
from dataclasses import replace

import numpy as np
import pytest
from made_up_evidence import made_up_evidence
from made_up_records import made_up_record
from scipy import stats

from apd.report.correlations import per_image
from apd.report.designs import SHIFT_NAMES, by_context_shift, sweep
from apd.report.figures.curves import sweep_figure\n",
    "from apd.report.figures.sentences import sweep_sentences\n",
    "from apd.report.figures.tables import sweep_table
from apd.report.statistics import ComparisonError, paired_difference
from apd.study.campaigns import experiments_of

CAMPAIGNS = ("scenes-tiny", "scenes-dial")


def records(rise=0.1, seeds=5, shifts=(0.0, 0.25, 0.5, 0.75, 1.0), wobble=0.004):
    """Every planned run, APD's share of right pixels rising by `rise` over the dial; `wobble` differs between seeds."""
    made = []
    for experiment in (e for name in CAMPAIGNS for e in experiments_of(name)):
        shift, seed, arm = experiment.data.context_shift, experiment.seed, experiment.name.split("-context")[0]
        if seed >= seeds or shift not in shifts:
            continue
        right = 0.6 + 0.01 * seed - 0.2 * shift
        if arm == "apd":
            right += (rise + wobble * (seed % 3 - 1)) * shift + 0.02
        made.append(made_up_record(experiment, right))
    return made


def test_gains_are_paired_by_seed_and_slopes_are_each_seeds_own():
    comparisons = by_context_shift(records())
    dial = sweep(comparisons)
    assert list(dial.gains) == [0.0, 0.25, 0.5, 0.75, 1.0]
    for shift, comparison in comparisons.items():
        expected = paired_difference(comparison.miou("apd"), comparison.miou("pixel_kd"))
        assert dial.gains[shift] == expected
        assert len(expected.pairs) == 5
    by_hand = {
        seed: np.polyfit(list(dial.gains), [gain.pairs[seed] for gain in dial.gains.values()], 1)[0]
        for seed in range(5)
    }
    assert dict(dial.slopes.pairs) == pytest.approx(by_hand)
    interval = stats.ttest_1samp(list(by_hand.values()), 0.0).confidence_interval(0.95)
    assert (dial.slopes.low, dial.slopes.high) == pytest.approx((interval.low, interval.high))


@pytest.mark.parametrize(
    ("settings", "verdict"),
    [
        ({}, "rises"),
        ({"rise": -0.1}, "falls"),
        ({"rise": 0.0, "wobble": 0.1}, "neither rises nor falls for certain"),
        ({"seeds": 1}, "cannot be followed yet"),
        ({"shifts": (0.5,)}, "cannot be followed yet"),
    ],
)
def test_the_sentence_says_what_the_slopes_say(settings, verdict):
    dial = sweep(by_context_shift(records(**settings)))
    assert dial.verdict == verdict
    told = str(sweep_sentences([dial]))
    assert f"**{verdict}**" in told
    assert "nan" not in told
    if verdict == "rises":
        assert re.search(r"\+\d+\.\d.\[\+\d+\.\d,.\+\d+\.\d\] points of mIoU .* of 5 seeds, 5 context shifts", told)


def test_prototypes_of_the_batch_have_a_dial_of_their_own():
    dial = sweep(by_context_shift(records()), "scope_batch")
    assert len(dial.gains) == 5
    assert dial.slopes.mean == pytest.approx(0.0, abs=1e-9)
    assert "prototypes of the batch" in SHIFT_NAMES["scope_batch"]


def test_a_seed_that_lacks_a_context_shift_has_no_slope():
    some = [r for r in records() if (r.experiment.seed, r.experiment.data.context_shift) != (2, 0.5)]
    dial = sweep(by_context_shift(some))
    assert sorted(dial.slopes.pairs) == [0, 1, 3, 4]
    assert sorted(dial.gains[0.5].pairs) == [0, 1, 3, 4]


def test_what_does_not_belong_on_the_dial_is_refused():
    made = records(seeds=1)
    other = replace(made[0].experiment, network=replace(made[0].experiment.network, head_width=48), seed=7)
    with pytest.raises(ComparisonError, match="differ in more than context shift, seed and distillers"):
        by_context_shift([*made, made_up_record(other)])
    camvid = made_up_record(next(iter(experiments_of("camvid-small"))))
    with pytest.raises(ComparisonError, match="have no context shift"):
        by_context_shift([*made, camvid])
    with pytest.raises(ValueError, match="method='adp': expected one of"):
        sweep(by_context_shift(made), "adp")


def test_the_figure_and_the_table_tell_the_gains_and_the_images_numbers():
    comparisons = by_context_shift(records())
    sweeps = [sweep(comparisons), sweep(comparisons, "scope_batch")]
    images = per_image([made_up_evidence(1.0, seed) for seed in range(2)])
    assert f"{100 * dials[0].gains[1.0].mean:+.1f} at 1" in sweep_figure(sweeps).description
    shown = sweep_table(comparisons, sweeps, images)
    assert shown.html.count("<tr") == 6
    assert f"{images[0].numbers['distance'].mean():.3f}" in shown.html
    assert "nan" not in shown.html
    last = comparisons[1.0]
    behind = sum(last.teacher_miou - miou for miou in last.miou("pixel_kd").values()) / 5
    assert f"<td>{100 * dials[0].gains[1.0].mean / behind:.0f}</td>" in shown.html


def test_without_records_every_part_says_so():
    dial = sweep({})
    assert dial.gains == {}
    assert "context shifts with a gain: 0" in str(sweep_sentences([dial]))
    assert "cannot be drawn" in sweep_figure([dial]).description
    assert "0 records" in sweep_table({}, [dial], []).description
