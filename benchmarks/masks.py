"""How fast masks become shards, and shards a mask bank: read, measured, split, written; then loaded and handed out.

Usage: python benchmarks/masks.py [FOLDER] [--count 12000] [--num-workers 2]

FOLDER holds mask files (default: those of the real sample, MSL_SAMPLE); they are repeated under new names (as links)
until there are ``--count`` of them. Prints one line of JSON. The bank is loaded in a process of its own, so that its
peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from msldata.contract.manifest import Manifest
from msldata.masks.build import write_masks
from msldata.masks.plan import plan_masks
from msldata.masks.sources import GeneratedMasks, open_mask_source
from msldata.storage import Storage, open_storage


def measure_bank(places: list[str]) -> None:
    """Load a bank of all masks at 448×448 and hand out a batch; prints one line of JSON."""
    import torch

    from msltrain.stream.keepmasks.bank import KeepMasks
    from msltrain.stream.order.random import key_hash

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, started_cpu = time.perf_counter(), time.process_time()
    bank = KeepMasks.open(places, 448, "cpu")
    loaded, loaded_cpu = time.perf_counter(), time.process_time()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    torch.set_num_threads(1)
    hashes = key_hash(map(str, range(32)))
    result = {
        "bank_masks": len(bank),
        "bank_seconds": round(loaded - started, 2),
        "bank_cpu_seconds": round(loaded_cpu - started_cpu, 2),
        "bank_peak_megabytes": round(grown),
    }
    for name, augment in (("plain", ()), ("moved", ("flip", "rotate", "shift"))):
        bank._augment = frozenset(augment)
        bank.of_hashes(hashes, seed=0, epoch=0)
        started = time.perf_counter()
        for epoch in range(10):
            bank.of_hashes(hashes, seed=0, epoch=epoch)
        result[f"{name}_milliseconds_per_32"] = round((time.perf_counter() - started) * 100, 1)
    print(json.dumps(result))


def build(masks: Path, out: Storage, num_workers: int) -> Mapping[str, Manifest]:
    """Plan and write, as the command does, all masks that there are."""
    plan = plan_masks(open_mask_source(masks), out, per_subset=0, num_workers=num_workers)
    return write_masks(plan, num_workers=num_workers).manifests


def main() -> None:
    if sys.argv[1:2] == ["--bank"]:
        measure_bank(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sample = Path(os.environ.get("MSL_SAMPLE", Path(__file__).resolve().parents[2] / "shared" / "sample"))
    parser.add_argument("folder", type=Path, nargs="?", default=sample / "irregular_mask")
    parser.add_argument("--count", type=int, default=12000)
    parser.add_argument("--num-workers", type=int, default=2)
    arguments = parser.parse_args()
    originals = sorted(arguments.folder.resolve().rglob("*.png"))
    with tempfile.TemporaryDirectory() as scratch:
        masks = Path(scratch, "masks")
        masks.mkdir()
        for index in range(arguments.count):
            (masks / f"{index:06d}.png").symlink_to(originals[index % len(originals)])
        out = open_storage(Path(scratch, "shards"))
        started = time.perf_counter()
        manifests = build(masks, out, arguments.num_workers)
        built = time.perf_counter()
        build(masks, out, arguments.num_workers)
        repeated = time.perf_counter()
        num_bytes = sum(shard.num_bytes for manifest in manifests.values() for shard in manifest.shards)
        places = [str(Path(scratch, "shards", name)) for name in manifests]
        bank = json.loads(subprocess.run([sys.executable, __file__, "--bank", *places], check=True, stdout=-1).stdout)
        started_generating = time.perf_counter()
        generated = GeneratedMasks(100)
        for name in generated.names():
            generated.read_gray(name)
        finished = time.perf_counter()
    print(
        json.dumps(
            {
                "masks": arguments.count,
                "num_workers": arguments.num_workers,
                "build_seconds": round(built - started, 2),
                "masks_per_second": round(arguments.count / (built - started)),
                "same_command_again_seconds": round(repeated - built, 2),
                "shard_megabytes": round(num_bytes / 1e6, 1),
                "peak_memory_megabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
                "generate_milliseconds_per_mask": round((finished - started_generating) * 10, 1),
                **bank,
            }
        )
    )


if __name__ == "__main__":
    main()
