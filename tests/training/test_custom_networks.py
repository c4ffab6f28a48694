"""Networks of other libraries as student and teacher: whole runs by command line, their weights, what is refused."""

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from bad_input import refused
from every_method import METHODS
from PIL import Image
from small_experiments import TEACHER, copied, equal, outcome, prepared_run, stopped, tiny, undisturbed
from torch import nn
from torch.nn.functional import interpolate

from apd.cli.app import main
from apd.config.experiment import Experiment, NetworkConfig
from apd.distillers.base import DISTILLERS
from apd.fields import ExperimentError
from apd.models.custom_network import CustomSegmenter, build_custom
from apd.training.run import run_folder, train, trained_network
from apd.training.segmentation import build_network
from apd.training.task import TeacherError

NETS = """
import segmentation_models_pytorch as smp, torch, transformers
from torchvision.models import segmentation
NONE = {"weights": None, "weights_backbone": None}
SMALL = {"encoder_name": "tu-test_efficientnet", "encoder_weights": None}
def unet(num_classes): return smp.Unet(**SMALL, decoder_channels=(16, 8, 8, 8, 8), classes=num_classes)
def deeplab(num_classes): return smp.DeepLabV3Plus(**SMALL, decoder_channels=16, classes=num_classes)
def segformer(num_classes):
    sizes = {"depths": [1] * 4, "hidden_sizes": [4, 8, 8, 16], "num_attention_heads": [1, 1, 2, 2]}
    config = transformers.SegformerConfig(num_labels=num_classes, decoder_hidden_size=12, **sizes)
    return transformers.SegformerForSemanticSegmentation(config)
def lraspp(num_classes): return segmentation.lraspp_mobilenet_v3_large(num_classes=num_classes, **NONE)
class Own(torch.nn.Module):
    image_mean, image_std = (0.5, 0.5, 0.5), [0.25] * 3
    def __init__(self, num_classes, bias=0.0):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 4, stride=4), torch.nn.BatchNorm2d(6))
        self.pool, self.last = torch.nn.AdaptiveAvgPool2d(1), torch.nn.Conv2d(6, num_classes, 1)
        self.tied, self.never, self.aux = self.last, torch.nn.Identity(), torch.nn.Conv2d(6, 2, 1)
        torch.nn.init.constant_(self.body[0].bias, bias)
    def forward(self, images):
        return self.last(self.body(images)), self.pool(self.body(images)), self.aux(self.body(images))
def four(): return Own(4)
def soft(classes): net = Own(classes); net.last = torch.nn.Sequential(net.last, torch.nn.Softmax(1)); return net
def nothing(num_classes): return None
def broken(num_classes): raise KeyError(f"no weights for {num_classes}")
def leaves(): raise SystemExit(3)
def scaled(classes): net = Own(classes); net.image_mean = (124.0, 116.0, 104.0); return net
def infinite(num_classes): return Own(num_classes, float("inf"))
"""
OWN = {"features": "body", "logits": "last"}
PAIRS = {"unet": ("segformer", {}), "lraspp": ("deeplab", {"batch_size": 4, "accumulation": 2, "ema_decay": 0.5})}


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    (file := tmp_path_factory.mktemp("nets") / "nets.py").write_text(NETS)
    return str(file)


def pair(nets, student, teacher, **training) -> Experiment:
    one, other = (NetworkConfig(builder=f"{nets}:{n}", **(OWN if n in "Own soft" else {})) for n in (student, teacher))
    return replace(tiny("apd", **training), network=one, teacher=replace(TEACHER, network=other))


@pytest.mark.parametrize("student", PAIRS)
def test_a_pair_is_trained_stopped_and_resumed_bit_equal_scored_drawn_measured_and_exported(
    student, nets, runs, tmp_path, monkeypatch, capsys, tiny_recipes
):
    teacher, training = PAIRS[student]
    experiment = pair(nets, student, teacher, **training)
    stopped(experiment, 3)
    options = [f"--network.builder={nets}:{student}", f"--teacher.network.builder={nets}:{teacher}"]
    options += [f"--training.{name.replace('_', '-')}={value}" for name, value in training.items()]
    assert main(["train", *options]) == 0
    printed, run = capsys.readouterr().out, run_folder(experiment)
    assert "resumed at step 3" in printed
    assert Path(printed.splitlines()[-1]).parent == run
    assert outcome(experiment) == undisturbed(experiment)

    Image.new("RGB", (70, 50)).save(image := tmp_path / "image.png")
    file = tmp_path / "student.pt2"
    commands = [["predict", str(run), str(image), "--to", str(tmp_path)], ["export", str(run), "--to", str(file)]]
    if student == "unet":
        commands += [["evaluate", str(run)], ["train", *options, "--dry-run"], ["cost", "--run", str(run)]]
    assert [main(command) for command in commands] == [0] * len(commands)
    printed = capsys.readouterr().out
    lines = f"teacher: {nets}:{teacher}, trained first", f"student: {nets}:{student}, 1x32x48 on cpu"
    assert [line in printed for line in lines] == [student == "unet"] * 2
    images = torch.rand(1, 3, 64, 96)
    expected = interpolate(trained_network(run)(images).logits, (64, 96), mode="bilinear", align_corners=True)
    torch.testing.assert_close(torch.export.load(file).module()(images), expected, rtol=1e-4, atol=1e-4)


