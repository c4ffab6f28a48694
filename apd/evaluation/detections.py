"""A detector's findings on a data set, and their average precision."""

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

from apd.data.augment_instances import evaluation_instance_batches
from apd.data.instances import InstanceDataset, InstanceSample
from apd.data.rle import encode
from apd.evaluation.average_precision import APTable, Detections, DetectionScorer, Kind, ap_scores

MASK_THRESHOLD = 0.5
"""Probability from which a pixel belongs to a thing, torchvision's and COCO's usual one."""


@torch.no_grad()
def detect(detector: nn.Module, images: list[Tensor]) -> list[Detections]:
    """What a torchvision detector finds in some pictures.

    Args:
        detector: in eval mode; Faster or Mask R-CNN.
        images: float32 (3, H, W) in [0, 1], of any sizes, on the detector's device.

    Returns:
        One :class:`~apd.evaluation.average_precision.Detections` a picture, on the CPU, in the picture's own pixels.

    Raises:
        ValueError: the detector is in training mode.
        DetectionExtraMissing: masks without faster-coco-eval, which packs them.
    """
    if detector.training:
        raise ValueError("detector is in training mode: call detector.eval() first")
    found = []
    for picture in detector(images):
        masks = picture.get("masks")
        found.append(
            Detections(
                picture["boxes"].float().cpu(),
                picture["scores"].float().cpu(),
                picture["labels"].cpu() - 1,  # a detector's label 0 is the background
                None if masks is None else encode((masks[:, 0] >= MASK_THRESHOLD).cpu().numpy()),
            )
        )
    return found


def ap_of(
    detector: nn.Module,
    dataset: InstanceDataset,
    *,
    batch_size: int = 8,
    progress: str = "",
) -> dict[Kind, APTable]:
    """AP tables of a detector on every picture of a data set: of boxes, and of masks where it has them.

    See :func:`scored`, which this asks for its tables.

    Raises:
        ValueError: as :class:`~apd.evaluation.average_precision.DetectionScorer`, or a data set without a picture.
        DetectionExtraMissing: faster-coco-eval is not installed.
    """
    return scored(detector, dataset, batch_size=batch_size, progress=progress).tables()


def scored(
    detector: nn.Module,
    dataset: InstanceDataset,
    *,
    batch_size: int = 8,
    progress: str = "",
    on_picture: Callable[[InstanceSample, Detections], object] | None = None,
) -> DetectionScorer:
    """A scorer that has seen a detector's findings on every picture of a data set, or of a part of one.

    In single precision: under autocast torchvision would compute boxes in half, too coarse for coordinates.

    The detector is put into eval mode for the call and back into its mode after it.

    Args:
        detector: Faster or Mask R-CNN of torchvision.
        dataset: for masks, one that has them.
        batch_size: pictures at a time (default 8).
        progress: text beside a progress bar; none by default.
        on_picture: called with each picture and what was found in it.

    Raises:
        ValueError: as :class:`~apd.evaluation.average_precision.DetectionScorer`.
        DetectionExtraMissing: faster-coco-eval is not installed.
    """
    kinds: tuple[Kind, ...] = ("boxes", "masks") if detector.roi_heads.has_mask() else ("boxes",)
    scorer = DetectionScorer(dataset.spec, kinds)
    device = next(detector.parameters()).device
    training = detector.training
    detector.eval()
    try:
        total = -(-len(dataset) // batch_size)
        batches = evaluation_instance_batches(dataset, batch_size)
        for images, samples in tqdm(
            batches, total=total, desc=progress, leave=False, disable=None if progress else True
        ):
            with torch.autocast(device.type, enabled=False):
                found = detect(detector, [image.to(device) for image in images])
            for sample, detections in zip(samples, found, strict=True):
                scorer.update(sample, detections)
                if on_picture is not None:
                    on_picture(sample, detections)
    finally:
        detector.train(training)
    return scorer


# Average precision class by class, for readers: lines of text and a table as CSV.

NAMES: dict[Kind, str] = {"boxes": "box", "masks": "mask"}


def _columns(tables: Mapping[Kind, APTable]) -> dict[str, Tensor]:
    """The columns of a table of classes, by their titles: (K,) each."""
    columns = {}
    for kind, table in tables.items():
        overall_TK = table.ap_TKA[..., 0]
        for title, ap_K in (("AP", overall_TK.nanmean(0)), ("AP50", overall_TK[0]), ("AP75", overall_TK[5])):
            columns[f"{NAMES[kind]} {title}"] = ap_K
    return columns


def ap_csv(tables: Mapping[Kind, APTable], class_names: Sequence[str]) -> str:
    """A table with a row for each class: its name, its things, and AP, AP50 and AP75 of boxes, and of masks.

    What is not defined, since there is no such thing, is left empty.

    >>> import torch
    >>> table = APTable(torch.full((10, 2, 4), 0.25), torch.tensor([3, 0]))
    >>> table.ap_TKA[:, 1] = torch.nan
    >>> print(ap_csv({"boxes": table}, ["cat", "dog"]), end="")
    class,things,box AP,box AP50,box AP75
    cat,3,0.250000,0.250000,0.250000
    dog,0,,,
    """
    columns, written = _columns(tables), io.StringIO()
    table = csv.writer(written, lineterminator="\n")
    table.writerow(("class", "things", *columns))
    values = (column.tolist() for column in columns.values())
    things = next(iter(tables.values())).things_K.tolist()
    for name, count, *fractions in zip(class_names, things, *values, strict=True):
        table.writerow((name, count, *("" if math.isnan(value) else f"{value:.6f}" for value in fractions)))
    return written.getvalue()


def ap_lines(tables: Mapping[Kind, APTable], class_names: Sequence[str]) -> Iterator[str]:
    """A line for each class of which there is something to be found, then one for each of boxes and masks.

    >>> import torch
    >>> table = APTable(torch.full((10, 1, 4), 0.25), torch.tensor([3]))
    >>> print(*ap_lines({"boxes": table}, ["cat"]), sep="\\n")
    cat            box AP 0.2500  AP50 0.2500     3 things
    box AP 0.2500, AP50 0.2500, AP75 0.2500, small 0.2500, medium 0.2500, large 0.2500 over 1 classes
    """
    things = next(iter(tables.values())).things_K.tolist()
    columns = _columns(tables)
    for place, (name, count) in enumerate(zip(class_names, things, strict=True)):
        if count:
            told = (
                f"{NAMES[kind]} AP {columns[f'{NAMES[kind]} AP'][place]:.4f}  "
                f"AP50 {columns[f'{NAMES[kind]} AP50'][place]:.4f}"
                for kind in tables
            )
            yield f"{name:14s} {'  '.join(told)} {count:5d} things"
    for kind, table in tables.items():
        found = ap_scores(table)
        sizes = f"small {found.small:.4f}, medium {found.medium:.4f}, large {found.large:.4f}"
        counted = int((~found.ap_K.isnan()).sum())
        yield (
            f"{NAMES[kind]} AP {found.ap:.4f}, AP50 {found.ap50:.4f}, AP75 {found.ap75:.4f}, {sizes} "
            f"over {counted} classes"
        )
