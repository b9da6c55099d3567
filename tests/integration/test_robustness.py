"""A robustness study: the same holes for every model, kept when finished, its numbers in its files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

from msldata.errors import UserError
from msltrain.evaluation.evaluate import evaluate
from msltrain.evaluation.sweep import AllSamples
from msltrain.measures.metrics import compute_metrics
from msltrain.measures.predictions import read_predictions
from msltrain.robustness.conditions import UNFINISHED, StudyModel
from msltrain.robustness.curves import compute_curves, pooled_visibility
from msltrain.robustness.figure import robustness_markdown, write_robustness
from msltrain.robustness.fillings import Filling
from msltrain.robustness.kinds import KINDS
from msltrain.robustness.run import Recalibration, Study, run_study
from msltrain.runs.checkpoint import load_recogniser
from msltrain.runs.other_checkpoints import Foreign
from msltrain.stream.config import StreamConfig
from msltrain.stream.keepmasks.donors import Donors
from msltrain.stream.loader import Loader
from msltrain.stream.samples.shardset import open_shard_set
from tests.integration.test_evaluate import write_checkpoint
from tests.smallshards import CLASSES, write_images, write_keep_masks

pytestmark = pytest.mark.usefixtures("ready_python")


def keep_mask(hole_fraction: float, seed: int) -> np.ndarray:
    """64 x 64 with that share of zeros, whole at the model's 32 x 32."""
    hidden = np.random.default_rng(seed).permutation(1024) < round(hole_fraction * 1024)
    return np.kron(~hidden.reshape(32, 32), np.ones((2, 2), bool)).astype(np.uint8)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("robustness")
    write_images(folder / "shards", (5, 1, 5), with_objects=True)
    write_images(folder / "train", (12,))
    levels = [0.05, 0.08, 0.15, 0.35, 0.55, 0.7]
    write_keep_masks(folder / "heldout", [keep_mask(level, seed) for seed, level in enumerate(levels * 2)])
    write_keep_masks(folder / "masks", [keep_mask(0.6, seed) for seed in range(20, 24)])
    quarter = np.ones((64, 64), np.uint8)
    quarter[:32, :32] = 0
    half = np.ones((64, 64), np.uint8)
    half[:32, :16] = 0
    write_keep_masks(folder / "quarter", [quarter, half])
    write_checkpoint(folder / "one", CLASSES)
    write_checkpoint(folder / "two", CLASSES, seed=1)
    return folder


def study(place: Path, **changes) -> Study:
    models = (("One", str(place / "one")), ("Two", str(place / "two")))
    return replace(Study(models=models, shards=str(place / "shards"), keep_masks=(str(place / "heldout"),)), **changes)


@pytest.fixture(scope="module")
def found(place):
    recalibration = Recalibration(shards=str(place / "train"), keep_masks=(str(place / "masks"),))
    return run_study(study(place, recalibration=recalibration), place / "study", batch_size=4, device="cpu")


def test_conditions_and_their_holes(found):
    names = ["whole", *(f"irregular-{name}" for name in ("00-10", "10-20", "30-40", "50-60", "high"))]
    assert list(found) == ["One", "One recalibrated", "Two"]
    for row in found.values():
        assert list(row) == names  # no mask in the other ranges
        for name, one in row.items():
            low, high = one.origin.hole_range or (0, 0)
            assert name == "whole" or low < one.origin.hole_fraction <= high
    assert found["One"]["whole"].visible_NK is None and found["One"]["whole"].origin.keep_masks == ()


def test_every_model_meets_the_same_holes(found):
    for name, one in found["One"].items():
        for other in ("One recalibrated", "Two"):
            assert found[other][name].origin.hole_fraction == one.origin.hole_fraction
            if one.visible_NK is not None:
                np.testing.assert_array_equal(found[other][name].visible_NK, one.visible_NK)
            assert np.abs(found[other][name].logit_NK - one.logit_NK).max() > 1e-3


