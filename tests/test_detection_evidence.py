"""Evidence on detection: what is said is what the records have, whichever arms and seeds are there."""

import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from types import SimpleNamespace

import pytest
from chapter_cells import run_cells
from made_up_detection import LEVELS, Data, campaign, luck, made_up
from made_up_records import made_up_record

from apd.config.identity import fingerprint, to_dict
from apd.report.comparisons import (
    BOX_AP,
    DETECTION_NAMES,
    MASK_AP,
    added_to,
    counted,
    detection_campaigns,
    detection_comparisons,
    detection_names,
    parts_of_ap,
    parts_of_variant,
)
from apd.report.figures import words
from apd.report.figures.detection_evidence import (
    additions_in_words,
    ap_tallies,
    by_kind,
    distillers_in_words,
    judged_by_kind,
    parts_of_gains,
    parts_table,
    seen_by_heart,
    setup_table,
    things_in_words,
)
from apd.report.figures.detection_trials import (
    detection_rates_table,
    detection_weights_table,
    share_of_distillers,
    shares_table,
    validation_box_ap,
)
from apd.report.figures.forest import outlying, scores_over_seeds
from apd.report.figures.tables import interval, scores_table
from apd.report.statistics import MIOU, ComparisonError, compare, paired_difference, spread
from apd.study.campaigns import CAMPAIGNS, scenes_experiment
from apd.study.coco_recipes import STUDENT_RATE
from apd.training.record import Record, read_records
from apd.training.run import records_folder

FACTOR = (1 + 0.9 + 0.8) / 3  # mean over classes of a made-up AP


@pytest.fixture(scope="module")
def comparison():
    (found,) = detection_comparisons(list(campaign()))
    return found


@pytest.fixture(scope="module")
def trials():
    return read_records(records_folder("scenes-detection-tuning"))


# scores and comparisons


def test_real_records_are_compared_by_the_average_precision_that_each_of_them_holds(trials):
    kept = [r for r in trials if r.experiment.name.endswith(f"-rate{STUDENT_RATE:g}-seed0")]
    (found,) = detection_comparisons(kept)
    assert set(found.variants) == {"student", "roi_kd", "roi_apd"}
    for record in kept:
        method = record.experiment.name.split("-")[0]
        assert found.values(method) == {0: record.ap["boxes"].ap}
        assert found.by(MASK_AP).values(method) == {0: record.ap["masks"].ap}
        assert 0.1 < record.ap["masks"].ap < record.teacher_ap["masks"].ap
    assert [each.score for each in by_kind([found])] == [BOX_AP, MASK_AP]
    assert f"{STUDENT_RATE:g}" in setup_table(found).description


def test_things_are_counted_by_size_where_the_scenes_are_those_that_were_scored(trials, comparison):
    (found,) = detection_comparisons([r for r in trials if r.experiment.name == f"student-rate{STUDENT_RATE:g}-seed0"])
    told = str(things_in_words([found]))
    total, pictures, small, medium, large = map(
        int, re.findall(r"(?<![\d.])(\d+) (?:things|pict|small|medium|large)", told)
    )
    assert total == small + medium + large == sum(found.any_record.content["ap"]["boxes"]["things"])
    assert pictures == found.any_record.content["data"]["images"]
    scores = found.any_record.ap["boxes"]
    assert [count > 0 for count in (small, medium, large)] == [
        not math.isnan(score) for score in (scores.small, scores.medium, scores.large)
    ]
    assert str(things_in_words([comparison])) == "Of 0 sets of scenes the things can be counted."


def test_a_comparison_is_by_the_score_that_is_asked_for(comparison):
    values = {seed: FACTOR * (LEVELS["roi_apd"] + luck("roi_apd", seed)) for seed in range(3)}
    assert comparison.score is BOX_AP
    assert comparison.values("roi_apd") == pytest.approx(values)
    assert comparison.by(MASK_AP).values("roi_apd") == pytest.approx({s: 0.8 * v for s, v in values.items()})
    assert comparison.teacher_score == pytest.approx(0.6 * FACTOR)
    alone = {seed: FACTOR * (LEVELS["student"] + luck("student", seed)) for seed in range(3)}
    expected = paired_difference(values, alone)
    found = comparison.difference("roi_apd", "student")
    assert (found.mean, found.low, found.high) == pytest.approx((expected.mean, expected.low, expected.high))


