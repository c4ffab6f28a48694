"""Comparisons and tables of detection against records, counts in an image against the rule, and files of findings."""

import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from bad_input import edited
from chapter_cells import book_script, run_cells
from hypothesis import given
from hypothesis import strategies as st

from apd.config.experiment import ExperimentError
from apd.data.instances import InstanceSample, InstanceSpec, decode, encode
from apd.data.scenes import SceneInstances
from apd.evaluation.average_precision import Detections, DetectionScorer
from apd.models.detector import build_detector
from apd.report import detections as counting
from apd.report.detections import Findings, detection_comparisons, parts_of_ap
from apd.report.figures import answers as reading
from apd.report.figures import boxes
from apd.report.statistics import ComparisonError, spread
from apd.training.record import Record, RecordError, read_records, records_folder

maker = book_script("detection_findings")
SCENES = SceneInstances(6, height=96, width=128, context_shift=1.0, seed=0, split="test")
# of made-up findings, by network: of how many objects one is missed, and how many are false
FOUND = {"student": (3, 1), "roi_apd": (2, 0), "teacher": (99, 0)}
SMALL = dict(min_size=96, max_size=128, smallest_anchor=8, proposals=60, rois=64, width=16, box_width=32)
BOX = torch.tensor([[4.0, 4.0, 24.0, 24.0]])
THINGS = torch.tensor([[0.0, 0.0, 10.0, 10.0], [3.0, 0.0, 13.0, 10.0]])
BETWEEN = torch.tensor([[2.0, 0.0, 12.0, 10.0], [0.0, 0.0, 10.0, 10.0]])
INSIDE = torch.tensor([[4.0, 4.0, 12.0, 12.0]])
CROWD = torch.tensor([[0.0, 0.0, 40.0, 40.0]])
NONE = torch.zeros(0, 4)


def detections(sample, every, false):
    """Objects to be found, all but each `every`th of them, and some false ones in a corner."""
    wanted = (~sample.crowd_N).nonzero().flatten().tolist()
    kept = [n for place, n in enumerate(wanted) if (place + 1) % every]
    masks = torch.zeros(false, *sample.image_3HW.shape[1:], dtype=torch.bool)
    masks[:, :7, :9] = True
    return Detections(
        torch.cat([sample.boxes_N4[kept], torch.tensor([[0.0, 0.0, 9.0, 7.0]]).repeat(false, 1)]),
        torch.linspace(0.95, 0.55, len(kept) + false),
        torch.cat([sample.labels_N[kept], torch.zeros(false, dtype=torch.long)]),
        encode(torch.cat([sample.masks_NHW[kept], masks]).numpy()),
    )


def made_up_findings():
    """Findings of a baseline, a distilled student and a teacher in all scenes."""
    runs = {name: {"fingerprint": "a" * 12, "weights_sha256": "0" * 64} for name in FOUND}
    data = {"pictures": 6, "scenes": maker.settings_of(SCENES), "fingerprint": SCENES.fingerprint()}
    found = {name: [maker.sure_findings(detections(s, *rule)) for s in SCENES] for name, rule in FOUND.items()}
    return Findings({"schema": 1, "seed": 0, "runs": runs, "data": data, "found": found})


@pytest.fixture(scope="module")
def records():
    return read_records(records_folder("scenes-detection"))


@pytest.fixture(scope="module")
def comparison(records):
    (found,) = detection_comparisons(records)
    return found


def of(records, method):
    return {r.experiment.seed: r for r in records if r.experiment.name.split("-")[0] == method}


def test_a_comparison_is_by_the_average_precision_that_each_record_holds(records, comparison):
    assert [each.score for each in boxes.by_kind([comparison])] == [counting.BOX_AP, counting.MASK_AP]
    for kind, by in zip(("boxes", "masks"), boxes.by_kind([comparison]), strict=True):
        assert by.values("roi_apd") == {seed: r.ap[kind].ap for seed, r in of(records, "roi_apd").items()}
        assert by.teacher_score == of(records, "roi_apd")[0].teacher_ap[kind].ap


