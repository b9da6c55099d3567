"""A grid's folder after damage: what its runs say is enough, and one bad file costs one job."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from msldata.errors import UserError
from msltrain.config import to_json
from msltrain.grids.folder import NAME, claim_folder
from msltrain.grids.jobs import StudyJob, is_whole, predictions_file
from msltrain.grids.plan import LAST, DataPlaces, Plan, Run, make_plan
from msltrain.grids.results import measures_of
from msltrain.measures.predictions import Origin, Predictions, read_predictions, write_predictions
from msltrain.measures.summary import measure
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


def with_a(value, *names):
    """The file's text with an odd value at a place of its first run, or of the whole."""

    def damage(text: str) -> str:
        content = json.loads(text)
        place = next(iter(content["runs"].values())) if names[0] in ("config", "data", "conditions") else content
        for name in names[:-1]:
            place = place[name]
        place[names[-1]] = value
        return json.dumps(content)

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-40],
        lambda text: "",
        lambda text: "[]",
        with_a([1], "runs"),
        with_a(5, "command"),
        with_a({"optim": 5}, "config"),
        with_a("x", "config", "optim", "lr"),
        with_a("abc", "data", "training images"),
        with_a([["abc"]], "data", "training images"),
        with_a(7, "data"),
        with_a({"high": {}}, "conditions"),
        with_a(None, "conditions"),
    ],
)
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


def measured_run(out: Path) -> tuple[Run, list[Path]]:
    """A run with predictions of two seeds."""
    [run] = [run for run in plan().runs if run.name == "loss-terms/msl"]
    rng = np.random.default_rng(0)
    files = [predictions_file(run.folder(out, seed), LAST, WHOLE) for seed in (0, 1)]
    for seed, file in enumerate(files):
        predictions = Predictions(
            keys=tuple("abcdefghi"),
            logit_NK=rng.normal(size=(9, 2)).astype(np.float32),
            target_NK=(rng.random((9, 2)) < 0.5).astype(np.uint8),
            ignore_NK=np.zeros((9, 2), bool),
            classes=("x", "y"),
            origin=Origin(checkpoint_sha256=f"{seed}" * 64),
        )
        write_predictions(predictions, file)
    return run, files


def test_a_damaged_predictions_file_costs_its_job_only(tmp_path):
    run, files = measured_run(tmp_path)
    assert set(measures_of(run, tmp_path, (0, 1))[LAST][WHOLE].spreads["mAP"].by_seed) == {0, 1}
    files[0].write_bytes(files[0].read_bytes()[:-30])
    files[1].with_suffix(".json").write_text("{")
    assert [is_whole(file) for file in files] == [False, True]
    assert set(measures_of(run, tmp_path, (0, 1))[LAST][WHOLE].spreads["mAP"].by_seed) == {1}


def test_predictions_of_other_weights_are_made_again(tmp_path, monkeypatch):
    run, files = measured_run(tmp_path)
    monkeypatch.setattr("msltrain.grids.jobs._weights", lambda checkpoint: str(int(checkpoint.parts[-3][4:])) * 64)
    assert [is_whole(file) for file in files] == [True, True]
    files[0].write_bytes(files[1].read_bytes())
    assert [is_whole(file) for file in files] == [False, True]
    assert set(measures_of(run, tmp_path, (0, 1))[LAST][WHOLE].spreads["mAP"].by_seed) == {1}


def test_curves_of_other_weights_are_drawn_again(tmp_path, monkeypatch):
    """A model was trained anew: the job is not finished, also where it is killed before it draws, and begins anew."""
    _, files = measured_run(tmp_path)
    models = tuple((name, files[seed].parent.parent) for seed, name in enumerate(("Baseline", "MSL")))
    study = StudyJob(
        grid="main",
        seed=0,
        models=models,
        shards="s",
        keep_masks=(),
        recalibration=("t", ()),
        folder=tmp_path / "curves",
        needs=(),
    )
    for seed, (name, _) in enumerate((("Baseline", 0), ("MSL", 1), ("Baseline recalibrated", 0))):
        (study.folder / "predictions" / name).mkdir(parents=True)
        shutil.copy(files[seed % 2], study.folder / "predictions" / name / "whole.parquet")
    cell = {"kind": "", "condition": WHOLE, "hole_fraction": 0.0, "mAP": 0.5, "CR": 0.5, "CF1": 0.5}
    counts = {"visible_share": [], "num_pairs": [], "num_predicted": [], "num_negative": 0, "num_false": 0}
    study.result.write_text(json.dumps({"cells": [{"model": "MSL", **cell, **counts}], "areas": []}))
    trained = {"seed0": "0" * 64, "seed1": "1" * 64}
    monkeypatch.setattr("msltrain.grids.jobs._weights", lambda run: trained[run.name])
    assert study.is_finished
    trained["seed1"] = "2" * 64
    assert not study.is_finished

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("msltrain.robustness.run.run_study", killed)
    with pytest.raises(KeyboardInterrupt):
        study.perform(lambda *_: None)
    left = sorted(one.name for one in (study.folder / "predictions").iterdir())
    assert left == ["Baseline", "Baseline recalibrated"] and not study.is_finished


