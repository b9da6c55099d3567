"""Validation: what it leaves as it was, and what it counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import nn

from msldata.errors import UserError
from msltrain.config import override
from msltrain.hosts.distributed import Ranks
from msltrain.measures.metrics import mean_average_precision
from msltrain.recipes import recipe
from msltrain.stream.config import StreamConfig
from msltrain.stream.loader import Loader
from msltrain.stream.samples.shardset import open_shard_set
from msltrain.training.siamese import positive_weights
from msltrain.training.validation import small_data_notes, validation_mean_ap
from tests.smallshards import write_images

ALONE = Ranks(rank=0, world_size=1, device=torch.device("cpu"))


@pytest.mark.parametrize("training", [True, False])
def test_a_network_is_validated_in_evaluation_and_left_in_its_mode(tmp_path: Path, training: bool):
    write_images(tmp_path, [9])
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)).train(training)
    modes: list[bool] = []
    network.register_forward_hook(lambda module, inputs, output: modes.append(module.training))
    with Loader(tmp_path, StreamConfig(image_size=16, batch_size=4, num_threads=1), training=False) as loader:
        assert 0 < validation_mean_ap(network, loader, ALONE, amp=False) <= 1
    assert modes == [False] * 3
    assert {module.training for module in network.modules()} == {training}


@pytest.mark.parametrize(("power", "weights"), [(1, [1.8, 1.8, 2.5]), (0.5, [1.8**0.5, 1.8**0.5, 2.5**0.5])])
def test_a_positive_weighs_as_much_as_there_are_negatives_for_it(tmp_path: Path, power: float, weights: list[float]):
    write_images(tmp_path, [14])  # of which the classes have 5, 5 and 4
    shards = open_shard_set(tmp_path)
    for data in (shards, tmp_path, Loader(tmp_path, StreamConfig(batch_size=4), training=True)):
        assert positive_weights(data, power).tolist() == pytest.approx(weights)
    write_images(tmp_path / "few", [2])  # one, one and none
    assert positive_weights(tmp_path / "few", power).tolist() == [1, 1, 1]
    with pytest.raises(UserError, match=r"^balance is 2; it must be 0 to 1"):
        positive_weights(shards, 2)


def test_it_is_said_that_a_run_is_validated_on_what_it_trains_on(tmp_path: Path):
    write_images(tmp_path / "train", [60])
    write_images(tmp_path / "other", [61])
    config, stream = recipe("smoke"), StreamConfig(image_size=16, batch_size=4, num_threads=1)
    for name, is_said in (("train", True), ("other", False)):
        with (
            Loader(tmp_path / "train", stream, training=True) as training,
            Loader(tmp_path / name, stream, training=False) as validation,
        ):
            chosen = override(config, [f"data.validation={tmp_path / name}"])
            notes = small_data_notes(chosen, training, validation)
        assert any("is what the run trains on: validation flatters it" in note for note in notes) == is_said


def test_equal_logits_are_equal_whatever_the_order_of_samples_and_processes(tmp_path: Path):
    """A network that says the same of every image would be the best one where the positives are stored first. Every
    sample counts, whichever process computed it; ignored pairs are in no ranking."""
    write_images(tmp_path, [11])
    config = StreamConfig(image_size=16, batch_size=4, num_threads=1)

    class Same(nn.Module):
        def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
            return image_BCHW.new_zeros(len(image_BCHW), 3)

    gathered: list[Any] = []

    class One(Ranks):
        def gather(self, value: Any) -> list[Any]:
            gathered.append(value)
            return [value]

    class Last(Ranks):
        def gather(self, value: Any) -> list[Any]:
            return [value, *gathered]  # the second process's part first

    parts = []
    for rank, kind in ((0, One), (1, Last)):
        ranks = kind(rank=0, world_size=1, device=torch.device("cpu"))
        with Loader(tmp_path, config, training=False, rank=rank, world_size=2) as loader:
            parts.append(validation_mean_ap(Same(), loader, ranks, amp=False))
    target_NK = np.eye(3)[np.arange(11) % 3]
    ignore_NK = (np.eye(3)[(np.arange(11) + 1) % 3] == 1) & (np.arange(11) % 4 == 0)[:, None]
    expected = [
        average_precision_score(target_N[~out_N], np.zeros(11)[~out_N])
        for target_N, out_N in zip(target_NK.T, ignore_NK.T)
    ]
    assert parts[1] == pytest.approx(np.mean(expected))
    stored = mean_average_precision(np.zeros((11, 3), np.float32), target_NK, ignore_NK)
    assert abs(parts[1] - stored) > 0.01
