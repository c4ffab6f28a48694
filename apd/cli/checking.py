"""What `apd check` does: read all labels of a data set and tell how often each class occurs."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, get_args, get_type_hints

from apd.cli.parsing import parse
from apd.config.datasets import build_split, spec_of
from apd.config.experiment import DataConfig
from apd.data.census import census_of
from apd.data.dataset_yaml import DESCRIPTION, SPLITS, has_split, locate_folder
from apd.data.images import DataError, MissingData
from apd.fields import did_you_mean

NAMES = tuple(name for name in get_args(get_type_hints(DataConfig)["name"]) if name != "folder")


def check(arguments: list[str]) -> int:
    """Read every image and mask of a folder of your own, or of a named data set, and print the share of each class."""
    import tyro

    @dataclass(frozen=True)
    class Check:
        data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATA")]
        """A folder that holds a dataset.yaml, or the name of a data set."""

    description = f"{check.__doc__} Data sets: {', '.join(NAMES)}."
    chosen = parse(Check, arguments, prog="apd check", description=description).data
    if chosen in NAMES and not Path(chosen, DESCRIPTION).is_file():
        scenes = chosen == "scenes"
        data = DataConfig(name=chosen) if scenes else DataConfig(name=chosen, height=0, width=0)
        listed = dict(spec_of(data).splits)
        splits = [split for split in SPLITS if scenes or split in listed]
    else:
        try:
            locate_folder(chosen)
        except MissingData as error:
            raise DataError(f"{error}; or name one of {', '.join(NAMES)}{did_you_mean(chosen, NAMES)}") from error
        data = DataConfig(name="folder", folder=chosen, height=0, width=0)
        splits = [split for split in SPLITS if split != "test" or has_split(chosen, split)]
    census = census_of({split: build_split(data, split) for split in splits})
    for line in census.table():
        print(line)
    for sentence in census.warnings(chosen):
        print(f"warning: {sentence}", file=sys.stderr)
    return 0
