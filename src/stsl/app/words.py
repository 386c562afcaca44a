"""The small pieces of HTML that the page is told in. Everything that comes from outside is escaped."""

from collections.abc import Sequence
from html import escape

from stsl.app.house import House
from stsl.app.outcomes import Restored, Row, Step
from stsl.app.sentences import duration
from stsl.memory import GIB, available
from stsl.priors.base import Prior
from stsl.samplers import Sampler


def note(text: str) -> str:
    """A quiet remark."""
    return f'<p class="note">{escape(text)}</p>' if text else ""


def alert(text: str) -> str:
    """What stands in the way."""
    return f'<p class="note alert" role="alert">{escape(text)}</p>'


def progress(step: Step[object]) -> str:
    """How far a job is: a sentence, and a bar."""
    left = "" if step.seconds_left is None or step.done in (None, 1.0) else f", {duration(step.seconds_left)} left"
    said = f'<p class="said" role="status">{escape(step.said)}{left}</p>'
    if step.done is None:
        return said + '<div class="track unknown" role="progressbar" aria-label="Progress"><div></div></div>'
    share = round(100 * step.done)
    return (
        f'{said}<div class="track" role="progressbar" aria-label="Progress" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{share}"><div style="width: {share}%"></div></div>'
    )


def status(text: str) -> str:
    """A sentence in the place of the progress."""
    return f'<p class="said" role="status">{escape(text)}</p>'


WAITING = "Waiting for a free place: one job runs at a time."


def ended(shown: str) -> str:
    """The status after a job: what it said last, or that it was cancelled where it was still under way."""
    is_under_way = "progressbar" in shown or WAITING in shown
    return status("Cancelled.") if is_under_way else shown


def verdict(outcome: Restored) -> str:
    """Whether a result fits what was measured."""
    levels = f"White in the difference is {255 * outcome.white:.0f} of 255 grey levels."
    found = f"Residual {outcome.residual:.4f}"
    if outcome.kept:
        return (
            '<p class="verdict">Outside the hole every pixel is the photo\'s own. Before they were put back, the '
            f"model's picture differed from them by {outcome.residual:.4f} (root mean square, colours from 0 to 1). "
            f"{levels}</p>"
        )
    if outcome.expected is None:
        return f'<p class="verdict">{found}; the noise level is not known. {levels}</p>'
    noise = f"noise of {outcome.expected:.4f}" if outcome.expected else "no noise, only rounding,"
    found += f", where {noise} was expected (root mean square, colours from 0 to 1)."
    if outcome.far_off:
        more = "The result does not fit what was measured: another kind of damage, more noise, or more steps?"
        return f'<p class="verdict far">{found} <strong>{more}</strong> {levels}</p>'
    return f'<p class="verdict">{found} The result fits what was measured. {levels}</p>'


def table(rows: Sequence[Row]) -> str:
    """The figures of a comparison."""
    head = "".join(
        f'<th scope="col"{kind}>{name}</th>'
        for name, kind in (
            ("Method", ""),
            ("Residual", ' class="number"'),
            ("Expected", ' class="number"'),
            ("Evaluations", ' class="number"'),
            ("Seconds", ' class="number"'),
        )
    )
    lines = "".join(f'<tr><th scope="row">{escape(row.method)}</th>{_cells(row)}</tr>' for row in rows)
    return f'<table class="rows"><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>'


def _cells(row: Row) -> str:
    if row.error:
        return f'<td colspan="4">{escape(row.error)}</td>'
    expected = "unknown" if row.expected is None else f"{row.expected:.4f}"
    values = (f"{row.residual:.4f}", expected, f"{row.evaluations:.0f}", f"{row.seconds:.1f}")
    return "".join(f'<td class="number">{value}</td>' for value in values)


def header(house: House) -> str:
    """What this is, and what it runs on."""
    first = next(iter(house.priors.values()))
    free = available(first.device)
    facts = [f"on {first.device}", *([f"{free / GIB:.1f} GiB free"] if free else []), *house.priors]
    shown = "".join(f'<span class="fact">{escape(fact)}</span>' for fact in facts)
    what = "Restores corrupted photos, and shows how far a result can be trusted."
    return f'<div class="bar"><div><h1>stsl</h1><p>{what}</p></div><div class="facts">{shown}</div></div>'


def about(house: House, methods: dict[str, type[Sampler]]) -> str:
    """Models, licences, methods and limits."""
    limits = house.limits
    models = "".join(_model(name, prior) for name, prior in house.priors.items())
    papers = "".join(
        f'<tr><th scope="row">{escape(cls.__name__)}</th><td>{escape(cls.source)}</td></tr>' for cls in methods.values()
    )
    return f"""
<div class="cards">
<div class="card"><h3>What a result is</h3><p>Detail that the damage destroyed is invented by the model. A restored face
is a plausible face, not that person's. The measurement check says whether a result fits the photo; several samples show
where the answers differ.</p></div>
{models}
<div class="card"><h3>Your photos</h3><p>They stay on the machine this runs on. Results are deleted after
{escape(duration(limits.keep_seconds))}. Downloads carry no EXIF data, so no place and no date.</p>
<p>At most {limits.megapixels:g} megapixels, {limits.upload_mb} MB, and {escape(duration(limits.seconds))} per job; one
job runs at a time.</p></div>
<div class="card"><h3>Code</h3><p>Apache-2.0.</p></div>
</div>
<h3>Methods</h3>
<table class="rows"><tbody>{papers}</tbody></table>
"""


LICENCES = {
    "faces-128": "Ships with stsl. For research and demonstration only, not for identifying people; trained on Labeled "
    "Faces in the Wild.",
    "faces-64-pixel": "Ships with stsl. For research and demonstration only, not for identifying people; trained on "
    "Labeled Faces in the Wild.",
}


def _model(name: str, prior: Prior) -> str:
    _, height, width = prior.image_shape
    kind = "latents" if prior.family == "latent" else "pixels"
    text = "understands text" if prior.has_text else "no text"
    licence = LICENCES.get(prior.name, "Its licence is that of its makers: see where it came from.")
    return (
        f'<div class="card"><h3>{escape(name)}</h3><p>{width} x {height} pixels, works on {kind}, {text}.</p>'
        f"<p>{escape(licence)}</p></div>"
    )
