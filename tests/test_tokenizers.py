"""A checkpoint's tokenizer: the same ids, token types and cuts as transformers' own tokenizer of the folder."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

import tokenizer_tools as tools  # noqa: E402
from tokenizers import AddedToken, models  # noqa: E402

from qla_runtime.checkpoints import tokenizer_files as made_by  # noqa: E402
from qla_runtime.checkpoints.reader import open_checkpoint  # noqa: E402
from qla_runtime.checkpoints.tokenizer_files import CheckpointTokenizer, read_tokenizer  # noqa: E402
from qla_runtime.checkpoints.transformer_settings import TransformerSettings, transformer_settings  # noqa: E402
from qla_runtime.convert.calibration import pick_samples  # noqa: E402
from qla_runtime.convert.contents import package_config  # noqa: E402
from qla_runtime.errors import InputError, UnsupportedError  # noqa: E402
from qla_runtime.texts.text_encoder import TextEncoder  # noqa: E402

BERT, ROBERTA, XLM_R, CAMEMBERT = (
    {"model_type": kind, "vocab_size": 1000} for kind in ("bert", "roberta", "xlm-roberta", "camembert")
)


@pytest.fixture(params=["transformers", "plain"])
def way(request, monkeypatch) -> str:
    """Through transformers, and as where it is not installed."""
    if request.param == "plain":
        find = importlib.util.find_spec
        monkeypatch.setattr(
            made_by.importlib.util, "find_spec", lambda name: None if name == "transformers" else find(name)
        )
    return request.param


def same_as_transformers(
    folder: Path, config: dict, settings: TransformerSettings | None = None, own=None
) -> CheckpointTokenizer:
    """Reads the folder's tokenizer and compares it with transformers', whole and cut at 12 tokens."""
    made = read_tokenizer(folder, config, settings)
    if own is None:
        known = transformers.AutoConfig.for_model(config["model_type"])
        own = transformers.AutoTokenizer.from_pretrained(str(folder), config=known)
    for length in (12, 400):
        encoder = TextEncoder(
            made.json.encode, length, cut=True, vocab_size=1000, type_vocab_size=2, rules=made.rules
        )
        for texts in (tools.TEXTS, tools.PAIRS):
            encoded = encoder.encode(texts)
            paired = [list(column) for column in zip(*texts, strict=True)] if texts is tools.PAIRS else [texts]
            theirs = own(*paired, truncation=True, max_length=length)
            whole = own(*paired)["input_ids"]
            batch = encoded.batch
            for i, text in enumerate(texts):
                rows = slice(*batch.offsets[i : i + 2])
                assert batch.ids[rows].tolist() == theirs["input_ids"][i], text
                types = theirs["token_type_ids"][i] if "token_type_ids" in theirs else [0] * len(batch.ids[rows])
                ours = [0] * len(types) if batch.type_ids is None else batch.type_ids[rows].tolist()
                assert ours == types, text
                assert encoded.cut[i] == (len(whole[i]) > length), text
    return made


# ---- tokenizer_config.json ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"do_lower_case": False},
        {"do_lower_case": True},
        {"do_lower_case": False, "strip_accents": True},
        {"strip_accents": False},
        {"tokenize_chinese_chars": False},
        {"truncation_side": "left"},
        {"padding_side": "left", "model_max_length": 77},
        {"model_input_names": ["input_ids", "attention_mask"]},
        {"split_special_tokens": True},
        {"sep_token": "[PAD]", "cls_token": "[MASK]"},
        {"unk_token": {"__type": "AddedToken", "content": "[UNK]", "lstrip": False, "rstrip": False,
                       "normalized": False, "single_word": False}},
        {"additional_special_tokens": ["<ent>", "<e2>"]},
        {"extra_special_tokens": ["<ent>"]},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("lowercase", [True, False])
def test_bert(tmp_path, way, settings, lowercase):
    name = {"tokenizer_class": "BertTokenizer"} if settings else {}
    folder = tools.save(tmp_path / "b", tools.word_piece(lowercase=lowercase), **name, **settings)
    made = same_as_transformers(folder, BERT)
    if "model_max_length" in settings:
        assert made.limit == 77
    if settings.get("truncation_side"):
        assert made.rules.to_json() == {"truncation_side": "left"}


def test_tokenizer_config_rules_over_tokenizer_json(tmp_path, way):
    """The plain statement behind the comparison: BERT's class follows do_lower_case, not tokenizer.json."""
    lowers = tools.save(tmp_path / "a", tools.word_piece(lowercase=True), do_lower_case=False)
    keeps = tools.save(tmp_path / "b", tools.word_piece(lowercase=False), do_lower_case=True)
    assert json.loads(read_tokenizer(lowers, BERT).json)["normalizer"]["lowercase"] is False
    assert json.loads(read_tokenizer(keeps, BERT).json)["normalizer"]["lowercase"] is True


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"add_prefix_space": True},
        {"truncation_side": "left"},
        {"trim_offsets": False},
        {"tokenizer_class": "RobertaTokenizerFast", "add_prefix_space": True},
        {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]},
        {"mask_token": {"__type": "AddedToken", "content": "<mask>", "lstrip": True, "rstrip": False,
                        "normalized": False, "single_word": False}},
        {"cls_token": "</s>", "sep_token": "<s>"},
        {"additional_special_tokens": ["<ent>"]},
    ],
    ids=str,
)  # fmt: skip
def test_roberta(tmp_path, way, settings):
    same_as_transformers(tools.save(tmp_path / "r", tools.byte_level(), **settings), ROBERTA)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tokenizer_class": "XLMRobertaTokenizer"},
        {"truncation_side": "left"},
        {"add_prefix_space": False},
        {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"},
        {"tokenizer_class": "PreTrainedTokenizerFast", "sep_token": "</s>", "truncation_side": "left",
         "model_input_names": ["input_ids", "attention_mask"]},
    ],
    ids=str,
)  # fmt: skip
def test_xlm_roberta(tmp_path, way, settings):
    same_as_transformers(tools.save(tmp_path / "x", tools.metaspace(), **settings), XLM_R)


