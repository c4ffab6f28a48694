"""Names and shapes in released checkpoints, of APD and of the semseg code line, written out, and made-up values."""

import torch
from torch import Tensor

BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
LAYER0 = (("layer0.0", "layer0.1"), ("layer0.3", "layer0.4"), ("layer0.6", "layer0.7"))
SEMSEG = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))
Shapes = dict[str, tuple[int, ...]]


def backbone_shapes(depth: int, stem: tuple[tuple[str, str], ...]) -> Shapes:
    """Shapes by name of a deep-stem ResNet; a norm's name stands for its five tensors."""
    shapes: Shapes = {}
    inner = 3
    for (conv, norm), channels in zip(stem, (64, 64, 128), strict=True):
        shapes |= {f"{conv}.weight": (channels, inner, 3, 3), norm: (channels,)}
        inner = channels
    wide = 1 if depth == 18 else 4
    for stage, blocks in enumerate(BLOCKS[depth], start=1):
        narrow = 32 * 2**stage
        for block in range(blocks):
            where = f"layer{stage}.{block}"
            sides = [(narrow, inner, 3), (narrow, narrow, 3)]
            if depth > 18:
                sides = [(narrow, inner, 1), (narrow, narrow, 3), (4 * narrow, narrow, 1)]
            for number, (channels, inputs, side) in enumerate(sides, start=1):
                shapes[f"{where}.conv{number}.weight"] = (channels, inputs, side, side)
                shapes[f"{where}.bn{number}"] = (channels,)
            if block == 0 and (stage > 1 or depth > 18 or inner != narrow):
                shapes[f"{where}.downsample.0.weight"] = (wide * narrow, inner, 1, 1)
                shapes[f"{where}.downsample.1"] = (wide * narrow,)
            inner = wide * narrow
    return shapes


def released_shapes(depth: int, classes: int, kind: str, width: int = 512) -> Shapes:
    """Of a whole network; `kind`: "apd-psp", "apd-aspp" (mmsegmentation's names inside) or "semseg-psp"."""
    shapes = backbone_shapes(depth, LAYER0)
    deep = 512 if depth == 18 else 2048
    if kind == "apd-aspp":
        shapes |= {"ppm.image_pool.1.conv.weight": (width, deep, 1, 1), "ppm.image_pool.1.bn": (width,)}
        for branch in range(4):
            side = 1 if branch == 0 else 3
            shapes[f"ppm.aspp_modules.{branch}.conv.weight"] = (width, deep, side, side)
            shapes[f"ppm.aspp_modules.{branch}.bn"] = (width,)
        shapes |= {"ppm.bottleneck.conv.weight": (width, 5 * width, 3, 3), "ppm.bottleneck.bn": (width,)}
    else:
        for branch in range(4):
            shapes[f"ppm.features.{branch}.1.weight"] = (deep // 4, deep, 1, 1)
            shapes[f"ppm.features.{branch}.2"] = (deep // 4,)
        merge = "ppm.merge" if kind == "apd-psp" else "cls"
        shapes |= {f"{merge}.0.weight": (width, 2 * deep, 3, 3), f"{merge}.1": (width,)}
    last = "cls.4" if kind == "semseg-psp" else "cls.0"
    shapes |= {f"{last}.weight": (classes, width, 1, 1), f"{last}.bias": (classes,)}
    shapes |= {"aux.0.weight": (width // 2, deep // 2, 3, 3), "aux.1": (width // 2,)}
    return shapes | {"aux.4.weight": (classes, width // 2, 1, 1), "aux.4.bias": (classes,)}


def made_up(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """Values that keep the maps' size alive through all layers."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        if name.endswith(("weight", "bias")):
            fan_in = max(1, torch.Size(shape[1:]).numel())
            tensors[name] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
            continue
        tensors[f"{name}.weight"] = 0.5 + torch.rand(shape, generator=generator)
        tensors[f"{name}.bias"] = 0.2 * torch.randn(shape, generator=generator)
        tensors[f"{name}.running_mean"] = 0.1 * torch.randn(shape, generator=generator)
        tensors[f"{name}.running_var"] = 0.5 + torch.rand(shape, generator=generator)
        tensors[f"{name}.num_batches_tracked"] = torch.tensor(7)
    return tensors


def semseg_classifier(depth: int) -> dict[str, Tensor]:
    """An ImageNet classifier with the semseg code line's names, from before norms counted batches."""
    tensors = made_up(backbone_shapes(depth, SEMSEG) | {"fc.weight": (10, 7), "fc.bias": (10,)})
    return {name: value for name, value in tensors.items() if not name.endswith("num_batches_tracked")}
