"""What the study trains: stages, settings, and the data they need."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

from msltrain.config import TrainConfig, override
from msltrain.recipes import configure

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = REPOSITORY.parent / "shared"
IMAGENET = ("stream.mean=0.485,0.456,0.406", "stream.std=0.229,0.224,0.225")


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where things lie."""

    work: Path
    photographs: Path = Path(os.environ.get("MSL_VOC224", SHARED / "voc224"))
    sample: Path = Path(os.environ.get("MSL_SAMPLE", SHARED / "sample"))
    weights: Path = Path(os.environ.get("MSL_WEIGHTS", SHARED / "weights"))

    @property
    def locks(self) -> Path:
        return self.work / "locks"

    def build(self) -> None:
        """Shards and masks; what is there is left alone. Studies that start together wait for the first one's."""
        self.locks.mkdir(parents=True, exist_ok=True)
        with open(self.locks / "build", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._build()

    def _build(self) -> None:
        voc, small = self.photographs / "VOCdevkit/VOC2007", self.work / "small/VOCdevkit/VOC2007"
        ids = (voc / "ImageSets/Main/train.txt").read_text().split()
        lists = small / "ImageSets/Main"
        lists.mkdir(parents=True, exist_ok=True)
        some = sorted(sorted(ids, key=lambda name: hashlib.sha256(name.encode()).digest())[:400])
        (lists / "train.txt").write_text("".join(f"{name}\n" for name in some))
        for folder in ("JPEGImages", "Annotations"):
            if not (small / folder).exists():
                (small / folder).symlink_to(voc / folder)
        single = self.work / "single/VOCdevkit/VOC2007"
        if not (single / "ImageSets").exists():
            _keep_one_class(voc, single, ids)
        once = self._once
        shards = (
            "build-shards",
            "--dataset",
            "voc2007",
            "--workers",
            1,
            "--samples-per-shard",
            500,
            "--out",
            self.work,
        )
        once("voc/train", *shards, "--source", self.photographs, "--name", "voc", "--split", "train", "--split", "val")
        once("sample/test", *shards, "--source", self.sample, "--name", "sample", "--split", "test")
        once("voc400/train", *shards, "--source", self.work / "small", "--name", "voc400", "--split", "train")
        once("voc1/train", *shards, "--source", self.work / "single", "--name", "voc1", "--split", "train")
        masks = ("build-masks", "--threshold", 0.5, "--per-subset", 0, "--workers", 1)
        once("masks/high", *masks, "--generate", 1500, "--size", 224, "--seed", 0, "--out", self.work / "masks")
        files = self.work / "test-masks.txt"
        files.write_text(
            "".join(f"{file.resolve()}\n" for file in sorted((self.sample / "irregular_mask").rglob("*.png")))
        )
        once(
            "test-masks/high", *masks, "--source", files, "--polarity", "hole-white", "--out", self.work / "test-masks"
        )
        once(
            "reef-raw/VOCdevkit",
            "synthesize",
            "--out",
            self.work / "reef-raw",
            "--num-train",
            3600,
            "--num-test",
            1000,
            "--size",
            128,
            "--seed",
            0,
        )
        once("reef/trainval", *shards, "--source", self.work / "reef-raw", "--name", "reef")
        once(
            "reef-masks/high", *masks, "--generate", 1500, "--size", 128, "--seed", 0, "--out", self.work / "reef-masks"
        )
        once(
            "reef-test-masks/high",
            *masks,
            "--generate",
            900,
            "--size",
            128,
            "--seed",
            1,
            "--out",
            self.work / "reef-test-masks",
        )

    def _once(self, product: str, *arguments: object) -> None:
        if not (self.work / product).exists():
            command = [sys.executable, "-m", "msltrain", *map(str, arguments)]
            subprocess.run(command, check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL)


def _keep_one_class(voc: Path, single: Path, ids: list[str]) -> None:
    """VOC's training images in ``single``, with the objects of one class each, drawn by a hash of the image's name."""
    (single / "Annotations").mkdir(parents=True, exist_ok=True)
    for image_id in ids:
        tree = ElementTree.parse(voc / "Annotations" / f"{image_id}.xml")
        objects = tree.findall("object")
        certain = sorted({one.findtext("name", "") for one in objects if one.findtext("difficult") != "1"})
        lot = int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8], "big")
        for one in objects:
            if certain and one.findtext("name") != certain[lot % len(certain)]:
                tree.getroot().remove(one)
        tree.write(single / "Annotations" / f"{image_id}.xml")
    if not (single / "JPEGImages").exists():
        (single / "JPEGImages").symlink_to(voc / "JPEGImages")
    (single / "ImageSets/Main").mkdir(parents=True)
    (single / "ImageSets/Main/train.txt").write_text("".join(f"{image_id}\n" for image_id in ids))


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Data, network and budget."""

    train: str
    """In the work folder, as all of these."""
    test: str
    masks: str
    test_masks: str
    recipe: str
    weights: str = ""
    """File below the sample or the weights folder."""
    epochs: int
    settings: tuple[str, ...]
    views: tuple[str, ...] = ("whole", "low", "high")
    """What is measured."""
    flagged: str = ""
    """Other test images, whose annotations say which objects are truncated."""


def _voc(train: str, epochs: int, size: int, *more: str, lite: bool = False) -> Stage:
    network = (
        ("model.backbone=tf_efficientnet_lite0", "stream.mean=0.5,0.5,0.5", "stream.std=0.5,0.5,0.5")
        if lite
        else ("model.backbone=mobilenetv2_100", *IMAGENET)
    )
    return Stage(
        train=f"{train}/train",
        test="voc/val",
        masks="masks",
        test_masks="test-masks",
        recipe="msl-c-voc2007",
        weights="tf_efficientnet_lite0.safetensors" if lite else "weights/mobilenet_v2-imagenet-from-tflite-int8.pth",
        epochs=epochs,
        settings=(
            *network,
            f"stream.image_size={size}",
            "stream.batch_size=16",
            "stream.ram_cache_gb=2",
            "stream.num_threads=1",
            "optim.warmup_epochs=1",
            "data.validation_fraction=0",
            "run.log_every=50",
            *more,
        ),
        views=("whole", "low", "high") if (train == "voc" and size >= 160) or size >= 224 else ("whole", "high"),
        flagged="sample/test",
    )


def _reef(epochs: int) -> Stage:
    return Stage(
        train="reef/trainval",
        test="reef/test",
        masks="reef-masks",
        test_masks="reef-test-masks",
        recipe="demo",
        epochs=epochs,
        settings=("stream.ram_cache_gb=1", "stream.num_threads=1", "data.validation_fraction=0", "run.log_every=50"),
    )


STAGES = {
    "small": _voc("voc400", 12, 128),
    "small160": _voc("voc400", 20, 160),
    "full": _voc("voc", 8, 128),
    "full160": _voc("voc", 8, 160),
    "full224": _voc("voc", 8, 224),
    "small224": _voc("voc400", 12, 224),
    "rivals224": dataclasses.replace(_voc("voc400", 6, 224, "run.channels_last=true"), views=("whole", "high")),
    "onelabel160": _voc("voc1", 8, 160),
    "lite": _voc("voc", 8, 128, lite=True),
    "lite224": _voc("voc", 8, 224, lite=True),
    "reef": _reef(16),
    "reef9": _reef(9),
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A way to train."""

    settings: tuple[str, ...]
    masks: tuple[str, ...] = ("high",)
    passes: float = 2.0
    """Of the network over every image, forward and backward; a forward pass alone is a third."""
    longer: float = 1
    """Epochs as a multiple of the stage's."""
    average: tuple[tuple[str, int, float], ...] = ()
    """Nothing is trained: the average of these settings' weights, each of so many seeds further and with its share."""


