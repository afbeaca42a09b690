"""What conversion does about rounding that errs to one side: the first token's embedding, a classifier's bias."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the [convert] extra")
transformers = pytest.importorskip("transformers", reason="needs the [convert] extra")
pytest.importorskip("neural_compressor", reason="needs the [convert] extra")

import qla_runtime  # noqa: E402
from qla_runtime import Engine  # noqa: E402
from qla_runtime.checkpoints.tokenizer_files import first_token  # noqa: E402
from qla_runtime.convert import convert, pipeline  # noqa: E402
from qla_runtime.model.formats import INT8_WORDS  # noqa: E402
from qla_runtime.model.pack import exact_first_token  # noqa: E402
from qla_runtime.texts.tokenizer import TextRules  # noqa: E402

TOKENIZER = Path(qla_runtime.__file__).parent / "models/minilm-l6-squad/tokenizer.json"
SUBJECTS = ("a rose", "the river", "my neighbour", "every ship", "some bread", "no winter", "a song", "Paris")
VERBS = ("is", "sees", "remembers", "costs", "leaves", "answers", "carries", "wants")
PAIRS = [(f"what {verb} {subject}?", f"{subject} {verb} red and tall.") for subject in SUBJECTS for verb in VERBS]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A random model with a large head, whose tokenizer gives no token types."""
    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=30522, hidden_size=64, num_attention_heads=2, num_hidden_layers=2, intermediate_size=128,
        num_labels=1, initializer_range=0.08,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config).eval()
    model.classifier.weight.data *= 40
    model.save_pretrained(folder)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(TOKENIZER), cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]",
        pad_token="[PAD]", mask_token="[MASK]", model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    with torch.no_grad():
        right = [float(model(**tokenizer(a, b, return_tensors="pt")).logits) for a, b in PAIRS]
    return folder, np.array(right)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    file = tmp_path_factory.mktemp("texts") / "pairs.tsv"
    file.write_text("\n".join("\t".join(pair) for pair in PAIRS), encoding="utf-8")
    return file


def errors(package, right):
    found = Engine(package).classify([a for a, _ in PAIRS], [b for _, b in PAIRS])
    return np.array([row["score"] for row in found]) - right


def test_the_bias_takes_back_what_int8_adds_on_average(checkpoint, texts, tmp_path, monkeypatch):
    folder, right = checkpoint
    convert(folder, tmp_path / "with", texts, progress=False)
    monkeypatch.setattr(pipeline, "HEAD_TEXTS", 0)
    convert(folder, tmp_path / "without", texts, progress=False)
    corrected, plain = errors(tmp_path / "with", right), errors(tmp_path / "without", right)
    # Half of the texts were used. The mean over all differs from zero by the error of a mean of 32 random ones.
    assert abs(corrected.mean()) <= 3 * plain.std() / np.sqrt(32)
    assert abs(plain.mean()) > abs(corrected.mean())
    # Nothing but a bias: each score is a float32 of order 1, rounded when the bias is added.
    np.testing.assert_allclose(plain - corrected, (plain - corrected).mean(), atol=4 * 2.0**-24)


def test_without_texts_of_the_caller_the_bias_stays(checkpoint, tmp_path):
    from safetensors.numpy import load_file

    folder, _ = checkpoint
    report = convert(folder, tmp_path / "package", progress=False)
    assert report["calibration_samples"] == 0
    stored = load_file(tmp_path / "package" / "model.safetensors")["head.bias"]
    assert stored[0] == load_file(folder / "model.safetensors")["classifier.bias"][0]


def test_the_first_tokens_embedding_is_exact_at_the_first_position():
    rng = np.random.default_rng(0)
    table, positions = rng.normal(size=(5, 64)).astype(np.float32), rng.normal(size=(7, 64)).astype(np.float32)
    codes, scale = INT8_WORDS.quantize(table)
    stored = codes.astype(np.int8)
    exact = exact_first_token(positions, 2, table[3], stored[3], scale[3, 0])
    # Four float32 roundings of numbers up to 8.
    np.testing.assert_allclose(exact[2] + stored[3] * scale[3], positions[2] + table[3], atol=8 * 2.0**-23)
    assert np.array_equal(np.delete(exact, 2, 0), np.delete(positions, 2, 0))


def test_the_first_token_is_found_or_there_is_none():
    content = json.loads(TOKENIZER.read_text(encoding="utf-8"))
    assert first_token(json.dumps(content), TextRules()) == 101  # [CLS]
    content["post_processor"] = None
    assert first_token(json.dumps(content), TextRules()) is None
