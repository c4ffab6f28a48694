"""One of several worker processes of a campaign, and what is known of its runs from outside.

:mod:`apd.study.parallel` decides what they do.
"""

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from apd.config.experiment import Experiment
from apd.training.checkpoint import RunBusyError
from apd.training.exit_codes import USER_ERRORS, out_of_memory
from apd.training.run import run_folder, train
from apd.training.run_log import NonFiniteLossError, StoppedError

REPORT_SECONDS = 0.5  # a running worker tells its step no more often


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
