"""What the demo and the smoke scale run: the masks of the test are none of training's, and every run is alike."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from msldata.errors import UserError
from msltrain.demo import subprocesses
from msltrain.demo.demo import _FULL, _QUICK, _RUNS, _plan
from msltrain.demo.subprocesses import CommandEvent, Step, StepFinished, StepOutput, StepStarted, run_steps
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


@pytest.fixture
def run_as_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step's first argument is the source of what it does."""
    monkeypatch.setattr(subprocesses, "program_command", lambda *code: [sys.executable, "-c", *code])


def step(folder: Path, name: str, code: str, begun: Path | None = None, *, beside: bool = False) -> Step:
    """It notes in ``log`` that it ran, and with which further arguments."""
    noted = f"import pathlib, sys; here = pathlib.Path({str(folder)!r})\n"
    noted += f"open(here / 'log', 'a').write(' '.join([{name!r}, *sys.argv[1:]]) + '\\n')\n"
    return Step(name=name, title=name, arguments=(noted + code,), product=folder / name, begun=begun, beside=beside)


@pytest.mark.usefixtures("run_as_python")
def test_a_step_is_done_once_its_command_has_succeeded_and_its_product_is_there(tmp_path: Path):
    """A product may be older than the command that would make it now, and a finished step's may have been deleted."""

    def ran(*steps: Step) -> list[str]:
        (tmp_path / "log").unlink(missing_ok=True)
        run_steps(steps, tmp_path, what="demo")
        return (tmp_path / "log").read_text().split("\n")[:-1] if (tmp_path / "log").exists() else []

    one, two = (step(tmp_path, name, f"(here / {name!r}).touch()") for name in ("one", "two"))
    (tmp_path / "one").touch()
    assert ran(one, two) == ["one", "two"] and ran(one, two) == []
    (tmp_path / "two").unlink()
    assert ran(one, two) == ["two"]
    other = step(tmp_path, "two", "(here / 'two').touch()  # with other options")
    assert ran(one, other) == ["two"] and ran(one, other) == [] and ran(one, two) == []
    failing = step(tmp_path, "three", "print('why'); sys.exit(3)")
    with pytest.raises(UserError, match=r"failed with exit code 3:(.|\n)*why"):
        ran(one, failing, two)
    with pytest.raises(UserError, match="ended without its product"):
        ran(step(tmp_path, "four", ""))
    mended = step(tmp_path, "three", "(here / 'three').touch()")
    assert ran(one, mended) == ["three"]


@pytest.mark.usefixtures("run_as_python")
def test_a_training_that_was_stopped_goes_on_and_another_one_begins(tmp_path: Path):
    config = tmp_path / "config.json"
    training = step(
        tmp_path,
        "run",
        "config = here / 'config.json'; (here / 'run').touch() if config.exists() else config.touch()",
        config,
    )
    with pytest.raises(UserError, match="ended without its product"):
        run_steps([training], tmp_path, what="demo")
    run_steps([training], tmp_path, what="demo")
    assert (tmp_path / "log").read_text() == "run\nrun --resume auto\n"
    begun = {one.name: one.begun for one in _plan(tmp_path, _QUICK)}
    assert begun["train-msl"] == tmp_path / "runs" / "msl" / "config.json" and begun["report"] is None


MEETING = """
import os, time
print('threads', os.environ['OMP_NUM_THREADS'], flush=True)
(here / 'here-NAME').touch()
while not (here / 'here-OTHER').exists():
    time.sleep(0.01)
(here / 'NAME').touch()
"""


def meeting(folder: Path, name: str, other: str) -> Step:
    """It ends once the other one runs as well."""
    code = MEETING.replace("NAME", name).replace("OTHER", other)
    return step(folder, name, code, beside=True)


@pytest.mark.usefixtures("run_as_python")
def test_trainings_run_beside_each_other_and_what_comes_next_waits_for_all(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(subprocesses, "available_cpus", lambda: 2)
    before, after = (step(tmp_path, name, f"(here / {name!r}).touch()") for name in ("before", "after"))
    pair = [meeting(tmp_path, "one", "two"), meeting(tmp_path, "two", "one")]
    events: list[CommandEvent] = []
    run_steps([before, *pair, after], tmp_path, what="demo", on_event=events.append)
    started = [event.number for event in events if isinstance(event, StepStarted)]
    assert started == [1, 2, 3, 4]
    assert {(event.number, event.line) for event in events if isinstance(event, StepOutput)} == {
        (2, "threads 1"),
        (3, "threads 1"),
    }
    over = [event.number for event in events if isinstance(event, StepFinished)]
    assert (over[0], sorted(over[1:3]), over[3]) == (0, [2, 3], 0)
    ran = (tmp_path / "log").read_text().split()
    assert (ran[0], sorted(ran[1:3]), ran[3]) == ("before", ["one", "two"], "after")
    assert [one.command.startswith("OMP_NUM_THREADS=1 msl ") for one in (before, *pair)] == [False, True, True]


@pytest.mark.usefixtures("run_as_python")
def test_no_more_run_at_once_than_there_are_cores_and_none_is_left_where_one_fails(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(subprocesses, "available_cpus", lambda: 2)
    monkeypatch.setattr(subprocesses, "_GRACE_SECONDS", 0)
    waits = step(tmp_path, "waits", "import time; (here / 'up').touch(); time.sleep(600)", beside=True)
    code = "import time\nwhile not (here / 'up').exists(): time.sleep(0.01)\nsys.exit('no more')"
    fails, third = step(tmp_path, "fails", code, beside=True), step(tmp_path, "third", "", beside=True)
    before = time.monotonic()
    with pytest.raises(UserError, match=r"failed with exit code 1:(.|\n)*no more"):
        run_steps([waits, fails, third], tmp_path, what="demo")
    assert time.monotonic() - before < 300
    assert sorted((tmp_path / "log").read_text().split()) == ["fails", "waits"]


@pytest.mark.usefixtures("run_as_python")
def test_a_log_that_cannot_be_written_is_no_end_without_a_word(tmp_path: Path):
    (tmp_path / "logs" / "one.log").mkdir(parents=True)
    with pytest.raises(OSError, match=r"one\.log"):
        run_steps([step(tmp_path, "one", "print('hello')")], tmp_path, what="demo")
