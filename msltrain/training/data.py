"""The data of a run: training and validation part of the shards, keep masks, and the loaders of this process."""

from __future__ import annotations

from torch import Tensor

from msldata.contract.manifest import read_manifest
from msldata.errors import UserError
from msltrain.config import TrainConfig
from msltrain.hosts.distributed import Ranks
from msltrain.runs.folder import DatasetIdentity
from msltrain.stream.errors import SampleError
from msltrain.stream.keepmasks.bank import MaskBank
from msltrain.stream.keepmasks.open import open_keep_masks
from msltrain.stream.loader import Loader
from msltrain.stream.pixels.batch import Batch
from msltrain.stream.samples.holdout import hold_out
from msltrain.stream.samples.shardset import ShardSet, open_shard_set


class TrainData:
    """Opened shards and masks.

    Args:
        config: the whole run.
        ranks: this process among the others.

    Attributes:
        classes: class names in target order.
        identities: which datasets these are, by role.
        training: this process's part of the training batches.
        validation: of the validation batches; None without a validation split.
        keep_masks: None for a loss without a masked branch.

    Raises:
        UserError: the config names no data, batches cannot be shared equally, or the validation part is of no use.
        FormatError, StorageError, FileNotFoundError: the shards cannot be read.
    """

    def __init__(self, config: TrainConfig, ranks: Ranks):
        _check_batches(config, ranks)
        _check_named(config)
        shards = open_shard_set(config.data.train)
        places = config.data.keep_masks if _needs_stored(config) else ()
        self.classes = shards.classes
        self.identities = {
            "train": [DatasetIdentity.of(config.data.train, shards.manifest)],
            "keep_masks": [DatasetIdentity.of(place, read_manifest(place)) for place in places],
        }
        fraction = config.data.validation_fraction
        kept, held_out = hold_out(shards, fraction) if fraction else (shards, None)
        self.training = _loader(kept, config, ranks, training=True)
        self.validation = None if held_out is None else _loader(held_out, config, ranks, training=False)
        self.keep_masks = None
        if config.loss.has_masked_branch:
            self.keep_masks = open_keep_masks(
                config.keep_mask,
                places,
                shards=shards,
                stream=config.stream,
                device=ranks.device,
                training=True,
            )
        self._config = config

    @property
    def num_keep_masks(self) -> int:
        """Stored keep masks in use; 0 when they are drawn anew or not needed."""
        return len(self.keep_masks) if isinstance(self.keep_masks, MaskBank) else 0

    def keep_mask(self, batch: Batch, epoch: int) -> Tensor | None:
        """keep_mask_B1HW of a training batch, float32 on the device; None for a loss without a masked branch."""
        if self.keep_masks is None:
            return None
        keep_mask_B1HW = self.keep_masks.keep_masks(batch, seed=self._config.run.seed, epoch=epoch)
        level = self._config.keep_mask.visible_level
        return keep_mask_B1HW if level == 1 else keep_mask_B1HW * level

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
    """Raise UserError where the average over processes would not be the average over samples."""
    world_size = ranks.world_size
    if config.stream.batch_size % world_size:
        raise UserError(
            f"stream.batch_size is {config.stream.batch_size}, which {world_size} processes cannot share equally; "
            f"set a multiple of {world_size}"
        )
    if world_size > 1 and not config.stream.drop_last:
        raise UserError("stream.drop_last=false: an incomplete batch cannot be shared equally; set it to true")
    if world_size > 1 and config.run.sync_batchnorm and ranks.device.type == "cpu":
        raise UserError("run.sync_batchnorm needs GPUs; set it to false, or model.freeze_batchnorm=true")


def _needs_stored(config: TrainConfig) -> bool:
    return config.loss.has_masked_branch and config.keep_mask.kind == "stored"


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
