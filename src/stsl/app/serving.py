"""The server around the page: who reaches it, and what it may be asked for."""

import contextlib
import errno
import ipaddress
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from stsl.app.guard import Guard

if TYPE_CHECKING:
    from gradio import Blocks

    from stsl.app.house import Limits

LOOPBACK = frozenset({"127.0.0.1", "localhost"})
SESSIONS = 64  # visitors whose values are kept in memory
STEP = 60.0  # seconds that a step under way has to end when the server stops


@dataclass(frozen=True)
class Access:
    """Who reaches the page, and how many wait for it.

    Args:
        host: IPv4 address or name to listen at; 0.0.0.0 is every one of this machine.
        port: to listen at; 0 is any free one.
        share: make a public link through Gradio's server, for a week at most.
        login: user and password; None lets in whoever reaches the page.
        acknowledged: without a login, that others reach the page is meant.
        queue: jobs that wait; more are turned away.

    Raises:
        ValueError: others would reach the page, and neither is there a login nor is that acknowledged; no host, port
            or number.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    share: bool = False
    login: tuple[str, str] | None = None
    acknowledged: bool = False
    queue: int = 16

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"--port {self.port}: a port is a number from 1 to 65535; 0 takes any free one")
        if self.queue < 1:
            raise ValueError(f"--queue {self.queue}: at least one job must be able to wait")
        if self.is_open and self.login is None and not self.acknowledged:
            asked = "--share" if self.share else f"--host {self.host}"
            raise ValueError(
                f"{asked} lets others use this machine: give them a login by --auth USER:PASSWORD-FILE, or say "
                "--i-know that whoever reaches the page may use it"
            )

    @property
    def is_open(self) -> bool:
        """Whether anybody but this machine reaches the page."""
        return self.share or not is_loopback(self.host)

    @property
    def names(self) -> frozenset[str] | None:
        """Names under which the server may be asked; None is any."""
        return None if self.is_open else LOOPBACK | {self.host}

    def describe(self) -> str | None:
        """What becomes reachable, and for whom; None where it is this machine only."""
        if not self.is_open:
            return None
        where = "the whole internet, by a link" if self.share else f"every machine that reaches port {self.port} here"
        who = f"who logs in as {self.login[0]}" if self.login else "without a login"
        return (
            f"reachable from {where}, {who}: the page and its REST functions. They compute on this machine and keep "
            "what visitors upload for an hour; its other files, models and programs are out of reach"
        )

    def check(self) -> None:
        """Refuse before anything is loaded what would fail afterwards.

        Raises:
            ImportError: Gradio is not installed.
            OSError: the port is taken, or the host is no address of this machine.
        """
        if find_spec("gradio") is None:
            raise ImportError('the web application needs the extra "app": pip install "stsl[app]"')
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.host, self.port))
            except PermissionError as error:
                raise OSError(
                    f"port {self.port} is kept for the system: give --port 7860 or another above 1023"
                ) from error
            except OSError as error:
                if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
                    raise OSError(f"--host {self.host} is no address of this machine; 127.0.0.1 is") from error
                raise OSError(
                    f"port {self.port} is taken by another program, maybe by another `stsl app`: give --port "
                    f"{free_port(self.host)}, which is free"
                ) from error


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches a server at `host`; a name other than localhost may be anybody's."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def free_port(host: str) -> int:
    """A port that nothing listens at."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
    return port


def read_login(user_and_file: str | None) -> tuple[str, str] | None:
    """The login that `--auth USER:PASSWORD-FILE` names, else that of $STSL_APP_AUTH, "USER:PASSWORD"; else None.

    A password is never an argument: every user of a machine sees the arguments of its programs.

    Raises:
        ValueError: a part is missing or empty.
        OSError: the file cannot be read.
    """
    if user_and_file is not None:
        user, colon, file = user_and_file.partition(":")
        if not (user and colon and file):
            raise ValueError(f"--auth {user_and_file}: needs USER:PASSWORD-FILE, such as ann:password.txt")
        if not Path(file).is_file():
            raise FileNotFoundError(f"--auth: there is no file {file}; its first line is the password of {user}")
        lines = Path(file).read_text(encoding="utf-8").splitlines()
        password, where = (lines[0].strip() if lines else ""), f"--auth: the first line of {file}"
    elif text := os.environ.get("STSL_APP_AUTH"):
        user, _, password = text.partition(":")
        where = "STSL_APP_AUTH, which is USER:PASSWORD,"
    else:
        return None
    if not user or not password:
        raise ValueError(f"{where} has no password; an empty one protects nothing")
    return user, password


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A private folder for what visitors upload and get, deleted at the end.

    Meanwhile the environment's settings of Gradio, such as GRADIO_SHARE or GRADIO_ALLOWED_PATHS, are set aside: a
    server does what its command line says. The page has to be built inside: that is when Gradio notes its folders.
    """
    before = {key: value for key, value in os.environ.items() if key.startswith("GRADIO_")}
    with tempfile.TemporaryDirectory(prefix="stsl-app-", ignore_cleanup_errors=True) as name:
        folder = Path(name).resolve()
        for key in before:
            del os.environ[key]
        ours = {
            "GRADIO_TEMP_DIR": str(uploads(folder)),
            "GRADIO_EXAMPLES_CACHE": str(folder / "examples"),
            "GRADIO_ANALYTICS_ENABLED": "False",
        }
        os.environ.update(ours)
        try:
            yield folder
        finally:
            for key in ours:
                os.environ.pop(key, None)
            os.environ.update(before)


def uploads(folder: Path) -> Path:
    """Where in the workplace Gradio keeps uploads, and copies of what it shows."""
    return folder / "uploads"


@contextlib.contextmanager
def serve(page: "Blocks", access: Access, limits: "Limits", folder: Path) -> Iterator[str]:
    """Serve a page until the block ends; yields its address, with --share the public one.

    Args:
        page: built inside `workplace`.
        access: who reaches it.
        limits: of uploads.
        folder: the workplace.

    Raises:
        OSError: the port has been taken meanwhile, or no public link could be made.
    """
    from starlette.middleware import Middleware

    from stsl.app import look

    guard = Middleware(Guard, hosts=access.names, folder=uploads(folder), max_bytes=limits.upload_mb * 1_000_000)
    # Without `api_open=False` a request to /run/NAME would pass the queue, and its limits, by.
    page.queue(max_size=access.queue, default_concurrency_limit=1, api_open=False)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            _, local, public = page.launch(
                server_name=access.host,
                server_port=access.port or free_port(access.host),
                share=access.share,
                auth=access.login,
                max_file_size=limits.upload_mb * 1_000_000,
                app_kwargs={"middleware": [guard]},
                theme=look.theme(),
                css=look.CSS,
                footer_links=["api"],
                state_session_capacity=SESSIONS,
                strict_cors=True,
                run_history=False,
                enable_monitoring=False,
                ssr_mode=False,
                mcp_server=False,
                pwa=False,
                show_error=False,
                inbrowser=False,
                prevent_thread_lock=True,
                quiet=True,
            )
        if access.share and public is None:
            raise OSError("no public link could be made: Gradio's server for them was not reached; try again later")
        yield public or local
    finally:
        page.close(verbose=False)
        _let_steps_end()


def _let_steps_end() -> None:
    """Wait for the step of a job that was cut off.

    Gradio computes in daemon threads of AnyIO: where a program ends while one is inside torch, it aborts.
    """
    for thread in threading.enumerate():
        if thread.name == "AnyIO worker thread":
            thread.join(STEP)
