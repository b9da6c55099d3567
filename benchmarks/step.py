"""What a training step costs: time and peak memory of the ways to run the two branches.

Usage: python benchmarks/step.py [--backbones NAME …] [--image-size N] [--batch-size N] [--rounds N] [--device auto]

Contenders take turns, so that a busy machine slows all of them; medians over the rounds are compared. A step is
forward, backward and the optimiser's update with a batch that is on the device already. Keep masks are generated "high"
ones.

plain        the baseline: one forward of the whole images
official     two forwards and the loss written as the official code has them, without any of this package's step
sequential   ours, two passes
fused        ours, one pass over both batches, BatchNorm by half
dropping     ours for transformers: the masked branch leaves out patches of which less than a quarter is visible

Each as float32, and as bf16 autocast with channels-last. Peak memory is what a step takes beyond what was there before
it, by the allocator of a GPU; elsewhere what the first two steps take, momentum included, by the resident set of a
process of its own.

The operations of a step are counted while it runs. On a card whose data sheet is known, "of bound" compares bf16 with
the most images a second that it allows: all operations at the peak of its tensor cores, and every BatchNorm reading or
writing its activations eight times (forward: statistics, input, output; backward: twice both input and gradient, then
output), one after the other. For ResNet-101 at 448 that is 1,235 images/s on an H200.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from msldata.contract.keepmask import resize_nearest
from msldata.contract.maskgenerator import generate_hole_mask, target_hole_fraction
from msltrain.config import LossConfig, ModelConfig, OptimConfig
from msltrain.models.build import build_model
from msltrain.training.optim import build_optimizer
from msltrain.training.siamese import SiameseStep

NUM_CLASSES = 20
PRECISIONS = ("float32", "bf16")
LOSSES = {
    "plain": LossConfig(clean_weight=1, masked_weight=0, consistency_weight=0),
    "sequential": LossConfig(branches="sequential"),
    "fused": LossConfig(branches="fused"),
    "dropping": LossConfig(branches="sequential", drop_hidden_tokens=0.25),
}
PEAKS = {"H100": (989e12, 3.35e12), "H200": (989e12, 4.8e12)}
"""Dense bf16 operations and bytes of memory traffic a second (SXM), by a word in the card's name."""
BATCHNORM_PASSES, BYTES = 8, 2
Step = Callable[[], None]


class OfficialStep(nn.Module):
    """Two forwards, two cross-entropies, one mean squared difference of the sigmoids."""

    def __init__(self, recogniser: nn.Module):
        super().__init__()
        self.recogniser = recogniser

    def forward(self, image_BCHW: Tensor, keep_mask_B1HW: Tensor, target_BK: Tensor) -> dict[str, Tensor]:
        logit_BK = self.recogniser(image_BCHW)
        masked_logit_BK = self.recogniser(image_BCHW * keep_mask_B1HW)
        clean = F.binary_cross_entropy_with_logits(logit_BK, target_BK)
        masked = F.binary_cross_entropy_with_logits(masked_logit_BK, target_BK)
        consistency = F.mse_loss(logit_BK.sigmoid(), masked_logit_BK.sigmoid())
        return {"total": 0.3 * clean + 0.2 * masked + 0.5 * consistency}


def high_keep_masks(count: int, size: int) -> Tensor:
    """Generated masks more than half of which are hole, as (count, 1, size, size)."""
    indices = [index for index in range(20 * count) if target_hole_fraction(0, index) > 0.52][:count]
    holes = [resize_nearest(generate_hole_mask(0, index, 512), size, size) for index in indices]
    return torch.from_numpy(1.0 - np.stack(holes)[:, None]).float()


@dataclass
class Work:
    """What one step does per image of the batch."""

    operations: float = 0.0
    """A multiplication and an addition are two."""
    normalised: float = 0.0
    """Numbers that BatchNorm puts out in the forward pass."""

    def images_per_second(self, operations: float, traffic: float) -> float:
        """The bound on a card that does so many operations, and moves so many bytes, a second."""
        return 1 / (self.operations / operations + BATCHNORM_PASSES * BYTES * self.normalised / traffic)


def measure_work(name: str, backbone: str, image_size: int, batch_size: int, device: torch.device) -> Work:
    work = Work()

    def add(module: nn.Module, _inputs: object, output: Tensor) -> None:
        if isinstance(module, _BatchNorm):
            work.normalised += output.numel() / batch_size

    hook = nn.modules.module.register_module_forward_hook(add)
    take_step = make_step(name, "bf16", backbone, image_size, batch_size, device)
    with FlopCounterMode(display=False) as counter:
        take_step()
    hook.remove()
    work.operations = counter.get_total_flops() / batch_size
    return work


def make_step(name: str, precision: str, backbone: str, image_size: int, batch_size: int, device: torch.device) -> Step:
    """A function that takes one training step."""
    torch.manual_seed(0)
    layout = torch.channels_last if precision == "bf16" else torch.contiguous_format
    recogniser = build_model(ModelConfig(backbone=backbone), NUM_CLASSES, image_size=image_size)
    recogniser = recogniser.to(device).to(memory_format=layout)  # type: ignore[call-overload]
    step = OfficialStep(recogniser) if name == "official" else SiameseStep(recogniser, LOSSES[name])
    step.train()
    optimizer = build_optimizer(replace(OptimConfig(), lr=1e-4), step)
    image_BCHW = torch.rand(batch_size, 3, image_size, image_size, device=device).contiguous(memory_format=layout)
    keep_mask_B1HW = high_keep_masks(batch_size, image_size).to(device)
    target_BK = (torch.rand(batch_size, NUM_CLASSES, device=device) > 0.9).float()

    def take_step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            total = step(image_BCHW, keep_mask_B1HW, target_BK)["total"]
        total.backward()
        optimizer.step()
        optimizer.zero_grad()

    return take_step


