"""Campaigns: named lists of experiments whose records are the study's evidence.

A campaign can be stopped and continued at any time, on any machine: experiments with a record are skipped. They are
ordered seed by seed, so that one stopped half-way is still a fair comparison of all its methods.

Workers that share a file system pass each other's runs over, or take a shard each. Needs no command-line library:
`python -m apd.study.campaign NAME`, or `torchrun -m apd.study.campaign NAME` for several processes on each run.
"""

import argparse
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from apd.config.experiment import Experiment
from apd.config.identity import fingerprint
from apd.fields import did_you_mean
from apd.study.ablations import (
    Arm,
    combined_arms,
    heads_arm,
    option_arms,
    rival_arms,
    term_arms,
    trial_arms,
    tuned_arms,
)
from apd.study.camvid_campaigns import (
    camvid_small,
    camvid_small_ablations,
    camvid_small_rates,
    camvid_small_rivals,
    camvid_small_tuning,
)
from apd.study.coco_recipes import tiny_coco
from apd.study.detection_recipes import scenes_detection, scenes_detection_tuning
from apd.study.pair_recipes import camvid_pairs, scenes_pairs, scenes_pairs_tuning
from apd.study.parallel import side_by_side
from apd.study.real_campaigns import REAL_CAMPAIGNS
from apd.study.recipes import METHODS, Method, distillers_of, lengthened, recipe
from apd.study.runner import Ledger, in_turn
from apd.study.shard import WHOLE, Shard
from apd.training.distributed import join
from apd.training.exit_codes import UsageError, exit_code_of
from apd.training.record import Record, read_record
from apd.training.run import records_folder


def scenes_experiment(method: Method, seed: int, context_shift: float) -> Experiment:
    """The tiny recipe with twice the student's steps and four times the teacher's: what evidence on scenes rests on."""
    experiment = recipe("tiny", method, seed=seed, context_shift=context_shift)
    experiment = lengthened(experiment, student=2, teacher=4)
    return replace(experiment, name=f"{method}-context{context_shift:g}-seed{seed}")


def scenes_tiny() -> Iterator[Experiment]:
    """The four methods on built-in scenes without and with a context of each image's own, five seeds."""
    for seed in range(5):
        for context_shift in (0.0, 1.0):
            for method in METHODS:
                yield scenes_experiment(method, seed, context_shift)


def scenes_tiny_tuning() -> Iterator[Experiment]:
    """How the tiny recipe's rates were chosen: by the score on val after the last step, one seed, context_shift 1.

    One rate serves all methods, so each is tried with all of them: a rate at which the plain student is at its best
    can be too high for the larger gradient of a sum of losses.
    """
    for rate in (0.01, 0.03, 0.1):
        for method in ("student", "pixel_kd", "apd_without_kd", "apd"):
            experiment = scenes_experiment(method, seed=0, context_shift=1.0)
            training = replace(experiment.training, learning_rate=rate)
            yield replace(experiment, training=training, name=f"{method}-rate{rate:g}")
    teacher = scenes_experiment("student", seed=0, context_shift=1.0).teacher_experiment()
    for rate in (0.03, 0.1, 0.3):
        training = replace(teacher.training, learning_rate=rate)
        yield replace(teacher, training=training, name=f"teacher-rate{rate:g}")


def scenes_longer() -> Iterator[Experiment]:
    """The methods with four times the steps that `scenes-tiny` gives its students, taught by the same teacher.

    The rates are those of the shorter runs and were not tried anew.
    """
    for seed in range(5):
        for context_shift in (1.0, 0.0):
            for method in METHODS:
                yield lengthened(scenes_experiment(method, seed, context_shift), student=4, teacher=1)


def with_arms(arms: Iterable[Arm], seeds: int, context_shift: float) -> Iterator[Experiment]:
    """Each seed with every arm, on scenes."""
    for seed in range(seeds):
        base = scenes_experiment("student", seed, context_shift)
        for arm in arms:
            yield replace(base, name=f"{arm.key}-context{context_shift:g}-seed{seed}", distillers=arm.distillers)


def scenes_terms() -> Iterator[Experiment]:
    """The combinations of APD's terms that no other campaign has, where every image has a context of its own."""
    yield from with_arms(term_arms(), seeds=5, context_shift=1.0)


def scenes_options() -> Iterator[Experiment]:
    """The complete method with one choice changed, where every image has a context of its own."""
    yield from with_arms(option_arms(), seeds=5, context_shift=1.0)


