"""Your own labelled photographs: a table with a row per image, or a row per image and label."""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from msldata.contract.records import LabelSpace, Record, quoted, read_class_list
from msldata.errors import BadInputError, OptionsNeeded, UserError, counted
from msldata.sources.labels.reading import Label, LabelReading, Labels, LabelSurvey, decide_reading
from msldata.sources.labels.separators import left_together, refuse_joined
from msldata.sources.labels.values import WHOLE_CELL
from msldata.sources.source import (
    NO_OPTIONS,
    Likeness,
    Location,
    SourceOptions,
    fail,
    split_location,
    unknown_split,
)
from msldata.sources.tables.arrow import EmbeddedImages, refuse_missing_parts, saved_splits
from msldata.sources.tables.columns import Columns, choose_columns, with_known_columns
from msldata.sources.tables.doubts import all_at_once, refuse_marked_rows, refuse_several_tables
from msldata.sources.tables.image_paths import ImagePaths, find_images
from msldata.sources.tables.mark_columns import refuse_only_mark
from msldata.sources.tables.notes import not_listed, without_labels
from msldata.sources.tables.photographs import ListedPhotograph, listed_photographs, merged, values_of, with_place
from msldata.sources.tables.rows import HINT, SUFFIXES, TableFile, listed_rows, read_table, with_names
from msldata.storage import Storage, open_storage

LAYOUT = "a table (.csv, .tsv, .json, .jsonl, .parquet): a row per image with its labels, or a folder with one"
_NAMES = (
    *("_classes.csv", "_annotations.csv", "metadata.jsonl", "metadata.csv", "metadata.parquet"),
    *("labels.csv", "labels.tsv", "labels.jsonl", "labels.json"),
)
"""Names of tables that are kept in the folder of their images, as Roboflow and Hugging Face do."""
_JSON_START = 1 << 16
_WHOLE_JSON = 1 << 24
"""Larger JSON files are not parsed to see what they are."""
_HUB_FILE = re.compile(r"(data/)?(?P<split>[A-Za-z0-9_]+)-\d{5}-of-\d{5}\.parquet")


@dataclass(frozen=True, slots=True)
class _Contents:
    """All splits of a table, with columns and labels decided."""

    where: str
    images: Storage
    rows: list[ListedPhotograph]
    labels: LabelSpace
    reading: LabelReading
    said: str
    files: dict[str, str]
    counts: dict[str, dict[str, int]]
    """By folder of a split, ``""`` where there are none."""
    notes: tuple[str, ...]


class Table:
    """One split of a table of images and their labels.

    Images are paths relative to the table's folder, absolute ones, or addresses (``https://``, ``s3://``, ``gs://``,
    ``az://``); see ``find_images``. The columns are found by ``choose_columns``, and what the labels mean by
    ``decide_reading``, from all rows. The order of the rows is kept. An image may be listed only once in the whole
    table, or in one split once for each of its labels: in two splits it would be both trained on and tested with.

    Args:
        path: a file, local or remote; or a folder that holds one, or whose sub-folders do, one per split.
        split: a value of the column ``split``, the name of such a folder, or ``all``.
        options: the list of classes, the columns, and how labels are read; whatever is not given is inferred.

    Raises:
        FileNotFoundError: no table or list of classes there. UserError: another kind of file, an unknown split, no
            classes at all, or labels that can be read in two ways. BadInputError: a row that is wrong, with its line.
    """

    dataset = "table"
    licence = "Not stated by the table; the photographs' owner states it."

    def __init__(self, path: Location, split: str, options: SourceOptions = NO_OPTIONS):
        contents = _load(path, options)
        known = _splits(contents.rows)
        if split not in known:
            raise unknown_split(contents.where, split, known)
        self.split = split
        self.images = contents.images
        self.labels = contents.labels
        self._reading = contents.reading
        self._rows = [row for row in contents.rows if row.split == split]
        self._drop = options.keep_unlabelled is False
        self.reject: Callable[[BadInputError], None] = fail
        self.counts: dict[str, int] = dict(contents.counts.get(split, contents.counts.get("", {})))
        self.groups = {row.key: row.group for row in self._rows if row.group}
        self.notes = contents.notes
        """What deserves a look, of all splits."""
        self.provenance: dict[str, Any] = {"source": "table", "files": contents.files, "labels": contents.said}
        if options.classes is not None:
            place, file = split_location(options.classes)
            self.provenance["classes"] = {file: hashlib.sha256(place.read(file)).hexdigest()}

    def records(self) -> Iterator[Record]:
        """The split's rows, in the order of the table."""
        empty = dropped = 0
        for row in self._rows:
            labels = _labels(row, self._reading)
            if self._drop and not (labels.positives or labels.ignored):
                dropped += 1
                continue
            positives = self._indices(labels.positives)
            empty += not positives
            yield Record(
                key=row.key,
                image=row.image,
                positives=positives,
                ignored=self._indices(labels.ignored),
                image_id=row.image,
            )
        self.counts["without_any_class"] = empty
        if self._drop:
            self.counts["dropped_without_annotations"] = dropped

    def _indices(self, labels: tuple[Label, ...]) -> tuple[int, ...]:
        return tuple(sorted({self.labels.index(label) if isinstance(label, str) else label for label in labels}))


