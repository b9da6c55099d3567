"""A remote store's patience: how long it is waited for, how often it is asked again, and what is never read of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import obstore
import pytest
from obstore.exceptions import GenericError
from obstore.store import MemoryStore

from msldata.errors import StorageError
from msldata.storage import LocalStorage, RemoteStorage, Storage, open_storage
from msldata.storage.remoteerrors import PassingError, _Calls, clear_remote_errors
from tests.unit.test_storage import MemoryBackedStorage

SILENT = "kind: Timeout"


class Stores(MemoryBackedStorage):
    """As if made from its address and not asked yet; every connection is a store of its own, with the same objects."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[Any] = [self.store]
        self.patience: list[Any] = ["little"]
        self.put("a", b"abc")
        self.patience[1:], self.all[1:] = [], []
        self._is_given = self._has_answered = False
        self._writer = self._slow_store = None

    def _connect(self, retry: dict[str, Any], client: dict[str, Any]) -> Any:
        store = MemoryStore()
        obstore.put(store, "a", b"abc")
        self.all.append(store)
        self.patience.append((retry, client))
        return store


READS: dict[str, Callable[[Storage], Any]] = {
    "read": lambda storage: storage.read("a"),
    "ranges": lambda storage: storage.read_ranges("a", [1], [2]),
    "stream": lambda storage: b"".join(storage.stream("a")),
    "exists": lambda storage: storage.exists("a"),
    "nothing": lambda storage: storage.exists("b"),
    "list": lambda storage: storage.list_files(),
}
PATIENT = (RemoteStorage.PATIENT_RETRY, RemoteStorage.READ_CLIENT)
SLOW = (RemoteStorage.PATIENT_RETRY, RemoteStorage.SLOW_READ_CLIENT)


@pytest.mark.parametrize("how", READS)
def test_a_store_that_has_answered_is_worth_waiting_for(how):
    stores = Stores()
    first = READS[how](stores)
    assert stores.patience == ["little", PATIENT] and stores.store is stores.all[1]
    assert READS[how](stores) == first and len(stores.all) == 2, "once is enough"


def silent(monkeypatch: pytest.MonkeyPatch, *dead: Any) -> list[Any]:
    """Let some stores answer no read; the stores that were asked."""
    asked: list[Any] = []

    def watched(real: Callable[..., Any]) -> Callable[..., Any]:
        def read(store: Any, *arguments: Any, **options: Any) -> Any:
            asked.append(store)
            assert len(asked) < 9, "for ever"
            if any(store is one for one in dead):
                raise GenericError(SILENT)
            return real(store, *arguments, **options)

        return read

    for name in ("get", "get_ranges"):
        monkeypatch.setattr(obstore, name, watched(getattr(obstore, name)))
    return asked


@pytest.mark.parametrize("how", ["read", "ranges", "stream"])
def test_a_store_that_falls_silent_is_asked_once_more_with_all_patience(how, monkeypatch):
    stores = Stores()
    asked = silent(monkeypatch, stores.all[0])
    with pytest.raises(StorageError, match="no answer came in time"):
        READS[how](stores)
    assert asked == stores.all[:1] and len(stores.all) == 1, "one that has never answered is given up on"
    stores.exists("a")
    asked = silent(monkeypatch, stores.all[1])
    for _ in range(2):
        READS[how](stores)
    first, patient, slow = stores.all
    assert stores.patience == ["little", PATIENT, SLOW] and asked == [patient, slow, slow], "and from then on so"
    asked = silent(monkeypatch, slow)
    with pytest.raises(StorageError, match="has answered before, and now sent nothing for 120 seconds"):
        READS[how](stores)
    assert asked == [slow] and first is not slow


def test_a_first_write_meets_a_wrong_address_with_little_patience(monkeypatch):
    stores, looked = Stores(), []
    head = obstore.head
    monkeypatch.setattr(obstore, "head", lambda store, name: looked.append(store) or head(store, name))
    for number in range(2):
        stores.put(f"b{number}", b"1")
    assert looked == stores.all[:1], "the store is asked for something before the first write, and not again"
    written = (RemoteStorage.PATIENT_RETRY, RemoteStorage.WRITE_CLIENT)
    assert stores.patience == ["little", PATIENT, written]
    assert obstore.get(stores.all[2], "b1").bytes().to_bytes() == b"1"


def test_an_upload_that_stalled_goes_up_by_another_connection(monkeypatch):
    stores, put, sent = Stores(), obstore.put, []
    stores.exists("a")

    def stalls(store: Any, *arguments: Any, **options: Any) -> Any:
        if len(stores.all) > 2:
            sent.append(store)
        if len(sent) == 1 and len(stores.all) == 3:
            raise GenericError(SILENT)
        return put(store, *arguments, **options)

    monkeypatch.setattr(obstore, "put", stalls)
    stores.put("b", b"1")
    assert stores.patience[3] == (RemoteStorage.PATIENT_RETRY, RemoteStorage.SLOW_CLIENT)
    assert sent[0] is stores.all[2] and sent[-1] is stores.all[3]


