"""The command `apd`: what its commands are called, and where each is. Nothing is loaded for the help but this table."""

import sys
from importlib import import_module

from apd.fields import did_you_mean

COMMANDS = {
    "train": "Train one experiment: a recipe, by name or size and method, and any of its fields changed.",
    "replay": "Run a record's experiment again on this machine and say whether it comes out equal, or where not.",
    "check": "Read every image and mask of a folder of your own, or a named data set, and print each class's share.",
    "evaluate": "Score a finished run again on a split of its data.",
    "predict": "Write the label map and an overlay of any image, or what a detector finds in it.",
    "export": "Write a finished run's student, alone, as ONNX or as a torch.export program.",
    "campaign": "Run what a named list of experiments still lacks.",
    "cost": "Parameters, multiply-adds, latency and memory of a recipe's student and teacher; with --loss, time "
    "and memory of the method's forward and backward pass at published sizes.",
    "recipes": "List the recipes, or show one with every field; of the paper's size with the source of each value.",
}
_FILES = {"training": ("train", "replay", "campaign"), "using": ("evaluate", "predict", "export")}


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = (f"  {name:10s} {sentence}" for name, sentence in COMMANDS.items())
        print("usage: apd COMMAND [OPTIONS]", "", *lines, "", "apd COMMAND --help tells the options.", sep="\n")
        return 0 if arguments else 2
    from apd.training.exit_codes import exit_code_of

    return exit_code_of(lambda: _run(*arguments), "apd")


def _run(name: str, *arguments: str) -> int:
    from apd.training.exit_codes import UsageError

    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS)
        raise UsageError(f"there is no command {name!r}: expected one of {', '.join(COMMANDS)}{hint}")
    try:
        file = next((file for file, names in _FILES.items() if name in names), "inspecting")
        module = import_module(f"apd.cli.{file}")
    except ModuleNotFoundError as error:
        if error.name != "tyro":
            raise
        fix = "(in the project's folder: pip install -e '.[cli]'); without it, `python -m apd.study.campaign NAME` runs"
        print(f"apd: the command line needs tyro {fix} campaigns", file=sys.stderr)
        return 1
    return getattr(module, name)(list(arguments), COMMANDS[name])
