"""Distillation methods as part of an experiment: configurations, modules, a run of all together, and a new method."""

import importlib
import inspect
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import tyro
from every_method import METHODS
from small_experiments import NETWORK, TEACHER, outcome, prepared_run, stopped, tiny, undisturbed

from apd.cli.app import parse
from apd.config.experiment import Experiment
from apd.config.identity import fingerprint, from_dict, to_dict
from apd.distillers.apd import APDConfig
from apd.distillers.base import DISTILLERS, DistillerConfig, build_distiller
from apd.fields import ExperimentError
from apd.training.run import train
from apd.training.segmentation import build_network

KINDS = {kind.__name__: kind for kind in DISTILLERS.values() if kind.task == "segmentation" and kind.module is not None}
SMALL = {"CIRKDConfig": {"pixel_slots": 30, "region_slots": 7}}
ALL = (APDConfig(), *(kind(**SMALL.get(name, {})) for name, kind in KINDS.items()))


def with_distillers(*distillers):
    """At a low learning rate: on four pixels the published weight of attention transfer is out of all proportion."""
    return replace(tiny("both", learning_rate=1e-5), name="methods", distillers=distillers)


def test_every_method_of_the_study_is_tried_here():
    assert {method for method, kind in DISTILLERS.items() if kind.task == "segmentation"} == {*METHODS}
    assert {type(config) for config in ALL} == {kind for kind in DISTILLERS.values() if kind.task == "segmentation"}


DEFAULTS = {
    "apd": {"scale": 10, "regularisation": 1, "alignment": 10, "observation": 1, "pixel_kd": 1, "temperature": 1},
    "pixel_kd": {"weight": 1, "temperature": 1},
    "fitnet": {"weight": 10},
    "attention_transfer": {"weight": 10_000},
    "skd": {"weight": 0.5, "pool": 0.5},
    "ifvd": {"weight": 200},
    "cwd": {"logits": 3, "features": 0, "temperature": 4},
    "cirkd": {"batch_pixels": 1, "pixel_memory": 0.1, "region_memory": 0.1, "temperature": 0.1, "new_pixels": 16},
    "dist": {"inter": 1, "intra": 1, "temperature": 1},
    "mgd": {"weight": 2e-5, "masked": 0.75},
    "dkd": {"target": 1, "non_target": 0.25, "temperature": 1},
    "lskd": {"weight": 9, "temperature": 2},
}


@pytest.mark.parametrize("method", DEFAULTS)
def test_published_weights_are_the_defaults_which_never_change_since_fingerprints_leave_them_out(method):
    assert DISTILLERS[method]().settings.items() >= DEFAULTS[method].items()


@pytest.fixture(scope="module")
def networks():
    student, teacher = (build_network(config, 5, torch.device("cpu"), seed=0) for config in (NETWORK, TEACHER.network))
    return {"student": student, "teacher": teacher, "ignore_index": 9}


@pytest.mark.parametrize("kind", [kind for name, kind in KINDS.items() if name != "PixelKDConfig"])
def test_a_module_has_every_setting_of_its_configuration_and_says_so_in_its_signature(kind, networks):
    # for every field a legal value that is not its default
    others = {name: 3 if isinstance(value, int) else value / 2 + 0.1 for name, value in kind().settings.items()}
    module = build_distiller(kind(**others), **networks, seed=3)
    assert module.ignore_index == 9
    assert {name: getattr(module, name) for name in others} == others
    assert module.weights.items() <= others.items() or list(module.weights.values()) == [others["weight"]]
    if kind().method == "cirkd":
        assert [(memory.vectors.shape[1], memory.samples) for memory in module.memories.values()] == [(3, 1)] * 2
    sizes = () if kind().method in ("dist", "dkd", "lskd") else ("student_channels", "teacher_channels", "num_classes")
    assert sorted(inspect.signature(kind.module).parameters) == sorted((*sizes, *others, "ignore_index"))


def test_all_methods_in_one_run_and_interrupted_it_ends_bit_equal(runs, tmp_path):
    experiment = with_distillers(*ALL)
    run = prepared_run(experiment, tmp_path)
    trained = {id(p) for group in run.optimisers["student"].param_groups for p in group["params"]}
    for name, distiller in run.distillers.items():
        assert {id(p) for p in distiller.student_parameters()} <= trained, name
    stopped(experiment, 4)
    train(experiment)
    assert (found := outcome(experiment)) == undisturbed(experiment)
    assert {"fitnet.fitnet", "cirkd.pixel_memory", "dkd.target", "idd.idd"} <= set(found["log"][0])


@pytest.fixture
def absolute(tmp_path, monkeypatch):
    """The configuration of the method that the page *Design notes* writes, in a module outside the package."""
    page = Path(__file__).parents[2] / "book" / "design_notes.md"
    (snippet,) = (part for part in page.read_text().split("```") if "class Absolute(" in part)
    (tmp_path / "absolute_method.py").write_text(snippet.removeprefix("python"))
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("absolute_method").AbsoluteConfig
    del DISTILLERS["absolute"], sys.modules["absolute_method"]


def test_a_new_method_is_one_file_and_another_of_its_name_is_refused(absolute, runs, tmp_path):
    experiment = with_distillers(absolute())
    assert from_dict(json.loads(json.dumps(to_dict(experiment)))) == experiment
    assert fingerprint(with_distillers(absolute(weight=3.0))) != fingerprint(experiment)
    with pytest.raises(ExperimentError, match=r"^AbsoluteConfig.weight = 0.0: expected a number > 0; to leave"):
        absolute(weight=0)
    changed = ["--distillers.0.weight", "5", "--training.iterations", "7"]
    chosen = parse(Experiment, changed, default=experiment, prog="apd", config=(tyro.conf.AvoidSubcommands,))
    assert (chosen.distillers, chosen.training.iterations) == ((absolute(weight=5.0),), 7)

    trained = prepared_run(experiment, tmp_path).distillers["absolute"].student_parameters()
    assert trained[0].shape[:2] == (TEACHER.network.head_width, NETWORK.head_width)
    assert train(experiment).experiment == experiment
    assert all(entry["absolute.absolute"] > 0 for entry in outcome(experiment)["log"])
    with pytest.raises(
        TypeError, match=r"^SameConfig.method = 'absolute': absolute_method.AbsoluteConfig is registered"
    ):
        type("SameConfig", (DistillerConfig,), {"method": "absolute"})
