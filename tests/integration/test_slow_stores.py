"""Stores that are slow and alive: what they deliver arrives, whatever the pauses; a dead one is told from them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from msldata.errors import StorageError
from msldata.storage.remote import RemoteStorage

CONTENT = bytes(range(256)) * 4096
QUIET, PAUSE = "0.5s", 2.0
"""How long a connection may be silent at first, and how long this store is: above it on any machine, and far below the
patience that a slow store is met with."""


class SlowServer:
    """One file, which stops in its middle: for a while, or (``dead``) until the client has gone."""

    def __init__(self) -> None:
        self.url, self.dead, self.slow = "", False, True
        self.asked: list[str] = []


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowServer]:
    found, ended = SlowServer(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            span = self.headers.get("Range", "")
            first, _, last = span.removeprefix("bytes=").partition("-")
            part = CONTENT[int(first or 0) : int(last) + 1 if last else len(CONTENT)]
            found.asked.append(span)
            self.send_response(206 if span else 200)
            if span:
                end = int(first) + len(part) - 1
                self.send_header("Content-Range", f"bytes {first}-{end}/{len(CONTENT)}")
            self.send_header("ETag", '"1"')
            self.send_header("Last-Modified", "Wed, 07 Nov 2007 00:00:00 GMT")
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            if self.command == "HEAD":
                return
            self.wfile.write(part[: len(part) // 2])
            self.wfile.flush()
            if found.dead:
                ended.wait()
            elif found.slow:
                time.sleep(PAUSE)
            self.wfile.write(part[len(part) // 2 :])

        do_HEAD = do_GET

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.daemon_threads = True
    listener.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that hang up are part of the tests
    found.url = f"http://127.0.0.1:{listener.server_address[1]}"
    threading.Thread(target=listener.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(RemoteStorage, "READ_CLIENT", RemoteStorage.READ_CLIENT | {"read_timeout": QUIET})
    monkeypatch.setattr(RemoteStorage, "PATIENT_RETRY", RemoteStorage.RETRY | {"max_retries": 1})
    yield found
    ended.set()
    listener.shutdown()
    listener.server_close()


READS: dict[str, Callable[[RemoteStorage], bytes]] = {
    "read": lambda store: store.read("a.tar"),
    "ranges": lambda store: b"".join(store.read_ranges("a.tar", [0, 500_000], [1000, 300_000])),
    "stream": lambda store: b"".join(store.stream("a.tar")),
}


@pytest.mark.parametrize("way", READS)
def test_what_a_slow_store_delivers_arrives(server: SlowServer, way: str, caplog: pytest.LogCaptureFixture):
    """It ended with the words for a dead one. It is met with patience from then on, and said once."""
    store = RemoteStorage(server.url)
    assert store.exists("a.tar")
    expected = CONTENT[:1000] + CONTENT[500_000:800_000] if way == "ranges" else CONTENT
    with caplog.at_level(logging.WARNING):
        assert READS[way](store) == expected
        num_asked = len(server.asked)
        assert READS[way](store) == expected
    assert len(server.asked) - num_asked <= (2 if way == "ranges" else 1)  # no connection was given up
    assert [record.getMessage() for record in caplog.records] == [f"{server.url}: slow: it was silent for {QUIET}"]


@pytest.mark.parametrize("way", READS)
def test_a_store_that_dies_is_told_from_one_that_never_was(
    server: SlowServer, way: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(RemoteStorage, "SLOW_READ_CLIENT", RemoteStorage.SLOW_READ_CLIENT | {"read_timeout": "1s"})
    server.dead = True
    store = RemoteStorage(server.url)
    assert store.exists("a.tar")
    with pytest.raises(StorageError, match=r"the store has answered before, and now sent nothing for 1 seconds; it is"):
        READS[way](store)


def test_a_request_may_take_as_long_as_bytes_come():
    """A shard of a gigabyte at 400 kB/s takes three quarters of an hour."""
    for client in (RemoteStorage.READ_CLIENT, RemoteStorage.SLOW_READ_CLIENT):
        assert float(client["timeout"].removesuffix("s")) >= 3600 and client["read_timeout"]
