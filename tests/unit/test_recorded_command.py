"""The command that builds a dataset again is the one that its manifest recorded, or none."""

from __future__ import annotations

import io
import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from msldata.commands import recorded
from msldata.commands.recorded import confirm_replacement
from msldata.contract.manifest import IMAGES, KEEP_MASKS, Manifest, read_manifest
from msldata.contract.recorded_command import build_command
from msldata.errors import UserError
from msldata.inspect.verify import verify
from msldata.storage import LocalStorage, open_storage
from msltrain.__main__ import app
from tests.smallshards import write_images
from tests.tinydata import jpeg, make_coco, make_voc


@pytest.mark.parametrize(
    ("folder", "kind", "words", "command"),
    [
        (
            "shards/mine/test",
            IMAGES,
            ["build-shards", "/d/t.csv", "--name", "mine"],
            "msl build-shards /d/t.csv --name mine",
        ),
        ("s3://bucket/a b/mine/test", IMAGES, ["build-shards", "x"], "msl build-shards x --out 's3://bucket/a b'"),
        ("shards/masks/low", KEEP_MASKS, ["build-masks"], "msl build-masks"),
        ("elsewhere/low", KEEP_MASKS, ["build-masks", "--seed", "3"], "msl build-masks --seed 3 --out elsewhere"),
        ("tars", IMAGES, ["index", "tars", "--split", "test"], "msl index tars --split test"),
        ("links", IMAGES, ["index", "tars"], "msl index tars --out links"),
        ("s3://bucket/tars", IMAGES, ["index", "s3://bucket/tars/"], "msl index s3://bucket/tars/"),
        ("tars/", IMAGES, ["index", "tars"], "msl index tars"),
        ("shards/voc2007/test", IMAGES, [], None),
    ],
)
def test_command(folder, kind, words, command):
    split = "low" if kind == KEEP_MASKS else "test"
    manifest = Manifest(kind=kind, dataset="mine", split=split, shards=(), provenance={"command": words})
    storage = open_storage(folder) if "://" in folder else LocalStorage(Path(folder))
    assert build_command(storage, manifest) == command


def msl(*words: object) -> str:
    run = CliRunner().invoke(app, [*map(str, words), "--workers", "1"])
    assert run.exit_code == 0, run.output
    return run.output


