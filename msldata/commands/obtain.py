"""``download`` and ``synthesize``: raw data, fetched or drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from msldata.commands import Workers, data_root, local_path
from msldata.console import out, show
from msldata.progress import byte_progress_bar, progress_bar


def download(
    dataset: Annotated[str, typer.Argument(help="voc2007 or coco2014.")],
    to: Annotated[
        Path | None,
        typer.Option(
            help="Folder of all datasets; default: datasets/ or $MSL_DATA.", show_default=False, parser=local_path
        ),
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option(help="Repeat for several; default: all.", show_default=False)
    ] = None,
    mirror: Annotated[
        str | None, typer.Option(help="Address of a folder that holds the archives; asked first.", show_default=False)
    ] = None,
    keep_archives: Annotated[bool, typer.Option("--keep-archives", help="Do not delete what was unpacked.")] = False,
) -> None:
    """Fetch a published dataset: mirrors, checksums, and a stopped download goes on where it was."""
    from msldata.sources.download import download, select_archives

    archives = select_archives(dataset, split or ())
    with byte_progress_bar() as progress:
        folders = download(archives, to or data_root(), mirror=mirror, keep_archives=keep_archives, progress=progress)
    for archive, folder in zip(archives, folders, strict=True):
        show(out, (folder, "green"), f": {archive.name} is checked and unpacked")


def synthesize(
    out_: Annotated[Path, typer.Option("--out", help="Folder that gets VOCdevkit/VOC2007.", parser=local_path)],
    num_train: Annotated[int, typer.Option(help="Images of trainval.")] = 2000,
    num_test: Annotated[int, typer.Option(help="Images of test.")] = 500,
    size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 96,
    seed: Annotated[int, typer.Option(help="Of everything drawn.")] = 0,
    workers: Workers = None,
) -> None:
    """Draw a small dataset in VOC's own layout: overlapping, occluded and small objects."""
    from msldata.synthetic.dataset import write_synthetic_voc

    with progress_bar("drawing") as progress:
        write_synthetic_voc(
            out_,
            num_train=num_train,
            num_test=num_test,
            image_size=size,
            seed=seed,
            num_workers=workers,
            progress=progress,
        )
    show(out, (f"{out_}/VOCdevkit/VOC2007", "green"), f": {num_train:,} + {num_test:,} images")
