"""PASCAL-Context for the study: fetch it, check it, and convert its labels; one conversion serves 59 and 60 classes.

    python data_scripts/pascal_context.py fetch DEST
    python data_scripts/pascal_context.py check ROOT
    python data_scripts/pascal_context.py convert ROOT

The images and the split are those of PASCAL VOC 2010; the label maps of the 59 most frequent classes and their list
come from the data set's own page. The maps number the classes as their list does; converted, 0 is the background and
the classes follow in alphabetical order, as in the full list of 459 and in the maps that other projects make of it.
Afterwards set the environment variable APD_DATA to DEST. Needs Python 3.11, pillow, NumPy and tqdm; the network only
for `fetch`. Exit code 0, or 1 with one message on what is wrong, or 130 after Ctrl-C.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from command_line import consent, run_script
from fetching import FetchError, list_in
from label_trees import Labels, Pair, check_tree, convert_tree, files_by_stem, find_tree, paired
from unpacking import Archive, fetch_all

FOLDER = "pascal_context"
SPLITS = {"train": 4998, "val": 5105}
PAGE = "https://cs.stanford.edu/~roozbeh/pascal-context"
ARCHIVES = (
    Archive(
        "VOCtrainval_03-May-2010.tar",
        f"{FOLDER}/VOC2010",
        url="https://thor.robots.ox.ac.uk/pascal/VOC/voc2010/VOCtrainval_03-May-2010.tar",
        inside="VOCdevkit/VOC2010",
        only=("JPEGImages/", "ImageSets/Main/"),
        digest="md5:da459979d0c395079b5c75ee67908abb",
        witness="as torchvision lists it",
    ),
    Archive(
        "59_context_labels.tar.gz", f"{FOLDER}/59_context_labels", url=f"{PAGE}/59_context_labels.tar.gz", inside=None
    ),
    Archive("59_labels.txt", f"{FOLDER}/59_labels.txt", url=f"{PAGE}/59_labels.txt", plain=True),
)
CLASSES = (
    *("aeroplane", "bag", "bed", "bedclothes", "bench", "bicycle", "bird", "boat", "book", "bottle", "building"),
    *("bus", "cabinet", "car", "cat", "ceiling", "chair", "cloth", "computer", "cow", "cup", "curtain", "dog"),
    *("door", "fence", "floor", "flower", "food", "grass", "ground", "horse", "keyboard", "light", "motorbike"),
    *("mountain", "mouse", "person", "plate", "platform", "pottedplant", "road", "rock", "sheep", "shelves"),
    *("sidewalk", "sign", "sky", "snow", "sofa", "table", "track", "train", "tree", "truck", "tvmonitor", "wall"),
    *("water", "window", "wood"),
)
# the list of 59 spells three classes differently from the list of 459
SPELLINGS = {"diningtable": "table", "bedcloth": "bedclothes", "clothes": "cloth"}


def fetch(dest: Path, unverified: bool = False) -> None:
    """Download the images and the label maps and make DEST/pascal_context from them."""
    fetch_all(dest, ARCHIVES, unverified=unverified)
    print(f"{dest / FOLDER} is unpacked. Now run `check` and `convert`")


def check(root: Path) -> None:
    """Check counts, images, sizes and labels of a pascal_context folder; the first wrong file is named."""
    root = find_tree(root, FOLDER)
    check_tree(root, published_pairs(root), published_labels(root), "pascal_context")


def convert(root: Path) -> None:
    """Write label maps with 0 for the background and 1 to 59, and the lists of the splits, to ROOT/apd_labels."""
    root = find_tree(root, FOLDER)
    convert_tree(root, published_pairs(root), published_labels(root), "pascal_context")


def published_pairs(root: Path) -> dict[str, list[Pair]]:
    """The pairs of train and val, in the order of VOC's lists. Every image of the lists must have a label map."""
    images = files_by_stem(root / "VOC2010" / "JPEGImages", "*.jpg")
    masks = files_by_stem(root / "59_context_labels", "*.png")
    splits, named = {}, set()
    for split, count in SPLITS.items():
        file = root / "VOC2010" / "ImageSets" / "Main" / f"{split}.txt"
        stems = " ".join(list_in(file)).split()
        for stem in stems:
            if stem not in images or stem not in masks:
                lacking = f"image {stem}.jpg" if stem not in images else f"label map {stem}.png"
                raise FetchError(f"{root} has no {lacking}, which {file.name} names; the tree is not complete")
        if again := named.intersection(stems):
            raise FetchError(f"{file} names {min(again)}, which another split has too")
        named.update(stems)
        splits[split] = paired(root, split, {s: images[s] for s in stems}, {s: masks[s] for s in stems}, count)
    if extra := sorted(set(masks) - named):
        raise FetchError(f"{masks[extra[0]]} belongs to no split ({len(extra)} such files)")
    return splits


def published_labels(root: Path) -> Labels:
    """Background and the 59 classes, whose values in the maps are their numbers in 59_labels.txt."""
    file = root / "59_labels.txt"
    numbers = {}
    for line in list_in(file):
        number, _, name = line.partition(":")
        name = name.strip().replace(" ", "")
        numbers[SPELLINGS.get(name, name)] = int(number) if number.strip() in map(str, range(60)) else -1
    wrong = sorted(set(numbers) ^ set(CLASSES))
    if wrong or sorted(numbers.values()) != list(range(1, len(CLASSES) + 1)):
        found = f"{wrong[0]!r:.80} is not in both" if wrong else "its numbers are not 1 to 59"
        raise FetchError(f"{file} is not the list of the 59 classes ({found}); expected lines such as '2: bicycle'")
    return Labels(["background", *CLASSES], [0, *(numbers[name] for name in CLASSES)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of the script; returns the exit code."""
    commands = {fetch: ["dest"], check: ["root"], convert: ["root"]}
    return run_script("pascal_context.py", __doc__, commands, arguments, consent)


if __name__ == "__main__":
    sys.exit(main())
