"""A model that answers about photographs: its thresholds, what it sees, and what stands for a hole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor, nn

from msldata.errors import UserError
from msltrain.config import TrainConfig
from msltrain.measures.predictions import Origin, Predictions, write_predictions
from msltrain.models.timm_view import TimmView
from msltrain.runs.checkpoint import LoadedRecogniser
from msltrain.stream.config import StreamConfig
from msltrain.use import predict
from msltrain.use.predict import Predictor, read_keep_mask

SIDE = 32
STREAM = StreamConfig(image_size=SIDE, mean=(0.5, 0.4, 0.3), std=(0.2, 0.4, 0.5))
CLASSES = ("cat", "dog", "owl")


class Colours(nn.Module):
    """Its logits are the mean red, green and blue that it sees, normalised."""

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return image_BCHW.mean((2, 3))


def loaded(path: Path, **more: Any) -> LoadedRecogniser:
    known: dict[str, Any] = {"config": TrainConfig(stream=STREAM), "classes": CLASSES, "sha256": "a" * 64} | more
    return LoadedRecogniser(recogniser=Colours().eval(), path=path, **known)


@pytest.fixture
def predictor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def predictor(threshold: Any = None, **more: Any) -> Predictor:
        asked: list[Any] = []
        monkeypatch.setattr(predict, "load_any", lambda *given: asked.append(given) or loaded(tmp_path / "run", **more))
        made = Predictor("runs/one", "cpu", threshold=threshold)
        assert asked[0][0] == "runs/one"
        return made

    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text("{}")
    return predictor


def held_out(folder: Path, name: str, shift: float, classes: tuple[str, ...] = CLASSES, **origin: Any) -> None:
    """Predictions whose best threshold of class k is the logit ``shift + k``."""
    number_N, shift_K = np.arange(24) % 2, shift + np.arange(len(classes))
    one = Predictions(
        keys=tuple(map(str, range(24))),
        logit_NK=(number_N[:, None] - 0.5 + shift_K).astype(np.float32),
        target_NK=np.repeat(number_N[:, None], len(classes), axis=1).astype(np.uint8),
        ignore_NK=np.zeros((24, len(classes)), bool),
        classes=classes,
        origin=replace(Origin(checkpoint_sha256="a" * 64, image_size=SIDE), **origin),
    )
    write_predictions(one, folder / "run" / "predictions" / f"{name}-held-out.parquet")


def sigmoid(logit: Any) -> Any:
    return 1 / (1 + np.exp(-np.asarray(logit)))


def test_thresholds_are_those_of_the_model_in_plain_views(tmp_path: Path, predictor):
    assert predictor().threshold_K.tolist() == [0.5] * 3 and predictor().threshold_origin == "0.5 for every class"
    held_out(tmp_path, "1", -1.5, test_time="flip")
    held_out(tmp_path, "2", 2.5, checkpoint_sha256="b" * 64)
    held_out(tmp_path, "3", 3.5, classes=("cat", "owl", "dog"))
    held_out(tmp_path, "4", 4.5, keep_masks=("shards/masks",), keep_mask_fingerprints=("c",))
    held_out(tmp_path, "5", 5.5, image_size=96)
    assert predictor().threshold_K.tolist() == [0.5] * 3
    held_out(tmp_path, "6", -0.5, split="val")
    held_out(tmp_path, "7", 0.25)
    one = predictor()
    assert one.threshold_K.tolist() == pytest.approx(sigmoid([-0.5, 0.5, 1.5]).tolist())
    assert one.threshold_origin == "one per class, tuned on 24 photographs of val"
    export = predictor(thresholds=(0.1, 0.2, 0.3), threshold_origin="")
    assert (export.threshold_K.tolist(), export.threshold_origin) == ([0.1, 0.2, 0.3], "of the export")


def test_a_threshold_that_is_asked_for_takes_the_place_of_the_models(tmp_path: Path, predictor):
    held_out(tmp_path, "1", -0.5)
    tuned_K = sigmoid([-0.5, 0.5, 1.5]).tolist()
    one = predictor({"dog": 0.0})
    assert one.threshold_K.tolist() == pytest.approx([tuned_K[0], 0, tuned_K[2]])
    assert one.threshold_origin == "one per class, tuned on 24 photographs that training set aside; dog 0, as asked"
    one.use(0.0)
    assert one.threshold_K.tolist() == [0, 0, 0] and one.threshold_origin == "0, as asked"
    one.use({"owl": 0.7, "cat": 0.2})
    assert one.threshold_K.tolist() == [0.2, 0, 0.7]
    assert one.threshold_origin == "0, as asked; owl 0.7, cat 0.2, as asked"
    with pytest.raises(UserError, match="knows no such class"):
        one.use({"elk": 0.5})


def test_photographs_are_answered_in_their_order_and_classes_by_their_score(predictor):
    one = predictor((0.3 + 0.4) / 2)
    colours = [(40, 200, 120), (250, 20, 240), (128, 102, 77), (0, 0, 0), (90, 90, 255)]
    images = [Image.new("RGB", (20, 10), colour) for colour in colours]
    found = one.predict([*images[:2], np.asarray(images[2]), *images[3:]], batch_size=2, top_k=2)
    assert [answer.file for answer in found] == [f"image {number}" for number in range(5)]
    mean, std = np.array(STREAM.mean), np.array(STREAM.std)
    for answer, colour in zip(found, colours, strict=True):
        score_K = sigmoid((np.array(colour) / 255 - mean) / std)
        order_K = np.argsort(-score_K)
        assert [name for name, _ in answer.scores] == [CLASSES[k] for k in order_K[:2]]
        assert [score for _, score in answer.scores] == pytest.approx(score_K[order_K[:2]].tolist(), abs=1e-5)
        assert answer.predicted == tuple(CLASSES[k] for k in order_K if score_K[k] >= 0.35)
        assert answer.thresholds == (0.35, 0.35) and answer.threshold_origin == "0.35, as asked"


def test_a_score_at_its_threshold_counts_and_a_hole_has_the_mean_colour(predictor):
    one = predictor()
    answer = predict.Answer(np.float32([0.5, 0.2, 0.75]), None)
    assert one.predicted(answer) == ("owl", "cat")  # highest first
    assert one.hole_colour == (128, 102, 76)  # to the nearest level, halves to even
    nearly = predictor(config=TrainConfig(stream=replace(STREAM, mean=(0.699, 0.301, 0.0))))
    assert nearly.hole_colour == (178, 77, 0)


def test_a_timm_classifier_sees_what_its_own_transform_leaves(predictor):
    pixels_HWC = np.zeros((60, 100, 3), np.uint8)
    pixels_HWC[:, 40:60] = (200, 100, 50)
    pixels_HWC[:15] = pixels_HWC[45:] = 255
    view = TimmView(side=SIDE, interpolation="nearest", crop_pct=8.0, crop_mode="center")
    # The shorter side becomes 4 pixels of the 32 that are cut out of the middle: all, and a black frame around it.
    wide = TimmView(side=SIDE, interpolation="nearest", crop_pct=0.25, crop_mode="center")
    middle = TimmView(side=SIDE, interpolation="nearest", crop_pct=1.0, crop_mode="center")
    for one_view in (view, wide, middle):
        one = predictor(view=one_view)
        seen_HWC = one.seen(predict.read_photo(predict.given_pictures(pixels_HWC)[0])).pixels()
        assert seen_HWC.shape == (SIDE, SIDE, 3)
        assert np.array_equal(seen_HWC, one_view.square(pixels_HWC)[0].permute(1, 2, 0).numpy())
        [answer] = one.predict(pixels_HWC)
        expected_K = sigmoid((seen_HWC.mean((0, 1)) / 255 - STREAM.mean) / STREAM.std)
        assert dict(answer.scores) == pytest.approx(dict(zip(CLASSES, expected_K.tolist())), abs=1e-5)
    middle_HWC = middle.square(pixels_HWC)[0].permute(1, 2, 0).numpy()
    assert tuple(middle_HWC[16, 16]) == (200, 100, 50) and tuple(middle_HWC[2, 16]) == (255, 255, 255)
    assert tuple(predictor().seen(predict.read_photo(predict.given_pictures(pixels_HWC)[0])).pixels()[30, 2]) == (
        0,
        0,
        0,
    )


@pytest.mark.parametrize("masked", [False, True])
def test_what_is_drawn_of_a_class_is_its_own(tmp_path: Path, predictor, monkeypatch: pytest.MonkeyPatch, masked: bool):
    """Its place scores, its score, and whether that reaches its own threshold; whole, and behind the mask."""
    one = predictor({"cat": 0.9, "dog": 0.2, "owl": 0.45})

    def logits(network: nn.Module, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        place_BKHW = image_BCHW[:, :, ::16, ::16]
        return image_BCHW.mean((2, 3)), place_BKHW

    drawn: list[tuple[Any, ...]] = []
    monkeypatch.setattr(predict, "logits_and_place_logits", logits)
    monkeypatch.setattr(predict, "draw_sheet", lambda *given: drawn.append(given) or given[0])
    mask = Image.new("L", (8, 8), 255)
    mask.paste(0, (0, 0, 4, 8))
    mask.save(tmp_path / "mask.png")

    class Folder:
        def write(self, name: str, sheet: object) -> str:
            return f"{sheet} drawn"

    images = [Image.new("RGB", (20, 10), colour) for colour in ((130, 250, 80), (40, 90, 250))]
    asked = predict.Asked(top_k=2, **({"keep_mask": tmp_path / "mask.png", "polarity": "hole-black"} if masked else {}))
    pictures = predict.given_pictures(images)
    [found] = predict.predict_each(one, pictures, asked, Folder())  # type: ignore[arg-type]
    assert [answer.overlay for answer in found] == ["image 0 drawn", "image 1 drawn"]
    keep_SS = np.repeat([[0] * 16 + [1] * 16], SIDE, axis=0)
    for answer, image, (name, thumbnail_HWC, rows, hole_colour) in zip(found, images, drawn, strict=True):
        assert (name, hole_colour) == (answer.file, one.hole_colour) and thumbnail_HWC.shape[2] == 3
        assert np.abs(thumbnail_HWC - np.array(image)[0, 0].astype(int)).max() <= 1
        assert len(rows) == 1 + masked and rows[0].keep_mask_SS is None
        assert not masked or rows[1].keep_mask_SS.tolist() == keep_SS.tolist()
        logit_K = (np.array(image)[0, 0] / 255 - STREAM.mean) / STREAM.std
        for row, share, scores in zip(rows, (1, 0.5), (answer.scores, answer.masked_scores)):
            for panel, (label, score) in zip(row.panels, scores, strict=True):
                k = CLASSES.index(label)
                assert score == pytest.approx(sigmoid(share * logit_K[k]), abs=1e-5)
                assert panel.title.startswith(f"{label} ") and panel.is_predicted == (score >= one.threshold_K[k])
                places = sigmoid(logit_K[k] * (np.array([[0, 1]] * 2) if share < 1 else np.ones((2, 2))))
                assert panel.place_score_HW == pytest.approx(places, abs=1e-5)
        whole = [label for label, _ in answer.scores]
        assert answer.thresholds == tuple(one.threshold_K[CLASSES.index(label)] for label in whole)


def test_white_is_said_to_cover_what_it_covers(tmp_path: Path):
    mask = Image.new("L", (100, 10), 0)
    mask.paste(255, (0, 0, 20, 10))
    mask.save(tmp_path / "mask.png")
    with pytest.raises(UserError, match="White covers 20% of it"):
        read_keep_mask(tmp_path / "mask.png", "", 10)
    hidden_SS = np.repeat([[1] * 2 + [0] * 8], 10, axis=0)
    assert read_keep_mask(tmp_path / "mask.png", "hole-black", 10).tolist() == hidden_SS.tolist()
    assert read_keep_mask(tmp_path / "mask.png", "hole-white", 10).tolist() == (1 - hidden_SS).tolist()


@pytest.mark.parametrize(
    ("name", "revision", "place"),
    [
        ("me/model", "main", "hf://me/model"),
        ("me/model", "v2", "hf://me/model@v2"),
        ("here/model", "v2", "here/model"),
        ("exported/of/mine", "v2", "exported/of/mine"),
    ],
)
def test_a_name_is_a_repository_unless_there_is_such_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, revision: str, place: str
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "model").mkdir(parents=True)
    asked: list[Any] = []
    monkeypatch.setattr(Predictor, "__init__", lambda self, *given, **more: asked.append((given, more)))
    Predictor.from_pretrained(name, revision=revision, device="cpu", threshold=0.25)
    assert asked == [((place, "cpu"), {"threshold": 0.25})]
