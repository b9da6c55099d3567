"""Remote shards: the same batches from disk, cache and ranged reads, within the memory and the disk they may take."""

from __future__ import annotations

import errno
import io
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msltrain.stream.config import StreamConfig
from msltrain.stream.errors import SampleError
from msltrain.stream.loader import Loader
from msltrain.stream.order.plan import EpochPlan
from msltrain.stream.reading.ranges import RangeFetcher
from msltrain.stream.reading.request import noted
from msltrain.stream.samples.shardset import ShardSet, open_shard_set
from tests.remotefolder import remote
from tests.smallshards import photo, write_images

COUNTS = [40, 7, 61, 33, 1, 61]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """203 samples in 6 uneven shards; three windows of shards."""
    path = tmp_path_factory.mktemp("shards")
    write_images(path, COUNTS)
    return path


@pytest.fixture(autouse=True)
def notes(caplog):
    noted.clear()
    caplog.set_level(logging.WARNING, "msltrain")
    return caplog


def make(shards: ShardSet, *, training: bool = True, rank: int = 0, world_size: int = 1, **changes) -> Loader:
    config = StreamConfig(**{"image_size": 24, "batch_size": 8, "window": 64, "num_threads": 2, **changes})
    return Loader(shards, config, device="cpu", training=training, rank=rank, world_size=world_size)


def epochs(loader: Loader, num_epochs: int = 1) -> list[list]:
    """Everything that the batches of some epochs hold."""
    with loader:
        return [
            [
                (b.keys, b.image_BCHW.numpy().tobytes(), b.target_BK.tolist(), b.ignore_BK.tolist(), b.index_B.tolist())
                for b in loader
            ]
            for _ in range(num_epochs)
        ]


def tar_reads(shards: ShardSet) -> list[tuple[str, int, int]]:
    return shards.storage.reads


@pytest.mark.parametrize("training", [True, False])
def test_the_same_batches_from_disk_cache_and_ranged_reads_on_s3(folder, tmp_path, s3, training):
    shutil.copytree(folder, s3.root / "bucket" / f"same-{training}")
    gets = []
    s3.proxy.choose = lambda method, path: gets.append(path) if method == "GET" and ".tar" in path else None
    url = f"s3://bucket/same-{training}"
    from_disk = epochs(make(open_shard_set(folder), training=training), 2)
    assert len(from_disk[0]) == (25 if training else 26)
    assert epochs(make(open_shard_set(url), training=training), 2) == from_disk
    assert gets
    assert epochs(make(open_shard_set(url), training=training, cache=str(tmp_path)), 2) == from_disk
    gets.clear()
    assert epochs(make(open_shard_set(url), training=training, cache=str(tmp_path)), 2) == from_disk
    assert not gets, "all shards are in the cache"


def test_ranks_on_one_host_fetch_each_shard_once(folder, tmp_path):
    expected = epochs(make(open_shard_set(folder)))[0]
    ranks = [make(remote(folder), rank=rank, world_size=2, cache=str(tmp_path)) for rank in range(2)]
    steps = [[batch.keys for batch in batches] for batches in zip(*ranks, strict=True)]
    for rank in ranks:
        rank.close()
    assert [sorted(first + second) for first, second in steps] == [sorted(batch[0]) for batch in expected]
    whole = [read for rank in ranks for read in tar_reads(rank.shards) if read[1] == 0]
    assert sorted(name for name, _, _ in whole) == [f"small-train-00000{number}.tar" for number in range(len(COUNTS))]


def test_only_the_first_window_is_read_singly_while_its_shards_are_fetched(folder, tmp_path):
    shards = remote(folder)
    loader = make(shards, cache=str(tmp_path))
    plan = EpochPlan(shards.counts, seed=0, epoch=0, window=64)
    first, *later = [{shards.manifest.shards[number].name for number in w} for w in plan.shards_by_window(0)]
    assert len(later) == 2
    epochs(loader)
    assert {name for name, start, _ in tar_reads(shards) if start} <= first
    assert {name for name, start, _ in tar_reads(shards) if not start} == first.union(*later)


