"""Masks in, keep-mask shards out: read once, settle the polarity, split by hole fraction, draw, write."""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Literal

from msldata.buildfolder import QUARANTINE_NAME, BuildFolder
from msldata.engine import run_tasks
from msldata.errors import BadInputError, UserError
from msldata.format import (
    KEEP_MASK_SUFFIX,
    KEEP_MASKS,
    MANIFEST_NAME,
    MAX_KEY_BYTES,
    META_SUFFIX,
    SCHEMA_VERSION,
    Manifest,
    ShardInfo,
    check_key,
    encode_json,
    shard_name,
    write_manifest,
)
from msldata.keepmask import (
    AUTO,
    POLARITIES,
    PolarityDecision,
    decide_polarity,
    encode_png,
)
from msldata.masksources import MaskSource
from msldata.masksubsets import MaskSample, choose_official, choose_seeded
from msldata.measuredmask import MeasuredMask, measure_masks
from msldata.shardwriter import ShardWriter
from msldata.storage import Storage

DATASET = "masks"
MASKS_PER_SHARD = 1000
MIN_KEEP_MASK_SIZE = 16
MAX_KEEP_MASK_SIZE = 8192

SEEDED = "seeded"
OFFICIAL = "official"
ORDERS = (SEEDED, OFFICIAL)

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class MaskBuild:
    """What one build made, and what it saw on the way."""

    manifests: Mapping[str, Manifest]
    """By subset, ``high`` and ``low`` first; ``counts`` holds how many masks were available for it."""
    polarity: PolarityDecision
    hole_fractions: tuple[float, ...]
    """Of all masks that were read, in the order of their names; resized ones where ``size`` asks for it."""
    histogram: Mapping[str, int]
    """The same in ten bins; see ``hole_fraction_histogram``."""
    quarantined: tuple[BadInputError, ...]
    """The files that were skipped, with the reasons."""
    notes: tuple[str, ...]
    """What a person should know of how the masks were chosen, a sentence each."""


@dataclass(frozen=True, slots=True)
class _ShardTask:
    out: Storage
    name: str
    plan: str
    polarity: str
    resized: bool
    samples: tuple[MaskSample, ...]


@dataclass(frozen=True, slots=True)
class _Subset:
    """One of the datasets to be written."""

    folder: BuildFolder
    tasks: tuple[_ShardTask, ...]
    draft: Manifest
    """The manifest, but for the shards."""


