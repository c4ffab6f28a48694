"""A folder of images and masks of anybody's own as a data set: a small file ``dataset.yaml`` in it says what is what.

All it must say is the classes::

    classes: [soil, crop]

Everything else has a default, see `open_folder`.
"""

import difflib
import os
import re
import unicodedata
import warnings
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

import yaml

from apd.data.image_folder import FolderDataset
from apd.data.images import DataError, DataWarning, MissingData, picture_size, read_text
from apd.data.paired_files import STEM, PairedFolders, stem_of
from apd.data.published_specs import distinct_colours
from apd.data.specs import RGB, DatasetSpec

DESCRIPTION = "dataset.yaml"
SPLITS = ("train", "val", "test")
# what other tools call these entries
_ALIASES = {
    **dict.fromkeys(("names", "labels", "categories", "class_names", "nc", "num_classes"), "classes"),
    **dict.fromkeys(("ignore_index", "ignore_label", "ignored", "void"), "ignore"),
    **dict.fromkeys(("colormap", "color_map", "class_colors", "class_colours"), "colours"),
    **dict.fromkeys(("train", "val", "test"), "splits"),
    **dict.fromkeys(("annotations", "targets", "mask_name", "mask_suffix"), "masks"),
}


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
    ``colours``             or else the RGB colour of each class in the masks: a table by class, or a list in order
    ``ignore``              values, or colours, in the masks that count nowhere (default: none beside 255)
    ``palette``             an RGB colour for each class in figures (default: `colours`, or colours far apart)
    ``images``, ``masks``   where the files of a split are (default: the folders ``images/{split}`` and
                            ``masks/{split}``); with ``{stem}`` a pattern of names, as in ``"{stem}_mask.png"``
    ``splits``              the same for each of ``train``, ``val`` and ``test`` that there is (default: the entries
                            above); ``list``, a text file with a name on each line, takes only these (default: all)
    ======================  =====================================================================================

    Paths are relative to the folder, and folders below are searched as well. Image and mask have one path in theirs,
    suffix aside, or one ``{stem}``. A pattern without a folder stands for files in the default folder, or, for masks
    where there is none, beside the images. 255 in a mask is ignored unless it is the value of a class.

    A `DataWarning` tells how many files are neither image nor mask.

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
    spec, pairs = _spec(described, folder), _pairs(described, folder, split, warn=True)
    if split != "train":
        trained_on = {image.resolve() for image, _ in _pairs(described, folder, "train")}
        if both := [image for image, _ in pairs if image.resolve() in trained_on]:
            raise DataError(f"{both[0]} is in the splits train and {split} ({len(both)} such images); keep them apart")
    return FolderDataset(spec, pairs, height=height, width=width, cache=cache)


def has_split(folder: Path | str, split: str) -> bool:
    """Whether its ``dataset.yaml`` lists a split or, where that lists none, the images' folder is there."""
    folder = locate_folder(folder)
    described = _described(folder / DESCRIPTION)
    if (tables := described.get("splits")) is not None:
        return split in tables
    (images, _), *_ = _where(described, folder, split)
    return images.is_dir()


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
        content = yaml.load(read_text(file), _EachKeyOnce) or {}
    except yaml.YAMLError as error:
        raise DataError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{file} holds {content!r:.80}; expected entries, such as classes: [soil, crop]")
    colours = ("a list of [red, green, blue]", lambda v: _is_list(v, list) and all(_is_list(c, int) for c in v))
    place = (f"a path, in whose last part {STEM} may stand for the name of an image", _is_place)
    kinds = {
        "classes": ("a list of names, in quotes where they are such as no or 1", lambda v: _is_list(v, str)),
        "name": ("a text", lambda v: isinstance(v, str) and bool(v)),
        "values": ("a list of whole numbers", lambda v: _is_list(v, int)),
        "colours": (
            f"{colours[0]}, or a table of class: [red, green, blue]",
            lambda v: colours[1](list(v.values()) if isinstance(v, dict) else v),
        ),
        "ignore": (
            "a list of whole numbers, or of colours [red, green, blue]",
            lambda v: _is_list(v, int) or colours[1](v),
        ),
        "palette": colours,
        "images": place,
        "masks": place,
        "splits": ("entries train, val and test", lambda v: isinstance(v, dict)),
    }
    _demand(content, kinds, file, "")
    if "classes" not in content:
        raise DataError(f"{file} names no classes; expected an entry such as classes: [soil, crop]")
    tables = ("entries images, masks or list", lambda v: isinstance(v, dict))
    _demand(content.get("splits", {}), dict.fromkeys(SPLITS, tables), file, "splits.")
    path = ("a path", lambda v: isinstance(v, str) and bool(v))
    for split, table in content.get("splits", {}).items():
        _demand(table, {"images": place, "masks": place, "list": path}, file, f"splits.{split}.")
    return content


