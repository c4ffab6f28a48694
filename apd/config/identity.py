"""Experiments as JSON, and the fingerprint that names the run of one."""

import dataclasses
import hashlib
import json
from dataclasses import fields
from typing import Any

from apd.config.detection import DetectorConfig, InstanceDataConfig
from apd.config.experiment import (
    DataConfig,
    Experiment,
    ExperimentError,
    NetworkConfig,
    TeacherConfig,
    TrainingConfig,
)
from apd.config.inference import InferenceOptions
from apd.distillers.base import DISTILLERS, DistillerConfig
from apd.fields import did_you_mean


def to_dict(config: Any) -> dict[str, Any]:
    """Every field, nested, as JSON types."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _significant(config: Any) -> dict[str, Any]:
    """Fields that differ from their class's default, nested; what names its class, `method` or `kind`, is always kept.

    Leaving defaults out means that an option added later, whose default is the old behaviour, keeps every existing
    fingerprint and so every record. The price is a promise: the default of a field is never changed; a better
    value goes into the recipes.
    """
    result: dict[str, Any] = {}
    for f in fields(config):
        value = getattr(config, f.name)
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        if f.name in ("method", "kind"):
            result[f.name] = value
        elif value == default:
            continue
        elif dataclasses.is_dataclass(value):
            result[f.name] = _significant(value)
        elif f.name == "distillers":
            result[f.name] = [_significant(d) for d in value]
        else:
            result[f.name] = value
    return result


def fingerprint(experiment: Experiment) -> str:
    """Twelve hexadecimal digits that name the run of this experiment; the label `name` plays no part."""
    content = _significant(dataclasses.replace(experiment, name="experiment"))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


_NESTED = {
    (Experiment, "data"): (DataConfig, InstanceDataConfig),
    (Experiment, "network"): (NetworkConfig, DetectorConfig),
    (Experiment, "training"): (TrainingConfig,),
    (Experiment, "teacher"): (TeacherConfig,),
    (Experiment, "inference"): (InferenceOptions,),
    (TeacherConfig, "network"): (NetworkConfig, DetectorConfig),
    (TeacherConfig, "training"): (TrainingConfig,),
}
"""Classes of a field that is a mapping; of two, a mapping with `kind` is of the second."""
_OF_DETECTION = {DataConfig: InstanceDataConfig, NetworkConfig: DetectorConfig}


def from_dict(content: dict[str, Any], kind: type = Experiment) -> Any:
    """Rebuild a configuration from `to_dict`; unknown fields are refused with the nearest known name.

    Fields that are absent take their defaults, so records written before a field existed stay readable.

    Raises:
        ExperimentError: a field is unknown, or holds what its configuration refuses.
    """
    if not isinstance(content, dict):
        raise ExperimentError(f"{kind.__name__}: expected a mapping of fields, got {type(content).__name__}")
    known = {f.name for f in fields(kind)}
    for name in content:
        if name not in known:
            hint = did_you_mean(name, sorted(known)) or f"; known: {', '.join(sorted(known))}"
            if kind in _OF_DETECTION and name in {f.name for f in fields(_OF_DETECTION[kind])}:
                hint = f"; {_OF_DETECTION[kind].__name__} has it, which is told by its field kind"
            raise ExperimentError(f"{kind.__name__} has no field {name!r}{hint}")
    values = dict(content)
    for name, value in content.items():
        if (nested := _NESTED.get((kind, name))) and value is not None:
            of_detection = isinstance(value, dict) and "kind" in value
            values[name] = from_dict(value, nested[-1] if of_detection else nested[0])
    if kind is Experiment:
        values["distillers"] = _distillers_from_list(content.get("distillers", []))
    try:
        return kind(**values)
    except ExperimentError:
        raise
    except ValueError as error:  # of a part below the study, such as InferenceOptions
        raise ExperimentError(str(error)) from error


def _distillers_from_list(content: Any) -> tuple[DistillerConfig, ...]:
    if not isinstance(content, list | tuple) or not all(isinstance(entry, dict) for entry in content):
        raise ExperimentError(
            f"Experiment.distillers = {content!r:.80}: expected a list of mappings with a method each"
        )
    for entry in content:
        if (method := entry.get("method")) not in tuple(DISTILLERS):
            hint = did_you_mean(method, DISTILLERS)
            raise ExperimentError(
                f"distillers.method = {method!r}: expected one of {', '.join(sorted(DISTILLERS))}{hint}"
            )
    return tuple(from_dict(entry, DISTILLERS[entry["method"]]) for entry in content)
