"""Damaged samples: fatal by default; skipped on request, in a way that is exact, bounded and the same anywhere."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from msldata.errors import UserError
from msltrain.__main__ import app
from msltrain.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from msltrain.evaluation.evaluate import evaluate
from msltrain.measures.predictions import read_predictions
from msltrain.recipes.paper import BASELINE_LOSS
from msltrain.robustness.run import Study, run_study
from msltrain.stream.config import StreamConfig
from msltrain.stream.errors import SampleError, TooManySkipped
from msltrain.stream.keepmasks.choice import choose
from msltrain.stream.loader import Loader
from msltrain.stream.order.plan import EpochPlan
from msltrain.stream.order.random import key_hash
from msltrain.stream.samples.shardset import ShardSet, open_shard_set
from msltrain.training.events import EpochEvent
from msltrain.training.trainer import train
from tests.integration.test_evaluate import write_checkpoint
from tests.remotefolder import remote
from tests.smallshards import CLASSES, write_images, write_keep_masks

CONFIG = StreamConfig(image_size=24, batch_size=8, window=32, num_threads=2, on_sample_error="skip")
BAD = (3, 20, 21, 22, 37)
"""No image at all, though its checksum is right; the others are damaged in the tar."""


def damage(folder: Path, number: int) -> None:
    """Overwrite some bytes in the middle of a sample's image."""
    shards = open_shard_set(folder)
    shard = int(np.searchsorted(np.cumsum(shards.counts), number, side="right"))
    row = number - int(shards.counts[:shard].sum())
    rows = shards.rows(np.array([shard]), np.array([row]))[1]
    with open(folder / shards.manifest.shards[shard].name, "r+b") as file:
        file.seek(int(rows.offset_N[0]) + int(rows.length_N[0]) // 2)
        file.write(b"\x00damage\x00")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """66 samples in three uneven shards, five of them bad."""
    path = tmp_path_factory.mktemp("damaged")
    write_images(path, [30, 31, 5], {"s000003": b"this is no image"}, with_objects=True)
    for number in BAD[1:]:
        damage(path, number)
    return path


def make(shards: ShardSet, *, rank: int = 0, world_size: int = 1, training: bool = True, **changes) -> Loader:
    config = replace(CONFIG, **changes)
    return Loader(shards, config, device="cpu", rank=rank, world_size=world_size, training=training)


def contents(batch) -> tuple:
    return batch.keys, batch.index_B.tolist(), batch.image_BCHW.numpy().tobytes(), batch.target_BK.tolist()


def all_contents(loader: Loader) -> list[tuple]:
    with loader:
        return [contents(batch) for batch in loader]


def order_of_the_epoch(shards: ShardSet) -> list[int]:
    plan = EpochPlan(shards.counts, seed=0, epoch=0, window=CONFIG.window)
    return shards.rows(*plan.items(0, plan.num_samples))[0].tolist()


def test_by_default_the_first_bad_sample_ends_it(folder):
    with pytest.raises(SampleError, match=r"sample 's0000\d\d' at byte \d+ of .*\.tar: "):
        all_contents(make(open_shard_set(folder), on_sample_error="fail"))


@pytest.mark.parametrize("open_shards", [open_shard_set, remote])
def test_a_bad_sample_gives_its_place_to_the_good_one_before_it(folder, open_shards):
    shards = open_shards(folder)
    loader = make(shards)
    batches = all_contents(loader)
    order = order_of_the_epoch(shards)
    expected = []
    for item in range(64):
        while order[item] in BAD:
            item -= 1
        expected.append(order[item])
    found = [index for batch in batches for index in batch[1]]
    assert found == expected
    assert [len(batch[0]) for batch in batches] == [8] * 8
    assert [f"s{index:06d}" for index in found] == [key for batch in batches for key in batch[0]]
    for keys, indexes, pixels, targets in batches:
        image_of = dict(zip(indexes, np.frombuffer(pixels, np.uint8).reshape(8, -1), strict=True))
        for key, index, image, target_K in zip(keys, indexes, np.frombuffer(pixels, np.uint8).reshape(8, -1), targets):
            assert (image == image_of[index]).all() and image.any(), f"{key}: twice the same sample is the same image"
            assert target_K == [float(index % 3 == k) for k in range(3)]
    met = {order[item] for item in range(64)}
    assert sorted(loader.skipped.errors) == [number for number in BAD if number in met]


def test_replacements_do_not_depend_on_ranks_threads_or_resuming(folder):
    expected = all_contents(make(open_shard_set(folder)))
    for world_size in (2, 4):
        ranks = [
            all_contents(make(open_shard_set(folder), rank=rank, world_size=world_size)) for rank in range(world_size)
        ]
        assert [sorted(batch[1]) for batch in expected] == [
            sorted(index for batch in step for index in batch[1]) for step in zip(*ranks, strict=True)
        ]
    assert all_contents(make(open_shard_set(folder), num_threads=5, num_buffers=2)) == expected
    with make(open_shard_set(folder)) as loader:
        state = {**loader.state_dict(), "step": 4}
    with make(open_shard_set(folder)) as resumed:
        resumed.load_state_dict(state)
        assert [contents(batch) for batch in resumed] == expected[4:]


def test_a_sample_counts_once_and_too_many_are_fatal(folder):
    with make(open_shard_set(folder), max_skipped=5) as loader:
        for _ in range(3):
            for _ in loader:
                pass
        assert len(loader.skipped) == 5
    message = r"small/train: 5 samples cannot be used, more than stream\.max_skipped = 4"
    with (
        pytest.raises(TooManySkipped, match=message),
        make(open_shard_set(folder), max_skipped=4) as loader,
    ):
        for _ in range(3):
            for _ in loader:
                pass


def test_nothing_but_bad_samples_ends_too(tmp_path):
    write_images(tmp_path, [12], {f"s{number:06d}": b"no image" for number in range(12)})
    with pytest.raises(SampleError):
        all_contents(make(open_shard_set(tmp_path)))


def test_a_missing_shard_is_never_skipped(folder, tmp_path):
    write_images(tmp_path, [20, 20])
    (tmp_path / "small-train-000001.tar").unlink()
    for shards in (open_shard_set(tmp_path), remote(tmp_path)):
        with pytest.raises(FileNotFoundError, match=r"000001\.tar"):
            all_contents(make(shards))


@pytest.mark.parametrize("world_size", [1, 3])
def test_evaluation_leaves_bad_samples_out(folder, world_size):
    seen, skipped = [], []
    for rank in range(world_size):
        loader = make(open_shard_set(folder), training=False, rank=rank, world_size=world_size, batch_size=3)
        for keys, indexes, pixels, targets in all_contents(loader):
            assert keys == [f"s{index:06d}" for index in indexes] and len(keys) * 24 * 24 * 3 * 4 == len(pixels) > 0
            assert targets == [[float(index % 3 == k) for k in range(3)] for index in indexes]
            seen += indexes
        skipped += loader.skipped.errors
    assert sorted(skipped) == list(BAD) and sorted(seen + skipped) == list(range(66))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("run"), CLASSES)


