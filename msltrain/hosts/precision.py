"""The precision that a processor computes in."""

from __future__ import annotations

import platform

import torch

_INSTRUCTIONS = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
"""What torch asks an x86 processor."""


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 by itself. Some x86 processors and GPUs before Ampere convert every value
    instead, and a step takes several times as long as in float32.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu" or platform.machine() not in ("x86_64", "AMD64"):
        return True
    return any(getattr(torch.cpu, name, bool)() for name in _INSTRUCTIONS)
