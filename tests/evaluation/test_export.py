"""What is exported, a file for other programs or a folder in the layout of the Hugging Face hub, is the student."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from bad_input import refused
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from onnxruntime.capi.onnxruntime_pybind11_state import Fail
from own_folders import leave
from PIL import Image
from small_experiments import copied, equal, tiny
from timm.layers import create_conv2d
from torch import nn

from apd.data.specs import SCENES
from apd.evaluation import export
from apd.evaluation.average_precision import image_ids
from apd.evaluation.export import ExportError, export_network, pool_by_matrices
from apd.evaluation.predict import overlay
from apd.models import Segmenter, build_segmenter
from apd.training.run import run_folder, train, trained_network

SIDES = st.integers(1, 30)
OTHER_SIZES = ((1, 32, 32), (2, 75, 41), (5, 33, 130))
SMALL = {"backbone": "test_efficientnet", "num_classes": 5, "head_width": 8}


class Small(nn.Module):
    """A strided convolution, two poolings to a grid, a resize: what makes free sizes hard."""

    def __init__(self, stem=None, classes=4):
        super().__init__()
        torch.manual_seed(0)
        self.stem = stem or nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.classifier = nn.Conv2d(18, classes, 1)

    def forward(self, images):
        maps = self.stem(images)
        pooled = [F.adaptive_avg_pool2d(maps, 1), nn.AdaptiveAvgPool2d((3, 2))(maps)]
        wide = [F.interpolate(part, maps.shape[-2:], mode="bilinear", align_corners=True) for part in pooled]
        return SimpleNamespace(logits=self.classifier(torch.cat([maps, *wide], 1)))


def at_full_size(model, images):
    with torch.no_grad():
        return F.interpolate(model(images).logits, images.shape[-2:], mode="bilinear", align_corners=True)


def random_images(batch, height, width):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(7))


def in_onnxruntime(path):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


@given(height=SIDES, width=SIDES, rows=st.integers(1, 7), columns=st.integers(1, 7))
def test_matrices_pool_as_adaptive_pooling_does(height, width, rows, columns):
    maps = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(height))
    expected = F.adaptive_avg_pool2d(maps, (rows, columns))
    torch.testing.assert_close(pool_by_matrices(maps, (rows, columns)), expected)
    torch.testing.assert_close(pool_by_matrices(maps[0], (rows, columns)), expected[0])


def test_a_program_computes_the_networks_logits_at_any_batch_height_and_width(tmp_path):
    model, path = Small().train(), tmp_path / "net.pt2"
    made = export_network(model, path, size=(48, 64))
    assert model.training
    assert made[:3] == (path, path.stat().st_size, 1)
    assert made.sizes == ((1, 48, 64), (3, 36, 80))
    assert 0 <= made.difference < 1e-5
    assert list(tmp_path.iterdir()) == [path]
    run = torch.export.load(path).module()
    for size in OTHER_SIZES:
        images = random_images(*size)
        torch.testing.assert_close(run(images), at_full_size(model, images), rtol=1e-4, atol=1e-5)
    # and where this package is not installed
    code = f"torch.export.load({str(path)!r}).module()(torch.zeros(1, 3, 40, 33)).shape"
    code = f"import sys, torch; sys.modules['apd'] = None; print(tuple({code}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert result.stdout.strip() == "(1, 4, 40, 33)", result.stderr


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """A student whose norms have statistics, and its ONNX file of any size."""
    torch.manual_seed(0)
    model = build_segmenter("test_efficientnet", 5, head_width=16, output_stride=8, fit_sides=True)
    with torch.no_grad():
        for _ in range(3):
            model.train()(torch.rand(4, 3, 64, 64))
    path = tmp_path_factory.mktemp("export") / "student.onnx"
    names = ("road", "sky", "tree", "car", "a, b")
    assert export_network(model.eval(), path, size=(64, 96), class_names=names).multiple == 1
    return model, path


def test_the_file_answers_at_any_size_and_holds_the_students_inference_and_nothing_else(student):
    model, path = student
    for size in OTHER_SIZES:
        images = random_images(*size)
        torch.testing.assert_close(in_onnxruntime(path)(images), at_full_size(model, images), rtol=1e-4, atol=1e-5)
    graph = onnx.load(path).graph
    assert [value.name for value in (*graph.input, *graph.output)] == ["images", "logits"]
    for value, channels in ((graph.input[0], 3), (graph.output[0], 5)):
        axes = [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        assert axes == ["batch", channels, "height", "width"]
    # norms are folded into the convolutions before them: their biases are named after the weights
    names = {tensor.name.removeprefix("network.").removesuffix("_bias") for tensor in graph.initializer}
    assert {name for name in names if name.endswith(("weight", "bias"))} <= set(model.state_dict())
    everything = [node.name for node in graph.node] + [tensor.name for tensor in graph.initializer]
    assert not [name for name in everything if re.search("aux|teacher|project|distil|prototype|apd", name)]
    kept = sum(np.prod(tensor.dims) for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT)
    held = sum(value.numel() for name, value in model.state_dict().items() if not name.startswith("aux_head"))
    assert 0.9 * held < kept <= held + 100


def test_the_file_says_what_it_expects_and_nothing_of_the_machine_that_wrote_it(student, tmp_path):
    about = {entry.key: entry.value for entry in onnx.load(student[1]).metadata_props}
    assert "[0, 1]" in about["input"]
    assert about["height and width"] == "any from 32"
    assert json.loads(about["classes"]) == ["road", "sky", "tree", "car", "a, b"]
    made, extra = export_network(Small(), tmp_path / "small.pt2", size=(32, 32), class_names="abcd"), {"about.json": ""}
    torch.export.load(made.path, extra_files=extra)
    assert json.loads(json.loads(extra["about.json"])["classes"]) == ["a", "b", "c", "d"]
    with zipfile.ZipFile(made.path) as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    for written in (content, student[1].read_bytes()):
        assert export.__file__.encode() not in written
        assert b'File "' not in written


def test_paddings_that_follow_the_size_are_written_for_multiples_of_32(tmp_path):
    model = Small(create_conv2d(3, 6, 3, stride=2, padding="same"))
    for suffix, runner in ((".onnx", in_onnxruntime), (".pt2", lambda path: torch.export.load(path).module())):
        made = export_network(model, tmp_path / f"net{suffix}", size=(40, 64))
        assert made.multiple == 32
        assert made.sizes == ((1, 64, 64), (3, 64, 96))
        assert "height and width multiples of 32 from 64;" in str(made)
        images = random_images(2, 96, 160)
        torch.testing.assert_close(runner(made.path)(images), at_full_size(model, images), rtol=1e-4, atol=1e-5)
        for size in ((72, 64), (64, 72)):
            with pytest.raises((AssertionError, Fail)):
                runner(made.path)(random_images(1, *size))


def test_a_file_that_computes_something_else_or_branches_on_values_is_not_kept(tmp_path, monkeypatch):
    class Branching(Small):
        def forward(self, images):
            return super().forward(images if float(images.mean()) > 0.5 else 1 - images)

    (tmp_path / "net.pt2").write_text("an earlier one")
    with pytest.raises(ExportError, match=r"cannot be traced by torch\.export: "):
        export_network(Branching(), tmp_path / "net.pt2", size=(32, 32))
    monkeypatch.setattr(export, "pool_by_matrices", lambda maps, size: 1.01 * pool_by_matrices(maps, size))
    with pytest.raises(ExportError, match=r"does not compute what the network does: logits differ by .* at 1×32×32"):
        export_network(Small(), tmp_path / "net.pt2", size=(32, 32))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"net.pt2": "an earlier one"}


def test_what_cannot_be_written_is_refused_before_anything_is_traced(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_traced", lambda *_: pytest.fail("traced"))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / "file").touch()
    advice = r"needs the package onnxruntime: install it with `pip install -e '\.\[export\]'`"
    for name, message in (
        ("file/net.pt2", "cannot be written"),
        ("net.txt", r"path: got '.*net\.txt', expected a name that ends with \.onnx or \.pt2"),
        ("net.onnx", advice),
    ):
        with pytest.raises((ExportError, ValueError), match=message):
            export_network(Small(), tmp_path / name, size=(32, 64))


def test_an_overlay_mixes_image_and_colours_and_keeps_ignored_pixels():
    labels = np.array([[0, 9, 255]], dtype=np.uint8)
    mixed = np.asarray(overlay(Image.new("RGB", (3, 1), (100, 100, 100)), labels, SCENES, opacity=0.5))
    expected = [[round(50 + channel / 2) for channel in SCENES.palette[k]] for k in (0, 9)]
    assert np.abs(mixed[0, :2].astype(int) - expected).max() <= 1
    assert mixed[0, 2].tolist() == [100, 100, 100]


def test_images_are_numbered_by_their_names_where_all_are_different_numbers():
    for stems, numbers in ((("000139", "285"), [139, 285]), (("1", "01"), [1, 2]), (("7", "street"), [1, 2])):
        assert image_ids([Path(f"{stem}.jpg") for stem in stems], {"a.jpg": 7}) == numbers
    assert image_ids([Path("in/a.jpg"), Path("2.jpg")], {"a.jpg": 7, "2.jpg": 5, "c.jpg": 1}) == [7, 5]


@pytest.fixture
def folder(tmp_path):
    build_segmenter(**SMALL).save_pretrained(tmp_path / "net")
    return tmp_path / "net"


@pytest.mark.parametrize(
    "choices", [{"dropout": 0.3}, {"head": "aspp", "output_stride": 16, "aspp_reach": 96, "fit_sides": True}]
)
def test_a_network_comes_back_bit_by_bit_and_can_be_saved_again(choices, tmp_path):
    model, images = build_segmenter(**SMALL, **choices).eval(), torch.rand(2, 3, 40, 72)
    model.save_pretrained(tmp_path / "a" / "net")
    again = Segmenter.from_pretrained(tmp_path / "a" / "net")
    assert not again.training
    assert equal(copied(again), copied(model))
    assert torch.equal(again(images).logits, model(images).logits)
    again.save_pretrained(tmp_path / "b")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / "net" / name).read_bytes()


def test_export_writes_a_runs_student_with_its_classes_its_size_and_a_card_of_its_scores(runs, tmp_path, capsys):
    record, to = train(tiny("apd")), tmp_path / "net"
    assert leave("export", run_folder(tiny("apd")), "--to", f"{to}/") == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{to}: config.json, model.safetensors, README.md"
    model, student = Segmenter.from_pretrained(to), trained_network(tiny("apd"))
    assert equal(copied(model), copied(student))
    assert list(model.config["id2label"].values()) == record.class_names
    assert model.config["image_size"] == [32, 48]
    assert model.config["image_mean"] == pytest.approx([0.485, 0.456, 0.406])
    card = ModelCard.load(to / "README.md")
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    scores = {"mIoU": record.scores.miou, "mAcc": record.scores.macc, "aAcc": record.scores.aacc}
    assert found == pytest.approx(scores, abs=1e-6)
    assert card.data.license is None
    assert "taught by APD." in card.text
    code = card.text.split("```python")[1].split("```")[0]
    exec(code.replace("FOLDER_OR_NAME", str(to)), {"images_B3HW": torch.rand(1, 3, 32, 48)})
    (to / "README.md").write_text("license: mine")
    assert leave("export", run_folder(tiny("apd")), "--to", to) == 0
    assert capsys.readouterr().out.endswith("README.md, which was there and is kept as it was\n")
    assert (to / "README.md").read_text() == "license: mine"
    assert leave("export", run_folder(tiny("apd")), "--to", to / "net.pt2") == 0
    assert "height and width any from 32; largest difference" in capsys.readouterr().out
    program, images = torch.export.load(to / "net.pt2"), torch.rand(1, 3, 45, 37)
    torch.testing.assert_close(program.module()(images), at_full_size(student, images), rtol=1e-4, atol=1e-4)


def changed(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    config["network"] |= fields.pop("network", {})
    (folder / "config.json").write_text(json.dumps(config | fields))


SPOILT = {
    "no config": (lambda folder: (folder / "config.json").unlink(), ("config.json", "No such file")),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), ("model.safetensors", "No such file")),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), ("config.json", "JSONDecodeError")),
    "another architecture": (
        lambda folder: changed(folder, architectures=["SegformerForSemanticSegmentation"]),
        ("config.json", "it is of ['SegformerForSemanticSegmentation'], expected ['apd.models.Segmenter']"),
    ),
    "no such backbone": (lambda folder: changed(folder, network={"backbone": "resnet19"}), ("config.json", "resnet19")),
    "of another width": (lambda folder: changed(folder, network={"head_width": 12}), ("model.safetensors", "differ")),
    "no folder": (shutil.rmtree, ("expected a folder with config.json and model.safetensors, or a repository",)),
}


@pytest.mark.parametrize("spoil", SPOILT)
def test_what_is_missing_or_wrong_in_a_folder_is_one_message(spoil, folder):
    do, names = SPOILT[spoil]
    do(folder)
    refused(lambda: Segmenter.from_pretrained(folder), RuntimeError, names=names)


def test_what_a_folder_cannot_hold_is_refused(tmp_path, monkeypatch, capsys):
    model = build_segmenter(**SMALL)
    model.config = {}
    with pytest.raises(ValueError, match="was not made by build_segmenter"):
        model.save_pretrained(tmp_path / "net")
    network = SimpleNamespace(builder="nets.py:build")
    experiment = SimpleNamespace(task="segmentation", data=tiny().data, network=network)
    monkeypatch.setattr("apd.cli.using.record_of", lambda _: SimpleNamespace(experiment=experiment))
    assert leave("export", "run", "--to", f"{tmp_path}/net/") == 2
    assert "this run's is made by nets.py:build, whose code the folder would lack" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