def seconds(step: Step, device: torch.device) -> float:
    began = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def peak_on_gpu(step: Step) -> float:
    """MiB that one step takes beyond what is there before it; a step was taken already."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def peak_in_this_process(step: Step) -> float:
    """MiB of resident memory that the first two steps take (Linux)."""
    # ru_maxrss would include what the parent process had; the kernel's own mark can be set back.
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    step()
    step()
    return resident("VmHWM") - before


def resident(field: str) -> float:
    """MiB of this process by a field of its status."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) / 1024


def peak_in_own_process(
    arguments: argparse.Namespace, backbone: str, image_size: int, name: str, precision: str
) -> float:
    child = [sys.executable, __file__, "--backbones", backbone, "--image-size", str(image_size)]
    child += ["--batch-size", str(arguments.batch_size), "--threads", str(arguments.threads), "--device", "cpu"]
    output = subprocess.run([*child, "--peak-of", name, precision], capture_output=True, text=True, check=True)
    return float(output.stdout)


def compare(backbone: str, arguments: argparse.Namespace, device: torch.device) -> None:
    """Time and print all contenders of one backbone."""
    is_transformer = "vit" in backbone or "eva" in backbone
    names = ["plain", "official", "sequential", "fused", *(["dropping"] if is_transformer else [])]
    contenders = [(name, precision) for name in names for precision in PRECISIONS]
    on_gpu = device.type == "cuda"
    image_size: int = arguments.image_size or ((224 if is_transformer else 448) if on_gpu else 160)
    batch_size: int = arguments.batch_size
    size = (backbone, image_size, batch_size, device)
    steps = {(name, precision): make_step(name, precision, *size) for name, precision in contenders}
    for step in steps.values():
        seconds(step, device)
    times: dict[tuple[str, str], list[float]] = {contender: [] for contender in contenders}
    for _ in range(arguments.rounds):
        for contender, step in steps.items():
            times[contender].append(min(seconds(step, device) for _ in range(arguments.repeats)))
    peaks = {}
    for contender in contenders:
        if on_gpu:
            peaks[contender] = peak_on_gpu(steps[contender])
        else:
            peaks[contender] = peak_in_own_process(arguments, backbone, image_size, *contender)
    work = {name: measure_work(name, *size) for name in names}
    peak = next((peak for word, peak in PEAKS.items() if on_gpu and word in torch.cuda.get_device_name()), None)
    heads = ["branches", "precision", "ms a step", "images/s", "of plain", "of official", "GFLOP an image", "peak MiB"]
    heads += ["of bound"] if peak else []
    what = f"{backbone}, {batch_size} images of {image_size}²"
    print(f"\n{what}, medians of {arguments.rounds} alternating rounds\n")
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for name, precision in contenders:
        median = {other: statistics.median(times[other, precision]) for other in names}
        images_per_second = batch_size / median[name]
        cells = [name, precision, f"{1000 * median[name]:.0f}", f"{images_per_second:.1f}"]
        cells += [f"{median[name] / median[other]:.2f}" for other in ("plain", "official")]
        cells += [f"{work[name].operations / 1e9:.1f}", f"{peaks[name, precision]:.0f}"]
        if peak:
            bound = work[name].images_per_second(*peak)
            cells.append(f"{images_per_second / bound:.2f} of {bound:,.0f}" if precision == "bf16" else "")
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="+", help="default: a small ResNet and ViT, on a GPU the paper's")
    parser.add_argument(
        "--image-size", type=int, help="default: 160, on a GPU the paper's 448 or, for transformers, 224"
    )
    parser.add_argument("--batch-size", type=int, help="default: 4, on a GPU 32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, help="steps a turn, the fastest counts; default: 1, on a GPU 10")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--peak-of", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    on_gpu = arguments.device == "cuda" or (arguments.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda" if on_gpu else "cpu")
    arguments.batch_size = arguments.batch_size or (32 if on_gpu else 4)
    arguments.repeats = arguments.repeats or (10 if on_gpu else 1)
    torch.set_num_threads(arguments.threads)
    small, papers = ["resnet50", "vit_small_patch16_224"], ["resnet101", "vit_large_patch16_224"]
    backbones = arguments.backbones or (papers if on_gpu else small)
    if arguments.peak_of:
        name, precision = arguments.peak_of
        step = make_step(name, precision, backbones[0], arguments.image_size, arguments.batch_size, device)
        print(peak_in_this_process(step))
        return
    machine = torch.cuda.get_device_name() if on_gpu else f"{arguments.threads} threads ({platform.machine()})"
    print(f"torch {torch.__version__}, {machine}")
    for backbone in backbones:
        compare(backbone, arguments, device)


if __name__ == "__main__":
    main()
