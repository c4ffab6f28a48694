"""AP is what COCO's own code makes of the same detections; a detector's are in its images' own pixels."""

import contextlib
import io
import sys

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.ops import box_convert

from apd.data.batches import evaluation_instance_batches
from apd.data.instances import DetectionExtraMissing, InstanceSample, InstanceSpec, decode, encode
from apd.data.scenes import SceneInstances
from apd.evaluation.average_precision import Detections, DetectionScorer, ap_scores, coco_results, detect, scored
from apd.models.detector import build_detector

SPEC = InstanceSpec("shapes", ("disc", "square", "bar"))
HEIGHT, WIDTH = 300, 320
DATA = SceneInstances(3, height=64, width=96, context_shift=0.5, seed=0)


def rectangles(random: np.random.Generator, count: int) -> np.ndarray:
    """Boxes x0, y0, x1, y1 of all three of COCO's ranges of areas."""
    sides = np.exp(random.uniform(np.log(6), np.log(260), (count, 2)))
    corners = random.uniform(0, 1, (count, 2)) * (np.array([WIDTH, HEIGHT]) - sides)
    return np.concatenate([corners, corners + sides], axis=1)


def masks_of(boxes: np.ndarray) -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    x0, y0, x1, y1 = boxes.T[:, :, None, None]
    return (columns >= x0) & (columns < x1) & (rows >= y0) & (rows < y1) & ((columns + rows) % 7 != 0)


def image(random: np.random.Generator, name: str, *, objects: int, found: int) -> tuple[InstanceSample, Detections]:
    """An image and detections, half of them near an object, some of them of the wrong class."""
    boxes, labels = rectangles(random, objects), random.integers(0, 3, objects)
    masks, crowd = torch.tensor(masks_of(boxes)), torch.tensor(random.random(objects) < 0.2)
    pixels, areas = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8), masks.sum((1, 2)).float()
    boxes_N4 = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    truth = InstanceSample(pixels, boxes_N4, torch.tensor(labels), masks, crowd, areas, name)
    guesses, guessed = rectangles(random, found), random.integers(0, 3, found)
    for place in range(min(found // 2, objects)):
        guesses[place] = boxes[place] + random.normal(0, 2, 4)
        guesses[place, 2:] = np.maximum(guesses[place, 2:], guesses[place, :2] + 1)
        guessed[place] = labels[place] if random.random() < 0.8 else guessed[place]
    scores = torch.tensor(np.round(random.random(found), 1), dtype=torch.float32)  # ties among them
    boxes_N4 = torch.tensor(guesses, dtype=torch.float32).reshape(-1, 4)
    return truth, Detections(boxes_N4, scores, torch.tensor(guessed), encode(masks_of(guesses)))


def images(seed: int) -> list[tuple[InstanceSample, Detections]]:
    random, counts = np.random.default_rng(seed), [(5, 8), (0, 4), (6, 0), (0, 0), (9, 12), (3, 120), (1, 1)]
    return [image(random, str(place), objects=a, found=b) for place, (a, b) in enumerate(counts)]


def scorer_of(shown, kinds=("boxes", "masks")) -> DetectionScorer:
    scorer = DetectionScorer(SPEC, kinds)
    for truth, found in shown:
        scorer.update(truth, found)
    return scorer


def by_pycocotools(shown: list[tuple[InstanceSample, Detections]], kind: str) -> list[float]:
    objects, results = [], []
    for number, (own, found) in enumerate(shown):
        shapes = box_convert(own.boxes_N4.double(), "xyxy", "xywh").tolist(), encode(own.masks_NHW.numpy())
        facts = (column.tolist() for column in (own.labels_N + 1, own.areas_N, own.crowd_N.int()))
        for row in zip(*shapes, *facts, strict=True):
            names = ("bbox", "segmentation", "category_id", "area", "iscrowd")
            objects.append({"image_id": number, "id": len(objects) + 1, **dict(zip(names, row, strict=True))})
        results += coco_results(found, number, SPEC)
    if kind == "masks":  # else the areas of detections are those of their boxes
        results = [{name: value for name, value in entry.items() if name != "bbox"} for entry in results]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": number, "height": HEIGHT, "width": WIDTH} for number in range(len(shown))],
            "annotations": objects,
            "categories": [{"id": label} for label in (1, 2, 3)],
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), {"boxes": "bbox", "masks": "segm"}[kind])
        for step in (evaluation.evaluate, evaluation.accumulate, evaluation.summarize):
            step()
    return evaluation.stats[:6].tolist()


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_pycocotools_with_crowds_empty_images_and_more_detections_than_count(seed):
    shown = images(seed)
    for kind, table in scorer_of(shown).tables().items():
        theirs = by_pycocotools(shown, kind)
        assert min(theirs) > 0, "there is nothing to agree about"
        np.testing.assert_allclose(ap_scores(table)[:6], theirs, rtol=0, atol=1e-12, err_msg=kind)


