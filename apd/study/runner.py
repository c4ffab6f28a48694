"""How a campaign's experiments are run, one after another or in a worker process, and the ledger of what came of them.

:mod:`apd.study.parallel` decides what the workers do, with the same ledger.
"""

import os
import signal
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from apd.config.experiment import Experiment
from apd.config.identity import fingerprint, to_dict
from apd.training.checkpoint import RunBusyError
from apd.training.distributed import Ranks, of_every_rank
from apd.training.exit_codes import USER_ERRORS, out_of_memory
from apd.training.record import Record
from apd.training.run import run_folder, train
from apd.training.run_log import NonFiniteLossError, StoppedError, UnfinishedRunsError

REPORT_SECONDS = 0.5  # a running worker tells its step no more often


class Ledger:
    """What has become of a campaign's experiments; saves their records and reports.

    Args:
        name: of the campaign.
        folder: of its records.
        done: the records that are there, by fingerprint; grows.
        missing: how many experiments lack one.
        ranks: the processes that share every run.
    """

    def __init__(self, name: str, folder: Path, done: dict[str, Record], missing: int, ranks: Ranks) -> None:
        self.name, self.folder, self.done, self.missing, self.ranks = name, folder, done, missing, ranks
        self.closed = 0
        self.diverged: list[str] = []
        self.lost: list[str] = []

    def tell(self, text: str) -> None:
        """Print a line under the campaign's name, once."""
        self.ranks.print(f"{self.name}: {text}")

    def finished(self, experiment: Experiment, content: dict[str, Any], outlook: str) -> None:
        """Save a finished run's record; `outlook` is reported beside its score."""
        # a run that another campaign began has that one's label
        record = Record({**content, "experiment": to_dict(experiment)})
        self.done[fingerprint(experiment)] = record
        if self.ranks.first:
            record.save(self.folder / f"{experiment.name}-{fingerprint(experiment)}.json")
        self.closed += 1
        score, value = record.headline
        self.tell(f"{self.closed}/{self.missing} {experiment.name}: {score} {value:.4f}, {outlook}")

    def has_diverged(self, experiment: Experiment, error: object) -> None:
        """Note a run that has no record because its loss became infinite or NaN."""
        self.closed += 1
        self.diverged.append(experiment.name)
        self.tell(f"{self.closed}/{self.missing} {experiment.name} diverged and has no record: {error}")

    def is_lost(self, experiment: Experiment, why: str) -> None:
        """Note a run that is given up for another reason."""
        self.closed += 1
        self.lost.append(experiment.name)
        self.tell(f"{experiment.name} {why}")

    def close(self) -> None:
        """Raise NonFiniteLossError or UnfinishedRunsError if some experiments ended without a record."""
        of = f"of {self.missing} experiments"
        if self.lost:
            raise UnfinishedRunsError(
                f"{self.name}: {len(self.lost)} {of} were given up, see above: {', '.join(self.lost)}; the same "
                "command tries them again"
            )
        if self.diverged:
            told = f"{len(self.diverged)} {of} diverged and have no record: {', '.join(self.diverged)}"
            raise of_every_rank(NonFiniteLossError(f"{self.name}: {told}"))


def in_turn(
    missing: Sequence[Experiment], ledger: Ledger, *, device: str | None, progress: bool | None, workers: int
) -> None:
    """Run experiments one after another; what another process works on is left for the end and then waited for.

    Raises:
        Everything that `train` raises but NonFiniteLossError, which is noted.
    """
    queue = deque((experiment, False) for experiment in missing)
    spent = 0.0
    while queue:
        experiment, wait = queue.popleft()
        begun = time.monotonic()
        try:
            found = train(experiment, device=device, progress=progress, wait=wait, workers=workers)
        except RunBusyError:
            ledger.tell(f"{experiment.name} is another worker's and left for the end")
            queue.append((experiment, True))
            continue
        except NonFiniteLossError as error:
            ledger.has_diverged(experiment, error)
            continue
        spent += time.monotonic() - begun
        left = spent / (len(missing) - len(queue)) * len(queue)
        ledger.finished(experiment, found.content, f"about {left / 60:.0f} min left")


def work(pipe: Connection, device: str | None, loaders: int, threads: int) -> None:
    """A worker: take an experiment, answer with what became of it, until the pipe is closed."""
    os.setpgid(0, 0)  # Ctrl-C in a terminal is the upper process's, which asks for a checkpoint
    torch.set_num_threads(threads)
    reported = 0.0

    def on_step(step: int) -> None:
        nonlocal reported
        if pipe.poll():  # asked to stop, or left alone
            signal.raise_signal(signal.SIGTERM)
        elif time.monotonic() - reported > REPORT_SECONDS:
            reported = time.monotonic()
            pipe.send(("step", step))

    with suppress(EOFError, ConnectionError):
        while experiment := pipe.recv():
            outcome: tuple[str, Any]
            try:
                record = train(experiment, device=device, progress=False, workers=loaders, on_step=on_step)
                outcome = "done", record.content
            except StoppedError:
                outcome = "stopped", None
            except RunBusyError as error:
                outcome = "busy", str(error)
            except NonFiniteLossError as error:
                outcome = "diverged", str(error)
            except torch.OutOfMemoryError as error:
                outcome = "memory", out_of_memory(error)
            except USER_ERRORS as error:
                outcome = "failed", error
            pipe.send(outcome)
            if outcome[0] in ("stopped", "memory"):  # memory goes back to the device with the process
                return


@dataclass
class Worker:
    """A worker process and what it works on: its run, whether that was queued (else it is a teacher that others wait
    for), and the first and the newest report of it, as (seconds, step)."""

    process: BaseProcess
    pipe: Connection
    run: Experiment | None = None
    queued: bool = False
    first: tuple[float, int] | None = None
    newest: tuple[float, int] | None = None

    @property
    def speed(self) -> float:
        """Steps a second of the run, without its start; 0 where that is not known yet."""
        if self.first is None or self.newest is None or self.newest[0] <= self.first[0]:
            return 0.0
        return (self.newest[1] - self.first[1]) / (self.newest[0] - self.first[0])


def untrained_teacher(experiment: Experiment) -> Experiment | None:
    """The run that has to be finished before this one can begin, or None."""
    if experiment.teacher is None or experiment.teacher.weights_file:
        return None
    teacher = experiment.teacher_experiment()
    return None if (run_folder(teacher) / "record.json").exists() else teacher


def steps_done(run: Experiment) -> int:
    """The step of a run's newest checkpoint; 0 without one."""
    found = (run_folder(run) / "checkpoints").glob("step-*")
    return max((int(path.name.removeprefix("step-")) for path in found), default=0)


def kind_of(run: Experiment) -> tuple[object, ...]:
    """What a step's seconds depend on: runs with the same answer take about the same."""
    training = run.training
    teacher = run.teacher.network if run.teacher is not None and run.distillers else None
    methods = tuple(distiller.method for distiller in run.distillers)
    return run.data, run.network, teacher, methods, training.batch_size, training.accumulation
