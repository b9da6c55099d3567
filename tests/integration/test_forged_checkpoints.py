"""Checkpoints with digests that fit and content that no training wrote: one message that names the file, exit 2."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from typer.testing import CliRunner

from msltrain.__main__ import app
from tests.smallshards import photo, write_images, write_keep_masks

NAN = float("nan")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, keep masks, and ``run``, a finished run of two epochs on them."""
    root = tmp_path_factory.mktemp("forged")
    write_images(root / "train", [60])
    rng = np.random.default_rng(0)
    write_keep_masks(root / "high", [(rng.random((32, 32)) > 0.5).astype(np.uint8) for _ in range(3)])
    (root / "one.jpg").write_bytes(photo(1))
    assert msl(*words(root), "--run", root / "run")[0] == 0
    return root


def words(root: Path) -> list[object]:
    """A training of seconds."""
    settings = ("stream.image_size=32", "model.backbone=test_efficientnet", "stream.num_threads=1", "run.device=cpu")
    options = [word for one in (*settings, "data.validation_fraction=0.4") for word in ("--set", one)]
    return ["train", "--recipe", "smoke", "--data", root / "train", "--keep-masks", root / "high", *options]


def msl(*words: object) -> tuple[int, str]:
    """Exit code and what was said, on one line; a traceback fails."""
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "400"})
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return result.exit_code, " ".join(result.output.split())


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def forged(
    data: Path,
    run: Path,
    *,
    meta: Callable[[dict[str, Any]], object] | None = None,
    state: Callable[[dict[str, Any]], object] | None = None,
    weights: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] | None = None,
) -> Path:
    """A copy of the run whose checkpoints were changed so, with the digests that fit."""
    shutil.copytree(data / "run", run)
    for folder in (run / "checkpoints").iterdir():
        facts = json.loads((folder / "meta.json").read_text())
        if state is not None:
            content = torch.load(folder / "train_state.pt", weights_only=True)
            state(content)
            saved = io.BytesIO()
            torch.save(content, saved)
            (folder / "train_state.pt").write_bytes(saved.getvalue())
            facts["train_state_sha256"] = hashlib.sha256(saved.getvalue()).hexdigest()
        if weights is not None:
            packed = save(weights(load((folder / "weights.safetensors").read_bytes())))
            (folder / "weights.safetensors").write_bytes(packed)
            facts["weights_sha256"] = hashlib.sha256(packed).hexdigest()
        if meta is not None:
            meta(facts)
        del facts["meta_sha256"]
        facts["meta_sha256"] = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        (folder / "meta.json").write_text(json.dumps(facts))
    return run


def moments(state: dict[str, Any]) -> dict[str, Any]:
    return next(iter(state["optimizer"]["state"].values()))


@pytest.fixture
def unfinished(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take these runs for ones that were stopped: of a finished one, nothing more is read."""
    monkeypatch.setattr("msltrain.commands.train.was_over", lambda *_: False)


@pytest.mark.usefixtures("unfinished")
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: state.clear(), "its loader has no position"),
        (lambda state: state.pop("optimizer"), "its optimiser is none"),
        (lambda state: state.pop("best"), "its best epoch is none"),
        (lambda state: state["best"].update(mAP=NAN), "its best epoch is none"),
        (lambda state: state["best"].update(mAP="0.5"), "its best epoch is none"),
        (lambda state: state["best"].update(epoch=7), "its best epoch is none"),
        (lambda state: state["loader"].update(epoch=10**12), "it is in epoch 1000000000001 of 2"),
        (lambda state: state["loader"].update(epoch=-1), "its loader has no position"),
        (lambda state: state["loader"].update(step=10**12), "it is at step 1000000000000 of an epoch of"),
        (lambda state: state["loader"].update(epoch=0), "meta.json says 2 epochs, and it 0"),
        (lambda state: state["loader"].pop("num_samples"), "its loader has no position"),
        (lambda state: state.update(random=[]), "it lacks the states of the random numbers"),
        (lambda state: state["random"][0].pop("torch"), "holds no state of the random numbers"),
        (lambda state: state["random"][0].update(python=3), "holds no state of the random numbers"),
        (lambda state: state.update(weights=[1]), "its weights have no names"),
        (lambda state: state.update(weights={"a": 1}), "holds something else than tensors (a)"),
        (lambda state: state.update(twin={}), "its twin is none"),
        (lambda state: state.update(num_averaged=-1), "num_averaged is not a count"),
        (lambda state: state["optimizer"].update(state=[]), "its optimiser is none"),
        (lambda state: state["optimizer"]["param_groups"].pop(), "in other groups"),
        (lambda state: moments(state).update(momentum_buffer=torch.ones(3)), "momentum_buffer of parameter 0 is no"),
        (lambda state: moments(state).update(momentum_buffer="x"), "momentum_buffer of parameter 0 is no tensor"),
    ],
)
def test_a_forged_training_state_is_refused_and_the_run_stays(data, tmp_path, change, says):
    run = forged(data, tmp_path / "run", state=change)
    before = contents(run)
    code, said = msl(*words(data), "--run", run, "--resume", "must")
    assert code == 2 and f"{run / 'checkpoints/last/train_state.pt'}: " in said and says in said
    assert contents(run) == before


@pytest.mark.usefixtures("unfinished")
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda meta: meta.update(step=10**12), "says 1,000,000,000,000 steps, and the position"),
        (lambda meta: meta.update(epoch=10**12), "meta.json says 1000000000000 epochs, and it 2"),
        (lambda meta: meta["config"]["optim"].update(lr=0.5), "of another run than the folder's, judging by optim.lr"),
    ],
)
def test_a_description_of_another_training_is_refused(data, tmp_path, change, says):
    run = forged(data, tmp_path / "run", meta=change)
    before = contents(run)
    code, said = msl(*words(data), "--run", run, "--resume", "must")
    assert code == 2 and str(run / "checkpoints/last") in said and says in said
    assert contents(run) == before


def each(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, torch.Tensor]], dict]:
    def changed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: change(tensor) if tensor.is_floating_point() else tensor for name, tensor in weights.items()}

    return changed


@pytest.mark.usefixtures("unfinished")
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda weights: {}, "described beside it (it lacks backbone.network"),
        (lambda weights: {**weights, "z": torch.ones(2)}, "described beside it (it has z)"),
        (each(lambda tensor: tensor[None]), "described beside it (other shapes have backbone.network"),
        (each(lambda tensor: tensor * NAN), "hold NaN or infinity"),
        (each(lambda tensor: tensor.to(torch.int8)), "hold no fractions"),
    ],
)
def test_forged_weights_are_refused_by_all_that_read_them(data, tmp_path, change, says):
    run = forged(data, tmp_path / "run", weights=change)
    before = contents(run)
    for command in (
        [*words(data), "--run", run, "--resume", "must"],
        ["evaluate", run, "--data", data / "train", "--device", "cpu"],
        ["predict", data / "one.jpg", "--checkpoint", run, "--device", "cpu"],
    ):
        code, said = msl(*command)
        assert code == 2 and "weights.safetensors: " in said and says in said, said
        assert contents(run) == before


def test_whole_numbers_are_no_first_weights(data, tmp_path):
    run = forged(data, tmp_path / "run", weights=each(lambda tensor: tensor.to(torch.int8)))
    code, said = msl(*words(data), "--run", tmp_path / "new", "--weights", run)
    assert code == 2 and "hold no fractions" in said and not (tmp_path / "new").exists()
