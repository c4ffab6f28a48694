"""The scripts of the published data sets, on miniatures with the real names and kinds of files."""

import json
import re

import numpy as np
import pytest
from bad_input import edited
from image_files import exif
from miniatures import FEW, WRITERS, data_script, files_of, for_counts, write_converted
from PIL import Image
from torchvision.datasets import Cityscapes

from apd.data.specs import ADE20K, CITYSCAPES, COCO_STUFF, PASCAL_CONTEXT_60

label_trees = data_script("label_trees")
SPECS = {"cityscapes": CITYSCAPES, "ade20k": ADE20K, "pascal_context": PASCAL_CONTEXT_60, "coco": COCO_STUFF}
# of each set patterns of the masks and of the images of train, and a value that no mask may hold
KINDS = {
    "cityscapes": ("gtFine/train/*/*_labelIds.png", "leftImg8bit/train/*/*.png", 34),
    "ade20k": ("annotations/training/*.png", "images/training/*.jpg", 151),
    "pascal_context": ("59_context_labels/*.png", "VOC2010/JPEGImages/*.jpg", 60),
    "coco": ("stuffthingmaps/train2017/*.png", "train2017/*.jpg", 11),
}
VOC_VAL, OF_VAL = "VOC2010/ImageSets/Main/val.txt", "annotations/instances_val2017.json"


@pytest.fixture(params=WRITERS)
def name(request):
    return request.param


@pytest.fixture
def tree(name, tmp_path):
    """A miniature that the script takes for the published data."""
    write, folder = WRITERS[name]
    with for_counts(name, FEW):
        yield write(tmp_path / folder)


def pixels(path):
    return np.asarray(Image.open(path))


def published(name, root):
    """The pairs (image, mask) of val, by hand, and what each of its values means: a label, or 255."""
    if name == "cityscapes":
        images = sorted((root / "leftImg8bit" / "val").glob("*/*.png"))
        of_image = {p: f"gtFine/val/{p.parent.name}/{p.name.replace('leftImg8bit', 'gtFine_labelIds')}" for p in images}
        meaning = {label.id: label.train_id for label in Cityscapes.classes if label.id >= 0}
    elif name == "ade20k":
        of_image = {p: f"annotations/validation/{p.stem}.png" for p in sorted((root / "images/validation").iterdir())}
        meaning = {0: 255, **{value: value - 1 for value in range(1, 151)}}
    elif name == "pascal_context":
        stems = (root / "VOC2010/ImageSets/Main/val.txt").read_text().split()
        of_image = {root / f"VOC2010/JPEGImages/{stem}.jpg": f"59_context_labels/{stem}.png" for stem in stems}
        same = {"diningtable": "table", "bedcloth": "bedclothes", "clothes": "cloth", "potted plant": "pottedplant"}
        lines = [line.split(": ") for line in (root / "59_labels.txt").read_text().splitlines()]
        meaning = {0: 0, **{int(i): PASCAL_CONTEXT_60.index(same.get(n, n)) for i, n in lines}}
    else:
        of_image = {p: f"stuffthingmaps/val2017/{p.stem}.png" for p in sorted((root / "val2017").iterdir())}
        lines = [line.split(": ") for line in (root / "labels.txt").read_text().splitlines()]
        meaning = {255: 255} | {int(i) - 1: COCO_STUFF.index(n) for i, n in lines if n in COCO_STUFF.class_names}
    return [(image, root / mask) for image, mask in of_image.items()], meaning


