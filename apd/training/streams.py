"""Standard output and error of a command: what is printed there can neither end its work nor steer the terminal."""

import contextlib
import functools
import os
import re
import sys
from collections.abc import Callable
from typing import Any, TextIO

from apd.fields import CONTROLS


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
