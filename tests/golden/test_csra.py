"""CSRA against its formula, computed position by position in float64 Python."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from msltrain.models.heads import TEMPERATURES, CSRAHead

FEATURE = [  # D=2 channels, 3 positions
    [1.0, -0.5, 2.0],
    [0.25, 3.0, -1.0],
]


def by_hand(weights: list[list[list[float]]], temperatures: tuple[int, ...], attention_weight: float) -> list[float]:
    """Logit per class; ``weights[head][class][channel]``."""
    logits = []
    for k in range(len(weights[0])):
        total = 0.0
        for head, temperature in zip(weights, temperatures):
            norm = math.sqrt(sum(w * w for w in head[k]))
            scores = [sum(w * channel[p] for w, channel in zip(head[k], FEATURE)) / norm for p in range(3)]
            if temperature == 99:
                attended = max(scores)
            else:
                exponentials = [math.exp(temperature * s) for s in scores]
                attended = sum(e / sum(exponentials) * s for e, s in zip(exponentials, scores))
            total += sum(scores) / 3 + attention_weight * attended
        logits.append(total)
    return logits


def filled_head(num_heads: int, num_classes: int, attention_weight: float) -> tuple[CSRAHead, list]:
    head = CSRAHead(2, num_classes, num_heads=num_heads, attention_weight=attention_weight).double()
    weights = [
        [[0.3 * h - 0.7 * k + 0.2, 0.5 - 0.1 * h * k + 0.4 * k] for k in range(num_classes)] for h in range(num_heads)
    ]
    with torch.no_grad():
        head.score.weight.copy_(torch.tensor(weights, dtype=torch.float64).reshape(-1, 2, 1, 1))
    return head, weights


@pytest.mark.parametrize("num_heads", [1, 2, 4, 6, 8])
def test_logits_equal_the_formula(num_heads: int):
    head, weights = filled_head(num_heads, 3, attention_weight=0.4)
    feature = torch.tensor(FEATURE, dtype=torch.float64).reshape(1, 2, 1, 3)
    assert head(feature)[0].tolist() == pytest.approx(by_hand(weights, TEMPERATURES[num_heads], 0.4), abs=1e-12)


def test_one_head_by_pencil():
    # weight (3, 4) has norm 5; positions (1, 0) and (0, 1) score 0.6 and 0.8; base 0.7;
    # softmax(0.6, 0.8) = (0.450166, 0.549834), attended 0.709967; with λ = 0.5 the logit is 1.0549834.
    head = CSRAHead(2, 1, num_heads=1, attention_weight=0.5)
    with torch.no_grad():
        head.score.weight.copy_(torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1))
    assert head(torch.eye(2).reshape(1, 2, 1, 2)).item() == pytest.approx(1.0549834, abs=1e-6)


def test_temperature_99_means_the_maximum():
    # Scores 1 and 1.01: a softmax at temperature 99 would attend to 1.00729, the published code takes 1.01.
    head = CSRAHead(1, 1, num_heads=2, attention_weight=1.0).double()
    with torch.no_grad():
        head.score.weight.fill_(1.0)
    scores = [1.0, 1.01]
    weights = [math.exp(score) for score in scores]
    attended = sum(weight * score for weight, score in zip(weights, scores)) / sum(weights)
    feature = torch.tensor(scores, dtype=torch.float64).reshape(1, 1, 1, 2)
    assert head(feature).item() == pytest.approx(1.005 + attended + 1.005 + 1.01, abs=1e-12)


def test_published_temperatures():
    assert TEMPERATURES == {
        1: (1,),
        2: (1, 99),
        4: (1, 2, 4, 99),
        6: (1, 2, 3, 4, 5, 99),
        8: (1, 2, 3, 4, 5, 6, 7, 99),
    }


def test_scaling_a_class_weight_changes_nothing():
    head, _ = filled_head(4, 3, attention_weight=0.4)
    feature = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    before = head(feature)
    with torch.no_grad():
        head.score.weight[1] *= 7
    torch.testing.assert_close(head(feature), before)


def test_heads_in_one_convolution_start_like_separate_ones():
    bound = math.sqrt(1 / 64)  # PyTorch's default for a 1x1 convolution over 64 channels
    weight = CSRAHead(64, 20, num_heads=6, attention_weight=0.4).score.weight
    assert weight.shape == (120, 64, 1, 1)
    assert 0.95 * bound < weight.abs().max().item() <= bound
    assert isinstance(CSRAHead(64, 20, num_heads=1, attention_weight=0.1).score, nn.Conv2d)