def _average(*parts: tuple[str, int, float], passes: float) -> Setting:
    return Setting(settings=(), masks=(), passes=passes, average=parts)


def _alpha(clean: float, masked: float, consistency: float = 0) -> tuple[str, ...]:
    pairs = (("clean", clean), ("masked", masked), ("consistency", consistency))
    return tuple(f"loss.{name}_weight={value}" for name, value in pairs)


PLAIN, EQUAL, FULL = _alpha(1, 0), _alpha(0.5, 0.5), _alpha(1, 1)
SINGLE = (*PLAIN, "loss.branches=single", "keep_mask.share=0.5")
SOFT = ("loss.masked_target=whole_image",)
EMA = ("optim.ema_decay=0.995",)
TEACHER = ("loss.masked_target=teacher", *EMA)
OWN_NORMS = ("loss.bn_mode=split",)
CLEAN_NORMS = ("loss.bn_mode=clean_only",)
RUNNING_NORMS = ("loss.bn_mode=running",)
SLOW = ("optim.lr=0.005",)
PRECISE = ("optim.precise_bn_images=1024",)
JOINT_NORMS = ("loss.branches=concatenated",)
MIXED = ("high", "low")
MIXTURE = ("keep_mask.subset_weights=0.6,0.4",)


def _two(*settings: str, masks: tuple[str, ...] = ("high",), passes: float = 2.0, longer: float = 1) -> Setting:
    return Setting(settings=settings, masks=masks, passes=passes, longer=longer)


