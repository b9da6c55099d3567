"""``msl predict`` over many photographs: stopped, gone on with, shared out, under names that are no text."""

from __future__ import annotations

import csv
import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from msldata.errors import UserError
from msltrain.__main__ import app
from msltrain.runs.checkpoint import load_checkpoint, load_recogniser, save_checkpoint
from msltrain.use import predict as predict_module
from msltrain.use import predict_many as module
from msltrain.use.output_formats import FORMATS
from msltrain.use.read_images import find_images, is_image_start, plain_name
from tests.answers import predict_images
from tests.integration.test_evaluate import write_checkpoint
from tests.smallshards import CLASSES, photo
from tests.torchrun import REPOSITORY

pytestmark = pytest.mark.usefixtures("ready_python")

NUM_PHOTOS = 23


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    (folder / "photos").mkdir()
    for number in range(NUM_PHOTOS):
        (folder / "photos" / f"p{number:03d}.jpg").write_bytes(photo(number, 60 + number, 40))
    (folder / "photos" / "p007.jpg").write_bytes(photo(7)[:90])
    write_checkpoint(folder / "run", CLASSES)
    return folder


def msl(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "300"})
    return result.exit_code, result.stdout, result.stderr


def command(place: Path, out: Path, *more: object) -> list[object]:
    options = ("--checkpoint", place / "run", "--device", "cpu", "--batch-size", 2, "--top-k", "all")
    return ["predict", place / "photos", *options, "--out", out, *more]


def names_in(out: Path) -> list[str]:
    return [json.loads(line)["file"] for line in out.read_text().splitlines()]


