"""WIDER-Attribute: photographs with boxes around people, each person a sample with 14 attributes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any

from msldata.contract.format import make_key
from msldata.contract.records import LabelSpace, Record
from msldata.errors import BadInputError
from msldata.sources.source import (
    Likeness,
    Location,
    fail,
    has_folder,
    is_inside,
    refuse_missing_bucket,
    unknown_split,
)
from msldata.sources.spelling import as_stored
from msldata.storage import Storage, open_storage

LAYOUT = "Image and, beside it or in Annotations, wider_attribute_trainval.json and wider_attribute_test.json"
ATTRIBUTES = LabelSpace(
    tuple(
        "Male longHair sunglass Hat Tshirt longSleeve formal shorts jeans longPants skirt faceMask logo stripe".split()
    )
)
"""The 14 attributes in the order of the annotations."""

_SPLITS = {"trainval": "trainval", "train": "trainval", "val": "trainval", "test": "test"}  # → which of the two files
_FOLDERS = ("", "Annotations", "Anno", "wider_attribute_annotation")
_POSITIVE, _NEGATIVE, _UNSPECIFIED = 1, -1, 0
_HINT = "fetch the annotations again and check them"


class Wider:
    """One split of WIDER-Attribute: the person in each box, cut out of the photograph.

    An attribute is positive (1), negative (-1) or ignored (0: the annotators could not tell).

    Deviation: the published code pads a box that leaves the photograph with black; here it ends at the edge.

    Args:
        root: the folder that holds ``Image/`` and the annotations, or its parent, in which it is called WIDER; local or
            remote.
        split: ``trainval``, ``train``, ``val`` or ``test``; train and val are told apart by the images' folders.

    Raises:
        UserError: unknown split. FileNotFoundError: annotations or images are missing. BadInputError: the annotations
            are not WIDER-Attribute's.
    """

    dataset = "wider"
    labels = ATTRIBUTES
    licence = (
        "Photographs from the web, for research only. Cite Li et al., Human Attribute Recognition by Deep Contexts."
    )

    def __init__(self, root: Location, split: str):
        if split not in _SPLITS:
            raise unknown_split(self.dataset, split, tuple(_SPLITS))
        self.split = split
        self.images: Storage = _find_root(open_storage(root))
        self.reject: Callable[[BadInputError], None] = fail
        self.counts: dict[str, int] = {}
        name = _annotation_file(self.images, split)
        self._where = self.images.where(name)
        try:
            data = self.images.read(name) if has_folder(self.images, "Image") else None
        except FileNotFoundError:
            refuse_missing_bucket(self.images, name)
            data = None
        if data is None:
            missing = self._where if has_folder(self.images, "Image") else self.images.where("Image")
            raise FileNotFoundError(f"{missing}: missing; WIDER-Attribute {split} needs it, in a folder with {LAYOUT}")
        try:
            self._images = json.loads(data)["images"]
        except (ValueError, KeyError, TypeError) as error:
            raise BadInputError(self._where, f"not WIDER-Attribute's annotations ({error!r})", _HINT) from None
        self.provenance: dict[str, Any] = {
            "source": "WIDER-Attribute",
            "files": {name: hashlib.sha256(data).hexdigest()},
        }

    def records(self) -> Iterator[Record]:
        """The people of the split, in the order of the annotations."""
        try:
            people = [(_checked_name(entry["file_name"]), entry["targets"]) for entry in self._images]
        except KeyError as error:
            raise BadInputError(self._where, f"not WIDER-Attribute's annotations (no entry {error})", _HINT) from None
        except (ValueError, TypeError) as error:
            raise BadInputError(self._where, f"not WIDER-Attribute's annotations ({error})", _HINT) from None
        for file_name, targets in people:
            if self.split in ("train", "val") and PurePosixPath(file_name).parts[0] != self.split:
                continue
            stored = as_stored(self.images.child("Image"), file_name)
            for number, person in enumerate(targets):
                try:
                    record = _record(stored, number, person)
                except (KeyError, ValueError, TypeError) as error:
                    reason = f"no entry {error}" if isinstance(error, KeyError) else str(error)
                    reason = f"not WIDER-Attribute's annotations ({reason})"
                    self.reject(BadInputError(self._where, reason, _HINT))
                else:
                    yield record


def available_splits(root: Location | Storage) -> tuple[str, ...]:
    """Splits whose annotations are in ``root``."""
    place = root if isinstance(root, Storage) else open_storage(root)
    there = {part: place.exists(_annotation_file(place, part)) for part in ("trainval", "test")}
    return tuple(split for split, part in _SPLITS.items() if there[part])


def recognise(root: Location) -> Likeness | None:
    """WIDER-Attribute at ``root`` or in the folder WIDER below it."""
    place = open_storage(root)
    splits = available_splits(_find_root(place))
    return Likeness.of(3, "WIDER-Attribute", splits, len(ATTRIBUTES)) if splits else None


def _find_root(place: Storage) -> Storage:
    below = place.child("WIDER")
    found = has_folder(below, "") if below.path() is not None else not available_splits(place)
    return below if found else place


def _annotation_file(place: Storage, split: str) -> str:
    folders = [f"{folder}/" if folder else "" for folder in _FOLDERS]
    names = [f"{folder}wider_attribute_{_SPLITS[split]}.json" for folder in folders]
    return next((name for name in names if place.exists(name)), names[1])


def _checked_name(file_name: Any) -> str:
    # It becomes part of a path: nothing in the annotations may point outside the dataset.
    if not is_inside(file_name):
        raise ValueError(f"{file_name!r} is not a path below Image")
    return PurePosixPath(file_name).as_posix()


def _record(file_name: str, number: int, person: dict[str, Any]) -> Record:
    where = f"{file_name}, person {number}"
    attributes = person["attribute"]
    if len(attributes) != len(ATTRIBUTES) or not set(attributes) <= {_POSITIVE, _NEGATIVE, _UNSPECIFIED}:
        raise ValueError(f"{where}: {attributes} are not {len(ATTRIBUTES)} values of 1, 0 and -1")
    left, top, width, height = map(float, person["bbox"])
    if not (0 < width < float("inf") and 0 < height < float("inf")):
        raise ValueError(f"{where}: the box {person['bbox']} has no area")
    return Record(
        key=make_key(f"{PurePosixPath(file_name).with_suffix('')}_{number}"),
        image=f"Image/{file_name}",
        positives=tuple(index for index, value in enumerate(attributes) if value == _POSITIVE),
        ignored=tuple(index for index, value in enumerate(attributes) if value == _UNSPECIFIED),
        crop=(left, top, width, height),
    )
