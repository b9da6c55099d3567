"""Is a dataset folder right? Every byte of it is checked against its manifest, its indexes and itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msldata.build.copies import find_copies
from msldata.build.folder import QUARANTINE_NAME
from msldata.build.index_tars import FOREIGN, IndexTask, tasks_of
from msldata.build.other_tars import local_tar, make_rows, read_tar
from msldata.contract.format import decode_index, decode_shard_metadata
from msldata.contract.keepmask import hole_fraction_histogram
from msldata.contract.manifest import IMAGES, MANIFEST_NAME, FormatError, Manifest, ShardInfo, read_manifest
from msldata.contract.publish import CROISSANT_NAME, reader_files
from msldata.contract.recorded_command import build_command
from msldata.errors import BadInputError, UserError
from msldata.inspect.verify_shard import (
    Finding,
    ShardCheck,
    ShardReport,
    content_digest,
    examine_shard,
    hash_shard,
)
from msldata.storage import PART_SUFFIX, Location, Storage, open_storage, same_place
from msldata.workers.engine import run_tasks

__all__ = ["Finding", "Verification", "verify"]


@dataclass(frozen=True, slots=True)
class Verification:
    """What was examined and what is wrong with it; without findings, every byte is accounted for."""

    manifest: Manifest
    findings: tuple[Finding, ...]
    next_step: str
    """What to do about the findings; empty when there are none."""


def verify(
    place: Location | Storage,
    *,
    against: Location | Storage | None = None,
    num_workers: int | None = None,
    decode: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Read a whole dataset and compare everything in it that is stated twice.

    Sizes and SHA-256 of the shards; the index against the tar (order, offsets, lengths, crc32); every image decoded;
    ``target.npy`` against JSON against index against the manifest's counts; keys and images that appear twice; files
    that do not belong. Images are equal when their bytes are.

    Args:
        place: a split of images, or a subset of keep masks, local or remote.
        against: a second dataset of the same kind that must share no image with it, as test with train.
        num_workers: processes, each of which holds one shard in memory; default: one per available processor.
        decode: decode every image, which takes most of the time. Without, changes since the dataset was built or
            indexed are found, but not an image that was damaged before.
        progress: called with (samples done, samples in all).

    Raises:
        FormatError: no readable manifest. StorageError: a file that cannot be read.
        UserError: ``against`` is this dataset, or of another kind.
    """
    folder, against = open_storage(place), None if against is None else open_storage(against)
    manifest = read_manifest(folder)
    other = _open_other(folder, manifest, against)
    done, total = 0, manifest.num_samples + (other.num_samples if other else 0)

    def count(num_samples: int) -> None:
        nonlocal done
        done += num_samples
        if progress is not None:
            progress(done, total)

    reports = _examine(folder, manifest, num_workers, decode, lambda report: count(report.info.num_samples))
    findings = [finding for report in reports for finding in report.findings]
    findings += _check_totals(manifest, reports)
    findings += _check_files(folder, manifest)
    repairable = len(findings)
    findings += _check_duplicates(folder, manifest, reports)
    if other is not None and against is not None:
        hashes = run_tasks(hash_shard, _tasks(against, other), num_workers, lambda pairs: count(len(pairs)))
        findings += _check_shared(reports, against, (pair for pairs in hashes for pair in pairs))
    next_step = _next_step(folder, manifest, damaged=repairable > 0) if findings else ""
    return Verification(manifest, tuple(findings), next_step)


def _open_other(folder: Storage, manifest: Manifest, against: Storage | None) -> Manifest | None:
    if against is None:
        return None
    other = read_manifest(against)
    if same_place(against, folder):
        raise UserError(f"{against.url}: --against names the dataset itself; name another split, as test for train")
    if other.kind != manifest.kind:
        raise UserError(f"{against.url}: holds {other.kind}, while {folder.url} holds {manifest.kind}")
    return other


def _examine(
    folder: Storage,
    manifest: Manifest,
    num_workers: int | None,
    decode: bool,
    on_report: Callable[[ShardReport], None],
) -> list[ShardReport]:
    if _is_foreign(manifest):
        pairs = zip(tasks_of(folder, manifest), manifest.shards, strict=True)
        return run_tasks(examine_foreign, [(*pair, decode) for pair in pairs], num_workers, on_report)
    return run_tasks(examine_shard, _tasks(folder, manifest, decode), num_workers, on_report)


def _is_foreign(manifest: Manifest) -> bool:
    return manifest.provenance.get("source") == FOREIGN


def _tasks(folder: Storage, manifest: Manifest, decode: bool = True) -> list[ShardCheck]:
    grey = manifest.options.get("binarize") is False
    about = manifest.kind, manifest.classes, manifest.plan, grey, decode
    return [ShardCheck(folder, info, *about) for info in manifest.shards]


