"""One network from several that started from the same weights: the average of their weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from msldata.errors import UserError, counted
from msltrain.config import differences
from msltrain.models.weights_place import is_timm_tag
from msltrain.runs.checkpoint import Checkpoint, load_checkpoint, rebuild_recogniser, save_checkpoint
from msltrain.runs.folder import note_data_of_all, training_data
from msltrain.stream.samples.holdout import hold_out
from msltrain.stream.samples.shardset import open_shard_set
from msltrain.training.precise_bn import PreciseBN, norm_names


def average_checkpoints(
    places: Sequence[str | Path],
    folder: Path,
    shares: Sequence[float] | None = None,
    *,
    data: str | Path | None = None,
) -> None:
    """Write the checkpoint folder ``folder`` with the weighted average of several checkpoints' weights.

    Networks that were fine-tuned from the same weights, in whatever way, lie close enough together for their average to
    be a network as well, often one better than each of them ("model soups", Wortsman et al., ICML 2022). BatchNorm's
    running statistics are measured anew where the last run's were (``optim.precise_bn_images``), else averaged too.
    Where the runs set other samples aside, none are left that the average has not learnt from, and it names none.

    Args:
        places: runs or checkpoints, folders or URLs; the written one has the settings of the last.
        folder: must not be there yet.
        shares: of each place, adding up to 1; None: equal ones.
        data: the training shards, to measure on; None: where the last run had them.

    Raises:
        UserError: ``folder`` exists, the shares do not fit, or the networks have not started from the same weights, the
            decoder of a head included, or do not know the same classes.
        FileNotFoundError, FormatError, StorageError: a file cannot be read or written.
    """
    if folder.exists():
        raise UserError(f"{folder}: exists already; choose another --out")
    if len(places) < 2:
        raise UserError("an average needs two checkpoints or more; repeat --checkpoint")
    shares = [1 / len(places)] * len(places) if shares is None else shares
    if len(shares) != len(places):
        both = f"{counted(len(places), 'checkpoint')} and {counted(len(shares), 'share')}"
        raise UserError(f"{both}; give --share once per --checkpoint")
    if not all(0 < share < 1 for share in shares) or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise UserError(f"the shares are {', '.join(map(str, shares))}; they must be above 0 and add up to 1")
    found = [replace(load_checkpoint(place), validation_mAP=None, train_state={}) for place in places]
    if not found[0].config.model.weights:
        raise UserError(
            f"{places[0]}: started at random, and the average of networks with other beginnings recognises nothing; "
            "average runs that started from the same pretrained weights"
        )
    for place, other in zip(places[1:], found[1:], strict=True):
        _require_same_start(found[0], other, places[0], place)
    average = replace(found[-1], weights=average_weights([one.weights for one in found], shares))
    if not _set_aside_alike(found, places):
        nothing = replace(average.config.data, validation="", validation_fraction=0)
        average = replace(average, config=replace(average.config, data=nothing))
    if average.config.optim.precise_bn_images:
        average = _measured(average, data or average.config.data.train)
    save_checkpoint(average, folder)
    note_data_of_all(places, folder)


def _set_aside_alike(found: Sequence[Checkpoint], places: Sequence[str | Path]) -> bool:
    """Whether what the last run set aside for validation was set aside by all: others may have learnt from it."""
    return all(
        one.config.data.validation_fraction == found[-1].config.data.validation_fraction
        and one.config.data.validation == found[-1].config.data.validation
        and all(training_data(place, role) == training_data(places[-1], role) for role in ("train", "validation"))
        for one, place in zip(found, places, strict=True)
    )


def _measured(average: Checkpoint, data: str | Path) -> Checkpoint:
    """The same with BatchNorm's running statistics of its own weights."""
    config = average.config
    shards = open_shard_set(data)
    if config.data.validation_fraction and not config.data.validation:
        shards, _ = hold_out(shards, config.data.validation_fraction)
    network = rebuild_recogniser(config, len(average.classes))
    network.load_state_dict(average.weights)
    precise_bn = PreciseBN(shards, config.stream, config.optim.precise_bn_images)
    precise_bn.measure(network, norm_names(network.train()), torch.device("cpu"), amp=False)
    return replace(average, weights=network.state_dict())


def average_weights(weights: Sequence[Mapping[str, Tensor]], shares: Sequence[float]) -> dict[str, Tensor]:
    """The weighted average of several networks' tensors by name, in their types; counters are whole numbers."""
    averaged = {}
    for name, like in weights[0].items():
        parts = [share * one[name].double() for one, share in zip(weights, shares, strict=True)]
        total = torch.stack(parts).sum(0)
        averaged[name] = (total if like.is_floating_point() else torch.round(total)).to(like.dtype)
    return averaged


def _require_same_start(first: Checkpoint, other: Checkpoint, one: str | Path, place: str | Path) -> None:
    if other.classes != first.classes:
        raise UserError(f"{place}: does not know the classes of {one}, in that order; average runs on the same data")
    seen = ("model.", "stream.image_size", "stream.mean", "stream.std")
    for name, (mine, theirs) in differences(first.config, other.config).items():
        if not name.startswith(seen):
            continue
        raise UserError(
            f"{place}: is not a network of the same kind and beginning as {one} ({name} is {theirs} there and {mine} "
            "here); average runs of one network from the same first weights"
        )
    if not _has_same_head(first, other):
        head, (mine, theirs) = first.config.model.head, (run.config.run.seed for run in (first, other))
        raise UserError(
            f"{place}: the first weights hold no {head} head, and the run drew another one than {one} did (run.seed is "
            f"{theirs} there and {mine} here), so the average of both recognises nothing; average runs of one seed, or "
            "that began with the weights of one run"
        )


def _has_same_head(first: Checkpoint, other: Checkpoint) -> bool:
    """Whether the average of two heads is one: as for pooled and attention heads, which are one layer, however they
    began. The queries and layers of a decoder are drawn by the seed where the first weights do not hold them.
    """
    query = "classifier.query"  # of ML-Decoder it never learns
    match first.config.model.head:
        case "mldecoder":
            return torch.equal(first.weights[query], other.weights[query])
        case "csra" | "mean" | "max":
            return True
    drawn = is_timm_tag(first.config.model.weights)  # Query2Label's, or somebody's own, of which nothing is known
    return not drawn or first.config.run.seed == other.config.run.seed