def test_a_whole_tree_is_reported_with_counts_sizes_and_label_shares(name, tree, run):
    before = files_of(tree)
    for given in (tree, tree.parent):
        output = run(name, "check", given, says="complete: 7 pairs; now run `convert`")
    assert files_of(tree) == before
    pairs, meaning = published(name, tree)
    sizes = {Image.open(image).size for image, _ in pairs}
    found = re.search(r"val +3  (\d+)×(\d+)(?: to (\d+)×(\d+))?, ([\w, ]+)\n", output)
    assert (int(found[1]), int(found[2])) in sizes
    assert bool(found[3]) == (len(sizes) > 1)
    assert found[5] == ("L, RGB" if name == "coco" else "RGB")
    labels = np.concatenate([np.vectorize(meaning.get)(pixels(mask)).ravel() for _, mask in pairs])
    rows = re.findall(r"^ *\d+ (.+?) +[\d.]+ +([\d.]+)$", output.split("% of pixels")[1], re.MULTILINE)
    assert [row[0] for row in rows] == [*SPECS[name].class_names, "ignored"]
    for label, (_, share) in zip([*range(SPECS[name].num_classes), 255], rows, strict=True):
        assert float(share) == pytest.approx(100 * np.mean(labels == label), abs=0.0006)
    # images 0, 1, 2 of val of coco have an object of categories 0, 3, 6 and a crowd of 1, 4, 7
    for row in (r"train +4 +8 +4\nval +3 +6 +3\n", r" 0 person +12\.500 +16\.667\n", r" 2 car +0\.000 +0\.000\n"):
        assert name != "coco" or re.search(row, output)


def altered(mask, unknown):
    """Write a mask with six pixels of an unknown value."""
    values = pixels(mask).copy()
    values[:2, :3] = unknown
    Image.fromarray(values).save(mask, "PNG")


