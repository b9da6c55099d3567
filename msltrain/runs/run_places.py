"""Where a run's files are by default."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from msldata.contract.listing import IMAGE_SUFFIXES
from msldata.contract.manifest import MANIFEST_NAME, datasets_below
from msldata.errors import UserError, did_you_mean
from msldata.storage import open_storage

WHOLE = "whole"
"""The condition in which nothing is hidden."""
RUNS, SHARDS = "runs", "shards"
"""Where a bare name is looked for."""
_TRAIN, _VALIDATION = ("train", "training", "trainval", "all"), ("val", "valid", "validation", "dev")
TEST_SPLITS = ("test", "testing")
_SEED = re.compile(r"seed(\d{1,9})")


@dataclass(frozen=True)
class Dataset:
    """The splits of a dataset of one's own that are there; empty where one is not."""

    name: str
    train: str
    validation: str
    test: str
    unfinished: tuple[str, ...] = ()
    """The splits whose folder is there without a finished dataset: their build failed, or goes on."""


def find_dataset(name: str) -> Dataset:
    """The dataset that ``msl train NAME`` means: a folder or URL, or the name of one in ``shards/``.

    Raises:
        UserError: there is none, with those that there are.
    """
    for place in (name.rstrip("/"), f"{SHARDS}/{name}"):
        if found := _splits_at(place):
            return found
    built = sorted({path.parts[1] for path in Path(SHARDS).glob(f"*/*/{MANIFEST_NAME}")} - {"masks"})
    if Path(name).expanduser().exists():
        near = f"; if it holds photographs, build them first: msl build-shards {shlex.quote(name)} --name NAME"
    elif close := did_you_mean(name, built):
        near = close
    else:
        near = f"; there are: {', '.join(built)}" if built else "; build one with `msl build-shards PHOTOS --name NAME`"
    raise UserError(f"{name}: no dataset with training shards here or in {SHARDS}/{near}{not_there(SHARDS)}")


def dataset_name(train: str) -> str:
    """What `find_dataset` finds these training shards by: the name of their dataset in ``shards/``, or their place."""
    match train.split("/"):
        case [root, name, split] if root == SHARDS and split in _TRAIN and name not in (".", ".."):
            return name
    return train


def not_there(root: str) -> str:
    """The end of a message where the folder that bare names are looked for in is missing: perhaps it is elsewhere."""
    if Path(root).is_dir():
        return ""
    return f"; {Path.cwd()} has no {root}/, perhaps another folder has it"


def _splits_at(place: str) -> Dataset | None:
    storage = open_storage(place)
    if storage.path() is not None and not Path(place).expanduser().is_dir():
        return None
    if not storage.exists(MANIFEST_NAME):
        train = _first(place, _TRAIN)
        return _dataset(place, train) if train else None
    folder, _, split = place.rpartition("/")  # a split itself, whose neighbours belong to it
    folder = folder or "."
    if split not in _TRAIN:
        return Dataset(f"{_name(folder)}-{split}", place, "", "")
    return _dataset(folder, place)


def _dataset(folder: str, train: str) -> Dataset:
    validation, test = _first(folder, _VALIDATION), _first(folder, TEST_SPLITS)
    return Dataset(_name(folder), train, validation, test, unfinished_splits(folder))


def unfinished_splits(folder: str) -> tuple[str, ...]:
    """The splits in a dataset's folder on this machine that hold no finished dataset."""
    local = open_storage(folder).path()
    splits = (*_TRAIN, *_VALIDATION, *TEST_SPLITS)
    if local is None:
        return ()
    return tuple(name for name in splits if (local / name).is_dir() and not (local / name / MANIFEST_NAME).is_file())


def unfinished_said(folder: str, splits: Sequence[str]) -> str:
    """A sentence about the splits of a dataset whose build did not end."""
    return (
        f"{folder}: the build of {' and '.join(splits)} did not end; type the `msl build-shards` of this dataset "
        "again, and it continues where it stopped"
    )


def _name(folder: str) -> str:
    return folder.rpartition("/")[2] if "://" in folder else Path(folder).expanduser().resolve().name


def _first(folder: str, splits: Sequence[str]) -> str:
    """The first of the splits that has been built; empty where none has."""
    places = (f"{folder}/{split}" for split in splits)
    return next((place for place in places if open_storage(place).exists(MANIFEST_NAME)), "")


def find_test_shards(train: str) -> str:
    """The test shards beside training shards; empty where there are none."""
    return _first(train.rstrip("/").rpartition("/")[0] or ".", TEST_SPLITS)


def check_keep_masks(places: Sequence[str]) -> None:
    """Look whether keep masks are where recipes expect them: in a folder ``high`` or ``low``.

    Raises:
        UserError: nothing has been built there; with the command that makes it.
    """
    for place in places:
        root, _, subset = place.rstrip("/").rpartition("/")
        if not root or subset not in ("high", "low") or open_storage(place).exists(MANIFEST_NAME):
            continue
        command = f"`msl build-masks --out {shlex.quote(root)}`"
        if root.endswith("/official"):
            command = f"`msl build-masks --order official --out {shlex.quote(root)}`"
        raise UserError(
            f"{place}: no keep masks here (no {MANIFEST_NAME}); make them: {command} from NVIDIA's files, or "
            f"`msl build-masks --generate 3000 --out {shlex.quote(root)}` without them; --keep-masks takes others"
        )


def local_test_shards(train: str) -> str:
    """The test shards on this machine beside training shards; empty where there are none, or where they cannot be
    read. For what is welcome to a page, and nothing to fail for."""
    try:
        return "" if not train or "://" in train else find_test_shards(train)
    except (UserError, OSError):
        return ""


