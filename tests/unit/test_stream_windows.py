"""What a cache is told of the future: the shards of each window, and what a person may write for its size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import msltrain.training.trainer
from msldata.console import gigabytes
from msldata.errors import UserError
from msltrain.__main__ import app
from msltrain.stream import passes as passes_module
from msltrain.stream.config import StreamConfig
from msltrain.stream.loader import Loader
from msltrain.stream.order.plan import EpochPlan
from msltrain.stream.reading.fetch import LocalFetcher
from tests.smallshards import write_images


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=40).filter(any),
    st.integers(1, 80),
    st.floats(0, 0.999),
    st.booleans(),
)
@example([4, 0, 4, 4], 4, 1 / 3, False)  # from the first item of a window on
@example([4, 4, 4, 4], 8, 0.5, True)
def test_windows_name_the_shards_of_every_item_in_time(counts, window, place, shuffle):
    plan = EpochPlan(counts, seed=3, epoch=1, window=window, shuffle=shuffle)
    start = int(place * plan.num_samples)
    windows = [shards.tolist() for shards in plan.shards_by_window(start)]
    shard_N, _ = plan.items(start, plan.num_samples)
    number = 0
    for shard in shard_N.tolist():
        # Items of one window are mixed, so a reader may only ever move on to the next window.
        while shard not in windows[number]:
            number += 1
    assert number == len(windows) - 1, "no window is left over"
    flat = [shard for shards in windows for shard in shards]
    assert len(flat) == len(set(flat)) and all(counts[shard] for shard in flat)
    assert shard_N[0] in windows[0], "none that is over"
    if start == 0:
        assert sorted(flat) == np.flatnonzero(counts).tolist()


def test_a_resumed_loader_tells_the_windows_from_where_it_goes_on(tmp_path, monkeypatch):
    write_images(tmp_path, [6] * 6)
    told: list[list[int]] = []

    def open_fetcher(shards, config, windows):
        told.append([int(shard) for window in windows for shard in window])
        return LocalFetcher(shards)

    monkeypatch.setattr(passes_module, "open_fetcher", open_fetcher)
    config = StreamConfig(image_size=16, batch_size=4, window=6, num_threads=1)
    with Loader(tmp_path, config, training=True) as loader:
        for step in (0, 5):
            loader.load_state_dict({**loader.state_dict(), "step": step})
            next(iter(loader))
    assert sorted(told[0]) == [0, 1, 2, 3, 4, 5]
    assert told[1] == told[0][3:]  # 20 of 36 samples are over, and with them three shards of six


@pytest.mark.parametrize(
    ("text", "expected"),
    [("50GB", 50), ("50", 50), ("800MB", 0.8), (" 1.5 TB", 1500), ("2gib", 2), ("500k", 0.0005), (".5G", 0.5)],
)
def test_sizes_as_people_write_them(text, expected):
    assert gigabytes(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "GB", "-3GB", "50 apples", "1e3"])
def test_sizes_that_are_none(text):
    with pytest.raises(UserError, match="write for instance 50GB"):
        gigabytes(text)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_limits(value):
    with pytest.raises(UserError, match=r"stream\.cache_limit_gb"):
        StreamConfig(cache_limit_gb=value)


def test_options_of_train_reach_the_config(monkeypatch, tmp_path):
    given_config = []

    def train(config, **_):
        given_config.append(config)
        raise UserError("enough")

    monkeypatch.setattr(msltrain.training.trainer, "train", train)
    write_images(tmp_path / "shards", [4])
    command = ["train", "--recipe", "smoke", "--processes", "1", "--set", "keep_mask.kind=box"]
    command += ["--data", str(tmp_path / "shards"), "--run", str(tmp_path / "run")]
    options = ["--cache", "/fast/disk", "--cache-limit", "750MB", "--on-sample-error", "skip"]
    CliRunner().invoke(app, [*command, *options])
    CliRunner().invoke(app, [*command, *options, "--set", "stream.cache_limit_gb=3"])
    CliRunner().invoke(app, command)
    found = [(c.stream.cache, c.stream.cache_limit_gb, c.stream.on_sample_error) for c in given_config]
    assert found == [(str(Path("/fast/disk")), 0.75, "skip"), ("/fast/disk", 3.0, "skip"), ("", 50.0, "fail")]
