"""One owner a folder: on a disk, on a disk without locks, in an object store that answers, and in one that does not."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import obstore.store
import pytest

from msldata.errors import StorageError, UserError
from msldata.storage import LocalStorage, RemoteStorage, lock
from msldata.storage.lock import LOCK_NAME, BeatingLock, own_folder
from tests.conftest import REPOSITORY


def busy() -> str:
    """The message of a refusal, as a pattern."""
    return rf"another training is writing into this folder \(process {os.getpid()} on "


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(lock, "LEASE_SECONDS", 60.0)  # a busy machine may be late with the next sign of life
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.05)


@pytest.fixture
def remote() -> RemoteStorage:
    return RemoteStorage("memory://place", obstore.store.MemoryStore())


def test_a_folder_has_one_owner_and_shows_no_trace_of_it(tmp_path: Path):
    folder = LocalStorage(tmp_path / "run")
    with own_folder(folder, "training") as claim:
        assert claim.is_alone
        with pytest.raises(UserError, match=busy()), own_folder(folder, "training"):
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
    with own_folder(folder, "training"), pytest.raises(UserError, match=busy()), own_folder(folder, "training"):
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
        assert failed.wait(60)
        with pytest.raises(UserError, match=busy()), own_folder(remote, "training"):
            pass
        claim.check()


def test_who_was_silent_for_long_does_not_come_back(remote: RemoteStorage, quick, monkeypatch: pytest.MonkeyPatch):
    """Another may have had the folder and left it, meanwhile."""
    silent = BeatingLock(remote, "training")
    silent.acquire()
    monkeypatch.setattr(lock, "LEASE_SECONDS", 0.3)
    with own_folder(remote, "training"):
        pass
    monkeypatch.setattr(lock, "LEASE_SECONDS", -1.0)  # it was silent for longer
    silent._released = Beats(lambda: None, lambda: pytest.fail("it goes on"))
    silent.keep()
    assert not remote.exists(LOCK_NAME)
    with pytest.raises(UserError, match="another training has taken over"):
        silent.check()


def test_a_lock_that_cannot_be_read_is_not_waited_for_without_end(remote: RemoteStorage, clock: Clock, monkeypatch):
    remote.put(LOCK_NAME, b"<html>")
    with own_folder(remote, "training"):  # what stood there shows no life
        pass
    remote.put(LOCK_NAME, b"<html>")
    monkeypatch.setattr(RemoteStorage, "read", lambda self, name: b"<html>")
    with pytest.raises(StorageError, match="does not come back when it is read"), own_folder(remote, "training"):
        pass


def test_a_listing_that_cannot_be_true_is_not_believed(remote: RemoteStorage, quick, monkeypatch):
    with own_folder(remote, "training") as claim:
        assert [info.name for info in claim.list_files()] == [LOCK_NAME]
        monkeypatch.setattr(RemoteStorage, "list_files", lambda self: [])
        with pytest.raises(StorageError, match=r"the listing lacks \.lock, which was just written there"):
            claim.list_files()


# --- the beating lock on a clock of the test's own -------------------------------------------------------------------


_LONGEST = 1000.0
"""Of the test's own time: far more than any wait here."""


class Clock:
    """Takes the place of ``time``: sleeping lets the test's time pass, and what is due by then happens."""

    def __init__(self) -> None:
        self.now = 100.0
        self.due: list[tuple[float, Callable[[], None]]] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.now > _LONGEST:
            pytest.fail("it waits without end")
        for deed in [deed for at, deed in self.due if at <= self.now]:
            deed()
        self.due = [(at, deed) for at, deed in self.due if at > self.now]

    def after(self, seconds: float, deed: Callable[[], None]) -> None:
        self.due.append((self.now + seconds, deed))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(lock, "time", clock)
    return clock


def written(
    remote: RemoteStorage, token: str = "another", beat: int = 1, host: str = "elsewhere", pid: int = 1
) -> None:
    remote.put(LOCK_NAME, json.dumps({"token": token, "beat": beat, "host": host, "pid": pid}).encode())


def content(remote: RemoteStorage) -> dict:
    return json.loads(remote.read(LOCK_NAME))


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_only_a_process_of_this_host_that_has_ended_is_dead():
    def is_dead(host: str, pid: object) -> bool:
        return lock._owner_is_dead({"token": "t", "beat": 1, "host": host, "pid": pid})

    ended, here = ended_process(), socket.gethostname()
    assert is_dead(here, ended)
    assert not is_dead("elsewhere", ended), "what runs there is not known here"
    assert not is_dead("", ended)
    assert not is_dead(here, os.getpid())
    assert not is_dead(here, os.getppid())
    assert not is_dead(here, "words") and not is_dead(here, None)


