"""Whether a run would ever compute one image by itself, and what trying that leaves behind: nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from msldata.errors import UserError
from msltrain.config import TrainConfig, override
from msltrain.hosts.distributed import Ranks
from msltrain.recipes.paper import BASELINE_LOSS
from msltrain.stream.config import StreamConfig
from msltrain.training.batchnorm_check import _smallest_chunk, check_smallest_part
from msltrain.training.siamese import SiameseStep

CONFIG = TrainConfig(stream=StreamConfig(image_size=8, batch_size=4), loss=BASELINE_LOSS)
CPU = torch.device("cpu")


def step(*, pools_first: bool) -> SiameseStep:
    """BatchNorm before the pooling sees many values of one image; after it, one."""
    torch.manual_seed(0)
    pool, norm = nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(5)
    order = (pool, norm) if pools_first else (norm, pool)
    return SiameseStep(
        nn.Sequential(nn.Conv2d(3, 5, 3), *order, nn.Flatten(), nn.Dropout(0.5), nn.Linear(5, 3)), CONFIG.loss
    )


def check(one: SiameseStep, *assignments: str, num_samples: int = 40, world_size: int = 1) -> None:
    ranks = Ranks(rank=0, world_size=world_size, device=CPU)
    check_smallest_part(override(CONFIG, assignments), one, num_samples, 3, ranks)


@pytest.mark.parametrize("num_parts", range(1, 8))
def test_the_smallest_part_is_that_of_torch(num_parts: int):
    for size in range(1, 20):
        assert _smallest_chunk(size, num_parts) == min(map(len, torch.zeros(size).chunk(num_parts)))


@pytest.mark.parametrize(
    ("assignments", "num_samples", "world_size", "said"),
    [
        (["stream.batch_size=1"], 40, 1, "stream.batch_size=1: a part of one image comes.* set stream.batch_size=4,"),
        (["stream.batch_size=3"], 40, 3, "stream.batch_size=3 on 3 processes: .* set stream.batch_size=12,"),
        (
            ["optim.accumulation_steps=4"],
            40,
            1,
            r"stream.batch_size=4 in 4 parts \(optim.accumulation_steps\): .* set optim.accumulation_steps=3,",
        ),
        (
            ["stream.drop_last=false"],
            41,
            1,
            r"the last of 41 samples in batches of 4 \(stream.drop_last=false\): .* set stream.drop_last=true,",
        ),
    ],
)
def test_a_part_of_one_image_is_refused_where_batchnorm_sees_one_value(assignments, num_samples, world_size, said):
    with pytest.raises(UserError, match=said):
        check(step(pools_first=True).eval(), *assignments, num_samples=num_samples, world_size=world_size)
    check(step(pools_first=False), *assignments, num_samples=num_samples, world_size=world_size)


@pytest.mark.parametrize(
    ("assignments", "num_samples"),
    [
        ([], 41),
        (["stream.drop_last=false"], 42),
        (["optim.accumulation_steps=2"], 40),
        (["stream.batch_size=1", "model.freeze_backbone=true"], 40),
    ],
)
def test_what_never_computes_one_image_or_learns_no_norm_is_not_refused(assignments, num_samples):
    check(step(pools_first=True), *assignments, num_samples=num_samples)


@pytest.mark.parametrize("pools_first", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_trying_leaves_the_network_and_the_random_numbers_as_they_were(pools_first: bool, training: bool):
    """A black image must not count in the running statistics of the run that follows."""
    one = step(pools_first=pools_first).train(training)
    before = {name: tensor.clone() for name, tensor in one.state_dict().items()}
    random = torch.get_rng_state()
    try:
        check(one, "stream.batch_size=1")
    except UserError:
        assert pools_first
    assert all(torch.equal(tensor, before[name]) for name, tensor in one.state_dict().items())
    assert {module.training for module in one.modules()} == {training}
    assert torch.equal(torch.get_rng_state(), random)
