"""What runs meet in the world, by the real command: others in their folder, stores and disks that fail, signals."""

from __future__ import annotations

import json
import os
import pty
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from msldata.storage import open_storage
from msldata.storage.lock import own_folder
from msltrain.__main__ import app
from msltrain.runs.checkpoint import load_checkpoint
from msltrain.stream.reading.request import noted
from tests import webserver
from tests.conftest import REPOSITORY
from tests.faultproxy import Sometimes
from tests.smallshards import write_images, write_keep_masks

pytestmark = pytest.mark.usefixtures("ready_python")
PLAIN = sys.executable
"""For what is about the interpreter's own beginning and end."""

SMALL = [
    "--recipe",
    "smoke",
    "--set",
    "stream.image_size=32",
    "--set",
    "stream.batch_size=8",
    "--set",
    "run.log_every=1",
]
SMALL += ["--set", "model.backbone=test_efficientnet", "--set", "stream.num_threads=1", "--processes", "1"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_images(root / "train", [16, 16])
    rng = np.random.default_rng(0)
    write_keep_masks(root / "high", [(rng.random((32, 32)) > 0.5).astype(np.uint8) for _ in range(3)])
    return root


@pytest.fixture
def words(shards: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A training that takes seconds."""
    noted.clear()
    return ["train", *SMALL, "--data", str(shards / "train"), "--keep-masks", str(shards / "high")]


def msl(*words: object, code: int = 0) -> str:
    """What a command says, on one line."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, f"{result.output}{result.exception!r}"
    return " ".join(result.output.split())


def process(words: list[str], python: str = "", **options) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [python or sys.executable, "-P", "-m", "msltrain", *words]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen(command, env=environment, text=True, **streams)


def wait_for_steps(running: subprocess.Popen[str], run: Path, number: int = 2) -> None:
    metrics = run / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count('"total"') < number:
        assert running.poll() is None, running.communicate()
        time.sleep(0.01)


@pytest.mark.parametrize("where", ["disk", "store"])
def test_a_second_training_does_not_enter_a_living_run(words, tmp_path: Path, s3, where: str):
    run = str(tmp_path / "run") if where == "disk" else "s3://bucket/living/run"
    with own_folder(open_storage(run), "training"):
        said = msl(*words, "--run", run, "--resume", "auto", code=2)
    assert f"{run}: another training is writing into this folder (process {os.getpid()} on " in said
    assert not [info.name for info in open_storage(run).list_files()]


def test_a_folder_without_a_checkpoint_is_no_obstacle(words, tmp_path: Path):
    """As a run leaves it that was killed in its first epoch."""
    msl(*words, "--run", tmp_path / "run")
    (tmp_path / "run/checkpoints").rename(tmp_path / "elsewhere")
    msl(*words, "--run", tmp_path / "run", "--set", "optim.lr=0.02")
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "total" in row] == list(range(1, len(rows) - 1))
    assert "holds a run already" in msl(*words, "--run", tmp_path / "run", code=2)


def test_expired_credentials_cost_nothing(words, shards: Path, tmp_path: Path, s3, monkeypatch, caplog):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    expired = threading.Event()

    def choose(method: str, path: str) -> str | None:
        if method == "PUT" and "best" in path:
            expired.set()
        return "expired" if expired.is_set() else None

    s3.proxy.choose = choose
    said = msl(*words, "--run", "s3://bucket/expired/run", code=2)
    assert "the credentials have expired; renew them" in said and "AWS_SESSION_TOKEN" in said
    (kept,) = tmp_path.glob("msl-run-*")
    assert f"The whole run is in {kept}" in caplog.text
    s3.proxy.choose = lambda method, path: None
    assert "32 samples" in msl("evaluate", "--checkpoint", kept, "--data", shards / "train", "--device", "cpu")
    assert "holds a run already" in msl(*words, "--run", kept, code=2)


def test_a_page_instead_of_a_listing_does_not_restart_a_run(words, s3):
    place = "s3://bucket/page/run"
    msl(*words, "--run", place)
    before = {info.name: info.size for info in open_storage(place).list_files()}
    s3.proxy.choose = Sometimes("html", times=None, method="GET", containing="list-type=2")
    said = msl(*words, "--run", place, "--resume", "auto", code=2)
    assert "the listing lacks .lock" in said
    s3.proxy.choose = lambda method, path: None
    assert {info.name: info.size for info in open_storage(place).list_files()} == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_a_signal_is_heard_at_once_and_saves(words, tmp_path: Path, number: signal.Signals):
    run = tmp_path / "run"
    running = process([*words, "--run", str(run), "--set", "optim.num_epochs=500"])
    wait_for_steps(running, run)
    running.send_signal(number)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 75, errors
    heard, told = errors.strip().splitlines()[-2:]
    assert f"{number.name}: this step will be finished, then everything will be saved" in heard
    step = load_checkpoint(run / "checkpoints/last").step
    assert f"stopped by {number.name} after step {step} of 1500; saved in {run}/checkpoints/last" in told
    assert "error" not in errors and "--resume auto" in told


def test_a_terminal_that_is_closed_saves(words, tmp_path: Path):
    """SIGHUP, and nothing can be written any more."""
    run = tmp_path / "run"
    ours, theirs = pty.openpty()
    terminal = {"stdin": theirs, "stdout": theirs, "stderr": theirs, "start_new_session": True}
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, by what is started too
    running = process([*words, "--run", str(run), "--set", "optim.num_epochs=500"], **terminal)
    signal.signal(signal.SIGHUP, before)
    os.close(theirs)
    drain = threading.Thread(target=_read_all, args=(ours, run), daemon=True)
    drain.start()
    wait_for_steps(running, run)
    (tmp_path / "close").touch()
    drain.join()
    running.send_signal(signal.SIGHUP)
    assert running.wait(timeout=60) == 75
    assert load_checkpoint(run / "checkpoints/last").step >= 2


def _read_all(terminal: int, run: Path) -> None:
    os.set_blocking(terminal, False)
    while not run.with_name("close").exists():
        try:
            os.read(terminal, 4096)
        except BlockingIOError:
            time.sleep(0.01)
    os.close(terminal)


def test_who_stops_reading_stops_no_run(words, tmp_path: Path):
    run = tmp_path / "run"
    running = process([*words, "--run", str(run)])
    assert running.stdout is not None and running.stderr is not None
    assert "parameters on 1 × cpu" in running.stdout.readline()
    running.stdout.close()
    errors = running.stderr.read()
    assert running.wait(timeout=60) == 141
    assert "error" not in errors and errors.splitlines()[-1].startswith("next: msl evaluate"), errors
    assert load_checkpoint(run / "checkpoints/last").step == 6


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_standard_output_is_one_message():
    with open("/dev/full", "w") as full:
        running = process(["recipes"], PLAIN, stdout=full)
        _, errors = running.communicate(timeout=60)
    assert running.returncode == 2
    [said] = [line for line in errors.splitlines() if not line.startswith("next: ")]
    assert "standard output cannot be written: no space left on device" in said


def test_a_terminal_that_knows_ascii_alone():
    running = subprocess.run(
        [PLAIN, "-P", "-m", "msltrain", "recipes"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        timeout=60,
    )
    assert running.returncode == 0 and b"GPU-hours" in running.stdout, running.stderr


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 8 MB, in memory."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", place]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if mounted.returncode:
        pytest.skip(f"mounting a small file system is not permitted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_is_one_message_and_the_run_goes_on_from_before(words, small_disk: Path):
    run = small_disk / "run"
    filler = small_disk / "filler"
    running = process([*words, "--run", str(run), "--set", "optim.num_epochs=12"])
    while not (run / "checkpoints/last/meta.json").exists():
        assert running.poll() is None, running.communicate()
        time.sleep(0.005)
    with open(filler, "wb") as file:
        while True:
            try:
                os.write(file.fileno(), bytes(65_536))
            except OSError:
                break
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 2 and "the disk is full" in errors and "Traceback" not in errors, errors
    filler.unlink()
    step = load_checkpoint(run / "checkpoints/last").step
    assert step >= 3
    msl(*words, "--run", run, "--resume", "auto", "--set", "optim.num_epochs=12")
    assert load_checkpoint(run / "checkpoints/last").step == 36


def test_parts_of_one_image_are_refused_before_training(words, tmp_path: Path):
    said = msl(*words, "--run", tmp_path / "run", "--set", "optim.accumulation_steps=8", code=2)
    assert "stream.batch_size=8 in 8 parts (optim.accumulation_steps)" in said and "optim.accumulation_steps=7" in said
    said = msl(
        *words, "--run", tmp_path / "run", "--set", "data.validation_fraction=0", "--set", "stream.batch_size=31",
        "--set", "stream.drop_last=false", code=2,
    )  # fmt: skip
    assert "the last of 32 samples in batches of 31" in said and "set stream.drop_last=true" in said
    assert not (tmp_path / "run").exists()
    # Of a batch one image or none may be masked: those count as two.
    msl(*words, "--run", tmp_path / "share", "--set", "keep_mask.share=0.1", "--set", "optim.num_epochs=2")
    mended = ["--set", "optim.accumulation_steps=8", "--set", "model.freeze_batchnorm=true"]
    msl(*words, "--run", tmp_path / "run", *mended, "--set", "optim.num_epochs=1")


def test_weights_that_are_no_numbers_name_step_and_samples(words, tmp_path: Path):
    """Also where no loss shows it any more: it was the last step."""
    run = tmp_path / "run"
    last = ["--set", "optim.num_epochs=1", "--set", "optim.lr=1e37", "--set", "stream.batch_size=24"]
    said = msl(*words, "--run", run, *last, "--set", "run.amp=false", "--set", "optim.warmup_epochs=0", code=2)
    found = re.search(r"step (\d) of 1: after it .*; the batch was (.*); the state", said)
    assert found and found[1] == "1" and len(found[2].split(", ")) == 24, said
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["failed"]


def test_a_web_server_without_ranges(words, shards: Path, tmp_path: Path):
    with webserver.running() as server:
        server.ranges = False
        for file in (shards / "train").iterdir():
            server.files[f"/train/{file.name}"] = file.read_bytes()
        remote = [f"{server.url}/train" if word == str(shards / "train") else word for word in words]
        said = msl(*remote, "--run", tmp_path / "without", code=2)
        assert "this web server only sends whole files; give --cache DIR" in said
        msl(*remote, "--run", tmp_path / "with", "--cache", tmp_path / "cache")
        assert len(list((tmp_path / "cache").glob("*.tar"))) == 2
    msl(*words, "--run", tmp_path / "local")
    ours, theirs = (load_checkpoint(tmp_path / name / "checkpoints/last") for name in ("with", "local"))
    assert all((ours.weights[name] == tensor).all() for name, tensor in theirs.weights.items())


def test_predictions_that_cannot_be_written_are_refused_before_the_passes(
    words, shards: Path, tmp_path: Path, monkeypatch
):
    run = tmp_path / "run"
    msl(*words, "--run", run, "--set", "optim.num_epochs=1")
    (run / "predictions").write_text("in the way")
    monkeypatch.setattr("msltrain.evaluation.evaluate.load_any", None)  # a pass would need it
    said = msl("evaluate", "--checkpoint", run, "--data", shards / "train", "--device", "cpu", code=2)
    assert f"{run}/predictions: file exists; predictions cannot be written there: give another place with --out" in said


ENDING = """
import sys, threading, time
from msldata.storage import open_storage
from msltrain.__main__ import main

storage = open_storage(sys.argv.pop())
storage.exists("y")  # whatever is imported late is there before the clock starts

def read():
    storage.read("x")
    print("came back")

threading.Thread(target=read, daemon=True).start()
time.sleep(0.3)
main()
"""


@pytest.mark.parametrize(("seconds", "comes_back"), [(0.8, True), (20.0, False)])
def test_no_thread_is_in_the_storage_library_at_the_end(tmp_path: Path, seconds: float, comes_back: bool):
    """A mistake ends the program while a read is under way: it is waited for a moment, and the exit code is 2.

    One that came back while the interpreter ends would abort the process now and then.
    """
    script = tmp_path / "ending.py"
    script.write_text(ENDING)
    with webserver.running() as server:
        server.files["/x"] = b"1"
        server.status = lambda number: time.sleep(seconds * (number > 1))
        command = [PLAIN, script, "verify", tmp_path / "nothing", server.url]
        ended = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, timeout=15
        )
    assert ended.returncode == 2 and ended.stderr.startswith("error: "), ended.stderr
    assert ("came back" in ended.stdout) == comes_back and "Fatal" not in ended.stderr


@pytest.mark.parametrize("attempt", range(2))
def test_a_missing_index_while_others_arrive(words, tmp_path: Path, attempt: int):
    """What is read is decoded in the same threads, by another library that must not meet the interpreter's end."""
    write_images(tmp_path / "many", [2] * 24)
    with webserver.running() as server:
        for file in (tmp_path / "many").iterdir():
            server.files[f"/many/{file.name}"] = file.read_bytes()
        del server.files["/many/small-train-000000.parquet"]
        server.status = lambda number: time.sleep(random.random() * 0.4 * (number > 1))
        words[words.index("--data") + 1] = f"{server.url}/many"
        running = process([*words, "--run", str(tmp_path / "run")], PLAIN)
        _, errors = running.communicate(timeout=60)
    assert running.returncode == 2 and errors.count("error: ") == 1, errors
    assert errors.splitlines()[-1].startswith("error: "), errors
    assert "small-train-000000.parquet: the sample index is missing" in errors
