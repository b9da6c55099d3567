"""`msl doctor`: each state of raw datasets and of shards is told from the others, with a command that mends it."""

from __future__ import annotations

import shlex
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from msldata.build.shards import build_shards, plan_build
from msldata.inspect.doctor import PUBLISHED, Check, examine_raw, examine_shards
from msldata.masks.sources import select_mask_source
from msldata.sources.kinds import open_source
from msldata.storage import LocalStorage, open_storage
from msltrain.__main__ import app
from tests.tinydata import build_masks, make_voc


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """``datasets`` with 4 images of VOC2007 test, and ``shards`` with them and with keep masks."""
    root = tmp_path_factory.mktemp("doctor")
    source = open_source("voc2007", make_voc(root / "datasets", 4), "test")
    source.provenance["command"] = shlex.split("build-shards --dataset voc2007 --split test --samples-per-shard 2")
    out = LocalStorage(root / "shards" / "voc2007" / "test")
    build_shards(plan_build(source, samples_per_shard=2), out, num_workers=1)
    masks = select_mask_source(root, None, generate=12, size=64, seed=0)
    build_masks(masks, LocalStorage(root / "shards" / "masks"), per_subset=6, num_workers=1)
    return root


@pytest.fixture
def place(built, tmp_path) -> Path:
    return shutil.copytree(built, tmp_path / "place")


def examine(place: Path) -> dict[str, Check]:
    shards = LocalStorage(place / "shards")
    raw = examine_raw(place / "datasets", shards)
    return {check.name: check for check in [*raw, *examine_shards(shards, raw)]}


def test_nothing_there(tmp_path):
    checks = examine(tmp_path)
    assert {check.state for check in checks.values()} == {"missing"}
    assert [checks[f"{dataset} {split}"].published for dataset, split in PUBLISHED] == [5011, 4952, 82081, 40137]
    assert checks["irregular masks"].published == 12000
    assert "msl build-masks --generate" in checks["masks/high"].next_command
    assert checks["voc2007 test"].next_command == f"msl download voc2007 --split test --to {tmp_path / 'datasets'}"
    assert checks["coco2014 train"].next_command.startswith("msl download coco2014 --split train")
    assert checks["voc2007/test"].problem == "first needs voc2007 test, above"
    assert "msl build-masks --generate" in checks["irregular masks"].next_command


def test_partial_raw_data_and_its_shards(place):
    checks = examine(place)
    raw, built = checks["voc2007 test"], checks["voc2007/test"]
    assert (raw.state, raw.num_samples, raw.published, raw.problem) == ("partial", 4, 4952, "")
    assert raw.next_command == f"msl build-shards --dataset voc2007 --split test --out {place / 'shards'}"
    assert (built.state, built.num_samples) == ("partial", 4)
    assert built.next_command == f"msl verify {place / 'shards' / 'voc2007' / 'test'}"
    assert checks["voc2007 trainval"].state == "missing"
    assert checks["masks/high"].state == "found" and checks["masks/high"].num_samples


def test_masks_are_shown_with_their_whole_path(place):
    archive = place / "datasets" / "irregular_mask.zip"
    with zipfile.ZipFile(archive, "w") as masks:
        masks.writestr("a.png", b"")
    check = examine(place)["irregular masks"]
    assert (check.state, check.num_samples, check.where) == ("partial", 1, str(archive))


def test_as_many_as_published_is_complete(place, monkeypatch):
    monkeypatch.setattr("msldata.inspect.doctor.PUBLISHED", {**PUBLISHED, ("voc2007", "test"): 4})
    checks = examine(place)
    assert checks["voc2007 test"].state == checks["voc2007/test"].state == "complete"


