"""What a build would take, guessed from a few images: nothing is written."""

from __future__ import annotations

import hashlib
import time
import zlib
from dataclasses import dataclass

from msldata.build.folder import BuildFolder
from msldata.build.plan import BuildPlan
from msldata.build.sample import SampleMaker
from msldata.build.shards import kept_shards
from msldata.contract.records import Record
from msldata.contract.tar import tar_member_bytes
from msldata.errors import BadInputError, UserError, counted
from msldata.storage import Location, Storage
from msldata.workers.processes import available_cpus

_NUM_TIMED = 64
_MAX_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class BuildEstimate:
    """How long the missing shards would take, and how large they would be."""

    seconds: float
    num_bytes: int
    """Size of the missing tars."""
    num_finished: int
    """Shards that are complete already."""
    num_timed: int
    """Images that were read and encoded to know the rest."""


def estimate_build(
    plan: BuildPlan, out: Location | Storage, *, num_workers: int | None = None, overwrite: bool = False
) -> BuildEstimate:
    """Read, encode and hash some images of the first missing shards, in memory, and multiply.

    Neither the speed of the destination nor competition for the processors is measured.

    Args:
        plan, out, num_workers, overwrite: as for ``build_shards``.

    Raises:
        UserError: the build would be refused, or none of the images tried can be used.
    """
    folder = BuildFolder(out, [task.name for task in plan.shards], plan.digest)
    names = [task.name for task in plan.shards]
    if not overwrite:
        finished = kept_shards(plan.shards, folder) if folder.finished_manifest() is None else dict.fromkeys(names)
        names = [name for name in names if name not in finished]
    missing = [task for task in plan.shards if task.name in set(names)]
    num_samples = sum(task.num_samples for task in missing)
    if not missing:
        return BuildEstimate(0.0, 0, len(plan.shards), 0)
    records = missing[0].records()
    seconds, sizes = _time(plan, records[:: max(1, len(records) // _NUM_TIMED)][:_NUM_TIMED])
    num_parallel = num_workers or available_cpus()
    if not plan.decode and plan.resize is None:  # then nothing but shards is shared out
        num_parallel = min(num_parallel, len(missing))
    return BuildEstimate(
        seconds=seconds / len(sizes) * num_samples / num_parallel,
        num_bytes=sum(sizes) * num_samples // len(sizes),
        num_finished=len(plan.shards) - len(missing),
        num_timed=len(sizes),
    )


def _time(plan: BuildPlan, records: list[Record]) -> tuple[float, list[int]]:
    """Seconds for all, and the bytes that each usable sample adds to a tar."""
    maker = SampleMaker(plan.images, plan.classes, plan.resize, decode=plan.decode)
    digest = hashlib.sha256()
    sizes = []
    failure: BadInputError | None = None
    start = time.perf_counter()
    for record in records:
        try:
            sample = maker.make(record)
        except BadInputError as error:
            failure = error
            continue
        for _, data in sample.members:
            digest.update(data)
        zlib.crc32(sample.members[0][1])
        sizes.append(sum(tar_member_bytes(len(data)) for _, data in sample.members))
        if time.perf_counter() - start > _MAX_SECONDS:
            break
    if failure is not None and not sizes:
        raise UserError(f"none of the {counted(len(records), 'image')} tried can be used; the last: {failure}")
    return time.perf_counter() - start, sizes
