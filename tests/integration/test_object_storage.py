"""From a bucket to a trained model: the same run, number for number, as from a local disk."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from msldata.storage import open_storage
from msltrain.__main__ import app
from tests.tinydata import make_voc


def msl(*arguments: object) -> None:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"


def losses(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: row[name] for name in ("clean", "masked", "consistency")} for row in rows if "clean" in row]


def test_build_train_and_evaluate_in_a_bucket(s3, tmp_path):
    make_voc(tmp_path / "raw", 24, split="trainval")
    make_voc(tmp_path / "raw", 10, split="test")
    build = ("build-shards", "--dataset", "voc2007", "--source", tmp_path / "raw", "--samples-per-shard", 7)
    masks = ("build-masks", "--generate", 24, "--size", 64)
    for place in (tmp_path / "local", "s3://bucket/run"):
        msl(*build, "--out", place)
        msl(*masks, "--out", f"{place}/masks")
    local = {path.relative_to(tmp_path / "local").as_posix(): path for path in (tmp_path / "local").rglob("*.*")}
    remote = open_storage("s3://bucket/run")
    assert sorted(local) == [info.name for info in remote.list_files()]
    assert all(remote.read(name) == path.read_bytes() for name, path in local.items())

    settings = ("optim.num_epochs=2", "stream.batch_size=6", "data.validation_fraction=0", "stream.image_size=32")
    chosen = [text for setting in settings for text in ("--set", setting)]
    for place, run in ((tmp_path / "local", "from-disk"), ("s3://bucket/run", "from-bucket")):
        data = ("--data", f"{place}/voc2007/trainval", "--keep-masks", f"{place}/masks/high")
        msl("train", "--recipe", "smoke", *data, "--run", tmp_path / run, *chosen)
        file = tmp_path / f"{run}.parquet"
        test = ("--data", f"{place}/voc2007/test", "--out", file)
        msl("evaluate", "--checkpoint", tmp_path / run, *test)
    assert len(losses(tmp_path / "from-disk")) == 8
    assert losses(tmp_path / "from-disk") == losses(tmp_path / "from-bucket")
