"""Image files, masks and texts read by one rule everywhere, else a `DataError` names the file; and the longest side."""

import codecs
import hashlib
import io
import math
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from apd.data.specs import RGB, DatasetSpec, Sample, SegmentationDataset
from apd.fields import UserError, one_line

_ORIENTATION = 0x0112
_FEWEST_UPPER = 64  # an image of 16 bits with no value above 2^14 may hold 10, 12 or 14 bits
# what is opened, whatever a file is called: of pillow's other formats some start programs, and few hold photographs;
# of PPM it spreads values over 0..255, as labels must not be, and reads a long head for minutes
_FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "TIFF", "WEBP")
_MOST_BYTES, _BESIDE_PIXELS = 64 << 20, 16 << 20  # own choice, of a text, and of all that is no pixel in an image


class DataError(UserError):
    """Data on disk are not what they should be; one line of bounded length names the file, and says what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class MissingData(DataError, FileNotFoundError):
    """A data folder or file is not there."""


class DataWarning(UserWarning):
    """Something about data on disk that a user should know, such as files that are left out."""


def size_of(path: Path, most: float = math.inf) -> int:
    """Bytes of a file, or OSError: nothing else is to be opened, since reading a pipe would wait for ever."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError("it is a folder, a pipe or a device")
    if found.st_size > most:
        raise OSError(f"it has {found.st_size} bytes; expected at most {most}")
    return found.st_size


def read_text(file: Path, most: int = _MOST_BYTES) -> str:
    """A text of at most so many bytes in UTF-8, or in UTF-16 with its mark; else a DataError, where it can by line."""
    try:
        content = file.read_bytes() if size_of(file, most) else b""
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error})") from error
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        name, line = ("UTF-16", 1) if wide else ("UTF-8", len(content[: error.start + 1].splitlines()))
        raise DataError(f"{file} is not {name}, line {line} ({error.reason}); save it as UTF-8") from error
    if "\0" in text:
        raise DataError(f"{file} is not UTF-8, line 1 (it holds zeros, as UTF-16 without its mark); save it as UTF-8")
    return text


@contextmanager
def _errors_naming(path: Path) -> Iterator[None]:
    """Whatever is raised while an image is read becomes a DataError that names its file; only files are read."""
    try:
        if not size_of(path):  # so says a system's log too, and reading it would wait
            raise OSError("it is empty")
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise MissingData(f"{path}: there is no such file") from error
    except Exception as error:  # pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
        reason, fix = getattr(error, "strerror", None), "damaged or truncated, or no image"
        if isinstance(error, MemoryError | Image.DecompressionBombError | Image.DecompressionBombWarning):
            reason, fix = str(error) or "it takes more memory than there is", "cut it into smaller ones"
        elif reason:  # the system's, of a missing permission or a disk
            fix = "see whether you can open it"
        raise DataError(f"{path}: cannot be read as an image ({reason or error}); {fix}") from error


class Stored(NamedTuple):
    """How a file stores its pixels."""

    lossy: bool  # as JPEG does, which changes values
    deep: bool  # 16 bits a channel
    white_is_zero: bool  # as some TIFF files do
    levels: int  # of a grey PNG of 2 or 4 bits, whose values pillow spreads over 0..255; else 256


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of an image as it is read, turned; pixels are decoded only where a PNG's EXIF follows them."""
    with _errors_naming(path), Image.open(path, formats=_FORMATS) as image:
        if image.format == "TIFF":  # pillow turns these, and their size, by itself
            return image.size
        if image.format == "PNG":  # its EXIF may stand behind the pixels
            content = image_bytes(path)
            if not any(chunk in content for chunk in (b"eXIf", b"tEXt", b"zTXt", b"iTXt")):
                return image.size
        return image.size[::-1] if _orientation(image) >= 5 else image.size


def image_bytes(path: Path) -> bytes:
    """The content of an image's file; a DataError where that has more bytes than its size in pixels accounts for."""
    with _errors_naming(path):
        with Image.open(path, formats=_FORMATS) as image:
            pixels, limit = image.width * image.height, Image.MAX_IMAGE_PIXELS
        if pixels > (limit or pixels):  # pillow itself only warns, up to twice as many
            raise Image.DecompressionBombError(f"it has {pixels} pixels, and pillow's limit is {limit}")
        size_of(path, 16 * pixels + _BESIDE_PIXELS)  # as of four channels of 32 bits
        return path.read_bytes()


