"""sentence-transformers on the engine: the bits of the engine's own methods, and the library's behaviour."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import package_tools as tools
import pytest
from package_tools import tiny_package

from qla_runtime import Engine, Escalate, LatencyBudget, LengthConfig
from qla_runtime.errors import InputError, UnsupportedError

torch = pytest.importorskip("torch", reason="sentence-transformers runs on torch")
library = pytest.importorskip("sentence_transformers", "6.2", reason="the [sentence-transformers] extra")

from sentence_transformers import CrossEncoder, SentenceTransformer  # noqa: E402
from sentence_transformers.util import quantize_embeddings  # noqa: E402

from qla_runtime.integrations.sentence_transformers import QlaEncoder, QlaRanker  # noqa: E402

TEXTS = [
    "How do I reset my password?",
    "",
    "The river floods the valley every spring.",
    "a",
    "Où est la gare?  \U0001f686",
    "An engine reads each sentence at its own length, " * 5,
]
SHORT = TEXTS[:-1]
"""What the tiny packages, which read 64 tokens, need not cut."""
PROMPTS = {"prompts": {"query": "q: ", "passage": "p: "}}


@pytest.fixture(scope="module")
def model() -> SentenceTransformer:
    return SentenceTransformer(modules=[QlaEncoder("all-minilm-l6-v2")])


@pytest.fixture(scope="module")
def engine(model) -> Engine:
    return model[0].engine


def package(folder: Path, config: dict | None = None, kind: str = "embedding", **task) -> Path:
    path = tiny_package(kind, **task).save(folder)
    tools.edit_json(path, "config.json", lambda found: found.update(config or {}))
    return path


def ranker(folder: Path, config: dict | None = None, **task) -> Path:
    task = {"problem": "regression", "labels": ["relevance"], "activation": "sigmoid"} | task
    activation = task.pop("activation")
    path = package(folder, config, "sequence-classification", **task)
    if activation:
        tools.edit_json(path, "config.json", lambda found: found["task"].update(activation=activation))
    return path


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


# ---- vectors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4, 32])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"length": "fast"},
        {"length": LengthConfig.ratio([1, 0.9, 0.8, 0.6, 0.5, 0.3])},
        {"prompt": "query: "},
        {"truncate_dim": 64},
        {"length": "balanced", "prompt": "query: ", "truncate_dim": 100},
    ],
)
def test_encode_gives_the_engines_bits(model, engine, options, batch_size):
    assert same(model.encode(TEXTS, batch_size=batch_size, **options), engine.encode(TEXTS, **options))
    assert same(model.encode(TEXTS[0], batch_size=batch_size, **options), engine.encode(TEXTS[0], **options))


def test_inputs_and_outputs_of_the_library(model, engine):
    expected = engine.encode(TEXTS)
    for texts in (tuple(TEXTS), np.array(TEXTS), np.array(TEXTS, object)):
        assert same(model.encode(texts), expected)
    assert same(model.encode(TEXTS, convert_to_tensor=True).numpy(), expected)
    assert same(np.stack([row.numpy() for row in model.encode(TEXTS, convert_to_numpy=False)]), expected)
    features = model.encode(TEXTS, output_value=None)
    assert same(features[2]["sentence_embedding"].numpy(), expected[2])
    assert model.encode([]).shape == (0,)
    with pytest.warns(UserWarning, match="more than 256 tokens"):
        assert same(model.encode("word " * 300), expected[0]) is False


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_precision_is_the_librarys(model, engine, precision):
    found = model.encode(TEXTS, precision=precision)
    assert same(found, quantize_embeddings(engine.encode(TEXTS), precision=precision))


def test_normalization_is_torchs(tmp_path):
    """After truncation, as in the engine; torch adds the squares in another order."""
    model = SentenceTransformer(modules=[QlaEncoder(package(tmp_path / "p", normalize=False))])
    engine = model[0].engine
    for width in (64, 16):
        found = model.encode(SHORT, normalize_embeddings=True, truncate_dim=width)
        vectors = torch.from_numpy(engine.encode(SHORT, truncate_dim=width))
        assert same(found, torch.nn.functional.normalize(vectors, p=2, dim=1).numpy())
        ours = engine.encode(SHORT, normalize_embeddings=True, truncate_dim=width)
        np.testing.assert_allclose(found, ours, rtol=2.0**-22, atol=0)


def test_threads_share_a_model(model, engine):
    texts = [TEXTS * n for n in (1, 3, 2, 5)]
    lengths = ["full", "fast", "balanced", "fast"]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda text, length: model.encode(text, length=length), texts, lengths))
    for got, text, length in zip(found, texts, lengths, strict=True):
        assert same(got, engine.encode(text, length))


def test_batches_hold_no_padding(model, engine):
    batch = model.preprocess(TEXTS)["prepared"].batch
    tokenizer = engine.text_encoder.load()
    assert np.diff(batch.offsets).tolist() == [len(tokenizer.encode(text).ids) for text in TEXTS]


def test_latency_budgets_and_policies_pass_through(cache, model, engine):
    assert same(model.encode(TEXTS, latency_ms=10_000), engine.encode(TEXTS))
    assert same(model.encode(TEXTS, length=LatencyBudget(10_000)), engine.encode(TEXTS))
    fastest = model.encode(TEXTS[0], latency_ms=1e-3)
    assert not same(fastest, engine.encode(TEXTS[0]))


def test_a_standing_length_is_for_calls_that_name_none(engine):
    model = SentenceTransformer(modules=[QlaEncoder(engine, length="fast")])
    assert same(model.encode(TEXTS), engine.encode(TEXTS, "fast"))
    assert same(model.encode(TEXTS, length="full"), engine.encode(TEXTS))
    assert same(model.encode(TEXTS, latency_ms=10_000), engine.encode(TEXTS))


# ---- settings of the package -------------------------------------------------------------------------


def test_prompts_width_and_similarity_come_from_the_package(tmp_path):
    config = PROMPTS | {"default_prompt": "passage"}
    path = package(tmp_path / "p", config, similarity="dot", truncate_dim=16)
    model = SentenceTransformer(modules=[QlaEncoder(path)])
    engine = model[0].engine
    assert model.prompts == engine.prompts and model.default_prompt_name == "passage"
    assert model.similarity_fn_name == "dot" and model.get_embedding_dimension() == 16
    for method in ("encode", "encode_query", "encode_document"):
        ours, theirs = getattr(engine, method), getattr(model, method)
        assert same(theirs(SHORT), ours(SHORT))
        assert same(theirs(SHORT, prompt_name="query", length="fast"), ours(SHORT, "fast", prompt_name="query"))
    assert same(model.encode(SHORT, truncate_dim=64), engine.encode(SHORT, truncate_dim=64))
    a, b = engine.encode(SHORT), engine.encode(SHORT[:2])
    # 16 products of order 1, added in another order.
    np.testing.assert_allclose(model.similarity(a, b).numpy(), engine.similarity(a, b), atol=16 * 2.0**-22)
    with pytest.raises(ValueError, match="'qury' not found"):
        model.encode(SHORT, prompt_name="qury")


def test_the_callers_settings_win(tmp_path):
    path = package(tmp_path / "p", PROMPTS, similarity="dot", truncate_dim=16)
    model = SentenceTransformer(
        modules=[QlaEncoder(path)],
        prompts={"query": "mine: "},
        default_prompt_name="query",
        similarity_fn_name="cosine",
        truncate_dim=32,
    )
    assert model.prompts["query"] == "mine: " and model.prompts["passage"] == "p: "
    assert (model.similarity_fn_name, model.truncate_dim) == ("cosine", 32)
    assert same(model.encode(SHORT), model[0].engine.encode(SHORT, prompt="mine: ", truncate_dim=32))


def test_max_seq_length_is_the_packages_limit(tmp_path):
    model = SentenceTransformer(modules=[QlaEncoder(package(tmp_path / "p", max_length=32))])
    assert model.max_seq_length == 32 and model.tokenizer.truncation["max_length"] == 32
    for limit in (8, 20, 64):  # the last: more than the package's, and all that the model has
        model.max_seq_length = limit
        other = Engine(package(tmp_path / str(limit), max_length=limit))
        with pytest.warns(UserWarning):
            assert same(model.encode(["abc " * 40, "de"]), other.encode(["abc " * 40, "de"]))
    for bad in (7, 65, 1.5, None):
        with pytest.raises(InputError, match="max_seq_length is"):
            model.max_seq_length = bad
    assert model.max_seq_length == 64


# ---- files -------------------------------------------------------------------------------------------


def test_the_packaged_model_opens_by_its_path(engine):
    model = SentenceTransformer(str(engine.path), trust_remote_code=True, model_kwargs={"num_threads": 1})
    assert model[0].engine.num_threads == 1
    assert same(model.encode(TEXTS, length="fast"), engine.encode(TEXTS, "fast"))
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        SentenceTransformer(str(engine.path))
    with pytest.raises(InputError, match="holds 'dtype'; the engine takes length, max_seq_length, num_threads"):
        SentenceTransformer(str(engine.path), trust_remote_code=True, model_kwargs={"dtype": "float16"})


def test_what_is_saved_opens_again(tmp_path):
    config = PROMPTS | {"default_prompt": "query"}
    model = SentenceTransformer(modules=[QlaEncoder(package(tmp_path / "p", config, similarity="dot"))])
    model.prompts["query"] = ""
    model.truncate_dim = 16
    model.max_seq_length, model[0].length = 50, LengthConfig.ratio([1, 0.5])
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "notes.txt").write_text("mine")
    expected = model.encode(SHORT)
    for _ in range(2):  # onto a package, too
        model.save(str(tmp_path / "saved"))
        again = SentenceTransformer(str(tmp_path / "saved"), trust_remote_code=True)
        assert again.prompts == model.prompts and again.default_prompt_name == "query"
        assert (again.similarity_fn_name, again.truncate_dim, again.max_seq_length) == ("dot", 16, 50)
        assert again[0].length == "ratio(1, 0.5)"
        assert same(again.encode(SHORT), expected)
    assert (tmp_path / "saved" / "notes.txt").read_text() == "mine"
    again.save(str(tmp_path / "saved"))  # onto itself
    assert same(SentenceTransformer(str(tmp_path / "saved"), trust_remote_code=True).encode(SHORT), expected)
    model[0].length = LatencyBudget(5)
    with pytest.raises(UnsupportedError, match=r"policy LatencyBudget\(.*cannot be saved"):
        model.save(str(tmp_path / "never"))


def test_the_packages_card_is_kept(tmp_path, model, engine):
    model.save(str(tmp_path / "saved"))
    card = (tmp_path / "saved" / "README.md").read_text(encoding="utf-8")
    assert card == (engine.path / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_open_the_package_again(tmp_path, copied):
    model = SentenceTransformer(modules=[QlaEncoder(package(tmp_path / "p", PROMPTS), length="fast")])
    expected = model.encode_query(SHORT)
    again = copied(model)
    assert again[0].engine is not model[0].engine and same(again.encode_query(SHORT), expected)


@pytest.mark.slow
def test_pools_of_processes(model, engine):
    pool = model.start_multi_process_pool(["cpu", "cpu"])
    try:
        found = model.encode(TEXTS * 4, pool=pool, chunk_size=5, length="fast")
    finally:
        model.stop_multi_process_pool(pool)
    assert same(found, engine.encode(TEXTS * 4, "fast"))


def test_conversion_writes_what_opening_by_path_needs(tmp_path):
    pytest.importorskip("transformers", reason="checkpoints are made with the [convert] extra")
    from checkpoint_tools import add_sentence_layout, save_checkpoint

    from qla_runtime.convert import convert

    checkpoint = save_checkpoint(tmp_path / "checkpoint", "Bert", "embedding")
    add_sentence_layout(checkpoint)
    saved = '{"prompts": {"query": "q: "}, "default_prompt_name": "query", "similarity_fn_name": "dot", '
    (checkpoint / "config_sentence_transformers.json").write_text(saved + '"truncate_dim": 16}')
    convert(checkpoint, tmp_path / "package", scales="max-abs", progress=False)
    model = SentenceTransformer(str(tmp_path / "package"), trust_remote_code=True)
    assert model.prompts == {"query": "q: ", "document": ""} and model.default_prompt_name == "query"
    assert (model.similarity_fn_name, model.truncate_dim) == ("dot", 16)
    assert same(model.encode(["a b c"]), Engine(tmp_path / "package").encode(["a b c"]))


# ---- scores ------------------------------------------------------------------------------------------

QUERY, DOCUMENTS = "what is it", ["abc", "d e f", "", "hello there " * 3, "abc"]


@pytest.mark.parametrize("activation", ["sigmoid", "identity", "tanh", None])
def test_rank_gives_the_engines_bits(tmp_path, activation):
    model = CrossEncoder(modules=[QlaRanker(ranker(tmp_path / "r", activation=activation))])
    engine = model[0].engine
    expected = [(each["index"], each["score"]) for each in engine.rank(QUERY, DOCUMENTS)]
    assert [(each["corpus_id"], each["score"]) for each in model.rank(QUERY, DOCUMENTS, batch_size=2)] == expected
    assert model.rank(QUERY, DOCUMENTS, top_k=2, return_documents=True)[0]["text"] == DOCUMENTS[expected[0][0]]
    scores = np.array([score for _, score in sorted(expected)], np.float32)
    pairs = [(QUERY, document) for document in DOCUMENTS]
    assert same(model.predict(pairs), scores)
    assert model.predict(pairs[0]) == scores[0]
    raw = {each["index"]: each["score"] for each in engine.rank(QUERY, DOCUMENTS, "fast", raw_scores=True)}
    identity = torch.nn.Identity()
    assert same(
        model.predict(pairs, activation_fn=identity, length="fast"),
        np.array([raw[i] for i in range(len(pairs))], np.float32),
    )


def test_a_ranker_is_saved_with_its_activation_and_prompts(tmp_path):
    config = {"prompts": {"ask": "q: "}, "default_prompt": "ask"}
    model = CrossEncoder(modules=[QlaRanker(ranker(tmp_path / "r", config, activation="tanh"), length="fast")])
    expected = [each["score"] for each in model[0].engine.rank(QUERY, DOCUMENTS, "fast")]
    model.save(str(tmp_path / "saved"))
    again = CrossEncoder(str(tmp_path / "saved"), trust_remote_code=True)
    assert [each["score"] for each in again.rank(QUERY, DOCUMENTS)] == expected
    cut = CrossEncoder(str(tmp_path / "saved"), trust_remote_code=True, max_length=16)
    assert cut.max_seq_length == 16
    sigmoid = CrossEncoder(str(tmp_path / "saved"), trust_remote_code=True, activation_fn=torch.nn.Sigmoid())
    assert isinstance(sigmoid.activation_fn, torch.nn.Sigmoid)


# ---- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "options", "words"),
    [
        (["a", None], {}, r"batch\[1\] is None"),
        (["a", float("nan")], {}, "nan, a missing value"),
        ([("a", "b")], {}, "of type tuple"),
        (["a\ud800"], {}, "lone surrogate"),
        (["a"], {"length": "quick"}, "'quick' is not one of this package's configs"),
        (["a", "b"], {"length": ["fast", "full"]}, "one length per call"),
        (["a"], {"length": "fast", "latency_ms": 5}, "pass one of them"),
        (["a"], {"latency_ms": -1}, "-1"),
        (["a"], {"processing_kwargs": {"text": {"max_length": 8}}}, "set max_seq_length"),
    ],
)
def test_bad_calls_are_refused_and_the_next_one_works(model, engine, texts, options, words):
    with pytest.raises(InputError, match=words):
        model.encode(texts, **options)
    assert same(model.encode(TEXTS), engine.encode(TEXTS))


def test_what_the_model_cannot_do(model, engine):
    with pytest.raises(UnsupportedError, match="Escalate repeats.*vectors and scores alone"):
        model.encode("a", length=Escalate("fast", "full"))
    with pytest.raises(UnsupportedError, match="output_value='token_embeddings' is not what this model gives"):
        model.encode("a", output_value="token_embeddings")
    with pytest.raises(InputError, match="num_threads belongs to the opening of an engine"):
        QlaEncoder(engine, num_threads=1)
    with pytest.raises(InputError, match="'quick' is not one of"):
        QlaEncoder(engine, length="quick")


@pytest.mark.parametrize("pairs", [[("", "a")], ["a"], [("a", None)], [("a", "b", "c")], [("a", 1)]])
def test_bad_pairs_are_refused(tmp_path, pairs):
    model = CrossEncoder(modules=[QlaRanker(ranker(tmp_path / "r"))])
    with pytest.raises(InputError, match="batch"):
        model.predict(pairs)


def test_packages_of_another_task_are_refused(packages):
    with pytest.raises(UnsupportedError, match=r"SentenceTransformer\(\) needs.*'all-minilm-l6-v2', which is"):
        QlaEncoder(packages["span-qa"])
    with pytest.raises(UnsupportedError, match=r"CrossEncoder\(\) needs a sequence-classification model"):
        QlaRanker(packages["embedding"])
    with pytest.raises(UnsupportedError, match=r"a model of one label;.*has 3.*Call engine.classify"):
        QlaRanker(packages["sequence-classification"])


def test_modules_of_another_model_are_refused(tmp_path):
    with pytest.raises(UnsupportedError, match="QlaRanker is for CrossEncoder, and this is a SentenceTransformer"):
        SentenceTransformer(modules=[QlaRanker(ranker(tmp_path / "r"))])
    with pytest.raises(
        UnsupportedError, match="QlaEncoder is for SentenceTransformer, and this is a CrossEncoder"
    ):
        CrossEncoder(modules=[QlaEncoder("all-minilm-l6-v2")])


@pytest.mark.parametrize("missing", ["torch", "sentence_transformers", "sentence_transformers.base.modules"])
def test_a_missing_library_is_named(missing):
    program = f"""
import sys
sys.modules[{missing!r}] = None
from qla_runtime.errors import UnsupportedError
try:
    import qla_runtime.integrations.sentence_transformers
except UnsupportedError as error:
    print(error)
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "sentence-transformers 6.2 or newer" in found.stdout
    assert "pip install 'qla_runtime[sentence-transformers]'" in found.stdout
