"""``APDLoss.as_released`` against what the authors' released loss code computes (see golden/README.md)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from apd import APDLoss

GOLDEN = Path(__file__).parent / "golden"
CASES = {case["case"]: case for case in json.loads((GOLDEN / "expected.json").read_text())}
EXACT = {"rel": 1e-9, "abs": 0.0}  # float64; the promise is 1e-5


def arrays(case):
    """Keyword arguments of a distiller call, in float64, with gradients wanted everywhere."""
    stored = np.load(GOLDEN / f"{case}.npz")
    maps = {name: torch.from_numpy(stored[name]).double().requires_grad_() for name in stored if name != "labels"}
    return maps | {"labels": torch.from_numpy(stored["labels"])}


def let_features_through(head):
    """Set a head of twice its input's width so that it returns its input beside zeros: relu(x) - relu(-x) = x."""
    channels = head.in_channels
    one = torch.eye(channels, dtype=torch.float64)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
        head.hidden.weight[:, :, 0, 0] = torch.cat([one, -one])
        head.out.weight[:channels, :, 0, 0] = torch.cat([one, -one], dim=1)


def released(case):
    """The released settings, with heads that leave the stored (already projected) features as they are."""
    channels = case["channels"]
    distiller = APDLoss.as_released(channels, channels, case["num_classes"], width=2 * channels).double()
    let_features_through(distiller.student_head)
    let_features_through(distiller.teacher_head)
    return distiller


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_terms_have_the_released_values(case):
    out = released(case)(**arrays(case["case"]))
    assert out["observation"].item() == pytest.approx(case["observation_kl"], **EXACT)
    assert out["regularisation"].item() == pytest.approx(case["teacher_regularisation"], **EXACT)
    assert out["alignment"].item() == pytest.approx(case["alignment"], **EXACT)
    assert out["pixel_kd"].item() == pytest.approx(case["logit_kl"], **EXACT)
    student = 10 * (case["observation_kl"] + case["alignment"] + case["logit_kl"])
    assert out["loss"].item() == pytest.approx(student + case["teacher_regularisation"], **EXACT)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_gradients_to_the_student_have_the_released_norms(case):
    inputs = arrays(case["case"])
    out = released(case)(**inputs)
    (features,) = torch.autograd.grad(
        10 * out["observation"] + 10 * out["alignment"], inputs["student_features"], retain_graph=True
    )
    (logits,) = torch.autograd.grad(out["pixel_kd"], inputs["student_logits"])
    assert features.norm().item() == pytest.approx(case["grad_norm_student_features_of_10kl_plus_10align"], **EXACT)
    assert logits.norm().item() == pytest.approx(case["grad_norm_student_logits_of_kd"], **EXACT)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_gradient_of_the_regularisation_has_the_released_norm(case):
    # APDLoss detaches the teacher's features, so the gradient is read where they leave the teacher's head.
    distiller, projected = released(case), []
    distiller.teacher_head.register_forward_hook(lambda *arguments: projected.append(arguments[-1]))
    out = distiller(**arrays(case["case"]))
    (gradient,) = torch.autograd.grad(out["regularisation"], projected)
    features = gradient[:, : case["channels"]]
    assert features.norm().item() == pytest.approx(case["grad_norm_teacher_features_of_regularisation"], **EXACT)


def test_the_default_method_agrees_on_one_image_without_ignored_pixels_up_to_the_reduction():
    case = CASES["batch1_k5"]
    inputs = arrays("batch1_k5")
    out = APDLoss(case["channels"], case["channels"], case["num_classes"], width=None).double()(**inputs)
    present = len(inputs["labels"].unique())
    assert present == 4
    assert out["alignment"].item() == pytest.approx(case["alignment"], **EXACT)
    assert out["observation"].item() == pytest.approx(present * case["observation_kl"], **EXACT)


def test_the_default_method_is_another_one_where_images_differ_in_classes():
    case, inputs = CASES["batch2_k19_ignore"], arrays("batch2_k19_ignore")
    first, second = ({*labels.unique().tolist()} - {255} for labels in inputs["labels"])
    assert not first & second  # so the prototypes are the same; but the released code shows each image all of them
    out = APDLoss(case["channels"], case["channels"], case["num_classes"], width=None).double()(**inputs)
    assert out["alignment"].item() == pytest.approx(case["alignment"], **EXACT)
    assert out["observation"].item() != pytest.approx(len(first | second) * case["observation_kl"], rel=0.1)
