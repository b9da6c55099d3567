"""PASCAL VOC 2007 and 2012, and datasets in their layout: image lists, and per image one XML with its objects."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from msldata.contract.format import make_key
from msldata.contract.listing import IMAGE_SUFFIXES
from msldata.contract.records import VOC, LabelSpace, Record, read_class_list
from msldata.errors import BadInputError, UserError, counted
from msldata.sources.source import (
    NO_OPTIONS,
    SPLIT_NAMES,
    WHOLE_SPLIT,
    Likeness,
    Location,
    SourceOptions,
    fail,
    first_folder,
    has_folder,
    is_hidden,
    is_inside,
    read_many,
    refuse_missing_bucket,
    split_location,
    unannotated_said,
    unknown_split,
)
from msldata.sources.spelling import as_stored, composed, several_alike, stored_among
from msldata.sources.voc_xml import HINT, parse_annotation, parse_class_names, parse_objects
from msldata.storage import Storage, open_storage

__all__ = ["LAYOUT", "Voc", "Voc2007", "Voc2012", "available_splits", "find_root", "parse_objects", "recognise"]

# The ways to list each split, best first; the lists of one way are joined. They are named one by one, since a pattern
# such as *_train.txt would also take train_train.txt, the list of the class "train".
_LISTS = {
    "trainval": (("train", "val"), ("trainval",)),
    "train": (("train",),),
    "val": (("val",),),
    "test": (("test",),),
    WHOLE_SPLIT: (("default",),),  # CVAT's
}
LAYOUT = "JPEGImages, Annotations and ImageSets, or XML files beside the images"
_VOCS_OWN = tuple(split for split in _LISTS if split != WHOLE_SPLIT)
_OTHER_LISTS = (*SPLIT_NAMES, "trainval")
"""What other programs call such lists, in upper or lower case."""
_MAIN = "ImageSets/Main"
_CLASSES = f"{_MAIN}/classes.txt"
_ANNOTATIONS = ("Annotations", "annotations")
_IMAGES = ("JPEGImages", "images", "Images")
_PLAIN_FOLDERS = {"annotations", "xml", "xmls", "labels", "jpegimages", "images", "imgs", "img", "data"}
"""Folders whose name says what kind of file they hold and nothing about the image."""


class _Entry(NamedTuple):
    """One image of a split."""

    image_id: str
    annotation: str
    """The XML's path; empty for an image without one."""
    image: str = ""
    """The image's path; empty: not looked for yet."""


