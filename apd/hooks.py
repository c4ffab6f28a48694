"""Features of any module of any model, by its path and without editing the model; a transformer's tokens as a map."""

import difflib
import math
import operator
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from apd.validation import check_count


def tokens_to_map(tokens_BNC: Tensor, grid: tuple[int, int] | None = None, *, prefix_tokens: int = 0) -> Tensor:
    """A vision transformer's tokens (batch, tokens, channels) as a map (batch, channels, height, width), row by row.

    Before those of patches stand ``prefix_tokens`` (default 0): CLS and registers. ``grid`` is the height and width of
    the patches' grid or of anything of its aspect ratio, such as the images; None (default) is a square.
    ``ValueError``: another rank, or tokens that fill no such grid.

    >>> tokens_to_map(torch.zeros(2, 1 + 4 + 8 * 12, 384), (64, 96), prefix_tokens=5).shape
    torch.Size([2, 384, 8, 12])
    """
    if not isinstance(tokens_BNC, Tensor) or tokens_BNC.ndim != 3:
        shape = f"of shape {tuple(tokens_BNC.shape)}" if isinstance(tokens_BNC, Tensor) else type(tokens_BNC).__name__
        raise ValueError(f"tokens is {shape}: expected a tensor (batch, tokens, channels)")
    if grid is not None and not (isinstance(grid, tuple | list) and len(grid) == 2 and min(grid) >= 1):
        raise ValueError(f"grid={grid!r}: expected (height, width) of the patches' grid or of the images, or None")
    height, width = grid or (1, 1)
    patches = tokens_BNC.shape[1] - prefix_tokens
    sides = [height] if height * width == patches else [d for d in range(1, patches + 1) if patches % d == 0]
    h = min(sides, key=lambda d: abs(math.log(d * d * width / (patches * height))), default=0)
    w = patches // h if h > 0 else 0
    # a patch more or less in a row is a rounded side; more is another grid
    same_ratio = (h - 1) * width < (w + 1) * height and (w - 1) * height < (h + 1) * width
    if not (prefix_tokens >= 0 and h * w == patches > 0 and same_ratio and (grid or h == w)):
        raise ValueError(
            f"tokens has {tokens_BNC.shape[1]} tokens, {patches} after prefix_tokens={prefix_tokens}: they fill no "
            f"grid of the aspect ratio {height}:{width} of grid={grid}; count the CLS and register tokens in "
            "prefix_tokens, and give the grid of patches or the size of the image as grid"
        )
    return tokens_BNC[:, prefix_tokens:].mT.unflatten(2, (h, w))


class _Tapped:
    """Stands for the forward of a tapped module and hands its output to the tap.

    An attribute of the module, unlike a hook, is seen by code that torch.compile made before. A deep copy of the
    module has the module's own forward in its place; a shallow one, as of nn.DataParallel, the tapped module's.
    """

    def __init__(self, module: nn.Module, tap: "FeatureTap") -> None:
        self.module, self.tap = module, tap
        self.before: Callable[..., Any] | None = module.__dict__.get("forward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        forward = self.before
        output = forward(*args, **kwargs) if forward else type(self.module).forward(self.module, *args, **kwargs)
        if self.tap is not None:
            self.tap._remember(output)
        return output

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any]]:
        if self.before is None:
            return operator.attrgetter("forward"), (self.module,)  # the copy has no attributes yet: its class's
        return operator.itemgetter(0), ((self.before,),)

    def leave(self) -> None:
        """Give the module its forward back, unless somebody has wrapped this one since: then it only passes on."""
        self.tap = None
        while isinstance(outer := self.module.__dict__.get("forward"), _Tapped) and outer.tap is None:
            if outer.before is None:
                del self.module.forward
            else:
                self.module.forward = outer.before


