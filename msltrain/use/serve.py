"""The local web server behind ``msl serve``: the standard library's, one page, and this JSON interface.

===========================  =======================================================================================
``GET  /``                   the page
``GET  /api/model``          name, classes, thresholds (0 to 1), examples (names), and how to draw scores
``POST /api/photos``         body: an encoded image. Its ``id``, ``width``, ``height``, and its *answer*
``POST /api/examples/N``     the same for example number N
``GET  /api/examples/N.jpg`` that example, small
``GET  /api/photos/ID.jpg``  the photograph as the network sees it, EXIF orientation ignored, at most 1024 pixels a side
``POST /api/photos/ID/hole`` body: a black-and-white PNG, white = visible. The answer behind it, ``hidden`` (0 to 1)
===========================  =======================================================================================

An answer holds ``scores`` (0 to 1, per class) and ``places``: ``rows``, ``columns`` and ``bytes``, the base64 of a
uint8 array (class, row, column) in which 255 is score 1
(`msltrain.use.class_activation`). A failure is ``{"error": why}`` with
a 4xx status. Photographs live in memory only; of the last 32 the server knows the ``id``.
"""

from __future__ import annotations

import base64
import hashlib
import io
import ipaddress
import json
import re
import secrets
import signal
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image
from torch import Tensor

from msldata.contract.keepmask import decode_png, resize_nearest
from msldata.errors import BadInputError, UserError
from msldata.pages.html import render
from msltrain.use.overlay import RAMP, STRONGEST
from msltrain.use.predict import Answer, Predictor
from msltrain.use.read_images import Picture, read_pixels, squash

MAX_BODY = 25 * 2**20
"""Bytes of an uploaded photograph or mask."""
MAX_EXAMPLES = 12
_SHOWN_SIDE, _EXAMPLE_SIDE = 1024, 160
_NUM_PHOTOS = 32
_NONCE = "the-nonce-of-this-answer"
"""In the page as it is kept; every answer gets one of its own."""
_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


class RequestError(Exception):
    """What the client asked for cannot be done.

    Args:
        status: HTTP status, 4xx.
        reason: a sentence for a person.
    """

    def __init__(self, status: HTTPStatus, reason: str):
        super().__init__(reason)
        self.status, self.reason = status, reason


@dataclass(frozen=True, slots=True, eq=False)
class _Photo:
    width: int
    height: int
    square_1CSS: Tensor
    jpeg: bytes


class Studio:
    """A predictor, example pictures, and the photographs it was shown lately. Safe to use from several threads.

    Args:
        predictor: answers.
        examples: pictures to offer; at most ``MAX_EXAMPLES`` of them, spread evenly, are.
    """

    def __init__(self, predictor: Predictor, examples: Sequence[Picture] = ()):
        self.predictor = predictor
        step = max(1, len(examples) / MAX_EXAMPLES)
        self.examples = [examples[int(n * step)] for n in range(min(len(examples), MAX_EXAMPLES))]
        self._photos: OrderedDict[str, _Photo] = OrderedDict()
        self._lock = threading.Lock()

    def model(self) -> dict[str, Any]:
        """What the page must know of the model."""
        return {
            "name": str(self.predictor.path),
            "classes": self.predictor.classes,
            "thresholds": [round(float(threshold), 4) for threshold in self.predictor.threshold_K],
            "threshold_origin": self.predictor.threshold_origin,
            "examples": [re.split(r"[/\\#]", picture.name)[-1] for picture in self.examples],
            "hole_colour": self.predictor.hole_colour,
            "ramp": RAMP,
            "strongest": STRONGEST,
        }

    def add(self, picture: Picture) -> dict[str, Any]:
        """Take a photograph in. Raises BadInputError if it is none."""
        image_HWC = read_pixels(picture)
        shown = _jpeg(image_HWC, _SHOWN_SIDE)
        height, width = image_HWC.shape[:2]
        photo = _Photo(width, height, squash(image_HWC, self.predictor.image_size), shown)
        # What is shown and what is predicted follow from the pixels, so equal pixels may share an id.
        photo_id = hashlib.sha256(
            f"{width}×{height}".encode() + photo.square_1CSS.numpy().tobytes() + shown
        ).hexdigest()[:32]
        with self._lock:
            self._photos[photo_id] = photo
            self._photos.move_to_end(photo_id)
            while len(self._photos) > _NUM_PHOTOS:
                self._photos.popitem(last=False)
            [answer] = self.predictor.answer([photo.square_1CSS], with_places=True)
        return {"id": photo_id, "width": width, "height": height, **_as_json(answer)}

    def hide(self, photo_id: str, png: bytes) -> dict[str, Any]:
        """The answer behind a keep mask. Raises RequestError or BadInputError."""
        photo = self.photo(photo_id)
        size = self.predictor.image_size
        keep_mask_SS = resize_nearest(decode_png(png, "the mask"), size, size)
        with self._lock:
            [answer] = self.predictor.answer([photo.square_1CSS], keep_mask_SS, with_places=True)
        return {"hidden": round(1 - float(keep_mask_SS.mean()), 4), **_as_json(answer)}

    def photo(self, photo_id: str) -> _Photo:
        """A photograph shown lately. Raises RequestError if it is not known, or not any more."""
        with self._lock:
            photo = self._photos.get(photo_id)
        if photo is None:
            raise RequestError(HTTPStatus.NOT_FOUND, "this photograph is not known (any more); drop it again")
        return photo

    def example(self, number: int) -> Picture:
        """Example picture ``number``. Raises RequestError if there is none."""
        if number >= len(self.examples):
            raise RequestError(HTTPStatus.NOT_FOUND, f"there is no example {number}")
        return self.examples[number]


