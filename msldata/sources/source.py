"""What every source of records is, and the small rules that all of them share."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from msldata.contract.format import check_key, make_key
from msldata.contract.records import LabelSpace, Record
from msldata.errors import BadInputError, UserError, counted, did_you_mean, few_of
from msldata.storage import LocalStorage, Location, Storage, open_storage

SPLIT_NAMES = ("train", "training", "val", "valid", "validation", "test", "testing")
"""Names of folders that are splits, in upper or lower case."""
WHOLE_SPLIT = "all"
"""What the one split of a dataset without splits is called."""

_PARALLEL_READS = 32
_READ_AHEAD = 512


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """What a user may say about a dataset besides where it is; each kind lists the options that it takes."""

    classes: Location | None = None
    """A file with one class name per line, in target order."""
    image_column: str | None = None
    """For a table: the column with the images' paths."""
    labels_columns: tuple[str, ...] = ()
    """For a table: the columns with the labels, or a column of 0 and 1, of marks or of counts for each class."""
    labels_are: str | None = None
    """What the labels are; see ``labels.reading.KINDS``."""
    separator: str | None = None
    """The separator between the names in a label."""
    group: str | None = None
    """For a table: the column that says which photographs stay in one part when it is divided."""
    format: str | None = None
    """Which of Datumaro's formats it is."""
    images: Location | None = None
    """The folder that the names of the images are relative to."""
    keep_unlabelled: bool | None = None
    """Whether images without annotations are kept, as negatives of every class; None: as the kind does, which keeps
    those that the annotations name, but for COCO's own files."""
    segments: bool = False
    """For COCO: also record what the segments say about occlusion."""

    def given(self) -> tuple[str, ...]:
        """The names of the options that were given."""
        return tuple(item.name for item in fields(self) if getattr(self, item.name) != item.default)


NO_OPTIONS = SourceOptions()


class Source(Protocol):
    """One split of a labelled dataset."""

    dataset: str
    split: str
    labels: LabelSpace
    images: Storage
    """The folder that ``Record.image`` is relative to."""
    licence: str
    provenance: dict[str, Any]
    """Relative names and SHA-256 of the files that the records were read from; no path of this machine."""
    counts: dict[str, int]
    """What was left out, by reason; complete once ``records`` is exhausted."""

    reject: Callable[[BadInputError], None]
    """Called with the error of a record that cannot be used, which is then left out; ``fail`` raises it."""

    def records(self) -> Iterator[Record]:
        """All images of the split, always in the same order.

        Raises:
            BadInputError: the files behind all records cannot be understood, or one record cannot, by ``reject``.
        """
        ...


@dataclass(frozen=True, slots=True)
class FoundSource:
    """A dataset that was found, and the splits of it that would be built."""

    dataset: str
    root: Location
    splits: tuple[str, ...]
    taken_for: str = ""
    """What it was recognised as, and what else it might be, if the user did not say."""


@dataclass(frozen=True, slots=True)
class Likeness:
    """What a kind of dataset sees in a place, and how sure it is of it."""

    certainty: int
    """3: it has marks that no other kind has; 2: likely; 1: possible."""
    sees: str
    """As in "COCO layout, 3 splits (test, train, val), 80 classes"."""

    @classmethod
    def of(cls, certainty: int, layout: str, splits: Sequence[str], num_classes: int | None = None) -> Likeness:
        """The same sentence for every kind; with the number of classes if that is known without reading everything."""
        about = [layout, f"{len(splits)} split{'s' * (len(splits) != 1)} ({', '.join(splits)})"]
        about += [f"{num_classes:,} class{'es' * (num_classes != 1)}"] if num_classes is not None else []
        return cls(certainty, ", ".join(about))


class WithoutClasses:
    """A source some of whose classes only say that none of the others is there; what `Source` says.

    Args:
        source: the source, whose counts and notes this one shares.
        negative: names of classes that are left out of the labels; their photographs stay.

    Raises:
        UserError: it has no such class, or no other ones.
    """

    def __init__(self, source: Source, negative: Sequence[str]):
        names = source.labels.classes
        for name in negative:
            if name not in names:
                raise UserError(f"--negative {name}: no class is called that{did_you_mean(name, names)}")
        kept = [name for name in names if name not in negative]
        if not kept:
            raise UserError(f"--negative {', '.join(negative)}: there is no other class to tell them from")
        self._source = source
        self._new = {k: kept.index(name) for k, name in enumerate(names) if name not in negative}
        self.labels = LabelSpace(tuple(kept))
        self.dataset, self.split, self.images, self.licence = (
            source.dataset,
            source.split,
            source.images,
            source.licence,
        )
        self.provenance = source.provenance | {"negative": list(negative)}
        self.counts = source.counts
        self.notes: tuple[str, ...] = getattr(source, "notes", ())
        self.groups: dict[str, str] = getattr(source, "groups", {})
        self.reject: Callable[[BadInputError], None] = fail

    def records(self) -> Iterator[Record]:
        """The source's records, with the numbers that the other classes have now."""
        bare = 0
        self._source.reject = self.reject
        for record in self._source.records():
            positives = tuple(self._new[k] for k in record.positives if k in self._new)
            bare += not positives
            kept = [n for n, item in enumerate(record.objects) if item.class_index in self._new]
            yield replace(
                record,
                positives=positives,
                ignored=tuple(self._new[k] for k in record.ignored if k in self._new),
                objects=tuple(
                    item._replace(class_index=self._new[item.class_index])
                    for item in map(record.objects.__getitem__, kept)
                ),
                occlusion=record.occlusion and tuple(map(record.occlusion.__getitem__, kept)),
            )
        self.counts["without_any_class"] = bare


