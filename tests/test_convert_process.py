"""The process of converting: what is refused before the long work, what is left behind, and what is printed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'qla_runtime[convert]')")
pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("neural_compressor", reason="neural-compressor-pt is not installed")
pytest.importorskip("qla_runtime._core", reason="the native module is not built")

from checkpoint_tools import save_checkpoint  # noqa: E402

from qla_runtime.checkpoints.reader import open_checkpoint  # noqa: E402
from qla_runtime.convert import convert  # noqa: E402
from qla_runtime.convert.contents import package_bytes  # noqa: E402
from qla_runtime.convert.report import reference_of  # noqa: E402
from qla_runtime.engine import Engine  # noqa: E402
from qla_runtime.errors import InputError  # noqa: E402
from qla_runtime.model import staging  # noqa: E402

QUIET = dict(progress=False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("labels") / "tiny", "Bert", "sequence-classification")


@pytest.fixture
def texts(tmp_path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("".join(f"w{5 + i} w6 w7\n" for i in range(20)))
    return path


@pytest.fixture
def no_work(monkeypatch):
    """Fails where a weight is read: what comes before must already have refused."""

    def load(*_, **__):
        raise AssertionError("the weights are read before the check")

    monkeypatch.setattr("qla_runtime.checkpoints.reader.Checkpoint.load_state", load)


def qla(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qla_runtime.cli", *map(str, arguments)],
        capture_output=True, text=True, env=environment(), **options,
    )  # fmt: skip


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


# --- before the long work -------------------------------------------------------------------------


def test_refuses_what_is_no_folder(no_work, checkpoint, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_text("")
    for out, words in (
        ("fifo", "is a FIFO"),
        ("file", "is a file"),
        ("/dev/null", "device"),
        ("a\0b", "looked at"),
    ):
        with pytest.raises(InputError, match=words):
            convert(checkpoint, tmp_path / out, **QUIET)


def test_refuses_a_place_that_cannot_be_written(no_work, checkpoint, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="Choose another output"):
        convert(checkpoint, tmp_path / "file" / "package", **QUIET)
    with pytest.raises(InputError, match="cannot write beside"):
        convert(checkpoint, "/proc/package", **QUIET)


def test_refuses_a_full_disk(no_work, checkpoint, tmp_path, monkeypatch):
    needed = package_bytes(open_checkpoint(checkpoint))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    with pytest.raises(InputError, match="the output needs .* are free"):
        convert(checkpoint, tmp_path / "package", **QUIET)
    assert not any(tmp_path.iterdir())


def test_room_is_what_a_package_takes(checkpoint, tmp_path):
    convert(checkpoint, tmp_path / "package", **QUIET)
    taken = sum(path.stat().st_size for path in (tmp_path / "package").iterdir())
    spare = 1 << 20  # for the JSON files and the card
    assert taken <= package_bytes(open_checkpoint(checkpoint)) <= taken + spare


def test_refuses_names(no_work, checkpoint, tmp_path):
    for name in ("a\nb", "\x1b[31m", " ", "x" * 201, "a\udcff"):
        with pytest.raises(InputError, match="name"):
            convert(checkpoint, tmp_path / "package", name=name, **QUIET)


def test_refuses_fifos_in_place_of_files(no_work, checkpoint, texts, tmp_path):
    fifo = tmp_path / "fifo.txt"
    os.mkfifo(fifo)
    with pytest.raises(InputError, match="fifo.txt.*is a FIFO"):
        convert(checkpoint, tmp_path / "package", fifo, **QUIET)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md", "1_Pooling/config.json"):
        broken = Path(shutil.copytree(checkpoint, tmp_path / "broken"))
        (broken / name).parent.mkdir(exist_ok=True)
        (broken / name).unlink(missing_ok=True)
        os.mkfifo(broken / name)
        with pytest.raises(InputError, match="is a FIFO"):
            convert(broken, tmp_path / "package", texts, **QUIET)
        shutil.rmtree(broken)
    assert not (tmp_path / "package").exists()


def test_static_activations_need_texts(no_work, checkpoint, tmp_path):
    for options in ({"activations": "static"}, {"compare_activations": True}):
        with pytest.raises(InputError, match="--calibrate"):
            convert(checkpoint, tmp_path / "package", **options, **QUIET)


@pytest.mark.parametrize("command", [("convert",), ("train", "length-drop"), ("train", "qat")])
def test_a_too_large_max_length_in_the_words_of_the_command_line(checkpoint, texts, tmp_path, command):
    paths = (checkpoint, tmp_path / "out") if command == ("convert",) else (checkpoint, texts, tmp_path / "out")
    done = qla(*command, *paths, "--max-length", 9999, *(("--steps", 1) if command[0] == "train" else ()))
    positions = open_checkpoint(checkpoint).encoder.max_positions
    said = f"qla: error: --max-length is 9999; it must be between 8 and {positions} for this checkpoint. "
    assert (done.returncode, done.stderr) == (2, f"{said}Pass another (--max-length)\n")


# --- where the package appears --------------------------------------------------------------------


def mounted(tmp_path: Path, command: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in a mount namespace of its own, in which ``tmp_path / "out"`` is a volume."""
    (tmp_path / "out").mkdir()
    script = f"mount -t tmpfs none {tmp_path}/out && mkdir {tmp_path}/out/lost+found && {command}"
    probe = ["unshare", "-m", "true"]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True).returncode != 0:
        pytest.skip("this process may not make mount namespaces (it needs root, and unshare)")
    return subprocess.run(
        ["unshare", "-m", "bash", "-c", script], capture_output=True, text=True, env=environment()
    )


