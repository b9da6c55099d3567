"""A user's mistake is said before torch is imported, which takes seconds, and on a busy machine many."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from msldata.contract.publish import write_manifest
from msldata.storage import LocalStorage
from msltrain.config import to_json
from msltrain.recipes import recipe
from msltrain.runs.find_checkpoint import META_NAME, digest_of
from tests.smallshards import CLASSES, photo, write_images, write_keep_masks

MISTAKES = {
    # What to type, and what is said.
    "train nowhere": "nowhere: no dataset with training shards",
    "train mine": "runs/mine: holds a run already; to go on with it: msl train mine --resume auto; to train anew in "
    "another folder: msl train mine --run runs/mine-2",
    "train mine --weights w.pth": "to go on with it: msl train mine --resume auto; to train anew in another folder: "
    "msl train mine --weights w.pth --run runs/mine-2",
    "train mine --epochs 99 --lr=0.5 --keep-masks m --paper-protocol --set run.keep=2 --set optim.momentum=0": "to go "
    "on with it: msl train mine --set run.keep=2 --resume auto; ",
    "train --recipe smoke --data shards/mine/train --run runs/mine --epochs 2 --lr 9": "to go on with it: msl train "
    "--recipe smoke --data shards/mine/train --run runs/mine --epochs 2 --resume auto; ",
    "train small --run runs/mine": "to go on with it: msl train mine --run runs/mine --resume auto; to train anew in ",
    "train mine --run new --epochs 3 --set optim.num_epochs=4": "optim.num_epochs is set twice: --epochs 3 and --set ",
    "train mine --run new --set loss.branches=concatenated --set loss.bn_mode=running": "loss.bn_mode: running is not ",
    "train mine --run new --set optim.twin_share=0.5 --set optim.ema_decay=0.9": "none beside optim.twin_share",
    "train mine --seeds 0,a": "--seeds is '0,a'",
    "train mine --run new --set optim.rate=1": "optim.rate",
    "train mine --run new --lr fast": "Invalid value for '--lr'",
    "train --recipe msl-c-voc": "did you mean msl-c-voc2007?",
    "train --recipe smoke --data nowhere": "nowhere: no finished dataset here",
    "train --recipe smoke --data shards/mine/train": "shards/masks/high: no keep masks here (no dataset.json); make "
    "them: `msl build-masks --out shards/masks` from NVIDIA's files, or `msl build-masks --generate 3000 --out ",
    "train --recipe msl-c-voc2007-paper --data shards/mine/train": "make them: `msl build-masks --order official --out "
    "shards/masks/official` from NVIDIA's files",
    "train --recipe smoke --data shards/mine/test --keep-masks masks --processes many": "--processes is 'many'",
    "train small": "2 photographs: too few to learn from; at least 20 are needed",
    "train enough --batch-size 99": "give a smaller --batch-size than 99",
    "evaluate half": "shards/half: the build of test did not end; type the `msl build-shards` of this dataset again",
    "evaluate notest": "shards/notest: the test split is missing; to build it: msl build-shards photos/labels.csv "
    "--name notest --split test; or measure on what training set aside: msl evaluate notest --held-out, or on others",
    "robustness notest --kind patch": "shards/notest: the test split is missing; to build it: msl build-shards photos/",
    "evaluate together": "shards/together: has no test split, for its photographs were kept together; measure on what",
    "train mine --resume auto --weights w.pth": "first weights belong to a new run, and this one began with none",
    "train --recipe smoke --data shards/mine/train --run runs/mine --resume auto --weights w.pth": "leave --weights",
    "train mine --resume auto --set model.weights=w.pth": "first weights belong to a new run. --allow-changes",
    "train mine --resume auto --epochs 99": "(--epochs was 2, is 99); leave --epochs out to go on with it",
    "train mine --resume auto --batch-size 3 --lr 0.5": "leave --lr and --batch-size out to go on with it",
    "train mine --resume auto --set optim.num_epochs=99": "(--set optim.num_epochs was 2, is 99); leave --set",
    "train mine --resume auto --keep-masks masks": "(--keep-masks: keep_mask.kind was 'generated', is 'stored'",
    "train mine --resume auto --paper-protocol": "--paper-protocol: data.validation_fraction was",
    "train other --resume auto": "runs/other is a run; `msl train mine --run runs/other --resume auto` goes on with it",
    "train othr --resume auto": "there is a run runs/other; `msl train mine --run runs/other --resume auto` goes on",
    "train mine --run new --weights w.pth": "w.pth: no such weights file",
    "train mine --run new --weights photos/on.jpg": "no such weights file; did you mean photos/one.jpg?",
    "evaluate nowhere": "nowhere: no run of this name",
    "evaluate mine --data nowhere": "nowhere: no finished dataset here",
    "evaluate mine --keep-masks nowhere": "nowhere: no finished dataset here",
    "evaluate mine --device gpu": "'gpu' is not one of 'auto', 'cpu', 'cuda'",
    "evaluate mine --out answers.txt": "answers.txt: predictions are written as .parquet, or .csv",
    "evaluate mine --thresholds-from nowhere.parquet": "nowhere.parquet",
    "evaluate --predictions nowhere.parquet": "nowhere.parquet",
    "predict nowhere photos": "nowhere: no run of this name",
    "predict photos mine --top-k 3": "photos is no run, and mine is one: the run comes first: "
    "msl predict mine photos --top-k 3",
    "predict photos/one.jpg runs/mine": "the run comes first: msl predict runs/mine photos/one.jpg",
    "push me/birds mine": "me/birds is no run, and mine is one: the run comes first: msl push mine me/birds",
    "predict elsewhere/model.onnx photos": "elsewhere/model.onnx: one file of a model; give its folder, elsewhere",
    "evaluate elsewhere/model.py": "elsewhere/model.py: one file of a model; give its folder, elsewhere",
    "serve elsewhere/config.json": "elsewhere/config.json: one file of a model; give its folder, elsewhere",
    "report runs/mine/checkpoints/best/meta.json": "one file of a model; give its folder, runs/mine/checkpoints/best",
    "export photos/graph.pt2": "photos/graph.pt2: a graph for other programs; give the run, or the folder that",
    "train mine --run new --weights elsewhere/model.onnx": "one file of a model; give its folder, elsewhere",
    "predict mine photo": "photo: no such file or folder; did you mean photos?",
    "predict mine shards/../photo": "did you mean shards/../photos?",
    "predict mine photos --threshold 30": "the threshold is 30; scores lie between 0 and 1; did you mean 0.3?",
    "predict mine photos --keep-mask nowhere.png": "nowhere.png: no such mask file",
    "predict mine photos --top-k 0": "--top-k is '0'",
    "predict mine photos --out answers.doc": "answers.doc",
    "export nowhere": "nowhere: no run of this name",
    "export mine --format tflite": "'tflite' is not one of",
    "report nowhere": "nowhere: no run of this name",
    "report mine --data nowhere": "nowhere: no finished dataset here",
    "serve nowhere": "nowhere: no run of this name",
    "serve mine --examples nowhere": "nowhere: no such file or folder",
    "serve mine --threshold 30": "did you mean 0.3?",
    "serve mine --name a --name b": "1 model and 2 names",
    "robustness nowhere": "nowhere: no run of this name",
    "robustness mine --data nowhere --kind patch": "nowhere: no finished dataset here",
    "robustness mine --keep-masks nowhere": "nowhere: no finished dataset here",
    "robustness mine --kind spots": "spots",
}
PROGRAM = """
import contextlib, io, json, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "timm"):
            raise RuntimeError(f"{name} is imported")

