"""``reproduce --scale smoke`` from nothing to its report, killed on the way; the report against the predictions."""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from msltrain.__main__ import app
from msltrain.grids.needed_data import find_needs
from msltrain.grids.plan import make_plan
from msltrain.grids.run import open_grid
from msltrain.recipes.ablations import GRIDS
from msltrain.reproduce.paper_tables import TABLES
from msltrain.reproduce.smoke import smoke_places, tiny
from msltrain.reproduce.write_comparison import write_report
from tests import readyprogram
from tests.tinydata import contents

pytestmark = pytest.mark.usefixtures("ready_python")

NAMES = ("table-1", "table-3", "table-6", "figure-3")
"""Some of each kind: with other methods' rows, with rows of ours, on two datasets, with curves."""
CHOSEN = [TABLES[name] for name in NAMES]
WORDS = ["reproduce", *NAMES, "--scale", "smoke", "--out"]
NUM_RUNS, NUM_JOBS = 13, 30


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes], str]:
    """The folder of a finished grid that was killed once; what was finished then; what the second call printed."""
    out = tmp_path_factory.mktemp("reproduce") / "smoke"
    command = [sys.executable, "-u", "-m", "msltrain", *WORDS, str(out)]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert first.stdout is not None
    for line in first.stdout:
        if line.startswith(f"6/{NUM_JOBS} "):
            break
    os.kill(readyprogram.pid_of(first.pid), signal.SIGKILL)
    first.wait()
    done = contents(out / "runs/loss-terms")
    second = CliRunner().invoke(app, [*WORDS, str(out)], env={"COLUMNS": "80"})
    assert second.exit_code == 0, second.output
    return out, done, second.stdout


def mean_ap(file: Path) -> float:
    """As the README shows it: from the file alone."""
    table = pq.read_table(file).to_pydict()
    logit, target, ignore = (np.array(table[name]) for name in ("logit", "target", "ignore"))
    values = []
    for k in range(logit.shape[1]):
        kept = ~ignore[:, k]
        rank = np.flatnonzero(target[kept, k][np.argsort(-logit[kept, k], kind="stable")]) + 1
        values += [np.mean(np.arange(1, len(rank) + 1) / rank)] if len(rank) else []
    return float(np.mean(values))


def test_nothing_that_was_finished_is_done_again(smoke):
    out, done, output = smoke
    assert len(done) > 50
    now = contents(out / "runs/loss-terms")
    finished = {run: f"{run}/seed0" for run in ("baseline", "matched-baseline", "masked-branch", "consistency", "msl")}
    for folder in finished.values():
        files = {name: data for name, data in done.items() if name.startswith(folder)}
        assert len(files) > 15
        assert {name: now[name] for name in files} == files
        assert len(json.loads(now[f"{folder}/environment.json"])) == 1
    assert f" of {NUM_JOBS} jobs were finished before" in output
    assert "loss-terms/msl seed 0" not in output
    assert output.count("done before") == 4  # the data was there, too


def test_every_table_holds_every_row_of_its_grids(smoke):
    out, _, _ = smoke
    content = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert [table["table"] for table in content["tables"]] == list(NAMES)
    runs = set()
    for table in content["tables"]:
        for grid in table["grids"]:
            trained = [row for row in grid["rows"] if row["run"]]
            assert [row["row"] for row in trained] == list(GRIDS[grid["grid"]](lambda config: config))
            for row in trained:
                runs.add(row["run"])
                for checkpoint in ("last", "best"):
                    assert list(row["measured"][checkpoint]) == ["whole", "low", "high"]
                    assert set(row["measured"][checkpoint]["whole"]["mAP"]["by_seed"]) == {"0", "1"}
    assert len(runs) == len(list((out / "runs").glob("*/*"))) == NUM_RUNS  # rows that are one run are trained once
    assert all(job["state"] == "finished" for job in content["jobs"]) and len(content["jobs"]) == NUM_JOBS