def test_a_mounted_volume_is_filled(checkpoint, tmp_path):
    code = f"""
from qla_runtime.convert import convert  # noqa: E402
from qla_runtime.engine import Engine
out = {str(tmp_path / "out")!r}
convert({str(checkpoint)!r}, out, progress=False)
opened = Engine(out)
first = opened.classify("w5 w6")
convert({str(checkpoint)!r}, out, progress=False, name="second")
assert opened.classify("w5 w6") == first and Engine(out).name == "second"
"""
    done = mounted(tmp_path, f"{sys.executable} -c '{code.replace(chr(39), chr(34))}' && ls -A {tmp_path}/out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        "README.md", "config.json", "length_configs.json", "lost+found", "manifest.json", "model.safetensors",
        "tokenizer.json",
    ]  # fmt: skip


def test_publishing_across_file_systems(tmp_path, monkeypatch):
    """A rename that the kernel refuses, as over a mount point: the files go over one by one, the manifest last."""
    out, new = tmp_path / "out", tmp_path / "stage" / "new"
    for folder, content in ((out, "old"), (new, "new")):
        folder.mkdir(parents=True)
        for name in ("config.json", "manifest.json"):
            (folder / name).write_text(content)
    (out / "old.txt").write_text("old")
    monkeypatch.setattr(staging, "_rename", lambda *_: OSError(18, "Invalid cross-device link"))
    moved = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (moved.append(Path(b).name), replace(a, b)))
    staging.publish(new, out)
    assert moved == ["config.json", "manifest.json"]
    assert {path.name: path.read_text() for path in out.iterdir()} == {
        "config.json": "new", "manifest.json": "new", "old.txt": "old",
    }  # fmt: skip


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_own_folder_in_a_foreign_parent(tmp_path):
    """The staging folder stands inside where the parent takes none."""
    nobody = 65534
    top = tmp_path / "top"
    (top / "out").mkdir(parents=True)
    os.chown(top / "out", nobody, nobody)
    of_pytest = 3 if "PYTEST_XDIST_WORKER" in os.environ else 2  # each worker has a folder of its own
    for folder in (tmp_path, *tmp_path.parents[:of_pytest]):
        folder.chmod(folder.stat().st_mode | 0o055)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgid(nobody)
            os.setuid(nobody)
            with staging.staging(top / "out") as stage:
                (stage / "new").mkdir()
                (stage / "new" / "manifest.json").write_text("{}")
                staging.publish(stage / "new", top / "out")
            status = int(os.listdir(top / "out") != ["manifest.json"])
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


# --- what is left behind --------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_leave_nothing_behind(checkpoint, tmp_path, number):
    folder = tmp_path / "out"
    folder.mkdir()
    # Whoever started the tests in the background may have had SIGINT ignored, which children inherit.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from qla_runtime import cli; sys.exit(cli.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "convert", str(checkpoint), str(folder / "package")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment())
    deadline = time.monotonic() + 300
    while not any(folder.iterdir()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(number)
    assert process.wait(300) == (130 if number == signal.SIGINT else -number)
    assert list(folder.iterdir()) == []


def test_handlers_are_given_back(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with staging.staging(tmp_path / "package"):
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN  # whoever ignores it goes on doing so
    finally:
        signal.signal(signal.SIGTERM, before[0])
    with staging.staging(tmp_path / "package"):
        pass
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before


# --- what is said ---------------------------------------------------------------------------------


def test_output_is_ours_alone(checkpoint, tmp_path):
    done = qla("convert", checkpoint, tmp_path / "package", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["calibration_samples"] == 0 and list(report["modes"]) == ["per_token"]
    for line in done.stderr.replace("\r", "\n").splitlines():
        assert not line.strip() or line.startswith(("comparing:", "The package against", "|")), line
    assert f"on {report['samples']} texts ({report['tokens']} tokens) of the built-in sample" in done.stderr
    assert Engine(tmp_path / "package").name == "package"


def test_both_kinds_are_compared_on_request(checkpoint, texts, tmp_path):
    options = dict(calibration_samples=2, length_configs={}, compare_activations=True, **QUIET)
    report = convert(checkpoint, tmp_path / "package", texts, **options)
    assert set(report["modes"]) == {"per_token", "static"} and report["calibration_samples"] == 2
    assert report["texts"] == "texts.txt"
    assert '"activation": "per_token"' in (tmp_path / "package" / "config.json").read_text()


def test_a_misread_weight_shows_in_the_report(checkpoint, tmp_path, monkeypatch):
    """INT8 is compared with what transformers makes of the checkpoint, not with what we made of it."""
    from qla_runtime.checkpoints.reader import Checkpoint

    load = Checkpoint.load_state

    def misread(self, **options):
        state = load(self, **options)
        state["encoder.layers.1.ffn_in.weight"] *= -3
        return state

    right = convert(checkpoint, tmp_path / "right", **QUIET)["modes"]["per_token"]
    monkeypatch.setattr(Checkpoint, "load_state", misread)
    wrong = convert(checkpoint, tmp_path / "wrong", **QUIET)["modes"]["per_token"]
    assert right["hidden_cosine_mean"] > 0.98 > 0.95 > wrong["hidden_cosine_mean"]


def test_the_reference_is_named_where_transformers_has_none(checkpoint, monkeypatch):
    source = open_checkpoint(checkpoint)
    model = source.load_model()
    assert reference_of(source, model).name == "transformers' float32 model"
    monkeypatch.setitem(sys.modules, "transformers", None)  # as where it is not installed
    assert "qla_runtime's own" in reference_of(source, model).name
