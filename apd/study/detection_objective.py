"""What a detector is trained by: torchvision's losses and the distillers' terms, from a batch to one number."""

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN

from apd.data.instance_batches import InstanceBatch
from apd.means import divisor
from apd.models.detector_view import DetectorTap, training_step


class DetectionObjective(nn.Module):
    """Student and distillers as one module whose forward gives the loss.

    torchvision's losses are means over the boxes, things or anchors of the pictures at hand. Each is weighed by its
    count, so that over several ranks the mean is that of the whole batch: a rank whose pictures have few things, or
    none, counts for as much as it has.

    Args:
        student, distillers: the networks with parameters.
        teacher: in eval mode and without gradients, or None; it is no part of this module.
        pinned_memory: on a GPU, whether batches go there through page-locked memory.
    """

    def __init__(
        self, student: FasterRCNN, teacher: FasterRCNN | None, distillers: nn.ModuleDict, *, pinned_memory: bool = False
    ) -> None:
        super().__init__()
        self.student, self.distillers, self.pinned_memory = student, distillers, pinned_memory
        self._teacher = (teacher,)  # in a tuple, since a module would become a part of this one

    def parts(self, batch: InstanceBatch, device: torch.device) -> list[InstanceBatch]:
        """The batch, undivided, on the device."""
        if self.pinned_memory and device.type == "cuda":
            batch = batch.pinned()
        return [batch.to(device)]

    def taught(self, batch: InstanceBatch) -> None:
        """None: the teacher looks at the boxes that the student draws, so it comes after it."""

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]], taught: None = None) -> dict[str, Tensor]:
        """torchvision's losses by its names, the distillers' terms, and "loss", their weighted sum."""
        (teacher,) = self._teacher
        with DetectorTap(self.student) as tap:
            if self.distillers:
                losses, pair = training_step(self.student, tap, teacher, images, targets)
            else:
                losses, pair = self.student(images, targets), None
            counts = tap.loss_counts
        # alone, count and divisor are one number, and their quotient is exactly 1
        terms = {name: value * (counts[name] / divisor(counts[name])) for name, value in losses.items()}
        loss = sum(terms.values())
        for name, distiller in self.distillers.items():
            distilled = distiller(pair)
            loss = loss + distilled["loss"]
            terms |= {f"{name}.{term}": value for term, value in distilled.items() if term != "loss"}
        return terms | {"loss": loss}
