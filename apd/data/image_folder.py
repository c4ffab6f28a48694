"""Images and masks below folders: found, named, paired by name, and read with checks."""

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from apd.data.images import DataError, MissingData, image_bytes, image_size, read_image, read_mask
from apd.data.specs import UNLABELLED, DatasetSpec, Sample, SegmentationDataset

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
STEM = "{stem}"  # in a pattern of file names: what image and mask have in common
_SYSTEM_FILES = ("thumbs.db", "desktop.ini", "__macosx", "@eadir")  # beside hidden ones, whose names begin with a dot
ELSEWHERE = "expected a folder with images; the dataset.yaml of a folder of yours can name others"
CACHE_BYTES = 2 << 30  # own choice: CamVid fits at any size, ADE20K (28 GB) and Cityscapes (25 GB) do not


def find_data(name: str, *, script: str | None = None, then: str = "") -> Path:
    """Folder of a data set, absolute or below ``APD_DATA``; else MissingData, which names its `script` (default: the
    name's) and what comes `then`."""
    script = f"{name.lower()}.py" if script is None else script
    fetch = f", or run `python data_scripts/{script} fetch DEST`{then} and set APD_DATA to DEST" if script else ""
    advice = f"Set APD_DATA to the folder that contains {name}/{fetch}."
    parent = os.environ.get("APD_DATA")
    root = Path(os.path.expanduser(parent or ""), os.path.expanduser(name))  # unlike Path's, it takes an unknown user
    if (parent or root.is_absolute()) and os.path.isdir(root):  # False, unlike Path's own, of a name too long
        return root
    held = f"holds no folder {name}/" if os.path.isdir(root.parent) else "is not a folder"
    found = f"APD_DATA={parent} {held}" if parent else "the environment variable APD_DATA is not set"
    raise MissingData(f"the data set {name} is needed, and {found}. {advice}")


def _nfc(text: str) -> str:
    """Unicode's composed form, where one letter is one sign: file systems differ in how they store an accent."""
    return unicodedata.normalize("NFC", text)


def stem_of(path: Path) -> str:
    """A relative path without suffix, in Unicode's composed form."""
    return _nfc(path.with_suffix("").as_posix())


def _files_below(folder: Path) -> list[Path]:
    """All files below a folder, sorted, but hidden ones and what operating systems leave there."""
    if not os.path.isdir(folder):
        raise MissingData(f"data folder {folder} is missing; {ELSEWHERE}")

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


def images_below(folder: Path, name: str = STEM, without: frozenset[Path] = frozenset()) -> dict[str, Path]:
    """Images below a folder that fit a pattern, sorted, by path in it with the stem as name; none of `without`."""
    before, after = _nfc(name).split(STEM)
    if with_suffix := after.lower().endswith(IMAGE_SUFFIXES):
        after = after[: after.rindex(".")] + after[after.rindex(".") :].lower()
    found: dict[str, Path] = {}
    for path in _files_below(folder):
        if path.suffix.lower() not in IMAGE_SUFFIXES or not without.isdisjoint((path, *path.parents)):
            continue
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise DataError(f"{str(path)!a}: the name is not UTF-8; rename the file") from None
        own = _nfc(path.stem) + (path.suffix.lower() if with_suffix else "")
        if not (own.startswith(before) and own.endswith(after) and len(own) > len(before) + len(after)):
            continue
        key = stem_of(path.relative_to(folder).parent / "_")[:-1] + own[len(before) : len(own) - len(after)]
        if key in found:
            both = " and ".join(str(each.relative_to(folder)) for each in (found[key], path))
            raise DataError(f"{folder} holds both {both}, which have one name, suffix aside; remove one of them")
        found[key] = path
    return found


