"""What holes cost: several models under the same holes, from nothing hidden to more than half of the image (Fig. 3).

A study is a folder. ``predictions/MODEL/whole.parquet`` and ``predictions/MODEL/KIND-RANGE.parquet`` are written first,
a model at a time, the images decoded once for all its conditions; every number and curve is computed from them, and
models that are there already are not run again. This is all it takes to have mAP again, without this program::

    import sys
    import numpy as np
    import pyarrow.parquet as pq
    for file in sys.argv[1:]:
        table = pq.read_table(file).to_pydict()
        logit, target, ignore = (np.array(table[name]) for name in ("logit", "target", "ignore"))
        values = []
        for k in range(logit.shape[1]):
            kept = ~ignore[:, k]
            rank = np.flatnonzero(target[kept, k][np.argsort(-logit[kept, k], kind="stable")]) + 1
            values += [np.mean(np.arange(1, len(rank) + 1) / rank)] if len(rank) else []
        print(f"{file} {100 * np.mean(values):.4f}")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import Tensor

from msldata.errors import UserError
from msltrain.anycheckpoint import Foreign, load_any
from msltrain.checkpoint import LoadedRecogniser
from msltrain.distributed import Ranks, process_group
from msltrain.evaluate import open_images, origin_of
from msltrain.forward import AllSamples, Part, Progress, View
from msltrain.holes import EPOCH, IRREGULAR, WHOLE, Holes, open_kind
from msltrain.objectboxes import ObjectBoxes
from msltrain.predictions import Origin, Predictions, keep_mask_fingerprints, read_predictions, write_predictions
from msltrain.recalibrate import recalibrate_batchnorm
from msltrain.stream.loader import Loader
from msltrain.stream.maskbank import MaskBank
from msltrain.stream.shardset import open_shard_set

RECALIBRATED = " recalibrated"
"""Added to a model's name."""
RECALIBRATION_IMAGES = 4096
"""Enough for means and variances per channel."""
PREDICTIONS = "predictions"


@dataclass(frozen=True, kw_only=True)
class Recalibration:
    """What the first model's BatchNorm is measured on anew, as a control."""

    shards: str
    """Training images."""
    keep_masks: tuple[str, ...]
    """Keep masks for them; not the held-out ones of the study."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is measured on what.

    Raises:
        UserError: no model, names that repeat, or recalibration on the masks of the study.
    """

    models: tuple[tuple[str, str], ...]
    """(name, checkpoint or run folder or weights file); the reference first."""
    shards: str
    keep_masks: tuple[str, ...]
    """Held-out keep masks; those of training would flatter a model that was trained with them."""
    kinds: tuple[str, ...] = (IRREGULAR,)
    """See ``holes.KINDS``."""
    recalibration: Recalibration | None = None
    foreign: Foreign = field(default_factory=Foreign)
    seed: int = 0

    def __post_init__(self) -> None:
        names = [name for name, _ in self.models]
        if not names:
            raise UserError("a robustness study needs at least one model")
        for name in names:
            if names.count(name) > 1 or not name or "/" in name or name.startswith("."):
                raise UserError(
                    f"'{name}' cannot name a model here: names become folders and must differ; give --name once per "
                    "checkpoint"
                )
        if self.recalibration and set(self.recalibration.keep_masks) & set(self.keep_masks):
            raise UserError("recalibrate on the training keep masks, not on the held-out ones that are measured with")


def run_study(
    study: Study,
    out: Path,
    *,
    batch_size: int = 64,
    device: str = "auto",
    progress: Callable[[str], AbstractContextManager[Progress]] | None = None,
) -> dict[str, dict[str, Predictions]]:
    """Run the models that are missing in ``out``; give the predictions of all, by model and condition.

    Conditions are ``whole`` and ``KIND-RANGE``, such as ``irregular-00-10``; ranges in which there are no keep masks
    are left out. Under ``torchrun`` the ranks share the work.

    Args:
        study: what to run.
        out: the study's folder.
        batch_size: samples per rank and step.
        device: ``auto``, ``cpu`` or ``cuda``.
        progress: opens the progress display of the model of that name.

    Raises:
        UserError: something does not fit, or ``out`` holds predictions of another study.
    """
    with process_group(device) as ranks:
        samples = AllSamples(open_images(study.shards))
        found: dict[str, dict[str, Predictions]] = {}
        models = [(name, path, False) for name, path in study.models]
        if study.recalibration:
            models.insert(1, (study.models[0][0] + RECALIBRATED, study.models[0][1], True))
        for name, path, recalibrated in models:
            loaded = load_any(path, study.foreign, samples.shard_set.classes, ranks.device)
            loaded.require_classes(samples.shard_set.classes, study.shards)
            job = _Job(study, loaded, samples, ranks, batch_size, out / PREDICTIONS / name, recalibrated)
            found[name] = job.finished() or job.run(nullcontext() if progress is None else progress(name))
    return found