class Clock:
    """The module ``time``: every request takes some seconds, and every pause what it says."""

    def __init__(self, seconds: float):
        self.now, self.seconds = 100.0, seconds
        self.pauses: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.mark.parametrize("deed", ["create", "delete"])
@pytest.mark.parametrize(("seconds", "pauses"), [(0.1, [0.2, 1.0, 3.0]), (2.0, [0.2, 1.0]), (6.0, [])])
def test_what_is_sent_only_once_is_sent_again(deed, seconds, pauses, monkeypatch):
    """After pauses that grow; not where it has taken seconds, for then it was retried, and nobody answered."""
    remote, clock = MemoryBackedStorage(), Clock(seconds)
    monkeypatch.setattr("msldata.storage.remote.time", clock)

    def fails(*_: Any, **__: Any) -> None:
        clock.now += clock.seconds
        raise GenericError(SILENT)

    real, name = (obstore.put, "put") if deed == "create" else (obstore.delete, "delete")
    monkeypatch.setattr(obstore, name, fails)
    with pytest.raises(PassingError):
        remote.create("a", b"1") if deed == "create" else remote.delete("a")
    assert clock.pauses == pauses

    def fails_once(*arguments: Any, **options: Any) -> Any:
        return real(*arguments, **options) if len(clock.pauses) > len(pauses) else fails()

    monkeypatch.setattr(obstore, name, fails_once)
    clock.seconds = 0
    assert remote.create("a", b"1") if deed == "create" else remote.delete("a") is None
    assert len(clock.pauses) == len(pauses) + 1


def test_an_answer_that_was_cut_off_is_no_file(monkeypatch):
    remote, get = MemoryBackedStorage(), obstore.get
    remote.put("a", b"abc")

    def cut(store: Any, name: str) -> Any:
        answer = get(store, name)
        return SimpleNamespace(meta=answer.meta, bytes=lambda: obstore.Bytes(answer.bytes().to_bytes()[:-1]))

    monkeypatch.setattr(obstore, "get", cut)
    with pytest.raises(StorageError, match="has 3 bytes, 2 were received"):
        remote.read("a")


def test_a_store_that_sends_the_rest_of_another_object_is_not_believed(monkeypatch):
    """One that knows no ``If-Match`` sends what somebody has put there meanwhile: the first one's size counts."""

    class Answer:
        def __init__(self, pieces: list[bytes], size: int):
            self.pieces, self.meta = pieces, {"size": size, "e_tag": f"of {size}"}

        def stream(self, *, min_chunk_size: int):
            yield from self.pieces
            if len(self.pieces) == 1:
                raise GenericError(SILENT)

    answers, asked = [Answer([b"a"], 3), Answer([b"B"], 4), Answer([b"C", b"D"], 4)], []
    stores = Stores()
    stores.exists("a")
    monkeypatch.setattr(stores, "_slow", lambda store, *_: store)
    monkeypatch.setattr(obstore, "get", lambda store, name, *, options: asked.append(options) or answers.pop(0))
    with pytest.raises(StorageError, match="has 3 bytes, 4 were received"):
        list(stores.stream("a"))
    assert [options.get("if_match") for options in asked] == [None, "of 3", "of 3"]


@pytest.mark.parametrize("kind", ["local", "remote"])
def test_another_version_of_a_file_is_another_one(kind, tmp_path):
    """What is kept of a file is told by it, also where a second one is as long."""
    storage: Storage = LocalStorage(tmp_path) if kind == "local" else MemoryBackedStorage()
    storage.put("a", b"1")
    (first,), (again,) = storage.list_files(), storage.list_files()
    assert first.version == again.version != ""
    storage.put("a", b"2")
    if kind == "local":  # in the same moment, as its clock has it; a nanosecond later, as the disk's has it
        os.utime(tmp_path / "a", ns=(0, int(first.version) + 1))
    (second,) = storage.list_files()
    assert second == first and second.version != first.version


def test_a_folder_below_has_the_name_that_it_has():
    folder = open_storage("s3://bucket/a").child("50% #1?")
    assert folder.url == "s3://bucket/a/50%25 %231%3F"
    assert open_storage(folder.url).url == folder.url


@pytest.mark.parametrize(("said", "kind"), [("503 Service Unavailable", PassingError), ("409 Conflict", StorageError)])
def test_only_what_may_pass_is_tried_again(said, kind):
    with pytest.raises(StorageError, match=said) as caught, clear_remote_errors("s3://bucket/a"):
        raise GenericError(f"error status: {said}")
    assert type(caught.value) is kind


def test_the_end_of_the_program_waits_for_what_is_under_way_and_lets_nothing_begin():
    calls, ended = _Calls(), []
    ending = threading.Thread(target=lambda: ended.append(calls.end(600)), daemon=True)
    with calls.one():
        assert not calls.end(0), "one is under way"
        with pytest.raises(StorageError, match="the program is ending"), calls.one():
            pass
        ending.start()
    ending.join(60)
    assert ended == [True]
