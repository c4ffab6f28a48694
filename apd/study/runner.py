"""The experiments of a campaign that still lack a record, run one after another, and the ledger of what came of them.

:mod:`apd.study.parallel` runs them side by side with the same ledger.
"""

import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apd.config.experiment import Experiment
from apd.config.identity import fingerprint, to_dict
from apd.training.checkpoint import RunBusyError
from apd.training.distributed import Ranks, of_every_rank
from apd.training.record import Record
from apd.training.run import train
from apd.training.run_log import NonFiniteLossError, UnfinishedRunsError


class Ledger:
    """What has become of a campaign's experiments; saves their records and reports.

    Args:
        name: of the campaign.
        folder: of its records.
        done: the records that are there, by fingerprint; grows.
        missing: how many experiments lack one.
        ranks: the processes that share every run.
    """

    def __init__(self, name: str, folder: Path, done: dict[str, Record], missing: int, ranks: Ranks) -> None:
        self.name, self.folder, self.done, self.missing, self.ranks = name, folder, done, missing, ranks
        self.closed = 0
        self.diverged: list[str] = []
        self.lost: list[str] = []

    def tell(self, text: str) -> None:
        """Print a line under the campaign's name, once."""
        self.ranks.print(f"{self.name}: {text}")

    def finished(self, experiment: Experiment, content: dict[str, Any], outlook: str) -> None:
        """Save a finished run's record; `outlook` is reported beside its score."""
        # a run that another campaign began has that one's label
        record = Record({**content, "experiment": to_dict(experiment)})
        self.done[fingerprint(experiment)] = record
        if self.ranks.first:
            record.save(self.folder / f"{experiment.name}-{fingerprint(experiment)}.json")
        self.closed += 1
        score, value = record.headline
        self.tell(f"{self.closed}/{self.missing} {experiment.name}: {score} {value:.4f}, {outlook}")

    def has_diverged(self, experiment: Experiment, error: object) -> None:
        """Note a run that has no record because its loss became infinite or NaN."""
        self.closed += 1
        self.diverged.append(experiment.name)
        self.tell(f"{self.closed}/{self.missing} {experiment.name} diverged and has no record: {error}")

    def is_lost(self, experiment: Experiment, why: str) -> None:
        """Note a run that is given up for another reason."""
        self.closed += 1
        self.lost.append(experiment.name)
        self.tell(f"{experiment.name} {why}")

    def close(self) -> None:
        """Raise NonFiniteLossError or UnfinishedRunsError if some experiments ended without a record."""
        of = f"of {self.missing} experiments"
        if self.lost:
            raise UnfinishedRunsError(
                f"{self.name}: {len(self.lost)} {of} were given up, see above: {', '.join(self.lost)}; the same "
                "command tries them again"
            )
        if self.diverged:
            told = f"{len(self.diverged)} {of} diverged and have no record: {', '.join(self.diverged)}"
            raise of_every_rank(NonFiniteLossError(f"{self.name}: {told}"))


def in_turn(
    missing: Sequence[Experiment], ledger: Ledger, *, device: str | None, progress: bool | None, workers: int
) -> None:
    """Run experiments one after another; what another process works on is left for the end and then waited for.

    Raises:
        Everything that `train` raises but NonFiniteLossError, which is noted.
    """
    queue = deque((experiment, False) for experiment in missing)
    spent = 0.0
    while queue:
        experiment, wait = queue.popleft()
        begun = time.monotonic()
        try:
            found = train(experiment, device=device, progress=progress, wait=wait, workers=workers)
        except RunBusyError:
            ledger.tell(f"{experiment.name} is another worker's and left for the end")
            queue.append((experiment, True))
            continue
        except NonFiniteLossError as error:
            ledger.has_diverged(experiment, error)
            continue
        spent += time.monotonic() - begun
        left = spent / (len(missing) - len(queue)) * len(queue)
        ledger.finished(experiment, found.content, f"about {left / 60:.0f} min left")
