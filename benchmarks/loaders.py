"""The loaders of benchmarks/peers.py: each turns the same photographs into batches as its documentation says."""

from __future__ import annotations

import io
import itertools
import math
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image

from benchmarks.stream import BATCH, NUM_CLASSES, SIZE
from msltrain.stream.config import StreamConfig
from msltrain.stream.loader import Loader
from msltrain.stream.samples.shardset import open_shard_set

SCALE, RATIO = (0.7, 1.0), (3 / 4, 4 / 3)

Pixels = Callable[[bytes], Any]
"""One photograph's bytes to its square."""
Epoch = Callable[[], Iterator[tuple[Any, Any]]]
"""Begins an epoch: batches of images and labels, each valid until the next one is asked for."""


# What is done to one photograph


def pillow() -> Pixels:
    from torchvision import transforms

    transform = transforms.Compose(
        [
            transforms.RandomHorizontalFlip(),
            transforms.RandomResizedCrop(SIZE, scale=SCALE),
            transforms.ToTensor(),
        ]
    )

    def pixels(data: bytes) -> torch.Tensor:
        with Image.open(io.BytesIO(data)) as image:
            return transform(image.convert("RGB"))

    return pixels


class Scratch(threading.local):
    """Memory of each thread for the image that it decodes; new pages for every image would cost a third more."""

    def __init__(self) -> None:
        self.bytes_N = np.empty(1 << 22, dtype=np.uint8)


SCRATCH = Scratch()


def fastest() -> Pixels:
    def pixels(data: bytes) -> torch.Tensor:
        image_HWC = simplejpeg.decode_jpeg(data, buffer=SCRATCH.bytes_N)
        top, left, height, width = random_box(*image_HWC.shape[:2])
        box_1CHW = torch.from_numpy(image_HWC[None, top : top + height, left : left + width]).permute(0, 3, 1, 2)
        # The kernel would choose channels first, which is slower, here and when a batch is stacked.
        small_1HWC = torch.empty((1, SIZE, SIZE, 3), dtype=torch.uint8)
        torch.ops.aten._upsample_bilinear2d_aa.out(box_1CHW, [SIZE, SIZE], False, out=small_1HWC.permute(0, 3, 1, 2))
        return small_1HWC[0]

    return pixels


def random_box(height: int, width: int) -> tuple[int, int, int, int]:
    """(top, left, height, width) as torchvision's RandomResizedCrop draws them, without its tensors of one number."""
    for _ in range(10):
        area, ratio = height * width * random.uniform(*SCALE), math.exp(random.uniform(*map(math.log, RATIO)))
        box_height, box_width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if box_height <= height and box_width <= width:
            return random.randint(0, height - box_height), random.randint(0, width - box_width), box_height, box_width
    return 0, 0, height, width


DECODERS: dict[str, Callable[[], Pixels]] = {"Pillow": pillow, "simplejpeg": fastest}


