"""Storage against a real S3 server: what a program sees of good and of broken buckets."""

from __future__ import annotations

import time

import pytest

from msldata.errors import StorageError
from msldata.storage import open_storage
from tests.faultproxy import Sometimes


def test_round_trip(s3, tmp_path):
    storage = open_storage("s3://bucket/voc/test")
    staged = tmp_path / "shard.tar"
    content = bytes(range(256)) * 50_000  # 12.8 MB: goes up in several parts
    staged.write_bytes(content)
    storage.put("shard.tar", staged)
    storage.put("dataset.json", b"{}")
    assert [(info.name, info.size) for info in storage.list_files()] == [
        ("dataset.json", 2),
        ("shard.tar", len(content)),
    ]
    assert storage.read_ranges("shard.tar", [10_000_000, 5], [3, 2]) == [content[10_000_000:10_000_003], b"\x05\x06"]
    storage.delete("dataset.json")
    assert not storage.exists("dataset.json")
    assert not staged.exists()


def test_near_ranges_come_in_one_request_and_far_ones_do_not(s3):
    storage = open_storage("s3://bucket/ranges")
    content = bytes(range(256)) * 4000
    storage.put("x.bin", content)
    gets = []
    s3.proxy.choose = lambda method, path: gets.append(path) if method == "GET" else None
    for gap, num_requests in ((4_000, 1), (150_000, 2)):
        gets.clear()
        second = 1_000 + gap
        assert storage.read_ranges("x.bin", [second, 0], [10, 1_000]) == [content[second : second + 10], content[:1000]]
        assert len(gets) == num_requests


def test_names_are_taken_as_they_are(s3):
    """As parts of a URL, %41 is an A, and # and ? end the path: then two folders would be one."""
    storage = open_storage("s3://bucket/odd names, 50% é")
    for name in ("#1", "#2", "a?b", "%41", "50% off", "a+b é"):
        child = storage.child(name)
        child.put("same.txt", name.encode())
        assert child.exists("same.txt") and [info.name for info in child.list_files()] == ["same.txt"]
        assert storage.read(f"{name}/same.txt") == child.read("same.txt") == name.encode()
        assert (s3.root / "bucket" / "odd names, 50% é" / name / "same.txt").is_file()
        assert open_storage(child.url).read("same.txt") == name.encode()
    assert len(storage.list_files()) == 6


def test_missing_object_and_missing_bucket_are_told_apart(s3):
    with pytest.raises(FileNotFoundError, match=r"s3://bucket/nothing/dataset\.json: no such object"):
        open_storage("s3://bucket/nothing").read("dataset.json")
    with pytest.raises(FileNotFoundError, match=r"s3://absent/x/dataset\.json: no such bucket"):
        open_storage("s3://absent/x").read("dataset.json")


def test_wrong_secret_is_said_at_once(s3, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    start = time.monotonic()
    with pytest.raises(StorageError, match="access denied; check the credentials"):
        open_storage("s3://bucket/x").read("dataset.json")
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("fault", ["unavailable", "reset", "cut", "slow"])
def test_passing_faults_are_retried(s3, fault):
    storage = open_storage("s3://bucket/faults")
    content = bytes(range(256)) * 4_000
    storage.put("x.bin", content)
    left = {"GET": 2}

    def twice(method: str, path: str) -> str | None:
        left[method] = left.get(method, 0) - 1
        return fault if left[method] >= 0 else None

    s3.proxy.choose = twice
    assert storage.read("x.bin") == content
    assert left["GET"] < 2, "the fault was never met"


def test_lasting_fault_ends_in_one_sentence(s3):
    storage = open_storage("s3://bucket/faults")
    storage.put("x.bin", b"1")
    s3.proxy.choose = lambda method, path: "unavailable"
    start = time.monotonic()
    with pytest.raises(StorageError, match=r"s3://bucket/faults/x\.bin: ") as caught:
        storage.read("x.bin")
    assert time.monotonic() - start < 10 and "\n" not in str(caught.value)


def test_an_upload_whose_last_answer_is_lost_is_sent_again(s3, tmp_path):
    """The store has the file, answers 500, and does not know the upload any more when asked to complete it again."""
    storage = open_storage("s3://bucket/lost")
    content = bytes(range(256)) * 80_000  # 20 MB
    (tmp_path / "x.bin").write_bytes(content)
    storage.put("first", b"1")
    s3.proxy.choose = Sometimes("lost-answer", 1, method="POST", containing="uploadId=")
    storage.put("x.bin", tmp_path / "x.bin")
    assert s3.proxy.choose.num_faults == 1
    assert storage.read("x.bin") == content and not (tmp_path / "x.bin").exists()


@pytest.mark.parametrize("fault", ["unavailable", "slowdown", "reset", "cut-upload"])
def test_parts_that_fail_are_sent_again(s3, tmp_path, fault):
    storage = open_storage("s3://bucket/parts")
    content = bytes(range(256)) * 80_000
    (tmp_path / "x.bin").write_bytes(content)
    storage.put("first", b"1")
    s3.proxy.choose = Sometimes(fault, 2, method="PUT", containing="partNumber=", after=1)
    storage.put("x.bin", tmp_path / "x.bin")
    assert s3.proxy.choose.num_faults == 2
    assert storage.read("x.bin") == content


@pytest.mark.parametrize("read", ["whole", "ranges"])
def test_bodies_cut_without_end_are_never_taken_for_whole(s3, read):
    storage = open_storage("s3://bucket/cut")
    storage.put("x.bin", bytes(range(256)) * 4_000)
    s3.proxy.choose = Sometimes("cut", None, method="GET")
    with pytest.raises(StorageError, match=r"s3://bucket/cut/x\.bin: ") as caught:
        storage.read("x.bin") if read == "whole" else storage.read_ranges("x.bin", [0], [500_000])
    assert "\n" not in str(caught.value)
