"""What ``predict`` found, as lines to read, JSON lines, CSV, parquet or a label file of FiftyOne."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

from msldata.console import is_watched, on_one_line
from msldata.errors import UserError, counted
from msltrain.measures.spreadsheet import BOM, cell, csv_text, digits
from msltrain.pages.text import percent_beside

if TYPE_CHECKING:
    from rich.console import Console

    from msltrain.use.predict import ImagePrediction

FORMATS = ("table", "json", "csv", "wide", "parquet", "fiftyone")
_IN_FILES = {"wide": ".csv", "parquet": ".parquet", "fiftyone": ".json"}
"""Formats that are only written to files, with the usual ends of their names."""
COLUMNS = (
    "file",
    "class",
    "score",
    "predicted",
    "masked_score",
    "masked_predicted",
    "error",
    "threshold",
    "threshold_origin",
    "score_sd",
)
_SUFFIXES = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "table"}
_SPREADSHEETS = (".xlsx", ".xls", ".ods")
_MAX_NAMED = 20
_ROWS_PER_GROUP = 100_000


def format_of(asked: str | None, out: Path | None) -> str:
    """One of ``FORMATS``: the one asked for, else by the suffix of the file to write, else a table.

    Raises:
        UserError: the file's suffix does not say, or what is only written to files is to be printed.
    """
    if asked is None and out is not None:
        if out.suffix.lower() in _SPREADSHEETS:
            raise UserError(f"{out}: spreadsheet programs read CSV; give --out {out.with_suffix('.csv')} --format wide")
        if out.suffix.lower() not in _SUFFIXES:
            raise UserError(f"{out}: its suffix does not say which format to write; give --format {'|'.join(FORMATS)}")
        asked = _SUFFIXES[out.suffix.lower()]
    if asked in _IN_FILES and out is None:
        raise UserError(f"{asked} cannot be printed; give the file to write with --out FILE{_IN_FILES[asked]}")
    return asked or "table"


@dataclass(frozen=True, slots=True)
class Table:
    """How answers become a table for a spreadsheet."""

    decimal_comma: bool = False
    """``0,93``, and ``;`` between the cells, as spreadsheets in German, French and other languages read CSV."""
    classes: Sequence[str] = ()
    """Of the model, in the order of the columns of ``wide``."""
    masked: bool = False
    """Whether ``wide`` has columns for what is seen behind a keep mask."""

    def check(self, kind: str) -> None:
        """Raise UserError for a decimal comma in a format that is no CSV."""
        if self.decimal_comma and kind not in ("csv", "wide"):
            raise UserError("--decimal-comma is for CSV: add --format wide, a row per photograph, or --format csv")

    def header(self, kind: str) -> str:
        """The first line of ``csv`` and ``wide``, which is what shows a spreadsheet how to read the others."""
        if kind == "csv":
            return BOM * self.decimal_comma + csv_text([COLUMNS], decimal_comma=self.decimal_comma)
        names = ["file", "labels", *(cell(f"score {name}") for name in self.classes)]
        if self.masked:
            names += ["masked_labels", *(cell(f"masked_score {name}") for name in self.classes)]
        return BOM + csv_text([[*names, "error"]], decimal_comma=self.decimal_comma)

    def text(self, image: ImagePrediction, kind: str) -> str:
        """The lines of an image."""
        rows = map(self._cells, _rows(image)) if kind == "csv" else [self._wide(image)]
        return csv_text(rows, decimal_comma=self.decimal_comma)

    def _cells(self, row: tuple) -> tuple[str, ...]:
        file, name, score, predicted, masked_score, masked_predicted, error, threshold, origin, deviation = row
        said = (cell(file), cell(name), self._digits(score), _flag(predicted))
        behind = (self._digits(masked_score), _flag(masked_predicted))
        return (*said, *behind, cell(error), self._digits(threshold), cell(origin), self._digits(deviation))

    def _wide(self, image: ImagePrediction) -> list[str]:
        masked = self._of_classes(image.masked_predicted, image.masked_scores) if self.masked else []
        return [cell(image.file), *self._of_classes(image.predicted, image.scores), *masked, cell(image.error)]

    def _of_classes(self, predicted: Sequence[str], scores: Sequence[tuple[str, float]]) -> list[str]:
        score_of = dict(scores)
        return [cell(";".join(predicted)), *(self._digits(score_of.get(name)) for name in self.classes)]

    def _digits(self, value: float | None) -> str:
        return digits(value, decimal_comma=self.decimal_comma)


def write_answers(found: Iterable[ImagePrediction], kind: str, file: IO[bytes], table: Table = Table()) -> None:
    """Write answers as they come in one of ``FORMATS``, in UTF-8; CSV and parquet have a row per image and class, and
    ``wide`` one per image, for which each answer has the scores of all classes."""
    if kind == "parquet":
        _write_parquet(found, file)
    elif kind == "fiftyone":
        _write_fiftyone(found, file)
    else:
        if kind in ("csv", "wide"):
            file.write(table.header(kind).encode())
        for image in found:
            file.write(_text(image, kind, table).encode())


class Printer:
    """Answers on a terminal or a pipe as they come.

    Args:
        kind: one of ``FORMATS``, but not one that is only written to files.
        console: where to. On a terminal lines to read are broken between words, and stay above a progress bar.
        table: how CSV is written.
    """

    def __init__(self, kind: str, console: Console, table: Table = Table()):
        self._kind, self._console, self._table = kind, console, table
        self._begun = False

    def show(self, image: ImagePrediction) -> None:
        """Print one."""
        if self._kind == "csv" and not self._begun:
            self._write(self._table.header("csv"))
        self._begun = True
        self._write(_text(image, self._kind, self._table))

    def _write(self, text: str) -> None:
        if is_watched(self._console):
            self._console.print(text.removesuffix("\n"), soft_wrap=self._kind != "table")
        else:
            self._console.file.write(text)


def _text(image: ImagePrediction, kind: str, table: Table) -> str:
    match kind:
        case "json":
            return json.dumps(_as_json(image), ensure_ascii=False) + "\n"
        case "csv" | "wide":
            return table.text(image, kind)
    return f"{on_one_line(image.file)}  {on_one_line(line_of(image))}\n"


def describe(summary: Summary) -> str:
    """Which images were left out, and why; empty if none."""
    if not summary.num_failed:
        return ""
    were = "was" if summary.num_failed == 1 else "were"
    lines = [f"{summary.num_failed:,} of {counted(summary.num_images, 'image')} could not be read and {were} left out:"]
    lines += [f"  {on_one_line(image.file)}: {image.error}" for image in summary.failed]
    if summary.num_failed > len(summary.failed):
        lines.append(f"  … and {summary.num_failed - len(summary.failed):,} more; --format json names them all")
    return "\n".join(lines)


@dataclass(slots=True)
class Summary:
    """What is to be said of many answers when they are written."""

    num_images: int = 0
    num_failed: int = 0
    num_drawn: int = 0
    num_empty: int = 0
    """Of which no class is predicted."""
    num_scores: int = 0
    """Classes with a score, of each image."""
    lowest_threshold: float = 1.0
    """Of those that their scores were held against."""
    num_classes: int = 0
    """Of the model."""
    threshold_origin: str = ""
    failed: list[ImagePrediction] = field(default_factory=list)
    """The first of those that could not be read."""

    @property
    def lower_threshold(self) -> float:
        """One for all classes that lies below each of theirs: tuned ones may be lower than the usual 0.3."""
        return 0.3 if self.lowest_threshold > 0.3 else self.lowest_threshold / 2

    def count(self, found: Iterable[ImagePrediction]) -> Iterator[ImagePrediction]:
        """Pass answers through."""
        for image in found:
            self.lowest_threshold = min((self.lowest_threshold, *image.thresholds))
            self.num_images += 1
            self.num_drawn += bool(image.overlay)
            self.num_empty += not image.error and not image.predicted and not image.masked_predicted
            self.num_scores = max(self.num_scores, len(image.scores))
            self.threshold_origin = self.threshold_origin or image.threshold_origin
            if image.error:
                self.num_failed += 1
                if len(self.failed) < _MAX_NAMED:
                    self.failed.append(image)
            yield image


def line_of(image: ImagePrediction) -> str:
    """What an image shows, on one line: ``cat 93 %, and 2 more; below the threshold: dog 31 %``."""
    if image.error:
        return f"not read: {image.error}"
    parts: dict[bool, list[str]] = {True: [], False: []}
    masked = dict(image.masked_scores)
    deviations = [f" ± {100 * value:.0f}" for value in image.deviations] or [""] * len(image.scores)
    thresholds = image.thresholds or [0.5] * len(image.scores)
    for (name, score), apart, threshold in zip(image.scores, deviations, thresholds):
        shown = percent_beside(score, threshold)
        behind = f" → {percent_beside(masked[name], threshold)}" if masked else ""
        is_predicted = name in image.predicted or name in image.masked_predicted
        parts[is_predicted].append(f"{name} {shown}{apart}{behind} %")
    if num_more := len({*image.predicted, *image.masked_predicted}) - len(parts[True]):  # of lower scores than top-k
        parts[True].append(f"and {num_more:,} more" if parts[True] else counted(num_more, "other"))
    predicted = ", ".join(parts[True]) or "nothing predicted"
    return predicted + (f"; below the threshold: {', '.join(parts[False])}" if parts[False] else "")


def _as_json(image: ImagePrediction) -> dict[str, object]:
    if image.error:
        return {"file": image.file, "error": image.error}
    content: dict[str, object] = {"file": image.file, "scores": dict(image.scores), "predicted": image.predicted}
    content["thresholds"] = {name: threshold for (name, _), threshold in zip(image.scores, image.thresholds)}
    content["threshold_origin"] = image.threshold_origin
    if image.deviations:
        content["score_sd"] = {name: value for (name, _), value in zip(image.scores, image.deviations)}
    if image.masked_scores:
        content |= {"masked_scores": dict(image.masked_scores), "masked_predicted": image.masked_predicted}
    return content | ({"overlay": image.overlay} if image.overlay else {})


def _rows(image: ImagePrediction) -> Iterator[tuple]:
    """Values by ``COLUMNS``; an image that could not be read has one row without a class."""
    if image.error:
        yield (image.file, None, None, None, None, None, image.error, None, None, None)
    masked = dict(image.masked_scores)
    deviations = image.deviations or [None] * len(image.scores)
    for (name, score), threshold, deviation in zip(image.scores, image.thresholds, deviations, strict=True):
        masked_predicted = name in image.masked_predicted if masked else None
        said = (image.file, name, score, name in image.predicted, masked.get(name), masked_predicted, None)
        yield (*said, threshold, image.threshold_origin, deviation)


def _flag(value: bool | None) -> str:
    return "" if value is None else str(int(value))


def _write_parquet(found: Iterable[ImagePrediction], file: IO[bytes]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, number, flag = pa.string(), pa.float32(), pa.bool_()
    kinds = (text, text, number, flag, number, flag, text, number, text, number)
    schema = pa.schema(list(zip(COLUMNS, kinds, strict=True)))
    rows = (row for image in found for row in _rows(image))
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        while group := list(itertools.islice(rows, _ROWS_PER_GROUP)):
            arrays = [pa.array(column, kind) for column, kind in zip(zip(*group), kinds, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _write_fiftyone(found: Iterable[ImagePrediction], file: IO[bytes]) -> None:
    """The label file of FiftyOne's ``FiftyOneImageClassificationDataset``: absolute path → labels with their scores.

    A score below its threshold is there too; its label has ``predicted`` false.
    """
    file.write(b'{"classes": null, "labels": {')
    is_first = True
    for image in found:
        if image.error:
            continue
        masked = dict(image.masked_scores)
        labels = [
            {
                "label": name,
                "confidence": round(score, 6),
                "attributes": {
                    "predicted": name in image.predicted,
                    "threshold": threshold,
                    **({"masked_confidence": round(masked[name], 6)} if masked else {}),
                },
            }
            for (name, score), threshold in zip(image.scores, image.thresholds, strict=True)
        ]
        entry = f"{json.dumps(str(Path(image.file).absolute()))}: {json.dumps(labels, ensure_ascii=False)}"
        file.write((("" if is_first else ",") + "\n" + entry).encode())
        is_first = False
    file.write(b"\n}}\n")
