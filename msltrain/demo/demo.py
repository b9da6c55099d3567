"""The demo: the public commands from raw files to a report, on a synthetic dataset, on a laptop.

Every step is a command that a user could type, run in its own process. Steps that an interrupted demo has finished are
not run again.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from msldata.contract.manifest import MANIFEST_NAME
from msltrain.demo.subprocesses import OnStep, Step, run_steps
from msltrain.pages.text import join
from msltrain.recipes.cost import FORWARD_AND_BACKWARD, num_forward_passes
from msltrain.report.open_runs import RunReport, open_run
from msltrain.report.write_report import describe_environment, write_report
from msltrain.robustness.figure import DATA_NAME
from msltrain.runs.run_places import default_file

PAGE_NAME = "report.html"
STUDY = "robustness"
"""Folder of the robustness study."""
DATASET = "reef"
_RUNS = {
    "baseline": ("Baseline", "demo-baseline"),
    "augmentation": ("Masks as augmentation", "demo-augmentation"),
    "msl": ("MSL as published", "demo"),
    "distil": ("Distilled", "demo-distil"),
}
"""Folder of each run → its name on the page, its recipe; the reference first, the one to look at last."""
_CONDITIONS = ("low", "high")

NEXT_COMMANDS = (
    "# raw data in datasets/VOCdevkit/VOC2007, datasets/COCO2014 and datasets/irregular_mask",
    "msl build-shards",
    "msl build-masks --threshold 0.5",
    "msl train --recipe msl-c-voc2007 --run runs/msl-c-voc2007",
    "msl evaluate --checkpoint runs/msl-c-voc2007 --data shards/voc2007/test",
    "msl report --run runs/msl-c-voc2007 --data shards/voc2007/test",
    "msl predict photograph.jpg --checkpoint runs/msl-c-voc2007",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Size:
    num_train: int
    num_test: int
    image_size: int
    num_masks: int
    num_heldout_masks: int
    settings: tuple[str, ...] = ()


# Large enough for the baseline to learn the task within minutes; two thirds of the generated masks are "low".
_FULL = _Size(num_train=3600, num_test=1000, image_size=128, num_masks=1500, num_heldout_masks=900)
_QUICK = _Size(
    num_train=48,
    num_test=24,
    image_size=48,
    num_masks=24,
    num_heldout_masks=24,
    settings=("stream.image_size=32", "stream.batch_size=16", "optim.num_epochs=1", "optim.warmup_epochs=0.5"),
)


def run_demo(out: str | Path, *, quick: bool = False, on_event: OnStep = lambda event: None) -> Path:
    """Make a dataset, build shards and keep masks, train four ways with equal budgets, compare them on a page.

    Args:
        out: folder for everything; an interrupted demo continues there where it stopped.
        quick: a tiny version that checks that everything works, and learns nothing.
        on_event: called when a command starts, prints a line, and ends.

    Returns:
        The page.

    Raises:
        UserError: a command failed; the message names it, its last words and its log.
    """
    out = Path(out)
    steps = _plan(out, _QUICK if quick else _FULL)
    run_steps(steps, out, what="demo", on_event=on_event)
    return _write_page(out, steps)


def serve_command(out: Path) -> str:
    """What lets one paint on the demo's photographs, under the eyes of both models."""
    models = " --checkpoint ".join(shlex.quote(str(out / "runs" / run)) for run in _RUNS)
    return f"msl serve --checkpoint {models} --examples {shlex.quote(str(out / 'shards' / DATASET / 'test'))}"


