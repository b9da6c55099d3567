"""Evaluation end to end: every sample once, the same file on any number of ranks, the same holes for every model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch

from msldata.contract.manifest import read_manifest
from msldata.contract.publish import write_manifest
from msldata.errors import UserError
from msldata.storage import open_storage
from msltrain.config import ModelConfig, TrainConfig
from msltrain.evaluation.averaged_views import AveragedViews
from msltrain.evaluation.evaluate import evaluate
from msltrain.evaluation.sweep import AllSamples, RankPart, in_full_batch
from msltrain.measures.metrics import compute_metrics
from msltrain.measures.predictions import Origin, read_predictions
from msltrain.measures.strata import compute_strata
from msltrain.models.build import build_model
from msltrain.models.timm_view import TimmView
from msltrain.recipes import RECIPES
from msltrain.runs.checkpoint import Checkpoint, load_recogniser, save_checkpoint
from msltrain.runs.other_checkpoints import Foreign, load_any
from msltrain.stream.config import StreamConfig
from msltrain.stream.loader import Loader
from msltrain.stream.order.random import key_hash
from msltrain.stream.samples.holdout import hold_out
from msltrain.stream.samples.shardset import open_shard_set
from tests.smallshards import CLASSES, write_images, write_keep_masks

pytestmark = pytest.mark.usefixtures("ready_python")

REPOSITORY = Path(__file__).resolve().parents[2]
IMAGE_SIZE = 32
SHARDS = (5, 1, 5)


def write_checkpoint(
    folder: Path,
    classes: tuple[str, ...],
    seed: int = 0,
    image_size: int = IMAGE_SIZE,
    config: TrainConfig | None = None,
) -> Path:
    """A run folder whose best checkpoint is a tiny network with random weights."""
    torch.manual_seed(seed)
    config = config or TrainConfig(
        stream=StreamConfig(image_size=image_size, batch_size=4), model=ModelConfig(backbone="resnet10t")
    )
    weights = build_model(config.model, len(classes), image_size=config.stream.image_size).state_dict()
    checkpoint = Checkpoint(
        config=config, classes=classes, step=0, epoch=0, validation_mAP=None, weights=weights, train_state={}
    )
    save_checkpoint(checkpoint, folder / "checkpoints" / "best")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Eleven samples in three shards, keep masks, and the run of a random model."""
    folder = tmp_path_factory.mktemp("evaluate")
    write_images(folder / "shards", SHARDS)
    rng = np.random.default_rng(0)
    write_keep_masks(folder / "holes", [(rng.random((64, 64)) > 0.6).astype(np.uint8) for _ in range(5)])
    write_keep_masks(folder / "visible", [np.ones((64, 64), np.uint8)])
    write_checkpoint(folder / "run", CLASSES)
    return folder


def test_every_sample_once_in_stored_order_with_its_truth(place, tmp_path):
    done = []
    predictions = evaluate(
        place / "run",
        place / "shards",
        out=tmp_path / "p.parquet",
        batch_size=4,
        device="cpu",
        progress=lambda *counts: done.append(counts),
    )
    assert predictions.keys == tuple(f"s{number:06d}" for number in range(11))
    assert predictions.target_NK.argmax(axis=1).tolist() == [number % 3 for number in range(11)]
    assert predictions.ignore_NK.sum(axis=1).tolist() == [int(number % 4 == 0) for number in range(11)]
    assert predictions.classes == CLASSES
    assert done == [(4, 11), (8, 11), (11, 11)]

    origin = predictions.origin
    assert (origin.dataset, origin.split, origin.image_size) == ("small", "train", IMAGE_SIZE)
    assert origin.dataset_fingerprint == open_shard_set(place / "shards").manifest.fingerprint
    assert len(origin.checkpoint_sha256) == 64
    assert compute_metrics(read_predictions(tmp_path / "p.parquet")) == compute_metrics(predictions)


def test_logits_do_not_depend_on_the_batch_size_beyond_rounding(place):
    whole = evaluate(place / "run", place / "shards", batch_size=11, device="cpu")
    single = evaluate(place / "run", place / "shards", batch_size=1, device="cpu")
    np.testing.assert_allclose(whole.logit_NK, single.logit_NK, atol=1e-5)
    assert np.ptp(whole.logit_NK, axis=0).min() > 1e-3, "the samples must differ for this to mean anything"


