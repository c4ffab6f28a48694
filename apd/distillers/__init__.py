"""Other distillation methods behind the call of :class:`apd.APDLoss`, so that a recipe can swap or combine them.

A method returns its unweighted terms by name and ``"loss"``, their weighted sum. Pixel KD, which most published scripts
add to their own method, is in none but :class:`apd.PixelKD`. Default weights are the published ones unless said;
arguments that a class does not list are those of :class:`~apd.distillers.base.FeatureDistiller`.

>>> import torch
>>> from apd import DIST, FitNet
>>> maps = {f"{net}_logits": torch.randn(2, 3, 6, 6, requires_grad=True) for net in ("student", "teacher")}
>>> maps |= {f"{net}_features": torch.randn(2, 8, 6, 6, requires_grad=True) for net in ("student", "teacher")}
>>> labels = torch.zeros(2, 48, 48, dtype=torch.long)
>>> [list(distiller(**maps, labels=labels)) for distiller in (DIST(), FitNet(8, 8, num_classes=3))]
[['inter', 'intra', 'loss'], ['fitnet', 'loss']]
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):  # every method of this folder enters the registry
    importlib.import_module(f"{__name__}.{_module.name}")
