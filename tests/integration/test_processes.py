"""Several processes by the documented lines, with the real launcher and the real torchrun, on CPUs."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from msltrain.runs.checkpoint import load_checkpoint
from tests import readyprogram
from tests.conftest import REPOSITORY
from tests.smallshards import write_images, write_keep_masks

pytestmark = pytest.mark.usefixtures("ready_python")

PAGE = (REPOSITORY / "docs" / "runs.md").read_text(encoding="utf-8")
PATIENCE = 900
"""Seconds: a minute's work, on a machine that has a dozen others to do."""
SMALL = ["--set", "stream.image_size=32", "--set", "stream.batch_size=8", "--set", "model.backbone=test_efficientnet"]
SMALL += ["--set", "run.log_every=1", "--set", "stream.num_threads=1", "--set", "run.device=cpu"]


def documented(command: str) -> list[str]:
    """The words of the one line of the page that begins so."""
    (line,) = [line for line in PAGE.splitlines() if line.startswith(command)]
    return shlex.split(line)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the page's paths exist."""
    root = tmp_path_factory.mktemp("host")
    write_images(root / "shards/mydata/all", [16, 16, 16], with_objects=True)
    rng = np.random.default_rng(0)
    masks = [(rng.random((32, 32)) > 0.5).astype(np.uint8) for _ in range(5)]
    write_keep_masks(root / "shards/masks/high", masks)
    return root


def start(words: Sequence[str], place: Path, **environment: str) -> subprocess.Popen[str]:
    starts = {
        "msl": [sys.executable, "-P", "-m", "msltrain"],
        "torchrun": [sys.executable, "-P", "-m", "torch.distributed.run"],
    }
    # Many sums in another order, as several torch threads make them, are not what these tests are about.
    own = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0", "COLUMNS": "200"}
    return subprocess.Popen(
        [*starts[words[0]], *words[1:]],
        cwd=place,
        env={**os.environ, **own, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(words: Sequence[str], place: Path, expected: int = 0) -> str:
    process = start(words, place)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == expected, output
    return output


def world_sizes(folder: Path) -> list[int]:
    return [entry["world_size"] for entry in json.loads((folder / "environment.json").read_text())]


@pytest.fixture(scope="module")
def two(place: Path) -> str:
    """What the page's training in two processes says."""
    return run([*documented("msl train --recipe smoke"), *SMALL], place)


def test_training_in_two_processes_speaks_once(place: Path, two: str):
    assert world_sizes(place / "runs/two") == [2]
    assert len(re.findall(r"^epoch 1/\d+  loss", two, re.MULTILINE)) == 1, two
    assert two.count("last validation mAP") == two.count("runs/two: ") == two.count("parameters on 2 × cpu") == 1, two


@pytest.mark.slow
def test_what_is_chosen_for_ones_own_photographs_is_said_once(place: Path):
    write_images(place / "shards/mine/train", [40])
    output = run(["msl", "train", "mine", *SMALL, "--processes", "2", "--epochs", "1"], place)
    assert output.count("network: test_efficientnet") == output.count("all of it goes to runs/mine") == 1, output
    assert world_sizes(place / "runs/mine") == [2]


def test_a_mistake_of_all_is_one_message(place: Path, two: str):
    words = [word for word in documented("msl train --recipe smoke") if word not in ("--resume", "auto")]
    output = run([*words, *SMALL], place, expected=2)
    assert output.count("holds a run already") == 1 and len(output.splitlines()) <= 2, output


def test_evaluation_in_two_processes(place: Path, two: str):
    output = run(documented("msl evaluate"), place)
    assert output.count("48 samples") == 1 and output.count("score ≥ 0.5") == 1, output


@pytest.mark.slow
def test_robustness_in_two_processes(place: Path, two: str):
    output = run(documented("msl robustness"), place)
    assert output.count("area under the curve") == 1 and output.count("robustness.json") == 1, output


def hosts(place: Path, *, expected: int, extra: Sequence[str] = ()) -> list[str]:
    """The page's line for several hosts, on two that are this one, the second from a checkout; what each says."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    changed = {"HOST:29500": f"127.0.0.1:{port}", "8": "1", "3": "0"}
    words = [changed.get(word, word) for word in documented("torchrun")]
    module = words.index("-m")
    from_checkout = [*words[:module], "--", str(REPOSITORY / "cli.py"), *words[module + 3 :]]
    both = [start([*line, *SMALL, *extra], place) for line in (words, from_checkout)]
    said = [process.communicate(timeout=PATIENCE)[0] for process in both]
    assert [process.returncode for process in both] == [expected, expected], said
    return said


def test_two_hosts_by_the_real_torchrun(place: Path):
    said = "".join(hosts(place, expected=0))
    assert world_sizes(place / "runs/hosts") == [2]
    assert said.count("last validation mAP") == said.count("runs/hosts: ") == 1, said


@pytest.mark.slow
def test_a_mistake_on_two_hosts_is_one_message(place: Path):
    said = "".join(hosts(place, expected=1, extra=["--set", "stream.batch_size=9"]))
    assert said.count("error: stream.batch_size is 9, which 2 processes cannot share equally") == 1, said


def test_a_lost_process_is_said_and_ends_all(place: Path):
    words = ["msl", *documented("msl train --recipe smoke")[1:]]
    words[words.index("runs/two")] = "runs/lost"
    words = [word for word in words if word not in ("--resume", "auto")]
    process = start([*words, *SMALL, "--set", "optim.num_epochs=400"], place)
    kill_one(process, place / "runs/lost", after=2)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + signal.SIGKILL, output
    assert output.count("process 1 of 2 was lost (SIGKILL); most likely memory ran out") == 1, output
    assert "Traceback" not in output


def kill_one(process: subprocess.Popen[str], folder: Path, *, after: int) -> None:
    """SIGKILL to the last process that was started, once ``after`` lines of metrics are there."""
    wait_for(process, folder, after)
    launcher = readyprogram.pid_of(process.pid)
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    os.kill(readyprogram.pid_of(max(map(int, children))), signal.SIGKILL)


def wait_for(process: subprocess.Popen[str], folder: Path, num_rows: int) -> None:
    metrics = folder / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count('"total"') < num_rows:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


@pytest.mark.slow
def test_four_processes_one_killed_then_two_give_the_undisturbed_weights(place: Path):
    """By the documented lines alone: start, SIGKILL of one, restart, stop, go on with two."""
    words = ["msl", *documented("msl train --recipe smoke")[1:], *SMALL]
    words += ["--set", "model.freeze_batchnorm=true", "--set", "optim.num_epochs=6", "--set", "run.save_every=3"]

    def on(number: int, folder: str) -> list[str]:
        changed = {"runs/two": folder, "2": str(number)}
        return [changed.get(word, word) for word in words]

    run(on(4, "runs/straight"), place)
    process = start(on(4, "runs/disturbed"), place)
    kill_one(process, place / "runs/disturbed", after=5)
    wait_for(process, place / "runs/disturbed", 14)
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75 and output.count("all start again from the last checkpoint") == 1, output
    assert output.count("SIGUSR1: this step will be finished") == output.count("saved in runs/disturbed") == 1, output
    run(on(2, "runs/disturbed"), place)
    assert world_sizes(place / "runs/disturbed") == [4, 4, 2]
    ours, theirs = (load_checkpoint(place / "runs" / name / "checkpoints/last") for name in ("disturbed", "straight"))
    assert ours.step == theirs.step == 30
    for name, tensor in theirs.weights.items():
        assert np.allclose(ours.weights[name].numpy(), tensor.numpy(), atol=1e-5), name
