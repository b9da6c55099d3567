"""The formats that Datumaro reads for us, and its reading of the formats that we read ourselves, held against ours.

Datumaro wants older packages than constraints.txt names: `test_in_an_environment_of_its_own` installs it with those in
a folder, and runs all other tests of this file there.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from msldata.contract.records import Record
from msldata.sources.kinds import open_source, select_sources
from msldata.sources.source import SourceOptions
from msltrain.__main__ import app
from tests.conftest import REPOSITORY
from tests.golden.test_formats import AB, images, read, write


@pytest.fixture
def datumaro():
    return pytest.importorskip("datumaro", reason="the extra formats is not installed")


CVAT = """<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version><meta><task><labels>
<label><name>cat</name><attributes></attributes></label><label><name>dog</name><attributes></attributes></label>
</labels></task></meta>
<image id="0" name="a.jpg" width="24" height="16">
<box label="dog" occluded="1" xtl="1.0" ytl="2.0" xbr="9.0" ybr="8.0" z_order="0"></box>
<tag label="cat" source="manual"></tag></image>
<image id="1" name="b.jpg" width="24" height="16">
<polygon label="cat" occluded="0" points="1,1;9,1;9,9"></polygon></image>
</annotations>"""


def test_cvat_xml_through_datumaro(tmp_path, datumaro):
    images(tmp_path / "images", *AB)
    write(tmp_path / "annotations.xml", CVAT)
    (found,) = select_sources(tmp_path, dataset="datumaro", source=tmp_path)  # we have a reader of our own
    (split,) = found.splits
    source = open_source("datumaro", tmp_path, split)
    records = list(source.records())
    assert {Path(one.image).name: source.labels.names(one.positives) for one in records} == AB
    first = records[0]
    assert [(item.box, item.occluded) for item in first.objects] == [((1.0, 2.0, 8.0, 6.0), True)]


def test_create_ml_through_datumaro(tmp_path, datumaro):
    images(tmp_path / "train", *AB)
    box = {"x": 10, "y": 8, "width": 6, "height": 4}
    rows = [
        {"image": name, "annotations": [{"label": label, "coordinates": box} for label in labels]}
        for name, labels in AB.items()
    ]
    write(tmp_path / "train" / "_annotations.createml.json", rows)
    assert read(tmp_path, dataset="datumaro") == {"train": {f"train/{name}": labels for name, labels in AB.items()}}


NAMES = {"a": ["cat", "dog"], "b": ["cat"], "c.d": ["dog", "dog"], "e": []}
BOX = (2, 3, 7, 5)
"""x, y, width, height of every object, in pixels from 0."""


def arrange(root: Path, kind: str) -> tuple[str, str]:
    """A dataset in a layout that both read; Datumaro's name for the format, and the split."""
    classes = ["cat", "dog"]
    if kind == "coco":
        images(root / "images/train", *(f"{name}.jpg" for name in NAMES))
        pairs = [(image, classes.index(name)) for image, names in enumerate(NAMES.values()) for name in names]
        common = {"area": 35, "iscrowd": 0, "bbox": list(BOX), "segmentation": []}
        content = {
            "images": [
                {"id": 7 + n, "file_name": f"{name}.jpg", "width": 24, "height": 16} for n, name in enumerate(NAMES)
            ],
            "annotations": [
                {"id": n, "image_id": 7 + image, "category_id": 3 + 5 * number, **common}
                for n, (image, number) in enumerate(pairs, start=1)
            ],
            "categories": [{"id": 3 + 5 * n, "name": name} for n, name in enumerate(classes)],
        }
        write(root / "annotations/instances_train.json", content)
        return "coco_instances", "train"
    if kind == "voc":
        images(root / "JPEGImages", *(f"{name}.jpg" for name in NAMES))
        corners = dict(zip(("xmin", "ymin", "xmax", "ymax"), (3, 4, 9, 8), strict=True))
        box = "".join(f"<{tag}>{value}</{tag}>" for tag, value in corners.items())
        for name, found in NAMES.items():
            objects = "".join(
                f"<object><name>{one}</name><difficult>0</difficult><bndbox>{box}</bndbox></object>" for one in found
            )
            size = "<size><width>24</width><height>16</height><depth>3</depth></size>"
            about = f"<annotation><filename>{name}.jpg</filename>{size}{objects}</annotation>"
            write(root / f"Annotations/{name}.xml", about)
        write(root / "ImageSets/Main/train.txt", "".join(f"{name}\n" for name in NAMES))
        return "voc_detection", "train"
    images(root / "obj_train_data", *(f"{name}.jpg" for name in NAMES))
    x, y, width, height = BOX
    shares = f"{(x + width / 2) / 24} {(y + height / 2) / 16} {width / 24} {height / 16}"
    for name, found in NAMES.items():
        lines = "".join(f"{classes.index(one)} {shares}\n" for one in found)
        write(root / f"obj_train_data/{name}.txt", lines)
    write(root / "obj.names", "cat\ndog\n")
    write(root / "obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    write(root / "train.txt", "".join(f"data/obj_train_data/{name}.jpg\n" for name in NAMES))
    return "yolo", "train"


@pytest.mark.parametrize("kind", ["coco", "voc", "yolo"])
def test_datumaro_and_our_own_readers_agree(tmp_path, datumaro, kind):
    format_name, split = arrange(tmp_path, kind)
    theirs = open_source("datumaro", tmp_path, split, options=SourceOptions(format=format_name))
    ours = open_source(kind, tmp_path, split, options=SourceOptions(keep_unlabelled=True))

    def told(source, record: Record) -> tuple[list[str], list[str]]:
        return source.labels.names(record.positives), sorted(source.labels.classes[item[0]] for item in record.objects)

    left = {Path(record.image).stem: told(theirs, record) for record in theirs.records()}
    right = {Path(record.image).stem: told(ours, record) for record in ours.records()}
    assert left == right == {name: (sorted(set(found)), sorted(found)) for name, found in NAMES.items()}
    boxes = [[item.box for record in source.records() for item in record.objects] for source in (theirs, ours)]
    slack = 1 if kind == "voc" else 0.01  # Datumaro keeps VOC's corners as they stand, which count from 1
    wide, high = (24, 16) if kind == "yolo" else (1, 1)
    for box, (x, y, width, height) in zip(*boxes, strict=True):
        assert box == pytest.approx((x * wide, y * high, width * wide, height * high), abs=slack)
        assert box == pytest.approx(BOX, abs=slack)


def test_datumaro_is_named_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("msldata.sources.datumaro_formats.is_installed", lambda: False)
    run = CliRunner().invoke(app, ["build-shards", str(tmp_path), "--dataset", "datumaro"])
    assert run.exit_code == 2 and "pip install 'msltrain[formats]'" in run.output
    run = CliRunner().invoke(app, ["build-shards", str(tmp_path)])
    assert run.exit_code == 2 and "any format that Datumaro reads" in run.output


@pytest.mark.slow
def test_in_an_environment_of_its_own(tmp_path):
    """What `pip install 'msltrain[formats]'` brings, before what is installed here."""
    place = tmp_path / "formats"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", str(place)]
    installed = subprocess.run([*pip, "datumaro>=1.13", "protobuf>=5"], capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"Datumaro cannot be installed here: {installed.stderr[-300:]}")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(place), str(REPOSITORY)))}
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", __file__]
    run = subprocess.run(tests, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert run.returncode == 0 and "skipped" not in run.stdout, run.stdout + run.stderr
