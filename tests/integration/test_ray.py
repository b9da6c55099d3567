"""Shard tasks on a real Ray cluster of this machine: the same bytes as local processes make, and the same errors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from msldata.build.shards import build_shards, plan_build
from msldata.errors import BadInputError, UserError
from msldata.sources.kinds import open_source
from msldata.storage import open_storage
from msldata.workers.engine import Engine, run_tasks
from tests.integration.test_engine import die, die_once, fail_at_three, square
from tests.tinydata import contents, make_voc

REPOSITORY = Path(__file__).resolve().parents[2]
RAY = Engine("ray")


@pytest.fixture(scope="module")
def cluster():
    """One cluster for all tests: starting one takes seconds."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'msltrain[ray]'")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=80_000_000,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}},
    )
    yield ray
    ray.shutdown()


@pytest.mark.parametrize("num_workers", [None, 2])
def test_results_come_in_task_order(cluster, num_workers):
    seen = []
    assert run_tasks(square, range(8), num_workers, seen.append, RAY) == [number * number for number in range(8)]
    assert sorted(seen) == [number * number for number in range(8)]
    assert run_tasks(square, [], num_workers, engine=RAY) == []


def test_a_build_has_the_bytes_of_a_local_one(cluster, tmp_path):
    plan = plan_build(open_source("voc2007", make_voc(tmp_path / "datasets", 10), "test"), samples_per_shard=3)
    build_shards(plan, open_storage(tmp_path / "local"), num_workers=2)
    progress = []
    build_shards(plan, open_storage(tmp_path / "ray"), engine=RAY, progress=lambda *counts: progress.append(counts))
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
    assert progress[-1] == (10, 10)


def test_the_first_error_is_raised_as_itself(cluster):
    with pytest.raises(BadInputError, match=r"image\.jpg: truncated JPEG") as caught:
        run_tasks(fail_at_three, range(6), 2, engine=RAY)
    assert (caught.value.file, caught.value.reason) == ("image.jpg", "truncated JPEG")


def test_a_killed_worker_costs_only_its_task(cluster, tmp_path):
    tasks = [(str(tmp_path), number, number == 1) for number in range(4)]
    assert run_tasks(die_once, tasks, 2, engine=RAY) == [0, 1, 2, 3]
    assert [len(list(tmp_path.glob(f"{number}-*"))) for number in range(4)] == [1, 2, 1, 1]


def test_a_task_that_kills_every_worker_is_given_up_with_the_way_on(cluster):
    with pytest.raises(UserError, match=r"2 Ray workers were killed.*run the same command again"):
        run_tasks(die, [1], 1, engine=RAY)


def test_without_ray_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"Ray is not installed here; run: pip install 'msltrain\[ray\]'"):
        run_tasks(square, range(3), engine=RAY)


def test_a_cluster_out_of_reach_is_said_at_once(monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'msltrain[ray]'")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(UserError, match=r"--ray-address 127\.0\.0\.1:1: no Ray cluster answers there"):
        run_tasks(square, range(3), engine=Engine("ray", "127.0.0.1:1"))


def test_the_command_starts_a_cluster_of_its_own(tmp_path):
    """``--engine ray`` without an address: started, used and stopped within one command."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'msltrain[ray]'")
    source = make_voc(tmp_path / "datasets", 5)
    for engine in ("local", "ray"):
        command = ["build-shards", "--dataset", "voc2007", "--source", source, "--split", "test", "--engine", engine]
        options = ["--samples-per-shard", "2", "--workers", "2", "--out", tmp_path / engine]
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        subprocess.run(
            [sys.executable, "cli.py", *command, *options], cwd=REPOSITORY, env=environment, check=True, timeout=120
        )
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


def test_engines_are_checked():
    with pytest.raises(UserError, match=r"unknown engine 'spark'; known are: local, ray"):
        Engine("spark")
    with pytest.raises(UserError, match="--ray-address auto needs --engine ray"):
        Engine(ray_address="auto")
