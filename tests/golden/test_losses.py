"""The loss terms against closed forms."""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import pytest
import torch

from msldata.errors import UserError
from msltrain.config import LossConfig
from msltrain.training.losses import asymmetric_loss, consistency_loss, hill_loss, recognition_loss, splc_loss
from msltrain.training.siamese import SiameseStep


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


def test_consistency_as_printed_is_the_sum_over_classes():
    clean = torch.tensor([[logit(0.9), logit(0.2)], [logit(0.5), logit(0.6)]])
    masked = torch.tensor([[logit(0.4), logit(0.3)], [logit(0.5), logit(0.1)]])
    expected = (0.5**2 + 0.1**2 + 0 + 0.5**2) / 2
    assert consistency_loss(clean, masked, over_classes="sum").item() == pytest.approx(expected, abs=1e-6)
    ignore = torch.tensor([[True, False], [False, False]])
    found = consistency_loss(clean, masked, ignore, over_classes="sum")
    assert found.item() == pytest.approx((0.1**2 + 0.5**2) / 2, abs=1e-6)


def asl_by_hand(p: float, positive: bool, gamma_positive: float, gamma_negative: float, margin: float) -> float:
    if positive:
        return -((1 - p) ** gamma_positive) * math.log(p)
    shifted = max(p - margin, 0)
    return -(shifted**gamma_negative) * math.log(1 - shifted)


@pytest.mark.parametrize(
    ("gamma_positive", "gamma_negative", "margin"), [(0, 4, 0.05), (1, 4, 0.05), (1, 2, 0), (0, 0, 0.2)]
)
def test_asymmetric_loss_is_its_formula(gamma_positive: float, gamma_negative: float, margin: float):
    probabilities = [[0.8, 0.3, 0.02], [0.5, 0.9, 0.6]]
    targets = [[1, 0, 0], [0, 1, 0]]
    logits = torch.tensor([[logit(p) for p in row] for row in probabilities], dtype=torch.float64)
    settings = {"gamma_positive": gamma_positive, "gamma_negative": gamma_negative, "margin": margin}
    terms = [
        [asl_by_hand(p, t == 1, gamma_positive, gamma_negative, margin) for p, t in zip(*rows)]
        for rows in zip(probabilities, targets)
    ]
    found = asymmetric_loss(logits, torch.tensor(targets, dtype=torch.float64), **settings)
    assert found.item() == pytest.approx(sum(map(sum, terms)) / 6, abs=1e-12)
    ignore = torch.zeros(2, 3, dtype=torch.bool)
    ignore[1, 0] = True
    found = asymmetric_loss(logits, torch.tensor(targets, dtype=torch.float64), ignore, **settings)
    assert found.item() == pytest.approx((sum(map(sum, terms)) - terms[1][0]) / 6, abs=1e-12)


def test_asymmetric_loss_without_asymmetry_is_cross_entropy():
    logits = torch.tensor([[3.0, -40.0, 200.0], [-200.0, 0.1, 17.0]], requires_grad=True)
    targets = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    loss = asymmetric_loss(logits, targets, gamma_positive=0, gamma_negative=0, margin=0)
    torch.testing.assert_close(loss, recognition_loss(logits, targets))
    (gradient,) = torch.autograd.grad(loss, logits)
    (expected,) = torch.autograd.grad(recognition_loss(logits, targets), logits)
    torch.testing.assert_close(gradient, expected)


def test_asymmetric_loss_of_extreme_logits_has_finite_slopes():
    logits = torch.tensor([[1e4, -1e4, 1e4, -1e4]], requires_grad=True)
    loss = asymmetric_loss(
        logits, torch.tensor([[0.0, 1.0, 1.0, 0.0]]), gamma_positive=1, gamma_negative=4, margin=0.05
    )
    loss.backward()
    assert torch.isfinite(loss) and logits.grad is not None and torch.isfinite(logits.grad).all()
    assert logits.grad[0, 3] == 0  # below the margin a negative adds nothing and moves nothing


