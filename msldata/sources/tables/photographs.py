"""The photographs that a table lists: each row checked, and the rows of one photograph put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from msldata.sources.places import address_path, is_address
from msldata.sources.source import WHOLE_SPLIT, check_name, key_of
from msldata.sources.tables.columns import Columns, one_hot_value
from msldata.sources.tables.image_paths import checked_path
from msldata.sources.tables.notes import listed_twice, one_key
from msldata.sources.tables.rows import TableFile


@dataclass(frozen=True, slots=True)
class ListedPhotograph:
    """A row of a table, or all rows of one photograph."""

    place: str
    """Where the row is: ``line 3``, or ``train/_classes.csv, line 3`` where there are several files."""
    image: str
    key: str
    labels: Any
    ignored: Any
    split: str
    group: str = ""
    """Photographs of one group stay in one part when the dataset is divided; empty: of none."""


def listed_photographs(
    tables: Sequence[tuple[str, TableFile]], columns: Columns, group: str | None = None
) -> list[ListedPhotograph]:
    """All rows of all files, checked one by one; ``group`` is the column that names the photographs' groups."""
    rows: list[ListedPhotograph] = []
    for split, table in tables:
        for line, cells in table.rows:
            place = f"{table.name}, {line}" if len(tables) > 1 else line
            try:
                row = _row(place, cells, columns, split, table.image_column == columns.image)
            except ValueError as error:
                raise ValueError(f"{place}: {error}") from None
            rows.append(replace(row, group=_text(cells.get(group))) if group else row)
            if bool(rows[-1].split) != bool(rows[0].split):
                raise ValueError(f"{place}: split is {rows[-1].split!r}; either all rows name a split or none does")
    return rows if rows[0].split else [replace(row, split=WHOLE_SPLIT) for row in rows]


def _row(place: str, cells: Any, columns: Columns, folder: str, embedded: bool) -> ListedPhotograph:
    for name in (columns.image, columns.labels):
        if name and name not in cells:
            raise ValueError(f"no column '{name}'")
    cell = cells[columns.image]
    if isinstance(cell, dict) and isinstance(cell.get("path"), str):
        cell = cell["path"]  # an image of Hugging Face that was saved without its bytes
    image = checked_path(cell)
    if folder and not embedded and not is_address(image) and not image.startswith("/"):
        image = f"{folder}/{image}"
    split = cells.get(columns.split) if columns.split else folder or None
    if split is not None:
        if not isinstance(split, str) or not split:
            raise ValueError(f"split is {split!r}, not a name")
        check_name("split", split)
    if columns.one_hot:
        try:
            labels: Any = [
                one_hot_value(cells.get(name), marks=bool(columns.marks), counts=columns.counts)
                for name in columns.one_hot
            ]
        except ValueError as error:
            raise ValueError(f"a column of classes holds something else: {error}") from None
    else:
        labels = cells[columns.labels]
        if columns.more_labels:
            labels = _Several((labels, *(cells.get(name) for name in columns.more_labels)))
    if columns.confirmed and labels not in (None, ""):
        labels = _seen(labels, cells.get(columns.confirmed), columns.confirmed)
    return ListedPhotograph(
        place, image, "", labels, cells.get(columns.ignored) if columns.ignored else None, split or ""
    )


def _text(cell: Any) -> str:
    return "" if cell is None else str(cell).strip()


def _seen(label: Any, confirmed: Any, column: str) -> Any:
    """The label of a row, or None where the row says that it does not count."""
    try:
        value = float(confirmed)
    except (TypeError, ValueError):
        value = -1
    if value not in (0, 1):
        checked = "; only labels that people checked are read, with 1 or 0" if column.lower() == "confidence" else ""
        raise ValueError(f"{column} is {confirmed!r}{checked or ', not 1 or 0'}")
    return label if value else None


def with_place(row: ListedPhotograph, path: str, name: str) -> ListedPhotograph:
    try:
        key = key_of(address_path(name) if is_address(name) else name)
    except ValueError as error:
        raise ValueError(f"{row.place}: {error}") from None
    return replace(row, image=path, key=key)


def merged(rows: list[ListedPhotograph], columns: Columns) -> list[ListedPhotograph]:
    """A row per image. Raises ValueError when an image is listed twice and that does not mean two labels."""
    seen: dict[str, list[ListedPhotograph]] = {}
    twice: list[tuple[ListedPhotograph, ListedPhotograph]] = []
    unlike: list[tuple[ListedPhotograph, ListedPhotograph]] = []
    for row in rows:
        twins = seen.setdefault(row.key, [])
        if twins:
            first = twins[0]
            if first.image == row.image and not (first.split == row.split and columns.one_label_a_row):
                twice.append((first, row))
            elif first.image != row.image:
                unlike.append((first, row))
        twins.append(row)
    if unlike:
        raise ValueError(one_key([(one.place, one.image, row.place, row.image, row.key) for one, row in unlike]))
    if twice:
        one, other = twice[0]
        places = [(first.place, second.place) for first, second in twice]
        first_labels, second_labels = (
            row.labels.values if isinstance(row.labels, _Several) else row.labels for row in twice[0]
        )
        raise ValueError(listed_twice(places, one.image, first_labels, second_labels, (one.split, other.split)))
    if len(seen) == len(rows):
        return rows
    return [twins[0] if len(twins) == 1 else _joined(twins) for twins in seen.values()]


def _joined(twins: Sequence[ListedPhotograph]) -> ListedPhotograph:
    groups = {row.group for row in twins}
    if len(groups) > 1:
        raise ValueError(f"{twins[0].image} is in two groups, {' and '.join(map(repr, sorted(groups)[:2]))}")
    labels = tuple(value for row in twins for value in values_of(row.labels))
    return replace(twins[0], labels=_Several(labels), ignored=_Several(tuple(row.ignored for row in twins)))


@dataclass(frozen=True, slots=True)
class _Several:
    """The labels of an image that has a row or a column for each, or what its rows ignore."""

    values: tuple[Any, ...]


def values_of(value: Any) -> Sequence[Any]:
    return value.values if isinstance(value, _Several) else (value,)
