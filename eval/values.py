"""What each query scored: the values that means, intervals and comparisons are made of."""

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, TextIO

import numpy as np

from retrieval.data.rows import table_writer
from retrieval.errors import UserError
from retrieval.intervals import Doubles, bootstrap

SIGNED = ("silhouette", "spearman")  # may be below 0, where the others are in 0…1
Interval = tuple[float, float]
Unit = Literal["query", "class"]


@dataclass(frozen=True)
class PerQuery:
    """ids: (q,) of the queries; groups: (q,) their classes, or None; values: by the metric's name, (q,) each, larger is better."""

    ids: list[str]
    groups: list[str] | None
    values: dict[str, Doubles]

    def means(self) -> dict[str, float]:
        return {name: float(each.mean()) for name, each in self.values.items()}

    def intervals(self, seed: int = 0) -> dict[str, Interval]:
        """95 %, over queries."""
        return self._intervals(None, seed)

    def intervals_by_group(self, seed: int = 0) -> dict[str, Interval]:
        """95 %, over whole classes: how the mean would do on other classes like these."""
        assert self.groups is not None
        return self._intervals(self.group_codes[1], seed)

    def intervals_over(self, unit: Unit, seed: int = 0) -> dict[str, Interval]:
        """95 %, over queries, or over whole classes."""
        return self.intervals(seed) if unit == "query" else self.intervals_by_group(seed)

    @cached_property
    def group_codes(self) -> tuple[list[str], np.ndarray[tuple[int], np.dtype[np.int64]]]:
        """The names of the groups, sorted, and each query's place among them."""
        names, codes = np.unique(np.asarray(self.groups, dtype=object).astype(str), return_inverse=True)
        return names.tolist(), codes.astype(np.int64)

    def group_means(self) -> dict[str, Doubles]:
        """By metric, the mean (g,) of each group; their mean is the macro average."""
        names, codes = self.group_codes
        sizes = np.bincount(codes, minlength=len(names))
        return {name: np.bincount(codes, each, len(names)) / sizes for name, each in self.values.items()}

    def group_sizes(self) -> list[int]:
        """How many queries each group has."""
        return [int(size) for size in np.bincount(self.group_codes[1])]

    def _intervals(self, groups: np.ndarray[tuple[int], np.dtype[np.int64]] | None, seed: int) -> dict[str, Interval]:
        bounded = [name not in SIGNED for name in self.values]
        ends = bootstrap(np.column_stack(list(self.values.values())), groups=groups, seed=seed, bounded=bounded)
        return {name: (float(low), float(high)) for name, (low, high) in zip(self.values, ends, strict=True)}

    def write(self, file: TextIO) -> None:
        """As CSV: query, group if there are groups, then a column a metric. Values read back as they were."""
        writer = table_writer(file)
        writer.writerow(["query", *(["group"] if self.groups is not None else []), *self.values])
        columns: list[Iterable[object]] = [self.ids, *([self.groups] if self.groups is not None else [])]
        writer.writerows(zip(*columns, *(each.tolist() for each in self.values.values()), strict=True))


def first_of_each(metrics: Iterable[str]) -> dict[str, str]:
    """By measure, such as "ndcg" or "map/min", the first metric of it: what several say at their own k is told once."""
    return {re.sub(r"@\d+", "", name): name for name in reversed(list(metrics))}


def read_per_query(path: Path) -> PerQuery:
    """The reverse. Raises UserError for another kind of table."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: is no CSV in UTF-8 ({error})") from None
    first = 2 if header[1:2] == ["group"] else 1
    if header[:1] != ["query"] or len(header) <= first or not rows:
        raise UserError(f"{path}: is no table of values by query; it needs a column query and one a metric")
    bad = next((number for number, row in enumerate(rows, 2) if len(row) != len(header)), None)
    if bad is not None:
        raise UserError(f"{path}: line {bad} has {len(rows[bad - 2])} columns, the header {len(header)}")
    columns = list(zip(*rows, strict=True))
    try:
        values = {name: np.array(columns[at], np.float64) for at, name in enumerate(header[first:], first)}
    except ValueError as error:
        raise UserError(f"{path}: {error}; every metric needs a number for every query") from None
    for name, found in values.items():
        if not np.isfinite(found).all():
            line = int(np.flatnonzero(~np.isfinite(found))[0]) + 2
            raise UserError(
                f"{path}: line {line}: {name} is {found[line - 2]}; every metric needs a number for every query"
            )
    return PerQuery(list(columns[0]), list(columns[1]) if first == 2 else None, values)
