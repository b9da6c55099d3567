"""Prediction of image files: which files, which scores, and what happens with files that are no images."""

from __future__ import annotations

import functools
import io
import threading
import zlib
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

from msldata.errors import BadInputError, UserError
from msldata.storage import open_storage
from msltrain.evaluation.evaluate import evaluate
from msltrain.measures.predictions import write_predictions
from msltrain.measures.thresholds import tune_thresholds
from msltrain.runs.checkpoint import load_recogniser
from msltrain.use.predict import Answer, Predictor, find_images, read_keep_mask, read_square
from tests.answers import predict_images
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
    expected = evaluate(run, tmp_path / "shards", batch_size=COUNT, device="cpu")
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
    above = predict_images(place / "run", [place / "photos"], top_k=1, threshold=limit, device="cpu")
    for some, whole in zip(above, everything, strict=True):
        assert some.predicted == tuple(name for name, score in whole.scores if score >= limit), "also beyond top k"
    for half in everything:
        assert half.predicted == tuple(name for name, score in half.scores if score >= 0.5)


def test_thresholds_tuned_on_the_held_out_part_are_used(tmp_path):
    write_images(tmp_path / "shards", [36])  # enough of each class to tune on
    run = write_checkpoint(tmp_path / "run", CLASSES)
    cpu = torch.device("cpu")
    held_out = evaluate(run, tmp_path / "shards", batch_size=12, device="cpu")
    names = {"of-these": held_out, "masked": replace(held_out, origin=replace(held_out.origin, keep_masks=("m",)))}
    names["other"] = replace(held_out, origin=replace(held_out.origin, checkpoint_sha256="0" * 64))
    expected = 1 / (1 + np.exp(-tune_thresholds(held_out)))
    assert not np.allclose(expected, 0.5, atol=1e-3), "nothing to see"
    for name, used in (("other", False), ("masked", False), ("of-these", True)):
        write_predictions(names[name], run / "predictions" / f"{name}-held-out.parquet")
        predictor = Predictor(run, cpu)
        np.testing.assert_allclose(predictor.threshold_K, expected if used else 0.5)
    assert f"tuned on {len(held_out.keys)} photographs of " in predictor.threshold_origin
    assert ".parquet" not in predictor.threshold_origin
    np.testing.assert_array_equal(Predictor(run, cpu, threshold=0.3).threshold_K, 0.3)


def names_of(inputs) -> list[str]:
    return [picture.name for picture in find_images(inputs)]


def test_files_folders_patterns_and_doubles(place, tmp_path):
    photos = place / "photos"
    first, last = photos / "s000000.jpg", photos / "s000004.jpg"
    assert names_of([last, photos]) == [str(last), *(f"{photos}/s{number:06d}.jpg" for number in range(4))]
    assert names_of([str(photos / "*0.jpg")]) == [str(first)]
    assert names_of([str(place / "**" / "s00000[04].jpg")]) == [str(first), str(last)]
    (tmp_path / "odd[1].JPG").write_bytes(first.read_bytes())
    assert names_of([str(tmp_path / "odd[1].JPG")]) == [str(tmp_path / "odd[1].JPG")], "a file may look like a pattern"


def test_shards_are_read_in_stored_order_and_checked(tmp_path):
    write_images(tmp_path / "shards", [2, 3])
    run = write_checkpoint(tmp_path / "run", CLASSES)
    found = predict_images(run, [tmp_path / "shards"], top_k=None, device="cpu")
    expected = evaluate(run, tmp_path / "shards", batch_size=5, device="cpu")
    assert [image.file for image in found] == [f"{tmp_path / 'shards'}#{key}" for key in expected.keys]
    for image, score_K in zip(found, expected.score_NK, strict=True):
        assert [dict(image.scores)[name] for name in CLASSES] == pytest.approx(score_K, abs=1e-6)
    tar = sorted((tmp_path / "shards").glob("*.tar"))[1]
    data = bytearray(tar.read_bytes())
    start = data.index(b"\xff\xd8\xff") + 200
    data[start : start + 8] = bytes(8)
    tar.write_bytes(data)
    bad = [image for image in predict_images(run, [tmp_path / "shards"], device="cpu", on_error="skip") if image.error]
    assert [image.file for image in bad] == [f"{tmp_path / 'shards'}#s000002"] and "CRC-32" in bad[0].error


@pytest.fixture
def web(place):
    """The folder ``place`` behind a web server on loopback."""
    handler = functools.partial(SimpleHTTPRequestHandler, directory=place)
    handler.log_message = lambda *_: None
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_images_on_a_web_server(place, web):
    urls = [f"{web}/photos/s000001.jpg", f"{web}/photos/s000002.jpg?size=large", f"{web}/photos/gone.jpg"]
    found = predict_images(place / "run", urls, device="cpu", on_error="skip")
    assert [image.file for image in found] == urls
    local = predict_images(place / "run", [place / "photos" / f"s00000{n}.jpg" for n in (1, 2)], device="cpu")
    assert [image.scores for image in found[:2]] == [image.scores for image in local]
    assert found[2].error == "the server says 404 File not found"
    with pytest.raises(BadInputError, match="cannot be reached"):
        predict_images(place / "run", ["http://127.0.0.1:9/photo.jpg"], device="cpu")


