"""Which runs a grid is: shared rows, stable names, places, and what the smoke scale keeps of them."""

from __future__ import annotations

import pytest

from msldata.errors import UserError
from msltrain.config import differences
from msltrain.grids.plan import DataPlaces, make_plan
from msltrain.grids.run import open_grid
from msltrain.grids.workers import gpu_slots
from msltrain.measures.metrics import SUMMARY
from msltrain.recipes import RECIPES
from msltrain.recipes.ablations import GRIDS, reference_row
from msltrain.recipes.variants import as_published
from msltrain.reproduce.paper_tables import TABLES, choose_tables, grid_as_table, with_resnet_cut
from msltrain.reproduce.published_numbers import ERRATA, FIGURE3, PUBLISHED, SOURCES
from msltrain.reproduce.smoke import tiny

NOWHERE = DataPlaces(test_masks=())


def every_grid(**options):
    return make_plan(tuple(GRIDS), seeds=(0,), places=NOWHERE, **options)


def test_rows_that_are_the_same_run_are_one_run_by_one_name():
    plan = every_grid()
    for grid in ("loss-terms", "loss-weights", "mask-subsets", "binarisation", "batchnorm", "robustness-voc2007"):
        assert plan.grids[grid]["msl"].name == "loss-terms/msl"
    assert plan.grids["robustness-voc2007"]["baseline"].name == "loss-terms/baseline"
    assert len({run.config for run in plan.runs}) == len(plan.runs) < sum(map(len, plan.grids.values()))


@pytest.mark.parametrize("name", GRIDS)
def test_names_do_not_depend_on_what_else_is_run(name: str):
    assert make_plan([name], seeds=(0,), places=NOWHERE).grids[name] == every_grid().grids[name]


def test_runs_are_the_recipes():
    plan = every_grid()
    assert plan.grids["loss-terms"]["msl"].config == RECIPES["msl-c-voc2007"]()
    assert plan.grids["robustness-coco2014"]["matched-baseline"].config == RECIPES["matched-c-coco2014"]()
    published = every_grid(form=as_published)
    assert published.grids["loss-terms"]["baseline"].config == RECIPES["baseline-c-voc2007-paper"]()
    assert published.grids["loss-terms"]["msl"].checkpoints == ("last",)  # no validation split, so no best
    assert plan.grids["robustness-coco2014"]["msl"].gpu_hours() == RECIPES["msl-c-coco2014"].gpu_hours


def test_places():
    plan = make_plan(["mask-subsets", "robustness-coco2014"], seeds=(0,), places=DataPlaces(root="elsewhere/shards"))
    both, coco = plan.grids["mask-subsets"]["both"], plan.grids["robustness-coco2014"]["msl"]
    assert both.config.data.keep_masks == ("elsewhere/shards/masks/high", "elsewhere/shards/masks/low")
    assert (both.config.data.train, both.test.shards) == (
        "elsewhere/shards/voc2007/trainval",
        "elsewhere/shards/voc2007/test",
    )
    assert (coco.config.data.train, coco.test.shards) == (
        "elsewhere/shards/coco2014/train",
        "elsewhere/shards/coco2014/val",
    )
    assert both.test.conditions == (
        ("whole", None), ("low", "elsewhere/shards/heldout/low"), ("high", "elsewhere/shards/heldout/high")
    )  # fmt: skip
    assert coco.gpu_hours() == RECIPES["msl-c-coco2014"].gpu_hours  # moved, but the same images
    own = DataPlaces(train="mine/train", test="mine/test", keep_masks="masks", test_masks=("other/",))
    row = make_plan(["loss-terms"], seeds=(0,), places=own).grids["loss-terms"]["msl"]
    assert (row.config.data.train, row.test.shards, row.config.data.keep_masks) == (
        "mine/train", "mine/test", ("masks/high",)
    )  # fmt: skip
    assert row.gpu_hours() is None and row.gpu_hours(5011) == pytest.approx(RECIPES["msl-c-voc2007"].gpu_hours)


