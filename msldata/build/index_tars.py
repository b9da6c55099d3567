"""Sample indexes and a manifest for tars that another program wrote, so that they can be trained on unchanged."""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, Literal

from msldata.build.folder import BuildFolder, FinishedShard
from msldata.build.other_tars import (
    AUTO,
    LabelRule,
    TarContents,
    find_rule,
    local_tar,
    loses_names,
    make_rows,
    parse_rule,
    read_tar,
    survey_labels,
)
from msldata.build.shards import label_histogram
from msldata.contract.format import (
    TARGET_SUFFIX,
    decode_index,
    decode_shard_metadata,
    decode_shard_report,
    encode_index,
    encode_json,
    with_digests,
)
from msldata.contract.manifest import (
    IMAGES,
    MANIFEST_NAME,
    FormatError,
    Manifest,
    ShardInfo,
    Shards,
    index_name,
    read_manifest,
)
from msldata.errors import BadInputError, UserError, counted
from msldata.sources.labels.reading import LabelReading, LabelSurvey, decide_reading
from msldata.sources.labels.separators import left_together
from msldata.sources.source import check_name
from msldata.storage import FileInfo, Location, Storage, open_storage, same_place
from msldata.workers.engine import run_tasks

FOREIGN = "tars of another program"
"""What the provenance of an indexed dataset says about its source."""

_OUR_NAME = re.compile(r"([^-]+)-([^-]+)-\d+\.tar")
_CONTENTS = 2
"""Which form the contents of tars are kept in."""
_HEAD_BYTES = 16 << 20
OnError = Literal["fail", "skip"]


@dataclass(frozen=True, slots=True)
class IndexTask:
    """What a worker needs to index one tar."""

    tars: Storage
    out: Storage
    name: str
    num_bytes: int
    version: str
    """``FileInfo.version`` of the tar."""
    rule: LabelRule
    reading: LabelReading | None
    """None: not decided yet."""
    classes: tuple[str, ...]
    plan: str
    on_error: OnError


