"""PASCAL VOC 2007 and 2012: image lists, and per image one XML with its objects."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

from msldata.contract.records import VOC, LabelSpace, ObjectRecord, Record, read_class_list
from msldata.errors import BadInputError, UserError
from msldata.sources.source import (
    Likeness,
    Location,
    has_folder,
    read_many,
    refuse_missing_bucket,
    unknown_split,
)
from msldata.storage import Storage, open_storage

# Per split the ways to list it, best first; the lists of one way are joined. They are named one by one, for a pattern
# such as *_train.txt would also take train_train.txt, the list of the class "train".
_LISTS = {
    "trainval": (("train", "val"), ("trainval",)),
    "train": (("train",),),
    "val": (("val",),),
    "test": (("test",),),
}
LAYOUT = "JPEGImages, Annotations and ImageSets"
_MAIN = "ImageSets/Main"
_CLASSES = f"{_MAIN}/classes.txt"
_HINT = "repair the file, or take its id out of the list in ImageSets/Main"


class Voc:
    """One split of a VOC dataset; the years differ only in what they are called.

    A class list of one's own, ``ImageSets/Main/classes.txt`` with one name a line, takes the place of VOC's 20 classes:
    so any dataset in VOC's layout can be read.

    A class is positive when at least one of its objects is not difficult, ignored when all its objects are difficult
    (evaluation leaves that pair out, training counts it as negative), and negative when it has none.

    Args:
        root: the year's folder (VOC2007), VOCdevkit, or one that contains VOCdevkit; local or remote.
        split: ``trainval``, ``train``, ``val`` or ``test``.

    Raises:
        UserError: unknown split, or a class list that is empty or names a class twice. FileNotFoundError: not that
            dataset, or a list or folder of it is missing.
    """

    dataset: str
    title: str
    """What it is called, and its folder's name."""
    licence: str

    def __init__(self, root: Location, split: str):
        if split not in _LISTS:
            raise unknown_split(self.dataset, split, tuple(_LISTS))
        self.split = split
        self.images: Storage = find_root(open_storage(root), self.title)
        self.counts: dict[str, int] = {}
        self._lists = _lists(self.images, split)
        missing = [name for name in self._lists if not self.images.exists(name)]
        missing += [name for name in ("Annotations", "JPEGImages") if not has_folder(self.images, name)]
        if missing:
            where = self.images.where(missing[0])
            raise FileNotFoundError(f"{where}: missing; {self.title} {split} needs it, is the download complete?")
        self.labels = VOC
        read_from = self._lists
        title = self.title
        if self.images.exists(_CLASSES):
            self.dataset, self.labels = "voc-layout", read_class_list(self.images, _CLASSES)
            self.licence = (
                f"Not {self.title} but a dataset of its own in the same layout; its maker states the licence."
            )
            read_from = (*self._lists, _CLASSES)
            title = f"{self.title} layout, own classes"
        self._ids, files = [], {}
        for name in read_from:
            data = self.images.read(name)
            files[name] = hashlib.sha256(data).hexdigest()
            if name != _CLASSES:
                self._ids += _image_ids(data, self.images.where(name))
        self.provenance: dict[str, Any] = {"source": title, "files": files}

    def records(self) -> Iterator[Record]:
        """The split's images in ascending order of their ids."""
        if not self._ids:
            where = self.images.where(self._lists[0])
            raise UserError(f"{where}: the list is empty; {self.title} {self.split} has no images here")
        annotations = hashlib.sha256()
        ids = sorted(self._ids)
        names = [f"Annotations/{image_id}.xml" for image_id in ids]
        contents = read_many(self.images, names)
        for image_id, name in zip(ids, names, strict=True):
            where = self.images.where(name)
            try:
                data = next(contents)
            except FileNotFoundError:
                raise BadInputError(where, "no such file", _HINT) from None
            annotations.update(data)
            objects = parse_objects(data, where, self.labels)
            clear = {item.class_index for item in objects if not item.difficult}
            yield Record(
                key=image_id,
                image=f"JPEGImages/{image_id}.jpg",
                positives=tuple(sorted(clear)),
                ignored=tuple(sorted({item.class_index for item in objects} - clear)),
                objects=objects,
                image_id=image_id,
            )
        self.provenance["annotations_sha256"] = annotations.hexdigest()


class Voc2007(Voc):
    """The dataset of the paper's Table 1: 5,011 images for training, 4,952 for testing."""

    dataset = "voc2007"
    title = "VOC2007"
    licence = (
        "Photographs from flickr, under flickr's terms and their photographers' rights; no licence for the dataset as "
        "a whole. Cite Everingham et al., The PASCAL Visual Object Classes Challenge 2007."
    )


class Voc2012(Voc):
    """Its objects say also whether they are occluded; the annotations of its test images were never published."""

    dataset = "voc2012"
    title = "VOC2012"
    licence = Voc2007.licence.replace("2007", "2012")


