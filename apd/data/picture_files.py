"""Picture files: found in folders, paired by name, and opened so that damage is told with the file's name."""

import io
from pathlib import Path

from PIL import Image

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
# what pillow turns into RGB without a loss; pictures of 16 bits and of floats it would clip without a word
IMAGE_MODES = ("RGB", "RGBA", "L", "P", "CMYK")


class DataError(Exception):
    """Data on disk are not what they should be; the message names the file, what was found, and what to do."""


class MissingData(DataError, FileNotFoundError):
    """A data folder or file is not there."""


def pictures(folder: Path) -> dict[str, Path]:
    """The pictures of a folder (``.png``, ``.jpg``, ``.jpeg``; hidden files left out) by stem, sorted by name.

    Raises:
        MissingData: the folder is not there.
        DataError: two pictures have the same stem.
    """
    if not folder.is_dir():
        raise MissingData(f"data folder {folder} is missing; expected a folder with pictures")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith("."):
            if path.stem in found:
                raise DataError(f"{folder} holds both {found[path.stem].name} and {path.name}; remove one of them")
            found[path.stem] = path
    return found


def pair_folders(image_dir: Path, mask_dir: Path) -> list[tuple[Path, Path]]:
    """(image, mask) paths of two folders, paired by stem and sorted by name.

    Raises:
        MissingData: a folder is not there.
        DataError: a folder has no picture, or a picture has no partner (the first such file is named).
    """
    images, masks = pictures(image_dir), pictures(mask_dir)
    for own, other, folder in ((images, masks, mask_dir), (masks, images, image_dir)):
        alone = [path for stem, path in own.items() if stem not in other]
        if alone:
            raise DataError(
                f"{alone[0]} has no partner in {folder} ({len(alone)} such files); "
                f"image and mask must have the same name, suffix aside"
            )
    if not images:
        raise DataError(f"{image_dir} holds no picture; expected {', '.join(PICTURE_SUFFIXES)} files")
    return [(path, masks[stem]) for stem, path in images.items()]


def picture_size(path: Path) -> tuple[int, int]:
    """(width, height) of a picture, from its first bytes."""
    try:
        with Image.open(path) as picture:
            return picture.size
    except FileNotFoundError as error:
        raise MissingData(f"{path} is missing; fetch the data again") from error
    except Exception as error:
        raise DataError(f"{path} cannot be read as a picture ({error}); fetch it again") from error


def open_picture(path: Path) -> Image.Image:
    """A picture, decoded to its last pixel; whatever pillow says of a damaged file becomes a DataError."""
    try:
        content = io.BytesIO(path.read_bytes())
        with Image.open(content) as picture:
            picture.verify()  # a PNG's checksums and end mark, which load() does not look at
        with Image.open(content) as picture:
            picture.load()
            return picture
    except FileNotFoundError as error:
        raise MissingData(f"{path} is missing; fetch the data again") from error
    except Exception as error:  # pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
        raise DataError(
            f"{path} cannot be read as a picture ({error}): damaged or truncated, fetch it again"
        ) from error
