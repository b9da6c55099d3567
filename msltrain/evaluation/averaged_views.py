"""Several views of an image at test time, their logits averaged.

B batch, C channels, H, W height and width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from msldata.errors import UserError, first_line

_MULTIPLE = 32
"""Sides of scaled views are multiples of this, as the strides of the common backbones require."""


@dataclass(frozen=True, slots=True)
class AveragedViews:
    """A model that sees an image several times.

    Args:
        model: logits (B, K) from images (B, C, H, W).
        flip: also see images mirrored left to right.
        scales: also see them at these sizes, as factors of the model's own; they are resized from the model's square,
            so a factor above 1 shows no new detail.
    """

    model: Callable[[Tensor], Tensor]
    flip: bool = False
    scales: Sequence[float] = ()

    def __call__(self, image_BCHW: Tensor) -> Tensor:
        """Mean of the views' logits.

        Raises:
            UserError: the model takes images of one size only.
        """
        images = [image_BCHW, *(self._scaled(image_BCHW, scale) for scale in self.scales)]
        if self.flip:
            images += [image.flip(3) for image in images]
        return torch.stack([self._logits(image) for image in images]).mean(dim=0)

    @property
    def description(self) -> str:
        """The views in words, such as ``scale 1.25, flip``; empty for the plain view."""
        return ", ".join([*(f"scale {scale:g}" for scale in self.scales), *(["flip"] if self.flip else [])])

    def _scaled(self, image_BCHW: Tensor, scale: float) -> Tensor:
        side = max(round(image_BCHW.shape[2] * scale / _MULTIPLE), 1) * _MULTIPLE
        return torch.nn.functional.interpolate(
            image_BCHW, (side, side), mode="bilinear", antialias=True, align_corners=False
        )

    def _logits(self, image_BCHW: Tensor) -> Tensor:
        try:
            return self.model(image_BCHW).float()
        except (AssertionError, RuntimeError) as error:
            if not self.scales or isinstance(error, torch.OutOfMemoryError):
                raise
            side = image_BCHW.shape[2]
            raise UserError(
                f"this model does not take images of {side} pixels ({first_line(error)}); leave --scales out"
            ) from error


def check_scales(scales: Sequence[float]) -> None:
    """Raise UserError unless every factor lies between 0.25 and 4."""
    for scale in scales:
        if not 0.25 <= scale <= 4:
            raise UserError(f"--scales {scale:g}: a factor of the image size is needed, between 0.25 and 4")
