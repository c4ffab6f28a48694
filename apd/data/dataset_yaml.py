"""A folder of images and masks of one's own as a data set, described by a file ``dataset.yaml`` in it."""

import glob
import os
import re
import unicodedata
import warnings
from collections.abc import Hashable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from apd.data.image_folder import IMAGE_SUFFIXES, STEM, FolderDataset, PairedFolders, images_below, stem_of
from apd.data.images import DataError, DataWarning, MissingData, image_size, read_text
from apd.data.specs import RGB, DatasetSpec, distinct_colours
from apd.fields import did_you_mean

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


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(type(entry) is kind for entry in value)


def _is_colours(value: Any) -> bool:
    return _is_list(value, list) and all(_is_list(colour, int) for colour in value)


def _is_place(value: Any) -> bool:
    """A path; placeholders are {split} anywhere and one {stem} in its last part, and others are a mistake."""
    if not isinstance(value, str) or not value or "*" in value:
        return False
    unknown = set(re.findall(r"\{[a-z_]*\}", value)) - {STEM, "{split}"}
    return not unknown and value.count(STEM) == value.rpartition("/")[2].count(STEM) <= 1


# entry -> (what is expected, whether a value is that)
_PLACE = (f"a path, in whose last part {STEM} may stand for the name of an image", _is_place)
_COLOURS, _NUMBERS = "a list of [red, green, blue]", "a list of whole numbers"
_OF_CLASSES = f"{_COLOURS}, or a table of class: [red, green, blue]"
_ENTRIES = {
    "classes": ("a list of two names or more, quoted where such as no or 1", lambda v: _is_list(v, str) and len(v) > 1),
    "name": ("a text", lambda v: isinstance(v, str) and bool(v)),
    "values": (_NUMBERS, lambda v: _is_list(v, int)),
    "colours": (_OF_CLASSES, lambda v: _is_colours(list(v.values()) if isinstance(v, dict) else v)),
    "ignore": (f"{_NUMBERS}, or of colours [red, green, blue]", lambda v: _is_list(v, int) or _is_colours(v)),
    "palette": (_COLOURS, _is_colours),
    "images": _PLACE,
    "masks": _PLACE,
    "splits": ("entries train, val and test", lambda v: isinstance(v, dict)),
    "unlabelled": ("a folder, or a pattern with * of files", lambda v: isinstance(v, str) and bool(v)),
}
_SPLITS = dict.fromkeys(SPLITS, ("entries images, masks or list", lambda v: isinstance(v, dict)))
_OF_SPLIT = {"images": _PLACE, "masks": _PLACE, "list": ("a path", lambda v: isinstance(v, str) and bool(v))}


def locate_folder(folder: Path | str) -> Path:
    """A folder with a ``dataset.yaml``; a relative path is tried below ``APD_DATA``, then in the working directory."""
    given = Path(os.path.expanduser(folder))
    places = [given]
    if not given.is_absolute() and os.environ.get("APD_DATA"):
        places.insert(0, Path(os.path.expanduser(os.environ["APD_DATA"])) / given)
    for place in places:
        if os.path.isfile(place / DESCRIPTION):  # False, unlike Path's own, of a name too long
            return place
    tried = " and ".join(str(place.absolute()) for place in places)
    advice = "give the folder that holds it, and write into it at least the classes, as in: classes: [soil, crop]"
    raise MissingData(f"there is no {DESCRIPTION} in {tried}; {advice}")


def folder_spec(folder: Path | str) -> DatasetSpec:
    """The `DatasetSpec` that a folder's ``dataset.yaml`` describes; DataError where it does not describe one."""
    return _spec(*_described(folder))


