"""Several views of an image at test time: which ones, and that their logits are averaged."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from msldata.errors import UserError
from msltrain.evaluation.averaged_views import AveragedViews, check_scales


def model(image_BCHW: Tensor) -> Tensor:
    """Logits that tell left from right, and small from large."""
    weight_W = torch.linspace(0, 1, image_BCHW.shape[3])
    return torch.stack([(image_BCHW * weight_W).mean((1, 2, 3)), image_BCHW.square().sum((1, 2, 3))], dim=1).double()


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("scales", [(), (1.5,), (0.5, 2.2)])
def test_the_mean_of_the_image_at_every_scale_and_of_each_mirrored(flip: bool, scales: tuple[float, ...]):
    image_BCHW = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    sides = {1.5: 96, 0.5: 32, 2.2: 128}
    seen = [image_BCHW]
    for scale in scales:
        seen.append(
            F.interpolate(image_BCHW, (sides[scale],) * 2, mode="bilinear", antialias=True, align_corners=False)
        )
    logits = [model(one) for one in seen] + [model(one.flip(3)) for one in seen if flip]
    views = AveragedViews(model, flip=flip, scales=scales)
    found = views(image_BCHW)
    assert len(logits) == (1 + len(scales)) * (1 + flip) and found.dtype == torch.float32
    torch.testing.assert_close(found, torch.stack(logits).float().mean(0))
    assert views.description == ", ".join([*(f"scale {scale:g}" for scale in scales), *(["flip"] if flip else [])])


def test_scales_have_bounds():
    check_scales([0.25, 4, 1])
    for scale in (0.24, 4.01, 0, -1):
        with pytest.raises(UserError, match=r"between 0\.25 and 4"):
            check_scales([1, scale])