def scenes_rivals() -> Iterator[Experiment]:
    """The other methods at their published weights, where every image has a context of its own."""
    yield from with_arms(rival_arms(), seeds=5, context_shift=1.0)


def scenes_combined() -> Iterator[Experiment]:
    """APD with each of the other methods at its best weight, where every image has a context of its own."""
    yield from with_arms(combined_arms(), seeds=5, context_shift=1.0)


def scenes_rivals_tuning() -> Iterator[Experiment]:
    """A tenth of each method's weights, and ten times them, one seed.

    To be read by the score on val after the last step; with the weights as they are, the runs are those of
    `scenes-rivals` and `scenes-tiny`.
    """
    yield from with_arms(trial_arms(), seeds=1, context_shift=1.0)


def scenes_tuned() -> Iterator[Experiment]:
    """The methods that did better on val with another weight than their published one, at that weight."""
    yield from with_arms(tuned_arms(), seeds=5, context_shift=1.0)


def scenes_heads() -> Iterator[Experiment]:
    """With and without projection heads, which takes a student whose features are as wide as the teacher's."""
    arms = {method: distillers_of(method) for method in ("student", "pixel_kd", "apd")}
    arms[heads_arm().key] = heads_arm().distillers
    for seed in range(5):
        base = scenes_experiment("student", seed, context_shift=1.0)
        wide = replace(base.network, head_width=base.teacher.network.head_width)
        for key, distillers in arms.items():
            yield replace(base, network=wide, distillers=distillers, name=f"{key}-context1-seed{seed}")


def scenes_dial() -> Iterator[Experiment]:
    """What the dial does between its ends, and to prototypes of the batch; the ends are in `scenes-tiny`."""
    batch = next(arm for arm in option_arms() if arm.key == "scope_batch")
    for seed in range(5):
        for context_shift in (0.0, 0.25, 0.5, 0.75, 1.0):
            if 0 < context_shift < 1:
                for method in ("pixel_kd", "apd"):
                    yield scenes_experiment(method, seed, context_shift)
            base = scenes_experiment("student", seed, context_shift)
            name = f"{batch.key}-context{context_shift:g}-seed{seed}"
            yield replace(base, name=name, distillers=batch.distillers)


CAMPAIGNS: dict[str, Callable[[], Iterator[Experiment]]] = {
    "scenes-tiny": scenes_tiny,
    "scenes-tiny-tuning": scenes_tiny_tuning,
    "scenes-longer": scenes_longer,
    "scenes-dial": scenes_dial,
    "scenes-terms": scenes_terms,
    "scenes-options": scenes_options,
    "scenes-rivals": scenes_rivals,
    "scenes-rivals-tuning": scenes_rivals_tuning,
    "scenes-tuned": scenes_tuned,
    "scenes-heads": scenes_heads,
    "scenes-combined": scenes_combined,
    "scenes-pairs": scenes_pairs,
    "scenes-pairs-tuning": scenes_pairs_tuning,
    "camvid-small": camvid_small,
    "camvid-small-tuning": camvid_small_tuning,
    "camvid-small-rates": camvid_small_rates,
    "camvid-small-ablations": camvid_small_ablations,
    "camvid-small-rivals": camvid_small_rivals,
    "camvid-pairs": camvid_pairs,
    **REAL_CAMPAIGNS,
    "scenes-detection": scenes_detection,
    "scenes-detection-tuning": scenes_detection_tuning,
    "tiny-coco": tiny_coco,
}


class CampaignError(UsageError):
    """There is no campaign or experiment of that name, or a number is wrong; the message tells what was expected."""


def experiments_of(name: str) -> list[Experiment]:
    """The experiments of a campaign, in order.

    Raises:
        CampaignError: the name is unknown.
    """
    if name not in CAMPAIGNS:
        hint = did_you_mean(name, CAMPAIGNS)
        raise CampaignError(f"there is no campaign {name!r}: expected one of {', '.join(CAMPAIGNS)}{hint}")
    return list(CAMPAIGNS[name]())


def existing_records(folder: Path) -> dict[str, Record]:
    """The records of a folder by fingerprint; empty when there is no folder.

    Raises:
        RecordError: one of the files is damaged; it is named, and deleting it has its run repeated or found again.
    """
    return {record.content["fingerprint"]: record for record in map(read_record, sorted(folder.glob("*.json")))}


