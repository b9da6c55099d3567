"""What shows in the holes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from msltrain.stream.keepmasks.fill import OF_ITSELF, fill_holes, make_filling
from msltrain.stream.order.random import key_hash


def images(count: int = 4, size: int = 20) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0)) + 1


def keys(count: int = 4) -> np.ndarray:
    return key_hash(f"photo{number}" for number in range(count))


def test_a_hole_is_nothing_or_the_filling_and_the_rest_stays():
    image, keep = images(), (torch.rand(4, 1, 20, 20, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    assert torch.equal(fill_holes(image, keep), image * keep)
    filling = torch.full((4, 3, 1, 1), 7.0)
    filled = fill_holes(image, keep, filling)
    visible = keep.expand_as(image) == 1
    assert torch.equal(filled[visible], image[visible])
    assert (filled[~visible] == 7).all()
    assert fill_holes(torch.tensor([[[[2.0]]]]), torch.tensor([[[[0.25]]]]), torch.tensor([[[[6.0]]]])).item() == 5.0


def test_zero_needs_no_filling_and_the_mean_is_the_images_own():
    assert make_filling("zero", images(), keys(), seed=0, epoch=0) is None
    filling = make_filling("mean", images(), keys(), seed=0, epoch=0)
    torch.testing.assert_close(filling[:, :, 0, 0], images().mean((2, 3)))


def test_noise_has_the_images_mean_and_contrast_and_changes_with_seed_epoch_and_key():
    image = images(size=64) * torch.tensor([1.0, 2.0, 4.0])[:, None, None]
    noise = make_filling("noise", image, keys(), seed=0, epoch=0)
    torch.testing.assert_close(noise.mean((2, 3)), image.mean((2, 3)), atol=0.25, rtol=0)
    torch.testing.assert_close(noise.std((2, 3)), image.std((2, 3)), atol=0, rtol=0.05)
    assert torch.equal(noise, make_filling("noise", image, keys(), seed=0, epoch=0))
    for other in ({"seed": 1, "epoch": 0}, {"seed": 0, "epoch": 1}):
        assert (make_filling("noise", image, keys(), **other) != noise).flatten(1).any(1).all()
    assert noise[0, 0, 0, 0].item() == pytest.approx(0.49469, abs=2e-4), "the same on every machine"


def test_blur_keeps_the_colours_of_large_areas_and_no_detail():
    image = torch.zeros(1, 3, 100, 100)
    image[:, :, :, 50:] = 1
    image[:, :, ::2] += 0.5  # fine stripes
    filling = make_filling("blur", image, keys(1), seed=0, epoch=0)
    assert filling[0, 0, :, :10].mean().item() == pytest.approx(0.25, abs=1e-4)
    assert filling[0, 0, :, 90:].mean().item() == pytest.approx(1.25, abs=1e-4)
    assert (filling[0, 0, 1:] - filling[0, 0, :-1]).abs().max() < 1e-4, "no stripe is left"


@pytest.mark.parametrize("fill", OF_ITSELF)
def test_an_image_gets_the_same_filling_in_any_batch(fill):
    whole = make_filling(fill, images(), keys(), seed=3, epoch=5)
    part = make_filling(fill, images()[2:], keys()[2:], seed=3, epoch=5)
    torch.testing.assert_close(part, whole[2:], atol=0, rtol=0)
