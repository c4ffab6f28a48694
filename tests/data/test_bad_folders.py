"""Folders of one's own with bad files in them: each is refused soon, in one short line that names it."""

import os
import struct
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from bad_input import refused
from hypothesis import example, given, settings
from hypothesis import strategies as st
from image_files import exif, png, saved
from miniatures import files, write_folder

from apd.data.dataset_yaml import folder_spec, image_sizes, open_folder
from apd.data.images import DataError, MissingData, read_image, read_mask
from apd.data.specs import DatasetSpec

GREY = np.tile(np.linspace(0, 255, 48).astype(np.uint8), (40, 1))
LABELS, DEEP = (GREY // 200).astype(np.uint8), GREY.astype(np.uint16) * 16
LIST, DIGITS = "splits: {{val: {{}}, train: {{list: {}}}}}", f"1{'0' * 400}"
NESTED = "".join(f"&{b} [{', '.join([f'*{a}'] * 9)}], " for a, b in zip("abcdefgh", "bcdefghi", strict=True))
YAML = {  # what the message names -> texts
    "not valid YAML": ["values: [!!int abc]", "values: !!int ''", "values: [!!float x]", "name: !!bool x", "name: [",
        "name: !!timestamp x", "name: 2020-13-45", "name: 2001-12-14t21:59:43-99:99", "values: " + "[" * 3000, "\ta: x",
        "splits: " + "{a: " * 3000, "- " * 3000, "? " * 3000, "name: !!omap {a: 1}", "? [a]\n: 1", "name: x\n---\n- y",
        "name: !!python/object/apply:os.abort []", "name: !x y", "name: a\nname: b"],
    "4300 digits": [f"values: [{'9' * 5000}]", f"name: 0x{'f' * 6000}", f"values: [1{':59' * 3000}]"],
    "write out what": [f"classes: [&a [x, x], {NESTED}]", "a: &a {k: 1}\nb: {<<: [*a, *a]}", "values: &a [*a]"],
    "values = ": ["values: [1.0e+400]", "values: [.inf]", "values: [.nan]", "values: [0.0, 1.0]", "values: [no, yes]"],
    "file_values": [f"values: [{DIGITS}, 1]", "values: [-1, 0]"], "palette": [f"palette: [[{DIGITS}], [1, 2, 3]]"],
    "void_values": [f"ignore: [{DIGITS}]", f"ignore: {list(range(2, 9000))}"],
    "three values": ["palette: [[1, 2, 3], [1, 2, 256]]"],
    "262144": [f"name: '{'x' * 300_000}'"],
    "100 characters": [f"classes: [a, {'b' * 5000}]", "classes: [a, ' ']", f"name: {'n' * 5000}"],
    "is missing": [f"images: {'i' * 5000}", f"images: {'a/' * 3000}", 'images: "a\\0b"', 'images: "\\uD800"'],
    "the list": [LIST.format("l" * 5000), LIST.format("/dev/zero")], "255 col": [f"classes: {[*map(str, range(300))]}"],
    "unknown entry": ["~: 4", "3: 4", ".nan: 4", "2020-01-01: 1", "splits: {no: {}}"],
    "is no class": [f"colours: {{? {'z' * 5000} : [1, 2, 3], soil: [1, 1, 1], crop: [2, 2, 2]}}"],
}  # fmt: skip
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates()
JSON = st.recursive(SCALARS, lambda some: st.lists(some) | st.dictionaries(st.text(), some))
ENTRIES = st.sampled_from(["classes", "name", "values", "colours", "ignore", "images", "masks", "splits", "train"])


def tiff(path, bits=8, side=48, directories=1, end=0):
    """Write a grey TIFF of 40 or `side` rows with samples at half of their range, and so many directories."""
    data, rows = bytes([0x80, 8, 0][: bits // 4]) * 960, side if side > 48 else 40
    tags = {256: side, 257: rows, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: rows, 279: len(data)}
    entries = struct.pack("<H", 9) + b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in tags)
    after = [8 + len(data) + place * (len(entries) + 4) for place in range(directories)]
    chain = b"".join(entries + struct.pack("<I", place) for place in (*after[1:], 0))
    path.write_bytes(b"II*\0" + struct.pack("<I", after[0]) + data + chain)
    os.truncate(path, end or path.stat().st_size)


def linked(target):
    return lambda path: path.symlink_to(target)


def text(content, size=0):
    return lambda path: (path.write_text(content), os.truncate(path, size) if size else None)


SPECIAL = {"pipe": os.mkfifo, "zeros": linked("/dev/zero"), "terminal": linked("/dev/tty")}
MASK, IMAGE, OF_VAL, DEPTH = "masks/train/000.png", "images/train/000.jpg", "images/val/010.jpg", "10, 12 or 14 bits"
FILES = {  # the file that is replaced, by what, and what the message names
    **{f"{kind}: {at}": (at, SPECIAL[kind], "a pipe or a device") for kind in SPECIAL for at in (MASK, IMAGE, OF_VAL)},
    "link to itself": (MASK, linked("000.png"), "symbolic links"), "to nothing": (MASK, linked("no"), "no such file"),
    "kernel's messages": (MASK, linked("/proc/kmsg"), "cannot be read"), "empty": (MASK, text(""), "it is empty"),
    "PostScript": (IMAGE, text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 48 40\n%%EndComments"), "cannot identify"),
    "1 TB": (MASK, text("", 1 << 40), "identify"), "4 GB more": (MASK, partial(tiff, end=4 << 30), "expected at most"),
    "60000²": (MASK, partial(tiff, side=60000), "3600000000"), "9000²": (MASK, partial(tiff, side=9000), "truncated"),
    "13000²": (MASK, partial(tiff, side=13000), "limit is 8947"), "12": (IMAGE, partial(tiff, bits=12), DEPTH),
    "many": (MASK, partial(tiff, directories=60000), "several"), "12 of 16": (IMAGE, saved(DEEP, format="PNG"), DEPTH),
    "12 bits of each colour": (IMAGE, png(np.dstack([DEEP] * 3), 16, 2), DEPTH),
    "mask of 12 bits": (MASK, saved(DEEP // 4080 * 16, format="PNG"), "label values 16"),
    **{f"{kind} mask": (MASK, saved(LABELS, format=kind), "as JPEG") for kind in ("JPEG", "MPO", "JPEG2000")},
    "WebP": (MASK, saved(LABELS, format="WEBP"), "mode RGB"), "turn": (MASK, saved(LABELS, exif=exif(6)), "same size"),
    "name of other bytes": (MASK, lambda path: path.with_name("000\udcff.png").touch(), "not UTF-8; rename"),
    "name of two lines": (OF_VAL, lambda path: path.with_name("a\nb\x1b[31m.png").touch(), r"a\nb\x1b[31m.png"),
    **{f"list {n}": ("list.txt", write, named) for n, (write, named) in enumerate(((os.mkfifo, "the list"),
       (text("", 4 << 30), "expected at"), (text("x" * 100_000), "no image"), (text("/x" * 50_000), "no image"),
       (text("\u0301\u0316" * 10**6), "no image"), (linked("/proc/kmsg"), "is empty")))},
    "PGM of 1 bit": (MASK, lambda path: path.write_bytes(b"P5 48 40 1\n" + LABELS.tobytes()), "cannot identify"),
    "PPM with a long head": (IMAGE, text("P3" + " " * 10**7 + "1 1 255 1 2 3"), "cannot identify"),
    **{f"{named} {n}": ("dataset.yaml", text(f"{'' if 'classes' in part else 'classes: [soil, crop]'}\n{part}"), named)
       for named, parts in YAML.items() for n, part in enumerate(parts)},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("fault", [None, *FILES])
def test_a_bad_file_is_refused_by_its_name_and_what_it_is(tmp_path, fault):
    name, write, named = FILES.get(fault, ("other.txt", Path.touch, ""))
    yaml = LIST.format(name) if name == "list.txt" else ""
    folder = write_folder(tmp_path / "fields", files("train", "000", "001"), files("val", "010"), yaml=yaml)
    (folder / name).unlink(missing_ok=True)
    write(folder / name)

    def read():
        splits = [open_folder(folder, split) for split in ("train", "val")]
        return [[split.fingerprint(), *split] for split in splits], image_sizes(folder, "train")

    assert refused(read, DataError, names=("/", named)) if fault else read()


@settings(max_examples=150)
@given(st.text() | st.dictionaries(ENTRIES, JSON, max_size=4).map(yaml.safe_dump))
@example("classes: &a {? *a}")
def test_any_description_is_one_or_a_data_error(tmp_path_factory, text):
    folder = tmp_path_factory.getbasetemp()
    (folder / "dataset.yaml").write_text(text, encoding="utf-8")
    with suppress(DataError):
        assert folder_spec(folder).num_classes
        return
    refused(lambda: folder_spec(folder), DataError, names=(str(folder),))


def test_a_good_image_without_memory_for_it_is_not_called_damaged(tmp_path, monkeypatch):
    saved(LABELS)(tmp_path / "good.png")
    for function in ("numpy.asarray", "PIL.Image.Image.convert"):
        monkeypatch.setattr(function, lambda *_: (_ for _ in ()).throw(MemoryError))
    spec = DatasetSpec("fields", ("soil", "crop"), ((0, 0, 0), (1, 1, 1)))
    for call in (lambda: read_image(tmp_path / "good.png"), lambda: read_mask(tmp_path / "good.png", spec)):
        assert "damaged" not in refused(call, DataError, names=("good.png", "takes more memory than there is"))
    refused(lambda: open_folder(Path("x" * 5000), "train"), MissingData, names=("there is no dataset.yaml",))
