"""Miniatures of real data sets for the tests: the same tree, names and kinds of files, made in a moment."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from apd.data.catalogue import CAMVID

VOID = 11


def write_camvid(
    root: Path, *, counts: Mapping[str, int] | None = None, height: int = 32, width: int = 32, seed: int = 0
) -> Path:
    """A CamVid tree in the SegNet tutorial's form below `root`; returns `root`.

    Labels are blocks of 8×8 pixels of all 11 classes and void; an image shows its labels' colours under noise, so a
    network can learn from it. `counts` are pictures per split (default: the real 367/101/233, as the reader demands).
    """
    counts = dict(CAMVID.splits) if counts is None else counts
    rng = np.random.default_rng(seed)
    colours = np.array([*CAMVID.palette, (0, 0, 0)], dtype=np.int16)
    for split, count in counts.items():
        (root / split).mkdir(parents=True)
        (root / f"{split}annot").mkdir()
        lines = []
        for number in range(count):
            blocks = rng.integers(0, VOID + 1, (-(-height // 8), -(-width // 8)), dtype=np.uint8)
            labels_HW = np.kron(blocks, np.ones((8, 8), dtype=np.uint8))[:height, :width]
            noise = rng.integers(-20, 21, (height, width, 1), dtype=np.int16)
            image_HW3 = (colours[labels_HW] + noise).clip(0, 255).astype(np.uint8)
            name = f"{split}_{30 * number:06d}.png"
            Image.fromarray(image_HW3).save(root / split / name, compress_level=1)
            Image.fromarray(labels_HW).save(root / f"{split}annot" / name, compress_level=1)
            lines.append(f"/SegNet/CamVid/{split}/{name} /SegNet/CamVid/{split}annot/{name}\n")
        (root / f"{split}.txt").write_text("".join(lines), encoding="utf-8")
    return root
