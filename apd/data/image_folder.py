"""Images and masks in folders: a checked reader for image/mask pairs, and CamVid on top of it.

Nothing here downloads. A data set is found through the environment variable ``APD_DATA``, the folder that contains
``CamVid/`` and the others; the scripts in `data_scripts/` put them there. Whatever is wrong with files that fit into
memory is said at construction, with the file's name, before a training run has spent a minute.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from apd.data.images import DataError, MissingData, picture_size, read_mask, read_picture, read_text
from apd.data.paired_files import names_of, pair_folders, pictures
from apd.data.specs import CAMVID, DatasetSpec, Sample

CACHE_BYTES = 2 << 30  # own choice: CamVid fits at any size, ADE20K (28 GB) and Cityscapes (25 GB) do not


def find_data(name: str, *, script: str | None = None) -> Path:
    """Folder of the data set `name` below the folder that the environment variable ``APD_DATA`` names.

    Args:
        name: folder name of the data set, such as ``"CamVid"``.
        script: file in `data_scripts/` that fetches it (default: the name in lower case + ``.py``).

    Raises:
        MissingData: ``APD_DATA`` is not set, is no folder, or holds no such folder; the message says what to do.

    Example:
        >>> root = find_data("CamVid")                      # doctest: +SKIP
        >>> CamVid(root, "train", height=180, width=240)    # doctest: +SKIP
    """
    fetch = f"python data_scripts/{script or name.lower() + '.py'} fetch DEST"
    advice = f"Set APD_DATA to the folder that contains {name}/, or run `{fetch}` and set APD_DATA to DEST."
    parent = os.environ.get("APD_DATA")
    if not parent:
        raise MissingData(f"the data set {name} is needed, and the environment variable APD_DATA is not set. {advice}")
    root = Path(parent).expanduser() / name
    if not root.is_dir():
        held = "is not a folder" if not root.parent.is_dir() else f"holds no folder {name}/"
        raise MissingData(f"the data set {name} is needed, and APD_DATA={parent} {held}. {advice}")
    return root


class FolderDataset:
    """Image/mask pairs on disk, checked and resized when read, by default kept in memory.

    Args:
        spec: classes of the data set; `file_values` and `void_values`, or `file_colours` and `void_colours`, say what
            the pixels of masks mean.
        pairs: (image, mask) paths, as of `pair_folders`. `read_picture` and `read_mask` say what these files may be.
        height, width: size in pixels to which every pair is brought, both or neither (default: as on disk). Images
            are resized bilinearly with antialiasing, masks by the nearest pixel, so that no label is invented.
        cache: read everything at construction, so that every fault shows before any training, and keep it as uint8:
            4·height·width bytes a pair (367 pairs take 63 MB at 180×240 and 254 MB at 360×480), shared by forked
            data-loader workers. With False each access reads and checks the files again. None keeps what takes at
            most 2 GiB (own choice).

    Raises:
        DataError: no pairs; what `read_picture` or `read_mask` refuses; image and mask of different size.
        ValueError: height without width, or a size below 1.

    Example:
        >>> pairs = pair_folders(Path("images"), Path("masks"))             # doctest: +SKIP
        >>> image_3HW, labels_HW, name = FolderDataset(CAMVID, pairs)[0]    # doctest: +SKIP
    """

    def __init__(
        self,
        spec: DatasetSpec,
        pairs: Sequence[tuple[Path, Path]],
        *,
        height: int | None = None,
        width: int | None = None,
        cache: bool | None = True,
    ) -> None:
        if (height is None) != (width is None):
            raise ValueError(f"height={height} and width={width}: give both, or neither to keep the size on disk")
        if height is not None and width is not None and min(height, width) < 1:
            raise ValueError(f"height={height} and width={width} must be at least 1 pixel")
        if not pairs:
            raise DataError(f"no image/mask pairs for {spec.name}; expected at least one")
        self.spec = spec
        self.pairs = [(Path(image), Path(mask)) for image, mask in pairs]
        self._size_wh = None if height is None or width is None else (width, height)
        self._names = names_of([image for image, _ in self.pairs])
        self._fingerprint: str | None = None
        if cache is None:
            cache = self._fits(CACHE_BYTES)
        self._cached = [self._read(i) for i in range(len(self.pairs))] if cache else None

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        """Pair `index` as a `Sample`: image_3HW uint8, labels_HW uint8 with the ignore index, name (see `names_of`).

        The tensors are the caller's own: changing them does not change the data set.
        """
        index = range(len(self.pairs))[index]
        image_HW3, labels_HW = self._read(index) if self._cached is None else self._cached[index]
        image_3HW = torch.from_numpy(image_HW3.copy()).permute(2, 0, 1)
        return Sample(image_3HW, torch.from_numpy(labels_HW.copy()), self._names[index])

    def check(self) -> np.ndarray:
        """Read every pair from disk and count its pixels: (K + 1,) int64, the classes' and, last, the ignored ones.

        What was kept in memory was checked when it was read; this is for what is too large for that.

        Raises:
            DataError: as at construction.
        """
        counts = np.zeros(256, dtype=np.int64)
        for index in range(len(self.pairs)):
            counts += np.bincount(self._read(index)[1].ravel(), minlength=256)
        return np.append(counts[: self.spec.num_classes], counts[self.spec.ignore_index])

    def fingerprint(self) -> str:
        """sha256 (hex) over folder, name and content of every file in order, the size if they are resized, and colours.

        Computed once per instance, from the files: well under a second for CamVid, as long as the disk needs to read
        them for a data set of many gigabytes.
        """
        if self._fingerprint is None:
            digest = hashlib.sha256(repr(self._size_wh).encode())
            if self.spec.file_colours:
                digest.update(repr((self.spec.file_colours, self.spec.void_colours)).encode())
            for path in (path for pair in self.pairs for path in pair):
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                digest.update(f"{content} {path.parent.name}/{path.name}\n".encode())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        image_path, mask_path = self.pairs[index]
        image, labels_HW = read_picture(image_path), read_mask(mask_path, self.spec)
        if image.size != labels_HW.shape[::-1]:
            raise DataError(
                f"{image_path} is {image.width}×{image.height} pixels and its mask {mask_path} {labels_HW.shape[1]}×"
                f"{labels_HW.shape[0]}; image and mask must have the same size, as they are seen (turned as EXIF says)"
            )
        if self._size_wh is not None and image.size != self._size_wh:
            image = image.resize(self._size_wh, Image.Resampling.BILINEAR)  # pillow widens the filter: antialiased
            labels_HW = np.asarray(Image.fromarray(labels_HW).resize(self._size_wh, Image.Resampling.NEAREST))
        return np.asarray(image), labels_HW

    def _fits(self, limit: int) -> bool:
        """Whether all pairs together take at most `limit` bytes in memory; sizes on disk are read until they do not."""
        taken = 0
        for image, _ in self.pairs:
            width, height = self._size_wh or picture_size(image)
            taken += 4 * height * width
            if taken > limit:
                return False
        return True


class CamVid(FolderDataset):
    """CamVid in the SegNet tutorial's form: 11 classes, void (11 on disk) read as 255, 360×480, 367/101/233 pairs.

    All six folders are counted first, whatever the split, so that a half-extracted archive is found before training on
    the part that is there. The order is that of the list file ``<split>.txt``, or by name where that is absent.

    Args:
        root: the folder that holds ``train/``, ``trainannot/``, ``val/``, ..., as of ``find_data("CamVid")``.
        split: ``"train"``, ``"val"`` or ``"test"``.
        height, width, cache: as in `FolderDataset`. The published size is 360×480.

    Raises:
        MissingData: the folder or one of its six parts is not there.
        DataError: a folder with too few or too many pictures (all six counts are told), an unpaired name, a list file
            that does not fit its folder, or a damaged file (see `FolderDataset`).
        ValueError: an unknown split.

    Example:
        >>> train = CamVid(find_data("CamVid"), "train", height=180, width=240)    # doctest: +SKIP
        >>> len(train), train[0].image_3HW.shape                                   # doctest: +SKIP
        (367, torch.Size([3, 180, 240]))
    """

    def __init__(
        self, root: Path | str, split: str, *, height: int | None = None, width: int | None = None, cache: bool = True
    ) -> None:
        if split not in dict(CAMVID.splits):
            raise ValueError(f"split={split!r} is unknown; expected one of {', '.join(dict(CAMVID.splits))}")
        self.root, self.split = Path(root), split
        _check_camvid_counts(self.root)
        pairs = pair_folders(self.root / split, self.root / f"{split}annot")
        pairs = _in_list_order(pairs, self.root / f"{split}.txt")
        super().__init__(CAMVID, pairs, height=height, width=width, cache=cache)


def _check_camvid_counts(root: Path) -> None:
    advice = "extract it again, or run `python data_scripts/camvid.py fetch DEST` and set APD_DATA to DEST"
    if not root.is_dir():
        raise MissingData(f"CamVid folder {root} is missing; {advice}")
    expected = {folder: n for split, n in CAMVID.splits for folder in (split, f"{split}annot")}
    found = {folder: len(pictures(root / folder)) if (root / folder).is_dir() else 0 for folder in expected}
    if found != expected:
        told = ", ".join(f"{folder}/ {found[folder]} of {n}" for folder, n in expected.items())
        kind = DataError if any(found.values()) else MissingData
        raise kind(f"CamVid in {root} is not complete: {told} pictures; {advice}")


def _in_list_order(pairs: list[tuple[Path, Path]], list_file: Path) -> list[tuple[Path, Path]]:
    """The pairs in the order of a list file whose lines are "image mask"; of its foreign paths only stems are used."""
    if not list_file.is_file():
        return pairs
    by_stem = {image.stem: (image, mask) for image, mask in pairs}
    stems = []
    for number, line in enumerate(read_text(list_file).splitlines(), start=1):
        parts = [Path(part).stem for part in line.split()]
        if not parts:
            continue
        if len(parts) != 2 or parts[0] != parts[1] or parts[0] not in by_stem:
            raise DataError(f"{list_file} line {number}: {line!r}; expected one image and its mask, both existing")
        stems.append(parts[0])
    if len(stems) != len(set(stems)) or len(stems) != len(pairs):
        raise DataError(
            f"{list_file} names {len(set(stems))} different pairs on {len(stems)} lines, and the folders hold "
            f"{len(pairs)}; every pair must be named once"
        )
    return [by_stem[stem] for stem in stems]
