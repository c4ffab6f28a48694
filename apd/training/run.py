"""One experiment in, one record out. A run lives in `runs/<name>-<fingerprint>/`, where it is found again."""

import contextlib
import gc
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from apd.config.datasets import what_changed
from apd.config.experiment import Experiment, ExperimentError
from apd.config.identity import fingerprint, to_dict
from apd.data.census import Census
from apd.models.checkpoints import load_weights
from apd.training.checkpoint import CheckpointError, load_newest, replacing, save_tensors, sha256_of
from apd.training.detection import DetectionTask
from apd.training.distributed import choose_device, join, lost_rank_errors, of_every_rank
from apd.training.record import Record, provenance, read_record, repository
from apd.training.run_log import require_tensorboard
from apd.training.schema import SCHEMA, with_digest
from apd.training.segmentation import SegmentationTask
from apd.training.task import RunTask, load_teacher, teacher_file
from apd.training.trainer import Progress, Task, Trainer


@lost_rank_errors()
def train(
    experiment: Experiment,
    *,
    device: str | None = None,
    progress: Progress = None,
    wait: bool = False,
    workers: int = 0,
    on_step: Callable[[int], None] | None = None,
    folder: Path | None = None,
    check_labels: bool = True,
    tensorboard: bool = False,
) -> Record:
    """Run an experiment to its end, or find it finished, and return its record.

    A teacher that has to be trained is trained first, as a run of its own that all its students share. Under `torchrun`
    every process calls this alike; they share the work, and each gets the record.

    Args:
        device: torch device; default is cuda where there is one, else cpu; of several ranks each takes its own GPU.
        progress: show a bar; None: on a terminal only; "lines": elsewhere at most two lines a minute, and scores.
        wait: when another process works on this run, wait for it instead of raising.
        workers: processes that prepare batches ahead; any number gives the same batches.
        on_step: called with the number of steps done after each one.
        folder: where the run lies; default is :func:`run_folder`, as for its teacher's.
        check_labels: count the labels of data of one's own first.
        tensorboard: write every term, the scores on val and some predictions into the folder `tensorboard` of the run.

    Raises RunBusyError; DataError or ExperimentError, for what is missing or not possible; TeacherError; LostRankError;
    NonFiniteLossError; CheckpointError, for a full disk or a run of other data; StoppedError, with a checkpoint.
    """
    ranks, given = join(), experiment
    if tensorboard:
        require_tensorboard()
    experiment = ranks.rank_zero_first(lambda: in_steps(given))
    folder = folder or ranks.on_rank_zero(lambda: run_folder(experiment))
    if record := ranks.on_rank_zero(lambda: _finished(folder, experiment)):
        return record
    where = choose_device(device)
    if ranks.size > 1 and where.type == "cuda":
        torch.cuda.set_device(where)  # collectives and compiled kernels run on the current one
    task, training = task_of(experiment), experiment.training
    pooled = task.kind == "network" and not (ranks.size > 1 and where.type == "cuda")  # batch norm needs two vectors
    least, parts = 2 if pooled else 1, ranks.size * training.accumulation
    if training.batch_size % parts or training.batch_size < least * parts:
        product = f"ranks x accumulation = {ranks.size} x {training.accumulation} = {parts}"
        expected = f"a multiple of {product}, and {least} or more images in each part"
        raise of_every_rank(ExperimentError(f"TrainingConfig.batch_size = {training.batch_size}: expected {expected}"))
    if not 0 <= workers <= 256:
        raise ExperimentError(f"workers = {workers}: expected a whole number of at least 0 and at most 256")
    with ranks.hold(folder, wait=wait) as require_held:
        if record := ranks.on_rank_zero(lambda: _finished(folder, experiment)):  # by the process that we waited for
            return record
        # what can be wrong with data or student is found before hours go into a teacher
        splits = ranks.rank_zero_first(task.splits)
        if check_labels:
            ranks.on_rank_zero(lambda: _check_labels(task.census(splits), experiment))
        # data sets keep their fingerprints: these are of the files as they were read
        ranks.on_rank_zero(lambda: splits.identities(experiment.data.evaluation_split))
        classes = len(splits.train.spec.class_names)
        make = partial(task.network, experiment.network, classes, where, experiment.seed)
        student, teacher = ranks.rank_zero_first(make), None
        if experiment.teacher is not None:
            weights = Path(experiment.teacher.weights_file)
            if not experiment.teacher.weights_file:
                untrained = task.network(experiment.teacher.network, classes, where, seed=0, weights_follow=True)
                ranks.on_rank_zero(lambda: RunTask.prepare(task, student, untrained))  # do they fit?
                of_teacher, options = experiment.teacher_experiment(), dict(device=device, workers=workers)
                options |= dict(progress=progress, tensorboard=tensorboard)
                train(of_teacher, **options, wait=True, check_labels=False)
                weights = run_folder(of_teacher) / "weights.safetensors"
            teacher = ranks.rank_zero_first(lambda: load_teacher(task, weights, classes, where))
        # before the first step: the code that runs, not what it becomes
        origin = provenance(where, task.precision(where), ranks.size, task.libraries)
        options = dict(progress=progress, ranks=ranks, workers=workers, origin=origin, require_held=require_held)
        if where.type == "cuda":  # whose peak is to be this run's own
            gc.collect()  # a step that is recorded as a graph holds itself, and the networks of the run before
            torch.cuda.reset_peak_memory_stats(where)
        run = Trainer(task, folder, splits, student, teacher, tensorboard=tensorboard, **options)
        run.execute(on_step)
        return _finish(run)


