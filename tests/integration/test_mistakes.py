"""What a user gets for a mistake or a bad file: one clear message, exit code 2, and nothing that looks finished."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from msldata.contract.manifest import MANIFEST_NAME

pytestmark = pytest.mark.usefixtures("ready_python")

REPOSITORY = Path(__file__).resolve().parents[2]
XML = (
    "<annotation><size><width>64</width><height>48</height><depth>3</depth></size><object><name>{name}</name>"
    "<difficult>0</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"
)


def msl(
    *arguments: object, folder: Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "cli.py"), *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "COLUMNS": "200", "MSL_DATA": str(folder / "datasets"), **(environment or {})},
        capture_output=True,
        text=True,
        timeout=120,
    )


def assert_refused(result: subprocess.CompletedProcess[str], folder: Path, *words: str) -> None:
    message = " ".join(result.stderr.split())
    assert result.returncode == 2, f"exit code {result.returncode}: {result.stdout}{result.stderr}"
    assert "Traceback" not in result.stderr
    assert "error:" in message.lower()
    for word in words:
        assert word in message, f"{word!r} is not in: {message}"
    assert not list(folder.rglob(MANIFEST_NAME)), "a refused command left something that looks complete"


@pytest.fixture
def voc(tmp_path) -> Path:
    """Four images in VOC's layout, at datasets/VOCdevkit/VOC2007."""
    root = tmp_path / "datasets" / "VOCdevkit" / "VOC2007"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    for number in range(4):
        Image.effect_noise((64, 48), 90).convert("RGB").save(root / "JPEGImages" / f"00000{number}.jpg", quality=90)
        (root / "Annotations" / f"00000{number}.xml").write_text(XML.format(name="cat"))
    for split, ids in {"train": "000000\n000001\n", "val": "000002\n", "test": "000003\n"}.items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(ids)
    return root


def test_the_healthy_dataset_builds(voc, tmp_path):
    result = msl("build-shards", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr == "next: msl doctor\n"  # a log gets no bar, and no empty lines in its place
    manifests = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob(MANIFEST_NAME))
    assert manifests == ["shards/voc2007/test/dataset.json", "shards/voc2007/trainval/dataset.json"]


def test_a_published_dataset_with_a_name_of_ones_own_leads_to_training(voc, tmp_path):
    words = ("build-shards", "datasets/VOCdevkit/VOC2007", "--name", "mine")
    result = msl(*words, folder=tmp_path)
    assert result.returncode == 0 and "next:" not in result.stderr and "4 photographs: too few" in result.stdout
    for number in range(4, 24):
        shutil.copy(voc / "JPEGImages/000000.jpg", voc / f"JPEGImages/{number:06d}.jpg")
        (voc / "Annotations" / f"{number:06d}.xml").write_text(XML.format(name="cat"))
    names = "".join(f"{number:06d}\n" for number in (0, 1, *range(4, 24)))
    (voc / "ImageSets/Main/train.txt").write_text(names)
    assert msl(*words, "--overwrite", "--yes", folder=tmp_path).stderr.endswith("next: msl train mine\n")


def test_nothing_found_says_where_it_looked_and_three_ways_on(tmp_path):
    result = msl("build-shards", folder=tmp_path)
    assert_refused(
        result, tmp_path, "datasets/VOCdevkit/VOC2007", "datasets/coco", "point at it", "download", "synthetic"
    )


def test_wrong_path(tmp_path):
    result = msl("build-shards", "--dataset", "voc2007", "--source", "nowhere", folder=tmp_path)
    assert_refused(result, tmp_path, "nowhere", "JPEGImages")


def test_empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    result = msl("build-shards", "--dataset", "coco2014", "--source", "empty", folder=tmp_path)
    assert_refused(result, tmp_path, "empty", "instances_train2014.json")


def test_source_without_dataset(tmp_path):
    (tmp_path / "x").mkdir()
    words = ("x: not taken for any kind of dataset", "voc2007", "--dataset")
    assert_refused(msl("build-shards", "--source", "x", folder=tmp_path), tmp_path, *words)


def test_unknown_split(voc, tmp_path):
    result = msl("build-shards", "--split", "dev", folder=tmp_path)
    assert_refused(result, tmp_path, "no split 'dev'", "trainval")


def test_unknown_dataset(tmp_path):
    result = msl("build-shards", "--dataset", "imagenet", folder=tmp_path)
    assert_refused(
        result,
        tmp_path,
        "unknown dataset 'imagenet'; known are: voc2007, voc2012, coco2014, voc, ",
    )


