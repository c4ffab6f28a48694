"""What a detector finds in single pictures, as files: boxes, masks, names and scores drawn, and COCO's results format.

Pixels are drawn with pillow, so that nothing but the package itself is needed.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from apd.data.augment_instances import unit_range
from apd.data.image_folder import names_of
from apd.data.images import DataError, read_image
from apd.data.instances import InstanceSpec
from apd.data.rle import decode
from apd.data.specs import RGB, SCENES, distinct_colours
from apd.evaluation.average_precision import Detections
from apd.evaluation.detections import detect

LEAST_SCORE = 0.5
"""Findings below this are not drawn (Detectron2's demo: 0.5); files of results hold all of them."""
RESULTS = "detections.json"
_OPACITY = 0.45


def colours_of(spec: InstanceSpec) -> list[RGB]:
    """A colour for each class: that of the scenes' palette where the name is one of theirs, else one far from others.

    >>> colours_of(InstanceSpec("street", ("car", "bus")))[0] == SCENES.palette[SCENES.index("car")]
    True
    """
    own = dict(zip(SCENES.class_names, SCENES.palette, strict=True))
    others = distinct_colours(min(spec.num_classes, 255))
    return [own.get(name, others[place % len(others)]) for place, name in enumerate(spec.class_names)]


def drawn(
    image_HW3: NDArray[np.uint8], found: Detections, spec: InstanceSpec, least_score: float = LEAST_SCORE
) -> Image.Image:
    """The picture with what was found in it: masks tinted, boxes, and the name and score of each.

    Args:
        image_HW3: RGB.
        found: in the picture's own pixels; masks are drawn where it has them.
        spec: names of the classes.
        least_score: findings below it are left out.
    """
    height, width = image_HW3.shape[:2]
    colours, canvas = colours_of(spec), image_HW3.astype(np.float32)
    kept = [place for place, score in enumerate(found.scores_N.tolist()) if score >= least_score]
    masks = {} if found.masks is None else {place: decode(found.masks[place], height, width) for place in kept}
    for place, mask_HW in sorted(masks.items(), key=lambda item: -int(item[1].sum())):  # the smaller on top
        colour = np.array(colours[int(found.labels_N[place])], dtype=np.float32)
        canvas[mask_HW] = (1 - _OPACITY) * canvas[mask_HW] + _OPACITY * colour
    picture = Image.fromarray(canvas.round().astype(np.uint8))
    pen, line = ImageDraw.Draw(picture), max(1, round(min(height, width) / 240))
    font = ImageFont.load_default(size=max(9, round(min(height, width) / 32)))
    for place in sorted(kept, key=lambda place: float(found.scores_N[place])):  # the surest on top
        label = int(found.labels_N[place])
        x0, y0, x1, y1 = found.boxes_N4[place].tolist()
        pen.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=colours[label], width=line)
        text = f"{spec.class_names[label]} {float(found.scores_N[place]):.2f}"
        right, bottom = pen.textbbox((0, 0), text, font=font)[2:]
        # above the box where there is room, and never beyond the picture's edge
        at = max(0.0, min(x0, width - right - 2)), y0 - bottom - 2 if y0 >= bottom + 2 else y0
        pen.rectangle((at[0], at[1], at[0] + right + 2, at[1] + bottom + 2), fill=colours[label])
        pen.text((at[0] + 1, at[1]), text, font=font, fill=_ink_on(colours[label]))
    return picture


def coco_results(found: Detections, image_id: int, spec: InstanceSpec) -> list[dict[str, Any]]:
    """Findings as COCO's results format has them, the surest first.

    `category_id` is the number in the data set's own file where it has one, else the class's place from 1. Masks are
    packed run lengths.

    >>> box = torch.tensor([[2.0, 3.0, 12.0, 8.0]])
    >>> one = Detections(box, torch.tensor([0.75]), torch.tensor([1]), None)
    >>> coco_results(one, 139, InstanceSpec("pets", ("cat", "dog"), category_ids=(17, 18)))
    [{'image_id': 139, 'category_id': 18, 'bbox': [2.0, 3.0, 10.0, 5.0], 'score': 0.75}]
    """
    numbers = spec.category_ids or range(1, spec.num_classes + 1)
    entries = []
    for place in found.scores_N.argsort(descending=True, stable=True).tolist():
        x0, y0, x1, y1 = found.boxes_N4[place].double().tolist()
        entry: dict[str, Any] = {
            "image_id": image_id,
            "category_id": numbers[int(found.labels_N[place])],
            "bbox": [round(value, 2) for value in (x0, y0, x1 - x0, y1 - y0)],
            "score": round(float(found.scores_N[place]), 5),
        }
        if found.masks is not None:
            size, counts = found.masks[place]["size"], found.masks[place]["counts"]
            text = counts.decode("ascii") if isinstance(counts, bytes) else counts
            entry["segmentation"] = {"size": [int(side) for side in size], "counts": text}
        entries.append(entry)
    return entries


def image_ids(pictures: Sequence[Path]) -> list[int]:
    """A number for each picture: that in its name where all are named by numbers, as COCO's are, else its place from 1.

    >>> image_ids([Path("000000000139.jpg"), Path("000000000285.jpg")]), image_ids([Path("street.jpg")])
    ([139, 285], [1])
    """
    stems = [picture.stem for picture in pictures]
    if all(stem.isascii() and stem.isdigit() for stem in stems) and len(set(map(int, stems))) == len(stems):
        return [int(stem) for stem in stems]
    return list(range(1, len(stems) + 1))


def detect_in_pictures(
    detector: nn.Module,
    pictures: Sequence[Path],
    folder: Path,
    spec: InstanceSpec,
    *,
    least_score: float = LEAST_SCORE,
) -> list[Path]:
    """Find things in pictures; write `NAME-found.png` for each, and `detections.json` with all findings.

    NAME is that of `names_of`, so no file takes another's place. The JSON file is a list in COCO's results format, each
    entry with the picture's `file_name` besides: its name, with folders where stems repeat.

    Args:
        detector: in eval mode, on any device.
        pictures: of any size; the detector brings them to its own, and findings are in the pictures' pixels.
        folder: where the files go; made if it is not there.
        spec: names and numbers of the classes.
        least_score: findings below it are not drawn.

    Returns:
        The files that were written.

    Raises:
        DataError: a picture cannot be read or the folder not written.
        DetectionExtraMissing: masks without faster-coco-eval.
    """
    device, entries, written = next(detector.parameters()).device, [], []
    for path, image_id, name in zip(pictures, image_ids(pictures), names_of(pictures), strict=True):
        pixels_HW3 = np.asarray(read_image(path))
        image_3HW = unit_range(torch.tensor(pixels_HW3).permute(2, 0, 1))
        (found,) = detect(detector, [image_3HW.to(device)])
        entries += [
            {**entry, "file_name": name.removesuffix(path.suffix) + path.suffix}
            for entry in coco_results(found, image_id, spec)
        ]
        written.append(folder / f"{name}-found.png")
        save_picture(drawn(pixels_HW3, found, spec, least_score), written[-1])
    written.append(folder / RESULTS)
    try:
        lines = ",\n".join(map(json.dumps, entries))  # a finding a line
        written[-1].write_text(f"[{lines}]\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"{folder}: cannot write detections ({error})") from error
    return written


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG; its folder is made if it is not there.

    Raises:
        DataError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    except OSError as error:
        raise DataError(f"{path.parent}: cannot write pictures ({error})") from error


def _ink_on(colour: RGB) -> RGB:
    """Black or white, whichever can be read better."""
    red, green, blue = colour
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)
