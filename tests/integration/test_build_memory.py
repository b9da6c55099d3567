"""Memory of a build: bounded by a shard and by the packed plan, not by the number of images."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tinydata import jpeg

REPOSITORY = Path(__file__).resolve().parents[2]
NUM_RECORDS = 100_000
MAX_MB = 300

# A module, because worker processes import it: each says after every shard what its peak is.
MEASURED = """
import json, os, sys
from pathlib import Path
from msldata.build import shards as module
from msldata.contract.records import LabelSpace
from msldata.contract.records import ObjectRecord, Record
from msldata.storage import open_storage

write_shard = module._write_shard

def peak_mb():
    # Not ru_maxrss: that begins with the size of whoever started this process.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024

def write_measured(job):
    shard = write_shard(job)
    Path(os.environ["PEAKS"], str(os.getpid())).write_text(str(peak_mb()))
    return shard

class Many:
    dataset, split, licence = "many", "train", "none"
    labels = LabelSpace(tuple(f"class {index}" for index in range(80)))
    provenance, counts = {}, {}

    def __init__(self, folder, num_records):
        self.images, self.num_records = open_storage(folder), num_records

    def records(self):
        for number in range(self.num_records):
            objects = tuple(
                ObjectRecord(index, (0.125 * index, 2.25, 12.125, 10.5 + number % 3), 1205.0 + number, crowd=False)
                for index in (number % 80, number * 7 % 80)
            )
            positives = tuple(sorted({item.class_index for item in objects}))
            yield Record(f"COCO_train2014_{number:012d}", "one.jpg", positives, (), objects, str(number))

def main(folder, out, num_records):
    module._write_shard = write_measured
    plan = module.plan_build(Many(folder, int(num_records)))
    planned = peak_mb()
    manifest = module.build_shards(plan, open_storage(out), num_workers=2)
    print(json.dumps({"samples": manifest.num_samples, "planned": planned, "parent": peak_mb()}))
"""


def peaks_of_a_build(folder: Path, num_records: int) -> tuple[dict, list[float]]:
    for name in ("images", "peaks"):
        (folder / name).mkdir(parents=True)
    (folder / "images" / "one.jpg").write_bytes(jpeg(0))
    (folder / "measured.py").write_text(MEASURED)
    code = f"import measured; measured.main({str(folder / 'images')!r}, {str(folder / 'out')!r}, {num_records})"
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{folder}", "PEAKS": str(folder / "peaks")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=environment, check=True, stdout=subprocess.PIPE, timeout=300
    )
    return json.loads(done.stdout), [float(path.read_text()) for path in (folder / "peaks").iterdir()]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_hundred_thousand_images_fit_into_little_memory(tmp_path):
    parent, workers = peaks_of_a_build(tmp_path, NUM_RECORDS)
    print(f"peak MB: parent {parent['parent']:.0f} (planned {parent['planned']:.0f}), workers {workers}")
    assert parent["samples"] == NUM_RECORDS
    assert len(workers) == 2
    assert max(parent["parent"], *workers) < MAX_MB
