"""What `apd train` does: from a command line to a trained network."""

import sys
from dataclasses import dataclass, replace
from typing import Annotated

import torch

from apd.cli.detecting import split_in_words
from apd.cli.parsing import only, parse, with_recipe
from apd.config.experiment import Experiment
from apd.cost.dry_run import dry_run
from apd.evaluation.average_precision import NAMES, APScores, Kind
from apd.evaluation.metrics import too_weak
from apd.study import recipes
from apd.study.own_recipe import OwnRecipe, own_recipe
from apd.study.recipes import AnyMethod, Size, default_method
from apd.training.distributed import started_rank
from apd.training.exit_codes import UsageError
from apd.training.record import Record
from apd.training.run import run_folder
from apd.training.run_log import in_this_output


def train(arguments: list[str]) -> int:
    """Train one experiment: a recipe, by name or size and method, and any of its fields changed."""
    import tyro

    from apd.training.run import train

    @dataclass(frozen=True)
    class Train:
        experiment: Annotated[Experiment, tyro.conf.arg(name="")]
        size: Size = "tiny"
        """Recipe to start from: tiny (built-in scenes), small (CamVid, CPU), full (CamVid, GPU), or one of the paper's
        data sets (several GPUs), as released or with the corrected loss; of detection: scenes_detection (built-in
        scenes), tiny_coco (50 pictures, CPU), or COCO at the paper's scale, with masks and without. Without it
        --data.name folder gets a recipe that is chosen for the folder's images."""
        method: AnyMethod = "apd"
        """What the recipe adds to the student's task loss: one of `apd recipes` at this size."""
        dry_run: bool = False
        """Build everything, check the data, tell sizes, memory and time, and stop: 1 where something is missing."""
        device: str = ""
        """Torch device; empty is cuda where there is one, else cpu."""
        workers: int = 0
        """Processes that prepare batches ahead; any number gives the same batches."""

    arguments = with_recipe(arguments)
    start, size, method, own = _start(arguments)
    chosen = parse(
        Train,
        arguments,
        default=Train(experiment=start, size=size, method=method),
        prog="apd train",
        description="Train one experiment and print where its record lies. `apd train NAME` starts from the recipe of "
        "that name, which `apd recipes` lists; every field below can be changed.",
        config=(tyro.conf.AvoidSubcommands,),
    )
    experiment = chosen.experiment
    if experiment.name == start.name:
        label = f"{size}-{method}" if own is None else start.name.rpartition("-seed")[0]
        experiment = replace(experiment, name=f"{label}-seed{experiment.seed}")
    if chosen.workers < 0:
        raise UsageError(f"--workers {chosen.workers}: expected a whole number of at least 0")
    data = experiment.data
    if experiment.task == "segmentation" and data.folder and data.name != "folder":
        raise UsageError(f"--data.folder {data.folder}: --data.name is {data.name}, so give --data.name folder with it")
    if own is not None and not started_rank():
        print("\n".join(own.lines(experiment)), flush=True)
    if chosen.dry_run:
        if missing := dry_run(experiment, device=chosen.device or None):
            print(f"apd: training cannot start: {len(missing)} missing, named above", file=sys.stderr)
        return 1 if missing else 0
    record = train(experiment, device=chosen.device or None, progress=in_this_output(), workers=chosen.workers)
    if not started_rank():
        print(summary(record), flush=True)
        for sentence in _weaknesses(record):
            print(f"warning: {sentence}", file=sys.stderr, flush=True)
        print(run_folder(experiment) / "record.json")
    return 0


def _start(arguments: list[str]) -> tuple[Experiment, Size, AnyMethod, OwnRecipe | None]:
    """What the options change: size and method decide the defaults of everything else, so they are read first.

    A folder of one's own has a recipe of its own unless a size is asked for, and then the size of its images matters.
    """

    @dataclass(frozen=True)
    class Sized:
        size: Size = "tiny"

    @dataclass(frozen=True)
    class Base(Sized):
        method: AnyMethod = "apd"

    wanted = [a for a in arguments if a not in ("-h", "--help")]
    size = parse(Sized, only(wanted, ("--size",)), prog="apd train").size
    default = Base(size=size, method=default_method(size))
    base = parse(Base, only(wanted, ("--size", "--method")), default=default, prog="apd train")
    folder = _last(wanted, "--data.folder")
    if folder and _last(wanted, "--data.name") == "folder" and not only(wanted, ("--size",)):
        sides = [_last(wanted, flag) for flag in ("--data.height", "--data.width")]
        height, width = (int(side) if side.isdecimal() else -1 for side in sides)
        sensible = min(height, width) > 0 or height == width == 0  # else the fields' own checks tell what is wrong
        own = own_recipe(
            folder,
            base.method,
            size=(height, width) if sensible else None,
            student=_last(wanted, "--network.backbone"),
            teacher=_last(wanted, "--teacher.network.backbone"),
        )
        if base.method == "student" and not any(word.startswith("--teacher.") for word in wanted):
            # a teacher that nobody asked for and nothing is learned from would take half of the time
            own = own._replace(experiment=replace(own.experiment, teacher=None))
        return own.experiment, base.size, base.method, own
    return recipes.recipe(base.size, base.method), base.size, base.method, None


def _last(arguments: list[str], flag: str) -> str:
    """The value of an option as it stands in the command line, in either spelling; empty where it is not there."""
    found = only(arguments, (flag,))
    return found[-1].removeprefix(f"{flag}=") if found else ""


def summary(record: Record) -> str:
    """The scores of a run in a line."""
    split = record.content["data"]["split"]
    if record.experiment.task == "detection":
        return _detection_summary(record, split)
    result = record.scores
    text = (
        f"{record.experiment.name}: mIoU {result.miou:.4f}, mAcc {result.macc:.4f}, aAcc {result.aacc:.4f} on {split}"
    )
    if record.teacher_scores is not None:
        text += f"; teacher mIoU {record.teacher_scores.miou:.4f}, agreement {record.agreement:.4f}"
    return text


def _weaknesses(record: Record) -> list[str]:
    """What the scores of teacher and student mean where they mean little."""
    if record.experiment.task == "detection":
        return []
    facts = {"the teacher": record.content["teacher"] or {}, "the student": record.content}
    found = {who: fact["confusion"] for who, fact in facts.items() if "confusion" in fact}
    told = {who: too_weak(torch.tensor(matrix), record.class_names) for who, matrix in found.items()}
    return [f"{who}: {sentence}" for who, sentence in told.items() if sentence]


def _detection_summary(record: Record, split: str) -> str:
    def told(found: dict[Kind, APScores]) -> str:
        return ", ".join(f"{NAMES[kind]} AP {one.ap:.4f} (AP50 {one.ap50:.4f})" for kind, one in found.items())

    text = f"{record.experiment.name}: {told(record.ap)} on {split_in_words(record, split)}"
    return text if record.teacher_ap is None else f"{text}; teacher {told(record.teacher_ap)}"
