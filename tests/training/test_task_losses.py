"""Task losses against torch's and the library's, deep supervision, and checkpointing, in one step and in commands."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from bad_input import refused
from own_folders import SMALL, SMALL_TEACHER, leave, make
from segmentation_models_pytorch import losses
from small_experiments import a_batch, copied, equal, prepared_run, state_after, tiny
from torch.nn import functional as F

from apd.config.experiment import NetworkConfig
from apd.cost.measure import peak_of
from apd.fields import ExperimentError
from apd.losses import task_loss
from apd.training.record import read_record
from apd.training.run import run_folder, train
from apd.training.segmentation import added_loss, balanced_weights, scaled_weights
from apd.training.task import recomputing

IGNORE, LIST = 255, tuple(0.5 * n for n in range(10))
LIBRARY = {"focal": losses.FocalLoss, "dice": losses.DiceLoss, "lovasz": losses.LovaszLoss}
NETS = """
import torch
from torch import nn
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(), nn.Dropout2d(0.5))
    def forward(self, x): return x + self.layers(x)
class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 4, stride=4), nn.Sequential(Block(), Block(), Block())
        self.last, self.one, self.two = (nn.Conv2d(8, num_classes, 1) for _ in range(3))
        self.few = nn.Conv2d(8, 2, 1)
    def forward(self, x):
        features = self.body(self.stem(x))
        if self.training:
            self.one(features), self.two(self.stem(x)), self.few(features)
        return self.last(features)
