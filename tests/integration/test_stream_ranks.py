"""The stream in real processes: 1, then 2, then 4 gloo ranks over three uneven shards, each going on from there.

Nothing hangs, nothing comes twice, and the batches are tensor for tensor those of one undisturbed process.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from itertools import chain
from pathlib import Path

import torch

from msltrain.stream.config import StreamConfig
from msltrain.stream.loader import Loader
from msltrain.stream.samples.shardset import open_shard_set
from tests.smallshards import write_images

REPOSITORY = Path(__file__).resolve().parents[2]
COUNTS = [150, 61, 10]
CONFIG = StreamConfig(image_size=24, batch_size=4, window=100, num_threads=1)

PROGRAM = """
import json, os, sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.nn

from msltrain.hosts.distributed import process_group
from msltrain.stream.loader import Loader
from msltrain.stream.samples.shardset import open_shard_set
from tests.integration.test_stream_ranks import CONFIG
from tests.stores import free_port


def run(folder: Path, url: str, num_steps: int) -> None:
    with process_group("cpu") as ranks:
        place = {"device": "cpu", "rank": ranks.rank, "world_size": ranks.world_size}
        with Loader(open_shard_set(url), CONFIG, training=True, **place) as loader:
            loader.load_state_dict(json.loads((folder / "state.json").read_text()))
            found = []
            for batch in loader:
                # What a training step does: every rank must be here, or all of them hang.
                dist.all_reduce(torch.ones(1))
                found.append([batch.keys, batch.image_BCHW, batch.target_BK, batch.ignore_BK])
                if len(found) == num_steps:
                    break
            torch.save(found, folder / f"of{ranks.world_size}.{ranks.rank}")
            if ranks.is_first:
                (folder / "state.json").write_text(json.dumps(loader.state_dict()))
        if ranks.world_size == 4:
            with Loader(open_shard_set(url), CONFIG, training=False, **place) as loader:
                keys = ranks.gather([key for batch in loader for key in batch.keys])
            if ranks.is_first:
                (folder / "evaluated.json").write_text(json.dumps(keys))


# Ranks are forked from a process that has loaded everything and started nothing; torchrun would load it six times.
for world_size, num_steps in ((2, 8), (4, 1000)):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()), WORLD_SIZE=str(world_size))
    ranks = []
    for rank in range(world_size):
        if not (child := os.fork()):
            os.environ["RANK"] = str(rank)
            run(Path(sys.argv[1]), sys.argv[2], num_steps)
            sys.exit()
        ranks.append(child)
    assert not any([os.waitpid(rank, 0)[1] for rank in ranks]), f"a rank of {world_size} failed"
"""


def run_two_and_then_four_ranks(folder: Path, url: str) -> None:
    command = [sys.executable, "-c", PROGRAM, str(folder), url]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, start_new_session=True)
    try:
        _, errors = ranks.communicate(timeout=120)
        assert ranks.returncode == 0, errors.decode()[-3000:]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(ranks.pid, signal.SIGKILL)  # none may outlive a test that failed


def batches_of(folder: Path, world_size: int) -> list[list]:
    """The batches that so many ranks saw, their parts put together."""
    ranks = [torch.load(folder / f"of{world_size}.{rank}") for rank in range(world_size)]
    return [
        by_key([list(chain(*(part[0] for part in parts))), *map(torch.cat, list(zip(*parts))[1:])])
        for parts in zip(*ranks, strict=True)
    ]


def by_key(batch: list) -> list:
    """A batch in the order of its keys: which rank takes which sample is of no account."""
    keys, *tensors = batch
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return [[keys[position] for position in order], *(tensor[order] for tensor in tensors)]


def test_one_then_two_then_four_ranks_are_one_run(tmp_path, s3):
    folder = tmp_path
    write_images(folder / "shards", COUNTS)
    shutil.copytree(folder / "shards", s3.root / "bucket" / "ranks")
    url = "s3://bucket/ranks"
    with Loader(open_shard_set(folder / "shards"), CONFIG, device="cpu", training=True) as loader:
        expected = [[batch.keys, batch.image_BCHW, batch.target_BK, batch.ignore_BK] for batch in loader]
    assert len(expected) == 55
    with Loader(open_shard_set(folder / "shards"), CONFIG, device="cpu", training=True) as loader:
        for _, _ in zip(range(40), loader):
            pass
        (folder / "state.json").write_text(json.dumps(loader.state_dict()))
    run_two_and_then_four_ranks(folder, url)
    found = batches_of(folder, 2) + batches_of(folder, 4)
    assert len(found) == 15, "the last ranks took the rest of the epoch"
    for ours, theirs in zip(found, map(by_key, expected[40:])):
        assert ours[0] == theirs[0]
        assert all(torch.equal(one, other) for one, other in zip(ours[1:], theirs[1:]))
    keys = json.loads((folder / "evaluated.json").read_text())
    assert len(keys) == 4 and sorted(chain(*keys)) == [f"s{number:06d}" for number in range(sum(COUNTS))]
