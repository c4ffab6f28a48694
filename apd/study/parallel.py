"""Runs of a campaign side by side on one device, each whole in a worker process, for so many minutes.

A worker keeps its imports and its GPU context and takes one run after another. The one process above them decides who
runs what, saves the records and reports; it computes nothing. A teacher that is not trained yet is a run of its own,
and its students wait for it while others go on.
"""

import multiprocessing
import os
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from typing import Any

from apd.config.experiment import Experiment
from apd.config.identity import fingerprint
from apd.study.runner import Ledger, Worker, kind_of, steps_done, untrained_teacher, work
from apd.training.run_log import StoppedError, StopRequest

START = "spawn"  # a GPU's context does not survive a fork
GRACE_SECONDS = 20.0  # from the deadline: a step, or the scoring of a run that has done its last one, takes less
BUSY_SECONDS = 5.0  # a run that another process holds is asked for again after this
MARGIN = 1.1  # on the time that a run is expected to take, for scoring and noise (own choice)


class SideBySide:
    """The state of `side_by_side`, which is the way in."""

    def __init__(
        self, missing: Sequence[Experiment], ledger: Ledger, device: str | None, processes: int, loaders: int
    ) -> None:
        self.queue, self.ledger = deque(missing), ledger
        self.device, self.processes, self.loaders = device, processes, loaders
        self.workers: list[Worker] = []
        self.deadline = float("inf")
        self.paces: dict[Any, float] = {}
        self.not_before: dict[str, float] = {}
        self.killed: set[str] = set()
        self.given_up: set[str] = set()

    # what is run next

    def next_run(self) -> Experiment | None:
        """The first experiment, or its teacher, that can be run now and finished before the deadline."""
        now, running = time.monotonic(), {fingerprint(w.run) for w in self.workers if w.run}
        for experiment in list(self.queue):
            run = experiment
            if (teacher := untrained_teacher(experiment)) is not None:
                if fingerprint(teacher) in self.given_up:
                    self.queue.remove(experiment)
                    self.ledger.is_lost(experiment, "has no teacher: its run was given up")
                    continue
                run = teacher
            key = fingerprint(run)
            if key in running or self.not_before.get(key, 0) > now:
                continue
            if now + MARGIN * self.expected_seconds(run) > self.deadline:
                continue
            return run
        return None

    def expected_seconds(self, run: Experiment) -> float:
        """What is left of a run at the pace of runs like it, or else at that of the slowest; 0 before any is known."""
        live = {kind_of(w.run): 1 / w.speed for w in self.workers if w.run and w.speed}
        paces = live | self.paces
        pace = paces.get(kind_of(run)) or max(paces.values(), default=0.0)
        return pace * (run.training.iterations - steps_done(run))

    # workers

    def start_worker(self) -> Worker:
        """One more worker process."""
        context = multiprocessing.get_context(START)
        threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, (os.cpu_count() or 1) // self.processes))
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, self.device, self.loaders, threads))
        process.start()
        theirs.close()
        self.workers.append(Worker(process, ours))
        return self.workers[-1]

    def give_work(self) -> None:
        """Give every free worker a run, as long as there is one, and start workers as long as there may be more."""
        while sum(worker.run is not None for worker in self.workers) < self.processes:
            if (run := self.next_run()) is None:
                return
            free = [worker for worker in self.workers if worker.run is None]
            worker = free[0] if free else self.start_worker()
            worker.run, worker.queued, worker.first, worker.newest = run, run in self.queue, None, None
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
                self.has_died(worker)
                continue
            if kind == "step":
                worker.newest = (time.monotonic(), value)
                worker.first = worker.first or worker.newest
                continue
            getattr(self, f"_{kind}")(worker, worker.run, value)

    @property
    def speed(self) -> float:
        """Steps a second of all workers together."""
        return sum(worker.speed for worker in self.workers)

    def dismiss(self, worker: Worker) -> None:
        """Let go of a worker that has ended or is about to."""
        self.workers.remove(worker)
        worker.pipe.close()
        worker.process.join()

    def stop(self) -> None:
        """Ask for checkpoints, wait for them so long, and end all workers."""
        for worker in self.workers:
            with suppress(ConnectionError):
                worker.pipe.send(None)
        end = time.monotonic() + GRACE_SECONDS
        try:
            while self.busy and time.monotonic() < end:
                self.listen(0.1)
        finally:
            self.kill()

    def kill(self) -> None:
        """End all workers at once; what they were at goes back into the queue."""
        for worker in list(self.workers):
            if worker.run is not None:
                self.ledger.tell(f"{worker.run.name}: its worker did not stop in time and was killed")
                self._again(worker)
                worker.process.kill()
            self.dismiss(worker)

    @property
    def busy(self) -> bool:
        """Whether a worker has something to do."""
        return any(worker.run is not None for worker in self.workers)

    # what becomes of a worker's run

    def has_died(self, worker: Worker) -> None:
        """A worker went without an answer: its run is tried once more."""
        self.dismiss(worker)
        if (run := worker.run) is None:
            return
        code = worker.process.exitcode or 0
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        if fingerprint(run) in self.killed:
            self._give_up(worker, f"was given up: its worker ended {how} a second time")
            return
        self.killed.add(fingerprint(run))
        self.ledger.tell(f"{run.name}: its worker ended {how}; the run goes on from its last checkpoint in another")
        self._again(worker)

    def _done(self, worker: Worker, run: Experiment, content: dict[str, Any]) -> None:
        if worker.first is not None and (steps := run.training.iterations - worker.first[1]):
            self.paces[kind_of(run)] = (time.monotonic() - worker.first[0]) / steps
        runs = sum(other.run is not None for other in self.workers)
        outlook = f"{self.speed:.1f} steps/s, {runs} at a time, about {self.seconds_left() / 60:.0f} min left"
        worker.run = None
        if worker.queued:
            self.ledger.finished(run, content, outlook)
        else:
            self.ledger.tell(f"{run.name} is trained, {outlook}")

    def _stopped(self, worker: Worker, run: Experiment, _: None) -> None:
        self._again(worker)
        self.dismiss(worker)

    def _busy(self, worker: Worker, run: Experiment, _: str) -> None:
        if fingerprint(run) not in self.not_before:
            self.ledger.tell(f"{run.name} is another worker's and left for the end")
        self.not_before[fingerprint(run)] = time.monotonic() + BUSY_SECONDS
        self._again(worker)

    def _diverged(self, worker: Worker, run: Experiment, why: str) -> None:
        self.given_up.add(fingerprint(run))
        worker.run = None
        if worker.queued:
            self.ledger.has_diverged(run, why)
        else:
            self.ledger.tell(f"{run.name} diverged: {why}")

    def _memory(self, worker: Worker, run: Experiment, why: str) -> None:
        if self.processes == 1:
            self._give_up(worker, f"was given up: alone on the device, {why}")
        else:
            self.processes = max(1, min(self.processes, len(self.workers)) - 1)
            self.ledger.tell(f"{run.name}: out of memory; tried again, with {self.processes} at a time from now on")
            self._again(worker)
        self.dismiss(worker)

    def _failed(self, worker: Worker, run: Experiment, error: Exception) -> None:
        self._again(worker)
        raise error

    def _give_up(self, worker: Worker, why: str) -> None:
        run, worker.run = worker.run, None
        assert run is not None
        self.given_up.add(fingerprint(run))
        if worker.queued:
            self.ledger.is_lost(run, why)
        else:
            self.ledger.tell(f"{run.name} {why}")

    def _again(self, worker: Worker) -> None:
        """Put a worker's run back into the queue; a teacher's students are there still."""
        run = worker.run
        assert run is not None
        if worker.speed:
            self.paces[kind_of(run)] = 1 / worker.speed
        worker.run = None
        if worker.queued:
            self.queue.appendleft(run)

    # what is left

    def seconds_left(self) -> float:
        """About how long all that is left takes, one teacher counted once."""
        running = [worker.run for worker in self.workers if worker.run]
        teachers = {fingerprint(t): t for e in self.queue if (t := untrained_teacher(e)) is not None}
        runs = {fingerprint(run): run for run in (*running, *teachers.values(), *self.queue)}
        return sum(map(self.expected_seconds, runs.values())) / self.processes

    def report(self, speed: float) -> None:
        """Say what is left, where it stands, and how fast the runs were."""
        if not self.queue:
            return
        runs = {fingerprint(run): run for e in self.queue for run in (untrained_teacher(e), e) if run is not None}
        begun = [
            f"{run.name} at step {steps} of {run.training.iterations}"
            for run in runs.values()
            if (steps := steps_done(run))
        ]
        self.ledger.tell(
            f"{len(self.queue)} experiments are left, about {self.seconds_left() / 60:.0f} min; "
            f"{f'begun: {chr(44).join(begun)}' if begun else 'none is begun'}. The same command goes on from there "
            f"({speed:.1f} steps/s, {self.processes} at a time)"
        )


