"""Checkpoints in object storage, read where they lie: which one a URL means, and the commands that take one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from msldata.errors import UserError
from msldata.storage import FileInfo, open_storage
from msltrain.__main__ import app
from msltrain.config import DataConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from msltrain.measures.predictions import read_predictions
from msltrain.recipes.paper import BASELINE_LOSS
from msltrain.runs.checkpoint import load_checkpoint, load_recogniser
from msltrain.runs.find_checkpoint import find_checkpoint
from msltrain.runs.mirror import RunMirror
from msltrain.runs.other_checkpoints import Foreign, load_any
from msltrain.runs.run_places import default_file
from msltrain.stream.config import StreamConfig
from msltrain.training.trainer import train
from tests.smallshards import CLASSES, write_images


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "train"
    write_images(folder, [12, 12])
    return folder


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of two steps whose best is made the first."""
    folder = tmp_path_factory.mktemp("run") / "run"
    config = TrainConfig(
        data=DataConfig(train=str(shards), validation_fraction=0),
        stream=StreamConfig(image_size=32, batch_size=12, num_threads=1),
        model=ModelConfig(backbone="test_efficientnet"),
        loss=BASELINE_LOSS,
        optim=OptimConfig(num_epochs=2),
        run=RunConfig(keep=2, device="cpu"),
    )
    train(config, run_dir=folder)
    (folder / "checkpoints" / "epoch-0001").rename(folder / "checkpoints" / "best")
    return folder


@pytest.fixture
def remote(run: Path, s3, request: pytest.FixtureRequest) -> str:
    """The run in object storage, as training leaves it there: its URL."""
    url = f"s3://bucket/{request.node.name.split('[')[0]}/run"
    RunMirror(open_storage(url), run).push()
    return url


@pytest.mark.parametrize(
    ("place", "step"),
    [
        ("", 2),
        ("/", 2),
        ("/checkpoints", 2),
        ("/checkpoints/best", 2),
        ("/checkpoints/last", 4),
        ("/checkpoints/last.000000004", 4),
        ("/checkpoints/epoch-0002", 4),
    ],
)
def test_a_url_means_what_a_path_does(remote: str, run: Path, place: str, step: int):
    found = load_checkpoint(remote + place)
    assert found.step == step
    name = "best" if step == 2 else "last"
    for key, tensor in load_checkpoint(run / "checkpoints" / name).weights.items():
        assert torch.equal(found.weights[key], tensor)


def test_a_run_without_validation_means_its_last_checkpoint(run: Path, s3, tmp_path: Path):
    """And of two uploads, while the older one is not deleted yet, the newer one."""
    storage = open_storage("s3://bucket/unvalidated/run")
    for name, stored in (("best", "last.000000002"), ("last", "last.000000010")):
        for file in (run / "checkpoints" / name).iterdir():
            storage.put(f"checkpoints/{stored}/{file.name}", file.read_bytes())
    loaded = load_recogniser("s3://bucket/unvalidated/run")
    assert loaded.path == "s3://bucket/unvalidated/run/checkpoints/last.000000010"
    assert loaded.sha256 == load_recogniser(run / "checkpoints" / "last").sha256
    assert loaded.prediction_files() == []


def test_a_copied_run_is_read_as_well(run: Path, s3):
    storage = open_storage("s3://bucket/copied")
    for file in run.rglob("*.*"):
        storage.put(file.relative_to(run).as_posix(), file.read_bytes())
    assert load_checkpoint("s3://bucket/copied").step == 2
    assert load_checkpoint("s3://bucket/copied/checkpoints/last").step == 4


@pytest.mark.parametrize("content", [b"[]", b"{", b'{"step": "x"}', b'{"step": 1e999}', b"\xff", b"[" * 5000])
def test_a_copied_run_with_a_broken_description_is_one_message(run: Path, s3, tmp_path: Path, content: bytes):
    storage = open_storage("s3://bucket/broken")
    for file in run.rglob("*.*"):
        storage.put(file.relative_to(run).as_posix(), file.read_bytes())
    storage.put("checkpoints/best/meta.json", content)
    with pytest.raises(UserError, match=r"s3://bucket/broken/checkpoints/best/meta\.json: not the description"):
        RunMirror(storage, tmp_path / "here").fetch(storage.list_files())
    assert not (tmp_path / "here").exists()


def test_names_that_lead_out_of_the_run_are_refused(tmp_path: Path):
    (tmp_path / "there").mkdir()
    mirror = RunMirror(open_storage(tmp_path / "there"), tmp_path / "here")
    for name in ("checkpoints/../../away", "a/./b"):
        with pytest.raises(UserError, match="no name of a run's file"):
            mirror.fetch([FileInfo("config.json", 1), FileInfo(name, 1)])


def test_mistakes_name_the_place(remote: str):
    with pytest.raises(FileNotFoundError, match=rf"^{remote}/nothing: no checkpoint here"):
        load_checkpoint(f"{remote}/nothing")
    storage = open_storage(remote)
    storage.put("checkpoints/best.000000002/weights.safetensors", b"torn")
    with pytest.raises(UserError, match=rf"^{remote}/checkpoints/best\.000000002/weights\.safetensors: damaged"):
        load_recogniser(remote)
    storage.delete("checkpoints/last.000000004/train_state.pt")
    with pytest.raises(UserError, match=r"last\.000000004/train_state\.pt: missing, so .* not continued"):
        load_checkpoint(f"{remote}/checkpoints/last")
    with pytest.raises(UserError, match=r"msl_c_voc\.pth: weights files are only read from a disk"):
        load_any("s3://bucket/msl_c_voc.pth", Foreign(), CLASSES, torch.device("cpu"))


def test_the_commands_take_a_url(remote: str, run: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def invoke(*arguments: object) -> str:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
        return result.output

    monkeypatch.chdir(tmp_path)
    common = ("--data", shards, "--device", "cpu", "--batch-size", 8)
    invoke("evaluate", "--checkpoint", remote, *common)
    invoke("evaluate", "--checkpoint", run, *common, "--out", tmp_path / "local.parquet")
    found, expected = read_predictions(default_file(remote, shards)), read_predictions(tmp_path / "local.parquet")
    assert (found.logit_NK == expected.logit_NK).all()
    assert found.origin.checkpoint == f"{remote}/checkpoints/best.000000002"
    assert found.origin.checkpoint_sha256 == expected.origin.checkpoint_sha256
    # No folder is named after the URL.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["local.parquet", "predictions"]

    output = invoke("predict", shards, "--checkpoint", remote, "--device", "cpu", "--format", "json")
    assert output == invoke("predict", shards, "--checkpoint", run, "--device", "cpu", "--format", "json")
    invoke("export", "--checkpoint", remote, "--out", tmp_path / "exported", "--format", "safetensors")
    invoke("export", "--checkpoint", run, "--out", tmp_path / "local", "--format", "safetensors")
    one, other = (load_file(next((tmp_path / name).glob("*.safetensors"))) for name in ("exported", "local"))
    assert one and all(torch.equal(one[name], tensor) for name, tensor in other.items())


def test_a_local_place_is_still_a_path(run: Path):
    assert load_recogniser(f"file://{run}").path == load_recogniser(run).path == find_checkpoint(run)
    assert default_file(run / "checkpoints" / "best", "voc2007/test").parent == run / "predictions"
