"""What a line of training says of its speed."""

from __future__ import annotations

import pytest

from msltrain.training import step_log
from msltrain.training.step_log import StepLog


def test_a_slow_first_step_is_left_out_of_the_speed(monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    monkeypatch.setattr(step_log.time, "perf_counter", lambda: now)
    log = StepLog()
    now, log.waited = 110.0, 4.0
    log.add(0.1, {}, ["a", "b"])
    log.leave_out()
    assert log.speed() == (0.2, 0.4), "there is nothing else yet"
    now, log.waited = 112.0, 5.0
    log.add(0.1, {}, ["c", "d"])
    log.add(0.1, {}, ["e", "f"])
    assert log.speed() == (2.0, 0.5)
