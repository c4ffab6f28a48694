"""The method written a second time, slowly: image by image, class by class, from its description.

Tests hold the package to it, and benchmarks measure the package against it. It shares no code with the package, works
in the dtype and on the device of its inputs, and is differentiable. Features are the *projected* ones, on one grid.
"""

import torch
from torch.nn import functional as F

IGNORED = 255


def random_batch(
    *,
    batch=2,
    student_channels=6,
    teacher_channels=6,
    num_classes=5,
    grid=(5, 4),
    labels=(17, 13),
    ignored=0.15,
    dtype=torch.float64,
    seed=0,
):
    """Keywords of a distiller call. Labels come in patches; the last class is nowhere, and class b not in image b."""
    random = torch.Generator().manual_seed(seed)

    def maps(channels):
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


def nearest(labels_BHW, size):
    """Cell (i, j) takes pixel (floor(i H / h), floor(j W / w))."""
    rows, columns = ([i * pixels // n for i in range(n)] for pixels, n in zip(labels_BHW.shape[1:], size, strict=True))
    return labels_BHW[:, rows][:, :, columns]


def mean(costs, anything):
    """Of all numbers of all the tensors, or a zero that hangs on ``anything``."""
    numbers = torch.cat([cost.flatten() for cost in costs]) if costs else torch.empty(0)
    return numbers.mean() if len(numbers) else 0 * anything.sum()


def bilinear(map_Khw, size):
    """Linear interpolation along each axis, first and last cells on the first and last pixels, by the library."""
    return F.interpolate(map_Khw[None], size=size, mode="bilinear", align_corners=True)[0]


def perspectives(features_BDhw, labels_Bhw, *, scope="image"):
    """For each image, the prototype of each class that occurs in it (or, with ``scope="batch"``, in the batch)."""
    pixels_BhwD = features_BDhw.movedim(1, -1)
    pixels_BhwD = pixels_BhwD / pixels_BhwD.norm(dim=-1, keepdim=True)
    found = []
    for b in range(len(labels_Bhw)):
        members = [b] if scope == "image" else list(range(len(labels_Bhw)))
        pixels, labels = pixels_BhwD[members], labels_Bhw[members]
        means = {label: pixels[labels == label].mean(0) for label in sorted({*labels.flatten().tolist()} - {IGNORED})}
        found.append({label: mean_D / mean_D.norm() for label, mean_D in means.items()})
    return found


def observations(features_Dhw, prototypes, *, scale=10.0):
    """For each class of one image's perspective, the map of scaled cosines."""
    directions_hwD = (features_Dhw / features_Dhw.norm(dim=0)).movedim(0, -1)
    return {label: scale * (directions_hwD * row).sum(-1) for label, row in prototypes.items()}


def divergence(student_logits_N, teacher_logits_N):
    """KL(softmax(teacher) ‖ softmax(student)) over the first axis."""
    student, teacher = torch.softmax(student_logits_N, dim=0), torch.softmax(teacher_logits_N, dim=0)
    return (teacher * (teacher.log() - student.log())).sum(0)


def regularisation(features_BDhw, labels_BHW, *, num_classes, scope="image", absent="mask", scale=10.0):
    size = tuple(labels_BHW.shape[1:])
    rows = perspectives(features_BDhw, nearest(labels_BHW, features_BDhw.shape[2:]), scope=scope)
    costs = []
    for features_Dhw, labels_HW, prototypes in zip(features_BDhw, labels_BHW, rows, strict=True):
        seen = observations(features_Dhw, prototypes, scale=scale)
        if absent == "zero":
            nothing = features_Dhw.new_zeros(features_Dhw.shape[1:])
            seen = {label: seen.get(label, nothing) for label in range(num_classes)}
        if not seen:
            continue
        logits_NHW = bilinear(torch.stack(list(seen.values())), size)
        for place, label in enumerate(seen):
            at = labels_HW == label
            costs.append(logits_NHW[:, at].logsumexp(0) - logits_NHW[place, at])
    return mean(costs, features_BDhw)


def alignment(student_BDhw, teacher_BDhw, labels_BHW, *, scope="image"):
    labels_Bhw = nearest(labels_BHW, student_BDhw.shape[2:])
    ours, theirs = (perspectives(net, labels_Bhw, scope=scope) for net in (student_BDhw, teacher_BDhw.detach()))
    costs = [(1 - a[label] @ b[label]) / 2 for a, b in zip(ours, theirs, strict=True) for label in a]
    return mean(costs, student_BDhw)


def observation(
    student_BDhw, teacher_BDhw, labels_BHW, *, scope="image", reduction="pixel", scale=10.0, counted=lambda label: True
):
    """``counted`` says of which labels the pixels count."""
    labels_Bhw = nearest(labels_BHW, student_BDhw.shape[2:])
    nets = student_BDhw, teacher_BDhw.detach()
    rows = [perspectives(net, labels_Bhw, scope=scope) for net in nets]
    costs = []
    for b, labels_hw in enumerate(labels_Bhw):
        if rows[0][b]:
            cost_hw = divergence(
                *(torch.stack(list(observations(net[b], of[b], scale=scale).values())) for net, of in zip(nets, rows))
            )
            if reduction == "pixel":
                costs.append(cost_hw[(labels_hw != IGNORED) & counted(labels_hw)])
            else:
                costs.append((cost_hw / len(rows[0][b])).repeat(len(rows[0][b]), 1))  # as often as it has classes
    return mean(costs, student_BDhw)


def pixel_kd(student_BKhw, teacher_BKhw, labels_BHW, *, temperature=1.0, reduction="pixel", upsample_logits=False):
    nets = student_BKhw / temperature, teacher_BKhw.detach() / temperature
    if upsample_logits:
        nets = [torch.stack([bilinear(image, tuple(labels_BHW.shape[1:])) for image in net]) for net in nets]
    costs_Bhw = temperature**2 * torch.stack([divergence(*images) for images in zip(*nets, strict=True)])
    if reduction == "element":
        return costs_Bhw.mean() / student_BKhw.shape[1]
    return mean([costs_Bhw[nearest(labels_BHW, costs_Bhw.shape[1:]) != IGNORED]], student_BKhw)
