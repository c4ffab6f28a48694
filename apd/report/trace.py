"""How prototypes move while a student is trained with APD, and what becomes of the teacher's without regularisation.

A run is repeated under observation: it takes the steps that it always takes, and between them the prototypes of a few
images are noted. Beside it stand two heads that the run knows nothing of:

- the teacher's head as it was drawn: in this method nothing but the regularisation trains it, so without that term it
  stays like this to the end;
- a pair of heads on the same features of every step, of which alignment trains *both*: what would happen if the
  stop-gradient were left out and nothing asked the teacher's prototypes to tell classes apart.
"""

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from apd.config.datasets import build_splits
from apd.config.experiment import Experiment, ExperimentError
from apd.data.specs import Sample
from apd.distill import APDLoss
from apd.distillers.apd import APDConfig
from apd.losses import alignment_loss
from apd.models.segmenter import Segmenter
from apd.perspective import class_prototypes, match_grids, resize_labels
from apd.training.checkpoint import CheckpointError, load_newest
from apd.training.distributed import choose_device
from apd.training.run import run_folder, task_of
from apd.training.segmentation import build_network
from apd.training.teacher import load_teacher
from apd.training.trainer import Trainer


class Trace(NamedTuple):
    """What was noted at S moments of B images: prototypes of K classes with D channels after projection.

    The teacher's are under the run's own head (`teacher_SBKD`), under its head as it was drawn (`untrained_BKD`) and
    under the head that alignment trains instead (`aligned_SBKD`). `steps` are those done at each moment, from 0;
    `student` and `distiller`, in eval mode, are as after the last step.
    """

    steps: list[int]
    present_BK: Tensor
    teacher_SBKD: Tensor
    student_SBKD: Tensor
    untrained_BKD: Tensor
    aligned_SBKD: Tensor
    student: Segmenter
    distiller: APDLoss


def pairwise_cosine(prototypes_BKD: Tensor, present_BK: Tensor) -> Tensor:
    """(B,) mean cosine between two different classes of an image: 1 when its prototypes have collapsed into one.

    NaN for an image with fewer than two classes. Leading axes before B are kept.
    """
    count_B = present_BK.sum(-1)
    # rows of absent classes are zero; the sum over all pairs is the squared length of the sum of rows
    together_B = prototypes_BKD.sum(-2).square().sum(-1) - prototypes_BKD.square().sum((-2, -1))
    return torch.where(count_B > 1, together_B / (count_B * (count_B - 1)).clamp(min=1), torch.nan)


class _Watcher:
    """Notes prototypes of fixed images, and trains the pair of heads that the run knows nothing of."""

    def __init__(self, run: Trainer, samples: Sequence[Sample]) -> None:
        self.run, self.apd = run, run.distillers["apd"]
        self.images_B3HW = (torch.stack([s.image_3HW for s in samples]) / 255).to(run.device)
        self.labels_BHW = torch.stack([s.labels_HW for s in samples]).long().to(run.device)
        with torch.no_grad():
            self.features_BChw = run.teacher(self.images_B3HW).features
        self.drawn = copy.deepcopy(self.apd)
        self.pair = copy.deepcopy(self.apd).requires_grad_(True)
        rate = next(c.teacher_head_rate for c in run.experiment.distillers if isinstance(c, APDConfig))
        # the optimiser of the run's teacher head, for both heads of the pair
        self.optimiser = torch.optim.Adam(self.pair.parameters(), lr=rate, betas=(0.9, 0.99))
        self.apd.register_forward_pre_hook(self._train_pair, with_kwargs=True)

    def _train_pair(self, _module: APDLoss, _arguments: tuple[()], given: dict[str, Any]) -> None:
        features = match_grids(given["student_features"].detach().float(), given["teacher_features"].float())
        labels_Bhw = resize_labels(given["labels"], features[0].shape[2:])
        with torch.enable_grad():
            heads = (self.pair.student_head, self.pair.teacher_head)
            projected = [head(value) for head, value in zip(heads, features, strict=True)]
            (student_BKD, present_BK), (teacher_BKD, _) = (self._prototypes(value, labels_Bhw) for value in projected)
            # the term stops the gradient at its second argument; both ways together, nothing is stopped
            loss = alignment_loss(student_BKD, teacher_BKD, present_BK)
            loss = loss + alignment_loss(teacher_BKD, student_BKD, present_BK)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()

    def _prototypes(self, projected_BDhw: Tensor, labels_Bhw: Tensor) -> tuple[Tensor, Tensor]:
        spec = self.run.splits.train.spec
        return class_prototypes(projected_BDhw, labels_Bhw, spec.num_classes, ignore_index=spec.ignore_index)

    @torch.no_grad()
    def note(self) -> dict[str, Tensor]:
        """Which classes the watched images have, and their prototypes under each of the heads as they are now."""
        training = self.run.student.training
        by_student_BChw = self.run.student.eval()(self.images_B3HW).features
        self.run.student.train(training)
        student_BChw, teacher_BChw = match_grids(by_student_BChw, self.features_BChw)
        labels_Bhw = resize_labels(self.labels_BHW, teacher_BChw.shape[2:])
        projected = {
            "student": self.apd.student_head(student_BChw),
            "teacher": self.apd.teacher_head(teacher_BChw),
            "untrained": self.drawn.teacher_head(teacher_BChw),
            "aligned": self.pair.teacher_head(teacher_BChw),
        }
        found = {name: self._prototypes(value, labels_Bhw) for name, value in projected.items()}
        prototypes = {name: prototypes_BKD.cpu() for name, (prototypes_BKD, _) in found.items()}
        return prototypes | {"present": found["teacher"][1].cpu()}


