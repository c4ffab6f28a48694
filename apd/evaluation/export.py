"""A network as one file for other programs: ONNX, or a program of `torch.export`. No TorchScript.

What is written is inference alone: images in [0, 1] in, logits at the images' size out. An auxiliary head, projection
heads and everything else that only training needs are not in it. The file is kept only if it computes what the network
does, at two sizes.
"""

import contextlib
import copy
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from apd.evaluation.traceable import PaddingFollowsSizeError, Traceable

SUFFIXES = (".onnx", ".pt2")
LEAST_SIDE = 32
TOLERANCE = 1e-3
"""Largest difference from the network that is kept, as a part of its largest logit (own choice: paddings gone wrong
differed by more than a tenth, rounding by less than a hundred-thousandth)."""


class ExportError(RuntimeError):
    """A network that cannot be written for other programs; the message says why and what to do."""


class Exported(NamedTuple):
    """What was written.

    Attributes:
        path: the file.
        size: bytes.
        multiple: 1 where height and width may be any from 32 on. 32 for networks whose padding follows the image's size
            (timm's backbones with the prefix `tf_`, and EfficientNet-Lite): there they must be multiples of 32 from 64
            on, and the file fails at any other.
        difference: the largest between the file's logits and the network's, at both sizes tried.
        sizes: (batch, height, width) of both.
    """

    path: Path
    size: int
    multiple: int
    difference: float
    sizes: tuple[tuple[int, int, int], tuple[int, int, int]]

    def __str__(self) -> str:
        tried = " and ".join("×".join(map(str, size)) for size in self.sizes)
        return (
            f"{self.path}: {self.size / 1e6:.1f} MB; height and width {_sides(self.multiple)}; "
            f"largest difference {self.difference:.1e} at {tried}"
        )


def export_network(
    model: nn.Module, path: Path | str, *, size: tuple[int, int], class_names: Sequence[str] = ()
) -> Exported:
    """Write a segmentation network as ONNX (`.onnx`) or as a `torch.export` program (`.pt2`).

    The file has one input `images`, float32 (batch, 3, height, width) in [0, 1] RGB, and one output `logits`, float32
    (batch, classes, height, width): the network's logits, resized bilinearly (align_corners, as published). The image's
    normalisation is inside; values are not checked there. Batch, height and width are free, see `Exported.multiple`.
    ONNX cannot express pooling to a fixed grid at a free size, so that is written as two matrix products.

    What the file expects is written into it: metadata in ONNX, `about.json` in `.pt2`.

    Args:
        model: its output has `logits` (B, K, h, w). A copy in eval mode, in float32 on the CPU, is written.
        path: where to; a file that is there is replaced, and only by one that passed.
        size: (height, width) to try it at first; the other size is about 3/4 as high and 5/4 as wide.
        class_names: told in the file.

    Raises:
        ValueError: another suffix, or a side below 32.
        ExportError: a package is missing, the network cannot be traced, the file differs from it or cannot be written.

    Example:
        >>> from apd.models import build_segmenter
        >>> student = build_segmenter("mobilenetv2_050", 11, head_width=64, output_stride=16)
        >>> export_network(student, "student.onnx", size=(160, 208))  # doctest: +SKIP
        Exported(path=PosixPath('student.onnx'), ...)
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"path: got {path.name!r}, expected a name that ends with {' or '.join(SUFFIXES)}")
    if min(size) < LEAST_SIDE:
        raise ValueError(f"size: got {size[0]}×{size[1]} pixels, expected sides of at least {LEAST_SIDE}")
    if path.suffix == ".onnx":
        _require_onnx()
    try:  # before the minute that tracing may take
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        folder = tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-")
    except OSError as error:
        raise ExportError(f"{path} cannot be written ({error})") from error
    with folder:
        return _checked(_Inference(model), path, Path(folder.name) / path.name, size, class_names)


def _checked(
    network: "_Inference", path: Path, part: Path, size: tuple[int, int], class_names: Sequence[str]
) -> Exported:
    """Write `part`, run it beside the network, and put it in the place of `path`."""
    program, multiple = _traced(network, size)
    about = {
        "input": "images: float32 RGB in [0, 1], batch x 3 x height x width",
        "output": "logits: float32, batch x classes x height x width",
        "height and width": _sides(multiple),
        "classes": json.dumps(list(class_names)),
    }
    try:
        if path.suffix == ".onnx":
            _write_onnx(program, part, about)
            run = _onnx_runner(part)
        else:
            _write_pt2(program, part, about)
            run = torch.export.load(part).module()
        sizes, difference = _compared(network, run, size, multiple)
        os.replace(part, path)
    except OSError as error:
        raise ExportError(f"{path} cannot be written ({error})") from error
    return Exported(path, path.stat().st_size, multiple, difference, sizes)


class _Inference(nn.Module):
    """Images to logits of their size, from a copy of a network without its auxiliary head."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(model).float().cpu().eval().requires_grad_(False)
        self.network.to(memory_format=torch.contiguous_format)  # the layout is the matter of whoever runs the file
        if hasattr(self.network, "aux_head"):
            self.network.aux_head = None
        self.multiple = 1

    def forward(self, images: Tensor) -> Tensor:
        if self.multiple > 1:  # nothing but this tells whoever runs the file that a side does not fit
            for axis in (2, 3):
                images = images.unflatten(axis, (-1, self.multiple)).flatten(axis, axis + 1)
        logits_BKhw = self.network(images).logits
        return F.interpolate(logits_BKhw, images.shape[-2:], mode="bilinear", align_corners=True)