def test_every_model_meets_the_same_holes_and_the_seed_changes_them(place, tmp_path):
    masks = [place / "holes"]
    other = write_checkpoint(tmp_path / "other", CLASSES, seed=1)
    first = evaluate(place / "run", place / "shards", keep_masks=masks, device="cpu")
    again = evaluate(place / "run", place / "shards", keep_masks=masks, device="cpu", batch_size=3)
    second = evaluate(other, place / "shards", keep_masks=masks, device="cpu")
    reseeded = evaluate(place / "run", place / "shards", keep_masks=masks, device="cpu", seed=1)
    whole = evaluate(place / "run", place / "shards", device="cpu")

    np.testing.assert_allclose(first.logit_NK, again.logit_NK, atol=1e-5)
    assert 0.5 < first.origin.hole_fraction == second.origin.hole_fraction < 0.7
    assert first.origin.hole_fraction != reseeded.origin.hole_fraction
    assert np.abs(first.logit_NK - whole.logit_NK).max() > 1e-3
    assert (whole.origin.keep_masks, whole.origin.hole_fraction) == ((), 0.0)
    assert len(first.origin.keep_mask_fingerprints) == 1


def test_masks_without_holes_change_nothing(place):
    whole = evaluate(place / "run", place / "shards", device="cpu")
    visible = evaluate(place / "run", place / "shards", keep_masks=[place / "visible"], device="cpu")
    np.testing.assert_array_equal(whole.logit_NK, visible.logit_NK)
    assert visible.origin.hole_fraction == 0.0


def test_other_classes_are_named(place, tmp_path):
    run = write_checkpoint(tmp_path / "run", ("bird", "boat", "zebra"))
    with pytest.raises(UserError, match=r"zebra.*cat"):
        evaluate(run, place / "shards", device="cpu")


def test_the_held_out_part_is_what_training_set_aside(place):
    whole = evaluate(place / "run", place / "shards", device="cpu")
    config = load_recogniser(place / "run").config

    def setting_aside(fraction: float) -> Path:
        changed = replace(config, data=replace(config.data, validation_fraction=fraction))
        return write_checkpoint(place / f"aside-{fraction}", CLASSES, config=changed)

    run = setting_aside(0.5)
    part = evaluate(run, place / "shards", held_out=True, device="cpu", batch_size=3)
    expected = hold_out(open_shard_set(place / "shards"), 0.5)[1]
    assert 1 < len(part.keys) == expected.num_samples < 11
    assert part.origin.part == "held out" and set(part.keys) < set(whole.keys)
    rows = [whole.keys.index(key) for key in part.keys]
    np.testing.assert_allclose(part.logit_NK, whole.logit_NK[rows], atol=1e-5)
    np.testing.assert_array_equal(part.target_NK, whole.target_NK[rows])
    with pytest.raises(UserError, match="set no samples aside"):
        evaluate(setting_aside(0.0), place / "shards", held_out=True, device="cpu")


def test_views_are_averaged(place):
    plain = evaluate(place / "run", place / "shards", device="cpu")
    flipped = evaluate(place / "run", place / "shards", flip=True, device="cpu", batch_size=4)
    same = evaluate(place / "run", place / "shards", scales=[1.0], device="cpu")
    scaled = evaluate(place / "run", place / "shards", scales=[2.0], device="cpu")
    assert flipped.origin.test_time == "flip" and scaled.origin.test_time == "scale 2" and not plain.origin.test_time
    assert np.abs(flipped.logit_NK - plain.logit_NK).max() > 1e-3
    assert np.abs(scaled.logit_NK - plain.logit_NK).max() > 1e-3
    np.testing.assert_allclose(same.logit_NK, plain.logit_NK, atol=1e-5)
    recogniser = load_recogniser(place / "run").recogniser
    image = torch.rand(2, 3, IMAGE_SIZE, IMAGE_SIZE)
    with torch.inference_mode():
        expected = (recogniser(image) + recogniser(image.flip(3))) / 2
        assert torch.allclose(AveragedViews(recogniser, flip=True)(image), expected, atol=1e-6)


def test_a_scale_that_the_model_cannot_take_is_said(place):
    with pytest.raises(UserError, match=r"between 0\.25 and 4"):
        evaluate(place / "run", place / "shards", scales=[100.0], device="cpu")

    def picky(image_BCHW: torch.Tensor) -> torch.Tensor:
        assert image_BCHW.shape[2] == 32, "Input height (64) doesn't match model (32)."
        return image_BCHW[:, :, 0, 0]

    with pytest.raises(UserError, match="does not take images of 64 pixels"):
        AveragedViews(picky, scales=(2.0,))(torch.rand(1, 3, 32, 32))


