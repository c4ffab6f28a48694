"""The training step, and the loop around it. On a CPU an interrupted run ends bit-equal to an uninterrupted one."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._pytree import keystr, tree_leaves_with_path
from tqdm import tqdm

from apd.config.datasets import Splits, what_changed
from apd.config.experiment import TrainingConfig
from apd.config.identity import fingerprint
from apd.config.inference_options import WHOLE_IMAGE, InferenceOptions
from apd.data.batches import Batch as PixelBatch
from apd.data.batches import InstanceBatch
from apd.data.images import DataError
from apd.normalizers import AccumulatedCounts, across_processes
from apd.training.checkpoint import CheckpointError, load_newest, save_checkpoint, save_tensors
from apd.training.detection import DetectionTask
from apd.training.distributed import ALONE, Ranks, of_every_rank
from apd.training.run_log import Board, LogLines, NonFiniteLossError, RunLog, StoppedError, StopRequest, values_of
from apd.training.segmentation import SegmentationTask
from apd.training.task import CapturedStep, build_optimisers, measure_teacher
from apd.validation import values_unchecked

CHECKPOINT_SECONDS = 60.0
Task = SegmentationTask | DetectionTask
Batch = PixelBatch | InstanceBatch
Progress = bool | Literal["lines"] | None  # see `apd.training.run.train`


class TrainStep:
    """What a batch does to the weights of the student, in place, and all that is kept from one batch to the next."""

    def __init__(self, task: Task, student: nn.Module, teacher: nn.Module | None, ranks: Ranks = ALONE) -> None:
        self.task, self.student, self.ranks = task, student, ranks
        self.training, self.device = task.experiment.training, next(student.parameters()).device
        layout = torch.channels_last if self.training.channels_last else torch.contiguous_format
        for network in filter(None, (student, teacher)):
            network.to(memory_format=layout)
        ranks.synchronise_batch_norm(student)
        task.prepare(student, teacher)
        self.distillers = task.distillers
        self.optimisers = build_optimisers(task.experiment, task.parameter_groups(student), self.distillers.values())
        decay = self.training.ema_decay
        self.average = decay and AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
        self.losses: Any = ranks.wrapped(task)
        captured = self.training.cuda_graph and self.device.type == "cuda" and ranks.size == 1
        self.captured = CapturedStep(self.gradients) if captured else None
        self.checks_values = not captured

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Update student and heads by this rank's part of a batch. Returns the detached terms of the whole batch."""
        if self.captured is None or self.captured.graph is None:
            for optimiser in self.optimisers.values():
                optimiser.zero_grad(set_to_none=True)
        micro_batches = self.task.micro_batches(batch, self.device)
        # later the loop looks at the losses alone
        with nullcontext() if self.checks_values else values_unchecked():
            terms = (self.captured or self.gradients)(*micro_batches)
        self.checks_values = False
        if self.training.clip_norm is not None:
            trained = [p for group in self.optimisers["student"].param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(trained, self.training.clip_norm)
        for optimiser in self.optimisers.values():
            optimiser.step()
        if self.average is not None:
            self.average.update_parameters(self.student)
        return terms if self.ranks.size == 1 else self.ranks.mean(terms)

    def gradients(self, *micro_batches: Batch) -> dict[str, Tensor]:
        """Forward of teacher and student, and backward, a micro-batch at a time; returns the terms of them together."""
        teachers = [self.task.teacher_outputs(batch) for batch in micro_batches]
        of_all_ranks = across_processes if self.ranks.size > 1 else nullcontext
        of_all_parts = self._global_counts(micro_batches, teachers)
        shares: list[dict[str, Tensor]] = []
        for number, (batch, teacher) in enumerate(zip(micro_batches, teachers, strict=True), start=1):
            # DistributedDataParallel averages gradients over ranks with the last micro-batch
            alone = self.ranks.size == 1 or number == len(micro_batches)
            with of_all_ranks(), of_all_parts(), nullcontext() if alone else self.losses.no_sync():
                terms = self.losses(*batch, teacher)
                terms["loss"].backward()
            shares.append({name: value.detach() for name, value in terms.items()})
        if len(shares) == 1:
            return shares[0]
        return {name: torch.stack([share[name] for share in shares]).sum(0) for name in shares[0]}

    def _global_counts(self, micro_batches: tuple[Batch, ...], teachers: list) -> Callable[[], AbstractContextManager]:
        """In this context the losses divide by the counts of all micro-batches, not of the one that is computed."""
        if len(micro_batches) == 1:
            return nullcontext
        counts = AccumulatedCounts()
        for batch, teacher in zip(micro_batches, teachers, strict=True):
            with counts.counting():
                self.task.count(*batch, teacher)
        return counts.computing


def learning_rate_factors(training: TrainingConfig, step: int) -> dict[str, float]:
    """What learning rates are multiplied by after so many steps; a teacher's head, if it follows one, by poly.

    The student's is (1 − step/iterations)^power, or a tenth for each milestone that is reached, times its warm-up.
    """
    poly = scheduled = (1 - step / training.iterations) ** training.power
    if training.schedule == "steps":
        scheduled = 0.1 ** sum(milestone <= step for milestone in training.milestones)
    return {"student": scheduled * min(1.0, (step + 1) / max(training.warmup, 1)), "teacher_heads": poly}


class Trainer:
    """The state of one run and its loop. `apd.training.run.train` is the way in."""

    def __init__(
        self,
        task: Task,
        folder: Path,
        splits: Splits,
        student: nn.Module,
        teacher: nn.Module | None,
        *,
        progress: Progress = False,
        ranks: Ranks = ALONE,
        workers: int = 0,
        tensorboard: bool = False,
        origin: dict[str, Any] | None = None,  # of this process, for the history
        require_held: Callable[[], None] = lambda: None,  # raises where the folder is no longer this process's
    ) -> None:
        self.task, self.experiment, self.folder, self.splits = task, task.experiment, folder, splits
        self.student, self.teacher, self.progress, self.ranks, self.workers = student, teacher, progress, ranks, workers
        self.step = TrainStep(task, student, teacher, ranks)
        self.device, self.distillers = self.step.device, self.step.distillers
        self.optimisers, self.average = self.step.optimisers, self.step.average
        self.evaluated = student if self.average is None else self.average.module  # the network that is scored
        average = {} if self.average is None else {"average": self.average}
        self.beside = nn.ModuleDict({"distillers": self.distillers} | average)  # the student, in a checkpoint
        self.log, self.checkpoints = RunLog(folder / "log.jsonl"), folder / "checkpoints"
        self.tensorboard = tensorboard and ranks.first
        self.origin, self.require_held = origin or {}, require_held
        self.best: dict[str, Tensor] = {}  # weights at the best score on val so far, where those are kept
        self.facts: dict[str, Any] = {"seconds": 0.0, "evaluations": [], "teacher": None}
        self.begun_with = {"settings": fingerprint(self.experiment), "weights of the teacher": task.teacher_sha256}

    def execute(self, on_step: Callable[[int], None] | None = None) -> None:
        """Resume where the newest whole checkpoint stands, train to the end, and take the weights that are kept."""
        step, training, ranks = (first := self._resume()), self.experiment.training, self.ranks
        if self.teacher is not None and self.facts["teacher"] is None:
            self.facts["teacher"] = measure_teacher(self.task, self.teacher, self.splits, ranks)
        if self.tensorboard:
            self.log.board = Board(self.folder / "tensorboard", step)
        options = dict(start=step, ranks=ranks, workers=self.workers, device=self.device)
        batches = () if self.ended_early() else self.task.batches(self.splits.train, **options)
        milestones = {training.iterations * (i + 1) // training.evaluations for i in range(training.evaluations)}
        hidden, on_val = not ranks.first or (None if self.progress is None else not self.progress), ""
        make = LogLines if self.progress == "lines" and not sys.stderr.isatty() else tqdm
        bar = make(total=training.iterations, initial=step, desc=self.experiment.name, disable=hidden)
        pending: list[tuple[int, dict[str, float], Callable[[], dict[str, float]], Batch]] = []

        def available() -> Iterator[Batch]:
            try:
                yield from batches
            except DataError:
                if ranks.size == 1 and step > first:  # others wait for this rank elsewhere
                    for looked_at in pending:
                        self._note(*looked_at)
                    self._save(step)
                raise

        self.student.train()
        saved_at, core_tick = (tick := time.perf_counter()), time.process_time()
        with StopRequest(notice=ranks.first) as stop, bar, closing(available()) as ready:
            for batch in ready:
                self.set_learning_rates(step)
                terms = self.step(batch)
                taken = {"seconds": time.perf_counter() - tick}
                if self.device.type == "cpu":
                    taken["core_seconds"] = time.process_time() - core_tick
                pending.append((step, taken, values_of(terms), batch))
                step += 1
                stopping, late = ranks.any(stop.requested, tick - saved_at > CHECKPOINT_SECONDS)
                ended = step == training.iterations
                # terms are looked at one step late, so that a GPU with work to do is never waited for
                while len(pending) > (0 if stopping or ended or late or step in milestones else 1):
                    bar.set_postfix_str(f"loss {self._note(*pending.pop(0)):.4f}{on_val}", refresh=False)
                if pending and self.device.type == "cuda":  # with the wait for the step before: a busy GPU's own pace
                    taken["seconds"] = time.perf_counter() - tick
                bar.update()
                if step in milestones:
                    measured = self.measured(self.splits.val)
                    self.facts["evaluations"].append({"step": step, "split": "val", **measured})
                    if training.keep == "best" and self.best_evaluation()["step"] == step:
                        self.best = {name: value.cpu().clone() for name, value in self.evaluated.state_dict().items()}
                    ended = ended or self.ended_early()
                    score, value = self.task.headline(measured)
                    on_val = f", {score} {value:.4f} on val"
                    bar.set_postfix_str(f"{bar.postfix.partition(', ')[0]}{on_val}")
                    if self.log.board is not None:
                        self.log.board.validation(step, score, value, self.evaluated.eval(), self.splits.val)
                    self.student.train()
                self.facts["seconds"] += time.perf_counter() - tick
                if stopping or ended or late:
                    self._save(step)
                    saved_at = time.perf_counter()
                if stopping:
                    after = f"stopped at step {step}; the same command goes on from there ({self.folder.name})"
                    raise of_every_rank(StoppedError(after))
                if on_step is not None:
                    on_step(step)
                if ended and step < training.iterations:
                    best = f"the best score on val is that of step {self.best_evaluation()['step']}"
                    ranks.print(f"{self.experiment.name}: ended early, at step {step}: {best}")
                    break
                tick, core_tick = time.perf_counter(), time.process_time()
        if self.best:
            self.evaluated.load_state_dict(self.best)

    def best_evaluation(self) -> dict[str, Any]:
        """The first of the evaluations on val with the best score; there is one."""
        return max(self.facts["evaluations"], key=lambda evaluation: self.task.headline(evaluation)[1])

    def ended_early(self) -> bool:
        """Whether the patience is used up: so many evaluations came after the best one."""
        found, patience = self.facts["evaluations"], self.experiment.training.patience
        return bool(patience and found) and found.index(self.best_evaluation()) + patience < len(found)

    def set_learning_rates(self, step: int) -> None:
        """Of every group that follows a schedule: those that have a `base_rate`."""
        factors = learning_rate_factors(self.experiment.training, step)
        for name, optimiser in self.optimisers.items():
            for group in optimiser.param_groups:
                if "base_rate" in group:
                    group["lr"] = group["base_rate"] * factors[name]

    def _note(self, step: int, taken: dict[str, float], terms: Callable[[], dict[str, float]], batch: Batch) -> float:
        """Log the terms of a step, and return its loss; stop the run if one of them is not a finite number."""
        values = terms()
        wrong = [f"{name} = {value}" for name, value in values.items() if value - value != 0]  # inf - inf, nan: not 0
        if wrong:
            number = "" if self.ranks.first else f"-rank{self.ranks.rank}"  # each rank has a part of the batch
            saved = f"the batch is saved in {(path := self.folder / f'non-finite-batch{number}.safetensors')}"
            try:
                save_tensors({keystr(place)[1:]: value for place, value in tree_leaves_with_path(batch)}, path)
            except Exception as error:  # safetensors has a type of its own; the loss is the greater news
                saved = f"the batch could not be saved in {path} ({error})"
            fix = "Lower --training.learning-rate, set --training.clip-norm or use --precision fp32, then start again"
            raise of_every_rank(NonFiniteLossError(f"step {step}: {', '.join(wrong)}; {saved}. {fix}"))
        if self.ranks.rank == 0:
            training = self.experiment.training
            learning_rate = training.learning_rate * learning_rate_factors(training, step)["student"]
            taken = {name: round(seconds, 6) for name, seconds in taken.items()}
            self.log.write({"step": step, **taken, "learning_rate": learning_rate, **values})
        return values["loss"]

    def measured(self, dataset: Any, inference: InferenceOptions = WHOLE_IMAGE) -> dict[str, Any]:
        """What the task measures of the network that is scored, each rank looking at its part of the images."""
        self.ranks.broadcast_buffers(self.evaluated)
        return self.task.evaluate(self.evaluated, dataset, inference, self.ranks)

    def _save(self, step: int) -> None:
        state = self.beside.state_dict() | {f"best.{name}": value for name, value in self.best.items()}
        state |= self.ranks.generators(self.device)
        self.facts |= self.log.facts()
        self.facts["history"][-1]["steps"][1] = step
        optimisers = {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()}
        parts = {"weights": self.student.state_dict(), "state": state, "optimisers": optimisers, "facts": self.facts}
        self.ranks.on_rank_zero(lambda: [self.require_held(), save_checkpoint(self.checkpoints, step, **parts)])

    def _resume(self) -> int:
        """Load the newest whole checkpoint, if there is one, cut the log to its length, and return the steps done."""

        def newest() -> dict[str, Any] | None:
            checkpoint, passed_over = load_newest(self.checkpoints)
            self.facts["identities"] = today = self.splits.identities(self.experiment.data.evaluation_split)
            if checkpoint and (found := what_changed(checkpoint["facts"]["identities"], today)):
                raise CheckpointError(f"{self.folder} was begun with other data: {found}; restore them or delete it")
            for sentence in passed_over:
                print(f"{self.experiment.name}: {sentence}", flush=True)
            facts = checkpoint["facts"] if checkpoint else {"begun_with": {}, "log_parts": []}
            for name, began in facts["begun_with"].items():
                if began != (now := self.begun_with.get(name)):
                    changed = f"other {name} than this run was begun with (sha256 {now!s:.12}, then {began!s:.12})"
                    raise CheckpointError(f"{changed}: restore them, or delete {self.checkpoints} to begin anew")
            self.log.start_over(facts["log_parts"])
            return checkpoint

        checkpoint = self.ranks.on_rank_zero(newest)
        step = checkpoint["step"] if checkpoint else 0
        self.ranks.seed(self.experiment.seed, step)  # dropout; everything else has generators of its own
        now = datetime.now(UTC).isoformat(timespec="seconds")
        begun = {"started": now, "history": [], "begun_with": self.begun_with}
        self.facts = checkpoint["facts"] if checkpoint else self.facts | begun
        self.facts["history"].append({"started": now, **self.origin, "steps": [step, step]})
        if checkpoint is None:
            return 0
        state = checkpoint["state"]
        try:
            self.student.load_state_dict(checkpoint["weights"])
            self.beside.load_state_dict({name: state[name] for name in self.beside.state_dict()})
            self.best = {name[5:]: value for name, value in state.items() if name.startswith("best.")}
            for name, optimiser in self.optimisers.items():
                optimiser.load_state_dict(checkpoint["optimisers"][name])
        except (KeyError, RuntimeError, ValueError) as error:
            other = f"{self.checkpoints} are of another version of this package; delete them to begin anew"
            raise of_every_rank(CheckpointError(other)) from error
        self.ranks.set_generators(state, self.device)
        self.ranks.print(f"{self.experiment.name}: resumed at step {step}")
        return step
