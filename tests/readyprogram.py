"""Python without the seconds of its start: a process that has imported torch forks whenever one is called for.

    with readyprogram.running(folder, environment) as programs:
        subprocess.run([programs / "ready-python", "-m", "msltrain", "info", "shards"])
        subprocess.run(["bash", "-c", "msl info shards"], env={**environment, "PATH": f"{programs}:/usr/bin:/bin"})

Each program is a process of its own, with the caller's folder, environment, open files and ignored signals. Signals go
on to it, it ends when its caller is killed, and the caller ends as it does. What it starts by `sys.executable`, and the
workers of its `multiprocessing`, are such processes too. Only the interpreter's own start and end are left out.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import io
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

PYTHON = sys.executable
SLOW_TO_IMPORT = (
    *"torch torch._dynamo torch.onnx torchvision.transforms.v2 timm matplotlib.pyplot obstore sympy".split(),
    *"torch.distributed.run safetensors.torch pyarrow.compute pyarrow.parquet onnxscript simplejpeg jinja2".split(),
    *"typer._adapters typer.rich_utils rich.markdown rich.progress rich.table rich.traceback zlib_ng.zlib_ng".split(),
)
"""Only what starts no thread of Python's, for threads do not survive a fork; the one of pyarrow's allocator may."""
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
_PR_SET_PDEATHSIG = 1
TRUE = shutil.which("true") or "true"
ABOVE = 500
"""More than any number of an open file that a program is given."""

CLIENT = """#!{python} -SE
import json, os, signal, socket, sys

def is_given(number):
    try:
        return os.get_inheritable(number)
    except OSError:
        return False

files = [number for number in range(256) if is_given(number)]
ignored = [number for number in {forwarded} if signal.getsignal(number) is signal.SIG_IGN]
request = json.dumps([sys.argv, os.getcwd(), dict(os.environ), files, ignored]).encode()
signal.pthread_sigmask(signal.SIG_BLOCK, {forwarded})  # until they can be handed on
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
socket.send_fds(server, [len(request).to_bytes(4, "big")], files)
server.sendall(request)
pid = int.from_bytes(server.recv(4, socket.MSG_WAITALL), "big")
for number in {forwarded}:  # those that were ignored too: the program decides
    signal.signal(number, lambda number, _: os.kill(pid, number))
signal.pthread_sigmask(signal.SIG_UNBLOCK, {forwarded})
with open(f"{{sys.argv[0]}}.{{os.getpid()}}", "w") as file:
    file.write(str(pid))
answer = server.recv(4, socket.MSG_WAITALL)
code = int.from_bytes(answer, "big", signed=True) if answer else 70
if code < 0:
    if code != -signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


