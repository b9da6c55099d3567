"""``msl serve`` under load: good, broken, slow and huge requests of many clients; its answers, and its memory.

    python benchmarks/serve.py --clients 64 --seconds 60

The server is the real command in a process of its own; the clients are threads of this one.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from msltrain.config import ModelConfig, TrainConfig  # noqa: E402
from msltrain.stream.config import StreamConfig  # noqa: E402
from tests.integration.test_evaluate import write_checkpoint  # noqa: E402
from tests.smallshards import CLASSES, photo  # noqa: E402


def peak_mb(pid: int) -> float:
    """Largest resident memory of a process so far."""
    return first_number(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text()) / 1024


def first_number(pattern: str, text: str) -> int:
    """What the group of a pattern holds; ValueError where there is no such place."""
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"no {pattern} in {text!r}")
    return int(found[1])


def huge_png() -> bytes:
    """A file of some kilobytes that holds 64 million pixels."""
    data = io.BytesIO()
    Image.fromarray(np.zeros((8000, 8000), np.uint8)).save(data, "PNG")
    return data.getvalue()


class Client(threading.Thread):
    """Asks one thing after the other until the end, and counts what came back."""

    def __init__(self, number: int, port: int, until: float, bodies: dict[str, bytes], expected: list[float]):
        super().__init__(daemon=True)
        self.random, self.port, self.until, self.bodies = random.Random(number), port, until, bodies
        self.expected, self.wrong = expected, 0
        self.found: Counter[tuple[str, int | str]] = Counter()
        """How often a kind of request was answered by a status, or otherwise."""

    def run(self) -> None:
        while time.monotonic() < self.until:
            kind = self.random.choices(["good", "broken", "huge", "slow"], [80, 10, 4, 6])[0]
            status: int | str
            try:
                status = self.slow() if kind == "slow" else self.post(kind)
            except (ConnectionResetError, BrokenPipeError, http.client.RemoteDisconnected):
                status = "reset"
            except TimeoutError:
                status = "no answer"
            self.found[kind, status] += 1

    def post(self, kind: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request("POST", "/api/photos", self.bodies[kind])
            response = connection.getresponse()
            answer = json.loads(response.read())
            if kind == "good" and np.abs(np.subtract(answer["answers"][0]["scores"], self.expected)).max() > 2e-3:
                self.wrong += 1
            return response.status
        finally:
            connection.close()

    def slow(self) -> int:
        """An upload that comes in drops, and is whole in the end."""
        data = self.bodies["good"]
        with socket.create_connection(("127.0.0.1", self.port), timeout=120) as client:
            head = f"POST /api/photos HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
            client.sendall(head.encode())
            for start in range(0, len(data), -(-len(data) // 20)):
                client.sendall(data[start : start + -(-len(data) // 20)])
                time.sleep(0.1)
            return int(client.recv(64).split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(stream=StreamConfig(image_size=128), model=ModelConfig(backbone="resnet10t"))
        write_checkpoint(Path(folder, "run"), CLASSES, config=config)
        command = [sys.executable, str(REPOSITORY / "cli.py"), "serve", "--checkpoint", f"{folder}/run", "--port", "0"]
        server = subprocess.Popen([*command, "--device", "cpu"], stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            port = first_number(r":(\d+)/", server.stdout.readline())
            bodies = {"good": photo(1, 500, 375), "broken": photo(2, 500, 375)[:900], "huge": huge_png()}
            first = Client(0, port, 0, bodies, [0.0] * len(CLASSES))
            first.post("good")
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request("POST", "/api/photos", bodies["good"])
            expected = json.loads(connection.getresponse().read())["answers"][0]["scores"]
            before = peak_mb(server.pid)
            until = time.monotonic() + arguments.seconds
            clients = [Client(number, port, until, bodies, expected) for number in range(arguments.clients)]
            for client in clients:
                client.start()
            for client in clients:
                client.join()
            total: Counter[tuple[str, int | str]] = sum((client.found for client in clients), Counter())
            print(f"{arguments.clients} clients, {arguments.seconds:.0f} s: {sum(total.values())} requests")
            for (kind, status), count in sorted(total.items(), key=str):
                print(f"  {kind:8} {status}: {count}")
            print(f"  wrong answers: {sum(client.wrong for client in clients)}")
            print(f"  memory: {before:.0f} MB before, {peak_mb(server.pid):.0f} MB at most")
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(timeout=20)


if __name__ == "__main__":
    main()
