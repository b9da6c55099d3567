"""One photograph under several names: what a build says of its labels."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from msldata.commands import display
from msldata.inspect.verify import verify
from msltrain.__main__ import app
from tests.tinydata import jpeg


def build(folder: Path, *arguments: str) -> str:
    command = ["build-shards", str(folder), "--name", "mine", "--out", str(folder.parent / "out"), "--workers", "1"]
    result = CliRunner().invoke(app, [*command, *arguments])
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def photographs(folder: Path, copies: dict[str, tuple[int, str]], split: str = "") -> Path:
    """Forty photographs of cats, and copies of some of them: by name, the number of one and the labels."""
    folder.mkdir()
    rows = [(f"{n}.jpg", n, "cat") for n in range(40)] + [(name, *about) for name, about in copies.items()]
    lines = [f"image,labels{',split' if split else ''}"]
    for row, (name, seed, labels) in enumerate(rows):
        (folder / name).write_bytes(jpeg(seed))
        lines.append(f"{name},{labels}" + (f",{split if row < 40 else 'test'}" if split else ""))
    (folder / "labels.csv").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize("arguments", [(), ("--split", "all"), ("--samples-per-shard", "3", "--split", "all")])
def test_copies_with_other_labels_are_named(tmp_path: Path, arguments: tuple[str, ...]):
    copies = {"Kopie 7.jpg": (7, "dog;bird"), "Kopie 9.jpg": (9, "cat")}
    said = build(photographs(tmp_path / "photos", copies), *arguments)
    assert (
        "1 photograph is there twice, with labels that differ: 7.jpg (cat) and Kopie 7.jpg (bird, dog). Not all of "
        "them can be right: give the files of a photograph the same labels or keep one of them" in said
    )
    assert "1 photograph is there twice, with the same labels: 9.jpg and Kopie 9.jpg" in said
    # Of what is built already too: the labels are as wrong as before.
    assert "7.jpg (cat) and Kopie 7.jpg (bird, dog)" in build(tmp_path / "photos", *arguments)


def test_many_copies_are_counted_and_a_command_names_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    copies = {f"copy {n}.jpg": (n, "dog") for n in range(8)} | {"third.jpg": (0, "dog")}
    said = build(photographs(tmp_path / "photos", copies), "--split", "all")
    assert "8 photographs are there several times, with labels that differ: 0.jpg (cat), copy 0.jpg (dog), " in said
    assert f"; and 3 more, which `msl verify {tmp_path}/out/mine` names." in said
    result = CliRunner().invoke(app, ["verify", str(tmp_path / "out/mine")])
    assert result.exit_code == 2 and result.output.count("the same bytes as") == 9, "a file gets all"
    assert "the same bytes as 7 in" in result.output and "; 7 is labelled cat, copy_7 dog" in result.output
    monkeypatch.setattr(display, "_FINDINGS_SHOWN", 2)
    console = Console(file=io.StringIO(), force_terminal=True, width=300, color_system=None)
    place = str(tmp_path / "out/mine/all")
    display.show_verification(console, verify(place), place)
    assert "… and 7 more: where the output goes to a file or pipe, all are there" in console.file.getvalue()


def test_copies_in_two_splits_of_ones_own_are_said(tmp_path: Path):
    said = build(photographs(tmp_path / "photos", {"x.jpg": (3, "cat"), "y.jpg": (4, "dog")}, "train"))
    assert "1 photograph is there twice, in more than one split: 3.jpg (in train) and x.jpg (in test)." in said
    assert "with labels that differ: 4.jpg (in train; cat) and y.jpg (in test; dog)" in said


def test_nothing_is_said_where_all_are_different(tmp_path: Path):
    assert "there twice" not in build(photographs(tmp_path / "photos", {}))