def available_splits(path: Location, options: SourceOptions = NO_OPTIONS) -> tuple[str, ...]:
    """The table's splits in order of appearance, or ``all``. Raises as ``Table`` does."""
    return _splits(_load(path, options).rows)


def recognise(path: Location) -> Likeness | None:
    """A table by the ending of its name, or a folder with one of a usual name."""
    folder, files = _table_files(path)
    documents = [name for names in files.values() for name in names if name.lower().endswith(".json")]
    if not files or not all(_is_json_table(folder, name) for name in documents):
        return None
    try:
        contents = _load(path, NO_OPTIONS)
    except UserError:
        return Likeness(2, "a table")  # if it needs more options, it says so when it is opened
    return Likeness.of(2, "a table", _splits(contents.rows), len(contents.labels))


def _is_file(path: Location) -> bool:
    return PurePosixPath(str(path)).suffix.lower() in SUFFIXES and not Path(str(path)).expanduser().is_dir()


def _is_json_table(folder: Storage, name: str) -> bool:
    """Whether a JSON file begins like a list of rows, or like FiftyOne's labels, and not like COCO's annotations."""
    local = folder.path(name)
    if local is not None and not local.is_file():
        return True  # if it is missing, that is reported when it is read
    size = local.stat().st_size if local is not None else _JSON_START
    try:
        start = folder.read_ranges(name, [0], [min(size, _JSON_START)])[0] if size else b""
    except UserError:  # a remote file that is shorter
        start = folder.read(name)
    start = start.lstrip(b"\xef\xbb\xbf \r\n\t")
    if start.startswith(b"[") or re.search(rb'"labels"\s*:\s*\{', start):
        return True
    if size > _WHOLE_JSON or (b'"images"' in start and b'"annotations"' in start):
        return False
    try:
        content = json.loads(folder.read(name))
        return isinstance(content, dict) and "images" not in content and listed_rows(content) is not None
    except ValueError:
        return False


def _table_files(path: Location) -> tuple[Storage, dict[str, tuple[str, ...]]]:
    """The folder that images are relative to, and the names of the files of each split, or of ``""``."""
    if _is_file(path) or not _is_folder(path):
        folder, name = split_location(path)
        return folder, {"": (name,)}
    folder = open_storage(path)
    files = {info.name for info in folder.list_sources()} if folder.can_list else set()
    here = [name for name in _NAMES if name in files]
    if here:
        return folder, {"": (here[0],)}
    if saved := saved_splits(folder):
        return folder, saved
    parts: dict[str, list[str]] = defaultdict(list)
    for name in sorted(files):
        if match := _HUB_FILE.fullmatch(name):
            parts[match["split"]].append(name)
    if parts:
        return folder, {split: tuple(names) for split, names in parts.items()}
    below = {name.rpartition("/")[0]: name for table in reversed(_NAMES) for name in files if _lies_below(name, table)}
    return folder, {split: (name,) for split, name in sorted(below.items())}


def _is_folder(path: Location) -> bool:
    return "://" in str(path) or Path(path).expanduser().is_dir()


def _lies_below(name: str, table: str) -> bool:
    return name.count("/") == 1 and name.endswith(f"/{table}")


def _load(path: Location, options: SourceOptions) -> _Contents:
    """The table, read once for all calls as long as its files do not change."""
    folder, files = _table_files(path)
    if not files:
        raise FileNotFoundError(f"{folder.url}: no table here; name the file, or call it {' or '.join(_NAMES[:3])}")
    if not _is_file(path):
        refuse_several_tables(folder, files, _NAMES)
    stamps = []
    for name in (name for names in files.values() for name in names):
        local = folder.path(name)
        if local is None or not local.exists():
            return all_at_once(lambda options: _read(folder, files, options), options)
        stamps.append((local.stat().st_mtime_ns, local.stat().st_size))
    listed = Path(str(options.classes)).expanduser() if options.classes is not None else None
    if listed is not None and listed.is_file():
        stamps.append((listed.stat().st_mtime_ns, listed.stat().st_size))
    return all_at_once(lambda options: _remembered(str(path), options, tuple(stamps)), options)


