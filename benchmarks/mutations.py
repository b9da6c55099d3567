"""Files as no program wrote them: what `benchmarks/attack.py` makes of good ones, by chance."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

ODD_TEXTS = (
    *("", " ", "../../x", "/etc/passwd", "nan", "-1", "1e400", "9" * 400, "\x00", "\x1b[31mred", "[/x]", "a" * 70_000),
    *("é", "\u202e", "=1+1", "None", "true", "[]", "{}", "s3://", "file:///dev/zero", "/dev/zero", "a/b/c", "\\", '"'),
    *("'", "\n", "f" * 64, "0.5", "%s", "~", "*", "c:\\x"),
)
ODD_VALUES: tuple[object, ...] = (
    *ODD_TEXTS, None, True, False, 0, 1, -1, 2, 2**31, -(2**31), 2**63, 10**30, 1e308, float("nan"), float("inf"), 0.5,
    [], {}, [[]], [None], [1, [2, [3]]], {"": ""}, ["a"] * 1000, {"a": {"b": {}}},
)  # fmt: skip
ODD_NUMBERS = ("nan", "inf", "-1", "0", "1e9", "1e-300", "99999999999999999999", "0.5", "none", "", "x", "1,2", "true")


def flip_bits(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 3, 20))):
        if changed:
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def cut(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


def without_a_piece(data: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(data) + 1)
    return data[:start] + data[start + chance.choice((1, 4, 100, 5000)) :]


def twice_a_piece(data: bytes, chance: random.Random) -> bytes:
    start, end = sorted(chance.randrange(len(data) + 1) for _ in range(2))
    return data[:end] + data[start:end] * chance.choice((1, 1, 50)) + data[end:]


def other_piece(data: bytes, chance: random.Random) -> bytes:
    start, length = chance.randrange(len(data) + 1), chance.choice((1, 4, 8, 100, 3000))
    piece = chance.choice((bytes(length), b"\xff" * length, chance.randbytes(length)))
    return data[:start] + piece + data[start + length :]


def other_start(data: bytes, chance: random.Random) -> bytes:
    """What begins as something else: a page, a picture, an archive, a pointer of git-lfs."""
    heads = (
        b"<!DOCTYPE html>",
        b"\x89PNG\r\n\x1a\n",
        b"PK\x03\x04",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"\x1f\x8b\x08",
        b"PAR1",
        b"BM",
        b"\x80\x02",
    )
    return chance.choice(heads) + data[chance.choice((0, 8, 100)) :]


def other_number(data: bytes, chance: random.Random) -> bytes:
    """Four or eight bytes become an extreme number, as a forged header has it."""
    width = chance.choice((2, 4, 8))
    value = chance.choice((0, 1, 2 ** (8 * width) - 1, 2 ** (8 * width - 1), 2 ** (8 * width - 1) - 1))
    start = chance.randrange(min(len(data), 400) + 1)
    return data[:start] + value.to_bytes(width, chance.choice(("little", "big"))) + data[start + width :]


BYTES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    flip_bits, flip_bits, cut, without_a_piece, twice_a_piece, other_piece, other_start, other_number,
)  # fmt: skip


def other_json(data: bytes, chance: random.Random) -> bytes:
    """One to three values replaced, left out, moved or named otherwise."""
    content = json.loads(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        places = list(_places(content))
        if not places:
            return json.dumps(chance.choice(ODD_VALUES)).encode()
        holder, name = chance.choice(places)
        action = chance.randrange(6)
        if action == 0:
            del holder[name]
        elif action == 1 and isinstance(holder, list):
            holder.insert(name, holder[name])
        elif action == 1:
            holder[chance.choice(ODD_TEXTS)] = holder.pop(name)
        elif action == 2:
            other, key = chance.choice(places)
            holder[name] = json.loads(json.dumps(other[key]))
        elif action == 3 and isinstance(holder[name], int):
            holder[name] += chance.choice((-1, 1, 2**31))
        else:
            holder[name] = chance.choice(ODD_VALUES)
    return json.dumps(content).encode()


def _places(content: object):
    items = (
        list(content.items())
        if isinstance(content, dict)
        else list(enumerate(content))
        if isinstance(content, list)
        else []
    )
    for name, value in items:
        yield content, name
        yield from _places(value)


def other_json_lines(data: bytes, chance: random.Random) -> bytes:
    lines = data.splitlines()
    number = chance.randrange(len(lines))
    lines[number] = other_json(lines[number], chance)
    return b"\n".join(lines) + b"\n"


def other_text(data: bytes, chance: random.Random) -> bytes:
    """A cell or line replaced, or the whole encoded as some editor does."""
    action = chance.randrange(9)
    text = data.decode("utf-8", "replace")
    if action == 0:
        return text.encode(chance.choice(("utf-16", "utf-8-sig", "utf-32", "latin-1")), "replace")
    if action == 1:
        return text.replace("\n", chance.choice(("\r", "\r\n", "\n\n", "\n\x00"))).encode()
    if action == 2:
        return b""
    marks = [number for number, mark in enumerate(text) if mark in "\n,;<>: /\t"]
    start = chance.choice(marks or [0]) + 1
    end = next((mark for mark in marks if mark >= start), len(text))
    return (text[:start] + chance.choice(ODD_TEXTS) + text[end:]).encode("utf-8", "surrogatepass")


def not_a_file(file: Path, chance: random.Random) -> str:
    """Something else of that name: nothing, a folder, a link to nowhere or to itself, a pipe that nobody fills."""
    file.unlink()
    kind = chance.choice(("nothing", "folder", "dangling link", "loop", "pipe", "zeros", "sparse"))
    if kind == "folder":
        file.mkdir()
    elif kind == "dangling link":
        file.symlink_to("nowhere")
    elif kind == "loop":
        file.symlink_to(file.name)
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "zeros":
        file.symlink_to("/dev/zero")
    elif kind == "sparse":
        file.touch()
        os.truncate(file, 20 << 30)
    return kind


def mutate(file: Path, chance: random.Random, other_files: list[Path]) -> str:
    """Change a file in one way by chance; what was done, in words."""
    data = file.read_bytes()
    structured = {".json": other_json, ".jsonl": other_json_lines}.get(file.suffix)
    if structured is None and file.suffix in (".csv", ".xml", ".txt", ".yaml"):
        structured = other_text
    die = chance.random()
    if die < 0.08:
        return not_a_file(file, chance)
    if die < 0.12 and other_files:
        other = chance.choice(other_files)
        shutil.copyfile(other, file)
        return f"became {other.name}"
    how = structured if structured is not None and die < 0.8 else chance.choice(BYTES)
    changed = how(data, chance)
    file.write_bytes(changed)
    return "unchanged" if changed == data else how.__name__.replace("_", " ")