def test_parts_of_ap_are_those_of_the_table(comparison):
    parts = {score.name: comparison.by(score) for score in parts_of_ap("boxes", comparison.any_record.class_names)}
    level = LEVELS["student"] + luck("student", 0)
    assert parts["AP50"].values("student")[0] == pytest.approx(FACTOR * level)
    assert parts["small"].values("student")[0] == pytest.approx(0.5 * FACTOR * level)
    assert math.isnan(parts["large"].values("student")[0])
    for k, name in enumerate(("sign", "car", "pedestrian")):
        assert parts[name].values("student")[0] == pytest.approx((1 - 0.1 * k) * level)


def test_scores_that_the_runs_lack_are_left_out(comparison):
    names = [score.name for score in counted(comparison, parts_of_ap("boxes", comparison.any_record.class_names))]
    assert names == ["AP50", "AP75", "small", "medium", "sign", "car", "pedestrian"]
    (boxes,) = detection_comparisons(list(campaign(masks=False)))
    assert [each.score.name for each in by_kind([boxes])] == ["box AP"]
    assert math.isnan(boxes.by(MASK_AP).teacher_score)


def test_segmentation_is_compared_by_miou_as_before():
    records = [made_up_record(scenes_experiment("student", seed, 1.0), 0.5 + 0.1 * seed) for seed in range(2)]
    (found,) = compare(records)
    assert found.score is MIOU
    assert found.values("student") == found.miou("student")
    assert found.teacher_score == found.teacher_miou == records[0].teacher_scores.miou


def test_arms_are_those_of_the_labels_singles_before_combinations_and_unknown_ones_in_words():
    arms = ("roi_apd_and_review_kd", "foam_kd", "roi_apd", "student", "review_kd")
    names = detection_names(campaign(arms))
    assert list(names) == ["student", "review_kd", "roi_apd", "foam_kd", "roi_apd_and_review_kd"]
    assert names["foam_kd"] == "foam kd"
    assert names["roi_apd_and_review_kd"] == "APD of boxes + ReviewKD"


def test_a_student_alone_that_was_run_without_the_teacher_stands_beside_the_others(comparison):
    (found,) = detection_comparisons(list(campaign(alone_has_teacher=False)))
    assert list(found.variants) == list(comparison.variants)
    assert found.difference("roi_apd", "student") == comparison.difference("roi_apd", "student")
    assert found.teacher_score == comparison.teacher_score
    (only,) = detection_comparisons(list(campaign(("student",), alone_has_teacher=False)))
    assert math.isnan(only.teacher_score)
    assert "teacher" not in scores_over_seeds([only]).description


def test_records_of_another_recipe_are_refused():
    records = list(campaign(("student", "roi_kd"), alone_has_teacher=False))
    training = replace(records[0].experiment.training, batch_size=5)
    stray = replace(records[0], experiment=replace(records[0].experiment, training=training))
    with pytest.raises(ComparisonError, match="differ in the recipe"):
        detection_comparisons([stray, *records[1:]])
    other = made_up(records[1].experiment, 0.3, teacher=0.5)
    with pytest.raises(ComparisonError, match="teacher's AP"):
        detection_comparisons([*records[:1], *records[2:], other])


# tables, figures and sentences


def test_the_figure_of_scores_tells_means_and_the_teacher(comparison):
    for each in by_kind([comparison]):
        said = scores_over_seeds([each]).description
        assert said.startswith(each.score.name)
        assert f"teacher {100 * each.teacher_score:.1f}" in said
        for arm in LEVELS:
            assert f"{each.names[arm]} {100 * spread(each.values(arm).values()).mean:.1f}" in said
        assert outlying(each) == set()


def test_the_table_of_arms_has_the_scores_name_mean_and_difference(comparison):
    (_, (masks, rows)) = judged_by_kind([comparison], "student")
    told = scores_table(masks, rows, "student").description
    assert "mask AP, %" in told
    assert f"{100 * spread(masks.values('roi_apd').values()).mean:.2f}" in told
    assert interval(masks.difference("roi_apd", "student")) in told
    assert "mIoU" not in told


