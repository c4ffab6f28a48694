"""Adaptive Perspective Distillation (Tian et al., TPAMI 2023, DOI 10.1109/TPAMI.2022.3159581) for PyTorch.

``import apd`` loads torch and nothing heavier. Shapes, letters and words are explained in :mod:`apd.perspective`.
"""

from apd.distill import APDLoss, ProjectionHead
from apd.losses import alignment_loss, observation_loss, pixel_kd_loss, regularisation_loss
from apd.perspective import class_prototypes, observe, resize_labels
from apd.rivals import PixelKD
from apd.taps import FeatureTap

__version__ = "0.1.0"

__all__ = [
    "APDLoss",
    "FeatureTap",
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
]
