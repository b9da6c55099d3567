"""The Hugging Face hub, as a stand-in on loopback: what is published comes back, by Python, commands and timm."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from typer.testing import CliRunner

from msldata.contract.dataset_card import dataset_card
from msldata.contract.manifest import IMAGES, Manifest, ShardInfo, read_manifest
from msldata.contract.publish import write_manifest
from msldata.errors import StorageError, UserError
from msldata.storage import LocalStorage, open_storage
from msldata.storage.hub import hub_place
from msltrain import Predictor
from msltrain.__main__ import app
from msltrain.config import ModelConfig, TrainConfig
from msltrain.evaluation.evaluate import evaluate
from msltrain.hub.push import push
from msltrain.hub.space import make_space
from msltrain.models.build import build_model
from msltrain.runs.checkpoint import load_recogniser
from msltrain.stream.config import StreamConfig
from msltrain.use.export import export_model
from tests import hubserver
from tests.answers import predict_images
from tests.integration.test_evaluate import write_checkpoint
from tests.smallshards import CLASSES, photo, write_images


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The stand-in, with a token that it takes and a cache of its own."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its storage has no stand-in: uploads go by LFS
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    with hubserver.running() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", hubserver.TOKEN)
        yield server


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Shards in two splits, runs with either kind of head, and a photograph."""
    folder = tmp_path_factory.mktemp("hub")
    write_images(folder / "small" / "train", [4, 3])
    for name, head in (("run", "csra"), ("pooled", "mean")):
        config = TrainConfig(
            stream=StreamConfig(image_size=32, batch_size=4), model=ModelConfig(backbone="test_resnet", head=head)
        )
        write_checkpoint(folder / name, CLASSES, config=config)
    (folder / "photo.jpg").write_bytes(photo(3, 90, 70))
    return folder


def msl(*arguments: object) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "300"})
    assert result.exit_code == 0, result.output
    return result.output


def test_a_run_that_is_pushed_predicts_elsewhere(hub, place):
    evaluate(place / "run", place / "small/train", out=place / "run/predictions/small.parquet")
    shown = msl("push", place / "run", "me/birds", "--private")
    assert f"{hub.url}/me/birds" in shown and "msl predict hf://me/birds PHOTOS" in shown
    files = hub.files("model", "me/birds")
    assert {"README.md", "config.json", "model.safetensors", "model.py"} < set(files)
    assert hub.repositories["model", "me/birds"].private and str(place) not in files["README.md"].decode()
    [expected] = predict_images(place / "run", [place / "photo.jpg"], top_k=None)
    found = Predictor.from_pretrained("me/birds", device="cpu").predict(place / "photo.jpg")
    assert dict(found[0].scores) == pytest.approx(dict(expected.scores), abs=1e-6)
    shown = msl("predict", place / "photo.jpg", "--checkpoint", "hf://me/birds", "--format", "json")
    assert "%|" not in shown, "a bar of the client's, in what is no terminal"
    [line] = [line for line in shown.splitlines() if line.startswith("{")]
    assert json.loads(line)["scores"] == pytest.approx(dict(expected.scores), abs=1e-5)

    card = huggingface_hub.ModelCard(files["README.md"].decode())
    assert card.data.library_name == "msltrain" and card.data.pipeline_tag == "image-classification"
    results = {one.metric_type: one for one in card.data.eval_results}
    stated = float(re.search(r"\| small/train \(7 images\) \| (\d+\.\d) ", card.text)[1])
    assert results["mAP"].dataset_type == "small" and results["mAP"].metric_value == pytest.approx(stated, abs=0.06)
    shown = msl("evaluate", "--checkpoint", "hf://me/birds", "--data", place / "small/train", "--out", place / "x.csv")
    assert "mAP" in shown


