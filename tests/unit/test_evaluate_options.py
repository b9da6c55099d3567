"""What becomes of the options of ``msl evaluate``, ``msl report`` and ``msl train``: files, arguments, advice."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from msltrain.__main__ import app
from msltrain.commands import evaluate as evaluate_command
from msltrain.commands import report as report_command
from msltrain.config import to_json
from msltrain.recipes.own import own
from tests.smallshards import write_images


class Asked(Exception):
    """Instead of predictions."""


@pytest.fixture
def file_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The file and the arguments with which a command line would evaluate."""

    def evaluate(checkpoint: object, shards: object, *, out: Path, **options: object) -> None:
        raise Asked(out, options)

    monkeypatch.setattr("msltrain.evaluation.evaluate.evaluate", evaluate)
    for name in ("check_models", "check_datasets"):
        monkeypatch.setattr(evaluate_command, name, lambda *_: None)
    monkeypatch.setattr("msltrain.runs.find_checkpoint.training_shards", lambda run: "shards/mine/train")
    monkeypatch.setattr(evaluate_command, "shards_to_measure", lambda data, model, *, held_out=False: data)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)

    def file_of(*words: str) -> tuple[Path, dict[str, object]]:
        run = CliRunner().invoke(app, ["evaluate", str(tmp_path / "run"), "--device", "cpu", *words])
        assert isinstance(run.exception, Asked), run.output
        file, options = run.exception.args
        return file.relative_to(tmp_path / "run" / "predictions"), options

    return file_of


def test_every_option_that_changes_the_answers_has_a_file_of_its_own(file_of):
    test, masks = ("--data", "shards/mine/test"), ("--keep-masks", "shards/masks/high")
    lines = [
        test,
        ("--data", "shards/mine/val"),
        ("--held-out",),
        ("--held-out", *masks),
        (*test, "--flip"),
        (*test, "--scales", "0.75"),
        (*test, "--scales", "0.75", "--scales", "1.25"),
        (*test, *masks),
        (*test, *masks, "--keep-masks", "shards/masks/low"),
        (*test, *masks, "--seed", "1"),
        (*test, *masks, "--seed", "2"),
        (*test, *masks, "--seed", "2", "--flip"),
    ]
    files = {line: file_of(*line)[0] for line in lines}
    for one, other in combinations(lines, 2):
        assert files[one] != files[other], (one, other)
    assert str(files[*test, *masks, "--seed", "2"]) == "mine-test-masks-high-seed-2.parquet"


def test_options_reach_the_evaluation(file_of):
    words = ("--data", "shards/mine/test", "--keep-masks", "a", "--keep-masks", "b", "--seed", "5", "--batch-size", "3")
    _, options = file_of(*words, "--flip", "--scales", "0.5", "--cache-limit", "2GB", "--on-sample-error", "skip")
    expected = {"keep_masks": ["a", "b"], "seed": 5, "batch_size": 3, "flip": True, "scales": [0.5], "held_out": False}
    expected |= {"cache_limit_gb": 2.0, "on_sample_error": "skip", "cache": "", "device": "cpu"}
    assert {name: options[name] for name in expected} == expected
    assert file_of("--held-out")[1]["held_out"] is True


@dataclass(frozen=True)
class Run:
    """What `msl report` says of a run besides its page."""

    name: str
    clean: SimpleNamespace
    masked: dict = field(default_factory=dict)
    unfinished: str = ""
    met: tuple = ()
    series: str = ""


def test_the_spread_of_a_series_is_that_of_its_own_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A single run before a series is one of the runs, and none of the series."""
    values = {"one": 0.125, "seed0": 0.5, "seed1": 0.75, "two": 0.875, "other seed0": 0.25, "other seed1": 0.375}
    places = [tmp_path / name for name in ("one", "many", "two", "others")]
    for place in places:
        place.mkdir()
    for place in (places[1], places[3]):
        (place / "seed0").mkdir()
        (place / "seed1").mkdir()

    def gather(runs, names, **_):
        origin = SimpleNamespace(dataset="", split="")
        found = [
            Run(name, SimpleNamespace(origin=origin, value=value))
            for name, value in zip(names, values.values(), strict=True)
        ]
        return SimpleNamespace(runs=found, shards=None)

    monkeypatch.setattr(report_command, "named_models", lambda runs, *_: runs)
    monkeypatch.setattr("msltrain.report.gather.gather_runs", gather)
    monkeypatch.setattr("msltrain.report.write_report.write_report", lambda page, **_: page)
    monkeypatch.setattr(
        "msltrain.measures.metrics.compute_metrics",
        lambda predictions: SimpleNamespace(summary=lambda: {"mAP": predictions.value}),
    )
    run = CliRunner().invoke(app, ["report", *map(str, places), "--out", str(tmp_path / "r.html")])
    assert run.exit_code == 0, (run.output, run.exception)
    said = " ".join(run.output.split())
    assert "many, mean ± standard deviation of 2 runs: mAP 62.50 ± 17.68" in said, said
    assert "others, mean ± standard deviation of 2 runs: mAP 31.25 ± 8.84" in said, said
    assert said.count("standard deviation") == 2


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("--lr 0.5", "leave --lr out to go on with it"),
        ("--lr 0.5 --set optim.lr_batch_size=16", "leave --lr out to go on with it"),
        ("--set optim.lr=0.5", "leave --set optim.lr out to go on with it"),
        ("--set", "leave --set optim.lr out to go on with it"),
        ("--epochs 9 --lr 0.5 --set run.log_every=1", "leave --lr and --epochs out to go on with it"),
    ],
)
def test_what_a_run_that_goes_on_must_not_have_is_named_as_it_was_typed(tmp_path, monkeypatch, words, advice):
    """A field of which another one's name is the beginning is not that one."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "shards" / "mine" / "train", [24])
    config = own()
    begun = replace(config, data=replace(config.data, train="shards/mine/train"))
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "config.json").write_text(to_json(begun))
    line = ["train", "mine", "--resume", "auto", *words.split()]
    run = CliRunner().invoke(app, [*line, " optim.lr = 0.5"] if words.endswith("--set") else line)
    said = " ".join(run.output.split())
    assert run.exit_code == 2 and "was 0.005, is 0.5" in said and f"); {advice}, or start a new run" in said, said
