"""Broken places and how soon, and in what words, a person learns of them; and what a web address can and cannot do."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
import time
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from msldata.errors import StorageError
from msldata.inspect.describe import describe
from msldata.inspect.verify import verify
from msldata.storage import RemoteStorage, open_storage
from tests.faultproxy import Sometimes
from tests.smallshards import write_images

REPOSITORY = Path(__file__).resolve().parents[2]
SECONDS = 10
ACTIONS = {
    "read": lambda storage: storage.read("x"),
    "ranges": lambda storage: storage.read_ranges("x", [0], [1]),
    "list": lambda storage: storage.list_files(),
    "exists": lambda storage: storage.exists("x"),
    "put": lambda storage: storage.put("x", b"1"),
    "delete": lambda storage: storage.delete("x"),
}


def sentence(action, url: str) -> str:
    """What the action's error says; it must come in time and be one line."""
    began = time.monotonic()
    with pytest.raises((StorageError, FileNotFoundError)) as caught:
        action(open_storage(url))
    assert time.monotonic() - began < SECONDS
    assert "\n" not in str(caught.value) and str(caught.value).startswith(url)
    return str(caught.value)


@pytest.mark.parametrize("action", ["read", "list", "put"])
def test_refused_connection(s3, monkeypatch, action):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    text = sentence(ACTIONS[action], "s3://bucket/x")
    assert "the connection was refused; check AWS_ENDPOINT_URL (now http://127.0.0.1:9)" in text


@pytest.mark.parametrize("action", ["read", "put"])
def test_unknown_host(s3, monkeypatch, action):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://storage.invalid")
    assert "its host name is not known; check AWS_ENDPOINT_URL" in sentence(ACTIONS[action], "s3://bucket/x")


@pytest.mark.parametrize("action", ACTIONS)
def test_wrong_secret(s3, monkeypatch, action):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    assert "access denied; check the credentials" in sentence(ACTIONS[action], "s3://bucket/x")
    assert s3.proxy.log[-1][1].startswith("/bucket"), "the server was never asked"


