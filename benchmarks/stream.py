"""How fast photographs become training batches, against the usual pipelines and against decoding alone.

Usage: python benchmarks/stream.py [--photos voc|coco] [--images 480] [--rounds 3] [--threads 2]

The photographs of the real sample (MSL_SAMPLE, default ../shared/sample) are repeated under new keys. Contenders take
turns, so that a busy machine slows all of them; the medians of images per second over the rounds are compared, after an
epoch of each that is not counted; 480 images take about 4 minutes, the figures of RESULTS.md come from 2,000. Memory is
measured afterwards, for each contender alone in a process of its own and with all its workers. "own MB" is what they
allocated: it is what a machine must have. "with files" adds their share of mapped libraries and shards; those pages
are the page cache's, which keeps them as long as nothing else needs the room, for a process that reads them as well as
for one that maps them. So a loader that maps its shards shows more there without needing more.

reference    written as the official pipeline is: Pillow, torchvision transforms, a mask PNG read and resized per
             sample, float tensors, DataLoader with one worker process per thread
webdataset   plain webdataset over the same shards, Pillow and the same transforms, as many workers; no masks
decode       the same decoder on the same number of threads and nothing else: the bytes are in memory, no checksum
ours         read, check, decode, crop, resize into the batch; uint8 (flip, float and mask belong to the device)
ours-gpu     everything the host does when the batches go to a GPU: crop and resize are left to that, too, and are
             not in this figure
ours-cpu     as ours, plus float, flip and keep mask on this CPU
ours-ram     as ours from the second epoch on, with all decoded images in memory (--ram-cache)

Other people's loaders are compared by benchmarks/peers.py.
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from msldata.build.writer import ShardWriter
from msldata.contract.format import encode_target
from msldata.contract.manifest import IMAGES, Manifest, Shards, shard_name
from msldata.contract.publish import write_manifest
from msldata.masks.sources import GeneratedMasks
from msldata.storage import LocalStorage
from msltrain.stream.config import StreamConfig
from msltrain.stream.keepmasks.bank import KeepMasks
from msltrain.stream.loader import Loader
from msltrain.stream.order.plan import EpochPlan
from msltrain.stream.pixels.decode import Decoder
from msltrain.stream.reading.fetch import LocalFetcher
from msltrain.stream.samples.shardset import open_shard_set

SIZE, BATCH, NUM_CLASSES, NUM_MASKS = 448, 32, 20, 100
Contender = Callable[[], int]
"""Runs one epoch and returns the number of images that came out."""
Factory = Callable[[], Contender]


def photographs(sample: Path, kind: str) -> list[Path]:
    """VOC2007 test photographs (their original bytes) or COCO-2014 ones."""
    if kind == "coco":
        return sorted((sample / "coco2014").glob("*2014/*.jpg"))
    voc = sample / "VOCdevkit" / "VOC2007"
    return [voc / "JPEGImages" / f"{key}.jpg" for key in (voc / "ImageSets/Main/test.txt").read_text().split()]


def write_shards(photos: list[Path], num_images: int, folder: Path, per_shard: int = 1000) -> None:
    """Shards of 1,000 samples with the photographs in turn."""
    storage = LocalStorage(folder)
    shards = []
    for first in range(0, num_images, per_shard):
        with ShardWriter(
            storage, shard_name("bench", "train", first // per_shard), kind=IMAGES, plan="bench"
        ) as writer:
            for number in range(first, min(first + per_shard, num_images)):
                data = photos[number % len(photos)].read_bytes()
                with Image.open(io.BytesIO(data)) as image:
                    width, height = image.size
                positives = [number % NUM_CLASSES]
                row = {"width": width, "height": height, "positives": positives, "ignored": [], "objects": []}
                members = [(".jpg", data), (".target.npy", encode_target(positives, NUM_CLASSES))]
                writer.add(f"{number:06d}", members, row)
            shards.append(writer.publish())
    classes = tuple(str(number) for number in range(NUM_CLASSES))
    manifest = Manifest(kind=IMAGES, dataset="bench", split="train", classes=classes, shards=Shards(shards))
    write_manifest(storage, manifest)


class ReferenceDataset(torch.utils.data.Dataset):
    """Files, Pillow and torchvision, one mask file per sample: the shape of the official pipeline."""

    def __init__(self, photos: list[Path], masks: list[Path], num_images: int):
        from torchvision import transforms

        self.photos, self.masks, self.num_images = photos, masks, num_images
        self.transform = transforms.Compose(
            [
                transforms.RandomHorizontalFlip(),
                transforms.RandomResizedCrop(SIZE, scale=(0.7, 1.0)),
                transforms.ToTensor(),
            ]
        )
        self.mask_transform = transforms.Compose([transforms.Resize((SIZE, SIZE)), transforms.ToTensor()])

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, number: int):
        with Image.open(self.photos[number % len(self.photos)]) as image:
            image_CHW = self.transform(image.convert("RGB"))
        with Image.open(random.choice(self.masks)) as mask:
            mask_1HW = self.mask_transform(mask.convert("L"))
        target_K = torch.zeros(NUM_CLASSES)
        target_K[number % NUM_CLASSES] = 1
        return image_CHW, target_K, (mask_1HW > 0).float()


def reference(photos: list[Path], masks: list[Path], num_images: int, num_threads: int) -> Contender:
    batches = torch.utils.data.DataLoader(
        ReferenceDataset(photos, masks, num_images),
        batch_size=BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=num_threads,
        persistent_workers=True,
    )
    return lambda: sum(len(image_BCHW) for image_BCHW, _, _ in batches)


def webdataset(folder: Path, num_threads: int) -> Contender:
    import webdataset as wds
    from torchvision import transforms

    transform = transforms.Compose(
        [
            transforms.RandomHorizontalFlip(),
            transforms.RandomResizedCrop(SIZE, scale=(0.7, 1.0)),
            transforms.ToTensor(),
        ]
    )
    tars = sorted(str(path) for path in folder.glob("*.tar"))
    samples = wds.WebDataset(tars, shardshuffle=len(tars), empty_check=False).shuffle(1000).decode("pil")
    batched = samples.to_tuple("jpg", "target.npy").map_tuple(transform, torch.from_numpy).batched(BATCH)
    batches = torch.utils.data.DataLoader(batched, batch_size=None, num_workers=num_threads, persistent_workers=True)
    return lambda: sum(len(image_BCHW) for image_BCHW, _ in batches)


def decode_alone(folder: Path, num_threads: int) -> Contender:
    shards = open_shard_set(folder)
    shard_N, row_N = EpochPlan(shards.counts, seed=0, epoch=0).items(0, shards.num_samples)
    rows = shards.rows(shard_N, row_N)[1]
    request = LocalFetcher(shards).request(shard_N, rows)
    sizes = list(zip(rows.width_N.tolist(), rows.height_N.tolist()))
    data = [bytes(request.read(position)) for position in range(len(sizes))]

    def epoch() -> int:
        positions: SimpleQueue[int | None] = SimpleQueue()
        for position in [*range(len(sizes)), *[None] * num_threads]:
            positions.put(position)

        def work() -> None:
            decoder = Decoder()
            while (position := positions.get()) is not None:
                decoder.decode(data[position], *sizes[position], crc32=0)

        threads = [threading.Thread(target=work) for _ in range(num_threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return len(sizes)

    return epoch


def ours(folder: Path, num_threads: int, **settings: Any) -> Contender:
    config = StreamConfig(image_size=SIZE, batch_size=BATCH, num_threads=num_threads, **settings)
    loader = Loader(open_shard_set(folder), config, device="cpu", training=True)
    epochs = itertools.count()

    def epoch() -> int:
        loader.set_epoch(next(epochs))
        return sum(len(batch) for batch in loader.host_batches())

    return epoch


def ours_on_cpu(folder: Path, num_threads: int) -> Contender:
    packed = np.random.default_rng(0).integers(0, 256, (1000, SIZE, -(-SIZE // 8)), dtype=np.uint8)
    bank = KeepMasks(packed, SIZE, "cpu")
    config = StreamConfig(image_size=SIZE, batch_size=BATCH, num_threads=num_threads)
    loader = Loader(open_shard_set(folder), config, device="cpu", training=True)

    def epoch() -> int:
        num_images = 0
        for batch in loader:
            keep_mask_B1HW = bank.keep_masks(batch, seed=0, epoch=0)
            num_images += len(keep_mask_B1HW)
        return num_images

    return epoch


def python_cost(folder: Path) -> float:
    """Microseconds of Python per sample: what is left of one thread's epoch without decoding and resizing."""
    blank_HWC = np.zeros((1, 1, 3), dtype=np.uint8)
    with (
        mock.patch.object(Decoder, "decode", lambda *_, **__: blank_HWC),
        mock.patch("msltrain.stream.pixels.decode._resize", lambda *_, **__: None),
    ):
        epoch = ours(folder, 1)
        epoch()
        began = time.process_time()
        num_images = epoch()
        return (time.process_time() - began) / num_images * 1e6


