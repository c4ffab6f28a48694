"""timm networks as dilated feature extractors: the two last stages at output stride 4, 8 or 16."""

import difflib
from dataclasses import dataclass
from typing import Literal

import timm
import torch
from torch import nn

from apd.models.weights import OFFLINE_WEIGHTS, create_with_timm_weights, load_offline_weights

Weights = Literal["none", "imagenet"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_SUITABLE = "choose a convolutional network that can be dilated, such as mobilenetv2_050 or resnet18"


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


def create_backbone(name: str, *, output_stride: int = 8, weights: Weights = "none") -> Backbone:
    """Build a timm network that gives feature maps at the wanted stride, its late stages dilated instead of strided.

    Random initial values are timm's and come from torch's global generator. `efficientnet_lite0`, `1` and `2` are
    built with the structure that their offline weights were trained with (see `apd.models.weights`), with and without
    weights; timm's other variants can be had by their own names, such as `efficientnet_lite0.ra_in1k`.

    Args:
        name: any timm name, with or without tag, that offers `features_only` and `output_stride`.
        output_stride: 8 (as published), 16, or 4 (for small pictures; not every network can).
        weights: "none" (random) or "imagenet".

    Raises:
        ValueError: unknown name (the nearest ones are given), a stride or weights other than the ones offered, or a
            network that cannot be dilated to that stride.
        RuntimeError: ImageNet weights that cannot be obtained or do not fit.

    Example:
        >>> backbone = create_backbone("mobilenetv2_050", output_stride=16)
        >>> backbone.channels, backbone.aux_channels
        (160, 48)
    """
    if output_stride not in (4, 8, 16):
        raise ValueError(f"output_stride: got {output_stride!r}, expected 4, 8 or 16")
    if weights not in ("none", "imagenet"):
        raise ValueError(f"weights: got {weights!r}, expected 'none' or 'imagenet'")
    if not isinstance(name, str) or not timm.is_model(name):
        nearest = difflib.get_close_matches(str(name), timm.list_models(), n=3, cutoff=0.5)
        hint = f"nearest: {', '.join(nearest)}" if nearest else "timm.list_models() lists all"
        raise ValueError(f"backbone: got {name!r}, expected a network of timm {timm.__version__}; {hint}")

    offline = OFFLINE_WEIGHTS.get(name)
    structure = offline.structure if offline else name
    arguments = {"features_only": True, "output_stride": output_stride, "out_indices": (-2, -1)}
    network = _create(structure, arguments)
    _check_stride(network, name, output_stride)  # before any download
    if weights == "imagenet" and offline:
        load_offline_weights(network, name)
    elif weights == "imagenet":
        network = create_with_timm_weights(structure, **arguments)

    aux_channels, channels = network.feature_info.channels()
    if offline:
        mean, std = offline.mean, offline.std
    else:
        cfg = timm.get_pretrained_cfg(name)
        mean, std = (cfg.mean, cfg.std) if cfg else (IMAGENET_MEAN, IMAGENET_STD)
    return Backbone(network, channels, aux_channels, tuple(mean), tuple(std))


def _create(name: str, arguments: dict[str, object]) -> nn.Module:
    try:
        return timm.create_model(name, pretrained=False, **arguments)
    except Exception as error:  # networks without the option fail in as many ways as timm has files
        raise ValueError(
            f"backbone: timm cannot build {name!r} for feature maps at output stride {arguments['output_stride']} "
            f"({type(error).__name__}: {error}); {_SUITABLE}"
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
            f"backbone: timm's {name!r} gives a map of shape {got} for an image of 64×96, expected {expected} at "
            f"output stride {output_stride}; {_SUITABLE}"
        )