def in_steps(experiment: Experiment) -> Experiment:
    """The experiment with iterations in the place of epochs, by its training images: the student's with unlabelled."""

    def changed(owner: Any, **which: bool) -> Any:
        epochs, size = owner.training.epochs, owner.training.batch_size
        steps = -(-epochs * len(task_of(experiment).split("train", **which)) // size) if epochs else 0
        return replace(owner, training=replace(owner.training, epochs=0, iterations=steps)) if epochs else owner

    more = {"unlabelled": True} if getattr(experiment.data, "unlabelled", False) else {}
    return replace(changed(experiment, **more), teacher=experiment.teacher and changed(experiment.teacher))


def task_of(experiment: Experiment) -> Task:
    """The task of an experiment, by the class of its data."""
    return DetectionTask(experiment) if experiment.task == "detection" else SegmentationTask(experiment)


def trained_network(run: Experiment | Path | str, device: str | None = "cpu") -> nn.Module:
    """The network of a finished run, in eval mode, on `device`; None is cuda where there is one, else cpu.

    `run` is the experiment, or the folder of its run, or a file in it such as the printed ``record.json``.
    CheckpointError where there is no such run, it has not finished, or its weights are not those of its record.
    """
    run = in_steps(run) if isinstance(run, Experiment) else run
    folder = run_folder(run) if isinstance(run, Experiment) else finished_folder(run)
    if not (folder / "record.json").exists():
        raise CheckpointError(f"{folder}: this run has not finished; train(experiment) finishes it")
    record = _record_of(folder, run)
    network, task = record.experiment.network, task_of(record.experiment)
    model = task.network(network, len(record.class_names), choose_device(device), seed=0, weights_follow=True)
    path, fix = folder / "weights.safetensors", f"delete {folder / 'record.json'} to finish the run again"
    try:
        load_weights(model, path, sha256=record.content["weights_sha256"])
    except RuntimeError as error:
        built = getattr(network, "builder", "") and f"restore what builder {network.builder} made, or "
        raise CheckpointError(f"{path} is missing, damaged or of another network; {built}{fix}") from error
    return model.eval()


def trained_distiller(experiment: Experiment, student: nn.Module, teacher: nn.Module, method: str = "apd") -> nn.Module:
    """One of the experiment's distillers after the last step, in eval mode; CheckpointError where there is none."""
    configs = {config.method: config for config in experiment.distillers}
    if method not in configs:
        raise CheckpointError(f"experiment {experiment.name!r} has no distiller {method!r}: it has {[*configs]}")
    experiment, folder = in_steps(experiment), run_folder(experiment)
    checkpoint, _ = load_newest(folder / "checkpoints")
    last = experiment.training.iterations
    if experiment.training.patience and (folder / "record.json").exists():  # it may have ended early
        last = _record_of(folder, experiment).content["evaluations"][-1]["step"]
    if checkpoint is None or checkpoint["step"] != last:
        fix = f"delete {folder} and run train(experiment) again"
        raise CheckpointError(f"{folder / 'checkpoints'} holds no whole checkpoint of the last step; {fix}")
    distiller = task_of(experiment).distiller(configs[method], student, teacher)
    prefix = f"distillers.{method}."
    state = {name.removeprefix(prefix): v for name, v in checkpoint["state"].items() if name.startswith(prefix)}
    distiller.load_state_dict(state)
    return distiller.eval()


def _record_of(folder: Path, run: Experiment | Path | str) -> Record:
    """The record in a folder; CheckpointError where it was copied there and is another experiment's than `run`."""
    record = read_record(folder / "record.json")
    if isinstance(run, Experiment) and record.content["fingerprint"] != fingerprint(run):
        raise CheckpointError(f"{record.source} is of another experiment: delete the folder to have the run made again")
    return record


def _finished(folder: Path, experiment: Experiment) -> Record | None:
    if not (folder / "record.json").exists():
        return None
    record = _record_of(folder, experiment)
    data = record.experiment.data
    others = {"scenes": "scenes of another version of their generator"}
    others["folder"] = f"other images or labels than {data.folder} holds today"
    fix, taught = "delete the folder, or keep it elsewhere, to have the run made again", record.content["teacher"] or {}
    named = experiment.teacher.weights_file if experiment.teacher else ""
    if named and (given := teacher_file(named)).is_file() and sha256_of(given) != taught.get("weights_sha256"):
        raise CheckpointError(f"{folder} was made with another teacher than {given} holds today: {fix}")
    if found := what_changed(record.identities, task_of(record.experiment).splits().identities(data.evaluation_split)):
        raise CheckpointError(f"{folder} was made from {others.get(data.name, 'other data')}: {fix} ({found})")
    return record


def _check_labels(census: Census | None, experiment: Experiment) -> None:
    """What is probably wrong with the labels, on standard error, and of a folder of one's own their shares."""
    warnings = census.warnings(experiment.data.folder) if census else []
    if census and experiment.task == "segmentation":
        print("\n".join(census.table()), flush=True)
        print("".join(f"warning: {sentence}\n" for sentence in warnings), end="", file=sys.stderr, flush=True)


def _finish(run: Trainer) -> Record:
    """Score the network that is kept, write its weights and the record, which comes last and marks the end."""
    experiment, splits, ranks = run.experiment, run.splits, run.ranks
    run.evaluated.eval()
    measured, teacher = run.measured(splits.evaluation, experiment.inference), None
    for name, other in splits.others.items():
        known = {"images": len(other), "fingerprint": other.fingerprint()}
        measured.setdefault("other_splits", {})[name] = known | run.measured(other, experiment.inference)
    if run.teacher is not None:
        both = run.task.compare(run.evaluated, run.teacher, splits.evaluation, ranks)
        # a file of weights can be replaced under its name: the record says what was loaded
        teacher = {**run.facts["teacher"], **both, "weights_sha256": run.task.teacher_sha256}

    scored, split = splits.evaluation, experiment.data.evaluation_split
    data = {"name": scored.spec.name, "split": split, "images": len(scored)}
    data |= {"class_names": list(scored.spec.class_names), "fingerprint": scored.fingerprint()}
    data |= {"training_fingerprint": splits.train.fingerprint()}
    optional = {"epochs": round(run.log.lines * experiment.training.batch_size / len(splits.train), 3)}
    if run.best:
        why = "its step was chosen by this score on val, which is therefore optimistic"
        optional["kept"] = {"step": run.best_evaluation()["step"], "note": why}
    if weights := getattr(run.task, "used_weights", None):
        optional["class_weights"] = weights

    def write() -> Record:
        run.require_held()
        weights = run.folder / "weights.safetensors"
        with replacing(weights, ", then start the same command again") as own:
            save_tensors(run.evaluated.state_dict(), own)
        content = {
            "schema": SCHEMA,
            "experiment": to_dict(experiment),
            "fingerprint": fingerprint(experiment),
            "data": data | {name: run.facts[name] for name in ("identities",) if name in run.facts},
            **run.origin,  # of the last process; all of them are in `history`
            "started": run.facts["started"],
            "history": run.facts["history"],
            "wall_seconds": round(run.facts["seconds"], 2),
            "seconds_per_iteration": round(run.facts["seconds"] / run.log.lines, 6),  # of a lost log
            **run.log.summary(),
            "peak_memory_bytes": _peak_memory(run.device),
            "parameters": sum(p.numel() for p in run.student.parameters()),
            "evaluations": run.facts["evaluations"],
            **optional,
            **measured,
            "teacher": teacher,
            "weights_sha256": sha256_of(weights),
        }
        return Record(with_digest(content)).save(run.folder / "record.json")

    return ranks.on_rank_zero(write)


def _peak_memory(device: torch.device) -> int:
    """Bytes: the allocator's peak on a GPU, the process's largest resident set on a CPU, 0 where it is unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(ModuleNotFoundError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024  # KiB but on macOS
    with contextlib.suppress(ImportError):  # Windows
        import psutil

        used = psutil.Process().memory_info()
        return getattr(used, "peak_wset", used.rss)
    return 0


def runs_folder() -> Path:
    """APD_RUNS where it is set, else `runs/` in the repository."""
    given = os.path.expanduser(os.environ.get("APD_RUNS", ""))
    if given.startswith("~"):
        raise ExperimentError(f"APD_RUNS = {given!r:.80}: there is no such user; ./~ begins a folder of that name")
    return Path(given) if given else repository() / "runs"


def run_folder(experiment: Experiment) -> Path:
    """The folder of one run. Its fingerprint decides; a folder of another label with that fingerprint is found."""
    name = fingerprint(in_steps(experiment))
    found = sorted(runs_folder().glob(f"*-{name}"))
    return found[0] if found else runs_folder() / f"{experiment.name}-{name}"


def finished_folder(run: Path | str) -> Path:
    """The folder of a run, named by itself or by a file in it, such as the ``record.json`` that training prints."""
    run = Path(run).expanduser()
    return run.parent if run.name in ("record.json", "weights.safetensors", "log.jsonl") or run.is_file() else run
