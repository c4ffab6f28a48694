"""The training loop: one experiment in, one record out.

A run lives in `runs/<name>-<fingerprint>/`. Started again, it is found finished and its record returned, or goes on
from its newest whole checkpoint. Everything that varies from step to step is either a pure function of the seed and
the step (order of images, augmentation, rates) or is in the checkpoint (weights, heads, both optimisers, random
generators), so on a CPU an interrupted run and an uninterrupted one end bit-equal.
"""

import resource
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from apd.data.batches import Batch, training_batches
from apd.evaluate.inference import agreement_of, autocast, confusion_of, resolve_precision
from apd.models.segmenter import Segmenter, SegOutput
from apd.study.build import (
    Splits,
    build_augmentation,
    build_distiller,
    build_network,
    build_optimisers,
    build_splits,
    set_poly_rates,
)
from apd.study.checkpoint import load_newest, only_process, save_checkpoint, sha256_of
from apd.study.experiment import Experiment
from apd.study.fingerprint import fingerprint, to_dict
from apd.study.folders import run_folder
from apd.study.log import NonFiniteLossError, RunLog, StopRequest, save_batch
from apd.study.record import SCHEMA, Record, provenance, read_record
from apd.study.teacher import load_teacher, measure_teacher

CHECKPOINT_SECONDS = 60.0


def train(
    experiment: Experiment,
    *,
    device: str | None = None,
    progress: bool | None = None,
    wait: bool = False,
    on_step: Callable[[int], None] | None = None,
) -> Record:
    """Run an experiment to its end, or find it finished, and return its record.

    A teacher that has to be trained is trained first, as a run of its own that all its students share.

    Args:
        experiment: the full configuration.
        device: torch device; default is cuda where there is one, else cpu.
        progress: show a bar; None shows it on a terminal only.
        wait: when another process works on this run, wait for it instead of raising.
        on_step: called with the number of steps done after each one.

    Raises:
        RunBusyError: another process works on this run and `wait` is false.
        DataError: the data are missing or damaged.
        TeacherError: the teacher's weights do not fit or score below `teacher.expected_miou`.
        NonFiniteLossError: a loss term became infinite or NaN; the batch is saved.
        CheckpointError: the disk is full or read-only.
        StoppedError: Ctrl-C or SIGTERM; a checkpoint was written.
    """
    folder = run_folder(experiment)
    if (folder / "record.json").exists():
        return read_record(folder / "record.json")
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with only_process(folder, wait=wait):
        if (folder / "record.json").exists():  # the process we waited for has finished it
            return read_record(folder / "record.json")
        teacher_weights = None
        if experiment.teacher is not None:
            teacher_weights = _teacher_weights(experiment, device=device, progress=progress)
        return _Run(experiment, folder, where, progress, teacher_weights).execute(on_step)


def trained_network(experiment: Experiment, device: str = "cpu") -> Segmenter:
    """The network of a finished run, in eval mode. FileNotFoundError when there is no such run."""
    path = run_folder(experiment) / "weights.safetensors"
    if not path.exists():
        raise FileNotFoundError(f"{path}: this run has not finished; train(experiment) finishes it")
    weights = load_file(path)
    num_classes = weights["classifier.weight"].shape[0]
    model = build_network(experiment.network, num_classes, torch.device(device), seed=0, weights_follow=True)
    model.load_state_dict(weights)
    return model.eval()


def _teacher_weights(experiment: Experiment, device: str | None, progress: bool | None) -> Path:
    """The file with the teacher's weights, which is trained now unless that was done or a file is given."""
    if experiment.teacher.weights_file:
        return Path(experiment.teacher.weights_file)
    teacher = experiment.teacher_experiment()
    train(teacher, device=device, progress=progress, wait=True)
    return run_folder(teacher) / "weights.safetensors"


def task_loss(logits_BKhw: Tensor, labels_BHW: Tensor, ignore_index: int) -> Tensor:
    """Mean cross-entropy over valid pixels after upsampling; a connected zero when no pixel is valid."""
    logits_BKHW = F.interpolate(logits_BKhw.float(), labels_BHW.shape[-2:], mode="bilinear", align_corners=True)
    total = F.cross_entropy(logits_BKHW, labels_BHW, ignore_index=ignore_index, reduction="sum")
    return total / (labels_BHW != ignore_index).sum().clamp(min=1)


