"""Counter-based random numbers: a pure function of their purpose, the same on every machine and for ever.

No stateful generator is used anywhere in the stream: a number depends on (seed, epoch, stream, sample key) only, so
it is the same for any number of threads or ranks and after any resumption. The mixing function is the finaliser of
SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014). Numpy's own
generators are not used because their streams may change between versions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

SHARD_ORDER, SAMPLE_ORDER, CROP, FLIP, KEEP_MASK, HOLD_OUT, HOME_RANK, SUBSET, MASKED_VIEW, DONOR = range(1, 11)
RANDAUGMENT, ERASE, ERASED_BOX, MIX_ORDER, MIX_SHARE, MIX_BOX, GRID = range(11, 18)
"""Streams: what a number is drawn for. Never renumber them: it would change every run."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_MASK = (1 << 64) - 1


def key_hash(keys: Iterable[str]) -> np.ndarray:
    """The sample keys as uint64 (N,): the first 8 bytes of BLAKE2b, little endian."""
    digests = b"".join(hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64, copy=False)


def hash64(*words: int | np.ndarray) -> np.ndarray:
    """Hash a tuple of 64-bit words; integers and integer arrays broadcast together into a uint64 array."""
    state = np.zeros(1, dtype=np.uint64)
    for word in words:
        value = np.uint64(word & _MASK) if isinstance(word, int) else word.astype(np.uint64, copy=False)
        state = _mix((state ^ value) + _GOLDEN)
    return state


def uniform(key_hash_N: np.ndarray, seed: int, epoch: int, stream: int, n: int) -> np.ndarray:
    """``n`` random numbers for each sample.

    Args:
        key_hash_N: uint64, from ``key_hash``.
        seed, epoch: of the run; any integers.
        stream: one of the constants above.
        n: numbers per sample.

    Returns:
        float64 of shape (N, n) in [0, 1), multiples of 2**-53.
    """
    bits = hash64(seed, epoch, stream, key_hash_N[:, None], np.arange(n, dtype=np.uint64)[None, :])
    return (bits >> np.uint64(11)) * 2.0**-53


def _mix(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * _FIRST
    state = (state ^ (state >> np.uint64(27))) * _SECOND
    return state ^ (state >> np.uint64(31))
