"""One job of a grid: train a run with one seed and measure it, or draw the curves of one seed's models.

A job is plain data. It leaves files, each written as a whole, and makes only the missing ones, so it can be stopped
anywhere and repeated.
"""

from __future__ import annotations

import functools
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from msldata.errors import UserError
from msldata.storage import LocalStorage
from msltrain.grids.plan import LAST, Run
from msltrain.robustness.study import PREDICTIONS, RECALIBRATED
from msltrain.runs.run_places import WHOLE

if TYPE_CHECKING:
    from msltrain.measures.predictions import Origin

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, done, in all)."""
CURVES_NAME = "curves.json"
BATCH_SIZE = 64
"""Of evaluations."""
_LOCK_NAME = ".job.lock"
"""Of a whole job; not that of the training in it, which locks the same folder while it runs."""
_PATIENCE_S = 60
"""How long to wait for another process in the same folder: one whose parent was killed saves its state and ends."""


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """One run with one seed."""

    run: Run
    seed: int
    folder: Path
    """The run folder; ``predictions/CHECKPOINT-CONDITION.parquet`` in it is what was measured."""
    needs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.run.name} seed {self.seed}"

    @property
    def log(self) -> Path:
        return self.folder / "run.log"

    @property
    def files(self) -> list[Path]:
        """The predictions that the job leaves."""
        return [
            predictions_file(self.folder, checkpoint, condition)
            for checkpoint in self.run.checkpoints
            for condition, _ in self.run.test.conditions
        ]

    @property
    def is_finished(self) -> bool:
        return all(is_whole(file) for file in self.files)

    def perform(self, progress: Progress) -> None:
        """Continue the training, then predict. Errors are those of `train` and `evaluate`."""
        from msltrain.training.display import TrainingDisplay
        from msltrain.training.events import EpochEvent, Event, StepEvent
        from msltrain.training.trainer import train

        config = replace(self.run.config, run=replace(self.run.config.run, seed=self.seed))
        with TrainingDisplay(*_consoles()) as display:

            def show(event: Event) -> None:
                display.show(event)
                if isinstance(event, StepEvent | EpochEvent):
                    progress("training", event.step, getattr(event, "num_steps", 0) or event.step)

            with _sigterm_counts_once():
                train(config, run_dir=self.folder, resume="auto", on_event=show)
        for number, checkpoint in enumerate(self.run.checkpoints):
            for condition, keep_masks in self.run.test.conditions:
                progress("measuring", number, len(self.run.checkpoints))
                self._measure(checkpoint, condition, keep_masks)

    def _measure(self, checkpoint: str, condition: str, keep_masks: str | None) -> None:
        from msltrain.evaluation.evaluate import evaluate
        from msltrain.measures.predictions import read_predictions, write_predictions
        from msltrain.measures.summary import measure

        file = predictions_file(self.folder, checkpoint, condition)
        if is_whole(file):
            return
        place = self.folder / "checkpoints" / checkpoint
        last = predictions_file(self.folder, LAST, condition)
        if checkpoint != LAST and _weights(place) == _weights(place.with_name(LAST)):
            found = read_predictions(last)  # the last epoch was the best: the same weights
            found = replace(found, origin=replace(found.origin, checkpoint=str(place)))
            write_predictions(found, file)
        else:
            masks = [] if keep_masks is None else [keep_masks]
            found = evaluate(place, self.run.test.shards, keep_masks=masks, out=file, batch_size=BATCH_SIZE)
        summary = measured_file(file)
        LocalStorage(summary.parent).put(summary.name, measure(found).to_json().encode())


@dataclass(frozen=True, kw_only=True)
class StudyJob:
    """The curves over the hidden share for the models of one seed (Fig. 3)."""

    grid: str
    seed: int
    models: tuple[tuple[str, Path], ...]
    """(name, run folder); the baseline first; it is shown once more with BatchNorm's statistics measured anew."""
    shards: str
    keep_masks: tuple[str, ...]
    """Held-out keep masks."""
    recalibration: tuple[str, tuple[str, ...]]
    """Training shards and keep masks for measuring BatchNorm's statistics."""
    folder: Path
    needs: tuple[str, ...]
    """Names of the jobs that train the models."""

    @property
    def name(self) -> str:
        return f"{self.grid} curves seed {self.seed}"

    @property
    def log(self) -> Path:
        return self.folder / "study.log"

    @property
    def result(self) -> Path:
        """The curves, as `msltrain.robustness.curves` writes them."""
        return self.folder / CURVES_NAME

    @property
    def is_finished(self) -> bool:
        from msltrain.robustness.curves import read_curves

        try:
            is_drawn = bool(read_curves(self.result.read_bytes()).cells)
        except (OSError, ValueError):  # not there, or damaged: then it is drawn again
            return False
        return is_drawn and not self._of_other_weights()

    def _of_other_weights(self) -> list[Path]:
        """Folders of predictions that other weights made than those the models have now, which were trained anew since.

        A study lets only one model's into a folder, so one file tells."""
        found = []
        for name, path in self.models:
            for folder in (self.folder / PREDICTIONS / name, self.folder / PREDICTIONS / f"{name}{RECALIBRATED}"):
                origin = origin_of_file(folder / f"{WHOLE}.parquet")
                with suppress(UserError, OSError):  # nothing tells; a damaged checkpoint is said when it is used
                    if origin is not None and origin.checkpoint_sha256 != _weights(path):
                        found.append(folder)
        return found

    def perform(self, progress: Progress) -> None:
        """Predict behind holes of every size, once per model."""
        from msltrain.robustness.curves import compute_curves
        from msltrain.robustness.run import Recalibration, Study, run_study

        @contextmanager
        def show(model: str) -> Iterator[Callable[[int, int], None]]:
            yield lambda done, total: progress(model, done, total)

        for folder in self._of_other_weights():
            self.result.unlink(missing_ok=True)  # first, or a job that is killed now would count as finished
            shutil.rmtree(folder)
        shards, keep_masks = self.recalibration
        study = Study(
            models=tuple((name, str(path)) for name, path in self.models),
            shards=self.shards,
            keep_masks=self.keep_masks,
            recalibration=Recalibration(shards=shards, keep_masks=keep_masks),
        )
        curves = compute_curves(run_study(study, self.folder, batch_size=BATCH_SIZE, progress=show))
        LocalStorage(self.folder).put(self.result.name, curves.to_json().encode())