def test_a_plain_timm_classifier(place, tmp_path):
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=3).eval()
    torch.save(network.state_dict(), tmp_path / "plain.pth")
    foreign = Foreign(model="test_resnet")
    predictions = evaluate(tmp_path / "plain.pth", place / "shards", foreign=foreign, device="cpu")
    data = timm.data.resolve_data_config({}, model=network)
    assert predictions.origin.image_size == data["input_size"][-1]
    stream = StreamConfig(
        image_size=data["input_size"][-1], batch_size=11, mean=tuple(data["mean"]), std=tuple(data["std"])
    )
    square = TimmView.of(data).square  # what timm's own evaluation shows it
    with Loader(open_shard_set(place / "shards"), stream, device="cpu", training=False, to_square=square) as loader:
        [batch] = list(loader)
    with torch.inference_mode():
        np.testing.assert_allclose(predictions.logit_NK, network(batch.image_BCHW).numpy(), atol=1e-4)

    with pytest.raises(UserError, match="give --recipe NAME"):
        evaluate(tmp_path / "plain.pth", place / "shards", device="cpu")
    torch.save(timm.create_model("test_resnet", num_classes=7).state_dict(), tmp_path / "seven.pth")
    with pytest.raises(UserError, match=r"has 7 outputs .*the data 3 classes"):
        evaluate(tmp_path / "seven.pth", place / "shards", foreign=foreign, device="cpu")
    with pytest.raises(UserError, match="not a whole 'test_vit'"):
        evaluate(tmp_path / "plain.pth", place / "shards", foreign=Foreign(model="test_vit"), device="cpu")
    with pytest.raises(UserError, match="no head of a released checkpoint"):
        evaluate(tmp_path / "plain.pth", place / "shards", foreign=Foreign(recipe="smoke"), device="cpu")


def test_a_released_checkpoint_by_its_recipe(place, tmp_path):
    # As released: torchvision-like names, one tensor per head. The smoke recipe has two heads.
    torch.manual_seed(1)
    config = RECIPES["smoke"]()
    model = build_model(config.model, 3, image_size=config.stream.image_size).eval()
    weights = {name.removeprefix("backbone.network."): value for name, value in model.backbone.state_dict().items()}
    weights = {name.removeprefix("network."): value for name, value in weights.items()}
    heads = model.classifier.score.weight.detach().split(3)
    weights |= {f"classifier.multi_head.{n}.head.weight": head.clone() for n, head in enumerate(heads)}
    torch.save(weights, tmp_path / "msl.pth")
    foreign = Foreign(recipe="smoke")
    predictions = evaluate(tmp_path / "msl.pth", place / "shards", foreign=foreign, device="cpu")
    loaded = load_any(tmp_path / "msl.pth", foreign, CLASSES, torch.device("cpu"))
    image = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(loaded.recogniser(image), model(image), atol=1e-5)
    assert predictions.origin.image_size == 64
    with pytest.raises(UserError, match="its head has 3 classes, the data 2"):
        load_any(tmp_path / "msl.pth", foreign, ("a", "b"), torch.device("cpu"))


def test_a_corrupt_image_is_named(place, tmp_path):
    write_images(tmp_path / "bad", (5, 4), photos={"s000007": b"\xff\xd8\xff not a photograph"})
    with pytest.raises(UserError, match="s000007"):
        evaluate(place / "run", tmp_path / "bad", device="cpu")


def test_an_empty_folder_and_a_missing_class_list_are_said(place, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"build-shards"):
        evaluate(place / "run", tmp_path / "empty", device="cpu")
    shutil.copytree(place / "shards", tmp_path / "unnamed")
    write_manifest(open_storage(tmp_path / "unnamed"), replace(read_manifest(place / "shards"), classes=()))
    with pytest.raises(UserError, match="names no classes"):
        evaluate(place / "run", tmp_path / "unnamed", device="cpu")