FAULTS = {
    "no mask": (lambda mask, image, _: mask.unlink(), "no label map|is missing"),
    "no image": (lambda mask, image, _: image.unlink(), "no image|is missing"),
    "value": (lambda mask, image, unknown: altered(mask, unknown), r"label values \d+ \(6 pixels\)"),
    "rgb mask": (lambda mask, image, _: Image.open(mask).convert("RGB").save(mask), "mode RGB; expected one channel"),
    "size": (lambda m, image, _: Image.open(m).crop((0, 0, 32, 31)).save(m), r"is \d+×\d+, its image \S+ \d+×\d+"),
    "16 bits": (lambda mask, i, _: Image.open(mask).convert("I;16").save(i, "PNG"), "has mode I;16; expected one"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_first_wrong_file_is_named_the_exit_code_is_1_and_a_conversion_leaves_no_list(name, tree, run, fault):
    spoil, message = FAULTS[fault]
    mask, image = (min(tree.glob(pattern)) for pattern in KINDS[name][:2])
    spoil(mask, image, KINDS[name][2])
    for command in ("check", "convert") if fault != "16 bits" else ("check",):
        output = run(name, command, tree, says=message, code=1)
        assert re.split("_gtFine|_leftImg8bit", mask.stem)[0] in output
        assert not re.search("^complete:", output, re.MULTILINE)
    assert not (tree / "apd_labels" / "train.txt").exists()


def without_line(text, number=7):
    lines = text.splitlines(keepends=True)
    return "".join(lines[:number] + lines[number + 1 :])


def entry(place, value=...):
    """A change of a JSON file: another value at a place, or none."""
    return lambda text: json.dumps(edited(json.loads(text), place, value))


@pytest.mark.parametrize(
    ("name", "file", "change", "message"),
    [
        ("ade20k", "objectInfo150.txt", without_line, "objectInfo150.txt is not the published"),
        ("pascal_context", "59_labels.txt", without_line, "is not in both"),
        ("pascal_context", "59_labels.txt", lambda text: text.replace("59: ", "58: "), "its numbers are not 1 to 59"),
        ("pascal_context", VOC_VAL, lambda text: text.replace("2009_000000", "2008_000000"), "which another split has"),
        ("coco", "labels.txt", without_line, "labels.txt is not the published list"),
        ("coco", OF_VAL, None, "instances_val2017.json is missing"),
        ("coco", OF_VAL, lambda text: "[]", "instances_val2017.json is not a file of COCO's instances"),
        ("coco", OF_VAL, entry("images/2"), "has 2 images of 3"),
        ("coco", OF_VAL, entry("categories/79"), "79 categories of 80"),
        ("coco", OF_VAL, entry("annotations/0/image_id", 99), "object 1 names an image or a category"),
        ("coco", OF_VAL, entry("annotations/0/bbox", [70, 0, 1, 2]), r"object 1 has the box \[70, 0, 1, 2\]"),
        ("coco", OF_VAL, entry("images/0/height", 31), r"000000000139.jpg is 48×32, its entry says 48×31"),
    ],
)
def test_a_fault_in_a_table_or_a_list_is_named(name, tree, file, change, message, run):
    text = (tree / file).read_text()
    (tree / file).unlink() if change is None else (tree / file).write_text(change(text))
    run(name, "check", tree, says=message, code=1)


def test_converted_maps_hold_the_labels_of_the_published_values_and_others_are_not_overwritten(name, tree, run):
    before = files_of(tree)
    assert f"set APD_DATA to {tree.parent}" in run(name, "convert", tree, says="train: 4 maps written, 0 were there")
    pairs, meaning = published(name, tree)
    lines = [line.split("\t") for line in (tree / "apd_labels/val.txt").read_text().splitlines()]
    assert [tree / image for image, _ in lines] == [image for image, _ in pairs]
    for (_, mask), (_, converted) in zip(pairs, lines, strict=True):
        assert Image.open(tree / converted).mode == "L"
        assert np.array_equal(pixels(tree / converted), np.vectorize(meaning.get)(pixels(mask)))
    assert len({int(value) for _, mask in pairs for value in np.unique(pixels(mask))}) > 12, "too poor a miniature"
    assert json.loads((tree / "apd_labels/classes.json").read_text())["classes"] == list(SPECS[name].class_names)
    assert {k: v for k, v in files_of(tree).items() if not k.startswith("apd_labels")} == before
    run(name, "check", tree, says="complete: 7 pairs; the converted maps in apd_labels are those")
    made = tree / "apd_labels"
    for file in ("classes.json", "val.txt"):
        content = (made / file).read_text()
        other = content.replace(SPECS[name].class_names[3], "something else")
        (made / file).write_text(other if file == "classes.json" else without_line(content, 1))
        spoiled = files_of(made)
        for command in ("convert", "check"):
            run(name, command, tree, says=f"{file}.* move", code=1)
            assert files_of(made) == spoiled
        (made / file).write_text(content)
    lost = min(made.glob("val/**/*.png"))
    lost.unlink()
    run(name, "convert", tree, says=f"{lost} is missing, val.txt names it", code=1)
    Image.fromarray(np.ones_like(pixels(min(made.glob("train/**/*.png"))))).save(lost)
    run(name, "check", tree, says=f"{lost} is not what", code=1)


def test_an_image_that_training_would_turn_and_its_map_not_is_refused(name, tree, run):
    image = min(tree.glob(KINDS[name][1]))
    Image.open(image).save(image, exif=exif(3))
    run(name, "check", tree, says=f"{image} has an EXIF orientation, by which training would turn it", code=1)


def test_an_interrupted_conversion_continues_and_ends_as_any_other(name, tree, tmp_path, run, monkeypatch):
    whole, made = files_of(write_converted(tmp_path / "whole", name)), tree / "apd_labels"
    convert, done = label_trees._convert, []

    def until_interrupted(*arguments):
        if len(done) >= 3:
            raise KeyboardInterrupt
        done.append(arguments)
        return convert(*arguments)

    monkeypatch.setattr(label_trees.os, "cpu_count", lambda: 1)  # else threads count to different ends
    monkeypatch.setattr(label_trees, "_convert", until_interrupted)
    run(name, "convert", tree, says="interrupted", code=130)
    assert not (made / "val.txt").exists()
    kept = {path: path.stat().st_mtime_ns for path in made.rglob("*.png")}
    assert len(kept) == 3
    (made / "train" / ".half.png.part").write_bytes(b"half")  # what a kill in the middle of writing leaves behind
    monkeypatch.setattr(label_trees, "_convert", convert)
    run(name, "convert", tree)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    run(name, "convert", tree, says="val: all 3 maps are there; nothing was done")
    (made / "train" / ".half.png.part").unlink()
    assert files_of(tree) == whole
