"""The data of a run: training and validation parts of the shards, keep masks, and the loaders of this process."""

from __future__ import annotations

from msldata.contract.manifest import read_manifest
from msldata.errors import UserError
from msltrain.config import TrainConfig
from msltrain.hosts.distributed import Ranks
from msltrain.runs.folder import DatasetIdentity
from msltrain.runs.run_places import check_keep_masks
from msltrain.stream.augment.augment import Augment
from msltrain.stream.errors import SampleError
from msltrain.stream.keepmasks.bank import KeepMasks
from msltrain.stream.keepmasks.masked_views import MaskedView, MaskedViews
from msltrain.stream.keepmasks.schedule import MaskSchedule
from msltrain.stream.loader import Loader
from msltrain.stream.pixels.batch import Batch
from msltrain.stream.samples.holdout import hold_out
from msltrain.stream.samples.shardset import ShardSet, open_shard_set
from msltrain.training.precise_bn import PreciseBN


class TrainData:
    """Opened shards and masks.

    Args:
        config: the whole run.
        ranks: this process among the others.

    Attributes:
        classes: class names in target order.
        identities: which datasets these are, by role.
        training: this process's part of the training batches.
        validation: its part of the validation batches; None without a validation split.
        precise_bn: what BatchNorm's statistics are measured on after every epoch; None: they are not.

    Raises:
        UserError: the config names no data, batches cannot be shared equally, or the validation part is unusable.
        FormatError, StorageError, FileNotFoundError: the shards cannot be read.
    """

    def __init__(self, config: TrainConfig, ranks: Ranks):
        _check_batches(config, ranks)
        _check_named(config)
        shards = open_shard_set(config.data.train)
        places = config.data.keep_masks if _needs_stored(config) else ()
        check_keep_masks(places)
        self.classes = shards.classes
        self.identities = {
            "train": [DatasetIdentity.of(config.data.train, shards.manifest)],
            "keep_masks": [DatasetIdentity.of(place, read_manifest(place)) for place in places],
        }
        kept, held_out = self._held_out(shards, config)
        self.training = _loader(kept, config, ranks, training=True)
        self.validation = None if held_out is None else _loader(held_out, config, ranks, training=False)
        most = config.optim.precise_bn_images
        self.precise_bn = PreciseBN(kept, config.stream, most) if most else None
        self._augment = Augment(config.augment, config.stream, ranks.device) if config.augment.is_active else None
        self._views = None
        if config.loss.needs_keep_masks:
            self._views = MaskedViews(
                config.keep_mask,
                places,
                shards=kept,
                stream=config.stream,
                device=ranks.device,
                first_epoch=config.first_masked_epoch,
            )
        self._config = config

    def _held_out(self, shards: ShardSet, config: TrainConfig) -> tuple[ShardSet, ShardSet | None]:
        """What to train on, and what to validate on."""
        if not config.data.validation:
            fraction = config.data.validation_fraction
            return hold_out(shards, fraction) if fraction else (shards, None)
        held_out = open_shard_set(config.data.validation)
        if held_out.classes != shards.classes:
            raise UserError(
                f"{config.data.validation}: its classes are others than those of {config.data.train}, or in another "
                "order; build both with the same --classes FILE, or set data.validation to other shards"
            )
        self.identities["validation"] = [DatasetIdentity.of(config.data.validation, held_out.manifest)]
        return shards, held_out

    @property
    def num_keep_masks(self) -> int:
        """Stored keep masks in use; 0 when they are drawn anew or not needed."""
        stored = None if self._views is None else self._views.keep_masks
        return len(stored) if isinstance(stored, KeepMasks | MaskSchedule) else 0

    def augmented(self, batch: Batch, epoch: int) -> Batch:
        """A training batch, augmented beyond crop and flip where the config asks for it."""
        return batch if self._augment is None else self._augment(batch, seed=self._config.run.seed, epoch=epoch)

    def masked_view(self, batch: Batch, epoch: int) -> MaskedView | None:
        """What hides parts of a training batch; None for a loss without masks, and before ``keep_mask.start``."""
        if self._views is None or epoch < self._config.first_masked_epoch:
            return None
        return self._views.of(batch, seed=self._config.run.seed, epoch=epoch)

    def skipped(self) -> list[SampleError]:
        """The bad samples that this process has skipped so far."""
        loaders = (self.training, self.validation)
        return [error for loader in loaders if loader is not None for error in loader.skipped.errors.values()]

    def __enter__(self) -> TrainData:
        return self

    def __exit__(self, *_: object) -> None:
        self.training.close()
        if self.validation is not None:
            self.validation.close()


