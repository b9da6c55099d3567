"""The loader alone: where it goes on, what makes a saved position worthless, its threads, what it skips and keeps."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from msldata.contract import pixels
from msldata.errors import UserError
from msltrain.stream.config import StreamConfig
from msltrain.stream.errors import SampleError
from msltrain.stream.loader import Loader, StreamStats
from msltrain.stream.order.crop_and_flip import random_crops, random_flips
from msltrain.stream.order.plan import EpochPlan
from msltrain.stream.pipeline import Pipeline
from msltrain.stream.pixels.batch import Batch, HostBatch
from msltrain.stream.pixels.device import ToDevice
from msltrain.stream.pixels.nvjpeg import EncodedImages
from msltrain.stream.pixels.resize import WholeImages
from msltrain.stream.samples.shardset import open_shard_set
from tests.smallshards import photo, write_images


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    write_images(folder, [12, 14])
    return folder


def open_loader(folder: Path, *, training: bool = True, seed: int = 0, **settings: int | float | str | None) -> Loader:
    config = StreamConfig(image_size=16, **{"batch_size": 4, "window": 12, "num_threads": 1, **settings})
    return Loader(folder, config, training=training, seed=seed)


def test_a_started_loader_goes_on_where_the_loaded_position_says(folder: Path):
    with open_loader(folder) as loader:
        whole = [batch.keys for batch in loader]
        assert len(whole) == len(loader) == 6
        begun = loader.state_dict()
        assert (begun["epoch"], begun["step"], loader.next_epoch) == (1, 0, 1), (
            "the end of one is the start of the next"
        )
        loader.set_epoch(0)
        loader.start()
        loader.load_state_dict({**loader.state_dict(), "step": 4})
        assert [batch.keys for batch in loader] == whole[4:]


def test_a_helper_is_told_all_that_decides_a_batch(folder: Path, monkeypatch: pytest.MonkeyPatch):
    told: list[tuple[tuple[object, ...], dict[str, object]]] = []
    passes = SimpleNamespace(open=None, close=lambda: None)
    monkeypatch.setattr("msltrain.stream.loader.HelperPasses", lambda *of, **how: told.append((of, how)) or passes)
    config = StreamConfig(batch_size=4, process="helper", resize="device")
    Loader(folder, config, training=True, seed=7, rank=1, world_size=2)
    [((shards, its_config), how)] = told
    assert (shards.num_samples, its_config) == (26, config)
    assert how == {"seed": 7, "rank": 1, "world_size": 2, "resize": "device", "device": torch.device("cpu")}


def test_a_started_loader_goes_to_the_epoch_that_is_set(folder: Path):
    with open_loader(folder) as fresh, open_loader(folder) as loader:
        fresh.set_epoch(3)
        loader.start()
        loader.set_epoch(3)
        assert [batch.keys for batch in loader] == [batch.keys for batch in fresh]


def test_a_position_inside_the_epoch_that_is_set_is_kept(folder: Path):
    with open_loader(folder) as loader:
        begun = loader.state_dict()
        assert (begun["epoch"], begun["step"], loader.next_epoch) == (0, 0, 0)
        whole = [batch.keys for batch in loader]
        loader.load_state_dict({**begun, "step": 4})
        loader.set_epoch(0)
        assert [batch.keys for batch in loader] == whole[4:]
        loader.load_state_dict({**begun, "step": 4})
        loader.set_epoch(1)
        assert len([batch.keys for batch in loader]) == 6


def test_every_epoch_after_a_resumed_one_is_whole(folder: Path):
    with open_loader(folder) as loader:
        begun = loader.state_dict()
        first, second = ([batch.keys for batch in loader] for _ in range(2))
        loader.load_state_dict({**begun, "step": 4})
        assert loader.state_dict() == {**begun, "step": 4}, "also before anything is read"
        assert [batch.keys for batch in loader] == first[4:]
        assert [batch.keys for batch in loader] == second


def test_a_pass_that_is_left_ends_its_threads(folder: Path):
    with open_loader(folder) as loader:
        batches = iter(loader)
        next(batches)
        batches.close()
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("msl-decode")]


def test_a_buffer_is_free_once_its_batch_is_made_and_every_wait_counts(folder: Path, monkeypatch: pytest.MonkeyPatch):
    done: list[str] = []
    make, release = ToDevice.__call__, Pipeline.release
    monkeypatch.setattr(ToDevice, "__call__", lambda *of: done.append("made") or make(*of))
    monkeypatch.setattr(Pipeline, "release", lambda *of: done.append("free") or release(*of))
    clock = SimpleNamespace(perf_counter=itertools.count().__next__)
    monkeypatch.setattr("msltrain.stream.loader.time", clock)
    with open_loader(folder) as loader:
        assert len(list(loader)) == 6 and done == 6 * ["made", "free"]
        assert loader.stats.seconds_waited == 6


def test_raw_batches_count_as_well(folder: Path):
    with open_loader(folder) as loader:
        assert loader.stats == StreamStats(num_images=0, num_bytes=0, seconds_waited=0)
        assert [loader.step for _ in loader.host_batches()] == [1, 2, 3, 4, 5, 6]
        assert not decoding()


def test_what_was_delivered_is_counted_step_by_step(folder: Path):
    rows = open_shard_set(folder)
    _, all_rows = rows.rows(*EpochPlan(rows.counts, seed=0, epoch=0).items(0, 26))
    with open_loader(folder, drop_last=False) as loader:
        began = time.perf_counter()
        places = [(loader.step, loader.state_dict()["step"], loader.stats.num_images) for _ in loader]
        assert places == [(step, step, min(4 * step, 26)) for step in range(1, 8)]
        for _ in loader:
            pass
        seconds = time.perf_counter() - began
    assert (loader.stats.num_images, loader.stats.num_bytes) == (52, 2 * all_rows.length_N.sum())
    assert 0 < loader.stats.seconds_waited < seconds


def decoding() -> bool:
    return any(thread.name.startswith("msl-decode") for thread in threading.enumerate())


def test_the_end_of_an_epoch_is_the_beginning_of_the_next(folder: Path):
    """Also for a run that was stopped just there."""
    with open_loader(folder) as loader:
        begun = loader.state_dict()
        epochs = [[batch.keys for batch in loader] for _ in range(2)]
        loader.load_state_dict({**begun, "step": 6})
        assert loader.next_epoch == 1
        assert [batch.keys for batch in loader] == epochs[1]
        assert (loader.epoch, loader.next_epoch) == (2, 2)


def test_what_was_started_and_closed_is_begun_again_at_its_place(folder: Path):
    with open_loader(folder) as loader:
        begun = loader.state_dict()
        whole = [batch.keys for batch in loader]
        loader.load_state_dict({**begun, "step": 4})
        loader.start()
        loader.close()
        assert [batch.keys for batch in loader] == whole[4:]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="nothing says what is mapped")
def test_shards_are_let_go_at_the_end(tmp_path: Path):
    write_images(tmp_path, [8])
    with open_loader(tmp_path) as loader:
        assert len(list(loader)) == 2
        assert str(tmp_path) in Path("/proc/self/maps").read_text()
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_threads_live_from_the_start_to_the_end_of_the_block(folder: Path):
    with open_loader(folder) as loader:
        loader.close()  # nothing was begun
        assert not decoding()
        loader.start()
        begun = loader._pipeline
        assert decoding()
        batches = iter(loader)
        assert len(next(batches)) == 4 and decoding()
        assert loader._pipeline is begun, "what was begun goes on"
    assert not decoding()


@pytest.mark.parametrize("change", [{"seed": 1}, {"batch_size": 5}, {"window": 26}])
def test_a_position_means_nothing_where_the_order_is_another(folder: Path, change: dict[str, int]):
    (name,) = change
    with pytest.raises(UserError, match=f"the saved run had {name} = .*, this one has {change[name]}; continue"):
        open_loader(folder, **change).load_state_dict(open_loader(folder).state_dict())


def test_a_position_means_nothing_with_other_samples(folder: Path, tmp_path: Path):
    state = open_loader(folder).state_dict()
    for counts, name in (([12, 13], "num_samples"), ([14, 12], "fingerprint")):
        write_images(tmp_path / name, counts)
        with pytest.raises(UserError, match=f"the saved run had {name} = "):
            open_loader(tmp_path / name).load_state_dict(state)


def test_decoding_on_a_device_needs_one(folder: Path):
    with pytest.raises(UserError, match="needs a CUDA GPU; this process runs on cpu"):
        Loader(folder, StreamConfig(image_size=16, batch_size=4, decode="device"), training=True)


def test_images_are_decoded_once_where_there_is_room(folder: Path):
    with open_loader(folder, batch_size=13, ram_cache_gb=0.1) as loader:
        seconds = []
        for _ in range(3):
            assert sum(len(batch) for batch in loader) == 26
            seconds.append(loader.stage_seconds().decode)
    assert 0 < seconds[0] == seconds[1] == seconds[2]


@pytest.mark.parametrize(("room", "is_enough"), [(1.001, True), (0.999, False)])
def test_room_is_counted_in_billions_of_bytes(folder: Path, room: float, is_enough: bool):
    rows = open_shard_set(folder)
    _, all_rows = rows.rows(*EpochPlan(rows.counts, seed=0, epoch=0).items(0, 26))
    num_bytes = 3 * int((all_rows.width_N * all_rows.height_N).sum())
    with open_loader(folder, batch_size=13, ram_cache_gb=num_bytes * room / 1e9) as loader:
        for _ in range(2):
            before = loader.stats.num_bytes
            assert sum(len(batch) for batch in loader) == 26
    assert (loader.stats.num_bytes == before) == is_enough


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (0, 1), (7, 1)])
def test_training_crops_and_mirrors_and_evaluation_shows_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, epoch: int
):
    monkeypatch.setattr(pixels, "LARGE", 0)  # photographs of any size are reduced in decoding
    write_images(tmp_path, [12], {f"s{number:06d}": photo(number, 400, 300) for number in range(12)}, (400, 300))
    size = np.full(12, 400), np.full(12, 300)
    config = StreamConfig()
    with open_loader(tmp_path, batch_size=12, seed=seed) as loader:
        loader.set_epoch(epoch)
        [batch] = loader
    assert batch.index_B.tolist() == EpochPlan([12], seed=seed, epoch=epoch).items(0, 12)[1].tolist()
    crop_N4 = random_crops(
        batch.key_hash_B, *size, seed=seed, epoch=epoch, scale=config.crop_scale, ratio=config.crop_ratio
    )
    reduction_N = pixels.reductions(*size, crop_N4, 16)
    assert reduction_N.min() > 1 and (crop_N4[:, :2] % reduction_N[:, None]).any(axis=0).all()
    crop_N4[:, :2] = crop_N4[:, :2] // reduction_N[:, None] * reduction_N[:, None]  # at a pixel of what is decoded
    assert batch.crop_B4.tolist() == crop_N4.tolist()
    flip_N = random_flips(batch.key_hash_B, seed=seed, epoch=epoch, probability=config.flip_probability)
    assert batch.flip_B.tolist() == flip_N.tolist() and {*flip_N.tolist()} == {False, True}
    with open_loader(tmp_path, batch_size=12, training=False) as loader:
        [batch] = loader
    assert batch.crop_B4.tolist() == [[0, 0, 300, 400]] * 12 and not batch.flip_B.any()
    assert batch.flip_B.dtype == bool


@pytest.mark.parametrize(("resize", "kind"), [("host", torch.Tensor), ("device", WholeImages)])
def test_photographs_leave_the_host_as_it_was_asked(folder: Path, resize: str, kind: type):
    with open_loader(folder, resize=resize) as loader:
        assert all(isinstance(batch.pixels, kind) for batch in loader.host_batches())


def test_evaluation_takes_no_room_from_training(folder: Path):
    with open_loader(folder, training=False, ram_cache_gb=0.1) as loader:
        for _ in range(2):
            before = loader.stats.num_bytes
            assert sum(len(batch) for batch in loader) == 26
    assert loader.stats.num_bytes > before


def test_every_rank_has_a_sample_at_least(folder: Path):
    config = StreamConfig(image_size=16, batch_size=4, num_threads=1)
    shares = [Loader(folder, config, training=True, rank=rank, world_size=4) for rank in range(4)]
    for loader in shares:
        with loader:
            assert [len(batch) for batch in loader] == [1] * 6
    with pytest.raises(UserError, match=r"stream\.batch_size is 4 for 5 ranks"):
        Loader(folder, config, training=True, rank=0, world_size=5)


def test_a_bad_sample_is_replaced_and_listed(tmp_path: Path):
    write_images(tmp_path, [12], {"s000003": b"no photograph"})
    with open_loader(tmp_path, on_sample_error="skip") as loader:
        assert [len(batch) for batch in loader] == [4, 4, 4]
        [error] = loader.skipped.errors.values()
    assert "s000003" in str(error)


def test_the_first_of_an_epoch_is_replaced_by_its_last(tmp_path: Path):
    _, order = EpochPlan([12], seed=0, epoch=0, window=12).items(0, 12)
    write_images(tmp_path, [12], {f"s{order[0]:06d}": b"no photograph"})
    with open_loader(tmp_path, on_sample_error="skip") as loader:
        keys = [key for batch in loader for key in batch.keys]
    assert keys == [f"s{number:06d}" for number in (order[-1], *order[1:])]


def test_what_is_left_of_a_batch_keeps_its_own_places_and_sizes(tmp_path: Path):
    """Photographs differ in width, and are resized all together after the bad ones were left out."""
    write_images(tmp_path, [8], {"s000001": b"no photograph", "s000004": b"nor this"})
    found = []
    for resize in ("host", "device"):
        with open_loader(tmp_path, training=False, batch_size=8, on_sample_error="skip", resize=resize) as loader:
            [batch] = loader
        assert batch.keys == ["s000000", "s000002", "s000003", "s000005", "s000006", "s000007"]
        found.append(batch.image_BCHW)
    torch.testing.assert_close(*found, atol=1.01 / 255 / min(StreamConfig().std), rtol=0)


def test_bad_samples_in_a_row_are_replaced_by_the_good_one_before_them(tmp_path: Path):
    """Those that only stood before one are listed as well: here the run goes on behind the first of them."""
    order = EpochPlan([12], seed=0, epoch=0).items(0, 12)[1].tolist()
    write_images(tmp_path, [12], {f"s{number:06d}": b"no photograph" for number in order[3:6]})
    with open_loader(tmp_path, on_sample_error="skip") as loader:
        loader.load_state_dict({**loader.state_dict(), "step": 1})
        assert next(iter(loader)).index_B.tolist() == [order[2], order[2], order[6], order[7]]
        assert sorted(loader.skipped.errors) == sorted(order[3:6])


def test_a_bad_sample_is_an_error_unless_it_may_be_skipped(tmp_path: Path):
    write_images(tmp_path, [12], {"s000003": b"no photograph"})
    with open_loader(tmp_path) as loader, pytest.raises(SampleError, match="s000003"):
        list(loader)


def test_what_is_read_ahead_is_counted_in_mebibytes(folder: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[int] = []

    class Recorded(Pipeline):
        def __init__(self, *arguments, read_ahead_bytes: int, **options):
            asked.append(read_ahead_bytes)
            super().__init__(*arguments, read_ahead_bytes=read_ahead_bytes, **options)

    monkeypatch.setattr("msltrain.stream.passes.Pipeline", Recorded)
    with open_loader(folder, read_ahead_mb=3) as loader:
        assert len(list(loader)) == 6
    assert asked == [3 << 20]


def test_a_rank_has_room_for_its_part_and_no_more(folder: Path):
    config = StreamConfig(image_size=16, batch_size=5, num_threads=1)
    sizes = []
    for rank in range(2):
        with Loader(folder, config, training=True, rank=rank, world_size=2, allow_uneven=True) as loader:
            for batch in loader.host_batches():
                assert isinstance(batch.pixels, torch.Tensor)
                sizes.append(batch.pixels.untyped_storage().nbytes())
    assert sizes == [3 * 16 * 16 * 3] * 10


def test_an_iteration_that_is_left_standing_ends_where_another_begins(folder: Path):
    with open_loader(folder) as loader:
        left, begun = iter(loader), iter(loader)
        next(left)
        assert len(next(begun)) == 4
        assert sum(thread.name.startswith("msl-decode") for thread in threading.enumerate()) == 1


def test_a_pass_ends_where_another_begins_or_all_is_closed(folder: Path):
    with open_loader(folder) as loader:
        passes = loader._passes
        first, second = passes.open(0, 0), passes.open(0, 0)
        with pytest.raises(RuntimeError, match="this iteration has ended"):
            first.take()
        assert second.take() is not None
        passes.close()
        with pytest.raises(RuntimeError, match="this iteration has ended"):
            second.take()


def test_the_same_memory_serves_every_epoch(folder: Path):
    with open_loader(folder) as loader:
        places = [{batch.pixels.data_ptr() for batch in loader.host_batches()} for _ in range(2)]  # type: ignore[union-attr]
    assert places[0] == places[1] and len(places[0]) <= StreamConfig().num_buffers


def test_in_evaluation_no_rank_gets_an_empty_batch(folder: Path):
    config = StreamConfig(image_size=16, batch_size=4, num_threads=1)
    found = []
    for rank in range(4):
        with Loader(folder, config, training=False, rank=rank, world_size=4) as loader:
            found += [batch.keys for batch in loader]
    assert sorted(found) == [[f"s{number:06d}"] for number in range(26)]


def test_another_way_to_the_square_sees_the_whole_photograph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pixels, "LARGE", 0)  # photographs of any size are reduced in decoding
    write_images(tmp_path, [2], {f"s{number:06d}": photo(number, 400, 300) for number in range(2)}, (400, 300))
    shapes = []

    def to_square(image_HWC: np.ndarray) -> torch.Tensor:
        shapes.append(image_HWC.shape)
        return torch.full((1, 3, 16, 16), 7, dtype=torch.uint8)

    config = StreamConfig(image_size=16, batch_size=2, num_threads=1)
    with Loader(tmp_path, config, training=False, to_square=to_square) as loader:
        [batch] = loader.host_batches()
    assert isinstance(batch.pixels, torch.Tensor) and (batch.pixels == 7).all()
    assert shapes == [(300, 400, 3)] * 2


def test_a_loader_takes_its_place_in_the_group_of_processes(folder: Path, monkeypatch: pytest.MonkeyPatch):
    for name, value in (("is_initialized", True), ("get_rank", 1), ("get_world_size", 2)):
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    with open_loader(folder) as loader:
        assert (loader.rank, loader.world_size) == (1, 2)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)
    with open_loader(folder) as loader:
        assert (loader.rank, loader.world_size) == (0, 1)


@pytest.mark.parametrize(
    ("ranks", "cpus", "num_threads"), [(None, 6, 6), ("1", 6, 6), ("2", 6, 3), ("4", 6, 1), ("8", 6, 1)]
)
def test_the_processors_are_shared_among_the_ranks_of_a_host(
    folder: Path, monkeypatch: pytest.MonkeyPatch, ranks: str | None, cpus: int, num_threads: int
):
    if ranks is None:
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    else:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(99 if process else cpus)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 99)
    assert open_loader(folder, num_threads=None).num_threads == num_threads
    monkeypatch.delattr(os, "sched_getaffinity")  # macOS
    monkeypatch.setattr(os, "cpu_count", lambda: cpus)
    assert open_loader(folder, num_threads=None).num_threads == num_threads
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert open_loader(folder, num_threads=None).num_threads == 1


class NoUploads:
    """What takes the place of copies to a GPU: a batch stays here, and is handed out in the same order."""

    def __init__(self, to_device: ToDevice, release: Callable[[HostBatch], None]):
        self._to_device, self._release = to_device, release
        self._staged: HostBatch | None = None

    def __enter__(self) -> NoUploads:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def is_staged(self) -> bool:
        return self._staged is not None

    def stage(self, host: HostBatch) -> None:
        assert self._staged is None, "the batch before was not collected"
        self._staged = host

    def collect(self) -> Batch:
        assert self._staged is not None
        batch = self._to_device(self._staged)
        self._release(self._staged)
        self._staged = None
        return batch


@pytest.mark.parametrize("is_ahead", [True, False])
def test_batches_for_a_gpu_are_the_same_whether_or_not_the_next_is_ready(
    folder: Path, monkeypatch: pytest.MonkeyPatch, is_ahead: bool
):
    monkeypatch.setattr("msltrain.stream.loader.Uploads", NoUploads)
    take_ready = Pipeline.take_ready
    taken: list[bool] = []

    def ready(pipeline: Pipeline) -> HostBatch | None:
        if is_ahead:  # give it the time
            pipeline._head = pipeline._head or pipeline._ready.get()
            if not isinstance(pipeline._head, StopIteration):
                pipeline._head.finished.wait()
        found = take_ready(pipeline) if is_ahead else None
        taken.append(found is not None)
        return found

    monkeypatch.setattr(Pipeline, "take_ready", ready)
    with open_loader(folder) as loader:
        whole = [batch.keys for batch in loader]
        loader.load_state_dict({**loader.state_dict(), "epoch": 0, "step": 0})
        loader.start()
        before, loader.device = loader.stats.num_images, torch.device("cuda")  # as far as it looks at it from here on
        found = [(loader.step, batch.keys) for batch in loader]
        loader.device = torch.device("cpu")
    assert found == list(enumerate(whole, 1)) and loader.stats.num_images == before + 24
    assert taken == [is_ahead] * 5 + [False]


def test_files_are_left_to_a_device_that_decodes(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("msltrain.stream.loader.check_device_decoding", lambda device: None)
    with open_loader(folder, decode="device") as loader:
        assert all(isinstance(batch.pixels, EncodedImages) for batch in loader.host_batches())


@pytest.mark.parametrize("large", [0, pixels.LARGE])  # 0: photographs of any size are reduced in decoding
def test_what_a_batch_says_of_its_images_is_the_same_wherever_they_are_resized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: int
):
    """Also of photographs that are reduced in decoding, of one in the place of a bad one, and after the first epoch."""
    monkeypatch.setattr(pixels, "LARGE", large)
    write_images(tmp_path, [5, 4], {"s000004": b"no photograph"}, (110, 70))
    found: dict[str, list[Batch]] = {}
    for resize in ("host", "device"):
        with open_loader(tmp_path, batch_size=3, on_sample_error="skip", resize=resize) as loader:
            found[resize] = [replace(batch, image_BCHW=batch.image_BCHW.clone()) for _ in range(2) for batch in loader]
    assert len(found["host"]) == 6
    for number, (one, other) in enumerate(zip(found["host"], found["device"], strict=True)):
        size = np.full(3, 110), np.full(3, 70)
        crop_N4 = random_crops(one.key_hash_B, *size, seed=0, epoch=number // 3, scale=(0.7, 1), ratio=(3 / 4, 4 / 3))
        flip_N = random_flips(one.key_hash_B, seed=0, epoch=number // 3, probability=0.5)
        assert one.crop_B4[:, 2:].tolist() == crop_N4[:, 2:].tolist(), "those of the images that are there"
        assert one.flip_B.tolist() == flip_N.tolist()
        for name in ("keys", "key_hash_B", "index_B", "crop_B4", "flip_B", "target_BK", "ignore_BK"):
            mine, theirs = np.asarray(getattr(one, name)), np.asarray(getattr(other, name))
            assert mine.tolist() == theirs.tolist() and mine.dtype == theirs.dtype, name
        assert [int(key[1:]) for key in one.keys] == one.index_B.tolist() and 4 not in one.index_B
        assert one.target_BK.argmax(1).tolist() == (one.index_B % 3).tolist()
        torch.testing.assert_close(one.image_BCHW, other.image_BCHW, atol=2.01 / 255, rtol=0)


def test_batches_of_nothing_but_bad_samples_are_passed_over(tmp_path: Path):
    """However many there are, for their buffers are used again."""
    bad = {f"s{number:06d}": b"no photograph" for number in range(2, 20)}
    write_images(tmp_path, [22], bad)
    found: list[list[list[str]]] = []
    with open_loader(tmp_path, training=False, batch_size=2, num_buffers=2, on_sample_error="skip") as loader:
        reader = threading.Thread(
            target=lambda: found.extend([batch.keys for batch in loader] for _ in range(2)), daemon=True
        )
        reader.start()
        reader.join(timeout=60)
        assert not reader.is_alive(), "it waits for a buffer"
        assert found == [[["s000000", "s000001"], ["s000020", "s000021"]]] * 2
        assert sorted(loader.skipped.errors) == list(range(2, 20))
