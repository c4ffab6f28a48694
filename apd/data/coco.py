"""Reader for a COCO instances file: every number and name in it is held to what can be meant before it is used."""

import hashlib
import json
import os
import re
import unicodedata
from collections import Counter
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

import numpy as np
import torch

from apd.data.image_folder import find_data, names_of
from apd.data.images import DataError, MissingData, read_image, size_of
from apd.data.instances import InstanceSample, InstanceSpec, coco_library, decode, is_number
from apd.fields import CONTROLS, each_once

_ANNOTATIONS = "annotations/instances_{split}.json"
_FIELDS: dict[str, dict[str, type]] = {
    "categories": {"id": int, "name": str},
    "images": {"id": int, "file_name": str, "height": int, "width": int},
    "annotations": {"id": int, "image_id": int, "category_id": int, "bbox": list},
}
_BYTES = 2 << 30  # most of a file, and of one image's masks (own choice): LVIS's file has 1.1 GB, COCO's 0.45
_NO_NAME = re.compile(f"{CONTROLS}|^.{{4096}}|^$", re.DOTALL)  # of a file or class


class CocoInstances:
    """Images and their objects, from an instances JSON `annotations` and a folder of `images`.

    Categories get the labels 0..K-1 in the order of their ids. Objects whose box is empty, or outside the image, are
    left out; those whose mask has no pixel become crowd. What is wrong is a DataError. `name` is for records (default:
    the file's stem), `masks=False` for boxes only, and `cache=False` reads images at access, where a fault shows late.
    """

    def __init__(
        self, annotations: Path | str, images: Path | str, *, name: str = "", masks: bool = True, cache: bool = True
    ) -> None:
        self._file, self._with_masks = Path(annotations), masks
        self._digest, content = _read_json(self._file)
        self.spec = _categories(content, name or self._file.stem, self._file)
        self._images = _images(content, Path(images), self._file)
        self.objects = _objects(content, self._images, self.spec, masks, self._file)
        if masks and any(isinstance(entry["segmentation"], list) for entries in self.objects for entry in entries):
            coco_library(f"drawing the polygons of {self._file.name}")
        self._names = names_of([Path(image["file_name"]) for image in self._images])
        self._fingerprint: str | None = None
        self._cached = [self._read(index) for index in range(len(self))] if cache else None

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> InstanceSample:
        """Image `index`, in the file's order. The tensors are the caller's own."""
        index = range(len(self))[index]
        if self._cached is None:
            return self._read(index)
        parts = self._cached[index]
        return InstanceSample(*(part.clone() if isinstance(part, torch.Tensor) else part for part in parts))

    def fingerprint(self) -> str:
        """sha256 (hex) over the JSON file, every image's name and content, and the settings; computed once."""
        if self._fingerprint is None:
            # the constants are settings that are no more: records keep their fingerprints
            digest = hashlib.sha256(f"{(None, self._with_masks, 1)} {self._digest}\n".encode())
            for image in self._images:
                with image["path"].open("rb") as opened:
                    content = hashlib.file_digest(opened, "sha256").hexdigest()
                digest.update(f"{content} {image['file_name']}\n".encode())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def _read(self, index: int) -> InstanceSample:
        entry, objects = self._images[index], self.objects[index]
        image = read_image(entry["path"])
        if image.size != (entry["width"], entry["height"]):
            size = f"{image.width}×{image.height} pixels, but {self._file} says {entry['width']}×{entry['height']}"
            raise DataError(f"{entry['path']} is {size}: boxes would be in the wrong place (EXIF turns images)")
        crowd_N = torch.tensor([entry["crowd"] for entry in objects], dtype=torch.bool)
        masks_NHW = None
        if self._with_masks:
            masks_NHW = torch.zeros(len(objects), image.height, image.width, dtype=torch.bool)
            for mask_HW, entry in zip(masks_NHW, objects, strict=True):
                try:
                    mask_HW[:] = torch.from_numpy(decode(entry["segmentation"], image.height, image.width))
                except ValueError as error:
                    raise DataError(f"{self._file}: annotation {entry['id']}: {error}") from error
            crowd_N = crowd_N | ~masks_NHW.flatten(1).any(1)
        image_3HW = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        boxes_N4 = torch.tensor([entry["box"] for entry in objects], dtype=torch.float32).reshape(-1, 4)
        labels_N = torch.tensor([entry["label"] for entry in objects], dtype=torch.int64)
        areas_N = torch.tensor([entry["area"] for entry in objects], dtype=torch.float32)
        return InstanceSample(image_3HW, boxes_N4, labels_N, masks_NHW, crowd_N, areas_N, self._names[index])


