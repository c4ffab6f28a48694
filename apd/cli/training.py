"""The commands up to a finished run: recipes, check, cost, train, replay, campaign."""

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path, PurePath
from typing import Annotated, Any, get_args, get_type_hints

import torch
from tyro.conf import AvoidSubcommands, Positional, arg

from apd.cli.app import only, parse, recipe_parts, with_recipe
from apd.cli.using import record_of, split_described
from apd.config.datasets import build_split, spec_of, what_changed
from apd.config.experiment import DataConfig, Experiment, NetworkConfig, TrainingConfig
from apd.config.identity import to_dict
from apd.cost import measure
from apd.cost.dry_run import dry_run
from apd.data.census import census_of
from apd.data.dataset_yaml import DESCRIPTION, SPLITS, has_split, locate_folder, unlabelled_images
from apd.data.images import DataError, MissingData
from apd.distill import APDLoss
from apd.evaluation.average_precision import NAMES, APScores, Kind
from apd.evaluation.inference import too_weak
from apd.fields import UsageError, did_you_mean, shown
from apd.study import recipes as known
from apd.study.campaign import parsed, run_campaign
from apd.study.campaigns import untrained_teacher
from apd.study.own_recipe import OwnRecipe, own_recipe
from apd.study.recipes import AnyMethod, Size, default_method
from apd.training import run as runs
from apd.training.distributed import choose_device, join, of_every_rank, started_rank
from apd.training.record import Record, differences, provenance, read_record
from apd.training.run_log import StoppedError
from apd.training.segmentation import build_network

DATA_SETS = tuple(name for name in get_args(get_type_hints(DataConfig)["name"]) if name != "folder")
OWN_SIZES = {"height": 0, "width": 0}
OF_SCENES = ("context-shift", "train-images", "evaluation-images", "world", "least-pixels")
MOST_LINES = 20  # Differences that `apd replay` prints; the rest is counted (own choice).


@dataclass(frozen=True)
class _Check:
    data: Annotated[Positional[str], arg(metavar="DATA")]  #: Folder with a dataset.yaml, or name of a data set.


def check(arguments: list[str], sentence: str) -> int:
    """The share of each class in a folder of the user's own or in a named data set, and what is wrong there."""
    description = f"{sentence} Data sets: {', '.join(DATA_SETS)}."
    chosen = parse(_Check, arguments, prog="apd check", description=description).data
    if chosen in DATA_SETS and not Path(chosen, DESCRIPTION).is_file():
        scenes = chosen == "scenes"
        data = DataConfig(name=chosen, **({} if scenes else OWN_SIZES))
        splits = [split for split in SPLITS if scenes or split in dict(spec_of(data).splits)]
    else:
        try:
            locate_folder(chosen)
        except MissingData as error:
            named = f"or name one of {', '.join(DATA_SETS)}{did_you_mean(chosen, DATA_SETS)}"
            raise DataError(f"{error}; {named}") from error
        data = DataConfig(name="folder", folder=chosen, **OWN_SIZES, unlabelled=bool(unlabelled_images(chosen)))
        splits = [split for split in SPLITS if split != "test" or has_split(chosen, split)]
    census = census_of({split: build_split(data, split) for split in splits})
    print("\n".join(census.table()))
    for warning in census.warnings(chosen):
        print(f"warning: {warning}", file=sys.stderr)
    return 0


@dataclass(frozen=True)
class _Cost:
    size: Size = "tiny"  #: Recipe whose networks are measured, at its image size (the paper's: at its crop).
    run: Path | None = None  #: Folder of a finished run, or its record.json, in place of a recipe.
    batch: int = 1  #: Images at a time.
    loss: bool = False  #: Measure the distillation loss at the published sizes and CamVid's instead of networks.
    start: bool = False  #: Time `from apd import APDLoss` and `apd --help` in fresh interpreters instead of networks.
    device: str = ""  #: Torch device; empty is cuda where there is one, else cpu.