def test_whole_images_are_those_of_evaluate(place, found):
    plain = evaluate(place / "one", place / "shards", device="cpu", batch_size=4)
    np.testing.assert_array_equal(found["One"]["whole"].logit_NK, plain.logit_NK)
    assert np.abs(found["One"]["irregular-high"].logit_NK - plain.logit_NK).max() > 1e-3


def test_a_timm_classifier_sees_what_evaluate_shows_it(place, tmp_path):
    weights = tmp_path / "plain.pth"
    torch.save(timm.create_model("test_resnet", num_classes=len(CLASSES)).state_dict(), weights)
    foreign, shards = Foreign(model="test_resnet"), str(place / "shards")
    one = study(place, models=(("plain", str(weights)),), foreign=foreign, keep_masks=(), kinds=("box",))
    found = run_study(one, tmp_path / "study", batch_size=4, device="cpu")["plain"]
    expected = evaluate(weights, shards, foreign=foreign, batch_size=4, device="cpu")
    np.testing.assert_array_equal(found["whole"].logit_NK, expected.logit_NK)
    assert all(one.visible_NK is None for one in found.values())
    with pytest.raises(UserError, match="boxes are known on all of it; leave out --kind object"):
        run_study(replace(one, kinds=("object",)), tmp_path / "objects", device="cpu")


def test_classes_are_matched_by_name(place, found, tmp_path):
    """The network of `One`, of which each output means another class."""
    write_checkpoint(tmp_path / "turned", CLASSES[::-1])
    models = (("One", str(place / "one")), ("Turned", str(tmp_path / "turned")))
    both = run_study(study(place, models=models), tmp_path / "study", device="cpu", batch_size=4)
    for name, one in both["One"].items():
        turned = both["Turned"][name]
        assert turned.classes == one.classes == CLASSES
        np.testing.assert_array_equal(turned.logit_NK, one.logit_NK[:, ::-1])
    alone = evaluate(tmp_path / "turned", place / "shards", device="cpu", batch_size=4)
    measured = [compute_metrics(one).mAP for one in (alone, both["Turned"]["whole"])]
    assert measured[0] == pytest.approx(measured[1])
    write_checkpoint(tmp_path / "other", ("bird", "boat", "cow"))
    with pytest.raises(UserError, match="the data lacks cow; the checkpoint does not know cat"):
        run_study(study(place, models=(("Other", str(tmp_path / "other")),)), tmp_path / "no", device="cpu")


def test_visible_share_of_the_boxes(place):
    # The object is the upper left quarter; one mask hides exactly that, the other its left half.
    one = run_study(study(place, keep_masks=(str(place / "quarter"),)), place / "quarters", device="cpu")["One"]
    assert list(one) == ["whole", "irregular-10-20", "irregular-20-30"]
    for name, share in (("irregular-10-20", 0.5), ("irregular-20-30", 0.0)):
        visible_NK = one[name].visible_NK
        assert visible_NK is not None
        np.testing.assert_array_equal(visible_NK, np.where(one[name].target_NK == 1, np.float32(share), -1))
    cells = compute_curves({"One": one}).of("One", "irregular")
    expected = one["irregular-20-30"]
    kept_NK = (expected.target_NK == 1) & ~expected.ignore_NK
    predicted = int((kept_NK & (expected.logit_NK >= 0)).sum())
    assert cells[2].num_pairs == (int(kept_NK.sum()), 0, 0, 0, 0) and cells[2].num_predicted[0] == predicted
    assert cells[1].num_pairs == (0, 0, 11, 0, 0)
    assert [pairs for _, pairs in pooled_visibility(cells)] == [11, 0, 11, 0, 0]


