"""Masks as COCO writes them: polygons and run lengths to pixels, and pixels to run lengths.

Run lengths are read here, since the libraries write past the end of a mask whose runs are too long; polygons and
packing are faster-coco-eval's (extra `detection`), which gives the very pixels of COCO's own code.
"""

from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray


class DetectionExtraMissing(ImportError):
    """faster-coco-eval is not installed."""


def coco_library(wanted_for: str) -> ModuleType:
    """The package faster_coco_eval, or DetectionExtraMissing with what it is wanted for and how to get it."""
    try:
        import faster_coco_eval
    except ImportError as error:
        fix = "`pip install -e '.[detection]'` in the project's folder, or `pip install faster-coco-eval` anywhere"
        raise DetectionExtraMissing(f"{wanted_for} needs the package faster-coco-eval: {fix}") from error
    return faster_coco_eval


def decode(segmentation: Any, height: int, width: int) -> NDArray[np.bool_]:
    """The pixels (height, width) of one annotation's `segmentation`; a ValueError says what is wrong with it.

    That is a list of polygons [x, y, x, y, ...] (for which faster-coco-eval is needed), or a mapping with `size` [rows,
    columns] and `counts`, the lengths of the runs of 0 and 1 in turn, column by column, as numbers or packed in a text.
    """
    if isinstance(segmentation, dict):
        return _from_runs(segmentation, height, width)
    if not segmentation or not isinstance(segmentation, list):
        raise ValueError(f"segmentation is {segmentation!r:.60}: expected polygons, or a mapping with size and counts")
    polygons = []
    for polygon in segmentation:
        points = np.asarray(polygon, dtype=np.float64) if isinstance(polygon, list) else np.empty(0)
        if points.ndim != 1 or len(points) < 6 or len(points) % 2 or not np.isfinite(points).all():
            raise ValueError(f"segmentation holds {polygon!r:.60}: expected three or more points x, y, as numbers")
        polygons.append(points.tolist())
    library = coco_library("drawing the polygons of a COCO annotation").mask
    return library.decode(library.merge(library.frPyObjects(polygons, height, width))).astype(bool)


def encode(masks_NHW: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Masks (N, H, W) as COCO's packed run lengths, one mapping with `size` and `counts` each; needs the extra."""
    if len(masks_NHW) == 0:
        return []
    columns_HWN = np.asfortranarray(np.moveaxis(masks_NHW, 0, -1).astype(np.uint8))
    return coco_library("packing masks").mask.encode(columns_HWN)


def _from_runs(segmentation: dict[str, Any], height: int, width: int) -> NDArray[np.bool_]:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    whole = isinstance(size, list | tuple) and len(size) == 2 and all(isinstance(side, int) for side in size)
    if not whole or min(size) < 1 or not isinstance(counts, list | str | bytes):
        raise ValueError(f"segmentation is {segmentation!r:.60}: expected size [rows, columns] and counts")
    runs = np.asarray(unpack(counts) if isinstance(counts, str | bytes) else counts)
    rows, columns = size
    if runs.dtype.kind not in "iu" or runs.ndim != 1 or (runs < 0).any() or runs.sum() != rows * columns:
        raise ValueError(f"segmentation's counts do not fill its size {rows}×{columns}: damaged")
    if (rows, columns) != (height, width):
        raise ValueError(f"segmentation has size {rows}×{columns}, its image {height}×{width}")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(columns, rows).T


def unpack(text: str | bytes) -> list[int]:
    """The run lengths in COCO's packed form; ValueError where it ends inside a number or holds another character.

    Each number is written in groups of five bits, the lowest first, as the characters from "0" on; the sixth bit says
    that the number goes on, the highest of its last group is the sign. From the fourth number on, what is written is
    the difference from the number before the last.
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
        if not value & 32:
            if value & 16:
                number -= 1 << bits
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number, bits = 0, 0
    if bits:
        raise ValueError("segmentation's counts end inside a number: damaged")
    return runs
