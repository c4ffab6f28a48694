"""Deep-stem dilated ResNets, the published backbones: timm's blocks behind a stem of three 3×3 convolutions."""

from pathlib import Path
from typing import Literal, NamedTuple

import timm
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from apd.models.pretrained import create_with_timm_weights, match_tensors, read_tensors

Dilation = Literal["one_conv", "all_convs"]


class DeepResNet(NamedTuple):
    """Blocks of the four stages, timm's class of them, its nearest network, and the released ImageNet file's name."""

    blocks: tuple[int, int, int, int]
    block: type[nn.Module]
    relative: str
    file: str


DEEP_RESNETS = {
    "resnet18_deep": DeepResNet((2, 2, 2, 2), BasicBlock, "resnet50s", "resnet18-imagenet.pth"),
    "resnet50_deep": DeepResNet((3, 4, 6, 3), Bottleneck, "resnet50s", "resnet50_v2.pth"),
    "resnet101_deep": DeepResNet((3, 4, 23, 3), Bottleneck, "resnet101s", "resnet101_v2.pth"),
}
"""The deep-stem ResNets by name."""

_STEM = {"conv1.0": "conv1", "conv1.1": "bn1", "conv1.3": "conv2", "conv1.4": "bn2", "conv1.6": "conv3", "bn1": "bn3"}


def create_deep_resnet(
    name: str,
    *,
    output_stride: int = 8,
    dilation: Dilation = "one_conv",
    imagenet: bool = False,
    weights_file: str | Path = "",
) -> nn.Module:
    """A ResNet of the published study: images → the maps of its last two stages.

    The stem has three 3×3 convolutions of 64, 64 and 128 channels. Convolutions start from Kaiming's normal values and
    batch norms as identities, as in the released code (timm's own default starts each block's last norm at zero).

    `name` is one of :data:`DEEP_RESNETS`, `output_stride` 4, 8 (as published) or 16. With `imagenet` it starts from
    `weights_file`, a classifier with the names of the semseg code line, or from timm's `resnet50s` or `resnet101s`,
    which are the same networks (the released code's own files are published nowhere); a RuntimeError without.
    """
    known = DEEP_RESNETS[name]
    arguments = {"features_only": True, "out_indices": (3, 4), "zero_init_last": False}
    if imagenet and not weights_file:
        if known.block is not Bottleneck:  # timm has no such network with this stem
            why = f"weights='imagenet' for backbone '{name}': no package and no hub is known to have them"
            fix = f"a file as weights_file (--network.weights-file), which the semseg code line calls {known.file}"
            other = "weights='none' (--network.weights none), resnet50_deep or resnet18"
            raise RuntimeError(f"{why}. Give {fix}, or use {other}")
        network = create_with_timm_weights(known.relative, **arguments)
    else:
        network = timm.create_model(known.relative, block=known.block, layers=known.blocks, **arguments)
    if weights_file:
        try:
            tensors = read_tensors(weights_file)
            matched = match_tensors(tensors, network.state_dict(), _semseg_name, left_out=("fc.",))
        except (RuntimeError, OSError) as error:
            raise RuntimeError(f"weights_file {weights_file} for backbone '{name}': {error}") from error
        network.load_state_dict(matched, strict=True)
    dilate(network, output_stride, dilation)
    return network


def dilate(network: nn.Module, output_stride: int, dilation: Dilation = "one_conv") -> None:
    """Replace a ResNet's strides beyond `output_stride` by dilated 3×3 convolutions, in place.

    Both rules are the released code's. Each stage that loses its stride doubles the dilation. Weights fit either way.

    - `"one_conv"`: on one convolution of each block, the first of a basic block, the middle one of a bottleneck.
    - `"all_convs"`: on every 3×3 convolution, except that the one that had the stride keeps the dilation of the stage
      before. The released code takes this rule when there are 60 classes (PASCAL-Context); it is timm's as well.
    """
    stride, widened = 4, 1
    for stage in (network.layer2, network.layer3, network.layer4):
        if stride < output_stride:
            stride *= 2
            continue
        before, widened = widened, 2 * widened
        for number, block in enumerate(stage):
            if block.downsample is not None:
                block.downsample[0].stride = (1, 1)
            convs = [m for m in block.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
            for place, conv in enumerate(convs):
                if dilation == "one_conv":
                    own = widened if place == 0 else 1
                else:
                    own = before if number == place == 0 else widened
                conv.stride, conv.dilation, conv.padding = (1, 1), (own, own), (own, own)


def _semseg_name(name: str) -> str:
    layer, _, leaf = name.rpartition(".")
    return f"{_STEM.get(layer, layer)}.{leaf}"
