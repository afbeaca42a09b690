"""Prompts, vector width, normalization and similarity: ``encode`` gives what SentenceTransformer gives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import package_tools as tools
import pytest
from package_tools import tiny_package

from qla_runtime import Engine
from qla_runtime.errors import InputError, UnsupportedError

TEXTS = ["abc", "de f", "g"]
ROUNDINGS = 4 * 2.0**-24
"""What four float32 roundings change a number by, relative to it."""


def encoder(folder: Path, config: dict | None = None, **task) -> Engine:
    path = tiny_package("embedding", **task).save(folder)
    tools.edit_json(path, "config.json", lambda found: found.update(config or {}))
    return Engine(path)


@pytest.fixture
def plain(tmp_path) -> Engine:
    return encoder(tmp_path / "plain")


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


# ---- prompts ---------------------------------------------------------------------------------------

PROMPTS = {"query": "q: ", "passage": "p: "}
CALLS = [
    # the package's prompts, its default, method, arguments, the text that sentence-transformers 6.2 puts first
    ({}, None, "encode", {}, ""),
    ({}, None, "encode_query", {}, ""),
    ({}, None, "encode_document", {}, ""),
    ({}, None, "encode", {"prompt_name": "query"}, ""),
    ({}, None, "encode", {"prompt": "x "}, "x "),
    (PROMPTS, None, "encode", {}, ""),
    (PROMPTS, None, "encode", {"prompt_name": "passage"}, "p: "),
    (PROMPTS, None, "encode_query", {}, "q: "),
    (PROMPTS, None, "encode_query", {"prompt_name": "passage"}, "p: "),
    (PROMPTS, None, "encode_query", {"prompt": ""}, ""),
    # "document" is always there, so that "passage" is never looked for.
    (PROMPTS, None, "encode_document", {}, ""),
    (PROMPTS, "passage", "encode", {}, "p: "),
    (PROMPTS, "passage", "encode", {"prompt": ""}, ""),
    (PROMPTS, "passage", "encode", {"prompt_name": "query"}, "q: "),
    (PROMPTS, "passage", "encode_query", {}, "q: "),
    (PROMPTS, "passage", "encode_document", {}, ""),
    ({"corpus": "c: "}, "corpus", "encode_query", {}, ""),
    ({"document": "d: "}, "document", "encode", {}, "d: "),
    ({"document": "d: "}, "document", "encode_document", {}, "d: "),
]


@pytest.mark.parametrize(("prompts", "default", "method", "arguments", "expected"), CALLS)
def test_prompts(tmp_path, plain, prompts, default, method, arguments, expected):
    config = {"prompts": prompts} | ({"default_prompt": default} if default else {})
    engine = encoder(tmp_path / "e", config)
    assert same(getattr(engine, method)(TEXTS, **arguments), plain.encode([expected + text for text in TEXTS]))
    assert engine.default_prompt == default and engine.prompts == {"query": "", "document": ""} | prompts


@pytest.mark.parametrize(("prompts", "default", "method", "arguments", "expected"), CALLS)
def test_prompts_are_sentence_transformers(prompts, default, method, arguments, expected):
    library = pytest.importorskip("sentence_transformers", reason="the reference is not installed")

    class Recorder(library.SentenceTransformer):
        """Only what decides on a prompt, without a model."""

        def __init__(self) -> None:
            self.prompts, self.default_prompt_name = dict(self._default_prompts), None
            self._parse_base({"prompts": prompts, "default_prompt_name": default})
            self._validate_prompts()

        def _parse_base(self, config: dict) -> None:
            library.base.model.BaseModel._parse_model_config(self, config)

        def encode(self, inputs, prompt_name=None, prompt=None, **_):
            return self._resolve_prompt(prompt, prompt_name) or ""

        def __setattr__(self, name, value) -> None:
            object.__setattr__(self, name, value)

    assert getattr(Recorder(), method)(TEXTS, **arguments) == expected


def test_prompt_errors_list_what_there_is(tmp_path, plain):
    engine = encoder(tmp_path / "e", {"prompts": PROMPTS})
    with pytest.raises(InputError, match="name is 'qury'; it must be one of 'query', 'document', 'passage'"):
        engine.encode("a", prompt_name="qury")
    for call in (engine.encode, engine.encode_query, engine.encode_document):
        with pytest.warns(UserWarning, match="the name is ignored") as warned:
            assert same(call("a", prompt_name="query", prompt="x "), plain.encode("x a"))
        assert warned[0].filename == __file__, "the caller's line, not one of ours"
        with pytest.raises(InputError, match="lone surrogate at character 1"):
            call("a", prompt="q\ud800")
        with pytest.raises(InputError, match="prompt is of type int"):
            call("a", prompt=3)
    with pytest.raises(InputError, match="'query'"):
        engine.encode("a", prompt_name=["query"])
    ranker = tiny_package("sequence-classification", problem="regression", labels=["r"]).save(tmp_path / "ranker")
    with pytest.raises(InputError, match="this model has none"):
        Engine(ranker).rank("a", ["b"], prompt_name="query")
    assert same(engine.encode(TEXTS), plain.encode(TEXTS))


# ---- width, normalization, similarity --------------------------------------------------------------


def test_truncation_follows_normalization(tmp_path, plain):
    whole = plain.encode(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, atol=ROUNDINGS)
    assert same(plain.encode(TEXTS, truncate_dim=16), np.ascontiguousarray(whole[:, :16]))
    assert same(plain.encode(TEXTS[0], truncate_dim=64), whole[0])
    unit = plain.encode(TEXTS, truncate_dim=16, normalize_embeddings=True)
    np.testing.assert_allclose(
        unit, whole[:, :16] / np.linalg.norm(whole[:, :16], axis=1)[:, None], rtol=ROUNDINGS
    )
    saved = encoder(tmp_path / "saved", truncate_dim=16)
    assert same(saved.encode(TEXTS), np.ascontiguousarray(whole[:, :16]))
    assert saved.encode(TEXTS, truncate_dim=64).shape == (3, 64)
    raw = encoder(tmp_path / "raw", normalize=False)
    np.testing.assert_allclose(raw.encode(TEXTS, normalize_embeddings=True), whole, atol=ROUNDINGS)


@pytest.mark.parametrize("value", [0, -1, 65, 1.5, True, "16", np.float32(8)])
def test_truncate_dim_that_is_none(plain, value):
    with pytest.raises(InputError, match=r"truncate_dim is .*an integer from 1 to 64"):
        plain.encode("a", truncate_dim=value)


def test_similarity(tmp_path, plain):
    first, second = np.array([[3.0, 4.0], [1.0, 0.0]], np.float32), np.array([[0.0, 2.0]], np.float32)
    expected = {
        "cosine": [[0.8], [0.0]],
        "dot": [[8.0], [0.0]],
        "euclidean": [[-(13**0.5)], [-(5**0.5)]],
        "manhattan": [[-5.0], [-3.0]],
    }
    np.testing.assert_allclose(plain.similarity(first, second), expected["cosine"], atol=ROUNDINGS)
    for name, values in expected.items():
        got = encoder(tmp_path / name, similarity=name).similarity(first, second)
        np.testing.assert_allclose(got, values, rtol=ROUNDINGS, atol=ROUNDINGS)
        assert got.dtype == np.float32
    assert plain.similarity(first[0], second).shape == (1, 1)
    with pytest.raises(InputError, match="vectors of 2 and of 3 numbers"):
        plain.similarity(first, np.zeros((1, 3)))
    with pytest.raises(InputError, match="pass what encode"):
        plain.similarity(["a"], first)
    with pytest.raises(UnsupportedError, match="similarity"):
        Engine(tiny_package().save(tmp_path / "qa")).similarity(first, second)


def test_similarity_is_sentence_transformers(tmp_path):
    library = pytest.importorskip("sentence_transformers.util.similarity", reason="the reference is not installed")
    random = np.random.default_rng(0)
    a, b = (random.normal(size=(n, 24)).astype(np.float32) for n in (70, 5))
    for name in ("cosine", "dot", "euclidean", "manhattan"):
        theirs = library.SimilarityFunction.to_similarity_fn(name)(a, b).numpy()
        ours = encoder(tmp_path / name, similarity=name).similarity(a, b)
        # 24 products of order 1, added in another order.
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=24 * 2.0**-22)


# ---- from the checkpoint ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    pytest.importorskip("transformers", reason="checkpoints are made with the [convert] extra")
    from checkpoint_tools import save_checkpoint

    return save_checkpoint(tmp_path_factory.mktemp("bare") / "bare", "Bert", "embedding")


def sentence_folder(
    bare: Path, folder: Path, saved: dict | None = None, pooling: dict | None = None, **layout
) -> Path:
    from checkpoint_tools import add_sentence_layout

    shutil.copytree(bare, folder)
    add_sentence_layout(folder, **layout)
    if saved is not None:
        (folder / "config_sentence_transformers.json").write_text(json.dumps(saved))
    if pooling is not None:
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


def test_settings_reach_the_package(tmp_path, bare):
    from qla_runtime.checkpoints.reader import open_checkpoint

    saved = {
        "prompts": {"query": "q: ", "document": None},
        "default_prompt_name": "query",
        "similarity_fn_name": "dot",
        "truncate_dim": 16,
    }
    source = open_checkpoint(sentence_folder(bare, tmp_path / "m", saved))
    assert source.settings.to_json() == {"prompts": {"query": "q: ", "document": ""}, "default_prompt": "query"}
    assert (source.task.similarity, source.task.truncate_dim) == ("dot", 16)
    assert source.task.to_json()["similarity"] == "dot" and source.task.to_json()["truncate_dim"] == 16


def test_matryoshka_widths_reach_the_engine(tmp_path, bare):
    """From the config, else from the card, whose form is that of sentence-transformers' own template."""
    from qla_runtime.checkpoints.reader import open_checkpoint

    folder = sentence_folder(bare, tmp_path / "m")
    loss = {"loss": "MultipleNegativesRankingLoss", "matryoshka_dims": [512, 16, 32], "n_dims_per_step": -1}
    (folder / "README.md").write_text(
        f"* Loss: MatryoshkaLoss\n  ```json\n  {json.dumps(loss, indent=4)}\n  ```\n"
    )
    source = open_checkpoint(folder)
    assert source.task.matryoshka_dims == (32, 16)  # 512 is wider than the model
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"matryoshka_dimensions": [8, 64, 8, "x"]}))
    source = open_checkpoint(folder)
    assert source.task.to_json()["matryoshka_dims"] == [64, 8]
    assert not any("matryoshka" in note for note in source.notes)
    assert encoder(tmp_path / "e", matryoshka_dims=[64, 8]).matryoshka_dims == (64, 8)
    assert encoder(tmp_path / "none").matryoshka_dims == ()


