"""Everything that only a GPU can show, checked and measured by one command: a day with a GPU, in a few minutes.

Usage: python benchmarks/gpu.py [--minutes 8] [--out gpu.json] [--wheels FOLDER] [--only NAME …] [--pretend]

Needs no network and no data: it draws photographs and builds shards of less than 40 MB from them. ``--wheels`` installs
every wheel of a folder, without an index, for this run alone. ``--pretend`` runs all of it on the CPU with small
networks, so that every line has been executed before a GPU is there; its figures mean nothing. A check that fails does
not stop the others, and what does not fit into the minutes is left out and said. Prints one table and writes JSON; the
exit code is 1 if a check failed.

Checks compare with what the CPU computes: batches by all three ways (decode and resize on the host, resize or decode on
the device), the branches and BatchNorm of a step, keep masks, a run that is stopped and goes on, one process with
DistributedDataParallel and with sharded weights. Measures: images a second of a step of ResNet-101 at 448 and ViT-L at
224 with peak memory, and the same steps fed by the loader: what waiting for data takes, and what the loader's threads
cost the thread that launches.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def install_wheels() -> None:
    """With --wheels: start this script again with what is in them."""
    if "--wheels" not in sys.argv:
        return
    at = sys.argv.index("--wheels")
    wheels = sorted(map(str, Path(sys.argv[at + 1]).glob("*.whl")))
    if not wheels:
        sys.exit(f"{sys.argv[at + 1]}: no wheels there")
    with tempfile.TemporaryDirectory() as place:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", place]
        subprocess.run([*pip, *wheels], check=True)
        path = os.pathsep.join([place, *filter(None, [os.environ.get("PYTHONPATH")])])
        rest = sys.argv[1:at] + sys.argv[at + 2 :]
        done = subprocess.run([sys.executable, __file__, *rest], env=os.environ | {"PYTHONPATH": path})
    sys.exit(done.returncode)


if __name__ == "__main__":
    install_wheels()

# What follows may come from the wheels.
import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.beside import endless  # noqa: E402
from benchmarks.large import drawn  # noqa: E402
from benchmarks.step import PEAKS, make_step, measure_work, peak_on_gpu, seconds  # noqa: E402
from benchmarks.stream import write_shards  # noqa: E402
from msltrain.config import (  # noqa: E402
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
)
from msltrain.hosts.distributed import Ranks  # noqa: E402
from msltrain.hosts.interrupt import Interrupted  # noqa: E402
from msltrain.models.build import build_model  # noqa: E402
from msltrain.runs.checkpoint import load_checkpoint  # noqa: E402
from msltrain.stream.config import KeepMaskConfig, StreamConfig  # noqa: E402
from msltrain.stream.helper import HelperPasses  # noqa: E402
from msltrain.stream.keepmasks.bank import KeepMasks  # noqa: E402
from msltrain.stream.loader import Loader  # noqa: E402
from msltrain.stream.pixels.buffers import SquareSlot  # noqa: E402
from msltrain.training.events import StepEvent  # noqa: E402
from msltrain.training.sharding import shard_weights, whole  # noqa: E402
from msltrain.training.siamese import SiameseStep  # noqa: E402
from msltrain.training.trainer import train  # noqa: E402

NUM_CLASSES = 20


@dataclasses.dataclass(frozen=True)
class Bench:
    """Where the checks run."""

    shards: Path
    scratch: Path
    device: torch.device

    @property
    def pretends(self) -> bool:
        return self.device.type == "cpu"


def check(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)


# The stream


def batches_of(bench: Bench, device: torch.device, **options: object) -> list[tuple[list[str], Tensor]]:
    config = StreamConfig(image_size=160, batch_size=16, num_threads=2, drop_last=False, **options)  # type: ignore[arg-type]
    with Loader(str(bench.shards), config, device=device, training=True, seed=1) as loader:
        found = []
        for batch in loader:
            found.append((batch.keys, batch.image_BCHW.cpu() * 255))
            if device.type == "cuda" and len(found) == 1:
                check(is_pinned(loader), "the ring is not pinned")
        return found


def is_pinned(loader: Loader) -> bool:
    """Whether all memory that batches are copied from is; files for the device's decoder are not looked at."""
    passes = loader._passes
    if isinstance(passes, HelperPasses):
        assert passes._helper is not None
        return all(memory._is_pinned for memory in passes._helper.ring if len(memory._flat_N))
    return all(slot.pixel_BHWC.is_pinned() for slot in passes.slots if isinstance(slot, SquareSlot))


