"""Reader for pictures whose things are listed in a COCO instances file (COCO, LVIS, Objects365 and their kin).

Nothing here downloads. What is wrong with the file is said at construction, with the entry's number, before a training
run has spent a minute.
"""

import hashlib
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from apd.data.images import DataError, MissingData, read_picture
from apd.data.instances import InstanceSample, InstanceSpec
from apd.data.paired_files import names_of
from apd.data.rle import coco_library, decode


class CocoInstances:
    """Pictures and their things, from an instances JSON and a folder of pictures.

    Pictures without a thing stay in the data set. Categories get the labels 0..K-1 in the order of their ids, all of
    the file's, whether or not they occur. Things whose box has no width or no height, or lies outside the picture, are
    left out and counted in `dropped`.

    Args:
        annotations: the JSON file, with `images`, `annotations` and `categories`.
        pictures: folder of the pictures, by their `file_name`.
        name: short name for records and messages (default: that of the file, without suffix).
        longest: pictures are reduced so that their longer side is at most this, in pixels (default None: as on disk).
            Boxes, areas and polygons go along; polygons are drawn at the smaller size.
        masks: read segmentations (default); False where a file has boxes only, or for Faster R-CNN.
        least_pixels: things with fewer pixels of mask than this, at the size read, become crowd: they need not be
            found (default 1: those that vanish).
        cache: read everything at construction, so that every fault shows before any training, and keep it; with False,
            for large data sets, each access reads the picture again.

    Attributes:
        spec: names and ids of the categories.
        dropped: how many things were left out.

    Raises:
        DataError: the file is no instances JSON, an entry refers to what is not there or is damaged, or a picture is
            missing or of another size than stated.
        ValueError: `longest` or `least_pixels` below 1.
        DetectionExtraMissing: polygons without faster-coco-eval.

    Example:
        >>> data = CocoInstances("instances_val2017.json", "val2017", longest=320)    # doctest: +SKIP
        >>> data[0].boxes_N4.shape, data.dropped                                      # doctest: +SKIP
    """

    def __init__(
        self,
        annotations: Path | str,
        pictures: Path | str,
        *,
        name: str | None = None,
        longest: int | None = None,
        masks: bool = True,
        least_pixels: int = 1,
        cache: bool = True,
    ) -> None:
        for field, value in (("longest", longest), ("least_pixels", least_pixels)):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"{field}={value!r}; expected an integer from 1")
        self._file = Path(annotations)
        self._longest, self._with_masks, self._least_pixels = longest, masks, least_pixels
        self._digest, content = _read_json(self._file)
        self.spec = _categories(content, name or self._file.stem, self._file)
        self._images = _pictures(content, Path(pictures), self._file)
        self.things, self.dropped = _things(content, self._images, self.spec, masks, self._file)
        if masks and any(isinstance(t["segmentation"], list) for things in self.things for t in things):
            coco_library(f"drawing the polygons of {self._file.name}")
        self._names = names_of([Path(image["file_name"]) for image in self._images])
        self._fingerprint: str | None = None
        self._cached = [self._read(index) for index in range(len(self))] if cache else None

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> InstanceSample:
        """Picture `index`, in the file's order. The tensors are the caller's own."""
        index = range(len(self))[index]
        if self._cached is None:
            return self._read(index)
        return InstanceSample(
            *(part.clone() if isinstance(part, torch.Tensor) else part for part in self._cached[index])
        )

    def fingerprint(self) -> str:
        """sha256 (hex) over the JSON file, every picture's name and content, and the settings; computed once."""
        if self._fingerprint is None:
            settings = (self._longest, self._with_masks, self._least_pixels)
            digest = hashlib.sha256(f"{settings} {self._digest}\n".encode())
            for image in self._images:
                content = hashlib.sha256(image["path"].read_bytes()).hexdigest()
                digest.update(f"{content} {image['file_name']}\n".encode())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def _read(self, index: int) -> InstanceSample:
        image, things = self._images[index], self.things[index]
        path = image["path"]
        picture = read_picture(path)
        if picture.size != (image["width"], image["height"]):
            raise DataError(
                f"{path} is {picture.width}×{picture.height} pixels, but {self._file} says {image['width']}×"
                f"{image['height']} of it: boxes would be in the wrong place (images are turned as their EXIF says)"
            )
        factor = 1.0 if self._longest is None else min(1.0, self._longest / max(picture.size))
        width, height = (max(1, round(side * factor)) for side in picture.size)
        scale = (height / picture.height, width / picture.width)
        if (width, height) != picture.size:
            picture = picture.resize(
                (width, height), Image.Resampling.BILINEAR
            )  # pillow widens the filter: antialiased
        boxes_N4 = torch.tensor([thing["box"] for thing in things], dtype=torch.float32).reshape(-1, 4)
        boxes_N4 = boxes_N4 * torch.tensor([scale[1], scale[0]], dtype=torch.float32).repeat(2)
        crowd_N = torch.tensor([thing["crowd"] for thing in things], dtype=torch.bool)
        masks_NHW = None
        if self._with_masks:
            masks_NHW = torch.zeros(len(things), height, width, dtype=torch.bool)
            for number, thing in enumerate(things):
                masks_NHW[number] = torch.from_numpy(self._mask(thing, height, width, scale))
            crowd_N = crowd_N | (masks_NHW.flatten(1).sum(1) < self._least_pixels)
        return InstanceSample(
            torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous(),
            boxes_N4,
            torch.tensor([thing["label"] for thing in things], dtype=torch.int64),
            masks_NHW,
            crowd_N,
            torch.tensor([thing["area"] for thing in things], dtype=torch.float32) * (scale[0] * scale[1]),
            self._names[index],
        )

    def _mask(self, thing: dict[str, Any], height: int, width: int, scale: tuple[float, float]) -> np.ndarray:
        try:
            return decode(thing["segmentation"], height, width, scale=scale)
        except ValueError as error:
            raise DataError(f"{self._file}: annotation {thing['id']}: {error}") from error


