"""MiniLM's losses against the formulas written out, its students, and what does not fit together."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'qla_runtime[train]')")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from checkpoint_tools import add_sentence_layout, save_checkpoint  # noqa: E402
from minilm_tools import LOOP, V1, V2, corpus, distil  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from training_tools import LOSS, SANDWICH, batch_of, lines, saved, squad, table, train  # noqa: E402

from qla_runtime import Engine  # noqa: E402
from qla_runtime.checkpoints.reader import open_checkpoint  # noqa: E402
from qla_runtime.convert import convert  # noqa: E402
from qla_runtime.errors import InputError, UnsupportedError  # noqa: E402
from qla_runtime.training import losses, run  # noqa: E402
from qla_runtime.training.device import Device  # noqa: E402
from qla_runtime.training.loop import Diverged  # noqa: E402
from qla_runtime.training.plot import draw  # noqa: E402
from qla_runtime.training.recipes.minilm import MiniLMOptions  # noqa: E402
from qla_runtime.training.recipes.qat import QatOptions  # noqa: E402
from qla_runtime.training.run_folder import read_log  # noqa: E402
from qla_runtime.training.student import Distillation, StudentShape  # noqa: E402
from qla_runtime.training.teacher import LiveTeacher  # noqa: E402


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("teacher") / "t", "Bert", "embedding")


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    return corpus(tmp_path_factory.mktemp("text") / "corpus.txt")


# ---------------------------------------------------------------------------------- the formulas


def relation(x, y, heads, lengths):
    """R[b][a][t][s] = softmax over the real tokens s of x_t . y_s / sqrt(d), of head a's d channels."""
    d = x.shape[2] // heads
    found = []
    for b, n in enumerate(lengths):
        of_sequence = []
        for a in range(heads):
            channels = range(a * d, (a + 1) * d)
            rows = []
            for t in range(n):
                row = [math.exp(sum(x[b, t, c] * y[b, s, c] for c in channels) / math.sqrt(d)) for s in range(n)]
                rows.append([value / sum(row) for value in row])
            of_sequence.append(rows)
        found.append(of_sequence)
    return found


def mean_divergence(teacher, student, heads, lengths):
    """1/B sum over b of 1/(heads n_b) sum over heads and real tokens of KL(teacher || student)."""
    total = 0.0
    for b, n in enumerate(lengths):
        part = 0.0
        for a in range(heads):
            for t in range(n):
                for s in range(n):
                    p, q = teacher[b][a][t][s], student[b][a][t][s]
                    part += p * (math.log(p) - math.log(q))
        total += part / (heads * n)
    return total / len(lengths)


