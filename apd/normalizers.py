"""Means over a batch of which this process, at this moment, may hold only a part.

Every mean of this package's losses is a sum divided by :func:`global_count` of a count: of valid pixels, of present
classes, of images. A process that holds the whole batch divides by its own count. Where a batch is divided over
processes or accumulated micro-batches, the mean of their means is not the mean of the batch, since they hold different
numbers of valid pixels. Each sum is then divided by the count of the whole batch:

- over processes by :func:`across_processes`, which adds the counts up when they are needed;
- over steps by :class:`AccumulatedCounts`, which has to be told the counts of all parts before the first is computed.

What couples the images of a batch (batch norm, ``scope="batch"``, the pixel pairs of :class:`apd.CIRKD`, the
intra-class correlation of :class:`apd.DIST`) depends on the division all the same.
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
    """What the sum over ``count`` things is divided by to give this part's share of their mean over the whole batch.

    Never 0: with nothing to average over, the mean is a zero that is connected to the graph.

    >>> import torch
    >>> from apd.normalizers import global_count
    >>> global_count(torch.tensor(3)), global_count(torch.tensor(0))
    (tensor(3), tensor(1))
    """
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
    """Inside, the losses of a process are shares of those of the whole batch, which is divided over all processes.

    For a loop of your own under ``DistributedDataParallel``, around the forward pass that computes the losses. The
    *mean* over processes of such a loss is the loss of the whole batch, and so is that of the gradients, which is what
    DistributedDataParallel takes. Every process must come here, and compute the same terms, in every step: one without
    a valid pixel too. Costs one all-reduce of a single number for each term; nothing waits for a GPU.

    Raises:
        RuntimeError: no default process group was made (``torch.distributed.init_process_group``).

    Example::

        with across_processes():
            loss = ddp_module(images, labels)["loss"]  # calls student, task loss and distiller in its forward
        loss.backward()
    """
    if not distributed.is_initialized():
        raise RuntimeError("across_processes() needs a process group: call torch.distributed.init_process_group first")
    size = distributed.get_world_size()

    def rule(count: Tensor) -> Tensor:
        total = count.clone()
        distributed.all_reduce(total)
        return total.clamp(min=1) / size

    with _divide_by(rule):
        yield


class AccumulatedCounts:
    """The divisors of a batch whose parts are computed one after the other, as in gradient accumulation.

    Count every part first, then compute every part: its losses are shares that *add up* to those of the whole batch,
    and so do the gradients. Both times the same counts must be asked for in the same order.

    Args:
        over_processes: the counts are those of all processes together, as in :func:`across_processes`: one all-reduce
            for a batch, and losses and gradients whose mean over processes is that of the whole batch.

    >>> import torch
    >>> from apd.normalizers import AccumulatedCounts, global_count
    >>> parts = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([6.0])]
    >>> turns = AccumulatedCounts()
    >>> for part in parts:
    ...     with turns.counting():
    ...         _ = global_count(torch.tensor(len(part)))
    >>> mean = 0
    >>> for part in parts:
    ...     with turns.computing():
    ...         mean += part.sum() / global_count(torch.tensor(len(part)))
    >>> mean
    tensor(3.)
    """

    def __init__(self, *, over_processes: bool = False) -> None:
        self._over_processes = over_processes
        self._counts: list[Tensor] = []  # of each part, stacked
        self._divisors: list[Tensor] | None = None

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Inside, the counts of one part are noted; the values of the losses mean nothing."""
        counts: list[Tensor] = []

        def note(count: Tensor) -> Tensor:
            counts.append(count)
            return _own(count)

        with _divide_by(note):
            yield
        self._counts.append(torch.stack(counts))

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Inside, sums are divided by the counts of all parts together.

        Raises:
            RuntimeError: other counts are asked for than were noted.
        """
        left = list(self._whole())

        def rule(_count: Tensor) -> Tensor:
            if not left:
                raise RuntimeError("this mean was not counted: counting() and computing() must agree")
            return left.pop(0)

        with _divide_by(rule):
            yield
        if left:
            raise RuntimeError(f"{len(left)} counted means were not computed: counting() and computing() must agree")

    def _whole(self) -> list[Tensor]:
        if self._divisors is None:
            totals = torch.stack(self._counts).sum(0)
            if self._over_processes:
                distributed.all_reduce(totals)
            processes = distributed.get_world_size() if self._over_processes else 1
            self._divisors = list((totals.clamp(min=1) / processes).unbind())
        return self._divisors
