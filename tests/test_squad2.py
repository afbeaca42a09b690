"""SQuAD 2.0: the official metrics by hand, files of it, and checkpoints trained on it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from package_tools import tiny_package

from qla_runtime import Engine, InputError, cli
from qla_runtime.evaluation import squad as evaluate
from qla_runtime.evaluation import squad2
from qla_runtime.evaluation.questions import Question, read_squad
from qla_runtime.evaluation.squad2 import Prediction

CONTEXTS = ["ada lives in london.", "bob bakes bread.", "the sea is deep."]


def question(*answers: str) -> Question:
    return Question("id", "who?", "somewhere", answers, True)


def test_the_official_metrics_by_hand():
    """Five questions, the last two without an answer.

    By null score: 0.1 (right), 0.2 (no answer, but a span), 0.3 (half right), 0.6 (no answer), 0.7 (right, but
    "no answer" was said).
    """
    questions = [question("the cat"), question("a black cat", "dog"), question("sea"), question(), question()]
    said = [
        Prediction("Cat!", "Cat!", 0.1),
        Prediction("cat", "cat", 0.3),
        Prediction("", "sea", 0.7),
        Prediction("fish", "fish", 0.2),
        Prediction("", "bird", 0.6),
    ]
    f1 = 2 / 3  # "cat" of "black cat": precision 1, recall 1/2
    assert squad2.metrics(questions, said) == pytest.approx(
        {
            "exact": 100 * 2 / 5,
            "f1": 100 * (1 + f1 + 0 + 0 + 1) / 5,
            "total": 5,
            "HasAns_exact": 100 / 3,
            "HasAns_f1": 100 * (1 + f1) / 3,
            "HasAns_total": 3,
            "NoAns_exact": 50.0,
            "NoAns_f1": 50.0,
            "NoAns_total": 2,
            # From 2 right with no span at all: +1 -1 +0 -1 +1 for exact, +1 -1 +2/3 -1 +1 for F1.
            "best_exact": 100 * 3 / 5,
            "best_exact_thresh": 0.1,
            "best_f1": 100 * 3 / 5,
            "best_f1_thresh": 0.1,
        }
    )


def test_a_threshold_of_all_answers_or_none():
    always = squad2.metrics(
        [question("a1"), question("b")], [Prediction("", "a1", 0.9), Prediction("b", "b", 0.4)]
    )
    assert (always["exact"], always["best_exact"], always["best_exact_thresh"]) == (50, 100, 0.9)
    assert "NoAns_exact" not in always
    never = squad2.metrics(
        [question(), question()], [Prediction("fish", "fish", 0.5), Prediction("", "bird", 0.6)]
    )
    assert (never["exact"], never["best_f1"], never["best_f1_thresh"]) == (50, 100, 0.0)
    assert "HasAns_exact" not in never


def test_answers_without_a_word_are_left_out_as_in_the_official_script():
    assert question("the", "cat").exact_match("a") == 0 and question("the", "cat").f1("cat") == 1
    assert question("the").exact_match("") == question("the").f1("an") == 1
    assert question().exact_match("") == question().f1("") == 1
    assert question().exact_match("cat") == question().f1("cat") == 0
    # SQuAD 1.1 keeps them: its script compares what is left of the texts, and counts common words.
    old = replace(question("the", "cat"), version2=False)
    assert old.exact_match("a") == 1 and old.f1("a") == 0


def squad_file(path: Path, version: str | None, entries: list[dict]) -> Path:
    data = [
        {"paragraphs": [{"context": context, "qas": [{"id": str(i), "question": "who?", **entry}]}]}
        for i, (context, entry) in enumerate(zip(CONTEXTS, entries, strict=True))
    ]
    path.write_text(json.dumps({"data": data} | ({"version": version} if version else {})))
    return path


NONE = {"answers": [], "is_impossible": True, "plausible_answers": [{"text": "bob", "answer_start": 0}]}


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    return tiny_package("span-qa", seed=3).save(tmp_path_factory.mktemp("squad2") / "package")


def test_eval_squad_reads_version_2(package, tmp_path, capsys):
    engine = Engine(package)
    best = [engine.answer("who?", context)["answer"] for context in CONTEXTS]
    entries = [
        {"answers": [{"text": best[0]}], "is_impossible": False},
        NONE,
        {"answers": [{"text": "elsewhere"}]},
    ]
    path = squad_file(tmp_path / "dev.json", "v2.0", entries)
    score = evaluate.squad(engine, path)
    assert (score.exact_match, score.questions) == (pytest.approx(100 / 3), 3)
    assert score.squad2["HasAns_total"] == 2 and score.squad2["NoAns_total"] == 1
    assert score.squad2["exact"] == score.exact_match and score.squad2["f1"] == score.f1
    assert (score.squad2["HasAns_exact"], score.squad2["NoAns_exact"]) == (50, 0)

    silent = evaluate.squad(engine, path, options={"null_threshold": 0.0})
    assert (silent.squad2["HasAns_exact"], silent.squad2["NoAns_exact"]) == (0, 100)

    # A threshold that the metrics propose, given to the engine, reaches what they promise.
    allowed = {"handle_impossible_answer": True}
    proposed = evaluate.squad(engine, path, options=allowed).squad2
    threshold = {"null_threshold": proposed["best_exact_thresh"]}
    assert evaluate.squad(engine, path, options=threshold).squad2["exact"] == pytest.approx(proposed["best_exact"])

    assert cli.main(["eval", "squad", str(path), "--model", str(package), "--json", "--null-threshold", "0"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["NoAns_f1"] == 100 and printed["HasAns_f1"] == 0 and "squad2" not in printed
    assert cli.main(["eval", "squad", str(path), "--model", str(package), "--handle-impossible-answer"]) == 0
    assert "best_exact_thresh" in capsys.readouterr().out


def test_eval_squad_of_version_1_is_as_before(package, tmp_path):
    entries = [{"answers": [{"text": "ada"}]}, {"answers": [{"text": "bread"}]}, {"answers": [{"text": "deep"}]}]
    score = evaluate.squad(Engine(package), squad_file(tmp_path / "one.json", "1.1", entries))
    assert score.squad2 is None
    entries[1] = {"answers": []}
    with pytest.raises(InputError, match=r"data\[1\].*no answers.*is_impossible"):
        read_squad(squad_file(tmp_path / "none.json", "1.1", entries))
    entries[1] = NONE  # a file without a version says so itself
    read = read_squad(squad_file(tmp_path / "unversioned.json", None, entries))
    assert [len(q.answers) for q in read] == [1, 0, 1]


def test_answer_prints_no_answer_and_others(package, capsys):
    arguments = ["answer", "who?", "--context", CONTEXTS[0], "--model", str(package), "--top-k", "3"]
    assert cli.main([*arguments, "--null-threshold", "0"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("(no answer)\n") and "no characters of the context" in out and out.count("  also ") == 2
    assert cli.main([*arguments, "--json", "--max-answer-tokens", "2", "--doc-stride", "3"]) == 0
    printed = json.loads(capsys.readouterr().out)
    expected = Engine(package).answer("who?", CONTEXTS[0], top_k=3, max_answer_tokens=2, doc_stride=3)
    assert printed["answers"] == expected["answers"] and len(printed["answers"]) == 3
    assert cli.main([*arguments, "--json", "--score", "with-null"]) == 0
    assert json.loads(capsys.readouterr().out)["score"] < 1


@pytest.mark.parametrize(
    "name, card, asked, expected",
    [
        ("plain", "", None, False),
        ("roberta-base-squad2", "", None, True),
        ("bert-squad_v2.0", "", None, True),
        ("distilbert-distilled-squad", "", None, False),
        ("squad20-like", "", None, False),
        ("plain", "---\ndatasets:\n- squad_v2\n---\n", None, True),
        ("plain", "---\ndatasets:\n- squad\n---\nnot squad_v2\n", None, False),
        ("plain", "", True, True),
        ("roberta-base-squad2", "", False, False),
    ],
)
def test_convert_finds_or_is_told_whether_there_may_be_no_answer(tmp_path, name, card, asked, expected):
    pytest.importorskip("torch", reason="reading checkpoints needs the [convert] extra")
    from checkpoint_tools import save_checkpoint

    from qla_runtime.checkpoints.reader import open_checkpoint
    from qla_runtime.convert.no_answer import with_no_answer

    folder = save_checkpoint(tmp_path / name, "Bert", "span-qa")
    (folder / "README.md").write_text(card)
    task = with_no_answer(open_checkpoint(folder), asked).task
    assert task.no_answer == expected
    assert task.to_json().get("no_answer", False) == expected
    labels = save_checkpoint(tmp_path / "labels", "Bert", "sequence-classification")
    assert not with_no_answer(open_checkpoint(labels), None).task.no_answer
    with pytest.raises(InputError, match="sequence-classification model"):
        with_no_answer(open_checkpoint(labels), True)
