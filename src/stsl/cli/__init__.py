"""The command line: one file per command."""

import os
import sys
from collections.abc import Sequence

import typer

from stsl.cli.console import complain, listen
from stsl.cli.degrade import degrade
from stsl.cli.demo import demo
from stsl.cli.estimate import estimate
from stsl.cli.fetch import fetch
from stsl.cli.listing import listing
from stsl.cli.restore import restore

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
app.command("degrade")(degrade)
app.command("list")(listing)
app.command("estimate")(estimate)
app.command("fetch")(fetch)


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", help="Print the version and stop.", is_eager=True),
) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(installed("stsl"))
        raise typer.Exit


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
    except RuntimeError as error:  # Diverged among them
        if os.environ.get("STSL_DEBUG"):
            raise
        complain(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
