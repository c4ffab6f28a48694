"""The fingerprint names a run: it may never change for an experiment that was run, and changes with every field."""

import dataclasses
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_experiments import tiny

from apd.config.detection import DetectorConfig, InstanceDataConfig
from apd.config.experiment import (
    DataConfig,
    Experiment,
    ExperimentError,
    NetworkConfig,
    TeacherConfig,
    TrainingConfig,
)
from apd.config.identity import fingerprint, from_dict, to_dict
from apd.config.inference import InferenceOptions
from apd.distillers.apd import APDConfig, DenseAPDConfig, RoIAPDConfig
from apd.distillers.base import DISTILLERS
from apd.distillers.logits import PixelKDConfig
from apd.distillers.on_detectors import PyramidMatchingConfig, ReviewKDConfig, RoIDKDConfig, RoIKDConfig
from apd.study.recipes import METHODS, recipe

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

OF_DETECTION = [RoIAPDConfig, DenseAPDConfig, RoIKDConfig, RoIDKDConfig, PyramidMatchingConfig, ReviewKDConfig]
assert set(OF_DETECTION) == {kind for kind in DISTILLERS.values() if kind.task == "detection"}
DETECTION = Experiment(
    data=InstanceDataConfig(),
    network=DetectorConfig(),
    teacher=TeacherConfig(network=DetectorConfig(backbone="resnet50")),
    distillers=tuple(kind() for kind in OF_DETECTION),
)


def test_fingerprints_are_those_of_the_first_records():
    """If this fails, a field's default was changed or a field was renamed: every record made so far loses its run.
    Give the field its old default back and put the better value into the recipes."""
    assert fingerprint(Experiment()) == "44136fa355b3"
    assert fingerprint(GOLDEN) == "8b9fe9a483fe"
    assert fingerprint(GOLDEN.teacher_experiment()) == "cd645d501f8d"
    assert fingerprint(DETECTION) == "cb37620fe562"
    assert fingerprint(DETECTION.teacher_experiment()) == "e841ba86f93c"