def side_by_side(
    missing: Sequence[Experiment],
    ledger: Ledger,
    *,
    device: str | None,
    processes: int,
    minutes: float | None,
    workers: int = 0,
) -> float:
    """Run experiments in several worker processes at once; stop with checkpoints after so many minutes.

    No run is begun that is known not to finish before, by the seconds of a step of the runs so far. A run that finds no
    memory on the GPU is tried again with one process fewer; one whose worker is killed is tried a second time. Each
    worker has `OMP_NUM_THREADS` threads where that is set, else its share of the cores.

    Args:
        missing: the experiments, in order.
        ledger: saves and reports what becomes of them.
        device: as of `train`.
        processes: most runs at once.
        minutes: until checkpoints are asked for; None: until all are done.
        workers: processes that prepare batches ahead in every run.

    Returns:
        Steps a second of all runs together, as it was before the end.

    Raises:
        StoppedError: Ctrl-C or SIGTERM; checkpoints were written.
        Everything else that `train` raises, after checkpoints of the other runs, but what the ledger notes.
    """
    state = SideBySide(missing, ledger, device, processes, workers)
    if minutes is not None:
        state.deadline = time.monotonic() + 60 * minutes
    speed = 0.0
    with StopRequest() as stop:
        try:
            while not stop.requested and (now := time.monotonic()) < state.deadline:
                state.give_work()
                if not state.busy and not any(now < then for then in state.not_before.values()):
                    break
                state.listen(min(0.2, state.deadline - now))
                speed = state.speed or speed
        except KeyboardInterrupt:  # a second one
            state.kill()
            raise
        finally:
            state.stop()
    state.report(speed)
    if stop.requested:
        raise StoppedError(f"{ledger.name}: stopped; the same command goes on from there")
    return speed
