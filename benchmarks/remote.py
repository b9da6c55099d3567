"""How fast samples come from a server, without and with a cache, against the same shards on the local disk.

Usage: python benchmarks/remote.py [--photos voc|coco] [--images 1000] [--rounds 3] [--shared]
                                   [--store s3://bucket/x | --radosgw]

The server is rclone on loopback: `rclone serve http`, which answers ranged GETs as a store does and costs little (its
S3 server needs a translating proxy, see tests/s3server.py, that would cost more than the client measured here).
Client and server each get one processor of their own, and the client one decoding thread, so that the server takes
nothing from the client, as in a real cluster; `--shared` lets both use all processors. `--store` measures a store of
one's own instead, to which the shards are uploaded, and `--radosgw` Ceph's gateway, started on loopback where Debian's
packages are installed. Contenders take turns; rates are medians.

local     memory-mapped shards
ranges    ranged reads, no cache
cached    the second epoch through a cache

Then the time from opening the dataset to the first batch, with 160 shards, through the real S3 protocol: signatures,
the proxy, and 16 parallel index reads; and the processor time that ranged reads cost per image and per megabyte.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.stream import BATCH, SIZE, photographs, write_shards
from msldata.storage import open_storage
from msltrain.stream.config import StreamConfig
from msltrain.stream.loader import Loader
from msltrain.stream.samples.holdout import hold_out
from msltrain.stream.samples.shardset import open_shard_set
from tests import s3server, stores

NUM_SHARDS = 160


@contextmanager
def http_server(root: Path, cpus: set[int]) -> Iterator[str]:
    """The address of a plain HTTP server over a folder."""
    program = Path(sys.executable).with_name("rclone")
    command = [str(program), "serve", "http", str(root), "--addr", "127.0.0.1:0", "--read-only"]
    # Without its read-ahead of 16 MB per request, which ranged reads throw away.
    command += ["--buffer-size", "0", "--vfs-read-chunk-size", "0", "--config", "/dev/null"]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, preexec_fn=lambda: os.sched_setaffinity(0, cpus)
    )
    try:
        assert process.stderr is not None
        address = next(found[0] for line in process.stderr if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield address
    finally:
        process.terminate()
        process.wait(timeout=10)


def measure(loader: Loader) -> tuple[float, float]:
    """Images per second and processor seconds of one epoch."""
    began, cpu = time.perf_counter(), time.process_time()
    num_images = sum(len(batch) for batch in loader.host_batches())
    return num_images / (time.perf_counter() - began), (time.process_time() - cpu) / num_images


def compare(folder: Path, url: str, scratch: Path, num_threads: int, rounds: int) -> None:
    def loader(location: str | Path, cache: str = "") -> Loader:
        config = StreamConfig(image_size=SIZE, batch_size=BATCH, num_threads=num_threads, cache=cache)
        return Loader(open_shard_set(location), config, device="cpu", training=True)

    contenders = {
        "local": loader(folder),
        "ranges": loader(url),
        "cached": loader(url, cache=str(scratch / "cache")),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for round_number in range(rounds + 1):
        for name, one in contenders.items():
            result = measure(one)
            if round_number:
                found[name].append(result)
    megabytes = sum(shard.num_bytes for shard in contenders["local"].shards.manifest.shards) / 1e6
    rate = {name: statistics.median(rate for rate, _ in results) for name, results in found.items()}
    cpu = {name: statistics.median(cpu for _, cpu in results) for name, results in found.items()}
    print("| contender | images/s | of local | CPU ms / image | all rounds |\n|---|---|---|---|---|")
    for name, results in found.items():
        rounds_ = ", ".join(f"{value:.0f}" for value, _ in results)
        print(f"| {name} | {rate[name]:.0f} | {rate[name] / rate['local']:.2f} | {1000 * cpu[name]:.2f} | {rounds_} |")
    num_images = contenders["local"].shards.num_samples
    extra = (cpu["ranges"] - cpu["local"]) * num_images
    print(f"\nranged reads cost {1e6 * extra / num_images:.0f} µs per image, {1000 * extra / megabytes:.1f} ms per MB")


def first_batch(root: Path, photos: list[Path], num_images: int) -> None:
    (root / "bucket").mkdir(parents=True)
    write_shards(photos, num_images, root / "bucket" / "many", per_shard=-(-num_images // NUM_SHARDS))
    with s3server.running(root) as server:
        os.environ.update(server.environment)
        seconds: dict[str, list[float]] = {}
        for _ in range(5):
            began = time.perf_counter()
            shards = open_shard_set("s3://bucket/many")
            seconds.setdefault("manifest", []).append(time.perf_counter() - began)
            kept, _ = hold_out(shards, 0.05)
            seconds.setdefault("every sample index (hold-out)", []).append(time.perf_counter() - began)
            config = StreamConfig(image_size=SIZE, batch_size=BATCH)
            with Loader(kept, config, device="cpu", training=True) as one:
                next(iter(one))
            seconds.setdefault("first batch", []).append(time.perf_counter() - began)
    print(f"\nfrom S3, {NUM_SHARDS} shards of {num_images // NUM_SHARDS} samples, seconds since opening (median of 5):")
    for name, values in seconds.items():
        print(f"  {name}: {statistics.median(values):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", choices=("voc", "coco"), default="voc")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shared", action="store_true")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--store", help="measure this place; its files are overwritten and left there")
    place.add_argument("--radosgw", action="store_true", help="measure Ceph's gateway on loopback")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sample = Path(os.environ.get("MSL_SAMPLE", Path(__file__).resolve().parents[2] / "shared" / "sample"))
    photos = photographs(sample, arguments.photos)
    cpus = set(os.sched_getaffinity(0))
    apart = not (arguments.shared or arguments.store) and len(cpus) > 1
    client, server = ({min(cpus)}, {max(cpus)}) if apart else (cpus, cpus)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        folder = scratch / "served" / "shards"
        write_shards(photos, arguments.images, folder)
        print(f"{arguments.images} {arguments.photos} photographs to {SIZE}², {len(client)} decoding threads\n")
        if arguments.store or arguments.radosgw:
            with ExitStack() as stack:
                if arguments.radosgw:
                    (scratch / "ceph").mkdir()
                    os.sched_setaffinity(0, server)  # what is started inherits it
                    os.environ.update(stack.enter_context(stores.radosgw(scratch / "ceph")))
                os.sched_setaffinity(0, client)
                url = arguments.store or "s3://bucket/shards"
                store = open_storage(url)
                for path in sorted(folder.iterdir()):
                    store.put(path.name, path.read_bytes())
                compare(folder, url, scratch, len(client), arguments.rounds)
            return
        with http_server(folder.parent, server) as address:
            os.sched_setaffinity(0, client)
            compare(folder, f"{address}/{folder.name}", scratch, len(client), arguments.rounds)
        os.sched_setaffinity(0, cpus)
        first_batch(scratch / "s3", photos, max(arguments.images, NUM_SHARDS))


if __name__ == "__main__":
    main()
