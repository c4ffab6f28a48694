"""Experiments as JSON, and the fingerprint that names the run of one."""

import dataclasses
import hashlib
import json
from dataclasses import fields
from typing import Any

from apd.config.detection_config import DetectorConfig, InstanceDataConfig
from apd.config.experiment import DataConfig, Experiment, NetworkConfig, TeacherConfig, TrainingConfig
from apd.config.inference_options import InferenceOptions
from apd.distillers.base import DISTILLERS, DistillerConfig
from apd.fields import ExperimentError, did_you_mean


def to_dict(config: Any) -> dict[str, Any]:
    """Every field, nested, as JSON types."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def significant(config: Any) -> dict[str, Any]:
    """Fields that differ from their default, nested, and `method` or `kind`: a later option keeps every fingerprint."""
    result: dict[str, Any] = {}
    for f in fields(config):
        value = getattr(config, f.name)
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        if f.name in ("method", "kind") or value != default:
            if f.name == "distillers":
                value = [significant(distiller) for distiller in value]
            result[f.name] = significant(value) if dataclasses.is_dataclass(value) else value
    return result


def fingerprint(experiment: Experiment) -> str:
    """Twelve hexadecimal digits that name the run of this experiment; the label `name` plays no part."""
    content = significant(dataclasses.replace(experiment, name="experiment"))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


_NESTED = {"data": DataConfig, "network": NetworkConfig, "training": TrainingConfig, "teacher": TeacherConfig}
_NESTED["inference"] = InferenceOptions
_OF_DETECTION = {DataConfig: InstanceDataConfig, NetworkConfig: DetectorConfig}  # of mappings with `kind`


def from_dict(content: dict[str, Any], kind: type = Experiment) -> Any:
    """Rebuild a configuration from `to_dict`. Absent fields take their defaults, so that old records stay readable.

    ExperimentError where a field is unknown, and the nearest is named, or holds what its configuration refuses.
    """
    if not isinstance(content, dict):
        raise ExperimentError(f"{kind.__name__}: expected a mapping of fields, got {type(content).__name__}")
    known = {f.name for f in fields(kind)}
    for name in content:
        if name not in known:
            hint = did_you_mean(name, sorted(known)) or f"; known: {', '.join(sorted(known))}"
            if kind in _OF_DETECTION and name in {f.name for f in fields(_OF_DETECTION[kind])}:
                hint = f"; {_OF_DETECTION[kind].__name__} has it, which is recognised by its field kind"
            raise ExperimentError(f"{kind.__name__} has no field {name!r}{hint}")
    values = dict(content)
    for name, value in content.items():
        if (nested := _NESTED.get(name)) and value is not None:
            of_detection = isinstance(value, dict) and "kind" in value
            values[name] = from_dict(value, _OF_DETECTION.get(nested, nested) if of_detection else nested)
    if kind is Experiment:
        values["distillers"] = _distillers_from_list(content.get("distillers", []))
    return kind(**values)


def _distillers_from_list(content: Any) -> tuple[DistillerConfig, ...]:
    if not isinstance(content, list | tuple) or not all(isinstance(entry, dict) for entry in content):
        raise ExperimentError(f"Experiment.distillers = {content!r:.80}: expected a list of mappings with a method")
    for method in [entry.get("method") for entry in content]:
        if method not in tuple(DISTILLERS):
            known = f"{', '.join(sorted(DISTILLERS))}{did_you_mean(method, DISTILLERS)}"
            raise ExperimentError(f"distillers.method = {method!r}: expected one of {known}")
    return tuple(from_dict(entry, DISTILLERS[entry["method"]]) for entry in content)