def test_the_same_again_sends_nothing_and_what_is_gone_goes(hub, place, tmp_path):
    export_model(place / "run", tmp_path / "out", formats=["safetensors"])
    (tmp_path / "out/model.pt2").write_bytes(b"as `msl export` writes it too")
    push(str(tmp_path / "out"), "lab/birds")
    assert "model.pt2" in hub.files("model", "lab/birds")
    hub.requests.clear()
    push(str(tmp_path / "out"), "lab/birds")
    assert not [path for method, path in hub.requests if method == "PUT"], "the hub has these files"
    push(str(place / "run"), "lab/birds")
    assert "model.pt2" not in hub.files("model", "lab/birds"), "an older file of another export"


def test_the_runs_own_export_is_taken_while_it_is_of_these_weights(hub, place, tmp_path):
    run, notes = write_checkpoint(tmp_path / "run", CLASSES), []
    export_model(run, run / "export", formats=["safetensors"])
    (run / "export" / "notes.txt").write_text("mine")
    push(str(run), "me/one", note=notes.append)
    assert "notes.txt" in hub.files("model", "me/one") and "from its export" in notes[0]
    write_checkpoint(run, CLASSES, seed=5)
    push(str(run), "me/two")
    assert "notes.txt" not in hub.files("model", "me/two")
    assert json.loads(hub.files("model", "me/two")["config.json"])["weights_sha256"] == load_recogniser(run).sha256


def test_timm_opens_a_pooled_head_from_the_hub(hub, place, monkeypatch):
    push(str(place / "pooled"), "me/pooled")
    card = hub.files("model", "me/pooled")["README.md"].decode()
    assert huggingface_hub.ModelCard(card).data.library_name == "timm" and "hf-hub:OWNER/NAME" in card
    copy = huggingface_hub.snapshot_download("me/pooled", endpoint=hub.url)
    network = timm.create_model(f"local-dir:{copy}", pretrained=True).eval()
    image, original = torch.rand(1, 3, 32, 32), load_recogniser(place / "pooled").recogniser
    with torch.inference_mode():
        torch.testing.assert_close(network(image), original(image), atol=1e-4, rtol=0)


def test_weights_start_another_training(hub, place):
    push(str(place / "run"), "me/start")
    for weights in ("hf://me/start", "hf://me/start/model.safetensors"):
        model = build_model(
            ModelConfig(backbone="test_resnet", weights=weights), 2, image_size=32, classes=("cat", "dog")
        )
        if weights == "hf://me/start":
            assert model.weights.head == "the head's 1 class that both know; new: dog"
        own = load_recogniser(place / "run").recogniser
        torch.testing.assert_close(model.classifier.score.weight[0], own.classifier.score.weight[2])


def test_a_dataset_comes_back_where_it_is_and_by_its_card(hub, place, tmp_path):
    shown = msl("push", place / "small", "me/small")
    assert f"{hub.url}/datasets/me/small" in shown and "msl train hf://datasets/me/small" in shown
    files = hub.files("dataset", "me/small")
    local = {file.name for file in (place / "small/train").iterdir()}
    assert {name for name in files if name.startswith("train/")} == {f"train/{name}" for name in local}
    assert "small/train" in msl("info", "hf://datasets/me/small/train")
    there, here = open_storage("hf://datasets/me/small/train"), open_storage(place / "small/train")
    assert there.list_files() == here.list_files() and read_manifest(there) == read_manifest(here)
    tar = read_manifest(here).shards[0].name
    assert there.read_ranges(tar, [0, 700], [512, 40]) == here.read_ranges(tar, [0, 700], [512, 40])
    predictions = [
        evaluate(place / "run", data, out=tmp_path / "p.parquet")
        for data in ("hf://datasets/me/small/train", place / "small/train")
    ]
    assert predictions[0].keys == predictions[1].keys
    assert (predictions[0].logit_NK == predictions[1].logit_NK).all()

    card = huggingface_hub.DatasetCard(files["README.md"].decode())
    assert card.data.task_ids == ["multi-label-image-classification"] and card.data.size_categories == ["n<1K"]
    datasets = pytest.importorskip("datasets")
    for name, data in files.items():
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / name).write_bytes(data)
    rows = datasets.load_dataset(str(tmp_path / "copy"), split="train", cache_dir=str(tmp_path / "arrow"))
    assert [row["__key__"] for row in rows] == list(predictions[0].keys)