class FeatureTap:
    """Remembers the last output of one module of a model: a context manager, or :meth:`open` and :meth:`close`.

    Open it once around a training loop; the model is as it was when the block is left, and deep copies of it made
    meanwhile are not tapped. Shallow ones (``copy.copy``, ``nn.DataParallel`` on several GPUs) would run with the
    original's parameters: use DistributedDataParallel. The model may be compiled before or after. Recomputation by
    activation checkpointing is ignored.

    Args:
        model: any module but TorchScript.
        path: dotted path of the module whose output is wanted, as in ``model.named_modules()``.
        prefix_tokens, grid: where either is given, the output is tokens, and ``features`` the map that
            :func:`tokens_to_map` makes of them. ``tap.grid`` may be set anew for images of another shape.

    >>> from apd import FeatureTap
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    >>> with FeatureTap(model, "1") as tap:
    ...     logits = model(torch.zeros(1, 3, 4, 4))
    >>> tap.features.shape
    torch.Size([1, 8, 4, 4])
    """

    def __init__(
        self, model: nn.Module, path: str, *, prefix_tokens: int | None = None, grid: tuple[int, int] | None = None
    ) -> None:
        model = getattr(model, "_orig_mod", model)  # of a compiled model
        modules = dict(model.named_modules())
        if path not in modules or path == "":
            names = [name for name in modules if name]
            near = difflib.get_close_matches(str(path), names, n=5, cutoff=0.3) or names[:5]
            raise ValueError(f"{type(model).__name__} has no module {path!r}: the nearest names are {near}")
        if isinstance(modules[path], torch.jit.ScriptModule):
            fix = "tap the model that was traced or scripted, or let it return its features"
            raise TypeError(f"{path!r} is TorchScript, which runs outside Python, where nothing sees its output: {fix}")
        if prefix_tokens:
            check_count("prefix_tokens", prefix_tokens)
        self.path, self.grid = path, grid
        self.prefix_tokens = 0 if prefix_tokens is None and grid is not None else prefix_tokens
        self._module = modules[path]
        self._features: Tensor | None = None
        self._version: int | None = None
        self._tapped: _Tapped | None = None

    def open(self) -> Self:
        """Start recording and discard earlier features. For loops that cannot use ``with``."""
        if self._tapped is not None:
            raise RuntimeError(f"the tap of {self.path!r} is open already: open it once, around the whole loop")
        self._features = None
        self._tapped = self._module.forward = _Tapped(self._module, self)
        return self

    def close(self) -> None:
        """Stop recording; the last features stay available. Closing twice does nothing."""
        if self._tapped is not None:
            self._tapped.leave()
            self._tapped = None

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *error: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_features": None, "_tapped": None}

    @property
    def features(self) -> Tensor:
        """The module's output in the last forward pass, with its graph; ``RuntimeError`` where there is none."""
        if self._features is None:
            state = "the tap is closed: open it" if self._tapped is None else "call the model inside the block first"
            why = "A module that the model contains and never calls, as in an exported or fused model, has no output"
            raise RuntimeError(f"{self.path!r} has not run: {state}. {why}: tap the model that it was made from")
        if self._version is not None and self._features._version != self._version:
            fix = "tap the module that changes it, or construct that one with inplace=False"
            raise RuntimeError(f"the output of {self.path!r} was changed in place after it was returned: {fix}")
        if self.prefix_tokens is None:
            return self._features
        return tokens_to_map(self._features, self.grid, prefix_tokens=self.prefix_tokens)

    def take(self) -> Tensor:
        """The features, which the tap forgets: it keeps no memory."""
        features, self._features = self.features, None
        return features

    def _remember(self, output: Any) -> None:
        compiling = torch.compiler.is_compiling()
        if not compiling and torch._C._current_graph_task_id() != -1:
            return  # a backward pass: checkpointing computes again
        if not isinstance(output, Tensor):
            found = f"{self.path!r} ({type(self._module).__name__}) returned a {type(output).__name__}"
            raise TypeError(f"{found}: tap a module inside it that returns one tensor")
        # a version cannot be read while compiling, so what changes the output in place changes another tensor
        self._features = output.clone() if compiling else output
        self._version = None if compiling or output.is_inference() else output._version
