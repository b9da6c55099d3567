"""One's own labelled photographs: a table (CSV, JSON lines or parquet) with a row per image."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from msldata.contract.format import check_key
from msldata.contract.records import LabelSpace, Record, read_class_list
from msldata.errors import BadInputError, UserError
from msldata.sources.places import FolderOrAddresses, address_path, is_address
from msldata.sources.source import (
    Location,
    check_name,
    key_of,
    lacks_bucket,
    split_location,
    unknown_split,
)
from msldata.storage import REMOTE_SCHEMES, Storage

WHOLE = "all"
"""The one split of a table without the column ``split``."""

LAYOUT = "a row per image with the columns image and labels"

_NEEDED = ("image", "labels")
_COLUMNS = (*_NEEDED, "ignored", "split")
_SEPARATORS = re.compile(r"[;|]")
_SCHEME_OR_DRIVE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_HINT = "mend the table and run again"


@dataclass(frozen=True, slots=True)
class _Row:
    place: str
    """Where the row is in the file: ``line 3`` or, where there are no lines, ``row 3``."""
    image: str
    key: str
    labels: tuple[str, ...]
    ignored: tuple[str, ...]
    split: str


class Table:
    """One split of a table with the columns ``image``, ``labels`` and, where wanted, ``ignored`` and ``split``.

    ``image`` is a path relative to the table's folder, or an address (``https://``, ``s3://``, ``gs://``, ``az://``);
    the key is made of the path, without host or bucket. ``labels`` and ``ignored`` are class names: in CSV separated by
    ``;`` or ``|``, in JSON lines and parquet lists; none at all is an image without any class. The order of the rows
    is kept. An image may be listed only once in the whole table: in two splits it would be trained on and tested with.

    Args:
        path: a ``.csv``, ``.jsonl`` or ``.parquet`` file, local or remote.
        split: a value of the column ``split``, or ``all`` for a table without it.
        classes: a file with one class name a line, in target order; default: all labels of the table, sorted.

    Raises:
        FileNotFoundError: no table or list of classes there. UserError: another kind of file, an unknown split, or no
            class at all. BadInputError: a row that is wrong, with its line.
    """

    dataset = "table"
    licence = "Not stated by the table; the photographs' owner states it."

    def __init__(self, path: Location, split: str, classes: Location | None = None):
        folder, name = split_location(path)
        data, rows = _read_table(folder, name)
        known = _splits(rows)
        if split not in known:
            raise unknown_split(folder.where(name), split, known)
        self.split = split
        self._rows = [row for row in rows if row.split == split]
        self.images: Storage = FolderOrAddresses(folder) if any(is_address(row.image) for row in self._rows) else folder
        self.counts: dict[str, int] = {}
        self.provenance: dict[str, Any] = {"source": "table", "files": {name: hashlib.sha256(data).hexdigest()}}
        if classes is None:
            # Over all splits, so that the vectors of one split mean what those of the others mean.
            names = sorted({name for row in rows for name in (*row.labels, *row.ignored)})
            if not names:
                raise UserError(f"{folder.where(name)}: no row has a label; name the classes with --classes FILE")
            self.labels = LabelSpace(tuple(names))
        else:
            place, file = split_location(classes)
            self.labels = read_class_list(place, file)
            self.provenance["classes"] = {file: hashlib.sha256(place.read(file)).hexdigest()}
            _check_labels(folder.where(name), rows, self.labels, classes)

    def records(self) -> Iterator[Record]:
        """The split's rows, in the order of the table."""
        for row in self._rows:
            yield Record(
                key=row.key,
                image=row.image,
                positives=self._indices(row.labels),
                ignored=self._indices(row.ignored),
                image_id=row.image,
            )

    def _indices(self, names: tuple[str, ...]) -> tuple[int, ...]:
        return tuple(sorted({self.labels.index(name) for name in names}))


def available_splits(path: Location) -> tuple[str, ...]:
    """The distinct values of the column ``split`` in order of appearance, or ``all``. Raises as ``Table`` does."""
    return _splits(_read_table(*split_location(path))[1])


def _splits(rows: list[_Row]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(row.split for row in rows))


def _check_labels(table: str, rows: list[_Row], labels: LabelSpace, classes: Location) -> None:
    for row in rows:
        for name in (*row.labels, *row.ignored):
            if name not in labels:
                raise BadInputError(
                    table, f"{row.place}: unknown label '{name}'", f"add it to {classes}, or mend the line"
                )