class PairedFolders:
    """Images and masks below two folders, or one, that fit patterns, by common stems; what is a mask is no image."""

    def __init__(self, image_dir: Path, mask_dir: Path, image_name: str = STEM, mask_name: str = STEM) -> None:
        if image_dir == mask_dir and image_name == mask_name:
            advice = 'say how masks are named, as in masks: "{stem}_mask.png"'
            raise DataError(f"{image_dir} is given for images and for masks; {advice}")
        if not os.path.isdir(image_dir):  # the masks' is found out below
            raise MissingData(f"data folder {image_dir} is missing; {ELSEWHERE}")
        self.image_dir, self.mask_dir = image_dir, mask_dir
        self.masks = images_below(mask_dir, mask_name, frozenset({image_dir} if mask_dir in image_dir.parents else ()))
        inside = {mask_dir} if image_dir in mask_dir.parents else set()
        self.images = images_below(image_dir, image_name, frozenset(inside.union(self.masks.values())))

    def pairs(self) -> list[tuple[Path, Path]]:
        """(image, mask) paths; DataError where there is none or one has no partner."""
        for own, other, folder in ((self.images, self.masks, self.mask_dir), (self.masks, self.images, self.image_dir)):
            if alone := [path for stem, path in own.items() if stem not in other]:
                fix = f"image and mask must have the same name, suffix aside{self.hint()}"
                raise DataError(f"{alone[0]} has no partner in {folder} ({len(alone)} such files); {fix}")
        if not self.images:
            raise DataError(f"{self.image_dir} holds no image; expected {', '.join(IMAGE_SUFFIXES)} files{self.hint()}")
        return [(path, self.masks[stem]) for stem, path in self.images.items()]

    def left_out(self) -> str:
        """A sentence with number, suffixes and an example of the files that are neither image nor mask, or nothing."""
        used = {*self.images.values(), *self.masks.values()}
        rest = sorted({path for folder in (self.image_dir, self.mask_dir) for path in _files_below(folder)} - used)
        if not rest:
            return ""
        counts = Counter(path.suffix.lower() or "no suffix" for path in rest)
        kinds = ", ".join(f"{suffix} ({count})" for suffix, count in counts.most_common(6))
        files = f"{len(rest)} files are" if len(rest) > 1 else "1 file is"
        return f"{files} left out, such as {rest[0]}: {kinds}; read are {', '.join(IMAGE_SUFFIXES)}"

    def hint(self) -> str:
        """What is left out, as the end of a message."""
        return f". {left_out}" if (left_out := self.left_out()) else ""


def pair_folders(image_dir: Path, mask_dir: Path) -> list[tuple[Path, Path]]:
    """(image, mask) paths below two folders, paired by path without suffix, sorted; DataError where that fails."""
    return PairedFolders(image_dir, mask_dir).pairs()


def names_of(paths: Sequence[Path]) -> list[str]:
    """A name for each image, different on any file system: stems, or paths in the common folder."""
    whole = [Path(*Path(os.path.abspath(path)).parts[1:]) for path in paths]
    common = len(Path(os.path.commonpath([path.parent for path in whole])).parts) if whole else 0
    below = [Path(*path.parts[common:]) for path in whole]
    shorter = [path.stem for path in paths], [path.with_suffix("").as_posix() for path in below]
    for names in (*shorter, [path.as_posix() for path in below]):
        if len({_nfc(name).casefold() for name in names}) == len(names):
            return names
    return [f"{name}-{place}" for place, name in enumerate(names, start=1)]


