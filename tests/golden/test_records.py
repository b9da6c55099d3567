"""Whole records of every kind of source, by hand: each field of each record of two splits, the classes and the counts.

No picture is square, no id or class stands where its neighbour would do as well, and each split lacks a class.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from obstore.store import MemoryStore

from msldata.contract.records import SHARES, ObjectRecord, Occlusion, Record
from msldata.errors import BadInputError, UserError
from msldata.sources.kinds import KINDS, open_source
from msldata.sources.source import Source, SourceOptions
from msldata.storage import RemoteStorage


def write(root: Path, **files: str | bytes) -> Path:
    """Files below ``root``; images are never read here, so they hold anything."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def files(root: Path, content: dict[str, Any]) -> Path:
    return write(
        root, **{name: one if isinstance(one, str | bytes) else json.dumps(one) for name, one in content.items()}
    )


def sha256(*contents: str) -> str:
    return hashlib.sha256("".join(contents).encode()).hexdigest()


def twice(source: Source) -> list[Record]:
    """The records, which are the same whenever they are asked for; so is what is counted."""
    records, counts, provenance = list(source.records()), dict(source.counts), dict(source.provenance)
    assert (list(source.records()), source.counts, source.provenance) == (records, counts, provenance)
    return records


# ---- VOC


def thing(name: str, corners: tuple[float, ...], **flags: Any) -> str:
    box = "".join(f"<{tag}>{value}</{tag}>" for tag, value in zip(("ymax", "xmin", "ymin", "xmax"), corners))
    said = "".join(f"<{flag}>{value}</{flag}>" for flag, value in flags.items())
    return f"<object><name> {name} </name>{said}<bndbox>{box}</bndbox></object>"


def xml(*things: str, size: str = "") -> str:
    return f"<annotation>{size}{''.join(things)}</annotation>"


SIZE = "<size><height>31</height><width>57</width><depth>3</depth></size>"
B2 = xml(
    thing("cat", (20, 3, 7, 40), difficult=1, truncated=1),
    thing("dog", (9.5, 2, 2.5, 4), occluded=1, truncated=0),
    thing("cow", (8, 1, 8, 1), difficult="true", occluded="Unspecified"),
    thing("dog", (30, 11, 21, 57), difficult=1),
    size=SIZE,
)
B2_OBJECTS = (
    ObjectRecord(1, (2, 6, 38, 14), 532, difficult=True, truncated=True),
    ObjectRecord(3, (1, 1.5, 3, 8), 24, truncated=False, occluded=True),
    ObjectRecord(2, (0, 7, 1, 1), 1, difficult=True),
    ObjectRecord(3, (10, 20, 47, 10), 470, difficult=True),
)
A1 = xml(thing("ant", (6, 2, 5, 9)), size="<size><width>0</width><height>0</height></size>")
C3 = xml()


