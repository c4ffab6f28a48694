"""Released checkpoints, of APD and of the semseg code line, in this project's networks: an explicit map of names."""

import copy
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from apd.models.heads import AtrousPooling
from apd.models.resnet import Dilation, dilate
from apd.models.segmenter import Segmenter
from apd.models.weight_files import match_tensors, read_tensors

# The released code hands its networks (255 x - 255 mean) / (255 std) with ImageNet's values, which is what these
# buffers make of x in [0, 1]. They are no part of its files.
_OWN = ("image_mean", "image_std")
_EVERYWHERE = {
    r"backbone\.conv1\.": "layer0.",  # the stem's first two convolutions with their norms, and the third convolution
    r"backbone\.bn1\.": "layer0.7.",
    r"backbone\.layer": "layer",
    r"aux_head\.layers\.": "aux.",
}
_PSP = {r"head\.branches\.(\d)\.0\.": r"ppm.features.\1.1.", r"head\.branches\.(\d)\.1\.": r"ppm.features.\1.2."}
_PSPNET_OF_SEMSEG = _EVERYWHERE | _PSP | {r"head\.merge\.": "cls.", r"classifier\.": "cls.4."}
_PSPNET_OF_APD = _EVERYWHERE | _PSP | {r"head\.merge\.": "ppm.merge.", r"classifier\.": "cls.0."}
_DEEPLABV3_OF_APD = _EVERYWHERE | {
    r"head\.image_pool\.0\.": "ppm.image_pool.1.conv.",
    r"head\.image_pool\.1\.": "ppm.image_pool.1.bn.",
    r"head\.branches\.(\d)\.0\.": r"ppm.aspp_modules.\1.conv.",
    r"head\.branches\.(\d)\.1\.": r"ppm.aspp_modules.\1.bn.",
    r"head\.merge\.0\.": "ppm.bottleneck.conv.",
    r"head\.merge\.1\.": "ppm.bottleneck.bn.",
    r"classifier\.": "cls.0.",
}


def load_weights(model: Segmenter, path: str | Path) -> None:
    """Fill a network from a file, strictly: one that this project wrote, or a released checkpoint.

    Released are the checkpoints of APD (PSPNet and DeepLabV3 on deep-stem ResNets) and of the semseg code line
    (PSPNet); which it is, is told by the names in the file. The network is built as theirs was, which the defaults of
    :func:`~apd.models.build_segmenter` do but for APD's networks of 60 classes: those have `dilation="all_convs"`.

    Args:
        model: from :func:`~apd.models.build_segmenter`.
        path: a safetensors file, or a torch checkpoint, which is read without executing anything in it.

    Raises:
        FileNotFoundError: there is no such file.
        RuntimeError: the file cannot be read, a tensor of either side has no partner or another shape, or the strides
            and dilations of the network are not those that a released checkpoint was trained with.

    Example:
        >>> import tempfile, torch
        >>> from apd.models import build_segmenter
        >>> trained, fresh = (build_segmenter("test_resnet", 5, head_width=8).eval() for _ in range(2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(trained.state_dict(), f"{folder}/weights.pth")
        ...     load_weights(fresh, f"{folder}/weights.pth")
        >>> torch.equal(fresh.classifier.weight, trained.classifier.weight)
        True
    """
    try:
        tensors = read_tensors(path)
        if not is_released(tensors):
            matched = match_tensors(tensors, model.state_dict())
        else:
            matched = released_state_dict(tensors, model)
    except RuntimeError as error:
        raise RuntimeError(f"{path}: {error}") from error
    model.load_state_dict(matched, strict=True)


def is_released(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these names are those of the released code (its stem is `layer0`) and not this project's."""
    return any(name.startswith("layer0.") for name in tensors)


def released_state_dict(tensors: Mapping[str, Tensor], model: Segmenter) -> dict[str, Tensor]:
    """A released checkpoint's tensors under `model`'s names; see :func:`load_weights`."""
    backbone = model.backbone
    if not (hasattr(backbone, "layer4") and isinstance(getattr(backbone, "conv1", None), nn.Sequential)):
        raise RuntimeError(
            "this is a released checkpoint with a deep-stem ResNet, but the network has another backbone: build it on "
            "resnet18_deep, resnet50_deep or resnet101_deep"
        )
    from_semseg = "cls.4.weight" in tensors
    if from_semseg:
        names = _PSPNET_OF_SEMSEG
    else:
        names = _DEEPLABV3_OF_APD if isinstance(model.head, AtrousPooling) else _PSPNET_OF_APD
    if isinstance(model.head, AtrousPooling) != any(name.startswith("ppm.aspp_modules.") for name in tensors):
        raise RuntimeError(f"this is a released checkpoint with the other head than {type(model.head).__name__}")
    own = model.state_dict()
    expected = {name: value for name, value in own.items() if name not in _OWN}
    matched = match_tensors(tensors, expected, lambda name: _translated(name, names))
    _check_layout(backbone, "all_convs" if model.num_classes == 60 and not from_semseg else "one_conv")
    return matched | {name: own[name] for name in _OWN}


def _translated(name: str, names: Mapping[str, str]) -> str:
    for ours, theirs in names.items():
        if re.match(ours, name):
            return re.sub(ours, theirs, name, count=1)
    raise AssertionError(f"no rule for {name}")


def _check_layout(backbone: nn.Module, rule: Dilation) -> None:
    """Weights fit whatever the strides and dilations are, and compute something else with others."""
    published = copy.deepcopy(backbone).to("meta")
    dilate(published, 8, rule)
    if _layout(backbone) != _layout(published):
        raise RuntimeError(
            f"this checkpoint was trained at output stride 8 with dilation='{rule}'; the network has other strides or "
            "dilations, with which it would compute something else: build it with these"
        )


def _layout(network: nn.Module) -> list[tuple[tuple[int, ...], ...]]:
    return [(m.stride, m.dilation, m.padding) for m in network.modules() if isinstance(m, nn.Conv2d)]
