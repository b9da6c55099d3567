"""The rows of a table file: CSV with any delimiter, JSON, JSON lines, parquet, or what Label Studio exports."""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from msldata.contract.listing import (
    DELIMITERS,
    IMAGE_SUFFIXES,
    SAYS_DELIMITER,
    Row,
    delimiter_of,
    image_column_of,
    refuse_no_header,
)
from msldata.errors import BadInputError, UserError, counted
from msldata.sources.source import lacks_bucket
from msldata.sources.tables.arrow import named_cell, places, read_arrow
from msldata.sources.tables.label_studio import is_minimal_task, is_task, one_annotation_a_task, task_row
from msldata.storage import Storage, regular

HINT = "mend the table and run again"
_ARROW = (".parquet", ".arrow")
SPREADSHEETS = (".xlsx", ".xlsm", ".xls", ".ods", ".numbers")


@dataclass(frozen=True, slots=True)
class TableFile:
    """A file that was read."""

    name: str
    sha256: str
    rows: list[Row]
    columns: tuple[str, ...]
    """The columns of any row, in order of appearance."""
    delimiter: str = ""
    """The delimiter of a CSV file, in words."""
    counts: Mapping[str, int] | None = None
    """What was left out, by reason."""
    image_column: str | None = None
    """The column that holds the images themselves."""
    classes: Mapping[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)
    """Class names in target order by the column that has them, if the file names them; see ``ArrowRows``."""

    def named(self, column: str) -> tuple[TableFile, tuple[str, ...] | None]:
        """The table with names in a column of positions in a list of classes, and that list; None for another column.

        Raises:
            ValueError: a value that is no such position.
        """
        if column not in self.classes:
            return self, None
        part, classes = self.classes[column]
        rows: list[Row] = [
            (place, {**cells, column: named_cell(cells[column], part, classes)}) for place, cells in self.rows
        ]
        return replace(self, rows=rows), classes


def with_names(
    tables: Sequence[tuple[str, TableFile]], column: str
) -> tuple[list[tuple[str, TableFile]], tuple[str, ...] | None]:
    """``TableFile.named`` for the tables of all splits; no list where theirs differ."""
    named = [(split, *table.named(column)) for split, table in tables]
    lists = {classes for _, _, classes in named}
    return [(split, table) for split, table, _ in named], next(iter(lists)) if len(lists) == 1 else None


def read_table(folder: Storage, name: str) -> TableFile:
    """Read a table file.

    Raises:
        FileNotFoundError: no such file. UserError: another kind of file. BadInputError: one that cannot be understood,
            with the line.
    """
    where, suffix = folder.where(name), PurePosixPath(name).suffix.lower()
    kinds = f"{', '.join(SUFFIXES[:-1])} file"
    try:
        local = folder.path(name) if suffix in _ARROW else None  # they may be larger than memory
        data = b"" if local is not None and local.is_file() else folder.read(name) if suffix in SUFFIXES else None
    except FileNotFoundError as error:
        # A missing bucket is a different mistake from a missing file, and the storage's message says which.
        reason = "no such bucket" if lacks_bucket(error) else "no such table"
        raise FileNotFoundError(f"{where}: {reason}; give a {kinds} with images and labels") from None
    if data is None:
        if suffix in SPREADSHEETS and folder.exists(name):
            raise a_spreadsheet(where)
        if not folder.exists(name):
            raise FileNotFoundError(f"{where}: no such table; give a {kinds} with images and labels")
        raise UserError(f"{where}: not a kind of table that is known; known are: {', '.join(SUFFIXES[:-1])}")
    delimiter, counts, image_column, classes = "", None, None, {}
    try:
        if suffix in (".csv", ".tsv"):
            character = delimiter_of(_text(data))
            delimiter = "" if character == "," else DELIMITERS[character]
            rows = list(_csv_rows(data, character))
        elif suffix in _ARROW:
            arrow = read_arrow(folder, name)
            rows, image_column, classes = list(places(arrow.rows)), arrow.image_column, arrow.classes
        else:
            rows = list(_READERS[suffix](data))
        if suffix == ".json" and rows and all(is_task(cells) for _, cells in rows):
            done = [(place, task_row(place, cells)) for place, cells in rows]
            rows = [(place, cells) for place, cells in done if cells is not None]
            counts = {"not_annotated": len(done) - len(rows)}
        rows = one_annotation_a_task(rows)
    except (ValueError, csv.Error) as error:  # includes JSON and UTF-8 errors
        raise BadInputError(where, str(error), HINT) from None
    if not rows:
        raise BadInputError(where, "the table has no rows", HINT)
    columns = tuple(dict.fromkeys(str(column) for _, cells in rows for column in cells))
    if suffix == ".json" and all(is_minimal_task(cells) for _, cells in rows):
        rows = [(place, {**dict.fromkeys(columns), **cells}) for place, cells in rows]
    digest = hashlib.sha256(data).hexdigest()
    if local is not None:
        with open(local, "rb", opener=regular) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    return TableFile(name, digest, rows, columns, delimiter, counts, image_column, classes)


def a_spreadsheet(where: str) -> UserError:
    """The error for a file of Excel or another such program."""
    table = f"{where.removesuffix(PurePosixPath(where).suffix)}.csv"
    return UserError(
        f"{where}: a spreadsheet, which is not read itself; open it, save it as 'CSV UTF-8' under the name {table}, "
        f"and run: msl build-shards {shlex.quote(table)} --name NAME"
    )


