"""The recipe for one's own photographs, fitted: batches, length, size and statistics, computed by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from msltrain.config import TrainConfig
from msltrain.recipes import own_fit
from msltrain.stream.samples.shardset import SampleRows, ShardSet
from tests.smallshards import write_images


def fitted(
    monkeypatch: pytest.MonkeyPatch,
    num_train: int,
    *,
    num_validation: int = 0,
    num_all: int = 5000,
    side: int = 200,
    weights: str = "ra_in1k",
    on_gpu: bool = False,
    settings: tuple[str, ...] = (),
    **given: Any,
) -> TrainConfig:
    """For so many photographs, of seven classes, whose shorter side has ``side`` pixels."""
    monkeypatch.setattr(own_fit, "_look_at", lambda *_: (num_train, num_validation, 7, side, num_all))
    return own_fit.fit_own("mine", weights=weights, on_gpu=on_gpu, settings=settings, **given)[0]


@pytest.mark.parametrize(
    ("num_train", "batch_size", "num_epochs"),
    [
        (5, 5, 150),  # 150 steps at least, of one batch an epoch
        (25, 8, 50),  # 25 · 5 are fewer: 150 steps of 3 an epoch
        (100, 8, 21),  # 250 of 12
        (199, 8, 15),  # 353 of 24
        (200, 16, 30),  # 354 of 12
        (999, 16, 13),  # 790 of 62
        (1000, 32, 26),  # 791 of 31
        (40_000, 32, 4),  # 5,000 of 1,250
    ],
)
def test_batches_and_epochs_by_the_photographs_to_train_on(monkeypatch, num_train, batch_size, num_epochs):
    for num_all in (num_train, 5000):  # what is set aside has no part in it
        config = fitted(monkeypatch, num_train, num_all=num_all)
        assert (config.stream.batch_size, config.optim.num_epochs) == (batch_size, num_epochs)
        assert config.optim.warmup_epochs == pytest.approx(num_epochs / 10)


@pytest.mark.parametrize(("num_train", "images"), [(999, 0), (1000, 1024)])
@pytest.mark.parametrize(("num_all", "num_validation"), [(999, 0), (1000, 0), (1175, 0), (2000, 1000)])
def test_statistics_are_measured_where_a_thousand_are_trained_on(
    monkeypatch, num_train, images, num_all, num_validation
):
    config = fitted(monkeypatch, num_train, num_all=num_all, num_validation=num_validation)
    assert config.optim.precise_bn_images == images and config.optim.twin_share == 0.25


def test_a_network_from_nothing_trains_four_times_as_long(monkeypatch):
    config = fitted(monkeypatch, 100, weights="")
    assert config.optim.num_epochs == 84  # 1,000 of 12
    assert (config.optim.precise_bn_images, config.optim.twin_share, config.model.weights) == (0, 0, "")
    assert fitted(monkeypatch, 2000, weights="").optim.precise_bn_images == 0


@pytest.mark.parametrize(
    ("side", "on_cpu", "on_gpu"),
    [(20, 64, 64), (95, 64, 64), (96, 96, 96), (159, 128, 128), (200, 160, 192), (447, 160, 416), (3000, 160, 448)],
)
def test_the_size_is_the_photographs_as_far_as_the_machine_bears_it(monkeypatch, side, on_cpu, on_gpu):
    """A multiple of 32 pixels."""
    assert fitted(monkeypatch, 100, side=side).stream.image_size == on_cpu
    assert fitted(monkeypatch, 100, side=side, on_gpu=True).stream.image_size == on_gpu


def test_what_is_asked_for_is_not_chosen(monkeypatch):
    asked = ("stream.batch_size=10", "optim.num_epochs=7", "stream.image_size=97", "optim.precise_bn_images=30")
    config = fitted(monkeypatch, 100, settings=asked)
    assert (config.stream.batch_size, config.optim.num_epochs, config.stream.image_size) == (10, 7, 97)
    assert config.optim.warmup_epochs == pytest.approx(0.7) and config.optim.precise_bn_images == 30
    assert fitted(monkeypatch, 100, settings=asked[:1]).optim.num_epochs == 25  # 250 steps of 10 an epoch
    alone = fitted(monkeypatch, 1000, settings=("optim.twin_share=0",))
    assert (alone.optim.twin_share, alone.keep_mask.start, alone.optim.precise_bn_images) == (0, 0.25, 1024)
    assert fitted(monkeypatch, 1000).keep_mask.start == 0
    masks = fitted(monkeypatch, 100, keep_masks=["shards/masks/high"])
    assert (masks.keep_mask.kind, masks.data.keep_masks) == ("stored", ("shards/masks/high",))
    assert fitted(monkeypatch, 100).keep_mask.kind == "generated"


def test_what_a_dataset_is_fitted_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The shorter sides of the first shard's photographs, of which nine have 20, two 50 and four 70 pixels. Of few
    photographs those that are set aside are counted."""
    write_images(tmp_path / "train", [15, 11], size=(64, 64))
    write_images(tmp_path / "val", [5])
    plain = ShardSet.rows
    sizes = [(60, 20)] * 4 + [(70, 90)] * 4 + [(20, 45)] * 5 + [(55, 50)] * 2

    def rows_of(self: ShardSet, shard_N: np.ndarray, row_N: np.ndarray) -> tuple[np.ndarray, SampleRows]:
        index_N, rows = plain(self, shard_N, row_N)
        assert len(rows) == 15
        return index_N, replace(rows, width_N=np.array(sizes)[:, 0], height_N=np.array(sizes)[:, 1])

    monkeypatch.setattr(ShardSet, "rows", rows_of)
    train, val = str(tmp_path / "train"), str(tmp_path / "val")
    assert own_fit._look_at(train, val, 0.15) == (26, 5, 3, 20, 31)
    monkeypatch.setattr(own_fit, "hold_out", lambda shards, fraction: (SimpleNamespace(num_samples=19), None))
    assert own_fit._look_at(train, "", 0.15) == (19, 0, 3, 20, 26)
    assert own_fit._look_at(train, "", 0.0) == (26, 0, 3, 20, 26)
    monkeypatch.setattr(own_fit, "_COUNTED_BELOW", 26)
    assert own_fit._look_at(train, "", 0.15) == (22, 0, 3, 20, 26)  # 22.1
