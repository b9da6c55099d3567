"""An evaluation from end to end with a network of a few numbers: what each sample is asked, and what is noted of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msldata.errors import UserError
from msltrain.config import DataConfig, TrainConfig
from msltrain.evaluation import evaluate as module
from msltrain.evaluation.evaluate import OwnModel, evaluate, origin_of
from msltrain.hosts.distributed import Ranks
from msltrain.measures.predictions import read_predictions
from msltrain.models.timm_view import TimmView
from msltrain.runs.checkpoint import LoadedRecogniser
from msltrain.runs.folder import DatasetIdentity
from msltrain.stream.config import StreamConfig
from msltrain.stream.keepmasks.bank import KeepMasks
from msltrain.stream.loader import Loader
from msltrain.stream.samples.holdout import hold_out
from msltrain.stream.samples.shardset import open_shard_set
from tests.smallshards import CLASSES, write_images, write_keep_masks

SIDE = 32
STREAM = StreamConfig(image_size=SIDE, num_threads=1, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
KNOWN = ("cat", "bird")
"""What the network knows: the shards have another class, and another order."""


class Sides(nn.Module):
    """A number of the left half and one of the lower half, on other scales."""

    def forward(self, image_BCHW: Tensor) -> Tensor:
        half = image_BCHW.shape[3] // 2
        left_B, lower_B = image_BCHW[..., :half].mean((1, 2, 3)), image_BCHW[:, :, half:].square().mean((1, 2, 3))
        return torch.stack([left_B, lower_B - 1], dim=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven photographs, and the same with a fourth that is none; masks that hide from 5 to 50 %."""
    root = tmp_path_factory.mktemp("data")
    write_images(root / "test", [6, 5], with_objects=True)
    write_images(root / "bad", [6, 5], {"s000003": b"no photograph"})
    masks = [np.ones((SIDE, SIDE), np.uint8) for _ in range(5)]
    for number, mask in enumerate(masks, 1):
        mask[: 3 * number, : 7 * number] = 0
    write_keep_masks(root / "masks", masks)
    return root


def loaded(**more: Any) -> LoadedRecogniser:
    config = more.pop("config", TrainConfig(stream=STREAM))
    known: dict[str, Any] = {"classes": KNOWN, "path": Path("runs/one"), "sha256": 64 * "a"} | more
    return LoadedRecogniser(recogniser=Sides().eval(), config=config, **known)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch):
    """Let `evaluate` find this model, and what its run noted of its data."""

    def model(one: LoadedRecogniser, noted: dict[str, list[DatasetIdentity]] | None = None) -> None:
        monkeypatch.setattr(module, "load_any", lambda *asked: one)
        monkeypatch.setattr(module, "training_data", lambda place, role="train": (noted or {}).get(role, []))

    model(loaded())
    return model


def images(folder: Path) -> tuple[Tensor, np.ndarray]:
    """Every photograph as the stream gives it, and the hash of its key."""
    with Loader(folder, replace(STREAM, batch_size=1, on_sample_error="skip"), training=False) as loader:
        batches = list(loader)
    hashes = np.concatenate([batch.key_hash_B for batch in batches])
    return torch.cat([batch.image_BCHW.clone() for batch in batches]), hashes


def test_each_sample_is_answered_in_the_order_of_the_models_classes(data: Path, model, tmp_path: Path):
    steps: list[tuple[int, int]] = []
    said: list[str] = []
    out = tmp_path / "answers.parquet"
    found = evaluate(
        "runs/one",
        data / "test",
        out=out,
        batch_size=4,
        device="cpu",
        progress=lambda *done: steps.append(done),
        note=said.append,
    )
    image_NCHW, _ = images(data / "test")
    assert found.classes == KNOWN and found.keys == tuple(f"s{n:06d}" for n in range(11))
    np.testing.assert_allclose(found.logit_NK, Sides()(image_NCHW).numpy(), rtol=1e-5, atol=1e-6)
    columns = [CLASSES.index(name) for name in KNOWN]
    assert found.target_NK.tolist() == [[int(n % 3 == k) for k in columns] for n in range(11)]
    assert found.ignore_NK.tolist() == [[n % 4 == 0 and (n + 1) % 3 == k for k in columns] for n in range(11)]
    assert found.objects is not None and found.objects.shape == (11, 2)
    assert steps == [(4, 11), (8, 11), (11, 11)]
    origin = found.origin
    manifest = open_shard_set(data / "test").manifest
    assert origin == origin_of(loaded(), open_shard_set(data / "test"))
    assert (origin.checkpoint, origin.checkpoint_sha256, origin.split) == ("runs/one", 64 * "a", "train")
    assert (origin.dataset_fingerprint, origin.image_size, origin.part) == (manifest.fingerprint, SIDE, "")
    assert origin.reading == loaded().reading and origin.is_of_plain_views and origin.hole_fraction == 0
    again = read_predictions(out)
    assert np.array_equal(again.logit_NK, found.logit_NK) and again.origin == origin
    assert any("1 of 3 classes left out" in text and "boat" in text for text in said)
    assert any("in another order than the model's" in text for text in said)


