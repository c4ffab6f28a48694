"""The reader of COCO instances files, on a small file of its own and compared with pycocotools."""

import contextlib
import copy
import io
import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from miniatures import COCO_CONTENT as CONTENT
from miniatures import write_shapes
from PIL import Image

from apd.data.coco import CocoInstances, coco_split, decode, unpack
from apd.data.images import DataError, MissingData
from apd.data.instances import InstanceDataset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_shapes(tmp_path)


def write(folder: Path, content: object) -> Path:
    file = folder / "shapes" / "annotations" / "instances_train.json"
    file.write_text(json.dumps(content))
    return file


def read(folder: Path, **options) -> CocoInstances:
    shapes = folder / "shapes"
    return CocoInstances(shapes / "annotations" / "instances_train.json", shapes / "train", **options)


def changed(part: str, number: int, **fields) -> dict:
    content = copy.deepcopy(CONTENT)
    content[part][number] |= fields
    return content


def runs(counts, size=(20, 12)) -> dict:
    return changed("annotations", 2, segmentation={"size": list(size), "counts": counts})


def test_categories_are_numbered_densely_in_the_order_of_their_ids_and_degenerate_boxes_counted(folder):
    data = read(folder)
    assert isinstance(data, InstanceDataset)
    assert data.spec.class_names == ("square", "disc", "bar")
    assert data.spec.category_ids == (2, 18, 44)
    assert data.spec.name == "instances_train"
    assert data.dropped == 1
    assert [sample.name for sample in data] == ["wide", "tall", "empty"]
    wide, tall, empty = data
    assert wide.labels_N.tolist() == [2, 0]
    assert wide.crowd_N.tolist() == [False, True]
    assert wide.boxes_N4.tolist() == [[2, 1, 14, 5], [0, 0, 20, 12]]
    assert wide.areas_N.tolist() == [48, 120]
    assert tall.boxes_N4.tolist() == [[0, 10.5, 6, 20]]  # cut off at the image's edge
    assert empty.masks_NHW.shape == (0, 8, 8)
    assert empty.boxes_N4.shape == (0, 4)
    assert empty.image_3HW.shape == (3, 8, 8)  # a grey image has three equal channels


def test_accents_may_be_stored_in_another_form_and_stems_may_repeat_in_folders(folder):
    content = copy.deepcopy(CONTENT)
    for image, name in zip(content["images"], ("tür/1.png", "b/1.jpg", "b/2.png"), strict=True):
        place = folder / "shapes" / "train" / unicodedata.normalize("NFD", name)
        place.parent.mkdir(exist_ok=True)
        (folder / "shapes" / "train" / image["file_name"]).rename(place)
        image["file_name"] = name
    write(folder, content)
    assert [sample.name for sample in read(folder)] == ["tür/1", "b/1", "b/2"]
    assert len(read(folder).fingerprint()) == 64


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools'
def test_masks_are_those_of_pycocotools(folder):
    from pycocotools.coco import COCO

    data = read(folder)
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO(folder / "shapes" / "annotations" / "instances_train.json")
    for sample, image in zip(data, CONTENT["images"], strict=True):
        entries = [entry for entry in CONTENT["annotations"] if entry["image_id"] == image["id"] and entry["id"] != 4]
        wanted = [torch.from_numpy(reference.annToMask(copy.deepcopy(entry))).bool() for entry in entries]
        assert [torch.equal(a, b) for a, b in zip(sample.masks_NHW, wanted, strict=True)] == [True] * len(wanted)
    assert [mask.sum().item() for sample in data for mask in sample.masks_NHW] == [54, 120, 54]