def cost(arguments: list[str], sentence: str) -> int:
    """What a recipe's networks cost on this machine, or the loss."""
    chosen = parse(_Cost, arguments, prog="apd cost", description=sentence)
    if not 1 <= chosen.batch <= 4096:
        raise UsageError(f"--batch {shown(chosen.batch)}: expected a whole number of at least 1 and at most 4096")
    if chosen.start:
        for name, arguments in measure.STARTS.items():
            seconds = measure.start_latency(*arguments).median / 1e3
            print(f"{name}: {seconds:.2f} s, median of fresh interpreters", flush=True)
        return 0
    device = choose_device(chosen.device)
    if chosen.loss:
        for (name, shape), headed in product(measure.LOSS_SHAPES.items(), (False, True)):
            width = shape.channels if headed else None
            module = APDLoss(shape.channels, shape.channels, shape.classes, width=width).to(device)
            found = measure.loss_cost(module, measure.loss_batch(shape, device=device))
            took, heads = f"{found.milliseconds.median:.1f} ms", f"heads {width} wide" if headed else "no heads"
            print(f"{name}, {heads}: {took}, {found.peak_bytes / 2**20:.1f} MiB on {device}", flush=True)
        return 0
    record = record_of(chosen.run) if chosen.run is not None else None
    experiment = record.experiment if record else known.recipe(chosen.size)
    if experiment.task == "detection":
        given, how = (f"--run {chosen.run}", "…") if record else [f"--size {chosen.size}"] * 2
        fix = f"`apd train {how} --dry-run` counts a detector's parameters, multiply-adds and memory"
        raise UsageError(f"{given}: apd cost measures segmentation; {fix}")
    data, classes = experiment.data, len(record.class_names if record else spec_of(experiment.data).class_names)
    height, width = data.height or data.crop_height, data.width or data.crop_width
    networks = {"student": experiment.network, "teacher": experiment.teacher and experiment.teacher.network}
    for role, network in networks.items() if networks["teacher"] else [("student", experiment.network)]:
        model = build_network(network, classes, device, seed=0, weights_follow=True).eval()
        found = measure.cost_of(model, height=height, width=width, batch=chosen.batch, device=device)
        images = f"{chosen.batch}x{height}x{width}"
        print(f"{role}: {network.builder or f'{network.backbone} {network.head}'}, {images} on {device}: {found}")
    return 0


@dataclass(frozen=True)
class _Recipes:
    name: Annotated[Positional[str], arg(metavar="NAME")] = ""  #: Recipe to show; empty lists all.


def recipes(arguments: list[str], sentence: str) -> int:
    """All recipes, or the fields of one."""
    if arguments[:1] == ["show"]:
        arguments = arguments[1:] or ["show"]  # of nothing: there is no such recipe
    chosen = parse(_Recipes, arguments, prog="apd recipes", description=sentence)
    experiments = dict(known.all_recipes())
    for name, experiment in () if chosen.name else experiments.items():
        data = experiment.data
        source = data.folder if experiment.task == "detection" and data.folder else data.name
        print(f"{name:40s} {source}, {experiment.training.iterations} iterations")
    if chosen.name:
        name = "-".join(recipe_parts(chosen.name))
        print("\n".join(known.sourced_lines(name)) or json.dumps(to_dict(experiments[name]), indent=2))
    return 0


@dataclass(frozen=True)
class _Base:
    size: Size = "tiny"
    """Recipe to start from: tiny (built-in scenes), small (CamVid, CPU), full (CamVid, GPU), or one of the paper's, as
    released or corrected; of detection: scenes_detection, tiny_coco (CPU), or COCO at the paper's scale. Without it
    --data.name folder gets a recipe that is chosen for the folder's images."""
    method: AnyMethod = "apd"  #: What the recipe adds to the student's task loss, as in `apd recipes`.


@dataclass(frozen=True, kw_only=True)
class _Train(_Base):
    experiment: Annotated[Experiment, arg(name="")]
    dry_run: bool = False  #: Build everything, estimate memory and time, and stop: 1 where something is missing.
    device: str = ""  #: Torch device; empty is cuda where there is one, else cpu.
    workers: int = 0  #: Processes that prepare batches ahead; any number gives the same batches.
    tensorboard: bool = False  #: Write curves and predictions for `tensorboard --logdir runs`; needs that extra.


