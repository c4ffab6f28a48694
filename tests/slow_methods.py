"""The other methods written a second time, slowly: pixel by pixel from their formulas, sharing no code with `apd`.

Maps are on one grid; each function takes the labels as they are and returns the terms by name. Convolutions are given
as the pair of their weight and bias (or ``None``).
"""

from collections.abc import Iterator
from itertools import groupby, product
from operator import itemgetter

import torch
from slow_reference import IGNORED, divergence, mean, nearest, perspectives
from torch import Tensor
from torch.nn import functional as F


def valid_places(labels_BHW: Tensor, size: tuple[int, int]) -> list[tuple[int, int, int]]:
    """(image, row, column) of the pixels that have a label."""
    return [tuple(place) for place in (nearest(labels_BHW, size) != IGNORED).nonzero().tolist()]


def places_by_image(labels_BHW: Tensor, size: tuple[int, int]) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Every image's number and the (row, column) of its valid pixels, but for images without any."""
    for image, places in groupby(valid_places(labels_BHW, size), key=itemgetter(0)):
        yield image, [(i, j) for _, i, j in places]


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


def convolved(maps: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A convolution of stride 1, padded with zeros, that keeps the grid."""
    return F.conv2d(maps, weight, bias, padding=weight.shape[2] // 2)


def fitnet(student, teacher, labels, *, adapter):
    costs = [
        (adapter[0][:, :, 0, 0] @ student[b, :, i, j] - teacher[b, :, i, j]).square().mean()
        for b, i, j in valid_places(labels, student.shape[2:])
    ]
    return {"fitnet": mean(costs, student)}


def attention_transfer(student, teacher, labels):
    costs = []
    for image, places in places_by_image(labels, student.shape[2:]):
        ours, theirs = (pixels(net, image, places).square().mean(1) for net in (student, teacher))
        costs.append((ours / ours.norm() - theirs / theirs.norm()).square())
    return {"attention_transfer": mean(costs, student)}


def mgd(student, teacher, labels, *, kept, adapter, hidden, out):
    valid_B1hw = (nearest(labels, student.shape[2:]) != IGNORED)[:, None]
    visible = convolved(student, *adapter) * (valid_B1hw & kept[:, None])
    generated = convolved(convolved(visible, *hidden).clamp(min=0), *out)
    return {"mgd": ((generated - teacher).square() * valid_B1hw).sum() / len(student)}


def skd(student, teacher, labels, *, window):
    costs = []
    for image, places in places_by_image(labels, student.shape[2:]):
        grouped = cells(places, window)
        nodes = [[pixels(net, image, inside).amax(0) for net in (student, teacher)] for inside in grouped]
        costs += [(cosine(a[0], b[0]) - cosine(a[1], b[1])).square() for a in nodes for b in nodes]
    return {"skd": mean(costs, student)}


def ifvd(student, teacher, labels):
    costs, labels_Bhw = [], nearest(labels, student.shape[2:])
    for b, i, j in valid_places(labels, student.shape[2:]):
        own = labels_Bhw[b] == labels_Bhw[b, i, j]
        ours, theirs = (cosine(net[b, :, i, j], net[b, :, own].mean(dim=1)) for net in (student, teacher))
        costs.append((ours - theirs).square())
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
    for b, i, j in valid_places(labels, student.shape[2:]):
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
    valid = nearest(labels, student.shape[2:]) != IGNORED
    ours, theirs = (torch.softmax(net.movedim(1, -1)[valid] / temperature, dim=1) for net in (student, teacher))
    terms = {}
    for name, nets in {"inter": (ours, theirs), "intra": (ours.T, theirs.T)}.items():
        correlations = [torch.corrcoef(torch.stack(rows))[0, 1] for rows in zip(*nets, strict=True)]
        terms[name] = temperature**2 * (1 - torch.stack(correlations).mean())
    return terms


def dkd(student, teacher, labels, *, temperature):
    target, non_target = [], []
    for b, i, j in valid_places(labels, student.shape[2:]):
        label = nearest(labels, student.shape[2:])[b, i, j]
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
    places = valid_places(labels, student.shape[2:])
    values = torch.stack([head.hidden.weight[:, :, 0, 0] @ student[b, :, i, j] for b, i, j in places])
    values = F.batch_norm(values, None, None, head.scale.flatten(), head.shift.flatten(), training=True).clamp(min=0)
    return dict(zip(places, values @ head.out.weight[:, :, 0, 0].T, strict=True))


def cirkd_memory(headed, student, teacher, samples, *, temperature):
    def logits(pixel: Tensor) -> Tensor:
        return torch.stack([cosine(pixel, sample) / temperature for sample in samples])

    costs = [divergence(logits(value), logits(teacher[b, :, i, j])) for (b, i, j), value in headed.items()]
    return mean(costs, student)


def hierarchical_context(student_BChw: Tensor, teacher_BChw: Tensor) -> Tensor:
    """Mean squared differences of the maps and of their means in 4 × 4, 2 × 2 and 1 cells, the coarser the lighter."""
    total, weights, difference = F.mse_loss(student_BChw, teacher_BChw), 1.0, student_BChw - teacher_BChw
    for weight, side in enumerate(side for side in (4, 2, 1) if side < student_BChw.shape[2]):
        total = total + F.adaptive_avg_pool2d(difference, side).square().mean() / 2 ** (weight + 1)
        weights += 1 / 2 ** (weight + 1)
    return total / weights


def review_kd(student, teacher, parts) -> Tensor:
    """Levels from fine to coarse; of each the modules ``reduced``, ``out`` and, but for the last, ``shares``."""
    total, above = 0.0, None
    for ours, theirs, part in reversed(list(zip(student, teacher, parts, strict=True))):
        mixed = F.batch_norm(convolved(ours, part.reduced[0].weight), None, None, training=True)
        if above is not None:
            handed = F.interpolate(above, mixed.shape[2:])
            shares = torch.sigmoid(convolved(torch.cat([mixed, handed], 1), part.shares.weight, part.shares.bias))
            mixed = mixed * shares[:, :1] + handed * shares[:, 1:]
        above = mixed
        adapted = F.batch_norm(convolved(mixed, part.out[0].weight), None, None, training=True)
        total = total + hierarchical_context(adapted, theirs)
    return total
