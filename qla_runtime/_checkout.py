"""Makes ``import qla_runtime`` work inside a source checkout after ``pip install .``.

Python finds the checkout's package folder before the installed one, but the checkout has no compiled module. The
package imports this module first. From then on all other submodules come from the installed package.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path


def find_installed(here: Path) -> Path | None:
    """The folder of the installed package, for a package folder ``here`` without a compiled module.

    Returns:
        None where ``here`` has the compiled module itself.

    Raises:
        ImportError: neither ``here`` nor a folder of the same name on ``sys.path`` has a compiled module.
    """
    if _is_built(here):
        return None
    for entry in sys.path:
        folder = Path(os.path.abspath(entry or os.curdir), here.name)
        if _is_built(folder):
            return folder
    raise ImportError(
        f"'{here}' is source code without its compiled module _core: run `pip install .` in '{here.parent}' with "
        "this Python, then import it again"
    )


def _is_built(folder: Path) -> bool:
    return any((folder / f"_core{suffix}").is_file() for suffix in EXTENSION_SUFFIXES)


def _redirect() -> None:
    installed = find_installed(Path(__file__).parent)
    if installed:
        package = sys.modules[__package__]
        package.__path__[:] = [str(installed)]
        package.__file__ = str(installed / "__init__.py")


_redirect()
