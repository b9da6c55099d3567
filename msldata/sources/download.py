"""Downloads the published archives from whichever mirror answers, and unpacks them where a build looks for them.

A download that was stopped continues where it left off, from whichever mirror answers next; the result is checked
against the archive's published MD5, so it does not matter who sent which part.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import shutil
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from msldata.errors import StorageError, UserError
from msldata.sources.unpack import unpack
from msldata.storage import PART_SUFFIX, clear_local_errors, flush_to_disk

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, bytes done, bytes in all)."""

_BLOCK = 1 << 20
_TIMEOUT_SECONDS = 30
_ATTEMPTS_WITHOUT_PROGRESS = 3
_PAUSE_SECONDS = 1.0
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")


@dataclass(frozen=True, slots=True)
class Archive:
    """One file of a published dataset."""

    name: str
    md5: str
    mirrors: tuple[str, ...]
    """Addresses of the folders that hold it, best first."""
    folder: str = ""
    """Where it is unpacked, below the folder of all datasets."""
    splits: tuple[str, ...] = ()


_VOC = ("http://host.robots.ox.ac.uk/pascal/VOC/voc2007", "https://pjreddie.com/media/files")
_COCO = ("http://images.cocodataset.org", "https://s3.amazonaws.com/images.cocodataset.org")


def _coco(kind: str, name: str, md5: str, *splits: str) -> Archive:
    return Archive(name, md5, tuple(f"{mirror}/{kind}" for mirror in _COCO), "COCO2014", splits)


# MD5s of VOC2007: torchvision.datasets.voc and PaddleDetection. Of COCO-2014: PaddleDetection (all three), Salesforce
# LAVIS (the images); the one of the annotations is also the ETag that the publisher's bucket answers with.
ARCHIVES: Mapping[str, tuple[Archive, ...]] = {
    "voc2007": (
        Archive("VOCtrainval_06-Nov-2007.tar", "c52e279531787c972589f7e41ab4ae64", _VOC, splits=("trainval",)),
        Archive("VOCtest_06-Nov-2007.tar", "b6e924de25625d8de591ea690078ad9f", _VOC, splits=("test",)),
    ),
    "coco2014": (
        _coco("annotations", "annotations_trainval2014.zip", "0a379cfc70b0e71301e0f377548639bd", "train", "val"),
        _coco("zips", "train2014.zip", "0da8c0bd3d6becc4dcb32757491aca88", "train"),
        _coco("zips", "val2014.zip", "a3d79f5ed8d289b7a7554ce06a5782b3", "val"),
    ),
}


class _MirrorError(Exception):
    """Why one mirror did not send the archive."""


def select_archives(dataset: str, splits: Sequence[str] = ()) -> tuple[Archive, ...]:
    """The archives of some splits of a published dataset; of all of them when none is named.

    Raises:
        UserError: a dataset or split that cannot be downloaded.
    """
    if dataset not in ARCHIVES:
        raise UserError(
            f"'{dataset}' cannot be downloaded; known are: {', '.join(ARCHIVES)}. By hand: WIDER-Attribute from "
            "mmlab.ie.cuhk.edu.hk/projects/WIDERAttribute.html into datasets/WIDER, NVIDIA's masks from "
            "nv-adlr.github.io/publication/partialconv-inpainting into datasets/irregular_mask"
        )
    known = tuple(dict.fromkeys(split for archive in ARCHIVES[dataset] for split in archive.splits))
    for split in splits:
        if split not in known:
            raise UserError(f"{dataset} has no split '{split}' to download; known are: {', '.join(known)}")
    return tuple(archive for archive in ARCHIVES[dataset] if not splits or set(splits) & set(archive.splits))