@pytest.mark.parametrize("seed", range(20))
def test_packed_runs_are_read_as_pycocotools_packs_them(seed):
    from pycocotools import mask as reference

    random = np.random.default_rng(seed)
    height, width = random.integers(1, 70, 2)
    block = int(random.integers(1, 12))
    mask = np.kron(random.random((height // block + 1, width // block + 1)) < random.random(), np.ones((block, block)))
    mask = mask[:height, :width].astype(bool)
    packed = reference.encode(np.asfortranarray(mask.astype(np.uint8)))
    for counts in (packed["counts"], packed["counts"].decode(), unpack(packed["counts"])):
        assert (decode({"size": [int(height), int(width)], "counts": counts}, int(height), int(width)) == mask).all()


@pytest.mark.parametrize(
    "runs", [[2**62, 2**62, 2**62, 2**62 + 4], [4, 2**63], [10**30], [-1, 5], [4, 1], [1.0, 3.0], [[4]], []], ids=str
)
def test_run_lengths_that_do_not_fill_the_image_are_refused_also_where_their_sum_wraps_round_to_it(runs):
    with pytest.raises(ValueError, match="counts do not fill its size 2×2"):
        decode({"size": [2, 2], "counts": runs}, 2, 2)


def test_boxes_alone_need_no_segmentation(folder):
    content = copy.deepcopy(CONTENT)
    for entry in content["annotations"]:
        del entry["segmentation"]
    write(folder, content)
    with pytest.raises(DataError, match="annotation 1 has no segmentation: read this file with masks=False"):
        read(folder)
    sample = read(folder, masks=False)[0]
    assert sample.masks_NHW is None
    assert sample.labels_N.tolist() == [2, 0]


def test_reading_later_gives_what_reading_at_once_gives_and_samples_are_the_callers_own(folder):
    at_once = read(folder)
    for a, b in zip(at_once, read(folder, cache=False), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a[:-1], b[:-1], strict=True))
    at_once[0].masks_NHW.zero_()
    assert at_once[0].masks_NHW.any()


def test_the_fingerprint_follows_annotations_images_and_settings(folder):
    before = read(folder).fingerprint()
    assert before == read(folder, cache=False).fingerprint()
    assert before != read(folder, masks=False).fingerprint()
    write(folder, changed("annotations", 0, area=47.0))
    assert before != read(folder).fingerprint()
    write(folder, CONTENT)
    Image.new("RGB", (20, 12)).save(folder / "shapes" / "train" / "wide.png")
    assert before != read(folder).fingerprint()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": [], "annotations": []}, "has no list 'categories': expected a COCO instances file"),
        ({**CONTENT, "images": []}, "lists no image"),
        (changed("annotations", 0, image_id=8), "annotation 1 is of image 8, which is not among the images"),
        (changed("annotations", 0, category_id=1), "annotation 1 is of category 1, which is not among the categories"),
        (changed("annotations", 0, bbox=None), r"annotations\[0\] has bbox = None: not what a COCO instances file"),
        (changed("annotations", 0, id=2), "annotations hold the id 2 twice"),
        (changed("categories", 0, name="disc"), "names a class twice"),
        (changed("annotations", 0, bbox=[1, 2, 3]), r"bbox = \[1, 2, 3\]: expected \[x, y, width, height\]"),
        (changed("annotations", 0, area="big"), "area = 'big': expected a finite number"),
        (changed("annotations", 0, segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "annotation 1: .* three or more points"),
        (changed("annotations", 0, segmentation="x"), "annotation 1: segmentation is 'x'"),
        (runs(";9;0\x7f"), "annotation 3: .* character that packed run lengths do not have"),
        (runs(";9P"), "annotation 3: .* inside a number"),
        (runs([240], size=[12, 20]), "annotation 3: .* size 12×20"),
        (changed("images", 0, width=21), r"wide.png is 20×12 pixels, but .* says 21×12"),
        (changed("images", 0, file_name="lost.png"), r"lost.png is missing \(1 of 3 images"),
    ],
)
def test_what_is_wrong_is_named_before_any_training(folder, content, message):
    file = write(folder, content)
    with pytest.raises(DataError, match=message) as caught:
        read(folder)
    assert file.name in str(caught.value) or "missing" in str(caught.value)


def test_files_that_are_no_json_or_not_there_are_named(folder):
    file = write(folder, CONTENT)
    with pytest.raises(MissingData, match=r"annotation file .*nothing\.json is missing"):
        CocoInstances(folder / "nothing.json", folder)
    with pytest.raises(MissingData, match=r"image folder .*nowhere is missing"):
        CocoInstances(file, folder / "nowhere")
    file.write_text("{")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        read(folder)


def test_a_split_is_found_below_the_data_folder(folder, monkeypatch):
    monkeypatch.setenv("APD_DATA", str(folder))
    data = coco_split("shapes", "train")
    assert (len(data), data.spec.name) == (3, "shapes")
    with pytest.raises(MissingData, match=r"instances_val\.json is missing: expected shapes/annotations/"):
        coco_split("shapes", "val")
    with pytest.raises(MissingData, match=r"holds no folder coco/\. .*data_scripts/coco.py fetch DEST"):
        coco_split("coco", "val2017")
    with pytest.raises(MissingData, match=r"holds no folder pets/\. Set APD_DATA to the folder that contains pets/\.$"):
        coco_split("pets", "day")
    monkeypatch.delenv("APD_DATA")
    with pytest.raises(MissingData, match="coco is needed, and the environment variable APD_DATA is not set"):
        coco_split("coco", "val2017")
