"""Object storage through one real S3 server on loopback (Ceph's radosgw): ours beside boto3 and s3fs, in one run.

    python benchmarks/storage.py [--megabytes 100] [--ranges 1000] [--rounds 3]

Each round does, in turn for every client: put one file, read it whole, and read 1,000 ranges of 60 KB scattered over it
with 16 in flight. Printed are medians of the wall time and of this process's CPU time. Clients that are not installed
are left out: ``pip install boto3 s3fs`` brings them. (rclone's server will not do: it answers ranges with status 200.)
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from msldata.storage import open_storage
from tests import s3server, stores

RANGE_BYTES = 60_000
IN_FLIGHT = 16


@dataclass(frozen=True)
class Client:
    """One way to a bucket; ranges are pairs of start and length."""

    name: str
    put: Callable[[str, Path], Any]
    read: Callable[[str], bytes]
    read_ranges: Callable[[str, list[tuple[int, int]]], list[bytes]]


def in_threads(read_one: Callable[[int, int], bytes], ranges: list[tuple[int, int]]) -> list[bytes]:
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        return list(pool.map(lambda part: read_one(*part), ranges))


def ours() -> Client:
    storage = open_storage("s3://bucket/bench")

    def put(name: str, path: Path) -> None:
        copy = path.with_suffix(".staged")
        os.link(path, copy)  # put takes its file away
        storage.put(name, copy)

    def read_ranges(name: str, ranges: list[tuple[int, int]]) -> list[bytes]:
        # As the stream does: a batch of 32 samples at a time, several batches in flight.
        batches = [ranges[start : start + 32] for start in range(0, len(ranges), 32)]
        with ThreadPoolExecutor(IN_FLIGHT // 4) as pool:
            found = pool.map(lambda batch: storage.read_ranges(name, *map(list, zip(*batch, strict=True))), batches)
            return [part for parts in found for part in parts]

    return Client("msldata.storage", put, storage.read, read_ranges)


def boto3() -> Client:
    import boto3
    from botocore.config import Config

    client = boto3.client("s3", config=Config(max_pool_connections=IN_FLIGHT))

    def read_one(name: str, start: int, length: int) -> bytes:
        answer = client.get_object(Bucket="bucket", Key=f"bench/{name}", Range=f"bytes={start}-{start + length - 1}")
        return answer["Body"].read()

    return Client(
        "boto3",
        lambda name, path: client.upload_file(str(path), "bucket", f"bench/{name}"),
        lambda name: client.get_object(Bucket="bucket", Key=f"bench/{name}")["Body"].read(),
        lambda name, ranges: in_threads(lambda start, length: read_one(name, start, length), ranges),
    )


def s3fs() -> Client:
    import s3fs

    system = s3fs.S3FileSystem(
        key=s3server.ACCESS_KEY,
        secret=s3server.SECRET_KEY,
        endpoint_url=os.environ["AWS_ENDPOINT_URL"],
        use_listings_cache=False,
    )

    def read_ranges(name: str, ranges: list[tuple[int, int]]) -> list[bytes]:
        ends = [start + length for start, length in ranges]
        return system.cat_ranges([f"bucket/bench/{name}"] * len(ends), [start for start, _ in ranges], ends)

    return Client(
        "s3fs",
        lambda name, path: system.put_file(str(path), f"bucket/bench/{name}"),
        lambda name: system.cat_file(f"bucket/bench/{name}"),
        read_ranges,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--ranges", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        content = random.Random(0).randbytes(options.megabytes * 1_000_000)
        source = Path(folder, "source.bin")
        source.write_bytes(content)
        starts = random.Random(1).choices(range(len(content) - RANGE_BYTES), k=options.ranges)
        ceph = Path(folder, "ceph")
        ceph.mkdir()
        with ExitStack() as stack:
            try:
                os.environ.update(stack.enter_context(stores.radosgw(ceph)))
            except pytest.skip.Exception as missing:
                print(f"left out: {missing}")
                return
            measure(options.rounds, source, content, [(start, RANGE_BYTES) for start in starts])


def measure(num_rounds: int, source: Path, content: bytes, ranges: list[tuple[int, int]]) -> None:
    clients = []
    for make in (ours, boto3, s3fs):
        try:
            clients.append(make())
        except ImportError as error:
            print(f"left out: {make.__name__} ({error})")
    for client in clients:
        client.put("warm.bin", source)  # the gateway makes its pools at the first upload of each kind
    seconds: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for _ in range(num_rounds):
        for client in clients:
            actions: dict[str, tuple[Callable[[], Any], Any]] = {
                "put": (partial(client.put, "x.bin", source), None),
                "read": (partial(client.read, "x.bin"), content),
                "ranges": (
                    partial(client.read_ranges, "x.bin", ranges),
                    [content[start : start + length] for start, length in ranges],
                ),
            }
            for action, (run, expected) in actions.items():
                wall, cpu = time.perf_counter(), time.process_time()
                found = run()
                taken = time.perf_counter() - wall, time.process_time() - cpu
                assert expected is None or found == expected, f"{client.name} {action}: wrong bytes"
                seconds.setdefault((client.name, action), []).append(taken)
    print(f"\n{'client':18s}{'action':10s}{'wall s':>10s}{'CPU s':>10s}{'MB/s':>10s}")
    for (name, action), rounds in seconds.items():
        wall, cpu = (statistics.median(values) for values in zip(*rounds, strict=True))
        megabytes = (sum(length for _, length in ranges) if action == "ranges" else len(content)) / 1e6
        print(f"{name:18s}{action:10s}{wall:10.2f}{cpu:10.2f}{megabytes / wall:10.0f}")


if __name__ == "__main__":
    main()
