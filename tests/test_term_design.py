"""The design of APD's four terms: what stands in by construction is bit-equal, and effects are those put in."""

from dataclasses import replace

import pytest
from made_up_records import made_up_record
from small_experiments import digest, tiny

from apd.distillers.apd import APDConfig
from apd.distillers.logits import PixelKDConfig
from apd.report.designs import (
    combinations_of_terms,
    is_by_construction,
    letters_of,
    term_effects,
    terms_left_out,
    variant_of_terms,
)
from apd.report.figures.forest import term_combinations
from apd.report.figures.sentences import effects_in_words
from apd.report.figures.tables import interval
from apd.report.statistics import compare
from apd.study.ablations import BY_CONSTRUCTION, TERMS, term_variants, variant_names
from apd.study.campaigns import experiments_of
from apd.study.recipes import METHOD_NAMES, recipe
from apd.training.run import run_folder, train

STEPS = {"R": 0.0, "A": 0.01, "O": 0.03, "KD": 0.02}
"""What each term adds to a made-up student's share of right pixels."""


def weights_after(distillers, name):
    """sha256 of the student's weights after six steps with these distillers."""
    experiment = replace(tiny("apd"), name=name, distillers=distillers)
    train(experiment, device="cpu")
    return digest(run_folder(experiment) / "weights.safetensors")


def test_the_regularisation_without_alignment_and_observation_never_reaches_the_student(tmp_path, monkeypatch):
    monkeypatch.setenv("APD_RUNS", str(tmp_path))
    off = {"width": 8, "alignment": 0.0, "observation": 0.0}
    weights = {
        "": weights_after((), "none"),
        "R": weights_after((APDConfig(**off, pixel_kd=0.0),), "R"),
        "KD": weights_after((PixelKDConfig(),), "KD"),
        "R+KD": weights_after((APDConfig(**off),), "R-KD"),
        "KD within APD": weights_after((APDConfig(**off, regularisation=0.0),), "APD-KD"),
    }
    assert weights["R"] == weights[""]
    assert weights["R+KD"] == weights["KD"] == weights["KD within APD"]
    assert weights["KD"] != weights[""]
    assert set(BY_CONSTRUCTION) == {"", "R", "KD", "R+KD"}
    with_alignment = APDConfig(**off | {"alignment": 10.0}, pixel_kd=0.0)
    assert weights_after((with_alignment,), "R-A") != weights_after((replace(with_alignment, regularisation=0.0),), "A")


def test_every_combination_has_runs_of_its_own_or_those_that_it_equals():
    arms = {letters_of(on): variant_of_terms(on) for on in combinations_of_terms()}
    assert len(arms) == 2 ** len(TERMS)
    assert set(arms.values()) == {arm.key for arm in term_variants()} | {"student", "pixel_kd", "apd_without_kd", "apd"}
    assert [letters for letters, on in zip(arms, combinations_of_terms(), strict=True) if is_by_construction(on)] == [
        "R",
        "R+KD",
    ]
    assert len(terms_left_out()) == 13
    assert terms_left_out()["student"] == 4


def test_the_terms_that_are_on_in_an_arm_are_those_of_its_combination():
    distillers = {arm.key: arm.distillers for arm in term_variants()}
    distillers |= {method: recipe("tiny", method).distillers for method in ("apd", "apd_without_kd")}
    for on in combinations_of_terms():
        if config := distillers.get(variant_of_terms(on)):
            assert {letter for term, letter in TERMS.items() if getattr(config[0], term)} == set(on)


def records_of_the_design(seeds=3, leave_out=""):
    """Every term adds the same in every combination; seeds differ in level, and a little in the second term."""
    arms = {variant_of_terms(on): on for on in combinations_of_terms() if not is_by_construction(on)}
    records = []
    for name in ("scenes-tiny", "scenes-terms"):
        for experiment in experiments_of(name):
            key = experiment.name.split("-")[0]
            if experiment.data.context_shift == 1 and experiment.seed < seeds and key in arms and key != leave_out:
                right = 0.6 + 0.02 * experiment.seed + sum(STEPS[letter] for letter in arms[key])
                records.append(made_up_record(experiment, right + 0.002 * experiment.seed * ("A" in arms[key])))
    return records


@pytest.fixture(scope="module")
def comparison():
    (found,) = compare(records_of_the_design(), METHOD_NAMES | variant_names())
    return found


def test_effects_are_those_that_were_put_in(comparison):
    effects = term_effects(comparison)
    assert len(effects) == 15
    size = {letters_of(of): row.found.mean for of, row in effects.items()}
    # a share r of each class right gives IoU r / (2 - r), so a step of 0.01 is worth about 0.0115 at r = 0.65
    for letter in ("A", "O", "KD"):
        assert size[letter] == pytest.approx(1.1 * (STEPS[letter] + (0.002 if letter == "A" else 0)), rel=0.15)
        assert effects[frozenset({letter})].found.verdict == "above"
    assert all(abs(size[letters]) < 5e-4 for letters in size if len(letters.split("+")) > 1 or letters == "R")


def test_effects_are_told_in_words(comparison):
    effects = term_effects(comparison)
    told = str(effects_in_words(comparison, effects))
    assert "3 seeds with every combination, 15 effects judged together" in told
    assert f"- switching O on **raises** mIoU by {interval(effects[frozenset('O')].found)} points" in told
    assert "- switching R on does **nothing that can be told from zero**, 0.0\u00a0[" in told
    assert "of the 11 interactions" in told


def test_effects_wait_for_a_seed_with_every_combination():
    (found,) = compare(records_of_the_design(seeds=1, leave_out="terms_o"), METHOD_NAMES | variant_names())
    assert term_effects(found) == {}
    assert "0 seeds have records of all combinations" in str(effects_in_words(found, {}))
    assert "<svg" in term_combinations(found).html
    (one,) = compare(records_of_the_design(seeds=1), METHOD_NAMES | variant_names())
    told = str(effects_in_words(one, term_effects(one)))
    assert "one seed" in told
    assert "nan" not in told


def test_the_picture_of_the_design_has_every_combination_with_the_best_first(comparison):
    said = term_combinations(comparison).description
    listed = [entry.rsplit(" ", 1) for entry in said.split(": ", 1)[1].split("; ")]
    assert len(listed) == 16
    scores = [float(score) for _, score in listed]
    assert scores == sorted(scores, reverse=True)
    by_letters = dict(listed)
    assert by_letters["R"] == by_letters["none"]
    assert by_letters["R+KD"] == by_letters["KD"]
    mean = 100 * sum(comparison.miou("apd").values()) / 3
    assert by_letters["R+A+O+KD"] == f"{mean:.2f}"
    nothing = term_combinations(comparison.only(["student_equal_seconds"]))
    assert "0 of 16 combinations" in nothing.description
