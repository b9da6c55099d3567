"""One clear sentence for every way in which a remote store can fail."""

from __future__ import annotations

import atexit
import os
import re
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from msldata.errors import StorageError
from msldata.storage.base import NoRangesError

# Some requests (a listing, for one) fail with a class that says nothing; then only the server's own words do.
_DENIED = re.compile(
    r"AccessDenied|SignatureDoesNotMatch|InvalidAccessKeyId|AuthenticationFailed|AuthorizationFailure|"
    r"\b40[13] (Unauthorized|Forbidden)|InvalidToken|169\.254\.169\.254|metadata\.google\.internal|computeMetadata"
)
_EXPIRED = re.compile(r"ExpiredToken|TokenRefreshRequired|RequestExpired|token (has|is) expired")
_NO_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|The specified bucket does not exist|Bucket not found")
_MISSING = re.compile(r"NoSuchKey|BlobNotFound|\b404 Not Found")
_REGION = re.compile(
    r"PermanentRedirect|AuthorizationHeaderMalformed|IllegalLocationConstraint|bare redirect|"
    r"\b301 Moved|\b307 Temporary"
)
_SILENT = "no answer came in time"
_UNREACHABLE = (
    ("dns error", "its host name is not known"),
    ("ConnectionRefused", "the connection was refused"),
    ("NetworkUnreachable", "the network cannot be reached"),
    ("HostUnreachable", "the host cannot be reached"),
    ("invalid peer certificate", "its TLS certificate is not trusted"),
    ("ConnectionReset", "the connection was dropped again and again"),
    ("IncompleteMessage", "the connection was dropped again and again"),
    ("kind: Interrupted", "the answer was cut off again and again"),
    ("kind: Timeout", _SILENT),
    ("TimedOut", _SILENT),
    ("kind: Connect", "no connection could be made"),
)
_STATUS = re.compile(r"\b([45]\d\d [A-Z][A-Za-z]+(?: [A-Z][A-Za-z]+)*)")
_LOST_UPLOAD = "the store no longer knows the upload"
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN",
    "hf": "HF_TOKEN, unless `hf auth login` was run",
}
_ADDRESS = {
    "s3": "AWS_ENDPOINT_URL",
    "gs": "GOOGLE_SERVICE_ACCOUNT",
    "az": "AZURE_STORAGE_ENDPOINT",
    "hf": "HF_ENDPOINT",
}


class PassingError(StorageError):
    """A store that could not be reached, or failed internally: a retry may succeed."""


class SilentError(PassingError):
    """A store from which nothing came for as long as a connection may be silent: dead, or slow."""


@contextmanager
def clear_remote_errors(where: str, *, writing: bool = False) -> Iterator[None]:
    """Turn obstore's errors into one sentence.

    Raises:
        FileNotFoundError: a read names an object or bucket that does not exist. StorageError: anything else, and a
            write to a bucket that does not exist.
    """
    import obstore.exceptions as failures

    with under_way():
        try:
            yield
        except (failures.BaseError, OSError) as error:
            raise _translated(where, error, writing) from None


class _Calls:
    """Work that is under way in libraries which must not meet the interpreter's end, in any thread."""

    def __init__(self) -> None:
        self._number = 0
        self._changed = threading.Condition()
        self._closed = False

    @contextmanager
    def one(self) -> Iterator[None]:
        with self._changed:
            if self._closed:
                raise StorageError("the program is ending; nothing is read or written any more")
            self._number += 1
        try:
            yield
        finally:
            with self._changed:
                self._number -= 1
                self._changed.notify_all()

    def end(self, seconds: float) -> bool:
        with self._changed:
            self._closed = True
            return self._changed.wait_for(lambda: not self._number, seconds)


_calls = _Calls()


def under_way() -> AbstractContextManager[None]:
    """A block that the program's end waits for: calls into obstore, and what a thread of ours does beside (pyarrow)."""
    return _calls.one()


