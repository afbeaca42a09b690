"""Quantization-aware training: the model that rounds is the engine's, and what it learned survives conversion."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'qla_runtime[train]')")
pytest.importorskip("transformers", reason="transformers is not installed")

from checkpoint_tools import FLOAT32, add_sentence_layout, save_checkpoint  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402
from training_tools import LOOP, assert_same_run, lines, squad, table, train  # noqa: E402

from qla_runtime import Engine, _core  # noqa: E402
from qla_runtime.checkpoints.reader import open_checkpoint  # noqa: E402
from qla_runtime.checkpoints.tokenizer_files import first_token  # noqa: E402
from qla_runtime.convert import convert  # noqa: E402
from qla_runtime.errors import InputError  # noqa: E402
from qla_runtime.model import fake_quantized  # noqa: E402
from qla_runtime.model.fake_quantized import fake_quantize  # noqa: E402
from qla_runtime.model.formats import KEY, LINEARS, LinearFormat, ModelFormat, WordFormat  # noqa: E402
from qla_runtime.model.pack import unpack, unpack_ternary, unpack_ternary_rows  # noqa: E402
from qla_runtime.training.loop import Diverged, Loop  # noqa: E402
from qla_runtime.training.recipes.qat import LOSSES, QatOptions  # noqa: E402
from qla_runtime.training.run_folder import read_log  # noqa: E402

QAT = QatOptions(bits="w2a8", batch_tokens=256)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    return save_checkpoint(
        tmp_path_factory.mktemp("start") / "tiny", "Bert", "sequence-classification", num_labels=2,
        id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1},
    )  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return table(tmp_path_factory.mktemp("data") / "train.tsv")


@pytest.fixture(scope="module")
def whole_run(classifier, data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    train(classifier, data, out, options=QAT)
    return out


# ------------------------------------------------------------------------------------------- formats


def by_hand(weight: np.ndarray, whole: bool) -> tuple[np.ndarray, np.ndarray]:
    """Ternary Weight Networks, one weight at a time."""
    codes, scales = np.zeros(weight.shape), np.ones((len(weight), 1))
    clipped = [[min(max(float(w), -2.5), 2.5) for w in row] for row in weight]
    groups = [range(len(weight))] if whole else [[i] for i in range(len(weight))]
    for rows in groups:
        sizes = [abs(w) for i in rows for w in clipped[i]]
        threshold = 0.7 * sum(sizes) / len(sizes)
        above = [size for size in sizes if size > threshold]
        for i in rows:
            codes[i] = [math.copysign(abs(w) > threshold, w) for w in clipped[i]]
            scales[i] = sum(above) / len(above) if above else 1
    return codes, scales


@pytest.mark.parametrize("granularity", ["channel", "matrix"])
def test_ternary_weights_by_hand(granularity):
    weight = np.random.default_rng(0).normal(size=(6, 64)).astype(np.float32)
    weight[1, 3], weight[4] = 9.0, 0.0
    codes, scale = LinearFormat.ternary(granularity).quantize(weight)
    expected, scales = by_hand(weight, granularity == "matrix")
    np.testing.assert_array_equal(codes, expected)
    np.testing.assert_allclose(scale, scales, rtol=2.0**-23)  # rounded to float32 once; room for the sum's order


@pytest.mark.parametrize(
    "format", [LinearFormat(), LinearFormat.ternary(), LinearFormat.ternary("matrix"), WordFormat(),
               WordFormat("ternary")], ids=str,
)  # fmt: skip
def test_numpy_and_torch_find_the_same_bits(format):
    weight = np.random.default_rng(1).normal(size=(96, 320)).astype(np.float32)
    weight[3], weight[4], weight[5] = 0.0, 1e-42, 20 * weight[5]
    for ours, theirs in zip(format.quantize(weight), format.quantize(torch.from_numpy(weight)), strict=True):
        assert ours.dtype == np.float32 and np.array_equal(ours, theirs.numpy())


def test_a_format_is_written_and_read(tmp_path):
    format = ModelFormat.of(3, "w2a8", granularity="matrix", keep_w8a8=[0], ternary_words=True, quantizers="paper")
    entry = json.loads(json.dumps(format.to_json()))
    assert ModelFormat.from_json(entry, 3) == format
    bad = [
        (None, "damaged"), ([], "damaged"), ({**entry, "linears": 3}, "damaged"),
        ({**entry, "linears": entry["linears"][:2]}, "3 layers"), ({**entry, "more": 1}, "3 layers"),
        ({**entry, "quantizers": "other"}, "cannot run"), ({**entry, "words": {"type": "int2"}}, "cannot run"),
    ]  # fmt: skip
    for change in ({"type": "w4a8"}, {"clip": -1.0}, {"clip": None}, {"granularity": "block"}, {"type": ["w2a8"]}):
        layer = {**entry["linears"][1], "output": {**entry["linears"][1]["output"], **change}}
        bad.append(({**entry, "linears": [entry["linears"][0], layer, layer]}, "cannot run"))
    for value, words in bad:
        with pytest.raises(InputError, match=f"config.json: {KEY} .*{words}"):
            ModelFormat.from_json(value, 3)


# -------------------------------------------------------------------------- the engine and the model


def cosines(checkpoint: Path, package: Path, ids: list[np.ndarray]) -> tuple[np.ndarray, float]:
    """Of every token's last hidden state, and the share of equal decisions."""
    source = open_checkpoint(checkpoint)
    first = first_token(source.tokenizer_json, source.text)
    model = fake_quantize(source.load_model(), source.format, first)
    engine = _core.Engine(str(package))
    found, same = [], []
    for row in ids:
        with torch.inference_mode():
            record = model(torch.from_numpy(row.astype(np.int64))[None])
        offsets = np.array([0, len(row)], np.int64)
        ours = engine.run(row, offsets, np.zeros_like(row), [], None, {"last_hidden", "logits"})
        a, b = ours["last_hidden"].astype(np.float64), record.last_hidden[0].numpy().astype(np.float64)
        found.append((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1))
        same.append(np.array_equal(ours["logits"].argmax(-1).ravel(), record.outputs.argmax(-1).numpy().ravel()))
    return np.concatenate(found), float(np.mean(same))