def test_voc_with_lists(tmp_path):
    main = "ImageSets/Main"
    lists = {"train": "b_2\na.1 -1\n", "val": "\nc 3  1\n", "test": "d\n"}
    content = {f"{main}/{name}.txt": text for name, text in lists.items()}
    content |= {f"{main}/dog_train.txt": "x 1\n", f"{main}/classes.txt": "ant\ncat\ncow\ndog\n"}
    content |= {"Annotations/b_2.xml": B2, "Annotations/a.1.xml": A1, "Annotations/c 3.xml": C3}
    content |= {f"JPEGImages/{name}": "" for name in ("a.1.png", "a.1.BMP", "b_2.jpg", "b_2.png", "c 3.jpeg", "x.jpg")}
    place = files(tmp_path / "VOCdevkit/VOC2012", content)
    expected = {
        "a.1": Record("a_1", "JPEGImages/a.1.png", (0,), (), (ObjectRecord(0, (1, 4, 8, 2), 16),), "a.1"),
        "b_2": Record("b_2", "JPEGImages/b_2.jpg", (3,), (1, 2), B2_OBJECTS, "b_2", size=(57, 31)),
        "c 3": Record("c_3", "JPEGImages/c 3.jpeg", (), image_id="c 3"),
    }
    for split, ids, texts in (
        ("train", ["a.1", "b_2"], (A1, B2)),
        ("val", ["c 3"], (C3,)),
        ("trainval", ["a.1", "b_2", "c 3"], (A1, B2, C3)),
    ):
        source = open_source("voc2012", tmp_path, split)
        assert twice(source) == [expected[image_id] for image_id in ids]
        assert (source.dataset, source.split, source.counts) == ("voc-layout", split, {})
        assert source.labels.classes == ("ant", "cat", "cow", "dog")
        named = [name for name in ("train", "val") if name == split or split == "trainval"]
        assert source.provenance == {
            "source": "VOC2012 layout, own classes",
            "files": {f"{main}/{name}.txt": sha256(lists[name]) for name in named}
            | {f"{main}/classes.txt": sha256("ant\ncat\ncow\ndog\n")},
            "annotations_sha256": sha256(*texts),
        }
    # In another order, from a list of one's own; a file that is not there is left out where that is allowed.
    (tmp_path / "names.txt").write_text("dog\n\ncow\nant\ncat\n")
    (place / "Annotations/a.1.xml").unlink()
    source = open_source("voc", place, "train", classes=tmp_path / "names.txt")
    rejected: list[BadInputError] = []
    source.reject = rejected.append
    (record,) = source.records()
    assert (record.positives, record.ignored, record.objects[0].class_index) == ((0,), (1, 3), 3)
    assert [error.file for error in rejected] == [str(place / "Annotations/a.1.xml")]


def test_voc_without_lists(tmp_path):
    content = {"train/xmls/b.xml": B2, "train/images/b.JPG": "", "train/images/bare.png": "", "train/xmls/far.xml": A1}
    content |= {"Valid/sub/c.XML": C3, "Valid/sub/c.webp": "", "Valid/sub/e.xml": A1, "Valid/sub/e.jpg": ""}
    content |= {"docs/photo.jpg": "", "train/xmls/._b.xml": "x", "train/images/._b.JPG": "x"}  # of no split; of macOS
    place = files(tmp_path, content)
    source = open_source("voc", place, "train")
    assert source.labels.classes == ("ant", "cat", "cow", "dog")
    b = Record("b", "train/images/b.JPG", (3,), (1, 2), B2_OBJECTS, "b", size=(57, 31))
    ant = (ObjectRecord(0, (1, 4, 8, 2), 16),)
    far = Record("far", "train/far.jpg", (0,), (), ant, "far")
    assert twice(source) == [b, far] and source.counts == {"dropped_without_annotations": 1}
    assert source.provenance["annotations_sha256"] == sha256(B2, A1)
    source = open_source("voc", place, "train", options=SourceOptions(keep_unlabelled=True))
    assert twice(source) == [b, Record("bare", "train/images/bare.png", (), image_id="bare"), far]
    assert source.counts == {} and source.provenance["annotations_sha256"] == sha256(B2, "<annotation/>", A1)
    valid = open_source("voc", place, "Valid")  # lacks three of the classes, which count all the same
    assert valid.labels.classes == ("ant", "cat", "cow", "dog") and valid.counts == {}
    assert twice(valid) == [
        Record("sub_c", "Valid/sub/c.webp", (), image_id="sub/c"),
        Record("sub_e", "Valid/sub/e.jpg", (0,), (), ant, "sub/e"),
    ]


# ---- COCO


def coco(images: list[tuple], annotations: list[tuple], categories: dict[int, str]) -> dict:
    """Images as (id, file name, width, height), annotations as (id, image, category, box, more)."""
    sides = ("id", "file_name", "width", "height")
    names = ("id", "image_id", "category_id", "bbox")
    return {
        "images": [dict(zip(sides, image)) for image in images],
        "annotations": [dict(zip(names, one)) | dict(*one[4:]) for one in annotations],
        "categories": [{"name": name, "id": number} for number, name in categories.items()],
    }


CATEGORIES = {44: "dog", 3: " cat", 17: "ant", 5: "cow"}