def end_calls(seconds: float = 5.0) -> bool:
    """Let no further block of `under_way` begin, and wait for those that have; whether all are over."""
    return _calls.end(seconds)


# A thread that comes back from such a library while the interpreter ends would abort the process. One that is silent
# for seconds waits for a stalled server, which must not hold up Ctrl-C until its last timeout.
atexit.register(end_calls)


def _translated(where: str, error: Exception, writing: bool) -> Exception:
    import obstore.exceptions as failures

    scheme = where.partition(":")[0]
    text = str(error)
    if "NoSuchUpload" in text:
        return StorageError(f"{where}: {_LOST_UPLOAD}; run the same command again")
    denied = PermissionError | failures.PermissionDeniedError | failures.UnauthenticatedError
    missing = isinstance(error, FileNotFoundError | failures.NotFoundError) or _MISSING.search(text)
    if _NO_BUCKET.search(text) or (missing and writing):
        bucket = "no such container" if scheme == "az" else "no such bucket"
        if writing and scheme in _CREDENTIALS:
            return StorageError(f"{where}: {bucket}; create it, or check the name")
        return FileNotFoundError(f"{where}: {bucket if scheme in _CREDENTIALS else 'no such address'}")
    if _REGION.search(text):
        return StorageError(
            f"{where}: the bucket is in another region or behind another address; check AWS_REGION (now "
            f"{os.environ.get('AWS_REGION') or os.environ.get('AWS_DEFAULT_REGION') or 'not set'})"
        )
    if missing:
        return FileNotFoundError(f"{where}: no such object")
    mute = scheme == "s3" and re.search(r"\b400 Bad Request\b", text) and "<Code>" not in text  # the answer to a HEAD
    if scheme in _CREDENTIALS and (mute or _EXPIRED.search(text)):
        found = "400 Bad Request, as when the credentials have expired" if mute else "the credentials have expired"
        token = ", AWS_SESSION_TOKEN" if scheme == "s3" else ""
        return StorageError(f"{where}: {found}; renew them in the environment ({_CREDENTIALS[scheme]}{token})")
    if isinstance(error, denied) or _DENIED.search(text):
        if scheme not in _CREDENTIALS:
            return StorageError(f"{where}: access denied by the web server")
        return StorageError(
            f"{where}: access denied; check the credentials in the environment ({_CREDENTIALS[scheme]})"
        )
    if "Account must be specified" in text:
        return StorageError(f"{where}: no storage account is named; set AZURE_STORAGE_ACCOUNT_NAME")
    if "Range request not supported" in text:
        return NoRangesError(
            f"{where}: this web server only sends whole files; give --cache DIR, which downloads each shard once"
        )
    if isinstance(error, failures.NotSupportedError) or re.search(r"\b(405|501) ", text):
        return StorageError(f"{where}: this kind of location cannot do that; a web address can only be read")
    for sign, reason in _UNREACHABLE:
        if sign in text:
            kind = SilentError if reason == _SILENT else PassingError
            return kind(f"{where}: the store cannot be reached: {reason}{_address(scheme)}")
    if status := _STATUS.search(text):
        passing = PassingError if status[1][0] == "5" else StorageError
        return passing(f"{where}: the store keeps answering {status[1]}; try again later")
    return StorageError(f"{where}: {_first_sentence(text)}")


def is_lost_upload(error: StorageError) -> bool:
    """Whether a multipart upload ended because the store no longer knew it."""
    return _LOST_UPLOAD in str(error)


def _address(scheme: str) -> str:
    """What to check when there is no answer."""
    if scheme not in _ADDRESS:
        return "; check the address"
    name = _ADDRESS[scheme]
    return f"; check {name} (now {os.environ.get(name) or 'not set'}) and the network"


def _first_sentence(text: str) -> str:
    """The readable head of an obstore message, which otherwise carries a debug dump of its cause."""
    return re.split(r"\n|: <\?xml|Debug source:", text.strip(), maxsplit=1)[0].strip()[:300]
