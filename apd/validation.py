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

from apd.fields import LARGEST, MOST, SMALLEST, shown

Maps = Mapping[str, Tensor]
RULED_OUT = -1e30  # stands for a teacher's logit of -inf, and unlike it may be averaged, interpolated, multiplied by 0
COLDEST, STEEPEST = 1e-6, 1e3  # temperature and scale beyond which RULED_OUT overflows and an absent class is seen
BINARY = (
    "a binary network of one sigmoid channel z has the two classes of apd.two_channel_logits(z): pass those of both "
    "networks, with num_classes=2 and labels 0 and 1 (of masks 0 and 255: (masks > 0).long())"
)


def check_choice(name: str, value: object, choices: tuple[str | bool, ...]) -> None:
    """Raise ``ValueError`` naming argument and choices when ``value`` is none of them; 1 is not ``True``."""
    if not any(isinstance(value, type(choice)) and value == choice for choice in choices):
        raise ValueError(f"{name}={shown(value)}: expected one of {', '.join(map(repr, choices))}")


def check_count(name: str, value: int, most: int = MOST) -> int:
    """``value`` as an int; ``ValueError`` naming it unless it is an integer, Python's or NumPy's, in 1 .. ``most``."""
    if not isinstance(value, Integral) or isinstance(value, bool) or not 1 <= value <= most:
        raise ValueError(f"{name}={shown(value)}: expected a positive integer, at most {most}")
    return int(value)


def check_positive(
    name: str, value: float, *, or_zero: bool = False, least: float = SMALLEST, most: float = LARGEST
) -> None:
    """Raise naming the argument unless ``value`` is a number in ``least`` .. ``most``, or allowed 0."""
    expected = f"a {'finite number, 0 or greater' if or_zero else 'positive number'}: {least:g} to {most:g}"
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name}={shown(value)} is a {type(value).__name__}: expected {expected}")
    if not (least <= value <= most or (or_zero and value == 0)):
        raise ValueError(f"{name}={shown(value)}: expected {expected}")


def check_ignore_index(ignore_index: int, num_classes: int = 0) -> int:
    """``ignore_index`` as an int; an error naming it unless it is an integer and no class of ``num_classes``."""
    if not isinstance(ignore_index, Integral) or isinstance(ignore_index, bool):
        raise TypeError(f"ignore_index={shown(ignore_index)} is a {type(ignore_index).__name__}: expected an integer")
    if not -(2**63) <= ignore_index < 2**63:
        raise ValueError(f"ignore_index={shown(ignore_index)}: expected an integer of 64 bits")
    if 0 <= ignore_index < num_classes:
        wrong = f"ignore_index={ignore_index} is one of the classes 0..{num_classes - 1} (num_classes={num_classes})"
        fix = "choose a label that is none, such as -1, and give it to the pixels to ignore"
        raise ValueError(f"{wrong}, which would count nowhere; {fix}")
    return int(ignore_index)


