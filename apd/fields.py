"""Checks of a configuration's fields: against their annotations, and against what a run can use."""

import difflib
import importlib
import re
import reprlib
import types
from collections import Counter
from collections.abc import Iterable
from dataclasses import fields
from functools import cache
from numbers import Integral, Rational, Real
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


class UserError(Exception):
    """What a user can mend: a command ends with its message, of one line, and without a traceback."""


class ExperimentError(UserError, ValueError):
    """A configuration that cannot be run; the message names the field, the value and what was expected."""


class UsageError(ValueError):
    """A command line that cannot be understood."""


SMALLEST, LARGEST = 1e-12, 1e9  # of weights and rates (own choice): float32 loses itself a little way beyond them
LONGEST_TEXT, LONGEST_SIDE = 500, 2**14  # characters of a name or path, and pixels (own choice)
MOST = 2**20  # of a count (own choice): beyond it, memory ends before anything is computed
WIDEST = 2**14  # channels (own choice): the second convolution of a projection head takes 1 GiB here
# with ends of lines, turns of direction, and what Python makes of bytes that are no UTF-8
CONTROLS = "[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 160


def shown(value: object) -> str:
    """The value in a message, in at most 300 characters, whatever its size."""
    try:
        return f"{_REPR.repr(value):.300}"
    except ValueError:  # Python writes no integer of more than 4300 digits
        return "an integer of thousands of digits"


def one_line(message: str) -> str:
    """A message without ends of lines or other control characters, in at most 903 characters."""
    line = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in message)
    return line if len(line) <= 900 else f"{line[:450]} … {line[-450:]}"


def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, whose keys must differ: which of two values counts, readers do not agree on."""
    if len(found := dict(pairs)) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the entry {twice!r:.80} is there twice")
    return found


def imported(package: str, purpose: str, extra: str, error: type[Exception]) -> Any:
    """A package that an extra of this project brings; where it is missing, an `error` names `purpose` and extra."""
    try:
        return importlib.import_module(package)
    except ImportError as missing:
        name, fix = package.rpartition(".")[2], f"install it with `pip install -e '.[{extra}]'` in the project's folder"
        raise error(f"{purpose} needs the package {name}: {fix}") from missing


def require(condition: bool, owner: object, name: str, expected: str) -> None:
    """Raise ExperimentError for field `name` of `owner` unless the condition holds."""
    if not condition:
        raise ExperimentError(f"{type(owner).__name__}.{name} = {shown(getattr(owner, name))}: expected {expected}")


def require_range(least: int, most: float, owner: Any, *names: str) -> None:
    """Raise ExperimentError unless each of these fields of `owner` lies between the two, which are allowed."""
    for name in names:
        kind = "a number" if isinstance(getattr(owner, name), float) else "an integer"
        require(least <= getattr(owner, name) <= most, owner, name, f"{kind} >= {least}, at most {most:g}")


def did_you_mean(value: object, known: Iterable[str]) -> str:
    """The end of a message: the known name nearest to a mistyped one, empty when none is near."""
    named = {name.casefold(): name for name in known}
    near = difflib.get_close_matches(value.casefold() if isinstance(value, str) else "", named, n=1, cutoff=0.4)
    return f"; did you mean {named[near[0]]!r}?" if near else ""


def require_types(owner: Any) -> None:
    """Check every field against its annotation; NaN is no number, and no number or text is larger than can be meant.

    NumPy's numbers become Python's, a whole number a float where one is wanted, and a list a tuple: JSON has lists.
    """
    hints = _hints(type(owner))
    for f in fields(owner):
        kinds, value = _alternatives(hints[f.name]), getattr(owner, f.name)
        if isinstance(value, Real) and not isinstance(value, bool):
            if float in kinds and int not in kinds:
                value = value if isinstance(value, Rational) and abs(value) > 2**64 else float(value)
            elif int in kinds and isinstance(value, Integral):
                value = int(value)
        elif isinstance(value, list | tuple) and (of := [get_args(kind)[0] for kind in kinds if get_args(kind)]):
            value = tuple(float(v) if float in of and type(v) is int and abs(v) < 2**64 else v for v in value)
        object.__setattr__(owner, f.name, value)
        if not any(_fits(value, kind) for kind in kinds):
            choices = [str(choice) for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
            require(False, owner, f.name, " or ".join(map(_describe, kinds)) + did_you_mean(value, choices))


_hints = cache(get_type_hints)


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _fits(value: object, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(kind))
    if get_origin(kind) is tuple:
        kinds = _alternatives(get_args(kind)[0])
        return isinstance(value, tuple) and all(any(_fits(v, k) for k in kinds) for v in value)
    if kind is float:
        return isinstance(value, float) and (value == 0 or SMALLEST <= abs(value) <= LARGEST)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= 2**64
    if kind is str:
        return isinstance(value, str) and len(value) <= LONGEST_TEXT and not re.search(CONTROLS, value)
    return isinstance(value, kind)


def _describe(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(str(choice) for choice in get_args(kind))}"
    if get_origin(kind) is tuple:
        several = {int: "whole numbers", float: "finite numbers"}
        return f"a tuple of {' or '.join(several.get(k, k.__name__) for k in _alternatives(get_args(kind)[0]))}"
    names = {int: "a whole number of at most 64 bits", float: "a finite number, 0 or 1e-12 to 1e+09 in size"}
    names |= {str: f"a text of at most {LONGEST_TEXT} characters, no control characters", type(None): "None"}
    return names.get(kind) or f"{'an' if kind.__name__[0] in 'AEIO' else 'a'} {kind.__name__}"
