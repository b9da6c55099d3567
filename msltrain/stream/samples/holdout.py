"""The validation part of a training set: chosen by a hash of the key, with every class in both parts.

N samples, K classes.
"""

from __future__ import annotations

import numpy as np

from msldata.errors import UserError
from msldata.storage import Location
from msltrain.stream.order.plan import EpochPlan
from msltrain.stream.order.random import HOLD_OUT, uniform
from msltrain.stream.samples.shardset import ShardSet, open_shard_set

HOLD_OUT_SEED = 0
"""Not the run's seed: runs with different seeds are validated on the same samples and can be compared."""


def hold_out(data: Location | ShardSet, fraction: float, *, seed: int = HOLD_OUT_SEED) -> tuple[ShardSet, ShardSet]:
    """Split into (training part, validation part), as ``msl train`` does with ``data.validation_fraction``.

    A number that depends on a sample's key and ``seed`` alone decides its side. Then, so that validation can rank every
    class, each class missing there gets its sample with the smallest number; and no class is taken from training
    completely. So a sample's side depends on which samples there are, not on their order or on how shards are cut.
    Reads every sample index once.

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
    _, rows = shards.rows(shard_N, row_N)
    number_N = uniform(rows.key_hash_N, seed, 0, HOLD_OUT, 1)[:, 0]
    out_N = _with_every_class(number_N < fraction, number_N, rows.target_NK.astype(bool))
    num_out = int(out_N.sum())
    if not 0 < num_out < shards.num_samples:
        raise UserError(
            f"{shards.name}: holding out {fraction:g} of {shards.num_samples} samples leaves "
            f"{shards.num_samples - num_out} to train on and {num_out} to validate; "
            "set data.validation_fraction to another value, or to 0"
        )
    if not rows.target_NK[out_N].any():
        raise UserError(
            f"{shards.name}: none of the {num_out} samples held out for validation shows any class; "
            "set a larger data.validation_fraction, or 0 to do without"
        )
    return tuple(_Part(shards, shard_N[side_N], row_N[side_N]) for side_N in (~out_N, out_N))  # type: ignore[return-value]


def _with_every_class(out_N: np.ndarray, number_N: np.ndarray, target_NK: np.ndarray) -> np.ndarray:
    """``out_N``, changed for as few samples as necessary."""
    out_N = out_N.copy()
    for k in range(target_NK.shape[1]):  # training first: what it never sees, it cannot learn
        positive_M = np.flatnonzero(target_NK[:, k])
        if len(positive_M) and out_N[positive_M].all():
            out_N[positive_M[number_N[positive_M].argmax()]] = False
    num_kept_K = target_NK[~out_N].sum(axis=0)
    for k in range(target_NK.shape[1]):
        positive_M = np.flatnonzero(target_NK[:, k])
        if out_N[positive_M].any():
            continue
        for sample in positive_M[number_N[positive_M].argsort()]:
            if (num_kept_K[target_NK[sample]] > 1).all():
                out_N[sample] = True
                num_kept_K -= target_NK[sample]
                break
    return out_N


class _Part(ShardSet):
    """The part of ``whole`` with the samples given by shard and row."""

    def __init__(self, whole: ShardSet, shard_N: np.ndarray, row_N: np.ndarray):
        super().__init__(whole.storage, whole.manifest)
        self._indexes = whole._indexes
        self._kept_rows_S = [row_N[shard_N == shard] for shard in range(len(self.counts))]
        if whole._kept_rows_S is not None:  # a part of a part: its rows are numbered within the first one
            self._kept_rows_S = [rows[kept] for rows, kept in zip(whole._kept_rows_S, self._kept_rows_S)]
        self.counts = np.array([len(rows) for rows in self._kept_rows_S], dtype=np.int64)