def test_what_is_above_a_reference_is_said_of_boxes_and_of_masks(comparison):
    told = str(ap_tallies([comparison], "roi_kd"))
    assert "**scenes, context shift 1, box AP**: 5 settings against “KD of boxes”" in told
    assert "**scenes, context shift 1, mask AP**: 5 settings against “KD of boxes”" in told
    assert f"“APD of boxes” {interval(comparison.difference('roi_apd', 'roi_kd'))}" in told
    assert "0 records of detection" in str(ap_tallies([], "roi_kd"))


def test_a_combination_is_held_against_each_of_its_parts(comparison):
    arm = "roi_apd_and_review_kd"
    assert set(added_to(comparison)) == {(arm, part) for part in parts_of_variant(arm)}
    told = str(additions_in_words([comparison]))
    expected = comparison.difference(arm, "review_kd")
    assert f"“APD of boxes + ReviewKD, minus ReviewKD alone” {interval(expected)}" in told
    assert "0 combinations" in str(additions_in_words([comparison.only(("student", "roi_apd"))]))


def test_the_table_of_parts_has_the_teacher_and_says_which_sizes_do_not_occur(comparison):
    told = parts_table(comparison, "boxes").description
    assert "nothing to be found is large" in told
    assert re.search(rf"teacher\s+–\s+{60 * FACTOR:.1f}", told)
    assert (
        "0 records have an AP of masks"
        in parts_table(detection_comparisons(list(campaign(masks=False)))[0], "masks").description
    )


def test_the_figure_of_parts_tells_gains_and_the_references_level(comparison):
    drawn = parts_of_gains(comparison, "boxes")
    ElementTree.fromstring(drawn.html)
    gain = 100 * comparison.difference("roi_apd", "student").mean
    assert f"APD of boxes: box AP +{gain:.1f}" in drawn.description
    level = 100 * spread(comparison.values("student").values()).mean
    assert f"box AP {level:.0f}" in drawn.html
    assert "0 arms have a seed in common" in parts_of_gains(comparison.only(["roi_apd"]), "boxes").description


def test_the_set_up_is_that_of_the_experiments(comparison):
    told = setup_table(comparison).description
    assert re.search(r"backbone\s+resnet50\s+mobilenet_v3_small", told)
    assert re.search(r"boxes that the box head is trained on\s+64\s+64", told)
    assert "100 of test; classes sign, car, pedestrian" in told
    words_told = str(distillers_in_words(comparison))
    assert "**APD of boxes + ReviewKD**, 3 seeds: APD of boxes (`weight` 1, `levels` 0, 1); ReviewKD" in words_told
    assert "**student alone**, 3 seeds: no distiller" in words_told


def test_runs_on_real_pictures_are_told_to_be_by_heart_only_where_they_are():
    records = list(campaign(("student",), seeds=(0,)))
    for val_part, told in (("train2017", "those that it was trained on"), ("val2017", "not seen in training")):
        data = Data(name="coco", val_part=val_part)
        real = [replace(record, experiment=replace(record.experiment, data=data)) for record in records]
        said = str(seen_by_heart(detection_comparisons(real)))
        assert told in said
        assert "the loss falls, from 2.00 to 0.50 in 400 steps" in said
        assert f"the teacher: box AP {60 * FACTOR:.1f}" in said
        assert "little to learn" not in said
    weak = [made_up(r.experiment, 0.3, teacher=0.1) for r in real]
    assert "less than the student alone, so that there is little to learn" in str(
        seen_by_heart(detection_comparisons(weak))
    )
    assert "0 runs on real pictures" in str(seen_by_heart(detection_comparisons(records)))


# the chapter


KEPT = {
    "none": lambda place, record: False,
    "half of the first seed": lambda place, record: record.experiment.seed == 0 and place % 2 == 0,
    "without the references": lambda place, record: len(record.experiment.distillers) == 2,
    "all": lambda place, record: True,
}


