"""`msl download` against HTTP servers that misbehave: what is fetched, taken up again, refused and kept."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from msldata.errors import BadInputError, StorageError, UserError
from msldata.sources import download as module
from msldata.sources.download import ARCHIVES, Archive, download, select_archives
from msldata.sources.kinds import find_sources
from msltrain.__main__ import app
from tests import webserver
from tests.tinydata import contents, make_voc

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = {"VOCdevkit/a.txt": b"a" * 5000, "VOCdevkit/deep/b.bin": os.urandom(70_000), "empty": b""}


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zip_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as package:
        for name, content in files.items():
            package.writestr(name, content)
    return buffer.getvalue()


TAR = tar_of(FILES)


def archive_of(content: bytes, *mirrors: str, name: str = "x.tar") -> Archive:
    return Archive(name, hashlib.md5(content).hexdigest(), mirrors)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(module, "_PAUSE_SECONDS", 0.0)


@pytest.fixture
def server():
    with webserver.running() as running:
        running.files["/x.tar"] = TAR
        yield running


def unpacked(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(folder).items() if not name.endswith(".unpacked")}


@pytest.mark.parametrize(("content", "name"), [(TAR, "x.tar"), (zip_of(FILES), "x.zip")])
def test_fetched_checked_unpacked_and_never_again(server, tmp_path, content, name):
    server.files[f"/{name}"] = content
    archive = archive_of(content, server.url, name=name)
    seen = []
    download([archive], tmp_path, progress=lambda *step: seen.append(step))
    assert unpacked(tmp_path) == FILES
    assert all(0 < done <= total == len(content) for _, done, total in seen)
    assert {what for what, _, _ in seen} == {name, f"checking {name}", f"unpacking {name}"}
    download([archive], tmp_path)
    assert len(server.requests) == 1


def test_what_was_deleted_is_fetched_again(server, tmp_path):
    archive = archive_of(TAR, server.url)
    download([archive], tmp_path)
    shutil.rmtree(tmp_path / "VOCdevkit")
    download([archive], tmp_path)
    assert unpacked(tmp_path) == FILES and len(server.requests) == 2


def test_archives_can_be_kept(server, tmp_path):
    download([archive_of(TAR, server.url)], tmp_path, keep_archives=True)
    assert (tmp_path / "x.tar").read_bytes() == TAR


def test_an_archive_put_there_by_hand_is_used(tmp_path):
    (tmp_path / "x.tar").write_bytes(TAR)
    download([archive_of(TAR, "http://127.0.0.1:1")], tmp_path)
    assert unpacked(tmp_path) == FILES


def test_a_cut_body_is_taken_up_where_it_broke(server, tmp_path):
    server.cut = lambda number: 10_000 if number < 5 else None
    download([archive_of(TAR, server.url)], tmp_path)
    assert unpacked(tmp_path) == FILES
    asked = [(span, if_range) for _, span, if_range in server.requests]
    assert asked == [(None, None)] + [(f"bytes={10_000 * number}-", '"1"') for number in range(1, 5)]


def test_without_an_etag_the_date_tells_whether_the_file_changed(server, tmp_path):
    server.etag = None
    server.cut = lambda number: 10_000 if number == 1 else None
    download([archive_of(TAR, server.url)], tmp_path)
    assert unpacked(tmp_path) == FILES
    assert server.requests[1][1:] == ("bytes=10000-", "Wed, 07 Nov 2007 00:00:00 GMT")


def test_a_file_that_changed_in_between_is_fetched_whole(server, tmp_path):
    (tmp_path / "x.tar.part").write_bytes(b"older" * 2000)
    (tmp_path / ".x.tar.part.origin").write_text(f'{{"{server.url}/x.tar": "\\"0\\""}}')
    download([archive_of(TAR, server.url)], tmp_path)
    assert unpacked(tmp_path) == FILES
    assert server.requests == [("/x.tar", "bytes=10000-", '"0"')]


def test_a_server_without_ranges_starts_over(server, tmp_path):
    server.ranges = False
    server.cut = lambda number: 10_000 if number < 3 else None
    download([archive_of(TAR, server.url)], tmp_path)
    assert unpacked(tmp_path) == FILES


@pytest.mark.parametrize("content", [TAR, TAR + b"more than there is"])
def test_a_part_as_long_as_the_file_or_longer(server, tmp_path, content):
    (tmp_path / "x.tar.part").write_bytes(content)
    download([archive_of(TAR, server.url)], tmp_path)
    assert unpacked(tmp_path) == FILES
    assert len(server.requests) == (1 if content == TAR else 2)


def test_wrong_bytes_are_set_aside(server, tmp_path):
    server.files["/x.tar"] = b"<html>please log in</html>"
    with pytest.raises(UserError, match=r"MD5 [0-9a-f]{32} instead of [0-9a-f]{32}, kept as x\.tar\.bad"):
        download([archive_of(TAR, server.url)], tmp_path)
    assert contents(tmp_path) == {"x.tar.bad": b"<html>please log in</html>"}
    server.files["/x.tar"] = TAR
    download([archive_of(TAR, server.url)], tmp_path)
    assert (tmp_path / "VOCdevkit" / "a.txt").exists()


def test_a_wrong_beginning_is_noticed_and_the_whole_fetched(server, tmp_path):
    (tmp_path / "x.tar.part").write_bytes(b"another file" * 100)
    download([archive_of(TAR, server.url)], tmp_path)
    assert [span for _, span, _ in server.requests] == ["bytes=1200-", None]
    assert (tmp_path / "VOCdevkit" / "a.txt").exists()


def test_a_damaged_archive_there_already_is_fetched_again(server, tmp_path):
    (tmp_path / "x.tar").write_bytes(TAR[:-1])
    download([archive_of(TAR, server.url)], tmp_path)
    assert (tmp_path / "x.tar.bad").exists() and (tmp_path / "empty").exists()


def test_the_next_mirror_goes_on_where_a_dead_one_stopped(server, tmp_path):
    with webserver.running() as first:
        first.files["/x.tar"] = TAR
        first.cut = lambda number: 20_000 if number == 1 else 0
        download([archive_of(TAR, "http://127.0.0.1:1", first.url, server.url)], tmp_path)
    assert unpacked(tmp_path) == FILES
    assert server.requests == [("/x.tar", "bytes=20000-", None)]


def test_all_mirrors_are_heard_and_what_came_is_kept(server, tmp_path):
    with webserver.running() as broken, webserver.running() as busy:
        broken.files["/x.tar"] = busy.files["/x.tar"] = TAR
        broken.cut = lambda number: 20_000 if number == 1 else 0
        busy.status = lambda number: 503
        del server.files["/x.tar"]
        with pytest.raises(UserError) as caught:
            download([archive_of(TAR, "http://127.0.0.1:1", server.url, busy.url, broken.url)], tmp_path)
        assert len(server.requests) == 1 and len(busy.requests) == 3  # a 404 is final, a 503 is not
    message = str(caught.value)
    for line in (
        "http://127.0.0.1:1/x.tar: [Errno 111] Connection refused",
        f"{server.url}/x.tar: HTTP 404 Not Found",
        f"{busy.url}/x.tar: HTTP 503 Service Unavailable",
        f"{broken.url}/x.tar: the connection ended after 20,000 of {len(TAR):,} bytes",
        "20,000 bytes are kept; the same command goes on from there, or name another place with --mirror URL",
    ):
        assert line in message, message
    assert (tmp_path / "x.tar.part").read_bytes() == TAR[:20_000]


def test_ones_own_mirror_is_asked_first(server, tmp_path):
    download([archive_of(TAR, "http://127.0.0.1:1")], tmp_path, mirror=f"{server.url}/")
    assert unpacked(tmp_path) == FILES


@pytest.mark.parametrize("mirror", ["file:///etc", "ftp://127.0.0.1", "pipe:echo", "nonsense"])
def test_only_web_addresses_are_opened(tmp_path, mirror):
    with pytest.raises(UserError, match="not an http:// or https:// address"):
        download([archive_of(TAR, mirror)], tmp_path)


def test_a_disk_too_small_is_said_before(server, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2 * len(TAR) - 1))
    with pytest.raises(StorageError, match=r"x\.tar and what is unpacked of it still need 0\.00 GB, only .* --to"):
        download([archive_of(TAR, server.url)], tmp_path)
    assert not (tmp_path / "x.tar.part").exists()


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "a\\..\\evil", "C:evil"])
@pytest.mark.parametrize("pack", [tar_of, zip_of])
def test_members_outside_the_folder_are_refused(tmp_path, name, pack):
    content = pack({name: b"evil"})
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.tar").write_bytes(content)
    with pytest.raises(BadInputError, match="would be written outside the folder"):
        download([archive_of(content)], tmp_path / "in")
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = kind, "/etc"
        tar.addfile(info)
    (tmp_path / "x.tar").write_bytes(buffer.getvalue())
    with pytest.raises(BadInputError, match="'link' is not a regular file"):
        download([archive_of(buffer.getvalue())], tmp_path)


def test_a_stopped_unpacking_goes_on_and_keeps_whole_files(tmp_path):
    (tmp_path / "x.tar").write_bytes(TAR)
    (tmp_path / "VOCdevkit").mkdir()
    whole, half = tmp_path / "VOCdevkit" / "a.txt", tmp_path / "VOCdevkit" / "deep"
    whole.write_bytes(b"A" * 5000)
    half.mkdir()
    (half / "b.bin").write_bytes(b"half")
    download([archive_of(TAR)], tmp_path)
    assert whole.read_bytes() == b"A" * 5000  # in its size, so it was not written again
    assert (half / "b.bin").read_bytes() == FILES["VOCdevkit/deep/b.bin"]


def test_two_downloads_do_not_meet(server, tmp_path):
    with module._only_download(tmp_path / "x.tar.part"), pytest.raises(UserError, match="another download"):
        download([archive_of(TAR, server.url)], tmp_path)


def test_what_can_be_selected():
    assert [archive.name for archive in select_archives("coco2014", ["val"])] == [
        "annotations_trainval2014.zip",
        "val2014.zip",
    ]
    assert select_archives("voc2007") == ARCHIVES["voc2007"]
    with pytest.raises(UserError, match="'wider' cannot be downloaded; known are: voc2007, coco2014"):
        select_archives("wider")
    with pytest.raises(UserError, match="no split 'val' to download; known are: trainval, test"):
        select_archives("voc2007", ["val"])


def test_the_command_puts_it_where_a_build_looks(server, tmp_path, monkeypatch):
    make_voc(tmp_path / "made", 2)
    content = tar_of(contents(tmp_path / "made"))
    test = replace(ARCHIVES["voc2007"][1], md5=hashlib.md5(content).hexdigest())
    monkeypatch.setattr(module, "ARCHIVES", {"voc2007": (ARCHIVES["voc2007"][0], test)})
    server.files[f"/{test.name}"] = content
    command = ["download", "voc2007", "--split", "test", "--to", str(tmp_path / "sets"), "--mirror", server.url]
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 0, run.output
    assert f"{test.name} is checked and unpacked" in run.output.replace("\n", " ")
    assert [(found.dataset, found.splits) for found in find_sources(tmp_path / "sets")] == [("voc2007", ("test",))]


def test_ctrl_c_keeps_what_came(tmp_path):
    with webserver.running() as server:
        name = ARCHIVES["voc2007"][1].name
        server.files[f"/{name}"] = bytes(8 << 20)
        server.status = lambda number: time.sleep(0.05 if number == 1 else 60)  # the second request never ends
        server.cut = lambda number: 3 << 20
        command = [sys.executable, "cli.py", "download", "voc2007", "--split", "test", "--to", str(tmp_path)]
        process = subprocess.Popen(
            [*command, "--mirror", server.url], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 30
        while len(server.requests) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on where it was" in errors
    assert (tmp_path / f"{name}.part").stat().st_size == 3 << 20
