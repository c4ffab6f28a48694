"""Reader for a COCO instances file; run lengths are read here, since libraries write past the end of a short mask."""

import hashlib
import json
import unicodedata
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from apd.data.image_folder import find_data, names_of
from apd.data.images import DataError, MissingData, read_image
from apd.data.instances import InstanceSample, InstanceSpec

_ANNOTATIONS = "annotations/instances_{split}.json"
_FIELDS: dict[str, dict[str, type]] = {
    "categories": {"id": int, "name": str},
    "images": {"id": int, "file_name": str, "height": int, "width": int},
    "annotations": {"id": int, "image_id": int, "category_id": int, "bbox": list},
}


class DetectionExtraMissing(ImportError):
    """faster-coco-eval is not installed."""


def coco_library(purpose: str) -> ModuleType:
    """The package faster_coco_eval, or DetectionExtraMissing with what it is wanted for and how to get it."""
    try:
        import faster_coco_eval
    except ImportError as error:
        fix = "`pip install -e '.[detection]'` in the project's folder, or `pip install faster-coco-eval` anywhere"
        raise DetectionExtraMissing(f"{purpose} needs the package faster-coco-eval: install it with {fix}") from error
    return faster_coco_eval


class CocoInstances:
    """Images and their objects, from an instances JSON `annotations` and a folder of `images`.

    Images without an object stay. All categories get the labels 0..K-1 in the order of their ids. Objects whose box has
    no width or height, or lies outside the image, are left out and counted in `dropped`; those whose mask has no pixel
    become crowd. What is wrong is a DataError at construction; polygons want faster-coco-eval (DetectionExtraMissing).
    `name` is for records (default: the file's stem), `masks=False` for files with boxes only or Faster R-CNN, and
    `cache=False` reads images at access instead of at construction, where every fault shows before any training.
    """

    def __init__(
        self,
        annotations: Path | str,
        images: Path | str,
        *,
        name: str | None = None,
        masks: bool = True,
        cache: bool = True,
    ) -> None:
        self._file, self._with_masks = Path(annotations), masks
        self._digest, content = _read_json(self._file)
        self.spec = _categories(content, name or self._file.stem, self._file)
        self._images = _images(content, Path(images), self._file)
        self.objects, self.dropped = _objects(content, self._images, self.spec, masks, self._file)
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
                content = hashlib.sha256(image["path"].read_bytes()).hexdigest()
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


def coco_spec(name: str, split: str, *, annotations: str = _ANNOTATIONS) -> InstanceSpec:
    """Names and numbers of the categories in a split's file; arguments and errors as :func:`coco_split`."""
    (file,) = _in_the_tree(name, split, annotations)
    return _categories(_read_json(file)[1], name, file)


def _in_the_tree(name: str, split: str, *wanted: str) -> list[Path]:
    root = find_data(name, script="coco.py" if name == "coco" else "")  # others have no script
    # replaced, not formatted: a stray brace in a folder's name is no error
    within = [text.replace("{split}", split) for text in wanted]
    paths = [root / path for path in within]
    for path in paths:
        if not path.exists():
            expected = " and ".join(f"{name}/{part}" for part in within)
            raise MissingData(f"{path} is missing: expected {expected} (COCO 2017's tree, unless set otherwise)")
    return paths