def distance(bench: Bench, **options: object) -> tuple[float, float]:
    """Mean and largest difference from the batches of the host, in grey levels."""
    expected, found = batches_of(bench, torch.device("cpu"), resize="host"), batches_of(bench, bench.device, **options)
    check([keys for keys, _ in expected] == [keys for keys, _ in found], "other samples, or in another order")
    differences = [(image - other).abs() for (_, image), (_, other) in zip(expected, found, strict=True)]
    mean = sum(float(one.mean()) * len(one) for one in differences) / sum(map(len, differences))
    return mean, max(float(one.max()) for one in differences)


def host_resize(bench: Bench) -> str:
    _, most = distance(bench, resize="host")
    check(most < 0.01, f"batches differ by up to {most:.3f} grey levels")
    return f"pinned ring and side stream: the host's batches (differ by {most:.1g} at most)"


def device_resize(bench: Bench) -> str:
    mean, most = distance(bench, resize="device")
    check(mean < 0.05 and most < 2.01, f"{mean:.3f} grey levels on average, {most:.2f} at most")
    return f"{mean:.4f} grey levels on average, {most:.2f} at most"


def helper_process(bench: Bench) -> str:
    """What the threads make in a helper process, and copies from its memory, against those of this process."""
    for resize in ("host", "device"):
        same, helped = (batches_of(bench, bench.device, resize=resize, process=where) for where in ("same", "helper"))
        check([keys for keys, _ in same] == [keys for keys, _ in helped], "other samples, or in another order")
        equal = all(torch.equal(one, other) for (_, one), (_, other) in zip(same, helped, strict=True))
        check(equal, f"resized by the {resize}, batches differ")
    return "the same batches as threads of this process, bit for bit, from pinned memory"


def device_decode(bench: Bench) -> str:
    # A CPU is refused by the loader; the path itself also runs there, with torchvision's own decoder.
    with mock.patch("msltrain.stream.loader.check_device_decoding") if bench.pretends else nullcontext():
        mean, most = distance(bench, decode="device")
    check(mean < 2, f"{mean:.2f} grey levels on average, {most:.0f} at most")
    return f"{mean:.2f} grey levels on average, {most:.0f} at most"


def keep_masks(bench: Bench) -> str:
    hashes = np.arange(64, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    banks = [KeepMasks.generate(96, device, augment=("flip", "rotate", "shift")) for device in ("cpu", bench.device)]
    here, there = (bank.of_hashes(hashes, seed=1, epoch=2) for bank in banks)
    check(torch.equal(here, there.cpu()), "masks differ from the CPU's")
    return f"{len(banks[0])} masks, 64 of them flipped, turned and shifted: the CPU's"


# The step


@contextmanager
def exactly() -> Iterator[None]:
    """float32 without TF32 and with algorithms that repeat themselves, as far as cuDNN has them."""
    flags = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    with flags:
        yield
    torch.set_float32_matmul_precision(before)


class KeptStep(SiameseStep):
    """A step with the loss of its latest pass."""

    total: Tensor


def one_step(
    device: torch.device, loss: LossConfig, *, amp: bool = False, layout: torch.memory_format = torch.contiguous_format
) -> KeptStep:
    """A step of a small ResNet after one forward and backward pass."""
    torch.manual_seed(0)
    recogniser = build_model(ModelConfig(backbone="test_resnet"), NUM_CLASSES, image_size=96).to(device)
    step = KeptStep(recogniser.to(memory_format=layout), loss)  # type: ignore[call-overload]
    step.train()
    backward(step, step, device, amp)
    return step


def backward(step: KeptStep, call: Callable[..., dict[str, Tensor]], device: torch.device, amp: bool = False) -> None:
    generator = torch.Generator().manual_seed(1)
    image_BCHW = torch.rand(8, 3, 96, 96, generator=generator).to(device)
    keep_mask_B1HW = (torch.rand(8, 1, 96, 96, generator=generator) > 0.5).float().to(device)
    target_BK = (torch.rand(8, NUM_CLASSES, generator=generator) > 0.9).float().to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=amp):
        total = call(image_BCHW, keep_mask_B1HW, target_BK)["total"]
    total.backward()
    step.total = total.detach()


