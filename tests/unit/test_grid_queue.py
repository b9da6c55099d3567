"""Which job of a grid comes next, for whom, and what becomes of those that need one that failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from msltrain.grids import run as grid_run
from msltrain.grids.jobs import StudyJob, TrainJob
from msltrain.grids.plan import DataPlaces, make_plan
from msltrain.grids.run import open_grid, run_grid
from msltrain.grids.workers import JobEnded, JobProgress, JobStarted, _Outcome, _Queue, _Worker

GRID = "robustness-voc2007"


@dataclass(frozen=True)
class Job:
    name: str
    needs: tuple[str, ...] = ()


@dataclass
class Pipe:
    """Of a worker; ``said`` is what it will say."""

    given: list[Job] = field(default_factory=list)
    said: list[Any] = field(default_factory=list)
    is_closed: bool = False

    def send(self, job: Job) -> None:
        self.given.append(job)

    def recv(self) -> Any:
        if not self.said:
            raise EOFError
        return self.said.pop(0)

    def close(self) -> None:
        self.is_closed = True


def worker(slot: str) -> _Worker:
    return _Worker(slot, SimpleNamespace(join=lambda: None, exitcode=-9), Pipe())  # type: ignore[arg-type]


def said(events: Sequence[object]) -> list[tuple[str, ...]]:
    """What a display would be told, without times."""
    found: list[tuple[str, ...]] = []
    for event in events:
        if isinstance(event, JobStarted):
            found.append(("started", event.job.name, event.slot))
        elif isinstance(event, JobProgress):
            found.append(("progress", event.job.name, f"{event.doing} {event.done}/{event.total}"))
        elif isinstance(event, JobEnded):
            found.append(("ended", event.job.name, event.problem))
    return found


def test_jobs_start_in_order_once_what_they_need_is_done_and_never_after_it_failed():
    jobs = [
        Job("a"),
        Job("curves", ("a", "b")),
        Job("b"),
        Job("more", ("curves",)),
        Job("of b", ("b",)),
        Job("c", ("x",)),
    ]
    events: list[object] = []
    queue = _Queue(jobs, events.append)  # type: ignore[arg-type]
    one, two, three = worker("0"), worker("1"), worker("2")
    for each in (one, two, three):
        queue.give(each)
    assert said(events) == [("started", "a", "0"), ("started", "b", "1"), ("started", "c", "2")], "x was done before"
    assert [job.name for job in queue.waiting] == ["curves", "more", "of b"]
    one.pipe.said += [("training", 1, 2), _Outcome()]
    assert queue.listen(one) and one.job is jobs[0], "it only told how far it is"
    assert queue.listen(one) and one.job is None
    queue.give(one)
    assert one.pipe.given == [jobs[0]], "b is still under way"
    two.pipe.said += [_Outcome("no data")]
    assert queue.listen(two)
    queue.give(two)
    assert two.pipe.given == [jobs[2]] and two.job is None and queue.waiting == []
    assert said(events)[3:] == [
        ("progress", "a", "training 1/2"),
        ("ended", "a", ""),
        ("ended", "b", "no data"),
        ("ended", "curves", "needs b, which failed"),
        ("ended", "more", "needs curves, which failed"),
        ("ended", "of b", "needs b, which failed"),
    ]
    assert set(queue.problems) == {"b", "curves", "more", "of b"}


@pytest.mark.parametrize(
    ("outcome", "problem", "lives"),
    [
        (_Outcome(), "", True),
        (_Outcome("no data"), "no data", True),
        (_Outcome("a GPU error", sound=False), "a GPU error", False),
        (_Outcome("any", stopped=True), "stopped from outside", False),
        (None, "its process was ended by SIGKILL, as when the machine is out of memory", False),
    ],
)
def test_only_a_sound_worker_gets_another_job(outcome: _Outcome | None, problem: str, lives: bool):
    events: list[object] = []
    queue, one = _Queue([Job("a"), Job("b")], events.append), worker("")  # type: ignore[list-item,arg-type]
    queue.give(one)
    one.pipe.said += [] if outcome is None else [outcome]
    assert queue.listen(one) is lives and one.pipe.is_closed is not lives and one.job is None
    assert said(events)[-1] == ("ended", "a", problem)
    assert queue.problems == ({"a": problem} if problem else {})
    assert [job.name for job in queue.waiting] == ["b"]


@pytest.fixture
def finished(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the jobs that are done."""
    names: set[str] = set()
    for kind in (TrainJob, StudyJob):
        monkeypatch.setattr(kind, "is_finished", property(lambda job: job.name in names))
    return names


def test_each_share_of_an_array_job_trains_its_own_and_draws_the_curves_within_its_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: set[str]
):
    """Curves need the models of one seed: whoever trains the last of them draws them."""
    asked: list[list[str]] = []
    monkeypatch.setattr(grid_run, "run_jobs", lambda jobs, *_: asked.append([job.name for job in jobs]) or {})
    plan = make_plan([GRID], seeds=(0, 1), places=DataPlaces(test_masks=()))
    grid = open_grid(plan, tmp_path, curves=[GRID])
    names = [job.name for job in grid.training]
    curves = [study.name for study in grid.studies]
    run_grid(grid, [""])
    assert asked.pop() == [*names, *curves]
    for number in (1, 2, 3):
        run_grid(grid, [""], task=(number, 3))
        assert asked.pop() == names[number - 1 :: 3], "no share has all models of a seed"
    needed = set(grid.studies[0].needs)
    finished |= {name for name in names if name.endswith("seed 0")} - {mine := grid.studies[0].needs[-1]}
    number = names.index(mine) % 2 + 1
    run_grid(grid, [""], task=(number, 2))
    assert asked.pop() == [*(name for name in names[number - 1 :: 2] if name not in finished), curves[0]]
    run_grid(grid, [""], task=(3 - number, 2))
    assert curves[0] not in asked.pop() and needed - finished == {mine}
    finished |= {*names, *curves}
    assert run_grid(grid, [""]) == {} and asked == []
