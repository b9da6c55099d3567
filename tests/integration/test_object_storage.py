"""From a bucket to a trained model: the same run, number for number, as from a local disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from msldata.storage import open_storage
from tests.tinydata import make_voc

REPOSITORY = Path(__file__).resolve().parents[2]


def msl(*arguments: object, folder: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "cli.py"), *map(str, arguments)]
    result = subprocess.run(command, cwd=folder, env=os.environ, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr


def losses(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: row[name] for name in ("clean", "masked", "consistency")} for row in rows if "clean" in row]


def test_build_train_and_evaluate_in_a_bucket(s3, tmp_path):
    make_voc(tmp_path / "raw", 24, split="trainval")
    make_voc(tmp_path / "raw", 10, split="test")
    build = ("build-shards", "--dataset", "voc2007", "--source", tmp_path / "raw", "--samples-per-shard", 7)
    masks = ("build-masks", "--generate", 24, "--size", 64)
    for place in (tmp_path / "local", "s3://bucket/run"):
        msl(*build, "--out", place, folder=tmp_path)
        msl(*masks, "--out", f"{place}/masks", folder=tmp_path)
    local = {path.relative_to(tmp_path / "local").as_posix(): path for path in (tmp_path / "local").rglob("*.*")}
    remote = open_storage("s3://bucket/run")
    assert sorted(local) == [info.name for info in remote.list_files()]
    assert all(remote.read(name) == path.read_bytes() for name, path in local.items())

    settings = ("optim.num_epochs=2", "stream.batch_size=6", "data.validation_fraction=0", "stream.image_size=32")
    chosen = [text for setting in settings for text in ("--set", setting)]
    for place, run in ((tmp_path / "local", "from-disk"), ("s3://bucket/run", "from-bucket")):
        data = ("--data", f"{place}/voc2007/trainval", "--keep-masks", f"{place}/masks/high")
        msl("train", "--recipe", "smoke", *data, "--run", tmp_path / run, *chosen, folder=tmp_path)
        file = tmp_path / f"{run}.parquet"
        test = ("--data", f"{place}/voc2007/test", "--out", file)
        msl("evaluate", "--checkpoint", tmp_path / run, *test, folder=tmp_path)
    assert len(losses(tmp_path / "from-disk")) == 8
    assert losses(tmp_path / "from-disk") == losses(tmp_path / "from-bucket")
