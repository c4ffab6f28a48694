"""Pictures of detection: what is drawn is what was found, and a file of findings gives back what was put in."""

import copy
import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from chapter_cells import run_cells
from made_up_findings import FOUND, SCENES, detections, made_up_findings

from apd.config.experiment import ExperimentError
from apd.data.instances import InstanceSpec, class_map
from apd.data.rle import decode
from apd.models.detector import build_detector
from apd.models.detector_hooks import DetectorTap, training_step
from apd.perspective import class_prototypes
from apd.report import findings as findings_module
from apd.report.detections import box_perspectives, cosines_of_prototypes, count_in_image, first_with_all_classes
from apd.report.figures.detection_method import both_perspectives, boxes_and_map, boxes_in_words
from apd.report.figures.detection_pictures import (
    choice_in_words,
    chosen_pictures,
    counts_by_picture,
    network_names,
    pictures_side_by_side,
)
from apd.report.figures.detections import class_map_picture, framed, ink_on, rgb, side_by_side, thing_colours, tinted
from apd.report.findings import Findings, findings_of, method_example, read_findings
from apd.training.record import RecordError

SMALL = dict(min_size=96, max_size=128, smallest_anchor=8, proposals=60, rois=64, width=16, box_width=32)


@pytest.fixture(scope="module")
def findings():
    return made_up_findings()


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    student = build_detector("mobilenet_v3_small", 3, **SMALL)
    return student.eval(), build_detector("mobilenet_v3_small", 3, **SMALL | dict(width=24, box_width=48)).eval()


def svg_of(drawing) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", drawing.html, re.DOTALL)]