def test_the_predictions_name_what_is_not_in_them(folder, run, tmp_path):
    write_images(tmp_path / "healthy", [30, 31, 5], with_objects=True)
    masks = [np.ones((32, 32), np.uint8) for _ in range(20)]
    for number, mask_SS in enumerate(masks):
        mask_SS[: number + 2] = 0
    write_keep_masks(tmp_path / "masks", masks)
    options = {"keep_masks": tmp_path / "masks", "batch_size": 4, "device": "cpu"}
    whole = evaluate(run, tmp_path / "healthy", **options)
    found = evaluate(run, folder, **options, on_sample_error="skip", out=tmp_path / "found.parquet")
    good = [number for number in range(66) if number not in BAD]
    chosen_N = choose(key_hash(found.keys), 20, seed=0, epoch=0)
    assert found.origin.hole_fraction == pytest.approx((chosen_N + 2).mean() / 32) != whole.origin.hole_fraction
    assert found.keys == tuple(whole.keys[number] for number in good) and len(found.keys) == 61
    np.testing.assert_array_equal(found.logit_NK, whole.logit_NK[good])
    np.testing.assert_array_equal(found.target_NK, whole.target_NK[good])
    np.testing.assert_array_equal(found.objects.dense("area"), whole.objects.dense("area")[good])
    assert [line.split(" ")[0] for line in found.origin.skipped] == [f"s{number:06d}" for number in BAD]
    assert found.origin.skipped[1].endswith("of small-train-000000.tar: the bytes do not match their CRC-32")
    assert read_predictions(tmp_path / "found.parquet").origin == found.origin
    assert whole.origin.skipped == ()


