"""BatchNorm's running statistics measured anew: the control for robustness that is only adaptation of statistics.

A network trained with MSL has seen masked images, so its running means and variances fit them; a baseline's do not. A
baseline whose statistics were measured on masked training images, with all weights unchanged, shows how much of the
difference that explains.

B batch, C channels, H, W height and width.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from msldata.errors import UserError


def find_batchnorms(module: nn.Module) -> list[_BatchNorm]:
    """The modules that keep running statistics. Raises UserError if there are none."""
    norms = [one for one in module.modules() if isinstance(one, _BatchNorm) and one.track_running_stats]
    if not norms:
        raise UserError("the network has no BatchNorm, so there is nothing to recalibrate; leave --recalibrate out")
    return norms


def recalibrate_batchnorm(module: nn.Module, images: Iterable[Tensor]) -> int:
    """Replace the running statistics of every BatchNorm by their plain mean over batches; weights stay unchanged.

    Args:
        module: in evaluation mode; stays in it.
        images: normalised, masked (B, C, H, W); each batch should be large enough for its statistics to mean something.

    Returns:
        Number of images seen.

    Raises:
        UserError: there is no BatchNorm with running statistics, or no image.
    """
    norms = find_batchnorms(module)
    momenta = [norm.momentum for norm in norms]
    num_images = 0
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # torch's way of asking for the cumulative mean
            norm.train()
        for image_BCHW in images:
            with torch.no_grad():
                module(image_BCHW)
            num_images += len(image_BCHW)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
    if not num_images:
        raise UserError("there are no images to recalibrate BatchNorm on")
    return num_images
