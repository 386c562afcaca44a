"""Which device, and which numbers the networks compute with there."""

from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import nn

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
    counts = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    if (chosen.index or 0) >= counts.get(chosen.type, 0):
        have = ", ".join(f"{n} {name}" for name, n in counts.items() if n)
        raise ValueError(f"device {str(device)!r} is not available here: this machine has {have}")
    return chosen


def pick_precision(precision: Precision | Literal["auto"], device: torch.device) -> Precision:
    """The given precision, or bf16 where the hardware computes in it and fp32 elsewhere.

    Never fp16 unasked: its gradients underflow without loss scaling.

    Raises:
        ValueError: an unknown precision, or one that the device does not have.
    """
    if precision == "tf32" and device.type != "cuda":
        raise ValueError(f"precision tf32 is a mode of NVIDIA's matrix units, and the device is {device}: give fp32")
    if precision in ("fp32", "tf32", "bf16", "fp16"):
        return precision
    if precision != "auto":
        raise ValueError(f"precision {precision!r} is not known: give auto, fp32, tf32, bf16 or fp16")
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type == "cpu":
        # Older PyTorch cannot tell; fp32 is right everywhere.
        can: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
        return "bf16" if can.get("amx_bf16") or can.get("avx512_bf16") else "fp32"
    return "fp32"


DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Run networks in `precision`; what goes in and comes out stays float32."""
    enabled = DTYPES[precision] != torch.float32
    return torch.autocast(device.type, DTYPES[precision] if enabled else None, enabled=enabled)


def store(network: nn.Module, precision: Precision) -> None:
    """Keep the weights of a frozen network as `autocast` uses them, and in the order that convolutions are fast in.

    The values are the same. Autocast remembers its casts only of weights that need a gradient; frozen ones it would
    cast again on every call.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            for name, weight in [*layer.named_parameters(recurse=False)]:
                order = torch.channels_last if weight.ndim == 4 else torch.preserve_format
                stored = weight.detach().to(DTYPES[precision], memory_format=order)
                setattr(layer, name, nn.Parameter(stored, requires_grad=weight.requires_grad))


def allow(precision: Precision) -> None:
    """Let matrix products use TF32 where `precision` is "tf32".

    A setting of the whole process, since backward passes run outside any block that could hold it. Unasked, PyTorch
    uses TF32 for convolutions only.
    """
    if precision == "tf32":
        torch.set_float32_matmul_precision("high")
