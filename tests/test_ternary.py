"""Ternary weights (w2a8) and word embeddings: two bits each, and the bits of the same weights stored as bytes."""

from __future__ import annotations

import amx_tools
import numpy as np
import package_tools
import pytest
import raw
from hostile_tools import WEIGHTS, put, refused
from test_bit_equality import LENGTHS, configs

from qla_runtime import Engine, UnsupportedError, _core
from qla_runtime.errors import QlaError
from qla_runtime.model import card, pack
from qla_runtime.model.spec import EncoderSpec

SHAPES = [
    dict(task="span-qa", hidden=128, heads=4, layers=3, intermediate=256),
    dict(task="embedding", family="roberta", hidden=64, heads=1, layers=2, intermediate=192, activation="static"),
]


def all_packed(package):
    return package.as_w2a8().with_ternary_words_packed()


def mixed(package):
    """The first layer and one more linear stay w8a8."""
    return package.as_w2a8(lambda name: "layers.0" not in name and name != "layers.1.ffn_in")


@pytest.fixture(scope="module", params=SHAPES, ids=lambda shape: shape["task"])
def stored_as_bytes(request):
    return package_tools.tiny_package(ternary=True, **request.param)


@pytest.fixture(scope="module")
def batch(stored_as_bytes):
    encoder = stored_as_bytes.config["encoder"]
    lengths = configs(encoder["layers"])
    ragged = raw.random_batch(LENGTHS, encoder["vocab_size"], encoder["type_vocab_size"])
    return ragged, lengths, [i % len(lengths) for i in range(len(LENGTHS))]


@pytest.fixture(scope="module")
def want(stored_as_bytes, batch, tmp_path_factory):
    """What the same weights give as w8a8, which numpy and the other tests check."""
    path = stored_as_bytes.save(tmp_path_factory.mktemp("bytes"))
    return raw.run(_core.Engine(path, isa="ref"), *batch)


def same(got, want) -> None:
    for name in want:
        assert got[name].tobytes() == want[name].tobytes(), name


@pytest.mark.parametrize("packed", [all_packed, mixed])
def test_packed_weights_give_the_bits_of_bytes(stored_as_bytes, batch, want, packed, isa, tmp_path) -> None:
    path = packed(stored_as_bytes).save(tmp_path)
    for threads in (1, 2):
        same(raw.run(_core.Engine(path, isa=isa, num_threads=threads), *batch), want)
    # Few rows and many take different ways (kernels/gemm_dot.h).
    engine = _core.Engine(path, isa=isa)
    ragged, lengths, index = batch
    for s in range(len(LENGTHS)):
        one = raw.select(ragged, [s])
        alone = raw.rows_of(raw.run(engine, one, [lengths[index[s]]]), one, 0)
        assert alone == raw.rows_of(want, ragged, s)


def test_packed_weights_on_emulated_amx(stored_as_bytes, batch, want, amx_emulator, tmp_path) -> None:
    path = all_packed(stored_as_bytes).save(tmp_path / "package")
    same(amx_tools.run(amx_emulator, path, batch[0], batch[2], tmp_path), want)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_that_share_out_columns(threads: int, tmp_path) -> None:
    """1,280 wide: more than 4 MB a layer even in two bits a weight (csrc/encoder/work_split.cpp)."""
    package = package_tools.tiny_package(
        "embedding", layers=1, hidden=1280, heads=20, intermediate=5120, vocab_size=64, ternary=True
    )
    plain, packed = package.save(tmp_path / "plain"), package.as_w2a8().save(tmp_path / "packed")
    for tokens in ([1], [16, 9], [64]):
        ragged = raw.random_batch(tokens, 64, 2)
        same(
            raw.run(_core.Engine(packed, num_threads=threads), ragged),
            raw.run(_core.Engine(plain, num_threads=threads), ragged),
        )


@pytest.mark.parametrize("weights", ["mapped", "resident"])
def test_explain_and_the_bytes_of_a_package(weights: str, tmp_path) -> None:
    package = package_tools.tiny_package("embedding", ternary=True, hidden=128, heads=4, intermediate=256)
    sizes, texts = [], []
    for name, version in {"plain": package, "mixed": mixed(package), "packed": all_packed(package)}.items():
        path = version.save(tmp_path / name)
        sizes.append(len(package_tools.split_safetensors((path / WEIGHTS).read_bytes())[1]))
        texts.append(Engine(path, weights=weights).explain())
    weight_count = 2 * (4 * 128 * 128 + 2 * 128 * 256)
    assert sizes[0] - sizes[2] == weight_count * 3 // 4 + 101 * 128 - 104 * 32
    plain, half, packed = texts
    assert "linear layers 8, w8a8: 8 with" in plain and "gemm_u8s2" not in plain and "ternary" not in plain
    assert "linear layers 8, 5 w8a8 + 3 w2a8: 8 with" in half and "gemm_u8s2" in half and "gemm_u8s8 " in half
    assert "linear layers 8, w2a8: 8 with" in packed and "gemm_u8s8 " not in packed
    assert "weights: 0.3 MB of linear layers" in plain and "weights: 0.1 MB of linear layers" in packed
    assert "word embeddings ternary, two bits a value" in packed


