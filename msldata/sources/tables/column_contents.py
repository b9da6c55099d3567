"""What the columns of a table hold, by their cells: 0 and 1, counts, marks, words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msldata.contract.listing import Row, bare, columns_of_images
from msldata.sources.tables.column_words import (
    WORDS_FOR_INDICES,
    is_remark,
    is_site,
    is_time,
    names_of_labels,
    says_labels,
)
from msldata.sources.tables.count_columns import columns_of_counts, is_empty
from msldata.sources.tables.mark_columns import ColumnOfMarks, marks_in

BINARY = re.compile(r"(0|-?1)([.,]0*)?|true|false|nan|none|")
NUMERIC = re.compile(r"[+-]?\d*[.,]?\d+")
_NO_CLASS = re.compile(r"|index|unnamed\d*|(sample|row|image)?id|is(valid|train|test|crowd)")
_NEARLY_ALL = 0.9


@dataclass(frozen=True, slots=True)
class Contents:
    """The columns that may hold labels, by what their cells look like."""

    free: tuple[str, ...]
    """All of them: those that say where the images are, which split, or what is ignored are not among them."""
    rows: Sequence[Row]
    binary: tuple[str, ...]
    """Of 0, 1 and -1."""
    numbered: tuple[str, ...]
    """The others, but for those that number the rows."""
    of_classes: tuple[str, ...]
    """Of 0 and 1, or of counts."""
    marked: Mapping[str, ColumnOfMarks]
    """Of marks, but for those of 0 and 1 alone."""

    def may_be_a_class(self, name: str) -> bool:
        """Whether a column may stand for the class that it is called after; one called "label" holds class indices."""
        return name in self.marked or (name in self.of_classes and bare(name) not in WORDS_FOR_INDICES)

    def named_after_labels(self) -> list[str]:
        """The columns that may hold labels by their headers; numbers in ``class 1`` and ``class 2`` are no names."""
        found = [name for name in names_of_labels(self.free) if not is_time(name, self.rows)]
        return [name for name in found if says_labels(name) or holds_words(name, self.rows)]

    def with_words(self) -> list[str]:
        """The columns that hold more than numbers and times."""
        words = [name for name in self.free if not _numbers_rows(name) and holds_words(name, self.rows)]
        return [name for name in words if not is_time(name, self.rows)]


def contents_of(free: Sequence[str], rows: Sequence[Row], *, read_marks: bool = True) -> Contents:
    """Look at columns.

    Args:
        free: those that may hold labels.
        rows: all rows of the table.
        read_marks: whether ``x`` or ``ja`` may stand for 1; else a cell that holds it names a class.
    """
    named = [name for name in free if not _numbers_rows(name)]
    binary = tuple(name for name in named if is_binary(name, rows))
    numbered = tuple(name for name in named if name not in binary)
    counts = columns_of_counts(numbered, rows)
    # Of one column of counts and none of 0 and 1, nobody can tell it from class indices.
    of_classes = [name for name in free if name in binary or (name in counts and len(counts) + len(binary) > 1)]
    found = {name: marks_in(name, rows) for name in numbered} if read_marks else {}
    marked = {name: marks for name, marks in found.items() if marks is not None}
    return Contents(tuple(free), rows, binary, numbered, tuple(of_classes), marked)


def _numbers_rows(name: str) -> bool:
    """Whether a header says that the column numbers the rows, or says something of their use."""
    return _NO_CLASS.fullmatch(bare(name)) is not None


def is_binary(column: str, rows: Sequence[Row]) -> bool:
    """Whether a column holds 0, 1 and -1 alone."""
    values = {text_of(cells, column).lower() for _, cells in rows}
    return all(map(BINARY.fullmatch, values)) and not all(map(is_empty, values))


def holds_words(column: str, rows: Sequence[Row]) -> bool:
    """Whether some cell of a column is no number."""
    cells = [cell for _, row in rows if (cell := row.get(column)) not in (None, "")]
    return any(not isinstance(cell, int | float) and not NUMERIC.fullmatch(str(cell)) for cell in cells)


def may_name_classes(column: str, rows: Sequence[Row], *, any_words: bool = False) -> bool:
    """Whether nearly all cells of a column hold words that recur: names of classes do, but not remarks and dates.

    Args:
        any_words: whether words that do not recur may be names too.
    """
    cells = [str(cell) for _, row in rows if (cell := row.get(column)) not in (None, "")]
    if is_site(column) or is_remark(column) or is_time(column, rows) or columns_of_images([column], rows):
        return False
    if len(set(cells)) < 2 or len(cells) < (0 if any_words else _NEARLY_ALL) * len(rows):
        return False
    recur = any_words or 2 * len(set(cells)) <= len(cells)
    return recur and all(any(map(str.isalpha, cell)) for cell in cells)


def tells_apart(column: str, rows: Sequence[Row]) -> bool:
    """Whether nearly every cell of a column is another one, as inventory numbers and titles are, or all are one."""
    cells = [str(cell) for _, row in rows if (cell := row.get(column)) not in (None, "")]
    return len(set(cells)) < 2 or len(set(cells)) > _NEARLY_ALL * len(cells)


def text_of(cells: Mapping[str, Any], column: str) -> str:
    """A cell as text; empty where there is nothing in it."""
    return str("" if (cell := cells.get(column)) is None else cell).strip()