@pytest.mark.parametrize(
    "options, weights", [
        (QatOptions(batch_tokens=256), "int8"),
        (QAT, "ternary"),
        (
            replace(QAT, granularity="matrix", keep_w8a8=("first", "3"), ternary_embeddings=True),
            "int8 in 8 of 12 and ternary in 4 of 12",
        ),
    ], ids=["w8a8", "w2a8", "mixed"],
)  # fmt: skip
def test_the_engine_computes_what_was_trained(classifier, data, tmp_path, options, weights):
    """Hidden states, in cosine: 0.999 is what issue 14 asks for. Nothing else of the two is the same code."""
    out = Path(train(classifier, data, tmp_path / "run", options=options)["checkpoint"])
    report = convert(out, tmp_path / "package", progress=False)
    assert report["scales"] == "trained" and "fake-quantized" in report["reference"]
    assert report["weights"] == weights
    rows = [line for line in (tmp_path / "package" / "README.md").read_text().splitlines() if " MB" in line]
    assert [row.split("|")[1].strip() for row in rows] == ["fake-quantized", f"{weights}, per_token"]
    rng = np.random.default_rng(0)
    ids = [np.concatenate([[0], rng.integers(4, 100, n), [2]]).astype(np.int32) for n in range(2, 14)]
    found, same = cosines(out, tmp_path / "package", ids)
    assert found.mean() >= 0.9999 and found.min() >= 0.999 and same == 1.0
    assert report["modes"]["per_token"]["hidden_cosine_mean"] >= 0.9999

    # What is stored is what the same object makes of the masters, which kept their float32.
    source = open_checkpoint(out)
    state, stored = source.load_state(), load_file(tmp_path / "package" / "model.safetensors")
    assert source.format == options.format(3)
    for i, layer in enumerate(source.format.linears):
        for name in LINEARS:
            codes, scale = layer[name].quantize(state[f"encoder.layers.{i}.{name}.weight"])
            packed = stored[f"layers.{i}.{name}.weight"]
            assert packed.dtype == (np.uint8 if layer[name].type == "w2a8" else np.int8)
            unpacked = unpack_ternary(packed) if packed.dtype == np.uint8 else unpack(packed)
            np.testing.assert_array_equal(unpacked, codes)
            np.testing.assert_array_equal(stored[f"layers.{i}.{name}.scale"], scale[:, 0])
    codes, _ = source.format.words.quantize(state["encoder.embeddings.word.weight"])
    words = stored["embeddings.word.weight"]
    if options.ternary_embeddings:
        words = unpack_ternary_rows(words, len(codes))
    np.testing.assert_array_equal(words, codes)
    assert set(np.unique(codes)) <= {-1, 0, 1} or not options.ternary_embeddings
    assert (state["encoder.layers.0.qkv.weight"].astype(np.float16) != state["encoder.layers.0.qkv.weight"]).any()


