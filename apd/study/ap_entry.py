"""Tables of average precision as a record holds them: the entry `ap`.

`{"boxes": {"ap": 10 × K × 4 nested lists, "things": K counts}, "masks": …}`, the axes those of
:class:`apd.evaluate.coco_ap.APTable`. JSON has no NaN: null stands where the data hold nothing of that kind. Reading
needs no library for counting.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from apd.evaluate.coco_ap import AREAS, IOU_THRESHOLDS, APTable, Kind


def ap_entry(tables: Mapping[Kind, APTable]) -> dict[str, Any]:
    """The entry of some tables."""
    return {
        kind: {
            "ap": [
                [[None if math.isnan(value) else value for value in row] for row in rows]
                for rows in table.ap_TKA.tolist()
            ],
            "things": table.things_K.tolist(),
        }
        for kind, table in tables.items()
    }


def tables_of(entry: Mapping[str, Any]) -> dict[Kind, APTable]:
    """The tables of an entry that was checked."""
    return {
        kind: APTable(
            torch.tensor(
                [[[math.nan if value is None else value for value in row] for row in rows] for rows in part["ap"]],
                dtype=torch.float64,
            ),
            torch.tensor(part["things"], dtype=torch.int64),
        )
        for kind, part in entry.items()
    }


def what_is_wrong(entry: Any, classes: int, kinds: Sequence[Kind]) -> str:
    """What keeps an entry from being the tables of these kinds; empty when nothing does."""
    if not isinstance(entry, dict) or set(entry) != set(kinds):
        return f"must hold {' and '.join(kinds)}, as the network gives them"
    for kind, part in entry.items():
        if not isinstance(part, dict) or set(part) != {"ap", "things"}:
            return f"{kind} must hold ap and things"
        things = part["things"]
        if not _is_list(things, classes) or not all(type(count) is int and 0 <= count < 2**63 for count in things):
            return f"{kind}.things must be {classes} counts >= 0"
        shape = (len(IOU_THRESHOLDS), classes, len(AREAS))
        if not _is_table(part["ap"], shape):
            told = f"{shape[0]} x {shape[1]} x {shape[2]} nested lists of fractions between 0 and 1, or null"
            return f"{kind}.ap must be {told}"
        for label, count in enumerate(things):
            there = {tuple(value is not None for value in rows[label]) for rows in part["ap"]}
            if len(there) > 1 or (count == 0 and any(there.pop())):
                return f"{kind}.ap of class {label}, of which there are {count}, must be null where there is none"
    if len({tuple(part["things"]) for part in entry.values()}) > 1:
        return "must count the same things of boxes and of masks"
    return ""


def _is_list(value: Any, length: int) -> bool:
    return isinstance(value, list) and len(value) == length


def _is_table(value: Any, shape: tuple[int, ...]) -> bool:
    if not shape:
        return value is None or (type(value) in (int, float) and 0 <= value <= 1)
    return _is_list(value, shape[0]) and all(_is_table(part, shape[1:]) for part in value)
