"""Loader: iterates over the batches of a rank, on the device; its position can be saved and resumed anywhere.

    loader = Loader("shards/voc2007/trainval", StreamConfig(batch_size=64), training=True, device="cuda")
    loader.set_epoch(3)                # nothing is lost when the epoch is the one that load_state_dict set
    for batch in loader: ...           # Batch; len(loader) of them, the same number on every rank
    state = loader.state_dict()        # plain numbers and text; valid between any two batches
    loader.load_state_dict(state)      # on any number of ranks or threads; the next iteration starts there
    loader.start()                     # optional: be ready before the next iteration begins
    loader.stats                       # StreamStats(num_images, num_bytes, seconds_waited)
    loader.close()                     # or `with Loader(...) as loader`

Every batch is a pure function of (shards, config, seed, epoch, step): threads, ranks and interruptions leave no trace.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import torch

from msldata.errors import UserError, counted
from msldata.storage import Location
from msltrain.stream.config import StreamConfig
from msltrain.stream.errors import SkippedSamples
from msltrain.stream.helper import HelperPasses, HelperPipeline
from msltrain.stream.passes import Passes, num_steps, threads_per_rank
from msltrain.stream.pipeline import Pipeline, StageSeconds
from msltrain.stream.pixels.batch import Batch, HostBatch
from msltrain.stream.pixels.buffers import ToSquare, host_memory
from msltrain.stream.pixels.device import ToDevice, Uploads
from msltrain.stream.pixels.nvjpeg import check_device_decoding
from msltrain.stream.samples.shardset import ShardSet, open_shard_set


@dataclass(frozen=True, slots=True)
class StreamStats:
    """What a loader has delivered since it was made."""

    num_images: int = 0
    num_bytes: int = 0
    """Encoded bytes read from the shards."""
    seconds_waited: float = 0.0
    """Time that the consumer spent waiting for a batch; small when the stream is faster than training."""


class Loader:
    """Batches of one rank.

    Training shuffles, crops, flips and may drop the last incomplete batch; evaluation takes every sample exactly once
    in stored order, squashed as a whole to the square. When the last batch has fewer samples than there are ranks, some
    ranks get an empty one in training (so that all take the same number of steps) and none in evaluation.

    With ``on_sample_error=skip`` a bad sample in a training batch is replaced by the nearest good one before it in the
    epoch's order, on whichever rank that is, so batches keep their size and stay the same on any number of ranks. In
    evaluation a bad sample is left out. ``skipped`` lists them.

    Args:
        data: what to read, a dataset folder or a part of one (``hold_out``); the same on all ranks.
        config: how; the same on all ranks.
        training: as above.
        device: where batches go.
        rank, world_size: this process's part of every batch; default: its place in torch's process group, where one
            has been joined, else all of it.
        seed: decides order and augmentation; the same on all ranks.
        allow_uneven: in training, let ranks have unequal parts of a batch. What each of them computes must then be
            weighed by its samples: the mean over ranks is not the mean over samples.
        to_square: in evaluation, makes uint8 (1, 3, S, S) of a whole image, uint8 (H, W, 3); None: it is squashed.

    Raises:
        UserError: no complete batch in training; more ranks than samples in a batch; in training, one that they cannot
            share equally.
        FormatError, StorageError: no image dataset there, or it cannot be read.

    Example:
        config = msltrain.StreamConfig(image_size=224, batch_size=8)
        with msltrain.Loader("shards/voc2007/trainval", config, training=True) as loader:
            for epoch in range(2):
                loader.set_epoch(epoch)
                for batch in loader:
                    print(batch.image_BCHW.shape, loader.state_dict())
    """

    def __init__(
        self,
        data: Location | ShardSet,
        config: StreamConfig = StreamConfig(),  # noqa: B008 (frozen)
        *,
        training: bool,
        device: str | torch.device = "cpu",
        rank: int | None = None,
        world_size: int | None = None,
        seed: int = 0,
        allow_uneven: bool = False,
        to_square: ToSquare | None = None,
    ):
        shards = data if isinstance(data, ShardSet) else open_shard_set(data)
        joined_rank, joined_size = _place_in_group()
        rank, world_size = joined_rank if rank is None else rank, joined_size if world_size is None else world_size
        self.shards, self.config, self.training, self.seed = shards, config, training, seed
        self.rank, self.world_size = rank, world_size
        self.device = torch.device(device)
        self.epoch = 0
        self.step = 0
        """How many batches of this epoch the consumer has received."""
        self.stats = StreamStats()
        if not 0 <= rank < world_size:
            raise UserError(f"rank is {rank} of {world_size} ranks; they are counted from 0 to {world_size - 1}")
        if config.batch_size < world_size:
            raise UserError(
                f"stream.batch_size is {config.batch_size} for {world_size} ranks; give every rank a sample at least"
            )
        if not len(self):
            makes = "makes" if shards.num_samples == 1 else "make"
            raise UserError(
                f"{shards.name}: {counted(shards.num_samples, 'sample')} {makes} no complete batch of "
                f"{config.batch_size}; set a smaller stream.batch_size, or stream.drop_last=false"
            )
        if training and not allow_uneven:
            self._check_even()
        if config.decode == "device":
            check_device_decoding(self.device)
        self._to_device = ToDevice(self.device, config.image_size, config.mean, config.std)
        self._start = 0
        self._passes = self._make_passes(to_square)
        self._pipeline: Pipeline | HelperPipeline | None = None
        self._is_started = False

    def __len__(self) -> int:
        """Steps in an epoch, the same on every rank."""
        return num_steps(self.shards, self.config, training=self.training)

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Batch]:
        """The rest of the epoch: from the beginning, or from where ``load_state_dict`` put it.

        In training the end of an epoch is the beginning of the next one, whether it was reached here, by a caller who
        counts batches and never asks for one more, or in the run that was loaded.

        Raises:
            SampleError: a sample cannot be read or decoded; names dataset, shard, key and offset. The batches before it
                are delivered first. With ``on_sample_error=skip``: TooManySkipped, beyond the limit.
            StorageError, FileNotFoundError, FormatError: the shards cannot be read.
        """
        pipeline = self._started_pipeline()
        try:
            yield from self._device_batches(pipeline)
        finally:
            pipeline.close()
        if self.training:
            self.epoch += 1
            self.step = 0

    def start(self) -> None:
        """Start making the next iteration's first batches now, while the consumer still does something else."""
        if not self._is_started:
            self._open_pipeline()
            self._is_started = True

    def host_batches(self) -> Iterator[HostBatch]:
        """Like iterating, but in host memory and raw; the pixels of a batch are gone when the next one is requested."""
        pipeline = self._started_pipeline()
        try:
            while (batch := self._take(pipeline)) is not None:
                self.step += 1
                yield batch
                pipeline.release(batch)
        finally:
            pipeline.close()

    @property
    def num_threads(self) -> int:
        """Decoding threads of this rank."""
        return self.config.num_threads or threads_per_rank()

    @property
    def skipped(self) -> SkippedSamples:
        """Bad samples met so far by this rank, with ``on_sample_error=skip``."""
        return self._passes.skipped

    @property
    def uses_helper(self) -> bool:
        """Whether the threads run in a process of their own."""
        return isinstance(self._passes, HelperPasses)

    def stage_seconds(self) -> StageSeconds:
        """Where the decoding threads have spent their time since the loader was made, summed over them."""
        return StageSeconds.total(self._passes.stages)

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch; a position inside that same epoch is kept, and so is its end, which is the
        beginning of the next: after `load_state_dict`, loop from ``next_epoch`` on.
        """
        if not is_count(epoch):
            raise UserError(f"epoch is {epoch!r}; epochs are counted from 0")
        if epoch != self.epoch:
            self.epoch, self.step, self._start, self._is_started = epoch, 0, 0, False

    @property
    def next_epoch(self) -> int:
        """The epoch that the next iteration begins or continues."""
        is_over = self.training and len(self) in (self.step, self._start)
        return self.epoch + 1 if is_over else self.epoch

    @property
    def sampler(self) -> Loader:
        """The loader itself: at the beginning of each epoch Lightning calls ``set_epoch`` on the attribute with this
        name."""
        return self

    batch_sampler = None
    """Lightning reads it wherever there is a sampler."""

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch that the consumer received, and what gives that position its meaning."""
        return {"epoch": self.epoch, "step": self.step, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was saved, on any number of ranks.

        Raises:
            UserError: the position means something else here: other data, seed, batch size or window; or it lies beyond
                an epoch's end.
        """
        for name, here in self._identity().items():
            if state.get(name) != here:
                raise UserError(
                    f"cannot continue: the saved run had {name} = {state.get(name)!r}, this one has {here!r}; "
                    "continue with the saved value, or start a new run"
                )
        epoch, step = state.get("epoch"), state.get("step")
        if not is_count(epoch) or not is_count(step) or step > len(self):
            raise UserError(
                f"cannot continue at step {step!r} of epoch {epoch!r}: epochs are counted from 0, and one has "
                f"{counted(len(self), 'step')} here; give what state_dict() returned"
            )
        self.epoch = epoch
        self.step = self._start = step
        self._is_started = False

    def close(self) -> None:
        """Stop all threads, free the buffers and close the shards. Iterating again is possible."""
        if self._pipeline is not None:
            self._pipeline.close()
        self._passes.close()
        if self._is_started:
            self._start, self._is_started = self.step, False

    def _check_even(self) -> None:
        """Raise UserError where the mean over ranks would not be the mean over samples, which nothing else says."""
        size, ranks = self.config.batch_size, self.world_size
        last = 0 if self.config.drop_last else self.shards.num_samples % size
        if size % ranks:
            least = size // ranks
            raise UserError(
                f"stream.batch_size is {size}, which {ranks} ranks cannot share equally: some would get {least}, some "
                f"{least + 1}, and the mean over ranks would not be that over samples; set {least * ranks} or "
                f"{(least + 1) * ranks}, or allow_uneven=True and weigh by len(batch)"
            )
        if last % ranks:
            raise UserError(
                f"stream.drop_last=false leaves {counted(last, 'sample')} in an epoch's last batch, which {ranks} "
                "ranks cannot share equally; set it to true, or allow_uneven=True and weigh by len(batch)"
            )

    def _identity(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "batch_size": self.config.batch_size,
            "window": self.config.window,
            "num_samples": self.shards.num_samples,
            "fingerprint": self.shards.manifest.fingerprint,
        }

    def _make_passes(self, to_square: ToSquare | None) -> Passes | HelperPasses:
        config = self.config
        resize = config.resizes_on(self.device.type)
        if self.training and config.runs_in_helper(self.device.type, threads_per_rank()):
            return HelperPasses(
                self.shards,
                config,
                seed=self.seed,
                rank=self.rank,
                world_size=self.world_size,
                resize=resize,
                device=self.device,
            )
        return Passes(
            self.shards,
            config,
            training=self.training,
            seed=self.seed,
            rank=self.rank,
            world_size=self.world_size,
            resize=resize,
            memories=[host_memory(self.device)] * config.num_buffers,
            to_square=to_square,
        )

    def _started_pipeline(self) -> Pipeline | HelperPipeline:
        if not self._is_started:
            return self._open_pipeline()
        assert self._pipeline is not None
        self._is_started = False
        return self._pipeline

    def _open_pipeline(self) -> Pipeline | HelperPipeline:
        if self._pipeline is not None:
            self._pipeline.close()
        if self.next_epoch != self.epoch:
            self.epoch, self._start = self.next_epoch, 0
        self.step, self._start = self._start, 0
        self._pipeline = self._passes.open(self.epoch, self.step)
        return self._pipeline

    def _take(self, pipeline: Pipeline | HelperPipeline) -> HostBatch | None:
        began = time.perf_counter()
        batch = pipeline.take()
        return self._counted(batch, time.perf_counter() - began) if batch is not None else None

    def _counted(self, batch: HostBatch, seconds_waited: float = 0.0) -> HostBatch:
        before = self.stats
        self.stats = StreamStats(
            before.num_images + len(batch),
            before.num_bytes + batch.num_bytes,
            before.seconds_waited + seconds_waited,
        )
        return batch

    def _device_batches(self, pipeline: Pipeline | HelperPipeline) -> Iterator[Batch]:
        if self.device.type != "cuda":
            while (host := self._take(pipeline)) is not None:
                batch = self._to_device(host)
                pipeline.release(host)
                self.step += 1
                yield batch
            return
        with Uploads(self._to_device, pipeline.release) as uploads:
            while uploads.is_staged or (host := self._take(pipeline)) is not None:
                if not uploads.is_staged:
                    assert host is not None
                    uploads.stage(host)
                batch = uploads.collect()
                if (following := pipeline.take_ready()) is not None:
                    # Copied on its own stream while the consumer computes on the previous batch.
                    uploads.stage(self._counted(following))
                self.step += 1
                yield batch


def is_count(value: object) -> TypeGuard[int]:
    """Whether a value is a whole number from 0 on."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) >= 0


def _place_in_group() -> tuple[int, int]:
    """Rank and world size in torch's process group; 0 and 1 where none has been joined."""
    group = torch.distributed
    return (group.get_rank(), group.get_world_size()) if group.is_available() and group.is_initialized() else (0, 1)
