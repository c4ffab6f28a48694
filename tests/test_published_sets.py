"""The specs of the published data sets, and how their converted trees are read, trained on and evaluated."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from miniatures import FEW, WRITERS, write_converted
from PIL import Image
from small_experiments import tiny
from torch import nn
from torchvision.datasets import Cityscapes

from apd.config.datasets import build_split, build_splits, spec_of
from apd.config.experiment import DataConfig, ExperimentError
from apd.data.converted import PUBLISHED_FOLDERS, ConvertedDataset
from apd.data.image_folder import FolderDataset
from apd.data.images import DataError, LongSide, MissingData, long_side_size
from apd.data.specs import (
    ADE20K,
    CAMVID,
    CITYSCAPES,
    COCO_STUFF,
    IGNORE_COLOUR,
    PASCAL_CONTEXT_59,
    PASCAL_CONTEXT_60,
    SegmentationDataset,
    distinct_colours,
)
from apd.evaluation.inference import confusion_of
from apd.models.segmenter import SegOutput
from apd.training.run import train

SPECS = {
    "cityscapes": CITYSCAPES,
    "ade20k": ADE20K,
    "pascal_context_59": PASCAL_CONTEXT_59,
    "pascal_context_60": PASCAL_CONTEXT_60,
    "coco": COCO_STUFF,
}
SCRIPTS = {name: script.removesuffix(".py") for name, (_, script) in PUBLISHED_FOLDERS.items()}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Converted miniatures of all sets; tests must not change them."""
    parent = tmp_path_factory.mktemp("data")
    for name in WRITERS:
        write_converted(parent, name)
    return parent


@pytest.fixture(autouse=True)
def _found(data, monkeypatch):
    monkeypatch.setenv("APD_DATA", str(data))


@pytest.fixture(params=SPECS)
def spec(request):
    return SPECS[request.param]


@pytest.fixture
def own(data, tmp_path, monkeypatch):
    """A copy of ADE20K that a test may damage; returns its folder apd_labels."""
    shutil.copytree(data / "ADEChallengeData2016", tmp_path / "ADEChallengeData2016")
    monkeypatch.setenv("APD_DATA", str(tmp_path))
    return tmp_path / "ADEChallengeData2016" / "apd_labels"


# --- the specs -------------------------------------------------------------------------------------------------------


def test_the_number_of_classes_and_of_pictures_is_the_published_one():
    counts = {name: (spec.num_classes, *dict(spec.splits).values()) for name, spec in SPECS.items()}
    assert counts == {
        "cityscapes": (19, 2975, 500),
        "ade20k": (150, 20210, 2000),
        "pascal_context_59": (59, 4998, 5105),
        "pascal_context_60": (60, 4998, 5105),
        "coco": (171, 118287, 5000),
    }
    assert all(name == spec.name for name, spec in SPECS.items())


def test_cityscapes_has_the_names_colours_and_things_of_the_table_that_torchvision_carries():
    counted = sorted(
        (label for label in Cityscapes.classes if 0 <= label.train_id < 255), key=lambda label: label.train_id
    )
    assert CITYSCAPES.class_names == tuple(label.name for label in counted)
    assert CITYSCAPES.palette == tuple(label.color for label in counted)
    assert CITYSCAPES.thing_names == tuple(label.name for label in counted if label.has_instances)


def test_pascal_context_is_in_alphabetical_order_and_its_two_forms_differ_by_the_background():
    assert PASCAL_CONTEXT_60.class_names == ("background", *sorted(PASCAL_CONTEXT_59.class_names))
    assert {"aeroplane", "tvmonitor", "bedclothes", "wood"} < set(PASCAL_CONTEXT_59.class_names)


def test_coco_has_the_80_things_of_its_instances_and_91_kinds_of_stuff():
    assert COCO_STUFF.class_names[:80] == COCO_STUFF.thing_names
    assert (COCO_STUFF.index("person"), COCO_STUFF.index("toothbrush"), COCO_STUFF.index("wood")) == (0, 79, 170)
    assert not {"street sign", "hat", "plate", "mirror", "window", "desk", "door", "blender"} & set(
        COCO_STUFF.class_names
    )