def _is_place(value: Any) -> bool:
    """A path; placeholders are {split} anywhere and one {stem} in its last part, and others are a mistake."""
    if not isinstance(value, str) or not value or "*" in value:
        return False
    unknown = set(re.findall(r"\{[a-z_]*\}", value)) - {STEM, "{split}"}
    return not unknown and value.count(STEM) == value.rpartition("/")[2].count(STEM) <= 1


def _demand(content: dict[str, Any], kinds: dict[str, Any], file: Path, above: str) -> None:
    for name, value in content.items():
        if name not in kinds:
            alias = _ALIASES.get(str(name).lower())
            near = [alias] if alias in kinds else difflib.get_close_matches(str(name), list(kinds), n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(kinds)}"
            raise DataError(f"{file} has the unknown entry {above}{name}; {hint}")
        expected, fits = kinds[name]
        if not fits(value):
            raise DataError(f"{file}: {above}{name} = {value!r:.80}; expected {expected}")


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(type(entry) is kind for entry in value)


def _spec(described: dict[str, Any], folder: Path) -> DatasetSpec:
    file, classes = folder / DESCRIPTION, tuple(described["classes"])
    values, ignored = tuple(described.get("values", ())), described.get("ignore", ())
    colours = described.get("colours", ())
    if isinstance(colours, dict):
        if wrong := [name for name in (*colours, *classes) if (name in colours) != (name in classes)]:
            told = "is no class" if wrong[0] in colours else "has no colour"
            raise DataError(f"{file}: colours: {wrong[0]} {told}; give each class one, and those of no class to ignore")
        colours = [colours[name] for name in classes]
    colours, palette = _rgb(colours), _rgb(described.get("palette", ()))
    try:
        return DatasetSpec(
            name=described.get("name", folder.resolve().name),
            class_names=classes,
            palette=palette or colours or (distinct_colours(len(classes)) if classes else ()),
            void_values=tuple(entry for entry in ignored if isinstance(entry, int)),
            file_values=values if values != tuple(range(len(classes))) else (),
            file_colours=colours,
            void_colours=_rgb(entry for entry in ignored if isinstance(entry, list)),
        )
    except ValueError as error:
        raise DataError(f"{file}: {error}") from error


def _rgb(colours: Iterable[list[int]]) -> tuple[RGB, ...]:
    return tuple(tuple(colour) for colour in colours)


def _where(described: dict[str, Any], folder: Path, split: str) -> tuple[tuple[Path, str], tuple[Path, str], str]:
    """Of images and of masks the folder and the pattern of names, and the list file or nothing."""
    tables = described.get("splits")
    if tables is not None and split not in tables:
        raise MissingData(f"{folder / DESCRIPTION} has no splits.{split}; it has {', '.join(tables) or 'none'}")
    table = {} if tables is None else tables[split]
    places = []
    for kind in ("images", "masks"):
        default = f"{kind}/{split}"
        text = table.get(kind, described.get(kind, default)).replace("{split}", split)
        above, _, name = text.rpartition("/")
        if STEM not in name:
            places.append((folder / text, STEM))
        elif kind == "masks" and not above and not (folder / default).is_dir():
            places.append((places[0][0], name))  # beside the images
        else:
            places.append((folder / (above or default), name))
    return places[0], places[1], table.get("list", "")


def _pairs(described: dict[str, Any], folder: Path, split: str, *, warn: bool = False) -> list[tuple[Path, Path]]:
    (image_dir, image_name), (mask_dir, mask_name), listing = _where(described, folder, split)
    found = PairedFolders.found(image_dir, mask_dir, image_name=image_name, mask_name=mask_name)
    if listing:
        return _listed(found, folder / listing)
    pairs = found.pairs()
    if warn and (told := found.left_out()):
        warnings.warn(told, DataWarning, stacklevel=3)
    return pairs


def _listed(found: PairedFolders, file: Path) -> list[tuple[Path, Path]]:
    """The pairs whose names, with or without suffix and folders above, stand on the lines of a file, in its order."""
    if not file.is_file():
        raise MissingData(f"the list {file} is missing; expected a text file with the name of an image on each line")
    pairs: dict[str, tuple[Path, Path]] = {}
    stems = {stem_of(path.relative_to(found.image_dir)): stem for stem, path in found.images.items()}
    stems |= {stem: stem for stem in found.images}
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        if not (name := line.strip()):
            continue
        parts = unicodedata.normalize("NFC", name).replace("\\", "/").split("/")
        below = ["/".join(parts[first:]) for first in range(len(parts))]
        known = [key for path in below for key in (path, path.removesuffix(Path(path).suffix)) if key in stems]
        if not known:
            raise DataError(f"{file} line {number}: there is no image {name!r} in {found.image_dir}{found.hint()}")
        stem = stems[known[0]]
        if stem not in found.masks:
            raise DataError(
                f"{found.images[stem]} has no partner in {found.mask_dir}; image and mask must have the same name"
            )
        if stem in pairs:
            raise DataError(f"{file} line {number} names {name!r} a second time")
        pairs[stem] = found.images[stem], found.masks[stem]
    if not pairs:
        raise DataError(f"the list {file} is empty; expected the name of an image on each line")
    return list(pairs.values())
