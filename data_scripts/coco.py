"""COCO 2017 for the study: fetch it, check its instances and its pixel maps, and convert the maps to 171 classes.

    python data_scripts/coco.py fetch DEST
    python data_scripts/coco.py check ROOT
    python data_scripts/coco.py convert ROOT

The instances are used as they are published. The semantic maps are those of COCO-Stuff: people labelled every pixel of
them, other work reports its scores on them, and the conversion is a table (91 + 91 numbers, of which 11 never occur, to
171 labels). Maps drawn from the instances alone would call most of an image background, and would need a rule of our
own where instances overlap. Afterwards set the environment variable APD_DATA to DEST. Needs Python 3.11, pillow, NumPy
and tqdm; the network only for `fetch`. Exit code 0, or 1 with one message on what is wrong, or 130 after Ctrl-C.
"""

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from command_line import consent, run_script
from fetching import ANEW, FetchError, list_in, safe_name
from label_trees import Labels, Pair, check_tree, convert_tree, files_by_stem, find_tree, in_order, paired, print_shares
from PIL import Image
from unpacking import Archive, fetch_all

FOLDER = "coco"
SPLITS = {"train": ("train2017", 118287), "val": ("val2017", 5000)}
CATEGORIES = 80
LISTED = "as TensorFlow Datasets lists it; COCO publishes none"
STUFF_COMMIT = "cad94560af961375160d9e9e55a1612bc319cd5b"
HOST = "https://s3.amazonaws.com/images.cocodataset.org"  # the store behind COCO's own address, which has no https
ARCHIVES = (
    Archive(
        "annotations_trainval2017.zip",
        f"{FOLDER}/annotations",
        url=f"{HOST}/annotations/annotations_trainval2017.zip",
        inside="annotations",
        size=252_907_541,
        digest="sha256:113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
        witness=LISTED,
    ),
    Archive(
        "labels.txt",
        f"{FOLDER}/labels.txt",
        url=f"https://raw.githubusercontent.com/nightrome/cocostuff/{STUFF_COMMIT}/labels.txt",
        size=2287,
        digest="sha256:53c59b920927b215690b4ba5aef4ed4794e5e4b278f9e67d7e633ddbfad9b830",
        witness=f"as in nightrome/cocostuff at {STUFF_COMMIT[:12]}",
        plain=True,
    ),
    Archive(
        "stuffthingmaps_trainval2017.zip",
        f"{FOLDER}/stuffthingmaps",
        url="http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/stuffthingmaps_trainval2017.zip",
        only=("train2017/", "val2017/"),
    ),
    Archive(
        "val2017.zip",
        f"{FOLDER}/val2017",
        url=f"{HOST}/zips/val2017.zip",
        inside="val2017",
        size=815_585_330,
        digest="sha256:4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
        witness=LISTED,
    ),
    Archive(
        "train2017.zip",
        f"{FOLDER}/train2017",
        url=f"{HOST}/zips/train2017.zip",
        inside="train2017",
        size=19_336_861_798,
        digest="sha256:69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
        witness=LISTED,
    ),
)
# numbers of COCO's things that no image has, by COCO-Stuff's README: street sign, hat, shoe, eye glasses, plate,
# mirror, window, desk, door, blender, hair brush
NEVER_LABELLED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)


def fetch(dest: Path, unverified: bool = False) -> None:
    """Download images, instances and pixel maps and make DEST/coco from them."""
    fetch_all(dest, ARCHIVES, unverified=unverified)
    print(f"{dest / FOLDER} is unpacked. Now run `check` and `convert`")


def check(root: Path) -> None:
    """Check the instances, then counts, images, sizes and labels of the maps; the first wrong file is named."""
    root = find_tree(root, FOLDER)
    check_instances(root, SPLITS)
    check_tree(root, published_pairs(root), published_labels(root), "coco")


def convert(root: Path) -> None:
    """Write label maps with labels 0 to 170, and the lists of the splits, to ROOT/apd_labels."""
    root = find_tree(root, FOLDER)
    convert_tree(root, published_pairs(root), published_labels(root), "coco")


def published_pairs(root: Path) -> dict[str, list[Pair]]:
    """The pairs of train2017 and val2017 by file name."""
    return {
        split: paired(
            root,
            split,
            files_by_stem(root / folder, "*.jpg"),
            files_by_stem(root / "stuffthingmaps" / folder, "*.png"),
            count,
        )
        for split, (folder, count) in SPLITS.items()
    }