@pytest.fixture(params=["disk", "bucket", "cached"])
def place(request, folder, s3, tmp_path) -> list[str]:
    """Where the commands find the damaged shards, as their options."""
    if request.param == "disk":
        return ["--data", str(folder)]
    shutil.copytree(folder, s3.root / "bucket" / "damaged", dirs_exist_ok=True)
    cache = ["--cache", str(tmp_path / "cache")] if request.param == "cached" else []
    return ["--data", "s3://bucket/damaged", *cache]


def msl(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_evaluate_lists_them_or_stops_at_the_first(place, run, tmp_path):
    command = ["evaluate", "--checkpoint", run, *place, "--device", "cpu", "--out", tmp_path / "x.parquet"]
    refused = msl(*command)
    assert refused.exit_code == 2 and "error: small/train: sample 's000003' at byte" in refused.output
    assert "--on-sample-error skip" in refused.output
    assert not (tmp_path / "x.parquet").exists()
    done = msl(*command, "--on-sample-error", "skip")
    assert done.exit_code == 0 and "61 samples" in done.output, done.output
    assert "5 bad samples were left out:" in done.output
    assert all(f"s{number:06d} at byte" in done.output for number in BAD)


@pytest.fixture(scope="module")
def masks(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("masks") / "held-out"
    half = np.ones((64, 64), np.uint8)
    half[:, :20] = 0
    write_keep_masks(folder, [half])
    return folder


def test_robustness_leaves_them_out_of_every_model_or_stops_at_the_first(place, folder, run, masks, tmp_path):
    other = write_checkpoint(tmp_path / "other", CLASSES, seed=1)
    command = ["robustness", "--checkpoint", run, "--name", "One", "--checkpoint", other, "--name", "Two", *place]
    command += ["--keep-masks", masks, "--device", "cpu", "--batch-size", 4, "--out", tmp_path / "study"]
    refused = msl(*command)
    assert refused.exit_code == 2 and "error: small/train: sample 's000003' at byte" in refused.output
    assert not list((tmp_path / "study").rglob("*.parquet"))
    done = msl(*command, "--on-sample-error", "skip")
    assert done.exit_code == 0, done.output
    assert "5 bad samples were left out:" in done.output
    table = (tmp_path / "study" / "robustness.md").read_text()
    assert all(f"s{number:06d} at byte" in text for number in BAD for text in (done.output, table))
    assert table.splitlines()[2].startswith("small, train split: 61 images, 2 models, ")
    files = sorted((tmp_path / "study" / "predictions").rglob("*.parquet"))
    assert len(files) == 4
    for file in files:
        found = read_predictions(file)
        assert len(found.keys) == 61 and len(found.origin.skipped) == 5
    refused = msl(*command)
    assert refused.exit_code == 2 and "leaves out 5 damaged samples" in " ".join(refused.output.split())


def test_a_stopped_study_remembers_what_it_left_out(folder, run, masks, tmp_path):
    study = Study(models=(("One", str(run)),), shards=str(folder), keep_masks=(str(masks),))
    options: dict = {"batch_size": 4, "device": "cpu", "save_seconds": 0.0}
    whole = run_study(study, tmp_path / "whole", on_sample_error="skip", **options)["One"]
    seen: list[int] = []

    def stop(done: int, of: int) -> None:
        seen.append(done)
        if done == 40 and seen.count(40) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(study, tmp_path / "a", on_sample_error="skip", progress=lambda name: nullcontext(stop), **options)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with pytest.raises(SampleError, match="s000003"):
        run_study(study, tmp_path / "b", **options)
    found = run_study(study, tmp_path / "a", on_sample_error="skip", progress=lambda name: nullcontext(stop), **options)
    assert seen[seen.index(40) + 1] == 40, "the samples that were done, the damaged ones among them, are passed"
    for name, one in whole.items():
        assert found["One"][name].keys == one.keys and found["One"][name].origin == one.origin
        np.testing.assert_array_equal(found["One"][name].logit_NK, one.logit_NK)


def test_a_study_of_shards_that_were_mended_in_between_is_refused(folder, run, masks, tmp_path):
    shutil.copytree(folder, tmp_path / "shards")
    options: dict = {"batch_size": 4, "device": "cpu", "on_sample_error": "skip"}
    study = Study(models=(("One", str(run)),), shards=str(tmp_path / "shards"), keep_masks=(str(masks),))
    run_study(study, tmp_path / "study", **options)
    write_images(tmp_path / "shards", [30, 31, 5], {"s000003": b"this is no image"}, with_objects=True)
    (tmp_path / "study" / "predictions" / "One" / "whole.parquet").unlink()
    with pytest.raises(UserError, match=r"irregular-30-40.*on 61 samples, .*whole.* on 65 \(they differ in s0000"):
        run_study(study, tmp_path / "study", **options)


def test_damaged_images_for_recalibration_are_named(folder, run, masks, tmp_path):
    write_images(tmp_path / "test", [6])
    write_keep_masks(tmp_path / "masks", [np.ones((64, 64), np.uint8)])
    command = ["robustness", "--checkpoint", run, "--name", "One", "--data", tmp_path / "test", "--keep-masks", masks]
    command += ["--recalibrate", folder, "--recalibrate-masks", tmp_path / "masks", "--device", "cpu"]
    done = msl(*command, "--out", tmp_path / "study", "--on-sample-error", "skip")
    assert done.exit_code == 0, done.output
    for number in BAD:
        assert f"not used to measure BatchNorm: s{number:06d} at byte" in done.output
    assert "were left out" not in done.output


def test_train_lists_them_or_stops_at_the_first(place, tmp_path):
    settings = ["data.validation_fraction=0.2", "stream.image_size=32", "stream.batch_size=8", "optim.num_epochs=1"]
    settings += ["model.backbone=test_efficientnet", "model.weights=", "stream.num_threads=1", "run.device=cpu"]
    chosen = [text for setting in settings for text in ("--set", setting)]
    command = ["train", "--recipe", "baseline-c-voc2007", *place, *chosen]
    refused = msl(*command, "--run", tmp_path / "refused")
    assert refused.exit_code == 2, refused.output
    message = " ".join(refused.output.split())
    assert re.search(r"error: small/train: sample 's0000\d\d' at byte \d+ of \S+/small-train-00000\d\.tar: ", message)
    done = msl(*command, "--run", tmp_path / "run", "--on-sample-error", "skip")
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert sorted(row["key"] for row in rows) == [f"s{number:06d}" for number in BAD]


def train_config(folder: Path, **stream) -> TrainConfig:
    return TrainConfig(
        data=DataConfig(train=str(folder), validation_fraction=0.2),
        stream=StreamConfig(image_size=32, batch_size=8, num_threads=1, **stream),
        model=ModelConfig(backbone="test_efficientnet"),
        loss=BASELINE_LOSS,
        optim=OptimConfig(num_epochs=2),
        run=RunConfig(device="cpu"),
    )


def test_a_run_lists_what_it_skipped_and_can_start_to_on_resuming(folder, tmp_path):
    torch.set_num_threads(1)
    with pytest.raises(SampleError):
        train(train_config(folder), run_dir=tmp_path / "run")
    events = []
    config = train_config(folder, on_sample_error="skip")
    train(config, run_dir=tmp_path / "run", resume=True, on_event=events.append)
    rows = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert sorted(row["key"] for row in rows) == [f"s{number:06d}" for number in BAD]
    assert set(rows[0]) == {"dataset", "shard", "key", "offset", "reason"}
    assert [event.num_skipped for event in events if isinstance(event, EpochEvent)][-1] == 5
    with pytest.raises(TooManySkipped):
        train(train_config(folder, on_sample_error="skip", max_skipped=1), run_dir=tmp_path / "other")
    assert len((tmp_path / "other" / "skipped.jsonl").read_text().splitlines()) >= 2