def test_the_recalibrated_baseline_is_of_the_weights_that_were_recalibrated(tmp_path, monkeypatch):
    """Trained anew, its predictions are made again, and those of the twin with statistics measured anew as well."""
    _, files = measured_run(tmp_path)
    study = StudyJob(
        grid="main",
        seed=0,
        models=(("Baseline", files[0].parent.parent), ("MSL", files[1].parent.parent)),
        shards="s",
        keep_masks=(),
        recalibration=("t", ()),
        folder=tmp_path / "curves",
        needs=(),
    )
    for name, file in (("Baseline", files[0]), ("MSL", files[1]), ("Baseline recalibrated", files[0])):
        (study.folder / "predictions" / name).mkdir(parents=True)
        shutil.copy(file, study.folder / "predictions" / name / "whole.parquet")
    trained = {"seed0": "0" * 64, "seed1": "1" * 64}
    monkeypatch.setattr("msltrain.grids.jobs._weights", lambda run: trained[run.name])
    assert study._of_other_weights() == []
    trained["seed0"] = "2" * 64
    assert sorted(folder.name for folder in study._of_other_weights()) == ["Baseline", "Baseline recalibrated"]
    # A study that was killed while it measured the baseline again: what is left of the twin is still the old one's.
    write_predictions(
        replace(found := read_predictions(files[0]), origin=replace(found.origin, checkpoint_sha256="2" * 64)),
        study.folder / "predictions" / "Baseline" / "whole.parquet",
    )
    assert [folder.name for folder in study._of_other_weights()] == ["Baseline recalibrated"]


def test_conditions_that_another_call_did_not_ask_for_are_kept(tmp_path, monkeypatch):
    """A grid is measured behind masks one day, and whole the next: the masks of the first day must not change still."""
    conditions: dict[str, str] = {}
    monkeypatch.setattr(
        "msltrain.grids.folder._describe", lambda *about: {**describe(*about), "conditions": dict(conditions)}
    )

    def claim(**asked: str) -> None:
        conditions.clear()
        conditions.update(asked)
        claim_folder(tmp_path, plan(), (), "msl ablate loss-terms")

    def recorded() -> list[dict[str, str]]:
        runs = json.loads((tmp_path / NAME).read_text())["runs"].values()
        return [run["conditions"] for run in runs]

    claim(low="1", high="2")
    for asked in ({}, {"low": "1"}, {"other": "3"}):
        claim(**asked)
    assert recorded() == [{"low": "1", "high": "2", "other": "3"}] * len(plan().runs)
    with pytest.raises(UserError, match=r"holds runs of another grid .*other held-out keep masks, high"):
        claim(high="9")
    claim(high="2")


def test_other_data_is_another_grid_and_so_is_another_order_of_keep_masks(tmp_path, monkeypatch):
    """A mask is chosen by its number among those of all folders."""
    data = {"training images": ["1"], "training keep masks": ["2", "3"]}
    monkeypatch.setattr("msltrain.grids.folder._describe", lambda *about: {**describe(*about), "data": dict(data)})
    claim_folder(tmp_path, plan(), (), "msl ablate loss-terms")
    before = (tmp_path / NAME).read_text()
    for role, now in (("training keep masks", ["3", "2"]), ("training keep masks", ["2"]), ("training images", ["4"])):
        was, data[role] = data[role], now
        with pytest.raises(UserError, match=f"holds runs of another grid .*other {role}"):
            claim_folder(tmp_path, plan(), (), "msl ablate loss-terms")
        data[role] = was
    claim_folder(tmp_path, plan(), (), "msl ablate loss-terms")
    assert (tmp_path / NAME).read_text() == before


@pytest.mark.parametrize(
    "change",
    [
        lambda measured, other: other,
        lambda measured, other: {**measured, "metrics": {**measured["metrics"], "mAP": 7.0}},
        lambda measured, other: {**measured, "metrics": {**measured["metrics"], "CR": "high"}},
        lambda measured, other: {**measured, "metrics": {**measured["metrics"], "num_samples": None}},
        lambda measured, other: {**measured, "metrics": [1]},
        lambda measured, other: {"origin": measured["origin"]},
        lambda measured, other: [measured],
    ],
)
def test_measures_that_are_not_those_of_the_predictions_are_taken_again(tmp_path, change):
    run, files = measured_run(tmp_path)
    expected = measures_of(run, tmp_path, (0, 1))[LAST][WHOLE]
    measured, other = (json.loads(measure(read_predictions(file)).to_json()) for file in files)
    files[0].with_suffix(".json").write_text(json.dumps(change(measured, other)))
    assert measures_of(run, tmp_path, (0, 1))[LAST][WHOLE] == expected
