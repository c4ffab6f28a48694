"""KL between two nets' similarities with many samples, without ever holding a map of pixels by samples.

A pixel's divergence looks at that pixel alone, and its gradient in the student's logits is the difference of two
softmaxes: so the pixels are walked through in blocks, and each block's gradient goes back to the student's vectors at
once. What is kept is that gradient. The floor is three matrix products and two exponentials a pair.
"""

from typing import Any

import torch
from torch import Tensor

BLOCK_ELEMENTS = 2**20
"""Logits in a block on a CPU, of both nets: 128 pixels at 4096 samples, 4 MiB in float32.

Own choice: on one core with a cache of 1 MiB and 32 MiB shared, 2**19 to 2**21 are equally fast, 2**17 and 2**22 a
tenth slower or more.
"""

BLOCK_ELEMENTS_BESIDE_A_CPU = 2**25
"""The same on any other device, where each block costs a dozen launches (own choice, not measured): 128 MiB."""


def block_of_pixels(samples_SD: Tensor) -> int:
    """How many pixels are compared with those samples at a time."""
    elements = BLOCK_ELEMENTS if samples_SD.device.type == "cpu" else BLOCK_ELEMENTS_BESIDE_A_CPU
    return max(1, elements // (2 * len(samples_SD)))


class _RelationDivergence(torch.autograd.Function):
    """(student_ND, teacher_ND, samples_SD) to divergence_N; the gradient goes to the student only."""

    @staticmethod
    def forward(ctx: Any, student_ND: Tensor, teacher_ND: Tensor, samples_SD: Tensor) -> Tensor:
        divergences, gradients = [], []
        step = block_of_pixels(samples_SD)
        for student_nD, teacher_nD in zip(student_ND.split(step), teacher_ND.split(step), strict=True):
            # One product for both nets: the samples are packed once.
            logits_2nS = torch.stack([student_nD, teacher_nD]) @ samples_SD.mT
            logits_2nS.sub_(logits_2nS.amax(2, keepdim=True))
            difference_nS = logits_2nS[1] - logits_2nS[0]
            student_nS, teacher_nS = logits_2nS.exp_()
            student_n1, teacher_n1 = student_nS.sum(1, keepdim=True), teacher_nS.sum(1, keepdim=True)
            ratio_n1 = student_n1 / teacher_n1
            expected_n = torch.linalg.vecdot(teacher_nS, difference_nS) / teacher_n1[:, 0]
            divergences.append(expected_n + ratio_n1[:, 0].log())
            if ctx.needs_input_grad[0]:
                student_nS.sub_(teacher_nS.mul_(ratio_n1))
                gradients.append((student_nS @ samples_SD).div_(student_n1))
        if gradients:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(divergences)

    @staticmethod
    def backward(ctx: Any, to_divergence_N: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_ND,) = ctx.saved_tensors
        return to_divergence_N[:, None] * gradient_ND, None, None


def relation_divergence(student_ND: Tensor, teacher_ND: Tensor, samples_SD: Tensor) -> Tensor:
    """KL of each pixel between softmax(teacher · samples) and softmax(student · samples), over the samples.

    Args:
        student_ND: vectors of N pixels, divided by the temperature; the gradient reaches these.
        teacher_ND: the same of the teacher, a constant.
        samples_SD: what both are compared with, a constant.

    Returns:
        ``divergence_N``. It can be differentiated once. Memory beside the input: the gradient's (N, D) map, if one is
        wanted, and blocks of a few MiB; nothing of the size N × S.

    >>> import torch
    >>> from apd.rivals.relation_divergence import relation_divergence
    >>> samples = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> student, teacher = torch.tensor([[2.0, 2.0], [3.0, 1.0]]), torch.tensor([[5.0, 5.0], [1.0, 3.0]])
    >>> relation_divergence(student, teacher, samples)
    tensor([0.0000, 1.5232])
    """
    return _RelationDivergence.apply(student_ND, teacher_ND, samples_SD)