DECODER = ("optim.optimizer=adamw", "optim.lr=0.0001", "optim.weight_decay=0.01", "optim.classifier_lr_factor=1")
"""As their authors train decoders."""
RIVALS = {
    "mean": ("model.head=mean",),
    "mldecoder": ("model.head=mldecoder", *DECODER),
    "q2l": ("model.head=q2l", *DECODER),
    "adamw": DECODER,
    "asl": ("loss.recognition=asl",),
    "asl-detached": ("loss.recognition=asl", "loss.asl_detach=true"),
    "hill": ("loss.recognition=hill",),
    "splc": ("loss.recognition=splc",),
    "randaugment": ("augment.randaugment=2",),
    "cutout": ("augment.erase=cutout",),
    "erasing": ("augment.erase=random",),
    "mixup": ("augment.mix=mixup",),
    "cutmix": ("augment.mix=cutmix",),
}
"""Other heads, losses and augmentations, without masks; each in as many passes as two branches take."""

SETTINGS = {
    "baseline": _two(*PLAIN, masks=(), passes=1),
    "baseline-2x": _two(*PLAIN, masks=(), passes=1, longer=2),
    "baseline-ema": _two(*PLAIN, *EMA, masks=(), passes=1),
    "baseline-ema-2x": _two(*PLAIN, *EMA, masks=(), passes=1, longer=2),
    "baseline-slow": _two(*PLAIN, *SLOW, masks=(), passes=1),
    "baseline-slower": _two(*PLAIN, "optim.lr=0.0025", masks=(), passes=1),
    "baseline-slow-2x": _two(*PLAIN, *SLOW, masks=(), passes=1, longer=2),
    "single": _two(*SINGLE, passes=1),
    "single-2x": _two(*SINGLE, passes=1, longer=2),
    "single-2x-ema": _two(*SINGLE, *EMA, passes=1, longer=2),
    "single-2x-mixed": _two(*SINGLE, *MIXTURE, masks=MIXED, passes=1, longer=2),
    "msl": _two(),
    "msl-clean": _two(*CLEAN_NORMS),
    "msl-running": _two(*RUNNING_NORMS),
    "hard-full-running": _two(*FULL, *RUNNING_NORMS),
    "masksub-running": _two(*EQUAL, *SOFT, *RUNNING_NORMS),
    "soft-full-running": _two(*FULL, *SOFT, *RUNNING_NORMS),
    "soft-full-running-2x": _two(*FULL, *SOFT, *RUNNING_NORMS, longer=2),
    "soft-light-running": _two(*_alpha(1, 0.5), *SOFT, *RUNNING_NORMS),
    "soft-quarter-running": _two(*_alpha(1, 0.25), *SOFT, *RUNNING_NORMS),
    "masksub-slow-running": _two(*EQUAL, *SOFT, *RUNNING_NORMS, *SLOW),
    "masksub-start25-slow-running": _two(*EQUAL, *SOFT, *RUNNING_NORMS, *SLOW, "keep_mask.start=0.25", passes=1.75),
    **{
        f"masksub-{fill}-start25-slow-running": _two(
            *EQUAL,
            *SOFT,
            *RUNNING_NORMS,
            *SLOW,
            "keep_mask.start=0.25",
            f"keep_mask.fill={fill}",
            passes=1.75,
        )
        for fill in ("image", "object")
    },
    "masksub-start50-slow-running": _two(*EQUAL, *SOFT, *RUNNING_NORMS, *SLOW, "keep_mask.start=0.5", passes=1.5),
    **{
        f"masksub-{name}-start34-joint": _two(
            *EQUAL,
            *SOFT,
            *JOINT_NORMS,
            f"keep_mask.share={share}",
            "keep_mask.start=0.34",
            passes=1 + share * 2 / 3,
        )
        for name, share in (("half", 0.5), ("third", 0.35), ("quarter", 0.25))
    },
    "masksub-half-joint": _two(*EQUAL, *SOFT, *JOINT_NORMS, "keep_mask.share=0.5", passes=1.5),
    "masksub-low-slow-running": _two(*EQUAL, *SOFT, *RUNNING_NORMS, *SLOW, masks=("low",)),
    "masksub-ignore-slow-running": _two(*EQUAL, *SOFT, *RUNNING_NORMS, *SLOW, "keep_mask.ignore_below=0.25"),
    "msl-slow": _two(*SLOW),
    "msl-joint-slow": _two(*SLOW, *JOINT_NORMS),
    "single-slow": _two(*SINGLE, *SLOW, passes=1),
    "soft-full-share25-joint": _two(*FULL, *SOFT, *JOINT_NORMS, "keep_mask.share=0.25", passes=1.25),
    "soft-full-half-joint": _two(*FULL, *SOFT, *JOINT_NORMS, "keep_mask.share=0.5", passes=1.5),
    "soft-full-half-running": _two(*FULL, *SOFT, *RUNNING_NORMS, "keep_mask.share=0.5", passes=1.5),
    "soft-full-mixed-running": _two(*FULL, *SOFT, *RUNNING_NORMS, *MIXTURE, masks=MIXED),
    "soft-full-ema-running": _two(*FULL, *SOFT, *EMA, *RUNNING_NORMS),
    **{
        f"soft-full-{fill}-running": _two(*FULL, *SOFT, *RUNNING_NORMS, f"keep_mask.fill={fill}")
        for fill in ("mean", "noise", "blur", "image", "object")
    },
    "teacher-full-running": _two(*FULL, *TEACHER, *RUNNING_NORMS, passes=2 + 1 / 3),
    "hard-full-clean": _two(*FULL, *CLEAN_NORMS),
    "soft-full-mixed-clean": _two(*FULL, *SOFT, *CLEAN_NORMS, *MIXTURE, masks=MIXED),
    "soft-full-blur-clean": _two(*FULL, *SOFT, *CLEAN_NORMS, "keep_mask.fill=blur"),
    "msl-normalised": _two("loss.normalise_weights=true"),
    "hard": _two(*EQUAL),
    "hard-full": _two(*FULL),
    "masksub": _two(*EQUAL, *SOFT),
    "soft-full": _two(*FULL, *SOFT),
    "soft-light": _two(*_alpha(1, 0.5), *SOFT),
    "soft-full-ramp": _two(*FULL, *SOFT, "keep_mask.ramp_epochs=6", masks=MIXED),
    "soft-full-ema": _two(*FULL, *SOFT, *EMA),
    "teacher": _two(*EQUAL, *TEACHER, passes=2 + 1 / 3),
    "teacher-full": _two(*FULL, *TEACHER, passes=2 + 1 / 3),
    "teacher-full-split": _two(*FULL, *TEACHER, *OWN_NORMS, passes=2 + 1 / 3),
    "teacher-full-clean": _two(*FULL, *TEACHER, *CLEAN_NORMS, passes=2 + 1 / 3),
    "teacher-full-mixed": _two(*FULL, *TEACHER, *MIXTURE, masks=MIXED, passes=2 + 1 / 3),
    "teacher-full-ignore": _two(*FULL, *TEACHER, "keep_mask.ignore_below=0.1", passes=2 + 1 / 3),
    "teacher-full-half": _two(*FULL, *TEACHER, "keep_mask.share=0.5", passes=1.5 + 1 / 3),
    **{
        f"teacher-full-{fill}": _two(*FULL, *TEACHER, f"keep_mask.fill={fill}", passes=2 + 1 / 3)
        for fill in ("mean", "noise", "blur", "image", "object")
    },
    "soft-full-mixed": _two(*FULL, *SOFT, *MIXTURE, masks=MIXED),
    "soft-full-clean": _two(*FULL, *SOFT, *CLEAN_NORMS),
    "soft-full-split": _two(*FULL, *SOFT, *OWN_NORMS),
    "soft-full-half": _two(*FULL, *SOFT, "keep_mask.share=0.5", passes=1.5),
    "soft-full-image": _two(*FULL, *SOFT, "keep_mask.fill=image"),
    "soft-full-image-clean": _two(*FULL, *SOFT, *CLEAN_NORMS, "keep_mask.fill=image"),
    "soft-full-object": _two(*FULL, *SOFT, "keep_mask.fill=object"),
    "soft-full-ema-clean": _two(*FULL, *SOFT, *EMA, *CLEAN_NORMS),
    "soft-full-ema-mixed": _two(*FULL, *SOFT, *EMA, *MIXTURE, masks=MIXED),
    "soft-full-blur": _two(*FULL, *SOFT, "keep_mask.fill=blur"),
    "hard-full-ema": _two(*FULL, *EMA),
    "hard-full-ignore": _two(*FULL, "keep_mask.ignore_below=0.1"),
    "hard-full-mixed": _two(*FULL, *MIXTURE, masks=MIXED),
    "hard-full-ema-mixed": _two(*FULL, *EMA, *MIXTURE, masks=MIXED),
    "average": _average(("baseline-slow", 0, 0.25), ("masksub-slow-running", 0, 0.75), passes=3),
    "average-start25": _average(("baseline-slow", 0, 0.25), ("masksub-start25-slow-running", 0, 0.75), passes=2.75),
    "average-half": _average(("baseline-slow", 0, 0.5), ("masksub-slow-running", 0, 0.5), passes=3),
    "average-baselines": _average(("baseline-slow", 0, 0.5), ("baseline-slow", 1, 0.5), passes=2),
    "average-masked": _average(("masksub-slow-running", 0, 0.5), ("masksub-slow-running", 1, 0.5), passes=4),
    "baseline-precise": _two(*PLAIN, *SLOW, *PRECISE, masks=(), passes=1),
    # As much computing as an average of a plain and a masked network takes.
    "baseline-precise-2.75x": _two(*PLAIN, *SLOW, *PRECISE, masks=(), passes=1, longer=2.75),
    "msl-precise": _two(*PRECISE),
    "masksub-start25-precise": _two(
        *EQUAL, *SOFT, *RUNNING_NORMS, *SLOW, *PRECISE, "keep_mask.start=0.25", passes=1.75
    ),
    **{
        f"average{100 * share:.0f}-precise": _average(
            ("baseline-precise", 0, share), ("masksub-start25-precise", 0, 1 - share), passes=2.75
        )
        for share in (0.25, 0.35, 0.5)
    },
    "baseline-full-rate-precise": _two(*PLAIN, *PRECISE, masks=(), passes=1),
    "masksub-third-start34-joint-precise": _two(
        *EQUAL, *SOFT, *JOINT_NORMS, *PRECISE, "keep_mask.share=0.35", "keep_mask.start=0.34", passes=1.23
    ),
    **{f"{name}-2x": _two(*PLAIN, *more, masks=(), passes=1, longer=2) for name, more in RIVALS.items()},
    "splicemix-2x": _two(*PLAIN, "augment.mix=splicemix", masks=(), passes=1.25, longer=1.6),
}


