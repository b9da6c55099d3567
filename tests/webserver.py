"""An HTTP server on loopback for the tests: serves bytes from memory, with ranges, and with the faults it is told."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


@dataclass
class WebServer:
    """``files`` by path; what was asked is in ``requests`` as (path, Range, If-Range)."""

    files: dict[str, bytes] = field(default_factory=dict)
    url: str = ""
    requests: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    ranges: bool = True
    """Whether the server knows ranges at all."""
    etag: str | None = '"1"'
    cut: Callable[[int], int | None] = lambda number: None
    """Given the number of the request: after how many bytes of the body the connection breaks; None: never."""
    status: Callable[[int], int | None] = lambda number: None
    """Given the number of the request: an error status to answer with."""


@contextmanager
def running() -> Iterator[WebServer]:
    """Serve on a port that the system chooses, until the block ends."""
    server = WebServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            asked, if_range = self.headers.get("Range"), self.headers.get("If-Range")
            path = unquote(self.path)
            server.requests.append((path, asked, if_range))
            number = len(server.requests)
            content = server.files.get(path)
            if (status := server.status(number)) is not None or content is None:
                return self._answer(status or 404, b"", {}, None)
            headers = {"ETag": server.etag} if server.etag else {}
            span = re.fullmatch(r"bytes=(\d+)-(\d*)", asked or "")
            if span is None or not server.ranges or (if_range is not None and if_range != server.etag):
                return self._answer(200, content, headers, server.cut(number))
            start, end = int(span[1]), int(span[2] or len(content) - 1)
            if start >= len(content):
                return self._answer(416, b"", headers | {"Content-Range": f"bytes */{len(content)}"}, None)
            headers["Content-Range"] = f"bytes {start}-{min(end, len(content) - 1)}/{len(content)}"
            return self._answer(206, content[start : end + 1], headers, server.cut(number))

        do_HEAD = do_GET

        def _answer(self, status: int, content: bytes, headers: dict[str, str], cut: int | None) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Last-Modified", "Wed, 07 Nov 2007 00:00:00 GMT")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content if cut is None else content[:cut])
            self.close_connection = cut is not None

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.daemon_threads = True
    listener.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that hang up are part of the tests
    server.url = f"http://127.0.0.1:{listener.server_address[1]}"
    threading.Thread(target=listener.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