sys.meta_path.insert(0, Refuse())
from msltrain.__main__ import app

said = {}
for command in json.load(sys.stdin):
    with contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(io.StringIO()):
        try:
            app(command.split(), prog_name="msl")
        except SystemExit as end:
            code = end.code
        except RuntimeError as error:
            code = str(error)
    said[command] = code, errors.getvalue()
json.dump(said, sys.stdout)
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[str, tuple[int | str, str]]:
    """Exit code (or the import that was refused) and words by command, all of one process without torch."""
    folder = tmp_path_factory.mktemp("atonce")
    write_images(folder / "shards" / "mine" / "train", [3])
    write_images(folder / "shards" / "mine" / "test", [3])
    write_images(folder / "shards" / "small" / "all", [2])
    write_images(folder / "shards" / "enough" / "train", [24])
    write_images(folder / "shards" / "half" / "train", [3])
    (folder / "shards" / "half" / "test").mkdir()
    write_keep_masks(folder / "masks", [np.tri(32, dtype=np.uint8)])
    (folder / "photos").mkdir()
    (folder / "photos" / "one.jpg").write_bytes(photo(1))
    (folder / "photos" / "graph.pt2").write_bytes(b"")
    for name, split in (("notest", "train"), ("together", "all")):
        command = ["build-shards", "photos/labels.csv", "--name", name, "--split", split]
        manifest = write_images(folder / "shards" / name / split, [3])
        manifest = replace(manifest, dataset=name, split=split, provenance={"command": command})
        write_manifest(LocalStorage(folder / "shards" / name / split), manifest)
        _write_run(folder / "runs" / name, f"shards/{name}/{split}")
    for name in ("mine", "half"):
        _write_run(folder / "runs" / name, f"shards/{name}/train")
    _write_run(folder / "runs" / "other", "shards/mine/train")
    (folder / "elsewhere").mkdir()
    for name in ("config.json", "model.safetensors", "model.onnx", "model.py"):
        (folder / "elsewhere" / name).write_bytes(b"{}")
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(list(MISTAKES)),
        cwd=folder,
        env={"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "COLUMNS": "400"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert not list(folder.rglob("*.html")) and not (folder / "runs" / "mine" / "predictions").exists()
    return json.loads(ran.stdout)


def _write_run(run: Path, train: str) -> None:
    """A run as far as it can be read without torch."""
    config = json.loads(to_json(recipe("smoke"))) | {
        "data": {"train": train},
        "keep_mask": {"kind": "generated"},
    }
    meta = {
        "schema_version": 2, "step": 1, "epoch": 1, "validation_mAP": None, "classes": list(CLASSES), "torch": "2",
        "weights_sha256": "0" * 64, "train_state_sha256": "0" * 64, "config": config,
    }  # fmt: skip
    meta["meta_sha256"] = digest_of(meta)
    best = run / "checkpoints" / "best"
    best.mkdir(parents=True)
    (best / META_NAME).write_text(json.dumps(meta))
    (run / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_said_without_torch(answers, command):
    code, said = answers[command]
    assert code == 2 and MISTAKES[command] in " ".join(said.split()), f"{code}: {said}"