def test_soft_targets_cost_their_cross_entropy_and_pull_towards_themselves():
    logits = torch.tensor([[logit(0.8), logit(0.3)]], requires_grad=True)
    loss = recognition_loss(logits, torch.tensor([[0.6, 0.3]]))
    loss.backward()
    first = -(0.6 * math.log(0.8) + 0.4 * math.log(0.2))
    second = -(0.3 * math.log(0.3) + 0.7 * math.log(0.7))
    assert loss.item() == pytest.approx((first + second) / 2, abs=1e-6)
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx([(0.8 - 0.6) / 2, 0], abs=1e-6)


def test_consistency_as_cross_entropy():
    clean = torch.tensor([[logit(0.9), logit(0.2)]], requires_grad=True)
    masked = torch.tensor([[logit(0.4), logit(0.3)]], requires_grad=True)
    loss = consistency_loss(clean, masked, torch.tensor([[False, True]]), over_classes="bce")
    loss.backward()
    assert loss.item() == pytest.approx(-(0.9 * math.log(0.4) + 0.1 * math.log(0.6)) / 2, abs=1e-6)
    assert clean.grad is not None and masked.grad is not None
    assert masked.grad[0].tolist() == pytest.approx([(0.4 - 0.9) / 2, 0], abs=1e-6)
    # d/dz of −σ(z) log q − (1 − σ(z)) log(1 − q) is σ(z)(1 − σ(z)) (log(1 − q) − log q).
    assert clean.grad[0].tolist() == pytest.approx([0.9 * 0.1 * math.log(0.6 / 0.4) / 2, 0], abs=1e-6)


def test_weights_of_positives_and_classes_are_torchs():
    """``loss.balance`` is the pos_weight of PyTorch's loss, ``loss.class_weights`` its weight."""
    generator = torch.Generator().manual_seed(0)
    logit_BK = torch.randn(6, 3, generator=generator)
    target_BK = (torch.rand(6, 3, generator=generator) > 0.5).float()
    positive_K, class_K = torch.tensor([3.0, 1.0, 0.5]), torch.tensor([1.0, 0.0, 2.0])
    expected = torch.nn.BCEWithLogitsLoss(weight=class_K, pos_weight=positive_K)(logit_BK, target_BK)
    only_clean = {"clean_weight": 1.0, "masked_weight": 0.0, "consistency_weight": 0.0}
    loss = LossConfig(**only_clean, class_weights=(1.0, 0.0, 2.0))
    step = SiameseStep(torch.nn.Identity(), loss, positive_weight_K=positive_K)
    assert torch.allclose(step(logit_BK, None, target_BK)["clean"], expected)
    assert not step.state_dict()  # they are the config's, not the checkpoint's
    asl = dataclasses.replace(loss, recognition="asl", asl_gamma_negative=0, asl_margin=0)
    focal = SiameseStep(torch.nn.Identity(), asl, positive_weight_K=positive_K)
    assert torch.allclose(focal(logit_BK, None, target_BK)["clean"], expected)


