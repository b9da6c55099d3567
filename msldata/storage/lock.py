"""Ownership of a folder by one process, such as a build or a training run: two must never write to the same folder.

On a disk the lock is the kernel's, on a hidden file: it ends with its process, even on another host if the file system
is shared. Object stores, and disks without locks, have no such lock. There the owner rewrites the file every few
seconds, and a lock that stops changing is taken over: after ``LEASE_SECONDS``, or at once when its owner was a process
of this host that has ended. No two clocks are compared; a waiting process watches whether the file changes.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from msldata.errors import StorageError, UserError
from msldata.storage.base import FileInfo, Storage
from msldata.storage.local import clear_local_errors

LOCK_NAME = ".lock"
BEAT_SECONDS = 3.0
LEASE_SECONDS = 15.0
SETTLE_SECONDS = 0.5
"""Where a store cannot create a file exclusively, a claim counts if it is still there after this time."""
_MOST_TAKEOVERS = 2
"""Attempts to take over a lock that shows no life, after which the store is no longer trusted."""


class Claim(ABC):
    """A folder that belongs to this process."""

    is_alone = True
    """False for one that is shared, or whose file system knows no locks."""

    @abstractmethod
    def check(self) -> None:
        """Raise UserError when another process has taken the folder over because this one was silent for too long."""

    @abstractmethod
    def list_files(self) -> list[FileInfo]:
        """The files in the folder. Raises StorageError when the listing cannot be true."""


@contextmanager
def own_folder(folder: Storage, who: str, *, shared: bool = False) -> Iterator[Claim]:
    """Own a folder while the block runs; a local one is created if it does not exist.

    Args:
        folder: local or remote.
        who: what the owner is, such as ``build``; for messages.
        shared: own it together with others that also ask for that. In an object store that means no lock at all.

    Raises:
        UserError: a living process owns it. StorageError: it cannot be written.
    """
    path = folder.path()
    if path is None and not shared:
        with _kept_alive(folder, who) as claim:
            yield claim
        return
    if path is None:
        yield _LocalClaim(folder, is_alone=False)
        return
    with clear_local_errors(str(path)):
        is_new = not path.is_dir()
        path.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = _lock(path, who, shared)
        if descriptor is None and not shared:
            with _kept_alive(folder, who) as claim:
                yield claim
            return
        try:
            yield _LocalClaim(folder, is_alone=not shared)
        finally:
            if descriptor is not None:
                _unlock(descriptor, path)
    finally:
        if is_new:
            with suppress(OSError):
                path.rmdir()  # if it was never used


class _LocalClaim(Claim):
    def __init__(self, folder: Storage, *, is_alone: bool):
        self._folder = folder
        self.is_alone = is_alone

    def check(self) -> None:
        """The kernel never takes a lock away."""

    def list_files(self) -> list[FileInfo]:
        return self._folder.list_files()


def _lock(folder: Path, who: str, shared: bool) -> int | None:
    """The descriptor that holds the lock; None where there are no locks. Raises UserError when it is taken."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        return None
    path = folder / LOCK_NAME
    while True:
        with clear_local_errors(str(folder)):
            # Not the folder itself, which some network file systems lock only on this host.
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), path.stat()):  # else its last owner has just removed it
                if not shared:
                    with suppress(OSError):  # the disk may be full; the file only names the owner
                        os.ftruncate(descriptor, 0)
                        os.pwrite(descriptor, json.dumps(_identity()).encode(), 0)
                return descriptor
        except FileNotFoundError:
            pass
        except OSError as error:
            owner = os.pread(descriptor, 4096, 0)
            os.close(descriptor)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise _refusal(str(folder), who, _parsed(owner)) from None
            return None
        os.close(descriptor)


def _unlock(descriptor: int, folder: Path) -> None:
    import fcntl

    with suppress(OSError):  # others still share it, and the last of them removes it
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (folder / LOCK_NAME).unlink()
    os.close(descriptor)


