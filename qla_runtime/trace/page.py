"""A trace as one HTML page. The look is in page.html; here is what varies."""

from __future__ import annotations

import html as markup
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from string import Template

from qla_runtime.trace.record import Part, Piece, Record, Run

DROPPED_INK = 0.75
"""Ink of a word that only the last layer dropped; less than 1, so that survivors stand out in any model."""


def html(trace: Record) -> str:
    """The page, with every text of the trace escaped."""
    template = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    return template.substitute(
        question=_escape(trace.question),
        model=_escape(trace.model),
        tokens=f"{trace.tokens_read:,}",
        layers=trace.layers,
        inks="\n".join(_ink(depth, trace.layers) for depth in range(trace.layers + 1)),
        legend="\n".join(_swatch(depth, trace.layers) for depth in range(trace.layers + 1)),
        windows=_about_windows(trace),
        runs="\n".join(_run(trace, run, number) for number, run in enumerate(trace.runs)),
    )


def frame(trace: Record) -> str:
    """The page in an ``iframe``, for a document that is somebody else's, which the page's script cannot touch."""
    return (
        f'<iframe srcdoc="{markup.escape(html(trace))}" sandbox="allow-scripts" title="qla trace" '
        'style="width: 100%; height: 40rem; border: 0"></iframe>'
    )


def _escape(text: str) -> str:
    """Text for an element or a quoted attribute. NUL has no spelling in HTML."""
    return markup.escape(text).replace("\0", "\ufffd")


def _ink(depth: int, layers: int) -> str:
    ink = 1 if depth == layers else DROPPED_INK * depth / layers
    return f'[data-depth="{depth}"] {{ --ink: {ink:.3g} }}'


def _swatch(depth: int, layers: int) -> str:
    what = "kept by all" if depth == layers else str(depth + 1)
    return f'<span data-depth="{depth}">{what}</span>'


def _about_windows(trace: Record) -> str:
    if trace.windows == 1:
        return ""
    return (
        f"The model read the text in {trace.windows} overlapping windows. A word that several of them hold is "
        "shown as in the one that kept it longest; counts are sums over the windows."
    )


def _run(trace: Record, run: Run, number: int) -> str:
    name, answer = _escape(run.length), _escape(run.answer) or "(no answer)"
    rows = "\n".join(
        f'<tr data-layer="{layer}"><th scope="row">{layer or "input"}</th>'
        f'<td style="--share: {kept / trace.tokens_read:.1%}">{kept:,}</td></tr>'
        for layer, kept in enumerate((trace.tokens_read, *run.kept))
    )
    text = "\n".join(_part(part) for part in trace.parts(run))
    return f"""\
<section aria-labelledby="run{number}">
<h2 id="run{number}">{name}</h2>
<p class="answer"><mark><bdi>{answer}</bdi></mark> <small>score {run.score:.4f}</small></p>
<p class="cost" style="--share: {run.share:.1%}">{run.macs:,} MACs, {run.share:.1%} of full</p>
<table><caption class="unseen">Tokens that each layer of {name} keeps</caption>
<thead><tr><th scope="col">after layer</th><th scope="col">tokens kept</th></tr></thead>
<tbody>
{rows}
</tbody></table>
{text}
</section>"""


def _part(part: Part) -> str:
    """Special tokens as chips in a line of their own, the question and the context as paragraphs."""
    pieces = "".join(_marked(part.pieces))
    if part.kind == "special":
        return f'<p class="special">{pieces}</p>'
    return f'<p class="{part.kind}" dir="auto">{pieces}</p>'


def _marked(pieces: Iterable[Piece]) -> Iterable[str]:
    for is_answer, members in groupby(pieces, key=lambda piece: piece.is_answer):
        text = "".join(_piece(piece) for piece in members)
        yield f"<mark>{text}</mark>" if is_answer else text


def _piece(piece: Piece) -> str:
    text = _escape(piece.text)
    return text if piece.depth is None else f'<span data-depth="{piece.depth}">{text}</span>'
