"""Tasks as Label Studio exports them in its JSON: the image, and what the annotators chose for it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from msldata.contract.listing import Row
from msldata.sources.labels.values import CHOICES, parse_value

IMAGE, LABELS = "image", "labels"

_OF_ANNOTATION = frozenset({"annotator", "annotation_id", "created_at", "updated_at", "lead_time"})
"""Columns that tell one annotation of a task from another."""
_UPLOAD = re.compile(r"(?:https?://[^/]+)?/?data/upload/(?:\d+/)?(?P<name>[^/]+)")
_LOCAL = "data/local-files/?d="


def is_task(row: Mapping[str, Any]) -> bool:
    """Whether a JSON object is a task of Label Studio."""
    return isinstance(row.get("data"), dict) and isinstance(row.get("annotations", row.get("completions")), list)


def is_minimal_task(row: Mapping[str, Any]) -> bool:
    """Whether a JSON object is a line of JSON-MIN, in which what nobody chose is not there at all."""
    return {"annotator", "annotation_id"} <= row.keys()


def task_row(place: str, task: Mapping[str, Any]) -> dict[str, Any] | None:
    """The image and the labels of a task; None where nobody has annotated it.

    Raises:
        ValueError: two annotators disagree, or the task shows no image.
    """
    annotations = task.get("annotations", task.get("completions")) or []
    done = [entry for entry in annotations if isinstance(entry, dict) and not entry.get("was_cancelled")]
    if not done:
        return None
    said = [_labels(entry) for entry in done]
    if any(set(labels) != set(said[0]) for labels in said):
        raise ValueError(
            f"{place}: annotators disagree ({said[0]} and {next(s for s in said if set(s) != set(said[0]))})"
        )
    data = task["data"]
    paths = [data[name] for name in ("image", "img", "url") if isinstance(data.get(name), str)]
    paths += [value for value in data.values() if isinstance(value, str) and re.search(r"\.\w{3,4}$", value)]
    if not paths:
        raise ValueError(f"{place}: the task's data names no image")
    return {IMAGE: paths[0], LABELS: said[0]}


def one_annotation_a_task(rows: list[Row]) -> list[Row]:
    """The rows of an export as JSON-MIN or CSV, in which a task has a row for each annotation: one for each task.

    Raises:
        ValueError: annotators disagree. Rows of other tables stay as they are.
    """
    if not all(is_minimal_task(cells) and "id" in cells for _, cells in rows):
        return rows
    first: dict[str, Row] = {}
    for place, cells in rows:
        one, other = first.setdefault(str(cells["id"]), (place, cells))
        for name in cells.keys() - _OF_ANNOTATION:
            if _set(cells[name]) == _set(other[name]):
                continue
            raise ValueError(
                f"{one} and {place}: annotators disagree on task {cells['id']} ({name}: {other[name]!r} and "
                f"{cells[name]!r}); keep the line of one"
            )
    return list(first.values())


def _set(value: Any) -> Any:
    """A cell, in which the order of labels does not matter."""
    try:
        return frozenset(parse_value(value) or ())
    except ValueError:
        return str(value)


def _labels(annotation: Mapping[str, Any]) -> list[str]:
    found: dict[str, None] = {}
    for region in annotation.get("result") or []:
        value = region.get("value") if isinstance(region, dict) else None
        if isinstance(value, dict) and CHOICES.intersection(value):
            chosen = {name: value[name] for name in value if name in CHOICES}
            for name in parse_value(chosen) or ():
                found[str(name)] = None
    return list(found)


def plain_path(path: str) -> str:
    """Turn a path as Label Studio's server knows it into the path that its user knows; any other path stays unchanged.
    Uploads are at ``/data/upload/PROJECT/HASH-NAME``, files of a connected folder at ``/data/local-files/?d=PATH``.
    """
    _, found, local = path.partition(_LOCAL)
    if found:
        return unquote(local).lstrip("/")
    match = _UPLOAD.fullmatch(path)
    return match["name"] if match else path