def build_masks(
    source: MaskSource,
    out: Storage,
    *,
    order: str = SEEDED,
    threshold: float = 0.5,
    polarity: str = AUTO,
    per_subset: int = 1000,
    seed: int = 0,
    buckets: bool = False,
    size: int | None = None,
    num_workers: int | None = None,
    on_error: Literal["fail", "skip"] = "fail",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> MaskBuild:
    """Build ``out/high`` and ``out/low``: keep masks that hide more than ``threshold`` of an image, and the others.

    The same arguments again do nothing but read the masks; a killed build goes on from its finished shards. Equal masks
    and options give equal shards, whatever the number of workers, the kind of source, or the order of its listing.

    Args:
        source: where the masks come from.
        out: the folder that will hold the subsets.
        order: ``seeded``: by hole fraction, drawn by the seed. ``official``: the slices of file names that the released
            code takes for "high" and "low", and a third one it never touches, "heldout"; see ``choose_official``.
        threshold: hole fraction in (0, 1); "high" lies above it, "low" at or below. The paper: 0.5.
        polarity: ``hole-white``, ``hole-black``, or ``auto`` to tell it from the masks (refused when unclear).
        per_subset: masks drawn for each subset, or all that there are when fewer; 0 means all. The paper: 1,000.
        seed: which masks are drawn, where there are more.
        buckets: also build ``holes-00-10`` to ``holes-50-60``, by hole fraction; see ``choose_seeded``.
        size: side in pixels that keep masks are resized to, by nearest pixel; hole fractions are then those of the
            resized masks, and each sample records its source's beside its own. None stores them as they are.
        num_workers: processes; default one per available processor.
        on_error: ``fail`` at the first file that is no mask, or ``skip`` and list such files in ``quarantine.jsonl``.
        overwrite: delete what earlier builds wrote into the folders of these subsets and start over.
        progress: called with (done, total), first in masks read, then in masks written.

    Raises:
        UserError: an option out of range, unclear polarity, or a folder that holds something else.
        BadInputError: a file that is no mask (with ``fail``).

    Deviation: the official code takes files 11000–11999 as "high" and 00000–00999 as "low" without computing a hole
    fraction (``order="official"`` does so too), and the paper's rule applied to the raw files, where white is the hole,
    would swap the two.
    """
    _check_options(source, order, threshold, polarity, per_subset, seed, buckets, size, on_error)
    names = source.names()
    masks, rejected = measure_masks(
        source, names, size=size, num_workers=num_workers, on_error=on_error, progress=progress
    )
    decision = _settle_polarity(source, polarity, masks)
    origin = {"polarity_origin": decision.origin, "polarity_explanation": decision.explanation}
    sample_names = _sample_names(names)
    samples = [MaskSample(*sample_names[mask.name], mask) for mask in masks]
    if order == OFFICIAL:
        choice = choose_official(samples, decision.polarity, per_subset=per_subset)
    else:
        choice = choose_seeded(
            samples, decision.polarity, threshold=threshold, per_subset=per_subset, seed=seed, buckets=buckets
        )
    subsets = []
    for subset in choice.subsets:
        fractions = [sample.mask.hole_fraction(decision.polarity) for sample in subset.samples]
        draft = Manifest(
            kind=KEEP_MASKS,
            dataset=DATASET,
            split=subset.name,
            shards=(),
            hole_fraction_histogram=hole_fraction_histogram(fractions),
            counts={
                "masks_read": len(masks),
                "quarantined": len(rejected),
                **subset.counts,
                "without_hole": fractions.count(0.0),
                "all_hole": fractions.count(1.0),
            },
            options=subset.options if size is None else {**subset.options, "size": size},
            provenance={**source.provenance, **origin},
        )
        subsets.append(_plan_subset(out.child(subset.name), draft, subset.samples))
    left_out = [BuildFolder(out.child(name), [], "") for name in choice.left_out]
    hole_fractions = tuple(mask.hole_fraction(decision.polarity) for mask in masks)
    return MaskBuild(
        manifests=_write(subsets, left_out, rejected, num_workers, overwrite, progress),
        polarity=decision,
        hole_fractions=hole_fractions,
        histogram=hole_fraction_histogram(hole_fractions),
        quarantined=rejected,
        notes=choice.notes,
    )


def hole_fraction_histogram(hole_fractions: Iterable[float]) -> dict[str, int]:
    """Masks per ten-percent bin, ``"0.0-0.1"`` to ``"0.9-1.0"``; a bin excludes its lower edge (but 0 counts)."""
    edges = [tenth / 10 for tenth in range(1, 10)]
    counts = [0] * 10
    for fraction in hole_fractions:
        counts[bisect_left(edges, fraction)] += 1
    return {f"{tenth / 10:.1f}-{(tenth + 1) / 10:.1f}": count for tenth, count in enumerate(counts)}


def _check_options(
    source: MaskSource,
    order: str,
    threshold: float,
    polarity: str,
    per_subset: int,
    seed: int,
    buckets: bool,
    size: int | None,
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
    if polarity not in (AUTO, *POLARITIES):
        raise UserError(f"unknown polarity '{polarity}'; use {AUTO}, {' or '.join(POLARITIES)}")
    if source.polarity not in (None, polarity) and polarity != AUTO:
        raise UserError(f"polarity is {polarity}, but generated masks are {source.polarity}; leave --polarity out")
    if on_error not in ("fail", "skip"):
        raise UserError(f"unknown on_error '{on_error}'; use fail or skip")


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


def _plan_subset(out: Storage, draft: Manifest, samples: Sequence[MaskSample]) -> _Subset:
    """Cut the samples into shard tasks and give the plan its digest."""
    content = {
        "schema_version": SCHEMA_VERSION,
        "subset": draft.split,
        "masks_per_shard": MASKS_PER_SHARD,
        "counts": draft.counts,
        "options": draft.options,
        "samples": [[sample.key, sample.source, sample.mask.digest] for sample in samples],
    }
    plan = hashlib.sha256(encode_json(content)).hexdigest()
    tasks = tuple(
        _ShardTask(
            out=out,
            name=shard_name(DATASET, draft.split, start // MASKS_PER_SHARD),
            plan=plan,
            polarity=draft.options["polarity"],
            resized="size" in draft.options,
            samples=tuple(samples[start : start + MASKS_PER_SHARD]),
        )
        for start in range(0, len(samples), MASKS_PER_SHARD)
    )
    return _Subset(BuildFolder(out, [task.name for task in tasks], plan), tasks, replace(draft, plan=plan))


def _write(
    subsets: Sequence[_Subset],
    left_out: Sequence[BuildFolder],
    rejected: Sequence[BadInputError],
    num_workers: int | None,
    overwrite: bool,
    progress: Progress | None,
) -> dict[str, Manifest]:
    """Write what is missing of the subsets and publish them."""
    with ExitStack() as claims:
        for subset in subsets:
            claims.enter_context(subset.folder.claim())
        if overwrite:
            for folder in (*(subset.folder for subset in subsets), *left_out):
                folder.clear()
        # All folders are looked at before any is written to; what another build left where this one has nothing to
        # put would pass for its work.
        for folder in left_out:
            folder.finished_manifest()
        finished = {subset.draft.split: subset.folder.finished_manifest() for subset in subsets}
        unfinished = [subset for subset in subsets if finished[subset.draft.split] is None]
        kept = [subset.folder.finished_shards() for subset in unfinished]
        infos = {name: shard.info for shards in kept for name, shard in shards.items() if shard.info is not None}
        for subset in unfinished:
            # Both speak of a whole dataset; until the last shard is there, this is none.
            subset.folder.out.delete(MANIFEST_NAME)
            subset.folder.out.delete(QUARANTINE_NAME)
        missing = [task for subset in unfinished for task in subset.tasks if task.name not in infos]
        done, total = 0, sum(len(task.samples) for task in missing)

        def count(info: ShardInfo) -> None:
            nonlocal done
            done += info.num_samples
            if progress is not None:
                progress(done, total)

        infos |= {info.name: info for info in run_tasks(_write_shard, missing, num_workers, count)}
        for subset in unfinished:
            subset.folder.check_claim()
            manifest = replace(subset.draft, shards=tuple(infos[task.name] for task in subset.tasks))
            _publish(subset.folder.out, manifest, rejected)
            finished[subset.draft.split] = manifest
    return {name: manifest for name, manifest in finished.items() if manifest is not None}


def _write_shard(task: _ShardTask) -> ShardInfo:
    """Write one shard; runs in a worker process."""
    with ShardWriter(task.out, task.name, kind=KEEP_MASKS, plan=task.plan) as writer:
        for sample in task.samples:
            mask = sample.mask
            facts = {
                "width": mask.width,
                "height": mask.height,
                "hole_fraction": mask.hole_fraction(task.polarity),
                "source": sample.source,
            }
            meta = {**facts, "polarity": task.polarity}
            if task.resized:
                meta["source_hole_fraction"] = mask.source_hole_fraction(task.polarity)
                meta |= {"source_width": mask.source_width, "source_height": mask.source_height}
            members = [
                (KEEP_MASK_SUFFIX, encode_png(mask.keep_mask(task.polarity))),
                (META_SUFFIX, encode_json(meta)),
            ]
            writer.add(sample.key, members, facts)
        return writer.publish()


def _publish(out: Storage, manifest: Manifest, rejected: Sequence[BadInputError]) -> None:
    if rejected:
        lines = (encode_json({"file": error.file, "reason": error.reason}) + b"\n" for error in rejected)
        out.put(QUARANTINE_NAME, b"".join(lines))
    write_manifest(out, manifest)
