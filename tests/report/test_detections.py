"""What is counted in an image is what the rule says; a file of findings gives back what was put in, and is drawn so."""

import copy
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_up_findings import FOUND, SCENES, detections, made_up_findings, maker

from apd.config.experiment import ExperimentError
from apd.data.coco import decode
from apd.data.instances import InstanceSample, InstanceSpec
from apd.evaluation.average_precision import Detections, DetectionScorer
from apd.models.detector import build_detector
from apd.report.detections import Findings, count_in_image, read_findings
from apd.report.figures.boxes import counts_table, drawn, images_side_by_side
from apd.training.record import RecordError

SMALL = dict(min_size=96, max_size=128, smallest_anchor=8, proposals=60, rois=64, width=16, box_width=32)
BOX = torch.tensor([[4.0, 4.0, 24.0, 24.0]])
THINGS = torch.tensor([[0.0, 0.0, 10.0, 10.0], [3.0, 0.0, 13.0, 10.0]])
BETWEEN = torch.tensor([[2.0, 0.0, 12.0, 10.0], [0.0, 0.0, 10.0, 10.0]])
INSIDE = torch.tensor([[4.0, 4.0, 12.0, 12.0]])
CROWD = torch.tensor([[0.0, 0.0, 40.0, 40.0]])
NONE = torch.zeros(0, 4)


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
    count = count_in_image(truth_of(*truth), found_of(*found))
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
    count = count_in_image(truth, found)
    assert count.right + count.missed == count.right + count.false == 5
    scorer = DetectionScorer(InstanceSpec("pets", ("cat", "dog")), ("boxes",))
    scorer.update(truth, found)
    perfect = bool((scorer.tables()["boxes"].ap_TKA[0, :, 0].nan_to_num(1.0) == 1.0).all())
    assert perfect == (count.right == 5)


@pytest.fixture(scope="module")
def findings():
    return made_up_findings()


def test_a_file_gives_back_what_was_found(tmp_path, findings):
    maker.save(findings, tmp_path / "roi_apd-seed0.json")
    (read,) = read_findings(tmp_path)
    assert read.content == findings.content
    for place, sample in enumerate(SCENES):
        expected, found = detections(sample, *FOUND["student"]), read.found("student")[place]
        assert torch.equal(found.labels_N, expected.labels_N)
        assert torch.allclose(found.boxes_N4, expected.boxes_N4, atol=0.051)
        for mask, other in zip(found.masks, expected.masks, strict=True):
            assert (decode(mask, 96, 128) == decode(other, 96, 128)).all()
    assert read_findings(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(schema=2), "schema 2 is not 1"),
        (lambda c: c["found"].pop("teacher"), "'teacher' is missing"),
        (lambda c: c["found"]["teacher"].pop(), r"found.teacher is of 5 images, but data.pictures = 6"),
        (lambda c: c["found"]["teacher"][0]["scores"].append(0.9), r"found.teacher\[0\]: boxes, scores, labels and"),
        (lambda c: c["data"]["scenes"].update(context_shift=0.5), "another generator drew them"),
        (lambda c: c["data"]["scenes"].pop("height"), "'height' is missing"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, findings, change, message):
    content = copy.deepcopy(findings.content)
    change(content)
    with pytest.raises(RecordError, match=rf"a\.json: .*{message}"):
        Findings(content, "a.json")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(RecordError, match=r"a\.json: cannot be read as JSON"):
        read_findings(tmp_path)


def test_images_are_chosen_by_the_counts_and_have_them_below(findings):
    counts = findings.counts()
    gains = [a.score - b.score for a, b in zip(counts["roi_apd"], counts["student"], strict=True)]
    assert findings.differences() == gains
    order = sorted(range(len(gains)), key=lambda place: gains[place])
    shown = images_side_by_side(findings)
    for kind, rank in (("greatest", -1), ("median", 2), ("least", 0)):
        assert f"{kind} difference, image {order[rank]}" in shown.description
        assert "({} right, {} false, {} missed)".format(*counts["student"][order[rank]]) in shown.description
    assert shown.html.count("<img") == 4 * 3
    right = sum(count.right for count in counts["teacher"])
    assert re.search(rf"teacher +{right} +0 +0$", counts_table(findings).description, re.MULTILINE)


def test_masks_are_tinted_the_smaller_on_top_and_boxes_have_their_colours():
    image, masks = torch.zeros(3, 8, 8, dtype=torch.uint8), torch.ones(2, 8, 8, dtype=torch.bool)
    masks[0, :, 1:] = False
    tinted = drawn(image, NONE, [(200, 0, 0), (0, 200, 0)], None, masks)
    assert tinted.shape == (24, 24, 3)
    assert tinted[0, 23].tolist() == [0, 100, 0]
    assert tinted[0, 0].tolist() == [100, 50, 0]
    framed = drawn(image, torch.tensor([[1.0, 1.0, 6.0, 6.0]]), [(250, 90, 84)], None, None)
    assert framed[3, 9].tolist() == [250, 90, 84]
    assert not framed[9, 9].any()


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    student = build_detector("mobilenet_v3_small", 3, **SMALL)
    return student.eval(), build_detector("mobilenet_v3_small", 3, **SMALL | dict(width=24, box_width=48)).eval()


class Run:
    """What is read of an experiment whose run has finished."""

    data = SimpleNamespace(evaluation_split="test")

    def __init__(self, name):
        self.name = name

    def teacher_experiment(self):
        return Run("teacher")


def test_the_script_writes_what_finished_runs_find_and_refuses_others(tmp_path, networks, capsys, monkeypatch):
    content = {"fingerprint": "a" * 12, "weights_sha256": "0" * 64, "data": {"fingerprint": SCENES.fingerprint()}}
    student, teacher = networks
    student.roi_heads.score_thresh = 0.0
    task = SimpleNamespace(split=lambda name: SCENES)
    for name, value in {
        "LEAST_SCORE": 0.2,
        "experiments_of": lambda name: [Run(f"{method}-seed0") for method in ("student", "roi_apd")],
        "trained_network": lambda run, device: teacher if run.name == "teacher" else student,
        "run_folder": lambda run: Path(run.name),
        "read_record": lambda path: SimpleNamespace(content=content),
        "DetectionTask": lambda run: task,
    }.items():
        monkeypatch.setattr(maker, name, value)
    assert maker.main(["--to", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip().endswith("roi_apd-seed0.json")
    (made,) = read_findings(tmp_path)
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