def alternate(contenders: dict[str, Contender], rounds: int) -> dict[str, list[float]]:
    """Images per second of every contender in every round, after one epoch that is not counted."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for round_number in range(rounds + 1):
        for name, epoch in contenders.items():
            began = time.perf_counter()
            num_images = epoch()
            if round_number:
                rates[name].append(num_images / (time.perf_counter() - began))
    return rates


def contenders_of(scratch: Path, photos: list[Path], num_images: int, threads: int) -> dict[str, Factory]:
    """What makes each contender, once ``prepare`` has written its files below ``scratch``."""
    folder, masks = scratch / "shards", sorted((scratch / "masks").glob("*.png"))
    return {
        "reference": lambda: reference(photos, masks, num_images, threads),
        "webdataset": lambda: webdataset(folder, threads),
        "decode": lambda: decode_alone(folder, threads),
        "decode, 1 thread": lambda: decode_alone(folder, 1),
        "ours": lambda: ours(folder, threads),
        "ours, 1 thread": lambda: ours(folder, 1),
        "ours-gpu": lambda: ours(folder, threads, resize="device"),
        "ours-gpu, 1 thread": lambda: ours(folder, 1, resize="device"),
        "ours-cpu": lambda: ours_on_cpu(folder, threads),
        "ours-ram": lambda: ours(folder, threads, ram_cache_gb=20.0),
    }


def prepare(scratch: Path, photos: list[Path], num_images: int) -> None:
    write_shards(photos, num_images, scratch / "shards")
    (scratch / "masks").mkdir()
    generator = GeneratedMasks(NUM_MASKS)
    for name in generator.names():
        Image.fromarray(255 - generator.read_gray(name)).save(scratch / "masks" / f"{name}.png")


def peak_memory(arguments: list[str]) -> tuple[float, float]:
    """Run this script for one contender and watch it and its workers.

    Returns:
        peak MB (10⁶ bytes) of their memory that no file backs, and of their proportional share of all memory, mapped
        files and libraries included.
    """
    process = subprocess.Popen([sys.executable, __file__, *arguments], stdout=subprocess.DEVNULL)
    anonymous, proportional = 0, 0
    while process.poll() is None:
        sums = {"Pss_Anon": 0, "Pss_Shmem": 0, "Pss": 0}
        for pid in family(process.pid):
            try:
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    name, _, value = line.partition(":")
                    if name in sums:
                        sums[name] += int(value.split()[0]) * 1024
            except OSError:  # it has just ended
                continue
        anonymous = max(anonymous, sums["Pss_Anon"] + sums["Pss_Shmem"])
        proportional = max(proportional, sums["Pss"])
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)}: ended with {process.returncode}")
    return anonymous / 1e6, proportional / 1e6


def family(root: int) -> list[int]:
    """A process and all that came from it."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", choices=("voc", "coco"), default="voc")
    parser.add_argument("--images", type=int, default=480)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", help="these contenders")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sample = Path(os.environ.get("MSL_SAMPLE", Path(__file__).resolve().parents[2] / "shared" / "sample"))
    photos = photographs(sample, arguments.photos)
    if arguments.alone:
        made = contenders_of(arguments.scratch, photos, arguments.images, arguments.threads)
        made[arguments.alone]()()
        return
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        prepare(scratch, photos, arguments.images)
        made = contenders_of(scratch, photos, arguments.images, arguments.threads)
        made = {name: make for name, make in made.items() if not arguments.only or name in arguments.only}
        rates = alternate({name: make() for name, make in made.items()}, arguments.rounds)
        memory = {}
        for name in made:
            options = {"photos": arguments.photos, "images": arguments.images, "threads": arguments.threads}
            options |= {"scratch": scratch, "alone": name}
            memory[name] = peak_memory([f"--{option}={value}" for option, value in options.items()])
        report(arguments, photos, rates, memory)
        if not arguments.only:
            print(f"\nPython per sample: {python_cost(scratch / 'shards'):.0f} µs")


