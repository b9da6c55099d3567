"""Heads with queries among the other parts: own weights by class name, patches left out, settings that cannot work."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from msldata.errors import UserError
from msltrain.config import LossConfig, ModelConfig
from msltrain.models.build import build_model
from msltrain.models.own_weights import OwnWeights, fill_from_own
from msltrain.models.query_heads import MLDecoderHead, Query2LabelHead
from msltrain.training.siamese import SiameseStep

BEFORE, NOW = ("bird", "cat", "dog", "fish"), ("dog", "emu", "bird")


def taken(before: nn.Module, head: nn.Module, classes: tuple[str, ...]) -> str:
    tensors = {f"classifier.{name}": tensor for name, tensor in before.state_dict().items()}
    own = OwnWeights(source="a run", tensors=tensors, classes=BEFORE)
    return fill_from_own(nn.Module(), head, own, classes).head


@pytest.mark.parametrize("kind", [MLDecoderHead, Query2LabelHead])
def test_classes_are_taken_over_by_name_and_the_decoder_whole(kind):
    before, head = kind(8, 4, width=16, hidden=8).eval(), kind(8, 3, width=16, hidden=8).eval()
    feature = torch.randn(2, 8, 2, 2)
    assert taken(before, head, NOW) == "the head's 2 classes that both know; new: emu"
    with torch.no_grad():
        torch.testing.assert_close(head(feature)[:, [0, 2]], before(feature)[:, [2, 0]])
    wider = kind(8, 3, width=24, hidden=8)
    assert taken(before, wider, NOW) == "head not taken: it is of another kind"


def test_shared_queries_serve_one_list_of_classes():
    before, head = (MLDecoderHead(8, 4, num_queries=2, width=16, hidden=8).eval() for _ in range(2))
    assert taken(before, head, BEFORE[::-1]).startswith("head not taken: its weights are shared by classes")
    assert taken(before, head, BEFORE) == "the head with all its classes"
    feature = torch.randn(1, 8, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(head(feature), before(feature))


def test_query2label_needs_every_patch_and_ml_decoder_does_not():
    loss = LossConfig(drop_hidden_tokens=0.5)
    small = {"backbone": "test_vit", "decoder_width": 16, "decoder_hidden": 8}
    images, keep_masks = torch.rand(2, 3, 160, 160), torch.ones(2, 1, 160, 160)
    keep_masks[..., :80] = 0
    with pytest.raises(UserError, match=r"model\.head=q2l needs all positions; set it to 0"):
        SiameseStep(build_model(ModelConfig(head="q2l", **small), 3, image_size=160), loss)
    step = SiameseStep(build_model(ModelConfig(head="mldecoder", **small), 3, image_size=160), loss)
    step(images, keep_masks, torch.zeros(2, 3))["total"].backward()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"head": "mldecoder", "decoder_width": 20}, "model.decoder_width: 20 is not a multiple of 8"),
        ({"head": "q2l", "decoder_width": 18}, "model.decoder_width: 18 is not a multiple of 4"),
        ({"num_queries": -1}, "model.num_queries: -1 is not 0 or more"),
        ({"head_dropout": 1.0}, r"model.head_dropout: 1.0 is not 0 to below 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        ModelConfig(**settings)


def test_queries_are_added_to_themselves_under_dropout_and_attention_drops_in_training_alone():
    """A dropout that leaves nothing leaves the queries themselves; in evaluation the same answer comes twice."""
    torch.manual_seed(0)
    head = MLDecoderHead(8, 4, width=16, hidden=8, dropout=0.5)
    seen: list[torch.Tensor] = []
    head.norm_query.register_forward_hook(lambda norm, given, answer: seen.append(given[0]))
    feature = torch.randn(2, 8, 2, 2)
    head.eval()(feature)
    assert torch.equal(seen[0], 2 * head.query.expand(2, -1, -1))
    assert torch.equal(head(feature), head(feature))
    for part in head.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    assert not torch.equal(head.train()(feature), head(feature)), "attention's weights are dropped by a rate of its own"
    with torch.random.fork_rng():
        head.dropout.p = 1.0
        head(feature)
    assert torch.equal(seen[-1], head.query.expand(2, -1, -1))


def test_perceptrons_are_four_times_as_wide_as_the_decoder():
    assert Query2LabelHead(8, 3, width=16).encoder.linear_in.weight.shape == (64, 16)
    assert Query2LabelHead(8, 3).encoder.linear_in.weight.shape == (32, 8)
    assert MLDecoderHead(8, 3).decoder.linear_in.weight.shape == (2048, 768)
