"""One WebDataset tar that another program wrote: its samples, where their images lie, and what their labels are.

Read are tars of ``webdataset.ShardWriter``, img2dataset and the like, and our own when their index was lost. They are
never written to.
"""

from __future__ import annotations

import io
import json
import mmap
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from msldata.build.image import check_jpeg
from msldata.contract.format import META_SUFFIX, TARGET_SUFFIX
from msldata.contract.tar import DamagedTar, TarMember, walk_any_tar
from msldata.errors import BadInputError, UserError
from msldata.storage import Storage

AUTO = "auto"
_IMAGE_SUFFIXES = (".jpg", ".jpeg")
# The key is everything up to the first dot of the file name, folders included, as the WebDataset readers have it.
_NAME = re.compile(r"((?:.*/)?[^./]+)(\.[^/]+)")
_COPY_BYTES = 16 << 20
_OBJECT_FLAGS = ("difficult", "truncated", "occluded", "crowd")

Label = int | str
"""A class by its index or by its name."""
MAX_CLASSES = 2**15
"""As many as the index columns of 16 bits can name."""


@dataclass(frozen=True, slots=True)
class LabelRule:
    """Where a sample keeps its labels: a member, and of a JSON member the field."""

    suffix: str
    field: str = ""

    def __str__(self) -> str:
        return f"json:{self.field}" if self.field else self.suffix.removeprefix(".")


@dataclass(frozen=True, slots=True)
class Labels:
    """One sample's classes, and how many classes there are where the sample says."""

    positives: tuple[Label, ...]
    ignored: tuple[Label, ...] = ()
    num_classes: int | None = None

    def __post_init__(self) -> None:
        numbers = [label for label in (*self.positives, *self.ignored) if isinstance(label, int)]
        odd = [number for number in (*numbers, (self.num_classes or 1) - 1) if not 0 <= number < MAX_CLASSES]
        if odd:
            raise ValueError(f"class index {odd[0]} is not from 0 to {MAX_CLASSES - 1}")


