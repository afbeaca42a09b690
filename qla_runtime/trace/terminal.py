"""A trace as text: faded by ANSI codes on a terminal, as lists of words elsewhere."""

from __future__ import annotations

from qla_runtime.terminal import visible
from qla_runtime.trace.record import Part, Record, Run

BOLD, DIM, UNDERLINE, RESET = "\x1b[1m", "\x1b[2m", "\x1b[4m", "\x1b[0m"


def styled(trace: Record, width: int) -> str:
    """The text once per config: bold what the last layer kept, dim what the first half of the layers dropped."""
    half = trace.layers // 2
    legend = (
        f"{BOLD}kept by all {trace.layers} layers{RESET}, dropped in layers {half + 1} to {trace.layers}, "
        f"{DIM}dropped before{RESET}, {UNDERLINE}answer{RESET}"
    )
    blocks = [
        "\n".join(
            [
                _heading(trace, run),
                f"  kept {' '.join(map(str, run.kept))} of {trace.tokens_read} tokens, layer by layer",
                "",
                *(
                    _faded(part, trace.layers, width).rstrip()
                    for part in trace.parts(run)
                    if part.kind != "special"
                ),
            ]
        )
        for run in trace.runs
    ]
    return "\n\n".join([*_about_windows(trace), *blocks, legend])


def plain(trace: Record) -> str:
    """Per config and layer the words that it drops, in their order."""
    blocks = ["\n".join([_heading(trace, run), *_layers(trace, run)]) for run in trace.runs]
    return "\n\n".join([*_about_windows(trace), *blocks])


def _heading(trace: Record, run: Run) -> str:
    return (
        f"{visible(run.length)}: {visible(run.answer) or '(no answer)'}\n"
        f"  score {run.score:.4f}, {run.macs:,} MACs, {run.share:.1%} of full"
    )


def _about_windows(trace: Record) -> list[str]:
    """What a reader must know where the text did not fit into one sequence."""
    if trace.windows == 1:
        return []
    return [f"{trace.windows} overlapping windows; a word is shown as in the window that kept it longest."]


def _layers(trace: Record, run: Run) -> list[str]:
    if run.kept[-1] == trace.tokens_read:
        return [f"  every layer keeps all {trace.tokens_read} tokens"]
    lines = []
    for layer, (before, after) in enumerate(zip((trace.tokens_read, *run.kept), run.kept, strict=False)):
        words = _words(trace, run, layer)
        lines.append(f"  layer {layer + 1:<2} keeps {after} of {before}" + (f", drops {words}" if words else ""))
    return [*lines, f"  left     {_words(trace, run, trace.layers)}"]


def _words(trace: Record, run: Run, depth: int) -> str:
    """The texts of the tokens that ``depth`` layers kept, and no more; neighbours stand together."""
    return " ".join(
        " ".join(visible(piece.text).split())
        for part in trace.parts(run)
        for piece in part.pieces
        if piece.depth == depth
    )


def _faded(part: Part, layers: int, width: int) -> str:
    lines = iter(_wrapped("".join(piece.text for piece in part.pieces), width))
    styles = []
    for piece in part.pieces:
        text = "".join(next(lines) for _ in piece.text)
        codes = UNDERLINE if piece.is_answer else ""
        if piece.depth == layers:
            codes += BOLD
        elif piece.depth is not None and piece.depth < layers // 2:
            codes += DIM
        # A style ends with its line, so that pagers and narrow terminals do not underline margins.
        styles.append("\n".join(f"{codes}{line}{RESET}" if codes and line else line for line in text.split("\n")))
    return "".join(styles)


def _wrapped(text: str, width: int) -> str:
    """The text with line breaks in place of some of its blanks, so that it keeps its length."""
    characters = list(visible(text))
    line, last_blank = 0, -1
    for i, character in enumerate(characters):
        if character == "\n":
            line = i + 1
        elif character == " ":
            last_blank = i
        elif i - line >= width and last_blank >= line:
            characters[last_blank] = "\n"
            line = last_blank + 1
    return "".join(characters)
