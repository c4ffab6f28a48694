"""Exit codes: 0 done, 1 a mistake, 2 a wrong command line, 130 stopped, 141 unread; a traceback is a defect."""

import re
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch

from apd.config.experiment import ExperimentError
from apd.data.images import DataError, DataWarning
from apd.data.rle import DetectionExtraMissing
from apd.evaluation.export import ExportError
from apd.fields import CONTROLS, UsageError
from apd.training.checkpoint import CheckpointError, RunBusyError
from apd.training.distributed import LostRankError, leave, of_every_rank, started_rank
from apd.training.record import RecordError
from apd.training.run_log import NonFiniteLossError, StoppedError, UnfinishedRunsError
from apd.training.task import TeacherError

USER_ERRORS = (
    *(CheckpointError, DataError, DetectionExtraMissing, ExperimentError, ExportError, LostRankError),
    *(NonFiniteLossError, RecordError, RunBusyError, TeacherError, UnfinishedRunsError),
)
DEFECTS = (AssertionError, AttributeError, LookupError, NameError, NotImplementedError, TypeError)
LONGEST_MESSAGE = 1000  # characters (own choice)


def exit_code_of(command: Callable[[], int], program: str) -> int:
    """Run a command under the name `program`, report what went wrong, part from other ranks; the exit code."""
    rank = 0
    try:
        rank = started_rank()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore" if rank else "default", DataWarning)
            plain = warnings.showwarning

            def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
                if category is not DataWarning:
                    return plain(message, category, *place)
                return print(f"{program}: note: {message}", file=sys.stderr)

            warnings.showwarning = show
            code = command()
        return leave(code)
    except UsageError as caught:
        error, code = of_every_rank(caught), 2
    except USER_ERRORS as caught:
        error, code = caught, 1
    except torch.OutOfMemoryError as caught:
        error, code = RuntimeError(out_of_memory(caught)), 1
    except DEFECTS:
        raise
    except Exception as caught:  # what a library, the system or a file could raise that no reader has foreseen
        error, code = f"{type(caught).__name__}: {str(caught) or 'no reason is given'}", 1
    except KeyboardInterrupt as caught:
        error, code = caught, 130
        if not isinstance(caught, StoppedError):
            error = of_every_rank(KeyboardInterrupt("stopped"))
    if not (rank and getattr(error, "of_every_rank", False)):
        message = re.sub(CONTROLS, "?", " ".join(str(error).split()))  # names of files may hold what a terminal obeys
        print(f"{program}{f' (rank {rank})' if rank else ''}: {message:.{LONGEST_MESSAGE}}", file=sys.stderr)
    return leave(code)


def out_of_memory(error: torch.OutOfMemoryError) -> str:
    """What a GPU without enough memory means for a run, in one line."""
    reason, less = str(error).strip().split("\n")[0].split(". ")[0], "lower --training.batch-size"
    fix = f"{less}, raise --training.accumulation, use --training.gradient-checkpointing or end others on the GPU"
    return f"the GPU's memory does not hold this run ({reason}): {fix}; then start the same command again"
