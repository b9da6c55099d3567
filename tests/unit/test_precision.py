"""Which processors compute in bfloat16."""

from __future__ import annotations

import pytest
import torch

from msltrain.hosts.precision import has_bfloat16


@pytest.mark.parametrize(
    ("machine", "avx512", "amx", "expected"),
    [
        ("x86_64", False, False, False),
        ("x86_64", True, False, True),
        ("AMD64", False, True, True),
        ("aarch64", False, False, True),
    ],
)
def test_x86_needs_its_instructions(monkeypatch: pytest.MonkeyPatch, machine: str, avx512: bool, amx: bool, expected):
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    assert has_bfloat16(torch.device("cpu")) is expected


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_gpus_have_it_from_ampere_on(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: bool):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert has_bfloat16(torch.device("cuda", 0)) is expected


def test_torch_still_answers():
    """These are no public functions: a torch that has lost them must be noticed."""
    assert isinstance(torch.cpu._is_avx512_bf16_supported(), bool)
    assert isinstance(torch.cpu._is_amx_tile_supported(), bool)
