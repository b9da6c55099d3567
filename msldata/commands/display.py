"""What the data commands show on a terminal: a finished dataset, the estimate of one, a histogram."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from msldata.build.folder import QUARANTINE_NAME
from msldata.console import show, show_below
from msldata.contract.judging import photographs_of
from msldata.contract.manifest import Manifest
from msldata.contract.records import listed_name
from msldata.errors import UserError, counted, few_of
from msldata.inspect.classnames import alike, nearly_alike, slips
from msldata.storage import Storage

if TYPE_CHECKING:
    from msldata.build.estimate import BuildEstimate
    from msldata.build.plan import BuildPlan
    from msldata.inspect.describe import Description, Extent
    from msldata.inspect.doctor import Check
    from msldata.inspect.verify import Verification
    from msldata.masks.plan import MaskPlan

_FINDINGS_SHOWN = 50
"""On a terminal; a file or pipe gets all."""
_PLURAL = ("objects", "ignored_labels")
_LISTED = frozenset({"classes"})
"""In a manifest's provenance: somebody wrote down the classes, so that no name is a slip in a label."""
_MAX_CLASSES_SHOWN, _FREQUENT_SHOWN, _RARE_SHOWN = 20, 8, 6


def show_manifest(console: Console, manifest: Manifest, where: str | Storage) -> None:
    """Where the dataset is, how large it is, what happened to samples on the way, how labels were read, the classes.

    Args:
        where: its folder; given as such, what was left out is named too.
    """
    size = _size(sum(manifest.shards.num_bytes))
    # Sorted as in the file, so that a finished dataset looks the same later as when it was built.
    notes = _notes(dict(sorted(manifest.counts.items())))
    samples, shards = counted(manifest.num_samples, "sample"), counted(len(manifest.shards), "shard")
    show(console, (where if isinstance(where, str) else where.url, "green"), f": {samples}, {shards}, {size}{notes}")
    if manifest.counts.get("quarantined") and not isinstance(where, str) and where.exists(QUARANTINE_NAME):
        show_below(console, _left_out(where), "yellow")
    if reading := manifest.provenance.get("labels"):
        show_below(console, reading)
    if manifest.classes:
        show_below(console, _classes_with_counts(manifest))


@contextmanager
def say_what_stands(console: Console, splits: Sequence[str], number: int) -> Iterator[None]:
    """Where building the split of this number ends early: name those that are written, and those that are not."""
    try:
        yield
    except (UserError, OSError, KeyboardInterrupt):
        if len(splits) > 1:
            written = f"written: {', '.join(splits[:number])}; " if number else ""
            show_below(console, f"{written}not written: {', '.join(splits[number:])}", "yellow")
        raise


def _left_out(folder: Storage) -> str:
    """The first of what a build left out, and the file with all of it."""
    entries = [json.loads(line) for line in folder.read(QUARANTINE_NAME).splitlines()]
    named = few_of([f"{entry['file']} ({entry['reason']})" for entry in entries])
    return f"left out: {named}; {folder.where(QUARANTINE_NAME)} lists {'all' if len(entries) > 1 else 'it'}"


def _notes(counts: Mapping[str, int]) -> str:
    """What was counted, each after a comma: ``, 12 objects, 3 turned upright``."""
    parts = []
    for name, count in counts.items():
        words = name.replace("_", " ")
        if count == 1 and name in _PLURAL:
            words = words.removesuffix("s")
        if count:
            parts.append(f", {count:,} {words}")
    return "".join(parts)


