"""One pass over the samples of a dataset: each exactly once, on any number of ranks, under one or several views.

B batch, C channels, H, W height and width, K classes, N samples of the dataset, M samples of this rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from msldata.contract.format import OCCLUSION, read_index
from msldata.contract.manifest import ShardInfo
from msltrain.measures.predictions import Origin, Predictions, largest_objects
from msltrain.stream.errors import SampleError
from msltrain.stream.loader import Loader
from msltrain.stream.order.plan import EpochPlan
from msltrain.stream.pixels.batch import Batch
from msltrain.stream.samples.shardset import ShardSet, multi_hot

_PARALLEL_READS = 16
Progress = Callable[[int, int], None]
"""Called with (samples done by all ranks, samples in all)."""


@dataclass(frozen=True, slots=True)
class View:
    """A model, and what it sees of the images."""

    model: Callable[[Tensor], Tensor]
    """Logits (B, K) from normalised images (B, C, H, W); in evaluation mode."""
    hide: Callable[[Batch], Tensor] | None = None
    """The images (B, C, H, W) of a batch with parts hidden; None: whole."""


@dataclass(frozen=True, slots=True)
class RankPart:
    """What one rank has computed, in the order it met the samples."""

    index_M: np.ndarray
    """int64, position in the stored order of the dataset."""
    key_hash_M: np.ndarray
    """uint64"""
    logit_MK: np.ndarray
    """float32"""

    @staticmethod
    def concatenate(parts: Sequence[RankPart]) -> RankPart:
        """The samples of all parts, in sequence."""
        if len(parts) == 1:
            return parts[0]
        return RankPart(*(np.concatenate([getattr(part, name) for part in parts]) for name in RankPart.__slots__))


class AllSamples:
    """Every sample of a dataset, and its true labels.

    Args:
        shard_set: the dataset, or the part that a filter keeps.
        column_K: int64, the position in the dataset of each class that a model knows; None: the dataset's own.

    Attributes:
        index_N: int64 ascending, positions of the samples in the stored order.
        rows: their index rows.
    """

    def __init__(self, shard_set: ShardSet, column_K: np.ndarray | None = None):
        self.shard_set = shard_set
        self.column_K = np.arange(len(shard_set.classes)) if column_K is None else column_K
        plan = EpochPlan(shard_set.counts, seed=0, epoch=0, shuffle=False)
        self.index_N, self.rows = shard_set.rows(*plan.items(0, shard_set.num_samples))

    @property
    def key_hash_N(self) -> np.ndarray:
        """uint64, hashes by which keep masks are chosen."""
        return self.rows.key_hash_N

    def run(
        self, views: Sequence[View], loader: Loader, batch_size: int, progress: Progress | None = None
    ) -> list[RankPart]:
        """What this rank computes: the parts of ``steps``, joined into one per view, and held once."""
        num_classes, most = len(self.column_K), len(loader) * batch_size
        columns = (np.empty(most, np.int64), np.empty(most, np.uint64))
        logit_VMK = [np.empty((most, num_classes), np.float32) for _ in views]
        done = 0
        for parts in self.steps(views, loader, batch_size, progress):
            stop = done + len(parts[0].index_M)
            columns[0][done:stop], columns[1][done:stop] = parts[0].index_M, parts[0].key_hash_M
            for logit_MK, part in zip(logit_VMK, parts, strict=True):
                logit_MK[done:stop] = part.logit_MK
            done = stop
        return [RankPart(columns[0][:done], columns[1][:done], logit_MK[:done]) for logit_MK in logit_VMK]

    def steps(
        self, views: Sequence[View], loader: Loader, batch_size: int, progress: Progress | None = None
    ) -> Iterator[list[RankPart]]:
        """A part per view for each step of this rank. The images are read and decoded once for all views.

        Args:
            views: what to compute for each sample.
            loader: this rank's share of the samples, not shuffled; it continues from its current step.
            batch_size: samples per rank and step.
            progress: see ``Progress``.
        """
        num_samples = self.shard_set.num_samples
        for batch in loader:
            place_B = np.searchsorted(self.index_N, batch.index_B)
            # Not around the loop: the loader's own buffers must not become inference tensors.
            with torch.inference_mode():
                parts = [self._part(view, batch, place_B, batch_size) for view in views]
            if progress is not None:
                progress(min(loader.step * loader.config.batch_size, num_samples), num_samples)
            yield parts

    @staticmethod
    def _part(view: View, batch: Batch, place_B: np.ndarray, batch_size: int) -> RankPart:
        image_BCHW = batch.image_BCHW if view.hide is None else view.hide(batch)
        logit_BK = in_full_batch(view.model, image_BCHW, place_B, batch_size)
        return RankPart(batch.index_B, batch.key_hash_B, logit_BK.float().cpu().numpy())

    def seen(self, skipped: Mapping[int, SampleError]) -> np.ndarray:
        """Rows (int64, ascending) of the samples that are not skipped; ``skipped`` is by position in the dataset."""
        return np.flatnonzero(~np.isin(self.index_N, list(skipped)))

    def assemble(
        self, part: RankPart, origin: Origin, skipped: Mapping[int, SampleError] = MappingProxyType({})
    ) -> Predictions:
        """Put the logits of all ranks into the stored order, beside the true labels from the sample indexes.

        Args:
            part: the parts of all ranks.
            origin: the predictions' origin; the skipped samples are added to it.
            skipped: damaged samples of all ranks, by position in the dataset; they are not in the predictions.

        Raises:
            AssertionError: a sample occurs twice, or is neither evaluated nor skipped, or has another key.
        """
        seen_N = self.seen(skipped)
        rows, index_N, name = self.rows.take(seen_N), self.index_N[seen_N], self.shard_set.name
        order_N = np.argsort(part.index_M, kind="stable")
        num_missing = len(np.setdiff1d(index_N, part.index_M))
        num_extra = len(part.index_M) - len(np.intersect1d(index_N, part.index_M))
        assert np.array_equal(part.index_M[order_N], index_N), (
            f"{name}: of {len(index_N)} samples {num_missing} were never evaluated and {num_extra} more than once"
        )
        assert (rows.key_hash_N == part.key_hash_M[order_N]).all(), f"{name}: logits and keys do not belong together"
        is_in_order = np.array_equal(order_N, np.arange(len(order_N)))  # then nothing is copied
        objects = self.objects().take(pa.array(seen_N))
        occlusion = self.occlusion()
        if occlusion is not None:
            occlusion = occlusion.take(pa.array(seen_N))
        num_classes = len(self.shard_set.classes)
        largest = largest_objects(objects, num_classes, rows.width_N * rows.height_N, occlusion)
        return Predictions(
            keys=tuple(rows.key_N),
            logit_NK=part.logit_MK if is_in_order else part.logit_MK[order_N],
            target_NK=multi_hot(rows.positives_N, num_classes, self.column_K).view(np.uint8),
            ignore_NK=multi_hot(rows.ignored_N, num_classes, self.column_K),
            classes=tuple(self.shard_set.classes[column] for column in self.column_K),
            objects=None if largest is None else largest.of_classes(self.column_K),
            origin=replace(origin, skipped=tuple(skipped[index].short for index in sorted(skipped))),
        )

    def objects(self) -> pa.ListArray:
        """The ``objects`` column of the sample indexes, a list per sample."""
        return self._column("objects")

    def occlusion(self) -> pa.ListArray | None:
        """What the segments say about each of ``objects``; None if the build did not record it."""
        provenance = self.shard_set.manifest.provenance
        return self._column(OCCLUSION.name, "objects") if provenance.get(OCCLUSION.name) else None

    def _column(self, name: str, *checked_with: str) -> pa.ListArray:
        storage, manifest = self.shard_set.storage, self.shard_set.manifest

        def read(shard: ShardInfo) -> list[pa.Array]:
            return read_index(storage, manifest, shard, [name, *checked_with])[name].chunks

        with ThreadPoolExecutor(_PARALLEL_READS) as readers:
            columns = list(chain.from_iterable(readers.map(read, manifest.shards)))
        return pa.chunked_array(columns).combine_chunks().take(pa.array(self.index_N))


def in_full_batch(
    model: Callable[[Tensor], Tensor], image_BCHW: Tensor, place_B: np.ndarray, batch_size: int
) -> Tensor:
    """Logits (B, K) of a batch, computed inside a full batch with sample n at position n modulo the batch size.

    The last bits of a logit depend on the kernel, and so on the size of the batch, perhaps even on the place in it. The
    last step is divided differently for every number of ranks; placed like this, a sample has the same logits in all.

    Args:
        model: gets the full batch of images.
        image_BCHW: the batch.
        place_B: int64, number n of each sample in the order of the evaluation; they follow each other.
        batch_size: size of a full batch.
    """
    if len(place_B) == batch_size and place_B[0] % batch_size == 0:
        return model(image_BCHW)
    slot_B = torch.from_numpy(place_B % batch_size).to(image_BCHW.device)
    full_BCHW = image_BCHW.new_zeros(batch_size, *image_BCHW.shape[1:])
    full_BCHW = full_BCHW.contiguous(memory_format=torch.channels_last)
    full_BCHW[slot_B] = image_BCHW
    return model(full_BCHW)[slot_B]
