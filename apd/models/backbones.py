"""Dilated feature extractors, timm's networks and deep-stem ResNets: their two last stages at stride 4, 8 or 16."""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import timm
import torch
from torch import nn

from apd.models.pretrained import (
    OFFLINE_WEIGHTS,
    create_with_timm_weights,
    load_offline_weights,
    load_torchvision_weights,
)
from apd.models.resnet import DEEP_RESNETS, Dilation, create_deep_resnet

Weights = Literal["none", "imagenet", "torchvision"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_SUITABLE = (
    "choose a convolutional network that can be dilated, such as mobilenetv2_050, efficientnet_b0, resnet18 or "
    "resnet18_deep"
)


@dataclass(frozen=True)
class Backbone:
    """A feature network and what its users must know about it.

    Attributes:
        network: called with normalised images `B 3 H W`, gives the maps of the last two stages, earlier one first.
        channels: channels of the last stage.
        aux_channels: channels of the stage before.
        mean: what is subtracted from each channel of an image in [0, 1].
        std: what the difference is divided by, for each channel.
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

    Random initial values come from torch's global generator; for timm's networks they are timm's. `efficientnet_lite0`,
    `1` and `2` are built with the structure that their offline weights were trained with (see `apd.models.pretrained`),
    with and without weights; timm's other variants can be had by their own names, such as
    `efficientnet_lite0.ra_in1k`.

    The published study has five backbones, all at stride 8. How these here differ from the released code's:

    - `resnet18_deep`, `resnet50_deep`, `resnet101_deep` do not: stem, both dilation rules, 256 (1024) channels for the
      auxiliary head and 512 (2048) for the head are the same.
    - `mobilenetv2_100` and `mobilenetv2_050`, of timm, have the same strides and give the same maps: 320 (160)
      channels for the head, 96 (48) for the auxiliary head. timm dilates every block after a stride that was taken
      away, by 2 and then by 4; the released code dilates only the first block of each late stage, by 2, 2, 4 and 4.
    - `efficientnet_b0`, of timm, gives the last block's 320 channels to the head and the fifth stage's 112 to the
      auxiliary head; the released code gives 1280, after ImageNet's last 1×1 convolution, and 192, of block 11.

    Args:
        name: a deep-stem ResNet, or any timm name, with or without tag, that offers `features_only` and
            `output_stride`.
        output_stride: 8 (as published), 16, or 4 (for small pictures; not every network can).
        weights: "none" (random), "imagenet" (an offline package's where there is one, else timm's), or "torchvision"
            (torchvision's file, for the networks in `apd.models.pretrained`).
        dilation: rule of the deep-stem ResNets, see :func:`~apd.models.resnet.dilate`. timm has one of its own.
        weights_file: ImageNet weights for a deep-stem ResNet, see :func:`~apd.models.resnet.create_deep_resnet`.

    Raises:
        ValueError: unknown name (the nearest ones are given), an option other than the ones offered or one that this
            backbone does not take, or a network that cannot be dilated to that stride.
        RuntimeError: ImageNet weights that cannot be obtained or do not fit.

    Example:
        >>> backbone = create_backbone("mobilenetv2_050", output_stride=16)
        >>> backbone.channels, backbone.aux_channels
        (160, 48)
    """
    if output_stride not in (4, 8, 16):
        raise ValueError(f"output_stride: got {output_stride!r}, expected 4, 8 or 16")
    if weights not in get_args(Weights):
        raise ValueError(f"weights: got {weights!r}, expected 'none', 'imagenet' or 'torchvision'")
    if dilation not in get_args(Dilation):
        raise ValueError(f"dilation: got {dilation!r}, expected 'one_conv' or 'all_convs'")
    if weights_file and weights != "imagenet":
        raise ValueError(f"weights_file: got {str(weights_file)!r} beside weights={weights!r}, expected 'imagenet'")
    if name in DEEP_RESNETS:
        if weights == "torchvision":
            raise ValueError(f"weights: got 'torchvision' for backbone {name!r}, whose stem torchvision does not have")
        network = create_deep_resnet(
            name,
            output_stride=output_stride,
            dilation=dilation,
            imagenet=weights == "imagenet",
            weights_file=weights_file,
        )
        _check_stride(network, name, output_stride)
        return _backbone(network, IMAGENET_MEAN, IMAGENET_STD)

    if not isinstance(name, str) or not timm.is_model(name):
        nearest = difflib.get_close_matches(str(name), [*DEEP_RESNETS, *timm.list_models()], n=3, cutoff=0.5)
        hint = f"nearest: {', '.join(nearest)}" if nearest else "timm.list_models() lists all"
        ours = ", ".join(DEEP_RESNETS)
        raise ValueError(f"backbone: got {name!r}, expected {ours} or a network of timm {timm.__version__}; {hint}")
    for option, value, default in (("dilation", dilation, "one_conv"), ("weights_file", str(weights_file or ""), "")):
        if value != default:
            raise ValueError(
                f"{option}: got {value!r} for backbone {name!r}, but only {', '.join(DEEP_RESNETS)} take it"
            )
    return _timm_backbone(name, output_stride, weights)


def _timm_backbone(name: str, output_stride: int, weights: Weights) -> Backbone:
    offline = OFFLINE_WEIGHTS.get(name)
    structure = offline.structure if offline else name
    arguments = {"features_only": True, "output_stride": output_stride, "out_indices": (-2, -1)}
    network = _create(structure, arguments)
    _check_stride(network, name, output_stride)  # before any download
    if weights == "torchvision":
        load_torchvision_weights(network, name)
        return _backbone(network, IMAGENET_MEAN, IMAGENET_STD)
    if weights == "imagenet" and offline:
        load_offline_weights(network, name)
    elif weights == "imagenet":
        network = create_with_timm_weights(structure, **arguments)
    if offline:
        return _backbone(network, offline.mean, offline.std)
    cfg = timm.get_pretrained_cfg(name)
    return _backbone(network, cfg.mean if cfg else IMAGENET_MEAN, cfg.std if cfg else IMAGENET_STD)


def _backbone(network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> Backbone:
    aux_channels, channels = network.feature_info.channels()
    return Backbone(network, channels, aux_channels, tuple(mean), tuple(std))


def _create(name: str, arguments: dict[str, object]) -> nn.Module:
    try:
        return timm.create_model(name, pretrained=False, **arguments)
    except Exception as error:  # networks without the option fail in as many ways as timm has files
        # some of them with a bare assertion that the stride is 32
        told = str(error) or "its strides are fixed, timm does not dilate it"
        raise ValueError(
            f"backbone: timm cannot build {name!r} for feature maps at output stride {arguments['output_stride']} "
            f"({type(error).__name__}: {told}); {_SUITABLE}"
        ) from error


@torch.no_grad()
def _check_stride(network: nn.Module, name: str, output_stride: int) -> None:
    """Run once on zeros: what a network declares about its maps is not always what it gives."""
    device = next(network.parameters()).device
    network.eval()
    maps = network(torch.zeros(1, 3, 64, 96, device=device))
    network.train()
    got = tuple(maps[-1].shape[1:])
    expected = (network.feature_info.channels()[-1], 64 // output_stride, 96 // output_stride)
    if len(maps) != 2 or got != expected:
        raise ValueError(
            f"backbone: {name!r} gives a map of shape {got} for an image of 64×96, expected {expected} at "
            f"output stride {output_stride}; {_SUITABLE}"
        )
