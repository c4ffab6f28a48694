"""Checkpoints of APD and of the semseg code line: their names and shapes, made here, and what their tensors compute."""

import re

import pytest
import torch
from released_networks import NORM, made_up, released_shapes
from safetensors.torch import save_file
from small_experiments import DATA
from torch.nn import functional as F

from apd.config.experiment import Experiment, NetworkConfig, TeacherConfig
from apd.models import build_segmenter, load_weights
from apd.models.checkpoints import released_state_dict
from apd.models.pretrained import read_tensors
from apd.training.run import task_of
from apd.training.task import TeacherError, load_teacher

LOADED = [(18, "apd-psp", 60, "all_convs"), (18, "apd-aspp", 5, "one_conv")]
LOADED += [(50, "semseg-psp", 60, "one_conv"), (50, "apd-aspp", 60, "all_convs")]


def released(depth=18, classes=5, kind="apd-psp"):
    """A made-up checkpoint of narrow heads."""
    return made_up(released_shapes(depth, classes, kind, width=8))


def what_the_tensors_dictate(t, images, *, rule="one_conv"):
    """Logits, features and auxiliary logits in eval mode, from the tensors alone, of images in 0..255."""

    def conv(maps, name, stride=1, dilation=1):
        weight, bias = t[f"{name}.weight"], t.get(f"{name}.bias")
        return F.conv2d(maps, weight, bias, stride, dilation * (weight.shape[-1] // 2), dilation)

    def norm(maps, name):
        weight, bias, mean, var = (t[f"{name}.{leaf}"][:, None, None] for leaf in NORM[:4])
        return (maps - mean) / (var + 1e-5).sqrt() * weight + bias

    mean, std = (255 * images.new_tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    maps = (images - mean) / std
    for place, stride in ((0, 2), (3, 1), (6, 1)):
        maps = norm(conv(maps, f"layer0.{place}", stride), f"layer0.{place + 1}").relu()
    maps = F.max_pool2d(maps, 3, stride=2, padding=1)
    for stage, wide in enumerate((1, 1, 2, 4), start=1):
        for block in sorted({int(name.split(".")[1]) for name in t if name.startswith(f"layer{stage}.")}):
            where, shortcut = f"layer{stage}.{block}", maps
            stride = 2 if stage == 2 and block == 0 else 1
            first = wide // 2 if rule == "all_convs" and block == 0 and stage > 2 else wide
            convs = [(stride, first), (1, wide if rule == "all_convs" else 1)]
            if f"{where}.conv3.weight" in t:
                convs = [(1, 1), (stride, first), (1, 1)]
            for number, (step, dilation) in enumerate(convs, start=1):  # of maps without negative values at first
                maps = norm(conv(maps.relu(), f"{where}.conv{number}", step, dilation), f"{where}.bn{number}")
            if f"{where}.downsample.0.weight" in t:
                shortcut = norm(conv(shortcut, f"{where}.downsample.0", stride), f"{where}.downsample.1")
            maps = (maps + shortcut).relu()
        if stage == 3:
            early = maps
    aux = conv(norm(conv(early, "aux.0"), "aux.1").relu(), "aux.4")
    size = maps.shape[2:]
    if "ppm.bottleneck.conv.weight" in t:
        pooled = norm(conv(F.adaptive_avg_pool2d(maps, 1), "ppm.image_pool.1.conv"), "ppm.image_pool.1.bn").relu()
        pieces = [F.interpolate(pooled, size, mode="bilinear", align_corners=True)]
        for branch, dilation in enumerate((1, 12, 24, 36)):
            where = f"ppm.aspp_modules.{branch}"
            pieces.append(norm(conv(maps, f"{where}.conv", dilation=dilation), f"{where}.bn").relu())
        features = norm(conv(torch.cat(pieces, 1), "ppm.bottleneck.conv"), "ppm.bottleneck.bn").relu()
        return conv(features, "cls.0"), features, aux
    pieces = [maps]
    for branch, bins in enumerate((1, 2, 3, 6)):
        pooled = conv(F.adaptive_avg_pool2d(maps, bins), f"ppm.features.{branch}.1")
        pooled = norm(pooled, f"ppm.features.{branch}.2").relu()
        pieces.append(F.interpolate(pooled, size, mode="bilinear", align_corners=True))
    merge, last = ("ppm.merge", "cls.0") if "ppm.merge.0.weight" in t else ("cls", "cls.4")
    features = norm(conv(torch.cat(pieces, 1), f"{merge}.0"), f"{merge}.1").relu()
    return conv(features, last), features, aux


def saved(path, tensors):
    """As the released code saves: wrapped, with epoch and optimiser."""
    state = {f"module.{name}": value for name, value in tensors.items()}
    torch.save({"epoch": 100, "state_dict": state, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}}, path)
    return path


def network(depth=18, classes=5, head="psp", **choices):
    torch.manual_seed(1)
    return build_segmenter(f"resnet{depth}_deep", classes, head=head, head_width=8, **choices)


@pytest.mark.parametrize(("depth", "kind", "classes", "rule"), LOADED)
def test_the_loaded_network_computes_what_the_released_tensors_dictate(tmp_path, depth, kind, classes, rule):
    source = released(depth, classes, kind)
    model = network(depth, classes, "aspp" if "aspp" in kind else "psp", dilation=rule)
    load_weights(model, saved(tmp_path / "epoch_100.pth", source))
    # in double precision: through fifty layers of made-up values rounding grows to the size of a mistake
    model.double()
    source = {name: value.double() for name, value in source.items()}
    images = 255 * torch.rand(1, 3, 41, 57, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        logits, features, aux = what_the_tensors_dictate(source, images, rule=rule)
        for part in model.modules():  # the auxiliary head speaks in training mode only
            part.training = part is model
        output = model(images / 255)
    torch.testing.assert_close(tuple(output), (logits, features, aux), rtol=1e-4, atol=1e-4)
    assert logits.std() > 0.05  # no agreement of zeros


@pytest.mark.parametrize(
    ("depth", "kind", "classes"),
    [(18, "apd-psp", 150), (101, "apd-psp", 19), (101, "apd-aspp", 19), (50, "semseg-psp", 21)],
)
def test_the_published_networks_have_the_released_names_and_shapes(depth, kind, classes):
    with torch.device("meta"):
        model = build_segmenter(f"resnet{depth}_deep", classes, head="aspp" if "aspp" in kind else "psp")
        tensors = made_up(released_shapes(depth, classes, kind))
    matched = released_state_dict(tensors, model)
    assert matched.keys() == model.state_dict().keys()
    assert len(matched) == len(tensors) + 2  # the image normalisation, which the released files leave to their reader


def test_prefix_wrapping_format_and_age_do_not_matter(tmp_path):
    source, images, answers = released(), torch.rand(1, 3, 33, 33), []
    prefixed = {f"module.{name}": value for name, value in source.items()}
    uncounted = {name: value for name, value in source.items() if not name.endswith("num_batches_tracked")}
    torch.save({"state_dict": source}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save({"state_dict": uncounted, "epoch": 9}, tmp_path / "uncounted.pth")
    save_file(prefixed, tmp_path / "bare.safetensors")
    for file in (saved(tmp_path / "usual.pth", source), *tmp_path.iterdir()):
        model = network().eval()
        load_weights(model, file)
        with torch.no_grad():
            answers.append(model(images).logits)
    assert len(answers) == 5
    assert all(torch.equal(answers[0], answer) for answer in answers[1:])


@pytest.mark.parametrize(
    ("source", "model", "message"),
    [
        ({}, {"depth": 50}, "layer1.0.conv3.weight is missing"),
        ({}, {"head": "aspp"}, "with the other head than AtrousPooling"),
        ({}, {"dilation": "all_convs"}, "output stride 8 with dilation='one_conv'"),
        ({"kind": "semseg-psp"}, {"dilation": "all_convs"}, "output stride 8 with dilation='one_conv'"),
        ({"depth": 50}, "resnet50s", "has other strides or dilations"),  # timm dilates its own network with that stem
        ({}, "resnet18", "but the network has another backbone"),
        ({}, "test_efficientnet", "the network has another backbone"),
    ],
)
def test_a_network_that_would_compute_something_else_is_refused(tmp_path, source, model, message):
    file = saved(tmp_path / "released.pth", released(**source))
    with pytest.raises(RuntimeError, match=re.escape(message)):
        load_weights(build_segmenter(model, 5, head_width=8) if isinstance(model, str) else network(**model), file)


def test_a_safetensors_file_whose_length_looks_like_a_pickle_is_read_as_what_it_is(tmp_path):
    files = [tmp_path / f"{size}.safetensors" for size in range(256)]
    for file in files:
        save_file({"x": torch.ones(1)}, file, metadata={"note": "x" * int(file.stem)})
    alike = next(file for file in files if file.read_bytes()[:1] == b"\x80")  # the header's length modulo 256
    assert torch.equal(read_tensors(alike)[0]["x"], torch.ones(1))


def test_a_released_checkpoint_serves_as_a_runs_teacher_if_it_has_its_classes(tmp_path):
    network = NetworkConfig(backbone="resnet18_deep", head_width=8, output_stride=8)
    task = task_of(Experiment(data=DATA, teacher=TeacherConfig(network=network, weights_file="given.pth")))
    file, other = (saved(tmp_path / f"{classes}.pth", released(classes=classes)) for classes in (10, 19))
    teacher = load_teacher(task, file, 10, torch.device("cpu"))
    assert not teacher.training
    assert torch.equal(teacher.classifier.weight, released(classes=10)["cls.0.weight"])
    with pytest.raises(TeacherError, match=r"19\.pth: 4 tensors differ, first cls\.0\.weight is \(19, 8, 1, 1\)"):
        load_teacher(task, other, 10, torch.device("cpu"))
