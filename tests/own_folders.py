"""Folders of images with masks as a user has them, and the command line on them."""

import shutil

import numpy as np
from PIL import Image

from apd.cli import app as cli

SMALL = ["--network.backbone", "test_efficientnet", "--network.head-width", "8"]
SMALL_TEACHER = ["--teacher.network.backbone", "test_efficientnet", "--teacher.network.head-width", "8"]
STEPS = ["--training.iterations", "2", "--teacher.training.iterations", "2"]


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
    """The exit code of a command."""
    return cli.main(list(map(str, arguments)))


def trained(folder, *more):
    return leave("train", "--data.name", "folder", "--data.folder", folder, *SMALL, *SMALL_TEACHER, *STEPS, *more)
