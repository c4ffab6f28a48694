"""Designs: APD's four terms, a sweep of context shift, pairs of networks; what is planned and what records say."""

import math
from collections import Counter
from dataclasses import replace
from itertools import product

import pytest
from made_up_records import made_up_campaign, made_up_record, method_in
from small_experiments import tiny

from apd.distillers.apd import APDConfig
from apd.distillers.logits import PixelKDConfig
from apd.report import comparisons as reading
from apd.report.comparisons import ALL, BACKBONE_NAMES, TERM_DESIGN, by_context_shift, head_match, pairs_of, sweep
from apd.report.statistics import ComparisonError, compare, paired_difference
from apd.study.ablations import BY_CONSTRUCTION, TERMS, term_variants, variant_names
from apd.study.campaigns import experiments_of
from apd.study.recipes import HEADS, METHOD_NAMES, PAIR_METHODS, STUDENT_LEARNING_RATES, recipe, scenes_pair
from apd.training.checkpoint import sha256_of
from apd.training.run import run_folder, train

STEPS = {"R": 0.0, "A": 0.01, "O": 0.03, "KD": 0.02}
"""What each term adds to a made-up student's share of right pixels."""
BACKBONES = ("MobileNetV2", "ResNet-18", "EfficientNet")


def test_the_regularisation_without_alignment_and_observation_never_reaches_the_student(runs):
    def weights_after(name, *distillers):
        experiment = replace(tiny("apd"), name=name, distillers=distillers)
        train(experiment, device="cpu")
        return sha256_of(run_folder(experiment) / "weights.safetensors")

    off = {"width": 8, "alignment": 0.0, "observation": 0.0}
    nothing, only_kd = weights_after("none"), weights_after("KD", PixelKDConfig())
    assert weights_after("R", APDConfig(**off, pixel_kd=0.0)) == nothing != only_kd
    assert weights_after("R-KD", APDConfig(**off)) == only_kd
    assert weights_after("APD-KD", APDConfig(**off, regularisation=0.0)) == only_kd
    aligned = APDConfig(**off | {"alignment": 10.0}, pixel_kd=0.0)
    assert weights_after("R-A", aligned) != weights_after("A", replace(aligned, regularisation=0.0))


def test_every_combination_has_runs_of_its_own_terms_or_those_that_it_equals():
    assert len(TERM_DESIGN) == 2 ** len(TERMS)
    methods = {"student", "pixel_kd", "apd_without_kd", "apd"}
    assert set(TERM_DESIGN.values()) == {variant.key for variant in term_variants()} | methods
    assert set(BY_CONSTRUCTION) == {"", "R", "KD", "R+KD"}
    distillers = {variant.key: variant.distillers for variant in term_variants()}
    distillers |= {method: recipe("tiny", method).distillers for method in ("apd", "apd_without_kd")}
    for on, key in TERM_DESIGN.items():
        if key in distillers:
            assert {letter for term, letter in TERMS.items() if getattr(distillers[key][0], term)} == set(on)


def comparison_of_terms(seeds=3, leave_out=""):
    """Every term adds the same in every combination; seeds differ in level, and a little in the second term."""
    terms = {key: on for on, key in TERM_DESIGN.items() if on not in ({"R"}, {"R", "KD"}) and key != leave_out}

    def right(e):
        on = terms[method_in(e)]
        return 0.6 + 0.02 * e.seed + sum(STEPS[letter] for letter in on) + 0.002 * e.seed * ("A" in on)

    def keep(e):
        return e.data.context_shift == 1 and e.seed < seeds and method_in(e) in terms

    records = [r for name in ("scenes-tiny", "scenes-terms") for r in made_up_campaign(name, right, keep)]
    (found,) = compare(records, METHOD_NAMES | variant_names())
    return found


def test_effects_are_those_that_were_put_in_once_a_seed_has_every_combination():
    effects = reading.term_effects(comparison_of_terms())
    size = {reading.letters_of(of): row.found.mean for of, row in effects.items()}
    assert len(size) == 15
    # a share r of each class right gives IoU r / (2 - r), so a step of 0.01 is worth about 0.0115 at r = 0.65
    for letter in ("A", "O", "KD"):
        assert size[letter] == pytest.approx(1.1 * (STEPS[letter] + (0.002 if letter == "A" else 0)), rel=0.15)
        assert effects[frozenset({letter})].found.low > 0
    assert all(abs(size[letters]) < 5e-4 for letters in size if len(letters.split("+")) > 1 or letters == "R")
    assert reading.term_effects(comparison_of_terms(seeds=1, leave_out="terms_o")) == {}


