"""Miniatures of real data sets for the tests: the same tree, names and kinds of files, made in a moment."""

import importlib
import json
import sys
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

from apd.data.converted import listed_splits
from apd.data.specs import ADE20K, CAMVID, COCO_STUFF, PASCAL_CONTEXT_59

VOID = 11
FEW = {"train": 4, "val": 3}
CAMVID_COUNTS = dict(CAMVID.splits)
SIZES = ((32, 48), (40, 32))
COLOURS = np.arange(256, dtype=np.int16)[:, None] * (37, 91, 151) % 256  # of the values of a mask
STRIPES = np.repeat(np.array([0, 1, 2]), [16, 16, 8])[:, None].repeat(48, axis=1)
MASK = np.where(STRIPES == 2, 255, STRIPES).astype(np.uint8)
# Two images of 20 x 12 and 12 x 20 pixels and one without an object; category ids with gaps and out of order.
COCO_OBJECTS = [
    (7, 44, [2.0, 1.0, 12.0, 4.0], 48.0, [[2, 1, 14, 1, 14, 5, 2, 5], [15, 8, 19, 8, 19, 11]]),
    (7, 2, [0, 0, 20, 12], 120, {"size": [12, 20], "counts": [120, 120]}),
    (3, 18, [-2.0, 10.5, 8.0, 30.0], 50.5, {"size": [20, 12], "counts": ";9;000000000]3"}),
    (3, 18, [4, 4, 0, 3], 0, [[4, 4, 4, 7, 4, 5]]),
]
OBJECT_FIELDS = ("image_id", "category_id", "bbox", "area", "segmentation")
COCO_CONTENT = {
    "images": [
        {"id": 7, "file_name": "wide.png", "height": 12, "width": 20},
        {"id": 3, "file_name": "tall.jpg", "height": 20, "width": 12},
        {"id": 9, "file_name": "empty.png", "height": 8, "width": 8},
    ],
    "categories": [{"id": 44, "name": "bar"}, {"id": 2, "name": "square"}, {"id": 18, "name": "disc"}],
    "annotations": [
        {"id": number, "iscrowd": int(number == 2), **dict(zip(OBJECT_FIELDS, values, strict=True))}
        for number, values in enumerate(COCO_OBJECTS, start=1)
    ],
}


def write_folder(root, *names, yaml="", values=(0, 1, 255)):
    """Files of 48×40 pixels at the paths in `names`: masks in stripes of values by their names, else noise."""
    root.mkdir(exist_ok=True)
    yaml = yaml if "classes:" in yaml else f"classes: [soil, crop]\n{yaml}"
    (root / "dataset.yaml").write_text(yaml, encoding="utf-8")
    for name in " ".join(names).split():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        is_mask = any(word in name for word in ("mask", "label", "seg")) and "raw" not in name.removesuffix("1raw.png")
        noise = np.random.default_rng(len(name)).integers(0, 256, (40, 48, 3), dtype=np.uint8)
        if path.suffix.lower() in (".png", ".jpg", ".tif", ".bmp", ".webp"):
            Image.fromarray(np.array(values, np.uint8)[STRIPES] if is_mask else noise).save(path)
        else:
            path.write_text("of another kind")
    return root


def files(split, *stems):
    """Paths of an image and a mask in their default places for each stem."""
    return " ".join(f"images/{split}/{stem}.jpg masks/{split}/{stem}.png" for stem in stems)


def write_shapes(tmp_path):
    """The folder of a data set `shapes` in COCO's form: noise with the objects of `COCO_CONTENT`."""
    random, shapes = np.random.default_rng(0), tmp_path / "shapes"
    for folder in ("train", "annotations"):
        (shapes / folder).mkdir(parents=True)
    for image in COCO_CONTENT["images"]:
        pixels = random.integers(0, 256, (image["height"], image["width"], 3), dtype=np.uint8)
        kept = Image.fromarray(pixels).convert("L" if image["id"] == 9 else "RGB")
        kept.save(shapes / "train" / image["file_name"])
    (shapes / "annotations" / "instances_train.json").write_text(json.dumps(COCO_CONTENT))
    return tmp_path


