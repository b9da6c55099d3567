"""What CVAT exports as "CVAT for images 1.1": one XML with the boxes, outlines and tags of every image."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from math import inf
from typing import Any
from xml.etree import ElementTree

from msldata.contract.records import LabelSpace, ObjectRecord, Record, quoted, read_class_list
from msldata.errors import BadInputError, UserError
from msldata.sources.source import (
    NO_OPTIONS,
    WHOLE_SPLIT,
    Likeness,
    Location,
    SourceOptions,
    fail,
    is_inside,
    key_of,
    split_location,
    unknown_split,
)
from msldata.sources.spelling import as_stored
from msldata.sources.tables.notes import not_listed
from msldata.sources.voc_xml import parse_xml
from msldata.storage import Storage, open_storage, regular

LAYOUT = "annotations.xml of 'CVAT for images 1.1', the images beside it or in images/"
_NAME = "annotations.xml"
_START = re.compile(rb"<annotations>\s*<version>1\.\d")
_START_BYTES = 1 << 10
_OUTLINES = ("polygon", "polyline", "points", "cuboid", "ellipse", "mask", "skeleton")
"""Shapes other than boxes: they name their class, and no object of it."""
_HINT = "export it anew from CVAT as 'CVAT for images 1.1'"


class Cvat:
    """One subset of what CVAT exports. The classes are its labels, in their order, or those of ``classes``.

    A box is an object, a tag or another shape names its class alone. Images without any of them are left out, unless
    ``keep_unlabelled`` says that they are negatives.

    Args:
        root: the XML, or the folder that it is in as ``annotations.xml``; local or remote.
        split: a subset in lower case, ``all`` where images are in none.
        options: ``classes``, ``keep_unlabelled``.

    Raises:
        UserError: unknown split. FileNotFoundError: no such file. BadInputError: it is not CVAT's, or of videos.
    """

    dataset = "cvat"
    licence = "Not stated by the annotations; their maker states it."

    def __init__(self, root: Location, split: str, options: SourceOptions = NO_OPTIONS):
        self.images, name = _place(root)
        self._where, data = self.images.where(name), self.images.read(name)
        document = _parse(data, self._where)
        self._entries = [entry for entry in document.iterfind("image") if _split_of(entry) == split]
        if not self._entries:
            raise unknown_split(self._where, split, _splits(document))
        self.split = split
        self.provenance: dict[str, Any] = {"source": "CVAT", "files": {name: hashlib.sha256(data).hexdigest()}}
        if options.classes is not None:
            place, file = split_location(options.classes)
            self.labels = read_class_list(place, file)
            self.provenance["classes"] = {file: hashlib.sha256(place.read(file)).hexdigest()}
        else:
            self.labels = _labels(document, self._where)
        self._keep_unlabelled = options.keep_unlabelled
        folder = self.images.path()  # in a bucket, each would be asked for, and nothing be said
        entries = document.iterfind("image") if folder is not None else ()
        listed = [self._stored(entry) for entry in entries if is_inside(entry.get("name", ""))]
        note = not_listed(folder, listed, f"not in {name}")
        self.notes: tuple[str, ...] = (note,) if note else ()
        self.reject: Callable[[BadInputError], None] = fail
        self.counts: dict[str, int] = {}

    def records(self) -> Iterator[Record]:
        """The subset's images, in the order of the file."""
        dropped = 0
        for entry in self._entries:
            try:
                record = _record(entry, self.labels)
            except ValueError as error:
                name = entry.get("name", "")
                self.reject(BadInputError(self._where, f"image '{name}': {error}", _HINT))
                continue
            if not (record.positives or self._keep_unlabelled):
                dropped += 1
                continue
            yield replace(record, image=self._stored(entry))
        if dropped:
            self.counts["dropped_without_annotations"] = dropped

    def _stored(self, entry: ElementTree.Element) -> str:
        """Where the image of an entry lies: in CVAT's folder, in that of its subset there, or beside the XML."""
        folders = ("images/", f"images/{entry.get('subset', '')}/", "")
        paths = [as_stored(self.images, folder + entry.get("name", "")) for folder in folders]
        return next((path for path in paths if self.images.exists(path)), paths[0])


