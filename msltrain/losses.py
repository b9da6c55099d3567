"""The loss terms of Masked Supervised Learning, on logits, in float32.

B batch, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def recognition_loss(logit_BK: Tensor, target_BK: Tensor, ignore_BK: Tensor | None = None) -> Tensor:
    """Binary cross-entropy on sigmoids, the mean over all B x K pairs (the paper's L_BCE).

    Args:
        logit_BK: float32.
        target_BK: float32, 0 or 1.
        ignore_BK: bool; True takes the pair out: it adds nothing, and the divisor stays B x K. A divisor that counted
            the remaining pairs would make the value depend on how a batch is split over processes.
    """
    if ignore_BK is None:
        return F.binary_cross_entropy_with_logits(logit_BK, target_BK)
    loss_BK = F.binary_cross_entropy_with_logits(logit_BK, target_BK, reduction="none")
    return loss_BK.masked_fill(ignore_BK, 0.0).mean()


def consistency_loss(clean_logit_BK: Tensor, masked_logit_BK: Tensor, ignore_BK: Tensor | None = None) -> Tensor:
    """Label consistency (LaCo): mean squared difference of the two branches' probabilities over all B x K pairs.

    The gradient flows through both branches.

    Deviation: the paper prints a squared norm, ``||σ(y) − σ(y_masked)||²``, which is B x K times larger; the mean is
    what the published numbers were made with.

    Args:
        clean_logit_BK: logits of the whole images, float32.
        masked_logit_BK: logits of the masked images, float32.
        ignore_BK: bool; as in `recognition_loss`.
    """
    difference_BK = torch.sigmoid(clean_logit_BK) - torch.sigmoid(masked_logit_BK)
    if ignore_BK is not None:
        difference_BK = difference_BK.masked_fill(ignore_BK, 0.0)
    return difference_BK.square().mean()