def test_truth_found_is_one_nothing_found_is_zero_no_objects_are_nan_and_crowds_are_not_asked_for():
    truth, nothing = image(np.random.default_rng(0), "a", objects=6, found=0)
    truth = truth._replace(labels_N=torch.tensor([0, 0, 0, 1, 1, 1]), crowd_N=torch.zeros(6, dtype=torch.bool))
    perfect = Detections(truth.boxes_N4, torch.full((6,), 0.9), truth.labels_N, encode(truth.masks_NHW.numpy()))
    for found, score in ((perfect, 1.0), (nothing, 0.0)):
        for table in scorer_of([(truth, found)]).tables().values():
            scores = ap_scores(table)
            assert scores.ap == scores.ap50 == scores.ap75 == score
            assert scores.ap_K.nan_to_num(-1).tolist() == [score, score, -1.0]
            assert table.instances_K.tolist() == [3, 3, 0]
    crowded = truth._replace(crowd_N=torch.tensor([True, False, False, True, True, True]))
    table = scorer_of([(crowded, perfect)], ("boxes",)).tables()["boxes"]
    assert (ap_scores(table).ap, table.instances_K.tolist()) == (1.0, [2, 0, 0])


def test_what_does_not_fit_together_is_named():
    truth, found = images(0)[0]
    for change, message in (
        ({"labels_N": found.labels_N + 1}, r"detections of '0' hold the labels \[3\]: expected 0\.\.2"),
        ({"scores_N": found.scores_N[1:]}, "shorter"),
        ({"masks": None}, "detections of '0' have no masks: give kinds="),
        ({"masks": found.masks[1:]}, "shorter"),
        ({"scores_N": found.scores_N * torch.nan}, "detections of '0' hold a score or box that is not finite: has it"),
    ):
        with pytest.raises(ValueError, match=message):
            scorer_of([(truth, found._replace(**change))])
    with pytest.raises(ValueError, match="sample of '0' have no masks"):
        scorer_of([(truth._replace(masks_NHW=None), found)])
    with pytest.raises(ValueError, match="no image was added"):
        scorer_of([]).tables()


def test_without_the_library_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(DetectionExtraMissing, match=r"average precision needs .* `pip install -e '\.\[detection\]'`"):
        DetectionScorer(SPEC)
    with pytest.raises(DetectionExtraMissing, match="packing masks needs"):
        encode(np.zeros((1, 2, 2), dtype=bool))
    with pytest.raises(DetectionExtraMissing, match="polygons of a COCO annotation needs"):
        decode([[0, 0, 4, 0, 4, 4]], 5, 5)


def detector(masks=True):
    sizes = dict(min_size=128, max_size=192, width=24, box_width=48, smallest_anchor=8, proposals=60, rois=16)
    return build_detector("resnet18", 3, masks=masks, **sizes, detections=10)


def test_detections_are_in_the_images_own_pixels_with_classes_from_zero():
    network, (pixels, _) = detector().eval(), next(evaluation_instance_batches(DATA, 2))
    found, raw = detect(network, pixels), network(pixels)
    assert sum(len(part.labels_N) for part in found) > 0
    for part, theirs in zip(found, raw, strict=True):
        assert torch.equal(part.boxes_N4, theirs["boxes"])
        assert torch.equal(part.labels_N, theirs["labels"] - 1)
        masks = [decode(mask, 64, 96) for mask in part.masks]
        assert all((ours == (m[0] >= 0.5).numpy()).all() for ours, m in zip(masks, theirs["masks"], strict=True))
    with pytest.raises(ValueError, match=r"training mode: call detector\.eval\(\)"):
        detect(network.train(), pixels)


def test_every_image_is_scored_and_the_detector_stays_in_its_mode():
    network, seen = detector().train(), []
    tables = scored(network, DATA, batch_size=2, on_image=lambda sample, _: seen.append(sample.name)).tables()
    assert network.training
    assert seen == [sample.name for sample in DATA]
    wanted = sum((~sample.crowd_N).sum() for sample in DATA)
    assert [table.instances_K.sum() for table in tables.values()] == [wanted] * 2
    assert 0 <= ap_scores(tables["boxes"]).ap < 0.1
    assert list(scored(detector(masks=False), DATA).tables()) == ["boxes"]