def find_root(place: Storage, title: str) -> Storage:
    """The folder ``title`` (VOC2007) itself: ``place``, or one below it. Raises FileNotFoundError."""
    for candidate in (place, place.child(title), place.child("VOCdevkit").child(title)):
        # A remote place has no folders to look for, only the lists in them.
        if (candidate.path() is not None and has_folder(candidate, _MAIN)) or available_splits(candidate):
            return candidate
    refuse_missing_bucket(place, f"{_MAIN}/trainval.txt")
    raise FileNotFoundError(
        f"{place.url}: no {title} here (no ImageSets/Main in it, in {title} or in VOCdevkit/{title}); "
        f"give the folder that holds {LAYOUT}"
    )


def available_splits(root: Location | Storage) -> tuple[str, ...]:
    """Splits whose image lists lie in ``root``; empty when it is no VOC folder."""
    place = root if isinstance(root, Storage) else open_storage(root)
    there = {name: place.exists(f"{_MAIN}/{name}.txt") for name in _LISTS}
    return tuple(split for split, ways in _LISTS.items() if any(all(map(there.get, names)) for names in ways))


def recognise(root: Location, title: str) -> Likeness | None:
    """The VOC folder of one year at ``root``; a folder that is not called after a year is taken for that of 2007."""
    place = open_storage(root)
    for candidate in (place, place.child(title), place.child("VOCdevkit").child(title)):
        if splits := available_splits(candidate):
            own = candidate.exists(_CLASSES)
            classes = read_class_list(candidate, _CLASSES) if own else VOC
            named = candidate is not place or place.url.rstrip("/").rpartition("/")[2] == title
            layout = f"{title} layout{' with own classes' if own else ''}"
            certainty = 3 if named else 2 if title == Voc2007.title else 1
            return Likeness.of(certainty, layout, splits, len(classes))
    return None


def _lists(place: Storage, split: str) -> tuple[str, ...]:
    choices = [tuple(f"{_MAIN}/{name}.txt" for name in names) for names in _LISTS[split]]
    return next((names for names in choices if all(map(place.exists, names))), choices[0])


def _image_ids(data: bytes, where: str) -> list[str]:
    ids = []
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), start=1):
        if not line.strip():
            continue
        image_id = line.split()[0]
        # It becomes part of a path: nothing in a list may point outside the dataset.
        if not image_id.replace("_", "").replace("-", "").isalnum():
            raise BadInputError(where, f"line {number}: {image_id[:80]!r} is not an image id", _HINT)
        ids.append(image_id)
    return ids


def parse_objects(data: bytes, where: str, labels: LabelSpace = VOC) -> tuple[ObjectRecord, ...]:
    """The objects of one VOC annotation, in the order of the file.

    VOC counts pixels from 1 and both corners belong to the box; the result counts from 0.

    Raises:
        BadInputError: not XML, a document type declaration (never needed here, and a way to exhaust memory), an object
            without name or box, or an unknown class.
    """
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data or b"\0" in data:
        raise BadInputError(where, "document type declarations, entities and NUL bytes are refused", _HINT)
    try:
        annotation = ElementTree.fromstring(data)
        return tuple(_parse_object(element, labels) for element in annotation.findall("object"))
    except ElementTree.ParseError as error:
        raise BadInputError(where, f"not valid XML ({error})", _HINT) from None
    except ValueError as error:
        raise BadInputError(where, str(error), _HINT) from None


def _parse_object(element: ElementTree.Element, labels: LabelSpace) -> ObjectRecord:
    name = (element.findtext("name") or "").strip()
    if name not in labels:
        raise ValueError(f"unknown class '{name}'")
    box = element.find("bndbox")
    if box is None:
        raise ValueError(f"an object of class '{name}' has no bndbox")
    left, top, right, bottom = (_number(box, tag) for tag in ("xmin", "ymin", "xmax", "ymax"))
    width, height = right - left + 1, bottom - top + 1
    if not (0 < width < float("inf") and 0 < height < float("inf")):
        raise ValueError(f"an object of class '{name}' has a box without area ({left}, {top}, {right}, {bottom})")
    return ObjectRecord(
        class_index=labels.index(name),
        box=(left - 1, top - 1, width, height),
        area=width * height,
        difficult=bool(_flag(element, "difficult")),
        truncated=_flag(element, "truncated"),
        occluded=_flag(element, "occluded"),
    )


def _number(box: ElementTree.Element, tag: str) -> float:
    text = box.findtext(tag)
    try:
        return float(text or "")
    except ValueError:
        raise ValueError(f"{tag} is {text!r}, not a number") from None


def _flag(element: ElementTree.Element, tag: str) -> bool | None:
    """A 0/1 tag; None where it is absent, because "not marked" and "not looked at" differ."""
    text = element.findtext(tag)
    if text is None or not text.strip():
        return None
    if text.strip() not in ("0", "1"):
        raise ValueError(f"{tag} is {text!r}, expected 0 or 1")
    return text.strip() == "1"
