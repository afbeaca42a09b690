"""A run survives whatever interrupts it, and ends at the bits of one that nothing interrupted."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'qla_runtime[train]')")
from training_tools import LOOP, STEPS, answerer, assert_same_run, qla_train, saved, squad, train  # noqa: E402

import qla_runtime  # noqa: E402
from qla_runtime.errors import InputError, QlaError  # noqa: E402
from qla_runtime.training import losses  # noqa: E402
from qla_runtime.training.loop import Diverged, Loop  # noqa: E402
from qla_runtime.training.run_folder import TrainingFolder, read_log  # noqa: E402


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return answerer(tmp_path_factory.mktemp("start"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return squad(tmp_path_factory.mktemp("data") / "train.json")


@pytest.fixture(scope="module")
def whole_run(checkpoint, data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    train(checkpoint, data, out, loop=replace(LOOP, accumulation=2))
    return out


@pytest.mark.parametrize("at", [1, 4])
def test_killed_and_continued_equals_uninterrupted(checkpoint, data, whole_run, tmp_path, monkeypatch, at):
    """Killed in the middle of a step: what the step did is lost, and nothing else."""
    out = tmp_path / "run"
    options = replace(LOOP, accumulation=2)
    advance = Loop._advance

    def killed(self, stream, steps):
        if self._step == at:
            next(stream)
            torch.rand(100)
            raise SystemExit
        return advance(self, stream, steps)

    monkeypatch.setattr(Loop, "_advance", killed)
    with pytest.raises(SystemExit):
        train(checkpoint, data, out, loop=options)
    monkeypatch.undo()
    assert TrainingFolder(out, json.loads((out / "run.json").read_text())["settings"]).latest() == at
    train(checkpoint, data, out, loop=options)
    assert_same_run(out, whole_run)
    assert len(list((out / "checkpoints").iterdir())) == 2  # older ones are gone, no leftovers


def test_sigterm_writes_a_checkpoint_first(checkpoint, data, whole_run, tmp_path, monkeypatch):
    out = tmp_path / "run"
    options = replace(LOOP, accumulation=2, checkpoint_minutes=1000)
    advance = Loop._advance

    def interrupted(self, stream, steps):
        if self._step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return advance(self, stream, steps)

    monkeypatch.setattr(Loop, "_advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(checkpoint, data, out, loop=options)
    monkeypatch.undo()
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-0000003"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    train(checkpoint, data, out, loop=options)
    assert_same_run(out, whole_run)


def test_finished_run_is_not_trained_again(checkpoint, data, whole_run, monkeypatch):
    before = saved(whole_run)[0]
    monkeypatch.setattr(Loop, "_advance", None)
    train(checkpoint, data, whole_run, loop=replace(LOOP, accumulation=2))
    assert saved(whole_run)[0] == before


def test_other_settings_are_refused_by_name(checkpoint, data, whole_run):
    with pytest.raises(InputError, match="learning_rate was 0.001 and is now 0.1"):
        train(checkpoint, data, whole_run, loop=replace(LOOP, accumulation=2, learning_rate=0.1))


def test_settings_may_change_while_nothing_is_learned(checkpoint, data, tmp_path, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.setattr(Loop, "_advance", lambda *_: (_ for _ in ()).throw(SystemExit))
    with pytest.raises(SystemExit):
        train(checkpoint, data, out)
    monkeypatch.undo()
    assert train(checkpoint, data, out, loop=replace(LOOP, steps=2))["steps"] == 2


def test_folder_is_one_process_at_a_time(checkpoint, data, tmp_path):
    with TrainingFolder(tmp_path / "run", {}), pytest.raises(InputError, match="another process"):
        TrainingFolder(tmp_path / "run", {})


def test_folder_of_something_else(checkpoint, data, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="no training run; it is left alone"):
        train(checkpoint, data, tmp_path / "run")


def test_nan_loss_leaves_the_last_checkpoint(checkpoint, data, tmp_path, monkeypatch):
    out, task_loss, calls = tmp_path / "run", losses.task_loss, []

    def poisoned(*arguments):
        calls.append(1)
        return task_loss(*arguments) * (float("nan") if len(calls) == 4 else 1)

    monkeypatch.setattr(losses, "task_loss", poisoned)
    with pytest.raises(Diverged, match=r"step 4: full is nan.*learning rate.*step 3 is intact"):
        train(checkpoint, data, out)
    weights, state = saved(out)
    assert state["step"] == 3 and b"nan" not in weights
    monkeypatch.undo()
    train(checkpoint, data, out)  # the same command continues
    assert saved(out)[1]["step"] == STEPS


def test_full_disk_leaves_the_last_checkpoint(checkpoint, data, tmp_path, monkeypatch):
    """A limit on file sizes makes the third checkpoint fail in its writes, as a full disk would."""
    out, save, limits = tmp_path / "run", TrainingFolder.save, resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(self, step, *arguments):
        if step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        return save(self, step, *arguments)

    monkeypatch.setattr(TrainingFolder, "save", full)
    try:
        with pytest.raises(QlaError, match=r"checkpoint of step 3 is lost.*step 2 is intact") as error:
            train(checkpoint, data, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not isinstance(error.value, InputError)
    monkeypatch.undo()
    names = sorted(path.name for path in (out / "checkpoints").iterdir())
    assert names == ["step-0000001", "step-0000002"]
    train(checkpoint, data, out)
    assert saved(out)[1]["step"] == STEPS


def test_damaged_checkpoint_is_named(checkpoint, data, tmp_path):
    out = tmp_path / "run"
    train(checkpoint, data, out)
    (out / "final").rename(out / "old")
    newest = max((out / "checkpoints").iterdir())
    (newest / "state.pt").write_bytes((newest / "state.pt").read_bytes()[:1000])
    with pytest.raises(InputError, match=f"{newest.name}: this checkpoint is damaged.*Delete"):
        train(checkpoint, data, out)


def test_command(checkpoint, data, tmp_path):
    """Interrupted at the keyboard, continued by the same command; results alone on standard output."""
    out = tmp_path / "run"
    environment = os.environ | {"PYTHONPATH": str(Path(qla_runtime.__file__).parents[1])}
    command = qla_train(
        checkpoint, data, out, "--steps", 150, "--batch-tokens", 256, "--max-length", 24, "--json",
        "--eval", data, "--eval-length", ".9,.6,.3", "--eval-sample", 4, "--log-steps", 1,
        "--smallest", ".9,.5,.2",
    )  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    while not (out / "log.jsonl").is_file() or len(read_log(out)) < 4:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    printed, said = process.communicate(timeout=120)
    assert (process.returncode, printed) == (130, b""), said
    assert b"the same command continues" in said
    stopped = saved(out)[1]["step"]
    assert 0 < stopped < 150

    done = subprocess.run(command, capture_output=True, env=environment, check=True)
    report = json.loads(done.stdout)
    assert report["steps"] == 150 and report["checkpoint"] == str(out / "final")
    assert [entry["step"] for entry in read_log(out) if "full" in entry] == list(range(1, 151))
    assert "f1 .9,.6,.3" in read_log(out)[-1]["accuracy"]

    refused = subprocess.run([*command, "--seed", "1"], capture_output=True, env=environment, timeout=120)
    assert refused.returncode == 2 and refused.stdout == b""
    assert b"seed was 0 and is now 1" in refused.stderr and len(refused.stderr.splitlines()) == 1
