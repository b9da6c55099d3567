"""What a keep-mask build will write: masks are read once, given a polarity, split by hole fraction and drawn."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from msldata.build.folder import BuildFolder
from msldata.contract.format import (
    INDEX_VERSION,
    KEEP_MASK_SUFFIX,
    MAX_KEY_BYTES,
    META_SUFFIX,
    check_key,
    encode_json,
)
from msldata.contract.keepmask import POLARITIES, hole_fraction_histogram
from msldata.contract.manifest import KEEP_MASKS, Manifest, shard_name
from msldata.contract.tar import END_BYTES, tar_member_bytes
from msldata.errors import BadInputError, UserError
from msldata.masks.hole_fraction import MeasuredMask, measure_masks, reach_all
from msldata.masks.polarity import AUTO, PolarityDecision, decide_polarity
from msldata.masks.sources import MaskSource
from msldata.masks.subsets import MaskSample, choose_official, choose_seeded
from msldata.storage import Location, Storage, open_storage

DATASET = "masks"
MASKS_PER_SHARD = 1000
MIN_KEEP_MASK_SIZE = 16
MAX_KEEP_MASK_SIZE = 8192

SEEDED = "seeded"
OFFICIAL = "official"
ORDERS = (SEEDED, OFFICIAL)

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class MaskShardTask:
    """One shard to be written."""

    out: Storage
    name: str
    plan: str
    polarity: str
    resized: bool
    samples: tuple[MaskSample, ...]

    def facts(self, sample: MaskSample) -> dict[str, Any]:
        """The columns of the sample's row in the index."""
        mask = sample.mask
        return {
            "width": mask.width,
            "height": mask.height,
            "hole_fraction": mask.hole_fraction(self.polarity),
            "source": sample.source,
        }

    def members(self, sample: MaskSample) -> list[tuple[str, bytes]]:
        """Suffix and bytes of the sample's files."""
        mask = sample.mask
        meta = {**self.facts(sample), "polarity": self.polarity}
        if self.resized:
            meta["source_hole_fraction"] = mask.source_hole_fraction(self.polarity)
            meta |= {"source_width": mask.source_width, "source_height": mask.source_height}
        return [(KEEP_MASK_SUFFIX, mask.keep_mask_png(self.polarity)), (META_SUFFIX, encode_json(meta))]


@dataclass(frozen=True, slots=True)
class PlannedSubset:
    """One of the datasets to be written."""

    folder: BuildFolder
    tasks: tuple[MaskShardTask, ...]
    draft: Manifest
    """The manifest, except for the shards."""

    @property
    def num_samples(self) -> int:
        return sum(len(task.samples) for task in self.tasks)

    def num_bytes(self) -> int:
        """What the tars will hold, to the byte; makes every member, as the build will."""
        total = 0
        for task in self.tasks:
            total += END_BYTES
            for sample in task.samples:
                total += sum(tar_member_bytes(len(data)) for _, data in task.members(sample))
        return total


@dataclass(frozen=True, kw_only=True)
class MaskPlan:
    """Everything that a build decides before it writes."""

    subsets: tuple[PlannedSubset, ...]
    left_out: tuple[BuildFolder, ...]
    """Folders of subsets that no mask belongs to."""
    polarity: PolarityDecision
    hole_fractions: tuple[float, ...]
    """Hole fractions of all masks that were read, in the order of their names; after resizing, with ``size``."""
    histogram: Mapping[str, int]
    """The hole fractions in ten bins; see ``hole_fraction_histogram``."""
    quarantined: tuple[BadInputError, ...]
    """The files that were skipped, with the reasons."""
    notes: tuple[str, ...]
    """Notes on how the masks were chosen, a sentence each."""
    seconds: float
    """How long reading took."""


