"""What a robustness study keeps when it is killed, and the statistics that its control measures anew."""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from msldata.errors import UserError
from msltrain.evaluation.sweep import RankPart
from msltrain.measures.predictions import Origin, Predictions, write_predictions
from msltrain.robustness.conditions import StudyModel
from msltrain.robustness.hole_kinds import HoleRange, Holes
from msltrain.robustness.partial_results import Stretch, Unfinished
from msltrain.robustness.recalibrate import recalibrate_batchnorm
from msltrain.stream.config import StreamConfig
from msltrain.stream.errors import SampleError


def stretch(*index: int, skipped: tuple[int, ...] = ()) -> Stretch:
    """Samples whose values are ten and a hundred times their position."""
    index_M = np.array(index, np.int64)
    columns = {"index": index_M, "one/logit": np.float32(10 * index_M[:, None] + [0, 1]), "one/hole": 100.0 * index_M}
    return Stretch(columns, {at: SampleError("data", "shard", f"k{at}", 5 * at, "no image") for at in skipped})


def assert_same(found: Stretch, *index: int, skipped: tuple[int, ...] = ()) -> None:
    expected = stretch(*index, skipped=skipped)
    assert list(found.columns) == list(expected.columns)
    for name, column in expected.columns.items():
        assert found.columns[name].dtype == column.dtype and found.columns[name].tolist() == column.tolist(), name
    assert {at: str(error) for at, error in found.skipped.items()} == {
        at: str(error) for at, error in expected.skipped.items()
    }


def test_samples_before_a_position_each_once_and_in_order():
    joined = Stretch.concatenate([stretch(7, 2, 5, skipped=(4,)), stretch(5, 3, 2, skipped=(6, 1)), stretch(0)])
    assert_same(joined, 7, 2, 5, 5, 3, 2, 0, skipped=(4, 6, 1))
    assert_same(joined.until(6), 0, 2, 3, 5, skipped=(4, 1))
    assert_same(joined.until(5), 0, 2, 3, skipped=(4, 1))
    assert_same(joined.until(4), 0, 2, 3, skipped=(1,))
    assert_same(joined.until(0))


def test_what_was_saved_is_read_back_whoever_saved_it(tmp_path: Path):
    place, nothing = tmp_path / "partial", stretch()
    identity = {"seed": 3, "dataset": "a"}
    Unfinished(place, identity, nothing).write(nothing)
    assert not place.exists(), "without a sample there is nothing to save"
    for rank in (stretch(4, 5, skipped=(3,)), stretch(0, 1, 2), stretch(0, 1), stretch(9, 8, skipped=(7, 6))):
        Unfinished(place, identity, nothing).write(rank)
    found = Unfinished(place, identity, nothing).read()
    assert_same(found.until(10), 0, 1, 2, 4, 5, 8, 9, skipped=(3, 7, 6))
    (place / "0000000011-1.npz").write_bytes(b"half a file")
    fewer = Stretch({name: column for name, column in nothing.columns.items() if name != "one/hole"}, {})
    more = Stretch({**nothing.columns, "two/hole": np.empty(0)}, {})
    assert list(Unfinished(place, identity, fewer).read().until(2).columns["index"]) == [0, 1]
    assert not len(Unfinished(place, identity, more).read().columns["index"]), "a condition is missing there"
    with pytest.raises(UserError, match="whose seed is 3, that of this study 4"):
        Unfinished(place, {**identity, "seed": 4}, nothing).read()
    Unfinished(place, identity, nothing).delete()
    assert not place.exists()


