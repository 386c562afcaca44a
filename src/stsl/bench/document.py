"""A report as plain pieces, and the pieces as HTML, Markdown and LaTeX."""

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Text:
    """A cell of a table: its text, whether it is best or second, and a smaller remark behind it."""

    text: str
    rank: int = 0
    remark: str = ""


@dataclass(frozen=True)
class Heading:
    """The beginning of a part."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Plain prose."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first one of each names it."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Text, ...], ...]


@dataclass(frozen=True)
class Drawing:
    """A picture made of lines, as SVG."""

    caption: str
    svg: str


@dataclass(frozen=True)
class Pictures:
    """A picture on disk, in a folder of the user's."""

    caption: str
    path: Path


Piece = Heading | Paragraph | Table | Drawing | Pictures

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; margin: 2rem auto; max-width: 78rem; padding: 0 1rem }
h1, h2, h3 { line-height: 1.2 } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd }
table { border-collapse: collapse; margin: 0.5rem 0 1.5rem; display: block; overflow-x: auto }
caption { text-align: left; color: #555; padding-bottom: 0.3rem }
th, td { padding: 0.25rem 0.7rem; text-align: right; border-bottom: 1px solid #eee; white-space: nowrap }
th:first-child, td:first-child { text-align: left } thead th { border-bottom: 1px solid #888 }
small { color: #777 } u { text-underline-offset: 2px } img { max-width: 100% } figure { margin: 1rem 0 }
"""


def to_html(title: str, pieces: Sequence[Piece]) -> str:
    """One file that needs no other and no network."""
    body = "\n".join(_html(piece) for piece in pieces)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>{html.escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def to_markdown(title: str, pieces: Sequence[Piece], folder: Path) -> str:
    """For a README: pictures are links below `folder`, drawings are left to the HTML."""
    parts = [f"# {title}"]
    for piece in pieces:
        if isinstance(piece, Heading):
            parts.append(f"{'#' * piece.level} {piece.text}")
        elif isinstance(piece, Paragraph):
            parts.append(piece.text)
        elif isinstance(piece, Table):
            head = [" | ".join(piece.columns), " | ".join("---" for _ in piece.columns)]
            rows = [" | ".join(_markdown(cell) for cell in row) for row in piece.rows]
            parts += [f"*{piece.caption}*", "\n".join(f"| {row} |" for row in head + rows)]
        elif isinstance(piece, Pictures):
            parts.append(f"![{piece.caption}]({piece.path.relative_to(folder).as_posix()})")
    return "\n\n".join(parts) + "\n"


def to_latex(pieces: Sequence[Piece]) -> str:
    """The tables alone, each as a `table` with booktabs rules; best in bold, second underlined."""
    parts = ["% \\usepackage{booktabs}"]
    for piece in pieces:
        if isinstance(piece, Table):
            rows = [" & ".join(_latex(cell) for cell in row) + r" \\" for row in piece.rows]
            head = " & ".join(_escaped(column) for column in piece.columns) + r" \\"
            parts.append(
                "\n".join(
                    [
                        r"\begin{table}",
                        rf"\caption{{{_escaped(piece.caption)}}}",
                        rf"\begin{{tabular}}{{l{'r' * (len(piece.columns) - 1)}}}",
                        r"\toprule",
                        head,
                        r"\midrule",
                        *rows,
                        r"\bottomrule",
                        r"\end{tabular}",
                        r"\end{table}",
                    ]
                )
            )
    return "\n\n".join(parts) + "\n"


def _html(piece: Piece) -> str:
    if isinstance(piece, Heading):
        return f"<h{piece.level}>{html.escape(piece.text)}</h{piece.level}>"
    if isinstance(piece, Paragraph):
        return f"<p>{html.escape(piece.text)}</p>"
    if isinstance(piece, Drawing):
        return f"<figure>{piece.svg}<figcaption>{html.escape(piece.caption)}</figcaption></figure>"
    if isinstance(piece, Pictures):
        data = base64.b64encode(piece.path.read_bytes()).decode()
        caption = html.escape(piece.caption)
        return (
            f'<figure><img alt="{caption}" src="data:image/jpeg;base64,{data}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    head = "".join(f"<th>{html.escape(column)}</th>" for column in piece.columns)
    rows = "\n".join("<tr>" + "".join(f"<td>{_html_cell(cell)}</td>" for cell in row) + "</tr>" for row in piece.rows)
    caption = html.escape(piece.caption)
    return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table>"


def _html_cell(cell: Text) -> str:
    text = html.escape(cell.text)
    text = {1: f"<b>{text}</b>", 2: f"<u>{text}</u>"}.get(cell.rank, text)
    return f"{text} <small>{html.escape(cell.remark)}</small>" if cell.remark else text


def _markdown(cell: Text) -> str:
    text = cell.text.replace("|", "\\|")
    text = {1: f"**{text}**", 2: f"<u>{text}</u>"}.get(cell.rank, text)
    return f"{text} {cell.remark}".replace("|", "\\|") if cell.remark else text


def _latex(cell: Text) -> str:
    text = _escaped(cell.text)
    text = {1: rf"\textbf{{{text}}}", 2: rf"\underline{{{text}}}"}.get(cell.rank, text)
    return rf"{text} {{\scriptsize {_escaped(cell.remark)}}}" if cell.remark else text


def _escaped(text: str) -> str:
    """For LaTeX."""
    text = re.sub(r"([&%$#_{}])", r"\\\1", text.replace("\\", r"\textbackslash "))
    return text.replace("~", r"\textasciitilde ").replace("–", "--")
