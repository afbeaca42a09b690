"""``qla trace``: the fate of every token as the engine tells it, and the pages and texts that show it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from package_tools import tiny_package

from qla_runtime import (
    Engine,
    Escalate,
    InputError,
    LatencyBudget,
    LengthConfig,
    MaxLoss,
    UnsupportedError,
    cli,
    hub,
)
from qla_runtime.runner import Runner
from qla_runtime.trace import Trace, trace

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "qla_runtime" / "models" / hub.DEFAULT_PACKAGE
QUESTION = "What did Smeaton use to bind the blocks of granite?"
CONTEXT = (ROOT / "examples" / "paragraph.txt").read_text(encoding="utf-8")
HALVES = LengthConfig.ratio([1.0, 0.8, 0.6, 0.5, 0.3, 0.1])
HOSTILE = {
    "markup": "<script>alert(1)</script> said <b onclick=\"x\">Bob</b> & 'Al' &lt; $question $$ ${x} <!-- ]]>",
    "emoji": "Keeper \U0001f468\u200d\U0001f469\u200d\U0001f467 saw \U0001f30a\ufe0f and \U0001f1eb\U0001f1ee.",
    "combining": "Cafe\u0301 Zu\u0308rich n\u0303andu\u0301 a\u0301\u0323\u0302 e\u0301",
    "right to left": "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd, said Bob \u202eabc\u202c. "
    "\u0627\u0644\u0645\u0646\u0627\u0631\u0629 1759",
    "controls": "red \x1b[31mlight\x1b[0m \x9b2J \x07 bell\ttab\n\n  two lines",
}

pytestmark = pytest.mark.skipif(
    not (PACKAGE / "manifest.json").exists(),
    reason=f"the default package {hub.DEFAULT_PACKAGE} is not in this tree",
)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.from_pretrained(PACKAGE, num_threads=1)


@pytest.fixture(scope="module")
def found(engine) -> Trace:
    return trace(engine, QUESTION, CONTEXT)


class Page(HTMLParser):
    """What a browser would see: elements, and the text below those of a class."""

    VOID = {"meta", "input"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[tuple[str, str]] = []
        self.texts: list[tuple[list[tuple[str, str]], str]] = []
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append((tag, dict(attrs).get("class") or ""))
            self.texts.append((list(self.open), ""))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        self.texts.append((list(self.open), data))

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)

    def paragraphs(self, of: str, within: str = "") -> list[str]:
        """The text of each <p class=of>, or only what it has within elements of a name."""
        found: list[str] = []
        for path, data in self.texts:
            if path[-1:] == [("p", of)] and not data:
                found.append("")
            if ("p", of) in path and (not within or within in [tag for tag, _ in path]):
                found[-1] += data
        return found


# ---- data -----------------------------------------------------------------------------------------


def test_one_window_tells_what_forward_tells(engine, found):
    encoding = engine.text_encoder.load().encode(QUESTION, CONTEXT)
    assert [token.text for token in found.tokens] == encoding.tokens
    assert [run.length for run in found.runs] == list(engine.lengths)
    for run in found.runs:
        output = engine.forward([encoding.ids], token_type_ids=[encoding.type_ids], length=run.length)
        assert run.kept == tuple(map(len, output.kept[0]))
        for layer, positions in enumerate(output.kept[0]):
            np.testing.assert_array_equal(np.flatnonzero(np.array(run.depth) > layer), positions)
        answer = engine.answer(QUESTION, CONTEXT, run.length)
        assert (run.answer, run.score, run.start, run.end) == tuple(
            answer[key] for key in ("answer", "score", "start", "end")
        )
        assert run.macs == answer["macs"] == output.macs[0]


def test_tokens_lie_where_the_text_has_them(found):
    texts = {"question": QUESTION, "context": CONTEXT}
    for token in found.tokens:
        if token.part == "special":
            assert (token.start, token.end) == (0, 0)
        else:
            assert texts[token.part][token.start : token.end].lower() == token.text.removeprefix("##")


def test_shares_are_of_full_even_where_full_is_not_shown(engine):
    (run,) = trace(engine, QUESTION, CONTEXT, [HALVES]).runs
    assert run.length == str(HALVES)
    assert run.share == run.macs / engine.answer(QUESTION, CONTEXT)["macs"] < 1


def test_all_lengths_are_one_native_run(engine, monkeypatch):
    """Full is not run for the shares' sake, and no config runs a second time for its answer."""
    run, batches = Runner.native_run, []
    monkeypatch.setattr(Runner, "native_run", lambda *given: batches.append(given[1]) or run(*given))
    found = trace(engine, QUESTION, CONTEXT * 4, ["fast", HALVES])
    assert [batch.count for batch in batches] == [2 * found.windows]


