"""Runs what a campaign lacks; `python -m apd.study.campaign NAME` needs no command-line library, also with torchrun."""

import argparse
import math
import os
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from apd.config.experiment import Experiment
from apd.config.identity import fingerprint, to_dict
from apd.fields import UsageError
from apd.study.campaigns import CAMPAIGNS, CampaignError, experiments_of
from apd.study.parallel import side_by_side
from apd.training.checkpoint import RunBusyError, write_atomically
from apd.training.distributed import Ranks, join, of_every_rank
from apd.training.exit_codes import exit_code_of, printing_safely
from apd.training.record import Record, read_record, records_folder
from apd.training.run import train
from apd.training.run_log import NonFiniteLossError, UnfinishedRunsError
from apd.training.schema import with_digest


class Ledger:
    """What has become of the `missing` experiments; saves records to `folder`, adds them to `done`, and reports."""

    def __init__(self, name: str, folder: Path, done: dict[str, Record], missing: int, ranks: Ranks) -> None:
        self.name, self.folder, self.done, self.missing, self.ranks = name, folder, done, missing, ranks
        self.closed, self.diverged, self.lost = 0, list[str](), list[str]()

    def tell(self, text: str) -> None:
        """Print a line under the campaign's name, once."""
        self.ranks.print(f"{self.name}: {text}")

    def finished(self, experiment: Experiment, content: dict[str, Any], outlook: str) -> None:
        """Save a finished run's record; `outlook` is reported beside its score."""
        # a run that another campaign began has that one's label
        record = Record(with_digest({**content, "experiment": to_dict(experiment)}))
        self.done[fingerprint(experiment)] = record
        if self.ranks.first:
            record.save(self.folder / f"{experiment.name}-{fingerprint(experiment)}.json")
        self.closed += 1
        score, value = record.headline
        self.tell(f"{self.closed}/{self.missing} {experiment.name}: {score} {value:.4f}, {outlook}")

    def without_record(self, experiment: Experiment, why: str, *, diverged: bool = False) -> None:
        """Note a run that ends without a record: given up, or because its loss became infinite or NaN."""
        self.closed += 1
        (self.diverged if diverged else self.lost).append(experiment.name)
        self.tell(f"{self.closed}/{self.missing} {experiment.name} {why}")

    def close(self) -> None:
        """Raise NonFiniteLossError or UnfinishedRunsError if some experiments ended without a record."""
        of = f"of {self.missing} experiments"
        if self.lost:
            lost = f"{len(self.lost)} {of} were given up, see above: {', '.join(self.lost)}"
            raise UnfinishedRunsError(f"{self.name}: {lost}; the same command tries them again")
        if self.diverged:
            diverged = f"{len(self.diverged)} {of} diverged and have no record: {', '.join(self.diverged)}"
            raise of_every_rank(NonFiniteLossError(f"{self.name}: {diverged}"))


def in_turn(missing: Sequence[Experiment], ledger: Ledger, *, device: str | None, workers: int) -> None:
    """Run experiments one after another; what another process works on is left for the end and then waited for."""
    queue = deque((experiment, False) for experiment in missing)
    spent = 0.0
    while queue:
        experiment, wait = queue.popleft()
        begun = time.monotonic()
        try:
            found = train(experiment, device=device, wait=wait, workers=workers)
        except RunBusyError:
            ledger.tell(f"{experiment.name} is another worker's and left for the end")
            queue.append((experiment, True))
            continue
        except NonFiniteLossError as error:
            ledger.without_record(experiment, f"diverged and has no record: {error}", diverged=True)
            continue
        spent += time.monotonic() - begun
        left = spent / (len(missing) - len(queue)) * len(queue)
        ledger.finished(experiment, found.content, f"about {left / 60:.0f} min left")


def existing_records(folder: Path) -> dict[str, Record]:
    """The records of a folder by fingerprint; empty when there is no folder. RecordError names a damaged file."""
    return {record.content["fingerprint"]: record for record in map(read_record, sorted(folder.glob("*.json")))}