def coco_split(
    name: str,
    split: str,
    *,
    annotations: str = "annotations/instances_{split}.json",
    pictures: str = "{split}",
    **options: Any,
) -> CocoInstances:
    """One split of a data set below ``APD_DATA``, by default in COCO's own tree.

    The tree is ``NAME/annotations/instances_SPLIT.json`` with the pictures in ``NAME/SPLIT/``, as COCO 2017 is
    distributed and as the 100 pictures of tiny_coco are.

    Args:
        name: folder below ``APD_DATA``, such as "coco" or "tiny_coco".
        split: such as "train2017" or "val2017".
        annotations, pictures: where in that folder the file and the pictures of a split are.
        options: of :class:`CocoInstances`.

    Raises:
        MissingData: ``APD_DATA`` is not set, or holds no such folder or file.

    Example:
        >>> data = coco_split("tiny_coco", "train2017", longest=160)    # doctest: +SKIP
        >>> len(data), data.spec.num_classes                            # doctest: +SKIP
        (50, 80)
    """
    file, folder = _in_the_tree(name, split, annotations, pictures)
    return CocoInstances(file, folder, name=name, **options)


def coco_spec(name: str, split: str, *, annotations: str = "annotations/instances_{split}.json") -> InstanceSpec:
    """Names and numbers of the categories in a split's file; arguments and errors as :func:`coco_split`.

    >>> coco_spec("tiny_coco", "train2017").category_ids[-1]    # doctest: +SKIP
    90
    """
    (file,) = _in_the_tree(name, split, annotations)
    return _categories(_read_json(file)[1], name, file)


def _in_the_tree(name: str, split: str, *wanted: str) -> list[Path]:
    """Where a split's file, and the folder of its pictures, are below APD_DATA."""
    parent = os.environ.get("APD_DATA")
    if not parent:
        raise MissingData(
            f"the data set {name} is needed, and the environment variable APD_DATA is not set. Set it to the folder "
            f"that contains {name}/, which holds annotations/ and the pictures' folders as COCO 2017 is distributed"
        )
    root = Path(parent).expanduser() / name
    # replaced, not formatted: a stray brace in a folder's name is no error
    within = [text.replace("{split}", split) for text in wanted]
    for path in within:
        if not (root / path).exists():
            told = " and ".join(f"{name}/{part}" for part in within)
            as_usual = ", as COCO 2017 is distributed" if wanted[0] == "annotations/instances_{split}.json" else ""
            raise MissingData(f"{root / path} is missing: expected {told}{as_usual}")
    return [root / path for path in within]


def _read_json(file: Path) -> tuple[str, dict[str, Any]]:
    """The file's sha256 and content, after a look at what it is."""
    try:
        data = file.read_bytes()
        content = json.loads(data)
    except FileNotFoundError as error:
        raise MissingData(f"annotation file {file} is missing") from error
    except ValueError as error:
        raise DataError(f"{file} cannot be read as JSON ({error}): damaged or truncated, fetch it again") from error
    parts = ("images", "annotations", "categories")
    lacking = [part for part in parts if not isinstance(content, dict) or not isinstance(content.get(part), list)]
    if lacking:
        raise DataError(
            f"{file} has no list {', '.join(map(repr, lacking))}: expected a COCO instances file with "
            f"{', '.join(parts)} (captions and key points are other files)"
        )
    return hashlib.sha256(data).hexdigest(), content