def test_white_space_around_a_text_is_dropped_as_transformers_5_does(tmp_path, way):
    made = read_tokenizer(tools.save(tmp_path / "x", tools.metaspace()), XLM_R)
    encoder = TextEncoder(made.json.encode, 64, cut=True, vocab_size=1000, type_vocab_size=1)
    batch = encoder.encode(["  the  river ", "the river"]).batch
    first, second = batch.ids[: batch.offsets[1]], batch.ids[batch.offsets[1] :]
    assert first.tolist() == second.tolist()


def test_camembert(tmp_path, way):
    special = ["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>", "<mask>"]
    same_as_transformers(tools.save(tmp_path / "c", tools.metaspace(special)), CAMEMBERT)


def test_added_tokens(tmp_path, way):
    """Added tokens that swallow white space, match whole words only, or match the normalized text."""
    tokenizer = tools.word_piece()
    tokenizer.add_tokens([AddedToken("<ent>", lstrip=True, rstrip=True), AddedToken("Paris", single_word=True)])
    tokenizer.add_special_tokens([AddedToken("<e2>", rstrip=True)])
    same_as_transformers(tools.save(tmp_path / "a", tokenizer), BERT)


@pytest.mark.parametrize("kind", ["added_tokens_decoder", "special_tokens_map", "added_tokens"])
def test_added_tokens_of_other_files(tmp_path, kind):
    folder = tools.save(tmp_path / "a", tools.word_piece(), tokenizer_class="BertTokenizer")
    size = tools.word_piece().get_vocab_size()
    flags = {"lstrip": True, "rstrip": True, "normalized": False, "single_word": False}
    if kind == "added_tokens_decoder":
        listed = {str(size): {"content": "<ent>", **flags, "special": True}}
        tools.write(folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", kind: listed})
    elif kind == "special_tokens_map":
        named = {"mask_token": {"content": "[MASK]", **flags}, "additional_special_tokens": ["<ent>"]}
        tools.write(folder / "special_tokens_map.json", named)
    else:
        tools.write(folder / "added_tokens.json", {"<ent>": size, "<e2>": size + 1})
    same_as_transformers(folder, BERT)


# ---- which files ----------------------------------------------------------------------------------


def test_vocab_txt_alone(tmp_path):
    vocab = tools.word_piece().get_vocab()
    (tmp_path / "vocab.txt").write_text("\n".join(sorted(vocab, key=vocab.get)), encoding="utf-8")
    same_as_transformers(tmp_path, BERT)
    tools.write(tmp_path / "tokenizer_config.json", {"do_lower_case": False})
    same_as_transformers(tmp_path, BERT)


def test_vocab_json_and_merges_txt_alone(tmp_path):
    tools.byte_level().model.save(str(tmp_path))
    same_as_transformers(tmp_path, ROBERTA)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(InputError, match=r"merges\.txt"):
        read_tokenizer(tmp_path, ROBERTA)


@pytest.mark.parametrize("config", [XLM_R, CAMEMBERT], ids=["xlm-roberta", "camembert"])
def test_sentencepiece_alone(tmp_path, config):
    pytest.importorskip("sentencepiece", reason="sentencepiece is not installed (the [convert] extra has it)")
    tools.sentencepiece_model(tmp_path)
    made = same_as_transformers(tmp_path, config)
    assert len(json.loads(made.json)["model"]["vocab"]) > 100


def test_sentencepiece_without_its_packages_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "sentencepiece.bpe.model").write_bytes(b"")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        made_by.importlib.util, "find_spec", lambda name: None if name == "sentencepiece" else find(name)
    )
    with pytest.raises(UnsupportedError, match="pip install sentencepiece"):
        read_tokenizer(tmp_path, XLM_R)


