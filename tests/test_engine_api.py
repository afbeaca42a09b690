"""The Python contract: what each method gives back, on the default model and on tiny ones of every task."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from package_tools import tiny_package

import qla_runtime
from qla_runtime import Engine, InputError, LengthConfig, UnsupportedError, _core, activations, hub
from qla_runtime.texts import text_encoder

QUESTION = "Where was the analytical engine designed?"
PASSAGE = "The analytical engine was designed by Charles Babbage in London."
FILLER = "Bread is made of flour, water and salt, and it is baked in a hot oven until the crust is brown. "
LENGTH_KEYS = ("length", "length_config", "accuracy")
SEQUENCES = [[101, 2073, 2001, 102], [101, 1996, 3194, 2003, 2881, 1999, 2414, 1012, 102], [101, 102]]


@pytest.fixture(scope="module")
def engine() -> Engine:
    package = Path(qla_runtime.__file__).parent / "models" / hub.DEFAULT_PACKAGE
    if not (package / "manifest.json").exists():
        pytest.skip(f"the default package {hub.DEFAULT_PACKAGE} is not in this tree; run qla convert")
    return Engine.from_pretrained()


@pytest.fixture
def tiny(tmp_path):
    """Opens a tiny package of a task."""

    def open_package(task: str, family: str = "bert", **options) -> Engine:
        count = len(list(tmp_path.iterdir()))
        return Engine(tiny_package(task, family, **options).save(tmp_path / f"package-{count}"))

    return open_package


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal bit for bit."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


# ---- answer ---------------------------------------------------------------------------------------


def test_answers(engine):
    result = engine.answer(QUESTION, PASSAGE)
    assert result["answer"] == "London" == PASSAGE[result["start"] : result["end"]]
    assert 0.5 < result["score"] <= 1.0
    assert result["length"] == "full" and result["budget_met"] is None and result["macs"] > 0
    keys = {"answer", "score", "start", "end", *LENGTH_KEYS, "macs", "budget_met", "no_answer", "null_score"}
    assert set(result) == keys
    json.dumps(result)


def test_lists_in_lists_out(engine):
    one = engine.answer(QUESTION, PASSAGE)
    assert engine.answer([QUESTION], [PASSAGE]) == [one]
    pair = engine.answer([QUESTION, "What is bread made of?"], [PASSAGE, FILLER])
    assert pair[0] == one and "flour" in pair[1]["answer"]


def test_a_shorter_length_costs_less_and_says_so(engine):
    custom = LengthConfig.tokens((15, 12, 9, 7, 5, 2))
    full, fast, mixed = engine.answer([QUESTION] * 3, [PASSAGE] * 3, length=["full", "fast", custom])
    assert full["macs"] > fast["macs"] > mixed["macs"]
    assert (fast["length"], mixed["length"]) == ("fast", str(custom))
    assert engine.answer(QUESTION, PASSAGE, length="fast") == fast
    assert engine.answer(QUESTION, PASSAGE, length=engine.lengths["fast"]) == fast


def test_a_long_context_is_searched_in_windows(engine):
    for before in (0, 25, 60):
        context = FILLER * before + PASSAGE + " " + FILLER * (60 - before)
        result = engine.answer(QUESTION, context, details=True)
        assert result["windows"] > 5
        assert result["answer"].endswith("London")
        assert result["end"] == context.index("London") + len("London")
        assert "london" in result["tokens"] and len(result["tokens"]) <= engine.max_length
        assert [len(kept) for kept in result["kept"]] == [len(result["tokens"])] * engine.layers
    assert result["macs"] > 5 * engine.answer(QUESTION, PASSAGE)["macs"]


def test_details_show_what_the_best_window_kept(engine):
    result = engine.answer(QUESTION, PASSAGE, length="fast", details=True)
    assert result["tokens"][0] == "[CLS]" and result["tokens"][-1] == "[SEP]"
    counts = [len(kept) for kept in result["kept"]]
    assert counts == engine.lengths["fast"].config.kept(len(result["tokens"]))


def test_offsets_are_characters_of_the_original(engine):
    context = "Ä 日本 👩‍🔬: the chemist Marie Curie was born in Warsaw."
    result = engine.answer("Where was Marie Curie born?", context)
    assert result["answer"] == "Warsaw" == context[result["start"] : result["end"]]


# ---- what an engine tells -----------------------------------------------------------------------


def test_what_an_engine_tells_cannot_be_changed(tiny):
    engine = tiny("span-qa")
    assert engine.info["layers"] == engine.layers and engine.task_settings["max_length"] == engine.max_length
    engine.info["layers"] = engine.task_settings["max_length"] = 0
    assert engine.layers == 2 and engine.max_length > 0
    tagger = tiny("token-classification")
    tagger.task_settings["labels"].append("more")
    assert "more" not in tagger.labels


# ---- bounded chunks -------------------------------------------------------------------------------


def test_small_chunks_change_nothing(engine, monkeypatch):
    questions = [QUESTION, "What is bread made of?"] * 4
    contexts = [PASSAGE, FILLER, PASSAGE + FILLER, FILLER * 40, FILLER + PASSAGE, FILLER, PASSAGE, PASSAGE]
    length = ["full", "fast"] * 4
    whole = engine.answer(questions, contexts, length=length)
    monkeypatch.setattr(text_encoder, "BATCH_TEXTS", 3)
    assert engine.answer(questions, contexts, length=length) == whole
    monkeypatch.setattr(text_encoder, "BATCH_CHARACTERS", 10)
    assert engine.answer(questions, contexts, length=length) == whole


def test_batches_are_bounded_and_in_order(monkeypatch):
    monkeypatch.setattr(text_encoder, "BATCH_TEXTS", 3)
    monkeypatch.setattr(text_encoder, "BATCH_CHARACTERS", 10)
    texts = ["a", "bb", "c" * 50, "d", "e", "f", "g", "h" * 8, "iii"]
    parts = [texts[part] for part in text_encoder.batches(texts)]
    assert [text for part in parts for text in part] == texts
    assert all(len(part) <= 3 and (len(part) == 1 or sum(map(len, part)) <= 10) for part in parts)


# ---- forward --------------------------------------------------------------------------------------


def test_ragged_and_padded_are_the_same_bits(engine):
    longest = max(map(len, SEQUENCES))
    ids = np.array([row + [0] * (longest - len(row)) for row in SEQUENCES])
    mask = np.array([[1] * len(row) + [0] * (longest - len(row)) for row in SEQUENCES])
    ragged = engine.forward(SEQUENCES, length="fast")
    forms = [
        engine.forward(ids, mask, length="fast"),
        engine.forward(ids.astype(np.int16), mask.astype(bool), np.zeros_like(ids), length="fast"),
        engine.forward(ids.tolist(), mask.tolist(), length="fast"),
    ]
    for padded in forms:
        for a, b in zip(ragged.last_hidden_state, padded.last_hidden_state, strict=True):
            assert same(a, b)
    assert [len(state) for state in ragged.last_hidden_state] == [4, 9, 2]
    rectangle = ragged.padded(fill=-1.0)
    assert rectangle.shape == (3, 9, 384) and (rectangle[0, 4:] == -1).all()
    assert same(rectangle[1], ragged.last_hidden_state[1])


def test_a_sequence_does_not_see_its_batch(engine):
    lengths = ["full", "fast", LengthConfig.ratio((1.0, 0.9, 0.8, 0.7, 0.6, 0.5), keep_cls=False)]
    together = engine.forward(SEQUENCES, length=lengths)
    assert together.length == [str(length) for length in lengths] and len(together) == 3
    for i, (row, length) in enumerate(zip(SEQUENCES, lengths, strict=True)):
        alone = engine.forward([row], length=length)
        assert same(alone.last_hidden_state[0], together.last_hidden_state[i])
        assert same(alone.start_logits[0], together.start_logits[i])
        assert alone.macs[0] == together.macs[i]
        assert all(map(same, alone.kept[0], together.kept[i]))


def test_dropped_tokens_are_carried_and_restored(engine):
    ids = [[101, *range(2000, 2060), 102], SEQUENCES[1]]
    output = engine.forward(ids, length="fast", output_hidden_states=True, output_scores=True)
    for i, row in enumerate(ids):
        states, scores = output.hidden_states[i], output.scores[i]
        assert states.shape == (7, len(row), 384) and scores.shape == (6, len(row))
        assert same(states[-1], output.last_hidden_state[i])
        current = np.arange(len(row))
        for layer, kept in enumerate(output.kept[i]):
            assert len(kept) == engine.lengths["fast"].config.kept(len(row))[layer]
            assert set(kept) <= set(current) and (np.diff(kept) > 0).all()
            present = np.isin(np.arange(len(row)), current)
            assert np.isnan(scores[layer][~present]).all() and np.isfinite(scores[layer][present]).all()
            dropped = np.setdiff1d(np.arange(len(row)), kept)
            assert same(states[layer + 1][dropped], states[layer][dropped])
            current = kept
    assert engine.forward(ids).hidden_states is None and engine.forward(ids).scores is None


def test_each_head_has_its_outputs(tiny):
    ids = [[1, 2, 3], [4, 5]]
    answers = tiny("span-qa").forward(ids)
    assert [row.shape for row in answers.logits] == [(3, 2), (2, 2)]
    assert same(answers.start_logits[0], answers.logits[0][:, 0]) and len(answers.end_logits[1]) == 2
    assert answers.pooled is None
    labels = tiny("sequence-classification").forward(ids)
    assert [row.shape for row in labels.logits] == [(3,), (3,)] and labels.start_logits is None
    tags = tiny("token-classification").forward(ids)
    assert [row.shape for row in tags.logits] == [(3, 5), (2, 5)]
    vectors = tiny("embedding").forward(ids)
    assert vectors.logits is None and [row.shape for row in vectors.pooled] == [(64,), (64,)]


# ---- the other tasks ------------------------------------------------------------------------------


def test_encode(tiny):
    engine = tiny("embedding")
    vectors = engine.encode(["abc", "de f", "g"])
    assert vectors.shape == (3, 64) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=4 * 2.0**-24)  # 4 roundings
    assert same(engine.encode("de f"), vectors[1])
    mixed = engine.encode(["abc", "abcdefgh i"], length=["full", "fast"])
    assert same(mixed[0], vectors[0]) and same(mixed[1], engine.encode("abcdefgh i", length="fast"))


def test_long_texts_are_cut_and_reported(tiny):
    long = "a b c d e f g " * 9
    encoder = tiny("embedding", max_length=32)
    with pytest.warns(UserWarning, match="1 of 2 sentences have more than 32 tokens") as warned:
        encoder.encode([long, "short"])
    assert warned[0].filename == __file__, "the caller's line, not one of ours"
    classifier = tiny("sequence-classification", max_length=32)
    assert [r["truncated"] for r in classifier.classify(["short", long])] == [False, True]
    assert [spans.truncated for spans in tiny("token-classification", max_length=32).tag(["a", long])] == [
        False,
        True,
    ]


def test_classify(tiny):
    engine = tiny("sequence-classification")
    result = engine.classify("good", top_k=None)
    scores = {entry["label"]: entry["score"] for entry in result["scores"]}
    assert set(scores) == set(engine.labels) == {"negative", "neutral", "positive"}
    assert sum(scores.values()) == pytest.approx(1)
    assert result["label"] == max(scores, key=scores.get) and result["score"] == max(scores.values())
    assert len(engine.classify("good", top_k=2)["scores"]) == 2
    assert set(engine.classify("good")) == {"label", "score", *LENGTH_KEYS, "macs", "truncated", "budget_met"}
    pairs = engine.classify(["good", "bad"], ["one", "two"])
    assert pairs[0] == engine.classify("good", "one") != engine.classify("good")


def test_classify_by_problem(tiny):
    many = tiny("sequence-classification", problem="multi_label").classify("good", top_k=None)
    logits = tiny("sequence-classification").forward([[1, 2]]).logits[0]
    assert all(0 < entry["score"] < 1 for entry in many["scores"])
    # The logits are float32, and so is this formula; four roundings.
    np.testing.assert_allclose(activations.sigmoid(logits), 1 / (1 + np.exp(-logits)), rtol=4 * 2.0**-24)
    value = tiny("sequence-classification", problem="regression", labels=["score"])
    ids = value.text_encoder.encode(["good"])[0].ids
    assert value.classify("good")["score"] == value.forward([ids]).logits[0][0]


def test_rank(tiny):
    engine = tiny("sequence-classification", problem="regression", labels=["relevance"])
    documents = ["ab", "c", "d e f", "c"]
    ranked = engine.rank("what", documents)
    scores = [entry["score"] for entry in ranked]
    assert scores == sorted(scores, reverse=True)
    assert sorted(entry["index"] for entry in ranked) == [0, 1, 2, 3]
    twins = [entry["index"] for entry in ranked if entry["index"] in (1, 3)]
    assert twins == [1, 3], "equal scores stay in the caller's order"
    assert ranked[0]["score"] == engine.classify("what", documents[ranked[0]["index"]])["score"]
    assert engine.rank("what", documents, top_k=2) == ranked[:2]


def test_tag_gives_spans_of_the_text(tiny):
    engine = tiny("token-classification")
    text = "ada lives in london, bob in paris."
    spans = engine.tag(text)
    assert [list(s) for s in engine.tag([text, "x"])][0] == list(spans)
    assert spans, "the tiny model finds something in this text"
    for span in spans:
        assert span["text"] == text[span["start"] : span["end"]] and span["label"] in ("PER", "LOC")
        assert 0 < span["score"] <= 1
    assert spans.length == "full" and spans.macs > 0


@pytest.mark.parametrize(
    "task, call, words",
    [
        ("embedding", lambda e: e.answer("a", "b"), ["answer()", "span-qa", "embedding", "engine.encode("]),
        ("span-qa", lambda e: e.encode("a"), ["encode()", "embedding", "engine.answer("]),
        ("span-qa", lambda e: e.classify("a"), ["classify()", "sequence-classification", "engine.answer("]),
        ("embedding", lambda e: e.tag("a"), ["tag()", "token-classification", "engine.encode("]),
        ("token-classification", lambda e: e.rank("a", ["b"]), ["rank()", "engine.tag("]),
        (
            "sequence-classification",
            lambda e: e.rank("a", ["b"]),
            ["one label", "3 labels", "engine.classify("],
        ),
    ],
)
def test_a_method_of_another_task_names_the_right_one(tiny, task, call, words):
    with pytest.raises(UnsupportedError) as error:
        call(tiny(task))
    assert all(word in str(error.value) for word in words), str(error.value)


# ---- the engine itself ----------------------------------------------------------------------------


def test_lengths_have_costs(engine):
    assert list(engine.lengths)[0] == "full" and {"balanced", "fast"} <= set(engine.lengths)
    assert engine.lengths["full"].macs == 4_758_553_344 and engine.lengths["full"].macs_share == 1.0
    assert engine.lengths["fast"].macs < engine.lengths["balanced"].macs < engine.lengths["full"].macs
    assert all(len(entry.config.values) == engine.layers for entry in engine.lengths.values())


@pytest.mark.parametrize("isa", _core.available_isas())
def test_explain_names_what_runs(engine, isa):
    text = Engine(engine.path, isa=isa, num_threads=3).explain()
    assert f"{isa} " in next(line for line in text.splitlines() if line.endswith("<- chosen"))
    assert re.search(r"gemm_u8s8 +gemm_u8s8_(\w+)", text)[1] == isa
    assert re.search(r"threads\D+3\b", text)
    for entry in engine.lengths.values():
        assert f"{entry.name} " in text and f"{entry.macs:,} MACs" in text
    assert "minilm-l6-squad" in repr(engine)


def test_pickles_as_path_and_options(engine):
    sent = pickle.dumps(Engine(engine.path, num_threads=1, streams=2))
    assert len(sent) < 1000
    copy = pickle.loads(sent)
    assert copy.num_threads == 1
    assert same(copy.forward(SEQUENCES).padded(), engine.forward(SEQUENCES).padded())
    assert copy.answer(QUESTION, PASSAGE) == engine.answer(QUESTION, PASSAGE)


def test_opens_relative_paths(tiny, monkeypatch):
    path = tiny("embedding").path
    monkeypatch.chdir(path.parent)
    engine = Engine(path.name)
    sent = pickle.dumps(engine)
    monkeypatch.chdir("/")
    assert same(pickle.loads(sent).encode("a"), engine.encode("a"))


def test_serves_several_threads(engine):
    shared = Engine(engine.path, num_threads=1, streams=2)
    expected = engine.answer(QUESTION, PASSAGE)
    results: list = []
    callers = [
        threading.Thread(target=lambda: results.extend(shared.answer(QUESTION, PASSAGE) for _ in range(5)))
        for _ in range(4)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert results == [expected] * 20


def test_importing_imports_numpy_alone(tmp_path):
    code = """
