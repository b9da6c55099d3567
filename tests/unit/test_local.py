"""A folder on a disk: what is put there, whoever else does so meanwhile, and what is found in it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from msldata.errors import StorageError
from msldata.storage import LocalStorage, open_storage


def test_a_write_that_was_interrupted_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        LocalStorage(tmp_path).put("a", b"1")
    assert not os.listdir(tmp_path)


def test_two_processes_may_write_one_file_at_once(tmp_path, monkeypatch):
    """Both succeed, and the file is the one or the other, whole."""
    fsync, ours = os.fsync, os.getpid()

    def other_one_writes(descriptor: int) -> None:
        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(os, "getpid", lambda: ours + 1)
        LocalStorage(tmp_path).put("a", b"theirs")
        monkeypatch.setattr(os, "getpid", lambda: ours)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", other_one_writes)
    LocalStorage(tmp_path).put("a", b"ours")
    assert (tmp_path / "a").read_bytes() == b"ours" and os.listdir(tmp_path) == ["a"]


def test_a_file_from_another_disk_is_moved_there(tmp_path, monkeypatch):
    def on_one_disk(call: Any) -> Any:
        def move(source: Any, target: Any) -> None:
            if Path(source).parent != Path(target).parent:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            call(source, target)

        return move

    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "staged").write_bytes(b"1")
    for name in ("replace", "rename"):
        monkeypatch.setattr(os, name, on_one_disk(getattr(os, name)))
    LocalStorage(tmp_path / "out").put("a", tmp_path / "other" / "staged")
    assert (tmp_path / "out" / "a").read_bytes() == b"1" and os.listdir(tmp_path / "out") == ["a"]
    assert not os.listdir(tmp_path / "other")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_and_a_used_up_quota_are_said(tmp_path, monkeypatch, number):
    def full(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="a: the disk is full"):
        LocalStorage(tmp_path).put("a", b"1")


def test_links_in_a_folder_of_somebody_else(tmp_path):
    """What a link to a folder leads to is found, and a link to nowhere is missed by name; one that leads up is not
    followed, by whatever path the folder is called."""
    for folder in ("real/below", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "elsewhere" / "a.jpg").write_bytes(b"abc")
    links = {"real/linked": "elsewhere", "real/below/up": "real", "real/gone.jpg": "nowhere", "other": "real"}
    for link, target in links.items():
        (tmp_path / link).symlink_to(tmp_path / target)
    for name in ("real", "other"):
        found = LocalStorage(tmp_path / name).list_sources()
        assert [(info.name, info.size) for info in found] == [("gone.jpg", 0), ("linked/a.jpg", 3)]


def test_a_folder_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_storage("~/data").path("a") == tmp_path / "data" / "a"