class Voc:
    """One split of a dataset in VOC's layout.

    The classes are VOC's 20, or those of ``ImageSets/Main/classes.txt`` or ``classes`` (one name a line), or, for your
    own dataset, the names that its XML files use, sorted; those of all splits, so that their vectors mean the same.

    Without lists every XML is an image, found by its name in the same place or in a folder of images; folders called
    train, valid, test … are the splits, else there is one, ``all``.

    A class is positive when at least one of its objects is not difficult, ignored when all its objects are difficult
    (evaluation leaves that pair out, training counts it as negative), and negative when it has none.

    Args:
        root: the folder that holds the lists or the XML files; for VOC's own years also VOCdevkit, or a folder that
            contains it. Local or remote.
        split: ``trainval``, ``train``, ``val`` or ``test``, or one that the folders name.
        options: ``classes`` and, for a dataset without lists, ``keep_unlabelled``.

    Raises:
        UserError: unknown split, or a class list that is empty or names a class twice. FileNotFoundError: not that
            dataset, or a list or folder of it is missing.
    """

    dataset = "voc"
    title = "VOC"
    """The dataset's name, and its folder's."""
    licence = "Not stated by the annotations; whoever made the dataset states it."
    own_classes = True
    """Whether it may have other classes than VOC's 20 without a list of them."""

    def __init__(self, root: Location, split: str, options: SourceOptions = NO_OPTIONS):
        self.split = split
        self.reject: Callable[[BadInputError], None] = fail
        self.counts: dict[str, int] = {}
        self.images: Storage = find_root(open_storage(root), self.title)
        listed = bool(available_lists(self.images))
        self.notes: tuple[str, ...] = ()
        """What deserves a look, of all splits."""
        if listed:
            self._entries, files = self._read_lists(split)
        else:
            _refuse_unknown_lists(self.images)
            _refuse_twins(self.images)
            by_folder, found = _by_folder(self.images), _unlisted(self.images)
            self.notes = tuple(
                f"{counted(len(entries), 'photograph')} of '{other}' without any XML file: left out"
                for other, entries in by_folder.items()
                if other not in found
            )
            if split not in found:
                raise unknown_split(self.images.url, split, tuple(found))
            self._entries, files = found[split], {}
            bare = [entry.image for entry in self._entries if not entry.annotation]
            self.notes += unannotated_said(split, bare, kept=bool(options.keep_unlabelled))
            if bare and not options.keep_unlabelled:
                self._entries = [entry for entry in self._entries if entry.annotation]
                self.counts["dropped_without_annotations"] = len(bare)
        self.labels, note = self._classes(options.classes, files, found if not listed else None)
        self.provenance: dict[str, Any] = {"source": f"{self.title}{note}", "files": files}

    def records(self) -> Iterator[Record]:
        """The split's images in ascending order of their ids."""
        annotations, labels, where = hashlib.sha256(), self.labels, self.images.where
        entries = sorted(self._entries)
        contents = read_many(self.images, [entry.annotation for entry in entries if entry.annotation])
        find_image = _ImageFinder(self.images)
        for entry in entries:
            data = next(contents) if entry.annotation else b"<annotation/>"
            try:
                if data is None:
                    raise BadInputError(self.images.where(entry.annotation), "no such file", HINT)
                annotations.update(data)
                objects, size = parse_annotation(data, where(entry.annotation), labels)
            except BadInputError as error:
                self.reject(error)
                continue
            found = {item.class_index for item in objects}
            clear = {item.class_index for item in objects if not item.difficult}
            yield Record(
                key=make_key(entry.image_id),
                image=entry.image or find_image(entry.image_id),
                positives=tuple(sorted(clear)),
                ignored=tuple(sorted(found - clear)),
                objects=objects,
                image_id=entry.image_id,
                size=size,
            )
        self.provenance["annotations_sha256"] = annotations.hexdigest()

    def _read_lists(self, split: str) -> tuple[list[_Entry], dict[str, str]]:
        """The images of a split by its lists, and the lists with their SHA-256."""
        known = dict.fromkeys((*_VOCS_OWN, *available_lists(self.images)))
        if split not in known:
            raise unknown_split(self.dataset, split, tuple(known))
        lists = _lists(self.images, split)
        annotations, images = first_folder(self.images, _ANNOTATIONS), first_folder(self.images, _IMAGES)
        missing = [name for name in lists if not self.images.exists(name)]
        missing += [name for name in (annotations, images) if not has_folder(self.images, name)]
        if missing:
            where = self.images.where(missing[0])
            raise FileNotFoundError(f"{where}: missing; {self.title} {split} needs it, is the download complete?")
        entries, files = [], {}
        for name in lists:
            data = self.images.read(name)
            files[name] = hashlib.sha256(data).hexdigest()
            ids = self._read_list(name, data, annotations)
            paths = [as_stored(self.images, f"{annotations}/{found}.xml") for found in ids]
            entries += [_Entry(path[len(annotations) + 1 : -len(".xml")], path) for path in paths]
        if not entries:
            where = self.images.where(lists[0])
            raise UserError(f"{where}: the list is empty; {self.title} {self.split} has no images here")
        return entries, files

    def _read_list(self, name: str, data: bytes, annotations: str) -> Iterator[str]:
        """The ids in a list, one per line, each of which may be followed by -1, 0 or 1."""
        for number, line in enumerate(data.decode("utf-8-sig", "replace").splitlines(), start=1):
            image_id = line.strip()
            if not image_id:
                continue
            if image_id.replace("_", "").isalnum():  # nearly all of the many
                yield image_id
                continue
            before, _, flag = image_id.rpartition(" ")
            if not before:
                before, _, flag = image_id.rpartition("\t")
            # "photo 1" may be an image and its flag, or an image: the files tell.
            if flag in ("-1", "0", "1") and before and not self._has_annotation(f"{annotations}/{image_id}.xml"):
                image_id = before.rstrip()
            if "." in image_id and PurePosixPath(image_id).suffix.lower() in IMAGE_SUFFIXES:
                image_id = image_id.rpartition(".")[0]
            # It becomes part of a path: nothing in a list may point outside the dataset.
            if not is_inside(image_id):
                where = self.images.where(name)
                raise BadInputError(where, f"line {number}: {image_id[:80]!r} is not an image id", HINT)
            yield image_id

    def _has_annotation(self, name: str) -> bool:
        return self.images.exists(as_stored(self.images, name))

    def _classes(
        self, classes: Location | None, files: dict[str, str], found: Mapping[str, list[_Entry]] | None
    ) -> tuple[LabelSpace, str]:
        """The classes, and what the provenance says about them."""
        if classes is not None or self.images.exists(_CLASSES):
            place, name = (self.images, _CLASSES) if classes is None else split_location(classes)
            files[name] = hashlib.sha256(place.read(name)).hexdigest() if place.exists(name) else ""
            labels = read_class_list(place, name)
        else:
            labels = VOC
            first = self._names(self._entries, stop_at_first=True) if self.images.can_list else set()
            if self.own_classes or (first and first.isdisjoint(VOC.classes)):
                entries = [entry for split in found.values() for entry in split] if found else self._all_annotations()
                names = self._names(entries)
                # In a dataset named after a year, a few classes beside VOC's are more likely a typing mistake.
                if names - set(VOC.classes) and (self.own_classes or names.isdisjoint(VOC.classes)):
                    labels = LabelSpace(tuple(sorted(names)))
        if labels == VOC and classes is None and not self.images.exists(_CLASSES):
            return VOC, "" if not self.own_classes else " layout"
        self.dataset = "voc-layout" if not self.own_classes else self.dataset
        self.licence = f"Not {self.title} but a dataset of its own in the same layout; its maker states the licence."
        return labels, " layout, own classes"

    def _all_annotations(self) -> list[_Entry]:
        folder = first_folder(self.images, _ANNOTATIONS)
        names = [info.name for info in self.images.child(folder).list_sources() if info.name.endswith(".xml")]
        return [_Entry(name, f"{folder}/{name}") for name in names]

    def _names(self, entries: list[_Entry], stop_at_first: bool = False) -> set[str]:
        """The class names in some annotations; damaged ones are reported when they are read as records."""
        found: set[str] = set()
        paths = sorted(dict.fromkeys(entry.annotation for entry in entries if entry.annotation))
        for path, data in zip(paths, read_many(self.images, paths), strict=True):
            try:
                found |= set(parse_class_names(data, path)) if data is not None else set()
            except BadInputError:
                continue
            if found and stop_at_first:
                break
        return found