def layer_projections(folder, layer, ids, lengths):
    """Queries, keys and values of a layer, by transformers and by the checkpoint's own matrices."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    mask = np.arange(ids.shape[1]) < np.array(lengths)[:, None]
    with torch.no_grad():
        states = model(
            input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask).long(),
            output_hidden_states=True,
        ).hidden_states[layer]  # fmt: skip
        attention = model.encoder.layer[layer].attention.self
        return [getattr(attention, name)(states).double().numpy() for name in ("query", "key", "value")]


SMALLER = dict(hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)


@pytest.mark.parametrize(
    ("options", "shape", "heads"),
    [
        (MiniLMOptions(relations="v1"), {"num_hidden_layers": 2}, 2),
        (MiniLMOptions(relation_heads=8), SMALLER, 8),
        (MiniLMOptions(relation_heads=4, teacher_layer=1), SMALLER, 4),
    ],
)
def test_losses_of_a_padded_batch_are_the_formulas(teacher, tmp_path, options, shape, heads):
    student = save_checkpoint(tmp_path / "s", "Bert", "embedding", **shape)
    lengths, ids = (7, 3, 5), np.random.default_rng(0).integers(4, 100, (3, 9))
    device = Device(torch.device("cpu"), bf16=False)
    source, small = (open_checkpoint(folder, task="embedding") for folder in (teacher, student))
    recipe = options.make(small.load_model(), None, device, LiveTeacher(source, device))
    mask = np.arange(9) < np.array(lengths)[:, None]
    batch = replace(batch_of(mask.tolist()), input_ids=torch.from_numpy(ids))
    (only,) = recipe.losses(batch, np.random.default_rng(0))

    layer = 2 if options.teacher_layer is None else options.teacher_layer
    theirs = layer_projections(teacher, layer, ids, lengths)
    ours = layer_projections(student, 1, ids, lengths)
    pairs = {"attention": (0, 1), "values": (2, 2)}
    if options.relations == "v2":
        pairs = {"queries": (0, 0), "keys": (1, 1), "values": (2, 2)}
    expected = {}
    for name, (x, y) in pairs.items():
        aim, found = (relation(parts[x], parts[y], heads, lengths) for parts in (theirs, ours))
        expected[name] = mean_divergence(aim, found, heads, lengths)
    # Besides the loss's roundings, the states are of two implementations, and as far apart as those.
    close = 2 * LOSS
    assert {name: value.item() for name, value in only.terms.items()} == pytest.approx(expected, rel=close)
    whole = sum(expected.values()) / (1 if options.relations == "v1" else 3)
    assert only.total.item() == pytest.approx(whole, rel=close)


def test_equal_models_are_at_no_distance_and_padding_gets_no_gradient():
    x, mask = torch.randn(2, 5, 64, requires_grad=True), torch.arange(5) < torch.tensor([[5], [3]])
    assert losses.relation_distance((x, x), (x, x), 4, mask).item() == 0
    losses.relation_distance((x, x), (torch.randn(2, 5, 128),) * 2, 4, mask).backward()
    assert x.grad[0].abs().min() > 0 and x.grad[1, :3].abs().min() > 0 and not x.grad[1, 3:].any()


# ------------------------------------------------------------------------------------- students


def test_a_copied_student(teacher, text, tmp_path):
    start = Distillation.open(teacher, text, StudentShape(layers=2, copy_layers=(0, 2)))
    model, theirs = start.load_model(0), start.source.load_model()
    assert len(model.encoder.layers) == 2 and not start.new_words
    for ours, number in ((0, 0), (1, 2)):
        for name, tensor in model.encoder.layers[ours].state_dict().items():
            assert torch.equal(tensor, theirs.encoder.layers[number].state_dict()[name])
    assert torch.equal(model.encoder.embeddings.word.weight, theirs.encoder.embeddings.word.weight)


def test_even_layers_end_with_the_last(teacher, text):
    def copied(layers, **changes):
        return Distillation.open(teacher, text, StudentShape(layers, copy_layers="even", **changes)).copied

    assert [copied(n) for n in (1, 2, 3)] == [(2,), (0, 2), (0, 1, 2)]


def test_a_random_student_trains_its_word_embeddings(teacher, text, tmp_path):
    out = tmp_path / "run"
    distil(teacher, text, out, options=V2)
    shape = StudentShape(layers=2, hidden=128, heads=4, intermediate=192)
    before = Distillation.open(teacher, text, shape).load_model(LOOP.seed)
    after = load_file(max((out / "checkpoints").iterdir()) / "model.safetensors")
    assert not torch.equal(after["encoder.embeddings.word.weight"], before.encoder.embeddings.word.weight)
    # Nothing behind the last queries, keys and values has a gradient, and nothing decays there.
    last = before.encoder.layers[-1].state_dict()
    for name in ("output.weight", "ffn_in.weight", "ffn_out.bias", "ffn_norm.weight"):
        assert torch.equal(after[f"encoder.layers.1.{name}"], last[name])
    assert not torch.equal(after["encoder.layers.1.qkv.weight"], last["qkv.weight"])
    config = json.loads((out / "final" / "config.json").read_text())
    assert (config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]) == (128, 192, 2)
    loaded, info = transformers.AutoModel.from_pretrained(out / "final", output_loading_info=True)
    assert not info["unexpected_keys"] and {key.split(".")[0] for key in info["missing_keys"]} <= {"pooler"}


@pytest.mark.parametrize("options", [V1, V2])
def test_the_distance_falls(teacher, text, tmp_path, options):
    distil(teacher, text, tmp_path / "run", options=options, loop=replace(LOOP, steps=40, checkpoint_minutes=9))
    entries = [entry for entry in read_log(tmp_path / "run") if "values" in entry]
    names = {"attention", "values"} if options is V1 else {"queries", "keys", "values"}
    assert names < set(entries[0])
    for name in names:
        values = [entry[name] for entry in entries]
        assert np.mean(values[-8:]) < 0.8 * np.mean(values[:8]), name


def test_the_plot_shows_losses_alone(teacher, text, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    distil(teacher, text, tmp_path / "run", options=V2)
    legend = draw(read_log(tmp_path / "run")).axes[0].get_legend()
    assert {label.get_text() for label in legend.get_texts()} == {"queries", "keys", "values"}


@pytest.mark.parametrize("family", ["Roberta", "Electra"])
def test_every_family_teaches(family, text, tmp_path):
    """With the head of another task, which the student does not get."""
    source = save_checkpoint(tmp_path / "t", family, "token-classification")
    final = distil(source, text, tmp_path / "run", options=V2)["checkpoint"]
    student = open_checkpoint(final, task="span-qa", new_head=True)
    assert student.encoder.hidden == 128 and "id2label" not in json.loads(
        (Path(final) / "config.json").read_text()
    )
    loaded = transformers.AutoModel.from_pretrained(final)
    assert type(loaded).__name__ == f"{family}Model"


def test_a_sentence_encoders_student_is_one(text, tmp_path):
    source = add_sentence_layout(save_checkpoint(tmp_path / "t", "Bert", "embedding"))
    options = MiniLMOptions(student_layers=2, copy_layers="even", batch_tokens=256)
    final = distil(source, text, tmp_path / "run", options=options)["checkpoint"]
    student = open_checkpoint(final)
    assert (student.task.kind, student.task.normalize, student.encoder.layers) == ("embedding", True, 2)
    quantized = QatOptions(bits="w2a8", batch_tokens=256)
    trained = train(Path(final), lines(tmp_path / "t.txt"), tmp_path / "qat", loop=LOOP, options=quantized)
    assert open_checkpoint(trained["checkpoint"]).format is not None
    with pytest.raises(InputError, match="the teacher was trained with roundings"):
        distil(trained["checkpoint"], text, tmp_path / "again", options=options)


def test_convert_opens_the_student(text, tmp_path):
    source = add_sentence_layout(save_checkpoint(tmp_path / "t", "Bert", "embedding"))
    final = distil(source, text, tmp_path / "run", options=V2)["checkpoint"]
    convert(final, tmp_path / "package", scales="max-abs", progress=False)
    engine = Engine.from_pretrained(tmp_path / "package")
    assert engine.encode(["w5 w6 w7"]).shape == (1, 128)


def test_length_drop_opens_the_student(teacher, text, tmp_path):
    final = distil(teacher, text, tmp_path / "run", options=V2)["checkpoint"]
    data = table(tmp_path / "t.tsv", labels=("no", "yes"))
    tuned = train(Path(final), data, tmp_path / "fine", loop=LOOP, task="sequence-classification")["checkpoint"]
    assert open_checkpoint(tuned).task.labels == ("no", "yes")
    answers = squad(tmp_path / "train.json")
    assert train(Path(final), answers, tmp_path / "qa", loop=LOOP, task="span-qa")["steps"] == LOOP.steps


def test_a_teacher_assistant(teacher, text, tmp_path):
    """The student of one run teaches the next."""
    first = distil(teacher, text, tmp_path / "one", options=replace(V2, student_layers=3))["checkpoint"]
    options = MiniLMOptions(relations="v1", student_layers=2, copy_layers="even", batch_tokens=256)
    second = distil(first, text, tmp_path / "two", options=options)["checkpoint"]
    assert open_checkpoint(second, task="embedding").encoder.layers == 2
    again = MiniLMOptions(student=str(second), relation_heads=8, batch_tokens=256)
    third = distil(teacher, text, tmp_path / "three", options=again)["checkpoint"]
    assert open_checkpoint(third, task="embedding").encoder.hidden == 128


# ------------------------------------------------------------------------- what does not fit


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(relation_heads=6), "relation_heads is 6, which .* the teacher's width of 64.*64 and 64"),
        (dict(teacher_layer=3), "teacher_layer is 3; the teacher has the layers 0 to 2"),
        (dict(relations="v1", student_hidden=128, student_heads=4), "2 heads and the student 4.*take v2"),
        (dict(copy_layers=(0, 3)), "copy_layers names layer 3; the teacher has the layers 0 to 2"),
        (dict(copy_layers=(0, 1), student_layers=3), "copy_layers names 2 layers, and the student has 3"),
        (dict(copy_layers="even", student_layers=4), "4 layers, and the teacher 3 to copy"),
        (dict(copy_layers="even", student_hidden=128, student_heads=4), "hidden is 128, and the teacher's is 64"),
        (dict(copy_layers="even", student_intermediate=64), "intermediate is 64, and the teacher's is 128"),
        (dict(student_hidden=100), "the student: hidden_size is 100; the kernels take a multiple of 64"),
        (dict(student="x", student_layers=2), "student is a checkpoint.*leave out"),
    ],
)  # fmt: skip
def test_what_does_not_fit(teacher, text, tmp_path, options, message):
    start = MiniLMOptions(**options)
    with pytest.raises((InputError, UnsupportedError), match=message):
        distil(teacher, text, tmp_path / "run", options=start)
    assert not (tmp_path / "run").exists()


def test_relation_heads_divide_both_widths(teacher):
    wide, narrow = (replace(open_checkpoint(teacher, task="embedding").encoder, hidden=n) for n in (384, 256))
    assert MiniLMOptions().heads(wide, wide) == 24  # 16 wide, as the paper's 48 of 768
    with pytest.raises(InputError, match="48, which does not divide the student's width of 256.*384 and 256"):
        MiniLMOptions(relation_heads=48).heads(wide, narrow)


def test_settings_of_v2_with_v1():
    for settings in ({"relation_heads": 4}, {"teacher_layer": 1}):
        with pytest.raises(InputError, match="is of v2"):
            MiniLMOptions(relations="v1", **settings)


def test_a_larger_student_is_allowed(teacher, text, tmp_path):
    options = MiniLMOptions(student_layers=4, student_hidden=128, student_heads=4, batch_tokens=256)
    assert distil(teacher, text, tmp_path / "run", options=options)["steps"] == LOOP.steps


def test_another_vocabulary(teacher, text, tmp_path):
    other = save_checkpoint(tmp_path / "s", "Bert", "embedding")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["w4"], vocabulary["w5"] = vocabulary["w5"], vocabulary["w4"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match="its tokenizer is not the student's.*same vocabulary"):
        distil(teacher, text, tmp_path / "run", options=MiniLMOptions(student=str(other)))


def test_what_the_recipe_does_not_take(teacher, text, tmp_path):
    for more in ({"teacher": teacher}, {"task": "embedding"}, {"new_head": True}, {"skip_bad_rows": True}):
        with pytest.raises(InputError, match="minilm takes no task, new_head, skip_bad_rows or teacher"):
            distil(teacher, text, tmp_path / "run", options=V1, **more)
    with pytest.raises(InputError, match="length-drop takes one file"):
        run.train(teacher, [text, text], tmp_path / "run", options=SANDWICH, loop=LOOP)


def test_nan_names_step_and_batch(teacher, text, tmp_path, monkeypatch):
    out, distance, calls = tmp_path / "run", losses.relation_distance, []

    def poisoned(*arguments):
        calls.append(1)
        return distance(*arguments) * (float("nan") if len(calls) == 8 else 1)

    monkeypatch.setattr(losses, "relation_distance", poisoned)
    with pytest.raises(Diverged, match=r"step 3: keys is nan.*batch 3, epoch 0; features \d+, .*step 2 is intact"):
        distil(teacher, text, out, options=V2)
    weights, state = saved(out)
    assert state["step"] == 2
    monkeypatch.undo()
    distil(teacher, text, out, options=V2)
    assert saved(out)[1]["step"] == LOOP.steps
