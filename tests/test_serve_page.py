"""The page at / : what it asks for, and a person's way through it in a real browser, by keyboard too."""

from __future__ import annotations

import json
import re

import pytest

pytest.importorskip("starlette", reason="the server needs the extra [serve]")
pytest.importorskip("uvicorn", reason="the server needs the extra [serve]")

from pipeline_cases import LIGHTHOUSE  # noqa: E402
from route_tools import running  # noqa: E402

from qla_runtime import Engine  # noqa: E402
from qla_runtime.trace import trace  # noqa: E402

ASKED = {"question": "Who built the lighthouse?", "context": LIGHTHOUSE}
EVIL = '</script><img src=x onerror="document.title=1"><b>&amp;'


def drawn(found: dict) -> list[str]:
    """The texts of the parts that are no special tokens."""
    parts = [part for each in found["inputs"] for part in each["parts"] if part["kind"] != "special"]
    return ["".join(piece["text"] for piece in part["pieces"]) for part in parts]


# ---- what the page asks for


def test_an_answer_and_its_trace_are_those_of_the_engine(server):
    found = server.ok("/page/run", {**ASKED, "model": "squad", "length": "fast"})
    traced = trace(server.engines["squad"], *ASKED.values(), ["fast"])
    (run,) = traced.runs
    assert found["found"] == [{"label": run.answer, "score": run.score}]
    assert (found["length"], found["macs"], found["share"]) == ("fast", run.macs, run.share)
    (drawing,) = found["inputs"]
    assert drawing["kept"] == list(run.kept) and drawing["tokens"] == traced.tokens_read
    pieces = [(p["text"], p["depth"], p["answer"]) for part in drawing["parts"] for p in part["pieces"]]
    assert pieces == [(p.text, p.depth, p.is_answer) for part in traced.parts(run) for p in part.pieces]
    assert drawn(found) == list(ASKED.values())
    assert found["milliseconds"] > 0 and found["budget_met"] is None


def test_a_text_of_several_windows(server):
    found = server.ok("/page/run", {**ASKED, "context": LIGHTHOUSE * 4, "model": "squad", "length": "fast"})
    assert found["inputs"][0]["windows"] > 1
    assert drawn(found)[1] == LIGHTHOUSE * 4


def test_texts_are_compared(server):
    documents = ["Bread is baked before sunrise.", "Boats could not leave because of the ice."]
    body = {"query": "Why did the ships stay in port?", "documents": documents, "model": "minilm"}
    found = server.ok("/page/run", {**body, "length": "fast"})
    assert [each["label"] for each in found["found"]] == documents[::-1]
    engine = server.engines["minilm"]
    vectors = engine.encode([body["query"], *documents], "fast")
    expected = engine.similarity(vectors[0], vectors[1:])[0]
    assert [each["score"] for each in found["found"]] == sorted(map(float, expected), reverse=True)
    assert drawn(found) == [body["query"], *documents[::-1]]
    assert all(len(each["kept"]) == found["layers"] == 6 for each in found["inputs"])


def test_documents_are_ranked(server):
    documents = ["a b", "b", "c a a"]
    found = server.ok("/page/run", {"query": "a", "documents": documents, "model": "ranker"})
    ranked = server.engines["ranker"].rank("a", documents)
    assert [(f["label"], f["score"]) for f in found["found"]] == [
        (documents[r["index"]], r["score"]) for r in ranked
    ]
    assert drawn(found)[1::2] == [documents[r["index"]] for r in ranked]


def test_labels_and_tags(server):
    found = server.ok("/page/run", {"text": "a b", "text_pair": "c", "model": "labels"})
    assert found["found"] == server.engines["labels"].classify("a b", "c", top_k=None)["scores"]
    assert drawn(found) == ["a b", "c"]
    spans = server.engines["tags"].tag("a b c")
    found = server.ok("/page/run", {"text": "a b c", "model": "tags"})
    assert [(f["label"], f["kind"], f["score"]) for f in found["found"]] == [
        (span["text"], span["label"], span["score"]) for span in spans
    ]


def test_a_budget(server):
    found = server.ok("/page/run", {**ASKED, "model": "squad", "latency_ms": 60_000})
    assert found["budget_met"] is True


def test_texts_that_are_cut_are_said_to_be(server):
    found = server.ok("/page/run", {"text": "a " * 500, "model": "labels"})
    assert found["inputs"][0]["truncated"] is True


