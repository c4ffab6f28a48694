"""torchvision's Faster R-CNN and Mask R-CNN, untouched, at any size from a thumbnail to COCO's, and their weights."""

from typing import Literal, NamedTuple, get_args

from torch import nn
from torchvision.models import get_model, get_model_weights
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from apd.distillers.base import LEVELS
from apd.models.pretrained import COUNTER, hub_tensors, match_tensors
from apd.validation import check_choice, check_count

DetectorWeights = Literal["none", "imagenet"]
# side of a box that is pooled from level "2", in smallest anchors: torchvision's 224 pixels for its 32
_CANONICAL_ANCHORS = 7


class _Body(NamedTuple):
    layers: tuple[str, str, str, str]  # where a torchvision classifier has its maps of strides 4, 8, 16 and 32
    channels: tuple[int, int, int, int]
    frozen: tuple[str, ...]  # what torchvision's own detectors do not train when they start from ImageNet


_RESNET = ("layer1", "layer2", "layer3", "layer4")
BODIES = {
    "resnet18": _Body(_RESNET, (64, 128, 256, 512), ("conv1", "bn1", "layer1")),
    "resnet50": _Body(_RESNET, (256, 512, 1024, 2048), ("conv1", "bn1", "layer1")),
    "resnet101": _Body(_RESNET, (256, 512, 1024, 2048), ("conv1", "bn1", "layer1")),
    # the last block of each stride; torchvision's own MobileNetV3 detector reads two maps of stride 32 only
    "mobilenet_v3_large": _Body(("3", "6", "12", "16"), (24, 40, 112, 960), tuple("0123456")),
    "mobilenet_v3_small": _Body(("1", "3", "8", "12"), (16, 24, 48, 576), tuple("0123")),
}


def build_detector(
    backbone: str,
    num_classes: int,
    *,
    masks: bool = True,
    weights: DetectorWeights = "none",
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
    """Mask R-CNN or Faster R-CNN of torchvision with a feature pyramid; random values are of torch's global generator.

    Backbones without pre-trained weights train all layers with batch norm; with weights, batch norm and the first
    stages are frozen, as torchvision has it. Sizes and counts have torchvision's defaults.

    Args:
        backbone: "resnet18", "resnet50", "resnet101", "mobilenet_v3_large" or "mobilenet_v3_small".
        num_classes: classes K of objects; the network has K + 1, the background (label 0) before them.
        masks: Mask R-CNN, or Faster R-CNN.
        weights: "none", or torchvision's for the backbone, "imagenet".
        min_size, max_size: images are resized so that the shorter side is `min_size`, unless the longer would exceed
            `max_size`. For images of one size give their own two sides.
        width, ... detections: as the fields of :class:`apd.config.detection_config.DetectorConfig`.
        fetch: False builds the network that `weights` asks for without them, to be filled from a file of its own.

    An unknown name, a size or count below 1, or weights that it has none of, is a ValueError; weights that cannot be
    had or do not fit, a RuntimeError.
    """
    check_choice("backbone", backbone, tuple(BODIES))
    check_choice("weights", weights, get_args(DetectorWeights))
    sizes = dict(num_classes=num_classes, min_size=min_size, max_size=max_size, width=width, box_width=box_width)
    sizes |= dict(smallest_anchor=smallest_anchor, proposals=proposals, rois=rois, detections=detections)
    for name, value in sizes.items():
        check_count(name, value)
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
    anchors = AnchorGenerator(tuple((smallest_anchor * 2**level,) for level in range(5)), ((0.5, 1.0, 2.0),) * 5)
    body, pre_trained = BODIES[backbone], weights != "none"
    classifier = get_model(backbone, weights=None, norm_layer=FrozenBatchNorm2d if pre_trained else nn.BatchNorm2d)
    levels = dict(zip(body.layers, LEVELS, strict=False))
    pyramid = BackboneWithFPN(getattr(classifier, "features", classifier), levels, list(body.channels), width)
    for stage in body.frozen if pre_trained else ():
        pyramid.body[stage].requires_grad_(False)
    detector = (MaskRCNN if masks else FasterRCNN)(
        pyramid,
        min_size=min_size,
        max_size=max_size,
        rpn_anchor_generator=anchors,
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
    return detector


def fill_from_imagenet(detector: FasterRCNN, backbone: str) -> None:
    """Fill the detector's backbone, below its pyramid, with torchvision's ImageNet classifier, strictly."""
    state = hub_tensors(get_model_weights(backbone)["IMAGENET1K_V1"], f"weights='imagenet' for backbone {backbone!r}")
    body = detector.backbone.body
    # frozen norms count no batches
    state = {name.removeprefix("features."): value for name, value in state.items() if not name.endswith(COUNTER)}
    try:
        matched = match_tensors(state, body.state_dict(), left_out=("fc.", "classifier."))
    except RuntimeError as error:
        raise RuntimeError(f"torchvision's ImageNet weights of {backbone} do not fit: {error}") from error
    body.load_state_dict(matched, strict=True)