def numbers(step: KeptStep) -> list[Tensor]:
    """The loss, the gradients and the running statistics."""
    gradients = [whole(parameter.grad) for parameter in step.parameters() if parameter.grad is not None]
    statistics = [buffer for name, buffer in step.named_buffers() if "running" in name]
    return [one.detach().cpu().double() for one in (step.total, *gradients, *statistics)]


def largest_difference(found: KeptStep, expected: KeptStep) -> float:
    """Of all numbers, relative to the largest of their tensor."""
    pairs = list(zip(numbers(found), numbers(expected), strict=True))
    return max(float((one - other).abs().max() / other.abs().max().clamp(min=1e-6)) for one, other in pairs)


def branches(bench: Bench) -> str:
    said = []
    for name, loss in {
        "sequential": LossConfig(branches="sequential"),
        "fused": LossConfig(branches="fused"),
        "split": LossConfig(branches="fused", bn_mode="split"),
        "clean_only": LossConfig(branches="fused", bn_mode="clean_only"),
    }.items():
        with exactly():
            difference = largest_difference(one_step(bench.device, loss), one_step(torch.device("cpu"), loss))
        check(difference < 1e-2, f"{name}: differs from the CPU by {difference:.2g} of the largest")
        said.append(f"{name} {difference:.1g}")
    return "relative difference from the CPU: " + ", ".join(said)


def precisions(bench: Bench) -> str:
    with exactly():
        expected = float(one_step(bench.device, LossConfig()).total)
    half = float(one_step(bench.device, LossConfig(), amp=True, layout=torch.channels_last).total)
    check(abs(half / expected - 1) < 0.05, f"bf16 and channels_last: loss {half:.4f} for {expected:.4f}")
    return f"bf16 with channels_last: loss {half:.4f}, float32 {expected:.4f}"


def compiled(bench: Bench) -> str:
    began = time.perf_counter()
    step = one_step(bench.device, LossConfig(branches="fused"))
    expected = numbers(step)[0]
    step.zero_grad()
    step.compile(backend="eager" if bench.pretends else "inductor")
    with exactly():
        backward(step, step, bench.device)
    found = numbers(step)[0]
    check(abs(float(found / expected) - 1) < 0.01, f"loss {float(found):.4f} for {float(expected):.4f}")
    return f"loss {float(found):.4f}, not compiled {float(expected):.4f}; {time.perf_counter() - began:.0f} s"


# Runs and processes


def run_config(bench: Bench) -> TrainConfig:
    return TrainConfig(
        data=DataConfig(train=str(bench.shards), validation_fraction=0.1),
        stream=StreamConfig(image_size=96, batch_size=16, num_threads=2),
        keep_mask=KeepMaskConfig(kind="generated"),
        model=ModelConfig(backbone="test_resnet"),
        optim=OptimConfig(lr=0.01, num_epochs=2, warmup_epochs=0.5, ema_decay=0.9),
        run=RunConfig(log_every=1, device="cpu" if bench.pretends else "cuda"),
    )


def resume(bench: Bench) -> str:
    def losses(run: Path) -> list[float]:
        rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        return [row["total"] for row in rows if "total" in row]

    def stop(event: object) -> None:
        if isinstance(event, StepEvent) and event.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    config, straight, broken = run_config(bench), bench.scratch / "straight", bench.scratch / "broken"
    with exactly():
        train(config, run_dir=straight)
        with suppress(Interrupted):
            train(config, run_dir=broken, on_event=stop)
        checkpoint = load_checkpoint(broken)
        check(bench.pretends or "cuda" in checkpoint.train_state["random"][0], "no CUDA generator in the checkpoint")
        train(config, run_dir=broken, resume=True)
    one, other = losses(straight), losses(broken)
    check(len(one) == len(other) and checkpoint.step == 4, f"{len(other)} steps for {len(one)}")
    difference = max(abs(left / right - 1) for left, right in zip(one, other, strict=True))
    check(difference < 1e-3, f"losses differ by {difference:.2g}")
    return f"{len(one)} steps, stopped after 4: " + ("bit for bit" if one == other else f"to {difference:.1g}")