def test_coco(tmp_path):
    train = coco(
        [(52, "x\\b.v2.jpg", 57, 31), (7, "a.jpg", 57, 0), (9, "bare.jpg", 8, 9), (30, "c.png")],
        [
            (8, 52, 44, [1.5, 2, 30, 4], {"area": 61.5, "iscrowd": 1}),
            (2, 7, 17, None),
            (5, 52, 3, [0, 3, 7, 11]),
            (1, 7, 3, [5, 6, 2, 9], {"area": 0, "iscrowd": 0}),
            (6, 52, 44, [4, 5, 6, 7]),
            (11, 30, 5, []),
        ],
        CATEGORIES,
    )
    val = coco([(2, "z.jpg", 13, 40)], [(3, 2, 17, [1, 2, 3, 4])], CATEGORIES)
    content: dict[str, Any] = {"annotations/instances_train.json": train, "annotations/instances_val.json": val}
    place = files(tmp_path, content | {"images/train/x/b.v2.jpg": "", "images/train/a.jpg": "", "val/z.jpg": ""})
    source = open_source("coco", place, "train")
    assert source.labels.classes == ("cat", "cow", "ant", "dog")  # by 3, 5, 17, 44
    a = Record("a", "images/train/a.jpg", (0, 2), (), (ObjectRecord(0, (5, 6, 2, 9), 0),), "7")
    c = Record("c", "images/train/c.png", (1,), image_id="30")
    b = Record(
        "x_b_v2",
        "images/train/x/b.v2.jpg",
        (0, 3),
        objects=(
            ObjectRecord(0, (0, 3, 7, 11), 77),
            ObjectRecord(3, (4, 5, 6, 7), 42),
            ObjectRecord(3, (1.5, 2, 30, 4), 61.5, crowd=True),
        ),
        image_id="52",
        size=(57, 31),
    )
    assert twice(source) == [a, c, b]
    assert source.counts == {"dropped_without_annotations": 1}
    name = "annotations/instances_train.json"
    assert source.provenance == {"source": "COCO layout", "files": {name: sha256(json.dumps(train))}}
    source = open_source("coco", place, "train", options=SourceOptions(keep_unlabelled=True))
    bare = Record("bare", "images/train/bare.jpg", (), image_id="9", size=(8, 9))
    assert twice(source) == [a, bare, c, b] and source.counts == {"dropped_without_annotations": 0}
    # The other split lacks classes, and the list of one's own has another order and one more.
    (tmp_path / "names.txt").write_text("dog\nhen\nant\ncow\ncat\n")
    source = open_source("coco", place, "val", classes=tmp_path / "names.txt")
    item = ObjectRecord(2, (1, 2, 3, 4), 12)
    assert twice(source) == [Record("z", "val/z.jpg", (2,), (), (item,), "2", size=(13, 40))]
    assert source.labels.classes == ("dog", "hen", "ant", "cow", "cat")
    assert source.provenance["classes"] == {"names.txt": sha256("dog\nhen\nant\ncow\ncat\n")}
    (tmp_path / "names.txt").write_text("dog\nant\n")
    with pytest.raises(UserError, match=r"lacks these classes of .*: 'cat', 'cow'"):
        open_source("coco", place, "val", classes=tmp_path / "names.txt")


def test_where_the_photographs_of_coco_are(tmp_path):
    """Beside the annotations, elsewhere where that is said, and else in the first folder that holds most of them."""
    content = coco(
        [(n, f"{n}.jpg", 9, 8) for n in range(1, 6)], [(n, n, 3, [0, 0, 2, 1]) for n in range(1, 6)], {3: "cat"}
    )
    place = files(tmp_path / "set", {"annotations/instances_mine.json": content, "mine.json": content})
    photographs = files(tmp_path / "photos", {"1.jpg": ""})
    options = SourceOptions(images=photographs)
    assert (KINDS["coco"].splits(place), KINDS["coco"].splits(place, options)) == ((), ("mine",))
    source = open_source("coco", place, "mine", options=options)
    assert source.images.path() == photographs and [one.image for one in source.records()][:2] == ["1.jpg", "2.jpg"]
    for found, folder in (  # of two that hold as many the first: beside a file of one's own that is `data`
        ({"images/1.jpg": "", "data/2.jpg": ""}, "images data"),
        ({"data/3.jpg": ""}, "data"),
        ({"images/mine/1.jpg": "", "images/mine/3.jpg": ""}, "images/mine"),
        ({f"mine/{n}.jpg": "" for n in (1, 4, 5)}, "mine"),
    ):
        files(place, found)
        first, *second = folder.split()
        assert [one.image for one in open_source("coco", place, "mine").records()][4] == f"{first}/5.jpg"
        source = open_source("coco", place / "mine.json", "all")
        assert [one.image for one in source.records()][4] == f"{(second or [first])[0]}/5.jpg"


