"""The loss terms against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from msltrain.losses import consistency_loss, recognition_loss


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_recognition_loss_is_the_mean_binary_cross_entropy():
    logits = torch.tensor([[logit(0.8), logit(0.3)], [logit(0.5), logit(0.9)]])
    targets = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    expected = -(math.log(0.8) + math.log(0.7) + math.log(0.5) + math.log(0.1)) / 4
    assert recognition_loss(logits, targets).item() == pytest.approx(expected, abs=1e-6)


def test_recognition_loss_of_large_logits_is_finite():
    loss = recognition_loss(torch.tensor([[1e4, -1e4]]), torch.tensor([[0.0, 1.0]]))
    assert loss.item() == pytest.approx(1e4)


def test_an_ignored_pair_adds_nothing_and_moves_nothing():
    logits = torch.tensor([[logit(0.8), logit(0.3)], [logit(0.5), logit(0.9)]], requires_grad=True)
    targets = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    ignore = torch.tensor([[False, False], [False, True]])
    loss = recognition_loss(logits, targets, ignore)
    loss.backward()
    assert loss.item() == pytest.approx(-(math.log(0.8) + math.log(0.7) + math.log(0.5)) / 4, abs=1e-6)
    assert logits.grad is not None
    assert logits.grad[1, 1] == 0
    assert logits.grad[1, 0] == pytest.approx((0.5 - 1) / 4)


def test_consistency_is_the_mean_squared_difference_of_probabilities():
    clean = torch.tensor([[logit(0.9), logit(0.2)], [logit(0.5), logit(0.6)]])
    masked = torch.tensor([[logit(0.4), logit(0.3)], [logit(0.5), logit(0.1)]])
    expected = (0.5**2 + 0.1**2 + 0 + 0.5**2) / 4
    assert consistency_loss(clean, masked).item() == pytest.approx(expected, abs=1e-6)
    ignore = torch.tensor([[True, False], [False, False]])
    assert consistency_loss(clean, masked, ignore).item() == pytest.approx((0.1**2 + 0.5**2) / 4, abs=1e-6)


def test_consistency_pulls_both_branches():
    clean = torch.tensor([[logit(0.9)]], requires_grad=True)
    masked = torch.tensor([[logit(0.4)]], requires_grad=True)
    consistency_loss(clean, masked).backward()
    # d/dz (σ(z) − c)² = 2 (σ(z) − c) σ(z) (1 − σ(z))
    assert clean.grad is not None and masked.grad is not None
    assert clean.grad.item() == pytest.approx(2 * 0.5 * 0.9 * 0.1, abs=1e-6)
    assert masked.grad.item() == pytest.approx(-2 * 0.5 * 0.4 * 0.6, abs=1e-6)
