"""Evaluate a checkpoint on shards: every sample exactly once, on any number of ranks, into one predictions file.

B batch, C channels, H, W height and width, K classes, N samples of the dataset, M samples of this rank.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from msldata.format import IMAGES, ShardInfo, decode_index
from msltrain.checkpoint import load_recogniser
from msltrain.distributed import process_group
from msltrain.metrics import Metrics, compute_metrics
from msltrain.predictions import (
    LargestObjects,
    Origin,
    Predictions,
    keep_mask_fingerprints,
    largest_objects,
    read_predictions,
    write_predictions,
)
from msltrain.stream.errors import SampleError
from msltrain.stream.loader import Loader
from msltrain.stream.maskbank import MaskBank
from msltrain.stream.shardset import ShardSet, open_shard_set

Progress = Callable[[int, int], None]
"""Called with (samples done by all ranks, samples in all)."""

_PARALLEL_READS = 16

KEEP_MASK_EPOCH = 0
"""Keep masks change with the epoch in training; an evaluation always takes those of this one."""


@dataclass(frozen=True, slots=True)
class _Part:
    """What one rank has computed, in the order it met the samples."""

    index_M: np.ndarray
    """int64, position in the stored order of the dataset."""
    key_hash_M: np.ndarray
    """uint64"""
    logit_MK: np.ndarray
    """float32"""


def evaluate(
    checkpoint: str | Path,
    shards: str | Path,
    *,
    keep_masks: Sequence[str | Path] = (),
    out: str | Path | None = None,
    batch_size: int = 32,
    num_threads: int | None = None,
    device: str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
    cache: str = "",
    cache_limit_gb: float = 50.0,
    on_sample_error: Literal["fail", "skip"] = "fail",
) -> tuple[Predictions, Metrics]:
    """Predict every sample of a dataset and measure the predictions.

    Under ``torchrun`` the ranks share the work; all of them return the same, and rank 0 writes the file. The file does
    not depend on how many there are.

    Args:
        checkpoint: checkpoint folder, or the folder of a run, whose best one is taken.
        shards: dataset folder or URL, such as ``shards/voc2007/test``.
        keep_masks: folders of keep masks to hide parts of the images with; none: whole images. The mask of a sample is
            a function of its key and ``seed``, so every model meets the same hole on the same image.
        out: predictions file (parquet) to write; it is written before anything is measured.
        batch_size: samples per rank and step.
        num_threads: decoding threads per rank; None: the CPUs there are.
        device: ``auto`` (a GPU when there is one), ``cpu`` or ``cuda``.
        seed: chooses among the keep masks.
        progress: see ``Progress``.
        cache, cache_limit_gb, on_sample_error: see ``StreamConfig``. Skipped samples are no part of the predictions;
            their origin names them.

    Raises:
        SampleError: a sample is damaged, and ``on_sample_error`` is ``fail``.
        UserError: the checkpoint knows other classes than the shards, or the shards or masks cannot be used.
        FileNotFoundError: no such checkpoint.
    """
    with process_group(device) as ranks:
        loaded = load_recogniser(checkpoint, ranks.device)
        shard_set = open_shard_set(shards)
        loaded.require_classes(shard_set.classes, str(shards))
        stream = replace(
            loaded.config.stream,
            batch_size=batch_size * ranks.world_size,
            num_threads=num_threads,
            cache=cache,
            cache_limit_gb=cache_limit_gb,
            on_sample_error=on_sample_error,
        )
        bank = MaskBank.open(keep_masks, stream.image_size, ranks.device) if keep_masks else None
        loader = Loader(
            shard_set, stream, device=ranks.device, rank=ranks.rank, world_size=ranks.world_size, training=False
        )
        with loader:
            part = _predict(loaded.recogniser, loader, bank, seed, batch_size, progress)
        origin = Origin(
            checkpoint=str(loaded.path),
            checkpoint_sha256=loaded.sha256,
            dataset=shard_set.manifest.dataset,
            split=shard_set.manifest.split,
            dataset_fingerprint=shard_set.manifest.fingerprint,
            image_size=stream.image_size,
            keep_masks=tuple(str(location) for location in keep_masks),
            keep_mask_fingerprints=keep_mask_fingerprints(keep_masks),
            seed=seed,
        )
        parts, skipped = zip(*ranks.gather((part, loader.skipped.errors)))
        predictions = _assemble(_concatenate(parts), shard_set, bank, origin, ChainMap(*skipped))
        if out is not None:
            ranks.first_does(lambda: write_predictions(predictions, out))
    return predictions, compute_metrics(predictions)


def evaluate_predictions(file: str | Path) -> tuple[Predictions, Metrics]:
    """Measure a predictions file again; no model and no images are needed.

    Raises:
        UserError, FileNotFoundError: it is not a predictions file, or not there.
    """
    predictions = read_predictions(file)
    return predictions, compute_metrics(predictions)


def _predict(
    recogniser: nn.Module,
    loader: Loader,
    bank: MaskBank | None,
    seed: int,
    batch_size: int,
    progress: Progress | None,
) -> _Part:
    recogniser.eval()
    num_samples = loader.shards.num_samples
    num_classes = len(loader.shards.classes)
    parts = [_Part(np.empty(0, np.int64), np.empty(0, np.uint64), np.empty((0, num_classes), np.float32))]
    for step, batch in enumerate(loader, start=1):
        image_BCHW = batch.image_BCHW
        if bank is not None:
            image_BCHW = image_BCHW * bank.keep_masks(batch.key_hash_B, seed=seed, epoch=KEEP_MASK_EPOCH)
        # Not around the loop: the loader's own buffers must not become inference tensors.
        with torch.inference_mode():
            logit_BK = _forward(recogniser, image_BCHW, batch.index_B, batch_size)
        parts.append(_Part(batch.index_B, batch.key_hash_B, logit_BK.float().cpu().numpy()))
        if progress is not None:
            progress(min(step * loader.config.batch_size, num_samples), num_samples)
    return _concatenate(parts)


def _forward(
    recogniser: Callable[[Tensor], Tensor], image_BCHW: Tensor, index_B: np.ndarray, batch_size: int
) -> Tensor:
    """Logits (B, K) of a batch, computed inside a full batch with sample n at position n modulo the batch size.

    The last bits of a logit depend on the kernel, and that on the size of the batch, if not on the place in it. The
    last step is shared out differently for every number of ranks; so placed, a sample has the same logits in all.
    """
    if len(index_B) == batch_size and index_B[0] % batch_size == 0:
        return recogniser(image_BCHW)
    place_B = torch.from_numpy(index_B % batch_size).to(image_BCHW.device)
    full_BCHW = image_BCHW.new_zeros(batch_size, *image_BCHW.shape[1:])
    full_BCHW = full_BCHW.contiguous(memory_format=torch.channels_last)
    full_BCHW[place_B] = image_BCHW
    return recogniser(full_BCHW)[place_B]


def _concatenate(parts: Sequence[_Part]) -> _Part:
    return _Part(*(np.concatenate([getattr(part, name) for part in parts]) for name in _Part.__slots__))


def _assemble(
    part: _Part, shard_set: ShardSet, bank: MaskBank | None, origin: Origin, skipped: Mapping[int, SampleError]
) -> Predictions:
    """Put the logits of all ranks into the stored order, beside the truth from the sample indexes.

    Raises:
        AssertionError: a sample was met twice, or neither met nor skipped, or under another key.
    """
    num_samples = shard_set.num_samples
    skipped_N = np.array(sorted(skipped), dtype=np.int64)
    visits_N = np.bincount(np.concatenate((part.index_M, skipped_N)), minlength=num_samples)
    assert len(visits_N) == num_samples == shard_set.manifest.num_samples and (visits_N == 1).all(), (
        f"{shard_set.name}: of {num_samples} samples {int((visits_N == 0).sum())} were never evaluated and "
        f"{int((visits_N > 1).sum())} more than once"
    )
    order_N = np.argsort(part.index_M)
    shard_N = np.repeat(np.arange(len(shard_set.counts)), shard_set.counts)
    row_N = np.concatenate([np.arange(count) for count in shard_set.counts])
    seen_N = np.setdiff1d(np.arange(num_samples), skipped_N)
    _, rows = shard_set.rows(shard_N[seen_N], row_N[seen_N])
    origin = replace(origin, skipped=tuple(skipped[index].short for index in skipped_N.tolist()))
    assert (rows.key_hash_N == part.key_hash_M[order_N]).all(), (
        f"{shard_set.name}: logits and keys do not belong together"
    )
    if bank is not None:
        chosen_N = bank.chosen(rows.key_hash_N, seed=origin.seed, epoch=KEEP_MASK_EPOCH)
        origin = replace(origin, hole_fraction=float(bank.hole_fraction_N[chosen_N].mean()))
    return Predictions(
        keys=tuple(rows.key_N),
        logit_NK=part.logit_MK[order_N],
        target_NK=rows.target_NK,
        ignore_NK=rows.ignore_NK,
        classes=shard_set.classes,
        objects=_objects(shard_set, seen_N),
        origin=origin,
    )


def _objects(shard_set: ShardSet, seen_N: np.ndarray) -> LargestObjects | None:
    storage = shard_set.storage

    def objects(shard: ShardInfo) -> list[pa.Array]:
        data = storage.read(shard.index_name)
        return decode_index(IMAGES, data, storage.where(shard.index_name), ["objects"])["objects"].chunks

    with ThreadPoolExecutor(_PARALLEL_READS) as readers:
        columns = list(chain.from_iterable(readers.map(objects, shard_set.manifest.shards)))
    return largest_objects(pa.chunked_array(columns).take(pa.array(seen_N)), len(shard_set.classes))
