"""A training step recorded as a CUDA graph and replayed: one launch in the place of a thousand.

What is recorded is the computation of losses and gradients, from a batch at a fixed address. Clipping, optimisers and
averages stay outside: they read values, or change with the step. Everything inside must be the same in every step: one
shape of batch, one rank, and no branch that depends on a value. :class:`apd.APDLoss` and the segmenters keep to that.
It is switched on by `TrainingConfig.cuda_graph`, and pays where a small network waits for the launches of its kernels,
as MobileNetV2 does on a fast GPU; the first calls are ordinary ones, on a stream of their own.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

EAGER_STEPS = 3  # before a CUDA graph is recorded: libraries choose their algorithms and take their memory in these


class CapturedStep:
    """Calls a function of a batch that sets gradients; from the fourth call on, replays its recording as a CUDA graph.

    A small network on a fast GPU waits for single launches. Every batch must have the shapes of the first. Gradients
    must be None when it is recorded and then be left alone: each replay writes them anew, at the same addresses.
    """

    def __init__(self, compute: Callable[[Any], dict[str, Tensor]]) -> None:
        self._compute, self._eager = compute, 0
        self._graph: torch.cuda.CUDAGraph | None = None

    @property
    def recorded(self) -> bool:
        """Whether the next call replays."""
        return self._graph is not None

    def __call__(self, batch: Any) -> dict[str, Tensor]:
        """The named scalars, detached from what the next call does."""
        if self._graph is None and self._eager < EAGER_STEPS:
            self._eager += 1
            return self._aside(batch)
        if self._graph is None:
            self._batch = type(batch)(*(value.clone() for value in batch))
            self._graph, self._terms = self._record()
        for kept, value in zip(self._batch, batch, strict=True):
            kept.copy_(value)
        self._graph.replay()
        return {name: value.clone() for name, value in self._terms.items()}

    def _aside(self, batch: Any) -> dict[str, Tensor]:
        """An ordinary call on a stream beside the current one, as recording wants it."""
        current, beside = torch.cuda.current_stream(), torch.cuda.Stream()
        beside.wait_stream(current)
        with torch.cuda.stream(beside):
            terms = self._compute(batch)
        current.wait_stream(beside)
        return terms

    def _record(self) -> tuple[torch.cuda.CUDAGraph, dict[str, Tensor]]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            return graph, self._compute(self._batch)
