"""Released checkpoints: logits equal to the networks as they are described, built here without timm."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from msldata.errors import UserError
from msltrain.config import ModelConfig
from msltrain.models.build import build_model
from msltrain.models.heads import TEMPERATURES
from msltrain.models.released import take_apart
from msltrain.recipes import configure
from msltrain.runs.checkpoint import load_recogniser
from msltrain.runs.import_released import import_released
from tests.smallshards import CLASSES, write_images


def described_csra(feature_BDHW: Tensor, heads: list[Tensor], attention_weight: float) -> Tensor:
    logit_BK = torch.zeros(len(feature_BDHW), len(heads[0]))
    for weight, temperature in zip(heads, TEMPERATURES[len(heads)]):
        score_BKP = F.conv2d(feature_BDHW, weight).flatten(2) / weight.flatten(1).norm(dim=1)[None, :, None]
        if temperature == 99:
            attended_BK = score_BKP.max(dim=2).values
        else:
            attended_BK = (F.softmax(temperature * score_BKP, dim=2) * score_BKP).sum(dim=2)
        logit_BK += score_BKP.mean(dim=2) + attention_weight * attended_BK
    return logit_BK


class DescribedResNet(nn.Module):
    """torchvision's ResNet-101 up to its last stage, a CSRA head behind it, in the released layout of names."""

    def __init__(self, num_heads: int, num_classes: int, attention_weight: float):
        super().__init__()
        network = torchvision.models.resnet101(weights=None)
        for name, module in network.named_children():
            if name not in ("avgpool", "fc"):
                self.add_module(name, module)
        self.classifier = heads(num_heads, num_classes, 2048)
        self.attention_weight = attention_weight

    def forward(self, image_BCHW: Tensor) -> Tensor:
        feature = self.maxpool(self.relu(self.bn1(self.conv1(image_BCHW))))
        feature = self.layer4(self.layer3(self.layer2(self.layer1(feature))))
        return described_csra(feature, [head.head.weight for head in self.classifier.multi_head], self.attention_weight)


def heads(num_heads: int, num_classes: int, num_features: int) -> nn.Module:
    classifier = nn.Module()
    classifier.multi_head = nn.ModuleList()
    for _ in range(num_heads):
        head = nn.Module()
        head.head = nn.Conv2d(num_features, num_classes, 1, bias=False)
        classifier.multi_head.append(head)
    return classifier


def described_vit(state: dict[str, Tensor], image_BCHW: Tensor, num_blocks: int, attention_weight: float) -> Tensor:
    """ViT/16 with 64 channels a head from its equations: pre-norm blocks, final norm, class token dropped, CSRA."""

    def norm(tokens: Tensor, name: str) -> Tensor:
        return F.layer_norm(tokens, tokens.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)

    def linear(tokens: Tensor, name: str) -> Tensor:
        return F.linear(tokens, state[f"{name}.weight"], state[f"{name}.bias"])

    patches = F.conv2d(image_BCHW, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=16)
    side = patches.shape[-1]
    token_BND = patches.flatten(2).transpose(1, 2)
    batch_size = len(token_BND)
    token_BND = torch.cat((state["cls_token"].expand(batch_size, -1, -1), token_BND), dim=1) + state["pos_embed"]
    num_heads = token_BND.shape[2] // 64
    for number in range(num_blocks):
        block = f"blocks.{number}"
        query, key, value = (
            part.unflatten(2, (num_heads, 64)).transpose(1, 2)
            for part in linear(norm(token_BND, f"{block}.norm1"), f"{block}.attn.qkv").chunk(3, dim=2)
        )
        attention = torch.softmax(query @ key.transpose(2, 3) / 8, dim=3)
        token_BND = token_BND + linear((attention @ value).transpose(1, 2).flatten(2), f"{block}.attn.proj")
        hidden = F.gelu(linear(norm(token_BND, f"{block}.norm2"), f"{block}.mlp.fc1"))
        token_BND = token_BND + linear(hidden, f"{block}.mlp.fc2")
    feature_BDHW = norm(token_BND, "norm")[:, 1:].transpose(1, 2).unflatten(2, (side, side))
    names = sorted(name for name in state if name.startswith("classifier."))
    return described_csra(feature_BDHW, [state[name] for name in names], attention_weight)