def test_the_first_seed_of_all_comes_before_the_second_of_any(tmp_path):
    """Whoever looks at a grid that has run for a night sees all of its rows; each share of an array job has some."""
    plan = make_plan(["robustness-voc2007"], seeds=(3, 1), places=NOWHERE)
    grid = open_grid(plan, tmp_path, curves=["robustness-voc2007"])
    names = [run.name for run in plan.runs]
    assert [(job.run.name, job.seed) for job in grid.training] == [(name, seed) for seed in (3, 1) for name in names]
    assert [job.folder for job in grid.training[:2]] == [tmp_path / "runs" / name / "seed3" for name in names[:2]]
    by_name = {job.name: job.folder for job in grid.training}
    rows = plan.grids["robustness-voc2007"]
    for study, seed in zip(grid.studies, (3, 1), strict=True):
        assert study.seed == seed and study.folder == tmp_path / "curves" / "robustness-voc2007" / f"seed{seed}"
        needed = [f"{rows[row].name} seed {seed}" for row in ("baseline", "matched-baseline", "msl")]
        assert list(study.needs) == needed
        assert study.models == tuple(zip(("Baseline", "Matched baseline", "MSL"), map(by_name.get, needed)))
    assert grid.jobs == (*grid.training, *grid.studies)


def test_the_smoke_scale_keeps_what_a_grid_varies():
    full, small = every_grid(), every_grid(adapt=tiny)
    for grid, rows in small.grids.items():
        for row, run in rows.items():
            reference = reference_row(rows, row)
            wanted, kept = (
                set(differences(plan.grids[grid][reference].config, plan.grids[grid][row].config))
                for plan in (full, small)
            )
            assert kept == wanted - {"model.weights", "optim.warmup_epochs"}, (grid, row)
            assert run.config.optim.num_epochs == 1 and run.config.model.backbone.startswith("test_")


def test_published_numbers_belong_to_rows_that_are_there():
    names = {f"{grid}/{row}" for grid, rows in every_grid().grids.items() for row in rows}
    assert set(PUBLISHED) <= names and set(FIGURE3) <= set(TABLES["figure-3"].grids)
    for entries in PUBLISHED.values():
        for entry in entries:
            assert entry.source in SOURCES and set(entry.values) <= set(SUMMARY)
            assert set(entry.errata.values()) <= set(ERRATA) and set(entry.errata) <= set(entry.values)
    for table in TABLES.values():
        assert set(table.grids) <= set(GRIDS) and set(table.errata) <= set(ERRATA)
    assert "82.6" in ERRATA["table-2"] and "84.3" in ERRATA["table-2"] and "18.8" in ERRATA["figure-3"]
    assert all(number in ERRATA["gains"] for number in ("by 3.7 %, not 3.9 %", "2.1 % above", "(84.6)"))


def test_tables_are_found_by_name():
    assert [table.name for table in choose_tables(["figure-3", "table-3"])] == ["table-3", "figure-3"]
    assert choose_tables([]) == list(TABLES.values())
    assert grid_as_table("plain-head").name == "table-9"
    assert grid_as_table("mask-kinds").title.startswith("Not in the paper")


def test_without_a_gpu_there_is_one_place_to_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu_slots("auto") == [""]
    with pytest.raises(UserError, match="this host has 0"):
        gpu_slots("2")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert gpu_slots("auto") == ["0", "1", "2"] and gpu_slots("2") == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,7")
    assert gpu_slots("auto") == ["4", "6", "7"] and gpu_slots("2") == ["4", "6"]


def test_the_authors_weights_take_the_place_of_their_stand_in(tmp_path):
    file = tmp_path / "resnet_cut.pth"
    msl, vit = RECIPES["msl-c-voc2007"](), RECIPES["msl-v-voc2007"]()
    assert with_resnet_cut(msl, None) == msl
    with pytest.raises(UserError, match="there is no such file"):
        with_resnet_cut(msl, file)
    file.touch()
    assert set(differences(msl, with_resnet_cut(msl, file))) == {"model.weights"}
    assert with_resnet_cut(msl, file).model.weights == str(file)
    assert with_resnet_cut(vit, file) == vit
