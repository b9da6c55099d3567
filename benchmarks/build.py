"""How fast photographs become shards, against copying the same files with ``tar`` and against webdataset's writer.

Usage: python benchmarks/build.py [--images 8000] [--rounds 5] [--workers 2]

The VOC photographs of the real sample (MSL_SAMPLE, default ../shared/sample) and their XML files are repeated under new
names in a temporary folder. Contenders take turns, so that a busy machine slows all of them; medians over the rounds
are compared. Every contender reads each photograph once and writes all of them once.

tar            ``tar cf`` of the photographs; the bytes may still be in memory when it returns
tar, synced    the same, and the file forced to disk, as ours is
webdataset     one process, ``webdataset.ShardWriter``: photograph, JSON and target of records read beforehand
ours, N        build_shards with N workers, their start, checksums, indices and manifest included; the plan is read
               beforehand
plan           reading the image list and all XML files, which every build does once
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from msldata.build_shards import BuildPlan, build_shards, plan_build
from msldata.sources import open_source
from msldata.storage import open_storage


def repeat_photographs(sample: Path, folder: Path, num_images: int) -> Path:
    """A VOC2007 folder with ``num_images`` images in its list ``test``: links to copies of the sample's."""
    voc = folder / "VOC2007"
    originals = sorted((sample / "VOCdevkit" / "VOC2007" / "JPEGImages").glob("*.jpg"))
    for name in ("JPEGImages", "Annotations", "ImageSets/Main", "originals"):
        (voc / name).mkdir(parents=True)
    for path in originals:
        shutil.copyfile(path, voc / "originals" / path.name)
        xml = path.parent.parent / "Annotations" / f"{path.stem}.xml"
        shutil.copyfile(xml, voc / "originals" / xml.name)
    ids = []
    for number in range(num_images):
        stem = originals[number % len(originals)].stem
        ids.append(f"{number:08d}")
        (voc / "JPEGImages" / f"{ids[-1]}.jpg").hardlink_to(voc / "originals" / f"{stem}.jpg")
        (voc / "Annotations" / f"{ids[-1]}.xml").hardlink_to(voc / "originals" / f"{stem}.xml")
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


def main() -> None:
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    sample = Path(os.environ.get("MSL_SAMPLE", Path(__file__).resolve().parents[2] / "shared" / "sample"))
    with tempfile.TemporaryDirectory(prefix="msl-bench-") as scratch:
        voc = repeat_photographs(sample, Path(scratch), arguments.images)
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
        for _ in range(arguments.rounds):
            for name, run in contenders.items():
                shutil.rmtree(out, ignore_errors=True)
                os.sync()  # what an earlier contender left to write must not slow this one
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)
        size = plan.image_bytes() or 0
    table = Table("contender", "seconds", "microseconds a sample", "MB/s", "times tar", "times tar, synced")
    median = {name: statistics.median(times) for name, times in seconds.items()}
    for name, value in median.items():
        ratios = [
            statistics.median(a / b for a, b in zip(seconds[name], seconds[base])) for base in ("tar", "tar, synced")
        ]
        each = value / arguments.images * 1e6
        table.add_row(name, f"{value:.2f}", f"{each:.0f}", f"{size / value / 1e6:.0f}", *(f"{r:.2f}" for r in ratios))
    console = Console(width=110)
    console.print(
        f"{arguments.images:,} photographs, {size / 1e6:,.0f} MB, medians of {arguments.rounds} alternating rounds, "
        f"{os.cpu_count()} processors"
    )
    console.print(table)


if __name__ == "__main__":
    main()