def shifted(rise=0.1, seeds=5, shifts=(0.0, 0.25, 0.5, 0.75, 1.0), wobble=0.004):
    """Every planned run; APD's share of right pixels rises by `rise` with the shift; `wobble` differs between seeds."""

    def right(e):
        slope = rise + wobble * (e.seed % 3 - 1)
        ahead = slope * e.data.context_shift + 0.02 if method_in(e) == "apd" else 0.0
        return 0.6 + 0.01 * e.seed - 0.2 * e.data.context_shift + ahead

    def keep(e):
        return e.seed < seeds and e.data.context_shift in shifts

    return [r for name in ("scenes-tiny", "scenes-shifts") for r in made_up_campaign(name, right, keep)]


def test_gains_and_their_change_between_the_ends_are_paired_by_seed():
    comparisons = by_context_shift(shifted())
    found = sweep(comparisons)
    assert list(found.gains) == [0.0, 0.25, 0.5, 0.75, 1.0]
    for shift, comparison in comparisons.items():
        assert found.gains[shift] == paired_difference(comparison.values("apd"), comparison.values("pixel_kd"))
    by_hand = {seed: found.gains[1.0].pairs[seed] - found.gains[0.0].pairs[seed] for seed in range(5)}
    assert dict(found.change.pairs) == pytest.approx(by_hand)
    assert sweep(comparisons, "scope_batch").change.mean == pytest.approx(0.0, abs=1e-9)
    lacking = [r for r in shifted() if (r.experiment.seed, r.experiment.data.context_shift) != (2, 1.0)]
    assert sorted(sweep(by_context_shift(lacking)).change.pairs) == [0, 1, 3, 4]


@pytest.mark.parametrize(
    ("settings", "sign"),
    [({}, 1), ({"rise": -0.1}, -1), ({"rise": 0.0, "wobble": 0.1}, 0), ({"seeds": 1}, 0), ({"shifts": (0.5,)}, 0)],
)
def test_a_gain_changes_with_the_context_shift_when_the_seeds_say_so(settings, sign):
    found = sweep(by_context_shift(shifted(**settings))).change
    assert (found.low > 0) - (found.high < 0) == sign


def test_what_does_not_belong_in_a_sweep_is_refused():
    made = shifted(seeds=1)
    other = replace(made[0].experiment, network=replace(made[0].experiment.network, head_width=48), seed=7)
    camvid = made_up_record(next(iter(experiments_of("camvid-small"))))
    for stray in (made_up_record(other), camvid):
        with pytest.raises(ComparisonError, match="expected scenes that differ in context shift"):
            by_context_shift([*made, stray])


def test_every_role_and_backbone_is_planned_no_baseline_twice_and_runs_of_a_student_differ_in_teacher_and_losses_only():
    planned = experiments_of("scenes-pairs")
    alone = Counter((e.network, e.seed, e.teacher) for e in planned if not e.distillers)
    assert len(alone) == len(HEADS) * len(STUDENT_LEARNING_RATES) * 3
    assert set(alone.values()) == {1}
    roles = Counter(
        (e.teacher.network.head, e.network.head, e.network.backbone, e.distillers[0].method, e.seed)
        for e in planned
        if e.distillers
    )
    assert set(roles) == set(product(HEADS, HEADS, STUDENT_LEARNING_RATES, ["pixel_kd", "apd"], range(3)))
    assert len(planned) == len(roles) + len(alone) == 90
    for network in {e.network for e in planned}:
        same = {replace(e, name="-", seed=0, teacher=None, distillers=()) for e in planned if e.network == network}
        assert len(same) == 1
    assert {e.teacher.network.head for e in planned if e.teacher} == set(HEADS)
    assert len({e.data for e in planned}) == len({replace(e.training, learning_rate=0.1) for e in planned}) == 1
    assert all(e.training.learning_rate == STUDENT_LEARNING_RATES[e.network.backbone] for e in planned)


def pair_records(name="scenes-pairs", keep=lambda e: method_in(e) in PAIR_METHODS, same=0.0, better_teacher=0.0):
    """APD's gain grows by `same` with a teacher of the student's own head, by `better_teacher` with a DeepLabV3."""

    def right(e):
        gain = {"student": 0.0, "pixel_kd": 0.01, "apd": 0.03}[method_in(e)]
        if method_in(e) == "apd":
            heads = (e.teacher.network.head, e.network.head)
            gain += same * (heads[0] == heads[1]) + better_teacher * (heads[0] == "aspp")
        wobble = 0.002 * ((3 * e.seed + len(e.name)) % 4)
        return 0.5 + 0.02 * e.seed + gain + wobble * bool(e.distillers)

    return made_up_campaign(name, right, keep)


