"""Runs of a campaign, and the teachers they wait for, side by side on one device, each whole in a worker process."""

import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from apd.config.experiment import Experiment
from apd.config.identity import fingerprint
from apd.fields import UserError
from apd.study.campaigns import steps_done, untrained_teacher
from apd.training.checkpoint import RunBusyError
from apd.training.exit_codes import out_of_memory, printing_safely
from apd.training.run import train
from apd.training.run_log import NonFiniteLossError, StoppedError, StopRequest

START = "spawn"  # a GPU's context does not survive a fork
REPORT_SECONDS = 0.5  # a running worker reports its step no more often
GRACE_SECONDS = 20.0  # from the deadline: a step, or the scoring of a run that has done its last one, takes less
DISMISS_SECONDS = 5.0  # for a worker without a run to end, which its device can keep from it
BUSY_SECONDS = 5.0  # a run that another process holds is asked for again after this
MARGIN = 1.1  # on the time that a run is expected to take, for scoring and noise (own choice)


def kind_of(run: Experiment) -> tuple[object, ...]:
    """What a step's seconds depend on."""
    teacher = run.teacher.network if run.teacher is not None and run.distillers else None
    methods = tuple(distiller.method for distiller in run.distillers)
    return run.data, run.network, teacher, methods, run.training.batch_size, run.training.accumulation


@printing_safely
def work(pipe: Connection, device: str | None, loaders: int, share: int) -> None:
    """A worker on a share of the cores: take an experiment, answer with its outcome, until the pipe is closed."""
    if hasattr(os, "setpgid"):  # not on Windows
        os.setpgid(0, 0)  # Ctrl-C in a terminal is the upper process's, which asks for a checkpoint
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(share)
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
            try:
                options = dict(device=device, progress=False, workers=loaders, on_step=on_step)
                answer = "done", train(experiment, **options).content
            except StoppedError:
                answer = "stopped", None
            except RunBusyError as error:
                answer = "busy", str(error)
            except NonFiniteLossError as error:
                answer = "diverged", str(error)
            except torch.OutOfMemoryError as error:
                answer = "memory", out_of_memory(error)
            except UserError as error:
                answer = "failed", error
            pipe.send(answer)
            if answer[0] in ("stopped", "memory"):  # memory goes back to the device with the process
                return


@dataclass
class Worker:
    """A worker process and what it works on."""

    process: BaseProcess
    pipe: Connection
    run: Experiment | None = None
    queued: bool = False  #: Whether the run was queued; else it is a teacher that others wait for.
    given: float = 0.0  #: When it was given the run.
    first: tuple[float, int] | None = None  #: The first report of the run, as (seconds, step).
    speed: float = 0.0  #: Steps a second of the run, without its start; 0 where that is not known yet.


