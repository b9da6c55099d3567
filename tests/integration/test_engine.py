"""Shard tasks in worker processes: order, errors, and no process that outlives the build."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from msldata.errors import BadInputError, UserError
from msldata.workers.engine import run_tasks

REPOSITORY = Path(__file__).resolve().parents[2]


def square(number: int) -> int:
    time.sleep(0.02 * (number % 3))  # finish out of order
    return number * number


def fail_at_three(number: int) -> int:
    if number == 3:
        raise BadInputError("image.jpg", "truncated JPEG")
    time.sleep(30 if number > 3 else 0)
    return number


def die(number: int) -> int:
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def die_once(task: tuple[str, int, bool]) -> int:
    folder, number, deadly = task
    first = not list(Path(folder).glob(f"{number}-*"))
    Path(folder, f"{number}-{time.monotonic_ns()}").touch()
    if deadly and first:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def answer_with_a_lock(number: int):
    return threading.Lock()


def leave_pid_and_sleep(task: tuple[str, float]) -> None:
    folder, seconds = task
    Path(folder, str(os.getpid())).touch()
    time.sleep(seconds)


def environment(name: str) -> str | None:
    return os.environ.get(name)


@pytest.mark.parametrize("num_workers", [1, 2, None])
def test_results_come_in_task_order(num_workers):
    seen = []
    results = run_tasks(square, range(8), num_workers, seen.append)
    assert results == [number * number for number in range(8)]
    assert sorted(seen) == results
    assert run_tasks(square, [], num_workers) == []


@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_first_error_stops_the_rest_and_is_raised_as_itself(num_workers):
    start = time.monotonic()
    with pytest.raises(BadInputError, match=r"image\.jpg: truncated JPEG") as caught:
        run_tasks(fail_at_three, range(9), num_workers)
    assert (caught.value.file, caught.value.reason) == ("image.jpg", "truncated JPEG")
    assert time.monotonic() - start < 60


@pytest.mark.parametrize("num_killed", [1, 3])
def test_a_killed_worker_costs_only_its_task(tmp_path, num_killed):
    """Each of the first ``num_killed`` tasks kills its first worker; all others run once."""
    tasks = [(str(tmp_path), number, number < num_killed) for number in range(7)]
    assert run_tasks(die_once, tasks, 2) == list(range(7))
    runs = {number: len(list(tmp_path.glob(f"{number}-*"))) for number in range(7)}
    assert runs == {number: 2 if number < num_killed else 1 for number in range(7)}


def test_a_task_that_kills_every_worker_is_given_up_with_the_way_on():
    with pytest.raises(UserError, match=r"2 worker processes were killed.*run the same command again"):
        run_tasks(die, range(8), 2)


def test_an_answer_that_cannot_be_sent_is_an_error():
    with pytest.raises(RuntimeError, match="pickle"):
        run_tasks(answer_with_a_lock, range(3), 2)


def test_the_main_script_is_not_run_again_in_workers(tmp_path):
    script = tmp_path / "main.py"
    script.write_text(
        "import os\nfrom pathlib import Path\n"
        f"Path({str(tmp_path)!r}, f'ran-{{os.getpid()}}').touch()\n"
        "from msldata.workers.engine import run_tasks\n"
        "from tests.integration.test_engine import square\n"
        "assert run_tasks(square, range(4), 2) == [0, 1, 4, 9]\n"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, script], cwd=REPOSITORY, env=environment, check=True, timeout=60)
    assert len(list(tmp_path.glob("ran-*"))) == 1


def test_workers_import_what_their_parent_imports(tmp_path):
    """Started elsewhere, with another copy of the module in the folder there: as when a second version is installed."""
    for folder, answer in (("here", "right"), ("there", "wrong")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "copied.py").write_text(f"def answer(number):\n    return {answer!r}\n")
    script = tmp_path / "here" / "main.py"
    script.write_text(
        "from msldata.workers.engine import run_tasks\nimport copied, os\n"
        "before = dict(os.environ)\n"
        "assert run_tasks(copied.answer, range(4), 2) == ['right'] * 4\nassert dict(os.environ) == before\n"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, script], cwd=tmp_path / "there", env=environment, check=True, timeout=60)


def test_workers_see_todays_environment(monkeypatch):
    """Credentials that are set after the first build must reach the workers of the second."""
    run_tasks(square, range(3), 2)
    monkeypatch.setenv("MSL_TEST_LATE", "yes")
    assert run_tasks(environment, ["MSL_TEST_LATE"] * 3, 2) == ["yes"] * 3


def test_the_number_of_workers_is_checked():
    with pytest.raises(UserError, match="num_workers is 0"):
        run_tasks(square, range(3), 0)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_its_parent(tmp_path, number):
    """Ctrl-C, ``kill`` and ``kill -9`` alike: seconds later nothing of the build is running."""
    code = (
        "from msldata.workers.engine import run_tasks\n"
        "from tests.integration.test_engine import leave_pid_and_sleep\n"
        f"run_tasks(leave_pid_and_sleep, [({str(tmp_path)!r}, 60), ({str(tmp_path)!r}, 0)], 2)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
        time.sleep(0.3)  # now one worker is busy and one is idle
        if number == signal.SIGINT:
            os.killpg(parent.pid, number)  # as a terminal does: the workers get it too
        else:
            parent.send_signal(number)
        _, errors = parent.communicate(timeout=60)
        assert parent.returncode != 0
        assert errors.count("Traceback") == (1 if number == signal.SIGINT else 0), errors
        wait_until(lambda: not any(alive(int(path.name)) for path in tmp_path.iterdir()))
    finally:
        parent.kill()


def imports_pandas(_: int) -> bool:
    # As a module of ours does it; from others pandas is not hidden.
    exec("import pyarrow; pyarrow.array([1, 2])", {"__name__": "msldata.contract.format"})
    return "pandas" in sys.modules


def test_workers_do_not_import_pandas():
    pytest.importorskip("pandas")
    assert run_tasks(imports_pandas, [0, 1], 2) == [False, False]


def wait_until(condition) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "waited 20 s in vain"
        time.sleep(0.02)
