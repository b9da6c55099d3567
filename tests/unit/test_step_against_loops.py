"""The step's losses against plain loops over images and classes, for every setting beside every other one."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from msltrain.config import LossConfig
from msltrain.registered import LOSSES
from msltrain.training.losses import asymmetric_loss, consistency_loss, hill_loss, own_loss, recognition_loss, splc_loss
from msltrain.training.siamese import SiameseStep

B, K, SIDE = 5, 3, 4
WEIGHTS = (0.3, 0.2, 0.5)
POSITIVE, OF_CLASS = (2.0, 0.5, 3.0), (1.0, 0.25, 2.0)


class Colours(nn.Module):
    """Logits are the mean colours times one weight, and so differ between a whole and a masked image."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.5))

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return self.weight * image_BCHW.mean((2, 3))


def given(soft: bool) -> dict[str, Tensor]:
    torch.manual_seed(4)
    target_BK = (torch.rand(B, K) > 0.5).float()
    return {
        "image_BCHW": 2 * torch.randn(B, 3, SIDE, SIDE),
        "keep_mask_B1HW": (torch.rand(B, 1, SIDE, SIDE) > 0.5).float(),
        "target_BK": torch.where(torch.rand(B, K) > 0.6, torch.rand(B, K), target_BK) if soft else target_BK,
        "ignore_BK": torch.rand(B, K) > 0.7,
        "filling_BCHW": torch.randn(B, 3, 1, 1),
        "masked_ignore_BK": torch.rand(B, K) > 0.7,
        "masked_B": torch.tensor([True, False, True, True, False]),
        "teacher_logit_BK": torch.randn(B, K),
    }


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def of_pair(kind: str, x: float, target: float) -> float:
    """The loss of a pair: that of a positive and that of a negative, mixed."""

    def focal(logit: float) -> float:
        return sigmoid(-logit) ** 2 * softplus(-logit)

    p = sigmoid(x)
    if kind == "bce":
        positive, negative = softplus(-x), softplus(x)
    elif kind == "asl":
        shifted = max(p - 0.1, 0)
        positive, negative = (1 - p) ** 1 * softplus(-x), -(shifted**2) * math.log(1 - shifted)
    elif kind == "hill":
        positive, negative = focal(x - 1), (1.5 - p) * p**2
    else:
        positive, negative = focal(x - 1), focal(x) if p > 0.7 else focal(-x)
    return target * positive + (1 - target) * negative


def expected(config: LossConfig, have: dict[str, Tensor], *, balanced: bool) -> dict[str, float]:
    """All terms, pair by pair."""
    images, keep_masks, filling = (have[name] for name in ("image_BCHW", "keep_mask_B1HW", "filling_BCHW"))
    whole = (1.5 * images.mean((2, 3))).tolist()
    hidden = (1.5 * (images * keep_masks + filling * (1 - keep_masks)).mean((2, 3))).tolist()
    terms = {"clean": 0.0, "masked": 0.0, "consistency": 0.0}
    for n, k in itertools.product(range(B), range(K)):
        target, x, y = have["target_BK"][n, k].item(), whole[n][k], hidden[n][k]
        dropped = config.train_ignored == "drop" and bool(have["ignore_BK"][n, k])

        def weighed(logit: float, label: float, smoothing: float, k: int = k) -> float:
            weight = 1 + (POSITIVE[k] - 1) * label if balanced else 1
            weight *= config.class_weights[k] if config.class_weights else 1
            return weight * of_pair(config.recognition, logit, label * (1 - smoothing) + smoothing / 2)

        if not dropped:
            terms["clean"] += weighed(x, target, config.label_smoothing) / (B * K)
        if dropped or bool(have["masked_ignore_BK"][n, k]) or not have["masked_B"][n]:
            continue
        teacher = have["teacher_logit_BK"][n, k].item()
        label = {"labels": target, "whole_image": sigmoid(x), "teacher": sigmoid(teacher)}[config.masked_target]
        smoothing = config.label_smoothing if config.masked_target == "labels" else 0
        terms["masked"] += weighed(y, label, smoothing) / (B * K)
        p, q = sigmoid(x), sigmoid(y)
        apart = {"mean": (p - q) ** 2 / K, "sum": (p - q) ** 2, "bce": (p * softplus(-y) + (1 - p) * softplus(y)) / K}
        terms["consistency"] += apart[config.consistency] / B
    terms["total"] = sum(weight * value for weight, value in zip(WEIGHTS, terms.values()))
    if config.normalise_weights:
        terms["total"] /= WEIGHTS[0] + WEIGHTS[1]
    return terms


