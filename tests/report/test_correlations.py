"""Rank correlations against scipy, what is called a relation, and files of evidence: read as written, or refused."""

import math

import numpy as np
import pytest
from bad_input import edited
from chapter_cells import book_script
from hypothesis import given
from hypothesis import strategies as st
from made_up_evidence import IMAGES, made_up_evidence
from scipy import stats

from apd.report import correlations
from apd.report.correlations import Evidence, correlate, per_image, relation, spearman
from apd.report.statistics import ComparisonError
from apd.training.record import RecordError

maker = book_script("perspective_evidence")
COLUMN = st.lists(st.integers(0, 8).map(float), min_size=3, max_size=25).map(np.array)


def two_columns(seed, images=60, slope=0.0, noise=1.0):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=images)
    return x, slope * x + noise * generator.normal(size=images)


@given(st.data())
def test_the_rank_correlation_is_scipys_ties_included(data):
    x = data.draw(COLUMN)
    y = np.array(data.draw(st.lists(st.integers(0, 8).map(float), min_size=len(x), max_size=len(x))))
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert math.isnan(spearman(x, y))
    else:
        assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


def test_an_image_of_which_something_is_not_known_is_left_out():
    x, y = two_columns(0)
    assert correlate(np.append(x, np.nan), np.append(y, 0.0)) == correlate(x, y)


@pytest.mark.parametrize(("slope", "seed"), [(0.0, 1), (0.5, 2), (-2.0, 3)])
def test_the_interval_is_about_that_of_scipys_bootstrap(slope, seed):
    x, y = two_columns(seed, slope=slope)
    found = correlate(x, y)
    settings = {"paired": True, "vectorized": False, "n_resamples": 1500, "method": "percentile", "rng": 7}
    expected = stats.bootstrap((x, y), lambda a, b: stats.spearmanr(a, b).statistic, **settings).confidence_interval
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.05)
    assert found.low < found.value < found.high


def test_where_there_is_no_correlation_there_is_no_number_and_a_wrong_confidence_is_refused_with_its_number():
    for columns in (([1.0, 2.0], [1.0, 2.0]), ([1.0] * 9, range(9)), ([math.nan] * 9, range(9))):
        found = correlate(*(np.array(list(column), dtype=float) for column in columns))
        assert math.isnan(found.value)
        assert math.isnan(found.low)
    with pytest.raises(ValueError, match=r"confidence=95: expected"):
        correlate(*two_columns(0), confidence=95)


def related(seeds, *, slope=0.2, noise=0.01, apart=0.0):
    """Evidence in which an image's gain is `slope` times its distance, plus noise; `apart` differs between seeds."""
    generator = np.random.default_rng(11)
    distance = generator.uniform(0.1, 0.5, IMAGES)
    made = []
    for seed in range(seeds):
        own_slope = slope + (apart if seed % 2 else -apart)
        gain = own_slope * distance + noise * generator.normal(size=IMAGES)
        base = generator.uniform(0.3, 0.5, IMAGES)
        miou = {"pixel_kd": base, "apd": base + gain}
        made.append(made_up_evidence(1.0, seed, distance=distance, miou=miou))
    return made


def test_an_images_scores_are_averaged_over_seeds_before_anything_else():
    evidence = [made_up_evidence(1.0, seed) for seed in range(3)]
    (found,) = per_image(evidence)
    assert found.seeds == (0, 1, 2)
    expected = np.mean([one.score("apd", "miou") for one in evidence], axis=0)
    assert np.allclose(found.scores["apd"]["miou"], expected)
    assert np.allclose(found.gain(), expected - np.mean([one.score("pixel_kd", "miou") for one in evidence], axis=0))
    assert np.allclose(found.numbers["revealed"], found.numbers["own_right"] - found.numbers["shared_right"])
    whole = relation(found)
    assert whole.over_images.value == pytest.approx(stats.spearmanr(found.numbers["distance"], found.gain())[0])
    assert whole.over_images.images == IMAGES  # and not three times as many
    gains = [one.score("apd", "miou") - one.score("pixel_kd", "miou") for one in evidence]
    each = [stats.spearmanr(one.number("distance"), gain)[0] for one, gain in zip(evidence, gains, strict=True)]
    assert list(whole.over_seeds.pairs.values()) == pytest.approx(each)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "rises with"),
        ({"slope": -0.2}, "falls with"),
        ({"slope": 0.0}, "shows no significant relation to"),
        # clear in the mean, not from seed to seed
        ({"seeds": 4, "slope": 0.06, "apart": 0.1}, "shows no significant relation to"),
        ({"seeds": 1}, "cannot be compared yet with"),
    ],
)
def test_a_relation_is_one_when_both_intervals_leave_out_zero(settings, expected):
    (found,) = per_image(related(**({"seeds": 5} | settings)))
    assert relation(found).verdict == expected
    if "apart" in settings:
        assert relation(found).over_images.low > 0