OTHER = {  # for every field a legal value that is not its default
    DataConfig: {
        "name": "camvid",
        "folder": "fields",
        "height": 64,
        "width": 64,
        "long_side": 512,
        "evaluation_split": "test",
        "crop_height": 64,
        "crop_width": 64,
        "scale_min": 0.75,
        "scale_max": 1.5,
        "flip": 0.25,
        "jitter": 0.1,
        "rotation": 10.0,
        "blur": 0.5,
        "context_shift": 1.0,
        "train_images": 7,
        "evaluation_images": 7,
        "world": 1,
    },
    NetworkConfig: {
        "backbone": "resnet18",
        "head": "aspp",
        "head_width": 64,
        "output_stride": 8,
        "weights": "imagenet",
        "dropout": 0.0,
        "dilation": "all_convs",
        "aspp_reach": 96,
        "weights_file": "resnet18-imagenet.pth",
    },
    TrainingConfig: {
        "iterations": 7,
        "batch_size": 4,
        "learning_rate": 0.02,
        "head_multiplier": 1.0,
        "momentum": 0.0,
        "weight_decay": 0.0,
        "power": 1.0,
        "auxiliary_weight": 0.0,
        "clip_norm": 1.0,
        "ema_decay": 0.9,
        "evaluations": 0,
        "accumulation": 2,
        "compile": True,
        "cuda_graph": True,
        "channels_last": False,
        "fused": True,
        "pinned_memory": True,
        "device_augmentation": True,
        "optimiser": "adamw",
        "schedule": "steps",
        "milestones": (500, 800),
        "warmup": 100,
    },
    PixelKDConfig: {"weight": 2.0, "temperature": 4.0, "reduction": "element", "upsample_logits": True},
    APDConfig: {
        "width": 64,
        "scale": 5.0,
        "scope": "batch",
        "reduction": "element",
        "absent": "zero",
        "regularisation": 0.0,
        "alignment": 0.0,
        "observation": 0.0,
        "pixel_kd": 0.0,
        "temperature": 4.0,
        "teacher_head_rate": 1e-5,
        "teacher_head_schedule": "poly",
        "labels_from": "teacher",
        "detach_prototypes": True,
        "upsample_logits": True,
    },
    TeacherConfig: {
        "network": NetworkConfig(head_width=64),
        "training": TrainingConfig(iterations=7),
        "seed": 1,
        "weights_file": "teacher.safetensors",
        "expected_miou": 0.3,
        "expected_ap": 0.3,
    },
    InstanceDataConfig: {
        "name": "coco",
        "folder": "tiny_coco",
        "annotations": "instances_{split}.json",
        "pictures": "pictures/{split}",
        "train_part": "train",
        "val_part": "val",
        "masks": False,
        "height": 64,
        "width": 64,
        "evaluation_split": "test",
        "flip": 0.25,
        "scale_min": 0.75,
        "scale_max": 1.5,
        "jitter": 0.1,
        "context_shift": 1.0,
        "train_images": 7,
        "evaluation_images": 7,
        "world": 1,
        "least_pixels": 1,
    },
    DetectorConfig: {
        "kind": "faster_rcnn",
        "backbone": "resnet50",
        "width": 64,
        "box_width": 64,
        "smallest_anchor": 8,
        "proposals": 100,
        "rois": 64,
        "detections": 50,
        "weights": "imagenet",
    },
    RoIAPDConfig: {
        "width": 64,
        "scale": 5.0,
        "regularisation": 0.0,
        "alignment": 0.0,
        "observation": 0.0,
        "pixel_kd": 0.0,
        "temperature": 4.0,
        "teacher_head_rate": 1e-5,
        "teacher_head_schedule": "poly",
    },
    DenseAPDConfig: {
        "levels": ("0", "2"),
        "width": 64,
        "scale": 5.0,
        "regularisation": 0.0,
        "alignment": 0.0,
        "observation": 0.0,
        "teacher_head_rate": 1e-5,
        "teacher_head_schedule": "poly",
    },
    RoIKDConfig: {"weight": 2.0, "temperature": 4.0},
    RoIDKDConfig: {"target": 2.0, "non_target": 8.0, "temperature": 4.0},
    PyramidMatchingConfig: {"levels": ("1",), "weight": 2.0},
    ReviewKDConfig: {"levels": ("0", "1"), "width": 64, "weight": 2.0},
    Experiment: {
        "seed": 1,
        "data": DataConfig(world=1),
        "network": NetworkConfig(head_width=64),
        "training": TrainingConfig(iterations=7),
        "precision": "bf16",
        "teacher": TeacherConfig(seed=1),
        "distillers": (),
        "inference": InferenceOptions(flip=True),
    },
    InferenceOptions: {
        "window": (64, 48),
        "stride": 0.5,
        "flip": True,
        "scales": (0.5, 1.0),
    },
}
LABELS = {Experiment: {"name"}, PixelKDConfig: {"method"}, APDConfig: {"method"}, InstanceDataConfig: {"kind"}}
LABELS |= {kind: {"method"} for kind in OF_DETECTION}
COMPANIONS = {  # refused without
    (TeacherConfig, "expected_ap"): {"network": DetectorConfig()},
    (InstanceDataConfig, "name"): {"folder": "coco"},
    (NetworkConfig, "aspp_reach"): {"head": "aspp"},
    (NetworkConfig, "weights_file"): {"weights": "imagenet"},
    (TrainingConfig, "schedule"): {"milestones": (500, 700)},
    (TrainingConfig, "milestones"): {"schedule": "steps"},
}


@pytest.mark.parametrize("kind", OTHER)
def test_every_field_has_another_value_to_be_tried(kind):
    assert set(OTHER[kind]) | LABELS.get(kind, set()) == {field.name for field in dataclasses.fields(kind)}


