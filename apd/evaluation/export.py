"""A network as one file for other programs, ONNX or a program of `torch.export`, kept only if it computes the same."""

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
from torch.overrides import TorchFunctionMode

from apd.config.inference_options import SMALLEST_SIDE
from apd.fields import UserError, imported

SUFFIXES = (".onnx", ".pt2")
# by what sides must be multiples of, the shortest; a single multiple would be traced as an axis that is always 1
_LEAST = {1: SMALLEST_SIDE, SMALLEST_SIDE: 2 * SMALLEST_SIDE}
# largest difference that is kept, as a part of the largest logit (own choice: wrong paddings differ by > 0.1,
# rounding by < 1e-5)
TOLERANCE = 1e-3


class ExportError(UserError, RuntimeError):
    """A network that cannot be written for other programs; the message says why and what to do."""


class Exported(NamedTuple):
    """What was written, `size` in bytes, and the largest difference of its logits at both sizes tried.

    `multiple` is 1 for any sides from 32 on, or 32, for its multiples from 64 on, where a padding follows the size.
    """

    path: Path
    size: int
    multiple: int
    difference: float
    sizes: tuple[tuple[int, int, int], tuple[int, int, int]]  # (batch, height, width)

    def __str__(self) -> str:
        tried = " and ".join("×".join(map(str, size)) for size in self.sizes)
        what = f"{self.path}: {self.size / 1e6:.1f} MB; height and width {_sides(self.multiple)}"
        return f"{what}; largest difference {self.difference:.1e} at {tried}"


def export_network(
    model: nn.Module, path: Path | str, *, size: tuple[int, int], class_names: Sequence[str] = ()
) -> Exported:
    """Write a segmentation network as ONNX (`.onnx`) or as a `torch.export` program (`.pt2`).

    The file has one input `images`, float32 (batch, 3, height, width) in [0, 1] RGB, normalised inside, and one output
    `logits`, float32 (batch, classes, height, width), resized bilinearly (align_corners, as published). Batch, height
    and width are free, see :class:`Exported`; metadata in ONNX, or `about.json` in `.pt2`, say what the file expects.

    Of `model`, whose output has `logits` (B, K, h, w), a copy in eval mode is written. It is tried at `size` (height,
    width) and at about 3/4 by 5/4 of it, and replaces a file that is there only where it passes; else an ExportError.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"path: got {path.name!r}, expected a name that ends with {' or '.join(SUFFIXES)}")
    for package in ("onnx", "onnxruntime", "onnxscript") if path.suffix == ".onnx" else ():
        imported(package, "an .onnx file, unlike a .pt2,", "export", ExportError)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:  # before the minute of tracing
            part, network = Path(folder) / path.name, _Inference(model)
            program, multiple = _traced(network, size)
            about = {
                "input": "images: float32 RGB in [0, 1], batch x 3 x height x width",
                "output": "logits: float32, batch x classes x height x width",
                "height and width": _sides(multiple),
                "classes": json.dumps(list(class_names)),
            }
            run = (_write_onnx if path.suffix == ".onnx" else _write_pt2)(program, part, about)
            sizes, difference = _compared(network, run, size, multiple)
            os.replace(part, path)
    except OSError as error:
        raise ExportError(f"{path} cannot be written ({error})") from error
    return Exported(path, path.stat().st_size, multiple, difference, sizes)


def model_card(record: Any, size: tuple[int, int]) -> str:
    """A README for the Hugging Face hub of a record's network, trained at `size`: metadata, use and scores."""
    from huggingface_hub import EvalResult, ModelCardData

    experiment, found, data = record.experiment, record.scores, record.content["data"]
    means = {"mIoU": found.miou, "mAcc": found.macc, "aAcc": found.aacc}
    of = ("image-segmentation", data["name"], f"{data['name']} {data['split']}")
    results = [EvalResult(*of, metric, round(value, 6)) for metric, value in means.items()]
    about = dict(library_name="pytorch", pipeline_tag="image-segmentation", tags=["knowledge-distillation"])
    methods = " and ".join(type(one).__name__.removesuffix("Config") for one in experiment.distillers) or "labels alone"
    return f"""---
{ModelCardData(model_name=experiment.name, eval_results=results, **about).to_yaml().strip()}
---

# {experiment.name}

{experiment.network.head.upper()} head on {experiment.network.backbone}, {len(found.iou)} classes, trained with `apd` at
{size[0]}×{size[1]} pixels (height × width), taught by {methods}. Images come in [0, 1] and are normalised inside. No
licence is stated: whoever publishes the weights adds `license:` above.

```python
from apd.evaluation.inference import predict_labels
from apd.models import Segmenter

model = Segmenter.from_pretrained("FOLDER_OR_NAME")
labels_BHW = predict_labels(model, images_B3HW)
```

On {of[-1]}: {", ".join(f"{metric} {value:.4f}" for metric, value in means.items())}.
"""


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
        if self.multiple > 1:  # nothing but this shows whoever runs the file that a side does not fit
            for axis in (2, 3):
                images = images.unflatten(axis, (-1, self.multiple)).flatten(axis, axis + 1)
        logits_BKhw = self.network(images).logits
        return F.interpolate(logits_BKhw, images.shape[-2:], mode="bilinear", align_corners=True)