def run_campaign(
    name: str,
    *,
    folder: Path | None = None,
    device: str | None = None,
    only: str = "",
    workers: int = 0,
    processes: int = 1,
    minutes: float | None = None,
) -> list[Record]:
    """Run what a campaign still lacks, and return all its records that are there then.

    Args:
        name, folder: a key of CAMPAIGNS, and where its records go; default `book/results/<name>/`.
        device: torch device; default is cuda where there is one, else cpu.
        only: only labels that contain this text.
        workers: processes that prepare batches ahead in every run; any number gives the same.
        processes, minutes: runs at once, and time after which they are stopped: see :mod:`apd.study.parallel`.

    Raises CampaignError for an argument out of its range; at the end NonFiniteLossError or UnfinishedRunsError if
    experiments diverged or were given up; and all that `train` raises.
    """
    for option, value, least in (("workers", workers, 0), ("processes", processes, 1)):
        if not least <= value <= 256:
            raise CampaignError(f"{option} = {value}: expected a whole number of at least {least} and at most 256")
    if minutes is not None and not 0 < minutes < math.inf:
        raise CampaignError(f"minutes = {minutes}: expected a number above 0")
    ranks = join()
    if ranks.size > 1 and (processes > 1 or minutes is not None):
        raise CampaignError("processes and minutes are for one process with one device: start it without torchrun")
    folder, known = Path(os.path.expanduser(folder or records_folder(name))), experiments_of(name)
    experiments = [e for e in known if only in e.name]
    if not experiments:
        raise CampaignError(f"only = {only!r}: expected a part of one of the labels {', '.join(e.name for e in known)}")
    done = ranks.on_rank_zero(lambda: existing_records(folder))
    missing = [e for e in experiments if fingerprint(e) not in done]
    if missing:  # before hours go into a run whose record cannot be written
        probe = folder / f".{os.getpid()}.probe"
        ranks.on_rank_zero(lambda: [write_atomically(probe, ""), probe.unlink()])
    ranks.print(f"{name}: {len(experiments)} experiments, {len(experiments) - len(missing)} have a record")
    if retired := done.keys() - set(map(fingerprint, known)):
        such = Path(next(record.source for key, record in done.items() if key in retired)).name
        what = f"{len(retired)} records there are of no experiment of this campaign, such as {such}"
        ranks.print(f"{name}: {what}: its recipe has changed since; they are left alone and not counted")
    ledger = Ledger(name, folder, done, len(missing), ranks)
    if processes == 1 and minutes is None:
        in_turn(missing, ledger, device=device, workers=workers)
    else:
        side_by_side(missing, ledger, device=device, processes=processes, minutes=minutes, workers=workers)
    ledger.close()
    return [done[fingerprint(e)] for e in experiments if fingerprint(e) in done]


def parsed(arguments: list[str] | None, prog: str) -> dict[str, Any]:
    """The keywords of `run_campaign` from a command line, without a library: a bare GPU machine has none."""
    parser = argparse.ArgumentParser(prog=prog, description=f"Campaigns: {', '.join(CAMPAIGNS)}.")

    def refuse(message: str) -> NoReturn:
        raise UsageError(f"{message}; {prog} --help lists the options")

    parser.error = refuse
    parser.add_argument("name", metavar="NAME", help="of the campaign")
    parser.add_argument("--records", dest="folder", type=Path, help="folder of the records (book/results/NAME)")
    parser.add_argument("--device", help="torch device (cuda where there is one, else cpu)")
    parser.add_argument("--only", default="", help="run only experiments whose label contains this text")
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare batches ahead in every run (0)")
    parser.add_argument("--processes", type=int, default=1, help="runs side by side on the device (1)")
    parser.add_argument("--minutes", type=float, help="stop after these, with checkpoints (no limit)")
    return vars(parser.parse_args(arguments))


@printing_safely
def main(arguments: list[str] | None = None) -> int:
    """The command line of `python -m apd.study.campaign`. Returns the exit code."""
    prog = "python -m apd.study.campaign"
    return exit_code_of(lambda: 0 * len(run_campaign(**parsed(arguments, prog))), "apd.study.campaign")


if __name__ == "__main__":
    raise SystemExit(main())