def test_a_process_that_may_not_be_asked_counts_as_alive(monkeypatch: pytest.MonkeyPatch):
    def refuse(pid: int, signal: int) -> None:
        assert signal == 0
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert not lock._owner_is_dead({"host": socket.gethostname(), "pid": 1})


def test_a_lock_says_who_holds_it(remote: RemoteStorage, clock: Clock):
    owner = BeatingLock(remote, "training")
    owner.acquire()
    first = content(remote)
    assert (first["host"], first["pid"]) == (socket.gethostname(), os.getpid())
    assert first["token"] == owner._token and first["beat"] >= 1
    owner.check()
    owner.release()
    assert not remote.exists(LOCK_NAME)
    with pytest.raises(UserError, match="another training has taken over"):
        owner.check()


def test_the_silent_owner_on_another_host_is_succeeded_after_its_lease_and_not_before(remote, clock: Clock):
    written(remote, pid=ended_process())
    began = clock.now
    owner = BeatingLock(remote, "build")
    owner.acquire()
    assert 15 < clock.now - began < 17
    assert content(remote)["token"] == owner._token


def test_the_ended_owner_on_this_host_is_succeeded_at_once(remote: RemoteStorage, clock: Clock):
    written(remote, host=socket.gethostname(), pid=ended_process())
    began = clock.now
    BeatingLock(remote, "build").acquire()
    assert clock.now - began < 1


def test_an_owner_that_shows_life_is_left_alone(remote: RemoteStorage, clock: Clock):
    written(remote, beat=4)
    clock.after(14.9, lambda: written(remote, beat=5))
    with pytest.raises(UserError, match=r"another build is writing into this folder \(process 1 on elsewhere\)"):
        BeatingLock(remote, "build").acquire()
    assert content(remote)["token"] == "another"


def test_another_owner_gets_a_lease_of_its_own(remote: RemoteStorage, clock: Clock):
    """Who waits for one owner must not take the folder from the next one because both together were silent."""
    written(remote, token="first")
    clock.after(10, lambda: written(remote, token="second"))
    began = clock.now
    BeatingLock(remote, "build").acquire()
    assert 25 < clock.now - began < 27


def test_a_lock_that_is_missing_for_a_moment_is_not_taken(remote: RemoteStorage, clock: Clock):
    """Where writing is not atomic, a rewrite removes the file first."""
    clock.after(0.1, lambda: written(remote))
    clock.after(2, lambda: written(remote, beat=2))
    with pytest.raises(UserError, match="another build is writing"):
        BeatingLock(remote, "build").acquire()


def test_a_free_folder_is_taken_after_a_second_look(remote: RemoteStorage, clock: Clock):
    began = clock.now
    BeatingLock(remote, "build").acquire()
    assert 0 < clock.now - began <= 0.4, "a store that creates exclusively needs no time to settle"


class Careless(RemoteStorage):
    """A store that overwrites where it should refuse to create a file a second time."""

    def create(self, name: str, data: bytes) -> bool:
        self.put(name, data)
        return True


def test_where_nothing_is_exclusive_a_claim_must_still_stand_after_a_while(clock: Clock):
    remote = Careless("memory://place", obstore.store.MemoryStore())
    began = clock.now
    BeatingLock(remote, "build").acquire()
    assert clock.now - began == pytest.approx(0.8), "0.3 s to the second look, 0.5 s to settle"
    remote.delete(LOCK_NAME)
    clock.after(0.5, lambda: written(remote))  # between the claim and the look at it
    clock.after(3, lambda: written(remote, beat=2))
    with pytest.raises(UserError, match="another build is writing"):
        BeatingLock(remote, "build").acquire()
    assert content(remote)["token"] == "another"


@pytest.mark.parametrize("host", ["elsewhere", "here"])
def test_a_takeover_must_still_stand_after_a_while(remote: RemoteStorage, clock: Clock, host: str):
    """Two that wait take the folder over at one moment: the one that wrote last has it, the other one gives way."""
    host = socket.gethostname() if host == "here" else host
    written(remote, token="dead", host=host, pid=ended_process())

    def takes_it_too() -> None:
        if content(remote)["token"] != "dead":
            written(remote, token="winner", beat=1)
            clock.after(2, lambda: written(remote, token="winner", beat=2))
        else:
            clock.after(0.1, takes_it_too)

    loser = BeatingLock(remote, "build")
    clock.after(0.1, takes_it_too)
    with pytest.raises(UserError, match="another build is writing"):
        loser.acquire()
    assert content(remote)["token"] == "winner"


