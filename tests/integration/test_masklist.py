"""A list of masks as source: local and remote files, and everything that a list must not hold."""

from __future__ import annotations

import io
import pickle
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msldata.contract.maskgenerator import generate_hole_mask
from msldata.errors import BadInputError, UserError
from msldata.masks.sources import open_mask_source
from msldata.storage import open_storage
from tests.tinydata import build_masks

NUM_MASKS = 12


@pytest.fixture
def folder(tmp_path) -> Path:
    for index in range(NUM_MASKS):
        path = tmp_path / "masks" / "ab"[index % 2] / f"{index:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generate_hole_mask(0, index, 32) * np.uint8(255)).save(path)
    return tmp_path / "masks"


@pytest.fixture
def server(folder):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def write_list(place: Path, lines: list[str], name: str = "masks.txt") -> Path:
    (place / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return place / name


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


def shards(source, out: Path) -> dict[str, bytes]:
    build_masks(open_mask_source(source), open_storage(out), per_subset=3, num_workers=1, polarity="hole-white")
    return {path.name: path.read_bytes() for path in sorted(out.rglob("*.tar"))}


def test_a_list_gives_the_shards_that_its_folder_gives(folder, server, tmp_path):
    expected = shards(folder, tmp_path / "by-folder")
    lists = {
        "relative": [f"masks/{name}" for name in files(folder)],
        "absolute": [f"{folder}/{name}" for name in reversed(files(folder))],
        "remote": [f"{server}/{name}" for name in files(folder)],
    }
    for kind, lines in lists.items():
        path = write_list(tmp_path, ["# all of them", "", *lines, "  "], f"{kind}.txt")
        assert shards(path, tmp_path / f"by-{kind}") == expected, kind


def test_names_are_sorted_and_the_source_travels_to_workers(folder, tmp_path):
    path = write_list(tmp_path, ["masks/b/00001.png", "masks/a/00000.png"])
    source = pickle.loads(pickle.dumps(open_mask_source(path)))
    assert source.names() == ["masks/a/00000.png", "masks/b/00001.png"]
    assert (source.read_gray("masks/b/00001.png") == generate_hole_mask(0, 1, 32) * 255).all()
    assert (source.provenance, source.polarity) == ({"source": path.name}, None)


@pytest.mark.parametrize("name", ["nowhere.png", "SERVER/nowhere.png"])
def test_a_missing_file_is_named_with_the_list(folder, server, tmp_path, name):
    name = name.replace("SERVER", server)
    path = write_list(tmp_path, ["masks/a/00000.png", name])
    with pytest.raises(BadInputError, match=r"nowhere\.png: no such .* \(named in .*masks\.txt\).*--on-error skip"):
        open_mask_source(path).read_gray(name)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("pipe:cat /etc/passwd", "unknown kind 'pipe:'"),
        ("file:///etc/passwd", "unknown kind 'file:'"),
        ("s3:bucket/0.png", "unknown kind 's3:'"),
        ("cat masks.tar | tar x", "looks like a command"),
        ("|cat", "looks like a command"),
        ("0.png; touch x", "looks like a command"),
        ("$(touch x).png", "looks like a command"),
        ("`touch x`.png", "looks like a command"),
        ("0.png > x", "looks like a command"),
        ("-rf", "looks like a command"),
        ("0.png & touch x", "looks like a command"),
        ("https://host/$(id).png", "looks like a command"),
        ("https://host/0.png?version=3", "has a query"),
        ("https://host", "not the address of a file"),
        ("s3://bucket/folder/", "not the address of a file"),
        ("a.png", "is in line 1 already"),
    ],
)
def test_lines_that_are_no_masks_are_refused_by_number(tmp_path, line, reason):
    path = write_list(tmp_path, ["a.png", "# fine", line])
    with pytest.raises(UserError) as caught:
        open_mask_source(path).names()
    assert str(caught.value).startswith(f"{path}, line 3: '{line}' ")
    assert reason in str(caught.value)


def test_lists_that_are_none_are_refused(tmp_path):
    with pytest.raises(UserError, match="the list names no mask"):
        open_mask_source(write_list(tmp_path, ["# nothing", ""])).names()
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"binary\.txt: not a text file in UTF-8"):
        open_mask_source(tmp_path / "binary.txt").names()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_mask_source(tmp_path / "nowhere.txt")
    with pytest.raises(UserError, match="archives and lists are read from a local disk only"):
        open_mask_source("https://example.org/masks.txt")


def test_an_opened_list_stays_small_in_transit(folder, tmp_path):
    path = write_list(tmp_path, [f"masks/{number:06d}.png" for number in range(20_000)])
    buffer = io.BytesIO()
    source = open_mask_source(path)
    assert len(source.names()) == 20_000
    pickle.dump(source, buffer)
    assert buffer.tell() < 1000, "the list is sent along with every task"