def _check_totals(manifest: Manifest, reports: Sequence[ShardReport]) -> list[Finding]:
    """The manifest's counts against those of all indexes together."""
    found: list[tuple[str, object, object]] = []
    if manifest.kind == IMAGES:
        for column in ("positive", "ignored"):
            per_shard = [getattr(report, column) for report in reports]
            sums = [sum(counts) for counts in zip(*per_shard, strict=True)] or [0] * len(manifest.classes)
            for name, in_index in zip(manifest.classes, sums, strict=True):
                said = manifest.label_histogram.get(name, {}).get(column)
                found.append((f"label histogram, {column} images of {name}", in_index, said))
        ignored = sum(sum(report.ignored) for report in reports)
        objects = sum(report.num_objects for report in reports)
        found += [("count of ignored_labels", ignored, manifest.counts.get("ignored_labels"))]
        found += [("count of objects", objects, manifest.counts.get("objects"))]
        extra = sorted(manifest.label_histogram.keys() - set(manifest.classes))
        found.append(("classes only in the label histogram", [], extra))
    else:
        histogram = hole_fraction_histogram(value for report in reports for value in report.hole_fractions)
        found.append(("hole-fraction histogram", histogram, dict(manifest.hole_fraction_histogram)))
        above, up_to = _limits(manifest)
        outside = sum(not above <= value <= up_to for report in reports for value in report.hole_fractions)
        found.append((f"masks with a hole fraction outside {above} to {up_to}", 0, outside))
    return [
        Finding(MANIFEST_NAME, "", what, f"{expected} (by the indexes)", str(said))
        for what, expected, said in found
        if expected != said
    ]


def _limits(manifest: Manifest) -> tuple[float, float]:
    """The hole fractions, both included, that the options allow in this subset."""
    options = manifest.options
    if "hole_fraction_above" in options:
        return math.nextafter(options["hole_fraction_above"], 1), options["hole_fraction_up_to"]
    if "threshold" in options and manifest.split in ("high", "low"):
        threshold = options["threshold"]
        return (math.nextafter(threshold, 1), 1) if manifest.split == "high" else (0, threshold)
    return 0, 1


def _check_files(folder: Storage, manifest: Manifest) -> list[Finding]:
    """Check the files that other readers need, and look for files that do not belong."""
    findings = []
    readers = reader_files(manifest)
    if folder.can_list:
        present = {info.name for info in folder.list_files()}
    else:  # a web address: files that the manifest does not name cannot be seen
        present = {name for name in readers if folder.exists(name)}
    for name, wanted in readers.items():
        if name not in present:
            if name == CROISSANT_NAME:
                continue  # earlier builds wrote none
            findings.append(Finding(name, "", "samples per shard, for other readers", "the file", "no such file"))
        elif folder.read(name) != wanted:
            findings.append(Finding(name, "", "what it says, for other readers", "as in the manifest", "others"))
    shards = {name for info in manifest.shards for name in (info.name, info.index_name)}
    leftover = sorted(present - shards - readers.keys() - {MANIFEST_NAME, QUARANTINE_NAME})
    if _is_foreign(manifest):  # the program that wrote the tars may have left its own notes beside them
        leftover = [name for name in leftover if name.endswith((".tar", ".parquet")) and "/" not in name]
    local = folder.path()
    if local is not None:
        leftover += sorted(path.name for path in local.glob(f".*{PART_SUFFIX}"))
    for name in leftover:
        if name.endswith(PART_SUFFIX) or not any(part.startswith(".") for part in name.split("/")):
            findings.append(Finding(name, "", "files of the dataset", "only those the manifest names", "this one"))
    return findings


def _check_duplicates(folder: Storage, manifest: Manifest, reports: Sequence[ShardReport]) -> list[Finding]:
    """Keys that appear twice, and (among photographs) images of equal bytes, with their labels where these differ."""
    findings = []
    shard_of_key: dict[str, str] = {}
    key_of_image: dict[bytes, str] = {}
    labels: Mapping[tuple[str, str], str] | None = None
    for report in reports:
        for key, digest in zip(report.keys, report.image_digests, strict=True):
            name = report.info.name
            if key in shard_of_key:
                findings.append(Finding(name, key, "key", "one sample of this name", f"also in {shard_of_key[key]}"))
            elif manifest.kind == IMAGES and digest in key_of_image:
                twin = key_of_image[digest]
                labels = _labels_of_copies(folder, manifest) if labels is None else labels
                there, here = labels.get((shard_of_key[twin], twin), ""), labels.get((name, key), "")
                unlike = f"; {twin} is labelled {there}, {key} {here}" if there != here else ""
                where = f"the same bytes as {twin} in {shard_of_key[twin]}{unlike}"
                findings.append(Finding(name, key, "image", "different from all others", where))
            shard_of_key.setdefault(key, name)
            key_of_image.setdefault(digest, key)
    return findings


