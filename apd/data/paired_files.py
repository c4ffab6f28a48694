"""Image files below folders: found, named, and paired with their masks by name."""

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from apd.data.images import DataError, MissingData

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
STEM = "{stem}"
"""In a pattern of file names: what image and mask have in common."""
_SYSTEM_FILES = ("thumbs.db", "desktop.ini", "__macosx", "@eadir")  # beside hidden ones, whose names begin with a dot


def files_below(folder: Path) -> list[Path]:
    """All files below a folder, sorted, but hidden ones and what operating systems leave there.

    Raises:
        MissingData: the folder is not there.
        DataError: a folder in it cannot be listed.
    """
    _demand_folder(folder)

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be listed ({error.strerror})") from error

    def seen(name: str) -> bool:
        return not name.startswith(".") and name.lower() not in _SYSTEM_FILES

    found, entered = [], set()
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        if (real := os.path.realpath(place)) in entered:  # a link to a folder above it
            folders.clear()
            continue
        entered.add(real)
        folders[:] = filter(seen, folders)
        found += [Path(place, name) for name in filter(seen, names)]
    return sorted(found)


def pictures(folder: Path, *, name: str = STEM, leave: Callable[[Path], bool] = lambda _path: False) -> dict[str, Path]:
    """The images below a folder, sorted by path, by what tells which image they are.

    That is the path in the folder without suffix, in Unicode's composed form (NFC), where one letter is one sign: file
    systems differ in how they store an accent.

    Args:
        folder: where to look, also in folders below.
        name: pattern of the files' names, with one ``{stem}``; without a suffix it fits any of `IMAGE_SUFFIXES`.
        leave: says of a path that it is to be passed over.

    Raises:
        MissingData: the folder is not there.
        DataError: two images have the same path without suffix, or a name is not UTF-8.
    """
    before, after = unicodedata.normalize("NFC", name).split(STEM)
    with_suffix = after.lower().endswith(IMAGE_SUFFIXES)
    if with_suffix:
        head, _, suffix = after.rpartition(".")
        after = f"{head}.{suffix.lower()}"
    found: dict[str, Path] = {}
    for path in files_below(folder):
        if path.suffix.lower() not in IMAGE_SUFFIXES or leave(path):
            continue
        own = unicodedata.normalize("NFC", _utf8(path).stem) + (path.suffix.lower() if with_suffix else "")
        if not (own.startswith(before) and own.endswith(after) and len(own) > len(before) + len(after)):
            continue
        stem = own[len(before) : len(own) - len(after)]
        key = f"{stem_of(path.relative_to(folder).parent / '_')[:-1]}{stem}"
        if key in found:
            both = " and ".join(str(each.relative_to(folder)) for each in (found[key], path))
            raise DataError(f"{folder} holds both {both}, which have one name, suffix aside; remove one of them")
        found[key] = path
    return found


def _demand_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise MissingData(f"data folder {folder} is missing; expected a folder with images")


def stem_of(path: Path) -> str:
    """A relative path without suffix, in Unicode's composed form."""
    return unicodedata.normalize("NFC", path.with_suffix("").as_posix())


def _utf8(path: Path) -> Path:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise DataError(f"{str(path)!a}: the name is not UTF-8; rename the file") from None
    return path


class PairedFolders(NamedTuple):
    """Images and masks below two folders, by their common names; the folders may be one, or one in the other."""

    image_dir: Path
    mask_dir: Path
    images: dict[str, Path]
    masks: dict[str, Path]

    @classmethod
    def found(
        cls, image_dir: Path, mask_dir: Path, *, image_name: str = STEM, mask_name: str = STEM
    ) -> "PairedFolders":
        """The files whose names fit the patterns; what is a mask is no image."""
        if image_dir == mask_dir and image_name == mask_name:
            raise DataError(
                f"{image_dir} is given for images and for masks; say how masks are named, as in "
                f'masks: "{{stem}}_mask.png"'
            )

        def inside(inner: Path, outer: Path) -> Callable[[Path], bool]:
            return lambda path: outer in inner.parents and inner in path.parents

        _demand_folder(image_dir)
        masks = pictures(mask_dir, name=mask_name, leave=inside(image_dir, mask_dir))
        taken, in_masks = set(masks.values()), inside(mask_dir, image_dir)
        images = pictures(image_dir, name=image_name, leave=lambda path: path in taken or in_masks(path))
        return cls(image_dir, mask_dir, images, masks)

    def pairs(self) -> list[tuple[Path, Path]]:
        """(image, mask) paths; DataError where there is none or one has no partner."""
        for own, other, folder in ((self.images, self.masks, self.mask_dir), (self.masks, self.images, self.image_dir)):
            alone = [path for stem, path in own.items() if stem not in other]
            if alone:
                raise DataError(
                    f"{alone[0]} has no partner in {folder} ({len(alone)} such files); image and mask must have the "
                    f"same name, suffix aside{self.hint()}"
                )
        if not self.images:
            raise DataError(f"{self.image_dir} holds no image; expected {', '.join(IMAGE_SUFFIXES)} files{self.hint()}")
        return [(path, self.masks[stem]) for stem, path in self.images.items()]

    def left_out(self) -> str:
        """A sentence with number, suffixes and an example of the files that are neither image nor mask, or nothing."""
        used = {*self.images.values(), *self.masks.values()}
        places = dict.fromkeys((self.image_dir, self.mask_dir))
        rest = sorted({path for folder in places for path in files_below(folder)} - used)
        if not rest:
            return ""
        counts = Counter(path.suffix.lower() or "no suffix" for path in rest)
        told = ", ".join(f"{suffix} ({count})" for suffix, count in counts.most_common(6))
        files = f"{len(rest)} files are" if len(rest) > 1 else "1 file is"
        return f"{files} left out, such as {rest[0]}: {told}; read are {', '.join(IMAGE_SUFFIXES)}"

    def hint(self) -> str:
        """What is left out, as the end of a message."""
        told = self.left_out()
        return f". {told}" if told else ""


def pair_folders(image_dir: Path, mask_dir: Path) -> list[tuple[Path, Path]]:
    """(image, mask) paths below two folders, paired by path without suffix and sorted by path.

    Raises:
        MissingData: a folder is not there.
        DataError: a folder has no image, or an image has no partner (the first such file is named).
    """
    return PairedFolders.found(image_dir, mask_dir).pairs()


def names_of(paths: Sequence[Path]) -> list[str]:
    """A name for each image, different from all others: their stems, or where two are alike, more of their paths.

    More is the path from the folder that holds all of them, without suffix if that tells them apart, else with it. A
    path that is there twice gets its place as well. A name never leads out of a folder that it is joined to.

    >>> names_of([Path("x/a/1.jpg"), Path("x/b/2.jpg")]), names_of([Path("x/a/1.jpg"), Path("x/b/1.jpg")])
    (['1', '2'], ['a/1', 'b/1'])
    """
    names = [path.stem for path in paths]
    if _all_differ(names):
        return names
    whole = [Path(*Path(os.path.abspath(path)).parts[1:]) for path in paths]
    common = len(Path(os.path.commonpath([path.parent for path in whole])).parts)
    names = [Path(*path.parts[common:]).as_posix() for path in whole]
    bare = [Path(name).with_suffix("").as_posix() for name in names]
    if _all_differ(bare):
        return bare
    return names if _all_differ(names) else [f"{name}-{place}" for place, name in enumerate(names, start=1)]


def _all_differ(names: list[str]) -> bool:
    """Also on file systems that do not tell cases, or forms of one letter, apart."""
    return len({unicodedata.normalize("NFC", name).casefold() for name in names}) == len(names)