def test_classes_in_the_models_order_are_not_said_to_be_in_another(data: Path, model):
    model(loaded(classes=("bird", "cat")))  # with a class of the data's between them
    said: list[str] = []
    evaluate("runs/one", data / "test", device="cpu", note=said.append)
    assert len(said) == 1 and "left out" in said[0]


def test_further_views_are_averaged_and_named(data: Path, model):
    image_NCHW, _ = images(data / "test")
    larger = F.interpolate(image_NCHW, (64, 64), mode="bilinear", antialias=True, align_corners=False)
    views = [image_NCHW, larger]
    logits = [Sides()(view) for one in views for view in (one, one.flip(3))]
    found = evaluate("runs/one", data / "test", flip=True, scales=[2.0], batch_size=3, device="cpu")
    np.testing.assert_allclose(found.logit_NK, torch.stack(logits).mean(0).numpy(), rtol=1e-4, atol=1e-5)
    assert found.origin.test_time == "scale 2, flip" and not found.origin.is_of_plain_views


@pytest.mark.parametrize("seed", [0, 5])
@pytest.mark.parametrize("name", ["test", "bad"])
def test_masks_are_those_of_the_seed_and_only_what_was_seen_counts_as_hidden(data: Path, model, seed: int, name: str):
    masks = data / "masks"
    options: dict[str, Any] = {"batch_size": 4, "device": "cpu", "seed": seed, "on_sample_error": "skip"}
    found = evaluate("runs/one", data / name, keep_masks=masks, **options)
    image_NCHW, hash_N = images(data / name)
    bank = KeepMasks.open(masks, SIDE)
    keep_mask_N1HW = bank.of_hashes(hash_N, seed=seed, epoch=0)
    np.testing.assert_allclose(found.logit_NK, Sides()(image_NCHW * keep_mask_N1HW).numpy(), rtol=1e-4, atol=1e-5)
    origin = found.origin
    assert origin.hole_fraction == pytest.approx(1 - keep_mask_N1HW.mean().item()) and origin.seed == seed
    assert origin.keep_masks == (str(masks),) and len(origin.keep_mask_fingerprints) == 1
    left = [f"s{n:06d}" for n in range(11) if name == "test" or n != 3]
    assert list(found.keys) == left and len(origin.skipped) == 11 - len(left)


def test_a_damaged_photograph_stops_an_evaluation_that_is_not_told_to_go_on(data: Path, model):
    with pytest.raises(Exception, match="s000003"):
        evaluate("runs/one", data / "bad", device="cpu", num_threads=1)


def test_ranks_share_the_samples_and_each_batch_is_theirs_together(data: Path, model, monkeypatch: pytest.MonkeyPatch):
    alone = evaluate("runs/one", data / "test", batch_size=4, device="cpu")
    parts: list[Any] = []

    class Second(Ranks):
        def gather(self, value: Any) -> list[Any]:
            parts.append(value)
            raise KeyboardInterrupt

    class First(Ranks):
        def gather(self, value: Any) -> list[Any]:
            return [value, *parts]

    def run(rank: int, kind: type[Ranks]) -> Any:
        @contextmanager
        def group(device: str) -> Iterator[Ranks]:
            monkeypatch.setattr(kind, "first_does", lambda self, action: action())
            yield kind(rank=rank, world_size=2, device=torch.device(device))

        monkeypatch.setattr(module, "process_group", group)
        steps.clear()
        return evaluate(
            "runs/one", data / "test", batch_size=2, device="cpu", progress=lambda *done: steps.append(done)
        )

    steps: list[tuple[int, int]] = []
    with pytest.raises(KeyboardInterrupt):
        run(1, Second)
    assert parts[0][0].index_M.tolist() == [2, 3, 6, 7, 9, 10]
    found = run(0, First)
    assert steps == [(4, 11), (8, 11), (11, 11)]
    np.testing.assert_allclose(found.logit_NK, alone.logit_NK, rtol=1e-6)
    assert found.keys == alone.keys and found.origin == alone.origin


