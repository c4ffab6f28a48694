"""Image files, masks and lists read by one rule; what cannot be read is refused by name.

Every reader of the package opens images by `read_picture` and masks by `read_mask`, so that an image means the same in
training, evaluation and prediction.
"""

import codecs
import io
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from apd.data.specs import DatasetSpec

_ORIENTATION = 0x0112
_FEWEST_UPPER = 64  # an image of 16 bits with no value above 2^14 may hold 10, 12 or 14 bits


class DataError(Exception):
    """Data on disk are not what they should be; the message names the file, what was found, and what to do."""


class MissingData(DataError, FileNotFoundError):
    """A data folder or file is not there."""


class DataWarning(UserWarning):
    """Something about data on disk that a user should know, such as files that are left out."""


def read_text(file: Path) -> str:
    """A text in UTF-8 with or without a byte order mark, or in UTF-16 with it, as PowerShell writes.

    Raises:
        DataError: it is in another encoding; the line is named.
    """
    content = file.read_bytes()
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        name, line = ("UTF-16", 1) if wide else ("UTF-8", len(content[: error.start + 1].splitlines()))
        raise DataError(f"{file} is not {name}, line {line} ({error.reason}); save it as UTF-8") from error
    if "\0" in text:
        raise DataError(f"{file} is not UTF-8, line 1 (it holds zeros, as UTF-16 without its mark); save it as UTF-8")
    return text


class Stored(NamedTuple):
    """How a file stores its pixels.

    Attributes:
        lossy: as JPEG does, which changes values.
        deep: 16 bits a channel.
        white_is_zero: as some TIFF files do.
        levels: of a grey PNG of 2 or 4 bits, whose values pillow spreads over 0..255; else 256.
    """

    lossy: bool
    deep: bool
    white_is_zero: bool
    levels: int


def picture_size(path: Path) -> tuple[int, int]:
    """(width, height) of an image as it is read, turned; pixels are decoded only where a PNG may say so after them."""
    with _told_by_name(path), Image.open(path) as picture:
        if picture.format == "TIFF":  # pillow turns these, and their size, by itself
            return picture.size
        if picture.format == "PNG":  # its EXIF may stand behind the pixels
            content = path.read_bytes()
            if not any(chunk in content for chunk in (b"eXIf", b"tEXt", b"zTXt", b"iTXt")):
                return picture.size
        return picture.size[::-1] if _orientation(picture) >= 5 else picture.size


def read_picture(path: Path) -> Image.Image:
    """An image as RGB of 8 bits, decoded to its last pixel and turned the way its camera was held.

    Of 16 bits a channel the upper 8 are taken. Colours are taken as stored where there is an alpha channel or a
    transparent colour: alpha is dropped. Of a JPEG that holds further images (MPO) the first is taken.

    Raises:
        MissingData: there is no such file.
        DataError: it is no file, no image, damaged or truncated; it has several frames; its values are of 32 bits or
            floats; or of 16 bits and none above 16383, which may be 10, 12 or 14 bits.
    """
    picture, stored = opened(path)
    if picture.mode in ("I", "F", "LAB", "HSV") or (stored.white_is_zero and stored.deep):
        kind = "16 bits with white as 0" if stored.deep else f"mode {picture.mode}"
        raise DataError(f"{path}: has {kind}; expected grey or colours of 8 or 16 bits a channel, so convert it first")
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    picture = picture.convert("RGB")
    if stored.deep and np.asarray(picture).max() < _FEWEST_UPPER:
        raise DataError(
            f"{path}: has 16 bits a channel and no value above {256 * _FEWEST_UPPER - 1}, so it may hold 10, 12 or 14 "
            "bits; scale it to the full range, or save it with 8 bits"
        )
    return picture


