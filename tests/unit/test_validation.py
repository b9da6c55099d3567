"""Validation: what it leaves as it was, and what it counts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from msltrain.config import override
from msltrain.hosts.distributed import Ranks
from msltrain.recipes import recipe
from msltrain.stream.config import StreamConfig
from msltrain.stream.loader import Loader
from msltrain.stream.samples.shardset import open_shard_set
from msltrain.training.validation import positive_weights, validation_mean_ap
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
    found = positive_weights(override(recipe("smoke"), [f"loss.balance={power}"]), shards)
    assert found is not None and found.tolist() == pytest.approx(weights)
    assert positive_weights(recipe("smoke"), shards) is None