def _read_json(file: Path) -> tuple[str, dict[str, Any]]:
    """The file's sha256 and content, whose three lists have all their fields, of their kinds, and differing ids."""
    try:
        data = file.read_bytes()
        content = json.loads(data)
    except FileNotFoundError as error:
        raise MissingData(f"annotation file {file} is missing") from error
    except ValueError as error:
        raise DataError(f"{file} cannot be read as JSON ({error}): damaged or truncated, fetch it again") from error
    for part, fields in _FIELDS.items():
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            expected = f"a COCO instances file, with {', '.join(_FIELDS)} (captions and key points are other files)"
            raise DataError(f"{file} has no list {part!r}: expected {expected}")
        for number, entry in enumerate(content[part]):
            for field, kind in fields.items():
                value = entry.get(field) if isinstance(entry, dict) else None
                if not isinstance(value, kind) or isinstance(value, bool):
                    wrong = f"{part}[{number}] has {field} = {value!r:.60}"
                    raise DataError(f"{file}: {wrong}: not what a COCO instances file holds")
        ((number, count),) = Counter(entry["id"] for entry in content[part]).most_common(1) or [(0, 0)]
        if count > 1:
            raise DataError(f"{file}: {part} hold the id {number} twice; ids must differ")
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
    if not folder.is_dir():
        raise MissingData(f"image folder {folder} is missing")
    for image in images:
        # a file system may store an accent in another form than the JSON file
        forms = [image["file_name"], *(unicodedata.normalize(form, image["file_name"]) for form in ("NFC", "NFD"))]
        image["path"] = next((folder / name for name in forms if (folder / name).exists()), None)
    if missing := [image["file_name"] for image in images if image["path"] is None]:
        raise MissingData(f"{folder / missing[0]} is missing ({len(missing)} of {len(images)} images of {file.name})")
    return images


def _objects(
    content: dict[str, Any], images: list[dict], spec: InstanceSpec, masks: bool, file: Path
) -> tuple[list[list[dict[str, Any]]], int]:
    """The objects of each image, with label and box x0, y0, x1, y1 cut off at its edge; and how many are left out."""
    place_of = {image["id"]: place for place, image in enumerate(images)}
    label_of = {category: label for label, category in enumerate(spec.category_ids)}
    objects: list[list[dict[str, Any]]] = [[] for _ in images]
    for entry in content["annotations"]:
        box, where = entry["bbox"], f"{file}: annotation {entry['id']}"
        if entry["image_id"] not in place_of:
            raise DataError(f"{where} is of image {entry['image_id']}, which is not among the images")
        if entry["category_id"] not in label_of:
            raise DataError(f"{where} is of category {entry['category_id']}, which is not among the categories")
        if len(box) != 4 or not all(isinstance(v, int | float) and np.isfinite(v) for v in box):
            raise DataError(f"{where} has bbox = {box!r:.60}: expected [x, y, width, height], four finite numbers")
        if masks and not entry.get("segmentation"):
            raise DataError(f"{where} has no segmentation: read this file with masks=False (--data.no-masks)")
        image = images[place_of[entry["image_id"]]]
        x0, y0 = max(0.0, float(box[0])), max(0.0, float(box[1]))
        x1, y1 = min(float(image["width"]), float(box[0]) + box[2]), min(float(image["height"]), float(box[1]) + box[3])
        if x1 <= x0 or y1 <= y0:
            continue
        area = entry.get("area", (x1 - x0) * (y1 - y0))
        if not isinstance(area, int | float) or not np.isfinite(area):
            raise DataError(f"{where} has area = {area!r:.60}: expected a finite number")
        crowd, label = bool(entry.get("iscrowd", 0)), label_of[entry["category_id"]]
        found = {"id": entry["id"], "label": label, "box": (x0, y0, x1, y1), "crowd": crowd, "area": float(area)}
        found |= {"segmentation": entry.get("segmentation") if masks else None}
        objects[place_of[entry["image_id"]]].append(found)
    return objects, len(content["annotations"]) - sum(map(len, objects))


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
    if tuple(size) != (height, width):
        raise ValueError(f"segmentation has size {size[0]}×{size[1]}, its image {height}×{width}")
    pixels = height * width
    runs = np.asarray(unpack(counts) if isinstance(counts, str | bytes) else counts)
    # each run is held to the image first: a sum of huge ones could wrap round to its size
    fits = runs.dtype.kind in "iu" and runs.ndim == 1 and ((runs >= 0) & (runs <= pixels)).all()
    if not fits or len(runs) > 2 * pixels + 1 or runs.sum() != pixels:
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
        if not value & 32:
            if value & 16:
                number -= 1 << bits
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number, bits = 0, 0
    if bits:
        raise ValueError("segmentation's counts end inside a number: damaged")
    return runs
