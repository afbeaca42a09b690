"""Every tensor of a checkpoint is used, named in a note, or refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'qla_runtime[convert]')")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from checkpoint_tools import FLOAT32, add_sentence_layout, random_ids, save_checkpoint  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from qla_runtime.checkpoints.reader import open_checkpoint  # noqa: E402
from qla_runtime.errors import InputError, UnsupportedError  # noqa: E402


@pytest.fixture(scope="module")
def tagger(tmp_path_factory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("t") / "tagger", "Bert", "token-classification")


def rewrite(folder: Path, out: Path, change) -> Path:
    """A copy of the checkpoint whose tensors are ``change(tensors)``."""
    shutil.copytree(folder, out)
    tensors = change(load_file(out / "model.safetensors"))
    save_file(
        {k: v.contiguous() for k, v in tensors.items()}, out / "model.safetensors", metadata={"format": "pt"}
    )
    return out


def same_model(one: Path, other: Path) -> bool:
    first, second = (open_checkpoint(folder).load_model().state_dict() for folder in (one, other))
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize(
    "prefix",
    ["_orig_mod.", "module.", "model.", "model._orig_mod.", "module._orig_mod.module.", "_orig_mod.model."],
)
def test_wrapper_prefixes(tagger, tmp_path, prefix):
    wrapped = rewrite(tagger, tmp_path / "x", lambda t: {prefix + name: tensor for name, tensor in t.items()})
    assert same_model(wrapped, tagger)


def test_wrappers_inside_and_missing_family_prefix(tagger, tmp_path):
    inside = rewrite(
        tagger, tmp_path / "in", lambda t: {k.replace("bert.", "bert._orig_mod.module."): v for k, v in t.items()}
    )
    assert same_model(inside, tagger)
    bare = rewrite(tagger, tmp_path / "bare", lambda t: {k.removeprefix("bert."): v for k, v in t.items()})
    assert same_model(bare, tagger)


def test_an_encoder_inside_another_model_is_named(tagger, tmp_path):
    folder = rewrite(tagger, tmp_path / "x", lambda t: {f"backbone.{k}": v for k, v in t.items()})
    with pytest.raises(InputError, match=r"'embeddings\.word.*backbone\.bert\.embeddings\.word.* another model"):
        open_checkpoint(folder)


def test_one_tensor_under_two_names(tagger, tmp_path):
    twice = rewrite(tagger, tmp_path / "x", lambda t: t | {"module.classifier.bias": t["classifier.bias"] + 1})
    with pytest.raises(InputError, match=r"both 'classifier\.bias' and 'module\.classifier\.bias'"):
        open_checkpoint(twice)


@pytest.mark.parametrize("family", ["Bert", "Roberta"])
def test_leftovers_of_pretraining_are_named(tmp_path, family):
    prefix = family.lower()
    tagger = save_checkpoint(tmp_path / "t", family, "token-classification")
    head = "cls.predictions" if family == "Bert" else "lm_head"
    extra = {
        f"{prefix}.embeddings.position_ids": torch.arange(64)[None],
        f"{prefix}.pooler.dense.weight": torch.zeros(64, 64),
        f"{prefix}.pooler.dense.bias": torch.zeros(64),
        f"{head}.decoder.weight": torch.zeros(100, 64),
        f"{head}.bias": torch.zeros(100),
        "qa_outputs.weight": torch.zeros(2, 64),
    }
    folder = rewrite(tagger, tmp_path / "x", lambda t: t | extra)
    notes = " ".join(open_checkpoint(folder).notes)
    assert all(word in notes for word in ("position_ids", "pooler.dense", head, "qa_outputs")), notes
    assert same_model(folder, tagger)


ZERO = torch.zeros(4, 4)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("classifier.lora_A", "adapter"),
        ("bert.encoder.layer.0.attention.self.query.lora_A.default.weight", "adapter"),
        ("bert.encoder.layer.0.output.adapters.ner.adapter_down.0.weight", "adapter"),
        ("classifier.modules_to_save.default.weight", "adapter"),
        ("bert.encoder.layer.0.output.dense.SCB", "quantized already"),
        ("bert.encoder.layer.0.output.dense.weight_scale", "quantized already"),
        ("bert.encoder.layer.0.output.dense.weight.absmax", "quantized already"),
        ("bert.encoder.layer.0.output.dense.qweight", "quantized already"),
        ("crf.transitions", "CRF"),
        ("bert.encoder.layer.0.output.dense.lokr_w1", "merge"),
        ("bert.encoder.layer.0.output.dense.hada_w1_a", "merge"),
        ("prompt_embeddings", "merge"),
        ("bert.encoder.layer.0.output.dense.W_q", "quantized"),
        ("bert.encoder.layer.0.output.dense.weight._data", "quantized"),
        ("bert.encoder.layer.0.output.dense.weight_fake_quant.scale", "quantized"),
        ("bert.encoder.layer.0.output.dense.weight_g", "parametrization"),
        ("bert.encoder.layer.0.output.dense.parametrizations.weight.original0", "parametrization"),
        ("transitions", "CRF"),
        ("bert.encoder.layer.0.attention.self.distance_embedding.weight", "positions"),
        ("linear.weight", "this kind of model does not have"),
        ("projection.weight", "this kind of model does not have"),
        ("bert.encoder.layer.0.attention.self.gate", "this kind of model does not have"),
        ("bert.encoder.layer.3.output.dense.bias", "hold 4 layers"),
        ("classifier.2.weight", "this kind of model does not have"),
        ("evil\x1b[31mname", r"evil\\x1b"),
    ],
)
def test_tensors_that_would_be_lost_are_refused(tagger, tmp_path, name, words):
    folder = rewrite(tagger, tmp_path / "x", lambda t: t | {name: ZERO.clone()})
    with pytest.raises(UnsupportedError, match=words) as error:
        open_checkpoint(folder)
    assert name.isprintable() == (name in str(error.value))


def test_a_whole_peft_model_is_refused(tagger, tmp_path):
    def wrap(tensors):
        return {"base_model.model." + k.replace("query.", "query.base_layer."): v for k, v in tensors.items()}

    with pytest.raises(UnsupportedError, match="adapter"):
        open_checkpoint(rewrite(tagger, tmp_path / "x", wrap))


@pytest.mark.parametrize(
    ("dtype", "fine"),
    [(dtype, True) for dtype in (torch.float16, torch.bfloat16, torch.float64)]
    + [
        (d, False)
        for d in (torch.int8, torch.uint8, torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn)
    ],
    ids=str,
)
def test_dtypes(tagger, tmp_path, dtype, fine):
    name = "bert.encoder.layer.0.output.dense.weight"
    folder = rewrite(tagger, tmp_path / "x", lambda t: t | {name: t[name].to(dtype)})
    if fine:
        want = load_file(tagger / "model.safetensors")[name].to(dtype).float()
        found = open_checkpoint(folder).load_model().state_dict()["encoder.layers.0.ffn_out.weight"]
        assert torch.equal(found, want)
    else:
        with pytest.raises(UnsupportedError, match="weights must be float16"):
            open_checkpoint(folder)


def test_tensors_and_config_must_belong_together(tagger, tmp_path):
    def without(tensors):
        return {k: v for k, v in tensors.items() if ".layer.2." not in k}

    with pytest.raises(InputError, match=r"encoder\.layer\.2\..* is missing; an encoder of this config has it"):
        open_checkpoint(rewrite(tagger, tmp_path / "missing", without))
    name = "bert.embeddings.position_embeddings.weight"
    with pytest.raises(InputError, match=r"shape \(60, 64\), but config\.json asks for \(64, 64\)"):
        open_checkpoint(rewrite(tagger, tmp_path / "short", lambda t: t | {name: t[name][:60]}))
    name = "classifier.weight"
    with pytest.raises(InputError, match=r"config\.json asks for \(5, 64\)"):
        open_checkpoint(rewrite(tagger, tmp_path / "labels", lambda t: t | {name: t[name][:3]}))


def test_companions_that_are_part_of_the_model(tagger, tmp_path):
    folder = Path(shutil.copytree(tagger, tmp_path / "peft"))
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UnsupportedError, match="adapter"):
        open_checkpoint(folder)

    embedder = add_sentence_layout(save_checkpoint(tmp_path / "setfit", "Bert", "embedding"))
    (embedder / "model_head.pkl").write_bytes(b"never opened")
    with pytest.raises(UnsupportedError, match="SetFit"):
        open_checkpoint(embedder)
    assert any("model_head.pkl" in note for note in open_checkpoint(embedder, task="embedding").notes)

    # PyLate's ColBERT: Transformer > Dense, and no pooling at all.
    late = save_checkpoint(tmp_path / "late", "Bert", "embedding")
    listing = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    (late / "modules.json").write_text(
        json.dumps([*listing, {"path": "1_Dense", "type": "pylate.models.Dense.Dense"}])
    )
    with pytest.raises(UnsupportedError, match="Transformer > Dense"):
        open_checkpoint(late, task="embedding")
    (late / "modules.json").write_text(json.dumps(listing))  # as a cross-encoder has it
    assert open_checkpoint(late, task="embedding").task.kind == "embedding"


def test_a_checkpoint_without_a_tokenizer(tagger, tmp_path):
    folder = Path(shutil.copytree(tagger, tmp_path / "x"))
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    with pytest.raises(InputError, match="holds no tokenizer"):
        open_checkpoint(folder)


@pytest.mark.parametrize(("max_length", "kept"), [(None, 4096), (600, 600)])
def test_positions_beyond_the_limit_are_cut(tmp_path, max_length, kept):
    """As bge-m3: 8,194 rows, of which the first two serve no token."""
    folder = save_checkpoint(
        tmp_path / "long", "Roberta", "embedding", max_position_embeddings=8194, num_hidden_layers=1
    )
    theirs = transformers.RobertaModel.from_pretrained(folder, attn_implementation="eager").eval()
    source = open_checkpoint(folder, task="embedding", max_length=max_length)
    assert (source.encoder.max_positions, source.task.max_length) == (kept, kept)
    assert any("8192" in note and str(kept) in note for note in source.notes)
    model = source.load_model()
    ids = random_ids(1, kept)
    with torch.no_grad():
        expected = theirs(input_ids=ids).last_hidden_state
        found = model(ids).last_hidden
    torch.testing.assert_close(found, expected, **FLOAT32)
    with pytest.raises(InputError, match="max_length is 4097; it must be between 8 and 4096.*--max-length"):
        open_checkpoint(folder, task="embedding", max_length=4097)
