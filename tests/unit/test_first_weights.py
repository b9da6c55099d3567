"""First weights from a run or an export: which file, which rows of a head by which names, and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from msldata.errors import UserError
from msltrain.config import ModelConfig
from msltrain.models.build import build_model
from msltrain.models.frozen_features import FrozenFeatures
from msltrain.models.heads import CSRAHead, MeanPoolHead
from msltrain.models.own_weights import OwnWeights, fill_from_own, in_our_names, in_timm_names, read_own
from msltrain.models.pretrained import fill_network, fill_whole, read_tensors
from msltrain.stream.pixels.batch import Batch

BEFORE, NOW = ("bird", "cat", "dog", "fish"), ("dog", "emu", "bird", "fish", "ant")


def own_of(head: nn.Module, network: nn.Module, classes: tuple[str, ...] = BEFORE) -> OwnWeights:
    tensors = {f"classifier.{name}": one for name, one in head.state_dict().items()}
    tensors |= {f"backbone.network.{name}": one for name, one in network.state_dict().items()}
    return OwnWeights(source="a run", tensors=tensors, classes=classes)


def csra(num_classes: int, num_heads: int = 2) -> CSRAHead:
    return CSRAHead(6, num_classes, num_heads=num_heads, attention_weight=0.3)


@pytest.mark.parametrize("make", [csra, lambda num: MeanPoolHead(6, num)], ids=["csra", "mean"])
def test_every_row_of_every_head_goes_to_the_class_of_its_name(make):
    before, head = make(4), make(5)
    first = {name: one.clone() for name, one in head.state_dict().items()}
    network, other = nn.Linear(3, 2), nn.Linear(3, 2)
    report = fill_from_own(network, head, own_of(before, other), NOW)
    assert report.head == "the head's 3 classes that both know; new: emu, ant" and report.lost == ("cat",)
    assert report.num_loaded == 2 and report.ignored == () and torch.equal(network.weight, other.weight)
    for name, one in head.state_dict().items():
        theirs = before.state_dict()[name].unflatten(0, (-1, 4))
        ours, fresh = one.unflatten(0, (-1, 5)), first[name].unflatten(0, (-1, 5))
        for k, known in enumerate(NOW):
            expected = theirs[:, BEFORE.index(known)] if known in BEFORE else fresh[:, k]
            assert torch.equal(ours[:, k], expected), (name, known)


@pytest.mark.parametrize(
    ("classes", "said", "lost"),
    [
        (BEFORE, "the head with all its classes", ()),
        (BEFORE[::-1], "the head with all its classes, matched by name", ()),
        (BEFORE[:2], "the head with all its classes, matched by name", ("dog", "fish")),
        ((*BEFORE, "ant"), "the head's 4 classes that both know; new: ant", ()),
        (("ant", "bee", "elk", "fox"), "head not taken: none of its classes is one of the data's", ()),
        ((), "head not taken: nothing names its classes, and their number differs", ()),
    ],
)
def test_what_was_taken_is_said(classes: tuple[str, ...], said: str, lost: tuple[str, ...]):
    head = csra(len(classes) or 3)
    report = fill_from_own(nn.Module(), head, own_of(csra(4), nn.Module()), classes)
    assert (report.head, report.lost) == (said, lost)
    assert bool(report.warning()) == bool(lost)


def test_a_head_of_other_parts_is_not_taken():
    for head in (csra(4, num_heads=4), MeanPoolHead(6, 4), MeanPoolHead(7, 4)):
        before = {name: one.clone() for name, one in head.state_dict().items()}
        report = fill_from_own(nn.Module(), head, own_of(csra(4), nn.Module()), BEFORE)
        assert report.head.startswith("head not taken: ")
        assert all(torch.equal(one, before[name]) for name, one in head.state_dict().items())


def test_a_backbone_that_lacks_a_tensor_or_has_another_shape_is_refused():
    for network in (nn.Linear(3, 5), nn.Sequential(nn.Linear(3, 2))):
        with pytest.raises(UserError, match=r"set model\.backbone to the one it was trained with"):
            fill_from_own(network, csra(4), own_of(csra(4), nn.Linear(3, 2)), BEFORE)
    more = fill_from_own(nn.Linear(3, 2, bias=False), csra(4), own_of(csra(4), nn.Linear(3, 2)), BEFORE)
    assert more.ignored == ("bias",)


def save(folder: Path, name: str, mark: float, **said: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"backbone.network.weight": torch.full((2,), float(mark))}, folder / name)
    for file, content in said.items():
        (folder / f"{file}.json").write_text(json.dumps(content))


def test_of_a_run_the_best_checkpoint_is_taken_and_its_classes(tmp_path: Path):
    run = tmp_path / "run"
    save(run / "checkpoints" / "last", "weights.safetensors", 1, meta={"classes": ["a", "b"]})
    found = read_own(str(run))
    assert found is not None and found.tensors["backbone.network.weight"][0] == 1 and found.classes == ("a", "b")
    save(run / "checkpoints" / "best", "weights.safetensors", 2, meta={"classes": ["c"]})
    found = read_own(str(run))
    assert found is not None and found.tensors["backbone.network.weight"][0] == 2 and found.classes == ("c",)
    assert found.source == str(run / "checkpoints" / "best" / "weights.safetensors")
    last = read_own(str(run / "checkpoints" / "last"))
    assert last is not None and last.classes == ("a", "b")
    save(tmp_path / "export", "model.safetensors", 3, config={"classes": ["d", "e"]})
    for place in ("export", "export/model.safetensors"):
        export = read_own(str(tmp_path / place))
        assert export is not None and export.classes == ("d", "e")
    for odd in ({"classes": "ab"}, {"classes": [1]}, {}, []):
        save(tmp_path / "odd", "model.safetensors", 4, config=odd)
        unnamed = read_own(str(tmp_path / "odd"))
        assert unnamed is not None and unnamed.classes == ()
    save_file({"weight": torch.ones(2), "classifier.weight": torch.ones(2)}, tmp_path / "other.safetensors")
    assert read_own(str(tmp_path / "other.safetensors")) is None and read_own(str(tmp_path)) is None


@pytest.mark.parametrize("classifier", ["fc", "head.fc", "classifier"])
def test_names_of_timms_are_ours_again(tmp_path: Path, classifier: str):
    """A network may have tensors that begin like its classifier's name."""
    ours = {"backbone.network.stem.weight": torch.ones(1), "backbone.network.fc_norm.weight": torch.ones(2)}
    ours |= {"classifier.linear.weight": torch.ones(3), "classifier.linear.bias": torch.ones(4)}
    timms = in_timm_names(ours, classifier)
    assert set(timms) == {"stem.weight", "fc_norm.weight", f"{classifier}.weight", f"{classifier}.bias"}
    (tmp_path / "config.json").write_text(json.dumps({"timm_classifier": classifier}))
    again = in_our_names(timms, tmp_path / "config.json")
    assert {name: len(one) for name, one in again.items()} == {name: len(one) for name, one in ours.items()}
    (tmp_path / "config.json").write_text(json.dumps({"timm_classifier": ""}))
    assert in_our_names(timms, tmp_path / "config.json") == timms


