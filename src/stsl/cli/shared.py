"""Options that several commands have, with the same meaning in each."""

from typing import Annotated, TypeAlias

import typer

PriorName: TypeAlias = Annotated[str, typer.Option(help="Built-in prior, diffusers folder or hub id.")]
Device: TypeAlias = Annotated[str | None, typer.Option(help="cuda, mps or cpu; the best there is when left out.")]
PrecisionName: TypeAlias = Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")]
Offline: TypeAlias = Annotated[bool, typer.Option("--offline", help="Never touch the network.")]
