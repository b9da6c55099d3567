"""A small HTTP proxy for the tests: passes requests on to a real server, and breaks what it is told to break."""

from __future__ import annotations

import gzip
import http.client
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

FAULTS = (
    "unavailable",
    "slowdown",
    "reset",
    "cut",
    "stall",
    "corrupt",
    "slow",
    "cut-upload",
    "lost-answer",
    "nonsense",
)
ANSWERS = {
    "expired": (400, b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"),
    "html": (200, b"<html><head><title>Sign in</title></head><body>Sign in to go on</body></html>"),
}
"""Faults that are answers of somebody else: Amazon's to old credentials, and a gateway's page."""

Answer = tuple[int, list[tuple[str, str]], bytes]
"""Status, headers and body."""


def _gzipped(status: int, headers: list[tuple[str, str]], body: bytes) -> Answer:
    return status, [*headers, ("Content-Encoding", "gzip")], gzip.compress(body)


TAMPERED: dict[str, Callable[[int, list[tuple[str, str]], bytes], Answer]] = {
    "short": lambda status, headers, body: (status, headers, body[: len(body) // 2]),
    "long": lambda status, headers, body: (status, headers, body + b"more of it" * 9),
    "empty": lambda status, headers, body: (status, headers, b""),
    "zeros": lambda status, headers, body: (status, headers, bytes(len(body))),
    "shifted": lambda status, headers, body: (status, headers, body[1:] + body[:1]),
    "gzip": _gzipped,
    "gone": lambda status, headers, body: (404, [], b"<Error><Code>NoSuchKey</Code></Error>"),
    "denied": lambda status, headers, body: (403, [], b"<Error><Code>RequestTimeTooSkewed</Code></Error>"),
    "conflict": lambda status, headers, body: (409, [], b"<Error><Code>ConditionalRequestConflict</Code></Error>"),
    "exists": lambda status, headers, body: (412, [], b"<Error><Code>PreconditionFailed</Code></Error>"),
    "many": lambda status, headers, body: (429, [("Retry-After", "1")], b"Too many requests"),
    "gateway": lambda status, headers, body: (502, [("Content-Type", "text/html")], b"<html>Bad gateway</html>"),
    "no-content": lambda status, headers, body: (204, [], b""),
    "moved": lambda status, headers, body: (302, [("Location", "/sign-in?next=1")], b""),
    "whole": lambda status, headers, body: (200, [pair for pair in headers if pair[0] != "Content-Range"], body),
}
"""Faults that something between program and store makes of a whole answer, with a length that fits: it is for the
reader to see that it is not what was stored."""

Choose = Callable[[str, str], str | None]
"""Given the method and the path (with the query) of a request: the fault to inject, or None to pass it through."""

_HOP = {"connection", "transfer-encoding", "keep-alive", "content-length", "expect"}
_BLOCK = 1 << 16


class Sometimes:
    """A ``choose`` that breaks some requests of one kind and lets all others through.

    Args:
        fault: one of ``FAULTS``.
        times: how many matching requests are broken; None: all of them.
        method: only requests of this method.
        containing: only paths that hold this text, e.g. ``partNumber=``.
        after: matching requests that pass unharmed first.
    """

    def __init__(
        self, fault: str, times: int | None = 1, *, method: str | None = None, containing: str = "", after: int = 0
    ):
        assert fault in FAULTS or fault in ANSWERS or fault in TAMPERED
        self.fault, self.times, self.method, self.containing, self.after = fault, times, method, containing, after
        self.num_matched = 0
        self.num_faults = 0

    def __call__(self, method: str, path: str) -> str | None:
        if (self.method is not None and method != self.method) or self.containing not in path:
            return None
        self.num_matched += 1
        if self.num_matched <= self.after or (self.times is not None and self.num_faults >= self.times):
            return None
        self.num_faults += 1
        return self.fault


class FaultProxy:
    """Listens on a free loopback port in front of ``upstream`` until ``close``. Bodies pass through in small blocks.

    Faults: ``unavailable`` answers 503 and ``slowdown`` 503 with ``Retry-After: 1``; ``reset`` drops the connection
    before the first byte, ``cut`` in the middle of the answer's body; ``stall`` waits ``stall_seconds`` first;
    ``corrupt`` flips the body's last byte, ``slow`` drips it. For writers: ``cut-upload`` drops the connection in the
    middle of the request's body, which the server never sees whole; ``lost-answer`` lets the server do what was asked
    and answers 500 all the same; ``nonsense`` answers what is no HTTP. ``refusing`` closes the port for a while.
    """

    stall_seconds = 2.0

    def __init__(self, upstream: str, choose: Choose = lambda method, path: None):
        self.upstream = urlsplit(upstream)
        self.choose = choose
        self.num_requests = 0
        self.num_faults = 0
        self.log: deque[tuple[str, str, str | None]] = deque(maxlen=20_000)
        """Method, path and fault of the latest requests."""
        self._lock = threading.Lock()
        self._server = self._listen(0)
        self.port = self._server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def _listen(self, port: int) -> ThreadingHTTPServer:
        proxy = self

        class Handler(_Handler):
            owner = proxy

        server = _Server(("127.0.0.1", port), Handler)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return server

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """No new connection is accepted while the block runs, and open ones are dropped at their next request."""
        chosen, self.choose = self.choose, lambda method, path: "reset"
        self.close()
        try:
            yield
        finally:
            self.choose = chosen
            self._server = self._listen(self.port)

    def next_fault(self, method: str, path: str) -> str | None:
        with self._lock:
            self.num_requests += 1
            fault = self.choose(method, path)
            self.num_faults += fault is not None
            self.log.append((method, path, fault))
        return fault


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients that hang up are part of every test here


class _Handler(BaseHTTPRequestHandler):
    owner: FaultProxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = _BLOCK

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        fault = self.owner.next_fault(self.command, self.path)
        length = int(self.headers.get("Content-Length") or 0)
        if fault == "reset":
            return self._drop()
        if fault == "nonsense":
            self.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
            return self._drop()
        if fault in ("unavailable", "slowdown"):
            for _ in self._request_body(length):
                pass
            headers = [("Retry-After", "1")] if fault == "slowdown" else []
            return self._refuse(503, headers, b"<Error><Code>SlowDown</Code></Error>")
        if fault in ANSWERS:
            for _ in self._request_body(length):
                pass
            status, content = ANSWERS[fault]
            return self._refuse(status, [], content)
        if fault == "cut-upload":
            self.rfile.read(length // 2)
            return self._drop()
        if fault == "stall":
            time.sleep(self.owner.stall_seconds)
        upstream = http.client.HTTPConnection(self.owner.upstream.hostname or "", self.owner.upstream.port, timeout=60)
        try:
            # The Host header goes through unchanged: it is part of what the client signed.
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _HOP:
                    upstream.putheader(name, value)
            upstream.putheader("Content-Length", str(length))
            upstream.endheaders()
            for block in self._request_body(length):
                upstream.send(block)
            return self._pass_on(upstream.getresponse(), fault)
        finally:
            upstream.close()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

    def _request_body(self, length: int) -> Iterator[bytes]:
        while length > 0:
            block = self.rfile.read(min(length, _BLOCK))
            if not block:
                raise ConnectionError("the client hung up")
            length -= len(block)
            yield block

    def _refuse(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in (*headers, ("Content-Length", str(len(content)))):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _pass_on(self, response: http.client.HTTPResponse, fault: str | None) -> None:
        if fault == "lost-answer":
            response.read()
            return self._refuse(500, [], b"<Error><Code>InternalError</Code></Error>")
        headers = [(name, value) for name, value in response.getheaders() if name.lower() not in _HOP]
        if fault in TAMPERED:
            # Of a HEAD there is no body, only its length.
            body = bytes(int(response.getheader("Content-Length") or 0)) if self.command == "HEAD" else response.read()
            return self._refuse(*TAMPERED[fault](response.status, headers, body))
        status = response.status
        # rclone's S3 server sends the right range with status 200; S3 itself, and so every client, says 206.
        if status == 200 and any(name.lower() == "content-range" for name, _ in headers):
            status = 206
        declared = response.getheader("Content-Length")
        whole = b"" if declared is not None or self.command == "HEAD" else response.read()  # chunked: small listings
        length = int(declared) if declared is not None else len(whole)
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command == "HEAD":
            return None
        end = length // 2 if fault == "cut" else length
        sent = 0
        while sent < end:
            block = whole[sent:end][:_BLOCK] if declared is None else response.read(min(_BLOCK, end - sent))
            if not block:
                return self._drop()  # the server itself broke off
            sent += len(block)
            if fault == "corrupt" and sent == length:
                block = block[:-1] + bytes([block[-1] ^ 0xFF])
            self.wfile.write(block)
            if fault == "slow":
                self.wfile.flush()
                time.sleep(0.01)
        return self._drop() if fault == "cut" else None

    def _drop(self) -> None:
        # Linger 0 makes close() send a reset instead of an orderly end.
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True
