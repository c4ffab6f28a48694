"""torchvision's weights for detectors: ImageNet's for a backbone, COCO's for a whole ResNet-50 detector."""

import difflib
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model_weights
from torchvision.models.detection import (
    FasterRCNN,
    FasterRCNN_ResNet50_FPN_Weights,
    MaskRCNN,
    MaskRCNN_ResNet50_FPN_Weights,
)
from torchvision.ops import FrozenBatchNorm2d

COCO_BACKBONE = "resnet50"
_COCO_EPS = 0.0  # with which torchvision's first COCO detectors were trained, by a bug that it keeps for them
_CLASS_ROWS = (
    "roi_heads.box_predictor.cls_score",
    "roi_heads.box_predictor.bbox_pred",
    "roi_heads.mask_predictor.mask_fcn_logits",
)


def fetch(weights: WeightsEnum, what: str) -> Mapping[str, Tensor]:
    """The tensors of torchvision weights, downloaded or from torch's cache, checked by the hash in their name.

    Raises:
        RuntimeError: they could not be obtained; the message tells the address and the folder of the cache.
    """
    try:
        return weights.get_state_dict(progress=True, check_hash=True)
    except Exception as error:  # urllib, sockets and torch.hub raise errors of their own kinds
        raise RuntimeError(
            f"{what}: {weights} could not be fetched ({type(error).__name__}: {error}). Without a network, put the "
            f"file of {weights.url} into {torch.hub.get_dir()}/checkpoints, or use weights='none' "
            "(--network.weights none)"
        ) from error


def fill_from_imagenet(
    detector: FasterRCNN, backbone: str, fetch: Callable[[WeightsEnum, str], Mapping[str, Tensor]] = fetch
) -> None:
    """Fill the detector's backbone, below its pyramid, with torchvision's ImageNet classifier of that name.

    Raises:
        RuntimeError: the weights cannot be obtained or do not fit one to one.
    """
    state = fetch(get_model_weights(backbone)["IMAGENET1K_V1"], f"weights='imagenet' for backbone {backbone!r}")
    state = {name.removeprefix("features."): value for name, value in state.items()}
    body = detector.backbone.body
    wanted = body.state_dict()
    # of the classifier, its last layers are not in a pyramid; everything else must be
    state = {name: value for name, value in state.items() if not name.startswith(("fc.", "classifier."))}
    if not isinstance(next((m for m in body.modules() if "BatchNorm" in type(m).__name__), None), nn.BatchNorm2d):
        state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    _load(body, state, wanted, f"torchvision's ImageNet weights of {backbone}")


def fill_from_coco(
    detector: FasterRCNN,
    backbone: str,
    class_names: Sequence[str],
    fetch: Callable[[WeightsEnum, str], Mapping[str, Tensor]] = fetch,
) -> None:
    """Fill a ResNet-50 detector of torchvision's sizes with torchvision's COCO weights.

    Its class layers have 91 rows, one for each number that COCO's annotations use; the rows of `class_names` are taken,
    and the background's.

    Raises:
        ValueError: there are none for this backbone, or a class is not COCO's.
        RuntimeError: the weights cannot be obtained or do not fit one to one.
    """
    if backbone != COCO_BACKBONE:
        raise ValueError(
            f"weights='coco' for backbone {backbone!r}: torchvision has them for {COCO_BACKBONE!r} in this form; use "
            "weights='imagenet' (--network.weights imagenet), or give a detector of torchvision's own "
            "(fasterrcnn_mobilenet_v3_large_fpn)"
        )
    kind = MaskRCNN_ResNet50_FPN_Weights if isinstance(detector, MaskRCNN) else FasterRCNN_ResNet50_FPN_Weights
    rows = coco_rows(kind.COCO_V1.meta["categories"], class_names)
    wanted = detector.state_dict()
    if wanted[f"{_CLASS_ROWS[0]}.weight"].shape[0] != len(rows):
        raise ValueError(
            f"weights='coco': {len(class_names)} class_names for a detector of "
            f"{wanted[f'{_CLASS_ROWS[0]}.weight'].shape[0] - 1} classes; give each class's name as COCO has it"
        )
    state = dict(fetch(kind.COCO_V1, f"weights='coco' for backbone {backbone!r}"))
    for layer in _CLASS_ROWS:
        for name in (f"{layer}.weight", f"{layer}.bias"):
            if name in state:  # 91 rows, or 4 × 91 of box offsets
                per_class = state[name].unflatten(0, (len(kind.COCO_V1.meta["categories"]), -1))
                state[name] = per_class[rows].flatten(0, 1)
    _load(detector, state, wanted, f"torchvision's COCO weights of {backbone}")


def use_coco_eps(detector: FasterRCNN) -> None:
    """Give frozen batch norms the eps that torchvision's COCO weights were trained with; no file of weights has it."""
    for module in detector.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.eps = _COCO_EPS


def coco_rows(categories: Sequence[str], class_names: Sequence[str]) -> list[int]:
    """Rows of torchvision's class layers for the background and for each class.

    Raises:
        ValueError: a class is not among the categories; the nearest name is told.

    >>> coco_rows(["__background__", "person", "N/A", "cat"], ["cat", "person"])
    [0, 3, 1]
    """
    for name in class_names:
        if name not in categories or name in ("__background__", "N/A"):
            near = difflib.get_close_matches(name, categories, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"weights='coco': COCO has no class {name!r}{hint}")
    return [0, *(list(categories).index(name) for name in class_names)]


def _load(module: nn.Module, state: dict[str, Tensor], wanted: Mapping[str, Tensor], source: str) -> None:
    wrong = [
        f"{name} is {tuple(value.shape)}, expected {tuple(wanted[name].shape)}"
        for name, value in state.items()
        if name in wanted and value.shape != wanted[name].shape
    ]
    if wrong:
        raise RuntimeError(
            f"{source} do not fit: {len(wrong)} tensors differ, first {'; '.join(wrong[:3])}. They need torchvision's "
            "sizes: leave width and box_width at their defaults"
        )
    try:
        module.load_state_dict(state, strict=True)  # torchvision renames keys of older files while loading
    except RuntimeError as error:
        raise RuntimeError(f"{source} do not fit: {error}") from error