@pytest.mark.parametrize("retry_after", [0.0, 5.0])
@pytest.mark.parametrize("shards_that_fit", [0.5, 1.5])
def test_a_limit_below_two_shards_streams_through(folder, tmp_path, notes, monkeypatch, shards_that_fit, retry_after):
    monkeypatch.setattr("msltrain.stream.reading.fetch._RETRY_AFTER", retry_after)
    largest = max(shard.num_bytes for shard in open_shard_set(folder).manifest.shards)
    limit = shards_that_fit * largest / 1e9
    loader = make(remote(folder), cache=str(tmp_path), cache_limit_gb=limit)
    assert epochs(loader, 2) == epochs(make(open_shard_set(folder)), 2)
    assert sum(path.stat().st_size for path in tmp_path.glob("*.tar*")) <= shards_that_fit * largest
    assert f"limit of {limit:g} GB; samples are read one by one from {folder} instead" in notes.text


def test_a_full_disk_costs_speed_and_a_note(folder, tmp_path, notes, monkeypatch):
    def full(file: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert epochs(make(remote(folder), cache=str(tmp_path)), 2) == epochs(make(open_shard_set(folder)), 2)
    assert [record.getMessage() for record in notes.records] == [
        f"{tmp_path}: the disk is full; samples are read one by one from {folder} instead"
    ]


@pytest.mark.parametrize("decayed", [True, False])
def test_a_damaged_copy_is_replaced_from_the_source(folder, tmp_path, notes, decayed):
    """A sample shows what the disk has spoilt; a copy that was written to is hashed before any sample is read."""
    shards = remote(folder)
    expected = epochs(make(open_shard_set(folder)), 2)
    assert epochs(make(shards, cache=str(tmp_path)), 2) == expected
    info = shards.manifest.shards[2]
    copy = tmp_path / f"{info.sha256}.tar"
    before = copy.stat()
    with open(copy, "r+b") as file:
        file.seek(int(shards.rows(np.array([2]), np.array([5]))[1].offset_N[0]) + 400)
        file.write(b"damage")
    if decayed:
        os.utime(copy, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert epochs(make(shards, cache=str(tmp_path)), 2) == expected
    assert (f"the copy of {info.name} was damaged" in notes.text) == decayed
    assert copy.read_bytes() == (folder / info.name).read_bytes()


def test_a_rebuilt_dataset_never_meets_its_old_bytes(tmp_path):
    for number in range(2):
        write_images(tmp_path / "data", [20], {"s000003": photo(1000 + number, 43, 39)})
        from_cache = epochs(make(remote(tmp_path / "data"), cache=str(tmp_path / "cache")), 2)
        assert from_cache == epochs(make(open_shard_set(tmp_path / "data")), 2)


def test_a_local_dataset_needs_no_cache_and_says_so(folder, tmp_path, notes):
    epochs(make(open_shard_set(folder), cache=str(tmp_path / "cache")))
    assert "stream.cache is not used" in notes.text and not (tmp_path / "cache").exists()


def noise(seed: int, width: int, height: int) -> bytes:
    """A photograph with many bytes, 1.2 to a pixel."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=95)
    return data.getvalue()


@pytest.fixture(scope="module")
def heavy(tmp_path_factory) -> Path:
    """64 samples of about 145 kB, 9 MB in all."""
    path = tmp_path_factory.mktemp("heavy")
    write_images(path, [32, 32], {f"s{number:06d}": noise(number, 400, 300) for number in range(64)}, size=(400, 300))
    return path


def test_reading_ahead_keeps_to_its_memory(heavy):
    shards = remote(heavy)
    fetcher = RangeFetcher(shards, 2 << 20)
    shard_N, row_N = np.repeat([0, 1], 32), np.tile(np.random.default_rng(0).permutation(32), 2)
    rows = shards.rows(shard_N, row_N)[1]
    parts = [np.arange(first, first + 8) for first in range(0, 64, 8)]
    requests = [fetcher.request(shard_N[part], rows.take(part)) for part in parts]
    largest = int(rows.length_N.max())
    try:
        # Backwards inside each batch: what is waited for must come even when the memory is full of what is not.
        for request in requests:
            for position in reversed(range(8)):
                assert len(request.read(position)) > 100_000
        assert (1 << 20) < shards.storage.peak < (2 << 20) + 8 * largest
    finally:
        fetcher.close()


def test_an_epoch_keeps_to_its_memory(heavy):
    shards = remote(heavy)
    loader = make(shards, read_ahead_mb=1, batch_size=4)
    assert epochs(loader, 3) == epochs(make(open_shard_set(heavy), batch_size=4), 3)
    # The bound, and for each of the two threads the sample it decodes and the one it waits for.
    assert shards.storage.peak < (1 << 20) + 4 * 160_000
    assert shards.storage.held == 0


def test_a_sample_larger_than_the_bound_passes(tmp_path):
    photos = {f"s{number:06d}": noise(number, 1200, 900) for number in range(6)}
    assert len(photos["s000000"]) > 1 << 20
    write_images(tmp_path, [6], photos, size=(1200, 900))
    loader = make(remote(tmp_path), read_ahead_mb=1, batch_size=3)
    assert epochs(loader) == epochs(make(open_shard_set(tmp_path), batch_size=3))


def test_samples_of_a_shard_come_in_reads_of_several(heavy, s3):
    shutil.copytree(heavy, s3.root / "bucket" / "heavy")
    gets = []
    s3.proxy.choose = lambda method, path: gets.append(path) if method == "GET" and ".tar" in path else None
    shards = open_shard_set("s3://bucket/heavy")
    calls = []
    read = shards.storage.read_ranges
    shards.storage.read_ranges = lambda name, starts, lengths: calls.append(len(starts)) or read(name, starts, lengths)
    assert epochs(make(shards, training=False)) == epochs(make(open_shard_set(heavy), training=False))
    assert calls == [4] * 16, "two reads for each of eight batches of eight"
    assert len(gets) == 16, "neighbours come in one request"


def test_damage_on_the_server_is_named_through_the_cache_too(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "data")
    shards = remote(tmp_path / "data")
    rows = shards.rows(np.array([2]), np.array([5]))[1]
    with open(tmp_path / "data" / shards.manifest.shards[2].name, "r+b") as file:
        file.seek(int(rows.offset_N[0]) + 400)
        file.write(b"damage")
    for options in ({}, {"cache": str(tmp_path / "cache")}):
        with pytest.raises(SampleError, match=r"s000052.*CRC-32, also when read a second time") as caught:
            epochs(make(remote(tmp_path / "data"), **options), 2)
        assert caught.value.offset == rows.offset_N[0]


def test_a_shard_damaged_at_its_source_is_not_fetched_over_and_over(folder, tmp_path, notes, monkeypatch):
    monkeypatch.setattr("msltrain.stream.reading.fetch._RETRY_AFTER", 0.0)
    shutil.copytree(folder, tmp_path / "shards")
    shards = remote(tmp_path / "shards")
    largest = max(shards.manifest.shards, key=lambda shard: shard.num_bytes)
    with open(tmp_path / "shards" / largest.name, "r+b") as file:
        file.seek(-1, os.SEEK_END)  # in the tar's closing zeros: the samples are as they should be
        file.write(b"x")
    assert epochs(make(shards, cache=str(tmp_path / "cache"))) == epochs(make(open_shard_set(folder)))
    assert "does not match the digest" in notes.text
    whole = (largest.name, 0, largest.num_bytes)
    assert 0 < shards.storage.reads.count(whole) <= 2
