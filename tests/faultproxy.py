"""A small HTTP proxy for the tests: passes requests on to a real server, and breaks the answers it is told to break."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

FAULTS = ("unavailable", "reset", "cut", "stall", "corrupt", "slow")
Choose = Callable[[str, str], str | None]
"""Given the method and the path of a request: the fault to inject, or None to pass it through."""

_HOP = {"connection", "transfer-encoding", "keep-alive", "content-length"}


class FaultProxy:
    """Listens on a free loopback port in front of ``upstream`` until ``close``.

    Faults: ``unavailable`` answers 503, ``reset`` drops the connection before the first byte, ``cut`` in the middle of
    the body, ``stall`` waits ``stall_seconds`` first, ``corrupt`` flips a byte of the body, ``slow`` drips it.
    """

    stall_seconds = 2.0

    def __init__(self, upstream: str, choose: Choose = lambda method, path: None):
        self.upstream = urlsplit(upstream)
        self.choose = choose
        self.num_requests = 0
        self.num_faults = 0
        self._lock = threading.Lock()
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def next_fault(self, method: str, path: str) -> str | None:
        with self._lock:
            self.num_requests += 1
            fault = self.choose(method, path)
            self.num_faults += fault is not None
        return fault


class _Handler(BaseHTTPRequestHandler):
    owner: FaultProxy
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.owner.next_fault(self.command, self.path)
        if fault == "reset":
            return self._drop()
        if fault == "unavailable":
            return self._answer(503, [], b"<Error><Code>SlowDown</Code></Error>")
        if fault == "stall":
            time.sleep(self.owner.stall_seconds)
        upstream = http.client.HTTPConnection(self.owner.upstream.hostname or "", self.owner.upstream.port, timeout=30)
        try:
            # The Host header goes through unchanged: it is part of what the client signed.
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _HOP:
                    upstream.putheader(name, value)
            upstream.putheader("Content-Length", str(len(body)))
            upstream.endheaders(body)
            response = upstream.getresponse()
            content = response.read()
            headers = [(name, value) for name, value in response.getheaders() if name.lower() not in _HOP]
            status = response.status
        finally:
            upstream.close()
        # rclone's S3 server sends the right range with status 200; S3 itself, and so every client, says 206.
        if status == 200 and any(name.lower() == "content-range" for name, _ in headers):
            status = 206
        length = int(response.getheader("Content-Length") or 0) if self.command == "HEAD" else len(content)
        return self._answer(status, headers, content, length, fault)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

    def _answer(
        self,
        status: int,
        headers: list[tuple[str, str]],
        content: bytes,
        length: int | None = None,
        fault: str | None = None,
    ) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        if fault == "corrupt" and content:
            content = content[:-1] + bytes([content[-1] ^ 0xFF])
        if fault == "cut":
            self.wfile.write(content[: len(content) // 2])
            return self._drop()
        if fault == "slow":
            for start in range(0, len(content), 65536):
                self.wfile.write(content[start : start + 65536])
                time.sleep(0.01)
            return None
        self.wfile.write(content)
        return None

    def _drop(self) -> None:
        # Linger 0 makes close() send a reset instead of an orderly end.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.wfile.flush()
        self.connection.close()
        self.close_connection = True
