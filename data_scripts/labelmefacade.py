"""LabelMeFacade for the study: fetch it, check it, and convert it to a short side of at most 320 pixels.

    python data_scripts/labelmefacade.py fetch DEST
    python data_scripts/labelmefacade.py convert ROOT DEST
    python data_scripts/labelmefacade.py check ROOT

`fetch` makes DEST/LabelMeFacade-published from the authors' repository, `convert` DEST/LabelMeFacade from that folder,
and `check` looks at the latter. Afterwards set the environment variable APD_DATA to DEST. The images are for
non-commercial research. Needs Python 3.11, pillow, NumPy and tqdm; the network only for `fetch`. Exit code 0, or 1 with
one message on what is wrong, or 130 after Ctrl-C.
"""

import hashlib
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from command_line import run_script
from fetching import FetchError, appearing_folder
from label_trees import decoded, files_by_stem, find_tree, in_order, print_shares, read_map
from PIL import Image
from unpacking import Archive, fetch_all

FOLDER, PUBLISHED = "LabelMeFacade", "LabelMeFacade-published"
COMMIT = "a0dbc272351f9d6914805fbba62d75740308f52f"
ARCHIVE = Archive(
    f"labelmefacade-{COMMIT[:12]}.zip",
    PUBLISHED,
    url=f"https://codeload.github.com/cvjena/labelmefacade/zip/{COMMIT}",
    inside=None,
    only=("images/", "labels/"),
    witness="as Git names the two folders: GitHub makes archives anew",
)
COUNT = 945
# Git's own names of the two folders at that commit: they depend on every byte in them.
PUBLISHED_TREES = {
    "images": "bb64866cd9343c6c231cc87a2cc5745ac79a4de7",
    "labels": "012ad655bf3c3bec3b323d7c560c21ffd6914851",
}
# sha256 over names and pixels of all converted label maps, which are the same wherever they are made.
LABELS_SHA256 = "1051c8e39439f8da794f8430f5a4d9e23d6c1111ef1ce5955a4560444c08b323"
SHORT_SIDE, QUALITY, IGNORED = 320, 84, 255
COLOURS = {  # of the published label maps, in label order; black is none of the classes
    "building": (128, 0, 0),
    "car": (128, 0, 128),
    "door": (128, 128, 0),
    "pavement": (128, 128, 128),
    "road": (128, 64, 0),
    "sky": (0, 128, 128),
    "vegetation": (0, 128, 0),
    "window": (0, 0, 128),
}
# Spain by the names of LabelMe's folders. The village has no place in its name: its camera, month and numbers go on
# from those of Palma, and its houses are Mallorca's.
SPAIN = re.compile(r"spain|barcelona|madrid|palma|valladolid|static_village_outdoor_2005")
# Photographs whose numbers lie at most this far apart may show the same house, and so go into one split.
NEXT_PHOTOGRAPHS = 3
SHARES = {"train": 0.62, "val": 0.14}  # of the groups; the rest is `test`
SPLITS = ("train", "val", "test", "test_out_of_place", "night")


def fetch(dest: Path) -> None:
    """Download the published repository and make DEST/LabelMeFacade-published from it, checked to the byte."""
    fetch_all(dest, [ARCHIVE])
    check_published(dest / PUBLISHED)
    print(f"{dest / PUBLISHED} is as published. Now run `convert {dest / PUBLISHED} {dest}`")


def convert(root: Path, dest: Path) -> None:
    """Make DEST/LabelMeFacade from the published files: smaller images as JPEG, labels 0 to 7 and 255 as PNG."""
    if (dest / FOLDER).exists():
        raise FetchError(f"{dest / FOLDER} is there already; move it away to convert again")
    check_published(root)
    images = files_by_stem(root / "images", "*.jpg")
    dest.mkdir(parents=True, exist_ok=True)
    with appearing_folder(dest / FOLDER) as tree:
        (tree / "images").mkdir()
        (tree / "labels").mkdir()
        for _ in in_order(lambda image: _convert(root, image, tree), list(images.values()), "convert"):
            pass
        if labels_sha256(tree) != LABELS_SHA256:
            raise FetchError("the label maps that were made are not the expected ones; another version of pillow helps")
    print(f"{dest / FOLDER} is complete. Now set APD_DATA to {dest.resolve()}")


