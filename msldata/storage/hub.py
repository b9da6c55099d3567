"""The Hugging Face hub: ``hf://`` places to read, and folders to publish there.

A place is ``hf://OWNER/NAME`` (a model), ``hf://datasets/OWNER/NAME`` or ``hf://spaces/OWNER/NAME``, with ``@REVISION``
behind the name and a folder behind that where wanted: ``hf://datasets/me/birds@v2/test``. `huggingface_hub` asks and
publishes; files are read like those of any web server, a range at a time, without a copy on this machine.

Credentials are the hub's own: ``hf auth login``, or ``HF_TOKEN``. ``HF_ENDPOINT`` names another hub.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import quote

from msldata.errors import StorageError
from msldata.storage.base import FileInfo
from msldata.storage.remote import RemoteStorage
from msldata.storage.remoteerrors import clear_remote_errors

if TYPE_CHECKING:
    from huggingface_hub import HfApi

HUB_SCHEME = "hf"
HubKind = Literal["model", "dataset", "space"]
_PLACE = re.compile(
    r"hf://(?:(?P<kind>models|datasets|spaces)/)?(?P<repo>[\w.-]+/[\w.-]+)"
    r"(?:@(?P<revision>refs/[\w-]+/[\w-]+|[^/]+))?(?:/(?P<folder>.*))?"
)
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


@dataclass(frozen=True, slots=True)
class HubPlace:
    """A folder or file in a repository of the hub."""

    kind: HubKind
    repo: str
    """``OWNER/NAME``"""
    revision: str
    """Branch, tag or commit."""
    folder: str
    """Inside the repository; empty for all of it."""

    def inside(self, name: str) -> str:
        """The path in the repository of ``name``, which is relative to this place."""
        return f"{self.folder}/{name}" if self.folder else name


def is_hub_place(place: object) -> bool:
    """Whether a place is one on the hub."""
    return isinstance(place, str) and place.startswith(f"{HUB_SCHEME}://")


def hub_place(address: str) -> HubPlace:
    """What an ``hf://`` address names. Raises StorageError if it is malformed."""
    match = _PLACE.fullmatch(address.rstrip("/"))
    if match is None:
        raise StorageError(
            f"{address}: not an address on the hub; write hf://OWNER/NAME for a model, hf://datasets/OWNER/NAME for "
            "data, with @REVISION behind the name if it matters"
        )
    kind = cast(HubKind, (match["kind"] or "models").removesuffix("s"))
    return HubPlace(kind, match["repo"], match["revision"] or "main", (match["folder"] or "").strip("/"))


def is_repository_name(name: str) -> bool:
    """Whether it looks like ``OWNER/NAME``."""
    return _REPOSITORY.fullmatch(name) is not None


class HubStorage(RemoteStorage):
    """A folder of a repository; it is read only, see `publish`."""

    def __init__(self, url: str):
        self.place = hub_place(url)
        super().__init__(url)

    def _connect(self, retry: dict[str, Any], client: dict[str, Any]) -> Any:
        from huggingface_hub import get_token
        from obstore.store import HTTPStore

        place, address = self.place, endpoint()
        front = "" if place.kind == "model" else f"{place.kind}s/"
        root = f"{address}/{front}{place.repo}/resolve/{quote(place.revision, safe='')}/{quote(place.folder)}".rstrip(
            "/"
        )
        # The hub answers with the address of another host, which is not shown the token.
        headers = {"authorization": f"Bearer {token}"} if (token := get_token()) else {}
        options = client | {"default_headers": headers, "allow_http": address.startswith("http://")}
        with clear_remote_errors(self.url):
            return HTTPStore.from_url(root, client_options=cast(Any, options), retry_config=cast(Any, retry))

    def child(self, name: str) -> HubStorage:
        return HubStorage(f"{self.url}/{name}")

    def list_files(self) -> list[FileInfo]:
        from huggingface_hub.errors import EntryNotFoundError
        from huggingface_hub.hf_api import RepoFile

        place = self.place
        front = f"{place.folder}/" if place.folder else ""
        with _clear_hub_errors(self.url):
            try:
                entries = list(
                    hub_api().list_repo_tree(
                        place.repo, place.folder or None, recursive=True, revision=place.revision, repo_type=place.kind
                    )
                )
            except EntryNotFoundError:
                return []
        found = [FileInfo(one.path.removeprefix(front), one.size) for one in entries if isinstance(one, RepoFile)]
        return sorted(found, key=lambda info: info.name)

    def exists(self, name: str) -> bool:
        from huggingface_hub.hf_api import RepoFile

        place = self.place
        with _clear_hub_errors(self.where(name)):
            found = hub_api().get_paths_info(
                place.repo, [place.inside(name)], revision=place.revision, repo_type=place.kind
            )
        return any(isinstance(one, RepoFile) for one in found)

    def delete(self, name: str) -> None:
        self._writing_store()

    def _writing_store(self) -> Any:
        raise StorageError(
            f"{self.url}: a repository of the hub is not written file by file; write to a disk or a bucket, then "
            "`msl push FOLDER OWNER/NAME`"
        )


