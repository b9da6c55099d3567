"""The launcher is the terminal of its processes: exit codes, signals, restarts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from msldata.errors import UserError
from msltrain.hosts import launch

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def no_torchrun(monkeypatch: pytest.MonkeyPatch):
    """A Python that takes torchrun's place: it writes down its arguments and ends with 7."""
    given: list[list[str]] = []
    really = subprocess.Popen

    def popen(command, **options):
        given.append(command)
        return really([sys.executable, "-c", "raise SystemExit(7)"], **options)

    monkeypatch.setattr(subprocess, "Popen", popen)
    return given


def test_the_command_and_its_restarts_reach_torchrun(no_torchrun: list[list[str]]):
    before = signal.getsignal(signal.SIGTERM)
    assert launch.launch(["cli.py", "train", "--resume", "auto"], 4, max_restarts=3) == 7
    (command,) = no_torchrun
    assert {"--standalone", "--nproc-per-node=4", "--max-restarts=3"} < set(command)
    assert command[-4:] == ["cli.py", "train", "--resume", "auto"]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("resume", "restarts"), [("auto", 3), ("must", 0), (None, 0)])
def test_only_a_run_that_may_go_on_is_started_again(monkeypatch: pytest.MonkeyPatch, resume, restarts):
    from typer.testing import CliRunner

    asked = []
    monkeypatch.setattr(launch, "num_processes", lambda gpus: 2)
    monkeypatch.setattr(launch, "launch", lambda argv, processes, *, max_restarts: asked.append(max_restarts) or 0)
    from msltrain.__main__ import app

    CliRunner().invoke(app, ["train", "--recipe", "smoke", *(["--resume", resume] if resume else [])])
    assert asked == [restarts]


def test_sigterm_is_passed_on(tmp_path: Path):
    """The launcher alone is told, as by a scheduler; what it started ends in its own way, and it hands on the code."""
    child = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\n"
        f"pathlib.Path({str(tmp_path / 'up')!r}).touch()\n"
        "time.sleep(30)"
    )
    parent = (
        "import subprocess, sys\n"
        "from msltrain.hosts import launch\n"
        "really = subprocess.Popen\n"
        f"subprocess.Popen = lambda *_: really([sys.executable, '-c', {child!r}])\n"
        "sys.exit(launch.launch(['cli.py'], 2))"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    until = time.monotonic() + 20
    while not (tmp_path / "up").exists() and time.monotonic() < until:
        time.sleep(0.01)
    process.terminate()
    assert process.wait(timeout=20) == 5


def test_more_gpus_than_there_are_is_a_mistake(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(UserError, match="give a number, or auto"):
        launch.num_processes("some")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert launch.num_processes("8") == 1
