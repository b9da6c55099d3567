"""The stream in other people's loops: Lightning, networks, data sets and transforms of one's own."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from msldata.errors import UserError
from msltrain import IrregularHoles, KeepMasks, Loader, LossConfig, SiameseStep, StreamConfig
from msltrain.stream.order.random import key_hash
from tests.smallshards import write_images, write_keep_masks

CONFIG = StreamConfig(image_size=16, batch_size=8, num_threads=1)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_images(folder, [30, 12])
    return folder


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    """Eight keep masks, each with another number of hidden rows."""
    folder = tmp_path_factory.mktemp("masks")
    write_keep_masks(folder, [(np.arange(16)[:, None] >= 2 * n).repeat(16, 1).astype(np.uint8) for n in range(8)])
    return folder


def network(num_classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))
    return nn.Sequential(*layers)


def expected_keys(shards, num_batches: int) -> list[tuple[str, ...]]:
    """Of the first batches of a run, epoch after epoch."""
    found = []
    with Loader(shards, CONFIG, training=True) as loader:
        while len(found) < num_batches:
            found += [tuple(batch.keys) for batch in loader]
    return found[:num_batches]


def test_a_caller_who_counts_batches_meets_another_order_in_every_epoch(shards):
    """As Lightning does: it takes as many as there are, and never asks for one more."""
    with Loader(shards, CONFIG, training=True) as loader:
        for epoch in range(3):
            keys = [tuple(batch.keys) for _, batch in zip(range(len(loader)), loader)]
            assert keys == expected_keys(shards, 15)[5 * epoch : 5 * epoch + 5]
        end = loader.state_dict()
        assert (end["epoch"], end["step"]) == (2, 5)
        loader.set_epoch(2)
        loader.load_state_dict(end)
        assert [tuple(batch.keys) for batch in loader] == expected_keys(shards, 20)[15:], "the end is a beginning"


def test_lightning_trains_saves_and_goes_on_in_the_middle_of_an_epoch(shards, tmp_path):
    lightning = pytest.importorskip("lightning", reason="needs lightning; install the extra 'test'")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.step, self.seen = SiameseStep(network()), []

        def training_step(self, batch, batch_index):
            self.seen.append(tuple(batch.keys))
            self.dtype_seen = batch.image_BCHW.dtype
            losses = self.step(batch.image_BCHW, torch.ones(len(batch), 1, 16, 16), batch.target_BK)
            self.log_dict(losses)  # which makes Lightning look for the batch's size
            return losses["total"]

        def validation_step(self, batch, batch_index):
            self.log("logit", self.step.recogniser(batch.image_BCHW).mean())

        def on_train_batch_end(self, *_):
            if self.global_step == 7:
                self.trainer.save_checkpoint(tmp_path / "seven.ckpt")

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    def fit(checkpoint=None, max_steps=13, **options) -> Module:
        module = Module()
        shown = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = lightning.Trainer(
            max_steps=max_steps, accelerator="cpu", devices=1, enable_checkpointing=False, **shown, **options
        )
        with Loader(shards, CONFIG, training=True) as training, Loader(shards, CONFIG, training=False) as validation:
            trainer.fit(module, training, validation, ckpt_path=checkpoint)
        return module

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert fit().seen == expected_keys(shards, 13)
        assert fit(tmp_path / "seven.ckpt").seen == expected_keys(shards, 13)[7:]
        first_of_each = [keys for epoch in range(2) for keys in expected_keys(shards, 10)[5 * epoch : 5 * epoch + 2]]
        assert fit(max_steps=4, limit_train_batches=2).seen == first_of_each, "cut short, epochs differ all the same"
        assert fit(max_steps=1, precision="bf16-true").dtype_seen == torch.bfloat16  # casts a batch field by field


def test_accelerate_takes_loader_and_batches_as_they_are(shards):
    accelerate = pytest.importorskip("accelerate", reason="needs accelerate; install the extra 'test'")
    with Loader(shards, CONFIG, training=True) as loader:
        assert accelerate.Accelerator(cpu=True).prepare(loader) is loader
        batch = next(iter(loader))
    assert accelerate.utils.send_to_device(batch, "meta").image_BCHW.is_meta


def test_keep_masks_of_keys_are_those_of_batches(shards, masks):
    keep_masks = KeepMasks.open(masks, 16)
    with Loader(shards, CONFIG, training=True) as loader:
        batch = next(iter(loader))
    of_batch = keep_masks.keep_masks(batch, seed=0, epoch=4)
    assert torch.equal(keep_masks.of_keys(batch.keys, epoch=4), of_batch)
    assert torch.equal(
        keep_masks.of_keys(iter(batch.keys), epoch=4), keep_masks.of_hashes(key_hash(batch.keys), seed=0, epoch=4)
    )
    assert not torch.equal(keep_masks.of_keys(batch.keys, epoch=5), of_batch)
    with pytest.raises(UserError, match="keys is the text 'street'; give a list"):
        keep_masks.of_keys("street", epoch=0)
    with pytest.raises(UserError, match="the key 7 is not text"):
        keep_masks.of_keys(["a", 7], epoch=0)


def test_a_step_around_any_network_says_what_does_not_fit():
    step = SiameseStep(network())
    image_BCHW, target_BK = torch.rand(4, 3, 16, 16), torch.ones(4, 3, dtype=torch.int64)
    keep_mask_B1HW = torch.ones(4, 1, 16, 16)
    losses = step(image_BCHW, keep_mask_B1HW, target_BK)
    assert torch.equal(losses["total"], step(image_BCHW, keep_mask_B1HW, target_BK.float())["total"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(loss.dtype == torch.float32 for loss in step(image_BCHW, keep_mask_B1HW, target_BK).values())
    with pytest.raises(UserError, match="keep_mask_B1HW is None"):
        step(image_BCHW, None, target_BK)
    SiameseStep(network(), LossConfig(clean_weight=1, masked_weight=0, consistency_weight=0))(
        image_BCHW, None, target_BK
    )
    with pytest.raises(UserError, match=r"gives \(4, 3\) and the targets are \(4, 1\)"):
        step(image_BCHW, keep_mask_B1HW, target_BK[:, :1])

    class Talkative(nn.Module):
        def forward(self, image_BCHW):
            return {"logits": image_BCHW.mean(dim=(2, 3))}

    with pytest.raises(UserError, match="gives a dict; wrap it"):
        SiameseStep(Talkative())(image_BCHW, keep_mask_B1HW, target_BK)


def test_irregular_holes_hide_the_part_that_their_keep_mask_says(masks):
    holes = IrregularHoles(masks, image_size=16)
    image = torch.rand(3, 16, 16) + 1
    torch.manual_seed(3)
    masked, keep_mask = holes(image)
    assert keep_mask.shape == (1, 16, 16) and isinstance(keep_mask, tv_tensors.Mask)
    assert torch.equal(masked, image * keep_mask) and type(masked) is torch.Tensor
    torch.manual_seed(3)
    assert torch.equal(holes(image)[1], keep_mask), "torch's generator decides"
    met = {float(holes(image)[1].mean()) for _ in range(200)}
    assert len(met) == len(holes.keep_masks) == 8, "all of them are met"

    batch = torch.stack([image] * 64)
    masked_batch, keep_batch, label = holes(batch, "cat")
    assert keep_batch.shape == (64, 1, 16, 16) and label == "cat"
    assert len(set(keep_batch.mean(dim=(1, 2, 3)).tolist())) > 4, "each image of a batch has a mask of its own"
    assert torch.equal(masked_batch, batch * keep_batch)

    picture = Image.new("RGB", (16, 16), (200, 100, 50))
    seen, keep_mask = holes(picture)
    assert isinstance(seen, Image.Image) and seen.mode == "RGB"
    np.testing.assert_array_equal(
        np.asarray(seen), np.asarray(picture) * keep_mask[0].numpy()[..., None].astype(np.uint8)
    )
    wrapped, _ = holes(tv_tensors.Image(torch.full((3, 16, 16), 7, dtype=torch.uint8)))
    assert isinstance(wrapped, tv_tensors.Image) and wrapped.dtype == torch.uint8

    pipeline = pickle.loads(pickle.dumps(v2.Compose([v2.Resize((16, 16)), v2.PILToTensor(), holes])))  # for workers
    assert [one.shape for one in pipeline(Image.new("RGB", (40, 30)))] == [(3, 16, 16), (1, 16, 16)]
    with pytest.raises(UserError, match=r"an image is \(3, 20, 16\) and the keep masks are 16×16"):
        holes(torch.rand(3, 20, 16))
    with pytest.raises(UserError, match="needs image_size"):
        IrregularHoles(masks)
    assert len(IrregularHoles(KeepMasks.open(masks, 16)).keep_masks) == 8
