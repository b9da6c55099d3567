"""What stands beside what on the page of the paper's tables: ours and the published, by checkpoint and condition."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from msldata.contract.manifest import IMAGES, KEEP_MASKS, Manifest, ShardInfo
from msldata.errors import UserError
from msltrain.grids.jobs import predictions_file
from msltrain.grids.needed_data import KEEP_MASKS as MASKS
from msltrain.grids.needed_data import TEST, TEST_MASKS, TRAIN, Need
from msltrain.grids.plan import BEST, LAST, DataPlaces, make_plan
from msltrain.grids.results import CurvePoint, Measures, OverSeeds, measures_of
from msltrain.grids.run import open_grid
from msltrain.measures.metrics import SUMMARY
from msltrain.measures.predictions import Origin, Predictions, write_predictions
from msltrain.pages.tables import Cell, Row, Table
from msltrain.reproduce.comparison_page import _curve, _mean_ap, _plot, _rates, _whiskers
from msltrain.reproduce.content import GridContent, RowContent, TableContent, gather_states, gather_tables
from msltrain.reproduce.paper_tables import grid_as_table
from msltrain.reproduce.published_numbers import AUTHORS, CSRA, PAPER, Published
from msltrain.reproduce.write_comparison import _caveats, _ties
from msltrain.runs.run_places import WHOLE
from tests.smallshards import write_keep_masks


def measures(mean_ap: float, others: float = 0.5) -> Measures:
    """Two seeds, a point on either side."""
    spreads = {
        name: OverSeeds({0: value - 0.01, 1: value + 0.01}) for name, value in dict.fromkeys(SUMMARY, others).items()
    }
    spreads["mAP"] = OverSeeds({0: mean_ap - 0.01, 1: mean_ap + 0.01})
    return Measures(spreads=spreads, hole_fraction=0.5, num_samples=9)


@pytest.fixture
def grid() -> GridContent:
    """A row of ours with four published sources' numbers, one of ours alone, and one that is only the paper's."""
    published = (
        Published(source=PAPER, values={"mAP": 90.0, "CR": 40.0}, errata={"mAP": "baseline"}),
        Published(source=CSRA, values={"mAP": 93.0}),
        Published(source=AUTHORS, values={"mAP": 96.5}),
    )
    by_checkpoint = {
        LAST: {WHOLE: measures(0.92), "high": measures(0.62)},
        BEST: {WHOLE: measures(0.95, 0.7), "high": measures(0.65)},
    }
    rows = (
        RowContent(name="msl", run="g/msl", measures=by_checkpoint, published=published, changes={}),
        RowContent(name="own", run="g/own", measures={LAST: {WHOLE: measures(0.5)}}, published=(), changes={}),
        RowContent(
            name="ADD-GCN",
            run="",
            measures={},
            published=(Published(source=PAPER, values={"mAP": 85.0, "CR": 75.0}),),
            changes={},
        ),
    )
    return GridContent(
        name="g",
        conditions={WHOLE: None, "high": 0.55},
        num_seeds=2,
        checkpoints=(LAST, BEST),
        rows=rows,
        curves={},
        end_points={},
        pictures="",
    )


def shown(table: Table, group: int) -> dict[str, list[str]]:
    """The cells of a group by row, each with its note."""

    def text(cell: Cell | str) -> str:
        return cell if isinstance(cell, str) else " ".join(filter(None, (cell.text, cell.note)))

    rows: list[Row] = list(table.groups[group].rows)
    return {row.name: [text(cell) for cell in row.cells] for row in rows}


def test_published_numbers_stand_beside_whole_images_with_what_the_last_checkpoint_lacks(grid: GridContent):
    table = _mean_ap(grid, ["protocol", "baseline"])
    assert list(table.columns) == [LAST, BEST, PAPER, CSRA, AUTHORS]
    assert shown(table, 0) == {
        "msl": ["92.0 ± 1.4", "95.0 ± 1.4", "90.0 +2.0", "93.0", "96.5 −4.5"],
        "own": ["50.0 ± 1.4", "–", "", "", ""],
        "ADD-GCN": ["", "", "85.0", "", ""],
    }
    marks = [cell.mark for cell in table.groups[0].rows[0].cells if isinstance(cell, Cell)]
    assert marks == [0, 0, 2, 0, 0], "the second remark is about the paper's number"


def test_behind_masks_nothing_was_published(grid: GridContent):
    table = _mean_ap(grid, ["baseline"])
    assert [group.title for group in table.groups][1] == "Behind held-out masks, high, 55\u00a0% hidden"
    assert shown(table, 1) == {"msl": ["62.0 ± 1.4", "65.0 ± 1.4", "", "", ""], "own": ["–", "–", "", "", ""]}


def test_rates_are_compared_with_the_last_checkpoint(grid: GridContent):
    table = _rates(grid, ["baseline"])
    at = list(SUMMARY).index("CR")
    rows = {name: cells[at] for name, cells in shown(table, 0).items()}
    assert rows == {LAST: "50.0", BEST: "70.0", PAPER: "40.0", f"{LAST} − {PAPER}": "+10.0", CSRA: "", AUTHORS: ""}
    assert shown(table, len(table.groups) - 1)["ADD-GCN"][at] == "75.0"


def curve(*points: tuple[str, float, float, float]) -> list[CurvePoint]:
    """(condition, share hidden, mean mAP, half of what two seeds differ by); CR is half of it."""
    return [
        CurvePoint(
            condition=condition,
            hole_fraction=hole,
            spreads={
                "mAP": OverSeeds({0: mean - apart, 1: mean + apart}),
                "CR": OverSeeds({0: mean / 2}),
                "CF1": OverSeeds({0: 0.25, 1: 0.25}),
            },
        )
        for condition, hole, mean, apart in points
    ]


def test_curves_are_drawn_with_their_spread_and_the_papers_ends(grid: GridContent):
    curves = {
        "Baseline": curve((WHOLE, 0, 0.9, 0.1), ("irregular-40-50", 0.45, 0.5, 0.02), ("irregular-high", 0.55, 0.4, 0)),
        "MSL": curve((WHOLE, 0, 0.95, 0), ("irregular-40-50", 0.45, 0.05, 0.05), ("irregular-high", 0.55, 0.6, 0)),
    }
    grid = replace(grid, curves=curves, end_points={"mAP": (67.9, 86.7)})
    plot = _plot(grid, "mAP")
    drawn = {line.name: line for line in plot.lines}
    assert list(drawn) == ["Baseline", "MSL", "Baseline, published", "MSL, published"]
    assert drawn["Baseline"].style == drawn["Baseline, published"].style != drawn["MSL"].style
    assert len(drawn["Baseline"].points) == len(drawn["MSL"].points) == 2, "high overlaps what is drawn"
    assert len(drawn["MSL, published"].points) == 1 and drawn["MSL, published"].points > drawn["MSL"].points[1:]
    points = curves["Baseline"][:2]
    low, high = _whiskers(points, [90, 50], "mAP")
    assert low == (pytest.approx(90 - 10 * 2**0.5), 100), "no measure is above all"
    assert high == (pytest.approx(50 - 2 * 2**0.5), pytest.approx(50 + 2 * 2**0.5))
    [(bottom, _)] = _whiskers(curves["MSL"][1:2], [5], "mAP")
    assert bottom == 0, "nor below nothing"
    assert _whiskers(points, [45, 25], "CR") == [], "of one seed nothing is known"
    table = _curve(grid, "mAP")
    assert list(table.columns) == ["whole (0.0)", "40-50 (45.0)", "high (55.0)"]
    assert shown(table, 0) == {
        "Baseline": ["90.0 ± 14.1", "50.0 ± 2.8", "40.0 ± 0.0"],
        "MSL": ["95.0 ± 0.0", "5.0 ± 7.1", "60.0 ± 0.0"],
    }
    assert shown(_curve(grid, "CR"), 0)["Baseline"] == ["45.0 (1 seed)", "25.0 (1 seed)", "20.0 (1 seed)"]


def test_the_state_of_a_job_is_what_its_files_say_and_then_what_went_wrong(tmp_path: Path, monkeypatch):
    plan = make_plan(["loss-terms"], seeds=(0,), places=DataPlaces(test_masks=()))
    grid = open_grid(plan, tmp_path)
    done, failed, begun, *rest = grid.jobs
    monkeypatch.setattr(type(done), "is_finished", property(lambda job: job is done))
    for job in (done, failed, begun):
        job.log.parent.mkdir(parents=True)
        job.log.touch()
    states = gather_states(grid, {done.name: "an earlier call's", failed.name: "no data", rest[0].name: "needs it"})
    assert [(state.name, state.state, state.log) for state in states] == [
        (done.name, "finished", str(done.log)),
        (failed.name, "failed: no data", str(failed.log)),
        (begun.name, "begun", str(begun.log)),
        (rest[0].name, "failed: needs it", ""),
        *((job.name, "missing", "") for job in rest[1:]),
    ]


def test_a_row_says_what_it_has_instead_of_what_the_row_beside_it_has(tmp_path: Path):
    """Nothing is measured yet, so there are no numbers."""
    plan = make_plan(["loss-terms"], seeds=(0, 1), places=DataPlaces(test_masks=()))
    grid = open_grid(plan, tmp_path)
    [table] = gather_tables(grid, [grid_as_table("loss-terms")], {"loss-terms": "pictures.html"})
    rows = {row.name: row for row in table.grids[0].rows}
    runs = plan.grids["loss-terms"]
    mine, theirs = (runs[name].config.loss.masked_weight for name in ("baseline", "msl"))
    assert mine != theirs and rows["baseline"].changes["loss.masked_weight"] == f"{mine} instead of {theirs}"
    assert rows["msl"].changes == {} and rows["msl"].measures == {}
    assert table.grids[0].pictures == "pictures.html" and table.grids[0].num_seeds == 2


def need(role: str, name: str, num_samples: int, **options: object) -> Need:
    """A dataset in one shard."""
    dataset, _, split = name.partition("/")
    shard = ShardInfo(name="a.tar", num_samples=num_samples, num_bytes=1, sha256="0" * 64)
    kind = KEEP_MASKS if dataset == "masks" else IMAGES
    classes = () if kind == KEEP_MASKS else ("cat",)
    manifest = Manifest(kind=kind, dataset=dataset, split=split, classes=classes, shards=[shard], options=options)
    return Need(place=f"shards/{name}", role=role, manifest=manifest)


@pytest.mark.parametrize(
    ("role", "name", "num_samples", "said"),
    [
        (TRAIN, "voc2007/trainval", 5011, ""),
        (TRAIN, "voc2007/trainval", 5010, "Not the whole training images: 5,010 of 5,011 of voc2007, trainval."),
        (TEST, "voc2007/test", 4953, "Not the whole test images: 4,953 of 4,952 of voc2007, test."),
        (TEST, "voc2007/trainval", 5011, ""),
        (TRAIN, "mine/train", 40, "Other training images than the paper's: mine, train, 40 images."),
        (MASKS, "masks/high", 1000, "Other training keep masks than the official code's: shards/masks/high."),
        (TEST_MASKS, "masks/high", 1000, ""),
    ],
)
def test_what_cannot_be_compared_is_said_of_each_dataset(tmp_path: Path, role, name: str, num_samples: int, said: str):
    plan = make_plan(["loss-terms"], seeds=(0, 1, 2), places=DataPlaces(test_masks=()))
    usual = _caveats(open_grid(plan, tmp_path), [], "full", True)
    found = _caveats(open_grid(plan, tmp_path), [need(role, name, num_samples)], "full", True)
    assert [one for one in found if one not in usual] == ([said] if said else [])


def test_order_that_decides_a_number_is_said(tmp_path: Path, grid: GridContent):
    """By how much equal logits move an mAP; by less than a rounding is nothing."""
    logit_NK = np.zeros((6, 1), np.float32)  # positives first: 100 as published, their share as equals
    target_NK = np.array([[1], [1], [0], [0], [0], [0]], np.uint8)
    tied = Predictions(
        keys=tuple("abcdef"),
        classes=("bird",),
        logit_NK=logit_NK,
        target_NK=target_NK,
        ignore_NK=np.zeros((6, 1), bool),
        origin=Origin(),
    )
    plan = make_plan(["loss-terms"], seeds=(0, 1), places=DataPlaces(test_masks=()))
    run = plan.runs[0]
    by_seed = {0: tied, 1: replace(tied, logit_NK=np.arange(6, 0, -1, dtype=np.float32)[:, None])}
    for seed, one in by_seed.items():
        write_predictions(one, predictions_file(run.folder(tmp_path, seed), LAST, WHOLE))
    measured = measures_of(run, tmp_path, plan.seeds)
    assert measured[LAST][WHOLE].moved_by_ties == pytest.approx(1 - 2 / 6)

    def said(moved: float) -> list[str]:
        one = replace(measures(0.9), moved_by_ties=moved)
        row = replace(grid.rows[0], run="g/r", measures={BEST: {"high": one}, LAST: {WHOLE: measures(0.8)}})
        return _ties([TableContent(table=grid_as_table("loss-terms"), grids=(replace(grid, rows=(row,)),))])

    assert said(0.0004) == said(0.0) == []
    [text] = said(0.021)
    assert "moves the mAP of g/r (best, high) by 2.1 points. `msl" in text


def test_held_out_masks_that_are_trained_behind_are_said(tmp_path: Path):
    """And one set of masks, as `msl train` takes them, is not taken for the folder of both."""
    for name, seed in (("high", 0), ("low", 1), ("new", 2)):
        hidden = np.random.default_rng(seed).random((3, 16, 16)) > 0.5
        write_keep_masks(tmp_path / name, [*hidden.astype(np.uint8)])

    def said(test_masks: str) -> list[str]:
        places = DataPlaces(keep_masks=str(tmp_path), test_masks=(str(tmp_path / test_masks),))
        plan = make_plan(["loss-terms"], seeds=(0,), places=places)
        return [one for one in _caveats(open_grid(plan, tmp_path / "grid"), [], "full", True) if "held out" in one]

    assert said("new") == []
    [same] = said("high")
    assert same.startswith(f"Not held out: the masks in {tmp_path / 'high'} were trained behind; ")
    with pytest.raises(UserError, match=f"takes the folder that holds low and high, such as {tmp_path}$"):
        make_plan(["loss-terms"], seeds=(0,), places=DataPlaces(keep_masks=str(tmp_path / "high"), test_masks=()))


def test_what_every_report_says_of_its_runs(tmp_path: Path):
    places = DataPlaces(test_masks=())
    plan = make_plan(["loss-terms"], seeds=(0, 1, 2), places=places, settings=["optim.lr=0.5"])
    grid = open_grid(plan, tmp_path)
    tuned, published = (_caveats(grid, [], "full", as_published) for as_published in (False, True))
    assert tuned[0].startswith("Our defaults, not the published values") and tuned[1:] == published
    assert "Changed in every run: optim.lr=0.5." in published
    assert published[-1] == (
        "± is the sample standard deviation over 3 seeds; it does not cover the choice of test images."
    )
    official = need(MASKS, "masks/high", 1000, order="official")
    assert _caveats(grid, [official], "full", True) == published
    one = make_plan(["loss-terms"], seeds=(4,), places=places)
    assert _caveats(open_grid(one, tmp_path), [], "full", True)[-1].startswith("One seed: nothing here says how far")
    smoke = _caveats(grid, [need(MASKS, "masks/high", 48)], "smoke", False)
    assert smoke[0].startswith("Not comparable: the networks are tiny") and not any(
        "keep masks" in one for one in smoke
    )
