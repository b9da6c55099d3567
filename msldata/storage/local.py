"""A folder on a local or mounted disk; writes are staged beside their place and moved in."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from msldata.errors import StorageError
from msldata.storage.base import PART_SUFFIX, FileInfo, Storage

NO_FILE = "a pipe, a socket or a device, not a file"
_MOST = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
"""Bytes of a file that is read as a whole. A sparse file, or a disk image named by mistake, holds more."""


class LocalStorage(Storage):
    """A folder on a local (or mounted) disk; writes are staged beside their place and moved in."""

    def __init__(self, root: str | Path):
        self.root = Path(root)
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
                if name.endswith(PART_SUFFIX):
                    continue
                with suppress(FileNotFoundError):  # another process may remove its files at any moment
                    facts = path.stat()
                    found.append(
                        FileInfo(path.relative_to(self.root).as_posix(), facts.st_size, str(facts.st_mtime_ns))
                    )
        return sorted(found, key=lambda info: info.name)

    def list_sources(self) -> list[FileInfo]:
        found = []
        for folder, folders, names in os.walk(self.root, followlinks=True):
            folders[:] = [name for name in folders if not _leads_up(Path(folder, name))]
            for name in names:
                path = Path(folder, name)
                try:
                    size = path.stat().st_size
                except OSError:  # a link to nowhere
                    size = 0
                found.append(FileInfo(path.relative_to(self.root).as_posix(), size))
        return sorted(found, key=lambda info: info.name)

    def exists(self, name: str) -> bool:
        return os.path.isfile(f"{self.url}/{name}")  # noqa: PTH113  (a build asks for every image)

    def read(self, name: str) -> bytes:
        # A build reads every image here: pathlib, file objects and context managers take as long as the system calls.
        path = f"{self.url}/{name}"
        try:
            descriptor, size = _open_regular(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return _read_all(descriptor, size)
            finally:
                os.close(descriptor)
        except OSError:
            with clear_local_errors(path):
                raise

    def read_ranges(self, name: str, starts: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
        with clear_local_errors(self.where(name)), open(self.root / name, "rb", opener=regular) as file:
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


def _leads_up(folder: Path) -> bool:
    """Whether a folder is a link to one that holds it, which has no end."""
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())


def regular(path: str | Path, flags: int) -> int:
    """Open a file that a user has named: the ``opener`` of ``open``.

    Raises:
        OSError: it is no regular file. A pipe would keep its reader waiting, a device such as /dev/zero never ends.
    """
    return _open_regular(path, flags)[0]


def _open_regular(path: str | Path, flags: int) -> tuple[int, int]:
    """The descriptor of a regular file, and its size in bytes."""
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise OSError(errno.EINVAL, NO_FILE) from None
        raise
    facts = os.fstat(descriptor)
    mode = facts.st_mode
    if stat.S_ISREG(mode):
        return descriptor, facts.st_size
    os.close(descriptor)
    number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
    raise OSError(number, os.strerror(number) if stat.S_ISDIR(mode) else NO_FILE)


def read_local(path: str | Path) -> bytes:
    """The whole of a local file. Raises FileNotFoundError, or StorageError for what is none or does not fit."""
    path = Path(path).expanduser()
    return LocalStorage(path.parent).read(path.name)


def _read_all(descriptor: int, size: int) -> bytes:
    if size > _MOST:
        raise OSError(errno.EFBIG, f"{size / 1e9:,.0f} billion bytes, more than half of this machine's memory")
    data = os.read(descriptor, size + 1)  # one byte more than there should be: a shorter answer means the end
    if len(data) == size:
        return data
    parts = [data]  # a growing file, or one larger than one call reads
    while part := os.read(descriptor, 1 << 20):
        parts.append(part)
    return b"".join(parts)


def flush_to_disk(path: Path) -> None:
    """Force a finished file out of the page cache, so that a later rename never leaves an empty file."""
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