class Voc2007(Voc):
    """The dataset of the paper's Table 1: 5,011 images for training, 4,952 for testing."""

    dataset = "voc2007"
    title = "VOC2007"
    own_classes = False
    licence = (
        "Photographs from flickr, under flickr's terms and their photographers' rights; no licence for the dataset as "
        "a whole. Cite Everingham et al., The PASCAL Visual Object Classes Challenge 2007."
    )


class Voc2012(Voc2007):
    """Its objects also say whether they are occluded; the annotations of its test images were never published."""

    dataset = "voc2012"
    title = "VOC2012"
    licence = Voc2007.licence.replace("2007", "2012")


class _ImageFinder:
    """Where the image with an id is: in the folder of images, with any suffix; the folder is listed at most once."""

    def __init__(self, place: Storage):
        self._place = place
        self._folder = first_folder(place, _IMAGES)
        self._names: dict[str, str] | None = None
        self._composed: Mapping[str, list[str]] = {}
        folder = place.path(self._folder)
        # Asking for each image by itself would take longer than reading its annotation's few fields.
        self._present = set(os.listdir(folder)) if folder is not None and folder.is_dir() else set()

    def __call__(self, image_id: str) -> str:
        jpeg = f"{image_id}.jpg"
        usual = f"{self._folder}/{jpeg}"
        if jpeg in self._present or not self._place.can_list:
            return usual
        if "/" in image_id and self._place.path() is not None and self._place.exists(usual):
            return usual
        if self._names is None:
            files = [PurePosixPath(info.name) for info in self._place.child(self._folder).list_sources()]
            self._names = _by_stem(files)
            self._composed = stored_among(self._names)
        alike = [image_id] if image_id in self._names else self._composed.get(composed(image_id), [])
        if len(alike) > 1:
            raise several_alike(image_id, [self._place.where(f"{self._folder}/{self._names[name]}") for name in alike])
        return f"{self._folder}/{self._names[alike[0]]}" if alike else usual


