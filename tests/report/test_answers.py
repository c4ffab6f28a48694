"""The wording of results: who outperforms whom, what could have been detected, and the first page's numbers."""

import math

import numpy as np
import pytest
from scipy import stats

from apd.report.comparisons import holm_corrected
from apd.report.figures.answers import POWER, answer, detectable, statement, tally
from apd.report.statistics import mean_interval

CLEAR = {0: 0.020, 1: 0.024, 2: 0.022}
OPEN = {0: -0.01, 1: 0.0, 2: 0.012}


def worded(values, **options):
    return statement(holm_corrected({"only": mean_interval(values)})["only"], "APD", "pixel KD", **options)


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
