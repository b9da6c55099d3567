"""Evaluate a checkpoint on shards: every sample exactly once, on any number of ranks, into one predictions file.

K classes, N samples of the dataset.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from msldata.errors import UserError, counted
from msldata.storage import Location, one_or_many
from msltrain.config import TrainConfig
from msltrain.evaluation.averaged_views import AveragedViews, check_scales
from msltrain.evaluation.sweep import AllSamples, Progress, RankPart, View
from msltrain.evaluation.trained_on import trained_behind_notes, trained_on_notes
from msltrain.hosts.distributed import process_group
from msltrain.measures.predictions import (
    Origin,
    Predictions,
    check_place,
    is_table,
    keep_mask_fingerprints,
    write_predictions,
    write_predictions_table,
)
from msltrain.models.pretrained import shortened
from msltrain.runs.checkpoint import LoadedRecogniser
from msltrain.runs.find_checkpoint import Foreign
from msltrain.runs.folder import training_data
from msltrain.runs.other_checkpoints import load_any
from msltrain.stream.config import StreamConfig
from msltrain.stream.keepmasks.bank import KeepMasks
from msltrain.stream.loader import Loader
from msltrain.stream.samples.holdout import hold_out
from msltrain.stream.samples.shardset import ShardSet, open_images

KEEP_MASK_EPOCH = 0
"""In training, keep masks change with the epoch; an evaluation always takes those of this epoch."""
_NEGATIVE_WHERE_IGNORED = ("WIDER-Attribute",)
"""Sources whose ignored pairs count as negatives in precision, recall and F1, as the published evaluation has it."""


@dataclass(frozen=True, kw_only=True)
class OwnModel:
    """A network of the caller's instead of a checkpoint."""

    network: Callable[[Tensor], Tensor]
    """Normalised images (B, 3, S, S), float32, → logits (B, K). A module is run in evaluation mode, and then left as
    it was; where it is, it is moved to the device."""
    stream: StreamConfig
    """S, ``mean`` and ``std``."""
    classes: tuple[str, ...] = ()
    """The names of its outputs, in order; empty: those of the shards."""

    @contextmanager
    def loaded(self, classes: tuple[str, ...], device: torch.device) -> Iterator[LoadedRecogniser]:
        """The network among the models that this program trains, ready to run on data of these classes."""
        network: Any = self.network
        is_module = isinstance(network, nn.Module)
        was_training = {module: module.training for module in network.modules()} if is_module else {}
        if is_module:
            network.to(device).eval()
        names = self.classes or classes

        def checked(image_BCHW: Tensor) -> Tensor:
            logit_BK = network(image_BCHW)
            if not isinstance(logit_BK, Tensor) or logit_BK.shape != (len(image_BCHW), len(names)):
                found = tuple(logit_BK.shape) if isinstance(logit_BK, Tensor) else type(logit_BK).__name__
                raise UserError(
                    f"the model gives {found} for {counted(len(image_BCHW), 'image')} and "
                    f"{counted(len(names), 'class')}; it must give one logit for each, (B, K)"
                )
            return logit_BK.float()

        try:
            yield LoadedRecogniser(
                recogniser=checked,  # type: ignore[arg-type]  # only called
                classes=names,
                config=TrainConfig(stream=self.stream),
                path="",
                sha256="",
            )
        finally:
            for module, training in was_training.items():
                module.training = training


