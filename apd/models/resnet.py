"""Deep-stem dilated ResNets, the published backbones: timm's blocks behind a stem of three 3×3 convolutions."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import timm
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from apd.models.pretrained import create_with_timm_weights
from apd.models.weight_files import match_tensors, read_tensors

Dilation = Literal["one_conv", "all_convs"]


@dataclass(frozen=True)
class DeepResNet:
    """What tells the deep-stem ResNets apart.

    Attributes:
        blocks: in each of the four stages.
        block: timm's class of them.
        relative: the nearest network of timm, which has this stem and bottlenecks.
        file: what the released code calls the file of its ImageNet classifier.
    """

    blocks: tuple[int, int, int, int]
    block: type[nn.Module]
    relative: str
    file: str

    @property
    def is_timms(self) -> bool:
        """Whether timm has this very network, and with it ImageNet weights."""
        return self.block is Bottleneck


DEEP_RESNETS = {
    "resnet18_deep": DeepResNet((2, 2, 2, 2), BasicBlock, "resnet50s", "resnet18-imagenet.pth"),
    "resnet50_deep": DeepResNet((3, 4, 6, 3), Bottleneck, "resnet50s", "resnet50_v2.pth"),
    "resnet101_deep": DeepResNet((3, 4, 23, 3), Bottleneck, "resnet101s", "resnet101_v2.pth"),
}
"""The deep-stem ResNets by name."""


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

    Args:
        name: one of :data:`DEEP_RESNETS`.
        output_stride: 4, 8 (as published) or 16.
        dilation: see :func:`dilate`.
        imagenet: start from ImageNet weights: those of `weights_file`, or timm's `resnet50s` and `resnet101s`, which
            are the same networks. (The released code starts from files of its own, which are published nowhere.)
        weights_file: a classifier with the names of the semseg code line (`conv1`, `bn1`, …, `bn3`, `layer1` to
            `layer4`, `fc`), as safetensors or torch checkpoint.

    Raises:
        RuntimeError: ImageNet weights that are not to be had or do not fit.

    Example:
        >>> import torch
        >>> early, late = create_deep_resnet("resnet18_deep")(torch.zeros(2, 3, 33, 65))
        >>> early.shape, late.shape
        (torch.Size([2, 256, 5, 9]), torch.Size([2, 512, 5, 9]))
    """
    known = DEEP_RESNETS[name]
    arguments = {"features_only": True, "out_indices": (3, 4), "zero_init_last": False}
    if imagenet and not weights_file and not known.is_timms:
        raise RuntimeError(
            f"weights='imagenet' for backbone '{name}': no package and no hub is known to have them. Give a file as "
            "weights_file (--network.weights-file): an ImageNet classifier with this stem and the names of the semseg "
            f"code line, which the released code calls {known.file}. Or use weights='none' (--network.weights none), "
            "resnet50_deep (timm has its weights), or resnet18, whose stem is another"
        )
    if imagenet and not weights_file:
        network = create_with_timm_weights(known.relative, **arguments)
    else:
        network = timm.create_model(known.relative, block=known.block, layers=known.blocks, **arguments)
    if weights_file:
        try:
            matched = match_tensors(
                read_tensors(weights_file), network.state_dict(), semseg_backbone_name, left_out=("fc.",)
            )
        except (RuntimeError, OSError) as error:
            raise RuntimeError(f"weights_file {weights_file} for backbone '{name}': {error}") from error
        network.load_state_dict(matched, strict=True)
    dilate(network, output_stride, dilation)
    return network


def dilate(network: nn.Module, output_stride: int, dilation: Dilation = "one_conv") -> None:
    """Replace a ResNet's strides beyond `output_stride` by dilated 3×3 convolutions, in place.

    Both rules are the released code's, where every output stride is 8. Each stage that loses its stride doubles the
    dilation (at stride 8: 2 in `layer3`, 4 in `layer4`).

    - `"one_conv"`: on one convolution of each block, the first of a basic block, the middle one of a bottleneck. The
      second convolution of a basic block stays undilated.
    - `"all_convs"`: on every 3×3 convolution, except that the one that had the stride keeps the dilation of the stage
      before. The released code takes this rule when there are 60 classes (PASCAL-Context); it is timm's as well.

    Weights fit either way, so a checkpoint does not tell which rule it was trained with.

    Args:
        network: with `layer2` to `layer4` of timm's blocks, not dilated yet.
        output_stride: 4, 8, 16 or 32.
        dilation: the rule.
    """
    stride, rate = 4, 1
    for stage in (network.layer2, network.layer3, network.layer4):
        if stride < output_stride:
            stride *= 2
            continue
        before, rate = rate, 2 * rate
        for number, block in enumerate(stage):
            if block.downsample is not None:
                block.downsample[0].stride = (1, 1)
            convs = [m for m in block.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
            for place, conv in enumerate(convs):
                if dilation == "one_conv":
                    own = rate if place == 0 else 1
                else:
                    own = before if number == place == 0 else rate
                conv.stride, conv.dilation, conv.padding = (1, 1), (own, own), (own, own)


def semseg_backbone_name(name: str) -> str:
    """The semseg code line's name, in its ImageNet classifiers, for a tensor of these networks.

    Example:
        >>> semseg_backbone_name("conv1.3.weight"), semseg_backbone_name("layer1.0.bn1.bias")
        ('conv2.weight', 'layer1.0.bn1.bias')
    """
    for ours, theirs in _STEM.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


_STEM = {"conv1.0.": "conv1.", "conv1.1.": "bn1.", "conv1.3.": "conv2.", "conv1.4.": "bn2.", "conv1.6.": "conv3."} | {
    "bn1.": "bn3."
}