@pytest.mark.parametrize(
    "body, status, message",
    [
        ({"text": "a", "model": "squad"}, 424, "squad is a span-qa model; send 'question'"),
        ({"query": "a", "documents": ["b"], "model": "tags"}, 424, "tags is a token-classification model"),
        ({"question": " ", "context": "a", "model": "squad"}, 422, "question is ' ', without a visible character"),
        ({"question": "a", "model": "squad"}, 422, "context is missing"),
        ({"query": "a", "documents": [], "model": "minilm"}, 400, "documents is an empty list"),
        ({**ASKED, "model": "squad", "length": "slow"}, 422, "slow"),
        ({**ASKED, "model": "squad", "length": "fast", "latency_ms": 5}, 422, "length and latency_ms are given"),
        ({**ASKED, "model": "nobody"}, 404, "nobody"),
        ({**ASKED, "model": "squad", "top_k": 3}, 422, "top_k is no field of this route"),
        ({"model": "squad"}, 422, "the body is an object; it must be an object with question and context"),
        ([], 422, "the body is a list of 0 entries"),
    ],
)
def test_bad_requests(server, body, status, message):
    found = server.post("/page/run", body)
    assert found.status == status, found.content
    assert message in found.json["error"]
    assert server.post("/page/run", {**ASKED, "model": "squad"}).status == 200


def test_the_page_runs_no_script_but_its_own_and_loads_nothing(server):
    found = server.get("/")
    assert found.status == 200 and found.headers["content-type"].startswith("text/html")
    policy = found.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and policy.count("sha256-") == 2
    text = found.content.decode()
    assert not re.search(r"""(src|href)=["']?(https?:|//)|@import|url\(""", text)


def test_names_are_texts(tmp_path):
    from package_tools import tiny_package

    package = tiny_package("sequence-classification")
    package.length_configs["configs"][1]["name"] = EVIL
    engine = Engine(package.save(tmp_path / "labels"), num_threads=1)
    with running({EVIL: engine}) as server:
        text = server.get("/").content.decode()
        assert EVIL not in text and "<img" not in text
        config = re.search(r'<script type="application/json" id="config">(.*?)</script>', text)[1]
        (model,) = json.loads(config)["models"]
        assert model["name"] == EVIL and EVIL in [length["name"] for length in model["lengths"]]


# ---- in a browser


@pytest.fixture(scope="module")
def driver(server):
    from browser_tools import browser

    with browser() as opened:
        yield opened


@pytest.fixture
def page(driver, server):
    """The page, freshly opened; nothing may complain until the test is over."""
    from browser_tools import Page

    driver.get_log("browser")
    driver.get(server.url + "/")
    yield Page(driver)
    complaints = [entry for entry in driver.get_log("browser") if "favicon" not in entry["message"]]
    # A refused request is logged by the browser itself.
    assert [entry for entry in complaints if "status of 4" not in entry["message"]] == []
    addresses = driver.execute_script("return performance.getEntriesByType('resource').map((each) => each.name)")
    assert all(address.startswith(server.url) for address in addresses)


def test_a_question_by_mouse(page, server):
    assert page.driver.title == "qla serve: squad"
    page.choose("length", "fast")
    page.run()
    context = page.at("context").get_attribute("value")
    expected = server.engines["squad"].answer(page.at("question").get_attribute("value"), context, "fast")
    assert page.text("found") == f"{expected['answer']} {expected['score']:.4f}"
    assert page.text("cost").startswith(f"fast: {expected['macs']:,} MACs, ")
    assert page.text("said").startswith(f"{expected['answer']}, score ")
    assert "".join(mark.text for mark in page.all("#texts mark")) == expected["answer"]
    parts = [part.get_attribute("textContent") for part in page.all(".part")]
    assert parts[1] == context


