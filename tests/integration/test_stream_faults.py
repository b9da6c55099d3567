"""A server that fails: the epoch ends with exactly the right bytes or with the named error; nothing is silently short.

The long soak: ``pytest -m slow tests/integration/test_stream_faults.py`` (about two minutes).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from statistics import median

import pytest
from typer.testing import CliRunner

from msldata.errors import StorageError
from msldata.storage import RemoteStorage
from msltrain.__main__ import app
from msltrain.stream.config import StreamConfig
from msltrain.stream.errors import SampleError
from msltrain.stream.loader import Loader
from msltrain.stream.reading.cache import ShardCache
from msltrain.stream.samples.shardset import ShardSet, open_shard_set
from tests.integration.test_evaluate import write_checkpoint
from tests.smallshards import CLASSES, write_images

REPOSITORY = Path(__file__).resolve().parents[2]
READ_FAULTS = ("unavailable", "reset", "cut", "stall", "corrupt", "slow")


@pytest.fixture
def quick_retries(monkeypatch):
    for name in [name for name in vars(RemoteStorage) if name.endswith("RETRY")]:
        monkeypatch.setattr(RemoteStorage, name, {**getattr(RemoteStorage, name), "max_retries": 2})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("shards")
    write_images(path, [30, 30, 5])
    return path


@pytest.fixture
def url(folder, s3) -> str:
    if not (s3.root / "bucket" / "stream-faults").exists():
        shutil.copytree(folder, s3.root / "bucket" / "stream-faults")
    s3.proxy.stall_seconds = 0.5
    return "s3://bucket/stream-faults"


def make(shards: ShardSet, cache: str = "") -> Loader:
    # Reading ahead is cheap in memory here, so that a slow answer holds up others as little as in a real run.
    config = StreamConfig(image_size=24, batch_size=8, window=32, num_threads=2, drop_last=False, cache=cache)
    return Loader(shards, config, device="cpu", training=True)


def batches(loader: Loader, found: list | None = None) -> list:
    """Keys and pixels of an epoch; ``found`` keeps what came before an error."""
    found = [] if found is None else found
    with loader:
        for batch in loader:
            found.append((batch.keys, batch.image_BCHW.numpy().tobytes()))
    return found


@pytest.mark.parametrize("with_cache", [False, True], ids=["ranges", "cache"])
@pytest.mark.parametrize("fault", READ_FAULTS)
def test_a_passing_fault_leaves_no_trace(folder, url, s3, tmp_path, fault, with_cache):
    last, lock = [0.0], threading.Lock()

    def now_and_then(method: str, path: str) -> str | None:
        with lock:
            if not path.endswith(".tar") or time.monotonic() - last[0] < 0.3:
                return None
            last[0] = time.monotonic()
            return fault

    before = s3.proxy.num_faults
    s3.proxy.choose = now_and_then
    found = batches(make(open_shard_set(url), str(tmp_path) if with_cache else ""))
    assert s3.proxy.num_faults > before
    assert found == batches(make(open_shard_set(folder)))
    assert sum(len(keys) for keys, _ in found) == 65


@pytest.mark.parametrize("with_cache", [False, True], ids=["ranges", "cache"])
@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("unavailable", StorageError, r"s3://bucket/stream-faults/small-train-00000\d\.tar: "),
        ("reset", StorageError, r"s3://bucket/stream-faults/small-train-00000\d\.tar: "),
        ("cut", StorageError, r"s3://bucket/stream-faults/small-train-00000\d\.tar: "),
        (
            "corrupt",
            SampleError,
            r"small/train: sample 's0000\d\d' at byte \d+ of s3://bucket/.*CRC-32, also when read a",
        ),
    ],
)
def test_a_lasting_fault_is_named_after_the_right_batches(
    folder, url, s3, tmp_path, quick_retries, fault, error, words, with_cache
):
    tars = []

    def from_the_third_on(method: str, path: str) -> str | None:
        if path.endswith(".tar"):
            tars.append(path)
            return fault if len(tars) > 2 else None
        return None

    s3.proxy.choose = from_the_third_on
    found: list = []
    began = time.monotonic()
    with pytest.raises(error, match=words):
        batches(make(open_shard_set(url), str(tmp_path) if with_cache else ""), found)
    assert time.monotonic() - began < 10
    assert found == batches(make(open_shard_set(folder)))[: len(found)]


@pytest.mark.parametrize(
    ("place", "secret", "words"),
    [
        ("s3://absent/x", "test-secret", ("s3://absent/x", "no such bucket")),
        ("s3://bucket/wrong-prefix", "test-secret", ("s3://bucket/wrong-prefix: no finished dataset here",)),
        (
            "s3://bucket/stream-faults",
            "wrong",
            ("s3://bucket/stream-faults/dataset.json: access denied; check the credentials",),
        ),
    ],
)
@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_a_wrong_place_is_said_in_one_line_at_once(url, tmp_path, monkeypatch, command, place, secret, words):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    arguments = [command, "--data", place]
    if command == "train":
        arguments += ["--recipe", "baseline-c-voc2007", "--run", str(tmp_path / "run")]
    else:
        arguments += ["--checkpoint", str(write_checkpoint(tmp_path / "run", CLASSES)), "--device", "cpu"]
    began = time.monotonic()
    result = CliRunner().invoke(app, arguments)
    assert time.monotonic() - began < 10
    assert result.exit_code == 2, result.output
    message = " ".join(result.output.split())
    message = message.removeprefix("reading the shards and the keep masks ")  # what training was about to do
    assert message.startswith("error: ") and message.count("error") == 1 and all(word in message for word in words)


def test_killed_processes_leave_nothing_that_blocks_the_next(folder, url, s3, tmp_path):
    s3.proxy.choose = lambda method, path: "stall" if path.endswith(".tar") else None
    s3.proxy.stall_seconds = 1.0
    program = f"""
        import os
        from msltrain.stream.samples.shardset import open_shard_set
        from tests.integration.test_stream_faults import batches, make
        os.fork()  # two ranks for the time of one start
        batches(make(open_shard_set({url!r}), {str(tmp_path)!r}))
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    ranks = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("*.part"))) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.killpg(ranks.pid, signal.SIGKILL)
        ranks.wait()
    assert list(tmp_path.glob("*.part")), "they were killed too late to matter"
    s3.proxy.choose = lambda method, path: None
    assert batches(make(open_shard_set(url), str(tmp_path))) == batches(make(open_shard_set(folder)))
    # The epoch above may have read singly what it could not fetch; each shard must be there to be fetched too.
    shards, cache = open_shard_set(url), ShardCache(tmp_path, 1 << 30)
    began = time.monotonic()
    for shard in shards.manifest.shards:
        cache.fetch(shard, shards.storage, threading.Event()).close()
    assert time.monotonic() - began < 30, "a lock was waited for until patience ended"
    assert not list(tmp_path.glob("*.part"))


