"""Builds killed with SIGKILL at many moments and run again: the same bytes as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from msldata.build.shards import build_shards, plan_build
from msldata.contract.manifest import MANIFEST_NAME, FormatError, read_manifest
from msldata.sources.kinds import open_source
from msldata.storage import open_storage
from tests import readyprogram
from tests.tinydata import contents, make_voc

pytestmark = pytest.mark.usefixtures("ready_python")

REPOSITORY = Path(__file__).resolve().parents[2]
NUM_IMAGES, SAMPLES_PER_SHARD = 60, 4
NUM_SHARDS = 15

# A module of its own, because worker processes import it: so they too are slow enough to be killed in between.
SLOW_BUILD = """
import sys, time
from msldata.build import sample as samples, shards as module
from msldata.build.image import prepare_image
from msldata.sources.kinds import open_source
from msldata.storage import open_storage

def slowly(*arguments, decode):
    time.sleep(0.005)
    return prepare_image(*arguments, decode=decode)

samples.prepare_image = slowly
write_shard = module._write_shard

def write_slowly(job):
    return write_shard(job)

def main(source, out, num_workers):
    module._write_shard = write_slowly
    plan = module.plan_build(open_source("voc2007", source, "test"), samples_per_shard=4)
    module.build_shards(plan, open_storage(out), num_workers=int(num_workers))
