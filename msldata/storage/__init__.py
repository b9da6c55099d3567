"""One interface over a folder of files, local or remote: list, read, ranged read, atomic put, delete.

A ``Storage`` is one folder ("prefix") on a local disk, ``s3://``, ``gs://``, ``az://``, ``hf://`` or ``http(s)://``.
Names are relative to it, use ``/`` and are taken as they are; in an address, ``%20`` is a space. Remote I/O is obstore,
which reads the usual environment:

- ``s3://``: ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_REGION``; ``AWS_ENDPOINT_URL`` for a server other
  than Amazon's (``http://`` is allowed there), ``AWS_SKIP_SIGNATURE=true`` for public buckets.
- ``gs://``: ``GOOGLE_APPLICATION_CREDENTIALS`` or ``GOOGLE_SERVICE_ACCOUNT`` (the path of a key file). For an emulator
  the key file is ``{"gcs_base_url": "http://localhost:4443", "disable_oauth": true, "client_email": "",
  "private_key": "", "private_key_id": ""}``.
- ``az://CONTAINER``: ``AZURE_STORAGE_ACCOUNT_NAME`` and ``AZURE_STORAGE_ACCOUNT_KEY`` or ``AZURE_STORAGE_SAS_TOKEN``;
  ``AZURE_STORAGE_USE_EMULATOR=true`` for Azurite (its address in ``AZURITE_BLOB_STORAGE_URL`` if not the usual one).
- ``hf://``: a repository on the Hugging Face hub, see `msldata.storage.hub`; ``HF_TOKEN`` or ``hf auth login``.

No shell is ever started: a ``pipe:`` location is refused like any other unknown scheme.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from msldata.errors import StorageError
from msldata.storage.base import PART_SUFFIX, FileInfo, NoRangesError, Storage
from msldata.storage.hub import HUB_SCHEME, HubStorage
from msldata.storage.local import NO_FILE, LocalStorage, clear_local_errors, flush_to_disk, read_local, regular
from msldata.storage.remote import RemoteStorage

__all__ = [
    "NO_FILE",
    "PART_SUFFIX",
    "REMOTE_SCHEMES",
    "FileInfo",
    "LocalStorage",
    "Location",
    "NoRangesError",
    "RemoteStorage",
    "Storage",
    "StorageError",
    "clear_local_errors",
    "flush_to_disk",
    "one_or_many",
    "open_storage",
    "read_local",
    "regular",
    "same_place",
]

REMOTE_SCHEMES = ("s3", "gs", "az", HUB_SCHEME, "http", "https")
Location = str | Path
"""A folder as people name it: a local path, or the address of a remote folder as text."""


def open_storage(location: Location | Storage) -> Storage:
    """Open a folder by path or URL; nothing is read, created or connected to yet. An open one is returned.

    Raises:
        StorageError: the scheme is not one of file, s3, gs, az, hf, http, https, pathlib has spoilt the address, or it
            holds a ? or #.
    """
    if isinstance(location, Storage):
        return location
    text = str(location)
    scheme = re.match(r"^([A-Za-z][A-Za-z0-9+.-]+):", text)
    if isinstance(location, Path) and scheme is not None and scheme[1] in (*REMOTE_SCHEMES, "file"):
        address = re.sub(r":/*", "://", text, count=1)
        raise StorageError(f"{text}: a Path cannot hold an address, it drops a slash; give it as text: '{address}'")
    if scheme is None or isinstance(location, Path):
        return LocalStorage(Path(text).expanduser())
    if scheme[1] == "file":
        return LocalStorage(Path(text.removeprefix("file://")))
    if scheme[1] in REMOTE_SCHEMES and text.startswith(f"{scheme[1]}://"):
        if scheme[1] != HUB_SCHEME and (odd := re.search(r"[?#]", text)):
            # As parts of a URL they and what follows are dropped, so that two folders would be one.
            raise StorageError(
                f"{text}: an address with {odd[0]} does not name a folder; where a folder's name holds that character, "
                "write %3F for ? and %23 for #"
            )
        return (HubStorage if scheme[1] == HUB_SCHEME else RemoteStorage)(text.rstrip("/"))
    raise StorageError(
        f"{text}: unknown kind of location '{scheme[1]}:'; use a local path or "
        + ", ".join(f"{known}://" for known in REMOTE_SCHEMES)
    )


def same_place(one: Storage, other: Storage) -> bool:
    """Whether two names are of one folder: with a slash at the end or without and, on this machine, by any path."""
    here, there = one.path(), other.path()
    if here is None or there is None:
        return one.url.rstrip("/") == other.url.rstrip("/")
    return here.resolve() == there.resolve()


def one_or_many(locations: Location | Sequence[Location]) -> tuple[Location, ...]:
    """A sequence of locations, whether one or several are given: a text is one location, not a sequence of letters."""
    return (locations,) if isinstance(locations, Location) else tuple(locations)
