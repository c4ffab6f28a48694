"""What a run notes on its way: the log of its terms, a stop that was asked for, a batch that broke it."""

import contextlib
import json
import math
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NoReturn, Self

from safetensors.torch import save_file

from apd.data.batches import Batch, InstanceBatch
from apd.training.checkpoint import GO_ON, CheckpointError

CURVE_POINTS = 100
LINE_SECONDS = 30.0  # Between two lines of progress in a log (own choice).


class NonFiniteLossError(RuntimeError):
    """A loss term became infinite or NaN; the message names it and the file with the batch."""


class UnfinishedRunsError(RuntimeError):
    """Some runs of a campaign were given up; the message names them."""


class StoppedError(KeyboardInterrupt):
    """A run was asked to stop and has written a checkpoint. A KeyboardInterrupt: no `except Exception` hides it."""


class RunLog:
    """The terms of every step as JSON lines. `lines` is their number; one line is one optimiser step."""

    def __init__(self, path: Path) -> None:
        self.path, self.lines = path, 0

    def start_over(self, lines: int) -> None:
        """Keep the first `lines` lines: a resumed run writes the rest anew. CheckpointError where the log has fewer."""
        self.lines = lines
        with self._disk_errors(), self.path.open("ab+") as file:
            file.seek(0)
            kept = sum(file.readline().endswith(b"\n") for _ in range(lines))
            if kept == lines:
                file.truncate(file.tell())
        if kept < lines:
            self._damaged(f"it has {kept} whole lines where the checkpoint expects {lines}")

    def _damaged(self, reason: object) -> NoReturn:
        checkpoints = self.path.parent / "checkpoints"
        advice = f"Delete {checkpoints} and start the same command again: the run begins anew"
        raise CheckpointError(f"{self.path} is damaged: {reason}. {advice}")

    def write(self, entry: dict[str, Any]) -> None:
        """Append a line. CheckpointError when the disk refuses it."""
        with self._disk_errors(), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        self.lines += 1

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(f"cannot write {self.path}: {error.strerror}. {GO_ON}") from error

    def read(self) -> list[dict[str, Any]]:
        """Every line. CheckpointError when one is not what was written."""
        try:
            return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError) as error:
            self._damaged(error)

    def summary(self) -> dict[str, Any]:
        """The record's entries `seconds_per_iteration`, on a CPU `core_seconds_per_iteration`, and `curves`.

        Seconds are medians over steps, core seconds those in which the process ran. A curve has at most 100 points,
        each the mean over an equal stretch of steps; `iteration` is its end.
        """
        entries = self.read()
        stretch = -(-len(entries) // CURVE_POINTS)
        parts = [entries[i : i + stretch] for i in range(0, len(entries), stretch)]

        def short(value: float) -> float:
            return float(f"{value:.6g}")

        seconds = {}
        for name in ("seconds", "core_seconds"):
            if taken := [e[name] for e in entries if name in e]:
                seconds[f"{name}_per_iteration"] = short(statistics.median(taken))
        names = [name for name in entries[0] if name not in ("step", "seconds", "core_seconds")]
        curves = {name: [short(statistics.fmean(e[name] for e in part)) for part in parts] for name in names}
        return {**seconds, "curves": {"iteration": [part[-1]["step"] + 1 for part in parts]} | curves}


def save_batch(path: Path, batch: Batch | InstanceBatch) -> str:
    """Keep a batch for inspection, its tensors as safetensors; the sentence says where, or why not."""
    try:
        save_file({name: value.contiguous() for name, value in batch.by_name().items()}, path)
    except Exception as error:  # safetensors wraps the OSError in a type of its own; the loss is the greater news
        return f"the batch could not be saved in {path} ({error})"
    return f"the batch is saved in {path}"


class ProgressLines:
    """Lines on standard output, in place of a bar, for the run `name`; nothing is printed unless `shown`."""

    def __init__(self, name: str, step: int, steps: int, *, shown: bool = True) -> None:
        self.name, self.first, self.steps, self.shown = name, step, steps, shown
        self.begun = self.printed_at = time.monotonic()
        self.print(f"step {step} of {steps}")

    def print(self, text: str) -> None:
        """Print a line at once."""
        if self.shown:
            print(f"{self.name}: {text}", flush=True)

    def step_done(self, step: int, loss: float) -> None:
        """Print how far the run is, unless the last such line is newer than :data:`LINE_SECONDS`."""
        now = time.monotonic()
        if not self.shown or now - self.printed_at < LINE_SECONDS or math.isnan(loss):  # the first is known a step late
            return
        self.printed_at, seconds = now, (now - self.begun) / (step - self.first)
        left = seconds * (self.steps - step)
        remaining = f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s"
        self.print(f"step {step} of {self.steps}, loss {loss:.4f}, {seconds:.2g} s a step, about {remaining} left")


def in_this_output() -> Literal["lines"] | None:
    """How a command shows its progress: a bar on a terminal, lines in a file."""
    return None if sys.stderr.isatty() else "lines"


class StopRequest:
    """Turns Ctrl-C and SIGTERM, in the main thread, into a request between two steps; a second Ctrl-C stops at once."""

    def __init__(self, *, notice: bool = True) -> None:
        self.requested, self.notice = False, notice
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        if self.notice:
            os.write(2, b"\nstopping after this step; once more stops at once\n")
