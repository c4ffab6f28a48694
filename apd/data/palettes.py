"""Colours for many classes: any number of them, as far apart as a simple choice makes them."""

from functools import cache

import numpy as np


def distinct_colours(count: int) -> tuple[tuple[int, int, int], ...]:
    """`count` RGB colours (0..255), each chosen as far as possible in CIE Lab from white and from all before it.

    White is what ignored pixels are shown in. A longer list begins with the shorter ones.

    Raises:
        ValueError: `count` is below 1 or above 255, the most labels a map of 8 bits has beside the ignored one.

    Example:
        >>> distinct_colours(3) == distinct_colours(150)[:3]
        True
    """
    if not 1 <= count <= 255:
        raise ValueError(f"count={count}; expected 1 to 255 colours")
    return _sequence()[:count]


@cache
def _sequence() -> tuple[tuple[int, int, int], ...]:
    steps = np.linspace(0, 255, 16).round().astype(np.uint8)  # every 17th value of each channel
    candidates_N3 = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    lab_N3 = _cie_lab(candidates_N3)
    nearest_N = np.linalg.norm(lab_N3 - _cie_lab(np.array([[255, 255, 255]])), axis=1)
    chosen = []
    for _ in range(255):
        chosen.append(int(nearest_N.argmax()))
        nearest_N = np.minimum(nearest_N, np.linalg.norm(lab_N3 - lab_N3[chosen[-1]], axis=1))
    return tuple((int(red), int(green), int(blue)) for red, green, blue in candidates_N3[chosen])


def _cie_lab(rgb_N3: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D65) of sRGB colours 0..255."""
    encoded = rgb_N3 / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    xyz = linear @ to_xyz.T / np.array([0.95047, 1.0, 1.08883])
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)