def test_missing_image_and_broken_annotation(place):
    folder = place / "datasets" / "VOCdevkit" / "VOC2007"
    (folder / "JPEGImages" / "000003.jpg").unlink()
    check = examine(place)["voc2007 test"]
    assert check.state == "damaged" and check.problem.startswith("1 of 4 images are missing")
    assert "000003.jpg" in check.problem and check.next_command.endswith("--on-error skip")
    (folder / "Annotations" / "000002.xml").write_text("<annotation>")
    check = examine(place)["voc2007 test"]
    assert check.state == "damaged" and "000002.xml" in check.problem


@pytest.mark.parametrize("name", ["voc2007-test-000001.tar", "voc2007-test-000000.parquet"])
def test_missing_shard_file(place, name):
    (place / "shards" / "voc2007" / "test" / name).unlink()
    check = examine(place)["voc2007/test"]
    assert check.state == "damaged" and name.partition(".")[0] in check.problem
    assert check.next_command.startswith("msl build-shards --dataset voc2007 --split test --samples-per-shard 2 --out")


def test_cut_shard_and_edited_manifest(place):
    shard = place / "shards" / "voc2007" / "test" / "voc2007-test-000001.tar"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert examine(place)["voc2007/test"].state == "damaged"
    (shard.parent / "dataset.json").write_text("{}")
    check = examine(place)["voc2007/test"]
    assert check.state == "damaged" and "not a manifest" in check.problem and "--overwrite" not in check.next_command


def test_unfinished_build(place):
    (place / "shards" / "voc2007" / "test" / "dataset.json").unlink()
    check = examine(place)["voc2007/test"]
    assert check.state == "unfinished" and check.next_command.startswith("msl build-shards")


def test_the_commands_it_names_mend_it(place, monkeypatch):
    monkeypatch.setenv("MSL_DATA", str(place / "datasets"))
    (place / "shards" / "voc2007" / "test" / "voc2007-test-000001.tar").unlink()
    for state in ("damaged", "partial"):
        check = examine(place)["voc2007/test"]
        assert check.state == state
        run = CliRunner().invoke(app, shlex.split(check.next_command)[1:])
        assert run.exit_code == 0, run.output


def test_a_build_that_mended_a_dataset_does_not_say_that_it_stayed_as_it_is(place, monkeypatch):
    monkeypatch.setenv("MSL_DATA", str(place / "datasets"))
    shard = place / "shards" / "voc2007" / "test" / "voc2007-test-000001.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    command = shlex.split(examine(place)["voc2007/test"].next_command)[1:]
    mended, again = (CliRunner().invoke(app, command).output for _ in range(2))
    assert shard.read_bytes() == whole
    assert "it stays as it is" not in mended and "it stays as it is" in again


def test_a_damaged_dataset_built_in_python_says_that_no_command_is_recorded(place):
    """The raw data beside it lead to a command as well, but to one that nobody used for this dataset."""
    folder = place / "shards" / "voc2007" / "test"
    shutil.rmtree(folder)
    source = open_source("voc2007", place / "datasets" / "VOCdevkit" / "VOC2007", "test")
    build_shards(plan_build(source, samples_per_shard=2), LocalStorage(folder), num_workers=1)
    (folder / "voc2007-test-000001.tar").unlink()
    check = examine(place)["voc2007/test"]
    assert check.state == "damaged" and "how it was built is not recorded" in check.problem
    assert not check.next_command


def test_own_datasets_are_found_too(place):
    source = open_source("voc2007", place / "datasets" / "VOCdevkit" / "VOC2007", "test", "mine")
    build_shards(plan_build(source), LocalStorage(place / "shards" / "mine" / "test"), num_workers=1)
    check = examine(place)["mine/test"]
    assert (check.state, check.num_samples, check.published) == ("found", 4, None)


def test_remote_shards(built, s3):
    shards = open_storage("s3://bucket/doctor")
    for path in (built / "shards").rglob("*.*"):
        shards.put(path.relative_to(built / "shards").as_posix(), path.read_bytes())
    raw = examine_raw(built / "datasets", shards)
    checks = {check.name: check for check in examine_shards(shards, raw)}
    assert (checks["voc2007/test"].state, checks["masks/low"].state) == ("partial", "found")
    assert checks["voc2007/test"].next_command == "msl verify s3://bucket/doctor/voc2007/test"
    assert {check.name: check for check in raw}["voc2007 test"].next_command.endswith("--out s3://bucket/doctor")


