"""The report on a grid, finished or not: what to say at the top, and its three files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from msldata.errors import counted
from msldata.storage import LocalStorage
from msltrain.grids.needed_data import KEEP_MASKS, TEST, TRAIN, Need, masks_met
from msltrain.grids.plan import Plan
from msltrain.grids.results import devices_of
from msltrain.grids.run import GridRun
from msltrain.measures.metrics import ROUNDING
from msltrain.recipes.backbones import resnet_cut, vit_l16
from msltrain.recipes.cost import NUM_SAMPLES
from msltrain.reproduce.comparison_page import to_html, to_markdown
from msltrain.reproduce.content import Content, TableContent, gather_states, gather_tables, to_json
from msltrain.reproduce.paper_tables import PaperTable
from msltrain.reproduce.pictures import write_pictures
from msltrain.reproduce.smoke import IMAGE_SIZE

FULL, SMOKE = "full", "smoke"
_STAND_IN = {resnet_cut().weights: "the authors' CutMix ResNet-101", vit_l16().weights: "the official ViT-L/16"}
"""Weights in the recipes → what they stand in for."""


def write_report(
    grid: GridRun,
    tables: Sequence[PaperTable],
    needs: Sequence[Need],
    *,
    name: str,
    title: str,
    scale: str,
    as_published: bool,
    command: str,
    problems: Mapping[str, str],
) -> list[Path]:
    """Write ``NAME.html``, ``NAME.md`` and ``NAME.json`` into the grid's folder, with pages of pictures beside them.
    Returns the paths of all files.

    Args:
        grid: what was run, or is to be run.
        tables: the tables to show.
        needs: the data.
        name, title: name and title of the report.
        scale: ``full`` or ``smoke``.
        as_published: whether the runs have the published values instead of our defaults.
        command: the command that continues with what is missing.
        problems: what went wrong, by name of the job.
    """
    pictures = write_pictures(grid, tables, command)
    states = gather_states(grid, problems)
    num_seeds, num_runs = len(grid.plan.seeds), len(grid.plan.runs)
    unfinished = [state for state in states if state.state != "finished"]
    shown = gather_tables(grid, tables, {name: file.name for name, file in pictures.items()})
    content = Content(
        title=title,
        subject=f"{counted(num_runs, 'different run')} × {counted(num_seeds, 'seed')}, "
        f"scale {scale}; {len(states) - len(unfinished)} of {len(states)} jobs are finished",
        headline=_headline(scale, bool(unfinished)),
        caveats=(*_ties(shown), *_caveats(grid, needs, scale, as_published)),
        tables=shown,
        states=states,
        command=command,
    )
    files = {
        f"{name}.html": to_html(content),
        f"{name}.md": to_markdown(content),
        f"{name}.json": json.dumps(to_json(content), indent=2, ensure_ascii=False) + "\n",
    }
    for file, text in files.items():
        LocalStorage(grid.out).put(file, text.encode())
    return [*(grid.out / file for file in files), *pictures.values()]


def _ties(tables: Sequence[TableContent]) -> list[str]:
    """That equal logits, whose order in the shards says nothing of a model, moved an mAP; nothing where none did."""
    moved = {
        (row.run, checkpoint, condition): measures.moved_by_ties
        for table in tables
        for grid in table.grids
        for row in grid.rows
        for checkpoint, by_condition in row.measures.items()
        for condition, measures in by_condition.items()
        if measures.moved_by_ties > ROUNDING
    }
    if not moved:
        return []
    run, checkpoint, condition = most = max(moved, key=lambda place: moved[place])
    more = f", and in {counted(len(moved) - 1, 'more place')} by less" if len(moved) > 1 else ""
    return [
        "Equal logits are ranked in the order in which the samples are stored, as published, which says nothing of a "
        f"model: that moves the mAP of {run} ({checkpoint}, {condition}) by {100 * moved[most]:.1f} points{more}. `msl "
        "evaluate` says what it is without."
    ]


def _headline(scale: str, is_unfinished: bool) -> str:
    if scale == SMOKE:
        return (
            "This page shows that every run of the paper's tables can be trained, measured and reported. Its numbers "
            "say nothing about the method, and cannot be compared with the published ones beside them."
        )
    if is_unfinished:
        return "Not finished yet: a dash is a number that is still missing."
    return "The paper's runs, trained again, beside what was published. What differs from the published runs is below."


def _caveats(grid: GridRun, needs: Sequence[Need], scale: str, as_published: bool) -> list[str]:
    plan, found = grid.plan, []
    if scale == SMOKE:
        epochs = plan.runs[0].config.optim.num_epochs
        found.append(
            f"Not comparable: the networks are tiny and start from random weights, see {IMAGE_SIZE} × {IMAGE_SIZE} "
            f"pixels and train for {counted(epochs, 'epoch')}. A tiny ResNet stands for ResNets, a tiny ViT "
            "for ViTs; rows that differ in nothing but pretrained weights are one run."
        )
    elif not as_published:
        found.append(
            "Our defaults, not the published values: batches of 32 instead of 6 with the rate scaled to them, 20 "
            "epochs with a cosine instead of 60 with steps, bf16, and 5 % of the training images held out for “best”."
        )
    found += [f"Not held out: {text}; what is measured behind them flatters those runs." for text in masks_met(plan)]
    for need in needs:
        if need.manifest is None or need.role not in (TRAIN, TEST, KEEP_MASKS):
            continue
        if need.role == KEEP_MASKS:
            if scale == FULL and need.manifest.options.get("order") != "official":
                found.append(f"Other training keep masks than the official code's: {need.place}.")
            continue
        dataset, split, number = need.manifest.dataset, need.manifest.split, need.manifest.num_samples
        expected = NUM_SAMPLES.get((dataset, split))
        if expected is None:
            found.append(f"Other {need.role} than the paper's: {dataset}, {split}, {counted(number, 'image')}.")
        elif expected != number:
            found.append(f"Not the whole {need.role}: {number:,} of {expected:,} of {dataset}, {split}.")
    if scale == FULL:
        used = sorted({run.config.model.weights for run in plan.runs} & set(_STAND_IN))
        found += [f"The weights “{tag}” of timm stand in for {_STAND_IN[tag]}." for tag in used]
    if plan.settings:
        found.append(f"Changed in every run: {', '.join(plan.settings)}.")
    if "cpu" in (devices := devices_of(plan, grid.out)):
        found.append(f"Trained on {', '.join(devices)}.")
    found.append(
        "Published numbers are those of the same row of the paper's table; a row without one is ours, or the paper "
        "prints no such measure."
    )
    num_seeds = len(plan.seeds)
    found.append(
        f"± is the sample standard deviation over {num_seeds} seeds; it does not cover the choice of test images."
        if num_seeds > 1
        else "One seed: nothing here says how far another one would lie."
    )
    return found


def describe(plan: Plan) -> str:
    """``24 runs × 3 seeds``."""
    return f"{counted(len(plan.runs), 'run')} × {counted(len(plan.seeds), 'seed')}"
