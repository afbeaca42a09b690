"""A trace in a notebook: the page in a frame, with every text escaped twice, and nothing that is loaded."""

from __future__ import annotations

import html
import json
import sys
from html.parser import HTMLParser

import pytest
from package_tools import tiny_package

from qla_runtime import Engine
from qla_runtime.trace import trace

EVIL = '</iframe><script>alert("1")</script><img src=x onerror=alert(2)>" onload="x & y'


class Elements(HTMLParser):
    """The elements of a piece of HTML with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    package = tiny_package("span-qa", max_positions=512)
    package.config["name"] = "n" + EVIL
    package.length_configs["configs"][1]["name"] = "c" + EVIL
    engine = Engine(package.save(tmp_path_factory.mktemp("packages") / "qa"))
    return trace(engine, "who? " + EVIL, "ada lives " + EVIL)


def test_a_notebook_shows_the_page_in_a_frame(found):
    (element,) = Elements(found._repr_html_()).found
    tag, attributes = element
    assert tag == "iframe" and attributes["sandbox"] == "allow-scripts"
    assert attributes["srcdoc"] == found.html()


def test_texts_stay_texts_in_the_frame(found):
    (element,) = Elements(found._repr_html_()).found
    page = Elements(element[1]["srcdoc"])
    tags = [tag for tag, _ in page.found]
    assert "img" not in tags and "iframe" not in tags
    assert tags.count("script") == Elements(found.html()).found.count(("script", {})) <= 1
    assert not any(name.startswith("on") or name in ("src", "href") for _, names in page.found for name in names)
    assert html.escape(EVIL) in element[1]["srcdoc"]


def test_the_text_of_a_cell_is_one_line(found):
    assert len(repr(found).splitlines()) == 1 and len(repr(found)) < 600
    assert repr(found).startswith("<Trace of 'n</iframe>") and "full keeps " in repr(found)


CELL = """
from qla_runtime import Engine
from qla_runtime.trace import trace

engine = Engine.from_pretrained(num_threads=1)
question, context = "Who built the tower?", "The tower was built by Ada Whitcombe in 1874."
answer = engine.answer(question, context, length="fast")
trace(engine, question, context, [answer["length"]])
"""


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """What a Jupyter kernel sends for a cell that ends with an answer's trace."""
    pytest.importorskip("ipykernel", reason="there is no Jupyter kernel (pip install ipykernel)")
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    folder = tmp_path_factory.mktemp("jupyter")
    (folder / "kernels" / "here").mkdir(parents=True)
    kernel = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "here",
        "language": "python",
    }
    (folder / "kernels" / "here" / "kernel.json").write_text(json.dumps(kernel))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(folder))
        nbclient.NotebookClient(notebook, timeout=120, iopub_timeout=120, kernel_name="here").execute()
    (found,) = notebook.cells[0].outputs
    return found["data"]


def test_a_cell_shows_the_trace_of_an_answer(output):
    ((tag, attributes),) = Elements(output["text/html"]).found
    assert tag == "iframe" and "Ada Whitcombe" in attributes["srcdoc"]
    assert output["text/plain"].startswith("<Trace of 'minilm-l6-squad': 20 tokens; fast keeps ")
    assert output["text/plain"].endswith(": 'Ada Whitcombe'>")


def test_the_frame_works_in_a_browser(output, tmp_path):
    """As Jupyter has it: an element of a page with styles of its own."""
    from browser_tools import Keys, Page, browser

    style = "<style>span { color: red !important } body { font-size: 40px }</style>"
    (tmp_path / "notebook.html").write_text(
        f"<!DOCTYPE html><meta charset=utf-8>{style}<div class=output>{output['text/html']}</div>"
    )
    with browser() as driver:
        page = Page(driver)
        driver.get((tmp_path / "notebook.html").as_uri())
        (frame,) = page.all("iframe")
        assert frame.size["height"] >= 400 and frame.size["width"] > 1000
        driver.switch_to.frame(frame)
        assert [heading.text for heading in page.all("h2")] == ["fast"]
        assert "".join(mark.text for mark in page.all(".context mark")) == "Ada Whitcombe"
        word = page.all(".context span")[0]
        assert word.value_of_css_property("color") != "rgba(255, 0, 0, 1)"
        (slider,) = page.all("input[type=range]")
        slider.send_keys(Keys.HOME)
        kept = len(page.all("main [data-depth].kept"))
        slider.send_keys(Keys.END)
        assert len(page.all("main [data-depth].kept")) < kept
        assert [entry for entry in driver.get_log("browser") if "favicon" not in entry["message"]] == []