def test_coco_segments(tmp_path):
    """A picture of 40 × 10: a bar of 20 × 4, in whose outline lie 2 × 4 of another; one cut in two, and a crowd."""

    def bar(left: int, top: int, width: int, height: int) -> list[int]:
        right, bottom = left + width, top + height
        return [left, top, right, top, right, bottom, left, bottom]

    box = [0, 0, 1, 1]
    annotations = [
        (4, 1, 9, box, {"segmentation": [bar(2, 3, 20, 4)]}),
        (3, 1, 8, None, {"segmentation": [bar(0, 0, 40, 10)]}),  # without a box it is no object, and covers nothing
        (2, 1, 8, box, {"segmentation": [bar(30, 1, 2, 8), bar(36, 1, 2, 8)]}),
        (1, 1, 9, box, {"segmentation": {"counts": [0, 400], "size": [10, 40]}, "iscrowd": 1}),
        (6, 1, 8, box),
        (5, 1, 8, box, {"segmentation": [bar(32, 1, 4, 4)]}),
        # Down the columns: of 24 to 29 in rows 1 and 2 all but the upper 26 and 27, where the eighth is.
        (7, 1, 8, box, {"segmentation": {"counts": [241, 2, 8, 2, 9, 1, 9, 1, 8, 2, 8, 2, 107], "size": [10, 40]}}),
        (8, 1, 9, box, {"segmentation": [bar(26, 1, 2, 1)]}),
    ]
    content = coco([(1, "a.jpg", 40, 10)], annotations, {8: "cat", 9: "dog"})
    place = files(tmp_path, {"mine.json": content, "a.jpg": ""})
    source = open_source("coco", place / "mine.json", "all", options=SourceOptions(segments=True))
    (record,) = source.records()
    assert [item.class_index for item in record.objects] == [1, 0, 1, 0, 0, 0, 1]
    # By id: the crowd; two bars of 2 × 8 with 4 × 8 between them, half of them the fifth's; the long bar; the fifth.
    assert record.occlusion == (
        Occlusion(None, None),
        Occlusion(16 / 64, True),
        Occlusion(0.0, False),
        Occlusion(0.0, False),
        Occlusion(None, None),
        Occlusion(2 / 5, False),  # its outline goes through the middles of its pixels: 5 × 1
        Occlusion(0.0, False),
    )
    assert source.provenance["occlusion"] == "segments"
    assert next(open_source("coco", place / "mine.json", "all").records()).occlusion is None


# ---- YOLO