def test_colours_are_distinct_far_from_white_and_a_longer_list_begins_with_the_shorter():
    everything = distinct_colours(255)
    assert len({*everything, IGNORE_COLOUR}) == 256
    for count in (1, 2, 60, 171):
        assert distinct_colours(count) == everything[:count]
    squares = np.array([*distinct_colours(171), IGNORE_COLOUR], dtype=float)
    gaps = np.linalg.norm(squares[:, None] - squares[None], axis=-1) + 1e9 * np.eye(172)
    assert gaps.min() > 17
    for count in (0, 256):
        with pytest.raises(ValueError, match=f"count={count}; expected 1 to 255"):
            distinct_colours(count)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file_values": (0, 1)}, r"file_values \(0, 1\); expected 11 different values"),
        ({"file_values": (0, *range(10))}, "expected 11 different values"),
        ({"file_values": (*range(10), 256)}, "from 0 to 255"),
        ({"file_values": tuple(range(20, 31)), "void_values": (25,)}, r"void_values \[25\] are labels"),
        ({"void_values": (256,)}, r"void_values \[256\]; a label file holds values from 0 to 255"),
    ],
)
def test_values_in_files_that_contradict_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(CAMVID, **change)


# --- reading ---------------------------------------------------------------------------------------------------------


def test_a_converted_tree_is_read_at_its_own_sizes_with_the_labels_of_its_maps(spec, data):
    dataset = ConvertedDataset(spec, "val")
    assert isinstance(dataset, SegmentationDataset)
    assert len(dataset) == FEW["val"]
    root = data / PUBLISHED_FOLDERS[spec.name][0]
    lines = [line.split("\t") for line in (root / "apd_labels" / "val.txt").read_text().splitlines()]
    for sample, (image, converted) in zip(dataset, lines, strict=True):
        stored = np.asarray(Image.open(root / converted)).astype(int)
        if spec is PASCAL_CONTEXT_59:
            stored = np.where(stored == 0, 255, stored - 1)
        assert np.array_equal(sample.labels_HW, stored)
        assert np.array_equal(sample.image_3HW.permute(1, 2, 0), np.asarray(Image.open(root / image).convert("RGB")))
        assert sample.name == Path(image).stem
    if spec is not CITYSCAPES:
        assert len({sample.labels_HW.shape for sample in dataset}) > 1
    assert ConvertedDataset(spec, "train", height=32, width=40)[0].image_3HW.shape == (3, 32, 40)


def test_the_59_classes_of_pascal_context_are_the_60_without_the_background():
    with_background, without = (ConvertedDataset(spec, "val") for spec in (PASCAL_CONTEXT_60, PASCAL_CONTEXT_59))
    for one, other in zip(with_background, without, strict=True):
        background = one.labels_HW == 0
        assert background.any()
        assert (other.labels_HW[background] == 255).all()
        assert torch.equal(other.labels_HW[~background] + 1, one.labels_HW[~background])


def test_what_fits_is_kept_in_memory_and_the_rest_is_read_when_it_is_asked_for(own, monkeypatch):
    val = own / "val"
    kept, fingerprint = ConvertedDataset(ADE20K, "val"), ConvertedDataset(ADE20K, "val").fingerprint()
    monkeypatch.setattr("apd.data.image_folder.CACHE_BYTES", 4 * 32 * 32 * 3)  # one of the three pictures is larger
    read = ConvertedDataset(ADE20K, "val")
    small = ConvertedDataset(ADE20K, "val", height=32, width=32)
    assert read.fingerprint() == fingerprint
    assert all(torch.equal(a.labels_HW, b.labels_HW) for a, b in zip(kept, read, strict=True))
    for path in val.iterdir():
        path.write_bytes(b"")
    assert len([kept[i] for i in range(3)]) == len([small[i] for i in range(3)]) == 3
    with pytest.raises(DataError, match="damaged or truncated"):
        read[0]


