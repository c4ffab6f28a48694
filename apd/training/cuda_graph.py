"""A training step's forward and backward passes, recorded once as a CUDA graph and replayed.

A small network on a fast GPU waits for its kernels to be launched one by one; a graph launches all of them at once.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from apd.data.batches import Batch

EAGER_STEPS = 3  # before recording: libraries choose their algorithms and take their memory in these


class CapturedStep:
    """Calls a function of a batch that sets gradients; from the fourth call on, replays its recording.

    Every batch must have the shapes of the first. Gradients must be None when it is recorded and be left alone from
    then on (`recorded`): each replay writes them anew, at the same addresses.

    Args:
        compute: gives named scalars for a batch, without a host synchronisation.
    """

    def __init__(self, compute: Callable[[Batch], dict[str, Tensor]]) -> None:
        self._compute, self._eager = compute, 0
        self._graph: torch.cuda.CUDAGraph | None = None

    @property
    def recorded(self) -> bool:
        """Whether the next call replays."""
        return self._graph is not None

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """The named scalars, detached from what the next call does."""
        if self._graph is None and self._eager < EAGER_STEPS:
            self._eager += 1
            return self._aside(batch)
        if self._graph is None:
            self._batch = Batch(*(value.clone() for value in batch))
            self._graph, self._terms = self._record()
        for kept, value in zip(self._batch, batch, strict=True):
            kept.copy_(value)
        self._graph.replay()
        return {name: value.clone() for name, value in self._terms.items()}

    def _aside(self, batch: Batch) -> dict[str, Tensor]:
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
            terms = self._compute(self._batch)
        return graph, terms
