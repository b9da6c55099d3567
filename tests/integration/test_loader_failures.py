"""The loader when things go wrong: named errors, no thread left behind, nothing silently short."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pytest

from msldata.contract.manifest import FormatError
from msldata.storage import LocalStorage
from msltrain.stream.config import StreamConfig
from msltrain.stream.errors import SampleError
from msltrain.stream.loader import Loader
from msltrain.stream.reading.ranges import RangeFetcher
from msltrain.stream.samples.shardset import ShardSet, open_shard_set
from tests.smallshards import write_images

CONFIG = StreamConfig(image_size=24, batch_size=8, num_threads=2)


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path / "small", [30, 30, 5])
    return tmp_path / "small"


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    gc.collect()
    deadline = time.monotonic() + 3
    while left := [thread.name for thread in threading.enumerate() if thread.name.startswith("msl-")]:
        assert time.monotonic() < deadline, f"threads left behind: {left}"
        time.sleep(0.02)


def make(shards: ShardSet, *, training: bool = False) -> Loader:
    return Loader(shards, CONFIG, device="cpu", training=training)


class Remote(LocalStorage):
    """A local folder that pretends to be remote, and spoils what it is told to."""

    spoil_reads = 0
    stall = False

    def path(self, name=""):
        return None

    def read_ranges(self, name, starts, lengths):
        while self.stall:
            time.sleep(0.05)
        parts = super().read_ranges(name, starts, lengths)
        if name.endswith("000001.tar") and self.spoil_reads > 0:
            self.spoil_reads -= 1
            parts[0] = bytes(len(parts[0]))
        return parts


def remote(folder) -> ShardSet:
    shards = open_shard_set(folder)
    return ShardSet(Remote(folder), shards.manifest)


def everything(loader: Loader) -> list:
    with loader:
        return [(batch.keys, batch.image_BCHW.numpy().tobytes(), batch.target_BK.tolist()) for batch in loader]


def damage(folder, shard: int, row: int, data: bytes) -> tuple[str, int]:
    """Overwrite the first bytes of a stored image; returns its key and offset."""
    shards = open_shard_set(folder)
    index = shards.rows(np.array([shard]), np.array([row]))[1]
    path = folder / shards.manifest.shards[shard].name
    with open(path, "r+b") as file:
        file.seek(int(index.offset_N[0]))
        file.write(data)
    return index.key_N[0], int(index.offset_N[0])


def test_ranged_reads_give_the_very_same_batches(folder):
    assert everything(make(remote(folder), training=True)) == everything(make(open_shard_set(folder), training=True))


def test_from_a_real_object_store(folder, s3):
    for path in folder.iterdir():
        (s3.root / "bucket" / "small").mkdir(exist_ok=True)
        (s3.root / "bucket" / "small" / path.name).write_bytes(path.read_bytes())
    shards = open_shard_set("s3://bucket/small")
    assert everything(make(shards, training=True)) == everything(make(open_shard_set(folder), training=True))


def test_a_checksum_mismatch_is_read_again(folder):
    shards = remote(folder)
    shards.storage.spoil_reads = 1
    assert everything(make(shards)) == everything(make(open_shard_set(folder)))
    assert shards.storage.spoil_reads == 0


def test_a_lasting_mismatch_is_named(folder):
    shards = remote(folder)
    shards.storage.spoil_reads = 1000
    with pytest.raises(SampleError, match=r"small/train: sample 's0000\d+' at byte \d+ of .*000001\.tar: .*CRC-32"):
        everything(make(shards))


@pytest.mark.parametrize("open_shards", [open_shard_set, remote])
def test_damage_is_named_after_the_batches_before_it(folder, open_shards):
    key, offset = damage(folder, 1, 7, b"not a JPEG header at all")
    loader = make(open_shards(folder))
    got = []
    with pytest.raises(SampleError) as caught, loader:
        for batch in loader:
            got += batch.keys
    assert got == [f"s{number:06d}" for number in range(32)], "sample 37 is in the fifth batch of eight"
    assert (caught.value.key, caught.value.offset) == (key, offset)
    assert f"small/train: sample '{key}' at byte {offset} of {folder}/small-train-000001.tar: " in str(caught.value)
    assert "CRC-32" in str(caught.value) and "msl verify" in str(caught.value)


def test_of_several_bad_samples_the_first_is_named(folder):
    keys = [damage(folder, 1, row, b"not a JPEG header at all")[0] for row in (6, 4, 2)]
    with pytest.raises(SampleError) as caught:
        everything(make(open_shard_set(folder)))
    assert caught.value.key == keys[-1]


def test_missing_short_and_mixed_up_files(folder):
    first, second = (folder / f"small-train-00000{number}.tar" for number in (0, 1))
    content = second.read_bytes()
    second.write_bytes(content[:-512])
    with pytest.raises(FormatError, match=r"000001\.tar: \d+ bytes, the manifest says"):
        everything(make(open_shard_set(folder)))
    second.unlink()
    with pytest.raises(FileNotFoundError, match=r"000001\.tar: the shard is missing"):
        everything(make(open_shard_set(folder)))
    with pytest.raises(FileNotFoundError, match=r"000001\.tar: no such file"):
        everything(make(remote(folder)))
    second.write_bytes(content)
    second.with_suffix(".parquet").write_bytes(first.with_suffix(".parquet").read_bytes())
    with pytest.raises(FormatError, match=r"000001\.parquet: the sample index is .* of another build"):
        everything(make(open_shard_set(folder)))


def test_leaving_half_way(folder):
    shards = open_shard_set(folder)
    with make(shards) as loader:
        for _ in loader:
            break
    loader = make(shards)
    with pytest.raises(ZeroDivisionError):
        for _ in loader:
            1 / 0  # noqa: B018
    batches = iter(make(shards))
    next(batches)
    del batches, loader


def test_a_new_iteration_ends_the_one_before(folder):
    with make(open_shard_set(folder)) as loader:
        old = iter(loader)
        first = next(old).keys
        assert next(iter(loader)).keys == first
        with pytest.raises(RuntimeError, match="iterated anew"):
            next(old)


def test_closing_does_not_wait_for_a_stalled_server(folder):
    shards = remote(folder)
    loader = make(shards)
    batches = iter(loader)
    next(batches)
    shards.storage.stall = True
    began = time.monotonic()
    loader.close()
    assert time.monotonic() - began < 30
    shards.storage.stall = False


def run(folder, code: str) -> subprocess.Popen:
    program = f"""
        import time
        from msldata.storage import LocalStorage
        from msltrain.stream.config import StreamConfig
        from msltrain.stream.loader import Loader
        from msltrain.stream.samples.shardset import ShardSet, open_shard_set
        loader = Loader(open_shard_set({str(folder)!r}), StreamConfig(image_size=24, batch_size=8, num_threads=2),
                        device="cpu", training=True)
        batches = iter(loader)
        next(batches)
    """
    program = textwrap.dedent(program) + textwrap.dedent(code)
    return subprocess.Popen([sys.executable, "-c", program], stdout=PIPE, stderr=PIPE, text=True)


def test_a_program_ends_with_an_iteration_half_way(folder):
    process = run(folder, "print('end', flush=True)")
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (0, "end\n", "")


def test_ctrl_c_while_a_server_stalls(folder):
    process = run(
        folder,
        """
        class Stalled(LocalStorage):
            def path(self, name=""):
                return None

            def read_ranges(self, name, starts, lengths):
                print("waiting\\n", end="", flush=True)
                time.sleep(3600)

        local = loader.shards
        loader.close()
        for _ in Loader(ShardSet(Stalled(local.storage.root), local.manifest), loader.config, training=True):
            pass
        """,
    )
    assert process.stdout.readline() == "waiting\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and "KeyboardInterrupt" in errors


def test_memory_and_files_stay_flat_over_epochs(folder):
    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")
    with make(open_shard_set(folder), training=True) as loader:
        for epoch in range(60):
            for _ in loader:
                pass
            if epoch == 19:
                memory, files = resident(), len(os.listdir("/proc/self/fd"))
        assert resident() - memory < 6 << 20
        assert len(os.listdir("/proc/self/fd")) <= files


def test_maps_are_bounded_and_live_until_the_loader_is_closed(folder, monkeypatch):
    monkeypatch.setattr("msltrain.stream.samples.memory_maps._OPEN_MAPS", 2)
    shards = open_shard_set(folder)
    assert len(shards.manifest.shards) > 2
    with make(shards) as loader:
        assert sum(len(batch) for batch in loader) == 65
        first = shards.maps.open(len(shards.manifest.shards) - 1)
        assert len(shards.maps) == 2
        assert sum(len(batch) for batch in loader) == 65
        assert shards.maps.open(len(shards.manifest.shards) - 1) is not first, "the least recently used map was kept"
    assert len(shards.maps) == 0


def test_a_closed_fetcher_gives_up(folder):
    shards = remote(folder)
    shards.storage.stall = True
    fetcher = RangeFetcher(shards, 1 << 20)
    shard_N = np.zeros(1, dtype=np.int64)
    request = fetcher.request(shard_N, shards.rows(shard_N, shard_N)[1])
    fetcher.close()
    with pytest.raises(CancelledError):
        request.read(0)
    shards.storage.stall = False