def find_evaluation_shards(name: str, *, held_out: bool = False) -> str:
    """The shards that ``--data NAME`` means where models are measured: those at that place, or of a dataset, by its
    folder, URL or name in ``shards/``, the test split, or all of one that was kept together; with ``held_out`` what
    training validated on or took it from. The name itself where there is neither, which whoever opens it says.

    Raises:
        UserError: a folder of photographs that are to be built first.
    """
    splits = (*_VALIDATION, *_TRAIN) if held_out else TEST_SPLITS
    for place in (name.rstrip("/"), *([] if "://" in name else [f"{SHARDS}/{name}"])):
        if open_storage(place).exists(MANIFEST_NAME):
            return place
        if found := _first(place, splits):
            return found
        # The photographs of another site: nothing of them is for training, so all of them are an exam.
        if not _first(place, (*_TRAIN[:-1], *_VALIDATION)) and (found := _first(place, ("all",))):
            return found
    _refuse_photographs(name)
    return name


def _refuse_photographs(name: str) -> None:
    """Raise UserError for a folder, or a list of labels, from which no dataset has been built."""
    place = Path(name).expanduser()
    if "://" in name or not place.exists() or datasets_below(name) or unfinished_splits(name):
        return
    names = [place.name] if place.is_file() else [path.name for path in (*place.glob("*"), *place.glob("*/*"))]
    if any(PurePosixPath(file).suffix.lower() in (*IMAGE_SUFFIXES, ".csv", ".json") for file in names):
        called = (
            re.sub(r"[^\w-]+", "_", place.resolve().stem if place.is_file() else place.resolve().name).strip("_")
            or "NAME"
        )
        raise UserError(
            f"{name}: no finished dataset here; if it holds photographs and their labels, build them in one piece: "
            f"msl build-shards {shlex.quote(name)} --split all --name {called}, then give --data {called}"
        )


def find_run(name: str | Path) -> str:
    """What a checkpoint's name means: a bare name that is no run or file itself is looked for in ``runs/``."""
    name = str(name)
    path = Path(name).expanduser()
    if "/" in name or path.is_file() or not Path(RUNS, name).is_dir():
        return name
    is_model = any((path / part).exists() for part in ("checkpoints", "meta.json", "config.json")) or find_series(path)
    return name if is_model else f"{RUNS}/{name}"


def default_file(
    checkpoint: str | Path,
    shards: str | Path,
    keep_masks: Sequence[str | Path] = (),
    *,
    held_out: bool = False,
    flip: bool = False,
    scales: Sequence[float] = (),
    seed: int = 0,
) -> Path:
    """Where an evaluation puts its predictions: in the run folder, named after what was evaluated.

    ``shards/voc2007/test`` through ``shards/masks/high`` gives ``predictions/voc2007-test-masks-high.parquet``;
    averaged views, and a seed that chooses other masks, have names of their own, so that none replaces another; so have
    data elsewhere than in ``shards`` here. For a run in object storage that folder is made here, with the run's name
    before the file's.
    """
    name = "-".join(filter(None, (_file_part(str(place)) for place in (shards, *keep_masks))))
    name += "".join(f"-scale-{scale:g}" for scale in scales) + ("-flip" if flip else "")
    name += f"-seed-{seed}" if seed and keep_masks else ""  # nothing else of an evaluation depends on it
    name += "-held-out" if held_out else ""
    if open_storage(checkpoint).path() is None:
        return Path("predictions", f"{run_folder(checkpoint).name}-{name}.parquet")
    return run_folder(checkpoint) / "predictions" / f"{name}.parquet"


def _file_part(place: str) -> str:
    """A dataset's part of a file name: its last two folders, and, where these are not in ``shards`` here, some letters
    made of what they are in: two datasets may have the same name in different places."""
    if not place:
        return ""
    if "://" in place:
        above, *names = place.rstrip("/").rsplit("/", 2)
    else:
        path = Path(place).expanduser().absolute()
        names, folder = [path.parent.name, path.name], path.parent.parent.resolve()
        if folder == Path(SHARDS).resolve():
            return "-".join(names)
        above = str(folder)
    return "-".join([*filter(None, names), hashlib.sha256(above.encode("utf-8", "surrogateescape")).hexdigest()[:6]])


def study_folder(checkpoints: Sequence[str | Path]) -> Path:
    """Where a robustness study is put: of one model beside its run's other files, else ``robustness``, which only a run
    in object storage shares with others."""
    name = "robustness"
    if len(checkpoints) > 1 or open_storage(checkpoints[0]).path() is None:
        return Path(name)
    return run_folder(checkpoints[0]) / name


def find_series(place: str | Path) -> list[Path]:
    """The runs of a series by seed (``seed0``, ``seed1`` …, as ``msl train --seeds`` writes them); empty for a single
    run."""
    if open_storage(place).path() is None or not (folder := Path(place).expanduser()).is_dir():
        return []
    if (folder / "checkpoints").is_dir() or (folder / "meta.json").is_file():
        return []
    found = [(int(match[1]), run) for run in folder.iterdir() if (match := _SEED.fullmatch(run.name)) and run.is_dir()]
    return [run for _, run in sorted(found)]


def run_folder(checkpoint: str | Path) -> Path:
    """The run that a checkpoint belongs to; for a weights file from elsewhere, the folder that it is in."""
    run = Path(checkpoint)
    if run.is_file():
        run = run.parent
    if run.parent.name == "checkpoints":  # a checkpoint folder is replaced as a whole when training goes on
        run = run.parent.parent
    return run


def predictions_file(folder: Path, name: str) -> Path:
    """Where a model's folder keeps the predictions of a condition."""
    return folder / f"{name}.parquet"