def write_camvid(root, *, counts=CAMVID_COUNTS, height=32, width=32):
    """A CamVid tree in the SegNet tutorial's form below `root`: images show their labels' colours under noise, so a
    network can learn from them; `counts` are images per split, by default as many as the reader demands."""
    rng, colours = np.random.default_rng(0), np.array([*CAMVID.palette, (0, 0, 0)], dtype=np.int16)
    for split, count in counts.items():
        names = [f"{split}_{30 * number:06d}.png" for number in range(count)]
        for name in names:
            files = root / split / name, root / f"{split}annot" / name
            _save_pair(rng, range(VOID + 1), (height, width), *files, colours=colours)
        lines = [f"/SegNet/CamVid/{split}/{name} /SegNet/CamVid/{split}annot/{name}\n" for name in names]
        (root / f"{split}.txt").write_text("".join(lines), encoding="utf-8")
    return root


def write_labelmefacade(root):
    """A converted LabelMeFacade tree with every name of its splits: images of two shapes, 8 classes and 255."""
    rng = np.random.default_rng(0)
    for number, stem in enumerate(stem for stems in listed_splits().values() for stem in stems):
        image, mask = root / "images" / f"{stem}.jpg", root / "labels" / f"{stem}.png"
        _save_pair(rng, [*range(8), 255], SIZES[number % 2], image, mask)
    return root


def write_cityscapes(root, *, counts=FEW):
    """A Cityscapes tree: two cities a split, every id from 0 to 33, and the files that the study does not use."""
    rng = np.random.default_rng(0)
    cities = {"train": ("aachen", "zurich"), "val": ("frankfurt", "munster"), "test": ("berlin", "bonn")}
    for split, number in ((split, n) for split, count in {**counts, "test": 2}.items() for n in range(count)):
        name = f"{split}/{(city := cities[split][number % 2])}/{city}_{number:06d}_000019"
        mask, image = f"{root}/gtFine/{name}_gtFine", root / f"leftImg8bit/{name}_leftImg8bit.png"
        values = range(34) if split != "test" else (0, 1)
        ids_HW = _save_pair(rng, values, (32, 32), image, Path(f"{mask}_labelIds.png"))
        Image.fromarray(ids_HW.astype(np.uint16) * 1000).save(f"{mask}_instanceIds.png")
        Image.fromarray(COLOURS[ids_HW].astype(np.uint8)).convert("RGBA").save(f"{mask}_color.png")
        Path(f"{mask}_polygons.json").write_text("{}")
    return root


def write_ade20k(root, *, counts=FEW):
    """An ADEChallengeData2016 tree: images of several sizes, values 0 to 150, and the table of classes."""
    rng = np.random.default_rng(0)
    for split, folder in (("train", "training"), ("val", "validation")):
        for number in range(1, counts[split] + 1):
            name, size = f"{folder}/ADE_{split}_{number:08d}", [(32, 32), *SIZES][number % 3]
            _save_pair(rng, range(151), size, root / "images" / f"{name}.jpg", root / "annotations" / f"{name}.png")
    # as in the published file: further names after a comma, and a blank at the end of some lines
    rows = [f"{i}\t0.0001\t10\t1\t{name}, another {name} " for i, name in enumerate(ADE20K.class_names, start=1)]
    (root / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows, ""]))
    (root / "sceneCategories.txt").write_text("ADE_train_00000001 airport_terminal\n")
    return root


def write_pascal_context(root, *, counts=FEW):
    """A pascal_context folder: VOC's tree, maps of 0 to 59, and their list in an order of its own."""
    rng, voc = np.random.default_rng(0), root / "VOC2010"
    lists = voc / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for split, year in (("train", 2008), ("val", 2009)):
        stems = [f"{year}_{number:06d}" for number in range(counts[split])]
        for number, stem in enumerate(stems):
            image, mask = voc / f"JPEGImages/{stem}.jpg", root / f"59_context_labels/{stem}.png"
            _save_pair(rng, range(60), ((32, 48), (48, 32))[number % 2], image, mask)
        (lists / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems[::-1]))
        (lists / f"aeroplane_{split}.txt").write_text("".join(f"{stem} -1\n" for stem in stems))
    spelled = {"table": "diningtable", "bedclothes": "bedcloth", "cloth": "clothes", "pottedplant": "potted plant"}
    order = sorted(PASCAL_CONTEXT_59.class_names, key=lambda name: (len(name), name))
    lines = [f"{number}: {spelled.get(name, name)}\n" for number, name in enumerate(order, start=1)]
    (root / "59_labels.txt").write_text("".join(lines))
    return root


