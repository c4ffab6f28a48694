"""Detections and their average precision as COCO defines it, counted by faster-coco-eval (extra `detection`)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import box_convert
from tqdm import tqdm

from apd.data.batches import evaluation_instance_batches
from apd.data.instances import InstanceDataset, InstanceSample, InstanceSpec, coco_library, encode
from apd.evaluation.inference import evaluating

Kind = Literal["boxes", "masks"]
NAMES: dict[Kind, str] = {"boxes": "box", "masks": "mask"}
IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))  # overlaps from which a detection is right
AREAS = ("all", "small", "medium", "large")  # of an instance in pixels: all; below 32²; 32² to 96²; above
MASK_THRESHOLD = 0.5  # probability from which a pixel belongs to an instance (torchvision, COCO)
_LIBRARY = {"boxes": ("bbox", "bbox"), "masks": ("segm", "segmentation")}  # of a kind the library's name, and its field
_PURPOSE = "counting average precision"


class Detections(NamedTuple):
    """What a detector finds in one image, on the CPU: boxes x0, y0, x1, y1 in pixels, classes 0..K-1, packed masks."""

    boxes_N4: Tensor
    scores_N: Tensor
    labels_N: Tensor
    masks: list[dict[str, Any]] | None


class APTable(NamedTuple):
    """AP (float64) by :data:`IOU_THRESHOLDS`, class and :data:`AREAS`, NaN without instances, and instance counts."""

    ap_TKA: Tensor
    instances_K: Tensor


class APScores(NamedTuple):
    """Means of a table's entries, in [0, 1]; NaN where nothing was to be found. `ap` is COCO's main score."""

    ap: float
    ap50: float
    ap75: float
    small: float
    medium: float
    large: float
    ap_K: Tensor  # mean over thresholds, class by class


def ap_scores(table: APTable) -> APScores:
    """The scores of a table, by COCO's rule: the mean over all entries that exist."""
    ap_TKA = table.ap_TKA
    parts = ap_TKA[..., 0], ap_TKA[0, :, 0], ap_TKA[5, :, 0], *(ap_TKA[..., area] for area in (1, 2, 3))
    return APScores(*(part.nanmean().item() for part in parts), ap_TKA[..., 0].nanmean(0))