def download(
    archives: Sequence[Archive],
    root: str | Path,
    *,
    mirror: str | None = None,
    keep_archives: bool = False,
    progress: Progress | None = None,
) -> list[Path]:
    """Fetch, check and unpack archives; finished ones are not fetched again.

    Args:
        archives: from ``select_archives``.
        root: the folder of all datasets.
        mirror: the address of your own folder that holds them, tried first.
        keep_archives: keep the archives after unpacking; default: they are deleted.

    Returns:
        The folders that the archives are unpacked in, one each.

    Raises:
        UserError: no mirror sent an archive (the message lists what each said), or another download is running.
        StorageError: the disk is too small or full, or ``root`` cannot be written. BadInputError: an archive with
            something in it that does not belong in a dataset.
    """
    report = progress or _silent
    folders = []
    for archive in archives:
        folder = Path(root) / archive.folder
        folders.append(folder)
        with clear_local_errors(str(folder)):
            folder.mkdir(parents=True, exist_ok=True)
        stamp = folder / f".{archive.name}.unpacked"
        if _is_unpacked(archive, folder, stamp):
            continue
        path = fetch(archive, folder, mirror=mirror, progress=report)
        names = unpack(path, folder, partial(report, f"unpacking {archive.name}"))
        with clear_local_errors(str(stamp)):
            stamp.write_text("\n".join([archive.md5, *names[:1], *names[-1:]]), encoding="utf-8")
            if not keep_archives:
                path.unlink()
    return folders


def _is_unpacked(archive: Archive, folder: Path, stamp: Path) -> bool:
    """Whether this exact archive was unpacked completely, and its first and last file are still there."""
    if not stamp.is_file():
        return False
    md5, *names = stamp.read_text(encoding="utf-8").splitlines()
    return md5 == archive.md5 and all((folder / name).is_file() for name in names)


def _silent(what: str, done: int, total: int) -> None:
    pass


def fetch(archive: Archive, folder: Path, *, mirror: str | None = None, progress: Progress) -> Path:
    """Download one archive into ``folder``, unless it is there, and check it. Raises as ``download`` does."""
    path = folder / archive.name
    if path.is_file():
        if _md5(path, progress) == archive.md5:
            return path
        _set_aside(path)
    part = folder / f"{archive.name}{PART_SUFFIX}"
    said = []
    with _only_download(part):
        for place in ((mirror.rstrip("/"),) if mirror else ()) + archive.mirrors:
            url = f"{place}/{archive.name}"
            try:
                _fetch_checked(archive, url, part, progress)
            except _MirrorError as error:
                said.append(f"\n  {url}: {error}")
                continue
            with clear_local_errors(str(path)):
                flush_to_disk(part)
                os.replace(part, path)
                _origin(part).unlink(missing_ok=True)
            return path
    held = part.stat().st_size if part.exists() else 0
    kept = f"{held:,} bytes are kept; the same command goes on from there" if held else "try again later"
    raise UserError(
        f"{archive.name}: no mirror sent it:{''.join(said)}\n{kept}, or name another place with --mirror URL, or put "
        f"the file into {folder} yourself"
    )


def _fetch_checked(archive: Archive, url: str, part: Path, progress: Progress) -> None:
    """Complete ``part`` from one mirror. A wrong file is set aside; one begun at another mirror is fetched anew."""
    for _ in range(2):
        begun = part.exists() and part.stat().st_size > 0
        _fetch_part(archive.name, url, part, progress)
        found = _md5(part, progress)
        if found == archive.md5:
            return
        aside = _set_aside(part)
        _origin(part).unlink(missing_ok=True)
        if not begun:
            raise _MirrorError(f"a file with the MD5 {found} instead of {archive.md5}, kept as {aside.name}")
    raise _MirrorError(f"a file with the MD5 {found} instead of {archive.md5}, kept as {aside.name}")


