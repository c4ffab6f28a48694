"""Experiments as JSON, and the fingerprint that names the run of one."""

import dataclasses
import difflib
import hashlib
import json
from dataclasses import fields
from typing import Any

from apd.study.experiment import (
    DISTILLERS,
    DataConfig,
    DistillerConfig,
    Experiment,
    ExperimentError,
    NetworkConfig,
    TeacherConfig,
    TrainingConfig,
)


def to_dict(config: Any) -> dict[str, Any]:
    """Every field, nested, as JSON types."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _significant(config: Any) -> dict[str, Any]:
    """Fields that differ from their class's default, nested; a distiller always keeps its method's name.

    Leaving defaults out means that an option added later, whose default is the old behaviour, keeps every existing
    fingerprint and so every record. The price is a promise: the default of a field is never changed; a better
    value goes into the recipes.
    """
    result: dict[str, Any] = {}
    for f in fields(config):
        value = getattr(config, f.name)
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        if f.name == "method":
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
    (Experiment, "data"): DataConfig,
    (Experiment, "network"): NetworkConfig,
    (Experiment, "training"): TrainingConfig,
    (Experiment, "teacher"): TeacherConfig,
    (TeacherConfig, "network"): NetworkConfig,
    (TeacherConfig, "training"): TrainingConfig,
}


def from_dict(content: dict[str, Any], kind: type = Experiment) -> Any:
    """Rebuild a configuration from `to_dict`; unknown fields are refused with the nearest known name.

    Fields that are absent take their defaults, so records written before a field existed stay readable.
    """
    if not isinstance(content, dict):
        raise ExperimentError(f"{kind.__name__}: expected a mapping of fields, got {type(content).__name__}")
    known = {f.name for f in fields(kind)}
    for name in content:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known))}"
            raise ExperimentError(f"{kind.__name__} has no field {name!r}{hint}")
    values = dict(content)
    for name, value in content.items():
        if (nested := _NESTED.get((kind, name))) and value is not None:
            values[name] = from_dict(value, nested)
    if kind is Experiment:
        values["distillers"] = tuple(_distiller_from_dict(d) for d in content.get("distillers", ()))
    try:
        return kind(**values)
    except TypeError as error:
        raise ExperimentError(f"{kind.__name__}: {error}") from None


def _distiller_from_dict(content: dict[str, Any]) -> DistillerConfig:
    method = content.get("method")
    if method not in DISTILLERS:
        near = difflib.get_close_matches(str(method), DISTILLERS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ExperimentError(f"distillers.method = {method!r}: expected one of {', '.join(DISTILLERS)}{hint}")
    return from_dict(content, DISTILLERS[method])