def test_a_refusal_is_not_asked_again(s3, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    before = s3.proxy.num_requests
    sentence(ACTIONS["read"], "s3://bucket/x")
    assert s3.proxy.num_requests == before + 1


@pytest.mark.parametrize("action", ["read", "ranges", "list", "put"])
def test_missing_bucket(s3, action):
    assert "no such bucket" in sentence(ACTIONS[action], "s3://absent/x")


@pytest.mark.parametrize("name", ["http://127.0.0.1:9/x", "http://storage.invalid/x"])
def test_web_address_without_a_server(name):
    assert "the store cannot be reached" in sentence(ACTIONS["read"], name)


def test_another_region(s3):
    answer = b"<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1</Region></Error>"

    class Elsewhere(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(400)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    with serving(Elsewhere) as address:
        os.environ["AWS_ENDPOINT_URL"] = address  # the fixture puts it back
        assert "another region or behind another address; check AWS_REGION (now us-east-1)" in sentence(
            ACTIONS["read"], "s3://bucket/x"
        )


def test_no_account_is_named(monkeypatch):
    for name in list(os.environ):
        if name.startswith("AZURE_"):
            monkeypatch.delenv(name)
    with pytest.raises(
        StorageError, match=r"az://bucket/x: no storage account is named; set AZURE_STORAGE_ACCOUNT_NAME"
    ):
        open_storage("az://bucket/x")


def test_a_silent_server_is_left_in_time(s3, monkeypatch):
    """A stall is met by asking again, and a stall without end by an error."""
    monkeypatch.setattr(RemoteStorage, "READ_CLIENT", {"connect_timeout": "1s", "read_timeout": "0.5s"})
    monkeypatch.setattr(s3.proxy, "stall_seconds", 1.5)
    open_storage("s3://bucket/stall").put("x", b"content")
    s3.proxy.choose = Sometimes("stall", 1)
    assert open_storage("s3://bucket/stall").read("x") == b"content"
    s3.proxy.choose = Sometimes("stall", None)
    assert "no answer came in time" in sentence(ACTIONS["read"], "s3://bucket/stall")


def test_a_store_that_has_answered_is_waited_for(s3, monkeypatch):
    monkeypatch.setattr(RemoteStorage, "PATIENT_RETRY", RemoteStorage.RETRY | {"max_retries": 10})
    storage = open_storage("s3://bucket/patience")
    storage.put("x", b"1")
    s3.proxy.choose = Sometimes("slowdown", RemoteStorage.RETRY["max_retries"] + 2, method="GET")
    assert storage.read("x") == b"1"
    assert s3.proxy.choose.num_faults == RemoteStorage.RETRY["max_retries"] + 2


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


class serving:
    """A web server on a free loopback port while the block runs; gives its address."""

    def __init__(self, handler):
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)

    def __enter__(self) -> str:
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def test_dataset_behind_a_web_address(tmp_path):
    write_images(tmp_path / "data", [3, 2])
    with serving(partial(_Quiet, directory=str(tmp_path))) as address:
        web = open_storage(f"{address}/data")
        assert describe(web) == describe(open_storage(tmp_path / "data"))
        assert [finding.what for finding in verify(web, num_workers=1).findings] == [
            finding.what for finding in verify(open_storage(tmp_path / "data"), num_workers=1).findings
        ]
        with pytest.raises(StorageError, match="a web address cannot be listed"):
            web.list_files()
        with pytest.raises(StorageError, match="a web address can only be read"):
            web.put("x", b"1")
        with pytest.raises(FileNotFoundError, match="no such object"):
            web.read("y")


UPLOAD = """
import resource, sys
from pathlib import Path
from msldata.storage import open_storage
storage = open_storage("s3://bucket/large")
storage.put("small", b"1")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
storage.put("x.bin", Path(sys.argv[1]))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_upload_needs_no_memory_for_the_file(s3, tmp_path):
    staged = tmp_path / "x.bin"
    with open(staged, "wb") as file:
        file.truncate(300 << 20)
    command = [sys.executable, "-c", UPLOAD, str(staged)]
    result = subprocess.run(command, cwd=REPOSITORY, env=os.environ, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 120, f"{result.stdout.strip()} MB for a file of 300 MB"
    assert (s3.root / "bucket/large/x.bin").stat().st_size == 300 << 20
    (s3.root / "bucket/large/x.bin").unlink()


@pytest.mark.parametrize("action", ACTIONS)
def test_expired_credentials(s3, action):
    open_storage("s3://bucket/expired").put("x", b"1")
    s3.proxy.choose = Sometimes("expired", times=None)
    text = sentence(ACTIONS[action], "s3://bucket/expired")
    assert "credentials have expired" in text and "AWS_SESSION_TOKEN" in text


@pytest.mark.parametrize("action", ["delete", "create"])
def test_one_reset_of_a_request_that_is_sent_once(s3, action):
    """The storage library sends neither again by itself."""
    storage = open_storage("s3://bucket/reset")
    storage.put("x", b"1")
    s3.proxy.choose = Sometimes("reset", times=2, method="POST" if action == "delete" else "PUT")
    if action == "delete":
        storage.delete("x")
    else:
        storage.create("y", b"1")
    assert s3.proxy.choose.num_faults == 2
    assert storage.exists("x" if action == "create" else "y") is (action == "create")
    s3.proxy.choose = Sometimes("reset", times=None)
    with pytest.raises(StorageError, match="the connection was dropped again and again"):
        storage.delete("x")


@pytest.mark.parametrize("num_bytes", [1_000, 20_000_000])
def test_a_stalled_upload_is_sent_again(s3, monkeypatch, num_bytes):
    monkeypatch.setattr(RemoteStorage, "WRITE_CLIENT", {**RemoteStorage.WRITE_CLIENT, "timeout": "2s"})
    monkeypatch.setattr(RemoteStorage, "PATIENT_RETRY", {**RemoteStorage.RETRY, "retry_timeout": timedelta(seconds=1)})
    monkeypatch.setattr(s3.proxy, "stall_seconds", 30.0)
    storage = open_storage("s3://bucket/stalled")
    s3.proxy.choose = Sometimes("stall", times=1, method="PUT")
    began = time.monotonic()
    storage.put("x", b"1" * num_bytes)
    assert time.monotonic() - began < 15 and s3.proxy.choose.num_faults == 1
    assert len(storage.read("x")) == num_bytes