@pytest.mark.parametrize("config", [BERT, ROBERTA, XLM_R], ids=["bert", "roberta", "xlm-roberta"])
def test_no_tokenizer_is_refused(tmp_path, config):
    tools.write(tmp_path / "tokenizer_config.json", {"do_lower_case": True})
    with pytest.raises(InputError, match="holds no tokenizer.*save_pretrained"):
        read_tokenizer(tmp_path, config)


def test_files_of_another_tokenizer_are_refused(tmp_path):
    """transformers makes a tokenizer of five tokens here, and reads every word as unknown."""
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\nparis\n", encoding="utf-8")
    with pytest.raises(InputError, match="holds none of the files of its tokenizer, XLMRobertaTokenizer"):
        read_tokenizer(tmp_path, XLM_R)


@pytest.mark.parametrize("config", [BERT, ROBERTA], ids=["bert", "roberta"])
def test_a_tokenizer_json_of_another_kind_counts_as_it_stands(tmp_path, way, config):
    """Nothing names the class, and the model type's own would read WordLevel's words as something else."""
    tokenizer = tools.word_piece()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "paris", "river"]
    tokenizer.model = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    folder = tools.save(tmp_path / "w", tokenizer)
    inputs = ["input_ids", "attention_mask"] + ["token_type_ids"] * (config is BERT)
    own = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), model_input_names=inputs
    )
    same_as_transformers(folder, config, own=own)


# ---- faults ---------------------------------------------------------------------------------------


def test_more_tokens_than_the_model_has(tmp_path, way):
    folder = tools.save(tmp_path / "b", tools.word_piece())
    with pytest.raises(InputError, match="vocab_size is 100"):
        read_tokenizer(folder, {**BERT, "vocab_size": 100})