def _traced(network: _Inference, size: tuple[int, int]) -> tuple[ExportedProgram, int]:
    """The network as a graph with free batch, height and width, and what the sides must be multiples of."""
    for multiple in (1, LEAST_SIDE):
        network.multiple = multiple
        height, width = (Dim(name, min=_least(multiple) // multiple) for name in ("height", "width"))
        if multiple > 1:
            height, width = multiple * height, multiple * width
        # an axis of length 1 would be taken for one that is always 1
        images = torch.rand(2, 3, *_rounded(size, multiple), generator=torch.Generator().manual_seed(0))
        shapes = {"images": {0: Dim("batch", min=1), 2: height, 3: width}}
        try:
            with Traceable(paddings_are_fixed=multiple > 1), torch.no_grad(), _quietly():
                return torch.export.export(network, (images,), dynamic_shapes=shapes), multiple
        except PaddingFollowsSizeError:
            continue
        except Exception as error:  # whatever a foreign network does that cannot be traced
            reason = str(error).strip().split("\n")[0]
            raise ExportError(f"the network cannot be traced by torch.export: {reason}") from error
    raise AssertionError("fixed paddings are never refused")


def _least(multiple: int) -> int:
    """The shortest side that a file takes; a single multiple would be traced as an axis that is always 1."""
    return LEAST_SIDE if multiple == 1 else 2 * multiple


def _sides(multiple: int) -> str:
    return ("any" if multiple == 1 else f"multiples of {multiple}") + f" from {_least(multiple)}"


def _rounded(size: tuple[int, int], multiple: int) -> tuple[int, int]:
    return tuple(max(-(-side // multiple) * multiple, _least(multiple)) for side in size)


def _write_pt2(program: ExportedProgram, path: Path, about: dict[str, str]) -> None:
    for node in program.graph.nodes:
        for note in ("stack_trace", "from_node"):  # they hold lines and paths of the machine that wrote it
            node.meta.pop(note, None)
    torch.export.save(program, path, extra_files={"about.json": json.dumps(about, indent=1)})


def _write_onnx(program: ExportedProgram, path: Path, about: dict[str, str]) -> None:
    import onnx

    with _quietly():
        made = torch.onnx.export(program, input_names=["images"], output_names=["logits"], dynamo=True, verbose=False)
    proto = made.model_proto
    for part in (
        *proto.graph.node,
        *proto.graph.input,
        *proto.graph.output,
        *proto.graph.initializer,
        *proto.functions,
    ):
        del part.metadata_props[:]
    for function in proto.functions:
        for node in function.node:
            del node.metadata_props[:]
    del proto.graph.value_info[:]  # sizes of maps inside, which a runtime infers for itself
    for value in (proto.graph.input[0], proto.graph.output[0]):
        axes = value.type.tensor_type.shape.dim
        for place, name in ((0, "batch"), (2, "height"), (3, "width")):
            axes[place].dim_param = name
    onnx.helper.set_model_props(proto, about)
    onnx.checker.check_model(proto)
    onnx.save(proto, path)


def _onnx_runner(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _compared(
    network: _Inference, run: Callable[[Tensor], Tensor], size: tuple[int, int], multiple: int
) -> tuple[Any, float]:
    """The two sizes tried, and the largest difference of logits.

    Raises:
        ExportError: it is too large, or the file cannot be run at one of them.
    """
    other = _rounded((size[0] * 3 // 4, size[1] * 5 // 4), multiple)
    sizes = ((1, *_rounded(size, multiple)), (3, *other))
    worst = 0.0
    for batch, *sides in sizes:
        images = torch.rand(batch, 3, *sides, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            wanted = network(images)
        try:
            with torch.no_grad():
                found = run(images)
        except Exception as error:  # onnxruntime has types of its own
            raise ExportError(f"the file does not run at {batch}×{sides[0]}×{sides[1]}: {error}") from error
        if found.shape != wanted.shape:
            raise ExportError(f"the file gives {tuple(found.shape)}, and the network {tuple(wanted.shape)}")
        difference, scale = float((found - wanted).abs().max()), float(wanted.abs().max())
        if not difference <= TOLERANCE * scale:
            raise ExportError(
                f"the file does not compute what the network does: logits differ by {difference:.3g} at "
                f"{batch}×{sides[0]}×{sides[1]}, where the largest is {scale:.3g}; nothing was written"
            )
        worst = max(worst, difference)
    return sizes, worst


@contextlib.contextmanager
def _quietly() -> Any:
    """Without the warnings of the exporters about themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ExportError(
            f"an .onnx file needs the packages onnx, onnxscript and onnxruntime, and {error.name} is not installed: "
            "in the project's folder, pip install -e '.[export]'; a .pt2 file needs none of them"
        ) from error
