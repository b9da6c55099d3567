"""Which keep masks make which subset: drawn by a seed on either side of a threshold, or as the released code chose
them.

A subset becomes one dataset folder: ``high`` and ``low``; with buckets also ``holes-00-10`` to ``holes-50-60``, for the
curve over the hole fraction; in official order ``high``, ``low`` and ``heldout``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from msldata.errors import UserError
from msldata.masks.hole_fraction import MeasuredMask

BUCKETS = {f"holes-{tenth}0-{tenth + 1}0": (tenth / 10, (tenth + 1) / 10) for tenth in range(6)}
"""Hole fractions of each bucket, above the first number and up to the second."""

OFFICIAL_SLICES = {"high": range(11000, 12000), "low": range(1000), "heldout": range(10000, 11000)}
"""File numbers in NVIDIA's test set. The released code trains with the first two; it never touches the third, which is
as heavy as the first."""

_NVIDIA_TEST_FILES = 12000


@dataclass(frozen=True, slots=True)
class MaskSample:
    """One keep mask that can be written: its key, the name of its file, what was measured."""

    key: str
    source: str
    mask: MeasuredMask


@dataclass(frozen=True, kw_only=True)
class MaskSubset:
    """The keep masks of one dataset, in stored order, and how they were chosen."""

    name: str
    samples: tuple[MaskSample, ...]
    counts: Mapping[str, int]
    """``available``: how many masks belonged here before ``per_subset`` limited them."""
    options: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """All subsets of one build."""

    subsets: tuple[MaskSubset, ...]
    left_out: tuple[str, ...] = ()
    """Subsets that no mask belongs to, and that are therefore not made."""
    notes: tuple[str, ...] = field(default=())
    """Notes on the choice, a sentence each."""


def choose_seeded(
    samples: Sequence[MaskSample], polarity: str, *, threshold: float, per_subset: int, seed: int, buckets: bool
) -> Choice:
    """Split by hole fraction and draw by a hash of (seed, file name), whatever the order the masks come in.

    Args:
        samples: all masks.
        polarity: polarity of the files.
        threshold: "high" lies above it, "low" at or below.
        per_subset: masks drawn for each subset, 0 for all.
        seed: seed of the draw.
        buckets: also make the six subsets of ten percent each. They overlap with "high" and "low", but prefer masks
            that those did not draw: a curve over the hole fraction should be measured with masks that no training has
            seen.
    """
    options = {"threshold": threshold, "polarity": polarity, "per_subset": per_subset, "seed": seed}
    fraction = {sample: sample.mask.hole_fraction(polarity) for sample in samples}
    sides = {
        "high": [sample for sample in samples if fraction[sample] > threshold],
        "low": [sample for sample in samples if fraction[sample] <= threshold],
    }
    subsets = []
    for name, available in sides.items():
        drawn = _draw(available, per_subset, seed)
        subsets.append(MaskSubset(name=name, samples=drawn, counts={"available": len(available)}, options=options))
    if not buckets:
        return Choice(subsets=tuple(subsets))
    taken = {sample for subset in subsets for sample in subset.samples}
    left_out = []
    for name, (above, up_to) in BUCKETS.items():
        available = [sample for sample in samples if above < fraction[sample] <= up_to]
        if not available:
            left_out.append(name)
            continue
        drawn = _draw(available, per_subset, seed, last=taken)
        counts = {"available": len(available), "also_in_high_or_low": sum(sample in taken for sample in drawn)}
        limits = {"hole_fraction_above": above, "hole_fraction_up_to": up_to}
        subsets.append(MaskSubset(name=name, samples=drawn, counts=counts, options={**options, **limits}))
    notes = [f"{name}: left out, no mask of this hole fraction in the source" for name in left_out]
    outside = sum(not 0 < value <= 0.6 for value in fraction.values())
    if outside:
        notes.append(f"{outside:,} masks are in none of the buckets: they hide nothing, or more than 60 % of an image")
    return Choice(subsets=tuple(subsets), left_out=tuple(left_out), notes=tuple(notes))


def choose_official(samples: Sequence[MaskSample], polarity: str, *, per_subset: int) -> Choice:
    """Take the file-name slices of the released code, in file order, and the clean held-out slice beside them.

    Args:
        samples: masks of NVIDIA's test set, all 12,000 or fewer, under their own names.
        polarity: polarity of the files.
        per_subset: masks taken from the front of each slice, 0 for all.

    Raises:
        UserError: names that are not those of NVIDIA's test set, or a slice without any mask.

    Deviation: the released code draws with ``randint(0, 950)`` and so never meets 11000–11048; all are offered here.
    """
    by_number: dict[int, MaskSample] = {}
    for sample in samples:
        number = _file_number(sample.source)
        if number in by_number:
            raise UserError(
                f"--order official: {by_number[number].source} and {sample.source} have one number; give the folder of "
                "NVIDIA's test set alone with --source"
            )
        by_number[number] = sample
    options = {"order": "official", "polarity": polarity, "per_subset": per_subset}
    subsets, notes = [], []
    for name, numbers in OFFICIAL_SLICES.items():
        files = f"{numbers.start:05d}–{numbers.stop - 1:05d}"
        available = [by_number[number] for number in numbers if number in by_number]
        if not available:
            raise UserError(
                f"--order official: none of the files {files}, which make '{name}', is in the source; complete "
                "NVIDIA's test set, or draw by hole fraction with --order seeded"
            )
        notes.append(f"{name}: {len(available):,} of the {len(numbers):,} files {files} are in the source")
        counts = {"available": len(available), "files_in_slice": len(numbers)}
        taken = tuple(available[: per_subset or None])
        subsets.append(MaskSubset(name=name, samples=taken, counts=counts, options=options))
    return Choice(subsets=tuple(subsets), notes=tuple(notes))


def _file_number(source: str) -> int:
    stem = PurePosixPath(source).stem
    if not re.fullmatch(r"[0-9]{5}", stem) or int(stem) >= _NVIDIA_TEST_FILES:
        raise UserError(
            f"--order official replays slices of NVIDIA's test set, whose files are named 00000 to 11999; '{source}' "
            "is not one of them; give that set with --source, or draw by hole fraction with --order seeded"
        )
    return int(stem)


def _draw(
    samples: Sequence[MaskSample], count: int, seed: int, last: Collection[MaskSample] = ()
) -> tuple[MaskSample, ...]:
    """``count`` samples (0: all) in the order of their names; those of ``last`` only when the others do not suffice."""

    def lot(sample: MaskSample) -> tuple[bool, bytes]:
        # A hash of the name draws the same masks for ever; a library's generator may change its sequence.
        return sample in last, hashlib.sha256(f"{seed}/{sample.source}".encode()).digest()

    return tuple(sorted(sorted(samples, key=lot)[: count or None], key=lambda sample: sample.source))
