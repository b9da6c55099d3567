"""A prefix in an object store, or below an HTTP(S) address, through obstore."""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast
from urllib.parse import quote

from msldata.errors import StorageError
from msldata.storage.base import FileInfo, Storage
from msldata.storage.remoteerrors import PassingError, SilentError, clear_remote_errors, is_lost_upload

_log = logging.getLogger(__name__)
Result = TypeVar("Result")

_PART_BYTES = 8 << 20
"""Size of one part of a multipart upload; S3 allows 10,000 of them, so objects of up to 80 GB."""
_PARTS_IN_FLIGHT = 4
_PAUSES = (0.2, 1.0, 3.0)
"""Seconds before a request that the storage library sends only once is sent again."""
_LONG = 5.0
_COALESCE_BYTES = 64 << 10
"""Ranges of one file that are closer than this become one request. Neighbouring samples are 2-4 kB apart; others are at
least an image apart, which a larger limit would read in vain."""


class RemoteStorage(Storage):
    """A prefix of a remote store; it can be pickled, and one object may be used by many threads at once."""

    # Wrong keys and missing objects fail at once and are never retried; only refused connections, 5xx and truncated
    # bodies are. A store that has never answered is given up on within seconds: its address is probably wrong. One that
    # has answered is worth waiting for, because stores ask busy clients to slow down for tens of seconds.
    RETRY: ClassVar[dict[str, Any]] = {
        "max_retries": 6,
        "retry_timeout": timedelta(seconds=8),
        "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2},
    }
    PATIENT_RETRY: ClassVar[dict[str, Any]] = {
        "max_retries": 10,
        "retry_timeout": timedelta(seconds=60),
        "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5), "base": 3},
    }
    # A silent connection is dropped and asked again; one that brings bytes, however slowly, is never. A store that has
    # answered and then is silent for that long may be a slow one: it is asked once more with the patience that the
    # slowest needs, and from then on with that. With writers the time counts while a part goes up, too: a minute
    # is enough for most lines, and what fails by it is tried once more with the patience that the slowest needs.
    READ_CLIENT: ClassVar[dict[str, Any]] = {"connect_timeout": "4s", "read_timeout": "20s", "timeout": "86400s"}
    SLOW_READ_CLIENT: ClassVar[dict[str, Any]] = {"connect_timeout": "4s", "read_timeout": "120s", "timeout": "86400s"}
    WRITE_CLIENT: ClassVar[dict[str, Any]] = {"connect_timeout": "4s", "timeout": "60s"}
    SLOW_CLIENT: ClassVar[dict[str, Any]] = {"connect_timeout": "4s", "timeout": "300s"}

    def __init__(self, url: str, store: Any = None):
        """``store``: an obstore store to use directly, instead of one made from the URL and the environment."""
        self.url = url
        self.can_list = not url.startswith(("http://", "https://"))
        self.store: Any = store if store is not None else self._connect(self.RETRY, self.READ_CLIENT)
        self._writer = store
        self._is_given = store is not None
        self._has_answered = store is not None
        self._slow_store: Any = None
        self._changing = threading.Lock()

    def _connect(self, retry: dict[str, Any], client: dict[str, Any]) -> Any:
        from obstore.store import from_url

        # Plain http is for stores on one's own network; a cloud endpoint is https and is not affected.
        with clear_remote_errors(self.url):
            return from_url(
                self.url,
                client_options=cast(Any, client | ({"allow_http": True} if _plain_http(self.url) else {})),
                retry_config=cast(Any, retry),
            )

    def _answered(self) -> None:
        """The store has answered: from now on its failures are assumed to be temporary."""
        if not self._has_answered:
            self._has_answered = True
            self.store = self._connect(self.PATIENT_RETRY, self.READ_CLIENT)

    def _slow(self, store: Any, name: str, error: SilentError) -> Any:
        """The store to ask again after ``store`` was silent. Raises the error where that is no use: it has never
        answered, or has all patience already."""
        if self._is_given or not self._has_answered:
            raise error
        with self._changing:
            if store is self._slow_store:
                silent = self.SLOW_READ_CLIENT["read_timeout"].removesuffix("s")
                raise SilentError(
                    f"{self.where(name)}: the store has answered before, and now sent nothing for {silent} seconds; it "
                    "is overloaded, or the network is: fewer readers at once (stream.num_threads), or --cache DIR, ask "
                    "less of it"
                ) from None
            if self._slow_store is None:
                _log.warning("%s: slow: it was silent for %s", self.url, self.READ_CLIENT["read_timeout"])
                self.store = self._slow_store = self._connect(self.PATIENT_RETRY, self.SLOW_READ_CLIENT)
            return self._slow_store

    def _read(self, name: str, request: Callable[[Any], Result]) -> Result:
        """What ``request`` reads with a store, asked again where that is slow."""
        store = self.store
        while True:
            try:
                with clear_remote_errors(self.where(name)):
                    return request(store)
            except SilentError as error:
                store = self._slow(store, name, error)

    def _writing_store(self) -> Any:
        if not self.can_list:
            raise StorageError(
                f"{self.url}: a web address can only be read; write to a local path, s3://, gs:// or az://"
            )
        if self._writer is None:
            # The first write of a run meets wrong keys and addresses too, so it asks with little patience first.
            self.exists(".reachable")
            self._writer = self._connect(self.PATIENT_RETRY, self.WRITE_CLIENT)
        return self._writer

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["url"])  # type: ignore[misc]

    def child(self, name: str) -> RemoteStorage:
        return RemoteStorage(f"{self.url}/{_in_address(name)}")

    def list_files(self) -> list[FileInfo]:
        import obstore

        if not self.can_list:
            raise StorageError(
                f"{self.url}: a web address cannot be listed; give the folder of a finished dataset (the one with "
                "dataset.json), or reach the store through s3://, gs:// or az://"
            )
        with clear_remote_errors(self.url):
            found = [
                FileInfo(entry["path"], entry["size"], entry["e_tag"] or "")
                for batch in obstore.list(self.store)
                for entry in batch
            ]
        self._answered()
        return sorted(found, key=lambda info: info.name)

    def exists(self, name: str) -> bool:
        import obstore

        try:
            with clear_remote_errors(self.where(name)):
                obstore.head(self.store, name)
            found = True
        except FileNotFoundError:
            found = False
        self._answered()
        return found

    def read(self, name: str) -> bytes:
        import obstore

        def read(store: Any) -> tuple[int, bytes]:
            answer = obstore.get(store, name)
            self._answered()  # it is there, however long the rest takes
            return answer.meta["size"], answer.bytes().to_bytes()

        expected, data = self._read(name, read)
        if len(data) != expected:
            raise StorageError(f"{self.where(name)}: the object has {expected} bytes, {len(data)} were received")
        self._answered()
        return data

    def read_ranges(self, name: str, starts: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
        import obstore

        def read(store: Any) -> list[bytes]:
            ranges = {"starts": list(starts), "lengths": list(lengths)}
            return [part.to_bytes() for part in obstore.get_ranges(store, name, **ranges, coalesce=_COALESCE_BYTES)]

        parts = self._read(name, read)
        for part, start, length in zip(parts, starts, lengths, strict=True):
            if len(part) != length:
                raise StorageError(
                    f"{self.where(name)}: wanted {length} bytes at {start}, received {len(part)}; "
                    "the object is shorter than its index says"
                )
        self._answered()
        return parts

    def stream(self, name: str) -> Iterator[bytes]:
        import obstore

        def begin(store: Any) -> tuple[Any, Iterator[Any]]:
            options: Any = {"range": {"offset": num_bytes}} | ({"if_match": tag} if tag else {}) if num_bytes else {}
            answer = obstore.get(store, name, options=options)
            return answer, iter(answer.stream(min_chunk_size=_PART_BYTES))

        num_bytes, tag, store = 0, None, self.store
        answer, pieces = self._read(name, begin)
        tag = answer.meta["e_tag"]
        self._answered()  # it is there, however long the rest takes
        while True:
            try:
                with clear_remote_errors(self.where(name)):  # not around the yield: the caller's errors are not ours
                    piece = next(pieces, None)
            except SilentError as error:  # go on where it fell silent
                store = self._slow(store, name, error)
                _, pieces = self._read(name, begin)
                continue
            if piece is None:
                break
            num_bytes += len(piece)
            yield bytes(piece)
        if num_bytes != answer.meta["size"]:
            raise StorageError(
                f"{self.where(name)}: the object has {answer.meta['size']} bytes, {num_bytes} were received"
            )
        self._answered()

    def put(self, name: str, data: bytes | Path) -> None:
        import obstore

        store = self._writing_store()
        for attempt in range(2):
            try:
                # From a path, parts are read as they go up: memory stays at parts in flight, whatever the file's size.
                with clear_remote_errors(self.where(name), writing=True):
                    obstore.put(store, name, data, chunk_size=_PART_BYTES, max_concurrency=_PARTS_IN_FLIGHT)
                break
            except StorageError as error:
                # The store had put the parts together, but its answer was lost; asked again it knows no such upload.
                if attempt or not (is_lost_upload(error) or isinstance(error, PassingError)):
                    raise
                if isinstance(error, PassingError) and not self._is_given:
                    store = self._connect(self.PATIENT_RETRY, self.SLOW_CLIENT)
        if isinstance(data, Path):
            data.unlink()

    def create(self, name: str, data: bytes) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError

        store = self._writing_store()

        def create() -> bool:
            with clear_remote_errors(self.where(name), writing=True):
                try:
                    obstore.put(store, name, data, mode="create")
                except AlreadyExistsError:
                    return False
            return True

        return _patiently(create)

    def delete(self, name: str) -> None:
        import obstore

        def delete() -> None:
            with clear_remote_errors(self.where(name)):
                obstore.delete(self.store, name)

        with suppress(FileNotFoundError):
            _patiently(delete)


def _patiently(request: Callable[[], Result]) -> Result:
    """Send a request that the storage library does not retry by itself."""
    began = time.monotonic()
    for pause in _PAUSES:
        try:
            return request()
        except PassingError:
            if time.monotonic() - began > _LONG:  # it was retried, and nobody answered
                raise
            time.sleep(pause)
    return request()


def _in_address(name: str) -> str:
    """A name as a part of an address, where %41 is an A, and what follows a ? or # does not belong to the path."""
    return re.sub(r"[%?#]", lambda odd: quote(odd[0]), name)


def _plain_http(url: str) -> bool:
    if url.startswith("gs://"):
        return True  # its address is in the key file; Google's own is https
    if url.startswith("az://"):
        endpoint = os.environ.get("AZURE_STORAGE_ENDPOINT", os.environ.get("AZURE_ENDPOINT", ""))
    elif url.startswith("s3://"):
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3", os.environ.get("AWS_ENDPOINT_URL", ""))
        endpoint = endpoint or os.environ.get("AWS_ENDPOINT", "")
    else:
        endpoint = url
    return endpoint.startswith("http://")
