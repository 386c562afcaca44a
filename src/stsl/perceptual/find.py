"""From a name, a folder or a hub id to the files of a network that looks at pictures."""

from dataclasses import dataclass
from pathlib import Path

from stsl.options import nearest
from stsl.priors.folder import Folder
from stsl.priors.load import download, is_hub_id, verify


@dataclass(frozen=True)
class Kind:
    """What is looked for.

    Args:
        part: what `stsl.priors.folder` calls it.
        title, network: what people and transformers call it.
        builtin: the one that ships with the package, where one does.
        configs: the files that are wanted beside the weights.
        example: a hub id.
    """

    part: str
    title: str
    network: str
    builtin: str
    configs: tuple[str, ...]
    example: str


def shipped(kind: Kind, shelf: Path) -> list[str]:
    """Names of the networks of a kind that ship with the package, in the folder `shelf`."""
    return [name for name in (kind.builtin,) if (shelf / name / "config.json").is_file()]


def find(name: str | Path, kind: Kind, shelf: Path, *, offline: bool = False) -> Path:
    """The folder of a network, from the hub where it is not here yet.

    Args:
        name: built-in name, path of a folder, or hub id "owner/model", with "@" before a revision; "" is the built-in
            one. A `Path` is always a folder.
        kind: what it is.
        shelf: where the built-in ones are.
        offline: a hub id must be in the cache already.

    Raises:
        FileNotFoundError: nothing of that name; the message says what would work.
        ValueError: built-in files are damaged.
        ConnectionError, PermissionError: the hub could not be reached, or wants its terms accepted first.
    """
    text, is_path = str(name), isinstance(name, Path)
    there = shipped(kind, shelf)
    path = Path(text).expanduser()
    if not is_path and (text or kind.builtin) in there:
        folder = shelf / (text or kind.builtin)
        verify(folder)
        return folder
    if text and path.is_dir():
        return path.resolve()
    hub, _, revision = text.partition("@")
    if not is_path and is_hub_id(hub):
        folder = download(
            hub,
            revision or None,
            offline,
            parts=(kind.part,),
            configs=kind.configs,
            instead=f"or `stsl fetch {text}`, or give the folder of a {kind.title}",
        )
        if not Folder(folder).weights(kind.part):
            raise FileNotFoundError(
                f"{'the cache' if offline else 'the hub'} has no safetensors weights of {text}. The hub's own "
                f"conversions are often found at a revision such as {hub}@refs/pr/1; or load it once with transformers "
                "and keep it with save_pretrained"
            )
        return folder
    lacking = f"there is no {kind.title} {text!r}{nearest(text, there)}" if text else "this version ships none"
    built_in = f"a built-in one ({', '.join(there)}), " if there else ""
    raise FileNotFoundError(
        f"{lacking}; give {built_in}the folder of a transformers {kind.network} with safetensors weights, or a hub id "
        f"such as {kind.example}"
    )


def modified(folder: Path, kind: Kind) -> int:
    """When the weights in a network's folder were last written, in nanoseconds; 0 without weights."""
    weights = Folder(folder).weights(kind.part)
    return weights.stat().st_mtime_ns if weights else 0