def read_image(path: Path) -> Image.Image:
    """An image as RGB of 8 bits, decoded to its last pixel and turned as its EXIF says; alpha is dropped.

    Of 16 bits a channel the upper 8 are taken, of an MPO the first image. A DataError names a file that is no image,
    damaged, of several frames, of 32 bits or floats, or of 16 bits that may be 10, 12 or 14: none above 16383.
    """
    with _errors_naming(path):
        image, stored = _opened(path)
        if image.mode in ("I", "F", "LAB", "HSV") or (stored.white_is_zero and stored.deep):
            kind = "16 bits with white as 0" if stored.deep else f"mode {image.mode}"
            fix = "expected grey or colours of 8 or 16 bits a channel, so convert it first"
            raise DataError(f"{path}: has {kind}; {fix}")
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        image = image.convert("RGB")
        if stored.deep and np.asarray(image).max() < _FEWEST_UPPER:
            found = f"has 16 bits a channel and no value above {256 * _FEWEST_UPPER - 1}"
            fix = "so it may hold 10, 12 or 14 bits; scale it to the full range, or save it with 8 bits"
            raise DataError(f"{path}: {found}, {fix}")
        return image


def read_mask(path: Path, spec: DatasetSpec) -> NDArray[np.uint8]:
    """The labels (H, W) of a mask, turned as `read_image` turns its image: 0..K-1, or the spec's `ignore_index`.

    A mask has one channel of values (grey, palette, 1 bit; 16 or 32 bits where no value is above 255), or colours
    where the spec has `file_colours`. White in a mask of 1 bit is 1, or 255 where that is a class's value and 1 is not.
    A DataError names a file that `read_image` refuses, JPEG, and values or colours that are none of the spec's.
    """
    with _errors_naming(path):
        image, stored = _opened(path)
        if stored.lossy:
            raise DataError(f"{path}: is compressed as JPEG, which changes label values; save masks as PNG instead")
        codes_HW = _colour_codes(path, image, stored) if spec.file_colours else _values(path, image, stored, spec)
        table = _label_table(spec)
        labels_HW = table[codes_HW.clip(-1, len(table) - 1)]
        if (labels_HW < 0).any():
            raise DataError(f"{path} holds the {_unknown(codes_HW[labels_HW < 0], spec)}")
        return labels_HW.astype(np.uint8)


def _values(path: Path, image: Image.Image, stored: Stored, spec: DatasetSpec) -> NDArray[np.int32]:
    if stored.white_is_zero and image.mode != "1":
        raise DataError(f"{path}: stores white as 0, so its values have two meanings; save the mask as PNG")
    if image.mode not in ("L", "P", "1") and not image.mode.startswith("I"):
        fix = "or else, in dataset.yaml, the colour of each class as in colours: [[0, 0, 0], [255, 0, 0]]"
        needed = f"a mask needs one 8-bit channel of labels (grey or palette), {fix}{_colours_in(image)}"
        raise DataError(f"{path} has mode {image.mode}; {needed}")
    values_HW = np.asarray(image).astype(np.int32)
    white = 255 if 255 in spec.file_values and 1 not in spec.file_values else 1
    return values_HW * white if image.mode == "1" else values_HW // (255 // (stored.levels - 1))


def _colour_codes(path: Path, image: Image.Image, stored: Stored) -> NDArray[np.int32]:
    """Red, green and blue of each pixel as the bytes of a number, the lowest first."""
    if stored.deep or image.mode in ("I", "F", "LAB", "HSV"):
        raise DataError(f"{path}: has 16 bits a channel or more; expected the colours of a mask with 8")
    return np.asarray(image.convert("RGB").convert("RGBX")).view("<i4")[..., 0] & 0xFFFFFF


def _labels_of_colours(spec: DatasetSpec) -> dict[RGB, int]:
    of_classes = {colour: label for label, colour in enumerate(spec.file_colours)}
    return dict.fromkeys(spec.void_colours, spec.ignore_index) | of_classes


def _unknown(codes_N: NDArray[np.int32], spec: DatasetSpec) -> str:
    """What values or colours are none of the spec's, for a message."""
    codes, counts = np.unique(codes_N, return_counts=True)
    if not spec.file_colours:
        named = ", ".join(f"{value} ({count} pixels)" for value, count in zip(codes[:8], counts, strict=False))
        more = f" and {len(codes) - 8} more values" if len(codes) > 8 else ""
        fix = "correct the mask or, of a folder of yours, `classes`, `values` or `ignore` in dataset.yaml"
        return f"label values {named}{more}; expected {_expected(spec)}; {fix}"
    colour, labels = [*int(codes[counts.argmax()]).to_bytes(3, "little")], _labels_of_colours(spec)
    nearest = min(labels, key=lambda entry: math.dist(entry, colour))
    whose = "ignore" if labels[nearest] == spec.ignore_index else spec.class_names[labels[nearest]]
    more = f" and {len(codes) - 1} more unknown colours" if len(codes) > 1 else ""
    return f"colour {colour} ({counts.max()} pixels){more}; the nearest entry is {list(nearest)} of {whose}"