SETTINGS: list[dict[str, Any]] = [
    {"recognition": recognition, "consistency": consistency, "label_smoothing": smoothing, "train_ignored": ignored}
    for (recognition, consistency), smoothing, ignored in itertools.product(
        [("bce", "mean"), ("asl", "sum"), ("hill", "bce"), ("splc", "mean")], (0.0, 0.3), ("drop", "negative")
    )
]
SETTINGS += [
    {"masked_target": target, "train_ignored": "drop", "label_smoothing": 0.2, "consistency": consistency}
    for target in ("whole_image", "teacher")
    for consistency in ("sum", "bce")
]
SETTINGS += [{"normalise_weights": True, "train_ignored": "drop", "class_weights": OF_CLASS}]


@pytest.mark.parametrize("branches", ["sequential", "fused", "concatenated"])
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda one: " ".join(map(str, one.values())))
def test_every_term_is_a_mean_over_the_batch_of_its_pairs(settings: dict[str, Any], branches: str):
    names = ("clean_weight", "masked_weight", "consistency_weight")
    asl = {"asl_gamma_positive": 1, "asl_gamma_negative": 2, "asl_margin": 0.1, "splc_threshold": 0.7}
    for balanced, soft, classes in itertools.product((False, True), (False, True), ((), OF_CLASS)):
        more = {"class_weights": classes, **settings, "branches": branches, "balance": 0.5 if balanced else 0.0}
        config = LossConfig(**dict(zip(names, WEIGHTS)), **asl, **more)
        have = given(soft)
        before = {name: one.clone() for name, one in have.items()}
        weight_K = torch.tensor(POSITIVE) if balanced else None
        step = SiameseStep(Colours(), config, positive_weight_K=weight_K)
        found = step(**have, corrects_labels=True)
        wanted = expected(config, have, balanced=balanced)
        assert {name: one.item() for name, one in found.items()} == pytest.approx(wanted, rel=1e-4, abs=1e-6)
        assert all(torch.equal(one, before[name]) for name, one in have.items())


@pytest.mark.parametrize("with_mask_ignored", [False, True])
def test_of_one_branch_masked_images_lack_the_pairs_of_labels_and_masks(with_mask_ignored: bool):
    """Filled holes in the images that are masked alone; pairs that a mask hides are ignored in these alone."""
    have = given(soft=True)
    if not with_mask_ignored:
        del have["masked_ignore_BK"]
    loss = LossConfig(clean_weight=0.4, masked_weight=0, consistency_weight=0, branches="single", train_ignored="drop")
    found = SiameseStep(Colours(), loss)(**have)
    images, keep_masks = have["image_BCHW"], have["keep_mask_B1HW"]
    hidden = images * keep_masks + have["filling_BCHW"] * (1 - keep_masks)
    total = 0.0
    for n, k in itertools.product(range(B), range(K)):
        is_masked = bool(have["masked_B"][n])
        if have["ignore_BK"][n, k] or (with_mask_ignored and is_masked and have["masked_ignore_BK"][n, k]):
            continue
        logit = 1.5 * (hidden if is_masked else images)[n, k].mean().item()
        total += of_pair("bce", logit, have["target_BK"][n, k].item()) / (B * K)
    assert found["clean"].item() == pytest.approx(total, rel=1e-4)
    assert found["total"].item() == pytest.approx(0.4 * total, rel=1e-4)


def slope(loss: Any, *logits: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss(*logits), logits))


