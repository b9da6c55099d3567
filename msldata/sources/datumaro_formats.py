"""The long tail of formats, through Datumaro: CVAT, LabelMe, Supervisely, CreateML and whatever else it reads."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from msldata.contract.records import LabelSpace, ObjectRecord, Record
from msldata.errors import BadInputError, UserError, nothing_at
from msldata.sources.source import (
    NO_OPTIONS,
    WHOLE_SPLIT,
    Likeness,
    Location,
    SourceOptions,
    fail,
    key_of,
    unknown_split,
)
from msldata.sources.spelling import as_stored_below
from msldata.storage import LocalStorage, Storage

LAYOUT = "any format that Datumaro reads, with pip install 'msltrain[formats]'"
_DEFAULT_SUBSET = "default"
_SHAPES = ("bbox", "polygon", "mask", "rotated_bbox", "polyline", "ellipse")
_HINT = "check it, or write it in another format"


class Datumaro:
    """One subset of a dataset that Datumaro reads; every annotation with a label names a class of its image.

    Args:
        root: the dataset's folder or file, on this machine.
        split: a subset's name; ``all`` for the one without a name.
        options: ``format``, a name that Datumaro knows; default: what it detects.

    Raises:
        UserError: Datumaro is not installed, knows no or several formats for the folder, or has no such subset.
        BadInputError: files that it cannot read.
    """

    dataset = "datumaro"
    licence = "Not stated by the annotations; their maker states it."

    def __init__(self, root: Location, split: str, options: SourceOptions = NO_OPTIONS):
        format_name, self._items = _load(str(root), options.format)
        known = available_splits(root, options)
        if split not in known:
            raise unknown_split(str(root), split, known)
        from datumaro.components.annotation import AnnotationType

        self.split = split
        self._root = Path(str(root)).expanduser().absolute()
        self._root = self._root if self._root.is_dir() else self._root.parent
        self.images: Storage = LocalStorage(self._root)
        categories = self._items.categories().get(AnnotationType.label)
        if categories is None or not len(categories):
            raise UserError(f"{root}: the dataset names no classes")
        self.labels = LabelSpace(tuple(item.name for item in categories))
        self.reject: Callable[[BadInputError], None] = fail
        self.counts: dict[str, int] = {}
        self.provenance: dict[str, Any] = {"source": f"{format_name}, read by Datumaro"}

    def records(self) -> Iterator[Record]:
        """The subset's images by name."""
        without_image = 0
        for item in sorted(self._items, key=lambda item: str(item.id)):
            if _split_of(item) != self.split:
                continue
            path = getattr(item.media, "path", None)
            path = path and as_stored_below(self._root, str(path))
            if not path or not Path(path).is_file():
                without_image += 1
                continue
            image = Path(path).absolute().relative_to(self._root).as_posix()
            labelled = [entry for entry in item.annotations if getattr(entry, "label", None) is not None]
            yield Record(
                key=key_of(image),
                image=image,
                positives=tuple(sorted({int(entry.label) for entry in labelled})),
                objects=tuple(_object(entry) for entry in labelled if entry.type.name in _SHAPES),
                image_id=str(item.id),
            )
        if without_image:
            self.counts["without_an_image"] = without_image


def available_splits(root: Location, options: SourceOptions = NO_OPTIONS) -> tuple[str, ...]:
    """The subsets of the dataset. Raises as ``Datumaro`` does."""
    return tuple(sorted({_split_of(item) for item in _load(str(root), options.format)[1]}))


def recognise(root: Location) -> Likeness | None:
    """What Datumaro takes it for, where it is installed."""
    if "://" in str(root) or not is_installed():
        return None
    formats = _detected(str(root))
    return Likeness(1, f"{' or '.join(formats)}, read by Datumaro") if formats else None


def is_installed() -> bool:
    """Whether the extra that reads these formats is there."""
    return importlib.util.find_spec("datumaro") is not None


def _object(entry: Any) -> ObjectRecord:
    left, top, width, height = map(float, entry.get_bbox())
    flags = entry.attributes or {}
    return ObjectRecord(
        class_index=int(entry.label),
        box=(left, top, width, height),
        area=float(entry.get_area()),
        truncated=_flag(flags.get("truncated")),
        occluded=_flag(flags.get("occluded")),
        crowd=bool(flags.get("is_crowd", False)),
    )


def _flag(value: Any) -> bool | None:
    return None if value is None else str(value).lower() in ("1", "true")


def _split_of(item: Any) -> str:
    return WHOLE_SPLIT if item.subset in (None, "", _DEFAULT_SUBSET) else str(item.subset)


def _detected(root: str) -> list[str]:
    from datumaro.components.environment import Environment

    logging.getLogger("datumaro").setLevel(logging.ERROR)
    return list(Environment().detect_dataset(str(Path(root).expanduser())))


@lru_cache(maxsize=1)
def _load(root: str, format_name: str | None) -> tuple[str, Any]:
    if not is_installed():
        raise UserError(f"{root}: needs Datumaro; install it with pip install 'msltrain[formats]'")
    if "://" in root:
        raise UserError(f"{root}: Datumaro reads local folders; copy it to this machine first")
    if not Path(root).expanduser().exists():
        raise nothing_at(root)
    from datumaro.components.dataset import Dataset

    formats = [format_name] if format_name else _detected(root)
    if len(formats) != 1:
        what = f"may be {', '.join(formats)}" if formats else "no format that Datumaro knows"
        raise UserError(f"{root}: {what}; name one with --format")
    try:
        items = Dataset.import_from(str(Path(root).expanduser()), formats[0])
        len(items)  # it reads only now
    except Exception as error:  # each of its readers raises errors of its own
        raise BadInputError(root, f"Datumaro cannot read it as {formats[0]} ({error})", _HINT) from None
    return formats[0], items