@dataclass(frozen=True)
class _Job:
    """One model of a study."""

    study: Study
    loaded: LoadedRecogniser
    samples: AllSamples
    ranks: Ranks
    batch_size: int
    folder: Path
    recalibrated: bool

    def finished(self) -> dict[str, Predictions]:
        """The predictions of a model that was run before; empty if any is missing. Raises UserError: see below."""
        names = [WHOLE, *(holes.name for holes in self.conditions)]
        return self.ranks.first_does(lambda: _finished(self.folder, names, self.origin, self.fingerprints))

    def run(self, progress: AbstractContextManager[Progress | None]) -> dict[str, Predictions]:
        """All conditions in one pass over the images; the files are written at its end."""
        if self.recalibrated:
            recalibrate_batchnorm(self.loaded.recogniser, self._masked_images())
        loaded, samples, ranks = self.loaded, self.samples, self.ranks
        stream = replace(loaded.config.stream, batch_size=self.batch_size * ranks.world_size)
        views = [View(loaded.recogniser), *(View(loaded.recogniser, holes) for holes in self.conditions)]
        with (
            progress as show,
            Loader(
                samples.shard_set,
                stream,
                device=ranks.device,
                rank=ranks.rank,
                world_size=ranks.world_size,
                training=False,
            ) as loader,
        ):
            parts = samples.run(views, loader, self.batch_size, show)
        gathered = [Part.concatenate(ranks.gather(part)) for part in parts]
        found = {WHOLE: samples.assemble(gathered[0], self.origin)}
        for holes, part in zip(self.conditions, gathered[1:], strict=True):
            found[holes.name] = self._behind(holes, part)
        ranks.first_does(lambda: _write(self.folder, found))
        return found

    @cached_property
    def conditions(self) -> list[Holes]:
        """All but the whole images."""
        boxes = ObjectBoxes(self.samples)
        return [
            Holes(kind, range_, choose, boxes if boxes.known else None, self.samples.index_N)
            for kind in self.study.kinds
            for range_, choose in open_kind(
                kind,
                self.study.keep_masks,
                shard_set=self.samples.shard_set,
                stream=self.loaded.config.stream,
                device=self.ranks.device,
                seed=self.study.seed,
            ).items()
        ]

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
        """Of the stored keep masks."""
        return keep_mask_fingerprints(self.study.keep_masks)

    def _behind(self, holes: Holes, part: Part) -> Predictions:
        """The predictions behind keep masks, with what these left of each object."""
        records = [record for records in self.ranks.gather(holes.records) for record in records]
        index_N, hole_fraction_N, visible_NK = (np.concatenate(column) for column in zip(*records, strict=True))
        order_N = np.argsort(index_N)
        origin = replace(
            self.origin,
            kind=holes.kind,
            hole_range=(holes.range.low, holes.range.high),
            hole_fraction=float(hole_fraction_N[order_N].mean()),
        )
        if holes.kind == IRREGULAR:
            origin = replace(origin, keep_masks=self.study.keep_masks, keep_mask_fingerprints=self.fingerprints)
        predictions = self.samples.assemble(part, origin)
        return replace(predictions, visible_NK=visible_NK[order_N] if visible_NK.shape[1] else None)

    def _masked_images(self) -> Iterable[Tensor]:
        """Masked training images, the same on every rank."""
        recalibration, stream = self.study.recalibration, self.loaded.config.stream
        assert recalibration is not None
        shard_set = open_images(recalibration.shards)
        self.loaded.require_classes(shard_set.classes, recalibration.shards)
        bank = MaskBank.open(recalibration.keep_masks, stream.image_size, self.ranks.device)
        stream = replace(stream, batch_size=self.batch_size, drop_last=False)
        # In training's order, so that a first part of a sorted dataset stands for the whole of it.
        with Loader(shard_set, stream, device=self.ranks.device, training=True, seed=self.study.seed) as loader:
            for step, batch in enumerate(loader):
                if step * self.batch_size >= RECALIBRATION_IMAGES:
                    return
                yield batch.image_BCHW * bank.keep_masks(batch, seed=self.study.seed, epoch=EPOCH)


def _finished(
    folder: Path, names: Sequence[str], origin: Origin, fingerprints: tuple[str, ...]
) -> dict[str, Predictions]:
    """The predictions of a model that was run before; empty if any is missing.

    Raises:
        UserError: those that are there are of another model, other data or other holes.
    """
    found = {name: read_predictions(folder / f"{name}.parquet") for name in names if _file(folder, name).exists()}
    for name, predictions in found.items():
        there = predictions.origin
        for what in ("checkpoint_sha256", "dataset_fingerprint", "image_size", "seed", "recalibrated"):
            if getattr(there, what) != getattr(origin, what):
                raise _other_study(folder, name, what, getattr(there, what), getattr(origin, what))
        if there.kind == IRREGULAR and there.keep_mask_fingerprints != fingerprints:
            raise _other_study(folder, name, "fingerprint of keep masks", there.keep_mask_fingerprints, fingerprints)
    return found if len(found) == len(names) else {}


def _other_study(folder: Path, name: str, what: str, there: object, here: object) -> UserError:
    return UserError(
        f"{_file(folder, name)}: its {what} is {there}, that of this study {here}; choose another --out, or delete "
        "the file"
    )


def _write(folder: Path, found: dict[str, Predictions]) -> None:
    for name, predictions in found.items():
        write_predictions(predictions, _file(folder, name))


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.parquet"
