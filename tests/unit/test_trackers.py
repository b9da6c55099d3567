"""Trackers: a missing key is said before anything starts, and a failing one never ends a training."""

from __future__ import annotations

import logging
from dataclasses import replace

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
