"""What proving costs: the measures of a set as large as COCO's, and how far exports are from the original.

    python benchmarks/proof.py [--images 40137] [--classes 80] [--skip-export]

Predictions are drawn at random with three positives in a hundred pairs, as in COCO-2014. Seconds are CPU time, the
median of five, in a process that computes on one core. Exports are of networks with random weights and a CSRA head of
six heads at 224 pixels, compared on nine drawn patterns, alone and as one batch.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from msltrain.config import ModelConfig, TrainConfig
from msltrain.measures.metrics import compute_metrics
from msltrain.measures.predictions import LargestObjects, Predictions, read_predictions, write_predictions
from msltrain.measures.summary import measure
from msltrain.models.build import build_model
from msltrain.runs.checkpoint import Checkpoint, save_checkpoint
from msltrain.stream.config import StreamConfig
from msltrain.use.export import export_model
from msltrain.use.export_formats import FILES, FORMATS

BACKBONES = ("resnet50", "vit_small_patch16_224", "mobilenetv2_100")
REPEATS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=40_137)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--skip-export", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    measure_all(draw(options.images, options.classes))
    if not options.skip_export:
        export_all()


def draw(num_images: int, num_classes: int) -> Predictions:
    rng = np.random.default_rng(0)
    shape = (num_images, num_classes)
    target_NK = (rng.random(shape) < 0.03).astype(np.uint8)
    unknown_NK = np.where(target_NK > 0, 0, -1).astype(np.int8)
    return Predictions(
        keys=tuple(f"{n:012d}" for n in range(num_images)),
        logit_NK=rng.standard_normal(shape, dtype=np.float32),
        target_NK=target_NK,
        ignore_NK=np.zeros(shape, bool),
        classes=tuple(f"class {k}" for k in range(num_classes)),
        objects=LargestObjects.of_arrays(
            area_NK=(target_NK * rng.lognormal(8, 2, shape)).astype(np.float32),
            relative_area_NK=(target_NK * rng.random(shape)).astype(np.float32),
            truncated_NK=unknown_NK,
            occluded_NK=unknown_NK,
            crowd_NK=np.where(rng.random(shape) < 0.1, np.abs(unknown_NK), unknown_NK).astype(np.int8),
        ),
    )


def measure_all(predictions: Predictions) -> None:
    num_images, num_classes = predictions.logit_NK.shape
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "predictions.parquet"
        rows: dict[str, Callable[[], object]] = {
            "write the predictions file": lambda: write_predictions(predictions, file),
            "read it": lambda: read_predictions(file),
            "all measures and the table by class": lambda: compute_metrics(predictions),
            "the same, and every stratum": lambda: measure(predictions),
        }
        print(f"| {num_images:,} images × {num_classes} classes | CPU seconds |\n| --- | ---: |")
        for name, action in rows.items():
            print(f"| {name} | {statistics.median(cpu_seconds(action) for _ in range(REPEATS)):.2f} |", flush=True)


def cpu_seconds(action: Callable[[], object]) -> float:
    began = time.process_time()
    action()
    return time.process_time() - began


def export_all() -> None:
    print(
        f"\n| largest difference of a logit | {' | '.join(FORMATS)} |\n| --- | {' | '.join('---:' for _ in FORMATS)} |"
    )
    for backbone in BACKBONES:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Path(folder) / "checkpoint"
            save(checkpoint, backbone)
            done = {one.file: one.max_difference for one in export_model(checkpoint, Path(folder) / "out")}
        print(f"| {backbone} | {' | '.join(f'{done[FILES[name]]:.1e}' for name in FORMATS)} |", flush=True)


def save(folder: Path, backbone: str) -> None:
    torch.manual_seed(0)
    config = TrainConfig(
        stream=StreamConfig(image_size=224), model=ModelConfig(backbone=backbone, num_heads=6, attention_weight=0.4)
    )
    checkpoint = Checkpoint(
        config=config,
        classes=tuple(f"class {k}" for k in range(80)),
        step=0,
        epoch=0,
        validation_mAP=None,
        weights=build_model(config.model, 80, image_size=224).state_dict(),
        train_state={},
    )
    save_checkpoint(checkpoint, folder)


if __name__ == "__main__":
    main()
