"""Columns of counts: one for each class, with how many of it a photograph shows; above 0 is present."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from msldata.contract.listing import Row
from msldata.errors import OptionsNeeded
from msldata.sources.tables.column_words import is_measure
from msldata.sources.tables.mark_columns import naming

_WHOLE = re.compile(r"(?P<number>0|[1-9]\d{0,8}|-1)([.,]0*)?")
_SMALL, _LARGEST = 20, 999
_NEARLY_ALL = 0.9


def count_in(cell: Any) -> int | None:
    """The whole number in a cell, at least -1; None for anything else."""
    match = _WHOLE.fullmatch("" if cell is None else str(cell).strip())
    return int(match["number"]) if match else None


def holds_counts(column: str, rows: Sequence[Row]) -> bool:
    """Whether every cell of a column is a whole number or empty, and some are above 1."""
    filled = [row.get(column) for _, row in rows if not is_empty(row.get(column))]
    counts = [count for cell in filled if (count := count_in(cell)) is not None]
    return len(counts) == len(filled) and max(counts, default=0) > 1


def columns_of_counts(columns: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """Those of the columns that look like counts of what they are called after.

    Such numbers are mostly small, and of nothing there is a count in every photograph; ids, years and sizes are not so,
    or are called by their names. A single cell above 1 in the whole table is a slip.
    """
    found = {name: _small_counts(name, rows) for name in columns if not is_measure(name)}
    above = {name: sum(count > 1 for count in counts) for name, counts in found.items()}
    return [name for name in above if above[name]] if sum(above.values()) > 1 else []


def _small_counts(column: str, rows: Sequence[Row]) -> list[int]:
    """The counts of a column; none where it holds something else, or nowhere 0."""
    counts = _small_numbers(column, rows)
    return counts if min(counts, default=1) <= 0 else []


def _small_numbers(column: str, rows: Sequence[Row]) -> list[int]:
    if not holds_counts(column, rows):
        return []
    counts = [count_in(row.get(column)) or 0 for _, row in rows]
    small = sum(count <= _SMALL for count in counts) >= _NEARLY_ALL * len(counts)
    return counts if small and max(counts) <= _LARGEST else []


def refuse_doubtful_counts(counts: Sequence[str], beside: Sequence[str], rows: Sequence[Row]) -> None:
    """Raise OptionsNeeded for a column beside columns of counts that is like them, but nowhere 0.

    Args:
        counts: the columns of classes.
        beside: other columns.
    """
    alike = [name for name in beside if not is_measure(name) and _small_numbers(name, rows)]
    if alike:
        raise OptionsNeeded(
            f"column '{alike[0]}' holds small numbers as '{counts[0]}' does, but nowhere 0: a count, or something else",
            naming([*counts, *alike]),
            "if it counts too",
            other=("if it says something else", naming(counts)),
        )


def is_empty(cell: Any) -> bool:
    """Whether nothing is in a cell, or a word for nothing."""
    return str("" if cell is None else cell).strip().lower() in ("", "nan", "none")
