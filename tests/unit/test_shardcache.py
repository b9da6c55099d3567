"""The shard cache: a shard is fetched once, nothing in use is evicted, nothing left behind blocks the next process."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from msldata.contract.manifest import ShardInfo
from msldata.errors import StorageError
from msldata.storage import NoRangesError
from msltrain.stream.reading.cache import NotCached, ShardCache
from tests.remotefolder import RemoteFolder

SIZE = 100_000
REPOSITORY = Path(__file__).resolve().parents[2]
RUNNING = threading.Event()
"""Never set."""


@pytest.fixture
def source(tmp_path) -> RemoteFolder:
    """Five files of 100 kB."""
    (tmp_path / "source").mkdir()
    for number in range(5):
        content = np.random.default_rng(number).integers(0, 256, SIZE, dtype=np.uint8).tobytes()
        (tmp_path / "source" / f"{number}.tar").write_bytes(content)
    return RemoteFolder(tmp_path / "source")


def info(source: RemoteFolder, number: int) -> ShardInfo:
    content = (source.root / f"{number}.tar").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return ShardInfo(name=f"{number}.tar", num_samples=1, num_bytes=len(content), sha256=digest)


def cached(source: RemoteFolder, folder: Path) -> list[int]:
    """Which of the shards are finished in the cache."""
    return [number for number in range(5) if (folder / f"{info(source, number).sha256}.tar").exists()]


def other_process(source: RemoteFolder, folder: Path, code: str) -> subprocess.Popen:
    """A process with ``cache``, ``source`` and ``info``; it has run ``code`` once it has printed a line."""
    program = f"""
        import sys, threading, time
        from pathlib import Path
        from msltrain.stream.reading.cache import ShardCache
        from tests.remotefolder import RemoteFolder
        from tests.unit.test_shardcache import info
        source, cache = RemoteFolder(Path({str(source.root)!r})), ShardCache({str(folder)!r}, 250_000)
    """
    program = textwrap.dedent(program) + textwrap.dedent(code)
    process = subprocess.Popen([sys.executable, "-c", program], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "there\n"
    return process


def kill(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_a_shard_is_fetched_once_however_many_ask(source, tmp_path):
    caches = [ShardCache(tmp_path / "cache", 10**6) for _ in range(8)]
    with ThreadPoolExecutor(8) as workers:
        maps = list(workers.map(lambda cache: cache.fetch(info(source, 0), source, RUNNING), caches))
    assert len(source.reads) == 1
    assert {bytes(mapped) for mapped in maps} == {(source.root / "0.tar").read_bytes()}
    assert sorted(os.listdir(tmp_path / "cache")) == [".lock", f"{info(source, 0).sha256}.tar"]


class _Unnoted:
    """The module ``mmap``, on a disk where mapping a file does not count as an access to it."""

    ACCESS_READ = mmap.ACCESS_READ

    @staticmethod
    def mmap(file: int, length: int, *, access: int) -> mmap.mmap:
        before = os.fstat(file)
        mapped = mmap.mmap(file, length, access=access)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        return mapped


@pytest.mark.parametrize("spoilt", [0, 2])
@pytest.mark.parametrize("reserves", [True, False])
def test_a_shard_of_several_pieces_is_put_together(source, tmp_path, monkeypatch, spoilt, reserves):
    """Begun anew where a piece was wrong, and whole either way; also where a system reserves no room on a disk."""
    if not reserves:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    monkeypatch.setattr("msltrain.stream.reading.cache._PIECE", 30_000)
    cache, source.spoil = ShardCache(tmp_path / "cache", 10**6), spoilt
    mapped = cache.fetch(info(source, 2), source, RUNNING)
    assert bytes(mapped) == (source.root / "2.tar").read_bytes()
    pieces = [("2.tar", start, min(30_000, SIZE - start)) for start in range(0, SIZE, 30_000)]
    assert source.reads == pieces * (2 if spoilt else 1) and len(pieces) == 4


# By name one comes before the other, and so by modification time, which is made of the name; use alone must decide.
@pytest.mark.parametrize(("again", "gone"), [(1, 2), (2, 1)])
@pytest.mark.parametrize("mount", ["relatime", "noatime"])
def test_what_was_used_longest_ago_makes_room_and_what_is_in_use_never_does(
    source, tmp_path, monkeypatch, again, gone, mount
):
    if mount == "noatime":  # the disk notes no use by itself, as disks for training data are often mounted
        monkeypatch.setattr("msltrain.stream.reading.cache.mmap", _Unnoted)
    cache = ShardCache(tmp_path / "cache", 3 * SIZE)
    kept = cache.fetch(info(source, 0), source, RUNNING)
    for number in (1, 2):
        cache.fetch(info(source, number), source, RUNNING)
        time.sleep(0.01)
    assert cache.open(info(source, again)) is not None, f"used again, so later than {gone}"
    cache.fetch(info(source, 3), source, RUNNING)
    assert cached(source, cache.folder) == [0, again, 3]
    mapped = [kept, cache.open(info(source, again)), cache.open(info(source, 3))]
    with pytest.raises(NotCached, match=r"no room beside the shards in use within the limit of 0\.0003 GB"):
        cache.fetch(info(source, 4), source, RUNNING)
    assert cached(source, cache.folder) == [0, again, 3]
    del mapped, kept
    cache.fetch(info(source, 4), source, RUNNING)
    assert cached(source, cache.folder) == [again, 3, 4]


def test_another_process_keeps_what_it_uses_until_it_is_killed(source, tmp_path):
    code = (
        "maps = [cache.fetch(info(source, n), source, threading.Event()) for n in (0, 1)]; print('there', flush=True)"
    )
    process = other_process(source, tmp_path / "cache", f"{code}; time.sleep(60)")
    cache = ShardCache(tmp_path / "cache", 250_000)
    try:
        with pytest.raises(NotCached, match="no room"):
            cache.fetch(info(source, 2), source, RUNNING)
    finally:
        kill(process)
    cache.fetch(info(source, 2), source, RUNNING)
    assert 2 in cached(source, cache.folder)


def test_a_killed_writer_blocks_nobody(source, tmp_path):
    code = """
        source.stall = True
        threading.Thread(target=cache.fetch, args=(info(source, 0), source, threading.Event())).start()
        source.stalled.wait(60)
        print("there", flush=True)
    """
    process = other_process(source, tmp_path / "cache", code)
    cache = ShardCache(tmp_path / "cache", 250_000)
    closing = threading.Event()
    with ThreadPoolExecutor(1) as worker:
        waiting = worker.submit(cache.fetch, info(source, 0), source, closing)
        try:
            time.sleep(0.3)
            assert not waiting.done(), "the other process is at it"
            kill(process)
            assert bytes(waiting.result(timeout=60)) == (source.root / "0.tar").read_bytes()
        finally:  # or a failure would wait for both
            closing.set()
            process.kill()
    assert not list(cache.folder.glob("*.part"))


def test_the_rest_of_a_killed_writer_counts_and_goes_first(source, tmp_path):
    cache = ShardCache(tmp_path / "cache", 2 * SIZE)
    cache.fetch(info(source, 0), source, RUNNING)
    (cache.folder / f"{info(source, 1).sha256}.tar.part").write_bytes(bytes(SIZE))
    cache.fetch(info(source, 2), source, RUNNING)
    assert cached(source, cache.folder) == [0, 2] and not list(cache.folder.glob("*.part"))


def test_a_writer_that_makes_no_progress_is_not_waited_for_for_ever(source, tmp_path, monkeypatch):
    monkeypatch.setattr("msltrain.stream.reading.cache._PATIENCE", 0.3)
    cache, closing = ShardCache(tmp_path / "cache", 10**6), threading.Event()
    with ThreadPoolExecutor(1) as worker, source.stalling():
        stalled = worker.submit(cache.fetch, info(source, 0), source, closing)
        assert source.stalled.wait(60), "its part exists before it is locked; a read comes after both"
        with pytest.raises(NotCached, match=r"another process is fetching 0\.tar and makes no progress"):
            ShardCache(cache.folder, 10**6).fetch(info(source, 0), RemoteFolder(source.root), RUNNING)
        source.stall = False
        assert len(stalled.result(timeout=60)) == SIZE


def test_a_shard_that_is_whole_but_not_yet_renamed_is_waited_for(source, tmp_path):
    cache = ShardCache(tmp_path / "cache", 10**6)
    part = cache.folder / f"{info(source, 0).sha256}.tar.part"
    with ThreadPoolExecutor(2) as workers, source.stalling():
        first = workers.submit(cache.fetch, info(source, 0), source, RUNNING)
        assert source.stalled.wait(60)
        with open(cache.folder / ".lock", "wb") as lock:  # as while another process makes room
            fcntl.flock(lock, fcntl.LOCK_EX)
            source.stall = False
            until = time.monotonic() + 60
            while time.time() - part.stat().st_mtime < 3600:  # until it bears the mark of a finished shard
                assert time.monotonic() < until
                time.sleep(0.01)
            second = workers.submit(ShardCache.fetch, cache, info(source, 0), source, RUNNING)
            time.sleep(0.3)
            assert not first.done() and not second.done()
        assert len(first.result(timeout=60)) == len(second.result(timeout=60)) == SIZE
    assert len(source.reads) == 1


def test_closing_gives_up_waiting_and_fetching(source, tmp_path):
    cache, closing = ShardCache(tmp_path / "cache", 10**6), threading.Event()
    with ThreadPoolExecutor(2) as workers, source.stalling():
        both = [workers.submit(cache.fetch, info(source, 0), source, closing) for _ in range(2)]
        time.sleep(0.2)
        closing.set()
        source.stall = False
        (first, second) = (future.exception(timeout=60) for future in both)
    assert CancelledError in {type(first), type(second)}
    assert not list(cache.folder.glob("*.part"))


def test_wrong_bytes_are_fetched_again_once(source, tmp_path):
    cache = ShardCache(tmp_path / "cache", 10**6)
    source.spoil = 1
    assert bytes(cache.fetch(info(source, 0), source, RUNNING)) == (source.root / "0.tar").read_bytes()
    source.spoil = 2
    with pytest.raises(NotCached, match=r"1\.tar: does not match the digest in the manifest"):
        cache.fetch(info(source, 1), source, RUNNING)
    assert cached(source, cache.folder) == [0] and not list(cache.folder.glob("*.part"))


def test_a_full_disk_is_said(source, tmp_path, monkeypatch):
    def full(file: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    cache = ShardCache(tmp_path / "cache", 10**6)
    with pytest.raises(NotCached, match="cache: the disk is full"):
        cache.fetch(info(source, 0), source, RUNNING)
    assert os.listdir(cache.folder) == [".lock"]


def test_a_shard_of_another_size_is_not_used(source, tmp_path):
    cache = ShardCache(tmp_path / "cache", 10**6)
    cache.fetch(info(source, 0), source, RUNNING)
    with open(cache.folder / f"{info(source, 0).sha256}.tar", "ab") as file:
        file.write(b"x")
    assert cache.open(info(source, 0)) is None
    assert bytes(cache.fetch(info(source, 0), source, RUNNING)) == (source.root / "0.tar").read_bytes()


def test_impossible_folders_and_limits_are_said(source, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"file \(stream\.cache\)"):
        ShardCache(tmp_path / "file", 10**6)
    with pytest.raises(NotCached, match="larger than the limit"):
        ShardCache(tmp_path / "cache", SIZE - 1).fetch(info(source, 0), source, RUNNING)
    (source.root / "4.tar").rename(source.root / "5.tar")
    gone = ShardInfo(name="4.tar", num_samples=1, num_bytes=SIZE, sha256="0" * 64)
    with pytest.raises(FileNotFoundError, match=r"source/4\.tar"):
        ShardCache(tmp_path / "cache", 10**6).fetch(gone, source, RUNNING)


def test_a_shard_that_was_written_to_is_hashed_again(source, tmp_path):
    """A restart finds the cache as somebody left it: the right size is not enough."""
    shards = [info(source, number) for number in range(2)]
    cache = ShardCache(tmp_path / "cache", 10**6)
    for shard in shards:
        cache.fetch(shard, source, RUNNING)
    path = tmp_path / "cache" / f"{shards[0].sha256}.tar"
    data = bytearray(path.read_bytes())
    data[SIZE // 2] ^= 1
    path.write_bytes(data)
    again = ShardCache(tmp_path / "cache", 10**6)
    assert again.open(shards[0]) is None and cached(source, tmp_path / "cache") == [1]
    assert again.open(shards[1]) is not None
    assert bytes(again.fetch(shards[0], source, RUNNING)) == (source.root / "0.tar").read_bytes()


@pytest.mark.parametrize("marked", [True, False])
def test_an_untouched_shard_is_hashed_once_at_most(source, tmp_path, monkeypatch, marked):
    """One that was cached before there were marks gets its own."""
    shard = info(source, 0)
    ShardCache(tmp_path / "cache", 10**6).fetch(shard, source, RUNNING)
    if not marked:
        os.utime(tmp_path / "cache" / f"{shard.sha256}.tar")
        assert ShardCache(tmp_path / "cache", 10**6).open(shard) is not None
    monkeypatch.setattr("hashlib.file_digest", lambda *_: pytest.fail("hashed"))
    assert ShardCache(tmp_path / "cache", 10**6).open(shard) is not None


def path_of(cache: ShardCache, shard: ShardInfo, suffix: str = "") -> Path:
    return cache.folder / f"{shard.sha256}.tar{suffix}"


def test_a_shard_that_is_evicted_while_it_is_opened_is_not_used(source, tmp_path, monkeypatch):
    """Its map would be of a file that counts no longer, and that nobody else sees."""
    cache, shard, flock = ShardCache(tmp_path / "cache", 10**6), info(source, 0), fcntl.flock
    cache.fetch(shard, source, RUNNING)

    def evicted(file: int, how: int) -> None:
        path_of(cache, shard).unlink(missing_ok=True)
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", evicted)
    assert cache.open(shard) is None


def test_a_shard_that_is_written_to_twice_is_hashed_twice(source, tmp_path):
    """By a process that has hashed it before; what is not right is gone at once."""
    cache, shard = ShardCache(tmp_path / "cache", 10**6), info(source, 0)
    cache.fetch(shard, source, RUNNING)
    os.utime(path_of(cache, shard), ns=(1, 1))
    assert cache.open(shard) is not None
    with open(path_of(cache, shard), "r+b") as file:
        file.write(b"damage")
    os.utime(path_of(cache, shard), ns=(2, 2))
    assert cache.open(shard) is None and not path_of(cache, shard).exists()
    path_of(cache, shard).write_bytes(b"short")
    assert cache.open(shard) is None and not path_of(cache, shard).exists()


def test_a_shard_that_another_process_has_just_finished_is_not_fetched_again(source, tmp_path, monkeypatch):
    cache, shard = ShardCache(tmp_path / "cache", 10**6), info(source, 0)
    cache.fetch(shard, source, RUNNING)
    source.reads.clear()
    looks, look = [], cache.open
    monkeypatch.setattr(cache, "open", lambda shard: looks.append(shard) or (look(shard) if len(looks) > 1 else None))
    assert len(cache.fetch(shard, source, RUNNING)) == SIZE
    assert not source.reads and len(looks) == 2 and not list(cache.folder.glob("*.part"))


def test_a_part_that_is_no_longer_the_part_is_nobodys(source, tmp_path, monkeypatch):
    """Between its opening and its lock the one before has finished, and a third one begun: it keeps its own."""
    cache, shard, flock = ShardCache(tmp_path / "cache", 10**6), info(source, 0), fcntl.flock
    part = path_of(cache, shard, ".part")

    def replaced(file: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        part.unlink()
        part.write_bytes(b"of a third one")
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", replaced)
    with cache._claimed(shard) as file:
        assert file is None
    assert part.read_bytes() == b"of a third one"
    with cache._claimed(shard) as file:
        assert file is not None
        part.unlink()
        part.write_bytes(b"of another one")
    assert part.read_bytes() == b"of another one"
    with cache._claimed(shard) as file:
        assert file is not None
    assert not part.exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_used_up_quota_is_a_full_disk(source, tmp_path, monkeypatch, number):
    def full(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(NotCached, match="cache: the disk is full"):
        ShardCache(tmp_path / "cache", 10**6).fetch(info(source, 0), source, RUNNING)


def test_a_shard_is_on_disk_and_marked_before_it_gets_its_name(source, tmp_path, monkeypatch):
    deeds: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: deeds.append("fsync") or fsync(file))
    monkeypatch.setattr(os, "replace", lambda *paths: deeds.append("replace") or replace(*paths))
    cache, shard = ShardCache(tmp_path / "cache", 10**6), info(source, 0)
    cache.fetch(shard, source, RUNNING)
    assert deeds == ["fsync", "replace"]
    seconds, rest = divmod(path_of(cache, shard).stat().st_mtime_ns, 10**9)
    assert rest == 0 and seconds == int(shard.sha256[:7], 16), "whole seconds, made of the digest"


def test_a_disk_that_takes_little_at_once_gets_all(source, tmp_path, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, start: pwrite(file, data[:30_001], start))
    mapped = ShardCache(tmp_path / "cache", 10**6).fetch(info(source, 0), source, RUNNING)
    assert bytes(mapped) == (source.root / "0.tar").read_bytes()


def test_the_rest_of_a_killed_writer_of_the_same_shard_takes_no_room(source, tmp_path):
    cache, shard = ShardCache(tmp_path / "cache", 2 * SIZE), info(source, 0)
    kept = cache.fetch(info(source, 1), source, RUNNING)
    path_of(cache, shard, ".part").write_bytes(bytes(SIZE))
    assert bytes(cache.fetch(shard, source, RUNNING)) == (source.root / "0.tar").read_bytes() and len(kept) == SIZE


def test_a_source_that_never_ends_is_left(source, tmp_path, monkeypatch):
    """A server of whole files alone: what is longer than the shard is another file."""

    def endless(name: str):
        for number in range(9):
            assert number < 3, "it is read on and on"
            yield bytes(SIZE // 2)

    def no_ranges(*_: object) -> None:
        raise NoRangesError("whole files alone")

    monkeypatch.setattr(source, "read_ranges", no_ranges)
    monkeypatch.setattr(source, "stream", endless)
    with pytest.raises(NotCached, match="does not match the digest in the manifest"):
        ShardCache(tmp_path / "cache", 10**6).fetch(info(source, 0), source, RUNNING)


def test_a_cache_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ShardCache("~/cache", 1).folder == tmp_path / "cache"