def read_mask(path: Path, spec: DatasetSpec) -> NDArray[np.uint8]:
    """The labels (H, W) of a mask, turned as `read_picture` turns its image: 0..K-1, or the spec's `ignore_index`.

    A mask has one channel of values (grey, palette, 1 bit; 16 or 32 bits where no value is above 255), or colours
    where the spec has `file_colours`. White in a mask of 1 bit is 1, or 255 where that is a class's value and 1 is not.

    Raises:
        MissingData: there is no such file.
        DataError: what `read_picture` refuses; a file that JPEG has changed; several channels without `file_colours`;
            a value or colour that is none of the spec's (file, values and counts are named).
    """
    picture, stored = opened(path)
    if stored.lossy:
        raise DataError(f"{path}: is compressed as JPEG, which changes label values; save masks as PNG from the source")
    if spec.file_colours:
        return _by_colour(path, picture, stored, spec)
    if stored.white_is_zero and picture.mode != "1":
        raise DataError(f"{path}: stores white as 0, so its values have two meanings; save the mask as PNG")
    if picture.mode in ("L", "P", "1"):
        values_HW = np.asarray(picture).astype(np.uint8)
        white = 255 if 255 in spec.file_values and 1 not in spec.file_values else 1
        values_HW = values_HW * white if picture.mode == "1" else values_HW // (255 // (stored.levels - 1))
    elif picture.mode.startswith("I"):
        values_HW = np.asarray(picture)
    else:
        raise DataError(
            f"{path} has mode {picture.mode}; a mask needs one 8-bit channel of labels (grey or palette), or else, in "
            f"dataset.yaml, the colour of each class as in colours: [[0, 0, 0], [255, 0, 0]]{_colours_in(picture)}"
        )
    if values_HW.dtype == np.uint8:
        counts = np.bincount(values_HW.ravel(), minlength=256)
        values = np.flatnonzero(counts)
        counts = counts[values]
    else:
        values, counts = np.unique(values_HW, return_counts=True)
    table = _label_table(spec)
    wrong = [(v, n) for v, n in zip(values.tolist(), counts.tolist(), strict=True) if not 0 <= v <= 255 or table[v] < 0]
    if wrong:
        named = ", ".join(f"{value} ({count} pixels)" for value, count in wrong[:8])
        more = f" and {len(wrong) - 8} more values" if len(wrong) > 8 else ""
        raise DataError(f"{path} holds the label values {named}{more}; expected {_expected(spec)}")
    return table[values_HW].astype(np.uint8)


def _by_colour(path: Path, picture: Image.Image, stored: Stored, spec: DatasetSpec) -> NDArray[np.uint8]:
    """Labels by exact colour; linear in pixels."""
    if stored.deep or picture.mode in ("I", "F", "LAB", "HSV"):
        raise DataError(f"{path}: has 16 bits a channel or more; expected the colours of a mask with 8")
    labels = dict.fromkeys(spec.void_colours, spec.ignore_index)
    labels |= {colour: label for label, colour in enumerate(spec.file_colours)}
    known_N, labels_N = _packed(np.array(list(labels))), np.array(list(labels.values()), dtype=np.uint8)
    order_N = known_N.argsort()
    codes_HW = _packed(np.asarray(picture.convert("RGB")))
    place_HW = np.searchsorted(known_N[order_N], codes_HW).clip(max=len(known_N) - 1)
    strange_HW = known_N[order_N][place_HW] != codes_HW
    if strange_HW.any():
        codes, counts = np.unique(codes_HW[strange_HW], return_counts=True)
        most = counts.argmax()
        colour = [int(codes[most]) >> shift & 255 for shift in (16, 8, 0)]
        nearest = min(labels, key=lambda entry: sum((a - b) ** 2 for a, b in zip(entry, colour, strict=True)))
        label = labels[nearest]
        whose = "ignore" if label == spec.ignore_index else spec.class_names[label]
        more = f" and {len(codes) - 1} more unknown colours" if len(codes) > 1 else ""
        raise DataError(
            f"{path} holds the colour {colour} ({counts[most]} pixels){more}; the nearest entry is {list(nearest)} of "
            f"{whose}"
        )
    return labels_N[order_N][place_HW]


