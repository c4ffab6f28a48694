"""AP is what COCO's own code makes of the same detections."""

import contextlib
import io
import sys

import numpy as np
import pytest
import torch

import apd.data.rle
from apd.data.instances import InstanceSample, InstanceSpec
from apd.data.rle import DetectionExtraMissing, encode
from apd.evaluation.average_precision import APTable, Detections, DetectionScorer, ap_scores

SPEC = InstanceSpec("shapes", ("disc", "square", "bar"))
HEIGHT, WIDTH = 300, 320


def rectangles(random: np.random.Generator, count: int) -> np.ndarray:
    """Boxes x0, y0, x1, y1 of all three of COCO's ranges of areas."""
    sides = np.exp(random.uniform(np.log(6), np.log(260), (count, 2)))
    corners = random.uniform(0, 1, (count, 2)) * (np.array([WIDTH, HEIGHT]) - sides)
    return np.concatenate([corners, corners + sides], axis=1)


def masks_of(boxes: np.ndarray) -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    x0, y0, x1, y1 = boxes.T[:, :, None, None]
    inside = (columns >= x0) & (columns < x1) & (rows >= y0) & (rows < y1)
    return inside & ((columns + rows) % 7 != 0)


def picture(random: np.random.Generator, name: str, *, things: int, found: int) -> tuple[InstanceSample, Detections]:
    """A picture and detections, half of them near a thing, some of them of the wrong class."""
    boxes, labels = rectangles(random, things), random.integers(0, 3, things)
    masks = masks_of(boxes)
    truth = InstanceSample(
        torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8),
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(labels),
        torch.tensor(masks),
        torch.tensor(random.random(things) < 0.2),
        torch.tensor(masks.sum((1, 2)), dtype=torch.float32),
        name,
    )
    guesses = rectangles(random, found)
    guessed = random.integers(0, 3, found)
    for place in range(min(found // 2, things)):
        guesses[place] = boxes[place] + random.normal(0, 2, 4)
        guesses[place, 2:] = np.maximum(guesses[place, 2:], guesses[place, :2] + 1)
        guessed[place] = labels[place] if random.random() < 0.8 else guessed[place]
    detections = Detections(
        torch.tensor(guesses, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(np.round(random.random(found), 1), dtype=torch.float32),  # ties among them
        torch.tensor(guessed),
        encode(masks_of(guesses)),
    )
    return truth, detections


def pictures(seed: int) -> list[tuple[InstanceSample, Detections]]:
    random = np.random.default_rng(seed)
    counts = [(5, 8), (0, 4), (6, 0), (0, 0), (9, 12), (3, 120), (1, 1)]
    return [picture(random, str(place), things=a, found=b) for place, (a, b) in enumerate(counts)]


def by_pycocotools(shown: list[tuple[InstanceSample, Detections]], kind: str) -> list[float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def corner_and_size(box):
        x0, y0, x1, y1 = box.double().tolist()
        return [x0, y0, x1 - x0, y1 - y0]

    things, results = [], []
    for image, (truth, found) in enumerate(shown):
        for place, mask in enumerate(encode(truth.masks_NHW.numpy())):
            things.append(
                {
                    "id": len(things) + 1,
                    "image_id": image,
                    "category_id": int(truth.labels_N[place]),
                    "bbox": corner_and_size(truth.boxes_N4[place]),
                    "segmentation": mask,
                    "area": float(truth.areas_N[place]),
                    "iscrowd": int(truth.crowd_N[place]),
                }
            )
        for place, mask in enumerate(found.masks):
            shape = {"segmentation": mask} if kind == "masks" else {"bbox": corner_and_size(found.boxes_N4[place])}
            label, score = int(found.labels_N[place]), float(found.scores_N[place])
            results.append({"image_id": image, "category_id": label, "score": score} | shape)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": image, "height": HEIGHT, "width": WIDTH} for image in range(len(shown))],
            "annotations": things,
            "categories": [{"id": label} for label in range(3)],
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), {"boxes": "bbox", "masks": "segm"}[kind])
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[:6].tolist()


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_pycocotools_with_crowds_empty_pictures_and_more_detections_than_count(seed):
    shown = pictures(seed)
    scorer = DetectionScorer(SPEC)
    for truth, found in shown:
        scorer.update(truth, found)
    for kind, table in scorer.tables().items():
        theirs = by_pycocotools(shown, kind)
        assert min(theirs) > 0, "there is nothing to agree about"
        np.testing.assert_allclose(ap_scores(table)[:6], theirs, rtol=0, atol=1e-12, err_msg=kind)


def test_the_order_of_pictures_does_not_matter_where_scores_differ():
    shown = [(truth, found._replace(scores_N=torch.rand(len(found.scores_N)))) for truth, found in pictures(0)]
    tables = []
    for order in (shown, shown[::-1]):
        scorer = DetectionScorer(SPEC)
        for truth, found in order:
            scorer.update(truth, found)
        tables.append(scorer.tables())
    for kind in ("boxes", "masks"):
        torch.testing.assert_close(tables[0][kind].ap_TKA, tables[1][kind].ap_TKA, equal_nan=True)


def test_truth_found_is_one_nothing_found_is_zero_and_a_class_without_things_is_nan():
    truth, _ = picture(np.random.default_rng(0), "a", things=6, found=0)
    truth = truth._replace(labels_N=torch.tensor([0, 0, 0, 1, 1, 1]), crowd_N=torch.zeros(6, dtype=torch.bool))
    perfect = Detections(truth.boxes_N4, torch.full((6,), 0.9), truth.labels_N, encode(truth.masks_NHW.numpy()))
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long), [])
    for found, score in ((perfect, 1.0), (nothing, 0.0)):
        scorer = DetectionScorer(SPEC)
        scorer.update(truth, found)
        for table in scorer.tables().values():
            scores = ap_scores(table)
            assert scores.ap == scores.ap50 == scores.ap75 == score
            assert scores.ap_K.nan_to_num(-1).tolist() == [score, score, -1.0]
            assert table.instances_K.tolist() == [3, 3, 0]


