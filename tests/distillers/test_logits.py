"""What single methods of logits must do beside what all methods do."""

import torch
from every_method import random_batch

from apd import DIST, DKD, LSKD, pixel_kd_loss


def test_at_temperature_one_the_parts_of_decoupled_distillation_make_up_the_whole():
    """KL = target + (1 - teacher's probability of the label) × non-target, pixel by pixel (Zhao et al. 2022)."""
    batch = random_batch(batch=1, grid=(1, 1), labels=(1, 1), ignored=0)
    out = DKD()(**batch)
    probability = batch["teacher_logits"].softmax(1)[0, batch["labels"].item(), 0, 0]
    whole = pixel_kd_loss(batch["student_logits"], batch["teacher_logits"], batch["labels"])
    torch.testing.assert_close(out["target"] + (1 - probability) * out["non_target"], whole)


def test_correlations_see_neither_a_scaling_towards_the_uniform_nor_a_class_in_which_the_teacher_does_not_vary():
    batch, nothing = random_batch(), torch.zeros((), dtype=torch.float64)
    teacher = batch["teacher_logits"].softmax(1)
    twins = {"student_logits": (0.5 * teacher + 0.5 / 5).log(), "teacher_logits": teacher.log()}
    torch.testing.assert_close(DIST().eval()(**batch | twins)["loss"], nothing, atol=1e-12, rtol=0)
    assert DIST()(**batch | {"teacher_logits": torch.zeros_like(teacher)})["loss"] == 0


def test_standardised_distillation_sees_neither_a_shift_nor_a_scale_of_a_pixels_logits():
    batch, nothing = random_batch(), torch.zeros((), dtype=torch.float64)
    scale, shift = torch.rand(2, *batch["student_logits"][:, :1].shape, dtype=torch.float64) + 0.5
    changed = batch | {"student_logits": scale * batch["student_logits"] + shift}
    torch.testing.assert_close(LSKD()(**changed), LSKD()(**batch))
    twins = batch | {"student_logits": scale * batch["teacher_logits"] + shift}
    torch.testing.assert_close(LSKD().eval()(**twins)["loss"], nothing, atol=1e-12, rtol=0)
