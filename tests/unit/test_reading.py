"""How samples of remote shards are read: ahead, within their memory, and again where a copy here is damaged."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from msltrain.stream.reading.cache import ShardCache
from msltrain.stream.reading.fetch import CachedFetcher
from msltrain.stream.reading.ranges import RangeFetcher
from tests.remotefolder import remote
from tests.smallshards import photo, write_images

SAMPLES = 0, 0, 1, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 1
"""The shard of each sample of a batch."""
READS = [[0, 1, 3, 4], [2, 6, 7, 11], [5, 8, 9, 10], [12, 15], [13, 14]]
"""Positions in it that are read together, four of a shard at most, in the order in which they are first needed."""


class Later:
    """Readers that make their calls when a test says so."""

    def __init__(self, num_threads: int):
        self.asked: list[list[int]] = []
        self.waiting: list[tuple[Future, Callable[..., Any], tuple[Any, ...]]] = []
        self.at_once = False

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future:
        future: Future = Future()
        self.asked.append(list(arguments[0].members))
        self.waiting.append((future, call, arguments))
        if self.at_once:
            self.run()
        return future

    def run(self) -> None:
        for future, call, arguments in self.waiting:
            future.set_result(call(*arguments))
        self.waiting.clear()

    def close(self) -> None:
        pass


def test_what_is_read_ahead_keeps_to_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Photographs of one size each; there is room for twelve of them, less a byte."""
    same = photo(0)
    write_images(tmp_path, [10, 6], {f"s{number:06d}": same for number in range(16)}, size=(60, 40))
    monkeypatch.setattr("msltrain.stream.reading.ranges.Readers", Later)
    shards, shard_N = remote(tmp_path), np.array(SAMPLES)
    row_N = np.array([SAMPLES[:position].count(shard) for position, shard in enumerate(SAMPLES)])
    rows = shards.rows(shard_N, row_N)[1]
    fetcher = RangeFetcher(shards, 12 * len(same) - 1)
    readers: Any = fetcher._readers
    for _ in range(2):  # what was handed out leaves its room to the next batch
        readers.asked.clear()
        request = fetcher.request(shard_N, rows)
        assert readers.asked == READS[:2], "a third one would be a byte too much"
        readers.run()
        for position in READS[0][:3]:
            assert request.read(position) == same
        assert readers.asked == READS[:2], "a read keeps its memory until all of it was handed out"
        assert request.read(READS[0][3]) == same
        assert readers.asked == READS[:4]
        readers.run()
        readers.at_once = True
        assert request.read(READS[4][1]) == same, "what is waited for comes, though there is no room"
        assert readers.asked == READS
        for position in (*READS[1], *READS[2], *READS[3], READS[4][0]):
            assert request.read(position) == same
        readers.at_once = False
    fetcher.close()


def test_a_damaged_copy_is_not_kept(tmp_path: Path):
    write_images(tmp_path / "data", [8, 5])
    shards, cache = remote(tmp_path / "data"), ShardCache(tmp_path / "cache", 1 << 30)
    info = shards.manifest.shards[0]
    copy, source = cache.folder / f"{info.sha256}.tar", tmp_path / "data" / info.name
    cache.fetch(info, shards.storage, threading.Event())
    shard_N, row_N = np.zeros(8, np.int64), np.arange(8)
    rows = shards.rows(shard_N, row_N)[1]
    before = copy.stat()
    with open(copy, "r+b") as file:
        file.seek(int(rows.offset_N[5]) + 400)
        file.write(b"damage")
    os.utime(copy, ns=(before.st_atime_ns, before.st_mtime_ns))  # the disk did it, and nobody wrote
    for is_there in (False, True):
        fetcher = CachedFetcher(shards, cache, RangeFetcher(shards, 1 << 20), iter([np.array([0])]))
        request = fetcher.request(shard_N, rows)
        whole = source.read_bytes()
        for position in row_N:
            start = int(rows.offset_N[position])
            assert bytes(request.read(position)) == whole[start : start + int(rows.length_N[position])]
        fetcher.close()
        assert copy.exists() == is_there and (not is_there or copy.read_bytes() == whole)
        cache.fetch(info, shards.storage, threading.Event())


def test_of_more_shards_than_are_held_together_some_are_read_at_their_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Every sample comes all the same, and as it is stored; in the next window the cache is used for its own shards."""
    monkeypatch.setattr("msltrain.stream.reading.fetch._MOST_SHARDS", 2)
    write_images(tmp_path / "data", [3, 4, 2, 5, 3])
    shards, cache = remote(tmp_path / "data"), ShardCache(tmp_path / "cache", 1 << 30)
    windows = iter([np.array([3, 0, 2]), np.array([4, 1])])
    fetcher = CachedFetcher(shards, cache, RangeFetcher(shards, 1 << 20), windows)
    for window in ([3, 0, 2], [4, 1]):
        shard_N = np.repeat(window, shards.counts[window])
        rows = shards.rows(shard_N, np.concatenate([np.arange(count) for count in shards.counts[window]]))[1]
        request = fetcher.request(shard_N, rows)
        for position, shard in enumerate(shard_N.tolist()):
            start, length = int(rows.offset_N[position]), int(rows.length_N[position])
            whole = (tmp_path / "data" / shards.manifest.shards[shard].name).read_bytes()
            assert bytes(request.read(position)) == whole[start : start + length]
    fetcher.close()
    held = {
        number for number, info in enumerate(shards.manifest.shards) if (cache.folder / f"{info.sha256}.tar").exists()
    }
    assert held == {3, 0, 4, 1}
