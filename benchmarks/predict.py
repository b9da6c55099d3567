"""``msl predict`` over many photographs: killed and gone on with, and held against its network fed from memory.

    python benchmarks/predict.py --photos 20000 --kills 5
    python benchmarks/predict.py --photos 0 --real 200 --rounds 3

The first part links a few small photographs under many names, kills the real command with SIGKILL at random moments,
lets the same command finish, and counts how often each name was answered. The second alternates the real command on
photographs of VOC2007 and the same network on batches that lie in memory, by processor time, which other programs on
the machine do not change.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from msltrain.config import ModelConfig, TrainConfig  # noqa: E402
from msltrain.runs.checkpoint import load_recogniser  # noqa: E402
from msltrain.stream.config import StreamConfig  # noqa: E402
from tests.integration.test_evaluate import write_checkpoint  # noqa: E402
from tests.smallshards import CLASSES, photo  # noqa: E402

SAMPLE = Path(os.environ.get("MSL_SAMPLE", REPOSITORY.parent / "shared" / "sample"))


def command(folder: Path, photos: Path, out: str, *more: str) -> list[str]:
    program = [sys.executable, "-P", "-m", "msltrain", "predict", str(photos), "--checkpoint", str(folder / "run")]
    return [*program, "--device", "cpu", "--out", str(folder / out), "--top-k", "1", *more]


def start(words: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        words, env=environment, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def answered(folder: Path) -> int:
    return sum(part.read_bytes().count(b"\n") for part in folder.glob("all.csv.part*"))


def kills(folder: Path, num_photos: int, num_kills: int, processes: int) -> None:
    """Kill, go on, finish; each photograph is answered once."""
    write_checkpoint(
        folder / "run",
        CLASSES,
        config=TrainConfig(stream=StreamConfig(image_size=32), model=ModelConfig(backbone="test_resnet")),
    )
    (folder / "first").mkdir()
    (folder / "photos").mkdir()
    for number in range(num_photos):
        first = folder / "first" / f"{number % 40}-{number // 40 // 500}.jpg"  # a file has at most some 65,000 names
        if not first.exists():
            first.write_bytes(photo(number % 40, 40, 32))
        os.link(first, folder / "photos" / f"p{number:06d}.jpg")
    words = command(folder, folder / "photos", "all.csv", "--processes", str(processes), "--batch-size", "32")
    before = 0
    for kill in range(num_kills):
        process = start(words)
        until = before + random.Random(kill).randint(1, max(1, num_photos // (num_kills + 1)))
        while (now := answered(folder)) < until and process.poll() is None:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        before = answered(folder)
        print(f"killed with {before:,} of {num_photos:,} answered (at {now:,})", flush=True)
    process = start(words)
    said, _ = process.communicate()
    with open(folder / "all.csv", newline="") as file:
        counted = Counter(row["file"] for row in csv.DictReader(file))
    left = [path.name for path in folder.glob("all.csv.*")]
    twice = sum(counted.values()) - len(counted)
    print(f"exit code {process.returncode}; {len(counted):,} photographs answered, {twice} twice; left over: {left}")
    if process.returncode or len(counted) != num_photos or set(counted.values()) != {1} or left:
        sys.exit(f"not each photograph was answered once:\n{said}")


def processor_seconds(words: list[str]) -> float:
    """Of a command with its children."""
    before = os.times()
    process = start(words)
    said, _ = process.communicate()
    if process.returncode:
        sys.exit(said)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def ratio(folder: Path, num_photos: int, rounds: int, backbone: str, processes: int) -> None:
    """Of the network's own processor time in that of the command, without what starting takes."""
    config = TrainConfig(stream=StreamConfig(image_size=224), model=ModelConfig(backbone=backbone))
    write_checkpoint(folder / "run", CLASSES, config=config)
    (folder / "photos").mkdir()
    (folder / "few").mkdir()
    for number, file in enumerate(sorted((SAMPLE / "VOCdevkit/VOC2007/JPEGImages").glob("*.jpg"))[:num_photos]):
        (folder / "photos" / file.name).symlink_to(file)
        if number < 2 * processes:
            (folder / "few" / file.name).symlink_to(file)
    torch.set_num_threads(1)
    network = load_recogniser(folder / "run").recogniser
    image_BCHW = torch.randn(32, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    image_BCHW = image_BCHW.contiguous(memory_format=torch.channels_last)  # as `predict` feeds it
    options = ("--processes", str(processes), "--batch-size", "32")
    found = []
    for number in range(rounds):
        whole = processor_seconds(command(folder, folder / "photos", f"{number}.csv", *options))
        few = processor_seconds(command(folder, folder / "few", f"few{number}.csv", *options))
        began = time.process_time()
        with torch.inference_mode():
            for start_ in range(2 * processes, num_photos, 32):
                network(image_BCHW[: min(32, num_photos - start_)])
        alone = time.process_time() - began
        found.append(alone / (whole - few))
        ms = np.array([whole - few, alone]) / (num_photos - 2 * processes) * 1000
        words = f"predict {ms[0]:.1f} ms of processor time an image, network {ms[1]:.1f} ms"
        print(f"round {number}: {words}: {found[-1]:.3f}", flush=True)
    share = statistics.median(found)
    print(
        f"{backbone}, {num_photos} photographs, {processes} processes: {share:.3f} of the network's own speed (median)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--real", type=int, default=200, help="photographs of VOC2007 for the ratio; 0: none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.photos:
            kills(Path(folder, "kills"), arguments.photos, arguments.kills, arguments.processes)
        if arguments.real:
            ratio(Path(folder, "ratio"), arguments.real, arguments.rounds, arguments.backbone, arguments.processes)


if __name__ == "__main__":
    main()
