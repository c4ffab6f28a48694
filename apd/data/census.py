"""How many pixels, or objects, of each class the splits of a data set hold, and what of that cannot be meant."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from apd.data.coco import CocoInstances
from apd.data.images import DataError
from apd.data.instances import InstanceDataset, InstanceSpec
from apd.data.specs import DatasetSpec, SegmentationDataset

_NAMED = 8  # classes that one sentence names


class Census(NamedTuple):
    """Counts of every class in every split, in the order of training: the first split is the one that is trained on."""

    spec: DatasetSpec | InstanceSpec
    images: dict[str, int]  #: number of images by split
    counts: dict[str, np.ndarray]  #: by split (K + 1,) int64, the classes' and, last, of what is ignored (crowd)
    unlabelled: tuple[int, ...] = ()  #: number of further images without labels in each split

    def table(self) -> list[str]:
        """A line for each class with its share of what counts in each split, then ignored ones and images."""
        names = [*self.spec.class_names, "ignored"]
        unit = "pixels" if isinstance(self.spec, DatasetSpec) else "objects"
        columns = [_shares(counts) for counts in self.counts.values()]
        rows = [("class", self.counts), *zip(names, zip(*columns, strict=True), strict=True)]
        rows += [("images", self.images.values()), *[("unlabelled", self.unlabelled)] * any(self.unlabelled)]
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:{width}s}" + "".join(f"{cell!s:>12s}" for cell in row) for name, row in rows]
        return [f"{lines[0]}   (share of the labelled {unit}; ignored: of all)", *lines[1:]]

    def warnings(self, where: str) -> list[str]:
        """Sentences on probable mistakes of the data set `where`; DataError where there is nothing to learn."""
        objects = isinstance(self.spec, InstanceSpec)
        (trained, in_train), *others = ((split, counts[:-1] > 0) for split, counts in self.counts.items())
        names = np.array(self.spec.class_names)
        nowhere = ~np.any([in_train, *(has for _, has in others)], axis=0)
        fix = "" if objects else self._fix(nowhere)
        if not objects and in_train.sum() == 1:
            only, rest = names[in_train][0], _listed(names[~in_train])
            lack = f"{rest} in none of them, so there is nothing to learn{fix or '; check the masks'}"
            raise DataError(f"{where}: the masks of {trained} hold one class only, {only}; {lack}")
        found = [(nowhere, f"nowhere in {' or '.join(self.counts)}{fix}")]
        for split, has in others:
            missing, unseen = has & ~in_train, in_train & ~has
            them = "it" if missing.sum() == 1 else "them"
            found.append((missing, f"in {split} but in nothing of {trained}: a network cannot learn {them}"))
            them = "it" if unseen.sum() == 1 else "them"
            found.append((unseen, f"in {trained} but not in {split}: its scores say nothing of {them}"))
        return [f"{where}: {_listed(names[which])} {problem}" for which, problem in found if which.any()]

    def _fix(self, nowhere: np.ndarray) -> str:
        """What helps where 255 was meant to be the class that is missing, as paint programs write two-class masks."""
        spec, values = self.spec, list(self.spec.file_values or range(self.spec.num_classes))
        ignored = any(counts[-1] for counts in self.counts.values())
        if spec.file_colours or nowhere.sum() != 1 or 255 in (*values, *spec.void_values) or not ignored:
            return ""
        name = spec.class_names[place := int(nowhere.argmax())]
        values[place] = 255
        return f". 255 is ignored; if it means {name} in these masks, write into dataset.yaml: `values: {values}`"


def require_labels(splits: Mapping[str, SegmentationDataset | InstanceDataset]) -> None:
    """Raise DataError for a split that is ignored, or crowd, as a whole; reading ends at a label that counts."""
    for split, dataset in splits.items():
        if any(counts[:-1].any() for counts in _counts(dataset)):
            continue
        spec, lack = dataset.spec, "no annotation"
        if isinstance(spec, DatasetSpec):
            values = " or ".join(map(str, sorted({*spec.void_values, spec.ignore_index})))
            ignored = "colours of `ignore`" if spec.file_colours else f"value {values:.80}"
            lack = f"no labelled pixel: all masks are ignored ({ignored})"
        raise DataError(f"{spec.name}: the split {split} has {lack}; nothing can be learned or scored there")


def census_of(splits: Mapping[str, SegmentationDataset | InstanceDataset]) -> Census:
    """Count the labels of every split, by name and in the order of training; each must have some that count."""
    require_labels(splits)
    spec = next(iter(splits.values())).spec
    counts = {name: sum(_counts(dataset, name)) for name, dataset in splits.items()}
    images = {name: getattr(dataset, "labelled", len(dataset)) for name, dataset in splits.items()}
    return Census(spec, images, counts, tuple(len(dataset) - images[name] for name, dataset in splits.items()))


def _counts(dataset: SegmentationDataset | InstanceDataset, name: str = "") -> Iterator[np.ndarray]:
    """Of each sample the number of pixels, or objects, of each class and, last, of what is ignored, or crowd."""
    classes, of_pixels = dataset.spec.num_classes, isinstance(dataset.spec, DatasetSpec)
    if isinstance(dataset, CocoInstances):  # whose annotations are in memory: no image is read
        labels = [classes if entry["crowd"] else entry["label"] for entries in dataset.objects for entry in entries]
        yield np.bincount(np.array(labels, dtype=np.int64), minlength=classes + 1)
        return
    ignored = dataset.spec.ignore_index if of_pixels else classes
    dataset = getattr(dataset, "dataset", dataset)  # labels alone: a LongSide would resize images for nothing
    indices = range(getattr(dataset, "labelled", len(dataset)))
    for index in tqdm(indices, desc=f"labels of {name}", leave=False, disable=None if name else True):
        sample = dataset[index]
        labels = sample.labels_HW.ravel() if of_pixels else sample.labels_N.masked_fill(sample.crowd_N, ignored)
        counts = np.bincount(labels.numpy(), minlength=ignored + 1)
        yield np.append(counts[:classes], counts[ignored])


def _shares(counts: np.ndarray) -> list[str]:
    """The classes' shares of what counts, and that of the ignored in all."""
    shares = np.append(100 * counts[:-1] / max(counts[:-1].sum(), 1), 100 * counts[-1] / max(counts.sum(), 1))
    return ["none" if not share else f"{share:.2f} %" if share >= 0.01 else "< 0.01 %" for share in shares]


def _listed(names: np.ndarray) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    which, verb = ("class", "occurs") if len(names) == 1 else ("the classes", "occur")
    return f"{which} {', '.join(names[:_NAMED])}{more} {verb}"
