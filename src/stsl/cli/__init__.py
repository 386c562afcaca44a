"""The command line: one file per command."""

import os
import sqlite3
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from stsl.cli.app import app as serve_app
from stsl.cli.bench import bench
from stsl.cli.console import complain, listen
from stsl.cli.degrade import degrade
from stsl.cli.demo import demo
from stsl.cli.edit import edit
from stsl.cli.estimate import estimate
from stsl.cli.exact import exact
from stsl.cli.fetch import fetch
from stsl.cli.listing import listing
from stsl.cli.restore import restore
from stsl.cli.train import train

app = typer.Typer(
    name="stsl",
    help="Restore corrupted photos with latent diffusion models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo)
app.command("restore")(restore)
app.command("edit")(edit)
app.command("app")(serve_app)
app.command("degrade")(degrade)
app.command("list")(listing)
app.command("estimate")(estimate)
app.command("fetch")(fetch)
app.command("exact")(exact)
app.add_typer(train, name="train")
app.add_typer(bench, name="bench")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("stsl"))
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Restore corrupted photos with latent diffusion models."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code: 0 done, 1 something failed, 2 wrong input, 130 interrupted."""
    listen()
    try:
        app(args=argv, prog_name="stsl")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except KeyboardInterrupt:
        complain("stopped")
        return 130
    except (ValueError, TypeError, OSError, ImportError) as error:
        if os.environ.get("STSL_DEBUG"):
            raise
        complain(str(error))
        return 2
    except (RuntimeError, sqlite3.Error) as error:  # Diverged among them; a full disk
        if os.environ.get("STSL_DEBUG"):
            raise
        complain(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
