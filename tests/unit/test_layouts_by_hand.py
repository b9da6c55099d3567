"""What annotations of other programs may hold beside what a whole dataset by hand has: names, numbers, edges."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from msldata.contract.records import Record
from msldata.errors import BadInputError, UserError
from msldata.sources.kinds import KINDS, open_source
from msldata.sources.source import SourceOptions, key_of
from msldata.sources.spelling import composed
from msldata.sources.voc_xml import parse_annotation
from tests.tinydata import voc_object, voc_xml


def files(root: Path, **contents: Any) -> Path:
    """Files below ``root``, by their paths; images are never read here."""
    for name, content in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return root


def records(kind: str, root: Path, split: str = "all", **options: Any) -> list[Record]:
    return list(open_source(kind, root, split, options=SourceOptions(**options)).records())


# ---- VOC


def test_a_photograph_called_as_a_split_is_none(tmp_path):
    root = files(tmp_path, **{"val.xml": voc_xml(voc_object("fox")), "val.jpg": "", "b.xml": voc_xml(), "b.jpg": ""})
    assert KINDS["voc"].splits(root) == ("all",)
    assert [(one.key, one.image) for one in records("voc", root)] == [("b", "b.jpg"), ("val", "val.jpg")]


def test_of_two_folders_called_as_splits_the_first_is_the_split(tmp_path):
    content = {f"train/{name}": voc_xml(voc_object("fox")) for name in ("a.xml", "test/a.xml")}
    root = files(tmp_path, **content, **{"train/a.jpg": "", "train/test/a.jpg": ""})
    assert [one.key for one in records("voc", root, "train")] == ["a", "test_a"]


def test_an_image_of_difficult_objects_alone_ignores_their_classes(tmp_path):
    objects = (voc_object("fox", difficult=1), voc_object("ape", difficult=1), voc_object("fox", difficult=1))
    (record,) = records("voc", files(tmp_path, **{"a.xml": voc_xml(*objects), "a.jpg": ""}))
    assert (record.positives, record.ignored) == ((), (0, 1))


def test_classes_found_are_sorted_as_their_letters_are_and_also_of_images_that_no_list_names(tmp_path):
    below = {"a": "ibex", "b": "Zebra", "deep/c": "ant"}
    content = {f"Annotations/{name}.xml": voc_xml(voc_object(one)) for name, one in below.items()}
    root = files(tmp_path, **content, **{"JPEGImages/a.jpg": "", "ImageSets/Main/Train.txt": "a\n"})
    assert KINDS["voc"].splits(root) == ("Train",)
    source = open_source("voc", root, "Train")
    assert source.labels.classes == ("Zebra", "ant", "ibex")
    assert [one.positives for one in source.records()] == [(2,)]


def test_all_splits_have_the_classes_of_all(tmp_path):
    """Or the same number would be another class in each of them."""
    below = {"train/a": "fox", "test/b": "ape", "test/c": "fox"}
    content = {f"{name}.xml": voc_xml(voc_object(one)) for name, one in below.items()}
    root = files(tmp_path, **content, **{f"{name}.jpg": "" for name in below})
    for split, positives in (("train", [(1,)]), ("test", [(0,), (1,)])):
        source = open_source("voc", root, split)
        assert source.labels.classes == ("ape", "fox")
        assert [one.positives for one in source.records()] == positives


def test_the_digest_is_of_whole_annotations(tmp_path):
    text = voc_xml(*[voc_object("fox", (1, 1, 5, number)) for number in range(1, 40)])
    source = open_source("voc", files(tmp_path, **{"a.xml": text, "a.jpg": ""}), "all")
    list(source.records())
    assert len(text) > 2048 and source.provenance["annotations_sha256"] == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [("57.0", "31.0", (57, 31)), ("57", "0", None), ("0", "31", None), ("", "31", None), ("1e999", "31", None)],
)
def test_the_size_that_an_annotation_states(width, height, size):
    text = f"<annotation><size><width>{width}</width><height>{height}</height></size></annotation>"
    assert parse_annotation(text.encode(), "a.xml")[1] == size


def test_a_box_that_was_counted_from_0_begins_before_the_first_pixel():
    (item,), _ = parse_annotation(voc_xml(voc_object("dog", (0, 0, 9, 7))).encode(), "a.xml")
    assert (item.box, item.area) == ((-1, -1, 10, 8), 80)


@pytest.mark.parametrize("box", [(0.2, 0.3, 1, 1), (0.25, 0.5, 1, 0.75), (0.5, 0.25, 0.75, 1)])
def test_a_box_in_shares_is_none_in_pixels(box):
    with pytest.raises(BadInputError, match="has a box between 0 and 1, where pixels are expected"):
        parse_annotation(voc_xml(voc_object("dog", box)).encode(), "a.xml")


# ---- COCO


def coco(names: list[str], annotations: list[dict[str, Any]] = []) -> dict[str, Any]:  # noqa: B006
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "fox"}]}


def test_objects_of_coco_are_in_the_order_of_their_numbers(tmp_path):
    numbers = [10, 9, 2, 100]
    said = [{"id": k, "image_id": 0, "category_id": 1, "bbox": [0, 0, k, 1]} for k in numbers]
    (record,) = records("coco", files(tmp_path, **{"all.json": coco(["a.jpg"], said), "a.jpg": ""}) / "all.json")
    assert [item.box[2] for item in record.objects] == [2, 9, 10, 100]


@pytest.mark.parametrize("box", [{}, {"bbox": None}, {"bbox": []}])
def test_an_annotation_without_a_box_is_a_label_all_the_same(tmp_path, box):
    said = [{"id": 1, "image_id": 0, "category_id": 1, **box}]
    (record,) = records("coco", files(tmp_path, **{"all.json": coco(["a.jpg"], said), "a.jpg": ""}) / "all.json")
    assert (record.positives, record.objects) == ((0,), ())


def test_all_splits_of_coco_are_found_however_many(tmp_path):
    names = [f"part{number:02d}" for number in range(12)]
    content = {f"annotations/instances_{name}.json": coco(["a.jpg"]) for name in names}
    root = files(tmp_path, **content, **{f"{name}/a.jpg": "" for name in names})
    assert KINDS["coco"].splits(root) == tuple(names)


def test_folders_in_a_folder_of_images_are_no_images_of_every_split(tmp_path):
    content = {f"annotations/instances_{name}.json": coco(["a.jpg"]) for name in ("one", "two")}
    root = files(tmp_path, **content, **{"images/one/a.jpg": ""})
    assert KINDS["coco"].splits(root) == ("one",)
    assert [one.image for one in records("coco", root, "one")] == ["images/one/a.jpg"]


def test_where_images_lie_is_told_by_some_of_all_of_them(tmp_path):
    names = [f"{number:02d}.jpg" for number in range(16)]
    content = {f"images/{name}": "" for name in names[:8]} | {f"data/{name}": "" for name in names}
    root = files(tmp_path, **{"annotations/instances_one.json": coco(names)}, **content)
    assert {one.image.partition("/")[0] for one in records("coco", root, "one")} == {"data"}


def test_a_folder_of_a_split_keeps_its_capitals(tmp_path):
    root = files(tmp_path, **{"Train/_annotations.coco.json": coco(["a.jpg"]), "Train/a.jpg": ""})
    assert KINDS["coco"].splits(root) == ("Train",)
    assert [one.image for one in records("coco", root, "Train")] == ["Train/a.jpg"]


def test_a_published_file_keeps_images_without_annotations_only_where_it_is_said(tmp_path):
    own = coco(["a.jpg"])
    published = own | {"info": {"url": "http://cocodataset.org"}}
    for content, kept in ((own, {None: 1, True: 1, False: 0}), (published, {None: 0, True: 1, False: 0})):
        path = files(tmp_path, **{"all.json": content, "a.jpg": ""}) / "all.json"
        found = {said: len(records("coco", path, keep_unlabelled=said)) for said in kept}
        assert found == kept


# ---- YOLO


@pytest.mark.parametrize(
    ("line", "box"),
    [
        ("1 0.125 0.25 0.5 0.75", (-0.125, -0.125, 0.5, 0.75)),  # it leaves the picture on two sides
        ("1.0 0.5 0.25 0.5 0.25 0.75", (0.25, 0.125, 0.5, 0.25)),  # a fifth number is a confidence
        ("1 0.25 0.125 0.75 0.25 0.5 0.875", (0.25, 0.125, 0.5, 0.75)),  # a triangle
        ("1 0.75 0.5 0.25 0.5 0.5 0.25 0.5 0.75", (0.25, 0.25, 0.5, 0.5)),
    ],
)
def test_a_line_of_yolos(tmp_path, line, box):
    root = files(tmp_path, **{"classes.txt": "ape\nfox\n", "images/a.jpg": "", "labels/a.txt": f"{line}\n"})
    (record,) = records("yolo", root)
    assert [(item.class_index, item.box, item.area) for item in record.objects] == [(1, box, box[2] * box[3])]


@pytest.mark.parametrize("more", [0, 1])
def test_keypoints_are_no_part_of_a_box(tmp_path, more):
    """Two points of two numbers each, and a confidence or not; eight numbers are the corners of a square elsewhere."""
    about = "names: [fox]\nkpt_shape: [2, 2]\ntrain: images\n"
    line = " ".join(["0 .5 .25 .5 .25", ".9 " * more, ".1 .2 .3 .4"])
    root = files(tmp_path, **{"data.yaml": about, "images/a.jpg": "", "labels/a.txt": line})
    (record,) = records("yolo", root, "train")
    assert [item.box for item in record.objects] == [(0.25, 0.125, 0.5, 0.25)]


@pytest.mark.parametrize("number", ["0.5", "1.7", "1e0", "-1", "2", "fox"])
def test_what_is_no_number_of_a_class(tmp_path, number):
    content = {"classes.txt": "ape\nfox\n", "images/a.jpg": "", "labels/a.txt": f"{number} .5 .5 .2 .2\n"}
    with pytest.raises(BadInputError, match=r"labels/a\.txt"):
        records("yolo", files(tmp_path, **content))


def test_one_image_of_many_in_two_splits_is_noticed(tmp_path):
    about = "names: [fox]\ntrain: train.txt\nval: val.txt\n"
    names = [f"images/{letter}.jpg" for letter in "abcdef"]
    lists = {"train.txt": "\n".join(names[:4]), "val.txt": "\n".join(names[3:])}
    root = files(tmp_path, **{"data.yaml": about}, **lists, **dict.fromkeys(names, ""))
    with pytest.raises(UserError, match=r"1 image of train .* are in val .*images/d\.jpg"):
        records("yolo", root, "train")


# ---- CVAT


def cvat(*images: str) -> str:
    labels = "".join(f"<label><name>{name}</name></label>" for name in ("ape", "fox"))
    meta = f"<meta><project><labels>{labels}</labels></project></meta>"
    return f"<annotations><version>1.1</version>{meta}{''.join(images)}</annotations>"


BOX = '<box label="{}" occluded="0" xtl="1" ytl="2" xbr="9" ybr="5" {}/>'


def test_subsets_of_cvats_and_their_folders(tmp_path):
    rows = [
        f'<image id="{k}" name="{name}" subset="{subset}" width="24" height="16">{BOX.format("fox", "")}</image>'
        for k, (name, subset) in enumerate(
            [("a.jpg", "Train"), ("b.jpg", "default"), ("c.jpg", " Default "), ("d.jpg", "")]
        )
    ]
    content = {"annotations.xml": cvat(*rows), "images/Train/a.jpg": "", "images/b.jpg": "", "images/default/d.jpg": ""}
    root = files(tmp_path, **content)
    assert KINDS["cvat"].splits(root) == ("train", "all")
    assert [one.image for one in records("cvat", root, "train")] == ["images/Train/a.jpg"]
    assert [one.image_id for one in records("cvat", root)] == ["1", "2", "3"]
    assert records("cvat", root)[0].size == (24, 16)


def test_a_whole_turn_is_none(tmp_path):
    turns = ("0", "360", "-720.0", "90", "359.5")
    boxes = "".join(BOX.format("fox", f'rotation="{turn}"') for turn in turns)
    root = files(tmp_path, **{"annotations.xml": cvat(f'<image id="0" name="a.jpg">{boxes}</image>'), "a.jpg": ""})
    (record,) = records("cvat", root)
    assert [item.box for item in record.objects] == [(1, 2, 8, 3)] * 3 and record.positives == (1,)


def test_a_photograph_with_a_tag_alone_is_labelled(tmp_path):
    rows = ('<image id="0" name="a.jpg"><tag label="ape"/></image>', '<image id="1" name="b.jpg"></image>')
    root = files(tmp_path, **{"annotations.xml": cvat(*rows), "a.jpg": "", "b.jpg": ""})
    source = open_source("cvat", root, "all")
    assert [(one.image, one.positives) for one in source.records()] == [("a.jpg", (0,))]
    assert source.counts == {"dropped_without_annotations": 1}


def test_of_two_files_none_is_cvats_by_its_place(tmp_path):
    text = cvat(f'<image id="0" name="a.jpg">{BOX.format("fox", "")}</image>')
    root = files(tmp_path, **{"one.xml": text, "a.jpg": ""})
    assert KINDS["cvat"].splits(root) == ("all",)
    files(root, **{"two.xml": text})
    assert KINDS["cvat"].splits(root) == ()


# ---- WIDER, segments, and what all share


def test_the_folder_that_tells_train_from_val_is_the_first(tmp_path):
    targets = [{"attribute": [1] + [-1] * 13, "bbox": [0, 0, 4, 5]}]
    names = ["val/train/a.jpg", "train/val/b.jpg"]
    images = [{"file_name": name, "targets": targets} for name in names]
    root = files(tmp_path, **{"wider_attribute_trainval.json": {"images": images}, "Image/x": ""})
    assert [one.image for one in list(open_source("wider", root, "val").records())] == ["Image/val/train/a.jpg"]
    assert [one.image for one in list(open_source("wider", root, "train").records())] == ["Image/train/val/b.jpg"]


def test_segments_of_a_wide_picture_are_to_the_pixel(tmp_path):
    """A bar of 3 and one of 12 pixels, with the other object in the 4 between them: it covers 4 of 19."""

    def bar(left: int, right: int) -> list[int]:
        return [left, 2, right, 2, right, 6, left, 6]

    segments = [[bar(3001, 3004), bar(3008, 3020)], [bar(3004, 3008)]]
    said = [
        {"id": k, "image_id": 0, "category_id": 1, "bbox": [0, 0, 1, 1], "segmentation": segment}
        for k, segment in enumerate(segments)
    ]
    content = coco(["a.jpg"], said)
    content["images"][0] |= {"width": 4001, "height": 9}
    root = files(tmp_path, **{"all.json": content, "a.jpg": ""})
    (record,) = records("coco", root / "all.json", segments=True)
    assert [(one.covered, one.separated) for one in record.occlusion] == [(4 / 19, True), (0.0, False)]


def test_without_a_class_its_ignored_labels_are_gone_too(tmp_path):
    rows = "image,labels,ignored\na.jpg,none,fox\nb.jpg,fox,none\nc.jpg,ape,fox\nd.jpg,none,\n"
    root = files(tmp_path, **{"labels.csv": rows}, **{f"{letter}.jpg": "" for letter in "abcd"})
    source = open_source("table", root / "labels.csv", "all", negative=["none"])
    assert source.labels.classes == ("ape", "fox")
    assert [(one.positives, one.ignored) for one in source.records()] == [
        ((), (1,)),
        ((1,), ()),
        ((0,), (1,)),
        ((), ()),
    ]
    assert source.counts["without_any_class"] == 2


@pytest.mark.parametrize(
    ("image", "key"),
    [("v1.2/photo", "v1_2_photo"), ("a.tar.jpg", "a_tar"), ("b", "b"), ("x/y.z/w.PNG", "x_y_z_w"), ("c.", "c_")],
)
def test_the_key_of_an_image(image, key):
    assert key_of(image) == key


def test_signs_that_are_no_accents_stay():
    assert [composed(name) for name in ("m²", "ﬁsh", "e\u0301", "Å")] == ["m²", "ﬁsh", "é", "Å"]
