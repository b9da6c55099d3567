"""One WebDataset tar that another program wrote: its samples, where their images lie, and what their labels are.

It reads tars from ``webdataset.ShardWriter``, img2dataset and similar programs, and our own when their index was lost.
They are never written to.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from zlib_ng.zlib_ng import crc32

from msldata.build.image import check_jpeg
from msldata.contract.format import META_SUFFIX, TARGET_SUFFIX, decode_array
from msldata.contract.pixels import JPEG_START, check_whole
from msldata.contract.tar import DamagedTar, TarMember, walk_any_tar
from msldata.errors import SKIP_BAD, BadInputError, UserError, did_you_mean
from msldata.sources.labels.reading import Label, LabelReading, Labels, LabelSurvey
from msldata.storage import Storage, regular

AUTO = "auto"
_HINT = f"mend the tar, or, to leave the sample out, {SKIP_BAD}"
_JPEG_SUFFIXES = (".jpg", ".jpeg")
_IMAGE_SUFFIXES = (".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".jp2", ".ppm")
# The key is everything up to the first dot of the file name, folders included, as the WebDataset readers have it.
_NAME = re.compile(r"((?:.*/)?[^./]+)(\.[^/]+)")
_COPY_BYTES = 16 << 20
_PLACE = ("key", "offset", "length", "crc32", "width", "height")
_OBJECT_FLAGS = ("difficult", "truncated", "occluded", "crowd")


@dataclass(frozen=True, slots=True)
class LabelRule:
    """Where a sample keeps its labels: a member and, in a JSON member, the field."""

    suffix: str
    field: str = ""

    def __str__(self) -> str:
        return f"json:{self.field}" if self.field else self.suffix.removeprefix(".")


@dataclass(frozen=True, slots=True)
class TarContents:
    """What reading a tar once tells, before it is known what its labels mean."""

    sha256: str
    samples: list[dict[str, Any]]
    """Of each sample, in order, the columns of its row, its labels as written (``value``, ``left_out``) and its objects
    with the names of their classes; of one that cannot be used, its ``key`` and the ``reason``."""


@dataclass(frozen=True, slots=True)
class Rows:
    """A row of the sample index per usable sample, and why the others cannot be used."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    quarantined: list[dict[str, str]] = field(default_factory=list)


def parse_rule(text: str) -> LabelRule | None:
    """``target.npy`` (or another ``.npy`` member), ``cls``, ``json:FIELD``; None for ``auto``.

    Raises:
        UserError: any other text.
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
        BadInputError: the tar is damaged or has no samples. UserError: nothing in the sample is known to be labels, or
            several things are.
    """
    with open_tar(path) as data:
        for key, members in samples(data, where):
            rules = [LabelRule(suffix) for suffix in (TARGET_SUFFIX, ".cls") if suffix in members]
            fields: list[str] = []
            if META_SUFFIX in members:
                try:
                    fields = list(_json(content_of(data, members[META_SUFFIX])))
                except ValueError as error:
                    raise BadInputError(f"{where}, sample {key}", str(error), "mend the tar") from None
                # In our own tars the two say the same, and the vector says it without names.
                ours = TARGET_SUFFIX in members and {"labels", "ignored", "objects"}.issubset(fields)
                if "labels" in fields and not ours:
                    rules.append(LabelRule(META_SUFFIX, "labels"))
            arrays = [suffix for suffix in members if suffix.endswith(".npy")]
            if not rules and len(arrays) == 1:  # as CLIP_benchmark publishes VOC2007
                rules = [LabelRule(arrays[0])]
            if len(rules) > 1:
                choices = " or ".join(f"--labels-from {rule}" for rule in rules)
                raise UserError(
                    f"{where}, sample {key}: labels in {' and in '.join(map(str, rules))}, which need not say the "
                    f"same; say which to read, with {choices}"
                )
            if rules:
                return rules[0]
            hint = f"; its JSON has the fields {', '.join(fields[:20])}: name one with --labels-from json:FIELD"
            raise UserError(
                f"{where}, sample {key}: no labels: neither {TARGET_SUFFIX} nor .cls nor a JSON with 'labels' among "
                f"{', '.join(sorted(members))}{hint if fields else ''}. Images without labels cannot be trained on; "
                "list the labels in a table and use `msl build-shards --dataset table`"
            )
    raise BadInputError(where, "the tar has no samples", "delete it")