def _by_stem(paths: list[PurePosixPath]) -> dict[str, str]:
    """Image files by their paths without the suffix; of two, the one with the more usual suffix."""
    images = [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES]
    images.sort(key=lambda path: IMAGE_SUFFIXES.index(path.suffix.lower()), reverse=True)
    return {path.with_suffix("").as_posix(): path.as_posix() for path in images}


def _unlisted(place: Storage) -> dict[str, list[_Entry]]:
    """The splits of a folder without lists, by name, with their images; those of which an image is annotated."""
    splits = _by_folder(place)
    return {split: entries for split, entries in splits.items() if any(entry.annotation for entry in entries)}


def _by_folder(place: Storage) -> dict[str, list[_Entry]]:
    """The images of a folder without lists by their split, in any of which there may be no annotation."""
    if not place.can_list:
        return {}
    files = [PurePosixPath(info.name) for info in place.list_sources() if not is_hidden(info.name)]
    annotations = {_plain(path): path.as_posix() for path in files if path.suffix.lower() == ".xml"}
    if not annotations:
        return {}
    images = {_plain(PurePosixPath(name)): name for name in _by_stem(files).values()}
    for name, others in stored_among(annotations.keys() - images.keys()).items():
        # Of an image whose name stores its accents in another form.
        alone = [other for other in images.keys() - annotations.keys() if composed(other) == name]
        if len(others) == len(alone) == 1:
            images[others[0]] = images.pop(alone[0])
    if images.keys().isdisjoint(annotations):
        return {}  # XML of another kind, such as CVAT's
    splits: dict[str, list[_Entry]] = {}
    for name in sorted(annotations.keys() | images.keys()):
        parts = PurePosixPath(name).parts
        split = next((part for part in parts[:-1] if part.lower() in SPLIT_NAMES), WHOLE_SPLIT)
        image_id = "/".join(part for part in parts if part != split)
        # A missing image is read under the name it would have, and so reported.
        entry = _Entry(image_id, annotations.get(name, ""), images.get(name, f"{name}.jpg"))
        splits.setdefault(split, []).append(entry)
    return splits


def _refuse_twins(place: Storage) -> None:
    """Raise UserError for two annotations, or two images of one kind, that would pass for each other: one were lost."""
    first: dict[tuple[str, str], str] = {}
    for path in sorted(info.name for info in place.list_sources()) if place.can_list else ():
        suffix = PurePosixPath(path).suffix.lower()
        if is_hidden(path) or (suffix != ".xml" and suffix not in IMAGE_SUFFIXES):
            continue
        other = first.setdefault((_plain(PurePosixPath(path)), suffix), path)
        if other != path:
            raise UserError(
                f"{place.where(other)} and {place.where(path)}: two files for one image, for what their folders are "
                "called says nothing about it; rename one, or move it away"
            )


def _plain(path: PurePosixPath) -> str:
    """The path without its suffix and without folders such as Annotations and images."""
    return "/".join((*(part for part in path.parts[:-1] if part.lower() not in _PLAIN_FOLDERS), path.stem))


