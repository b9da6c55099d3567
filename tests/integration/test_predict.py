"""Prediction of image files: which files, which scores, and what happens with files that are no images."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from msldata.errors import BadInputError, UserError
from msltrain.evaluate import evaluate
from msltrain.predict import find_images, predict_images, read_square
from tests.integration.test_evaluate import write_checkpoint
from tests.smallshards import CLASSES, photo, write_images

COUNT = 5


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of photographs, one of them grey, and the run of a random model."""
    folder = tmp_path_factory.mktemp("predict")
    grey = photo(3, mode="L")
    photos = {f"s{number:06d}": photo(number, 60, 40) for number in range(COUNT)} | {"s000003": grey}
    (folder / "photos" / "deeper").mkdir(parents=True)
    for key, data in photos.items():
        (folder / "photos" / f"{key}.jpg").write_bytes(data)
    (folder / "photos" / "notes.txt").write_text("no image")
    write_checkpoint(folder / "run", CLASSES)
    return folder


def test_scores_equal_those_of_the_evaluation(tmp_path):
    write_images(tmp_path / "shards", [COUNT])
    (tmp_path / "photos").mkdir()
    for number in range(COUNT):
        # The sizes that write_images gives its samples.
        data = photo(number, 40 + number % 37, 36 + number % 23)
        (tmp_path / "photos" / f"s{number:06d}.jpg").write_bytes(data)
    run = write_checkpoint(tmp_path / "run", CLASSES)
    expected = evaluate(run, tmp_path / "shards", batch_size=COUNT, device="cpu")[0]
    found = predict_images(run, [tmp_path / "photos"], top_k=None, device="cpu")
    assert [prediction.file for prediction in found] == [str(tmp_path / f"photos/{key}.jpg") for key in expected.keys]
    for prediction, score_K in zip(found, expected.score_NK, strict=True):
        assert [name for name, _ in prediction.scores] == [CLASSES[k] for k in np.argsort(-score_K)]
        assert [score for _, score in prediction.scores] == pytest.approx(sorted(score_K, reverse=True), abs=1e-6)


def test_top_k_and_threshold(place):
    everything = predict_images(place / "run", [place / "photos"], top_k=None, device="cpu")
    best = predict_images(place / "run", [place / "photos"], top_k=1, device="cpu")
    assert [prediction.scores for prediction in best] == [prediction.scores[:1] for prediction in everything]
    limit = everything[0].scores[1][1]
    above = predict_images(place / "run", [place / "photos"], top_k=None, threshold=limit, device="cpu")
    for some, whole in zip(above, everything, strict=True):
        assert some.scores == tuple(pair for pair in whole.scores if pair[1] >= limit)


def test_files_folders_patterns_and_doubles(place, tmp_path):
    photos = place / "photos"
    first, last = photos / "s000000.jpg", photos / "s000004.jpg"
    assert find_images([last, photos]) == [last, *(photos / f"s{number:06d}.jpg" for number in range(4))]
    assert find_images([str(photos / "*0.jpg")]) == [first]
    assert find_images([str(place / "**" / "s00000[04].jpg")]) == [first, last]
    (tmp_path / "odd[1].JPG").write_bytes(first.read_bytes())
    assert find_images([str(tmp_path / "odd[1].JPG")]) == [tmp_path / "odd[1].JPG"], "a file may look like a pattern"


def test_nothing_found_is_said(place, tmp_path):
    with pytest.raises(UserError, match="no images here"):
        find_images([tmp_path])
    with pytest.raises(UserError, match=r"\*\.png: no images here"):
        find_images([str(place / "photos" / "*.png")])
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg: no such file or folder"):
        find_images([tmp_path / "gone.jpg"])
    with pytest.raises(UserError, match="no images were named"):
        find_images([])


def test_other_formats_give_the_same_pixels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    for suffix in ("png", "bmp", "webp"):
        Image.fromarray(pixels).save(tmp_path / f"image.{suffix}", lossless=True)
        square = read_square(tmp_path / f"image.{suffix}", 32)
        np.testing.assert_array_equal(square[0].permute(1, 2, 0).numpy(), pixels)
    Image.fromarray(pixels).convert("P").save(tmp_path / "palette.png")
    Image.fromarray(pixels).convert("CMYK").save(tmp_path / "cmyk.jpg")
    for name in ("palette.png", "cmyk.jpg"):
        assert read_square(tmp_path / name, 32).shape == (1, 3, 32, 32)


def broken_files():
    whole = photo(0, 60, 40)
    png = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(png, "PNG")
    return {
        "text.jpg": b"this is no image",
        "empty.png": b"",
        "cut.jpg": whole[: len(whole) // 2],
        "head.jpg": whole[:20],
        "cut.png": png.getvalue()[:60],
    }


@pytest.mark.parametrize("name", broken_files())
def test_a_broken_image_stops_everything_or_is_reported(place, tmp_path, name):
    (tmp_path / name).write_bytes(broken_files()[name])
    good = place / "photos" / "s000000.jpg"
    with pytest.raises(BadInputError, match=name.replace(".", r"\.")):
        predict_images(place / "run", [good, tmp_path / name], device="cpu")
    found = predict_images(place / "run", [tmp_path / name, good], device="cpu", on_error="skip")
    assert found[0].scores == () and found[0].error
    assert found[1:] == predict_images(place / "run", [good], device="cpu")


def test_only_broken_images(place, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no")
    [found] = predict_images(place / "run", [tmp_path / "a.jpg"], device="cpu", on_error="skip")
    assert found.error == "not an image"


@pytest.mark.parametrize("option", [{"top_k": 0}, {"threshold": 1.5}])
def test_options_without_meaning(place, option):
    with pytest.raises(UserError):
        predict_images(place / "run", [place / "photos"], device="cpu", **option)
