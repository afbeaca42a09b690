"""Checkpoint in, answers out: a model of each family with random weights through convert and the engine, against
the same model in transformers (float32)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'qla_runtime[convert]')")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("neural_compressor", reason="neural-compressor-pt is not installed")

from checkpoint_tools import save_checkpoint  # noqa: E402

from qla_runtime import Engine, LengthConfig  # noqa: E402
from qla_runtime.checkpoints.config import encoder_spec  # noqa: E402
from qla_runtime.checkpoints.reader import open_checkpoint  # noqa: E402
from qla_runtime.checkpoints.tensors import names  # noqa: E402
from qla_runtime.convert import convert  # noqa: E402
from qla_runtime.errors import UnsupportedError  # noqa: E402
from qla_runtime.families import FAMILIES  # noqa: E402
from qla_runtime.model.float_model import Model  # noqa: E402
from qla_runtime.model.spec import TaskSpec  # noqa: E402
from qla_runtime.task_kinds import TASK_KINDS  # noqa: E402

HIDDEN, LAYERS = 128, 3
WORDS = [f"w{i}" for i in range(4, 100)]


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    lines = [" ".join(WORDS[(i * j) % len(WORDS)] for j in range(2 + i % 40)) for i in range(1, 60)]
    path.write_text("\n".join(lines) + "\n")
    return path


def open_converted(tmp_path: Path, texts: Path, family: str, kind: str, **changes) -> tuple[Engine, Path]:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", family, kind, hidden_size=HIDDEN, **changes)
    package = tmp_path / "package"
    options = dict(max_length=48, length_configs={}, calibration_samples=8, progress=False)
    convert(checkpoint, package, texts, task=kind, **options)
    return Engine.from_pretrained(package), checkpoint


@pytest.mark.parametrize("head_dim", [32, 64])
@pytest.mark.parametrize("family", ["Bert", "Roberta", "Electra"])
def test_states_are_near_float_per_token(tmp_path, texts, family: str, head_dim: int) -> None:
    """Cosine of every single token's last hidden state to transformers' at least 0.99."""
    engine, checkpoint = open_converted(
        tmp_path, texts, family, "embedding", num_attention_heads=HIDDEN // head_dim
    )
    model = transformers.AutoModel.from_pretrained(checkpoint, dtype=torch.float32).eval()
    random = np.random.default_rng(3)
    sequences = [random.integers(4, 100, n) for n in (1, 2, 15, 16, 33, 48, 60)]
    output = engine.forward([s.tolist() for s in sequences])
    cosines = []
    for ids, ours in zip(sequences, output.last_hidden_state, strict=True):
        with torch.inference_mode():
            theirs = model(input_ids=torch.from_numpy(ids)[None]).last_hidden_state[0].numpy()
        cosines.append((ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1))
    worst = np.concatenate(cosines).min()
    assert worst >= 0.99, worst


def transformers_logits(checkpoint: Path, auto: str, text: str, pair: str | None = None) -> np.ndarray:
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(checkpoint / "tokenizer.json"))
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    encoding = tokenizer.backend_tokenizer.encode(text, pair) if pair else tokenizer.backend_tokenizer.encode(text)
    inputs = {"input_ids": torch.tensor([encoding.ids]), "token_type_ids": torch.tensor([encoding.type_ids])}
    model = getattr(transformers, auto).from_pretrained(checkpoint, dtype=torch.float32).eval()
    if model.config.model_type == "roberta":
        inputs.pop("token_type_ids")
    with torch.inference_mode():
        return model(**inputs).logits[0].numpy()


@pytest.mark.parametrize("family", ["Bert", "Roberta"])
def test_a_cross_encoder_ranks_like_transformers(tmp_path, texts, family: str) -> None:
    """Scores of random weights lie close together: INT8 must stay well inside their spread and follow them."""
    engine, checkpoint = open_converted(
        tmp_path, texts, family, "sequence-classification", num_labels=1, num_attention_heads=2
    )
    query = "w5 w6 w7"
    documents = [" ".join(WORDS[(i * j + 3) % len(WORDS)] for j in range(3 + 2 * i)) for i in range(1, 14)]
    want = np.array(
        [transformers_logits(checkpoint, "AutoModelForSequenceClassification", query, d).item() for d in documents]
    )
    ranked = engine.rank(query, documents, raw_scores=True)
    assert sorted(r["index"] for r in ranked) == list(range(len(documents)))
    assert [r["score"] for r in ranked] == sorted((r["score"] for r in ranked), reverse=True)
    ours = np.empty(len(documents))
    ours[[r["index"] for r in ranked]] = [r["score"] for r in ranked]
    error = np.abs(ours - want).max()
    assert error < 0.5 * want.std(), (error, want.std())
    assert np.corrcoef(ours, want)[0, 1] > 0.97
    usual = {r["index"]: r["score"] for r in engine.rank(query, documents)}
    # Double arithmetic; 1 + tanh(-x / 2), as the engine computes it, cancels to e^-x: logits are below 9.
    close = np.exp(9) * 2.0**-52
    np.testing.assert_allclose([usual[i] for i in range(len(documents))], 1 / (1 + np.exp(-ours)), rtol=close)
    dropped = engine.rank(query, documents, length=LengthConfig.ratio([0.9, 0.7, 0.5]))
    assert sorted(r["index"] for r in dropped) == list(range(len(documents)))
    cost = {r["index"]: r["macs"] for r in ranked}
    assert all(r["macs"] < cost[r["index"]] for r in dropped)


@pytest.mark.parametrize("family", ["Bert", "Roberta", "Electra"])
def test_a_token_classifier_tags_like_transformers(tmp_path, texts, family: str) -> None:
    engine, checkpoint = open_converted(
        tmp_path, texts, family, "token-classification", num_labels=3, num_attention_heads=4
    )
    text = " ".join(WORDS[(7 * j) % len(WORDS)] for j in range(20))
    spans = engine.tag(text)
    logits = transformers_logits(checkpoint, "AutoModelForTokenClassification", text)[1:-1]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    best = logits.argmax(1)
    margin = np.sort(probabilities, axis=1)[:, -1] - np.sort(probabilities, axis=1)[:, -2]
    position, checked = 0, 0
    for word, label, clear in zip(text.split(), best, margin > 0.05, strict=True):
        begin = text.index(word, position)
        position = begin + len(word)
        covering = [s["label"] for s in spans if s["start"] <= begin and position <= s["end"]]
        if clear:
            assert covering == [engine.labels[label]]
            checked += 1
    assert checked >= 10
    for span in spans:
        assert text[span["start"] : span["end"]] == span["text"] and 0 < span["score"] <= 1


# --- what a family refuses, and what it leaves out ---------------------------------------------------


def test_unknown_families_are_told_the_known_ones():
    known = (
        f"supported are {', '.join(sorted(FAMILIES))}. Convert a BERT-type, RoBERTa-type or ELECTRA-type encoder"
    )
    with pytest.raises(UnsupportedError, match=known):
        encoder_spec({"model_type": "deberta-v2"})


def test_electra_small_has_a_projection(tmp_path):
    folder = save_checkpoint(tmp_path / "small", "Electra", "span-qa", embedding_size=32)
    with pytest.raises(UnsupportedError, match="embedding_size is 32 and hidden_size is 64.*ELECTRA-base"):
        open_checkpoint(folder)


def test_the_head_of_electra_for_classification_is_another(tmp_path):
    folder = save_checkpoint(tmp_path / "c", "Electra", "sequence-classification")
    with pytest.raises(UnsupportedError, match="ELECTRA for sequence-classification has a dense layer with GELU"):
        open_checkpoint(folder)
    # Its encoder is the same as ever.
    notes = open_checkpoint(folder, task="embedding").notes
    assert any("a head for another task" in note for note in notes)


def test_pretraining_heads_of_electra_are_named(tmp_path):
    config = transformers.ElectraConfig(
        vocab_size=100, hidden_size=64, embedding_size=64, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64,
    )  # fmt: skip
    folder = save_checkpoint(tmp_path / "p", "Electra", "embedding", num_hidden_layers=1, intermediate_size=64)
    transformers.ElectraForPreTraining(config).save_pretrained(folder)
    (note,) = open_checkpoint(folder, task="embedding").notes
    assert "heads of pretraining" in note and "discriminator_predictions" in note


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_family_says_what_the_engine_needs(model_type):
    """A name for each of our modules, and a head or a reason for each task."""
    family = FAMILIES[model_type]
    assert family.model_type == model_type
    encoder = encoder_spec(
        {"model_type": model_type, "hidden_size": 64, "embedding_size": 64, "num_attention_heads": 1,
         "intermediate_size": 64, "num_hidden_layers": 2}
    )  # fmt: skip
    for kind in TASK_KINDS:
        assert (kind in family.heads) != (kind in family.other_heads)
        if kind in family.heads:
            pooler = "dense_tanh" if "pooler" in family.heads[kind] else "none"
            task = TaskSpec(kind, 64, labels=("a", "b"), pooler=pooler)
            wanted = {name.rsplit(".", 1)[0] for name in Model(encoder, task).state_dict()}
            assert names(family, encoder, task).keys() == wanted
