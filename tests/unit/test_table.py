"""One's own labelled photographs as a table: what is read, in three file formats, and what is refused with its line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from msldata.build.shards import build_shards, plan_build
from msldata.errors import BadInputError, UserError
from msldata.sources.kinds import open_source, select_sources
from msldata.storage import open_storage
from msltrain.use.read_images import find_images
from tests.tinydata import jpeg

ROWS = [
    {"image": "a.jpg", "labels": ["dog", "cat"], "ignored": ["bird"], "split": "train"},
    {"image": "deep er/b.v2.JPG", "labels": [], "ignored": [], "split": "test"},
    {"image": "./c.png", "labels": ["cat", "cat"], "ignored": [], "split": "train"},
]
CSV = "image,labels,ignored,split\na.jpg,dog;cat,bird,train\n\ndeep er/b.v2.JPG,,,test\n./c.png, cat | cat ;,,train\n"


def write_csv(path: Path, text: str = CSV) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def write_jsonl(path: Path, rows: list[dict] = ROWS) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_parquet(path: Path, rows: list[dict] = ROWS) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize(("kind", "write"), [("csv", write_csv), ("jsonl", write_jsonl), ("parquet", write_parquet)])
def test_three_formats_say_the_same(tmp_path, kind, write):
    path = write(tmp_path / f"labels.{kind}")
    train = open_source("table", path, "train", name="mine")
    assert (train.dataset, train.split, train.labels.classes) == ("mine", "train", ("bird", "cat", "dog"))
    a, c = train.records()
    assert (a.key, a.image, a.positives, a.ignored, a.image_id) == ("a", "a.jpg", (1, 2), (0,), "a.jpg")
    assert (c.key, c.image, c.positives, c.ignored) == ("c", "c.png", (1,), ())
    (b,) = open_source("table", path, "test").records()
    assert (b.key, b.image, b.positives) == ("deep_er_b_v2", "deep er/b.v2.JPG", ())
    (found,) = select_sources(tmp_path, "table", path)
    assert found.splits == ("train", "test")
    assert list(train.provenance["files"]) == [path.name]


def test_only_image_and_labels_are_needed(tmp_path):
    for path in (
        write_csv(tmp_path / "l.csv", '\ufefflabels,image\r\n"cat","a, b.jpg"\r\n'),  # as spreadsheets write it
        write_jsonl(tmp_path / "l.jsonl", [{"image": "a, b.jpg", "labels": ["cat"]}]),
    ):
        (found,) = select_sources(tmp_path, "table", path)
        assert found.splits == ("all",)
        (record,) = open_source("table", path, "all").records()
        assert (record.image, record.positives) == ("a, b.jpg", (0,))
    with pytest.raises(UserError, match=r"l\.csv has no split 'train'; known are: all"):
        open_source("table", tmp_path / "l.csv", "train")


def test_a_list_of_classes_gives_the_order(tmp_path):
    path = write_csv(tmp_path / "labels.csv")
    classes = tmp_path / "classes.txt"
    classes.write_text("dog\ncat\n\nfish\nbird\n")
    source = open_source("table", path, "train", classes=classes)
    assert source.labels.classes == ("dog", "cat", "fish", "bird")
    assert next(source.records()).positives == (0, 1)
    assert list(source.provenance["classes"]) == ["classes.txt"]
    classes.write_text("dog\ncat\n")
    with pytest.raises(BadInputError, match=r"labels\.csv: line 2: unknown label 'bird'; add it to .*classes\.txt"):
        open_source("table", path, "train", classes=classes)
    with pytest.raises(FileNotFoundError, match=r"none\.txt: no such list of classes"):
        open_source("table", path, "train", classes=tmp_path / "none.txt")
    with pytest.raises(UserError, match="voc2007 has its own classes; only these take a list: voc, coco, cvat, table"):
        open_source("voc2007", tmp_path, "train", classes=classes)


def test_a_list_of_classes_that_was_put_in_another_order_is_read_again(tmp_path):
    path, classes = write_csv(tmp_path / "labels.csv"), tmp_path / "classes.txt"
    found = []
    for number, names in enumerate(("dog\ncat\nbird\n", "cat\ndog\nbird\n")):  # as long as before
        classes.write_text(names)
        os.utime(classes, ns=(number, number))
        found.append(next(open_source("table", path, "train", classes=classes).records()).ignored)
        found.append(open_source("table", path, "train", classes=classes).labels.classes[0])
    assert found == [(2,), "dog", (2,), "cat"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the table has no rows"),
        ("image,labels\n", "the table has no rows"),
        ("a.jpg,x\nb.jpg,y\n", "it seems to have no header line, for it begins with 'a.jpg, x'; write one above it, "),
        ("image,labels,labels\na.jpg,x,y\n", "line 1: a column is named twice"),
        (
            "image,labels\na.jpg,x,y\n",
            "line 2: 3 cells, the header has 2; a cell that holds a comma stands in double quotes",
        ),
        ("image,labels\n,x\n", "line 2: image is '', not a path"),
        ("image,labels\nb/../../a.jpg,x\n", "line 2: image is 'b/../../a.jpg'; '..' is refused"),
        ("image,labels\n..\\a.jpg,x\n", "line 2: image is '../a.jpg'; '..' is refused"),
        ("image,labels\nftp://host/a.jpg,x\n", "line 2: image is 'ftp://host/a.jpg'"),
        ("image,labels\nfile:///etc/a.jpg,x\n", "line 2: image is 'file:///etc/a.jpg'"),
        (
            "image,labels\nhttps://host/a.jpg?size=1,x\n",
            "line 2: image is 'https://host/a.jpg?size=1'; an address with ? or #",
        ),
        ("image,labels\nhttps://me:secret@host/a.jpg,x\n", "line 2: image is at host; keep user names"),
        ("image,labels\nhttps://host/../a.jpg,x\n", "line 2: image is 'https://host/../a.jpg', which names no file"),
        (
            "image,labels\nhttps://host/%2e%2e/a.jpg,x\n",
            "line 2: image is 'https://host/%2e%2e/a.jpg', which names no file",
        ),
        ("image,labels\ns3://bucket,x\n", "line 2: image is 's3://bucket', which names no file"),
        ("image,labels\nhttps://one/a.jpg,x\nhttps://two/a.jpg,x\n", "line 2 and line 3: "),
        ("image,labels\npipe:rm a.jpg,x\n", "line 2: image is 'pipe:rm a.jpg'"),
        ("image,labels\na.jpg,x\n\na.png,y\n", "line 2 and line 4: 'a.jpg' and 'a.png' have one key, 'a'"),
        ("image,labels\na/b.jpg,x\na_b.jpg,y\n", "line 2 and line 3: 'a/b.jpg' and 'a_b.jpg' have one key, 'a_b'"),
        ("image,labels,split\na.jpg,x,train\na.jpg,x,test\n", "line 2 and line 3: "),
        ("image,labels,ignored\na.jpg,x;y,y\n", "line 2: 'y' is both a label and ignored"),
        ("image,labels,split\na.jpg,x,\n", "line 2: split is '', not a name"),
        ("image,labels,split\na.jpg,x,../up\n", "line 2: "),
        ('image,labels\n"a.jpg,x\n', "unexpected end of data"),
    ],
)
def test_a_bad_csv_is_named_with_its_line(tmp_path, text, reason):
    path = write_csv(tmp_path / "labels.csv", text)
    with pytest.raises(BadInputError) as caught:
        select_sources(tmp_path, "table", path)
    assert caught.value.file == str(path)
    assert caught.value.reason.startswith(reason)
    assert "--on-error" not in str(caught.value)  # it would not help


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"image": "a.jpg", "labels": ["x"]}\n{"image": "b', "line 2: not JSON"),
        ("[1]\n", "line 1: '[1]' is not an object with image and labels"),
        ('{"image": "a.jpg"}\n', "no column 'labels' and no columns of 0 and 1 among image"),
        ('{"image": "a.jpg", "labels": []}\n{"image": "b.jpg"}\n', "line 2: no column 'labels'"),
        ('{"image": "a.jpg", "labels": 0.4}\n', "line 1: labels hold 0.4; a score is not a label"),
        ('{"image": "a.jpg", "labels": {"x": 3}}\n', "line 1: labels are {'x': 3}, expected choices"),
        ('{"image": 5, "labels": []}\n', "line 1: image is 5, not a path"),
        ('{"image": "a.jpg", "labels": [""]}\n', "line 1: labels are [''], expected a list of class names"),
        (
            '{"image": "a.jpg", "labels": ["x"], "split": "train"}\n{"image": "b.jpg", "labels": ["x"]}\n',
            "line 2: split is ''; either all rows name a split or none does",
        ),
    ],
)
def test_bad_json_lines_are_named_with_their_line(tmp_path, text, reason):
    path = tmp_path / "labels.jsonl"
    path.write_text(text)
    with pytest.raises(BadInputError) as caught:
        open_source("table", path, "train")
    assert caught.value.reason.startswith(reason)


def test_files_that_are_no_tables(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"none\.csv: no such table; give a \.csv, \.tsv, \.jsonl, .*\.parquet file"
    ):
        open_source("table", tmp_path / "none.csv", "all")
    (tmp_path / "labels.xlsx").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"labels\.xlsx: a spreadsheet, which is not read itself"):
        open_source("table", tmp_path / "labels.xlsx", "all")
    (tmp_path / "labels.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(BadInputError, match="not a parquet file"):
        open_source("table", tmp_path / "labels.parquet", "all")
    (tmp_path / "labels.csv").write_bytes(b"image,labels\n\xff\xfe,x\n")
    with pytest.raises(BadInputError, match="line 2: neither UTF-8 nor UTF-16"):
        open_source("table", tmp_path / "labels.csv", "all")
    write_csv(tmp_path / "labels.csv", "image,labels\na.jpg,\n")
    with pytest.raises(UserError, match="no row has a label; name the classes with --classes FILE"):
        open_source("table", tmp_path / "labels.csv", "all")
    with pytest.raises(UserError, match="--dataset table: say also where it is, with --source"):
        select_sources(tmp_path, "table")


def test_a_table_becomes_shards(tmp_path):
    path = write_csv(tmp_path / "labels.csv")
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    plan = plan_build(open_source("table", path, "train", name="mine"))
    with pytest.raises(BadInputError, match=r"c\.png: the image is missing"):
        build_shards(plan, open_storage(tmp_path / "out"), num_workers=1)
    (tmp_path / "c.png").write_bytes(jpeg(2))
    manifest = build_shards(plan, open_storage(tmp_path / "out"), num_workers=1)
    assert (manifest.dataset, manifest.split, manifest.num_samples) == ("mine", "train", 2)
    assert manifest.label_histogram == {
        "bird": {"positive": 0, "ignored": 1},
        "cat": {"positive": 2, "ignored": 0},
        "dog": {"positive": 1, "ignored": 0},
    }
    assert str(tmp_path).encode() not in (tmp_path / "out" / "dataset.json").read_bytes()


def rows_of(folder: Path, lines: list[str], header: str = "image,labels") -> Path:
    return write_csv(folder / "labels.csv", "\n".join([header, *lines] if header else lines) + "\n")


def test_columns_are_guessed_by_what_they_hold(tmp_path):
    path = rows_of(tmp_path, ["a.jpg,cat", "b.JPEG,dog"], "aufnahme,what is in it")
    source = open_source("table", path, "all")
    assert [record.image for record in source.records()] == ["a.jpg", "b.JPEG"]
    assert source.provenance["labels"].startswith("images in column 'aufnahme', labels in 'what is in it'")
    path = rows_of(tmp_path, ["1,a.jpg,cat", "2,b.jpg,dog"], "id,datei,tags")
    assert [record.image for record in open_source("table", path, "all").records()] == ["a.jpg", "b.jpg"]
    assert open_source("table", rows_of(tmp_path, ["a,cat"], "photo,tags"), "all").labels.classes == ("cat",)
    # Numbers beside the images are no labels, and of two columns of words none is chosen.
    for header, line in (("image,width", "a.jpg,640"), ("image,this,that", "a.jpg,cat,dog")):
        with pytest.raises(UserError, match="no column 'labels' and no columns of 0 and 1"):
            open_source("table", rows_of(tmp_path, [line], header), "all")


def test_columns_no_longer_in_use_take_no_cells(tmp_path):
    # Of a column without a name a spreadsheet writes an empty cell in some rows, none in others.
    path = rows_of(tmp_path, ["a.jpg,cat,,", "b.jpg,dog,", "c.jpg,bird"], "image,labels,,")
    source = open_source("table", path, "all")
    assert [source.labels.names(record.positives) for record in source.records()] == [["cat"], ["dog"], ["bird"]]
    with pytest.raises(BadInputError, match="line 3: 3 cells, the header has 2"):
        open_source("table", rows_of(tmp_path, ["a.jpg,cat,,", "b.jpg,dog,odd"], "image,labels,,"), "all")


def test_what_any_row_of_a_photograph_ignores_is_ignored(tmp_path):
    lines = ["a.jpg,cat,", "b.jpg,dog,cow", "a.jpg,dog,bird", "a.jpg,cow,", "c.jpg,bird,"]
    source = open_source("table", rows_of(tmp_path, lines, "image,label,ignored"), "all")
    names = source.labels.names
    assert [(record.key, names(record.positives), names(record.ignored)) for record in source.records()] == [
        ("a", ["cat", "cow", "dog"], ["bird"]),
        ("b", ["dog"], ["cow"]),
        ("c", ["bird"], []),
    ]
    rows_of(tmp_path, ["a.jpg,cat,", "a.jpg,dog,cat"], "image,label,ignored")
    with pytest.raises(BadInputError, match="line 2: 'cat' is both a label and ignored"):
        open_source("table", tmp_path / "labels.csv", "all")


def test_tasks_that_nobody_annotated_are_counted_in_their_split(tmp_path):
    for split, num_left in (("train", 3), ("val", 1)):
        folder = tmp_path / split
        folder.mkdir()
        done = [{"result": [{"value": {"choices": ["cat"]}}]}]
        tasks = [{"data": {"image": f"{n}.jpg"}, "annotations": done if n >= num_left else []} for n in range(5)]
        (folder / "labels.json").write_text(json.dumps(tasks))
        for n in range(5):
            (folder / f"{n}.jpg").write_bytes(jpeg(n))
    found = {split: open_source("table", tmp_path, split) for split in ("train", "val")}
    assert {split: (len(list(one.records())), one.counts["not_annotated"]) for split, one in found.items()} == {
        "train": (2, 3),
        "val": (4, 1),
    }


def test_a_table_without_a_header_line(tmp_path):
    path = rows_of(tmp_path, ["IMG_1.jpg,cat", "IMG_2.jpg,cat"], "")
    with pytest.raises(
        BadInputError, match=r"no header line, for it begins with 'IMG_1\.jpg, cat'; write one above it"
    ):
        open_source("table", path, "all")
    with pytest.raises(UserError, match="no header line"):
        find_images([path])


def test_a_photograph_that_is_listed_twice(tmp_path):
    for lines, says in (
        (
            ["a.jpg,cat", "b.jpg,dog", "a.jpg,cat"],
            "line 2 and line 4: 'a.jpg' is listed twice, with the same labels; delete one of the lines",
        ),
        (
            ["a.jpg,cat", "a.jpg,dog"],
            r"with different labels \('cat' and 'dog'\); keep one line with all of its labels",
        ),
        (
            ["a.jpg,x", "a.jpg,x", "b.jpg,x", "b.jpg,x"],
            r"delete one of the lines \(line 4 and line 5: another listed twice\)",
        ),
    ):
        with pytest.raises(BadInputError, match=says):
            open_source("table", rows_of(tmp_path, lines), "all")
    path = rows_of(tmp_path, ["a.jpg,cat,train", "a.jpg,cat,test"], "image,labels,split")
    with pytest.raises(BadInputError, match="is listed twice, in train and in test; delete the line"):
        open_source("table", path, "train")


def test_all_photographs_that_have_one_key_are_named(tmp_path):
    pairs = [(f"p{number}.jpg,cat", f"p{number}.png,cat") for number in range(12)]
    path = rows_of(tmp_path, ["2020/a.jpg,cat", "2020_a.jpg,cat", *(line for pair in pairs[:2] for line in pair)])
    with pytest.raises(BadInputError) as caught:
        open_source("table", path, "all")
    assert caught.value.reason == (
        "line 2 and line 3: '2020/a.jpg' and '2020_a.jpg' have one key, '2020_a', line 4 and line 5: 'p0.jpg' and "
        "'p0.png' have one key, 'p0', line 6 and line 7: 'p1.jpg' and 'p1.png' have one key, 'p1'; an image may be "
        "listed only once, and two must differ in more than extension, dots and spaces"
    )
    with pytest.raises(BadInputError) as caught:
        open_source("table", rows_of(tmp_path, [line for pair in pairs for line in pair]), "all")
    assert str(caught.value).count("have one key") == 10 and "'p9' and 2 more; an image" in str(caught.value)


def test_all_images_of_a_folder_that_have_one_key_are_named(tmp_path):
    for folder in ("cat", "dog"):
        (tmp_path / folder).mkdir()
        for name in ("a", "b"):
            for suffix in (".jpg", ".png"):
                (tmp_path / folder / f"{name}{suffix}").write_bytes(jpeg(ord(name)))
    (tmp_path / "cat/c.jpg").write_bytes(jpeg(9))
    with pytest.raises(
        UserError, match=r"cat/a\.png: a second image with the key 'cat_a', beside 'cat/a\.jpg'"
    ) as caught:
        plan_build(open_source("folders", tmp_path, "all"))
    assert ", and so 'cat/b.jpg' and 'cat/b.png'; an image may be listed only once" in str(caught.value)
