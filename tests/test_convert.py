"""Conversion: the module against transformers and a plain reference; every promise about a package's files.

The models are tiny and random; none of this says anything about accuracy.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'qla_runtime[convert]')")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

import reference  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers, processors  # noqa: E402

from qla_runtime.checkpoints.config import encoder_spec  # noqa: E402
from qla_runtime.checkpoints.reader import open_checkpoint  # noqa: E402
from qla_runtime.convert import calibration, card, lengths, report  # noqa: E402
from qla_runtime.errors import InputError, QlaError, UnsupportedError  # noqa: E402
from qla_runtime.lengths.configs import LengthConfig  # noqa: E402
from qla_runtime.model import pack, package_writer  # noqa: E402
from qla_runtime.model.float_model import Model, _select, kept_count  # noqa: E402
from qla_runtime.texts import data_sets  # noqa: E402

VOCAB = 100
SHAPE = dict(
    vocab_size=VOCAB,
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=128,
)
BERT = dict(**SHAPE, max_position_embeddings=64, type_vocab_size=2)
ROBERTA = dict(
    **SHAPE, max_position_embeddings=66, type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2
)
HEADS = {
    "span-qa": ("ForQuestionAnswering", {}),
    "sequence-classification": ("ForSequenceClassification", {"num_labels": 3}),
    "token-classification": ("ForTokenClassification", {"num_labels": 5}),
    "embedding": ("Model", {}),
}
FLOAT32 = dict(rtol=0, atol=2e-5)
"""States are of order 1 and pass some 30 float32 roundings of 6e-8; this leaves room for summation order."""


def save_checkpoint(folder: Path, family: str, kind: str, **changes) -> Path:
    """A tiny random checkpoint, as transformers saves it, with a tokenizer of one word per id."""
    suffix, extra = HEADS[kind]
    settings = {**(BERT if family == "Bert" else ROBERTA), **extra, **changes}
    config = getattr(transformers, f"{family}Config")(**settings)
    torch.manual_seed(7)
    model = getattr(transformers, f"{family}{suffix}")(config).eval()
    with torch.no_grad():  # random biases and norms too: zeros and ones would hide a wrong name
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    start, end = ("[CLS]", "[SEP]") if family == "Bert" else ("<s>", "</s>")
    ids = {start: 0, end: 2, "pad": 1, "unk": 3} | {f"w{i}": i for i in range(4, VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="unk"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing((end, 2), (start, 0))
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def add_sentence_layout(folder: Path, *, mode: str = "mean_tokens", modules=("Pooling", "Normalize")) -> Path:
    names = ["Transformer", *modules]
    listing = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{n}" if i else "",
            "type": f"sentence_transformers.models.{n}",
        }
        for i, n in enumerate(names)
    ]
    (folder / "modules.json").write_text(json.dumps(listing))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    modes = {f"pooling_mode_{m}": m == mode for m in ("cls_token", "mean_tokens", "max_tokens")}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 32}))
    return folder


def random_ids(*shape: int, seed: int = 0):
    return torch.randint(4, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def qa_checkpoint(tmp_path_factory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("qa") / "tiny-qa", "Bert", "span-qa")


@pytest.fixture(scope="module")
def qa_model(qa_checkpoint) -> Model:
    return open_checkpoint(qa_checkpoint, max_length=48).load_model()


@pytest.fixture
def texts(tmp_path) -> Path:
    """A pairs file with sequences of 5 to 43 tokens."""
    path = tmp_path / "texts.tsv"
    lines = [f"w{5 + i % 9} w6\t" + " ".join(f"w{4 + (i * j) % 90}" for j in range(1 + i % 40)) for i in range(60)]
    path.write_text("\n".join(lines) + "\n")
    return path


# --- the module -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("family", ["Bert", "Roberta"])
def test_module_equals_transformers(tmp_path, family, kind):
    folder = save_checkpoint(tmp_path / "m", family, kind)
    theirs = (
        getattr(transformers, family + HEADS[kind][0]).from_pretrained(folder, attn_implementation="eager").eval()
    )
    ours = open_checkpoint(folder, task=kind).load_model()
    ids = random_ids(3, 20)
    type_ids = (torch.arange(20) > 8).long().expand(3, 20) * (family == "Bert")
    mask = torch.ones_like(ids)
    mask[1, 13:] = 0
    mask[2, 5:] = 0
    ids = ids.masked_fill(mask == 0, 1)  # RoBERTa numbers positions by pad id
    with torch.no_grad():
        expected = theirs(input_ids=ids, attention_mask=mask, token_type_ids=type_ids, output_hidden_states=True)
        logits, output = ours(ids, type_ids, mask)
        alone, _ = ours(ids[1:2, :13], type_ids[1:2, :13])
    real = mask.bool()
    for mine, other in zip(output.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(mine[real], other[real], **FLOAT32)
    if kind == "span-qa":
        want = torch.stack([expected.start_logits, expected.end_logits], -1)
    elif kind == "embedding":
        states = expected.last_hidden_state
        want = torch.stack([state[keep].mean(0) for state, keep in zip(states, real, strict=True)])
    else:
        want = expected.logits
    per_token = kind in ("span-qa", "token-classification")
    torch.testing.assert_close(logits[real] if per_token else logits, want[real] if per_token else want, **FLOAT32)
    torch.testing.assert_close(alone[0], want[1, :13] if per_token else want[1], **FLOAT32)


CONFIGS = [
    LengthConfig.ratio((0.8, 0.5, 0.25), keep_cls=True),
    LengthConfig.ratio((0.8, 0.5, 0.25), keep_cls=False),
    LengthConfig.ratio((1.0, 0.31, 0.01), keep_cls=True),
    LengthConfig.tokens((30, 12, 3), keep_cls=False),
    LengthConfig.tokens((9, 9, 1), keep_cls=True),
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_dropping_equals_plain_loops(qa_model, config):
    spec = qa_model.encoder.spec
    tensors = {name: t.numpy() for name, t in qa_model.encoder.state_dict().items()}
    lengths_ = [1, 2, 3, 10, 24, 40]
    ids = random_ids(len(lengths_), max(lengths_), seed=3)
    type_ids = (torch.arange(ids.shape[1]) > 6).long().expand_as(ids)
    mask = torch.arange(ids.shape[1])[None] < torch.tensor(lengths_)[:, None]
    with torch.no_grad():
        padded = qa_model.encoder(ids, type_ids, mask, config)
    for b, n in enumerate(lengths_):
        with torch.no_grad():
            alone = qa_model.encoder(ids[b : b + 1, :n], type_ids[b : b + 1, :n], None, config)
        expected = reference.encode(
            tensors,
            layers=spec.layers,
            heads=spec.heads,
            eps=spec.norm_eps,
            position_offset=spec.position_offset,
            ids=ids[b, :n].numpy(),
            type_ids=type_ids[b, :n].numpy(),
            rule=config.rule,
            values=config.values,
            keep_cls=config.keep_cls,
        )
        for i in range(spec.layers):
            assert alone.kept[i][0].tolist() == expected.kept[i]
            row = padded.kept[i][b]
            assert row[row >= 0].tolist() == expected.kept[i]
            assert (row[len(expected.kept[i]) :] == -1).all()
            np.testing.assert_allclose(alone.scores[i][0], expected.scores[i], rtol=1e-5, atol=1e-6)
            assert alone.scores[i].sum().item() == pytest.approx(spec.heads * len(expected.scores[i]), rel=1e-5)
        for i in range(spec.layers + 1):
            np.testing.assert_allclose(alone.hidden_states[i][0], expected.hidden_states[i], **FLOAT32)
            np.testing.assert_allclose(padded.hidden_states[i][b, :n], expected.hidden_states[i], **FLOAT32)


def test_dropping_trains(qa_model):
    """Gradients reach every parameter through a padded pass with dropping."""
    model = Model(qa_model.encoder.spec, qa_model.task)
    ids = random_ids(2, 12)
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    logits, _ = model(ids, None, mask, CONFIGS[0])
    logits.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_ties_go_to_the_lower_position():
    scores = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0]])
    assert _select(scores, 2, None, False)[0].tolist() == [[1, 2]]
    assert _select(scores, 2, None, True)[0].tolist() == [[0, 1]]
    rows, alive = _select(scores.expand(2, 5), torch.tensor([3, 1]), torch.ones(2, 5, dtype=torch.bool), False)
    assert rows[0].tolist() == [1, 2, 3]
    assert rows[1, 0] == 1 and alive.tolist() == [[True] * 3, [True, False, False]]


def test_kept_count_is_the_config_rule():
    """Integer arithmetic against the rule in double, where it matters most: ratios that hit whole tokens."""
    ratios = [k / 384 for k in range(2, 385, 7)] + [k / 100 for k in range(1, 101)] + [1 / 3, 2 / 3, 0.7, 1e-9]
    for ratio in ratios:
        config = LengthConfig.ratio([ratio])
        for n in (*range(1, 40), 100, 300, 384, 512, 4096):
            assert kept_count("ratio", ratio, n, n) == config.kept(n)[0]
            tensor = torch.tensor([n])
            assert kept_count("ratio", ratio, tensor, tensor).item() == config.kept(n)[0]
    assert kept_count("tokens", 5, 10, 4) == 4
    with pytest.raises(ValueError, match="rule"):
        kept_count("threshold", 0.5, 10, 10)


class _LastHidden(torch.nn.Module):
    def __init__(self, encoder, config=None):
        super().__init__()
        self.encoder, self.config = encoder, config

    def forward(self, ids, type_ids):
        return self.encoder(ids, type_ids, None, self.config).last_hidden


def test_exports_dense_with_batch_and_length_dynamic(qa_model):
    module = _LastHidden(qa_model.encoder)
    shape = {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("length", max=64)}
    exported = torch.export.export(
        module, (random_ids(2, 16), random_ids(2, 16) % 2), dynamic_shapes=(shape, shape)
    )
    for batch, n in ((2, 16), (5, 3), (3, 64)):
        ids = random_ids(batch, n)
        torch.testing.assert_close(exported.module()(ids, ids % 2), module(ids, ids % 2), **FLOAT32)


@pytest.mark.parametrize("config", [CONFIGS[0], CONFIGS[3]], ids=str)
def test_exports_dropping_with_length_dynamic(qa_model, config):
    module = _LastHidden(qa_model.encoder, config)
    shape = {1: torch.export.Dim.AUTO}
    exported = torch.export.export(
        module, (random_ids(1, 48), random_ids(1, 48) % 2), dynamic_shapes=(shape, shape)
    )
    for n in (3, 4, 11, 30, 64):
        ids = random_ids(1, n, seed=n)
        torch.testing.assert_close(exported.module()(ids, ids % 2), module(ids, ids % 2), **FLOAT32)


# --- checkpoints ----------------------------------------------------------------------------------


def test_reads_tasks(tmp_path, qa_checkpoint):
    source = open_checkpoint(qa_checkpoint)
    assert source.task.to_json() == {
        "kind": "span-qa", "max_length": 64, "keep_cls": True, "doc_stride": 21, "max_answer_tokens": 30,
    }  # fmt: skip
    tokenizer = json.loads(source.tokenizer_json)
    assert tokenizer["truncation"] is None and tokenizer["padding"] is None

    folder = save_checkpoint(
        tmp_path / "labels", "Roberta", "sequence-classification", id2label={0: "no", 1: "yes"}, num_labels=2
    )
    task = open_checkpoint(folder, max_length=20).task
    assert (task.labels, task.problem, task.max_length) == (("no", "yes"), "single_label", 20)
    score = save_checkpoint(tmp_path / "score", "Bert", "sequence-classification", num_labels=1)
    assert open_checkpoint(score).task.problem == "regression"
    assert open_checkpoint(score).task.to_json()["activation"] == "sigmoid"
    encoder = open_checkpoint(folder).encoder
    assert (encoder.position_offset, encoder.max_positions) == (2, 64)


def test_reads_sentence_transformers_layout(tmp_path):
    folder = add_sentence_layout(save_checkpoint(tmp_path / "s", "Bert", "embedding"))
    source = open_checkpoint(folder)
    assert source.task.to_json() == {
        "kind": "embedding", "max_length": 32, "keep_cls": True, "pooling": "mean", "normalize": True,
    }  # fmt: skip
    with torch.no_grad():
        vectors, _ = source.load_model()(random_ids(2, 9))
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2), **FLOAT32)
    add_sentence_layout(folder, mode="cls_token", modules=("Pooling",))
    task = open_checkpoint(folder).task
    assert (task.pooling, task.normalize) == ("cls", False)
    add_sentence_layout(folder, mode="max_tokens")
    with pytest.raises(UnsupportedError, match="exactly one of mean and cls"):
        open_checkpoint(folder)
    add_sentence_layout(folder, modules=("Pooling", "Dense"))
    with pytest.raises(UnsupportedError, match="Dense"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "deberta-v2"}, "model_type is 'deberta-v2'"),
        ({"model_type": None}, "model_type"),
        ({"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder"),
        ({"hidden_size": 100}, "hidden_size is 100"),
        ({"hidden_size": 8192, "num_attention_heads": 128}, "hidden_size is 8192"),
        ({"num_attention_heads": 4}, "head size of 32 or 64"),
        ({"intermediate_size": 100}, "intermediate_size is 100"),
        ({"num_hidden_layers": 65}, "num_hidden_layers is 65"),
        ({"max_position_embeddings": 7}, "max_position_embeddings is 7"),
        ({"layer_norm_eps": None, "type_vocab_size": 65}, "type_vocab_size is 65"),
        ({"vocab_size": (1 << 24) + 1}, "vocab_size is 16777217"),
    ],
)
def test_unsupported_architectures_are_named(qa_checkpoint, change, words):
    config = json.loads((qa_checkpoint / "config.json").read_text()) | change
    with pytest.raises(UnsupportedError, match=words):
        encoder_spec(config)


@pytest.mark.parametrize("change", [{"hidden_size": "64"}, {"num_hidden_layers": True}, {"layer_norm_eps": 0.2}])
def test_damaged_configs_are_named(qa_checkpoint, change):
    config = json.loads((qa_checkpoint / "config.json").read_text()) | change
    with pytest.raises(InputError, match=next(iter(change))):
        encoder_spec(config)


def test_refuses_bad_checkpoints(tmp_path, qa_checkpoint):
    def copy(name: str) -> Path:
        return Path(shutil.copytree(qa_checkpoint, tmp_path / name))

    with pytest.raises(InputError, match="neither a folder nor a hub id"):
        open_checkpoint("./no/such/folder")
    folder = copy("no-config")
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json is missing"):
        open_checkpoint(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match="not readable JSON"):
        open_checkpoint(folder)

    folder = copy("pickle")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UnsupportedError, match="pickle"):
        open_checkpoint(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(InputError, match="no weights"):
        open_checkpoint(folder)

    with pytest.raises(InputError, match="task is 'translation'"):
        open_checkpoint(qa_checkpoint, task="translation")
    with pytest.raises(InputError, match=r"'classifier\.weight' is missing"):
        open_checkpoint(qa_checkpoint, task="token-classification").load_model()
    with pytest.raises(InputError, match="max_length is 65"):
        open_checkpoint(qa_checkpoint, max_length=65)

    folder = copy("cut")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InputError, match=r"model\.safetensors"):
        open_checkpoint(folder).load_model()
    (folder / "model.safetensors").write_bytes(weights[:-4] + struct.pack("<f", float("nan")))
    with pytest.raises(InputError, match="NaN"):
        open_checkpoint(folder).load_model()

    folder = copy("tokenizer")
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": 50}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="knows token id 99"):
        open_checkpoint(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        open_checkpoint(folder)

    encoder_only = save_checkpoint(tmp_path / "bare", "Bert", "embedding")
    with pytest.raises(InputError, match="pass task="):
        open_checkpoint(encoder_only)


def test_old_norm_names_and_shards(tmp_path, qa_checkpoint, qa_model):
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(qa_checkpoint, tmp_path / "old"))
    tensors = load_file(folder / "model.safetensors")
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = {}
    for name, tensor in tensors.items():
        for new, past in old.items():
            name = name.replace(new, past)
        renamed[name] = tensor
    names = sorted(renamed)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: renamed[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in halves.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "model.safetensors").unlink()
    loaded = open_checkpoint(folder).load_model().state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in qa_model.state_dict().items())


# --- calibration texts ----------------------------------------------------------------------------


def test_reads_squad_texts(tmp_path):
    def write(name: str, content: str) -> Path:
        path = tmp_path / name
        path.write_text(content)
        return path

    squad = {"data": [{"paragraphs": [{"context": c, "qas": [{"question": f"{c}?"}]}]} for c in "xyz"]}
    path = write("a.json", json.dumps(squad))
    assert data_sets.read_texts(path) == [("x?", "x"), ("y?", "y"), ("z?", "z")]
    assert data_sets.read_texts(path, articles="odd") == [("x?", "x"), ("z?", "z")]
    with pytest.raises(InputError, match="cannot be read"):
        data_sets.read_texts(tmp_path / "absent.txt")
    with pytest.raises(InputError, match="articles"):
        data_sets.read_texts(path, articles="even")


def test_picks_samples(texts, qa_checkpoint):
    def pick():
        pairs = data_sets.read_texts(texts)
        tokenizer = open_checkpoint(qa_checkpoint).tokenizer_json
        return calibration.pick_samples(pairs, tokenizer, max_length=30, type_vocab_size=2, calibrate=10, check=5)

    samples, again = pick(), pick()
    assert samples.held_out and (len(samples.calibrate), len(samples.check)) == (10, 5)
    rows = [sample.ids.tolist() for sample in samples.calibrate]
    assert rows == [sample.ids.tolist() for sample in again.calibrate]
    assert not any(sample.ids.tolist() in rows for sample in samples.check)
    counts = [len(row) for row in rows]
    assert counts == sorted(counts) and counts[0] < 10 and counts[-1] == 30
    sample = samples.calibrate[3]
    assert sample.ids.dtype == sample.type_ids.dtype == np.int32
    # [CLS] two words [SEP] context [SEP]
    assert sample.is_context.tolist() == [4 <= i < len(sample.ids) - 1 for i in range(len(sample.ids))]


# --- bytes ----------------------------------------------------------------------------------------


def test_packing_is_the_documented_layout():
    rng = np.random.default_rng(1)
    weight = rng.integers(-127, 128, (192, 128), dtype=np.int8)
    packed = pack.pack(weight)
    assert packed.shape == (3, 32, 64, 4) and packed.flags.c_contiguous
    for _ in range(500):
        n, k = rng.integers(192), rng.integers(128)
        assert packed[n // 64, k // 4, n % 64, k % 4] == weight[n, k]
    np.testing.assert_array_equal(pack.unpack(packed), weight)


def test_rows_quantize_symmetrically():
    table = np.array([[0.0, 0.0, 0.0], [-2.54, 1.0, 0.01]], np.float32)
    scale = pack.embedding_scale(table)
    np.testing.assert_allclose(scale, [1, 0.02], rtol=1e-6)
    assert pack.quantize_rows(table, scale).tolist() == [[0, 0, 0], [-127, 50, 0]]
    # neural-compressor's scale puts the largest weight at 127.5 steps
    assert pack.quantize_rows(np.array([[-1.275, 0.5]], np.float32), np.array([0.01], np.float32)).min() == -127
    assert pack.pad16(np.ones(17, np.float32)).tolist() == [1] * 17 + [0] * 15


def test_safetensors_bytes_read_back(tmp_path):
    from safetensors.numpy import load_file

    tensors = {
        "a": np.arange(64, dtype=np.int8).reshape(2, 32),
        "b": np.arange(16, dtype=np.float32),
        "c": np.arange(32, dtype=np.int32),
    }
    path = tmp_path / "t.safetensors"
    path.write_bytes(package_writer.safetensors_bytes(tensors))
    for name, tensor in load_file(path).items():
        np.testing.assert_array_equal(tensor, tensors[name])
    with pytest.raises(QlaError, match="no multiple of 64"):
        package_writer.safetensors_bytes({"odd": np.zeros(3, np.float32)})


def test_default_lengths():
    six = lengths.default_configs(6)
    assert list(six) == ["full", "balanced", "fast"]
    assert six["full"].values == (1.0,) * 6
    assert six["balanced"].kept(384) == list(lengths.PUBLISHED["balanced"])
    assert six["fast"].kept(384) == list(lengths.PUBLISHED["fast"])
    for layers in (1, 2, 3, 12, 24):
        assert all(len(config.values) == layers for config in lengths.default_configs(layers).values())
    mine = lengths.with_full({"half": LengthConfig.ratio([0.5] * 3)}, 3)
    assert list(mine) == ["full", "half"]
    with pytest.raises(InputError, match="layers"):
        lengths.with_full({"half": LengthConfig.ratio([0.5] * 2)}, 3)


# --- neural-compressor ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scales(qa_checkpoint, qa_model, tmp_path_factory):
    pytest.importorskip("neural_compressor", reason="neural-compressor-pt is not installed")
    from qla_runtime.convert import quantize

    rng = np.random.default_rng(5)
    samples = []
    for n in (3, 9, 17, 30, 48):
        ids = rng.integers(4, VOCAB, n).astype(np.int32)
        samples.append(calibration.Sample(ids, np.zeros_like(ids), np.ones(n, bool)))
    configs = [LengthConfig.ratio([1.0] * 3), CONFIGS[0], CONFIGS[0]]
    both = quantize.calibrate(qa_model.encoder, samples, configs, progress=False)
    dense = quantize.calibrate(qa_model.encoder, samples, [], progress=False)
    return both, dense


def test_weight_scales_are_per_output_channel(scales, qa_model):
    both, _ = scales
    assert len(both) == 3 * 4
    for (i, linear), found in both.items():
        weight = getattr(qa_model.encoder.layers[i], linear).weight.detach().numpy()
        np.testing.assert_allclose(found.weight_scale, np.abs(weight).max(1) / 127.5, rtol=1e-5)


def test_weight_scales_need_no_texts(scales, qa_model):
    """The same bits from the linear layers alone as from the calibrated encoder."""
    from qla_runtime.convert import quantize

    alone = quantize.weight_scales(qa_model.encoder)
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
from qla_runtime.convert.quantize import calibrate, weight_scales
encoder = open_checkpoint(sys.argv[1]).load_model().encoder
ids = np.arange(4, 20, dtype=np.int32)
weight_scales(encoder)
calibrate(encoder, [Sample(ids, ids * 0, ids > 0)], [], algorithm="minmax", progress=False)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(qa_checkpoint)], capture_output=True, text=True, env=_environment()
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_importing_the_package_imports_no_torch():
    code = "import sys, qla_runtime.convert; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=_environment()).returncode == 0


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


# --- packages -------------------------------------------------------------------------------------


@pytest.fixture
def native():
    return pytest.importorskip("qla_runtime._core", reason="the native module is not built")


@pytest.fixture
def package(native, scales, qa_checkpoint, qa_model, tmp_path) -> Path:
    """A package written without the closing comparison, so that no kernel runs."""
    from qla_runtime.convert import pipeline

    source = open_checkpoint(qa_checkpoint, max_length=48)
    folder = tmp_path / "package"
    folder.mkdir()
    package_writer.write_package(
        folder,
        config=pipeline.package_config("tiny", source, scales[0], "static"),
        tensors=pipeline.packed_tensors(qa_model, scales[0]),
        tokenizer_json=source.tokenizer_json,
        length_configs=lengths.to_json(lengths.default_configs(3), source.encoder, source.task),
    )
    return folder


def test_crc32c_check_value(native):
    assert package_writer.crc32c(b"123456789") == 0xE3069283


def test_manifest_obeys_the_format(native, package):
    text = (package / "manifest.json").read_bytes()
    manifest = json.loads(text)
    assert list(manifest) == ["format", "format_version", "weight_layout", "files", "self_crc32c"]
    assert (manifest["format"], manifest["format_version"]) == ("qla-package", 1)
    assert manifest["weight_layout"] == "n64k4"
    assert set(manifest["files"]) == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "length_configs.json",
    }
    for name, entry in manifest["files"].items():
        data = (package / name).read_bytes()
        assert entry == {"size": len(data), "crc32c": f"{native.crc32c(data):08x}"}
    assert text.count(b'"self_crc32c": "') == 1
    own = manifest["self_crc32c"].encode()
    assert native.crc32c(text.replace(own, b"00000000")) == int(own, 16) and len(own) == 8


def test_config_obeys_the_format(package, scales):
    config = json.loads((package / "config.json").read_text())
    assert set(config) == {"format_version", "name", "encoder", "linears", "task"}
    assert config["encoder"] == {
        "norm": "post", "activation": "gelu_erf", "positions": "absolute", "position_offset": 0, "layers": 3,
        "hidden": 64, "heads": 2, "intermediate": 128, "vocab_size": VOCAB, "max_positions": 64,
        "type_vocab_size": 2, "norm_eps": 1e-12,
    }  # fmt: skip
    assert len(config["linears"]) == 3
    for i, layer in enumerate(config["linears"]):
        assert set(layer) == {"qkv", "output", "ffn_in", "ffn_out"}
        for linear, entry in layer.items():
            found = scales[0][i, linear]
            assert entry == {
                "type": "w8a8", "activation": "static",
                "scale": found.input_scale, "zero_point": found.input_zero_point,
            }  # fmt: skip
    configs = json.loads((package / "length_configs.json").read_text())
    assert configs["format_version"] == 1 and configs["frontier"] == []
    assert [entry["name"] for entry in configs["configs"]] == ["full", "balanced", "fast"]
    assert configs["configs"][0]["macs_share"] == 1
    assert set(configs["configs"][1]) == {"name", "rule", "values", "keep_cls", "macs_share"}


def test_tensors_obey_the_format(package, qa_model, scales):
    raw = (package / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    assert (8 + size) % 64 == 0
    header = json.loads(raw[8 : 8 + size])
    h, f, v = 64, 128, VOCAB
    shapes = {
        "embeddings.word.weight": ("I8", [v, h]),
        "embeddings.word.scale": ("F32", [112]),
        "embeddings.position.weight": ("F32", [64, h]),
        "embeddings.token_type.weight": ("F32", [2, h]),
        "head.weight": ("F32", [2, h]),
        "head.bias": ("F32", [16]),
    }
    norms = ["embeddings.norm"]
    for i in range(3):
        norms += [f"layers.{i}.attention_norm", f"layers.{i}.ffn_norm"]
        for linear, (k, n) in {
            "qkv": (h, 3 * h),
            "output": (h, h),
            "ffn_in": (h, f),
            "ffn_out": (f, h),
        }.items():
            name = f"layers.{i}.{linear}"
            shapes[f"{name}.weight"] = ("I8", [n // 64, k // 4, 64, 4])
            shapes[f"{name}.scale"] = shapes[f"{name}.bias"] = ("F32", [n])
            shapes[f"{name}.column_sum"] = ("I32", [n])
    for norm in norms:
        shapes[f"{norm}.weight"] = shapes[f"{norm}.bias"] = ("F32", [h])
    assert {name: (entry["dtype"], entry["shape"]) for name, entry in header.items()} == shapes

    end, tensors = 0, {}
    for name, entry in header.items():
        begin, stop = entry["data_offsets"]
        assert begin == end and (stop - begin) % 64 == 0, name
        end = stop
        kind = {"I8": np.int8, "I32": np.int32, "F32": np.float32}[entry["dtype"]]
        tensors[name] = np.frombuffer(raw[8 + size + begin : 8 + size + stop], kind).reshape(entry["shape"])
    assert 8 + size + end == len(raw)

    state = {name: tensor.numpy() for name, tensor in qa_model.state_dict().items()}
    for i in range(3):
        for linear in ("qkv", "output", "ffn_in", "ffn_out"):
            name = f"layers.{i}.{linear}"
            weight = pack.unpack(tensors[f"{name}.weight"])
            assert weight.min() >= -127
            np.testing.assert_array_equal(tensors[f"{name}.column_sum"], weight.astype(np.int64).sum(1))
            scale = tensors[f"{name}.scale"]
            error = np.abs(weight * scale[:, None] - state[f"encoder.{name}.weight"])
            assert (error <= 0.5001 * scale[:, None]).all()
            np.testing.assert_array_equal(tensors[f"{name}.bias"], state[f"encoder.{name}.bias"])
    scale = tensors["embeddings.word.scale"]
    assert (scale[:v] > 0).all() and (scale[v:] == 0).all() and np.isfinite(scale).all()
    assert (tensors["head.bias"][2:] == 0).all()
    np.testing.assert_array_equal(tensors["head.weight"], state["head.weight"])
    # qkv: all of Q, then K, then V
    np.testing.assert_array_equal(state["encoder.layers.0.qkv.weight"].shape, (3 * h, h))


def test_publish_replaces_atomically(tmp_path):
    target = tmp_path / "p"
    for generation in ("old", "new"):
        with package_writer.staging(target) as stage:
            (stage / "x").mkdir()
            (stage / "x" / "manifest.json").write_text(generation)
            package_writer.publish(stage / "x", target)
        assert (target / "manifest.json").read_text() == generation
        assert os.listdir(tmp_path) == ["p"]
    with open(target / "manifest.json") as still_open, package_writer.staging(target) as stage:
        (stage / "manifest.json").write_text("newest")
        package_writer.publish(stage, target)
        assert still_open.read() == "new"
    with pytest.raises(RuntimeError), package_writer.staging(target) as stage:
        (stage / "manifest.json").write_text("never seen")
        raise RuntimeError
    assert os.listdir(tmp_path) == ["p"] and (target / "manifest.json").read_text() == "newest"


def test_leaves_foreign_folders_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="no package"):
        package_writer.check_target(tmp_path / "mine")
    with pytest.raises(InputError, match="is a file"):
        package_writer.check_target(tmp_path / "mine" / "thesis.txt")
    assert package_writer.check_target(tmp_path / "new") == (tmp_path / "new").resolve()


@pytest.fixture
def engine(native):
    return pytest.importorskip("qla_runtime.engine", reason="the engine is not there")


@pytest.mark.parametrize("family", ["Bert", "Roberta"])
@pytest.mark.parametrize("kind", HEADS)
def test_converts_every_family_and_head(engine, tmp_path, texts, family, kind):
    """The whole way: checkpoint to package to engine, near the float32 original."""
    pytest.importorskip("neural_compressor", reason="neural-compressor-pt is not installed")
    from qla_runtime.convert import convert

    folder = save_checkpoint(tmp_path / "checkpoint", family, kind)
    if kind == "embedding":
        add_sentence_layout(folder)
    out = tmp_path / "out" / "package"
    half = {"half": LengthConfig.ratio([0.9, 0.7, 0.5])}
    options = dict(max_length=40, length_configs=half, progress=False)
    done = convert(folder, out, texts, **options)
    assert done["held_out"] and set(done["modes"]) == {"per_token"} and done["calibration_samples"] == 0
    assert done["reference"] == "transformers' float32 model"
    for mode in done["modes"].values():
        assert mode["hidden_cosine_min"] > 0.95 and mode["hidden_cosine_mean"] > 0.98
    assert os.listdir(out.parent) == ["package"]
    assert "| int8, per_token" in (out / "README.md").read_text()


def test_a_failed_conversion_leaves_the_old_package(engine, tmp_path, texts, qa_checkpoint, monkeypatch):
    pytest.importorskip("neural_compressor", reason="neural-compressor-pt is not installed")
    from qla_runtime.convert import convert, pipeline

    out = tmp_path / "package"
    options = dict(calibration_samples=4, length_configs={}, progress=False)
    convert(qa_checkpoint, out, texts, **options)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def fail(*args, **kwargs):
        raise InputError("stop here")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "compare", fail)
        with pytest.raises(InputError, match="stop here"):
            convert(qa_checkpoint, out, texts, activations="static", **options)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["package", "texts.tsv"]
    convert(qa_checkpoint, out, texts, activations="static", no_answer=True, **options)
    assert '"activation": "static"' in (out / "config.json").read_text()
    assert json.loads((out / "config.json").read_text())["task"]["no_answer"] is True


def test_refuses_bad_options(tmp_path, qa_checkpoint, texts):
    pytest.importorskip("neural_compressor", reason="neural-compressor-pt is not installed")
    from qla_runtime.convert import convert

    for option in ({"activations": "int4"}, {"calibration_algo": "mse"}, {"calibration_samples": 0}):
        with pytest.raises(InputError, match=next(iter(option))):
            convert(qa_checkpoint, tmp_path / "p", texts, **option)
    assert not (tmp_path / "p").exists()


# --- report and card ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", HEADS)
def test_report_measures_agreement(kind):
    task = _task(kind)
    ids = np.arange(12, dtype=np.int32)
    samples = [calibration.Sample(ids, ids * 0, ids > 3)] * 3
    rng = np.random.default_rng(2)
    columns = task.outputs or 8
    shape = (12, columns) if kind in ("span-qa", "token-classification") else (columns,)
    results = [(rng.standard_normal((12, 8)), rng.standard_normal(shape)) for _ in samples]
    found = report.compare(
        task,
        samples,
        lambda _: iter(results),
        {
            "same": lambda _: iter(results),
            "turned": lambda _: [(-hidden, -logits) for hidden, logits in results],
        },
        progress=False,
    )
    assert (found["samples"], found["tokens"]) == (3, 36)
    same, turned = found["modes"]["same"], found["modes"]["turned"]
    assert [same[key] for key in ("hidden_cosine_mean", "hidden_cosine_min", "agreement")] == pytest.approx(
        [1] * 3
    )
    assert turned["hidden_cosine_mean"] == pytest.approx(-1) and turned["agreement"] < 1
    text = report.table({**found, "bytes": {"float32": 4e6, "int8": 1e6}})
    assert "int8, turned" in text and "4.0 MB" in text


def test_best_span_stays_in_the_context_and_short():
    ids = np.arange(8, dtype=np.int32)
    sample = calibration.Sample(ids, ids * 0, ids >= 3)
    logits = np.zeros((8, 2))
    logits[1] = 9, 9  # in the question
    logits[3, 0], logits[7, 1], logits[5, 1] = 2, 2, 1
    assert report.best_span(logits, sample, 30) == (3, 7)
    assert report.best_span(logits, sample, 4) == (3, 5)


def test_card_takes_what_the_checkpoint_says():
    text = "---\nlicense: apache-2.0\ndatasets:\n- squad\n- 'nq'\nmodel-index:\n- name: x\n---\n# Hello\n"
    assert card.front_matter(text) == {"license": "apache-2.0", "datasets": "squad, nq"}
    assert card.front_matter("# no front matter\n") == {}
    found = card.Provenance(license="mine").completed(text)
    assert (found.license, found.training_data, found.base_model) == ("mine", "squad, nq", None)


def _task(kind: str):
    from qla_runtime.model.spec import TaskSpec

    labels = {"sequence-classification": ("a", "b", "c"), "token-classification": ("a", "b", "c")}
    return replace(TaskSpec(kind, 40), labels=labels.get(kind, ()))
