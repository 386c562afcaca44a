"""What the choices behind the networks' speed are worth: attention, order of the channels in memory, compiling.

    python benchmarks/choices.py [--prior faces-128] [--device cpu] [--rounds 7] [--compile]

Every pair is timed in turn within one process, forward and backward, and the medians' ratio printed. `--compile` takes
minutes. The figures of docs/performance.md come from here.
"""

import argparse
import time
from collections.abc import Callable
from copy import deepcopy

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from speed import decoder, in_turn, machine, network
from torch import nn

from stsl import Prior, load_prior
from stsl.priors.precision import pick_device

HEADS, WIDTH = 8, 320  # Stable Diffusion's first attention; the built-in prior's are narrower


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prior", default="faces-128", help="built-in name or folder of a latent prior")
    parser.add_argument("--device", default=None)
    parser.add_argument("--rounds", type=int, default=7, help="times that everything is timed")
    parser.add_argument("--compile", action="store_true", help="also compile the prior's networks")
    args = parser.parse_args()
    device = pick_device(args.device)
    print(machine(device))
    for dtype in (torch.float32, torch.bfloat16):
        for tokens in (64, 256, 1024, 4096):
            fused, plain = (attention(kind, tokens, dtype, device) for kind in (AttnProcessor2_0(), AttnProcessor()))
            show(f"attention, {tokens} tokens, {dtype}: fused / written out", fused, plain, args.rounds, device)
    for precision in ("fp32", "bf16"):
        prior = load_prior(args.prior, device=device, precision=precision)  # type: ignore[arg-type]
        plain_order = contiguous(prior)
        for name, part in (("UNet, 3 rows", unet), ("decoder, 1 row", one_decoder)):
            what = f"{name}, {precision}: contiguous / channels last"
            show(what, part(plain_order), part(prior), args.rounds, device)
    if args.compile:
        prior = load_prior(args.prior, device=device)
        compiled = load_prior(args.prior, device=device, compiled=True)
        for name, part in (("UNet, 3 rows", unet), ("decoder, 1 row", one_decoder)):
            began = time.perf_counter()
            part(compiled)()
            print(f"{name}: {time.perf_counter() - began:.0f} s to compile")
            show(f"{name}: eager / compiled", part(prior), part(compiled), args.rounds, device)


def show(what: str, one: Callable[[], object], other: Callable[[], object], rounds: int, device: torch.device) -> None:
    """Print how many times as long one thing takes as another."""
    seconds = in_turn({"one": one, "other": other}, rounds, device)
    print(
        f"{what:64} {seconds['one'] / seconds['other']:.2f}  ({seconds['one']:.4f} / {seconds['other']:.4f} s)",
        flush=True,
    )


def attention(processor: nn.Module, tokens: int, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    """One self-attention layer, forward and backward."""
    layer = Attention(WIDTH, heads=HEADS, dim_head=WIDTH // HEADS, processor=processor).to(device, dtype)
    x = torch.randn(1, tokens, WIDTH, device=device, dtype=dtype, requires_grad=True)
    return lambda: torch.autograd.grad(layer(x).float().sum(), x)


def contiguous(prior: Prior) -> Prior:
    """A copy whose convolutions have their weights in the usual order."""
    copy = deepcopy(prior)
    for part in copy.modules():
        for weight in part.parameters(recurse=False):
            weight.data = weight.data.contiguous()
    return copy


def unet(prior: Prior) -> Callable[[], object]:
    """The call of a refinement with two probes."""
    return network(prior, 3, gradient=True)


def one_decoder(prior: Prior) -> Callable[[], object]:
    """The decoder of a refinement."""
    return decoder(prior, 1)


if __name__ == "__main__":
    main()
