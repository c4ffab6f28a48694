"""A network as a folder in the layout of the Hugging Face hub: what is in it comes back bit by bit, or is refused."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from bad_input import refused
from huggingface_hub import ModelCard
from own_folders import leave
from small_experiments import copied, equal, tiny
from torch.nn.functional import interpolate

from apd.models import Segmenter, build_segmenter
from apd.training.run import run_folder, train, trained_network

SMALL = {"backbone": "test_efficientnet", "num_classes": 5, "head_width": 8}


@pytest.fixture
def folder(tmp_path):
    build_segmenter(**SMALL).save_pretrained(tmp_path / "net")
    return tmp_path / "net"


@pytest.mark.parametrize("choices", [{"dropout": 0.3}, {"head": "aspp", "output_stride": 16, "aspp_reach": 96}])
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
    expected = interpolate(student(images).logits, (45, 37), mode="bilinear", align_corners=True)
    torch.testing.assert_close(program.module()(images), expected, rtol=1e-4, atol=1e-4)


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