def test_yolo(tmp_path):
    yaml = (
        "nc: 4\nnames: {1: cat, 0: ant, 3: dog, 2: cow}\nval: [images/valid, ../images/other/]\ntrain: ../train.txt\n"
    )
    train = "/mnt/me/images/deep/b.png\nimages/deep/a.jpg\nimages/deep/empty.jpg\nimages/deep/bare.jpg\n"
    a, c = "3 0.5 0.25 0.25 0.125\n1.0 0.25 0.5 0.125 0.75 0.9\n", "2 0.25 0.75 0.5 0.875 0.125 0.25\n"
    content = {"data.yaml": yaml, "train.txt": train, "labels/deep/a.txt": a, "labels/deep/b.txt": c}
    content |= {"labels/deep/empty.txt": "\n", "labels/valid/z.txt": "2 0.5 0.5 1 0.5", "labels/other/x.txt": ""}
    content |= {f"images/deep/{name}": "" for name in ("a.jpg", "b.png", "empty.jpg", "bare.jpg", "stray.jpg")}
    content |= {"images/valid/z.jpg": "", "images/valid/y.jpg": "", "images/other/x.jpg": "", "images/deep/._a.jpg": ""}
    place = files(tmp_path, content)
    source = open_source("yolo", place, "train")
    assert source.labels.classes == ("ant", "cat", "cow", "dog")
    polygon = ObjectRecord(2, (0.125, 0.25, 0.375, 0.625), 0.375 * 0.625)
    expected = [
        Record("deep_b", "images/deep/b.png", (2,), (), (polygon,), "images/deep/b.png", size=SHARES),
        Record(
            "deep_a",
            "images/deep/a.jpg",
            (1, 3),
            (),
            (
                ObjectRecord(3, (0.375, 0.1875, 0.25, 0.125), 0.03125),
                ObjectRecord(1, (0.1875, 0.125, 0.125, 0.75), 0.09375),
            ),
            "images/deep/a.jpg",
            size=SHARES,
        ),
        Record("deep_empty", "images/deep/empty.jpg", (), image_id="images/deep/empty.jpg"),
    ]
    assert twice(source) == expected
    assert source.counts == {"dropped_without_annotations": 1, "in_no_split": 1}
    assert source.provenance == {
        "source": "YOLO layout",
        "files": {"data.yaml": sha256(yaml)},
        "labels_sha256": sha256(c, a, "\n"),
    }
    source = open_source("yolo", place, "train", options=SourceOptions(keep_unlabelled=True))
    assert twice(source) == [
        *expected,
        Record("deep_bare", "images/deep/bare.jpg", (), image_id="images/deep/bare.jpg"),
    ]
    assert source.counts == {"in_no_split": 1}
    source = open_source("yolo", place, "val")  # y has no labels, and two of the four classes are not in it
    wide = ObjectRecord(2, (0, 0.25, 1, 0.5), 0.5)
    assert twice(source) == [
        Record("other_x", "images/other/x.jpg", (), image_id="images/other/x.jpg"),
        Record("z", "images/valid/z.jpg", (2,), (), (wide,), "images/valid/z.jpg", size=SHARES),
    ]
    assert source.counts == {"dropped_without_annotations": 1, "in_no_split": 1}


def test_yolo_folders_whose_names_begin_alike(tmp_path):
    """``train`` is neither ``train2`` nor ``train.jpg``, and an image may be named by itself."""
    box = "0 0.5 0.5 0.5 0.5"
    content = {"data.yaml": "names: [cat]\ntrain: images/train\nval: images/train2\ntest: images/one.jpg\n"}
    for image in ("train/a", "train2/b", "train/deep/c", "one", "one.jpg2/d"):
        content |= {f"images/{image}.jpg": "", f"labels/{image}.txt": box}
    content |= {"images/train.jpg": "", "labels/train.txt": box}
    place = files(tmp_path, content)
    found = {
        split: [record.image for record in open_source("yolo", place, split).records()]
        for split in ("train", "val", "test")
    }
    assert found == {
        "train": ["images/train/a.jpg", "images/train/deep/c.jpg"],
        "val": ["images/train2/b.jpg"],
        "test": ["images/one.jpg"],
    }
    assert open_source("yolo", place, "train").counts == {"in_no_split": 2}


@pytest.mark.parametrize("is_remote", [False, True])
def test_yolo_folders_whose_names_begin_alike_with_accents_in_another_form(tmp_path, is_remote):
    """As macOS stores them; the list has them in one piece."""
    content = {"data.yaml": "names: [cat]\ntrain: images/\u00e9t\u00e9\nval: images/\u00e9t\u00e92\n"}
    for image in ("e\u0301te\u0301/a", "e\u0301te\u03012/b"):
        content |= {f"images/{image}.jpg": "", f"labels/{image}.txt": "0 0.5 0.5 0.5 0.5"}
    place: Any = files(tmp_path, content)
    if is_remote:
        place = RemoteStorage("memory://bucket", MemoryStore())
        for name, text in content.items():
            place.put(name, text.encode())
    sources = {split: open_source("yolo", place, split) for split in ("train", "val")}
    found = {split: [record.image for record in source.records()] for split, source in sources.items()}
    assert found == {"train": ["images/e\u0301te\u0301/a.jpg"], "val": ["images/e\u0301te\u03012/b.jpg"]}


