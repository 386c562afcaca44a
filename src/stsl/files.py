"""Where things are kept, and how a file is written whole or not at all."""

import contextlib
import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path


def cache() -> Path:
    """Folder of downloaded weights: `$STSL_CACHE`, else `stsl` in the platform's cache folder. It may not exist yet."""
    if chosen := os.environ.get("STSL_CACHE"):
        return Path(chosen)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "stsl"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "stsl"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "stsl"


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well the file takes its place, else it disappears.

    A reader sees the old file or the new one, never a torn one, whatever stops the program. The temporary file
    keeps the suffix of `path`, for writers that choose their format by it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".tmp-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        make_ordinary(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def make_ordinary(path: Path) -> None:
    """Give a file that was made private, as temporary ones are, the permissions of any new file."""
    if os.name == "posix":
        mask = os.umask(0)
        os.umask(mask)
        path.chmod(0o666 & ~mask)


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
