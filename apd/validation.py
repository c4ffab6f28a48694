"""What the method's functions and modules check of what they are given: settings, maps, labels, and what they hold.

Types and shapes are checked at every call. Values are read in every call on a CPU and elsewhere in a module's first
call only, since reading one waits for the device; a compiled graph does not read them.
"""

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import combinations
from numbers import Integral, Real

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

MOST = 2**20  # largest count that a setting may have (own choice): beyond it, memory ends before anything is computed
WIDEST = 2**14  # largest width of a projection head (own choice): its second convolution takes 1 GiB here
RULED_OUT = -1e30  # stands for a teacher's logit of -inf, and unlike it may be averaged, interpolated, multiplied by 0
BINARY = (
    "a binary network of one sigmoid channel z has the two classes of apd.two_channel_logits(z): pass those of both "
    "networks, with num_classes=2 and labels 0 and 1 (of masks 0 and 255: (masks > 0).long())"
)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ``ValueError`` naming argument and choices when ``value`` is none of them."""
    if value not in choices:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(map(repr, choices))}")


def check_count(name: str, value: int, most: int = MOST) -> int:
    """``value`` as an int; ``ValueError`` naming it unless it is an integer, Python's or NumPy's, in 1 .. ``most``."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r}: expected a positive integer")
    if value > most:
        raise ValueError(f"{name}={value}: expected at most {most}")
    return int(value)


def check_positive(name: str, value: float, *, or_zero: bool = False) -> None:
    """Raise naming the argument unless ``value`` is a finite number above 0, or 0 where that is allowed."""
    expected = "a finite number, 0 or greater" if or_zero else "a positive number"
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}: expected {expected}")
    if not (math.isfinite(value) and (value > 0 or (or_zero and value == 0))):
        raise ValueError(f"{name}={value}: expected {expected}")


def check_ignore_index(ignore_index: int, num_classes: int = 0) -> int:
    """``ignore_index`` as an int; an error naming it unless it is an integer and no class of ``num_classes``."""
    if not isinstance(ignore_index, Integral) or isinstance(ignore_index, bool):
        raise TypeError(f"ignore_index={ignore_index!r} is a {type(ignore_index).__name__}: expected an integer")
    if 0 <= ignore_index < num_classes:
        raise ValueError(
            f"ignore_index={ignore_index} is one of the classes 0..{num_classes - 1} (num_classes={num_classes}), "
            "which would count nowhere; choose a label that is none, such as -1, and give it to the pixels to ignore"
        )
    return int(ignore_index)


