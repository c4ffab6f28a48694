"""A folder of pictures and masks of anybody's own as a data set: a small file ``dataset.yaml`` in it says what is what.

All it must say is the classes::

    classes: [soil, crop]

Everything else has a default, see `open_folder`.
"""

import difflib
import os
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from apd.data.catalogue import RGB, DatasetSpec
from apd.data.folder import FolderDataset
from apd.data.palettes import distinct_colours
from apd.data.picture_files import DataError, MissingData, pair_folders, picture_size, pictures

DESCRIPTION = "dataset.yaml"
SPLITS = ("train", "val", "test")


def locate_folder(folder: Path | str) -> Path:
    """The folder itself where the path is absolute; else that below ``APD_DATA``, or else below the working directory.

    Raises:
        MissingData: it is in neither place, or holds no ``dataset.yaml``.
    """
    given = Path(folder).expanduser()
    places = [given]
    if not given.is_absolute() and os.environ.get("APD_DATA"):
        places.insert(0, Path(os.environ["APD_DATA"]).expanduser() / given)
    for place in places:
        if (place / DESCRIPTION).is_file():
            return place
    tried = " and ".join(str(place.absolute()) for place in places)
    raise MissingData(
        f"there is no {DESCRIPTION} in {tried}; give the folder that holds it, and write into it at least the classes, "
        "as in: classes: [soil, crop]"
    )


def folder_spec(folder: Path | str) -> DatasetSpec:
    """The `DatasetSpec` that a folder's ``dataset.yaml`` describes; its pictures are not looked at.

    Raises:
        MissingData: there is no such folder or file.
        DataError: the file is no YAML, or has an unknown entry, one of a wrong kind, or entries that contradict.

    Example:
        >>> from tempfile import mkdtemp
        >>> folder = Path(mkdtemp())
        >>> _ = (folder / "dataset.yaml").write_text("classes: [soil, crop]")
        >>> folder_spec(folder).class_names
        ('soil', 'crop')
    """
    folder = locate_folder(folder)
    return _spec(_described(folder / DESCRIPTION), folder)


def open_folder(
    folder: Path | str,
    split: str,
    *,
    height: int | None = None,
    width: int | None = None,
    cache: bool | None = None,
) -> FolderDataset:
    """One split of the data set in a folder that holds a ``dataset.yaml``, checked.

    The file's entries, of which only `classes` must be there:

    ======================  =====================================================================================
    ``classes``             names, in label order
    ``name``                the data set's name in records and messages (default: that of the folder)
    ``values``              value of each class in the masks (default: 0, 1, 2, ...)
    ``ignore``              values in the masks that count nowhere (default: none beside 255)
    ``palette``             an RGB colour for each class (default: colours far apart)
    ``splits``              where each of ``train``, ``val`` and ``test`` is: ``images`` and ``masks`` are folders
                            (default: ``images/train`` and ``masks/train``); ``list``, a text file with a
                            name on each line, takes only these of them (default: all)
    ======================  =====================================================================================

    Paths are relative to the folder. Image and mask have one name, suffix aside. 255 in a mask is ignored unless it is
    the value of a class.

    Args:
        folder: the folder that holds ``dataset.yaml``; a relative path is looked for below ``APD_DATA`` first.
        split: ``"train"``, ``"val"`` or ``"test"``.
        height, width: as in `FolderDataset` (default: each picture's own size).
        cache: as in `FolderDataset` (default None: what takes at most 2 GiB is kept in memory).

    Raises:
        MissingData: a folder, a file or the split is not there.
        DataError: what `folder_spec` refuses, an image without mask or the reverse, a list that names an unknown or a
            known picture twice, a picture of train that is in this split too, or what `FolderDataset` refuses.
        ValueError: another name of a split.

    Example:
        >>> train = open_folder("fields", "train", height=240, width=320)    # doctest: +SKIP
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is unknown; expected one of {', '.join(SPLITS)}")
    folder = locate_folder(folder)
    described = _described(folder / DESCRIPTION)
    spec, pairs = _spec(described, folder), _pairs(described, folder, split)
    if split != "train":
        trained_on = {image.resolve() for image, _ in _pairs(described, folder, "train")}
        if both := [image for image, _ in pairs if image.resolve() in trained_on]:
            raise DataError(
                f"{both[0]} is in the splits train and {split} ({len(both)} such pictures); keep them apart"
            )
    return FolderDataset(spec, pairs, height=height, width=width, cache=cache)


def has_split(folder: Path | str, split: str) -> bool:
    """Whether a folder has a split: its ``dataset.yaml`` lists it or, where that lists none, ``images/SPLIT`` is there.

    Raises:
        DataError: as `folder_spec`.
    """
    folder = locate_folder(folder)
    tables = _described(folder / DESCRIPTION).get("splits")
    return (folder / "images" / split).is_dir() if tables is None else split in tables


def image_sizes(folder: Path | str, split: str) -> list[tuple[int, int]]:
    """(height, width) of each image of a split on disk, in order; only the first bytes of files are read.

    Raises:
        DataError: as `open_folder`, for what can be seen without pixels.
    """
    folder = locate_folder(folder)
    pairs = _pairs(_described(folder / DESCRIPTION), folder, split)
    return [picture_size(image)[::-1] for image, _ in pairs]


class _EachKeyOnce(yaml.SafeLoader):
    """YAML's plain types; of an entry that is there twice PyYAML itself takes the last one, in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # refused below
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"{key} is there twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _described(file: Path) -> dict[str, Any]:
    """The content of a ``dataset.yaml`` whose entries all have known names and kinds."""
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), _EachKeyOnce) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{file} holds {content!r:.80}; expected entries, such as classes: [soil, crop]")
    whole_numbers = ("a list of whole numbers", lambda v: _is_list(v, int))
    kinds = {
        "classes": ("a list of names, in quotes where they are such as no or 1", lambda v: _is_list(v, str)),
        "name": ("a text", lambda v: isinstance(v, str) and bool(v)),
        "values": whole_numbers,
        "ignore": whole_numbers,
        "palette": ("a list of [red, green, blue]", lambda v: _is_list(v, list) and all(_is_list(c, int) for c in v)),
        "splits": ("entries train, val and test", lambda v: isinstance(v, dict)),
    }
    _demand(content, kinds, file, "")
    if "classes" not in content:
        raise DataError(f"{file} names no classes; expected an entry such as classes: [soil, crop]")
    tables = ("entries images, masks or list", lambda v: isinstance(v, dict))
    _demand(content.get("splits", {}), dict.fromkeys(SPLITS, tables), file, "splits.")
    for split, table in content.get("splits", {}).items():
        paths = ("a path", lambda v: isinstance(v, str) and bool(v))
        _demand(table, dict.fromkeys(("images", "masks", "list"), paths), file, f"splits.{split}.")
    return content


