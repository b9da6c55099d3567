"""The helper process: the same batches, errors and stops as without one, and nothing that outlives the training."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from multiprocessing import spawn
from pathlib import Path

import numpy as np
import pytest
import torch

from msldata.errors import UserError
from msltrain.hosts.interrupt import STOP_SIGNALS
from msltrain.stream.config import StreamConfig
from msltrain.stream.errors import SampleError, TooManySkipped
from msltrain.stream.helper import _Messages, _Sender
from msltrain.stream.loader import Loader
from msltrain.stream.passes import Passes
from msltrain.stream.reading.request import noted
from tests.conftest import REPOSITORY
from tests.smallshards import write_images, write_keep_masks

pytestmark = [
    pytest.mark.usefixtures("ready_python"),
    pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="helpers work on Linux only"),
]
PLAIN = sys.executable
"""For what is about the interpreter's own end."""
CONFIG = StreamConfig(image_size=24, batch_size=8, window=32, num_threads=2, num_buffers=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 samples in three shards; the largest photograph comes late in some orders, and makes buffers grow."""
    path = tmp_path_factory.mktemp("shards")
    write_images(path, [40, 37, 23])
    return path


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 samples, two of them no images, and photographs of many sizes."""
    path = tmp_path_factory.mktemp("damaged")
    write_images(path, [40], {"s000011": b"this is no image", "s000029": b"nor is this"})
    return path


def contents(batch) -> tuple:
    return (
        *(batch.keys, batch.index_B.tolist(), batch.key_hash_B.tolist(), batch.crop_B4.tolist()),
        *(batch.flip_B.tolist(), batch.image_BCHW.numpy().tobytes()),
        *(batch.target_BK.tolist(), batch.ignore_BK.tolist()),
    )


def both(place: Path, **changes) -> tuple[Loader, Loader]:
    config = replace(CONFIG, **changes)
    return tuple(Loader(place, replace(config, process=where), training=True) for where in ("same", "helper"))  # type: ignore[return-value]


def helpers() -> list[int]:
    return [process.pid for process in multiprocessing.active_children() if process.pid is not None]


def wait_until(condition, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.02)


@pytest.mark.parametrize(
    "changes",
    [{"ram_cache_gb": 0.1}, {"resize": "device", "drop_last": False}],
    ids=["squares, cached", "whole images"],
)
def test_batches_are_those_of_one_process_from_any_position(folder: Path, changes: dict):
    same, helper = both(folder, **changes)
    with same, helper:
        assert helper.uses_helper and not same.uses_helper
        for loader in (same, helper):
            loader.start()
            loader.start()
        first = [[contents(batch) for batch in loader] for loader in (same, helper)]
        assert first[0] == first[1]
        assert len(first[0]) == len(helper) and len({key for one in first[0] for key in one[0]}) > 90
        state = {**helper.state_dict(), "epoch": 1, "step": 5}
        for loader in (same, helper):
            batches = iter(loader)  # epoch 1, left in the middle
            next(batches), next(batches)
            batches.close()
            loader.load_state_dict(state)
        assert helper.step == 5
        assert [contents(batch) for batch in helper] == [contents(batch) for batch in same]
        assert (helper.epoch, helper.step) == (2, 0)
        assert replace(helper.stats, seconds_waited=0.0) == replace(same.stats, seconds_waited=0.0)
        spent = helper.stage_seconds()
        assert spent.decode > 0 and (spent.resize > 0 or "resize" in changes)
        helper.close()
        assert not helpers()
        helper.load_state_dict({**state, "epoch": 0, "step": 0})
        assert [contents(batch) for batch in helper] == first[0], "closed, it begins again with another helper"
    assert not helpers()


@pytest.fixture
def plain_helpers():
    """Helpers whose process is the one that is started, to look at and to kill."""
    before = spawn.get_executable()
    spawn.set_executable(PLAIN)
    yield
    spawn.set_executable(before)


@pytest.mark.usefixtures("plain_helpers")
def test_an_iteration_that_is_left_stops_its_threads(folder: Path):
    _, helper = both(folder)
    with helper:
        batches = iter(helper)
        next(batches)
        (pid,) = helpers()
        before = len(os.listdir(f"/proc/{pid}/task"))
        batches.close()
        wait_until(lambda: len(os.listdir(f"/proc/{pid}/task")) <= before - 3)  # plan, and two that decode


def test_in_inference_mode_batches_are_filled_as_well(folder: Path):
    _, helper = both(folder)
    with helper, torch.inference_mode():
        assert sum(len(batch) for batch in helper) == 96
    batch_of_two = Loader(folder, replace(CONFIG, process="helper", batch_size=2), training=True)
    with batch_of_two, torch.inference_mode():
        next(iter(batch_of_two))


def test_ranks_share_a_batch_as_they_do_without(folder: Path):
    for rank in (0, 1):
        same, helper = (
            Loader(folder, replace(CONFIG, process=where), training=True, rank=rank, world_size=2, seed=3)
            for where in ("same", "helper")
        )
        with same, helper:
            assert [contents(batch) for batch in helper] == [contents(batch) for batch in same]


def test_skipped_samples_are_replaced_and_listed_as_without(damaged: Path):
    same, helper = both(damaged, on_sample_error="skip", resize="device")
    with same, helper:
        assert [contents(batch) for batch in helper] == [contents(batch) for batch in same]
        assert len(helper.skipped) == 2
        assert {k: str(e) for k, e in helper.skipped.errors.items()} == {
            k: str(e) for k, e in same.skipped.errors.items()
        }
    _, helper = both(damaged, on_sample_error="skip", max_skipped=1)
    with helper, pytest.raises(TooManySkipped, match=r"more than stream\.max_skipped = 1"):
        list(helper)
    assert len(helper.skipped) == 2


def test_an_error_comes_in_its_place_and_as_it_is(damaged: Path):
    met = []
    for loader in both(damaged):
        batches, errors = [], []
        with loader:
            for _ in range(2):  # and again when asked again
                with pytest.raises(SampleError) as caught:
                    batches += [contents(batch) for batch in loader]
                errors.append((str(caught.value), caught.value.key, caught.value.offset, caught.value.reason))
                loader.load_state_dict({**loader.state_dict(), "step": 0})
        met.append((batches, errors))
    assert met[0] == met[1]


def test_shards_that_are_missing_are_named(tmp_path: Path):
    write_images(tmp_path, [20])
    next(tmp_path.glob("*.tar")).unlink()
    _, helper = both(tmp_path)
    with helper, pytest.raises(FileNotFoundError, match="the shard is missing; copy or build the dataset again"):
        next(iter(helper))


def test_what_the_helper_has_to_say_is_said_by_the_trainer(folder: Path):
    noted.clear()
    _, helper = both(folder, cache="/nowhere")
    with helper:
        next(iter(helper))
    assert noted == {f"stream.cache is not used for {folder}, which is local"}


def test_messages_arrive_whole_however_the_pipe_cuts_them():
    ours, theirs = multiprocessing.Pipe()
    messages = _Messages(ours.fileno())
    assert not messages.has_more()
    sent = [b"", b"one", bytes(range(256)) * 1000, b"two"]
    sender = threading.Thread(target=lambda: [theirs.send_bytes(one) for one in sent], daemon=True)
    sender.start()
    assert [messages.next() for _ in sent] == sent
    sender.join()
    assert not messages.has_more()
    os.write(theirs.fileno(), b"\0\0\0\3la")
    assert messages.has_more()
    threading.Timer(0.1, os.write, (theirs.fileno(), b"st\0")).start()
    assert messages.next() == b"las"
    assert messages.has_more()
    threading.Timer(0.2, theirs.close).start()
    with pytest.raises(EOFError):
        messages.next()


def test_an_error_that_cannot_be_sent_is_told(folder: Path):
    class Odd(Exception):
        def __init__(self, one: int, other: int):
            super().__init__(f"{one} and {other}")

    class Pipe:
        def send_bytes(self, data: bytes) -> None:
            sent.append(pickle.loads(data))

    sent: list = []
    shards = Loader(folder, CONFIG, training=True).shards
    passes = Passes(shards, CONFIG, training=True, seed=0, rank=0, world_size=1, resize="host", memories=[])
    log = logging.getLogger("msltrain")
    before = log.handlers[:], log.propagate
    try:
        _Sender(Pipe(), passes).send_error(7, Odd(1, 2))  # type: ignore[arg-type]
    finally:
        log.handlers[:], log.propagate = before
    assert sent[0].number == 7
    with pytest.raises(RuntimeError, match="Odd: 1 and 2"):
        raise sent[0].error


@pytest.mark.usefixtures("plain_helpers")
def test_a_helper_that_is_killed_is_one_message(folder: Path):
    _, helper = both(folder)
    with helper:
        batches = iter(helper)
        next(batches)
        for pid in helpers():
            for stop in STOP_SIGNALS:
                os.kill(pid, stop)
        next(batches)  # what stops a training is the trainer's alone
        (pid,) = helpers()
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(UserError, match=r"was killed by signal 9, most likely because memory ran out; a run goes"):
            list(batches)
    assert not helpers()


def test_a_loader_that_is_forgotten_takes_its_helper_along(folder: Path):
    _, helper = both(folder)
    next(iter(helper))
    assert helpers()
    del helper
    gc.collect()
    wait_until(lambda: not helpers())


SCRIPT = """
import sys, time
import msltrain
print("once", flush=True)
config = msltrain.StreamConfig(image_size=24, batch_size=8, num_threads=1, process="helper")
loader = msltrain.Loader(sys.argv[1], config, training=True)
batches = iter(loader)
next(batches)
import multiprocessing
print(*[process.pid for process in multiprocessing.active_children()], flush=True)
if sys.argv[2] == "wait":
    time.sleep(60)
"""
"""Without the usual guard: a helper must not run it again."""


def script(tmp_path: Path, folder: Path, what: str) -> subprocess.Popen[str]:
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [PLAIN, str(tmp_path / "script.py"), str(folder), what]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_script_ends_with_its_helper_though_it_closes_nothing(tmp_path: Path, folder: Path):
    running = script(tmp_path, folder, "end")
    output, errors = running.communicate(timeout=60)
    assert running.returncode == 0 and not errors, errors
    once, pid = output.split()
    assert once == "once" and not is_alive(int(pid))


def test_no_helper_outlives_a_trainer_that_is_killed(tmp_path: Path, folder: Path):
    running = script(tmp_path, folder, "wait")
    assert running.stdout is not None
    assert running.stdout.readline() == "once\n"
    pid = int(running.stdout.readline())
    assert is_alive(pid)
    running.kill()
    running.communicate()
    wait_until(lambda: not is_alive(pid))


def test_a_training_with_a_helper_stops_at_ctrl_c_and_goes_on_to_the_same_weights(tmp_path: Path, folder: Path):
    from msltrain.runs.checkpoint import load_checkpoint

    rng = np.random.default_rng(0)
    write_keep_masks(tmp_path / "high", [(rng.random((32, 32)) > 0.5).astype(np.uint8) for _ in range(3)])
    settings = "stream.image_size=32 stream.batch_size=8 stream.num_threads=1 run.log_every=1 optim.num_epochs=4"
    words = ["train", "--recipe", "smoke", "--data", str(folder), "--keep-masks", str(tmp_path / "high")]
    words += ["--processes", "1", "--set", "model.backbone=test_efficientnet"]
    words += [word for setting in settings.split() for word in ("--set", setting)]

    def start(run: str, *more: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "msltrain", *words, "--run", str(tmp_path / run), *more],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True,
        )  # fmt: skip

    helper = ("--set", "stream.process=helper")
    running = start("stopped", *helper)
    metrics = tmp_path / "stopped/metrics.jsonl"
    wait_until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 5, 60)
    os.killpg(running.pid, signal.SIGINT)  # as a terminal sends it: to the helper too
    _, errors = running.communicate(timeout=60)
    assert "Traceback" not in errors and running.returncode == 75, errors
    for run, more in (("stopped", (*helper, "--resume", "auto")), ("whole", ())):
        running = start(run, *more)
        _, errors = running.communicate(timeout=120)
        assert running.returncode == 0, errors
    one, other = (load_checkpoint(tmp_path / run / "checkpoints/last").weights for run in ("stopped", "whole"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_who_gets_one():
    auto = StreamConfig()
    assert auto.runs_in_helper("cuda", 2)
    assert not auto.runs_in_helper("cuda", 1) and not auto.runs_in_helper("cpu", 8)
    assert not StreamConfig(decode="device").runs_in_helper("cuda", 8)
    assert not StreamConfig(process="same").runs_in_helper("cuda", 8)
    assert StreamConfig(process="helper").runs_in_helper("cpu", 1)
    with pytest.raises(UserError, match=r"stream\.process=helper decodes on the host"):
        StreamConfig(process="helper", decode="device")


def test_elsewhere_than_on_linux_there_is_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr("os.memfd_create")
    assert not StreamConfig().runs_in_helper("cuda", 8)
    with pytest.raises(UserError, match="works on Linux only"):
        StreamConfig(process="helper").runs_in_helper("cuda", 8)


def test_an_evaluation_has_none(folder: Path):
    with Loader(folder, replace(CONFIG, process="helper"), training=False) as loader:
        assert not loader.uses_helper
        assert sum(len(batch) for batch in loader) == 100
    assert not helpers()