@contextmanager
def alone_in_a_group(bench: Bench) -> Iterator[None]:
    store = dist.FileStore(str(bench.scratch / f"group-{time.monotonic_ns()}"), 1)
    if not bench.pretends:
        torch.cuda.set_device(bench.device)
    dist.init_process_group("gloo" if bench.pretends else "nccl", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def data_parallel(bench: Bench) -> str:
    loss = LossConfig(branches="fused")
    with exactly(), alone_in_a_group(bench):
        expected, step = one_step(bench.device, loss), one_step(bench.device, loss)
        again(step, expected)
        parallel = torch.nn.parallel.DistributedDataParallel(step, broadcast_buffers=False)
        backward(step, parallel, bench.device)
        backward(expected, expected, bench.device)
        total = torch.ones(3, device=bench.device)
        dist.all_reduce(total)
        check(total.tolist() == [1, 1, 1], "all_reduce")
        difference = largest_difference(step, expected)
        del parallel
    check(difference < 1e-4, f"differs by {difference:.2g}")
    return f"{'gloo' if bench.pretends else 'NCCL'}, DistributedDataParallel: differs by {difference:.1g}"


def again(*steps: KeptStep) -> None:
    for step in steps:
        step.zero_grad()


def sharded(bench: Bench) -> str:
    loss = LossConfig(branches="fused")
    with exactly(), alone_in_a_group(bench):
        made = []
        for divided in (False, True):
            torch.manual_seed(0)
            recogniser = build_model(ModelConfig(backbone="test_resnet"), NUM_CLASSES, image_size=96)
            if divided:
                shard_weights(recogniser, Ranks(rank=0, world_size=1, device=bench.device))
            else:
                recogniser = recogniser.to(bench.device)
            step = KeptStep(recogniser, loss)
            step.train()
            backward(step, step, bench.device)
            made.append(step)
        difference = largest_difference(made[1], made[0])
    check(difference < 1e-4, f"differs by {difference:.2g}")
    return f"fully_shard: differs by {difference:.1g}"


# Figures


def step_rate(bench: Bench, backbone: str, size: int, batch_size: int) -> str:
    said = []
    for name in ("plain", "sequential", "fused"):
        step = make_step(name, "bf16", backbone, size, batch_size, bench.device)
        for _ in range(1 if bench.pretends else 5):
            seconds(step, bench.device)
        took = min(seconds(step, bench.device) for _ in range(2 if bench.pretends else 15))
        peak = "" if bench.pretends else f", {peak_on_gpu(step):,.0f} MiB"
        said.append(f"{name} {batch_size / took:,.0f}{of_bound(bench, name, backbone, size, took, batch_size)}{peak}")
        del step
    return "images/s: " + "; ".join(said)


def of_bound(bench: Bench, name: str, backbone: str, size: int, took: float, batch_size: int) -> str:
    card = "" if bench.pretends else torch.cuda.get_device_name()
    peak = next((peak for word, peak in PEAKS.items() if word in card), PEAKS["H200"])
    bound = measure_work(name, backbone, size, 2, bench.device).images_per_second(*peak)
    return (
        f" ({batch_size / took / bound:.2f} of the bound {bound:,.0f})" if card else f" (bound of an H200 {bound:,.0f})"
    )


def beside_the_loader(bench: Bench, backbone: str, size: int, batch_size: int) -> str:
    """The step with nothing beside it, and with a loader that makes a batch for each of its steps."""
    take_step = make_step("fused", "bf16", backbone, size, batch_size, bench.device)
    num_steps = 3 if bench.pretends else 40

    def rate(fetch: Callable[[], object]) -> tuple[float, float]:
        for _ in range(2):
            fetch()
            seconds(take_step, bench.device)
        began, waited = time.perf_counter(), 0.0
        for _ in range(num_steps):
            asked = time.perf_counter()
            fetch()
            waited += time.perf_counter() - asked
            take_step()
        if not bench.pretends:
            torch.cuda.synchronize()
        took = time.perf_counter() - began
        return num_steps / took, waited / took

    alone, _ = rate(lambda: None)
    told = f"{alone * batch_size:,.0f} images/s alone"
    for where, words in (("same", "threads beside it"), ("helper", "a helper process")):
        config = StreamConfig(image_size=size, batch_size=batch_size, process=where)  # type: ignore[arg-type]
        with Loader(str(bench.shards), config, device=bench.device, training=True) as loader:
            batches = forever(loader)
            fed, wait = rate(batches.__next__)
            batches.close()
            hosts = endless(loader)
            beside, _ = rate(hosts.__next__)
            hosts.close()
        told += (
            f"; fed by {words} {fed / alone:.3f} of it, {100 * wait:.1f} % of the time waiting, "
            f"{beside / alone:.3f} with nothing uploaded"
        )
    return told


def forever(loader: Loader) -> Generator[object, None, None]:
    while True:
        yield from loader


def checks(pretends: bool) -> dict[str, Callable[[Bench], str]]:
    resnet = ("test_resnet", 96, 4) if pretends else ("resnet101", 448, 64)
    vit = ("test_vit", 160, 4) if pretends else ("vit_large_patch16_224", 224, 64)
    return {
        "host resize": host_resize,
        "device resize": device_resize,
        "helper process": helper_process,
        "device decode": device_decode,
        "keep masks": keep_masks,
        "branches": branches,
        "bf16": precisions,
        "resume": resume,
        "data parallel": data_parallel,
        "sharded weights": sharded,
        f"step {resnet[0]}": lambda bench: step_rate(bench, *resnet),
        f"beside {resnet[0]}": lambda bench: beside_the_loader(bench, *resnet),
        f"step {vit[0]}": lambda bench: step_rate(bench, *vit),
        f"beside {vit[0]}": lambda bench: beside_the_loader(bench, *vit),
        "compile": compiled,
    }


def prepare(folder: Path, pretends: bool) -> Path:
    """Photographs of VOC's size, and a few that are decoded at a part of theirs."""
    sizes = [(500, 375), (375, 500), (481, 363), (1280, 960), (1283, 961)]
    photos = []
    for number, size in enumerate(sizes * (1 if pretends else 8)):
        photos.append(folder / f"{number}.jpg")
        photos[-1].write_bytes(drawn(number, *size))
    shards = folder / "shards"
    write_shards(photos, 100 if pretends else 320, shards, per_shard=64)
    num_bytes = sum(file.stat().st_size for file in shards.iterdir())
    check(num_bytes < 40e6, f"the shards take {num_bytes / 1e6:.0f} MB")
    return shards


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="no check is begun after them")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install for this run alone")
    parser.add_argument("--only", nargs="+", help="these checks")
    parser.add_argument("--pretend", action="store_true", help="on the CPU, with small networks")
    arguments = parser.parse_args()
    if not arguments.pretend and not torch.cuda.is_available():
        sys.exit("no CUDA device here; --pretend runs everything on the CPU")
    began = time.monotonic()
    device = torch.device("cpu") if arguments.pretend else torch.device("cuda", 0)
    rows = []
    machine = f"{platform.machine()}, pretended" if arguments.pretend else torch.cuda.get_device_name()
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {machine}")
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(prepare(Path(name), arguments.pretend), Path(name), device)
        for title, work in checks(arguments.pretend).items():
            if arguments.only and title not in arguments.only:
                continue
            row = {
                "check": title,
                "outcome": "left out",
                "said": f"after {arguments.minutes:g} minutes",
                "seconds": 0.0,
            }
            started = time.monotonic()
            if started - began < 60 * arguments.minutes:
                try:
                    row |= {"outcome": "ok", "said": work(bench)}
                except Exception as error:
                    row |= {"outcome": "FAILED", "said": f"{type(error).__name__}: {error}"}
                    row["traceback"] = traceback.format_exc()
                row["seconds"] = round(time.monotonic() - started, 1)
            rows.append(row)
            print(f"{title:32} {row['outcome']:9} {row['seconds']:6} s  {row['said']}", flush=True)
    failed = [row for row in rows if row["outcome"] == "FAILED"]
    facts = {"machine": machine, "torch": torch.__version__, "pretended": arguments.pretend, "checks": rows}
    arguments.out.write_text(json.dumps(facts, indent=1) + "\n")
    for row in failed:
        print(f"\n{row['check']}\n{row['traceback']}")
    print(f"{len(rows) - len(failed)} of {len(rows)} did not fail; {arguments.out}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