def test_seeds_agree_where_gains_belong_to_the_images():
    (alike,), (luck,) = per_image(related(4)), per_image(related(4, slope=0.0))
    assert correlations.seeds_agree(alike) > 0.8
    assert abs(correlations.seeds_agree(luck)) < 0.3
    assert math.isnan(correlations.seeds_agree(per_image(related(1))[0]))


def test_context_shifts_are_kept_apart_and_evidence_that_does_not_belong_together_is_refused():
    found = per_image([made_up_evidence(shift, seed) for shift in (1.0, 0.25) for seed in range(2)])
    assert [(one.context_shift, one.seeds) for one in found] == [(0.25, (0, 1)), (1.0, (0, 1))]
    with pytest.raises(ComparisonError, match="expected each once"):
        per_image([made_up_evidence(1.0, 0), made_up_evidence(1.0, 0)])
    for what, other in (("teacher", {"weights": {"teacher": "8" * 64}}), ("images", {"images": 20})):
        with pytest.raises(ComparisonError, match=f"differ in the {what}"):
            per_image([made_up_evidence(1.0, 0), made_up_evidence(1.0, 1, **other)])


def test_what_is_read_is_what_was_written_one_list_of_numbers_a_line(tmp_path):
    evidence = made_up_evidence(0.25, 3, distance=[math.nan, *[0.25] * (IMAGES - 1)])
    path = tmp_path / "some" / "one.json"
    maker.save(evidence, path)
    assert "NaN" not in path.read_text()
    assert sum('"distance"' in line for line in path.read_text().splitlines()) == 1
    assert len(path.read_text().splitlines()) < 170
    found = Evidence.read(path)
    assert found.content == evidence.content
    assert np.isnan(found.number("distance")).tolist() == [True, *[False] * (IMAGES - 1)]


def test_all_files_of_a_folder_are_read_by_context_shift_and_seed_and_one_that_is_none_refused_by_name(tmp_path):
    for context_shift, seed in ((1.0, 0), (0.0, 1), (0.0, 0)):
        maker.save(made_up_evidence(context_shift, seed), tmp_path / f"{context_shift}-{seed}.json")
    found = [one.experiment for one in Evidence.read_all(tmp_path)]
    assert [(one.data.context_shift, one.seed) for one in found] == [(0.0, 0), (0.0, 1), (1.0, 0)]
    assert Evidence.read_all(tmp_path / "none") == []
    assert len(Evidence.read_all()) == 25
    for text in ("{", "[]", '{"schema": 1}'):
        (tmp_path / "broken.json").write_text(text)
        with pytest.raises(RecordError, match=r"broken\.json.*delete it and run python book/figures"):
            Evidence.read_all(tmp_path)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("schema", 2, "schema 2 is not 1"),
        ("runs", ..., "'runs' is missing"),
        ("scores/pixel_kd", ..., "'pixel_kd' is missing"),
        ("runs/apd/fingerprint", "a" * 12, r"runs\.apd\.fingerprint is not that of the exper"),
        ("experiment/seed", -1, "seed"),
        ("experiment/seed", 4, "the file was edited"),
        ("valid", [1] * 3, "valid = .* expected 40 values"),
        ("furthest/0", 10, "furthest = .* null or from 0 to 9"),
        ("perspective/distance/2", 2.5, r"perspective\.distance = .* from 0 to 2"),
        ("perspective/divergence/2", math.inf, r"perspective\.divergence = .* from 0 to inf"),
        ("perspective/disagreement", ..., "'disagreement' is missing"),
        ("scores/apd/miou/3", -0.5, r"scores\.apd\.miou = .* from 0 to 1"),
        ("scores/teacher", [1], "list indices must be integers"),
    ],
)
def test_a_damaged_file_is_refused_by_the_name_of_its_entry(path, value, message):
    with pytest.raises(RecordError, match=message):
        Evidence(edited(made_up_evidence().content, path, value))
