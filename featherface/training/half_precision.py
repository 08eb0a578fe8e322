"""Whether a forward pass is in bfloat16: if the run asks for that and the device computes so."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

from featherface.training.config import RunConfig

ASKED = "bf16-mixed"


def forward_pass(config: RunConfig, kind: str) -> AbstractContextManager[None]:
    """The context of a forward pass on a device of this ``kind``, such as ``cpu``."""
    asked = config.precision == ASKED and computes_in_bfloat16(kind)
    return torch.autocast(kind, torch.bfloat16, enabled=asked, cache_enabled=False)


def computes_in_bfloat16(kind: str) -> bool:
    """Whether a device of this ``kind`` has instructions for it.

    An x86 processor without them is many times slower in bfloat16 than in single precision.
    """
    if kind != "cpu":
        return True
    has = torch.cpu.get_capabilities()
    return not str(has.get("architecture", "")).startswith("x86") or any(
        has.get(name, False) for name in ("avx512_bf16", "amx_bf16")
    )


def refusal(config: RunConfig, kind: str) -> str | None:
    """One line for the user if ``precision`` asks in vain."""
    if config.precision != ASKED or computes_in_bfloat16(kind):
        return None
    return f"precision: {ASKED}: this processor has no bfloat16; the run is in single precision"