@pytest.mark.parametrize("repeats", [2, 4, 7])
def test_windows_are_united(engine, repeats):
    """By characters, on a way of its own: what the windows say of a place is what the trace says of it."""
    context = CONTEXT * repeats
    found = trace(engine, QUESTION, context, [HALVES])
    (run,) = found.runs
    windows = engine.windows([QUESTION], [context])
    assert found.windows == windows.batch.count > 1
    assert found.tokens_read == len(windows.batch.ids)
    deepest: dict[tuple[int, int], int] = {}
    counts = np.zeros(engine.layers, int)
    for w, (a, b) in enumerate(zip(windows.batch.offsets[:-1], windows.batch.offsets[1:], strict=True)):
        ids, types = windows.batch.ids[a:b].tolist(), windows.batch.type_ids[a:b].tolist()
        kept = engine.forward([ids], token_type_ids=[types], length=HALVES).kept[0]
        counts += [len(positions) for positions in kept]
        for token in np.flatnonzero(windows.is_context[a:b]).tolist():
            place = windows.characters(0, w, token, token)
            depth = sum(token in positions for positions in kept)
            deepest[place] = max(depth, deepest.get(place, 0))
    assert run.kept == tuple(counts)
    assert run.macs == engine.answer(QUESTION, context, HALVES)["macs"]
    shown = {(t.start, t.end): d for t, d in zip(found.tokens, run.depth, strict=True) if t.part == "context"}
    assert shown == deepest


def test_a_roberta_trace_has_no_types_and_shares_characters(tmp_path):
    package = tiny_package(family="roberta", max_length=40, doc_stride=9).save(tmp_path / "roberta")
    found = trace(Engine(package, num_threads=1), "who is it?", "it is \u00e9 so. \U0001f30a " * 6)
    assert found.windows > 1
    for run in found.runs:
        parts = [part for part in found.parts(run) if part.kind == "context"]
        assert "".join(piece.text for part in parts for piece in part.pieces) == found.context
    Page(found.html())


@pytest.mark.parametrize("context", HOSTILE.values(), ids=HOSTILE)
def test_pieces_are_the_text(engine, context):
    found = trace(engine, HOSTILE["markup"], context, ["full", HALVES])
    for run in found.runs:
        parts = {part.kind: part.pieces for part in found.parts(run)}
        assert "".join(piece.text for piece in parts["question"]) == found.question
        assert "".join(piece.text for piece in parts["context"]) == context
        # An accent that the answer ends before is marked with its letter.
        accents = "".join(map(chr, range(0x300, 0x370)))
        marked = "".join(piece.text for piece in parts["context"] if piece.is_answer)
        assert marked.startswith(run.answer) and not marked[len(run.answer) :].strip(accents)
        tokenless = "".join(piece.text for piece in parts["context"] if piece.depth is None)
        assert not any(character.isalnum() for character in tokenless)


def test_accents_stay_with_their_letters(engine):
    found = trace(engine, "where?", HOSTILE["combining"], [HALVES])
    texts = [piece.text for part in found.parts(found.runs[0]) for piece in part.pieces]
    assert not [text for text in texts if re.match("[\u0300-\u036f]", text)]


# ---- page -----------------------------------------------------------------------------------------


def test_the_page_holds_each_config_once(found):
    page = Page(found.html())
    assert page.count("section") == len(found.runs)
    assert page.paragraphs("context") == [CONTEXT] * len(found.runs)
    assert page.paragraphs("question") == [QUESTION] * len(found.runs)
    assert page.paragraphs("context", within="mark") == [run.answer for run in found.runs]
    for run, cost in zip(found.runs, page.paragraphs("cost"), strict=True):
        assert cost == f"{run.macs:,} MACs, {run.share:.1%} of full"


