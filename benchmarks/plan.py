"""How the order of an epoch scales: a billion samples in two million shards, with a simulated index.

Usage: python benchmarks/plan.py [--shards 2000000] [--samples-per-shard 500] [--batch-size 4096]

No file is read: the plan needs the number of samples of each shard and nothing else. Measured in a process of its own
for each row, so that peak memory is that of the row. "entering" is the time from the counts to the first batch in the
middle of the epoch, as when a run is resumed. The next batches are CPU time, which a busy machine disturbs little.

The second table counts what reading neighbours together would bring from remote shards of 1,000 samples: of all that
is due within `stream.read_ahead_mb`, samples of a shard come in one request where no more than some others, not due
yet, lie between two of them. Requests and bytes are in parts of those of one request a sample.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from msltrain.stream.config import StreamConfig
from msltrain.stream.order.plan import EpochPlan, home_share, steps


def peak_megabytes() -> float:
    """The most memory this process has held so far."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def measure(num_shards: int, mean_samples: int, batch_size: int) -> tuple[int, float, float, float, float]:
    """Samples, seconds to the first batch, MB above an empty process, mean and slowest CPU ms of the next batches."""
    counts_S = np.random.default_rng(0).integers(mean_samples // 2, mean_samples * 3 // 2 + 1, num_shards)
    before = peak_megabytes()
    began = time.perf_counter()
    plan = EpochPlan(counts_S, seed=0, epoch=3)
    num_steps = steps(plan.num_samples, batch_size, drop_last=True)

    def batch(step: int) -> float:
        began = time.thread_time()
        start = step * batch_size
        plan.at(start + home_share(*plan.items(start, start + batch_size), rank=3, world_size=8))
        return (time.thread_time() - began) * 1e3

    batch(num_steps // 2)
    first = time.perf_counter() - began
    megabytes = peak_megabytes() - before
    later = [batch(num_steps // 2 + number) for number in range(1, min(501, num_steps // 2))]
    return plan.num_samples, first, megabytes, float(np.mean(later)), max(later)


def neighbours(num_samples: int, num_bytes: int, between: int) -> tuple[float, float]:
    """Requests and bytes, in parts of those of single samples, when ``between`` others are read with two neighbours."""
    config = StreamConfig()
    counts_S = np.diff(np.append(np.arange(0, num_samples, 1000), num_samples))
    plan = EpochPlan(counts_S, seed=0, epoch=0, window=config.window)
    ahead = (config.read_ahead_mb << 20) // num_bytes
    requests = read = due = 0
    for start in range(0, num_samples - ahead + 1, ahead):
        shard_N, row_N = plan.items(start, start + ahead)
        order_N = np.lexsort((row_N, shard_N))
        gap = np.diff(row_N[order_N]) - 1
        joined = (np.diff(shard_N[order_N]) == 0) & (gap <= between)
        due += ahead
        requests += ahead - int(joined.sum())
        read += ahead + int(gap[joined].sum())
    return requests / due, read / due


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=2_000_000)
    parser.add_argument("--samples-per-shard", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=4096)
    arguments = parser.parse_args()
    print("| shards | samples | entering, s | peak memory, MB | next batch, CPU ms | slowest of 500, CPU ms |")
    print("|---|---|---|---|---|---|")
    for num_shards in sorted({arguments.shards // 1000, arguments.shards // 10, arguments.shards}):
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as process:
            found = process.submit(measure, num_shards, arguments.samples_per_shard, arguments.batch_size).result()
        num_samples, first, megabytes, mean, slowest = found
        print(f"| {num_shards:,} | {num_samples:,} | {first:.2f} | {megabytes:.0f} | {mean:.2f} | {slowest:.1f} |")
    print("\n| requests and bytes of | at most 0 between | 1 | 2 | 4 |\n|---|---|---|---|---|")
    for name, num_samples, num_bytes in (("VOC2007", 5011, 88_000), ("COCO", 82_081, 160_000)):
        shares = [neighbours(num_samples, num_bytes, between) for between in (0, 1, 2, 4)]
        print(f"| {name} | {' | '.join(f'{requests:.2f}, {read:.2f}' for requests, read in shares)} |")


if __name__ == "__main__":
    main()
