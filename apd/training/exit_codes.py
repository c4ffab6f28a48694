"""How a command ends: 0 done, 1 a mistake, 2 a wrong command line, 130 stopped, 141 unread; a traceback is a defect.

What is printed on its way can neither end its work nor steer the terminal.
"""

import contextlib
import functools
import os
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import torch

from apd.fields import CONTROLS, UsageError, UserError

DEFECTS = (AssertionError, AttributeError, LookupError, NameError, NotImplementedError, TypeError)
LONGEST_MESSAGE = 1000  # characters (own choice)


def exit_code_of(command: Callable[[], int], program: str) -> int:
    """Run a command under the name `program`, report what went wrong, part from other ranks; the exit code."""
    from apd.data.images import DataWarning  # late: the help of `apd` needs nothing of it
    from apd.training.distributed import leave, of_every_rank, started_rank

    rank = 0
    try:
        rank = started_rank()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore" if rank else "default", DataWarning)
            plain = warnings.showwarning

            def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
                if category is not DataWarning and not Path(place[0]).is_relative_to(Path(__file__).parents[1]):
                    return plain(message, category, *place)
                return print(f"{program}: note: {message}", file=sys.stderr)

            warnings.showwarning = show
            code = command()
        return leave(code)
    except UsageError as caught:
        error, code = of_every_rank(caught), 2
    except UserError as caught:
        error, code = caught, 1
    except torch.OutOfMemoryError as caught:
        error, code = RuntimeError(out_of_memory(caught)), 1
    except DEFECTS:
        raise
    except Exception as caught:  # what a library, the system or a file could raise that no reader has foreseen
        error, code = f"{type(caught).__name__}: {str(caught) or 'no reason is given'}", 1
    except KeyboardInterrupt as caught:  # a StoppedError says more
        error, code = caught if str(caught) else of_every_rank(KeyboardInterrupt("stopped")), 130
    if not (rank and getattr(error, "of_every_rank", False)):
        message = re.sub(CONTROLS, "?", " ".join(str(error).split()))  # names of files may hold what a terminal obeys
        print(f"{program}{f' (rank {rank})' if rank else ''}: {message:.{LONGEST_MESSAGE}}", file=sys.stderr)
    return leave(code)


def out_of_memory(error: torch.OutOfMemoryError) -> str:
    """What a GPU without enough memory means for a run, in one line."""
    reason, less = str(error).strip().split("\n")[0].split(". ")[0], "lower --training.batch-size"
    fix = f"{less}, raise --training.accumulation, use --training.gradient-checkpointing or end others on the GPU"
    return f"the GPU's memory does not hold this run ({reason}): {fix}; then start the same command again"


class _Stream:
    """A stream that shows control characters as escapes and, where nothing can be written, keeps the first error."""

    styled = False  # while a library prints its help in colours

    def __init__(self, stream: TextIO) -> None:
        self._stream, self.error = stream, None
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")  # of what the terminal's encoding lacks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As of any stream; what tqdm begins a line with, or goes up by, is let through."""
        if text.strip("\n\x1b[A") and not self.styled:
            start = text[: text.startswith("\r")]
            shown = re.sub(CONTROLS, lambda c: c[0] if c[0] in "\t\n" else repr(c[0])[1:-1], text[len(start) :])
            text = start + shown
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError as error:
            self.error = self.error or error
            with contextlib.suppress(OSError, ValueError):  # what is in its buffer must not fail again when Python ends
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        return len(text)

    def flush(self) -> None:
        """As of any stream; nothing is left to be written."""


def printing_safely(command: Callable[..., int | None]) -> Callable[..., int | None]:
    """Let a command's `print` neither raise nor pass control characters on; where all else went well, its exit code
    says that nothing could be printed: 1, or 141, as of a process that SIGPIPE ends, where nobody reads any more."""

    @functools.wraps(command)
    def safe(*arguments: Any) -> int | None:
        while (number := os.open(os.devnull, os.O_RDWR)) <= 2:  # closed: no file may get its number
            os.set_inheritable(number, True)
        os.close(number)
        plain = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = (_Stream(stream or open(os.devnull, "w")) for stream in plain)  # noqa: SIM115
        try:
            code = command(*arguments)
        except SystemExit as left:  # after its help, or with what is wrong with a command line
            code = left.code
        finally:
            error = sys.stdout.error
            if error and not isinstance(error, BrokenPipeError):
                print(f"apd: cannot write to standard output: {error.strerror}", file=sys.stderr)
            sys.stdout, sys.stderr = plain
        return code or (0 if error is None else 141 if isinstance(error, BrokenPipeError) else 1)

    return safe