def _as_json(answer: Answer) -> dict[str, Any]:
    place_KHW = answer.place_score_KHW
    assert place_KHW is not None
    byte_KHW = np.rint(255 * place_KHW).astype(np.uint8)
    return {
        "scores": [round(float(score), 5) for score in answer.score_K],
        "places": {
            "rows": byte_KHW.shape[1],
            "columns": byte_KHW.shape[2],
            "bytes": base64.b64encode(byte_KHW.tobytes()).decode(),
        },
    }


def _jpeg(image_HWC: np.ndarray, side: int) -> bytes:
    image = Image.fromarray(image_HWC)
    image.thumbnail((side, side))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=90)
    return data.getvalue()


class StudioServer(ThreadingHTTPServer):
    """The server, bound but not yet answering; ``serve_forever`` is.

    Args:
        studio: what it shows.
        host: address or name to listen on.
        port: to listen on; 0: any free one.

    Raises:
        UserError: the address cannot be listened on.
    """

    daemon_threads = True

    def __init__(self, studio: Studio, host: str, port: int):
        self.studio = studio
        self.page = render("msltrain.use/serve_page.html", title="What does it see?", nonce=_NONCE)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UserError(
                f"cannot listen on {host}, port {port}: {reason}; choose another with --port or --host"
            ) from None
        self.is_local = is_loopback(host)

    @property
    def url(self) -> str:
        """Where the page is."""
        host, port = self.server_address[:2]
        return f"http://{f'[{host!s}]' if ':' in str(host) else host!s}:{port}/"

    @contextmanager
    def stopping_on_signals(self) -> Iterator[None]:
        """While the block runs, Ctrl-C and SIGTERM end ``serve_forever``, or let it not begin, at any moment."""

        stopping: list[threading.Thread] = []

        def stop(*_: object) -> None:
            stopping.append(threading.Thread(target=self.shutdown))  # it waits for the loop that runs right here
            stopping[-1].start()

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            for thread in stopping:  # one that outlives the interpreter would abort the process
                thread.join()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle of an answer is nothing to report."""
        import sys

        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Handler(BaseHTTPRequestHandler):
    server: StudioServer
    protocol_version = "HTTP/1.1"
    timeout = 30  # seconds a silent client may hold a thread
    server_version, sys_version = "msl", ""

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, make: Callable[[str], tuple[str, bytes]]) -> None:
        try:
            self._check_sender()
            kind, body = make(urlsplit(self.path).path)
            status = HTTPStatus.OK
        except RequestError as error:
            status, kind, body = error.status, *_json({"error": error.reason})
            self.close_connection = True  # what is left of its body must not be taken for the next request
        except BadInputError as error:
            status, kind, body = HTTPStatus.BAD_REQUEST, *_json({"error": f"{error.file}: {error.reason}"})
        except UserError as error:
            status, kind, body = HTTPStatus.BAD_REQUEST, *_json({"error": str(error)})
        self._send(status, kind, body)

    def _get(self, path: str) -> tuple[str, bytes]:
        studio = self.server.studio
        if path == "/":
            return "text/html; charset=utf-8", self.server.page.encode()
        if path == "/api/model":
            return _json(studio.model())
        if match := re.fullmatch(r"/api/photos/([0-9a-f]{32})\.jpg", path):
            return "image/jpeg", studio.photo(match[1]).jpeg
        if match := re.fullmatch(r"/api/examples/(\d{1,3})\.jpg", path):
            return "image/jpeg", _jpeg(read_pixels(studio.example(int(match[1]))), _EXAMPLE_SIDE)
        raise RequestError(HTTPStatus.NOT_FOUND, "there is nothing here; the page is at /")

    def _post(self, path: str) -> tuple[str, bytes]:
        studio = self.server.studio
        if path == "/api/photos":
            data = self._body()
            return _json(studio.add(Picture("the photograph", lambda: data)))
        if match := re.fullmatch(r"/api/examples/(\d{1,3})", path):
            self._body()
            return _json(studio.add(studio.example(int(match[1]))))
        if match := re.fullmatch(r"/api/photos/([0-9a-f]{32})/hole", path):
            return _json(studio.hide(match[1], self._body()))
        raise RequestError(HTTPStatus.NOT_FOUND, "there is nothing here; the page is at /")

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or "Transfer-Encoding" in self.headers:
            raise RequestError(HTTPStatus.LENGTH_REQUIRED, "say with Content-Length how much comes")
        if int(length) > MAX_BODY:
            raise RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {MAX_BODY // 2**20} MiB")
        return self.rfile.read(int(length))

    def _check_sender(self) -> None:
        """Pages of other sites must not use this server through the browser of the person who runs it."""
        host = self.headers.get("Host", "")
        if self.server.is_local and (urlsplit(f"//{host}").hostname or "") not in _LOCAL_NAMES:
            raise RequestError(HTTPStatus.MISDIRECTED_REQUEST, "this server answers to localhost only")
        origin = self.headers.get("Origin")
        if origin is not None and origin != f"http://{host}":
            raise RequestError(HTTPStatus.FORBIDDEN, "other pages may not use this server")

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        policy = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        if kind.startswith("text/html"):
            nonce = secrets.token_urlsafe(16)
            body = body.replace(_NONCE.encode(), nonce.encode())
            policy += (
                f"; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src 'self' data:; connect-src 'self'"
            )
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        }
        if self.close_connection:
            headers["Connection"] = "close"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the page itself shows what went wrong."""


def _json(content: dict[str, Any]) -> tuple[str, bytes]:
    return "application/json", json.dumps(content, ensure_ascii=False).encode()