Job = TrainJob | StudyJob


def predictions_file(folder: Path, checkpoint: str, condition: str) -> Path:
    """Where a run's predictions are."""
    return folder / "predictions" / f"{checkpoint}-{condition}.parquet"


def is_whole(predictions: Path) -> bool:
    """Whether a predictions file is there, can be read, and is of the checkpoint beside it, where that is still there;
    any other is measured again, and costs no other job.
    """
    found = origin_of_file(predictions)
    if found is None:
        return False
    checkpoint = predictions.parent.parent / "checkpoints" / predictions.name.partition("-")[0]
    try:
        return found.checkpoint_sha256 == _weights(checkpoint)
    except (UserError, OSError):
        return True  # nothing tells; a damaged checkpoint is said when it is used


def origin_of_file(predictions: Path) -> Origin | None:
    """What a predictions file says of itself; None where there is none that can be read."""
    try:
        status = predictions.stat()
    except OSError:
        return None
    return _origin(predictions, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=4096)
def _origin(predictions: Path, mtime_ns: int, size: int) -> Origin | None:
    from msltrain.measures.predictions import read_predictions

    try:
        return read_predictions(predictions).origin
    except (UserError, OSError):
        return None


def measured_file(predictions: Path) -> Path:
    """Where the measures of a predictions file are, as `msltrain.measures.summary` writes them."""
    return predictions.with_suffix(".json")


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for this process. Raises UserError when another process does not release it within a minute."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / _LOCK_NAME, "w") as file:
        until = time.monotonic() + _PATIENCE_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise UserError(
                        f"{folder}: another process is working in this folder; let it finish, or stop it first"
                    ) from None
                time.sleep(0.2)
        yield


@contextmanager
def _sigterm_counts_once() -> Iterator[None]:
    """Training reacts to the first SIGTERM by saving; a second one would end it before that. And a second one does
    come: batch systems signal every process, and the parent passes its own signal on.
    """
    # Not SIG_IGN: training leaves a signal that is ignored alone, and would not stop at all.
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _weights(checkpoint: Path) -> str:
    from msltrain.runs.find_checkpoint import open_checkpoint, read_meta

    return read_meta(open_checkpoint(checkpoint))[0]["weights_sha256"]


def _consoles():  # type: ignore[no-untyped-def]
    from msldata.console import err, out

    return out, err