def _entries(content: dict[str, Any], part: str, fields: Sequence[tuple[str, type | tuple]], file: Path) -> list[dict]:
    """The entries of one list, after every field was found to be there and of its kind."""
    for number, entry in enumerate(content[part]):
        for field, kind in fields:
            value = entry.get(field) if isinstance(entry, dict) else None
            if not isinstance(value, kind) or isinstance(value, bool):
                raise DataError(
                    f"{file}: {part}[{number}] has {field} = {value!r:.60}: not what a COCO instances file holds"
                )
    return content[part]


def _numbers(entries: list[dict], part: str, file: Path) -> None:
    twice = [number for number, count in Counter(entry["id"] for entry in entries).items() if count > 1]
    if twice:
        raise DataError(f"{file}: {part} hold the id {twice[0]} twice; ids must differ")


def _categories(content: dict[str, Any], name: str, file: Path) -> InstanceSpec:
    entries = _entries(content, "categories", (("id", int), ("name", str)), file)
    _numbers(entries, "categories", file)
    entries = sorted(entries, key=lambda entry: entry["id"])
    try:
        return InstanceSpec(name, tuple(e["name"] for e in entries), tuple(e["id"] for e in entries))
    except ValueError as error:
        raise DataError(f"{file}: {error}") from error


def _pictures(content: dict[str, Any], folder: Path, file: Path) -> list[dict[str, Any]]:
    fields = (("id", int), ("file_name", str), ("height", int), ("width", int))
    images = _entries(content, "images", fields, file)
    _numbers(images, "images", file)
    if not images:
        raise DataError(f"{file} lists no picture")
    if not folder.is_dir():
        raise MissingData(f"picture folder {folder} is missing")
    missing = []
    for image in images:
        # a file system may store an accent in another form than the JSON file
        forms = [image["file_name"], *(unicodedata.normalize(form, image["file_name"]) for form in ("NFC", "NFD"))]
        image["path"] = next((folder / name for name in forms if (folder / name).exists()), None)
        if image["path"] is None:
            missing.append(image["file_name"])
    if missing:
        raise MissingData(f"{folder / missing[0]} is missing ({len(missing)} of {len(images)} pictures of {file.name})")
    return images


def _things(
    content: dict[str, Any], images: list[dict], spec: InstanceSpec, masks: bool, file: Path
) -> tuple[list[list[dict[str, Any]]], int]:
    """For each picture its things, with their label and their box x0, y0, x1, y1 cut off at the picture's edge."""
    fields = (("id", int), ("image_id", int), ("category_id", int), ("bbox", list))
    entries = _entries(content, "annotations", fields, file)
    _numbers(entries, "annotations", file)
    place_of = {image["id"]: place for place, image in enumerate(images)}
    label_of = {category: label for label, category in enumerate(spec.category_ids)}
    things: list[list[dict[str, Any]]] = [[] for _ in images]
    dropped = 0
    for entry in entries:
        where = f"{file}: annotation {entry['id']}"
        if entry["image_id"] not in place_of:
            raise DataError(f"{where} is of picture {entry['image_id']}, which is not among the images")
        if entry["category_id"] not in label_of:
            raise DataError(f"{where} is of category {entry['category_id']}, which is not among the categories")
        box = entry["bbox"]
        if len(box) != 4 or not all(isinstance(v, int | float) and np.isfinite(v) for v in box):
            raise DataError(f"{where} has bbox = {box!r:.60}: expected [x, y, width, height], four finite numbers")
        if masks and not entry.get("segmentation"):
            raise DataError(f"{where} has no segmentation: read this file with masks=False (--data.no-masks)")
        place = place_of[entry["image_id"]]
        width, height = images[place]["width"], images[place]["height"]
        x0, y0 = max(0.0, float(box[0])), max(0.0, float(box[1]))
        x1, y1 = min(float(width), float(box[0]) + box[2]), min(float(height), float(box[1]) + box[3])
        if x1 <= x0 or y1 <= y0:
            dropped += 1
            continue
        area = entry.get("area", (x1 - x0) * (y1 - y0))
        if not isinstance(area, int | float) or not np.isfinite(area):
            raise DataError(f"{where} has area = {area!r:.60}: expected a finite number")
        things[place].append(
            {
                "id": entry["id"],
                "label": label_of[entry["category_id"]],
                "box": (x0, y0, x1, y1),
                "crowd": bool(entry.get("iscrowd", 0)),
                "area": float(area),
                "segmentation": entry.get("segmentation") if masks else None,
            }
        )
    return things, dropped