def test_codes_are_exact_products_rounded_once():
    """Of bfloat16 values, as Q, K and V are, many lie at a tie; and u8 of float32 values with a zero point."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 32, generator=generator).bfloat16().float()
    largest = x.abs().amax(-1, keepdim=True)
    codes, _ = fake_quantized._symmetric(x, largest)
    inverse = np.float32(127) / largest.numpy()
    exact = [
        [round(Fraction(float(v)) * Fraction(float(i))) for v in row] for row, (i,) in zip(x, inverse, strict=True)
    ]
    np.testing.assert_array_equal(codes.detach(), exact)

    x = torch.randn(64, 384, generator=generator)
    codes, _ = fake_quantized.per_token(x)
    low, high = x.numpy().min(-1), x.numpy().max(-1)
    inverse = np.float32(255) / (high - low)
    zero = np.round(-low * inverse)
    for row, found, i, z in zip(x, codes, inverse, zero, strict=True):
        exact = [round(Fraction(float(v)) * Fraction(float(i)) + int(z)) - int(z) for v in row]
        np.testing.assert_array_equal(found, np.clip(exact, -z, 255 - z))


def test_one_layer_gives_most_tokens_the_engines_codes(data, tmp_path):
    """The order of sums moves a token's cosine by about 1e-13; a code that differs moves it by 1e-9 and more."""
    start = save_checkpoint(
        tmp_path / "start", "Bert", "sequence-classification", num_labels=2, num_hidden_layers=1,
        id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1},
    )  # fmt: skip
    out = Path(train(start, data, tmp_path / "run", options=QAT, loop=replace(LOOP, steps=1))["checkpoint"])
    convert(out, tmp_path / "package", progress=False)
    rng = np.random.default_rng(0)
    ids = [np.concatenate([[0], rng.integers(4, 100, n), [2]]).astype(np.int32) for n in range(6, 46)]
    found, _ = cosines(out, tmp_path / "package", ids)
    assert (found > 1 - 1e-9).mean() >= 0.95


