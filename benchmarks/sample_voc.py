"""Baselines and MSL with equal budgets on a small real set: VOC2007 photographs, NVIDIA masks.

    python benchmarks/sample_voc.py [--seeds 0,1,2] [--epochs 12] [--jobs 2] [--work DIR]

The network is an ImageNet MobileNetV2. Runs the public commands only. Of the masks with more than half of hole, the
official "high" slice (files 11000-11999) trains; all other masks, which no training meets, hide parts of the test
images. Writes the tables of benchmarks/RESULTS.md to standard output.

Started again with the same DIR it goes on where it was stopped: finished runs, predictions and studies stay.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from msltrain.measures.bootstrap import mean_ap_difference
from msltrain.measures.metrics import Metrics, compute_metrics
from msltrain.measures.predictions import Predictions, read_predictions
from msltrain.measures.strata import StratumMetrics, compute_strata
from msltrain.robustness.curves import (
    VISIBLE_BINS,
    Curves,
    compute_curves,
    is_bin,
    pooled_false_rate,
    pooled_visibility,
)
from msltrain.robustness.run import PREDICTIONS, RECALIBRATED

REPOSITORY = Path(__file__).resolve().parents[1]
RUNS = {
    "baseline": ("baseline-c-voc2007", 1),
    "long baseline": ("baseline-c-voc2007", 2),
    "matched": ("matched-c-voc2007", 1),
    "MSL": ("msl-c-voc2007", 1),
}
"""Recipe, and epochs as a multiple. A step of MSL runs the network twice, so the long baseline computes as much as MSL
does; ``matched`` learns recognition at MSL's rate: α = (0.5, 0, 0) beside MSL's (0.3, 0.2, 0.5)."""
TESTS = ("whole", "high")
MEASURES = ("mAP", "CR", "CF1")
SETTINGS = {
    "model.backbone": "mobilenetv2_100",
    "stream.image_size": 224,
    "stream.batch_size": 16,
    # What the network was pretrained with; a hole then has the colour of the mean.
    "stream.mean": "0.485,0.456,0.406",
    "stream.std": "0.229,0.224,0.225",
    "stream.ram_cache_gb": 1,
    "optim.warmup_epochs": 1,
    # 430 images are few enough: none is set aside, and the last weights are tested.
    "data.validation_fraction": 0,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated; one run of each model per seed")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="commands at the same time, a thread each")
    parser.add_argument("--work", type=Path, help="folder for shards and runs; default: a temporary one")
    options = parser.parse_args()
    sample = Path(os.environ.get("MSL_SAMPLE", REPOSITORY.parent / "shared" / "sample"))
    work = options.work or Path(tempfile.mkdtemp(prefix="msl-sample-"))
    seeds = options.seeds.split(",")
    build(sample, work)
    weights = sample / "weights" / "mobilenet_v2-imagenet-from-tflite-int8.pth"
    # The longest first, so that no job is left with it at the end.
    trainings = [(name, seed) for name in reversed(RUNS) for seed in seeds]
    side_by_side(options.jobs, [partial(train, *one, work, weights, options.epochs) for one in trainings])
    side_by_side(options.jobs, [partial(evaluate, *one, work, test) for one in trainings for test in TESTS])
    side_by_side(options.jobs, [partial(study, seed, work) for seed in seeds])
    write_tables(work, seeds)


def side_by_side(jobs: int, tasks: Sequence[Callable[[], None]]) -> None:
    with ThreadPoolExecutor(jobs) as pool:
        for done in [pool.submit(task) for task in tasks]:
            done.result()


def msl(*arguments: object) -> None:
    """A command of its own process; as many as there are cores run beside each other, so each gets one thread."""
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    command = [sys.executable, str(REPOSITORY / "cli.py"), *map(str, arguments)]
    subprocess.run(command, check=True, stdout=sys.stderr, env=environment)


def build(sample: Path, work: Path) -> None:
    """Shards of the photographs, and of two disjoint sets of masks."""
    msl("build-shards", "--dataset", "voc2007", "--source", sample, "--out", work)
    files = sorted((sample / "irregular_mask").rglob("*.png"))
    for name, belongs in (("train", lambda number: number >= 11000), ("test", lambda number: number < 11000)):
        list_ = work / f"masks-{name}.txt"
        list_.write_text("".join(f"{file.resolve()}\n" for file in files if belongs(int(file.stem))))
        # White is the hole in NVIDIA's files; a set of heavy masks alone is too even for auto to tell.
        msl("build-masks", "--source", list_, "--polarity", "hole-white", "--out", work / f"masks-{name}")


def train(name: str, seed: str, work: Path, weights: Path, epochs: int) -> None:
    masks = ("--keep-masks", work / "masks-train" / "high") if name == "MSL" else ()
    recipe, multiple = RUNS[name]
    settings = [word for field, value in SETTINGS.items() for word in ("--set", f"{field}={value}")]
    msl(
        *("train", "--recipe", recipe, "--data", work / "voc2007" / "trainval", "--weights", weights, *masks),
        *("--run", work / "runs" / name, "--seeds", seed, "--resume", "auto"),
        *(*settings, "--set", f"optim.num_epochs={multiple * epochs}"),
    )


def evaluate(name: str, seed: str, work: Path, test: str) -> None:
    if (file := predictions_file(work, name, seed, test)).exists():
        return
    masks = ("--keep-masks", work / "masks-test" / "high") if test == "high" else ()
    run, images = work / "runs" / name / f"seed{seed}", work / "voc2007" / "test"
    msl("evaluate", "--checkpoint", run, "--data", images, "--out", file, *masks)


def predictions_file(work: Path, name: str, seed: str, test: str) -> Path:
    return work / "predictions" / f"{name}-seed{seed}-{test}.parquet"


def study(seed: str, work: Path) -> None:
    """The three models of one seed, and the baseline with BatchNorm measured anew behind training masks."""
    models = [word for name in RUNS for word in ("--checkpoint", work / "runs" / name / f"seed{seed}", "--name", name)]
    held_out = [word for subset in ("low", "high") for word in ("--keep-masks", work / "masks-test" / subset)]
    msl(
        *("robustness", *models, "--data", work / "voc2007" / "test", *held_out),
        *("--recalibrate", work / "voc2007" / "trainval"),
        *("--recalibrate-masks", work / "masks-train" / "high", "--out", study_folder(work, seed)),
    )


def study_folder(work: Path, seed: str) -> Path:
    return work / "robustness" / f"seed{seed}"


def write_tables(work: Path, seeds: Sequence[str]) -> None:
    found = {
        (name, test): [read_predictions(predictions_file(work, name, seed, test)) for seed in seeds]
        for name in RUNS
        for test in TESTS
    }
    write_metrics(found)
    studies = [read_study(study_folder(work, seed)) for seed in seeds]
    write_areas(studies)
    write_visibility(studies)
    write_strata(found)


def write_metrics(found: Mapping[tuple[str, str], Sequence[Predictions]]) -> None:
    """The measures of whole and masked images; differences of mAP, the test images resampled for both models."""
    heads = [f"{measure}, {test}" for test in TESTS for measure in MEASURES]
    write_head("model", heads)
    for name in RUNS:
        metrics = {test: [compute_metrics(one) for one in found[name, test]] for test in TESTS}
        write_row(name, [_spread(metrics[test], measure) for test in TESTS for measure in MEASURES])
    print()
    for reference in list(RUNS)[:-1]:
        for test in TESTS:
            pairs = zip(found[reference, test], found["MSL", test], strict=True)
            intervals = [mean_ap_difference(first, second) for first, second in pairs]
            difference = spread([one.value for one in intervals], sign="+")
            ranges = ", ".join(f"{100 * one.low:+.1f} to {100 * one.high:+.1f}" for one in intervals)
            line = f"mAP of MSL − {reference}, {test}: {difference} (95 % over the test images, by seed: {ranges})"
            print("-", line.replace("-", "−"))
    print()


def read_study(folder: Path) -> Curves:
    """The curves of one seed, computed again from the predictions."""

    def read(model: str) -> dict[str, Predictions]:
        return {file.stem: read_predictions(file) for file in sorted((folder / PREDICTIONS / model).iterdir())}

    return compute_curves({model: read(model) for model in ("baseline", "baseline" + RECALIBRATED, *list(RUNS)[1:])})


def write_areas(studies: Sequence[Curves]) -> None:
    """mAP by hole fraction and the areas under the curves."""
    cells = [cell for cell in studies[0].of("baseline", "irregular") if is_bin(cell)]
    conditions = [cell.condition for cell in cells]
    heads = [f"{cell.condition.removeprefix('irregular-')} ({100 * cell.hole_fraction:.0f})" for cell in cells]
    write_head("mAP by hidden share", [*heads, "area"])
    for model in studies[0].models:
        rows = [{cell.condition: cell.mAP for cell in curves.of(model, "irregular")} for curves in studies]
        areas = [area.mAP for curves in studies for area in curves.areas if area.model == model]
        write_row(model, [*(spread([row[name] for row in rows]) for name in conditions), spread(areas)])
    print()


def write_visibility(studies: Sequence[Curves]) -> None:
    """How many of the positives are predicted, by how much of the object is left, and false alarms."""
    pairs = [num_pairs for _, num_pairs in pooled_visibility(studies[0].of("baseline", "irregular"))]
    names = ["nothing", *(f"{100 * low:.0f}–{100 * high:.0f} %" for low, high in VISIBLE_BINS[1:])]
    write_head(
        "predicted by visible share",
        [*(f"{name} ({count:,})" for name, count in zip(names, pairs, strict=True)), "absent classes"],
    )
    for model in studies[0].models:
        rows = [curves.of(model, "irregular") for curves in studies]
        shares = zip(*([done / count for done, count in pooled_visibility(row)] for row in rows), strict=True)
        write_row(model, [*map(spread, shares), spread([pooled_false_rate(row) for row in rows])])
    print()


def write_strata(found: Mapping[tuple[str, str], Sequence[Predictions]]) -> None:
    """mAP and recall by the size and occlusion of a pair's largest object."""
    strata = {pair: [compute_strata(one) for one in predictions] for pair, predictions in found.items()}
    for measure in ("mAP", "CR"):
        write_head(f"{measure} by largest object", ["pairs", "classes", *(f"{n}, {t}" for t in TESTS for n in RUNS)])
        for number, stratum in enumerate(strata["baseline", "whole"][0]):
            if stratum.num_positive:
                cells = [[row[number] for row in strata[name, test]] for test in TESTS for name in RUNS]
                values = [_spread(cell, measure) for cell in cells]
                write_row(stratum.name, [str(stratum.num_positive), str(stratum.num_classes), *values])
        print()


def _spread(found: Sequence[Metrics | StratumMetrics], measure: str) -> str:
    return spread([getattr(one, measure) for one in found])


def spread(values: Sequence[float], sign: str = "") -> str:
    """Mean ± sample standard deviation, in percent."""
    mean = f"{100 * statistics.mean(values):{sign}.1f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * statistics.stdev(values):.1f}"


def write_head(first: str, names: Sequence[str]) -> None:
    print(f"| {first} | {' | '.join(names)} |\n| --- |{' ---: |' * len(names)}")


def write_row(first: str, cells: Sequence[str]) -> None:
    print(f"| {first} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