def test_no_gradient_goes_where_none_is_to_go_and_all_where_all_is():
    """Of the consistency both branches learn; of factors that are held only the logarithm does."""
    torch.manual_seed(2)
    one, other = (torch.randn(B, K, dtype=torch.float64, requires_grad=True) for _ in range(2))
    target = torch.rand(B, K, dtype=torch.float64)
    for over in ("mean", "sum", "bce"):
        assert torch.autograd.gradcheck(lambda x, y, over=over: consistency_loss(x, y, over_classes=over), (one, other))
    losses = [
        lambda x: recognition_loss(x, target),
        lambda x: asymmetric_loss(x, target, gamma_positive=1, gamma_negative=2, margin=0.1),
        lambda x: hill_loss(x, target),
        lambda x: splc_loss(x, target, threshold=0.6, corrects_labels=True),
    ]
    assert all(torch.autograd.gradcheck(loss, (one,)) for loss in losses)
    p = one.sigmoid()
    shifted = (p - 0.1).clamp(min=0)
    held = target * (1 - p.detach()) * p.log() + (1 - target) * shifted.detach() ** 2 * (1 - shifted).log()
    detached = slope(
        lambda x: asymmetric_loss(x, target, gamma_positive=1, gamma_negative=2, margin=0.1, detach=True), one
    )
    torch.testing.assert_close(detached[0], torch.autograd.grad(-held.mean(), one)[0])


SLOPES: list[dict[str, Any]] = [
    {"recognition": "asl", "asl_gamma_positive": 1, "asl_gamma_negative": 2, "consistency": "bce"},
    {"recognition": "hill", "consistency": "sum", "normalise_weights": True},
    {"recognition": "splc", "branches": "concatenated", "label_smoothing": 0.2},
    {"recognition": "bce", "train_ignored": "drop", "class_weights": OF_CLASS},
]


@pytest.mark.parametrize("settings", SLOPES, ids=lambda one: one["recognition"])
def test_the_whole_step_is_moved_by_what_it_costs(settings: dict[str, Any]):
    """Its gradient is the slope of its total: nothing is held that is not said to be."""
    have = {name: one.double() if one.is_floating_point() else one for name, one in given(soft=True).items()}
    network = Colours().double()
    step = SiameseStep(network, LossConfig(**settings))

    def total(weight: float) -> Tensor:
        network.weight.data.fill_(weight)
        return step(**have, corrects_labels=True)["total"]

    total(1.5).backward()
    assert network.weight.grad is not None
    change = (total(1.5 + 1e-6) - total(1.5 - 1e-6)).item() / 2e-6
    assert network.weight.grad.item() == pytest.approx(change, rel=1e-4)
    if settings["recognition"] == "asl":
        network.weight.grad = None
        held = SiameseStep(network, LossConfig(**settings, asl_detach=True))
        network.weight.data.fill_(1.5)
        held(**have)["total"].backward()
        assert network.weight.grad is not None and abs(network.weight.grad.item() - change) > 0.01


def test_a_registered_loss_is_weighed_and_ignored_like_the_others():
    LOSSES["squares"] = lambda logit_BK, target_BK: (logit_BK - target_BK).square()
    have = given(soft=True)
    logit, target, ignore = have["teacher_logit_BK"], have["target_BK"], have["ignore_BK"]
    weight = torch.rand(B, K)
    found = own_loss("squares", logit, target, ignore, weight)
    pairs = [(n, k) for n in range(B) for k in range(K) if not ignore[n, k]]
    total = sum((weight[n, k] * (logit[n, k] - target[n, k]) ** 2).item() for n, k in pairs)
    assert found.item() == pytest.approx(total / (B * K), rel=1e-5)


def test_double_precision_stays_double():
    have = {name: one.double() if one.is_floating_point() else one for name, one in given(soft=False).items()}
    step = SiameseStep(Colours().double(), LossConfig(balance=0.5), positive_weight_K=torch.tensor(POSITIVE))
    found = step(**have)
    assert {one.dtype for one in found.values()} == {torch.float64}
    assert step._positive_weight_K is not None and step._positive_weight_K.dtype == torch.float32
