"""Experiments that train in a tenth of a second, and processes that die where a test wants them to."""

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from unittest import mock

import torch
from tqdm import tqdm

from apd.config.experiment import DataConfig, Experiment, NetworkConfig, TeacherConfig, TrainingConfig
from apd.cost.dry_run import dry_run
from apd.data.batches import Batch
from apd.distillers.apd import APDConfig
from apd.distillers.logits import PixelKDConfig
from apd.training import exit_codes as codes
from apd.training import trainer as loop
from apd.training.checkpoint import sha256_of
from apd.training.run import run_folder, task_of, train
from apd.training.trainer import Trainer

DATA = DataConfig(height=32, width=48, crop_height=32, crop_width=32, train_images=6, evaluation_images=3)
NETWORK = NetworkConfig(backbone="test_efficientnet", head_width=8)
TRAINING = TrainingConfig(iterations=6, batch_size=2, evaluations=2)
TEACHER = TeacherConfig(
    network=NetworkConfig(backbone="test_efficientnet", head_width=12),
    training=TrainingConfig(iterations=4, batch_size=2, evaluations=1),
)
DISTILLERS = {
    "student": (),
    "pixel_kd": (PixelKDConfig(),),
    "apd": (APDConfig(width=8),),
    "both": (PixelKDConfig(), APDConfig(width=8, pixel_kd=0.0)),
}
# Children of a server that has imported the package start at once and, unlike a fork of this process, without threads.
_CHILDREN = multiprocessing.get_context("forkserver")
_CHILDREN.set_forkserver_preload(["apd.training.run", "torchvision.transforms.v2.functional"])


def tiny(method="student", *, seed=0, **training):
    """An experiment of six steps on six scenes; `training` changes fields of the student's training."""
    return Experiment(
        name=f"{method}-seed{seed}",
        seed=seed,
        data=DATA,
        network=NETWORK,
        training=replace(TRAINING, **training),
        precision="fp32",
        teacher=TEACHER if method != "student" else None,
        distillers=DISTILLERS[method],
    )


def a_batch(size=2):
    """Images of noise with labels of 10 classes."""
    random = torch.Generator().manual_seed(5)
    return Batch(torch.rand(size, 3, 32, 32, generator=random), torch.randint(0, 10, (size, 32, 32), generator=random))


def prepared_run(experiment, folder):
    """The run of an experiment of either task before its first step, its teacher (if any) at random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    task, device = task_of(experiment), torch.device("cpu")
    splits = task.splits()
    classes = splits.train.spec.num_classes
    student, teacher = task.network(experiment.network, classes, device, experiment.seed), None
    if experiment.teacher is not None:
        teacher = task.network(experiment.teacher.network, classes, device, 100).eval().requires_grad_(False)
    return Trainer(task, folder, splits, student, teacher)


class Convolution(torch.nn.Module):
    """Images to logits by one convolution; keeps the shapes of what it was shown, and the last of it."""

    def __init__(self, kernel=1, classes=3):
        super().__init__()
        self.layer, self.shapes = torch.nn.Conv2d(3, classes, kernel, padding=kernel // 2, bias=False), []
        self.layer.weight.data.normal_(generator=torch.Generator().manual_seed(0)).mul_(4)

    def forward(self, images):
        self.last = images
        self.shapes.append(tuple(images.shape))
        return SimpleNamespace(logits=self.layer(images))


class Thrown(Exception):
    """What a test throws out of a run's loop."""


def thrown_at(last):
    """A callback that throws when that many steps are done."""

    def on_step(step):
        if step == last:
            raise Thrown

    return on_step


def stopped(experiment, *steps):
    """The folder of a run that was thrown out of its loop after each of these steps, with a checkpoint after every."""
    with mock.patch.object(loop, "CHECKPOINT_SECONDS", 0.0):
        for step in steps:
            with contextlib.suppress(Thrown):
                train(experiment, on_step=thrown_at(step))
                raise AssertionError(f"step {step} was not reached")
    return run_folder(experiment)