def test_a_table_with_a_bad_line(voc, tmp_path):
    table, classes = voc / "labels.csv", voc / "names.txt"
    classes.write_text("cat\n")
    table.write_text("image,labels\nJPEGImages/000001.jpg,cat\nJPEGImages/000002.jpg,cot\n")
    command = ("build-shards", "--dataset", "table", "--source", table, "--name", "mine")
    result = msl(*command, "--classes", classes, folder=tmp_path)
    assert_refused(result, tmp_path, "labels.csv", "line 3", "'cot'", "names.txt")
    built = msl(*command, folder=tmp_path)
    assert built.returncode == 0 and "shards/mine/all: 2 samples" in built.stdout, built.stderr


def test_resize(voc, tmp_path):
    assert_refused(msl("build-shards", "--resize", "448", folder=tmp_path), tmp_path, "shorter=N or fit=N")
    built = msl("build-shards", "--split", "test", "--resize", "fit=32", "--quality", "70", folder=tmp_path)
    assert built.returncode == 0, built.stderr
    manifest = json.loads((tmp_path / "shards" / "voc2007" / "test" / MANIFEST_NAME).read_text())
    assert (manifest["options"]["resize"], manifest["options"]["resize_quality"]) == ("fit=32", 70)


def test_truncated_jpeg(voc, tmp_path):
    image = voc / "JPEGImages" / "000001.jpg"
    image.write_bytes(image.read_bytes()[:-400])
    result = msl("build-shards", "--split", "trainval", folder=tmp_path)
    assert_refused(result, tmp_path, "000001.jpg", "truncated", "--on-error skip")
    skipped = msl("build-shards", "--split", "trainval", "--on-error", "skip", folder=tmp_path)
    assert skipped.returncode == 0 and "1 quarantined" in skipped.stdout
    ledger = tmp_path / "shards" / "voc2007" / "trainval" / "quarantine.jsonl"
    assert "000001.jpg" in ledger.read_text()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("<annotation><object>", "not valid XML"),
        (XML.format(name="unicorn"), "unknown class 'unicorn'"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><annotation/>', "document type declarations"),
    ],
)
def test_broken_xml(voc, tmp_path, content, reason):
    (voc / "Annotations" / "000003.xml").write_text(content)
    result = msl("build-shards", "--split", "test", folder=tmp_path)
    assert_refused(result, tmp_path, "000003.xml", reason)


def test_missing_image(voc, tmp_path):
    (voc / "JPEGImages" / "000003.jpg").unlink()
    assert_refused(msl("build-shards", "--split", "test", folder=tmp_path), tmp_path, "000003.jpg", "missing")


def test_another_plan_is_refused_and_overwrite_starts_over(voc, tmp_path):
    assert msl("build-shards", "--split", "trainval", folder=tmp_path).returncode == 0
    result = msl("build-shards", "--split", "trainval", "--samples-per-shard", "2", folder=tmp_path)
    assert result.returncode == 2 and "--overwrite" in result.stderr
    again = msl("build-shards", "--split", "trainval", "--samples-per-shard", "2", "--overwrite", folder=tmp_path)
    assert again.returncode == 0 and "2 shards" in again.stdout


def test_full_disk(voc, tmp_path):
    # A file-size limit stops the write in the middle, as a full disk does, without needing one.
    limit = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000)); "
        "from msltrain.__main__ import main; main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", limit, "build-shards", "--split", "trainval", "--workers", "1"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "MSL_DATA": str(tmp_path / "datasets"), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert_refused(result, tmp_path, "voc2007-trainval-000000.tar")
    assert not list(tmp_path.rglob("*.part"))


def test_no_masks_found(tmp_path):
    result = msl("build-masks", "--threshold", "0.5", folder=tmp_path)
    assert_refused(result, tmp_path, "datasets/irregular_mask", "--generate")


def test_empty_mask_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    assert_refused(msl("build-masks", "--source", "empty", folder=tmp_path), tmp_path, "empty")


def test_a_mask_that_is_no_image(tmp_path):
    folder = tmp_path / "masks"
    folder.mkdir()
    Image.new("L", (64, 64), 0).save(folder / "a.png")
    (folder / "b.png").write_bytes(b"no image at all")
    result = msl("build-masks", "--source", "masks", "--polarity", "hole-white", folder=tmp_path)
    assert_refused(result, tmp_path, "b.png", "not an image")


