"""ADE20K for the study, in the form of the MIT scene parsing benchmark: fetch it, check it, convert its labels.

    python data_scripts/ade20k.py fetch DEST
    python data_scripts/ade20k.py check ROOT
    python data_scripts/ade20k.py convert ROOT

The classes are those of objectInfo150.txt, which lies in the data set; value 0, everything else, becomes ignored.
Afterwards set the environment variable APD_DATA to DEST. Needs Python 3.11, pillow, NumPy and tqdm; the network only
for `fetch`. Exit code 0, or 1 with one message on what is wrong, or 130 after Ctrl-C.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from command_line import run_script
from fetching import FetchError, list_in
from label_trees import Labels, Pair, check_tree, convert_tree, files_by_stem, find_tree, paired
from unpacking import Archive, fetch_all

FOLDER = "ADEChallengeData2016"
SPLITS = {"train": ("training", 20210), "val": ("validation", 2000)}
CLASSES = 150
ARCHIVES = (
    Archive(
        "ADEChallengeData2016.zip",
        FOLDER,
        url="https://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
        inside=FOLDER,
        size=967_382_037,
        digest="sha256:7ff1be44964418441f542a7cc1e1a650e7dc0fc275f5d23252bc9bbdbc977b29",
        witness="as TensorFlow Datasets lists it; MIT publishes none",
    ),
)


def fetch(dest: Path) -> None:
    """Download the benchmark's archive and make DEST/ADEChallengeData2016 from it."""
    fetch_all(dest, ARCHIVES)
    print(f"{dest / FOLDER} is unpacked. Now run `check` and `convert`")


def check(root: Path) -> None:
    """Check counts, images, sizes and labels of an ADEChallengeData2016 folder; the first wrong file is named."""
    root = find_tree(root, FOLDER)
    check_tree(root, published_pairs(root), published_labels(root), "ade20k")


def convert(root: Path) -> None:
    """Write label maps with labels 0 to 149, and the lists of the splits, to ROOT/apd_labels."""
    root = find_tree(root, FOLDER)
    convert_tree(root, published_pairs(root), published_labels(root), "ade20k")


def published_pairs(root: Path) -> dict[str, list[Pair]]:
    """The pairs of training and validation by file name."""
    return {
        split: paired(
            root,
            split,
            files_by_stem(root / "images" / folder, "*.jpg"),
            files_by_stem(root / "annotations" / folder, "*.png"),
            count,
        )
        for split, (folder, count) in SPLITS.items()
    }


def published_labels(root: Path) -> Labels:
    """The 150 classes by their first names in objectInfo150.txt, whose number is the value in the maps."""
    file = root / "objectInfo150.txt"
    rows = [line.split("\t") for line in list_in(file)]
    if [row[0].strip() for row in rows] != ["Idx", *map(str, range(1, CLASSES + 1))]:
        raise FetchError(f"{file} is not the published table: expected a head line and the classes 1 to {CLASSES}")
    names = [row[-1].split(",")[0].strip() for row in rows[1:]]
    return Labels(names, range(1, CLASSES + 1), ignored=[0])


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of the script; returns the exit code."""
    return run_script("ade20k.py", __doc__, {fetch: ["dest"], check: ["root"], convert: ["root"]}, arguments)


if __name__ == "__main__":
    sys.exit(main())
