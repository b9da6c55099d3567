"""Plan → shards → manifest: the resumable build of an image dataset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from msldata.buildfolder import QUARANTINE_NAME, BuildFolder, FinishedShard
from msldata.buildplan import BuildPlan, ShardTask, plan_build
from msldata.engine import run_tasks
from msldata.errors import BadInputError, UserError
from msldata.format import (
    IMAGES,
    MANIFEST_NAME,
    Manifest,
    encode_json,
    index_name,
    write_manifest,
)
from msldata.resize import Resize
from msldata.samples import SampleMaker
from msldata.shardwriter import ShardWriter
from msldata.storage import Storage

__all__ = ["BuildPlan", "build_shards", "plan_build"]

OnError = Literal["fail", "skip"]


@dataclass(frozen=True)
class _Job:
    """What a worker needs to write one shard."""

    task: ShardTask
    images: Storage
    out: Storage
    classes: tuple[str, ...]
    plan: str
    on_error: OnError
    resize: Resize | None


def build_shards(
    plan: BuildPlan,
    out: Storage,
    *,
    num_workers: int | None = None,
    on_error: OnError = "fail",
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Write the shards of a plan and, last of all, the manifest.

    Equal plans over equal images give equal bytes, with any number of workers and however often the build was
    interrupted: shards that are complete are kept, the rest is written. When the plan is finished already, nothing is
    done. A shard that left images out is tried again as long as there is no manifest.

    Args:
        plan: from ``plan_build``.
        out: the split's folder, local or remote.
        num_workers: processes; default: one per available processor.
        on_error: ``fail`` stops at the first unusable image; ``skip`` leaves it out, lists it with the reason in
            ``quarantine.jsonl`` and counts it in the manifest.
        overwrite: delete what another build left in the folder.
        progress: called with (samples done, samples in all).

    Raises:
        BadInputError: an unusable image, with ``on_error="fail"``. StorageError: ``out`` cannot be written.
        UserError: the folder holds other shards or is being written by another build, or no image was usable.
    """
    if on_error not in ("fail", "skip"):
        raise UserError(f"on_error is '{on_error}'; known are: fail, skip")
    folder = BuildFolder(out, [task.name for task in plan.shards], plan.digest)
    with folder.claim():
        if overwrite:
            folder.clear()
        manifest = folder.finished_manifest()
        if manifest is not None:
            return manifest
        kept = {name: shard for name, shard in folder.finished_shards().items() if not shard.report["quarantined"]}
        # Both speak of a whole dataset; until the last shard is there, this is none.
        out.delete(MANIFEST_NAME)
        out.delete(QUARANTINE_NAME)
        tasks = [task for task in plan.shards if task.name not in kept]
        done = plan.num_samples - sum(task.num_samples for task in tasks)

        def report_progress(shard: FinishedShard) -> None:
            nonlocal done
            done += shard.report["num_planned"]
            if progress is not None:
                progress(done, plan.num_samples)

        if progress is not None:
            progress(done, plan.num_samples)
        jobs = [_Job(task, plan.images, out, plan.classes, plan.digest, on_error, plan.resize) for task in tasks]
        written = run_tasks(_write_shard, jobs, num_workers, report_progress)
        finished = kept | dict(zip((task.name for task in tasks), written, strict=True))
        return _finish(plan, out, [finished[task.name] for task in plan.shards])


def _finish(plan: BuildPlan, out: Storage, shards: Sequence[FinishedShard]) -> Manifest:
    """Publish the ledger of bad images and the manifest of all shards together."""
    reports = [shard.report for shard in shards]
    quarantined = [entry for report in reports for entry in report["quarantined"]]
    if quarantined:
        out.put(QUARANTINE_NAME, b"".join(encode_json(entry) + b"\n" for entry in quarantined))
    infos = tuple(shard.info for shard in shards if shard.info is not None)
    if not infos:
        raise UserError(
            f"{plan.images.url}: none of the {len(quarantined)} images is usable; {out.where(QUARANTINE_NAME)} lists "
            "the reasons"
        )
    positive = [sum(counts) for counts in zip(*(report["positive"] for report in reports), strict=True)]
    ignored = [sum(counts) for counts in zip(*(report["ignored"] for report in reports), strict=True)]
    manifest = Manifest(
        kind=IMAGES,
        dataset=plan.dataset,
        split=plan.split,
        classes=plan.classes,
        shards=infos,
        label_histogram={
            name: {"positive": positive[index], "ignored": ignored[index]} for index, name in enumerate(plan.classes)
        },
        counts={
            **plan.counts,
            "objects": sum(report["objects"] for report in reports),
            "ignored_labels": sum(ignored),
            "transcoded": sum(report["transcoded"] for report in reports),
            "quarantined": len(quarantined),
        },
        options=plan.options,
        provenance=plan.provenance,
        licence=plan.licence,
        plan=plan.digest,
    )
    write_manifest(out, manifest)
    return manifest


def _write_shard(job: _Job) -> FinishedShard:
    """Write one shard; runs in a worker. Doing it twice gives the same bytes twice."""
    positive = [0] * len(job.classes)
    ignored = [0] * len(job.classes)
    transcoded = num_objects = 0
    quarantined: list[dict[str, str]] = []
    info = None
    maker = SampleMaker(job.images, job.classes, job.resize)
    with ShardWriter(job.out, job.task.name, kind=IMAGES, plan=job.plan) as writer:
        for record in job.task.records():
            try:
                sample = maker.make(record)
            except BadInputError as error:
                if job.on_error == "fail":
                    raise
                quarantined.append({"file": record.image, "reason": error.reason})
                continue
            writer.add(record.key, sample.members, sample.row)
            for index in record.positives:
                positive[index] += 1
            for index in record.ignored:
                ignored[index] += 1
            transcoded += sample.transcoded
            num_objects += len(record.objects)
        report = {
            "num_planned": job.task.num_samples,
            "objects": num_objects,
            "positive": positive,
            "ignored": ignored,
            "transcoded": transcoded,
            "quarantined": quarantined,
        }
        if writer.num_samples:
            info = writer.publish(report)
        else:
            # An empty tar breaks readers; files of an earlier build must not stand in for it.
            job.out.delete(index_name(job.task.name))
            job.out.delete(job.task.name)
    return FinishedShard(info, report)
