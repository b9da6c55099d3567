"""What every source of records is, and the small rules that all of them share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from msldata.errors import UserError
from msldata.format import check_key
from msldata.labels import LabelSpace
from msldata.records import Record
from msldata.storage import Storage


class Source(Protocol):
    """One split of a labelled dataset."""

    dataset: str
    split: str
    labels: LabelSpace
    images: Storage
    """The folder that ``Record.image`` is relative to."""
    licence: str
    provenance: dict[str, Any]
    """Names relative to the dataset and SHA-256 of what the records were read from; nothing of this machine."""
    counts: dict[str, int]
    """What was left out, by reason; complete once ``records`` is exhausted."""

    def records(self) -> Iterator[Record]:
        """All images of the split, always in the same order. Raises BadInputError for a file it cannot understand."""
        ...


@dataclass(frozen=True, slots=True)
class FoundSource:
    """A dataset that was found on disk, and the splits of it that would be built."""

    dataset: str
    root: Path
    splits: tuple[str, ...]


def unknown_split(dataset: str, split: str, known: tuple[str, ...]) -> UserError:
    """The error for a split that ``dataset`` does not have."""
    return UserError(f"{dataset} has no split '{split}'; known are: {', '.join(known)}")


def check_name(what: str, name: str) -> None:
    """Raise UserError unless ``name``, of a dataset or split, can be part of a shard's file name."""
    try:
        check_key(name)
    except UserError:
        raise UserError(
            f"{what} '{name}' becomes part of file names: it must have no dots, slashes or spaces"
        ) from None


def key_of(image: str) -> str:
    """The key of an image by its path: without the extension, and ``_`` for every dot, slash and space left."""
    path = PurePosixPath(image)
    return "_".join(path.with_suffix("").parts).replace(".", "_").replace(" ", "_")


def read_classes(path: Path) -> LabelSpace:
    """A list of classes, one name a line; blank lines are skipped.

    Raises:
        FileNotFoundError: no such file. UserError: it is empty or names a class twice.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such list of classes; it is a text file with one class name a line")
    names = [line.strip() for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines()]
    try:
        return LabelSpace(tuple(name for name in names if name))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
