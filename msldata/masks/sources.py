"""Where masks come from: a folder (local or remote), a zip, a tar, a list of files, or the generator."""

from __future__ import annotations

import gzip
import os
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol

import numpy as np

from msldata.contract.keepmask import HOLE_WHITE, decode_gray
from msldata.contract.maskgenerator import MIN_SIZE, generate_hole_mask
from msldata.errors import BadInputError, UserError
from msldata.masks.lists import LIST_SUFFIXES, ListedMasks
from msldata.storage import NO_FILE, LocalStorage, Location, Storage, open_storage, regular

_PLACES = (
    "mask/testing_mask_dataset",
    "irregular_mask/mask/testing_mask_dataset",
    "irregular_mask",
    "testing_mask_dataset",
    "test_mask.zip",
    "SCRIBBLES",
    "SCRIBBLES.zip",
    "irregular_mask.zip",
)
"""Where NVIDIA's test set, the copy of it in the official release, or NVIDIA's training set usually lie below the
folder of all datasets. Best first: the test set's own folder comes before one that may hold the training set as
well."""

MAX_FILE_BYTES = 2**26
"""Largest mask file read from an archive, whose members can unpack to far more than their packed size."""

MAX_UNPACKED_BYTES = 2**32
"""Most that a gzipped tar may unpack to: 12,000 masks of 512×512 take 60 MB."""

_GZIP = b"\x1f\x8b"


class MaskSource(Protocol):
    """A set of named masks; picklable and without state, because worker processes read from it."""

    @property
    def polarity(self) -> str | None:
        """``hole-white`` or ``hole-black`` where it is known by construction, else None."""

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the masks come from, for the manifest: the place's own name, without any path of this machine."""

    def names(self) -> list[str]:
        """Names of all masks, with ``/`` between folders, sorted.

        Raises:
            FileNotFoundError: the place does not exist.
            UserError: it holds no mask, or is not what it claims to be.
        """

    def read_gray(self, name: str, *, soft: bool = False) -> np.ndarray:
        """gray_HW, uint8, of one mask; ``soft``: its grey levels are meant. Raises BadInputError naming the file."""


def open_mask_source(location: str | Path) -> MaskSource:
    """A folder, a zip, a tar (also gzipped) or a text file that lists masks, by path; a remote folder by URL.

    No mask is read yet.

    Raises:
        FileNotFoundError: there is nothing at a local path.
        UserError: a local file that is none of these, or an archive or a list by URL.
    """
    storage = open_storage(location)
    if not isinstance(storage, LocalStorage):
        if PurePosixPath(storage.url).suffix in (".zip", ".tar", ".gz", ".tgz", *LIST_SUFFIXES):
            raise UserError(f"{storage.url}: archives and lists are read from a local disk only; copy it here first")
        return FolderMasks(storage)
    path = storage.root
    if path.is_dir():
        return FolderMasks(storage)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such folder or archive of masks")
    if not path.is_file():
        raise UserError(f"{path}: {NO_FILE}; give a folder, an archive or a list of masks")
    if path.suffix in LIST_SUFFIXES:
        return ListedMasks(path)
    if zipfile.is_zipfile(path):
        return ZipMasks(path)
    if tarfile.is_tarfile(path):
        return TarMasks(path)
    raise UserError(
        f"{path}: neither a folder, a zip or tar archive, nor a list of masks ({', '.join(LIST_SUFFIXES)}); give the "
        "place where the mask files are"
    )


