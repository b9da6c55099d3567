"""Builds into an object store that fails, and builds killed or started twice: all end as the local build, to the byte.

While they run a reader looks again and again: what it can open as a dataset is complete, at every moment.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from msldata.build.shards import build_shards, plan_build
from msldata.contract.manifest import FormatError, read_manifest
from msldata.errors import StorageError, UserError
from msldata.sources.kinds import open_source
from msldata.storage import RemoteStorage, open_storage
from msldata.storage import lock as remotelock
from tests.faultproxy import Sometimes
from tests.tinydata import contents, make_voc

REPOSITORY = Path(__file__).resolve().parents[2]
NUM_IMAGES = 24
PART_BYTES = 64 << 10
IMAGE_BYTES = 40_000

# Small parts, so that small shards too go up in several; small waits, so that a dead store is given up soon.
BUILD = f"""
import sys
from datetime import timedelta
from msldata.build import shards as module
from msldata.sources.kinds import open_source
from msldata.storage import open_storage, remote

remote._PART_BYTES = {PART_BYTES}

if __name__ == "__main__":
    source, out, per_shard = sys.argv[1:]
    plan = module.plan_build(open_source("voc2007", source, "test"), samples_per_shard=int(per_shard))
    module.build_shards(plan, open_storage(out), num_workers=1)
"""


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    folder = make_voc(tmp_path_factory.mktemp("datasets"), NUM_IMAGES)
    for number, path in enumerate(sorted((folder / "JPEGImages").iterdir())):
        # Bytes after the end of a JPEG belong to the file and are kept; they make it as large as a photograph.
        path.write_bytes(path.read_bytes() + random.Random(number).randbytes(IMAGE_BYTES))
    return folder


@pytest.fixture(scope="module")
def undisturbed(voc, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    build(voc, folder)
    assert all(len(data) > 2 * PART_BYTES for name, data in contents(folder).items() if name.endswith(".tar"))
    return contents(folder)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr("msldata.storage.remote._PART_BYTES", PART_BYTES)
    monkeypatch.setattr(RemoteStorage, "PATIENT_RETRY", RemoteStorage.RETRY | {"max_retries": 2})
    monkeypatch.setattr(remotelock, "SETTLE_SECONDS", 0.1)
    monkeypatch.setattr(remotelock, "LEASE_SECONDS", 2)


@pytest.fixture
def out(request):
    return f"s3://bucket/{hashlib.sha256(request.node.name.encode()).hexdigest()[:12]}"


def build(voc, out, per_shard: int = 6) -> None:
    plan = plan_build(open_source("voc2007", voc, "test"), samples_per_shard=per_shard)
    build_shards(plan, open_storage(out), num_workers=1)


def files(server, out: str) -> dict[str, bytes]:
    """What the bucket holds, without the server's own scraps of uploads that never ended."""
    found = contents(server.root / out.removeprefix("s3://"))
    return {name: data for name, data in found.items() if not name.startswith(".rclone_temp")}


@contextmanager
def reader(server, out: str):
    """Looks at the bucket's files behind the proxy for as long as the block runs; whatever it opens must be whole."""
    folder = open_storage(server.root / out.removeprefix("s3://"))
    broken: list[str] = []
    looks = [0]
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            looks[0] += 1
            try:
                manifest = read_manifest(folder)
                for shard in manifest.shards:
                    if hashlib.sha256(folder.read(shard.name)).hexdigest() != shard.sha256:
                        broken.append(f"{shard.name} is not what the manifest says")
                    folder.read(shard.index_name)
            except FormatError:
                pass
            except FileNotFoundError as error:
                broken.append(str(error))
            time.sleep(0.002)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert looks[0] > 3
    assert not broken, broken[:3]


def run_until_done(voc, out: str, most: int = 12) -> int:
    """Repeat the build as its user would, until it ends well; returns how often it failed."""
    for failures in range(most):
        try:
            build(voc, out)
            return failures
        except StorageError:
            continue
    raise AssertionError(f"not finished after {most} attempts")


LASTING = {
    "dies in the middle of an upload": Sometimes("reset", 9, method="PUT", containing="partNumber=2", after=1),
    "cuts uploads": Sometimes("cut-upload", 9, method="PUT", containing="partNumber="),
    "cannot complete": Sometimes("unavailable", 9, method="POST", containing="uploadId="),
    "answers 503": Sometimes("slowdown", 9, method="PUT"),
    "loses the answer": Sometimes("lost-answer", 5, method="POST", containing="uploadId="),
    "cuts bodies": Sometimes("cut", 9, method="GET", after=2),
}


@pytest.mark.parametrize("name", LASTING)
def test_failing_store(s3, small_parts, voc, undisturbed, out, name):
    s3.proxy.choose = LASTING[name]
    with reader(s3, out):
        run_until_done(voc, out)
    assert LASTING[name].num_faults >= (2 if name == "cuts bodies" else 5)
    assert files(s3, out) == undisturbed


def test_random_faults(s3, small_parts, voc, undisturbed, out):
    chance = random.Random(5)
    kinds = ("unavailable", "reset", "cut", "cut-upload", "lost-answer")
    s3.proxy.choose = lambda method, path: chance.choice(kinds) if chance.random() < 0.15 else None
    with reader(s3, out):
        run_until_done(voc, out, most=30)
    s3.proxy.choose = lambda method, path: None
    build(voc, out)  # nothing left to do but to clear away a lock whose deletion failed
    assert files(s3, out) == undisturbed