class Beats(threading.Event):
    """Lets ``keep`` show a given number of signs of life, each time after a deed of the test."""

    def __init__(self, *deeds: Callable[[], object]):
        super().__init__()
        self.deeds = list(deeds)
        self.waited: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waited.append(timeout)
        if not self.deeds:
            return True
        self.deeds.pop(0)()
        return False


def test_signs_of_life_are_a_rewrite_every_few_seconds(remote: RemoteStorage, clock: Clock):
    owner = BeatingLock(remote, "build")
    owner.acquire()
    beats = [content(remote)["beat"]]
    owner._released = Beats(*[lambda: beats.append(content(remote)["beat"])] * 3)
    owner.keep()
    beats.append(content(remote)["beat"])
    assert len(set(beats)) == 4 and owner._released.waited == [3.0] * 4
    assert content(remote)["token"] == owner._token


def test_an_owner_that_lost_the_folder_is_silent(remote: RemoteStorage, clock: Clock):
    owner = BeatingLock(remote, "build")
    owner.acquire()
    owner._released = Beats(lambda: written(remote), lambda: pytest.fail("it goes on"))
    owner.keep()
    assert content(remote) == {"token": "another", "beat": 1, "host": "elsewhere", "pid": 1}
    owner.release()
    assert content(remote)["token"] == "another", "and does not release what is another's"


@pytest.mark.parametrize("unread", [b"", b"<html>", b"[1]", b'{"token": ""}', None])
def test_a_lock_that_cannot_be_read_is_written_again_within_the_lease_alone(remote, clock: Clock, unread):
    owner = BeatingLock(remote, "build")
    owner.acquire()

    def lost(after: float) -> None:
        clock.now += after
        if unread is None:
            remote.delete(LOCK_NAME)
        else:
            remote.put(LOCK_NAME, unread)

    owner._released = Beats(lambda: lost(15.0), lambda: None)
    owner.keep()
    assert content(remote)["token"] == owner._token
    owner._released = Beats(lambda: lost(15.1), lambda: pytest.fail("another may have had it meanwhile"))
    owner.keep()
    assert not remote.exists(LOCK_NAME) if unread is None else remote.read(LOCK_NAME) == unread


def test_a_long_life_is_no_silence(remote: RemoteStorage, clock: Clock):
    """The lease counts from the last sign of life, not from the first."""
    owner = BeatingLock(remote, "build")
    owner.acquire()

    def later() -> None:
        clock.now += 10

    owner._released = Beats(later, later, lambda: remote.put(LOCK_NAME, b"<html>"))
    owner.keep()
    assert content(remote)["token"] == owner._token


def test_a_store_that_lies_is_given_up_after_two_takeovers(remote: RemoteStorage, clock: Clock, monkeypatch):
    written(remote)
    puts: list[str] = []
    monkeypatch.setattr(RemoteStorage, "put", lambda self, name, data: puts.append(name))
    began = clock.now
    with pytest.raises(StorageError, match="does not come back when it is read"):
        BeatingLock(remote, "build").acquire()
    assert puts == [LOCK_NAME] * 2
    assert 45 < clock.now - began < 50


def test_a_listing_without_the_lock_is_asked_for_again(remote: RemoteStorage, clock: Clock, monkeypatch):
    owner = BeatingLock(remote, "build")
    owner.acquire()
    listings = [[], [], RemoteStorage.list_files(remote)]
    monkeypatch.setattr(RemoteStorage, "list_files", lambda self: listings.pop(0))
    assert [info.name for info in owner.list_files()] == [LOCK_NAME]
    began = clock.now
    monkeypatch.setattr(RemoteStorage, "list_files", lambda self: [])
    with pytest.raises(StorageError, match=r"the listing lacks \.lock"):
        owner.list_files()
    assert 3 < clock.now - began < 4


def test_what_a_lock_says_and_no_more():
    assert lock._parsed(b'{"token": "t", "beat": 3, "host": "h", "pid": 9, "other": 1}') == {
        "token": "t",
        "beat": 3,
        "host": "h",
        "pid": 9,
    }
    for broken in (b"", b"{", b"\xff", b"[1, 2]", b"null"):
        assert lock._parsed(broken) == {"token": "", "beat": 0, "host": "", "pid": 0}
    assert "process" not in str(lock._refusal("place", "build", lock._parsed(b"")))


def test_a_shared_place_in_a_store_has_no_lock(remote: RemoteStorage):
    with own_folder(remote, "build", shared=True) as claim:
        assert not claim.is_alone and not remote.exists(LOCK_NAME)
        remote.put("a", b"")
        assert [info.name for info in claim.list_files()] == ["a"]
        claim.check()
    with own_folder(remote, "build") as claim:
        assert claim.is_alone and remote.exists(LOCK_NAME)
    assert not remote.exists(LOCK_NAME)