def unknown_split(dataset: str, split: str, known: tuple[str, ...]) -> UserError:
    """The error for a split that ``dataset`` does not have."""
    return UserError(f"{dataset} has no split '{split}'; known are: {', '.join(known)}{did_you_mean(split, known)}")


def unannotated_said(split: str, images: Sequence[str], *, kept: bool) -> tuple[str, ...]:
    """A note about images without annotations, and which option does otherwise; none where there are none."""
    if not images:
        return ()
    of, them = ("" if split == WHOLE_SPLIT else f" of {split}"), "it" if len(images) == 1 else "them"
    done = (
        f"kept, as negatives of every class; --drop-unlabelled leaves {them} out"
        if kept
        else f"left out; --keep-unlabelled keeps {them}, as negatives of every class"
    )
    return (f"{counted(len(images), 'photograph')}{of} without annotations: {few_of(images)}; {done}",)


def check_name(what: str, name: str) -> None:
    """Raise UserError unless ``name``, of a dataset or split, can be part of a shard's file name."""
    try:
        check_key(name)
    except UserError:
        raise UserError(
            f"{what} '{name}' becomes part of file names: it must have no dots, slashes or spaces"
        ) from None


def split_location(location: Location) -> tuple[Storage, str]:
    """The folder of a file, and the file's name in it."""
    if isinstance(location, Path) or "://" not in location:
        path = Path(location).expanduser()
        return LocalStorage(path.parent), path.name
    folder, _, name = location.rpartition("/")
    return open_storage(folder), name


def fail(error: BadInputError) -> None:
    """What a source does with a record that cannot be used, unless a build skips it."""
    raise error


def first_folder(place: Storage, names: Sequence[str]) -> str:
    """The first of ``names`` that is a folder there, else the first of all."""
    local = place.path()
    return next((name for name in names if local is not None and (local / name).is_dir()), names[0])


def has_folder(place: Storage, name: str) -> bool:
    """Whether the sub-folder ``name`` is there; True where that is unknown, for remote places know only files."""
    path = place.path(name)
    return path is None or path.is_dir()


def is_hidden(name: str) -> bool:
    """Whether a file, or a folder that it is in, belongs to other tools: ``.DS_Store``, ``._a.jpg`` of macOS."""
    return any(part.startswith(".") for part in name.split("/"))


def refuse_missing_bucket(place: Storage, name: str) -> None:
    """Raise FileNotFoundError when ``name``, which was not found, lacks even the bucket it would be in."""
    if place.path() is None:
        try:
            place.read(name)
        except FileNotFoundError as error:
            if lacks_bucket(error):
                raise


def lacks_bucket(error: FileNotFoundError) -> bool:
    """Whether not just a file is missing but the bucket (on Azure, the container) that it would be in."""
    return re.search("no such (bucket|container)", str(error)) is not None


def is_inside(name: object) -> bool:
    """Whether a name that a file gave is a path that stays inside the folder that it is relative to."""
    if not isinstance(name, str) or "\\" in name or "\0" in name:
        return False
    if "/" not in name:  # nearly all of the many
        return name not in ("", ".", "..")
    path = PurePosixPath(name)
    return bool(path.name) and not path.is_absolute() and ".." not in path.parts


def read_many(place: Storage, names: Sequence[str]) -> Iterator[bytes | None]:
    """The contents of small files in the order of ``names``, None for a missing one.

    Remote ones are read many at a time, for each costs a round trip.
    """

    def read(name: str) -> bytes | None:
        try:
            return place.read(name)
        except FileNotFoundError:
            return None

    if place.path() is not None:
        yield from map(read, names)
        return
    with ThreadPoolExecutor(_PARALLEL_READS) as readers:
        for start in range(0, len(names), _READ_AHEAD):
            yield from readers.map(read, names[start : start + _READ_AHEAD])


@contextmanager
def local_file(place: Storage, name: str) -> Iterator[Path]:
    """The path of a file; a remote one is copied to this machine while the block runs."""
    path = place.path(name)
    if path is not None:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="msl-source-") as folder:
        copy = Path(folder, PurePosixPath(name).name)
        copy.write_bytes(place.read(name))
        yield copy


def key_of(image: str) -> str:
    """The key of an image from its path without the extension; see ``format.make_key``."""
    return make_key(PurePosixPath(image).with_suffix("").as_posix())
