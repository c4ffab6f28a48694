"""Files of weights: reading one without running what it may contain, and matching its tensors by name, strictly."""

from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors.torch import load_file
from torch import Tensor

COUNTER = ".num_batches_tracked"
_TORCH_BEGINNINGS = (b"PK\x03\x04", b"\x80")  # a zip archive since torch 1.6, a pickle before


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Names and tensors of a safetensors file or of a torch checkpoint, on the CPU; told apart by their first bytes.

    A torch checkpoint is read with `weights_only=True`, so that nothing in it is executed. It may hold the tensors
    themselves or, as training scripts save them, a mapping with the tensors under `state_dict`. A `module.` in front
    of every name, left by data-parallel wrappers, is taken off.

    Raises:
        FileNotFoundError: there is no such file.
        RuntimeError: the file is damaged, holds other objects than tensors and plain values, or no tensors by name.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     content = {"epoch": 3, "state_dict": {"module.cls.0.bias": torch.zeros(2)}}
        ...     torch.save(content, f"{folder}/epoch_3.pth")
        ...     read_tensors(f"{folder}/epoch_3.pth")
        {'cls.0.bias': tensor([0., 0.])}
    """
    with open(path, "rb") as file:
        start = file.read(9)
    # a safetensors file starts with eight bytes of length, which can be any, and then "{"
    if start.startswith(_TORCH_BEGINNINGS) and start[8:] != b"{":
        tensors = _state_dict_of(_load_checkpoint(path))
    else:
        try:
            tensors = load_file(path)
        except Exception as error:  # safetensors raises types of its own
            raise RuntimeError(
                f"the file does not begin like a torch checkpoint and cannot be read as safetensors: {error}"
            ) from error
    prefix = "module."
    if tensors and all(name.startswith(prefix) for name in tensors):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _load_checkpoint(path: str | Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise RuntimeError(
            "the file holds more than tensors and plain values, and is not unpickled, because that can run any code. "
            "Where you trust it, save its tensors alone: "
            "torch.save(torch.load(FILE, weights_only=False)['state_dict'], NEW_FILE). "
            f"({error!s:.200})"
        ) from error
    except Exception as error:  # a damaged file fails in whatever way its broken bytes lead to
        raise RuntimeError(
            f"the file cannot be read as a torch checkpoint: {type(error).__name__}: {error!s:.200}"
        ) from error


def _state_dict_of(content: object) -> dict[str, Tensor]:
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise RuntimeError(f"the file holds a {type(content).__name__}, expected tensors by name")
    for name, value in content.items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            raise RuntimeError(
                f"the file holds a {type(value).__name__} under {name!r}, expected tensors by name, or such a mapping "
                "under 'state_dict'"
            )
    return dict(content)


def match_tensors(
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    their_name: Callable[[str], str] = str,
    *,
    left_out: tuple[str, ...] = (),
) -> dict[str, Tensor]:
    """A file's tensors under a network's names, when they agree one to one in name and shape.

    The counters of batch norms (`num_batches_tracked`) may be missing all together, as in files older than they are;
    nothing here reads them, and they start at 0 then.

    Args:
        tensors: the file's, by its names.
        expected: the network's, by its names; only their shapes and dtypes are looked at.
        their_name: the file's name for one of the network's (default: the same).
        left_out: beginnings of the file's names that are known and not wanted, such as a classifier's.

    Raises:
        RuntimeError: a tensor of either side has no partner, or a shape differs; the first are told by the file's
            names.

    Example:
        >>> match_tensors({"fc.bias": torch.ones(2)}, {"head.bias": torch.zeros(2)}, lambda name: f"fc{name[4:]}")
        {'head.bias': tensor([1., 1.])}
    """
    names = {ours: their_name(ours) for ours in expected}
    has_counters = any(name.endswith(COUNTER) for name in tensors)
    missing, misshaped, matched = [], [], {}
    for ours, theirs in names.items():
        wanted = expected[ours]
        if theirs not in tensors and theirs.endswith(COUNTER) and not has_counters:
            matched[ours] = torch.zeros(wanted.shape, dtype=wanted.dtype)
        elif theirs not in tensors:
            missing.append(f"{theirs} is missing")
        elif tensors[theirs].shape != wanted.shape:
            misshaped.append(f"{theirs} is {tuple(tensors[theirs].shape)}, expected {tuple(wanted.shape)}")
        else:
            matched[ours] = tensors[theirs]
    known = set(names.values())
    unknown = [f"{name} is unknown" for name in tensors if name not in known and not name.startswith(left_out)]
    if problems := missing + unknown + misshaped:
        told = "1 tensor differs:" if len(problems) == 1 else f"{len(problems)} tensors differ, first"
        raise RuntimeError(f"{told} {'; '.join(problems[:3])}")
    return matched