def check_map(name: str, value: Tensor) -> None:
    """Raise when ``value`` is not a floating (batch, channels, height, width) tensor with at least one element."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}: expected a tensor (batch, channels, height, width)")
    if value.ndim != 4 or 0 in value.shape:
        expected = "expected four non-empty axes (batch, channels, height, width)"
        if value.ndim == 3:
            expected += "; apd.tokens_to_map(tokens, (H, W), prefix_tokens=…) makes a map of (batch, tokens, channels)"
        raise ValueError(f"{name} has shape {tuple(value.shape)}: {expected}")
    if not value.is_floating_point() or value.element_size() == 1:
        raise TypeError(f"{name} has dtype {value.dtype}: expected a floating dtype of 16 bits or more")


def check_labels(labels_BHW: Tensor, batch: int) -> None:
    """Raise when ``labels_BHW`` is not an integer (batch, height, width) tensor of ``batch`` images."""
    if not isinstance(labels_BHW, Tensor):
        raise TypeError(f"labels is a {type(labels_BHW).__name__}: expected an integer tensor (batch, height, width)")
    if labels_BHW.ndim != 3 or 0 in labels_BHW.shape:
        hint = "; use labels.squeeze(1)" if labels_BHW.ndim == 4 and labels_BHW.shape[1] == 1 else ""
        expected = f"three non-empty axes (batch, height, width){hint}"
        raise ValueError(f"labels has shape {tuple(labels_BHW.shape)}: expected {expected}")
    if labels_BHW.is_floating_point() or labels_BHW.is_complex() or labels_BHW.dtype == torch.bool:
        raise TypeError(f"labels has dtype {labels_BHW.dtype}: expected class indices as uint8 or a signed integer")
    if labels_BHW.shape[0] != batch:
        raise ValueError(f"labels holds {labels_BHW.shape[0]} images but the maps hold {batch}: the batches must agree")


def check_same_grid(name: str, maps_BChw: Tensor, labels_Bhw: Tensor) -> None:
    """Raise unless ``labels_Bhw`` are labels of the same images, on the grid of the maps of that name."""
    check_labels(labels_Bhw, maps_BChw.shape[0])
    if labels_Bhw.shape[1:] != maps_BChw.shape[2:]:
        grids = f"a grid of {tuple(labels_Bhw.shape[1:])} but {name} on {tuple(maps_BChw.shape[2:])}"
        raise ValueError(f"labels are on {grids}: call resize_labels(labels, {name}.shape[2:]) first")


def check_present(present_BK: Tensor, shape: tuple[int, ...]) -> None:
    """Raise unless ``present_BK`` is boolean and of that shape."""
    if not isinstance(present_BK, Tensor):
        raise TypeError(f"present is a {type(present_BK).__name__}: expected the second result of class_prototypes")
    if present_BK.dtype != torch.bool or present_BK.shape != shape:
        found = f"{present_BK.dtype} of shape {tuple(present_BK.shape)}"
        raise ValueError(f"present is {found}: expected torch.bool of {tuple(shape)}")


def _of_one_image(first: tuple[int, int], second: tuple[int, int], *, is_image: bool = False) -> bool:
    """Whether two grids (height, width) can lie on one image, each with the stride of its network in both axes.

    Each axis is off by less than a cell of its own grid (not of an image's), so the ratio of the grids has an interval
    in each axis; they must overlap, maybe after padding to whole patches. In grids from 8 cells the longer side stays.
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
        grids = f"{first_name} is {h} x {w} (height x width) but {second_name} is {H} x {W}"
        raise ValueError(f"{grids}: their aspect ratios contradict each other; {fix}")


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


def of_cells(labels_BHW: Tensor, axis: int, cells: int, align_corners: bool) -> Tensor:
    """The labels of so many cells along an axis, by the rules of :func:`apd.resize_labels`."""
    cell, pixels, last = torch.arange(cells, device=labels_BHW.device), labels_BHW.shape[axis], cells - 1
    nearest = (cell * (pixels - 1) + last // 2) // last if align_corners and last else cell * pixels // cells
    return labels_BHW.index_select(axis, nearest)


def _finite_where_ignored(name: str, value_BChw: Tensor, labels_BHW: Tensor, ignored: int, align: bool) -> Tensor:
    """0 at ignored pixels that hold NaN or an infinity; others stay, for averages and the released code count them."""
    for axis, cells in zip((1, 2), value_BChw.shape[2:], strict=True):
        labels_BHW = of_cells(labels_BHW, axis, cells, align)
    reduce = torch.amax if name == "teacher_logits" else torch.sum  # of a teacher's classes, some may be -inf
    faulty_B1hw = ~(reduce(value_BChw.detach(), 1, keepdim=True).abs() < math.inf)
    return value_BChw.masked_fill(faulty_B1hw & (labels_BHW.long() == ignored)[:, None], 0.0)


def _extent(name: str, values: Tensor) -> float:
    """The sum of logits or the length of features; finite only where all values are."""
    dtype = torch.promote_types(values.dtype, torch.float32)
    return float((torch.sum if name.endswith("logits") else torch.linalg.vector_norm)(values.detach(), dtype=dtype))


def _check_features(name: str, value: Tensor) -> None:
    """Raise unless every vector is finite and has a length."""
    if not math.isfinite(_extent(name, value)):
        if not value.isfinite().all():
            raise ValueError(f"{name} holds NaN or an infinity: {NON_FINITE}")
        raise ValueError(f"{name} holds values up to {value.abs().max():.1e}: the lengths of such vectors overflow")


def _check_logits(name: str, value: Tensor) -> None:
    """Raise for NaN and infinities; -inf is allowed to a teacher, for a class that it rules out."""
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


def check_values(
    module: nn.Module | None, maps: Maps, labels_BHW: Tensor | None = None, ignore_index: int | None = None
) -> dict[str, Tensor]:
    """The maps, made finite at pixels of ``ignore_index``; raises where they are not elsewhere.

    Warns, once for each name, of logits that are probabilities.
    """
    state, checked = {} if module is None else module.__dict__, dict(maps)
    for name, value in maps.items():
        read = state.get("_has_read", frozenset())
        first = module is not None and name not in read
        at_hand = value.is_cpu and has_values(value)
        is_finite = at_hand and math.isfinite(_extent(name, value))
        if not is_finite and ignore_index is not None:
            align = name.endswith("features") and getattr(module, "align_corners", False)
            checked[name] = value = _finite_where_ignored(name, value, labels_BHW, ignore_index, align)
        if not (_reading and has_values(value) and (at_hand or first)):
            continue
        if first:
            state["_has_read"] = read | {name}
        if not is_finite:
            (_check_logits if name.endswith("logits") else _check_features)(name, value)
        warned = state.get("_warned", frozenset())
        silent = module is None or name in warned or not name.endswith("logits")
        if not silent and _are_probabilities(value.detach()):
            state["_warned"] = warned | {name}
            warnings.warn(
                f"{name} holds probabilities, not logits: its channels are in 0..1 and sum to 1, and a softmax of them "
                "is nearly uniform; pass what the network computes before its softmax, or probabilities.log()",
                stacklevel=4,
            )
    return checked


def without_infinities(logits_BKhw: Tensor) -> Tensor:
    """A teacher's logits, detached, with :data:`RULED_OUT` in place of -inf; NaN stays."""
    logits_BKhw = logits_BKhw.detach()
    if logits_BKhw.is_cpu and has_values(logits_BKhw) and math.isfinite(_extent("logits", logits_BKhw)):
        return logits_BKhw  # nothing to replace: no copy
    return logits_BKhw.clamp(min=RULED_OUT)


def check_maps(module: nn.Module | None, maps: Maps) -> None:
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
            found = f"{name} has {value.shape[1]} channels (shape {tuple(value.shape)})"
            raise ValueError(f"{found}: expected {expected}, the {attribute} given at construction{hint}")
        batch = batch or value.shape[0]
        if value.shape[0] != batch:
            counts = f"{name} holds {value.shape[0]} images but {next(iter(maps))} {batch}"
            raise ValueError(f"{counts}: the batches must agree")


def check_call(
    module: nn.Module | None, maps: Maps, labels_BHW: Tensor, ignore_index: int | None, *, trained: Iterable[str] = ()
) -> dict[str, Tensor]:
    """Check all that a distiller is called with, and hand out the maps, finite where pixels are ignored.

    ``trained`` names the maps through which the student is trained.
    """
    check_maps(module, maps)
    check_labels(labels_BHW, len(next(iter(maps.values()))))
    for name, value in {"labels": labels_BHW, **maps}.items():
        if value.layout != torch.strided or value.device != labels_BHW.device:
            expected = f"torch.strided on {labels_BHW.device}, the device of labels"
            raise ValueError(f"{name} is {value.layout} on {value.device}: expected {expected}")
    check_grids({**maps, "labels": labels_BHW})
    if "student_logits" in maps and "teacher_logits" in maps:
        student, teacher = (tuple(maps[name].shape) for name in ("student_logits", "teacher_logits"))
        if student[:2] != teacher[:2]:
            shapes = f"student_logits has shape {student} but teacher_logits {teacher}"
            raise ValueError(f"{shapes}: batch and classes must be equal")
        if student[1] < getattr(module, "num_classes", 2):
            raise ValueError(f"student_logits has shape {student}: expected two classes or more; {BINARY}")
        check_ignore_index(getattr(module, "ignore_index", -1), student[1])
    checked = check_values(module, maps, labels_BHW, ignore_index)
    for name in trained:
        check_trained(module, name, maps[name])
    return checked