def _traced(network: _Inference, size: tuple[int, int]) -> tuple[ExportedProgram, int]:
    """The network as a graph with free batch, height and width, and what the sides must be multiples of."""
    for multiple, least in _LEAST.items():
        network.multiple = multiple
        height, width = (Dim(name, min=least // multiple) for name in ("height", "width"))
        if multiple > 1:
            height, width = multiple * height, multiple * width
        # an axis of length 1 would be taken for one that is always 1
        images = torch.rand(2, 3, *_rounded(size, multiple), generator=torch.Generator().manual_seed(0))
        shapes = {"images": {0: Dim("batch", min=1), 2: height, 3: width}}
        try:
            with _Traceable(multiple > 1), torch.no_grad(), warnings.catch_warnings(action="ignore"):
                return torch.export.export(network, (images,), dynamic_shapes=shapes), multiple
        except Exception as error:  # what a foreign network does that cannot be traced, or only at halved sides
            last = error
    reason = str(last).strip().split("\n")[0]
    raise ExportError(f"the network cannot be traced by torch.export: {reason}") from last


def _sides(multiple: int) -> str:
    return ("any" if multiple == 1 else f"multiples of {multiple}") + f" from {_LEAST[multiple]}"


def _rounded(size: tuple[int, int], multiple: int) -> tuple[int, int]:
    return tuple(max(-(-side // multiple) * multiple, _LEAST[multiple]) for side in size)


class _Traceable(TorchFunctionMode):
    """While tracing, replaces two operations that a graph with free height and width cannot hold."""

    def __init__(self, paddings_are_fixed: bool) -> None:
        super().__init__()
        self.paddings_are_fixed = paddings_are_fixed

    def __torch_function__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        replaced = {F.adaptive_avg_pool2d: pool_by_matrices, F.pad: self._pad}
        return replaced.get(func, func)(*args, **(kwargs or {}))

    def _pad(self, input: Tensor, pad: Sequence[int], *rest: Any, **options: Any) -> Tensor:
        # timm's rule for TensorFlow's padding: traced at a free size, its ONNX pads by other widths
        if any(isinstance(width, torch.SymInt) for width in pad):
            if not self.paddings_are_fixed:
                raise ValueError("a padding follows the image's size")
            pad = [int(width) for width in pad]
        return F.pad(input, pad, *rest, **options)


def pool_by_matrices(features_BChw: Tensor, output_size: int | tuple[int, int]) -> Tensor:
    """Adaptive average pooling as two matrix products: the same cells, but any size of the map can be traced."""
    rows, columns = (output_size, output_size) if isinstance(output_size, int) else output_size
    if rows == columns == 1:
        return features_BChw.mean((-2, -1), keepdim=True)
    height, width = features_BChw.shape[-2:]
    by_columns = F.linear(features_BChw, _cells(width, columns, features_BChw)).transpose(-2, -1)
    return F.linear(by_columns, _cells(height, rows, features_BChw)).transpose(-2, -1)


def _cells(length: int, cells: int, like: Tensor) -> Tensor:
    """(cells, length): the weights with which each cell averages a side; cells overlap where they do not divide it."""
    places, cell = torch.arange(length, device=like.device), torch.arange(cells, device=like.device)
    first, end = cell * length // cells, ((cell + 1) * length + cells - 1) // cells
    inside = (places >= first[:, None]) & (places < end[:, None])
    return inside.to(like.dtype) / (end - first)[:, None].to(like.dtype)


def _write_pt2(program: ExportedProgram, path: Path, about: dict[str, str]) -> Callable[[Tensor], Tensor]:
    for node in program.graph.nodes:
        for note in ("stack_trace", "from_node"):  # they hold lines and paths of the machine that wrote it
            node.meta.pop(note, None)
    torch.export.save(program, path, extra_files={"about.json": json.dumps(about, indent=1)})
    return torch.export.load(path).module()


def _write_onnx(program: ExportedProgram, path: Path, about: dict[str, str]) -> Callable[[Tensor], Tensor]:
    import onnx
    import onnxruntime

    with warnings.catch_warnings(action="ignore"):
        made = torch.onnx.export(program, input_names=["images"], output_names=["logits"], dynamo=True, verbose=False)
    proto = made.model_proto  # made anew each time it is asked for
    graph, functions = proto.graph, proto.functions
    inside = [node for function in functions for node in function.node]
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer, *functions, *inside):
        del part.metadata_props[:]
    del graph.value_info[:]  # sizes of maps inside, which a runtime infers for itself
    for value in (graph.input[0], graph.output[0]):
        for place, name in ((0, "batch"), (2, "height"), (3, "width")):
            value.type.tensor_type.shape.dim[place].dim_param = name
    onnx.helper.set_model_props(proto, about)
    onnx.checker.check_model(proto)
    onnx.save(proto, path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _compared(
    network: _Inference, run: Callable[[Tensor], Tensor], size: tuple[int, int], multiple: int
) -> tuple[Any, float]:
    """The two sizes tried, and the largest difference of logits; an ExportError where it is too large."""
    other = _rounded((size[0] * 3 // 4, size[1] * 5 // 4), multiple)
    sizes, worst = ((1, *_rounded(size, multiple)), (3, *other)), 0.0
    for batch, *sides in sizes:
        images = torch.rand(batch, 3, *sides, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            wanted, found = network(images), run(images)
        difference, scale = float((found - wanted).abs().max()), float(wanted.abs().max())
        if not difference <= TOLERANCE * scale:
            found = f"logits differ by {difference:.3g} of {scale:.3g} at {batch}×{sides[0]}×{sides[1]}"
            raise ExportError(f"the file does not compute what the network does: {found}; nothing was written")
        worst = max(worst, difference)
    return sizes, worst
