"""`stsl edit`: a photo, corrupted or clean, changed as a text says."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stsl.cli.console import as_json, as_table, say, watch
from stsl.cli.shared import Decoder, Device, Offline, PrecisionName

if TYPE_CHECKING:
    from stsl.editing import Edited
    from stsl.editors import Edit, Editor
    from stsl.photos import Corruption, Prepared

# Fields of an edit that `--set` may name beside those of the editor.
OF_THE_EDIT = ("mode", "cross", "self_attention")


def edit(
    photo: Annotated[Path, typer.Argument(help="The photo, or a measurement file of `stsl degrade`.")],
    source: Annotated[str, typer.Option("--from", help="What the photo shows, such as 'a neutral face'.")],
    target: Annotated[str, typer.Option("--to", help="What it shall show, such as 'a smiling face'.")],
    task: Annotated[str | None, typer.Option(help="How it was corrupted: NAME[:key=value,...].")] = None,
    mask: Annotated[Path | None, typer.Option(help="Picture as large as the photo: white is missing.")] = None,
    kernel: Annotated[Path | None, typer.Option(help="Picture of the blur kernel, odd sides.")] = None,
    operator: Annotated[Path | None, typer.Option(help="File of `stsl degrade`.")] = None,
    noise: Annotated[float | None, typer.Option(help="Std of the noise on [0, 1]; 0.005 where no file says.")] = None,
    editor: Annotated[
        str | None, typer.Option(help="stsl-cat, nti-cat, nti or p2p; stsl-cat if corrupted, else nti-cat.")
    ] = None,
    restorer: Annotated[
        str | None, typer.Option(help="Sampler that restores first; stsl for stsl-cat, else none.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Named setting of the restorer; balanced when left out.")] = None,
    blend: Annotated[
        str | None, typer.Option(help="WORD,WORD of the prompts: what shows neither stays as it was.")
    ] = None,
    weight: Annotated[list[str] | None, typer.Option(help="WORD=FACTOR of a word of --to: 2 shows more of it.")] = None,
    set: Annotated[
        list[str] | None, typer.Option("--set", help="key=value of the editor, or mode, cross, self_attention.")
    ] = None,
    prior: Annotated[str, typer.Option(help="Built-in prior, diffusers folder or hub id.")] = "faces-128",
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch of a hub id.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of all noise.", min=0)] = 0,
    crop: Annotated[str | None, typer.Option(help="face or mask: edit that square and put it back.")] = None,
    resize: Annotated[bool, typer.Option("--resize", help="Scale the whole photo to the prior and back.")] = False,
    maps: Annotated[bool, typer.Option("--maps", help="Write what each word looked at, too.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("edited"),
    device: Device = None,
    precision: PrecisionName = "auto",
    decoder: Decoder = None,
    offline: Offline = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Change what a photo shows, by two texts. Say how the photo was corrupted and it is restored first.

    The inversion is kept in a folder of --out: a second edit of the same photo takes seconds.

    Example: `stsl edit old.jpg --task sr4 --from "a neutral face" --to "a smiling face" --crop face --set guidance=3`
    """
    from stsl.editing import Editing
    from stsl.photos import Job
    from stsl.priors.load import load_prior
    from stsl.restorer import Restorer

    corruption = _corruption(task, mask, kernel, operator, noise)
    method = _editor(
        editor, restorer, preset, set or [], corruption, corrupted=_is_corrupted(task, mask, kernel, operator)
    )
    change = _edit(source, target, blend, weight or [], set or [])
    if not photo.is_file():
        raise FileNotFoundError(f"there is no photo {photo}")
    model = load_prior(
        prior,
        revision=revision,
        device=device,
        precision=precision,  # type: ignore[arg-type]
        offline=offline,
        decoder=decoder or "full",
    )
    job = Job(Restorer(model, method.stages()[0]), corruption, seed=seed, crop=crop, resize=resize)
    prepared = job.prepare(photo)
    problem = job.start([prepared]).problem
    run = Editing(model, method, cache=out / "inversions").frames(
        problem.y, problem.physics, change, seed=seed, ids=(photo.stem,)
    )
    if run.was_kept:
        say(f"{photo} was inverted before: {run.kept}")
    for _ in watch(run, photo.name):
        pass
    result = run.result()
    record = _write(result, prepared, out, maps=maps) | {"input": str(photo), "corruption": str(corruption)}
    if json:
        as_json(record)
        return
    rows = [(name, record["output"][name]) for name in record["output"]]
    as_table(f"{source} -> {target}, {result.cost.seconds:.0f} s", ("what", "file"), rows)


