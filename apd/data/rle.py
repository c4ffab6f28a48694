"""Masks as COCO stores them, polygons and run lengths, and the library that counts and draws with these."""

from reprlib import repr as shortened  # unlike `{value!r:.60}` it never builds the text of a whole list
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apd.fields import UserError

MOST = 2**53  # up to here float64 holds every integer; no id, side, coordinate or area means more


class DetectionExtraMissing(UserError, ImportError):
    """faster-coco-eval is not installed."""


def coco_library(purpose: str) -> ModuleType:
    """The package faster_coco_eval, or DetectionExtraMissing with what it is wanted for and how to get it."""
    try:
        import faster_coco_eval
    except ImportError as error:
        fix = "`pip install -e '.[detection]'` in the project's folder, or `pip install faster-coco-eval` anywhere"
        raise DetectionExtraMissing(f"{purpose} needs the package faster-coco-eval: install it with {fix}") from error
    return faster_coco_eval


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a number that can be meant; NaN is none, nor is a bool."""
    return type(value) in (int, float) and abs(value) <= MOST


# own code, since libraries write past the end of a short mask and believe every polygon
def decode(segmentation: Any, height: int, width: int) -> NDArray[np.bool_]:
    """The pixels (height, width) of one annotation's `segmentation`; a ValueError says what is wrong with it.

    That is a list of polygons [x, y, x, y, ...] (for which faster-coco-eval is needed), or a mapping with `size` [rows,
    columns] and `counts`, the lengths of the runs of 0 and 1 in turn, column by column, as numbers or packed in a text.
    Polygons may lead out of the image; their points, their outline and each coordinate are bounded by its pixels.
    """
    if isinstance(segmentation, dict):
        return _from_runs(segmentation, height, width)
    if not segmentation or not isinstance(segmentation, list):
        raise ValueError(f"segmentation is {shortened(segmentation):.80}: expected polygons, or size and counts")
    # the library takes 80 bytes for each pixel of the outline, and ends the process where they are not to be had
    most, outline = min(height * width, 2**22) + 2**16, 0.0
    for polygon in segmentation:
        plain = isinstance(polygon, list) and len(polygon) >= 6 and all(map(is_number, polygon))
        if not plain or len(polygon) % 2:
            raise ValueError(f"segmentation holds {shortened(polygon):.80}: expected three or more points, as numbers")
        points_X2 = np.array(polygon[: 2 * most], dtype=np.float64).reshape(-1, 2)  # more would be refused anyway
        outline += len(polygon) + np.abs(points_X2 - np.roll(points_X2, 1, axis=0)).max(1).sum()
        if max(outline, np.abs(points_X2).max()) > most:
            raise ValueError(f"segmentation holds polygons too long for, or far out of, its image {height}×{width}")
    library = coco_library("drawing the polygons of a COCO annotation").mask
    return library.decode(library.merge(library.frPyObjects(segmentation, height, width))).astype(bool)


def encode(masks_NHW: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Masks (N, H, W) as COCO's packed run lengths, one mapping with `size` and `counts` each; needs the extra."""
    if len(masks_NHW) == 0:
        return []
    columns_HWN = np.asfortranarray(np.moveaxis(masks_NHW, 0, -1).astype(np.uint8))
    return coco_library("packing masks").mask.encode(columns_HWN)


def _from_runs(segmentation: dict[str, Any], height: int, width: int) -> NDArray[np.bool_]:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    whole = isinstance(size, list | tuple) and len(size) == 2 and all(map(is_number, size))
    if not whole or not isinstance(counts, list | str | bytes):
        raise ValueError(f"segmentation is {shortened(segmentation):.80}: expected size [rows, columns] and counts")
    if tuple(size) != (height, width):
        raise ValueError(f"segmentation has size {size[0]}×{size[1]}, its image {height}×{width}")
    pixels = height * width
    # lengths first, so that little is unpacked in vain; then Python's sum, which unlike NumPy's never wraps round
    runs = counts if len(counts) <= 12 * (2 * pixels + 1) else []
    runs = unpack(runs) if isinstance(runs, str | bytes) else runs
    if len(runs) > 2 * pixels + 1 or set(map(type, runs)) != {int} or min(runs) < 0 or sum(runs) != pixels:
        raise ValueError(f"segmentation's counts do not fill its size {height}×{width}: damaged")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def unpack(text: str | bytes) -> list[int]:
    """The run lengths in COCO's packed form; ValueError where it ends inside a number or holds another character.

    Numbers are groups of five bits, the lowest first, as characters from "0" on; the sixth bit says that it goes on,
    the highest of the last group is the sign. From the fourth on, a number is the difference from that before the last.
    """
    values = np.frombuffer(text.encode("latin-1", "replace") if isinstance(text, str) else text, np.uint8).astype(int)
    values = values - 48
    if ((values < 0) | (values > 63)).any():
        raise ValueError("segmentation's counts hold a character that packed run lengths do not have: damaged")
    runs: list[int] = []
    number, bits = 0, 0
    for value in values.tolist():
        number |= (value & 31) << bits
        bits += 5
        if bits > 60:
            raise ValueError("segmentation's counts hold a number of more than 60 bits: damaged")
        if not value & 32:
            if value & 16:
                number -= 1 << bits
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number, bits = 0, 0
    if bits:
        raise ValueError("segmentation's counts end inside a number: damaged")
    return runs