def _colours_in(image: Image.Image) -> str:
    """The most frequent colours, for a message; nothing where there are too many to be classes."""
    found = image.convert("RGB").getcolors(maxcolors=256) if image.mode != "F" else None
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


@lru_cache(maxsize=2)  # of colours 32 MiB
def _label_table(spec: DatasetSpec) -> NDArray[np.int16]:
    """The label of each value on disk or colour code; -1 where it is refused, as the last entry always is."""
    table = np.full((1 << 24 if spec.file_colours else 256) + 1, -1, dtype=np.int16)
    for colour, label in _labels_of_colours(spec).items():
        table[int.from_bytes(bytes(colour), "little")] = label
    if not spec.file_colours:
        table[[spec.ignore_index, *spec.void_values]] = spec.ignore_index
        table[list(spec.file_values) or slice(spec.num_classes)] = np.arange(spec.num_classes)
    return table


def _opened(path: Path) -> tuple[Image.Image, Stored]:
    content = io.BytesIO(image_bytes(path))
    with Image.open(content, formats=_FORMATS) as image:
        image.verify()  # a PNG's checksums and end mark, which load() does not check
    with Image.open(content, formats=_FORMATS) as image:
        # a JPEG with further images is a photograph with its depth or its brightness
        if getattr(image, "is_animated", False) and image.format != "MPO":
            frames = image.n_frames if image.format == "PNG" else "several"  # counting a TIFF's can take minutes
            raise DataError(f"{path}: has {frames} frames; expected one image, so save the one that is meant")
        raw = " ".join(str(tile.args) for tile in image.tile)
        compression = str(image.info.get("compression"))
        few = re.search(r"\bL;([24])", raw)
        stored = Stored(
            lossy=image.format in ("JPEG", "JPEG2000", "MPO") or compression in ("jpeg", "tiff_jpeg", "webp"),
            deep=image.mode.startswith("I;16") or re.search(r";16[BLNR]|I;16\b", raw) is not None,
            white_is_zero=getattr(image, "tag_v2", {}).get(262) == 0,
            levels=2 ** int(few[1]) if few else 256,
        )
        image.load()
        image.info.pop("transparency", None)  # else pillow warns, of a palette with alpha values, when converting
        return ImageOps.exif_transpose(image) if _orientation(image) > 1 else image, stored


def _orientation(image: Image.Image) -> int:
    """1 to 8, of which those from 5 change sides; 1 where there is none or it cannot be read."""
    try:
        value = image.getexif().get(_ORIENTATION)
    except Exception:  # damaged EXIF is no reason to refuse the pixels
        return 1
    return value if value in range(1, 9) else 1


def long_side_size(height: int, width: int, long_side: int) -> tuple[int, int]:
    """(height, width) of the same shape whose longer side is `long_side` pixels; the other is rounded, at least 1."""
    if min(height, width, long_side) < 1:
        raise ValueError(f"height={height}, width={width}, long_side={long_side}; expected at least 1 pixel each")
    longest = max(height, width)
    return max(1, round(height * long_side / longest)), max(1, round(width * long_side / longest))


class LongSide:
    """A data set whose images get one longest side, in pixels, as the released code tests; labels keep theirs."""

    def __init__(self, dataset: SegmentationDataset, long_side: int) -> None:
        self.dataset, self.long_side, self.spec = dataset, long_side, dataset.spec

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        """Sample `index` with its image resized."""
        from torchvision.transforms.v2 import functional as F  # late: reading data must not need torchvision

        sample = self.dataset[index]
        size = list(long_side_size(*sample.image_3HW.shape[1:], self.long_side))
        return sample._replace(image_3HW=F.resize_image(sample.image_3HW, size, antialias=True))

    def fingerprint(self) -> str:
        """sha256 (hex) over the data set's own fingerprint and the longest side."""
        return hashlib.sha256(f"{self.dataset.fingerprint()} long side {self.long_side}".encode()).hexdigest()
