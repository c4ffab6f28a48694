"""Checks of a configuration's fields: against their annotations, and against what a run can use."""

import difflib
import math
import types
from collections.abc import Iterable
from dataclasses import fields
from functools import cache
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


class ExperimentError(ValueError):
    """A configuration that cannot be run; the message names the field, the value and what was expected."""


class UsageError(ValueError):
    """A command line that cannot be understood."""


def require(condition: bool, owner: object, name: str, expected: str) -> None:
    """Raise ExperimentError for field `name` of `owner` unless the condition holds."""
    if not condition:
        raise ExperimentError(f"{type(owner).__name__}.{name} = {getattr(owner, name)!r}: expected {expected}")


def require_at_least(least: int, owner: Any, *names: str) -> None:
    """Raise ExperimentError unless each of these fields of `owner` has at least this value."""
    for name in names:
        kind = "a number" if isinstance(getattr(owner, name), float) else "an integer"
        require(getattr(owner, name) >= least, owner, name, f"{kind} >= {least}")


def require_weights(owner: object, *names: str) -> None:
    """Raise ExperimentError unless each of the fields is at least 0, and one above."""
    for name in names:
        require(getattr(owner, name) >= 0, owner, name, "a number >= 0")
    if not any(getattr(owner, name) for name in names):
        raise ExperimentError(f"{type(owner).__name__}: {', '.join(names)} are all 0: expected one above 0")


def did_you_mean(value: object, known: Iterable[str]) -> str:
    """The end of a message: the known name nearest to a mistyped one, empty when none is near."""
    near = difflib.get_close_matches(str(value), list(known), n=1, cutoff=0.4)
    return f"; did you mean {near[0]!r}?" if near else ""


def require_types(owner: Any) -> None:
    """Check every field against its annotation; NaN is no number.

    NumPy's numbers become Python's, and a whole number a float where one is wanted.
    """
    hints = _hints(type(owner))
    for f in fields(owner):
        kinds, value = _alternatives(hints[f.name]), getattr(owner, f.name)
        if isinstance(value, Real) and not isinstance(value, bool):
            if float in kinds and int not in kinds:
                value = float(value)
            elif int in kinds and isinstance(value, Integral):
                value = int(value)
            object.__setattr__(owner, f.name, value)
        if not any(_fits(value, kind) for kind in kinds):
            choices = [str(choice) for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
            expected = " or ".join(_describe(kind) for kind in kinds)
            require(False, owner, f.name, expected + did_you_mean(value, choices))


_hints = cache(get_type_hints)


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _fits(value: object, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(kind))
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(
            any(_fits(v, k) for k in _alternatives(get_args(kind)[0])) for v in value
        )
    if kind is float:
        return isinstance(value, float) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _describe(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(str(choice) for choice in get_args(kind))}"
    if get_origin(kind) is tuple:
        several = {int: "whole numbers", float: "finite numbers"}
        return f"a tuple of {' or '.join(several.get(k, k.__name__) for k in _alternatives(get_args(kind)[0]))}"
    names = {int: "a whole number", float: "a finite number", str: "a text", type(None): "None"}
    return names.get(kind) or f"{'an' if kind.__name__[0] in 'AEIO' else 'a'} {kind.__name__}"