def test_drawn_kinds_need_no_stored_masks(place):
    # At 32 pixels: patches of 2, so 16 a side; boxes up to rounding; the object's box is the upper left quarter.
    found = run_study(study(place, keep_masks=(), kinds=("patch", "box", "object")), place / "drawn", device="cpu")
    bins = [f"{low:02d}-{low + 10}" for low in range(0, 60, 10)]
    names = [f"{kind}-{name}" for kind in ("patch", "box") for name in bins]
    assert list(found["One"]) == ["whole", *names, "object-box"]
    for name, one in found["One"].items():
        assert one.origin.keep_masks == ()
        assert one.origin.hole_fraction == found["Two"][name].origin.hole_fraction
        if name.startswith(("patch", "box")):
            assert one.origin.hole_fraction == pytest.approx(sum(one.origin.hole_range) / 2, abs=0.02)
    hidden = found["One"]["object-box"]
    assert hidden.visible_NK is not None
    np.testing.assert_array_equal(hidden.visible_NK, np.where(hidden.target_NK == 1, 0, -1))
    curves = compute_curves(found)
    assert curves.kinds == ["patch", "box", "object"]
    assert len([area for area in curves.areas if area.model == "One"]) == 3


def test_filled_holes_are_the_irregular_ones_and_pasted_objects_the_boxes(place, found):
    kinds = ("mean", "noise", "blur", "image", "box", "pasted")
    filled = run_study(study(place, kinds=kinds), place / "filled", batch_size=4, device="cpu")
    black, one = found["One"], filled["One"]
    for kind in kinds[:4]:
        for name in ("00-10", "50-60", "high"):
            mine, other = one[f"{kind}-{name}"], black[f"irregular-{name}"]
            assert mine.origin.hole_fraction == other.origin.hole_fraction and mine.origin.kind == kind
            assert mine.origin.keep_mask_fingerprints == other.origin.keep_mask_fingerprints != ()
            np.testing.assert_array_equal(mine.visible_NK, other.visible_NK)
            assert np.abs(mine.logit_NK - other.logit_NK).max() > 1e-4
    for name in ("00-10", "50-60"):
        assert one[f"pasted-{name}"].origin.hole_fraction == one[f"box-{name}"].origin.hole_fraction
        assert one[f"pasted-{name}"].origin.keep_masks == ()
        np.testing.assert_array_equal(one[f"pasted-{name}"].visible_NK, one[f"box-{name}"].visible_NK)
    # What the holes show themselves counts nowhere, the same pairs for every model.
    whole = one["whole"]
    np.testing.assert_array_equal(one["mean-high"].ignore_NK, whole.ignore_NK)
    for name in ("image-high", "pasted-50-60"):
        assert (one[name].ignore_NK >= whole.ignore_NK).all() and (one[name].ignore_NK != whole.ignore_NK).any()
        np.testing.assert_array_equal(filled["Two"][name].ignore_NK, one[name].ignore_NK)
    assert compute_curves(filled).kinds == list(kinds)


def test_what_shows_in_the_holes(place):
    shard_set = open_shard_set(place / "shards")
    stream = StreamConfig(image_size=32, batch_size=4, num_threads=1)
    keep_mask_B1HW = torch.ones(4, 1, 32, 32)
    keep_mask_B1HW[:, :, 4:20, 8:16] = 0
    with Loader(shard_set, stream, device="cpu", training=False) as loader:
        batch = next(iter(loader))
        image_BCHW, hole_BHW = batch.image_BCHW, keep_mask_B1HW[:, 0] == 0
        for kind in KINDS:
            filling = Filling(kind, shard_set, stream, torch.device("cpu"), 0)
            seen_BCHW, shown_BK = filling.hide(batch, keep_mask_B1HW)
            kept = keep_mask_B1HW.expand_as(image_BCHW) == 1
            torch.testing.assert_close(seen_BCHW[kept], image_BCHW[kept])
            assert (shown_BK is not None) == filling.shows_classes == (kind in ("image", "pasted"))
            for seen_CHW, image_CHW, hole_HW in zip(seen_BCHW, image_BCHW, hole_BHW, strict=True):
                inside_CP = seen_CHW[:, hole_HW]
                if kind == "mean":
                    torch.testing.assert_close(inside_CP, image_CHW.mean(dim=(1, 2))[:, None].expand_as(inside_CP))
                elif kind in ("irregular", "patch", "box", "object"):
                    assert (inside_CP == 0).all()
                else:
                    assert inside_CP.std() > 0.01 and not torch.equal(inside_CP, image_CHW[:, hole_HW])
            if kind == "pasted":  # each object is the upper left quarter of its image; all of it lies in the box
                donors = Donors("object", shard_set, stream, "cpu")
                cut_out_BCHW, classes_BK = donors.filling(batch.key_hash_B, seed=0, epoch=0)
                assert torch.equal(shown_BK, classes_BK)
                fitted_BCHW = F.interpolate(cut_out_BCHW, (16, 8), mode="bilinear", antialias=True)
                torch.testing.assert_close(seen_BCHW[:, :, 4:20, 8:16], fitted_BCHW)


