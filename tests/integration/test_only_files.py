"""Pipes, sockets and devices where files are named: refused at once, and named."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from msldata.errors import BadInputError, StorageError, UserError
from msldata.sources.unpack import unpack
from msldata.storage import read_local, regular
from msltrain.__main__ import app
from msltrain.use.predict import read_keep_mask
from msltrain.use.read_images import find_images, read_photo
from tests.smallshards import photo


@pytest.fixture
def at_once():
    """What waits for a writer that never comes fails, instead of waiting for ever."""

    def waited(*_):
        raise AssertionError("it waits for a pipe")

    before = signal.signal(signal.SIGALRM, waited)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def odd_file(kind: str, path: Path) -> Path:
    """A pipe, a socket, or a link to a device."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(path))
    else:
        path.symlink_to("/dev/zero")
    return path


def say(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "400"})
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit), result.output + repr(result.exception)
    return " ".join(result.output.split())


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_only_files_are_read(at_once, tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's name may be 100 letters long
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(photo(0))
    odd = odd_file(kind, Path("photos/b.jpg"))
    with pytest.raises(StorageError, match="a pipe, a socket or a device, not a file"):
        read_local(odd)
    with pytest.raises(OSError, match="not a file"), open(odd, "rb", opener=regular):
        pass
    (tmp_path / "list.txt").write_text(f"{photos / 'a.jpg'}\n{photos / 'b.jpg'}\n")
    (tmp_path / "labels.csv").write_text("image,labels\nphotos/a.jpg,cat\nphotos/b.jpg,dog\n")
    pictures = find_images([tmp_path / "list.txt"])
    with pytest.raises(BadInputError, match=r"b\.jpg: .*not a file"):
        read_photo(pictures[1])
    assert [picture.name for picture in find_images([photos])] == [str(photos / "a.jpg")]
    with pytest.raises(UserError, match=r"b\.jpg: a pipe, a socket or a device, not a file"):
        find_images([photos / "b.jpg"])
    said = say("build-shards", "--dataset", "table", "--source", "labels.csv", "--name", "x", "--out", "out")
    assert "photos/b.jpg" in said and "not a file" in said
    for name in ("b.csv", "b.parquet", "b.jsonl"):
        odd_file(kind, Path(name))
        said = say("build-shards", "--dataset", "table", "--source", name, "--name", "x", "--out", "out")
        assert name in said
    for name in ("masks.tar", "masks.txt"):
        odd_file(kind, Path(name))
        assert f"{name}: a pipe" in say("build-masks", "--source", name, "--polarity", "hole-white", "--out", "m")
    with pytest.raises(BadInputError, match="not a file"):
        unpack(Path("masks.tar"), tmp_path / "unpacked", lambda done, total: None)
    assert "no such mask file" in say_of(lambda: read_keep_mask(odd, "hole-white", 8))


def say_of(action) -> str:
    with pytest.raises((UserError, FileNotFoundError)) as refused:
        action()
    return str(refused.value)
