"""The interface of a folder of files, wherever it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from msldata.errors import StorageError

PART_SUFFIX = ".part"
"""Files with this suffix are unfinished writes: never listed, safe to delete when no build is running."""


class NoRangesError(StorageError):
    """A server that only sends whole files."""


@dataclass(frozen=True, slots=True)
class FileInfo:
    """Name (relative to its storage) and size in bytes of one file."""

    name: str
    size: int
    version: str = field(default="", compare=False)
    """Another one after every change: when it was, or the store's tag; empty where that is unknown."""


class Storage(ABC):
    """A folder that can be read and written the same way wherever it is."""

    url: str
    """The location as a person would type it; used in messages."""
    can_list: bool = True
    """False for a web address, whose files can only be asked for by name."""

    @abstractmethod
    def child(self, name: str) -> Storage:
        """The sub-folder ``name``; it need not exist."""

    @abstractmethod
    def list_files(self) -> list[FileInfo]:
        """All finished files below this folder, sorted by name; empty when the folder does not exist."""

    def list_sources(self) -> list[FileInfo]:
        """As ``list_files``, but also what symbolic links to folders lead to, and links to files that are gone: for a
        folder that is only read, in which none of them may be passed over.
        """
        return self.list_files()

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether the file ``name`` exists."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The whole file. Raises FileNotFoundError or StorageError."""

    @abstractmethod
    def read_ranges(self, name: str, starts: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
        """Several byte ranges of one file, in the order asked; a range beyond the end raises StorageError, and a web
        server that only sends whole files `NoRangesError`.
        """

    def stream(self, name: str) -> Iterator[bytes]:
        """The whole file, piece by piece. Raises FileNotFoundError or StorageError."""
        yield self.read(name)

    @abstractmethod
    def put(self, name: str, data: bytes | Path) -> None:
        """Write ``name`` atomically from bytes or from a local file (which is moved or uploaded, and then gone)."""

    def create(self, name: str, data: bytes) -> bool:
        """Write ``name`` unless it is there already; then False, on stores that can tell (not every S3 server can)."""
        if self.exists(name):
            return False
        self.put(name, data)
        return True

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove the file ``name``; a missing file is not an error."""

    def path(self, name: str = "") -> Path | None:
        """The local path of ``name``, or None when this storage is remote."""
        return None

    def where(self, name: str) -> str:
        """``name`` with its location, for messages."""
        return f"{self.url}/{name}"
