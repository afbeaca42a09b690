"""docs/serving.md and serving-api.md: every request on a page, sent, gets the response on the page."""

from __future__ import annotations

import json
import math
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("starlette", reason="needs the extra [serve]")
if TYPE_CHECKING:
    from route_tools import Running

PAGE = Path(__file__).resolve().parents[1] / "docs" / "serving-api.md"
PAGES = (PAGE, PAGE.with_name("serving.md"))
COMMAND = re.compile(r"^\$ curl -s localhost:8080(\S+)(?: -H \S+ \S+)?(?: -d (.*))?\n(.*)$", re.MULTILINE)
EXAMPLES = [match.groups() for page in PAGES for match in COMMAND.finditer(page.read_text(encoding="utf-8"))]


def agree(found: Any, shown: Any) -> bool:
    """Whether a response is the page's, whose numbers have four digits and whose ids are left out."""
    if shown == "...":
        return isinstance(found, str)
    if isinstance(shown, float):
        return math.isclose(found, shown, rel_tol=1e-3, abs_tol=1e-4)
    if isinstance(shown, list):
        return len(found) == len(shown) and all(map(agree, found, shown))
    if isinstance(shown, dict):
        return list(found) == list(shown) and all(agree(found[key], shown[key]) for key in shown)
    return bool(found == shown)


@pytest.mark.parametrize(("path", "body", "shown"), EXAMPLES, ids=[path for path, _, _ in EXAMPLES])
def test_example(server: Running, path: str, body: str | None, shown: str):
    if body is None:
        response = server.get(path)
    else:
        (sent,) = shlex.split(body)
        # curl says that it sends a form.
        response = server.send(
            "POST", path, sent.encode(), **{"content-type": "application/x-www-form-urlencoded"}
        )
    text = json.dumps(response.json)
    if not shown.endswith("..."):
        assert agree(response.json, json.loads(shown)), text
    else:
        words = r"[-+]?\d+\.\d+|\w+"
        beginning = re.findall(words, shown)
        for one, other in zip(re.findall(words, text), beginning, strict=False):
            assert one == other or agree(float(one), float(other))


def test_it_names_every_route(server: Running):
    text = PAGE.read_text(encoding="utf-8")
    paths = {re.sub(r"^/models/.*", "/models/NAME", path) for path in server.get("/openapi.json").json["paths"]}
    assert {path for path in paths if path.replace("{model}", "NAME") not in text} == set()
