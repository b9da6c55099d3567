"""What the demo and the smoke scale run: the masks of the test are none of training's, and every run is alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from msltrain.demo.demo import _FULL, _QUICK, _RUNS, _plan
from msltrain.demo.subprocesses import Step
from msltrain.reproduce import smoke


def value_of(step: Step, option: str) -> str:
    return step.arguments[step.arguments.index(option) + 1]


def values_of(step: Step, option: str) -> list[str]:
    return [after for word, after in zip(step.arguments, step.arguments[1:]) if word == option]


@pytest.fixture(params=["demo", "quick", "smoke"])
def steps(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sequence[Step]:
    if request.param != "smoke":
        return _plan(tmp_path, _FULL if request.param == "demo" else _QUICK)
    asked: list[Step] = []
    monkeypatch.setattr(smoke, "run_steps", lambda steps, folder, *, what, on_event: asked.extend(steps))
    smoke.make_data(tmp_path)
    return asked


def test_the_masks_of_the_test_are_none_of_those_of_training(steps: Sequence[Step]):
    """A generated mask is a function of seed, number and size: equal seeds would hide the test as training hid it."""
    training, test = [step for step in steps if step.arguments[0] == "build-masks"]
    assert value_of(training, "--seed") != value_of(test, "--seed")
    assert value_of(training, "--size") == value_of(test, "--size")
    assert value_of(training, "--out") != value_of(test, "--out")


def test_every_model_of_the_demo_is_trained_and_judged_alike(tmp_path: Path):
    by_name = {step.name: step for step in _plan(tmp_path, _QUICK)}
    trained = [by_name[f"train-{run}"] for run in _RUNS]
    reef, masks, heldout = tmp_path / "shards/reef", tmp_path / "masks", tmp_path / "heldout-masks"
    assert [values_of(step, "--data") for step in trained] == [[str(reef / "trainval")]] * 4
    assert [values_of(step, "--keep-masks") for step in trained] == [[], *[[str(masks / "high")]] * 3]
    assert len({tuple(values_of(step, "--set")) for step in trained}) == 1
    for name in ("robustness", "report"):
        step = by_name[name]
        assert values_of(step, "--data") == [str(reef / "test")]
        assert values_of(step, "--keep-masks") == [str(heldout / "low"), str(heldout / "high")]
        assert values_of(step, "--checkpoint") == [str(tmp_path / "runs" / run) for run in _RUNS]
        assert values_of(step, "--name") == [called for called, _ in _RUNS.values()]
    study = by_name["robustness"]
    assert values_of(study, "--recalibrate") == [str(reef / "trainval")]
    assert values_of(study, "--recalibrate-masks") == [str(masks / "high")]