def _plan(out: Path, size: _Size) -> list[Step]:
    steps: list[Step] = []

    def add(name: str, title: str, product: Path, *arguments: object) -> None:
        trains = name.startswith("train-")
        begun = out / "runs" / name.removeprefix("train-") / "config.json" if trains else None
        words = tuple(map(str, arguments))
        steps.append(Step(name=name, title=title, arguments=words, product=product, begun=begun, beside=trains))

    voc, shards, masks, heldout = out / "raw/VOCdevkit/VOC2007", out / "shards", out / "masks", out / "heldout-masks"
    train, test = shards / DATASET / "trainval", shards / DATASET / "test"
    # fmt: off
    add(
        "synthesize", "Draw a dataset in VOC's own layout", voc,
        "synthesize", "--out", out / "raw", "--num-train", size.num_train, "--num-test", size.num_test,
        "--size", size.image_size, "--seed", 0,
    )
    add(
        "build-shards", "Build shards from the raw files", test / MANIFEST_NAME,
        "build-shards", "--dataset", "voc2007", "--source", voc, "--name", DATASET, "--out", shards,
        "--samples-per-shard", 500,
    )
    for folder, what, count, seed in (
        (masks, "keep masks for training", size.num_masks, 0),
        (heldout, "other keep masks for the test", size.num_heldout_masks, 1),
    ):
        add(
            f"build-{folder.name}", f"Generate {what}, split by hole fraction", folder / "low" / MANIFEST_NAME,
            "build-masks", "--generate", count, "--size", size.image_size, "--seed", seed, "--threshold", 0.5,
            "--per-subset", 0, "--out", folder,
        )
    settings = [word for setting in size.settings for word in ("--set", setting)]
    for run, (name, recipe) in _RUNS.items():
        keep_masks = [] if run == "baseline" else ["--keep-masks", masks / "high"]
        add(
            f"train-{run}", f"Train: {name}", out / "runs" / run / "checkpoints",
            "train", "--recipe", recipe, "--data", train, *keep_masks, "--run", out / "runs" / run, *settings,
        )
    models = [
        word for run, (name, _) in _RUNS.items() for word in ("--checkpoint", out / "runs" / run, "--name", name)
    ]
    add(
        "robustness", "Hide more and more of the test images", out / STUDY / DATA_NAME,
        "robustness", *models, "--data", test, "--keep-masks", heldout / "low", "--keep-masks", heldout / "high",
        "--recalibrate", train, "--recalibrate-masks", masks / "high", "--out", out / STUDY,
    )
    add(
        "report", "Evaluate all on whole and on hidden test images, and compare", out / PAGE_NAME,
        "report", *models, "--data", test, "--keep-masks", heldout / "low", "--keep-masks", heldout / "high",
        "--robustness", out / STUDY, "--out", out / PAGE_NAME,
    )
    # fmt: on
    return steps


def _write_page(out: Path, steps: list[Step]) -> Path:
    """The report's page again, with the demo's own title, steps and costs."""
    test = out / "shards" / DATASET / "test"
    keep_masks = {condition: (str(out / "heldout-masks" / condition),) for condition in _CONDITIONS}
    runs = [
        open_run(
            out / "runs" / run,
            name=name,
            clean=default_file(out / "runs" / run, test),
            masked={
                condition: default_file(out / "runs" / run, test, places) for condition, places in keep_masks.items()
            },
        )
        for run, (name, _) in _RUNS.items()
    ]
    return write_report(
        out / PAGE_NAME,
        title="Recognising what is partly hidden: a synthetic reef",
        runs=runs,
        shards=test,
        robustness=out / STUDY,
        commands=[step.command for step in steps],
        next_commands=(f"{serve_command(out)}  # paint on these photographs", *NEXT_COMMANDS),
        environment={**describe_environment(), **_describe_budget(runs)},
    )


def _describe_budget(runs: Sequence[RunReport]) -> Mapping[str, str]:
    """What "equal budgets" means here, with the measured cost of each run."""
    optim = runs[0].config.optim
    for run in runs:
        same = (run.config.optim, run.config.stream, run.config.run.seed)
        assert same == (optim, runs[0].config.stream, runs[0].config.run.seed), "only loss and masks may differ"
    took = {run.name: sum(row.get("seconds", 0.0) for row in run.history) for run in runs}
    masked = [run for run in runs if run.config.loss.has_masked_branch]
    passes = join([f"{run.name} {num_forward_passes(run.config) / FORWARD_AND_BACKWARD:.2g} times" for run in masked])
    return {
        "Budget": f"equal for all: the same samples in the same order, {optim.num_epochs} epochs, the same optimiser "
        f"and seed. Not equal in computing: the network runs on each image once, in {passes}.",
        "Training time": ", ".join(f"{name} {seconds:,.0f} s" for name, seconds in took.items()),
    }
