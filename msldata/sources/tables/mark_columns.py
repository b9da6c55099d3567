"""Columns of marks: one for each class, with ``x`` or ``ja`` where a photograph shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msldata.contract.listing import Row
from msldata.errors import OptionsNeeded
from msldata.sources.labels.marks import are_doubtful_together, is_blank, is_dash, kind_of_yes, plain_mark, says_no


@dataclass(frozen=True, slots=True)
class ColumnOfMarks:
    """A column in which every cell says yes, says no, or is empty."""

    name: str
    yes: Mapping[str, tuple[str, str]]
    """By kind of mark, the first one as it is written, and its place."""
    no: Mapping[str, tuple[str, str]]
    """The same of every mark that says no."""


def marks_in(column: str, rows: Sequence[Row]) -> ColumnOfMarks | None:
    """The marks of a column; None for one that holds anything else, or nothing that says yes or no."""
    yes: dict[str, tuple[str, str]] = {}
    no: dict[str, tuple[str, str]] = {}
    for place, cells in rows:
        cell = cells.get(column)
        if kind := kind_of_yes(cell):
            yes.setdefault(kind, (str(cell).strip(), place))
        elif says_no(cell):
            no.setdefault(plain_mark(cell), (str(cell).strip(), place))
        elif not is_blank(cell):
            return None
    said = yes or any(not is_dash(mark) for mark in no)
    return ColumnOfMarks(column, yes, no) if said else None


def marks_said(columns: Sequence[ColumnOfMarks]) -> str:
    """What the marks are read as: ``x = 1``, ``ja = 1, nein = 0``."""
    yes = {kind: mark for column in reversed(columns) for kind, (mark, _) in column.yes.items()}
    no = {plain: mark for column in reversed(columns) for plain, (mark, _) in column.no.items()}
    return ", ".join([*(f"{mark} = 1" for mark in yes.values()), *(f"{mark} = 0" for mark in no.values())])


def value_of_mark(cell: Any) -> int:
    """The 1 or 0 of a cell. Raises ValueError for one that is no mark."""
    if kind_of_yes(cell):
        return 1
    if says_no(cell) or is_blank(cell):
        return 0
    raise ValueError(f"{str(cell)!r} is neither a mark, such as x, nor empty")


def naming(names: Sequence[str]) -> list[str]:
    """The options that name columns of classes."""
    return [word for name in names for word in ("--labels-column", name)]


def refuse_doubtful_marks(columns: Sequence[ColumnOfMarks]) -> None:
    """Raise ValueError for a column of which nobody can tell which of its marks says yes."""
    for column in columns:
        found = [*column.yes.values(), *column.no.values()]
        if are_doubtful_together(mark for mark, _ in found):
            (one, here), (other, there) = sorted(found, key=lambda mark: kind_of_yes(mark[0]) != "x")[:2]
            raise ValueError(
                f"column '{column.name}' holds '{one}' in {here} and '{other}' in {there}, and either may say no; "
                "write one mark where a photograph shows it, and nothing where it does not"
            )


def refuse_mixed_marks(columns: Sequence[ColumnOfMarks]) -> None:
    """Raise OptionsNeeded for columns with marks of several kinds: some of them may say something else."""
    first: dict[str, tuple[str, str, str]] = {}
    for column in columns:
        for kind, (mark, place) in column.yes.items():
            first.setdefault(kind, (mark, column.name, place))
    if len(first) < 2:
        return
    shown = " and ".join(f"'{mark}' in '{name}' ({place})" for mark, name, place in list(first.values())[:2])
    raise OptionsNeeded(
        f"{shown} are marks of two kinds, so not all of these columns may stand for classes: name those that do, each "
        "with --labels-column",
        naming([column.name for column in columns]),
        "if all of them do",
    )


def refuse_almost_marks(column: str, rows: Sequence[Row], others: Sequence[ColumnOfMarks]) -> None:
    """Raise ValueError for a column of marks with a few cells of something else: passing it over would lose a class.

    Args:
        others: the columns of marks beside it.
    """
    kinds = {kind for other in others for kind in other.yes}
    marks = [(place, cells.get(column)) for place, cells in rows if kind_of_yes(cells.get(column)) in kinds]
    odd = [
        (place, cell)
        for place, cells in rows
        if not (kind_of_yes(cell := cells.get(column)) or says_no(cell) or is_blank(cell))
    ]
    if marks and odd and len(odd) <= len(marks):
        raise ValueError(
            f"column '{column}' holds '{odd[0][1]}' in {odd[0][0]} and '{marks[0][1]}' in {marks[0][0]}, a mark as in "
            f"'{others[0].name}'; write a mark or nothing there, or name the columns of classes, each with "
            "--labels-column"
        )


def refuse_only_mark(column: str, atoms: set[Any], rows: Sequence[tuple[str, Any]]) -> None:
    """Raise OptionsNeeded where one mark is all that a column of labels says: no class is called so.

    Args:
        atoms: everything that its cells hold.
        rows: place and cell of each row.
    """
    if not atoms or not all(map(kind_of_yes, atoms)) or len({kind_of_yes(atom) for atom in atoms}) > 1:
        return
    place, mark = next((place, cell) for place, cell in rows if kind_of_yes(cell) or not is_blank(cell))
    empty = next((place for place, cell in rows if is_blank(cell)), "")
    nothing = f", and nothing in {empty}" if empty else ""
    raise OptionsNeeded(
        f"column '{column}' holds '{mark}' in {place}{nothing}, and no other label: a mark names no class; write what "
        "each photograph shows into it, or make a column of marks for each class, called as the class",
        ["--labels-are", "indices" if kind_of_yes(mark) == "1" else "names"],
        "where a class is called so",
    )
