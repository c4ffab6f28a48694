"""What a run notes on its way: the log of its terms, for TensorBoard too, and a stop that was asked for."""

import contextlib
import hashlib
import json
import math
import os
import signal
import statistics
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from apd.config.experiment import ExperimentError
from apd.data.augment import nearest
from apd.data.batches import unit_range
from apd.data.instances import InstanceSample
from apd.evaluation.average_precision import detect
from apd.evaluation.inference import predict_labels
from apd.evaluation.predict import drawn, overlay
from apd.fields import UserError, imported
from apd.training.checkpoint import GO_ON, CheckpointError, replacing

CURVE_POINTS = 100
MOST_BYTES, LONGEST_LINE = 2**24, 2**12  # of a log: beyond its lines, and of one of them (own choice)
IMAGES, LONGEST = 3, 1024  # predictions in TensorBoard each time, and pixels of their longer side (own choice)
LINE_SECONDS = 30.0  # Between two lines of progress in a log (own choice).


class NonFiniteLossError(UserError, RuntimeError):
    """A loss term became infinite or NaN; the message names it and the file with the batch."""


class UnfinishedRunsError(UserError, RuntimeError):
    """Some runs of a campaign were given up; the message names them."""


class StoppedError(KeyboardInterrupt):
    """A run was asked to stop and has written a checkpoint. A KeyboardInterrupt: no `except Exception` hides it."""


def values_of(terms: dict[str, Tensor]) -> Callable[[], dict[str, float]]:
    """The terms as numbers; a GPU sends them to the host now, so that asking later waits for this step alone."""
    numbers, sent = torch.stack([term.float() for term in terms.values()]), None
    if numbers.is_cuda:
        numbers, sent = numbers.to("cpu", non_blocking=True), torch.cuda.Event()
        sent.record()

    def values() -> dict[str, float]:
        if sent is not None:
            sent.synchronize()
        return dict(zip(terms, numbers.tolist(), strict=True))

    return values