def test_command(place, monkeypatch):
    monkeypatch.setenv("MSL_DATA", str(place / "datasets"))
    run = CliRunner().invoke(app, ["doctor", "--shards", str(place / "shards")])
    assert run.exit_code == 0
    assert "4 of 4,952" in run.output and "none of 82,081" in run.output
    assert "msl build-shards --dataset voc2007 --split test" in run.output


@pytest.mark.real
def test_real_sample(sample, tmp_path):
    checks = {check.name: check for check in examine_raw(sample, LocalStorage(tmp_path))}
    counts = {name: (check.state, check.num_samples) for name, check in checks.items()}
    assert counts == {
        "voc2007 trainval": ("partial", 430),
        "voc2007 test": ("partial", 390),
        "coco2014 train": ("partial", 136),
        "coco2014 val": ("partial", 140),
        "irregular masks": ("partial", 400),
    }


def test_own_datasets_come_first(place, monkeypatch):
    shutil.copytree(place / "shards" / "voc2007" / "test", place / "shards" / "mine" / "train")
    monkeypatch.setenv("MSL_DATA", str(place / "datasets"))
    lines = CliRunner().invoke(app, ["doctor", "--shards", str(place / "shards")]).stdout.splitlines()
    assert lines[0] == f"your own datasets in {place / 'shards'}" and lines[1].split()[:2] == ["found", "mine/train"]
    titles = [line for line in lines if not line.startswith(" ")]
    assert titles[1].startswith("raw datasets in ") and titles[2].startswith("shards of published datasets in ")
    assert not any("mine" in line for line in lines[lines.index(titles[1]) :])
    assert not any(line.startswith("  missing") for line in lines)
    shutil.rmtree(place / "datasets")
    shutil.rmtree(place / "shards" / "voc2007")
    shutil.rmtree(place / "shards" / "masks", ignore_errors=True)
    lines = CliRunner().invoke(app, ["doctor", "--shards", str(place / "shards")]).stdout.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [f"your own datasets in {place / 'shards'}"]


def test_splits_that_a_failed_build_did_not_come_to_are_named_with_what_builds_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = ["image,labels,split"]
    for number in range(6):
        image = Image.fromarray(np.random.default_rng(number).integers(0, 255, (32, 40, 3), dtype=np.uint8))
        image.save(f"{number}.jpg", quality=95)
        rows.append(f"{number}.jpg,{'cat' if number % 2 else 'dog'},{('train', 'val', 'test')[number // 2]}")
    Path("labels.csv").write_text("\n".join(rows))
    whole = Path("2.jpg").read_bytes()
    Path("2.jpg").write_bytes(whole[: len(whole) // 2])
    failed = CliRunner().invoke(app, ["build-shards", "labels.csv", "--name", "mine"], env={"COLUMNS": "200"})
    assert failed.exit_code == 2
    said = " ".join(failed.output.split())
    assert "written: shards/mine/train; not written: shards/mine/val, shards/mine/test" in said

    def mine() -> dict[str, Check]:
        return {check.name: check for check in examine_shards("shards", []) if check.name.startswith("mine/")}

    assert {name: check.state for name, check in mine().items()} == {
        "mine/train": "found",
        "mine/val": "unfinished",
        "mine/test": "unfinished",
    }
    Path("2.jpg").write_bytes(whole)
    for check in mine().values():
        if check.state == "unfinished":
            assert CliRunner().invoke(app, shlex.split(check.next_command)[1:]).exit_code == 0, check.next_command
    assert {check.state for check in mine().values()} == {"found"} and len(mine()) == 3
    assert [mine()[f"mine/{split}"].num_samples for split in ("train", "val", "test")] == [2, 2, 2]
