"""What is said of a run on few samples, against counts by hand: each sentence on either side of its limit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from msltrain.config import LossConfig, TrainConfig, override
from msltrain.hosts.distributed import Ranks
from msltrain.stream.config import StreamConfig
from msltrain.training.siamese import SiameseStep
from msltrain.training.validation import (
    can_choose,
    doubt_of_choice,
    few_positives,
    has_finite_weights,
    small_data_notes,
)


def shards(num_samples: int, *counts: int, fingerprint: str = "") -> Any:
    classes = tuple("abcdefgh"[: len(counts)])
    return SimpleNamespace(
        num_samples=num_samples,
        classes=classes,
        labels=lambda: SimpleNamespace(count_K=np.array(counts)),
        manifest=SimpleNamespace(fingerprint=fingerprint or str(num_samples)),
    )


class Batches:
    """A loader of so many batches."""

    def __init__(self, of: Any, num_batches: int):
        self.shards, self.num_batches = of, num_batches

    def __len__(self) -> int:
        return self.num_batches


def notes(train: Batches, validation: Batches | None, *settings: str) -> str:
    config = override(TrainConfig(stream=StreamConfig(batch_size=10)), ["optim.num_epochs=3", *settings])
    return "\n".join(small_data_notes(config, train, validation))  # type: ignore[arg-type]


PLENTY = (shards(100, 50, 50), 10)


@pytest.mark.parametrize(("num_batches", "is_said"), [(49, True), (50, False)])
def test_a_run_of_fewer_than_150_steps_in_all_is_short(num_batches: int, is_said: bool):
    said = notes(Batches(shards(10 * num_batches), num_batches), None)
    assert ("the run has 147 steps: few to learn from" in said) == is_said == ("few to learn from" in said)


@pytest.mark.parametrize(("num_samples", "is_said"), [(1049, False), (1052, False), (1053, True), (1059, True)])
def test_an_epoch_that_leaves_more_than_a_twentieth_out_says_so(num_samples: int, is_said: bool):
    said = notes(Batches(shards(num_samples), 100), None)
    assert (f"leaves {num_samples - 1000} of {num_samples:,} samples out" in said) == is_said


@pytest.mark.parametrize(("counts", "few"), [((5, 5), {}), ((4, 5), {"a": 4}), ((0, 4, 9), {"a": 0, "b": 4})])
def test_fewer_than_five_are_few_and_none_is_fewer_still(counts: tuple[int, ...], few: dict[str, int]):
    assert few_positives(shards(30, *counts)) == few
    assert bool(doubt_of_choice(shards(30, *counts))) == bool(few)


@pytest.mark.parametrize(
    ("counts", "can"),
    [((4, 4, 5, 5), False), ((4, 5, 5, 5), True), ((4, 5), False), ((4, 4, 4, 5), False), ((5,), True)],
)
def test_a_choice_needs_more_than_half_of_the_classes(counts: tuple[int, ...], can: bool):
    assert can_choose(shards(30, *counts)) is can
    said = notes(Batches(*PLENTY), Batches(shards(30, *counts), 3), "data.validation_fraction=0.25")
    if few_positives(shards(30, *counts)):
        assert ("hangs on single images" in said) is can and ("best is the last one" in said) is not can
        assert "a larger data.validation_fraction shows more" in said


def test_classes_that_validation_never_shows_are_counted():
    said = notes(Batches(*PLENTY), Batches(shards(30, 0, 3, 0, 9, 9, 9), 3), "data.validation_fraction=0.25")
    assert "shows 3 of 6 classes fewer than 5 times (a, b, c), 2 of them never," in said


@pytest.mark.parametrize(
    ("num", "settings", "is_said"),
    [
        (25, ("data.validation_fraction=0.1",), True),  # 20 %
        (11, ("data.validation_fraction=0.1",), False),  # 9.9 %
        (14, ("data.validation_fraction=0.1",), False),  # 12.3 %, less than a quarter more
        (15, ("data.validation_fraction=0.1",), True),  # 13 %
        (25, ("data.validation_fraction=0.1", "data.validation=shards/val"), False),
    ],
)
def test_a_larger_part_than_was_asked_for_is_said(num: int, settings: tuple[str, ...], is_said: bool):
    said = notes(Batches(*PLENTY), Batches(shards(num, 9, 9), 3), *settings)
    assert (f"validation takes {100 * num / (100 + num):.1f} % of the samples instead of 10 %" in said) == is_said


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_number_that_is_none_is_enough(value: float):
    network, ranks = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)), Ranks(0, 1, torch.device("cpu"))
    assert has_finite_weights(network, ranks)
    with torch.no_grad():
        network[1].bias[0] = value
    assert not has_finite_weights(network, ranks)


def test_a_process_with_bad_weights_is_enough(monkeypatch: pytest.MonkeyPatch):
    """Half of them say so: no mean hides it."""
    monkeypatch.setattr(Ranks, "mean", lambda self, value: (value + 1) / 2)
    assert not has_finite_weights(nn.Linear(2, 2), Ranks(0, 2, torch.device("cpu")))


def test_patches_are_left_out_in_two_passes_on_a_gpu_too():
    class OnGPU(nn.Module):
        def parameters(self, recurse: bool = True):
            return iter([SimpleNamespace(is_cuda=True)])

        def enable_patch_selection(self) -> None:
            pass

    assert SiameseStep(OnGPU(), LossConfig(drop_hidden_tokens=0.5)).branches == "sequential"
    assert SiameseStep(OnGPU(), LossConfig()).branches == "fused"
