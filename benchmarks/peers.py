"""Our loader and other people's, over the same photographs, each as its documentation shows it and at its best.

Usage: python benchmarks/peers.py [--photos voc|coco] [--images 480] [--rounds 5] [--workers 1] [--only NAME ...]

Every loader reads the same JPEGs in a format of its own, in another order each epoch, takes the published random crop
(0.7 to 1 of the area) to the same square, and gives batches of 32 with their labels. The first epoch of each checks
them: that no batch is missing, their shape, their range, and that the mean colour is that of ours. Then all take turns,
every one in a process of its own with as many worker processes or threads, whichever it recommends, as we have threads.

Pillow       as the documentation shows it: Pillow, torchvision's transforms with the flip, float tensors
simplejpeg   at its best: the decoder and the resizing kernel that we use, uint8; flip and float are left to the device
own          the loader's own decoder: FFmpeg for SPDL, libjpeg-turbo for DALI; uint8
q90, q95     FFCV's own, libjpeg-turbo, uint8; it encodes the photographs anew, at a quality of 90 by default, which
             leaves three quarters of VOC's bytes, fewer to decode; 95 leaves about all
raw          FFCV's other format, pixels that were decoded when the dataset was written: an epoch of cached images

"no loader" is the same work in a bare loop over bytes in memory, so that what a loader adds shows. Ours reads, checks
and decodes into reused memory; "ours, float" makes normalised and flipped float batches on this CPU as well; "ours,
RAM" has all decoded images in memory (``stream.ram_cache_gb``), to be held against FFCV's raw.

Processor time is what a loader and all its workers use between the ends of two epochs; images per second of processor
time hardly depend on what else the machine does. Ratios are medians over the rounds of the ratio to ours in the same
round. "start" is what the first epoch costs beyond a later one: workers, compilation, opening.

What is not installed is left out: ``pip install litdata mosaicml-streaming spdl grain pylance datasets webdataset
nvidia-dali-cuda120``. SPDL needs FFmpeg's libraries (Debian 12: ``apt-get install libavdevice59``). FFCV is compiled:
``apt-get install libopencv-dev libturbojpeg0-dev pkg-config``, ``pip install wheel``, then ``pip install
--no-build-isolation --no-deps ffcv`` beside numba, opencv-python-headless and torchvision.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.loaders import PEERS, Epoch, files, installed
from benchmarks.stream import BATCH, SIZE, family, photographs, write_shards

FORK = multiprocessing.get_context("fork")
OURS = "ours, uint8"
GREY_LEVELS = 3.0
"""How far the mean colour of a loader's epoch may be from ours: crops differ, and so may the decoder."""


# One contender, alone in its process


def serve(make: Callable[[], Epoch], orders: Connection) -> None:
    """Answer orders until the empty one: "make" it, "look" at all batches of an epoch, or "run" one and count."""
    os.dup2(2, 1)  # what loaders print is no part of the table
    epoch: Epoch | None = None
    while order := orders.recv():
        try:
            epoch = epoch or make()
            orders.send({} if order == "make" else passed(epoch, order == "look"))
        except Exception as error:
            orders.send({"failed": f"{type(error).__name__}: {error}"})


def passed(epoch: Epoch, is_first: bool) -> dict[str, Any]:
    """One epoch, with a look at every batch of the first one."""
    began, num_images, seen = time.perf_counter(), 0, []
    for images, labels in epoch():
        num_images += len(labels)
        if is_first:
            seen.append(look(images))
    answer: dict[str, Any] = {"images": num_images, "seconds": time.perf_counter() - began}
    if seen:
        answer |= {"colour": np.mean([colour for colour, _ in seen], axis=0), "kind": seen[0][1]}
    return answer


def look(images: Any) -> tuple[np.ndarray, str]:
    """Mean red, green and blue of a batch in grey levels, and its type; ValueError for another shape or range."""
    tensor = torch.as_tensor(images)
    if tuple(tensor.shape) not in ((BATCH, 3, SIZE, SIZE), (BATCH, SIZE, SIZE, 3)):
        raise ValueError(f"a batch of shape {tuple(tensor.shape)}")
    channels = 1 if tensor.shape[1] == 3 else 3
    highest = 255 if tensor.dtype == torch.uint8 else 1
    if not (0 <= tensor.min() < 0.2 * highest and 0.8 * highest < tensor.max() <= highest):
        raise ValueError(f"{tensor.dtype} from {tensor.min()} to {tensor.max()}")
    mean_C = tensor.double().mean(dim=[axis for axis in range(4) if axis != channels])
    return mean_C.numpy() * 255 / highest, f"{str(tensor.dtype).removeprefix('torch.')}"


class Contender:
    """The process of a loader, seen from outside. It is forked, so that all of them share torch's memory."""

    def __init__(self, loader: str, decoder: str, work: Path, workers: int):
        self.orders, its = FORK.Pipe()
        self.process = FORK.Process(target=serve, args=(partial(PEERS[loader].make, work, decoder, workers), its))
        self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid
        its.close()
        self.used = 0.0

    def turn(self, order: str) -> dict[str, Any]:
        """What it answers, with the processor time since it last did."""
        try:
            self.orders.send(order)
            answer = self.orders.recv()
        except (EOFError, OSError):
            answer = {"failed": "its process ended"}
        before, self.used = self.used, processor_seconds(self.pid)
        return answer | {"processor": self.used - before}

    def close(self) -> None:
        with suppress(OSError):  # it has ended
            self.orders.send("")
        self.process.join()


