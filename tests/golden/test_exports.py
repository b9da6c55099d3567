"""What annotation tools export, as their own exporters wrote it: taken for what it is, with every label right.

The rows of the table in docs/formats.md are these tests and those of `test_formats` and
`test_datumaro`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from msldata.sources.kinds import open_source, recognise
from msldata.sources.source import SourceOptions
from msltrain.__main__ import app
from tests.golden import test_datumaro, test_formats
from tests.golden.test_formats import AB, images, read, write
from tests.tinydata import jpeg
from tests.unit import test_cvat

NAMES = {"a": ["cat", "dog"], "b": ["cat"], "c": []}
CLASSES = ["cat", "cow", "dog"]


def labels(place: Path, dataset: str, options: SourceOptions | None = None) -> dict[str, dict[str, list[str]]]:
    """The positive classes by split and key."""
    found = read(place, options or SourceOptions(), dataset)
    return {split: {Path(name).stem: names for name, names in rows.items()} for split, rows in found.items()}


def xml(*names: str, size: tuple[int, int] = (24, 16)) -> str:
    """An annotation as FiftyOne, CVAT and Label Studio write it."""
    box = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>9</xmax><ymax>8</ymax></bndbox>"
    objects = "".join(f"<object><name>{name}</name>{box}</object>" for name in names)
    return f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>{objects}</annotation>"


def lines(*names: str) -> str:
    """An image's labels in YOLO's format."""
    return "".join(f"{CLASSES.index(name)} 0.25 0.4 0.3 0.4\n" for name in names)


def coco(file_name: str, first_id: int = 1) -> dict:
    pairs = [(image, name) for image, found in NAMES.items() for name in found]
    numbers = {image: number for number, image in enumerate(NAMES, start=first_id)}
    return {
        "categories": [
            {"id": number, "name": name, "supercategory": None} for number, name in enumerate(CLASSES, start=first_id)
        ],
        "images": [
            {"id": number, "file_name": file_name.format(name), "height": 16, "width": 24}
            for name, number in numbers.items()
        ],
        "annotations": [
            {
                "id": number,
                "image_id": numbers[image],
                "category_id": first_id + CLASSES.index(name),
                "bbox": [2, 3, 7, 5],
                "area": 35,
                "iscrowd": 0,
            }
            for number, (image, name) in enumerate(pairs, start=first_id)
        ],
    }


# ---- Spreadsheets and pandas


@pytest.mark.parametrize(
    "content",
    [
        "image\tlabels\r\na.jpg\tcat;dog\r\nb.jpg\tcat\r\n".encode("utf-16"),
        "\ufeffimage,labels\r\na.jpg,cat;dog\r\nb.jpg,cat\r\n".encode("utf-16-be"),
        b"sep=;\r\nimage;labels\r\na.jpg;cat|dog\r\nb.jpg;cat\r\n",
        b"image;labels;;;\r\na.jpg;cat|dog;;;\r\nb.jpg;cat;;;\r\n",
        b"image;cat;dog\r\na.jpg;1,0;1,00\r\nb.jpg;1,0;0,00\r\n",
        b"image,cat,dog\na.jpg,1.00,1.00\nb.jpg,1.00,0.00\n",
    ],
)
def test_spreadsheets(tmp_path, content):
    images(tmp_path, *AB)
    (tmp_path / "t.csv").write_bytes(content)
    assert read(tmp_path / "t.csv") == {"all": AB}


PANDAS = {
    "columns": {"image": {"0": "a.jpg", "1": "b.jpg"}, "labels": {"0": ["cat", "dog"], "1": ["cat"]}},
    "index": {"0": {"image": "a.jpg", "labels": ["cat", "dog"]}, "1": {"image": "b.jpg", "labels": ["cat"]}},
    "split": {"columns": ["image", "labels"], "index": [0, 1], "data": [["a.jpg", ["cat", "dog"]], ["b.jpg", ["cat"]]]},
    "table": {"schema": {}, "data": [{"image": name, "labels": found} for name, found in AB.items()]},
    "dict of lists": {"image": list(AB), "labels": list(AB.values())},
    "plain": AB,
}


@pytest.mark.parametrize("orient", PANDAS)
def test_pandas_json(tmp_path, orient):
    images(tmp_path, *AB, "0.jpg", "1.jpg")  # by the numbers of their rows other images would be found
    assert read(write(tmp_path / "t.json", PANDAS[orient])) == {"all": AB}


@pytest.mark.parametrize("folder", ["photos\\", "C:\\Users\\me\\photos\\", "D:/x/photos/"])
def test_paths_of_windows(tmp_path, folder):
    images(tmp_path / "photos", *AB)
    rows = "".join(f"{folder}{name},{';'.join(found)}\n" for name, found in AB.items())
    path = write(tmp_path / "t.csv", f"image,labels\n{rows}")
    assert labels(path, "table") == {"all": {Path(name).stem: found for name, found in AB.items()}}


# ---- FiftyOne


@pytest.mark.parametrize("kind", ["coco", "voc", "yolov5", "yolov4", "classifications", "detections", "tree"])
def test_fiftyone_exports(tmp_path, kind):
    expected, dataset, split = dict(NAMES), kind, "all"
    images(tmp_path / ("images/train" if kind == "yolov5" else "data"), *(f"{name}.jpg" for name in NAMES))
    if kind == "coco":
        write(tmp_path / "labels.json", coco("{}.jpg"))
    elif kind == "voc":
        for name, found in NAMES.items():
            write(tmp_path / f"labels/{name}.xml", xml(*found))
    elif kind == "yolov5":
        names = "".join(f"  {number}: {name}\n" for number, name in enumerate(CLASSES))
        write(tmp_path / "dataset.yaml", f"names:\n{names}path: /elsewhere\ntrain: ./images/train/\n")
        for name, found in NAMES.items():
            write(tmp_path / f"labels/train/{name}.txt", lines(*found))
        dataset, split = "yolo", "train"
    elif kind == "yolov4":
        write(tmp_path / "obj.names", "\n".join(CLASSES))
        write(tmp_path / "images.txt", "".join(f"data/{name}.jpg\n" for name in NAMES))
        for name, found in NAMES.items():
            write(tmp_path / f"data/{name}.txt", lines(*found))
        dataset = "yolo"
    elif kind == "tree":
        (tmp_path / "data").rename(tmp_path / "photos")
        for name, found in NAMES.items():
            folder = found[0] if found else "_unlabeled"
            write(tmp_path / folder / "x", "").unlink()
            (tmp_path / f"photos/{name}.jpg").rename(tmp_path / folder / f"{name}.jpg")
        write(tmp_path / "cow/d.jpg", "").write_bytes(jpeg(3))
        expected, dataset = {"a": ["cat"], "b": ["cat"], "d": ["cow"]}, "folders"
    else:
        index = {name: [CLASSES.index(one) for one in found] or None for name, found in NAMES.items()}
        box = [0.1, 0.2, 0.3, 0.4]
        boxes = {name: [{"label": n, "bounding_box": box} for n in found or []] for name, found in index.items()}
        write(tmp_path / "labels.json", {"classes": CLASSES, "labels": index if kind == "classifications" else boxes})
        dataset = "table"
    assert labels(tmp_path, dataset) == {split: expected}
    if kind == "tree":
        assert open_source("folders", tmp_path, "all").counts == {"outside_class_folders": 1}


# ---- Label Studio


def minimal(kind: str) -> list[dict]:
    common = {"annotator": "a@b.c", "annotation_id": 1, "created_at": "2024-01-01T00:00:00Z", "lead_time": 3.2}
    rows = [
        {"image": f"/data/upload/1/0a1b2c3d-{name}.jpg", "id": n, **common} for n, name in enumerate(NAMES, start=1)
    ]
    for row, found in zip(rows, NAMES.values(), strict=True):
        if found and kind == "choice":  # one is not in a list, none is not there at all
            row["choice"] = found[0] if len(found) == 1 else {"choices": found}
        elif found:
            row["label"] = [{"x": 10, "y": 20, "width": 30, "height": 40, "rectanglelabels": [one]} for one in found]
    return rows


@pytest.mark.parametrize("kind", ["choice", "rectangles", "address", "COCO", "VOC", "YOLO"])
def test_label_studio_exports(tmp_path, kind):
    names = [f"0a1b2c3d-{name}" for name in NAMES]
    expected = dict(zip(names, NAMES.values(), strict=True))
    images(tmp_path / ("images" if kind in ("VOC", "YOLO") else "."), *(f"{name}.jpg" for name in names))
    place, dataset = tmp_path, kind.lower()
    if kind == "COCO":
        place = write(tmp_path / "result.json", coco("/data/upload/1/0a1b2c3d-{}.jpg", first_id=0))
    elif kind == "VOC":
        for name, found in zip(names, NAMES.values(), strict=True):
            if found:
                write(tmp_path / f"Annotations/{name}.xml", xml(*found))
        del expected["0a1b2c3d-c"]
    elif kind == "YOLO":
        write(tmp_path / "classes.txt", "\n".join(CLASSES))
        write(tmp_path / "notes.json", {"categories": [{"id": n, "name": name} for n, name in enumerate(CLASSES)]})
        for name, found in zip(names, NAMES.values(), strict=True):
            write(tmp_path / f"labels/{name}.txt", lines(*found))
    else:
        text = json.dumps(minimal("choice" if kind == "address" else kind))
        if kind == "address":
            text = text.replace("/data/upload", "http://localhost:8080/data/upload")
        place, dataset = write(tmp_path / "result.json", text), "table"
    assert labels(place, dataset) == {"all": expected}


def test_label_studio_taxonomy(tmp_path):
    images(tmp_path, *AB)
    for name, path, expected in (("one", [["cat"], ["dog"]], ["cat", "dog"]), ("two", [["pet", "cat"]], ["pet/cat"])):
        result = [{"type": "taxonomy", "value": {"taxonomy": path}}]
        task = {"id": 1, "data": {"image": "/data/upload/1/a.jpg"}, "annotations": [{"result": result}]}
        assert read(write(tmp_path / f"{name}.json", [task])) == {"all": {"a.jpg": expected}}


# ---- CVAT, Roboflow, Ultralytics


def test_cvat_exports(tmp_path):
    voc, yolo = tmp_path / "voc", tmp_path / "yolo"
    images(voc / "JPEGImages", *(f"{name}.jpg" for name in NAMES))
    for name, found in NAMES.items():
        write(voc / f"Annotations/{name}.xml", xml(*found))
    write(voc / "labelmap.txt", "# label:color_rgb:parts:actions\nbackground:::\ncat:::\ndog:::\n")
    whole = write(voc / "ImageSets/Main/default.txt", "a\nb\nc\n")
    assert labels(voc, "voc") == {"all": NAMES}
    whole.unlink()
    write(voc / "ImageSets/Main/Train.txt", "a\nc\n")
    write(voc / "ImageSets/Main/Validation.txt", "b\n")
    splits = {"Train": {"a": NAMES["a"], "c": []}, "Validation": {"b": NAMES["b"]}}
    assert labels(voc, "voc") == splits
    write(yolo / "obj.names", "\n".join(CLASSES))
    about = "classes = 3\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\nbackup = backup/\n"
    write(yolo / "obj.data", about)
    for split, names in (("train", "ac"), ("valid", "b")):
        images(yolo / f"obj_{split}_data", *(f"{name}.jpg" for name in names))
        write(yolo / f"{split}.txt", "".join(f"data/obj_{split}_data/{name}.jpg\n" for name in names))
        for name in names:
            write(yolo / f"obj_{split}_data/{name}.txt", lines(*NAMES[name]))
    assert labels(yolo, "yolo") == dict(zip(("train", "valid"), splits.values(), strict=True))


def test_cvat_xml_is_not_vocs(tmp_path):
    images(tmp_path / "images", *AB)
    write(tmp_path / "annotations.xml", test_datumaro.CVAT)
    run = CliRunner().invoke(app, ["build-shards", str(tmp_path), "--dataset", "voc"])
    assert run.exit_code == 2 and "no voc dataset here" in run.output, run.output


def test_lists_that_nobody_reads_are_refused(tmp_path):
    images(tmp_path / "JPEGImages", *AB)
    for name, found in AB.items():
        write(tmp_path / "Annotations" / name.replace("jpg", "xml"), xml(*found))
    write(tmp_path / "ImageSets/Main/fold1.txt", "a\n")
    run = CliRunner().invoke(app, ["build-shards", str(tmp_path), "--dataset", "voc"])
    assert run.exit_code == 2 and "none of its lists (fold1.txt) is called train.txt" in run.output, run.output


def test_roboflow_coco_names_the_project_too(tmp_path):
    content = coco("{}.jpg")
    content["categories"] = [{"id": 0, "name": "cat", "supercategory": "none"}, *content["categories"]]
    path = write(images(tmp_path, *(f"{name}.jpg" for name in NAMES)) / "_annotations.coco.json", content)
    run = CliRunner().invoke(app, ["build-shards", str(path), "--dataset", "coco"])
    assert run.exit_code == 2 and "named twice: cat" in run.output and "--classes FILE" in run.output, run.output
    options = SourceOptions(classes=write(tmp_path / "classes.txt", "\n".join(CLASSES)))
    source = open_source("coco", path, "all", options=options)
    assert {record.key: source.labels.names(record.positives) for record in source.records()} == NAMES


@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_coco_from_windows(tmp_path, bom):
    images(tmp_path / "images", *(f"{name}.jpg" for name in NAMES))
    write(tmp_path / "a.json", bom + json.dumps(coco("images\\{}.jpg")))
    source = open_source("coco", tmp_path / "a.json", "all")
    found = {record.key: source.labels.names(record.positives) for record in source.records()}
    assert found == {f"images_{name}": names for name, names in NAMES.items()}


def test_ultralytics_poses(tmp_path):
    images(tmp_path / "images/train", "a.jpg", "b.jpg")
    write(tmp_path / "data.yaml", "train: images/train\nkpt_shape: [2, 3]\nnames: [no, 1.10]\n")
    write(tmp_path / "labels/train/a.txt", "0 0.5 0.5 0.2 0.2 0.1 0.1 2 0.9 0.9 2\n1.0 0.5 0.5 0.5 0.5 0 0 0 0 0 0\n")
    write(tmp_path / "labels/train/b.txt", "1 0.5 0.5 0.2 0.2 0.1 0.1 2 0.9 0.9 2\n")
    assert labels(tmp_path, "yolo") == {"train": {"a": ["no", "1.10"], "b": ["1.10"]}}
    first = next(open_source("yolo", tmp_path, "train").records())
    assert [item.box for item in first.objects] == [pytest.approx((0.4, 0.4, 0.2, 0.2)), (0.25, 0.25, 0.5, 0.5)]
    write(tmp_path / "data.yaml", "train: images/train\nnc: 3\nnames: [no, 1.10]\n")
    run = CliRunner().invoke(app, ["build-shards", str(tmp_path), "--dataset", "yolo"])
    assert run.exit_code == 2 and "nc is 3, and there are 2 names" in run.output, run.output


def test_predicted_poses_have_a_confidence_at_their_end(tmp_path):
    """An even number of values, as a polygon has."""
    images(tmp_path / "images/train", "a.jpg")
    write(tmp_path / "data.yaml", "train: images/train\nkpt_shape: [1, 3]\nnames: [cat, dog]\n")
    write(tmp_path / "labels/train/a.txt", "1 0.5 0.5 0.5 0.5 0.9 0.1 2 0.875\n")
    (record,) = open_source("yolo", tmp_path, "train").records()
    assert [(item.class_index, item.box) for item in record.objects] == [(1, (0.25, 0.25, 0.5, 0.5))]


def test_images_of_no_split_are_counted(tmp_path):
    images(tmp_path / "images/train", "a.jpg")
    images(tmp_path / "images/val", "b.jpg")
    write(tmp_path / "data.yaml", "train: images/train\nval: images/valid\nnames: [cat, cow, dog]\n")
    write(tmp_path / "labels/train/a.txt", lines("cat"))
    assert labels(tmp_path, "yolo") == {"train": {"a": ["cat"]}}
    assert open_source("yolo", tmp_path, "train").counts == {"in_no_split": 1}


def test_of_several_folders_called_images_the_last_becomes_labels(tmp_path):
    images(tmp_path / "images/train/images", "a.jpg")
    write(tmp_path / "data.yaml", "train: images/train/images\nnames: [cat, cow, dog]\n")
    write(tmp_path / "images/train/labels/a.txt", lines("cat"))
    assert labels(tmp_path, "yolo") == {"train": {"a": ["cat"]}}


# ---- Hugging Face


def test_hugging_face_objects(tmp_path):
    datasets = pytest.importorskip("datasets")
    boxes = {"bbox": [[1.0, 1.0, 2.0, 2.0]] * 2, "category": [0, 2]}
    one = {"bbox": [[1.0, 1.0, 2.0, 2.0]], "category": [0]}
    kind = {"bbox": datasets.Sequence(datasets.Value("float32")), "category": datasets.ClassLabel(names=CLASSES)}
    features = datasets.Features({"image": datasets.Image(), "objects": datasets.Sequence(kind)})
    rows = {"image": [{"bytes": jpeg(n), "path": None} for n in range(2)], "objects": [boxes, one]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "t.parquet")
    source = open_source("table", tmp_path / "t.parquet", "all")
    assert source.labels.classes == tuple(CLASSES)
    assert [source.labels.names(record.positives) for record in source.records()] == [["cat", "dog"], ["cat"]]
    images(tmp_path / "train", *AB)
    named = [{"file_name": name, "objects": {"bbox": [], "categories": found}} for name, found in AB.items()]
    write(tmp_path / "train/metadata.jsonl", "".join(json.dumps(row) + "\n" for row in named))
    assert recognise(tmp_path / "train")[0] == "table"
    assert labels(tmp_path / "train", "table") == {"all": {Path(name).stem: found for name, found in AB.items()}}


def test_every_row_of_the_page_of_formats_is_a_test():
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    rows = [line for line in page.partition("## Formats")[2].partition("\n## ")[0].splitlines() if line.startswith("|")]
    named = [re.findall(r"`(test_\w+)`", row) for row in rows[2:]]
    assert len(named) > 25
    known = {**vars(test_datumaro), **vars(test_formats), **vars(test_cvat), **globals()}
    for tests, row in zip(named, rows[2:], strict=True):
        assert tests, f"no test is named: {row}"
        assert all(callable(known.get(name)) for name in tests), row
