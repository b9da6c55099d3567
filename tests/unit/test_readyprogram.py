"""The stand-in for an interpreter is told what to run, ends and is ended as the real one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PLAIN = sys.executable


@pytest.fixture(params=["plain", "ready"])
def python(request: pytest.FixtureRequest, ready_programs: Path) -> str:
    return PLAIN if request.param == "plain" else str(ready_programs / "ready-python")


def run(python: str, *words: object, **options) -> tuple[int, str]:
    done = subprocess.run([python, *map(str, words)], capture_output=True, text=True, timeout=60, **options)
    return done.returncode, done.stdout


SAYS = "import os, sys; print(sys.argv, os.environ.get('A'), __name__)"


def test_what_runs(python: str, tmp_path: Path):
    script = tmp_path / "own.py"
    script.write_text(SAYS + "; print(sys.path[0] == os.path.dirname(__file__))")
    environment = {"PATH": os.environ["PATH"], "A": "1"}
    assert run(python, "-c", SAYS, "-x", env=environment) == (0, "['-c', '-x'] 1 __main__\n")
    assert run(python, "-u", script, "-c", env=environment) == (0, f"['{script}', '-c'] 1 __main__\nTrue\n")
    assert run(python, "-m", "own", "a", cwd=tmp_path) == (0, f"['{script}', 'a'] None __main__\nTrue\n")
    assert run(python, "-P", "-m", "own", cwd=tmp_path)[0] == 1
    assert run(python, "-P", "-m", "own", env={"PYTHONPATH": str(tmp_path)})[0] == 0
    assert run(python, input="import sys; print(sys.argv)") == (0, "['']\n")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("", 0),
        ("sys.exit()", 0),
        ("sys.exit(75)", 75),
        ("sys.exit('no')", 1),
        ("1 / 0", 1),
        ("os.kill(os.getpid(), 9)", -9),
        ("os.abort()", -6),
        ("signal.signal(15, signal.SIG_DFL); os.kill(os.getpid(), 15)", -15),
    ],
)
def test_how_it_ends(python: str, code: str, expected: int):
    said = "atexit.register(print, 'last'); sys.stdout.write('first, ')"
    environment = {"PATH": os.environ["PATH"]}
    ended = run(python, "-c", f"import atexit, os, signal, sys; {said}; {code}", env=environment)
    assert ended == (expected, "first, last\n" if expected >= 0 else "")


@pytest.mark.parametrize("listens", [False, True])
def test_signals_and_files_reach_it(python: str, listens: bool):
    """An ignored signal as well, as bash lets a program in the background ignore Ctrl-C: it may listen nevertheless."""
    ours, theirs = os.pipe()
    code = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(3))\n"
        "assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN\n"
        f"if {listens}: signal.signal(signal.SIGINT, lambda *_: sys.exit(4))\n"
        f"os.write({theirs}, b'there'); signal.pause()"
    )
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    process = subprocess.Popen([python, "-c", code], pass_fds=[theirs])
    signal.signal(signal.SIGINT, before)
    os.close(theirs)
    assert os.read(ours, 5) == b"there"
    process.send_signal(signal.SIGINT)
    if not listens:
        process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=60) == (4 if listens else 3)
    assert os.read(ours, 1) == b""
    os.close(ours)


def test_who_is_killed_is_gone(python: str):
    code = "import time; print(1); time.sleep(60); print(2)"
    process = subprocess.Popen([python, "-u", "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None and os.read(process.stdout.fileno(), 100) in (b"1", b"1\n")  # not held back
    process.kill()
    assert process.wait(timeout=60) == -9
    assert process.stdout.read().strip() == b""  # as soon as nobody can write any more


def test_it_may_begin_a_session_and_is_alone_in_its_group(python: str, ready_programs: Path):
    assert run(python, "-c", "import os; os.setsid()") == (0, "")
    other = subprocess.Popen([ready_programs / "ready-python", "-c", "input()"], stdin=subprocess.PIPE)
    assert run(str(ready_programs / "ready-python"), "-c", "import os; os.killpg(0, 9)") == (-9, "")
    other.communicate(b"\n")
    assert other.returncode == 0


def test_its_workers_are_such_processes(python: str, tmp_path: Path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import multiprocessing, sys\n"
        "def work(pipe): pipe.send(('torch' in sys.modules, __name__))\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('spawn')\n"
        "    ours, theirs = context.Pipe()\n"
        "    process = context.Process(target=work, args=(theirs,))\n"
        "    process.start()\n"
        "    print(*ours.recv())\n"
        "    process.join()\n"
        "    sys.exit(process.exitcode)\n"
    )
    assert run(python, script) == (0, f"{python != PLAIN} __mp_main__\n")