def evaluate(
    checkpoint: str | Path | OwnModel,
    shards: Location,
    *,
    foreign: Foreign = Foreign(),  # noqa: B008 (frozen)
    held_out: bool = False,
    keep_masks: Location | Sequence[Location] = (),
    flip: bool = False,
    scales: Sequence[float] = (),
    out: str | Path | None = None,
    decimal_comma: bool = False,
    batch_size: int = 32,
    num_threads: int | None = None,
    device: str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
    cache: str = "",
    cache_limit_gb: float = 50.0,
    on_sample_error: Literal["fail", "skip"] = "fail",
    note: Callable[[str], None] = lambda text: None,
) -> Predictions:
    """Predict every sample of a dataset.

    Under ``torchrun`` the ranks share the work; all of them return the same, and rank 0 writes the file. The file does
    not depend on the number of ranks. The logits are held once, and the labels beside them as bytes.

    Args:
        checkpoint: checkpoint folder, the folder of a run, whose best one is taken, or a weights file; or the caller's.
        shards: dataset folder or URL, such as ``shards/voc2007/test``.
        foreign: how to read a weights file.
        held_out: only the validation samples that training on these shards set aside, for tuning thresholds.
        keep_masks: folders of keep masks to hide parts of the images with; none: whole images. The mask of a sample is
            a function of its key and ``seed``, so every model meets the same hole on the same image.
        flip, scales: further views of each image, see ``AveragedViews``.
        out: predictions file to write, ``.parquet`` or ``.csv``.
        decimal_comma: the latter as German, French and other spreadsheets read it.
        batch_size: samples per rank and step.
        num_threads: decoding threads per rank; None: one per available CPU.
        device: ``auto`` (a GPU when there is one), ``cpu`` or ``cuda``.
        seed: chooses among the keep masks.
        progress: see ``Progress``.
        cache, cache_limit_gb, on_sample_error: see ``StreamConfig``. Skipped samples are not in the predictions; the
            predictions' origin lists them.
        note: called with what to know about the model, that its training was stopped, and the data: that the model was
            trained on it or on photographs of it, or that its classes differ.

    Raises:
        SampleError: a sample is damaged, and ``on_sample_error`` is ``fail``.
        UserError: the shards lack a class of the checkpoint, or the shards or masks cannot be used. Classes are matched
            by name: their order may differ, and classes that the checkpoint does not know are left out.
        FileNotFoundError: no such checkpoint.
    """
    check_scales(scales)
    if out is not None:
        is_table(out)
    if isinstance(checkpoint, OwnModel) and held_out:
        raise UserError("--held-out is for a run, which knows what it set aside; give the shards to evaluate on")
    keep_masks = one_or_many(keep_masks)
    with process_group(device) as ranks, ExitStack() as held:
        if out is not None:
            ranks.first_does(lambda: check_place(out))
        shard_set = open_images(shards)
        if isinstance(checkpoint, OwnModel):
            loaded = held.enter_context(checkpoint.loaded(shard_set.classes, ranks.device))
        else:
            loaded = load_any(checkpoint, foreign, shard_set.classes, ranks.device)
        column_K = loaded.columns_of(shard_set.classes, str(shards))
        for text in ranks.first_does(lambda: _notes(loaded, shard_set, str(shards), keep_masks, held_out)):
            note(text)
        if held_out:
            shard_set = _held_out(shard_set, loaded)
        stream = replace(
            loaded.config.stream,
            batch_size=batch_size * ranks.world_size,
            num_threads=num_threads,
            cache=cache,
            cache_limit_gb=cache_limit_gb,
            on_sample_error=on_sample_error,
        )
        bank = KeepMasks.open(keep_masks, stream.image_size, ranks.device) if keep_masks else None
        model = AveragedViews(loaded.recogniser, flip=flip, scales=tuple(scales))
        view = View(
            model if model.description else loaded.recogniser,
            None
            if bank is None
            else lambda batch: batch.image_BCHW * bank.keep_masks(batch, seed=seed, epoch=KEEP_MASK_EPOCH),
        )
        samples = AllSamples(shard_set, column_K)
        with Loader(
            shard_set,
            stream,
            device=ranks.device,
            rank=ranks.rank,
            world_size=ranks.world_size,
            training=False,
            to_square=loaded.view.square if loaded.view else None,
        ) as loader:
            [part] = samples.run([view], loader, batch_size, progress)
        parts, errors = zip(*ranks.gather((part, loader.skipped.errors)))
        skipped = dict(ChainMap(*errors))
        origin = replace(
            origin_of(loaded, shard_set),
            keep_masks=tuple(str(location) for location in keep_masks),
            keep_mask_fingerprints=keep_mask_fingerprints(keep_masks),
            seed=seed,
            test_time=model.description,
            part="held out" if held_out else "",
        )
        if bank is not None:
            chosen_N = bank.chosen(samples.key_hash_N[samples.seen(skipped)], seed=seed, epoch=KEEP_MASK_EPOCH)
            origin = replace(origin, hole_fraction=float(bank.hole_fraction_N[chosen_N].mean()))
        predictions = samples.assemble(RankPart.concatenate(parts), origin, skipped)
        if out is not None:
            ranks.first_does(
                lambda: (
                    write_predictions_table(predictions, out, decimal_comma=decimal_comma)
                    if is_table(out)
                    else write_predictions(predictions, out)
                )
            )
    return predictions


def _notes(
    loaded: LoadedRecogniser, shard_set: ShardSet, where: str, keep_masks: Sequence[Location], held_out: bool
) -> list[str]:
    notes = [text] if (text := loaded.unfinished()) else []
    if loaded.sha256:  # of the caller's own network nothing is known
        notes += trained_on_notes(loaded.path, loaded.config.data, shard_set, where, held_out=held_out)
        behind = dict(zip(map(str, keep_masks), keep_mask_fingerprints(keep_masks), strict=True))
        notes += trained_behind_notes(loaded.path, behind)
    known = set(loaded.classes)
    unknown = [name for name in shard_set.classes if name not in known]
    if unknown:
        notes.append(
            f"{where}: {len(unknown)} of {counted(len(shard_set.classes), 'class')} left out, which the model does not "
            f"know: {shortened(unknown)}"
        )
    if tuple(name for name in shard_set.classes if name in known) != loaded.classes:
        notes.append(f"{where}: its classes are in another order than the model's; they are matched by name")
    return notes


def origin_of(loaded: LoadedRecogniser, shard_set: ShardSet) -> Origin:
    """Which weights were run on which data, before any keep mask."""
    manifest = shard_set.manifest
    negative = manifest.provenance.get("source") in _NEGATIVE_WHERE_IGNORED
    return Origin(
        checkpoint=str(loaded.path),
        checkpoint_sha256=loaded.sha256,
        dataset=manifest.dataset,
        split=manifest.split,
        dataset_fingerprint=manifest.fingerprint,
        image_size=loaded.config.stream.image_size,
        ignored_in_rates="negative" if negative else "left out",
        resize=str(manifest.options.get("resize", "")),
        reading=loaded.reading if loaded.sha256 else "",
    )


def _held_out(shard_set: ShardSet, loaded: LoadedRecogniser) -> ShardSet:
    """The samples that the run was validated on. Raises UserError where it was not, or these are other shards: another
    dataset, or the same one built anew, of which other samples would be set aside."""
    data = loaded.config.data
    fraction = data.validation_fraction
    if not data.validates:
        raise UserError(
            f"{loaded.path}: this run set no samples aside (data.validation_fraction = 0); evaluate on another split"
        )
    role, place = ("validation", data.validation) if data.validation else ("train", data.train)
    known = {one.fingerprint for one in training_data(loaded.path, role)}
    if known and shard_set.manifest.fingerprint not in known:
        what = "was validated on" if data.validation else "set samples of aside"
        raise UserError(
            f"{shard_set.storage.url}: not what {loaded.path} {what}, {place}, as it was then; leave --data out, or "
            "--held-out"
        )
    return shard_set if data.validation else hold_out(shard_set, fraction)[1]