def select_mask_source(
    root: str | Path, source: Location | None = None, *, generate: int | None = None, size: int = 512, seed: int = 0
) -> MaskSource:
    """The masks that a build command means: those at ``source``, ``generate`` new ones, or those in the usual places.

    Args:
        root: the folder of all datasets.
        source: folder, zip or tar of masks, or a text file that lists them.
        generate: number of masks to make; ``size`` is their side in pixels and ``seed`` decides what they look like.

    Raises:
        UserError: nothing was found, or both a source and a number were given.
    """
    if source is not None and generate is not None:
        raise UserError("give either --source or --generate, not both")
    if generate is not None:
        return GeneratedMasks(generate, seed=seed, size=size)
    if source is not None:
        return open_mask_source(source)
    place = usual_place(root)
    if place is not None:
        return open_mask_source(place)
    listing = "\n  ".join(str(Path(root, place)) for place in _PLACES)
    raise UserError(
        f"no masks found; looked at\n  {listing}\n"
        "Three ways on:\n"
        "  point at them: msl build-masks --source FOLDER_OR_ZIP, or set MSL_DATA to the folder of all datasets\n"
        "  download them: NVIDIA's irregular mask dataset (test set), unpacked into a place above\n"
        "  generate them: msl build-masks --generate 3000"
    )


def usual_place(root: str | Path) -> Path | None:
    """The folder or archive of irregular masks below the folder of all datasets; None where there is none."""
    return next((place for name in _PLACES if (place := Path(root, name)).exists()), None)


@dataclass(frozen=True)
class FolderMasks:
    """Mask files anywhere below one folder, local or remote."""

    storage: Storage
    polarity: str | None = None

    @property
    def provenance(self) -> dict[str, Any]:
        return {"source": PurePosixPath(self.storage.url).name}

    def names(self) -> list[str]:
        return _mask_names([info.name for info in self.storage.list_sources()], self.storage.url)

    def read_gray(self, name: str, *, soft: bool = False) -> np.ndarray:
        return decode_gray(self.storage.read(name), self.storage.where(name), soft=soft)


@dataclass(frozen=True)
class ZipMasks:
    """Mask files in a zip; members are read directly, nothing is unpacked to disk."""

    path: Path
    polarity: str | None = None

    @property
    def provenance(self) -> dict[str, Any]:
        return {"source": self.path.name}

    def names(self) -> list[str]:
        infos = [info for info in _zip_of_process(self.path).infolist() if not info.is_dir()]
        odd = (info.filename for info in infos if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG))
        _check_regular(next(odd, None), self.path)
        members = [info.filename for info in infos]
        _check_members(members, self.path)
        return _mask_names(members, str(self.path))

    def read_gray(self, name: str, *, soft: bool = False) -> np.ndarray:
        where = f"{self.path}/{name}"
        archive = _zip_of_process(self.path)
        _check_size(archive.getinfo(name).file_size, where)
        try:
            data = archive.read(name)
        except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError, OSError) as error:
            raise BadInputError(where, f"cannot be read from the zip ({error})") from None
        return decode_gray(data, where, soft=soft)


@dataclass(frozen=True)
class TarMasks:
    """Mask files in a tar, plain or gzipped; members are read in place, a gzipped one from a temporary copy."""

    path: Path
    polarity: str | None = None

    @property
    def provenance(self) -> dict[str, Any]:
        return {"source": self.path.name}

    def names(self) -> list[str]:
        members = list(_tar_of_process(self.path).members)
        _check_members(members, self.path)
        return _mask_names(members, str(self.path))

    def read_gray(self, name: str, *, soft: bool = False) -> np.ndarray:
        where = f"{self.path}/{name}"
        tar = _tar_of_process(self.path)
        offset, size = tar.members[name]
        _check_size(size, where)
        tar.file.seek(offset)
        return decode_gray(tar.file.read(size), where, soft=soft)


@dataclass(frozen=True)
class GeneratedMasks:
    """``count`` generated masks of ``size`` × ``size`` pixels: for everyone who does not have a set of irregular masks.

    About a third of them are more than half hole: 3,000 masks give 1,000 "high" and 2,000 "low" ones at a threshold
    of 0.5.
    """

    count: int
    seed: int = 0
    size: int = 512
    polarity: str | None = HOLE_WHITE

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"cannot generate {self.count} masks; ask for at least 1, as in `--generate 3000`")
        if self.size < MIN_SIZE:
            raise UserError(f"masks of {self.size} pixels are too small to draw; the size must be at least {MIN_SIZE}")

    @property
    def provenance(self) -> dict[str, Any]:
        return {"source": "generated", "generator_seed": self.seed, "generator_size": self.size}

    def names(self) -> list[str]:
        return [f"generated-{index:06d}" for index in range(self.count)]

    def read_gray(self, name: str, *, soft: bool = False) -> np.ndarray:
        return generate_hole_mask(self.seed, int(name.removeprefix("generated-")), self.size) * np.uint8(255)