def train(arguments: list[str], sentence: str) -> int:
    """From a command line to a trained network."""
    arguments = with_recipe(arguments)
    start, base, own = _start(arguments)
    if only(arguments, ("--network.builder",)):  # which takes nothing of the recipe's network
        start = replace(start, network=NetworkConfig())
    if only(arguments, ("--teacher.network.builder",)) and start.teacher is not None:
        start = replace(start, teacher=replace(start.teacher, network=NetworkConfig()))
    if only(arguments, ("--network.builder", "--teacher.network.builder")):  # whose cells lie by rules of their own
        plain = (replace(d, align_corners=False) if hasattr(d, "align_corners") else d for d in start.distillers)
        start = replace(start, distillers=tuple(plain))
    for owner in ("training", "teacher.training"):
        if epochs := only(arguments, (f"--{owner}.epochs",)):  # in the place of the recipe's iterations
            if given := only(arguments, (f"--{owner}.iterations",)):
                raise UsageError(f"{' '.join(epochs + given)}: each says how long to train; leave one of them out")
            arguments = [*arguments, f"--{owner}.iterations={TrainingConfig.iterations}"]
    about = "Train one experiment and print where its record lies. `apd train NAME` starts from the recipe of that "
    about += "name, which `apd recipes` lists; every field below can be changed."
    how = dict(prog="apd train", description=about, config=(AvoidSubcommands,))
    chosen = parse(_Train, arguments, default=_Train(experiment=start, size=base.size, method=base.method), **how)
    experiment, device = runs.in_steps(chosen.experiment), chosen.device or None
    if experiment.name == start.name:
        label = f"{base.size}-{base.method}" if own is None else start.name.rpartition("-seed")[0]
        experiment = replace(experiment, name=f"{label}-seed{experiment.seed}")
    data = experiment.data
    if experiment.task == "segmentation" and data.folder and data.name != "folder":
        raise UsageError(f"--data.folder {data.folder}: --data.name is {data.name}, so give --data.name folder with it")
    if data.name != "scenes" and (given := only(arguments, tuple(f"--data.{one}" for one in OF_SCENES))):
        raise UsageError(f"{' '.join(given)}: only scenes have it, and --data.name is {data.name}; leave it out")
    if data.folder:  # or folder and folder/ would be different runs
        experiment = replace(experiment, data=replace(data, folder=PurePath(data.folder).as_posix()))
    if own is not None and not started_rank():
        print("\n".join(own.lines(experiment)), flush=True)
    if chosen.dry_run:
        if missing := dry_run(experiment, device=device):
            print(f"apd: training cannot start: {len(missing)} missing, named above", file=sys.stderr)
        return 1 if missing else 0
    options = dict(progress="lines", workers=chosen.workers, tensorboard=chosen.tensorboard)
    record = runs.train(experiment, device=device, **options)
    if not started_rank():
        print(summary(record), flush=True)
        matrix = record.content.get("confusion")
        if matrix and (weak := too_weak(torch.tensor(matrix), record.class_names)):
            print(f"warning: the student: {weak}", file=sys.stderr, flush=True)
        print(runs.run_folder(experiment) / "record.json")
    return 0


def _start(arguments: list[str]) -> tuple[Experiment, _Base, OwnRecipe | None]:
    """What the options change: size and method decide the defaults of everything else, so they are read first."""
    wanted = [a for a in arguments if a not in ("-h", "--help")]

    def last(flag: str) -> str:
        found = only(wanted, (flag,))
        return found[-1].removeprefix(f"{flag}=") if found else ""

    size, folder = last("--size"), last("--data.folder")
    default = _Base(method=default_method(size)) if size in get_args(Size) else _Base()
    base = parse(_Base, only(wanted, ("--size", "--method")), default=default, prog="apd train")
    if not folder or last("--data.name") != "folder" or size:
        return known.recipe(base.size, base.method), base, None
    sides = map(last, ("--data.height", "--data.width"))
    sides = tuple(int(side) if side.isdecimal() and len(side) < 9 else -1 for side in sides)
    sides = sides if min(sides) > 0 or sides == (0, 0) else None  # the fields' own checks say what is wrong
    networks = {"student": last("--network.backbone"), "teacher": last("--teacher.network.backbone")}
    own = own_recipe(folder, base.method, size=sides, **networks)
    if base.method == "student" and not any(argument.startswith("--teacher.") for argument in wanted):
        # a teacher that nobody asked for and nothing is learned from would take half of the time
        own = own._replace(experiment=replace(own.experiment, teacher=None))
    return own.experiment, base, own


