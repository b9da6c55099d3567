"""One model of a robustness study from end to end, with a network of a few numbers: what it meets, and a study that is
killed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from msltrain.config import TrainConfig
from msltrain.evaluation.sweep import AllSamples
from msltrain.hosts.distributed import Ranks
from msltrain.measures.predictions import Predictions
from msltrain.robustness import conditions
from msltrain.robustness.conditions import UNFINISHED, StudyModel
from msltrain.robustness.hole_kinds import open_stored
from msltrain.robustness.study import Recalibration, Study
from msltrain.runs.checkpoint import LoadedRecogniser
from msltrain.stream.config import StreamConfig
from msltrain.stream.keepmasks.bank import KeepMasks
from msltrain.stream.keepmasks.fill import fill_holes, make_filling
from msltrain.stream.keepmasks.shapes import BoxMasks
from msltrain.stream.loader import Loader
from msltrain.stream.pixels.batch import Batch
from msltrain.stream.samples.shardset import open_images
from tests.smallshards import CLASSES, write_images, write_keep_masks

SEED, SIZE = 3, 16
STREAM = StreamConfig(image_size=SIZE, num_threads=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven photographs, of which the fifth is none, and masks of which four hide 10 to 20 %."""
    root = tmp_path_factory.mktemp("data")
    write_images(root / "test", [6, 5], {"s000004": b"no photograph"}, size=(24, 20), with_objects=True)
    write_images(root / "train", [10], size=(24, 20))
    masks = [np.ones((SIZE, SIZE), np.uint8) for _ in range(6)]
    for number, mask in enumerate(masks[:4]):
        mask[4 * number : 4 * number + 3, 3:16] = 0
    masks[4][:8] = masks[5][:, :9] = 0
    write_keep_masks(root / "masks", masks)
    write_keep_masks(root / "others", masks[::-1])
    return root


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 3)).eval()


def model(data: Path, folder: Path, *, save_seconds: float = 0.0, recalibrated: bool = False) -> StudyModel:
    others = Recalibration(shards=str(data / "train"), keep_masks=(str(data / "others"),))
    study = Study(
        models=(("one", "runs/one"),),
        shards=str(data / "test"),
        keep_masks=(str(data / "masks"),),
        kinds=("irregular", "noise", "box"),
        seed=SEED,
        recalibration=others if recalibrated else None,
    )
    loaded = LoadedRecogniser(
        recogniser=network(), classes=CLASSES, config=TrainConfig(stream=STREAM), path=Path("runs/one"), sha256=64 * "a"
    )
    return StudyModel(
        study=study,
        loaded=loaded,
        samples=AllSamples(open_images(data / "test")),
        ranks=Ranks(rank=0, world_size=1, device=torch.device("cpu")),
        stream=StreamConfig(image_size=SIZE, num_threads=1, on_sample_error="skip"),
        batch_size=2,
        folder=folder,
        recalibrated=recalibrated,
        save_seconds=save_seconds,
        note=lambda text: None,
    )


@pytest.fixture(scope="module")
def batches(data: Path) -> list[Batch]:
    config = StreamConfig(image_size=SIZE, num_threads=1, batch_size=2, on_sample_error="skip")
    with Loader(data / "test", config, training=False) as loader:
        return list(loader)


def expected(batches: list[Batch], hide: Callable[[Batch], torch.Tensor]) -> np.ndarray:
    with torch.no_grad():
        return torch.cat([network()(hide(batch)) for batch in batches]).numpy()


