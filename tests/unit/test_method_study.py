"""The study's queue: what is there is not computed again, the best go on, and a job has a configuration."""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path

import pytest

from benchmarks.methods import __main__ as study
from benchmarks.methods import tables
from benchmarks.methods.jobs import RIVALS, SETTINGS, STAGES, Job, Places, _keep_one_class
from msldata.sources.kinds import open_source
from tests.tinydata import make_voc


def row(setting: str, whole: float, high: float) -> dict:
    job = Job("small", setting, 0)
    return {"job": job.name, "digest": job.digest, "stage": "small", "setting": setting, "seed": 0} | {
        "masks": list(SETTINGS[setting].masks),
        "whole": {"mAP": whole},
        "high": {"mAP": high},
    }


ROWS = [
    row("baseline", 0.65, 0.2),
    row("msl", 0.60, 0.40),
    row("masksub", 0.62, 0.41),
    row("hard", 0.63, 0.30),
    row("teacher", 0.60, 0.5),
]


def test_the_best_settings_hold_what_the_published_loss_gains_behind_holes():
    assert study.best_settings(ROWS, "small") == ["masksub", "teacher", "hard"]
    jobs = study.jobs_of("best 2 small in full224 1 2", ROWS)
    assert [job.name for job in jobs] == [
        f"full224/{setting}/{seed}" for setting in ("masksub", "teacher") for seed in (1, 2)
    ]
    assert study.jobs_of("best 2 small in full224 0", ROWS[:1]) == [], "not before the published loss is measured"


def test_every_setting_of_every_stage_is_a_configuration(tmp_path: Path):
    digests = set()
    for stage in STAGES:
        for setting in SETTINGS:
            job = Job(stage, setting, 0)
            digests.add(job.digest)
            if job.parts:
                assert all(not part.parts for part, _ in job.parts) and sum(share for _, share in job.parts) == 1
                continue
            config = job.config(Places(work=tmp_path))
            assert bool(config.data.keep_masks) == config.loss.needs_keep_masks
    assert len(digests) == len(STAGES) * len(SETTINGS)
    assert Job("small", "msl", 0).digest != Job("small", "msl", 1).digest
    for queue in ("queue.txt", "rivals.txt"):
        for line in (study.HERE / queue).read_text().splitlines():
            study.jobs_of(line, ROWS)


def test_rivals_compute_as_much_as_two_branches():
    for name in (*(f"{name}-2x" for name in RIVALS), "splicemix-2x"):
        job = Job("full224", name, 0)
        assert SETTINGS[name].passes * job.epochs == pytest.approx(2 * STAGES["full224"].epochs, rel=0.02)


def test_one_label_an_image_is_left_of_those_it_shows(tmp_path: Path):
    voc = make_voc(tmp_path / "voc", 12, "train")
    ids = (voc / "ImageSets/Main/train.txt").read_text().split()
    _keep_one_class(voc, tmp_path / "single/VOCdevkit/VOC2007", ids)
    whole, single = (
        {record.key: record for record in open_source("voc2007", root, "train").records()}
        for root in (voc, tmp_path / "single/VOCdevkit/VOC2007")
    )
    assert list(whole) == list(single)
    assert sum(len(record.positives) for record in whole.values()) > 12
    for key, record in single.items():
        assert len(record.positives) == 1 and set(record.positives) <= set(whole[key].positives)


def test_finished_jobs_are_not_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows, queue = tmp_path / "rows.jsonl", tmp_path / "queue.txt"
    stale = {**row("hard", 0.5, 0.3), "digest": "of another configuration"}
    rows.write_text("".join(f"{json.dumps(one)}\n" for one in (*ROWS[:2], stale)))
    queue.write_text("# controls\nsmall baseline 0\nsmall msl 0\nsmall hard 0\nsmall teacher 0\nsmall masksub 0\n")
    started = []

    def one(command: list[str], env: dict[str, str]):
        setting = command[5]
        started.append(setting)
        if setting == "teacher":
            return subprocess.CompletedProcess(command, 1)
        with open(rows, "a") as file:
            file.write(json.dumps(row(setting, 0.6, 0.4)) + "\n")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(study.subprocess, "run", one)
    monkeypatch.setattr(Places, "build", lambda self: None)
    study.run(argparse.Namespace(work=tmp_path, rows=rows, queue=queue), Places(work=tmp_path))
    assert started == ["hard", "teacher", "masksub"], "a job that fails is left, and the others go on"


def test_an_unknown_setting_names_those_there_are():
    with pytest.raises(SystemExit, match="settings are baseline"):
        study.jobs_of("small unknown 0", [])


def test_the_tables_go_between_the_marks_of_the_page(tmp_path: Path):
    def measured(setting: str, seed: int, whole: float, high: float) -> dict:
        view = {
            "mAP": whole,
            "CP": 0.5,
            "CR": 0.4,
            "CF1": 0.45,
            "OF1": 0.5,
            "strata": {"covered over 50 %": [0.2, 0.1]},
        }
        job = Job("small160", setting, seed)
        return {"job": job.name, "stage": "small160", "setting": setting, "seed": seed, "passes": 20} | {
            "whole": view,
            "high": {**view, "mAP": high, "strata": {}},
        }

    rows = [measured("baseline", 0, 0.60, 0.20), measured("baseline-2x", 0, 0.63, 0.19), measured("msl", 0, 0.55, 0.40)]
    rows += [measured("msl", 1, 0.57, 0.42), {**measured("msl", 0, 0.1, 0.1), "stage": "small"}]
    page = tmp_path / "methods.md"
    page.write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n")
    tables.write_tables(rows, Places(work=tmp_path), page)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    assert [line.split("|")[1].strip() for line in lines] == ["`baseline-2x`", "`baseline`", "`msl`"] * 2
    assert "| `msl` | 2 | 20 | 56.0 ± 1.4 | 41.0 ± 1.4 |" in lines[2]
    assert "| `msl` | 20.0 ± 0.0 / 10.0 ± 0.0 |" in lines[5]
    assert tables.best_baseline({row["setting"]: [row] for row in rows[:2]}) == "baseline-2x"
    drawing = (tmp_path / "methods-small160.svg").read_text()
    assert all(name in drawing for name in ("baseline-2x", "msl"))
    tables.write_tables(rows, Places(work=tmp_path), page)
    assert page.read_text() == text, "written twice, it is the same"
    page.write_text("no marks")
    with pytest.raises(SystemExit, match="marks"):
        tables.write_tables(rows, Places(work=tmp_path), page)
