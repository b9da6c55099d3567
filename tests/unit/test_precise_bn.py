"""BatchNorm's running statistics, measured anew: those of the images, of these weights, and of nothing else."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from msltrain.config import DataConfig, OptimConfig, TrainConfig
from msltrain.hosts.distributed import Ranks
from msltrain.recipes.paper import BASELINE_LOSS
from msltrain.stream.config import StreamConfig
from msltrain.stream.loader import Loader
from msltrain.stream.samples.holdout import hold_out
from msltrain.stream.samples.shardset import open_shard_set
from msltrain.training import precise_bn
from msltrain.training.data import TrainData
from msltrain.training.precise_bn import PreciseBN, norm_names
from tests.smallshards import write_images
from tests.unit.test_learner import batch, learner

CPU = torch.device("cpu")
STREAM = StreamConfig(image_size=16, batch_size=4, num_threads=1, on_sample_error="fail")


class Frozen(nn.Sequential):
    def train(self, mode: bool = True) -> Frozen:
        return super().train(False)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    parts = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), nn.ReLU(), nn.Sequential(nn.Conv2d(4, 5, 3))
    return nn.Sequential(*parts, nn.BatchNorm2d(5), nn.Dropout(0.9), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shards")
    write_images(path, [20, 17], {"s000005": b"no image at all"})
    return path


def images(folder: Path, groups: int) -> list[torch.Tensor]:
    """All whole images that are some, in ``groups`` parts of equal size in the stored order."""
    size = -(-37 // groups)  # 13, 13 and 10 that can be read
    stream = StreamConfig(image_size=16, batch_size=size, num_threads=1, on_sample_error="skip")
    with Loader(folder, stream, training=False) as loader:
        return [batch.image_BCHW.clone() for batch in loader]


def test_some_images_of_a_training_part_are_as_many_as_asked_for(folder: Path):
    """By a seed of their own: those with the smallest numbers of the other are in the part set aside."""
    training, _ = hold_out(open_shard_set(folder), 0.4)
    found = PreciseBN(training, STREAM, 8)._shards
    assert 5 <= found.num_samples <= 12
    assert set(found.labels().key_hash_N) < set(training.labels().key_hash_N)


@pytest.mark.parametrize("groups", [1, 3])
def test_they_are_the_means_over_groups_of_whole_images(folder: Path, monkeypatch: pytest.MonkeyPatch, groups: int):
    monkeypatch.setattr(precise_bn, "GROUP", {1: 40, 3: 18}[groups])  # 18, 18 and 1 would weigh alike
    net = network().train()
    names = norm_names(net)
    assert names == ["0.1", "3"]
    PreciseBN(open_shard_set(folder), STREAM, 1000).measure(net, names, CPU, amp=False)
    parts = images(folder, groups)
    assert len(parts) == groups and sum(map(len, parts)) == 36
    with torch.no_grad():
        first = [net[0][0](part) for part in parts]
        normed = [
            (one - one.mean((0, 2, 3), keepdim=True)) / (one.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
            for one in first
        ]
        second = [net[2](one.relu()) for one in normed]
    for norm, found in ((net[0][1], first), (net[3], second)):
        torch.testing.assert_close(norm.running_mean, torch.stack([one.mean((0, 2, 3)) for one in found]).mean(0))
        torch.testing.assert_close(norm.running_var, torch.stack([one.var((0, 2, 3)) for one in found]).mean(0))


def test_nothing_else_of_the_network_is_another_afterwards(folder: Path):
    net = network().train()
    net[4].eval()
    net[3].num_batches_tracked.fill_(7)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    modes = [layer.training for layer in net.modules()]
    PreciseBN(open_shard_set(folder), STREAM, 1000).measure(net, ["3"], CPU, amp=False)
    changed = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"3.running_mean", "3.running_var"}
    assert [layer.training for layer in net.modules()] == modes and net[3].momentum == 0.1
    assert not any(tensor.grad is not None for tensor in net.parameters())


def test_what_was_there_before_does_not_count(folder: Path):
    net, other = network().train(), network().train()
    nn.init.constant_(other[3].running_mean, 50.0)
    nn.init.constant_(other[3].running_var, 50.0)
    nn.init.constant_(other[3].num_batches_tracked, 7)
    measure = PreciseBN(open_shard_set(folder), STREAM, 1000)
    for one in (net, other):
        measure.measure(one, norm_names(one), CPU, amp=False)
    assert torch.equal(net[3].running_var, other[3].running_var)


def test_a_frozen_backbone_keeps_its_own():
    net = nn.Sequential(Frozen(nn.BatchNorm2d(3)), nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False))
    assert norm_names(net.train()) == ["1"]
    assert norm_names(net.eval()) == []


@pytest.mark.parametrize("beside", [(), ("optim.ema_decay=0.9",)])
def test_those_of_what_is_shipped_are_measured_and_no_others(folder: Path, beside: tuple[str, ...]):
    """A moving average never trains; its layers are those of the network that does."""
    one, measure = learner(*beside), PreciseBN(open_shard_set(folder), STREAM, 1000)
    one.train()
    one.take_step(batch(), None, 0.1)
    expected, trained = copy.deepcopy(one.shipped), copy.deepcopy(one.recogniser.state_dict())
    measure.measure(expected, norm_names(expected.train()), CPU, amp=False)
    one.measure_norms(measure)
    found = one.shipped.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.state_dict().items())
    same = all(torch.equal(tensor, trained[name]) for name, tensor in one.recogniser.state_dict().items())
    assert same == (one.shipped is not one.recogniser)


def test_of_many_images_some_are_taken_always_the_same(folder: Path):
    shards = open_shard_set(folder)
    few, again = (PreciseBN(shards, STREAM, 12) for _ in range(2))
    assert 8 <= few._shards.num_samples <= 18
    found = []
    for one in (few, again, PreciseBN(shards, STREAM, 1000)):
        net = network().train()
        one.measure(net, norm_names(net), CPU, amp=False)
        found.append(net[3].running_mean)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_one_image_has_no_variance(tmp_path: Path):
    write_images(tmp_path, [1])
    net = network().train()
    before = net[3].running_var.clone()
    PreciseBN(open_shard_set(tmp_path), STREAM, 1000).measure(net, norm_names(net), CPU, amp=False)
    assert torch.equal(net[3].running_var, before)


def test_a_run_does_not_measure_on_what_it_validates_on(folder: Path):
    config = TrainConfig(
        data=DataConfig(train=str(folder), validation_fraction=0.25),
        stream=STREAM,
        loss=BASELINE_LOSS,
        optim=OptimConfig(precise_bn_images=1000),
    )
    with TrainData(config, Ranks(rank=0, world_size=1, device=CPU)) as data:
        assert data.precise_bn is not None and data.validation is not None
        assert data.precise_bn._shards.num_samples == 37 - data.validation.shards.num_samples < 37