@pytest.mark.parametrize(
    ("lists", "splits"),
    [
        (("train",), ("train",)),
        (("val",), ("val",)),
        (("train", "test"), ("train", "test")),
        (("train", "val"), ("trainval", "train", "val")),
        (("trainval", "train"), ("trainval", "train")),
        (("trainval", "test"), ("trainval", "test")),
    ],
)
def test_voc_splits_are_those_whose_lists_are_all_there(tmp_path, lists, splits):
    """``trainval`` is both of its halves, or a list of its own; of one half it would be less than it says."""
    content = {f"ImageSets/Main/{name}.txt": f"{name}\n" for name in lists}
    content |= {f"Annotations/{name}.xml": xml(thing("cat", (9, 2, 3, 8))) for name in lists}
    place = files(tmp_path, content | {f"JPEGImages/{name}.jpg": "" for name in lists})
    assert KINDS["voc"].splits(place) == splits == KINDS["voc2007"].splits(place)
    found = [record.key for record in open_source("voc", place, splits[0]).records()]
    assert found == (["trainval"] if "trainval" in lists else ["train", "val"] if len(splits) == 3 else [lists[0]])


# ---- Folders of classes


def test_folders(tmp_path):
    """``1.jpg`` is one photograph in three folders of train, another one in a fourth, and again one in val."""
    content = {
        "train/dog/1.jpg": "same",
        "train/ant/1.jpg": "same",
        "train/cow/1.jpg": "same",
        "train/cat/1.jpg": "other",
    }
    content |= {
        "train/ant/b.2.PNG": "x",
        "train/dog/3.jpg": "x",
        "train/dog/notes.txt": "",
        "train/_unlabeled/7.jpg": "",
    }
    content |= {"val/cow/1.jpg": "same", "val/hen/5.jpg": "y", "val/.cache/6.jpg": "z"}
    place = files(tmp_path, content)

    def record(path: str, key: str, *positives: int) -> Record:
        return Record(key, path, positives, image_id=path)

    source = open_source("folders", place, "train")
    assert source.labels.classes == ("ant", "cat", "cow", "dog", "hen")
    assert twice(source) == [
        record("train/ant/1.jpg", "train_ant_1", 0, 2, 3),
        record("train/ant/b.2.PNG", "train_ant_b_2", 0),
        record("train/cat/1.jpg", "train_cat_1", 1),
        record("train/dog/3.jpg", "train_dog_3", 3),
    ]
    assert source.counts == {"outside_class_folders": 1, "in_several_folders": 3}
    source = open_source("folders", place, "val")
    assert twice(source) == [record("val/cow/1.jpg", "val_cow_1", 2), record("val/hen/5.jpg", "val_hen_5", 4)]
    assert source.counts == {}
    (tmp_path / "names.txt").write_text("hen\ndog\ncow\ncat\nant\npig\n")
    source = open_source("folders", place, "train", classes=tmp_path / "names.txt")
    assert [one.positives for one in source.records()] == [(1, 2, 4), (4,), (3,), (1,)]
    assert source.provenance["classes"] == {"names.txt": sha256("hen\ndog\ncow\ncat\nant\npig\n")}
    (tmp_path / "names.txt").write_text("hen\ncat\nant\n")
    with pytest.raises(UserError, match=r"these folders are not in .*names\.txt: 'cow', 'dog'"):
        open_source("folders", place, "val", classes=tmp_path / "names.txt")


# ---- WIDER-Attribute