@pytest.mark.parametrize(
    "loss",
    [
        recognition_loss,
        partial(asymmetric_loss, gamma_positive=1, gamma_negative=4, margin=0.05),
        hill_loss,
        partial(splc_loss, threshold=0.6, corrects_labels=True),
    ],
)
def test_a_pair_counts_by_its_weight_unless_it_is_ignored(loss):
    logits = [[0.3, -1.2, 2.0], [1.1, 0.0, -0.4]]
    targets = [[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]
    weights = [[3.0, 0.5, 1.0], [1.0, 2.0, 0.25]]
    ignored = [[False, False, True], [False, True, False]]
    total = 0.0
    for row in range(2):
        for column in range(3):
            if not ignored[row][column]:
                pair = (torch.tensor([[values[row][column]]]) for values in (logits, targets))
                total += weights[row][column] * loss(*pair).item()
    found = loss(*map(torch.tensor, (logits, targets, ignored, weights)))
    assert found.item() == pytest.approx(total / 6, abs=1e-6)


def test_label_smoothing_aims_between():
    only_clean = {"clean_weight": 1.0, "masked_weight": 0.0, "consistency_weight": 0.0}
    step = SiameseStep(torch.nn.Identity(), LossConfig(**only_clean, label_smoothing=0.2))
    logit_BK = torch.tensor([[0.3, -1.0]], requires_grad=True)
    step(logit_BK, None, torch.tensor([[1.0, 0.0]]))["clean"].backward()
    wanted = (torch.sigmoid(logit_BK.detach()) - torch.tensor([[0.9, 0.1]])) / 2
    assert torch.allclose(logit_BK.grad, wanted)


def test_a_smoothed_positive_has_the_weight_of_a_positive():
    """Each pair is weighed by its label, then compared with what the label was smoothed to: 0.9 and 0.1."""
    only_clean = {"clean_weight": 1.0, "masked_weight": 0.0, "consistency_weight": 0.0}
    loss = LossConfig(**only_clean, label_smoothing=0.2)
    step = SiameseStep(torch.nn.Identity(), loss, positive_weight_K=torch.tensor([3.0, 5.0]))
    found = step(torch.tensor([[logit(0.6), logit(0.3)]]), None, torch.tensor([[1.0, 0.0]]))["clean"]
    positive = -0.9 * math.log(0.6) - 0.1 * math.log(0.4)
    negative = -0.1 * math.log(0.3) - 0.9 * math.log(0.7)
    assert found.item() == pytest.approx((3 * positive + negative) / 2, abs=1e-6)


def test_detached_focusing_has_the_same_value_and_its_authors_slopes():
    """ASL's training script weighs the cross-entropy by factors through which no gradient flows."""
    probability, margin = 0.7, 0.05
    logits = torch.tensor([[logit(probability), logit(probability)]], dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    settings = {"gamma_positive": 1, "gamma_negative": 4, "margin": margin}
    loss = asymmetric_loss(logits, targets, **settings, detach=True)
    assert loss.item() == asymmetric_loss(logits, targets, **settings).item()
    (found,) = torch.autograd.grad(loss, logits)
    # (1 − p) · d(−log p) and p_m⁴ · d(−log(1 − p_m)), with dp/dz = p (1 − p).
    slope = probability * (1 - probability)
    expected = [-(1 - probability) / probability * slope / 2]
    expected.append((probability - margin) ** 4 / (1 - probability + margin) * slope / 2)
    assert found[0].tolist() == pytest.approx(expected, abs=1e-12)
    (whole,) = torch.autograd.grad(asymmetric_loss(logits, targets, **settings), logits)
    assert abs(whole[0, 1].item()) > 2 * abs(found[0, 1].item())


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def hill_by_hand(p: float, positive: bool) -> float:
    if positive:
        shifted = sigmoid(logit(p) - 1)
        return -((1 - shifted) ** 2) * math.log(shifted)
    return (1.5 - p) * p**2


def splc_by_hand(p: float, positive: bool, threshold: float, corrects: bool) -> float:
    if positive:
        shifted = sigmoid(logit(p) - 1)
        return -((1 - shifted) ** 2) * math.log(shifted)
    if corrects and p > threshold:
        return -((1 - p) ** 2) * math.log(p)
    return -(p**2) * math.log(1 - p)


PROBABILITIES, LABELS = [[0.8, 0.3, 0.02], [0.5, 0.9, 0.61]], [[1, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize(
    ("loss", "by_hand"),
    [
        (hill_loss, hill_by_hand),
        *(
            (
                partial(splc_loss, threshold=threshold, corrects_labels=corrects),
                partial(splc_by_hand, threshold=threshold, corrects=corrects),
            )
            for threshold, corrects in ((0.6, True), (0.6, False), (0.2, True))
        ),
    ],
    ids=["hill", "splc", "splc-before", "splc-0.2"],
)
def test_losses_for_missing_labels_are_their_formulas(loss, by_hand):
    logits = torch.tensor([[logit(p) for p in row] for row in PROBABILITIES], dtype=torch.float64)
    targets = torch.tensor(LABELS, dtype=torch.float64)
    terms = [[by_hand(p, t == 1) for p, t in zip(*rows)] for rows in zip(PROBABILITIES, LABELS)]
    assert loss(logits, targets).item() == pytest.approx(sum(map(sum, terms)) / 6, abs=1e-12)
    ignore = torch.zeros(2, 3, dtype=torch.bool)
    ignore[1, 2] = True
    assert loss(logits, targets, ignore).item() == pytest.approx((sum(map(sum, terms)) - terms[1][2]) / 6, abs=1e-12)
    weights = torch.tensor([[2.0, 1, 1], [1, 1, 1]], dtype=torch.float64)
    found = loss(logits, targets, None, weights)
    assert found.item() == pytest.approx((sum(map(sum, terms)) + terms[0][0]) / 6, abs=1e-12)


def test_hill_lets_go_of_negatives_that_are_found_likely():
    """Its slope in the logit, p (1 − p) (3p − 3p²), is largest at p = ½ and falls on both sides."""
    logits = torch.tensor([[logit(0.5), logit(0.9), logit(0.1)]], dtype=torch.float64, requires_grad=True)
    hill_loss(logits, torch.zeros(1, 3, dtype=torch.float64)).backward()
    assert logits.grad is not None
    expected = [3 * (p * (1 - p)) ** 2 / 3 for p in (0.5, 0.9, 0.1)]
    assert logits.grad[0].tolist() == pytest.approx(expected, abs=1e-12)


def test_splc_pulls_a_likely_negative_up():
    logits = torch.tensor([[logit(0.7), logit(0.5)]], requires_grad=True)
    splc_loss(logits, torch.zeros(1, 2), threshold=0.6, corrects_labels=True).backward()
    assert logits.grad is not None and logits.grad[0, 0] < 0 < logits.grad[0, 1]


@pytest.mark.parametrize("recognition", ["bce", "asl", "hill", "splc"])
def test_extreme_logits_and_mixed_targets(recognition: str):
    """Finite slopes everywhere; and a target between 0 and 1 costs the mixture of both, as mixed images need."""
    only_clean = {"clean_weight": 1.0, "masked_weight": 0.0, "consistency_weight": 0.0}
    step = SiameseStep(torch.nn.Identity(), LossConfig(**only_clean, recognition=recognition))
    extra = {"corrects_labels": True} if recognition == "splc" else {}
    logits = torch.tensor([[1e4, -1e4, 1e4, -1e4]], requires_grad=True)
    loss = step(logits, None, torch.tensor([[0.0, 1.0, 1.0, 0.0]]), **extra)["total"]
    loss.backward()
    assert torch.isfinite(loss) and logits.grad is not None and torch.isfinite(logits.grad).all()
    logits = torch.tensor([[0.4, -1.3, 2.0]], dtype=torch.float64)
    positive, negative, mixed = (
        step(logits, None, torch.full((1, 3), target, dtype=torch.float64), **extra)["clean"].item()
        for target in (1.0, 0.0, 0.25)
    )
    assert mixed == pytest.approx(0.25 * positive + 0.75 * negative, abs=1e-9)


def test_splc_is_told_when_to_correct_labels():
    step = SiameseStep(torch.nn.Identity(), LossConfig(recognition="splc"))
    with pytest.raises(UserError, match="corrects_labels"):
        step(torch.zeros(1, 2), torch.ones(1, 1), torch.zeros(1, 2))
