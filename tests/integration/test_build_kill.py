"""Builds killed with SIGKILL at many moments and run again: the same bytes as if nothing had happened."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from msldata.build_shards import build_shards, plan_build
from msldata.format import MANIFEST_NAME
from msldata.sources import open_source
from msldata.storage import open_storage
from tests.tinydata import contents, make_voc

REPOSITORY = Path(__file__).resolve().parents[2]
NUM_IMAGES, SAMPLES_PER_SHARD = 60, 4
NUM_SHARDS = 15

# A script, not a -c string: worker processes import it again, so that they too are slow enough to be killed in between.
BUILD = """
import sys, time
from msldata import build_shards as module
from msldata.images import prepare_image
from msldata.sources import open_source
from msldata.storage import open_storage

def slowly(*arguments):
    time.sleep(0.005)
    return prepare_image(*arguments)

module.prepare_image = slowly

if __name__ == "__main__":
    source, out, num_workers = sys.argv[1:]
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
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "build.py"
    path.write_text(BUILD)
    return path


def build_here(voc, out) -> None:
    plan = plan_build(open_source("voc2007", voc, "test"), samples_per_shard=SAMPLES_PER_SHARD)
    build_shards(plan, open_storage(out), num_workers=1)


def start(script, voc, out, num_workers) -> subprocess.Popen:
    command = [sys.executable, str(script), str(voc), str(out), str(num_workers)]
    return subprocess.Popen(command, cwd=REPOSITORY, env=os.environ | {"PYTHONPATH": str(REPOSITORY)})


def num_indices(out: Path) -> int:
    return len(list(out.glob("*.parquet")))


def kill_when(process, condition) -> None:
    """SIGKILL the build, and nothing else of its process group, as soon as ``condition`` holds."""
    try:
        while not condition():
            assert process.poll() is None, "the build ended before it could be killed"
            time.sleep(0.001)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("num_workers", "num_finished"), [(1, 0), (1, 14), (2, 1), (2, 8)])
def test_killed_and_run_again(script, voc, undisturbed, tmp_path, num_workers, num_finished):
    out = tmp_path / "out"
    kill_when(
        start(script, voc, out, num_workers),
        lambda: num_indices(out) >= num_finished and (num_finished or list(out.glob(".*.part"))),
    )
    assert not (out / MANIFEST_NAME).exists()
    assert num_finished <= num_indices(out) < NUM_SHARDS
    build_here(voc, out)
    assert contents(out) == undisturbed


def test_killed_again_and_again(script, voc, undisturbed, tmp_path):
    """A build that never gets far ends all the same, because every finished shard counts."""
    out = tmp_path / "out"
    for wanted in (3, 7, 11):
        kill_when(start(script, voc, out, 1), lambda wanted=wanted: num_indices(out) >= wanted)
        assert num_indices(out) < NUM_SHARDS
    build_here(voc, out)
    assert contents(out) == undisturbed


def test_there_is_no_manifest_before_the_last_shard(script, voc, tmp_path):
    out = tmp_path / "out"
    process = start(script, voc, out, 2)
    while process.poll() is None:
        if (out / MANIFEST_NAME).exists():
            assert num_indices(out) == NUM_SHARDS
        time.sleep(0.001)
    assert process.returncode == 0
    assert (out / MANIFEST_NAME).exists()
