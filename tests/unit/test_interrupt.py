"""Signals during training."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from pathlib import Path

import pytest

from msltrain.hosts import interrupt
from msltrain.hosts.interrupt import Interrupted, StopSignals


class Second(Exception):
    pass


@pytest.fixture
def usual():
    """A usual effect that a test survives."""

    def handler(number, frame):
        raise Second

    before = signal.signal(signal.SIGTERM, handler)
    yield handler
    signal.signal(signal.SIGTERM, before)


def test_the_first_signal_is_noted_and_the_second_has_its_usual_effect(usual, monkeypatch):
    monkeypatch.setattr(interrupt, "_ONE_SECOND", 0.05)
    with StopSignals() as stop:
        assert stop.received is None
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # the same one, sent to the whole process group as well
        assert stop.received is signal.SIGTERM
        time.sleep(0.1)
        with pytest.raises(Second):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is usual


def test_handlers_come_back_without_a_signal(usual):
    with StopSignals():
        assert signal.getsignal(signal.SIGTERM) is not usual
    assert signal.getsignal(signal.SIGTERM) is usual


def test_other_threads_leave_signals_alone(usual):
    seen = []

    def work():
        with StopSignals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [usual]


def test_an_interruption_travels_between_processes():
    error = Interrupted(signal=signal.SIGINT, step=3, num_steps=9, checkpoint=Path("run/checkpoints/last"))
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.step, again.signal) == (str(error), 3, signal.SIGINT)
    assert "stopped by another process after step 3 of 9" in str(
        Interrupted(signal=None, step=3, num_steps=9, checkpoint=Path("x"))
    )
