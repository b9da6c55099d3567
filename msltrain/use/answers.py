"""Where predictions go: printed as they come, or kept in a file that a second run goes on with.

A file is written in two steps. Each process adds its answers to a part beside it, ``NAME.part0``, ``NAME.part1`` …,
JSON lines under a header that says what was asked. When every image is answered, the first process puts the parts in
order, writes the file in its format, and removes them. However a run ends, its parts stay, and the next one asks for
what they lack, on as many processes as it likes.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import IO, Any

from msldata.errors import UserError
from msldata.storage import clear_local_errors
from msltrain.use.output_formats import Table, write_answers
from msltrain.use.predict import ImagePrediction


class AnswerFile:
    """The answers of one process, and at the end the file with those of all.

    Args:
        out: the file to write.
        kind: its format, one of ``output_formats.FORMATS``.
        asked: what decides the answers: the model, its thresholds, the options.
        rank: of this process.
        decimal_comma: how numbers are written in CSV.

    Attributes:
        answered: names of the images that are answered, by any process of any run.

    Raises:
        UserError: another process writes this file, or its parts answer another question.
        StorageError: the place cannot be written.
    """

    def __init__(self, out: Path, kind: str, asked: Mapping[str, Any], rank: int, *, decimal_comma: bool = False):
        self._out, self._kind = out, kind
        self._table = Table(decimal_comma, asked.get("classes", ()), asked.get("keep_mask") is not None)
        self._header = (json.dumps({"asked": asked}, sort_keys=True) + "\n").encode()
        with clear_local_errors(str(out)):
            out.parent.mkdir(parents=True, exist_ok=True)
            self._part: IO[bytes] = open(_part(out, rank), "ab")  # noqa: SIM115 (held until `close`)
        try:
            fcntl.flock(self._part, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{out}: another process writes this file; wait for it, or give another --out") from None
        self.answered = {json.loads(line)["file"] for part in self._parts() for _, line in self._lines(part)}

    def begin(self) -> None:
        """Make ready for `add`, once every process has read what is answered."""
        part = Path(self._part.name)
        whole = sum(len(line) for _, line in self._lines(part))
        with clear_local_errors(self._part.name):
            if whole:
                self._part.truncate(len(self._header) + whole)  # a killed run may leave half a line
            else:
                self._part.truncate(0)
                self._part.write(self._header)
                self._part.flush()

    def add(self, answers: Iterable[ImagePrediction]) -> None:
        """Keep these, whatever happens next."""
        with clear_local_errors(self._part.name):
            self._part.writelines(json.dumps(asdict(answer)).encode() + b"\n" for answer in answers)
            self._part.flush()

    def finish(self, answers: Iterable[ImagePrediction]) -> None:
        """Write the file, with these of `in_order`. The first process does it, when all are done.

        Raises:
            StorageError: it cannot be written; the parts stay.
        """
        written = self._out.with_name(f"{self._out.name}.unfinished")
        with clear_local_errors(str(self._out)):
            with open(written, "wb") as file:
                write_answers(answers, self._kind, file, self._table)
                os.fsync(file.fileno())
            os.replace(written, self._out)
            for part in self._parts():
                part.unlink()

    def in_order(self, names: Sequence[str]) -> Iterator[ImagePrediction]:
        """The answers to the images of these names, one in memory at a time."""
        parts = self._parts()
        place_of: dict[str, tuple[int, int]] = {}
        for number, part in enumerate(parts):
            place_of.update((json.loads(line)["file"], (number, start)) for start, line in self._lines(part))
        with ExitStack() as stack:
            files = [stack.enter_context(open(part, "rb")) for part in parts]
            for name in names:
                number, start = place_of[name]
                files[number].seek(start)
                yield _answer(json.loads(files[number].readline()))

    def close(self) -> None:
        """Let go of the part, which stays if it holds answers and the file was not finished."""
        part = Path(self._part.name)
        if part.exists() and not any(self._lines(part)):
            part.unlink()
        with suppress(OSError):  # a full disk, which `add` has told of: what it could not write would be written here
            self._part.close()

    def _parts(self) -> list[Path]:
        """Those of all processes, by rank."""
        pattern = re.compile(re.escape(self._out.name) + r"\.part(\d{1,6})")
        found = [
            (int(match[1]), file) for file in self._out.parent.iterdir() if (match := pattern.fullmatch(file.name))
        ]
        return [file for _, file in sorted(found)]

    def _lines(self, part: Path) -> Iterator[tuple[int, bytes]]:
        """(where it starts, line) of every whole answer in a part."""
        with open(part, "rb") as file:
            header = file.readline()
            if header != self._header and header.endswith(b"\n"):
                raise UserError(
                    f"{part}: a part of {self._out.name} that another model or other options began; give those again "
                    "to go on, delete it to start over, or give another --out"
                )
            start = len(header)
            for line in file:
                if line.endswith(b"\n"):
                    yield start, line
                start += len(line)


_TUPLES = ("predicted", "masked_predicted", "deviations", "thresholds")


def _answer(content: dict[str, Any]) -> ImagePrediction:
    for name in _TUPLES:
        content[name] = tuple(content[name])
    for name in ("scores", "masked_scores"):
        content[name] = tuple((label, score) for label, score in content[name])
    return ImagePrediction(**{field.name: content[field.name] for field in fields(ImagePrediction)})


def _part(out: Path, rank: int) -> Path:
    return out.with_name(f"{out.name}.part{rank}")
