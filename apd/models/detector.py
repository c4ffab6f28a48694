"""Detectors: torchvision's Faster R-CNN and Mask R-CNN, untouched, at any size from a thumbnail to COCO's.

torchvision's own parts are put together here; what is added are widths, anchors and counts of proposals that suit
small pictures on a CPU. At the default sizes a network is torchvision's, tensor by tensor, so its COCO weights fit.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import nn
from torchvision.models import get_model
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from apd.distillers.base import LEVELS
from apd.models.detector_weights import fill_from_coco, fill_from_imagenet, use_coco_eps

DetectorWeights = Literal["none", "imagenet", "coco"]

# side of a box that is pooled from level "2", in smallest anchors: torchvision's 224 pixels for its 32
_CANONICAL_ANCHORS = 7


class _Body(NamedTuple):
    """Where a torchvision classifier has its maps of strides 4, 8, 16 and 32, and what is frozen once pre-trained.

    `frozen` are the stages that torchvision's own detectors do not train when they start from ImageNet.
    """

    layers: tuple[str, str, str, str]
    channels: tuple[int, int, int, int]
    frozen: tuple[str, ...]


def _resnet(*channels: int) -> _Body:
    return _Body(("layer1", "layer2", "layer3", "layer4"), channels, ("conv1", "bn1", "layer1"))


BODIES = {
    "resnet18": _resnet(64, 128, 256, 512),
    "resnet50": _resnet(256, 512, 1024, 2048),
    "resnet101": _resnet(256, 512, 1024, 2048),
    # The last block of each stride. torchvision's own MobileNetV3 detector reads two maps of stride 32 only, too coarse
    # for small things and unlike a ResNet's pyramid.
    "mobilenet_v3_large": _Body(("3", "6", "12", "16"), (24, 40, 112, 960), tuple(map(str, range(7)))),
    "mobilenet_v3_small": _Body(("1", "3", "8", "12"), (16, 24, 48, 576), tuple(map(str, range(4)))),
}


def build_detector(
    backbone: str,
    num_classes: int,
    *,
    masks: bool = True,
    weights: DetectorWeights = "none",
    class_names: Sequence[str] = (),
    min_size: int = 800,
    max_size: int = 1333,
    width: int = 256,
    box_width: int = 1024,
    smallest_anchor: int = 32,
    proposals: int = 2000,
    rois: int = 512,
    detections: int = 100,
    fetch: bool = True,
) -> FasterRCNN:
    """Mask R-CNN or Faster R-CNN with a feature pyramid; random values come from torch's global generator.

    Backbones without pre-trained weights train all layers with batch norm; with weights, batch norm and the first
    stages are frozen, as torchvision has it.

    Args:
        backbone: "resnet18", "resnet50", "resnet101", "mobilenet_v3_large" or "mobilenet_v3_small".
        num_classes: classes K of things; the network has K + 1, the background (label 0) before them.
        masks: Mask R-CNN (default), or Faster R-CNN.
        weights: "none", "imagenet" (torchvision's, for the backbone), or "coco" (torchvision's detector, "resnet50"
            only). Both are downloaded unless in torch's cache.
        class_names: for "coco", K names as COCO has them: the rows of these classes are taken.
        min_size, max_size: pictures are resized so that the shorter side is `min_size`, unless the longer would exceed
            `max_size` (default 800 and 1333, torchvision's). For pictures of one size give their own two sides.
        width: channels of the pyramid and of the mask head (default 256, torchvision's).
        box_width: length of the box head's vector, the feature before the class layer (default 1024, torchvision's).
        smallest_anchor: side in pixels of the smallest anchors; it doubles from level to level, and boxes go to levels
            in proportion (default 32, torchvision's; 8 suits pictures of 100 pixels).
        proposals: most proposals of a training picture, before and after suppression; half as many at inference
            (default 2000, torchvision's).
        rois: proposals of a picture that the box head is trained on (default 512, torchvision's).
        detections: most findings in a picture at inference (default 100, torchvision's and COCO's).
        fetch: False builds the network that `weights` asks for without them, to be filled from a file of its own.

    Returns:
        A ``torchvision.models.detection.FasterRCNN`` or its subclass ``MaskRCNN``.

    Raises:
        ValueError: an argument out of its range, or weights that this network has none of.
        RuntimeError: weights that cannot be obtained or do not fit.

    Example:
        >>> import torch
        >>> small = dict(min_size=96, max_size=128, width=32, box_width=64, smallest_anchor=8, proposals=200, rois=64)
        >>> student = build_detector("resnet18", 3, **small).eval()
        >>> found = student([torch.rand(3, 96, 128)])[0]
        >>> sorted(found)
        ['boxes', 'labels', 'masks', 'scores']
    """
    if backbone not in BODIES:
        raise ValueError(f"backbone={backbone!r}: expected one of {', '.join(BODIES)}")
    if weights not in ("none", "imagenet", "coco"):
        raise ValueError(f"weights={weights!r}: expected 'none', 'imagenet' or 'coco'")
    sizes = dict(num_classes=num_classes, min_size=min_size, max_size=max_size, width=width, box_width=box_width)
    sizes |= dict(smallest_anchor=smallest_anchor, proposals=proposals, rois=rois, detections=detections)
    for name, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}={value!r}: expected a positive integer")
    if max_size < min_size:
        raise ValueError(f"max_size={max_size}: expected min_size={min_size} or more")

    def pooling(cells: int) -> MultiScaleRoIAlign:
        scale = _CANONICAL_ANCHORS * smallest_anchor
        return MultiScaleRoIAlign(list(LEVELS[:4]), output_size=cells, sampling_ratio=2, canonical_scale=scale)

    mask_parts = dict(
        mask_roi_pool=pooling(14),
        mask_head=MaskRCNNHeads(width, (width,) * 4, dilation=1),
        mask_predictor=MaskRCNNPredictor(width, width, num_classes + 1),
    )
    detector = (MaskRCNN if masks else FasterRCNN)(
        _pyramid(backbone, width, pre_trained=weights != "none"),
        min_size=min_size,
        max_size=max_size,
        rpn_anchor_generator=AnchorGenerator(
            tuple((smallest_anchor * 2**level,) for level in range(len(LEVELS))), ((0.5, 1.0, 2.0),) * len(LEVELS)
        ),
        rpn_pre_nms_top_n_train=proposals,
        rpn_post_nms_top_n_train=proposals,
        rpn_pre_nms_top_n_test=max(1, proposals // 2),
        rpn_post_nms_top_n_test=max(1, proposals // 2),
        box_roi_pool=pooling(7),
        box_head=TwoMLPHead(width * 7**2, box_width),
        box_predictor=FastRCNNPredictor(box_width, num_classes + 1),
        box_batch_size_per_image=rois,
        box_detections_per_img=detections,
        **(mask_parts if masks else {}),
    )
    if weights == "imagenet" and fetch:
        fill_from_imagenet(detector, backbone)
    elif weights == "coco":
        use_coco_eps(detector)
        if fetch:
            fill_from_coco(detector, backbone, class_names)
    return detector


def _pyramid(backbone: str, width: int, *, pre_trained: bool) -> BackboneWithFPN:
    body = BODIES[backbone]
    classifier = get_model(backbone, weights=None, norm_layer=FrozenBatchNorm2d if pre_trained else nn.BatchNorm2d)
    pyramid = BackboneWithFPN(
        getattr(classifier, "features", classifier),
        dict(zip(body.layers, LEVELS, strict=False)),
        list(body.channels),
        width,
    )
    if pre_trained:
        for stage in body.frozen:
            pyramid.body[stage].requires_grad_(False)
    return pyramid
