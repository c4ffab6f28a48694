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
    """CamVid in the SegNet tutorial's form: 11 classes, 360×480, 367/101/233 pairs, by name, the order of its lists.

    `root` holds ``train/``, ``trainannot/`` and so on; `options` are those of `FolderDataset`. Too few or too many
    images are a DataError.
    """

    def __init__(self, root: Path | str, split: str, **options: int | bool | None) -> None:
        _check_split(split, CAMVID)
        root = Path(root)
        expected = {folder: n for split, n in CAMVID.splits for folder in (split, f"{split}annot")}
        found = {folder: len(images_below(root / folder)) if os.path.isdir(root / folder) else 0 for folder in expected}
        if found != expected:
            counts = ", ".join(f"{folder}/ {found[folder]} of {n}" for folder, n in expected.items())
            advice = "extract it again, or run `python data_scripts/camvid.py fetch DEST` and set APD_DATA to DEST"
            raise MissingData(f"CamVid in {root} is not complete: {counts} images; {advice}")
        super().__init__(CAMVID, pair_folders(root / split, root / f"{split}annot"), **options)


@cache
def listed_splits() -> dict[str, tuple[str, ...]]:
    """The names of LabelMeFacade's images in each split of this study, without suffix, sorted.

    `train`, `val` and `test` share places, but no house; `test_out_of_place` is Spain by day, `night` by night.
    """
    lines = Path(__file__).with_name("labelmefacade_splits.txt").read_text(encoding="utf-8").splitlines()
    named = [line.split() for line in lines]
    return {split: tuple(stem for of, stem in named if of == split) for split, _ in LABELMEFACADE.splits}


class LabelMeFacade(FolderDataset):
    """One split of LabelMeFacade (see `listed_splits`), written by ``data_scripts/labelmefacade.py convert``.

    `options` are those of `FolderDataset`. Short sides have 320 pixels.
    """

    def __init__(self, split: str, **options: int | bool | None) -> None:
        _check_split(split, LABELMEFACADE)
        convert = "`python data_scripts/labelmefacade.py convert DEST/LabelMeFacade-published DEST`"
        root = find_data("LabelMeFacade", then=f", then {convert}")
        pairs = {image.stem: (image, mask) for image, mask in pair_folders(root / "images", root / "labels")}
        wanted = listed_splits()[split]
        if missing := [stem for stem in wanted if stem not in pairs]:
            lack = f"{missing[0]} and {len(missing) - 1} more of the {len(wanted)} images of {split}"
            raise MissingData(f"{root} lacks {lack}; move it away and run {convert}")
        super().__init__(LABELMEFACADE, [pairs[stem] for stem in wanted], **options)


class ConvertedDataset(FolderDataset):
    """One split, "train" or "val", of a published data set, from the ``apd_labels/`` that its script has made.

    `options` are those of `FolderDataset`. Maps of other classes are a DataError.
    """

    def __init__(self, spec: DatasetSpec, split: str, **options: int | bool | None) -> None:
        _check_split(split, spec)
        folder, script = PUBLISHED_FOLDERS[spec.name]
        root = find_data(folder, script=script)
        advice = f"run `python data_scripts/{script} convert {root}`"
        _demand_classes(root / CONVERTED / "classes.json", spec, advice)
        pairs = list(_listed_pairs(root, root / CONVERTED / f"{split}.txt", advice))
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
                raise MissingData(f"{path} is missing, {file.name} line {number} names it; restore it, or {advice}")
        yield pair
