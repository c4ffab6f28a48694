"""Networks of other libraries, unedited: one of segmentation-models-pytorch learns from a SegFormer of transformers."""

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from apd import APDLoss, FeatureTap

CLASSES = 5
GRIDS = {"student": (8, 12), "teacher": (16, 24)}  # strides 8 and 4 of an image of 64×96
WIDTHS = {"student": 32, "teacher": 48}


class Pair:
    """Student and teacher with their taps; `maps` are the keywords of any distiller."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.student = smp.DeepLabV3("tu-test_efficientnet", encoder_weights=None, decoder_channels=32, classes=CLASSES)
        widths = {"hidden_sizes": (8, 16, 24, 32), "num_attention_heads": (1, 1, 2, 2), "decoder_hidden_size": 48}
        config = SegformerConfig(num_labels=CLASSES, depths=(1, 1, 1, 1), **widths)
        self.teacher = SegformerForSemanticSegmentation(config).eval().requires_grad_(False)
        self.images = torch.rand(2, 3, 64, 96)
        self.labels = torch.randint(0, CLASSES - 1, (2, 4, 6)).repeat_interleave(16, 1).repeat_interleave(16, 2)
        self.labels[:, :3] = 255

    def maps(self) -> dict[str, Tensor]:
        """Of one forward pass of both networks."""
        with (
            FeatureTap(self.student, "decoder") as features,
            FeatureTap(self.student, "segmentation_head.0") as logits,
            FeatureTap(self.teacher, "decode_head.activation") as teacher_features,
        ):
            self.enlarged = self.student(self.images)
            teacher_logits = self.teacher(pixel_values=self.images).logits
            student_maps = {"student_features": features.features, "student_logits": logits.features}
            teacher_maps = {"teacher_features": teacher_features.features, "teacher_logits": teacher_logits}
        return student_maps | teacher_maps | {"labels": self.labels}


@pytest.fixture
def pair() -> Pair:
    return Pair()


def gradients(module: nn.Module) -> set[str]:
    return {name for name, p in module.named_parameters() if p.grad is not None and p.grad.any()}


def test_the_tapped_maps_are_what_the_classifiers_read_at_their_own_strides_and_widths(pair):
    pair.student.eval()
    maps = pair.maps()
    for role in ("student", "teacher"):
        assert maps[f"{role}_features"].shape == (2, WIDTHS[role], *GRIDS[role])
        assert maps[f"{role}_logits"].shape == (2, CLASSES, *GRIDS[role])
    assert pair.enlarged.shape == (2, CLASSES, 64, 96)
    head, classifier = pair.student.segmentation_head[0], pair.teacher.decode_head.classifier
    torch.testing.assert_close(head(maps["student_features"]), maps["student_logits"])
    torch.testing.assert_close(classifier(maps["teacher_features"]), maps["teacher_logits"])


def test_a_step_trains_student_and_heads_and_leaves_the_teacher_as_it_was(pair):
    distiller = APDLoss(WIDTHS["student"], WIDTHS["teacher"], CLASSES, width=16)
    before = {name: value.clone() for name, value in pair.teacher.state_dict().items()}
    maps = pair.maps()
    terms = distiller(**maps)
    assert set(terms) == {"regularisation", "alignment", "observation", "pixel_kd", "loss"}
    assert all(term.isfinite() and term > 0 for term in terms.values())
    task = F.cross_entropy(pair.enlarged, pair.labels, ignore_index=255)
    (task + terms["loss"]).backward()
    assert {name for name, _ in pair.student.named_parameters()} == gradients(pair.student)
    assert gradients(distiller) == {name for name, _ in distiller.named_parameters()}
    assert gradients(pair.teacher) == set()
    assert all(torch.equal(value, before[name]) for name, value in pair.teacher.state_dict().items())
