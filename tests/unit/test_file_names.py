"""Photographs of shards are called what their owner calls them, not by keys without spaces and dots."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from msltrain.__main__ import app
from msltrain.measures.predictions import Origin, Predictions
from msltrain.report.examples import read_examples
from msltrain.stream.samples.shardset import open_shard_set
from msltrain.use.read_images import find_images
from tests.smallshards import write_images
from tests.tinydata import jpeg

NAMES = ("Süd Wald/IMG 1.v2.jpg", "Süd Wald/IMG_2.jpg", "Nord/IMG 1.v2.jpg")


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("names")
    for number, name in enumerate(NAMES):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(jpeg(number))
    (folder / "labels.csv").write_text("image,labels\n" + "".join(f"{name},cat\n" for name in NAMES))
    words = [
        "build-shards",
        str(folder / "labels.csv"),
        "--name",
        "mine",
        "--out",
        str(folder / "out"),
        "--split",
        "all",
    ]
    result = CliRunner().invoke(app, [*words, "--workers", "1"])
    assert result.exit_code == 0, result.output
    return folder / "out/mine/all"


def test_serve_calls_examples_by_their_files(shards):
    pictures = find_images([str(shards)])
    assert sorted(picture.called() for picture in pictures) == sorted(name.rpartition("/")[2] for name in NAMES)
    assert {picture.name.partition("#")[2] for picture in pictures} == {
        name.removesuffix(".jpg").translate(str.maketrans("/. ", "___")) for name in NAMES
    }
    [alone] = find_images([str(shards.parents[2] / NAMES[0])])
    assert alone.called() == "IMG 1.v2.jpg"


def test_reports_call_photographs_by_their_files(shards):
    shard_set = open_shard_set(shards)
    keys = tuple(picture.name.partition("#")[2] for picture in find_images([str(shards)]))
    values_NK = np.zeros((len(keys), 1), np.float32)
    origin = Origin(dataset_fingerprint=shard_set.manifest.fingerprint)
    predictions = Predictions(
        keys=keys,
        classes=("cat",),
        logit_NK=values_NK,
        target_NK=values_NK.astype(np.uint8) + 1,
        ignore_NK=values_NK.astype(bool),
        origin=origin,
    )
    found = {keys[example.row]: example.file for example in read_examples(range(len(keys)), predictions, shards)}
    assert found == {name.removesuffix(".jpg").translate(str.maketrans("/. ", "___")): name for name in NAMES}


def test_where_nothing_tells_the_key_is_the_name(tmp_path):
    write_images(tmp_path / "other", [3])  # tars whose JSON names no file
    pictures = find_images([str(tmp_path / "other")])
    assert [picture.called() for picture in pictures] == [picture.name.partition("#")[2] for picture in pictures]
