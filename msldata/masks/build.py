"""Masks in, keep-mask shards out: what ``plan_masks`` decides is written beside what is there, and published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from msldata.build.folder import BuildFolder
from msldata.build.writer import ShardWriter
from msldata.contract.manifest import KEEP_MASKS, Manifest, ShardInfo, Shards
from msldata.errors import BadInputError
from msldata.masks.plan import MaskPlan, MaskShardTask, PlannedSubset, Progress
from msldata.workers.engine import run_tasks


@dataclass(frozen=True, kw_only=True)
class MaskBuild:
    """What one build made, and what it found on the way."""

    plan: MaskPlan
    manifests: Mapping[str, Manifest]
    """By subset, ``high`` and ``low`` first; ``counts`` holds how many masks were available for it."""


def write_masks(
    plan: MaskPlan, *, num_workers: int | None = None, overwrite: bool = False, progress: Progress | None = None
) -> MaskBuild:
    """Write the missing parts of a plan, and publish it.

    The plan of the same arguments again finds nothing to do; a killed build continues from its finished shards. Equal
    masks and options give equal shards, whatever the number of workers, the kind of source, or the order of its
    listing.

    Args:
        plan: from ``plan_masks``.
        num_workers: processes; default one per available processor.
        overwrite: delete what earlier builds wrote into the folders of these subsets and start over.
        progress: called with (done, total), in masks written.

    Raises:
        UserError: a folder holds something else.
    """
    manifests = _write(plan.subsets, plan.left_out, plan.quarantined, num_workers, overwrite, progress)
    return MaskBuild(plan=plan, manifests=manifests)


def finished_subsets(plan: MaskPlan) -> frozenset[str]:
    """Which subsets of a plan are complete already. Nothing is written.

    Raises:
        UserError: the build would be refused, because a folder holds something else.
    """
    for folder in plan.left_out:
        folder.finished_manifest()
    finished = {subset.draft.split for subset in plan.subsets if subset.folder.finished_manifest() is not None}
    for subset in plan.subsets:
        if subset.draft.split not in finished:
            subset.folder.finished_shards()
    return frozenset(finished)


def _write(
    subsets: Sequence[PlannedSubset],
    left_out: Sequence[BuildFolder],
    rejected: Sequence[BadInputError],
    num_workers: int | None,
    overwrite: bool,
    progress: Progress | None,
) -> dict[str, Manifest]:
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
            subset.folder.withdraw()
        missing = [task for subset in unfinished for task in subset.tasks if task.name not in infos]
        done, total = 0, sum(len(task.samples) for task in missing)

        def count(info: ShardInfo) -> None:
            nonlocal done
            done += info.num_samples
            if progress is not None:
                progress(done, total)

        infos |= {info.name: info for info in run_tasks(_write_shard, missing, num_workers, count)}
        for subset in unfinished:
            manifest = replace(subset.draft, shards=Shards(infos[task.name] for task in subset.tasks))
            subset.folder.publish(manifest, [{"file": error.file, "reason": error.reason} for error in rejected])
            finished[subset.draft.split] = manifest
    return {name: manifest for name, manifest in finished.items() if manifest is not None}


def _write_shard(task: MaskShardTask) -> ShardInfo:
    """Write one shard; runs in a worker process."""
    with ShardWriter(task.out, task.name, kind=KEEP_MASKS, plan=task.plan) as writer:
        for sample in task.samples:
            writer.add(sample.key, task.members(sample), task.facts(sample))
        return writer.publish()
