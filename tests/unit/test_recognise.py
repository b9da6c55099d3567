"""What a folder or a file is taken for when nobody said what it is."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from msldata.errors import UserError
from msldata.sources.kinds import recognise, select_sources
from msltrain.__main__ import app
from tests.tinydata import make_coco, make_voc

IMAGES = [{"id": 1, "file_name": "a.jpg", "width": 8, "height": 8}]
BOXES = [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [0, 0, 4, 4]}]
CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}]


def test_published_layouts_are_seen(tmp_path):
    make_voc(tmp_path / "raw", 3)
    voc = next((tmp_path / "raw").rglob("ImageSets")).parent
    for place in (voc, voc.parent):
        dataset, sentence = recognise(place)
        assert dataset == "voc2007" and "VOC2007 layout" in sentence and "20 classes" in sentence
    (found,) = select_sources(tmp_path, source=voc)
    assert found.dataset == "voc2007" and found.taken_for.startswith(f"{voc}: VOC2007 layout, ")
    renamed = voc.rename(voc.parent / "mine")
    dataset, sentence = recognise(renamed)
    assert dataset == "voc2007" and "or VOC2012 layout" in sentence and sentence.endswith("--dataset voc2012")


def test_coco_is_seen_with_its_classes(tmp_path):
    make_coco(tmp_path / "coco", IMAGES, BOXES, CATEGORIES)
    dataset, sentence = recognise(tmp_path / "coco")
    assert dataset == "coco2014" and sentence.endswith("COCO-2014, 1 split (train), 2 classes")
    annotations = tmp_path / "coco" / "annotations"
    one = annotations / "instances_train2014.json"
    assert recognise(one) == ("coco", f"{one}: one COCO file, 1 split (all), 2 classes")
    one.rename(annotations / "instances_mine.json")
    (tmp_path / "coco" / "train2014").rename(tmp_path / "coco" / "mine")
    assert recognise(tmp_path / "coco")[1].endswith("COCO layout, 1 split (mine), 2 classes")


def test_a_doubt_or_nothing_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        recognise(tmp_path / "nothing")
    with pytest.raises(UserError, match="not taken for any kind of dataset; known are\n  voc2007 "):
        recognise(tmp_path)
    (tmp_path / "train.csv").write_text("image,labels\n")
    with pytest.raises(UserError, match=r"if train\.csv says what the .* run: msl build-shards \S+/train\.csv --name "):
        recognise(tmp_path)
    (tmp_path / "val.csv").write_text("image,labels\n")
    with pytest.raises(UserError, match=r"if one of its tables is meant, name it: train\.csv, val\.csv"):
        recognise(tmp_path)
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(UserError, match="it holds tars: msl index "):
        recognise(tmp_path)
    make_voc(tmp_path, 3)
    make_coco(tmp_path / "coco", IMAGES, BOXES, CATEGORIES)
    with pytest.raises(UserError, match=r"(?s)say which\n  --dataset voc2007 .*\n  --dataset coco2014 "):
        recognise(tmp_path)


def test_the_command_takes_a_source_alone(tmp_path):
    make_voc(tmp_path, 3)
    run = CliRunner().invoke(app, ["build-shards", str(tmp_path / "VOCdevkit"), "--split", "test", "--dry-run"])
    assert run.exit_code == 0 and "VOCdevkit: VOC2007 layout, " in run.output, run.output
    run = CliRunner().invoke(app, ["build-shards", str(tmp_path), "--source", str(tmp_path)])
    assert run.exit_code == 2 and "the source is named twice" in run.output