class FolderDataset:
    """Image/mask pairs on disk, as of `pair_folders`, checked when read, by default kept in memory; a mask may be None.

    `height` and `width` are of every pair in pixels (default: as on disk); bilinear, of masks the nearest. `cache`
    reads all at construction, where every fault shows; False reads at access; None keeps at most 2 GiB (own choice).
    """

    def __init__(
        self,
        spec: DatasetSpec,
        pairs: Sequence[tuple[Path, Path | None]],
        *,
        height: int | None = None,
        width: int | None = None,
        cache: bool | None = True,
    ) -> None:
        self._size_wh = None if height is None and width is None else (width, height)
        if self._size_wh and (None in self._size_wh or min(self._size_wh) < 1):
            both = "give both, at least 1 pixel, or neither to keep the size"
            raise ValueError(f"height={height} and width={width}: {both}")
        if not pairs:
            raise DataError(f"no image/mask pairs for {spec.name}; expected at least one")
        self.spec = spec
        self.pairs = [(Path(image), mask and Path(mask)) for image, mask in pairs]
        self._names = names_of([image for image, _ in self.pairs])
        self._fingerprint: str | None = None
        if cache is None:
            sizes, left = (self._size_wh or image_size(image) for image, _ in self.pairs), CACHE_BYTES
            cache = all((left := left - 4 * height * width) >= 0 for width, height in sizes)
        self._cached = [self._read(index) for index in range(len(self.pairs))] if cache else None

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        """Pair `index`, named as by `names_of`. The tensors are the caller's own."""
        index = range(len(self.pairs))[index]
        image_HW3, labels_HW = self._read(index) if self._cached is None else self._cached[index]
        image_3HW = torch.from_numpy(image_HW3.copy()).permute(2, 0, 1)
        return Sample(image_3HW, torch.from_numpy(labels_HW.copy()), self._names[index])

    def fingerprint(self) -> str:
        """sha256 (hex) over names, contents and order of all files, the size if they are resized, and colours."""
        if self._fingerprint is None:
            digest = hashlib.sha256(repr(self._size_wh).encode())
            if self.spec.file_colours:
                digest.update(repr((self.spec.file_colours, self.spec.void_colours)).encode())
            for path in (path for pair in self.pairs for path in pair if path):
                content = hashlib.sha256(image_bytes(path)).hexdigest()
                digest.update(f"{content} {path.parent.name}/{path.name}\n".encode())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        image_path, mask_path = self.pairs[index]
        image = read_image(image_path)
        labels_HW = read_mask(mask_path, self.spec) if mask_path else np.full(image.size[::-1], UNLABELLED, np.uint8)
        if image.size != labels_HW.shape[::-1]:
            (height, width), given = labels_HW.shape, f"{image_path} is {image.width}×{image.height} pixels"
            fix = "image and mask must have the same size, as they are seen (turned as EXIF says)"
            raise DataError(f"{given} and its mask {mask_path} {width}×{height}; {fix}")
        if self._size_wh is not None and image.size != self._size_wh:
            image = image.resize(self._size_wh, Image.Resampling.BILINEAR)  # pillow widens the filter: antialiased
            labels_HW = np.asarray(Image.fromarray(labels_HW).resize(self._size_wh, Image.Resampling.NEAREST))
        return np.asarray(image), labels_HW


class PartlyLabelled:
    """A training set whose first `labelled` samples have labels, and the pixels of all others the label `UNLABELLED`.

    Of `dataset` a share keeps its labels, at least one sample: evenly spaced in its order, whatever the seed. The rest
    comes after these without labels, and then all of `more`; or it is left out, where not `unlabelled`. DataError:
    nothing is unlabelled then, or a class has the number 254.
    """

    def __init__(self, dataset: SegmentationDataset, share: float, *, unlabelled: bool, more: Any = ()) -> None:
        self.spec, self._whole, self._more, count = dataset.spec, dataset, more, len(dataset)
        self.labelled = max(1, round(share * count))
        kept = [place * count // self.labelled for place in range(self.labelled)]
        self._places = [*kept, *sorted({*range(count)} - {*kept})] if unlabelled else kept
        if unlabelled and len(self) == self.labelled:
            fix = "name others as `unlabelled:` in dataset.yaml, or keep fewer labels (--data.labelled-share)"
            raise DataError(f"{self.spec.name}: all {count} training images have labels (--data.unlabelled); {fix}")
        if self.spec.num_classes > UNLABELLED:
            raise DataError(f"{self.spec.name} has 255 classes; expected at most 254 beside images without labels")

    @property
    def pairs(self) -> list[tuple[Path, Path | None]]:
        """Paths of the images and their masks, where samples have them."""
        return [*(self._whole.pairs[place] for place in self._places), *getattr(self._more, "pairs", ())]

    def __len__(self) -> int:
        return len(self._places) + len(self._more)

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`, the caller's own as those of both data sets."""
        index = range(len(self))[index]
        if index >= len(self._places):
            return self._more[index - len(self._places)]
        sample = self._whole[self._places[index]]
        return sample if index < self.labelled else sample._replace(labels_HW=sample.labels_HW.fill_(UNLABELLED))

    def fingerprint(self) -> str:
        """sha256 (hex) over those of both data sets, and over which samples keep their labels or are left out."""
        parts = self._whole.fingerprint(), self.labelled, len(self._places), self._more and self._more.fingerprint()
        return hashlib.sha256(repr(parts).encode()).hexdigest()