def repaired(folder: Path) -> str:
    """Runs what `msl verify` advises for a damaged dataset, which must be as it was before."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    indexed = (folder / "s.tar").exists()
    file = next(folder.glob("*.parquet" if indexed else "*.tar"))
    file.write_bytes(file.read_bytes()[:-9])
    result = verify(LocalStorage(folder), num_workers=1)
    assert result.findings
    command = result.next_step.partition("msl ")[2]
    assert command.endswith(" --overwrite")
    msl(*shlex.split(command))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    return command


@pytest.fixture
def table(tmp_path) -> Path:
    for number, name in enumerate("abc"):
        (tmp_path / f"{name}.jpg").write_bytes(jpeg(number))
    (tmp_path / "classes.txt").write_text("zebra\ndog\ncat\n")
    path = tmp_path / "l.csv"
    path.write_text("path,tags,split\na.jpg,'cat',train\nb.jpg,'dog',train\nc.jpg,'dog',test\n".replace("'", ""))
    return path


def test_the_advice_of_verify_rebuilds_a_table(table, tmp_path, monkeypatch):
    make_voc(tmp_path / "datasets", 3)
    monkeypatch.setenv("MSL_DATA", str(tmp_path / "datasets"))
    monkeypatch.chdir(tmp_path)
    options = ["--classes", "classes.txt", "--labels-column", "tags", "--resize", "fit=20", "--samples-per-shard", 1]
    msl("build-shards", "l.csv", "--out", "o", "--name", "mine", "--separator", "none", *options)
    monkeypatch.chdir("/")  # it holds from anywhere
    command = repaired(tmp_path / "o" / "mine" / "train")
    assert f"build-shards {table} --dataset table --classes {tmp_path}/classes.txt " in command
    assert "--split train" in command and "--split test" not in command
    assert read_manifest(LocalStorage(tmp_path / "o/mine/train")).classes == ("zebra", "dog", "cat")


def test_the_advice_of_verify_finds_the_images_of_a_coco_file(tmp_path, monkeypatch):
    """Whatever names a place is recorded as it is found from anywhere."""
    image = {"id": 1, "file_name": "a.jpg", "width": 24, "height": 16}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}
    make_coco(tmp_path / "coco", [image], [box], [{"id": 1, "name": "cat"}], split="mine")
    (tmp_path / "coco" / "mine").rename(tmp_path / "photos")
    monkeypatch.chdir(tmp_path / "coco")
    source = "annotations/instances_mine.json"
    msl("build-shards", source, "--name", "mine", "--split", "all", "--images", "../photos", "--out", tmp_path / "o")
    monkeypatch.chdir("/")
    command = shlex.split(repaired(tmp_path / "o" / "mine" / "all"))
    assert str(tmp_path / "coco" / source) in command
    place = Path(command[command.index("--images") + 1])
    assert place.is_absolute() and place.resolve() == tmp_path / "photos"


def test_the_advice_of_verify_rebuilds_what_was_found_in_datasets(tmp_path, monkeypatch):
    make_voc(tmp_path / "datasets", 3)
    monkeypatch.setenv("MSL_DATA", str(tmp_path / "datasets"))
    msl("build-shards", "--split", "test", "--out", tmp_path / "o")
    monkeypatch.setenv("MSL_DATA", str(tmp_path / "nothing"))
    repaired(tmp_path / "o" / "voc2007" / "test")


def test_the_advice_of_verify_keeps_grey_masks_grey(tmp_path):
    msl("build-masks", "--generate", 12, "--size", 32, "--no-binarize", "--per-subset", 3, "--out", tmp_path / "o")
    command = repaired(tmp_path / "o" / "low")
    assert "--no-binarize" in command and "--generate 12" in command


def test_the_advice_of_verify_keeps_the_classes_of_an_index(table, tmp_path):
    import tarfile

    (tmp_path / "s").mkdir()
    with tarfile.open(tmp_path / "s" / "s.tar", "w") as tar:
        for name, label in zip("abc", ("dog", "cat", "dog")):
            (tmp_path / f"{name}.cls").write_text(label)
            for suffix in ("jpg", "cls"):
                tar.add(tmp_path / f"{name}.{suffix}", f"{name}.{suffix}")
    msl("index", tmp_path / "s", "--classes", tmp_path / "classes.txt", "--split", "val")
    command = repaired(tmp_path / "s")
    assert f"--classes {tmp_path}/classes.txt" in command and "--split val" in command


def tars(folder: Path) -> Path:
    """A tar with three samples that another program wrote."""
    import tarfile

    folder.mkdir()
    with tarfile.open(folder / "s.tar", "w") as tar:
        for number, (name, label) in enumerate(zip("abc", ("dog", "cat", "dog"))):
            for suffix, data in (("jpg", jpeg(number)), ("cls", label.encode())):
                member = tarfile.TarInfo(f"{name}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return folder


@pytest.mark.parametrize("name", ["s", "./s/", "link", "../{}/s"])
def test_a_folder_is_the_same_by_whatever_path_it_is_named(tmp_path, monkeypatch, name):
    """The command is recorded with the whole path, and what looks at the dataset later is given another one."""
    tars(tmp_path / "s")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "s")
    name = name.format(tmp_path.name)
    msl("index", "s")
    assert repaired(Path(name)).split() == ["index", str(tmp_path / "s"), "--overwrite"]
    msl("index", "s", "--out", name, "--overwrite")  # beside the tars, not as links to them
    assert not (tmp_path / "s" / "s.tar").is_symlink()
    with pytest.raises(UserError, match="--against names the dataset itself"):
        verify(name, against=tmp_path / "s", num_workers=1)


def test_another_dataset_is_not_replaced_without_yes(table, tmp_path):
    out, folder = tmp_path / "o", tmp_path / "o" / "mine" / "train"
    build = ["build-shards", str(table), "--out", str(out), "--name", "mine", "--split", "train"]
    msl(*build)
    before = (folder / "dataset.json").read_bytes()
    copy = table.with_name("other.csv")
    copy.write_text(table.read_text())
    classes = [*build, "--classes", str(tmp_path / "classes.txt")]
    for words, what in (
        (classes, "classes only in the new one: 'zebra'"),
        ([build[0], str(copy), *build[2:]], f"it was made from {table}, the new one from {copy}"),
    ):
        run = CliRunner().invoke(app, [*words, "--overwrite"])
        message = " ".join(run.output.split())
        assert (
            run.exit_code == 2
            and what in message
            and "choose another --name or --out, or to replace it, run: root build-shards" in message
        ), message
        assert message.endswith("--overwrite --yes")
        assert (folder / "dataset.json").read_bytes() == before
    msl(*classes, "--overwrite", "--yes")
    assert json.loads((folder / "dataset.json").read_bytes())["classes"] == ["zebra", "dog", "cat"]
    msl(*classes, "--overwrite", "--samples-per-shard", 1)  # the same classes and source


def test_options_of_the_last_build_are_named_where_they_are_left_out(tmp_path):
    table = tmp_path / "labels.csv"
    rows = ["image,Zu sehen,label"]
    for n in range(20):
        (tmp_path / f"{n}.jpg").write_bytes(jpeg(n))
        rows.append(f"{n}.jpg,{('Lok', 'Wagen')[n % 2]},{('rain', 'sun')[n % 2]}")
    table.write_text("\n".join(rows))
    build = ["build-shards", str(table), "--out", str(tmp_path / "o"), "--name", "mine", "--split", "all"]
    msl(*build, "--labels-column", "Zu sehen", "--samples-per-shard", 7)
    lacks = "; it was built with --labels-column 'Zu sehen' --samples-per-shard 7, which this command lacks; "
    for more in ((), ("--overwrite",)):
        run = CliRunner().invoke(app, [*build, *more], env={"COLUMNS": "2000"})
        assert run.exit_code == 2 and lacks in " ".join(run.output.split()), run.output
    (tmp_path / "20.jpg").write_bytes(jpeg(20))
    table.write_text("\n".join([*rows, "20.jpg,Lok,sun"]))
    again = CliRunner().invoke(app, [*build, "--labels-column", "Zu sehen", "--samples-per-shard", "7"])
    assert again.exit_code == 2 and "which this command lacks" not in again.output


def test_all_that_is_replaced_is_asked_about_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    for split in ("train", "val"):
        write_images(tmp_path / split, [1])
    folders = [LocalStorage(tmp_path / split) for split in ("train", "val")]
    same = [(folder, read_manifest(folder)) for folder in folders]
    others = [(folder, replace(manifest, classes=("bird", "boat", "dog"))) for folder, manifest in same]
    monkeypatch.setattr(recorded.sys.stdin, "isatty", lambda: True, raising=False)
    asked: list[str] = []
    monkeypatch.setattr(recorded.typer, "confirm", lambda text: asked.append(text) or len(asked) == 1)
    confirm_replacement(same, yes=False)
    confirm_replacement(others, yes=True)
    assert not asked
    confirm_replacement(others, yes=False)
    said = capsys.readouterr().err
    assert asked == ["Replace all of them?"] and all(f"{folder.url} holds" in said for folder in folders)
    with pytest.raises(UserError, match="nothing was changed"):
        confirm_replacement(others[:1], yes=False)
    assert asked[1:] == ["Replace it?"]
