"""How fast each layer of a backbone learns: counted from the last one that does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from msltrain.config import LossConfig, OptimConfig
from msltrain.models.backbone import Backbone
from msltrain.models.tokens import PatchSelection
from msltrain.training.optim import build_optimizer, set_learning_rate
from msltrain.training.siamese import SiameseStep


class Layered(nn.Module):
    """A network of three layers with a norm, of which the last can be frozen, and a parameter that none counts."""

    output_fmt = "NCHW"

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.blocks = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
        self.scale = nn.Parameter(torch.ones(4, 1, 1))

    def group_matcher(self, coarse: bool) -> dict[str, object]:
        return {"stem": r"^stem|^norm", "blocks": r"^blocks\.(\d+)"}

    def forward_features(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.norm(self.stem(image_BCHW))) * self.scale


class Recogniser(nn.Module):
    def __init__(self, network: nn.Module):
        super().__init__()
        self.backbone = Backbone(network, name="layered", image_size=8)
        self.classifier = nn.Linear(4, 3)

    def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.backbone(image_BCHW).mean((2, 3)))


def rates(model: nn.Module, config: OptimConfig) -> dict[str, tuple[float, float]]:
    """Rate and decay of every parameter that learns, at a rate of 1."""
    optimizer = build_optimizer(config, model)
    set_learning_rate(optimizer, 1.0)
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_layer_learns_by_the_number_of_layers_that_learn_behind_it(optimizer: str, frozen: bool):
    network = Layered()
    if frozen:
        network.blocks[1].requires_grad_(False)
        network.scale.requires_grad_(False)
    config = OptimConfig(
        optimizer=optimizer,  # type: ignore[arg-type]
        lr=0.1,
        layer_decay=0.5,
        classifier_lr_factor=3.0,
        weight_decay=0.01,
        num_epochs=1,
    )
    found = rates(Recogniser(network), config)
    layers = network_layers(frozen)
    last = max(layers.values())
    expected = {name: 0.5 ** (last - layer) for name, layer in layers.items()}
    assert {name: rate for name, (rate, _) in found.items() if name.startswith("backbone")} == expected
    assert {rate for name, (rate, _) in found.items() if name.startswith("classifier")} == {3.0}
    for name, (_, decay) in found.items():
        is_flat = name.endswith("bias") or ".norm." in name
        assert decay == (0.0 if optimizer == "adamw" and is_flat else 0.01), name


def network_layers(frozen: bool) -> dict[str, int]:
    front = "backbone.network."
    found = {f"{front}{part}.{kind}": 0 for part in ("stem", "norm") for kind in ("weight", "bias")}
    found |= {f"{front}blocks.0.{kind}": 1 for kind in ("weight", "bias")}
    if not frozen:
        found |= {f"{front}blocks.1.{kind}": 2 for kind in ("weight", "bias")}
        found[f"{front}scale"] = 3  # what no pattern names comes last
    return found


def test_norms_of_masked_images_learn_as_those_that_they_stand_for():
    model = Recogniser(Layered())
    step = SiameseStep(model, LossConfig(bn_mode="split", branches="sequential"))
    found = rates(step, OptimConfig(lr=0.1, layer_decay=0.5, num_epochs=1))
    masked = {rate for name, (rate, _) in found.items() if name.startswith("masked_norms")}
    assert masked == {found["recogniser.backbone.network.norm.weight"][0]} == {0.125}


@pytest.mark.parametrize("num_prefix", [0, 1, 2])
@pytest.mark.parametrize("returns_patches", [False, True])
def test_tokens_before_the_patches_always_stay(num_prefix: int, returns_patches: bool):
    selection = PatchSelection(num_prefix, returns_patches=returns_patches)
    token_BND = torch.arange(2.0 * (num_prefix + 5) * 3).view(2, num_prefix + 5, 3)
    assert torch.equal(selection(token_BND)[0] if returns_patches else selection(token_BND), token_BND)
    selection.patch_BP = torch.tensor([[0, 3], [1, 4]])
    found = selection(token_BND)
    kept = found[0] if returns_patches else found
    for n, patches in enumerate(selection.patch_BP.tolist()):
        rows = [*range(num_prefix), *(num_prefix + patch for patch in patches)]
        assert torch.equal(kept[n], token_BND[n, rows])
    assert not returns_patches or found[1] is selection.patch_BP
