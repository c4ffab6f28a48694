"""How a command line becomes a dataclass, and what is said of one that does not."""

import contextlib
import io
import re
import sys
from typing import Any, get_args

import tyro

from apd.fields import did_you_mean
from apd.study import recipes
from apd.training.distributed import started_rank
from apd.training.exit_codes import UsageError


def parse(kind: type, arguments: list[str], **options: Any) -> Any:
    """What tyro reads from a command line; below its message about a mistyped choice stands the nearest one."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(kind, args=arguments, **options)
    except SystemExit:
        text = re.sub(r"[│\s]+", " ", errors.getvalue())  # its box wraps lines at the terminal's width
        if wrong := re.search(r"invalid choice '([^']*)' for argument '([^']*)'.*?one of \(([^)]*)\)", text):
            value, argument, choices = wrong.groups()
            if hint := did_you_mean(value, re.findall(r"[^', ]+", choices)):
                errors.write(f"{options['prog']}: {argument} {value}{hint}\n")
        raise
    finally:
        if not started_rank():  # the others have read the same
            sys.stderr.write(errors.getvalue())


def only(arguments: list[str], flags: tuple[str, ...]) -> list[str]:
    """Those of `flags` that stand in the command line, with their values, in either spelling."""
    kept = []
    for place, argument in enumerate(arguments):
        if argument in flags:
            kept += arguments[place : place + 2]
        elif argument.startswith(tuple(f"{flag}=" for flag in flags)):
            kept.append(argument)
    return kept


def recipe_parts(name: str) -> tuple[str, str]:
    """Size and method of a recipe's name as `apd recipes` lists it; of a size alone, with APD. Else UsageError.

    >>> recipe_parts("ade20k_corrected-pixel_kd"), recipe_parts("tiny_coco")
    (('ade20k_corrected', 'pixel_kd'), ('tiny_coco', 'roi_apd'))
    """
    known = [f"{size}-{method}" for size in get_args(recipes.Size) for method in recipes.methods_of(size)]
    size, _, method = name.partition("-")
    method = method or recipes.default_method(size)
    if f"{size}-{method}" not in known or name.endswith("-"):
        hint = did_you_mean(name, known)
        raise UsageError(f"there is no recipe {name!r}: expected one of {', '.join(known)}{hint}")
    return size, method


def with_recipe(arguments: list[str]) -> list[str]:
    """The command line with a recipe's name in front written as --size and --method; any other as it is."""
    if not arguments or arguments[0].startswith("-"):
        return arguments
    name, *rest = arguments
    size, method = recipe_parts(name)
    if given := only(rest, ("--size", "--method")):
        raise UsageError(f"{' '.join(given)}: the recipe {name} says it already, so leave one of them out")
    return ["--size", size, "--method", method, *rest]