def test_grey_keep_masks_hide_what_their_hole_fraction_says(tmp_path: Path):
    """Visible pixels of 225 of 255, as without binarisation: the right half is seen, and half of the object. Where less
    than half of the light gets through there is a hole, as where the masks were built."""
    seen = []
    boxes = SimpleNamespace(
        visible_shares=lambda visible, place_B: seen.append(visible) or np.zeros((2, 1), np.float32)
    )
    level_B1SS = torch.zeros(2, 1, 8, 8)
    level_B1SS[0, 0, :, 4:], level_B1SS[1, 0, :, 2:] = 225 / 255, 128 / 255
    level_B1SS[0, 0, :, :3], level_B1SS[1, 0, :, 1] = 1 / 255, 127 / 255
    filling = SimpleNamespace(hide=lambda batch, mask: (mask, None))
    holes = Holes("irregular", HoleRange("x", 0, 1), lambda batch: level_B1SS, filling, boxes, np.arange(2))

    class Two:
        index_B = np.arange(2)

        def __len__(self) -> int:
            return 2

    assert holes(Two()) is level_B1SS, "what the network sees stays grey"
    hole_fraction_B, _, _ = holes.take_record()
    assert hole_fraction_B.tolist() == [0.5, 0.25]
    np.testing.assert_array_equal(seen[0].numpy(), level_B1SS.numpy() > 0.5)


def test_statistics_are_plain_means_over_the_batches():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3, momentum=0.3), nn.Dropout(0.5), nn.BatchNorm2d(3)).eval()
    net[3].momentum = 0.7
    weights = [parameter.clone() for parameter in net.parameters()]
    for turn in range(2):  # what was measured before does not count
        batches = [3 * torch.randn(size, 2, 4, 5) + size * turn for size in (3, 6, 2)]
        assert recalibrate_batchnorm(net, iter(batches)) == 11
        inner = [net[0](batch).detach() for batch in batches]
        torch.testing.assert_close(net[1].running_mean, torch.stack([one.mean((0, 2, 3)) for one in inner]).mean(0))
        torch.testing.assert_close(net[1].running_var, torch.stack([one.var((0, 2, 3)) for one in inner]).mean(0))
    assert (net[1].momentum, net[3].momentum) == (0.3, 0.7)
    assert not any(module.training for module in net.modules())
    assert all(torch.equal(one, other) for one, other in zip(net.parameters(), weights))
    with pytest.raises(UserError, match="no images to recalibrate"):
        recalibrate_batchnorm(net, [])
    assert (net[1].momentum, net[3].momentum) == (0.3, 0.7) and not net[1].training


def test_what_several_processes_recorded_goes_with_its_samples():
    """They come one process after the other, and predictions are in the stored order."""
    index_M = np.array([4, 9, 0, 7, 2])
    columns = {
        "index": index_M,
        "key_hash": index_M.astype(np.uint64),
        "box-10-20/logit": np.float32(index_M[:, None] + [0, 0.5]),
        "box-10-20/hole_fraction": index_M / 100,
        "box-10-20/visible": np.float32(index_M[:, None] / [10, 20]),
        "box-10-20/shown": index_M[:, None] == [4, 7],
    }

    def assemble(part: RankPart, origin: Origin, skipped: dict) -> Predictions:
        order_M = np.argsort(part.index_M)
        return Predictions(
            keys=tuple(map(str, part.index_M[order_M])),
            logit_NK=part.logit_MK[order_M],
            target_NK=np.zeros((5, 2), np.uint8),
            ignore_NK=np.array([[False, True], *[[False, False]] * 4]),
            classes=("cat", "dog"),
            origin=origin,
        )

    model = StudyModel.__new__(StudyModel)
    holes = SimpleNamespace(name="box-10-20", kind="box", range=HoleRange("10-20", 0.1, 0.2))
    samples = SimpleNamespace(assemble=assemble)
    vars(model).update(samples=samples, conditions=[holes], origin=Origin(seed=3))
    found = model._assemble("box-10-20", Stretch(columns, {}))
    assert found.keys == ("0", "2", "4", "7", "9") and found.logit_NK[:, 1].tolist() == [0.5, 2.5, 4.5, 7.5, 9.5]
    np.testing.assert_allclose(found.visible_NK, np.array([0, 2, 4, 7, 9])[:, None] / [10, 20], rtol=1e-6)
    assert found.ignore_NK.tolist() == [[False, True], [False, False], [True, False], [False, True], [False, False]]
    origin = found.origin
    assert (origin.kind, origin.hole_range, origin.seed) == ("box", (0.1, 0.2), 3)
    assert origin.hole_fraction == pytest.approx(0.044) and origin.keep_masks == ()


