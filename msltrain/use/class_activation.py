"""Where in an image a recogniser sees a class: its own head asked about one place at a time.

B batch, D feature channels, H, W positions of the feature map, K classes, N = B·H·W, P = H·W.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from msldata.errors import UserError
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


def logits_and_place_logits(network: nn.Module, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """The logits (B, K) of images and those of their places (B, K, H, W), from one pass through the backbone.

    Args:
        network: a recogniser, or a plain timm classifier, in evaluation mode.
        image_BCHW: normalised images.

    Raises:
        UserError: the features of a timm classifier are neither a map nor a square grid of tokens.
    """
    if not isinstance(network, Recogniser):
        return _of_timm_classifier(network, image_BCHW)
    feature_BDHW = network.backbone(image_BCHW).float()
    with torch.autocast(image_BCHW.device.type, enabled=False):
        return network.classifier(feature_BDHW), place_logits(network, feature_BDHW)


def _of_timm_classifier(network: Any, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """The same question to timm's own head, whatever it pools: an image all places of which are like this one."""
    feature = network.forward_features(image_BCHW)
    logit_BK = network.forward_head(feature)
    if feature.ndim == 4:
        is_nhwc = getattr(network, "output_fmt", "NCHW") == "NHWC"
        feature_BHWD = feature if is_nhwc else feature.permute(0, 2, 3, 1)
        rows, columns = feature_BHWD.shape[1:3]
        alone_N11D = feature_BHWD.flatten(0, 2)[:, None, None, :]
        alone = alone_N11D if is_nhwc else alone_N11D.permute(0, 3, 1, 2)
    else:
        num_prefix = int(getattr(network, "num_prefix_tokens", 0))
        token_BPD = feature[:, num_prefix:]
        rows = columns = math.isqrt(token_BPD.shape[1])
        if feature.ndim != 3 or rows * columns != token_BPD.shape[1]:
            raise UserError(
                f"this network's features {tuple(feature.shape)} are no map of places, so where it sees a class cannot "
                "be drawn; predict without --cam"
            )
        # Class and register tokens, where the head looks at them, are like the place too.
        alone = token_BPD.flatten(0, 1)[:, None, :].expand(-1, num_prefix + 1, -1)
    logit_NK = network.forward_head(alone)
    return logit_BK, logit_NK.unflatten(0, (len(image_BCHW), rows, columns)).permute(0, 3, 1, 2)