@pytest.mark.parametrize("kept", KEPT)
def test_the_chapter_works_with_the_records_that_are_there(tmp_path, monkeypatch, kept):
    records = [record for place, record in enumerate(campaign()) if KEPT[kept](place, record)]
    monkeypatch.setitem(CAMPAIGNS, "scenes-detection", lambda: iter([SimpleNamespace(task="detection")]))
    assert "scenes-detection" in detection_campaigns()
    assert "scenes-tiny" not in detection_campaigns()
    told = f"- scenes-detection: {len(records)} of 18 planned runs have a record."
    found = {"scenes-detection": records, "scenes-detection-tuning": []}
    monkeypatch.setattr(words, "read_campaigns", lambda names, folder: (found, words.Markdown(told)))
    shown = run_cells("09_detection", tmp_path)
    said = "\n".join(f"{item!r}" for item in shown)
    assert told in said
    assert not re.search(r"\bnan\b", said)
    assert "0 files of findings" in said
    assert "0 machines were measured" in said
    assert ("There is nothing to compare: 0 records of detection yet." in said) == (kept == "none")
    assert ("minus ReviewKD alone” +" in said) == (kept == "all")
    assert ("box AP minus that of “student alone”, points" in said) == (kept in ("all", "half of the first seed"))
    assert ("box AP minus that of “KD of boxes”, points" in said) == (kept == "all")
    if kept == "all":
        (found,) = detection_comparisons(records)
        for score in (BOX_AP, MASK_AP):
            gain = 100 * found.by(score).difference("review_kd", "student").mean
            assert re.search(rf"{score.name} minus that of “student alone”, points: .*ReviewKD \+{gain:.1f}\s", said)


# trials of rates and weights


def test_the_tables_of_trials_hold_every_scored_trial_and_mark_the_best_of_each_row(trials):
    rates, weights = detection_rates_table(trials), detection_weights_table(trials)
    assert "◂" not in detection_rates_table([]).description
    for told, name, trial in (
        (rates, "teacher", "teacher-rate0.001"),
        (rates, "student alone", "student-rate0.002-seed0"),
        (weights, "DKD of boxes", "roi_dkd_x1-seed0"),
        (weights, "KD of boxes", "roi_kd-rate0.002-seed0"),
    ):
        row = next(line for line in told.description.splitlines()[1:] if line.startswith(name + " "))
        (record,) = (r for r in trials if r.experiment.name == trial)
        scores = [cell for cell in row[len(name) :].split() if cell not in "◂–"]
        assert f"{100 * validation_box_ap(record):.1f}" in scores
        assert row.split()[row.split().index("◂") - 1] == max(scores, key=float)


def test_the_distillers_share_of_the_loss_is_what_the_detectors_own_losses_leave(trials):
    told = shares_table(trials).description
    assert "0 runs" in shares_table([]).description
    parts = {
        "roi_dkd_x1-seed0": {"roi_dkd.target": 1, "roi_dkd.non_target": 0.25},
        "dense_apd_x10-seed0": {"roi_kd.pixel_kd": 1, "dense_apd.alignment": 100, "dense_apd.observation": 10},
    }
    for trial, weights in parts.items():
        (record,) = (r for r in trials if r.experiment.name == trial)
        curves = record.content["curves"]
        last = slice(-math.ceil(len(curves["loss"]) / 10), None)
        theirs = sum(weight * value for name, weight in weights.items() for value in curves[name][last])
        own = sum(value for name in curves if name.startswith("loss_") for value in curves[name][last])
        share = theirs / (own + theirs)
        assert share_of_distillers(record) == pytest.approx(share, rel=1e-3)  # curves are rounded
        row = next(line for line in told.splitlines() if line.startswith(DETECTION_NAMES[trial.split("_x")[0]]))
        assert f"{100 * share:.0f}" in row.split()


def with_experiment(record, experiment):
    told = {"experiment": to_dict(experiment), "fingerprint": fingerprint(experiment)}
    return Record({**record.content, **told})


def test_a_trial_of_another_seed_or_another_rate_is_no_trial_of_weights(trials):
    (record,) = (r for r in trials if r.experiment.name == "roi_dkd_x1-seed0")
    training = replace(record.experiment.training, learning_rate=0.5)
    others = [
        with_experiment(record, replace(record.experiment, seed=1)),
        with_experiment(record, replace(record.experiment, training=training)),
    ]
    (tenth,) = (r for r in trials if r.experiment.name == "roi_dkd_x0.1-seed0")
    told = detection_weights_table([*others, tenth]).description
    row = next(line for line in told.splitlines() if line.startswith("DKD of boxes"))
    assert row.count("–") == 3
