"""Images in many places at once: beside the table that lists them, and at addresses of their own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from msldata.storage import REMOTE_SCHEMES, FileInfo, Storage, open_storage


def is_address(name: str) -> bool:
    """Whether a name is the address of a remote file rather than a path."""
    return name.startswith(tuple(f"{scheme}://" for scheme in REMOTE_SCHEMES))


def address_path(address: str) -> str:
    """The path of an address without host or bucket.

    Raises:
        ValueError: what follows the path (a query), a user name in it, or no path at all.
    """
    parts = urlsplit(address)
    path = PurePosixPath(unquote(parts.path).lstrip("/"))
    if parts.query or parts.fragment:
        raise ValueError(f"image is {address!r}; an address with ? or # does not name a file that stays the same")
    if "@" in parts.netloc:
        raise ValueError(f"image is at {parts.netloc.rpartition('@')[2]}; keep user names and passwords out of tables")
    if not parts.netloc or not path.name or ".." in path.parts:
        raise ValueError(f"image is {address!r}, which names no file")
    return path.as_posix()


class FolderOrAddresses(Storage):
    """A folder in which names may also be addresses; it can only be read.

    Args:
        folder: what names other than addresses are relative to.
    """

    def __init__(self, folder: Storage):
        self.folder = folder
        self.url = folder.url

    def child(self, name: str) -> Storage:
        return FolderOrAddresses(self.folder.child(name))

    def list_files(self) -> list[FileInfo]:
        return self.folder.list_files()

    def exists(self, name: str) -> bool:
        place, path = self._find(name)
        return place.exists(path)

    def read(self, name: str) -> bytes:
        place, path = self._find(name)
        return place.read(path)

    def read_ranges(self, name: str, starts: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
        place, path = self._find(name)
        return place.read_ranges(path, starts, lengths)

    def put(self, name: str, data: bytes | Path) -> None:
        raise NotImplementedError("images are only read")

    def delete(self, name: str) -> None:
        raise NotImplementedError("images are only read")

    def path(self, name: str = "") -> Path | None:
        # As a whole it is not local: the local images are not all of them.
        return self.folder.path(name) if name and not is_address(name) else None

    def where(self, name: str) -> str:
        return name if is_address(name) else self.folder.where(name)

    def _find(self, name: str) -> tuple[Storage, str]:
        if not is_address(name):
            return self.folder, name
        parts = urlsplit(name)
        return _host(f"{parts.scheme}://{parts.netloc}"), address_path(name)


@lru_cache(maxsize=64)
def _host(address: str) -> Storage:
    """One connection pool per host or bucket and process."""
    return open_storage(address)