def plan_masks(
    source: MaskSource,
    out: Location | Storage,
    *,
    order: str = SEEDED,
    threshold: float = 0.5,
    polarity: str = AUTO,
    per_subset: int = 1000,
    seed: int = 0,
    buckets: bool = False,
    size: int | None = None,
    binarize: bool = True,
    to_fraction: float | None = None,
    num_workers: int | None = None,
    on_error: Literal["fail", "skip"] = "fail",
    command: Sequence[str] = (),
    progress: Progress | None = None,
) -> MaskPlan:
    """Read all masks and decide which become samples of which subset. Nothing is written.

    Args:
        source: where the masks come from.
        out: the folder that will hold the subsets.
        order: ``seeded``: by hole fraction, drawn by the seed. ``official``: the slices of file names that the released
            code takes for "high" and "low", and a third one that it never touches, "heldout"; see ``choose_official``.
        threshold: hole fraction in (0, 1); "high" lies above it, "low" at or below. The paper: 0.5.
        polarity: ``hole-white``, ``hole-black``, or ``auto`` to infer it from the masks (refused when unclear).
        per_subset: masks drawn for each subset, or all of them when there are fewer; 0 means all. The paper: 1,000.
        seed: decides which masks are drawn when there are more.
        buckets: also build ``holes-00-10`` to ``holes-50-60``, by hole fraction; see ``choose_seeded``.
        size: side in pixels that keep masks are resized to, by nearest pixel; hole fractions are then those of the
            resized masks, and each sample records its source's beside its own. None: not resized.
        binarize: False stores grey keep masks, 8-bit, with the files' own levels (255 = visible); ``size`` then takes
            the mean of an area. Hole fractions are those of the masks binarised at half brightness, either way.
        to_fraction: dilate or erode the holes of every mask to this share of it; the subsets are then those of the
            moved masks, and the manifest says what was reached. None: unchanged.
        num_workers: processes; default one per available processor.
        on_error: ``fail`` at the first file that is not a mask, or ``skip`` such files and list them in
        ``quarantine.jsonl``.
        command: the words that build these masks again, for the manifests.
        progress: called with (done, total), in masks read.

    Raises:
        UserError: an option out of range, or unclear polarity.
        BadInputError: a file that is not a mask (with ``fail``).

    Deviation: the official code takes files 11000–11999 as "high" and 00000–00999 as "low" without computing a hole
    fraction (``order="official"`` does so too), and the paper's rule applied to the raw files, where white is the hole,
    would swap the two.
    """
    out = open_storage(out)
    _check_options(source, order, threshold, polarity, per_subset, seed, buckets, size, binarize, to_fraction, on_error)
    began = time.perf_counter()
    names = source.names()
    masks, rejected = measure_masks(
        source,
        names,
        size=size,
        soft=not binarize,
        num_workers=num_workers,
        on_error=on_error,
        progress=progress,
    )
    decision = _settle_polarity(source, polarity, masks)
    if to_fraction is not None:
        masks, unmoved = reach_all(masks, decision.polarity, to_fraction, num_workers=num_workers, on_error=on_error)
        rejected = (*rejected, *unmoved)
    sample_names = _sample_names(names)
    samples = [MaskSample(*sample_names[mask.name], mask) for mask in masks]
    if order == OFFICIAL:
        choice = choose_official(samples, decision.polarity, per_subset=per_subset)
    else:
        choice = choose_seeded(
            samples, decision.polarity, threshold=threshold, per_subset=per_subset, seed=seed, buckets=buckets
        )
    # Recorded only where they change the bytes, so that builds made without them keep their plan.
    shape: dict[str, Any] = {} if size is None else {"size": size}
    if not binarize:
        shape["binarize"] = False
    if to_fraction is not None:
        shape["to_fraction"] = to_fraction
    subsets = []
    for subset in choice.subsets:
        fractions = [sample.mask.hole_fraction(decision.polarity) for sample in subset.samples]
        draft = Manifest(
            kind=KEEP_MASKS,
            dataset=DATASET,
            split=subset.name,
            hole_fraction_histogram=hole_fraction_histogram(fractions),
            counts={
                "masks_read": len(masks),
                "quarantined": len(rejected),
                **subset.counts,
                "without_hole": fractions.count(0.0),
                "all_hole": fractions.count(1.0),
            },
            options={**subset.options, **shape},
            provenance={
                **({"command": list(command)} if command else {}),
                **source.provenance,
                "polarity_origin": decision.origin,
                "polarity_explanation": decision.explanation,
                **({"hole_fraction_reached": _spread(fractions)} if to_fraction is not None and fractions else {}),
            },
        )
        subsets.append(_plan_subset(out.child(subset.name), draft, subset.samples))
    hole_fractions = tuple(mask.hole_fraction(decision.polarity) for mask in masks)
    return MaskPlan(
        subsets=tuple(subsets),
        left_out=tuple(BuildFolder(out.child(name), [], "") for name in choice.left_out),
        polarity=decision,
        hole_fractions=hole_fractions,
        histogram=hole_fraction_histogram(hole_fractions),
        quarantined=rejected,
        notes=choice.notes,
        seconds=time.perf_counter() - began,
    )