def test_words_have_the_depth_of_their_tokens(found):
    texts = re.findall(r'<p class="context".*?</p>', found.html(), re.DOTALL)
    for run, text in zip(found.runs, texts, strict=True):
        expected = [piece.depth for part in found.parts(run) if part.kind == "context" for piece in part.pieces]
        assert re.findall(r'data-depth="(\d+)"', text) == [str(depth) for depth in expected if depth is not None]


def test_the_page_needs_nothing_else(found):
    page = Page(found.html())
    linking = {"src", "href", "srcset", "action", "data"}
    assert not [attributes for _, attributes in page.elements if linking & set(attributes)]
    assert not re.search(r"@import|url\(|https?:", found.html())
    assert not {"link", "img", "iframe", "object"} & {tag for tag, _ in page.elements}


def test_without_script_the_page_is_a_picture_of_all_layers(found):
    still = re.sub(r"<script>.*?</script>", "", found.html(), flags=re.DOTALL)
    inks = [float(ink) for ink in re.findall(r'^\[data-depth="\d+"\] { --ink: (\S+) }', still, re.MULTILINE)]
    assert len(inks) == found.layers + 1
    assert inks[0] == 0 and inks[-1] == 1 and inks == sorted(inks)
    # Without a script the slider could do nothing, so only the script shows it.
    assert '<div class="layers" hidden>' in still


@pytest.mark.parametrize("context", HOSTILE.values(), ids=HOSTILE)
def test_texts_cannot_become_markup(engine, found, context):
    page = Page(trace(engine, HOSTILE["markup"], context).html())
    assert page.paragraphs("context") == [context] * len(found.runs)
    assert page.paragraphs("question") == [HOSTILE["markup"]] * len(found.runs)
    calm = Page(found.html())
    kinds = {"script", "b", "style", "section", "title", "h1"}
    assert {kind: page.count(kind) for kind in kinds} == {kind: calm.count(kind) for kind in kinds}
    assert not [attributes for _, attributes in page.elements if "onclick" in attributes]


