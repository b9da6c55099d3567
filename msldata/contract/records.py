"""What every source yields: one record per image, with labels, ignored labels and the objects behind them."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, NamedTuple

from msldata.errors import UserError, neighbour
from msldata.storage import Storage

SMALL_BELOW = 32**2
LARGE_FROM = 96**2
"""COCO's object sizes, in square pixels of the stored image: small < 32², medium, large >= 96²."""


class ObjectRecord(NamedTuple):
    """One annotated object; a tuple, because plans and indices of a million of them are made of tuples.

    ``box`` is (x, y, width, height) in pixels of the source image (before its EXIF orientation turns it, unless
    ``Record.size`` says otherwise), origin at the top left corner, x and y counted from 0. ``area`` is in square
    pixels: the segment's where the source has one (COCO), else the box's. ``truncated`` and ``occluded`` are None
    where the source does not say.

    Example:
        boat = msldata.ObjectRecord(class_index=0, box=(12, 8, 40, 30), area=1200.0, occluded=True)
        harbour = msldata.Record(key="harbour", image="photos/harbour.jpg", positives=(0,), objects=(boat,))
    """

    class_index: int
    box: tuple[float, float, float, float]
    area: float
    difficult: bool = False
    truncated: bool | None = None
    occluded: bool | None = None
    crowd: bool = False


class Occlusion(NamedTuple):
    """What the segments of an image say about one object; None for an object without a segment.

    ``covered`` is the share of its outline, the convex hull of its segment, in which other objects are seen;
    ``separated`` whether the segment is in several parts.
    """

    covered: float | None
    separated: bool | None


@dataclass(frozen=True, slots=True)
class Record:
    """One image to be written: where its bytes are and what it shows.

    ``key`` names the sample in the shard: unique within its dataset and split, without dots or slashes. ``image`` is
    the path of the image file, relative to the source's root. ``positives`` and ``ignored`` are ascending, disjoint
    class indices; an ignored class (VOC "difficult", WIDER "unspecified") is 0 in the target vector and is left out of
    evaluation by the index. Lists and arrays of such numbers are taken, as ``numpy.flatnonzero`` gives them.

    Raises:
        UserError: a key that is not text, an index that is no whole number, or an object that is no `ObjectRecord`.

    Example:
        street = msldata.Record(key="street", image="photos/street.jpg", positives=(0, 2), ignored=(1,))
        print(street.key, street.positives)
    """

    key: str
    image: str
    positives: tuple[int, ...]
    ignored: tuple[int, ...] = ()
    objects: tuple[ObjectRecord, ...] = ()
    image_id: str = ""
    """The source's own id for the image, as text; the key where the source has none."""
    crop: tuple[float, float, float, float] | None = None
    """The part of the image (x, y, width, height in its pixels) that is the sample; boxes count from its corner."""
    size: tuple[int, int] | None = None
    """Width and height of the image that the boxes were drawn on, where the annotations state them; ``SHARES`` where
    boxes are shares of its sides."""
    occlusion: tuple[Occlusion, ...] | None = None
    """Occlusion of each object, in order; None where the segments were not asked for."""

    def __post_init__(self) -> None:
        # Plans are JSON, which knows Python's own numbers alone. Cheap where they are: there are millions of records.
        if type(self.key) is not str:
            raise UserError(f"the key {self.key!r} of a record is not text")
        if type(self.image) is not str:
            object.__setattr__(self, "image", PurePath(self.image).as_posix())
        for name in ("positives", "ignored"):
            given = getattr(self, name)
            if type(given) is not tuple or any(type(index) is not int for index in given):
                object.__setattr__(self, name, _class_indices(self.key, name, given))
        if type(self.objects) is not tuple or not all(map(_is_plain, self.objects)):
            object.__setattr__(self, "objects", tuple([_plain_object(self.key, item) for item in self.objects]))


def _class_indices(key: str, name: str, given: Any) -> tuple[int, ...]:
    try:
        if any(isinstance(index, bool) for index in given):
            raise TypeError
        return tuple(map(operator.index, given))
    except TypeError:
        raise UserError(
            f"record '{key}': {name} is {given!r}; give the indices of its classes, such as (0, 2), or () for none"
        ) from None


