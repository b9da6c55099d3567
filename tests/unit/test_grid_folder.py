"""A grid's folder after damage: what its runs say is enough, and one bad file costs one job."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from msldata.errors import UserError
from msltrain.config import to_json
from msltrain.grids.folder import NAME, claim_folder
from msltrain.grids.jobs import is_whole, predictions_file
from msltrain.grids.plan import LAST, DataPlaces, Plan, make_plan
from msltrain.grids.results import measures_of
from msltrain.measures.predictions import Predictions, write_predictions
from msltrain.runs.run_places import WHOLE

PLACES = DataPlaces(test_masks=())


def plan(*settings: str) -> Plan:
    return make_plan(["loss-terms"], seeds=(0, 1), places=PLACES, settings=settings)


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A grid whose runs have begun; its data is not looked at."""
    monkeypatch.setattr("msltrain.grids.folder._describe", describe)
    claim_folder(tmp_path, plan(), (), "msl ablate loss-terms")
    for run in plan().runs:
        for seed in (0, 1):
            folder = run.folder(tmp_path, seed)
            folder.mkdir(parents=True)
            config = replace(run.config, run=replace(run.config.run, seed=seed))
            (folder / "config.json").write_text(to_json(config))
    return tmp_path


def describe(run, fingerprints):
    return {"config": json.loads(to_json(run.config)), "data": {"training images": ["abc"]}, "conditions": {}}


@pytest.mark.parametrize("damage", [lambda text: text[:-40], lambda text: "", lambda text: "[]"])
def test_a_damaged_grid_file_is_made_again_from_the_runs(out, caplog, damage):
    file = out / NAME
    before = json.loads(file.read_text())
    file.write_text(damage(file.read_text()))
    with caplog.at_level(logging.WARNING):
        claim_folder(out, plan(), (), "msl ablate loss-terms")
    assert "made again from the folders of its runs" in caplog.text
    assert json.loads(file.read_text()) == before
    file.write_text("{")
    with pytest.raises(UserError, match=r"holds runs of another grid .*optim.lr"):
        claim_folder(out, plan("optim.lr=0.123"), (), "msl ablate loss-terms")


def test_a_damaged_predictions_file_costs_its_job_only(tmp_path):
    [run] = [run for run in plan().runs if run.name == "loss-terms/msl"]
    rng = np.random.default_rng(0)
    target_NK = (rng.random((9, 2)) < 0.5).astype(np.uint8)
    logit_NK, ignore_NK = rng.normal(size=(9, 2)).astype(np.float32), np.zeros((9, 2), bool)
    predictions = Predictions(
        keys=tuple("abcdefghi"), logit_NK=logit_NK, target_NK=target_NK, ignore_NK=ignore_NK, classes=("x", "y")
    )
    files = [predictions_file(run.folder(tmp_path, seed), LAST, WHOLE) for seed in (0, 1)]
    for file in files:
        write_predictions(predictions, file)
    assert set(measures_of(run, tmp_path, (0, 1))[LAST][WHOLE].spreads["mAP"].by_seed) == {0, 1}
    files[0].write_bytes(files[0].read_bytes()[:-30])
    files[1].with_suffix(".json").write_text("{")
    assert [is_whole(file) for file in files] == [False, True]
    assert set(measures_of(run, tmp_path, (0, 1))[LAST][WHOLE].spreads["mAP"].by_seed) == {1}