def released_vit_layout(width: int, num_blocks: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the backbone in a released ViT/16 checkpoint."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 197, width),
        "patch_embed.proj.weight": (width, 3, 16, 16),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for number in range(num_blocks):
        for name, out, into in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", 4 * width, width),
            ("mlp.fc2", width, 4 * width),
        ):
            shapes[f"blocks.{number}.{name}.weight"], shapes[f"blocks.{number}.{name}.bias"] = (out, into), (out,)
        for name in ("norm1", "norm2"):
            shapes[f"blocks.{number}.{name}.weight"] = shapes[f"blocks.{number}.{name}.bias"] = (width,)
    return shapes


def released_vit_state(width: int, num_blocks: int, num_heads: int, num_classes: int) -> dict[str, Tensor]:
    """Random weights in the released layout, large enough that every one of them shows in the logits."""
    shapes = released_vit_layout(width, num_blocks)
    shapes |= {f"classifier.multi_head.{number}.head.weight": (num_classes, width, 1, 1) for number in range(num_heads)}
    generator = torch.Generator().manual_seed(3)
    state = {name: 0.05 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {name: 1 + tensor if "norm" in name and "weight" in name else tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("num_heads", "num_classes", "attention_weight", "prefix"),
    [(1, 20, 0.1, ""), (6, 80, 0.4, "module.")],
    ids=["msl_c_voc", "msl_c_coco"],
)
def test_released_resnet_gives_the_described_logits(
    tmp_path: Path, num_heads: int, num_classes: int, attention_weight: float, prefix: str
):
    torch.manual_seed(0)
    theirs = DescribedResNet(num_heads, num_classes, attention_weight)
    images = torch.rand(4, 3, 64, 64)
    with torch.no_grad():
        # Without statistics of its own activations it would give numbers so large that every softmax is a maximum.
        for module in theirs.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        theirs(images)
    theirs.eval()
    state = {prefix + name: tensor for name, tensor in theirs.state_dict().items()}
    torch.save(state, tmp_path / "released.pth")
    config = ModelConfig(
        backbone="resnet101",
        weights=str(tmp_path / "released.pth"),
        num_heads=num_heads,
        attention_weight=attention_weight,
    )
    ours = build_model(config, num_classes, image_size=64).eval()
    assert ours.weights is not None and ours.weights.fills_head and ours.weights.ignored == ()
    assert "for the head as well, its classes by position as the file does not name them" in ours.weights.summary()
    with torch.inference_mode():
        expected = theirs(images)
        torch.testing.assert_close(ours(images), expected, atol=1e-5, rtol=1e-5)
    assert 0.1 < expected.std() < 10


@pytest.mark.parametrize(("num_heads", "attention_weight"), [(1, 0.3), (8, 1.0)])
def test_released_vit_gives_the_described_logits(tmp_path: Path, num_heads: int, attention_weight: float):
    """At the width of ViT-Ti; B and L of the releases are the same network, wider and deeper."""
    state = released_vit_state(192, 12, num_heads, 14)
    torch.save(state, tmp_path / "msl_v_wider.pth")
    config = ModelConfig(
        backbone="vit_tiny_patch16_224",
        weights=str(tmp_path / "msl_v_wider.pth"),
        num_heads=num_heads,
        attention_weight=attention_weight,
    )
    ours = build_model(config, 14, image_size=224).eval()
    assert ours.weights is not None and ours.weights.fills_head and ours.weights.ignored == ()
    images = torch.rand(2, 3, 224, 224)
    with torch.inference_mode():
        expected = described_vit(state, images, 12, attention_weight)
        torch.testing.assert_close(ours(images), expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 0.01


@pytest.mark.parametrize(
    ("backbone", "width", "num_blocks"), [("vit_base_patch16_224", 768, 12), ("vit_large_patch16_224", 1024, 24)]
)
def test_vit_b_and_l_have_the_released_names_and_shapes(backbone: str, width: int, num_blocks: int):
    with torch.device("meta"):
        network = timm.create_model(backbone, num_classes=0)
    found = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert found == released_vit_layout(width, num_blocks)


def test_heads_have_the_temperatures_of_their_numbers_in_whatever_order_a_file_has_them():
    """Head n of a file is the n-th; of a file that a program has written anew, in any order."""
    weights = {number: torch.full((3, 8, 1, 1), float(number)) for number in range(8)}
    names = {number: f"classifier.multi_head.{number}.head.weight" for number in weights}
    for order in (range(8), range(7, -1, -1), (3, 0, 7, 1, 2, 6, 5, 4)):
        released = take_apart({"conv1.weight": torch.zeros(1), **{names[one]: weights[one] for one in order}}, "file")
        assert released is not None and released.settings == {"head": "csra", "num_heads": 8}
        assert torch.equal(released.head["score.weight"], torch.cat([weights[number] for number in range(8)]))
        assert released.num_classes == 3 and list(released.backbone) == ["conv1.weight"]


def test_a_released_head_fills_only_its_like(tmp_path: Path):
    torch.save(released_vit_state(192, 12, 2, 14), tmp_path / "released.pth")
    for changes, num_classes in (({}, 20), ({"num_heads": 1}, 14), ({"head": "mean"}, 14)):
        config = ModelConfig(
            **{"backbone": "vit_tiny_patch16_224", "weights": str(tmp_path / "released.pth"), "num_heads": 2} | changes
        )
        report = build_model(config, num_classes, image_size=224).weights
        assert report is not None and not report.fills_head
        assert report.ignored[0] == "classifier.multi_head.0.head.weight"


def test_an_imported_checkpoint_runs_like_our_own(tmp_path: Path):
    write_images(tmp_path / "shards", [4])
    state = released_vit_state(192, 12, 1, 3)
    torch.save(state, tmp_path / "released.pth")
    config = configure("msl-v-voc2007", settings=["model.backbone=vit_tiny_patch16_224"])
    report = import_released(
        tmp_path / "released.pth", config, data=str(tmp_path / "shards"), folder=tmp_path / "imported"
    )
    assert report.fills_head
    loaded = load_recogniser(tmp_path / "imported")
    assert loaded.classes == CLASSES
    images = torch.rand(1, 3, 224, 224)
    with torch.inference_mode():
        expected = described_vit(state, images, 12, 0.3)
        torch.testing.assert_close(loaded.recogniser(images), expected, atol=1e-5, rtol=1e-5)


def test_what_cannot_be_imported_is_explained(tmp_path: Path):
    write_images(tmp_path / "shards", [4])
    file, data = tmp_path / "released.pth", str(tmp_path / "shards")
    config = configure("msl-v-voc2007", settings=["model.backbone=vit_tiny_patch16_224"])

    def refused(state: dict[str, Tensor], words: str) -> None:
        torch.save(state, file)
        with pytest.raises(UserError, match=words):
            import_released(file, config, data=data, folder=tmp_path / "imported")
        assert not (tmp_path / "imported").exists()

    refused(
        released_vit_state(192, 12, 0, 3),
        r"released\.pth: holds no head of a released checkpoint, CSRA.* use `msl train --weights`",
    )
    refused(
        released_vit_state(192, 12, 2, 3),
        r"is CSRA's with head=csra, num_heads=2, and the recipe .*num_heads=1; .* --set model\.num_heads=2",
    )
    refused(released_vit_state(192, 12, 1, 20), r"has 20 classes and .*shards has 3")
    refused(released_vit_state(192, 11, 1, 3), r"lacks 12 tensors that backbone 'vit_tiny_patch16_224' needs")
    (tmp_path / "imported").mkdir()
    with pytest.raises(UserError, match="exists already"):
        import_released(file, config, data=data, folder=tmp_path / "imported")
