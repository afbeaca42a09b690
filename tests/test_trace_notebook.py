"""A trace in a notebook: the page in a frame, with every text escaped twice, and nothing that is loaded."""

from __future__ import annotations

import html
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
