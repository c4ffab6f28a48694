"""``APDLoss.as_released`` against what the authors' released loss code computes (see golden/README.md)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from apd import APDLoss

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = {case["case"]: case for case in json.loads((GOLDEN / "expected.json").read_text())}
EXACT = {"rel": 1e-9, "abs": 0.0}  # float64; the promise is 1e-5


def arrays(case):
    """Keyword arguments of a distiller call, in float64, with gradients wanted everywhere."""
    stored = np.load(GOLDEN / f"{case}.npz")
    maps = {name: torch.from_numpy(stored[name]).double().requires_grad_() for name in stored if name != "labels"}
    return maps | {"labels": torch.from_numpy(stored["labels"])}


def released(case):
    """The released settings, with heads that return their input beside zeros, since relu(x) - relu(-x) = x."""
    channels = case["channels"]
    distiller = APDLoss.as_released(channels, channels, case["num_classes"], width=2 * channels).double()
    one = torch.eye(channels, dtype=torch.float64)
    with torch.no_grad():
        for head in (distiller.student_head, distiller.teacher_head):
            for parameter in head.parameters():
                parameter.zero_()
            head.hidden.weight[:, :, 0, 0] = torch.cat([one, -one])
            head.out.weight[:channels, :, 0, 0] = torch.cat([one, -one], dim=1)
    return distiller


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_terms_and_norms_of_gradients_are_the_released_ones(case):
    distiller, inputs, projected = released(case), arrays(case["case"]), []
    # APDLoss detaches the teacher's features, so the gradient is read where they leave the teacher's head.
    distiller.teacher_head.register_forward_hook(lambda *arguments: projected.append(arguments[-1]))
    out = distiller(**inputs)

    def norm(value, tensor):
        (gradient,) = torch.autograd.grad(value, tensor, retain_graph=True)
        return gradient[:, : case["channels"]].norm() if tensor is projected[0] else gradient.norm()

    got = {
        "observation_kl": out["observation"],
        "teacher_regularisation": out["regularisation"],
        "alignment": out["alignment"],
        "logit_kl": out["pixel_kd"],
        "grad_norm_student_features_of_10kl_plus_10align": norm(
            10 * out["observation"] + 10 * out["alignment"], inputs["student_features"]
        ),
        "grad_norm_student_logits_of_kd": norm(out["pixel_kd"], inputs["student_logits"]),
        "grad_norm_teacher_features_of_regularisation": norm(out["regularisation"], projected[0]),
    }
    assert {name: value.item() for name, value in got.items()} == pytest.approx({n: case[n] for n in got}, **EXACT)
    student = 10 * (case["observation_kl"] + case["alignment"] + case["logit_kl"])
    assert out["loss"].item() == pytest.approx(student + case["teacher_regularisation"], **EXACT)


def test_the_default_method_agrees_on_one_image_without_ignored_pixels_up_to_the_reduction():
    case = CASES["batch1_k5"]
    inputs = arrays("batch1_k5")
    out = APDLoss(case["channels"], case["channels"], case["num_classes"], width=None).double()(**inputs)
    present = len(inputs["labels"].unique())
    assert present == 4
    assert out["alignment"].item() == pytest.approx(case["alignment"], **EXACT)
    assert out["observation"].item() == pytest.approx(present * case["observation_kl"], **EXACT)
