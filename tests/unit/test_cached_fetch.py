"""Shards that are fetched ahead: who waits for one, who does not, when one is tried again, and what is let go."""

from __future__ import annotations

import logging
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from msltrain.stream.config import StreamConfig
from msltrain.stream.reading.cache import DamagedShard, NotCached, ShardCache
from msltrain.stream.reading.fetch import CachedFetcher, open_fetcher
from msltrain.stream.reading.ranges import RangeFetcher
from msltrain.stream.reading.request import note_once, noted
from msltrain.stream.samples.holdout import _Part
from msltrain.stream.samples.shardset import ShardSet, open_shard_set
from tests.remotefolder import remote
from tests.smallshards import photo, write_images
from tests.unit.test_reading import Later

COUNTS = [3, 4, 2]


class Held:
    """Readers that fetch a shard when a test says so."""

    def __init__(self, num_threads: int):
        self.asked: list[int] = []
        self.waiting: list[tuple[Future, Callable[..., Any], int]] = []

    def submit(self, call: Callable[..., Any], shard: int) -> Future:
        self.asked.append(shard)
        self.waiting.append((Future(), call, shard))
        return self.waiting[-1][0]

    def run(self) -> None:
        for future, call, shard in self.waiting:
            try:
                future.set_result(call(shard))
            except Exception as error:
                future.set_exception(error)
        self.waiting.clear()

    def close(self) -> None:
        pass


class Fetching:
    """A dataset of three shards behind a cache, and what it takes to ask for its samples."""

    def __init__(self, folder: Path, windows: list[list[int]], limit: int = 1 << 30):
        write_images(folder / "data", COUNTS)
        self.shards, self.cache = remote(folder / "data"), ShardCache(folder / "cache", limit)
        self.ranges = RangeFetcher(self.shards, 1 << 20)
        self.fetcher = CachedFetcher(self.shards, self.cache, self.ranges, iter(map(np.array, windows)))
        self.readers: Any = self.fetcher._readers

    def request(self, shard: int) -> tuple[Any, list[bytes]]:
        """A request for all samples of a shard, and their bytes."""
        info, count = self.shards.manifest.shards[shard], COUNTS[shard]
        rows = self.shards.rows(np.full(count, shard), np.arange(count))[1]
        whole = (self.shards.storage.root / info.name).read_bytes()
        places = zip(rows.offset_N.tolist(), rows.length_N.tolist())
        return self.fetcher.request(np.full(count, shard), rows), [whole[at : at + length] for at, length in places]

    def reads(self) -> set[str]:
        """What was read of tars since the last call: ``whole`` pieces, or ``samples``."""
        sizes = {info.name: info.num_bytes for info in self.shards.manifest.shards}
        found = {"whole" if length == sizes[name] else "samples" for name, _, length in self.shards.storage.reads}
        self.shards.storage.reads.clear()
        return found

    def is_read(self, shard: int) -> bool:
        request, expected = self.request(shard)
        return [bytes(request.read(position)) for position in range(len(expected))] == expected


@pytest.fixture
def held(monkeypatch) -> None:
    monkeypatch.setattr("msltrain.stream.reading.fetch.Readers", Held)


def test_in_the_first_window_nobody_waits_and_later_everybody_does(held, tmp_path):
    fetching = Fetching(tmp_path, [[0], [1], [2]])
    assert fetching.readers.asked == [0, 1] and fetching.is_read(0) and fetching.reads() == {"samples"}
    request, expected = fetching.request(1)
    assert fetching.readers.asked == [0, 1, 2], "the window after this one is fetched from its first batch on"
    fetching.readers.run()
    assert [bytes(request.read(position)) for position in range(4)] == expected
    assert fetching.reads() == {"whole"}
    assert fetching.is_read(2) and fetching.reads() == set()
    fetching.fetcher.close()