def check_map(name: str, value: Tensor) -> None:
    """Raise when ``value`` is not a floating (batch, channels, height, width) tensor with at least one element."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}: expected a tensor (batch, channels, height, width)")
    if value.ndim != 4 or 0 in value.shape:
        hint = (
            "; tokens (batch, tokens, channels) become a map by tokens[:, prefix:].mT.unflatten(2, (h, w)), or by "
            "apd.tokens_to_map(tokens, (H, W), prefix_tokens=prefix), where prefix counts the CLS and register tokens"
        )
        expected = "expected four non-empty axes (batch, channels, height, width)"
        raise ValueError(f"{name} has shape {tuple(value.shape)}: {expected}{hint if value.ndim == 3 else ''}")
    if not value.is_floating_point():
        raise TypeError(f"{name} has dtype {value.dtype}: expected a floating dtype")


def check_labels(labels_BHW: Tensor, batch: int) -> None:
    """Raise when ``labels_BHW`` is not an integer (batch, height, width) tensor of ``batch`` images."""
    if not isinstance(labels_BHW, Tensor):
        raise TypeError(f"labels is a {type(labels_BHW).__name__}: expected an integer tensor (batch, height, width)")
    if labels_BHW.ndim != 3 or 0 in labels_BHW.shape:
        hint = "; use labels.squeeze(1)" if labels_BHW.ndim == 4 and labels_BHW.shape[1] == 1 else ""
        raise ValueError(
            f"labels has shape {tuple(labels_BHW.shape)}: expected three non-empty axes (batch, height, width){hint}"
        )
    if labels_BHW.is_floating_point() or labels_BHW.is_complex() or labels_BHW.dtype == torch.bool:
        raise TypeError(f"labels has dtype {labels_BHW.dtype}: expected class indices as uint8 or a signed integer")
    if labels_BHW.shape[0] != batch:
        raise ValueError(f"labels holds {labels_BHW.shape[0]} images but the maps hold {batch}: the batches must agree")


def check_present(present_BK: Tensor, shape: tuple[int, ...]) -> None:
    """Raise unless ``present_BK`` is boolean and of that shape."""
    if present_BK.dtype != torch.bool or present_BK.shape != shape:
        raise ValueError(
            f"present is {present_BK.dtype} of shape {tuple(present_BK.shape)}: expected torch.bool of {tuple(shape)}"
        )


def _of_one_image(first: tuple[int, int], second: tuple[int, int], *, is_image: bool = False) -> bool:
    """Whether two grids (height, width) can lie on one image, each with the stride of its network in both axes.

    Each axis is off by less than a cell of its own grid (of the second not, where that is the image's), so the ratio of
    the grids has an interval in each axis, and they must overlap. The image may have been padded to whole patches of
    the usual sizes. The longer side stays the longer, which is asked of grids of 8 cells or more.
    """
    (h, w), (H, W) = first, second
    if h * w > H * W:
        (h, w), (H, W), is_image = second, first, False
    if min(h, w) >= 8 and (h - w) * (H - W) < 0:
        return False
    off = 0 if is_image else 1
    for patch in (1, 8, 14, 16, 32):
        if patch > max(1, min(H, W) // 4) and not (is_image and patch > min(H, W)):
            continue
        rows, columns = -(-H // patch) * patch, -(-W // patch) * patch
        if (h - 1) * (columns - off) < (w + 1) * (rows + off) and (w - 1) * (rows - off) < (h + 1) * (columns + off):
            return True
    return False


def check_grids(values: Mapping[str, Tensor]) -> None:
    """Raise ``ValueError`` when the (height, width) of two of the maps and labels cannot be those of one image."""
    for (first_name, first), (second_name, second) in combinations(values.items(), 2):
        (h, w), (H, W) = first.shape[-2:], second.shape[-2:]
        if (h == H and w == W) or _of_one_image((h, w), (H, W), is_image=second_name == "labels"):
            continue
        fix = "show both networks the same crop, that of the labels; resize a map first that is squeezed on purpose"
        if _of_one_image((w, h), (H, W)):
            axes = "(batch, height, width)" if second_name == "labels" else "(batch, channels, height, width)"
            whose = second_name if second_name == "labels" else f"{first_name} or {second_name}"
            fix = f"they fit once the last two axes of {whose} are swapped, by .mT: expected {axes}"
        raise ValueError(
            f"{first_name} is {h} x {w} (height x width) but {second_name} is {H} x {W}: their aspect ratios "
            f"contradict each other; {fix}"
        )


def check_trained(module: nn.Module, name: str, value: Tensor) -> None:
    """Raise ``ValueError`` when ``module`` is to train a student through a map that has no gradient."""
    if module.training and torch.is_grad_enabled() and not value.requires_grad:
        raise ValueError(
            f"{name} does not require a gradient, so the student would learn nothing from it: it was computed under "
            "no_grad, detached, or tapped inside torch.utils.checkpoint (needs use_reentrant=False); compute it with "
            f"gradient, or, only to measure, call {type(module).__name__} in eval() mode or under torch.no_grad()"
        )


_reading = True
NON_FINITE = "its network has diverged, overflowed in half precision, or was given such an image"


@contextmanager
def values_unchecked() -> Iterator[None]:
    """Inside, the values of maps are not read: for a loop that stops by itself where a loss is not finite."""
    global _reading
    before, _reading = _reading, False
    try:
        yield
    finally:
        _reading = before


def has_values(tensor: Tensor) -> bool:
    """Whether values can be read: not while a graph is traced, nor where shapes alone are computed."""
    return not (torch.compiler.is_compiling() or tensor.is_meta or isinstance(tensor, FakeTensor))


def _total(values: Tensor) -> float:
    return float(values.detach().sum(dtype=torch.promote_types(values.dtype, torch.float32)))


def _check_features(name: str, value: Tensor) -> None:
    """Raise unless every vector is finite and has a length."""
    dtype = torch.promote_types(value.dtype, torch.float32)
    if not math.isfinite(torch.linalg.vector_norm(value.detach(), dtype=dtype)):
        if not value.isfinite().all():
            raise ValueError(f"{name} holds NaN or an infinity: {NON_FINITE}")
        raise ValueError(f"{name} holds values up to {value.abs().max():.1e}: the lengths of such vectors overflow")


def _check_logits(name: str, value: Tensor) -> None:
    """Raise for NaN and infinities; -inf is allowed to a teacher, for a class that it rules out."""
    if math.isfinite(_total(value)):
        return
    allowed = -math.inf if name.startswith("teacher") else None
    if not (value.isfinite() | (value == allowed if allowed else False)).all():
        raise ValueError(f"{name} holds NaN or {'+inf' if allowed else 'an infinity'}: {NON_FINITE}")
    if (value == -math.inf).all(1).any():
        raise ValueError(f"{name} is -inf for every class of a pixel: at least one has to be left to it")


def _are_probabilities(logits_BKhw: Tensor) -> bool:
    """Whether the channels lie in 0 .. 1 and sum to 1, within what bfloat16 rounds. One corner decides most maps."""
    for values in (logits_BKhw[:, :, :1, :1], logits_BKhw):
        if logits_BKhw.shape[1] < 2 or values.amin() < 0 or (values.sum(1) - 1).abs().amax() > 0.01:
            return False
    return True


def check_values(module: nn.Module | None, maps: Mapping[str, Tensor]) -> None:
    """Raise for maps that are not finite, and warn, once for each name, of logits that are probabilities."""
    if torch.compiler.is_compiling() or not _reading:
        return
    state = {} if module is None else module.__dict__
    first = module is not None and not state.get("_has_read", False)
    for name, value in maps.items():
        if not has_values(value) or not (value.is_cpu or first):
            continue
        (_check_logits if name.endswith("logits") else _check_features)(name, value)
        if not name.endswith("logits"):
            continue
        warned = state.get("_warned", frozenset())
        if module is not None and name not in warned and _are_probabilities(value.detach()):
            state["_warned"] = warned | {name}
            warnings.warn(
                f"{name} holds probabilities, not logits: its channels are in 0..1 and sum to 1, and a softmax of them "
                "is nearly uniform; pass what the network computes before its softmax, or probabilities.log()",
                stacklevel=4,
            )
    if first and all(map(has_values, maps.values())):
        state["_has_read"] = True


def without_infinities(teacher_logits_BKhw: Tensor) -> Tensor:
    """A teacher's logits, detached, with :data:`RULED_OUT` in place of -inf; NaN stays."""
    teacher_logits_BKhw = teacher_logits_BKhw.detach()
    if teacher_logits_BKhw.is_cpu and has_values(teacher_logits_BKhw) and math.isfinite(_total(teacher_logits_BKhw)):
        return teacher_logits_BKhw  # nothing to replace: no copy
    return teacher_logits_BKhw.clamp(min=RULED_OUT)


def check_maps(module: nn.Module | None, maps: Mapping[str, Tensor]) -> None:
    """Raise unless all are maps of one batch, with the channels that the module was constructed for."""
    batch = 0
    for name, value in maps.items():
        check_map(name, value)
        attribute = name.replace("features", "channels") if name.endswith("features") else "num_classes"
        expected = getattr(module, attribute, value.shape[1])
        if value.shape[1] != expected:
            hint = "; both networks must have the same classes" if name.endswith("logits") else ""
            if name.endswith("logits") and value.shape[1] == 1:
                hint = f"; {BINARY}"
            elif value.shape[3] == expected:
                hint = f"; its last axis is {expected}: with channels in the last axis use .permute(0, 3, 1, 2)"
            raise ValueError(
                f"{name} has {value.shape[1]} channels (shape {tuple(value.shape)}): "
                f"expected {expected}, the {attribute} given at construction{hint}"
            )
        batch = batch or value.shape[0]
        if value.shape[0] != batch:
            raise ValueError(
                f"{name} holds {value.shape[0]} images but {next(iter(maps))} {batch}: the batches must agree"
            )


def check_call(
    module: nn.Module | None, maps: Mapping[str, Tensor], labels_BHW: Tensor, *, trained: Iterable[str] = ()
) -> None:
    """Check all that a distiller is called with; ``trained`` names the maps through which the student is trained."""
    check_maps(module, maps)
    check_labels(labels_BHW, len(next(iter(maps.values()))))
    check_grids({**maps, "labels": labels_BHW})
    if "student_logits" in maps and "teacher_logits" in maps:
        student, teacher = (tuple(maps[name].shape) for name in ("student_logits", "teacher_logits"))
        if student[:2] != teacher[:2]:
            raise ValueError(
                f"student_logits has shape {student} but teacher_logits {teacher}: batch and classes must be equal"
            )
        if student[1] < getattr(module, "num_classes", 2):
            raise ValueError(f"student_logits has shape {student}: expected two classes or more; {BINARY}")
        check_ignore_index(getattr(module, "ignore_index", -1), student[1])
    check_values(module, maps)
    for name in trained:
        check_trained(module, name, maps[name])
