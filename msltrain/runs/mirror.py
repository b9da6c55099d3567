"""A run folder in object storage: a copy of the local one, from which another machine can continue. Small files are
simply replaced. A checkpoint gets its own folder, ``checkpoints/NAME.STEP``, whose ``meta.json`` is written last:
without it the folder does not count. Only then are the older ones of that name deleted. So whenever the upload is cut
off, a whole checkpoint is there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from msldata.errors import UserError
from msldata.storage import FileInfo, LocalStorage, Storage
from msltrain.runs.find_checkpoint import CHECKPOINTS, META_NAME, read_meta

_STORED = re.compile(rf"{CHECKPOINTS}/(?P<name>[\w-]+)\.(?P<step>\d+)/(?P<file>[^/]+)")
_LEFT_OUT = ("wandb",)
"""Folders that are not mirrored, because they have another destination."""


class RunMirror:
    """Files of ``folder`` in ``storage``.

    Args:
        storage: the run's remote storage.
        folder: its local copy.
    """

    def __init__(self, storage: Storage, folder: Path):
        self.storage = storage
        self.folder = folder
        self._uploaded: dict[str, bytes | tuple[int, int]] = {}

    def fetch(self, stored: Iterable[FileInfo]) -> None:
        """Download the stored run, if there is one, into the empty local folder, with the newest checkpoint of each
        name.

        Args:
            stored: all files of the run.

        Raises:
            UserError: the description of a checkpoint is damaged, or a name leads out of the folder.
        """
        newest: dict[str, tuple[int, str]] = {}
        """The step and folder of the newest checkpoint of each name."""
        names = [info.name for info in stored if not info.name.startswith(".") and not info.name.endswith("/")]
        if outside := [name for name in names if not {".", ".."}.isdisjoint(name.split("/"))]:
            raise UserError(f"{self.storage.where(outside[0])}: no name of a run's file; remove it")
        for name in names:
            parts = name.split("/")
            found = _STORED.fullmatch(name)
            if found and found["file"] == META_NAME:
                label, step = found["name"], int(found["step"])
            elif parts[0] == CHECKPOINTS and parts[-1] == META_NAME and len(parts) == 3:  # a run that was copied there
                label, step = parts[1], _step(self.storage.child("/".join(parts[:-1])))
            else:
                continue
            newest[label] = max(newest.get(label, (-1, "")), (step, f"{CHECKPOINTS}/{parts[1]}/"))
        for name in names:
            if not name.startswith(f"{CHECKPOINTS}/"):
                self._fetch(name, name)
        for label, (_, place) in newest.items():
            for name in names:
                if name.startswith(place):
                    self._fetch(name, f"{CHECKPOINTS}/{label}/{name.removeprefix(place)}")
        self._uploaded = self._states()

    @property
    def is_stored(self) -> bool:
        """Whether nothing has changed since everything was last stored."""
        return self._uploaded == self._states()

    def push(self) -> None:
        """Store what has changed since the last time. Raises StorageError."""
        for name, state in self._states().items():
            if self._uploaded.get(name) != state:
                if isinstance(state, bytes):
                    self._push_checkpoint(name)
                else:
                    self.storage.put(name, (self.folder / name).read_bytes())
                self._uploaded[name] = state
        self._delete_gone()

    def _states(self) -> dict[str, bytes | tuple[int, int]]:
        """The state of the folder: each checkpoint by its description, each other file by its size and modification
        time."""
        states: dict[str, bytes | tuple[int, int]] = {}
        for path in sorted(self.folder.rglob("*")):
            parts = path.relative_to(self.folder).parts
            if not path.is_file() or parts[0] in _LEFT_OUT or any(part.startswith(".") for part in parts):
                continue
            if parts[0] != CHECKPOINTS:
                states["/".join(parts)] = (path.stat().st_size, path.stat().st_mtime_ns)
            elif parts[-1] == META_NAME:
                states["/".join(parts[:-1])] = path.read_bytes()
        return states

    def _push_checkpoint(self, name: str) -> None:
        files = sorted((self.folder / name).iterdir(), key=lambda file: file.name == META_NAME)  # meta last
        place = f"{name}.{_step(LocalStorage(self.folder / name)):09d}"
        for file in files:
            self.storage.put(f"{place}/{file.name}", file.read_bytes())
        self._delete(lambda stored: f"{CHECKPOINTS}/{stored['name']}" == name, keep=place)

    def _delete_gone(self) -> None:
        """Checkpoints that are no longer kept."""
        gone = [name for name, state in self._uploaded.items() if isinstance(state, bytes)]
        for name in gone:
            if not (self.folder / name).is_dir():
                self._delete(lambda stored, name=name: f"{CHECKPOINTS}/{stored['name']}" == name, keep="")
                del self._uploaded[name]

    def _delete(self, wanted, *, keep: str) -> None:
        for info in sorted(self.storage.list_files(), key=lambda info: not info.name.endswith(META_NAME)):  # meta first
            found = _STORED.fullmatch(info.name)
            if found and wanted(found) and not info.name.startswith(f"{keep}/"):
                self.storage.delete(info.name)

    def _fetch(self, name: str, local: str) -> None:
        path = self.folder / local
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.storage.read(name))


def _step(checkpoint: Storage) -> int:
    return read_meta(checkpoint)[0]["step"]
