"""What to know of a model before its numbers are believed: that it met the photographs or the keep masks in training,
or was stopped.

N samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from msldata.contract.format import read_index
from msldata.contract.manifest import read_manifest
from msldata.errors import UserError, counted
from msldata.storage import open_storage
from msltrain.config import DataConfig
from msltrain.runs.find_checkpoint import open_checkpoint, read_meta, unfinished
from msltrain.runs.folder import EARLIER, DatasetIdentity, training_data
from msltrain.runs.run_places import run_folder
from msltrain.stream.samples.holdout import hold_out
from msltrain.stream.samples.shardset import ShardSet, open_shard_set


def trained_on_notes(
    checkpoint: str | Path, data: DataConfig, shard_set: ShardSet, where: str, *, held_out: bool = False
) -> list[str]:
    """What to know of a model that may have met in training what it is measured on, in sentences; empty if it has not.

    Photographs are compared by what the sample indexes say of their files, so none is read or decoded. Training shards
    that are not on this machine are not looked at.

    Args:
        checkpoint: of the model.
        data: what its run was given.
        shard_set: what it is measured on.
        where: what that is called.
        held_out: only what training set aside is measured.
    """
    identities = training_data(checkpoint)
    if shard_set.manifest.fingerprint in {one.fingerprint for one in identities}:
        flatters = (
            f"{where} is what this model was trained on, so the numbers flatter it; --held-out measures the part that "
            "was set aside, other shards all of it"
        )
        return [] if held_out else [flatters]
    earlier = [one for one in training_data(checkpoint, EARLIER) if one not in identities]
    all_of_them = replace(data, validation="", validation_fraction=0)  # what earlier runs set aside, nothing tells
    return [
        *(text for one in identities for text in _notes_of(one, data, shard_set, where)),
        *(text for one in earlier for text in _notes_of(one, all_of_them, shard_set, where)),
    ]


def trained_behind_notes(checkpoint: str | Path, keep_masks: Mapping[str, str]) -> list[str]:
    """That a model was trained behind the masks that it is measured behind, in sentences; empty if it was not.

    Masks are compared by what their indexes say of their files, where both are on this machine: NVIDIA's are cut into
    subsets in several ways that share files. Of others their fingerprints are.

    Args:
        checkpoint: of the model.
        keep_masks: the fingerprint of each folder that it is measured behind.
    """
    identities = training_data(checkpoint, "keep_masks")
    return [
        f"{text}, so what is measured behind them flatters this model; masks that no training meets are made by `msl "
        "build-masks --generate 3000 --seed 1 --out shards/heldout`"
        for place, fingerprint in keep_masks.items()
        for one in identities
        if (text := _masks_met(place, fingerprint, one.location, one.fingerprint))
    ]


def shared_masks_notes(tested: Mapping[str, str], trained: Mapping[str, str]) -> list[str]:
    """In sentences, which masks of a test (fingerprints by folder) are also some of a training."""
    return [
        text
        for place, fingerprint in tested.items()
        for other, its_fingerprint in trained.items()
        if (text := _masks_met(place, fingerprint, other, its_fingerprint))
    ]


def _masks_met(place: str, fingerprint: str, trained: str, its_fingerprint: str) -> str:
    if fingerprint == its_fingerprint:
        return f"the masks in {place} were trained behind"
    if "://" in place or "://" in trained:
        return ""
    with suppress(UserError, OSError):
        if read_manifest(trained).fingerprint == its_fingerprint:
            tested, met = _mask_files(place), set(_mask_files(trained))
            if num_met := sum(file in met for file in tested):
                of = counted(len(tested), "mask")
                return f"{num_met:,} of the {of} in {place} were trained behind (they are in {trained} too)"
    return ""


def _mask_files(place: str) -> list[tuple[int, int]]:
    """Length and CRC32 of every mask's file, which are the same for equal files, and hardly ever for others."""
    storage = open_storage(place)
    manifest = read_manifest(storage)
    rows = [read_index(storage, manifest, shard, ["length", "crc32"]) for shard in manifest.shards]
    return [pair for table in rows for pair in zip(table["length"].to_pylist(), table["crc32"].to_pylist())]


def model_notes(place: str | Path, shard_set: ShardSet, where: str) -> list[str]:
    """That the training of the model at ``place`` was stopped, and `trained_on_notes`; empty where nothing tells."""
    notes = [] if "://" in str(place) else [unfinished(run_folder(place))]
    with suppress(UserError, OSError):  # a weights file of elsewhere
        notes += trained_on_notes(place, read_meta(open_checkpoint(place))[1].data, shard_set, where)
    return list(filter(None, notes))


def _notes_of(identity: DatasetIdentity, data: DataConfig, shard_set: ShardSet, where: str) -> Iterator[str]:
    if "://" in identity.location:
        return
    found = _found(identity, where)
    trained = next((one for one in found if one.manifest.fingerprint == identity.fingerprint), None)
    if trained is None:
        if identity.dataset == shard_set.manifest.dataset:
            yield (
                f"{identity.location} is not what this model was trained on any more: the dataset was "
                f"{'built anew' if found else 'moved or deleted'} since, so photographs of {where} may be among "
                "those that it was trained on, and the numbers flatter it; train again to know"
            )
        return
    with suppress(UserError, OSError):  # an index is damaged: nothing that an evaluation elsewhere should fail for
        if not data.validation and data.validation_fraction:
            trained, _ = hold_out(trained, data.validation_fraction)
        if num_met := int(np.isin(shard_set.contents(), trained.contents()).sum()):
            verb = "was" if num_met == 1 else "were"
            yield (
                f"{where}: {num_met:,} of the {counted(shard_set.num_samples, 'photograph')} {verb} trained on (they "
                f"are in {trained.storage.url} too), so the numbers flatter this model"
            )


def _found(identity: DatasetIdentity, where: str) -> list[ShardSet]:
    """What lies where the training shards were, and where they are if they were moved together with those at ``where``,
    as runs and shards of reports that travel are."""
    places = [identity.location]
    if "://" not in where:
        places.append(str(Path(where).expanduser().parent / identity.location.rstrip("/").rpartition("/")[2]))
    found = []
    for place in places:
        with suppress(UserError, OSError):
            found.append(open_shard_set(place))
    return found
