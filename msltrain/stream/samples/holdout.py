"""The validation part of a training set: chosen by a hash of the key, with every class in both parts as far as it fits.

N samples, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from msldata.errors import UserError, counted
from msldata.storage import Location
from msltrain.stream.order.plan import EpochPlan
from msltrain.stream.order.random import HOLD_OUT, uniform
from msltrain.stream.samples.shardset import Labels, ShardSet, open_shard_set

HOLD_OUT_SEED = 0
"""Not the run's seed: runs with different seeds are validated on the same samples and can be compared."""


MOST_BEYOND = 0.5
"""The validation part is at most so much larger than asked for, however many classes would be missing there."""


def hold_out(data: Location | ShardSet, fraction: float, *, seed: int = HOLD_OUT_SEED) -> tuple[ShardSet, ShardSet]:
    """Split into (training part, validation part), as ``msl train`` does with ``data.validation_fraction``.

    A number that depends on a sample's key and ``seed`` alone decides its side. Then, so that validation can rank every
    class, each class missing there gets its sample with the smallest number; and no class is taken from training
    completely. So a sample's side depends on which samples there are, not on their order or on how shards are cut.
    With many rare classes that would set aside far more than was asked for: validation gets at most half as much again,
    and the classes with the fewest samples go without. Reads every sample index once.

    Args:
        data: the training set, or its folder.
        fraction: share of the validation part, in (0, 1).

    Raises:
        UserError: a part would be empty, or no validation sample shows any class.

    Example:
        training, validation = msltrain.hold_out("shards/voc2007/trainval", 0.2)
        with msltrain.Loader(validation, training=False) as loader:
            print(training.num_samples, sum(len(batch) for batch in loader))
    """
    shards = data if isinstance(data, ShardSet) else open_shard_set(data)
    plan = EpochPlan(shards.counts, seed=0, epoch=0, shuffle=False)
    shard_N, row_N = plan.items(0, shards.num_samples)
    labels = shards.labels()
    out_N = choose_held_out(uniform(labels.key_hash_N, seed, 0, HOLD_OUT, 1)[:, 0], labels, fraction)
    num_out = int(out_N.sum())
    if not 0 < num_out < shards.num_samples:
        raise UserError(
            f"{shards.name}: holding out {fraction:g} of {counted(shards.num_samples, 'sample')} leaves "
            f"{shards.num_samples - num_out} to train on and {num_out} to validate; "
            "set data.validation_fraction to another value, or to 0"
        )
    if not out_N[labels.row_M].any():
        none = f"none of the {num_out} samples" if num_out > 1 else "not even the only sample"
        raise UserError(
            f"{shards.name}: {none} held out for validation shows any class; "
            "set a larger data.validation_fraction, or 0 to do without"
        )
    return _Part(shards, shard_N[~out_N], row_N[~out_N]), _Part(shards, shard_N[out_N], row_N[out_N])


def choose_held_out(number_N: np.ndarray, labels: Labels, fraction: float) -> np.ndarray:
    """Which samples validation gets, bool (N,).

    Args:
        number_N: float in [0, 1), see ``hold_out``.
        labels: what the samples show.
        fraction: share of the validation part.
    """
    most = max(1, math.floor((1 + MOST_BEYOND) * fraction * len(number_N)))
    out_N = number_N < fraction
    if out_N.sum() > most:  # chance weighs much among few
        out_N &= number_N <= np.sort(number_N)[most - 1]
    samples_K = _samples_by_class(labels, number_N)
    for positive_P in samples_K:  # training first: what it never sees, it cannot learn
        if len(positive_P) and out_N[positive_P].all():
            out_N[positive_P[-1]] = False
    added = _one_of_each_missing(out_N, samples_K, labels)
    places = most - int(out_N.sum())
    # Only when there are too many is there a choice; then the classes with most samples come first.
    kept = sorted(added, key=lambda k: -len(samples_K[k]))[: max(0, places)]
    out_N[[added[k] for k in kept]] = True
    return out_N


def _samples_by_class(labels: Labels, number_N: np.ndarray) -> list[np.ndarray]:
    """The samples of each class, those with the smallest numbers first."""
    order_M = np.lexsort((number_N[labels.row_M], labels.class_M))
    return np.split(labels.row_M[order_M], np.cumsum(labels.count_K)[:-1])


def _one_of_each_missing(out_N: np.ndarray, samples_K: Sequence[np.ndarray], labels: Labels) -> dict[int, int]:
    """For each class that is missing there and can spare a sample, class → sample; one may bring several classes."""
    out_N = out_N.copy()
    first_N = np.searchsorted(labels.row_M, np.arange(len(out_N) + 1))
    num_kept_K = np.bincount(labels.class_M[~out_N[labels.row_M]], minlength=labels.num_classes)
    added = {}
    for k, positive_P in enumerate(samples_K):
        if out_N[positive_P].any():
            continue
        for sample in positive_P:
            shown = labels.class_M[first_N[sample] : first_N[sample + 1]]
            if (num_kept_K[shown] > 1).all():
                added[k] = int(sample)
                out_N[sample] = True
                num_kept_K[shown] -= 1
                break
    return added


class _Part(ShardSet):
    """The part of ``whole`` with the samples given by shard and row, in the stored order."""

    def __init__(self, whole: ShardSet, shard_N: np.ndarray, row_N: np.ndarray):
        super().__init__(whole.storage, whole.manifest)
        self._indexes = whole._indexes
        if whole._kept_row_N is not None:  # a part of a part: its rows are numbered within the first one
            row_N = whole._kept_row_N[whole._first_kept_S[shard_N] + row_N]
        self._kept_row_N = row_N
        self.counts = np.bincount(shard_N, minlength=len(whole.counts))
        self._first_kept_S = np.cumsum(self.counts) - self.counts
