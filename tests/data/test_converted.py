"""CamVid, LabelMeFacade and converted trees as their scripts leave them: read, checked, trained on and evaluated."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bad_input import refused
from miniatures import FEW, WRITERS, write_camvid, write_converted, write_labelmefacade
from PIL import Image
from small_experiments import dry_run_report, tiny

from apd.config.datasets import build_split, build_splits, spec_of
from apd.config.experiment import DataConfig, ExperimentError
from apd.data.converted import PUBLISHED_FOLDERS, CamVid, ConvertedDataset, LabelMeFacade, listed_splits
from apd.data.images import DataError, MissingData
from apd.data.specs import ADE20K, CAMVID, CITYSCAPES, COCO_STUFF, PASCAL_CONTEXT_59, PASCAL_CONTEXT_60
from apd.training.record import Record, RecordError
from apd.training.run import train

SPECS = (CITYSCAPES, ADE20K, PASCAL_CONTEXT_59, PASCAL_CONTEXT_60, COCO_STUFF)
each_set = pytest.mark.parametrize("spec", SPECS, ids=[spec.name for spec in SPECS])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Miniatures of all sets, as their scripts leave them; tests must not change them."""
    parent = tmp_path_factory.mktemp("data")
    write_camvid(parent / "CamVid")
    write_labelmefacade(parent / "LabelMeFacade")
    for name in WRITERS:
        write_converted(parent, name)
    return parent


@pytest.fixture(autouse=True)
def _found(data, runs, monkeypatch):
    monkeypatch.setenv("APD_DATA", str(data))


def test_camvid_has_the_standard_split_in_the_order_of_its_lists_and_half_of_it_is_refused(data, tmp_path):
    for split, count in CAMVID.splits:
        names = [sample.name for sample in CamVid(data / "CamVid", split)]
        listed = (data / "CamVid" / f"{split}.txt").read_text().splitlines()
        assert (len(names), names) == (count, [Path(line.split()[0]).stem for line in listed])
    half = Path(shutil.copytree(data / "CamVid", tmp_path / "CamVid", copy_function=os.link))
    for path in sorted((half / "trainannot").iterdir())[:150]:
        path.unlink()
    shutil.rmtree(half / "testannot")
    refused(lambda: CamVid(half, "val"), DataError, names=("trainannot/ 217 of 367", "testannot/ 0 of 233", "fetch"))
    refused(lambda: CamVid(data / "CamVid", "valid"), ValueError, names=("split='valid' ", " train, val, test"))
    refused(lambda: CamVid(tmp_path / "no", "train"), MissingData, names=("no is not complete", "camvid.py fetch DEST"))


def test_labelmefacade_gives_the_images_of_its_lists_and_names_what_is_missing(data, tmp_path, monkeypatch):
    for split, stems in listed_splits().items():
        dataset = LabelMeFacade(split)
        assert [pair[0].stem for pair in dataset.pairs] == list(stems)
        assert {tuple(sample.labels_HW.shape) for sample in dataset} == {(32, 48), (40, 32)}
        assert set(np.unique(dataset[0].labels_HW)) <= {*range(8), 255}
    refused(lambda: LabelMeFacade("tset"), ValueError, names=("split='tset' is unknown; ", " train, val, test"))
    stems = listed_splits()["val"]
    for name in (f"images/{stems[0]}.jpg", f"labels/{stems[0]}.png"):
        (own := tmp_path / "LabelMeFacade" / name).parent.mkdir(parents=True)
        shutil.copy(data / "LabelMeFacade" / name, own)
    monkeypatch.setenv("APD_DATA", str(tmp_path))
    message = f"lacks {stems[1]} and 79 more of the 81 images of val"
    refused(lambda: LabelMeFacade("val"), MissingData, names=(message, "move it away and run `python"))
    shutil.rmtree(tmp_path / "LabelMeFacade")
    refused(
        lambda: LabelMeFacade("night"), MissingData, names=("labelmefacade.py fetch DEST`, then", "convert DEST/La")
    )


