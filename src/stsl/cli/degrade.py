"""`stsl degrade`: make a measurement of a good photo."""

from pathlib import Path
from typing import Annotated

import typer

from stsl.cli.console import as_json, say


def degrade(
    photo: Annotated[Path, typer.Argument(metavar="INPUT", help="A good photo.")],
    task: Annotated[str, typer.Option(help="NAME[:key=value,...], see `stsl list tasks`.")],
    noise: Annotated[float, typer.Option(help="Standard deviation of the noise on [0, 1].")] = 0.005,
    seed: Annotated[int, typer.Option(help="Seed of mask, kernel and noise.", min=0)] = 0,
    crop: Annotated[
        str | None, typer.Option(help="face: cut the face out first, framed for the built-in prior.")
    ] = None,
    resize: Annotated[bool, typer.Option("--resize", help="Scale the whole photo to --size first.")] = False,
    size: Annotated[int, typer.Option(help="Side in pixels for --crop and --resize.", min=16)] = 128,
    out: Annotated[Path, typer.Option(help="Folder for the four files.")] = Path("degraded"),
    json: Annotated[bool, typer.Option("--json", help="Print the file names as JSON.")] = False,
) -> None:
    """Degrade a photo, and keep everything needed to restore it and to score the result.

    Writes STEM.png (a preview), STEM.safetensors (the exact measurement), STEM_truth.png and STEM_operator.safetensors.

    Example: `stsl degrade face.png --task sr4 --out degraded` and then
    `stsl restore degraded/face.safetensors --operator degraded/face_operator.safetensors`
    """
    from stsl import images, measurements, tasks

    tasks.parse(task)
    original = images.read(photo)
    x = original.x
    if crop is not None or resize:
        x = images.fit(original, (size, size), crop=crop, resize=resize).x
    shape = (x.shape[1], x.shape[2], x.shape[3])
    stem = images.safe_stem(photo.stem)
    # The id of the measurement is the stem, so that the same photo gives the same measurement from any folder.
    y, physics = tasks.measure(task, x, noise=noise, ids=(stem,), seed=seed)
    files = {
        "preview": out / f"{stem}.png",
        "measurement": out / f"{stem}.safetensors",
        "truth": out / f"{stem}_truth.png",
        "operator": out / f"{stem}_operator.safetensors",
    }
    images.write(files["preview"], y)
    images.write(files["truth"], x)
    measurements.save_measurement(files["measurement"], y, spec=task, noise=noise, id=stem, seed=seed)
    measurements.save_operator(files["operator"], task, physics, shape, noise)
    if json:
        as_json({key: str(path) for key, path in files.items()})
    else:
        say(f"restore it with: stsl restore {files['measurement']} --operator {files['operator']}")