def test_widers_rule_and_a_resize_are_recorded(place, tmp_path):
    shutil.copytree(place / "shards", tmp_path / "wider")
    file = tmp_path / "wider" / "dataset.json"
    manifest = json.loads(file.read_text())
    changed = {"provenance": {"source": "WIDER-Attribute"}, "options": {"resize": "shorter=448"}}
    file.write_text(json.dumps(manifest | changed))
    origin = evaluate(place / "run", tmp_path / "wider", device="cpu").origin
    assert (origin.ignored_in_rates, origin.resize) == ("negative", "shorter=448")
    origin = evaluate(place / "run", place / "shards", device="cpu").origin
    assert (origin.ignored_in_rates, origin.resize) == ("left out", "")


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_any_number_of_ranks_writes_the_file_of_one_process(place, tmp_path, num_ranks):
    # Eleven samples on steps of 4 or 6: the last step is short, and ranks have unequal parts of it.
    (tmp_path / "ranks.py").write_text(
        "import sys\nfrom msltrain.evaluation.evaluate import evaluate\n"
        "run, shards, masks, out = sys.argv[1:]\n"
        "evaluate(run, shards, keep_masks=[masks], out=out, batch_size=2, num_threads=1, device='cpu')\n"
    )
    run, shards, holes = (str(place / name) for name in ("run", "shards", "holes"))
    one, many = tmp_path / "one.parquet", tmp_path / "many.parquet"
    evaluate(run, shards, keep_masks=[holes], out=one, batch_size=2, num_threads=1, device="cpu")
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
    result = subprocess.run(
        [sys.executable, *launcher, str(tmp_path / "ranks.py"), run, shards, holes, str(many)],
        # The script lies elsewhere: without this an installed copy of the program would be tested.
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert result.returncode == 0, result.stderr
    assert many.read_bytes() == one.read_bytes()


def test_a_short_batch_is_computed_inside_a_full_one():
    seen = []

    def recogniser(image_BCHW: torch.Tensor) -> torch.Tensor:
        seen.append(image_BCHW)
        return image_BCHW[:, :, 0, 0]

    image_BCHW = torch.rand(4, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    for index_B in ([8, 9, 10, 11], [9, 10, 11, 12], [7, 8], [5]):
        logit_BK = in_full_batch(recogniser, image_BCHW[: len(index_B)], np.array(index_B), 4)
        assert torch.equal(logit_BK, image_BCHW[: len(index_B), :, 0, 0])
        assert seen[-1].shape == (4, 3, 2, 2) and seen[-1].is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(seen[-1][[index % 4 for index in index_B]], image_BCHW[: len(index_B)])


def test_a_sample_met_twice_or_never_is_refused(place):
    samples = AllSamples(open_shard_set(place / "shards"))
    keys = [f"s{number:06d}" for number in range(11)]
    part = RankPart(np.arange(11), key_hash(keys), np.zeros((11, 3), np.float32))
    assert samples.assemble(part, Origin()).keys == tuple(keys)
    logit_MK = np.arange(33, dtype=np.float32).reshape(11, 3)
    shuffled = np.random.default_rng(0).permutation(11)
    mixed = RankPart(shuffled, part.key_hash_M[shuffled], logit_MK[shuffled])
    np.testing.assert_array_equal(samples.assemble(mixed, Origin()).logit_NK, logit_MK)
    with pytest.raises(AssertionError, match="0 were never evaluated and 11 more than once"):
        samples.assemble(RankPart.concatenate([part, part]), Origin())
    with pytest.raises(AssertionError, match="1 were never evaluated"):
        samples.assemble(RankPart(np.arange(10), part.key_hash_M[:10], part.logit_MK[:10]), Origin())
    with pytest.raises(AssertionError, match="do not belong together"):
        samples.assemble(replace(part, key_hash_M=part.key_hash_M[::-1]), Origin())


@pytest.mark.real
def test_real_photographs_from_shards_to_numbers(sample, tmp_path):
    from sklearn.metrics import average_precision_score

    from msldata.build.shards import build_shards, plan_build
    from msldata.contract.records import VOC_CLASSES
    from msldata.sources.kinds import open_source
    from msldata.storage import open_storage

    source = open_source("voc2007", sample / "VOCdevkit" / "VOC2007", "test")
    manifest = build_shards(plan_build(source, samples_per_shard=150), open_storage(tmp_path / "test"), num_workers=1)
    run = write_checkpoint(tmp_path / "run", VOC_CLASSES)
    predictions = evaluate(run, tmp_path / "test", out=tmp_path / "p.parquet", device="cpu")
    metrics = compute_metrics(predictions)
    assert metrics.num_samples == manifest.num_samples == 390
    assert metrics.absent_classes == ()
    assert {name: row["positive"] for name, row in manifest.label_histogram.items()} == {
        row.name: row.num_positive for row in metrics.classes
    }
    strata = {row.name: row for row in compute_strata(predictions)}
    assert strata["small"].num_positive + strata["medium"].num_positive + strata["large"].num_positive == int(
        predictions.target_NK.sum()
    )
    assert strata["truncated"].num_positive > 0

    # The number once more, from nothing but the file.
    table = pq.read_table(tmp_path / "p.parquet").to_pydict()
    logit, target, ignore = (np.array(table[name]) for name in ("logit", "target", "ignore"))
    kept = ~ignore
    values = [average_precision_score(target[kept[:, k], k], logit[kept[:, k], k]) for k in range(20)]
    assert metrics.mAP == pytest.approx(np.mean(values), abs=1e-9)
