"""What is given in Python is taken as it was meant, or refused in words: never stretched, guessed or passed on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import msldata
import msltrain
from msldata.contract.records import LabelSpace
from msldata.errors import UserError
from msldata.storage import open_storage
from msltrain.config import (
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    from_json,
    to_json,
)
from msltrain.stream.config import StreamConfig
from msltrain.stream.keepmasks.bank import KeepMasks
from msltrain.stream.loader import Loader
from msltrain.training.siamese import SiameseStep
from tests.smallshards import write_images, write_keep_masks

ASKED = {"loss": LossConfig, "stream": StreamConfig, "optim": OptimConfig, "model": ModelConfig, "run": RunConfig}


@pytest.mark.parametrize(
    ("section", "words", "message"),
    [
        ("stream", {"image_size": 96.5}, r"stream\.image_size: expected a whole number, found 96\.5"),
        ("stream", {"image_size": "96"}, r"stream\.image_size: expected a whole number, found '96'"),
        ("stream", {"image_size": (96, 128)}, r"stream\.image_size: expected a whole number, found \(96, 128\)"),
        ("stream", {"mean": (0.5, 0.5)}, r"stream\.mean: expected 3 values, found 2"),
        ("stream", {"std": ("a", "b", "c")}, r"stream\.std: expected a number, found 'a'"),
        ("stream", {"crop_scale": None}, r"stream\.crop_scale: expected several values, found None"),
        ("stream", {"drop_last": "no"}, r"stream\.drop_last: expected true or false, found 'no'"),
        ("stream", {"batch_size": True}, r"stream\.batch_size: expected a whole number, found True"),
        ("loss", {"class_weights": 2.0}, r"loss\.class_weights: expected several values, found 2\.0"),
        ("loss", {"balance": "1"}, r"loss\.balance: expected a number, found '1'"),
        ("optim", {"lr": None}, r"optim\.lr: expected a number, found None"),
        ("model", {"backbone": nn.Identity()}, r"model\.backbone: expected text, found Identity\(\)"),
        ("run", {"seed": 1.5}, r"run\.seed: expected a whole number, found 1\.5"),
    ],
)
def test_a_field_of_another_type_is_refused_as_on_a_command_line(section: str, words: dict[str, Any], message: str):
    with pytest.raises(UserError, match=f"^{message}$"):
        ASKED[section](**words)


def test_values_that_mean_the_same_become_what_json_holds():
    """A numpy number, a `Path`, an array: a run that is begun with them must be able to write them down."""
    odd: dict[str, Any] = {"mean": 0.5, "std": np.float32([0.25] * 3), "image_size": np.int64(96), "crop_scale": [1, 1]}
    stream = StreamConfig(**odd, flip_probability=torch.tensor(0.25))  # type: ignore[arg-type]
    assert (stream.mean, stream.std, stream.crop_scale) == ((0.5,) * 3, (0.25,) * 3, (1, 1))
    assert type(stream.image_size) is int and type(stream.flip_probability) is float
    data = DataConfig(train=Path("shards/a"), keep_masks=[Path("b"), "c"])  # type: ignore[arg-type]
    assert (data.train, data.keep_masks) == ("shards/a", ("b", "c"))
    config = TrainConfig(stream=stream, data=data, loss=LossConfig(class_weights=np.ones(2)))  # type: ignore[arg-type]
    assert from_json(to_json(config)) == config
    whole = json.loads(to_json(TrainConfig(stream=StreamConfig(), loss=LossConfig(clean_weight=1))))
    assert whole["loss"]["clean_weight"] == 1 and isinstance(whole["loss"]["clean_weight"], int)


def test_a_section_of_another_kind_is_refused():
    with pytest.raises(UserError, match=r"^stream: \{'image_size': 96\} is not a StreamConfig$"):
        TrainConfig(stream={"image_size": 96})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^optim: None is not a OptimConfig$"):
        dataclasses.replace(TrainConfig(stream=StreamConfig()), optim=None)


def network() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5))


def batch() -> dict[str, Any]:
    return {
        "image_BCHW": torch.rand(4, 3, 8, 8),
        "keep_mask_B1HW": (torch.rand(4, 1, 8, 8) > 0.5).float(),
        "target_BK": (torch.rand(4, 5) > 0.5).float(),
    }


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("keep_mask_B1HW", (1, 1, 8, 8), r"keep_mask_B1HW is \(1, 1, 8, 8\); it must be \(4, 1, 8, 8\)"),
        ("keep_mask_B1HW", (4, 1, 1, 1), r"it must be \(4, 1, 8, 8\)"),
        ("keep_mask_B1HW", (4, 8, 8), r"it must be \(4, 1, 8, 8\)"),
        ("keep_mask_B1HW", (4, 3, 8, 8), r"it must be \(4, 1, 8, 8\)"),
        ("target_BK", (1, 5), r"image_BCHW is \(4, 3, 8, 8\) and target_BK \(1, 5\)"),
        ("target_BK", (4,), r"target_BK \(4,\); the latter must be \(B, K\)"),
        ("image_BCHW", (3, 8, 8), r"image_BCHW is \(3, 8, 8\)"),
        ("ignore_BK", (4, 1), r"ignore_BK is \(4, 1\); it must be \(4, 5\)"),
        ("masked_ignore_BK", (1, 5), r"masked_ignore_BK is \(1, 5\); it must be \(4, 5\)"),
        ("filling_BCHW", (1, 3, 8, 8), r"filling_BCHW is \(1, 3, 8, 8\); it must be \(4, 3, 8, 8\), or"),
        ("masked_B", (1,), r"masked_B is \(1,\); it must be \(4,\)"),
        ("teacher_logit_BK", (4, 1), r"teacher_logit_BK is \(4, 1\); it must be \(4, 5\)"),
    ],
)
def test_nothing_is_stretched_over_a_batch(name: str, shape: tuple[int, ...], message: str):
    step = SiameseStep(network(), LossConfig())
    step(**batch())
    with pytest.raises(UserError, match=message):
        step(**{**batch(), name: torch.ones(shape)})


def test_an_array_is_no_tensor():
    with pytest.raises(UserError, match=r"^target_BK is a ndarray; give a tensor$"):
        SiameseStep(network(), LossConfig())(**{**batch(), "target_BK": np.zeros((4, 5))})


def test_a_step_refuses_what_it_would_leave_out_in_silence():
    with pytest.raises(UserError, match=r"give positive_weight_K=msltrain\.positive_weights\(SHARDS, 0\.5\)$"):
        SiameseStep(network(), LossConfig(balance=0.5))
    SiameseStep(network(), LossConfig(balance=0.5), positive_weight_K=torch.ones(5))(**batch())
    with pytest.raises(UserError, match=r"^positive_weight_K is \(1,\); it must have a weight for each of 5 classes$"):
        SiameseStep(network(), LossConfig(balance=1), positive_weight_K=torch.ones(1))(**batch())
    with pytest.raises(
        UserError, match=r"^loss\.class_weights is \(2,\); it must have a weight for each of 5 classes$"
    ):
        SiameseStep(network(), LossConfig(class_weights=(1, 2)))(**batch())
    with pytest.raises(UserError, match=r"^loss\.drop_hidden_tokens leaves out patches, which a Sequential cannot do"):
        SiameseStep(network(), LossConfig(drop_hidden_tokens=0.1))
    with pytest.raises(UserError, match=r"^loss\.masked_target=teacher needs teacher_logit_BK"):
        SiameseStep(network(), LossConfig(masked_target="teacher"))(**batch())
    single = LossConfig(clean_weight=1, masked_weight=0, consistency_weight=0, branches="single")
    with pytest.raises(UserError, match=r"^loss\.branches=single masks the images and keep_mask_B1HW is None"):
        SiameseStep(network(), single)(**{**batch(), "keep_mask_B1HW": None})
    with pytest.raises(UserError, match=r"^the loss has masked terms and keep_mask_B1HW is None; give the batch's"):
        SiameseStep(network(), LossConfig())(**{**batch(), "keep_mask_B1HW": None})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_images(tmp_path / "images", [30])
    return tmp_path / "images"


STREAM = StreamConfig(image_size=16, batch_size=16, num_threads=1)


def test_a_training_batch_that_ranks_cannot_share_is_refused(folder: Path):
    def loader(config: StreamConfig = STREAM, **changes: Any) -> Loader:
        return Loader(folder, config, **{"training": True, "rank": 0, "world_size": 3, **changes})

    with pytest.raises(UserError, match=r"16, which 3 ranks cannot share equally: .* 5, some 6, .* set 15 or 18, or"):
        loader()
    for fine in (loader(allow_uneven=True), loader(training=False), loader(dataclasses.replace(STREAM, batch_size=15))):
        fine.close()
    whole = dataclasses.replace(STREAM, drop_last=False)
    with pytest.raises(UserError, match=r"leaves 14 samples in an epoch's last batch, which 4 ranks cannot share"):
        loader(whole, world_size=4)
    loader(whole, world_size=2).close()
    loader(whole, world_size=4, allow_uneven=True).close()
    for rank in (-1, 3):
        with pytest.raises(UserError, match=f"^rank is {rank} of 3 ranks; they are counted from 0 to 2$"):
            loader(dataclasses.replace(STREAM, batch_size=15), rank=rank)


@pytest.mark.parametrize(
    "change",
    [{"step": 99}, {"step": -1}, {"epoch": -1}, {"epoch": 0.5}, {"step": "1"}, {"epoch": None}, {"step": True}],
)
def test_a_position_that_no_epoch_has_is_refused(folder: Path, change: dict[str, Any]):
    """Beyond the end there were no batches, and nothing said why."""
    with Loader(folder, dataclasses.replace(STREAM, batch_size=4), training=True) as loader:
        loader.load_state_dict({**loader.state_dict(), "step": 7})  # the end of an epoch, which is one
        with pytest.raises(UserError, match=r"^cannot continue at step .* one has 7 steps here"):
            loader.load_state_dict({**loader.state_dict(), **change})
        for epoch in (-1, 0.5, "1", None):
            with pytest.raises(UserError, match=r"; epochs are counted from 0$"):
                loader.set_epoch(epoch)  # type: ignore[arg-type]
        loader.set_epoch(np.int64(3))  # type: ignore[arg-type]
        assert len(list(loader)) == 7


def test_keep_masks_have_one_side(tmp_path: Path):
    write_keep_masks(tmp_path / "masks", [np.eye(16, dtype=np.uint8)] * 4)
    for size in ((96, 128), 0, 96.0, "96", True):
        with pytest.raises(UserError, match=r"^image_size is .* it must be a whole number from 1 on, the side of the"):
            KeepMasks.open(tmp_path / "masks", size)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^limit is 0; it must be a whole number from 1 on$"):
        KeepMasks.open(tmp_path / "masks", 16, limit=0)
    assert len(KeepMasks.open(tmp_path / "masks", np.int64(16), limit=3)) == 3  # type: ignore[arg-type]


def test_predictions_and_measures_refuse_in_words():
    logits, targets = np.zeros((2, 3)), np.eye(3)[:2]
    for words, message in (
        ({"classes": ["a"]}, r"1 class is named for 3 columns"),
        ({"classes": ["a", "b", "a"]}, r"the classes are not distinct names"),
        ({"ignore": np.full((2, 3), -1)}, r"of ignore is neither 0 nor 1"),
        ({"ignore": np.full((2, 3), np.nan)}, r"of ignore is neither 0 nor 1"),
        ({"targets": np.full((2, 3), np.nan)}, r"a target is neither 0 nor 1"),
        ({"logits": [["a", "b", "c"]] * 2}, r"logits are no array of numbers"),
        ({"logits": [[1.0, 2.0, 3.0], [1.0]]}, r"logits are no array of numbers"),
        ({"logits": np.full((2, 3), np.nan)}, r"6 of 6 logits are NaN"),
        ({"logits": np.full((2, 3), 1e300)}, r"logits are beyond what 32 bits hold"),
    ):
        with pytest.raises(UserError, match=message):
            msltrain.compute_metrics(**{"logits": logits, "targets": targets, **words})  # type: ignore[arg-type]
    row: dict[str, Any] = {"keys": ("a",), "classes": ("cat",), "ignore_NK": np.zeros((1, 1), bool)}
    row |= {"logit_NK": np.zeros((1, 1), np.float32), "target_NK": np.zeros((1, 1), np.uint8)}
    msltrain.Predictions(**row)
    for name, value in (("logit_NK", [[0.0]]), ("logit_NK", np.zeros((1, 1))), ("ignore_NK", None), ("keys", (1,))):
        with pytest.raises(UserError):
            msltrain.Predictions(**{**row, name: value})


def test_a_record_takes_what_numpy_gives():
    boat: Any = msldata.ObjectRecord(np.int64(1), np.float32([1, 2, 3, 4]), np.float64(12), occluded=np.bool_(True))
    record = msldata.Record("a", Path("b") / "a.jpg", np.flatnonzero([1, 0, 1]), [np.int8(1)], [boat])  # type: ignore
    assert (record.image, record.positives, record.ignored) == ("b/a.jpg", (0, 2), (1,))
    assert json.loads(json.dumps(record.objects)) == [[1, [1.0, 2.0, 3.0, 4.0], 12.0, False, None, True, False]]
    assert type(record.objects[0]) is msldata.ObjectRecord
    plain = (msldata.ObjectRecord(0, (1, 2, 3, 4), 12),)
    assert msldata.Record("a", "a.jpg", (), objects=plain).objects is plain
    both = msldata.Record("a", "a.jpg", (), objects=(*plain, boat)).objects
    assert json.loads(json.dumps(both))[1] == [1, [1.0, 2.0, 3.0, 4.0], 12.0, False, None, True, False]


@pytest.mark.parametrize(
    "positives", [("a",), "ab", (1.0,), (True, False), (0, True), np.array([True]), None, 3, ((0, 1),)]
)
def test_a_record_whose_classes_are_no_indices_is_refused(positives: Any):
    with pytest.raises(UserError, match=r"^record 'a': positives is .* give the indices of its classes"):
        msldata.Record("a", "a.jpg", positives)
    with pytest.raises(UserError, match=r"^the key 5 of a record is not text$"):
        msldata.Record(5, "a.jpg", ())  # type: ignore[arg-type]
    for item in ((0, (1, 2, 3), 4), "boat", (0,), (0.5, (1, 2, 3, 4), 4)):
        with pytest.raises(UserError, match=r"^record 'a': the object .* is no msldata\.ObjectRecord"):
            msldata.Record("a", "a.jpg", (), objects=(item,))  # type: ignore[arg-type]


def test_a_source_of_ones_own_is_asked_for_what_it_lacks(tmp_path: Path):
    class Mine:
        dataset, split, licence = "mine", "all", "my own"
        labels: Any = LabelSpace(("a",))
        images: Any = open_storage(tmp_path)

        def __init__(self) -> None:
            self.counts: dict[str, int] = {}
            self.provenance = {"source": "by hand"}

        def records(self) -> Any:
            yield ("a", "a.jpg", (0,))

    def refused(**changes: Any) -> str:
        with pytest.raises(UserError) as error:
            msldata.build_shards(type("Mine", (Mine,), changes)(), tmp_path / "out")  # type: ignore[arg-type]
        return str(error.value)

    assert refused() == "mine: records() gives a tuple; give msldata.Record"
    assert refused(labels=("a",)) == "the labels of Mine are a tuple; give LabelSpace(classes)"
    assert refused(images="photos") == "the images of Mine are a str; give open_storage(folder)"
    with pytest.raises(UserError, match=r"^the source, a dict, has no dataset, split, labels, images, licence"):
        msldata.build_shards({}, tmp_path / "out")  # type: ignore[arg-type]
