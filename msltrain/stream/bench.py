"""How fast a dataset folder streams on this machine, where the time goes, and how many GPUs that feeds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import torch

from msltrain.stream.config import StreamConfig
from msltrain.stream.loader import Loader
from msltrain.stream.pipeline import StageSeconds
from msltrain.stream.pixels.batch import HostBatch
from msltrain.stream.samples.shardset import open_shard_set


@dataclass(frozen=True, kw_only=True)
class StreamMeasurement:
    """What one measurement found; "thread time" is the wall-clock time of the decoding threads added up."""

    num_images: int
    """Images counted, without those of the first batches."""
    num_epochs: int
    """Number of passes over the data that were begun; from the second on, local files come from the page cache."""
    seconds: float
    """Wall-clock time in which they arrived."""
    seconds_to_first_batch: float
    """From opening the folder to the first batch."""
    images_per_second: float
    megabytes_per_second: float
    """Encoded bytes read; 10⁶ bytes."""
    cpu_seconds_per_1000: float
    """CPU time of this whole process per 1,000 images."""
    num_threads: int
    """Decoding threads."""
    share_fetch: float
    """Share of the thread time spent waiting for encoded bytes."""
    share_decode: float
    share_resize: float
    share_idle: float
    """Share spent waiting for work: for the plan, the sample indexes or the consumer."""
    advice: str
    """What limits the rate, and what would raise it."""

    def gpus_fed(self, images_per_second: float) -> float:
        """How many GPUs, each consuming this many images per second, the stream keeps busy."""
        return self.images_per_second / images_per_second


@dataclass(frozen=True, kw_only=True)
class LostTime:
    """What a stream costs the thread that launches a training's work on a GPU, in milliseconds of each step."""

    step: float
    """How long a step takes."""
    same: float
    """Lost where the decoding threads run in the same process."""
    helper: float | None
    """Lost where they run in a helper process; None where there are none."""


def measure_stream(
    location: str | Path,
    config: StreamConfig,
    *,
    seconds: float = 20.0,
    max_images: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> StreamMeasurement:
    """Stream training batches into host memory, as fast as they come, and time it.

    Counting begins when every buffer of the ring has been emptied once: what was filled before timing began is not
    counted.

    Args:
        location: a dataset folder, local or remote.
        config: as training would use it.
        seconds: how long to measure; short sets are streamed several times.
        max_images: stop after so many counted images.
        on_progress: called with (elapsed, total), in tenths of a second or images.

    Raises:
        UserError, StorageError, FormatError, FileNotFoundError: as in `Loader`.
    """
    began = time.perf_counter()
    with Loader(open_shard_set(location), config, device="cpu", training=True) as loader:
        batches = _endless(loader)
        next(batches)
        seconds_to_first_batch = time.perf_counter() - began
        for _ in range(config.num_buffers):
            next(batches)
        first = loader.stats
        stages, cpu, start = loader.stage_seconds(), time.process_time(), time.perf_counter()
        for _ in batches:
            elapsed = time.perf_counter() - start
            num_images = loader.stats.num_images - first.num_images
            if on_progress is not None:
                done = (num_images, max_images) if max_images else (int(10 * elapsed), int(10 * seconds))
                on_progress(*done)
            if elapsed >= seconds or (max_images is not None and num_images >= max_images):
                break
        cpu = time.process_time() - cpu
        stages = loader.stage_seconds() - stages
        thread_seconds = max(stages.idle + stages.fetch + stages.decode + stages.resize, 1e-9)
        shares = {field.name: getattr(stages, field.name) / thread_seconds for field in fields(StageSeconds)}
        return StreamMeasurement(
            num_images=num_images,
            num_epochs=loader.epoch + 1,
            seconds=elapsed,
            seconds_to_first_batch=seconds_to_first_batch,
            images_per_second=num_images / elapsed,
            megabytes_per_second=(loader.stats.num_bytes - first.num_bytes) / elapsed / 1e6,
            cpu_seconds_per_1000=cpu / num_images * 1000,
            num_threads=loader.num_threads,
            advice=_advice(shares, config, is_local=loader.shards.storage.path() is not None),
            **{f"share_{name}": share for name, share in shares.items()},
        )


def measure_lost_time(
    location: str | Path, config: StreamConfig, images_per_second: float, *, seconds: float = 6.0
) -> LostTime:
    """How much of the launching thread's time a stream takes at a GPU's rate. It takes ``seconds``, and two starts.

    This thread does what a GPU's launcher does: it takes a batch, makes many small calls, and sleeps until the step is
    over. Time in the first two beyond that with no stream is lost. That the stream is fast enough must be known.

    Raises:
        UserError, StorageError, FormatError, FileNotFoundError: as in `Loader`.
    """
    step = config.batch_size / images_per_second
    small, other = torch.zeros(16), torch.ones(16)

    def launch(num_calls: int) -> None:
        for _ in range(num_calls):
            small.add_(other)

    began = time.perf_counter()
    launch(2000)
    num_calls = max(1, int(0.4 * step / (time.perf_counter() - began) * 2000))

    def busy(batches: Iterator[object], seconds: float) -> float:
        """Milliseconds of a step that are not slept."""
        spent, num_steps, end = 0.0, 0, time.perf_counter() + seconds
        while (began := time.perf_counter()) < end or not num_steps:
            next(batches)
            launch(num_calls)
            spent += (worked := time.perf_counter() - began)
            num_steps += 1
            time.sleep(max(0.0, step - worked))
        return 1000 * spent / num_steps

    nothing: Iterator[object] = iter(lambda: None, ...)
    lost: dict[str, float] = {}
    places: tuple[Literal["same", "helper"], ...] = ("same", "helper")
    for where in places:
        if where == "helper" and not config.has_helpers:
            continue
        alone = busy(nothing, seconds / 6)
        with Loader(open_shard_set(location), replace(config, process=where), device="cpu", training=True) as loader:
            batches = _endless(loader)
            for _ in range(config.num_buffers + 1):
                next(batches)
            beside = busy(batches, seconds / 3)
        lost[where] = max(0.0, beside - (alone + busy(nothing, seconds / 6)) / 2)
    return LostTime(step=1000 * step, same=lost["same"], helper=lost.get("helper"))


def _endless(loader: Loader) -> Iterator[HostBatch]:
    while True:
        yield from loader.host_batches()
        loader.set_epoch(loader.epoch + 1)


def _advice(shares: dict[str, float], config: StreamConfig, *, is_local: bool) -> str:
    if shares["fetch"] > 0.3:
        if is_local:
            return "the disk is the limit: a faster one, or more memory for the page cache"
        if not config.cache:
            return "the storage is the limit: try --cache DIR on a local disk, or a larger --read-ahead-mb"
        return "the storage is the limit while the cache fills; measure again once all shards are in it"
    if shares["idle"] > 0.3:
        return "the threads wait for work: try a larger --batch-size, or fewer --threads"
    if shares["resize"] > shares["decode"]:
        return "resizing is the limit: more CPU cores, or leave it to the GPU"
    if config.ram_cache_gb:
        return "decoding is the limit: more CPU cores, or a larger --ram-cache if not all decoded images fit"
    return "decoding is the limit: more CPU cores, or --ram-cache when the decoded images fit into memory"
