"""The fingerprint names a run: it may never change for an experiment that was run, and changes with every field."""

import contextlib
import dataclasses
import json
import re
from dataclasses import replace
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
from bad_input import edited
from hypothesis import assume, given
from hypothesis import strategies as st
from small_experiments import tiny

from apd.config.detection_config import DetectorConfig, InstanceDataConfig
from apd.config.experiment import DataConfig, Experiment, NetworkConfig, TeacherConfig, TrainingConfig
from apd.config.identity import fingerprint, from_dict, significant, to_dict
from apd.config.inference_options import InferenceOptions
from apd.distillers.apd import APDConfig
from apd.distillers.base import DISTILLERS
from apd.distillers.logits import PixelKDConfig
from apd.fields import ExperimentError

GOLDEN = Experiment(
    name="golden",
    seed=3,
    data=DataConfig(name="camvid", height=180, width=240, evaluation_split="test", jitter=0.2),
    network=NetworkConfig(backbone="mobilenetv2_050", head_width=64, output_stride=8),
    training=TrainingConfig(iterations=1800, learning_rate=0.02, ema_decay=0.99),
    precision="fp32",
    teacher=TeacherConfig(network=NetworkConfig(backbone="efficientnet_lite0", weights="imagenet"), seed=1),
    distillers=(PixelKDConfig(temperature=2.0), APDConfig(width=64, pixel_kd=0.0)),
)
OF_DETECTION = ("roi_apd", "dense_apd", "roi_kd", "roi_dkd", "pyramid_matching", "review_kd")
DISTILLED = tuple(DISTILLERS[method]() for method in OF_DETECTION)
TEACHER = TeacherConfig(network=DetectorConfig(backbone="resnet50"))
DETECTION = Experiment(data=InstanceDataConfig(), network=DetectorConfig(), teacher=TEACHER, distillers=DISTILLED)
WHOLE = Experiment(teacher=TeacherConfig(), distillers=tuple(k() for k in DISTILLERS.values() if k.task != "detection"))
PARTS = (DataConfig, NetworkConfig, TrainingConfig, TeacherConfig, InferenceOptions, InstanceDataConfig, DetectorConfig)
OWNERS = ("data", "network", "training", "teacher", "inference")
KINDS = [*PARTS, *DISTILLERS.values()]
FIELDS = [(kind, f.name) for kind in KINDS for f in dataclasses.fields(kind) if len(get_args(f.type)) != 1]
FIELDS = [(kind, name) for kind, name in FIELDS if (kind, name) != (InstanceDataConfig, "kind") and name != "method"]
COMPANIONS = {  # a field is refused without
    (TeacherConfig, "expected_ap"): {"network": DetectorConfig()},
    (InstanceDataConfig, "name"): {"folder": "coco"},
    (DataConfig, "name"): {"folder": "fields"},
    (NetworkConfig, "aspp_reach"): {"head": "aspp"},
    (NetworkConfig, "weights_file"): {"weights": "imagenet"},
    (TrainingConfig, "schedule"): {"milestones": (500, 800)},
    (TrainingConfig, "milestones"): {"schedule": "steps"},
    **{(NetworkConfig, path): {"builder": "a.b:c"} for path in ("features", "logits", "auxiliary")},
    (TrainingConfig, "patience"): {"keep": "best"},
}
VALUES = {
    bool: (True, False),
    int: (64, 7, 2, 1),
    float: (0.25, 2.0, 0.0, 1.5),
    str: ("fields", "another.file", "package.module:function"),
    tuple[int, ...]: ((500, 700), (64,)),
    tuple[int, int]: ((64, 48),),
    tuple[float, ...]: ((0.5, 1.0),),
    tuple[str, ...]: (("0", "2"), ("1",)),
    NetworkConfig: (NetworkConfig(head_width=64),),
    TrainingConfig: (TrainingConfig(iterations=7),),
}


def test_fingerprints_are_those_of_the_first_records():
    """If this fails, a field's default was changed or a field was renamed: every record made so far loses its run.
    Give the field its old default back and put the better value into the recipes."""
    assert fingerprint(Experiment()) == "44136fa355b3"
    assert fingerprint(GOLDEN) == "8b9fe9a483fe"
    assert fingerprint(GOLDEN.teacher_experiment()) == "cd645d501f8d"
    assert fingerprint(DETECTION) == "cb37620fe562"
    assert fingerprint(DETECTION.teacher_experiment()) == "e841ba86f93c"


def whole_of(part):
    """An experiment that holds the part."""
    network = part.network if isinstance(part, TeacherConfig) else part
    of_detection = isinstance(network, InstanceDataConfig | DetectorConfig) or getattr(part, "task", "") == "detection"
    base = DETECTION if of_detection else WHOLE
    for owner in OWNERS:
        if isinstance(part, type(getattr(base, owner))):
            return replace(base, **{owner: part})
    return replace(base, distillers=tuple(part if d.method == part.method else d for d in base.distillers))


