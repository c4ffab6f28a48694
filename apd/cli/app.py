"""The command `apd`: what its commands are called, and where each is. Nothing is loaded for the help but this table."""

import contextlib
import io
import os
import re
import sys
from importlib import import_module
from typing import Any, get_args

from apd.fields import UsageError, did_you_mean
from apd.training.exit_codes import exit_code_of, printing_safely

COMMANDS = {
    "train": "Train one experiment: a recipe, by name or size and method, and any of its fields changed.",
    "replay": "Run a record's experiment again on this machine and say whether it comes out equal, or where not.",
    "check": "Read every image and mask of a folder of your own, or a named data set, and print each class's share.",
    "evaluate": "Score a finished run again on a split of its data.",
    "predict": "Write the label map and an overlay of images and videos, or what a detector finds in them.",
    "report": "Write one page of finished runs: scores, curves, best and worst images, configuration, cost.",
    "export": "Write a finished run's student, alone: ONNX, a torch.export program, or a folder for a model hub.",
    "campaign": "Run what a named list of experiments still lacks.",
    "cost": "Parameters, multiply-adds, latency and memory of a recipe's student and teacher; with --loss, time "
    "and memory of the method's forward and backward pass at published sizes.",
    "records": "Check every record of a folder: what was edited or damaged is named, and whole ones are counted.",
    "recipes": "List the recipes, or show one with every field; of the paper's size with the source of each value.",
}
_OF_A_RUN = ("evaluate", "predict", "export", "records")


@printing_safely
def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = (f"  {name:10s} {sentence}" for name, sentence in COMMANDS.items())
        print("usage: apd COMMAND [OPTIONS]", "", *lines, "", "apd COMMAND --help lists the options.", sep="\n")
        return 0 if arguments else 2
    return exit_code_of(lambda: _run(*arguments), "apd")


def _run(name: str, *arguments: str) -> int:
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS)
        raise UsageError(f"there is no command {name!r:.80}: expected one of {', '.join(COMMANDS)}{hint}")
    try:
        place = "report" if name == "report" else "using" if name in _OF_A_RUN else "training"
        module = import_module(f"apd.cli.{place}")
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] != "tyro":
            raise
        fix = "(in the project's folder: pip install -e '.[cli]'); without it, `python -m apd.study.campaign NAME` runs"
        print(f"apd: the command line needs tyro {fix} campaigns", file=sys.stderr)
        return 1
    return getattr(module, name)(list(arguments), COMMANDS[name])


# How a command line becomes a dataclass, and what is said of one that does not.


def parse(kind: type, arguments: list[str], **options: Any) -> Any:
    """What tyro reads from a command line; UsageError says in a line what it could not, with the nearest choice."""
    import tyro

    errors = io.StringIO()
    sys.stdout.styled = True  # the help has colours on a terminal
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(kind, args=arguments, **options)
    except SystemExit as left:
        if not left.code:  # help was asked for
            raise
        plain = re.sub(r"[│╭╮╰╯─]|-{9,}|\x1b\[[\d;]*m", " ", errors.getvalue())  # without its box and colours
        text, hint = re.sub(" For full helptext, .*", "", " ".join(plain.split())), ""
        text = re.sub("^Value error Error parsing [^:]*: |^(Unrecognized options) (?=Unrecognized)", "", text)
        text = re.sub(r"Perhaps you meant: (.*)", _only_flags, text)
        over = re.match(r"Unrecognized options: ([^-]\S*)", text)
        if over and options.get("prog") == "apd train":
            with contextlib.suppress(UsageError):  # of a word that is no recipe
                recipe_parts(over[1])
                text += f": a recipe's name stands first, as in `apd train {over[1]} …`"
        elif over and os.path.isfile(os.path.join(over[1], "record.json")):
            text += ": one run at a time, so where several fit a pattern name one of them"
        if wrong := re.search(r"invalid choice '([^']*)' for argument '([^']*)'.*?one of \(([^)]*)\)", text):
            value, argument, choices = wrong.groups()
            if hint := did_you_mean(value, re.findall(r"[^', ]+", choices)):
                hint = f"{argument} {value}{hint} "
        raise UsageError(f"{hint}{text}") from None
    finally:
        sys.stdout.styled = False


def _only_flags(proposed: re.Match[str]) -> str:
    """The first three flags of what tyro proposes with the whole help of each."""
    return f"Perhaps you meant {', '.join(re.findall('--[a-z][a-z0-9.-]*', proposed[1])[:3])}"


def only(arguments: list[str], flags: tuple[str, ...]) -> list[str]:
    """Those of `flags` that stand in the command line, with their values, in either spelling."""
    kept = []
    for place, argument in enumerate(arguments):
        flag, equals, _ = argument.partition("=")
        if flag.replace("_", "-") in flags:  # as tyro takes it
            kept += arguments[place : place + (1 if equals else 2)]
    return kept


def recipe_parts(name: str) -> tuple[str, str]:
    """Size and method of a recipe's name as `apd recipes` lists it; of a size alone, with APD. Else UsageError."""
    from apd.study import recipes

    sizes = get_args(recipes.Size)
    known = {f"{size}-{method}": (size, method) for size in sizes for method in recipes.methods_of(size)}
    known |= {size: (size, recipes.default_method(size)) for size in sizes}
    if name not in known:
        hint = did_you_mean(name, known)
        raise UsageError(f"there is no recipe {name!r:.80}: expected one of those that `apd recipes` lists{hint}")
    return known[name]


def with_recipe(arguments: list[str]) -> list[str]:
    """The command line with a recipe's name, or a size, in front written as --size and --method; any other as it is."""
    if not arguments or arguments[0].startswith("-"):
        return arguments
    name, *rest = arguments
    size, method = recipe_parts(name)
    given = only(rest, ("--size", "--method"))
    if name == size and given == only(rest, ("--method",)):
        return ["--size", size, *rest]
    if given:
        raise UsageError(f"{' '.join(given)}: the recipe {name} says it already, so leave one of them out")
    return ["--size", size, "--method", method, *rest]