def test_check_reads_every_pair_and_counts_its_pixels(own):
    dataset = ConvertedDataset(ADE20K, "val", cache=False)
    counts, labels = dataset.check(), torch.cat([sample.labels_HW.flatten() for sample in dataset])
    assert counts.shape == (151,)
    assert counts[-1] == (labels == 255).sum() > 0
    assert counts[:-1].tolist() == torch.bincount(labels[labels != 255], minlength=150).tolist()
    path = sorted((own / "val").iterdir())[2]
    Image.fromarray(np.full_like(np.asarray(Image.open(path)), 150)).save(path)
    with pytest.raises(DataError, match=rf"{path.name} holds the label values 150 .*expected 0..149, or 255"):
        dataset.check()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda f: shutil.rmtree(f),
            MissingData,
            r"classes.json is missing: ade20k has not been converted; run `python ",
        ),
        (
            lambda f: (f / "val.txt").unlink(),
            MissingData,
            r"val.txt is missing: the conversion has not come to its end",
        ),
        (lambda f: (f / "classes.json").write_text("{"), DataError, r"classes.json is not what the conversion writes"),
        (lambda f: classes(f, lambda c: ["sky", *c[1:]]), DataError, r"has 'sky' in place of 'wall'; ade20k has other"),
        (lambda f: classes(f, lambda c: c[:-1]), DataError, r"has 149 classes; ade20k has other classes"),
        (
            lambda f: (f / "val.txt").write_text("a b\n"),
            DataError,
            r"val.txt line 1: 'a b'; expected image and label map",
        ),
        (lambda f: next((f / "val").iterdir()).unlink(), MissingData, r"ADE_val_\d+.png is missing, val.txt line \d"),
    ],
    ids=["no folder", "no list", "no json", "name", "fewer", "line", "map"],
)
def test_a_conversion_that_is_not_whole_or_of_other_classes_is_refused(own, change, error, message):
    change(own)
    with pytest.raises(error, match=message):
        ConvertedDataset(ADE20K, "val")


def classes(folder, change):
    file = folder / "classes.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "classes": change(content["classes"])}))


def test_a_data_set_that_is_not_there_is_told_with_its_script(spec, tmp_path, monkeypatch):
    monkeypatch.setenv("APD_DATA", str(tmp_path))
    folder, script = PUBLISHED_FOLDERS[spec.name]
    with pytest.raises(MissingData, match=rf"holds no folder {folder}/. .*python data_scripts/{script} fetch DEST"):
        build_split(DataConfig(name=spec.name), "train")


def test_labels_of_test_are_not_public_and_that_is_said(spec):
    with pytest.raises(ValueError, match=f"split='test': {spec.name} has labels for train, val only"):
        ConvertedDataset(spec, "test")
    with pytest.raises(ExperimentError, match=f"the labels of {spec.name}'s test are not public, so use val"):
        build_splits(DataConfig(name=spec.name, evaluation_split="test"))


# --- the longest side ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "long_side", "expected"),
    [
        ((512, 683), 512, (384, 512)),
        ((683, 512), 512, (512, 384)),
        ((300, 400), 512, (384, 512)),
        ((8, 8), 32, (32, 32)),
    ],
)
def test_the_longer_side_becomes_the_wanted_one_and_the_shape_stays(size, long_side, expected):
    assert long_side_size(*size, long_side) == expected


def test_a_very_thin_picture_keeps_a_pixel_and_nothing_below_one_is_taken():
    assert long_side_size(1, 3000, 512) == (1, 512)
    with pytest.raises(ValueError, match=r"height=0, width=4, long_side=512; expected at least 1"):
        long_side_size(0, 4, 512)
    with pytest.raises(ValueError, match="long_side=0"):
        LongSide(ConvertedDataset(ADE20K, "val"), 0)


