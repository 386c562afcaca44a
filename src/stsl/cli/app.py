"""`stsl app`: the page in the browser, and its REST functions."""

import contextlib
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stsl.cli.console import bar, say
from stsl.cli.shared import Device, Offline, PrecisionName

if TYPE_CHECKING:
    from stsl.priors.base import Prior


def app(
    prior: Annotated[
        list[str] | None,
        typer.Option(
            help="Built-in prior, diffusers folder or hub id; may be repeated. The built-in ones if left out."
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 is any free one.")] = 7860,
    share: Annotated[bool, typer.Option("--share", help="Make a public link, through Gradio's server.")] = False,
    auth: Annotated[
        str | None,
        typer.Option(
            metavar="USER:FILE", help="Login; the password is the file's first line. $STSL_APP_AUTH is USER:PASSWORD."
        ),
    ] = None,
    i_know: Annotated[
        bool, typer.Option("--i-know", help="Let others in without a login, who may then use this machine.")
    ] = False,
    max_megapixels: Annotated[float, typer.Option(help="Size of an upload, in millions of pixels.", min=0.001)] = 24,
    max_upload_mb: Annotated[int, typer.Option(help="Size of an upload, in MB.", min=1)] = 32,
    max_seconds: Annotated[float, typer.Option(help="What one job may take.", min=1)] = 900,
    queue: Annotated[int, typer.Option(help="How many jobs may wait; one is computed at a time.", min=1)] = 16,
    device: Device = None,
    precision: PrecisionName = "auto",
    offline: Offline = False,
) -> None:
    """Serve the web application: restore, inpaint, edit and compare photos in the browser. Ctrl-C stops it.

    Only this machine reaches it. --host and --share let others in, and then want --auth or --i-know.

    Example: `stsl app --port 8000`
    """
    from stsl.app.serving import Access, read_login, serve, workplace

    access = Access(host, port, share, read_login(auth), i_know, queue)
    access.check()

    from stsl.app.house import House, Limits
    from stsl.app.layout import build

    limits = Limits(megapixels=max_megapixels, upload_mb=max_upload_mb, seconds=max_seconds)
    priors = _load(prior, device, precision, offline)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that uploads are deleted then, too
    with (
        contextlib.suppress(KeyboardInterrupt),
        workplace() as folder,
        serve(build(House(priors, folder / "results", limits)), access, limits, folder) as url,
    ):
        if (reachable := access.describe()) is not None:
            say(reachable)
        say(f"{url} shows the page; Ctrl-C stops it")
        threading.Event().wait()


def _load(names: list[str] | None, device: str | None, precision: str, offline: bool) -> "dict[str, Prior]":
    """The priors by what visitors call them: a folder's last part, which tells nothing of this machine.

    Raises:
        ValueError: two are called the same.
    """
    from stsl.priors.load import builtin_names, load_prior

    priors: dict[str, Prior] = {}
    with bar() as progress:
        wanted = names or builtin_names()
        task = progress.add_task("loading", total=len(wanted), said="")
        for name in wanted:
            title = Path(name).name if Path(name).is_dir() else name
            if title in priors:
                raise ValueError(f"--prior {name}: another one is called {title}, too; rename one of the folders")
            progress.update(task, description=f"loading {title}")
            priors[title] = load_prior(
                name,
                device=device,
                precision=precision,  # type: ignore[arg-type]
                offline=offline,
            )
            progress.advance(task)
    return priors