def test_training_reads_a_dataset_of_the_hub(hub, place, tmp_path, monkeypatch):
    push(str(place / "small"), "me/small")
    monkeypatch.chdir(tmp_path)
    settings = ["model.backbone=test_resnet", "model.weights=", "stream.image_size=32", "stream.batch_size=2"]
    settings += ["optim.num_epochs=1", "data.validation_fraction=0"]
    msl(
        *("train", "--recipe", "demo-baseline", "--data", "hf://datasets/me/small/train", "--run", "run"),
        *(word for one in settings for word in ("--set", one)),
    )
    assert (tmp_path / "run/checkpoints/last/meta.json").is_file()


def test_splits_come_one_by_one_and_the_manifest_last(hub, place):
    push(str(place / "small/train"), "me/grown")
    test = place / "other" / "test"
    write_images(test, [2])
    write_manifest(LocalStorage(test), replace(read_manifest(test), split="test"))
    (test / "secret.txt").write_text("not of the contract")
    push(str(test), "me/grown")
    files = hub.files("dataset", "me/grown")
    assert {"train/dataset.json", "test/dataset.json"} < set(files) and "test/secret.txt" not in files
    configs = huggingface_hub.DatasetCard(files["README.md"].decode()).data.configs
    assert [one["split"] for one in configs[0]["data_files"]] == ["test", "train"]
    commits = list(hub.repositories["dataset", "me/grown"].commits.values())
    assert [name in one for one in commits[-2:] for name in ("test/dataset.json",)] == [False, True]
    assert all("train/dataset.json" in one for one in commits[-2:])


def test_a_split_that_is_pushed_again_is_listed_once(hub, place, tmp_path):
    split = shutil.copytree(place / "small/train", tmp_path / "train")
    push(str(split), "me/again")
    write_manifest(LocalStorage(split), replace(read_manifest(split), licence="CC0"))
    push(str(split), "me/again")
    card = huggingface_hub.DatasetCard(hub.files("dataset", "me/again")["README.md"].decode())
    assert [one["split"] for one in card.data.configs[0]["data_files"]] == ["train"]
    assert "7 photographs" in card.text and "CC0" in card.text


def test_a_copy_of_a_split_is_not_published_in_its_place(hub, place, tmp_path):
    for name in ("train", "train_old"):
        shutil.copytree(place / "small/train", tmp_path / "small" / name)
    with pytest.raises(UserError, match=r"small/train and .*small/train_old: are both the split train"):
        push(str(tmp_path / "small"), "me/copies")


def test_what_cannot_be_published_is_said_before_anything_is(hub, place, monkeypatch, tmp_path):
    with pytest.raises(UserError, match="not a repository's name; write OWNER/NAME"):
        push(str(place / "run"), "birds")
    with pytest.raises(FileNotFoundError, match="nowhere: no such run"):
        push(str(tmp_path / "nowhere"), "me/birds")
    with pytest.raises(StorageError, match=r"refuses \(403\)"):
        push(str(place / "run"), "somebody/birds")
    write_images(tmp_path / "cut", [2])
    tar = next((tmp_path / "cut").glob("*.tar"))
    tar.write_bytes(tar.read_bytes()[:-512])
    with pytest.raises(UserError, match="run `msl verify"):
        push(str(tmp_path / "cut"), "me/cut")
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(StorageError, match=r"refuses \(401\)"):
        push(str(place / "run"), "me/birds")
    monkeypatch.delenv("HF_TOKEN")
    hub.requests.clear()
    result = CliRunner().invoke(app, ["push", str(place / "run"), "me/birds"])
    assert result.exit_code == 2 and "needs a token of the hub" in result.output and "hf auth login" in result.output
    assert not hub.requests and not hub.repositories


