"""Average precision of detections as COCO defines it, counted by faster-coco-eval (extra `detection`).

What is kept of an evaluation is a table, one AP for each IoU threshold, class and range of areas; the scores that
papers print are means over parts of it, and are computed whenever they are asked for.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from apd.data.instances import InstanceSample, InstanceSpec
from apd.data.rle import coco_library, encode

Kind = Literal["boxes", "masks"]
IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""Overlaps from which a detection is right; AP50 and AP75 are two of them."""
AREAS = ("all", "small", "medium", "large")
"""Ranges of a thing's area in pixels: all; below 32²; 32² to 96²; above."""
_MOST_DETECTIONS = 100  # of a picture, COCO's
_LIBRARY_KIND = {"boxes": "bbox", "masks": "segm"}


class Detections(NamedTuple):
    """What a detector finds in one picture.

    Attributes:
        boxes_N4: x0, y0, x1, y1 in pixels of the picture.
        scores_N: how sure it is, higher is surer.
        labels_N: classes 0..K-1.
        masks: COCO's packed run lengths, one mapping a detection (:func:`apd.data.rle.encode`); None for boxes
            alone.
    """

    boxes_N4: Tensor
    scores_N: Tensor
    labels_N: Tensor
    masks: list[dict[str, Any]] | None


class APTable(NamedTuple):
    """AP by threshold, class and area; from it every score.

    Attributes:
        ap_TKA: float64 (10, K, 4) in [0, 1]; NaN where the data hold no such thing. Axes: :data:`IOU_THRESHOLDS`,
            classes, :data:`AREAS`.
        things_K: int64, how many things of each class were to be found.
    """

    ap_TKA: Tensor
    things_K: Tensor


class APScores(NamedTuple):
    """Scores as fractions in [0, 1]; NaN where nothing of that kind was to be found."""

    ap: float
    """Mean over thresholds and classes: COCO's main score."""
    ap50: float
    ap75: float
    small: float
    medium: float
    large: float
    ap_K: Tensor
    """(K,) mean over thresholds, class by class."""


def ap_scores(table: APTable) -> APScores:
    """The scores of a table, by COCO's rule: the mean over all entries that exist.

    >>> table = APTable(torch.full((10, 2, 4), 0.5, dtype=torch.float64), torch.tensor([3, 1]))
    >>> ap_scores(table).ap
    0.5
    """
    ap_TKA = table.ap_TKA
    if ap_TKA.ndim != 3 or (ap_TKA.shape[0], ap_TKA.shape[2]) != (len(IOU_THRESHOLDS), len(AREAS)):
        raise ValueError(f"ap has shape {tuple(ap_TKA.shape)}: expected ({len(IOU_THRESHOLDS)}, classes, {len(AREAS)})")
    if table.things_K.shape != ap_TKA.shape[1:2]:
        raise ValueError(f"things has shape {tuple(table.things_K.shape)}: expected ({ap_TKA.shape[1]},)")
    return APScores(
        *(ap_TKA[part].nanmean().item() for part in ((..., 0), (0, ..., 0), (5, ..., 0))),
        *(ap_TKA[..., area].nanmean().item() for area in (1, 2, 3)),
        ap_TKA[..., 0].nanmean(0),
    )


class _Picture(NamedTuple):
    """One picture as the library wants it, its own number and its things' left out."""

    height: int
    width: int
    things: list[dict[str, Any]]
    found: dict[str, list[dict[str, Any]]]


