"""Photographs that a dataset holds more than once, byte for byte: found from the indexes of its shards."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from msldata.build.plan import BuildPlan
from msldata.contract.format import read_index
from msldata.contract.manifest import Manifest
from msldata.contract.records import listed_name
from msldata.errors import counted, few_of
from msldata.storage import Storage

_SETS_SHOWN, _OF_ONE_SHOWN = 5, 4


@dataclass(frozen=True, slots=True)
class Photograph:
    """One of several samples with the same image."""

    split: str
    shard: str
    key: str
    labels: tuple[str, ...]
    ignored: tuple[str, ...] = ()

    def labels_said(self) -> str:
        """Its labels in words."""
        ignored = f"; ignored: {', '.join(map(listed_name, self.ignored))}" if self.ignored else ""
        return (", ".join(map(listed_name, self.labels)) or "no class") + ignored


def find_copies(splits: Sequence[tuple[Storage, Manifest]]) -> list[list[Photograph]]:
    """The photographs that are in one of several splits of a dataset more than once, or in two of them.

    No image is read: two are taken for the same whose length and CRC-32 in the indexes are.

    Args:
        splits: each with its folder.

    Returns:
        The samples of each such photograph, in the order of splits and shards.
    """
    shards = [(folder, manifest, shard) for folder, manifest in splits for shard in manifest.shards]
    image_SN = []
    for folder, manifest, shard in shards:
        index = read_index(folder, manifest, shard, ("length", "crc32"))
        length_N, crc_N = (index.column(name).to_numpy().astype(np.uint64) for name in ("length", "crc32"))
        image_SN.append(length_N << np.uint64(32) | crc_N)
    if not shards:
        return []
    image_N, count_N = np.unique(np.concatenate(image_SN), return_counts=True)
    repeated = image_N[count_N > 1]
    found: dict[int, list[Photograph]] = defaultdict(list)
    for (folder, manifest, shard), of_shard_N in zip(shards, image_SN, strict=True):
        rows = np.flatnonzero(np.isin(of_shard_N, repeated)).tolist()
        if not rows:
            continue
        index = read_index(folder, manifest, shard, ("key", "positives", "ignored")).take(rows).to_pylist()
        for n, row in zip(rows, index, strict=True):
            positives, ignored = (tuple(manifest.classes[k] for k in row[name]) for name in ("positives", "ignored"))
            found[int(of_shard_N[n])].append(Photograph(manifest.split, shard.name, row["key"], positives, ignored))
    return list(found.values())


def copies_said(copies: Sequence[Sequence[Photograph]], plans: Sequence[tuple[BuildPlan, Storage]]) -> list[str]:
    """What is to be said of copies, worst first: those whose labels differ, those in several splits, the others.

    Args:
        copies: from `find_copies`.
        plans: of the same splits, which know what the files are called.
    """
    unlike: list[Sequence[Photograph]] = []
    parted: list[Sequence[Photograph]] = []
    others: list[Sequence[Photograph]] = []
    for one in copies:
        if len({(photo.labels, photo.ignored) for photo in one}) > 1:
            unlike.append(one)
        else:
            (parted if len({photo.split for photo in one}) > 1 else others).append(one)
    file_of = _files([photo for kind in (unlike, parted, others) for one in kind[:_SETS_SHOWN] for photo in one], plans)
    place = shlex.quote(plans[0][1].url.rstrip("/").rpartition("/")[0])
    said = []
    if unlike:
        said.append(
            f"{_times(unlike)} with labels that differ: {_few(unlike, file_of, f'msl verify {place}', labels=True)}. "
            "Not all of them can be right: give the files of a photograph the same labels or keep one of them, then "
            "build anew"
        )
    if parted:
        first, second, *_ = dict.fromkeys(photo.split for photo in parted[0])
        verify = f"msl verify {place}/{first} --against {place}/{second}"
        said.append(
            f"{_times(parted)} in more than one split: {_few(parted, file_of, verify)}. An exam on what was learnt "
            "says too much: keep each in one split, then build anew"
        )
    if others:
        said.append(f"{_times(others)} with the same labels: {_few(others, file_of, f'msl verify {place}')}")
    return said


def _times(copies: Sequence[Sequence[Photograph]]) -> str:
    often = "twice" if all(len(one) == 2 for one in copies) else "several times"
    return f"{counted(len(copies), 'photograph')} {'is' if len(copies) == 1 else 'are'} there {often},"


def _few(
    copies: Sequence[Sequence[Photograph]],
    file_of: Mapping[tuple[str, str], str],
    verify: str,
    *,
    labels: bool = False,
) -> str:
    shown = "; ".join(_named(one, file_of, labels) for one in copies[:_SETS_SHOWN])
    more = len(copies) - _SETS_SHOWN
    return f"{shown}; and {more:,} more, which `{verify}` names" if more > 0 else shown


def _named(one: Sequence[Photograph], file_of: Mapping[tuple[str, str], str], with_labels: bool) -> str:
    several = len({photo.split for photo in one}) > 1
    names = []
    for photo in one:
        name = file_of.get((photo.split, photo.key), photo.key)
        about = [f"in {photo.split}"] if several else []
        if with_labels:
            about.append(photo.labels_said())
        names.append(f"{name} ({'; '.join(about)})" if about else name)
    return " and ".join(names) if len(names) == 2 else few_of(names, _OF_ONE_SHOWN)


def _files(photographs: Sequence[Photograph], plans: Sequence[tuple[BuildPlan, Storage]]) -> dict[tuple[str, str], str]:
    """What the files of samples are called, by split and key."""
    wanted = {(photo.split, photo.key) for photo in photographs}
    shards = {photo.shard for photo in photographs}
    return {
        (plan.split, record.key): record.image
        for plan, _ in plans
        for shard in plan.shards
        if shard.name in shards
        for record in shard.records()
        if (plan.split, record.key) in wanted
    }