def processor_seconds(root: int) -> float:
    """What a process and all that came from it have used, those that have ended included."""
    ticks = 0
    for pid in family(root):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


# All of them in turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", choices=("voc", "coco"), default="voc")
    parser.add_argument("--images", type=int, default=480)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=tuple(PEERS), help="these beside ours: 'Grain', 'Grain, Pillow'")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    left_out: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        prepare(work, arguments.photos, arguments.images)
        contenders: dict[str, Contender] = {}
        for name, peer in PEERS.items():
            chosen = [one for one in peer.decoders if {name, f"{name}, {one}"} & {*arguments.only, OURS}]
            if chosen and not installed(peer):
                left_out[name] = "not installed"
                continue
            contenders |= {f"{name}, {one}": Contender(name, one, work, arguments.workers) for one in chosen}
        try:
            take_turns(contenders, "make", left_out)
            first = take_turns(contenders, "look", left_out)
            left_out |= strange(first)
            rounds = [take_turns(contenders, "run", left_out) for _ in range(arguments.rounds)]
        finally:
            for contender in contenders.values():
                contender.close()
        describe(arguments, work)
    report({name: epoch for name, epoch in first.items() if name not in left_out}, rounds)
    for name, reason in left_out.items():
        print(f"\n{name}: left out, {reason}")


def take_turns(contenders: dict[str, Contender], order: str, left_out: dict[str, str]) -> dict[str, dict[str, Any]]:
    """What each one answers; who fails is left out from then on."""
    answers = {name: contender.turn(order) for name, contender in contenders.items() if name not in left_out}
    left_out |= {name: answer["failed"] for name, answer in answers.items() if "failed" in answer}
    return {name: answer for name, answer in answers.items() if name not in left_out}


def prepare(work: Path, kind: str, num_images: int) -> None:
    """Our shards, and the same photographs as files under the same keys."""
    sample = Path(os.environ.get("MSL_SAMPLE", Path(__file__).resolve().parents[2] / "shared" / "sample"))
    photos = photographs(sample, kind)
    write_shards(photos, num_images, work / "shards")
    (work / "files").mkdir()
    for number in range(num_images):
        (work / "files" / f"{number:06d}.jpg").write_bytes(photos[number % len(photos)].read_bytes())


def strange(first: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Who left out batches, or has other colours than ours, and so cannot be compared."""
    ours, found = first[OURS], {}
    for name, epoch in first.items():
        if epoch["images"] != ours["images"]:
            found[name] = f"{epoch['images']} images instead of {ours['images']}"
        elif np.abs(epoch["colour"] - ours["colour"]).max() > GREY_LEVELS:
            found[name] = f"a mean colour of {epoch['colour'].round(1)} instead of {ours['colour'].round(1)}"
    return found


def describe(arguments: argparse.Namespace, work: Path) -> None:
    sizes = [Image.open(path).size for path in files(work)]
    width, height = np.median(sizes, axis=0)
    kilobytes = np.mean([path.stat().st_size for path in files(work)]) / 1000
    facts = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1] for line in facts if line.startswith("model name")), "")
    print(
        f"`python {' '.join([str(Path(sys.argv[0])), *sys.argv[1:]])}`\n\n"
        f"{arguments.images} {arguments.photos} photographs (median {width:.0f}×{height:.0f}, {kilobytes:.0f} kB) to "
        f"{SIZE}², batches of {BATCH}, {arguments.workers} thread or worker process each, medians of "
        f"{arguments.rounds} alternating rounds\n{platform.machine()}{model}, {len(os.sched_getaffinity(0))} of "
        f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.0f}; Python {platform.python_version()}, "
        f"torch {torch.__version__}, NumPy {np.__version__}, simplejpeg {version('simplejpeg')}, "
        f"Pillow {version('pillow')}\n"
    )


def report(first: dict[str, dict[str, Any]], rounds: list[dict[str, dict[str, Any]]]) -> None:
    print("| loader | decoder | type | works in | images/s of a processor | of ours | images/s | of ours | start, s |")
    print("| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for name, epoch in first.items():
        loader, decoder = name.split(", ")
        peer, cells = PEERS[loader], []
        for clock in ("processor", "seconds"):
            rates = [turn[name]["images"] / turn[name][clock] for turn in rounds]
            ratios = [rate * turn[OURS][clock] / turn[OURS]["images"] for rate, turn in zip(rates, rounds)]
            cells += [f"{statistics.median(rates):.0f}", f"{statistics.median(ratios):.2f}"]
        start = epoch["processor"] - statistics.median(turn[name]["processor"] for turn in rounds)
        row = [f"{loader} {installed(peer)}", decoder, epoch["kind"], peer.workers, *cells, f"{start:.1f}"]
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
