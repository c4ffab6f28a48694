"""What a record has to be: a file of JSON, the kinds and ranges of its entries, and sums in which they agree."""

import hashlib
import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from apd.config.datasets import spec_of
from apd.config.experiment import Experiment, ExperimentError
from apd.config.identity import fingerprint, from_dict
from apd.data.scenes import OBJECTS
from apd.evaluation.average_precision import AREAS, IOU_THRESHOLDS
from apd.fields import CONTROLS, UserError, each_once, one_line

SCHEMA = 1
MOST_BYTES = 2**24  # of a file; the largest committed record has 137 kB
_MOST = 2**53  # of a number; up to it floats are exact
_ENTRIES: tuple[tuple[type, str, str], ...] = (
    (dict, "a mapping", "experiment data git versions device curves other_splits kept"),
    (int, "a whole number >= 0", "schema peak_memory_bytes parameters data.images device.threads"),
    (float, "a finite number >= 0", "wall_seconds seconds_per_iteration core_seconds_per_iteration"),
    (str, "a text", "fingerprint command started weights_sha256 git.commit device.type device.name device.precision"),
    (str, "a text", "data.name data.split data.fingerprint data.training_fingerprint"),
    (bool, "true or false", "git.clean"),
    (list, "a list", "evaluations data.class_names curves.iteration"),
)
_OPTIONAL = {"core_seconds_per_iteration": 0.0, "other_splits": {}, "kept": {}}