def test_padding_changes_nothing(classifier):
    """A sequence alone, and with a longer one beside it."""
    source = open_checkpoint(classifier)
    model = fake_quantize(source.load_model(), ModelFormat.of(3, "w2a8"), 0)
    ids = torch.randint(4, 90, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(12) < torch.tensor([[12], [7]])
    with torch.no_grad():
        both, alone = model(ids, None, mask), model(ids[1:, :7])
    torch.testing.assert_close(both.last_hidden[1, :7], alone.last_hidden[0], **FLOAT32)


@pytest.mark.parametrize("quantizers", ["engine", "paper"])
def test_gradients_pass_straight_through(classifier, quantizers):
    """Of int8, they are nearly those of the float model; beyond the clip there are none."""
    source = open_checkpoint(classifier)
    ids = torch.randint(4, 90, (2, 12), generator=torch.Generator().manual_seed(0))
    gradients = []
    for format in (None, ModelFormat.of(3, "w8a8", quantizers=quantizers)):
        model = source.load_model()
        if format is not None:
            fake_quantize(model, format, 0)
        model(ids).outputs[:, 0].sum().backward()
        gradients.append({name: p.grad.flatten() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    least = 0.98 if quantizers == "engine" else 0.5  # the paper's clip cuts some of them
    for name, gradient in gradients[0].items():
        assert torch.cosine_similarity(gradient, gradients[1][name], dim=0) > least, name

    model = source.load_model()
    weight = model.encoder.layers[1].ffn_in.weight
    with torch.no_grad():
        weight[5, 7] = 3.0
    fake_quantize(model, ModelFormat.of(3, "w2a8"), 0)(ids).outputs[:, 0].sum().backward()
    assert weight.grad[5, 7] == 0 and weight.grad[5, 8] != 0


# ------------------------------------------------------------------------------------------ training


def test_w8a8_trains(classifier, data, tmp_path):
    """Against the labels, for which the tiny table has enough to learn from."""
    options = replace(QAT, bits="w8a8", losses=(("labels", 1.0),))
    out = tmp_path / "run"
    train(classifier, data, out, options=options, loop=replace(LOOP, steps=40))
    losses = [entry["labels"] for entry in read_log(out) if "labels" in entry]
    assert np.mean(losses[-8:]) < 0.7 * np.mean(losses[:4])


@pytest.mark.parametrize("gamma", [None, 0.25])
def test_every_loss_is_logged(classifier, data, tmp_path, gamma):
    options = replace(QAT, losses=tuple((name, 1.0) for name in LOSSES), gamma=gamma, length_drop=True)
    out = tmp_path / "run"
    train(classifier, data, out, options=options, loop=replace(LOOP, steps=1))
    (entry,) = read_log(out)
    assert {*LOSSES, "smallest", "random"} <= entry.keys()
    assert all(entry[name] > 0 for name in LOSSES)
    if gamma is not None:
        assert (options.weights["map"], options.weights["output"]) == (0.25, 0.75)


@pytest.mark.parametrize("kind", ["span-qa", "embedding", "regression"])
def test_other_tasks(kind, tmp_path):
    if kind == "span-qa":
        start, data = save_checkpoint(tmp_path / "s", "Bert", kind), squad(tmp_path / "train.json")
    elif kind == "embedding":
        start = add_sentence_layout(save_checkpoint(tmp_path / "s", "Roberta", kind))
        data = lines(tmp_path / "t.txt")
    else:
        start = save_checkpoint(tmp_path / "s", "Bert", "sequence-classification", num_labels=1)
        data = table(tmp_path / "t.tsv", labels=("0.5", "2.5", "4"))
        data.write_text(data.read_text().replace("label", "score"))
    out = train(start, data, tmp_path / "run", options=replace(QAT, length_drop=True))["checkpoint"]
    convert(out, tmp_path / "package", progress=False)
    Engine.from_pretrained(tmp_path / "package")


@pytest.mark.parametrize("at", [1, 4])
def test_killed_and_continued_equals_uninterrupted(classifier, data, whole_run, tmp_path, monkeypatch, at):
    out, advance = tmp_path / "run", Loop._advance

    def killed(self, stream, steps):
        if self._step == at:
            next(stream)
            raise SystemExit
        return advance(self, stream, steps)

    monkeypatch.setattr(Loop, "_advance", killed)
    with pytest.raises(SystemExit):
        train(classifier, data, out, options=QAT)
    monkeypatch.undo()
    train(classifier, data, out, options=QAT)
    assert_same_run(out, whole_run)
    for name in ("model.safetensors", "config.json"):
        assert (out / "final" / name).read_bytes() == (whole_run / "final" / name).read_bytes()


def test_other_settings_are_refused(classifier, data, whole_run):
    for change in ({"granularity": "matrix"}, {"gamma": 0.5}, {"bits": "w8a8"}, {"keep_w8a8": ("last",)}):
        with pytest.raises(InputError, match=next(iter(change)) if change != {"gamma": 0.5} else "losses|gamma"):
            train(classifier, data, whole_run, options=replace(QAT, **change))


def test_divergence_is_named(classifier, data, tmp_path):
    """A weight that sends the gradient beyond float32."""
    options = replace(QAT, losses=(("hidden", 3e38),))
    words = r"step 1: gradient norm is (inf|nan) \(batch 1, epoch 0; features .*checkpoint"
    with pytest.raises(Diverged, match=words):
        train(classifier, data, tmp_path / "run", options=options)


# ------------------------------------------------------------------------------------------- refusals


def test_a_trained_checkpoint_is_not_calibrated_away(whole_run, data, tmp_path):
    for arguments in ({"activations": "static"}, {"compare_activations": True}, {"scales": "max-abs"}):
        with pytest.raises(InputError, match="qla train qat.*would replace them.*per_token.*float checkpoint"):
            convert(whole_run / "final", tmp_path / "package", data, progress=False, **arguments)
    assert not (tmp_path / "package").exists()


def test_the_papers_points_are_noted(classifier, data, tmp_path):
    out = train(classifier, data, tmp_path / "run", options=replace(QAT, quantizers="paper"))["checkpoint"]
    assert ["as in the paper" in note for note in open_checkpoint(out).notes] == [True]
    report = convert(out, tmp_path / "package", progress=False)
    assert report["modes"]["per_token"]["hidden_cosine_mean"] > 0.9


def test_a_trained_checkpoint_teaches_only_in_float(whole_run, classifier, data, tmp_path):
    for start, teacher in ((whole_run / "final", None), (classifier, whole_run / "final")):
        with pytest.raises(InputError, match="trained with roundings.*float checkpoint"):
            train(start, data, tmp_path / "run", options=QAT, teacher=teacher)
    out = train(whole_run / "final", data, tmp_path / "run", options=QAT, teacher=classifier)["checkpoint"]
    assert open_checkpoint(out).format == QAT.format(3)
    # LengthDrop trains a float model, whatever it starts from.
    again = train(whole_run / "final", data, tmp_path / "other")["checkpoint"]
    assert open_checkpoint(again).format is None


def test_settings_are_refused(classifier, data, tmp_path):
    for change, words in (
        ({"bits": "w4a8"}, "bits is 'w4a8'; it must be one of w8a8, w2a8"),
        ({"losses": (("maps", 1.0),)}, "losses holds 'maps'; it may hold labels, prediction"),
        ({"losses": (("map", -1.0),)}, "weight -1; it must be 0 or more"),
        ({"losses": (("map", 1.0), ("map", 2.0))}, "map twice"),
        ({"losses": (("map", 0.0),)}, "nothing would be learned"),
        ({"gamma": 1.5}, "gamma is 1.5"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            replace(QAT, **change)
    deep = save_checkpoint(
        tmp_path / "deep", "Bert", "sequence-classification", num_labels=2, num_hidden_layers=4,
        id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1},
    )  # fmt: skip
    sentences = add_sentence_layout(save_checkpoint(tmp_path / "sentences", "Bert", "embedding"))
    labels = replace(QAT, losses=(("labels", 1.0),))
    for start, file, options, teacher, words in (
        (classifier, data, replace(QAT, keep_w8a8=("4",)), None, "keep_w8a8 holds '4'.*from 1 to 3"),
        (classifier, data, QAT, deep, "teacher deep has 4 layers.*prediction"),
        (classifier, data, labels, classifier, "would teach nothing"),
        (sentences, lines(tmp_path / "t.txt"), labels, None, "embeddings have none"),
    ):
        with pytest.raises(InputError, match=words):
            train(start, file, tmp_path / "run", options=options, teacher=teacher)
        assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="new head, which has nothing to teach"):
        train(classifier, data, tmp_path / "run", options=QAT, new_head=True)
