"""What a task of a run is: its networks and distillers, optimisers and learning rates, and a good enough teacher."""

import contextlib
import gc
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from apd.config.datasets import Splits
from apd.config.experiment import Experiment, ExperimentError, TrainingConfig
from apd.data.batches import training_batches
from apd.distillers.base import DistillerConfig, build_distiller
from apd.evaluation.inference import too_weak
from apd.fields import UserError
from apd.models.checkpoints import load_weights
from apd.training.distributed import ALONE, Ranks, of_every_rank
from apd.training.record import read_record

EAGER_STEPS = 3  # before a CUDA graph is recorded: libraries choose their algorithms and take their memory in these


def build_optimisers(
    experiment: Experiment, student: tuple[list[nn.Parameter], list[nn.Parameter]], distillers: Iterable[nn.Module]
) -> dict[str, torch.optim.Optimizer]:
    """The optimiser of the student (its backbone, and the rest), and Adam for teachers' heads where there are any."""
    training, (backbone, heads), teacher_groups = experiment.training, map(list, student), []
    for config, module in zip(experiment.distillers, distillers, strict=True):
        heads += list(module.student_parameters())
        if parameters := list(module.teacher_parameters()):
            follows = {"base_rate": config.teacher_head_rate} if config.teacher_head_schedule == "poly" else {}
            teacher_groups.append({"params": parameters, "lr": config.teacher_head_rate, **follows})
    rates = training.learning_rate, training.learning_rate * training.head_multiplier
    groups = [{"params": part, "base_rate": rate} for part, rate in zip((backbone, heads), rates, strict=True)]
    fused = training.fused or None  # None leaves the choice to torch, which does not take the fused one
    common = {"lr": training.learning_rate, "weight_decay": training.weight_decay, "fused": fused}
    momentum = {} if training.optimiser == "adamw" else {"momentum": training.momentum}
    own = (torch.optim.SGD if momentum else torch.optim.AdamW)(groups, **momentum, **common)
    if not teacher_groups:
        return {"student": own}
    return {"student": own, "teacher_heads": torch.optim.Adam(teacher_groups, betas=(0.9, 0.99), fused=fused)}


def described(training: TrainingConfig) -> str:
    """Optimiser and schedule in words, such as "sgd, learning rate 0.01 and 0.1 for heads, poly with power 0.9"."""
    heads, at = training.learning_rate * training.head_multiplier, ", ".join(map(str, training.milestones))
    schedule = f"falling to a tenth at {at}" if training.schedule == "steps" else f"poly with power {training.power:g}"
    rises = f", rising over the first {training.warmup} steps" if training.warmup else ""
    return f"{training.optimiser}, learning rate {training.learning_rate:g} and {heads:g} for heads, {schedule}{rises}"


class CapturedStep:
    """Calls a function of a batch that sets gradients; from the fourth call on, replays its recording as a CUDA graph.

    Batches have one shape. Gradients are None when it is recorded, and then written anew at the same addresses.
    """

    def __init__(self, compute: Callable[[Any], dict[str, Tensor]]) -> None:
        self._compute, self._eager = compute, 0
        self.graph: torch.cuda.CUDAGraph | None = None  # which the next call replays

    def __call__(self, batch: Any) -> dict[str, Tensor]:
        """The named scalars, detached from what the next call does."""
        if self.graph is None and self._eager < EAGER_STEPS:
            self._eager += 1
            return self._aside(batch)
        if self.graph is None:
            self._batch = type(batch)(*(value.clone() for value in batch))
            self.graph, self._terms = self._record()
        for kept, value in zip(self._batch, batch, strict=True):
            kept.copy_(value)
        self.graph.replay()
        return {name: value.clone() for name, value in self._terms.items()}

    def _aside(self, batch: Any) -> dict[str, Tensor]:
        """An ordinary call on a stream beside the current one, as recording wants it."""
        current, beside = torch.cuda.current_stream(), torch.cuda.Stream()
        beside.wait_stream(current)
        with torch.cuda.stream(beside):
            terms = self._compute(batch)
        current.wait_stream(beside)
        return terms

    def _record(self) -> tuple[torch.cuda.CUDAGraph, dict[str, Tensor]]:
        gc.collect()  # a graph that is destroyed while another is recorded breaks that recording off
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            return graph, self._compute(self._batch)


class TeacherError(UserError, RuntimeError):
    """Teacher weights that do not fit, or that score below what the experiment states."""