def test_what_waited_in_vain_is_read_by_itself(held, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise NotCached("no room")

    fetching = Fetching(tmp_path, [[0], [1]])
    request, expected = fetching.request(1)
    monkeypatch.setattr(fetching.cache, "fetch", full)
    fetching.readers.run()
    assert [bytes(request.read(position)) for position in (3, 1, 2, 0)] == [expected[n] for n in (3, 1, 2, 0)]
    assert fetching.reads() == {"samples"}
    fetching.fetcher.close()


@pytest.mark.parametrize("error", [NotCached, DamagedShard])
def test_a_shard_without_room_is_tried_again_every_few_seconds_and_a_damaged_one_is_not(
    held, tmp_path, monkeypatch, error
):
    def fails(*_: object) -> None:
        raise error("here")

    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr("msltrain.stream.reading.fetch.time", SimpleNamespace(monotonic=lambda: clock.now))
    fetching = Fetching(tmp_path, [[0], [1]])
    fetch = fetching.cache.fetch
    monkeypatch.setattr(fetching.cache, "fetch", fails)
    for begun in (100.0, 106.0):
        fetching.readers.run()
        asked = len(fetching.readers.asked)
        for later in (0.0, 4.9):
            clock.now = begun + later
            assert fetching.is_read(0) and len(fetching.readers.asked) == asked
        clock.now = begun + 6.0
        assert fetching.is_read(0) and fetching.is_read(0)
        assert len(fetching.readers.asked) - asked == (error is NotCached), "once, and not while that is under way"
    monkeypatch.setattr(fetching.cache, "fetch", fetch)
    fetching.readers.run()
    fetching.reads()
    assert fetching.is_read(0) and fetching.reads() == (set() if error is NotCached else {"samples"})
    fetching.fetcher.close()


def test_what_is_here_is_held_before_anything_is_fetched(held, tmp_path, monkeypatch):
    """Or it could be evicted for the others."""
    deeds: list[str] = []
    opened = ShardCache.open
    monkeypatch.setattr(ShardCache, "open", lambda cache, shard: deeds.append("open") or opened(cache, shard))
    submit = Held.submit
    monkeypatch.setattr(Held, "submit", lambda *call: deeds.append("fetch") or submit(*call))
    Fetching(tmp_path, [[2, 0, 1]]).fetcher.close()
    assert deeds == 3 * ["open"] + 3 * ["fetch"]


def test_a_fetcher_that_is_closed_holds_nothing(held, tmp_path, monkeypatch):
    monkeypatch.setattr("msltrain.stream.reading.ranges.Readers", Later)
    fetching = Fetching(tmp_path, [[0], [1]])
    request, _ = fetching.request(0)
    fetching.readers.run()
    fetching.fetcher.close()
    monkeypatch.setattr("msltrain.stream.reading.ranges.wait", lambda *_, **__: pytest.fail("it waits"))
    with pytest.raises(CancelledError):
        request.read(0)
    del request  # which keeps the maps that it is read from
    info = fetching.shards.manifest.shards
    small = ShardCache(fetching.cache.folder, info[2].num_bytes)
    assert small.fetch(info[2], fetching.shards.storage, threading.Event()) is not None
    assert [path.stem for path in fetching.cache.folder.glob("*.tar")] == [info[2].sha256]


def test_a_cache_has_the_room_that_is_asked_for(tmp_path):
    write_images(tmp_path / "data", [2])
    config = StreamConfig(cache=str(tmp_path / "cache"), cache_limit_gb=0.5)
    fetcher = open_fetcher(remote(tmp_path / "data"), config, iter([]))
    assert isinstance(fetcher, CachedFetcher) and fetcher._cache.limit_bytes == 500_000_000
    fetcher.close()


def test_a_note_is_shown_once(caplog):
    with caplog.at_level(logging.WARNING, "msltrain"):
        for _ in range(2):
            note_once("something that costs speed")
    noted.discard("something that costs speed")
    assert caplog.messages == ["something that costs speed"]


def ranged(folder: Path, monkeypatch: pytest.MonkeyPatch, memory: int, readers: Any = Later) -> tuple[Any, Any, bytes]:
    """A fetcher of eight samples of one size, a request for them, and their bytes."""
    same = photo(0)
    write_images(folder, [8], {f"s{number:06d}": same for number in range(8)}, size=(60, 40))
    monkeypatch.setattr("msltrain.stream.reading.ranges.Readers", readers)
    shards = remote(folder)
    fetcher = RangeFetcher(shards, memory)
    return fetcher, fetcher.request(np.zeros(8, np.int64), shards.rows(np.zeros(8, np.int64), np.arange(8))[1]), same


def test_reads_are_combined_up_to_a_size(tmp_path, monkeypatch):
    monkeypatch.setattr("msltrain.stream.reading.ranges._LARGEST_READ", 3 * len(photo(0)))
    fetcher, _, _ = ranged(tmp_path, monkeypatch, 1 << 20)
    assert fetcher._readers.asked == [[0, 1, 2], [3, 4, 5], [6, 7]]


def test_a_read_that_is_too_large_for_the_memory_begins_where_nothing_is_held(tmp_path, monkeypatch):
    fetcher, _, _ = ranged(tmp_path, monkeypatch, 1)
    assert fetcher._readers.asked == [[0, 1, 2, 3]]


def test_what_was_handed_out_is_held_no_longer(tmp_path, monkeypatch):
    fetcher, request, same = ranged(tmp_path, monkeypatch, 1 << 20)
    fetcher._readers.run()
    assert all(request.read(position) == same for position in range(8))
    assert fetcher._shards.storage.held == 0, "though the request lives"


def test_nobody_waits_for_a_fetcher_that_is_closed(tmp_path, monkeypatch):
    fetcher, request, _ = ranged(tmp_path, monkeypatch, 1 << 20)
    monkeypatch.setattr("msltrain.stream.reading.ranges.wait", lambda *_, **__: pytest.fail("it waits"))
    fetcher.close()
    with pytest.raises(CancelledError):
        request.read(0)


def test_a_part_of_a_dataset_is_the_same_part_in_another_process(tmp_path):
    write_images(tmp_path, COUNTS)
    whole = open_shard_set(tmp_path)
    part: ShardSet = _Part(whole, np.array([0, 1, 1]), np.array([2, 0, 3]))
    there = pickle.loads(pickle.dumps(part))
    for shards in (part, there):
        index_N, rows = shards.rows(np.array([1, 0, 1]), np.array([1, 0, 0]))
        assert index_N.tolist() == [6, 2, 3] and rows.key_N.tolist() == ["s000006", "s000002", "s000003"]
