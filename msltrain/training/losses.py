"""The loss terms of Masked Supervised Learning, on logits, in float32.

Every term is a mean over the B images of the batch, so it does not depend on how a batch is split over processes or
accumulation steps. An ignored (image, class) pair adds nothing, and the divisor stays the same.

B batch, K classes.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from msldata.errors import UserError
from msltrain.registered import LOSSES


def recognition_loss(
    logit_BK: Tensor, target_BK: Tensor, ignore_BK: Tensor | None = None, weight_BK: Tensor | None = None
) -> Tensor:
    """Binary cross-entropy on sigmoids, the mean over all B x K pairs (the paper's L_BCE).

    Args:
        logit_BK: float32.
        target_BK: float32, 0 or 1; or between them, as in mixed images: every loss is then mixed in that proportion of
            what a positive and what a negative cost. This one is smallest where the sigmoids equal the targets.
        ignore_BK: bool; True leaves the pair out: it adds nothing, and the divisor stays B x K.
        weight_BK: float32, the weight of each pair; None: 1. The divisor stays B x K.
    """
    if ignore_BK is None:
        return F.binary_cross_entropy_with_logits(logit_BK, target_BK, weight=weight_BK)
    loss_BK = F.binary_cross_entropy_with_logits(logit_BK, target_BK, weight=weight_BK, reduction="none")
    return loss_BK.masked_fill(ignore_BK, 0.0).mean()


def asymmetric_loss(
    logit_BK: Tensor,
    target_BK: Tensor,
    ignore_BK: Tensor | None = None,
    weight_BK: Tensor | None = None,
    *,
    gamma_positive: float,
    gamma_negative: float,
    margin: float,
    detach: bool = False,
) -> Tensor:
    """Asymmetric loss (ASL; Ridnik et al., ICCV 2021, eq. 3 to 6), the mean over all B x K pairs.

    With ``p = σ(logit)`` and ``p_m = max(p − m, 0)`` a positive costs ``−(1 − p)^γ+ · log p`` and a negative
    ``−p_m^γ− · log(1 − p_m)``. γ+ = γ− = m = 0 is `recognition_loss`.

    Deviation: its authors' code sums over the batch, which Adam does not notice; the mean keeps the scale of the other
    recognition losses, so that the weights α mean the same.

    Args:
        logit_BK, target_BK, ignore_BK, weight_BK: as in `recognition_loss`.
        gamma_positive: γ+, 0 or at least 1.
        gamma_negative: γ−, 0 or at least 1.
        margin: m, 0 to below 1.
        detach: take no gradient through the focusing factors ``(1 − p)^γ+`` and ``p_m^γ−``, as its authors' training
            script does; the loss has the same value.
    """
    probability_BK = torch.sigmoid(logit_BK)
    shifted_BK = (probability_BK - margin).clamp(min=0)
    # 1 − p loses all its digits near 1; with a margin the logarithm's argument stays away from 0.
    log_rest_BK = F.logsigmoid(-logit_BK) if margin == 0 else torch.log1p(-shifted_BK)
    if detach:
        probability_BK, shifted_BK = probability_BK.detach(), shifted_BK.detach()
    positive_BK = (1 - probability_BK).pow(gamma_positive) * -F.logsigmoid(logit_BK)
    negative_BK = shifted_BK.pow(gamma_negative) * -log_rest_BK
    return _mean(target_BK * positive_BK + (1 - target_BK) * negative_BK, ignore_BK, weight_BK)


def hill_loss(
    logit_BK: Tensor, target_BK: Tensor, ignore_BK: Tensor | None = None, weight_BK: Tensor | None = None
) -> Tensor:
    """Hill loss for missing labels (Zhang et al., arXiv 2112.07368, 2021), the mean over all B x K pairs.

    A positive costs ``−(1 − p_m)² · log p_m`` with ``p_m = σ(logit − 1)`` (focal margin loss), a negative
    ``(1.5 − p) · p²``, whose slope falls again towards p = 1, where a negative is most likely a label that is missing.

    Deviation: its authors' code sums over the batch; see `asymmetric_loss`.

    Args:
        logit_BK, target_BK, ignore_BK, weight_BK: as in `recognition_loss`.
    """
    probability_BK = torch.sigmoid(logit_BK)
    negative_BK = (_HILL_LAMBDA - probability_BK) * probability_BK.square()
    return _mean(target_BK * _focal(logit_BK - _MARGIN) + (1 - target_BK) * negative_BK, ignore_BK, weight_BK)


def splc_loss(
    logit_BK: Tensor,
    target_BK: Tensor,
    ignore_BK: Tensor | None = None,
    weight_BK: Tensor | None = None,
    *,
    threshold: float,
    corrects_labels: bool,
) -> Tensor:
    """Self-paced loss correction for missing labels (SPLC; Zhang et al., arXiv 2112.07368, 2021), the mean over all
    B x K pairs.

    A positive costs ``−(1 − p_m)² · log p_m`` with ``p_m = σ(logit − 1)``, a negative ``−p² · log(1 − p)`` up to
    ``p = τ``; above it, it counts as a positive whose label is missing and costs ``−(1 − p)² · log p``, without the
    margin, as in its authors' code.

    Deviation: their code sums over the batch; see `asymmetric_loss`.

    Args:
        logit_BK, target_BK, ignore_BK, weight_BK: as in `recognition_loss`.
        threshold: τ.
        corrects_labels: False leaves negatives negative whatever p is, as in their first epoch.
    """
    negative_BK = _focal(-logit_BK)
    if corrects_labels:
        negative_BK = torch.where(torch.sigmoid(logit_BK) > threshold, _focal(logit_BK), negative_BK)
    return _mean(target_BK * _focal(logit_BK - _MARGIN) + (1 - target_BK) * negative_BK, ignore_BK, weight_BK)


def own_loss(
    name: str, logit_BK: Tensor, target_BK: Tensor, ignore_BK: Tensor | None = None, weight_BK: Tensor | None = None
) -> Tensor:
    """A loss that somebody registered, the mean over all B x K pairs.

    Args:
        name: under which it is registered.
        logit_BK, target_BK, ignore_BK, weight_BK: as in `recognition_loss`.

    Raises:
        UserError: it gives something else than the loss of each pair.
    """
    loss_BK = LOSSES[name](logit_BK, target_BK)
    if not isinstance(loss_BK, Tensor) or loss_BK.shape != logit_BK.shape:
        found = tuple(loss_BK.shape) if isinstance(loss_BK, Tensor) else type(loss_BK).__name__
        raise UserError(
            f"loss.recognition={name}: gives {found} for logits {tuple(logit_BK.shape)}; it must give the loss of each "
            "pair, (B, K); what belongs to a whole image, as loss_B[:, None].expand_as(logit_BK)"
        )
    return _mean(loss_BK, ignore_BK, weight_BK)


_HILL_LAMBDA = 1.5
_MARGIN = 1.0
"""m, in logits: positives are pulled until they are this far beyond what a plain focal loss wants."""


def _focal(logit_BK: Tensor) -> Tensor:
    """The focal loss of a positive, γ = 2: ``−(1 − σ)² · log σ``."""
    return torch.sigmoid(-logit_BK).square() * -F.logsigmoid(logit_BK)


def _mean(loss_BK: Tensor, ignore_BK: Tensor | None, weight_BK: Tensor | None) -> Tensor:
    if weight_BK is not None:
        loss_BK = loss_BK * weight_BK
    if ignore_BK is not None:
        loss_BK = loss_BK.masked_fill(ignore_BK, 0.0)
    return loss_BK.mean()


def consistency_loss(
    clean_logit_BK: Tensor,
    masked_logit_BK: Tensor,
    ignore_BK: Tensor | None = None,
    *,
    over_classes: Literal["mean", "sum", "bce"] = "mean",
) -> Tensor:
    """Label consistency (LaCo): how far apart the two branches' probabilities are, as a mean over the images.

    The gradient flows through both branches; a caller that wants to hold one branch still detaches its logits.

    Deviation: the paper prints a squared norm, ``||σ(y) − σ(y_masked)||²``, the sum over the K classes; the mean over
    them, K times smaller, is what the published numbers were made with.

    Args:
        clean_logit_BK: logits of the whole images, float32.
        masked_logit_BK: logits of the masked images, float32.
        ignore_BK: bool; as in `recognition_loss`.
        over_classes: the squared differences' mean, as published, or sum, as printed; bce: the mean of
            ``−p · log q − (1 − p) · log(1 − q)``, with p of the whole and q of the masked image.
    """
    if over_classes == "bce":
        return recognition_loss(masked_logit_BK, torch.sigmoid(clean_logit_BK), ignore_BK)
    difference_BK = torch.sigmoid(clean_logit_BK) - torch.sigmoid(masked_logit_BK)
    if ignore_BK is not None:
        difference_BK = difference_BK.masked_fill(ignore_BK, 0.0)
    square_BK = difference_BK.square()
    return square_BK.mean() if over_classes == "mean" else square_BK.sum(dim=1).mean()
