"""Operations that a graph with free height and width cannot hold, in words that it can."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class PaddingFollowsSizeError(Exception):
    """A padding whose width is computed from the image's size."""


class Traceable(TorchFunctionMode):
    """While tracing, puts two operations that a free size breaks into other words."""

    def __init__(self, paddings_are_fixed: bool) -> None:
        super().__init__()
        self.paddings_are_fixed = paddings_are_fixed

    def __torch_function__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.adaptive_avg_pool2d:
            return pool_by_matrices(*args, **kwargs)
        if func is F.pad:
            return self._pad(*args, **kwargs)
        return func(*args, **kwargs)

    def _pad(self, input: Tensor, pad: Sequence[int], *rest: Any, **options: Any) -> Tensor:
        # timm's rule for TensorFlow's padding: traced at a free size, its ONNX pads by other widths
        if any(isinstance(width, torch.SymInt) for width in pad):
            if not self.paddings_are_fixed:
                raise PaddingFollowsSizeError
            pad = [int(width) for width in pad]
        return F.pad(input, pad, *rest, **options)


def pool_by_matrices(features_BChw: Tensor, output_size: int | tuple[int, int]) -> Tensor:
    """Adaptive average pooling as two matrix products: the same cells, but any size of the map can be traced.

    >>> maps = torch.rand(2, 3, 10, 13)
    >>> torch.allclose(pool_by_matrices(maps, 6), F.adaptive_avg_pool2d(maps, 6))
    True
    """
    rows, columns = (output_size, output_size) if isinstance(output_size, int) else output_size
    if rows == columns == 1:
        return features_BChw.mean((-2, -1), keepdim=True)
    height, width = features_BChw.shape[-2:]
    by_columns = F.linear(features_BChw, _cells(width, columns, features_BChw)).transpose(-2, -1)
    return F.linear(by_columns, _cells(height, rows, features_BChw)).transpose(-2, -1)


def _cells(length: int, cells: int, like: Tensor) -> Tensor:
    """(cells, length): the weights with which each cell averages a side; cells overlap where they do not divide it."""
    places, cell = torch.arange(length, device=like.device), torch.arange(cells, device=like.device)
    first, end = cell * length // cells, ((cell + 1) * length + cells - 1) // cells
    inside = (places >= first[:, None]) & (places < end[:, None])
    return inside.to(like.dtype) / (end - first)[:, None].to(like.dtype)