def test_a_question_by_keyboard(page):
    """Tab goes through the fields in reading order, Enter runs, arrows go through the layers."""
    from browser_tools import Keys

    order = []
    for _ in range(5):
        page.keys(Keys.TAB)
        order.append(page.focused)
    assert order == ["model", "question", "context", "length", "run"]
    outline = page.driver.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "the focus is visible"
    page.at("question").send_keys(Keys.CONTROL, "a")
    page.keys("How tall is the lighthouse?", Keys.ENTER)
    page.wait(lambda: page.text("found"))
    page.settled()
    assert page.focused == "question" and page.text("found").startswith("31 metres")
    page.choose("length", "fast")
    page.settled()
    page.wait(lambda: page.text("cost").startswith("fast"))
    page.at("run").send_keys(Keys.TAB)
    assert page.focused == "layer"
    last = page.text("left")
    dropped = len(page.all(".piece.dropped"))
    page.keys(Keys.HOME)
    assert page.text("left").startswith("input: ") and page.all(".piece.dropped") == []
    page.keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert 0 < len(page.all(".piece.dropped")) < dropped
    assert page.at("layer").get_attribute("aria-valuetext").startswith("layer 3, ")
    page.keys(Keys.END)
    assert page.text("left") == last
    page.keys(Keys.TAB, Keys.ENTER)
    rows = [[cell.text for cell in row.find_elements("css selector", "th, td")] for row in page.all("#rows tr")]
    assert [row[0] for row in rows] == ["input", "1", "2", "3", "4", "5", "6"]
    assert int(rows[-1][1]) < int(rows[0][1]) and any(row[2] for row in rows)


def test_every_field_has_a_label(page):
    unlabelled = page.driver.execute_script(
        "return [...document.querySelectorAll('input, select, textarea')].filter((e) => !e.labels.length).length"
    )
    assert unlabelled == 0
    assert (
        page.at("wrong").get_attribute("role") == "alert"
        and page.at("said").get_attribute("aria-live") == "polite"
    )


def test_every_kind_of_model(page, server):
    for name in ("minilm", "labels", "ranker", "tags"):
        page.choose("model", name)
        assert not page.at("result").is_displayed()
        page.run()
        assert page.text("wrong") == "" and page.at("result").is_displayed(), name
        assert len(page.all(".part")) == {"minilm": 4, "labels": 1, "ranker": 6, "tags": 1}[name]
    page.choose("model", "minilm")
    page.run()
    assert [heading.text for heading in page.all("#texts h3")] == ["Query", "Document", "Document", "Document"]
    assert page.all("#found li")[0].text.startswith("Boats could not leave because of the ice.")


def test_an_error_is_said_and_the_next_run_works(page):
    page.write("question", " ")
    page.run()
    assert page.text("wrong") == "question is ' ', without a visible character; give it words"
    assert not page.at("result").is_displayed()
    page.write("question", "Who built the lighthouse?")
    page.run()
    assert page.text("wrong") == "" and page.text("found").startswith("Ada Whitcombe")


def test_a_budget_in_milliseconds(page):
    page.choose("length", "a time in milliseconds")
    page.write("budget", "60000")
    page.run()
    assert "The time was kept." in page.text("notes")


def test_texts_stay_texts(page):
    page.write("context", f"The tower {EVIL} was built by Ada.")
    page.write("question", f"Who built it? {EVIL}")
    page.run()
    assert page.all("#result img, #result b") == [] and page.driver.title == "qla serve: squad"
    assert EVIL in page.all(".part")[1].get_attribute("textContent")


def luminance(color: str) -> float:
    channels = [int(each) / 255 for each in re.findall(r"\d+", color)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_are_legible(page, scheme):
    """Contrasts of at least 4.5, as WCAG 2 asks of text at level AA."""
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    page.choose("length", "fast")
    page.run()
    page.driver.execute_script("document.getAnimations().forEach((each) => each.finish())")
    ground = page.driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (luminance(ground) > 0.5) == (scheme == "light")
    for selector in ("body", ".faint", ".piece.dropped", ".piece:not(.dropped)", "#run", "#wrong"):
        script = (
            "const s = getComputedStyle(document.querySelector(arguments[0])); return [s.color, s.backgroundColor]"
        )
        ink, paper = page.driver.execute_script(script, selector)
        values = sorted([luminance(ink), luminance(ground if paper == "rgba(0, 0, 0, 0)" else paper)])
        assert (values[1] + 0.05) / (values[0] + 0.05) >= 4.5, selector
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_a_narrow_window_needs_no_sideways_scrolling(page):
    size = {"width": 320, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    page.run()
    assert page.driver.execute_script("return document.documentElement.scrollWidth") <= 320
    assert page.driver.execute_script("return document.getElementById('cost').getBoundingClientRect().top") < 800
    page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_key(driver):
    from browser_tools import Page

    with Engine.from_pretrained(num_threads=1) as engine, running({"squad": engine}, api_key="secret") as server:
        driver.get(server.url + "/")
        page = Page(driver)
        page.run()
        assert page.text("wrong") == "the request has no API key; send the header Authorization: Bearer KEY"
        page.write("key", "secret")
        page.run()
        assert page.text("found").startswith("Ada Whitcombe")
    driver.get_log("browser")