def test_wider(tmp_path):
    people = [[1, -1, 0, -1, -1, -1, -1, 1, -1, -1, -1, -1, -1, 0], [0] + [-1] * 12 + [1], [-1] * 14]
    boxes = [[10.5, 5, 20, 30.25], [-3, 4, 50, 6], [1, 2, 3, 4]]
    targets = [{"attribute": one, "bbox": box} for one, box in zip(people, boxes, strict=True)]
    images = [
        {"file_name": "val/5--Car/b.1.jpg", "targets": targets[:2]},
        {"file_name": "train/0--Parade/a.jpg", "targets": targets[2:]},
    ]
    content = {"wider_attribute_trainval.json": {"images": images}, "Image/x": ""}
    content |= {"wider_attribute_test.json": {"images": [{"file_name": "test/c.jpg", "targets": targets[1:2]}]}}
    place = files(tmp_path, content)
    val = [
        Record("val_5--Car_b_1_0", "Image/val/5--Car/b.1.jpg", (0, 7), (2, 13), crop=(10.5, 5, 20, 30.25)),
        Record("val_5--Car_b_1_1", "Image/val/5--Car/b.1.jpg", (13,), (0,), crop=(-3, 4, 50, 6)),
    ]
    train = [Record("train_0--Parade_a_0", "Image/train/0--Parade/a.jpg", (), crop=(1, 2, 3, 4))]
    test = [Record("test_c_0", "Image/test/c.jpg", (13,), (0,), crop=(-3, 4, 50, 6))]
    for split, records in {"trainval": val + train, "val": val, "train": train, "test": test}.items():
        source = open_source("wider", place, split)
        assert twice(source) == records
        name = f"wider_attribute_{'test' if split == 'test' else 'trainval'}.json"
        assert source.provenance == {"source": "WIDER-Attribute", "files": {name: sha256(json.dumps(content[name]))}}


# ---- Tables


def test_a_table(tmp_path):
    text = (
        "fold,photo,labels,ignored,note\n"
        "val,z/9.jpg,cow,,v\n"
        "train,b.1.jpg,dog;ant,cat,w\n"
        "train,./a.png,,ant|cow,x\n"
        "val,c.jpg,dog;dog,,y\n"
    )
    place = files(tmp_path, {"t.csv": text, **dict.fromkeys(("z/9.jpg", "b.1.jpg", "a.png", "c.jpg"), "")})
    source = open_source("table", place / "t.csv", "train")
    assert source.labels.classes == ("ant", "cat", "cow", "dog")
    assert twice(source) == [
        Record("b_1", "b.1.jpg", (0, 3), (1,), image_id="b.1.jpg"),
        Record("a", "a.png", (), (0, 2), image_id="a.png"),
    ]
    assert source.counts == {"without_any_class": 1}
    source = open_source("table", place / "t.csv", "val")
    assert twice(source) == [
        Record("z_9", "z/9.jpg", (2,), image_id="z/9.jpg"),
        Record("c", "c.jpg", (3,), image_id="c.jpg"),
    ]
    assert source.counts == {"without_any_class": 0}
    assert source.provenance["files"] == {"t.csv": sha256(text)}


def test_tables_of_columns_of_classes_in_two_folders(tmp_path):
    """As Roboflow writes them; the second has its columns in another order, and -1 is what nobody could tell."""
    content = {
        "train/_classes.csv": "filename,dog,ant,cow\nb.jpg,1,-1,0\na.jpg,0,0,1\n",
        "valid/_classes.csv": "cow,filename,ant,dog\n-1,a.jpg,1,0\n",
    }
    place = files(tmp_path, content | dict.fromkeys(("train/b.jpg", "train/a.jpg", "valid/a.jpg"), ""))
    expected = {
        "train": [
            Record("train_b", "train/b.jpg", (0,), (1,), image_id="train/b.jpg"),
            Record("train_a", "train/a.jpg", (2,), image_id="train/a.jpg"),
        ],
        "valid": [Record("valid_a", "valid/a.jpg", (1,), (2,), image_id="valid/a.jpg")],
    }
    for split, records in expected.items():
        source = open_source("table", place, split)
        assert source.labels.classes == ("dog", "ant", "cow") and twice(source) == records
        assert source.provenance["files"] == {name: sha256(text) for name, text in content.items()}


def test_a_row_per_label(tmp_path):
    text = "image,label\nb.jpg,dog\na.jpg,cow\nb.jpg,ant\na.jpg,cow\nc.jpg,cat\n"
    place = files(tmp_path, {"t.csv": text, **dict.fromkeys(("a.jpg", "b.jpg", "c.jpg"), "")})
    assert twice(open_source("table", place / "t.csv", "all")) == [
        Record("b", "b.jpg", (0, 3), image_id="b.jpg"),
        Record("a", "a.jpg", (2,), image_id="a.jpg"),
        Record("c", "c.jpg", (1,), image_id="c.jpg"),
    ]
