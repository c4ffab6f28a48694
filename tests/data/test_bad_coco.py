"""COCO files that are wrong in some way are refused in one line, soon; masks are those of slow decoders."""

import copy
import json
import os
import re
import tracemalloc
from contextlib import suppress

import pytest
from bad_input import refused
from hypothesis import given
from hypothesis import strategies as st
from miniatures import COCO_CONTENT, write_shapes

from apd.data.coco import CocoInstances, coco_split
from apd.data.images import DataError
from apd.data.instances import decode, unpack

HUGE, NAN, INF, ALL = 10**400, float("nan"), float("inf"), [12, 20]
LENGTHS = st.integers(-3, 40) | st.sampled_from([2**31, 2**32 + 1, 2**62, 2**63 - 1, 2**63, -(2**63), 2**64 + 4, HUGE])
SIDES = st.tuples(st.integers(1, 6), st.integers(1, 6))
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | LENGTHS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.sampled_from(["size", "counts", "id"]), inner),
)
# fmt: off
FAULTS = {  # of the first entry of a part a field, and what the message says: what it must not hold
    ("annotations", "bbox", r"annotation 1 has bbox = .*\[x, y, width, height\]|annotations\[0\] has bbox = "): [
        [True, 0, 5, 5], [0, 0, NAN, 5], [0, 0, INF, 5], ["0", 0, 5, 5], [[0], 0, 5, 5], [10**30, 0, 5, 5], [[[]]] * 4,
        [0, 0, HUGE, 5], [0, 0, -5, 5], [0, 0, 5, None], [0, 0, 5], "0055", {}, None],
    ("annotations", "area", "annotation 1 has area = .*: expected a finite number"): [
        -1, -0.5, True, "9", None, NAN, HUGE, 1e300, [9], {}],
    ("annotations", "iscrowd", "annotation 1 has iscrowd = .*: expected 0 or 1"): [
        "0", "1", 2, -1, None, [], {}, 0.5, "no", HUGE],
    ("annotations", "image_id", "annotation 1 is of image |has image_id = "): [
        True, 7.0, "7", None, 8, [7], HUGE, 2**63],
    ("annotations", "category_id", "annotation 1 is of category |has category_id = "): [
        True, 44.0, "44", None, -44, [44], HUGE],
    ("annotations", "id", r"annotations\[0\] has id = |annotations hold the id 2 twice"): [
        2, True, "1", None, HUGE, NAN],
    ("annotations", "segmentation", "annotation 1: segmentation|annotation 1 has no segmentation"): [
        None, [], {}, "x", 5, [[]], [5], [{}], [[1, 2, 3, 4, 5]], [[1, 2, 3, 4]], [[1] * 7], [["1"] * 6], [[True] * 6],
        [[[1, 2]] * 3], [[1, 2, 3, 4, 5, None]], [[HUGE] * 6], [[NAN] * 6], [[1e15] * 6], [[-1e5] * 6],
        [[0, 0, 1e8, 0, 1e8, 1e8]], [[0, 0, 2**31, 0, 5, 5]], [[1, 2] * 10**6], [[0, 0, 9, 0, 9, 9]] * 10**5,
        [[0, 0, 9000, 9000] * 5000],
        *({"size": ALL, "counts": runs} for runs in (
            [], [240.0], [True] * 240, [-1, 241], [HUGE], ["240"], [[240]], [2**62, 2**62, 2**62, 2**62 + 240],
            [0] * 10**6, [2**64 + 240], "P" * 10**6, "0" * 10**6, "", "é", "`7o", "PPPPPPPPPPPP0", ";9P", {}, 5)),
        *({"size": size, "counts": [240]} for size in (
            [20, 12], [240], [4 * 10**4] * 2, ["12", 20], [-12, -20], HUGE, [12, HUGE])),
        {"counts": [240]}, {"size": ALL}],
    ("images", "id", r"images\[0\] has id = |images hold the id 3 twice"): [3, "7", True, None, 7.0, HUGE],
    ("images", "file_name", r"file_name = |file_name tall.jpg twice|path below|is missing \(1 of 3 images"): [
        "../train/wide.png", "/etc/hostname", "a/../wide.png", "./wide.png", "tall.jpg", "", "x" * 5000, "lost",
        7, "wide.png\n", "wide\0.png", "\ud800.png", "\udcff.png", "pipe", "folder", "device", None, ["wide.png"]],
    ("images", "height", r"has height = |path below|wide.png is 20×12 pixels, but .*20×13|over 2 GiB"): [
        0, -12, 13, 12.0, "12", True, None, 10**9, HUGE],
    ("categories", "id", r"categories\[0\] has id = |categories hold the id 2 twice"): [
        2, True, 44.0, "44", None, HUGE],
    ("categories", "name", r"categories\[0\] has name = |names a class twice"): [
        "disc", "", "a\nb", "\x1b[31m", "\ud800", 5, None],
}
WHOLE = json.dumps(COCO_CONTENT).encode()
FILES = {  # in place of the annotation file
    "nothing": b"", "cut": WHOLE[:-9], "zeros": b"\0" * 100, "a list": b"[]", "not UTF-8": b'{"images": "\xff"}',
    "deep lists": b"[" * 10**6, "deep mappings": b'{"a":' * 10**5, "a long number": b"9" * 10**4, "text": b"images",
    "no image": json.dumps({**COCO_CONTENT, "images": []}).encode(), "no list": b'{"images": [], "annotations": []}',
    "a key twice": WHOLE[:-1] + b', "images": []}', "a pipe": os.mkfifo, "a folder": os.mkdir,
    "an inner key twice": WHOLE.replace(b'"iscrowd": 0', b'"iscrowd": 1, "iscrowd": 0', 1),
    "a device": lambda file: file.symlink_to("/dev/zero"), "a log": lambda file: file.symlink_to("/proc/kmsg"),
    "two corners": json.dumps({**COCO_CONTENT, "annotations": [
        {**COCO_CONTENT["annotations"][0], "id": number, "bbox": [5, 5, 19, 11]} for number in range(9)]}).encode(),
    "a huge file": lambda file: (file.touch(), os.truncate(file, 10**13)),
}
# fmt: on


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """A reader of the miniature with other values in the first entry of a part, or of another file."""
    shapes = write_shapes(tmp_path_factory.mktemp("bad")) / "shapes"
    os.mkfifo(shapes / "train" / "pipe")
    (shapes / "train" / "folder").mkdir()
    (shapes / "train" / "device").symlink_to("/dev/zero")

    def read(part="info", file="any", **fields):
        content = copy.deepcopy({**COCO_CONTENT, "info": [{}]})
        content[part][0] |= fields
        path = shapes / "annotations" / f"{file}.json"
        given = FILES.get(file, json.dumps(content).encode())
        path.write_bytes(given) if isinstance(given, bytes) else given(path)
        return list(CocoInstances(path, shapes / "train"))

    return read


