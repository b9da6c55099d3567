"""What a run was trained with, as its folder says: to go on with it, or to begin another one like it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from msldata.errors import UserError, did_you_mean
from msldata.storage import LocalStorage, Location, Storage, open_storage
from msltrain.config import TrainConfig, from_json
from msltrain.recipes import RECIPES
from msltrain.runs.find_checkpoint import META_NAME, read_meta
from msltrain.runs.run_places import RUNS, find_dataset, find_run

CONFIG_NAME = "config.json"
"""The config of a run, in its folder."""


def recorded_config(place: Location) -> TrainConfig | None:
    """What the run at a place was begun with; None where there is none.

    Args:
        place: the folder or URL of a run or of a checkpoint, or a file like a run's ``config.json``.

    Raises:
        UserError: a file of another kind.
    """
    storage = open_storage(place)
    if (file := storage.path()) is not None and file.is_file():
        return read_config(LocalStorage(file.parent), file.name, where=str(file))
    if storage.exists(CONFIG_NAME):
        return read_config(storage)
    return read_meta(storage)[1] if storage.exists(META_NAME) else None


def read_config(storage: Storage, name: str = CONFIG_NAME, *, where: str = "") -> TrainConfig:
    """The config in a file. Raises UserError where the file holds none.

    Args:
        storage, name: the file.
        where: what messages call it; default: where it is.
    """
    where = where or storage.where(name)
    try:
        return from_json(storage.read(name).decode(errors="replace"), where)
    except (TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{where}: not the settings of a run ({error})") from None


def find_recipe(name: Location, *, data: Location | None = None) -> TrainConfig:
    """The config that ``--recipe NAME`` means: a recipe's, else what a run was trained with.

    Args:
        name: of a recipe; or a run, in ``runs/`` by its name, a checkpoint, or a file like a run's ``config.json``. A
            run that is called like a recipe is meant by its folder: ``./demo``, ``runs/demo``.
        data: what is trained on instead. Where the run had a split to validate on, this dataset's takes its place.

    Raises:
        UserError: neither is there, with what may have been meant; or there is no such dataset.
    """
    name = str(name)
    if name in RECIPES:
        return RECIPES[name]()
    place = find_run(name)
    if (config := recorded_config(place)) is not None:
        if data is None or not config.data.validation:
            return config
        return replace(config, data=replace(config.data, validation=find_dataset(str(data)).validation))
    if "/" in place or Path(place).exists():
        raise UserError(f"{name}: no run here (no {CONFIG_NAME}); give the folder of a run, or the name of a recipe")
    known = [*RECIPES, *(run.name for run in Path(RUNS).glob("*/") if (run / CONFIG_NAME).is_file())]
    raise UserError(
        f"no recipe '{name}', and no run of this name; `msl recipes` lists the recipes{did_you_mean(name, known)}"
    )


def recipe_name(name: str) -> str:
    """What the folder of a run that is begun from a recipe or a run is called."""
    if name in RECIPES or "/" not in (place := find_run(name).rstrip("/")):
        return name.removesuffix(".json")
    folder, _, last = place.rpartition("/")
    return folder.rpartition("/")[2] if last.endswith(".json") else last
