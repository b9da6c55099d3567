"""The loader on small shards: exact, resumable on other ranks, the same for any threads and from any place."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch

from msldata.contract.manifest import FormatError
from msldata.errors import UserError
from msltrain.stream.config import StreamConfig
from msltrain.stream.loader import Loader
from msltrain.stream.pixels.decode import resize_crop
from msltrain.stream.samples.holdout import hold_out
from msltrain.stream.samples.shardset import ShardSet, open_shard_set
from tests.smallshards import photo, write_images, write_keep_masks

CONFIG = StreamConfig(image_size=24, batch_size=8, window=64, num_threads=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """203 samples in 6 uneven shards."""
    path = tmp_path_factory.mktemp("shards")
    write_images(path, [40, 7, 61, 33, 1, 61])
    return path


@pytest.fixture(scope="module")
def shards(folder) -> ShardSet:
    return open_shard_set(folder)


def config(**changes) -> StreamConfig:
    return StreamConfig(**{**{name: getattr(CONFIG, name) for name in CONFIG.__dataclass_fields__}, **changes})


def make(
    shards: ShardSet, cfg: StreamConfig = CONFIG, *, training: bool = True, rank=0, world_size=1, seed=0
) -> Loader:
    place: Any = {"device": "cpu", "rank": rank, "world_size": world_size, "allow_uneven": True}
    return Loader(shards, cfg, training=training, seed=seed, **place)


def contents(batch):
    """Everything a batch holds, as comparable values."""
    return (
        batch.keys,
        batch.index_B.tolist(),
        batch.key_hash_B.tolist(),
        batch.image_BCHW.numpy().tobytes(),
        batch.target_BK.tolist(),
        batch.ignore_BK.tolist(),
    )


def all_contents(loader: Loader) -> list:
    with loader:
        return [contents(batch) for batch in loader]


def samples(*parts: tuple) -> list[tuple]:
    """What the parts of a batch hold, a tuple for each sample, in the order of their keys."""
    found = []
    for keys, indexes, hashes, pixels, targets, ignored in parts:
        size = len(pixels) // max(1, len(keys))
        images = [pixels[start : start + size] for start in range(0, len(pixels), size or 1)]
        found += zip(keys, indexes, hashes, images, targets, ignored, strict=True)
    return sorted(found)


def test_a_batch_holds_what_was_stored(shards):
    with make(shards, training=False) as loader:
        batches = list(loader)
    assert len(batches) == len(loader) == 26 and len(batches[-1]) == 3
    first = batches[0]
    assert first.image_BCHW.shape == (8, 3, 24, 24) and first.image_BCHW.dtype == torch.float32
    assert first.image_BCHW.is_contiguous(memory_format=torch.channels_last)
    assert first.image_BCHW.min() >= 0 and 0.5 < first.image_BCHW.max() <= 1
    assert first.target_BK.dtype == torch.float32 and first.ignore_BK.dtype == torch.bool
    keys = [key for batch in batches for key in batch.keys]
    assert keys == [f"s{number:06d}" for number in range(203)]
    assert np.concatenate([batch.index_B for batch in batches]).tolist() == list(range(203))
    for number, (target_K, ignore_K) in enumerate(zip(first.target_BK.tolist(), first.ignore_BK.tolist())):
        assert target_K == [float(number % 3 == k) for k in range(3)]
        assert ignore_K == [number % 4 == 0 and (number + 1) % 3 == k for k in range(3)]


@pytest.mark.parametrize("num_threads", [1, 4])
def test_threads_leave_no_trace(shards, num_threads):
    expected = all_contents(make(shards))
    assert all_contents(make(shards, config(num_threads=num_threads, num_buffers=2, read_ahead_mb=1))) == expected


def test_an_epoch_is_exact_and_epochs_differ(shards):
    with make(shards, config(drop_last=False)) as loader:
        epochs = [[key for batch in loader for key in batch.keys] for _ in range(3)]
    for keys in epochs:
        assert sorted(keys) == [f"s{number:06d}" for number in range(203)]
    assert epochs[0] != epochs[1] != epochs[2]
    with make(shards) as loader:
        assert sum(len(batch) for batch in loader) == 200
        assert loader.stats.num_images == 200 and loader.stats.num_bytes > 100_000


def test_a_sample_looks_the_same_in_any_batch_but_not_in_any_epoch(shards):
    def images(cfg, epoch):
        with make(shards, cfg) as loader:
            loader.set_epoch(epoch)
            return {key: image for batch in loader for key, image in zip(batch.keys, batch.image_BCHW)}

    one, other = images(config(batch_size=5), 1), images(config(batch_size=50, window=7), 1)
    both = one.keys() & other.keys()
    assert len(both) > 180 and all(torch.equal(one[key], other[key]) for key in both)
    later = images(config(batch_size=5), 2)
    assert sum(torch.equal(one[key], later[key]) for key in one.keys() & later.keys()) < 20, (
        "small images have few crops"
    )


def test_flips_mirror_the_very_same_crop(shards):
    def images(probability):
        with make(shards, config(flip_probability=probability)) as loader:
            return torch.cat([batch.image_BCHW for batch in loader])

    never, always, half = images(0.0), images(1.0), images(0.5)
    assert torch.equal(never, always.flip(3)) and not torch.equal(never, always)
    mirrored = (half == always).flatten(1).all(1)
    assert 70 < mirrored.sum() < 130
    assert torch.equal(half, torch.where(mirrored[:, None, None, None], always, never))


def test_resume_tensor_for_tensor(shards):
    small = config(batch_size=4)
    with make(shards, small) as loader:
        batches = iter(loader)
        for _ in range(40):
            next(batches)
        state = loader.state_dict()
        expected = [contents(next(batches)) for _ in range(8)]
    with make(open_shard_set(shards.storage.path()), small) as resumed:
        resumed.load_state_dict(state)
        resumed.set_epoch(0)
        found = iter(resumed)
        assert [contents(next(found)) for _ in range(8)] == expected
        assert resumed.state_dict() == {**state, "step": 48}


def test_resume_on_other_numbers_of_ranks(shards):
    expected = all_contents(make(shards))
    state, found = None, []
    for world_size, num_batches in ((1, 9), (2, 9), (4, 7)):
        loaders = [make(shards, rank=rank, world_size=world_size) for rank in range(world_size)]
        if state is not None:
            for loader in loaders:
                loader.load_state_dict(state)
        for _, parts in zip(range(num_batches), zip(*loaders)):
            found.append(samples(*map(contents, parts)))
            states = [loader.state_dict() for loader in loaders]
        state = states[0]
        assert all(other == state for other in states)
        for loader in loaders:
            loader.close()
    assert found == [samples(batch) for batch in expected]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_takes_each_key_once(shards, world_size):
    keys = []
    for rank in range(world_size):
        with make(shards, training=False, rank=rank, world_size=world_size) as loader:
            batches = list(loader)
            keys += [key for batch in batches for key in batch.keys]
            assert min(len(batch) for batch in batches) > 0
    assert sorted(keys) == [f"s{number:06d}" for number in range(203)]


def test_more_ranks_than_shards_or_last_samples(tmp_path):
    write_images(tmp_path, [9, 1])
    few = open_shard_set(tmp_path)
    kept = config(drop_last=False)
    parts = [all_contents(make(few, kept, rank=rank, world_size=4)) for rank in range(4)]
    assert [len(part) for part in parts] == [2, 2, 2, 2], "every rank takes every step"
    keys = [key for part in parts for batch in part for key in batch[0]]
    assert sorted(keys) == [f"s{number:06d}" for number in range(10)]
    assert sorted(len(part[1][0]) for part in parts) == [0, 0, 1, 1]


def test_hold_out_splits_by_key(shards):
    kept, held_out = hold_out(shards, 0.25)
    assert kept.num_samples + held_out.num_samples == 203 and 30 < held_out.num_samples < 72
    seen = {}
    for name, part in (("kept", kept), ("held_out", held_out)):
        with make(part, training=False) as loader:
            batches = list(loader)
        seen[name] = {key: index for batch in batches for key, index in zip(batch.keys, batch.index_B.tolist())}
        assert len(seen[name]) == part.num_samples
        assert all(key == f"s{index:06d}" for key, index in seen[name].items()), "index is the place in the whole set"
    assert not seen["kept"].keys() & seen["held_out"].keys()
    again = [part.num_samples for part in hold_out(shards, 0.25)]
    assert again == [kept.num_samples, held_out.num_samples]
    # A part of a part is a part of the whole.
    for part in hold_out(held_out, 0.5, seed=7):
        with make(part, config(batch_size=4), training=False) as loader:
            inner = {key: index for batch in loader for key, index in zip(batch.keys, batch.index_B.tolist())}
        assert len(inner) == part.num_samples and inner.items() <= seen["held_out"].items()


def test_a_started_loader_is_ready_and_gives_the_same_batches(shards):
    """Also when it is started in the middle, or started for nothing."""
    expected = all_contents(make(shards))
    with make(shards) as loader:
        loader.start()
        deadline = time.monotonic() + 10
        while (ready := loader._pipeline.take_ready()) is None:
            assert time.monotonic() < deadline, "nothing was made ahead"
        assert ready.keys == expected[0][0]
    with make(shards) as loader:
        loader.start()
        loader.start()
        state = loader.state_dict()
        assert [contents(batch) for batch in loader] == expected
        loader.start()  # the next epoch, which is then not wanted
        assert (loader.epoch, loader.step) == (1, 0)
        loader.load_state_dict({**state, "step": 20})
        loader.start()
        loader.set_epoch(0)
        loader.close()
        assert [contents(batch) for batch in loader] == expected[20:]


@pytest.mark.parametrize("where", ["host", "device"])
def test_a_loader_may_be_iterated_in_inference_mode(shards, where):
    """Its buffers outlive the mode, and are filled on threads that know nothing of it."""
    expected = all_contents(make(shards, config(resize=where), training=False))
    with make(shards, config(resize=where), training=False) as loader:
        with torch.inference_mode():
            assert [contents(batch) for batch in loader] == expected
        assert [contents(batch) for batch in loader] == expected


def test_a_batch_moves_as_a_whole(shards):
    with make(shards) as loader:
        batch = next(iter(loader))
    assert batch.to("cpu") is batch
    moved = batch.to(torch.device("meta"), non_blocking=True)
    assert {moved.image_BCHW.device.type, moved.target_BK.device.type, moved.ignore_BK.device.type} == {"meta"}
    assert moved.keys == batch.keys and moved.index_B is batch.index_B and batch.image_BCHW.device.type == "cpu"


def test_a_loader_opens_a_folder_and_takes_its_place_in_a_process_group(folder, shards, monkeypatch):
    with Loader(str(folder), CONFIG, training=True) as loader:
        assert (loader.rank, loader.world_size) == (0, 1)
        assert next(iter(loader)).keys == next(iter(make(shards))).keys
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    with Loader(folder, CONFIG, training=True) as loader, make(shards, rank=1, world_size=4) as expected:
        assert next(iter(loader)).keys == next(iter(expected)).keys
    with Loader(folder, CONFIG, training=True, rank=0, world_size=1) as loader:
        assert len(next(iter(loader))) == CONFIG.batch_size


def test_position_rules(shards):
    with make(shards) as loader:
        keys = [batch.keys for _, batch in zip(range(3), loader)]
        assert loader.state_dict()["step"] == 3
        assert next(iter(loader)).keys == keys[0], "a new iteration starts at the beginning of the epoch"
        assert sum(1 for _ in loader) == len(loader) == 25
        assert (loader.epoch, loader.step) == (1, 0)
        loader.set_epoch(7)
        assert loader.state_dict()["epoch"] == 7


def test_a_position_of_another_run_is_refused(shards):
    with make(shards) as loader:
        state = loader.state_dict()
    for changed in (make(shards, config(batch_size=4)), make(shards, seed=1), make(shards, config(window=65))):
        with pytest.raises(UserError, match="cannot continue: the saved run had"):
            changed.load_state_dict(state)
    with pytest.raises(UserError, match="num_samples = 203"):
        make(hold_out(shards, 0.5)[0]).load_state_dict(state)


def test_impossible_settings_are_said(shards, tmp_path):
    with pytest.raises(UserError, match="no complete batch of 500"):
        make(shards, config(batch_size=500))
    with pytest.raises(UserError, match="8 for 9 ranks"):
        make(shards, world_size=9)
    with pytest.raises(UserError, match=r"stream\.batch_size is 0"):
        config(batch_size=0)
    write_keep_masks(tmp_path / "masks", [np.ones((8, 8), dtype=np.uint8)])
    with pytest.raises(FormatError, match="keep-masks, not images"):
        open_shard_set(tmp_path / "masks")


def test_batches_survive_the_ring(shards):
    # Images that were handed out must not change when their buffers are used again.
    with make(shards, config(num_buffers=2)) as loader:
        batches = list(loader)
    copies = all_contents(make(shards))
    assert [contents(batch) for batch in batches] == copies


def test_decoding_threads_use_one_torch_thread_and_the_consumer_keeps_its_own(shards, monkeypatch):
    seen = set()

    def resize(*arguments):
        resize_crop(*arguments)
        seen.add(torch.get_num_threads())

    monkeypatch.setattr("msltrain.stream.pixels.buffers.resize_crop", resize)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with make(shards, config(image_size=224)) as loader:
            for _ in loader:
                assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == {1}


def test_greyscale_and_larger_images_come_through(tmp_path):
    write_images(tmp_path, [4], {"s000001": photo(1, 41, 37, "L")})
    with make(open_shard_set(tmp_path), config(batch_size=4), training=False) as loader:
        (batch,) = loader
    grey_CHW = batch.image_BCHW[1]
    assert torch.equal(grey_CHW[0], grey_CHW[1]) and torch.equal(grey_CHW[0], grey_CHW[2])
    assert not torch.equal(batch.image_BCHW[0][0], batch.image_BCHW[0][1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gets_the_very_same_batches(shards):
    cfg = config(num_buffers=2, mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.2))
    with make(shards, cfg) as ours, Loader(shards, cfg, device="cuda", training=True) as theirs:
        for _ in range(2):
            pairs = list(zip(ours, theirs, strict=True))
            for cpu, gpu in pairs:
                assert gpu.keys == cpu.keys and gpu.image_BCHW.is_cuda
                assert gpu.image_BCHW.is_contiguous(memory_format=torch.channels_last)
                torch.testing.assert_close(gpu.image_BCHW.cpu(), cpu.image_BCHW)
                assert torch.equal(gpu.target_BK.cpu(), cpu.target_BK)
                assert torch.equal(gpu.ignore_BK.cpu(), cpu.ignore_BK)
        assert theirs.stats.num_images == 400
