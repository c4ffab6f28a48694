"""The command line that all data scripts share: one subcommand a function, and an exit code for whatever happens."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fetching import FetchError

Command = Callable[..., None]


def consent(parsers: Mapping[str, argparse.ArgumentParser]) -> None:
    """The option of `fetch` by which a person takes files that cannot be compared with what was published."""
    words = (
        "download also what comes by http, or has no published sha256; what that is, `fetch` says without this option"
    )
    parsers["fetch"].add_argument("--unverified", action="store_true", help=words)


def run_script(
    script: str,
    description: str,
    commands: Mapping[Command, Sequence[str]],
    arguments: Sequence[str] | None,
    options: Callable[[Mapping[str, argparse.ArgumentParser]], None] = lambda _: None,
) -> int:
    """Read the command line, call the function it names, and return the exit code.

    Args:
        script: file name of the script, said before every message.
        description: its docstring.
        commands: functions and the names of their positional arguments, which are paths; name and docstring of a
            function become name and help of its subcommand.
        arguments: the command line (None: that of the process).
        options: adds further options to the subcommands' parsers, which it gets by name.

    Returns:
        0; 1 after a message on what is wrong and what to do; 130 after Ctrl-C.

    Example:
        >>> run_script("noop.py", "Does nothing.", {}, [])    # doctest: +SKIP
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    subparsers = parser.add_subparsers(dest="command", required=True)
    for command, names in commands.items():
        one = subparsers.add_parser(command.__name__, help=command.__doc__, description=command.__doc__)
        one.set_defaults(command=command)
        for name in names:
            one.add_argument(name, type=Path, metavar=name.upper())
    options(subparsers.choices)
    given = vars(parser.parse_args(arguments))
    command = given.pop("command")
    try:
        command(**given)
    except (FetchError, OSError) as error:
        print(f"{script}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{script}: interrupted; nothing half-finished was left under its final name", file=sys.stderr)
        return 130
    return 0
