"""Storage: the same behaviour on a local folder and on an object store, and one clear sentence for each failure."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.exceptions import GenericError

from msldata.errors import BadInputError, StorageError
from msldata.storage import PART_SUFFIX, LocalStorage, RemoteStorage, Storage, one_or_many, open_storage
from msldata.storage.remoteerrors import PassingError


class MemoryBackedStorage(RemoteStorage):
    """The remote code path over obstore's in-memory store: everything but the network."""

    def __init__(self):
        from obstore.store import MemoryStore

        self.url = "memory://bucket"
        super().__init__(self.url, MemoryStore())


@pytest.fixture(params=["local", "remote"])
def storage(request, tmp_path) -> Storage:
    return LocalStorage(tmp_path / "folder") if request.param == "local" else MemoryBackedStorage()


def test_put_read_list_delete(storage):
    assert storage.list_files() == []
    storage.put("b/two.bin", b"22")
    storage.put("one.bin", b"1")
    assert [(info.name, info.size) for info in storage.list_files()] == [("b/two.bin", 2), ("one.bin", 1)]
    assert storage.read("b/two.bin") == b"22"
    assert storage.exists("one.bin") and not storage.exists("three.bin")
    storage.put("one.bin", b"replaced")
    assert storage.read("one.bin") == b"replaced"
    storage.delete("one.bin")
    storage.delete("one.bin")
    assert not storage.exists("one.bin")


def test_a_deletion_whose_answer_was_lost_has_been_done(monkeypatch):
    """Asked again, some stores say that there is no such object; others say nothing."""
    from obstore.exceptions import NotFoundError

    remote, delete, answers = MemoryBackedStorage(), obstore.delete, []
    remote.put("a", b"1")

    def lost(store, name):
        delete(store, name)
        answers.append(name)
        raise PassingError("the store cannot be reached") if len(answers) == 1 else NotFoundError("404 Not Found")

    monkeypatch.setattr(obstore, "delete", lost)
    monkeypatch.setattr("msldata.storage.remote._PAUSES", (0,))
    remote.delete("a")
    assert answers == ["a", "a"] and not remote.exists("a")
    remote.delete("b")  # which was never there


def test_put_takes_a_file_over(storage, tmp_path):
    staged = tmp_path / "staged.tar"
    staged.write_bytes(b"x" * 1000)
    storage.put("shard.tar", staged)
    assert storage.read("shard.tar") == b"x" * 1000
    assert not staged.exists()


def test_ranges_come_in_the_order_asked(storage):
    storage.put("digits", b"0123456789")
    assert storage.read_ranges("digits", [7, 0, 3], [2, 1, 3]) == [b"78", b"0", b"345"]


@pytest.mark.parametrize("most", [1000, 1 << 20])
def test_a_file_that_one_call_does_not_read_is_read_to_its_end(tmp_path, monkeypatch, most):
    """Linux reads at most 2 GiB at once."""
    data = os.urandom(3_000_001)
    (tmp_path / "large.tar").write_bytes(data)
    read = os.read
    monkeypatch.setattr(os, "read", lambda descriptor, count: read(descriptor, min(count, most)))
    assert LocalStorage(tmp_path).read("large.tar") == data


def test_a_range_beyond_the_end_is_an_error(storage):
    storage.put("digits", b"0123456789")
    with pytest.raises(StorageError, match="digits"):
        storage.read_ranges("digits", [8], [5])


def test_missing_file_is_named(storage):
    with pytest.raises(FileNotFoundError, match=r"nothing\.json: no such"):
        storage.read("nothing.json")


def test_failed_put_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    storage = LocalStorage(tmp_path)
    storage.put("dataset.json", b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"dataset\.json: the disk is full"):
        storage.put("dataset.json", b"new")
    assert storage.read("dataset.json") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["dataset.json"]


class Patient(MemoryBackedStorage):
    """As if made from its address: stores of other patience can be connected, and are noted."""

    def __init__(self):
        super().__init__()
        self._is_given = False
        self.connected: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def _connect(self, retry, client):
        self.connected.append((retry, client))
        return self.store