def test_a_stopped_prediction_goes_on_and_asks_nothing_twice(place, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole.json", tmp_path / "all.json"
    assert msl(*command(place, whole))[0] == 1
    real, asked = module.predict_each, []

    def counted(predictor, pictures, *rest, stop_after: int):
        for number, batch in enumerate(real(predictor, pictures, *rest)):
            if number == stop_after:
                raise KeyboardInterrupt
            asked.extend(image.file for image in batch)
            yield batch

    for stop_after in (3, 0, 4):
        monkeypatch.setattr(module, "predict_each", lambda *given, n=stop_after: counted(*given, stop_after=n))
        code, _, errors = msl(*command(place, out))
        assert code == 130 and "the same command goes on" in errors and not out.exists()
        with open(tmp_path / "all.json.part0", "ab") as part:
            part.write(b'{"file": "torn by a ki')
    monkeypatch.setattr(module, "predict_each", lambda *given: counted(*given, stop_after=-1))
    code, _, errors = msl(*command(place, out))
    assert code == 1 and f"14 of {NUM_PHOTOS} images were answered before" in errors
    assert out.read_bytes() == whole.read_bytes() and len(asked) == len(set(asked)) == NUM_PHOTOS
    assert f"1 of {NUM_PHOTOS} images could not be read" in errors and "p007.jpg" in errors
    assert sorted(file.name for file in tmp_path.iterdir()) == ["all.json", "whole.json"]


def test_what_one_process_began_two_finish(place, tmp_path, monkeypatch):
    out = tmp_path / "all.csv"
    real = module.predict_each

    def interrupted(*given):
        for number, batch in enumerate(real(*given)):
            if number == 2:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(module, "predict_each", interrupted)
    assert msl(*command(place, out))[0] == 130
    monkeypatch.undo()
    words = [sys.executable, str(REPOSITORY / "cli.py"), *map(str, command(place, out)), "--processes", "2"]
    process = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert process.returncode == 1 and "1 of 23 images could not be read" in process.stderr, process.stderr
    assert "4 of 23 images were answered before" in process.stderr, process.stderr
    with open(out) as file:
        found = list(csv.DictReader(file))
    expected = predict_images(place / "run", [place / "photos"], top_k=None, on_error="skip")
    assert [row["file"] for row in found] == [image.file for image in expected for _ in image.scores or [0]]
    scores = [score for image in expected for _, score in image.scores or [("", 0.0)]]
    assert [float(row["score"] or 0) for row in found] == pytest.approx(scores, abs=1e-5)
    assert [file.name for file in tmp_path.iterdir()] == ["all.csv"]


def test_a_part_is_not_finished_with_other_answers(place, tmp_path):
    out = tmp_path / "all.json"
    (tmp_path / "all.json.part0").write_text('{"asked": "another model"}\n{"file": "a.jpg"}\n')
    code, _, errors = msl(*command(place, out))
    assert code == 2 and "all.json.part0: a part of all.json that another model or other options began" in errors
    code, _, errors = msl(*command(place, tmp_path / "b.json", "--on-error", "fail"))
    assert code == 2 and "p007.jpg" in errors
    code, _, errors = msl(*command(place, tmp_path / "b.json"))
    assert code == 1 and "answered before" in errors, "the option decides no answer"


def test_a_part_is_not_finished_by_the_same_weights_at_another_size(place, tmp_path):
    """As with another --recipe for a weights file, or --set of import-checkpoint."""
    out, other = tmp_path / "all.json", tmp_path / "other"
    code, _, errors = msl(*command(place, out, "--on-error", "fail"))
    assert code == 2 and "p007.jpg" in errors
    made = load_checkpoint(place / "run")
    stream = replace(made.config.stream, image_size=2 * made.config.stream.image_size)
    save_checkpoint(replace(made, config=replace(made.config, stream=stream)), other)
    code, _, errors = msl(*command(place, out, "--checkpoint", other))
    assert code == 2 and "all.json.part0: a part of all.json that another model or other options began" in errors
    assert load_recogniser(other).sha256 == load_recogniser(place / "run").sha256


@pytest.mark.parametrize("kind", ["json", "csv", "parquet", "txt"])
def test_names_that_are_no_text_are_kept(place, tmp_path, kind):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in (b"caf\xe9.jpg", b"a.jpg", rb"caf\xe9.jpg"):
        (Path(os.fsdecode(os.fsencode(folder) + b"/" + name))).write_bytes(photo(1))
    out = tmp_path / f"all.{kind}"
    code, _, errors = msl("predict", folder, "--checkpoint", place / "run", "--device", "cpu", "--out", out)
    assert code == 0 and "Traceback" not in errors
    expected = [f"{folder}/a.jpg", rf"{folder}/caf\\xe9.jpg", rf"{folder}/caf\xe9.jpg"]
    if kind == "parquet":
        found = pq.read_table(out)["file"].to_pylist()
    else:
        text = out.read_text(encoding="utf-8")
        found = [name for name in expected if json.dumps(name)[1:-1] in text or name in text]
    assert sorted(set(found)) == sorted(expected)


@pytest.mark.parametrize("kind", FORMATS)
def test_classes_that_are_no_text_are_kept(place, tmp_path, monkeypatch, kind):
    """JSON can hold half a character, and so can the class list of an exported folder."""
    real = predict_module.load_any
    odd = ("\ud800", "caf\udce9", "cat")
    monkeypatch.setattr(predict_module, "load_any", lambda *given: replace(real(*given), classes=odd))
    out = tmp_path / "all"
    run = ("--checkpoint", place / "run", "--device", "cpu", "--top-k", "all", "--out", out, "--format", kind)
    code, _, errors = msl("predict", place / "photos/p001.jpg", *run)
    assert code == 0, errors
    text = str(pq.read_table(out)["class"].to_pylist()) if kind == "parquet" else out.read_text(encoding="utf-8")
    assert r"caf\xe9" in text.replace(r"\\", "\\") and r"\xed\xa0\x80" in text.replace(r"\\", "\\")


KILLED = """
import os, signal, sys
from msltrain.__main__ import main
from msltrain.use import predict_many
real = predict_many.predict_each

def killed(*given):
    for number, batch in enumerate(real(*given)):
        if number == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        yield batch

predict_many.predict_each = killed
main()
"""


def test_a_killed_prediction_goes_on_and_answers_nothing_twice(place, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole.json", tmp_path / "all.json"
    assert msl(*command(place, whole))[0] == 1
    words = [sys.executable, "-c", KILLED, *map(str, command(place, out))]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300)
    assert process.returncode == -signal.SIGKILL and not out.exists()
    _, *answered = (tmp_path / "all.json.part0").read_text().splitlines()
    assert len(answered) == 10  # five batches of two, though each was in a buffer once
    asked, real = [], module.predict_each

    def counted(predictor, pictures, *rest):
        asked.extend(picture.name for picture in pictures)
        return real(predictor, pictures, *rest)

    monkeypatch.setattr(module, "predict_each", counted)
    code, _, errors = msl(*command(place, out))
    assert code == 1 and f"10 of {NUM_PHOTOS} images were answered before" in errors
    assert len(asked) == NUM_PHOTOS - 10 and not {json.loads(line)["file"] for line in answered} & set(asked)
    assert names_in(out) == names_in(whole) and len(set(names_in(out))) == NUM_PHOTOS


@pytest.mark.parametrize("num_bytes", [40, 1500])
def test_a_full_disk_is_one_message_and_what_was_answered_stays(place, tmp_path, num_bytes):
    """Nothing more can be written than so many bytes of a file, the header's or those of some answers."""
    whole, out = tmp_path / "whole.json", tmp_path / "all.json"
    msl(*command(place, whole))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        code, _, errors = msl(*command(place, out))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 2 and "all.json.part0: file too large" in errors
    assert msl(*command(place, out))[0] == 1
    for found, expected in zip(*(map(json.loads, file.read_text().splitlines()) for file in (out, whole)), strict=True):
        # Batches begin elsewhere now, so sums may differ in their last bit.
        assert found["file"] == expected["file"] and found.get("scores", {}) == pytest.approx(
            expected.get("scores", {}), abs=1e-6
        )


def test_names_are_escaped_so_that_no_two_are_one():
    plain = ["a.jpg", "b\\c.jpg", "é.jpg"]
    assert [plain_name(name) for name in plain] == plain
    odd = [os.fsdecode(name) for name in (b"\xe9", rb"\xe9", rb"\\xe9", b"\\\xe9")]
    assert len({plain_name(name) for name in odd}) == 4 and plain_name(odd[0]) == r"\xe9"


def test_files_are_known_by_how_they_begin_and_the_rest_is_counted(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jfif", "JPEG")
    Image.new("RGB", (8, 8)).save(tmp_path / "no-suffix", "PNG")
    Image.new("RGB", (8, 8)).save(tmp_path / "wrong.dat", "WEBP")
    Image.new("RGB", (8, 8)).save(tmp_path / "d.jp2", "JPEG2000")
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / "clip.mp4").write_bytes(b"\0\0\0 ftypisom" + bytes(40))
    assert all(is_image_start(b"\0\0\0 ftyp" + brand) for brand in (b"avif", b"avis", b"heic", b"heix", b"msf1"))
    said: list[str] = []
    found = [Path(picture.name).name for picture in find_images([tmp_path], said.append)]
    assert found == ["a.jfif", "d.jp2", "no-suffix", "wrong.dat"]
    assert len(said) == 1 and "4 images; 2 other files left out: clip.mp4, notes.txt" in said[0]


def test_a_list_that_names_a_device_is_answered_all_the_same(place, tmp_path):
    (tmp_path / "list.txt").write_text(f"{place / 'photos'}/p000.jpg\n/dev/zero\n")
    pictures = find_images([tmp_path / "list.txt"])
    assert pictures[0].read() and len(pictures) == 2
    with pytest.raises(UserError, match="a device, not a file"):
        pictures[1].read()


def test_a_list_with_the_line_ends_of_old_macs(place, tmp_path):
    names = [f"{place / 'photos'}/p{number:03d}.jpg" for number in (3, 1)]
    (tmp_path / "list.csv").write_bytes("\r".join(["image,label", *(f"{name},x" for name in names)]).encode())
    assert [picture.name for picture in find_images([tmp_path / "list.csv"])] == names


def test_lists_of_photographs(place, tmp_path):
    names = [f"{place / 'photos'}/p{number:03d}.jpg" for number in (3, 1)]
    (tmp_path / "list.txt").write_text("\n".join([*names, "gone.jpg"]) + "\n")
    (tmp_path / "list.csv").write_text("label,Image\n" + "".join(f"x,{name}\n" for name in names))
    assert [one.name for one in find_images([tmp_path / "list.csv"])] == names
    found = predict_images(place / "run", [tmp_path / "list.txt"], on_error="skip")
    assert [bool(image.error) for image in found] == [False, False, True] and found[2].file.endswith("gone.jpg")
    (tmp_path / "none.csv").write_text("label\nx\n")
    code, _, errors = msl("predict", tmp_path / "none.csv", "--checkpoint", place / "run")
    assert code == 2 and "no column names the photographs" in errors
