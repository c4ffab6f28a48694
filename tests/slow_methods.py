"""The other methods written a second time, slowly: pixel by pixel from their formulas, sharing no code with `apd`.

Maps are on one grid; each function takes the labels as they are and returns the terms by name. Convolutions are given
as the pair of their weight and bias (or ``None``).
"""

from collections.abc import Iterator
from itertools import product

import torch
from slow_reference import IGNORED, divergence, mean, nearest, perspectives
from torch import Tensor


def valid_places(labels_BHW: Tensor, size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """(image, row, column, label) of the pixels that have one."""
    labels_Bhw = nearest(labels_BHW, size)
    places = product(range(len(labels_Bhw)), range(size[0]), range(size[1]))
    return [(*place, int(labels_Bhw[place])) for place in places if labels_Bhw[place] != IGNORED]


def places_by_image(labels_BHW: Tensor, size: tuple[int, int]) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Every image's number and the (row, column) of its valid pixels, but for images without any."""
    places = valid_places(labels_BHW, size)
    for image in sorted({b for b, *_ in places}):
        yield image, [(i, j) for b, i, j, _ in places if b == image]


def cells(places: list[tuple[int, int]], window: tuple[int, int]) -> list[list[tuple[int, int]]]:
    """The (row, column) of an image window by window; windows without any are left out."""
    found = {}
    for i, j in places:
        found.setdefault((i // window[0], j // window[1]), []).append((i, j))
    return list(found.values())


def pixels(net: Tensor, image: int, places: list[tuple[int, int]]) -> Tensor:
    """(places, channels) of one image of a network's maps."""
    return torch.stack([net[image, :, i, j] for i, j in places])


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / (a.norm() * b.norm())


def convolution(map_Chw: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Zero-padded convolution of stride 1 whose kernel keeps the grid."""
    _, height, width = map_Chw.shape
    reach = weight.shape[2] // 2
    rows = []
    for i, j in product(range(height), range(width)):
        value = torch.zeros(len(weight), dtype=map_Chw.dtype) if bias is None else bias
        for di, dj in product(range(-reach, reach + 1), repeat=2):
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
    for image, places in places_by_image(labels, student.shape[2:]):
        ours, theirs = (pixels(net, image, places).square().mean(1) for net in (student, teacher))
        costs.append((ours / ours.norm() - theirs / theirs.norm()).square())
    return {"attention_transfer": mean(costs, student)}


def mgd(student, teacher, labels, *, kept, adapter, hidden, out):
    total = 0 * student.sum()
    for image, places in places_by_image(labels, student.shape[2:]):
        adapted = convolution(student[image], *adapter)
        visible = torch.zeros_like(adapted)
        for i, j in places:
            if kept[image, i, j]:
                visible[:, i, j] = adapted[:, i, j]
        generated = convolution(convolution(visible, *hidden).clamp(min=0), *out)
        for i, j in places:
            total = total + (generated[:, i, j] - teacher[image, :, i, j]).square().sum()
    return {"mgd": total / len(student)}


def skd(student, teacher, labels, *, window):
    costs = []
    for image, places in places_by_image(labels, student.shape[2:]):
        grouped = cells(places, window)
        nodes = [[pixels(net, image, inside).amax(0) for net in (student, teacher)] for inside in grouped]
        costs += [(cosine(a[0], b[0]) - cosine(a[1], b[1])).square() for a in nodes for b in nodes]
    return {"skd": mean(costs, student)}


def ifvd(student, teacher, labels):
    costs, places = [], valid_places(labels, student.shape[2:])
    for b, row, column, label in places:
        cosines = []
        for net in (student, teacher):
            own = [net[b, :, i, j] for image, i, j, other in places if (image, other) == (b, label)]
            cosines.append(cosine(net[b, :, row, column], torch.stack(own).mean(dim=0)))
        costs.append((cosines[0] - cosines[1]).square())
    return {"ifvd": mean(costs, student)}


def class_means(student, teacher, labels):
    """An image's classes in turn: the two networks' mean of a class's normalised pixels, normalised."""
    images = zip(*(perspectives(net, nearest(labels, net.shape[2:])) for net in (student, teacher)), strict=True)
    return [[(ours[label], theirs[label]) for label in ours] for ours, theirs in images]


def i2ckd(student, teacher, labels, *, adapter, margin):
    adapted = convolved(student, adapter)
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
        nets = student[b, :, i, j], teacher[b, :, i, j]
        costs.append(temperature**2 * divergence(*((net - net.mean()) / net.std() / temperature for net in nets)))
    return {"lskd": mean(costs, student)}


def cwd(student, teacher, labels, *, temperature):
    costs = []
    for image, places in places_by_image(labels, student.shape[2:]):
        ours, theirs = (pixels(net, image, places) / temperature for net in (student, teacher))
        costs.append(temperature**2 * divergence(ours, theirs))  # of each channel
    return mean(costs, student)


def dist(student, teacher, labels, *, temperature):
    places = places_by_image(labels, student.shape[2:])
    nets = zip(*((pixels(student, *place), pixels(teacher, *place)) for place in places), strict=True)
    ours, theirs = (torch.softmax(torch.cat(net) / temperature, dim=1) for net in nets)

    def correlation(rows, others):  # Pearson's
        return torch.stack([cosine(a - a.mean(), b - b.mean()) for a, b in zip(rows, others, strict=True)]).mean()

    pairs = {"inter": (ours, theirs), "intra": (ours.T, theirs.T)}
    return {name: temperature**2 * (1 - correlation(*pair)) for name, pair in pairs.items()}


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
    images, costs = [], []
    for image, places in places_by_image(labels, student.shape[2:]):
        grouped = cells(places, (window, window))
        images.append([[pixels(net, image, inside).mean(0) for net in (student, teacher)] for inside in grouped])
    for first, second in product(images, images):
        for a in first:
            ours, theirs = (torch.stack([cosine(a[net], b[net]) / temperature for b in second]) for net in (0, 1))
            costs.append(divergence(ours, theirs))
    return mean(costs, student)


def cirkd_head(student, labels, head):
    """The head of the student's pixels, its norm over the batch's valid pixels: {(image, row, column): vector}."""
    places = [(b, i, j) for b, i, j, _ in valid_places(labels, student.shape[2:])]
    values = torch.stack([head.hidden.weight[:, :, 0, 0] @ student[b, :, i, j] for b, i, j in places])
    spread = (values.var(dim=0, unbiased=False) + 1e-5).sqrt()
    values = ((values - values.mean(dim=0)) / spread * head.scale.flatten() + head.shift.flatten()).clamp(min=0)
    return {place: head.out.weight[:, :, 0, 0] @ value for place, value in zip(places, values, strict=True)}


def cirkd_memory(headed, student, teacher, samples, *, temperature):
    costs = [
        divergence(
            torch.stack([cosine(value, sample) / temperature for sample in samples]),
            torch.stack([cosine(teacher[b, :, i, j], sample) / temperature for sample in samples]),
        )
        for (b, i, j), value in headed.items()
    ]
    return mean(costs, student)


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
    return torch.stack([convolution(image, weight, None) for image in map_BChw])


def review_kd(student, teacher, parts) -> Tensor:
    """Levels from fine to coarse; of each the modules ``reduced``, ``out`` and, but for the last, ``shares``."""
    total, above = 0.0, None
    for ours, theirs, part in reversed(list(zip(student, teacher, parts, strict=True))):
        mixed = normalised(convolved(ours, part.reduced[0].weight))
        if above is not None:
            handed = torch.stack([nearest(image, mixed.shape[2:]) for image in above])
            both = convolved(torch.cat([mixed, handed], 1), part.shares.weight)
            shares = torch.sigmoid(both + part.shares.bias.view(1, 2, 1, 1))
            mixed = mixed * shares[:, :1] + handed * shares[:, 1:]
        above = mixed
        total = total + hierarchical_context(normalised(convolved(mixed, part.out[0].weight)), theirs)
    return total