def identity(folder: Path) -> DatasetIdentity:
    return DatasetIdentity.of(str(folder), open_shard_set(folder).manifest)


def test_what_training_set_aside_is_measured_alone(data: Path, model):
    config = TrainConfig(stream=STREAM, data=DataConfig(train="shards/mine", validation_fraction=0.4))
    shards = open_shard_set(data / "test")
    held_out = hold_out(shards, 0.4)[1]
    keys = [n for n in range(11) if f"s{n:06d}" in _keys(held_out)]
    assert 0 < len(keys) < 6  # fewer than are trained on
    for noted in ({}, {"train": [identity(data / "test")]}):
        model(loaded(config=config), noted)
        found = evaluate("runs/one", data / "test", held_out=True, device="cpu")
        assert list(found.keys) == [f"s{n:06d}" for n in keys] and found.origin.part == "held out"
    model(loaded(config=config), {"train": [identity(data / "bad")]})
    with pytest.raises(UserError, match=r"not what .* set samples of aside, shards/mine"):
        evaluate("runs/one", data / "test", held_out=True, device="cpu")
    whole = TrainConfig(stream=STREAM, data=DataConfig(validation="shards/val", validation_fraction=0.4))
    model(loaded(config=whole), {"train": [identity(data / "bad")], "validation": [identity(data / "test")]})
    found = evaluate("runs/one", data / "test", held_out=True, device="cpu")
    assert len(found.keys) == 11 and found.origin.part == "held out"
    model(loaded(config=TrainConfig(stream=STREAM, data=DataConfig(validation_fraction=0))))
    with pytest.raises(UserError, match="set no samples aside"):
        evaluate("runs/one", data / "test", held_out=True, device="cpu")


def _keys(shards: Any) -> set[str]:
    with Loader(shards, replace(STREAM, batch_size=1), training=False) as loader:
        return {key for batch in loader for key in batch.keys}


def test_a_timm_classifier_sees_what_its_own_transform_leaves(tmp_path: Path, model):
    write_images(tmp_path, [3], size=(80, 50))
    view = TimmView(side=SIDE, interpolation="bicubic", crop_pct=0.5, crop_mode="center")
    model(loaded(view=view))
    found = evaluate("runs/one", tmp_path, device="cpu")
    model(loaded())
    squashed = evaluate("runs/one", tmp_path, device="cpu")
    assert np.abs(found.logit_NK - squashed.logit_NK).max() > 0.05
    assert found.origin.reading != squashed.origin.reading


def test_a_network_of_the_callers_keeps_its_modes_and_its_classes(data: Path):
    network = nn.Sequential(Sides(), nn.Dropout(), nn.Sequential(nn.Dropout()).eval()).train()
    network[2].eval()
    before = {name: one.training for name, one in network.named_modules()}
    seen: list[bool] = []
    network[1].register_forward_hook(lambda one, given, answer: seen.append(one.training))
    own = OwnModel(network=network, stream=STREAM, classes=("boat", "cat"))
    found = evaluate(own, data / "test", device="cpu")
    assert {name: one.training for name, one in network.named_modules()} == before and seen and not any(seen)
    assert found.classes == ("boat", "cat") and found.target_NK[:3].tolist() == [[0, 0], [1, 0], [0, 1]]
    assert (found.origin.checkpoint_sha256, found.origin.reading) == ("", "")
    with pytest.raises(UserError, match=r"gives \(\d+, 2\) for \d+ images and 3 classes"):
        evaluate(OwnModel(network=network, stream=STREAM), data / "test", device="cpu")
    assert {name: one.training for name, one in network.named_modules()} == before
    with pytest.raises(UserError, match="--held-out is for a run"):
        evaluate(own, data / "test", held_out=True, device="cpu")


@pytest.mark.parametrize(("source", "rule"), [("WIDER-Attribute", "negative"), ("VOC", "left out"), (None, "left out")])
def test_how_ignored_pairs_count_is_as_published_for_the_source(data: Path, source: str | None, rule: str):
    shards = open_shard_set(data / "test")
    manifest = replace(shards.manifest, provenance={"source": source} if source else {})
    shards.manifest = replace(manifest, options={"resize": "shorter=448"})
    origin = origin_of(loaded(), shards)
    assert (origin.ignored_in_rates, origin.resize) == (rule, "shorter=448")