def index_shards(
    tars: Location | Storage,
    out: Location | Storage | None = None,
    *,
    name: str | None = None,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    labels_from: str = AUTO,
    labels_are: str | None = None,
    separator: str | None = None,
    num_workers: int | None = None,
    on_error: OnError = "fail",
    overwrite: bool = False,
    command: Sequence[str] = (),
    confirm: Callable[[Manifest], None] | None = None,
    note: Callable[[str], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Read every tar of a folder once, write a sample index for each and, last of all, the manifest.

    The tars are never changed. What a tar holds is kept in a hidden file until all are read and it is decided how the
    labels of all are read. An index, or such a file, that is there and fits its tar is kept, so a call that was
    stopped, or that asked about the labels, continues where it left off.

    Args:
        tars: the folder with the ``.tar`` files, local or remote.
        out: another local folder for the indexes, the manifest and a link to each tar; default: beside the tars.
        name, split: what to call the dataset; default: as in ``NAME-SPLIT-000000.tar``, else the folder's name and
            ``train``.
        classes: class names in target order; default: the names that the labels use, sorted, or the class indices.
        labels_from: ``target.npy`` (or another ``.npy`` member), ``cls`` or ``json:FIELD``; ``auto``: the one of
            target.npy, cls and json:labels that the first sample has.
        labels_are: how they are read, ``multi-hot``, ``signed``, ``indices`` or ``names``; default: decided from all
            labels of all tars.
        separator: between the names of one label; ``none``: a label is one name.
        on_error: ``fail`` stops at the first unusable sample; ``skip`` leaves it out of the index, lists it with the
            reason in ``quarantine.jsonl`` and counts it in the manifest.
        overwrite: read every tar again and replace the indexes and the manifest that are there.
        command: the words that index these tars again, for the manifest.
        confirm: called before anything is overwritten, with a manifest of what will be there, except for the samples.
        note: called with what looks odd in the labels.
        progress: called with (tars done, tars in all).

    Raises:
        BadInputError: a damaged tar or an unusable sample. UserError: no tars, no labels, labels that can be read in
            two ways, a key that appears twice, or
            files in the way. StorageError: a place that cannot be read or written.
    """
    tars = open_storage(tars)
    out = tars if out is None else open_storage(out)
    if same_place(out, tars):
        out = tars
    files = _find_tars(tars)
    default_name, default_split = _default_names(tars, files)
    name, split = name or default_name, split or default_split
    for what, value in (("name", name), ("split", split)):
        check_name(what, value)
    rule = parse_rule(labels_from)
    if rule is None:
        rule = _first_rule(tars, files[0])
    asked = {"labels_from": str(rule), "classes": list(classes or ()), "on_error": on_error, "reading": 3}
    asked |= {"labels_are": labels_are, "separator": separator}
    sizes = {info.name: info.size for info in files}
    plan = hashlib.sha256(encode_json({"dataset": name, "split": split, "tars": sizes, **asked})).hexdigest()
    folder = BuildFolder(out, [info.name for info in files], plan)
    with folder.claim():
        manifest = _finished(out, plan, overwrite)
        if manifest is not None:
            return manifest
        if out is not tars:
            _link(tars, out, files)
        kept = _kept_shards(out, files, plan)
        if overwrite:
            kept = {}
        tasks = [
            IndexTask(tars, out, info.name, info.size, info.version, rule, None, tuple(classes or ()), plan, on_error)
            for info in files
            if info.name not in kept
        ]
        done = len(kept)

        def count(_: object) -> None:
            nonlocal done
            done += 1
            if progress is not None:
                progress(done, len(files))

        if kept:  # they were written for all tars
            report = next(iter(kept.values())).report
            reading, known = LabelReading(**report["reading"]), tuple(report["classes"])
        else:
            reading, known = _decide(tars.url, tasks, labels_are, separator, num_workers, count, note)
        draft = Manifest(
            kind=IMAGES,
            dataset=name,
            split=split,
            classes=known,
            options={"labels_from": str(rule), "reading": reading.options(), "on_error": on_error},
            provenance={
                "source": FOREIGN,
                "labels": f"labels of {rule}, read as {reading}",
                **({"command": list(command)} if command else {}),
            },
            licence="Not stated by the tars; whoever made them states it.",
            plan=plan,
        )
        if overwrite and confirm is not None:
            confirm(draft)
        folder.withdraw()
        todo = [replace(task, reading=reading, classes=known) for task in tasks]
        written = run_tasks(_index_tar, todo, num_workers, count if kept else None)
        finished = kept | dict(zip((task.name for task in todo), written, strict=True))
        shards = [finished[info.name] for info in files]
        _refuse_duplicates(out, shards)
        num_unnamed = sum(shard.report["unnamed"] for shard in shards)
        if num_unnamed and note is not None:
            note(
                f"boxes and ignored labels of {counted(num_unnamed, 'sample')} are left out, for their classes are "
                "named otherwise than in the list: give the classes of the vectors, in their order, with --classes FILE"
            )
        return _finish(folder, draft, shards)


def tasks_of(folder: Storage, manifest: Manifest) -> list[IndexTask]:
    """The tasks that made an indexed dataset, for whoever wants to make its rows again."""
    rule = parse_rule(manifest.options["labels_from"])
    assert rule is not None
    if "reading" not in manifest.options:
        raise FormatError(f"{folder.url}: indexed before the reading of labels was recorded; run `msl index` again")
    try:
        reading = LabelReading(**manifest.options["reading"])
    except TypeError as error:
        raise FormatError(f"{folder.where(MANIFEST_NAME)}: options.reading: {error}; run `msl index` again") from None
    return [
        IndexTask(folder, folder, info.name, info.num_bytes, "", rule, reading, manifest.classes, manifest.plan, "skip")
        for info in manifest.shards
    ]


def _find_tars(tars: Storage) -> list[FileInfo]:
    if not tars.can_list:
        raise UserError(f"{tars.url}: a web address can neither be listed nor written; copy the tars to a folder")
    here = [info for info in tars.list_files() if "/" not in info.name and not info.name.startswith(".")]
    files = [info for info in here if info.name.endswith(".tar")]
    if not files:
        packed = [info.name for info in here if info.name.endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.bz2"))]
        why = f"; {packed[0]} is compressed: its samples have no place of their own, unpack it first" if packed else ""
        raise UserError(f"{tars.url}: no .tar files here{why}")
    return files


def _first_rule(tars: Storage, first: FileInfo) -> LabelRule:
    """How the first sample is labelled; of a remote tar only the beginning is fetched for it, if that will do."""
    num_bytes = min(first.size, _HEAD_BYTES)
    try:
        with local_tar(tars, first.name, num_bytes) as path:
            return find_rule(path, tars.where(first.name))
    except BadInputError:
        if num_bytes == first.size:
            raise
    with local_tar(tars, first.name, first.size) as path:
        return find_rule(path, tars.where(first.name))


def _default_names(tars: Storage, files: Sequence[FileInfo]) -> tuple[str, str]:
    match = _OUR_NAME.fullmatch(files[0].name)
    if match is not None:
        return match[1], match[2]
    folder = tars.path()
    last = folder.resolve().name if folder is not None else PurePosixPath(tars.url).name
    return re.sub(r"[^\w-]", "_", last) or "indexed", "train"


def _finished(out: Storage, plan: str, overwrite: bool) -> Manifest | None:
    """The manifest of this exact plan, when nothing is left to do. Raises UserError for another plan's manifest."""
    if overwrite or not out.exists(MANIFEST_NAME):
        return None
    manifest = read_manifest(out)
    if manifest.plan != plan:
        raise UserError(
            f"{out.url}: holds a finished dataset already ({manifest.dataset}, {manifest.split}); "
            "to index its tars anew, add --overwrite"
        )
    sizes = {info.name: info.size for info in out.list_files()}
    whole = all(sizes.get(shard.name) == shard.num_bytes and shard.index_name in sizes for shard in manifest.shards)
    return manifest if whole else None


def _link(tars: Storage, out: Storage, files: Sequence[FileInfo]) -> None:
    source, target = tars.path(), out.path()
    if source is None or target is None:
        raise UserError(f"{out.url}: --out is for local tars, to which it makes links; leave it out")
    for info in files:
        link = target / info.name
        if link.is_symlink() and link.resolve() == (source / info.name).resolve():
            continue
        if os.path.lexists(link):
            raise UserError(f"{link}: this file is in the way of a link to {source / info.name}; choose another --out")
        link.symlink_to((source / info.name).resolve())


def _kept_shards(out: Storage, files: Sequence[FileInfo], plan: str) -> dict[str, FinishedShard]:
    """The tars whose index is there already. Raises UserError for an index that our builds did not write."""
    present = {info.name for info in out.list_files()}
    ours: set[str] = set()
    with suppress(FormatError):
        ours = {shard.index_name for shard in read_manifest(out).shards} if MANIFEST_NAME in present else ours
    kept = {}
    for info in files:
        name = index_name(info.name)
        if name not in present:
            continue
        data = out.read(name)
        try:
            shard, written_for = decode_shard_metadata(data, out.where(name))
        except FormatError:
            if name in ours:
                continue  # damaged since
            # img2dataset, for one, keeps what it knows of a tar in a parquet file of the same name.
            raise UserError(
                f"{out.where(name)}: another program's file is where the sample index of {info.name} goes; move it away"
                + ("" if out.path() is None else ", or name a folder for the indexes with --out FOLDER")
            ) from None
        if written_for == plan and shard.num_bytes == info.size:
            kept[info.name] = FinishedShard(shard, decode_shard_report(data, out.where(name)))
    return kept


def _decide(
    where: str,
    tasks: Sequence[IndexTask],
    labels_are: str | None,
    separator: str | None,
    num_workers: int | None,
    on_read: Callable[[object], None],
    note: Callable[[str], None] | None,
) -> tuple[LabelReading, tuple[str, ...]]:
    """What the labels mean, decided from all tars together, and the classes."""
    classes, vectors = tasks[0].classes, tasks[0].rule.suffix == TARGET_SUFFIX
    jobs = [(task, separator) for task in tasks]
    survey, problem = LabelSurvey(separator), None
    for part, wrong in run_tasks(_survey, jobs, num_workers, on_read):
        survey.merge(part)
        problem = problem or wrong
    if problem is not None and tasks[0].on_error == "fail":
        raise problem
    reading = decide_reading(survey, where, classes=classes or None, labels_are=labels_are, vectors=vectors)
    if note is not None and (doubt := left_together(survey, classes or None)):
        note(doubt)
    try:
        return reading, classes or reading.classes(survey)
    except ValueError as error:
        raise UserError(f"{where}: {error}; name the classes with --classes FILE") from None


def _survey(job: tuple[IndexTask, str | None]) -> tuple[LabelSurvey, BadInputError | None]:
    """Read one tar, keep what it holds for ``_index_tar``, and say what its labels look like; runs in a worker."""
    task, separator = job
    where = task.tars.where(task.name)
    contents = _kept_contents(task)
    if contents is None:
        contents = contents_of(task)
        kept = json.dumps([_kept_for(task), contents.sha256, contents.samples], separators=(",", ":"))
        task.out.put(_contents_name(task.name), zlib.compress(kept.encode(), 1))
    return survey_labels(contents, where, separator)


def contents_of(task: IndexTask) -> TarContents:
    """Read the tar of a task. Raises BadInputError as ``read_tar`` does."""
    with local_tar(task.tars, task.name, task.num_bytes) as path:
        return read_tar(path, task.tars.where(task.name), task.rule, skip=task.on_error == "skip")


def _kept_contents(task: IndexTask) -> TarContents | None:
    """What an earlier call, or an earlier step of this one, read of this very tar."""
    try:
        kept_for, sha256, samples = json.loads(zlib.decompress(task.out.read(_contents_name(task.name))))
    except (FileNotFoundError, ValueError, zlib.error):
        return None
    return TarContents(sha256, samples) if task.version and kept_for == _kept_for(task) else None


def _kept_for(task: IndexTask) -> list[Any]:
    return [task.num_bytes, task.version, str(task.rule), task.on_error, _CONTENTS]


def _contents_name(tar: str) -> str:
    """A hidden file: the dataset does not contain it, and other tools do not see it."""
    return f".{tar}.contents"


def _index_tar(task: IndexTask) -> FinishedShard:
    """Index one tar; runs in a worker. Doing it twice gives the same bytes twice."""
    where = task.tars.where(task.name)
    contents = _kept_contents(task) or contents_of(task)
    assert task.reading is not None
    found = make_rows(contents, where, task.reading, task.classes, skip=task.on_error == "skip")
    if not found.rows:
        num_bad = len(found.quarantined)
        reason = f"none of its {num_bad} samples is usable" if num_bad > 1 else "its only sample is not usable"
        reason = reason if num_bad else "it has no samples"
        raise BadInputError(where, reason, "move it out of the folder")
    info = ShardInfo(name=task.name, num_samples=len(found.rows), num_bytes=task.num_bytes, sha256=contents.sha256)
    counts = {
        column: Counter(number for row in found.rows for number in row[column]) for column in ("positives", "ignored")
    }
    report = {
        "reading": task.reading.options(),
        "classes": task.classes,
        "positive": [counts["positives"][number] for number in range(len(task.classes))],
        "ignored": [counts["ignored"][number] for number in range(len(task.classes))],
        "objects": sum(len(row["objects"]) for row in found.rows),
        "without_any_class": sum(not row["positives"] for row in found.rows),
        "quarantined": found.quarantined,
        "unnamed": sum(loses_names(sample, task.classes) for sample in contents.samples),
    }
    index = encode_index(IMAGES, found.rows, info, task.plan, report)
    task.out.put(index_name(task.name), index)
    task.out.delete(_contents_name(task.name))
    return FinishedShard(with_digests(info, index, found.rows), report)


def _refuse_duplicates(out: Storage, shards: Sequence[FinishedShard]) -> None:
    first: dict[str, str] = {}
    for shard in shards:
        assert shard.info is not None  # a tar without samples was refused
        name = shard.info.index_name
        keys = decode_index(IMAGES, out.read(name), out.where(name), ("key",))["key"].to_pylist()
        for key in keys:
            if (other := first.setdefault(key, shard.info.name)) != shard.info.name:
                raise UserError(
                    f"{out.url}: sample {key} is in {other} and in {shard.info.name}; keys must be unique in a "
                    "dataset: move one of the tars out, or write it again with other keys"
                )


def _finish(folder: BuildFolder, draft: Manifest, shards: Sequence[FinishedShard]) -> Manifest:
    reports = [shard.report for shard in shards]
    quarantined = [entry for report in reports for entry in report["quarantined"]]
    labels = label_histogram(draft.classes, reports)
    manifest = replace(
        draft,
        shards=Shards(shard.info for shard in shards if shard.info is not None),
        label_histogram=labels,
        counts={
            "objects": sum(report["objects"] for report in reports),
            "without_any_class": sum(report["without_any_class"] for report in reports),
            "ignored_labels": sum(counts["ignored"] for counts in labels.values()),
            "quarantined": len(quarantined),
        },
    )
    folder.publish(manifest, quarantined)
    return manifest
