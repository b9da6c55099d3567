"""Training runs in several processes under torchrun, and what they measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from msltrain.config import TrainConfig, to_json

REPOSITORY = Path(__file__).resolve().parents[1]

TELL_WHERE_IT_HANGS = "import faulthandler; faulthandler.dump_traceback_later(240, exit=True)\n"
"""All threads' stacks, sooner than `finish` gives up."""

WORKER = """
import os, signal, sys
from pathlib import Path
from msldata.errors import UserError
from msltrain.config import from_json
from msltrain.training.trainer import train

resume = {"no": False, "must": True, "auto": "auto"}[sys.argv[1]]
die_at = int(os.environ.get("DIE_AT", 0)) if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" else 0

def on_event(event):
    if die_at and getattr(event, "step", 0) == die_at:
        os.kill(os.getpid(), signal.SIGKILL)

try:
    for run in map(Path, sys.argv[2:]):
        config = from_json(run.with_suffix(".json").read_text())
        train(config, run_dir=run, resume=resume, on_event=on_event)
except UserError as error:
    print(f"UserError: {error}")
    sys.exit(2)
"""


def start(
    runs: Mapping[str, TrainConfig],
    folder: Path,
    num_processes: int,
    *,
    resume: str = "no",
    restarts: int = 0,
    die_at: int = 0,
    worker: str = WORKER,
) -> subprocess.Popen:
    """torchrun over the runs, one after the other, each in a folder of its name. It picks its own free port."""
    folder.mkdir(exist_ok=True)
    (folder / "worker.py").write_text(TELL_WHERE_IT_HANGS + worker)
    for name, config in runs.items():
        (folder / f"{name}.json").write_text(to_json(config))
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    command = [sys.executable, *launcher, f"--max-restarts={restarts}", str(folder / "worker.py"), resume]
    return subprocess.Popen(
        [*command, *(str(folder / name) for name in runs)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "DIE_AT": str(die_at)},
    )


def finish(process: subprocess.Popen, expected: int = 0) -> str:
    try:
        output, _ = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        raise AssertionError(f"torchrun did not end; it wrote: {output!r}") from None
    assert process.returncode == expected, output
    return output


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[float]:
    return [row[name] for row in rows(run) for name in ("total", "clean", "masked", "consistency") if name in row]


def validation(run: Path) -> list[float]:
    return [row["validation_mAP"] for row in rows(run) if "validation_mAP" in row]
