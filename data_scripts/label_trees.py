"""Trees of images and label maps: checked pair by pair, and converted to label maps of one form.

Every data set's script says which pairs it has and what the values in its published maps mean (`Labels`); the rest is
here. A converted tree is what `apd.data.converted` reads::

    ROOT/apd_labels/classes.json       the classes, and which published value became which label
    ROOT/apd_labels/train/NAME.png     labels 0..K-1, and 255 where a pixel is ignored
    ROOT/apd_labels/train.txt          a line for each pair: image and map, both below ROOT; written last

The images stay where they are.
"""

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from fetching import ANEW, FetchError
from PIL import ExifTags, Image
from tqdm import tqdm

CONVERTED = "apd_labels"
IGNORED = 255
# what pillow turns into RGB without losing anything; a mask must be L or P
IMAGE_MODES = ("RGB", "L", "P", "RGBA", "CMYK")

Item, Result = TypeVar("Item"), TypeVar("Result")


class Pair(NamedTuple):
    """An image and its published label map, both relative to the tree, and the converted map's name without suffix."""

    image: str
    mask: str
    name: str


class Labels:
    """What the values in a data set's published label maps mean.

    Args:
        names: the classes, in label order.
        values: the published value of each class, same order.
        ignored: published values that become 255. Any other value is an error.
    """

    def __init__(self, names: Sequence[str], values: Sequence[int], ignored: Iterable[int] = ()) -> None:
        self.names = tuple(names)
        self.table = np.full(256, -1, dtype=np.int16)
        self.table[list(ignored)] = IGNORED
        for label, value in enumerate(values):
            self.table[value] = label

    def __call__(self, values_HW: np.ndarray, origin: Path) -> np.ndarray:
        """Labels, uint8, of published values; FetchError with the file and the counts of values that are unknown."""
        counts = np.bincount(values_HW.ravel(), minlength=256)
        wrong = np.flatnonzero((counts > 0) & (self.table < 0))
        if len(wrong):
            found = ", ".join(f"{value} ({counts[value]} pixels)" for value in wrong[:8])
            known = _ranges(np.flatnonzero(self.table >= 0))
            raise FetchError(f"{origin} holds the label values {found}; expected {known}")
        return self.table.astype(np.uint8)[values_HW]

    def description(self, data_set: str) -> str:
        """The content of classes.json."""
        values = {str(value): int(label) for value, label in enumerate(self.table) if label >= 0}
        content = {"data_set": data_set, "ignore_index": IGNORED, "classes": self.names, "label_of_value": values}
        return json.dumps(content, indent=1) + "\n"


def find_tree(root: Path, folder: str) -> Path:
    """`root`, or the data set's folder in it, as people give either."""
    tree = root / folder if (root / folder).is_dir() else root
    if not tree.is_dir():
        raise FetchError(f"{root} is not a folder; expected the folder {folder}, or the one that contains it")
    return tree


def files_by_stem(
    folder: Path, pattern: str, stem: Callable[[str], str] = lambda name: Path(name).stem
) -> dict[str, Path]:
    """Files of a folder that match a pattern, by what `stem` makes of their names, sorted."""
    if not folder.is_dir():
        raise FetchError(f"{folder} is missing; {ANEW}")
    return {stem(path.name): path for path in sorted(folder.glob(pattern)) if not path.name.startswith(".")}


def paired(root: Path, split: str, images: Mapping[str, Path], masks: Mapping[str, Path], count: int) -> list[Pair]:
    """The pairs of a split by their common name; FetchError unless all pair up and there are `count`."""
    for own, other, kind in ((images, masks, "label map"), (masks, images, "image")):
        alone = [path for name, path in own.items() if name not in other]
        if alone:
            raise FetchError(f"{alone[0]} has no {kind} ({len(alone)} such files in {split}); the tree is not complete")
    if special := [path for path in (*images.values(), *masks.values()) if not path.is_file()]:
        raise FetchError(f"{special[0]} is no file")
    if len(images) != count:
        raise FetchError(f"{root} is not complete: {split} has {len(images)} of {count} pairs; {ANEW}")
    return [
        Pair(images[name].relative_to(root).as_posix(), masks[name].relative_to(root).as_posix(), name)
        for name in images
    ]