@dataclass(frozen=True)
class _Replay:
    record: Annotated[Positional[Path], arg(metavar="RECORD")]  #: A record, or the folder of a finished run.
    device: str = ""  #: Torch device; empty is the kind that the record names.
    workers: int = 0  #: Processes that prepare batches ahead; any number gives the same batches.


def replay(arguments: list[str], sentence: str) -> int:
    """Train what a record describes in a temporary folder, and compare: 0 where all is equal, 1 where not."""
    chosen = parse(_Replay, arguments, prog="apd replay", description=sentence)
    record = read_record(chosen.record / "record.json" if chosen.record.is_dir() else chosen.record)
    recorded, name = record.content, chosen.device or record.content["device"].get("type", "")
    device, task, ranks = choose_device(name), runs.task_of(record.experiment), join()
    if device.type == "cpu":  # with another number, sums are in another order
        torch.set_num_threads(recorded["device"].get("threads", torch.get_num_threads()))
    splits = task.splits()
    notes = list(_otherwise(recorded, provenance(device, task.precision(device), ranks.size, task.libraries)))
    if found := what_changed(record.identities, splits.identities(record.experiment.data.evaluation_split)):
        notes.append(f"data: {found}")
    for note in notes:
        ranks.print(f"note: {note}")
    teacher = record.experiment.teacher
    if teacher and not teacher.weights_file and untrained_teacher(record.experiment) is None:
        found_in = runs.run_folder(record.experiment.teacher_experiment())
        ranks.print(f"note: the teacher is not trained again: its finished run lies in {found_in}")
    with tempfile.TemporaryDirectory() as folder:
        options = dict(device=name, progress="lines", workers=chosen.workers)
        try:
            again = runs.train(record.experiment, folder=Path(folder), **options)
        except StoppedError as error:
            kept = "stopped: a replay begins anew, and only its teacher's run goes on from there"
            raise of_every_rank(StoppedError(kept)) from error
    found, (score, value) = list(differences(recorded, again.content)), again.headline
    for line in found[:MOST_LINES]:
        ranks.print(line)
    if not found:
        same = "weights, scores, curves, teacher and data are the record's, bit by bit"
        ranks.print(f"equal: {score} {value:.4f}; {same}")
        return 0
    why = "; bits repeat with the same code, libraries and kind of processor only, see the notes" if notes else ""
    scores = f"{score} {record.headline[1]:.4f} in the record and {value:.4f} here"
    ranks.print(f"differences: {len(found)}, at most {MOST_LINES} of them above; {scores}{why}")
    return 1


def _otherwise(recorded: dict[str, Any], here: dict[str, Any]) -> Iterator[str]:
    """What of code, libraries and machine is not as it was for the record."""
    for entry in ("git", "versions", "device"):
        for name in recorded[entry] | here[entry]:
            value, now = recorded[entry].get(name), here[entry].get(name)
            if value != now and name != "clean":
                yield f"{entry}.{name}: {value} in the record and {now} here"
    if not recorded["git"].get("clean"):
        yield "git.clean: the record's code had changes that were not committed"
    if not here["git"]["clean"]:
        yield "git.clean: the code here has changes that are not committed"


def campaign(arguments: list[str], sentence: str) -> int:
    """Run what a campaign lacks, and print the scores of all that is there then."""
    records = run_campaign(**parsed(arguments, "apd campaign"))
    for record in () if started_rank() else records:
        print(summary(record))
    return 0


def summary(record: Record) -> str:
    """The scores of a run in a line."""
    name, split = record.experiment.name, record.content["data"]["split"]
    if record.experiment.task == "detection":

        def line(found: dict[Kind, APScores]) -> str:
            return ", ".join(f"{NAMES[kind]} AP {one.ap:.4f} (AP50 {one.ap50:.4f})" for kind, one in found.items())

        teacher = f"; teacher {line(record.teacher_ap)}" if record.teacher_ap else ""
        return f"{name}: {line(record.ap)} on {split_described(record, split)}{teacher}"
    own, teacher = record.scores, record.teacher_scores
    beside = f"; teacher mIoU {teacher.miou:.4f}, agreement {record.agreement:.4f}" if teacher else ""
    kept = record.content.get("kept")
    beside += f"; kept step {kept['step']}, the best on val, whose score is optimistic" if kept else ""
    return f"{name}: mIoU {own.miou:.4f}, mAcc {own.macc:.4f}, aAcc {own.aacc:.4f} on {split}{beside}"
