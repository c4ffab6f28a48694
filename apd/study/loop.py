"""The loop of one run: from a batch to an update, and from a kill back to the step before it.

Everything that varies from step to step is either a pure function of the seed and the step (order of images,
augmentation, rates) or is in the checkpoint (weights, heads, both optimisers, random generators), so on a CPU an
interrupted run and an uninterrupted one end bit-equal.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from apd.data.batches import Batch, training_batches
from apd.evaluate.inference import autocast, confusion_of, resolve_precision
from apd.models.segmenter import Segmenter, SegOutput
from apd.study.build import Splits, build_augmentation, build_optimisers, set_poly_rates
from apd.study.checkpoint import load_newest, save_checkpoint
from apd.study.distillers import build_distiller
from apd.study.experiment import Experiment
from apd.study.log import NonFiniteLossError, RunLog, StopRequest, save_batch
from apd.study.teacher import measure_teacher

CHECKPOINT_SECONDS = 60.0


def task_loss(logits_BKhw: Tensor, labels_BHW: Tensor, ignore_index: int) -> Tensor:
    """Mean cross-entropy over valid pixels after upsampling; a connected zero when no pixel is valid."""
    logits_BKHW = F.interpolate(logits_BKhw.float(), labels_BHW.shape[-2:], mode="bilinear", align_corners=True)
    total = F.cross_entropy(logits_BKHW, labels_BHW, ignore_index=ignore_index, reduction="sum")
    return total / (labels_BHW != ignore_index).sum().clamp(min=1)


class Run:
    """The state of one run and its loop. `apd.study.train.train` is the way in."""

    def __init__(
        self,
        experiment: Experiment,
        folder: Path,
        device: torch.device,
        progress: bool | None,
        splits: Splits,
        student: Segmenter,
        teacher: Segmenter | None,
    ) -> None:
        self.experiment, self.folder, self.device, self.progress = experiment, folder, device, progress
        self.splits, self.student, self.teacher = splits, student, teacher
        self.precision = resolve_precision(device, experiment.precision)
        self.ignore_index = splits.train.spec.ignore_index
        self.distillers = nn.ModuleDict(
            {
                config.method: build_distiller(
                    config,
                    student=self.student,
                    teacher=self.teacher,
                    ignore_index=self.ignore_index,
                    seed=experiment.seed,
                )
                for config in experiment.distillers
            }
        )
        self.optimisers = build_optimisers(
            experiment, self.student, zip(experiment.distillers, self.distillers.values(), strict=True)
        )
        decay = experiment.training.ema_decay
        self.average = decay and AveragedModel(self.student, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
        self.log = RunLog(folder / "log.jsonl")
        self.facts: dict = {"seconds": 0.0, "log_lines": 0, "evaluations": [], "teacher": None, "started": ""}

    def execute(self, on_step: Callable[[int], None] | None = None) -> None:
        """Resume where the newest whole checkpoint stands, and train to the last step."""
        torch.manual_seed(self.experiment.seed)  # dropout; everything else has generators of its own
        step = self._resume()
        if self.teacher is not None and self.facts["teacher"] is None:
            matrix = measure_teacher(self.experiment, self.teacher, self.splits, self.precision)
            self.facts["teacher"] = {"confusion": matrix.tolist()}
        self._train_from(step, on_step)

    def _train_from(self, step: int, on_step: Callable[[int], None] | None) -> None:
        training = self.experiment.training
        batches = training_batches(
            self.splits.train,
            batch_size=training.batch_size,
            augmentation=build_augmentation(self.experiment.data),
            seed=self.experiment.seed,
            start_iteration=step,
            iterations=training.iterations,
        )
        milestones = {training.iterations * (i + 1) // training.evaluations for i in range(training.evaluations)}
        bar = tqdm(
            total=training.iterations,
            initial=step,
            desc=self.experiment.name,
            disable=None if self.progress is None else not self.progress,
        )
        pending: list[tuple[int, float, dict[str, Tensor], Batch]] = []
        self.student.train()
        saved_at = tick = time.perf_counter()
        with StopRequest() as stop, bar:
            for batch in batches:
                for optimiser in self.optimisers.values():
                    set_poly_rates(optimiser, step, training.iterations, training.power)
                terms = self._step(batch)
                pending.append((step, time.perf_counter() - tick, terms, batch))
                step += 1
                bar.update()
                save = stop.requested or step == training.iterations or tick - saved_at > CHECKPOINT_SECONDS
                # terms are looked at one step late, so that a GPU with work to do is never waited for
                while len(pending) > (0 if save or step in milestones else 1):
                    self._note(*pending.pop(0))
                if step in milestones:
                    self._evaluate_on_the_way(step)
                    self.student.train()
                self.facts["seconds"] += time.perf_counter() - tick
                if save:
                    self._save(step)
                    saved_at = time.perf_counter()
                    stop.leave_if_requested(self.folder, step)
                if on_step is not None:
                    on_step(step)
                tick = time.perf_counter()

    def _step(self, batch: Batch) -> dict[str, Tensor]:
        """One update of the student, its heads and the teacher's heads. Returns the detached terms."""
        images = batch.images_B3HW.to(self.device, memory_format=torch.channels_last, non_blocking=True)
        labels = batch.labels_BHW.to(self.device, non_blocking=True)
        with autocast(self.device, self.precision):
            student: SegOutput = self.student(images)
            with torch.no_grad():
                teacher: SegOutput | None = self.teacher(images) if self.distillers else None
        terms = {"task": task_loss(student.logits, labels, self.ignore_index)}
        loss = terms["task"]
        if student.aux is not None and self.experiment.training.auxiliary_weight:
            terms["auxiliary"] = task_loss(student.aux, labels, self.ignore_index)
            loss = loss + self.experiment.training.auxiliary_weight * terms["auxiliary"]
        for name, distiller in self.distillers.items():
            distilled = distiller(
                student_features=student.features,
                teacher_features=teacher.features,
                student_logits=student.logits,
                teacher_logits=teacher.logits,
                labels=labels,
            )
            loss = loss + distilled["loss"]
            terms |= {f"{name}.{term}": value for term, value in distilled.items() if term != "loss"}
        for optimiser in self.optimisers.values():
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if self.experiment.training.clip_norm is not None:
            trained = [p for group in self.optimisers["student"].param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(trained, self.experiment.training.clip_norm)
        for optimiser in self.optimisers.values():
            optimiser.step()
        if self.average is not None:
            self.average.update_parameters(self.student)
        return {name: value.detach() for name, value in (terms | {"loss": loss}).items()}

    def _note(self, step: int, seconds: float, terms: dict[str, Tensor], batch: Batch) -> None:
        """Log the terms of a step; stop the run if one of them is not a finite number."""
        values = dict(zip(terms, torch.stack([t.float() for t in terms.values()]).tolist(), strict=True))
        wrong = [name for name, value in values.items() if value - value != 0]  # inf - inf and nan are not 0
        if wrong:
            saved = save_batch(self.folder / "non-finite-batch.safetensors", batch)
            raise NonFiniteLossError(
                f"step {step}: {', '.join(f'{n} = {values[n]}' for n in wrong)}; {saved}. Lower "
                "training.learning_rate, set training.clip_norm or use precision fp32, then start again"
            )
        rate = (1 - step / self.experiment.training.iterations) ** self.experiment.training.power
        rate *= self.experiment.training.learning_rate
        self.log.write({"step": step, "seconds": round(seconds, 6), "learning_rate": rate, **values})

    @property
    def evaluated(self) -> nn.Module:
        """The network that is scored: the student, or the average of its weights where the experiment keeps one."""
        return self.student if self.average is None else self.average.module

    def _evaluate_on_the_way(self, step: int) -> None:
        matrix = confusion_of(self.evaluated, self.splits.val, precision=self.precision)
        self.facts["evaluations"].append({"step": step, "split": "val", "confusion": matrix.tolist()})

    def _save(self, step: int) -> None:
        state = {f"distillers.{name}": value for name, value in self.distillers.state_dict().items()}
        state["generator.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            state["generator.cuda"] = torch.cuda.get_rng_state(self.device)
        if self.average is not None:
            state |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        self.facts["log_lines"] = self.log.lines
        save_checkpoint(
            self.folder / "checkpoints",
            step,
            weights=self.student.state_dict(),
            state=state,
            optimisers={name: optimiser.state_dict() for name, optimiser in self.optimisers.items()},
            facts=self.facts,
        )

    def _resume(self) -> int:
        """Load the newest whole checkpoint, if there is one, and return the steps done."""
        checkpoint, passed_over = load_newest(self.folder / "checkpoints")
        for sentence in passed_over:
            print(f"{self.experiment.name}: {sentence}", flush=True)
        if checkpoint is None:
            self.facts["started"] = datetime.now(UTC).isoformat(timespec="seconds")
            self.log.start_over(0)
            return 0
        state = checkpoint["state"]

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}

        self.student.load_state_dict(checkpoint["weights"])
        self.distillers.load_state_dict(part("distillers."))
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(checkpoint["optimisers"][name])
        if self.average is not None:
            self.average.load_state_dict(part("average."))
        torch.set_rng_state(state["generator.cpu"])
        if self.device.type == "cuda" and "generator.cuda" in state:
            torch.cuda.set_rng_state(state["generator.cuda"], self.device)
        self.facts = checkpoint["facts"]
        self.log.start_over(self.facts["log_lines"])
        print(f"{self.experiment.name}: resumed at step {checkpoint['step']}", flush=True)
        return checkpoint["step"]
