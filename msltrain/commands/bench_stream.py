"""``bench-stream``: how fast a dataset streams on the user's own storage."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from msldata.console import gigabytes, out, standard_output
from msldata.errors import counted
from msldata.progress import progress_bar
from msltrain.commands.options import BatchSize, Cache, CacheLimit, Json


class Place(StrEnum):
    """Values of ``bench-stream --resize``."""

    host = "host"
    device = "device"


def bench_stream(
    shards: Annotated[str, typer.Argument(help="Dataset folder or URL.", show_default=False)],
    image_size: Annotated[int, typer.Option(help="Side of the square images.")] = 448,
    batch_size: BatchSize = 32,
    threads: Annotated[int | None, typer.Option(help="Decoding threads.", show_default="all CPUs")] = None,
    seconds: Annotated[float, typer.Option(help="How long to measure.", min=0.1)] = 20.0,
    images: Annotated[int | None, typer.Option(help="Stop after so many images.", min=1)] = None,
    gpu_rate: Annotated[float | None, typer.Option(help="Images/s that one of your GPUs trains on.")] = None,
    cache: Cache = None,
    cache_limit: CacheLimit = "50GB",
    ram_cache: Annotated[str, typer.Option(help="Keep decoded images in so much memory.")] = "0",
    read_ahead_mb: Annotated[int, typer.Option(help="Encoded images read ahead, MiB.")] = 128,
    resize: Annotated[
        Place, typer.Option(help="device = left to the GPU, as training on one does; host = done here too.")
    ] = Place.device,
    json: Json = False,
) -> None:
    """Measure your own storage: images/s, where the time goes, how many GPUs that feeds."""
    from msldata.errors import UserError
    from msltrain.stream.bench import measure_lost_time, measure_stream
    from msltrain.stream.config import StreamConfig

    if gpu_rate is not None and not gpu_rate > 0:
        raise UserError(f"--gpu-rate is {gpu_rate:g}; give the images per second that one GPU trains on, such as 900")
    config = StreamConfig(
        image_size=image_size,
        batch_size=batch_size,
        num_threads=threads,
        cache="" if cache is None else str(cache),
        cache_limit_gb=gigabytes(cache_limit),
        ram_cache_gb=gigabytes(ram_cache),
        read_ahead_mb=read_ahead_mb,
        resize=resize.value,
    )
    with progress_bar("streaming") as progress:
        found = measure_stream(shards, config, seconds=seconds, max_images=images, on_progress=progress)
    lost = None
    if gpu_rate is not None and found.gpus_fed(gpu_rate) >= 1:
        lost = measure_lost_time(shards, config, gpu_rate, seconds=min(6.0, seconds))
    if json:
        from dataclasses import asdict
        from json import dumps

        gpus: dict[str, object] = {} if gpu_rate is None else {"gpus_fed": found.gpus_fed(gpu_rate)}
        if lost is not None:
            gpus["lost_ms"] = asdict(lost)
        standard_output.write(dumps({**asdict(found), **gpus}) + "\n")
        return
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right", style="bold")
    table.add_row(f"{found.images_per_second:,.0f}", "images/s")
    table.add_row(f"{found.megabytes_per_second:,.1f}", "MB/s of encoded images")
    table.add_row(f"{found.seconds_to_first_batch:.2f}", "s to the first batch")
    table.add_row(f"{found.cpu_seconds_per_1000:.2f}", "s of CPU per 1,000 images")
    if gpu_rate is not None:
        table.add_row(f"{found.gpus_fed(gpu_rate):.1f}", f"GPUs of {gpu_rate:,.0f} images/s can be fed")
    if lost is not None:
        of_step = f"of each {lost.step:.0f} ms step is lost to"
        table.add_row(f"{100 * lost.same / lost.step:.1f} %", f"{of_step} decoding threads in the training's process")
        if lost.helper is not None:
            table.add_row(f"{100 * lost.helper / lost.step:.1f} %", f"{of_step} those of a helper process, as on a GPU")
    out.print(table)
    threads_ = "1 decoding thread" if found.num_threads == 1 else f"{found.num_threads} decoding threads"
    out.print(f"\nWhere the time of {threads_} goes")
    bars = Table.grid(padding=(0, 1))
    bars.add_column()
    bars.add_column(justify="right")
    for name, share in (
        ("fetch", found.share_fetch),
        ("decode", found.share_decode),
        ("resize", found.share_resize),
        ("wait", found.share_idle),
    ):
        bars.add_row(name, f"{100 * share:.0f} %", Text("█" * round(40 * share), "cyan"))
    out.print(bars)
    if resize is Place.device:
        out.print("crop and resize are left to the GPU", style="dim")
    passes = f", {found.num_epochs} passes over the data" if found.num_epochs > 1 else ""
    out.print(f"\nMeasured: {counted(found.num_images, 'image')} in {found.seconds:.2g} s{passes}", soft_wrap=True)
    out.print(f"{found.advice[0].upper()}{found.advice[1:]}", soft_wrap=True)