def test_numbers_are_those_of_the_predictions(smoke):
    out, _, _ = smoke
    content = json.loads((out / "report.json").read_text(encoding="utf-8"))
    page, markdown = (out / "report.html").read_text(encoding="utf-8"), (out / "report.md").read_text(encoding="utf-8")
    for table in content["tables"][:3]:
        for row in table["grids"][0]["rows"]:
            for checkpoint in ("last", "best"):
                for condition, measured in row["measured"].get(checkpoint, {}).items():
                    files = [
                        out / "runs" / row["run"] / f"seed{seed}" / "predictions" / f"{checkpoint}-{condition}.parquet"
                        for seed in (0, 1)
                    ]
                    values = [mean_ap(file) for file in files]
                    mean, std = statistics.fmean(values), statistics.stdev(values)
                    assert measured["mAP"]["mean"] == pytest.approx(mean, abs=1e-9)
                    assert measured["mAP"]["std"] == pytest.approx(std, abs=1e-9)
                    assert f"<td>{100 * mean:.1f} <small>± {100 * std:.1f}</small></td>" in page
                    assert f"| {100 * mean:.1f} ± {100 * std:.1f} |" in markdown


def test_curves_are_those_of_the_predictions(smoke):
    out, _, _ = smoke
    content = json.loads((out / "report.json").read_text(encoding="utf-8"))
    for grid in content["tables"][-1]["grids"]:
        assert list(grid["curves"]) == ["Baseline", "Baseline recalibrated", "Matched baseline", "MSL"]
        for model in ("Baseline recalibrated", "MSL"):
            for point in grid["curves"][model]:
                files = [
                    out
                    / "curves"
                    / grid["grid"]
                    / f"seed{seed}"
                    / "predictions"
                    / model
                    / f"{point['condition']}.parquet"
                    for seed in (0, 1)
                ]
                assert point["mAP"]["mean"] == pytest.approx(statistics.fmean(map(mean_ap, files)), abs=1e-9)
    voc, coco = (grid["published_end_points"] for grid in content["tables"][-1]["grids"])
    assert voc["mAP"] == [67.9, 86.7] and coco["CF1"] == [48.4, 68.8]


def test_the_papers_figures_of_photographs_are_pages_beside(smoke):
    out, _, output = smoke
    markdown = (out / "report.md").read_text(encoding="utf-8")
    for grid in ("robustness-voc2007", "robustness-coco2014"):
        page = (out / f"pictures-{grid}.html").read_text(encoding="utf-8")
        assert f"pictures-{grid}.html" in markdown and f"pictures-{grid}.html" in output.replace("\n", "")
        assert "Baseline beside MSL" in page
        examples = json.loads((out / f"pictures-{grid}.json").read_text(encoding="utf-8"))["examples"]
        assert 0 < page.count('class="example"') == len(examples) <= 24
        for one in examples:
            if one["condition"] == "high":
                better = one["models"][1 if one["group"] == "win" else 0]
                assert better["right_minus_wrong"] >= 0