SOAK = """
    import hashlib, json, os, sys
    from dataclasses import replace
    from msldata.errors import UserError
    from msltrain.stream.samples.shardset import open_shard_set
    from tests.integration.test_stream_faults import batches, make

    url, cache, num_epochs = sys.argv[1], sys.argv[2], int(sys.argv[3])
    shards = open_shard_set(url)
    plain, cached = make(shards), make(shards, cache)
    # Room for one shard and a half: each epoch fetches, evicts and falls back.
    cached.config = replace(cached.config, cache_limit_gb=1.5e-9 * max(s.num_bytes for s in shards.manifest.shards))
    for epoch in range(num_epochs):
        loader = (plain, cached)[epoch % 2]
        loader.set_epoch(epoch)
        found, error = [], ""
        try:
            batches(loader, found)
        except UserError as failure:
            error = str(failure)
        digest = [hashlib.sha256(repr(batch).encode()).hexdigest() for batch in found]
        with open("/proc/self/statm") as file:
            memory = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        print(json.dumps([digest, error, memory, len(os.listdir("/proc/self/fd"))]), flush=True)
"""


def soak(num_epochs: int, folder: Path, url: str, s3, cache: Path) -> None:
    """Epochs from a server that fails at random; all right or named, memory and file handles flat."""
    import hashlib

    chance = random.Random(0)
    faults = {"unavailable": 0.01, "reset": 0.01, "cut": 0.01, "corrupt": 0.01, "stall": 0.003, "slow": 0.01}
    s3.proxy.stall_seconds = 0.1
    s3.proxy.choose = lambda method, path: (
        chance.choices([*faults, None], [*faults.values(), 1 - sum(faults.values())])[0]
        if path.endswith(".tar")
        else None
    )
    before = s3.proxy.num_faults
    command = [sys.executable, "-c", textwrap.dedent(SOAK), url, str(cache), str(num_epochs)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        rows = [json.loads(line) for line in process.stdout]
    finally:
        process.kill()
        process.communicate()
    assert len(rows) == num_epochs and s3.proxy.num_faults - before > num_epochs / 2
    local = make(open_shard_set(folder))
    for epoch, (digests, error, _, _) in enumerate(rows):
        local.set_epoch(epoch)
        expected = [hashlib.sha256(repr(batch).encode()).hexdigest() for batch in batches(local)]
        assert digests == expected[: len(digests)], f"epoch {epoch}"
        assert len(digests) == len(expected) or "CRC-32" in error, f"epoch {epoch} was short: {error}"
    assert sum(bool(error) for _, error, _, _ in rows) < 0.1 * num_epochs
    third = num_epochs // 3  # the first is for warming up
    memory, files = ([row[column] for row in rows] for column in (2, 3))
    assert max(memory[-third:]) - max(memory[third:-third]) < 8 << 20
    # A burst of reads opens connections, which the pool closes when they have been idle: only the middle must not move.
    assert median(files[-third:]) <= median(files[third:-third]) + 3


def test_a_short_soak(folder, url, s3, tmp_path):
    soak(18, folder, url, s3, tmp_path)


@pytest.mark.slow
def test_a_long_soak(folder, url, s3, tmp_path):
    soak(240, folder, url, s3, tmp_path)
