"""Ownership of a remote dataset folder by one build: a lock file whose owner shows again and again that it lives.

Object stores have no locks that die with their process. So the owner rewrites ``.build.lock`` every few seconds, and a
lock that stands still is taken over: after ``LEASE_SECONDS``, or at once when its owner was a process of this host that
is dead. Nobody's clock is compared with another's; a waiting build watches whether the file changes.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from msldata.errors import StorageError, UserError
from msldata.storage import Storage

LOCK_NAME = ".build.lock"
BEAT_SECONDS = 3.0
LEASE_SECONDS = 15.0
SETTLE_SECONDS = 0.5
"""Where a store cannot create a file exclusively, a claim counts when it still stands after this time."""


class RemoteLock:
    """The claim of this process on one remote folder.

    Args:
        out: the dataset folder.
    """

    def __init__(self, out: Storage):
        self.out = out
        self._token = uuid.uuid4().hex
        self._beat = 0
        self._released = threading.Event()

    def acquire(self) -> None:
        """Take the folder. Raises UserError when a living build has it."""
        watched, since, was_absent = None, time.monotonic(), False
        while True:
            found = self._read()
            if found is None:
                # Absent twice: where writing is not atomic, the file is gone for a moment when its owner rewrites it.
                taken = was_absent and self._claim()
            elif watched is None or found["token"] != watched["token"]:
                watched, since = found, time.monotonic()
                taken = _owner_is_dead(found) and self._take_over()
            elif found["beat"] != watched["beat"]:
                raise UserError(
                    f"{self.out.url}: another build is writing into this folder (process {found['pid']} on "
                    f"{found['host']}); wait until it has finished, or stop it and run the same command again"
                )
            else:
                taken = time.monotonic() - since > LEASE_SECONDS and self._take_over()
            if taken:
                return
            was_absent = found is None
            time.sleep(BEAT_SECONDS / 10)

    def _claim(self) -> bool:
        """Take a folder that nobody owns."""
        mine = self._content()
        self.out.create(LOCK_NAME, mine)
        # A store that refuses the second creation has let only one build pass the first; others keep no such promise.
        return self._stands() if not self.out.create(LOCK_NAME, mine) else self._stands_after_a_while()

    def _take_over(self) -> bool:
        self.out.put(LOCK_NAME, self._content())
        return self._stands_after_a_while()

    def _stands_after_a_while(self) -> bool:
        time.sleep(SETTLE_SECONDS)
        return self._stands()

    def _stands(self) -> bool:
        found = self._read()
        return found is not None and found["token"] == self._token

    def check(self) -> None:
        """Raises UserError when another build has taken the folder over, because this one was silent for too long."""
        if not self._stands():
            raise UserError(
                f"{self.out.url}: another build has taken over this folder, because this one could not reach the "
                "store for a while; when the other has finished, run the same command again"
            )

    def keep(self) -> None:
        """Show signs of life until ``stop_keeping``, or until the folder belongs to another; runs in a thread."""
        while not self._released.wait(BEAT_SECONDS):
            with suppress(StorageError):  # a passing failure; in the end `check` decides
                if not self._stands():
                    return
                self.out.put(LOCK_NAME, self._content())

    def stop_keeping(self) -> None:
        """End ``keep``."""
        self._released.set()

    def release(self) -> None:
        """Leave the folder to others."""
        with suppress(StorageError):  # then the lock runs out by itself
            if self._stands():
                self.out.delete(LOCK_NAME)

    def _read(self) -> dict[str, Any] | None:
        try:
            found = json.loads(self.out.read(LOCK_NAME))
            return {name: found[name] for name in ("token", "beat", "host", "pid")}
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):  # half written, or not ours; it may still become readable
            return {"token": "", "beat": 0, "host": "", "pid": 0}

    def _content(self) -> bytes:
        self._beat += 1
        mine = {"token": self._token, "beat": self._beat, "host": socket.gethostname(), "pid": os.getpid()}
        return json.dumps(mine).encode()


@contextmanager
def remote_lock(out: Storage) -> Iterator[RemoteLock]:
    """Own the remote folder ``out`` while the block runs. Raises UserError when a living build has it."""
    lock = RemoteLock(out)
    lock.acquire()
    beats = threading.Thread(target=lock.keep, daemon=True)
    beats.start()
    try:
        yield lock
    finally:
        lock.stop_keeping()
        beats.join(timeout=10)  # a beat under way must not bring the lock back after its deletion
        lock.release()


def _owner_is_dead(found: dict[str, Any]) -> bool:
    """Whether the owner was a process of this very host that has ended."""
    if found["host"] != socket.gethostname() or not isinstance(found["pid"], int) or found["pid"] == os.getpid():
        return False
    try:
        os.kill(found["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