def test_finished_models_are_kept_and_missing_ones_run(place, found, monkeypatch):
    first = place / "study" / "predictions" / "One" / "whole.parquet"
    second = place / "study" / "predictions" / "Two" / "irregular-10-20.parquet"
    before, bytes_before = first.stat().st_mtime_ns, second.read_bytes()
    second.unlink()
    again = run_study(study(place), place / "study", batch_size=4, device="cpu")
    assert first.stat().st_mtime_ns == before and second.read_bytes() == bytes_before
    assert list(again) == ["One", "Two"]
    monkeypatch.setattr(StudyModel, "_compute", lambda *_: pytest.fail("ran a finished model again"))
    run_study(study(place), place / "study", batch_size=4, device="cpu")


def test_another_study_in_the_folder_is_refused(place, found):
    with pytest.raises(UserError, match=r"its seed is 0, that of this study 1; choose another --out"):
        run_study(study(place, seed=1), place / "study", device="cpu")
    with pytest.raises(UserError, match="its checkpoint_sha256"):
        run_study(study(place, models=(("One", str(place / "two")),)), place / "study", device="cpu")


def test_recalibration_changes_batchnorm_alone(place, found):
    # Statistics over one batch of everything are those of the batch: the recalibrated model in evaluation mode then
    # gives what the original gives in training mode on the same images.
    from msltrain.robustness.recalibrate import recalibrate_batchnorm

    torch.manual_seed(0)
    image = torch.rand(64, 3, 64, 64)
    recogniser = load_recogniser(place / "one").recogniser
    weights = {name: value.clone() for name, value in recogniser.named_parameters()}
    original = load_recogniser(place / "one").recogniser
    reference = load_recogniser(place / "one").recogniser.train()
    with torch.no_grad():
        expected = reference(image)
    assert recalibrate_batchnorm(recogniser, [image]) == 64
    assert not recogniser.training and not any(module.training for module in recogniser.modules())
    with torch.no_grad():
        # Running variances are unbiased, those of a batch are not: one part in 256 in the last layers.
        assert torch.allclose(recogniser(image), expected, atol=0.05)
        assert not torch.allclose(original(image), expected, atol=0.05)
    assert all(torch.equal(value, weights[name]) for name, value in recogniser.named_parameters())
    assert found["One recalibrated"]["whole"].origin.recalibrated and not found["One"]["whole"].origin.recalibrated
    with pytest.raises(UserError, match="no BatchNorm"):
        recalibrate_batchnorm(torch.nn.Linear(2, 2), [torch.rand(1, 2)])


