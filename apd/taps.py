"""Features of any module of any model, by its path and without editing the model."""

import difflib
from types import TracebackType
from typing import Self

from torch import Tensor, nn


class FeatureTap:
    """Context manager that remembers the last output of one module of a model.

    Open it once around a training loop; the hook is gone when the block is left, whatever ended it.

    Args:
        model: any module.
        path: dotted path of the module whose output is wanted, as in ``model.named_modules()``.

    Raises:
        ValueError: the model has no such module; the message lists the nearest names.

    >>> import torch
    >>> from torch import nn
    >>> from apd import FeatureTap
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    >>> with FeatureTap(model, "1") as tap:
    ...     logits = model(torch.zeros(1, 3, 4, 4))
    ...     tap.features.shape
    torch.Size([1, 8, 4, 4])
    """

    def __init__(self, model: nn.Module, path: str) -> None:
        modules = dict(model.named_modules())
        if path not in modules or path == "":
            names = [name for name in modules if name]
            near = difflib.get_close_matches(path, names, n=5, cutoff=0.3) or names[:5]
            raise ValueError(f"{type(model).__name__} has no module {path!r}: the nearest names are {near}")
        self.path = path
        self._module = modules[path]
        self._features: Tensor | None = None
        self._version = 0
        self._hook = None

    def __enter__(self) -> Self:
        self._hook = self._module.register_forward_hook(self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hook.remove()  # the last features stay readable

    @property
    def features(self) -> Tensor:
        """The module's output in the model's last forward pass, with its graph.

        Raises:
            RuntimeError: no forward pass was made since the tap was opened, or a later module changed the output in
                place (as ``ReLU(inplace=True)`` does), so that it is no longer what the module returned.
        """
        if self._features is None:
            raise RuntimeError(f"{self.path!r} has not run: call the model inside the with block first")
        if not self._features.is_inference() and self._features._version != self._version:
            raise RuntimeError(
                f"the output of {self.path!r} was changed in place after it was returned: "
                "tap the module that changes it, or construct that one with inplace=False"
            )
        return self._features

    def _remember(self, module: nn.Module, inputs: tuple, output: object) -> None:
        if not isinstance(output, Tensor):
            raise TypeError(
                f"{self.path!r} ({type(module).__name__}) returned a {type(output).__name__}: "
                "tap a module inside it that returns one tensor"
            )
        self._features = output
        self._version = 0 if output.is_inference() else output._version