def coco_split(
    name: str, split: str, *, annotations: str = _ANNOTATIONS, images: str = "{split}", **options: Any
) -> CocoInstances:
    """One split of a data set below ``APD_DATA``, by default in COCO's own tree; options as :class:`CocoInstances`."""
    file, folder = _in_the_tree(name, split, annotations, images)
    return CocoInstances(file, folder, name=name, **options)


def coco_names(name: str, split: str, *, annotations: str = _ANNOTATIONS) -> tuple[InstanceSpec, dict[str, int]]:
    """The categories in a split's file, and the id of each image by the name of its file; errors as `coco_split`."""
    (file,) = _in_the_tree(name, split, annotations)
    content = _read_json(file)[1]
    ids = {os.path.basename(image["file_name"]): image["id"] for image in content["images"]}
    return _categories(content, name, file), ids


def _in_the_tree(name: str, split: str, *wanted: str) -> list[Path]:
    root = find_data(name, script="coco.py" if name == "coco" else "")  # others have no script
    # replaced, not formatted: a stray brace in a folder's name is no error
    within = [text.replace("{split}", split) for text in wanted]
    paths = [root / path for path in within]
    for path in paths:
        if not os.path.exists(path):  # False, unlike Path's own, of a name too long
            expected = " and ".join(f"{name}/{part}" for part in within)
            raise MissingData(f"{path!s:.300} is missing: expected {expected:.300} (COCO 2017's tree, if not set)")
    return paths


def _read_json(file: Path) -> tuple[str, dict[str, Any]]:
    """The file's sha256 and content, whose three lists have all their fields, of their kinds, and differing ids."""
    try:
        data = file.read_bytes() if size_of(file, _BYTES) else b""
        content = json.loads(data, object_pairs_hook=each_once)
    except FileNotFoundError as error:
        raise MissingData(f"annotation file {file} is missing") from error
    except MemoryError as error:
        raise DataError(f"{file} takes more memory than there is") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read as JSON ({error}): damaged or truncated, fetch it again") from error
    for part, fields in _FIELDS.items():
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            expected = f"a COCO instances file, with {', '.join(_FIELDS)} (captions and key points are other files)"
            raise DataError(f"{file} has no list {part!r}: expected {expected}")
        for number, entry in enumerate(content[part]):
            for field, kind in fields.items():
                value = entry.get(field) if isinstance(entry, dict) else None
                odd = (kind is int and not is_number(value)) or (kind is str and _NO_NAME.search(str(value)))
                if type(value) is not kind or odd:  # a bool is no int here
                    wrong = f"{part}[{number}] has {field} = {shortened(value):.80}"
                    raise DataError(f"{file}: {wrong}: not what a COCO instances file holds")
        for field in filter(fields.get, ("id", "file_name")):
            ((value, count),) = Counter(entry[field] for entry in content[part]).most_common(1) or [(0, 0)]
            if count > 1:
                raise DataError(f"{file}: {part} hold the {field} {value!s:.80} twice; each must have its own")
    return hashlib.sha256(data).hexdigest(), content


def _categories(content: dict[str, Any], name: str, file: Path) -> InstanceSpec:
    entries = sorted(content["categories"], key=lambda entry: entry["id"])
    try:
        return InstanceSpec(name, tuple(e["name"] for e in entries), tuple(e["id"] for e in entries))
    except ValueError as error:
        raise DataError(f"{file}: {error}") from error