def test_a_zip_that_climbs_out(tmp_path):
    with zipfile.ZipFile(tmp_path / "masks.zip", "w") as archive:
        archive.writestr("../evil.png", b"x")
    assert_refused(msl("build-masks", "--source", "masks.zip", folder=tmp_path), tmp_path, "../evil.png")


def test_unsure_polarity_is_refused(tmp_path):
    folder = tmp_path / "masks"
    folder.mkdir()
    half = Image.new("L", (64, 64), 0)
    half.paste(255, (0, 0, 32, 64))
    for number in range(30):
        half.save(folder / f"{number}.png")
    result = msl("build-masks", "--source", "masks", folder=tmp_path)
    assert_refused(result, tmp_path, "--polarity")


@pytest.mark.parametrize("threshold", ["0", "1.5", "-1"])
def test_threshold_out_of_range(tmp_path, threshold):
    result = msl("build-masks", "--generate", "4", f"--threshold={threshold}", folder=tmp_path)
    assert_refused(result, tmp_path, "threshold")


def test_missing_bucket(voc, tmp_path, s3):
    result = msl(
        "build-shards", "--split", "test", "--out", "s3://absent/shards", folder=tmp_path, environment=s3.environment
    )
    assert_refused(result, tmp_path, "s3://absent", "no such bucket")


def test_no_cluster_of_processes_is_left_by_a_mistake(voc, tmp_path):
    shutil.rmtree(voc / "JPEGImages")
    assert_refused(msl("build-shards", "--workers", "2", folder=tmp_path), tmp_path, "JPEGImages")


@pytest.fixture
def shards(voc, tmp_path) -> Path:
    """The four images as shards; the manifests are taken for granted by ``assert_refused``, so they lie elsewhere."""
    out = tmp_path.parent / f"{tmp_path.name}-shards"
    assert msl("build-shards", "--out", out, folder=tmp_path).returncode == 0
    return out


def test_unknown_recipe(tmp_path):
    said = msl("train", "--recipe", "msl-c-voc", folder=tmp_path)
    assert_refused(said, tmp_path, "no recipe 'msl-c-voc'", "did you mean msl-c-voc2007?")


def test_unknown_setting(shards, tmp_path):
    result = msl("train", "--recipe", "smoke", "--set", "optim.rate=1", folder=tmp_path)
    assert_refused(result, tmp_path, "optim.rate", "lr")


def test_training_shards_that_are_not_there(tmp_path):
    result = msl("train", "--recipe", "smoke", "--data", "nowhere", "--run", "run", folder=tmp_path)
    assert_refused(result, tmp_path, "nowhere: no finished dataset here", "msl build-shards")
    assert not (tmp_path / "run").exists()


def test_the_folder_above_the_split_is_pointed_down(shards, tmp_path):
    result = msl("train", "--recipe", "smoke", "--data", shards / "voc2007", folder=tmp_path)
    assert_refused(result, tmp_path, "did you mean", "voc2007/trainval")


def test_images_given_as_keep_masks(shards, tmp_path):
    trainval = shards / "voc2007" / "trainval"
    result = msl(
        *("train", "--recipe", "smoke", "--data", trainval, "--keep-masks", trainval),
        *("--set", "data.validation_fraction=0", "--set", "stream.batch_size=2"),
        folder=tmp_path,
    )
    assert_refused(result, tmp_path, "holds images, not keep masks", str(trainval))


def test_missing_checkpoint(shards, tmp_path):
    result = msl("evaluate", "--checkpoint", "nowhere", "--data", shards / "voc2007" / "test", folder=tmp_path)
    assert_refused(result, tmp_path, "nowhere")


def test_a_gpu_that_is_not_there(shards, tmp_path):
    command = ("train", "--recipe", "smoke", "--data", shards / "voc2007" / "test", "--set", "keep_mask.kind=box")
    result = msl(*command, "--set", "run.device=cuda", folder=tmp_path, environment={"CUDA_VISIBLE_DEVICES": ""})
    assert_refused(result, tmp_path, "needs a GPU", "--device cpu")


def test_evaluate_without_anything(tmp_path):
    assert_refused(
        msl("evaluate", folder=tmp_path),
        tmp_path,
        "msl evaluate RUN with --data SHARDS or --held-out",
        "--predictions FILE",
    )


def test_a_file_that_is_no_predictions(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"nothing")
    assert_refused(msl("evaluate", "--predictions", "x.parquet", folder=tmp_path), tmp_path, "x.parquet")
