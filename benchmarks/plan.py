"""How the order of an epoch scales: a billion samples in two million shards, with a simulated index.

Usage: python benchmarks/plan.py [--shards 2000000] [--samples-per-shard 500] [--batch-size 4096]

No file is read: the plan needs the number of samples of each shard and nothing else. Measured in a process of its own
for each row, so that peak memory is that of the row. "entering" is the time from the counts to the first batch in the
middle of the epoch, as when a run is resumed. The next batches are CPU time, which a busy machine disturbs little.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

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


if __name__ == "__main__":
    main()
