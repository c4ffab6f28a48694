"""Dilated feature extractors: timm's networks and the published deep-stem ResNets, last stages at stride 4, 8 or 16."""

from pathlib import Path
from typing import Literal, NamedTuple, get_args

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from apd.fields import did_you_mean
from apd.models import pretrained
from apd.validation import check_choice

Dilation = Literal["one_conv", "all_convs"]
Weights = Literal["none", "imagenet", "torchvision"]

_SUITABLE = "choose a convolutional network that can be dilated, such as mobilenetv2_050, efficientnet_b0, resnet18"

DEEP_RESNETS = {
    "resnet18_deep": {"block": BasicBlock, "layers": (2, 2, 2, 2)},
    "resnet50_deep": {"block": Bottleneck, "layers": (3, 4, 6, 3)},
    "resnet101_deep": {"block": Bottleneck, "layers": (3, 4, 23, 3)},
}
"""The deep-stem ResNets by name: timm's class of their blocks, and how many the four stages have."""

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

    Convolutions start from Kaiming's normal values and batch norms as identities, as in the released code.
    `name` is one of :data:`DEEP_RESNETS`, `output_stride` 4, 8 (as published) or 16. With `imagenet` it starts from
    `weights_file`, a classifier with the names of the semseg code line, or from timm's `resnet50s` or `resnet101s`,
    which are the same networks (the released code's own files are published nowhere); a RuntimeError without.
    """
    arguments = {"features_only": True, "out_indices": (3, 4), "zero_init_last": False}
    if imagenet and not weights_file:
        if DEEP_RESNETS[name]["block"] is not Bottleneck:  # timm has no such network with this stem
            why = f"weights='imagenet' for backbone '{name}': no package and no hub is known to have them"
            fix = "a file as weights_file (--network.weights-file), the semseg code line's resnet18-imagenet.pth"
            other = "weights='none' (--network.weights none), resnet50_deep or resnet18"
            raise RuntimeError(f"{why}. Give {fix}, or use {other}")
        network = pretrained.create_with_timm_weights(name.replace("_deep", "s"), **arguments)
    else:
        network = timm.create_model("resnet50s", **DEEP_RESNETS[name], **arguments)
    if weights_file:
        try:
            tensors, _ = pretrained.read_tensors(weights_file)
            layers = {name: name.rpartition(".") for name in network.state_dict()}
            theirs = {name: f"{_STEM.get(layer, layer)}.{leaf}" for name, (layer, _, leaf) in layers.items()}
            matched = pretrained.match_tensors(tensors, network.state_dict(), theirs.get, left_out=("fc.",))
        except RuntimeError as error:
            raise RuntimeError(f"weights_file {weights_file!s:.200} for backbone '{name}': {error}") from error
        network.load_state_dict(matched, strict=True)
    dilate(network, output_stride, dilation)
    return network


def dilate(network: nn.Module, output_stride: int, dilation: Dilation = "one_conv") -> None:
    """Replace a ResNet's strides beyond `output_stride` by dilated 3×3 convolutions, in place.

    Both rules are the released code's. Each stage that loses its stride doubles the dilation.

    - `"one_conv"`: on one convolution of each block, the first of a basic block, the middle one of a bottleneck.
    - `"all_convs"`: on every 3×3 convolution, except that the one that had the stride keeps the dilation of the stage
      before. The released code takes this rule when there are 60 classes (PASCAL-Context); it is timm's as well.
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


class Backbone(NamedTuple):
    """A feature network: normalised images `B 3 H W` → the maps of the last two stages, earlier one first.

    `channels` are the last stage's, `aux_channels` those of the one before. `mean` and `std` are for images in [0, 1].
    """

    network: nn.Module
    channels: int
    aux_channels: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def create_backbone(
    name: str,
    *,
    output_stride: int = 8,
    weights: Weights = "none",
    dilation: Dilation = "one_conv",
    weights_file: str | Path = "",
) -> Backbone:
    """Build a network that gives feature maps at the wanted stride, its late stages dilated instead of strided.

    Of the published study's five backbones, all at stride 8, the deep-stem ResNets are the released code's, and two are
    timm's, which differ: MobileNetV2 is dilated in every block after a removed stride, by 2 and then 4 (there: in the
    first block of each late stage, by 2, 2, 4, 4); `efficientnet_b0` gives the heads 320 and 112 channels (1280, 192).

    Args:
        name: a deep-stem ResNet, or any timm name that offers `features_only` and `output_stride`; `efficientnet_lite0`
            to `2` are always timm's `tf_` variants, with which their offline weights were trained.
        output_stride: 8 (as published), 16, or 4 (for small images; not every network can).
        weights: "none" (random), "imagenet" (an offline package's where there is one, else timm's), or "torchvision".
        dilation: rule of the deep-stem ResNets, see :func:`~apd.models.backbones.dilate`. timm has one of its own.
        weights_file: ImageNet weights for a deep-stem ResNet, see :func:`~apd.models.backbones.create_deep_resnet`.

    What a backbone cannot have is a ValueError; weights that cannot be obtained or do not fit are a RuntimeError.
    """
    check_choice("output_stride", output_stride, (4, 8, 16))
    check_choice("weights", weights, get_args(Weights))
    check_choice("dilation", dilation, get_args(Dilation))
    if weights_file and weights != "imagenet":
        raise ValueError(f"weights_file: got {str(weights_file)!r} beside weights={weights!r}, expected 'imagenet'")
    mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    if name in DEEP_RESNETS:
        if weights == "torchvision":
            raise ValueError(f"weights: got 'torchvision' for backbone {name!r}, whose stem torchvision does not have")
        arguments = dict(dilation=dilation, imagenet=weights == "imagenet", weights_file=weights_file)
        network = create_deep_resnet(name, output_stride=output_stride, **arguments)
    else:
        ours = ", ".join(DEEP_RESNETS)
        if not isinstance(name, str) or not timm.is_model(name):
            expected = f"{ours} or a network of timm {timm.__version__}, as timm.list_models() lists them"
            hint = did_you_mean(name, [*DEEP_RESNETS, *timm.list_models()])
            raise ValueError(f"backbone: got {name!r}, expected {expected}{hint}")
        for option, value, default in (("dilation", dilation, "one_conv"), ("weights_file", str(weights_file), "")):
            if value != default:
                raise ValueError(f"{option}: got {value!r} for backbone {name!r}, but only {ours} take it")
        arguments = {"features_only": True, "output_stride": output_stride, "out_indices": (-2, -1)}
        offline = name in pretrained.OFFLINE_WEIGHTS
        structure = f"tf_{name}" if offline else name
        try:
            network = timm.create_model(structure, pretrained=False, **arguments)
        except Exception as error:  # networks without the option fail in many ways, some with a bare assertion
            reason = f"{type(error).__name__}: {str(error) or 'its strides are fixed, timm does not dilate it'}"
            what = f"backbone: timm cannot build {structure!r} for feature maps at output stride {output_stride}"
            raise ValueError(f"{what} ({reason}); {_SUITABLE}") from error
        _check_stride(network, name, output_stride)  # before any download
        if weights == "torchvision" or (weights == "imagenet" and offline):
            pretrained.fill_from_classifier(network, name, weights)
        elif weights == "imagenet":
            network = pretrained.create_with_timm_weights(structure, **arguments)
        if offline:
            mean, std = pretrained.OFFLINE_MEAN, pretrained.OFFLINE_STD
        elif (known := timm.get_pretrained_cfg(name)) and weights != "torchvision":
            mean, std = tuple(known.mean), tuple(known.std)
    aux_channels, channels = network.feature_info.channels()
    return Backbone(network, channels, aux_channels, mean, std)


@torch.no_grad()
def _check_stride(network: nn.Module, name: str, output_stride: int) -> None:
    """Run once on zeros: what a network declares about its maps is not always what it gives."""
    network.eval()
    maps = network(torch.zeros(1, 3, 64, 96))
    network.train()
    got = tuple(maps[-1].shape[1:])
    expected = (network.feature_info.channels()[-1], 64 // output_stride, 96 // output_stride)
    if len(maps) != 2 or got != expected:
        wanted = f"expected {expected} at output stride {output_stride}; {_SUITABLE}"
        raise ValueError(f"backbone: {name!r} gives a map of shape {got} for an image of 64×96, {wanted}")