def test_a_crowd_is_not_asked_for_and_what_is_found_in_it_is_no_mistake():
    truth, _ = picture(np.random.default_rng(0), "a", things=2, found=0)
    truth = truth._replace(labels_N=torch.tensor([0, 0]), crowd_N=torch.tensor([True, False]))
    both = Detections(truth.boxes_N4, torch.tensor([0.9, 0.8]), truth.labels_N, None)
    scorer = DetectionScorer(SPEC, ("boxes",))
    scorer.update(truth, both)
    table = scorer.tables()["boxes"]
    assert ap_scores(table).ap == 1.0
    assert table.instances_K.tolist() == [1, 0, 0]


def test_the_scorer_keeps_what_it_was_given_so_tables_can_be_asked_for_on_the_way():
    scorer, shown = DetectionScorer(SPEC), pictures(0)
    scorer.update(*shown[0])
    first = scorer.tables()
    again = scorer.tables()
    assert all(torch.equal(first[k].ap_TKA.nan_to_num(-1), again[k].ap_TKA.nan_to_num(-1)) for k in first)
    scorer.update(*shown[4])
    assert scorer.tables()["boxes"].instances_K.sum() > first["boxes"].instances_K.sum()


def test_what_does_not_fit_together_is_named():
    truth, found = pictures(0)[0]
    scorer = DetectionScorer(SPEC)
    for change, message in (
        ({"labels_N": found.labels_N + 1}, r"detections of '0' hold labels from \d to 3: expected 0\.\.2"),
        ({"scores_N": found.scores_N[1:]}, "7 scores for 8 labels"),
        ({"boxes_N4": found.boxes_N4[1:]}, r"shape \(7, 4\), expected \(8, 4\)"),
        ({"masks": None}, "detections of '0' have no masks: give kinds="),
        ({"masks": found.masks[1:]}, "7 masks for 8 labels"),
        ({"scores_N": found.scores_N * torch.nan}, "not finite: has it diverged"),
    ):
        with pytest.raises(ValueError, match=message):
            scorer.update(truth, found._replace(**change))
    with pytest.raises(ValueError, match="sample of '0' have no masks"):
        scorer.update(truth._replace(masks_NHW=None), found)
    with pytest.raises(ValueError, match="no picture was added"):
        scorer.tables()
    with pytest.raises(ValueError, match="expected 'boxes', 'masks' or both"):
        DetectionScorer(SPEC, ("keypoints",))
    with pytest.raises(ValueError, match=r"ap has shape \(3, 2, 4\): expected \(10, classes, 4\)"):
        ap_scores(APTable(torch.zeros(3, 2, 4), torch.zeros(2)))


def test_without_the_library_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(DetectionExtraMissing, match=r"average precision needs .* `pip install -e '\.\[detection\]'`"):
        DetectionScorer(SPEC)
    with pytest.raises(DetectionExtraMissing, match="packing masks needs"):
        encode(np.zeros((1, 2, 2), dtype=bool))
    with pytest.raises(DetectionExtraMissing, match="polygons of a COCO annotation needs"):
        apd.data.rle.decode([[0, 0, 4, 0, 4, 4]], 5, 5)
