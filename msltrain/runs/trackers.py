"""TensorBoard, Weights & Biases and MLflow: the rows of ``metrics.jsonl`` sent to other places too."""

from __future__ import annotations

import hashlib
import logging
import netrc
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from msldata.errors import UserError, first_line
from msltrain.config import TrainConfig

_log = logging.getLogger(__name__)

TENSORBOARD_FOLDER = "tensorboard"
_REFUSED = re.compile(r"\b40[13]\b|UNAUTHENTICATED|PERMISSION_DENIED|[Cc]redential")
_MLFLOW_KEYS = "MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"


class Tracker(Protocol):
    """Somewhere that rows go to."""

    def add(self, row: Mapping[str, Any]) -> None:
        """Log a row with a ``step``; its other numbers are plotted over it."""

    def close(self) -> None:
        """Write what is still buffered."""


def check_trackers(config: TrainConfig) -> None:
    """Raise UserError when a package that the config asks for is missing, or the key it needs."""
    for wanted, field, package in (
        (config.run.tensorboard, "run.tensorboard=true", "tensorboard"),
        (config.run.wandb, f"run.wandb={config.run.wandb}", "wandb"),
        (config.run.mlflow, f"run.mlflow={config.run.mlflow}", "mlflow"),
    ):
        if wanted and not _installed(package):
            raise UserError(f"{field} needs the package {package}: pip install 'msltrain[{package}]'")
    if config.run.wandb and not _has_wandb_key():
        raise UserError(
            f"run.wandb={config.run.wandb} needs a key of Weights & Biases; run `wandb login` once, or set "
            "WANDB_API_KEY, or WANDB_MODE=offline"
        )
    if config.run.mlflow:
        _check_mlflow(config.run.mlflow)


def open_trackers(config: TrainConfig, folder: Path, *, place: str, step: int) -> list[Tracker]:
    """Those that ``config.run`` names, for a run at ``place`` that starts or goes on at ``step``.

    None of them ends a training: what fails is said once, and the tracker is left alone from then on.
    """
    trackers: list[Tracker] = []
    if config.run.tensorboard:
        trackers.append(_Harmless("TensorBoard", lambda: _TensorBoard(folder / TENSORBOARD_FOLDER, step)))
    if config.run.wandb:
        trackers.append(_Harmless("Weights & Biases", lambda: _WandB(config, folder, place)))
    if config.run.mlflow:
        trackers.append(_Harmless("MLflow", lambda: _MLflow(config, place)))
    return trackers


class _Harmless:
    """A tracker whose failures do not matter to the run; ``metrics.jsonl`` has every row."""

    def __init__(self, name: str, make: Callable[[], Tracker]):
        self._name = name
        self._tracker: Tracker | None = None
        self._try(lambda: setattr(self, "_tracker", make()))

    def add(self, row: Mapping[str, Any]) -> None:
        if (tracker := self._tracker) is not None:
            self._try(lambda: tracker.add(row))

    def close(self) -> None:
        if (tracker := self._tracker) is not None:
            self._try(tracker.close)

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # whatever such a library raises
            self._tracker = None
            _log.warning(
                "%s failed and gets no more rows of this run (%s: %s); metrics.jsonl has them all",
                *(self._name, type(error).__name__, error),
            )


class _TensorBoard:
    def __init__(self, folder: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        # What a killed run logged after its checkpoint is repeated, and must not be shown twice.
        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def add(self, row: Mapping[str, Any]) -> None:
        for name, value in _numbers(row).items():
            self._writer.add_scalar(name, value, row["step"])
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _WandB:
    def __init__(self, config: TrainConfig, folder: Path, place: str):
        import wandb

        self._run = wandb.init(
            project=config.run.wandb,
            name=place.rstrip("/").rpartition("/")[2],
            # The same for every start of a run, so that it continues as one curve.
            id=_digest(place),
            resume="allow",
            dir=str(folder),
            config=asdict(config),
        )

    def add(self, row: Mapping[str, Any]) -> None:
        self._run.log(_numbers(row), step=row["step"])

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    _PLACE = "msltrain.place"
    """Tag by which a run is found again, so that it continues as one curve."""

    def __init__(self, config: TrainConfig, place: str):
        self._client = _mlflow_client()
        name = config.run.mlflow
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found is not None else self._client.create_experiment(name)
        before = self._client.search_runs(
            [experiment], filter_string=f"tags.`{self._PLACE}` = '{_digest(place)}'", max_results=1
        )
        self._last: dict[str, int] = {}
        if before:
            self._run = before[0].info.run_id
            # What a killed run logged after its checkpoint is repeated, and must not be shown twice.
            for metric in before[0].data.metrics:
                history = self._client.get_metric_history(self._run, metric)
                self._last[metric] = max((point.step for point in history), default=-1)
            self._client.update_run(self._run, status="RUNNING")
            return
        title = place.rstrip("/").rpartition("/")[2]
        run = self._client.create_run(experiment, run_name=title, tags={self._PLACE: _digest(place)})
        self._run = run.info.run_id
        for section, values in asdict(config).items():
            for field, value in values.items() if isinstance(values, dict) else [("", values)]:
                # An older server takes 500 characters of a value.
                self._client.log_param(self._run, f"{section}.{field}".rstrip("."), str(value)[:500])

    def add(self, row: Mapping[str, Any]) -> None:
        from mlflow.entities import Metric

        now, step = int(1000 * time.time()), row["step"]
        metrics = [
            Metric(name, float(value), now, step)
            for name, value in _numbers(row).items()
            if step > self._last.get(name, -1)
        ]
        if metrics:
            self._client.log_batch(self._run, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self._run)


def _mlflow_client() -> Any:
    """A client that gives a dead server up within seconds, where the environment does not say otherwise."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    from mlflow import MlflowClient

    return MlflowClient()


def _check_mlflow(name: str) -> None:
    """Raise UserError where MLflow refuses, or cannot work as it is set up; a server away now may be there later."""
    place = os.environ.get("MLFLOW_TRACKING_URI", "")
    try:
        _mlflow_client().get_experiment_by_name(name)
    except Exception as error:  # its stores and the clients below them have dozens of types
        reason = first_line(error)[:200]
        if _REFUSED.search(str(error)):
            token = "DATABRICKS_HOST and DATABRICKS_TOKEN" if place.startswith("databricks") else _MLFLOW_KEYS
            raise UserError(f"run.mlflow={name}: {place} wants credentials ({reason}); set {token}") from None
        if not place.startswith("http"):
            raise UserError(
                f"run.mlflow={name}: {reason}; set MLFLOW_TRACKING_URI to the address of a server, or "
                "`pip install mlflow` for a store on this machine"
            ) from None


def _digest(place: str) -> str:
    return hashlib.sha256(place.encode()).hexdigest()[:16]


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name != "step" and isinstance(value, (int, float))}


def _has_wandb_key() -> bool:
    """Whether wandb will find a key, or needs none; it would ask for one, or fail, when the run has begun."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    for file in filter(None, (os.environ.get("NETRC"), "~/.netrc", "~/_netrc")):
        try:
            if netrc.netrc(Path(file).expanduser()).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def _installed(package: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(package) is not None