def decoded(path: Path) -> tuple[str, np.ndarray]:
    """Mode and pixels of an image, decoded to its last byte; FetchError when it is damaged."""
    if not path.is_file() or not path.stat().st_size:  # a pipe, or a system's log, would be waited for
        raise FetchError(f"{path} is missing or empty; {ANEW}")
    try:
        with Image.open(path, formats=("JPEG", "PNG")) as image:  # of other formats some start programs
            image.verify()  # a PNG's checksums and end mark, which decoding does not look at
        with Image.open(path, formats=("JPEG", "PNG")) as image:
            found, turned = (image.mode, np.asarray(image)), image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except Exception as error:  # pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
        raise FetchError(f"{path} cannot be read as an image ({error}); it is damaged or truncated") from error
    if turned:
        raise FetchError(f"{path} has an EXIF orientation, by which training would turn it; store its pixels upright")
    return found


def read_map(path: Path) -> np.ndarray:
    """Values (H, W) uint8 of a label map."""
    mode, values_HW = decoded(path)
    if mode not in ("L", "P"):
        raise FetchError(f"{path} has mode {mode}; expected one channel of 8 bits (L or P)")
    return values_HW


def check_tree(root: Path, splits: Mapping[str, Sequence[Pair]], labels: Labels, data_set: str) -> None:
    """Check every image and label map of a tree, and its converted maps if there are any; print what was found."""
    converted = _converted_splits(root, splits, labels, data_set)
    print(f"{root}\n\n{'split':<8}{'pairs':>8}  images")
    histograms: dict[str, np.ndarray] = {}
    for split, pairs in splits.items():
        own = split if split in converted else None
        seen = list(in_order(lambda pair, own=own: _looked_at(root, own, pair, labels), pairs, f"check {split}"))
        histograms[split] = np.sum([histogram for *_, histogram in seen], axis=0)
        sizes = sorted({size for _, size, _ in seen}, key=lambda size: size[0] * size[1])
        found = f"{sizes[0][0]}×{sizes[0][1]}" + (f" to {sizes[-1][0]}×{sizes[-1][1]}" if len(sizes) > 1 else "")
        print(f"{split:<8}{len(pairs):>8}  {found}, {', '.join(sorted({mode for mode, *_ in seen}))}")
    print_shares(
        [*labels.names, "ignored"], {split: h[[*range(len(labels.names)), IGNORED]] for split, h in histograms.items()}
    )
    if len(converted) == len(splits):
        ending = f"; the converted maps in {CONVERTED} are those of these labels"
    else:
        ending = "; now run `convert`"
    print(f"\ncomplete: {sum(map(len, splits.values()))} pairs{ending}")


def convert_tree(root: Path, splits: Mapping[str, Sequence[Pair]], labels: Labels, data_set: str) -> None:
    """Write the converted label maps that are not there yet, then the lists.

    Raises:
        FetchError: what is there was made from other labels or other pairs, a label map is damaged or holds an unknown
            value, or it has not the size of its image.
    """
    done = _converted_splits(root, splits, labels, data_set)
    folder = root / CONVERTED
    folder.mkdir(exist_ok=True)
    _write_whole(folder / "classes.json", labels.description(data_set).encode())
    for split, pairs in splits.items():
        if split in done:
            print(f"{split}: all {len(pairs)} maps are there; nothing was done")
            continue
        made = sum(in_order(lambda pair, s=split: _convert(root, s, pair, labels), pairs, f"convert {split}"))
        _write_whole(folder / f"{split}.txt", _list_of(split, pairs).encode())
        print(f"{split}: {made} maps written, {len(pairs) - made} were there")
    print(f"{folder} is complete. Now set APD_DATA to {root.resolve().parent}")


def print_shares(names: Sequence[str], counts: Mapping[str, np.ndarray], what: str = "% of pixels") -> None:
    """Print the share of each class, a row a class and a column a split."""
    width = max(len(what), *(len(name) + 4 for name in names)) + 1
    print(f"\n{what:<{width}}" + "".join(f"{split:>9}" for split in counts))
    for label, name in enumerate(names):
        row = (100 * count[label] / max(count.sum(), 1) for count in counts.values())
        print(f"{label:>3} {name}".ljust(width) + "".join(f"{share:9.3f}" for share in row))


