"""Label maps of whole images, scores of a network on a data set, and pictures as files."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from small_experiments import DATA, NETWORK
from torch import nn

from apd.config.datasets import build_split
from apd.data.image_folder import DataError
from apd.data.specs import SCENES, Sample
from apd.evaluation.inference import (
    agreement_of,
    autocast,
    confusion_of,
    predict_dataset,
    predict_labels,
    resolve_precision,
)
from apd.evaluation.metrics import ConfusionMatrix, scores
from apd.evaluation.predict import overlay, predict_image
from apd.training.segmentation import build_network

CPU = torch.device("cpu")


class Output(NamedTuple):
    logits: torch.Tensor


class ByRed(nn.Module):
    """A network that reads the class from the red channel: class k where red is k/255, or k + shift."""

    def __init__(self, shift=0):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(shift), requires_grad=False)

    def forward(self, images):
        classes = (images[:, 0] * 255).round().long() + self.shift
        return Output(nn.functional.one_hot(classes % 10, 10).permute(0, 3, 1, 2).float())


class Noise:
    """Images whose red value is their label; one pixel of each is to be ignored."""

    spec = SCENES

    def __init__(self, count, size=(32, 48)):
        random = torch.Generator().manual_seed(count)
        self.labels = [torch.randint(0, 10, size, generator=random).byte() for _ in range(count)]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        marked = self.labels[index].clone()
        marked[0, 0] = 255
        return Sample(self.labels[index][None].repeat(3, 1, 1), marked, f"noise-{index}")


def test_logits_are_brought_to_the_wanted_grid_before_the_arg_max():
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 3, 5)

    class Fixed(nn.Module):
        def forward(self, _images):
            return Output(logits)

    found = predict_labels(Fixed().eval(), torch.zeros(2, 3, 9, 13))
    for y in range(9):  # bilinear with align_corners, written out
        for x in range(13):
            at_y, at_x = y * 2 / 8, x * 4 / 12
            top, left = min(int(at_y), 1), min(int(at_x), 3)
            down, right = at_y - top, at_x - left
            upper = logits[:, :, top, left] * (1 - right) + logits[:, :, top, left + 1] * right
            lower = logits[:, :, top + 1, left] * (1 - right) + logits[:, :, top + 1, left + 1] * right
            assert torch.equal(found[:, y, x], (upper * (1 - down) + lower * down).argmax(1))
    assert predict_labels(Fixed().eval(), torch.zeros(2, 3, 9, 13), (4, 6)).shape == (2, 4, 6)


def test_a_network_in_training_mode_is_refused():
    with pytest.raises(ValueError, match=r"model is in training mode: call model\.eval\(\) first"):
        predict_labels(ByRed().train(), torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("batch_size", [1, 2, 5, 8])
def test_every_image_is_scored_once_whatever_the_batch_size(batch_size):
    data, model = Noise(5), ByRed()
    matrix = confusion_of(model, data, batch_size=batch_size)
    reference = ConfusionMatrix(10)
    for image, labels, _name in data:
        reference.update(predict_labels(model.eval(), image[None].float() / 255)[0], labels)
    assert torch.equal(matrix, reference.matrix_KK)
    assert matrix.sum() == 5 * (32 * 48 - 1)  # the ignored pixel is not there


def test_scoring_does_not_depend_on_the_mode_and_restores_it():
    data = build_split(DATA, "val")
    model = build_network(NETWORK, 10, CPU, seed=0).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    matrix = confusion_of(model, data)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(confusion_of(model.eval(), data), matrix)
    assert not model.training


def test_the_mode_is_restored_after_an_error():
    class Broken(Noise):
        def __getitem__(self, index):
            raise DataError("no such image")

    model = ByRed().train()
    with pytest.raises(DataError):
        confusion_of(model, Broken(2))
    with pytest.raises(DataError):
        agreement_of(model, ByRed().eval(), Broken(2))
    assert model.training


def test_agreement_counts_pairs_of_predictions_at_valid_pixels():
    data, student, teacher = Noise(3), ByRed(), ByRed(shift=1)
    matrix = agreement_of(student, teacher, data, batch_size=2)
    by_student, by_teacher = confusion_of(student, data), confusion_of(teacher, data)
    assert torch.equal(by_student.sum(1), by_student.diagonal())  # it is always right, the teacher one class further
    assert torch.equal(matrix, by_student.roll(1, 0))
    assert torch.equal(by_teacher, by_student.roll(1, 1))
    assert scores(agreement_of(teacher, teacher, data)).aacc == 1


def test_several_networks_see_the_same_images():
    data = Noise(3)
    seen = []
    for (one, other), labels, names in predict_dataset([ByRed().eval(), ByRed(shift=2).eval()], data, batch_size=2):
        assert one.shape == other.shape == labels.shape
        assert torch.equal((one + 2) % 10, other)
        seen += names
    assert seen == ["noise-0", "noise-1", "noise-2"]


def test_whoever_takes_predictions_does_not_run_in_their_autocast():
    for _ in predict_dataset([ByRed().eval()], Noise(2), precision="bf16"):
        assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(
    ("device", "asked", "native", "meant"),
    [
        ("cpu", "auto", True, "bf16"),
        ("cpu", "auto", False, "fp32"),
        ("cpu", "fp32", True, "fp32"),
        ("cpu", "bf16", False, "bf16"),
        ("cuda", "auto", True, "bf16"),
        ("cuda", "auto", False, "fp32"),
        ("cuda", "fp32", True, "fp32"),
    ],
)
def test_auto_is_bf16_just_where_the_device_multiplies_it_natively(monkeypatch, device, asked, native, meant):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native and not including_emulation)
    assert resolve_precision(torch.device(device), asked) == meant


def test_autocast_is_on_for_bf16_and_off_for_fp32():
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        with autocast(CPU, precision):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def picture(path, size=(60, 40), **options):
    """A picture whose left half is black and right half is white."""
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    pixels[:, size[0] // 2 :] = 255
    Image.fromarray(pixels).save(path, **options)
    return path


def test_a_picture_gives_a_label_map_of_its_own_size_with_the_class_colours_and_an_overlay(tmp_path):
    path = picture(tmp_path / "street.jpg")
    model = build_network(NETWORK, 10, CPU, seed=0).eval()
    labels, over = predict_image(model, path, tmp_path / "new" / "folder", SCENES, size=(32, 48))
    assert [labels.name, over.name] == ["street-labels.png", "street-overlay.png"]
    with Image.open(labels) as image:
        assert (image.mode, image.size) == ("P", (60, 40))
        palette = np.array(image.getpalette()[:30]).reshape(10, 3)
        label_map = np.asarray(image)
    assert np.array_equal(palette, np.array(SCENES.palette))
    image = torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1)[None].float() / 255
    small = nn.functional.interpolate(image, (32, 48), mode="bilinear", antialias=True).clamp(0, 1)
    assert np.array_equal(label_map, predict_labels(model, small, (40, 60))[0])
    with Image.open(over) as image:
        assert (image.mode, image.size) == ("RGB", (60, 40))
        assert np.array_equal(np.asarray(image), overlay(np.asarray(Image.open(path)), label_map, SCENES))


def test_an_overlay_mixes_picture_and_colours_and_keeps_ignored_pixels():
    image = np.full((1, 3, 3), 100, dtype=np.uint8)
    mixed = overlay(image, np.array([[0, 9, 255]], dtype=np.uint8), SCENES, opacity=0.5)
    expected = [[round(50 + channel / 2) for channel in SCENES.palette[k]] for k in (0, 9)]
    assert np.abs(mixed[0, :2].astype(int) - expected).max() <= 1
    assert mixed[0, 2].tolist() == [100, 100, 100]


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    path = picture(tmp_path / "street.png")
    model = build_network(NETWORK, 10, CPU, seed=0).eval()
    with pytest.raises(DataError, match=r"street\.png: cannot write predictions"):
        predict_image(model, path, path, SCENES, size=(32, 48))
