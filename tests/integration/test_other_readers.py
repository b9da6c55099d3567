"""The shards in the hands of readers that know nothing of this program: the right images with the right labels."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from msldata.build.shards import build_shards, plan_build
from msldata.contract.records import VOC_CLASSES
from msldata.sources.kinds import open_source
from msldata.storage import LocalStorage
from tests.tinydata import jpeg, make_voc, voc_object, voc_xml

NUM = 12


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, dict[str, tuple[np.ndarray, list[str]]]]:
    """A dataset of 12 images in 3 shards; pixels and labels by key. What a sample's JSON has differs on purpose."""
    root = tmp_path_factory.mktemp("readers")
    folder = make_voc(root, NUM)
    # Neither flag at first, then one, then none of the objects: readers that infer a schema see it change.
    for number in range(1, 8):
        (folder / "Annotations" / f"{number:06d}.xml").write_text(voc_xml(voc_object(VOC_CLASSES[number])))
    (folder / "Annotations" / "000009.xml").write_text(voc_xml())
    (folder / "Annotations" / "000010.xml").write_text(voc_xml(voc_object("cat", occluded=1, truncated=0)))
    source = open_source("voc2007", folder, "test")
    wanted = {}
    for number, record in enumerate(source.records()):
        with Image.open(io.BytesIO(jpeg(number))) as image:
            wanted[record.key] = (np.asarray(image), source.labels.names(record.positives))
    build_shards(plan_build(source, samples_per_shard=5), LocalStorage(root / "out"), num_workers=1)
    return root / "out", wanted


def multi_hot(names: list[str]) -> list[int]:
    return [int(name in names) for name in VOC_CLASSES]


def test_plain_webdataset(built):
    folder, wanted = built
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    dataset = webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8")
    found = list(dataset.to_tuple("__key__", "jpg", "target.npy", "json"))
    assert [key for key, *_ in found] == list(wanted)
    for key, pixels, target, meta in found:
        assert np.array_equal(pixels, wanted[key][0])
        assert target.tolist() == multi_hot(wanted[key][1]) and meta["labels"] == wanted[key][1]


def test_timms_reader(built, tmp_path):
    """By ``_info.json``; the labels from the JSON, as class indices or as names."""
    from timm.data import create_dataset

    folder, wanted = built
    classes = tmp_path / "classes.txt"
    classes.write_text("\n".join(VOC_CLASSES))
    dataset = create_dataset("wds/", root=str(folder), split="test", target_key="labels", class_map=str(classes))
    found = list(dataset)
    assert len(dataset) == len(found) == NUM
    for (image, target), (pixels, names) in zip(found, wanted.values(), strict=True):
        assert np.array_equal(np.asarray(image), pixels)
        assert target == [VOC_CLASSES.index(name) for name in names]


def test_reading_as_open_clip_does(built):
    """It counts by ``sizes.json`` beside the first shard, and takes a sample's members by extension."""
    folder, wanted = built
    shards = list(webdataset.shardlists.expand_urls(f"{folder}/voc2007-test-{{000000..000002}}.tar"))
    sizes = json.loads((Path(shards[0]).parent / "sizes.json").read_text())
    assert sum(int(sizes[Path(shard).name]) for shard in shards) == NUM
    pipeline = webdataset.DataPipeline(
        webdataset.SimpleShardList(shards),
        webdataset.tarfile_to_samples(),
        webdataset.decode("pilrgb"),
        webdataset.rename(image="jpg;png;jpeg;webp", text="json"),
        webdataset.map_dict(image=np.asarray, text=lambda meta: " ".join(meta["labels"])),
        webdataset.to_tuple("image", "text"),
        webdataset.batched(4, partial=True),
    )
    found = [pair for images, texts in pipeline for pair in zip(images, texts)]
    assert len(found) == NUM
    for (pixels, text), (wanted_pixels, names) in zip(found, wanted.values(), strict=True):
        assert np.array_equal(pixels, wanted_pixels) and text == " ".join(names)


@pytest.mark.parametrize("streaming", [True, False])
def test_hugging_face_datasets(built, tmp_path, monkeypatch, streaming):
    """It guesses types from the first five samples; a flag that they all leave open needs to be told."""
    datasets = pytest.importorskip("datasets", reason="datasets is not installed: install the test extra")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    folder, wanted = built
    text, number, flag = (datasets.Value(name) for name in ("string", "int64", "bool"))
    thing = {"class": text, "box": datasets.List(datasets.Value("float64")), "area": datasets.Value("float64")}
    thing |= dict.fromkeys(("difficult", "truncated", "occluded", "crowd"), flag)
    names = datasets.List(text)
    meta = {"image_id": text, "file": text, "width": number, "height": number, "labels": names, "ignored": names}
    features = datasets.Features(
        {
            "__key__": text,
            "__url__": text,
            "jpg": datasets.Image(),
            "json": meta | {"objects": datasets.List(thing)},
            "target.npy": datasets.List(datasets.Value("uint8")),
        }
    )
    dataset = _load(datasets, folder, tmp_path, streaming=streaming, features=features)
    _check(dataset, wanted)
    assert dataset.features == features


def test_hugging_face_datasets_guesses_right_when_samples_are_alike(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed: install the test extra")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    source = open_source("voc2007", make_voc(tmp_path / "raw", NUM), "test")
    build_shards(plan_build(source, samples_per_shard=5), LocalStorage(tmp_path / "out"), num_workers=1)
    wanted = {}
    for number, record in enumerate(source.records()):
        with Image.open(io.BytesIO(jpeg(number))) as image:
            wanted[record.key] = (np.asarray(image), source.labels.names(record.positives))
    _check(_load(datasets, tmp_path / "out", tmp_path), wanted)


def _load(datasets, folder: Path, cache: Path, **options):
    files = [str(path) for path in sorted(folder.glob("*.tar"))]
    return datasets.load_dataset(
        "webdataset", data_files={"test": files}, split="test", cache_dir=str(cache / "cache"), **options
    )


def _check(dataset, wanted: dict[str, tuple[np.ndarray, list[str]]]) -> None:
    found = {row["__key__"]: row for row in dataset}
    assert list(found) == list(wanted)
    for key, (pixels, names) in wanted.items():
        assert np.array_equal(np.asarray(found[key]["jpg"]), pixels)
        assert np.asarray(found[key]["target.npy"]).tolist() == multi_hot(names)
        assert found[key]["json"]["labels"] == names