def read_tar(
    path: Path,
    where: str,
    rule: LabelRule,
    *,
    skip: bool,
    decode: bool = True,
    on_image: Callable[[str, bytes], None] | None = None,
) -> TarContents:
    """Read a tar once, from its first byte to its last: its digest, and every sample.

    Args:
        path: the tar on this machine.
        where: its place, for messages.
        rule: where the labels are.
        skip: take note of samples that cannot be used, instead of raising.
        decode: decode every image, which alone can tell that it is whole; else JPEGs are believed.
        on_image: called with key and bytes of every image.

    Raises:
        BadInputError: the tar is damaged, a key appears twice, or a sample is unusable and ``skip`` is false.
    """
    found: list[dict[str, Any]] = []
    digest, num_hashed = hashlib.sha256(), 0
    with open_tar(path) as data:
        for key, members in samples(data, where):
            try:
                found.append(_sample(data, key, members, rule, decode, on_image))
            except ValueError as error:
                if not skip:
                    raise BadInputError(f"{where}, sample {key}", str(error), _HINT) from None
                found.append({"key": key, "reason": str(error)})
            end = max(member.offset + member.length for member in members.values())
            digest.update(data[num_hashed:end])  # while these bytes are at hand
            num_hashed = end
        for start in range(num_hashed, len(data), _COPY_BYTES):
            digest.update(data[start : start + _COPY_BYTES])
    return TarContents(digest.hexdigest(), found)


def survey_labels(contents: TarContents, where: str, separator: str | None) -> tuple[LabelSurvey, BadInputError | None]:
    """What the label values of a tar look like, and what is wrong with the first that cannot be a label, if any."""
    survey, problem = LabelSurvey(separator), None
    for sample in contents.samples:
        try:
            for value in (sample[name] for name in ("value", "left_out") if name in sample):
                survey.add(f"{Path(where).name}, sample {sample['key']}", value)
        except ValueError as error:
            problem = problem or BadInputError(f"{where}, sample {sample['key']}", str(error), _HINT)
    return survey, problem


def make_rows(contents: TarContents, where: str, reading: LabelReading, classes: Sequence[str], *, skip: bool) -> Rows:
    """Make the rows of the sample index, now that it is known what the labels mean.

    Args:
        contents: from ``read_tar``.
        where: the tar's place, for messages.
        reading: what the labels mean.
        classes: class names in target order.
        skip: leave samples that cannot be used out, with the reason.

    Raises:
        BadInputError: a label does not fit, and ``skip`` is false.
    """
    found = Rows()
    index = {name: number for number, name in enumerate(classes)}
    for sample in contents.samples:
        key = sample["key"]
        try:
            if "reason" in sample:
                raise ValueError(sample["reason"])
            found.rows.append(_row(sample, reading, index))
        except ValueError as error:
            if not skip:
                raise BadInputError(f"{where}, sample {key}", str(error), _HINT) from None
            found.quarantined.append({"file": f"{Path(where).name}, sample {key}", "reason": str(error)})
    return found


def samples(data: mmap.mmap, where: str) -> Iterator[tuple[str, dict[str, TarMember]]]:
    """(key, members by their suffix, in lower case) of every sample, in order.

    Raises:
        BadInputError: a damaged tar, a key that leads out of a folder, or one whose members do not lie side by side.
    """
    key: str | None = None
    members: dict[str, TarMember] = {}
    seen: set[str] = set()
    try:
        for member in walk_any_tar(data):
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


def label_values(data: mmap.mmap, members: Mapping[str, TarMember], rule: LabelRule) -> tuple[Any, Any]:
    """A sample's labels as written and, if our own program wrote it, the labels that it ignores.

    Raises:
        ValueError: it has none where the rule says, or they cannot be read.
    """
    if rule.suffix not in members:
        raise ValueError(f"no member {rule.suffix} with its labels")
    content = content_of(data, members[rule.suffix])
    if rule.field:
        entry = _json(content)
        if rule.field not in entry:
            near = did_you_mean(rule.field, entry)
            raise ValueError(f"its JSON has no field '{rule.field}', as --labels-from says{near}")
        # Our own tars name the classes that are neither positive nor negative beside the labels.
        return entry[rule.field], entry.get("ignored") if rule.field == "labels" else None
    if rule.suffix == ".cls":
        text = content.decode("utf-8-sig").strip()
        if not text:
            raise ValueError("its .cls is empty")
        return text, None
    try:
        target = decode_array(content)
    except Exception as error:  # numpy raises ValueError, EOFError, SyntaxError … for a damaged header
        raise ValueError(f"its {rule.suffix} is not an array without pickled objects ({error})") from None
    if not isinstance(target, np.ndarray) or target.ndim > 1 or target.dtype.kind not in "biufU":
        raise ValueError(f"its {rule.suffix} is neither a vector nor a class")
    return target.tolist(), None


def content_of(data: mmap.mmap, member: TarMember) -> bytes:
    """The bytes of a member."""
    return data[member.offset : member.offset + member.length]


@contextmanager
def open_tar(path: Path) -> Iterator[mmap.mmap]:
    """A tar in memory as the system needs it; an empty file is refused. Raises BadInputError."""
    with open(path, "rb", opener=regular) as file:
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