def test_every_method_takes_the_maps_of_two_such_networks_whatever_their_grids(nets, tmp_path):
    experiment = pair(nets, "unet", "segformer", learning_rate=1e-5)
    run = prepared_run(replace(experiment, distillers=tuple(DISTILLERS[name]() for name in METHODS)), tmp_path)
    run.execute()
    assert {name.split(".")[0] for name in run.log.read()[-1]} >= {*METHODS, "task"}


def test_the_maps_are_the_networks_own_in_copies_and_compiled_and_at_any_size(nets):
    model, images = build_custom(f"{nets}:unet", 5).eval(), torch.rand(2, 3, 64, 96)
    expected = model.network((images - model.image_mean) / model.image_std)
    torch.compiler.reset()
    compiled = torch.compile(model.forward, backend="aot_eager", fullgraph=True)
    averaged = torch.optim.swa_utils.AveragedModel(model).module
    for forward in (model, copy.deepcopy(copy.deepcopy(model)), averaged, compiled, compiled):
        output = forward(images)
        torch.testing.assert_close(output.logits, expected)
        torch.testing.assert_close(model.network.segmentation_head(output.features), expected)
    teacher = build_custom(f"{nets}:segformer", 5).eval()
    torch.testing.assert_close(teacher.network.decode_head.classifier((out := teacher(images)).features), out.logits)
    strict = build_custom(f"{nets}:deeplab", 5).eval()  # this library refuses sides that are no multiples of 32
    assert strict(torch.rand(1, 3, 50, 70)).logits.shape == (1, 5, 13, 18)
    own = build_custom(f"{nets}:Own", 5, **OWN).eval()  # with a normalisation of its own
    torch.testing.assert_close(own(images).features, own.network.body((images - 0.5) / 0.25))


def test_heads_are_what_the_paths_lead_through_and_what_has_no_part_in_a_step_is_frozen(nets):
    for name, paths, head in (("unet", {}, ("decoder.", "segmentation_head.")), ("Own", OWN, ("body.", "last."))):
        model = build_custom(f"{nets}:{name}", 5, **paths)
        named = dict(model.network.named_parameters())
        assert set(model.head_parameters()) == {value for key, value in named.items() if key.startswith(head)}
        assert {*model.head_parameters(), *model.backbone_parameters()} == set(named.values())
        frozen = {key for key, value in named.items() if not value.requires_grad}
        assert frozen == ({"aux.weight", "aux.bias"} if name == "Own" else set())
    two = CustomSegmenter(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)), 5, "0", "1")  # the paths lead to all
    assert two.head_parameters() == list(two.network[1].parameters())


WRAPPED = {
    "plain": lambda state: state,
    "model": lambda state: {"model": state, "epoch": 3},
    "state_dict": lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
    "lightning": lambda state: {"state_dict": {f"model.net.{k}": v for k, v in state.items()}, "hyper_parameters": {}},
}


@pytest.mark.parametrize("how", WRAPPED)
def test_weights_are_read_strictly_from_the_files_that_people_have(how, nets, runs, tmp_path):
    source = build_custom(f"{nets}:deeplab", 10).network.state_dict()
    torch.save(WRAPPED[how](source), file := tmp_path / "deeplab.pth")
    config = NetworkConfig(builder=f"{nets}:deeplab", weights_file=str(file))
    build = partial(build_network, config, 10, torch.device("cpu"), 1)
    assert equal(copied(build().network), source)
    experiment = pair(nets, "Own", "deeplab")
    teacher = replace(experiment.teacher, weights_file=str(file), expected_miou=0.9)
    with pytest.raises(TeacherError, match=r"mIoU is .* below teacher.expected_miou = 0.9"):
        train(replace(experiment, teacher=teacher))
    source["decoder.wait"] = source.pop(name := "segmentation_head.0.weight")
    torch.save(WRAPPED[how](source), file)
    refused(build, ExperimentError, names=(str(file), f"{name} is missing (nearest in the file: decoder."))


