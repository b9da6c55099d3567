"""How fast masks become shards: a folder of PNG masks, read, measured, split and written.

Usage: python benchmarks/masks.py FOLDER [--count 12000] [--num-workers 2]

FOLDER holds mask files; they are repeated under new names (as links) until there are ``--count`` of them. Prints one
line of JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

from msldata.build_masks import build_masks
from msldata.masksources import GeneratedMasks, open_mask_source
from msldata.storage import open_storage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
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
        options = {"per_subset": 0, "num_workers": arguments.num_workers}
        started = time.perf_counter()
        manifests = build_masks(open_mask_source(masks), out, **options).manifests
        built = time.perf_counter()
        build_masks(open_mask_source(masks), out, **options)
        repeated = time.perf_counter()
        num_bytes = sum(shard.num_bytes for manifest in manifests.values() for shard in manifest.shards)
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
                "generate_milliseconds_per_mask": round((finished - repeated) * 10, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