def test_published_numbers_stand_beside_with_their_errata(smoke):
    out, _, _ = smoke
    content = json.loads((out / "report.json").read_text(encoding="utf-8"))
    tables = {table["table"]: table for table in content["tables"]}
    rows = {row["row"]: row["published"] for row in tables["table-3"]["grids"][0]["rows"]}
    assert {source: entry["values"]["mAP"] for source, entry in rows["baseline"].items()} == {
        "paper": 93.7, "CSRA": 95.2, "mmpretrain": 95.5
    }  # fmt: skip
    assert rows["matched-baseline"] == {}
    assert rows["msl"]["paper"]["values"] == {"mAP": 96.1, "CR": 92.4, "CF1": 91.6}
    others = {row["row"]: row for row in tables["table-1"]["grids"][0]["rows"] if not row["run"]}
    assert len(others) == 15 and others["ASL"]["published"]["paper"]["values"] == {"mAP": 94.6}
    low = {row["row"]: row["published"] for row in tables["table-6"]["grids"][1]["rows"]}["low"]
    assert low["paper"]["values"] == {"mAP": 85.1}
    coco = {row["row"]: row["published"] for row in tables["figure-3"]["grids"][1]["rows"]}
    assert coco["msl"]["paper"]["values"]["CF1"] == 80.4
    assert "82.6" in coco["msl"]["paper"]["errata"]["CF1"] and "84.3" in coco["msl"]["paper"]["errata"]["OF1"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<sup>" in page and "cannot be compared with the published ones" in page
    assert '<th scope="row">SSGRL (pre)</th><td></td><td></td><td class="published">95.0</td>' in page


def test_each_row_shows_the_papers_number_ours_and_the_difference(smoke):
    out, _, _ = smoke
    content = json.loads((out / "report.json").read_text(encoding="utf-8"))
    page, markdown = (out / "report.html").read_text(encoding="utf-8"), (out / "report.md").read_text(encoding="utf-8")
    rows = {row["row"]: row for row in content["tables"][1]["grids"][0]["rows"]}
    for name in ("masked-branch", "consistency", "msl"):
        ours, paper = rows[name]["measured"]["last"]["whole"], rows[name]["published"]["paper"]["values"]
        differences = {rate: f"{100 * ours[rate]['mean'] - paper[rate]:+.1f}".replace("-", "−") for rate in paper}
        assert f'<td class="published">{paper["mAP"]} <small>{differences["mAP"]}</small>' in page
        assert f"| {paper['mAP']} {differences['mAP']} |" in markdown
        assert all(f"<td>{difference}</td>" in page for difference in differences.values())
        assert all(f"| {difference} |" in markdown for difference in differences.values())


@pytest.mark.slow
def test_all_grids_run_at_the_smoke_scale(tmp_path):
    """``pytest -m slow tests/integration/test_reproduce.py``: three minutes on two cores."""
    command = [sys.executable, "-m", "msltrain", *(word for word in WORDS if word not in NAMES)]
    found = subprocess.run([*command, str(tmp_path / "all")], capture_output=True, text=True, timeout=1200)
    assert found.returncode == 0, found.stderr + found.stdout
    content = json.loads((tmp_path / "all" / "report.json").read_text(encoding="utf-8"))
    assert [table["table"] for table in content["tables"]] == list(TABLES)
    assert all(job["state"] == "finished" for job in content["jobs"])


def test_an_unfinished_grid_has_a_page_too(smoke, tmp_path):
    out, _, _ = smoke
    part = tmp_path / "part"
    shutil.copytree(out, part)
    shutil.rmtree(part / "runs/loss-terms/msl/seed1/predictions")
    shutil.rmtree(part / "runs/mask-subsets/low")
    (part / "curves/robustness-coco2014/seed0/curves.json").unlink()
    plan = make_plan(
        [grid for table in CHOSEN for grid in table.grids],
        seeds=(0, 1),
        places=smoke_places(part),
        adapt=tiny,
    )
    grid = open_grid(plan, part, curves=TABLES["figure-3"].grids)
    html, markdown, data, *pictures = write_report(
        grid,
        CHOSEN,
        find_needs(plan),
        name="report",
        title="Unfinished",
        scale="smoke",
        as_published=False,
        command="msl reproduce --scale smoke",
        problems={"mask-subsets/low seed 0": "no memory"},
    )
    assert [file.name for file in pictures] == ["pictures-robustness-voc2007.html", "pictures-robustness-coco2014.html"]
    page = html.read_text(encoding="utf-8")
    assert f"4 of {NUM_JOBS} jobs are not finished" in page and "<pre>msl reproduce --scale smoke</pre>" in page
    assert "mask-subsets/low seed 0</b> failed: no memory" in page
    assert '<th scope="row">low</th><td>–</td><td>–</td>' in page
    assert page.count("<small>(1 seed)</small>") >= 6  # msl, three conditions by two checkpoints
    assert "| low | – | – |" in markdown.read_text(encoding="utf-8")
    rows = {row["row"]: row for row in json.loads(data.read_text())["tables"][1]["grids"][0]["rows"]}
    assert set(rows["msl"]["measured"]["last"]["whole"]["mAP"]["by_seed"]) == {"0"}
    assert rows["msl"]["measured"]["last"]["whole"]["mAP"]["std"] is None


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_is_readable_everywhere_and_needs_no_network(smoke, chromium, width, dark):
    out, _, _ = smoke
    chromium.look(width, dark=dark)
    chromium.open((out / "report.html").as_uri())
    assert chromium.overflow() == []
    assert chromium.run("return [...document.querySelectorAll('.scroll')].every(e => e.scrollWidth <= e.clientWidth)")
    light = "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).reduce((a, b) => +a + +b, 0)"
    assert (chromium.run(light) < 150) if dark else (chromium.run(light) > 600)
    alts = chromium.run("return [...document.querySelectorAll('svg')].map((plot) => plot.getAttribute('aria-label'))")
    assert len(alts) == 6 and all("published" in alt for alt in alts)
    links = chromium.run("return [...document.querySelectorAll('a')].every((a) => document.querySelector(a.hash))")
    assert links
    if folder := os.environ.get("MSL_SCREENSHOTS"):
        chromium.screenshot(Path(folder) / f"reproduce-{width}-{'dark' if dark else 'light'}.png")
    console, requests = chromium.take_logs()
    assert console == [] and all(address.startswith(("file:", "data:")) for address in requests)
