"""From run folders to what the report shows: existing predictions are used, missing ones are made."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from msldata.contract.manifest import Manifest
from msldata.errors import UserError, counted
from msldata.storage import open_storage
from msltrain.evaluation.trained_on import trained_behind_notes, trained_on_notes
from msltrain.measures.predictions import Predictions, keep_mask_fingerprints, read_predictions
from msltrain.report.open_runs import RunReport, open_run, read_config
from msltrain.runs.find_checkpoint import CHECKPOINTS, open_checkpoint, read_meta
from msltrain.runs.run_places import WHOLE, default_file, local_test_shards
from msltrain.stream.samples.shardset import open_images

if TYPE_CHECKING:
    from msltrain.evaluation.sweep import Progress

ShowProgress: TypeAlias = "Callable[[str], AbstractContextManager[Progress]]"
"""Opens a progress display with that title."""


@dataclass(frozen=True)
class Gathered:
    """What a report is made of."""

    runs: list[RunReport]
    shards: str | None
    """The test shards: those that were named, or the first run's own."""


def gather_runs(
    run_dirs: Sequence[str | Path],
    names: Sequence[str],
    *,
    shards: str | None = None,
    keep_masks: Sequence[str] = (),
    device: str = "auto",
    progress: ShowProgress,
) -> Gathered:
    """Predictions of every run on whole images and behind each folder of keep masks.

    A file in ``RUN/predictions`` counts if it was made with these weights, shards and keep masks, whatever its name.
    Without ``keep_masks`` the conditions are those that any of the runs was evaluated under.

    Args:
        run_dirs: run or checkpoint folders, the reference first.
        names: one for each.
        shards: test shards; None: those beside the training shards of the first run, where they are on this machine
            and no predictions are of other data. Without any nothing can be evaluated, and the files decide.
        keep_masks: folders, one condition each.
        device: the device for evaluations.
        progress: shows one evaluation.

    Raises:
        UserError: predictions are missing and there are no shards, or the files are of several datasets, or of one that
            was built anew.
        FileNotFoundError: a folder is no run.
    """
    stored = [_Stored.of(run_dir) for run_dir in run_dirs]
    shards = shards or _own_test_shards(stored)
    if keep_masks and shards is None:
        raise UserError("--keep-masks says what to evaluate with, so it needs --data SHARDS as well")
    measured = None if shards is None else open_images(shards)
    fingerprint = _only_dataset(stored) if measured is None else measured.manifest.fingerprint
    wanted: dict[tuple[str, ...], tuple[str, ...]] = {keep_mask_fingerprints([place]): (place,) for place in keep_masks}
    if not wanted:
        wanted = {
            origin.keep_mask_fingerprints: origin.keep_masks
            for run in stored
            for origin in (one.origin for one in run.predictions.values())
            if origin.keep_masks and origin.dataset_fingerprint == fingerprint
        }
    titles = dict(zip(wanted, _short_names(list(wanted.values()))))
    runs = []
    for run, name in zip(stored, names, strict=True):
        files = {}
        for fingerprints, places in {(): (), **wanted}.items():
            condition = titles.get(fingerprints, WHOLE)
            file = run.find(fingerprint, fingerprints)
            if file is None:
                if shards is None:
                    raise run.missing(condition)
                from msltrain.evaluation.evaluate import evaluate

                file = default_file(run.place, shards, places)
                with progress(f"{name}, {condition}") as show:
                    evaluate(run.place, shards, keep_masks=places, out=file, device=device, progress=show)
            files[condition] = file
        given = {titles[fingerprints]: places for fingerprints, places in wanted.items()} if keep_masks else {}
        opened = open_run(run.place, name=name, clean=files.pop(WHOLE), masked=files, keep_masks=given)
        if measured is not None:
            opened = replace(opened, met=tuple(trained_on_notes(run.place, opened.config.data, measured, str(shards))))
        behind = {
            str(place): fingerprint
            for one in opened.masked.values()
            for place, fingerprint in zip(one.origin.keep_masks, one.origin.keep_mask_fingerprints)
        }
        runs.append(replace(opened, met=(*opened.met, *trained_behind_notes(run.place, behind))))
    return Gathered(runs, shards)


def name_of(run_dir: Path) -> str:
    """The name of a run that nobody named: that of its folder; for a checkpoint, its own name too."""
    if run_dir.parent.name == CHECKPOINTS:
        return f"{run_dir.parent.parent.name} {run_dir.name}"
    return run_dir.resolve().name


