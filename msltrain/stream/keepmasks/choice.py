"""Which keep mask a sample meets: a pure function of (seed, epoch, key), on any rank and after any resumption.

For stored masks it decides which one, and from which folder; for drawn masks it gives the numbers that they are drawn
by; the transform, which knows no key, passes a random one. Legend: B samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from msldata.errors import UserError
from msltrain.stream.order.random import KEEP_MASK, SUBSET, key_hash, uniform


def hashes_of(keys: Iterable[str]) -> np.ndarray:
    """Key hashes, by which keep masks are chosen: uint64 (B,), as in a ``Batch``'s ``key_hash_B``.

    Args:
        keys: one text for each sample, such as the name of its file; the same one in every epoch.

    Raises:
        UserError: a single text, whose letters would be taken for keys, or a key that is not text.
    """
    if isinstance(keys, str):
        raise UserError(f"keys is the text '{keys}'; give a list of keys, one for each sample")
    texts = list(keys)
    if wrong := [key for key in texts if not isinstance(key, str)]:
        raise UserError(f"the key {wrong[0]!r} is not text; give str(…) of it, the same in every epoch")
    return key_hash(texts)


def choose(key_hash_B: np.ndarray, num_masks: int | np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
    """Number of the mask that each sample meets, int64 (B,), each of its ``num_masks`` as likely as another."""
    return (numbers(key_hash_B, 1, seed=seed, epoch=epoch)[:, 0] * num_masks).astype(np.int64)


def choose_folder(key_hash_B: np.ndarray, weights: Sequence[float], *, seed: int, epoch: int) -> np.ndarray:
    """Number of the folder that each sample's mask is from, int64 (B,); ``len(weights)`` for a sample that stays whole.

    Args:
        weights: the share of the samples that each folder serves; at most 1 in total.
    """
    ends = np.cumsum(weights)
    lot_B = uniform(key_hash_B, seed, epoch, SUBSET, 1)[:, 0]
    # Shares that add up to 1, except for rounding, must leave no image whole.
    return np.searchsorted(np.where(ends > 1 - 1e-9, 1.0, ends), lot_B, side="right")


def numbers(key_hash_B: np.ndarray, count: int, *, seed: int, epoch: int) -> np.ndarray:
    """``count`` numbers in [0, 1) for each sample, float64 (B, count); the first one chooses the mask."""
    return uniform(key_hash_B, seed, epoch, KEEP_MASK, count)
