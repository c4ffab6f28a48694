"""Published data sets after their script's conversion: lists of pairs, and label maps of labels 0..K-1 and 255.

The script of a data set (`data_scripts/`) writes ``apd_labels/`` into the data set's folder: ``classes.json``, a label
map for every image, and last the list of each split. So a list that is there is whole.
"""

import json
from pathlib import Path

from apd.data.image_folder import FolderDataset, find_data
from apd.data.images import DataError, MissingData, read_text
from apd.data.specs import DatasetSpec

CONVERTED = "apd_labels"
# name of a spec -> the data set's folder below APD_DATA, and the script that makes it
PUBLISHED_FOLDERS = {
    "cityscapes": ("cityscapes", "cityscapes.py"),
    "ade20k": ("ADEChallengeData2016", "ade20k.py"),
    "pascal_context_59": ("pascal_context", "pascal_context.py"),
    "pascal_context_60": ("pascal_context", "pascal_context.py"),
    "coco": ("coco", "coco.py"),
}


class ConvertedDataset(FolderDataset):
    """One split of a published data set, from the label maps that its script has made.

    That the maps were made for these classes and that every listed file is there is seen at construction. The pixels
    are checked as in `FolderDataset`: at construction where all pairs fit into memory, else when they are read; the
    script's `check` looks at all of them.

    Args:
        spec: one of those in `apd.data.published_specs`.
        split: ``"train"`` or ``"val"``.
        root: the data set's folder (default: that below ``APD_DATA``).
        height, width: as in `FolderDataset` (default: each picture's own size).
        cache: as in `FolderDataset` (default None: what takes at most 2 GiB is kept in memory).

    Raises:
        MissingData: the folder, the conversion, or a file that the list names is not there.
        DataError: the conversion is of other classes, or its list is damaged.
        ValueError: a split that the data set does not have, such as the test split, whose labels are not public.

    Example:
        >>> from apd.data.published_specs import ADE20K
        >>> val = ConvertedDataset(ADE20K, "val")    # doctest: +SKIP
        >>> val[0].image_3HW.shape                   # doctest: +SKIP
        torch.Size([3, 512, 683])
    """

    def __init__(
        self,
        spec: DatasetSpec,
        split: str,
        *,
        root: Path | str | None = None,
        height: int | None = None,
        width: int | None = None,
        cache: bool | None = None,
    ) -> None:
        splits = [name for name, _ in spec.splits]
        if split not in splits:
            raise ValueError(f"split={split!r}: {spec.name} has labels for {', '.join(splits)} only")
        folder, script = PUBLISHED_FOLDERS[spec.name]
        self.root = find_data(folder, script=script) if root is None else Path(root)
        self.split = split
        advice = f"run `python data_scripts/{script} convert {self.root}`"
        _demand_classes(self.root / CONVERTED / "classes.json", spec, advice)
        pairs = _listed_pairs(self.root, self.root / CONVERTED / f"{split}.txt", advice)
        super().__init__(spec, pairs, height=height, width=width, cache=cache)


def _demand_classes(file: Path, spec: DatasetSpec, advice: str) -> None:
    """The names that a conversion gives its labels must be those of the spec."""
    if not file.is_file():
        raise MissingData(f"{file} is missing: {spec.name} has not been converted; {advice}")
    try:
        classes = json.loads(file.read_text(encoding="utf-8"))["classes"]
        named = tuple(classes[value] for value in spec.file_values or range(len(classes)))
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(
            f"{file} is not what the conversion writes ({error!r}); move the folder away and {advice}"
        ) from error
    if named != spec.class_names:
        differing = [pair for pair in zip(named, spec.class_names, strict=False) if pair[0] != pair[1]]
        told = f"{differing[0][0]!r} in place of {differing[0][1]!r}" if differing else f"{len(named)} classes"
        raise DataError(f"{file} has {told}; {spec.name} has other classes: move the folder away and {advice}")


def _listed_pairs(root: Path, file: Path, advice: str) -> list[tuple[Path, Path]]:
    if not file.is_file():
        raise MissingData(f"{file} is missing: the conversion has not come to its end; {advice}")
    pairs = []
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        names = line.split("\t")
        if len(names) != 2:
            raise DataError(f"{file} line {number}: {line[:90]!r}; expected image and label map with a tab between")
        pair = root / names[0], root / names[1]
        for path in pair:
            if not path.is_file():
                raise MissingData(
                    f"{path} is missing, {file.name} line {number} names it; fetch the data again or {advice}"
                )
        pairs.append(pair)
    return pairs
