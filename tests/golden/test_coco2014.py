"""COCO-2014: labels against published label vectors, the rules by hand, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from msldata.errors import BadInputError, UserError
from msldata.sources.kinds import find_sources, open_source, places_looked_at
from tests.tinydata import make_coco, make_voc

CATEGORIES = ({"id": 7, "name": "train"}, {"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"})
IMAGES = (
    {"id": 30, "file_name": "COCO_train2014_000000000030.jpg"},
    {"id": 9, "file_name": "COCO_train2014_000000000009.jpg"},
    {"id": 25, "file_name": "COCO_train2014_000000000025.jpg"},
)


def annotation(number: int, image: int, category: int, **changes) -> dict:
    content = {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": [1.5, 2, 3, 4],
        "area": 5.25,
        "iscrowd": 0,
        "segmentation": [[1, 2, 3, 4, 5, 6]],
    }
    return content | changes


@pytest.mark.real
@pytest.mark.parametrize(("split", "dropped"), [("train", ["COCO_train2014_000000000508"]), ("val", [])])
def test_labels_equal_the_published_ones(sample, split, dropped):
    entries = json.loads((sample / "oracles" / "coco2014" / f"sample_{split}2014_anno.json").read_text())
    published = {Path(entry["file_name"]).stem: tuple(entry["labels"]) for entry in entries}
    source = open_source("coco2014", sample / "coco2014", split)
    found = {record.key: record.positives for record in source.records()}
    assert sorted(published.keys() - found.keys()) == dropped
    assert source.counts == {"dropped_without_annotations": len(dropped)}
    assert found == {key: published[key] for key in found}
    categories = json.loads((sample / "oracles" / "coco2014" / "categories.json").read_text())
    assert list(source.labels.classes) == [entry["name"] for entry in categories]


@pytest.mark.real
def test_every_annotation_becomes_an_object(sample):
    source = open_source("coco2014", sample, "val")
    content = json.loads((sample / "coco2014" / "annotations" / "instances_val2014.json").read_text())
    objects = [item for record in source.records() for item in record.objects]
    assert len(objects) == len(content["annotations"]) == 1227
    assert sum(item.crowd for item in objects) == sum(entry["iscrowd"] for entry in content["annotations"]) == 12
    assert sum(item.area for item in objects) == pytest.approx(sum(entry["area"] for entry in content["annotations"]))


def test_rules_by_hand(tmp_path):
    annotations = [
        annotation(2, 9, 90),
        annotation(1, 9, 7, iscrowd=1, segmentation={"counts": [1], "size": [1, 1]}),
        annotation(3, 30, 1),
    ]
    source = open_source("coco2014", make_coco(tmp_path / "coco", IMAGES, annotations, CATEGORIES), "train")
    assert source.labels.classes == ("person", "train", "toothbrush")  # by rank of the category id
    nine, thirty = source.records()
    assert (nine.key, nine.image_id, nine.positives, nine.ignored) == (
        "COCO_train2014_000000000009",
        "9",
        (1, 2),  # a crowd counts as presence
        (),
    )
    assert nine.image == "train2014/COCO_train2014_000000000009.jpg"
    assert [(item.class_index, item.crowd) for item in nine.objects] == [(1, True), (2, False)]
    assert (nine.objects[0].box, nine.objects[0].area) == ((1.5, 2, 3, 4), 5.25)
    assert (nine.objects[0].truncated, nine.objects[0].occluded) == (None, None)
    assert thirty.positives == (0,)
    assert source.counts == {"dropped_without_annotations": 1}


def test_pycocotools_prints_nothing(tmp_path, capfd):
    open_source("coco2014", make_coco(tmp_path / "coco", IMAGES, [annotation(1, 9, 7)], CATEGORIES), "train")
    assert capfd.readouterr() == ("", "")


def test_a_file_that_is_not_there_is_called_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"mine\.json: no such file; give a COCO instances JSON"):
        open_source("coco", tmp_path / "mine.json", "all")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not a COCO instances file"),
        ("[1]", "not an object with images, annotations and categories"),
        ('{"images": [], "annotations": []}', "no entry 'categories'"),
        ('{"images": {}, "annotations": [], "categories": []}', "'images' is not a list"),
        (json.dumps({"images": [], "annotations": [], "categories": []}), "at least one class"),
        (
            json.dumps({"images": IMAGES, "annotations": [annotation(1, 9, 55)], "categories": CATEGORIES}),
            "no entry 55",
        ),
        (
            json.dumps({"images": IMAGES, "annotations": [annotation(1, 9, 7, bbox=[1, 2])], "categories": CATEGORIES}),
            "bbox [1, 2] is not 4 numbers",
        ),
        (
            json.dumps(
                {
                    "images": [{"id": 9, "file_name": "../../secret.jpg"}],
                    "annotations": [annotation(1, 9, 7)],
                    "categories": CATEGORIES,
                }
            ),
            "'../../secret.jpg' is not a path below the images' folder",
        ),
    ],
)
def test_bad_annotations_are_named(tmp_path, content, reason):
    root = make_coco(tmp_path / "coco", IMAGES, [annotation(1, 9, 7)], CATEGORIES)
    path = root / "annotations" / "instances_train2014.json"
    path.write_text(content)
    with pytest.raises(BadInputError) as caught:
        list(open_source("coco2014", root, "train").records())
    assert caught.value.file == str(path)
    assert reason in caught.value.reason
    assert "--on-error skip" not in str(caught.value)  # it would not help


def test_missing_parts_are_named(tmp_path):
    root = make_coco(tmp_path / "coco", IMAGES, [annotation(1, 9, 7)], CATEGORIES)
    with pytest.raises(FileNotFoundError, match=r"instances_val2014\.json: missing"):
        open_source("coco2014", root, "val")
    with pytest.raises(UserError, match="no split 'test'; known are: train, val"):
        open_source("coco2014", root, "test")
    with pytest.raises(FileNotFoundError, match="no COCO-2014 here"):
        open_source("coco2014", tmp_path / "nothing", "train")


@pytest.mark.parametrize("name", ["COCO2014", "coco2014", "coco"])
def test_usual_places(tmp_path, name):
    root = make_coco(tmp_path / name, IMAGES, [annotation(1, 9, 7)], CATEGORIES)
    make_voc(tmp_path, 1)
    found = find_sources(tmp_path)
    assert [(entry.dataset, entry.splits) for entry in found] == [("voc2007", ("test",)), ("coco2014", ("train",))]
    assert found[1].root.samefile(root)
    assert str(root) in places_looked_at(tmp_path)
    assert open_source("coco2014", tmp_path, "train").labels.classes == ("person", "train", "toothbrush")


def test_nothing_found(tmp_path):
    assert find_sources(tmp_path) == []
    assert find_sources(tmp_path / "nothing") == []
    assert str(tmp_path / "VOCdevkit" / "VOC2007") in places_looked_at(tmp_path)
