"""Where in an image a recogniser sees a class: its own head asked about one place at a time.

B batch, D feature channels, H, W positions of the feature map, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from msltrain.models.build import Recogniser


def place_logits(recogniser: Recogniser, feature_BDHW: Tensor) -> Tensor:
    """For each position the logits (B, K, H, W) that the head would give if the whole image looked like that position.

    With pooling heads this is the class activation map: the linear classifier at each position, whose mean (for mean
    pooling) is the logit. With CSRA it is (1 + λ) times the score map, summed over heads: where all positions are equal
    the attended score is the score itself. So the number is on the scale of the logits that decide the prediction, and
    comparable between classes, images, and an image with and without a hole.

    Args:
        recogniser: in evaluation mode.
        feature_BDHW: what its backbone gave; of a transformer the patch tokens as a grid.
    """
    alone_ND11 = feature_BDHW.permute(0, 2, 3, 1).flatten(0, 2)[:, :, None, None]
    logit_NK = recogniser.classifier(alone_ND11)
    return logit_NK.unflatten(0, (len(feature_BDHW), *feature_BDHW.shape[2:])).permute(0, 3, 1, 2)


def logits_and_place_logits(recogniser: Recogniser, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """The logits (B, K) of images and those of their places (B, K, H, W), from one pass through the backbone."""
    feature_BDHW = recogniser.backbone(image_BCHW).float()
    with torch.autocast(image_BCHW.device.type, enabled=False):
        return recogniser.classifier(feature_BDHW), place_logits(recogniser, feature_BDHW)
