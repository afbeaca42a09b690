"""The code of docs/tutorials runs and prints what its comments say; every link in the docs leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from package_tools import tiny_package

ROOT = Path(__file__).resolve().parents[1]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
CONVERTED = {
    "sentiment": ("sequence-classification", dict(labels=["negative", "neutral", "positive"])),
    "reranker": ("sequence-classification", dict(problem="regression", labels=["relevance"])),
    "entities": ("token-classification", {}),
}
"""What the pages convert from the hub: tiny packages of random weights stand in for them here."""


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_runs_as_written(page, tmp_path, monkeypatch, capsys, cache):
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    for name, (task, settings) in CONVERTED.items():
        if re.search(rf"^qla convert \S+ {name}$", text, re.MULTILINE):
            tiny_package(task, **settings).save(tmp_path / name)
    code = "\n".join(re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    exec(compile(code, page.name, "exec"), {"__name__": page.stem})
    printed = iter(capsys.readouterr().out.splitlines())
    for line in re.findall(r"# -> (.*)$", code, re.MULTILINE):
        assert line in printed, f"{line!r} is not printed where the page says so"
    assert code.count("print(") > 1


def test_there_is_a_tutorial_for_every_method():
    text = "\n".join(page.read_text(encoding="utf-8") for page in TUTORIALS)
    methods = ("answer", "classify", "encode", "rank", "tag")
    assert [method for method in methods if f"engine.{method}(" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    """As on GitHub: relative to the page, and a heading's words in small letters, joined by hyphens."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        name, _, heading = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in anchors, target