def _images(content: dict[str, Any], folder: Path, file: Path) -> list[dict[str, Any]]:
    images = content["images"]
    if not images:
        raise DataError(f"{file} lists no image")
    for image in images:
        name, height, width = image["file_name"], image["height"], image["width"]
        if min(height, width) < 1 or {"", ".", ".."} & set(name.split("/")):
            raise DataError(f"{file}: image {name!r:.80} of {height}×{width} pixels: expected a path below {folder}")
        # a file system may store an accent in another form than the JSON file
        forms = [name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))]
        image["path"] = next((folder / name for name in forms if os.path.isfile(folder / name)), None)
    if missing := [image["file_name"] for image in images if image["path"] is None]:
        raise MissingData(f"{folder}/{missing[0]:.99} is missing ({len(missing)} of {len(images)} images of {file})")
    return images


def _objects(
    content: dict[str, Any], images: list[dict], spec: InstanceSpec, masks: bool, file: Path
) -> list[list[dict[str, Any]]]:
    """The objects of each image, with label and box x0, y0, x1, y1 cut off at its edge."""
    place_of = {image["id"]: place for place, image in enumerate(images)}
    label_of = {category: label for label, category in enumerate(spec.category_ids)}
    objects: list[list[dict[str, Any]]] = [[] for _ in images]
    odd, few = 0, max(3, len(content["annotations"]) / 10)  # own choice
    for entry in content["annotations"]:
        box, where = entry["bbox"], f"{file}: annotation {entry['id']}"
        if entry["image_id"] not in place_of:
            raise DataError(f"{where} is of image {entry['image_id']}, which is not among the images")
        if entry["category_id"] not in label_of:
            raise DataError(f"{where} is of category {entry['category_id']}, which is not among the categories")
        if len(box) != 4 or not all(map(is_number, box)) or min(box[2:]) < 0:
            raise DataError(f"{where} has bbox = {shortened(box):.80}: expected [x, y, width, height], sides from 0")
        if masks and not entry.get("segmentation"):
            raise DataError(f"{where} has no segmentation: read this file with masks=False (--data.no-masks)")
        image = images[place_of[entry["image_id"]]]
        x0, y0 = max(0.0, float(box[0])), max(0.0, float(box[1]))
        x1, y1 = min(float(image["width"]), float(box[0]) + box[2]), min(float(image["height"]), float(box[1]) + box[3])
        if np.float32(x1) <= np.float32(x0) or np.float32(y1) <= np.float32(y0):  # what they become
            continue
        odd += max(box[0] + box[2] - image["width"], box[1] + box[3] - image["height"]) > 1 or max(box[2:]) <= 1
        area, crowd = entry.get("area", (x1 - x0) * (y1 - y0)), entry.get("iscrowd", 0)
        if not is_number(area) or area < 0:
            raise DataError(f"{where} has area = {shortened(area):.80}: expected a finite number, 0 or greater")
        if crowd not in (0, 1):
            raise DataError(f"{where} has iscrowd = {shortened(crowd):.80}: expected 0 or 1")
        found = {"id": entry["id"], "label": label_of[entry["category_id"]], "box": (x0, y0, x1, y1)}
        found |= {"crowd": bool(crowd), "area": float(area), "segmentation": entry["segmentation"] if masks else None}
        objects[place_of[entry["image_id"]]].append(found)
    if odd > few:
        found = f"{odd} of {len(content['annotations'])} boxes reach beyond their images or are within a pixel"
        raise DataError(f"{file}: {found}: expected [x, y, width, height] in pixels, not two corners or shares")
    for image, own in zip(images, objects, strict=True):
        if masks and len(own) * image["height"] * image["width"] > _BYTES:
            raise DataError(f"{image['path']} has {len(own)} masks, over {_BYTES >> 30} GiB: cut it, or masks=False")
    return objects
