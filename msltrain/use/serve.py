"""The local web server behind ``msl serve``: the page, and the JSON interface that ``/api`` describes."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import secrets
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from types import FrameType
from typing import IO, Any
from urllib.parse import urlsplit

import h11
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from msldata.errors import BadInputError, UserError
from msldata.pages.html import render
from msltrain.use.photo_session import NotKnown, Studio
from msltrain.use.read_images import Picture
from msltrain.use.serve_api import openapi

MAX_BODY = 25 * 2**20
"""Bytes of an uploaded photograph or mask."""
BODY_SECONDS = 30.0
"""How long an upload may take; one that only drips would hold its place for ever."""
HEAD_SECONDS = 10.0
"""How long the head of a request may take, from the connection or from the first byte after an answer."""
ANSWER_SECONDS = 30.0
"""How long an answer may wait for its client to take it, once the system's own buffers are full."""
_FORM, _FORM_BYTES = "multipart/form-data", 2**16  # what a form adds around its file
_MEMORY_BYTES = 2**20  # of an upload; the rest of it waits on disk until its turn to be decoded
MAX_CONNECTIONS = 512
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


class StudioServer:
    """The server, bound but not yet answering; ``serve_forever`` is.

    Args:
        studio: what it shows.
        host: address or name to listen on.
        port: to listen on; 0: any free one.

    Raises:
        UserError: the address cannot be listened on.
    """

    def __init__(self, studio: Studio, host: str, port: int):
        self.studio = studio
        self.is_local = is_loopback(host)
        self._socket = _listen(host, port)
        self._serving: threading.Thread | None = None
        self._ended = threading.Event()
        names = (*_LOCAL_NAMES, host) if self.is_local else ()
        self._server = _Server(
            uvicorn.Config(
                make_app(studio, names),
                http=_Connection,
                ws="none",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                log_level="critical",  # the page itself shows what went wrong
                access_log=False,
                server_header=False,
                timeout_keep_alive=30,
                timeout_graceful_shutdown=3,
            )
        )

    @property
    def server_address(self) -> tuple[str, int]:
        """Address and port it listens on."""
        host, port = self._socket.getsockname()[:2]
        return host, port

    @property
    def url(self) -> str:
        """Where the page is."""
        host, port = self.server_address
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    def serve_forever(self) -> None:
        """Answer until `shutdown`."""
        self._serving = threading.current_thread()
        try:
            asyncio.run(self._server.serve(sockets=[self._socket]))
        finally:
            self._ended.set()

    def shutdown(self) -> None:
        """Let ``serve_forever`` end, or not begin; another thread than the one that serves waits until it has."""
        self._server.should_exit = True
        if self._serving not in (None, threading.current_thread()):
            self._ended.wait()

    @contextmanager
    def stopping_on_signals(self) -> Iterator[None]:
        """While the block runs, Ctrl-C and SIGTERM end ``serve_forever``, or let it not begin, at any moment."""

        def stop(number: int, frame: FrameType | None) -> None:
            self.shutdown()

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def __enter__(self) -> StudioServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self.studio.close()


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The owner decides about signals: uvicorn would raise them once more when it has ended."""
        yield


class _Connection(H11Protocol):
    """A connection that nobody can hold without asking something, and taking the answer.

    uvicorn waits for ever for the rest of a head, and for a client that takes its answer, even to close. Here the
    connection is closed after `HEAD_SECONDS` or `ANSWER_SECONDS`; and of more than `MAX_CONNECTIONS`, the one that has
    asked nothing for longest makes room.
    """

    _quiet_since = 0.0
    _closing: asyncio.TimerHandle | None = None
    _giving_up: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # so that `pause_writing` hears of whatever is not taken
        self._quiet_since = self.loop.time()
        self._watch_head()
        others = [one for one in self.connections if isinstance(one, _Connection) and not one.transport.is_closing()]
        if len(others) > MAX_CONNECTIONS:
            quiet = [one for one in others if one.cycle is None or one.cycle.response_complete]
            min(quiet, key=lambda one: one._quiet_since).transport.close()  # at least this one is

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def on_response_complete(self) -> None:
        self._quiet_since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._giving_up = self.loop.call_later(ANSWER_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._forget_answer()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget_head()
        self._forget_answer()

    def _watch_head(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._forget_head()
        elif self._closing is None:
            self._closing = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _forget_head(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None

    def _forget_answer(self) -> None:
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None


def _listen(host: str, port: int) -> socket.socket:
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
        found.listen(1024)
    except OSError as error:
        found.close()
        reason = (error.strerror or str(error)).lower()
        raise UserError(
            f"cannot listen on {host}, port {port}: {reason}; choose another with --port or --host"
        ) from None
    return found


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def make_app(studio: Studio, names: tuple[str, ...] = ()) -> Starlette:
    """The web application.

    Args:
        studio: what it shows.
        names: what the server may be called; a page of another site could otherwise reach it under a name of its own,
            through the browser of the person who runs it. None: anything.
    """

    def show_page(request: Request) -> Response:
        title = "What does it see?" if len(studio.predictors) == 1 else "What do they see?"
        return HTMLResponse(render("msltrain.use/serve_page.html", title=title, nonce=request.state.nonce))

    def show_api(request: Request) -> Response:
        described = {"paths": openapi()["paths"], "title": "The interface of msl serve", "nonce": request.state.nonce}
        return HTMLResponse(render("msltrain.use/serve_api.html", **described))

    def show_openapi(request: Request) -> Response:
        return JSONResponse(openapi())

    def show_models(request: Request) -> Response:
        return JSONResponse(studio.about())

    def show_photo(request: Request) -> Response:
        return Response(studio.photo(request.path_params["photo"]).jpeg, media_type="image/jpeg")

    def show_example(request: Request) -> Response:
        return Response(studio.example_jpeg(request.path_params["number"]), media_type="image/jpeg")

    def add_example(request: Request) -> Response:
        return JSONResponse(studio.add(studio.example(request.path_params["number"])))

    async def add_photo(request: Request) -> Response:
        async with _upload(request) as file:
            photo = Picture("the photograph", lambda: _all_of(file))
            return JSONResponse(await run_in_threadpool(studio.add, photo))

    async def hide(request: Request) -> Response:
        async with _upload(request) as file:
            return JSONResponse(await run_in_threadpool(studio.hide, request.path_params["photo"], _all_of(file)))

    return Starlette(
        routes=[
            Route("/", show_page),
            Route("/api", show_api),
            Route("/api/openapi.json", show_openapi),
            Route("/api/models", show_models),
            Route("/api/photos", add_photo, methods=["POST"]),
            Route("/api/photos/{photo}.jpg", show_photo),
            Route("/api/photos/{photo}/hole", hide, methods=["POST"]),
            Route("/api/examples/{number:int}.jpg", show_example),
            Route("/api/examples/{number:int}", add_example, methods=["POST"]),
        ],
        middleware=[Middleware(_Guard, names=names)],
        exception_handlers={
            RequestError: _refuse,
            NotKnown: _refuse,
            UserError: _refuse,
            HTTPException: _refuse,
            MultiPartException: _refuse,
        },
    )


def _refuse(request: Request, error: Exception) -> Response:
    match error:
        case RequestError():
            status, reason = error.status, error.reason
        case NotKnown():
            status, reason = HTTPStatus.NOT_FOUND, str(error)
        case HTTPException(status_code=HTTPStatus.NOT_FOUND):
            status, reason = (
                HTTPStatus.NOT_FOUND,
                "there is nothing here; the page is at /, and /api describes the rest",
            )
        case HTTPException():
            status, reason = HTTPStatus(error.status_code), error.detail
        case BadInputError():
            status, reason = HTTPStatus.BAD_REQUEST, f"{error.file}: {error.reason}"
        case _:
            status, reason = HTTPStatus.BAD_REQUEST, str(error)
    headers = {"Connection": "close"} if status == HTTPStatus.REQUEST_TIMEOUT else None
    return JSONResponse({"error": reason}, status, headers)


@contextlib.asynccontextmanager
async def _upload(request: Request) -> Any:
    """The uploaded file: the body itself, or the first file of a form."""
    if request.headers.get("content-type", "").startswith(_FORM):
        async with request.form(max_files=1, max_fields=8) as form:
            files = [value.file for value in form.values() if isinstance(value, UploadFile)]
            if not files:
                raise RequestError(HTTPStatus.BAD_REQUEST, "the form holds no file")
            yield files[0]
        return
    with tempfile.SpooledTemporaryFile(max_size=_MEMORY_BYTES) as file:
        async for part in request.stream():
            file.write(part)
        yield file


def _all_of(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


class _Guard:
    """Lets no foreign page in, no upload be endless, and no answer go out without its headers."""

    def __init__(self, app: ASGIApp, names: tuple[str, ...]):
        self._app, self._names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        nonce = secrets.token_urlsafe(16)
        scope.setdefault("state", {})["nonce"] = nonce

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = _policy(headers.get("content-type", ""), nonce)
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
                headers["Cache-Control"] = "no-store"
            await send(message)

        try:
            self._check(Headers(scope=scope))
        except RequestError as error:
            await _refuse(Request(scope), error)(scope, receive, send_guarded)
            return
        await self._app(scope, _bounded(receive, _limit(Headers(scope=scope))), send_guarded)

    def _check(self, headers: Headers) -> None:
        host = headers.get("host", "")
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            raise RequestError(HTTPStatus.BAD_REQUEST, "the Host header is not an address") from None
        if self._names and name not in self._names:
            raise RequestError(HTTPStatus.MISDIRECTED_REQUEST, "this server answers to localhost only")
        origin = headers.get("origin")
        if origin is not None and origin != f"http://{host}":
            raise RequestError(HTTPStatus.FORBIDDEN, "other pages may not use this server")
        length = headers.get("content-length")
        if length is not None and "transfer-encoding" in headers:
            raise RequestError(HTTPStatus.BAD_REQUEST, "say in one way how much comes, not in two")
        if length is not None and int(length) > _limit(headers):
            raise _too_much()


def _limit(headers: Headers) -> int:
    """Bytes of the largest body that is taken."""
    return MAX_BODY + _FORM_BYTES * headers.get("content-type", "").startswith(_FORM)


def _bounded(receive: Receive, limit: int) -> Receive:
    """Takes a body of at most ``limit`` bytes within ``BODY_SECONDS``."""
    num_bytes, is_whole = 0, False
    until: float | None = None

    async def receive_bounded() -> Message:
        nonlocal num_bytes, is_whole, until
        until = until or asyncio.get_running_loop().time() + BODY_SECONDS
        try:
            async with asyncio.timeout_at(
                None if is_whole else until
            ):  # a whole one only waits for its client to leave
                message = await receive()
        except TimeoutError:
            raise RequestError(HTTPStatus.REQUEST_TIMEOUT, f"nothing whole came in {BODY_SECONDS:.0f} s") from None
        num_bytes += len(message.get("body", b""))
        if num_bytes > limit:
            raise _too_much()
        is_whole = message["type"] == "http.request" and not message.get("more_body")
        return message

    return receive_bounded


def _too_much() -> RequestError:
    return RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {MAX_BODY // 2**20} MiB")


def _policy(kind: str, nonce: str) -> str:
    policy = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    if not kind.startswith("text/html"):
        return policy
    own = f"script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src 'self' data:; connect-src 'self'"
    return f"{policy}; {own}"
