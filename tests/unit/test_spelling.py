"""File names with accents, stored as macOS does in a list or on the disk, and otherwise on the other side."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest

from msldata.build.plan import plan_build
from msldata.contract.records import Record
from msldata.errors import UserError
from msldata.sources.kinds import open_source
from msldata.sources.source import SourceOptions
from msldata.sources.spelling import as_stored, composed
from msldata.sources.wider import ATTRIBUTES
from msldata.storage import LocalStorage
from tests.tinydata import jpeg, voc_object, voc_xml

FORMS = [("NFC", "NFD"), ("NFD", "NFC")]
NAMES = ("Käse", "Größe", "Café", "plain")


def inform(form: str, text: str) -> str:
    return unicodedata.normalize(form, text)


def photographs(folder: Path, form: str, names: tuple[str, ...] = NAMES) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        (folder / inform(form, f"{name}.jpg")).write_bytes(jpeg(number))


def found(dataset: str, place: Path, split: str = "all", options: SourceOptions | None = None) -> list[Record]:
    """The records, all of whose images are there."""
    source = open_source(dataset, place, split, options=options or SourceOptions())
    records = list(source.records())
    assert not [record.image for record in records if not source.images.exists(record.image)]
    assert all("missing" not in note and "on no line" not in note for note in getattr(source, "notes", ()))
    assert not plan_build(open_source(dataset, place, split, options=options or SourceOptions())).shards[0].missing
    return records


@pytest.mark.parametrize(("on_disk", "listed"), FORMS)
@pytest.mark.parametrize("below", ["", "Fotos/", "Bücher/"])
@pytest.mark.parametrize("said", ["the whole path", "the name alone", "a path from the root"])
def test_a_table(tmp_path, on_disk, listed, below, said):
    photographs(tmp_path / inform(on_disk, below), on_disk)
    start = {"the whole path": below, "the name alone": "", "a path from the root": f"{tmp_path}/{below}"}[said]
    # So many with names in ASCII come first that the others are not looked at one by one.
    many = tuple(f"p{number:03}" for number in range(40))
    photographs(tmp_path / inform(on_disk, below), on_disk, many)
    lines = [inform(listed, f"{start}{name}.jpg,cat") for name in (*many, *NAMES)]
    (tmp_path / "labels.csv").write_text("\n".join(["image,labels", *lines]), encoding="utf-8")
    records = found("table", tmp_path / "labels.csv")
    assert [record.image.rpartition("/")[2] for record in records[40:]] == [
        inform(on_disk, f"{name}.jpg") for name in NAMES
    ]


@pytest.mark.parametrize(("on_disk", "listed"), FORMS)
def test_a_json_of_images_and_labels(tmp_path, on_disk, listed):
    photographs(tmp_path / "data", on_disk)
    labels = {inform(listed, f"{name}.jpg"): ["cat"] for name in NAMES}
    (tmp_path / "labels.json").write_text(json.dumps(labels), encoding="utf-8")
    assert len(found("table", tmp_path / "labels.json")) == len(NAMES)


def test_one_photograph_in_both_forms_is_listed_twice(tmp_path):
    for below in ("", "Fotos"):
        photographs(tmp_path / below, "NFD", ("Käse",))
        lines = [inform(form, "Käse.jpg,cat") for form in ("NFC", "NFD")]
        (tmp_path / "labels.csv").write_text("\n".join(["image,labels", *lines]), encoding="utf-8")
        with pytest.raises(UserError, match="is listed twice, with the same labels"):
            open_source("table", tmp_path / "labels.csv", "all")
        (tmp_path / inform("NFD", "Käse.jpg")).unlink(missing_ok=True)


def test_of_two_files_that_look_alike_the_one_as_listed_counts(tmp_path):
    name = "é" + inform("NFD", "é")  # in neither form
    for folder in ("", "Fotos"):
        place = tmp_path / f"at{folder}" / folder
        place.mkdir(parents=True)
        for number, form in enumerate(("NFC", "NFD")):
            (place / inform(form, f"{name}.jpg")).write_bytes(jpeg(number))
        table = tmp_path / f"at{folder}" / "labels.csv"
        lines = [inform(form, f"{name}.jpg,cat") for form in ("NFC", "NFD")]
        table.write_text("\n".join(["image,labels", *lines]), encoding="utf-8")
        images = [record.image.rpartition("/")[2] for record in found("table", table)]
        assert images == [inform(form, f"{name}.jpg") for form in ("NFC", "NFD")]
        table.write_text(f"image,labels\n{name}.jpg,cat\n", encoding="utf-8")
        with pytest.raises(UserError, match=r"whose names look the same, .* rename them"):
            open_source("table", table, "all")
    with pytest.raises(UserError, match="may be any of several files"):
        as_stored(LocalStorage(tmp_path), f"at/{name}.jpg")
    (tmp_path / "at" / inform("NFC", f"{name}.jpg")).unlink()
    assert as_stored(LocalStorage(tmp_path), f"at/{name}.jpg") == f"at/{inform('NFD', name)}.jpg"
    assert as_stored(LocalStorage(tmp_path), "at/Ü.jpg") == "at/Ü.jpg"


@pytest.mark.parametrize(("on_disk", "listed"), FORMS)
@pytest.mark.parametrize("suffix", [".jpg", ".JPG"])
def test_voc(tmp_path, on_disk, listed, suffix):
    photographs(tmp_path / "JPEGImages", on_disk)
    for path in list((tmp_path / "JPEGImages").iterdir()):
        path.rename(path.with_suffix(suffix))
    for name in ("Annotations", "ImageSets/Main"):
        (tmp_path / name).mkdir(parents=True)
    for number, name in enumerate(NAMES):  # some annotations lie under the name as it is listed
        path = tmp_path / "Annotations" / inform(on_disk if number else listed, f"{name}.xml")
        path.write_text(voc_xml(voc_object("cat")))
    lines = "".join(f"{inform(listed, name)} 1\n" for name in NAMES)
    (tmp_path / "ImageSets/Main/train.txt").write_text(lines, encoding="utf-8")
    assert len(found("voc", tmp_path, "train")) == len(NAMES)


@pytest.mark.parametrize(("on_disk", "listed"), FORMS)
def test_voc_without_lists(tmp_path, on_disk, listed):
    photographs(tmp_path, on_disk)
    for name in NAMES:
        (tmp_path / inform(listed, f"{name}.xml")).write_text(voc_xml(voc_object("cat")))
    assert len(found("voc", tmp_path)) == len(NAMES)


@pytest.mark.parametrize(("on_disk", "listed"), FORMS)
@pytest.mark.parametrize("folder", ["train", "Bücher"])
def test_coco(tmp_path, on_disk, listed, folder):
    photographs(tmp_path / "train" / inform(on_disk, folder), on_disk)
    content = {
        "images": [{"id": n, "file_name": inform(listed, f"{folder}/{name}.jpg")} for n, name in enumerate(NAMES)],
        "annotations": [{"id": n, "image_id": n, "category_id": 1} for n in range(len(NAMES))],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances_train.json").write_text(json.dumps(content), encoding="utf-8")
    assert len(found("coco", tmp_path, "train")) == len(NAMES)
    assert len(found("coco", tmp_path / "annotations/instances_train.json")) == len(NAMES)


@pytest.mark.parametrize(("on_disk", "listed"), FORMS)
def test_yolo(tmp_path, on_disk, listed):
    photographs(tmp_path / "images", on_disk)
    (tmp_path / "labels").mkdir()
    for name in NAMES:
        (tmp_path / "labels" / inform(listed, f"{name}.txt")).write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "data.yaml").write_text("names: [cat]\ntrain: train.txt\n")
    lines = "".join(f"./images/{inform(listed, name)}.jpg\n" for name in NAMES)
    (tmp_path / "train.txt").write_text(lines, encoding="utf-8")
    assert len(found("yolo", tmp_path, "train")) == len(NAMES)


def test_wider(tmp_path):
    photographs(tmp_path / "Image/train", "NFD")
    person = {"attribute": [1] * len(ATTRIBUTES), "bbox": [0, 0, 9, 9]}
    images = [{"file_name": f"train/{name}.jpg", "targets": [person]} for name in NAMES]
    (tmp_path / "wider_attribute_trainval.json").write_text(json.dumps({"images": images}), encoding="utf-8")
    assert len(found("wider", tmp_path, "train")) == len(NAMES)


def test_names_in_ascii_are_themselves():
    assert composed("plain/name") == "plain/name" and composed(inform("NFD", "ü")) == "ü"
