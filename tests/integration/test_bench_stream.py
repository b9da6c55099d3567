"""``bench-stream``: the figures belong together, and the command shows them."""

from __future__ import annotations

import json
import shutil
import time

import numpy as np
import pytest
from typer.testing import CliRunner

from msldata.errors import UserError
from msltrain.__main__ import app
from msltrain.stream import bench
from msltrain.stream.bench import StreamMeasurement, measure_stream
from msltrain.stream.config import StreamConfig
from msltrain.stream.pixels.decode import Decoder
from msltrain.stream.reading.fetch import LocalFetcher
from tests.smallshards import write_images, write_keep_masks

CONFIG = StreamConfig(image_size=24, batch_size=8, num_threads=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("shards")
    write_images(path, [40, 61])
    return path


def slowed(monkeypatch, owner, name: str, seconds: float) -> None:
    original = getattr(owner, name)

    def slow(*arguments, **options):
        time.sleep(seconds)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, slow)


def shares(found: StreamMeasurement) -> dict[str, float]:
    return {name: getattr(found, f"share_{name}") for name in ("fetch", "decode", "resize", "idle")}


def test_the_figures_belong_together(folder):
    found = measure_stream(folder, CONFIG, max_images=400)
    assert 400 <= found.num_images <= 408 and found.num_epochs >= 5 and found.num_threads == 2
    assert found.images_per_second == pytest.approx(found.num_images / found.seconds)
    assert sum(shares(found).values()) == pytest.approx(1)
    assert 0 < found.seconds_to_first_batch < 30 and found.cpu_seconds_per_1000 > 0
    mean_bytes = found.megabytes_per_second * 1e6 / found.images_per_second
    assert 500 < mean_bytes < 5000
    assert found.gpus_fed(found.images_per_second / 3) == pytest.approx(3)


def test_slow_decoding_is_seen(folder, monkeypatch):
    slowed(monkeypatch, Decoder, "decode", 0.004)
    found = measure_stream(folder, CONFIG, max_images=100)
    assert found.share_decode > 0.6, shares(found)
    assert "decoding is the limit" in found.advice


def test_slow_storage_is_seen(folder, monkeypatch):
    from msltrain.stream.reading import fetch

    slowed(monkeypatch, fetch._Mapped, "read", 0.004)
    found = measure_stream(folder, CONFIG, max_images=100)
    assert found.share_fetch > 0.6, shares(found)
    assert "the disk is the limit" in found.advice


def test_a_slow_plan_is_seen_as_waiting(folder, monkeypatch):
    slowed(monkeypatch, LocalFetcher, "request", 0.02)
    found = measure_stream(folder, CONFIG, max_images=100)
    assert found.share_idle > 0.5, shares(found)
    assert "wait for work" in found.advice


def test_it_stops_in_time(folder):
    began = time.perf_counter()
    found = measure_stream(folder, CONFIG, seconds=0.3)
    assert 0.3 <= found.seconds < time.perf_counter() - began < 60


def test_the_command(folder):
    options = {"--image-size": 24, "--batch-size": 8, "--images": 64, "--seconds": 1}
    arguments = ["bench-stream", str(folder), *(str(word) for option in options.items() for word in option)]
    shown = CliRunner().invoke(app, [*arguments, "--gpu-rate", "100"])
    assert shown.exit_code == 0, shown.output
    for text in ("images/s", "MB/s", "to the first batch", "CPU per 1,000 images", "GPUs of 100", "fetch", "decode"):
        assert text in shown.output
    found = json.loads(CliRunner().invoke(app, [*arguments, "--gpu-rate", "100", "--json"]).stdout)
    assert found["gpus_fed"] == pytest.approx(found["images_per_second"] / 100) and found["advice"]
    assert CliRunner().invoke(app, [*arguments, "--gpu-rate", "0"]).exit_code == 2


@pytest.mark.parametrize(
    ("shares", "is_local", "options", "words"),
    [
        ({"fetch": 0.9}, False, {}, "try --cache DIR"),
        ({"fetch": 0.9}, False, {"cache": "somewhere"}, "while the cache fills"),
        ({"fetch": 0.9}, True, {"cache": "somewhere"}, "the disk is the limit"),
        ({"decode": 0.9}, True, {}, "or --ram-cache"),
        ({"decode": 0.9}, True, {"ram_cache_gb": 1.0}, "a larger --ram-cache"),
        ({"resize": 0.9}, True, {"ram_cache_gb": 1.0}, "resizing is the limit"),
    ],
)
def test_the_advice_is_not_what_was_done_already(shares, is_local, options, words):
    shares = dict.fromkeys(("fetch", "decode", "resize", "idle"), 0.0) | shares
    assert words in bench._advice(shares, StreamConfig(**options), is_local=is_local)


