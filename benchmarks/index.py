"""How fast ``msl index`` and ``msl verify`` go through tars, against ``sha256sum`` of the same tars.

Usage: python benchmarks/index.py [--images 4000] [--rounds 5]

The tars are those of benchmarks/build.py: VOC photographs of the real sample (MSL_SAMPLE, default ../shared/sample),
again and again. Contenders take turns in one process; medians over the rounds are compared, by processor time, which a
busy machine disturbs least.

sha256sum             of all tars: reading the bytes
decoding              the check of every image, from memory: decoded at an eighth of its size
index                 index_shards with 1 worker, labels from target.npy, in a folder without indexes
index, not decoding   the same with the decoder taken out, to see what is left; no option of the command
verify                with 1 worker, of the dataset as it was built
verify --no-decode    the same, except that no image is decoded
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.build import cpu_time, repeat_photographs, sample_folder
from msldata.build.index_tars import index_shards
from msldata.build.shards import build_shards, plan_build
from msldata.contract.pixels import check_whole, jpeg_header
from msldata.inspect.verify import verify
from msldata.sources.kinds import open_source


def link(built: Path, tars: Path) -> Path:
    """The tars alone, in a folder of their own."""
    shutil.rmtree(tars, ignore_errors=True)
    tars.mkdir()
    for path in built.glob("*.tar"):
        (tars / path.name).symlink_to(path)
    return tars


def main() -> None:
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="msl-bench-") as scratch:
        voc = repeat_photographs(sample_folder(), Path(scratch), arguments.images)
        built, tars = Path(scratch, "built"), Path(scratch, "tars")
        build_shards(plan_build(open_source("voc2007", voc, "test")), built, num_workers=1)
        names = sorted(built.glob("*.tar"))
        photographs = [path.read_bytes() for path in sorted((voc / "JPEGImages").iterdir())[:400]]

        def decode_all() -> None:
            for number in range(arguments.images):
                check_whole(photographs[number % len(photographs)])

        def index() -> None:
            index_shards(tars, labels_from="target.npy", num_workers=1)

        def index_without_decoding() -> None:
            with patch("msldata.build.image.check_whole", lambda data: jpeg_header(data).upright):
                index()

        contenders: dict[str, Callable[[], object]] = {
            "sha256sum": lambda: subprocess.run(["sha256sum", *names], check=True, stdout=subprocess.DEVNULL),
            "decoding": decode_all,
            "index": index,
            "index, not decoding": index_without_decoding,
            "verify": lambda: verify(built, num_workers=1),
            "verify --no-decode": lambda: verify(built, num_workers=1, decode=False),
        }
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for number in range(arguments.rounds + 1):
            for name, run in contenders.items():
                link(built, tars)
                start = cpu_time()
                run()
                if number:  # the first round imports modules and fills the page cache
                    seconds[name].append(cpu_time() - start)
        size = sum(path.stat().st_size for path in names)
    table = Table("contender", "CPU µs a sample", "MB/s", "rate, of sha256sum", "of sha256sum and decoding")
    floors = [sum(pair) for pair in zip(seconds["sha256sum"], seconds["decoding"])]
    for name, times in seconds.items():
        value = statistics.median(times)
        rates = [statistics.median(a / b for a, b in zip(base, times)) for base in (seconds["sha256sum"], floors)]
        table.add_row(
            name,
            f"{value / arguments.images * 1e6:.0f}",
            f"{size / value / 1e6:.0f}",
            *(f"{rate:.2f}" for rate in rates),
        )
    console = Console(width=110)
    console.print(
        f"{arguments.images:,} photographs, {size / 1e6:,.0f} MB, medians of {arguments.rounds} alternating rounds, "
        "one processor"
    )
    console.print(table)


if __name__ == "__main__":
    main()