@dataclass(frozen=True)
class _Stored:
    """The predictions in a run folder."""

    place: Path
    """As the user gave it."""
    sha256: str
    """Digest of the weights; empty where only predictions are left."""
    predictions: dict[Path, Predictions] = field(repr=False)
    """Predictions of whole splits, plain ones before those with averaged views or masks of another seed."""

    @classmethod
    def of(cls, run_dir: str | Path) -> _Stored:
        place = Path(run_dir).expanduser()
        read_config(place)  # is it a run at all?
        try:
            sha256 = read_meta(open_checkpoint(place))[0]["weights_sha256"]
        except FileNotFoundError:
            sha256 = ""
        found = {}
        for file in sorted(default_file(place, "").parent.glob("*.parquet")):
            predictions = read_predictions(file)
            origin = predictions.origin
            if not origin.part and bool(origin.keep_masks) == bool(origin.keep_mask_fingerprints):
                found[file] = predictions
        return cls(place, sha256, dict(sorted(found.items(), key=lambda item: _how_odd(item[1]))))

    def find(self, dataset_fingerprint: str, keep_mask_fingerprints: tuple[str, ...]) -> Path | None:
        """The file with these weights' predictions on that data behind those keep masks."""
        for file, predictions in self.predictions.items():
            origin = predictions.origin
            if (origin.dataset_fingerprint, origin.keep_mask_fingerprints) == (
                dataset_fingerprint,
                keep_mask_fingerprints,
            ) and (not self.sha256 or origin.checkpoint_sha256 == self.sha256):
                return file
        return None

    def missing(self, condition: str) -> UserError:
        """What to do about a missing file."""
        older = any(self.sha256 not in ("", one.origin.checkpoint_sha256) for one in self.predictions.values())
        what = "of its present weights (it has been trained further since)" if older else ""
        return UserError(
            f"{self.place}: no predictions {what + ' ' if what else ''}for '{condition}'; give --data SHARDS to make "
            f"them now, or run `msl evaluate --checkpoint {shlex.quote(str(self.place))} --data SHARDS` first"
        )


def _how_odd(predictions: Predictions) -> tuple[bool, bool]:
    """Sorts what nobody asked anything special of first."""
    return predictions.origin.test_time != "", predictions.origin.seed != 0


def _own_test_shards(stored: Sequence[_Stored]) -> str | None:
    """The test shards on this machine of what the first run was trained on; None where they are not whole, were built
    anew, or some of the predictions are of other data: then the user says which are meant."""
    test = local_test_shards(read_config(stored[0].place).data.train)
    measured_on = {one.origin.dataset_fingerprint for run in stored for one in run.predictions.values()}
    with suppress(UserError, OSError):
        if test and measured_on <= {(manifest := open_images(test).manifest).fingerprint} and _is_whole(test, manifest):
            return test
    return None


def _is_whole(shards: str, manifest: Manifest) -> bool:
    """Whether every tar is there, and as long as it should be."""
    found = {info.name: info.size for info in open_storage(shards).list_files()}
    return all(found.get(name) == num_bytes for name, num_bytes in zip(manifest.shards.name, manifest.shards.num_bytes))


def _only_dataset(stored: Sequence[_Stored]) -> str:
    """Fingerprint of the one dataset that all predictions were made on."""
    found: dict[str, str] = {}
    known: set[frozenset[str]] = set()
    for run in stored:
        for predictions in run.predictions.values():
            origin = predictions.origin
            size = f"{counted(len(predictions.keys), 'photograph')}, {counted(len(predictions.classes), 'class')}"
            found[origin.dataset_fingerprint] = f"{origin.dataset}/{origin.split} ({size})"
            known.add(frozenset(predictions.classes))
    if not found:
        raise stored[0].missing(WHOLE)
    if len(found) > 1:
        raise UserError(
            f"{', '.join(str(run.place) for run in stored)}: their predictions are of several datasets, or of one that "
            f"was built anew in between: {', '.join(found.values())}; "
            + (
                "say which with --data SHARDS"
                if len(known) == 1
                else "models of other classes have no measure in common; `msl serve` shows them side by side"
            )
        )
    return next(iter(found))


def _short_names(places: Sequence[Sequence[str]]) -> list[str]:
    """The ends of the folders' paths, just long enough for all to differ, also from what whole images are called."""
    parts = [[str(place).rstrip("/").split("/") for place in group] for group in places]
    names: list[str] = []
    for depth in range(1, 1 + max((len(path) for group in parts for path in group), default=0)):
        names = ["+".join("-".join(path[-depth:]) for path in group) for group in parts]
        if len(set(names)) == len(names) and WHOLE not in names:
            break
    return [f"{name} masks" if name == WHOLE else name for name in names]