def _packed(colours_X3: NDArray) -> NDArray[np.uint32]:
    """One number for each colour."""
    red, green, blue = np.moveaxis(colours_X3.astype(np.uint32), -1, 0)
    return red << 16 | green << 8 | blue


def _colours_in(picture: Image.Image) -> str:
    """The most frequent colours, for a message; nothing where there are too many to be classes."""
    found = picture.convert("RGB").getcolors(maxcolors=256) if picture.mode != "F" else None
    if not found:
        return ""
    return "; it holds " + ", ".join(str(list(colour)) for _, colour in sorted(found, reverse=True)[:6])


def _expected(spec: DatasetSpec) -> str:
    known = sorted(spec.file_values) or list(range(spec.num_classes))
    starts = [value for value in known if value - 1 not in known]
    ends = [value for value in known if value + 1 not in known]
    classes = ", ".join(str(a) if a == b else f"{a}..{b}" for a, b in zip(starts, ends, strict=True))
    ignored = sorted({*spec.void_values, spec.ignore_index} - set(known))
    return classes + (f", or {' or '.join(map(str, ignored))} for pixels to be ignored" if ignored else "")


@cache
def _label_table(spec: DatasetSpec) -> NDArray[np.int16]:
    """(256,) int16: the label of each value on disk, -1 where the value is refused."""
    table = np.full(256, -1, dtype=np.int16)
    table[[spec.ignore_index, *spec.void_values]] = spec.ignore_index
    table[list(spec.file_values) or slice(spec.num_classes)] = np.arange(spec.num_classes)
    return table


def opened(path: Path) -> tuple[Image.Image, Stored]:
    """An image in the mode of its file, decoded and turned; whatever pillow says of a damaged file is a DataError."""
    with _told_by_name(path):
        content = io.BytesIO(path.read_bytes())
        with Image.open(content) as picture:
            picture.verify()  # a PNG's checksums and end mark, which load() does not look at
        with Image.open(content) as picture:
            # a JPEG with further images is a photograph with its depth or its brightness
            if (frames := getattr(picture, "n_frames", 1)) > 1 and picture.format != "MPO":
                raise DataError(f"{path}: has {frames} frames; expected one image, so save the one that is meant")
            raw = " ".join(str(tile.args) for tile in picture.tile)
            compression = str(picture.info.get("compression"))
            few = re.search(r"\bL;([24])", raw)
            stored = Stored(
                lossy=picture.format in ("JPEG", "MPO") or compression in ("jpeg", "tiff_jpeg", "webp"),
                deep=re.search(r";16[BLNR]|I;16\b", raw) is not None,
                white_is_zero=getattr(picture, "tag_v2", {}).get(262) == 0,
                levels=2 ** int(few[1]) if few else 256,
            )
            picture.load()
            picture.info.pop("transparency", None)  # else pillow warns, of a palette with alpha values, when converting
            return ImageOps.exif_transpose(picture) if _orientation(picture) > 1 else picture, stored


def _orientation(picture: Image.Image) -> int:
    """1 to 8, of which those from 5 change sides; 1 where there is none or it cannot be read."""
    try:
        value = picture.getexif().get(_ORIENTATION)
    except Exception:  # damaged EXIF is no reason to refuse the pixels
        return 1
    return value if value in range(1, 9) else 1


@contextmanager
def _told_by_name(path: Path) -> Iterator[None]:
    """Whatever is raised while a file is read becomes a DataError that names it; what is no file is not opened."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would wait for ever
            raise OSError("it is a folder, a pipe or a device")
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise MissingData(f"{path}: there is no such file") from error
    except MemoryError as error:
        raise DataError(f"{path}: takes more memory than there is") from error
    except Exception as error:  # pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
        raise DataError(
            f"{path}: cannot be read as an image ({error}); it is damaged or truncated, or no image"
        ) from error