@lru_cache(maxsize=1)
def _remembered(path: str, options: SourceOptions, stamps: tuple[tuple[int, int], ...]) -> _Contents:
    return _read(*_table_files(path), options)


def _read(folder: Storage, files: dict[str, tuple[str, ...]], options: SourceOptions) -> _Contents:
    tables = [(split, read_table(folder, name)) for split, names in files.items() for name in names]
    where = folder.url if len(tables) > 1 or tables[0][0] else folder.where(tables[0][1].name)
    names = tuple(dict.fromkeys(name for _, table in tables for name in table.columns))
    options = with_known_columns(where, names, options)
    try:
        refuse_missing_parts(files)
        columns = _columns(tables, tuple(name for name in names if name != options.group), options)
        tables, named = with_names(tables, columns.labels)
        rows = listed_photographs(tables, columns, options.group)
        found = _find(folder, tables, rows)
        rows = [with_place(row, path, name) for row, path, name in zip(rows, found.paths, found.names, strict=True)]
        listed = len(rows)
        rows = merged(rows, columns)
        # Where each label has its own row, no cell holds several.
        separator = options.separator or (WHOLE_CELL if len(rows) < listed else None)
        survey = _survey(rows, columns, separator)
        if len(rows) < listed and options.separator is None and options.classes is None:
            refuse_joined(survey)
        if not (columns.one_hot or named or options.classes or options.labels_are or survey.vectors):
            cells = [(row.place, value) for row in rows for value in values_of(row.labels)]
            refuse_only_mark(columns.labels, survey.atoms(), cells)
    except OptionsNeeded as error:
        options_needed = list(error.options)
        if options.separator is not None and "--separator" in options_needed:
            del options_needed[options_needed.index("--separator") :]
        reason = f"{where}: {error.reason}"
        raise OptionsNeeded(reason, options_needed, error.provided, error.instead_of, error.other) from None
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        reason = str(error)  # which often names an option that settles it
        raise BadInputError(where, reason, f"or {HINT}" if "--" in reason else HINT) from None
    labels, reading = _decide(where, rows, columns, survey, options, named)
    if reading.kind == "indices":
        refuse_marked_rows(where, columns.ignored, [value for row in rows for value in values_of(row.ignored)])
    how = f"read as {reading}"
    if columns.one_hot:
        minus_one = {"multi-hot": ", -1 ignored", "signed": ", -1 negative"}[reading.kind] if reading.minus_one else ""
        positive = "" if columns.marks else "0 or " if columns.counts else "1 positive, 0 or "
        how = f"{positive}blank negative{minus_one}"
    said = columns.said(how)
    said += f"; {listed:,} rows of {counted(len(rows), 'image')}, a row per label" if listed > len(rows) else ""
    if searched := found.searched:
        listed_as, place = next(iter(searched.items()))
        said += f"; {counted(len(searched), 'image')} not where the table says, but found below its folder"
        said += f", such as {place} for {listed_as}"
    said += "".join(f"; delimiter: {table.delimiter}" for _, table in tables[:1] if table.delimiter)
    counts: dict[str, dict[str, int]] = {}
    for split, table in tables:
        own = counts.setdefault(split, {})
        own |= {name: own.get(name, 0) + count for name, count in (table.counts or {}).items() if count}
    digests = {table.name: table.sha256 for _, table in tables}
    notes = (
        *found.notes,
        left_together(survey, None if options.classes is None else labels.classes),
        _unlabelled_said(rows, columns, reading, kept=options.keep_unlabelled is not False),
        not_listed(found.images.path(), found.paths),
    )
    return _Contents(where, found.images, rows, labels, reading, said, digests, counts, tuple(filter(None, notes)))


def _unlabelled_said(rows: Sequence[ListedPhotograph], columns: Columns, reading: LabelReading, *, kept: bool) -> str:
    """Which rows hold no label at all; a column per class, or a vector, says itself that there is none."""
    if columns.one_hot or reading.kind in ("multi-hot", "signed"):
        return ""
    bare = [(row.place, row.image, row.labels) for row in rows if _labels(row, reading) == Labels(())]
    return without_labels(bare, kept=kept)


