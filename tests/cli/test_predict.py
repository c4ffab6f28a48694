"""`apd predict` on files, folders, patterns and videos: what is written and refused, and the memory that it takes."""

import os
import resource
import sys

import av
import numpy as np
import pytest
import torch
from own_folders import leave
from pandas import read_csv
from PIL import Image
from small_experiments import Convolution, exit_code

from apd.cli import using
from apd.config.inference_options import InferenceOptions
from apd.data.batches import unit_range
from apd.data.specs import SCENES
from apd.evaluation import predict as predictions
from apd.evaluation.inference import predict_labels, resized
from apd.evaluation.predict import label_maps, overlay

WINDOWS = ("--sliding-window", "0.667")


@pytest.fixture
def run(finished, monkeypatch):
    """The folder of a finished run, with a network in its place that distinguishes colours."""
    network = Convolution(classes=10).eval()
    monkeypatch.setattr(using, "trained_network", lambda *_, **__: network)
    return finished


def pixels_of(height, width, seed=0):
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST))


def write(path, height=40, width=60):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels_of(height, width, len(path.name))).save(path)
    return path


def film(path, frames=5):
    """A video whose frames become lighter."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames):
            shown = np.full((48, 64, 3), 50 * number, dtype=np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
        file.mux(stream.encode())
    return path


def expected_of(pixels_HW3):
    images = unit_range(torch.tensor(pixels_HW3).permute(2, 0, 1))[None]
    return predict_labels(Convolution(classes=10).eval(), resized(images, (32, 48)), pixels_HW3.shape[:2])[0].numpy()


def test_folders_patterns_and_files_are_predicted_once_each_in_batches_as_one_by_one(run, tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "in" / "out"
    sizes = {"a.png": (40, 60), "b/c.bmp": (40, 60), "b/d.tif": (64, 33), "e.png": (40, 60), "f.webp": (40, 60)}
    paths = [write(folder / name, *size) for name, size in sizes.items()]
    (folder / "notes.txt").touch()
    for batch in (3, 1):  # the second time what was written is not taken for images
        assert leave("predict", run, folder, folder / "*.png", paths[0], "--to", out, "--batch", batch) == 0
        written = [out / f"{path.stem}-{kind}.png" for path in paths for kind in ("labels", "overlay")]
        assert capsys.readouterr().out.splitlines() == [*map(str, written), str(out / "predictions.csv")]
        table = read_csv(out / "predictions.csv")
        assert table["file"].tolist() == [str(path) for path in paths]
        assert list(zip(table["height"], table["width"], strict=True)) == list(sizes.values())
        for path, (_, row) in zip(paths, table.iterrows(), strict=True):
            pixels = np.asarray(Image.open(path).convert("RGB"))
            with Image.open(out / f"{path.stem}-labels.png") as image:
                assert image.getpalette()[:30] == [channel for colour in SCENES.palette for channel in colour]
                labels = np.asarray(image)
            assert (labels == expected_of(pixels)).mean() > 0.999
            shares = np.bincount(labels.ravel(), minlength=10) / labels.size
            assert 0 < shares.max() < 1
            np.testing.assert_allclose(row[list(SCENES.class_names)].astype(float), shares, atol=1e-6)
            over = overlay(Image.fromarray(pixels), labels, SCENES)
            assert np.array_equal(Image.open(out / f"{path.stem}-overlay.png"), over)


def test_every_nth_frame_of_a_video_is_predicted_under_its_number(run, tmp_path):
    assert leave("predict", run, film(tmp_path / "street.mp4"), "--to", tmp_path / "out", "--every", "2") == 0
    assert read_csv(tmp_path / "out" / "predictions.csv")["frame"].tolist() == [0, 2, 4]
    for number in (0, 2, 4):
        found, shown = tmp_path / "out" / f"street-{number:06d}-labels.png", np.full((48, 64, 3), 50 * number, np.uint8)
        assert (np.asarray(Image.open(found)) == expected_of(shown)).mean() > 0.99


@pytest.mark.parametrize("size", [(50, 70), (20, 70), (50, 9), (10, 10)])
def test_windows_strip_by_strip_give_the_labels_of_the_whole_also_beyond_pillows_limit(size, monkeypatch):
    model, pictures = Convolution(5, 10).eval(), [pixels_of(*size, seed) for seed in range(2)]
    options = InferenceOptions(window=(16, 24), stride=0.6, flip=True)
    images = unit_range(torch.tensor(np.stack(pictures)).permute(0, 3, 1, 2))
    expected = predict_labels(model, images, inference=options)
    found = label_maps(model, [Image.fromarray(p) for p in pictures], size, options)
    assert (found == expected.numpy()).mean() > 0.999
    monkeypatch.setattr(predictions, "LARGE", size[0] * size[1] - 1)
    beyond = label_maps(model, [Image.fromarray(pictures[0])], (32, 48), options)  # at its own size nevertheless
    assert (beyond[0] == expected[0].numpy()).mean() > 0.999


def memory_of_large_images(run, folder):
    """Print the largest resident set before and after an image of 6 megapixels, where 4 are too many, in MiB."""
    os.chdir(folder)
    using.trained_network = lambda *_, **__: Convolution(classes=10).eval()
    predictions.LARGE = 4_000_000
    for name, side, options in (("small.png", 64, []), ("large.tif", 2400, ["--sliding-window", "1"])):
        Image.new("RGB", (side, side), (9, 99, 200)).save(name)
        assert leave("predict", run, name, "--to", "out", *options) == 0
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def test_memory_for_an_image_beyond_pillows_limit_is_that_of_its_pixels_and_strips(run, tmp_path):
    assert exit_code(memory_of_large_images, run, tmp_path, output=tmp_path / "printed") == 0
    before, after = (float(line) for line in (tmp_path / "printed").read_text().splitlines() if line[0].isdigit())
    logits = 10 * 2400 * 2400 * 4 / 2**20
    assert after - before < logits / 2
    with Image.open(tmp_path / "out" / "large-labels.png") as image:
        assert image.size == (2400, 2400)


def test_what_cannot_be_read_is_named_in_a_line_and_all_else_is_done(run, tmp_path, monkeypatch, capsys):
    for name in ("a.png", "e.png", "clip-000001.png"):
        write(tmp_path / name)
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:150])
    write(tmp_path / "large.png", 200, 300)
    content = film(tmp_path / "clip.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[:700])
    (tmp_path / "none.mp4").write_text("no video")
    monkeypatch.setattr(predictions, "LARGE", 10000)
    assert leave("predict", run, tmp_path, "--to", tmp_path / "out") == 1
    lines = capsys.readouterr().err.splitlines()
    expected = {
        "b.png": "cannot be read as an image",
        "clip.mp4": "another file is named as its frame 1, clip-000001; rename one",
        "cut.mp4": "cannot be read as a video",
        "large.png": "; cut it into smaller ones, or give --sliding-window 0.667 and no --scales",
        "none.mp4": "cannot be read as a video (Invalid data",
    }
    for line, (name, message) in zip(lines, expected.items(), strict=True):
        assert line.startswith(f"apd: {tmp_path / name}")
        assert message in line
    done = read_csv(tmp_path / "out" / "predictions.csv")["file"].str.removeprefix(f"{tmp_path}/").tolist()
    assert done == ["a.png", "clip-000001.png", "clip.mp4", "e.png"]
    assert leave("predict", run, tmp_path / "large.png", "--to", tmp_path / "out", *WINDOWS) == 0
    monkeypatch.setitem(sys.modules, "av", None)
    assert leave("predict", run, tmp_path / "clip.mp4", "--to", tmp_path / "out") == 1
    assert "a video needs the package av: install it with `pip install -e '.[video]'`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        (["empty"], 1, "empty: there is no image or video; expected files of .png"),
        (["*.jpg"], 1, "*.jpg: there is no image or video"),
        (["a.png", "a-labels.png", "--to", "."], 1, "a-labels.png would be overwritten by what is predicted for"),
        (["a.png", "--batch", "0"], 2, "--batch 0: expected a whole number of at least 1"),
    ],
)
def test_what_names_nothing_is_refused_before_a_file_is_written(given, code, said, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.png"), write(tmp_path / "a-labels.png"), (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert leave("predict", run, *given) == code
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""
    assert sorted(tmp_path.rglob("*")) == before
