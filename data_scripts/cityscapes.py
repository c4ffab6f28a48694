"""Cityscapes for the study: unpack it, check it, and convert its labels to the 19 classes of the benchmark.

    python data_scripts/cityscapes.py fetch DEST
    python data_scripts/cityscapes.py check ROOT
    python data_scripts/cityscapes.py convert ROOT

Its licence needs an account, so `fetch` says how to download the two archives and unpacks them when they lie in DEST.
Afterwards set the environment variable APD_DATA to DEST. Needs Python 3.11, pillow, NumPy and tqdm. Exit code 0, or 1
with one message on what is wrong, or 130 after Ctrl-C.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from command_line import run_script
from fetching import FetchError
from label_trees import Labels, Pair, check_tree, convert_tree, find_tree, paired
from unpacking import Archive, fetch_all

FOLDER = "cityscapes"
SPLITS = {"train": 2975, "val": 500}  # the labels of test are not public
ARCHIVES = (
    Archive("gtFine_trainvaltest.zip", f"{FOLDER}/gtFine", inside="gtFine"),
    Archive("leftImg8bit_trainvaltest.zip", f"{FOLDER}/leftImg8bit", inside="leftImg8bit"),
)
STEPS = """Cityscapes is only given to people with an account. These are the steps:
  1. register at https://www.cityscapes-dataset.com/register/ and accept the terms (research; not commercial)
  2. log in, and download {missing} from https://www.cityscapes-dataset.com/downloads/
  3. mkdir -p {dest}, and move what was downloaded there
  4. run this command again"""
# The id that the published label maps give each class of the benchmark, in the order of the train ids. A fact of the
# publishers' table, labels.py of github.com/mcordts/cityscapesScripts: the ids are 0 to 33, and those that are not
# here (unlabeled, ego vehicle, parking, caravan and so on) have train id 255 there, which is not scored.
IDS = {
    "road": 7,
    "sidewalk": 8,
    "building": 11,
    "wall": 12,
    "fence": 13,
    "pole": 17,
    "traffic light": 19,
    "traffic sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}
LABELS = Labels(list(IDS), list(IDS.values()), ignored=set(range(34)) - set(IDS.values()))


def fetch(dest: Path) -> None:
    """Say how to download the two archives, or make DEST/cityscapes from them when they are there."""
    needed = [a for a in ARCHIVES if not (dest / a.becomes).exists() and not (dest / a.file).is_file()]
    if needed:
        missing = " ".join(archive.file for archive in needed)
        print(STEPS.format(dest=dest, missing=missing))
        raise FetchError(f"{dest} lacks {missing}; the steps to them stand above")
    fetch_all(dest, ARCHIVES)
    print(f"{dest / FOLDER} is unpacked; the archives are no longer needed. Now run `check` and `convert`")


def check(root: Path) -> None:
    """Check counts, images, sizes and labels of a Cityscapes folder; the first wrong file is named."""
    root = find_tree(root, FOLDER)
    check_tree(root, published_pairs(root), LABELS, "cityscapes")


def convert(root: Path) -> None:
    """Write label maps with the 19 train ids, and the lists of the splits, to ROOT/apd_labels."""
    root = find_tree(root, FOLDER)
    convert_tree(root, published_pairs(root), LABELS, "cityscapes")


def published_pairs(root: Path) -> dict[str, list[Pair]]:
    """The pairs of train and val, city by city."""
    splits = {}
    for split, count in SPLITS.items():
        found = []
        for kind, ending in (("leftImg8bit", "_leftImg8bit.png"), ("gtFine", "_gtFine_labelIds.png")):
            folder = root / kind / split
            if not folder.is_dir():
                raise FetchError(f"{folder} is missing; see `fetch`")
            paths = sorted(path for path in folder.glob(f"*/*{ending}") if not path.name.startswith("."))
            found.append({path.relative_to(folder).as_posix().removesuffix(ending): path for path in paths})
        splits[split] = paired(root, split, *found, count)
    return splits


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of the script; returns the exit code."""
    return run_script("cityscapes.py", __doc__, {fetch: ["dest"], check: ["root"], convert: ["root"]}, arguments)


if __name__ == "__main__":
    sys.exit(main())