class RunLog:
    """The terms of every step as JSON lines. `parts` are end and sha256 of the lines between two checkpoints."""

    def __init__(self, path: Path) -> None:
        self.path, self.lines, self.damaged = path, 0, dict[str, dict[str, int]]()
        self.board: Board | None = None
        self.parts, self._part = list[list[Any]](), hashlib.sha256()

    def start_over(self, parts: list[list[Any]]) -> None:
        """Keep the lines of these parts, those of a checkpoint: a resumed run writes the rest anew."""
        self.lines, self.parts, self._part = parts[-1][0] if parts else 0, parts, hashlib.sha256()
        with replacing(self.path, f". {GO_ON}") as own:
            own.write_text(_lines_of(self._whole().values()), encoding="utf-8")

    def facts(self) -> dict[str, Any]:
        """What a checkpoint keeps of the log."""
        if self.board is not None:
            self.board.writer.flush()
        if self.lines > (self.parts[-1][0] if self.parts else 0):
            self.parts.append([self.lines, self._part.hexdigest()])
            self._part = hashlib.sha256()
        return {"log_parts": self.parts}

    def write(self, entry: dict[str, Any]) -> None:
        """Append a line. CheckpointError when the disk refuses it."""
        line = _lines_of([entry])
        try:
            if self.path.is_fifo():
                raise OSError(0, "it is a pipe")  # which would be waited for
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise CheckpointError(f"cannot write {self.path}: {error.strerror}. {GO_ON}") from error
        self._part.update(line.encode())
        self.lines += 1
        if self.board is not None:
            self.board.log_line(entry)

    def read(self) -> list[dict[str, Any]]:
        """What the lines hold that could have been written: a damaged log costs its curves, not the run."""
        entries: list[dict[str, Any]] = []
        sound = self.path.is_file() and self.path.stat().st_size <= MOST_BYTES + LONGEST_LINE * self.lines
        for line in self.path.read_bytes().split(b"\n") if sound else ():
            with contextlib.suppress(ValueError, TypeError, AttributeError, OverflowError, RecursionError):
                if "step" in (entry := json.loads(line)) and all(map(math.isfinite, entry.values())):
                    entries.append(entry)
        return entries

    def _whole(self) -> dict[int, dict[str, Any]]:
        """By step, what the lines hold that are as they were written; what is damaged is printed."""
        entries, whole, first = {entry["step"]: entry for entry in self.read()}, {}, 0
        for end, digest in self.parts:
            found = {step: entries[step] for step in range(first, end) if step in entries}
            if digest == hashlib.sha256(_lines_of(found.values()).encode()).hexdigest():
                whole |= found
            first = end
        if missing := [step for step in range(self.lines) if step not in whole]:
            self.damaged = {"log_damaged": {"first": missing[0], "last": missing[-1], "steps": len(missing)}}
            print(f"{self.path} is damaged: the curves lack {len(missing)} steps from {missing[0]} on", flush=True)
        return whole

    def summary(self) -> dict[str, Any]:
        """The record's medians of (core) seconds over steps, `curves`, of means over at most 100 equal stretches of the
        steps whose lines are as they were written, and `log_damaged`, which says where others are."""
        self.facts()  # closes the last stretch
        entries = [*self._whole().values()]
        stretch = -(-len(entries) // CURVE_POINTS)
        parts = [entries[i : i + stretch] for i in range(0, len(entries), max(1, stretch))]

        def short(value: float) -> float:
            return float(f"{value:.6g}")

        seconds = {}
        for name in ("seconds", "core_seconds"):
            if taken := [e[name] for e in entries if name in e]:
                seconds[f"{name}_per_iteration"] = short(statistics.median(taken))
        terms = [name for name in (entries or [{}])[0] if all(name in entry for entry in entries)]
        names = [name for name in terms if name not in ("step", "seconds", "core_seconds")]
        curves = {name: [short(statistics.fmean(e[name] for e in part)) for part in parts] for name in names}
        return {**seconds, "curves": {"iteration": [part[-1]["step"] + 1 for part in parts]} | curves, **self.damaged}


def _lines_of(entries: Iterable[dict[str, Any]]) -> str:
    return "".join(f"{json.dumps(entry)}\n" for entry in entries)


class LogLines(tqdm):
    """A bar for a log: in place of drawing itself anew it prints a line, at most every :data:`LINE_SECONDS`."""

    def __init__(self, **options: Any) -> None:
        line = "{desc}: step {n} of {total}{postfix}, {elapsed}<{remaining}, {rate_inv_fmt}"
        super().__init__(**options, mininterval=LINE_SECONDS, miniters=1, ncols=1000, leave=False, bar_format=line)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Print the line; at the end, tqdm asks for an empty one."""
        if msg is None:
            print(self, flush=True)


class StopRequest:
    """Turns Ctrl-C, SIGTERM and SIGHUP, in the main thread, into a request between two steps; a second Ctrl-C stops."""

    def __init__(self, *, notice: bool = True) -> None:
        self.requested, self.notice = False, notice
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}:
                if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has SIGHUP
                    self._before[number] = signal.signal(number, self._note)
            if hasattr(signal, "SIGCHLD"):  # torch's handler raises in the middle of a step where a worker is killed
                self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:  # others may come twice for one event
            raise KeyboardInterrupt
        if self.notice and not self.requested:
            with contextlib.suppress(OSError):  # the terminal may be what was lost
                os.write(2, b"\nstopping after this step; once more stops at once\n")
        self.requested = True


# The files that TensorBoard shows: a run's curves and some of its predictions.


def require_tensorboard() -> Any:
    """The module torch.utils.tensorboard; ExperimentError says how to install what it needs."""
    return imported("torch.utils.tensorboard", "--tensorboard", "tensorboard", ExperimentError)


class Board:
    """Writes into `folder`, from where `step` steps are done: what was written of later ones is no longer shown."""

    def __init__(self, folder: Path, step: int) -> None:
        self.writer = require_tensorboard().SummaryWriter(folder, purge_step=step + 1)

    def _points(self, step: int, values: Mapping[str, float]) -> None:
        """One event for all curves: a call of add_scalar for each would cost a small network's step some per cent."""
        from torch.utils.tensorboard.summary import Summary

        points = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self.writer.file_writer.add_summary(Summary(value=points), step)

    def log_line(self, entry: Mapping[str, float]) -> None:
        """Terms, learning rate and seconds of a step, as a line of the run's log holds them."""
        groups = {"learning_rate": "schedule", "seconds": "time", "core_seconds": "time"}
        values = {f"{groups.get(name, 'loss')}/{name}": value for name, value in entry.items() if name != "step"}
        self._points(int(entry["step"]) + 1, values)

    def validation(self, step: int, score: str, value: float, network: nn.Module, dataset: Any) -> None:
        """The score on val after `step` steps, and what the network, in eval mode, finds in the first images."""
        self._points(step, {f"val/{score}": value})
        for name, image_HW3 in shown(network, dataset):
            self.writer.add_image(f"val/{name}", image_HW3, step, dataformats="HWC")


@torch.no_grad()
def shown(network: nn.Module, dataset: Any) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """The first images by name: labels left and prediction right, both laid over the image, or drawn detections."""
    device = next(network.parameters()).device
    for sample in (dataset[place] for place in range(min(IMAGES, len(dataset)))):
        pixels_HW3, image_3HW = sample.image_3HW.permute(1, 2, 0).numpy(), unit_range(sample.image_3HW).to(device)
        if isinstance(sample, InstanceSample):
            found_HW3 = np.asarray(drawn(pixels_HW3, detect(network, [image_3HW])[0], dataset.spec))
        else:
            labels_1HW = nearest(sample.labels_HW[None].byte(), image_3HW.shape[1:])  # images may be made smaller
            both_HW = torch.cat([labels_1HW, predict_labels(network, image_3HW[None]).byte().cpu()], 2)[0].numpy()
            found_HW3 = np.asarray(overlay(Image.fromarray(np.tile(pixels_HW3, (1, 2, 1))), both_HW, dataset.spec))
        every = -(-max(found_HW3.shape) // LONGEST)
        yield sample.name, found_HW3[::every, ::every]
