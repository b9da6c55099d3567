"""A model that this program did not train, measured like one that it did; and two models on the same images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import msltrain
from msldata.errors import UserError
from msltrain.measures.bootstrap import mean_ap_difference
from msltrain.measures.predictions import write_predictions
from msltrain.models.build import build_model
from msltrain.runs.checkpoint import Checkpoint, save_checkpoint
from tests.smallshards import CLASSES, write_images

CONFIG = msltrain.TrainConfig(
    stream=msltrain.StreamConfig(image_size=32, batch_size=8, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.3)),
    model=msltrain.ModelConfig(backbone="test_efficientnet", head="mean"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Shards, and a run whose network `network` gives."""
    root = tmp_path_factory.mktemp("models")
    write_images(root / "shards", [15, 14])
    weights = network().state_dict()
    checkpoint = Checkpoint(
        config=CONFIG, classes=CLASSES, step=1, epoch=1, validation_mAP=None, weights=weights, train_state={}
    )
    save_checkpoint(checkpoint, root / "run/checkpoints/best")
    return root


def network() -> nn.Module:
    torch.manual_seed(3)
    return build_model(CONFIG.model, len(CLASSES), image_size=32)


def test_it_is_measured_like_a_run_and_left_as_it_was(place: Path):
    expected, metrics = msltrain.evaluate(place / "run", place / "shards")
    mine = network()
    mine.backbone.eval()
    modes = [module.training for module in mine.modules()]
    found, own_metrics = msltrain.evaluate(mine, place / "shards", stream=CONFIG.stream, out=place / "own.parquet")
    assert np.array_equal(found.logit_NK, expected.logit_NK) and found.keys == expected.keys
    assert own_metrics.summary() == metrics.summary() and found.origin.dataset == "small"
    assert [module.training for module in mine.modules()] == modes and True in modes and False in modes
    by_function, _ = msltrain.evaluate(
        lambda image_BCHW: mine.eval()(image_BCHW), place / "shards", stream=CONFIG.stream
    )
    assert np.array_equal(by_function.logit_NK, expected.logit_NK)
    assert msltrain.compare(place / "own.parquet", expected)["mAP"].value == 0


def test_its_classes_are_matched_by_name(place: Path):
    expected, _ = msltrain.evaluate(place / "run", place / "shards")
    two = nn.Sequential(network().eval(), _Columns([2, 0]))
    found, _ = msltrain.evaluate(two, place / "shards", stream=CONFIG.stream, classes=(CLASSES[2], CLASSES[0]))
    assert found.classes == (CLASSES[2], CLASSES[0])
    assert np.array_equal(found.logit_NK, expected.logit_NK[:, [2, 0]])
    assert np.array_equal(found.target_NK, expected.target_NK[:, [2, 0]])
    with pytest.raises(UserError, match="the data lacks tiger"):
        msltrain.evaluate(two, place / "shards", stream=CONFIG.stream, classes=("tiger", CLASSES[0]))


class _Columns(nn.Module):
    def __init__(self, columns):
        super().__init__()
        self.columns = columns

    def forward(self, logit_BK):
        return logit_BK[:, self.columns]


@pytest.mark.parametrize(
    ("model", "more", "said"),
    [
        (
            nn.Flatten(),
            {"stream": CONFIG.stream},
            r"the model gives \(\d+, 3072\) for \d+ images and 3 classes; it must",
        ),
        (lambda image: [image], {"stream": CONFIG.stream}, r"the model gives list for "),
        (nn.Flatten(), {}, r"needs stream=StreamConfig\(image_size="),
        (nn.Flatten(), {"stream": CONFIG.stream, "held_out": True}, r"^held_out=True is for a run"),
        ("run", {"stream": CONFIG.stream}, r"stream and classes are for a model of your own"),
    ],
)
def test_what_cannot_be_measured_is_said(place: Path, model, more, said):
    with pytest.raises(UserError, match=said):
        msltrain.evaluate(place / model if model == "run" else model, place / "shards", **more)


def predictions(logit_NK: np.ndarray, seed: int = 0) -> msltrain.Predictions:
    target_NK = (np.random.default_rng(seed).random(logit_NK.shape) < 0.4).astype(np.uint8)
    return msltrain.Predictions(
        keys=tuple(f"k{n}" for n in range(len(logit_NK))),
        logit_NK=logit_NK.astype(np.float32),
        target_NK=target_NK,
        ignore_NK=np.zeros(logit_NK.shape, bool),
        classes=("a", "b", "c"),
    )


def test_two_models_are_compared_on_the_same_images(tmp_path: Path):
    draw = np.random.default_rng(1)
    one = predictions(draw.normal(size=(80, 3)))
    other = predictions(one.logit_NK + 2 * one.target_NK)
    found = msltrain.compare(one, other)
    assert list(found) == ["mAP", "CP", "CR", "CF1", "OP", "OR", "OF1"]
    assert found["mAP"] == mean_ap_difference(one, other)
    before, now = (msltrain.compute_metrics(p.logit_NK, p.target_NK).summary() for p in (one, other))
    for name, interval in found.items():
        assert interval.value == pytest.approx(now[name] - before[name])
        assert interval.low <= interval.value <= interval.high and interval.excludes_zero
    back = msltrain.compare(other, one)
    assert all(back[name].value == pytest.approx(-interval.value) for name, interval in found.items())
    rows, columns = draw.permutation(80), [2, 0, 1]
    shuffled = replace(
        other,
        keys=tuple(other.keys[row] for row in rows),
        classes=tuple(other.classes[column] for column in columns),
        **{name: getattr(other, name)[np.ix_(rows, columns)] for name in ("logit_NK", "target_NK", "ignore_NK")},
    )
    write_predictions(shuffled, tmp_path / "shuffled.parquet")
    assert msltrain.compare(one, tmp_path / "shuffled.parquet") == found


def test_what_cannot_be_compared_is_said():
    one = predictions(np.zeros((4, 3)))
    for other, said in (
        (replace(one, keys=("k0", "k1", "k2", "x")), r"of different images \(4 and 4; only in one: k3\)"),
        (replace(one, classes=("a", "b", "d")), r"of different classes \(3 and 3; only in one: c\)"),
        (replace(one, target_NK=1 - one.target_NK), "other labels of the same images"),
    ):
        with pytest.raises(UserError, match=said):
            msltrain.compare(one, other)
