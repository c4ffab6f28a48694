"""Names and shapes in released checkpoints, of APD and of the semseg code line, written out, and made-up values."""

import torch

BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
LAYER0 = (("layer0.0", "layer0.1"), ("layer0.3", "layer0.4"), ("layer0.6", "layer0.7"))
SEMSEG = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))
Shapes = dict[str, tuple[int, ...]]


def backbone_shapes(depth, stem):
    """Shapes by name of a deep-stem ResNet; a norm's name stands for its five tensors."""
    shapes = {}
    inner, wide = 3, 1 if depth == 18 else 4
    for (conv, norm), channels in zip(stem, (64, 64, 128), strict=True):
        shapes |= {f"{conv}.weight": (channels, inner, 3, 3), norm: (channels,)}
        inner = channels
    for stage, block in [(s, b) for s, blocks in enumerate(BLOCKS[depth], start=1) for b in range(blocks)]:
        where, narrow = f"layer{stage}.{block}", 32 * 2**stage
        convs = [(narrow, inner, 3), (narrow, narrow, 3)]
        if depth > 18:
            convs = [(narrow, inner, 1), (narrow, narrow, 3), (4 * narrow, narrow, 1)]
        for number, (channels, inputs, side) in enumerate(convs, start=1):
            shapes[f"{where}.conv{number}.weight"] = (channels, inputs, side, side)
            shapes[f"{where}.bn{number}"] = (channels,)
        if block == 0:
            shapes[f"{where}.downsample.0.weight"] = (wide * narrow, inner, 1, 1)
            shapes[f"{where}.downsample.1"] = (wide * narrow,)
        inner = wide * narrow
    return shapes


def released_shapes(depth, classes, kind, width=512):
    """Of a whole network; `kind`: "apd-psp", "apd-aspp" (mmsegmentation's names inside) or "semseg-psp"."""
    shapes, deep = backbone_shapes(depth, LAYER0), 512 if depth == 18 else 2048
    if kind == "apd-aspp":
        convs = {"image_pool.1": (deep, 1), "bottleneck": (5 * width, 3)}
        convs |= {f"aspp_modules.{branch}": (deep, 3 if branch else 1) for branch in range(4)}
        for name, (inputs, side) in convs.items():
            shapes |= {f"ppm.{name}.conv.weight": (width, inputs, side, side), f"ppm.{name}.bn": (width,)}
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


def made_up(shapes, seed=0):
    """Values that keep the maps' size alive through all layers."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        if name.endswith(("weight", "bias")):
            fan_in = max(1, torch.Size(shape[1:]).numel())
            tensors[name] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
            continue
        weight, var = (0.5 + torch.rand(shape, generator=generator) for _ in range(2))
        bias, mean = (factor * torch.randn(shape, generator=generator) for factor in (0.2, 0.1))
        values = (weight, bias, mean, var, torch.tensor(7))
        tensors |= {f"{name}.{leaf}": value for leaf, value in zip(NORM, values, strict=True)}
    return tensors


def semseg_classifier(depth):
    """An ImageNet classifier with the semseg code line's names, from before norms counted batches."""
    tensors = made_up(backbone_shapes(depth, SEMSEG) | {"fc.weight": (10, 7), "fc.bias": (10,)})
    return {name: value for name, value in tensors.items() if not name.endswith("num_batches_tracked")}
