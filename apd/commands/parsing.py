"""How a command line becomes a dataclass, and what is said of one that does not."""

import contextlib
import io
import re
import sys
from typing import Any

from apd.study.field_checks import did_you_mean
from apd.study.ranks import started_rank


def parse(kind: type, arguments: list[str], **options: Any) -> Any:
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


def only(arguments: list[str], flags: tuple[str, ...]) -> list[str]:
    """Those of `flags` that stand in the command line, with their values, in either spelling."""
    kept = []
    for place, argument in enumerate(arguments):
        if argument in flags:
            kept += arguments[place : place + 2]
        elif argument.startswith(tuple(f"{flag}=" for flag in flags)):
            kept.append(argument)
    return kept
