"""The command `apd`: train, evaluate, predict, campaign, cost, recipes.

Each command is a frozen dataclass: tyro makes its options and its help from the fields. Mistakes of a user end in one
message on standard error and exit code 1 (2 where the command line itself is wrong, 130 after Ctrl-C); anything else
is a defect of this package and shows its traceback.
"""

import difflib
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from apd.study.campaign import CAMPAIGNS, CampaignError, run_campaign
from apd.study.checkpoint import CheckpointError, RunBusyError
from apd.study.experiment import Experiment, ExperimentError
from apd.study.log import NonFiniteLossError, StoppedError
from apd.study.record import Record, RecordError, read_record
from apd.study.teacher import TeacherError

USER_ERRORS = (
    CampaignError,
    CheckpointError,
    ExperimentError,
    NonFiniteLossError,
    RecordError,
    RunBusyError,
    TeacherError,
)


class UsageError(ValueError):
    """A command line that cannot be understood."""


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
        experiment: tyro.conf.OmitArgPrefixes[Experiment]
        size: Size = "tiny"
        """Recipe to start from: tiny (built-in scenes), small (CamVid, CPU) or full (CamVid, GPU)."""
        method: Method = "apd"
        """What the recipe adds to the student's task loss."""
        device: str = ""
        """Torch device; empty is cuda where there is one, else cpu."""

    # size and method decide the defaults of everything else, so they are read first
    wanted = [a for a in arguments if a not in ("-h", "--help")]
    base, _rest = tyro.cli(Base, args=_only(wanted, ("--size", "--method")), return_unknown_args=True, prog="apd train")
    start = recipe(base.size, base.method)
    chosen = tyro.cli(
        Train,
        args=arguments,
        default=Train(experiment=start, size=base.size, method=base.method),
        prog="apd train",
        description="Train one experiment and print where its record lies. Every field below can be changed.",
        config=(tyro.conf.AvoidSubcommands,),
    )
    experiment = chosen.experiment
    if experiment.name == start.name:
        experiment = replace(experiment, name=f"{base.size}-{base.method}-seed{experiment.seed}")
    record = train(experiment, device=chosen.device or None)
    print(_summary(record))
    print(run_folder(experiment) / "record.json")
    return 0


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
    import torch
    import tyro

    from apd.evaluate.confusion import scores
    from apd.evaluate.inference import confusion_of
    from apd.study.build import build_split
    from apd.study.train import trained_network

    @dataclass(frozen=True)
    class Evaluate:
        run: tyro.conf.Positional[Path]
        """Folder of a finished run (it holds record.json and weights.safetensors)."""
        split: Literal["train", "val", "test"] = "val"
        """Split of the run's own data."""
        device: str = ""
        """Torch device; empty is cuda where there is one, else cpu."""

    chosen = tyro.cli(Evaluate, args=arguments, prog="apd evaluate", description=_evaluate.__doc__)
    record = _record_of(chosen.run)
    dataset = build_split(record.experiment.data, chosen.split)
    model = trained_network(chosen.run, device=chosen.device or ("cuda" if torch.cuda.is_available() else "cpu"))
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
        run: tyro.conf.Positional[Path]
        """Folder of a finished run."""
        images: tyro.conf.Positional[tuple[Path, ...]]
        """Pictures of any size and format."""
        to: Path = Path("predictions")
        """Folder for NAME-labels.png (class numbers, with the class colours as palette) and NAME-overlay.png."""

    chosen = tyro.cli(Predict, args=arguments, prog="apd predict", description=_predict.__doc__)
    if not chosen.images:
        raise UsageError("apd predict needs at least one picture: apd predict RUN PICTURE…")
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
        name: tyro.conf.Positional[str]
        """Name of the campaign."""
        only: str = ""
        """Run only experiments whose label contains this text."""
        records: Path | None = None
        """Folder of the records; default is book/results/NAME."""
        device: str = ""
        """Torch device; empty is cuda where there is one, else cpu."""

    description = f"{_campaign.__doc__} Campaigns: {', '.join(CAMPAIGNS)}."
    chosen = tyro.cli(Campaign, args=arguments, prog="apd campaign", description=description)
    for record in run_campaign(chosen.name, folder=chosen.records, only=chosen.only, device=chosen.device or None):
        print(_summary(record))
    return 0


def _cost(arguments: list[str]) -> int:
    """Parameters, multiply-adds, latency and memory of a recipe's student and teacher."""
    import torch
    import tyro

    from apd.evaluate.cost import cost_of
    from apd.study.build import build_network, spec_of
    from apd.study.recipes import Size, recipe

    @dataclass(frozen=True)
    class CostOptions:
        size: Size = "tiny"
        """Recipe whose networks are measured, at its image size."""
        batch: int = 1
        """Images at a time."""
        device: str = ""
        """Torch device; empty is cuda where there is one, else cpu."""

    chosen = tyro.cli(CostOptions, args=arguments, prog="apd cost", description=_cost.__doc__)
    device = torch.device(chosen.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    experiment = recipe(chosen.size)
    data, classes = experiment.data, len(spec_of(experiment.data).class_names)
    for role, network in (("student", experiment.network), ("teacher", experiment.teacher.network)):
        model = build_network(network, classes, device, seed=0, weights_follow=True).eval()
        cost = cost_of(model, height=data.height, width=data.width, batch=chosen.batch, device=device)
        print(f"{role}: {network.backbone}, {chosen.batch}x{data.height}x{data.width} on {device}: {cost}")
    return 0


def _recipes(arguments: list[str]) -> int:
    """List the recipes, or show one with every field."""
    import json

    import tyro

    from apd.study.fingerprint import to_dict
    from apd.study.recipes import all_recipes

    @dataclass(frozen=True)
    class Recipes:
        name: tyro.conf.Positional[str] = ""
        """Recipe to show; empty lists all."""

    chosen = tyro.cli(Recipes, args=arguments, prog="apd recipes", description=_recipes.__doc__)
    recipes = dict(all_recipes())
    if not chosen.name:
        for name, experiment in recipes.items():
            print(f"{name:24s} {experiment.data.name}, {experiment.training.iterations} iterations")
    elif chosen.name in recipes:
        print(json.dumps(to_dict(recipes[chosen.name]), indent=2))
    else:
        raise UsageError(f"there is no recipe {chosen.name!r}{_nearest(chosen.name, recipes)}")
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "evaluate": _evaluate,
    "predict": _predict,
    "campaign": _campaign,
    "cost": _cost,
    "recipes": _recipes,
}


def _nearest(name: str, known: object) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"


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
    from apd.data.folder import DataError

    name, *rest = arguments
    try:
        if name not in COMMANDS:
            raise UsageError(f"there is no command {name!r}{_nearest(name, COMMANDS)}")
        return COMMANDS[name](rest)
    except UsageError as error:
        print(f"apd: {error}", file=sys.stderr)
        return 2
    except (*USER_ERRORS, DataError) as error:
        print(f"apd: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print(f"apd: {error}" if isinstance(error, StoppedError) else "apd: stopped", file=sys.stderr)
        return 130
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