class DetectionScorer:
    """Compares detections with the truth, picture by picture.

    Args:
        spec: the data set's classes.
        kinds: "boxes", "masks" or both; masks need samples and detections that have them.

    Raises:
        DetectionExtraMissing: faster-coco-eval is not installed.

    Example:
        >>> spec, image = InstanceSpec("pets", ("cat", "dog")), torch.zeros(3, 64, 64, dtype=torch.uint8)
        >>> box, area, crowd = torch.tensor([[2.0, 2.0, 40.0, 40.0]]), torch.tensor([1444.0]), torch.tensor([False])
        >>> truth = InstanceSample(image, box, torch.tensor([1]), None, crowd, area, "a dog")
        >>> scorer = DetectionScorer(spec, ("boxes",))
        >>> scorer.update(truth, Detections(box, torch.tensor([0.9]), torch.tensor([1]), None))
        >>> ap_scores(scorer.tables()["boxes"]).ap
        1.0
    """

    def __init__(self, spec: InstanceSpec, kinds: Sequence[Kind] = ("boxes", "masks")) -> None:
        coco_library("counting average precision")
        if not kinds or not set(kinds) <= set(_LIBRARY_KIND):
            raise ValueError(f"kinds={tuple(kinds)!r}: expected 'boxes', 'masks' or both")
        self.spec, self.kinds = spec, tuple(kinds)
        self._pictures: list[_Picture] = []

    def update(self, sample: InstanceSample, found: Detections) -> None:
        """Add a picture.

        Raises:
            ValueError: masks are wanted and not there, counts do not fit together, a label is outside 0..K-1, or a
                score or box is not finite.
        """
        self._check(sample, found)
        masks = encode(sample.masks_NHW.numpy()) if "masks" in self.kinds else [[]] * len(sample.labels_N)
        rows = zip(_corner_and_size(sample.boxes_N4), sample.labels_N.tolist(), masks, strict=True)
        things = [
            {"category_id": label + 1, "bbox": box, "segmentation": mask, "iscrowd": int(crowd), "area": area}
            for (box, label, mask), crowd, area in zip(
                rows, sample.crowd_N.tolist(), sample.areas_N.tolist(), strict=True
            )
        ]
        scored = list(zip(found.labels_N.tolist(), found.scores_N.tolist(), strict=True))
        shapes = {"boxes": ("bbox", _corner_and_size(found.boxes_N4)), "masks": ("segmentation", found.masks)}
        entries = {
            kind: [
                {"category_id": label + 1, "score": score, shapes[kind][0]: shape}
                for (label, score), shape in zip(scored, shapes[kind][1], strict=True)
            ]
            for kind in self.kinds
        }
        height, width = sample.image_3HW.shape[1:]
        self._pictures.append(_Picture(height, width, things, entries))

    def joined(self, others: "Sequence[DetectionScorer]") -> "DetectionScorer":
        """A scorer of this one's pictures and the others', each in turn: what was dealt out to several is put together.

        AP is no mean of the parts' APs, so parts that were looked at apart have to be counted as one.
        """
        whole = DetectionScorer(self.spec, self.kinds)
        dealt = zip_longest(self._pictures, *(other._pictures for other in others))
        whole._pictures = [picture for turn in dealt for picture in turn if picture is not None]
        return whole

    def tables(self) -> dict[Kind, APTable]:
        """The tables of all pictures so far.

        Raises:
            ValueError: there was no picture.
        """
        if not self._pictures:
            raise ValueError("no picture was added: call update(sample, detections) for each first")
        return {kind: self._table(kind) for kind in self.kinds}

    def _table(self, kind: Kind) -> APTable:
        library, classes = coco_library("counting average precision"), range(1, self.spec.num_classes + 1)

        def silent(*_: object) -> None:
            pass

        numbered = list(enumerate(self._pictures, start=1))
        things = [{"image_id": number, **thing} for number, picture in numbered for thing in picture.things]
        truth = library.COCO(
            {
                "images": [{"id": number, "height": p.height, "width": p.width} for number, p in numbered],
                "annotations": [{"id": number, **thing} for number, thing in enumerate(things, start=1)],
                "categories": [{"id": label, "name": str(label)} for label in classes],
            },
            print_function=silent,
        )
        found = truth.loadRes(
            [{"image_id": number, **entry} for number, picture in numbered for entry in picture.found[kind]]
        )
        evaluation = library.COCOeval_faster(truth, found, _LIBRARY_KIND[kind], print_function=silent)
        evaluation.evaluate()
        evaluation.accumulate()
        precision_TRKA = torch.from_numpy(np.array(evaluation.eval["precision"], dtype=np.float64))[..., -1]
        shape = (len(IOU_THRESHOLDS), precision_TRKA.shape[1], self.spec.num_classes, len(AREAS))
        assert precision_TRKA.shape == shape, f"faster-coco-eval gave {tuple(precision_TRKA.shape)}, not {shape}"
        assert evaluation.params.maxDets[-1] == _MOST_DETECTIONS
        ap_TKA = torch.where(precision_TRKA < 0, torch.nan, precision_TRKA).mean(1)
        counted = [thing["category_id"] - 1 for thing in things if not thing["iscrowd"]]
        things_K = torch.bincount(torch.tensor(counted, dtype=torch.int64), minlength=self.spec.num_classes)
        return APTable(ap_TKA, things_K)

    def _check(self, sample: InstanceSample, found: Detections) -> None:
        for whose, part, masks in (("sample", sample, sample.masks_NHW), ("detections", found, found.masks)):
            if "masks" in self.kinds and masks is None:
                raise ValueError(f"{whose} of {sample.name!r} have no masks: give kinds=('boxes',)")
            count = len(part.labels_N)
            if part.boxes_N4.shape != (count, 4):
                raise ValueError(
                    f"{whose} of {sample.name!r}: boxes have shape {tuple(part.boxes_N4.shape)}, expected ({count}, 4)"
                )
            if masks is not None and len(masks) != count:
                raise ValueError(f"{whose} of {sample.name!r}: {len(masks)} masks for {count} labels")
            if count and not 0 <= int(part.labels_N.min()) <= int(part.labels_N.max()) < self.spec.num_classes:
                raise ValueError(
                    f"{whose} of {sample.name!r} hold labels from {int(part.labels_N.min())} to "
                    f"{int(part.labels_N.max())}: expected 0..{self.spec.num_classes - 1}"
                )
        if len(found.scores_N) != len(found.labels_N):
            raise ValueError(
                f"detections of {sample.name!r}: {len(found.scores_N)} scores for {len(found.labels_N)} labels"
            )
        if not (found.scores_N.isfinite().all() and found.boxes_N4.isfinite().all()):
            raise ValueError(f"detections of {sample.name!r} hold a score or box that is not finite: has it diverged?")


