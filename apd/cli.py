"""The command `apd`: train, evaluate, predict, campaign, cost, recipes.

Each command is a frozen dataclass: tyro makes its options and its help from the fields. What a user gets for a mistake
is told in `apd.study.shell`.
"""

import contextlib
import io
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from apd.study.campaign import CAMPAIGNS, run_campaign
from apd.study.experiment import Experiment
from apd.study.field_checks import did_you_mean
from apd.study.ranks import started_rank
from apd.study.record import Record, read_record
from apd.study.shard import Shard
from apd.study.shell import UsageError, exit_code_of


def _train(arguments: list[str]) -> int:
    """Train one experiment: a recipe, and any of its fields changed."""
    import tyro

    from apd.study.folders import run_folder
    from apd.study.recipes import Method, Size, recipe
    from apd.study.train import train

    @dataclass(frozen=True)
    class Base:
        size: Size = "tiny"
        method: Method = "apd"

    @dataclass(frozen=True)
    class Train:
        experiment: Annotated[Experiment, tyro.conf.arg(name="")]
        size: Size = "tiny"
        """Recipe to start from: tiny (built-in scenes), small (CamVid, CPU) or full (CamVid, GPU)."""
        method: Method = "apd"
        """What the recipe adds to the student's task loss."""
        device: str = ""
        """Torch device; empty is cuda where there is one, else cpu."""

    # size and method decide the defaults of everything else, so they are read first
    wanted = [a for a in arguments if a not in ("-h", "--help")]
    base = _parse(Base, _only(wanted, ("--size", "--method")), prog="apd train")
    start = recipe(base.size, base.method)
    chosen = _parse(
        Train,
        arguments,
        default=Train(experiment=start, size=base.size, method=base.method),
        prog="apd train",
        description="Train one experiment and print where its record lies. Every field below can be changed.",
        config=(tyro.conf.AvoidSubcommands,),
    )
    experiment = chosen.experiment
    if experiment.name == start.name:
        experiment = replace(experiment, name=f"{base.size}-{base.method}-seed{experiment.seed}")
    record = train(experiment, device=chosen.device or None)
    if not started_rank():
        print(_summary(record))
        print(run_folder(experiment) / "record.json")
    return 0


def _parse(kind: type, arguments: list[str], **options: Any) -> Any:
    """What tyro reads from a command line; below its message about a mistyped choice, the nearest one is told."""
    import tyro

    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return tyro.cli(kind, args=arguments, **options)
    except SystemExit:
        text = re.sub(r"[│\s]+", " ", told.getvalue())  # its box wraps words at the terminal's width
        if wrong := re.search(r"invalid choice '([^']*)' for argument '([^']*)'.*?one of \(([^)]*)\)", text):
            value, argument, choices = wrong.groups()
            if hint := did_you_mean(value, re.findall(r"[^', ]+", choices)):
                told.write(f"{options['prog']}: {argument} {value}{hint}\n")
        raise
    finally:
        if not started_rank():  # the others have read the same
            sys.stderr.write(told.getvalue())


def _only(arguments: list[str], flags: tuple[str, ...]) -> list[str]:
    """Those of `flags` that stand in the command line, with their values, in either spelling."""
    kept = []
    for place, argument in enumerate(arguments):
        if argument in flags:
            kept += arguments[place : place + 2]
        elif argument.startswith(tuple(f"{flag}=" for flag in flags)):
            kept.append(argument)
    return kept


def _evaluate(arguments: list[str]) -> int:
    """Score a finished run again on a split of its data."""
    import tyro

    from apd.evaluate.confusion import scores
    from apd.evaluate.inference import confusion_of
    from apd.study.build import build_split
    from apd.study.train import trained_network

    @dataclass(frozen=True)
    class Evaluate:
        run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
        """Folder of a finished run (it holds record.json and weights.safetensors)."""
        split: Literal["train", "val", "test"] = "val"
        """Split of the run's own data."""
        device: str = ""
        """Torch device; empty is cuda where there is one, else cpu."""

    chosen = _parse(Evaluate, arguments, prog="apd evaluate", description=_evaluate.__doc__)
    record = _record_of(chosen.run)
    dataset = build_split(record.experiment.data, chosen.split)
    model = trained_network(chosen.run, device=chosen.device or None)
    result = scores(confusion_of(model, dataset, precision=record.experiment.precision, progress=chosen.split))
    for name, iou, accuracy in zip(dataset.spec.class_names, result.iou, result.accuracy, strict=True):
        print(f"{name:12s} IoU {iou:.4f}  accuracy {accuracy:.4f}")
    print(
        f"mIoU {result.miou:.4f} over {result.classes_counted} classes, mAcc {result.macc:.4f}, "
        f"aAcc {result.aacc:.4f}, {len(dataset)} images of {chosen.split}"
    )
    return 0


def _predict(arguments: list[str]) -> int:
    """Write the label map and an overlay of any picture."""
    import tyro

    from apd.evaluate.pictures import predict_picture
    from apd.study.build import spec_of
    from apd.study.train import trained_network

    @dataclass(frozen=True)
    class Predict:
        run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
        """Folder of a finished run."""
        images: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="PICTURE")]
        """Pictures of any size and format."""
        to: Path = Path("predictions")
        """Folder for NAME-labels.png (class numbers, with the class colours as palette) and NAME-overlay.png."""

    chosen = _parse(Predict, arguments, prog="apd predict", description=_predict.__doc__)
    if not chosen.images:
        raise UsageError("apd predict needs at least one picture: apd predict RUN PICTURE…")
    if len({image.stem for image in chosen.images}) < len(chosen.images):
        raise UsageError(
            "two of the pictures have one name, so their files would be one: predict them --to two folders"
        )
    record = _record_of(chosen.run)
    model, data = trained_network(chosen.run), record.experiment.data
    for image in chosen.images:
        for path in predict_picture(model, image, chosen.to, spec_of(data), size=(data.height, data.width)):
            print(path)
    return 0


