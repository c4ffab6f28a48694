"""Folders of a data set of one's own, written for tests, and the command line on them."""

import shutil

import numpy as np
from PIL import Image

from apd.cli import app as cli

CLASSES = "classes: [soil, crop]\n"
STRIPES = np.repeat(np.array([0, 1, 2]), [16, 16, 8])[:, None].repeat(48, axis=1)
SMALL = ["--network.backbone", "test_efficientnet", "--network.head-width", "8"]
SMALL_TEACHER = ["--teacher.network.backbone", "test_efficientnet", "--teacher.network.head-width", "8"]
STEPS = ["--training.iterations", "2", "--teacher.training.iterations", "2"]
MASK = np.where(STRIPES == 2, 255, STRIPES).astype(np.uint8)


def write(root, *names, yaml="", values=(0, 1, 255)):
    """Files of 48×40 pixels at the paths in `names`: masks in stripes of values by their words, else noise."""
    root.mkdir(exist_ok=True)
    (root / "dataset.yaml").write_text(yaml if "classes:" in yaml else CLASSES + yaml, encoding="utf-8")
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


def make(root, *, train=4, val=2, test=0, size=(64, 96), labels=(0, 1), yaml="classes: [soil, crop]\n"):
    """A folder of images with the labels in stripes; `size` is (height, width), or one for each image in turn."""
    rng = np.random.default_rng(0)
    sizes = [size] if isinstance(size[0], int) else list(size)
    shutil.rmtree(root, ignore_errors=True)
    for split, count in (("train", train), ("val", val), ("test", test)):
        for number in range(count):
            height, width = sizes[number % len(sizes)]
            mask = np.repeat(np.array(labels, np.uint8), -(-height // len(labels)))[:height, None].repeat(width, 1)
            image = rng.integers(0, 60, (height, width, 3), dtype=np.uint8) + mask[..., None] % 2 * np.uint8(150)
            for kind, content in (("images", image), ("masks", mask)):
                (root / kind / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(content).save(root / kind / split / f"{split}{number:03d}.png")
    (root / "dataset.yaml").write_text(yaml)
    return root


def leave(*arguments):
    """The exit code of a command, however it is given."""
    try:
        return cli.main([str(argument) for argument in arguments])
    except SystemExit as left:
        return left.code


def trained(folder, *more):
    return leave("train", "--data.name", "folder", "--data.folder", folder, *SMALL, *SMALL_TEACHER, *STEPS, *more)
