"""Worker processes of a grid: one a GPU, a failed job costs no other, and none outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from msldata.errors import UserError
from msltrain.grids.jobs import only_one
from msltrain.grids.workers import JobEnded, JobProgress, JobStarted, run_jobs
from tests.gridjobs import FakeJob

pytestmark = pytest.mark.skipif(not Path("/proc").exists(), reason="looks for processes where Linux shows them")


def alive(pid: int) -> bool:
    status = Path("/proc", str(pid), "status")
    return status.exists() and "State:\tZ" not in status.read_text()


def test_every_gpu_has_one_process_with_one_job_at_a_time(tmp_path):
    jobs = [FakeJob(name=f"job{number}", folder=tmp_path, act="meet") for number in range(5)]
    events: list = []
    assert run_jobs(jobs, ["2", "5"], events.append) == {}
    found = [job.result.read_text().split() for job in jobs]
    assert {gpu for _, gpu, _ in found} == {"2", "5"}
    assert len({(pid, gpu) for pid, gpu, _ in found}) == 2
    cpus = {gpu: set(cpus.split(",")) for _, gpu, cpus in found}
    if len(os.sched_getaffinity(0)) > 1:  # each has CPUs of its own
        assert not cpus["2"] & cpus["5"] and len(cpus["2"] | cpus["5"]) == len(os.sched_getaffinity(0))
    busy: set[str] = set()
    most = 0
    for event in events:
        if isinstance(event, JobStarted):
            assert event.slot not in busy
            busy.add(event.slot)
        elif isinstance(event, JobEnded):
            busy.discard(next(e.slot for e in events if isinstance(e, JobStarted) and e.job == event.job))
        most = max(most, len(busy))
    assert most == 2
    assert {event.job.name for event in events if isinstance(event, JobProgress)} == {job.name for job in jobs}
    assert not any(alive(int(pid)) for pid, _, _ in found)


def test_what_fails_is_named_and_the_rest_still_runs(tmp_path):
    jobs = [
        FakeJob(name="mistake", folder=tmp_path, act="mistake"),
        FakeJob(name="bug", folder=tmp_path, act="bug"),
        FakeJob(name="death", folder=tmp_path, act="die"),
        FakeJob(name="curves", folder=tmp_path, needs=("fine", "death")),
        FakeJob(name="others", folder=tmp_path, needs=("fine",)),
        FakeJob(name="fine", folder=tmp_path),
    ]
    ended: list = []
    problems = run_jobs(jobs, [""], lambda event: ended.append(event) if isinstance(event, JobEnded) else None)
    assert problems == {
        "mistake": "the keep masks are of another size; build them again",
        "bug": "ZeroDivisionError: in some library",
        "death": "its process was ended by SIGKILL, as when the machine is out of memory",
        "curves": "needs death, which failed",
    }
    assert {event.job.name: bool(event.problem) for event in ended} == {job.name: job.name in problems for job in jobs}
    assert jobs[4].is_finished and jobs[5].is_finished and not jobs[3].is_finished
    log = jobs[1].log.read_text()
    assert "== bug, 20" in log and "this is bug" in log and "a library speaks" in log and "Traceback" in log
    assert "Traceback" not in jobs[0].log.read_text() and "error: the keep masks" in jobs[0].log.read_text()


PARENT = """
import sys
from pathlib import Path
from msltrain.grids.workers import run_jobs
from tests.gridjobs import FakeJob
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    jobs = [FakeJob(name="first", folder=folder), FakeJob(name="second", folder=folder, act="wait")]
    try:
        run_jobs(jobs, [""], lambda event: print(event, flush=True))
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_its_parent(tmp_path, sent):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    parent = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert parent.stdout is not None
    for line in parent.stdout:
        if "JobProgress" in line and "second" in line:
            break
    worker = int((tmp_path / "first" / "result").read_text().split()[0])
    assert alive(worker)
    parent.send_signal(sent)
    assert parent.wait(timeout=60) == (-9 if sent is signal.SIGKILL else 130)
    until = time.monotonic() + 10
    while alive(worker):
        assert time.monotonic() < until, "the worker lives on"
        time.sleep(0.02)
    assert not (tmp_path / "second" / "result").exists()


def test_one_process_works_in_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("msltrain.grids.jobs._PATIENCE_S", 0.1)
    with (
        only_one(tmp_path),
        pytest.raises(UserError, match="another process is working in this folder"),
        only_one(tmp_path),
    ):
        pass
    with only_one(tmp_path):
        pass
