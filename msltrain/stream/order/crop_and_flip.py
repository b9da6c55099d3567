"""Crops and flips of a batch, as a function of (seed, epoch, sample key). Numpy only; pixels are touched elsewhere."""

from __future__ import annotations

import numpy as np

from msltrain.stream.order.random import CROP, FLIP, uniform

_TRIES = 10


def random_crops(
    key_hash_N: np.ndarray,
    width_N: np.ndarray,
    height_N: np.ndarray,
    *,
    seed: int,
    epoch: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    stream: int = CROP,
) -> np.ndarray:
    """The boxes of torchvision's RandomResizedCrop for a whole batch at once; with a scale of 1, the whole images.

    The algorithm is torchvision's: area uniform in ``scale``, aspect ratio log-uniform in ``ratio``, ten attempts to
    fit that box into the image, else the largest central box with an allowed ratio. Published: scale 0.7-1, ratio
    3/4-4/3.

    Args:
        key_hash_N: uint64 key hashes.
        width_N, height_N: image sizes in pixels.
        seed, epoch: with the key, they alone decide the box.
        stream: of random numbers.

    Returns:
        crop_N4: int64 (top, left, height, width) in pixels, inside the image.
    """
    if scale == (1, 1):  # a ratio drawn for the whole area would fit hardly any image, and always cut tall ones
        return whole_images(width_N, height_N)
    area_NT, ratio_NT, top_NT, left_NT = np.split(uniform(key_hash_N, seed, epoch, stream, 4 * _TRIES), 4, axis=1)
    width_N1, height_N1 = width_N[:, None], height_N[:, None]
    area_NT = width_N1 * height_N1 * (scale[0] + (scale[1] - scale[0]) * area_NT)
    low, high = np.log(ratio)
    ratio_NT = np.exp(low + (high - low) * ratio_NT)
    crop_width_NT = np.rint(np.sqrt(area_NT * ratio_NT))
    crop_height_NT = np.rint(np.sqrt(area_NT / ratio_NT))
    fits_NT = (crop_width_NT > 0) & (crop_width_NT <= width_N1) & (crop_height_NT > 0) & (crop_height_NT <= height_N1)
    box_NT4 = np.stack(
        [
            np.floor(top_NT * (height_N1 - crop_height_NT + 1)),
            np.floor(left_NT * (width_N1 - crop_width_NT + 1)),
            crop_height_NT,
            crop_width_NT,
        ],
        axis=-1,
    )
    crop_N4 = box_NT4[np.arange(len(key_hash_N)), fits_NT.argmax(axis=1)]
    crop_N4 = np.where(fits_NT.any(axis=1)[:, None], crop_N4, _central_crops(width_N, height_N, ratio))
    return crop_N4.astype(np.int64)


def random_flips(key_hash_N: np.ndarray, *, seed: int, epoch: int, probability: float) -> np.ndarray:
    """Which samples are mirrored left to right: bool (N,)."""
    return uniform(key_hash_N, seed, epoch, FLIP, 1)[:, 0] < probability


def whole_images(width_N: np.ndarray, height_N: np.ndarray) -> np.ndarray:
    """crop_N4 that keeps everything: evaluation squashes the whole image to the square, as published."""
    zero_N = np.zeros_like(width_N)
    return np.stack([zero_N, zero_N, height_N, width_N], axis=1).astype(np.int64)


def _central_crops(width_N: np.ndarray, height_N: np.ndarray, ratio: tuple[float, float]) -> np.ndarray:
    image_ratio_N = width_N / height_N
    crop_height_N = np.where(image_ratio_N < ratio[0], np.rint(width_N / ratio[0]), height_N)
    crop_width_N = np.where(image_ratio_N > ratio[1], np.rint(height_N * ratio[1]), width_N)
    return np.stack(
        [(height_N - crop_height_N) // 2, (width_N - crop_width_N) // 2, crop_height_N, crop_width_N], axis=1
    )