"""


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    return make_voc(tmp_path_factory.mktemp("datasets"), NUM_IMAGES)


@pytest.fixture(scope="module")
def undisturbed(voc, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    build_here(voc, folder)
    return contents(folder)


@pytest.fixture(scope="module")
def slow_module(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slow")
    (folder / "slow_build.py").write_text(SLOW_BUILD)
    return folder


def build_here(voc, out) -> None:
    plan = plan_build(open_source("voc2007", voc, "test"), samples_per_shard=SAMPLES_PER_SHARD)
    build_shards(plan, open_storage(out), num_workers=1)


def start(slow_module, voc, out, num_workers) -> subprocess.Popen:
    code = f"import slow_build; slow_build.main({str(voc)!r}, {str(out)!r}, {num_workers})"
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{slow_module}"}
    return subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, env=environment)


def num_indices(out: Path) -> int:
    return len(list(out.glob("*.parquet")))


def kill(process: subprocess.Popen) -> None:
    """SIGKILL, at once, for the program itself; its caller then ends as it does."""
    with suppress(FileNotFoundError, ProcessLookupError):  # not begun yet, or ended by itself
        os.kill(readyprogram.pid_of(process.pid), signal.SIGKILL)


def kill_when(process, condition) -> None:
    """SIGKILL the build, and nothing else of its process group, as soon as ``condition`` holds."""
    try:
        while not condition():
            assert process.poll() is None, "the build ended before it could be killed"
            time.sleep(0.001)
    finally:
        kill(process)
        process.wait()


@pytest.mark.parametrize(("num_workers", "num_finished"), [(1, 0), (1, 14), (2, 1), (2, 8)])
def test_killed_and_run_again(slow_module, voc, undisturbed, tmp_path, num_workers, num_finished):
    out = tmp_path / "out"
    kill_when(
        start(slow_module, voc, out, num_workers),
        lambda: num_indices(out) >= num_finished and (num_finished or list(out.glob(".*.part"))),
    )
    assert not (out / MANIFEST_NAME).exists()
    assert num_finished <= num_indices(out) < NUM_SHARDS
    build_here(voc, out)
    assert contents(out) == undisturbed


def test_killed_again_and_again(slow_module, voc, undisturbed, tmp_path):
    """A build that never gets far ends all the same, because every finished shard counts."""
    out = tmp_path / "out"
    for wanted in (3, 7, 11):
        kill_when(start(slow_module, voc, out, 1), lambda wanted=wanted: num_indices(out) >= wanted)
        assert num_indices(out) < NUM_SHARDS
    build_here(voc, out)
    assert contents(out) == undisturbed


def test_there_is_no_manifest_before_the_last_shard(slow_module, voc, tmp_path):
    out = tmp_path / "out"
    process = start(slow_module, voc, out, 2)
    while process.poll() is None:
        if (out / MANIFEST_NAME).exists():
            assert num_indices(out) == NUM_SHARDS
        time.sleep(0.001)
    assert process.returncode == 0
    assert (out / MANIFEST_NAME).exists()


def test_the_command_killed_at_twenty_random_moments(voc, undisturbed, tmp_path):
    """The real command line, at full speed: wherever it dies, no half dataset can be read, and the rest is made good.

    A folder is built again and again until its build outruns the kill; then the next folder begins.
    """
    draw = random.Random(20)
    command = [
        sys.executable,
        "cli.py",
        "build-shards",
        "--dataset",
        "voc2007",
        "--source",
        str(voc),
        "--split",
        "test",
    ]
    command += ["--samples-per-shard", str(SAMPLES_PER_SHARD), "--out"]
    num_killed, num_partial, number = 0, 0, 0
    while num_killed < 20:
        number += 1
        assert number < 40, f"only {num_killed} builds could be killed"
        out = tmp_path / str(number)
        folder = out / "voc2007" / "test"
        for _ in range(4):
            left_behind = set(folder.glob(".*.part"))
            process = subprocess.Popen(
                [*command, str(out), "--workers", str(draw.choice((1, 1, 1, 2)))],
                cwd=REPOSITORY,
                stderr=subprocess.DEVNULL,
            )
            deadline = time.monotonic() + 30
            while not set(folder.glob(".*.part")) - left_behind and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.0005)
            time.sleep(draw.uniform(0, 0.08))
            kill(process)
            if process.wait() == 0:
                break
            num_killed += 1
            if (folder / MANIFEST_NAME).exists():  # killed between the end of its work and its own
                assert whole_files(folder) == undisturbed
                break
            num_partial += 1
            with pytest.raises(FormatError, match="no finished dataset here"):
                read_manifest(open_storage(folder))
        build_here(voc, folder)
        assert contents(folder) == undisturbed
    assert num_partial >= 10, "the kills came too late to test anything"


def whole_files(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(folder).items() if not name.startswith(".")}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB, in memory."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", place], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"mounting a small file system is not permitted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_disk_that_is_really_full(small_disk, tmp_path, num_workers):
    """The command fails with one sentence, and ends byte for byte right once there is room."""
    import numpy as np
    from PIL import Image

    voc = make_voc(tmp_path / "datasets", 24)
    noise = np.random.default_rng(0)
    for path in (voc / "JPEGImages").iterdir():
        Image.fromarray(noise.integers(0, 256, (200, 300, 3), dtype=np.uint8)).save(path, quality=95)
    command = [
        sys.executable,
        "cli.py",
        "build-shards",
        "--dataset",
        "voc2007",
        "--source",
        str(voc),
        "--split",
        "test",
    ]
    command += ["--samples-per-shard", "24" if num_workers == 1 else "6", "--workers", str(num_workers), "--out"]

    def build(out: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, str(out)], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)

    filler = small_disk / "filler"
    filler.write_bytes(bytes(2_000_000))
    full = build(small_disk / "out")
    assert (full.returncode, "the disk is full" in " ".join(full.stderr.split())) == (2, True), full.stderr
    assert "Traceback" not in full.stderr
    folder = small_disk / "out" / "voc2007" / "test"
    assert not [name for name in contents(folder) if name.endswith((".part", MANIFEST_NAME))]
    filler.unlink()
    again = build(small_disk / "out")
    assert again.returncode == 0, again.stderr
    assert build(tmp_path / "elsewhere").returncode == 0
    assert contents(folder) == contents(tmp_path / "elsewhere" / "voc2007" / "test")
    assert max(info.num_bytes for info in read_manifest(open_storage(folder)).shards) > (
        2**20 if num_workers == 1 else 0
    )


def test_nothing_is_left_running(voc, tmp_path):
    """An aborted build has stopped its writing threads by the time its error is raised."""
    plan = plan_build(open_source("voc2007", voc, "test"), samples_per_shard=SAMPLES_PER_SHARD)

    def stop(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_shards(plan, open_storage(tmp_path / "out"), num_workers=1, progress=stop)
    assert not [thread for thread in threading.enumerate() if thread.name == "write_chunks"]
    assert not list((tmp_path / "out").glob(".*.part"))
