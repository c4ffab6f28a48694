"""Adaptive Perspective Distillation (Tian et al., TPAMI 2023, DOI 10.1109/TPAMI.2022.3159581) for PyTorch.

Names are loaded when they are asked for, torch with the first of them and nothing heavier. Shapes, letters and words
are explained in :mod:`apd.perspective`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apd.distill import APDLoss, ProjectionHead
    from apd.distillers.cirkd import CIRKD
    from apd.distillers.features import CWD, MGD, AttentionTransfer, FitNet
    from apd.distillers.logits import DIST, DKD, LSKD, PixelKD
    from apd.distillers.relations import I2CKD, IFVD, InterClassDistance, PairwiseSimilarity
    from apd.hooks import FeatureTap, tokens_to_map
    from apd.losses import alignment_loss, observation_loss, pixel_kd_loss, regularisation_loss, two_channel_logits
    from apd.perspective import class_prototypes, observe, resize_labels

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

_METHOD = ("distill", "losses", "perspective", "hooks")
_OTHERS = ("distillers.cirkd", "distillers.features", "distillers.logits", "distillers.relations")


def __getattr__(name: str) -> Any:
    """A name of ``__all__``, or one of the method's modules, loaded at its first use."""
    if name in _METHOD:
        return import_module(f"apd.{name}")
    for module in (*_METHOD, *_OTHERS) if name in __all__ else ():
        if hasattr(home := import_module(f"apd.{module}"), name):
            return getattr(home, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
