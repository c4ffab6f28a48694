import pytest
import torch

from apd import APDLoss, PixelKD, pixel_kd_loss

from . import slow_reference as slow


def test_pixel_kd_is_the_function_and_the_term_of_apd():
    batch = slow.random_batch()
    options = {"temperature": 3.0, "reduction": "element"}
    out = PixelKD(weight=0.5, **options)(**batch)
    logits = batch["student_logits"], batch["teacher_logits"]
    term = APDLoss(6, 6, 5, width=4, **options).double()(**batch)["pixel_kd"]
    assert out["pixel_kd"] == pixel_kd_loss(*logits, batch["labels"], **options) == term
    torch.testing.assert_close(out["loss"], 0.5 * slow.pixel_kd(*logits, batch["labels"], **options))
    assert list(out) == ["pixel_kd", "loss"]


def test_pixel_kd_reaches_the_students_logits_only_and_has_nothing_to_train():
    batch = slow.random_batch()
    batch["teacher_logits"].requires_grad_()
    distiller = PixelKD()
    distiller(**batch)["loss"].backward()
    assert batch["student_logits"].grad.abs().max() > 0
    assert batch["teacher_logits"].grad is None
    assert batch["student_features"].grad is None
    assert distiller.student_parameters() == distiller.teacher_parameters() == list(distiller.parameters()) == []


def test_pixel_kd_needs_no_features():
    batch = slow.random_batch()
    bare = {name: batch[name] for name in ("student_logits", "teacher_logits", "labels")}
    assert PixelKD()(**bare)["loss"] == PixelKD()(**batch)["loss"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0: expected a positive number"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"weight": -1.0}, "weight=-1.0"),
        ({"weight": 0.0}, "weight=0.0"),
        ({"reduction": "sum"}, "reduction='sum'"),
    ],
)
def test_wrong_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        PixelKD(**options)
