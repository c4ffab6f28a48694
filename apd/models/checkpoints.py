"""Released checkpoints, of APD and of the semseg code line, in this project's networks: an explicit map of names."""

import copy
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from apd.models.backbones import Dilation, dilate
from apd.models.custom_network import CustomSegmenter
from apd.models.pretrained import match_tensors, read_tensors
from apd.models.segmenter import AtrousPooling, Segmenter

_OWN = ("image_mean", "image_std")  # no part of the released files; with ImageNet's values the images are theirs
_WRAPPERS = [{"module"}, {"model"}, {"net"}, {"network"}, {"_orig_mod"}]  # before all names, of DDP, Lightning, compile
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


def load_weights(model: Segmenter | CustomSegmenter, path: str | Path, *, sha256: str = "") -> str:
    """Load a network's weights strictly from a file: of this project, a released checkpoint, or of its own library.

    Released are the checkpoints of APD (PSPNet and DeepLabV3 on deep-stem ResNets) and of semseg's code line (PSPNet),
    recognised by the names in the file. The network is built as theirs was: the defaults of
    :func:`~apd.models.build_segmenter`, but `dilation="all_convs"` for APD's networks of 60 classes. Nothing in the
    file is executed. The result is the sha256 of the bytes that were loaded; they must have `sha256` where it is given.
    A RuntimeError says why not, or which tensors, strides or dilations differ; the network is then as it was.
    """
    try:
        tensors, found = read_tensors(path)
        if sha256 not in ("", found):
            raise RuntimeError(f"the file has sha256 {found}, expected {sha256}: it is damaged or was replaced")
        if isinstance(model, CustomSegmenter) and "image_mean" not in tensors:
            model = model.network  # whose names are those in the files of its library
        while not tensors.keys() & model.state_dict().keys() and {n.partition(".")[0] for n in tensors} in _WRAPPERS:
            tensors = {name.partition(".")[2]: value for name, value in tensors.items()}
        released = any(name.startswith("layer0.") for name in tensors) and isinstance(model, Segmenter)  # their stem
        matched = released_state_dict(tensors, model) if released else match_tensors(tensors, model.state_dict())
    except RuntimeError as error:
        raise RuntimeError(f"{path!s:.200}: {error}") from error
    model.load_state_dict(matched, strict=True)
    return found


def released_state_dict(tensors: Mapping[str, Tensor], model: Segmenter) -> dict[str, Tensor]:
    """A released checkpoint's tensors under `model`'s names; see :func:`load_weights`."""
    backbone, atrous, from_semseg = model.backbone, isinstance(model.head, AtrousPooling), "cls.4.weight" in tensors
    if not (hasattr(backbone, "layer4") and isinstance(getattr(backbone, "conv1", None), nn.Sequential)):
        fix = "but the network has another backbone: build it on resnet18_deep, resnet50_deep or resnet101_deep"
        raise RuntimeError(f"this is a released checkpoint with a deep-stem ResNet, {fix}")
    if atrous != any(name.startswith("ppm.aspp_modules.") for name in tensors):
        raise RuntimeError(f"this is a released checkpoint with the other head than {type(model.head).__name__}")
    names = _PSPNET_OF_SEMSEG if from_semseg else _DEEPLABV3_OF_APD if atrous else _PSPNET_OF_APD

    def their_name(name: str) -> str:
        ours = next(ours for ours in names if re.match(ours, name))
        return re.sub(ours, names[ours], name, count=1)

    own = model.state_dict()
    matched = match_tensors(tensors, {name: value for name, value in own.items() if name not in _OWN}, their_name)
    # weights fit whatever the strides and dilations are, and compute something else with others
    rule: Dilation = "all_convs" if model.num_classes == 60 and not from_semseg else "one_conv"
    published = copy.deepcopy(backbone).to("meta")
    dilate(published, 8, rule)
    if _layout(backbone) != _layout(published):
        trained = f"this checkpoint was trained at output stride 8 with dilation='{rule}'"
        raise RuntimeError(f"{trained}; the network has other strides or dilations: build it with these")
    return matched | {name: own[name] for name in _OWN}


def _layout(network: nn.Module) -> list[tuple[tuple[int, ...], ...]]:
    return [(m.stride, m.dilation, m.padding) for m in network.modules() if isinstance(m, nn.Conv2d)]
