"""The network in training, one step at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from msltrain.config import ModelConfig, OptimConfig, TrainConfig, override
from msltrain.distributed import Ranks
from msltrain.learner import Learner
from msltrain.recipes.published import BASELINE_LOSS
from msltrain.stream.batch import Batch
from msltrain.stream.config import StreamConfig

ALONE = Ranks(rank=0, world_size=1, device=torch.device("cpu"))
CONFIG = TrainConfig(
    stream=StreamConfig(image_size=32, batch_size=4),
    model=ModelConfig(backbone="test_efficientnet", num_heads=2),
    loss=BASELINE_LOSS,
    optim=OptimConfig(lr=1.0, classifier_lr_factor=1.0, momentum=0.0, weight_decay=0.0),
)


def learner(*assignments: str, rank: int = 0) -> Learner:
    return Learner(override(CONFIG, assignments), 3, Ranks(rank=rank, world_size=1, device=ALONE.device), None)


def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch(
        image_BCHW=torch.randn(4, 3, 32, 32, generator=generator),
        target_BK=(torch.rand(4, 3, generator=generator) > 0.5).float(),
        ignore_BK=torch.zeros(4, 3, dtype=torch.bool),
        keys=list("abcd"),
        key_hash_B=np.arange(4, dtype=np.uint64),
        index_B=np.arange(4),
    )


def movement(learner: Learner, rate: float) -> float:
    """L2 norm of what one step changes."""
    before = [parameter.detach().clone() for parameter in learner.recogniser.parameters()]
    learner.take_step(batch(), None, rate)
    changes = [parameter.detach() - start for parameter, start in zip(learner.recogniser.parameters(), before)]
    return torch.cat([change.flatten() for change in changes]).norm().item()


def test_clipping_bounds_the_step():
    free = movement(learner(), 1.0)
    assert free > 1e-2
    assert movement(learner("optim.clip_norm=0.001"), 1.0) == pytest.approx(1e-3, rel=1e-3)
    assert movement(learner("optim.clip_norm=1000"), 1.0) == pytest.approx(free, rel=1e-4)


def test_the_rate_scales_the_step():
    assert movement(learner(), 0.0) == 0
    assert movement(learner(), 0.5) == pytest.approx(0.5 * movement(learner(), 1.0), rel=1e-3)


def test_weights_start_equal_in_all_processes_and_random_numbers_do_not():
    first, second = learner(), learner(rank=1)
    for one, other in zip(first.recogniser.parameters(), second.recogniser.parameters()):
        assert torch.equal(one, other)
    assert not torch.equal(first.random_state()["torch"], learner("run.seed=1").random_state()["torch"])
    learner()
    drawn_first = torch.rand(3)
    learner(rank=1)
    assert not torch.equal(drawn_first, torch.rand(3))


def test_compiling_is_left_to_the_first_step():
    assert learner("run.compile=true").step_module._compiled_call_impl is not None
    assert learner().step_module._compiled_call_impl is None


def test_channels_last_filters():
    weight = learner("run.channels_last=true").recogniser.backbone.network.conv_stem.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