def test_parts_of_ap_are_those_of_the_table_and_sizes_that_do_not_occur_are_left_out(records, comparison):
    names = comparison.any_record.class_names
    parts = {score.name: comparison.by(score) for score in parts_of_ap("boxes", names)}
    ap = of(records, "student")[0].ap["boxes"]
    assert parts["AP50"].values("student")[0] == ap.ap50
    assert parts["small"].values("student")[0] == ap.small
    assert math.isnan(parts["large"].values("student")[0])
    assert [parts[name].values("student")[0] for name in names] == ap.ap_K.tolist()
    kept = [score.name for score in counting.counted(comparison, parts_of_ap("boxes", names))]
    assert kept == ["AP50", "AP75", "small", "medium", *names]


def test_single_methods_come_before_combinations_and_unknown_ones_keep_their_key():
    variants = ("roi_apd_and_review_kd", "foam_kd", "roi_apd", "student", "review_kd")
    records = [SimpleNamespace(experiment=SimpleNamespace(name=f"{variant}-seed0")) for variant in variants]
    names = counting.detection_names(records)
    assert list(names) == ["student", "review_kd", "roi_apd", "foam_kd", "roi_apd_and_review_kd"]
    assert names["foam_kd"] == "foam kd"
    assert names["roi_apd_and_review_kd"] == "APD of boxes + ReviewKD"


def test_records_of_another_teacher_are_refused(records):
    first, *others = records
    other = Record(first.content | {"teacher": first.content["teacher"] | {"ap": first.content["ap"]}})
    with pytest.raises(ComparisonError, match="teacher's ap"):
        detection_comparisons([other, *others])


def test_the_table_of_parts_has_every_variant_and_the_teacher(comparison):
    _, masks = boxes.by_kind([comparison])
    table = boxes.parts_table(masks).description
    for variant, name in masks.names.items():
        mean = 100 * spread(masks.values(variant).values()).mean
        assert re.search(rf"^{re.escape(name)} +{mean:.1f}\s", table, re.MULTILINE)
    assert re.search(rf"^teacher +{100 * masks.teacher_score:.1f}\s", table, re.MULTILINE)


KEPT = {
    "none": lambda place, experiment: False,
    "half of the first seed": lambda place, experiment: experiment.seed == 0 and place % 2 == 0,
    "without the references": lambda place, experiment: len(experiment.distillers) == 2,
}


@pytest.mark.parametrize("kept", KEPT)
def test_the_chapter_works_with_the_records_that_are_there(tmp_path, monkeypatch, records, kept):
    there = [record for place, record in enumerate(records) if KEPT[kept](place, record.experiment)]
    found = {"scenes-detection": there, "scenes-detection-tuning": []}
    monkeypatch.setattr(reading, "read_campaigns", lambda names, folder: (found, "so many"))
    if kept != "none":
        maker.save(made_up_findings(), tmp_path / "detection-findings" / "roi_apd-seed0.json")
    said = "\n".join(f"{item!r}" for item in run_cells("09_detection", tmp_path))
    assert not re.search(r"\bnan\b", said)
    assert "0 trials have a score on val yet" in said
    assert ("greatest difference, image" in said) == (kept != "none")
    assert ("box AP, difference from " in said) == (kept == "half of the first seed")


def test_tables_of_trials_hold_every_scored_trial_and_mark_the_best_of_each_row():
    trials = read_records(records_folder("scenes-detection-tuning"))
    rates, weights = (boxes.detection_trials_table(trials, weights=weights).description for weights in (False, True))
    scores = {r.experiment.name: f"{100 * reading.validation_score(r):.1f}" for r in trials}
    for table, name, trial in (
        (rates, "teacher", "teacher-rate0.001"),
        (rates, "KD of boxes", "roi_kd-rate0.004-seed0"),
        (weights, "DKD of boxes", "roi_dkd_x0.1-seed0"),
        (weights, "KD of boxes", "roi_kd-rate0.002-seed0"),  # the factor of one
    ):
        row = next(line for line in table.splitlines()[1:] if line.startswith(name + " "))
        cells = row[len(name) :].split()
        assert scores[trial] in cells
        assert cells[cells.index("◂") - 1] == max((cell for cell in cells if cell not in "◂–"), key=float)


