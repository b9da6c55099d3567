"""What `benchmarks/attack.py` attacks: real commands on small data, run in processes that are forked from one.

Importing the program takes seconds; a process that is forked from one that has imported it is at once where commands
begin, so that kills hit the work and not the imports. It is the same program, and ends as any other interpreter.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
if str(REPOSITORY) not in sys.path:
    sys.path.insert(0, str(REPOSITORY))

import msldata  # noqa: E402
import msltrain  # noqa: E402
from msldata.build.shards import build_shards, plan_build  # noqa: E402
from msldata.sources.kinds import open_source  # noqa: E402
from msldata.storage import open_storage  # noqa: E402
from msltrain.runs.checkpoint import load_checkpoint  # noqa: E402
from tests.oddimages import odd_images  # noqa: E402
from tests.smallshards import CLASSES, photo, write_images, write_keep_masks  # noqa: E402
from tests.tinydata import contents, make_voc  # noqa: E402

SECONDS = 240
"""A command that takes longer hangs: undisturbed, each takes some seconds, more where others want the processors."""
MEGABYTES = 2500
_LIBRARIES = (
    "torch",
    "timm",
    "torchvision",
    "pyarrow.parquet",
    "obstore",
    "safetensors.torch",
    "PIL.Image",
    "simplejpeg",
)


def fork_commands(start: Callable[[], None]) -> None:
    """Fork a process for each line of the standard input, and answer with its number, then with how it ended.

    Args:
        start: becomes the forked process; it returns only there.
    """
    for name in _LIBRARIES:
        __import__(name)
    for package in (msldata, msltrain):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith(("__main__", "space_app")):  # the latter runs on the hub alone
                importlib.import_module(module.name)
    importlib.import_module("msltrain.__main__")
    gc.collect()
    gc.freeze()  # so that the pages stay shared
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            os.setsid()
            os.chdir(job["folder"])
            os.environ.update(job["environment"])
            said = os.open(job["said"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for number, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, said), (2, said)):
                os.dup2(source, number)
            sys.argv = ["msl", *job["words"]]
            start()
            return
        print(child, flush=True)
        _, status, usage = os.wait4(child, 0)
        print(
            json.dumps([os.waitstatus_to_exitcode(status), usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime]),
            flush=True,
        )


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    said: str
    seconds: float
    megabytes: float
    hung: str = ""
    cpu: float = 0.0

    @property
    def fault(self) -> str:
        """What no command may do, whatever it was given; empty: nothing of that."""
        if self.hung:
            return self.hung
        if found := re.search(
            r"Traceback|Fatal Python error|Exception ignored|terminate called|\b\w{1,40}Warning: .*", self.said
        ):
            return found[0]
        if self.code < 0 and -self.code != signal.SIGKILL:
            return signal.Signals(-self.code).name
        if self.code > 0 and not self.said.strip():
            return "ended without a word"
        return ""


class Program:
    """Runs commands, one at a time; a context manager."""

    def __enter__(self) -> Program:
        own = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "COLUMNS": "240"}
        command = [sys.executable, str(REPOSITORY / "benchmarks/attack.py"), "--fork-commands"]
        environment = {**os.environ, **own, "TERM": "dumb"}
        self._parent = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._parent.stdin is not None and self._parent.stdout is not None
        self._orders, self._answers = self._parent.stdin, self._parent.stdout
        return self

    def __exit__(self, *_: object) -> None:
        self._orders.close()
        self._parent.wait()

    def run(
        self,
        words: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        *,
        kill_after: float | None = None,
        alone: bool = False,
    ) -> Outcome:
        """Run ``msl WORDS`` in ``folder``; kill it after so many seconds, with its workers unless it dies ``alone``."""
        said = folder / "said.txt"
        job = {"words": list(words), "folder": str(folder), "environment": dict(environment), "said": str(said)}
        began = time.monotonic()
        print(json.dumps(job), file=self._orders, flush=True)
        child = int(self._answers.readline())
        hung = ""
        while Path(f"/proc/{child}").exists() and _state(child) != "Z":
            seconds = time.monotonic() - began
            if seconds > SECONDS:
                hung = f"took more than {SECONDS} s"
            elif _megabytes(child) > MEGABYTES:
                hung = f"took more than {MEGABYTES} MB"
            if hung or (kill_after is not None and seconds >= kill_after):
                with suppress(ProcessLookupError):
                    (os.kill if alone and not hung else os.killpg)(child, signal.SIGKILL)
                break
            time.sleep(0.02)
        code, megabytes, cpu = json.loads(self._answers.readline())
        seconds = time.monotonic() - began
        return Outcome(code, said.read_text(errors="replace"), seconds, megabytes, hung, cpu)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


def _megabytes(pid: int) -> float:
    try:
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(found[1]) / 1024 if found else 0


SMALL = "--set stream.image_size=32 --set stream.batch_size=8 --set model.backbone=test_efficientnet --processes 1 "
SMALL += "--set run.log_every=1 --set stream.num_threads=1 --set run.device=cpu --set run.save_every=3 --recipe smoke"


def make_ground(root: Path, program: Program) -> Path:
    """Raw data, shards, a run, an export, photographs …; what all attacks begin with. Made once."""
    if (root / "made").exists():
        return root
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    write_images(root / "data", [16, 16, 16], with_objects=True)
    rng = np.random.default_rng(0)
    write_keep_masks(root / "high", [(rng.random((32, 32)) > 0.5).astype(np.uint8) for _ in range(5)])
    make_voc(root / "raw", 120, "trainval")
    (root / "tars").mkdir()
    build_shards(
        plan_build(open_source("voc2007", root / "raw/VOCdevkit/VOC2007", "trainval"), samples_per_shard=20),
        open_storage(root / "voc"),
        num_workers=1,
    )
    for tar in (root / "voc").glob("*.tar"):
        shutil.copy(tar, root / "tars" / tar.name.replace("voc2007", "other"))
    (root / "photos").mkdir()
    for number in range(60):
        (root / "photos" / f"p{number:03d}.jpg").write_bytes(photo(number, 60 + number, 50))
    (root / "odd").mkdir()
    for name, (data, _) in odd_images().items():
        (root / "odd" / name).write_bytes(data)
    write_tables(root)
    for words in (
        f"train {SMALL} --data data --keep-masks high --run run",
        "evaluate --checkpoint run --data data --device cpu --out run/predictions/data.parquet",
        "export --checkpoint run --out export --format safetensors",
        "build-masks --generate 24 --size 64 --out generated --workers 1",
        "robustness --checkpoint run --data data --kind box --out robustness --device cpu",
    ):
        outcome = program.run(words.split(), root, {})
        if outcome.code:
            raise SystemExit(f"msl {words}\n{outcome.said}")
    (root / "masks").mkdir()
    for number in range(24):
        from msldata.contract.keepmask import encode_png

        (root / "masks" / f"{number:05d}.png").write_bytes(
            encode_png((rng.random((64, 64)) > number / 26).astype(np.uint8))
        )
    (root / "made").touch()
    return root


def write_tables(root: Path) -> None:
    """The sources that users write by hand or get from other programs, over the photographs."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    names = [f"photos/p{number:03d}.jpg" for number in range(12)]
    labels = [[CLASSES[number % 3], CLASSES[(number + 1) % 3]][: 1 + number % 2] for number in range(12)]
    (root / "table.csv").write_text("image,labels\n" + "".join(f"{n},{';'.join(v)}\n" for n, v in zip(names, labels)))
    rows = [{"image": name, "labels": value} for name, value in zip(names, labels)]
    (root / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), root / "table.parquet")
    boxes = [
        {"id": n, "image_id": n // 2, "category_id": n % 3, "bbox": [1, 2, 20, 10], "area": 200, "iscrowd": 0}
        for n in range(24)
    ]
    pictures = [{"id": n, "file_name": Path(name).name, "width": 60 + n, "height": 50} for n, name in enumerate(names)]
    kinds = [{"id": number, "name": name} for number, name in enumerate(CLASSES)]
    (root / "coco.json").write_text(json.dumps({"images": pictures, "annotations": boxes, "categories": kinds}))
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    yolo = root / "yolo"
    (yolo / "images/train").mkdir(parents=True)
    (yolo / "labels/train").mkdir(parents=True)
    for number, name in enumerate(names):
        shutil.copy(root / name, yolo / "images/train" / Path(name).name)
        (yolo / f"labels/train/p{number:03d}.txt").write_text(f"{number % 3} 0.5 0.5 0.2 0.3\n")
    (yolo / "data.yaml").write_text(f"path: .\ntrain: images/train\nnames: {json.dumps(list(CLASSES))}\n")
    import timm

    network = timm.create_model("test_resnet", num_classes=3)
    torch.save({"epoch": 3, "state_dict": network.state_dict(), "arch": "test_resnet"}, root / "other.pth")


@dataclass(frozen=True)
class Work:
    """A command that makes something, and what it has made."""

    words: str
    """``OUT`` is the place it writes to."""
    made: Callable[[Path], dict]
    """What must be equal after any disturbance."""
    after: tuple[str, ...] = field(default=())
    """Extra words for the second and later times."""


def run_made(folder: Path) -> dict:
    """Weights, state and measured rows of a training, without times."""
    found: dict = {}
    for name in ("last", "best"):
        checkpoint = load_checkpoint(max((folder / "checkpoints").glob(f"{name}*")))  # in a store last.000000010
        found[name] = {key: tensor.numpy().tobytes() for key, tensor in checkpoint.weights.items()} | {
            "step": checkpoint.step
        }
        state = checkpoint.train_state.get("weights", {})
        found[f"{name} state"] = {key: tensor.numpy().tobytes() for key, tensor in state.items()}
    if {name for name in map(str, folder.glob("*")) if "lock" in name}:
        raise ValueError("a lock was left")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = re.compile(r"second|images_per|wait|memory|time")
    found["rows"] = [{key: value for key, value in row.items() if not timed.search(key)} for row in rows]
    return found


def file_made(file: Path) -> dict:
    """The one file, and that no part of it is left beside it."""
    beside = sorted(other.name for other in file.parent.glob(f"*{file.name}*") if other != file)
    return {"bytes": file.read_bytes(), "beside": beside}


def study_made(folder: Path) -> dict:
    """The curves of a robustness study."""
    return {name: data for name, data in contents(folder).items() if name.endswith(".json")}


_DATA = "--checkpoint GROUND/run --data GROUND/data --device cpu"
_LISTED = {
    "train": (f"train {SMALL} --data GROUND/data --keep-masks GROUND/high --run OUT", run_made),
    "build-shards": (
        "build-shards --source GROUND/raw/VOCdevkit/VOC2007 --samples-per-shard 10 --workers 2 --out OUT",
        contents,
    ),
    "build-masks": ("build-masks --generate 60 --size 128 --workers 2 --out OUT", contents),
    "index": ("index GROUND/tars --workers 2 --out OUT --labels-from target.npy", contents),
    "predict": (
        "predict GROUND/photos GROUND/odd --checkpoint GROUND/run --device cpu --batch-size 3 --out OUT.csv",
        lambda out: file_made(Path(f"{out}.csv")),
    ),
    "evaluate": (f"evaluate {_DATA} --batch-size 4 --out OUT.parquet", lambda out: file_made(Path(f"{out}.parquet"))),
    "export": (
        "export --checkpoint GROUND/run --out OUT --format safetensors --format torch-export",
        lambda out: {name: data for name, data in contents(out).items() if name != "model.pt2"},
    ),
    "robustness": (f"robustness {_DATA} --kind box --out OUT", study_made),
}
WORKS = {
    name: Work(words, made, ("--resume", "auto") if name == "train" else ()) for name, (words, made) in _LISTED.items()
}