def find_root(place: Storage, title: str) -> Storage:
    """The folder ``title`` (VOC2007) itself: ``place``, or one below it. Raises FileNotFoundError."""
    for candidate in _candidates(place, title):
        # A remote place has no folders to look for, only the lists in them.
        if (candidate.path() is not None and has_folder(candidate, _MAIN)) or available_lists(candidate):
            return candidate
    refuse_missing_bucket(place, f"{_MAIN}/trainval.txt")
    if _unlisted(place):
        return place
    raise FileNotFoundError(
        f"{place.url}: no {title} here (no ImageSets/Main in it, in {title} or in VOCdevkit/{title}, no XML files); "
        f"give the folder that holds {LAYOUT}"
    )


def available_splits(
    root: Location | Storage, options: SourceOptions = NO_OPTIONS, title: str = "VOC"
) -> tuple[str, ...]:
    """Splits in ``root``, by its lists or else by its folders; empty when it is not a VOC folder."""
    place = root if isinstance(root, Storage) else open_storage(root)
    listed = (available_lists(candidate) for candidate in _candidates(place, title))
    return next((splits for splits in listed if splits), ()) or tuple(_unlisted(place))


def _candidates(place: Storage, title: str) -> tuple[Storage, ...]:
    return place, place.child(title), place.child("VOCdevkit").child(title)


def available_lists(place: Storage) -> tuple[str, ...]:
    """Splits whose image lists are in a folder."""
    asked = {name for ways in _LISTS.values() for names in ways for name in names}
    there = {name: place.exists(f"{_MAIN}/{name}.txt") for name in asked}
    known = [split for split, ways in _LISTS.items() if any(all(map(there.get, names)) for names in ways)]
    return (*known, *(name for name in _list_names(place) if name not in _LISTS and name.lower() in _OTHER_LISTS))


def _list_names(place: Storage) -> list[str]:
    """The names of all lists in a folder on this machine, those for one class among them."""
    main = place.path(_MAIN)
    return sorted(path.stem for path in main.glob("*.txt")) if main is not None and main.is_dir() else []


def _refuse_unknown_lists(place: Storage) -> None:
    """Raise UserError for lists of images that nobody reads: the splits that they make would be lost."""
    names = [name for name in _list_names(place) if f"{_MAIN}/{name}.txt" != _CLASSES]
    if names:
        shown = ", ".join(f"{name}.txt" for name in names[:6]) + (" …" if len(names) > 6 else "")
        raise UserError(
            f"{place.where(_MAIN)}: none of its lists ({shown}) is called train.txt, val.txt, trainval.txt or "
            "test.txt; rename them, or move them away to take every XML file"
        )


def recognise(root: Location, title: str) -> Likeness | None:
    """The VOC folder of one year at ``root``; a folder that is not named after a year is taken for VOC2007."""
    place = open_storage(root)
    for candidate in _candidates(place, title):
        splits = available_lists(candidate)
        if not set(splits).isdisjoint(_VOCS_OWN):
            own = candidate.exists(_CLASSES)
            classes = read_class_list(candidate, _CLASSES) if own else VOC
            named = candidate is not place or place.url.rstrip("/").rpartition("/")[2] == title
            layout = f"{title} layout{' with own classes' if own else ''}"
            certainty = 3 if named else 2 if title == Voc2007.title else 1
            return Likeness.of(certainty, layout, splits, len(classes))
    return None


def recognise_own(root: Location) -> Likeness | None:
    """VOC's layout without a year's name: with lists, or XML files beside their images."""
    place = open_storage(root)
    if available_lists(place):
        return Likeness.of(1, "VOC layout, classes found in it", available_lists(place))
    splits = tuple(_unlisted(place)) if place.path() is not None else ()  # a bucket may be large
    return Likeness.of(2, "VOC layout without lists", splits) if splits else None


def _lists(place: Storage, split: str) -> tuple[str, ...]:
    choices = [tuple(f"{_MAIN}/{name}.txt" for name in names) for names in _LISTS.get(split, ((split,),))]
    return next((names for names in choices if all(map(place.exists, names))), choices[0])