class SideBySide:
    """The state of :func:`side_by_side`."""

    def __init__(self, missing: Sequence[Experiment], ledger: Any, device: str | None, processes: int, loaders: int):
        self.queue, self.ledger = deque(missing), ledger
        self.device, self.processes, self.loaders = device, processes, loaders
        self.workers: list[Worker] = []
        self.deadline = float("inf")
        self.paces: dict[Any, float] = {}  # seconds of a step, by the kind of run
        self.not_before: dict[str, float] = {}  # by fingerprint, as what follows
        self.killed, self.given_up = set[str](), set[str]()

    @property
    def busy(self) -> list[Worker]:
        """Workers that have something to do."""
        return [worker for worker in self.workers if worker.run is not None]

    @property
    def speed(self) -> float:
        """Steps a second of all workers together."""
        return sum(worker.speed for worker in self.workers)

    def next_run(self) -> Experiment | None:
        """The first experiment, or its teacher, that can be run now and finished before the deadline."""
        now, running = time.monotonic(), {fingerprint(worker.run) for worker in self.busy}
        for experiment in list(self.queue):
            teacher = untrained_teacher(experiment)
            if teacher is not None and fingerprint(teacher) in self.given_up:
                self.queue.remove(experiment)
                self.ledger.without_record(experiment, "has no teacher: its run was given up")
                continue
            run = teacher or experiment
            free = fingerprint(run) not in running and self.not_before.get(fingerprint(run), 0) <= now
            if free and now + MARGIN * self.expected_seconds(run) <= self.deadline:
                return run
        return None

    def expected_seconds(self, run: Experiment) -> float:
        """What is left of a run at the pace of runs like it, or else at that of the slowest; 0 before any is known."""
        paces = {kind_of(worker.run): 1 / worker.speed for worker in self.busy if worker.speed} | self.paces
        pace = paces.get(kind_of(run)) or max(paces.values(), default=0.0)
        return pace * (run.training.iterations - steps_done(run))

    def give_work(self) -> None:
        """Give every free worker a run, as long as there is one, and start workers as long as there may be more."""
        while len(self.busy) < self.processes and (run := self.next_run()) is not None:
            if len(self.busy) == len(self.workers):
                context = multiprocessing.get_context(START)
                ours, theirs = context.Pipe()
                share = max(1, (os.cpu_count() or 1) // self.processes)
                process = context.Process(target=work, args=(theirs, self.device, self.loaders, share))
                process.start()
                theirs.close()
                self.workers.append(Worker(process, ours))
            worker = next(worker for worker in self.workers if worker.run is None)
            worker.run, worker.queued, worker.first, worker.speed = run, run in self.queue, None, 0.0
            worker.given = time.monotonic()
            if worker.queued:
                self.queue.remove(run)
            with suppress(ConnectionError):  # it died; `listen` finds that
                worker.pipe.send(run)

    def listen(self, seconds: float) -> None:
        """Wait for workers' answers, no longer than so many seconds."""
        for pipe in wait([worker.pipe for worker in self.workers], timeout=max(0.0, seconds)):
            worker = next(worker for worker in self.workers if worker.pipe is pipe)
            try:
                kind, value = worker.pipe.recv()
            except (EOFError, ConnectionError):
                kind, value = "died", None
            getattr(self, f"_{kind}")(worker, worker.run, value)

    def dismiss(self, worker: Worker) -> None:
        """Let go of a worker that has ended or is about to."""
        self.workers.remove(worker)
        worker.pipe.close()
        worker.process.join(DISMISS_SECONDS)
        worker.process.kill()  # nothing where it has ended
        worker.process.join()

    def stop(self, seconds: float = GRACE_SECONDS) -> None:
        """Ask for checkpoints, wait for them so long, and end all workers; unfinished runs go back into the queue."""
        for worker in self.workers:
            with suppress(ConnectionError):
                worker.pipe.send(None)
        end = time.monotonic() + seconds
        try:
            while self.busy and time.monotonic() < end:
                self.listen(0.1)
        finally:
            for worker in list(self.workers):
                if worker.run is not None:
                    self._again(worker, f"{worker.run.name}: its worker did not stop in time and was killed")
                    worker.process.kill()
                self.dismiss(worker)

    # what a worker may answer

    def _step(self, worker: Worker, _: Experiment, step: int) -> None:
        worker.first = worker.first or (time.monotonic(), step)
        if (seconds := time.monotonic() - worker.first[0]) and step > worker.first[1]:
            worker.speed = (step - worker.first[1]) / seconds

    def _done(self, worker: Worker, run: Experiment, content: dict[str, Any]) -> None:
        steps = run.training.iterations - worker.first[1] if worker.first else 0
        if 2 * steps > run.training.iterations:  # of one resumed late, the start would count too much
            self.paces[kind_of(run)] = (time.monotonic() - worker.given) / steps  # start and scoring included
        left = f"about {self.seconds_left() / 60:.0f} min left"
        outlook = f"{self.speed:.1f} steps/s, {len(self.busy)} at a time, {left}"
        worker.run = None
        if worker.queued:
            self.ledger.finished(run, content, outlook)
        else:
            self.ledger.tell(f"{run.name} is trained, {outlook}")

    def _stopped(self, worker: Worker, *_: object) -> None:
        self._again(worker)
        self.dismiss(worker)

    def _busy(self, worker: Worker, run: Experiment, _: object) -> None:
        known = fingerprint(run) in self.not_before
        self._again(worker, "" if known else f"{run.name} is another worker's and left for the end")
        self.not_before[fingerprint(run)] = time.monotonic() + BUSY_SECONDS

    def _memory(self, worker: Worker, run: Experiment, why: str) -> None:
        if self.processes == 1:
            self._give_up(worker, f"was given up: alone on the device, {why}")
        else:
            self.processes = max(1, min(self.processes, len(self.workers)) - 1)
            again = f"tried again, with {self.processes} at a time from now on"
            self._again(worker, f"{run.name}: out of memory; {again}")
        self.dismiss(worker)

    def _failed(self, worker: Worker, run: Experiment, error: Exception) -> None:
        self._again(worker)
        raise error

    def _diverged(self, worker: Worker, run: Experiment, why: str) -> None:
        self._give_up(worker, f"diverged and has no record: {why}", diverged=True)

    def _died(self, worker: Worker, run: Experiment | None, _: None) -> None:
        """A worker went without an answer: its run is tried once more."""
        self.dismiss(worker)
        if run is None:
            return
        code = worker.process.exitcode or 0
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        if fingerprint(run) in self.killed:
            self._give_up(worker, f"was given up: its worker ended {how} a second time")
        else:
            self.killed.add(fingerprint(run))
            then = "the run goes on from its last checkpoint in another"
            self._again(worker, f"{run.name}: its worker ended {how}; {then}")

    def _give_up(self, worker: Worker, why: str, *, diverged: bool = False) -> None:
        run, worker.run = worker.run, None
        self.given_up.add(fingerprint(run))
        if worker.queued:
            self.ledger.without_record(run, why, diverged=diverged)
        else:
            self.ledger.tell(f"{run.name} {why}")

    def _again(self, worker: Worker, notice: str = "") -> None:
        """Put a worker's run back into the queue; a teacher's students are there still."""
        run, worker.run = worker.run, None
        if worker.speed:
            self.paces[kind_of(run)] = 1 / worker.speed
        if worker.queued:
            self.queue.appendleft(run)
        if notice:
            self.ledger.tell(notice)

    def left(self) -> dict[str, Experiment]:
        """The queue with the teachers that it waits for, by fingerprint."""
        return {fingerprint(run): run for e in self.queue for run in (untrained_teacher(e), e) if run is not None}

    def seconds_left(self) -> float:
        """About how long all that is left takes."""
        runs = self.left() | {fingerprint(worker.run): worker.run for worker in self.busy}
        return sum(map(self.expected_seconds, runs.values())) / self.processes


def side_by_side(
    missing: Sequence[Experiment],
    ledger: Any,
    *,
    device: str | None,
    processes: int,
    minutes: float | None,
    workers: int = 0,
) -> float:
    """Run experiments in worker processes, so many at once; stop with checkpoints after so many minutes (None: never).

    No run is begun that is known not to finish before. One that finds no memory on the GPU is tried again with one
    process fewer, one whose worker is killed a second time. Each worker has `OMP_NUM_THREADS` threads where that is
    set, else its share of the cores. `ledger` is an :class:`apd.study.campaign.Ledger`. Returns steps a second of all
    runs together. StoppedError after Ctrl-C or SIGTERM; checkpoints are written before that and before any error.
    """
    state = SideBySide(missing, ledger, device, processes, workers)
    if minutes is not None:
        state.deadline = time.monotonic() + 60 * minutes
    speed = 0.0
    if hangup := getattr(signal, "SIGHUP", None):  # the helper of all processes must outlive it, as it does others
        signal.pthread_sigmask(signal.SIG_BLOCK, {hangup})
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {hangup})
    with StopRequest() as stop:
        try:
            while not stop.requested and (now := time.monotonic()) < state.deadline:
                state.give_work()
                if not state.busy and not any(now < then for then in state.not_before.values()):
                    break
                state.listen(min(0.2, state.deadline - now))
                speed = state.speed or speed
        except KeyboardInterrupt:  # a second one
            state.stop(0.0)
            raise
        finally:
            state.stop()
    if state.queue:
        done = [(run, steps_done(run)) for run in state.left().values()]
        begun = ",".join(f"{run.name} at step {steps} of {run.training.iterations}" for run, steps in done if steps)
        left = f"{len(state.queue)} experiments are left, about {state.seconds_left() / 60:.0f} min"
        pace = f"{speed:.1f} steps/s, {state.processes} at a time"
        ledger.tell(f"{left}; begun: {begun or 'none'}. The same command goes on from there ({pace})")
    if stop.requested:
        raise StoppedError(f"{ledger.name}: stopped; the same command goes on from there")
    return speed