def _labels_of_copies(folder: Storage, manifest: Manifest) -> dict[tuple[str, str], str]:
    """What every copy is labelled, by shard and key; nothing where an index cannot be read, which is a finding."""
    try:
        copies = find_copies([(folder, manifest)])
    except FormatError:
        return {}
    return {(one.shard, one.key): one.labels_said() for photographs in copies for one in photographs}


def _check_shared(
    reports: Sequence[ShardReport], against: Storage, others: Iterable[tuple[str, bytes]]
) -> list[Finding]:
    twins = {digest: key for key, digest in others}
    return [
        Finding(report.info.name, key, "image", f"not in {against.url}", f"the same bytes as {twins[digest]} there")
        for report in reports
        for key, digest in zip(report.keys, report.image_digests, strict=True)
        if digest in twins
    ]


def _next_step(folder: Storage, manifest: Manifest, damaged: bool) -> str:
    command = build_command(folder, manifest)
    # A guessed command could replace this dataset with another one.
    build = f"{command} --overwrite" if command else "how it was built is not recorded; build its source anew elsewhere"
    if damaged:
        return f"build it again: {build}" if command else build
    return f"take one image of each pair out of the source, then: {build}"


_COLUMNS = ("offset", "length", "crc32", "width", "height", "positives", "ignored")


def examine_foreign(job: tuple[IndexTask, ShardInfo, bool]) -> ShardReport:
    """Compare a tar with its index, and decode every image if that is asked for; runs in a worker.

    Raises:
        StorageError: a file cannot be read. A missing one is a finding.
    """
    task, info, decode = job
    findings: list[Finding] = []

    def compare(key: str, what: str, expected: object, found: object, file: str = info.name) -> None:
        if expected != found:
            findings.append(Finding(file, key, what, str(expected), str(found)))

    try:
        data = task.out.read(info.index_name)
        where = task.out.where(info.index_name)
        shard, plan = decode_shard_metadata(data, where)
        compare("", "shard and plan", (info, task.plan), (shard, plan), info.index_name)
        indexed = {row["key"]: row for row in decode_index(IMAGES, data, where).to_pylist()}
    except (FileNotFoundError, FormatError) as error:
        finding = Finding(info.index_name, "", "the sample index", "a readable one", str(error))
        return ShardReport(info, (finding,))
    digests: dict[str, bytes] = {}
    if task.tars.exists(info.name):
        try:
            assert task.reading is not None
            with local_tar(task.tars, info.name, info.num_bytes) as path:
                compare("", "size", f"{info.num_bytes} bytes", f"{path.stat().st_size} bytes")
                where = task.tars.where(info.name)

                def note(key: str, image: bytes) -> None:
                    digests[key] = content_digest(image)

                contents = read_tar(path, where, task.rule, skip=True, decode=decode, on_image=note)
            compare("", "sha256", info.sha256, contents.sha256)
            found = make_rows(contents, where, task.reading, task.classes, skip=True)
            rows = {row["key"]: row for row in found.rows}
            digests = {key: digests[key] for key in rows}
            for entry in found.quarantined:
                if (key := entry["file"].removeprefix(f"{info.name}, sample ")) in indexed:
                    findings.append(Finding(info.name, key, "the sample", "usable, as when indexed", entry["reason"]))
            compare("", "keys of the samples", list(rows), list(indexed), info.index_name)
            for key in rows.keys() & indexed.keys():
                _compare_rows(compare, rows[key], indexed[key], info)
        except BadInputError as error:
            findings.append(Finding(info.name, "", "the tar", "a whole one with labelled samples", error.reason))
    else:
        findings.append(Finding(info.name, "", "the shard", f"{info.num_bytes} bytes", "no such file"))
    if info.index_sha256 and not findings:  # whatever else is wrong says more
        compare("", "sha256", info.index_sha256, shard.index_sha256, info.index_name)
    columns = [[number for row in indexed.values() for number in row[name]] for name in ("positives", "ignored")]
    positive, ignored = (tuple(map(numbers.count, range(len(task.classes)))) for numbers in columns)
    num_objects = sum(len(row["objects"]) for row in indexed.values())
    return ShardReport(info, tuple(findings), tuple(digests), tuple(digests.values()), positive, ignored, num_objects)


def _compare_rows(compare: Any, row: Mapping[str, Any], indexed: Mapping[str, Any], info: ShardInfo) -> None:
    for column in _COLUMNS:
        compare(row["key"], f"{column} in the index", row[column], indexed[column], info.index_name)
    compare(row["key"], "objects in the index", len(row["objects"]), len(indexed["objects"]), info.index_name)
