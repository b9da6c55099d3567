"""How much a loader slows the thread that trains: beside a main thread that does what a GPU's launcher does.

Usage: python benchmarks/beside.py [--rates 200 1000 2000] [--threads 2] [--steps 120] [--rounds 3]

A training on a GPU hardly computes on the host. Its main thread launches thousands of small operations a second and
then waits for the device. Here a step is a fixed number of small torch calls and a sleep, and takes a batch of as many
photographs as makes the rate, whose pixels nobody looks at. What is compared is steps per second:

bound        batches made beforehand: no loader runs
threads      our loader with its threads in this process (stream.process=same; they decode, nothing else)
helper       the same with the threads in a helper process (stream.process=helper), as a training on a GPU has it
dataloader   torch's DataLoader with the same decoder and resize in as many worker processes as we have threads

The contenders take turns. For each, milliseconds of a step by what the main thread did in them, from the kernel's own
accounts (/proc/thread-self/schedstat): ``run``, on a processor; ``queue``, ready, but waiting for one (too few
processors: no loader can help that); ``sleep``, the wait for the device; ``data``, in the loader's ``next``;
``blocked``, the rest: waiting for a lock, above all for the interpreter's. ``µs/image`` is what a photograph costs the
main thread: run and blocked beyond the bound's. "without data" is the ratio of the steps without ``queue`` and
``data``: what remains of the bound's rate where there are processors enough.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.stream import photographs, write_shards
from msltrain.stream.config import StreamConfig
from msltrain.stream.loader import Loader
from msltrain.stream.pixels.decode import Decoder, resize_crop
from msltrain.stream.samples.shardset import open_shard_set

SIDE = 448
NUM_CALLS = 1200
"""Small calls in a step."""
SLEEP = 0.020
"""Seconds that a step waits for its device."""
STEP = 0.030
"""Seconds that a step takes about, for the batch that makes a rate."""

Batches = Iterator[object]


@dataclass
class Spent:
    """Milliseconds of one step of the main thread, by what it did."""

    step: float
    run: float
    queue: float
    sleep: float
    data: float

    @property
    def blocked(self) -> float:
        return max(0.0, self.step - self.run - self.queue - self.sleep - self.data)


def on_processor() -> tuple[float, float]:
    """Seconds that this thread ran, and that it was ready but waited for a processor."""
    ran, waited, _ = Path("/proc/thread-self/schedstat").read_text().split()
    return int(ran) / 1e9, int(waited) / 1e9


def launch(batches: Batches, num_steps: int) -> Spent:
    """Steps of a training as its main thread sees them; medians would hide what happens now and then, so means."""
    small, other = torch.zeros(16), torch.ones(16)
    slept = in_data = run_in_data = queue_in_data = 0.0
    ran, waited = on_processor()
    began = time.perf_counter()
    for _ in range(num_steps):
        asked, run_before = time.perf_counter(), on_processor()
        next(batches)
        in_data += time.perf_counter() - asked
        run_after = on_processor()
        run_in_data += run_after[0] - run_before[0]
        queue_in_data += run_after[1] - run_before[1]
        for _ in range(NUM_CALLS):
            small.add_(other)
        asleep = time.perf_counter()
        time.sleep(SLEEP)
        slept += time.perf_counter() - asleep
    took = time.perf_counter() - began
    ran_after, waited_after = on_processor()
    each = 1000 / num_steps
    return Spent(
        step=took * each,
        run=(ran_after - ran - run_in_data) * each,
        queue=(waited_after - waited - queue_in_data) * each,
        sleep=slept * each,
        data=in_data * each,
    )


@contextmanager
def bound(shards: Path, batch_size: int, num_threads: int) -> Iterator[Batches]:
    yield itertools.repeat(np.zeros(batch_size * SIDE * SIDE * 3, np.uint8))


@contextmanager
def threads(shards: Path, batch_size: int, num_threads: int) -> Iterator[Batches]:
    with ours(shards, batch_size, num_threads, "same") as batches:
        yield batches


@contextmanager
def helper(shards: Path, batch_size: int, num_threads: int) -> Iterator[Batches]:
    with ours(shards, batch_size, num_threads, "helper") as batches:
        yield batches


@contextmanager
def ours(shards: Path, batch_size: int, num_threads: int, where: Literal["same", "helper"]) -> Iterator[Batches]:
    config = StreamConfig(
        image_size=SIDE, batch_size=batch_size, num_threads=num_threads, resize="device", process=where
    )
    with Loader(open_shard_set(shards), config, training=True) as loader:
        batches = endless(loader)
        yield batches
        batches.close()


def endless(loader: Loader) -> Generator[object, None, None]:
    while True:
        yield from loader.host_batches()
        loader.set_epoch(loader.epoch + 1)


class Photographs(torch.utils.data.Dataset):
    """Every photograph of a folder, decoded and resized; what a careful user of a DataLoader writes."""

    def __init__(self, place: Path):
        self._place, self._num_samples = place, open_shard_set(place).num_samples
        self._maps: dict[str, np.ndarray] = {}
        self._decoder: Decoder | None = None

    def __len__(self) -> int:
        return self._num_samples

    def __getitem__(self, index: int) -> torch.Tensor:
        if self._decoder is None:  # in the worker
            torch.set_num_threads(1)
            self._shards, self._decoder = open_shard_set(self._place), Decoder()
        ends = np.cumsum(self._shards.counts)
        shard = int(np.searchsorted(ends, index, side="right"))
        row = index - int(ends[shard]) + int(self._shards.counts[shard])
        _, rows = self._shards.rows(np.array([shard]), np.array([row]))
        name = self._shards.manifest.shards[shard].name
        if name not in self._maps:
            path = self._shards.storage.path(name)
            assert path is not None  # they are in a local folder
            self._maps[name] = np.memmap(path, np.uint8, "r")
        start, width, height = int(rows.offset_N[0]), int(rows.width_N[0]), int(rows.height_N[0])
        data = self._maps[name][start : start + int(rows.length_N[0])].data
        square_1CSS = torch.empty((1, SIDE, SIDE, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        image_HWC = self._decoder.decode(data, width, height, int(rows.crc32_N[0]))
        resize_crop(image_HWC, (0, 0, height, width), square_1CSS, width)
        return square_1CSS[0]


@contextmanager
def dataloader(shards: Path, batch_size: int, num_threads: int) -> Iterator[Batches]:
    loader = torch.utils.data.DataLoader(
        Photographs(shards), batch_size, shuffle=True, drop_last=True, num_workers=num_threads, persistent_workers=True,
        multiprocessing_context="spawn",
    )  # fmt: skip

    def batches() -> Generator[object, None, None]:
        while True:
            yield from loader

    taken = batches()
    yield taken
    taken.close()


CONTENDERS: dict[str, Callable] = {"bound": bound, "threads": threads, "helper": helper, "dataloader": dataloader}


def measure(shards: Path, rate: int, num_threads: int, num_steps: int, num_rounds: int, only: list[str]) -> None:
    batch_size = max(1, round(rate * STEP))
    spent: dict[str, list[Spent]] = {name: [] for name in CONTENDERS if name == "bound" or not only or name in only}
    for _ in range(num_rounds):
        for name in spent:  # opened anew each time, so that none of the others is at work meanwhile
            with ExitStack() as opened:
                batches = opened.enter_context(CONTENDERS[name](shards, batch_size, num_threads))
                launch(batches, 10)
                spent[name].append(launch(batches, num_steps))
    least = statistics.median(one.step for one in spent["bound"])
    own = statistics.median(one.run + one.blocked for one in spent["bound"])
    print(f"\n{rate} images/s asked for, batches of {batch_size}, {num_threads} threads")
    print("contender    steps/s  of bound  without data |   run  queue  sleep   data  blocked |  images/s  µs/image")
    for name, rounds in spent.items():
        middle = {part: statistics.median(getattr(one, part) for one in rounds)
                  for part in ("step", "run", "queue", "sleep", "data", "blocked")}  # fmt: skip
        ratio = statistics.median(one.step / other.step for one, other in zip(spent["bound"], rounds, strict=True))
        undisturbed = statistics.median(
            (one.step - one.queue) / (other.step - other.queue - other.data)
            for one, other in zip(spent["bound"], rounds, strict=True)
        )
        cost = (middle["run"] + middle["blocked"] - own) / batch_size * 1000
        print(
            f"{name:11} {1000 / middle['step']:8.1f} {ratio:9.3f} {undisturbed:13.3f} |"
            + "".join(f"{middle[part]:7.2f}" for part in ("run", "queue", "sleep", "data"))
            + f" {middle['blocked']:8.2f} | {batch_size * 1000 / middle['step']:9.0f} {cost:9.1f}"
        )
    print(f"(the bound's step takes {least:.1f} ms)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rates", type=int, nargs="+", default=[200, 1000, 2000], help="images a second")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=[], help="these contenders, beside the bound")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sample = Path(os.environ.get("MSL_SAMPLE", Path(__file__).resolve().parents[2] / "shared" / "sample"))
    with tempfile.TemporaryDirectory() as scratch:
        shards = Path(scratch) / "shards"
        write_shards(photographs(sample, "voc"), arguments.images, shards)
        for rate in arguments.rates:
            measure(shards, rate, arguments.threads, arguments.steps, arguments.rounds, arguments.only)


if __name__ == "__main__":
    main()