def _columns(tables: Sequence[tuple[str, TableFile]], names: tuple[str, ...], options: SourceOptions) -> Columns:
    rows = [row for _, table in tables for row in table.rows]
    image_column = options.image_column or tables[0][1].image_column
    read_marks = options.labels_are in (None, "multi-hot")
    columns = choose_columns(names, rows, image_column, options.labels_columns, read_marks=read_marks)
    for _, table in tables:
        needed = (columns.image, *(columns.of_names or columns.one_hot), *filter(None, [options.group]))
        if missing := [name for name in needed if name not in table.columns]:
            raise ValueError(f"{table.name} has no column '{missing[0]}', which the other tables have")
    return columns


def _find(folder: Storage, tables: Sequence[tuple[str, TableFile]], rows: Sequence[ListedPhotograph]) -> ImagePaths:
    column = tables[0][1].image_column
    if column is None:
        return find_images(folder, [row.image for row in rows])
    if any(table.image_column != column for _, table in tables):
        raise ValueError(f"only some of the files hold their images in a column '{column}'")
    paths = [row.image for row in rows]
    names = [f"{row.split}/{number:08d}" for number, row in enumerate(rows)]
    return ImagePaths(EmbeddedImages(folder, column), paths, names, {})


def _labels(row: ListedPhotograph, reading: LabelReading) -> Labels:
    read = [reading.read(value) for value in values_of(row.labels)]
    positives = tuple(label for labels in read for label in labels.positives)
    ignored = tuple(label for labels in read for label in labels.ignored)
    for value in values_of(row.ignored):
        if value is None:
            continue
        if reading.kind in ("multi-hot", "signed") and reading.read(value).positives:
            raise ValueError("a column of ignored classes beside columns of 0 and 1; write -1 there instead")
        ignored += reading.read(value).positives
    if both := sorted(map(str, set(positives) & set(ignored))):
        raise ValueError(f"'{both[0]}' is both a label and ignored")
    return Labels(positives, ignored)


def _survey(rows: list[ListedPhotograph], columns: Columns, separator: str | None) -> LabelSurvey:
    survey = LabelSurvey(separator)
    for row in rows:
        for value in (*values_of(row.labels), *(values_of(row.ignored) if columns.ignored else ())):
            try:
                survey.add(row.place, value)
            except ValueError as error:
                raise ValueError(f"{row.place}: {error}") from None
    return survey


def _decide(
    where: str,
    rows: list[ListedPhotograph],
    columns: Columns,
    survey: LabelSurvey,
    options: SourceOptions,
    named: tuple[str, ...] | None,
) -> tuple[LabelSpace, LabelReading]:
    """The classes and the reading, checked on every row."""
    listed = read_class_list(*split_location(options.classes)) if options.classes is not None else None
    known = columns.one_hot or (listed.classes if listed is not None else named)
    reading = decide_reading(survey, where, classes=known, labels_are=options.labels_are, vectors=bool(columns.one_hot))
    if options.classes is not None and reading.kind == "indices":
        listed = read_class_list(*split_location(options.classes), counted=True)
    if columns.one_hot and listed is not None and listed.classes != columns.one_hot:
        raise UserError(
            f"{where}: its columns of 0 and 1 are {', '.join(columns.one_hot[:12])}, which is another list or order "
            f"than in {options.classes}; leave --classes out, or name the columns in its order with --labels-column"
        )
    try:
        labels = listed or LabelSpace(columns.one_hot or named or reading.classes(survey))
    except ValueError:
        raise UserError(f"{where}: no row has a label; name the classes with --classes FILE") from None
    unknown: dict[str, str] = {}
    for row in rows:
        try:
            found = _labels(row, reading)
            for label in (*found.positives, *found.ignored):
                if isinstance(label, str):
                    if label not in labels:
                        unknown.setdefault(label, row.place)
                elif not 0 <= label < len(labels):
                    what = f"class index {label} of {len(labels)} (they count from 0)"
                    hint = f"add it to {options.classes}, or mend the line"
                    raise BadInputError(where, f"{row.place}: {what}", hint if listed is not None else HINT)
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise BadInputError(where, f"{row.place}: {error}", HINT) from None
    if unknown:
        first, *others = unknown
        beside, it = (f", and below it {quoted(others)}", "them") if others else ("", "it")
        hint = f"add {it} to {options.classes}, or mend the line{'s' * bool(others)}"
        what = f"{unknown[first]}: unknown label '{first}'{beside}"
        raise BadInputError(where, what, hint if listed is not None else HINT)
    return labels, reading


def _splits(rows: Sequence[ListedPhotograph]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(row.split for row in rows))