def test_images_get_the_longest_side_and_labels_keep_their_size():
    plain = ConvertedDataset(ADE20K, "val")
    longer = LongSide(plain, 64)
    assert isinstance(longer, SegmentationDataset)
    assert longer.fingerprint() not in (plain.fingerprint(), LongSide(plain, 65).fingerprint())
    for one, other in zip(plain, longer, strict=True):
        assert max(other.image_3HW.shape) == 64
        assert torch.equal(one.labels_HW, other.labels_HW)
        assert one.name == other.name


# --- training and evaluation -----------------------------------------------------------------------------------------


class Shown(nn.Module):
    """Says of each pixel the class whose number is its red value, at half the input's size."""

    def __init__(self, num_classes):
        super().__init__()
        self.num_classes, self.scale = num_classes, nn.Parameter(torch.ones(()))

    def forward(self, images_B3HW):
        labels = (images_B3HW[:, 0, ::2, ::2] * 255).round().long().clamp(max=self.num_classes - 1)
        return SegOutput(
            nn.functional.one_hot(labels, self.num_classes).movedim(-1, 1).float() * self.scale, None, None
        )


@pytest.mark.parametrize("long_side", [0, 96])
def test_pictures_of_many_sizes_are_scored_on_their_own_labels(long_side):
    dataset = build_split(DataConfig(name="ade20k", height=0, width=0, long_side=long_side), "val")
    model = Shown(150).eval()
    matrix = confusion_of(model, dataset, batch_size=8)
    valid = sum(int((sample.labels_HW != 255).sum()) for sample in dataset)
    assert int(matrix.sum()) == valid
    one_by_one = sum(confusion_of(model, Single(dataset, i), batch_size=1) for i in range(3))
    assert torch.equal(matrix, one_by_one)


class Single:
    """One sample of a data set as a data set."""

    def __init__(self, dataset, index):
        self.dataset, self.index, self.spec = dataset, index, dataset.spec

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.dataset[range(self.index, self.index + 1)[index]]


def test_the_longest_side_is_for_evaluation_and_training_keeps_its_size():
    data = DataConfig(name="ade20k", height=0, width=0, long_side=96)
    splits = build_splits(data)
    assert {max(sample.image_3HW.shape) for sample in splits.val} == {96}
    assert {max(sample.image_3HW.shape) for sample in splits.train} == {32, 40, 48}
    assert splits.val is splits.evaluation


@pytest.mark.parametrize("name", SPECS)
def test_a_run_on_each_published_set_ends_with_its_record(name, tmp_path, monkeypatch):
    monkeypatch.setenv("APD_RUNS", str(tmp_path))
    data = DataConfig(name=name, height=0, width=0, long_side=64, crop_height=32, crop_width=32)
    record = train(replace(tiny("student", iterations=2, evaluations=1), data=data), device="cpu", progress=False)
    assert record.class_names == list(spec_of(data).class_names) == list(SPECS[name].class_names)
    assert record.content["data"]["images"] == FEW["val"]
    assert sum(map(sum, record.content["confusion"])) == sum(
        int((sample.labels_HW != 255).sum()) for sample in build_split(data, "val")
    )


SAMPLES = Path(os.environ.get("APD_DATA", "nowhere")) / "ade20k_sample" / "sampleData"


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="APD_DATA holds no ade20k_sample/")
def test_the_three_real_pictures_of_ade20k_are_read_without_conversion_too():
    raw = replace(ADE20K, file_values=tuple(range(1, 151)), void_values=(0,))
    pairs = [(path, SAMPLES / "annotations" / f"{path.stem}.png") for path in sorted((SAMPLES / "images").iterdir())]
    dataset = FolderDataset(raw, pairs)
    assert [tuple(sample.image_3HW.shape[1:]) for sample in dataset] == [(512, 683), (364, 500), (300, 400)]
    # what a person sees in the first: a wall, a building, the sky, a tree
    seen = {ADE20K.class_names[label] for label in dataset[0].labels_HW.unique() if label != 255}
    assert {"building", "sky", "tree"} <= seen
    assert [max(sample.image_3HW.shape) for sample in LongSide(dataset, 512)] == [512, 512, 512]