def _classes_with_counts(manifest: Manifest) -> str:
    """The classes with the number of their images, most frequent first: a wrong reading of labels shows at a glance."""
    counts = photographs_of(manifest)
    used = sorted((name for name in counts if counts[name]), key=lambda name: -counts[name])
    unused = [name for name in counts if not counts[name]]
    first, rare = (used, []) if len(used) <= _MAX_CLASSES_SHOWN else (used[:_FREQUENT_SHOWN], used[-_RARE_SHOWN:])
    text = counted(len(counts), "class") + ": " + ", ".join(f"{listed_name(name)} {counts[name]:,}" for name in first)
    if rare:
        text += ", …; rare: " + ", ".join(f"{listed_name(name)} {counts[name]:,}" for name in rare)
    if unused:
        more = f" and {len(unused) - _RARE_SHOWN:,} more" if len(unused) > _RARE_SHOWN else ""
        text += f"{'; ' if used else ''}in no image: {', '.join(map(listed_name, unused[:_RARE_SHOWN]))}{more}"
    listed = _LISTED.intersection(manifest.provenance)
    if pairs := [*alike(manifest.classes), *([] if listed else nearly_alike(counts))]:
        text += "; alike, yet two classes: " + ", ".join(f"{one!r} and {other!r}" for one, other in pairs[:_RARE_SHOWN])
        text += " (write them alike if they are one)"
    if not listed and (typed := slips(counts)):
        said = [
            f"'{name}' ({counted(counts[name], 'photograph')}) may be meant as '{other}' ({counts[other]:,})"
            for name, other in typed[:_RARE_SHOWN]
        ]
        text += f"; {', '.join(said)}"
    return text


def show_mask_plan(console: Console, plan: MaskPlan, finished: Collection[str] = ()) -> None:
    """What a keep-mask build would write, to the byte, and how long it would take. The bytes are made, not stored."""
    began = time.perf_counter()
    for subset in plan.subsets:
        masks, shards = counted(subset.num_samples, "keep mask"), counted(len(subset.tasks), "shard")
        about = f"{masks} in {shards}, {_size(subset.num_bytes())}"
        done = ", finished already" if subset.draft.split in finished else ""
        console.print(f"{subset.draft.split}: {about}{done} -> {subset.folder.out.url}", soft_wrap=True)
    if plan.quarantined:
        console.print(f"{counted(len(plan.quarantined), 'file')} that cannot be used would be left out")
    seconds = plan.seconds + time.perf_counter() - began
    console.print(
        f"dry run: nothing was written; the build would take {_duration(seconds)}, most of it reading the masks",
        soft_wrap=True,
    )


def show_estimate(console: Console, label: str, plan: BuildPlan, estimate: BuildEstimate, where: str) -> None:
    """The plan of a build, what its source left out, and how long and large it would be."""
    samples, shards = counted(plan.num_samples, "sample"), counted(len(plan.shards), "shard")
    console.print(f"{label}: {samples} in {shards}{_notes(plan.counts)} -> {where}", soft_wrap=True)
    if estimate.num_finished:
        console.print(f"  {estimate.num_finished:,} of them finished already", soft_wrap=True)
    if estimate.num_timed:
        console.print(
            f"  to write: about {_size(estimate.num_bytes)} in {_duration(estimate.seconds)}, an estimate from "
            f"{counted(estimate.num_timed, 'image')} made in memory; a slow destination takes longer",
            soft_wrap=True,
        )
    console.print("  dry run: nothing was written", soft_wrap=True)


def show_histogram(console: Console, title: str, histogram: Mapping[str, int]) -> None:
    """A bar per entry."""
    table = Table(box=None, show_header=False)
    largest = max(histogram.values(), default=0) or 1
    for name, count in histogram.items():
        table.add_row(name, f"{count:,}", "█" * round(40 * count / largest))
    console.print(title, style="italic")  # not the table's own title: that is broken to the table's width
    console.print(table)


def show_verification(console: Console, result: Verification, where: str, against: str | None = None) -> None:
    """A line per finding and what to do next, or one line saying that everything is right."""
    shards = counted(len(result.manifest.shards), "shard")
    if not result.findings:
        samples = result.manifest.num_samples
        verb, beside = "is" if samples == 1 else "are", f", and none is in {against}" if against else ""
        show(console, (where, "green"), f": {counted(samples, 'sample')} in {shards} {verb} right{beside}")
        return
    shown = result.findings[:_FINDINGS_SHOWN] if console.is_terminal else result.findings
    for finding in shown:
        console.print(str(finding), markup=False, soft_wrap=True)
    if hidden := len(result.findings) - len(shown):
        show(console, f"… and {hidden:,} more: where the output goes to a file or pipe, all are there")
    count = counted(len(result.findings), "finding")
    show(console, (where, "red"), f": {count} in {shards}; {result.next_step}")