def test_figures_come_from_the_files_alone(place, found, tmp_path):
    curves = compute_curves(found)
    files = sorted((place / "study" / "predictions").glob("*/*.parquet"))
    again = {
        model: {name: read_predictions(place / "study" / "predictions" / model / f"{name}.parquet") for name in row}
        for model, row in found.items()
    }
    assert compute_curves(again) == curves and len(files) == 18
    for cell in curves.cells:
        assert cell.mAP == compute_metrics(found[cell.model][cell.condition]).mAP
    # The curve's area: trapezoids over the mean hole fractions, "high" apart.
    cells = [cell for cell in curves.of("Two", "irregular") if cell.condition != "irregular-high"]
    parts = [(right.hole_fraction - left.hole_fraction) * (left.mAP + right.mAP) / 2 for left, right in pairwise(cells)]
    [area] = [area for area in curves.areas if area.model == "Two"]
    assert area.mAP == pytest.approx(sum(parts) / cells[-1].hole_fraction)
    assert (area.up_to, len(cells)) == (cells[-1].hole_fraction, 5)

    written = write_robustness(curves, tmp_path)
    assert [file.name for file in written] == ["robustness.html", "robustness.md", "robustness.json"]
    table = robustness_markdown(curves)
    for cell in curves.of("Two", "irregular"):
        assert f" {100 * cell.mAP:.1f} " in next(line for line in table.splitlines() if line.startswith("| Two"))
    first = written[0].read_bytes()
    assert first.startswith(b"<!DOCTYPE html>") and write_robustness(curves, tmp_path)[0].read_bytes() == first


def test_masks_of_no_bin_leave_the_curve_at_the_whole_images(place, tmp_path):
    write_keep_masks(tmp_path / "masks", [keep_mask(0.8, 0)])
    found = run_study(study(place, keep_masks=(str(tmp_path / "masks"),)), tmp_path / "out", device="cpu")
    curves = compute_curves({"One": found["One"]})
    assert [cell.condition for cell in curves.cells] == ["whole", "irregular-high"]
    [area], whole = curves.areas, curves.cells[0]
    assert (area.up_to, area.mAP, area.CR, area.CF1) == (0, whole.mAP, whole.CR, whole.CF1) and whole.mAP != whole.CR


SCRIPT = """
import os, signal, sys
from contextlib import nullcontext
from pathlib import Path
from msltrain.robustness.run import run_study
from msltrain.robustness.study import Study

def kill(done, of):
    print(done, flush=True)
    if steps == "-" or os.environ.get("RANK", "0") != "0":
        return
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)

steps, shards, masks, out, *models = sys.argv[1:]
left = [0 if steps == "-" else int(steps)]
study = Study(models=tuple(zip(("One", "Two"), models)), shards=shards, keep_masks=(masks,))
run_study(study, Path(out), batch_size=4, device="cpu", save_seconds=0, progress=lambda name: nullcontext(kill))
"""


def start(place: Path, out: Path, kill_in_step: object, launcher: Sequence[str] = ()) -> tuple[int, list[int], str]:
    """Run the study in a process of its own, which kills itself at its nth step: exit code, samples done, errors."""
    script = out.with_suffix(".py")
    script.write_text(SCRIPT)
    places = [str(place / name) for name in ("shards", "heldout")]
    models = [str(place / name) for name in ("one", "two")]
    result = subprocess.run(
        [sys.executable, *launcher, str(script), str(kill_in_step), *places, str(out), *models],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        capture_output=True,
        text=True,
        timeout=180,
    )
    return result.returncode, [int(line) for line in result.stdout.split()], result.stderr


def assert_same_files(place: Path, out: Path) -> None:
    """The files of the study of ``found``, byte for byte, and nothing besides them."""
    for name in ("One", "Two"):
        expected = {file.name: file.read_bytes() for file in (place / "study" / "predictions" / name).iterdir()}
        assert {file.name: file.read_bytes() for file in (out / "predictions" / name).iterdir()} == expected


def test_a_killed_study_goes_on_where_it_was(place, found, tmp_path):
    # Eleven images in steps of four; a step is finished before the kill in the next one. The first start dies in the
    # last step of the first model, the second one in the second step of the second.
    out = tmp_path / "out"
    assert start(place, out, 3)[:2] == (-9, [4, 8, 11])
    assert start(place, out, 3)[:2] == (-9, [11, 4, 8]), "the eight images that were done are not done again"
    assert [file.name for file in (out / "predictions" / "Two").iterdir()] == [UNFINISHED]
    done: list[int] = []
    run_study(
        study(place),
        out,
        batch_size=4,
        device="cpu",
        progress=lambda name: nullcontext(lambda number, of: done.append(number)),
    )
    assert done == [8, 11]
    assert_same_files(place, out)


