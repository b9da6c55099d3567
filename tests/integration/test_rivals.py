"""Every augmentation and loss trains on real photographs, beside the masked branch."""

from __future__ import annotations

import pytest
import torch

from msldata.api import build_shards, open_source
from msltrain.config import override
from msltrain.hosts.distributed import Ranks
from msltrain.recipes import recipe
from msltrain.training.data import TrainData
from msltrain.training.learner import Learner

RIVALS = [
    "augment.randaugment=2",
    "augment.erase=cutout",
    "augment.erase=random",
    "augment.mix=mixup",
    "augment.mix=cutmix",
    "augment.mix=splicemix",
    "loss.recognition=asl loss.asl_detach=true",
    "loss.recognition=hill",
    "loss.recognition=splc loss.splc_epoch=0",
]
SMALL = ("model.backbone=test_resnet", "stream.image_size=64", "stream.batch_size=4", "keep_mask.kind=patch")
STEPS = 2


@pytest.fixture(scope="module")
def shards(sample, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards") / "train"
    build_shards(open_source("voc2007", sample / "VOCdevkit" / "VOC2007", "train"), folder, workers=1)
    return folder


@pytest.mark.real
def test_every_rival_trains_on_real_photographs(shards):
    plain = override(recipe("smoke"), [f"data.train={shards}", "data.validation_fraction=0", *SMALL])
    ranks = Ranks(0, 1, torch.device("cpu"))
    first = {}
    for rival in ("", *RIVALS):
        config = override(plain, rival.split())
        with TrainData(config, ranks) as data:
            learner = Learner(config, len(data.classes), ranks, None, data.classes)
            before = {name: weight.detach().clone() for name, weight in learner.recogniser.named_parameters()}
            losses = []
            for _, batch in zip(range(STEPS), data.training):
                batch = data.augmented(batch, 0)
                losses.append(learner.take_step(batch, data.masked_view(batch, 0), 0.01, 0))
        assert len(losses) == STEPS
        assert all(torch.isfinite(loss) for terms in losses for loss in terms.values()), rival
        after = dict(learner.recogniser.named_parameters())
        assert all(weight.isfinite().all() for weight in after.values()), rival
        assert any(not torch.equal(before[name], weight) for name, weight in after.items()), rival
        first[rival] = losses[0]["total"].item()
    assert len(set(first.values())) == len(first), f"some do nothing: {first}"