@contextmanager
def running(folder: Path, environment: Mapping[str, str]) -> Iterator[Path]:
    """A folder for the PATH, until the block ends. What is imported beforehand sees the environment."""
    address, programs = folder / "socket", folder / "bin"
    programs.mkdir(parents=True)
    for name in ("msl", "ready-python"):
        client = CLIENT.format(python=PYTHON, address=str(address), forwarded=[*map(int, FORWARDED)])
        (programs / name).write_text(client)
        (programs / name).chmod(0o755)
    command = [PYTHON, "-P", __file__, str(address), str(programs / "ready-python")]
    own = {name: value for name, value in environment.items() if name != "PYTHONPATH"}
    with subprocess.Popen(command, env=own, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None and server.stdout.readline() == b"ready\n"
            yield programs
        finally:
            server.terminate()


def pid_of(caller: int) -> int:
    """The program itself, of whom a test knows the caller: to look for what it has started, and to kill it.

    Killed is the caller at once, and the program only when it is noticed: too late for what must be gone by then.
    """
    return int(Path(f"{sys.executable}.{caller}").read_text())


def _end_with_parent() -> None:
    """Tests that are killed leave no server behind, nor a server its programs. On Linux; it is not inherited."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _serve(address: str, executable: str) -> None:
    _end_with_parent()
    os.setsid()  # no terminal reaches a program past its caller
    for name in SLOW_TO_IMPORT:
        importlib.import_module(name)
    from multiprocessing import spawn

    sys.executable = executable
    spawn.set_executable(executable)
    gc.freeze()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    child_ended, wakes = socket.socketpair()
    wakes.setblocking(False)
    signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    programs: dict[socket.socket, tuple[int, int]] = {}
    print("ready", flush=True)
    while True:
        ready, *_ = select.select([listener, child_ended, *programs], [], [])
        if listener in ready:
            client, started = _start(listener)
            programs[client] = started
        if child_ended in ready:
            child_ended.recv(4096)
            for client in [client for client, started in programs.items() if _has_ended(client, *started)]:
                del programs[client]
        for client in programs.keys() & set(ready):  # whose caller says nothing more: it is gone
            os.kill(programs[client][0], signal.SIGKILL)


def _start(listener: socket.socket) -> tuple[socket.socket, tuple[int, int]]:
    """Start what the next caller asks for; the caller, the program and who leads its group of processes.

    What a program sends to its group is for nobody else, but no program leads one; so who does has ended already.
    """
    client, _ = listener.accept()
    size, files, *_ = socket.recv_fds(client, 4, 256)
    request = client.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL)
    leader = os.posix_spawn(TRUE, ["true"], {}, setpgroup=0)
    pid = os.fork()
    if pid == 0:
        _end_with_parent()
        os.setpgid(0, leader)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _become(files, *json.loads(request))
    for file in files:  # whoever reads from the program must see that it has closed them
        os.close(file)
    with suppress(ConnectionError):
        client.sendall(pid.to_bytes(4, "big"))
    return client, (pid, leader)


def _has_ended(client: socket.socket, pid: int, leader: int) -> bool:
    """Tell the caller how its program has ended, if it has."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    if not ended:
        return False
    os.waitpid(leader, 0)
    with suppress(ConnectionError), client:
        client.sendall(os.waitstatus_to_exitcode(status).to_bytes(4, "big", signed=True))
    return True


def _become(
    files: Sequence[int],
    words: list[str],
    folder: str,
    environment: dict[str, str],
    numbers: Sequence[int],
    ignored: Sequence[int],
) -> None:
    """Be the program, and end as it does."""
    for file, number in zip(files, numbers, strict=True):
        os.dup2(file, ABOVE + number, inheritable=False)
    os.closerange(0, ABOVE)
    for number in numbers:
        os.dup2(ABOVE + number, number)
        os.close(ABOVE + number)
    for number in FORWARDED:  # the server may ignore others: tests may run under nohup
        usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if number in ignored else usual)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    unbuffered = "PYTHONUNBUFFERED" in environment or "-u" in words
    sys.stdin = sys.__stdin__ = open(0)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = _writer(1, unbuffered)
    sys.stderr = sys.__stderr__ = _writer(2, unbuffered)
    code = 1
    try:
        _main(words)()
        code = 0
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        else:
            code = int(ended.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code % 256)


def _writer(number: int, unbuffered: bool) -> TextIO:
    binary = open(number, "wb", buffering=0 if unbuffered else -1)  # noqa: SIM115
    errors = "backslashreplace" if number == 2 else None
    return io.TextIOWrapper(
        binary, errors=errors, line_buffering=number == 2 or os.isatty(number), write_through=unbuffered
    )


def _main(words: list[str]) -> Callable[[], object]:
    """What an interpreter would run, with the names, arguments and places for modules that it would have set."""
    called, *rest = words
    if Path(called).name == "msl":
        rest = ["-P", "-m", "msltrain", *rest]
    places = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    safe = False
    while rest and rest[0].startswith("-") and rest[0] not in ("-c", "-m"):
        option = rest.pop(0)
        safe = safe or option == "-P"
        if option in ("-X", "-W"):
            rest.pop(0)
    kind = rest.pop(0) if rest and rest[0] in ("-c", "-m") else ""
    what = rest.pop(0) if rest else ""
    if not safe:
        is_script = what and not kind
        places.insert(0, str(Path(what).resolve().parent) if is_script else str(Path.cwd()) if kind == "-m" else "")
    sys.path[:0] = places
    sys.argv = [kind or what, *rest]
    if kind == "-m":
        return lambda: runpy.run_module(what, run_name="__main__", alter_sys=True)
    if not kind and what:
        return lambda: runpy.run_path(what, run_name="__main__")
    code = compile(what if kind else sys.stdin.read(), "<string>" if kind else "<stdin>", "exec")
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    return lambda: exec(code, module.__dict__)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
