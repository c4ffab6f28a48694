"""Draw the figures of the book's pages into `book/_static`.

    python book/figures/draw.py

They are committed; this is run again when a drawing or the scenes' generator changes.
"""

from pathlib import Path

import batch
import colours
import perspectives
from svg import MODES

STATIC = Path(__file__).resolve().parents[1] / "_static"


def drawings() -> dict[str, str]:
    """Content of every SVG by file name: one for light pages and one for dark ones of each drawing."""
    return {
        f"{name}-{mode}.svg": draw(inks).render()
        for name, draw in (("batch", batch.draw), ("perspectives", perspectives.draw), ("class-colours", colours.draw))
        for mode, inks in MODES.items()
    }


def main() -> None:
    """Write all files and say which."""
    import augmentation
    import scenes

    for name, content in drawings().items():
        (STATIC / name).write_text(content, encoding="utf-8")
        print(STATIC / name)
    for name, image in (("scenes-dial", scenes.draw()), ("augmentation", augmentation.draw())):
        image.save(STATIC / f"{name}.jpg", quality=90, subsampling=0, optimize=True)
        print(STATIC / f"{name}.jpg")


if __name__ == "__main__":
    main()