def in_order(function: Callable[[Item], Result], items: Sequence[Item], description: str) -> Iterator[Result]:
    """`function` of each item, on several threads, in the items' order; the first error in that order ends it.

    Pillow decodes outside Python's global lock, so threads are enough. Only some calls are under way at a time.
    """
    waiting: deque = deque()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            with tqdm(total=len(items), desc=description, unit="file", disable=None) as progress:
                for item in items:
                    waiting.append(pool.submit(function, item))
                    if len(waiting) > 64:
                        yield waiting.popleft().result()
                        progress.update()
                while waiting:
                    yield waiting.popleft().result()
                    progress.update()
        finally:
            for future in waiting:
                future.cancel()


def _looked_at(
    root: Path, converted: str | None, pair: Pair, labels: Labels
) -> tuple[str, tuple[int, int], np.ndarray]:
    """Mode and (width, height) of a pair's image and the histogram (256,) of its labels; `converted`: of this split."""
    mode, pixels = decoded(root / pair.image)
    if mode not in IMAGE_MODES:
        raise FetchError(f"{root / pair.image} has mode {mode}; expected one of {', '.join(IMAGE_MODES)}")
    values_HW = read_map(root / pair.mask)
    _demand_equal_size(root, pair, values_HW, (pixels.shape[1], pixels.shape[0]))
    labels_HW = labels(values_HW, root / pair.mask)
    if converted is not None and not np.array_equal(read_map(root / _map_of(converted, pair)), labels_HW):
        raise FetchError(
            f"{root / _map_of(converted, pair)} is not what {pair.mask} becomes; delete it and "
            f"{CONVERTED}/{converted}.txt, and run `convert`"
        )
    return mode, (pixels.shape[1], pixels.shape[0]), np.bincount(labels_HW.ravel(), minlength=256)


def _demand_equal_size(root: Path, pair: Pair, values_HW: np.ndarray, size: tuple[int, int]) -> None:
    height, width = values_HW.shape
    if (width, height) != size:
        raise FetchError(f"{root / pair.mask} is {width}×{height}, its image {pair.image} {size[0]}×{size[1]}")


def _map_of(split: str, pair: Pair) -> str:
    return f"{CONVERTED}/{split}/{pair.name}.png"


def _list_of(split: str, pairs: Sequence[Pair]) -> str:
    return "".join(f"{pair.image}\t{_map_of(split, pair)}\n" for pair in pairs)


def _converted_splits(root: Path, splits: Mapping[str, Sequence[Pair]], labels: Labels, data_set: str) -> set[str]:
    """The splits whose conversion is complete; FetchError if what is there does not belong to these labels or pairs."""
    folder, done = root / CONVERTED, set()
    if not folder.exists() or all(path.name.startswith(".") for path in folder.iterdir()):
        return done
    advice = f"move {folder} away and run `convert` again"
    classes = folder / "classes.json"
    if not classes.is_file() or classes.read_bytes() != labels.description(data_set).encode():
        raise FetchError(f"{classes} is not that of {data_set} with these labels; {advice}")
    for split, pairs in splits.items():
        listing = folder / f"{split}.txt"
        if not listing.is_file():
            continue
        if listing.read_bytes() != _list_of(split, pairs).encode():
            raise FetchError(f"{listing} does not name the {len(pairs)} pairs of {split}; {advice}")
        missing = [pair for pair in pairs if not (root / _map_of(split, pair)).is_file()]
        if missing:
            raise FetchError(f"{root / _map_of(split, missing[0])} is missing, {split}.txt names it; {advice}")
        done.add(split)
    return done


def _convert(root: Path, split: str, pair: Pair, labels: Labels) -> bool:
    """Write one converted map; False where it was there."""
    target = root / _map_of(split, pair)
    if target.exists():
        return False  # it took its name when it was whole; `check` compares its content
    values_HW = read_map(root / pair.mask)
    try:
        with Image.open(root / pair.image) as image:
            _demand_equal_size(root, pair, values_HW, image.size)
    except OSError as error:
        raise FetchError(f"{root / pair.image} cannot be read as an image ({error}); run `check`") from error
    image = Image.fromarray(labels(values_HW, root / pair.mask))
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    image.save(part, "PNG")
    part.replace(target)
    return True


def _write_whole(file: Path, content: bytes) -> None:
    part = file.with_name(f".{file.name}.part")
    part.write_bytes(content)
    part.replace(file)


def _ranges(values: np.ndarray) -> str:
    """Whole numbers in short: 0..10, 255."""
    runs = np.split(values, np.flatnonzero(np.diff(values) != 1) + 1)
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs)