def stacked(samples: Sequence[tuple[Any, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.stack([pixels for pixels, _ in samples]), torch.tensor([label for _, label in samples])


# The loaders: each is made from a folder with the photographs, what to do to one of them, and a number of workers


def files(work: Path) -> list[Path]:
    return sorted((work / "files").glob("*.jpg"))


def label_of(path: Path) -> int:
    return int(path.stem) % NUM_CLASSES


class Mapped(torch.utils.data.Dataset):
    """Any dataset of bytes and labels by number, with the decoder behind it."""

    def __init__(self, dataset: Any, pixels: Pixels):
        self.dataset, self.pixels = dataset, pixels

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> tuple[Any, int]:
        data, label = self.dataset[number]
        return self.pixels(data), label


class Files:
    """The photographs as files."""

    def __init__(self, work: Path):
        self.paths = files(work)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> tuple[bytes, int]:
        return self.paths[number].read_bytes(), label_of(self.paths[number])

    def __iter__(self) -> Iterator[tuple[bytes, int]]:
        return map(self.__getitem__, range(len(self)))


def workers_of(workers: int) -> dict[str, Any]:
    return {"batch_size": BATCH, "drop_last": True, "num_workers": workers, "persistent_workers": True}


def no_loader(work: Path, decoder: str, workers: int) -> Epoch:
    pixels, samples = DECODERS[decoder](), list(Files(work))

    def epoch() -> Iterator[tuple[Any, Any]]:
        random.shuffle(samples)
        for first in range(0, len(samples) - BATCH + 1, BATCH):
            yield stacked([(pixels(data), label) for data, label in samples[first : first + BATCH]])

    return epoch


def ours(work: Path, decoder: str, workers: int) -> Epoch:
    memory = 20.0 if decoder == "RAM" else 0.0
    config = StreamConfig(image_size=SIZE, batch_size=BATCH, num_threads=workers, ram_cache_gb=memory)
    loader, numbers = Loader(open_shard_set(work / "shards"), config, device="cpu", training=True), itertools.count()

    def epoch() -> Iterator[tuple[Any, Any]]:
        loader.set_epoch(next(numbers))
        if decoder == "float":
            for batch in loader:
                yield batch.image_BCHW, batch.target_BK
        else:
            for host_batch in loader.host_batches():
                yield host_batch.pixels, host_batch.target_BK

    return epoch


def dataloader(work: Path, decoder: str, workers: int) -> Epoch:
    dataset = Mapped(Files(work), DECODERS[decoder]())
    return torch.utils.data.DataLoader(dataset, shuffle=True, **workers_of(workers)).__iter__


def webdataset(work: Path, decoder: str, workers: int) -> Epoch:
    import webdataset as wds

    tars = sorted(str(path) for path in (work / "shards").glob("*.tar"))
    samples = wds.WebDataset(tars, shardshuffle=len(tars), empty_check=False).shuffle(1000)
    samples = samples.to_tuple("jpg", "__key__").map_tuple(DECODERS[decoder](), lambda key: int(key) % NUM_CLASSES)
    batched = samples.batched(BATCH, partial=False, collation_fn=stacked)
    return wds.WebLoader(batched, batch_size=None, num_workers=workers, persistent_workers=True).__iter__


def litdata(work: Path, decoder: str, workers: int) -> Epoch:
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming import Cache

    folder = work / "litdata"
    if not folder.exists():
        cache = Cache(str(folder), chunk_bytes="64MB")
        for number, (data, label) in enumerate(Files(work)):
            cache[number] = {"jpg": data, "label": label}
        cache.done()
        cache.merge()
    pixels = DECODERS[decoder]()

    class Photographs(StreamingDataset):
        def __getitem__(self, index: Any) -> tuple[Any, int]:
            sample = super().__getitem__(index)
            return pixels(sample["jpg"]), sample["label"]

    return StreamingDataLoader(Photographs(str(folder), shuffle=True), **workers_of(workers)).__iter__


def mosaicml(work: Path, decoder: str, workers: int) -> Epoch:
    from streaming import MDSWriter, StreamingDataset

    folder = work / "mosaicml"
    if not folder.exists():
        with MDSWriter(out=str(folder), columns={"jpg": "bytes", "label": "int"}) as writer:
            for data, label in Files(work):
                writer.write({"jpg": data, "label": label})
    pixels = DECODERS[decoder]()

    class Photographs(StreamingDataset):
        def __getitem__(self, index: Any) -> tuple[Any, int]:
            sample = super().__getitem__(index)
            return pixels(sample["jpg"]), sample["label"]

    dataset = Photographs(local=str(folder), shuffle=True, batch_size=BATCH)
    return torch.utils.data.DataLoader(dataset, **workers_of(workers)).__iter__


def huggingface(work: Path, decoder: str, workers: int) -> Epoch:
    import datasets

    folder = work / "huggingface"
    if not folder.exists():
        data, labels = zip(*Files(work))
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        images = [{"bytes": one, "path": None} for one in data]
        datasets.Dataset.from_dict({"image": images, "label": labels}, features).save_to_disk(str(folder))
    # Its own decoder is Pillow's; the transform of either gets the bytes, which spares Pillow's from decoding twice.
    dataset = datasets.load_from_disk(str(folder)).cast_column("image", datasets.Image(decode=False))
    pixels = DECODERS[decoder]()

    def transform(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {"image": [pixels(image["bytes"]) for image in rows["image"]], "label": rows["label"]}

    batches = torch.utils.data.DataLoader(dataset.with_transform(transform), shuffle=True, **workers_of(workers))
    return lambda: ((batch["image"], batch["label"]) for batch in batches)


def lance(work: Path, decoder: str, workers: int) -> Epoch:
    import pyarrow as pa
    from lance import write_dataset
    from lance.torch.data import SafeLanceDataset, get_safe_loader

    folder = work / "photographs.lance"
    if not folder.exists():
        data, labels = zip(*Files(work))
        write_dataset(pa.table({"jpg": pa.array(data, pa.large_binary()), "label": labels}), str(folder))
    collate = partial(collate_rows, decoder)
    return get_safe_loader(
        SafeLanceDataset(str(folder)), shuffle=True, collate_fn=collate, **workers_of(workers)
    ).__iter__


def collate_rows(decoder: str, rows: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch from Lance's rows; a function of the module, because its workers are spawned."""
    pixels = DECODERS[decoder]()
    return stacked([(pixels(row["jpg"]), row["label"]) for row in rows])


def grain(work: Path, decoder: str, workers: int) -> Epoch:
    import grain as google_grain
    from array_record.python.array_record_module import ArrayRecordWriter

    file = work / "photographs.array_record"
    if not file.exists():
        writer = ArrayRecordWriter(str(file), "group_size:1")
        for data, label in Files(work):
            writer.write(bytes([label]) + data)
        writer.close()
    pixels, numbers = DECODERS[decoder](), itertools.count()
    source = google_grain.sources.ArrayRecordDataSource([str(file)])
    options = google_grain.ReadOptions(num_threads=workers, prefetch_buffer_size=4)

    def epoch() -> Iterator[tuple[Any, Any]]:
        shuffled = google_grain.MapDataset.source(source).seed(next(numbers)).shuffle()
        decoded = shuffled.map(lambda record: (pixels(record[1:]).numpy(), record[0]))
        return iter(decoded.batch(BATCH, drop_remainder=True).to_iter_dataset(options))

    return epoch


def spdl(work: Path, decoder: str, workers: int) -> Epoch:
    from spdl.pipeline import PipelineBuilder

    paths = files(work)
    load, collate = spdl_stages(decoder)

    def epoch() -> Iterator[tuple[Any, Any]]:
        random.shuffle(paths)
        pipeline = (
            PipelineBuilder()
            .add_source(paths)
            .pipe(load, concurrency=workers)
            .aggregate(BATCH, drop_last=True)
            .pipe(collate)
            .add_sink(4)
            .build(num_threads=workers)
        )
        with pipeline.auto_stop():
            yield from pipeline

    return epoch


def spdl_stages(decoder: str) -> tuple[Callable[[Path], Any], Callable[[list[Any]], Any]]:
    """What SPDL does to a path, and to the outcomes of a batch."""
    if decoder != "own":
        pixels = DECODERS[decoder]()
        return lambda path: (pixels(path.read_bytes()), label_of(path)), stacked
    import spdl.io

    def load(path: Path) -> Any:
        area, ratio = random.uniform(*SCALE), math.exp(random.uniform(*map(math.log, RATIO)))
        x, y = random.random(), random.random()
        # The whole width or height where the box would not fit.
        crop = (
            f"crop=w='min(iw,sqrt(iw*ih*{area * ratio}))':h='min(ih,sqrt(iw*ih*{area / ratio}))'"
            f":x='(iw-ow)*{x}':y='(ih-oh)*{y}'"
        )
        filters = f"{crop},scale={SIZE}:{SIZE}:flags=bilinear,format=pix_fmts=rgb24"
        return spdl.io.decode_packets(spdl.io.demux_image(str(path)), filter_desc=filters), label_of(path)

    def collate(samples: list[Any]) -> Any:
        frames, labels = zip(*samples)
        return spdl.io.to_torch(spdl.io.convert_frames(list(frames))), torch.tensor(labels)

    return load, collate


def dali(work: Path, decoder: str, workers: int) -> Epoch:
    from nvidia.dali import fn, pipeline_def, types

    paths = files(work)

    @pipeline_def(batch_size=BATCH, num_threads=workers, device_id=None, prefetch_queue_depth=2)
    def pipeline() -> Any:
        jpg, label = fn.readers.file(
            files=[str(path) for path in paths], labels=[label_of(path) for path in paths], shuffle_after_epoch=True
        )
        image = fn.decoders.image_random_crop(
            jpg, device="cpu", random_area=SCALE, random_aspect_ratio=RATIO, output_type=types.RGB
        )
        return fn.resize(image, size=[SIZE, SIZE], interp_type=types.INTERP_LINEAR, antialias=True), label

    built = pipeline()
    built.build()

    def epoch() -> Iterator[tuple[Any, Any]]:
        for _ in range(len(paths) // BATCH):
            images, labels = built.run()
            yield np.asarray(images.as_tensor()), np.asarray(labels.as_tensor())

    return epoch


def ffcv(work: Path, decoder: str, workers: int) -> Epoch:
    from ffcv.fields import IntField, RGBImageField
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader as FFCVLoader
    from ffcv.loader import OrderOption
    from ffcv.transforms import ToTensor
    from ffcv.writer import DatasetWriter

    beton = work / f"{decoder}.beton"
    if not beton.exists():
        dataset = Mapped(Files(work), lambda data: Image.open(io.BytesIO(data)).convert("RGB"))
        # It encodes anew, whatever it is given.
        mode = {"write_mode": "raw"} if decoder == "raw" else {"write_mode": "jpg", "jpeg_quality": int(decoder[1:])}
        fields = {"image": RGBImageField(**mode), "label": IntField()}
        DatasetWriter(str(beton), fields, num_workers=workers).from_indexed_dataset(dataset)
    crop = RandomResizedCropRGBImageDecoder((SIZE, SIZE), scale=SCALE, ratio=RATIO)
    return FFCVLoader(
        str(beton),
        batch_size=BATCH,
        num_workers=workers,
        order=OrderOption.RANDOM,
        os_cache=True,
        drop_last=True,
        pipelines={"image": [crop, ToTensor()], "label": [IntDecoder(), ToTensor()]},
    ).__iter__


@dataclass(frozen=True)
class Peer:
    """A loader: where it comes from, what makes it, and the ways in which it decodes."""

    package: str
    make: Callable[[Path, str, int], Epoch]
    workers: str
    decoders: tuple[str, ...] = field(default=("Pillow", "simplejpeg"))


PEERS = {
    "no loader": Peer("torch", no_loader, "none"),
    "ours": Peer("msltrain", ours, "threads", ("float", "uint8", "RAM")),
    "DataLoader": Peer("torch", dataloader, "processes"),
    "webdataset": Peer("webdataset", webdataset, "processes"),
    "LitData": Peer("litdata", litdata, "processes"),
    "MosaicML": Peer("mosaicml-streaming", mosaicml, "processes"),
    "HF datasets": Peer("datasets", huggingface, "processes"),
    "Lance": Peer("pylance", lance, "processes"),
    "Grain": Peer("grain", grain, "threads"),
    "SPDL": Peer("spdl-core", spdl, "threads", ("Pillow", "simplejpeg", "own")),
    "DALI": Peer("nvidia-dali-cuda120", dali, "threads", ("own",)),
    "FFCV": Peer("ffcv", ffcv, "threads", ("q90", "q95", "raw")),
}


def installed(peer: Peer) -> str | None:
    """The version, or None."""
    try:
        return version(peer.package)
    except PackageNotFoundError:
        return None
