"""torchvision's ImageNet weights for networks that timm builds alike, by an explicit, checked mapping of names."""

from collections.abc import Callable

from torch import Tensor, nn

from apd.models.weight_files import match_tensors

# torchvision numbers a block's layers; the first stage has no expansion, so its layers move up by one
_STEM = {"conv_stem": "0.0", "bn1": "0.1"}
_MOBILE_FIRST = {"conv_dw": "0.0", "bn1": "0.1", "conv_pw": "1", "bn2": "2"}
_MOBILE = {"conv_pw": "0.0", "bn1": "0.1", "conv_dw": "1.0", "bn2": "1.1", "conv_pwl": "2", "bn3": "3"}
_EFFICIENT_FIRST = {"conv_dw": "0.0", "bn1": "0.1", "conv_pw": "2.0", "bn2": "2.1"} | {
    "se.conv_reduce": "1.fc1",
    "se.conv_expand": "1.fc2",
}
_EFFICIENT = {"conv_pw": "0.0", "bn1": "0.1", "conv_dw": "1.0", "bn2": "1.1", "conv_pwl": "3.0", "bn3": "3.1"} | {
    "se.conv_reduce": "2.fc1",
    "se.conv_expand": "2.fc2",
}


def _resnet_name(name: str, network: nn.Module) -> str:
    return name


def _mobilenet_name(name: str, network: nn.Module) -> str:
    path, leaf = name.rsplit(".", 1)
    if path in _STEM:
        return f"features.{_STEM[path]}.{leaf}"
    stage, block, layer = _place(path)
    number = 1 + sum(len(earlier) for earlier in network.blocks[:stage]) + block  # counted through all stages
    return f"features.{number}.conv.{(_MOBILE if stage else _MOBILE_FIRST)[layer]}.{leaf}"


def _efficientnet_name(name: str, network: nn.Module) -> str:
    path, leaf = name.rsplit(".", 1)
    if path in _STEM:
        return f"features.{_STEM[path]}.{leaf}"
    stage, block, layer = _place(path)
    return f"features.{stage + 1}.{block}.block.{(_EFFICIENT if stage else _EFFICIENT_FIRST)[layer]}.{leaf}"


def _place(path: str) -> tuple[int, int, str]:
    """Stage, block and layer of timm's `blocks.1.0.se.conv_reduce`."""
    _, stage, block, layer = path.split(".", 3)
    return int(stage), int(block), layer


# timm's name: torchvision's name of the weights, its name for one of timm's tensors, and what belongs to the classifier
_Known = tuple[str, Callable[[str, nn.Module], str], tuple[str, ...]]
TORCHVISION_WEIGHTS: dict[str, _Known] = {
    "resnet18": ("ResNet18_Weights.IMAGENET1K_V1", _resnet_name, ("fc.",)),
    "resnet34": ("ResNet34_Weights.IMAGENET1K_V1", _resnet_name, ("fc.",)),
    "resnet50": ("ResNet50_Weights.IMAGENET1K_V1", _resnet_name, ("fc.",)),
    "resnet101": ("ResNet101_Weights.IMAGENET1K_V1", _resnet_name, ("fc.",)),
    "mobilenetv2_100": ("MobileNet_V2_Weights.IMAGENET1K_V1", _mobilenet_name, ("features.18.", "classifier.")),
    "efficientnet_b0": ("EfficientNet_B0_Weights.IMAGENET1K_V1", _efficientnet_name, ("features.8.", "classifier.")),
}
"""Networks of timm that torchvision has weights for; all were trained with ImageNet's usual mean and deviation."""


def torchvision_state_dict(checkpoint: dict[str, Tensor], network: nn.Module, name: str) -> dict[str, Tensor]:
    """torchvision's classifier under the names of timm's feature network `name`, strictly.

    Raises:
        RuntimeError: a tensor of either side has no partner, or a shape differs.
    """
    _, their_name, left_out = TORCHVISION_WEIGHTS[name]
    return match_tensors(checkpoint, network.state_dict(), lambda ours: their_name(ours, network), left_out=left_out)


def load_torchvision_weights(network: nn.Module, name: str) -> None:
    """Fill timm's feature network with torchvision's ImageNet weights, downloaded once or from the local cache.

    Raises:
        ValueError: torchvision has no such network.
        RuntimeError: the weights could not be obtained or do not fit.
    """
    if name not in TORCHVISION_WEIGHTS:
        raise ValueError(
            f"weights: got 'torchvision' for backbone {name!r}, expected one of {', '.join(TORCHVISION_WEIGHTS)}; "
            "'imagenet' takes an offline package's weights or timm's"
        )
    from torchvision.models import get_weight

    entry = get_weight(TORCHVISION_WEIGHTS[name][0])
    try:
        checkpoint = entry.get_state_dict(map_location="cpu", progress=False, check_hash=True, weights_only=True)
        network.load_state_dict(torchvision_state_dict(checkpoint, network, name), strict=True)
    except (RuntimeError, OSError) as error:  # urllib's errors are OSErrors
        raise RuntimeError(
            f"weights='torchvision' for backbone {name!r}: tried {entry} ({entry.url}), and failed: "
            f"{type(error).__name__}: {error}. Once downloaded, the file is found in torch's cache "
            "(torch.hub.get_dir()). Without a network, use weights='none' (--network.weights none) or a backbone whose "
            "weights come in a package, such as efficientnet_lite0"
        ) from error
