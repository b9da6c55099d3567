"""The run folder: what a run was given, where it ran, and what it measured.

``config.json``       the whole config
``datasets.json``     which shards, by fingerprint
``environment.json``  versions, digest of the code, machine and command of every start
``metrics.jsonl``     a line per log interval and per validation
``skipped.jsonl``     a line per damaged sample that was skipped (``stream.on_sample_error=skip``); absent if none was
``tensorboard/``      with ``run.tensorboard``
``checkpoints/``      ``last``, ``best`` on the validation split, ``epoch-0001`` … with ``run.keep``, ``failed`` after a
                      loss that was not finite; see `msltrain.runs.checkpoint`

The folder may lie in object storage (`msltrain.runs.mirror`).
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msldata.console import without_secrets
from msldata.contract.manifest import Manifest
from msldata.errors import StorageError, UserError, counted
from msldata.storage import LocalStorage, clear_local_errors, open_storage
from msldata.storage.lock import Claim, own_folder
from msltrain.config import TrainConfig, differences, to_json
from msltrain.runs.code import code_identity
from msltrain.runs.find_checkpoint import BEST, CHECKPOINTS, FAILED, LAST, check_unused, holds_run
from msltrain.runs.mirror import RunMirror
from msltrain.runs.recorded import CONFIG_NAME, read_config
from msltrain.runs.run_places import run_folder
from msltrain.runs.trackers import Tracker, open_trackers
from msltrain.stream.errors import SampleError
from msltrain.stream.reading.request import note_once
from msltrain.typed_values import decode

if TYPE_CHECKING:
    from msltrain.hosts.distributed import Ranks

DATASETS_NAME = "datasets.json"
EARLIER = "earlier"
"""The role of shards that the first weights were trained on, by the runs that they came from."""
ENVIRONMENT_NAME = "environment.json"
METRICS_NAME = "metrics.jsonl"
SKIPPED_NAME = "skipped.jsonl"

MAY_DIFFER = (
    "data.train",
    "data.validation",
    "data.keep_masks",
    "stream.num_threads",
    "stream.process",
    "stream.num_buffers",
    "stream.read_ahead_mb",
    "stream.cache",
    "stream.cache_limit_gb",
    "stream.ram_cache_gb",
    "stream.on_sample_error",
    "stream.max_skipped",
    "run.shard_weights",
    "run.log_every",
    "run.save_every",
    "run.keep",
    "run.tensorboard",
    "run.wandb",
    "run.mlflow",
)
"""Fields that change nothing a run computes, so that a continued run may change them: where the same shards are now
(their fingerprints are compared), how fast they are read, what happens at a damaged sample, where the weights are, how
often to log."""

OTHER_DATA = "other data"
"""How a change of the data of a role is called."""
_PACKAGES = ("msltrain", "torch", "torchvision", "timm", "numpy", "pyarrow", "obstore", "simplejpeg", "safetensors")


@dataclass(frozen=True, kw_only=True)
class DatasetIdentity:
    """Which dataset was read: its fingerprint is a hash of its samples and labels."""

    location: str
    dataset: str
    split: str
    num_samples: int
    fingerprint: str

    def __str__(self) -> str:
        return f"{self.location} ({counted(self.num_samples, 'sample')}, fingerprint {self.fingerprint[:12]}…)"

    @classmethod
    def of(cls, location: str, manifest: Manifest) -> DatasetIdentity:
        return cls(
            location=without_secrets(location),
            dataset=manifest.dataset,
            split=manifest.split,
            num_samples=manifest.num_samples,
            fingerprint=manifest.fingerprint,
        )


class RunFolder:
    """A run folder that was opened for this run; a context manager.

    Args:
        location: a folder, or the URL of one in object storage; then ``path`` is a temporary copy.

    Attributes:
        location: as the user gave it.
        path: where its files are on this machine.
    """

    def __init__(self, location: str | Path):
        self.location: str | Path = location
        self._mirror: RunMirror | None = None
        self._claim: Claim | None = None
        self._held = ExitStack()
        self._why_kept = ""
        """Why a stopped run lies in its local copy alone."""
        self._trackers: list[Tracker] = []
        self._storage = open_storage(location)
        path = self._storage.path()
        if path is None:
            self.path = Path(tempfile.mkdtemp(prefix="msl-run-"))
            self._mirror = RunMirror(self._storage, self.path)
        else:
            self.location = self.path = path
        self._files = LocalStorage(self.path)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, _: object, error: object, __: object) -> None:
        for tracker in self._trackers:
            tracker.close()
        try:
            if self._mirror is not None:
                self._leave(self._mirror, at_once=isinstance(error, KeyboardInterrupt))
        finally:
            self._held.close()

    def _leave(self, mirror: RunMirror, *, at_once: bool) -> None:
        """Try once more to store what is not stored yet; what cannot be stored is never thrown away."""
        if not mirror.is_stored and self._claim is not None and not at_once and not self._why_kept:
            with suppress(UserError):
                self._store(mirror, self._claim)
        if mirror.is_stored:
            shutil.rmtree(self.path, ignore_errors=True)
            self._claim = None
        else:
            note_once(
                f"{self._why_kept or self.location}: not everything could be stored there. The whole run is in "
                f"{self.path}: copy that folder to its place, or go on with --run {self.path} --resume auto"
            )

    def claim(self) -> None:
        """Own the folder until the end, and download a run that is in object storage.

        Raises:
            UserError: another living training run is writing to it.
            StorageError: the place cannot be read or written.
        """
        self._claim = self._held.enter_context(own_folder(self._storage, "training"))
        if self._mirror is not None:
            self._mirror.fetch(self._claim.list_files())

    def publish(self) -> None:
        """Upload what has changed to object storage; for a local run there is nothing to do. A store that cannot be
        written does not stop the run, which is kept here meanwhile; it is tried again later.

        Raises:
            UserError: another training run has taken the folder over.
        """
        if self._mirror is None or self._claim is None:
            return
        try:
            self._store(self._mirror, self._claim)
        except StorageError as error:
            note_once(f"{error}; training goes on, the run is kept in {self.path} until it can be stored")

    def publish_stopped(self) -> Path | None:
        """As `publish`, at a stop: the local copy of the run if its place cannot be written, else None.

        It is not tried again when the folder is left: then the copy that a message has named would be gone.
        """
        if self._mirror is not None and self._claim is not None:
            try:
                self._store(self._mirror, self._claim)
            except StorageError as error:
                self._why_kept = str(error)
                return self.path
        return None

    def publish_all(self) -> None:
        """Upload what has changed at the end of a run. Raises StorageError if that fails."""
        if self._mirror is not None and self._claim is not None:
            self._store(self._mirror, self._claim)

    @staticmethod
    def _store(mirror: RunMirror, claim: Claim) -> None:
        claim.check()
        mirror.push()

    def place(self, *names: str) -> str | Path:
        """A file or folder of the run, at the place where the user can find it."""
        if self._mirror is None or (self._claim is not None and not self._mirror.is_stored):
            return self.path.joinpath(*names)
        assert isinstance(self.location, str)
        return "/".join((self.location.rstrip("/"), *names))

    @property
    def last(self) -> Path:
        """The checkpoint to continue from."""
        return self.path / CHECKPOINTS / LAST

    @property
    def best(self) -> Path:
        """The checkpoint with the highest validation mAP."""
        return self.path / CHECKPOINTS / BEST

    @property
    def failed(self) -> Path:
        """The state after a loss that was not finite."""
        return self.path / CHECKPOINTS / FAILED

    @property
    def is_used(self) -> bool:
        """Whether it holds a run that has reached a checkpoint."""
        return holds_run(self.path)

    def keep_last(self, epoch: int, num_kept: int) -> None:
        """Keep the last checkpoint as that of ``epoch``, and only the latest ``num_kept`` epochs."""
        if num_kept:
            from msltrain.runs.checkpoint import copy_checkpoint

            copy_checkpoint(self.last, self.path / CHECKPOINTS / f"epoch-{epoch + 1:04d}")
            for old in sorted((self.path / CHECKPOINTS).glob("epoch-*"))[:-num_kept]:
                shutil.rmtree(old)

    def check_unused(self) -> None:
        """Raise UserError if the folder holds a run already."""
        check_unused(self.path, self.location)

    def start(self, config: TrainConfig, datasets: Mapping[str, list[DatasetIdentity]]) -> None:
        """Record what the run was given. Raises StorageError if that is impossible."""
        earlier = _learnt_from(config.model.weights) if config.model.weights else []
        self._files.put(DATASETS_NAME, _described({**datasets, EARLIER: earlier} if earlier else datasets))
        self._files.put(CONFIG_NAME, to_json(config).encode())

    def changes(self, config: TrainConfig, datasets: Mapping[str, list[DatasetIdentity]]) -> list[str]:
        """The differences that matter from the run in this folder, in words. Raises UserError if there is no run."""
        try:
            stored = read_config(self._files, where=str(self.place(CONFIG_NAME)))
            known = _identities(self._files.read(DATASETS_NAME))
        except FileNotFoundError:
            raise UserError(
                f"{self.location}: there is no run to continue (no {CONFIG_NAME}); start it without --resume, or with "
                "--resume auto"
            ) from None
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{self.place(DATASETS_NAME)}: does not say which data the run had ({error})") from None
        found = changed_settings(stored, config)
        for role in dict.fromkeys(role for role in (*known, *datasets) if role != EARLIER):
            found += changed_data(role, known.get(role, []), datasets.get(role, []))
        return found

    def check_same(self, config: TrainConfig, datasets: Mapping[str, list[DatasetIdentity]]) -> None:
        """Raise UserError unless the run in this folder has this config and these datasets."""
        if changes := self.changes(config, datasets):
            raise another_run(self.location, changes)

    def track(self, config: TrainConfig, step: int) -> None:
        """From now on, also send metrics to the trackers in ``config.run``."""
        self._trackers = open_trackers(config, self.path, place=str(self.location), step=step)

    @property
    def was_changed(self) -> bool:
        """Whether an earlier start continued the run with a change, or nothing tells."""
        starts = self._starts()
        return not starts or any(not isinstance(start, dict) or bool(start.get("changes")) for start in starts)

    def note_start(self, ranks: Ranks, step: int, changes: Sequence[str] = ()) -> None:
        """Append this start (at ``step``, with what was changed before it) to ``environment.json``."""
        import torch

        starts = self._starts()
        starts.append(
            {
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                "from_step": step,
                "changes": list(changes),
                "command": [without_secrets(word) for word in sys.argv],
                "python": platform.python_version(),
                "platform": platform.platform(),
                "packages": {name: package_version(name) for name in _PACKAGES},
                "code": code_identity(),
                "device": torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else "cpu",
                "cuda": torch.version.cuda,
                "world_size": ranks.world_size,
                "num_cpus": os.cpu_count(),
                "num_torch_threads": torch.get_num_threads(),
            }
        )
        self._files.put(ENVIRONMENT_NAME, _json_bytes(starts))

    def other_code(self) -> str:
        """In words, that the run was last begun or continued by other code than this; empty where it was not, or where
        nothing tells. Before `note_start`."""
        starts = self._starts()
        before = starts[-1].get("code") if starts and isinstance(starts[-1], dict) else None
        if not isinstance(before, dict) or before.get("sha256") == code_identity()["sha256"]:
            return ""
        short = [str(one.get("commit") or one.get("sha256"))[:12] for one in (before, code_identity())]
        return f"goes on with other code than it was last trained with ({short[0]} before, {short[1]} now)"

    def _starts(self) -> list[Any]:
        if not self._files.exists(ENVIRONMENT_NAME):
            return []
        try:
            starts = json.loads(self._files.read(ENVIRONMENT_NAME))
        except (ValueError, RecursionError):
            starts = None
        if not isinstance(starts, list):
            raise UserError(
                f"{self.place(ENVIRONMENT_NAME)}: damaged, not the list of the run's starts; move it away and go on"
            )
        return starts

    def keep_metrics_until(self, step: int) -> None:
        """Drop the lines of steps after ``step``: a run that was killed has logged them and will repeat them."""
        if self._files.exists(METRICS_NAME):
            lines = self._files.read(METRICS_NAME).decode(errors="replace").splitlines()
            kept = [line for line in lines if (row := _parsed(line)) is not None and row["step"] <= step]
            self._files.put(METRICS_NAME, "".join(f"{line}\n" for line in kept).encode())

    def add_metrics(self, row: Mapping[str, Any]) -> None:
        """Append one line to ``metrics.jsonl``."""
        with clear_local_errors(str(self.place(METRICS_NAME))):
            with open(self.path / METRICS_NAME, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            for tracker in self._trackers:
                tracker.add(row)

    def add_skipped(self, samples: Iterable[SampleError]) -> int:
        """Note skipped samples in ``skipped.jsonl``, each once; returns how many it lists now."""
        before = self._files.read(SKIPPED_NAME).decode(errors="replace") if self._files.exists(SKIPPED_NAME) else ""
        lines = dict.fromkeys(before.splitlines())
        for sample in samples:
            row = {name: getattr(sample, name) for name in ("dataset", "shard", "key", "offset", "reason")}
            lines[json.dumps(row, ensure_ascii=False)] = None
        text = "".join(f"{line}\n" for line in lines)
        if text != before:
            self._files.put(SKIPPED_NAME, text.encode())
        return len(lines)


def changed_settings(stored: TrainConfig, config: TrainConfig, typed: Mapping[str, str] | None = None) -> list[str]:
    """The settings that a continued run would be another run with, in words.

    Args:
        stored, config: what it was begun with, and what it would be.
        typed: what a user has typed to set a field, such as ``--epochs``, by its name.
    """
    called = typed or {}
    return [
        f"{called.get(name, name)} was {before!r}, is {now!r}"
        for name, (before, now) in differences(stored, config).items()
        if name not in MAY_DIFFER
    ]


def changed_data(role: str, before: Sequence[DatasetIdentity], now: Sequence[DatasetIdentity]) -> list[str]:
    """That the data of a role is other data than before, in words; empty where it is the same."""
    if [entry.fingerprint for entry in before] == [entry.fingerprint for entry in now]:
        return []
    then, here = (", ".join(map(str, those)) or "none" for those in (before, now))
    return [f"{OTHER_DATA} for {role}: then {then}, now {here}, with other samples, labels or classes"]


def another_run(location: str | Path, changes: Sequence[str], typed: Sequence[str] = ()) -> UserError:
    """What to say of a run that is not the one to continue; ``typed`` are the options that make it another one."""
    first = "; first weights belong to a new run" if any("model.weights was" in one for one in changes) else ""
    same = f"leave {' and '.join(typed)} out to go on with it" if typed else "give the same config and data"
    return UserError(
        f"{location}: the run to continue is another one ({'; '.join(changes)}); {same}, or "
        f"start a new run in another folder (--run){first}. --allow-changes continues it all the same"
    )


def training_data(checkpoint: str | Path, role: str = "train") -> list[DatasetIdentity]:
    """The shards that the run of a checkpoint noted, for training or in another role; empty where nothing tells."""
    return _noted(checkpoint).get(role, [])


def _learnt_from(checkpoint: str | Path) -> list[DatasetIdentity]:
    """All shards that a checkpoint has seen: those of its run, and of the runs that its first weights came from."""
    return list(dict.fromkeys(training_data(checkpoint) + training_data(checkpoint, EARLIER)))


def note_data_of_all(checkpoints: Sequence[str | Path], folder: Path) -> None:
    """Note in ``folder``, which is made of these checkpoints' runs, the shards that any of them had, each once."""
    datasets: dict[str, list[DatasetIdentity]] = {}
    for checkpoint in checkpoints:
        for role, identities in _noted(checkpoint).items():
            known = datasets.setdefault(role, [])
            known += [identity for identity in identities if identity not in known]
    if datasets:
        LocalStorage(folder).put(DATASETS_NAME, _described(datasets))


def _noted(checkpoint: str | Path) -> dict[str, list[DatasetIdentity]]:
    if isinstance(checkpoint, str) and "://" in checkpoint:
        run: str | Path = checkpoint.partition("/checkpoints/")[0]
    else:
        run = run_folder(checkpoint)
    try:
        return _identities(open_storage(run).read(DATASETS_NAME))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _described(datasets: Mapping[str, list[DatasetIdentity]]) -> bytes:
    return _json_bytes({role: [asdict(one) for one in identities] for role, identities in datasets.items()})


def _identities(data: bytes) -> dict[str, list[DatasetIdentity]]:
    """What ``datasets.json`` says, by role. Raises ValueError, or what reading something else raises."""
    try:
        return {
            role: [decode(entry, DatasetIdentity, role) for entry in entries]
            for role, entries in json.loads(data).items()
        }
    except UserError as error:
        raise ValueError(str(error)) from None  # whose file it is, the caller says


def _parsed(line: str) -> dict[str, Any] | None:
    """The row, or None for a line cut short by a crash."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def package_version(package: str) -> str | None:
    """The installed version of a distribution; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _json_bytes(content: Any) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
