"""Pairs of networks: what is planned, what records say of pairs, and what is said where records are missing."""

import math
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import replace
from itertools import product

import pytest
from chapter_cells import run_cells
from made_up_records import made_up_record
from scipy import stats
from small_experiments import TEACHER, tiny

from apd.config.identity import fingerprint
from apd.report.designs import ALL, PUBLISHED, crossed_minus_own, head_match, mean_gain, pairs_of
from apd.report.figures import style
from apd.report.figures.pair_figures import (
    by_data,
    gain_by_pair,
    gains_in_words,
    judged_gains,
    kinship_in_words,
    kinship_rows,
    pairs_table,
    published_table,
)
from apd.report.figures.sentences import read_campaigns
from apd.report.figures.tables import best_rate, interval, pair_rates_table, tried_rates
from apd.report.statistics import ComparisonError
from apd.study.campaigns import experiments_of
from apd.study.pair_recipes import HEADS, PAIR_METHODS, STUDENT_RATES, TEACHER_RATES, TRIED_PAIR_RATES, scenes_pair
from apd.training.run import train

CAMPAIGNS = ("scenes-pairs", "camvid-pairs", "camvid-small")
BACKBONES = ("ResNet-18", "MobileNetV2", "EfficientNet")


def right(experiment, better_teacher=0.0, kin=0.0):
    """A share of right pixels: a gain by method, `better_teacher` from a DeepLabV3, `kin` from one's own kind."""
    luck = 0.001 * (int(fingerprint(experiment), 16) % 7)
    share = 0.5 + 0.02 * experiment.seed + luck
    if experiment.distillers:
        own = experiment.teacher.network.head == experiment.network.head
        share += 0.03 if experiment.distillers[0].method == "apd" else 0.01
        share += better_teacher * (experiment.teacher.network.head == "aspp") + kin * own
    return share


def records_of(*names, keep=lambda experiment: True, **settings):
    planned = [e for name in names for e in experiments_of(name) if keep(e)]
    return [made_up_record(e, right(e, **settings)) for e in planned]


@pytest.fixture(scope="module")
def records():
    return records_of(*CAMPAIGNS)


@pytest.fixture(scope="module")
def pairs(records):
    return pairs_of(records)


# the plan


def test_every_role_and_backbone_is_planned_and_no_student_alone_twice():
    planned = experiments_of("scenes-pairs")
    assert len(planned) == 90
    alone = Counter((e.network, e.seed) for e in planned if not e.distillers)
    assert len(alone) == len(HEADS) * len(STUDENT_RATES) * 3
    assert set(alone.values()) == {1}
    assert all(e.teacher is None for e in planned if not e.distillers)
    taught = {
        (e.teacher.network.head, e.network.head, e.network.backbone, e.distillers[0].method, e.seed)
        for e in planned
        if e.distillers
    }
    assert taught == set(product(HEADS, HEADS, STUDENT_RATES, ["pixel_kd", "apd"], range(3)))


def test_runs_of_a_student_differ_in_teacher_and_losses_and_teachers_in_their_heads():
    planned = experiments_of("scenes-pairs")
    for network in {e.network for e in planned}:
        same = {replace(e, name="-", seed=0, teacher=None, distillers=()) for e in planned if e.network == network}
        assert len(same) == 1
    teachers = {e.teacher for e in planned if e.teacher}
    assert {t.network.head for t in teachers} == set(HEADS)
    assert len(teachers) == 2
    assert len({replace(t.network, head="psp", aspp_reach=288) for t in teachers}) == 1
    assert len({replace(t.training, learning_rate=0.1) for t in teachers}) == 1
    assert len({e.data for e in planned}) == len({replace(e.training, learning_rate=0.1) for e in planned}) == 1


def test_a_backbone_has_one_rate_for_everything_it_is_compared_in():
    for e in experiments_of("scenes-pairs"):
        assert e.training.learning_rate == STUDENT_RATES[e.network.backbone]


def test_every_network_gets_the_same_trials_of_its_rate_and_those_used_are_runs_of_the_campaign():
    trials = experiments_of("scenes-pairs-tuning")
    students = [e for e in trials if not e.name.startswith("teacher")]
    tried = Counter((e.network.backbone, e.training.learning_rate) for e in students)
    assert set(tried) == set(product(STUDENT_RATES, TRIED_PAIR_RATES))
    assert set(tried.values()) == {len(HEADS) * len(PAIR_METHODS)}
    assert all(e.teacher is None or e.teacher.network.head == e.network.head for e in students)
    planned = {fingerprint(e) for e in experiments_of("scenes-pairs")}
    used = [e for e in students if e.training.learning_rate == STUDENT_RATES[e.network.backbone]]
    assert {fingerprint(e) for e in used} <= planned
    of_teachers = {fingerprint(e.teacher_experiment()) for e in experiments_of("scenes-pairs") if e.teacher}
    assert of_teachers <= {fingerprint(e) for e in trials}


