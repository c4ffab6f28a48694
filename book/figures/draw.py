"""Draw the figures of the book's pages into `book/_static`, with the sentences and tables that come from records.

    python book/figures/draw.py

They are committed; this is run again when a drawing, the scenes' generator or the records change.
"""

from pathlib import Path

import batch
import colours
import perspectives
import published
from svg import MODES

STATIC = Path(__file__).resolve().parents[1] / "_static"


DRAWN = {
    "batch": batch.draw,
    "perspectives": perspectives.draw,
    "class-colours": colours.draw,
    "published": published.draw,
}


def drawings() -> dict[str, str]:
    """Content of every text by file name: of each drawing an SVG for light pages and one for dark ones; Markdown."""
    texts = {"published-answer.md": published.answer(), "published-table.md": "\n".join(published.table())}
    return {name: f"{text}\n" for name, text in texts.items()} | {
        f"{name}-{mode}.svg": draw(inks).render() for name, draw in DRAWN.items() for mode, inks in MODES.items()
    }


def main() -> None:
    """Write all files and say which."""
    import augmentation
    import scenes

    for name, content in drawings().items():
        (STATIC / name).write_text(content, encoding="utf-8")
        print(STATIC / name)
    for name, image in (("scenes-shifts", scenes.draw()), ("augmentation", augmentation.draw())):
        image.save(STATIC / f"{name}.jpg", quality=90, subsampling=0, optimize=True)
        print(STATIC / f"{name}.jpg")


if __name__ == "__main__":
    main()
