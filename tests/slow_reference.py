"""The method written a second time, slowly: image by image, class by class, from its description.

Tests hold the package to it, and benchmarks measure the package against it. It shares no code with the package, works
in the dtype and on the device of its inputs, and is differentiable. Features are the *projected* ones, on one grid.
"""

import torch
from torch import Tensor


def random_batch(
    *,
    batch: int = 2,
    student_channels: int = 6,
    teacher_channels: int = 6,
    num_classes: int = 5,
    grid: tuple[int, int] = (5, 4),
    labels: tuple[int, int] = (17, 13),
    ignored: float = 0.15,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Keywords of a distiller call. Labels come in patches; the last class is nowhere, and class b not in image b."""
    random = torch.Generator().manual_seed(seed)

    def maps(channels: int) -> Tensor:
        return torch.randn(batch, channels, *grid, generator=random, dtype=dtype)

    missing = (torch.arange(batch) % (num_classes - 1)).view(-1, 1, 1)
    patches = torch.randint(0, num_classes - 2, (batch, 4, 4), generator=random)
    patches = patches + (patches >= missing)
    rows, columns = (torch.arange(size) * 4 // size for size in labels)
    labels_BHW = patches[:, rows][:, :, columns].clone()
    labels_BHW[torch.rand(labels_BHW.shape, generator=random) < ignored] = 255
    return {
        "student_features": maps(student_channels).requires_grad_(),
        "teacher_features": maps(teacher_channels),
        "student_logits": maps(num_classes).requires_grad_(),
        "teacher_logits": maps(num_classes),
        "labels": labels_BHW,
    }


def nearest(labels_BHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Cell (i, j) takes pixel (floor(i H / h), floor(j W / w))."""
    _, height, width = labels_BHW.shape
    rows = [
        [labels_BHW[:, i * height // size[0], j * width // size[1]] for j in range(size[1])] for i in range(size[0])
    ]
    return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)


def bilinear(map_Khw: Tensor, size: tuple[int, int]) -> Tensor:
    """Linear interpolation along each axis, first and last cells on the first and last pixels."""

    def weights(pixels: int, cells: int) -> Tensor:
        table = map_Khw.new_zeros(pixels, cells)
        for pixel in range(pixels):
            position = pixel * (cells - 1) / (pixels - 1) if pixels > 1 else 0.0
            left = min(int(position), cells - 1)
            right = min(left + 1, cells - 1)
            table[pixel, left] += 1 - (position - left)
            table[pixel, right] += position - left
        return table

    return weights(size[0], map_Khw.shape[1]) @ map_Khw @ weights(size[1], map_Khw.shape[2]).T


def perspectives(
    features_BDhw: Tensor, labels_Bhw: Tensor, *, scope: str = "image", ignore_index: int = 255
) -> list[dict[int, Tensor]]:
    """For each image, the prototype of each class that occurs in it (or, with ``scope="batch"``, in the batch)."""
    pixels_BhwD = features_BDhw.movedim(1, -1)
    pixels_BhwD = pixels_BhwD / pixels_BhwD.norm(dim=-1, keepdim=True)
    images = (
        [[b] for b in range(len(labels_Bhw))] if scope == "image" else [list(range(len(labels_Bhw)))] * len(labels_Bhw)
    )
    found = []
    for members in images:
        pixels, labels = pixels_BhwD[members], labels_Bhw[members]
        rows = {}
        for label in sorted(set(labels.flatten().tolist()) - {ignore_index}):
            mean_D = pixels[labels == label].mean(dim=0)
            rows[label] = mean_D / mean_D.norm()
        found.append(rows)
    return found


def observations(features_Dhw: Tensor, prototypes: dict[int, Tensor], *, scale: float = 10.0) -> dict[int, Tensor]:
    """For each class of one image's perspective, the map of scaled cosines."""
    directions_hwD = (features_Dhw / features_Dhw.norm(dim=0)).movedim(0, -1)
    return {label: scale * (directions_hwD * row).sum(-1) for label, row in prototypes.items()}


def divergence(student_logits_N: Tensor, teacher_logits_N: Tensor) -> Tensor:
    """KL(softmax(teacher) ‖ softmax(student)) over the first axis."""
    student, teacher = torch.softmax(student_logits_N, dim=0), torch.softmax(teacher_logits_N, dim=0)
    return (teacher * (teacher.log() - student.log())).sum(0)


def regularisation(
    features_BDhw, labels_BHW, *, num_classes, scope="image", absent="mask", scale=10.0, ignore_index=255
):
    size = tuple(labels_BHW.shape[1:])
    rows = perspectives(
        features_BDhw, nearest(labels_BHW, features_BDhw.shape[2:]), scope=scope, ignore_index=ignore_index
    )
    costs = []
    for features_Dhw, labels_HW, prototypes in zip(features_BDhw, labels_BHW, rows, strict=True):
        seen = observations(features_Dhw, prototypes, scale=scale)
        if absent == "zero":
            nothing = features_Dhw.new_zeros(features_Dhw.shape[1:])
            seen = {label: seen.get(label, nothing) for label in range(num_classes)}
        names = sorted(seen)
        if not names:
            continue
        logits_NHW = bilinear(torch.stack([seen[label] for label in names]), size)
        for place, label in enumerate(names):
            at = labels_HW == label
            if label != ignore_index and at.any():
                costs.append(logits_NHW[:, at].logsumexp(0) - logits_NHW[place, at])
    return torch.cat(costs).mean() if costs else 0 * features_BDhw.sum()


def alignment(student_BDhw, teacher_BDhw, labels_BHW, *, scope="image", ignore_index=255):
    labels_Bhw = nearest(labels_BHW, student_BDhw.shape[2:])
    ours = perspectives(student_BDhw, labels_Bhw, scope=scope, ignore_index=ignore_index)
    theirs = perspectives(teacher_BDhw.detach(), labels_Bhw, scope=scope, ignore_index=ignore_index)
    costs = [(1 - a[label] @ b[label]) / 2 for a, b in zip(ours, theirs, strict=True) for label in a]
    return torch.stack(costs).mean() if costs else 0 * student_BDhw.sum()


def observation(
    student_BDhw, teacher_BDhw, labels_BHW, *, scope="image", reduction="pixel", scale=10.0, ignore_index=255
):
    labels_Bhw = nearest(labels_BHW, student_BDhw.shape[2:])
    ours = perspectives(student_BDhw, labels_Bhw, scope=scope, ignore_index=ignore_index)
    theirs = perspectives(teacher_BDhw.detach(), labels_Bhw, scope=scope, ignore_index=ignore_index)
    costs, elements = [], 0
    for b, labels_hw in enumerate(labels_Bhw):
        if not ours[b]:
            continue
        student = torch.stack(list(observations(student_BDhw[b], ours[b], scale=scale).values()))
        teacher = torch.stack(list(observations(teacher_BDhw[b].detach(), theirs[b], scale=scale).values()))
        cost_hw = divergence(student, teacher)
        costs.append(cost_hw[labels_hw != ignore_index] if reduction == "pixel" else cost_hw.flatten())
        elements += costs[-1].numel() if reduction == "pixel" else student.numel()
    return torch.cat(costs).sum() / elements if elements else 0 * student_BDhw.sum()


def pixel_kd(
    student_BKhw,
    teacher_BKhw,
    labels_BHW,
    *,
    temperature=1.0,
    reduction="pixel",
    upsample_logits=False,
    ignore_index=255,
):
    teacher_BKhw = teacher_BKhw.detach()
    if upsample_logits:
        size = tuple(labels_BHW.shape[1:])
        student_BKhw = torch.stack([bilinear(image, size) for image in student_BKhw])
        teacher_BKhw = torch.stack([bilinear(image, size) for image in teacher_BKhw])
    labels_Bhw = nearest(labels_BHW, student_BKhw.shape[2:])
    costs = [
        temperature**2 * divergence(ours / temperature, theirs / temperature)
        for ours, theirs in zip(student_BKhw, teacher_BKhw, strict=True)
    ]
    if reduction == "element":
        return torch.stack(costs).mean() / student_BKhw.shape[1]
    counted = torch.stack(costs)[labels_Bhw != ignore_index]
    return counted.mean() if counted.numel() else 0 * student_BKhw.sum()