def test_the_pair_on_camvid_is_that_of_the_small_recipe_but_for_the_teachers_head():
    small = {e.name: e for e in experiments_of("camvid-small")}
    planned = experiments_of("camvid-pairs")
    assert len(planned) == 6
    for e in planned:
        own = small[f"{e.name.split('-')[0]}-seed{e.seed}"]
        network = replace(e.teacher.network, head="psp", aspp_reach=288)
        assert e.teacher.network.head == "aspp"
        assert replace(e, name=own.name, teacher=replace(e.teacher, network=network)) == own


def test_the_student_alone_is_the_same_run_whichever_teacher_stands_beside_it(tmp_path, monkeypatch):
    monkeypatch.setenv("APD_RUNS", str(tmp_path))
    alone = train(tiny(), progress=False)
    beside = train(replace(tiny(), teacher=TEACHER), progress=False)
    assert beside.teacher_scores is not None
    for entry in ("weights_sha256", "confusion", "evaluations"):
        assert alone.content[entry] == beside.content[entry]


def test_the_rates_of_the_recipe_are_those_that_the_committed_trials_choose():
    campaigns, _ = read_campaigns(["scenes-pairs-tuning"])
    found = tried_rates(campaigns["scenes-pairs-tuning"])
    assert len(campaigns["scenes-pairs-tuning"]) == len(experiments_of("scenes-pairs-tuning"))
    used = STUDENT_RATES | {f"teacher-{head}": rate for head, rate in TEACHER_RATES.items()}
    assert {whose: best_rate(trials) for whose, trials in found.items()} == used


# what records say


def test_records_become_pairs_those_of_one_kind_first(pairs):
    assert len(pairs) == 14
    on_scenes, on_camvid = by_data(pairs).values()
    assert [pair.is_crossed for pair in on_scenes] == [False] * 6 + [True] * 6
    assert [pair.backbone for pair in on_scenes] == [*BACKBONES] * 4
    assert len({pair.name for pair in on_scenes}) == 12
    assert [pair.name for pair in on_camvid] == ["PSPNet MobileNetV2 ← PSPNet", "PSPNet MobileNetV2 ← DeepLabV3"]
    assert all(set(pair.runs.variants) == {"student", "pixel_kd", "apd"} for pair in pairs)


def test_a_gain_is_over_the_same_student_and_seed_with_the_interval_of_students_t(records, pairs):
    miou = {r.experiment.name: r.scores.miou for r in records if r.experiment.data.name == "scenes"}
    pair = next(p for p in pairs if p.name == "DeepLabV3 MobileNetV2 ← PSPNet")
    alone = [miou[f"student-aspp_mobilenetv2_050-seed{seed}"] for seed in range(3)]
    taught = [miou[f"apd-aspp_mobilenetv2_050_from_psp-seed{seed}"] for seed in range(3)]
    found = pair.gain("apd", confidence=0.9)
    assert list(found.pairs.values()) == pytest.approx([t - a for t, a in zip(taught, alone, strict=True)])
    expected = stats.ttest_rel(taught, alone).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_the_mean_gain_takes_the_seeds_that_all_pairs_have(records):
    kept = [r for r in records if r.experiment.name != "apd-psp_resnet18_from_aspp-seed1"]
    crossed = [p for p in pairs_of(kept) if p.is_crossed and p.runs.data.name == "scenes"]
    found = mean_gain(crossed, "apd")
    assert sorted(found.pairs) == [0, 2]
    expected = sum(p.runs.miou("apd")[2] - p.runs.miou("student")[2] for p in crossed) / 6
    assert found.pairs[2] == pytest.approx(expected)
    assert sorted(mean_gain(crossed, "pixel_kd").pairs) == [0, 1, 2]


def scenes_pairs_with(**settings):
    return pairs_of(records_of("scenes-pairs", **settings))


def slow_kinship(pairs, method, backbone, seed):
    """Role by role: crossed minus own, mean over the student's two heads."""
    scores = {
        (p.student.head, p.teacher.head): p.runs.variants[method][seed].scores.miou
        for p in pairs
        if p.backbone == backbone
    }
    crossed = (scores["psp", "aspp"] + scores["aspp", "psp"]) / 2
    return crossed - (scores["psp", "psp"] + scores["aspp", "aspp"]) / 2


