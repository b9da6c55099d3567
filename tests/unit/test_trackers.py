"""Trackers: a missing key is said before anything starts, and a failing one never ends a training."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from msldata.errors import UserError
from msltrain.recipes import RECIPES
from msltrain.runs import trackers


def config(**run):
    smoke = RECIPES["smoke"]()
    return replace(smoke, run=replace(smoke.run, **run))


def test_a_missing_key_is_said_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr(trackers, "_installed", lambda package: True)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="needs a key of Weights & Biases; run `wandb login` once"):
        trackers.check_trackers(config(wandb="msl"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    trackers.check_trackers(config(wandb="msl"))
    monkeypatch.delenv("WANDB_MODE")
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password 0123\n")
    trackers.check_trackers(config(wandb="msl"))


class Failing:
    """Fails at one of its three moments."""

    def __init__(self, moment: str):
        self.moment, self.rows = moment, []
        self.fail("init")

    def fail(self, moment: str) -> None:
        if moment == self.moment:
            raise ConnectionError(f"no network at {moment}")

    def add(self, row) -> None:
        self.fail("add")

    def close(self) -> None:
        self.fail("close")


@pytest.mark.parametrize("moment", ["init", "add", "close"])
def test_a_failing_tracker_is_left_alone(monkeypatch, caplog, tmp_path, moment):
    monkeypatch.setattr(trackers, "_WandB", lambda *given: Failing(moment))
    with caplog.at_level(logging.WARNING):
        [tracker] = trackers.open_trackers(config(wandb="msl"), tmp_path, place="runs/a", step=0)
        for step in range(3):
            tracker.add({"step": step, "total": 1.0})
        tracker.close()
    [record] = caplog.records
    assert f"no network at {moment}" in record.getMessage() and "metrics.jsonl has them all" in record.getMessage()


class FakeMLflow:
    """As much of MLflow's client as is asked."""

    def __init__(self):
        self.runs, self.refuses = {}, None

    def get_experiment_by_name(self, name):
        if self.refuses:
            raise RuntimeError(self.refuses)

    def create_experiment(self, name):
        return name

    def search_runs(self, experiments, filter_string, max_results):
        return [run for run in self.runs.values() if run.tag in filter_string]

    def create_run(self, experiment, run_name, tags):
        run = SimpleNamespace(
            tag=next(iter(tags.values())), info=SimpleNamespace(run_id=run_name), points=[], params={}
        )
        run.data = SimpleNamespace(metrics={})
        self.runs[run_name] = run
        return run

    def get_metric_history(self, run, name):
        return [point for point in self.runs[run].points if point.key == name]

    def log_param(self, run, name, value):
        self.runs[run].params[name] = value

    def log_batch(self, run, metrics):
        for metric in metrics:
            self.runs[run].points.append(metric)
            self.runs[run].data.metrics[metric.key] = metric.value

    def update_run(self, run, status):
        self.runs[run].status = status

    def set_terminated(self, run):
        self.runs[run].status = "FINISHED"


@pytest.fixture
def mlflow(monkeypatch):
    """A server of MLflow's, as its client shows it."""
    client = FakeMLflow()
    entities = SimpleNamespace(Metric=lambda key, value, at, step: SimpleNamespace(key=key, value=value, step=step))
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.setattr(trackers, "_mlflow_client", lambda: client)
    monkeypatch.setattr(trackers, "_installed", lambda package: True)
    return client


def test_mlflow_shows_a_run_that_goes_on_as_one_curve(mlflow, tmp_path):
    for start, end in ((0, 4), (2, 6)):  # killed after step 3, continued from the checkpoint of step 1
        [tracker] = trackers.open_trackers(config(mlflow="birds"), tmp_path, place="runs/a", step=start)
        for step in range(start, end):
            tracker.add({"step": step, "total": 1.0 / (step + 1), "kind": "text"})
        tracker.close()
    [run] = mlflow.runs.values()
    assert [point.step for point in run.points] == list(range(6)) and {point.key for point in run.points} == {"total"}
    assert run.status == "FINISHED" and run.params["optim.lr"] and run.info.run_id == "a"


@pytest.mark.parametrize(
    ("place", "error", "words"),
    [
        ("http://x", "failed with error code 401 != 200", "http://x wants credentials .* set MLFLOW_TRACKING_TOKEN"),
        ("databricks", "Reading Databricks credential configuration failed", "set DATABRICKS_HOST"),
        ("", "unsupported URI sqlite", "set MLFLOW_TRACKING_URI to the address of a server"),
        ("http://x", "connection refused", None),
    ],
)
def test_mlflow_that_refuses_is_said_at_once(mlflow, monkeypatch, place, error, words):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place)
    mlflow.refuses = error
    if words is None:  # a server that is away may come back
        trackers.check_trackers(config(mlflow="birds"))
        return
    with pytest.raises(UserError, match=f"run.mlflow=birds: .*{words}"):
        trackers.check_trackers(config(mlflow="birds"))


@pytest.mark.parametrize(("step", "purged"), [(0, None), (8, 9)])
def test_tensorboard_forgets_what_is_repeated_and_nothing_else(monkeypatch, tmp_path, step, purged):
    asked: list[object] = []
    board = SimpleNamespace(SummaryWriter=lambda folder, purge_step: asked.append(purge_step))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    trackers.open_trackers(config(tensorboard=True), tmp_path, place="runs/a", step=step)
    assert asked == [purged]


def test_mlflow_goes_on_with_the_curve_of_the_run(monkeypatch, tmp_path):
    """What it has of later steps already is not sent again; until the end it says that the run goes on."""
    said: list[object] = []
    history = {"total": [3, 9, 8], "validation_mAP": [4]}
    client = SimpleNamespace(
        get_experiment_by_name=lambda name: SimpleNamespace(experiment_id="7"),
        search_runs=lambda *_, **__: [
            SimpleNamespace(info=SimpleNamespace(run_id="r"), data=SimpleNamespace(metrics=history))
        ],
        get_metric_history=lambda run, metric: [SimpleNamespace(step=step) for step in history[metric]],
        update_run=lambda run, status: said.append(status),
        log_batch=lambda run, metrics: said.append([(one.key, one.step) for one in metrics]),
        set_terminated=lambda run: said.append("over"),
    )
    metric = lambda key, value, timestamp, step: SimpleNamespace(key=key, step=step)  # noqa: E731
    monkeypatch.setitem(sys.modules, "mlflow.entities", SimpleNamespace(Metric=metric))
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace())
    monkeypatch.setattr(trackers, "_mlflow_client", lambda: client)
    [tracker] = trackers.open_trackers(config(mlflow="msl"), tmp_path, place="runs/a", step=6)
    for step in (8, 9, 10):
        tracker.add({"step": step, "total": 1.0, **({"validation_mAP": 0.5} if step == 8 else {})})
    tracker.close()
    assert said == ["RUNNING", [("validation_mAP", 8)], [("total", 10)], "over"]