def _campaign(arguments: list[str]) -> int:
    """Run what a named list of experiments still lacks."""
    import tyro

    @dataclass(frozen=True)
    class Campaign:
        name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
        """Name of the campaign."""
        only: str = ""
        """Run only experiments whose label contains this text."""
        shard: str = ""
        """i/n: run only worker i's part when n workers share the campaign."""
        records: Path | None = None
        """Folder of the records; default is book/results/NAME."""
        device: str = ""
        """Torch device; empty is cuda where there is one, else cpu."""

    description = f"{_campaign.__doc__} Campaigns: {', '.join(CAMPAIGNS)}."
    chosen = _parse(Campaign, arguments, prog="apd campaign", description=description)
    shard, device = Shard.parse(chosen.shard), chosen.device or None
    records = run_campaign(chosen.name, folder=chosen.records, only=chosen.only, shard=shard, device=device)
    for record in () if started_rank() else records:
        print(_summary(record))
    return 0


def _cost(arguments: list[str]) -> int:
    """Parameters, multiply-adds, latency and memory of a recipe's student and teacher; with --loss, milliseconds and
    memory of the method's forward and backward pass at published sizes; with --switches, seconds of a training step."""
    from apd.evaluate.cost import cost_of
    from apd.evaluate.loss_cost import method_costs
    from apd.study.build import build_network, choose_device, spec_of
    from apd.study.recipes import Size, recipe
    from apd.study.switch_cost import switch_table

    @dataclass(frozen=True)
    class CostOptions:
        size: Size = "tiny"
        """Recipe whose networks are measured, at its image size."""
        batch: int = 1
        """Images at a time."""
        loss: bool = False
        """Measure the distillation loss at the published sizes and CamVid's instead of networks."""
        switches: bool = False
        """Measure a training step with each switch of the recipe the other way; the compiled one takes minutes."""
        device: str = ""
        """Torch device; empty is cuda where there is one, else cpu."""

    chosen = _parse(CostOptions, arguments, prog="apd cost", description=_cost.__doc__)
    if chosen.batch < 1:
        raise UsageError(f"--batch {chosen.batch}: expected a whole number of at least 1")
    device = choose_device(chosen.device)
    if chosen.loss:
        for line in method_costs(device):
            print(line)
        return 0
    experiment = recipe(chosen.size)
    if chosen.switches:
        for line in switch_table(experiment, device):
            print(line, flush=True)
        return 0
    data, classes = experiment.data, len(spec_of(experiment.data).class_names)
    for role, network in (("student", experiment.network), ("teacher", experiment.teacher.network)):
        model = build_network(network, classes, device, seed=0, weights_follow=True).eval()
        cost = cost_of(model, height=data.height, width=data.width, batch=chosen.batch, device=device)
        images = f"{chosen.batch}x{data.height}x{data.width}"
        print(f"{role}: {network.backbone} {network.head}, {images} on {device}: {cost}")
    return 0


def _recipes(arguments: list[str]) -> int:
    """List the recipes, or show one with every field."""
    import json

    import tyro

    from apd.study.fingerprint import to_dict
    from apd.study.recipes import all_recipes

    @dataclass(frozen=True)
    class Recipes:
        name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")] = ""
        """Recipe to show; empty lists all."""

    chosen = _parse(Recipes, arguments, prog="apd recipes", description=_recipes.__doc__)
    recipes = dict(all_recipes())
    if not chosen.name:
        for name, experiment in recipes.items():
            print(f"{name:24s} {experiment.data.name}, {experiment.training.iterations} iterations")
    elif chosen.name in recipes:
        print(json.dumps(to_dict(recipes[chosen.name]), indent=2))
    else:
        hint = did_you_mean(chosen.name, recipes)
        raise UsageError(f"there is no recipe {chosen.name!r}: expected one of {', '.join(recipes)}{hint}")
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "evaluate": _evaluate,
    "predict": _predict,
    "campaign": _campaign,
    "cost": _cost,
    "recipes": _recipes,
}


def _record_of(run: Path) -> Record:
    if not (run / "record.json").is_file():
        raise UsageError(f"{run} is not the folder of a finished run: it holds no record.json")
    return read_record(run / "record.json")


def _summary(record: Record) -> str:
    result, split = record.scores, record.content["data"]["split"]
    text = (
        f"{record.experiment.name}: mIoU {result.miou:.4f}, mAcc {result.macc:.4f}, aAcc {result.aacc:.4f} on {split}"
    )
    if record.teacher_scores is not None:
        text += f"; teacher mIoU {record.teacher_scores.miou:.4f}, agreement {record.agreement:.4f}"
    return text


def _help() -> str:
    lines = (f"  {name:10s} {command.__doc__}" for name, command in COMMANDS.items())
    return "usage: apd COMMAND [OPTIONS]\n\n" + "\n".join(lines) + "\n\napd COMMAND --help tells the options."


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0 if arguments else 2
    return exit_code_of(lambda: _run(*arguments), "apd")


def _run(name: str, *arguments: str) -> int:
    if name not in COMMANDS:
        raise UsageError(
            f"there is no command {name!r}: expected one of {', '.join(COMMANDS)}{did_you_mean(name, COMMANDS)}"
        )
    try:
        return COMMANDS[name](list(arguments))
    except ModuleNotFoundError as error:
        if error.name != "tyro":
            raise
        print(
            "apd: the command line needs tyro (pip install 'apd[cli]'); without it, "
            "`python -m apd.study.campaign NAME` runs campaigns",
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
