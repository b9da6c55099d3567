"""What ``predict`` found, as lines to read, JSON lines, CSV or parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from msldata.console import visible
from msldata.errors import UserError
from msltrain.use.predict import ImagePrediction

FORMATS = ("table", "json", "csv", "parquet")
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
_MAX_NAMED = 20


def format_of(asked: str | None, out: Path | None) -> str:
    """One of ``FORMATS``: the one asked for, else by the suffix of the file to write, else a table.

    Raises:
        UserError: the file's suffix does not say, or parquet is to be printed.
    """
    if asked is None and out is not None:
        if out.suffix.lower() not in _SUFFIXES:
            raise UserError(f"{out}: its suffix does not say which format to write; give --format {'|'.join(FORMATS)}")
        asked = _SUFFIXES[out.suffix.lower()]
    if asked == "parquet" and out is None:
        raise UserError("parquet cannot be printed; give the file to write with --out FILE.parquet")
    return asked or "table"


def encode(found: Sequence[ImagePrediction], kind: str) -> bytes:
    """All of it in one of ``FORMATS``; text is UTF-8. CSV and parquet have a row per image and class."""
    match kind:
        case "json":
            return "".join(json.dumps(_as_json(image), ensure_ascii=False) + "\n" for image in found).encode()
        case "csv":
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(COLUMNS)
            for file, name, score, predicted, masked_score, masked_predicted, error, *more in _rows(found):
                flags = (_flag(predicted), _digits(masked_score), _flag(masked_predicted))
                threshold, origin, deviation = more
                said = (_cell(file), _cell(name), _digits(score), *flags, _cell(error))
                writer.writerow((*said, _digits(threshold), _cell(origin), _digits(deviation)))
            return text.getvalue().encode()
        case "parquet":
            return _parquet(found)
    return "".join(f"{_on_one_line(image.file)}  {_on_one_line(_line(image))}\n" for image in found).encode()


def describe(found: Sequence[ImagePrediction]) -> str:
    """Which images were left out, and why; empty if none."""
    failed = [image for image in found if image.error]
    if not failed:
        return ""
    lines = [f"{len(failed):,} of {len(found):,} images could not be read and were left out:"]
    lines += [f"  {_on_one_line(image.file)}: {image.error}" for image in failed[:_MAX_NAMED]]
    if len(failed) > _MAX_NAMED:
        lines.append(f"  … and {len(failed) - _MAX_NAMED:,} more; --format json names them all")
    return "\n".join(lines)


def _line(image: ImagePrediction) -> str:
    if image.error:
        return f"not read: {image.error}"
    parts: dict[bool, list[str]] = {True: [], False: []}
    masked = dict(image.masked_scores)
    deviations = [f" ± {100 * value:.0f}" for value in image.deviations] or [""] * len(image.scores)
    for (name, score), apart in zip(image.scores, deviations):
        behind = f" → {100 * masked[name]:.0f}" if masked else ""
        is_predicted = name in image.predicted or name in image.masked_predicted
        parts[is_predicted].append(f"{name} {100 * score:.0f}{apart}{behind} %")
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


def _rows(found: Sequence[ImagePrediction]) -> Iterator[tuple]:
    """Values by ``COLUMNS``; an image that could not be read has one row without a class."""
    for image in found:
        if image.error:
            yield (image.file, None, None, None, None, None, image.error, None, None, None)
        masked = dict(image.masked_scores)
        deviations = image.deviations or [None] * len(image.scores)
        for (name, score), threshold, deviation in zip(image.scores, image.thresholds, deviations, strict=True):
            masked_predicted = name in image.masked_predicted if masked else None
            said = (image.file, name, score, name in image.predicted, masked.get(name), masked_predicted, None)
            yield (*said, threshold, image.threshold_origin, deviation)


def _on_one_line(name: str) -> str:
    """A name for a line of its own: a file may have a line break in it."""
    return visible(name).replace("\n", "\\n").replace("\t", "\\t")


def _cell(text: str | None) -> str:
    """Text as a spreadsheet shows it: one that would run it as a formula gets an apostrophe in front."""
    return f"'{text}" if text and text.startswith(("=", "+", "-", "@", "\t", "\r")) else text or ""


def _flag(value: bool | None) -> str:
    return "" if value is None else str(int(value))


def _digits(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def _parquet(found: Sequence[ImagePrediction]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, number, flag = pa.string(), pa.float32(), pa.bool_()
    kinds = (text, text, number, flag, number, flag, text, number, text, number)
    columns = list(zip(*_rows(found))) or [()] * len(COLUMNS)
    arrays = [pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, names=list(COLUMNS)), buffer, compression="zstd")
    return buffer.getvalue()
