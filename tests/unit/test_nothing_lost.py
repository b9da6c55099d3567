"""Labels and photographs that would be lost, or given to another photograph, without a word: refused, or read."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from msldata.build.plan import plan_build
from msldata.contract.records import LabelSpace, ObjectRecord, Record, read_class_list
from msldata.errors import OptionsNeeded, UserError
from msldata.masks.lists import ListedMasks
from msldata.sources.kinds import open_source
from msldata.sources.source import SourceOptions, fail
from msldata.storage import LocalStorage
from tests.tinydata import voc_object, voc_xml


def files(folder: Path, contents: dict[str, str]) -> Path:
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return folder


def shown(kind: str, root: Path, split: str = "all", **options) -> dict[str, list[str]]:
    """The positives of each image, and after an exclamation mark what is ignored."""
    source = open_source(kind, root, split, options=SourceOptions(**options))
    names = source.labels.names
    return {
        record.image: [*names(record.positives), *(f"!{name}" for name in names(record.ignored))]
        for record in source.records()
    }


def table(folder: Path, text: str, *images: str, name: str = "labels.csv") -> Path:
    return files(folder, {name: text, **dict.fromkeys(images, "")}) / name


# Label Studio's exports, with a row for each annotation of a task.

_EXPORT = "id,image,choice,annotator,annotation_id,lead_time\n"


def test_annotators_who_disagree_do_not_both_get_their_way(tmp_path):
    path = table(tmp_path, f"{_EXPORT}1,a.jpg,cat,1,11,3.1\n1,a.jpg,dog,2,12,2\n", "a.jpg")
    with pytest.raises(UserError, match=r"line 2 and line 3: annotators disagree on task 1 \(choice: 'cat' and"):
        shown("table", path)


def test_annotators_who_agree_are_one(tmp_path):
    rows = '1,a.jpg,"{""choices"": [""cat"", ""dog""]}",1,11,3.1\n1,a.jpg,"{""choices"": [""dog"", ""cat""]}",2,12,2\n'
    path = table(tmp_path, f"{_EXPORT}{rows}2,b.jpg,cat,1,13,1\n", "a.jpg", "b.jpg")
    assert shown("table", path) == {"a.jpg": ["cat", "dog"], "b.jpg": ["cat"]}


def test_two_uploads_of_one_name_do_not_become_one_photograph(tmp_path):
    uploads = ("/data/upload/1/aaaaaaaa-c.jpg", "/data/upload/1/bbbbbbbb-c.jpg")
    path = table(tmp_path, f"image,choice\n{uploads[0]},cat\n{uploads[1]},dog\n", "c.jpg")
    with pytest.raises(UserError, match=r"'aaaaaaaa-c\.jpg' and 'bbbbbbbb-c\.jpg' may be two photographs"):
        shown("table", path)
    (tmp_path / "c.jpg").rename(tmp_path / "aaaaaaaa-c.jpg")
    (tmp_path / "bbbbbbbb-c.jpg").touch()
    assert shown("table", path) == {"aaaaaaaa-c.jpg": ["cat"], "bbbbbbbb-c.jpg": ["dog"]}


# A table with a row per label.


@pytest.mark.parametrize(
    ("rows", "joined", "separated"),
    [
        ("a.jpg,cat,dog;bird\na.jpg,fish,\nb.jpg,dog,\nb.jpg,bird,\n", "dog;bird", ["cat", "fish", "!bird", "!dog"]),
        ("a.jpg,cat;dog,\nb.jpg,cat,\nb.jpg,bird,\n", "cat;dog", ["cat", "dog"]),
        ('a.jpg,"cat,bird",\nb.jpg,cat,\nb.jpg,bird,\n', "cat,bird", ["bird", "cat"]),
    ],
)
def test_a_cell_of_several_names_is_no_new_class(tmp_path, rows, joined, separated):
    path = table(tmp_path, f"image,label,ignored\n{rows}", "a.jpg", "b.jpg")
    separator = joined.strip("abcdefghijklmnopqrstuvwxyz")
    with pytest.raises(OptionsNeeded, match=f"line 2: '{joined}' in a table with a row per label") as asked:
        shown("table", path)
    assert asked.value.options == ("--separator", separator)
    assert shown("table", path, separator=separator)["a.jpg"] == separated
    assert joined in " ".join(shown("table", path, separator="none")["a.jpg"])


def test_a_name_that_only_looks_like_several_is_one(tmp_path):
    path = table(tmp_path, 'image,label\na.jpg,"Duke, J."\na.jpg,cat\nb.jpg,cat\n', "a.jpg", "b.jpg")
    assert shown("table", path) == {"a.jpg": ["Duke, J.", "cat"], "b.jpg": ["cat"]}


# Several tables, and marks.


def test_of_two_tables_in_a_folder_none_is_guessed(tmp_path):
    files(tmp_path, {"labels.csv": "image,labels\na.jpg,cat\n", "metadata.csv": "image,category\na.jpg,indoor\n"})
    (tmp_path / "a.jpg").touch()
    with pytest.raises(UserError, match=r"metadata\.csv and labels\.csv are tables; name the file"):
        shown("table", tmp_path)
    assert shown("table", tmp_path / "labels.csv") == {"a.jpg": ["cat"]}
    for split in ("train", "val"):
        files(tmp_path / "sets" / split, {"labels.csv": "image,labels\na.jpg,cat\n", "a.jpg": ""})
    assert shown("table", tmp_path / "sets", "val") == {"val/a.jpg": ["cat"]}
    files(tmp_path / "sets" / "val", {"_classes.csv": "image,cat\na.jpg,1\n"})
    with pytest.raises(UserError, match=r"val/_classes\.csv and val/labels\.csv are tables"):
        shown("table", tmp_path / "sets", "val")


def test_a_mark_for_each_row_is_no_ignored_class(tmp_path):
    images = ("a.jpg", "b.jpg", "c.jpg")
    path = table(tmp_path, "image,labels,ignored\na.jpg,1,0\nb.jpg,2,0\nc.jpg,2,0\n", *images)
    with pytest.raises(UserError, match=r"column 'ignored' holds 0 and 1: the class that is ignored, or"):
        shown("table", path)
    path = table(tmp_path, "image,labels,ignored\na.jpg,1,[0]\nb.jpg,2,\nc.jpg,2,\n", *images)
    assert shown("table", path) == {"a.jpg": ["1", "!0"], "b.jpg": ["2"], "c.jpg": ["2"]}


# What JSON and YAML keep the last of.


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.json", '{"a.jpg": ["cat"], "b.jpg": ["dog"], "a.jpg": ["bird"]}'),
        ("labels.json", '{"classes": ["cat"], "labels": {"a.jpg": 0, "a.jpg": null}}'),
        ("labels.jsonl", '{"image": "b.jpg", "labels": ["dog"], "a.jpg": 1, "a.jpg": 2}\n'),
    ],
)
def test_a_photograph_that_is_twice_in_an_object_is_not_lost(tmp_path, name, text):
    with pytest.raises(UserError, match=r"'a\.jpg' is there twice in one object"):
        shown("table", table(tmp_path, text, "a.jpg", "b.jpg", name=name))


def yolo(folder: Path, about: str, *images: str, **lists: str) -> Path:
    labels = {name.replace("images/", "labels/").replace(".jpg", ".txt"): "0 .5 .5 .2 .2\n" for name in images}
    listed = {f"{name}.txt": text for name, text in lists.items()}
    return files(folder, {"data.yaml": about, **dict.fromkeys(images, ""), **labels, **listed})


def test_a_number_with_two_names_is_refused(tmp_path):
    root = yolo(tmp_path, "names:\n  0: cat\n  1: dog\n  1: bird\ntrain: images\n", "images/a.jpg")
    with pytest.raises(UserError, match="line 2: '1' is given twice"):
        shown("yolo", root, "train")


# YOLO's lists and folders.


@pytest.mark.parametrize("before", ["", "./", "/mnt/old/set/", "C:\\set\\"])
def test_a_listed_image_that_is_not_there_is_missing(tmp_path, before):
    root = yolo(
        tmp_path,
        "names: [cat]\ntrain: train.txt\n",
        "images/a.jpg",
        "images/b.jpg",
        train=f"\ufeff{before}images/a.jpg\n{before}images/b.jpg\n",
    )
    (tmp_path / "images/b.jpg").unlink()
    if "\\" not in before:
        assert list(shown("yolo", root, "train")) == ["images/a.jpg", "images/b.jpg"]
    (tmp_path / "labels/b.txt").unlink()
    missing = plan_build(open_source("yolo", root, "train")).shards[0].missing
    assert len(missing) == 1 and missing[0].endswith("images/b.jpg")


def test_a_list_with_a_byte_order_mark_keeps_its_first_image(tmp_path):
    root = yolo(tmp_path, "names: [cat]\ntrain: train.txt\n", "a.jpg", "b.jpg")
    (root / "train.txt").write_text("\ufeffa.jpg\nb.jpg\n", encoding="utf-8")
    assert list(shown("yolo", root, "train")) == ["a.jpg", "b.jpg"]


def test_folders_that_are_not_there_do_not_put_all_images_into_every_split(tmp_path):
    about = "names: [cat]\ntrain: ../train/images\nval: ../valid/images\n"
    root = yolo(tmp_path, about, "images/train/a.jpg", "images/val/b.jpg")
    with pytest.raises(UserError, match=r"2 images of train \(\.\./train/images\) are in val \(\.\./valid/"):
        shown("yolo", root, "train")


def test_splits_that_are_named_alike_are_said_to_be_one(tmp_path):
    root = yolo(tmp_path, "names: [cat]\ntrain: images\nval: images\ntest: tests\n", "images/a.jpg")
    said = open_source("yolo", root, "val").notes
    assert said == (
        "test is 'tests', where no images are: left out",
        "train and val are the same images, as 'images' is named for both",
    )
    assert shown("yolo", root, "val") == {"images/a.jpg": ["cat"]}


# Lists of classes whose lines are counted.


def test_a_blank_line_among_counted_classes_is_asked_about(tmp_path):
    files(tmp_path, {"classes.txt": "cat\n\ndog\nbird\n", "end.txt": "cat\ndog\n\n\n"})
    place = LocalStorage(tmp_path)
    with pytest.raises(UserError, match=r"classes\.txt: line 2 is blank, and the labels count lines"):
        read_class_list(place, "classes.txt", counted=True)
    assert read_class_list(place, "end.txt", counted=True).classes == ("cat", "dog")


def test_labels_that_count_lines_count_no_blank_ones(tmp_path):
    classes = files(tmp_path, {"classes.txt": "cat\n\ndog\nbird\n"}) / "classes.txt"
    path = table(tmp_path / "t", "image,labels\na.jpg,0;2\nb.jpg,2\nc.jpg,0\n", "a.jpg", "b.jpg", "c.jpg")
    with pytest.raises(UserError, match="line 2 is blank"):
        shown("table", path, classes=classes)
    named = table(tmp_path / "n", "image,labels\na.jpg,cat;bird\nb.jpg,bird\n", "a.jpg", "b.jpg")
    assert shown("table", named, classes=classes) == {"a.jpg": ["cat", "bird"], "b.jpg": ["bird"]}


def test_yolos_classes_are_counted(tmp_path):
    root = files(tmp_path, {"classes.txt": "cat\n\ndog\n", "images/a.jpg": "", "labels/a.txt": "1 .5 .5 .2 .2\n"})
    with pytest.raises(UserError, match="line 2 is blank"):
        shown("yolo", root)


# VOC's layout without lists.


def test_two_annotations_or_images_of_one_name_are_both_named(tmp_path):
    xml = {"images/1.xml": voc_xml(voc_object("cat")), "2.xml": voc_xml(voc_object("dog"))}
    root = files(tmp_path, {**xml, "images/1.jpg": "", "2.jpg": "", "2.png": ""})
    assert shown("voc", root) == {"images/1.jpg": ["cat"], "2.jpg": ["dog"]}
    (root / "labels").mkdir()
    (root / "labels" / "1.jpg").touch()
    with pytest.raises(UserError, match=r"images/1\.jpg and \S+labels/1\.jpg: two files for one image"):
        shown("voc", root)
    (root / "labels" / "1.jpg").rename(root / "labels" / "1.xml")
    with pytest.raises(UserError, match=r"images/1\.xml and \S+labels/1\.xml: two files for one image"):
        shown("voc", root)


def test_a_folder_without_annotations_is_said_to_be_left_out(tmp_path):
    xml = voc_xml(voc_object("cat"))
    root = files(tmp_path, {"train/a.xml": xml, "train/a.jpg": "", "test/b.jpg": "", "test/c.jpg": ""})
    assert open_source("voc", root, "train").notes == ("2 photographs of 'test' without any XML file: left out",)
    files(root, {"test/b.xml": xml})
    assert open_source("voc", root, "train").notes == ()


# Hugging Face's files.


def hub(folder: Path, name: str, columns: dict, classes: dict[str, list[str]]) -> Path:
    features = {column: {"_type": "ClassLabel", "names": names} for column, names in classes.items()}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    (folder / "data").mkdir(exist_ok=True)
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), folder / "data" / name)
    return folder


def test_a_file_without_the_column_of_groups_is_refused(tmp_path):
    for number, more in enumerate(({"site": ["Nord"]}, {})):
        columns = {"image": [f"{number}.jpg"], "label": [0], **more}
        root = hub(tmp_path, f"all-{number:05d}-of-00002.parquet", columns, {"label": ["cod"]})
    assert len(shown("table", root)) == 2
    with pytest.raises(
        UserError, match=r"all-00001-of-00002\.parquet has no column 'site', which the other tables have"
    ):
        open_source("table", root, "all", options=SourceOptions(group="site"))


def test_of_two_columns_of_classes_the_chosen_one_has_its_names(tmp_path):
    columns = {"image": ["a.jpg", "b.jpg", "c.jpg"], "fine": [0, 2, 1], "coarse": [0, 1, 0]}
    classes = {"fine": ["cod", "fox", "eel"], "coarse": ["fish", "mammal"]}
    root = hub(tmp_path, "train-00000-of-00001.parquet", columns, classes)
    source = open_source("table", root, "train", options=SourceOptions(labels_columns=("fine",)))
    assert source.labels.classes == ("cod", "fox", "eel")
    assert [source.labels.names(record.positives) for record in source.records()] == [["cod"], ["eel"], ["fox"]]


def test_names_of_another_column_are_not_taken(tmp_path):
    columns = {"image": ["a.jpg", "b.jpg", "c.jpg"], "kind": [0, 2, 1], "weather": [0, 1, 0]}
    root = hub(tmp_path, "train-00000-of-00001.parquet", columns, {"weather": ["sun", "rain", "snow"]})
    source = open_source("table", root, "train", options=SourceOptions(labels_columns=("kind",)))
    assert source.labels.classes == ("0", "1", "2")


def test_files_that_were_not_fetched_are_named(tmp_path):
    columns = {"image": ["a.jpg"], "label": [0]}
    for number in (0, 2):
        hub(tmp_path, f"train-{number:05d}-of-00004.parquet", columns, {"label": ["cat"]})
    said = r"of 4 files these are missing: data/train-00001-of-00004\.parquet, data/train-00003-of-00004\.parquet"
    with pytest.raises(UserError, match=said):
        shown("table", tmp_path, "train")
    for number in (1, 3):
        (tmp_path / "data" / f"train-{number:05d}-of-00004.parquet").write_bytes(b"")
    hub(tmp_path, "train-00000-of-00001.parquet", columns, {"label": ["cat"]})
    for number in (1, 3):
        hub(tmp_path, f"train-{number:05d}-of-00004.parquet", columns, {"label": ["cat"]})
    with pytest.raises(UserError, match="are of two divisions of one dataset"):
        shown("table", tmp_path, "train")


# COCO's.


def test_a_split_without_a_folder_of_images_is_said_to_be_left_out(tmp_path):
    image = {"id": 1, "file_name": "a.jpg", "width": 60, "height": 40}
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 10, 10]}
    text = json.dumps({"images": [image], "annotations": [annotation], "categories": [{"id": 1, "name": "cat"}]})
    annotations = {f"annotations/instances_{split}.json": text for split in ("train", "val")}
    files(tmp_path, {**annotations, "train/a.jpg": "", "valid/a.jpg": ""})
    (said,) = open_source("coco", tmp_path, "train").notes
    assert said.startswith("val has annotations (annotations/instances_val.json), and no folder val or images/val")
    (tmp_path / "valid").rename(tmp_path / "val")
    assert open_source("coco", tmp_path, "train").notes == ()


@pytest.mark.parametrize(("written", "crowd"), [(0, False), (1, True), ("0", False), ("1", True), (None, False)])
def test_a_crowd_that_is_written_as_text(tmp_path, written, crowd):
    image = {"id": 1, "file_name": "a.jpg", "width": 60, "height": 40}
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 10, 10], "iscrowd": written}
    content = {"images": [image], "annotations": [annotation], "categories": [{"id": 1, "name": "cat"}]}
    path = files(tmp_path, {"x.json": json.dumps(content), "a.jpg": ""}) / "x.json"
    (record,) = open_source("coco", path, "all").records()
    assert record.objects[0].crowd is crowd


# A source of one's own.


class Own:
    dataset, split, licence, provenance = "own", "all", "none", {"source": "a test"}

    def __init__(self, root: Path, *records: Record):
        self.images, self.labels, self.counts = LocalStorage(root), LabelSpace(("ant", "bee", "cow")), {}
        self.reject, self._records = fail, records

    def records(self):
        yield from self._records


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (Record("a", "a.jpg", (-1,)), "class index -1; of 3 classes"),
        (Record("a", "a.jpg", (0, 3)), "class index 3; of 3 classes"),
        (Record("a", "a.jpg", (), (-2,)), "class index -2; of 3 classes"),
        (Record("a", "a.jpg", (0,), (), (ObjectRecord(-1, (0, 0, 1, 1), 1.0),)), "class index -1; of 3 classes"),
        (Record("a", "a.jpg", (0, 2), (1, 2)), "class index 2 is both positive and ignored"),
    ],
)
def test_a_record_of_impossible_classes_is_refused(tmp_path, record, says):
    with pytest.raises(UserError, match=says):
        plan_build(Own(tmp_path, record))


def test_classes_in_any_order_count_once(tmp_path):
    (record,) = plan_build(Own(tmp_path, Record("a", "a.jpg", (2, 0, 2), (1, 1)))).shards[0].records()
    assert (record.positives, record.ignored) == ((0, 2), (1,))


# Lists of masks.


def test_a_mask_by_two_paths_is_listed_twice(tmp_path):
    path = files(tmp_path, {"masks.txt": "a/0.png\n1.png\na/../a/./0.png\n"}) / "masks.txt"
    with pytest.raises(UserError, match=r"line 3: 'a/\.\./a/\./0\.png' is in line 1 already; remove one"):
        ListedMasks(path).names()
