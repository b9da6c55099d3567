"""Datasets as the tools that people use write them: each is taken for what it is, and its labels come out right.

The rows of the table in docs/formats.md are these tests.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner

from msldata.contract.manifest import read_manifest
from msldata.errors import BadInputError
from msldata.sources.kinds import open_source, recognise, select_sources
from msldata.sources.source import NO_OPTIONS, SourceOptions
from msldata.storage import LocalStorage
from msltrain.__main__ import app
from tests.tinydata import jpeg


def images(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg(number))
    return folder


def write(path: Path, content: str | object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def read(place: Path, options: SourceOptions = NO_OPTIONS, dataset: str = "table") -> dict[str, dict[str, list[str]]]:
    """The positive classes by split and stored path, of a place that nobody described."""
    assert recognise(place)[0] == dataset
    (found,) = select_sources(place.parent, source=place, options=options)
    read: dict[str, dict[str, list[str]]] = {}
    for split in found.splits:
        source = open_source(found.dataset, place, split, options=options)
        read[split] = {}
        for record in source.records():
            assert source.images.exists(record.image), f"{record.image} is not there"
            read[split][record.image] = source.labels.names(record.positives)
    return read


def ignored(place: Path, options: SourceOptions = NO_OPTIONS) -> dict[str, list[str]]:
    source = open_source("table", place, "all", options=options)
    return {record.image: source.labels.names(record.ignored) for record in source.records()}


def said(place: Path, split: str = "all", options: SourceOptions = NO_OPTIONS) -> str:
    return open_source("table", place, split, options=options).provenance["labels"]


AB = {"a.jpg": ["cat", "dog"], "b.jpg": ["cat"]}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pandas_lists.csv", "image,labels\na.jpg,\"['cat', 'dog']\"\nb.jpg,['cat']\n"),
        ("pandas_numpy.csv", "image,labels\na.jpg,['cat' 'dog']\nb.jpg,['cat']\n"),
        ("json_cells.csv", 'image,labels\na.jpg,"[""cat"", ""dog""]"\nb.jpg,"[""cat""]"\n'),
        ("excel.csv", "\ufeffimage;labels\r\na.jpg;cat|dog\r\nb.jpg;cat\r\n"),
        ("plain.tsv", "image\tlabels\na.jpg\tcat;dog\nb.jpg\tcat\n"),
        ("guessed.csv", "id,file_name,width,tags\n0,a.jpg,24,cat;dog\n1,b.jpg,24,cat\n"),
        ("onehot.csv", "filename, cat, dog\na.jpg, 1, 1\nb.jpg, 1, 0\n"),
        ("truth.csv", "path,cat,dog\na.jpg,True,True\nb.jpg,True,False\n"),
        ("floats.csv", "path,cat,dog\na.jpg,1.0,1.0\nb.jpg,1.0,0.0\n"),
        ("pandas_index.csv", ",image,labels\n0,a.jpg,cat;dog\n1,b.jpg,cat\n"),
        (
            "boxes.csv",
            "filename,width,height,class,xmin,ymin\na.jpg,9,9,cat,1,1\na.jpg,9,9,dog,2,2\nb.jpg,9,9,cat,1,1\n",
        ),
    ],
)
def test_csv(tmp_path, name, text):
    assert read(write(images(tmp_path, *AB) / name, text)) == {"all": AB}


@pytest.mark.parametrize(("yes", "no"), [("x", ""), ("✓", ""), ("ja", "nein"), ("Yes", "No")])
def test_csv_of_marks(tmp_path, yes, no):
    images(tmp_path, *AB)
    path = write(tmp_path / "t.csv", f"Datei;cat;dog\na.jpg;{yes};{yes}\nb.jpg;{yes};{no}\n")
    assert read(path) == {"all": AB} and "labels in 2 columns of marks" in said(path)


def test_columns_are_said_and_can_be_named(tmp_path):
    images(tmp_path, *AB)
    path = write(tmp_path / "t.csv", "wo;was;tags;Kamera\na.jpg;cat|dog;x;1\nb.jpg;cat;y;2\n")
    options = SourceOptions(image_column="wo", labels_columns=("was",))
    assert read(path, options) == {"all": AB}
    assert said(path, options=options) == (
        "images in column 'wo', labels in 'was', read as class names, separated by '|'; columns left alone: tags, "
        "Kamera; delimiter: a semicolon"
    )
    path = write(tmp_path / "t.csv", path.read_text().replace(".jpg", ""))  # names that say nothing
    run = CliRunner().invoke(app, ["build-shards", str(path), "--out", str(tmp_path / "out"), "--workers", "1"])
    assert run.exit_code == 2 and "no column 'image' among wo, was, tags, Kamera, and none full of" in run.output
    assert "if 'wo' names the photographs, run: " in run.output and "--image-column wo" in run.output
    words = ["--image-column", "wo", "--labels-column", "was", "--workers", "1", "--name", "mine"]
    run = CliRunner().invoke(app, ["build-shards", str(path), "--out", str(tmp_path / "out"), *words])
    assert run.exit_code == 0 and "2 classes: cat 2, dog 1" in run.output, run.output
    assert read_manifest(LocalStorage(tmp_path / "out" / "mine" / "all")).classes == ("cat", "dog")


def test_roboflow_multi_label(tmp_path):
    for split, rows in {
        "train": "a.jpg, 1, 1\nb.jpg, 1, 0\n",
        "valid": "c.jpg, 0, 0\n",
        "test": "d.jpg, 0, 1\n",
    }.items():
        write(tmp_path / split / "_classes.csv", f"filename, cat, dog\n{rows}")
    images(tmp_path, "train/a.jpg", "train/b.jpg", "valid/c.jpg", "test/d.jpg")
    write(tmp_path / "README.roboflow.txt", "…")
    assert read(tmp_path) == {
        "test": {"test/d.jpg": ["dog"]},
        "train": {"train/a.jpg": ["cat", "dog"], "train/b.jpg": ["cat"]},
        "valid": {"valid/c.jpg": []},
    }


def test_kaggle_one_hot_without_extensions(tmp_path):
    images(tmp_path / "images", "Train_0.jpg", "Train_1.jpg", "Test_0.jpg")
    path = write(
        tmp_path / "train.csv", "image_id,healthy,multiple_diseases,rust,scab\nTrain_0,0,1,1,0\nTrain_1,1,0,0,0\n"
    )
    expected = {"images/Train_0.jpg": ["multiple_diseases", "rust"], "images/Train_1.jpg": ["healthy"]}
    assert read(path) == {"all": expected}
    found = "2 images not where the table says, but found below its folder, such as images/Train_0.jpg for Train_0"
    assert found in said(path)


def test_kaggle_tags_separated_by_spaces(tmp_path):
    images(tmp_path / "train-jpg", "train_0.jpg", "train_1.jpg")
    path = write(tmp_path / "train_v2.csv", "image_name,tags\ntrain_0,haze primary\ntrain_1,primary water\n")
    run = CliRunner().invoke(app, ["build-shards", str(path), "--out", str(tmp_path / "out"), "--workers", "1"])
    assert (
        run.exit_code == 2 and "to split them, run: " in run.output and run.output.strip().endswith("--separator ' '")
    ), run.output
    expected = {"train-jpg/train_0.jpg": ["haze", "primary"], "train-jpg/train_1.jpg": ["primary", "water"]}
    assert read(path, SourceOptions(separator=" ")) == {"all": expected}


def test_chexpert(tmp_path):
    folder = tmp_path / "CheXpert-v1.0-small"
    names = [f"train/patient0000{n}/study1/view1_frontal.jpg" for n in (1, 2)]
    images(folder, *names)
    header = "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Edema,Pneumonia,Support Devices"
    rows = f"{folder.name}/{names[0]},Female,68,Frontal,AP,1.0,,,1.0\n"
    rows += f"{folder.name}/{names[1]},Male,87,Frontal,AP,,-1.0,0.0,\n"
    path = write(folder / "train.csv", f"{header}\n{rows}")
    assert read(path) == {"all": {names[0]: ["No Finding", "Support Devices"], names[1]: []}}
    assert ignored(path) == {names[0]: [], names[1]: ["Edema"]}
    assert "-1 ignored" in said(path) and "columns left alone: Sex, Age, Frontal/Lateral, AP/PA" in said(path)


def test_nih_chest_x_rays(tmp_path):
    images(tmp_path, "images_001/images/00000001_000.png", "images_002/images/00000002_000.png")
    path = write(
        tmp_path / "Data_Entry_2017.csv",
        "Image Index,Finding Labels,Follow-up #,Patient ID\n00000001_000.png,Cardiomegaly|Emphysema,0,1\n"
        "00000002_000.png,No Finding,0,2\n",
    )
    assert read(path)["all"] == {
        "images_001/images/00000001_000.png": ["Cardiomegaly", "Emphysema"],
        "images_002/images/00000002_000.png": ["No Finding"],
    }


def test_open_images_long_form(tmp_path):
    images(tmp_path / "train", "0001.jpg", "0002.jpg")
    path = write(
        tmp_path / "train-annotations-human-imagelabels.csv",
        "ImageID,Source,LabelName,Confidence\n0001,verification,/m/cat,1\n0001,verification,/m/dog,1\n"
        "0001,verification,/m/cow,0\n0002,verification,/m/cat,0\n",
    )
    assert read(path) == {"all": {"train/0001.jpg": ["/m/cat", "/m/dog"], "train/0002.jpg": []}}
    assert "4 rows of 2 images, a row per label" in said(path)
    write(path, "ImageID,Source,LabelName,Confidence\n0001,machine,/m/cat,0.7\n")
    run = CliRunner().invoke(app, ["build-shards", str(path)])
    assert run.exit_code == 2 and "line 2: Confidence is '0.7'; only labels that people checked" in run.output


def test_rows_of_a_label_each_are_of_one_split(tmp_path):
    images(tmp_path, "a.jpg")
    rows = "a.jpg,train,/m/cat,1\na.jpg,{},/m/dog,1\n"
    for split, is_one in (("train", True), ("test", False)):
        path = write(tmp_path / f"{split}.csv", "ImageID,split,LabelName,Confidence\n" + rows.format(split))
        if is_one:
            assert read(path) == {"train": {"a.jpg": ["/m/cat", "/m/dog"]}}
        else:
            with pytest.raises(
                BadInputError, match=r"line 2 and line 3: 'a\.jpg' is listed twice, in train and in test"
            ):
                read(path)


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_hugging_face_image_folder(tmp_path, kind):
    rows = {"train": {"0001.jpg": [0, 2], "0002.jpg": [1]}, "test": {"0003.jpg": [2]}}
    for split, entries in rows.items():
        images(tmp_path / split, *entries)
        table = [{"file_name": name, "labels": labels} for name, labels in entries.items()]
        lines = "".join(json.dumps(row) + "\n" for row in table)
        if kind == "csv":
            buffer = io.StringIO()
            writer = csv.DictWriter(buffer, ["file_name", "labels"])
            writer.writeheader()
            writer.writerows(table)
            lines = buffer.getvalue()
        write(tmp_path / split / f"metadata.{kind}", lines)
    classes = write(tmp_path / "names.txt", "bird\ncat\ndog\n")
    expected = {
        "test": {"test/0003.jpg": ["dog"]},
        "train": {"train/0001.jpg": ["bird", "dog"], "train/0002.jpg": ["cat"]},
    }
    assert read(tmp_path, SourceOptions(classes=classes)) == expected


@pytest.fixture
def hugging_face(tmp_path):
    """A DatasetDict of real `datasets`: embedded images, several class labels each, one row without any."""
    datasets = pytest.importorskip("datasets")
    names = ["bird", "cat", "dog"]
    features = datasets.Features(
        {"photo": datasets.Image(), "labels": datasets.Sequence(datasets.ClassLabel(names=names))}
    )
    rows = {"train": ([1, 2, 3], [[2, 1], [], [0]]), "test": ([4], [[2]])}
    return datasets.DatasetDict(
        {
            split: datasets.Dataset.from_dict(
                {"photo": [{"bytes": jpeg(seed), "path": None} for seed in seeds], "labels": labels}, features=features
            )
            for split, (seeds, labels) in rows.items()
        }
    )


@pytest.mark.parametrize("how", ["save_to_disk", "hub", "parquet"])
def test_hugging_face_datasets(tmp_path, hugging_face, how):
    place = tmp_path / "hf"
    if how == "save_to_disk":
        hugging_face.save_to_disk(place)
    elif how == "hub":
        (place / "data").mkdir(parents=True)
        for split, dataset in hugging_face.items():
            dataset.to_parquet(place / "data" / f"{split}-00000-of-00001.parquet")
    else:
        place.mkdir()
        hugging_face["train"].to_parquet(place / "one.parquet")
        place = place / "one.parquet"
    assert recognise(place)[0] == "table"
    (found,) = select_sources(tmp_path, source=place)
    assert set(found.splits) == ({"all"} if how == "parquet" else {"train", "test"})
    for split in found.splits:
        source = open_source("table", place, split)
        assert source.labels.classes == ("bird", "cat", "dog")  # in the order of the class labels
        theirs = hugging_face["train" if split == "all" else split]
        ours = list(source.records())
        assert len(ours) == len(theirs)
        for record, row, cell in zip(ours, theirs, theirs.data.column("photo").to_pylist(), strict=True):
            assert record.positives == tuple(sorted(row["labels"]))
            assert source.images.read(record.image) == cell["bytes"]
    words = ["build-shards", str(place), "--out", str(tmp_path / "out"), "--name", "hf", "--workers", "2"]
    run = CliRunner().invoke(app, words)
    assert run.exit_code == 0 and "1 without any class" in run.output, run.output


def test_integers_with_a_list_of_classes(tmp_path):
    images(tmp_path, *AB)
    classes = write(tmp_path / "names.txt", "bird\ncat\ndog\n")
    path = write(tmp_path / "t.csv", "image,label\na.jpg,2\nb.jpg,0\n")
    assert read(path, SourceOptions(classes=classes)) == {"all": {"a.jpg": ["dog"], "b.jpg": ["bird"]}}
    write(path, "image,label\na.jpg,2\nb.jpg,10\n")
    numbers = open_source("table", path, "all")
    assert numbers.labels.classes == tuple(map(str, range(11)))  # by number, not by spelling
    run = CliRunner().invoke(app, ["build-shards", str(path), "--classes", str(classes)])
    assert run.exit_code == 2 and "line 3: class index 10 of 3" in run.output


TASKS = [
    {
        "id": 7,
        "data": {"image": "/data/upload/1/0a1b2c3d-a.jpg"},
        "annotations": [
            {"was_cancelled": False, "result": [{"type": "choices", "value": {"choices": ["cat", "dog"]}}]}
        ],
    },
    {
        "id": 8,
        "data": {"image": "/data/local-files/?d=set/b.jpg"},
        "annotations": [
            {"result": [{"type": "rectanglelabels", "value": {"x": 1, "rectanglelabels": ["cat"]}}]},
            {"was_cancelled": True, "result": []},
        ],
    },
    {"id": 9, "data": {"image": "/data/upload/1/c.jpg"}, "annotations": []},
]
MINIMAL = [
    {"image": "/data/upload/1/0a1b2c3d-a.jpg", "id": 7, "choice": {"choices": ["cat", "dog"]}, "annotator": 1},
    {"image": "/data/local-files/?d=set/b.jpg", "id": 8, "choice": "cat", "annotator": 1},
]


def test_label_studio(tmp_path):
    images(tmp_path, "a.jpg", "set/b.jpg", "c.jpg")
    expected = {"all": {"a.jpg": ["cat", "dog"], "set/b.jpg": ["cat"]}}
    path = write(tmp_path / "project-1.json", TASKS)
    assert read(path) == expected
    assert open_source("table", path, "all").counts["not_annotated"] == 1
    assert read(write(tmp_path / "min.json", MINIMAL)) == expected
    cells = [{**row, "choice": json.dumps(row["choice"]) if row["id"] == 7 else "cat"} for row in MINIMAL]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(MINIMAL[0]))
    writer.writeheader()
    writer.writerows(cells)
    assert read(write(tmp_path / "min.csv", buffer.getvalue())) == expected
    second = {"result": [{"type": "choices", "value": {"choices": ["cow"]}}]}
    write(path, [{**TASKS[0], "annotations": [*TASKS[0]["annotations"], second]}])
    run = CliRunner().invoke(app, ["build-shards", str(path)])
    assert run.exit_code == 2 and "row 1: annotators disagree (['cat', 'dog'] and ['cow'])" in run.output


def test_doccano(tmp_path):
    images(tmp_path, *AB)
    rows = [{"id": 1, "filename": "a.jpg", "label": ["cat", "dog"], "Comments": []}]
    rows += [{"id": 2, "filename": "b.jpg", "label": ["cat"], "Comments": []}]
    assert read(write(tmp_path / "all.jsonl", "".join(json.dumps(row) + "\n" for row in rows))) == {"all": AB}
    assert read(write(tmp_path / "all.json", rows)) == {"all": AB}


def test_fiftyone_classifications(tmp_path):
    images(tmp_path / "data", *AB)
    path = write(tmp_path / "labels.json", {"classes": ["cat", "dog"], "labels": {"a": [0, 1], "b": 0}})
    assert read(path) == {"all": {f"data/{name}": labels for name, labels in AB.items()}}


def test_fiftyone_positions_are_in_the_list(tmp_path):
    """One before the first would name the last."""
    images(tmp_path / "data", *AB)
    for target in (-1, 2):
        path = write(tmp_path / "labels.json", {"classes": ["cat", "dog"], "labels": {"a": [0, target], "b": 0}})
        with pytest.raises(BadInputError, match=f"class index {target} of 2"):
            read(path)


@pytest.mark.parametrize("named", ["test", "Train"])
def test_a_class_may_be_called_as_a_split_is(tmp_path, named):
    """A train is a thing to photograph: only where all folders are called so are they splits."""
    images(tmp_path, f"{named}/1.jpg", "bus/2.jpg", "car/3.jpg")
    expected = {f"{named}/1.jpg": [named], "bus/2.jpg": ["bus"], "car/3.jpg": ["car"]}
    assert read(tmp_path, dataset="folders") == {"all": expected}


def test_folders_of_classes(tmp_path):
    images(tmp_path / "flat", "cat/1.jpg", "dog/2.jpg")
    (tmp_path / "flat/dog/1.jpg").write_bytes((tmp_path / "flat/cat/1.jpg").read_bytes())
    images(tmp_path / "flat" / "cat", "x.jpg", "2.jpg")  # cat/2.jpg has other bytes than dog/2.jpg
    expected = {"cat/1.jpg": ["cat", "dog"], "cat/2.jpg": ["cat"], "cat/x.jpg": ["cat"], "dog/2.jpg": ["dog"]}
    (tmp_path / "flat/dog/2.jpg").write_bytes(jpeg(77))
    assert read(tmp_path / "flat", dataset="folders") == {"all": expected}
    images(tmp_path / "deep", "train/cat/1.jpg", "train/dog/2.jpg", "val/cat/3.jpg")
    assert read(tmp_path / "deep", dataset="folders") == {
        "train": {"train/cat/1.jpg": ["cat"], "train/dog/2.jpg": ["dog"]},
        "val": {"val/cat/3.jpg": ["cat"]},
    }
    images(tmp_path / "deep", "test/dog/4.jpg")
    test = open_source("folders", tmp_path / "deep", "test")  # counts the classes that it lacks as well
    assert test.labels.classes == ("cat", "dog") and next(test.records()).positives == (1,)
    classes = write(tmp_path / "names.txt", "dog\ncat\n")
    source = open_source("folders", tmp_path / "deep", "val", classes=classes)
    assert source.labels.classes == ("dog", "cat") and next(source.records()).positives == (1,)


def test_split_folders_may_have_capitals(tmp_path):
    images(tmp_path, "Train/cat/1.jpg", "Train/dog/2.jpg", "TEST/cat/3.jpg")
    assert read(tmp_path, dataset="folders") == {
        "TEST": {"TEST/cat/3.jpg": ["cat"]},
        "Train": {"Train/cat/1.jpg": ["cat"], "Train/dog/2.jpg": ["dog"]},
    }


def test_absolute_paths(tmp_path):
    images(tmp_path / "photos", *AB)
    rows = "".join(f"{tmp_path}/photos/{name},{';'.join(labels)}\n" for name, labels in AB.items())
    path = write(tmp_path / "tables" / "t.csv", f"image,labels\n{rows}")
    assert read(path) == {"all": AB}
    source = open_source("table", path, "all")
    assert [record.key for record in source.records()] == ["a", "b"]
    assert str(tmp_path) not in json.dumps(source.provenance)
    # Written on another machine: the folders below are the same from some point on.
    elsewhere = "".join(f"/mnt/disk7/me/photos/{name},{';'.join(labels)}\n" for name, labels in AB.items())
    path = write(tmp_path / "t.csv", f"image,labels\n{elsewhere}")
    assert read(path) == {"all": {f"photos/{name}": labels for name, labels in AB.items()}}


def test_an_image_that_may_be_two_files_is_refused(tmp_path):
    images(tmp_path, "train/a.jpg", "test/a.jpg")
    path = write(tmp_path / "t.csv", "image,labels\na.jpg,cat\n")
    run = CliRunner().invoke(app, ["build-shards", str(path)])
    assert run.exit_code == 2 and "image 'a.jpg' may be" in run.output and "name it with its folder" in run.output


def test_a_label_column_among_columns_of_0_and_1_is_a_doubt(tmp_path):
    images(tmp_path, *AB)
    path = write(tmp_path / "t.csv", "image,label,logo,text\na.jpg,1,0,1\nb.jpg,0,1,1\n")
    run = CliRunner().invoke(app, ["build-shards", str(path)])
    assert run.exit_code == 2 and "'label' may hold class indices or be one of 3 columns" in run.output
    options = SourceOptions(labels_columns=("label", "logo", "text"))
    assert read(path, options) == {"all": {"a.jpg": ["label", "text"], "b.jpg": ["logo", "text"]}}


def test_a_column_of_classes_with_another_number_is_not_left_alone(tmp_path):
    images(tmp_path, *AB, "c.jpg")
    path = write(tmp_path / "t.csv", "image,cat,dog,age\na.jpg,1,0,7\nb.jpg,0,2,31\nc.jpg,0,1,8\n")
    run = CliRunner().invoke(app, ["build-shards", str(path)])
    assert run.exit_code == 2 and "line 3: column 'dog' holds '2' among 0 and 1" in run.output, run.output
    assert list(read(path, SourceOptions(labels_columns=("cat",)))["all"].values()) == [["cat"], [], []]


@pytest.mark.parametrize(
    ("cells", "positives"),
    [
        (["traffic light", "stop sign", "person"], [["traffic light"], ["stop sign"], ["person"]]),
        (["cat;tabby cat", "tabby cat", "cat"], [["cat", "tabby cat"], ["tabby cat"], ["cat"]]),
        (["N/A", "None", "cat"], [[], [], ["cat"]]),
        (['{"cat": 1, "dog": 0}', '{"cat": 0, "dog": 1}', "{}"], [["cat"], ["dog"], []]),
        (["red car", "blue car", "dog"], None),
        (["(cat, dog)", "cat", "dog"], None),
        (["cat#dog", "dog", "cat"], None),
        (["cat/dog", "dog", "cat"], None),
        (["cat\ndog", "dog", "cat"], None),
        (["cat，dog", "dog", "cat"], None),
        (["cat-dog", "dog", "cat"], None),
        (["T-shirt", "dog", "cat"], [["T-shirt"], ["dog"], ["cat"]]),
        (["True", "False", "True"], None),
        (["010", "110", "001"], None),
        (["[cat, dog]", "cat", "dog"], None),
        (["0.7", "0.2", "1"], None),
    ],
)
def test_label_cells(tmp_path, cells, positives):
    names = ["a.jpg", "b.jpg", "c.jpg"]
    images(tmp_path, *names)
    buffer = io.StringIO()
    csv.writer(buffer).writerows([["image", "labels"], *zip(names, cells, strict=True)])
    path = write(tmp_path / "t.csv", buffer.getvalue())
    if positives is not None:
        found: Mapping[str, list[str]] = read(path)["all"]
        assert list(found.values()) == positives
        return
    run = CliRunner().invoke(app, ["build-shards", str(path), "--out", str(tmp_path / "out"), "--workers", "1"])
    assert run.exit_code == 2 and not (tmp_path / "out").exists(), run.output
    assert "line 2" in run.output or "line 3" in run.output  # a cell may have two lines
