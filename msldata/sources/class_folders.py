"""One folder per class, with the images of that class in it; below a folder per split where there are splits."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from msldata.contract.listing import IMAGE_SUFFIXES
from msldata.contract.records import LabelSpace, Record, quoted, read_class_list
from msldata.errors import BadInputError, UserError
from msldata.sources.source import (
    NO_OPTIONS,
    WHOLE_SPLIT,
    Likeness,
    Location,
    SourceOptions,
    fail,
    is_hidden,
    key_of,
    split_location,
    unknown_split,
)
from msldata.storage import Storage, open_storage

LAYOUT = "a folder per class with its images, below a folder per split where there are splits"
_OTHERS = frozenset({".json", ".jsonl", ".xml", ".csv", ".tsv", ".parquet", ".yaml", ".yml", ".arrow", ".tar"})
"""Suffixes of annotations and of other kinds of datasets."""
_UNLABELLED = "_unlabeled"
"""FiftyOne's folder of images without a class."""
SPLIT_WORDS = frozenset("train training val valid validation dev test testing trainval".split())


class ClassFolders:
    """One split of images that lie in a folder named after their class.

    An image that is, byte for byte and under one name, in several folders is one image with several classes.

    Args:
        root: the folder of the class folders, or of split folders that hold them; local or remote.
        split: the name of such a folder, or ``all``.
        options: ``classes``, a list that fixes their order; default: the folders' names, sorted, of all splits.

    Raises:
        UserError: unknown split, or a folder that is not in the list of classes. FileNotFoundError: no such folders.
    """

    dataset = "folders"
    licence = "Not stated by the folders; the photographs' owner states it."

    def __init__(self, root: Location, split: str, options: SourceOptions = NO_OPTIONS):
        self.images: Storage = open_storage(root)
        by_split = _images(self.images)
        if not by_split:
            raise FileNotFoundError(f"{self.images.url}: no folders with images here; it would hold {LAYOUT}")
        if split not in by_split:
            raise unknown_split(self.images.url, split, tuple(by_split))
        names = sorted({name for classes in by_split.values() for name in classes})
        self.split = split
        self.labels = LabelSpace(tuple(names))
        self.reject: Callable[[BadInputError], None] = fail
        self.counts: dict[str, int] = {}
        self.provenance: dict[str, Any] = {"source": "folders", "labels": "labels are the names of the folders"}
        if options.classes is not None:
            place, file = split_location(options.classes)
            self.labels = read_class_list(place, file)
            self.provenance["classes"] = {file: hashlib.sha256(place.read(file)).hexdigest()}
            if strangers := [name for name in names if name not in self.labels]:
                raise UserError(f"{self.images.url}: these folders are not in {options.classes}: {quoted(strangers)}")
        self._files = by_split[split]
        below = "" if split == WHOLE_SPLIT else f"{split}/"
        strays = sum(name.startswith(below) for name in _image_names(self.images)) - sum(map(len, self._files.values()))
        if strays:
            self.counts["outside_class_folders"] = strays

    def records(self) -> Iterator[Record]:
        """The images, class by class."""
        where: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for name, paths in self._files.items():
            for path in paths:
                where[PurePosixPath(path).name].append((name, path))
        copies = 0
        for name, paths in self._files.items():
            for path in paths:
                twins = self._same(path, where[PurePosixPath(path).name])
                copies += len(twins) > 1
                if twins[0] != name:
                    continue  # it was yielded with the first of its classes
                positives = tuple(sorted({self.labels.index(twin) for twin in twins}))
                yield Record(key=key_of(path), image=path, positives=positives, image_id=path)
        if copies:
            self.counts["in_several_folders"] = copies

    def _same(self, path: str, others: Sequence[tuple[str, str]]) -> list[str]:
        """The classes whose folders hold exactly the same image."""
        if len(others) == 1:
            return [others[0][0]]
        data = self.images.read(path)
        return [name for name, other in others if other == path or self.images.read(other) == data]


def available_splits(root: Location, options: SourceOptions = NO_OPTIONS) -> tuple[str, ...]:
    """The split folders, or ``all``; empty where there are no class folders."""
    place = open_storage(root)
    folder = place.path()
    return tuple(_images(place)) if folder is None or folder.is_dir() else ()


def recognise(root: Location) -> Likeness | None:
    """Two folders or more, and images in them but no annotations of any kind."""
    local = Path(str(root)).expanduser()
    if "://" not in str(root) and not local.is_dir():
        return None
    place = open_storage(root)
    files = place.list_sources() if place.can_list else []
    annotated = {PurePosixPath(info.name).suffix.lower() for info in files} if place.can_list else _OTHERS
    by_split = {} if annotated & _OTHERS else _images(place)
    classes = {name for names in by_split.values() for name in names}
    return Likeness.of(1, "a folder per class", tuple(by_split), len(classes)) if len(classes) > 1 else None


def _image_names(place: Storage) -> list[str]:
    names = sorted(info.name for info in place.list_sources())
    names = [name for name in names if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES]
    return [name for name in names if not is_hidden(name)]


def _images(place: Storage) -> dict[str, dict[str, list[str]]]:
    """Paths of images by split and class."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    images = [path for path in _image_names(place) if "/" in path]
    split = {path.split("/")[0].lower() for path in images} <= SPLIT_WORDS
    depth = 3 if split else 2
    if not images or any(path.count("/") != depth - 1 for path in images):
        return {}
    for path in images:
        parts = path.split("/")
        if parts[-2] == _UNLABELLED:
            continue
        found[parts[0] if split else WHOLE_SPLIT][parts[-2]].append(path)
    return {name: dict(classes) for name, classes in found.items()}