def test_python_packs_as_the_format_says(stored_as_bytes) -> None:
    """Against package_tools, a second reading of docs/file-format.md."""
    for weight in stored_as_bytes.dense.values():
        packed = pack.pack_ternary(weight)
        assert packed.dtype == np.uint8 and packed.tobytes() == package_tools.pack_w2a8(weight).tobytes()
        assert packed.nbytes * 4 == weight.size
        assert (pack.unpack_ternary(packed) == weight).all()
    words = stored_as_bytes.tensors["embeddings.word.weight"]
    packed = pack.pack_ternary_rows(words)
    assert packed.tobytes() == package_tools.pack_words(words).tobytes()
    assert (pack.unpack_ternary_rows(packed, len(words)) == words).all()


@pytest.mark.parametrize("bad", [-2, 2, -128, 127])
def test_python_packs_nothing_else(bad: int) -> None:
    weight = np.zeros((64, 64), np.int8)
    weight[3, 5] = bad
    for function in (pack.pack_ternary, pack.pack_ternary_rows):
        with pytest.raises(QlaError, match=f"ternary weights are -1, 0 and 1, not .*{bad}"):
            function(weight)


def test_the_card_says_how_weights_are_stored() -> None:
    package = package_tools.tiny_package("embedding", ternary=True)
    assert card.weights_in_words(package.config) == card.words_in_words(package.config) == "signed 8 bit"
    packed = all_packed(package).config
    assert card.weights_in_words(packed) == card.words_in_words(packed) == "ternary (2 bit)"
    assert card.weights_in_words(mixed(package).config) == "signed 8 bit in 5 of 8 and ternary (2 bit) in 3 of 8"
    assert card.weights_in_words(mixed(package).config, card.IN_SHORT) == "int8 in 5 of 8 and ternary in 3 of 8"


def test_the_spec_names_ternary_words_alone() -> None:
    shape = dict(layers=2, hidden=64, heads=2, intermediate=128, vocab_size=101, max_positions=64)
    shape |= dict(type_vocab_size=2, norm_eps=1e-12)
    assert "word_embeddings" not in EncoderSpec(**shape).to_json()
    assert EncoderSpec(**shape, word_embeddings="ternary").to_json()["word_embeddings"] == "ternary"


@pytest.mark.parametrize("byte", [0, 4095, 4096, 6143])
@pytest.mark.parametrize("shift", [0, 2, 4, 6])
def test_a_code_3_is_refused(byte: int, shift: int, tmp_path) -> None:
    package = all_packed(package_tools.tiny_package("embedding", ternary=True, hidden=128, heads=4))
    for name in ("layers.1.qkv.weight", "embeddings.word.weight"):
        spoilt = package.copy()
        codes = spoilt.tensors[name].reshape(-1)
        at = byte % (len(codes) - 128)
        codes[at] |= 3 << shift
        message = refused(spoilt.save(tmp_path / name), WEIGHTS, f"byte {at} has the code 3; codes are 0, 1 and 2")
        assert name in message


def test_packages_that_lie_about_their_format(tmp_path) -> None:
    plain = package_tools.tiny_package("embedding", ternary=True)
    packed = all_packed(plain)

    def changed(package, change):
        copy = package.copy()
        change(copy)
        return copy.save(tmp_path / "changed")

    word, weight = "embeddings.word.weight", "layers.0.qkv.weight"
    for package, change, rule in [
        (plain, lambda p: put("linears.0.qkv.type", "w2a8")(p.config), r"it must be U8 \(3, 16, 16, 4\)"),
        (packed, lambda p: put("linears.0.qkv.type", "w8a8")(p.config), r"it must be I8 \(3, 16, 64, 4\)"),
        (plain, lambda p: put("encoder.word_embeddings", "ternary")(p.config), r"it must be U8 \(104, 16\)"),
        (packed, lambda p: p.config["encoder"].pop("word_embeddings"), r"it must be I8 \(101, 64\)"),
        (packed, lambda p: p.tensors.update({weight: p.tensors[weight].view(np.int8)}), "is I8"),
        (
            packed,
            lambda p: p.tensors[word].reshape(-1).__setitem__(-1, 1),
            "byte 1663 must be zero",
        ),
        (packed, lambda p: p.tensors[weight].reshape(-1).__setitem__(0, 2), "the weights of that column"),
        (packed, lambda p: p.manifest.update(weight_layout="k64n16k4"), "packages of version 0.1 hold w8a8 alone"),
    ]:
        refused(changed(package, change), WEIGHTS, rule)


@pytest.mark.parametrize("place", ["linears.0.qkv.type", "encoder.word_embeddings"])
def test_an_unknown_format_is_named_as_older_versions_do(place: str, tmp_path) -> None:
    package = package_tools.tiny_package("embedding")
    put(place, "w1a8")(package.config)
    with pytest.raises(UnsupportedError, match="w1a8"):
        _core.Engine(package.save(tmp_path))
