"""Tasks in worker processes: whose result is whose, what an error says, and a worker that was killed."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from msldata.errors import UserError
from msldata.workers import processes
from msldata.workers.engine import run_tasks


def work(task: tuple[str, Any]) -> Any:
    """What a worker does: it is told by the task."""
    what, value = task
    if what == "wait":  # for the other one
        while not Path(value).exists():
            time.sleep(0.01)
    if what == "touch":
        Path(value).touch()
    if what == "environment":
        return os.environ.get(value)
    if what == "fail":
        raise KeyError(value)
    if what == "unsendable":
        return lambda: value
    if what == "die":  # so many times
        with open(value[0], "a+b") as deaths:
            deaths.seek(0)
            if len(deaths.read()) < value[1]:
                deaths.write(b"x")
                deaths.flush()
                os.kill(os.getpid(), signal.SIGKILL)
    return what, os.getpid()


def test_results_are_in_the_order_of_the_tasks(tmp_path, monkeypatch):
    """Whichever is ready first; a worker has the environment of now, though the process it is forked from is older."""
    seen: list[Any] = []
    tasks = [("wait", str(tmp_path / "a")), ("touch", str(tmp_path / "a")), ("environment", "OF_TODAY")]
    for today in ("monday", "tuesday"):
        monkeypatch.setenv("OF_TODAY", today)
        seen.clear()
        found = run_tasks(work, tasks, 2, seen.append)
        assert [found[0][0], found[1][0], found[2]] == ["wait", "touch", today]
        assert sorted(map(str, seen)) == sorted(map(str, found))
        assert os.getpid() not in (found[0][1], found[1][1])


def test_each_result_is_told_where_tasks_run_here():
    seen: list[Any] = []
    assert run_tasks(len, ["a", "bb", "ccc"], 1, seen.append) == seen == [1, 2, 3]


def test_an_error_in_a_worker_is_that_of_the_task_and_says_where_it_was():
    with pytest.raises(KeyError, match="odd") as caught:
        run_tasks(work, [("fail", "odd"), ("fail", "odd")], 2)
    (note,) = caught.value.__notes__
    assert note.startswith("in a worker process:") and "in work" in note
    with pytest.raises(RuntimeError, match="pickle"):
        run_tasks(work, [("unsendable", 1), ("unsendable", 2)], 2)


def test_a_task_whose_worker_was_killed_is_done_by_another_one_and_not_for_ever(tmp_path):
    tasks = [("die", (str(tmp_path / "once"), 1)), ("first", 0), ("second", 0)]
    assert [what for what, _ in run_tasks(work, tasks, 2)] == ["die", "first", "second"]
    with pytest.raises(UserError, match="2 worker processes were killed by the same work"):
        run_tasks(work, [("die", (str(tmp_path / "thrice"), 3)), ("first", 0)], 2)
    assert (tmp_path / "thrice").stat().st_size == 2


def test_what_is_changed_while_a_process_starts_is_as_before(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "before")
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    main = sys.modules["__main__"]
    with processes.same_search_path(), processes.without_main("msldata.build.shards"):
        assert os.environ["PYTHONSAFEPATH"] == "1" and os.environ["PYTHONPATH"] != "before"
        assert sys.modules["__main__"] is not main
    assert os.environ["PYTHONPATH"] == "before" and "PYTHONSAFEPATH" not in os.environ
    assert sys.modules["__main__"] is main


def test_the_processors_are_those_that_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert processes.available_cpus() == 2