"""
BUILT = {"features": "body", "logits": "last", "auxiliary": ("one", "two")}
CASES = {"plain": {}, "list": {"class_weights": LIST}, "balanced": {"class_weights": "balanced"}}
CASES |= {kind: {"added_loss": kind, "added_loss_weight": 0.5} for kind in LIBRARY}
CASES["all"] = {"class_weights": LIST, "label_smoothing": 0.2, "added_loss": "dice", "auxiliary_weight": 0.1}


@pytest.fixture
def net(tmp_path):
    (tmp_path / "nets.py").write_text(NETS)
    return NetworkConfig(builder=f"{tmp_path}/nets.py:Net", **BUILT)


def reference(logits, labels, weights=None, smoothing=0.0):
    logits = F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=True)
    weight = None if weights is None else torch.tensor(weights)
    return F.cross_entropy(logits, labels, weight, ignore_index=IGNORE, label_smoothing=smoothing)


@pytest.mark.parametrize("case", CASES)
def test_the_terms_of_a_step_are_torchs_and_the_librarys(case, tmp_path, net):
    run, batch = prepared_run(replace(tiny(**CASES[case]), network=net), tmp_path), a_batch(4)
    batch.labels_BHW[:, :7] = IGNORE
    training, weights = run.experiment.training, {"list": LIST, "all": LIST}.get(case)
    if case == "balanced":
        labels = np.concatenate([sample.labels_HW.numpy().ravel() for sample in run.splits.train])
        counts = np.bincount(labels, minlength=256)[:10]
        weights = [counts.sum() / (np.count_nonzero(counts) * n) if n else 0.0 for n in counts]
        assert run.task.used_weights == pytest.approx(weights)
        weights = np.float32(weights)
    torch.manual_seed(3)
    own, seen = run.student(batch.images_B3HW), [batch.labels_BHW, weights, training.label_smoothing]
    found = {"task": reference(own.logits, *seen)}
    loss = found["task"]
    for number, logits in enumerate(own.aux):
        found[f"auxiliary_{number}"] = reference(logits, *seen)
        loss = loss + training.auxiliary_weight * found[f"auxiliary_{number}"]
    if (kind := training.added_loss) != "none":
        full = F.interpolate(own.logits, (32, 32), mode="bilinear", align_corners=True)
        found[kind] = LIBRARY[kind]("multiclass", ignore_index=IGNORE)(full, batch.labels_BHW)
        loss = loss + training.added_loss_weight * found[kind]
    trained = [p for p in run.student.parameters() if p.requires_grad]
    assert all(p.requires_grad == ("few" not in name) for name, p in run.student.named_parameters())
    gradients = torch.autograd.grad(loss, trained)
    torch.manual_seed(3)
    terms = run.step(batch)
    torch.testing.assert_close(terms, {name: value.detach() for name, value in (found | {"loss": loss}).items()})
    torch.testing.assert_close([p.grad for p in trained], list(gradients))


@pytest.mark.parametrize("labels", ["ignored", "weightless"])
def test_every_loss_is_a_connected_zero_where_nothing_counts(labels):
    logits, target = torch.randn(2, 3, 4, 4, requires_grad=True), torch.full((2, 8, 8), IGNORE)
    weights = scaled_weights([0.0, 1e-6, 1.0], torch.device("cpu"))
    found = [task_loss(logits, target if labels == "ignored" else target * 0, IGNORE, weights_K=weights)]
    found += [added_loss(kind, logits, target, IGNORE) for kind in LIBRARY]
    sum(found).backward()
    assert [value.item() for value in found] == [0.0] * 4
    assert torch.equal(logits.grad, torch.zeros_like(logits))
    assert balanced_weights([0, 5]) == [0.0, 1.0]
    for outside in (3, -1):
        target[1, 2, 3] = outside
        with pytest.raises((IndexError, RuntimeError), match=str(outside)):
            task_loss(logits, target, IGNORE)


@pytest.mark.parametrize("kind", ["deep supervision", "backbone and head"])
def test_checkpointing_saves_memory_and_moves_neither_numbers_nor_statistics(kind, net, tmp_path):
    states, memory = [], []
    for on in (False, True):
        experiment = tiny("apd", gradient_checkpointing=on, batch_size=8, accumulation=2, ema_decay=0.5)
        experiment = replace(experiment, network=net) if kind == "deep supervision" else experiment
        run = prepared_run(experiment, tmp_path / str(on))
        torch.manual_seed(1)
        states.append(state_after(run.step, a_batch(8)) | copied(run.student) | copied(run.average.module))

        def forward_and_backward(run=run):
            with recomputing(run.task.blocks):
                loss = run.student(a_batch(8).images_B3HW).logits.sum()
            loss.backward()

        memory.append(peak_of(forward_and_backward, torch.device("cpu")))
        assert not any("forward" in vars(block) for block in run.task.blocks)
    assert equal(*states)
    assert memory[1] < 0.85 * memory[0]


def test_what_cannot_be_trained_so_is_refused_before_training(runs, net, monkeypatch):
    plain = "import torch\ndef net(num_classes): return torch.nn.Sequential(torch.nn.Conv2d(3, num_classes, 4, 4))"
    (runs.parent / "plain.py").write_text(plain)
    flat = NetworkConfig(builder=f"{runs.parent}/plain.py:net", features="0", logits="0")
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    cases = {
        "class_weights = (1.0, 2.0): expected 10 numbers, one for each class": tiny(class_weights=(1, 2)),
        "needs the package segmentation_models_pytorch: install it with": tiny(added_loss="dice"),
        "gradient_checkpointing = True: expected False": replace(tiny(gradient_checkpointing=True), network=flat),
        "auxiliary 'few' have 2 channels: expected 10": replace(tiny(), network=replace(net, auxiliary=("few",))),
        "no module 'on'": replace(tiny(), network=replace(net, auxiliary=("on",))),
    }
    for said, experiment in cases.items():
        refused(lambda experiment=experiment: train(experiment), ExperimentError, names=(said,))
    assert not list(runs.rglob("log.jsonl"))


def test_a_folder_of_ones_own_is_trained_with_all_of_them_by_command(runs, tmp_path, capsys):
    folder = ["--data.name", "folder", "--data.folder", make(tmp_path / "fields")]
    options = "class-weights balanced label-smoothing 0.1 added-loss lovasz keep best patience 1 evaluations 2 epochs 1"
    words = [f"--training.{word}" if place % 2 == 0 else word for place, word in enumerate(options.split())]
    words += ["--training.gradient-checkpointing", "--teacher.training.epochs", "1"]
    words += ["--teacher.training.class-weights", "1", "2.5"]
    command = ["train", *folder, *SMALL, *SMALL_TEACHER, "--training.batch-size", "2", *words]
    assert leave(*command) == 0
    printed = capsys.readouterr().out
    record = read_record(printed.splitlines()[-1])
    training, teacher = record.experiment.training, record.experiment.teacher.training
    assert (training.iterations, training.epochs, record.content["epochs"]) == (2, 0, 1.0)
    assert (teacher.class_weights, teacher.iterations) == ((1.0, 2.5), 1)
    assert record.content["class_weights"] == [1.0, 1.0]
    assert f"kept step {record.content['kept']['step']}, the best on val, whose score is optimistic" in printed
    assert "lovasz" in record.content["curves"]
    assert run_folder(record.experiment).is_dir()
    assert leave(*command, "--training.iterations", "9") == 2
    assert "each says how long to train; leave one of them out" in capsys.readouterr().err
