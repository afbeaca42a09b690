"""A fork while another thread imports what a first call needs: the child finds the module whole."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import package_tools
import pytest

SCRIPT = """
import os, sys, threading, time, warnings
from qla_runtime import Engine
warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads: what is tested
path, module, call = sys.argv[1:]
begun = threading.Event()

class Slow:
    '''Makes the import of one module take a second, and says when it begins.'''
    def find_spec(self, name, *_):
        if name == module and not begun.is_set():
            begun.set()
            time.sleep(1)

sys.meta_path.insert(0, Slow())
engine = Engine(path, num_threads=1)
run = {
    "answer": lambda: engine.answer("who is it", "it is a b c"),
    "warm_up": engine.warm_up,
    "explain": engine.explain,
    "progress": lambda: engine.answer("who is it", "it is a b c", progress=True),
}[call]
threading.Thread(target=run).start()
assert begun.wait(20), "the call imports no " + module
child = os.fork()
if child == 0:
    run()
    os._exit(0)
ended = (0, 0)
deadline = time.monotonic() + 30
while ended == (0, 0) and time.monotonic() < deadline:
    time.sleep(0.01)
    ended = os.waitpid(child, os.WNOHANG)
if ended == (0, 0):
    os.kill(child, 9)
os._exit(0 if ended == (child, 0) else 1)
"""


@pytest.mark.parametrize(
    "module, call",
    [("tokenizers", "answer"), ("numpy.random", "warm_up"), ("hashlib", "explain"), ("tqdm", "progress")],
)
def test_a_child_does_not_wait_for_an_import_of_its_parent(tmp_path, module, call):
    package = package_tools.tiny_package().save(tmp_path / "package")
    if subprocess.run(
        [sys.executable, "-c", f"import sys, qla_runtime; sys.exit({module!r} in sys.modules)"]
    ).returncode:
        pytest.skip(f"{module} is imported with qla_runtime here")
    script = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(package), module, call],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert script.returncode == 0, f"the child hangs, or fails: {script.stderr}"
