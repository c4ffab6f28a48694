"""An image's own perspective: how far it is from the shared one, what is seen through it, and how it is trained."""

import copy
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apd.config.experiment import Experiment, ExperimentError
from apd.data.batches import evaluation_batches
from apd.data.specs import Sample, SegmentationDataset
from apd.distill import APDLoss
from apd.distillers.apd import APDConfig
from apd.evaluation.inference import ConfusionMatrix, predict_dataset, scores
from apd.losses import alignment_loss
from apd.models.segmenter import Segmenter
from apd.perspective import ABSENT_LOGIT, class_prototypes, inverse_length, match_grids, observe, resize_labels
from apd.training.distributed import choose_device
from apd.training.run import in_steps, run_folder, task_of
from apd.training.segmentation import build_network
from apd.training.task import load_teacher
from apd.training.trainer import Trainer


class Distance(NamedTuple):
    """How far images' own perspectives are from the shared one: :func:`distance_to_shared`."""

    distance_B: Tensor
    cosines_BKK: Tensor


class Views(NamedTuple):
    """Mean KL(own ‖ shared perspective) of an image in nats, and the shares of its valid cells on which the two differ
    and that each gets right; NaN without a valid cell or a second class."""

    divergence_B: Tensor
    disagreement_B: Tensor
    own_right_B: Tensor
    shared_right_B: Tensor


def centred(rows_BKD: Tensor, present_BK: Tensor) -> Tensor:
    """Rows of present classes minus their mean, which changes no softmax over them; zero rows for the others."""
    weight_BK1 = present_BK[:, :, None].to(rows_BKD.dtype)
    count_B11 = weight_BK1.sum(1, keepdim=True).clamp(min=1)
    return (rows_BKD - (rows_BKD * weight_BK1).sum(1, keepdim=True) / count_B11) * weight_BK1


def distance_to_shared(weights_KC: Tensor, prototypes_BKC: Tensor, present_BK: Tensor) -> Distance:
    """1 - mean over present classes of the cosine between a class's classifier row and its prototype, both centred.

    Prototypes are of the features that the classifier reads. NaN: below two classes, absent classes.
    """
    both = centred(weights_KC.expand_as(prototypes_BKC), present_BK), centred(prototypes_BKC, present_BK)
    shared_BKC, own_BKC = (rows_BKC * inverse_length(rows_BKC, dim=2) for rows_BKC in both)
    both_BKK = present_BK[:, :, None] & present_BK[:, None, :]
    cosines_BKK = torch.where(both_BKK, shared_BKC @ own_BKC.mT, torch.nan)
    distance_B = 1 - cosines_BKK.diagonal(dim1=1, dim2=2).nanmean(1)
    return Distance(torch.where(present_BK.sum(1) < 2, torch.nan, distance_B), cosines_BKK)


def compare_views(
    own_BKhw: Tensor, shared_BKhw: Tensor, present_BK: Tensor, labels_Bhw: Tensor, *, ignore_index: int = 255
) -> Views:
    """Compare observations through images' own perspectives with the classifier's logits, over present classes."""
    absent_BK11 = ~present_BK[:, :, None, None]
    own_BKhw, shared_BKhw = (v.masked_fill(absent_BK11, ABSENT_LOGIT) for v in (own_BKhw, shared_BKhw))
    own_log_BKhw, shared_log_BKhw = own_BKhw.log_softmax(1), shared_BKhw.log_softmax(1)
    divergence_Bhw = F.kl_div(shared_log_BKhw, own_log_BKhw, reduction="none", log_target=True).sum(1)
    own_Bhw, seen_Bhw = own_BKhw.argmax(1), shared_BKhw.argmax(1)

    valid_Bhw = labels_Bhw != ignore_index
    # one class leaves nothing to compare
    count_B = torch.where(present_BK.sum(1) < 2, 0, valid_Bhw.flatten(1).sum(1))

    def mean(values_Bhw: Tensor) -> Tensor:
        total_B = torch.where(valid_Bhw, values_Bhw.to(own_log_BKhw.dtype), 0).flatten(1).sum(1)
        return torch.where(count_B > 0, total_B / count_B, torch.nan)

    return Views(*map(mean, (divergence_Bhw, own_Bhw != seen_Bhw, own_Bhw == labels_Bhw, seen_Bhw == labels_Bhw)))


