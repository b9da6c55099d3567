"""What evaluating and predicting cost beside the network, and how long one photograph takes from the prompt.

    python benchmarks/inference.py [--images 96] [--rounds 3] [--backbone resnet18] [--skip-start]

Photographs are drawn, 500 × 375 pixels. The network is the same everywhere, at 224 pixels, in batches of 32, on one
thread. Each contender is compared with the network fed from memory, as often as the contender runs it; they take turns,
and medians are shown. Seconds are of processor time, so what reading and decoding cost is counted in full, although on
an idle core it takes place while the network computes: the shares are lower bounds.

evaluate     ``msl evaluate``'s work: shards read, decoded, resized; predictions written and measured
robustness   the passes of ``msl robustness`` over whole images and behind drawn masks in several ranges of hidden
             share; what they share is read and decoded once
predict      ``msl predict`` on a folder

The start compares the processes: ``msl predict PHOTO --checkpoint RUN``, and a script that imports torch and timm,
loads the same weights from a file, reads the photograph with Pillow and prints five classes.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SIZE, BATCH_SIZE, NUM_CLASSES = 224, 32, 20
CLASSES = tuple(f"class{k:02d}" for k in range(NUM_CLASSES))
BARE = """
import sys
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision.transforms.functional import to_tensor

model = timm.create_model({backbone!r}, num_classes={classes})
model.load_state_dict(load_file(sys.argv[1]))
model.eval()
image = Image.open(sys.argv[2]).convert("RGB").resize(({size}, {size}), Image.Resampling.BILINEAR)
with torch.inference_mode():
    scores = model(to_tensor(image)[None]).sigmoid()[0]