def watch(experiment: Experiment, samples: Sequence[Sample], *, every: int = 10, device: str | None = None) -> Trace:
    """Repeat a run with APD and note the prototypes of some images on the way. Nothing is kept on disk.

    Args:
        experiment: with APD with heads, alone or among others, and a trained teacher.
        samples: which images to watch, of one size.
        every: steps between two moments; the last step is always one.
        device: torch device; default is cuda where there is one, else cpu.

    Raises:
        ExperimentError: the experiment has no APD with heads. ValueError: no sample, or `every` below 1.
        TeacherError: the teacher's run has left no weights. Everything that training raises.
    """
    if not any(isinstance(config, APDConfig) and config.width for config in experiment.distillers):
        raise ExperimentError(f"experiment {experiment.name!r} has no distiller 'apd' with heads: there is no trace")
    if not samples or every < 1:
        raise ValueError(f"{len(samples)} samples, every={every}: expected at least one of each")
    # what is scored on the way decides nothing, so it is left out
    experiment = replace(experiment, training=replace(experiment.training, evaluations=0))
    where, splits = choose_device(device), build_splits(experiment.data)
    classes = len(splits.train.spec.class_names)
    student = build_network(experiment.network, classes, where, seed=experiment.seed)
    weights = experiment.teacher.weights_file or run_folder(experiment.teacher_experiment()) / "weights.safetensors"
    teacher = load_teacher(task_of(experiment), Path(weights), classes, where)
    last, steps, noted = experiment.training.iterations, [0], []
    with tempfile.TemporaryDirectory() as folder:
        run = Trainer(task_of(experiment), Path(folder), splits, student, teacher)
        run.facts["teacher"] = {}  # it is measured for a record, and there will be none
        watcher = _Watcher(run, samples)
        noted.append(watcher.note())

        def on_step(step: int) -> None:
            if step % every == 0 or step == last:
                steps.append(step)
                noted.append(watcher.note())

        run.execute(on_step)
    return Trace(
        steps=steps,
        present_BK=noted[0]["present"],
        teacher_SBKD=torch.stack([moment["teacher"] for moment in noted]),
        student_SBKD=torch.stack([moment["student"] for moment in noted]),
        untrained_BKD=noted[-1]["untrained"],
        aligned_SBKD=torch.stack([moment["aligned"] for moment in noted]),
        student=student.eval(),
        distiller=watcher.apd.eval(),
    )


def trained_distiller(experiment: Experiment, student: nn.Module, teacher: nn.Module, method: str = "apd") -> nn.Module:
    """One of the experiment's distillers as it was after the last step, in eval mode.

    Heads are no part of the student and so not of its weights; they are in the run's last checkpoint. The networks
    (see `apd.training.run.trained_network`) count for their channels and device.

    Raises:
        CheckpointError: the experiment has no such distiller, or its run has no checkpoint of the last step.
    """
    configs = {config.method: config for config in experiment.distillers}
    if method not in configs:
        known = ", ".join(configs) or "none at all"
        raise CheckpointError(f"experiment {experiment.name!r} has no distiller {method!r}: it has {known}")
    folder = run_folder(experiment)
    checkpoint, _ = load_newest(folder / "checkpoints")
    if checkpoint is None or checkpoint["step"] != experiment.training.iterations:
        raise CheckpointError(
            f"{folder / 'checkpoints'} holds no whole checkpoint of the last step; delete {folder} and run "
            "train(experiment) again"
        )
    distiller = task_of(experiment).distiller(configs[method], student, teacher)
    prefix = f"distillers.{method}."
    state = {name.removeprefix(prefix): v for name, v in checkpoint["state"].items() if name.startswith(prefix)}
    distiller.load_state_dict(state)
    return distiller.eval()