@dataclass(frozen=True)
class Job:
    """A setting of a stage, with a seed."""

    stage: str
    setting: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.stage}/{self.setting}/{self.seed}"

    @property
    def folder(self) -> str:
        return f"{self.stage}-{self.setting}-{self.seed}-{self.digest}"

    @property
    def epochs(self) -> int:
        return round(STAGES[self.stage].epochs * SETTINGS[self.setting].longer)

    @property
    def assignments(self) -> tuple[str, ...]:
        """What is changed of the stage's recipe."""
        return (
            *STAGES[self.stage].settings,
            *SETTINGS[self.setting].settings,
            f"optim.num_epochs={self.epochs}",
            f"run.seed={self.seed}",
        )

    @property
    def parts(self) -> list[tuple[Job, float]]:
        """What is averaged, with its share; empty for what is trained."""
        return [
            (Job(self.stage, setting, self.seed + further), share)
            for setting, further, share in SETTINGS[self.setting].average
        ]

    @property
    def digest(self) -> str:
        """Of all that decides the outcome."""
        stage = {name: value for name, value in vars(STAGES[self.stage]).items() if name != "flagged"}
        content: list[object] = [stage, SETTINGS[self.setting].masks, self.assignments]
        content += [[part.digest, share] for part, share in self.parts]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]

    def config(self, places: Places) -> TrainConfig:
        stage, masks = STAGES[self.stage], SETTINGS[self.setting].masks
        weights = next(
            (f for f in (places.sample / stage.weights, places.weights / stage.weights) if f.is_file()), None
        )
        config = configure(
            stage.recipe,
            train=str(places.work / stage.train),
            keep_masks=[str(places.work / stage.masks / subset) for subset in masks] or None,
            weights=None if weights is None else str(weights),
        )
        if not masks:
            config = dataclasses.replace(config, data=dataclasses.replace(config.data, keep_masks=()))
        return override(config, self.assignments)