def _is_plain(item: ObjectRecord) -> bool:
    return type(item) is ObjectRecord and type(item.box) is tuple and _PLAIN.issuperset(map(type, (*item, *item.box)))


def _plain_object(key: str, item: Any) -> ObjectRecord:
    """An object with Python's own numbers in the place of numpy's."""
    try:
        index, box, *others = item
        plain = [value.item() if hasattr(value, "item") else value for value in others]
        x, y, width, height = (float(value) if not isinstance(value, int) else value for value in box)
        return ObjectRecord(operator.index(index), (x, y, width, height), *plain)
    except (TypeError, ValueError):
        raise UserError(
            f"record '{key}': the object {item!r} is no msldata.ObjectRecord(class_index, (x, y, width, height), area)"
        ) from None


_PLAIN = frozenset((int, float, bool, type(None), tuple))


SHARES = (1, 1)
"""The size that stands for a picture whose boxes are in shares of its sides."""


VOC_CLASSES = tuple(
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant "
    "sheep sofa train tvmonitor".split()
)
"""The 20 classes of PASCAL VOC 2007, alphabetical, which is also the order of the published label files."""


@dataclass(frozen=True)
class LabelSpace:
    """Ordered class names; the position of a name is its index in every target vector.

    Raises:
        UserError: the list is empty, or a name is empty or appears twice.
    """

    classes: tuple[str, ...]
    positions: Mapping[str, int] = field(init=False, repr=False, compare=False)
    """The index of every name."""

    def __post_init__(self) -> None:
        index = {name: position for position, name in enumerate(self.classes)}
        if not self.classes or "" in index:
            raise UserError("a label space needs at least one class and no empty names")
        if len(index) != len(self.classes):
            twice = sorted({name for name in self.classes if self.classes.count(name) > 1})
            raise UserError(f"these classes are named twice: {', '.join(twice)}")
        object.__setattr__(self, "positions", index)

    def __len__(self) -> int:
        return len(self.classes)

    def __contains__(self, name: str) -> bool:
        return name in self.positions

    def index(self, name: str) -> int:
        """Position of ``name``. Raises UserError that lists what is known."""
        try:
            return self.positions[name]
        except KeyError:
            known = ", ".join(self.classes[:30]) + (" …" if len(self.classes) > 30 else "")
            raise UserError(f"unknown class '{name}'; known are: {known}") from None

    def names(self, indices: Sequence[int]) -> list[str]:
        """Class names at ``indices``."""
        return [self.classes[index] for index in indices]


VOC = LabelSpace(VOC_CLASSES)


_MOST_NAMED = 12


def quoted(names: Sequence[str]) -> str:
    """Names in quotes for a message, of many the first."""
    more = f" and {len(names) - _MOST_NAMED:,} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(f"'{name}'" for name in names[:_MOST_NAMED]) + more


def listed_name(name: str) -> str:
    """A class name in a list: in quotes where it would read as several, or as none."""
    return f"'{name}'" if not name.strip() or re.search(r"[,;:]|^\s|\s$|\s\d+$", name) else name


def read_class_list(place: Storage, name: str, *, counted: bool = False) -> LabelSpace:
    """A list of classes, one name per line; blank lines are skipped.

    Args:
        place: the folder of the file.
        name: the file's.
        counted: labels are numbers of its lines. Whoever wrote them may have counted a blank line above a name, or
            not, so there may be none.

    Raises:
        FileNotFoundError: no such file. UserError: it is not UTF-8 text, is empty, or names a class twice; with
            ``counted``, a blank line above a name.
    """
    where = place.where(name)
    try:
        names = [line.strip() for line in place.read(name).decode("utf-8-sig").splitlines()]
        if not any(names):
            raise UserError("names no classes; a list of classes has one name per line")
        if counted and (blank := next((k for k, line in enumerate(names, 1) if not line), 0)) and any(names[blank:]):
            raise UserError(f"line {blank} is blank, and the labels count lines: does it count? Delete it if not")
        return LabelSpace(tuple(name for name in names if name))
    except FileNotFoundError:
        reason = "no such list of classes; it is a text file with one class name per line"
        path = place.path(name)
        raise FileNotFoundError(f"{where}: {reason}{'' if path is None else neighbour(path)}") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: not UTF-8 text (byte {error.start}); a list of classes has one name per line, save it as UTF-8"
        ) from None
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