class DetectionScorer:
    """Compares detections with the ground truth, image by image, by boxes, masks or both.

    DetectionExtraMissing at construction where faster-coco-eval is not installed.
    """

    def __init__(self, spec: InstanceSpec, kinds: Sequence[Kind] = ("boxes", "masks")) -> None:
        coco_library(_PURPOSE)
        self.spec, self.kinds = spec, tuple(kinds)
        # of each image its size, instances and detections by kind, as the library wants them but for their numbers
        self._images: list[tuple[dict[str, int], list[dict[str, Any]], dict[str, list[dict[str, Any]]]]] = []

    def update(self, sample: InstanceSample, found: Detections) -> None:
        """Add an image; a ValueError names missing masks, wrong labels and what is not finite."""
        for source, masks in (("sample", sample.masks_NHW), ("detections", found.masks)):
            if "masks" in self.kinds and masks is None:
                raise ValueError(f"{source} of {sample.name!r} have no masks: give kinds=('boxes',)")
        if unknown := set(found.labels_N.tolist()) - set(range(self.spec.num_classes)):
            expected = f"expected 0..{self.spec.num_classes - 1}"
            raise ValueError(f"detections of {sample.name!r} hold the labels {sorted(unknown)}: {expected}")
        if not (found.scores_N.isfinite().all() and found.boxes_N4.isfinite().all()):
            raise ValueError(f"detections of {sample.name!r} hold a score or box that is not finite: has it diverged?")
        boxes, labels = _as_coco(sample.boxes_N4), (sample.labels_N + 1).tolist()
        masks = encode(sample.masks_NHW.numpy()) if "masks" in self.kinds else [[]] * len(boxes)
        rows = zip(labels, boxes, masks, sample.crowd_N.int().tolist(), sample.areas_N.tolist(), strict=True)
        fields = ("category_id", "bbox", "segmentation", "iscrowd", "area")
        instances = [dict(zip(fields, row, strict=True)) for row in rows]
        labels, scores = (found.labels_N + 1).tolist(), found.scores_N.tolist()
        shapes, entries = {"boxes": _as_coco(found.boxes_N4), "masks": found.masks}, {}
        for kind in self.kinds:
            rows = zip(labels, scores, shapes[kind], strict=True)
            entries[kind] = [{"category_id": k, "score": score, _LIBRARY[kind][1]: shape} for k, score, shape in rows]
        height, width = sample.image_3HW.shape[1:]
        self._images.append(({"height": height, "width": width}, instances, entries))

    def joined(self, others: "Sequence[DetectionScorer]") -> "DetectionScorer":
        """A scorer of this one's images and the others', each in turn: AP is no mean of the parts' APs."""
        whole = DetectionScorer(self.spec, self.kinds)
        in_turn = zip_longest(self._images, *(other._images for other in others))
        whole._images = [image for turn in in_turn for image in turn if image is not None]
        return whole

    def tables(self) -> dict[Kind, APTable]:
        """The tables of all images so far, at least one."""
        if not self._images:
            raise ValueError("no image was added: call update(sample, detections) for each first")
        return {kind: self._table(kind) for kind in self.kinds}

    def _table(self, kind: Kind) -> APTable:
        library, num_classes, images = coco_library(_PURPOSE), self.spec.num_classes, list(enumerate(self._images, 1))
        silent = {"print_function": lambda *_: None}
        instances = [{"image_id": number, **instance} for number, (_, own, _) in images for instance in own]
        content = {
            "images": [{"id": number, **size} for number, (size, _, _) in images],
            "annotations": [{"id": number, **instance} for number, instance in enumerate(instances, 1)],
            "categories": [{"id": label, "name": str(label)} for label in range(1, num_classes + 1)],
        }
        truth = library.COCO(content, **silent)
        found = truth.loadRes([{"image_id": number, **entry} for number, (*_, own) in images for entry in own[kind]])
        evaluation = library.COCOeval_faster(truth, found, _LIBRARY[kind][0], **silent)
        evaluation.evaluate(), evaluation.accumulate()
        precision_TRKA = torch.from_numpy(np.array(evaluation.eval["precision"], dtype=np.float64))[..., -1]
        ap_TKA = torch.where(precision_TRKA < 0, torch.nan, precision_TRKA).mean(1)
        counted = [instance["category_id"] - 1 for instance in instances if not instance["iscrowd"]]
        return APTable(ap_TKA, torch.bincount(torch.tensor(counted, dtype=torch.int64), minlength=num_classes))


def _as_coco(boxes_N4: Tensor) -> list[list[float]]:
    return box_convert(boxes_N4.double(), "xyxy", "xywh").tolist()


def coco_results(found: Detections, image_id: int, spec: InstanceSpec) -> list[dict[str, Any]]:
    """Detections in COCO's results format, the surest first; a class has its file's number, else its place from 1."""
    numbers = spec.category_ids or range(1, spec.num_classes + 1)
    boxes, entries = _as_coco(found.boxes_N4), list[dict[str, Any]]()
    for place in found.scores_N.argsort(descending=True, stable=True).tolist():
        entry = {"image_id": image_id, "category_id": numbers[int(found.labels_N[place])]}
        entry |= {"bbox": [round(value, 2) for value in boxes[place]], "score": round(float(found.scores_N[place]), 5)}
        if found.masks is not None:
            mask = found.masks[place]
            entry["segmentation"] = {"size": mask["size"], "counts": mask["counts"].decode("ascii")}
        entries.append(entry)
    return entries


