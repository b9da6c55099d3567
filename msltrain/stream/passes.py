"""Passes: what begins a pipeline at any step of any epoch, for one rank. It knows no devices, and keeps no position."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import numpy as np

from msldata.contract.pixels import reductions
from msltrain.stream.config import StreamConfig
from msltrain.stream.errors import SkippedSamples
from msltrain.stream.order.crop_and_flip import random_crops, random_flips, whole_images
from msltrain.stream.order.plan import EpochPlan, home_share, rank_slice, steps
from msltrain.stream.pipeline import Pipeline, StageSeconds
from msltrain.stream.pixels.buffers import Allocate, EncodedSlot, Slot, SquareSlot, ToSquare, WholeSlot
from msltrain.stream.pixels.imagecache import ImageCache
from msltrain.stream.reading.fetch import open_fetcher
from msltrain.stream.samples.lookup import Augment, Lookup
from msltrain.stream.samples.shardset import SampleRows, ShardSet


class Passes:
    """Pipelines of this process's threads, one at a time.

    Args:
        shards, config, training, seed, rank, world_size, to_square: as for `Loader`.
        resize: where images are resized, ``host`` or ``device``.
        memories: what gives each buffer of the ring its memory.

    Attributes:
        skipped: bad samples met so far.
        stages: where each decoding thread has spent its time.
    """

    def __init__(
        self,
        shards: ShardSet,
        config: StreamConfig,
        *,
        training: bool,
        seed: int,
        rank: int,
        world_size: int,
        resize: str,
        memories: Sequence[Allocate],
        to_square: ToSquare | None = None,
    ):
        self._shards, self._config, self._training, self._seed = shards, config, training, seed
        self._rank, self._world_size = rank, world_size
        self._resize, self._memories, self._to_square = resize, memories, to_square
        self.skipped = SkippedSamples(config.max_skipped)
        self.stages = [StageSeconds() for _ in range(config.num_threads or threads_per_rank())]
        # An evaluation set would take the room from the training images, which are needed more often.
        self._images = ImageCache(int(config.ram_cache_gb * 1e9)) if training and config.ram_cache_gb else None
        self.slots: list[Slot] = []
        """The ring, one for each of ``memories`` once a pass has begun."""
        self._pipeline: Pipeline | None = None
        shards.reserve(4 * config.window)

    def open(self, epoch: int, step: int) -> Pipeline:
        """End the pass before, and begin one at a step of an epoch."""
        if self._pipeline is not None:
            self._pipeline.close()
        if not self.slots:
            self.slots = [self._make_slot(memory) for memory in self._memories]
        config, shards = self._config, self._shards
        plan = EpochPlan(shards.counts, seed=self._seed, epoch=epoch, window=config.window, shuffle=self._training)
        self._pipeline = Pipeline(
            Lookup(shards, plan, self._augment(epoch)),
            open_fetcher(shards, config, plan.shards_by_window(step * config.batch_size)),
            self._batches(plan, step),
            self.slots,
            stages=self.stages,
            read_ahead_bytes=config.read_ahead_mb << 20,
            skipped=self.skipped if config.on_sample_error == "skip" else None,
            replace_skipped=self._training,
            images=self._images,
        )
        return self._pipeline

    def close(self) -> None:
        """Stop all threads, free the buffers and close the shards. Another pass may begin."""
        if self._pipeline is not None:
            self._pipeline.close()
        self._shards.maps.clear()
        self.slots = []

    def _make_slot(self, allocate: Allocate) -> Slot:
        config = self._config
        if config.decode == "device":
            return EncodedSlot()
        largest = -(-config.batch_size // self._world_size)
        if self._to_square is None and self._resize == "device":
            return WholeSlot(largest, config.image_size, allocate)
        return SquareSlot(largest, config.image_size, allocate, self._to_square)

    def _batches(self, plan: EpochPlan, first_step: int) -> Iterator[np.ndarray]:
        """item_N of this rank's part of every step."""
        batch_size = self._config.batch_size
        for step in range(first_step, num_steps(self._shards, self._config, training=self._training)):
            if self._training:
                start = step * batch_size
                batch = plan.items(start, min(start + batch_size, plan.num_samples))
                yield start + home_share(*batch, rank=self._rank, world_size=self._world_size)
            else:
                bounds = rank_slice(
                    step,
                    num_samples=plan.num_samples,
                    batch_size=batch_size,
                    rank=self._rank,
                    world_size=self._world_size,
                )
                if bounds[0] < bounds[1]:
                    yield np.arange(*bounds)

    def _augment(self, epoch: int) -> Augment:
        seed, config = self._seed, self._config

        def augment(rows: SampleRows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            if not self._training:
                crop_N4 = whole_images(rows.width_N, rows.height_N)
                reduction_N = reductions(rows.width_N, rows.height_N, crop_N4, config.image_size)
                if self._to_square is not None:  # it may leave much less of the image than all
                    reduction_N = np.ones_like(reduction_N)
                return crop_N4, reduction_N, np.zeros(len(rows), dtype=bool)
            crop_N4 = random_crops(
                rows.key_hash_N,
                rows.width_N,
                rows.height_N,
                seed=seed,
                epoch=epoch,
                scale=config.crop_scale,
                ratio=config.crop_ratio,
            )
            reduction_N = reductions(rows.width_N, rows.height_N, crop_N4, config.image_size)
            # A crop of a reduced photograph begins at one of its pixels.
            crop_N4[:, :2] -= crop_N4[:, :2] % reduction_N[:, None]
            flip_N = random_flips(rows.key_hash_N, seed=seed, epoch=epoch, probability=config.flip_probability)
            return crop_N4, reduction_N, flip_N

        return augment


def num_steps(shards: ShardSet, config: StreamConfig, *, training: bool) -> int:
    """Steps in an epoch, the same on every rank."""
    return steps(shards.num_samples, config.batch_size, training and config.drop_last)


def threads_per_rank() -> int:
    """CPUs of this process shared among the ranks of the host (LOCAL_WORLD_SIZE, set by torchrun)."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cpus // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
