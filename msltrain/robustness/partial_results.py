"""What a robustness study has computed for a model before its conditions are finished; a killed study continues from
it.

All open conditions of a model are computed in one pass over the images, so none of them is finished before the pass
ends. From time to time each process therefore saves what it has computed since the last time in a separate file. The
next start takes the unbroken run of first samples that these files hold, and continues after them, on any number of
processes.

M samples, K classes.
"""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from msldata.errors import UserError
from msldata.storage import LocalStorage
from msltrain.stream.errors import SampleError

_INDEX = "index"
_COLUMN = "column/"
_SUFFIX = ".npz"


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """Some samples under all open conditions."""

    columns: Mapping[str, np.ndarray]
    """M rows each: ``index``, int64, the position in the stored order of the dataset, and whatever belongs to it."""
    skipped: Mapping[int, SampleError]
    """Damaged samples by that position; they are in no column."""

    @staticmethod
    def concatenate(stretches: Sequence[Stretch]) -> Stretch:
        """The samples of all stretches, in sequence; the stretches have the same columns."""
        names = stretches[0].columns
        return Stretch(
            {name: np.concatenate([stretch.columns[name] for stretch in stretches]) for name in names},
            {index: error for stretch in stretches for index, error in stretch.skipped.items()},
        )

    def until(self, index: int) -> Stretch:
        """The samples before a position, each once, in stored order."""
        index_M, row_M = np.unique(self.columns[_INDEX], return_index=True)
        row_M = row_M[index_M < index]
        columns = {name: column[row_M] for name, column in self.columns.items()}
        return Stretch(columns, {at: error for at, error in self.skipped.items() if at < index})


class Unfinished:
    """A folder of stretches.

    Args:
        folder: it need not exist.
        identity: what the study is, as plain data; stretches of another study are refused.
        nothing: the columns, without any rows. Stretches that lack one of them are useless and skipped.
    """

    def __init__(self, folder: Path, identity: Mapping[str, object], nothing: Stretch):
        self._folder, self._nothing = folder, nothing
        self._identity = json.dumps(identity)

    def read(self) -> Stretch:
        """Everything that was computed, in any order, some samples perhaps twice; damaged files are ignored.

        Raises:
            UserError: it is of another study.
        """
        stretches = [self._decode(file) for file in sorted(self._folder.glob(f"*{_SUFFIX}"))]
        return Stretch.concatenate([self._nothing, *(one for one in stretches if one is not None)])

    def write(self, stretch: Stretch) -> None:
        """Save a stretch, unless it has no samples."""
        index_M = stretch.columns[_INDEX]
        if not len(index_M):
            return
        skipped = {
            index: [error.dataset, error.shard, error.key, error.offset, error.reason]
            for index, error in stretch.skipped.items()
        }
        data = io.BytesIO()
        np.savez(
            data,
            allow_pickle=False,
            identity=np.array(self._identity),
            skipped=np.array(json.dumps(skipped)),
            **{f"{_COLUMN}{name}": column for name, column in stretch.columns.items()},
        )
        LocalStorage(self._folder).put(f"{index_M[0]:010d}-{len(index_M)}{_SUFFIX}", data.getvalue())

    def delete(self) -> None:
        """Delete all stretches."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _decode(self, file: Path) -> Stretch | None:
        try:
            with np.load(file, allow_pickle=False) as content:
                if not all(f"{_COLUMN}{name}" in content for name in self._nothing.columns):
                    return None
                identity, skipped = str(content["identity"]), json.loads(str(content["skipped"]))
                columns = {name: content[f"{_COLUMN}{name}"] for name in self._nothing.columns}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        if identity != self._identity:
            before, now = json.loads(identity), json.loads(self._identity)
            what = next(name for name in now if before.get(name) != now[name])
            raise UserError(
                f"{self._folder}: a study began here whose {what} is {before.get(what)}, that of this study "
                f"{now[what]}; choose another --out, or delete the folder"
            )
        return Stretch(columns, {int(index): SampleError(*error) for index, error in skipped.items()})