def test_kinship_is_the_mean_over_roles_and_backbones():
    pairs = scenes_pairs_with()
    found = head_match(pairs, "apd")
    assert list(found) == [*BACKBONES, ALL]
    for seed in range(3):
        by_hand = [slow_kinship(pairs, "apd", backbone, seed) for backbone in BACKBONES]
        assert [found[backbone].pairs[seed] for backbone in BACKBONES] == pytest.approx(by_hand)
        assert found[ALL].pairs[seed] == pytest.approx(sum(by_hand) / 3)


def test_kinship_sees_a_teacher_of_ones_own_kind_and_not_a_better_teacher():
    related, better = scenes_pairs_with(kin=0.1), scenes_pairs_with(better_teacher=0.1)
    assert head_match(related, "apd")[ALL].verdict == "below"
    assert head_match(related, "apd")[ALL].mean < -0.05
    assert abs(head_match(better, "apd")[ALL].mean) < 0.01
    by_student = crossed_minus_own(better, "apd")
    assert all((value > 0.05) == (s.head == "psp") for s, seeds in by_student.items() for value in seeds.values())


def test_a_role_without_a_record_takes_its_seed_and_backbone_out():
    lost = "pixel_kd-aspp_resnet18_from_psp-seed2"
    found = head_match(pairs_of(records_of("scenes-pairs", keep=lambda e: e.name != lost)), "pixel_kd")
    assert sorted(found["ResNet-18"].pairs) == sorted(found[ALL].pairs) == [0, 1]
    assert sorted(found["MobileNetV2"].pairs) == [0, 1, 2]


def test_students_without_a_teachers_records_and_other_methods_make_no_pair():
    assert pairs_of([]) == []
    assert pairs_of(records_of("scenes-pairs", keep=lambda e: not e.distillers)) == []
    (pair,) = pairs_of(records_of("camvid-small"))
    assert set(pair.runs.variants) == {"student", "pixel_kd", "apd"}


def test_a_pair_without_its_student_alone_has_no_gain(pairs):
    taught = pairs_of(records_of("scenes-pairs", keep=lambda e: bool(e.distillers)))
    assert len(taught) == 12
    assert judged_gains(taught) == {}
    assert head_match(taught, "apd")[ALL].pairs
    assert "nan" not in pairs_table(taught).description
    assert "0 pairs have a seed in common" in gain_by_pair(taught).description


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": "a" * 64}, "differ in the images of the evaluation split"),
        ({"teacher_right": 0.8}, "differ in the teacher's confusion matrix"),
    ],
)
def test_records_that_do_not_fit_one_another_are_refused(change, message):
    taught = [scenes_pair("aspp", "psp", "resnet18", method) for method in ("pixel_kd", "apd")]
    stray = [made_up_record(taught[0]), made_up_record(taught[1], **change)]
    with pytest.raises(ComparisonError, match=message):
        pairs_of(stray)


def test_a_student_alone_of_another_recipe_or_of_other_images_is_refused():
    taught = made_up_record(scenes_pair("aspp", "psp", "resnet18", "apd"))
    alone = scenes_pair("aspp", "psp", "resnet18", "student")
    longer = replace(alone, training=replace(alone.training, iterations=201))
    with pytest.raises(ComparisonError, match=r"student-psp_resnet18-seed0.*differ in the recipe"):
        pairs_of([taught, made_up_record(longer)])
    with pytest.raises(ComparisonError, match="differ in the images"):
        pairs_of([taught, made_up_record(alone, images="a" * 64)])
    with pytest.raises(ComparisonError, match="the same method and seed"):
        pairs_of([taught, taught])


def test_differences_are_not_taken_across_data_sets(pairs):
    with pytest.raises(ValueError, match="several data sets"):
        head_match(pairs, "apd")


# figures, tables, words


def texts(drawn):
    return ["".join(e.itertext()) for e in ElementTree.fromstring(drawn.html).iter() if e.tag.endswith("text")]


def test_the_figure_tells_every_gain_and_sets_the_published_ones_apart(pairs):
    drawn = gain_by_pair(pairs)
    for those in by_data(pairs).values():
        for (name, _), row in judged_gains(those).items():
            assert name in drawn.description
            assert interval(row.found) in drawn.description
    ours, published = drawn.description.split(
        "Published for APD, on other data, at another scale and without a spread: "
    )
    assert published == "ADE20K +2.06, Cityscapes +1.53, PASCAL-Context +1.67"
    assert "ADE20K" not in ours
    words = texts(drawn)
    assert sum(word == "one kind" for word in words) == 3
    assert sum(word == "crossed" for word in words) == 3
    assert any("published" in word for word in words)
    assert {*BACKBONES, "ADE20K", "CamVid at 180 × 240"} <= set(words)
    for fixed in ("#000000", style.INK, style.FAINT, "nan"):
        assert fixed not in drawn.html