def test_a_run_goes_on_from_a_run_with_the_classes_that_both_know(tmp_path: Path):
    config = ModelConfig(backbone="test_resnet", num_heads=2)
    first = build_model(config, 4, image_size=32)
    save_file(first.state_dict(), tmp_path / "weights.safetensors")
    (tmp_path / "meta.json").write_text(json.dumps({"classes": BEFORE}))
    torch.manual_seed(5)
    again = ModelConfig(backbone="test_resnet", num_heads=2, weights=str(tmp_path))
    second = build_model(again, 5, image_size=32, classes=NOW)
    assert second.weights is not None and second.weights.lost == ("cat",)
    score, before = (one.classifier.score.weight.unflatten(0, (2, -1)) for one in (second, first))
    for k, name in enumerate(NOW):
        assert (name in BEFORE) == torch.equal(score[:, k], before[:, BEFORE.index(name) if name in BEFORE else 0])
    for name, one in first.backbone.state_dict().items():
        assert torch.equal(one, second.backbone.state_dict()[name])


def test_a_frozen_backbone_stays_as_it_is_and_a_norm_of_the_head_learns():
    frozen = build_model(ModelConfig(backbone="test_efficientnet", freeze_backbone=True), 3, image_size=32).train()
    assert frozen.training and frozen.classifier.training
    assert not any(module.training for module in frozen.backbone.modules())  # dropout and drop path too
    assert not any(one.requires_grad for one in frozen.backbone.parameters())
    images = torch.rand(2, 3, 32, 32)
    assert frozen(images).requires_grad and not frozen.backbone(images).requires_grad
    norms = build_model(ModelConfig(backbone="test_resnet", freeze_batchnorm=True), 3, image_size=32).train()
    kinds = {type(module).__name__: module.training for module in norms.modules()}
    found = [one.training for one in norms.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    assert len(found) > 4 and not any(found) and kinds["Conv2d"]
    assert norms.eval().train().training and not any(
        one.training for one in norms.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)
    )


