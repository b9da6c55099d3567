"""`msl` without the seconds of its start: a process that has imported torch forks whenever a shell calls it.

    with readyprogram.running(folder, environment) as programs:
        subprocess.run(["bash", "-c", "msl info shards"], env={**environment, "PATH": f"{programs}:/usr/bin:/bin"})

Each command is a process of its own, with the caller's folder, environment, input and outputs, and its exit code.
Beside it lies ``ready-python``, which runs the script in its standard input.
"""

from __future__ import annotations

import gc
import importlib
import json
import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
SLOW_TO_IMPORT = "torch torch._dynamo torch.onnx torchvision timm matplotlib.pyplot obstore sympy rich.table".split()
"""Only what starts no thread, for threads do not survive a fork."""

CLIENT = """#!{python} -SE
import json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
request = json.dumps([sys.argv, os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [len(request).to_bytes(4, "big")], [0, 1, 2])
server.sendall(request)
pid = int.from_bytes(server.recv(4, socket.MSG_WAITALL), "big")
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, _: os.kill(pid, number))
codes = server.recv(1)
sys.exit(codes[0] if codes else 1)
"""


@contextmanager
def running(folder: Path, environment: Mapping[str, str]) -> Iterator[Path]:
    """A folder for the PATH, until the block ends. What is imported beforehand sees the environment."""
    address, programs = folder / "socket", folder / "bin"
    programs.mkdir(parents=True)
    for name in ("msl", "ready-python"):
        (programs / name).write_text(CLIENT.format(python=sys.executable, address=str(address)))
        (programs / name).chmod(0o755)
    command = [sys.executable, "-m", "tests.readyprogram", str(address)]
    with subprocess.Popen(command, cwd=REPOSITORY, env=dict(environment), stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None and server.stdout.readline() == b"ready\n"
            yield programs
        finally:
            server.terminate()


def _serve(address: str) -> None:
    for name in SLOW_TO_IMPORT:
        importlib.import_module(name)
    gc.freeze()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    print("ready", flush=True)
    while True:
        client, _ = listener.accept()
        size, files, *_ = socket.recv_fds(client, 4, 3)
        asked = json.loads(client.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL))
        child = multiprocessing.get_context("fork").Process(target=_run, args=(files, *asked))
        child.start()
        client.sendall(child.pid.to_bytes(4, "big"))
        child.join()
        client.sendall(bytes([child.exitcode % 256]))
        client.close()
        for file in files:
            os.close(file)


def _run(files: Sequence[int], words: Sequence[str], folder: str, environment: Mapping[str, str]) -> None:
    """Become the command, and end as it does."""
    for number, file in enumerate(files):
        os.dup2(file, number)
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [Path(words[0]).name, *words[1:]]
    if sys.argv[0] == "ready-python":
        exec(compile(sys.stdin.read(), "<stdin>", "exec"), {"__name__": "__main__"})
    else:
        from msltrain.__main__ import main

        main()


if __name__ == "__main__":
    _serve(sys.argv[1])
