"""The Siamese step: one network sees the image and the masked image, inside one ``forward``.

Both branches live in one module because DistributedDataParallel does not support two forwards through a network with
BatchNorm before one backward.

B batch, C image channels, H, W height and width, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from msltrain.config import LossConfig
from msltrain.losses import consistency_loss, recognition_loss


class SiameseStep(nn.Module):
    """Images and keep masks in, named losses out (the paper's equation for the total loss).

    ``branches="sequential"`` runs the network twice, image first, as published. ``"fused"`` runs it once over the
    concatenated 2B batch while BatchNorm treats the halves as two batches: each is normalised by its own statistics,
    and the running statistics are updated twice, image half first. Both give the same numbers up to rounding (dropout
    and drop path draw other random numbers). Without weight on the masked terms the masked branch is not run.

    Args:
        recogniser: images (B, 3, H, W) → logits (B, K).
        loss: the weights (α1, α2, α3) and the way the branches are run.
    """

    def __init__(self, recogniser: nn.Module, loss: LossConfig):
        super().__init__()
        self.recogniser = recogniser
        self.loss = loss
        self._halves = BatchHalves()
        if loss.has_masked_branch and loss.branches == "fused":
            normalise_by_halves(recogniser, self._halves)

    def forward(
        self,
        image_BCHW: Tensor,
        keep_mask_B1HW: Tensor | None,
        target_BK: Tensor,
        ignore_BK: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Run both branches.

        Args:
            image_BCHW: normalised and augmented, float32.
            keep_mask_B1HW: float32, 1 = visible, 0 = hole; it multiplies the normalised image. None in the baseline.
            target_BK: float32, 0 or 1.
            ignore_BK: bool; used when ``loss.train_ignored`` is "drop", else such pairs count as negative.

        Returns:
            float32 scalars: ``total`` (to be minimised), ``clean``; with masks ``masked`` and ``consistency`` too.
        """
        if self.loss.train_ignored == "negative":
            ignore_BK = None
        if not self.loss.has_masked_branch:
            clean = recognition_loss(self.recogniser(image_BCHW), target_BK, ignore_BK)
            return {"total": self.loss.clean_weight * clean, "clean": clean}
        assert keep_mask_B1HW is not None, "a loss with masked terms needs keep masks"
        masked_image_BCHW = image_BCHW * keep_mask_B1HW
        if self.loss.branches == "fused":
            with self._halves.active():
                clean_logit_BK, masked_logit_BK = self.recogniser(torch.cat((image_BCHW, masked_image_BCHW))).chunk(2)
        else:
            clean_logit_BK = self.recogniser(image_BCHW)
            masked_logit_BK = self.recogniser(masked_image_BCHW)
        clean = recognition_loss(clean_logit_BK, target_BK, ignore_BK)
        masked = recognition_loss(masked_logit_BK, target_BK, ignore_BK)
        consistency = consistency_loss(clean_logit_BK, masked_logit_BK, ignore_BK)
        total = (
            self.loss.clean_weight * clean
            + self.loss.masked_weight * masked
            + self.loss.consistency_weight * consistency
        )
        return {"total": total, "clean": clean, "masked": masked, "consistency": consistency}


class BatchHalves:
    """Whether the batch now passing through the network is two batches joined; one object shared by all its norms."""

    def __init__(self) -> None:
        self.joined = False

    @contextmanager
    def active(self) -> Iterator[None]:
        self.joined = True
        try:
            yield
        finally:
            self.joined = False


class _NormaliseByHalves:
    """Mixin in front of a BatchNorm class: a joined batch is normalised, and counted, as two batches."""

    training: bool
    batch_halves: BatchHalves

    def forward(self, batch: Tensor) -> Tensor:
        normalise = super().forward  # type: ignore[misc]
        if self.training and self.batch_halves.joined:
            first_half, second_half = batch.chunk(2)
            return torch.cat((normalise(first_half), normalise(second_half)))
        return normalise(batch)


def normalise_by_halves(network: nn.Module, halves: BatchHalves) -> None:
    """Let every BatchNorm of ``network`` (timm's fused norm-activation ones too) respect joined batches, in place.

    The class of each module is extended rather than the module wrapped, so parameter names stay as they are.
    """
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            kind = type(module)
            module.batch_halves = halves  # type: ignore[assignment]
            module.__class__ = type(f"Halved{kind.__name__}", (_NormaliseByHalves, kind), {})