class RecordError(UserError, ValueError):
    """A record that does not follow the schema; the message, of one line, names the file and the entry."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def read_json(path: Path) -> Any:
    """The content of a regular file of at most 16 MiB in which no key is there twice; or a RecordError."""
    try:
        if path.exists() and not (path.is_file() and 0 < path.stat().st_size <= MOST_BYTES):  # as a log
            raise ValueError(f"it is empty, or no regular file of at most {MOST_BYTES >> 20} MiB")
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=each_once)
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"{path}: cannot be read as JSON: {error}") from error


def with_digest(content: dict[str, Any]) -> dict[str, Any]:
    """The content with a last entry `digest`: the sha256 of all others as JSON with sorted keys and without spaces."""
    others = {name: value for name, value in content.items() if name != "digest"}
    canonical = json.dumps(others, sort_keys=True, separators=(",", ":"))
    return others | {"digest": hashlib.sha256(canonical.encode()).hexdigest()}


def checked(content: Any) -> Experiment:
    """The experiment of a record; RecordError where the content contradicts the schema, the experiment or itself."""
    _require(isinstance(content, dict), f"expected a JSON object, got {type(content).__name__}")
    given, content = content, _OPTIONAL | content
    for kind, expected, entries in _ENTRIES:
        for entry in entries.split():
            owner, _, name = entry.rpartition(".")
            within = content[owner] if owner else content
            _require(name in within, f"entry {entry!r} is missing")
            if not _is(within[name], kind):
                raise RecordError(f"{entry} = {within[name]!r:.80} is not {expected}")
    _require(content["schema"] == SCHEMA, f"schema {content['schema']} is not {SCHEMA}, which this code reads")
    try:
        experiment = from_dict(content["experiment"])
    except (ExperimentError, TypeError, OverflowError) as error:
        raise RecordError(f"experiment: {error!s:.600}") from error
    why = f"{fingerprint(experiment)}: the file was edited, or a field's default was changed"
    _require(why.startswith(f"{content['fingerprint']}:"), f"fingerprint is not that of its experiment, {why}")
    _require(1 <= content["device"]["threads"] <= 4096, "device.threads must be 1 to 4096")
    _check_data(content["data"], experiment)
    _check_measured(content, experiment)
    last, curves = experiment.training.iterations, content["curves"]
    for name, curve in curves.items():
        numbers = isinstance(curve, list) and all(type(v) in (int, float) and abs(v) < 1e300 for v in curve)
        _require(numbers, f"curves.{name:.80} must be a list of finite numbers")
        _require(len(curve) == len(curves["iteration"]), f"curves.{name:.80} must be as long as curves.iteration")
    evaluated = [evaluation["step"] for evaluation in content["evaluations"]]
    for entry, steps in (("curves.iteration", curves["iteration"]), ("the steps of evaluations", evaluated)):
        rise = all(earlier < later for earlier, later in pairwise((0, *steps, last + 1)))
        _require(rise, f"{entry} {steps!r:.80} do not rise between 1 and {last}, the experiment's iterations")
    kept = content["kept"].get("step") in evaluated if experiment.training.keep == "best" else not content["kept"]
    _require(kept, "kept must name the step of an evaluation exactly when the experiment keeps the best")
    same = "digest" not in given or given["digest"] == with_digest(given)["digest"]
    _require(same, "digest is not that of the other entries: the file was edited")
    return experiment


def _require(right: bool, message: str) -> None:
    if not right:
        raise RecordError(message)


def _is(value: Any, kind: type) -> bool:
    """Whether a value is of a kind; a number is one from 0 to the largest."""
    return type(value) in (int, kind) and 0 <= value <= _MOST if kind in (int, float) else isinstance(value, kind)


def _check_data(data: dict[str, Any], experiment: Experiment) -> None:
    """Class names are different names, of a built-in or published set those of it in its order; the split is right."""
    names, config, detects = data["class_names"], experiment.data, experiment.task == "detection"
    least, number = (1, "one text") if detects else (2, "two texts")
    texts = all(isinstance(name, str) and not re.search(CONTROLS, name) for name in names)
    different = texts and len(set(names)) >= max(least, len(names))
    _require(different, f"data.class_names must be a list of at least {number}, all different, no control characters")
    expected: dict[str, Any] = {"split": config.evaluation_split}
    if config.name == "scenes" or not (detects or config.name == "folder"):
        spec = OBJECTS if detects else spec_of(config)
        expected |= {"name": spec.name, "class_names": list(spec.class_names)}
    for entry, value in expected.items():
        _require(data[entry] == value, f"data.{entry} = {data[entry]!r:.80} is not the experiment's, {value!r:.80}")
    train, scored = {"fingerprint": data["training_fingerprint"]}, {"fingerprint": data["fingerprint"]}
    split, known = data["split"], data.get("identities", {"train": train, data["split"]: scored})
    held = isinstance(known, dict) and all(isinstance(one, dict) and "fingerprint" in one for one in known.values())
    right = held and train.items() <= known.get("train", {}).items() and scored.items() <= known.get(split, {}).items()
    _require(right, f"data.identities must hold train and {split} with the fingerprints that data has of them")


def _check_measured(content: dict[str, Any], experiment: Experiment) -> None:
    """What was measured is well formed, counts the same pixels or objects of one split, and agrees with agreement."""
    teacher, split, classes = content.get("teacher"), content["data"]["split"], len(content["data"]["class_names"])
    right = "teacher" in content and (teacher is None) == (experiment.teacher is None)
    _require(right, "teacher must be there exactly when the experiment has one")
    parts = [("", split, content)] + [("teacher.", split, teacher)] * (teacher is not None)
    parts += [(f"other_splits.{name:.80}.", name, other) for name, other in content["other_splits"].items()]
    for number, one in enumerate(content["evaluations"]):
        right = isinstance(one, dict) and _is(one.get("step"), int) and _is(one.get("split"), str)
        _require(right, f"evaluations[{number}] must hold step (a whole number), split and scores")
        parts.append((f"evaluations[{number}].", one["split"], one))
    first, called = dict[str, tuple[str, np.ndarray]](), dict[str, np.ndarray]()
    for prefix, of, owner in parts:
        entry, truth, called[prefix] = _counts(owner, prefix, experiment, classes)
        known, same = first.setdefault(of, (entry, truth))
        _require((truth == same).all(), f"{entry} and {known} count other labels, though both are of {of:.80}")
    if teacher is not None and experiment.task == "segmentation":
        matrix = _matrix(teacher.get("agreement"), "teacher.agreement", classes)
        # of a resumed run the teacher may have been scored on another machine, which called some pixels otherwise
        allowed = matrix.sum() // 100 if "digest" in content else 0
        for axis, prefix in ((1, "teacher."), (0, "")):
            same = abs(matrix.sum(axis) - called[prefix]).sum() <= allowed
            _require(same, f"teacher.agreement and {prefix}confusion differ in how much was called each class")


def _counts(owner: Any, prefix: str, experiment: Experiment, classes: int) -> tuple[str, np.ndarray, np.ndarray]:
    """Name of what was measured, and how many pixels (or objects) of each class are labelled, and called, so."""
    entry, other = ("ap", "confusion") if experiment.task == "detection" else ("confusion", "ap")
    name = f"{prefix}{entry}"
    _require(isinstance(owner, dict) and entry in owner, f"entry {name!r} is missing")
    _require(other not in owner, f"{prefix}{other} is no entry of a record of {experiment.task}")
    if entry == "confusion":
        matrix = _matrix(owner[entry], name, classes)
        return name, matrix.sum(1), matrix.sum(0)
    network = experiment.teacher.network if prefix == "teacher." else experiment.network
    kinds = ["boxes", "masks"] if network.kind == "mask_rcnn" else ["boxes"]
    table, shape = owner[entry], (len(IOU_THRESHOLDS), classes, len(AREAS))
    held = isinstance(table, dict) and sorted(table) == kinds
    _require(held, f"{name} must hold {' and '.join(kinds)}, as the network gives them")
    for kind, part in table.items():
        _require(isinstance(part, dict) and set(part) == {"ap", "things"}, f"{name} {kind} must hold ap and things")
        counts = _all_of(part["things"], shape[1:2], lambda count: _is(count, int))
        _require(counts, f"{name} {kind}.things must be {classes} counts >= 0")
        fractions = _all_of(part["ap"], shape, lambda value: value is None or (_is(value, float) and value <= 1))
        expected = f"{' x '.join(map(str, shape))} nested lists of fractions between 0 and 1, or null"
        _require(fractions, f"{name} {kind}.ap must be {expected}")
        for label, count in enumerate(part["things"]):
            there = {tuple(value is not None for value in rows[label]) for rows in part["ap"]}
            known = len(there) == 1 and (count or not any(*there))
            _require(known, f"{name} {kind}.ap of class {label}, of which there are {count}, must be null without any")
    things = [part["things"] for part in table.values()]
    _require(things[0] == things[-1], f"{name} must count the same things of boxes and of masks")
    return name, *2 * (np.array(things[0]),)


def _all_of(value: Any, shape: tuple[int, ...], right: Callable[[Any], bool]) -> bool:
    entries = np.array(value, dtype=object)
    return entries.shape == shape and all(map(right, entries.flat))


def _matrix(value: Any, name: str, classes: int) -> np.ndarray:
    counts = _all_of(value, (classes, classes), lambda count: _is(count, int)) and 0 < sum(map(sum, value)) <= _MOST
    _require(counts, f"{name} must be a {classes} x {classes} matrix of counts >= 0, in all 1 to 2^53")
    return np.array(value, dtype=np.int64)
