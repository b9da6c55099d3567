"""How fast photographs become shards, against copying the same files with ``tar`` and against webdataset's writer.

Usage: python benchmarks/build.py [--images 8000] [--rounds 5] [--workers 2]

The VOC photographs of the real sample (MSL_SAMPLE, default ../shared/sample) and their XML files are copied under new
names, again and again, into a temporary folder. Contenders take turns, so that a busy machine slows all of them;
medians over the rounds are compared. Every contender reads each photograph once and writes all of them once.

tar            ``tar cf`` of the photographs; the bytes may still be in memory when it returns
tar, synced    the same, and the file forced to disk, as ours is
webdataset     one process, ``webdataset.ShardWriter``: photograph, JSON and target of records read beforehand
ours, N        build_shards with N workers, their start, checksums, indices and manifest included, everything forced to
               disk; the plan is read beforehand. The process that workers are forked from lives on from round to
               round; the command starts it while it reads the annotations
plan           reading the image list and all XML files, which every build does once
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from msldata.build.shards import BuildPlan, build_shards, plan_build
from msldata.sources.kinds import open_source
from msldata.storage import open_storage


def sample_folder() -> Path:
    """The real sample."""
    return Path(os.environ.get("MSL_SAMPLE", Path(__file__).resolve().parents[2] / "shared" / "sample"))


def repeat_photographs(sample: Path, folder: Path, num_images: int) -> Path:
    """A VOC2007 folder with ``num_images`` images in its list ``test``.

    They are copies, not links: tar stores a second link to a file without its bytes.
    """
    voc = folder / "VOC2007"
    originals = sample / "VOCdevkit" / "VOC2007"
    stems = sorted(path.stem for path in (originals / "JPEGImages").glob("*.jpg"))
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (voc / name).mkdir(parents=True)
    ids = [f"{number:08d}" for number in range(num_images)]
    for number, image_id in enumerate(ids):
        stem = stems[number % len(stems)]
        shutil.copyfile(originals / "JPEGImages" / f"{stem}.jpg", voc / "JPEGImages" / f"{image_id}.jpg")
        shutil.copyfile(originals / "Annotations" / f"{stem}.xml", voc / "Annotations" / f"{image_id}.xml")
    (voc / "ImageSets" / "Main" / "test.txt").write_text("\n".join(ids))
    return voc


def tar(voc: Path, out: Path, sync: bool) -> None:
    out.mkdir()
    subprocess.run(["tar", "cf", out / "all.tar", "-C", voc, "JPEGImages"], check=True)
    if sync:
        with open(out / "all.tar", "rb") as file:
            os.fsync(file.fileno())


def write_with_webdataset(plan: BuildPlan, out: Path) -> None:
    import numpy as np
    import webdataset

    out.mkdir()
    root = plan.images.path()
    assert root is not None
    with webdataset.ShardWriter(str(out / "%06d.tar"), maxcount=1000, verbose=0) as writer:
        for shard in plan.shards:
            for record in shard.records():
                target = np.zeros(len(plan.classes), dtype=np.uint8)
                target[list(record.positives)] = 1
                sample = {
                    "__key__": record.key,
                    "jpg": (root / record.image).read_bytes(),
                    "json": {"image_id": record.image_id, "labels": [plan.classes[k] for k in record.positives]},
                    "target.npy": target,
                }
                writer.write(sample)


def cpu_time() -> float:
    """Processor seconds of this process and of the children that it waited for: fair also on a busy machine."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def main() -> None:
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="msl-bench-") as scratch:
        voc = repeat_photographs(sample_folder(), Path(scratch), arguments.images)
        out = Path(scratch, "out")
        plan = plan_build(open_source("voc2007", voc, "test"))
        contenders: dict[str, Callable[[], object]] = {
            "tar": lambda: tar(voc, out, sync=False),
            "tar, synced": lambda: tar(voc, out, sync=True),
            "webdataset": lambda: write_with_webdataset(plan, out),
            "ours, 1 worker": lambda: build_shards(plan, open_storage(out), num_workers=1),
            f"ours, {arguments.workers} workers": lambda: build_shards(
                plan, open_storage(out), num_workers=arguments.workers
            ),
            "plan": lambda: plan_build(open_source("voc2007", voc, "test")),
        }
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        cpu_seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(arguments.rounds):
            for name, run in contenders.items():
                shutil.rmtree(out, ignore_errors=True)
                os.sync()  # what an earlier contender left to write must not slow this one
                start, start_cpu = time.perf_counter(), cpu_time()
                run()
                seconds[name].append(time.perf_counter() - start)
                cpu_seconds[name].append(cpu_time() - start_cpu)
        images = {voc / record.image for task in plan.shards for record in task.records()}
        size = sum(path.stat().st_size for path in images)
    table = Table("contender", "seconds", "µs a sample", "CPU µs a sample", "times tar", "times tar, synced")
    for name, times in seconds.items():
        value = statistics.median(times)
        # Worker processes are not this process's own children: their processor time is not known here.
        cpu = "–" if "workers" in name else f"{statistics.median(cpu_seconds[name]) / arguments.images * 1e6:.0f}"
        ratios = [statistics.median(a / b for a, b in zip(times, seconds[base])) for base in ("tar", "tar, synced")]
        table.add_row(
            name, f"{value:.2f}", f"{value / arguments.images * 1e6:.0f}", cpu, *(f"{ratio:.2f}" for ratio in ratios)
        )
    console = Console(width=110)
    console.print(
        f"{arguments.images:,} photographs, {size / 1e6:,.0f} MB, medians of {arguments.rounds} alternating rounds, "
        f"{os.cpu_count()} processors"
    )
    console.print(table)


if __name__ == "__main__":
    main()