@pytest.fixture(scope="module")
def data_sets():
    return pairs_of([r for name in ("scenes-pairs", "facade-pairs", "facade-small") for r in pair_records(name)])


def test_records_become_pairs_by_data_set_same_architecture_ones_first(data_sets):
    on_scenes, on_facade = data_sets
    assert [pair.cross_architecture for pair in on_scenes] == [False] * 6 + [True] * 6
    assert {BACKBONE_NAMES[pair.student.backbone] for pair in on_scenes} == set(BACKBONES)
    assert len({(pair.heads, pair.student.backbone) for pair in on_scenes}) == 12
    assert [pair.heads for pair in on_facade] == ["PSPNet ← PSPNet"] * 2 + ["PSPNet ← DeepLabV3"]
    assert all(set(pair.runs.variants) == set(PAIR_METHODS) for pairs in data_sets for pair in pairs)
    assert pairs_of([]) == pairs_of(pair_records(keep=lambda e: not e.distillers)) == []


def test_a_run_that_is_missing_takes_its_seed_out_of_every_mean():
    (pairs,) = pairs_of(pair_records(keep=lambda e: e.name != "apd-psp_resnet18_from_aspp-seed1"))
    crossed = [pair for pair in pairs if pair.cross_architecture]
    found = reading.mean_gain(crossed, "apd")
    assert sorted(found.pairs) == [0, 2]
    expected = sum(p.runs.values("apd")[2] - p.runs.values("student")[2] for p in crossed) / 6
    assert found.pairs[2] == pytest.approx(expected)
    assert sorted(reading.mean_gain(crossed, "pixel_kd").pairs) == [0, 1, 2]
    matched = head_match(pairs, "apd")
    assert sorted(matched["ResNet-18"].pairs) == sorted(matched[ALL].pairs) == [0, 2]
    assert sorted(matched["MobileNetV2"].pairs) == [0, 1, 2]


def test_the_match_of_heads_is_the_mean_over_roles_and_backbones_and_there_where_students_have_both_heads(data_sets):
    on_scenes, on_facade = data_sets
    found = head_match(on_scenes, "apd")
    assert set(found) == {*BACKBONES, ALL}
    for seed in range(3):
        by_hand = dict.fromkeys(BACKBONES, 0.0)  # cross- minus same-architecture, mean over the student's two heads
        for pair in on_scenes:
            half = pair.runs.values("apd")[seed] / 2
            by_hand[BACKBONE_NAMES[pair.student.backbone]] += half if pair.student.head != pair.teacher.head else -half
        assert {backbone: found[backbone].pairs[seed] for backbone in BACKBONES} == pytest.approx(by_hand)
        assert found[ALL].pairs[seed] == pytest.approx(math.fsum(by_hand.values()) / 3)
    assert len(reading.head_match_rows(on_scenes)) == 2 * 4
    assert reading.head_match_rows(on_facade) == {}


def test_the_match_of_heads_sees_a_teacher_of_ones_own_architecture_and_not_a_better_teacher():
    (alike,), (better,) = pairs_of(pair_records(same=0.1)), pairs_of(pair_records(better_teacher=0.1))
    assert head_match(alike, "apd")[ALL].high < 0
    assert abs(head_match(better, "apd")[ALL].mean) < 0.01


def test_records_of_pairs_that_do_not_fit_one_another_are_refused():
    kd, apd, alone = (scenes_pair("aspp", "psp", "resnet18", method) for method in ("pixel_kd", "apd", "student"))
    longer = replace(alone, training=replace(alone.training, iterations=201))
    for records, message in (
        ([made_up_record(kd), made_up_record(apd, images="a" * 64)], "differ in the images of the evaluation split"),
        ([made_up_record(kd), made_up_record(apd, teacher_right=0.8)], "differ in the teacher's confusion"),
        ([made_up_record(apd), made_up_record(longer)], r"student-psp_resnet18-seed0.*differ in the recipe"),
        ([made_up_record(apd), made_up_record(alone, images="a" * 64)], "differ in the images"),
        ([made_up_record(apd), made_up_record(apd)], "the same method and seed"),
    ):
        with pytest.raises(ComparisonError, match=message):
            pairs_of(records)
