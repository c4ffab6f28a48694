"""How many pixels, or objects, of each class the splits of a data set hold, and what of that cannot be meant."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from apd.data.coco import CocoInstances
from apd.data.images import DataError
from apd.data.instances import InstanceDataset, InstanceSpec
from apd.data.specs import DatasetSpec, SegmentationDataset

_NAMED = 8
"""Classes that one sentence names."""


class Census(NamedTuple):
    """Counts of every class in every split, in the order of training: the first split is the one that is trained on.

    Attributes:
        spec: names of the classes.
        images: number of images by split.
        counts: by split (K + 1,) int64, the classes' and, last, what is ignored (of objects: crowd regions).
    """

    spec: DatasetSpec | InstanceSpec
    images: dict[str, int]
    counts: dict[str, np.ndarray]

    def table(self) -> list[str]:
        """A line for each class with its share of what counts in each split, then ignored ones and images."""
        names = [*self.spec.class_names, "ignored"]
        width = max(map(len, (*names, "class")))
        unit = "pixels" if isinstance(self.spec, DatasetSpec) else "objects"
        lines = [f"{'class':{width}s}" + "".join(f"{split:>12s}" for split in self.counts) + f"   (share of {unit})"]
        for place, name in enumerate(names):
            cells = (self._cell(counts, place) for counts in self.counts.values())
            lines.append(f"{name:{width}s}" + "".join(f"{cell:>12s}" for cell in cells))
        return [*lines, f"{'images':{width}s}" + "".join(f"{number:>12d}" for number in self.images.values())]

    def _cell(self, counts: np.ndarray, place: int) -> str:
        if not counts[place]:
            return "none"
        is_class = place < len(counts) - 1
        share = 100 * counts[place] / (counts[:-1].sum() if is_class else counts.sum())
        return f"{share:.2f} %" if share >= 0.01 else "< 0.01 %"

    def warnings(self, where: str) -> list[str]:
        """Sentences on what is probably a mistake; `where` names the data set, such as its folder.

        Raises:
            DataError: nothing can be learned, or scored: a split without any label, or pixels of one class in train.
        """
        objects = isinstance(self.spec, InstanceSpec)
        for split, counts in self.counts.items():
            if not counts[:-1].any():
                told = "no annotation" if objects else f"no labelled pixel: all masks are ignored ({self._ignored()})"
                raise DataError(f"{where}: the split {split} has {told}; nothing can be learned or scored there")
        (trained, *others), names = self.counts.items(), np.array(self.spec.class_names)
        nowhere = ~np.any([counts[:-1] for counts in self.counts.values()], axis=0)
        fix = "" if objects else self._fix(nowhere)
        in_train = trained[1][:-1] > 0
        if not objects and self.spec.num_classes > 1 and in_train.sum() == 1:
            raise DataError(
                f"{where}: the masks of {trained[0]} hold one class only, {names[in_train][0]}; "
                f"{_listed(names[~in_train])} {_occur(~in_train)} in none of them, so there is nothing to learn"
                f"{fix or '; check the masks'}"
            )
        sentences = []
        if nowhere.any():
            sentences.append(f"{_listed(names[nowhere])} {_occur(nowhere)} nowhere in {' or '.join(self.counts)}{fix}")
        for split, counts in others:
            has = counts[:-1] > 0
            if (lost := has & ~in_train).any():
                told = f"{_listed(names[lost])} {_occur(lost)} in {split} but in nothing of {trained[0]}"
                sentences.append(f"{told}: a network cannot learn {'it' if lost.sum() == 1 else 'them'}")
            if (unseen := in_train & ~has).any():
                told = f"{_listed(names[unseen])} {_occur(unseen)} in {trained[0]} but not in {split}"
                sentences.append(f"{told}: its scores say nothing of {'it' if unseen.sum() == 1 else 'them'}")
        return [f"{where}: {sentence}" for sentence in sentences]

    def _ignored(self) -> str:
        values = sorted({*self.spec.void_values, self.spec.ignore_index})
        return f"value {' or '.join(map(str, values))}" if not self.spec.file_colours else "colours of `ignore`"

    def _fix(self, nowhere: np.ndarray) -> str:
        """What helps where 255 was meant to be the class that is missing, as paint programs write two-class masks."""
        spec = self.spec
        if spec.file_colours:
            return ""
        values = list(spec.file_values or range(spec.num_classes))
        if nowhere.sum() != 1 or 255 in (*values, *spec.void_values) or not any(c[-1] for c in self.counts.values()):
            return ""
        place = int(np.flatnonzero(nowhere)[0])
        values[place] = 255
        name = spec.class_names[place]
        return f". 255 is ignored; if it means {name} in these masks, write into dataset.yaml: `values: {values}`"


def census_of(splits: Mapping[str, SegmentationDataset | InstanceDataset]) -> Census:
    """Count the labels of every split, by name and in the order of training; each sample is read once.

    Linear in pixels: 40 images of 640x480 take a tenth of a second from memory; what is not kept there is decoded.

    Raises:
        DataError: a file that cannot be read or holds a label that is none.

    Example:
        >>> from apd.data.scenes import Scenes
        >>> scenes = Scenes(2, height=48, width=64, context_shift=0.0, seed=0, split="train")
        >>> int(census_of({"train": scenes}).counts["train"].sum()) == 2 * 48 * 64
        True
    """
    first = next(iter(splits.values()))
    counts = {name: _counts(dataset, name) for name, dataset in splits.items()}
    return Census(first.spec, {name: len(dataset) for name, dataset in splits.items()}, counts)


def _counts(dataset: SegmentationDataset | InstanceDataset, name: str) -> np.ndarray:
    if isinstance(dataset, CocoInstances):  # whose annotations are in memory: no image is read
        crowd = dataset.spec.num_classes
        labels = [crowd if thing["crowd"] else thing["label"] for things in dataset.things for thing in things]
        return np.bincount(np.array(labels, dtype=np.int64), minlength=crowd + 1)
    dataset = getattr(dataset, "dataset", dataset)  # labels alone: a LongSide would resize images for nothing
    classes = dataset.spec.num_classes
    ignored = dataset.spec.ignore_index if isinstance(dataset.spec, DatasetSpec) else classes
    counts = np.zeros(ignored + 1, dtype=np.int64)
    for index in tqdm(range(len(dataset)), desc=f"labels of {name}", leave=False, disable=None):
        sample = dataset[index]
        if isinstance(dataset.spec, DatasetSpec):
            counts += np.bincount(sample.labels_HW.numpy().ravel(), minlength=ignored + 1)
        else:
            labels_N = sample.labels_N.masked_fill(sample.crowd_N, ignored)
            counts += np.bincount(labels_N.numpy(), minlength=ignored + 1)
    return np.append(counts[:classes], counts[ignored])


def _listed(names: np.ndarray) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{'class' if len(names) == 1 else 'the classes'} {', '.join(names[:_NAMED])}{more}"


def _occur(which: np.ndarray) -> str:
    return "occurs" if which.sum() == 1 else "occur"
