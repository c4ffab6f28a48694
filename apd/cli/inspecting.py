"""The commands that train nothing: check, cost, recipes."""

import json
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, get_args, get_type_hints

import tyro

from apd.cli.app import parse, recipe_parts
from apd.config.datasets import build_split, spec_of
from apd.config.experiment import DataConfig
from apd.config.identity import to_dict
from apd.cost import measure
from apd.data.census import census_of
from apd.data.dataset_yaml import DESCRIPTION, SPLITS, has_split, locate_folder
from apd.data.images import DataError, MissingData
from apd.distill import APDLoss
from apd.fields import UsageError, did_you_mean
from apd.study import recipes as known
from apd.training.distributed import choose_device
from apd.training.segmentation import build_network

NAMES = tuple(name for name in get_args(get_type_hints(DataConfig)["name"]) if name != "folder")
OWN_SIZES = {"height": 0, "width": 0}


@dataclass(frozen=True)
class _Check:
    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATA")]
    """A folder that holds a dataset.yaml, or the name of a data set."""


def check(arguments: list[str], sentence: str) -> int:
    """The share of each class in a folder of the user's own or in a named data set, and what is wrong there."""
    description = f"{sentence} Data sets: {', '.join(NAMES)}."
    chosen = parse(_Check, arguments, prog="apd check", description=description).data
    if chosen in NAMES and not Path(chosen, DESCRIPTION).is_file():
        scenes = chosen == "scenes"
        data = DataConfig(name=chosen, **({} if scenes else OWN_SIZES))
        splits = [split for split in SPLITS if scenes or split in dict(spec_of(data).splits)]
    else:
        try:
            locate_folder(chosen)
        except MissingData as error:
            raise DataError(f"{error}; or name one of {', '.join(NAMES)}{did_you_mean(chosen, NAMES)}") from error
        data = DataConfig(name="folder", folder=chosen, **OWN_SIZES)
        splits = [split for split in SPLITS if split != "test" or has_split(chosen, split)]
    census = census_of({split: build_split(data, split) for split in splits})
    print("\n".join(census.table()))
    for warning in census.warnings(chosen):
        print(f"warning: {warning}", file=sys.stderr)
    return 0


@dataclass(frozen=True)
class _Cost:
    size: known.Size = "tiny"  #: Recipe whose networks are measured, at its image size (the paper's: at its crop).
    batch: int = 1
    """Images at a time."""
    loss: bool = False  #: Measure the distillation loss at the published sizes and CamVid's instead of networks.
    start: bool = False  #: Time `from apd import APDLoss` and `apd --help` in fresh interpreters instead of networks.
    device: str = ""  #: Torch device; empty is cuda where there is one, else cpu.


def cost(arguments: list[str], sentence: str) -> int:
    """What a recipe's networks cost on this machine, or the loss."""
    chosen = parse(_Cost, arguments, prog="apd cost", description=sentence)
    if chosen.batch < 1:
        raise UsageError(f"--batch {chosen.batch}: expected a whole number of at least 1")
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
            took = f"{found.milliseconds.median:.1f} ms, {found.peak_bytes / 2**20:.1f} MiB on {device}"
            print(f"{name}, {f'heads {width} wide' if headed else 'no heads'}: {took}", flush=True)
        return 0
    experiment = known.recipe(chosen.size)
    if experiment.task == "detection":
        raise UsageError(
            f"--size {chosen.size}: apd cost measures segmentation; `apd train --size {chosen.size} --dry-run` tells a "
            "detector's parameters, multiply-adds, memory and seconds"
        )
    data, classes = experiment.data, len(spec_of(experiment.data).class_names)
    height, width = data.height or data.crop_height, data.width or data.crop_width
    for role, network in (("student", experiment.network), ("teacher", experiment.teacher.network)):
        model = build_network(network, classes, device, seed=0, weights_follow=True).eval()
        found = measure.cost_of(model, height=height, width=width, batch=chosen.batch, device=device)
        images = f"{chosen.batch}x{height}x{width}"
        print(f"{role}: {network.backbone} {network.head}, {images} on {device}: {found}")
    return 0


@dataclass(frozen=True)
class _Recipes:
    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")] = ""
    """Recipe to show (`apd recipes show NAME` is the same); empty lists all."""


def recipes(arguments: list[str], sentence: str) -> int:
    """All recipes, or the fields of one."""
    if arguments[:1] == ["show"]:
        arguments = arguments[1:] or ["show"]  # of nothing: there is no such recipe
    chosen = parse(_Recipes, arguments, prog="apd recipes", description=sentence)
    experiments = dict(known.all_recipes())
    if not chosen.name:
        for name, experiment in experiments.items():
            data = experiment.data
            source = data.folder if experiment.task == "detection" and data.folder else data.name
            print(f"{name:40s} {source}, {experiment.training.iterations} iterations")
        return 0
    name = "-".join(recipe_parts(chosen.name))
    print("\n".join(known.sourced_lines(name)) or json.dumps(to_dict(experiments[name]), indent=2))
    return 0