def test_the_same_records_give_the_same_figure(pairs):
    _, on_camvid = by_data(pairs).values()
    assert gain_by_pair(on_camvid).html == gain_by_pair(on_camvid).html


def test_the_published_rows_have_the_gains_that_are_printed_with_them():
    assert [round(row.gain, 2) for row in PUBLISHED] == [2.06, 1.53, 1.67]
    told = published_table().description
    assert "README of the released code" in told
    assert "+2.06" in told


def test_the_table_has_a_row_for_every_pair_with_its_teacher(pairs):
    on_scenes, _ = by_data(pairs).values()
    shown = pairs_table(on_scenes)
    assert shown.html.count("<tr") == 13
    assert f"{100 * on_scenes[0].runs.teacher_miou:.1f}" in shown.html
    assert interval(on_scenes[4].gain("apd")) in shown.html


@pytest.mark.parametrize(
    ("settings", "verdict"), [({"kin": 0.1}, "below"), ({"kin": -0.1}, "above"), ({}, "not distinguishable from")]
)
def test_the_sentence_on_crossed_pairs_says_what_the_seeds_say(settings, verdict):
    told = str(kinship_in_words(scenes_pairs_with(**settings)))
    line = f"- “+ APD” from a teacher of the other kind is **{verdict}** that from one of its own: "
    assert line in told
    assert "3 seeds; mean over 3 student backbones and both heads." in told
    assert "nan" not in told


def test_one_crossed_pair_alone_is_told_with_what_it_leaves_open(pairs):
    _, on_camvid = by_data(pairs).values()
    told = str(kinship_in_words(on_camvid))
    assert "one student, PSPNet, so that the better of two teachers counts as well" in told
    assert not kinship_rows(on_camvid)
    assert "“+ APD”: 0 students have runs with both teachers." in str(kinship_in_words(on_camvid[:1]))


def test_gains_are_told_by_role_and_then_judged_together(pairs):
    told = str(gains_in_words(pairs))
    assert "- “+ APD”, mean over crossed pairs (6): **above** the students alone, " in told
    assert "24 settings against the same student alone, judged together at 95 %." in told


def test_the_best_rate_is_marked_and_a_rate_with_fewer_trials_cannot_be_it():
    trials = records_of("scenes-pairs-tuning")
    shown = pair_rates_table(trials).description
    assert shown.count("◂") == 1 + 5  # the caption's and one in each row
    for whose, by_rate in tried_rates(trials).items():
        best = max(by_rate, key=lambda rate: math.fsum(by_rate[rate]))
        assert best_rate(by_rate) == best, whose
    fewer = [r for r in trials if r.experiment.name != "apd-psp_resnet18-rate0.1"]
    (row,) = [line for line in pair_rates_table(fewer).description.split("\n") if "ResNet-18" in line]
    most = len(HEADS) * len(PAIR_METHODS)
    assert re.search(rf"\(\d\d\.\d\)\s+{most}\s+0\.\d+$", row)
    assert "0 runs" in pair_rates_table([]).description


# the chapter

KEPT = {
    "none": lambda place, e: False,
    "students alone": lambda place, e: not e.distillers,
    "half of the first seed": lambda place, e: e.seed == 0 and place % 2 == 0,
    "one seed": lambda place, e: e.seed == 0,
    "all": lambda place, e: True,
}


@pytest.mark.parametrize("kept", KEPT)
def test_the_chapter_works_with_the_records_that_are_there(tmp_path, kept):
    for campaign in (*CAMPAIGNS, "scenes-pairs-tuning"):
        for place, experiment in enumerate(experiments_of(campaign)):
            if KEPT[kept](place, experiment):
                made_up_record(experiment, right(experiment)).save(tmp_path / campaign / f"{experiment.name}.json")
    shown = run_cells("07_pairs", tmp_path)
    told = "\n".join(f"{item!r}" for item in shown)
    assert not re.search(r"\bnan\b", told)
    if kept == "none":
        assert (
            "scenes-pairs: 0 of 90 planned runs have a record; `apd campaign scenes-pairs` runs the other 90." in told
        )
        assert "0 pairs have records yet" in told
    assert ("not yet comparable" in told) == (kept in ("half of the first seed", "one seed"))
    assert ("24 settings against the same student alone" in told) == (kept in ("one seed", "all"))