for score, number in zip(*scores.topk(5)):
    print(int(number), float(score))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--skip-start", action="store_true")
    parser.add_argument("--skip-rates", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        draw(folder / "photos", options.images)
        save(folder / "model", options.backbone)
        if not options.skip_rates:
            rates(folder, options)
        if not options.skip_start:
            start(folder, options)


def draw(folder: Path, number: int) -> None:
    """Photographs with edges and noise, as large as VOC's."""
    import simplejpeg
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(0)
    for n in range(number):
        small = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        pixels = np.asarray(small.resize((500, 375), Image.Resampling.BICUBIC)).astype(int)
        pixels = (pixels + rng.integers(-12, 12, pixels.shape)).clip(0, 255).astype(np.uint8)
        (folder / f"{n:05d}.jpg").write_bytes(simplejpeg.encode_jpeg(pixels, quality=90))
    rows = [f"{n:05d}.jpg,{CLASSES[n % NUM_CLASSES]}" for n in range(number)]
    (folder / "labels.csv").write_text("\n".join(["image,labels", *rows]))


def save(folder: Path, backbone: str) -> None:
    """A checkpoint with random weights, and the weights alone for the bare script."""
    import timm
    import torch
    from safetensors.torch import save_file

    from msltrain.config import ModelConfig, TrainConfig
    from msltrain.models.build import build_model
    from msltrain.runs.checkpoint import Checkpoint, save_checkpoint
    from msltrain.stream.config import StreamConfig

    torch.manual_seed(0)
    config = TrainConfig(
        stream=StreamConfig(image_size=SIZE, num_threads=1), model=ModelConfig(backbone=backbone, head="mean")
    )
    checkpoint = Checkpoint(
        config=config,
        classes=CLASSES,
        step=0,
        epoch=0,
        validation_mAP=None,
        weights=build_model(config.model, NUM_CLASSES, image_size=SIZE).state_dict(),
        train_state={},
    )
    save_checkpoint(checkpoint, folder)
    save_file(timm.create_model(backbone, num_classes=NUM_CLASSES).state_dict(), folder.with_suffix(".safetensors"))


def rates(folder: Path, options: argparse.Namespace) -> None:
    import torch
    from rich.console import Console

    from msldata.build.shards import build_shards, plan_build
    from msldata.sources.kinds import open_source
    from msltrain.evaluation.evaluate import evaluate
    from msltrain.measures.summary import measure
    from msltrain.robustness.run import Study, run_study
    from msltrain.runs.checkpoint import load_recogniser
    from msltrain.runs.other_checkpoints import Foreign
    from msltrain.use.output_formats import Printer
    from msltrain.use.predict import Asked
    from msltrain.use.predict_many import predict_many
    from msltrain.use.read_images import find_images

    torch.set_num_threads(1)
    model, shards = folder / "model", folder / "shards"
    build_shards(plan_build(open_source("table", folder / "photos", "all")), shards, num_workers=1)
    recogniser = load_recogniser(model, torch.device("cpu")).recogniser
    image_BCHW = torch.randn(BATCH_SIZE, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    fresh = iter(range(10**6))

    def network() -> int:
        with torch.inference_mode():
            for _ in range(-(-options.images // BATCH_SIZE)):
                recogniser(image_BCHW)
        return 1

    def evaluated() -> int:
        measure(evaluate(model, shards, out=folder / "p.parquet", batch_size=BATCH_SIZE, num_threads=1, device="cpu"))
        return 1

    def robust() -> int:
        out = folder / f"study-{next(fresh)}"
        study = Study(models=(("model", str(model)),), shards=str(shards), keep_masks=(), kinds=("patch",))
        found = run_study(study, out, batch_size=BATCH_SIZE, device="cpu")
        return sum(len(conditions) for conditions in found.values())

    def predicted() -> int:
        printer = Printer("json", Console(file=io.StringIO()))
        predict_many(
            model,
            find_images([folder / "photos"]),
            Asked(batch_size=BATCH_SIZE),
            foreign=Foreign(recipe="", model=""),
            device="cpu",
            kind="json",
            show=printer.show,
        )
        return 1

    contenders: dict[str, Callable[[], int]] = {"evaluate": evaluated, "robustness": robust, "predict": predicted}
    shares: dict[str, list[float]] = {name: [] for name in contenders}
    passes = dict.fromkeys(contenders, 1)

    def run(name: str) -> None:
        passes[name] = contenders[name]()

    network()
    for _ in range(options.rounds):
        alone = seconds(network)
        for name in contenders:
            taken = seconds(partial(run, name))
            shares[name].append(passes[name] * alone / taken)
            print(f"  {name}: {taken:.2f} s for {passes[name]} passes of {alone:.2f} s", file=sys.stderr, flush=True)
    print(f"| {options.images} photographs, {options.backbone} | passes | share of the network's rate |")
    print("| --- | ---: | ---: |")
    for name, values in shares.items():
        print(f"| {name} | {passes[name]} | {statistics.median(values):.2f} |", flush=True)


def seconds(action: Callable[[], object]) -> float:
    """Processor seconds of an action, all its threads included."""
    began = time.process_time()
    action()
    return time.process_time() - began


def start(folder: Path, options: argparse.Namespace) -> None:
    bare = folder / "bare.py"
    bare.write_text(BARE.format(backbone=options.backbone, classes=NUM_CLASSES, size=SIZE))
    photo = str(folder / "photos" / "00000.jpg")
    commands = {
        "bare timm": [sys.executable, str(bare), str(folder / "model.safetensors"), photo],
        "msl predict": [sys.executable, "-m", "msltrain", "predict", photo, "--checkpoint", str(folder / "model")],
    }
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(options.rounds + 1):
        for name, command in commands.items():
            cost = process_seconds(command)
            if number:  # the first round fills the page cache
                taken[name].append(cost)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    print("\n| from the prompt to the answer | processor s | of bare timm |\n| --- | ---: | ---: |")
    for name, value in medians.items():
        print(f"| {name} | {value:.2f} | {value / medians['bare timm']:.2f} |", flush=True)


def process_seconds(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