def open_folder(folder: Path | str, split: str, **options: int | bool | None) -> FolderDataset:
    """One split of the data set in a folder that holds a ``dataset.yaml``, checked.

    `options` are those of `FolderDataset` (default cache: None). The book's page *The data* lists the file's entries.
    What cannot be meant, such as a file without partner or an image of train in this split too, is a DataError.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is unknown; expected one of {', '.join(SPLITS)}")
    described, folder = _described(folder)
    spec, pairs = _spec(described, folder), _pairs(described, folder, split, warn=True)
    if split != "train":
        trained_on = {os.path.realpath(image) for image, _ in _pairs(described, folder, "train")}
        if both := [image for image, _ in pairs if os.path.realpath(image) in trained_on]:
            raise DataError(f"{both[0]} is in the splits train and {split} ({len(both)} such images); keep them apart")
    return FolderDataset(spec, pairs, **{"cache": None} | options)


def unlabelled_images(folder: Path | str) -> list[Path]:
    """The images without masks that a folder's ``dataset.yaml`` names as `unlabelled`, or none where it names none.

    Those that train has, and its masks, are left out. One of val or test, or no image at all, is a DataError.
    """
    described, folder = _described(folder)
    if (place := described.get("unlabelled")) is None:
        return []
    found = [*images_below(folder / place).values()] if os.path.isdir(folder / place) else []
    with suppress(ValueError):  # no name of a file
        matching = sorted(folder / path for path in glob.glob(place, root_dir=folder, recursive=True) if path.encode())
        found += [path for path in matching if path.suffix.lower() in IMAGE_SUFFIXES and os.path.isfile(path)]
    found = {os.path.realpath(path): path for path in found}
    for split in (s for s in SPLITS if has_split(folder, s) and os.path.isdir(_where(described, folder, s)[2])):
        known = {os.path.realpath(path) for pair in _pairs(described, folder, split) for path in pair}
        if both := [found[path] for path in found if path in known and split != "train"]:
            raise DataError(f"{both[0]} is unlabelled and in {split} ({len(both)} such images); keep them apart")
        found = {real: path for real, path in found.items() if real not in known}
    if not found:
        raise DataError(f"{folder / DESCRIPTION}: unlabelled = {place!r:.80} leads to no image that train has not")
    return list(found.values())


def has_split(folder: Path | str, split: str) -> bool:
    """Whether its ``dataset.yaml`` lists a split or, where that lists none, the images' folder is there."""
    described, folder = _described(folder)
    tables = described.get("splits")
    return os.path.isdir(_where(described, folder, split)[0]) if tables is None else split in tables


def image_sizes(folder: Path | str, split: str) -> list[tuple[int, int]]:
    """(height, width) of each image of a split on disk, in order, from the first bytes of the files."""
    return [image_size(image)[::-1] for image, _ in _pairs(*_described(folder), split)]


class _EachKeyOnce(yaml.SafeLoader):
    """YAML's plain types; of an entry that is there twice PyYAML itself takes the last one, in silence."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):  # a few lines of them stand for billions of values
            raise yaml.MarkedYAMLError(problem="write out what * refers to", problem_mark=self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):  # others are refused below
                if key in seen:
                    raise yaml.MarkedYAMLError(problem=f"{key} is there twice", problem_mark=key_node.start_mark)
                seen.add(key)
        return super().construct_mapping(node, deep)


def _described(folder: Path | str) -> tuple[dict[str, Any], Path]:
    """The content of a folder's ``dataset.yaml``, whose entries all have known names and kinds; and the folder."""
    folder = locate_folder(folder)
    file = folder / DESCRIPTION
    text = read_text(file, most=1 << 18)  # own choice: 255 classes with long names and colours take a tenth
    try:
        content = yaml.load(text, _EachKeyOnce) or {}
        repr(content)  # as messages do: a number may have more digits than Python writes
    except Exception as error:  # PyYAML's constructors raise what Python's do: of a number or date that is none
        line = f", line {mark.line + 1}" if (mark := getattr(error, "problem_mark", None)) else ""
        raise DataError(f"{file} is not valid YAML: {getattr(error, 'problem', error)}{line}") from error
    if not isinstance(content, dict):
        raise DataError(f"{file} holds {content!r:.80}; expected entries, such as classes: [soil, crop]")
    _demand(content, _ENTRIES, file, "")
    if "classes" not in content:
        raise DataError(f"{file} names no classes; expected an entry such as classes: [soil, crop]")
    _demand(content.get("splits", {}), _SPLITS, file, "splits.")
    for split, table in content.get("splits", {}).items():
        _demand(table, _OF_SPLIT, file, f"splits.{split}.")
    return content, folder


def _demand(content: dict[str, Any], kinds: dict[str, Any], file: Path, above: str) -> None:
    for name, value in content.items():
        if name not in kinds:
            alias = _ALIASES.get(str(name).lower())
            hint = did_you_mean(alias if alias in kinds else str(name), kinds) or f"; known are {', '.join(kinds)}"
            raise DataError(f"{file} has the unknown entry {above}{name!s:.80}{hint}")
        expected, fits = kinds[name]
        if not fits(value):
            raise DataError(f"{file}: {above}{name} = {value!r:.80}; expected {expected}")


