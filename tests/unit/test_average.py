"""One network from several that started from the same weights."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from msldata.contract.manifest import FormatError, read_manifest
from msldata.errors import UserError
from msltrain.__main__ import app
from msltrain.config import override
from msltrain.evaluation.evaluate import evaluate
from msltrain.models.build import build_model
from msltrain.runs.checkpoint import Checkpoint, load_checkpoint, load_recogniser, save_checkpoint
from msltrain.runs.folder import DatasetIdentity, training_data
from msltrain.stream.samples.holdout import hold_out
from msltrain.training.average import average_checkpoints, average_weights
from msltrain.training.precise_bn import PreciseBN, norm_names
from tests.smallshards import write_images
from tests.unit.test_checkpoint import checkpoint


def saved(folder: Path, step: int, *assignments: str, **changes: object) -> Path:
    one: Checkpoint = replace(checkpoint(step), **changes)
    save_checkpoint(replace(one, config=override(one.config, assignments)), folder)
    return folder


def test_every_weight_is_the_average_and_counters_stay_whole(tmp_path: Path):
    one, other = saved(tmp_path / "a", 1), saved(tmp_path / "b", 2, "loss.masked_weight=0", "stream.batch_size=8")
    average_checkpoints([one, other], tmp_path / "c", [0.25, 0.75])
    found, first, last = (load_checkpoint(tmp_path / name) for name in "cab")
    for name, tensor in found.weights.items():
        mean = 0.25 * first.weights[name].double() + 0.75 * last.weights[name].double()
        expected = mean if tensor.is_floating_point() else mean.round()
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-7)
        assert tensor.dtype == last.weights[name].dtype
    assert found.config == last.config and found.validation_mAP is None
    assert load_recogniser(tmp_path / "c").classes == first.classes


def test_a_counter_is_rounded_to_the_nearest_whole_number():
    [averaged] = average_weights([{"n": torch.tensor(1)}, {"n": torch.tensor(2)}], (0.25, 0.75)).values()
    assert averaged.tolist() == 2 and averaged.dtype == torch.int64


def test_statistics_are_measured_on_the_averaged_network_where_the_last_run_did(tmp_path: Path):
    write_images(tmp_path / "train", [24, 10])
    precise = ("optim.precise_bn_images=100", f"data.train={tmp_path / 'nowhere'}")
    one, other = saved(tmp_path / "a", 1), saved(tmp_path / "b", 2, *precise)
    average_checkpoints([one, other], tmp_path / "c", data=tmp_path / "train")
    average_checkpoints([other, one], tmp_path / "plain")
    found, plain = (load_recogniser(tmp_path / name).recogniser for name in ("c", "plain"))
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, found.state_dict()[name]) == ("running_" not in name), name
    config = load_checkpoint(other).config
    kept, _ = hold_out(tmp_path / "train", config.data.validation_fraction)
    names = norm_names(plain.train())
    PreciseBN(kept, config.stream, 100).measure(plain, names, torch.device("cpu"), amp=False)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(tensor, found.state_dict()[name])
    with pytest.raises(FormatError, match="nowhere"):
        average_checkpoints([one, other], tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_the_command_averages_equally_and_names_the_next(tmp_path: Path):
    one, other = saved(tmp_path / "a", 1), saved(tmp_path / "b", 2)
    command = ["average", "--checkpoint", str(one), "--checkpoint", str(other), "--out", str(tmp_path / "c")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0 and f"msl evaluate {tmp_path / 'c'}" in " ".join(result.output.split())
    found, first, last = (load_checkpoint(tmp_path / name).weights for name in "cab")
    name = "classifier.score.weight"
    torch.testing.assert_close(found[name], (first[name] + last[name]) / 2)


def test_what_one_run_learnt_from_is_not_held_out_of_the_average(tmp_path: Path):
    """An average knows the shards of all its runs, and names held-out samples only where all set the same aside."""
    for name, dots in (("data", [12, 8]), ("more", [9])):
        write_images(tmp_path / name, dots)
    half = (f"data.train={tmp_path / 'data'}", "data.validation_fraction=0.5", "data.validation=")
    runs = {
        "one": (half, "data"),
        "same": (half, "data"),
        "rebuilt": (half, "more"),
        "less": ((*half, "data.validation_fraction=0.1"), "data"),
    }
    for name, (settings, data) in runs.items():
        saved(tmp_path / name, 1, *settings, classes=("bird", "boat", "cat"))
        identity = DatasetIdentity.of(str(tmp_path / "data"), read_manifest(tmp_path / data))
        (tmp_path / name / "datasets.json").write_text(json.dumps({"train": [asdict(identity)]}))
    noted = {name: training_data(tmp_path / name) for name in runs}
    for other, is_alike in (("same", True), ("rebuilt", False), ("less", False)):
        average_checkpoints([tmp_path / other, tmp_path / "one"], tmp_path / f"with {other}")
        average = tmp_path / f"with {other}"
        assert load_checkpoint(average).config.data.validates == is_alike
        assert training_data(average) == [*noted[other], *([] if noted[other] == noted["one"] else noted["one"])]
        with nullcontext() if is_alike else pytest.raises(UserError, match="this run set no samples aside"):
            evaluate(average, tmp_path / "data", held_out=True)
    notes: list[str] = []
    evaluate(tmp_path / "with rebuilt", tmp_path / "data", note=notes.append)
    assert any("is what this model was trained on" in text for text in notes)


@pytest.mark.parametrize(
    ("shares", "number", "message"),
    [
        ([0.5], 2, "2 checkpoints and 1 share"),
        ([0.5, 0.6], 2, "add up to 1"),
        ([1.5, -0.5], 2, "above 0"),
        (None, 1, "two checkpoints or more"),
    ],
)
def test_shares_that_do_not_fit(tmp_path: Path, shares: list[float] | None, number: int, message: str):
    places = [saved(tmp_path / str(i), i) for i in range(number)]
    with pytest.raises(UserError, match=message):
        average_checkpoints(places, tmp_path / "c", shares)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("head", ["mldecoder", "q2l"])
def test_decoders_that_two_seeds_drew_are_refused(tmp_path: Path, head: str):
    """The average of two sets of queries is the queries of neither."""
    plain = checkpoint()
    small = ["model.decoder_width=16", "model.decoder_hidden=16", f"model.head={head}", "model.weights=tag"]
    places = []
    for number, seed in enumerate((0, 1, 1)):
        torch.manual_seed(seed)
        config = override(plain.config, [*small, f"run.seed={seed}"])
        network = build_model(replace(config.model, weights=""), 3, image_size=32)
        save_checkpoint(replace(plain, config=config, weights=network.state_dict()), tmp_path / str(number))
        places.append(tmp_path / str(number))
    with pytest.raises(UserError, match=rf"hold no {head} head, .*run\.seed is 1 there and 0 here"):
        average_checkpoints(places[:2], tmp_path / "c")
    average_checkpoints(places[1:], tmp_path / "c")
    weights = (load_checkpoint(place).weights["classifier.query"] for place in (tmp_path / "c", places[1]))
    torch.testing.assert_close(*weights)


def test_networks_of_other_beginnings_are_refused(tmp_path: Path):
    one = saved(tmp_path / "a", 1)
    for name, settings, changes, message in (
        ("weights", ("model.weights=other.pth",), {}, r"model\.weights is other\.pth there and gone\.pth here"),
        ("mean", ("stream.mean=0.5,0.5,0.5",), {}, r"stream\.mean"),
        ("std", ("stream.std=0.5,0.5,0.5",), {}, r"stream\.std"),
        ("size", ("stream.image_size=48",), {}, r"stream\.image_size is 48 there and"),
        ("network", ("model.attention_weight=0.7",), {}, r"model\.attention_weight is 0\.7 there"),
        ("classes", (), {"classes": ("dog", "cat", "größe")}, "does not know the classes"),
    ):
        with pytest.raises(UserError, match=message):
            average_checkpoints([one, saved(tmp_path / name, 2, *settings, **changes)], tmp_path / "c")
    random = saved(tmp_path / "random", 1, "model.weights=")
    with pytest.raises(UserError, match="started at random"):
        average_checkpoints([random, random], tmp_path / "c")
    with pytest.raises(UserError, match="exists already"):
        average_checkpoints([one, one], one)
