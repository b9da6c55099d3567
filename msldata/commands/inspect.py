"""``verify``, ``info``, ``preview``, ``doctor``: look at datasets and change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from msldata.commands import Workers, data_root, local_path
from msldata.console import err, out, show, standard_output
from msldata.progress import progress_bar, working

Shards = Annotated[
    str,
    typer.Argument(
        help="A dataset folder or URL, images or keep masks; or a name in shards/: mine or, of one split, mine/train."
    ),
]


def _dataset(name: str) -> str:
    """The place of a dataset: the one that is named, or that below ``shards/``; the name itself where neither is."""
    from msldata.contract.manifest import MANIFEST_NAME
    from msldata.storage import open_storage

    is_elsewhere = "://" in name or name.startswith(("/", "."))
    places = [name] if is_elsewhere else [name, f"shards/{name}"]
    return next((place for place in places if open_storage(place).exists(MANIFEST_NAME)), name)


def _datasets(name: str) -> list[str]:
    """What a command looks at: one dataset, see `_dataset`, or all splits below a place or a name in ``shards/``."""
    from msldata.contract.manifest import MANIFEST_NAME, datasets_below
    from msldata.storage import open_storage

    place = _dataset(name)
    return [place] if open_storage(place).exists(MANIFEST_NAME) else sorted(datasets_below(name)) or [name]


_SHOWN_FIRST = ("train", "trainval", "all")


def _one_of(name: str) -> str:
    """The dataset to draw of those that a name means: of several splits that of training, with a line that says so."""
    places = _datasets(name)
    if len(places) < 2:
        return places[0]
    by_split = {place.rstrip("/").rpartition("/")[2]: place for place in places}
    chosen = next((by_split[split] for split in _SHOWN_FIRST if split in by_split), places[0])
    others = [place for place in places if place != chosen]
    show(err, f"note: this shows {chosen}; for others name them: {', '.join(others)}", wrap=True)
    return chosen


def verify(
    shards: Shards,
    against: Annotated[
        str | None, typer.Option(help="A split that must share no image with it, as test with train.")
    ] = None,
    decode: Annotated[
        bool,
        typer.Option(
            help="Decode every image. Without, changes since the build are found, but no image damaged before."
        ),
    ] = True,
    workers: Workers = None,
) -> None:
    """Check every byte of a dataset: checksums, index, images, labels, duplicates, leftover files."""
    from msldata.commands.display import show_verification
    from msldata.inspect.verify import verify

    against = against and _dataset(against)
    are_right = True
    for place in _datasets(shards):
        with progress_bar("verifying") as progress:
            result = verify(place, against=against, num_workers=workers, decode=decode, progress=progress)
        show_verification(out, result, place, against)
        are_right = are_right and not result.findings
    if not are_right:
        raise typer.Exit(2)


def info(
    shards: Shards,
    json_: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Say what is in a dataset: counts, labels and their pairs, sizes, objects, hole fractions."""
    from msldata.commands.display import show_description
    from msldata.inspect.describe import describe

    found = {place: describe(place) for place in _datasets(shards)}
    if not json_:
        for place, about in found.items():
            show_description(out, about, place)
        return
    import json
    from dataclasses import asdict

    content = {place: asdict(about) for place, about in found.items()}
    # Of a dataset itself its facts; of the name of several, each under its place.
    standard_output.write(json.dumps(content.get(_dataset(shards), content), indent=2) + "\n")


def preview(
    shards: Annotated[
        str,
        typer.Argument(
            help="A dataset folder or URL, images or keep masks; or one in shards/: mine (training), mine/test."
        ),
    ],
    out_: Annotated[Path, typer.Option("--out", help="A .png contact sheet, or one .html page.", parser=local_path)],
    num: Annotated[int, typer.Option(help="Samples shown, spread over the dataset.", min=1)] = 24,
    keep_masks: Annotated[
        str | None, typer.Option(help="Show also a keep mask of this dataset and the masked image.")
    ] = None,
) -> None:
    """Draw samples with labels and boxes, or keep masks, as a contact sheet or a page."""
    from msldata.inspect.preview import write_preview

    shown = write_preview(_one_of(shards), out_, num=num, keep_masks=keep_masks and _dataset(keep_masks))
    show(out, (out_, "green"), f": {shown:,} sample{'s' * (shown != 1)}")


def doctor(
    shards: Annotated[str, typer.Option(help="Folder or URL of all shards.")] = "shards",
) -> None:
    """Say which datasets and shards are there, whether they are whole, and the next command for each."""
    from msldata.commands.display import show_checks
    from msldata.inspect.doctor import USUAL_SHARDS, examine_raw, examine_shards

    with working("counting what is there"):
        raw = examine_raw(data_root(), shards)
        built = examine_shards(shards, raw)
    own = [check for check in built if check.name not in USUAL_SHARDS]
    parts = {
        f"your own datasets in {shards}": own,
        f"raw datasets in {data_root()} (MSL_DATA names another folder)": raw,
        f"shards of published datasets in {shards}": [check for check in built if check not in own],
    }
    for title, checks in parts.items():
        # Who has datasets of their own need not hear of all published ones that they lack.
        if shown := [check for check in checks if not own or check.state != "missing"]:
            show_checks(out, title, shown)