class RunTask(nn.Module):
    """The common part of the tasks: called with a batch, one gives the loss; student and distillers are submodules."""

    expected: Literal["expected_miou", "expected_ap"]  # field of the teacher's configuration: its least headline score
    libraries: tuple[str, ...] = ()  # packages, beside the usual ones, whose version belongs to what is measured
    kind: str
    ignore_index: int = 255  # of labels; a detector's are its own
    teacher_sha256: str | None = None  # of the file that its weights were loaded from

    def __init__(self, experiment: Experiment) -> None:
        super().__init__()
        self.experiment = experiment

    def batches(self, dataset: Any, *, start: int, ranks: Ranks, workers: int, device: torch.device) -> Iterator[Any]:
        """This rank's parts of the training batches from iteration `start` on, made by the loader or on the device."""
        training, part = self.experiment.training, (ranks.rank, ranks.size)
        options = {"batch_size": training.batch_size, "seed": self.experiment.seed, "part": part}
        options |= {"start_iteration": start, "iterations": training.iterations}
        return training_batches(dataset, **options, **self._supply(workers, device))

    def distiller(self, config: DistillerConfig, student: nn.Module, teacher: nn.Module) -> nn.Module:
        """The loss module of one distiller, on the student's device, its heads initialised from the seed alone."""
        ignore, seed = self.ignore_index, self.experiment.seed
        try:
            return build_distiller(config, student=student, teacher=teacher, ignore_index=ignore, seed=seed)
        except ValueError as error:
            raise ExperimentError(f"{config.method} between these two networks: {error}") from error

    def prepare(self, student: Any, teacher: Any) -> None:
        """Take the networks that `forward` calls (the teacher in eval mode) and build the distillers between them."""
        self.student, configs = student, self.experiment.distillers
        self.teacher_alone = (teacher,)  # in a tuple, since a module would become a part of this one
        self.blocks = blocks_of(student) if self.experiment.training.gradient_checkpointing else []
        self.distillers = nn.ModuleDict({c.method: self.distiller(c, student, teacher) for c in configs})

    def network(
        self, config: Any, classes: int, device: torch.device, seed: int, *, weights_follow: bool = False
    ) -> Any:
        """A network, its initial weights by `seed` or the caller's to `follow`. ExperimentError: not possible."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                network = self._build(config, classes, weights_follow)
            except (ValueError, RuntimeError) as error:
                raise ExperimentError(f"this {self.kind} cannot be built: {error}") from error
        return network.to(device, memory_format=torch.channels_last)

    def precision(self, device: torch.device) -> str:
        """fp32 or bf16, of the networks' forward passes."""
        return "fp32"

    def compare(self, student: nn.Module, teacher: nn.Module, dataset: Any, ranks: Ranks) -> dict[str, Any]:
        """What the record's entry `teacher` says of both networks together."""
        return {}


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The innermost elements of its sequences that are made of several modules, such as residual blocks."""
    containers = (nn.Sequential, nn.ModuleList)
    elements = {e for m in network.modules() if isinstance(m, containers) for e in m if not isinstance(e, containers)}
    composed = {element for element in elements if any(element.children())}
    if not composed:
        expected = "expected False: the network has no blocks in sequence that could be computed again"
        raise ExperimentError(f"training.gradient_checkpointing = True: {expected}")
    return [e for e in network.modules() if e in composed and composed.isdisjoint(list(e.modules())[1:])]


@contextlib.contextmanager
def recomputing(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, a forward pass keeps these blocks' inputs only; the backward pass computes again, with other buffers."""
    before = {block: block.__dict__.get("forward") for block in blocks}
    for block in before:
        again = partial(checkpoint, block.forward, use_reentrant=False)
        block.forward = partial(again, context_fn=lambda block=block: (contextlib.nullcontext(), _other_buffers(block)))
    try:
        yield
    finally:
        for block, forward in before.items():
            del block.forward
            if forward:  # a tap's
                block.forward = forward


@contextlib.contextmanager
def _other_buffers(block: nn.Module) -> Iterator[None]:
    kept = [(module, dict(module.named_buffers(recurse=False))) for module in block.modules()]
    for module, buffers in kept:
        module._buffers.update({name: buffer.clone() for name, buffer in buffers.items()})
    try:
        yield
    finally:
        for module, buffers in kept:
            module._buffers.update(buffers)


def teacher_file(given: str | Path) -> Path:
    """The file of a teacher's weights; a run may be named by its folder or its record, as for other commands."""
    path = Path(os.path.expanduser(given))
    if path.name == "record.json" or (path / "record.json").is_file():
        path = (path if path.is_dir() else path.parent) / "weights.safetensors"
    return path


def load_teacher(task: Any, path: Path, num_classes: int, device: torch.device) -> nn.Module:
    """The task's teacher with strictly loaded weights, in eval mode, without gradients; else TeacherError.

    `path` is a run's, whose record must know them, or any that can be read; its digest becomes `task.teacher_sha256`.
    """
    path = teacher_file(path)
    record, given = path.with_name("record.json"), task.experiment.teacher.weights_file
    fix = f"restore it, or delete {record} to finish the teacher's run again"
    if given:
        fix = "give another --teacher.weights-file, or by --teacher.network.… the network that it is of"
    if not path.is_file():
        fix = "it is a folder without record.json: name a file in it" if path.is_dir() else fix
        raise TeacherError(f"teacher weights {path}: there is no such file; {fix}")
    known = read_record(record).content if path.name == "weights.safetensors" and record.is_file() else {}
    network = task.experiment.teacher.network
    teacher = task.network(network, num_classes, device, seed=0, weights_follow=True)
    try:
        task.teacher_sha256 = load_weights(teacher, path, sha256=known.get("weights_sha256", ""))
    except (RuntimeError, OSError) as error:
        kind = getattr(network, "builder", "") or f"{getattr(network, 'head', 'Mask R-CNN')} on {network.backbone}"
        raise TeacherError(f"teacher weights {error}; {fix}; the teacher is {kind}, {num_classes} classes") from error
    return teacher.eval().requires_grad_(False)


def measure_teacher(task: Any, teacher: nn.Module, splits: Splits, ranks: Ranks = ALONE) -> dict[str, Any]:
    """What the task measures of the teacher on the evaluation split; TeacherError where it is not good enough."""
    experiment, split = task.experiment, task.experiment.data.evaluation_split
    fact = task.evaluate(teacher, splits.evaluation, experiment.inference, ranks)
    (score, value), expected = task.headline(fact), getattr(experiment.teacher, task.expected)
    ranks.print(f"{experiment.name}: teacher {score} {value:.4f} on {split}")
    if "confusion" in fact and (weak := too_weak(torch.tensor(fact["confusion"]), splits.evaluation.spec.class_names)):
        ranks.print(f"warning: the teacher: {weak}")
    if not value >= expected:
        reason = f"below teacher.{task.expected} = {expected}: wrong weights, wrong data or wrong image size"
        raise of_every_rank(TeacherError(f"the teacher's {score} is {value:.4f} on {split}, {reason}"))
    return fact