def test_a_lock_on_a_disk_names_its_owner_alone(tmp_path: Path):
    (tmp_path / LOCK_NAME).write_text("x" * 500)
    with own_folder(LocalStorage(tmp_path), "build"):
        found = json.loads((tmp_path / LOCK_NAME).read_text())
        assert found == {"host": socket.gethostname(), "pid": os.getpid()}


def test_sharing_says_nothing_in_the_file_and_the_last_removes_it(tmp_path: Path):
    folder = LocalStorage(tmp_path)
    with own_folder(folder, "build", shared=True):
        with own_folder(folder, "build", shared=True):
            assert (tmp_path / LOCK_NAME).read_bytes() == b""
        assert (tmp_path / LOCK_NAME).exists()
    assert not (tmp_path / LOCK_NAME).exists() and tmp_path.is_dir()


# --- on a disk -------------------------------------------------------------------------------------------------------


def no_locks(*_: object) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


def test_sharing_a_disk_without_locks_is_no_lock_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fcntl, "flock", no_locks)
    with own_folder(LocalStorage(tmp_path), "build", shared=True) as claim:
        assert not claim.is_alone


def test_a_system_without_file_locks_is_owned_by_signs_of_life(tmp_path: Path, quick, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    folder = LocalStorage(tmp_path)
    with own_folder(folder, "training") as claim, pytest.raises(UserError, match=busy()):
        assert isinstance(claim, BeatingLock)
        with own_folder(folder, "training"):
            pass


def test_whoever_may_write_into_the_folder_may_take_its_lock(tmp_path: Path):
    before = os.umask(0)
    try:
        with own_folder(LocalStorage(tmp_path), "build"):
            assert (tmp_path / LOCK_NAME).stat().st_mode & 0o777 == 0o666
    finally:
        os.umask(before)


def test_a_lock_whose_last_owner_has_just_removed_it_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Else two would own the folder: one by the removed file, one by the next."""
    path, opened, real = tmp_path / LOCK_NAME, [], os.open

    def open_and_lose(name, *arguments):
        descriptor = real(name, *arguments)
        if name == path:
            opened.append(name)
            if len(opened) == 1:
                path.unlink()
            if len(opened) == 2:  # removed, and made again by another
                path.unlink()
                path.write_bytes(b"")
        return descriptor

    monkeypatch.setattr(os, "open", open_and_lose)
    with own_folder(LocalStorage(tmp_path), "build"):
        assert len(opened) == 3
        with path.open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_no_descriptor_is_left_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def num_open() -> int:
        return len(os.listdir("/dev/fd"))

    folder, before = LocalStorage(tmp_path), num_open()
    with own_folder(folder, "build"):
        for _ in range(3):
            with pytest.raises(UserError, match="another build"), own_folder(folder, "build"):
                pass
        assert num_open() == before + 1
    assert num_open() == before
    answers = iter([False, True])
    monkeypatch.setattr(os.path, "samestat", lambda *_: next(answers))
    with own_folder(folder, "build"):
        assert num_open() == before + 1, "the file that was not the folder's lock any more is closed"
    monkeypatch.setattr(fcntl, "flock", no_locks)
    with own_folder(folder, "build", shared=True):
        assert num_open() == before


def test_a_rewrite_in_progress_does_not_bring_the_lock_back(remote: RemoteStorage, quick, monkeypatch):
    began, over, put = threading.Event(), threading.Event(), RemoteStorage.put

    def slow_put(self: RemoteStorage, name: str, data: bytes) -> None:
        if threading.current_thread() is not threading.main_thread():
            began.set()
            time.sleep(0.3)
        put(self, name, data)
        if began.is_set():
            over.set()

    monkeypatch.setattr(RemoteStorage, "put", slow_put)
    with own_folder(remote, "build"):
        assert began.wait(60)
    assert over.wait(60) and not remote.exists(LOCK_NAME)
    assert not [thread for thread in threading.enumerate() if "keep" in thread.name]


def test_a_refusal_says_who_where_that_is_known():
    owner = {"host": "there", "pid": 9}
    advice = "wait until it has finished, or stop it and run the same command again"
    assert str(lock._refusal("place", "build", owner)) == (
        f"place: another build is writing into this folder (process 9 on there); {advice}"
    )
    assert str(lock._refusal("place", "build", {"host": "", "pid": 0})) == (
        f"place: another build is writing into this folder; {advice}"
    )
