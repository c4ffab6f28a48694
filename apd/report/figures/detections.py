"""Pictures with what was found in them: boxes, masks, names and scores, side by side with the truth."""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apd.data.instances import InstanceSample, InstanceSpec
from apd.data.rle import decode
from apd.data.specs import RGB, SCENES
from apd.evaluation.average_precision import Detections
from apd.report.detections import LEAST_OVERLAP, LEAST_SCORE, count_in_image
from apd.report.figures.scenes import image_picture
from apd.report.figures.style import Drawing, ImageHW3, key, png

OTHERS: tuple[RGB, ...] = ((230, 159, 0), (0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167))
"""Colours of things that are none of the scenes': those of Okabe and Ito, which the colour-blind can tell apart."""
BACKGROUND: RGB = (205, 210, 218)
_TINT = 0.5
_CASING = "#101418"


def thing_colours(spec: InstanceSpec) -> list[RGB]:
    """A colour for each class of things: that of the scenes' palette where the name is one of theirs."""
    own = dict(zip(SCENES.class_names, SCENES.palette, strict=True))
    return [own.get(name, OTHERS[place % len(OTHERS)]) for place, name in enumerate(spec.class_names)]


def rgb(colour: RGB) -> str:
    """A colour as CSS and SVG write it."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def ink_on(colour: RGB) -> str:
    """Black or white, whichever can be read better on a colour."""
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in (c / 255 for c in colour)
    ]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else "#ffffff"


def tinted(image_3HW: Tensor, masks: Sequence[NDArray[np.bool_]], colours: Sequence[RGB]) -> ImageHW3:
    """A picture whose masks are tinted, the larger ones first."""
    picture_HW3 = image_picture(image_3HW).astype(np.float64)
    for place in sorted(range(len(masks)), key=lambda i: -int(masks[i].sum())):
        mask_HW = masks[place]
        picture_HW3[mask_HW] = (1 - _TINT) * picture_HW3[mask_HW] + _TINT * np.array(colours[place], dtype=np.float64)
    return picture_HW3.round().astype(np.uint8)


def framed(
    picture_HW3: ImageHW3,
    boxes_N4: Tensor,
    colours: Sequence[RGB],
    labels: Sequence[str],
    description: str,
    *,
    strength: float = 1.0,
) -> str:
    """HTML of a picture with boxes drawn on it, each with its label; an empty label draws none.

    Boxes and labels are drawn as lines and text, so that they stay sharp where the picture's pixels are large.

    Args:
        picture_HW3: under the boxes.
        boxes_N4: x0, y0, x1, y1 in its pixels.
        colours: of each box.
        labels: of each box.
        description: read aloud in place of the picture.
        strength: of the lines.
    """
    height, width = picture_HW3.shape[:2]
    unit = width / 128
    parts = [
        f'<image href="{png(picture_HW3)}" width="{width}" height="{height}" style="image-rendering:pixelated"/>',
    ]
    boxes = boxes_N4.tolist()
    for (x0, y0, x1, y1), colour in zip(boxes, colours, strict=True):
        shape = f'x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}" fill="none"'
        parts.append(f'<rect {shape} stroke="{_CASING}" stroke-width="{1.5 * unit * strength:.2f}" opacity="0.7"/>')
        parts.append(f'<rect {shape} stroke="{rgb(colour)}" stroke-width="{0.8 * unit * strength:.2f}"/>')
    size, taken = 4.2 * unit, []
    for box, colour, label in zip(boxes, colours, labels, strict=True):
        if label:
            wide, high = 0.56 * size * len(label) + 0.6 * size, 1.15 * size
            left, top = _free_place(box, wide, high, (width, height), taken)
            taken.append((left, top, left + wide, top + high))
            parts.append(
                f'<rect x="{left:.1f}" y="{top:.1f}" width="{wide:.1f}" height="{high:.1f}" fill="{rgb(colour)}"/>'
                f'<text x="{left + wide / 2:.1f}" y="{top + 0.87 * size:.1f}" font-size="{size:.2f}" '
                f'text-anchor="middle" textLength="{wide - 0.5 * size:.1f}" lengthAdjust="spacingAndGlyphs" '
                f'fill="{ink_on(colour)}">{escape(label)}</text>'
            )
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(description, quote=True)}" '
        'style="display:block;width:100%;height:auto;border-radius:3px;font-family:system-ui,sans-serif" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def _free_place(
    box: Sequence[float], wide: float, high: float, size: tuple[int, int], taken: Sequence[tuple[float, ...]]
) -> tuple[float, float]:
    """Left and top of a label: above its box or below it, as near as leaves the other labels free."""
    x0, y0, _, y1 = box
    left = min(max(x0, 0.0), size[0] - wide)
    tops = [top for step in range(4) for top in (y0 - (1 + step) * high, y1 + step * high)]
    inside = [top for top in tops if 0 <= top <= size[1] - high] or [min(max(y0, 0.0), size[1] - high)]

    def is_free(top: float) -> bool:
        return not any(left < x1 and x0 < left + wide and top < y1 and y0 < top + high for x0, y0, x1, y1 in taken)

    return left, next(filter(is_free, inside), inside[0])


def framed_grid(cells: Sequence[tuple[str, str, str]], *, columns: int, least: str, below: str = "") -> Drawing:
    """Framed pictures with their captions and notes, as :func:`apd.report.figures.style.panels` lays out plain ones.

    Args:
        cells: HTML of the picture, caption and note of each.
        columns: most that stand in one row.
        least: smallest width of a cell, a CSS length.
        below: HTML under the grid.
    """
    parts = [
        f'<div class="apd-panel">{picture}<div><strong>{escape(caption)}</strong> '
        f'<span class="apd-note">{escape(note)}</span></div></div>'
        for picture, caption, note in cells
    ]
    grid = f'<div class="apd-panels" style="--columns:{columns};--least:{least}">{"".join(parts)}</div>'
    return Drawing(grid + below, "pictures: " + "; ".join(f"{caption} ({note})" for _, caption, note in cells))


def _found_picture(sample: InstanceSample, found: Detections, spec: InstanceSpec, description: str) -> str:
    sure = (found.scores_N >= LEAST_SCORE).nonzero().flatten().tolist()
    palette = thing_colours(spec)
    colours = [palette[int(found.labels_N[i])] for i in sure]
    size = tuple(sample.image_3HW.shape[1:])
    masks = [] if found.masks is None else [decode(found.masks[i], *size) for i in sure]
    labels = [f"{spec.class_names[int(found.labels_N[i])]} {float(found.scores_N[i]):.2f}" for i in sure]
    return framed(tinted(sample.image_3HW, masks, colours), found.boxes_N4[sure], colours, labels, description)


def _true_picture(sample: InstanceSample, spec: InstanceSpec, description: str) -> str:
    wanted = (~sample.crowd_N).nonzero().flatten().tolist()
    palette = thing_colours(spec)
    colours = [palette[int(sample.labels_N[i])] for i in wanted]
    masks = [] if sample.masks_NHW is None else list(sample.masks_NHW[wanted].numpy())
    labels = [spec.class_names[int(sample.labels_N[i])] for i in wanted]
    return framed(tinted(sample.image_3HW, masks, colours), sample.boxes_N4[wanted], colours, labels, description)


def side_by_side(
    sample: InstanceSample, found: Mapping[str, Detections], spec: InstanceSpec, *, key_below: bool = True
) -> Drawing:
    """One picture as several detectors see it, and the truth: boxes and masks in the classes' colours, with scores.

    Drawn are the findings that are counted, of a score of :data:`~apd.report.detections.LEAST_SCORE` or
    more; of the truth, what has to be found.

    Args:
        sample: a built-in scene.
        found: by the name that stands below the picture.
        spec: the classes.
        key_below: name the colours below the pictures.
    """
    cells = []
    for name, each in found.items():
        count = count_in_image(sample, each)
        note = f"{count.right} right, {count.false} false, {count.missed} missed"
        cells.append((_found_picture(sample, each, spec, f"{name}: {note}"), name, note))
    things = int((~sample.crowd_N).sum())
    cells.append((_true_picture(sample, spec, f"the truth: {things} things"), "the truth", f"{things} things"))
    below = key(list(zip(spec.class_names, thing_colours(spec), strict=True))) if key_below else ""
    return framed_grid(cells, columns=2, least="13rem", below=below)


def rule_in_words(name: str, reference: str) -> str:
    """By which rule the shown pictures were chosen."""
    return (
        f"A picture's score is the number of things found (same class, boxes that overlap by {LEAST_OVERLAP:g} or more)"
        f" minus that of false findings, among findings of a score of {LEAST_SCORE:g} or more. Shown are the pictures "
        f"with the greatest, the median and the least difference between “{name}” and “{reference}”, of equal ones the "
        "first that is not shown already."
    )


def grey_for_background(labels_N: Tensor, spec: InstanceSpec) -> list[RGB]:
    """A colour for each of a detector's labels, 0 being the background."""
    palette = [BACKGROUND, *thing_colours(spec)]
    return [palette[int(label)] for label in labels_N]


def class_map_picture(class_map_HW: Tensor, spec: InstanceSpec) -> ImageHW3:
    """A map of a detector's labels in the classes' colours: background grey, ignored pixels white."""
    palette = torch.tensor([BACKGROUND, *thing_colours(spec), (255, 255, 255)], dtype=torch.uint8)
    return palette[class_map_HW].numpy()  # ignored is -1, the last
