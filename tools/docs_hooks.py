"""What mkdocs.yml cannot say: the reference pages, made from the code, and links that leave docs/.

GitHub shows the same files, so the pages hold plain Markdown and links between files.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
MODULES = (
    "qla_runtime",
    "qla_runtime.engine",
    "qla_runtime.lengths.configs",
    "qla_runtime.tasks.results",
    "qla_runtime.output",
    "qla_runtime.errors",
)
"""What users import, and what the results of the engine are."""


def on_files(files: Files, config: Any) -> Files:
    python = "# Python\n" + "".join(f"\n::: {module}\n" for module in MODULES)
    header = (ROOT / "csrc/include/qla/qla.h").read_text(encoding="utf-8")
    files.append(File.generated(config, "reference/python.md", content=python))
    files.append(File.generated(config, "reference/c.md", content=f"# C: qla.h\n\n```c\n{header}```\n"))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """A link to a file outside docs/ keeps its text alone: the site does not have that file."""
    folder = (ROOT / "docs" / page.file.src_uri).parent

    def without_target(link: re.Match[str]) -> str:
        target = (folder / link[2].split("#")[0]).resolve()
        return link[0] if target.is_relative_to(ROOT / "docs") else link[1]

    return re.sub(r"(?<!!)\[([^\]]+)\]\((\.\.?/[^)\s]+)\)", without_target, markdown)