class BeatingLock(Claim):
    """The claim of this process on a folder whose lock is a file that has to show signs of life.

    Args:
        folder: remote, or on a disk without locks.
        who: what the owner is.
    """

    def __init__(self, folder: Storage, who: str):
        self.folder, self.who = folder, who
        self._token = uuid.uuid4().hex
        self._beat = 0
        self._released = threading.Event()

    def acquire(self) -> None:
        """Take the folder. Raises UserError when a living process has it, StorageError when that is unknown."""
        watched: dict[str, Any] | None = None
        since, was_absent, num_takeovers = time.monotonic(), False, 0
        while True:
            found = self._read()
            taken = False
            if found is None:
                # Look twice: where writing is not atomic, the file is missing for a moment while its owner rewrites it.
                taken = was_absent and self._claim()
            elif watched is None or found["token"] != watched["token"]:
                watched, since = found, time.monotonic()
                taken = _owner_is_dead(found) and self._take_over()
            elif found["beat"] != watched["beat"]:
                raise _refusal(self.folder.url, self.who, found)
            elif time.monotonic() - since > LEASE_SECONDS:
                if num_takeovers == _MOST_TAKEOVERS:
                    raise StorageError(
                        f"{self.folder.where(LOCK_NAME)}: what is written here does not come back when it is read; the "
                        "address does not answer as a store does"
                    )
                taken, since, num_takeovers = self._take_over(), time.monotonic(), num_takeovers + 1
            if taken:
                return
            was_absent = found is None
            time.sleep(BEAT_SECONDS / 10)

    def _claim(self) -> bool:
        """Take a folder that nobody owns."""
        mine = self._content()
        self.folder.create(LOCK_NAME, mine)
        # A store that refuses the second creation has let only one process pass the first; others keep no such promise.
        return self._stands() if not self.folder.create(LOCK_NAME, mine) else self._stands_after_a_while()

    def _take_over(self) -> bool:
        self.folder.put(LOCK_NAME, self._content())
        return self._stands_after_a_while()

    def _stands_after_a_while(self) -> bool:
        time.sleep(SETTLE_SECONDS)
        return self._stands()

    def _stands(self) -> bool:
        found = self._read()
        return found is not None and found["token"] == self._token

    def check(self) -> None:
        if not self._stands():
            raise UserError(
                f"{self.folder.url}: another {self.who} has taken over this folder, because this one could not reach "
                "the store for a while; when the other has finished, run the same command again"
            )

    def list_files(self) -> list[FileInfo]:
        deadline = time.monotonic() + BEAT_SECONDS
        while True:
            found = self.folder.list_files()
            # The lock is there. A page that is not a listing, such as a gateway's, is read as an empty listing.
            if any(info.name == LOCK_NAME for info in found):
                return found
            if time.monotonic() > deadline:
                raise StorageError(
                    f"{self.folder.url}: the listing lacks {LOCK_NAME}, which was just written there; the address does "
                    "not answer as a store does; try again later"
                )
            time.sleep(BEAT_SECONDS / 10)

    def keep(self) -> None:
        """Show signs of life until ``stop_keeping``, or until another process owns the folder; runs in a thread."""
        last = time.monotonic()
        while not self._released.wait(BEAT_SECONDS):
            with suppress(StorageError, FileNotFoundError):  # a passing failure; in the end `check` decides
                found = self._read()
                is_mine = found is not None and found["token"] == self._token
                is_readable = found is not None and found["token"]
                if not is_mine and (is_readable or time.monotonic() - last > LEASE_SECONDS):
                    return  # another has it, or may have had it while this one was silent
                self.folder.put(LOCK_NAME, self._content())
                last = time.monotonic()

    def stop_keeping(self) -> None:
        """End ``keep``."""
        self._released.set()

    def release(self) -> None:
        """Release the folder."""
        with suppress(StorageError):  # then the lock runs out by itself
            if self._stands():
                self.folder.delete(LOCK_NAME)

    def _read(self) -> dict[str, Any] | None:
        try:
            return _parsed(self.folder.read(LOCK_NAME))
        except FileNotFoundError:
            return None

    def _content(self) -> bytes:
        self._beat += 1
        return json.dumps({"token": self._token, "beat": self._beat, **_identity()}).encode()


@contextmanager
def _kept_alive(folder: Storage, who: str) -> Iterator[BeatingLock]:
    lock = BeatingLock(folder, who)
    lock.acquire()
    beats = threading.Thread(target=lock.keep, daemon=True)
    beats.start()
    try:
        yield lock
    finally:
        lock.stop_keeping()
        beats.join(timeout=10)  # a rewrite in progress must not bring the lock back after its deletion
        lock.release()


def _identity() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid()}


def _parsed(content: bytes) -> dict[str, Any]:
    """What a lock file says; without a token if it is malformed or half written: it may still become readable."""
    found = {"token": "", "beat": 0, "host": "", "pid": 0}
    with suppress(ValueError, TypeError):
        found.update({name: value for name, value in dict(json.loads(content)).items() if name in found})
    return found


def _refusal(folder: str, who: str, owner: dict[str, Any]) -> UserError:
    known = f" (process {owner['pid']} on {owner['host']})" if owner["host"] else ""
    return UserError(
        f"{folder}: another {who} is writing into this folder{known}; wait until it has finished, or stop it and run "
        "the same command again"
    )


def _owner_is_dead(found: dict[str, Any]) -> bool:
    """Whether the owner was a process of this host that has ended."""
    if found["host"] != socket.gethostname() or not isinstance(found["pid"], int) or found["pid"] == os.getpid():
        return False
    try:
        os.kill(found["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
