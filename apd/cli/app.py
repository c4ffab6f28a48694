"""The command `apd`: train, check, evaluate, predict, export, campaign, cost, recipes.

Each command is a frozen dataclass: tyro makes its options and its help from the fields. What a user gets for a mistake
is told in `apd.training.exit_codes`.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from apd.cli.checking import check
from apd.cli.parsing import parse, recipe_parts
from apd.cli.training import summary, train
from apd.cli.using import evaluate, export, predict
from apd.fields import did_you_mean
from apd.study.campaign import parsed, run_campaign
from apd.training.distributed import started_rank
from apd.training.exit_codes import UsageError, exit_code_of


def _campaign(arguments: list[str]) -> int:
    """Run what a named list of experiments still lacks."""
    records = run_campaign(**parsed(arguments, "apd campaign"))
    for record in () if started_rank() else records:
        print(summary(record))
    return 0


def _cost(arguments: list[str]) -> int:
    """Parameters, multiply-adds, latency and memory of a recipe's student and teacher; with --loss, milliseconds and
    memory of the method's forward and backward pass at published sizes."""
    from apd.config.datasets import spec_of
    from apd.cost.measure import LOSS_SHAPES, cost_of, loss_batch, loss_cost
    from apd.distill import APDLoss
    from apd.study.recipes import Size, recipe
    from apd.training.distributed import choose_device
    from apd.training.segmentation import build_network

    @dataclass(frozen=True)
    class CostOptions:
        size: Size = "tiny"
        """Recipe whose networks are measured, at its image size (the paper's: at its crop)."""
        batch: int = 1
        """Images at a time."""
        loss: bool = False
        """Measure the distillation loss at the published sizes and CamVid's instead of networks."""
        device: str = ""
        """Torch device; empty is cuda where there is one, else cpu."""

    chosen = parse(CostOptions, arguments, prog="apd cost", description=_cost.__doc__)
    if chosen.batch < 1:
        raise UsageError(f"--batch {chosen.batch}: expected a whole number of at least 1")
    device = choose_device(chosen.device)
    if chosen.loss:
        for name, shape in LOSS_SHAPES.items():
            for width in (None, shape.channels):
                module = APDLoss(shape.channels, shape.channels, shape.classes, width=width).to(device)
                cost = loss_cost(module, loss_batch(shape, device=device))
                heads = "no heads" if width is None else f"heads {width} wide"
                took = f"{cost.milliseconds.median:.1f} ms, {cost.peak_bytes / 2**20:.1f} MiB on {device}"
                print(f"{name}, {heads}: {took}", flush=True)
        return 0
    experiment = recipe(chosen.size)
    if experiment.task == "detection":
        raise UsageError(
            f"--size {chosen.size}: apd cost measures segmentation; `apd train --size {chosen.size} --dry-run` tells a "
            "detector's parameters, multiply-adds, memory and seconds"
        )
    data, classes = experiment.data, len(spec_of(experiment.data).class_names)
    height, width = data.height or data.crop_height, data.width or data.crop_width
    for role, network in (("student", experiment.network), ("teacher", experiment.teacher.network)):
        model = build_network(network, classes, device, seed=0, weights_follow=True).eval()
        cost = cost_of(model, height=height, width=width, batch=chosen.batch, device=device)
        images = f"{chosen.batch}x{height}x{width}"
        print(f"{role}: {network.backbone} {network.head}, {images} on {device}: {cost}")
    return 0


def _recipes(arguments: list[str]) -> int:
    """List the recipes, or show one with every field; those of the paper's size with the source of each value."""
    import json

    import tyro

    from apd.config.identity import to_dict
    from apd.study.recipes import all_recipes, sourced_lines

    @dataclass(frozen=True)
    class Recipes:
        name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")] = ""
        """Recipe to show (`apd recipes show NAME` is the same); empty lists all."""

    if arguments[:1] == ["show"]:
        arguments = arguments[1:] or ["show"]  # of nothing: told that there is no such recipe
    chosen = parse(Recipes, arguments, prog="apd recipes", description=_recipes.__doc__)
    recipes = dict(all_recipes())
    if not chosen.name:
        for name, experiment in recipes.items():
            data = experiment.data
            told = data.folder if experiment.task == "detection" and data.folder else data.name
            print(f"{name:40s} {told}, {experiment.training.iterations} iterations")
        return 0
    name = "-".join(recipe_parts(chosen.name))
    print("\n".join(sourced_lines(name)) or json.dumps(to_dict(recipes[name]), indent=2))
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": train,
    "check": check,
    "evaluate": evaluate,
    "predict": predict,
    "export": export,
    "campaign": _campaign,
    "cost": _cost,
    "recipes": _recipes,
}


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
            "apd: the command line needs tyro (in the project's folder: pip install -e '.[cli]'); without it, "
            "`python -m apd.study.campaign NAME` runs campaigns",
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
