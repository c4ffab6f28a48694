"""Distillation between detectors a second time, slowly: box by box, from lists with one (n, C) tensor an image."""

from itertools import product

import torch
from torch import Tensor


def divergence(student_K: Tensor, teacher_K: Tensor) -> Tensor:
    student, teacher = torch.softmax(student_K, 0), torch.softmax(teacher_K, 0)
    return (teacher * (teacher.log() - student.log())).sum()


def mean(costs: list[Tensor], anything: Tensor) -> Tensor:
    return torch.stack(costs).mean() if costs else 0 * anything.sum()


def kd(student: list[Tensor], teacher: list[Tensor], *, temperature: float = 1.0) -> Tensor:
    costs = [
        temperature**2 * divergence(ours / temperature, theirs / temperature)
        for a, b in zip(student, teacher, strict=True)
        for ours, theirs in zip(a, b, strict=True)
    ]
    return mean(costs, student[0])


def dkd(student: list[Tensor], teacher: list[Tensor], labels: list[Tensor], *, temperature: float = 1.0) -> dict:
    """Zhao et al. 2022, box by box with the label that the box was matched with."""
    target, non_target = [], []
    for a, b, c in zip(student, teacher, labels, strict=True):
        for ours, theirs, label in zip(a / temperature, b / temperature, c.tolist(), strict=True):
            p, q = torch.softmax(theirs, 0), torch.softmax(ours, 0)
            others = [k for k in range(len(p)) if k != label]
            two = [(p[label], q[label]), (p[others].sum(), q[others].sum())]
            target.append(temperature**2 * sum(x * (x / y).log() for x, y in two))
            non_target.append(temperature**2 * divergence(ours[others], theirs[others]))
    return {"target": mean(target, student[0]), "non_target": mean(non_target, student[0])}


def prototypes(vectors_ND: Tensor, labels_N: Tensor) -> dict[int, Tensor]:
    """The direction of the mean direction of each label's vectors in one image."""
    rows = {}
    for label in sorted(set(labels_N.tolist())):
        mean_D = torch.stack([v / v.norm() for v in vectors_ND[labels_N == label]]).mean(0)
        rows[label] = mean_D / mean_D.norm()
    return rows


def roi_apd(student: list[Tensor], teacher: list[Tensor], labels: list[Tensor], *, scale: float = 10.0) -> dict:
    """The three terms of projected vectors; objects and background apart in the observation."""
    regularisation, alignment, objects, background = [], [], [], []
    for a, b, c in zip(student, teacher, labels, strict=True):
        ours, theirs, own = prototypes(a, c), prototypes(b.detach(), c), prototypes(b, c)
        names = list(ours)
        alignment += [(1 - ours[name] @ theirs[name]) / 2 for name in names]
        for mine, other, label in zip(a, b, c.tolist(), strict=True):
            seen = torch.stack([scale * (mine / mine.norm()) @ ours[name] for name in names])
            other_view = torch.stack(
                [scale * (other.detach() / other.detach().norm()) @ theirs[name] for name in names]
            )
            (objects if label > 0 else background).append(divergence(seen, other_view))
            other_view = torch.stack([scale * (other / other.norm()) @ own[name] for name in names])
            regularisation.append(other_view.logsumexp(0) - other_view[names.index(label)])
    return {
        "regularisation": mean(regularisation, teacher[0]),
        "alignment": mean(alignment, student[0]),
        "observation": (mean(objects, student[0]) + mean(background, student[0])) / 2,
    }


def feature_matching(student: list[Tensor], teacher: list[Tensor], adapters: list[Tensor], inside: Tensor) -> Tensor:
    """Mean over levels of the mean squared distance of the pixels that lie inside their image."""
    levels = []
    for ours, theirs, adapter in zip(student, teacher, adapters, strict=True):
        costs = []
        batch, _, height, width = ours.shape
        for image, i, j in product(range(batch), range(height), range(width)):
            if inside[image, i * inside.shape[1] // height, j * inside.shape[2] // width] == 0:
                costs.append((adapter @ ours[image, :, i, j] - theirs[image, :, i, j]).square().mean())
        levels.append(mean(costs, ours))
    return torch.stack(levels).mean()


def hierarchical_context(student_BChw: Tensor, teacher_BChw: Tensor) -> Tensor:
    batch, channels, height, width = student_BChw.shape
    total, weight_sum, weight = 0.0, 0.0, 1.0
    for side in (None, 4, 2, 1):
        if side is not None and side >= height:
            continue
        weight = 1.0 if side is None else weight / 2
        cells = []
        rows, columns = (height, width) if side is None else (side, side)
        for image, channel, i, j in product(range(batch), range(channels), range(rows), range(columns)):
            # a cell reaches from the floor of its upper to the ceiling of its lower bound
            up, low = i * height // rows, -(-(i + 1) * height // rows)
            left, right = j * width // columns, -(-(j + 1) * width // columns)
            ours, theirs = (maps[image, channel, up:low, left:right].mean() for maps in (student_BChw, teacher_BChw))
            cells.append((ours - theirs).square())
        total, weight_sum = total + weight * torch.stack(cells).mean(), weight_sum + weight
    return total / weight_sum


def normalised(map_BChw: Tensor) -> Tensor:
    """Batch norm with the batch's own statistics and no scale or shift."""
    centred = map_BChw - map_BChw.mean((0, 2, 3), keepdim=True)
    return centred / (centred.square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()


def convolved(map_BChw: Tensor, weight: Tensor) -> Tensor:
    """A zero-padded convolution that keeps the grid."""
    batch, channels, height, width = map_BChw.shape
    reach = weight.shape[2] // 2
    padded = torch.zeros(batch, channels, height + 2 * reach, width + 2 * reach, dtype=map_BChw.dtype)
    padded[:, :, reach : reach + height, reach : reach + width] = map_BChw
    side = 2 * reach + 1
    patches = [padded[:, :, i : i + side, j : j + side].flatten(1) for i in range(height) for j in range(width)]
    return torch.stack([patch @ weight.flatten(1).T for patch in patches], dim=2).view(
        batch, len(weight), height, width
    )


def review_kd(student: list[Tensor], teacher: list[Tensor], parts: list[dict[str, Tensor]]) -> Tensor:
    """Levels from fine to coarse; of each its weights ``reduced``, ``out`` and, but for the last, ``shares``."""
    total, above = 0.0, None
    for ours, theirs, weights in reversed(list(zip(student, teacher, parts, strict=True))):
        mixed = normalised(convolved(ours, weights["reduced"]))
        if above is not None:
            _, _, height, width = mixed.shape
            rows = [i * above.shape[2] // height for i in range(height)]
            columns = [j * above.shape[3] // width for j in range(width)]
            handed = above[:, :, rows][:, :, :, columns]
            both = torch.cat([mixed, handed], 1)
            shares = torch.sigmoid(convolved(both, weights["shares"]) + weights["shares_bias"].view(1, 2, 1, 1))
            mixed = mixed * shares[:, :1] + handed * shares[:, 1:]
        above = mixed
        total = total + hierarchical_context(normalised(convolved(mixed, weights["out"])), theirs)
    return total
