"""Detection and instance segmentation as the task of a run: its data, its networks, its loss and its scores."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN

from apd.config.datasets import Splits
from apd.config.detection_config import DetectorConfig
from apd.config.inference_options import InferenceOptions
from apd.data.augment import InstanceAugmentation
from apd.data.batches import InstanceBatch, InstanceStream, on_device
from apd.data.census import Census, census_of, require_labels
from apd.data.coco import coco_split
from apd.data.image_folder import DataError
from apd.data.instances import InstanceDataset, coco_library
from apd.data.scenes import SceneInstances
from apd.evaluation.average_precision import ap_entry, ap_scores, scored, tables_of
from apd.models.detector import build_detector
from apd.models.detector_hooks import DetectorTap, training_step
from apd.normalizers import global_count
from apd.training.distributed import Ranks
from apd.training.task import RunTask

_KEPT_IMAGES = 200  # of a data set that is kept in memory: with masks about 3 MB each at COCO's size


class DetectionTask(RunTask):
    """Boxes with classes, and masks where the network is a Mask R-CNN, judged by COCO's average precision.

    torchvision's losses are means over what is at hand; each is weighed by its count, as the whole batch's over ranks.
    """

    expected, kind = "expected_ap", "detector"
    libraries = ("faster-coco-eval",)

    @property
    def at_a_time(self) -> int:
        """Images that are scored together: one where they differ in size, and scores would depend on its neighbours."""
        return 8 if self.experiment.data.name == "scenes" else 1

    def split(self, name: str) -> InstanceDataset:
        """One split of the data; COCO's "val" is the part that the configuration names."""
        data = self.experiment.data
        if data.name == "scenes":
            count = data.train_images if name == "train" else data.evaluation_images
            drawn = {name: getattr(data, name) for name in ("height", "width", "context_shift", "least_pixels")}
            return SceneInstances(count, seed=data.world, split=name, **drawn)
        part = data.train_part if name == "train" else data.val_part
        where = dict(annotations=data.annotations, images=data.pictures, masks=data.masks)
        found = coco_split(data.folder, part, **where, cache=False)
        return coco_split(data.folder, part, **where, cache=True) if len(found) <= _KEPT_IMAGES else found

    def splits(self) -> Splits:
        """All that a run needs; a data set that is trained and scored on is one object."""
        coco_library("a run of detection, which is scored by average precision,")
        data, train = self.experiment.data, self.split("train")
        val = train if data.name == "coco" and data.train_part == data.val_part else self.split("val")
        evaluation = val if data.evaluation_split == "val" else self.split(data.evaluation_split)
        if train.spec.class_names != val.spec.class_names:
            here, there = train.spec.num_classes, val.spec.num_classes
            both = f"{data.train_part} has {here} categories and {data.val_part} has {there}, not the same ones"
            raise DataError(f"{data.folder}: {both} in the same order: a network has one set of classes")
        splits = Splits(train, val, evaluation)
        require_labels(splits.by_name(data.evaluation_split))
        return splits

    def census(self, splits: Splits) -> Census | None:
        """Of files of annotations, which are in memory; not of scenes."""
        data = self.experiment.data
        return census_of({data.train_part: splits.train, data.val_part: splits.val}) if data.name == "coco" else None

    def _supply(self, workers: int, device: torch.device) -> dict[str, Any]:
        data = self.experiment.data
        augmentation = InstanceAugmentation(data.flip, (data.scale_min, data.scale_max), data.jitter)
        return {"augmentation": augmentation, "workers": workers, "stream": InstanceStream}

    def _build(self, config: DetectorConfig, num_classes: int, weights_follow: bool) -> Any:
        sides, shape = (self.experiment.data.height, self.experiment.data.width), asdict(config)
        backbone, masks = shape.pop("backbone"), shape.pop("kind") == "mask_rcnn"
        shape |= dict(min_size=min(sides), max_size=max(sides), fetch=not weights_follow)
        return build_detector(backbone, num_classes, masks=masks, **shape)

    def parameter_groups(self, network: FasterRCNN) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Those of the classifier below the pyramid that are not frozen, and those of pyramid and heads."""
        body = list(network.backbone.body.parameters())
        ours = set(map(id, body))
        return [p for p in body if p.requires_grad], [p for p in network.parameters() if id(p) not in ours]

    def micro_batches(self, batch: InstanceBatch, device: torch.device) -> list[InstanceBatch]:
        """The batch, undivided, on the device."""
        return [on_device(batch, device, pinned=self.experiment.training.pinned_memory)]

    def teacher_outputs(self, batch: InstanceBatch) -> None:
        """None: the teacher looks at the boxes that the student proposes, so `forward` calls it."""

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]], _: None = None) -> dict[str, Tensor]:
        """torchvision's losses by its names, the distillers' terms, and "loss", their weighted sum."""
        (teacher,) = self.teacher_alone
        with DetectorTap(self.student) as tap:
            if self.distillers:
                losses, pair = training_step(self.student, tap, teacher, images, targets)
            else:
                losses, pair = self.student(images, targets), None
            counts = tap.loss_counts
        # alone, count and global_count are one number, and their quotient is exactly 1
        terms = {name: value * (counts[name] / global_count(counts[name])) for name, value in losses.items()}
        loss = sum(terms.values())
        for name, distiller in self.distillers.items():
            of_one = distiller(pair)
            loss = loss + of_one.pop("loss")
            terms |= {f"{name}.{term}": value for term, value in of_one.items()}
        return terms | {"loss": loss}

    def evaluate(
        self, network: FasterRCNN, dataset: InstanceDataset, inference: InferenceOptions, ranks: Ranks
    ) -> dict[str, Any]:
        """Tables of average precision as `ap`; AP is no mean of parts' APs, so rank 0 counts what all have found."""
        parts = ranks.gather(scored(network, ranks.part(dataset), batch_size=self.at_a_time))
        return ranks.on_rank_zero(lambda: {"ap": ap_entry(parts[0].joined(parts[1:]).tables())})

    def headline(self, fact: Mapping[str, Any]) -> tuple[str, float]:
        """The mean AP of the boxes."""
        return "box AP", ap_scores(tables_of(fact["ap"])["boxes"]).ap
