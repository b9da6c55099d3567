"""The launcher is the terminal of its processes: how many, exit codes, signals, restarts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from msldata.errors import UserError
from msltrain.hosts import launch

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch):
    """A Python program that takes ours' place; its argument is its source."""
    monkeypatch.setattr(launch, "program_command", lambda *code: [sys.executable, "-c", *code])


WHO = "import os, pathlib, sys; rank = int(os.environ['RANK'])\n"


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ("sys.exit(0)", 0),
        ("sys.exit(75)", 75),
        ("sys.exit(2 if rank else 1)", 2),
        ("sys.exit(3 if rank else 0)", 3),
        ("os.kill(os.getpid(), 9) if rank else sys.exit(1)", 137),
    ],
)
def test_one_exit_code_for_all(program, ends: str, code: int):
    assert launch.launch([WHO + ends], 2) == code


def test_a_failure_ends_those_that_wait_for_ever(program, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(launch, "_GRACE", 0.3)
    assert launch.launch([WHO + "import time\nsys.exit(2) if rank else time.sleep(60)"], 2) == 2


@pytest.mark.parametrize(("first", "codes"), [(0, [0, 75]), (75, [75, 75]), (1, [1, 1]), (-9, [-9, 1]), (2, [2, 1])])
def test_only_a_failure_sets_the_others_a_limit(monkeypatch: pytest.MonkeyPatch, first: int, codes: list[int]):
    """One that has finished, or was stopped and has saved, leaves the others all the time they need to do so too."""
    clock = [0.0]
    monkeypatch.setattr(launch.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(launch.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    ended = SimpleNamespace(poll=lambda: first)
    slow = SimpleNamespace(poll=lambda: 75 if clock[0] > 20 * launch._GRACE else None)
    assert launch._wait([ended, slow]) == codes  # type: ignore[list-item]
    assert (clock[0] < 2 * launch._GRACE) == (codes[1] == 1)


def test_a_lost_process_starts_all_again_and_a_mistake_does_not(program, tmp_path: Path, capfd):
    count = f"place = pathlib.Path({str(tmp_path)!r}); (place / f'{{rank}}-{{os.getpid()}}').touch()\n"
    lost_once = WHO + count + "if rank and len(list(place.glob('1-*'))) < 3: os.kill(os.getpid(), 9)"
    assert launch.launch([lost_once], 2, max_restarts=3) == 0
    assert len(list(tmp_path.iterdir())) == 6
    said = capfd.readouterr().err
    assert "restart 1 of 3" in said and "restart 2 of 3" in said and "restart 3" not in said
    for file in tmp_path.iterdir():
        file.unlink()
    assert launch.launch([WHO + count + "sys.exit(2)"], 2, max_restarts=3) == 2
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("heard", "codes", "starts"),
    [([], [-9, 0], 3), ([15], [-9, 0], 1), ([], [-9, 2], 1), ([], [3, 0], 1), ([], [75, 75], 1), ([], [0, 0], 1)],
)
def test_who_was_told_to_end_is_not_started_again(
    monkeypatch: pytest.MonkeyPatch, heard, codes: list[int], starts: int
):
    """Nor is who made a mistake, failed by itself, saved, or finished: only who was lost."""
    started = []

    @contextmanager
    def begin(arguments, processes):
        started.append(arguments)
        yield []

    monkeypatch.setattr(launch, "_wait", lambda workers: codes)
    host = SimpleNamespace(heard=heard, started=begin)
    code = launch._launch(host, ["train"], 2, max_restarts=2)  # type: ignore[arg-type]
    assert started == [["train"]] * starts and code == launch._exit_code(codes)


@pytest.mark.parametrize(("resume", "restarts"), [("auto", 3), ("must", 0), (None, 0)])
def test_only_a_run_that_may_go_on_is_started_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, resume, restarts):
    from typer.testing import CliRunner

    from tests.smallshards import write_images

    write_images(tmp_path / "shards", [4])
    asked = []
    monkeypatch.setattr(launch, "num_processes", lambda processes, device: 2)
    monkeypatch.setattr(launch, "launch", lambda argv, processes, *, max_restarts: asked.append(max_restarts) or 0)
    from msltrain.__main__ import app

    words = ["train", "--recipe", "smoke", "--data", str(tmp_path / "shards"), "--run", str(tmp_path / "run")]
    words += ["--set", "keep_mask.kind=box"]
    CliRunner().invoke(app, [*words, *(["--resume", resume] if resume else [])])
    assert asked == [restarts]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signals_are_passed_on(tmp_path: Path, number: signal.Signals):
    """The launcher alone is told, as by a scheduler; what it started ends in its own way, and it hands on the code."""
    child = (
        "import os, pathlib, signal, sys, time\n"
        f"signal.signal({int(number)}, lambda *_: sys.exit(75))\n"
        f"pathlib.Path({str(tmp_path)!r}, os.environ['RANK']).touch()\n"
        "time.sleep(300)"
    )
    parent = (
        "import sys\n"
        "from msltrain.hosts import launch\n"
        f"launch.program_command = lambda: [sys.executable, '-c', {child!r}]\n"
        "sys.exit(launch.launch([], 2, max_restarts=3))"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    while len(list(tmp_path.iterdir())) < 2 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(timeout=200) == 75


def test_how_many(monkeypatch: pytest.MonkeyPatch):
    import torch

    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(UserError, match="give a number, or auto"):
        launch.num_processes("some", "auto")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert [launch.num_processes(asked, "auto") for asked in ("auto", "1", "4")] == [1, 1, 4]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [launch.num_processes(asked, "auto") for asked in ("auto", "1", "2")] == [2, 1, 2]
    assert [launch.num_processes(asked, "cpu") for asked in ("auto", "3")] == [1, 3]
    with pytest.raises(UserError, match="--processes 3: this host has 2 GPUs"):
        launch.num_processes("3", "auto")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert launch.num_processes("8", "auto") == 1
