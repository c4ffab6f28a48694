"""Other distillation methods behind the call of :class:`apd.APDLoss`, so that a recipe can swap or add them.

Every method is a module called with the keywords ``student_features, teacher_features, student_logits,
teacher_logits, labels``; it returns its unweighted terms by name and ``"loss"``, their weighted sum. Pixel KD, which
most published scripts add to their own method, is in none of them but :class:`apd.PixelKD`: a list of distillers adds
it where it is wanted. Weights are the published ones unless said. Grids may differ as in :class:`apd.APDLoss`; the
arithmetic runs in float32 (float64 inputs stay so) with autocast off; each term is a connected zero when no pixel is
valid.

>>> import torch
>>> from apd.distillers import DIST, FitNet, PixelKD
>>> features, logits = torch.randn(2, 8, 6, 6, requires_grad=True), torch.randn(2, 3, 6, 6, requires_grad=True)
>>> maps = {"student_features": features, "teacher_features": features}
>>> maps |= {"student_logits": logits, "teacher_logits": logits, "labels": torch.zeros(2, 48, 48, dtype=torch.long)}
>>> for distiller in (PixelKD(), DIST(), FitNet(8, 8, num_classes=3)):
...     print(list(distiller(**maps)))
['pixel_kd', 'loss']
['inter', 'intra', 'loss']
['fitnet', 'loss']
"""

import importlib
import pkgutil

from apd.distillers.cirkd import CIRKD
from apd.distillers.features import CWD, MGD, AttentionTransfer, FitNet
from apd.distillers.logits import DIST, DKD, LSKD, PixelKD
from apd.distillers.relations import I2CKD, IFVD, InterClassDistance, PairwiseSimilarity

__all__ = [
    "CIRKD",
    "CWD",
    "DIST",
    "DKD",
    "I2CKD",
    "IFVD",
    "LSKD",
    "MGD",
    "AttentionTransfer",
    "FitNet",
    "InterClassDistance",
    "PairwiseSimilarity",
    "PixelKD",
]

for _module in pkgutil.iter_modules(__path__):  # every method of this folder enters the registry
    importlib.import_module(f"{__name__}.{_module.name}")
