"""Adaptive Perspective Distillation (Tian et al., TPAMI 2023, DOI 10.1109/TPAMI.2022.3159581) for PyTorch.

``import apd`` loads torch and nothing heavier. Shapes, letters and words are explained in :mod:`apd.perspective`.
"""

from typing import TYPE_CHECKING, Any

from apd.distill import APDLoss, ProjectionHead
from apd.hooks import FeatureTap, tokens_to_map
from apd.losses import alignment_loss, observation_loss, pixel_kd_loss, regularisation_loss, two_channel_logits
from apd.perspective import class_prototypes, observe, resize_labels

if TYPE_CHECKING:
    from apd.distillers.cirkd import CIRKD
    from apd.distillers.features import CWD, MGD, AttentionTransfer, FitNet
    from apd.distillers.logits import DIST, DKD, LSKD, PixelKD
    from apd.distillers.relations import I2CKD, IFVD, InterClassDistance, PairwiseSimilarity

__version__ = "0.1.0"

__all__ = [
    "CIRKD",
    "CWD",
    "DIST",
    "DKD",
    "I2CKD",
    "IFVD",
    "LSKD",
    "MGD",
    "APDLoss",
    "AttentionTransfer",
    "FeatureTap",
    "FitNet",
    "InterClassDistance",
    "PairwiseSimilarity",
    "PixelKD",
    "ProjectionHead",
    "__version__",
    "alignment_loss",
    "class_prototypes",
    "observation_loss",
    "observe",
    "pixel_kd_loss",
    "regularisation_loss",
    "resize_labels",
    "tokens_to_map",
    "two_channel_logits",
]


def __getattr__(name: str) -> Any:
    """Other distillation methods are loaded when the first of them is asked for."""
    if name in __all__:
        from apd.distillers.base import DISTILLERS

        return next(c.module for c in DISTILLERS.values() if c.module is not None and c.module.__name__ == name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