def write_coco(root, *, counts=FEW):
    """A coco folder: images, instances with polygons and a crowd, pixel maps of 171 values and 255, and their list."""
    rng, listed = np.random.default_rng(0), dict(enumerate(_coco_stuff_names()))
    used = [number - 1 for number, name in listed.items() if name in COCO_STUFF.class_names]
    things = {number: name for number, name in listed.items() if name in COCO_STUFF.thing_names}
    categories = [{"supercategory": "thing", "id": number, "name": name} for number, name in things.items()]
    (root / "annotations").mkdir(parents=True)
    for split, count in counts.items():
        images, objects = [], []
        for number in range(count):
            (height, width), image = SIZES[number % 2], 139 + 7 * number
            file, mask = root / f"{split}2017/{image:012d}.jpg", root / f"stuffthingmaps/{split}2017/{image:012d}.png"
            _save_pair(rng, [255, *used], (height, width), file, mask, mode="RGB" if number else "L")
            images.append({"id": image, "file_name": file.name, "height": height, "width": width})
            runs = {"counts": [40, 30, height * width - 70], "size": [height, width]}
            for crowd, shape in enumerate(([[4, 8, 20, 8, 20, 20]], runs)):
                category = categories[(3 * number + crowd) % len(categories)]["id"]
                own = {"id": 2 * number + crowd + 1, "image_id": image, "category_id": category, "iscrowd": crowd}
                objects.append(own | {"segmentation": shape, "bbox": [4.5, 8.25, 16.0, 12.5], "area": 200.0})
        content = {"images": images, "annotations": objects, "categories": categories}
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    (root / "labels.txt").write_text("".join(f"{number}: {name}\n" for number, name in listed.items()))
    return root


def _coco_stuff_names():
    """The 183 names of COCO-Stuff's list: the classes of the spec with what never occurs put back in its places."""
    never = {12: "street sign", 26: "hat", 29: "shoe", 30: "eye glasses", 45: "plate", 66: "mirror", 68: "window"}
    never |= {69: "desk", 71: "door", 83: "blender", 91: "hair brush"}
    names = iter(COCO_STUFF.class_names)
    return ["unlabeled", *(never.get(number) or next(names) for number in range(1, 183))]


def files_of(folder):
    """The contents of all files below a folder, by relative path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


WRITERS = {
    "cityscapes": (write_cityscapes, "cityscapes"),
    "ade20k": (write_ade20k, "ADEChallengeData2016"),
    "pascal_context": (write_pascal_context, "pascal_context"),
    "coco": (write_coco, "coco"),
}


def data_script(name):
    """A script of `data_scripts/`, imported as Python runs it: its own folder comes first."""
    folder = str(Path(__file__).parents[1] / "data_scripts")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(name)


def for_counts(name, counts):
    """A patch under which a script takes a miniature of so many pairs for the published data."""
    script = data_script(name)
    few = {
        split: count if isinstance(script.SPLITS[split], int) else (script.SPLITS[split][0], count)
        for split, count in counts.items()
        if split in script.SPLITS
    }
    return mock.patch.object(script, "SPLITS", few)


def write_converted(parent, name, *, counts=FEW):
    """The miniature of a published data set below `parent`, as its script has converted it; returns its folder."""
    write, folder = WRITERS[name]
    root = write(parent / folder, counts=counts)
    with for_counts(name, counts):
        data_script(name).convert(root)
    return root


def _save_pair(rng, values, size, image_file, mask_file, mode="RGB", colours=COLOURS):
    """A mask of 8×8 blocks, the first one of the first of `values`, and an image of their colours under noise."""
    height, width = size
    blocks = rng.choice(np.array(values, dtype=np.uint8), (-(-height // 8), -(-width // 8)))
    blocks[0, 0] = values[0]
    values_HW = np.kron(blocks, np.ones((8, 8), dtype=np.uint8))[:height, :width]
    pixels = (colours[values_HW] + rng.integers(-20, 21, (height, width, 1), dtype=np.int16)).clip(0, 255)
    for file, image in (
        (image_file, Image.fromarray(pixels.astype(np.uint8)).convert(mode)),
        (mask_file, Image.fromarray(values_HW)),
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file, quality=90, compress_level=1)
    return values_HW