@pytest.mark.parametrize(
    ("met", "skipped", "asked", "step", "taken"),
    [
        ((), (), "fail", 0, 0),
        ((0, 1, 2, 3, 4), (), "fail", 1, 4),  # half a step more is computed again
        ((0, 1, 2, 3, 5, 6, 7), (4,), "fail", 1, 4),  # a damaged sample stops the study anew
        ((0, 1, 2, 3, 5, 6, 7), (4,), "skip", 2, 7),  # or is left out of the second step
        ((0, 1, 3, 4, 5, 6, 7, 8), (), "fail", 0, 0),  # what another process has lost comes before the rest
        ((0, 1, 2, 3, 4, 5, 6, 7, 8, 9), (), "fail", 3, 10),
        ((0, 1, 2, 3, 4, 5, 6, 7, 8), (9,), "skip", 3, 9),
    ],
)
def test_a_killed_study_goes_on_at_a_whole_step(met, skipped, asked: str, step: int, taken: int):
    """Ten samples, in steps of two on each of two processes."""
    model = StudyModel.__new__(StudyModel)
    vars(model).update(
        samples=SimpleNamespace(index_N=np.arange(10)),
        stream=StreamConfig(on_sample_error=asked),
        batch_size=2,
        ranks=SimpleNamespace(world_size=2),
    )
    before, found = model._before(SimpleNamespace(read=lambda: stretch(*met[::-1], skipped=skipped)))
    assert found == step and list(before.columns["index"]) == list(met[:taken])


OURS = Origin(
    checkpoint_sha256="a" * 64,
    dataset_fingerprint="b" * 64,
    image_size=32,
    reading="9" * 16,
    seed=3,
    recalibrated="c" * 64,
    kind="irregular",
    keep_mask_fingerprints=("d" * 64, "e" * 64),
)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, ""),
        ({"checkpoint": "runs/elsewhere", "keep_masks": ("moved/high",)}, ""),  # where it lies says nothing
        ({"checkpoint_sha256": "f" * 64}, "its checkpoint_sha256 is ffff"),
        ({"dataset_fingerprint": "f" * 64}, "its dataset_fingerprint is ffff"),
        ({"image_size": 48}, "its image_size is 48, that of this study 32; choose another --out, or delete the file"),
        ({"reading": "8" * 16}, "the same weights with another head, mean or standard deviation; choose another --out"),
        ({"reading": ""}, ""),  # of a version that did not note it
        ({"seed": 4}, "its seed is 4, that of this study 3"),
        ({"recalibrated": ""}, "its recalibrated is , that of this study cccc"),
        ({"keep_mask_fingerprints": ("e" * 64, "d" * 64)}, "its fingerprint of keep masks is"),
        ({"kind": "box", "keep_mask_fingerprints": ()}, ""),  # drawn, whatever is stored
        ({"skipped": ("k1: damaged",)}, "leaves out 1 damaged samples, such as k1: damaged; go on with"),
    ],
)
def test_what_is_finished_is_taken_where_it_answers_the_same_question(tmp_path: Path, change: dict, says: str):
    made = Predictions(
        keys=("k0", "k2"),
        logit_NK=np.float32([[1, -1], [0.5, 2]]),
        target_NK=np.uint8([[1, 0], [0, 1]]),
        ignore_NK=np.zeros((2, 2), bool),
        classes=("cat", "dog"),
        origin=replace(OURS, **change),
    )
    write_predictions(made, tmp_path / "irregular-10-20.parquet")
    model = StudyModel.__new__(StudyModel)
    vars(model).update(
        folder=tmp_path,
        origin=replace(OURS, kind="", keep_mask_fingerprints=()),
        fingerprints=OURS.keep_mask_fingerprints,
        stream=StreamConfig(on_sample_error="fail"),
    )
    names = ["whole", "irregular-10-20"]
    with pytest.raises(UserError, match=re.escape(says)) if says else nullcontext():
        found = model._finished(names)
        assert list(found) == ["irregular-10-20"] and found["irregular-10-20"].keys == made.keys
    if "skipped" in change:
        vars(model).update(stream=StreamConfig(on_sample_error="skip"))
        assert model._finished(names)["irregular-10-20"].origin.skipped == change["skipped"]