@pytest.mark.parametrize(
    ("action", "error", "words"),
    [
        (lambda: open_storage("hf://birds"), StorageError, "not an address on the hub"),
        (lambda: open_storage("hf://datasets/me/none").list_files(), FileNotFoundError, "no such repository"),
        (lambda: open_storage("hf://datasets/me/small@v9").list_files(), FileNotFoundError, "no such revision"),
        (lambda: open_storage("hf://datasets/me/small").read("none"), FileNotFoundError, "no such object"),
        (lambda: open_storage("hf://datasets/me/small").put("a", b""), StorageError, "`msl push FOLDER OWNER/NAME`"),
        (lambda: open_storage("hf://datasets/me/small").delete("a"), StorageError, "`msl push FOLDER OWNER/NAME`"),
        (lambda: Predictor.from_pretrained("me/none"), FileNotFoundError, "no such repository on the hub"),
        (lambda: Predictor.from_pretrained("me/empty"), FileNotFoundError, "holds none of config.json"),
    ],
)
def test_refused(hub, action, error, words):
    hub.repositories["dataset", "me/small"] = hubserver.Repository()
    hub.repositories["dataset", "me/small"].commit({"train/dataset.json": b"{}"})
    hub.repositories["model", "me/empty"] = hubserver.Repository()
    hub.repositories["model", "me/empty"].commit({"README.md": b""})
    with pytest.raises(error, match=re.escape(words)):
        action()


def test_a_private_repository_is_for_those_with_a_token(hub, place, monkeypatch):
    push(str(place / "small"), "me/mine", private=True)
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises((StorageError, FileNotFoundError), match=r"HF_TOKEN"):
        open_storage("hf://datasets/me/mine/train").read("dataset.json")


def test_what_was_fetched_once_needs_no_network(hub, place, monkeypatch):
    push(str(place / "run"), "me/kept")
    first = Predictor.from_pretrained("me/kept", device="cpu")
    hub.failing["."] = 500
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert Predictor.from_pretrained("me/kept", device="cpu").sha256 == first.sha256


def test_addresses():
    whole = hub_place("hf://me/birds")
    assert (whole.kind, whole.repo, whole.revision, whole.folder) == ("model", "me/birds", "main", "")
    part = hub_place("hf://datasets/me/birds@v2.1/test/a/")
    assert (part.kind, part.repo, part.revision, part.folder) == ("dataset", "me/birds", "v2.1", "test/a")
    assert hub_place("hf://datasets/me/birds@refs/pr/1/test").revision == "refs/pr/1"


def test_no_name_is_markup_in_a_card():
    shard = ShardInfo(name="a-b-000000.tar", num_samples=12_000, num_bytes=5_000_000, sha256="0" * 64)
    about = {"kind": IMAGES, "dataset": "a", "split": "high-1", "shards": (shard,), "licence": "a|<b>"}
    classes = ("[x](http://y) | z", "---")
    histogram = {name: {"positive": 1, "ignored": 0} for name in classes}
    card = dataset_card("me/a", [Manifest(**about, classes=classes, label_histogram=histogram)])
    assert r"| \[x\](http://y) \| z | 1 |" in card and r"a\|\<b\>" in card
    assert "pypi.org" not in card  # the program is not there, and anybody could take the name
    data = huggingface_hub.DatasetCard(card).data
    assert data.size_categories == ["10K<n<100K"] and data.pretty_name == "a"
    assert data.configs[0]["data_files"] == [{"split": "high_1", "path": "high-1/*.tar"}]


def test_a_space_is_pushed_as_one(hub, place, tmp_path):
    make_space(place / "run", tmp_path / "space")
    shown = msl("push", tmp_path / "space", "me/try")
    assert f"{hub.url}/spaces/me/try" in shown and hub.repositories["space", "me/try"].sdk == "gradio"
    assert {"app.py", "model.safetensors", "requirements.txt"} < set(hub.files("space", "me/try"))