def available_splits(root: Location, options: SourceOptions = NO_OPTIONS) -> tuple[str, ...]:
    """The subsets, or ``all``; none where there is no such file. Raises as ``Cvat`` does."""
    place, name = _place(root)
    return _splits(_parse(place.read(name), place.where(name))) if place.exists(name) else ()


def recognise(root: Location) -> Likeness | None:
    """An XML file that begins as CVAT's do, also those of videos, which say so when they are opened."""
    place, name = _place(root)
    path = place.path(name)
    if path is None or not path.is_file():
        return None
    with open(path, "rb", opener=regular) as file:
        start = file.read(_START_BYTES)
    return Likeness(3, "annotations as CVAT writes them") if _START.search(start) else None


def _place(root: Location) -> tuple[Storage, str]:
    """The folder of the file, and its name: CVAT's own, or that of the only XML in the folder."""
    if str(root).lower().endswith(".xml"):
        return split_location(root)
    place = open_storage(root)
    folder = place.path()
    found = [] if folder is None or not folder.is_dir() else sorted(path.name for path in folder.glob("*.xml"))
    return place, found[0] if len(found) == 1 else _NAME


def _parse(data: bytes, where: str) -> ElementTree.Element:
    document = parse_xml(data, where, _HINT)
    if document.tag != "annotations" or document.find("image") is None:
        what = "annotations of a video" if document.find("track") is not None else "no image of CVAT's in it"
        raise BadInputError(where, what, _HINT)
    return document


def _splits(document: ElementTree.Element) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(_split_of, document.iterfind("image"))))


def _split_of(entry: ElementTree.Element) -> str:
    subset = entry.get("subset", "").strip().lower()
    return WHOLE_SPLIT if subset in ("", "default") else subset


def _labels(document: ElementTree.Element, where: str) -> LabelSpace:
    """The labels of the task or project, in order; those of a skeleton's joints are none."""
    labels = [label for label in document.iterfind("meta//labels/label") if label.find("parent") is None]
    names = dict.fromkeys(name for label in labels if (name := (label.findtext("name") or "").strip()))
    if not names:
        raise UserError(f"{where}: it names no labels; give them with --classes FILE, one a line")
    return LabelSpace(tuple(names))


def _record(entry: ElementTree.Element, labels: LabelSpace) -> Record:
    """One image. Raises ValueError for what makes no sense."""
    name = entry.get("name", "")
    if not is_inside(name):
        raise ValueError("its name is no path below the folder")
    shapes = [shape for shape in entry if shape.tag in ("box", "tag", *_OUTLINES)]
    if unknown := [label for shape in shapes if (label := shape.get("label", "")) not in labels]:
        raise ValueError(f"unknown labels {quoted(list(dict.fromkeys(unknown)))}")
    size = (int(_number(entry, "width")), int(_number(entry, "height"))) if entry.get("width") else None
    return Record(
        key=key_of(name),
        image=name,
        positives=tuple(sorted({labels.index(shape.get("label", "")) for shape in shapes})),
        objects=tuple(_object(shape, labels) for shape in shapes if shape.tag == "box" and not _is_turned(shape)),
        image_id=entry.get("id", ""),
        size=size,
    )


def _is_turned(box: ElementTree.Element) -> bool:
    """Whether the four numbers of a box are those of another rectangle than the one that was drawn."""
    return box.get("rotation") is not None and _number(box, "rotation") % 360 != 0


def _object(box: ElementTree.Element, labels: LabelSpace) -> ObjectRecord:
    left, top, right, bottom = (_number(box, name) for name in ("xtl", "ytl", "xbr", "ybr"))
    width, height = right - left, bottom - top
    if not (0 < width < inf and 0 < height < inf):
        raise ValueError(f"a box of '{box.get('label')}' without area ({left}, {top}, {right}, {bottom})")
    occluded = {"0": False, "1": True}.get(box.get("occluded", ""))
    return ObjectRecord(
        labels.index(box.get("label", "")), (left, top, width, height), width * height, occluded=occluded
    )


def _number(element: ElementTree.Element, name: str) -> float:
    text = element.get(name)
    try:
        return float(text or "")
    except ValueError:
        raise ValueError(f"{name} is {text!r}, not a number") from None
