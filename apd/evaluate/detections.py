"""A detector's findings on a data set, and their average precision."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from apd.data.instance_batches import evaluation_instance_batches
from apd.data.instances import InstanceDataset, InstanceSample
from apd.data.run_length import encode
from apd.evaluate.coco_ap import APTable, Detections, DetectionScorer, Kind

MASK_THRESHOLD = 0.5
"""Probability from which a pixel belongs to a thing, torchvision's and COCO's usual one."""


@torch.no_grad()
def detect(detector: nn.Module, images: list[Tensor]) -> list[Detections]:
    """What a torchvision detector finds in some pictures.

    Args:
        detector: in eval mode; Faster or Mask R-CNN.
        images: float32 (3, H, W) in [0, 1], of any sizes, on the detector's device.

    Returns:
        One :class:`~apd.evaluate.coco_ap.Detections` a picture, on the CPU, in the picture's own pixels.

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
        ValueError: as :class:`~apd.evaluate.coco_ap.DetectionScorer`, or a data set without a picture.
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
        ValueError: as :class:`~apd.evaluate.coco_ap.DetectionScorer`.
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