# --- others' files ----------------------------------------------------------------------------------------------------


def test_most_names_are_enough_and_what_is_missing_is_said():
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    found = {name: torch.randn_like(one) for name, one in network.state_dict().items() if name != "1.bias"}
    report = fill_network(network, {"more": torch.ones(1), **found}, "a file")
    assert (report.matched_by, report.num_loaded) == ("names", 5)
    assert (report.missing, report.ignored) == (("1.bias",), ("more",))
    assert all(torch.equal(one, found[name]) for name, one in network.state_dict().items() if name != "1.bias")


def test_an_order_is_that_of_the_file_and_roles_must_agree():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    theirs = {
        f"{front}.{kind}": torch.randn(2, 2) if kind == "weight" else torch.randn(2)
        for front in "zy"
        for kind in ("weight", "bias")
    }
    report = fill_network(network, {**theirs, "x.weight": torch.ones(2, 2)}, "a file")
    assert (report.matched_by, report.ignored, report.num_loaded) == ("order", ("x.weight",), 4)
    assert "other names than the network's" in report.warning()
    for name, other in zip(network.state_dict(), theirs):
        assert torch.equal(network.state_dict()[name], theirs[other])
    swapped = {
        "z.bias": torch.ones(2, 2),
        "z.weight": torch.ones(2),
        "y.weight": torch.ones(2, 2),
        "y.b": torch.ones(2),
    }
    with pytest.raises(UserError, match=r"tensor 0 does not fit"):
        fill_network(network, swapped, "a file")


def test_the_whole_of_a_network_is_filled_or_it_is_refused():
    network, other = nn.Linear(4, 2), nn.Linear(4, 2)
    fill_whole(network, dict(other.state_dict()), "a file")
    assert torch.equal(network.weight, other.weight) and torch.equal(network.bias, other.bias)
    for odd in (
        {"weight": torch.ones(2, 4)},
        {**other.state_dict(), "more": torch.ones(1)},
        {"weight": torch.ones(4, 2), "bias": torch.ones(2)},
    ):
        with pytest.raises(UserError, match="does not fit the network"):
            fill_whole(network, odd, "a file")


@pytest.mark.parametrize("front", ["module.", "_orig_mod.", "model.", "net.", "network.", "module._orig_mod.model."])
def test_a_front_is_taken_off_where_every_tensor_has_it(tmp_path: Path, front: str):
    content = {f"{front}{name}": torch.ones(2) for name in ("stem.weight", "bn.num_batches_tracked", "model.weight")}
    torch.save({"state_dict": content}, tmp_path / "a.pth")
    assert set(read_tensors(tmp_path / "a.pth")) == {"stem.weight", "model.weight"}
    torch.save({**content, "head.weight": torch.ones(1)}, tmp_path / "b.pth")
    assert set(read_tensors(tmp_path / "b.pth")) == {f"{front}stem.weight", f"{front}model.weight", "head.weight"}