def failing(monkeypatch: pytest.MonkeyPatch, *failures: str) -> list[bytes | Path]:
    """Let the first uploads fail with these words of the store; what was sent each time."""
    real, left, sent = obstore.put, list(failures), []

    def put(store, name, data, **options):
        sent.append(data)
        if left:
            raise GenericError(left.pop(0))
        return real(store, name, data, **options)

    monkeypatch.setattr(obstore, "put", put)
    return sent


def test_an_upload_that_stalled_is_sent_again_with_more_patience(monkeypatch, tmp_path):
    remote, file = Patient(), tmp_path / "staged.tar"
    file.write_bytes(b"x" * 100)
    sent = failing(monkeypatch, "kind: Timeout")
    remote.put("shard.tar", file)
    assert remote.read("shard.tar") == b"x" * 100 and not file.exists()
    assert sent == [file, file]
    assert remote.connected == [(remote.PATIENT_RETRY, remote.SLOW_CLIENT)]
    remote.put("other", b"1")
    assert remote.read("other") == b"1" and len(sent) == 3 and len(remote.connected) == 1


def test_an_upload_whose_last_answer_was_lost_is_sent_again(monkeypatch):
    """The store has put it together and knows it no longer: nothing is wrong with the connection."""
    remote = Patient()
    sent = failing(monkeypatch, "<Code>NoSuchUpload</Code>")
    remote.put("a", b"1")
    assert remote.read("a") == b"1" and len(sent) == 2 and not remote.connected


@pytest.mark.parametrize(
    ("failures", "said", "times"),
    [
        (("kind: Timeout", "kind: Timeout"), "no answer came in time", 2),
        (("NoSuchUpload", "NoSuchUpload"), "the store no longer knows the upload", 2),
        (("kind: Timeout", "AccessDenied"), "access denied", 2),
        (("AccessDenied",), "access denied", 1),
    ],
)
def test_an_upload_that_cannot_succeed_keeps_its_file(monkeypatch, tmp_path, failures, said, times):
    remote, file = Patient(), tmp_path / "staged.tar"
    file.write_bytes(b"x")
    sent = failing(monkeypatch, *failures)
    with pytest.raises(StorageError, match=rf"^memory://bucket/shard\.tar: .*{said}"):
        remote.put("shard.tar", file)
    assert len(sent) == times and file.exists() and not remote.exists("shard.tar")


@pytest.mark.parametrize("tag", ["v1", None])
def test_a_download_that_fell_silent_goes_on_in_the_same_object(monkeypatch, tag):
    """Where it was; and only if nobody has written another one there meanwhile."""
    data, asked = bytes(range(10)), []

    class Silent:
        def __init__(self, start: int, pieces: list[int], meta: dict[str, Any]):
            self.start, self.pieces, self.meta = start, pieces, meta

        def stream(self, *, min_chunk_size: int):
            for stop in self.pieces:
                yield data[self.start : stop]
                self.start = stop
            if self.start < len(data):
                raise GenericError("kind: Timeout")

    def get(store, name, *, options):
        asked.append((store, options))
        return Silent(options.get("range", {}).get("offset", 0), [3, 4] if len(asked) == 1 else [10], meta)

    remote, meta = Patient(), {"size": len(data), "e_tag": tag}
    first = remote.store
    monkeypatch.setattr(obstore, "get", get)
    monkeypatch.setattr(remote, "_connect", lambda *how: how)
    assert b"".join(remote.stream("a")) == data
    slow = (remote.PATIENT_RETRY, remote.SLOW_READ_CLIENT)
    assert asked == [(first, {}), (slow, {"range": {"offset": 4}} | ({"if_match": "v1"} if tag else {}))]
    meta["size"] = 11
    with pytest.raises(StorageError, match="has 11 bytes, 10 were received"):
        list(remote.stream("a"))


def test_unfinished_writes_are_not_listed(tmp_path):
    (tmp_path / f"shard.tar{PART_SUFFIX}").write_bytes(b"half")
    assert LocalStorage(tmp_path).list_files() == []


@pytest.mark.parametrize("location", ["pipe:cat /etc/passwd", "ftp://host/x", "s3:bucket"])
def test_unknown_locations_are_refused(location):
    with pytest.raises(StorageError, match="unknown kind of location"):
        open_storage(location)