def published_labels(root: Path) -> Labels:
    """The 171 classes that occur: number n of labels.txt has the value n - 1 in the maps, and 255 has no label."""
    file = root / "labels.txt"
    lines = [line.partition(": ") for line in list_in(file)]
    if [line[0] for line in lines] != [str(number) for number in range(183)] or lines[0][2] != "unlabeled":
        raise FetchError(f"{file} is not the published list: expected the numbers 0 (unlabeled) to 182")
    kept = [(number, name.strip()) for number, (*_, name) in enumerate(lines) if number not in (0, *NEVER_LABELLED)]
    return Labels([name for _, name in kept], [number - 1 for number, _ in kept], ignored=[255])


def check_instances(root: Path, splits: Mapping[str, tuple[str, int]]) -> None:
    """Check the instances of COCO: images, their sizes, categories and boxes; print how many objects there are.

    Raises:
        FetchError: a file is missing or damaged, a count is not the published one, an object names no image or no
            category, or an image has another size than its entry says; the file or the object's id is named.
    """
    counts, crowds, names = {}, {}, []
    for split, (folder, count) in splits.items():
        file = root / "annotations" / f"instances_{folder}.json"
        content = _read_json(file)
        if len(content["images"]) != count or len(content["categories"]) != CATEGORIES:
            found = f"{len(content['images'])} images of {count} and {len(content['categories'])} categories"
            raise FetchError(f"{file} has {found} of {CATEGORIES}")
        found: Counter[int] = Counter()
        try:
            own = {entry["id"]: entry["name"] for entry in sorted(content["categories"], key=lambda entry: entry["id"])}
            names = list(own.values())
            by_id = {image["id"]: image for image in content["images"]}
            for entry in content["annotations"]:
                _check_object(entry, by_id, own, file)
                found[entry["category_id"]] += 1
            crowds[split] = sum(entry["iscrowd"] for entry in content["annotations"])
            paths = [root / folder / safe_name(image["file_name"], str(file)) for image in content["images"]]
            sizes = [(image["width"], image["height"]) for image in content["images"]]
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise FetchError(f"{file} is not a file of COCO's instances ({error!r:.80}); {ANEW}") from error
        counts[split] = np.array([found[category] for category in own])
        for _ in in_order(_check_size, list(zip(paths, sizes, strict=True)), f"instances {split}"):
            pass
    print(f"{'instances':<12}{'images':>8}{'objects':>9}{'crowds':>8}")
    for split, (_, count) in splits.items():
        print(f"{split:<12}{count:>8}{counts[split].sum():>9}{crowds[split]:>8}")
    print_shares(names, counts, "% of objects")
    print()


def _check_object(entry: dict[str, Any], images: Mapping[int, Any], categories: Mapping[int, str], file: Path) -> None:
    if entry["image_id"] not in images or entry["category_id"] not in categories:
        raise FetchError(f"{file}: object {entry['id']} names an image or a category that the file does not have")
    left, top, width, height = entry["bbox"]
    image = images[entry["image_id"]]
    touches = left <= image["width"] and top <= image["height"] and left + width >= 0 and top + height >= 0
    if not touches or width < 0 or height < 0:
        raise FetchError(f"{file}: object {entry['id']} has the box {entry['bbox']!s:.80}, outside its image")


def _check_size(entry: tuple[Path, tuple[int, int]]) -> None:
    path, said = entry
    try:
        if not path.is_file():
            raise FileNotFoundError("no such file")
        with Image.open(path) as opened:
            size = opened.size
    except OSError as error:
        raise FetchError(f"{path} is missing or cannot be read as an image ({error}); {ANEW}") from error
    if size != said:
        raise FetchError(f"{path} is {size[0]}×{size[1]}, its entry says {said[0]!s:.9}×{said[1]!s:.9}")


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file() or not 0 < file.stat().st_size <= 1 << 30:
        raise FetchError(f"{file} is missing, empty, or larger than 1 GiB; {ANEW}")
    try:
        content = json.loads(file.read_bytes())
        if not all(isinstance(content[part], list) for part in ("images", "annotations", "categories")):
            raise ValueError("it has no images, annotations and categories")
        return content
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise FetchError(f"{file} is not a file of COCO's instances ({error}); {ANEW}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of the script; returns the exit code."""
    return run_script("coco.py", __doc__, {fetch: ["dest"], check: ["root"], convert: ["root"]}, arguments, consent)


if __name__ == "__main__":
    sys.exit(main())