def check(root: Path) -> None:
    """Check counts, names, images and labels of a converted LabelMeFacade folder, and print what the splits hold."""
    root = find_tree(root, FOLDER)
    images, labels = files_by_stem(root / "images", "*.jpg"), files_by_stem(root / "labels", "*.png")
    if alone := sorted(set(images) ^ set(labels)):
        raise FetchError(f"{alone[0]} in {root} is only in one of images/ and labels/ ({len(alone)} such names)")
    if len(images) != COUNT:
        raise FetchError(f"{root} is not complete: {len(images)} of {COUNT} pairs; move it away and convert again")
    splits, counts = splits_of(images), {}
    for split in SPLITS:
        stems = [stem for stem, name in splits.items() if name == split]
        counted = in_order(lambda stem: _counted(images[stem], labels[stem]), stems, f"check {split}")
        counts[split] = sum(counted, start=np.zeros(256, dtype=np.int64))
        print(f"{split:<18}{len(stems):>5} pairs")
    print_shares([*COLOURS, "ignored"], {split: h[[*range(len(COLOURS)), IGNORED]] for split, h in counts.items()})
    if labels_sha256(root) != LABELS_SHA256:
        raise FetchError(f"{root / 'labels'} holds other labels than are expected; move it away and convert again")
    print(
        f"\ncomplete: {COUNT} pairs; labels are the expected ones. JPEG libraries differ in the last bit of an image,"
    )
    print("so a record's data fingerprint says which copy it was made from")


def splits_of(stems: Iterable[str]) -> dict[str, str]:
    """The split of every image, from the names alone.

    Images of Spain are `night` or `test_out_of_place`. The others are put into groups that may show one house: those
    of one folder with consecutive numbers, the frames of the video, the tiles of one large photograph. The hash of a
    group's first name decides between `train`, `val` and `test`, which so share their places but no group.
    """
    splits, series = {}, defaultdict(list)
    for stem in sorted(stems):
        if SPAIN.search(stem):
            splits[stem] = "night" if "night" in stem else "test_out_of_place"
        else:
            prefix, number = _place_in_series(stem)
            series[prefix].append((number, stem))
    for members in series.values():
        members.sort()
        first, last = members[0][1], members[0][0]
        for number, stem in members:
            if number - last > NEXT_PHOTOGRAPHS:
                first = stem
            last = number
            share = int(hashlib.sha256(first.encode()).hexdigest(), 16) / 2**256
            splits[stem] = "train" if share < SHARES["train"] else "val" if share < sum(SHARES.values()) else "test"
    return splits


def _place_in_series(stem: str) -> tuple[str, int]:
    """What the images of one series have in common, and the number of this one in it."""
    if stem.startswith("video_"):
        return "video_", 0
    if tiles := re.fullmatch(r"(.*__[a-z]+_a\d+)\d{3}", stem):  # of the spatial envelope: tiles of one photograph
        return tiles[1], 0
    if panorama := re.fullmatch(r"(.*saxena.*)-p-\d+t\d+", stem):  # views from one place
        return panorama[1], 0
    name, number = re.fullmatch(r"(.*?)(\d*)\D*", stem).groups()
    return name, int(number or 0)


def check_published(root: Path) -> None:
    """FetchError unless the folders are to the byte those of the commit."""
    for folder, expected in PUBLISHED_TREES.items():
        if not (root / folder).is_dir():
            raise FetchError(f"{root / folder} is missing; expected the published repository, as `fetch` makes it")
        if (found := git_tree(root / folder)) != expected:
            raise FetchError(
                f"{root / folder} is not the published folder: its tree is {found[:12]}, expected {expected[:12]}"
            )


