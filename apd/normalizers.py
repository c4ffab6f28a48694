"""Means over a batch of which this process, at this moment, may hold only a part.

Every mean of this package's losses is a sum divided by :func:`global_count` of a count: that of the whole batch, where
it is divided over processes (:func:`across_processes`) or micro-batches (:class:`AccumulatedCounts`). What couples its
images (batch norm, ``scope="batch"``, CIRKD's pixel pairs, DIST's ``intra``) depends on the division all the same.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed

Rule = Callable[[Tensor], Tensor]


def _own(count: Tensor) -> Tensor:
    return count.clamp(min=1)


_rule: Rule = _own  # of this process


def global_count(count: Tensor) -> Tensor:
    """The divisor that turns a local sum over ``count`` items into its share of the whole batch's mean; never 0."""
    return _rule(count)


@contextmanager
def _divide_by(rule: Rule) -> Iterator[None]:
    global _rule
    before, _rule = _rule, rule
    try:
        yield
    finally:
        _rule = before


@contextmanager
def across_processes() -> Iterator[None]:
    """Inside, the losses of a process are shares: their *mean* over processes is the loss of the whole batch.

    For a loop of your own under ``DistributedDataParallel``, around the forward pass that computes the losses. Every
    process must come here, and compute the same terms, in every step: one all-reduce of a number for each term.
    """
    size = distributed.get_world_size()

    def rule(count: Tensor) -> Tensor:
        total = count.clone()
        distributed.all_reduce(total)
        return total.clamp(min=1) / size

    with _divide_by(rule):
        yield


class AccumulatedCounts:
    """Exact gradient accumulation: the divisors of a batch that is computed in micro-batches, the *parts*.

    Make a new one for every batch. Run the losses of every part under :meth:`counting` (``torch.no_grad`` suffices),
    then again under :meth:`computing`, with the same terms in the same order: losses and gradients *add up* to those of
    the whole batch. Count in eval mode where a distiller has a memory (CIRKD), or it is filled twice. Inside
    :func:`across_processes`, the batch is that of all processes.
    """

    def __init__(self) -> None:
        self._counts: list[Tensor] = []  # of each part, stacked
        self._divisors: list[Tensor] | None = None

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Context in which the counts of one part are recorded; discard the losses that are computed in it."""
        if self._divisors is not None:
            raise RuntimeError("these counts have been used: make an AccumulatedCounts for every batch")
        counts: list[Tensor] = []

        def note(count: Tensor) -> Tensor:
            counts.append(count)
            return _own(count)

        with _divide_by(note):
            yield
        known = len(self._counts[0]) if self._counts else len(counts)
        if not counts or len(counts) != known:
            found = f"this part asked for {len(counts)} counts, expected {known if counts else 'at least one'}"
            raise RuntimeError(f"{found}: compute the same losses of every part, each by way of global_count")
        self._counts.append(torch.stack(counts))

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Context in which the losses of one part are divided by the counts summed over all parts."""
        if not self._counts:
            raise RuntimeError("nothing was counted: compute the losses of every part inside counting() first")
        if self._divisors is None:
            self._divisors = list(global_count(torch.stack(self._counts).sum(0)).unbind())
        left = list(self._divisors)

        def rule(_count: Tensor) -> Tensor:
            if not left:
                fix = "compute the same losses of every part, in the same order, in both contexts"
                raise RuntimeError(f"computing() asks for more than {len(self._divisors)} counted means: {fix}")
            return left.pop(0)

        with _divide_by(rule):
            yield
        if left:
            raise RuntimeError(f"{len(left)} counted means were not computed: counting() and computing() must agree")
