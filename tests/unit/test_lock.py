"""One owner a folder: on a disk, on a disk without locks, in an object store that answers, and in one that does not."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import obstore.store
import pytest

from msldata.errors import StorageError, UserError
from msldata.storage import LocalStorage, RemoteStorage, lock
from msldata.storage.lock import LOCK_NAME, BeatingLock, own_folder
from tests.conftest import REPOSITORY

BUSY = rf"another training is writing into this folder \(process {os.getpid()} on "


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(lock, "LEASE_SECONDS", 0.6)
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.05)


@pytest.fixture
def remote() -> RemoteStorage:
    return RemoteStorage("memory://place", obstore.store.MemoryStore())


def test_a_folder_has_one_owner_and_shows_no_trace_of_it(tmp_path: Path):
    folder = LocalStorage(tmp_path / "run")
    with own_folder(folder, "training") as claim:
        assert claim.is_alone
        with pytest.raises(UserError, match=BUSY), own_folder(folder, "training"):
            pass
        folder.put("config.json", b"{}")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]
    with own_folder(LocalStorage(tmp_path / "unused" / "run"), "training"):
        pass
    assert not (tmp_path / "unused" / "run").exists()


def test_a_dead_owner_is_succeeded_at_once(tmp_path: Path):
    code = (
        "import os, sys\n"
        "from msldata.storage import LocalStorage\n"
        "from msldata.storage.lock import own_folder\n"
        "with own_folder(LocalStorage(__import__('pathlib').Path(sys.argv[1])), 'training'):\n"
        "    os.kill(os.getpid(), 9)"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment).returncode == -9
    assert (tmp_path / LOCK_NAME).exists()
    with own_folder(LocalStorage(tmp_path), "training"):
        pass
    assert not list(tmp_path.iterdir())


def test_those_who_share_keep_others_out(tmp_path: Path):
    folder = LocalStorage(tmp_path)
    with own_folder(folder, "build", shared=True) as claim:
        assert not claim.is_alone
        with own_folder(folder, "build", shared=True):
            pass
        with pytest.raises(UserError, match="another build is writing into this folder"), own_folder(folder, "build"):
            pass
    with own_folder(folder, "build"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_disk_without_locks_is_owned_by_signs_of_life(tmp_path: Path, quick, monkeypatch: pytest.MonkeyPatch):
    def unknown(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unknown)
    folder = LocalStorage(tmp_path)
    with own_folder(folder, "training"), pytest.raises(UserError, match=BUSY), own_folder(folder, "training"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("failure", [StorageError("no answer came in time"), FileNotFoundError(), b"<html>", b"{"])
def test_signs_of_life_survive_a_failed_read(remote: RemoteStorage, quick, monkeypatch, failure):
    with own_folder(remote, "training") as claim:
        read, failed = RemoteStorage.read, threading.Event()

        def fails_once(self: RemoteStorage, name: str) -> bytes:
            if threading.current_thread() is threading.main_thread() or failed.is_set():
                return read(self, name)
            failed.set()
            if isinstance(failure, bytes):
                return failure
            raise failure

        monkeypatch.setattr(RemoteStorage, "read", fails_once)
        assert failed.wait(5)
        with pytest.raises(UserError, match=BUSY), own_folder(remote, "training"):
            pass
        claim.check()


def test_who_was_silent_for_long_does_not_come_back(remote: RemoteStorage, quick):
    """Another may have had the folder and left it, meanwhile."""
    silent = BeatingLock(remote, "training")
    silent.acquire()
    with own_folder(remote, "training"):
        pass
    thread = threading.Thread(target=silent.keep)
    began = time.monotonic()
    lock.LEASE_SECONDS = -1.0  # it was silent for longer
    thread.start()
    thread.join(5)
    assert time.monotonic() - began < 5 and not remote.exists(LOCK_NAME)
    with pytest.raises(UserError, match="another training has taken over"):
        silent.check()


def test_a_lock_that_cannot_be_read_is_not_waited_for_without_end(remote: RemoteStorage, quick, monkeypatch):
    remote.put(LOCK_NAME, b"<html>")
    with own_folder(remote, "training"):  # what stood there shows no life
        pass
    remote.put(LOCK_NAME, b"<html>")
    monkeypatch.setattr(RemoteStorage, "read", lambda self, name: b"<html>")
    began = time.monotonic()
    with pytest.raises(StorageError, match="does not come back when it is read"), own_folder(remote, "training"):
        pass
    assert time.monotonic() - began < 5


def test_a_listing_that_cannot_be_true_is_not_believed(remote: RemoteStorage, quick, monkeypatch):
    with own_folder(remote, "training") as claim:
        assert [info.name for info in claim.list_files()] == [LOCK_NAME]
        monkeypatch.setattr(RemoteStorage, "list_files", lambda self: [])
        with pytest.raises(StorageError, match=r"the listing lacks \.lock, which was just written there"):
            claim.list_files()