@pytest.mark.parametrize("options", [[], ["--cache", "cache"], ["--ram-cache", "1GB"]])
def test_the_command_on_a_bucket(folder, s3, tmp_path, options):
    shutil.copytree(folder, s3.root / "bucket" / "bench", dirs_exist_ok=True)
    options = [str(tmp_path) if option == "cache" else option for option in options]
    arguments = ["--image-size", "24", "--images", "500", "--json", *options]
    done = CliRunner().invoke(app, ["bench-stream", "s3://bucket/bench", *arguments])
    found = json.loads(done.stdout)
    assert found["num_images"] >= 500 and sum(
        found[f"share_{name}"] for name in ("fetch", "decode", "resize", "idle")
    ) == pytest.approx(1)
    assert bool(list(tmp_path.glob("*.tar"))) == ("--cache" in options)


@pytest.mark.parametrize(
    ("place", "options", "words"),
    [
        ("absent", [], "no finished dataset here"),
        ("masks", [], "holds keep-masks, not images"),
        ("images", ["--seconds", "0"], "--seconds"),
        ("images", ["--seconds", "nan"], "--seconds"),
        ("images", ["--threads", "0"], "at least 1"),
        ("images", ["--batch-size", "500"], "101 samples make no complete batch of 500"),
        ("images", ["--ram-cache", "much"], "'much' is not an amount"),
        ("s3://absent/x", [], "no such bucket"),
    ],
)
def test_a_mistake_is_one_message(folder, s3, tmp_path, place, options, words):
    if place == "masks":
        write_keep_masks(tmp_path / place, [np.ones((24, 24), np.uint8)])
    place = {"images": str(folder), "s3://absent/x": place}.get(place, str(tmp_path / place))
    done = CliRunner().invoke(app, ["bench-stream", place, "--image-size", "24", *options])
    assert done.exit_code == 2 and not isinstance(done.exception, UserError), done.output
    assert words in " ".join(done.output.split()), done.output
    assert done.output.lower().count("error") == 1 and not done.output.startswith("\n")


def test_python_costs_little_per_sample(folder, monkeypatch):
    # What Python does while it holds the interpreter's lock bounds how many threads one process can use: some 40 µs a
    # sample. Decoding and resizing are taken out; everything else is the real thing. Ten times that is a mistake, not a
    # slow machine.
    blank_HWC = np.zeros((1, 1, 3), dtype=np.uint8)
    monkeypatch.setattr(Decoder, "decode", lambda *_, **__: blank_HWC)
    monkeypatch.setattr("msltrain.stream.pixels.decode._resize", lambda *_, **__: None)
    config = StreamConfig(image_size=24, batch_size=32, num_threads=1)
    best = min(measure_stream(folder, config, max_images=1000).cpu_seconds_per_1000 for _ in range(3))
    assert best * 1000 < 400, f"{best * 1000:.0f} µs"


def test_what_the_launching_thread_loses_is_told_where_a_gpu_can_be_fed(folder, ready_python):
    words = [
        "bench-stream",
        str(folder),
        "--image-size",
        "24",
        "--batch-size",
        "8",
        "--threads",
        "1",
        "--seconds",
        "0.5",
    ]
    found = json.loads(CliRunner().invoke(app, [*words, "--gpu-rate", "100", "--json"]).stdout)
    lost = found["lost_ms"]
    assert lost["step"] == 80 and lost.keys() == {"step", "same", "helper"}
    assert lost["same"] >= 0 and lost["helper"] >= 0
    shown = " ".join(CliRunner().invoke(app, [*words, "--gpu-rate", "100"]).stdout.split())
    assert "% of each 80 ms step is lost to decoding threads in the training's process" in shown
    assert "% of each 80 ms step is lost to those of a helper process" in shown
    beyond = CliRunner().invoke(app, [*words, "--gpu-rate", "1e9"]).stdout
    assert "GPUs" in beyond and "lost" not in beyond, "the wait for batches is another matter"


def test_lost_is_what_a_batch_takes_from_a_step(folder, monkeypatch):
    now = 0.0

    class Clock:
        """Each look at it takes a millisecond."""

        @staticmethod
        def perf_counter() -> float:
            nonlocal now
            now += 1e-3
            return now

        @staticmethod
        def sleep(seconds: float) -> None:
            nonlocal now
            now += seconds

    def slow_batches(loader):
        nonlocal now
        for _ in iter(int, 1):
            now += 5e-3
            yield

    monkeypatch.setattr(bench, "time", Clock)
    monkeypatch.setattr(bench, "_endless", slow_batches)
    lost = bench.measure_lost_time(folder, CONFIG, 1000, seconds=0.1)
    assert (lost.step, lost.same) == pytest.approx((8, 5))
    assert lost.helper is None or lost.helper == pytest.approx(5)
