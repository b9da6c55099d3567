"""The study of the method: which way to train with masks gains behind holes and loses nothing on whole images.

    python -m benchmarks.methods run [--work DIR] [--rows FILE] [--queue FILE]
    python -m benchmarks.methods table [--work DIR] [--rows FILE]

``run`` takes the jobs of the queue, one after the other: a job is a stage (data, network, image size, budget), a
setting (how it is trained) and a seed. Each finished one adds its row to the rows file; a job whose row is there, of
the same configuration, is not computed again, so a study that was killed goes on by the same command, on another
machine too. Several such commands may run beside each other. The queue is read anew after every job; a line of it may
ask for the best settings of one stage in another. ``--queue benchmarks/methods/rivals.txt`` is the comparison with
other heads, losses and augmentations. Runs and predictions stay in DIR. ``table`` writes the tables and the
plots of docs/methods.md from the rows and, for intervals, the predictions.

Photographs: VOC2007 at 224 pixels, in VOC's layout, at MSL_VOC224 (default ../shared/voc224): trained on `train`,
measured on `val`. Training masks are generated; the test masks are NVIDIA's, in MSL_SAMPLE (default ../shared/sample),
which no training meets. Weights are in MSL_SAMPLE and MSL_WEIGHTS (default ../shared/weights).
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.methods.jobs import SETTINGS, STAGES, Job, Places

HERE = Path(__file__).resolve().parent
BUSY = 3
"""Exit code of a job that another process works on."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("run", "one", "table"))
    parser.add_argument("job", nargs="*", help="of `one`: stage, setting, seed")
    parser.add_argument("--work", type=Path, default=Path("methods-work"), help="folder for shards, runs, predictions")
    parser.add_argument("--rows", type=Path, default=HERE / "rows.jsonl")
    parser.add_argument("--queue", type=Path, default=HERE / "queue.txt", help="a job a line, the first ones first")
    parser.add_argument("--page", type=Path, default=HERE.parents[1] / "docs/methods.md", help="what `table` fills in")
    options = parser.parse_args()
    places = Places(work=options.work.resolve())
    if options.verb == "table":
        from benchmarks.methods.tables import write_tables

        write_tables(read_rows(options.rows), places, options.page)
    elif options.verb == "one":
        sys.exit(do_one(parse(" ".join(options.job)), places, options.rows))
    else:
        run(options, places)


def run(options: argparse.Namespace, places: Places) -> None:
    """Take the first job of the queue that is not done, until none is left."""
    places.build()
    failed: set[Job] = set()
    while True:
        rows = read_rows(options.rows)
        queue = [job for line in options.queue.read_text().splitlines() for job in jobs_of(line, rows)]
        done = {(row["job"], row["digest"]) for row in rows}
        left = [job for job in queue if (job.name, job.digest) not in done and job not in failed]
        for job in left:
            words = ("one", job.stage, job.setting, str(job.seed), "--work", options.work, "--rows", options.rows)
            code = subprocess.run(
                [sys.executable, "-m", "benchmarks.methods", *map(str, words)], env=environment()
            ).returncode
            if code == BUSY:
                continue
            if code:
                failed.add(job)
                print(f"{job.name}: failed with {code}", flush=True)
            break
        else:
            if not left:
                return
            time.sleep(30)  # all that is left is worked on elsewhere


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0"}


def do_one(job: Job, places: Places, rows: Path) -> int:
    """Train, evaluate, and add the row."""
    with open(places.locks / job.folder, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return BUSY
        from benchmarks.methods.measure import measure_job

        row = measure_job(job, places)
        row["commit"] = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True
        ).stdout.strip()
        with open(rows, "a", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(json.dumps(row) + "\n")
        line = ", ".join(f"{view} {100 * row[view]['mAP']:.2f}" for view in ("whole", "low", "high") if view in row)
        print(f"{job.name}: {line}, CF1 {100 * row['whole']['CF1']:.1f}, {row['train_seconds']:.0f} s", flush=True)
    return 0


def read_rows(file: Path) -> list[dict]:
    """The rows, each job's latest."""
    if not file.exists():
        return []
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return list({row["job"]: row for row in rows}.values())


def jobs_of(line: str, rows: list[dict]) -> list[Job]:
    """``STAGE SETTING SEED``, or ``best N STAGE in STAGE SEED…``: the N best settings of one stage, in another."""
    words = line.partition("#")[0].split()
    if words[:1] != ["best"]:
        return [parse(line)] if words else []
    _, count, source, _, stage, *seeds = words
    return [Job(stage, setting, int(seed)) for setting in best_settings(rows, source)[: int(count)] for seed in seeds]


def best_settings(rows: list[dict], stage: str) -> list[str]:
    """Settings with masks, best first: by whole images, less half of what they lack behind holes of the published loss.

    None before the published loss has a row of the stage.
    """
    own = {row["setting"]: row for row in rows if row["stage"] == stage and row["masks"] and row["seed"] == 0}
    if "msl" not in own:
        return []
    published = own["msl"]["high"]["mAP"]
    return sorted(
        set(own) - {"msl"},
        key=lambda name: -own[name]["whole"]["mAP"] - min(0, own[name]["high"]["mAP"] - published) / 2,
    )


def parse(line: str) -> Job:
    stage, setting, seed = line.split()
    if stage not in STAGES or setting not in SETTINGS:
        sys.exit(f"'{line}': stages are {', '.join(STAGES)}; settings are {', '.join(SETTINGS)}")
    return Job(stage, setting, int(seed))


if __name__ == "__main__":
    main()