class OwnPerspectives(NamedTuple):
    """:class:`Distance` and :class:`Views` of a data set's N images, on the CPU."""

    distance_N: Tensor
    cosines_NKK: Tensor
    views: Views

    @property
    def furthest_N(self) -> Tensor:
        """The class whose prototype has the smallest cosine with its row; -1 for an image without a distance."""
        # rounded, because of an image's two only classes both have the same: the first is named
        furthest_N = self.cosines_NKK.diagonal(dim1=1, dim2=2).nan_to_num(torch.inf).round(decimals=4).argmin(1)
        return torch.where(self.distance_N.isnan(), -1, furthest_N)


@torch.no_grad()
def own_perspectives(
    teacher: Segmenter, distiller: APDLoss, dataset: SegmentationDataset, *, batch_size: int = 8
) -> OwnPerspectives:
    """Compare images' own perspectives with the teacher's classifier; the views have the distiller's head and scale."""
    parts, spec, device = [], dataset.spec, next(teacher.parameters()).device
    classes = {"num_classes": spec.num_classes, "ignore_index": spec.ignore_index}
    for images_B3HW, labels_BHW, _names in evaluation_batches(dataset, batch_size):
        output = teacher(images_B3HW.to(device))
        grid = {"align_corners": distiller.align_corners}
        labels_Bhw = resize_labels(labels_BHW.to(device), output.features.shape[2:], **grid)
        own_BKC, present_BK = class_prototypes(output.features, labels_Bhw, **classes)
        found = distance_to_shared(teacher.classifier.weight.flatten(1), own_BKC, present_BK)
        projected_BDhw = distiller.teacher_head(output.features)
        own_BKD, _ = class_prototypes(projected_BDhw, labels_Bhw, **classes)
        own_BKhw = observe(projected_BDhw, own_BKD, present_BK, scale=distiller.scale)
        views = compare_views(own_BKhw, output.logits, present_BK, labels_Bhw, ignore_index=spec.ignore_index)
        parts.append((*found, *views))
    distance_N, cosines_NKK, *views = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
    return OwnPerspectives(distance_N, cosines_NKK, Views(*views))


class ImageScores(NamedTuple):
    """Of single images: mIoU of the classes in its labels and share of valid pixels right, NaN without one; number."""

    miou_B: Tensor
    right_B: Tensor
    valid_B: Tensor


def scores_by_image(networks: Mapping[str, Segmenter], dataset: SegmentationDataset) -> dict[str, ImageScores]:
    """Every image's scores, by network; the networks must be in eval mode."""
    spec, rows = dataset.spec, {name: [] for name in networks}
    for predictions, labels_BHW, _names in predict_dataset(list(networks.values()), dataset):
        for name, prediction_BHW in zip(networks, predictions, strict=True):
            for prediction_HW, labels_HW in zip(prediction_BHW.cpu(), labels_BHW, strict=True):
                confusion = ConfusionMatrix(spec.num_classes, spec.ignore_index)
                confusion.update(prediction_HW, labels_HW)
                truth_K, found = confusion.matrix_KK.sum(1), scores(confusion.matrix_KK)
                rows[name].append((found.iou[truth_K > 0].mean().item(), found.aacc, truth_K.sum().item()))
    columns = {name: torch.tensor(each, dtype=torch.float64).T for name, each in rows.items()}
    return {name: ImageScores(miou_B, right_B, valid_B.long()) for name, (miou_B, right_B, valid_B) in columns.items()}