def copied(module):
    """The state of a module as it is now."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def equal(one, other):
    """Whether two states have the same names and bits."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def outcome(experiment):
    """Everything of a finished run that an interruption must not change, down to the last bit."""
    folder = run_folder(experiment)
    content = json.loads((folder / "record.json").read_text())
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    kept = ("confusion", "ap", "teacher", "evaluations", "curves", "fingerprint")
    return {
        "weights": sha256_of(folder / "weights.safetensors"),
        "log": [{name: value for name, value in line.items() if "seconds" not in name} for line in lines],
        **{entry: content[entry] for entry in kept if entry in content},
    }


@cache
def undisturbed(experiment):
    """Its outcome when nobody disturbs it, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, APD_RUNS=folder):
        train(experiment)
        return outcome(experiment)


def start(function, *arguments, output):
    """Call a function of a test module in a process of its own; its stdout and stderr go to the file `output`."""
    process = _CHILDREN.Process(target=_with_output, args=(function, arguments, output))
    process.start()
    return process


def exit_code(function, *arguments, output):
    """As `start`, wait for its end; -9 says that it was killed."""
    process = start(function, *arguments, output=output)
    process.join(120)
    assert process.exitcode is not None, f"the process hangs: {output.read_text()}"
    return process.exitcode


def start_ranks(function, *arguments, outputs, size=2):
    """Call a function in `size` processes that find each other as those of `torchrun` do, with stdout and stderr in
    the files `outputs/0`, `outputs/1`, …; see `exit_codes`."""
    outputs.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [start(_as_rank, rank, size, port, function, arguments, output=outputs / str(rank)) for rank in range(size)]


def exit_codes(processes):
    """Wait for processes; None for one that still hangs after 100 seconds, which is killed."""
    end = time.monotonic() + 100
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    found = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return found


def run_ranks(function, *arguments, outputs, expected=(0, 0)):
    """Call a function in two processes, which must leave with these codes. Returns what each printed."""
    codes = exit_codes(start_ranks(function, *arguments, outputs=outputs))
    printed = [(outputs / str(rank)).read_text() for rank in (0, 1)]
    assert codes == list(expected), printed
    return printed


def dry_run_report(experiment, **options):
    """What a dry run finds missing, and all its lines as one text."""
    lines = []
    return dry_run(experiment, device="cpu", tell=lines.append, **options), "\n".join(lines)


def state_after(step, batch):
    """Terms, gradients and new weights of one optimiser step."""
    terms = step(batch)
    named = dict(torch.nn.ModuleDict({"student": step.student, "distillers": step.distillers}).named_parameters())
    gradients = {f"gradient.{name}": p.grad for name, p in named.items() if p.requires_grad}
    weights = {f"weight.{name}": p.detach() for name, p in named.items()}
    return {f"term.{term}": value for term, value in terms.items()} | gradients | weights


def assert_same_step(found, expected, rtol=1e-4):
    """Two states after a step are equal but for the order of sums."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        tolerance = {"rtol": rtol, "atol": 1e-4 * value.abs().max().item() + 1e-7}
        if "teacher_head" in name and name.startswith("weight"):
            tolerance = {"rtol": 0.0, "atol": 2.1e-3}  # Adam's first step: the learning rate times the sign
        torch.testing.assert_close(found[name], value, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


def _as_rank(rank, size, port, function, arguments):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    function(*arguments)


def _with_output(function, arguments, output):
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own is shared, and a process that is killed would leave it behind
    function(*arguments)


def run_as_a_command(experiment, runs, on_step=None):
    """Train as the command line does, in this process, and leave it with its exit code."""
    os.environ["APD_RUNS"] = str(runs)
    code = codes.exit_code_of(lambda: 0 if train(experiment, on_step=on_step) else 1, "apd")
    sys.stdout.flush()
    os._exit(code)


def train_until_killed(experiment, runs, touches):
    """Train with a checkpoint after every step; SIGKILL before the run's files are touched (opened, renamed, made or
    removed) that many times: every state that a kill can leave behind is met."""
    seen = 0
    touching = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}

    def count(event, arguments):
        nonlocal seen
        if event in touching and str(arguments[0]).startswith(str(runs)):
            seen += 1
            if seen == touches:
                os.kill(os.getpid(), signal.SIGKILL)

    loop.CHECKPOINT_SECONDS = 0.0
    sys.addaudithook(count)
    run_as_a_command(experiment, runs)
