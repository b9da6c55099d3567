"""Raw datasets that lie in a bucket or behind a web server: the same shards as from the disk, and clear errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from msldata.build.shards import build_shards, plan_build
from msldata.errors import BadInputError, UserError
from msldata.sources.kinds import open_source, recognise, select_sources
from msldata.storage import LocalStorage
from msltrain.__main__ import app
from tests import webserver
from tests.tinydata import contents, jpeg, make_coco, make_voc

COCO_IMAGES = [{"id": number, "file_name": f"COCO_train2014_{number:012d}.jpg"} for number in (3, 5, 8)]
COCO_BOXES = [
    {"id": number, "image_id": number, "category_id": 1, "bbox": [1, 1, 5, 5], "area": 25, "iscrowd": 0}
    for number in (3, 5, 8)
]
CATEGORIES = [{"id": 1, "name": "person"}, {"id": 2, "name": "bicycle"}]


def make_wider(root: Path) -> Path:
    (root / "Image" / "test").mkdir(parents=True)
    targets = [{"attribute": [1, -1, 0] + [-1] * 11, "bbox": [2, 2, 10, 10]}]
    entries = []
    for number in range(3):
        (root / "Image" / "test" / f"{number}.jpg").write_bytes(jpeg(number))
        entries.append({"file_name": f"test/{number}.jpg", "targets": targets})
    (root / "wider_attribute_test.json").write_text(json.dumps({"images": entries}))
    return root


def make_table(root: Path) -> Path:
    root.mkdir()
    (root / "photos of a day").mkdir()
    for number in range(3):
        (root / "photos of a day" / f"{number} é.jpg").write_bytes(jpeg(number))
    rows = "".join(f"photos of a day/{number} é.jpg,cat\n" for number in range(3))
    (root / "labels.csv").write_text(f"image,labels\n{rows}")
    return root


def make_coco_json(root: Path) -> Path:
    root.mkdir()
    (root / "photos").mkdir()
    for entry in COCO_IMAGES:
        (root / "photos" / entry["file_name"]).write_bytes(jpeg(entry["id"]))
    images = [entry | {"file_name": f"photos/{entry['file_name']}"} for entry in COCO_IMAGES]
    boxes = [
        {"id": box["id"], "image_id": box["image_id"], "category_id": 2, "bbox": box["bbox"]} for box in COCO_BOXES
    ]
    (root / "mine.json").write_text(json.dumps({"images": images, "annotations": boxes, "categories": CATEGORIES}))
    return root


# What each kind is called, how a small one is made, what lies at the place that is given, its split, and an image.
KINDS: dict[str, tuple[str, Callable[[Path], Path], str, str, str]] = {
    "voc2007": ("voc2007", lambda root: make_voc(root, 3).parents[1], "", "test", "JPEGImages/000002.jpg"),
    "coco2014": (
        "coco2014",
        lambda root: make_coco(root, COCO_IMAGES, COCO_BOXES, CATEGORIES),
        "",
        "train",
        "train2014/COCO_train2014_000000000005.jpg",
    ),
    "coco": (
        "coco",
        lambda root: make_coco(root, COCO_IMAGES, COCO_BOXES, CATEGORIES),
        "",
        "train2014",
        "train2014/COCO_train2014_000000000005.jpg",
    ),
    "coco json": ("coco", make_coco_json, "/mine.json", "all", "photos/COCO_train2014_000000000005.jpg"),
    "wider": ("wider", make_wider, "", "test", "Image/test/1.jpg"),
    "table": ("table", make_table, "/labels.csv", "all", "photos of a day/1 é.jpg"),
}


@pytest.fixture(params=KINDS)
def kind(request, tmp_path):
    dataset, make, below, split, image = KINDS[request.param]
    return dataset, make(tmp_path / "raw"), below, split, image


@pytest.fixture
def web():
    with webserver.running() as server:
        yield server


def put_into(s3, folder: Path, name: str) -> str:
    for path, data in contents(folder).items():
        target = s3.root / "bucket" / name / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return f"s3://bucket/{name}"


def build(dataset: str, source: str | Path, split: str, out: Path) -> dict[str, bytes]:
    build_shards(plan_build(open_source(dataset, source, split)), LocalStorage(out), num_workers=1)
    return contents(out)


def test_the_same_shards_from_a_bucket_and_from_the_web(kind, s3, web, tmp_path, request):
    dataset, root, below, split, _ = kind
    place = put_into(s3, root, f"same-{request.node.callspec.id.replace(' ', '-')}")
    web.files.update({f"/sets/{name}": data for name, data in contents(root).items()})
    wanted = build(dataset, f"{root}{below}", split, tmp_path / "local")
    assert build(dataset, f"{place}{below}", split, tmp_path / "bucket") == wanted
    assert build(dataset, f"{web.url}/sets{below}", split, tmp_path / "web") == wanted
    assert build(dataset, Path(f"{root}{below}"), split, tmp_path / "path") == wanted


def test_remote_places_are_recognised(kind, s3, web, request):
    dataset, root, below, _, _ = kind
    place = put_into(s3, root, f"seen-{request.node.callspec.id.replace(' ', '-')}")
    web.files.update({f"/sets/{name}": data for name, data in contents(root).items()})
    wanted = {"coco": "coco" if below else "coco2014"}.get(dataset, dataset)
    for source in (f"{place}{below}", f"{web.url}/sets{below}"):
        found, sentence = recognise(source)
        assert found == wanted and sentence.startswith(f"{source}: ")


def test_a_missing_image_is_named(kind, s3, tmp_path, request):
    dataset, root, below, split, image = kind
    (next(root.rglob(Path(image).name))).unlink()
    place = put_into(s3, root, f"missing-{request.node.callspec.id.replace(' ', '-')}")
    with pytest.raises(BadInputError) as caught:
        build(dataset, f"{place}{below}", split, tmp_path / "out")
    assert caught.value.file.startswith(place) and caught.value.file.endswith(image)
    assert caught.value.reason == "the image is missing"
    manifest = build_shards(
        plan_build(open_source(dataset, f"{place}{below}", split)),
        LocalStorage(tmp_path / "skip"),
        num_workers=1,
        on_error="skip",
    )
    assert (manifest.num_samples, manifest.counts["quarantined"]) == (2, 1)


def test_a_missing_bucket_is_one_line(kind, s3):
    dataset, _, below, split, _ = kind
    with pytest.raises(FileNotFoundError, match=r"s3://absent/x.*no such bucket") as caught:
        open_source(dataset, f"s3://absent/x{below}", split)
    assert "\n" not in str(caught.value)


def test_nothing_at_the_place_is_one_line(kind, s3, web):
    dataset, _, below, split, _ = kind
    for place in ("s3://bucket/nothing", f"{web.url}/nothing"):
        with pytest.raises(
            FileNotFoundError, match=f"{place}.*(missing;|no such file;|no (VOC2007|COCO-2014) here|no such table)"
        ):
            open_source(dataset, f"{place}{below}", split)


def test_wrong_credentials_are_one_line(s3, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(UserError, match="access denied; check the credentials"):
        open_source("table", "s3://bucket/x/labels.csv", "all")


def test_splits_of_a_bucket_are_found(s3, tmp_path):
    place = put_into(s3, make_voc(tmp_path, 1).parents[1], "splits-voc")
    assert select_sources(tmp_path, "voc2007", f"{place}/VOCdevkit/VOC2007")[0].splits == ("trainval", "test")
    place = put_into(s3, make_coco(tmp_path / "coco", COCO_IMAGES, COCO_BOXES, CATEGORIES), "splits-coco")
    assert select_sources(tmp_path, "coco", place)[0].splits == ("train2014",)


def test_a_web_address_cannot_be_listed(web, tmp_path):
    with pytest.raises(UserError, match="a web address cannot be listed; say which splits it has, with --split"):
        select_sources(tmp_path, "coco", web.url)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_table_of_images_in_many_places(s3, web, tmp_path, suffix):
    (tmp_path / "here.jpg").write_bytes(jpeg(1))
    web.files["/photos/there é.jpg"] = jpeg(2)
    (s3.root / "bucket" / "far").mkdir(exist_ok=True)
    (s3.root / "bucket" / "far" / "a b.jpg").write_bytes(jpeg(3))
    images = ["here.jpg", f"{web.url}/photos/there%20%C3%A9.jpg", "s3://bucket/far/a b.jpg"]
    rows = [{"image": image, "labels": [label]} for image, label in zip(images, ("cat", "dog", "cat"))]
    path = tmp_path / f"labels.{suffix}"
    if suffix == "csv":
        path.write_text("image,labels\n" + "".join(f"{row['image']},{row['labels'][0]}\n" for row in rows))
    elif suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        import pyarrow as pa

        pq.write_table(pa.Table.from_pylist(rows), path)
    plan = plan_build(open_source("table", path, "all", "many"))
    build_shards(plan, LocalStorage(tmp_path / "out"), num_workers=2)
    index = pq.read_table(tmp_path / "out" / "many-all-000000.parquet").to_pylist()
    assert [row["key"] for row in index] == ["here", "photos_there_é", "far_a_b"]
    tar = (tmp_path / "out" / "many-all-000000.tar").read_bytes()
    assert [tar[row["offset"] :][: row["length"]] for row in index] == [jpeg(1), jpeg(2), jpeg(3)]
    assert images[1].encode() in tar  # the sample's JSON says where it came from


def test_a_missing_address_is_named(web, tmp_path):
    (tmp_path / "labels.csv").write_text(f"image,labels\n{web.url}/gone.jpg,cat\n")
    with pytest.raises(BadInputError, match=f"{web.url}/gone.jpg: the image is missing"):
        build("table", tmp_path / "labels.csv", "all", tmp_path / "out")


def test_the_command_takes_an_address(s3, tmp_path):
    place = put_into(s3, make_table(tmp_path / "raw"), "command")
    command = ["build-shards", "--dataset", "table", "--source", f"{place}/labels.csv", "--name", "mine"]
    run = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "out"), "--workers", "1"])
    assert run.exit_code == 0, run.output
    assert (tmp_path / "out" / "mine" / "all" / "dataset.json").exists()


def test_the_command_says_in_one_line_what_is_missing(s3, tmp_path):
    for place, reason in (("s3://absent/x", "no such bucket"), ("s3://bucket/nothing", "no VOC2007 here")):
        command = ["build-shards", "--dataset", "voc2007", "--source", place, "--split", "test"]
        run = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "out")])
        assert run.exit_code == 2 and reason in run.stderr, run.output
        assert len(run.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_pipe_is_refused_and_named_as_it_was_given(tmp_path):
    for source, dataset in (("pipe:cat", "table"), ("pipe:cat: /etc/passwd", "voc2007"), ("pipe://x", "coco")):
        command = ["build-shards", "--dataset", dataset, "--source", source, "--split", "test"]
        run = CliRunner().invoke(app, [*command, "--out", str(tmp_path)])
        assert run.exit_code == 2 and source in run.stderr, run.output
