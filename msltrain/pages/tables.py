"""A table as data: the templates show it as HTML, ``as_markdown`` as Markdown, so that both say the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from msltrain.pages.text import markdown


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One value with its annotations."""

    text: str
    note: str = ""
    """Shown smaller, after it."""
    style: str = ""
    """A class of the style sheet: ``best``, ``published``."""
    mark: int = 0
    """Number of the remark that it refers to; 0: none."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row under its name."""

    name: str
    cells: Sequence[Cell | str]
    style: str = ""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows that belong together; a table with one group needs no title for it."""

    rows: Sequence[Row]
    title: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Head, and rows in groups."""

    name: str
    """Head of the first column."""
    columns: Sequence[str]
    groups: Sequence[Group]
    over: Sequence[tuple[str, int]] = ()
    """Heads above the last columns, with the number of columns that each spans."""
    style: str = ""
    """Classes of the style sheet."""
    title: str = ""
    """What the table holds, where nothing else says so."""

    @property
    def num_single(self) -> int:
        """Columns that have no head above them."""
        return len(self.columns) - sum(width for _, width in self.over)


def as_markdown(table: Table, *, group: str = "on") -> str:
    """The table in Markdown.

    Args:
        table: titles of its groups become the first column.
        group: head of that column.
    """
    titled = any(part.title for part in table.groups)
    above = [""] * table.num_single + [f"{name}, " for name, width in table.over for _ in range(width)]
    head = [table.name, *(f"{over}{name}" for over, name in zip(above, table.columns, strict=True))]
    lines = [[group, *head] if titled else head]
    for part in table.groups:
        for row in part.rows:
            cells = [part.title] if titled else []
            lines.append([*cells, row.name, *map(_plain, row.cells)])
    rule = ["---", *["---"] * titled, *["---:"] * len(table.columns)]
    first, *rows = (_line(map(markdown, line)) for line in lines)
    return "\n".join([first, _line(rule), *rows])


def _plain(cell: Cell | str) -> str:
    if isinstance(cell, str):
        return cell
    return " ".join(filter(None, (cell.text, cell.note, f"({cell.mark})" if cell.mark else "")))


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