def test_only_open_conditions_of_a_model_run_and_the_images_are_decoded_once_for_them(place, found, tmp_path):
    shutil.copytree(place / "study" / "predictions" / "One", tmp_path / "predictions" / "One")
    missing = ["irregular-10-20", "irregular-high"]
    for name in missing:
        (tmp_path / "predictions" / "One" / f"{name}.parquet").unlink()
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "predictions" / "One").iterdir()}
    views: list[list[str]] = []
    original = AllSamples.steps

    def watch(self, views_, *rest):
        views.append([getattr(view.hide, "name", "whole") for view in views_])
        return original(self, views_, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AllSamples, "steps", watch)
        again = run_study(study(place, models=(("One", str(place / "one")),)), tmp_path, batch_size=4, device="cpu")
    assert views == [missing]
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    for name, one in found["One"].items():
        np.testing.assert_array_equal(again["One"][name].logit_NK, one.logit_NK)


def test_what_another_study_left_unfinished_is_refused_and_damage_is_computed_again(place, found, tmp_path):
    out = tmp_path / "out"
    assert start(place, out, 3)[0] == -9
    with pytest.raises(UserError, match=r"a study began here whose seed is 0, that of this study 1"):
        run_study(study(place, seed=1), out, device="cpu")
    # Kinds that were not open then share no pass with those that were: nothing can be used, nothing is in the way.
    other = tmp_path / "other"
    shutil.copytree(out, other)
    whole = run_study(study(place, kinds=("box",)), other, batch_size=4, device="cpu")["One"]["whole"]
    np.testing.assert_array_equal(whole.logit_NK, found["One"]["whole"].logit_NK)
    file = min((out / "predictions" / "One" / UNFINISHED).iterdir())
    file.write_bytes(file.read_bytes()[:-100])
    run_study(study(place), out, batch_size=4, device="cpu")
    assert_same_files(place, out)


@pytest.mark.slow
def test_three_ranks_write_the_same_files_and_take_over_what_two_left(place, found, tmp_path):
    """``pytest -m slow tests/integration/test_robustness.py``: half a minute on two cores."""
    for num_ranks, kill_in_step, begins_behind in ((2, 2, 0), (3, "-", 8)):
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
        code, done, errors = start(place, tmp_path / "out", kill_in_step, launcher)
        assert (code == 0) == (kill_in_step == "-"), errors
        assert min(done) > begins_behind or not done
    assert_same_files(place, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": ()}, "at least one model"),
        ({"models": (("a", "x"), ("a", "y"))}, "must differ"),
        ({"models": (("../a", "x"),)}, "cannot name a model"),
        ({"recalibration": Recalibration(shards="x", keep_masks=("M",)), "keep_masks": ("M",)}, "not on the held-out"),
    ],
)
def test_studies_that_make_no_sense(place, changes, message):
    with pytest.raises(UserError, match=message):
        study(place, **changes)


def test_an_unknown_kind_is_said(place, tmp_path):
    with pytest.raises(UserError, match="'spots'; there are: irregular, patch, box, object"):
        run_study(study(place, kinds=("spots",)), tmp_path, device="cpu")


def test_the_command(place, tmp_path):
    from msltrain.__main__ import app

    arguments = [
        "robustness",
        "--data",
        str(place / "shards"),
        "--keep-masks",
        str(place / "heldout"),
        "--device",
        "cpu",
    ]
    for name in ("one", "two"):
        arguments += ["--checkpoint", str(place / name)]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert re.search(r"one +irregular +\d+\.\d\d", result.output)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "predictions",
        "robustness.html",
        "robustness.md",
        "robustness.json",
    }
    result = CliRunner().invoke(app, [*arguments, "--name", "only-one"])
    assert result.exit_code == 2
    assert "2 checkpoints and 1 name" in result.output
