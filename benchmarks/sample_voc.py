"""Baseline and MSL with equal budgets on a small real set: VOC2007 photographs, NVIDIA masks, an ImageNet MobileNetV2.

    python benchmarks/sample_voc.py [--seeds 0] [--epochs 12] [--image-size 224] [--work DIR]

Runs the public commands only. The masks of the official "high" slice (files 11000-11999) train, those of 10000-10999,
which no training meets, hide parts of the test images. Writes a Markdown table to standard output, and then the
robustness of the first seed's models: behind all masks that no training meets and behind the box of one object, with
the baseline's BatchNorm measured anew as a control. Its figure stays in DIR/robustness.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
RUNS = {"baseline": "baseline-c-voc2007", "MSL": "msl-c-voc2007"}
TESTS = ("whole images", "high holes")


def msl(*arguments: object) -> None:
    subprocess.run([sys.executable, str(REPOSITORY / "cli.py"), *map(str, arguments)], check=True, stdout=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0", help="comma-separated; one run of each model per seed")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--work", type=Path, help="folder for shards and runs; default: a temporary one")
    options = parser.parse_args()
    sample = Path(os.environ.get("MSL_SAMPLE", REPOSITORY.parent / "shared" / "sample"))
    work = options.work or Path(tempfile.mkdtemp(prefix="msl-sample-"))
    build(sample, work)
    results: dict[tuple[str, str], list[float]] = {}
    seconds: dict[str, list[float]] = {}
    for seed in options.seeds.split(","):
        for name, recipe in RUNS.items():
            run = work / f"{name}-{seed}"
            begun = time.perf_counter()
            train(recipe, run, work, sample, seed, options)
            seconds.setdefault(name, []).append(time.perf_counter() - begun)
            for test, masks in zip(TESTS, (None, work / "masks-test" / "high"), strict=True):
                results.setdefault((name, test), []).append(evaluate(run, work, test, masks))
    print("| model | " + " | ".join(f"mAP, {test}" for test in TESTS) + " | training time, s |")
    print("| --- | --- | --- | --- |")
    for name in RUNS:
        cells = [spread(results[name, test], 1) for test in TESTS]
        print(f"| {name} | {' | '.join(cells)} | {spread(seconds[name], 0)} |")
    print(f"\n{robustness(work, options.seeds.split(',')[0])}")


def build(sample: Path, work: Path) -> None:
    """Shards of the photographs, and of two disjoint sets of high masks."""
    msl("build-shards", "--dataset", "voc2007", "--source", sample, "--out", work)
    files = sorted((sample / "irregular_mask").rglob("*.png"))
    for name, first, last in (("train", 11000, 11999), ("test", 10000, 10999), ("heldout", 0, 10999)):
        folder = work / f"raw-masks-{name}"
        folder.mkdir(exist_ok=True)
        for file in files:
            if first <= int(file.stem) <= last:
                shutil.copy(file, folder)
        # White is the hole in NVIDIA's files; a set of heavy masks alone is too even for auto to tell.
        out = work / f"masks-{name}"
        msl("build-masks", "--source", folder, "--polarity", "hole-white", "--per-subset", 0, "--out", out)


def train(recipe: str, run: Path, work: Path, sample: Path, seed: str, options: argparse.Namespace) -> None:
    settings = {
        "model.backbone": "mobilenetv2_100",
        "model.weights": sample / "weights" / "mobilenet_v2-imagenet-from-tflite-int8.pth",
        "stream.image_size": options.image_size,
        "stream.batch_size": 16,
        "stream.mean": "0.485,0.456,0.406",
        "stream.std": "0.229,0.224,0.225",
        "optim.num_epochs": options.epochs,
        "optim.warmup_epochs": 1,
        "optim.schedule": "cosine",
        "run.seed": seed,
        "run.channels_last": "true",
        "data.validation_fraction": 0,  # 430 images are few enough; the last weights are tested
    }
    masks = () if recipe.startswith("baseline") else ("--keep-masks", work / "masks-train" / "high")
    chosen = [text for name, value in settings.items() for text in ("--set", f"{name}={value}")]
    msl("train", "--recipe", recipe, "--data", work / "voc2007" / "trainval", "--run", run, *masks, *chosen)


def evaluate(run: Path, work: Path, test: str, masks: Path | None) -> float:
    """mAP in percent."""
    file = run / f"{test.replace(' ', '-')}.parquet"
    hidden = ("--keep-masks", masks) if masks else ()
    msl("evaluate", "--checkpoint", run, "--data", work / "voc2007" / "test", "--out", file, *hidden)
    from msltrain.evaluate import evaluate_predictions

    _, metrics = evaluate_predictions(file)
    print(json.dumps({"run": run.name, "test": test, **metrics.summary()}), file=sys.stderr)
    return 100 * metrics.mAP


def robustness(work: Path, seed: str) -> str:
    """The study's tables, Markdown."""
    models = [word for name in RUNS for word in ("--checkpoint", work / f"{name}-{seed}", "--name", name)]
    masks = [word for subset in ("low", "high") for word in ("--keep-masks", work / "masks-heldout" / subset)]
    shards, out = work / "voc2007", work / "robustness"
    control = ("--recalibrate", shards / "trainval", "--recalibrate-masks", work / "masks-train" / "high")
    kinds = ("--kind", "irregular", "--kind", "object")
    msl("robustness", *models, "--data", shards / "test", *masks, *kinds, *control, "--out", out)
    return (out / "robustness.md").read_text()


def spread(values: list[float], digits: int) -> str:
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


if __name__ == "__main__":
    main()