def test_a_run_scored_on_test_is_scored_out_of_place_as_well():
    small = {"height": 0, "width": 0, "crop_height": 32, "crop_width": 32, "long_side": 48}
    data = DataConfig(name="labelmefacade", evaluation_split="test", **small)
    experiment = replace(tiny(iterations=1, evaluations=0), data=data, name="student-seed0")
    assert dry_run_report(experiment, steps=1)[0] == []
    record = train(experiment)
    others = record.content["other_splits"]
    scored = [record.content["data"], *others.values()]
    assert [*others] == ["test_out_of_place", "night"]
    assert [split["images"] for split in scored] == [200, 268, 12]
    assert len({split["fingerprint"] for split in scored}) == 3
    assert record.scores_on("test").miou == record.scores.miou
    refused(lambda: record.scores_on("nihgt"), RecordError, names=("'nihgt' was not scored", "test, test_out_of_"))
    damaged = {**record.content, "other_splits": {"night": {**others["night"], "confusion": [[1]]}}}
    refused(lambda: Record(damaged), RecordError, names=("other_splits.night.confusion must be a 8 x 8 matrix",))
    refused(lambda: DataConfig(name="camvid", evaluation_split="night"), ExperimentError, names=("val or test: cam",))
    assert build_splits(replace(data, evaluation_split="val")).others == {}


@each_set
def test_a_converted_tree_is_read_at_its_own_sizes_with_the_labels_of_its_maps(spec, data):
    dataset = ConvertedDataset(spec, "val")
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, r"classes.json is missing: ade20k has not been converted; run `python "),
        (lambda f: (f / "val.txt").unlink(), r"val.txt is missing: the conversion has not come"),
        (lambda f: (f / "classes.json").write_text("{"), r"classes.json is not what the conversion writes"),
        (lambda f: (f / "classes.json").write_text('{"classes": ["sky"]}'), r"has 'sky' in place of 'wall'; ade20k"),
        (lambda f: (f / "classes.json").write_text('{"classes": ["wall"]}'), r"has 1 classes; ade20k has other cl"),
        (lambda f: (f / "val.txt").write_text("a b\n"), r"val.txt line 1: 'a b'; expected image and label"),
        (lambda f: next((f / "val").iterdir()).unlink(), r"ADE_val_\d+.png is missing, val.txt line \d"),
    ],
)
def test_a_conversion_not_whole_or_of_other_classes_is_refused(data, tmp_path, monkeypatch, change, message):
    own = shutil.copytree(data / "ADEChallengeData2016", tmp_path / "ADEChallengeData2016")
    monkeypatch.setenv("APD_DATA", str(tmp_path))
    change(own / "apd_labels")
    with pytest.raises(DataError, match=message):
        ConvertedDataset(ADE20K, "val")


@each_set
def test_a_run_on_each_published_set_ends_with_its_record_and_a_missing_one_is_named(spec, tmp_path, monkeypatch):
    data = DataConfig(name=spec.name, height=0, width=0, long_side=64, crop_height=32, crop_width=32)
    record = train(replace(tiny("student", iterations=2, evaluations=1), data=data), device="cpu", progress=False)
    splits = build_splits(data)
    assert splits.val is splits.evaluation
    assert {max(sample.image_3HW.shape) for sample in splits.val} == {64}
    assert {max(sample.image_3HW.shape) for sample in splits.train} <= {32, 40, 48}, "training keeps its size"
    assert record.class_names == list(spec_of(data).class_names) == list(spec.class_names)
    assert record.content["data"]["images"] == FEW["val"]
    valid = sum(int((sample.labels_HW != 255).sum()) for sample in build_split(data, "val"))
    assert sum(map(sum, record.content["confusion"])) == valid
    message = ("split='test'", f"val, for which {spec.name} has")
    refused(lambda: ConvertedDataset(spec, "test"), ValueError, names=message)
    with pytest.raises(ExperimentError, match=f"the labels of {spec.name}'s test are not public, so use val"):
        build_splits(DataConfig(name=spec.name, evaluation_split="test"))
    monkeypatch.setenv("APD_DATA", str(tmp_path))
    folder, script = PUBLISHED_FOLDERS[spec.name]
    message = (f"no folder {folder}/", script)
    refused(lambda: build_split(DataConfig(name=spec.name), "train"), MissingData, names=message)
