"""Published data sets as their scripts in `data_scripts/` leave them: CamVid, LabelMeFacade, and converted trees."""

import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from apd.data.image_folder import FolderDataset, find_data, images_below, pair_folders
from apd.data.images import DataError, MissingData, read_text
from apd.data.specs import CAMVID, DatasetSpec

CONVERTED = "apd_labels"
# name of a spec -> the data set's folder below APD_DATA, and the script that makes it
PUBLISHED_FOLDERS = {
    "cityscapes": ("cityscapes", "cityscapes.py"),
    "ade20k": ("ADEChallengeData2016", "ade20k.py"),
    "pascal_context_59": ("pascal_context", "pascal_context.py"),
    "pascal_context_60": ("pascal_context", "pascal_context.py"),
    "coco": ("coco", "coco.py"),
}
# door, vegetation and window take the colours of classes of CamVid that are not among these
_CLASSES = ("building", "car", "door", "pavement", "road", "sky", "vegetation", "window")
_LIKE_CAMVID = {"door": "sign", "vegetation": "tree", "window": "pole"}

LABELMEFACADE = DatasetSpec(
    "labelmefacade",
    _CLASSES,
    tuple(CAMVID.palette[CAMVID.index(_LIKE_CAMVID.get(name, name))] for name in _CLASSES),
    splits=(("train", 384), ("val", 81), ("test", 200), ("test_out_of_place", 268), ("night", 12)),
)
"""LabelMeFacade with its 8 classes; what is none of them is ignored. `splits` are this study's."""


def _check_split(split: str, spec: DatasetSpec) -> None:
    if split not in dict(spec.splits):
        known = ", ".join(dict(spec.splits))
        raise ValueError(f"split={split!r} is unknown; expected one of {known}, for which {spec.name} has labels")


class CamVid(FolderDataset):
    """CamVid in the SegNet tutorial's form: 11 classes, 360×480, 367/101/233 pairs, in the order of its list files.

    `root` holds ``train/``, ``trainannot/`` and so on; `options` are those of `FolderDataset`. Too few or too many
    images, and a list ``<split>.txt`` that does not name each pair once, are a DataError (without one: by name).
    """

    def __init__(self, root: Path | str, split: str, **options: int | bool | None) -> None:
        _check_split(split, CAMVID)
        self.root, self.split = Path(root), split
        advice = "extract it again, or run `python data_scripts/camvid.py fetch DEST` and set APD_DATA to DEST"
        if not os.path.isdir(root):
            raise MissingData(f"CamVid folder {root} is missing; {advice}")
        expected = {folder: n for split, n in CAMVID.splits for folder in (split, f"{split}annot")}
        there = {folder: self.root / folder for folder in expected if os.path.isdir(self.root / folder)}
        found = dict.fromkeys(expected, 0) | {folder: len(images_below(path)) for folder, path in there.items()}
        if found != expected:
            counts = ", ".join(f"{folder}/ {found[folder]} of {n}" for folder, n in expected.items())
            kind = DataError if any(found.values()) else MissingData
            raise kind(f"CamVid in {root} is not complete: {counts} images; {advice}")
        pairs = pair_folders(self.root / split, self.root / f"{split}annot")
        super().__init__(CAMVID, _in_list_order(pairs, self.root / f"{split}.txt"), **options)


def _in_list_order(pairs: list[tuple[Path, Path]], file: Path) -> list[tuple[Path, Path]]:
    """The pairs in the order of a list whose lines are "image mask", of which only the stems are used."""
    if not file.exists():
        return pairs
    left, ordered = {image.stem: (image, mask) for image, mask in pairs}, []
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        stems = [Path(part).stem for part in line.split()]
        if stems and (len(stems) != 2 or stems[0] != stems[1] or stems[0] not in left):
            expected = "an image and its mask that are there, and no pair twice"
            raise DataError(f"{file} line {number}: {line!r:.200}; expected {expected}")
        if stems:
            ordered.append(left.pop(stems[0]))
    if left:
        raise DataError(f"{file} does not name {next(iter(left))} ({len(left)} such pairs); expected every pair once")
    return ordered


