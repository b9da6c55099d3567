"""The demo end to end in its quick version: real commands, the page, going on after a stop, and failures."""

from __future__ import annotations

import html
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from msldata.errors import UserError
from msltrain.demo.demo import run_demo
from msltrain.demo.subprocesses import StepFinished, StepOutput, StepStarted
from msltrain.measures.metrics import compute_metrics
from msltrain.measures.predictions import read_predictions
from msltrain.recipes import recipe
from msltrain.runs.run_places import default_file
from tests import readyprogram

pytestmark = pytest.mark.usefixtures("ready_python")


@pytest.fixture(scope="module")
def finished(ready_python: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list]:
    out = tmp_path_factory.mktemp("demo") / "out here"  # a space: the commands shown must be quoted
    events: list = []
    return out, run_demo(out, quick=True, on_event=events.append), events


def predictions_file(out: Path, run: str, condition: str) -> Path:
    masks = [] if condition == "whole" else [out / "heldout-masks" / condition]
    return default_file(out / "runs" / run, out / "shards/reef/test", masks)


def numbers_of_steps(events: list, kind: type) -> int:
    return sum(isinstance(event, kind) for event in events)


RUNS = ("baseline", "augmentation", "msl", "distil")


def test_page_holds_the_numbers_of_all_runs(finished):
    out, page, _ = finished
    text = page.read_text(encoding="utf-8")
    for run in RUNS:
        for condition in ("whole", "low", "high"):
            metrics = compute_metrics(read_predictions(predictions_file(out, run, condition)))
            assert f"{100 * metrics.mAP:.1f}" in text, f"{run} {condition}"
    assert all(name in text for name in ("Baseline", "Masks as augmentation", "MSL as published", "Distilled"))
    assert "reef" in text
    assert re.search(r"Baseline [\d,]+ s, .*MSL as published [\d,]+ s, Distilled [\d,]+ s", text), (
        "wall time of all runs"
    )
    assert "Robustness to holes" in text and "Baseline recalibrated" in text
    written = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    assert [area["model"] for area in written["robustness"]["areas"]] == [
        *("Baseline", "Baseline recalibrated", "Masks as augmentation", "MSL as published", "Distilled")
    ]
    assert "msl train --recipe msl-c-voc2007" in text, "how to go on with real data"


def test_every_step_is_a_command_that_is_shown_before_it_runs(finished):
    out, page, events = finished
    started = [event for event in events if isinstance(event, StepStarted)]
    assert [event.command.partition("msl ")[2].split()[0] for event in started] == [
        *("synthesize", "build-shards", "build-masks", "build-masks"),
        *["train"] * 4,
        *("robustness", "report"),
    ]
    assert [event.number for event in started] == list(range(1, 11))
    assert all(f"'{out}" in event.command for event in started)
    assert not any(event.skipped for event in events if isinstance(event, StepFinished))
    assert numbers_of_steps(events, StepOutput) > 10
    for event in started:
        assert event.command in html.unescape(page.read_text(encoding="utf-8"))


def test_all_runs_have_equal_budgets(finished):
    out, _, _ = finished
    configs = [json.loads((out / "runs" / run / "config.json").read_text()) for run in RUNS]
    for section in ("stream", "model", "optim", "run"):
        assert all(config[section] == configs[0][section] for config in configs)
    assert recipe("demo").optim == recipe("demo-baseline").optim
    steps = [
        max(json.loads(line)["step"] for line in (out / "runs" / run / "metrics.jsonl").read_text().splitlines())
        for run in RUNS
    ]
    assert len(set(steps)) == 1 and steps[0] > 0


def test_train_and_test_masks_differ(finished):
    out, _, _ = finished
    names = [json.loads((out / name / "high" / "dataset.json").read_text()) for name in ("masks", "heldout-masks")]
    assert names[0]["fingerprint"] != names[1]["fingerprint"]


def test_a_second_run_does_only_what_is_missing(finished):
    out, page, _ = finished
    before = page.read_bytes()
    study = out / "robustness/robustness.json"
    contents = study.read_bytes()
    study.unlink()
    events: list = []
    assert run_demo(out, quick=True, on_event=events.append) == page
    assert [event.skipped for event in events if isinstance(event, StepFinished)] == [True] * 8 + [False, True]
    assert study.read_bytes() == contents
    assert page.read_bytes() == before


def test_a_training_that_ended_before_it_was_noted_is_not_done_again(finished, tmp_path: Path):
    out, _, _ = finished
    steps = json.loads((out / "steps.json").read_text())
    kept = {
        command: seconds
        for command, seconds in steps.items()
        if " train " not in command or "--recipe demo " not in command
    }
    assert len(kept) == 9
    (out / "steps.json").write_text(json.dumps(kept))
    started = json.loads((out / "runs" / "msl" / "environment.json").read_text())
    run_demo(out, quick=True)
    again = json.loads((out / "runs" / "msl" / "environment.json").read_text())
    assert again == started and len(json.loads((out / "steps.json").read_text())) == len(steps)


def test_a_failure_names_the_command_its_words_and_its_log(tmp_path: Path):
    wrong = tmp_path / "raw" / "VOCdevkit" / "VOC2007"
    wrong.mkdir(parents=True)
    with pytest.raises(UserError) as failure:
        run_demo(tmp_path, quick=True)
    message = str(failure.value)
    assert "exit code 2" in message
    assert "msl synthesize --out" in message
    assert "not a synthetic dataset" in message
    log = tmp_path / "logs" / "synthesize.log"
    assert str(log) in message and "not a synthetic dataset" in log.read_text()
    assert not (tmp_path / "report.html").exists()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes where Linux shows them")
def test_stopping_it_leaves_no_command_behind(tmp_path: Path):
    demo = subprocess.Popen(
        [sys.executable, "-u", "-m", "msltrain", "demo", "--quick", "--out", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert demo.stdout is not None
    for line in demo.stdout:
        if "$ msl synthesize" in line:
            break
    pid = readyprogram.pid_of(demo.pid)
    children = Path(f"/proc/{pid}/task/{pid}/children")
    log = tmp_path / "logs" / "synthesize.log"
    while not (log.exists() and log.read_text()):  # from then on the demo answers for the command
        time.sleep(0.01)
    running = children.read_text().split()
    assert running
    demo.send_signal(signal.SIGINT)
    output = demo.stdout.read()
    assert demo.wait() == 130, output
    assert not any(Path("/proc", process).exists() for process in running)
    assert "the same command goes on" in output
    assert not (tmp_path / "shards").exists()


def test_a_damaged_list_of_steps_is_a_clear_error(tmp_path: Path):
    (tmp_path / "steps.json").write_text("{")
    with pytest.raises(UserError, match=r"steps\.json: not a list of finished steps"):
        run_demo(tmp_path, quick=True)