def _spec(described: dict[str, Any], folder: Path) -> DatasetSpec:
    file, classes = folder / DESCRIPTION, tuple(described["classes"])
    values, ignored = tuple(described.get("values", ())), described.get("ignore", ())
    colours = described.get("colours", ())
    if isinstance(colours, dict):
        if wrong := [name for name in (*colours, *classes) if (name in colours) != (name in classes)]:
            problem = f"{wrong[0]!s:.80} is {'no class' if wrong[0] in colours else 'a class without a colour'}"
            raise DataError(f"{file}: colours: {problem}; give each class one, and those of no class to ignore")
        colours = [colours[name] for name in classes]
    colours, palette = _rgb(colours), _rgb(described.get("palette", ()))
    try:
        return DatasetSpec(
            described.get("name", os.path.basename(os.path.realpath(folder))),
            classes,
            palette or colours or (distinct_colours(len(classes)) if classes else ()),
            void_values=tuple(sorted(entry for entry in ignored if isinstance(entry, int))),
            file_values=values if values != tuple(range(len(classes))) else (),
            file_colours=colours,
            void_colours=_rgb(entry for entry in ignored if isinstance(entry, list)),
        )
    except ValueError as error:
        raise DataError(f"{file}: {error}") from error


def _rgb(colours: Iterable[list[int]]) -> tuple[RGB, ...]:
    return tuple(tuple(colour) for colour in colours)


def _where(described: dict[str, Any], folder: Path, split: str) -> tuple[Path, str, Path, str, str]:
    """Folder and pattern of names of images and of masks, and the list file or nothing."""
    tables = described.get("splits")
    if tables is not None and split not in tables:
        raise MissingData(f"{folder / DESCRIPTION} has no splits.{split}; it has {', '.join(tables) or 'none'}")
    table = {} if tables is None else tables[split]
    places: list[Any] = []
    for kind in ("images", "masks"):
        default = f"{kind}/{split}"
        text = table.get(kind, described.get(kind, default)).replace("{split}", split)
        above, _, name = text.rpartition("/")
        if STEM not in name:
            places += folder / text, STEM
        elif kind == "masks" and not above and not (folder / default).is_dir():
            places += places[0], name  # beside the images
        else:
            places += folder / (above or default), name
    return *places, table.get("list", "")


def _pairs(described: dict[str, Any], folder: Path, split: str, *, warn: bool = False) -> list[tuple[Path, Path]]:
    image_dir, image_name, mask_dir, mask_name, listing = _where(described, folder, split)
    found = PairedFolders(image_dir, mask_dir, image_name, mask_name)
    if listing:
        return _listed(found, folder / listing)
    pairs = found.pairs()
    if warn and (left_out := found.left_out()):
        warnings.warn(left_out, DataWarning, stacklevel=3)
    return pairs


def _listed(found: PairedFolders, file: Path) -> list[tuple[Path, Path]]:
    """The pairs whose names, with or without suffix and folders above, stand on the lines of a file, in its order."""
    if not os.path.isfile(file):
        raise MissingData(f"the list {file} is missing; expected a text file with the name of an image on each line")
    stems = {stem_of(path.relative_to(found.image_dir)): stem for stem, path in found.images.items()}
    stems |= {stem: stem for stem in found.images}
    pairs: dict[str, tuple[Path, Path]] = {}
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        if not (name := line.strip()):
            continue
        # no path is longer or deeper, and marks on one letter take quadratic time
        parts = unicodedata.normalize("NFC", name[-4096:]).replace("\\", "/").split("/")[-64:]
        below = ["/".join(parts[first:]) for first in range(len(parts))]
        ends = tuple(end for end in (Path(name).suffix,) if end.lower() in IMAGE_SUFFIXES)
        known = [key for path in below for key in (path, *map(path.removesuffix, ends)) if key in stems]
        if not known:
            raise DataError(f"{file} line {number}: there is no image {name!r:.400} in {found.image_dir}{found.hint()}")
        stem = stems[known[0]]
        if stem not in found.masks:
            raise DataError(f"{found.images[stem]} has no partner in {found.mask_dir}; both must have the same name")
        if stem in pairs:
            raise DataError(f"{file} line {number} names {name!r} a second time")
        pairs[stem] = found.images[stem], found.masks[stem]
    if not pairs:
        raise DataError(f"the list {file} is empty; expected the name of an image on each line")
    return list(pairs.values())
