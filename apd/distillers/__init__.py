"""Other distillation methods behind the call of :class:`apd.APDLoss`, so that a recipe can swap or combine them.

Pixel KD, which most published scripts add to their own method, is in none but :class:`apd.PixelKD`. What a class does
not say of its arguments stands at :class:`~apd.distillers.base.FeatureDistiller`.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):  # every method of this folder enters the registry
    importlib.import_module(f"{__name__}.{_module.name}")
