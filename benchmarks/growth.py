"""How cost grows with the number of samples, shards, classes and ranks, and with the size of the images.

    python benchmarks/growth.py [--only classes] [--stages evaluate,report] [--folder DIR] [--quick]

Photographs are drawn, small and few, with three objects each; classes are as uneven as real ones (the square of a
uniform number). One thing grows at a time, the others stay at the middle value. Every figure is of a process of its
own: seconds of its processor time, imports left out, and the most memory it held beyond what the imports took. A slope
is the exponent of the growth between the two largest values: 1 is linear, 0 does not grow. ``--folder`` keeps what was
drawn and built for the next time.

build      photographs and a COCO annotation file to shards, one worker
open       the manifest, what is held out of training, and the order of an epoch
stream     one rank's epoch: read, decode, resize
evaluate   predictions of a small network, their file and every measure; also as a multiple of the network alone, fed
           from memory, and of the memory of the logits
report     the page and its files, from predictions of two models under two conditions; also the size of the page

``shards`` beyond some thousand are those of a manifest only (``manifest``: written, read, held in memory).
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

OBJECTS = 3
"""Per photograph."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One measurement."""

    samples: int = 1000
    shards: int = 4
    classes: int = 1000
    ranks: int = 1
    backbone: str = "resnet18"
    size: int = 64
    """Side of a photograph in pixels; a network sees half of it."""

    @classmethod
    def of(cls, backbone: str, axis: str, value: int) -> Case:
        """The middle values, but for one."""
        return cls(**{**asdict(cls(backbone=backbone)), axis: value})

    @property
    def name(self) -> str:
        return f"{self.samples}-{self.shards}-{self.classes}-{self.size}"