def image_ids(images: Sequence[Path], known: Mapping[str, int]) -> list[int]:
    """A number for each image: that of its name in `known` where all are there and differ, else its name itself where
    all are different numbers, as COCO's are, else its place from 1."""
    if all(image.name in known for image in images) and len({image.name for image in images}) == len(images):
        return [known[image.name] for image in images]
    numbers = [int(image.stem) for image in images if image.stem.isascii() and image.stem.isdigit()]
    return numbers if len(set(numbers)) == len(images) else list(range(1, len(images) + 1))


@torch.no_grad()
def detect(detector: nn.Module, images: list[Tensor]) -> list[Detections]:
    """What a Faster or Mask R-CNN of torchvision, in eval mode, finds in images, float32 (3, H, W) on its device."""
    if detector.training:
        raise ValueError("detector is in training mode: call detector.eval() first")
    found = []
    for output in detector(images):
        masks = output.get("masks")
        packed = None if masks is None else encode((masks[:, 0] >= MASK_THRESHOLD).cpu().numpy())
        labels_N = output["labels"].cpu() - 1  # a detector's label 0 is the background
        found.append(Detections(output["boxes"].float().cpu(), output["scores"].float().cpu(), labels_N, packed))
    return found


def scored(
    detector: nn.Module,
    dataset: InstanceDataset,
    *,
    batch_size: int = 8,
    progress: str = "",
    on_image: Callable[[InstanceSample, Detections], object] | None = None,
) -> DetectionScorer:
    """A scorer with a detector's detections in every image, in single precision: half is too coarse for coordinates."""
    scorer = DetectionScorer(dataset.spec, ("boxes", "masks") if detector.roi_heads.has_mask() else ("boxes",))
    device, total = next(detector.parameters()).device, -(-len(dataset) // batch_size)
    batches = evaluation_instance_batches(dataset, batch_size)
    bar = tqdm(batches, total=total, desc=progress, leave=False, disable=None if progress else True)
    with evaluating(detector), torch.autocast(device.type, enabled=False):
        for images, samples in bar:
            found = detect(detector, [image.to(device) for image in images])
            for sample, detections in zip(samples, found, strict=True):
                scorer.update(sample, detections)
                if on_image is not None:
                    on_image(sample, detections)
    return scorer


def ap_lines(tables: Mapping[Kind, APTable], class_names: Sequence[str]) -> Iterator[str]:
    """A line for each class of which there is something to be found, then one for each of boxes and masks."""
    found = {kind: ap_scores(table) for kind, table in tables.items()}
    for place, (name, count) in enumerate(zip(class_names, next(iter(tables.values())).instances_K, strict=True)):
        if count:
            both = ((NAMES[kind], found[kind].ap_K[place], table.ap_TKA[0, place, 0]) for kind, table in tables.items())
            columns = "  ".join(f"{kind} AP {ap:.4f}  AP50 {ap50:.4f}" for kind, ap, ap50 in both)
            yield f"{name:14s} {columns} {count:5d} instances"
    for kind, (ap, ap50, ap75, small, medium, large, ap_K) in found.items():
        sizes = f"small {small:.4f}, medium {medium:.4f}, large {large:.4f}"
        counted = int((~ap_K.isnan()).sum())
        yield f"{NAMES[kind]} AP {ap:.4f}, AP50 {ap50:.4f}, AP75 {ap75:.4f}, {sizes} over {counted} classes"


def ap_entry(tables: Mapping[Kind, APTable]) -> dict[str, Any]:
    """Tables as a record holds them, under `ap`: null where there is nothing to be found."""
    found = {kind: np.where(table.ap_TKA.isnan(), None, table.ap_TKA).tolist() for kind, table in tables.items()}
    return {kind: {"ap": ap, "things": tables[kind].instances_K.tolist()} for kind, ap in found.items()}


def tables_of(entry: Mapping[str, Any]) -> dict[Kind, APTable]:
    """The tables of an entry that was checked."""
    found = {kind: torch.from_numpy(np.array(part["ap"], dtype=np.float64)) for kind, part in entry.items()}
    return {kind: APTable(ap, torch.tensor(entry[kind]["things"]).long()) for kind, ap in found.items()}