def test_text_keeps_its_contrast():
    """Every step from full ink on full tint to faint ink on the page has the 4.5:1 that WCAG AA asks for."""
    template = (ROOT / "qla_runtime" / "trace" / "page.html").read_text(encoding="utf-8")
    schemes = re.findall(r":root {(.*?)}", template, re.DOTALL)
    assert len(schemes) == 2
    for scheme in schemes:
        color = {
            name: np.array([int(value[i : i + 2], 16) for i in (0, 2, 4)]) / 255
            for name, value in re.findall(r"--([a-z-]+): #([0-9a-f]{6})", scheme)
        }
        for ink in np.linspace(0, 1, 101):
            text = ink * color["ink-full"] + (1 - ink) * color["ink-faint"]
            ground = ink * color["tint"] + (1 - ink) * color["page"]
            light, dark = sorted((luminance(text), luminance(ground)), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5


def luminance(srgb: np.ndarray) -> float:
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


# ---- terminal -------------------------------------------------------------------------------------


def unstyled(text: str) -> str:
    return re.sub(r"\x1b\[[124]?0?m", "", text)


def test_the_styled_text_is_the_text(found):
    text = found.text(styled=True, width=60)
    assert unstyled(text).split().count("Eddystone") == len(found.runs)
    flat = " ".join(unstyled(text).split())
    assert flat.count(" ".join(CONTEXT.split())) == flat.count(QUESTION) == len(found.runs)
    texts, _legend = text.rsplit("\n", 1)
    for run, block in zip(found.runs, texts.split("% of full")[1:], strict=True):
        underlined = "".join(re.findall(r"\x1b\[4m(?:\x1b\[[12]m)?(.*?)\x1b\[0m", block))
        assert "".join(underlined.split()) == "".join(run.answer.split())
    drawn = [line for line in unstyled(text).splitlines() if line and not line.startswith((" ", "kept by all"))]
    assert max(map(len, drawn)) <= 60


@pytest.mark.parametrize("width", [1, 7, 80])
def test_no_width_loses_a_character(engine, width):
    context = "Supercalifragilistic  words\nand a line\n\nmore"
    found = trace(engine, "which?", context, ["full"])
    assert "".join(context.split()) in "".join(unstyled(found.text(styled=True, width=width)).split())


def test_the_plain_text_tells_what_each_layer_drops(engine):
    found = trace(engine, QUESTION, CONTEXT, [HALVES, "full"])
    text = found.text()
    assert "\x1b" not in text
    run = found.runs[0]
    before = found.tokens_read
    for layer, kept in enumerate(run.kept, 1):
        assert re.search(rf"^  layer {layer}  keeps {kept} of {before}\b", text, re.MULTILINE)
        before = kept
    assert "  left     [CLS]" in text
    assert f"every layer keeps all {found.tokens_read} tokens" in text


@pytest.mark.parametrize("styled", [True, False])
def test_the_terminal_obeys_no_text(engine, styled):
    text = trace(engine, "which light?", HOSTILE["controls"], ["full", HALVES]).text(styled=styled)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", unstyled(text))


# ---- command --------------------------------------------------------------------------------------


def qla(capsys, *arguments: str) -> tuple[int, str, str]:
    status = cli.main(["trace", *arguments, "--model", str(PACKAGE), "--threads", "1"])
    return status, *capsys.readouterr()


def refused(capsys, *arguments: str) -> str:
    status, out, err = qla(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("qla: error: ") and err.count("\n") == 1
    return err


def test_command_prints_the_plain_text_to_a_pipe(capsys, found):
    paragraph = ROOT / "examples" / "paragraph.txt"
    assert qla(capsys, QUESTION, "--context", f"@{paragraph}") == (0, found.text() + "\n", "")


def test_command_styles_only_a_terminal_that_wants_it(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[1m" in qla(capsys, "who?", "--context", "Bob did.")[1]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in qla(capsys, "who?", "--context", "Bob did.")[1]
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in qla(capsys, "who?", "--context", "Bob did.")[1]


def test_command_writes_json_and_a_page(capsys, tmp_path, engine):
    page = tmp_path / "trace.html"
    chosen = ["--length", "full", "--length", "1.0,.8,.6,.5,.3,.1"]
    status, out, err = qla(capsys, QUESTION, "--context", CONTEXT, *chosen, "--json", "--html", str(page))
    assert (status, err) == (0, f"wrote {page}\n")
    found = trace(engine, QUESTION, CONTEXT, ["full", HALVES])
    assert json.loads(out) == json.loads(json.dumps(found.json()))
    assert [run["length"] for run in json.loads(out)["runs"]] == ["full", str(HALVES)]
    assert page.read_text(encoding="utf-8") == found.html()
    assert qla(capsys, "who?", "--context", "Bob did.", "--html", str(page))[1] == ""


def test_command_refuses_bad_input(capsys, tmp_path):
    assert "question is ''" in refused(capsys, "", "--context", "Bob did.")
    assert "context is ' '" in refused(capsys, "who?", "--context", " ")
    assert "length 'slow'" in refused(capsys, "who?", "--context", "Bob did.", "--length", "slow")
    assert "2 entries" in refused(capsys, "who?", "--context", "Bob did.", "--length", "1.0,.5")
    for file in (tmp_path, tmp_path / "no" / "trace.html", ""):
        assert "cannot be written" in refused(capsys, "who?", "--context", "Bob did.", "--html", str(file))
    assert "cannot be read" in refused(capsys, "who?", "--context", f"@{tmp_path / 'none.txt'}")


def test_command_refuses_other_tasks(capsys, tmp_path):
    package = tiny_package("token-classification").save(tmp_path / "tags")
    assert cli.main(["trace", "who?", "--context", "Bob did.", "--model", str(package)]) == 2
    assert "span-qa" in capsys.readouterr().err


def test_bad_calls_have_typed_errors(engine, tmp_path):
    for bad in ({"question": ["who?"]}, {"context": None}, {"lengths": []}, {"lengths": ["full", "slow"]}):
        with pytest.raises(InputError):
            trace(engine, **{"question": "who?", "context": "Bob did."} | bad)
    for policy in (LatencyBudget(5), MaxLoss(1), Escalate("fast", "full")):
        with pytest.raises(InputError, match=type(policy).__name__):
            trace(engine, "who?", "Bob did.", [policy])
    package = tiny_package("embedding").save(tmp_path / "embedding")
    with pytest.raises(UnsupportedError, match="span-qa"):
        trace(Engine(package), "who?", "Bob did.")
