"""Array jobs: parts written side by side and put together; who may write into a folder at once; dry runs."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from msldata.build.estimate import estimate_build
from msldata.build.folder import BuildFolder
from msldata.build.image import Resize
from msldata.build.shards import Part, build_part, build_shards, finish_build, plan_build
from msldata.contract.manifest import MANIFEST_NAME, read_manifest
from msldata.errors import BadInputError, UserError
from msldata.sources.kinds import open_source
from msldata.storage import open_storage
from msldata.storage.lock import LOCK_NAME
from tests.golden.test_shardwriter import MemoryStorage
from tests.tinydata import contents, make_voc

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def voc(tmp_path):
    return make_voc(tmp_path / "datasets", 10)


@pytest.fixture
def plan(voc):
    return plan_of(voc)


def plan_of(voc, samples_per_shard=2):
    return plan_build(open_source("voc2007", voc, "test"), samples_per_shard=samples_per_shard)


@pytest.fixture
def whole(plan, tmp_path):
    """What one build writes."""
    build_shards(plan, open_storage(tmp_path / "whole"), num_workers=1)
    return contents(tmp_path / "whole")


@pytest.mark.parametrize("num_parts", [1, 2, 3, 5, 9])
def test_parts_make_the_bytes_of_one_build(plan, whole, tmp_path, num_parts):
    out = open_storage(tmp_path / "out")
    for number in range(num_parts, 0, -1):
        build_part(plan, out, Part(number, num_parts), num_workers=1)
        assert not out.exists(MANIFEST_NAME)
    assert finish_build(plan, out) == read_manifest(out)
    assert contents(tmp_path / "out") == whole
    assert finish_build(plan, out) == read_manifest(out)  # twice does no harm
    build_part(plan, out, Part(1, num_parts), num_workers=1)
    assert contents(tmp_path / "out") == whole


def test_parts_share_the_shards_evenly(plan):
    names = [[task.name for task in Part(number, 3).of(plan.shards)] for number in (1, 2, 3)]
    assert sorted(map(len, names)) == [1, 2, 2]
    assert sorted(name for part in names for name in part) == [task.name for task in plan.shards]


def test_parts_into_an_object_store(plan, whole):
    remote = MemoryStorage()
    for number in (2, 1):
        build_part(plan, remote, Part(number, 2), num_workers=1)
    finish_build(plan, remote)
    assert {info.name: remote.read(info.name) for info in remote.list_files()} == whole


def test_finish_names_what_is_missing_with_commands_that_write_it(voc, whole, tmp_path):
    """The commands of the message are run as they stand."""
    (tmp_path / "cli.py").symlink_to(REPOSITORY / "cli.py")
    options = ["--dataset", "voc2007", "--source", voc, "--split", "test", "--samples-per-shard", 2, "--out", "my out"]
    folder = tmp_path / "my out" / "voc2007" / "test"

    def msl(*arguments) -> subprocess.CompletedProcess:
        environment = os.environ | {"COLUMNS": "200", "PYTHONPATH": str(REPOSITORY)}
        command = [sys.executable, "cli.py", *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)

    done = msl("build-shards", *options, "--workers", 1, "--task", "2/2")
    assert (done.returncode, "2 of 5 shards" in done.stdout) == (0, True), done.stderr
    refused = msl("build-shards", "--finish", *options)
    assert refused.returncode == 2
    assert "3 of 5 shards are missing" in refused.stderr
    commands = re.findall(r"^  python (.*?)\s+# (voc2007-test-00000[024]\.tar)$", refused.stderr, re.MULTILINE)
    assert [name[-5] for _, name in commands] == ["0", "2", "4"]
    for command, name in commands:
        assert not (folder / name).exists()
        assert msl(*shlex.split(command)[1:], "--workers", 1).returncode == 0
        assert (folder / name).exists()
    assert not (folder / MANIFEST_NAME).exists()
    assert msl("build-shards", *options, "--finish").returncode == 0
    assert contents(folder) == whole


def spoil_second_shard(voc):
    for number in (3, 4):
        (voc / "JPEGImages" / f"{number:06d}.jpg").write_bytes(b"")


def test_a_part_without_one_good_image_is_remembered(voc, plan, tmp_path):
    """It leaves no tar and no index, and must not count as missing for ever."""
    spoil_second_shard(voc)
    with pytest.raises(BadInputError, match=r"000003\.jpg"):
        build_part(plan, open_storage(tmp_path / "parts"), Part(2, 5), num_workers=1)
    out = open_storage(tmp_path / "parts")
    for number in range(1, 6):
        build_part(plan, out, Part(number, 5), num_workers=1, on_error="skip")
    manifest = finish_build(plan, out)
    assert manifest.counts["quarantined"] == 2
    build_shards(plan, open_storage(tmp_path / "one"), num_workers=1, on_error="skip")
    assert contents(tmp_path / "parts") == contents(tmp_path / "one")


def test_what_another_plan_remembered_is_not_believed(voc, plan, tmp_path):
    spoil_second_shard(voc)
    out = open_storage(tmp_path / "out")
    other = plan_build(open_source("voc2007", voc, "test"), samples_per_shard=2, resize=Resize("fit", 8))
    build_part(other, out, Part(2, 5), num_workers=1, on_error="skip")
    for number in (1, 3, 4, 5):
        build_part(plan, out, Part(number, 5), num_workers=1)
    with pytest.raises(UserError, match="1 of 5 shards are missing"):
        finish_build(plan, out)


def test_there_is_no_manifest_while_a_lost_shard_is_made_again(plan, whole, tmp_path):
    shutil.copytree(tmp_path / "whole", tmp_path / "out")
    out = open_storage(tmp_path / "out")
    (tmp_path / "out" / "voc2007-test-000001.tar").unlink()
    seen = []
    build_shards(plan, out, num_workers=1, progress=lambda *_: seen.append(out.exists(MANIFEST_NAME)))
    assert seen == [False, False]
    assert contents(tmp_path / "out") == whole


def test_shards_are_settled_before_the_manifest_names_them(plan, tmp_path, monkeypatch):
    settled = []
    settle = BuildFolder._settle

    def note(folder):
        settled.append((len(list((tmp_path / "out").glob("*.tar"))), folder.out.exists(MANIFEST_NAME)))
        settle(folder)

    monkeypatch.setattr(BuildFolder, "_settle", note)
    build_shards(plan, open_storage(tmp_path / "out"), num_workers=1)
    assert settled == [(5, False)]


def test_parts_of_another_plan_are_refused(voc, plan, tmp_path):
    out = open_storage(tmp_path / "out")
    build_part(plan, out, Part(1, 2), num_workers=1)
    before = contents(tmp_path / "out")
    for call in (
        lambda other: build_part(other, out, Part(1, 2), num_workers=1),
        lambda other: finish_build(other, out),
    ):
        with pytest.raises(UserError, match="from other files, labels or options"):
            call(plan_of(voc, 3))
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/0", "-1/2", "1/2/3", ""])
def test_bad_parts_are_refused(text):
    with pytest.raises(UserError, match="--task"):
        Part.parse(text)
    assert Part.parse("2/3") == Part(2, 3)


def test_parts_share_a_folder_with_parts_only(plan, tmp_path):
    folder = tmp_path / "out"
    out = open_storage(folder)
    folder.mkdir()
    part_file = folder / ".voc2007-test-000001.tar.4711.part"
    part_file.write_bytes(b"another part is writing this")
    descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)  # as another part does
        build_part(plan, out, Part(1, 2), num_workers=1)
        assert part_file.exists()
        for refused in (lambda: build_shards(plan, out, num_workers=1), lambda: finish_build(plan, out)):
            with pytest.raises(UserError, match="another build is writing into this folder"):
                refused()
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # as an ordinary build does
        with pytest.raises(UserError, match="another build is writing into this folder"):
            build_part(plan, out, Part(2, 2), num_workers=1)
        assert part_file.exists()
    finally:
        os.close(descriptor)
    build_shards(plan, out, num_workers=1)
    assert not part_file.exists()


def start(voc, out, *options, program=("cli.py",)) -> subprocess.Popen:
    command = [sys.executable, *program, "build-shards", "--dataset", "voc2007", "--source", voc, "--split", "test"]
    command += ["--samples-per-shard", "2", "--workers", "1", "--out", out, *options]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_real_parts_at_the_same_time_even_the_same_part_twice(voc, whole, tmp_path):
    out = tmp_path / "out"
    processes = [start(voc, out, "--task", part) for part in ("1/3", "2/3", "2/3", "3/3")]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    finished = start(voc, out, "--finish")
    _, errors = finished.communicate(timeout=60)
    assert finished.returncode == 0, errors
    assert contents(out / "voc2007" / "test") == whole


WAITING = """
import pathlib, time
from msldata.storage import LocalStorage
from msltrain.__main__ import main

