"""ML-Decoder and Query2Label: logits by their formulas, and released checkpoints with their authors' names.

The networks are described here from a state_dict alone, without timm and without the modules under test.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from msldata.errors import UserError
from msltrain.config import ModelConfig
from msltrain.models.build import build_model
from msltrain.models.query_heads import MLDecoderHead, Query2LabelHead, sine_positions
from msltrain.models.released import take_apart
from msltrain.recipes import configure
from msltrain.runs.checkpoint import load_recogniser
from msltrain.runs.import_released import import_released
from msltrain.runs.other_checkpoints import Foreign, load_any
from tests.smallshards import CLASSES, write_images

State = dict[str, Tensor]
Layout = dict[str, tuple[int, ...]]


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def norm(state: State, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def attention(state: State, name: str, query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> Tensor:
    """One image: query (G, C), key and value (P, C)."""
    weights, biases = state[f"{name}.in_proj_weight"].chunk(3), state[f"{name}.in_proj_bias"].chunk(3)
    q, k, v = (x @ weight.T + bias for x, weight, bias in zip((query, key, value), weights, biases))
    size = q.shape[1] // num_heads
    parts = []
    for head in range(num_heads):
        part = slice(head * size, (head + 1) * size)
        parts.append(torch.softmax(q[:, part] @ k[:, part].T / math.sqrt(size), dim=1) @ v[:, part])
    return linear(state, f"{name}.out_proj", torch.cat(parts, dim=1))


def described_ml_decoder(state: State, front: str, feature_BDHW: Tensor) -> Tensor:
    logits = []
    for feature_DP in feature_BDHW.flatten(2):
        place = linear(state, f"{front}embed_standart", feature_DP.T).clamp(min=0)
        layer = f"{front}layers.0."
        query = norm(state, f"{layer}norm1", 2 * state[f"{front}query_embed.weight"])
        found = attention(state, f"{layer}multihead_attn", query, place, place, num_heads=8)
        answer = norm(state, f"{layer}norm2", query + found)
        more = linear(state, f"{layer}linear2", linear(state, f"{layer}linear1", answer).clamp(min=0))
        answer = norm(state, f"{layer}norm3", answer + more)
        pooling, bias = state[f"{front}duplicate_pooling"], state[f"{front}duplicate_pooling_bias"]
        share = pooling.shape[2]
        logits.append(
            torch.stack([answer[k // share] @ pooling[k // share, :, k % share] + bias[k] for k in range(len(bias))])
        )
    return torch.stack(logits)


def described_query2label(state: State, feature_BDHW: Tensor) -> Tensor:
    logits = []
    rows, columns = feature_BDHW.shape[2:]
    for feature_DP in feature_BDHW.flatten(2):
        place = feature_DP.T
        code = torch.stack(
            [described_code(row / rows, column / columns, place.shape[1]) for row, column in grid(rows, columns)]
        )
        front = "transformer.encoder.layers.0."
        found = attention(state, f"{front}self_attn", place + code, place + code, place, num_heads=4)
        place = norm(state, f"{front}norm1", place + found)
        more = linear(state, f"{front}linear2", linear(state, f"{front}linear1", place).clamp(min=0))
        place = norm(state, f"{front}norm2", place + more)
        query, answer = state["query_embed.weight"], torch.zeros_like(state["query_embed.weight"])
        for number in range(2):
            front = f"transformer.decoder.layers.{number}."
            found = attention(state, f"{front}multihead_attn", answer + query, place + code, place, num_heads=4)
            answer = norm(state, f"{front}norm2", answer + found)
            more = linear(state, f"{front}linear2", linear(state, f"{front}linear1", answer).clamp(min=0))
            answer = norm(state, f"{front}norm3", answer + more)
        answer = norm(state, "transformer.decoder.norm", answer)
        logits.append((answer * state["fc.W"][0]).sum(1) + state["fc.b"][0])
    return torch.stack(logits)


def grid(rows: int, columns: int) -> list[tuple[int, int]]:
    return [(row, column) for row in range(1, rows + 1) for column in range(1, columns + 1)]


def described_code(row: float, column: float, width: int) -> Tensor:
    """DETR's normalised sine embedding of one place, whose row and column count from 0 (excluded) to 1."""
    half, code = width // 2, []
    for place in (row, column):
        for channel in range(half):
            angle = place * 2 * math.pi / 10000 ** (2 * (channel // 2) / half)
            code.append(math.sin(angle) if channel % 2 == 0 else math.cos(angle))
    return torch.tensor(code)


def layer_layout(front: str, attention: str, norms: tuple[str, str], width: int, hidden: int) -> Layout:
    shapes: Layout = {
        f"{front}{attention}.in_proj_weight": (3 * width, width),
        f"{front}{attention}.in_proj_bias": (3 * width,),
    }
    for name, out, into in (
        (f"{attention}.out_proj", width, width),
        ("linear1", hidden, width),
        ("linear2", width, hidden),
    ):
        shapes |= {f"{front}{name}.weight": (out, into), f"{front}{name}.bias": (out,)}
    for name in norms:
        shapes |= {f"{front}{name}.weight": (width,), f"{front}{name}.bias": (width,)}
    return shapes


def ml_decoder_layout(
    front: str, num_features: int, num_classes: int, num_queries: int, width: int, hidden: int
) -> Layout:
    layer = f"{front}layers.0."
    return {
        **layer_layout(layer, "multihead_attn", ("norm1", "norm2", "norm3"), width, hidden),
        f"{front}embed_standart.weight": (width, num_features),
        f"{front}embed_standart.bias": (width,),
        f"{front}query_embed.weight": (num_queries, width),
        f"{front}duplicate_pooling": (num_queries, width, -(-num_classes // num_queries)),
        f"{front}duplicate_pooling_bias": (num_classes,),
    }


def query2label_layout(num_classes: int, width: int, hidden: int, side: int) -> Layout:
    shapes = layer_layout("transformer.encoder.layers.0.", "self_attn", ("norm1", "norm2"), width, hidden)
    for number in range(2):
        front = f"transformer.decoder.layers.{number}."
        shapes |= layer_layout(front, "multihead_attn", ("norm2", "norm3"), width, hidden)
    return shapes | {
        "transformer.decoder.norm.weight": (width,),
        "transformer.decoder.norm.bias": (width,),
        "query_embed.weight": (num_classes, width),
        "fc.W": (1, num_classes, width),
        "fc.b": (1, num_classes),
        "backbone.1.pe": (1, width, side, side),
    }


TRESNETS: Mapping[str, tuple[tuple[int, ...], float, bool]] = {
    "tresnet_m": ((3, 4, 11, 3), 1.0, False),
    "tresnet_l": ((4, 5, 18, 3), 1.2, False),
    "tresnet_xl": ((4, 5, 24, 3), 1.3, False),
    "tresnet_v2_l": ((3, 4, 23, 3), 1.0, True),
}
"""timm's name → blocks by stage, width over 64, whether all stages have bottlenecks; ML-Decoder's "L" is the last."""


def tresnet_blocks(layers: tuple[int, ...], width: float, bottlenecks: bool):
    """(name, channels in, inner, out, stride, is bottleneck, squeezed channels or 0) of each block."""
    planes, before = int(64 * width), int(64 * width)
    for stage, number in enumerate(layers):
        inner, bottleneck = planes * 2**stage, bottlenecks or stage >= 2
        out = inner * (4 if bottleneck else 1)
        for block in range(number):
            squeezed = 0 if stage == 3 else max(inner // 2 if bottleneck else inner // 4, 64)
            stride = 2 if stage and not block else 1
            yield f"body.layer{stage + 1}.{block}.", before, inner, out, stride, bottleneck, squeezed
            before = out


def tresnet_layout(layers: tuple[int, ...], width: float, bottlenecks: bool) -> Layout:
    """Names and shapes as released: a convolution and an InPlaceABN in a Sequential, deeper behind a blur."""
    shapes: Layout = {}

    def pair(name: str, into: int, out: int, side: int) -> None:
        shapes[f"{name}.0.weight"] = (out, into, side, side)
        shapes.update({f"{name}.1.{kind}": (out,) for kind in ("weight", "bias", "running_mean", "running_var")})

    pair("body.conv1", 48, int(64 * width), 3)
    for name, into, inner, out, stride, bottleneck, squeezed in tresnet_blocks(layers, width, bottlenecks):
        deeper = ".0" if stride == 2 else ""
        if bottleneck:
            pair(f"{name}conv1", into, inner, 1)
            pair(f"{name}conv2{deeper}", inner, inner, 3)
            pair(f"{name}conv3", inner, out, 1)
        else:
            pair(f"{name}conv1{deeper}", into, inner, 3)
            pair(f"{name}conv2", inner, out, 3)
        if squeezed:
            shapes |= {f"{name}se.fc1.weight": (squeezed, inner, 1, 1), f"{name}se.fc1.bias": (squeezed,)}
            shapes |= {f"{name}se.fc2.weight": (inner, squeezed, 1, 1), f"{name}se.fc2.bias": (inner,)}
        if stride == 2 or into != out:
            pair(f"{name}downsample.{1 if stride == 2 else 0}", into, out, 1)
    return shapes


def described_tresnet(state: State, variant: str, image_BCHW: Tensor) -> Tensor:
    """TResNet's equations; InPlaceABN scales by the absolute weight plus its epsilon."""

    def pair(name: str, x: Tensor, slope: float) -> Tensor:
        weight = state[f"{name}.0.weight"]
        x = F.conv2d(x, weight, padding=weight.shape[2] // 2)
        mean, var, bias = (state[f"{name}.1.{kind}"] for kind in ("running_mean", "running_var", "bias"))
        scale = (state[f"{name}.1.weight"].abs() + 1e-5) / (var + 1e-5).sqrt()
        x = (x - mean[:, None, None]) * scale[:, None, None] + bias[:, None, None]
        return torch.where(x > 0, x, slope * x)

    def halved(x: Tensor) -> Tensor:
        row = torch.tensor([0.25, 0.5, 0.25])
        kernel = (row[:, None] * row).expand(x.shape[1], 1, 3, 3)
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), kernel, stride=2, groups=x.shape[1])

    batch, _, height, width = image_BCHW.shape
    x = image_BCHW.view(batch, 3, height // 4, 4, width // 4, 4).permute(0, 3, 5, 1, 2, 4)
    x = pair("body.conv1", x.reshape(batch, 48, height // 4, width // 4), 1e-2)
    for name, into, _, out, stride, bottleneck, squeezed in tresnet_blocks(*TRESNETS[variant]):
        beside = x
        if stride == 2:
            beside = F.avg_pool2d(beside, 2)
        if stride == 2 or into != out:
            beside = pair(f"{name}downsample.{1 if stride == 2 else 0}", beside, 1.0)
        spatial = "conv2" if bottleneck else "conv1"
        if bottleneck:
            x = pair(f"{name}conv1", x, 1e-3)
        x = halved(pair(f"{name}{spatial}.0", x, 1e-3)) if stride == 2 else pair(f"{name}{spatial}", x, 1e-3)
        if not bottleneck:
            x = pair(f"{name}conv2", x, 1.0)
        if squeezed:
            scale = x.mean((2, 3), keepdim=True)
            scale = F.conv2d(scale, state[f"{name}se.fc1.weight"], state[f"{name}se.fc1.bias"]).clamp(min=0)
            x = x * F.conv2d(scale, state[f"{name}se.fc2.weight"], state[f"{name}se.fc2.bias"]).sigmoid()
        if bottleneck:
            x = pair(f"{name}conv3", x, 1.0)
        x = (x + beside).clamp(min=0)
    return x


RESNET18 = (2, 2, 2, 2)


def resnet_layout() -> Layout:
    """ResNet-18 with torchvision's names, without counters, as with frozen BatchNorm."""
    shapes: Layout = {}

    def pair(convolution: str, bn: str, out: int, into: int, side: int) -> None:
        shapes[f"{convolution}.weight"] = (out, into, side, side)
        shapes.update({f"{bn}.{kind}": (out,) for kind in ("weight", "bias", "running_mean", "running_var")})

    pair("conv1", "bn1", 64, 3, 7)
    before = 64
    for stage, number in enumerate(RESNET18):
        width = 64 * 2**stage
        for block in range(number):
            front = f"layer{stage + 1}.{block}."
            pair(f"{front}conv1", f"{front}bn1", width, before, 3)
            pair(f"{front}conv2", f"{front}bn2", width, width, 3)
            if before != width:
                pair(f"{front}downsample.0", f"{front}downsample.1", width, before, 1)
            before = width
    return shapes


def described_resnet(state: State, image_BCHW: Tensor) -> Tensor:
    def pair(convolution: str, bn: str, x: Tensor, stride: int) -> Tensor:
        weight = state[f"{convolution}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2)
        mean, var, scale, bias = (
            state[f"{bn}.{kind}"][:, None, None] for kind in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * scale + bias

    x = F.max_pool2d(pair("conv1", "bn1", image_BCHW, 2).clamp(min=0), 3, stride=2, padding=1)
    for stage, number in enumerate(RESNET18):
        for block in range(number):
            front, stride = f"layer{stage + 1}.{block}.", 2 if stage and not block else 1
            beside = pair(f"{front}downsample.0", f"{front}downsample.1", x, stride) if stride == 2 else x
            x = pair(f"{front}conv1", f"{front}bn1", x, stride).clamp(min=0)
            x = (pair(f"{front}conv2", f"{front}bn2", x, 1) + beside).clamp(min=0)
    return x


def drawn(shapes: Layout) -> State:
    """Weights under which every tensor shows in the logits; norms of both signs."""
    generator = torch.Generator().manual_seed(4)
    state = {}
    for name, shape in shapes.items():
        tensor = torch.randn(shape, generator=generator)
        if len(shape) == 4:
            tensor *= math.sqrt(2 / math.prod(shape[1:]))
        elif len(shape) > 1 and "query" not in name:
            tensor *= 1.5 / math.sqrt(shape[-1] if len(shape) == 2 else shape[-2])
        elif name.endswith("running_var"):
            tensor = 1 + 0.3 * tensor.abs()
        elif name.endswith("weight"):
            tensor = torch.where(tensor > 0, 1.0, -1.0) * (0.6 + 0.1 * tensor.abs())
        else:
            tensor *= 0.1
        state[name] = tensor
    return state


def test_codes_of_positions_by_hand():
    torch.testing.assert_close(
        sine_positions(1, 2, 4, torch.zeros(())), torch.tensor([[0.0, 1, 0, -1], [0, 1, 0, 1]]), atol=1e-5, rtol=0
    )
    expected = torch.stack([described_code(row / 3, column / 2, 16) for row, column in grid(3, 2)])
    torch.testing.assert_close(sine_positions(3, 2, 16, expected), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("num_classes", "num_queries"), [(5, 5), (5, 2), (7, 3)])
def test_ml_decoder_by_its_formula(num_classes: int, num_queries: int):
    state = drawn(ml_decoder_layout("head.decoder.", 12, num_classes, num_queries, 16, 24))
    head = MLDecoderHead(12, num_classes, num_queries=num_queries, width=16, hidden=24).eval()
    released = take_apart(state, "a file")
    assert released is not None and released.fills(head, num_classes) and released.backbone == {}
    feature = torch.randn(3, 12, 2, 3)
    expected = described_ml_decoder(state, "head.decoder.", feature)
    torch.testing.assert_close(head(feature), expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 0.1


def test_a_query_answers_for_its_share_of_thousands_of_classes():
    head = MLDecoderHead(6, 2_001, num_queries=100, width=8, hidden=8).eval()
    assert head.weight.shape == (100, 8, 21)
    feature = torch.randn(1, 6, 2, 2)
    before = head(feature)
    with torch.no_grad():
        head.weight[95, :, 5] *= -2
    changed = (head(feature) - before).abs() > 1e-6
    assert before.shape == (1, 2_001) and changed.nonzero().tolist() == [[0, 95 * 21 + 5]]
    assert MLDecoderHead(6, 20).query.shape == (20, 768) and MLDecoderHead(6, 130).query.shape == (100, 768)
    assert not any(parameter is head.query for parameter in head.parameters())


@pytest.mark.parametrize("width", [12, 8])
def test_query2label_by_its_formula(width: int):
    state = drawn(query2label_layout(5, width, 24, side=3))
    feature = mapped = torch.randn(3, 12, 3, 2)
    if width != 12:
        state |= drawn({"input_proj.weight": (width, 12, 1, 1), "input_proj.bias": (width,)})
        mapped = F.conv2d(feature, state["input_proj.weight"], state["input_proj.bias"])
    head = Query2LabelHead(12, 5, width=width, hidden=24).eval()
    released = take_apart(state, "a file")
    assert released is not None and released.fills(head, 5) and released.backbone == {}
    expected = described_query2label(state, mapped)
    torch.testing.assert_close(head(feature), expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 0.1


def test_timm_has_the_released_tresnets():
    for variant, (layers, width, bottlenecks) in TRESNETS.items():
        with torch.device("meta"):
            network = timm.create_model(variant, num_classes=0)
            state = {name: torch.empty(shape) for name, shape in tresnet_layout(layers, width, bottlenecks).items()}
        found = timm.models.tresnet.checkpoint_filter_fn(state, network)
        wanted = {name: one.shape for name, one in network.state_dict().items() if "num_batches" not in name}
        assert {name: tensor.shape for name, tensor in found.items()} == wanted, variant


@pytest.mark.parametrize("kind", ["asl", "mldecoder"])
def test_released_tresnets_give_the_described_logits(tmp_path: Path, kind: str):
    layers, width, bottlenecks = TRESNETS["tresnet_m"]
    shapes = tresnet_layout(layers, width, bottlenecks)
    if kind == "asl":
        shapes |= {"head.fc.weight": (6, 2048), "head.fc.bias": (6,)}
    else:
        shapes |= ml_decoder_layout("head.decoder.", 2048, 6, 4, 64, 48)
    state = drawn(shapes)
    torch.save({"model": state, "num_classes": 6, "idx_to_class": {0: "person"}}, tmp_path / "released.pth")
    sizes = {} if kind == "asl" else {"num_queries": 4, "decoder_width": 64, "decoder_hidden": 48}
    config = ModelConfig(
        backbone="tresnet_m",
        weights=str(tmp_path / "released.pth"),
        head="mean" if kind == "asl" else "mldecoder",
        **sizes,
    )
    ours = build_model(config, 6, image_size=64).eval()
    assert ours.weights is not None and ours.weights.fills_head and not ours.weights.ignored
    images = torch.rand(2, 3, 64, 64)
    feature = described_tresnet(state, "tresnet_m", images)
    if kind == "asl":
        expected = linear(state, "head.fc", feature.mean((2, 3)))
    else:
        expected = described_ml_decoder(state, "head.decoder.", feature)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), expected, atol=1e-4, rtol=1e-4)
    assert 0.01 < expected.std() < 1e3


def test_released_query2label_gives_the_described_logits(tmp_path: Path):
    """On ResNet-18; the released R101 is the same network, wider and deeper (its head is tried below)."""
    backbone, head = drawn(resnet_layout()), drawn(query2label_layout(6, 512, 96, side=2))
    state = {f"backbone.0.body.{name}": tensor for name, tensor in backbone.items()} | head
    state = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"epoch": 3, "arch": "Q2L", "state_dict": state, "best_mAP": 84.9}, tmp_path / "checkpoint.pkl")
    config = ModelConfig(backbone="resnet18", weights=str(tmp_path / "checkpoint.pkl"), head="q2l", decoder_hidden=96)
    ours = build_model(config, 6, image_size=64).eval()
    assert ours.weights is not None and ours.weights.fills_head and not ours.weights.ignored
    images = torch.rand(2, 3, 64, 64)
    expected = described_query2label(head, described_resnet(backbone, images))
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), expected, atol=1e-4, rtol=1e-4)
    assert 0.01 < expected.std() < 1e3


def test_heads_have_the_released_sizes():
    with torch.device("meta"):
        q2l = {name: torch.empty(shape) for name, shape in query2label_layout(80, 2048, 8192, side=14).items()}
        coco = {
            name: torch.empty(shape)
            for name, shape in ml_decoder_layout("head.decoder.", 2048, 80, 80, 768, 2048).items()
        }
        open_images = {
            name: torch.empty(shape)
            for name, shape in ml_decoder_layout("head.decoder.", 2048, 9605, 200, 768, 2048).items()
        }
        for state, head, num_classes in (
            (q2l, Query2LabelHead(2048, 80), 80),
            (coco, MLDecoderHead(2048, 80), 80),
            (open_images, MLDecoderHead(2048, 9605, num_queries=200), 9605),
        ):
            released = take_apart(state, "a file")
            assert released is not None and released.fills(head, num_classes)
            assert not released.fills(head, num_classes + 1)
    inner = {f"backbone.0.body.{name}": torch.zeros(1) for name in ("body.conv1.0.weight", "body.layer1.0.se.fc1.bias")}
    found = take_apart(q2l | inner, "a file")
    assert found is not None and set(found.backbone) == {"body.conv1.0.weight", "body.layer1.0.se.fc1.bias"}


def test_a_released_rival_runs_like_our_own(tmp_path: Path):
    write_images(tmp_path / "shards", [4])
    file = tmp_path / "released.pth"
    state = drawn(resnet_layout() | ml_decoder_layout("fc.decoder.", 512, 3, 3, 32, 16))
    torch.save(state, file)
    settings = ["model.backbone=resnet18", "stream.image_size=64", "model.head=mldecoder"]
    config = configure("msl-c-voc2007", weights="", settings=settings)
    report = import_released(file, config, data=str(tmp_path / "shards"), folder=tmp_path / "imported")
    assert report.fills_head
    loaded = load_recogniser(tmp_path / "imported")
    assert loaded.config.model.decoder_width == 32 and loaded.classes == CLASSES
    images = torch.rand(2, 3, 64, 64)
    expected = described_ml_decoder(state, "fc.decoder.", described_resnet(state, images))
    with torch.inference_mode():
        torch.testing.assert_close(loaded.recogniser(images), expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(UserError, match="is ML-Decoder's with head=mldecoder, and the recipe has head=csra; choose"):
        config = configure("msl-c-voc2007", weights="", settings=settings[:2])
        import_released(file, config, data=str(tmp_path / "shards"), folder=tmp_path / "other")
    with pytest.raises(UserError, match="in the backbone; choose the backbone it was made with"):
        load_any(file, Foreign(recipe="msl-c-voc2007"), CLASSES, torch.device("cpu"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("head.decoder.layers.0.norm3.bias", "not a whole checkpoint, head.decoder.layers.0.norm3.bias is missing"),
        ("+head.decoder.layers.1.norm3.bias", "ML-Decoder's head has 20 tensors there, and 19 as released"),
    ],
)
def test_other_decoders_are_refused(name: str, words: str):
    state = drawn(ml_decoder_layout("head.decoder.", 12, 5, 5, 16, 24))
    if name.startswith("+"):
        state[name[1:]] = torch.zeros(1)
    else:
        del state[name]
    with pytest.raises(UserError, match=f"a file: {words}"):
        take_apart(state, "a file")
