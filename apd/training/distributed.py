"""The processes (*ranks*) that train one network together; rank 0 alone prints and touches the run's folder."""

import contextlib
import inspect
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Subset

from apd.fields import ExperimentError, UserError
from apd.training.checkpoint import RunBusyError, only_process

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)
ASK_AGAIN_SECONDS = 0.5  # whether a run that another process holds is free
_ARGUMENTS = inspect.signature(DistributedDataParallel).parameters
_SEND_BUFFERS = next(name for name in ("forward_sync_buffers", "broadcast_buffers") if name in _ARGUMENTS)


class LostRankError(UserError, RuntimeError):
    """Another process of the same run has gone, so that this one cannot go on."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a job, seen from number `rank` of `size`; everything but `part` is called by all alike."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def print(self, text: str) -> None:
        """Print a line once, however many ranks there are."""
        if self.first:
            print(text, flush=True)

    def on_rank_zero(self, action: Callable[[], T]) -> T:
        """Have rank 0 alone do something; its value, or what it raises, is every rank's."""
        if self.size == 1:
            return action()
        outcome: list[Any] = [None, None]
        try:
            outcome[0] = action() if self.first else None
        except Exception as error:
            outcome[1] = error
        distributed.broadcast_object_list(outcome, src=0, device=torch.device("cpu"))
        if outcome[1] is not None:
            raise of_every_rank(outcome[1])
        return outcome[0]

    def rank_zero_first(self, action: Callable[[], T]) -> T:
        """Have rank 0 do something and then the others: errors are raised once, and what it fetches is there."""
        made: list[T] = []
        self.on_rank_zero(lambda: made.append(action()))
        return made[0] if made else action()

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether it is up on one rank at least."""
        return tuple(map(bool, self.total(torch.tensor(flags, dtype=torch.int64)).tolist()))

    def gather(self, value: T) -> list[T]:
        """The value of every rank, in their order, on rank 0; an empty list on the others."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size if self.first else []
        distributed.gather_object(value, values or None, dst=0)
        return values

    def mean(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scalars by name, averaged over ranks; nothing waits for a GPU."""
        values = self.total(torch.stack([value.float() for value in terms.values()]))
        return dict(zip(terms, (values / self.size).unbind(), strict=True))

    def total(self, counts: Tensor) -> Tensor:
        """Numbers, summed over ranks."""
        if self.size > 1:
            counts = counts.clone()
            distributed.all_reduce(counts)
        return counts

    def part(self, dataset: Any) -> Any:
        """This rank's samples of a data set: each sample is one rank's; spec and fingerprint are the whole's."""
        if self.size == 1:
            return dataset
        part = Subset(dataset, range(self.rank, len(dataset), self.size))
        part.spec, part.fingerprint = dataset.spec, dataset.fingerprint
        return part

    def synchronise_batch_norm(self, network: nn.Module) -> None:
        """On GPUs, have batch norm take its statistics over all ranks' images; torch has no such norm for a CPU."""
        why = "takes the statistics of its own images, since torch synchronises them on GPUs only"
        if self.size > 1 and next(network.parameters()).is_cuda:
            convert_sync_batchnorm(network)  # timm's: torch's would lose the activations that are in timm's norms
        elif self.size > 1:
            self.print(f"batch norm: each of the {self.size} ranks {why}")

    def wrapped(self, module: nn.Module) -> nn.Module:
        """The module, its gradients averaged over ranks after each backward pass outside `no_sync`."""
        if self.size == 1:
            return module
        # buffers stay each rank's own: batch norm's are synchronised or of no account, and a memory of features is huge
        return DistributedDataParallel(module, **{_SEND_BUFFERS: False})

    def broadcast_buffers(self, module: nn.Module) -> None:
        """Give a network that is to be scored rank 0's batch statistics, so that all ranks score the same one."""
        if self.size > 1:
            for buffer in module.buffers():
                distributed.broadcast(buffer, src=0)

    def seed(self, seed: int, step: int) -> None:
        """Start this rank's dropout: rank 0 as a process on its own does, the others with numbers of their own."""
        if not self.first:
            seed = int(np.random.SeedSequence(seed, spawn_key=(self.rank, step)).generate_state(1, np.uint64)[0])
        torch.manual_seed(seed)

    def generators(self, device: torch.device) -> dict[str, Tensor]:
        """On rank 0, of all ranks: states of what dropout, and a detector's choice of boxes, draw from."""
        own = {"generator.cpu": torch.get_rng_state()}
        if device.type == "cuda":
            own["generator.cuda"] = torch.cuda.get_rng_state(device)
        of_all = enumerate(self.gather(own))
        return {f"{name}.{rank}" if rank else name: kept for rank, each in of_all for name, kept in each.items()}

    def set_generators(self, states: dict[str, Tensor], device: torch.device) -> None:
        """Go on with those of this rank, as far as they are known."""
        cpu, cuda = (states.get(f"generator.{kind}{f'.{self.rank}' * (not self.first)}") for kind in ("cpu", "cuda"))
        if cpu is not None:
            torch.set_rng_state(cpu)
        if cuda is not None and device.type == "cuda":
            torch.cuda.set_rng_state(cuda, device)

    @contextlib.contextmanager
    def hold(self, folder: Path, *, wait: bool) -> Iterator[Callable[[], None]]:
        """As :func:`only_process` for all ranks; `wait` for a holder, or raise RunBusyError. Rank 0 calls it."""
        asked, held = False, list[Callable[[], None]]()
        with contextlib.ExitStack() as stack:
            while True:
                try:
                    self.on_rank_zero(lambda: held.append(stack.enter_context(only_process(folder))))
                    break
                except RunBusyError as error:
                    if not wait:
                        raise
                    if not asked:
                        self.print(f"waiting: {error}")
                    asked = True
                    time.sleep(ASK_AGAIN_SECONDS)
            yield lambda: held[0]()


ALONE = Ranks()


def of_every_rank(error: E) -> E:
    """Mark an error that all ranks raise alike, so that only rank 0 reports it."""
    error.of_every_rank = True  # type: ignore[attr-defined]
    return error


def started_rank() -> int:
    """The number that `torchrun` gave this process; 0 without it."""
    return _of_torchrun("RANK", 0) if _of_torchrun("WORLD_SIZE", 1) > 1 else 0


def _of_torchrun(name: str, alone: int) -> int:
    """A number that `torchrun` sets; ExperimentError for what is none."""
    if not re.fullmatch("[0-9]{1,6}", given := os.environ.get(name) or str(alone)):
        raise ExperimentError(f"{name} = {given!r:.80}: expected a whole number, as torchrun sets it")
    return int(given)


def choose_device(name: str | None = None) -> torch.device:
    """The torch device of that name, or else cuda, each rank's own, or else cpu; ExperimentError: it is not here."""
    if (name or "cuda") == "cuda" and torch.cuda.is_available():
        number, gpus = _of_torchrun("LOCAL_RANK", 0), torch.cuda.device_count()
        name = "cuda" if _of_torchrun("WORLD_SIZE", 1) == 1 else f"cuda:{number}"
        if name != "cuda" and number >= gpus:
            where = f"rank {started_rank()} is process {number} of its machine, which has {gpus} GPUs"
            fix = "start one process for each GPU (torchrun --nproc-per-node), or give --device cpu"
            raise ExperimentError(f"{where}: {fix}")
    try:
        device = torch.device(name or "cpu")
        torch.ones(1, device=device).item()  # a device that torch knows may still not be in this machine
        return device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n")[0]
        raise ExperimentError(f"device = {name!r}: expected cpu, or cuda where there is a GPU ({reason})") from error


def join() -> Ranks:
    """The job of this process, which joins the others of `torchrun` once for all. LostRankError without them."""
    if not distributed.is_available() or (_of_torchrun("WORLD_SIZE", 1) == 1 and not distributed.is_initialized()):
        return ALONE
    if not distributed.is_initialized():
        gpus = torch.cuda.is_available() and distributed.is_nccl_available()
        with lost_rank_errors():
            distributed.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
    return Ranks(distributed.get_rank(), distributed.get_world_size())


def leave(code: int) -> int:
    """Part from the other ranks at the end of a program, whose exit code this takes and returns."""
    if distributed.is_available() and distributed.is_initialized():
        if code:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)  # an orderly end could wait for ranks that wait for this one
        with lost_rank_errors():
            distributed.all_reduce(torch.zeros(1))  # until all are here; a barrier would ask for a GPU
            distributed.destroy_process_group()
    return code


@contextlib.contextmanager
def lost_rank_errors() -> Iterator[None]:
    """Turn what torch raises when a rank has gone into a `LostRankError`."""
    try:
        yield
    except RuntimeError as error:
        by_gloo = type(error) is RuntimeError and "gloo" in str(error)
        if not (by_gloo or isinstance(error, distributed.DistError)):
            raise
        reason = re.sub(r"^\[\S+\] ", "", str(error).strip()).split("\n")[0].split(". ")[0]
        gone = f"another process of this run has gone or cannot be reached ({reason:.200}); its own message says why"
        fix = "Start the same command again: the run goes on from its last checkpoint"
        raise LostRankError(f"{gone}. {fix}") from error
