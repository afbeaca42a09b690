"""tools/check_readme.py finds a README that does not hold; that it passes on the real one is .ci/run's to show."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = """
```
python3 -m venv .venv && echo 'lime' && echo '  time  3.5 ms, 1,234.5 ms'
```

```
python3 -m venv .venv && .venv/bin/pytest
```

```
lime
  score 0.8
  time  21.7 ms, 4 ms
```

```python
print("lime")  # -> lime
print(1 + 1)  # -> 2
```
"""


@pytest.fixture
def check():
    spec = importlib.util.spec_from_file_location("check_readme", ROOT / "tools" / "check_readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    return tmp_path


def test_the_readme_has_both_commands_and_a_python_block(check):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    first, tests = check.commands(readme)[:2]
    assert ".venv/bin/qla answer" in first and tests.endswith("pytest")
    assert "Engine.from_pretrained()" in check.blocks(readme, "python")[0]


def test_a_command_must_end_with_what_is_shown_but_for_times(check, tmp_path):
    readme = README.replace(
        "python3 -m venv .venv && echo 'lime'", "true -m venv && echo lime && echo '  score 0.8'"
    )
    assert check.check_command(readme, tmp_path) == []
    assert check.check_command(readme.replace("score 0.8\n", "score 0.9\n"), tmp_path)
    assert "exit status 3" in check.check_command(readme.replace("&& echo lime", "&& exit 3"), tmp_path)[0]


def test_the_python_block_must_print_what_its_comments_say(check, folder):
    assert check.check_python(README, folder) == []
    assert "'3'" in check.check_python(README.replace("# -> 2", "# -> 3"), folder)[0]
    swapped = README.replace("-> lime", "-> 0").replace("-> 2", "-> lime").replace("-> 0", "-> 2")
    assert check.check_python(swapped, folder)
    assert "exit status 1" in check.check_python(README.replace("1 + 1", "question"), folder)[0]