def _read_table(folder: Storage, name: str) -> tuple[bytes, list[_Row]]:
    """The file's bytes and its rows, checked."""
    readers: Mapping[str, Callable[[bytes], Iterator[tuple[str, Mapping[str, Any]]]]] = {
        ".csv": _csv_rows,
        ".jsonl": _json_rows,
        ".parquet": _parquet_rows,
    }
    where, suffix = folder.where(name), PurePosixPath(name).suffix.lower()
    try:
        data = folder.read(name) if suffix in readers else None
    except FileNotFoundError as error:
        # A missing bucket is another mistake than a missing file, and the storage's message says which.
        reason = "no such bucket" if lacks_bucket(error) else "no such table"
        raise FileNotFoundError(f"{where}: {reason}; give a {', '.join(readers)} file with image and labels") from None
    if data is None:
        if not folder.exists(name):
            raise FileNotFoundError(f"{where}: no such table; give a {', '.join(readers)} file with image and labels")
        raise UserError(f"{where}: not a kind of table that is known; known are: {', '.join(readers)}")
    rows: list[_Row] = []
    seen: dict[str, _Row] = {}
    try:
        for place, cells in readers[suffix](data):
            try:
                row = _row(place, cells)
            except ValueError as error:
                raise ValueError(f"{place}: {error}") from None
            if (first := seen.setdefault(row.key, row)) is not row:
                raise ValueError(
                    f"{first.place} and {row.place}: '{first.image}' and '{row.image}' have one key, '{row.key}'; an "
                    "image may be listed only once, and two must differ in more than extension, dots and spaces"
                )
            if rows and bool(row.split) != bool(rows[0].split):
                raise ValueError(f"{place}: split is {row.split!r}; either all rows name a split or none does")
            rows.append(row)
    except (ValueError, csv.Error) as error:  # includes JSON and UTF-8 errors
        raise BadInputError(where, str(error), _HINT) from None
    if not rows:
        raise BadInputError(where, "the table has no rows", _HINT)
    if not rows[0].split:
        rows = [replace(row, split=WHOLE) for row in rows]
    return data, rows


def _row(place: str, cells: Mapping[str, Any]) -> _Row:
    _check_columns(tuple(cells))
    image = _checked_path(cells["image"])
    key = key_of(address_path(image) if is_address(image) else image)
    check_key(key)
    labels, ignored = (_names(cells.get(column), column) for column in ("labels", "ignored"))
    if both := sorted(set(labels) & set(ignored)):
        raise ValueError(f"'{both[0]}' is both a label and ignored")
    split = cells.get("split")
    if split is not None:
        if not isinstance(split, str) or not split:
            raise ValueError(f"split is {split!r}, not a name")
        check_name("split", split)
    return _Row(place, image, key, labels, ignored, split or "")


def _check_columns(columns: tuple[str, ...]) -> None:
    missing = [name for name in _NEEDED if name not in columns]
    # A misspelt "ignored" would otherwise be left unread without a word.
    unknown = [str(name) for name in columns if name not in _COLUMNS]
    if missing or unknown:
        what = f"no column '{missing[0]}'" if missing else f"unknown column '{unknown[0]}'"
        raise ValueError(f"{what}; needed are {', '.join(_NEEDED)}, possible too: {', '.join(_COLUMNS[2:])}")


def _checked_path(image: Any) -> str:
    """The path in its plainest form. Raises ValueError when it is none, or could lead out of the table's folder."""
    if not isinstance(image, str) or not image:
        raise ValueError(f"image is {image!r}, not a path")
    if is_address(image):
        address_path(image)
        return image
    if "\\" in image or _SCHEME_OR_DRIVE.match(image):
        raise ValueError(
            f"image is {image!r}; give a path with / that starts from the table's folder, or the address of a file at "
            + ", ".join(f"{scheme}://" for scheme in REMOTE_SCHEMES)
        )
    path = PurePosixPath(image)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"image is {image!r}; absolute paths and '..' are refused, put the table beside the images")
    return path.as_posix()


def _names(value: Any, column: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(name, str) and name.strip() for name in value):
        raise ValueError(f"{column} is {value!r}, expected a list of class names")
    return tuple(name.strip() for name in value)


def _csv_rows(data: bytes) -> Iterator[tuple[str, Mapping[str, Any]]]:
    reader = csv.reader(io.StringIO(_text(data), newline=""), strict=True)
    columns: list[str] | None = None
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        cells = [cell.strip() for cell in cells]
        if columns is None:
            columns = cells
            _check_columns(tuple(columns))
            if len(set(columns)) != len(columns):
                raise ValueError(f"line {reader.line_num}: a column is named twice: {', '.join(columns)}")
            continue
        place = f"line {reader.line_num}"
        if len(cells) != len(columns):
            raise ValueError(
                f"{place}: {len(cells)} cells, the header has {len(columns)}; labels are separated by ; or |, and a "
                "cell with a comma stands in double quotes"
            )
        row: dict[str, Any] = dict(zip(columns, cells, strict=True))
        for column in ("labels", "ignored"):
            if column in row:
                row[column] = [name for name in _SEPARATORS.split(row[column]) if name.strip()]
        yield place, row


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line}: not UTF-8; save the table in that encoding") from None


def _json_rows(data: bytes) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(_text(data).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise ValueError(f"line {number}: {str(row)[:80]!r} is not an object with image and labels")
        yield f"line {number}", row


def _parquet_rows(data: bytes) -> Iterator[tuple[str, Mapping[str, Any]]]:
    from msldata.contract.parquet import UnreadableParquet, read_parquet

    try:
        table = read_parquet(data)
    except UnreadableParquet as error:
        raise ValueError(f"not a parquet file, or one that cannot be read ({error})") from None
    number = 0
    for batch in table.to_batches():
        for row in batch.to_pylist():
            number += 1
            yield f"row {number}", row
