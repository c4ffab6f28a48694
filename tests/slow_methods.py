"""The other methods written a second time, slowly: pixel by pixel from their formulas, sharing no code with `apd`.

Maps are on one grid; each function takes the labels as they are and returns the terms by name. Convolutions are given
as the pair of their weight and bias (or ``None``).
"""

import torch
from slow_reference import divergence, nearest
from torch import Tensor


def valid_places(labels_BHW: Tensor, size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """(image, row, column, label) of the pixels that have one."""
    labels_Bhw = nearest(labels_BHW, size)
    return [
        (b, i, j, int(labels_Bhw[b, i, j]))
        for b in range(len(labels_Bhw))
        for i in range(size[0])
        for j in range(size[1])
        if labels_Bhw[b, i, j] != 255
    ]


def cells(places, image: int, size: tuple[int, int], window: tuple[int, int]) -> list[list[tuple[int, int]]]:
    """The valid (row, column) of an image window by window; those without any are left out."""
    found = [
        [(i, j) for b, i, j, _ in places if b == image and top <= i < top + window[0] and left <= j < left + window[1]]
        for top in range(0, size[0], window[0])
        for left in range(0, size[1], window[1])
    ]
    return [inside for inside in found if inside]


def mean(costs: list[Tensor], anything: Tensor) -> Tensor:
    return torch.stack(costs).mean() if costs else 0 * anything.sum()


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / (a.norm() * b.norm())


def convolution(map_Chw: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Zero-padded convolution of stride 1 whose kernel keeps the grid."""
    _, height, width = map_Chw.shape
    reach = weight.shape[2] // 2
    rows = []
    for i in range(height):
        for j in range(width):
            value = torch.zeros(len(weight), dtype=map_Chw.dtype) if bias is None else bias
            for di in range(-reach, reach + 1):
                for dj in range(-reach, reach + 1):
                    if 0 <= i + di < height and 0 <= j + dj < width:
                        value = value + weight[:, :, di + reach, dj + reach] @ map_Chw[:, i + di, j + dj]
            rows.append(value)
    return torch.stack(rows, dim=1).view(-1, height, width)


def fitnet(student, teacher, labels, *, adapter):
    costs = [
        (adapter[0][:, :, 0, 0] @ student[b, :, i, j] - teacher[b, :, i, j]).square().mean()
        for b, i, j, _ in valid_places(labels, student.shape[2:])
    ]
    return {"fitnet": mean(costs, student)}


def attention_transfer(student, teacher, labels):
    costs = []
    for image in range(len(student)):
        places = [(i, j) for b, i, j, _ in valid_places(labels, student.shape[2:]) if b == image]
        if places:
            ours, theirs = (
                torch.stack([net[image, :, i, j].square().mean() for i, j in places]) for net in (student, teacher)
            )
            costs += list((ours / ours.norm() - theirs / theirs.norm()).square())
    return {"attention_transfer": mean(costs, student)}


def mgd(student, teacher, labels, *, kept, adapter, hidden, out):
    total = 0 * student.sum()
    places = valid_places(labels, student.shape[2:])
    for image in range(len(student)):
        here = [(i, j) for b, i, j, _ in places if b == image]
        adapted = convolution(student[image], *adapter) if adapter else student[image]
        visible = torch.zeros_like(adapted)
        for i, j in here:
            if kept[image, i, j]:
                visible[:, i, j] = adapted[:, i, j]
        generated = convolution(convolution(visible, *hidden).clamp(min=0), *out)
        for i, j in here:
            total = total + (generated[:, i, j] - teacher[image, :, i, j]).square().sum()
    return {"mgd": total / len(student)}


def skd(student, teacher, labels, *, window):
    costs, size = [], student.shape[2:]
    for image in range(len(student)):
        nodes = [
            [torch.stack([net[image, :, i, j] for i, j in inside]).amax(0) for net in (student, teacher)]
            for inside in cells(valid_places(labels, size), image, size, window)
        ]
        costs += [(cosine(a[0], b[0]) - cosine(a[1], b[1])).square() for a in nodes for b in nodes]
    return {"skd": mean(costs, student)}


def ifvd(student, teacher, labels):
    costs, places = [], valid_places(labels, student.shape[2:])
    for image, row, column, label in places:
        own = [(i, j) for b, i, j, other in places if (b, other) == (image, label)]
        cosines = []
        for net in (student, teacher):
            centre = torch.stack([net[image, :, i, j] for i, j in own]).mean(dim=0)
            cosines.append(cosine(net[image, :, row, column], centre))
        costs.append((cosines[0] - cosines[1]).square())
    return {"ifvd": mean(costs, student)}


def class_means(student, teacher, labels):
    """An image's classes in turn: the two networks' mean of a class's normalised pixels, normalised."""
    places = valid_places(labels, student.shape[2:])
    for image in range(len(student)):
        found = []
        for k in sorted({label for b, _, _, label in places if b == image}):
            own = [(i, j) for b, i, j, label in places if (b, label) == (image, k)]
            means = [
                sum(net[image, :, i, j] / net[image, :, i, j].norm() for i, j in own) for net in (student, teacher)
            ]
            found.append([mean / mean.norm() for mean in means])
        yield found


def i2ckd(student, teacher, labels, *, adapter, margin):
    adapted = torch.stack([convolution(features, adapter, None) for features in student])
    costs = []
    for classes in class_means(adapted, teacher, labels):
        for k, (anchor, positive) in enumerate(classes):
            negatives = [theirs for j, (_, theirs) in enumerate(classes) if j != k]
            costs += [((anchor - positive).norm() - (anchor - n).norm() + margin).clamp(min=0) for n in negatives]
    return {"i2ckd": mean(costs, adapted)}


def idd(student, teacher, labels):
    costs = []
    for classes in class_means(student, teacher, labels):
        for k, a in enumerate(classes):
            costs += [((a[0] - b[0]).norm() - (a[1] - b[1]).norm()).square() for b in classes[:k]]
    return {"idd": mean(costs, student)}


def lskd(student, teacher, labels, *, temperature):
    costs = []
    for b, i, j, _ in valid_places(labels, student.shape[2:]):
        ours, theirs = (
            (net[b, :, i, j] - net[b, :, i, j].mean()) / net[b, :, i, j].std() / temperature
            for net in (student, teacher)
        )
        costs.append(temperature**2 * divergence(ours, theirs))
    return {"lskd": mean(costs, student)}


def cwd(student, teacher, labels, *, temperature):
    costs = []
    for image in range(len(student)):
        places = [(i, j) for b, i, j, _ in valid_places(labels, student.shape[2:]) if b == image]
        for channel in range(student.shape[1]) if places else ():
            ours, theirs = (
                torch.stack([net[image, channel, i, j] / temperature for i, j in places]) for net in (student, teacher)
            )
            costs.append(temperature**2 * divergence(ours, theirs))
    return mean(costs, student)


def pearson(x: Tensor, y: Tensor) -> Tensor:
    return cosine(x - x.mean(), y - y.mean())


def dist(student, teacher, labels, *, temperature):
    places = valid_places(labels, student.shape[2:])
    if not places:
        return {"inter": 0 * student.sum(), "intra": 0 * student.sum()}
    ours, theirs = (
        torch.stack([torch.softmax(net[b, :, i, j] / temperature, dim=0) for b, i, j, _ in places])
        for net in (student, teacher)
    )
    inter = torch.stack([pearson(a, b) for a, b in zip(ours, theirs, strict=True)]).mean()
    intra = torch.stack([pearson(a, b) for a, b in zip(ours.T, theirs.T, strict=True)]).mean()
    return {"inter": temperature**2 * (1 - inter), "intra": temperature**2 * (1 - intra)}


def dkd(student, teacher, labels, *, temperature):
    target, non_target = [], []
    for b, i, j, label in valid_places(labels, student.shape[2:]):
        others = [k for k in range(student.shape[1]) if k != label]
        ours, theirs = (torch.softmax(net[b, :, i, j] / temperature, dim=0) for net in (student, teacher))
        p, q = theirs[label], ours[label]
        target.append(p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log())
        p, q = theirs[others] / theirs[others].sum(), ours[others] / ours[others].sum()
        non_target.append((p * (p / q).log()).sum())
    return {"target": temperature**2 * mean(target, student), "non_target": temperature**2 * mean(non_target, student)}


def cirkd_batch(student, teacher, labels, *, temperature, window):
    """Cells of window × window pixels; each is the mean of its valid pixels."""
    size = student.shape[2:]
    images = [
        [
            [torch.stack([net[image, :, i, j] for i, j in inside]).mean(0) for net in (student, teacher)]
            for inside in cells(valid_places(labels, size), image, size, (window, window))
        ]
        for image in range(len(student))
    ]
    costs = []
    for first in images:
        for second in filter(None, images):
            for a in first:
                ours, theirs = (torch.stack([cosine(a[net], b[net]) / temperature for b in second]) for net in (0, 1))
                costs.append(divergence(ours, theirs))
    return mean(costs, student)


def cirkd_head(student, labels, *, hidden, scale, shift, out):
    """The head of the student's pixels, its norm over the batch's valid pixels: {(image, row, column): vector}."""
    places = [(b, i, j) for b, i, j, _ in valid_places(labels, student.shape[2:])]
    if not places:
        return {}
    values = torch.stack([hidden[:, :, 0, 0] @ student[b, :, i, j] for b, i, j in places])
    spread = (values.var(dim=0, unbiased=False) + 1e-5).sqrt()
    values = ((values - values.mean(dim=0)) / spread * scale.flatten() + shift.flatten()).clamp(min=0)
    return {place: out[:, :, 0, 0] @ value for place, value in zip(places, values, strict=True)}


def cirkd_memory(headed, student, teacher, samples, *, temperature):
    costs = [
        divergence(
            torch.stack([cosine(value, sample) / temperature for sample in samples]),
            torch.stack([cosine(teacher[b, :, i, j], sample) / temperature for sample in samples]),
        )
        for (b, i, j), value in headed.items()
    ]
    return mean(costs, student)