def _check_options(
    source: MaskSource,
    order: str,
    threshold: float,
    polarity: str,
    per_subset: int,
    seed: int,
    buckets: bool,
    size: int | None,
    binarize: bool,
    to_fraction: float | None,
    on_error: str,
) -> None:
    if order not in ORDERS:
        raise UserError(f"unknown order '{order}'; use {' or '.join(ORDERS)}")
    if order == OFFICIAL and (threshold != 0.5 or seed != 0 or buckets):
        raise UserError(
            "--order official takes masks by their file names: --threshold, --seed and --buckets would do nothing; "
            "leave them out, or build those subsets into another --out with --order seeded"
        )
    if not 0 < threshold < 1:
        raise UserError(f"threshold is {threshold}; it is a share of the image and must lie between 0 and 1, as in 0.5")
    if per_subset < 0:
        raise UserError(f"per_subset is {per_subset}; give the number of masks for each subset, or 0 for all")
    if size is not None and not MIN_KEEP_MASK_SIZE <= size <= MAX_KEEP_MASK_SIZE:
        raise UserError(
            f"size is {size}; the side of keep masks in pixels must lie between {MIN_KEEP_MASK_SIZE} and "
            f"{MAX_KEEP_MASK_SIZE:,}"
        )
    if to_fraction is not None and not 0 < to_fraction < 1:
        raise UserError(f"to_fraction is {to_fraction}; it is a share of the image, between 0 and 1, as in 0.25")
    if to_fraction is not None and not binarize:
        raise UserError("--to-fraction moves the edges of holes, which grey masks do not have; leave --no-binarize out")
    if polarity not in (AUTO, *POLARITIES):
        raise UserError(f"unknown polarity '{polarity}'; use {AUTO}, {' or '.join(POLARITIES)}")
    if source.polarity not in (None, polarity) and polarity != AUTO:
        raise UserError(f"polarity is {polarity}, but generated masks are {source.polarity}; leave --polarity out")
    if on_error not in ("fail", "skip"):
        raise UserError(f"unknown on_error '{on_error}'; use fail or skip")


def _spread(fractions: Sequence[float]) -> dict[str, float]:
    return {"lowest": min(fractions), "mean": sum(fractions) / len(fractions), "highest": max(fractions)}


def _settle_polarity(source: MaskSource, polarity: str, masks: Sequence[MeasuredMask]) -> PolarityDecision:
    if source.polarity is not None:
        return PolarityDecision(source.polarity, "generator", f"{source.polarity}: the generator draws holes so")
    if polarity != AUTO:
        return PolarityDecision(polarity, "user", f"{polarity}: given by the user")
    return decide_polarity(mask.clue for mask in masks)


def _sample_names(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """(key, source name) of every mask, by its name in the source.

    Names count from the deepest folder that holds all masks, so that a folder, its zip and a folder further up give the
    same shards. Names that cannot be told apart as keys, or are too long, all get a hash of themselves as a suffix.
    """
    folders = [name.split("/")[:-1] for name in (min(names), max(names))]
    depth = next((i for i, (a, b) in enumerate(zip(*folders)) if a != b), min(map(len, folders)))
    short = {name: name.split("/", depth)[depth] for name in names}
    plain = {name: re.sub(r"[^A-Za-z0-9_-]", "_", re.sub(r"\.\w{1,5}$", "", short[name])) for name in names}
    uses: dict[str, int] = {}
    for key in plain.values():
        uses[key] = uses.get(key, 0) + 1
    keys = {}
    for name, key in plain.items():
        if uses[key] > 1 or len(key) > MAX_KEY_BYTES:
            key = f"{key[: MAX_KEY_BYTES - 17]}-{hashlib.sha256(short[name].encode()).hexdigest()[:16]}"
        check_key(key)
        keys[name] = key
    if len(set(keys.values())) != len(keys):
        raise UserError("two mask files have names that differ too little to become keys; rename one of them")
    return {name: (keys[name], short[name]) for name in names}


def _plan_subset(out: Storage, draft: Manifest, samples: Sequence[MaskSample]) -> PlannedSubset:
    """Cut the samples into shard tasks and give the plan its digest."""
    content = {
        "schema_version": INDEX_VERSION,
        "subset": draft.split,
        "masks_per_shard": MASKS_PER_SHARD,
        "counts": draft.counts,
        "options": draft.options,
        "samples": [[sample.key, sample.source, sample.mask.digest] for sample in samples],
    }
    plan = hashlib.sha256(encode_json(content)).hexdigest()
    tasks = tuple(
        MaskShardTask(
            out=out,
            name=shard_name(DATASET, draft.split, start // MASKS_PER_SHARD),
            plan=plan,
            polarity=draft.options["polarity"],
            resized="size" in draft.options or "to_fraction" in draft.options,
            samples=tuple(samples[start : start + MASKS_PER_SHARD]),
        )
        for start in range(0, len(samples), MASKS_PER_SHARD)
    )
    return PlannedSubset(BuildFolder(out, [task.name for task in tasks], plan), tasks, replace(draft, plan=plan))
