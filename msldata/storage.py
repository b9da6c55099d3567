"""One interface over a folder of files, local or remote: list, read, ranged read, atomic put, delete.

A ``Storage`` is one folder ("prefix") on a local disk, ``s3://``, ``gs://``, ``az://`` or ``http(s)://``. Names are
relative to it and use ``/``. Remote I/O is obstore, which reads the usual environment (``AWS_ACCESS_KEY_ID``,
``AWS_ENDPOINT_URL``, ``AWS_REGION``, ``GOOGLE_APPLICATION_CREDENTIALS``, ``AZURE_STORAGE_ACCOUNT_NAME`` …). No shell is
ever started: a ``pipe:`` location is refused like any other unknown scheme.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, cast

from msldata.errors import StorageError

REMOTE_SCHEMES = ("s3", "gs", "az", "http", "https")
PART_SUFFIX = ".part"
"""Names that end so are unfinished writes: never listed, safe to delete when no build is running."""


@dataclass(frozen=True, slots=True)
class FileInfo:
    """Name (relative to its storage) and size in bytes of one file."""

    name: str
    size: int


class Storage(ABC):
    """A folder that can be read and written the same way wherever it is."""

    url: str
    """The location as a person would type it; used in messages."""

    @abstractmethod
    def child(self, name: str) -> Storage:
        """The sub-folder ``name``; it need not exist."""

    @abstractmethod
    def list_files(self) -> list[FileInfo]:
        """All finished files below this folder, sorted by name; empty when the folder does not exist."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether the file ``name`` exists."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The whole file. Raises FileNotFoundError or StorageError."""

    @abstractmethod
    def read_ranges(self, name: str, starts: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
        """Several byte ranges of one file, in the order asked; a range beyond the end raises StorageError."""

    @abstractmethod
    def put(self, name: str, data: bytes | Path) -> None:
        """Write ``name`` atomically from bytes or from a local file (which is moved or uploaded, and then gone)."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove the file ``name``; a file that is not there is no error."""

    def path(self, name: str = "") -> Path | None:
        """The local path of ``name``, or None when this storage is remote."""
        return None

    def where(self, name: str) -> str:
        """``name`` with its location, for messages."""
        return f"{self.url}/{name}"


def open_storage(location: str | Path) -> Storage:
    """Open a folder by path or URL; nothing is read, created or connected to yet.

    Raises:
        StorageError: the scheme is not one of file, s3, gs, az, http, https.
    """
    text = str(location)
    scheme = re.match(r"^([A-Za-z][A-Za-z0-9+.-]+):", text)
    if scheme is None or isinstance(location, Path):
        return LocalStorage(Path(text).expanduser())
    if scheme[1] == "file":
        return LocalStorage(Path(text.removeprefix("file://")))
    if scheme[1] in REMOTE_SCHEMES and text.startswith(f"{scheme[1]}://"):
        return RemoteStorage(text.rstrip("/"))
    raise StorageError(
        f"{text}: unknown kind of location '{scheme[1]}:'; use a local path or "
        + ", ".join(f"{known}://" for known in REMOTE_SCHEMES)
    )


