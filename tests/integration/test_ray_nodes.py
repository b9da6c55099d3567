"""A Ray cluster of several nodes on this machine: one that is killed during a build costs its shards only."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from msldata.build.shards import build_shards, plan_build
from msldata.sources.kinds import open_source
from msldata.storage import open_storage
from msldata.workers.engine import Engine, run_tasks
from tests.conftest import REPOSITORY
from tests.tinydata import contents, make_voc

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch):
    """A head without processors, and two nodes of one each."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'msltrain[ray]'")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    quiet = {"object_store_memory": 80_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **quiet})
    cluster.nodes = [cluster.add_node(num_cpus=1, object_store_memory=80_000_000) for _ in range(2)]
    ray.init(
        address=cluster.address,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}},
    )
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def slowly(task: tuple[str, int, str]) -> int:
    """A task that leaves a trace of every attempt, with the node it runs on."""
    import ray

    folder, number, doomed = task
    node = ray.get_runtime_context().get_node_id()
    (Path(folder) / f"{number}-{os.getpid()}-{node}").touch()
    time.sleep(60 if node == doomed else 0.2)  # there only the kill ends it, however long that takes
    return number


def test_a_killed_node_costs_only_what_it_was_doing(cluster, tmp_path: Path):
    def kill() -> None:
        # In the middle of a task there; on a busy machine the other node may do many before this one begins.
        while not list(tmp_path.glob(f"*-{cluster.nodes[0].node_id}")):
            time.sleep(0.02)
        cluster.remove_node(cluster.nodes[0], allow_graceful=False)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    tasks = [(str(tmp_path), number, cluster.nodes[0].node_id) for number in range(12)]
    assert run_tasks(slowly, tasks, engine=Engine("ray")) == list(range(12))
    killer.join()
    attempts = [len(list(tmp_path.glob(f"{number}-*"))) for number in range(12)]
    assert sum(attempts) <= 14 and max(attempts) == 2, attempts


def test_a_build_goes_on_with_the_same_bytes(cluster, tmp_path: Path):
    plan = plan_build(open_source("voc2007", make_voc(tmp_path / "datasets", 60), "test"), samples_per_shard=3)
    build_shards(plan, open_storage(tmp_path / "local"), num_workers=2)
    done = []

    def progress(num_done: int, _: int) -> None:
        done.append(num_done)
        if len(done) == 5:
            cluster.remove_node(cluster.nodes[0], allow_graceful=False)

    build_shards(plan, open_storage(tmp_path / "ray"), engine=Engine("ray"), progress=progress)
    assert done[-1] == 60 and contents(tmp_path / "ray") == contents(tmp_path / "local")


def test_the_documented_command_survives_a_killed_node(cluster, tmp_path: Path):
    source, out = make_voc(tmp_path / "datasets", 400), tmp_path / "ray/voc2007/test"
    build_shards(
        plan_build(open_source("voc2007", source, "test"), samples_per_shard=2), open_storage(tmp_path / "local")
    )
    words = ["build-shards", "--dataset", "voc2007", "--source", str(source), "--split", "test"]
    words += [
        "--out",
        str(tmp_path / "ray"),
        "--samples-per-shard",
        "2",
        "--engine",
        "ray",
        "--ray-address",
        cluster.address,
    ]
    build = subprocess.Popen(
        [sys.executable, "-P", "-m", "msltrain", *words],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while len(list(out.glob("*.tar"))) < 5:
        assert build.poll() is None, build.communicate()[0]
        time.sleep(0.01)
    cluster.remove_node(cluster.nodes[0], allow_graceful=False)
    assert build.poll() is None and not (out / "dataset.json").exists(), "it was over before the node was killed"
    said, _ = build.communicate(timeout=900)
    assert build.returncode == 0 and "Traceback" not in said, said
    built, expected = contents(out), contents(tmp_path / "local")
    del built["dataset.json"], expected["dataset.json"]  # it tells by which command
    assert built == expected