@pytest.mark.parametrize(
    "saved",
    [
        None,
        {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": None},
        {"prompts": {"query": "", "document": ""}},  # what sentence-transformers 6 writes for every model
        {"similarity_fn_name": "maxsim", "truncate_dim": 64},
    ],
)
def test_settings_that_say_nothing_add_nothing(tmp_path, bare, saved):
    from qla_runtime.checkpoints.reader import open_checkpoint

    source = open_checkpoint(sentence_folder(bare, tmp_path / "m", saved))
    assert source.settings.to_json() == {} and source.settings.notes == ()
    assert set(source.task.to_json()) == {"kind", "max_length", "keep_cls", "pooling", "normalize"}


def test_settings_of_another_kind_of_model_are_named(tmp_path, bare):
    """sentence-transformers does not use them either: a reranker's prompt is none of an encoder's."""
    from qla_runtime.checkpoints.reader import open_checkpoint

    saved = {"model_type": "SparseEncoder", "prompts": {"query": "q: "}, "default_prompt_name": "query"}
    source = open_checkpoint(sentence_folder(bare, tmp_path / "m", saved))
    assert source.settings.to_json() == {} and "belongs to a SparseEncoder" in source.settings.notes[0]
    (tmp_path / "m" / "modules.json").unlink()
    source = open_checkpoint(tmp_path / "m", task="embedding")
    assert source.settings.to_json() == {} and "no modules.json" in source.settings.notes[0]


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        ({"default_prompt_name": "passage"}, "default_prompt_name is 'passage'.*'query', 'document'"),
        ({"prompts": ["a"]}, "prompts must map names to texts"),
        ({"prompts": {"a": 1}}, "prompts must map names to texts"),
        ({"truncate_dim": 0}, "truncate_dim is 0"),
        ([], "JSON object"),
    ],
)
def test_settings_that_are_damaged(tmp_path, bare, saved, words):
    from qla_runtime.checkpoints.reader import open_checkpoint

    with pytest.raises(InputError, match=words):
        open_checkpoint(sentence_folder(bare, tmp_path / "m", saved))


