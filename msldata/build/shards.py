"""Plan → shards → manifest: the resumable build of an image dataset."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Literal

from msldata.build.folder import QUARANTINE_NAME, BuildFolder, FinishedShard
from msldata.build.image import Resize
from msldata.build.missing import refuse_missing
from msldata.build.plan import (
    BuildPlan,
    Ledger,
    ShardTask,
    collector_paused,
    digest_sizes,
    join_sizes,
    plan_build,
    refuse_too_many,
)
from msldata.build.sample import Sample, SampleMaker, with_others
from msldata.build.writer import ShardWriter
from msldata.contract.manifest import IMAGES, MANIFEST_NAME, Manifest, Shards, index_name
from msldata.contract.records import Record, quoted
from msldata.errors import BadInputError, OptionsNeeded, UserError
from msldata.storage import Location, Storage, clear_local_errors, read_local
from msldata.workers.engine import LOCAL, Engine, run_tasks
from msldata.workers.processes import available_cpus

__all__ = ["BuildPlan", "Part", "build_part", "build_shards", "finish_build", "plan_build"]

OnError = Literal["fail", "skip"]
Progress = Callable[[int, int], None]

_AHEAD = 2
"""Images of a shard, for each of its threads, that may wait to be written."""
_SHOWN_COMMANDS = 10
_SIZES = "image_sizes_sha256"
_RARE = ("turned_upright", "stated_size_differs")
"""Counts that the manifest holds only when they are not zero."""


@dataclass(frozen=True, slots=True)
class Part:
    """One of ``num_parts`` equal parts of a build, counted from 1. Raises UserError unless 1 ≤ number ≤ num_parts."""

    number: int
    num_parts: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.num_parts:
            raise UserError(f"--task {self.number}/{self.num_parts}: tasks are numbered from 1/N to N/N")

    @classmethod
    def parse(cls, text: str) -> Part:
        """The part that ``3/8`` names."""
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        if match is None:
            raise UserError(f"--task {text}: expected I/N, for example 3/8 for the third of eight")
        return cls(int(match[1]), int(match[2]))

    def of(self, tasks: Sequence[ShardTask]) -> Sequence[ShardTask]:
        """Every ``num_parts``-th task, so that parts differ by at most one task."""
        return tasks[self.number - 1 :: self.num_parts]


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
    decode: bool
    num_threads: int
    """Threads that prepare its images."""


def build_shards(
    plan: BuildPlan,
    out: Location | Storage,
    *,
    num_workers: int | None = None,
    on_error: OnError = "fail",
    overwrite: bool = False,
    progress: Progress | None = None,
    engine: Engine = LOCAL,
) -> Manifest:
    """Write the shards of a plan and, last of all, the manifest.

    Equal plans over equal images give equal bytes, with any number of workers and however often the build was
    interrupted: complete shards are kept, the rest are written. When the plan is finished already, nothing is done. A
    shard that left images out is tried again for as long as there is no manifest.

    Args:
        plan: from ``plan_build``.
        out: the split's folder, local or remote.
        num_workers: processes; default: one per available processor. Where there are fewer shards than that, threads
            share the images of each.
        on_error: ``fail`` stops at the first shard with unusable images and names all local ones; ``skip``
            leaves them out, lists them with the reason in ``quarantine.jsonl`` and counts them in the manifest.
        overwrite: delete what another build left in the folder.
        progress: called with (samples done, samples in all).
        engine: what runs the workers.

    Raises:
        BadInputError: an unusable image, with ``on_error="fail"``. StorageError: ``out`` cannot be written.
        UserError: the folder holds other shards or is being written by another build, or no image was usable.
    """
    folder = _folder(plan, out)
    with folder.claim():
        if overwrite:
            if on_error == "fail":
                refuse_missing([(plan.images, name) for task in plan.shards for name in task.missing])
            folder.clear()
        manifest = folder.finished_manifest()
        if manifest is not None:
            _refuse_changed_images(plan, folder.out, manifest)
            return manifest
        finished = _write_missing(plan, plan.shards, folder, num_workers, on_error, progress, engine)
        return _finish(plan, folder, finished)


def build_part(
    plan: BuildPlan,
    out: Location | Storage,
    part: Part,
    *,
    num_workers: int | None = None,
    on_error: OnError = "fail",
    progress: Progress | None = None,
    engine: Engine = LOCAL,
) -> None:
    """Write one part's shards of a plan, without the manifest; ``finish_build`` adds it when all parts are there.

    Any number of parts can be written at the same time, on any number of machines, and any part can be repeated.

    Args:
        part: which shards; the other arguments are those of ``build_shards``.

    Raises:
        As ``build_shards`` does; also UserError when an ordinary build is writing into the folder.
    """
    folder = _folder(plan, out, can_start_over=False)
    with folder.claim(shared=True):
        if folder.finished_manifest() is not None:
            return
        written = _write_missing(plan, part.of(plan.shards), folder, num_workers, on_error, progress, engine)
        for name, shard in written.items():
            if shard.info is None:
                folder.note_unusable(name, shard.report)


def finish_build(plan: BuildPlan, out: Location | Storage, command: str = "msl build-shards …") -> Manifest:
    """Publish a dataset whose parts are all written: the same bytes as a single build would have made.

    Args:
        command: the command line of the build, without its part, for the error's advice.

    Raises:
        UserError: shards are missing (the message holds a command for each), no image was usable, the folder holds
            other shards, or a build or part is still writing into it.
    """
    folder = _folder(plan, out, can_start_over=False)
    with folder.claim():
        manifest = folder.finished_manifest()
        if manifest is not None:
            return manifest
        finished = {**folder.unusable_shards(), **folder.finished_shards()}
        missing = [number for number, task in enumerate(plan.shards) if task.name not in finished]
        if missing:
            num_shards = len(plan.shards)
            shown = [
                f"  {command} --task {number + 1}/{num_shards}    # {plan.shards[number].name}"
                for number in missing[:_SHOWN_COMMANDS]
            ]
            more = [f"  … and {len(missing) - len(shown):,} more"] if len(missing) > len(shown) else []
            raise UserError(
                "\n".join(
                    [
                        f"{folder.out.url}: {len(missing):,} of {num_shards:,} shards are missing; each of these "
                        "commands writes one of them:",
                        *shown,
                        *more,
                        f"or write them all here, manifest included: {command}",
                    ]
                )
            )
        return _finish(plan, folder, finished)


def _folder(plan: BuildPlan, out: Location | Storage, *, can_start_over: bool = True) -> BuildFolder:
    return BuildFolder(out, [task.name for task in plan.shards], plan.digest, can_start_over=can_start_over)


def check_images(
    plans: Sequence[tuple[BuildPlan, Storage]],
    *,
    on_error: OnError = "fail",
    overwrite: bool = False,
    part: Part | None = None,
) -> None:
    """Look for the images of several splits on this machine, before any of the splits is written.

    Args:
        plans: each with its folder.
        on_error, overwrite, part: what they will be built with; ``part`` None: all of each.

    Raises:
        UserError: images are missing: the first are named. With ``skip``, more than may be left out.
    """
    absent: list[tuple[Storage, str]] = []
    for plan, out in plans:
        tasks = plan.shards if part is None else part.of(plan.shards)
        if not any(task.missing for task in tasks):
            continue
        folder = _folder(plan, out, can_start_over=part is None)
        if not overwrite and folder.finished_manifest() is not None:
            continue  # nothing is read again
        kept = {} if overwrite else kept_shards(tasks, folder)
        missing = [name for task in tasks if task.name not in kept for name in task.missing]
        absent += [(plan.images, name) for name in missing]
        if on_error == "skip" and part is None:
            entries = [{"file": name, "reason": "the image is missing"} for name in missing]
            num_planned = plan.num_samples + len(plan.quarantined)
            refuse_too_many([*plan.quarantined, *entries], num_planned, plan.skip_limit, plan.images.url)
    if on_error == "fail":
        refuse_missing(absent)


def kept_shards(tasks: Sequence[ShardTask], folder: BuildFolder) -> dict[str, FinishedShard]:
    """The shards of ``tasks`` that a build does not write again.

    They are complete, left nothing out, and are of images of the sizes that these have.
    """
    found = folder.finished_shards([task.name for task in tasks])
    sizes = {task.name: task.image_sizes for task in tasks}
    return {
        name: shard
        for name, shard in found.items()
        if not shard.report["quarantined"] and sizes[name] in ("", shard.report.get("image_sizes", sizes[name]))
    }


def is_finished(plan: BuildPlan, out: Storage) -> bool:
    """Whether this very plan is finished in a folder, with all of its files: then a build changes nothing there.

    Raises:
        UserError: the folder holds a dataset that was built from something else.
    """
    return _folder(plan, out).finished_manifest() is not None


def mark_unfinished(folders: Iterable[Storage]) -> None:
    """Make the folders of splits that are still to be built: one without a manifest says that its build did not end."""
    for folder in folders:
        if (path := folder.path()) is not None:
            with clear_local_errors(str(path)):
                path.mkdir(parents=True, exist_ok=True)


def changed_since_built(plan: BuildPlan, out: Storage) -> str:
    """An image that is newer than the finished dataset in a local folder; empty if there is none."""
    manifest = out.path(MANIFEST_NAME)
    changed, name = plan.newest_image
    return name if manifest is not None and manifest.exists() and changed > manifest.stat().st_mtime_ns else ""


def refuse_other_classes(plan: BuildPlan, out: Storage, replaced: Collection[str] = ()) -> None:
    """Raise UserError when another split of the same dataset was built with other classes, or in another order.

    Its targets would mean something else under the same name. ``replaced`` are the splits that are built anew as well.
    """
    folder = out.path()
    if folder is None:
        return
    for place in sorted(folder.parent.glob(f"*/{MANIFEST_NAME}")):
        if place.parent.name in {folder.name, *replaced}:
            continue
        try:
            other = Manifest.from_json(read_local(place), str(place))
        except UserError:  # from another program, or damaged: not one of ours
            continue
        if other.kind != IMAGES or other.dataset != plan.dataset or other.classes == plan.classes:
            continue
        raise _other_classes(plan.classes, other.classes, out.url, str(place.parent))


def refuse_unlike_classes(plans: Sequence[tuple[BuildPlan, Storage]]) -> None:
    """Raise UserError when splits that are built together have other classes, or in another order."""
    for plan, out in plans[1:]:
        (first, beside), *_ = plans
        if plan.classes != first.classes:
            raise _other_classes(plan.classes, first.classes, out.url, beside.url)


def _other_classes(here: Sequence[str], there: Sequence[str], where: str, beside: str) -> UserError:
    only = {"here": sorted({*here} - {*there}), "there": sorted({*there} - {*here})}
    differences = [f"{quoted(names)} only {side}" for side, names in only.items() if names]
    if not differences:
        pairs = enumerate(zip(there, here))
        number, (theirs, ours) = next((n, pair) for n, pair in pairs if pair[0] != pair[1])
        differences = [f"number {number} is {theirs!r} there and {ours!r} here"]
    return UserError(
        f"{where}: its classes are not those of {beside}, a split of the same dataset: {', '.join(differences)}; give "
        "both the same --classes FILE, call one otherwise with --name, or build all splits anew with --overwrite"
    )


def _refuse_changed_images(plan: BuildPlan, out: Storage, manifest: Manifest) -> None:
    if plan.image_sizes not in ("", manifest.provenance.get(_SIZES, plan.image_sizes)):
        raise OptionsNeeded(
            f"{out.url}: image files have other sizes than when this dataset was built from them",
            ["--overwrite"],
            "to build it anew",
        )


def _write_missing(
    plan: BuildPlan,
    tasks: Sequence[ShardTask],
    folder: BuildFolder,
    num_workers: int | None,
    on_error: OnError,
    progress: Progress | None,
    engine: Engine,
) -> dict[str, FinishedShard]:
    """Write the ``tasks`` that are not complete yet; returns the shards of all tasks by name."""
    if on_error not in ("fail", "skip"):
        raise UserError(f"on_error is '{on_error}'; known are: fail, skip")
    kept = kept_shards(tasks, folder)
    if on_error == "fail":
        refuse_missing([(plan.images, name) for task in tasks if task.name not in kept for name in task.missing])
    folder.withdraw()
    missing = [task for task in tasks if task.name not in kept]
    total = sum(task.num_samples for task in tasks)
    done = total - sum(task.num_samples for task in missing)

    def report_progress(shard: FinishedShard) -> None:
        nonlocal done
        done += shard.report["num_planned"]
        if progress is not None:
            progress(done, total)

    if progress is not None:
        progress(done, total)
    num_threads_N = _threads(plan, len(missing), num_workers) if engine.name == LOCAL.name else [1] * len(missing)
    jobs = [
        _Job(task, plan.images, folder.out, plan.classes, plan.digest, on_error, plan.resize, plan.decode, num_threads)
        for task, num_threads in zip(missing, num_threads_N, strict=True)
    ]
    written = run_tasks(_write_shard, jobs, num_workers, report_progress, engine)
    return kept | dict(zip((task.name for task in missing), written, strict=True))


def _threads(plan: BuildPlan, num_jobs: int, num_workers: int | None) -> list[int]:
    """Threads for each of the shards to write, so that those left over at the end keep every worker's processor busy.

    Where images are only read and copied, threads would gain nothing.
    """
    num_workers = max(1, num_workers or available_cpus())
    num_left_over = num_jobs % num_workers if plan.decode or plan.resize is not None else 0
    if not num_left_over:
        return [1] * num_jobs
    return [1] * (num_jobs - num_left_over) + [-(-num_workers // num_left_over)] * num_left_over


def _finish(plan: BuildPlan, folder: BuildFolder, finished: Mapping[str, FinishedShard]) -> Manifest:
    """Publish the ledger of bad images and the manifest of all shards together."""
    shards = [finished[task.name] for task in plan.shards]
    reports = [shard.report for shard in shards]
    quarantined = [*plan.quarantined, *(entry for report in reports for entry in report["quarantined"])]
    infos = Shards(shard.info for shard in shards if shard.info is not None)
    if not infos:
        folder.list_quarantined(quarantined)
        none = f"none of the {len(quarantined):,} images is" if len(quarantined) > 1 else "the only image is not"
        raise UserError(f"{plan.images.url}: {none} usable; {folder.out.where(QUARANTINE_NAME)} lists the reasons")
    num_planned = plan.num_samples + len(plan.quarantined)
    refuse_too_many(quarantined, num_planned, plan.skip_limit, plan.images.url)
    labels = label_histogram(plan.classes, reports)
    manifest = replace(
        plan.draft(),
        shards=infos,
        label_histogram=labels,
        counts={
            **plan.counts,
            "objects": sum(report["objects"] for report in reports),
            "ignored_labels": sum(counts["ignored"] for counts in labels.values()),
            "transcoded": sum(report["transcoded"] for report in reports),
            "quarantined": len(quarantined),
            **{name: number for name in _RARE if (number := sum(report.get(name, 0) for report in reports))},
        },
        provenance={**plan.draft().provenance, _SIZES: join_sizes(report.get("image_sizes", "") for report in reports)},
    )
    folder.publish(manifest, quarantined)
    return manifest


def label_histogram(classes: Sequence[str], reports: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Positive and ignored samples of each class, from the reports of all shards."""
    positive, ignored = (
        [sum(counts) for counts in zip(*(report[column] for report in reports), strict=True)]
        for column in ("positive", "ignored")
    )
    return {name: {"positive": positive[k], "ignored": ignored[k]} for k, name in enumerate(classes)}