def _corner_and_size(boxes_N4: Tensor) -> list[list[float]]:
    """x0, y0, width, height, as COCO writes a box."""
    boxes_N4 = boxes_N4.double()
    return torch.cat([boxes_N4[:, :2], boxes_N4[:, 2:] - boxes_N4[:, :2]], dim=1).tolist()


# Tables of average precision as a record holds them: the entry `ap`.


def ap_entry(tables: Mapping[Kind, APTable]) -> dict[str, Any]:
    """The entry of some tables."""
    return {
        kind: {
            "ap": [
                [[None if math.isnan(value) else value for value in row] for row in rows]
                for rows in table.ap_TKA.tolist()
            ],
            "things": table.things_K.tolist(),
        }
        for kind, table in tables.items()
    }


def tables_of(entry: Mapping[str, Any]) -> dict[Kind, APTable]:
    """The tables of an entry that was checked."""
    return {
        kind: APTable(
            torch.tensor(
                [[[math.nan if value is None else value for value in row] for row in rows] for rows in part["ap"]],
                dtype=torch.float64,
            ),
            torch.tensor(part["things"], dtype=torch.int64),
        )
        for kind, part in entry.items()
    }


def what_is_wrong(entry: Any, classes: int, kinds: Sequence[Kind]) -> str:
    """What keeps an entry from being the tables of these kinds; empty when nothing does."""
    if not isinstance(entry, dict) or set(entry) != set(kinds):
        return f"must hold {' and '.join(kinds)}, as the network gives them"
    for kind, part in entry.items():
        if not isinstance(part, dict) or set(part) != {"ap", "things"}:
            return f"{kind} must hold ap and things"
        things = part["things"]
        if not _is_list(things, classes) or not all(type(count) is int and 0 <= count < 2**63 for count in things):
            return f"{kind}.things must be {classes} counts >= 0"
        shape = (len(IOU_THRESHOLDS), classes, len(AREAS))
        if not _is_table(part["ap"], shape):
            told = f"{shape[0]} x {shape[1]} x {shape[2]} nested lists of fractions between 0 and 1, or null"
            return f"{kind}.ap must be {told}"
        for label, count in enumerate(things):
            there = {tuple(value is not None for value in rows[label]) for rows in part["ap"]}
            if len(there) > 1 or (count == 0 and any(there.pop())):
                return f"{kind}.ap of class {label}, of which there are {count}, must be null where there is none"
    if len({tuple(part["things"]) for part in entry.values()}) > 1:
        return "must count the same things of boxes and of masks"
    return ""


def _is_list(value: Any, length: int) -> bool:
    return isinstance(value, list) and len(value) == length


def _is_table(value: Any, shape: tuple[int, ...]) -> bool:
    if not shape:
        return value is None or (type(value) in (int, float) and 0 <= value <= 1)
    return _is_list(value, shape[0]) and all(_is_table(part, shape[1:]) for part in value)