def show_description(console: Console, about: Description, where: str) -> None:
    """What a dataset holds: facts, labels, pairs of labels, objects, hole fractions."""
    what = "images" if about.labels else "keep masks"
    facts = Table.grid(padding=(0, 2))
    facts.add_row("dataset", f"{about.dataset}, {about.split}")
    facts.add_row(what, f"{about.num_samples:,} in {counted(about.num_shards, 'shard')}, {_size(about.num_bytes)}")
    facts.add_row("fingerprint", about.fingerprint)
    facts.add_row("options", ", ".join(f"{name} {value}" for name, value in about.options.items()))
    facts.add_row("counts", ", ".join(f"{name} {value:,}" for name, value in about.counts.items()).replace("_", " "))
    if about.width is not None and about.height is not None:
        facts.add_row("size", f"width {_span(about.width)}, height {_span(about.height)} pixels")
    if about.labels and not any(about.object_sizes.values()):
        facts.add_row("objects", "none")
    elif about.object_sizes:
        sizes = ", ".join(f"{count:,} {name}" for name, count in about.object_sizes.items())
        flags = ", ".join(
            f"{name} {flag.true:,} of {flag.known:,}" if flag.known else f"{name} unknown"
            for name, flag in about.object_flags.items()
        )
        facts.add_row("objects", f"{sizes} (below 32², from 96² pixels)\n{flags}")
    if about.hole_fraction is not None:
        facts.add_row("hole fraction", _span(about.hole_fraction))
    if about.licence:
        facts.add_row("licence", about.licence)
    show(console, (where, "green"))
    console.print(facts)
    if about.labels:
        _show_labels(console, about)
    else:
        console.print()
        show_histogram(console, "keep masks by hole fraction", about.hole_fraction_histogram)


_MOST_LABELS = 100
"""With more classes, those in most images are listed."""


def _show_labels(console: Console, about: Description) -> None:
    largest = max(label.positive for label in about.labels) or 1
    labels = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    labels.add_column("class")
    for heading in ("positive", "ignored", "share"):
        labels.add_column(heading, justify="right")
    labels.add_column("")
    shown = about.labels
    if len(shown) > _MOST_LABELS:
        shown = tuple(sorted(shown, key=lambda label: -label.positive)[:_MOST_LABELS])
    for label in shown:
        bar = "█" * round(30 * label.positive / largest)
        labels.add_row(label.name, f"{label.positive:,}", f"{label.ignored:,}", f"{label.share:.1%}", bar)
    console.print()
    console.print(labels)
    if more := len(about.labels) - len(shown):
        console.print(f"and {more:,} classes in fewer images; --json has all {len(about.labels):,}")
    console.print(f"{about.labels_per_image:.2f} positive classes an image")
    if about.pairs:
        pairs = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
        pairs.add_column("strongest pairs")
        for heading in ("images with both", "of those with either"):
            pairs.add_column(heading, justify="right")
        for pair in about.pairs:
            pairs.add_row(f"{pair.first} + {pair.second}", f"{pair.images:,}", f"{pair.overlap:.0%}")
        console.print()
        console.print(pairs)


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes >= 100_000 else f"{num_bytes / 1e3:,.1f} kB"


def _duration(seconds: float) -> str:
    return f"about {seconds:,.0f} s" if seconds >= 1 else "less than a second"


def _span(spread: Extent) -> str:
    return f"{spread.minimum:.4g} to {spread.maximum:.4g} (median {spread.median:.4g})"


def show_checks(console: Console, title: str, checks: Sequence[Check]) -> None:
    """What was looked for and found, each with the command to run next."""
    colours = {"complete": "green", "found": "green", "partial": "yellow", "unfinished": "yellow", "damaged": "red"}
    show(console, (title, "bold"))
    for check in checks:
        count = f"{check.num_samples:,}" if check.num_samples is not None else ""
        if check.published is not None:
            count = f"{count or 'none'} of {check.published:,}"
        colour = colours.get(check.state, "dim")
        show(console, "  ", (f"{check.state:10}", colour), f" {check.name:20} {count:17} ", end="")
        console.print(check.where, style="dim", markup=False, soft_wrap=True)
        if check.problem:
            console.print(f"             {check.problem}", markup=False, soft_wrap=True)
        if check.next_command:
            console.print(f"             $ {check.next_command}", style="cyan", markup=False, soft_wrap=True)
