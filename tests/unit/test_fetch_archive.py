"""An archive that is fetched: what a mirror is asked, what is gone on with, and what is kept of another version."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import urllib.error
import zipfile
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from msldata.errors import StorageError, UserError
from msldata.sources import download as module
from msldata.sources.download import Archive, download, fetch
from msldata.sources.unpack import unpack

DATA = bytes(range(200)) * 5
HERE, THERE = "https://here/a.tar", "https://there/a.tar"
ARCHIVE = Archive("a.tar", hashlib.md5(DATA).hexdigest(), ("https://here", "https://there"))


class Answer(io.BytesIO):
    """What ``urlopen`` gives; the connection breaks at the end of what it holds."""

    def __init__(self, status: int, body: bytes, headers: dict[str, str]):
        super().__init__(body)
        self.status, self.headers = status, headers


class Web:
    """Mirrors: by address the file, its ETag or date, and how many bytes an answer brings before the line breaks."""

    def __init__(self) -> None:
        self.files: dict[str, tuple[bytes, dict[str, str]]] = {}
        self.breaks: list[int] = []
        self.asked: list[tuple[str, str | None, str | None]] = []

    def open(self, request: Any, timeout: float) -> Answer:
        wanted, validator = request.get_header("Range"), request.get_header("If-range")
        self.asked.append((request.full_url, wanted, validator))
        if request.full_url not in self.files:
            raise self.error(request.full_url, 404)
        data, about = self.files[request.full_url]
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted else 0
        if validator is not None and validator not in about.values():
            start, wanted = 0, None
        if wanted and start >= len(data):
            raise self.error(request.full_url, 416, f"bytes */{len(data)}")
        span = f"bytes {start}-{len(data) - 1}/{len(data)}"
        about = about | ({"Content-Range": span} if wanted else {"Content-Length": str(len(data))})
        sent = self.breaks.pop(0) if self.breaks else len(data)
        return Answer(206 if wanted else 200, data[start : start + sent], about)

    @staticmethod
    def error(url: str, code: int, span: str = "") -> urllib.error.HTTPError:
        headers = Message()
        headers["Content-Range"] = span
        return urllib.error.HTTPError(url, code, "no", headers, io.BytesIO())


@pytest.fixture
def web(monkeypatch) -> Web:
    found = Web()
    found.files = {HERE: (DATA, {"ETag": '"1"'}), THERE: (DATA, {"Last-Modified": "today"})}
    monkeypatch.setattr("urllib.request.urlopen", found.open)
    monkeypatch.setattr(module, "_PAUSE_SECONDS", 0)
    return found


def fetched(folder: Path, **options: Any) -> list[int]:
    """How far the download was each time that it said so."""
    steps: list[int] = []
    path = fetch(
        ARCHIVE, folder, progress=lambda what, done, _: steps.append(done) if what == "a.tar" else None, **options
    )
    assert path.read_bytes() == DATA
    return steps


def test_a_download_goes_on_where_it_broke_and_with_the_same_file(web, tmp_path, monkeypatch):
    web.breaks = [300, 200]
    pauses: list[float] = []
    monkeypatch.setattr(module, "_PAUSE_SECONDS", 1.5)
    monkeypatch.setattr("time.sleep", pauses.append)
    assert fetched(tmp_path) == [300, 500, 1000] and pauses == [1.5, 1.5]
    assert web.asked == [(HERE, None, None), (HERE, "bytes=300-", '"1"'), (HERE, "bytes=500-", '"1"')]
    assert os.listdir(tmp_path) == ["a.tar"], "neither a part nor what was noted of it is left"
    assert fetched(tmp_path) == [] and len(web.asked) == 3


def test_a_file_that_was_replaced_meanwhile_comes_whole(web, tmp_path):
    web.files[HERE] = (b"old" * 400, {"ETag": '"0"'})
    web.breaks = [300, 0, 0, 0]
    web.files.pop(THERE)
    with pytest.raises(UserError, match="300 bytes are kept"):
        fetched(tmp_path)
    web.files[HERE], web.asked[:] = (DATA, {"ETag": '"1"'}), []
    assert fetched(tmp_path) == [1000] and web.asked == [(HERE, "bytes=300-", '"0"')]


@pytest.mark.parametrize(
    ("about", "noted"),
    [
        ({"ETag": '"1"', "Last-Modified": "today"}, '"1"'),
        ({"ETag": 'W/"1"', "Last-Modified": "today"}, "today"),  # a weak one vouches for no bytes
        ({}, None),
    ],
)
def test_what_vouches_for_a_version(web, tmp_path, about, noted):
    """Noted anew with every answer, and asked of the mirror that said it alone."""
    (tmp_path / ".a.tar.part.origin").write_text(json.dumps({HERE: '"of another day"'}))
    web.files[HERE], web.breaks = (DATA, about), [300, 0, 0, 0]
    assert fetched(tmp_path) == [300, 1000]
    assert [entry[2] for entry in web.asked] == [None, noted, noted, noted, None]
    assert web.asked[-1] == (THERE, "bytes=300-", None)


def test_a_part_of_another_file_is_fetched_anew_from_the_same_mirror(web, tmp_path):
    """Whoever began it; if that is wrong too, the mirror has another file, and the next one is asked."""
    (tmp_path / "a.tar.part").write_bytes(b"x" * 300)
    (tmp_path / ".a.tar.part.origin").write_text(json.dumps({HERE: '"1"'}))
    assert fetched(tmp_path)[-1] == 1000
    assert web.asked == [(HERE, "bytes=300-", '"1"'), (HERE, None, None)]
    assert (tmp_path / "a.tar.bad").stat().st_size == 1000, "what was wrong is set aside"
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    web.files[HERE], web.asked[:] = (DATA[::-1], {}), []
    fetched(tmp_path)
    assert [entry[0] for entry in web.asked] == [HERE, THERE]


@pytest.mark.parametrize("held", [DATA, DATA + b"x"])
def test_a_part_that_is_complete_or_too_long(web, tmp_path, held):
    (tmp_path / "a.tar.part").write_bytes(held)
    fetched(tmp_path)
    assert [entry[1] for entry in web.asked] == (["bytes=1000-"] if held == DATA else ["bytes=1001-", None])
    assert os.listdir(tmp_path) == ["a.tar"], "nothing was taken for complete, and set aside then"


def test_an_answer_from_elsewhere_in_the_file_is_not_taken(web, tmp_path, monkeypatch):
    def wrong(request: Any, timeout: float) -> Answer:
        answer = web.open(request, timeout)
        if answer.status == 206:
            answer.headers["Content-Range"] = "bytes 299-999/1000"
        return answer

    web.breaks, web.files = [300], {HERE: web.files[HERE]}
    monkeypatch.setattr("urllib.request.urlopen", wrong)
    with pytest.raises(UserError, match=r"asked for bytes from 300, sent bytes 299-999/1000(.|\n)*300 bytes are kept"):
        fetched(tmp_path)


def test_ones_own_mirror_is_asked_first(web, tmp_path):
    web.files["https://own/a.tar"] = web.files[HERE]
    fetched(tmp_path, mirror="https://own/")
    assert [entry[0] for entry in web.asked] == ["https://own/a.tar"]


def test_room_is_needed_for_what_is_missing_and_for_all_of_it_unpacked(web, tmp_path, monkeypatch):
    web.breaks, free = [300], [2000, 1700]
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free.pop(0)))
    assert fetched(tmp_path) == [300, 1000]
    (tmp_path / "a.tar").unlink()
    free += [1999]
    with pytest.raises(StorageError, match=r"a\.tar and what is unpacked of it still need 0\.00 GB"):
        fetched(tmp_path)


def test_it_is_on_disk_before_it_gets_its_name(web, tmp_path, monkeypatch):
    deeds: list[str] = []
    monkeypatch.setattr(module, "flush_to_disk", lambda path: deeds.append(path.name))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: deeds.append("replace") or replace(*paths))
    fetched(tmp_path)
    assert deeds == ["a.tar.part", "replace"]


def packed(names: list[str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(name)
            tar.addfile(info, io.BytesIO(name.encode()))
    return buffer.getvalue()


def test_what_is_unpacked_is_fetched_again_only_where_a_file_is_gone_or_it_is_another_archive(web, tmp_path):
    def asked(*names: str, keep: bool = False) -> int:
        """How often an archive of these names was asked for; it is kept only where that is asked for, too."""
        data, before = packed(list(names)), len(web.asked)
        web.files = {HERE: (data, {})}
        archive = Archive("a.tar", hashlib.md5(data).hexdigest(), ("https://here",), "data")
        assert download([archive], tmp_path, keep_archives=keep) == [tmp_path / "data"]
        assert (tmp_path / "data" / "a.tar").exists() == keep
        return len(web.asked) - before

    names = "x/1.jpg", "x/2.jpg", "x/3.jpg"
    assert [asked(*names), asked(*names)] == [1, 0]
    for name in (names[0], names[2]):
        (tmp_path / "data" / name).unlink()
        assert [asked(*names), asked(*names)] == [1, 0], "the first and the last of it are looked for"
    assert asked(*names, "x/4.jpg", keep=True) == 1 and (tmp_path / "data" / "x" / "4.jpg").exists()


def test_unpacking_goes_on_and_needs_room_for_what_is_not_there(tmp_path, monkeypatch):
    """A file of another size is written again; one that was interrupted leaves nothing."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as package:
        for name in "abc":
            package.writestr(name, bytes(1000))
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a").write_bytes(b"x" * 1000)
    (folder / "b").write_bytes(b"x" * 999)
    usage, copy = shutil.disk_usage(tmp_path), shutil.copyfileobj
    free = [999, 1000, 1000]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free.pop(0)))
    with pytest.raises(StorageError, match=r"0\.00 GB are to be unpacked"):
        unpack(tmp_path / "a.zip", folder, lambda *_: None)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copyfileobj", interrupted)
    with pytest.raises(KeyboardInterrupt):
        unpack(tmp_path / "a.zip", folder, lambda *_: None)
    assert sorted(os.listdir(folder)) == ["a", "b"]
    monkeypatch.setattr(shutil, "copyfileobj", copy)
    assert unpack(tmp_path / "a.zip", folder, lambda *_: None) == ["a", "b", "c"]
    assert [(folder / name).read_bytes() for name in "abc"] == [b"x" * 1000, bytes(1000), bytes(1000)]