def _loader(shards: ShardSet, config: TrainConfig, ranks: Ranks, *, training: bool) -> Loader:
    return Loader(
        shards,
        config.stream,
        device=ranks.device,
        rank=ranks.rank,
        world_size=ranks.world_size,
        training=training,
        seed=config.run.seed,
    )


def _check_batches(config: TrainConfig, ranks: Ranks) -> None:
    """Raise UserError if the average over processes would not be the average over samples."""
    world_size = ranks.world_size
    if config.stream.batch_size % world_size:
        raise UserError(
            f"stream.batch_size is {config.stream.batch_size}, which {world_size} processes cannot share equally; "
            f"set a multiple of {world_size}"
        )
    if config.augment.mix and config.stream.batch_size // world_size < 2:
        raise UserError(
            f"augment.mix={config.augment.mix} mixes the images that a process has in a batch, and "
            f"stream.batch_size={config.stream.batch_size} gives it one; set {2 * world_size} or more"
        )
    if world_size > 1 and not config.stream.drop_last:
        raise UserError(
            "stream.drop_last=false: an incomplete batch cannot be shared equally; set it to true, or train on one GPU "
            "(--processes 1), as published"
        )
    if world_size > 1 and config.run.sync_batchnorm and ranks.device.type == "cpu":
        raise UserError("run.sync_batchnorm needs GPUs; set it to false, or model.freeze_batchnorm=true")


def _needs_stored(config: TrainConfig) -> bool:
    return config.loss.needs_keep_masks and config.keep_mask.kind == "stored"


def _check_named(config: TrainConfig) -> None:
    if not config.data.train:
        raise UserError(
            "data.train is not set: give the folder of the training shards, such as shards/voc2007/trainval"
        )
    if _needs_stored(config) and not config.data.keep_masks:
        raise UserError(
            "the loss has a masked branch and data.keep_masks is not set: give a folder of keep masks, such as "
            "shards/masks/high; `msl build-masks` makes one. Or set keep_mask.kind to one that needs none"
        )


def notes_of_settings(config: TrainConfig, num_steps: int, ranks: Ranks) -> list[str]:
    """Sentences on settings that do nothing in a run of so many steps, or other than one may think."""
    notes = []
    decay = config.optim.ema_decay
    if decay is not None and 1 / (1 - decay) > num_steps:
        notes.append(
            f"optim.ema_decay={decay:g} looks back over {1 / (1 - decay):,.0f} steps and the run has "
            f"{num_steps:,}: the average holds what its warm-up leaves of the first weights; "
            f"{max(0.5, 1 - 10 / num_steps):.2g} would fit"
        )
    kind = config.keep_mask.kind
    masked = config.loss.needs_keep_masks
    if not masked and config.data.keep_masks:
        notes.append("data.keep_masks is not used: the loss gives the masked branch no weight")
    elif masked and kind != "stored":
        unused = "; data.keep_masks is not used" if config.data.keep_masks else ""
        notes.append(f"keep masks are drawn, not read: keep_mask.kind={kind}{unused}")
    for name in ("sync_batchnorm", "shard_weights"):
        if getattr(config.run, name) and ranks.world_size == 1:
            notes.append(f"run.{name} has no effect: there is one process")
    return notes