class Trace(NamedTuple):
    """Prototypes of K classes with D channels after projection, at S moments of a run, of B images.

    The teacher's are under the run's own head, under its head as it was drawn (untrained), and under a head that
    alignment trains instead, without the stop-gradient (aligned). Student and distiller are as after the last step.
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
    """([S,] B) mean cosine between two different classes of an image, 1 after a collapse; NaN below two classes."""
    count_B = present_BK.sum(-1)
    # rows of absent classes are zero; the sum over all pairs is the squared length of the sum of rows
    together_B = prototypes_BKD.sum(-2).square().sum(-1) - prototypes_BKD.square().sum((-2, -1))
    return torch.where(count_B > 1, together_B / (count_B * (count_B - 1)).clamp(min=1), torch.nan)


class _Watcher:
    """Notes prototypes of fixed images, and trains the pair of heads that the run knows nothing of."""

    def __init__(self, run: Trainer, samples: Sequence[Sample]) -> None:
        self.run, self.apd, spec = run, run.distillers["apd"], run.splits.train.spec
        self.prototypes = partial(class_prototypes, num_classes=spec.num_classes, ignore_index=spec.ignore_index)
        self.images_B3HW = (torch.stack([s.image_3HW for s in samples]) / 255).to(run.device)
        self.labels_BHW = torch.stack([s.labels_HW for s in samples]).long().to(run.device)
        with torch.no_grad():
            self.features_BChw = run.teacher(self.images_B3HW).features
        self.drawn = copy.deepcopy(self.apd)
        self.pair = copy.deepcopy(self.apd).requires_grad_(True)
        learning_rate = next(c.teacher_head_rate for c in run.experiment.distillers if isinstance(c, APDConfig))
        # the optimiser of the run's teacher head, for both heads of the pair
        self.optimiser = torch.optim.Adam(self.pair.parameters(), lr=learning_rate, betas=(0.9, 0.99))
        self.apd.register_forward_pre_hook(self._train_pair, with_kwargs=True)

    def _train_pair(self, _module: APDLoss, _arguments: tuple[()], given: dict[str, Any]) -> None:
        both = given["student_features"].detach().float(), given["teacher_features"].float()
        features = match_grids(*both, align_corners=self.apd.align_corners)
        labels_Bhw = resize_labels(given["labels"], features[0].shape[2:], align_corners=self.apd.align_corners)
        with torch.enable_grad():
            projected = self.pair.student_head(features[0]), self.pair.teacher_head(features[1])
            (student_BKD, present_BK), (teacher_BKD, _) = (self.prototypes(value, labels_Bhw) for value in projected)
            # the term stops the gradient at its second argument; both ways together, nothing is stopped
            loss = alignment_loss(student_BKD, teacher_BKD, present_BK)
            loss = loss + alignment_loss(teacher_BKD, student_BKD, present_BK)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()

    @torch.no_grad()
    def note(self) -> dict[str, Tensor]:
        """Which classes the watched images have, and their prototypes under each of the heads as they are now."""
        training = self.run.student.training
        by_student_BChw = self.run.student.eval()(self.images_B3HW).features
        self.run.student.train(training)
        grid = {"align_corners": self.apd.align_corners}
        student_BChw, teacher_BChw = match_grids(by_student_BChw, self.features_BChw, **grid)
        labels_Bhw = resize_labels(self.labels_BHW, teacher_BChw.shape[2:], **grid)
        projected = {
            "student": self.apd.student_head(student_BChw),
            "teacher": self.apd.teacher_head(teacher_BChw),
            "untrained": self.drawn.teacher_head(teacher_BChw),
            "aligned": self.pair.teacher_head(teacher_BChw),
        }
        found = {name: self.prototypes(value, labels_Bhw) for name, value in projected.items()}
        return {name: each[0].cpu() for name, each in found.items()} | {"present": found["teacher"][1].cpu()}


def teacher_of(experiment: Experiment, classes: int, device: torch.device) -> nn.Module:
    """The teacher of an experiment in eval mode; TeacherError where its weights are not there."""
    weights = experiment.teacher.weights_file or run_folder(experiment.teacher_experiment()) / "weights.safetensors"
    return load_teacher(task_of(experiment), Path(weights), classes, device)


def watch(experiment: Experiment, samples: Sequence[Sample], *, every: int = 10, device: str | None = None) -> Trace:
    """Repeat a run with APD and note prototypes of images of one size, at every so many steps and the last one.

    Nothing is kept on disk. ExperimentError: no APD with heads. TeacherError: the teacher's run has left no weights.
    """
    if not any(isinstance(config, APDConfig) and config.width for config in experiment.distillers):
        raise ExperimentError(f"experiment {experiment.name!r} has no distiller 'apd' with heads")
    # what is scored on the way decides nothing, so it is left out
    experiment = in_steps(experiment)
    training = replace(experiment.training, evaluations=0, keep="last", patience=0)
    task = task_of(experiment := replace(experiment, training=training))
    where, splits = choose_device(device), task.splits()
    classes = len(splits.train.spec.class_names)
    student = build_network(experiment.network, classes, where, seed=experiment.seed)
    teacher = teacher_of(experiment, classes, where)
    steps, noted = [], []
    with tempfile.TemporaryDirectory() as folder:
        run = Trainer(task, Path(folder), splits, student, teacher)
        run.facts["teacher"] = {}  # it is measured for a record, and there will be none
        watcher = _Watcher(run, samples)

        def on_step(step: int) -> None:
            if step % every == 0 or step == experiment.training.iterations:
                steps.append(step)
                noted.append(watcher.note())

        on_step(0)
        run.execute(on_step)
    found = {name: torch.stack([moment[name] for moment in noted]) for name in noted[0]}
    prototypes = found["teacher"], found["student"], found["untrained"][-1], found["aligned"]
    return Trace(steps, found["present"][-1], *prototypes, student.eval(), watcher.apd.eval())