def _csv_rows(data: bytes, delimiter: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(_text(data), newline=""), delimiter=delimiter, strict=True)
    columns: list[str] | None = None
    used = 0
    for cells in reader:
        cells = [cell.strip() for cell in cells]
        if not any(cells) or (columns is None and SAYS_DELIMITER.fullmatch(delimiter.join(cells))):
            continue
        if columns is None:
            while not cells[-1]:  # spreadsheets write the columns that were once in use
                cells.pop()
                used += 1
            columns = cells
            refuse_no_header(columns, delimiter)
            if len(set(columns)) != len(columns):
                raise ValueError(f"line {reader.line_num}: a column is named twice: {', '.join(columns)}")
            continue
        place = f"line {reader.line_num}"
        if used and not any(cells[len(columns) :]):
            cells = cells[: len(columns)]
        if len(cells) != len(columns):
            raise ValueError(
                f"{place}: {counted(len(cells), 'cell')}, the header has {len(columns)}; a cell that holds "
                f"{DELIMITERS[delimiter]} stands in double quotes"
            )
        yield place, dict(zip(columns, cells, strict=True))


def _text(data: bytes) -> str:
    try:
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # Excel's "Unicode text"
            return data.decode("utf-16")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line}: neither UTF-8 nor UTF-16; a spreadsheet saves it as 'CSV UTF-8'") from None


def _json_line_rows(data: bytes) -> Iterator[Row]:
    for number, line in enumerate(_text(data).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_once)
        except ValueError as error:
            raise ValueError(f"line {number}: {_json_problem(error)}") from None
        if not isinstance(row, dict):
            raise ValueError(f"line {number}: {str(row)[:80]!r} is not an object with image and labels")
        yield f"line {number}", row


def _json_rows(data: bytes) -> Iterator[Row]:
    try:
        rows = json.loads(_text(data), object_pairs_hook=_once)
    except ValueError as error:
        raise ValueError(_json_problem(error)) from None
    if isinstance(rows, dict):
        rows = listed_rows(rows)
    if not isinstance(rows, list):
        raise ValueError("not a list of objects with image and labels")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"row {number}: {str(row)[:80]!r} is not an object with image and labels")
        yield f"row {number}", row


def _json_problem(error: ValueError) -> str:
    return f"not JSON ({error})" if isinstance(error, json.JSONDecodeError) else str(error)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises ValueError for a key that is there twice, of which Python would keep the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"'{twice[:80]}' is there twice in one object, and one of the two would be lost")
    return found


def listed_rows(table: Mapping[str, Any]) -> Any:
    """A list of rows from what FiftyOne and pandas write as one object; None from anything else.

    Raises:
        ValueError: its columns are not equally long, or a class has no name.
    """
    if isinstance(table.get("labels"), dict) and table.keys() <= {"classes", "labels"}:
        return _labels_by_image(table["labels"], table.get("classes"))
    if isinstance(table.get("data"), list):  # orient="split", orient="table"
        columns = table.get("columns")
        return [dict(zip(columns, row, strict=True)) for row in table["data"]] if columns else table["data"]
    values = list(table.values())
    columns = image_column_of(tuple(table)) is not None
    if columns and all(isinstance(value, list) for value in values):
        return [dict(zip(table, row)) for row in zip(*values, strict=True)]
    if values and all(isinstance(value, dict) for value in values):
        if not columns:  # orient="index"
            return values
        if any(value.keys() != values[0].keys() for value in values):
            raise ValueError("its columns have different rows")
        return [{name: table[name][row] for name in table} for row in values[0]]
    if values and all(PurePosixPath(image).suffix.lower() in IMAGE_SUFFIXES for image in table):
        return [{"image": image, "labels": labels} for image, labels in table.items()]
    return None


def _labels_by_image(labels: Mapping[str, Any], classes: Any) -> list[dict[str, Any]]:
    """FiftyOne's labels of every image, as names or as positions in the list of classes."""

    def name_of(target: Any) -> Any:
        if isinstance(target, list):
            return [name_of(item) for item in target if not _is_below_threshold(item)]
        if isinstance(target, dict) and "label" in target:
            return name_of(target["label"])
        if isinstance(target, int) and not isinstance(target, bool) and isinstance(classes, list):
            if not 0 <= target < len(classes):
                raise ValueError(f"class index {target} of {len(classes)}")
            return classes[target]
        return target

    return [{"image": image, "labels": name_of(target)} for image, target in labels.items()]


def _is_below_threshold(item: Any) -> bool:
    """Whether ``msl predict`` wrote a label of FiftyOne with its score, and did not predict it."""
    attributes = item.get("attributes") if isinstance(item, dict) else None
    return isinstance(attributes, dict) and attributes.get("predicted") is False


_READERS: Mapping[str, Callable[[bytes], Iterator[Row]]] = {
    ".csv": lambda data: _csv_rows(data, ","),
    ".tsv": lambda data: _csv_rows(data, "\t"),
    ".jsonl": _json_line_rows,
    ".ndjson": _json_line_rows,
    ".json": _json_rows,
}
"""Readers by the suffix of the file."""
SUFFIXES = (*_READERS, *_ARROW)