import sys
import qla_runtime
heavy = {"torch", "transformers", "tokenizers", "tqdm", "huggingface_hub", "argparse"} & set(sys.modules)
assert not heavy, heavy
"""
    environment = os.environ | {"PYTHONPATH": str(Path(qla_runtime.__file__).parent.parent)}
    command = [sys.executable, "-X", "importtime", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    imported = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "numpy" in imported
    assert not imported & {"torch", "transformers", "tokenizers", "tqdm", "huggingface_hub"}


def test_the_tokenizer_waits_for_the_first_text(engine, tmp_path):
    code = f"""
import sys
from qla_runtime import Engine
engine = Engine({str(engine.path)!r})
engine.forward([[101, 102]])
assert "tokenizers" not in sys.modules
engine.answer("who?", "ada")
assert "tokenizers" in sys.modules
"""
    environment = os.environ | {"PYTHONPATH": str(Path(qla_runtime.__file__).parent.parent)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)


def test_a_second_process_shares_the_weights_and_stays_small(engine, tmp_path):
    """The mapping of the weights holds no page of the child's own, and the child peaks below 150 MB."""
    code = f"""
import re
from qla_runtime import Engine
engine = Engine({str(engine.path)!r})
engine.answer("who?", "ada")
header = re.compile("[0-9a-f]+-[0-9a-f]+ ")
weights, kilobytes = False, {{"Rss": 0, "Private_Clean": 0, "Private_Dirty": 0}}
for line in open("/proc/self/smaps"):
    name, _, value = line.partition(":")
    if header.match(line):
        weights = line.rstrip().endswith("model.safetensors")
    elif weights and name in kilobytes:
        kilobytes[name] += int(value.split()[0])
peak = re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]
print(kilobytes["Rss"], kilobytes["Private_Clean"] + kilobytes["Private_Dirty"], peak)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(qla_runtime.__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    resident, private, peak = map(int, done.stdout.split())
    size = (engine.path / "model.safetensors").stat().st_size
    assert resident * 1024 >= size and private == 0 and peak < 150 * 1024


# ---- stages -----------------------------------------------------------------------------------------


def test_stages_are_timed_on_request(tiny):
    engine = tiny("span-qa")
    ids = [[1, 2, 3], [4, 5, 6, 7]]
    assert engine.forward(ids).stage_seconds is None
    began = time.perf_counter()
    seconds = engine.forward(ids, output_stages=True).stage_seconds
    assert list(seconds) == list(_core.STAGES)
    assert all(value >= 0 for value in seconds.values())
    assert 0 < sum(seconds.values()) <= time.perf_counter() - began


def test_verbose_writes_a_line_per_native_call(tiny, monkeypatch, capfd):
    tiny("span-qa").forward([[1, 2, 3]])
    assert capfd.readouterr() == ("", "")
    monkeypatch.setenv("QLA_VERBOSE", "profile")
    tiny("span-qa").forward([[1, 2, 3], [4, 5, 6, 7]])
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("qla profile: 2 sequences, 7 tokens, ")
    assert all(f" {name} " in err for name in _core.STAGES)
    monkeypatch.setenv("QLA_VERBOSE", "yes")
    with pytest.raises(InputError, match="QLA_VERBOSE is 'yes'; it must be 'profile'"):
        tiny("span-qa")