@cache
def listed_splits() -> dict[str, tuple[str, ...]]:
    """The names of LabelMeFacade's images in each split of this study, without suffix, sorted.

    `train`, `val` and `test` share places, but no house; `test_out_of_place` is Spain by day, `night` by night.
    """
    splits: dict[str, list[str]] = {split: [] for split, _ in LABELMEFACADE.splits}
    for line in Path(__file__).with_name("labelmefacade_splits.txt").read_text(encoding="utf-8").splitlines():
        split, stem = line.split()
        splits[split].append(stem)
    return {split: tuple(stems) for split, stems in splits.items()}


class LabelMeFacade(FolderDataset):
    """One split of LabelMeFacade (see `listed_splits`), written by ``data_scripts/labelmefacade.py convert``.

    `root` holds ``images/`` and ``labels/``; `options` are those of `FolderDataset`. Short sides have 320 pixels.
    """

    def __init__(self, split: str, *, root: Path | str | None = None, **options: int | bool | None) -> None:
        _check_split(split, LABELMEFACADE)
        self.root, self.split = find_data("LabelMeFacade") if root is None else Path(root), split
        pairs = {image.stem: (image, mask) for image, mask in pair_folders(self.root / "images", self.root / "labels")}
        wanted = listed_splits()[split]
        if missing := [stem for stem in wanted if stem not in pairs]:
            lack = f"{missing[0]} and {len(missing) - 1} more of the {len(wanted)} images of {split}"
            raise MissingData(f"{self.root} lacks {lack}; run `python data_scripts/labelmefacade.py convert` again")
        super().__init__(LABELMEFACADE, [pairs[stem] for stem in wanted], **options)


class ConvertedDataset(FolderDataset):
    """One split, "train" or "val", of a published data set, from the ``apd_labels/`` that its script has made.

    `root` is the data set's folder, `options` are those of `FolderDataset`. Maps of other classes are a DataError.
    """

    def __init__(
        self, spec: DatasetSpec, split: str, *, root: Path | str | None = None, **options: int | bool | None
    ) -> None:
        _check_split(split, spec)
        folder, script = PUBLISHED_FOLDERS[spec.name]
        self.root, self.split = find_data(folder, script=script) if root is None else Path(root), split
        advice = f"run `python data_scripts/{script} convert {self.root}`"
        _demand_classes(self.root / CONVERTED / "classes.json", spec, advice)
        pairs = list(_listed_pairs(self.root, self.root / CONVERTED / f"{split}.txt", advice))
        super().__init__(spec, pairs, **{"cache": None} | options)


def _demand_classes(file: Path, spec: DatasetSpec, advice: str) -> None:
    if not file.is_file():
        raise MissingData(f"{file} is missing: {spec.name} has not been converted; {advice}")
    try:
        classes = json.loads(read_text(file))["classes"]
        named = tuple(classes[value] for value in spec.file_values or range(len(classes)))
    except (DataError, ValueError, LookupError, TypeError, RecursionError) as error:
        damage = f"is not what the conversion writes ({error!r:.200})"
        raise DataError(f"{file} {damage}; move the folder away and {advice}") from error
    if named != spec.class_names:
        differing = [pair for pair in zip(named, spec.class_names, strict=False) if pair[0] != pair[1]]
        found = f"{differing[0][0]!r} in place of {differing[0][1]!r}" if differing else f"{len(named)} classes"
        raise DataError(f"{file} has {found}; {spec.name} has other classes: move the folder away and {advice}")


def _listed_pairs(root: Path, file: Path, advice: str) -> Iterator[tuple[Path, Path]]:
    if not file.is_file():
        raise MissingData(f"{file} is missing: the conversion has not come to its end; {advice}")
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        names = line.split("\t")
        if len(names) != 2:
            raise DataError(f"{file} line {number}: {line[:90]!r}; expected image and label map with a tab between")
        pair = root / names[0], root / names[1]
        for path in pair:
            if not os.path.isfile(path):  # False, unlike Path's own, of a name too long
                raise MissingData(f"{path} is missing, {file.name} line {number} names it; fetch it again or {advice}")
        yield pair