class LocalStorage(Storage):
    """A folder on a local (or mounted) disk; writes are staged beside their place and moved in."""

    def __init__(self, root: Path):
        self.root = root
        self.url = str(root)

    def child(self, name: str) -> LocalStorage:
        return LocalStorage(self.root / name)

    def path(self, name: str = "") -> Path:
        return self.root / name if name else self.root

    def list_files(self) -> list[FileInfo]:
        if not self.root.is_dir():
            return []
        found = []
        for folder, _, names in os.walk(self.root):
            for name in names:
                path = Path(folder, name)
                with suppress(FileNotFoundError):  # deleted meanwhile, by another part of the same build
                    if not name.endswith(PART_SUFFIX):
                        found.append(FileInfo(path.relative_to(self.root).as_posix(), path.stat().st_size))
        return sorted(found, key=lambda info: info.name)

    def exists(self, name: str) -> bool:
        return (self.root / name).is_file()

    def read(self, name: str) -> bytes:
        # A build reads every image here: pathlib, a file object and a context manager take as long as the system calls.
        path = f"{self.url}/{name}"
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return _read_all(descriptor)
            finally:
                os.close(descriptor)
        except OSError:
            with clear_local_errors(path):
                raise

    def read_ranges(self, name: str, starts: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
        with clear_local_errors(self.where(name)), open(self.root / name, "rb") as file:
            parts = [os.pread(file.fileno(), length, start) for start, length in zip(starts, lengths, strict=True)]
        for part, start, length in zip(parts, starts, lengths, strict=True):
            if len(part) != length:
                raise StorageError(
                    f"{self.where(name)}: wanted {length} bytes at {start}, found {len(part)}; "
                    "the file is shorter than its index says"
                )
        return parts

    def put(self, name: str, data: bytes | Path) -> None:
        target = self.root / name
        with clear_local_errors(str(target)):
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(data, Path) and data.parent == target.parent:
                os.replace(data, target)
                return
            staged = target.with_name(f".{target.name}.{os.getpid()}{PART_SUFFIX}")
            try:
                if isinstance(data, Path):
                    shutil.move(data, staged)
                else:
                    staged.write_bytes(data)
                flush_to_disk(staged)
                os.replace(staged, target)
            except BaseException:
                staged.unlink(missing_ok=True)
                raise

    def delete(self, name: str) -> None:
        with clear_local_errors(self.where(name)):
            (self.root / name).unlink(missing_ok=True)


class RemoteStorage(Storage):
    """A prefix in an object store or below an HTTP(S) address, through obstore."""

    # A missing bucket or a wrong key is answered at once and never retried; only connection failures, 5xx and cut
    # bodies are, and those give up within seconds instead of obstore's default of three minutes.
    RETRY: ClassVar[dict[str, Any]] = {
        "max_retries": 6,
        "retry_timeout": timedelta(seconds=30),
        "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2},
    }

    def __init__(self, url: str):
        from obstore.store import from_url

        self.url = url
        client: Any = {"connect_timeout": "5s", "timeout": "120s"}
        # Plain http is for stores on one's own network; a cloud endpoint is https and is not affected.
        if url.startswith("http://") or os.environ.get(
            "AWS_ENDPOINT_URL", os.environ.get("AWS_ENDPOINT", "")
        ).startswith("http://"):
            client["allow_http"] = True
        with _clear_remote_errors(url):
            self.store: Any = from_url(url, client_options=client, retry_config=cast(Any, self.RETRY))

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["url"])  # type: ignore[misc]

    def child(self, name: str) -> RemoteStorage:
        return RemoteStorage(f"{self.url}/{name}")

    def list_files(self) -> list[FileInfo]:
        import obstore

        with _clear_remote_errors(self.url):
            found = [FileInfo(entry["path"], entry["size"]) for batch in obstore.list(self.store) for entry in batch]
        return sorted(found, key=lambda info: info.name)

    def exists(self, name: str) -> bool:
        import obstore

        try:
            with _clear_remote_errors(self.where(name)):
                obstore.head(self.store, name)
        except FileNotFoundError:
            return False
        return True

    def read(self, name: str) -> bytes:
        import obstore

        with _clear_remote_errors(self.where(name)):
            return obstore.get(self.store, name).bytes().to_bytes()

    def read_ranges(self, name: str, starts: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
        import obstore

        with _clear_remote_errors(self.where(name)):
            parts = [
                part.to_bytes()
                for part in obstore.get_ranges(self.store, name, starts=list(starts), lengths=list(lengths))
            ]
        for part, start, length in zip(parts, starts, lengths, strict=True):
            if len(part) != length:
                raise StorageError(
                    f"{self.where(name)}: wanted {length} bytes at {start}, received {len(part)}; "
                    "the object is shorter than its index says"
                )
        return parts

    def put(self, name: str, data: bytes | Path) -> None:
        import obstore

        with _clear_remote_errors(self.where(name)):
            obstore.put(self.store, name, data)
        if isinstance(data, Path):
            data.unlink()

    def delete(self, name: str) -> None:
        import obstore

        try:
            with _clear_remote_errors(self.where(name)):
                obstore.delete(self.store, name)
        except FileNotFoundError:
            pass


def _read_all(descriptor: int) -> bytes:
    size = os.fstat(descriptor).st_size
    data = os.read(descriptor, size + 1)  # one more byte than there should be: a shorter answer is the end
    if len(data) == size:
        return data
    parts = [data]  # no regular file, one that grows, or larger than one call reads
    while part := os.read(descriptor, 1 << 20):
        parts.append(part)
    return b"".join(parts)


def flush_to_disk(path: Path) -> None:
    """Force a finished file out of the page cache, so that a rename after it never names an empty file."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


@contextmanager
def clear_local_errors(where: str) -> Iterator[None]:
    """Turn the operating system's errors into one sentence; FileNotFoundError keeps its type."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"{where}: no such file") from None
    except OSError as error:
        reason = (
            "the disk is full"
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else (error.strerror or str(error)).lower()
        )
        raise StorageError(f"{where}: {reason}") from error


# Some requests (a listing, for one) fail with a class that says nothing; then only the server's own words do.
_DENIED = re.compile(r"AccessDenied|SignatureDoesNotMatch|InvalidAccessKeyId|40[13] (Unauthorized|Forbidden)")
_MISSING = re.compile(r"NoSuchBucket|NoSuchKey|404 Not Found")


@contextmanager
def _clear_remote_errors(where: str) -> Iterator[None]:
    """Turn obstore's errors into one sentence; a missing object or bucket becomes FileNotFoundError."""
    import obstore.exceptions as failures

    try:
        yield
    except (failures.BaseError, FileNotFoundError, PermissionError) as error:
        text = str(error)
        if isinstance(error, FileNotFoundError | failures.NotFoundError) or _MISSING.search(text):
            what = "no such bucket" if "NoSuchBucket" in text else "no such object"
            raise FileNotFoundError(f"{where}: {what}") from None
        denied = PermissionError | failures.PermissionDeniedError | failures.UnauthenticatedError
        if isinstance(error, denied) or _DENIED.search(text):
            raise StorageError(
                f"{where}: access denied; check the credentials in the environment "
                "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL …)"
            ) from None
        raise StorageError(f"{where}: {_first_sentence(text)}") from error


def _first_sentence(text: str) -> str:
    """The readable head of an obstore message, which otherwise carries a debug dump of its cause."""
    return re.split(r"\n|: <\?xml|Debug source:", text.strip(), maxsplit=1)[0].strip()[:300]
