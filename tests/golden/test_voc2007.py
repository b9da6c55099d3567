"""VOC2007: labels against the published label files, boxes by hand, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from msldata.contract.records import VOC
from msldata.errors import BadInputError, UserError
from msldata.sources.kinds import find_sources, open_source
from msldata.sources.voc import parse_objects
from tests.tinydata import make_voc, voc_object, voc_xml


@pytest.mark.real
@pytest.mark.parametrize(("split", "num_images"), [("trainval", 430), ("test", 390)])
def test_labels_equal_the_published_ones(sample, split, num_images):
    """Targets of the official label files: trainval 1/0, test 1 / 0 difficult / -1."""
    published = json.loads((sample / "oracles" / "voc07" / f"{split}_voc07.json").read_text())
    records = list(open_source("voc2007", sample, split).records())
    assert len(records) == len(published) == num_images
    for record, entry in zip(records, published, strict=True):
        assert record.key == Path(entry["img_path"]).stem
        absent = 0 if split == "trainval" else -1
        target = [absent] * 20
        for index in record.positives:
            target[index] = 1
        if split == "test":
            for index in record.ignored:
                target[index] = 0
        assert target == entry["target"], record.key


@pytest.mark.real
def test_train_and_val_make_trainval(sample):
    keys = {
        split: [r.key for r in open_source("voc2007", sample, split).records()]
        for split in ("train", "val", "trainval")
    }
    assert (len(keys["train"]), len(keys["val"])) == (213, 217)
    assert sorted(keys["train"] + keys["val"]) == keys["trainval"]


@pytest.mark.real
def test_real_objects(sample):
    """Hand-copied from Annotations/009948.xml: the parts of a person are not objects of their own."""
    record = next(r for r in open_source("voc2007", sample, "test").records() if r.key == "009948")
    person, bicycle = record.objects
    assert (person.class_index, person.box, person.area) == (VOC.index("person"), (0, 1, 315, 499), 315 * 499)
    assert (bicycle.class_index, bicycle.box, bicycle.area) == (VOC.index("bicycle"), (1, 280, 302, 220), 302 * 220)
    assert (person.difficult, person.truncated, person.occluded, person.crowd) == (False, True, None, False)
    assert record.image == "JPEGImages/009948.jpg"


def test_label_rules(tmp_path):
    folder = make_voc(tmp_path, 1)
    objects = (
        voc_object("dog", difficult=1),
        voc_object("dog", difficult=0),  # one clear dog is enough
        voc_object("cat", difficult=1),
        voc_object("train"),  # no tag at all: not difficult
    )
    (folder / "Annotations" / "000001.xml").write_text(voc_xml(*objects))
    (record,) = open_source("voc2007", folder, "test").records()
    assert VOC.names(record.positives) == ["dog", "train"]
    assert VOC.names(record.ignored) == ["cat"]
    assert [item.difficult for item in record.objects] == [True, False, True, False]


def test_boxes_and_flags_by_hand():
    data = voc_xml(voc_object("bird", (1, 1, 1, 1), truncated=1, occluded=0), voc_object("sofa", (11.5, 21, 30.5, 60)))
    bird, sofa = parse_objects(data.encode(), "x.xml")
    assert (bird.box, bird.area) == ((0, 0, 1, 1), 1)  # both corners belong to a VOC box
    assert (bird.truncated, bird.occluded) == (True, False)
    assert (sofa.box, sofa.area) == ((10.5, 20, 20, 40), 800)
    assert (sofa.difficult, sofa.truncated, sofa.occluded) == (False, None, None)


@pytest.mark.parametrize("root", [".", "VOCdevkit", "VOCdevkit/VOC2007"])
def test_any_of_three_roots_will_do(tmp_path, root):
    make_voc(tmp_path, 2)
    assert [record.key for record in open_source("voc2007", tmp_path / root, "test").records()] == ["000001", "000002"]


def test_lists_of_the_class_train_are_not_the_split_train(tmp_path):
    """ImageSets/Main/train_train.txt lists images with trains."""
    folder = make_voc(tmp_path, 3, split="train")
    lists = folder / "ImageSets" / "Main"
    (lists / "train_train.txt").write_text("000009  1\n")
    (lists / "train_trainval.txt").write_text("000009  1\n")
    (lists / "val.txt").write_text("")
    for split in ("train", "trainval"):
        records = open_source("voc2007", folder, split).records()
        assert [record.key for record in records] == ["000001", "000002", "000003"]


@pytest.mark.parametrize("flag", ["-1", "0", "1"])
def test_what_a_list_says_behind_an_id_is_no_part_of_it(tmp_path, flag):
    folder = make_voc(tmp_path, 2, split="test")
    (folder / "ImageSets/Main/test.txt").write_text(f"000001  {flag}\n000002\t{flag}\n")
    assert [record.key for record in open_source("voc2007", folder, "test").records()] == ["000001", "000002"]


def test_trainval_list_alone_is_enough(tmp_path):
    folder = make_voc(tmp_path, 3, split="trainval")
    assert len(list(open_source("voc2007", folder, "trainval").records())) == 3
    (found,) = find_sources(tmp_path)
    assert (found.dataset, found.root, found.splits) == ("voc2007", folder, ("trainval",))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('<!DOCTYPE a [<!ENTITY b "cccc">]><annotation>&b;</annotation>', "document type declarations"),
        ("<annotation><object>", "not valid XML"),
        ("", "not valid XML"),
        (voc_xml(voc_object("unicorn")), "unknown class 'unicorn'"),
        (voc_xml("<object><name>dog</name></object>"), "an object of class 'dog' has no bndbox"),
        (voc_xml(voc_object("dog", (5, 5, 4, 9))), "an object of class 'dog' has a box without area"),
        (voc_xml(voc_object("dog", (1, 1, float("nan"), 9))), "an object of class 'dog' has a box without area"),
        (voc_xml(voc_object("dog", ("x", 1, 2, 3))), "xmin is 'x', not a number"),
        (voc_xml(voc_object("dog", difficult=7)), "difficult is '7', expected 0 or 1"),
    ],
)
def test_bad_annotations_are_named(tmp_path, content, reason):
    folder = make_voc(tmp_path, 2)
    path = folder / "Annotations" / "000002.xml"
    path.write_text(content)
    with pytest.raises(BadInputError) as caught:
        list(open_source("voc2007", folder, "test").records())
    assert caught.value.file == str(path)
    assert caught.value.reason.startswith(reason)
    assert "ImageSets/Main" in str(caught.value)


def test_a_class_that_is_none_of_vocs_is_a_slip_even_in_the_first_file(tmp_path):
    folder = make_voc(tmp_path, 3)
    (folder / "Annotations" / "000001.xml").write_text(voc_xml(voc_object("dgo")))
    with pytest.raises(BadInputError, match=r"000001\.xml: unknown class 'dgo'"):
        list(open_source("voc2007", folder, "test").records())
    for name in ("000002", "000003"):  # but where no file has one of VOC's, it is a dataset of its own
        (folder / "Annotations" / f"{name}.xml").write_text(voc_xml(voc_object("ant")))
    assert open_source("voc2007", folder, "test").labels.classes == ("ant", "dgo")


def test_an_entity_bomb_in_another_encoding_is_refused():
    bomb = '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a [<!ENTITY b "cccc">]><annotation>&b;</annotation>'
    with pytest.raises(BadInputError, match="NUL bytes are refused"):
        parse_objects(bomb.encode("utf-16"), "x.xml")


def test_missing_files_are_named(tmp_path):
    folder = make_voc(tmp_path, 2)
    (folder / "Annotations" / "000002.xml").unlink()
    with pytest.raises(BadInputError, match=r"000002\.xml: no such file"):
        list(open_source("voc2007", folder, "test").records())
    shutil.rmtree(folder / "JPEGImages")
    with pytest.raises(FileNotFoundError, match="JPEGImages: missing"):
        open_source("voc2007", folder, "test")
    with pytest.raises(FileNotFoundError, match=r"val\.txt: missing|train\.txt: missing"):
        open_source("voc2007", folder, "trainval")
    with pytest.raises(FileNotFoundError, match="no VOC2007 here"):
        open_source("voc2007", tmp_path / "nothing", "test")
    with pytest.raises(UserError, match="no split 'dev'; known are: trainval, train, val, test"):
        open_source("voc2007", folder, "dev")
    with pytest.raises(UserError, match="unknown dataset 'voc1999'; known are: voc2007, "):
        open_source("voc1999", folder, "test")


@pytest.mark.parametrize("line", ["../../etc/passwd", "/etc/passwd", "a\\b"])
def test_a_list_cannot_point_outside(tmp_path, line):
    folder = make_voc(tmp_path, 1)
    (folder / "ImageSets" / "Main" / "test.txt").write_text(f"000001\n{line}\n")
    with pytest.raises(BadInputError, match=r"line 2: .* is not an image id"):
        list(open_source("voc2007", folder, "test").records())


def test_an_empty_list_is_no_dataset(tmp_path):
    folder = make_voc(tmp_path, 0)
    with pytest.raises(UserError, match="the list is empty"):
        list(open_source("voc2007", folder, "test").records())