@pytest.mark.parametrize(("place", "value"), [(place, value) for place, values in FAULTS.items() for value in values])
def test_a_value_that_cannot_be_meant_is_named_before_any_training(read, place, value):
    assert re.search(place[2], refused(lambda: read(place[0], **{place[1]: value}), DataError))


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_coco_file_is_refused(read, name):
    said = refused(lambda: read(file=name), DataError, names=(f"{name}.json",))
    assert ("9 of 9 boxes reach beyond their images" in said) == (name == "two corners")


def test_what_takes_much_memory_or_time_is_refused_before_it_does(read, tmp_path, monkeypatch):
    huge = [[1, 2] * 10**6], {"size": [1, 1], "counts": "0" * 10**7}
    tracemalloc.start()
    for segmentation in huge:
        refused(lambda segmentation=segmentation: decode(segmentation, 1, 1), ValueError)
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()
    refused(lambda: unpack("P" * 99 + "0"), ValueError, names=("of more than 60 bits",))
    monkeypatch.setattr("apd.data.coco._BYTES", 10**5)
    refused(lambda: read("images", height=10**3, width=10**3), DataError, names=("wide.png has 2 masks",))
    monkeypatch.setenv("APD_DATA", str(write_shapes(tmp_path)))
    refused(lambda: coco_split("shapes", "x" * 5000), DataError)


def packed(runs):
    """Run lengths as COCO packs them, by its description."""
    text = ""
    for place, run in enumerate(runs):
        rest = run - runs[place - 2] if place > 2 else run
        while not -16 <= rest < 16:
            text, rest = text + chr(48 + 32 + rest % 32), rest // 32
        text += chr(48 + rest % 32)
    return text


@given(SIDES, st.lists(LENGTHS, max_size=8), st.booleans())
def test_run_lengths_are_read_pixel_by_pixel_or_refused_as_numbers_and_packed(sides, runs, filling):
    runs = [*runs, sides[0] * sides[1] - sum(runs)] if filling else runs
    for counts in (runs, packed(runs), packed(runs).encode()):
        if not runs or min(runs) < 0 or sum(runs) != sides[0] * sides[1]:
            refused(lambda counts=counts: decode({"size": [*sides], "counts": counts}, *sides), ValueError)
            continue
        pixels = [place % 2 == 1 for place, run in enumerate(runs) for _ in range(run)]
        assert decode({"size": [*sides], "counts": counts}, *sides).T.ravel().tolist() == pixels


@given(st.sampled_from(sorted(FAULTS)), JSON)
def test_any_value_is_refused_or_gives_samples_that_hold_what_is_promised(read, place, value):
    with suppress(DataError):
        for sample in read(place[0], **{place[1]: value}):
            x0, y0, x1, y1 = sample.boxes_N4.T
            height, width = sample.image_3HW.shape[1:]
            assert ((x0 >= 0) & (y0 >= 0) & (x0 < x1) & (y0 < y1) & (x1 <= width) & (y1 <= height)).all()
            assert (sample.areas_N.isfinite() & (sample.areas_N >= 0)).all()
