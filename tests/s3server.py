"""A real S3 server on loopback for the tests: rclone over a temporary folder, with signature checks."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.faultproxy import FaultProxy

ACCESS_KEY, SECRET_KEY = "test-key", "test-secret"


@dataclass
class S3Server:
    """A running server; ``environment`` is what a user would export to reach it."""

    root: Path
    """Each folder below it is a bucket."""
    proxy: FaultProxy
    """Stands between every client and the server."""

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.proxy.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
        }


@contextmanager
def running(root: Path, *, anonymous: bool = False) -> Iterator[S3Server]:
    """Serve the folders below ``root`` as buckets, on ports that the system chooses; ``anonymous``: without keys."""
    program = shutil.which("rclone", path=sysconfig.get_path("scripts")) or shutil.which("rclone")
    if program is None:
        raise FileNotFoundError("rclone: install the test extra")
    command = [program, "serve", "s3", str(root), "--addr", "127.0.0.1:0"]
    if not anonymous:
        command += ["--auth-key", f"{ACCESS_KEY},{SECRET_KEY}"]
    # Not 0s: rclone then looks at its directories without a pause, and every request waits for a processor.
    command += ["--vfs-cache-mode", "off", "--dir-cache-time", "1ms", "--config", "/dev/null"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        proxy = FaultProxy(_address(process))
        yield S3Server(root, proxy)
        proxy.close()
    finally:
        process.terminate()
        process.wait(timeout=10)


def _address(process: subprocess.Popen[str]) -> str:
    """The address in the server's first log line; what it logs later is read and dropped, so that it never blocks."""
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            threading.Thread(target=process.stderr.read, daemon=True).start()
            return found[0]
    raise RuntimeError("the S3 server did not start")