def full(config):
    """An experiment that holds the configuration."""
    whole = Experiment(teacher=TeacherConfig(), distillers=(PixelKDConfig(), APDConfig()))
    match config:
        case DataConfig():
            return replace(whole, data=config)
        case NetworkConfig():
            return replace(whole, network=config)
        case TrainingConfig():
            return replace(whole, training=config)
        case PixelKDConfig():
            return replace(whole, distillers=(config, APDConfig()))
        case APDConfig():
            return replace(whole, distillers=(PixelKDConfig(), config))
        case TeacherConfig(network=NetworkConfig()):
            return replace(whole, teacher=config)
        case TeacherConfig(network=DetectorConfig()):
            return replace(DETECTION, teacher=config)
        case InstanceDataConfig():
            return replace(DETECTION, data=config)
        case DetectorConfig():
            return replace(DETECTION, network=config)
        case _ if type(config) in OF_DETECTION:
            place = OF_DETECTION.index(type(config))
            return replace(
                DETECTION, distillers=(*DETECTION.distillers[:place], config, *DETECTION.distillers[place + 1 :])
            )
        case InferenceOptions():
            return replace(whole, inference=config)
    raise AssertionError(config)


@pytest.mark.parametrize("kind", OTHER)
def test_every_field_changes_the_fingerprint_and_no_two_changes_meet(kind):
    whole = Experiment(teacher=TeacherConfig(), distillers=(PixelKDConfig(), APDConfig()))
    changed = [
        replace(whole, **{name: value})
        if kind is Experiment
        else full(kind(**{name: value}, **COMPANIONS.get((kind, name), {})))
        for name, value in OTHER[kind].items()
    ]
    found = [fingerprint(experiment) for experiment in (whole, *changed)]
    assert len(set(found)) == len(found)


def test_the_same_change_in_another_place_is_another_experiment():
    network, training = NetworkConfig(head_width=64), TrainingConfig(iterations=7)
    whole = Experiment(teacher=TeacherConfig())
    places = [
        replace(whole, network=network),
        replace(whole, training=training),
        replace(whole, teacher=TeacherConfig(network=network)),
        replace(whole, teacher=TeacherConfig(training=training)),
        Experiment(),
        whole,
    ]
    assert len({fingerprint(place) for place in places}) == len(places)


def test_the_order_of_distillers_counts():
    one, other = (PixelKDConfig(), APDConfig()), (APDConfig(), PixelKDConfig())
    assert fingerprint(replace(GOLDEN, distillers=one)) != fingerprint(replace(GOLDEN, distillers=other))


def test_the_label_plays_no_part():
    assert fingerprint(replace(GOLDEN, name="another")) == fingerprint(GOLDEN)


def test_a_whole_number_for_a_real_one_keeps_the_fingerprint():
    as_float, as_int = TrainingConfig(learning_rate=1.0), TrainingConfig(learning_rate=1)
    assert fingerprint(full(as_float)) == fingerprint(full(as_int))
    as_float, as_int = InferenceOptions(scales=(1.0, 2.0), stride=1.0), InferenceOptions(scales=(1, 2), stride=1)
    assert fingerprint(full(as_float)) == fingerprint(full(as_int))


def test_no_two_experiments_of_the_recipes_share_a_fingerprint():
    experiments = [
        recipe("tiny", method, seed=seed, context_shift=shift)
        for method in METHODS
        for seed in range(3)
        for shift in (0.0, 1.0)
    ]
    assert len({fingerprint(experiment) for experiment in experiments}) == len(experiments)


