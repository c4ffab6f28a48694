"""Other distillation methods behind the call of :class:`apd.APDLoss`, so that a recipe can swap or add them.

Every method is a module called with the keywords ``student_features, teacher_features, student_logits,
teacher_logits, labels``; it returns its unweighted terms by name and ``"loss"``, their weighted sum.
"""

import math

from torch import Tensor, nn

from apd.losses import Reduction, pixel_kd_loss
from apd.perspective import check_choice


class PixelKD(nn.Module):
    """Ordinary pixel-wise knowledge distillation of the logits (Hinton et al. 2015, pixel by pixel).

    The baseline every other method has to beat, and a term of APD itself; the formula is
    :func:`apd.pixel_kd_loss`. It has no parameters.

    Args:
        temperature: T (default 1).
        weight: of the term in ``"loss"`` (default 1, own choice).
        reduction: ``"pixel"`` (default, own choice) or ``"element"``, see :mod:`apd.losses`.
        ignore_index: label of pixels not to count (default 255).

    >>> import torch
    >>> from apd import PixelKD
    >>> logits, labels = torch.zeros(1, 3, 2, 2), torch.zeros(1, 4, 4, dtype=torch.long)
    >>> PixelKD()(student_logits=logits, teacher_logits=logits, labels=labels)["loss"]
    tensor(0.)

    Raises:
        ValueError, TypeError, RuntimeError: as :func:`apd.pixel_kd_loss`, and for a temperature or weight that is not
            positive.
    """

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        weight: float = 1.0,
        reduction: Reduction = "pixel",
        ignore_index: int = 255,
    ) -> None:
        super().__init__()
        check_choice("reduction", reduction, ("pixel", "element"))
        for name, value in (("temperature", temperature), ("weight", weight)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}={value}: expected a positive number")
        self.temperature, self.weight, self.reduction, self.ignore_index = temperature, weight, reduction, ignore_index

    def student_parameters(self) -> list[nn.Parameter]:
        """Empty: nothing here is trained."""
        return []

    def teacher_parameters(self) -> list[nn.Parameter]:
        """Empty: nothing here is trained."""
        return []

    def forward(
        self,
        *,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor,
        student_features: Tensor | None = None,
        teacher_features: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """``{"pixel_kd": the term, "loss": weight × term}``; features are accepted and not looked at."""
        term = pixel_kd_loss(
            student_logits,
            teacher_logits,
            labels,
            temperature=self.temperature,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )
        return {"pixel_kd": term, "loss": self.weight * term}

    def extra_repr(self) -> str:
        """What ``print(module)`` says of the settings."""
        return f"temperature={self.temperature:g}, weight={self.weight:g}, reduction={self.reduction!r}"