def run_campaign(
    name: str,
    *,
    folder: Path | None = None,
    device: str | None = None,
    only: str = "",
    shard: Shard = WHOLE,
    progress: bool | None = None,
    workers: int = 0,
    processes: int = 1,
    minutes: float | None = None,
) -> list[Record]:
    """Run what a campaign, or one shard of it, still lacks, and return all its records that are there then.

    Workers may share one file system: a run that another holds is left for the end and then waited for, and a teacher
    is trained once.

    Args:
        name: a key of CAMPAIGNS.
        folder: where its records go; default `book/results/<name>/`.
        device: torch device; default is cuda where there is one, else cpu.
        only: run only the experiments whose label contains this text.
        shard: this worker's part of them; may be empty.
        progress: bars of the single runs; None shows them on a terminal only.
        workers: processes that prepare batches ahead in every run, teachers' included; any number gives the same.
        processes: runs side by side on the device, see :func:`apd.study.parallel.side_by_side`.
        minutes: after these, runs are stopped with a checkpoint; none is begun that cannot finish before.

    Raises:
        CampaignError: the name is unknown, `only` fits no experiment, or a number is out of its range.
        RecordError: one of the records there is damaged.
        NonFiniteLossError: at the end, when all others are done, if a loss of some experiments became infinite or NaN.
        UnfinishedRunsError: at the end, if some side by side were killed twice or do not fit into the GPU's memory.
        Everything that `train` raises; the records written so far stay.
    """
    if workers < 0:
        raise CampaignError(f"workers = {workers}: expected a whole number of at least 0")
    if processes < 1:
        raise CampaignError(f"processes = {processes}: expected a whole number of at least 1")
    if minutes is not None and not 0 < minutes < math.inf:
        raise CampaignError(f"minutes = {minutes}: expected a number above 0")
    ranks = join()
    if ranks.size > 1 and (processes > 1 or minutes is not None):
        raise CampaignError("processes and minutes are for one process with one device: start it without torchrun")
    folder = folder or records_folder(name)
    known = experiments_of(name)
    experiments = [e for e in known if only in e.name]
    if not experiments:
        raise CampaignError(f"only = {only!r}: expected a part of one of the labels {', '.join(e.name for e in known)}")
    experiments = shard.of_list(experiments)
    done = ranks.on_rank_zero(lambda: existing_records(folder))
    missing = [e for e in experiments if fingerprint(e) not in done]
    part = f", shard {shard.number}/{shard.of}" if shard.of > 1 else ""
    ranks.print(f"{name}{part}: {len(experiments)} experiments, {len(experiments) - len(missing)} have a record")
    if retired := [record.source for print_, record in done.items() if print_ not in set(map(fingerprint, known))]:
        ranks.print(
            f"{name}: {len(retired)} records there are of no experiment of this campaign, such as "
            f"{Path(retired[0]).name}: its recipe has changed since; they are left alone and not counted"
        )
    ledger = Ledger(name, folder, done, len(missing), ranks)
    if processes == 1 and minutes is None:
        in_turn(missing, ledger, device=device, progress=progress, workers=workers)
    else:
        side_by_side(missing, ledger, device=device, processes=processes, minutes=minutes, workers=workers)
    ledger.close()
    return [done[fingerprint(e)] for e in experiments if fingerprint(e) in done]


def main(arguments: list[str] | None = None) -> int:
    """The command line of `python -m apd.study.campaign`. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m apd.study.campaign", description=__doc__.split("\n")[0])
    parser.add_argument("name", help=f"one of {', '.join(CAMPAIGNS)}")
    parser.add_argument("--records", type=Path, help="folder of the records (default: book/results/NAME)")
    parser.add_argument("--device", help="torch device (default: cuda where there is one, else cpu)")
    parser.add_argument("--only", default="", help="run only experiments whose label contains this text")
    parser.add_argument("--shard", default="", help="i/n: run only worker i's part when n workers share the campaign")
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare batches ahead (default: 0)")
    parser.add_argument("--processes", type=int, default=1, help="runs side by side on the device (default: 1)")
    parser.add_argument("--minutes", type=float, help="stop after these, with checkpoints (default: no limit)")
    chosen = parser.parse_args(arguments)

    def run() -> int:
        run_campaign(
            chosen.name,
            folder=chosen.records,
            device=chosen.device,
            only=chosen.only,
            shard=Shard.parse(chosen.shard),
            workers=chosen.workers,
            processes=chosen.processes,
            minutes=chosen.minutes,
        )
        return 0

    return exit_code_of(run, "apd.study.campaign")


if __name__ == "__main__":
    raise SystemExit(main())