def test_images_and_shards_in_object_storage(place, s3, tmp_path):
    bucket = open_storage("s3://bucket")
    for n in range(2):
        bucket.put(f"photos/deeper/{n}.jpg", photo(n))
    bucket.put("photos/notes.txt", b"no image")
    write_images(tmp_path, [2])
    for file in tmp_path.iterdir():
        bucket.put(f"small/{file.name}", file.read_bytes())
    inputs = ["s3://bucket/photos", "s3://bucket/photos/deeper/1.jpg", "s3://bucket/small"]
    found = predict_images(place / "run", inputs, device="cpu")
    assert [image.file for image in found] == [
        *(f"s3://bucket/photos/deeper/{n}.jpg" for n in range(2)),
        *(f"s3://bucket/small#s{n:06d}" for n in range(2)),
    ]
    assert all(image.scores for image in found)
    with pytest.raises(UserError, match="s3://bucket/nothing: no images here"):
        find_images(["s3://bucket/nothing"])


def test_a_keep_mask_hides_what_it_hides_in_training(place, tmp_path):
    keep_mask_SS = np.ones((32, 32), np.uint8)
    keep_mask_SS[4:20, 8:30] = 0
    Image.fromarray(255 * keep_mask_SS).save(tmp_path / "visible-white.png")
    Image.fromarray(255 - 255 * keep_mask_SS).save(tmp_path / "hole-white.png")
    photos = [place / "photos" / f"s{number:06d}.jpg" for number in range(COUNT)]
    both = [
        predict_images(place / "run", photos, top_k=None, keep_mask=tmp_path / name, polarity=polarity, device="cpu")
        for name, polarity in (("visible-white.png", "hole-black"), ("hole-white.png", "hole-white"))
    ]
    assert both[0] == both[1]
    loaded = load_recogniser(place / "run")
    pixel_BCSS = torch.cat([read_square(file, 32) for file in photos]).float() / 255
    with torch.inference_mode():
        score_BK = loaded.recogniser(pixel_BCSS * torch.from_numpy(keep_mask_SS)).sigmoid()
    for image, score_K in zip(both[0], score_BK, strict=True):
        assert [dict(image.masked_scores)[name] for name in CLASSES] == pytest.approx(score_K.tolist(), abs=1e-6)
        assert dict(image.masked_scores) != dict(image.scores)
        assert [name for name, _ in image.masked_scores] == [name for name, _ in image.scores]
    with pytest.raises(UserError, match="which colour is the hole"):
        read_keep_mask(tmp_path / "hole-white.png", "", 32)
    with pytest.raises(FileNotFoundError, match=r"gone\.png: no such mask file"):
        read_keep_mask(tmp_path / "gone.png", "", 32)


def test_what_scores_high_in_either_version_is_shown(place, tmp_path, monkeypatch):
    Image.new("L", (8, 8), 255).save(tmp_path / "mask.png")
    whole_K, masked_K = np.float32([0.3, 0.9, 0.1]), np.float32([0.2, 0.1, 0.8])

    def answer(_, squares, keep_mask_SS=None, *, with_places):
        return [Answer(whole_K if keep_mask_SS is None else masked_K, None) for _ in squares]

    monkeypatch.setattr(Predictor, "answer", answer)
    [found] = predict_images(
        place / "run",
        [place / "photos" / "s000000.jpg"],
        top_k=2,
        keep_mask=tmp_path / "mask.png",
        polarity="hole-black",
        device="cpu",
    )
    assert [(name, round(score, 4)) for name, score in found.scores] == [("boat", 0.9), ("cat", 0.1)]
    assert (found.predicted, found.masked_predicted) == (("boat",), ("cat",))
    assert [name for name, _ in found.masked_scores] == ["boat", "cat"]


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
    huge = b"IHDR" + (14_000).to_bytes(4, "big") * 2 + png.getvalue()[24:29]
    return {
        "text.jpg": b"this is no image",
        "empty.png": b"",
        "cut.jpg": whole[: len(whole) // 2],
        "head.jpg": whole[:20],
        "cut.png": png.getvalue()[:60],
        "huge.png": png.getvalue()[:12] + huge + zlib.crc32(huge).to_bytes(4, "big") + png.getvalue()[33:],
    }


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", broken_files())
def test_a_broken_image_stops_everything_or_is_reported(place, tmp_path, name):
    (tmp_path / name).write_bytes(broken_files()[name])
    good = place / "photos" / "s000000.jpg"
    with pytest.raises(BadInputError, match=name.replace(".", r"\.")):
        predict_images(place / "run", [good, tmp_path / name], device="cpu")
    found = predict_images(place / "run", [tmp_path / name, good], device="cpu", on_error="skip")
    assert found[0].scores == () and found[0].error
    assert ("too large" in found[0].error) == (name == "huge.png")
    assert found[1:] == predict_images(place / "run", [good], device="cpu")


def test_only_broken_images(place, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no")
    [found] = predict_images(place / "run", [tmp_path / "a.jpg"], device="cpu", on_error="skip")
    assert found.error.startswith("not an image")


@pytest.mark.parametrize("option", [{"top_k": 0}, {"threshold": 1.5}])
def test_options_without_meaning(place, option):
    with pytest.raises(UserError):
        predict_images(place / "run", [place / "photos"], device="cpu", **option)
