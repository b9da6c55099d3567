"""Datasets as programs write them, built by the command: VOC's, COCO's and YOLO's layouts, and what is skipped."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from msldata.contract.manifest import read_manifest
from msldata.storage import open_storage
from msltrain.__main__ import app
from tests.oddimages import saved, turned
from tests.tinydata import jpeg

SIZE = "<size><width>{}</width><height>{}</height><depth>3</depth></size>"


def build(source: Path, out: Path, *arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["build-shards", str(source), "--out", str(out), "--workers", "1", *arguments])
    text = result.output + (str(result.exception) if result.exception else "")
    assert result.exit_code == code or code, text
    assert code == 0 or result.exception is not None, text
    return text


def metas(folder: Path) -> dict[str, dict]:
    """Key → the JSON member of every sample."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    found[member.name.removesuffix(".json")] = json.load(tar.extractfile(member))  # type: ignore[arg-type]
    return found


def labels(folder: Path) -> dict[str, list[str]]:
    return {key: meta["labels"] for key, meta in metas(folder).items()}


def photo(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg(seed) if path.suffix.lower() in (".jpg", ".jpeg") else picture(path.suffix))
    return path


def picture(suffix: str) -> bytes:
    image = Image.fromarray(np.random.default_rng(7).integers(0, 255, (16, 24, 3), dtype=np.uint8))
    return saved(image, {".png": "PNG", ".webp": "WEBP", ".bmp": "BMP"}[suffix.lower()])


def xml(path: Path, *names: str, box: tuple = (1, 1, 9, 9), size: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    corners = "".join(f"<{tag}>{value}</{tag}>" for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box))
    objects = "".join(f"<object><name>{name}</name><bndbox>{corners}</bndbox></object>" for name in names)
    path.write_text(f"<annotation>{size}{objects}</annotation>")


