"""Other loaders for benchmarks/stream.py: each turns the same photographs into batches the way its documentation says.

None of them is a dependency; install what should take part into the environment that runs the benchmark:
``pip install litdata mosaicml-streaming nvidia-dali-cuda120 ffcv``. Each gets the photographs as JPEG bytes in its own
format, the published augmentation, and as many worker processes or threads as we have threads. Those that decode with
Pillow produce float tensors on the host; DALI and FFCV produce uint8, as we do.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

Contender = Callable[[], int]


def missing(name: str) -> bool:
    """Whether a peer cannot be imported here."""
    module = {"litdata": "litdata", "mosaicml": "streaming", "dali": "nvidia.dali", "ffcv": "ffcv"}[name]
    try:
        return importlib.util.find_spec(module) is None
    except ImportError:
        return True


def jpegs(shards: Path) -> Iterator[tuple[bytes, int]]:
    """The photographs of the shards with their class."""
    import webdataset as wds

    tars = sorted(str(path) for path in shards.glob("*.tar"))
    for sample in wds.WebDataset(tars, shardshuffle=False, empty_check=False):
        yield sample["jpg"], int(sample["__key__"]) % 20


def published_transform(size: int):
    from torchvision import transforms

    return transforms.Compose(
        [
            transforms.RandomHorizontalFlip(),
            transforms.RandomResizedCrop(size, scale=(0.7, 1.0)),
            transforms.ToTensor(),
        ]
    )


def litdata(shards: Path, work: Path, size: int, batch: int, workers: int) -> Contender:
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming import Cache
    from PIL import Image

    if not work.exists():
        cache = Cache(str(work), chunk_bytes="64MB")
        for number, (data, label) in enumerate(jpegs(shards)):
            cache[number] = {"jpg": data, "label": label}
        cache.done()
        cache.merge()
    transform = published_transform(size)

    class Photographs(StreamingDataset):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            with Image.open(io.BytesIO(sample["jpg"])) as image:
                return transform(image.convert("RGB")), sample["label"]

    dataset = Photographs(str(work), shuffle=True, drop_last=True)
    batches = StreamingDataLoader(dataset, batch_size=batch, num_workers=workers, persistent_workers=True)
    return lambda: sum(len(image_BCHW) for image_BCHW, _ in batches)


def mosaicml(shards: Path, work: Path, size: int, batch: int, workers: int) -> Contender:
    from PIL import Image
    from streaming import MDSWriter, StreamingDataset

    if not work.exists():
        with MDSWriter(out=str(work), columns={"jpg": "bytes", "label": "int"}) as writer:
            for data, label in jpegs(shards):
                writer.write({"jpg": data, "label": label})
    transform = published_transform(size)

    class Photographs(StreamingDataset):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            with Image.open(io.BytesIO(sample["jpg"])) as image:
                return transform(image.convert("RGB")), sample["label"]

    dataset = Photographs(local=str(work), shuffle=True, batch_size=batch)
    batches = torch.utils.data.DataLoader(
        dataset, batch_size=batch, drop_last=True, num_workers=workers, persistent_workers=True
    )
    return lambda: sum(len(image_BCHW) for image_BCHW, _ in batches)


def dali(shards: Path, work: Path, size: int, batch: int, workers: int) -> Contender:
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=batch, num_threads=workers, device_id=None, prefetch_queue_depth=2)
    def photographs():
        tars = sorted(str(path) for path in shards.glob("*.tar"))
        jpg = fn.readers.webdataset(
            paths=tars,
            ext=["jpg"],
            random_shuffle=True,
            initial_fill=1000,
            name="reader",
            missing_component_behavior="error",
        )
        image = fn.decoders.image_random_crop(
            jpg, device="cpu", random_area=[0.7, 1.0], random_aspect_ratio=[3 / 4, 4 / 3], output_type=types.RGB
        )
        return fn.resize(image, size=[size, size], interp_type=types.INTERP_LINEAR, antialias=True)

    pipeline = photographs()
    pipeline.build()
    num_batches = pipeline.epoch_size("reader") // batch

    def epoch() -> int:
        return sum(pipeline.run()[0].as_tensor().shape()[0] for _ in range(num_batches))

    return epoch


def ffcv(shards: Path, work: Path, size: int, batch: int, workers: int) -> Contender:
    from ffcv.fields import IntField, RGBImageField
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import ToTensor
    from ffcv.writer import DatasetWriter
    from PIL import Image

    work.mkdir(exist_ok=True)
    beton = work / "photographs.beton"
    if not beton.exists():
        samples = list(jpegs(shards))

        class Photographs(torch.utils.data.Dataset):
            def __len__(self) -> int:
                return len(samples)

            def __getitem__(self, index):
                with Image.open(io.BytesIO(samples[index][0])) as image:
                    return image.convert("RGB"), samples[index][1]

        fields = {"image": RGBImageField(write_mode="jpg", jpeg_quality=90), "label": IntField()}
        DatasetWriter(str(beton), fields, num_workers=workers).from_indexed_dataset(Photographs())
    decoder = RandomResizedCropRGBImageDecoder((size, size), scale=(0.7, 1.0))
    batches = Loader(
        str(beton),
        batch_size=batch,
        num_workers=workers,
        order=OrderOption.QUASI_RANDOM,
        drop_last=True,
        pipelines={"image": [decoder, ToTensor()], "label": [IntDecoder(), ToTensor()]},
    )
    return lambda: sum(len(image_BHWC) for image_BHWC, _ in batches)


PEERS = {"litdata": litdata, "mosaicml": mosaicml, "dali": dali, "ffcv": ffcv}
"""By name: made from (our shards, a folder of its own, image size, batch size, workers)."""

if __name__ == "__main__":
    for peer in PEERS:
        print(f"{peer}: {'not installed' if missing(peer) else 'takes part in benchmarks/stream.py'}")