read = LocalStorage.read

def waiting(self, name, *rest):
    while name.endswith("000003.jpg") and not pathlib.Path({go!r}).exists():
        time.sleep(0.01)
    return read(self, name, *rest)

LocalStorage.read = waiting
main()
"""
"""The program, with a third image that takes its time."""


def test_the_second_of_two_real_builds_is_refused(voc, whole, tmp_path):
    """Started by mistake on one folder: one of the two ends, whole; the other says why it did not begin."""
    out = tmp_path / "out"
    folder = out / "voc2007" / "test"
    go = tmp_path / "go"
    first = start(voc, out, program=("-c", WAITING.format(go=str(go))))
    try:
        end = time.monotonic() + 30
        while not list(folder.glob(".voc2007-test-000001.*.part")):
            assert time.monotonic() < end and first.poll() is None, "the first build never began"
            time.sleep(0.01)
        second = start(voc, out)
        _, errors = second.communicate(timeout=60)
        assert (second.returncode, "another build is writing into this folder" in errors) == (2, True), errors
        go.touch()
        _, errors = first.communicate(timeout=60)
        assert first.returncode == 0, errors
    finally:
        first.kill()
    assert contents(folder) == whole


def test_a_dry_run_writes_nothing_and_shows_everything(voc, tmp_path):
    out = tmp_path / "out"
    dry = start(voc, out, "--dry-run")
    shown, errors = dry.communicate(timeout=60)
    assert dry.returncode == 0, errors
    for expected in (
        "10 samples in 5 shards",
        " kB in less than a second, an estimate from 2 images",
    ):
        assert expected in shown
    assert not out.exists()
    assert start(voc, out, "--task", "1/5").wait(60) == 0
    before = contents(out)
    shown, _ = start(voc, out, "--dry-run").communicate(timeout=60)
    assert "1 of them finished already" in shown
    assert contents(out) == before


def test_options_that_exclude_each_other_are_refused(voc, tmp_path):
    for options in (["--task", "1/2", "--finish"], ["--task", "1/2", "--overwrite"], ["--finish", "--dry-run"]):
        refused = start(voc, tmp_path / "out", *options)
        _, errors = refused.communicate(timeout=60)
        assert (refused.returncode, "exclude each other" in errors) == (2, True), errors
    assert not (tmp_path / "out").exists()


def test_an_estimate_is_near_the_truth(voc, plan, tmp_path):
    out = open_storage(tmp_path / "out")
    estimate = estimate_build(plan, out, num_workers=1)
    manifest = build_shards(plan, out, num_workers=1)
    size = sum(shard.num_bytes for shard in manifest.shards)
    assert abs(estimate.num_bytes - size) / size < 0.2
    assert 0 < estimate.seconds < 10
    assert (estimate.num_finished, estimate.num_timed) == (0, 2)
    assert estimate_build(plan, out).num_finished == 5
    (tmp_path / "out" / MANIFEST_NAME).unlink()
    (tmp_path / "out" / manifest.shards[1].name).unlink()
    rest = estimate_build(plan, out)
    assert (rest.num_finished, rest.num_bytes < estimate.num_bytes / 3) == (4, True)
    assert estimate_build(plan, out, overwrite=True).num_finished == 0


def test_an_estimate_counts_a_shard_that_left_something_out_as_one_to_write(voc, tmp_path):
    out = open_storage(tmp_path / "out")
    sorted((voc / "JPEGImages").iterdir())[0].write_bytes(b"no photograph")
    plan = plan_of(voc)
    build_shards(plan, out, num_workers=1, on_error="skip")
    (tmp_path / "out" / MANIFEST_NAME).unlink()
    assert estimate_build(plan, out).num_finished == len(plan.shards) - 1


def test_an_estimate_refuses_what_the_build_would_refuse(voc, plan, tmp_path):
    out = open_storage(tmp_path / "out")
    build_shards(plan, out, num_workers=1)
    with pytest.raises(UserError, match="from other files, labels or options"):
        estimate_build(plan_of(voc, 3), out)
    for path in (voc / "JPEGImages").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the 2 images tried can be used.*the file is empty"):
        estimate_build(plan, open_storage(tmp_path / "fresh"))


def test_a_finished_array_job_reads_like_any_dataset(plan, tmp_path):
    out = open_storage(tmp_path / "out")
    for number in (1, 2):
        build_part(plan, out, Part(number, 2), num_workers=1)
    finish_build(plan, out)
    sizes = json.loads((tmp_path / "out" / "sizes.json").read_text())
    assert sizes == {f"voc2007-test-{number:06d}.tar": 2 for number in range(5)}