@dataclass(frozen=True, slots=True)
class Scan:
    """What a tar holds: a row of the sample index per usable sample, and the reasons of the others."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    quarantined: list[dict[str, str]] = field(default_factory=list)


def parse_rule(text: str) -> LabelRule | None:
    """``target.npy`` (or another ``.npy`` member), ``cls``, ``json:FIELD``; None for ``auto``.

    Raises:
        UserError: another text.
    """
    if text == AUTO:
        return None
    kind, _, name = text.partition(":")
    if kind == "json" and name:
        return LabelRule(META_SUFFIX, name)
    if not name and (text == "cls" or re.fullmatch(r"([A-Za-z0-9_-]+\.)*npy", text)):
        return LabelRule(f".{text}")
    raise UserError(f"--labels-from {text}: expected auto, target.npy, cls or json:FIELD, as in json:labels")


def find_rule(path: Path, where: str) -> LabelRule:
    """How the first sample of a tar is labelled.

    Raises:
        BadInputError: the tar is damaged or has no samples. UserError: nothing in the sample is known to be labels.
    """
    with open_tar(path) as data:
        for key, members in samples(path, where):
            if TARGET_SUFFIX in members:
                return LabelRule(TARGET_SUFFIX)
            if ".cls" in members:
                return LabelRule(".cls")
            fields: list[str] = []
            if META_SUFFIX in members:
                try:
                    fields = list(_json(content_of(data, members[META_SUFFIX])))
                except ValueError as error:
                    raise BadInputError(f"{where}, sample {key}", str(error), "mend the tar") from None
                if "labels" in fields:
                    return LabelRule(META_SUFFIX, "labels")
            hint = f"; its JSON has the fields {', '.join(fields[:20])}: name one with --labels-from json:FIELD"
            raise UserError(
                f"{where}, sample {key}: no labels: neither {TARGET_SUFFIX} nor .cls nor a JSON with 'labels' among "
                f"{', '.join(sorted(members))}{hint if fields else ''}. Images without labels cannot be trained on; "
                "list the labels in a table and use `msl build-shards --dataset table`"
            )
    raise BadInputError(where, "the tar has no samples", "delete it")


def scan_labels(path: Path, where: str, rule: LabelRule) -> tuple[set[str], int, str]:
    """The class names that a tar's labels use, the number of classes that its class indices need, and what is wrong
    with the first labels that cannot be read, if any."""
    names: set[str] = set()
    num_classes, problem = 0, ""
    with open_tar(path) as data:
        for key, members in samples(path, where):
            try:
                labels = read_labels(data, members, rule)
            except ValueError as error:
                problem = problem or f"{Path(where).name}, sample {key}: {error}"
                continue  # reported with its sample when the rows are made
            for label in (*labels.positives, *labels.ignored):
                if isinstance(label, str):
                    names.add(label)
                else:
                    num_classes = max(num_classes, label + 1)
            num_classes = max(num_classes, labels.num_classes or 0)
    return names, num_classes, problem


def scan(path: Path, where: str, rule: LabelRule, classes: Sequence[str], *, skip: bool) -> Scan:
    """Make the rows of the sample index.

    Args:
        path: the tar on this machine.
        where: its place, for messages.
        rule: where the labels are.
        classes: class names in target order.
        skip: leave samples that cannot be used out, with the reason.

    Raises:
        BadInputError: the tar is damaged, a key appears twice, or a sample is unusable and ``skip`` is false.
    """
    found = Scan()
    index = {name: number for number, name in enumerate(classes)}
    with open_tar(path) as data:
        for key, members in samples(path, where):
            try:
                found.rows.append(_row(data, key, members, rule, index))
            except ValueError as error:
                if not skip:
                    hint = "mend the tar, or leave the sample out with --on-error skip"
                    raise BadInputError(f"{where}, sample {key}", str(error), hint) from None
                found.quarantined.append({"file": f"{Path(where).name}, sample {key}", "reason": str(error)})
    return found


def samples(path: Path, where: str) -> Iterator[tuple[str, dict[str, TarMember]]]:
    """(key, members by their suffix, in lower case) of every sample, in order.

    Raises:
        BadInputError: a damaged tar, a key that leads out of a folder, or one whose members do not lie side by side.
    """
    key: str | None = None
    members: dict[str, TarMember] = {}
    seen: set[str] = set()
    try:
        for member in walk_any_tar(path):
            match = _NAME.fullmatch(member.name)
            if match is None:
                continue  # no WebDataset reader takes it for part of a sample either
            if match[1].startswith("/") or ".." in match[1].split("/"):
                raise BadInputError(where, f"member '{member.name}' leads outside of the tar", "do not trust this file")
            suffix = match[2].lower()
            if match[1] != key:
                if key is not None:
                    yield key, members
                key, members = match[1], {}
                if key in seen:
                    hint = "write it again with its members sorted by name, as tar --sort=name does"
                    raise BadInputError(where, f"the members of sample {key} do not lie side by side", hint)
                seen.add(key)
            if suffix in members:
                raise BadInputError(where, f"sample {key} has two members {suffix}", "write the tar again")
            members[suffix] = member
    except DamagedTar as error:
        raise BadInputError(where, str(error), "fetch or write it again") from None
    if key is not None:
        yield key, members


def read_labels(data: mmap.mmap, members: Mapping[str, TarMember], rule: LabelRule) -> Labels:
    """A sample's labels.

    Raises:
        ValueError: it has none where the rule says, or they cannot be understood.
    """
    if rule.suffix not in members:
        raise ValueError(f"no member {rule.suffix} with its labels")
    content = content_of(data, members[rule.suffix])
    if rule.field:
        entry = _json(content)
        if rule.field not in entry:
            raise ValueError(f"its JSON has no field '{rule.field}'")
        # Our own tars name the classes that are neither positive nor negative beside the labels.
        ignored = _label_list(entry.get("ignored", []), "ignored") if rule.field == "labels" else ()
        return Labels(_label_list(entry[rule.field], rule.field), ignored)
    if rule.suffix == ".cls":
        text = content.decode("utf-8").strip()
        if not text:
            raise ValueError("its .cls is empty")
        return Labels((int(text) if re.fullmatch(r"-?\d{1,9}", text) else text,))
    try:
        target_K = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # numpy raises ValueError, EOFError, SyntaxError … for a damaged header
        raise ValueError(f"its {rule.suffix} is no array without pickled objects ({error})") from None
    if not isinstance(target_K, np.ndarray) or target_K.ndim != 1 or not np.isin(target_K, (-1, 0, 1)).all():
        raise ValueError(f"its {rule.suffix} is no vector of 1 (positive), 0 (negative) and -1 (ignored)")
    positives, ignored = (tuple(np.flatnonzero(target_K == value).tolist()) for value in (1, -1))
    return Labels(positives, ignored, len(target_K))


def content_of(data: mmap.mmap, member: TarMember) -> bytes:
    """The bytes of a member."""
    return data[member.offset : member.offset + member.length]


@contextmanager
def open_tar(path: Path) -> Iterator[mmap.mmap]:
    """A tar in memory as the system needs it; an empty file is refused. Raises BadInputError."""
    with open(path, "rb") as file:
        if not path.stat().st_size:
            raise BadInputError(str(path), "the tar is empty", "delete it, or fetch it again")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data


@contextmanager
def local_tar(folder: Storage, name: str, num_bytes: int) -> Iterator[Path]:
    """The path of a tar; a remote one is copied to this machine, block by block, for as long as the block runs."""
    path = folder.path(name)
    if path is not None:
        yield path
        return
    with TemporaryDirectory(prefix="msl-index-") as temporary:
        copy = Path(temporary, "shard.tar")
        with open(copy, "wb") as file:
            for start in range(0, num_bytes, _COPY_BYTES):
                file.write(folder.read_ranges(name, [start], [min(_COPY_BYTES, num_bytes - start)])[0])
        yield copy


def _row(
    data: mmap.mmap, key: str, members: Mapping[str, TarMember], rule: LabelRule, index: Mapping[str, int]
) -> dict[str, Any]:
    images = [suffix for suffix in members if suffix.endswith(_IMAGE_SUFFIXES)]
    if len(images) != 1:
        raise ValueError(f"{len(images) or 'no'} members end in .jpg or .jpeg, expected one: {', '.join(members)}")
    member = members[images[0]]
    content = content_of(data, member)
    image = check_jpeg(content) if content.startswith(b"\xff\xd8\xff") else None
    if image is None:
        raise ValueError("its image is no JPEG that every decoder reads; `msl build-shards` would convert it")
    labels = read_labels(data, members, rule)
    if labels.num_classes not in (None, len(index)):
        raise ValueError(f"its {rule.suffix} has {labels.num_classes} values, there are {len(index)} classes")
    positives, ignored = (_indices(part, index) for part in (labels.positives, labels.ignored))
    if both := set(positives) & set(ignored):
        raise ValueError(f"class {min(both)} is both positive and ignored")
    return {
        "key": key,
        "offset": member.offset,
        "length": member.length,
        "crc32": zlib.crc32(content),
        "width": image.width,
        "height": image.height,
        "positives": positives,
        "ignored": ignored,
        "objects": _objects(data, members, index),
    }


def _indices(labels: Sequence[Label], index: Mapping[str, int]) -> list[int]:
    found = set()
    for label in labels:
        number = index.get(label, -1) if isinstance(label, str) else label
        if not 0 <= number < len(index):
            raise ValueError(f"unknown class {label!r}; there are {len(index)}, name them all with --classes FILE")
        found.add(number)
    return sorted(found)


def _objects(data: mmap.mmap, members: Mapping[str, TarMember], index: Mapping[str, int]) -> list[dict[str, Any]]:
    """The objects that our own JSON lists; other programs have no such list, or another."""
    try:
        entries = _json(content_of(data, members[META_SUFFIX]))["objects"]
        return [
            {
                "class_index": index[entry["class"]],
                "box": [float(value) for value in entry["box"]],
                "area": float(entry["area"]),
                **{flag: entry[flag] for flag in _OBJECT_FLAGS},
            }
            for entry in entries
        ]
    except (KeyError, TypeError, ValueError):
        return []


def _json(content: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(content)
    except ValueError as error:
        raise ValueError(f"its JSON cannot be read ({error})") from None
    if not isinstance(entry, dict):
        raise ValueError("its JSON is no object with fields")
    return entry


def _label_list(value: Any, name: str) -> tuple[Label, ...]:
    labels = value if isinstance(value, list) else [value]
    for label in labels:
        if isinstance(label, bool) or not isinstance(label, int | str) or label == "":
            raise ValueError(f"its field '{name}' is {str(value)[:80]!r}, expected class names or class indices")
    return tuple(labels)