def _mask_names(names: Sequence[str], where: str) -> list[str]:
    """Sorted, without the clutter of desktop systems; refuses an empty place."""
    masks = sorted(name for name in names if not _is_clutter(name))
    if not masks:
        raise UserError(f"{where}: no mask files here; give the folder or archive that holds them")
    return masks


def _is_clutter(name: str) -> bool:
    parts = name.split("/")
    return parts[-1] in ("Thumbs.db", "desktop.ini") or any(part.startswith((".", "__MACOSX")) for part in parts)


def _check_members(names: Sequence[str], archive: Path) -> None:
    """Refuse an archive whose names lead outside of it: nothing is unpacked here, but others might unpack it."""
    for name in names:
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in name.split("/")[0]:
            raise UserError(f"{archive}: member '{name}' leads outside of the archive; this file is not to be trusted")


def _check_regular(odd: str | None, archive: Path) -> None:
    """Refuse an archive with a link, device or pipe ``odd`` in it, rather than drop it silently."""
    if odd is not None:
        raise UserError(
            f"{archive}: member '{odd}' is a link, a device or a pipe, not a file; if it is meant to be a mask, unpack "
            "the archive, put the file itself in its place and give the folder"
        )


def _check_size(num_bytes: int, where: str) -> None:
    if num_bytes > MAX_FILE_BYTES:
        raise BadInputError(where, f"{num_bytes:,} bytes unpacked is too large for a mask")


def _zip_of_process(path: Path) -> zipfile.ZipFile:
    """The archive, opened once per process: its directory takes long to read, and a fork shares the file offset."""
    return _open_zip(path, path.stat().st_mtime_ns, os.getpid())


@lru_cache(maxsize=4)
def _open_zip(path: Path, modified_ns: int, process: int) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path}: cannot be read as a zip ({error}); download it again") from None


@dataclass(frozen=True)
class _OpenTar:
    file: BinaryIO
    members: Mapping[str, tuple[int, int]]
    """(offset, size) of every file."""


def _tar_of_process(path: Path) -> _OpenTar:
    """The archive, opened and listed once per process."""
    return _open_tar(path, path.stat().st_mtime_ns, os.getpid())


@lru_cache(maxsize=4)
def _open_tar(path: Path, modified_ns: int, process: int) -> _OpenTar:
    try:
        file: BinaryIO = open(path, "rb", opener=regular)  # noqa: SIM115
        if file.read(2) == _GZIP:
            file.close()
            file = _unpack_gzip(path)
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r:") as archive:
            items = [item for item in archive if not item.isdir()]
        _check_regular(next((item.name for item in items if not item.isreg()), None), path)
        # `tar cf masks.tar .` writes ./ before every name; without it the names are those of the folder itself.
        return _OpenTar(file, {item.name.removeprefix("./"): (item.offset_data, item.size) for item in items})
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{path}: cannot be read as a tar ({error}); download it again, or unpack it and give the folder"
        ) from None


def _unpack_gzip(path: Path) -> BinaryIO:
    """An unnamed temporary file with the contents of a gzipped file; it disappears with the process."""
    unpacked: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115
    left = MAX_UNPACKED_BYTES
    with gzip.open(path, "rb") as packed:
        while piece := packed.read(1 << 20):
            left -= len(piece)
            if left < 0:
                raise UserError(
                    f"{path}: unpacks to more than {MAX_UNPACKED_BYTES:,} bytes; if that is meant, unpack it yourself "
                    "and give the folder"
                )
            unpacked.write(piece)
    return unpacked
