"""Average precision class by class, for readers: lines of text and a table as CSV."""

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from apd.evaluate.coco_ap import APTable, Kind, ap_scores

NAMES: dict[Kind, str] = {"boxes": "box", "masks": "mask"}


def _columns(tables: Mapping[Kind, APTable]) -> dict[str, Tensor]:
    """The columns of a table of classes, by their titles: (K,) each."""
    columns = {}
    for kind, table in tables.items():
        overall_TK = table.ap_TKA[..., 0]
        for title, ap_K in (("AP", overall_TK.nanmean(0)), ("AP50", overall_TK[0]), ("AP75", overall_TK[5])):
            columns[f"{NAMES[kind]} {title}"] = ap_K
    return columns


def ap_csv(tables: Mapping[Kind, APTable], class_names: Sequence[str]) -> str:
    """A table with a row for each class: its name, its things, and AP, AP50 and AP75 of boxes, and of masks.

    What is not defined, since there is no such thing, is left empty.

    >>> import torch
    >>> table = APTable(torch.full((10, 2, 4), 0.25), torch.tensor([3, 0]))
    >>> table.ap_TKA[:, 1] = torch.nan
    >>> print(ap_csv({"boxes": table}, ["cat", "dog"]), end="")
    class,things,box AP,box AP50,box AP75
    cat,3,0.250000,0.250000,0.250000
    dog,0,,,
    """
    columns, written = _columns(tables), io.StringIO()
    table = csv.writer(written, lineterminator="\n")
    table.writerow(("class", "things", *columns))
    values = (column.tolist() for column in columns.values())
    things = next(iter(tables.values())).things_K.tolist()
    for name, count, *fractions in zip(class_names, things, *values, strict=True):
        table.writerow((name, count, *("" if math.isnan(value) else f"{value:.6f}" for value in fractions)))
    return written.getvalue()


def ap_lines(tables: Mapping[Kind, APTable], class_names: Sequence[str]) -> Iterator[str]:
    """A line for each class of which there is something to be found, then one for each of boxes and masks.

    >>> import torch
    >>> table = APTable(torch.full((10, 1, 4), 0.25), torch.tensor([3]))
    >>> print(*ap_lines({"boxes": table}, ["cat"]), sep="\\n")
    cat            box AP 0.2500  AP50 0.2500     3 things
    box AP 0.2500, AP50 0.2500, AP75 0.2500, small 0.2500, medium 0.2500, large 0.2500 over 1 classes
    """
    things = next(iter(tables.values())).things_K.tolist()
    columns = _columns(tables)
    for place, (name, count) in enumerate(zip(class_names, things, strict=True)):
        if count:
            told = (
                f"{NAMES[kind]} AP {columns[f'{NAMES[kind]} AP'][place]:.4f}  "
                f"AP50 {columns[f'{NAMES[kind]} AP50'][place]:.4f}"
                for kind in tables
            )
            yield f"{name:14s} {'  '.join(told)} {count:5d} things"
    for kind, table in tables.items():
        found = ap_scores(table)
        sizes = f"small {found.small:.4f}, medium {found.medium:.4f}, large {found.large:.4f}"
        counted = int((~found.ap_K.isnan()).sum())
        yield (
            f"{NAMES[kind]} AP {found.ap:.4f}, AP50 {found.ap50:.4f}, AP75 {found.ap75:.4f}, {sizes} "
            f"over {counted} classes"
        )
