"""What the data commands show on a terminal: progress, a finished dataset, a histogram."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from msldata.format import Manifest

if TYPE_CHECKING:
    from msldata.verify import Verification

MAX_FINDINGS_SHOWN = 50


@contextmanager
def progress_bar(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar that vanishes when it is done; the block gets a function to feed it with (done, total)."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def show_manifest(console: Console, manifest: Manifest, where: str) -> None:
    """One line: where the dataset is, how large, and what happened to samples on the way."""
    size = sum(shard.num_bytes for shard in manifest.shards)
    notes = "".join(f", {count:,} {name.replace('_', ' ')}" for name, count in manifest.counts.items() if count)
    shards = f"{len(manifest.shards):,} shard{'s' * (len(manifest.shards) != 1)}"
    console.print(
        f"[green]{where}[/green]: {manifest.num_samples:,} samples, {shards}, {size / 1e6:,.1f} MB{notes}",
        soft_wrap=True,
    )


def show_histogram(console: Console, title: str, histogram: Mapping[str, int]) -> None:
    """A bar per entry."""
    table = Table(title=title, title_justify="left", box=None, show_header=False)
    largest = max(histogram.values(), default=0) or 1
    for name, count in histogram.items():
        table.add_row(name, f"{count:,}", "█" * round(40 * count / largest))
    console.print(table)


def show_verification(console: Console, result: Verification, where: str) -> None:
    """A line per finding and what to do next; or that everything is right."""
    shards = f"{len(result.manifest.shards):,} shard{'s' * (len(result.manifest.shards) != 1)}"
    if not result.findings:
        console.print(
            f"[green]{where}[/green]: {result.manifest.num_samples:,} samples in {shards} are right", soft_wrap=True
        )
        return
    for finding in result.findings[:MAX_FINDINGS_SHOWN]:
        console.print(str(finding), markup=False, soft_wrap=True)
    if (hidden := len(result.findings) - MAX_FINDINGS_SHOWN) > 0:
        console.print(f"… and {hidden:,} more")
    count = f"{len(result.findings):,} finding{'s' * (len(result.findings) != 1)}"
    console.print(f"[red]{where}[/red]: {count} in {shards}; {result.next_step}", soft_wrap=True)
