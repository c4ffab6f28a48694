"""The other methods written a second time, slowly: from their formulas, image by image, sharing no code with `apd`.

Maps are on one grid; each function takes the labels as they are and returns the terms by name. Convolutions are given
as the pair of their weight and bias (or ``None``).
"""

from itertools import product

import torch
from slow_reference import IGNORED, divergence, mean, nearest, perspectives
from torch.nn import functional as F


def per_image(labels_BHW, *nets_BChw):
    """(pixels, channels) of every image of each network at the pixels with a label, but for images without any."""
    for valid_hw, *maps in zip(nearest(labels_BHW, nets_BChw[0].shape[2:]) != IGNORED, *nets_BChw, strict=True):
        if valid_hw.any():
            yield [map_Chw[:, valid_hw].T for map_Chw in maps]


def with_labels(student, teacher, labels):
    """As `per_image`, with the pixels' labels."""
    for ours, theirs, own in per_image(labels, student, teacher, nearest(labels, student.shape[2:])[:, None]):
        yield [ours, theirs, own[:, 0]]


def windows(student, teacher, labels, window, pool):
    """Of every image, its windows in turn: the two networks' pixels with a label, pooled."""
    batch, _, height, width = student.shape
    number_hw = torch.arange(height)[:, None] // window[0] * width + torch.arange(width) // window[1]
    for *nets, number in per_image(labels, student, teacher, number_hw.expand(batch, 1, -1, -1)):
        yield [[pool(net[number[:, 0] == n]) for net in nets] for n in number.unique()]


def cosine(a, b):
    return (a * b).sum() / (a.norm() * b.norm())


def convolved(maps, weight, bias=None):
    """A convolution of stride 1, padded with zeros, that keeps the grid."""
    return F.conv2d(maps, weight, bias, padding=weight.shape[2] // 2)


def fitnet(student, teacher, labels, *, adapter):
    adapted = per_image(labels, convolved(student, *adapter), teacher)
    return {"fitnet": mean([(ours - theirs).square().mean(1) for ours, theirs in adapted], student)}


def attention_transfer(student, teacher, labels):
    costs = []
    for nets in per_image(labels, student, teacher):
        ours, theirs = (net.square().mean(1) for net in nets)
        costs.append((ours / ours.norm() - theirs / theirs.norm()).square())
    return {"attention_transfer": mean(costs, student)}


def mgd(student, teacher, labels, *, kept, adapter, hidden, out):
    valid_B1hw = (nearest(labels, student.shape[2:]) != IGNORED)[:, None]
    visible = convolved(student, *adapter) * (valid_B1hw & kept[:, None])
    generated = convolved(convolved(visible, *hidden).clamp(min=0), *out)
    return {"mgd": ((generated - teacher).square() * valid_B1hw).sum() / len(student)}


def skd(student, teacher, labels, *, window):
    costs = []
    for nodes in windows(student, teacher, labels, window, lambda net: net.amax(0)):
        costs += [(cosine(a[0], b[0]) - cosine(a[1], b[1])).square() for a in nodes for b in nodes]
    return {"skd": mean(costs, student)}


def ifvd(student, teacher, labels):
    costs = []
    for *nets, own in with_labels(student, teacher, labels):
        for pixel, label in enumerate(own):
            ours, theirs = (cosine(net[pixel], net[own == label].mean(0)) for net in nets)
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
    for nets in per_image(labels, student, teacher):
        nets = [(net - net.mean(1, keepdim=True)) / net.std(1, keepdim=True) / temperature for net in nets]
        costs.append(temperature**2 * divergence(*(net.T for net in nets)))
    return {"lskd": mean(costs, student)}


def cwd(student, teacher, labels, *, temperature):
    nets = per_image(labels, student / temperature, teacher / temperature)
    return mean([temperature**2 * divergence(*image) for image in nets], student)  # of each channel


def dist(student, teacher, labels, *, temperature):
    nets = zip(*per_image(labels, student, teacher), strict=True)
    ours, theirs = (torch.softmax(torch.cat(net) / temperature, dim=1) for net in nets)
    terms = {}
    for name, nets in {"inter": (ours, theirs), "intra": (ours.T, theirs.T)}.items():
        correlations = [torch.corrcoef(torch.stack(rows))[0, 1] for rows in zip(*nets, strict=True)]
        terms[name] = temperature**2 * (1 - torch.stack(correlations).mean())
    return terms


def dkd(student, teacher, labels, *, temperature):
    target, non_target = [], []
    for *nets, own in with_labels(student, teacher, labels):
        q, p = (torch.softmax(net / temperature, dim=1) for net in nets)
        other = F.one_hot(own, q.shape[1]) == 0
        both = torch.stack([p[~other], 1 - p[~other]]), torch.stack([q[~other], 1 - q[~other]])
        q, p = (net[other].view(len(own), -1) for net in (q, p))
        rest = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
        target.append((both[0] * (both[0] / both[1]).log()).sum(0))
        non_target.append((rest[0] * (rest[0] / rest[1]).log()).sum(1))
    return {"target": temperature**2 * mean(target, student), "non_target": temperature**2 * mean(non_target, student)}


def cirkd_batch(student, teacher, labels, *, temperature, window):
    """Cells of window × window pixels; each is the mean of its valid pixels."""
    images, costs = list(windows(student, teacher, labels, (window, window), lambda net: net.mean(0))), []
    for first, second in product(images, images):
        for a in first:
            ours, theirs = (torch.stack([cosine(a[net], b[net]) / temperature for b in second]) for net in (0, 1))
            costs.append(divergence(ours, theirs))
    return mean(costs, student)


def cirkd_head(student, labels, head):
    """The head of the student's pixels, its norm over the batch's valid pixels: {(image, row, column): vector}."""
    places = [tuple(place) for place in (nearest(labels, student.shape[2:]) != IGNORED).nonzero().tolist()]
    values = torch.stack([head.hidden.weight[:, :, 0, 0] @ student[b, :, i, j] for b, i, j in places])
    values = F.batch_norm(values, None, None, head.scale.flatten(), head.shift.flatten(), training=True).clamp(min=0)
    return dict(zip(places, values @ head.out.weight[:, :, 0, 0].T, strict=True))


def cirkd_memory(headed, student, teacher, samples, *, temperature):
    def logits(pixel):
        return torch.stack([cosine(pixel, sample) / temperature for sample in samples])

    costs = [divergence(logits(value), logits(teacher[b, :, i, j])) for (b, i, j), value in headed.items()]
    return mean(costs, student)


def hierarchical_context(student_BChw, teacher_BChw):
    """Mean squared differences of the maps and of their means in 4 × 4, 2 × 2 and 1 cells, the coarser the lighter."""
    total, weights, difference = F.mse_loss(student_BChw, teacher_BChw), 1.0, student_BChw - teacher_BChw
    for weight, side in enumerate(side for side in (4, 2, 1) if side < student_BChw.shape[2]):
        total = total + F.adaptive_avg_pool2d(difference, side).square().mean() / 2 ** (weight + 1)
        weights += 1 / 2 ** (weight + 1)
    return total / weights


def review_kd(student, teacher, parts):
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