def test_locations():
    assert isinstance(open_storage("some/folder"), LocalStorage)
    assert isinstance(open_storage("s3://bucket/prefix"), RemoteStorage)


def test_remote_storage_travels_to_workers():
    storage = pickle.loads(pickle.dumps(open_storage("s3://bucket/prefix")))
    assert storage.url == "s3://bucket/prefix"


def test_unreachable_store_is_one_sentence_in_seconds(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with pytest.raises(StorageError, match=r"s3://bucket/x/dataset\.json: ") as caught:
        open_storage("s3://bucket/x").read("dataset.json")
    assert "\n" not in str(caught.value)


def test_bad_input_error_survives_a_process_boundary():
    error = pickle.loads(pickle.dumps(BadInputError("a.jpg", "not an image")))
    assert str(error).startswith("a.jpg: not an image; ") and error.reason == "not an image"


def test_a_location_is_a_path_an_address_or_what_is_open(tmp_path):
    opened = open_storage(tmp_path)
    assert open_storage(opened) is opened
    assert open_storage(str(tmp_path)).url == opened.url
    assert open_storage("s3://bucket/a").url == "s3://bucket/a"
    assert open_storage(f"file://{tmp_path}").path() == tmp_path
    for address in ("s3://bucket/a", "gs://bucket", "https://host/a"):
        with pytest.raises(StorageError, match=f"give it as text: '{address}'"):
            open_storage(Path(address))
    assert one_or_many("shards/masks/high") == ("shards/masks/high",)
    assert one_or_many(tmp_path) == (tmp_path,)
    assert one_or_many([tmp_path, "s3://b/c"]) == (tmp_path, "s3://b/c") and one_or_many(()) == ()


@pytest.mark.parametrize("scheme", ["s3", "gs", "az", "https"])
def test_an_address_that_would_lose_its_end_is_refused(scheme):
    """``s3://bucket/run#1`` and ``s3://bucket/run#2`` were both ``s3://bucket/run``."""
    for address in (f"{scheme}://bucket/run#1", f"{scheme}://bucket/a?b/run"):
        with pytest.raises(StorageError, match=r"does not name a folder; .* write %3F for \? and %23 for #"):
            open_storage(address)


def test_a_file_that_no_memory_holds_is_not_read(tmp_path):
    """A list of classes may be a sparse file by mistake, or by malice: 20 GB that take no room on the disk."""
    (tmp_path / "classes.txt").touch()
    os.truncate(tmp_path / "classes.txt", os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with pytest.raises(StorageError, match=r"classes\.txt: \d+ billion bytes, more than half of this machine's memory"):
        LocalStorage(tmp_path).read("classes.txt")


@pytest.mark.parametrize(("place", "kind"), [("datasets/me/birds@v2/test", "dataset"), ("me/birds@v2/test", "model")])
def test_of_a_repository_files_are_files_and_folders_are_none(monkeypatch, place, kind):
    """What is asked for is below the place's own folder, of its revision."""
    from huggingface_hub.hf_api import RepoFile, RepoFolder

    files = {f"test/{name}": size for name, size in (("b.tar", 7), ("a.tar", 5), ("test/c.tar", 9))}
    entries = [RepoFolder(path="test/test", oid="1")]
    entries += [RepoFile(path=path, size=size, oid="2") for path, size in files.items()]

    class Api:
        def get_paths_info(self, repo, paths, *, revision, repo_type):
            assert (repo, revision, repo_type) == ("me/birds", "v2", kind)
            return [entry for entry in entries if entry.path in paths]

        def list_repo_tree(self, repo, folder, *, recursive, revision, repo_type):
            assert (repo, folder, recursive, revision, repo_type) == ("me/birds", "test", True, "v2", kind)
            return entries

    monkeypatch.setattr("msldata.storage.hub.hub_api", Api)
    hub = open_storage(f"hf://{place}")
    assert [hub.exists(name) for name in ("a.tar", "test", "test/c.tar", "c.tar")] == [True, False, True, False]
    assert [(info.name, info.size) for info in hub.list_files()] == [("a.tar", 5), ("b.tar", 7), ("test/c.tar", 9)]