def other_values(kind, name):
    """Legal values of a field but its default, found by its annotation."""
    hint, default = get_type_hints(kind)[name], next(f for f in dataclasses.fields(kind) if f.name == name).default
    alternatives = (hint,) if get_origin(hint) in (tuple, Literal) else get_args(hint) or (hint,)
    for alternative in alternatives:
        is_choice = get_origin(alternative) is Literal
        for value in get_args(alternative) if is_choice else VALUES.get(alternative, ()):
            with contextlib.suppress(ExperimentError):
                whole_of(kind(**{name: value}, **COMPANIONS.get((kind, name), {})))
                if value != default:
                    yield value


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_changes_the_fingerprint_and_no_two_changes_meet(kind):
    names = [name for owner, name in FIELDS if owner is kind]
    values = {name: next(other_values(kind, name), None) for name in names}
    assert [name for name, value in values.items() if value is None] == [], "give VALUES one that is legal here"
    changed = [whole_of(kind(**{n: v}, **COMPANIONS.get((kind, n), {}))) for n, v in values.items()]
    found = [fingerprint(experiment) for experiment in (WHOLE, *changed)]
    assert len(set(found)) == len(found)


def test_every_field_of_an_experiment_itself_changes_the_fingerprint_but_its_label():
    network, training = NetworkConfig(head_width=64), TrainingConfig(iterations=7)
    changes = {"seed": 1, "precision": "bf16", "teacher": TeacherConfig(seed=1), "distillers": WHOLE.distillers[::-1]}
    changes |= {"data": DataConfig(world=1), "network": network, "training": training}
    changes |= {"inference": InferenceOptions(flip=True)}
    assert {*changes, "name"} == {f.name for f in dataclasses.fields(Experiment)}
    changed = [WHOLE, *(replace(WHOLE, **{name: value}) for name, value in changes.items())]
    changed += [replace(WHOLE, teacher=TeacherConfig(**of)) for of in ({"network": network}, {"training": training})]
    assert len({fingerprint(experiment) for experiment in changed}) == len(changed)
    assert fingerprint(replace(WHOLE, name="another")) == fingerprint(WHOLE)


def test_a_whole_number_for_a_real_one_keeps_the_fingerprint():
    def made(number):
        inference = InferenceOptions(scales=(number(1), number(2)), stride=number(1))
        return replace(WHOLE, training=TrainingConfig(learning_rate=number(1)), inference=inference)

    assert fingerprint(made(int)) == fingerprint(made(float)) != fingerprint(WHOLE)


@st.composite
def experiments(draw):
    """An experiment of either task with a few fields of some of its parts changed."""
    whole = draw(st.sampled_from([WHOLE, DETECTION, GOLDEN, Experiment(), tiny("both")]))
    for _ in range(draw(st.integers(0, 3))):
        owner = draw(st.sampled_from([*OWNERS, "distillers"]))
        part = getattr(whole, owner)
        place = draw(st.integers(0, len(part) - 1)) if owner == "distillers" and part else 0
        changed = part[place] if owner == "distillers" and part else part
        names = [name for kind, name in FIELDS if kind is type(changed)]
        assume(names)
        name = draw(st.sampled_from(names))
        values = list(other_values(type(changed), name))
        value = draw(st.sampled_from(values) | (st.floats(0.01, 1) if isinstance(values[0], float) else st.nothing()))
        try:
            changed = replace(changed, **{name: value}, **COMPANIONS.get((type(changed), name), {}))
            changed = (*part[:place], changed, *part[place + 1 :]) if owner == "distillers" else changed
            whole = replace(whole, **{owner: changed}, name=draw(st.from_regex(r"[A-Za-z0-9_.-]{1,9}", fullmatch=True)))
        except ExperimentError:
            assume(False)
    return whole


@given(experiment=experiments())
def test_an_experiment_comes_back_from_json_as_it_was_and_so_from_what_its_fingerprint_is_of_alone(experiment):
    back = from_dict(json.loads(json.dumps(to_dict(experiment))))
    assert back == experiment
    assert [type(part) for part in (back.data, back.network)] == [type(experiment.data), type(experiment.network)]
    assert fingerprint(back) == fingerprint(experiment)
    assert from_dict(json.loads(json.dumps(significant(experiment)))) == experiment, "the rest takes its defaults"


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("sed", 1, "Experiment has no field 'sed'; did you mean 'seed'?"),
        ("teacher/network/hed_width", 8, "NetworkConfig has no field 'hed_width'; did you mean 'head_width'?"),
        ("distillers/0/tempreature", 8, "APDConfig has no field 'tempreature'; did you mean 'temperature'?"),
        ("data/zzzz", 8, "DataConfig has no field 'zzzz'; known: blur, context_shift, crop_height"),
        ("distillers/0/method", ["apd"], "distillers.method = ['apd']: expected one of apd, attention_transfer"),
        ("distillers/0", "apd", "Experiment.distillers = ['apd']: expected a list of mappings"),
        ("network/kind", "mask_rcnn", "DetectorConfig has no field 'head'; known: backbone, box_width"),
        ("network/rois", 8, "NetworkConfig has no field 'rois'; DetectorConfig has it, which is recognised by"),
        ("network", {"kind": "mask_rcn"}, "DetectorConfig.kind = 'mask_rcn': expected one of mask_rcnn"),
        ("data", {"kind": "instanced"}, "InstanceDataConfig.kind = 'instanced': expected one of instances; did you"),
        ("training/milestones", 5, "TrainingConfig.milestones = 5: expected a tuple of whole numbers"),
        ("training", None, "Experiment.training = None: expected a TrainingConfig"),
        ("network", "resnet18", "NetworkConfig: expected a mapping of fields, got str"),
        ("inference/window", [713], "InferenceOptions.window = (713,): expected None or (height, width)"),
    ],
)
def test_a_file_with_a_wrong_field_is_refused_and_the_nearest_name_given(place, value, message):
    with pytest.raises(ExperimentError, match=re.escape(message)):
        from_dict(edited(to_dict(tiny("apd")), place, value))
