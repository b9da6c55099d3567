"""A run that is there already: which command goes on with it, and whether a command means the same run."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import typer

    from msltrain.config import TrainConfig
    from msltrain.runs.run_places import Dataset


OPTIONS: Mapping[str, str] = {
    "optim.num_epochs": "--epochs",
    "stream.batch_size": "--batch-size",
    "optim.lr": "--lr",
    "stream.image_size": "--image-size",
    "model.backbone": "--backbone",
}
"""What a continued run may not have otherwise → the option that sets just this."""
_OF_A_NEW_RUN = ("--weights", "--keep-masks", *OPTIONS.values(), "--set", "--paper-protocol")
"""What says how a run is trained; one that goes on is trained as it was begun."""


def refuse_twice(typed: Mapping[str, Any], settings: Sequence[str]) -> None:
    """Raise UserError where an option and ``--set`` say different things of one field.

    Args:
        typed: the values of options, by the field that they set; None where one was not typed.
        settings: what ``--set`` was given.
    """
    from msldata.errors import UserError

    for setting in settings:
        field, _, value = (part.strip() for part in setting.partition("="))
        said = typed.get(field) if field in OPTIONS else None
        if said is not None and str(said) != value:
            option = OPTIONS[field]
            raise UserError(f"{field} is set twice: {option} {said} and --set {setting}; leave one of them out")


def check_unused(place: str, context: typer.Context, run: str | None, dataset: Dataset | None) -> None:
    """Raise what training would where a local run folder is taken, with the two commands that may be meant.

    Args:
        place: the folder.
        context: of the running command.
        run: what ``--run`` is or would be; None for a series.
        dataset: what is to be trained on, where it is one of the user's own.
    """
    from msldata.commands.program import typed_words
    from msldata.errors import UserError, replaced
    from msldata.storage import open_storage
    from msltrain.runs.find_checkpoint import check_unused, holds_run

    if (folder := open_storage(place).path()) is None:
        return
    try:
        check_unused(folder, place)
    except UserError:
        if run is None or not holds_run(folder):
            raise
        words = typed_words(context)
        other = next(name for number in itertools.count(2) if not Path(name := f"{run}-{number}").expanduser().exists())
        anew = replaced(words, ("--run", run), ("--run", other))
        raise UserError(
            f"{place}: holds a run already; to go on with it: {shlex.join(_way_on(words, place, dataset))}; to train "
            f"anew in another folder: {shlex.join(anew)}"
        ) from None


def _way_on(words: Sequence[str], place: str, dataset: Dataset | None) -> list[str]:
    """The command that goes on with the run in ``place``: as it was typed, without what that run does not have."""
    from msltrain.runs.run_places import dataset_name

    begun = begun_with(place)
    if begun is not None and dataset is not None and begun.data.train != dataset.train:
        program = list(itertools.takewhile(lambda word: word != "train", words))
        return [*program, "train", dataset_name(begun.data.train), "--run", place, "--resume", "auto"]
    kept, rest = [], iter(words)
    for word in rest:
        option, equals, value = word.partition("=")
        if option not in _OF_A_NEW_RUN:
            kept.append(word)
            continue
        typed = [word]
        if not equals and option != "--paper-protocol":
            value = next(rest, "")
            typed.append(value)
        if begun is not None and _has(begun, option, value):
            kept += typed
    return [*kept, "--resume", "auto"]


def _has(begun: TrainConfig, option: str, value: str) -> bool:
    """Whether a run was begun with what an option says, or may go on with it all the same."""
    from msldata.errors import UserError
    from msltrain.commands.options import run_place
    from msltrain.config import differences, override
    from msltrain.runs.folder import MAY_DIFFER

    if option == "--paper-protocol":
        return not begun.data.validates
    if option == "--keep-masks":
        return value in begun.data.keep_masks
    if option == "--weights":
        return run_place(value) == begun.model.weights
    fields = {option: field for field, option in OPTIONS.items()}
    try:
        now = override(begun, [value if option == "--set" else f"{fields[option]}={value}"])
    except UserError:
        return False
    return set(differences(begun, now)) <= set(MAY_DIFFER)


def begun_with(place: str) -> TrainConfig | None:
    """What the run in a folder was begun with; None where there is none yet."""
    from msldata.storage import open_storage
    from msltrain.runs.recorded import CONFIG_NAME, read_config

    storage = open_storage(place)
    return read_config(storage) if storage.exists(CONFIG_NAME) else None


def check_same(place: str, begun: TrainConfig, config: TrainConfig, typed: Mapping[str, str]) -> None:
    """Raise what training would where a run to continue has other settings or was trained on other data.

    Args:
        place: the run's folder.
        begun, config: what it was begun with, and what it would be.
        typed: the options that were typed, by the field that they set.
    """
    from msldata.contract.manifest import read_manifest
    from msltrain.config import differences
    from msltrain.runs.folder import (
        MAY_DIFFER,
        DatasetIdentity,
        another_run,
        changed_data,
        changed_settings,
        training_data,
    )

    words = {
        field: option if option in (*OPTIONS.values(), f"--set {field}") else f"{option}: {field}"
        for field, option in typed.items()
    }
    changes = changed_settings(begun, config, words)
    others = set(differences(begun, config)) - set(MAY_DIFFER)
    meant = [] if others - set(typed) else list(dict.fromkeys(typed[field] for field in sorted(others)))
    if noted := training_data(place):
        train = config.data.train
        changes += changed_data("train", noted, [DatasetIdentity.of(train, read_manifest(train))])
    if changes:
        raise another_run(place, changes, meant)


def refuse_other_weights(place: str, begun: TrainConfig, weights: str) -> None:
    """Raise UserError where a run to continue began with other weights than ``--weights`` says."""
    from msldata.errors import UserError

    if weights != begun.model.weights:
        raise UserError(
            f"{place}: first weights belong to a new run, and this one began with {begun.model.weights or 'none'}; "
            "leave --weights out to go on with it, or name the folder of a new run with --run"
        )


def was_over(place: str, begun: TrainConfig | None, config: TrainConfig) -> bool:
    """Whether a run on this machine, of the same data, had come to its end before."""
    from msldata.storage import open_storage
    from msltrain.runs.find_checkpoint import progress_of

    folder = open_storage(place).path()
    if folder is None or begun is None or begun.data != config.data:
        return False
    return (now := progress_of(folder, config)) is not None and now.is_over