def _samples(job: _Job) -> Iterator[tuple[Record, Sample | BadInputError, int]]:
    """A shard's records in order, what each became, and the size of its image file."""
    maker = SampleMaker(job.images, job.classes, job.resize, decode=job.decode)

    def make(record: Record, maker: SampleMaker) -> tuple[Record, Sample | BadInputError, int]:
        try:
            return record, maker.make(record), maker.num_bytes_read
        except BadInputError as error:
            return record, error, maker.num_bytes_read

    if job.num_threads == 1:
        for record in job.task.records():
            yield make(record, maker)
        return
    ahead: deque[Future] = deque()
    with ThreadPoolExecutor(job.num_threads) as threads:
        try:
            for record in job.task.records():
                ahead.append(threads.submit(make, record, copy(maker)))  # it holds the size of the last file
                if len(ahead) > _AHEAD * job.num_threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            threads.shutdown(cancel_futures=True)


def _write_shard(job: _Job) -> FinishedShard:
    """Write one shard; runs in a worker. Doing it twice gives the same bytes twice."""
    positive = [0] * len(job.classes)
    ignored = [0] * len(job.classes)
    transcoded = num_objects = 0
    rare = dict.fromkeys(_RARE, 0)
    sizes = []
    ledger = Ledger(job.images, job.on_error)
    info = None
    with collector_paused(), ShardWriter(job.out, job.task.name, kind=IMAGES, plan=job.plan) as writer:
        for record, sample, num_bytes in (made := _samples(job)):
            sizes.append(num_bytes)
            if isinstance(sample, BadInputError):
                if job.on_error == "fail":
                    raise with_others(sample, (other for _, other, _ in made), job.images)
                ledger.add(sample)
                continue
            writer.add(record.key, sample.members, sample.row)
            for index in record.positives:
                positive[index] += 1
            for index in record.ignored:
                ignored[index] += 1
            transcoded += sample.transcoded
            rare["turned_upright"] += sample.turned
            rare["stated_size_differs"] += sample.size_differs
            num_objects += len(record.objects)
        report = {
            "num_planned": job.task.num_samples,
            "objects": num_objects,
            "positive": positive,
            "ignored": ignored,
            "transcoded": transcoded,
            "quarantined": ledger.entries,
            "image_sizes": digest_sizes(sizes),
            **rare,
        }
        if writer.num_samples:
            info = writer.publish(report)
        else:
            # An empty tar breaks readers; files of an earlier build must not stand in for it.
            job.out.delete(index_name(job.task.name))
            job.out.delete(job.task.name)
    return FinishedShard(info, report)
