"""Unpacks a downloaded tar or zip below one folder, file by file, and refuses whatever would leave it."""

from __future__ import annotations

import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from msldata.errors import BadInputError, StorageError
from msldata.storage import NO_FILE, PART_SUFFIX, clear_local_errors

_HINT = "delete it and download it again"


def unpack(archive: Path, folder: Path, progress: Callable[[int, int], None]) -> list[str]:
    """Write every file of ``archive`` below ``folder`` and return their names.

    Each file appears complete or not at all, and a file that is there with the right size is left alone: so unpacking
    that was stopped continues where it left off.

    Args:
        progress: called with (bytes of the archive dealt with, its size).

    Raises:
        BadInputError: not a tar or zip, damaged, or a member that is a link or a device or lies outside ``folder``.
        StorageError: the disk is too small or full, or ``folder`` cannot be written.
    """
    if archive.exists() and not archive.is_file():
        raise BadInputError(str(archive), NO_FILE, _HINT)
    total = archive.stat().st_size
    names = []
    try:
        for name, size, position, opened in _members(archive, folder):
            target = folder / _checked(archive, name)
            if not (target.is_file() and target.stat().st_size == size):
                _write(target, opened())
            names.append(name)
            progress(min(position, total), total)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, NotImplementedError, zlib.error) as error:
        raise BadInputError(str(archive), f"a damaged archive ({error})", _HINT) from None
    return names


def _members(archive: Path, folder: Path) -> Iterator[tuple[str, int, int, Callable[[], IO[bytes]]]]:
    """(name, size, where it ends in the archive, how to open it) of every regular file."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as package:
            entries = [entry for entry in package.infolist() if not entry.is_dir()]
            _check_room(folder, entries)
            for entry in entries:
                if entry.external_attr >> 28 not in (0, 8):  # the type bits of a Unix mode: unknown, or a regular file
                    raise BadInputError(str(archive), f"'{entry.filename}' is not a regular file", _HINT)
                end = entry.header_offset + entry.compress_size
                yield entry.filename, entry.file_size, end, partial(package.open, entry)
        return
    with closing(tarfile.open(archive, "r:")) as tar:
        for info in tar:
            if info.isdir():
                continue
            if not info.isreg():
                raise BadInputError(str(archive), f"'{info.name}' is not a regular file", _HINT)
            yield info.name, info.size, info.offset_data + info.size, partial(_opened, tar, info)


def _opened(tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(info)
    assert file is not None  # it is a regular file
    return file


def _checked(archive: Path, name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or ":" in name or not path.name:
        raise BadInputError(str(archive), f"the member {name[:100]!r} would be written outside the folder", _HINT)
    return path


def _write(target: Path, source: IO[bytes]) -> None:
    staged = target.with_name(f".{target.name}{PART_SUFFIX}")
    with source, clear_local_errors(str(target)):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(staged, "wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
            os.replace(staged, target)
        except BaseException:
            staged.unlink(missing_ok=True)
            raise


def _check_room(folder: Path, entries: list[zipfile.ZipInfo]) -> None:
    needed = sum(entry.file_size for entry in entries if not (folder / entry.filename).exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StorageError(
            f"{folder}: {needed / 1e9:.2f} GB are to be unpacked, only {free / 1e9:.2f} GB are free; make room, or "
            "choose another disk with --to"
        )
