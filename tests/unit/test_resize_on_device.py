"""Photographs of all sizes, resized a few at a time on the device: each as the host resizes it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from msltrain.stream.pixels.decode import resize_crop
from msltrain.stream.pixels.resize import WholeImages, resize_on_device

SIDE = 13
SIZES = [(31, 44), (20, 17), (90, 52), (40, 61), (12, 95), (70, 25), (33, 33)]
"""Height and width."""
CROPS = [
    (3, 5, 20, 30),
    (0, 0, 20, 17),
    (11, 2, 77, 41),
    (1, 9, 30, 50),
    (0, 33, 12, 60),
    (20, 3, 45, 21),
    (7, 8, 9, 20),
]


@pytest.mark.parametrize("together", [1, 2, 3, 32])
def test_however_many_are_resized_together(monkeypatch: pytest.MonkeyPatch, together: int):
    monkeypatch.setattr("msltrain.stream.pixels.resize._CHUNK", together)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]
    ends = np.cumsum([height * width + 4 for height, width in SIZES])
    flat = np.full(3 * ends[-1], 77, np.uint8)
    places = [end - height * width for end, (height, width) in zip(ends.tolist(), SIZES)]
    for place, image_HWC in zip(places, images):
        flat[3 * place : 3 * place + image_HWC.size] = image_HWC.reshape(-1)
    width_B = np.array([width for _, width in SIZES])
    whole = WholeImages(torch.from_numpy(flat), np.array(places), width_B, np.array(CROPS))
    found_BHWC = resize_on_device(whole, SIDE, torch.device("cpu"))
    assert found_BHWC.shape == (7, SIDE, SIDE, 3)
    for found_HWC, image_HWC, crop in zip(found_BHWC, images, CROPS, strict=True):
        slot_1HWC = torch.empty((1, SIDE, SIDE, 3), dtype=torch.uint8)
        resize_crop(image_HWC, crop, slot_1HWC.permute(0, 3, 1, 2))
        difference = (found_HWC.int() - slot_1HWC[0].int()).abs()
        assert difference.float().mean() < 0.05 and difference.max() <= 1, crop