def endpoint() -> str:
    """Address of the hub."""
    from huggingface_hub import constants

    return os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/")


def hub_api() -> HfApi:
    """The hub's client, with the token of this machine if there is one."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint())


def fetch_from_hub(address: str, names: Sequence[str]) -> Path:
    """The local copy of a place on the hub, downloaded into the hub's own cache unless it is there already.

    Args:
        address: a folder, or a file.
        names: patterns of the files that are needed; all below the folder.

    Returns:
        The folder, or the file.

    Raises:
        FileNotFoundError: there is no such repository, revision or file. StorageError: it cannot be fetched.
    """
    from huggingface_hub import snapshot_download

    place = hub_place(address)
    patterns = [place.inside(name) for name in names] + ([place.folder] if place.folder else [])
    with _clear_hub_errors(address):
        root = snapshot_download(
            place.repo,
            repo_type=place.kind,
            revision=place.revision,
            allow_patterns=patterns,
            endpoint=endpoint(),
        )
    found = Path(root, place.folder)
    if not found.is_file() and not (found.is_dir() and any(found.rglob("*"))):
        raise FileNotFoundError(f"{address}: holds none of {', '.join(names)}")
    return found


def require_hub_token(what: str) -> None:
    """Ask the hub whose token this machine has, before any work is done.

    Raises:
        StorageError: there is none, or the hub does not take it.
    """
    from huggingface_hub import get_token

    if not get_token():
        raise StorageError(f"{what} needs a token of the hub that may write: {_LOG_IN}")
    with _clear_hub_errors(endpoint()):
        hub_api().whoami()


def publish(
    folder: Path, repo: str, kind: HubKind, *, private: bool, last: Sequence[str], replaces: Sequence[str]
) -> str:
    """Upload a folder to a repository, which is made if there is none.

    Args:
        folder: all of it becomes the repository's content, beside what others put there.
        repo: ``OWNER/NAME``.
        kind: of repository.
        private: make a new repository private; one that is there stays as it is.
        last: patterns of files that come in a commit after the others, since they make the rest complete; where
            there are none, one commit holds everything.
        replaces: patterns of files in the repository that go unless the folder has them.

    Returns:
        The address of its page.

    Raises:
        StorageError: it cannot be written. An upload that was cut off goes on when it is asked for again.
    """
    api = hub_api()
    with _clear_hub_errors(f"{endpoint()}/{repo}"):
        sdk = "gradio" if kind == "space" else None
        page = api.create_repo(repo, repo_type=kind, private=private or None, space_sdk=sdk, exist_ok=True)
        message = "Publish with msltrain"
        if last:
            api.upload_folder(
                repo_id=repo,
                repo_type=kind,
                folder_path=folder,
                ignore_patterns=list(last),
                delete_patterns=[*replaces, *last],
                commit_message=message,
            )
        api.upload_folder(
            repo_id=repo,
            repo_type=kind,
            folder_path=folder,
            allow_patterns=list(last) or None,
            delete_patterns=None if last else list(replaces),
            commit_message=message,
        )
    return str(page)


@contextmanager
def _clear_hub_errors(where: str) -> Iterator[None]:
    """Turn the client's errors into one sentence.

    Raises:
        FileNotFoundError: no such repository, revision or file. StorageError: anything else.
    """
    from huggingface_hub import errors

    try:
        with _no_bars_in_logs():
            yield
    except errors.GatedRepoError:
        raise StorageError(
            f"{where}: its owner asks for consent; accept the terms on its page, then {_LOG_IN}"
        ) from None
    except errors.RepositoryNotFoundError:
        raise FileNotFoundError(
            f"{where}: no such repository on the hub, or a private one; check the name, or {_LOG_IN}"
        ) from None
    except errors.RevisionNotFoundError:
        raise FileNotFoundError(f"{where}: the repository has no such revision") from None
    except (errors.EntryNotFoundError, errors.IncompleteSnapshotError):
        raise FileNotFoundError(f"{where}: no such file on the hub, nor in its cache here") from None
    except errors.OfflineModeIsEnabled:
        raise StorageError(f"{where}: not in the cache, and HF_HUB_OFFLINE is set") from None
    except errors.HFValidationError as error:
        raise StorageError(f"{where}: {_first_line(error)}") from None
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", 0)
        if status in (401, 403):
            raise StorageError(
                f"{where}: the hub refuses ({status}); {_LOG_IN} of an account that may do this"
            ) from None
        raise StorageError(f"{where}: the hub answers {status or _first_line(error)}; try again later") from None
    except Exception as error:  # the client's transport has types of its own, which differ between its versions
        raise StorageError(
            f"{where}: the hub at {endpoint()} cannot be reached or used ({_first_line(error)}); check HF_ENDPOINT "
            f"(now {os.environ.get('HF_ENDPOINT') or 'not set'}) and the network"
        ) from error


@contextmanager
def _no_bars_in_logs() -> Iterator[None]:
    """The client draws bars wherever it is; only a terminal can show them."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if sys.stderr.isatty() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
