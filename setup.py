"""``python setup.py build_ext --inplace`` compiles what has changed, into qla_runtime/.

It needs the build requirements of pyproject.toml in this Python environment. To install, use pip.
"""

from __future__ import annotations

import sys
import tempfile

if __name__ == "__main__":
    if sys.argv[1:] != ["build_ext", "--inplace"]:
        sys.exit("qla_runtime is installed by `pip install .`; setup.py knows `build_ext --inplace` alone.")
    from scikit_build_core.build import build_editable

    with tempfile.TemporaryDirectory() as wheel:
        build_editable(wheel)
