"""What a shell user gets for a mistake: one message on standard error and an exit code, no traceback.

Exit codes: 0 done, 1 a mistake told by its message, 2 a command line that cannot be understood, 130 stopped by Ctrl-C.
Anything else that is raised is a defect of this package and shows its traceback.
"""

import os
import sys
from collections.abc import Callable

from apd.data.folder import DataError
from apd.study.checkpoint import CheckpointError, RunBusyError
from apd.study.experiment import ExperimentError
from apd.study.log import NonFiniteLossError, StoppedError
from apd.study.record import RecordError
from apd.study.teacher import TeacherError


class UsageError(ValueError):
    """A command line that cannot be understood."""


USER_ERRORS = (
    CheckpointError,
    DataError,
    ExperimentError,
    NonFiniteLossError,
    RecordError,
    RunBusyError,
    TeacherError,
)


def exit_code_of(command: Callable[[], int], program: str) -> int:
    """Run a command, tell what went wrong on standard error, and return the exit code.

    Args:
        command: does the work and returns an exit code.
        program: name before the message, such as "apd".
    """
    try:
        code = command()
        sys.stdout.flush()
    except UsageError as error:
        return _tell(program, error, 2)
    except USER_ERRORS as error:
        return _tell(program, error, 1)
    except KeyboardInterrupt as error:
        return _tell(program, error if isinstance(error, StoppedError) else "stopped", 130)
    except BrokenPipeError:  # the reader of our output, such as `head`, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


def _tell(program: str, message: object, code: int) -> int:
    print(f"{program}: {message}", file=sys.stderr)
    return code