def test_an_average_comes_before_the_weights_wherever_it_stands(tmp_path: Path):
    for name in ("state_dict_ema", "model_ema", "ema_state_dict", "ema"):
        torch.save({"model": {"w": torch.zeros(1)}, name: {"module": {"w": torch.ones(1)}}}, tmp_path / "a.pth")
        assert read_tensors(tmp_path / "a.pth")["w"] == 1


@pytest.mark.parametrize("name", ["a.weight", "a.bias"])
def test_weights_in_whole_numbers_are_refused(tmp_path: Path, name: str):
    save_file({name: torch.ones(2, dtype=torch.int8), "b.weight": torch.ones(2)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"1 of its weights hold no fractions \(a\."):
        read_tensors(tmp_path / "a.safetensors")


# --- features that stay -----------------------------------------------------------------------------------------------


class Looked(nn.Module):
    """A backbone that notes what it is asked: the photograph, one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[float] = []

    def forward(self, image_1CHW: Tensor) -> Tensor:
        [image_CHW] = image_1CHW
        self.asked.append(image_CHW.mean().item())
        return (image_1CHW[:, :1, :2, :2] + 1 / 3).contiguous()


def batch(*named: tuple[str, bool]) -> Batch:
    """Photographs that look like the number in their name, negative if mirrored."""
    value_B = torch.tensor([float(key[1:]) * (-1 if flip else 1) for key, flip in named])
    return Batch(
        image_BCHW=value_B[:, None, None, None].expand(-1, 3, 4, 4).contiguous(),
        target_BK=torch.zeros(len(named), 2),
        ignore_BK=torch.zeros(len(named), 2, dtype=torch.bool),
        keys=[key for key, _ in named],
        key_hash_B=np.zeros(len(named), np.uint64),
        index_B=np.arange(len(named)),
        crop_B4=np.zeros((len(named), 4), np.int64),
        flip_B=np.array([flip for _, flip in named]),
    )


def test_features_are_kept_by_photograph_and_flip_as_they_were_computed():
    network = Looked()
    features = FrozenFeatures(network, max_bytes=1000, amp=False)
    first = features.of(batch(("p1", False), ("p2", True)))
    again = features.of(batch(("p2", False), ("p2", True), ("p1", False), ("p3", False)))
    assert network.asked == [1, -2, 2, 3]
    third = torch.tensor(1 / 3)
    assert first.flatten(1)[:, 0].tolist() == [1 + third, -2 + third] and first.dtype == torch.float32
    assert again.flatten(1)[:, 0].tolist() == [2 + third, -2 + third, 1 + third, 3 + third]


@pytest.mark.parametrize(("max_bytes", "num_kept"), [(0, 0), (15, 0), (16, 1), (31, 1), (32, 2), (1000, 3)])
def test_as_many_are_kept_as_fit(max_bytes: int, num_kept: int):
    """Four numbers of four bytes each."""
    network = Looked()
    features = FrozenFeatures(network, max_bytes=max_bytes, amp=False)
    for _ in range(2):
        features.of(batch(("p1", False), ("p2", False), ("p3", False)))
    assert len(network.asked) == 6 - num_kept


@pytest.mark.parametrize("amp", [False, True])
def test_features_are_computed_in_the_precision_that_is_asked_for(amp: bool):
    seen: list[torch.dtype] = []

    class Layer(nn.Conv2d):
        def forward(self, image_1CHW: Tensor) -> Tensor:
            seen.append((found := super().forward(image_1CHW)).dtype)
            return found

    features = FrozenFeatures(Layer(3, 2, 1), max_bytes=1000, amp=amp)
    found = [features.of(batch(("p1", False))) for _ in range(2)]
    assert seen == [torch.bfloat16 if amp else torch.float32] and found[0].dtype == torch.float32
    assert torch.equal(*found)
