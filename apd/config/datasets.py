"""From the configuration of data to data sets."""

from collections.abc import Mapping
from itertools import zip_longest
from typing import Any, NamedTuple

from apd.config.detection_config import DetectorConfig, InstanceDataConfig
from apd.config.experiment import DataConfig, ExperimentError
from apd.config.identity import to_dict
from apd.data import specs
from apd.data.converted import LABELMEFACADE, CamVid, ConvertedDataset, LabelMeFacade
from apd.data.dataset_yaml import folder_spec, open_folder, unlabelled_images
from apd.data.image_folder import FolderDataset, PartlyLabelled, find_data
from apd.data.images import LongSide
from apd.data.instances import InstanceDataset, InstanceSpec
from apd.data.scenes import Scenes
from apd.data.specs import DatasetSpec, SegmentationDataset

_PASCAL = (specs.PASCAL_CONTEXT_59, specs.PASCAL_CONTEXT_60)
_CONVERTED = {spec.name: spec for spec in (specs.CITYSCAPES, specs.ADE20K, *_PASCAL, specs.COCO_STUFF)}
_SPECS = {"camvid": specs.CAMVID, "labelmefacade": LABELMEFACADE, "scenes": specs.SCENES, **_CONVERTED}


class Splits(NamedTuple):
    """The data sets of one run. `evaluation` is the experiment's split; `others` are further test splits, by name."""

    train: SegmentationDataset | InstanceDataset
    val: SegmentationDataset | InstanceDataset
    evaluation: SegmentationDataset | InstanceDataset
    others: Mapping[str, SegmentationDataset] = {}

    def by_name(self, evaluation: str) -> dict[str, SegmentationDataset | InstanceDataset]:
        """All of them by the names of splits; `evaluation` is that of the experiment's."""
        return {"train": self.train, "val": self.val, evaluation: self.evaluation, **self.others}

    def identities(self, evaluation: str) -> dict[str, dict[str, Any]]:
        """What checkpoint and record keep of each split: what its labels mean, and the fingerprint of its content."""
        named = self.by_name(evaluation).items()
        return {name: {**meaning_of(split.spec), "fingerprint": split.fingerprint()} for name, split in named}


def meaning_of(spec: DatasetSpec | InstanceSpec) -> dict[str, Any]:
    """What decides which class a pixel or an object has, as JSON: all fields but those for messages and figures."""
    fields = to_dict(spec).items()
    return {name: value for name, value in fields if name not in ("name", "palette", "thing_names", "splits")}


def what_changed(known: Mapping[str, Mapping[str, Any]], today: Mapping[str, Mapping[str, Any]]) -> str:
    """What differs first between two `Splits.identities`, in words, or nothing; a split of one alone does not count."""
    for split in filter(today.get, known):
        for part, value in known[split].items():
            if value != (now := today[split].get(part)):
                if isinstance(value, list) and value and now:
                    value, now = next(pair for pair in zip_longest(value, now) if pair[0] != pair[1])
                return f"{part} of the split {split}: {value!r:.80} then, {now!r:.80} now"
    return ""


def require_segmentation(config: object) -> None:
    """Refuse the parts of a detection experiment where only segmentation is known."""
    if isinstance(config, InstanceDataConfig | DetectorConfig):
        only = "belongs to detection, and what was asked for is there for segmentation only"
        fix = "apd.training.run.task_of(experiment) gives data and networks of both tasks"
        raise ExperimentError(f"{type(config).__name__} {only}: {fix}")


def build_split(data: DataConfig, split: str) -> SegmentationDataset:
    """One split of the experiment's data; missing or damaged data raises a DataError that says what to do."""
    require_segmentation(data)
    size = {"height": data.height or None, "width": data.width or None}
    dataset = _whole_split(data, split, size)
    if split != "train":  # the longest side is for evaluation
        return LongSide(dataset, data.long_side) if data.long_side else dataset
    if data.labelled_share == 1 and not data.unlabelled:
        return dataset
    paths = unlabelled_images(data.folder) if data.name == "folder" and data.unlabelled else []
    more = FolderDataset(dataset.spec, [(path, None) for path in paths], **size, cache=None) if paths else ()
    return PartlyLabelled(dataset, data.labelled_share, unlabelled=data.unlabelled, more=more)


def _whole_split(data: DataConfig, split: str, size: dict[str, int | None]) -> SegmentationDataset:
    match data.name:
        case "scenes":
            count = data.train_images if split == "train" else data.evaluation_images
            return Scenes(count, **size, context_shift=data.context_shift, seed=data.world, split=split)
        case "camvid":
            return CamVid(find_data("CamVid"), split, **size)
        case "labelmefacade":
            return LabelMeFacade(split, **size)
        case "folder":
            return open_folder(data.folder, split, **size)
        case name:
            if split not in dict(_CONVERTED[name].splits):
                raise ExperimentError(f"split = {split!r}: the labels of {name}'s {split} are not public, so use val")
            return ConvertedDataset(_CONVERTED[name], split, **size)


def spec_of(data: DataConfig) -> DatasetSpec:
    """Names and colours of the experiment's classes, without touching images (a folder's dataset.yaml is read)."""
    require_segmentation(data)
    return folder_spec(data.folder) if data.name == "folder" else _SPECS[data.name]


def build_splits(data: DataConfig) -> Splits:
    """Training, validation and evaluation data; the last two are one object when they are one split."""
    is_tested = data.name == "labelmefacade" and data.evaluation_split == "test"  # further test splits are scored, too
    others = {name: build_split(data, name) for name in ("test_out_of_place", "night") if is_tested}
    named = {name: build_split(data, name) for name in {"val": 0, data.evaluation_split: 0, "train": 0}}
    return Splits(named["train"], named["val"], named[data.evaluation_split], others)