def coco(path: Path, names: dict[str, list[int]], categories: dict[int, str] | None = None, **boxes: list) -> None:
    """A COCO file: image name → category ids of its annotations."""
    images = [{"id": n, "file_name": name, "width": 24, "height": 16} for n, name in enumerate(names)]
    pairs = [(n, category) for n, found in enumerate(names.values()) for category in found]
    annotations = [
        {"id": n, "image_id": image, "category_id": category, "bbox": [1, 1, 5, 5], "iscrowd": 0, **boxes}
        for n, (image, category) in enumerate(pairs)
    ]
    kinds = [{"id": n, "name": name} for n, name in (categories or {1: "cat", 2: "dog"}).items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": kinds}))


# ---- VOC's layout


def test_images_of_any_suffix_and_own_classes(tmp_path):
    root = tmp_path / "mine"
    for number, suffix in enumerate((".jpg", ".JPG", ".jpeg", ".png", ".webp")):
        photo(root / "JPEGImages" / f"a{number}{suffix}")
        xml(root / "Annotations" / f"a{number}.xml", "fox" if number % 2 else "owl")
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a0\na1\na2 1\n")
    (lists / "val.txt").write_text("a3.png\na4\n")
    build(root, tmp_path / "out", "--dataset", "voc2007", "--name", "mine", "--split", "train", "--split", "val")
    assert labels(tmp_path / "out/mine/train") == {"a0": ["owl"], "a1": ["fox"], "a2": ["owl"]}
    assert labels(tmp_path / "out/mine/val") == {"a3": ["fox"], "a4": ["owl"]}
    assert read_manifest(open_storage(tmp_path / "out/mine/val")).classes == ("fox", "owl")
    # Of a year's own splits, trainval and test, only what is there is built.
    text = build(root, tmp_path / "other", "--dataset", "voc2007")
    assert [path.name for path in (tmp_path / "other/voc-layout").iterdir()] == ["trainval"], text
    assert "2 classes: owl 3, fox 2" in text


def test_a_class_beside_vocs_is_a_slip_unless_the_kind_says_otherwise(tmp_path):
    root = tmp_path / "mine"
    for number, name in enumerate(("cat", "fox")):
        photo(root / "JPEGImages" / f"{number}.jpg")
        xml(root / "Annotations" / f"{number}.xml", name)
    (root / "ImageSets/Main").mkdir(parents=True)
    (root / "ImageSets/Main/train.txt").write_text("0\n1\n")
    assert "unknown class 'fox'" in build(root, tmp_path / "out", "--dataset", "voc2007", "--split", "train", code=2)
    build(root, tmp_path / "out", "--dataset", "voc", "--split", "train")
    assert labels(tmp_path / "out/voc/train") == {"0": ["cat"], "1": ["fox"]}
    (tmp_path / "order.txt").write_text("fox\ncat\nbear\n")
    build(root, tmp_path / "o2", "--dataset", "voc", "--split", "train", "--classes", str(tmp_path / "order.txt"))
    assert read_manifest(open_storage(tmp_path / "o2/voc/train")).classes == ("fox", "cat", "bear")


@pytest.mark.parametrize("lines", ["photo 1\nphoto\t-1\n", "photo 1  1\nphoto 0\n", "photo 1.jpg\nphoto\n"])
def test_names_with_spaces_stay_whole(tmp_path, lines):
    """``photo 1`` is an image here, though it reads like an image and its flag."""
    root = tmp_path / "VOC2007"
    for name, label in (("photo", "cat"), ("photo 1", "dog")):
        photo(root / "JPEGImages" / f"{name}.jpg")
        xml(root / "Annotations" / f"{name}.xml", label)
    (root / "ImageSets/Main").mkdir(parents=True)
    (root / "ImageSets/Main/test.txt").write_text(lines)
    build(root, tmp_path / "out", "--dataset", "voc2007", "--split", "test")
    assert labels(tmp_path / "out/voc2007/test") == {"photo": ["cat"], "photo_1": ["dog"]}


@pytest.mark.parametrize("layout", ["beside", "folders", "splits"])
def test_xml_without_lists(tmp_path, layout):
    root = tmp_path / "mine"
    for number, (split, name) in enumerate((("train", "fox"), ("train", "owl"), ("valid", "owl"))):
        folder = {"beside": root, "folders": root / "images", "splits": root / split}[layout]
        photo(folder / f"p.{number}.jpg")
        xml((root / "annotations" if layout == "folders" else folder) / f"p.{number}.xml", name)
    photo((root / "images" if layout == "folders" else root / "train" if layout == "splits" else root) / "bare.png")
    text = build(root, tmp_path / "out", "--name", "mine")
    found = {path.parent.name: labels(path.parent) for path in (tmp_path / "out/mine").glob("*/dataset.json")}
    first, last = {"p_0": ["fox"], "p_1": ["owl"]}, {"p_2": ["owl"]}
    assert found == ({"train": first, "valid": last} if layout == "splits" else {"all": first | last})
    assert "1 dropped without annotations" in text
    assert "without annotations: " in text and "left out; --keep-unlabelled keeps it" in text
    build(root, tmp_path / "kept", "--name", "mine", "--keep-unlabelled")
    assert sum(len(labels(path.parent)) for path in (tmp_path / "kept/mine").glob("*/dataset.json")) == 4


# ---- COCO's layout


def arrange(root: Path, program: str) -> None:
    names = {"a b.jpg": [1], "c.jpg": [2, 1], "d.jpg": []}
    places = {
        "cvat": ("annotations/instances_default.json", "images/default"),
        "cvat flat": ("annotations/instances_default.json", "images"),
        "fiftyone": ("labels.json", "data"),
        "ultralytics": ("annotations/instances_train2017.json", "images/train2017"),
        "coco": ("annotations/instances_train2017.json", "train2017"),
        "roboflow": ("train/_annotations.coco.json", "train"),
        "label studio": ("result.json", "."),
    }
    file, folder = places[program]
    if program == "label studio":
        names = {f"images/{name}": found for name, found in names.items()}
    coco(root / file, names)
    for number, name in enumerate(names):
        photo(root / folder / name, number)


PROGRAMS = ["cvat", "cvat flat", "fiftyone", "ultralytics", "coco", "roboflow", "label studio"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_where_the_images_of_a_coco_file_lie(tmp_path, program):
    root = tmp_path / "raw"
    arrange(root, program)
    place = root / "result.json" if program == "label studio" else root
    text = build(place, tmp_path / "out", "--dataset", "coco")
    (folder,) = [path.parent for path in (tmp_path / "out/coco").glob("*/dataset.json")]
    assert list(labels(folder).values()) == [["cat"], ["cat", "dog"], []]
    assert "d.jpg; kept, as negatives of every class; --drop-unlabelled leaves it out" in text
    text = build(place, tmp_path / "less", "--dataset", "coco", "--drop-unlabelled")
    assert list(labels(tmp_path / "less/coco" / folder.name).values()) == [["cat"], ["cat", "dog"]]
    assert "d.jpg; left out; --keep-unlabelled keeps it, as negatives of every class" in text


def test_images_that_lie_elsewhere_are_said(tmp_path):
    coco(tmp_path / "here/a.json", {"x.jpg": [1]})
    photo(tmp_path / "far/away/x.jpg")
    said = build(tmp_path / "here/a.json", tmp_path / "out", "--dataset", "coco", code=2)
    assert "a.json: of 1 image that it names, such as x.jpg, none is in " in said and "--images FOLDER" in said
    assert "download" not in said
    build(tmp_path / "here/a.json", tmp_path / "out", "--dataset", "coco", "--images", str(tmp_path / "far/away"))
    assert labels(tmp_path / "out/coco/all") == {"x": ["cat"]}


@pytest.mark.parametrize("names", ["from the folder", "alone", "of another machine"])
def test_images_in_folders_below_a_coco_file_are_found_by_their_names(tmp_path, names):
    stored = ["Gleis 1/a.jpg", "Gleis 1/b.jpg", "Gleis 2/c d.jpg"]
    named = {"from the folder": stored, "alone": [name.rpartition("/")[2] for name in stored]}
    given = named.get(names, [f"data/x/{name}" for name in stored])
    if names == "of another machine":
        given = [name.partition("/x/")[2].rpartition("/")[2].replace(".jpg", ".JPG") for name in given]
    coco(tmp_path / "Fotos.coco.json", dict(zip(given, ([1], [2], []))))
    for seed, name in enumerate(stored):
        photo(tmp_path / "Fotos" / name, seed)
    said = build(tmp_path / "Fotos.coco.json", tmp_path / "out", "--name", "mine")
    assert "3 images not where Fotos.coco.json says, but found by name below its folder, such as Fotos/Gleis 1/" in said
    assert [meta["file"] for meta in metas(tmp_path / "out/mine/all").values()] == [f"Fotos/{name}" for name in stored]
    if names == "alone":
        photo(tmp_path / "Fotos/Gleis 3/a.jpg", 9)
        said = build(tmp_path / "Fotos.coco.json", tmp_path / "again", "--name", "mine", code=2)
        assert "'a.jpg' may be " in said and "Gleis 3/a.jpg" in said and "--images FOLDER" in said


@pytest.mark.parametrize("box", [None, []])
def test_an_annotation_without_a_box_names_its_class(tmp_path, box):
    coco(tmp_path / "a.json", {"x.jpg": [2]}, bbox=box)
    photo(tmp_path / "x.jpg")
    build(tmp_path / "a.json", tmp_path / "out", "--dataset", "coco")
    (meta,) = metas(tmp_path / "out/coco/all").values()
    assert (meta["labels"], meta["objects"]) == (["dog"], [])


def test_splits_with_another_order_of_classes_are_refused(tmp_path):
    root = tmp_path / "raw"
    for split, categories in (("train", {1: "cat", 2: "dog"}), ("val", {1: "dog", 2: "cat"})):
        coco(root / f"annotations/instances_{split}.json", {"x.jpg": [1]}, categories)
        photo(root / split / "x.jpg")
    message = build(root, tmp_path / "out", "--dataset", "coco", code=2)
    assert "number 0 is 'cat' there and 'dog' here" in message and "--classes" in message
    coco(root / "annotations/instances_val.json", {"x.jpg": [1]}, {1: "cow", 2: "cat"})
    message = build(root, tmp_path / "out", "--dataset", "coco", code=2)
    assert "'cow' only here, 'dog' only there;" in message
    coco(root / "annotations/instances_val.json", {"x.jpg": [1]}, {1: "dog", 2: "cat"})
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    build(root, tmp_path / "two", "--dataset", "coco", "--classes", str(tmp_path / "classes.txt"))
    assert labels(tmp_path / "two/coco/train") == {"x": ["cat"]} and labels(tmp_path / "two/coco/val") == {"x": ["dog"]}


# ---- YOLO's layout


@pytest.mark.parametrize("layout", ["ultralytics", "roboflow", "label studio"])
def test_yolo(tmp_path, layout):
    root = tmp_path / "raw"
    folders = {
        "ultralytics": (
            "images/train",
            "labels/train",
            "path: /elsewhere/x\ntrain: images/train\nnames:\n  0: cat\n  1: dog\n",
        ),
        "roboflow": ("train/images", "train/labels", "train: ../train/images\nnc: 2\nnames: ['cat', 'dog']\n"),
        "label studio": ("images", "labels", ""),
    }
    images, texts, about = folders[layout]
    for number, lines in enumerate(
        ("1 0.5 0.5 0.5 0.25\n", "0 0.1 0.1 0.3 0.1 0.3 0.5\n1 0.2 0.2 0.1 0.1 0.9\n", "", None)
    ):
        photo(root / images / f"{number}.jpg", number)
        (root / texts).mkdir(parents=True, exist_ok=True)
        if lines is not None:
            (root / texts / f"{number}.txt").write_text(lines)
    (root / ("data.yaml" if about else "classes.txt")).write_text(about or "cat\ndog\n")
    text = build(root, tmp_path / "out", "--name", "mine")
    assert "YOLO layout" in text and "1 dropped without annotations" in text
    assert "3.jpg; left out; --keep-unlabelled keeps it" in text
    folder = tmp_path / "out/mine" / ("train" if about else "all")
    assert labels(folder) == {"0": ["dog"], "1": ["cat", "dog"], "2": []}
    assert metas(folder)["0"]["objects"][0]["box"] == pytest.approx([6, 6, 12, 4])  # of 24 × 16 pixels
    assert metas(folder)["1"]["objects"][0]["box"] == pytest.approx([2.4, 1.6, 4.8, 6.4])


# ---- Frames


def red_upright() -> np.ndarray:
    """60 × 40, white, with a red corner at the top left."""
    image_HWC = np.full((40, 60, 3), 255, np.uint8)
    image_HWC[:16, :16] = 255, 0, 0
    return image_HWC


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("drawn", ["upright", "as stored"])
@pytest.mark.parametrize("resize", [(), ("--resize", "fit=30")])
def test_boxes_lie_on_what_they_mark_whichever_picture_they_were_drawn_on(
    tmp_path, orientation, drawn, resize, monkeypatch
):
    if drawn == "as stored" and 2 <= orientation <= 4:
        pytest.skip("both pictures are of one size; see frame_of_boxes")
    monkeypatch.setattr("tests.oddimages.picture", red_upright)
    data = turned(orientation, quality=100, subsampling=0)
    (tmp_path / "p.jpg").write_bytes(data)
    image = Image.open(tmp_path / "p.jpg")
    red = (np.asarray(image)[..., 1] < 128) if drawn == "as stored" else red_upright()[..., 1] < 128
    y, x = np.nonzero(red)
    box = [int(x.min()), int(y.min()), int(np.ptp(x)) + 1, int(np.ptp(y)) + 1]
    entry = {"id": 0, "file_name": "p.jpg", "width": red.shape[1], "height": red.shape[0]}
    content = {"images": [entry], "annotations": [{"id": 0, "image_id": 0, "category_id": 1, "bbox": box}]}
    (tmp_path / "a.json").write_text(json.dumps(content | {"categories": [{"id": 1, "name": "red"}]}))
    text = build(tmp_path / "a.json", tmp_path / "out", "--dataset", "coco", *resize)
    assert ("1 turned upright" in text) == (orientation > 1)
    (meta,) = metas(tmp_path / "out/coco/all").values()
    with tarfile.open(next((tmp_path / "out/coco/all").glob("*.tar"))) as tar:
        stored = np.asarray(Image.open(tar.extractfile("p.jpg")))  # type: ignore[arg-type]
    left, top, width, height = meta["objects"][0]["box"]
    assert stored.shape[:2] == (meta["height"], meta["width"]) == ((20, 30) if resize else (40, 60))
    y, x = np.nonzero(stored[..., 1] < 128)
    assert (
        np.abs(np.subtract((x.min(), y.min(), x.max() + 1, y.max() + 1), (left, top, left + width, top + height))).max()
        <= 1.5
    )


@pytest.mark.parametrize(
    ("entry", "box", "reason"),
    [
        ({"width": 16, "height": 24}, [1, 1, 5, 5], "one of them was turned"),
        ({"width": 24, "height": 16}, [30, 1, 5, 5], "leaves the picture of 24 × 16"),
        ({"width": 24, "height": 16}, [10, 10, -5, 5], "negative size"),
        ({"width": 24, "height": 16}, [0.25, 0.25, 0.5, 0.5], "between 0 and 1"),
        ({"width": 2400, "height": 1600}, [1000, 1000, 500, 500], "leaves the picture"),
        ({}, ["x", 1, 1, 1], "is not 4 numbers"),
        ({}, [1, 1, float("nan"), 1], "not a finite number"),
    ],
)
def test_bad_boxes_are_named_or_skipped(tmp_path, entry, box, reason):
    for name in ("x.jpg", "y.jpg"):
        photo(tmp_path / name)
    images = [{"id": 0, "file_name": "x.jpg", **entry}, {"id": 1, "file_name": "y.jpg"}]
    annotations = [
        {"id": number, "image_id": number, "category_id": 1, "bbox": found}
        for number, found in enumerate((box, [1, 1, 5, 5]))
    ]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert reason in build(tmp_path / "a.json", tmp_path / "out", "--dataset", "coco", code=2)
    text = build(tmp_path / "a.json", tmp_path / "out", "--dataset", "coco", "--on-error", "skip")
    assert "1 quarantined" in text and list(labels(tmp_path / "out/coco/all")) == ["y"]
    (line,) = (tmp_path / "out/coco/all/quarantine.jsonl").read_text().splitlines()
    assert reason in json.loads(line)["reason"] and str(tmp_path) not in line


# ---- Bad records


def damaged_voc(root: Path) -> Path:
    good = [f"g{number}" for number in range(6)]
    for name in (*good, "folder", "broken", "absent", "noxml", "badbox", "cut"):
        photo(root / "JPEGImages" / f"{name}.jpg", 3)
        xml(root / "Annotations" / f"{name}.xml", "cat")
    (root / "JPEGImages/folder.jpg").unlink()
    (root / "JPEGImages/folder.jpg").mkdir()
    (root / "JPEGImages/absent.jpg").unlink()
    (root / "JPEGImages/cut.jpg").write_bytes(jpeg(1, 200, 100)[:4000] + b"\xff\xd9")
    (root / "Annotations/broken.xml").write_text("<annotation><object>")
    (root / "Annotations/noxml.xml").unlink()
    xml(root / "Annotations/badbox.xml", "cat", box=(9, 9, 1, 1))
    (root / "ImageSets/Main").mkdir(parents=True)
    names = (*good, "folder", "broken", "absent", "noxml", "badbox", "cut")
    (root / "ImageSets/Main/test.txt").write_text("\n".join(names))
    return root


def test_skip_covers_every_kind_of_bad_record(tmp_path):
    root = damaged_voc(tmp_path / "VOC2007")
    arguments = ("--dataset", "voc2007", "--split", "test")
    build(root, tmp_path / "out", *arguments, code=2)
    text = build(root, tmp_path / "out", *arguments, "--on-error", "skip")
    assert "6 quarantined" in text and sorted(labels(tmp_path / "out/voc2007/test")) == [
        f"g{number}" for number in range(6)
    ]
    entries = [json.loads(line) for line in (tmp_path / "out/voc2007/test/quarantine.jsonl").read_text().splitlines()]
    reasons = {Path(entry["file"]).stem: entry["reason"] for entry in entries}
    assert reasons["folder"] == "a folder, not an image file" and reasons["absent"] == "the image is missing"
    assert reasons["noxml"] == "no such file" and reasons["cut"].startswith("truncated JPEG")
    assert "not valid XML" in reasons["broken"] and "without area" in reasons["badbox"]


def test_skip_has_a_limit(tmp_path):
    root = tmp_path / "raw"
    root.mkdir()
    for number in range(40):
        (root / f"{number}.jpg").write_bytes(jpeg(number) if number % 3 else b"none")
    (root / "t.csv").write_text("image,labels\n" + "".join(f"{number}.jpg,cat\n" for number in range(40)))
    arguments = ("--dataset", "table", "--split", "all", "--on-error", "skip")
    message = build(root / "t.csv", tmp_path / "out", *arguments, code=2)
    assert "14 of 40 images cannot be used" in message and "--skip-limit" in message
    assert "14 quarantined" in build(root / "t.csv", tmp_path / "out", *arguments, "--skip-limit", "0.4")


# ---- Images that were replaced


def test_replaced_images_are_not_passed_over(tmp_path):
    root = tmp_path / "raw"
    root.mkdir()
    (root / "a.jpg").write_bytes(jpeg(1))
    (root / "t.csv").write_text("image,labels\na.jpg,cat\n")
    arguments = (root / "t.csv", tmp_path / "out", "--dataset", "table")
    build(*arguments)
    os.utime(root / "a.jpg", (1, 1))
    assert "newer" not in build(*arguments)
    os.utime(root / "a.jpg")
    said = build(*arguments)
    assert "a.jpg is newer than the dataset" in said and "of the same files" not in said
    (root / "a.jpg").write_bytes(jpeg(2, 40, 40))
    assert "other sizes than when this dataset was built" in build(*arguments, code=2)
    (root / "a.jpg").unlink()
    build(*arguments)  # whoever throws the originals away keeps the dataset


@pytest.mark.parametrize(
    "arguments",
    [
        ("preview", "nowhere", "--out", "s3://bucket/a.png"),
        ("synthesize", "--out", "s3://bucket/a"),
        ("build-masks", "--generate", "5", "--plots", "s3://bucket/a"),
        ("download", "voc2007", "--to", "gs://bucket/a"),
    ],
)
def test_what_is_written_to_a_local_disk_alone_takes_no_address(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 2 and "written to a local" in " ".join(result.output.split())
    assert not list(tmp_path.iterdir())