def texts(svg) -> list[str]:
    return [element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")]


# drawing


def test_each_finding_that_counts_has_its_name_and_score_and_the_truth_its_names(findings):
    found = {name: findings.found(name)[0] for name in FOUND}
    pictures = svg_of(side_by_side(SCENES[0], found, SCENES.spec))
    assert len(pictures) == len(FOUND) + 1
    for svg, each in zip(pictures, found.values(), strict=False):
        named = [
            f"{SCENES.spec.class_names[label]} {score:.2f}"
            for label, score in zip(each.labels_N.tolist(), each.scores_N.tolist(), strict=True)
        ]
        assert texts(svg) == named
    truth = SCENES[0]
    assert texts(pictures[-1]) == [SCENES.spec.class_names[k] for k in truth.labels_N[~truth.crowd_N].tolist()]


def test_a_picture_says_in_words_what_is_right_in_it(findings):
    found = findings.found("student")[1]
    right, false, missed = count_in_image(SCENES[1], found)
    said = side_by_side(SCENES[1], {"student alone": found}, SCENES.spec).description
    assert f"student alone ({right} right, {false} false, {missed} missed)" in said
    assert false == FOUND["student"][1]


def test_unsure_findings_are_neither_drawn_nor_counted():
    every = detections(SCENES[0], 99, 0)
    unsure = every._replace(scores_N=torch.full_like(every.scores_N, 0.49))
    assert texts(svg_of(side_by_side(SCENES[0], {"student": unsure}, SCENES.spec))[0]) == []


def test_labels_stay_inside_the_picture_and_off_one_another_where_there_is_room():
    boxes_N4 = torch.tensor(
        [[0.0, 0.0, 20.0, 10.0], [60.0, 40.0, 70.0, 60.0], [62.0, 40.0, 72.0, 60.0], [120, 90, 128, 96]]
    )
    picture = tinted(torch.zeros(3, 96, 128, dtype=torch.uint8), [], [])
    svg = ElementTree.fromstring(framed(picture, boxes_N4, [(250, 90, 84)] * 4, ["pedestrian 0.91"] * 4, "four"))
    plates = [r for r in svg.iter("{http://www.w3.org/2000/svg}rect") if r.get("fill") != "none"]
    places = [tuple(float(r.get(name)) for name in ("x", "y", "width", "height")) for r in plates]
    assert len(places) == 4
    for x, y, wide, high in places:
        assert -0.1 <= x <= 128 - wide + 0.1
        assert -0.1 <= y <= 96 - high + 0.1
    for i, (x, y, wide, high) in enumerate(places):
        for a, b, other_wide, other_high in places[:i]:
            assert x >= a + other_wide or a >= x + wide or y >= b + other_high - 0.1 or b >= y + high - 0.1


def test_names_can_be_read_on_their_colours_and_things_have_the_palettes():
    def luminance(colour):
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in (c / 255 for c in colour)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    colours = thing_colours(InstanceSpec("some", ("car", *(f"thing {i}" for i in range(7)))))
    assert colours[0] == thing_colours(SCENES.spec)[SCENES.spec.class_names.index("car")]
    for colour in [*colours, *thing_colours(SCENES.spec)]:
        ink = luminance((0, 0, 0) if ink_on(colour) == "#000000" else (255, 255, 255))
        low, high = sorted((ink, luminance(colour)))
        assert (high + 0.05) / (low + 0.05) >= 4.5
    assert rgb((0, 15, 255)) == "#000fff"


def test_a_smaller_mask_is_tinted_over_a_larger_one():
    image, large = torch.zeros(3, 4, 4, dtype=torch.uint8), torch.ones(4, 4, dtype=torch.bool).numpy()
    small = large.copy()
    small[:, 1:] = False
    picture = tinted(image, [small, large], [(200, 0, 0), (0, 200, 0)])
    assert picture[0, 3].tolist() == [0, 100, 0]
    assert picture[0, 0].tolist() == [100, 50, 0]


def test_the_map_of_classes_is_drawn_in_the_classes_colours_and_ignored_pixels_white():
    sample = SCENES[0]
    map_HW = class_map(sample.masks_NHW, sample.labels_N, sample.crowd_N)
    picture = torch.from_numpy(class_map_picture(map_HW, SCENES.spec))
    for label, colour in enumerate(thing_colours(SCENES.spec), start=1):
        assert (picture[map_HW == label] == torch.tensor(colour)).all()
    assert (picture[map_HW == -1] == 255).all()


# the method's picture


def test_the_cosines_are_those_of_the_prototypes_of_the_boxes_that_the_student_draws(networks):
    student, teacher = networks
    sample = SCENES[first_with_all_classes(SCENES)]
    state = {name: value.clone() for name, value in student.state_dict().items()}
    before = torch.random.get_rng_state()
    seen = box_perspectives(student, teacher, sample, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not student.training
    assert all(torch.equal(value, state[name]) for name, value in student.state_dict().items())
    again = box_perspectives(student, teacher, sample, seed=3)
    assert torch.equal(seen.boxes_N4, again.boxes_N4)
    wanted_N4 = sample.boxes_N4[~sample.crowd_N]
    near = (seen.boxes_N4[:, None] - wanted_N4[None]).abs().amax(2).argmin(0)
    assert torch.equal(seen.labels_N[near], sample.labels_N[~sample.crowd_N] + 1)
    assert torch.equal(seen.class_map_HW, class_map(sample.masks_NHW, sample.labels_N, sample.crowd_N))

    image, from_one = sample.image_3HW.float() / 255, teacher.roi_heads
    with torch.no_grad():
        pyramid = teacher.backbone(teacher.transform([image])[0].tensors)
        vectors_NC = from_one.box_head(from_one.box_roi_pool(pyramid, [seen.boxes_N4], [(96, 128)]))
    means = [torch.nn.functional.normalize(vectors_NC, dim=1)[seen.labels_N == k].mean(0) for k in range(4)]
    means_KC = torch.nn.functional.normalize(torch.stack(means), dim=1)
    assert torch.allclose(seen.teacher_KK, means_KC @ means_KC.T, atol=1e-4)


def test_labels_without_a_box_have_no_cosine():
    vectors_C1N, labels_1N = torch.randn(5, 1, 7), torch.tensor([[0, 0, 2, 2, 2, -1, -1]])
    cosines_KK = cosines_of_prototypes(vectors_C1N, labels_1N, 4)
    there = torch.tensor([True, False, True, False])
    assert torch.equal(~cosines_KK.isnan(), there[:, None] & there)
    prototypes, _ = class_prototypes(vectors_C1N[None], labels_1N[None], 4, ignore_index=-1)
    assert torch.allclose(cosines_KK[0, 2], prototypes[0, 0] @ prototypes[0, 2])


def test_modes_are_put_back_when_looking_fails(networks):
    student, teacher = networks
    student.train().backbone.eval()
    with pytest.raises(ValueError, match="teacher is in training mode"):
        box_perspectives(student, copy.deepcopy(teacher).train(), SCENES[0])
    assert student.training
    assert not student.backbone.training
    student.eval()
    with DetectorTap(student.train()) as tap:  # the tap was taken off
        training_step(
            student,
            tap,
            teacher,
            [torch.rand(3, 96, 128)],
            [
                {
                    "boxes": torch.tensor([[1.0, 1, 9, 9]]),
                    "labels": torch.tensor([1]),
                    "masks": torch.ones(1, 96, 128, dtype=torch.uint8),
                }
            ],
        )
    student.eval()


def test_the_drawn_method_names_every_number_of_boxes(findings):
    seen, sample = findings.boxes(), SCENES[0]
    things = int((~sample.crowd_N).sum())
    said = boxes_and_map(sample, seen, SCENES.spec).description
    assert f"boxes of things ({things} of {things + 1})" in said
    assert f"boxes of the background (1 of {things + 1})" in said
    assert f"The student drew {things + 1} boxes: background 1" in str(boxes_in_words(seen, SCENES.spec))
    squares = both_perspectives(seen, SCENES.spec, trained=False)
    assert "teacher, untrained: +0.08" in squares.description  # the mean of 0.5, 0.25 and -0.5; car has no box
    assert ">car<" not in squares.html
    assert "untrained" not in both_perspectives(seen, SCENES.spec, trained=True).description


def test_the_example_is_trained_where_there_are_findings_and_says_so_where_there_are_none(findings):
    assert method_example([findings]).trained
    assert torch.equal(method_example([findings]).sample.image_3HW, SCENES[0].image_3HW)
    assert not method_example([]).trained


# files of findings


def test_a_file_gives_back_what_was_found(tmp_path, findings):
    findings.save(tmp_path / "roi_apd-seed0.json")
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
    ("change", "told"),
    [
        (lambda c: c.update(schema=2), "schema 1"),
        (lambda c: c.pop("boxes"), "boxes = None is not a mapping"),
        (lambda c: c["found"].pop("teacher"), "found is of"),
        (lambda c: c["found"]["teacher"].pop(), r"found.teacher is of 5 pictures, but data.pictures = 6"),
        (lambda c: c["found"]["student"][2]["scores"].append(0.5), r"found.student\[2\]: boxes, scores and labels"),
        (lambda c: c["data"]["scenes"].update(context_shift=0.5), "another generator drew them"),
        (lambda c: c["data"]["scenes"].pop("height"), "no settings of scenes"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, findings, change, told):
    content = copy.deepcopy(findings.content)
    change(content)
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(RecordError, match=rf"a\.json: .*{told}"):
        read_findings(tmp_path)
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(RecordError, match="cannot be read as JSON"):
        read_findings(tmp_path)


def test_findings_are_those_of_the_detectors_that_are_sure_enough(networks, monkeypatch):
    student, teacher = networks
    monkeypatch.setattr(findings_module, "LEAST_SCORE", 0.2)
    student.roi_heads.score_thresh = 0.0
    found = findings_of({"student": student, "teacher": teacher}, SCENES, 3, batch_size=2)
    assert [len(each) for each in found.values()] == [3, 3]
    with torch.no_grad():
        (expected,) = student([SCENES[2].image_3HW.float() / 255])
    sure = expected["scores"] >= 0.2
    assert found["student"][2]["labels"] == (expected["labels"][sure] - 1).tolist()
    assert found["student"][2]["scores"] == pytest.approx(expected["scores"][sure].tolist(), abs=6e-4)
    json.dumps(found)


@dataclass(frozen=True)
class Run:
    """What is read of an experiment whose run has finished."""

    name: str
    data: SimpleNamespace
    seed: int = 0

    def teacher_experiment(self):
        return Run("scenes-teacher", self.data)


@pytest.fixture
def finished(monkeypatch, networks):
    """Runs of a campaign that have finished, with small networks of random weights."""
    kept = findings_module.settings_of(SCENES) | {"evaluation_images": len(SCENES), "name": "scenes"}
    data = Frozen(kept | {"world": SCENES.scenes.seed, "evaluation_split": "test"})
    runs = [Run(f"{arm}-seed0", data) for arm in ("student", "roi_apd")]
    student, teacher = networks
    content = {"fingerprint": "a" * 12, "weights_sha256": "0" * 64, "data": {"fingerprint": SCENES.fingerprint()}}
    monkeypatch.setattr(findings_module, "experiments_of", lambda name: runs)
    monkeypatch.setattr(
        findings_module, "trained_network", lambda run, device: teacher if "teacher" in run.name else student
    )
    monkeypatch.setattr(findings_module, "run_folder", lambda run: Path(run.name))
    monkeypatch.setattr(findings_module, "read_record", lambda path: SimpleNamespace(content=content))
    return content


class Frozen(SimpleNamespace):
    """Settings that can be a member of a set."""

    def __init__(self, settings):
        super().__init__(**settings)

    def __hash__(self):
        return hash(self.name)


def test_the_command_writes_what_finished_runs_find_and_what_the_method_sees(tmp_path, finished, capsys):
    assert findings_module.main(["--to", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip().endswith("roi_apd-seed0.json")
    (made,) = read_findings(tmp_path)
    assert list(made.content["runs"]) == ["student", "roi_apd", "teacher"]
    assert made.boxes_of == first_with_all_classes(SCENES)
    assert len(made.boxes().labels_N) == 64
    assert made.boxes().teacher_KK.diagonal().tolist() == pytest.approx([1.0] * 4)
    assert len(svg_of(pictures_side_by_side(made))) == 4 * len(chosen_pictures(made))


def test_runs_that_are_not_planned_or_were_scored_on_other_scenes_are_refused(tmp_path, finished):
    with pytest.raises(ExperimentError, match="plans no run dense_apd-seed0"):
        findings_module.write_findings(0, "dense_apd", tmp_path)
    finished["data"] = {"fingerprint": "0" * 64}
    with pytest.raises(ExperimentError, match="scored on other scenes"):
        findings_module.write_findings(0, "roi_apd", tmp_path)


# the choice


def test_pictures_are_chosen_by_the_difference_of_the_counts(findings):
    counts = counts_by_picture(findings)
    gains = [a.score - b.score for a, b in zip(counts["roi_apd"], counts["student"], strict=True)]
    chosen = chosen_pictures(findings)
    assert gains[chosen["greatest"]] == max(gains)
    assert gains[chosen["least"]] == min(gains)
    said = pictures_side_by_side(findings).description
    for kind, place in chosen.items():
        assert f"{kind} difference, picture {place}" in said
    assert len(svg_of(pictures_side_by_side(findings))) == 4 * len(chosen)


def test_the_rule_and_all_counts_are_told(findings):
    told = str(choice_in_words([findings]))
    assert "between “APD of boxes” and “student alone”" in told
    right, false, missed = (sum(column) for column in zip(*counts_by_picture(findings)["teacher"], strict=True))
    assert (false, missed) == (0, 0)
    assert f"- teacher: {right} right, 0 false, 0 missed in {len(SCENES)} pictures" in told
    assert "0 files of findings" in str(choice_in_words([]))
    names = network_names(made_up_findings("dense_apd_and_review_kd"))
    assert list(names.values()) == ["student alone", "APD of masks + ReviewKD", "teacher"]


def test_the_chapter_shows_the_chosen_pictures_of_each_file(tmp_path, findings):
    findings.save(tmp_path / "detection-findings" / "roi_apd-seed0.json")
    for campaign in ("scenes-detection",):
        (tmp_path / campaign).mkdir()
    said = "\n".join(f"{item!r}" for item in run_cells("09_detection", tmp_path))
    assert "greatest difference, picture" in said
    assert "untrained" not in said


def test_a_file_is_checked_when_it_is_made():
    with pytest.raises(RecordError, match="schema"):
        Findings({"schema": 0})