class _Run:
    """The state of one run and its loop. Private: `train` is the way in."""

    def __init__(
        self, experiment: Experiment, folder: Path, device: torch.device, progress: bool | None, teacher: Path | None
    ) -> None:
        self.experiment, self.folder, self.device, self.progress = experiment, folder, device, progress
        self.precision = resolve_precision(device, experiment.precision)
        self.provenance = provenance(device, self.precision)
        self.splits: Splits = build_splits(experiment.data)
        spec = self.splits.train.spec
        self.ignore_index, num_classes = spec.ignore_index, len(spec.class_names)
        self.student = build_network(experiment.network, num_classes, device, seed=experiment.seed)
        self.teacher = None if teacher is None else load_teacher(experiment, teacher, num_classes, device)
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

    def execute(self, on_step: Callable[[int], None] | None) -> Record:
        """Resume, train to the last step, evaluate, write the record."""
        torch.manual_seed(self.experiment.seed)  # dropout; everything else has generators of its own
        step = self._resume()
        if self.teacher is not None and self.facts["teacher"] is None:
            matrix = measure_teacher(self.experiment, self.teacher, self.splits, self.precision)
            self.facts["teacher"] = {"confusion": matrix.tolist()}
        self._train_from(step, on_step)
        return self._finish()

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
                set_poly_rates(self.optimisers["student"], step, training.iterations, training.power)
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
            nn.utils.clip_grad_norm_(self.student.parameters(), self.experiment.training.clip_norm)
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
            path = save_batch(self.folder / "non-finite-batch.safetensors", batch)
            raise NonFiniteLossError(
                f"step {step}: {', '.join(f'{n} = {values[n]}' for n in wrong)}; the batch is saved in {path}. Lower "
                "training.learning_rate, set training.clip_norm or use precision fp32, then start again"
            )
        rate = (1 - step / self.experiment.training.iterations) ** self.experiment.training.power
        rate *= self.experiment.training.learning_rate
        self.log.write({"step": step, "seconds": round(seconds, 6), "learning_rate": rate, **values})

    @property
    def _evaluated(self) -> nn.Module:
        return self.student if self.average is None else self.average.module

    def _evaluate_on_the_way(self, step: int) -> None:
        matrix = confusion_of(self._evaluated, self.splits.val, precision=self.precision)
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
            tqdm.write(f"{self.experiment.name}: {sentence}")
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
        tqdm.write(f"{self.experiment.name}: resumed at step {checkpoint['step']}")
        return checkpoint["step"]

    def _finish(self) -> Record:
        """Score the last step's student, write weights and record; the record comes last and marks the end."""
        model, evaluation = self._evaluated.eval(), self.splits.evaluation
        teacher = self.facts["teacher"]
        if self.teacher is not None:
            matrix = agreement_of(model, self.teacher, evaluation, precision=self.precision)
            teacher = {**teacher, "agreement": matrix.tolist()}
        newest = self.folder / "weights.safetensors"
        partial = newest.with_suffix(".part")
        save_file({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}, partial)
        partial.replace(newest)
        spec = evaluation.spec
        content = {
            "schema": SCHEMA,
            "experiment": to_dict(self.experiment),
            "fingerprint": fingerprint(self.experiment),
            "data": {
                "name": spec.name,
                "split": self.experiment.data.evaluation_split,
                "images": len(evaluation),
                "class_names": list(spec.class_names),
                "fingerprint": evaluation.fingerprint(),
                "training_fingerprint": self.splits.train.fingerprint(),
            },
            **self.provenance,
            "started": self.facts["started"],
            "wall_seconds": round(self.facts["seconds"], 2),
            **self.log.summary(),
            "peak_memory_bytes": _peak_memory(self.device),
            "parameters": sum(p.numel() for p in self.student.parameters()),
            "evaluations": self.facts["evaluations"],
            "confusion": confusion_of(model, evaluation, precision=self.precision).tolist(),
            "teacher": teacher,
            "weights_sha256": sha256_of(newest),
        }
        record = Record(content)
        record.save(self.folder / "record.json")
        return record


def _peak_memory(device: torch.device) -> int:
    """Bytes: the allocator's peak on a GPU, the process's largest resident set on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
