"""WIDER-Attribute: people cut out of photographs, three states of an attribute, and what is refused."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from msldata.build.image import Resize, prepare_image
from msldata.build.shards import build_shards, plan_build
from msldata.errors import BadInputError, UserError
from msldata.sources.kinds import find_sources, open_source
from msldata.storage import open_storage
from msltrain.recipes import recipe
from msltrain.stream.loader import Loader
from msltrain.stream.samples.shardset import open_shard_set
from tests.integration.test_build_shards import read_samples

ATTRIBUTES = [1, -1, 0, -1, 1, -1, -1, -1, -1, -1, -1, -1, -1, 0]
BOX = [10.4, 5, 20, 30.2]
NAMES = ("train/0--Parade/0_Parade_1_84.jpg", "val/0--Parade/0_Parade_1_84.jpg")


def photograph() -> bytes:
    """80 × 60, black, with a red person in ``BOX``."""
    image = Image.new("RGB", (80, 60))
    image.paste((255, 0, 0), (10, 5, 30, 35))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=100, subsampling=0)
    return buffer.getvalue()


def make_wider(root, *, folder="Annotations", names=NAMES, **changes):
    person = {"attribute": ATTRIBUTES, "bbox": BOX} | changes
    whole = {"attribute": [-1] * 14, "bbox": [-5, -5, 500, 500]}
    images = [{"file_name": name, "scene_id": 0, "targets": [person, whole]} for name in names]
    (root / folder).mkdir(parents=True, exist_ok=True)
    (root / folder / "wider_attribute_trainval.json").write_text(json.dumps({"images": images}))
    for name in NAMES:
        (root / "Image" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "Image" / name).write_bytes(photograph())
    return root


def test_rules_by_hand(tmp_path):
    source = open_source("wider", make_wider(tmp_path), "trainval")
    first, second, third, _ = source.records()
    assert source.labels.names(first.positives) == ["Male", "Tshirt"]
    assert source.labels.names(first.ignored) == ["sunglass", "stripe"]
    assert (second.positives, second.ignored) == ((), ())
    assert (first.key, second.key) == ("train_0--Parade_0_Parade_1_84_0", "train_0--Parade_0_Parade_1_84_1")
    assert (first.image, first.crop) == (f"Image/{NAMES[0]}", (10.4, 5, 20, 30.2))
    assert third.key.startswith("val_")
    assert len(source.labels) == 14
    for split in ("train", "val"):
        keys = [record.key for record in open_source("wider", tmp_path, split).records()]
        assert len(keys) == 2 and all(key.startswith(f"{split}_") for key in keys)


@pytest.mark.parametrize("folder", [".", "Annotations", "Anno", "wider_attribute_annotation"])
def test_usual_places(tmp_path, folder):
    make_wider(tmp_path / "WIDER", folder=folder)
    (found,) = find_sources(tmp_path)
    assert (found.dataset, found.root.name, found.splits) == ("wider", "WIDER", ("trainval",))
    assert len(list(open_source("wider", tmp_path, "trainval").records())) == 4


@pytest.mark.parametrize(("resize", "sizes"), [(None, [(20, 30), (80, 60)]), (Resize("fit", 15), [(10, 15), (15, 11)])])
def test_people_are_cut_out(tmp_path, resize, sizes):
    plan = plan_build(open_source("wider", make_wider(tmp_path / "WIDER"), "train"), resize=resize)
    assert plan.shards[0].records()[0].crop == (10.4, 5, 20, 30.2)
    manifest = build_shards(plan, open_storage(tmp_path / "out"), num_workers=1)
    person, whole = read_samples(tmp_path / "out", manifest)
    images = [Image.open(io.BytesIO(found["jpg"])) for found in (person, whole)]
    assert [image.size for image in images] == sizes
    assert np.abs(np.asarray(images[0]).astype(int) - (255, 0, 0)).max() < 40  # the person and nothing round it
    meta = json.loads(person["json"])
    assert (meta["crop"], (meta["width"], meta["height"])) == (BOX, sizes[0])
    assert meta["ignored"] == ["sunglass", "stripe"]
    assert manifest.label_histogram["Male"] == {"positive": 1, "ignored": 0}


def test_a_box_that_begins_outside_ends_where_it_says():
    prepared = prepare_image(photograph(), crop=(-10, -5.4, 30, 30))
    assert (prepared.width, prepared.height) == (20, 25)
    pixels = np.asarray(Image.open(io.BytesIO(prepared.data)))
    assert pixels[12, 15, 0] > 200 and pixels[12, 5, 0] < 50  # the person begins at 10


def test_a_box_outside_is_refused():
    with pytest.raises(ValueError, match=r"the part \(90, 5, 10, 10\) lies outside the image of 80 × 60"):
        prepare_image(photograph(), crop=(90, 5, 10, 10))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"attribute": [1] * 13}, "person 0: .* are not 14 values of 1, 0 and -1"),
        ({"attribute": [99] * 14}, "person 0: .* are not 14 values of 1, 0 and -1"),
        ({"bbox": [1, 2, 0, 4]}, "has no area"),
        ({"bbox": [1, 2, 3]}, "not WIDER-Attribute's annotations"),
        ({"names": ["../secret.jpg"]}, "'../secret.jpg' is not a path below Image"),
    ],
)
def test_bad_annotations_are_named(tmp_path, changes, reason):
    make_wider(tmp_path, **changes)
    with pytest.raises(BadInputError, match=rf"wider_attribute_trainval\.json: .*{reason}"):
        list(open_source("wider", tmp_path, "trainval").records())


def test_missing_parts_are_named(tmp_path):
    make_wider(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"wider_attribute_test\.json: missing"):
        open_source("wider", tmp_path, "test")
    with pytest.raises(UserError, match="wider has no split 'dev'; known are: trainval, train, val, test"):
        open_source("wider", tmp_path, "dev")
    (tmp_path / "Annotations" / "wider_attribute_trainval.json").write_text("[]")
    with pytest.raises(BadInputError, match="not WIDER-Attribute's annotations"):
        open_source("wider", tmp_path, "trainval")


@pytest.mark.parametrize("recipe_name", ["msl-b-wider", "msl-v-wider-paper"])
def test_training_shows_the_whole_of_a_tall_person(tmp_path, recipe_name):
    """Red heads and blue feet at the ends of tall boxes are in every training image; about half are mirrored."""
    people, image = [], Image.new("RGB", (700, 420))
    for number, (width, height) in enumerate([(30, 400), (60, 300), (90, 180), (50, 100), (100, 200), (40, 80)]):
        left = 5 + 110 * number
        tenth = height // 10
        image.paste((0, 200, 0), (left, 5, left + width, 5 + height))
        image.paste((255, 0, 0), (left, 5, left + width, 5 + tenth))
        image.paste((0, 0, 255), (left, 5 + height - tenth, left + width, 5 + height))
        image.paste((0, 0, 0), (left, 5 + 3 * tenth, left + width // 3, 5 + 6 * tenth))
        people.append({"attribute": ATTRIBUTES, "bbox": [left, 5, width, height]})
    name = "train/0/all.jpg"
    (tmp_path / "Image" / name).parent.mkdir(parents=True)
    image.save(tmp_path / "Image" / name, "JPEG", quality=100, subsampling=0)
    content = {"images": [{"file_name": name, "scene_id": 0, "targets": people}]}
    (tmp_path / "wider_attribute_trainval.json").write_text(json.dumps(content))
    plan = plan_build(open_source("wider", tmp_path, "trainval"))
    build_shards(plan, open_storage(tmp_path / "shards"), num_workers=1)

    stream = replace(recipe(recipe_name).stream, image_size=40, batch_size=6, num_threads=1)
    flipped = []
    with Loader(open_shard_set(tmp_path / "shards"), stream, device="cpu", training=True) as loader:
        for epoch in range(6):
            loader.set_epoch(epoch)
            (batch,) = loader
            rows_B3HW = batch.image_BCHW * 0.5 + 0.5
            red, green, blue = rows_B3HW.mean(dim=3).unbind(1)
            assert (red[:, 0] > 0.9).all() and (green[:, 0] < 0.2).all()
            assert (blue[:, -1] > 0.9).all() and (green[:, -1] < 0.2).all()
            flipped += (rows_B3HW[:, 1, 18, 3] > 0.5).tolist()
    assert 0 < sum(flipped) < len(flipped)