def test_a_special_token_that_the_class_makes_up_is_left_out(tmp_path, way):
    """XLM-R's class adds <mask> behind the vocabulary; the model has no embedding for it."""
    special = tools.ROBERTA_SPECIAL[:-1]
    folder = tools.save(tmp_path / "x", tools.metaspace(special))
    size = len(json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"])
    made = read_tokenizer(folder, {**XLM_R, "vocab_size": size})
    assert "<mask>" not in {token["content"] for token in json.loads(made.json)["added_tokens"]}


def test_dropout_truncation_and_padding_do_not_survive(tmp_path, way):
    tokenizer = tools.byte_level()
    tokenizer.model.dropout = 0.5
    tokenizer.enable_truncation(7, direction="left")
    tokenizer.enable_padding(length=30)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    made = read_tokenizer(tools.save(tmp_path / "r", tokenizer, **settings), ROBERTA)
    content = json.loads(made.json)
    assert content["model"]["dropout"] is content["truncation"] is content["padding"] is None
    assert made.rules.truncation_side == "left", "as transformers takes it from tokenizer.json"


@pytest.mark.parametrize("side", ["middle", None, 3])
def test_an_unknown_truncation_side(tmp_path, way, side):
    folder = tools.save(tmp_path / "b", tools.word_piece(), truncation_side=side)
    with pytest.raises(InputError, match="(?i)truncation.?side"):
        read_tokenizer(folder, BERT)


def test_a_tokenizer_that_panics(tmp_path, way):
    folder = tools.save(tmp_path / "b", tools.word_piece(), tokenizer_class="PreTrainedTokenizerFast")
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    content["pre_tokenizer"] = {"type": "FixedLength", "length": 0}
    tools.write(folder / "tokenizer.json", content)
    with pytest.raises(InputError, match="chunk size must be non-zero"):
        read_tokenizer(folder, BERT)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"model": {}}', '{"model": {"type": "BPE", "vocab": 3}}']
)
def test_damaged_files(tmp_path, way, content):
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match="tokenizer"):
        read_tokenizer(tmp_path, BERT)


# ---- sentence-transformers ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "camembert", "xlm-roberta"])
def test_settings_of_sentence_transformers(tmp_path, name):
    tools.write(tmp_path / f"sentence_{name}_config.json", {"max_seq_length": 32, "do_lower_case": True})
    assert transformer_settings(tmp_path) == TransformerSettings(32, True)


def test_the_first_settings_file_with_content_counts(tmp_path):
    tools.write(tmp_path / "sentence_bert_config.json", {})
    tools.write(tmp_path / "sentence_roberta_config.json", {"max_seq_length": 64})
    tools.write(tmp_path / "sentence_camembert_config.json", {"max_seq_length": 128})
    assert transformer_settings(tmp_path).max_length == 64


def test_lower_case_of_sentence_transformers(tmp_path, way):
    """A lower-caser before whatever the tokenizer does, and once only."""
    folder = tools.save(tmp_path / "b", tools.word_piece(lowercase=False), do_lower_case=False)
    made = read_tokenizer(folder, BERT, TransformerSettings(lower_case=True))
    kinds = [step["type"] for step in json.loads(made.json)["normalizer"]["normalizers"]]
    assert kinds == ["Lowercase", "BertNormalizer"]
    encoder = TextEncoder(made.json.encode, 64, cut=True, vocab_size=1000, type_vocab_size=2)
    batch = encoder.encode(["PARIS is BIG", "paris is big"]).batch
    assert batch.ids[: batch.offsets[1]].tolist() == batch.ids[batch.offsets[1] :].tolist()

    bare = tools.save(tmp_path / "r", tools.byte_level())
    steps = json.loads(read_tokenizer(bare, ROBERTA, TransformerSettings(lower_case=True)).json)["normalizer"]
    assert steps == {"type": "Sequence", "normalizers": [{"type": "Lowercase"}]}


def test_tokenizer_arguments_of_sentence_transformers(tmp_path, way):
    folder = tools.save(tmp_path / "b", tools.word_piece())
    arguments = {
        "do_lower_case": False,
        "truncation_side": "left",
        "model_max_length": 48,
        "trust_remote_code": True,
    }
    tools.write(folder / "sentence_bert_config.json", {"max_seq_length": 99, "tokenizer_args": arguments})
    settings = transformer_settings(folder)
    known = transformers.AutoConfig.for_model("bert")
    own = transformers.AutoTokenizer.from_pretrained(
        str(folder), config=known, do_lower_case=False, truncation_side="left"
    )
    assert same_as_transformers(folder, BERT, settings, own).limit == 48


@pytest.mark.parametrize(
    ("content", "error", "word"),
    [
        ({"max_seq_length": "long"}, InputError, "max_seq_length"),
        ({"max_seq_length": -1}, InputError, "max_seq_length"),
        ({"do_lower_case": "yes"}, InputError, "do_lower_case"),
        ({"tokenizer_args": {"vocab_file": "/etc/passwd"}}, UnsupportedError, "vocab_file"),
        ({"query_length": 32}, UnsupportedError, "query_length"),
        ({"processing_kwargs": {"text": {"truncation": False}}}, UnsupportedError, "truncation"),
        ({"processing_kwargs": {"text": {"stride": 4}}}, UnsupportedError, "stride"),
        (["max_seq_length"], InputError, "JSON object"),
    ],
)
def test_settings_that_cannot_be_followed(tmp_path, content, error, word):
    tools.write(tmp_path / "sentence_bert_config.json", content)
    with pytest.raises(error, match=word):
        transformer_settings(tmp_path)


