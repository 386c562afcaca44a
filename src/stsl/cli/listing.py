"""`stsl list`: what there is."""

from dataclasses import fields
from typing import Annotated, Any

import typer

from stsl.cli.console import as_json, as_table


def listing(
    what: Annotated[str, typer.Argument(help="tasks, samplers or priors.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the tasks, samplers or priors that this version knows.

    Example: `stsl list samplers`
    """
    kinds = {"tasks": _tasks, "samplers": _samplers, "priors": _priors}
    if what not in kinds:
        raise ValueError(f"nothing called {what!r} can be listed; there are {', '.join(kinds)}")
    rows = kinds[what]()
    if json:
        as_json(rows)
    else:
        columns = [key for key in rows[0] if key != "knobs"]
        as_table(what, columns, [[_text(row[key]) for key in columns] for row in rows])


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _tasks() -> list[dict[str, Any]]:
    from stsl import tasks

    return tasks.describe()


def _samplers() -> list[dict[str, Any]]:
    from stsl.reconstructors import RECONSTRUCTORS
    from stsl.samplers import SAMPLERS

    return [
        {
            "name": name,
            "class": cls.__name__,
            "family": cls.family,
            "requires": sorted(cls.requires),
            "presets": list(cls.presets),
            "source": cls.source,
            "knobs": [
                {"name": f.name, "default": f.default} | dict(f.metadata)
                for f in fields(cls)  # type: ignore[arg-type]
            ],
        }
        for name, cls in (SAMPLERS | RECONSTRUCTORS).items()
    ]


def _priors() -> list[dict[str, Any]]:
    import json

    from stsl.priors.load import builtin_folder, builtin_names

    rows = []
    for name in builtin_names():
        folder = builtin_folder() / name
        unet = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
        size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
        kind = "pixel" if unet["_class_name"] == "UNet2DModel" else "latent"
        rows.append({"name": name, "family": kind, "where": "built in", "megabytes": round(size / 1e6)})
    note = "a diffusers folder with safetensors, or a hub id such as stable-diffusion-v1-5/stable-diffusion-v1-5"
    return [*rows, {"name": "FOLDER or OWNER/MODEL", "family": "latent or pixel", "where": note, "megabytes": None}]