DETECTION_CONFIGS = (InstanceDataConfig, DetectorConfig, *OF_DETECTION)
TEXTS = st.text("abz_09.-äß/ ", max_size=12)
POSITIVE = st.floats(1e-6, 1e3)
SIDES = st.integers(32, 400)
NETWORKS = st.builds(
    NetworkConfig,
    backbone=TEXTS,
    head_width=st.integers(4, 1024),
    output_stride=st.sampled_from([4, 8, 16]),
    head=st.sampled_from(["psp", "aspp"]),
    weights=st.sampled_from(["none", "imagenet", "torchvision"]),
    dropout=st.floats(0, 0.99),
    dilation=st.sampled_from(["one_conv", "all_convs"]),
)
TRAININGS = st.builds(
    TrainingConfig,
    iterations=st.integers(1, 10**6),
    batch_size=st.integers(1, 8).map(lambda eighths: 8 * eighths),
    learning_rate=POSITIVE | st.integers(1, 9),
    head_multiplier=POSITIVE,
    momentum=st.floats(0, 0.999),
    clip_norm=st.none() | POSITIVE,
    ema_decay=st.none() | st.floats(0.01, 0.999),
    evaluations=st.integers(0, 9),
    accumulation=st.sampled_from([1, 2, 4]),
    fused=st.booleans(),
)
STEPPED = st.builds(
    TrainingConfig,
    iterations=st.integers(2001, 10**6),
    optimiser=st.sampled_from(["sgd", "adamw"]),
    schedule=st.just("steps"),
    milestones=st.sets(st.integers(1, 2000), min_size=1, max_size=3).map(sorted).map(tuple),
    warmup=st.integers(0, 2000),
)
DATA = st.builds(
    DataConfig,
    name=st.sampled_from(["scenes", "camvid"]),
    height=SIDES,
    width=SIDES,
    evaluation_split=st.sampled_from(["val", "test"]),
    crop_height=SIDES,
    crop_width=SIDES,
    scale_min=st.floats(0.1, 1),
    scale_max=st.floats(1, 3),
    context_shift=st.floats(0, 1) | st.integers(0, 1),
    world=st.integers(0, 2**40),
)
KD = st.builds(PixelKDConfig, weight=POSITIVE, temperature=POSITIVE)
APD = st.builds(
    APDConfig,
    width=st.integers(1, 1024),
    scale=POSITIVE,
    scope=st.sampled_from(["image", "batch"]),
    alignment=st.floats(0, 100),
    pixel_kd=st.just(0.0) | POSITIVE,
)
TEACHERS = st.builds(
    TeacherConfig,
    network=NETWORKS,
    training=TRAININGS | STEPPED,
    seed=st.integers(0, 9),
    weights_file=TEXTS,
    expected_miou=st.floats(0, 1),
)
INFERENCES = st.builds(
    InferenceOptions,
    window=st.none() | st.tuples(SIDES, SIDES),
    stride=st.floats(0.01, 1),
    flip=st.booleans(),
    scales=st.lists(st.floats(1, 3) | st.integers(1, 3), min_size=1, max_size=3).map(tuple),
)
EXPERIMENTS = st.builds(
    Experiment,
    name=st.from_regex(r"[A-Za-z0-9_.-]{1,20}", fullmatch=True),
    seed=st.integers(0, 2**63 - 1),
    data=DATA,
    network=NETWORKS,
    training=TRAININGS | STEPPED,
    precision=st.sampled_from(["auto", "fp32", "bf16"]),
    teacher=TEACHERS,
    distillers=st.one_of(st.just(()), st.tuples(KD), st.tuples(APD), st.tuples(APD, KD)),
    inference=INFERENCES,
)


@given(experiment=EXPERIMENTS)
def test_an_experiment_comes_back_from_json_as_it_was(experiment):
    back = from_dict(json.loads(json.dumps(to_dict(experiment))))
    assert back == experiment
    assert fingerprint(back) == fingerprint(experiment)


@given(one=EXPERIMENTS, other=EXPERIMENTS)
def test_fingerprints_are_equal_just_when_experiments_are(one, other):
    assert (fingerprint(one) == fingerprint(other)) == (one == replace(other, name=one.name))


@pytest.mark.parametrize("kind", DETECTION_CONFIGS)
def test_an_experiment_of_detection_comes_back_from_json_as_it_was(kind):
    fields = OTHER[kind] | ({"masks": True, "evaluation_split": "val"} if kind is InstanceDataConfig else {})
    if kind is DenseAPDConfig:
        fields = fields | {"alignment": 3.0}
    experiment = full(kind(**(fields | ({"pixel_kd": 2.0} if kind is RoIAPDConfig else {}))))
    back = from_dict(json.loads(json.dumps(to_dict(experiment))))
    assert back == experiment
    assert fingerprint(back) == fingerprint(experiment)