def _demand(content: dict[str, Any], kinds: dict[str, Any], file: Path, above: str) -> None:
    for name, value in content.items():
        if name not in kinds:
            near = difflib.get_close_matches(str(name), list(kinds), n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(kinds)}"
            raise DataError(f"{file} has the unknown entry {above}{name}; {hint}")
        expected, fits = kinds[name]
        if not fits(value):
            raise DataError(f"{file}: {above}{name} = {value!r:.80}; expected {expected}")


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(type(entry) is kind for entry in value)


def _spec(described: dict[str, Any], folder: Path) -> DatasetSpec:
    classes = tuple(described["classes"])
    values = tuple(described.get("values", ()))
    palette: tuple[RGB, ...] = tuple(tuple(colour) for colour in described.get("palette", ()))
    try:
        return DatasetSpec(
            name=described.get("name", folder.resolve().name),
            class_names=classes,
            palette=palette or (distinct_colours(len(classes)) if classes else ()),
            void_values=tuple(described.get("ignore", ())),
            file_values=values if values != tuple(range(len(classes))) else (),
        )
    except ValueError as error:
        raise DataError(f"{folder / DESCRIPTION}: {error}") from error


def _pairs(described: dict[str, Any], folder: Path, split: str) -> list[tuple[Path, Path]]:
    tables = described.get("splits")
    if tables is not None and split not in tables:
        raise MissingData(f"{folder / DESCRIPTION} has no splits.{split}; it has {', '.join(tables) or 'none'}")
    table = {} if tables is None else tables[split]
    images, masks = (folder / table.get(kind, f"{kind}/{split}") for kind in ("images", "masks"))
    if "list" not in table:
        return pair_folders(images, masks)
    return _listed(pictures(images), pictures(masks), folder / table["list"], masks)


def _listed(images: dict[str, Path], masks: dict[str, Path], file: Path, mask_dir: Path) -> list[tuple[Path, Path]]:
    """The pairs whose names, with or without suffix, stand on the lines of a file, in its order."""
    if not file.is_file():
        raise MissingData(f"the list {file} is missing; expected a text file with the name of a picture on each line")
    pairs: dict[str, tuple[Path, Path]] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not (name := line.strip()):
            continue
        stem = name if name in images else Path(name).stem
        if stem not in images:
            raise DataError(f"{file} line {number}: there is no picture {name!r} in the split's folder of images")
        if stem not in masks:
            raise DataError(f"{images[stem]} has no partner in {mask_dir}; image and mask must have the same name")
        if stem in pairs:
            raise DataError(f"{file} line {number} names {name!r} a second time")
        pairs[stem] = images[stem], masks[stem]
    if not pairs:
        raise DataError(f"the list {file} is empty; expected the name of a picture on each line")
    return list(pairs.values())
