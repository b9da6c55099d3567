"""One model of a robustness study: which of its conditions are finished, and one pass over the images for the others.

K classes, M samples of this process, N samples of the dataset.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import Tensor

from msldata.errors import UserError
from msltrain.evaluation.evaluate import origin_of
from msltrain.evaluation.sweep import AllSamples, Progress, RankPart, View
from msltrain.hosts.distributed import Ranks
from msltrain.measures.predictions import (
    Origin,
    Predictions,
    keep_mask_fingerprints,
    read_predictions,
    write_predictions,
)
from msltrain.robustness.fillings import EPOCH, Filling
from msltrain.robustness.hole_kinds import HoleRange, Holes, open_kind, open_stored
from msltrain.robustness.kinds import STORED, need_stored
from msltrain.robustness.partial_results import Stretch, Unfinished
from msltrain.robustness.recalibrate import recalibrate_batchnorm
from msltrain.robustness.study import Study
from msltrain.robustness.visible_share import ObjectBoxes
from msltrain.runs.checkpoint import LoadedRecogniser
from msltrain.runs.run_places import WHOLE, predictions_file
from msltrain.stream.config import StreamConfig
from msltrain.stream.keepmasks.bank import KeepMasks
from msltrain.stream.keepmasks.open_keep_masks import AnyKeepMasks
from msltrain.stream.loader import Loader
from msltrain.stream.samples.shardset import open_images, open_shard_set

RECALIBRATION_IMAGES = 4096
"""Enough for means and variances per channel."""
UNFINISHED = ".unfinished"
"""Folder of partial results beside the predictions of a model."""
SAVE_SECONDS = 30.0
"""How often partial results are saved: the most that a killed study loses."""
_IDENTITY = ("checkpoint_sha256", "dataset_fingerprint", "image_size", "reading", "seed", "recalibrated")
"""What the origins of all predictions of one model have in common."""


@dataclass(frozen=True, kw_only=True)
class StudyModel:
    """One model of a study, ready to run."""

    study: Study
    loaded: LoadedRecogniser
    samples: AllSamples
    ranks: Ranks
    stream: StreamConfig
    batch_size: int
    """Samples per step on each rank."""
    folder: Path
    """The folder that gets the predictions."""
    recalibrated: bool
    """Whether to measure BatchNorm's statistics anew."""
    save_seconds: float
    note: Callable[[str], None]
    """Called with what the files do not say."""

    def run(self, progress: AbstractContextManager[Progress | None]) -> dict[str, Predictions]:
        """The predictions of every condition: finished ones are read, the others come from one pass over the images.

        Raises:
            SampleError, UserError: as in ``run_study``.
        """
        names = [WHOLE, *(holes.name for holes in self.conditions)]
        found = self.ranks.first_does(lambda: self._finished(names))
        if missing := [name for name in names if name not in found]:
            unfinished = self._unfinished(missing)
            everything = self._compute(missing, unfinished, progress)
            made = {name: self._assemble(name, everything) for name in missing}
            self.ranks.first_does(lambda: self._write(made))
            unfinished.delete()
            found |= made
        return {name: found[name] for name in names}

    @cached_property
    def conditions(self) -> list[Holes]:
        """All conditions except the whole images."""
        shard_set, stream, device, seed = self.samples.shard_set, self.stream, self.ranks.device, self.study.seed
        found = []
        for kind in self.study.kinds:
            masks = open_kind(kind, lambda: self._stored, shard_set=shard_set, stream=stream, device=device, seed=seed)
            filling = Filling(kind, shard_set, stream, device, seed)
            found += [
                Holes(kind, range_, choose, filling, self._boxes, self.samples.index_N)
                for range_, choose in masks.items()
            ]
        return found

    @cached_property
    def _stored(self) -> dict[HoleRange, AnyKeepMasks]:
        return open_stored(self.study.keep_masks, self.stream.image_size, self.ranks.device)

    @cached_property
    def _boxes(self) -> ObjectBoxes | None:
        if self.loaded.view is not None:  # they are known on the whole photograph, squashed
            return None
        boxes = ObjectBoxes(self.samples)
        return boxes if boxes.known else None

    @cached_property
    def origin(self) -> Origin:
        """What all of the model's files have in common."""
        study, recalibrated = self.study, ""
        if self.recalibrated:
            assert study.recalibration is not None
            images = open_shard_set(study.recalibration.shards).manifest.fingerprint
            recalibrated = " ".join([images, *keep_mask_fingerprints(study.recalibration.keep_masks)])
        return replace(
            origin_of(self.loaded, self.samples.shard_set),
            seed=study.seed,
            recalibrated=recalibrated,
        )

    @cached_property
    def fingerprints(self) -> tuple[str, ...]:
        """Fingerprints of the stored keep masks; none if no kind uses them."""
        return keep_mask_fingerprints(self.study.keep_masks) if need_stored(self.study.kinds) else ()

    def _finished(self, names: Sequence[str]) -> dict[str, Predictions]:
        """The finished predictions. Raises UserError if they are of another model, other data or other holes."""
        found = {
            name: read_predictions(file) for name in names if (file := predictions_file(self.folder, name)).exists()
        }
        for name, predictions in found.items():
            file, there = predictions_file(self.folder, name), predictions.origin
            for what in _IDENTITY:
                is_older = what == "reading" and not there.reading
                if getattr(there, what) != getattr(self.origin, what) and not is_older:
                    raise _other_study(file, what, getattr(there, what), getattr(self.origin, what))
            if there.kind in STORED and there.keep_mask_fingerprints != self.fingerprints:
                raise _other_study(file, "fingerprint of keep masks", there.keep_mask_fingerprints, self.fingerprints)
            if there.skipped and self.stream.on_sample_error == "fail":
                raise UserError(
                    f"{file}: leaves out {len(there.skipped)} damaged samples, such as {there.skipped[0]}; go on with "
                    "--on-sample-error skip, or mend the shards and delete the file"
                )
        return found

    def _unfinished(self, names: Sequence[str]) -> Unfinished:
        identity = {what: getattr(self.origin, what) for what in _IDENTITY}
        identity["fingerprint of keep masks"] = list(self.fingerprints)
        return Unfinished(self.folder / UNFINISHED, identity, self._nothing(names))

    def _compute(
        self, names: Sequence[str], unfinished: Unfinished, progress: AbstractContextManager[Progress | None]
    ) -> Stretch:
        """What all ranks compute for these conditions, and have computed before; each sample once."""
        kept = [self._nothing(names)]

        def go_on() -> int:
            before, step = self._before(unfinished)
            kept.append(before)
            return step

        # Only the first process keeps earlier results; they join the rest of the samples when everything is gathered.
        first_step = self.ranks.first_does(go_on)
        num_samples, step_size = self.samples.shard_set.num_samples, self.batch_size * self.ranks.world_size
        if first_step * step_size < num_samples:
            if self.recalibrated:
                recalibrate_batchnorm(self.loaded.recogniser, self._masked_images())
            holes = [one for one in self.conditions if one.name in names]
            views = [View(self.loaded.recogniser)] if WHOLE in names else []
            views += [View(self.loaded.recogniser, one) for one in holes]
            with (
                progress as show,
                Loader(
                    self.samples.shard_set,
                    replace(self.stream, batch_size=step_size),
                    device=self.ranks.device,
                    rank=self.ranks.rank,
                    world_size=self.ranks.world_size,
                    training=False,
                    to_square=self.loaded.view.square if self.loaded.view else None,
                ) as loader,
            ):
                loader.load_state_dict({**loader.state_dict(), "step": first_step})
                fresh, saved = [], time.monotonic()
                for parts in self.samples.steps(views, loader, self.batch_size, show):
                    fresh.append(_stretch(parts, holes, whole=WHOLE in names))
                    if time.monotonic() - saved >= self.save_seconds:
                        kept.append(replace(Stretch.concatenate(fresh), skipped=dict(loader.skipped.errors)))
                        unfinished.write(kept[-1])
                        fresh, saved = [], time.monotonic()
                kept += [*fresh, replace(self._nothing(names), skipped=dict(loader.skipped.errors))]
        return Stretch.concatenate(self.ranks.gather(Stretch.concatenate(kept)))

    def _before(self, unfinished: Unfinished) -> tuple[Stretch, int]:
        """What was computed for all samples before a step, and that step."""
        before = unfinished.read()
        met = before.columns["index"]
        if self.stream.on_sample_error == "skip":  # else a damaged sample must be met again, and stop the study
            met = np.append(met, np.array(list(before.skipped), np.int64))
        is_met_N = np.isin(self.samples.index_N, met)
        num_met = len(is_met_N) if is_met_N.all() else int(is_met_N.argmin())
        step_size = self.batch_size * self.ranks.world_size
        step = num_met // step_size if num_met < len(is_met_N) else -(-num_met // step_size)
        return before.until(min(step * step_size, num_met)), step

    def _nothing(self, names: Sequence[str]) -> Stretch:
        """The columns of these conditions, without a row."""
        num_classes = len(self.samples.shard_set.classes)
        num_visible = 0 if self._boxes is None else num_classes
        columns = {"index": np.empty(0, np.int64), "key_hash": np.empty(0, np.uint64)}
        for name in names:
            columns[f"{name}/logit"] = np.empty((0, num_classes), np.float32)
            if name != WHOLE:
                columns[f"{name}/hole_fraction"] = np.empty(0, np.float64)
                columns[f"{name}/visible"] = np.empty((0, num_visible), np.float32)
                shows = next(one for one in self.conditions if one.name == name).filling.shows_classes
                columns[f"{name}/shown"] = np.empty((0, num_classes if shows else 0), bool)
        return Stretch(columns, {})

    def _assemble(self, name: str, everything: Stretch) -> Predictions:
        """The predictions of one condition; behind keep masks, with what these left visible of each object."""
        columns, origin = everything.columns, self.origin
        part = RankPart(columns["index"], columns["key_hash"], columns[f"{name}/logit"])
        if name == WHOLE:
            return self.samples.assemble(part, origin, everything.skipped)
        holes = next(one for one in self.conditions if one.name == name)
        order_N = np.argsort(part.index_M)
        origin = replace(
            origin,
            kind=holes.kind,
            hole_range=(holes.range.low, holes.range.high),
            hole_fraction=float(columns[f"{name}/hole_fraction"][order_N].mean()),
        )
        if holes.kind in STORED:
            origin = replace(origin, keep_masks=self.study.keep_masks, keep_mask_fingerprints=self.fingerprints)
        visible_NK = columns[f"{name}/visible"][order_N]
        predictions = self.samples.assemble(part, origin, everything.skipped)
        if (shown_NK := columns[f"{name}/shown"][order_N]).shape[1]:  # the holes themselves show these classes
            predictions = replace(predictions, ignore_NK=predictions.ignore_NK | shown_NK)
        return replace(predictions, visible_NK=visible_NK if visible_NK.shape[1] else None)

    def _masked_images(self) -> Iterable[Tensor]:
        """Masked training images, the same on every rank."""
        recalibration = self.study.recalibration
        assert recalibration is not None
        shard_set = open_images(recalibration.shards)
        bank = KeepMasks.open(recalibration.keep_masks, self.stream.image_size, self.ranks.device)
        stream = replace(self.stream, batch_size=self.batch_size, drop_last=False)
        # In training's order, so that a first part of a sorted dataset stands for the whole of it.
        with Loader(
            shard_set,
            stream,
            device=self.ranks.device,
            rank=0,
            world_size=1,
            training=True,
            seed=self.study.seed,
        ) as loader:
            for step, batch in enumerate(loader):
                if step * self.batch_size >= RECALIBRATION_IMAGES:
                    break
                yield batch.image_BCHW * bank.keep_masks(batch, seed=self.study.seed, epoch=EPOCH)
            for error in loader.skipped.errors.values():
                self.note(f"not used to measure BatchNorm: {error.short}")

    def _write(self, made: dict[str, Predictions]) -> None:
        for name, predictions in made.items():
            write_predictions(predictions, predictions_file(self.folder, name))


def _stretch(parts: Sequence[RankPart], holes: Sequence[Holes], *, whole: bool) -> Stretch:
    """One step as columns; the part of the whole images, where there is one, comes first."""
    columns = {"index": parts[0].index_M, "key_hash": parts[0].key_hash_M}
    if whole:
        columns[f"{WHOLE}/logit"] = parts[0].logit_MK
    for one, part in zip(holes, parts[whole:], strict=True):
        columns[f"{one.name}/logit"] = part.logit_MK
        hole_fraction, visible, shown = one.take_record()
        columns |= {
            f"{one.name}/hole_fraction": hole_fraction,
            f"{one.name}/visible": visible,
            f"{one.name}/shown": shown,
        }
    return Stretch(columns, {})


def _other_study(file: Path, what: str, there: object, here: object) -> UserError:
    differs = f"its {what} is {there}, that of this study {here}"
    if what == "reading":
        differs = "the same weights with another head, mean or standard deviation"
    return UserError(f"{file}: {differs}; choose another --out, or delete the file")