def _sample(
    data: mmap.mmap,
    key: str,
    members: Mapping[str, TarMember],
    rule: LabelRule,
    decode: bool,
    on_image: Callable[[str, bytes], None] | None,
) -> dict[str, Any]:
    # Beside a JPEG a picture of another kind is a mask or a depth map.
    images = [suffix for suffix in members if suffix.endswith(_JPEG_SUFFIXES)]
    images = images or [suffix for suffix in members if suffix.endswith(_IMAGE_SUFFIXES)]
    if len(images) != 1:
        raise ValueError(f"{len(images) or 'no'} members are images, expected one: {', '.join(members)}")
    member = members[images[0]]
    content = content_of(data, member)
    if on_image is not None:
        on_image(key, content)
    width, height = _size(content, decode)
    value, left_out = label_values(data, members, rule)
    named = _named(data, members) if rule.suffix == TARGET_SUFFIX else None
    return {
        "key": key,
        "offset": member.offset,
        "length": member.length,
        "crc32": crc32(content),
        "width": width,
        "height": height,
        "value": value,
        **({} if left_out is None else {"left_out": left_out}),
        **({} if named is None else {"named": named}),
        "objects": _objects(data, members),
    }


def _row(sample: Mapping[str, Any], reading: LabelReading, index: Mapping[str, int]) -> dict[str, Any]:
    labels = reading.read(sample["value"])
    if "left_out" in sample:
        labels = Labels(labels.positives, (*labels.ignored, *reading.read(sample["left_out"]).positives))
    positives, ignored = (_indices(part, index) for part in (labels.positives, labels.ignored))
    if "named" in sample and is_known(sample, index):
        shown, ignored = (sorted(index[name] for name in sample["named"][part]) for part in ("labels", "ignored"))
        if shown != positives:
            names = list(index)
            raise ValueError(
                f"its JSON names {', '.join(sample['named']['labels']) or 'no class'}, and by the list of classes its "
                f"vector shows {', '.join(names[k] for k in positives) or 'none'}; give the list in the vectors' order"
            )
    if both := set(positives) & set(ignored):
        raise ValueError(f"class {min(both)} is both positive and ignored")
    known = is_known(sample, index)
    objects = [{"class_index": index[item["class"]], **item} for item in sample["objects"]] if known else []
    for item in objects:
        del item["class"]
    return {name: sample[name] for name in _PLACE} | {"positives": positives, "ignored": ignored, "objects": objects}


def is_known(sample: Mapping[str, Any], classes: Container[str]) -> bool:
    """Whether all the names that our own JSON has beside a sample's labels are in the list of classes."""
    names = [item["class"] for item in sample.get("objects", ())]
    names += [name for part in sample.get("named", {}).values() for name in part]
    return all(isinstance(name, str) and name in classes for name in names)


def loses_names(sample: Mapping[str, Any], classes: Container[str]) -> bool:
    """Whether a sample has boxes or ignored labels that are left out, because it names other classes than the list."""
    left = sample.get("objects") or sample.get("named", {}).get("ignored")
    return bool(left) and not is_known(sample, classes)


def _size(content: bytes, decode: bool) -> tuple[int, int]:
    """Width and height of an image, upright."""
    header = check_jpeg(content, decode=decode) if content.startswith(JPEG_START) else None
    return check_whole(content) if header is None else header.upright


def _indices(labels: Sequence[Label], index: Mapping[str, int]) -> list[int]:
    found = set()
    for label in labels:
        number = index.get(label, -1) if isinstance(label, str) else label
        if not 0 <= number < len(index):
            raise ValueError(f"unknown class {label!r}; there are {len(index)}, name them all with --classes FILE")
        found.add(number)
    return sorted(found)


def _objects(data: mmap.mmap, members: Mapping[str, TarMember]) -> list[dict[str, Any]]:
    """The objects that our own JSON lists; other programs have no such list, or a different one."""
    if META_SUFFIX not in members:
        return []
    try:
        return [
            {
                "class": entry["class"],
                "box": [float(value) for value in entry["box"]],
                "area": float(entry["area"]),
                **{flag: entry[flag] for flag in _OBJECT_FLAGS},
            }
            for entry in _json(content_of(data, members[META_SUFFIX]))["objects"]
        ]
    except (KeyError, TypeError, ValueError):
        return []


def _named(data: mmap.mmap, members: Mapping[str, TarMember]) -> dict[str, list[str]] | None:
    """The names of the classes that are positive and ignored, by our own JSON, which has them beside a vector."""
    if META_SUFFIX not in members:
        return None
    try:
        entry = _json(content_of(data, members[META_SUFFIX]))
    except ValueError:
        return None
    parts = {part: entry.get(part) for part in ("labels", "ignored")}
    if "objects" not in entry or not all(isinstance(names, list) for names in parts.values()):
        return None
    return {part: [str(name) for name in names or ()] for part, names in parts.items()}


def _json(content: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(content)
    except ValueError as error:
        raise ValueError(f"its JSON cannot be read ({error})") from None
    if not isinstance(entry, dict):
        raise ValueError("its JSON is not an object with fields")
    return entry
