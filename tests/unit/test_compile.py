"""The step through torch.compile: the same losses, gradients and statistics."""

from __future__ import annotations

import copy
import re
import shutil

import pytest
import torch

from msldata.contract.manifest import FormatError
from msldata.errors import UserError
from msltrain.config import DataConfig, LossConfig, ModelConfig, RunConfig, StreamConfig, TrainConfig
from msltrain.models.build import build_model
from msltrain.training.siamese import SiameseStep
from msltrain.training.trainer import train

COMPILES = pytest.mark.skipif(torch.__version__ < (2, 8), reason="torch compiles the step since 2.8")

LOSSES = [
    LossConfig(branches="fused", bn_mode="split", recognition="asl"),
    LossConfig(branches="sequential", bn_mode="clean_only", stop_gradient="clean"),
    LossConfig(branches="fused", bn_mode="running", masked_target="whole_image"),
]


def assert_compiled_step_matches(loss: LossConfig, backend: str) -> None:
    torch.manual_seed(0)
    torch.compiler.reset()
    recogniser = build_model(ModelConfig(backbone="test_resnet", num_heads=2), 5, image_size=64)
    images, targets = torch.randn(4, 3, 64, 64), (torch.rand(4, 5) > 0.5).float()
    keep_masks = (torch.rand(4, 1, 64, 64) > 0.5).float()
    plain = SiameseStep(recogniser, loss).train()
    compiled = copy.deepcopy(plain)
    compiled.compile(backend=backend, fullgraph=True)
    for _ in range(2):
        expected, found = plain(images, keep_masks, targets), compiled(images, keep_masks, targets)
        expected["total"].backward()
        found["total"].backward()
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=1e-5)
    for (name, one), other in zip(compiled.named_parameters(), plain.parameters()):
        if other.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=1e-3, msg=name)
    for (name, one), other in zip(compiled.named_buffers(), plain.buffers()):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4, msg=name)


@COMPILES
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: f"{loss.branches}-{loss.bn_mode}")
def test_the_step_is_traced_as_one_graph(loss: LossConfig):
    assert_compiled_step_matches(loss, "aot_eager")


@pytest.mark.slow
@COMPILES
@pytest.mark.skipif(shutil.which("gcc") is None, reason="compiling for a CPU needs gcc")
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.branches)
def test_the_compiled_step_matches(loss: LossConfig):
    """About half a minute each: ``pytest -m slow tests/unit/test_compile.py``."""
    assert_compiled_step_matches(loss, "inductor")


def test_compiling_and_activation_checkpointing_exclude_each_other():
    with pytest.raises(UserError, match=r"run\.activation_checkpointing: True is not false, as run\.compile needs"):
        RunConfig(compile=True, activation_checkpointing=True)


def test_an_older_torch_is_named_before_anything_is_read(tmp_path, monkeypatch):
    config = TrainConfig(
        data=DataConfig(train=str(tmp_path / "none"), keep_masks=("masks",)),
        stream=StreamConfig(),
        run=RunConfig(compile=True),
    )
    for version in ("2.6.0", "2.7.1+cu126"):
        monkeypatch.setattr(torch, "__version__", version)
        with pytest.raises(UserError, match=rf"run\.compile=true needs torch 2\.8 .* torch {re.escape(version)};"):
            train(config, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    for version in ("2.8.0a0+git", "2.10.1", "3.0.0"):
        monkeypatch.setattr(torch, "__version__", version)
        with pytest.raises(FormatError, match="no finished dataset here"):
            train(config, run_dir=tmp_path / "run")