@pytest.mark.parametrize(
    ("pooling", "normalize", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, False, "cls"),
        ({"pooling_mode_mean_tokens": True}, False, "mean"),
        ({"pooling_mode": "cls", "embedding_dimension": 64, "include_prompt": True}, False, "cls"),
        ({"pooling_mode": ["mean"]}, False, "mean"),
        ({"pooling_mode": "mean", "pooling_mode_cls_token": True}, False, "mean"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False}, False, "mean"),
        ({"word_embedding_dimension": 64}, False, "mean"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, True, "mean"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, False, None),
        ({"pooling_mode_max_tokens": True}, True, None),
        ({"pooling_mode": "weightedmean"}, True, None),
        ({"pooling_mode": "lasttoken"}, True, None),
        ({"pooling_mode_lasttoken": True}, True, None),
        ({"pooling_mode": ["mean", "cls"]}, True, None),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, True, None),
        ({"pooling_mode_mean_tokens": True, "include_prompt": False}, True, None),
    ],
)
def test_pooling_modes(pooling, normalize, expected):
    from qla_runtime.checkpoints.pooling import pooling_mode

    if expected is not None:
        assert pooling_mode(pooling, normalize) == expected
        return
    with pytest.raises(UnsupportedError, match="pooling config"):
        pooling_mode(pooling, normalize)


def test_pooling_where_the_folder_says_nothing(tmp_path, bare):
    from qla_runtime.checkpoints.reader import open_checkpoint

    assert open_checkpoint(bare, task="embedding").task.pooling == "mean"
    task = open_checkpoint(bare, pooling="cls").task
    assert (task.kind, task.pooling, task.normalize) == ("embedding", "cls", False)
    assert open_checkpoint(bare, task="embedding", pooling="cls").task == task
    folder = sentence_folder(bare, tmp_path / "m")
    assert open_checkpoint(folder, pooling="mean").task == open_checkpoint(folder).task
    with pytest.raises(InputError, match="modules.json says mean"):
        open_checkpoint(folder, pooling="cls")
    with pytest.raises(InputError, match="pooling is 'max'; it must be one of mean, cls"):
        open_checkpoint(bare, pooling="max")
    with pytest.raises(InputError, match="the task is span-qa"):
        open_checkpoint(bare, task="span-qa", pooling="cls")
