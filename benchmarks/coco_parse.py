"""How long, and in how much memory, a COCO annotation file of full size becomes a plan.

Usage: python benchmarks/coco_parse.py [--images 82783] [--annotations 604907]

The file is generated: image and annotation entries with the fields of ``instances_train2014.json``, and segments of as
many numbers as there on average, which makes it as large (about 450 MB). The plan is made in a process of its own, so
that the peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

NUM_CATEGORIES = 80
NUMBERS_PER_SEGMENT = 74  # what makes the file 450 MB


def plan(folder: Path) -> None:
    """Print what planning the dataset took, as JSON."""
    from msldata.build.plan import plan_build
    from msldata.sources.kinds import open_source

    start = time.perf_counter()
    source = open_source("coco2014", folder, "train")
    opened = time.perf_counter()
    planned = plan_build(source)
    end = time.perf_counter()
    found = {
        "open_seconds": opened - start,
        "seconds": end - start,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "samples": planned.num_samples,
        "objects": sum(len(record.objects) for shard in planned.shards for record in shard.records()),
        "plan_mb": sum(len(shard.packed) for shard in planned.shards) / 1e6,
    }
    print(json.dumps(found))


def write_annotations(path: Path, num_images: int, num_annotations: int) -> None:
    """A COCO instances file, written piece by piece; every image but a few at the end has an annotation."""
    draw = random.Random(0)
    num_annotated = num_images * 82081 // 82783
    with open(path, "w", encoding="utf-8") as file:
        file.write('{"info": {"year": 2014}, "licenses": [{"id": 1, "name": "none", "url": ""}], "images": [')
        for number in range(num_images):
            image = {
                "license": 1 + number % 8,
                "file_name": f"COCO_train2014_{number:012d}.jpg",
                "coco_url": f"http://images.cocodataset.org/train2014/COCO_train2014_{number:012d}.jpg",
                "height": 480,
                "width": 640,
                "date_captured": "2013-11-14 16:28:13",
                "flickr_url": f"http://farm9.staticflickr.com/8186/{number:010d}_76f31530ff_z.jpg",
                "id": number,
            }
            file.write((", " if number else "") + json.dumps(image))
        file.write('], "annotations": [')
        for number in range(num_annotations):
            crowd = number % 80 == 79
            numbers = [round(draw.uniform(0, 640), 2) for _ in range(NUMBERS_PER_SEGMENT)]
            counts = [draw.randrange(1, 3000) for _ in range(NUMBERS_PER_SEGMENT)]
            annotation = {
                "segmentation": {"counts": counts, "size": [480, 640]} if crowd else [numbers],
                "area": round(draw.uniform(10, 100000), 4),
                "iscrowd": int(crowd),
                "image_id": number % num_annotated,
                "bbox": [round(draw.uniform(1, 300), 2) for _ in range(4)],
                "category_id": 1 + draw.randrange(NUM_CATEGORIES),
                "id": 1000 + number,
            }
            file.write((", " if number else "") + json.dumps(annotation))
        categories = [{"supercategory": "thing", "id": 1 + k, "name": f"class {k}"} for k in range(NUM_CATEGORIES)]
        file.write('], "categories": ' + json.dumps(categories) + "}")


def measure(folder: Path) -> dict[str, float]:
    """Plan the dataset in ``folder`` in a fresh process: seconds, peak memory in MB, samples, objects."""
    command = [sys.executable, __file__, "--plan", str(folder)]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(answer.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=82_783)
    parser.add_argument("--annotations", type=int, default=604_907)
    parser.add_argument("--plan", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plan:
        plan(arguments.plan)
        return
    with tempfile.TemporaryDirectory(prefix="msl-bench-") as scratch:
        root = Path(scratch)
        (root / "annotations").mkdir()
        (root / "train2014").mkdir()
        path = root / "annotations" / "instances_train2014.json"
        write_annotations(path, arguments.images, arguments.annotations)
        found = measure(root)
        print(
            f"{path.stat().st_size / 1e6:,.0f} MB, {found['samples']:,} samples, {found['objects']:,} objects: "
            f"{found['seconds']:.1f} s ({found['open_seconds']:.1f} s of it to read the file), "
            f"peak {found['peak_mb']:,.0f} MB, plan {found['plan_mb']:,.0f} MB"
        )


if __name__ == "__main__":
    main()
