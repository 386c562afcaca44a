"""Which device, and which numbers the networks compute with there."""

from contextlib import AbstractContextManager
from typing import Literal

import torch

from stsl.priors.base import Precision


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """The given device, or the best there is: cuda, then mps, then cpu.

    Raises:
        ValueError: a device that this machine or this build of PyTorch does not have.
    """
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is not known: give cuda, cuda:N, mps or cpu") from error
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if not there.get(chosen.type, False):
        have = ", ".join(name for name, is_there in there.items() if is_there)
        raise ValueError(f"device {device!r} is not available here: this machine has {have}")
    return chosen


def pick_precision(precision: Precision | Literal["auto"], device: torch.device) -> Precision:
    """The given precision, or bf16 where the hardware computes in it and fp32 elsewhere.

    Never fp16 unasked: its gradients underflow without loss scaling.

    Raises:
        ValueError: an unknown precision.
    """
    if precision in ("fp32", "bf16", "fp16"):
        return precision
    if precision != "auto":
        raise ValueError(f"precision {precision!r} is not known: give auto, fp32, bf16 or fp16")
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type == "cpu":
        can = torch.cpu.get_capabilities()
        return "bf16" if can.get("amx_bf16") or can.get("avx512_bf16") else "fp32"
    return "fp32"


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Run networks in `precision`; what goes in and comes out stays float32."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(device.type, dtype if precision != "fp32" else None, enabled=precision != "fp32")