def _is_corrupted(*ways: object) -> bool:
    return any(way is not None for way in ways)


def _corruption(
    task: str | None, mask: Path | None, kernel: Path | None, operator: Path | None, noise: float | None
) -> "Corruption":
    from stsl.photos import Corruption

    for path in (mask, kernel, operator):
        if path is not None and not path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
    if not _is_corrupted(task, mask, kernel, operator):
        return Corruption(task="denoise", noise=noise or 0.0)
    return Corruption(task, mask, kernel, operator, None, noise)


def _editor(
    name: str | None,
    restorer: str | None,
    preset: str | None,
    sets: Sequence[str],
    corruption: "Corruption",
    *,
    corrupted: bool,
) -> "Editor":
    from stsl.cli.choose import changes, choose_sampler, kind_of
    from stsl.editors import EDITORS
    from stsl.options import nearest

    name = name or ("stsl-cat" if corrupted else "nti-cat")
    if name not in EDITORS:
        raise ValueError(f"unknown editor {name!r}{nearest(name, EDITORS)}; there are {', '.join(EDITORS)}")
    base: Any = EDITORS[name]()
    if name == "stsl-cat":
        restorer = restorer or "stsl"
    if restorer is not None:
        first = choose_sampler(restorer, preset, (), kind_of(corruption))
        base = dataclasses.replace(base, restorer=first)
    elif preset is not None:
        raise ValueError(f"--preset {preset} is one of a restorer, and {name} has none: give --restorer stsl")
    own = [item for item in sets if item.partition("=")[0] not in OF_THE_EDIT]
    if any(item.partition("=")[0] == "restorer" for item in own):
        raise ValueError("--set restorer: give --restorer NAME, and --preset for its setting")
    return dataclasses.replace(base, **changes(base, own))


def _edit(source: str, target: str, blend: str | None, weight: Sequence[str], sets: Sequence[str]) -> "Edit":
    from stsl.cli.choose import changes
    from stsl.editors import Edit

    weights = {}
    for item in weight:
        word, _, factor = item.rpartition("=")
        try:
            weights[word] = float(factor)
        except ValueError:
            raise ValueError(f"--weight {item}: needs WORD=FACTOR, such as smiling=2") from None
    words = tuple(word.strip() for word in blend.split(",")) if blend else ()
    chosen = Edit(source, target, blend=words, weights=weights)
    own = [item for item in sets if item.partition("=")[0] in OF_THE_EDIT]
    return dataclasses.replace(chosen, **changes(chosen, own))


def _write(result: "Edited", prepared: "Prepared", out: Path, *, maps: bool) -> dict[str, Any]:
    """Write the pictures, put back into the photo, and run.json; return the record."""
    from stsl import images
    from stsl.result import write_json

    stem, suffix = prepared.source.stem, prepared.source.suffix if prepared.photo is not None else ".png"
    files = {name: out / f"{stem}_{name}{suffix}" for name in ("restored", "edited")}
    for name, x in (("restored", result.restored), ("edited", result.edited)):
        images.write(files[name], prepared.whole(x), like=prepared.photo)
    files["side_by_side"] = out / f"{stem}_side_by_side.png"
    images.write(files["side_by_side"], result.side_by_side())
    if maps:
        files["attention"] = out / f"{stem}_attention.png"
        images.write(files["attention"], result.map_pictures())
    record = result.record() | {"output": {name: str(path) for name, path in files.items()}}
    write_json(out / "run.json", record)
    return record