def report(
    arguments: argparse.Namespace,
    photos: list[Path],
    rates: dict[str, list[float]],
    memory: dict[str, tuple[float, float]],
) -> None:
    median = {name: statistics.median(values) for name, values in rates.items()}
    width, height = np.median([Image.open(path).size for path in photos], axis=0)
    kilobytes = np.mean([path.stat().st_size for path in photos]) / 1000
    print(
        f"{arguments.images} {arguments.photos} photographs (median {width:.0f}×{height:.0f}, {kilobytes:.0f} kB) "
        f"to {SIZE}², batches of {BATCH}, {arguments.threads} threads or workers, {os.cpu_count()} CPUs "
        f"({platform.machine()}), medians of {arguments.rounds} alternating rounds\n"
    )
    print("| contender | images/s | of reference | of decode | own MB | with files | all rounds |")
    print("|---|---|---|---|---|---|---|")
    for name, rate in median.items():
        ratios = [f"{rate / median[base]:.2f}" if base in median else "–" for base in ("reference", "decode")]
        rounds = ", ".join(f"{value:.0f}" for value in rates[name])
        own, all_of_it = memory[name]
        print(f"| {name} | {rate:.0f} | {' | '.join(ratios)} | {own:.0f} | {all_of_it:.0f} | {rounds} |")
    for name in ("decode", "ours"):
        if name in median and f"{name}, 1 thread" in median:
            factor = median[name] / median[f"{name}, 1 thread"]
            print(f"\n{name}: {arguments.threads} threads are {factor:.2f} × one")


if __name__ == "__main__":
    main()
