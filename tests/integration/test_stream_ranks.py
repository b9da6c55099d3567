"""The stream in real processes: 1, then 2, then 4 gloo ranks over three uneven shards, each going on from there.

Nothing hangs, nothing comes twice, and the batches are tensor for tensor those of one undisturbed process.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch

from msltrain.stream.config import StreamConfig
from msltrain.stream.loader import Loader
from msltrain.stream.shardset import open_shard_set
from tests.smallshards import write_images

REPOSITORY = Path(__file__).resolve().parents[2]
COUNTS = [150, 61, 10]
CONFIG = StreamConfig(image_size=24, batch_size=4, window=100, num_threads=1)

WORKER = """
import json, sys
from pathlib import Path

import torch
import torch.distributed as dist

from msltrain.distributed import process_group
from msltrain.stream.loader import Loader
from msltrain.stream.shardset import open_shard_set
from tests.integration.test_stream_ranks import CONFIG

folder, place, out, num_steps = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
with process_group("cpu") as ranks:
    place = {"device": "cpu", "rank": ranks.rank, "world_size": ranks.world_size}
    with Loader(open_shard_set(sys.argv[2]), CONFIG, training=True, **place) as loader:
        loader.load_state_dict(json.loads((folder / "state.json").read_text()))
        found = []
        for batch in loader:
            # What a training step does: every rank must be here, or all of them hang.
            dist.all_reduce(torch.ones(1))
            found.append([batch.keys, batch.image_BCHW, batch.target_BK, batch.ignore_BK])
            if len(found) == num_steps:
                break
        torch.save(found, out.with_suffix(f".{ranks.rank}"))
        if ranks.is_first:
            (folder / "state.json").write_text(json.dumps(loader.state_dict()))
    if ranks.world_size == 4:
        with Loader(open_shard_set(sys.argv[2]), CONFIG, training=False, **place) as loader:
            keys = ranks.gather([key for batch in loader for key in batch.keys])
        if ranks.is_first:
            (folder / "evaluated.json").write_text(json.dumps(keys))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("ranks")
    write_images(path / "shards", COUNTS)
    (path / "worker.py").write_text(WORKER)
    return path


def go_on(folder: Path, url: str, world_size: int, num_steps: int) -> list[list]:
    """The next batches of a run that goes on with so many ranks, their parts put together."""
    out = folder / f"of{world_size}"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world_size}"]
    result = subprocess.run(
        [*command, str(folder / "worker.py"), str(folder), url, str(out), str(num_steps)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    ranks = [torch.load(out.with_suffix(f".{rank}")) for rank in range(world_size)]
    return [
        [list(chain(*(part[0] for part in parts))), *(torch.cat(column) for column in list(zip(*parts))[1:])]
        for parts in zip(*ranks, strict=True)
    ]


def test_one_then_two_then_four_ranks_are_one_run(folder, s3):
    shutil.copytree(folder / "shards", s3.root / "bucket" / "ranks")
    url = "s3://bucket/ranks"
    with Loader(open_shard_set(folder / "shards"), CONFIG, device="cpu", training=True) as loader:
        expected = [[batch.keys, batch.image_BCHW, batch.target_BK, batch.ignore_BK] for batch in loader]
    assert len(expected) == 55
    with Loader(open_shard_set(folder / "shards"), CONFIG, device="cpu", training=True) as loader:
        for _, _ in zip(range(40), loader):
            pass
        (folder / "state.json").write_text(json.dumps(loader.state_dict()))
    found = go_on(folder, url, 2, 8)
    found += go_on(folder, url, 4, 1000)
    assert len(found) == 15, "the last ranks took the rest of the epoch"
    for ours, theirs in zip(found, expected[40:]):
        assert ours[0] == theirs[0]
        assert all(torch.equal(one, other) for one, other in zip(ours[1:], theirs[1:]))
    keys = json.loads((folder / "evaluated.json").read_text())
    assert len(keys) == 4 and sorted(chain(*keys)) == [f"s{number:06d}" for number in range(sum(COUNTS))]