def git_tree(folder: Path) -> str:
    """Git's name of a folder of plain files: the hash over their names and contents."""
    entries = b""
    for path in sorted(folder.iterdir(), key=lambda path: path.name.encode()):
        if not path.is_file():
            raise FetchError(f"{path} is no file")
        content = path.read_bytes()
        entries += b"100644 %s\0" % path.name.encode() + hashlib.sha1(b"blob %d\0" % len(content) + content).digest()
    return hashlib.sha1(b"tree %d\0" % len(entries) + entries).hexdigest()


def labels_sha256(root: Path) -> str:
    """sha256 over names, sizes and pixels of the converted label maps."""
    digest = hashlib.sha256()
    for stem, path in files_by_stem(root / "labels", "*.png").items():
        labels_HW = read_map(path)
        digest.update(f"{stem} {labels_HW.shape}".encode() + labels_HW.tobytes())
    return digest.hexdigest()


def _convert(root: Path, image_file: Path, tree: Path) -> None:
    """Write one smaller image and its label map."""
    mask_file = root / "labels" / f"{image_file.stem}.png"
    _, colours_HWC = decoded(mask_file)
    labels_HW = labels_of_colours(colours_HWC[..., :3], mask_file)
    height, width = labels_HW.shape
    scale = min(1.0, SHORT_SIDE / min(height, width))
    size = round(width * scale), round(height * scale)
    with Image.open(image_file) as image:
        if image.size != (width, height):
            raise FetchError(f"{mask_file} is {width}×{height}, its image {image.width}×{image.height}")
        smaller = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    smaller.save(tree / "images" / image_file.name, quality=QUALITY)
    mask = Image.fromarray(labels_HW).resize(size, Image.Resampling.NEAREST)
    # all 256 entries: with fewer, pillow would store fewer bits than the label 255 has
    mask.putpalette([value for colour in COLOURS.values() for value in colour] + [0] * 3 * (256 - len(COLOURS)))
    mask.save(tree / "labels" / mask_file.name, optimize=True)


def labels_of_colours(colours_HW3: np.ndarray, origin: Path) -> np.ndarray:
    """Labels (H, W) uint8 of the published colours; FetchError with the file at a colour that is none of them."""
    codes_HW = colours_HW3.astype(np.int32) @ np.array([65536, 256, 1])
    labels_HW = np.full(codes_HW.shape, IGNORED, dtype=np.uint8)
    known_HW = codes_HW == 0
    for label, colour in enumerate(COLOURS.values()):
        is_class_HW = codes_HW == np.dot(colour, [65536, 256, 1])
        labels_HW[is_class_HW] = label
        known_HW |= is_class_HW
    if not known_HW.all():
        wrong = colours_HW3[~known_HW][0].tolist()
        raise FetchError(f"{origin} holds the colour {wrong} ({(~known_HW).sum()} such pixels); no class has it")
    return labels_HW


def _counted(image_file: Path, mask_file: Path) -> np.ndarray:
    """Pixels of each label (256,) of a pair whose sizes must agree."""
    _, pixels = decoded(image_file)
    labels_HW = read_map(mask_file)
    if pixels.shape != (*labels_HW.shape, 3):
        raise FetchError(f"{image_file} is {pixels.shape}, its label map {labels_HW.shape}; expected one size and RGB")
    counts = np.bincount(labels_HW.ravel(), minlength=256)
    if len(wrong := np.setdiff1d(np.flatnonzero(counts), [*range(len(COLOURS)), IGNORED])):
        raise FetchError(f"{mask_file} holds the label values {wrong[:8].tolist()}; expected 0..7, or 255")
    return counts


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of the script; returns the exit code."""
    commands = {fetch: ["dest"], convert: ["root", "dest"], check: ["root"]}
    return run_script("labelmefacade.py", __doc__, commands, arguments)


if __name__ == "__main__":
    sys.exit(main())
