"""Options that several commands have, with the same meaning in each."""

from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

if TYPE_CHECKING:
    from stsl.estimate import Estimate
    from stsl.priors.base import Prior
    from stsl.samplers import Sampler

PriorName: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Built-in prior, diffusers folder or hub id; the built-in one for the sampler when left out."),
]
Device: TypeAlias = Annotated[str | None, typer.Option(help="cuda, mps or cpu; the best there is when left out.")]
PrecisionName: TypeAlias = Annotated[str, typer.Option(help="auto, fp32, tf32, bf16 or fp16.")]
Offline: TypeAlias = Annotated[bool, typer.Option("--offline", help="Never touch the network.")]
Memory: TypeAlias = Annotated[
    str, typer.Option(help="GiB that may be used, such as 6, 8, 12, 16 or 24; auto is what a GPU has free.")
]
Decoder: TypeAlias = Annotated[
    str | None,
    typer.Option(help="full, tiny (TAESD) or a folder or hub id: for most steps; full unless memory is short."),
]


def memory_budget(text: str) -> float | None:
    """The bytes that `--memory` allows; None for auto.

    Raises:
        ValueError: no number above 0.
    """
    if text == "auto":
        return None
    try:
        gib = float(text)
    except ValueError:
        gib = 0.0
    if not 0 < gib < float("inf"):
        raise ValueError(f"--memory {text}: give auto, or a number of GiB such as 8")
    return gib * 2**30


def planned(
    prior: "Prior", sampler: "Sampler", budget: float | None, batch: int, *, offline: bool, decoder: str | None
) -> "tuple[Prior, Estimate | None]":
    """The prior with as many savings as its device needs, and what it will take; None where memory was not looked at.

    Args:
        prior, sampler: what will run.
        budget: bytes; None is what a GPU has free, and without a GPU nothing is looked at.
        batch: rows at once.
        offline, decoder: as asked for.
    """
    from stsl.cli.console import say
    from stsl.estimate import fit_into
    from stsl.memory import GIB, available
    from stsl.priors.load import with_tiny

    if budget is None:
        if prior.device.type != "cuda":
            return prior, None
        budget = available(prior.device)
    if budget is None:
        return prior, None
    tiny = (lambda prior: with_tiny(prior, offline=offline)) if decoder is None else None
    prior, expected = fit_into(prior, sampler, budget, batch, tiny)
    if expected.needed is not None:
        say(f"memory: about {expected.needed / GIB:.1f} of {budget / GIB:.1f} GiB on {prior.device}")
    return prior, expected