def test_every_condition_meets_its_own_masks_by_the_seed_of_the_study(data: Path, tmp_path: Path, batches):
    found = model(data, tmp_path).run(nullcontext())
    bank = KeepMasks.open(data / "masks", SIZE)
    part = bank.within(0.1, 0.2)
    assert part is not None and len(part) == 4
    box = BoxMasks(SIZE, "cpu", hole_fraction=0.25)
    drawn = {"seed": SEED, "epoch": 0}

    def noisy(batch: Batch) -> torch.Tensor:
        filling_BCHW = make_filling("noise", batch.image_BCHW, batch.key_hash_B, **drawn)
        return fill_holes(batch.image_BCHW, part.keep_masks(batch, **drawn), filling_BCHW)

    for name, hide in {
        "whole": lambda batch: batch.image_BCHW,
        "irregular-10-20": lambda batch: batch.image_BCHW * part.keep_masks(batch, **drawn),
        "noise-10-20": noisy,
        "box-20-30": lambda batch: batch.image_BCHW * box.keep_masks(batch, **drawn),
    }.items():
        assert len(found[name].keys) == 10 and "s000004" not in found[name].keys
        np.testing.assert_allclose(found[name].logit_NK, expected(batches, hide), atol=1e-6)
        assert found[name].origin.seed == SEED and [one[:7] for one in found[name].origin.skipped] == ["s000004"]
    keep_B1HW = torch.cat([part.keep_masks(batch, **drawn) for batch in batches])
    assert found["irregular-10-20"].origin.hole_fraction == pytest.approx(1 - keep_B1HW.mean().item())
    visible_NK = found["irregular-10-20"].visible_NK
    assert visible_NK is not None
    upper_left_N = keep_B1HW[:, 0, :8, :8].mean(dim=(1, 2)).numpy()  # where the object of each photograph is
    np.testing.assert_allclose(visible_NK.max(axis=1), upper_left_N, atol=1e-6)


def logits(found: dict[str, Predictions]) -> dict[str, list[Any]]:
    return {name: [one.keys, one.logit_NK.tolist(), one.origin] for name, one in found.items()}


@pytest.mark.parametrize("save_seconds", [0.0, 1e9])
def test_a_killed_study_goes_on_where_it_was_saved(data: Path, tmp_path: Path, save_seconds: float):
    def kill(done: int, num_samples: int) -> None:
        told.append(done)
        if done == 8:
            raise KeyboardInterrupt

    told: list[int] = []
    whole = model(data, tmp_path / "whole").run(nullcontext())
    assert not (tmp_path / "whole" / UNFINISHED).exists()
    with suppress(KeyboardInterrupt):
        model(data, tmp_path / "killed", save_seconds=save_seconds).run(nullcontext(kill))
    assert told == [2, 4, 6, 8] and not list((tmp_path / "killed").glob("*.parquet"))
    told.clear()
    again = model(data, tmp_path / "killed", save_seconds=save_seconds).run(
        nullcontext(lambda done, num_samples: told.append(done))
    )
    assert told == ([8, 10, 11] if save_seconds == 0 else [2, 4, 6, 8, 10, 11])
    assert logits(again) == logits(whole) and not (tmp_path / "killed" / UNFINISHED).exists()
    told.clear()
    finished = model(data, tmp_path / "killed").run(nullcontext(lambda done, num_samples: told.append(done)))
    assert not told and logits(finished) == logits(whole), "nothing is run again"


def test_what_could_not_be_written_is_not_computed_again(data: Path, tmp_path: Path, monkeypatch):
    def full(*_: Any) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as context, pytest.raises(OSError, match="disk full"):
        context.setattr(conditions, "write_predictions", full)
        model(data, tmp_path).run(nullcontext())
    told: list[int] = []
    model(data, tmp_path).run(nullcontext(lambda done, num_samples: told.append(done)))
    assert not told


def test_norms_are_measured_on_the_first_masked_images_of_training(data: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(conditions, "RECALIBRATION_IMAGES", 3)
    one = model(data, tmp_path, recalibrated=True)
    bank = KeepMasks.open(data / "others", SIZE)
    config = StreamConfig(image_size=SIZE, num_threads=1, batch_size=2)
    with Loader(data / "train", config, training=True, seed=SEED) as loader:
        masked = [batch.image_BCHW * bank.keep_masks(batch, seed=SEED, epoch=0) for batch in loader][:2]
    for image_BCHW, like_BCHW in zip(one._masked_images(), masked, strict=True):
        assert torch.equal(image_BCHW, like_BCHW)
    found = one.run(nullcontext())
    assert found["whole"].origin.recalibrated
    norm = one.loaded.recogniser[0]  # type: ignore[index]
    means = torch.stack([image_BCHW.mean(dim=(0, 2, 3)) for image_BCHW in masked]).mean(0)
    torch.testing.assert_close(norm.running_mean, means)


def test_masks_that_are_drawn_are_others_than_those_of_training(monkeypatch):
    asked: list[int] = []
    generate = KeepMasks.generate
    monkeypatch.setattr("msltrain.stream.keepmasks.bank.NUM_GENERATED", 3)
    monkeypatch.setattr(KeepMasks, "generate", lambda *of, seed=0: asked.append(seed) or generate(*of, seed=seed))
    assert open_stored((), 64, torch.device("cpu")) and asked == [1]
