"""What the hub is asked: of which repository, which revision, which files; in which order a folder goes up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from msldata.storage import open_storage
from msldata.storage.hub import fetch_from_hub, publish


@pytest.mark.parametrize(
    ("place", "root"),
    [
        ("me/birds@refs/pr/1/a b", "me/birds/resolve/refs%2Fpr%2F1/a%20b"),
        ("datasets/me/birds@v2", "datasets/me/birds/resolve/v2"),
        ("spaces/me/birds/app", "spaces/me/birds/resolve/main/app"),
    ],
)
def test_where_files_of_a_place_are_read(monkeypatch, place, root):
    asked: list[str] = []
    monkeypatch.setenv("HF_ENDPOINT", "https://hub")
    monkeypatch.setattr("obstore.store.HTTPStore.from_url", lambda url, **_: asked.append(url))
    open_storage(f"hf://{place}")
    assert asked == [f"https://hub/{root}"]


def test_which_files_are_fetched(monkeypatch, tmp_path):
    """Those below the folder, of the revision; the folder itself may be a file."""
    asked: list[Any] = []

    def snapshot_download(repo: str, **options: Any) -> str:
        asked.append((repo, options))
        return str(tmp_path)

    monkeypatch.setenv("HF_ENDPOINT", "https://hub")
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    (tmp_path / "best").write_bytes(b"1")
    assert fetch_from_hub("hf://datasets/me/birds@v2/best", ["*.json", "a/*"]) == tmp_path / "best"
    assert fetch_from_hub("hf://me/birds", ["*.json"]) == tmp_path
    options = {"endpoint": "https://hub", "revision": "v2", "repo_type": "dataset"}
    assert asked[0] == ("me/birds", options | {"allow_patterns": ["best/*.json", "best/a/*", "best"]})
    assert asked[1] == ("me/birds", options | {"revision": "main", "repo_type": "model", "allow_patterns": ["*.json"]})
    with pytest.raises(FileNotFoundError, match=r"hf://me/birds/none: holds none of \*\.json"):
        fetch_from_hub("hf://me/birds/none", ["*.json"])


class Api:
    """The hub's client: what it was asked for, in order."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def create_repo(self, repo: str, **options: Any) -> str:
        self.asked.append((repo, options))
        return "page"

    def upload_folder(self, **options: Any) -> None:
        self.asked.append((options.pop("repo_id"), options))


@pytest.mark.parametrize("private", [True, False])
def test_what_makes_a_folder_complete_goes_up_last(monkeypatch, private):
    """What it replaces goes with the first commit, and so does the old one of what comes last."""
    api = Api()
    monkeypatch.setattr("msldata.storage.hub.hub_api", lambda: api)
    assert publish(Path("out"), "me/a", "dataset", private=private, last=["*.json"], replaces=["*.tar"]) == "page"
    (made, new), (_, first), (_, second) = api.asked
    assert made == "me/a" and new == {"repo_type": "dataset", "private": private or None, "space_sdk": None} | {
        "exist_ok": True
    }
    same = {"repo_type": "dataset", "folder_path": Path("out"), "commit_message": "Publish with msltrain"}
    assert first == same | {"ignore_patterns": ["*.json"], "delete_patterns": ["*.tar", "*.json"]}
    assert second == same | {"allow_patterns": ["*.json"], "delete_patterns": None}


def test_where_nothing_is_last_one_commit_holds_everything(monkeypatch):
    api = Api()
    monkeypatch.setattr("msldata.storage.hub.hub_api", lambda: api)
    publish(Path("out"), "me/a", "space", private=False, last=[], replaces=["*.jpg"])
    (_, new), (_, only) = api.asked
    assert new["space_sdk"] == "gradio" and only["repo_type"] == "space"
    assert (only["allow_patterns"], only["delete_patterns"]) == (None, ["*.jpg"])


@pytest.mark.parametrize("disabled", [True, False])
def test_bars_that_were_switched_off_stay_so(monkeypatch, disabled):
    from huggingface_hub import utils

    during: list[bool] = []

    class Looking(Api):
        def create_repo(self, repo: str, **options: Any) -> str:
            during.append(utils.are_progress_bars_disabled())
            return "page"

    monkeypatch.setattr("msldata.storage.hub.hub_api", Looking)
    (utils.disable_progress_bars if disabled else utils.enable_progress_bars)()
    try:
        publish(Path("out"), "me/a", "model", private=False, last=[], replaces=[])
        assert during == [True], "no terminal can show them"
        assert utils.are_progress_bars_disabled() == disabled
    finally:
        utils.enable_progress_bars()