def truth_of(boxes_N4, labels, crowd=False) -> InstanceSample:
    crowd_N = torch.full((len(labels),), crowd)
    image, areas_N = torch.zeros(3, 64, 64, dtype=torch.uint8), (boxes_N4[:, 2:] - boxes_N4[:, :2]).prod(1)
    return InstanceSample(image, boxes_N4, torch.tensor(labels, dtype=torch.long), None, crowd_N, areas_N, "image")


def found_of(boxes_N4, labels, scores) -> Detections:
    return Detections(boxes_N4, torch.tensor(scores), torch.tensor(labels, dtype=torch.long), None)


@pytest.mark.parametrize(
    ("truth", "found", "expected"),
    [
        ((THINGS, [0, 1]), (THINGS, [0, 1], [0.9, 0.9]), (2, 0, 0)),  # perfect
        ((THINGS, [0, 1]), (NONE, [], []), (0, 0, 2)),
        ((NONE, []), (THINGS, [0, 1], [0.9, 0.9]), (0, 2, 0)),  # nothing to be found
        ((BOX, [1]), (BOX, [0], [0.9]), (0, 1, 1)),  # wrong class
        ((BOX, [1]), (BOX.repeat(3, 1), [1, 1, 1], [0.6, 0.9, 0.4]), (1, 1, 0)),  # twice, and once unsure
        ((BOX, [1]), (BOX, [1], [0.4]), (0, 0, 1)),  # unsure
        ((BOX, [1]), (BOX, [1], [0.5]), (1, 0, 0)),
        ((THINGS, [0, 0]), (BETWEEN, [0, 0], [0.9, 0.8]), (2, 0, 0)),  # the surest takes what it overlaps most
        ((THINGS[:1], [0]), (BETWEEN, [0, 0], [0.9, 0.8]), (1, 1, 0)),
        ((CROWD, [1], True), (INSIDE, [1], [0.9]), (0, 0, 0)),  # in a crowd: neither right nor false
        ((CROWD, [1], True), (INSIDE, [0], [0.9]), (0, 1, 0)),
        ((CROWD, [1], True), (INSIDE + 36, [1], [0.9]), (0, 1, 0)),
    ],
)
def test_right_false_and_missed_are_counted_by_the_rule(truth, found, expected):
    count = counting.count_in_image(truth_of(*truth), found_of(*found))
    assert count == expected
    assert count.score == expected[0] - expected[1]


@given(st.integers(0, 10_000))
def test_what_is_right_agrees_with_what_coco_calls_right_at_half_overlap(seed):
    generator = torch.Generator().manual_seed(seed)
    corner = 40 * torch.rand(5, 2, generator=generator)
    boxes_N4 = torch.cat([corner, corner + 4 + 16 * torch.rand(5, 2, generator=generator)], 1)
    labels = torch.randint(0, 2, (5,), generator=generator).tolist()
    moved = boxes_N4 + 6 * torch.rand(5, 4, generator=generator) - 3
    moved = torch.cat([moved[:, :2], torch.maximum(moved[:, 2:], moved[:, :2] + 1)], 1)
    scores = (0.5 + 0.5 * torch.rand(5, generator=generator)).tolist()
    truth, found = truth_of(boxes_N4, labels), found_of(moved, labels, scores)
    count = counting.count_in_image(truth, found)
    assert count.right + count.missed == count.right + count.false == 5
    scorer = DetectionScorer(InstanceSpec("pets", ("cat", "dog")), ("boxes",))
    scorer.update(truth, found)
    perfect = bool((scorer.tables()["boxes"].ap_TKA[0, :, 0].nan_to_num(1.0) == 1.0).all())
    assert perfect == (count.right == 5)