def test_a_run_says_that_its_networks_logits_are_probabilities(nets, runs):
    with pytest.warns(UserWarning, match="student_logits holds probabilities, not logits"):
        train(pair(nets, "soft", "unet"))


def test_a_changed_file_is_another_experiment_and_in_a_run_of_the_older_it_is_said(nets, runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (file := tmp_path / "mine.py").write_text(NETS)
    made = lambda: replace(tiny(), network=NetworkConfig(builder=f"{file}:Own", **OWN))  # noqa: E731
    train(one := made())
    file.write_text(NETS.replace("stride=4", "stride=2"))
    assert run_folder(made()) != run_folder(one)
    with pytest.warns(UserWarning, match=r"mine\.py is not as it was when the experiment was made"):
        trained_network(one)
    assert build_custom("mine:Own", 10, **OWN).num_classes == 10, "a module of the working directory"


def test_files_in_two_folders_import_their_own_neighbours_of_one_name_at_any_time(tmp_path):
    builder = "import torch\nfrom layers import WIDTH\ndef build(num_classes):\n    from pack.later import KERNEL\n"
    builder += "    body = torch.nn.Conv2d(3, WIDTH, KERNEL)\n"
    builder += "    return torch.nn.Sequential(body, torch.nn.Conv2d(WIDTH, num_classes, 1))\n"
    for width in (8, 64):
        (folder := tmp_path / str(width) / "pack").mkdir(parents=True)
        (folder.parent / "nets.py").write_text(builder)
        (folder.parent / "layers.py").write_text(f"WIDTH = {width}")
        (folder / "later.py").write_text(f"KERNEL = {1 if width == 8 else 3}")
        body = build_custom(f"{folder.parent}/nets.py:build", 5, features="0", logits="1").network[0]
        assert (body.out_channels, body.kernel_size[0]) == ((8, 1) if width == 8 else (64, 3))


BAD = {
    "nets.py": ["expected package.module:function"],
    "none.py:unet": ["of a file that is there"],
    "NETS:unett": ["has no function 'unett'; did you mean 'unet'?"],
    "NETS:nothing": ["it returned a NoneType, expected a torch.nn.Module"],
    "NETS:broken": ["KeyError('no weights for 10') (line "],
    "NETS:leaves": ["SystemExit(3)"],
    "no.such.package:net": ["ModuleNotFoundError(\"No module named 'no'\")"],
    "NETS:Own": ["give both paths", "body, pool, last"],
    "NETS:Own body lst": ["no module 'lst'", "'last'"],
    "NETS:Own never last": ["'never' has not run"],
    "NETS:Own pool last": ["features 'pool' are (1, 6, 1, 1)", "expected 2×2 or more"],
    "NETS:Own body body": ["logits 'body' have 6 channels: expected 10"],
    "NETS:four body last": ["logits 'last' have 4 channels: expected 10", "; build the network for so many"],
    "NETS:scaled body last": ["image_mean = [124.0, 116.0, 104.0]", "divide by 255"],
    "NETS:infinite body last": ["all finite"],
    "NETS:unet encoder": ["'encoder' (TimmUniversalEncoder) returned a list"],
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_builder_or_path_is_refused_before_training(case, nets, runs):
    builder, *paths = case.replace("NETS", nets).split(" ")
    paths = dict(zip(OWN, paths, strict=False))
    call = lambda: train(replace(tiny(), network=NetworkConfig(builder=builder, **paths)))  # noqa: E731
    refused(call, ExperimentError, names=tuple(BAD[case]))
    assert not list(runs.glob("*/checkpoints"))


def test_fields_that_do_not_go_together_and_networks_that_do_not_are_refused(nets, runs):
    for fields in ({"builder": "a:b", "head": "aspp"}, {"builder": "a:b", "weights": "imagenet"}, {"logits": "last"}):
        refused(partial(NetworkConfig, **fields), ExperimentError, names=("a builder",))
    refused(partial(pair, nets, "Own", "unet", auxiliary_weight=0.2), ExperimentError, names=("auxiliary head",))
    same_width = replace(tiny("apd").distillers[0], width=None, regularisation=0.0)
    experiment = replace(pair(nets, "Own", "unet"), distillers=(same_width,))
    refused(partial(train, experiment), ExperimentError, names=("apd between these two networks", "6", "8"))
    assert not list(runs.glob("scenes-teacher*")), "found before the teacher's training"