AXES: dict[str, tuple[int, ...]] = {
    "samples": (500, 1000, 2000),
    "shards": (4, 20, 100),
    "classes": (20, 1000, 9000),
    "ranks": (1, 2, 4),
    "size": (64, 128, 256),
}
STAGES = {
    "build": ("samples", "shards", "classes", "size"),
    "open": ("samples", "shards", "classes"),
    "stream": ("samples", "shards", "classes", "ranks", "size"),
    "evaluate": ("samples", "shards", "classes", "size"),
    "report": ("samples", "classes"),
}
MANIFEST_SHARDS = (20_000, 200_000, 2_000_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(AXES), help="what grows; default: each in turn")
    parser.add_argument("--stages", default=",".join((*STAGES, "manifest")), help="comma-separated")
    parser.add_argument("--folder", type=Path, help="keep drawn photographs and built shards here")
    parser.add_argument("--backbone", default="resnet18", help="of evaluate")
    parser.add_argument("--quick", action="store_true", help="small numbers, to see that it runs")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        print(json.dumps(measure(options.stage, Case(**json.loads(options.case)), options.folder)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        for stage in options.stages.split(","):
            if stage == "manifest":
                table("manifest", "shards", [Case(shards=number) for number in _few(MANIFEST_SHARDS, options)], folder)
                continue
            for axis in STAGES[stage]:
                if options.only in (None, axis):
                    cases = [Case.of(options.backbone, axis, value) for value in _few(AXES[axis], options)]
                    if options.quick:
                        cases = [replace(case, samples=min(case.samples, 300)) for case in cases]
                    table(stage, axis, cases, folder)


def _few(values: tuple[int, ...], options: argparse.Namespace) -> tuple[int, ...]:
    return values[:2] if options.quick else values


def table(stage: str, axis: str, cases: list[Case], folder: Path) -> None:
    """Measure the cases and print a row for each figure."""
    found = [in_own_process(stage, case, folder) for case in cases]
    values = [getattr(case, axis) for case in cases]
    print(f"\n| {stage} | {' | '.join(f'{value:,} {axis}' for value in values)} | slope |")
    print(f"| --- |{' ---: |' * (len(values) + 1)}")
    for name in found[0]:
        numbers = [one[name] for one in found]
        last, before = max(numbers[-1], 1e-9), max(numbers[-2], 1e-9)
        slope = math.log(last / before) / math.log(values[-1] / values[-2])
        print(f"| {name} | {' | '.join(f'{number:.4g}' for number in numbers)} | {slope:.2f} |", flush=True)


def in_own_process(stage: str, case: Case, folder: Path) -> dict[str, float]:
    """The figures of one case, by name."""
    command = [sys.executable, __file__, "--folder", str(folder), "--stage", stage, "--case", json.dumps(asdict(case))]
    if stage not in ("build", "manifest"):
        built(case, folder)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{stage}, {case}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(stage: str, case: Case, folder: Path) -> dict[str, float]:
    """In a process of its own: the figures of one case."""
    from msldata.workers.no_pandas import hide_pandas

    hide_pandas()  # as the programs do
    return {"build": build, "open": open_, "stream": stream, "evaluate": evaluate, "report": report}.get(
        stage, manifest
    )(case, folder)


def costs(action: Callable[[], object]) -> dict[str, float]:
    """Processor seconds of an action, and MiB beyond what was held before; threads count."""
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    action()
    seconds = time.process_time() - began
    return {"seconds": seconds, "MiB": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024}


def drawn(case: Case, folder: Path) -> Path:
    """The photographs and their annotations."""
    import simplejpeg

    place = folder / f"drawn-{case.name}"
    if (place / "labels.json").exists():
        return place
    (place / "data").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    photographs = [
        simplejpeg.encode_jpeg(rng.integers(0, 256, (case.size, case.size, 3), dtype=np.uint8)) for _ in range(16)
    ]
    annotations = []
    for number in range(case.samples):
        (place / "data" / f"{number:07d}.jpg").write_bytes(photographs[number % 16])
        for k in (case.classes * rng.random(OBJECTS) ** 2).astype(int):
            left, top, across, down = (rng.integers(1, case.size // 2, 4)).tolist()
            box = [left, top, across, down]
            annotations.append({"image_id": number, "category_id": int(k), "bbox": box, "area": across * down})
    content = {
        "images": [
            {"id": n, "file_name": f"{n:07d}.jpg", "width": case.size, "height": case.size} for n in range(case.samples)
        ],
        "annotations": [{"id": n, "iscrowd": 0, **one} for n, one in enumerate(annotations)],
        "categories": [{"id": k, "name": f"class {k:05d}"} for k in range(case.classes)],
    }
    (place / "labels.json").write_text(json.dumps(content))
    return place


def built(case: Case, folder: Path) -> Path:
    """The shards."""
    place = folder / f"built-{case.name}"
    if not (place / "dataset.json").exists():
        _build(case, folder, place)
    return place


def _build(case: Case, folder: Path, place: Path) -> None:
    from msldata.build.shards import build_shards, plan_build
    from msldata.sources.kinds import open_source

    source = open_source("coco", drawn(case, folder), "all")
    plan = plan_build(source, samples_per_shard=-(-case.samples // case.shards))
    build_shards(plan, place, num_workers=1)


def build(case: Case, folder: Path) -> dict[str, float]:
    drawn(case, folder)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        return costs(lambda: _build(case, folder, Path(place) / "shards"))


def open_(case: Case, folder: Path) -> dict[str, float]:
    from msltrain.stream.order.plan import EpochPlan
    from msltrain.stream.samples.holdout import hold_out

    def action() -> None:
        training, _ = hold_out(str(built(case, folder)), 0.05)
        plan = EpochPlan(training.counts, seed=0, epoch=0)
        plan.items(0, min(1000, plan.num_samples))

    return costs(action)


def stream(case: Case, folder: Path) -> dict[str, float]:
    from msltrain.stream.config import StreamConfig
    from msltrain.stream.loader import Loader
    from msltrain.stream.samples.shardset import open_shard_set

    shards = open_shard_set(built(case, folder))
    config = StreamConfig(image_size=case.size // 2, batch_size=32 * case.ranks, num_threads=1)

    def action() -> None:
        with Loader(shards, config, training=True, rank=0, world_size=case.ranks) as loader:
            for _ in loader:
                pass

    return costs(action)


def checkpoint(case: Case, folder: Path) -> Path:
    """A network that has learnt nothing, but says of few classes that they are there."""
    import torch

    from msltrain.config import ModelConfig, TrainConfig
    from msltrain.models.build import build_model
    from msltrain.runs.checkpoint import Checkpoint, save_checkpoint
    from msltrain.stream.config import StreamConfig

    place = folder / f"model-{case.backbone}-{case.classes}-{case.size}"
    if place.exists():
        return place
    torch.manual_seed(0)
    config = TrainConfig(
        stream=StreamConfig(image_size=case.size // 2, num_threads=1),
        model=ModelConfig(backbone=case.backbone, head="mean"),
    )
    model = build_model(config.model, case.classes, image_size=case.size // 2)
    saved = Checkpoint(
        config=config,
        classes=tuple(f"class {k:05d}" for k in range(case.classes)),
        step=0,
        epoch=0,
        validation_mAP=None,
        weights=model.state_dict(),
        train_state={},
    )
    save_checkpoint(saved, place)
    return place


def evaluate(case: Case, folder: Path) -> dict[str, float]:
    import torch

    from msltrain.evaluation.evaluate import evaluate as predict_all
    from msltrain.measures.summary import measure as measure_all
    from msltrain.runs.other_checkpoints import Foreign, load_any

    torch.set_num_threads(1)
    place, shards = checkpoint(case, folder), built(case, folder)
    classes = tuple(f"class {k:05d}" for k in range(case.classes))
    recogniser = load_any(place, Foreign(), classes, torch.device("cpu")).recogniser
    image_BCHW = torch.randn(32, 3, case.size // 2, case.size // 2).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        recogniser(image_BCHW)

        def network() -> None:
            for _ in range(-(-case.samples // 32)):
                recogniser(image_BCHW)

        alone = costs(network)["seconds"]
    out = folder / f"predictions-{case.name}.parquet"
    found = costs(lambda: measure_all(predict_all(place, shards, out=out)))
    return {
        **found,
        "times the network": found["seconds"] / alone,
        "times the logits": found["MiB"] * 2**20 / (4 * case.samples * case.classes),
        "file, MB": out.stat().st_size / 1e6,
    }


def report(case: Case, folder: Path) -> dict[str, float]:
    from msltrain.config import TrainConfig
    from msltrain.measures.predictions import Origin, Predictions
    from msltrain.report.open_runs import RunReport
    from msltrain.report.write_report import write_report
    from msltrain.stream.config import StreamConfig

    rng = np.random.default_rng(0)
    shape = (case.samples, case.classes)
    target_NK = np.zeros(shape, np.uint8)
    row_M = np.repeat(np.arange(case.samples), OBJECTS)
    target_NK[row_M, (case.classes * rng.random(len(row_M)) ** 2).astype(int)] = 1

    def predictions(name: str, skill: float, hidden: float) -> Predictions:
        logit_NK = rng.standard_normal(shape, dtype=np.float32) - 3
        logit_NK += np.float32(skill) * target_NK
        return Predictions(
            keys=tuple(f"{n:07d}" for n in range(case.samples)),
            logit_NK=logit_NK,
            target_NK=target_NK,
            ignore_NK=np.zeros(shape, bool),
            classes=tuple(f"class {k:05d}" for k in range(case.classes)),
            origin=Origin(checkpoint_sha256=name, hole_fraction=hidden),
        )

    runs = [
        RunReport(
            name=name,
            clean=predictions(name, skill, 0.0),
            masked={"high": predictions(name, skill / 2, 0.55)},
            config=TrainConfig(stream=StreamConfig(image_size=32)),
            history=[],
        )
        for name, skill in (("Baseline", 3.0), ("MSL", 4.0))
    ]
    with tempfile.TemporaryDirectory(dir=folder) as place:
        page = Path(place) / "report.html"
        found = costs(lambda: write_report(page, title="Growth", runs=runs, environment={}))
        beside = sum(file.stat().st_size for file in Path(place).iterdir()) - page.stat().st_size
        return {**found, "page, MB": page.stat().st_size / 1e6, "files beside it, MB": beside / 1e6}


def manifest(case: Case, folder: Path) -> dict[str, float]:
    from msldata.contract.manifest import IMAGES, Manifest, ShardInfo, Shards, read_manifest
    from msldata.contract.publish import write_manifest
    from msldata.storage import LocalStorage
    from msltrain.stream.samples.shardset import ShardSet

    digests = [f"{number:064x}" for number in range(1000)]
    infos = [
        ShardInfo(
            name=f"growth-train-{number:07d}.tar",
            num_samples=1000,
            num_bytes=10**8,
            sha256=digests[number % 1000],
            index_sha256=digests[-number % 1000],
            labels_sha256=digests[number * 7 % 1000],
        )
        for number in range(case.shards)
    ]
    classes = tuple(f"class {k:05d}" for k in range(case.classes))
    histogram = {name: {"positive": 10} for name in classes}
    with tempfile.TemporaryDirectory(dir=folder) as place:
        storage = LocalStorage(place)
        whole = Manifest(
            kind=IMAGES,
            dataset="growth",
            split="train",
            classes=classes,
            shards=Shards(infos),
            label_histogram=histogram,
        )
        written = costs(lambda: write_manifest(storage, whole))
        size = (Path(place) / "dataset.json").stat().st_size
        read = costs(lambda: ShardSet(storage, read_manifest(storage)))
    return {"seconds to write": written["seconds"], "seconds to read": read["seconds"], "file, MB": size / 1e6}


if __name__ == "__main__":
    main()
