"""COCO of other years and VOC2012: the same rules under other names, and the published labels once more."""

from __future__ import annotations

import json
import shutil

import pytest

from msldata.build.shards import plan_build
from msldata.contract.records import VOC
from msldata.errors import BadInputError, UserError
from msldata.sources.kinds import find_sources, open_source, select_sources
from tests.golden.test_coco2014 import CATEGORIES, IMAGES, annotation
from tests.tinydata import jpeg, make_voc, voc_object, voc_xml


def make_layout(root, *splits, images=IMAGES, annotations=None):
    """``root`` with COCO's own files of some year, with the same images in every split."""
    content = {"images": images, "annotations": annotations or [annotation(1, 9, 7)], "categories": CATEGORIES}
    content["info"] = {"description": "COCO 2017 Dataset", "url": "http://cocodataset.org"}
    (root / "annotations").mkdir(parents=True)
    for split in splits:
        (root / split).mkdir()
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        for image in images:
            (root / split / image["file_name"]).write_bytes(jpeg(image["id"]))
    return root


@pytest.mark.real
def test_another_name_gives_the_records_of_2014(sample, tmp_path):
    """The annotations under another split's name; equal to COCO-2014's records but for the image folder."""
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").symlink_to(sample / "coco2014" / "val2014")
    original = sample / "coco2014" / "annotations" / "instances_val2014.json"
    shutil.copyfile(original, tmp_path / "annotations" / "instances_val2017.json")
    found = list(open_source("coco", tmp_path, "val2017").records())
    expected = list(open_source("coco2014", sample, "val").records())
    assert [record.image.removeprefix("val2017/") for record in found] == [
        record.image.removeprefix("val2014/") for record in expected
    ]
    assert [(r.key, r.positives, r.objects) for r in found] == [(r.key, r.positives, r.objects) for r in expected]
    assert len(plan_build(open_source("coco", tmp_path, "val2017", name="mine")).shards) == 1


def test_splits_of_any_name_are_found(tmp_path):
    root = make_layout(tmp_path / "coco2017", "val2017", "mine", "train2017")
    (root / "annotations" / "instances_nofolder.json").write_text("{}")
    assert [(found.dataset, found.splits) for found in find_sources(tmp_path)] == [
        ("coco", ("mine", "train2017", "val2017"))
    ]
    (found,) = select_sources(tmp_path, "coco", root)
    assert found.splits == ("mine", "train2017", "val2017")
    source = open_source("coco", root, "mine")
    (record,) = source.records()
    assert (source.dataset, source.labels.classes) == ("coco", ("person", "train", "toothbrush"))
    assert (record.key, record.image) == (
        "COCO_train2014_000000000009",
        "mine/COCO_train2014_000000000009.jpg",
    )
    assert source.counts == {"dropped_without_annotations": 2}
    assert list(source.provenance["files"]) == ["annotations/instances_mine.json"]


def test_a_list_of_classes_numbers_them_in_its_order(tmp_path):
    annotations = [annotation(1, 9, 7), annotation(2, 9, 90), annotation(3, 25, 1)]
    root = make_layout(tmp_path / "c", "mine", annotations=annotations)
    (tmp_path / "classes.txt").write_text("toothbrush\ncat\ntrain\nperson\n")
    source = open_source("coco", root, "mine", classes=tmp_path / "classes.txt")
    nine, other = source.records()
    assert source.labels.classes == ("toothbrush", "cat", "train", "person")
    assert (nine.positives, other.positives) == ((0, 2), (3,))
    assert [item.class_index for item in (*nine.objects, *other.objects)] == [2, 0, 3]


def test_names_of_ones_own_become_keys(tmp_path):
    images = ({"id": 9, "file_name": "my photo.v2.jpg"},)
    (record,) = open_source("coco", make_layout(tmp_path / "c", "mine", images=images), "mine").records()
    assert (record.key, record.image) == ("my_photo_v2", "mine/my photo.v2.jpg")


def test_mistakes_are_named(tmp_path):
    root = make_layout(tmp_path / "c", "mine")
    with pytest.raises(UserError, match="has no split 'train'; known are: mine"):
        open_source("coco", root, "train")
    with pytest.raises(UserError, match=r"split '\.\./mine' becomes part of file names"):
        open_source("coco", root, "../mine")
    with pytest.raises(UserError, match=r"no coco dataset here; it would hold annotations/instances_SPLIT\.json"):
        select_sources(tmp_path, "coco", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"instances_mine\.json: missing"):
        open_source("coco", tmp_path, "mine")


@pytest.mark.parametrize(
    ("images", "annotations", "reason"),
    [
        ((*IMAGES, IMAGES[0]), [annotation(1, 9, 7)], "two of the 'images' have one id"),
        (IMAGES, [annotation(1, 9, 7), annotation(1, 25, 7)], "two of the 'annotations' have one id"),
        (IMAGES, [annotation(1, 9, 7), annotation(2, 77, 7)], "annotations of image 77, which is not among the images"),
    ],
)
def test_nothing_vanishes_unseen(tmp_path, images, annotations, reason):
    root = make_layout(tmp_path / "c", "mine", images=images, annotations=annotations)
    with pytest.raises(BadInputError, match=reason):
        open_source("coco", root, "mine")


def make_voc2012(root):
    folder = make_voc(root, 3, split="trainval")
    (folder / "Annotations" / "000002.xml").write_text(voc_xml(voc_object("dog", occluded=1, truncated=0)))
    return folder.rename(folder.with_name("VOC2012"))


@pytest.mark.parametrize("place", [".", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_voc2012_says_what_is_occluded(tmp_path, place):
    make_voc2012(tmp_path)
    source = open_source("voc2012", tmp_path / place, "trainval")
    assert (source.dataset, source.labels, source.provenance["source"]) == ("voc2012", VOC, "VOC2012")
    assert "2012" in source.licence and "2007" not in source.licence
    records = list(source.records())
    assert [(item.occluded, item.truncated) for item in records[1].objects] == [(True, False)]
    assert records[0].objects[0].occluded is None


def test_voc_years_are_told_apart(tmp_path):
    make_voc2012(tmp_path)
    make_voc(tmp_path, 1)
    assert [(found.dataset, found.root.name, found.splits) for found in find_sources(tmp_path)] == [
        ("voc2007", "VOC2007", ("test",)),
        ("voc2012", "VOC2012", ("trainval",)),
    ]
    with pytest.raises(FileNotFoundError, match="no VOC2012 here"):
        open_source("voc2012", tmp_path / "nothing", "trainval")