# ---- the whole checkpoint -------------------------------------------------------------------------


def _checkpoint(folder: Path, tokenizer, kind: str = "bert", sentence: dict | None = None, **settings) -> Path:
    """A tiny random encoder with its tokenizer, in sentence-transformers' layout where ``sentence`` is given."""
    shape = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128}
    config = transformers.AutoConfig.for_model(
        kind, vocab_size=400, max_position_embeddings=66, pad_token_id=1, **shape
    )
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    tools.save(folder, tokenizer, **settings)
    if sentence is not None:
        names = ("Transformer", "Pooling")
        paths = zip(("", "1_Pooling"), names, strict=True)
        listing = [{"path": path, "type": f"sentence_transformers.models.{name}"} for path, name in paths]
        tools.write(
            folder / "modules.json", [{"idx": i, "name": str(i)} | entry for i, entry in enumerate(listing)]
        )
        (folder / "1_Pooling").mkdir()
        pooling = {"word_embedding_dimension": 64, "pooling_mode_mean_tokens": True}
        tools.write(folder / "1_Pooling" / "config.json", pooling)
        tools.write(folder / "sentence_bert_config.json", sentence)
    return folder


def test_rules_reach_the_package_and_the_samples(tmp_path):
    inputs = ["input_ids", "attention_mask"]
    folder = _checkpoint(
        tmp_path / "c",
        tools.word_piece(),
        truncation_side="left",
        model_input_names=inputs,
        tokenizer_class="BertTokenizer",
    )
    source = open_checkpoint(folder, task="embedding", max_length=12)
    config = package_config("name", source, None)
    assert config["text"] == {"truncation_side": "left", "token_types": False}
    text = "The river runs through the old town; people walk along the river every day."
    samples = pick_samples([(text, text)], source.tokenizer_json, source.text, max_length=12, type_vocab_size=2)
    own = transformers.AutoTokenizer.from_pretrained(str(folder))
    assert samples.check[0].ids.tolist() == own(text, text, truncation=True, max_length=12)["input_ids"]
    assert not samples.check[0].type_ids.any()


@pytest.mark.parametrize(
    ("kind", "sentence", "settings"),
    [
        ("bert", {"max_seq_length": 16, "do_lower_case": True}, {"do_lower_case": False}),
        ("bert", {"max_seq_length": None}, {"truncation_side": "left", "model_max_length": 20}),
        ("bert", {"tokenizer_args": {"do_lower_case": False, "model_max_length": 14}}, {}),
        ("bert", {"max_seq_length": 30, "processing_kwargs": {"text": {"max_length": 10}}}, {}),
        ("xlm-roberta", {"max_seq_length": 24, "do_lower_case": True}, {}),
        ("roberta", {"max_seq_length": 24, "do_lower_case": True}, {"add_prefix_space": True}),
    ],
    ids=str,
)
def test_ids_of_sentence_transformers(tmp_path, kind, sentence, settings):
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    tokenizer = {"bert": tools.word_piece, "roberta": tools.byte_level, "xlm-roberta": tools.metaspace}[kind]()
    folder = _checkpoint(tmp_path / "c", tokenizer, kind, sentence, **settings)
    source = open_checkpoint(folder)
    encoder = TextEncoder(
        source.tokenizer_json.encode,
        source.task.max_length,
        cut=True,
        vocab_size=source.encoder.vocab_size,
        type_vocab_size=source.encoder.type_vocab_size,
        rules=source.text,
    )
    model = library.SentenceTransformer(str(folder), device="cpu")
    batch = encoder.encode(tools.TEXTS).batch
    for i, text in enumerate(tools.TEXTS):
        theirs = model.preprocess([text])["input_ids"][0].tolist()
        assert batch.ids[slice(*batch.offsets[i : i + 2])].tolist() == theirs, text