def _fetch_part(name: str, url: str, part: Path, progress: Progress) -> None:
    """Append to ``part`` until the server says that it is complete; a broken connection is resumed."""
    left = _ATTEMPTS_WITHOUT_PROGRESS
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _request(name, url, part, progress)
            return
        except UserError:  # this machine's disk, not the mirror
            raise
        except urllib.error.HTTPError as error:
            error.close()
            reason = f"HTTP {error.code} {error.reason}"
            if error.code == 416 and before:
                if error.headers.get("Content-Range") == f"bytes */{before}":
                    return  # it was complete already
                part.unlink()  # not the beginning of what this server has
            elif error.code < 500:
                raise _MirrorError(reason) from None
        except urllib.error.URLError as error:
            reason = str(error.reason)
            if isinstance(error.reason, socket.gaierror):
                raise _MirrorError(f"no such host ({reason})") from None
        except (OSError, http.client.HTTPException, _MirrorError) as error:
            reason = str(error) or type(error).__name__
        except ValueError as error:  # not an address at all
            raise _MirrorError(str(error)) from None
        grown = part.exists() and part.stat().st_size > before
        left = _ATTEMPTS_WITHOUT_PROGRESS if grown else left - 1
        if not left:
            raise _MirrorError(reason)
        time.sleep(_PAUSE_SECONDS)


def _request(name: str, url: str, part: Path, progress: Progress) -> None:
    """One request for the missing rest of ``part``."""
    start = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "msltrain", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        # A server whose file has changed since then sends the whole of it instead of a rest that does not fit.
        if validator := _read_origin(part).get(url):
            headers["If-Range"] = validator
    # Only web addresses: urllib would also open files of this machine and FTP.
    if not url.startswith(("http://", "https://")):
        raise ValueError("not an http:// or https:// address")
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_SECONDS) as response:
        start, total = _extent(response, start)
        etag = response.headers.get("ETag") or ""
        validator = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")
        with clear_local_errors(str(part)):
            # Photographs do not shrink in a zip: unpacked they need about as much again.
            _check_room(part, 2 * (total or start) - start)
            _origin(part).write_text(json.dumps({url: validator} if validator else {}))
            file = open(part, "r+b" if start else "wb")  # noqa: SIM115
        with file:
            file.seek(start)
            done = start
            while block := response.read(_BLOCK):
                with clear_local_errors(str(part)):
                    file.write(block)
                done += len(block)
                progress(name, done, total or done)
    if total is not None and done != total:
        raise _MirrorError(f"the connection ended after {done:,} of {total:,} bytes")


def _extent(response: http.client.HTTPResponse, start: int) -> tuple[int, int | None]:
    """Where the body begins in the file, and the file's size if the server says."""
    if response.status == 206:
        span = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if span is None or int(span[1]) != start:
            raise _MirrorError(f"asked for bytes from {start}, sent {response.headers.get('Content-Range')}")
        return start, int(span[2])
    length = response.headers.get("Content-Length")
    return 0, int(length) if length else None


def _check_room(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise StorageError(
            f"{part.parent}: {part.name.removesuffix(PART_SUFFIX)} and what is unpacked of it still need "
            f"{needed / 1e9:.2f} GB, only {free / 1e9:.2f} GB are free; make room, or choose another disk with --to"
        )


def _md5(path: Path, progress: Progress) -> str:
    digest, total = hashlib.md5(usedforsecurity=False), path.stat().st_size
    done = 0
    with open(path, "rb") as file:
        while block := file.read(8 * _BLOCK):
            digest.update(block)
            done += len(block)
            progress(f"checking {path.name.removesuffix(PART_SUFFIX)}", done, total)
    return digest.hexdigest()


def _set_aside(path: Path) -> Path:
    aside = path.with_name(f"{path.name.removesuffix(PART_SUFFIX)}.bad")
    with clear_local_errors(str(aside)):
        os.replace(path, aside)
    return aside


def _origin(part: Path) -> Path:
    """The file that notes which server sent the part, and what it called that version of the file."""
    return part.with_name(f".{part.name}.origin")


def _read_origin(part: Path) -> dict[str, str]:
    try:
        return dict(json.loads(_origin(part).read_text()))
    except (OSError, ValueError):
        return {}


@contextmanager
def _only_download(part: Path) -> Iterator[None]:
    """Keep a second download from writing to the same file; the kernel releases the lock when the process ends."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        yield
        return
    with clear_local_errors(str(part.parent)):
        descriptor = os.open(part.parent, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{part.parent}: another download is writing into this folder; let it finish") from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(descriptor)