def test_a_file_gives_back_what_was_found(tmp_path):
    findings = made_up_findings()
    maker.save(findings, tmp_path / "roi_apd-seed0.json")
    (read,) = Findings.read_all(tmp_path)
    assert read.content == findings.content
    for place, sample in enumerate(SCENES):
        expected, found = detections(sample, *FOUND["student"]), read.found("student")[place]
        assert torch.equal(found.labels_N, expected.labels_N)
        assert torch.allclose(found.boxes_N4, expected.boxes_N4, atol=0.051)
        for mask, other in zip(found.masks, expected.masks, strict=True):
            assert (decode(mask, 96, 128) == decode(other, 96, 128)).all()


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("found/teacher", ..., "'teacher' is missing"),
        ("found/teacher/5", ..., "found.teacher is of 5 images, but data.pictures = 6"),
        ("found/teacher/0/scores", lambda scores: [*scores, 0.9], r"found.teacher\[0\]: boxes, scores, labels and"),
        ("data/scenes/context_shift", 0.5, "another generator drew them"),
        ("data/scenes/height", ..., "'height' is missing"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(place, value, message):
    with pytest.raises(RecordError, match=rf"a\.json: .*{message}"):
        Findings(edited(made_up_findings().content, place, value), "a.json")


def test_images_are_chosen_by_the_counts_and_have_them_below():
    findings = made_up_findings()
    counts = findings.counts()
    gains = [a.score - b.score for a, b in zip(counts["roi_apd"], counts["student"], strict=True)]
    assert findings.differences() == gains
    order = sorted(range(len(gains)), key=lambda place: gains[place])
    shown = boxes.images_side_by_side(findings)
    for kind, rank in (("greatest", -1), ("median", 2), ("least", 0)):
        assert f"{kind} difference, image {order[rank]}" in shown.description
        assert "({} right, {} false, {} missed)".format(*counts["student"][order[rank]]) in shown.description
    assert shown.html.count("<img") == 4 * 3
    right = sum(count.right for count in counts["teacher"])
    assert re.search(rf"teacher +{right} +0 +0$", boxes.counts_table(findings).description, re.MULTILINE)


def finished(name):
    """What is read of an experiment whose run has finished."""
    data = SimpleNamespace(evaluation_split="test")
    return SimpleNamespace(name=name, data=data, teacher_experiment=lambda: finished("teacher"))


def test_the_script_writes_what_finished_runs_find_and_refuses_others(tmp_path, capsys, monkeypatch):
    content = {"fingerprint": "a" * 12, "weights_sha256": "0" * 64, "data": {"fingerprint": SCENES.fingerprint()}}
    student = build_detector("mobilenet_v3_small", 3, **SMALL).eval()
    teacher = build_detector("mobilenet_v3_small", 3, **SMALL | dict(width=24, box_width=48)).eval()
    student.roi_heads.score_thresh = 0.0
    for name, value in {
        "LEAST_SCORE": 0.2,
        "experiments_of": lambda name: [finished(f"{method}-seed0") for method in ("student", "roi_apd")],
        "trained_network": lambda run, device: teacher if run.name == "teacher" else student,
        "run_folder": lambda run: Path(run.name),
        "read_record": lambda path: SimpleNamespace(content=content),
        "DetectionTask": lambda run: SimpleNamespace(split=lambda name: SCENES),
    }.items():
        monkeypatch.setattr(maker, name, value)
    assert maker.main(["--to", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip().endswith("roi_apd-seed0.json")
    (made,) = Findings.read_all(tmp_path)
    assert list(made.content["runs"]) == ["student", "roi_apd", "teacher"]
    with torch.no_grad():
        (expected,) = student([SCENES[2].image_3HW.float() / 255])
    sure, found = expected["scores"] >= 0.2, made.content["found"]["student"][2]
    assert found["labels"] == (expected["labels"][sure] - 1).tolist()
    assert found["scores"] == pytest.approx(expected["scores"][sure].tolist(), abs=6e-4)
    with pytest.raises(ExperimentError, match="plans no run dense_apd-seed0"):
        maker.measure(0, "dense_apd")
    content["data"] = {"fingerprint": "0" * 64}
    with pytest.raises(ExperimentError, match="scored on other scenes"):
        maker.measure()