@pytest.mark.parametrize(
    ("experiment", "class_names"),
    [(DETECTION, ("InstanceDataConfig", "DetectorConfig")), (tiny("apd"), ("DataConfig", "NetworkConfig"))],
    ids=["detection", "segmentation"],
)
def test_the_field_kind_tells_the_class_of_data_and_networks(experiment, class_names):
    back = from_dict(to_dict(experiment))
    found = [type(part).__name__ for part in (back.data, back.network, back.teacher.network)]
    assert found == [class_names[0], class_names[1], class_names[1]]


@given(experiment=EXPERIMENTS)
def test_fields_that_a_file_leaves_out_take_their_defaults(experiment):
    def stripped(config):
        kept = {}
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            default = field.default_factory() if callable(field.default_factory) else field.default
            if value != default or field.name in ("method", "kind"):
                kept[field.name] = stripped(value) if dataclasses.is_dataclass(value) else value
        return kept

    content = stripped(experiment)
    content["distillers"] = [stripped(distiller) for distiller in experiment.distillers]
    assert from_dict(content) == experiment


def edited(path, value):
    """The dictionary of an experiment with one entry replaced or added."""
    content = to_dict(tiny("apd"))
    owner = content
    for key in path[:-1]:
        owner = owner[key]
    owner[path[-1]] = value
    return content


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("sed",), 1, "Experiment has no field 'sed'; did you mean 'seed'?"),
        (("training", "lerning_rate"), 1, "TrainingConfig has no field 'lerning_rate'; did you mean 'learning_rate'?"),
        (("teacher", "network", "hed_width"), 8, "NetworkConfig has no field 'hed_width'; did you mean 'head_width'?"),
        (("distillers", 0, "tempreature"), 8, "APDConfig has no field 'tempreature'; did you mean 'temperature'?"),
        (("data", "zzzz"), 8, "DataConfig has no field 'zzzz'; known: blur, context_shift, crop_height"),
        (("distillers", 0, "method"), "adp", "distillers.method = 'adp': expected one of apd, attention_transfer"),
        (("distillers", 0, "method"), ["apd"], "distillers.method = ['apd']: expected one of apd, attention_transfer"),
        (("distillers", 0), "apd", "Experiment.distillers = ['apd']: expected a list of mappings"),
        (("network", "kind"), "mask_rcnn", "DetectorConfig has no field 'head'; known: backbone, box_width"),
        (("network", "rois"), 8, "NetworkConfig has no field 'rois'; DetectorConfig has it, which is told by"),
        (("data", "least_pixels"), 8, "DataConfig has no field 'least_pixels'; InstanceDataConfig has it, which"),
        (("network",), {"kind": "mask_rcn"}, "DetectorConfig.kind = 'mask_rcn': expected one of mask_rcnn"),
        (("data",), {"kind": "instanced"}, "InstanceDataConfig.kind = 'instanced': expected one of instances; did you"),
        (("distillers",), None, "Experiment.distillers = None: expected a list of mappings"),
        (("training", "learning_rate"), "fast", "TrainingConfig.learning_rate = 'fast': expected a finite number"),
        (("training", "iterations"), 6.0, "TrainingConfig.iterations = 6.0: expected a whole number"),
        (("training", "milestones"), 5, "TrainingConfig.milestones = 5: expected a tuple of whole numbers"),
        (("training",), None, "Experiment.training = None: expected a TrainingConfig"),
        (("network",), "resnet18", "NetworkConfig: expected a mapping of fields, got str"),
        (("inference", "strde"), 1, "InferenceOptions has no field 'strde'; did you mean 'stride'?"),
        (
            ("inference", "stride"),
            2,
            "InferenceOptions.stride = 2: expected a part of the window, above 0 and at most 1",
        ),
        (("inference", "window"), [713], "InferenceOptions.window = (713,): expected None or (height, width)"),
    ],
)
def test_a_file_with_a_wrong_field_is_refused_and_the_nearest_name_told(path, value, told):
    with pytest.raises(ExperimentError) as caught:
        from_dict(edited(path, value))
    assert told in str(caught.value)