def test_store_that_is_away_for_a_while(s3, small_parts, voc, undisturbed, out):
    def away() -> None:
        with s3.proxy.refusing():
            time.sleep(1)

    gone = threading.Timer(0.3, away)
    gone.start()
    with reader(s3, out):
        run_until_done(voc, out)
    gone.join()
    assert files(s3, out) == undisturbed


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "build.py"
    path.write_text(BUILD)
    return path


def start(script, voc, out, per_shard: int = 6) -> subprocess.Popen:
    command = [sys.executable, str(script), str(voc), out, str(per_shard)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    "after", [0, 8, pytest.param(3, marks=pytest.mark.slow), pytest.param(13, marks=pytest.mark.slow)]
)
def test_killed_in_the_middle_of_an_upload(s3, small_parts, script, voc, undisturbed, out, after):
    """SIGKILL at the given part; the same command then goes on, though the lock of the dead build is still there."""
    arrived = threading.Event()
    num_parts = 0

    def kill(method: str, path: str) -> str | None:
        nonlocal num_parts
        num_parts += "partNumber=" in path
        if num_parts > after and not arrived.is_set():
            process.kill()
            arrived.set()
        return None

    s3.proxy.choose = lambda method, path: None
    with reader(s3, out):
        process = start(script, voc, out)
        s3.proxy.choose = kill
        assert process.wait(timeout=60) == -9 and arrived.is_set()
        s3.proxy.choose = lambda method, path: None
        assert remotelock.LOCK_NAME in files(s3, out) and "dataset.json" not in files(s3, out)
        began = time.monotonic()
        build(voc, out)
        assert time.monotonic() - began < 8, "the dead build's lock held the next one up"
    assert files(s3, out) == undisturbed


def test_second_build_is_refused(s3, small_parts, voc, undisturbed, out, script, monkeypatch):
    monkeypatch.setattr(remotelock, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(remotelock, "LEASE_SECONDS", 60)  # however late a busy machine is with the owner's next beat
    storage = open_storage(out)
    with (
        remotelock.own_folder(storage, "build"),
        pytest.raises(UserError, match="another build is writing into this folder"),
    ):
        build(voc, out)
    build(voc, out)
    assert files(s3, out) == undisturbed


@pytest.mark.parametrize("per_shard", [6, 5])
def test_two_builds_at_one_moment(s3, small_parts, voc, undisturbed, out, script, per_shard):
    """Of one plan or of two: one of them wins, and the folder is that one's, whole."""
    with reader(s3, out):
        both = [start(script, voc, out), start(script, voc, out, per_shard)]
        errors = [process.communicate(timeout=100)[1] for process in both]
    codes = [process.returncode for process in both]
    assert 0 in codes, errors
    for code, error in zip(codes, errors, strict=True):
        assert code == 0 or "another build is writing" in error or "from other files, labels" in error, error
    if codes[0] == 0 or per_shard == 6:
        assert files(s3, out) == undisturbed
    manifest = read_manifest(open_storage(out))
    shards = files(s3, out)
    assert all(hashlib.sha256(shards[shard.name]).hexdigest() == shard.sha256 for shard in manifest.shards)


def test_a_build_that_loses_the_folder_while_it_runs_does_not_publish(s3, small_parts, voc, out, monkeypatch):
    """Another owner appears while the last shard goes up: the build ends with an error and without a manifest."""
    monkeypatch.setattr(remotelock, "BEAT_SECONDS", 60)  # it does not look before it publishes
    storage = open_storage(out)
    taken = threading.Event()

    def take_over(method: str, path: str) -> None:
        if method in ("PUT", "POST") and ".tar" in path and not taken.is_set():
            taken.set()
            other = {"token": "another build", "beat": 1, "host": "elsewhere", "pid": 1}
            (s3.root / out.removeprefix("s3://") / remotelock.LOCK_NAME).write_text(json.dumps(other))

    s3.proxy.choose = take_over
    with pytest.raises(UserError, match="another build has taken over this folder"):
        build(voc, out)
    assert taken.is_set()
    s3.proxy.choose = lambda method, path: None
    assert not storage.exists("dataset.json")
    assert json.loads(storage.read(remotelock.LOCK_NAME))["token"] == "another build", "and is left to its owner"


def test_silent_owner_is_succeeded(s3, small_parts, voc, out, monkeypatch):
    monkeypatch.setattr(remotelock, "BEAT_SECONDS", 30)  # it never shows a sign of life
    monkeypatch.setattr(remotelock, "LEASE_SECONDS", 0.5)
    storage = open_storage(out)
    silent, successor = (remotelock.BeatingLock(storage, "build") for _ in range(2))
    silent.acquire()
    monkeypatch.setattr(remotelock, "BEAT_SECONDS", 0.5)
    successor.acquire()
    successor.check()
    with pytest.raises(UserError, match="another build has taken over this folder"):
        silent.check()
    silent.release()
    successor.check()
    successor.release()
    assert not storage.exists(remotelock.LOCK_NAME)
