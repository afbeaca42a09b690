"""The command ``qla``. Results go to standard output, progress and errors to standard error.

Exit status: 0 done, 2 a wrong call or a wrong file (one line says what), 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import json
import math
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from qla_runtime import (
    Engine,
    Escalate,
    InputError,
    LatencyBudget,
    LengthConfig,
    MaxLoss,
    QlaError,
    UnsupportedError,
    __version__,
    cmake_dir,
)
from qla_runtime.cli import render
from qla_runtime.cli import words as cli_words
from qla_runtime.errors import shown
from qla_runtime.evaluation import labels as evaluate_labels
from qla_runtime.evaluation import squad as evaluate
from qla_runtime.lengths.configs import Length
from qla_runtime.progress import bar as _progress
from qla_runtime.search import command as searching
from qla_runtime.tasks.answer import SCORES
from qla_runtime.tasks.label_schemes import SCHEMES
from qla_runtime.tasks.tag import STRATEGIES
from qla_runtime.terminal import visible
from qla_runtime.texts import files as text_files
from qla_runtime.trace import trace
from qla_runtime.training import command as training
from qla_runtime.training.recipes import RECIPES

Read = TypeVar("Read")

STEP = 256
"""Texts per engine call, between two moves of the progress bar."""

_CONTEXT_HELP = "the text that holds the answer, @FILE for a file's, or - for standard input's"
_TEXTS_HELP = (
    "a text, @FILE for one text per line, or - for the lines of standard input (@@ begins a literal @, and texts "
    "that begin with - stand after --)"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit status."""
    _replace_closed_streams()
    if hasattr(sys.stdout, "reconfigure"):
        # A terminal that cannot show a character of an answer should not cost the answer.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = _run(argv)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader (head, less) has gone: nothing is wrong
        _discard(sys.stdout)
        return 0
    except OSError as error:
        _discard(sys.stdout)
        return _fail(f"standard output cannot be written ({error.strerror}); send it elsewhere")
    return status


def _run(argv: Sequence[str] | None) -> int:
    parser = _parser()
    try:
        arguments = parser.parse_args(argv)
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            arguments.command(arguments)
    except SystemExit as stop:  # --help, --version, or a command line that does not parse
        return stop.code if isinstance(stop.code, int) else 0
    except (QlaError, MemoryError, OSError) as error:
        if isinstance(error, OSError) and error.filename is None and error.errno in (errno.EPIPE, errno.ENOSPC):
            raise  # of standard output
        return _fail(cli_words.in_flags(str(error) or type(error).__name__, cli_words.flags_of(parser)))
    return 0


def _replace_closed_streams() -> None:
    """Output that the caller has closed (``>&-``) goes nowhere; Python would have None in its place."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  lives as long as the process


def _discard(stream: Any) -> None:
    """Sends what is left in a stream nowhere; Python would complain again at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


# ---------------------------------------------------------------------------------------- commands


def _answer(arguments: argparse.Namespace) -> None:
    context = _text(arguments.context)
    opened, engine = _timed(lambda: _open(arguments))
    ready = "open and warm up" if arguments.latency_ms is not None else "open"
    seconds, result = _timed(
        lambda: engine.answer(
            arguments.question, context, _chosen_length(arguments), details=True, **_answer_options(arguments)
        )
    )
    if arguments.json:
        counts = [len(positions) for positions in result.pop("kept")]
        tokens = len(result.pop("tokens"))
        _print_json(result | {"kept": counts, "tokens": tokens, "seconds": seconds, "open_seconds": opened})
        return
    block = "█" if "utf" in (sys.stdout.encoding or "").lower() else "#"
    _say(
        render.answer(
            result,
            time=f"{1e3 * seconds:.1f} ms for the call, {1e3 * opened:.1f} ms to {ready} the model",
            show_kept=arguments.show_kept,
            block=block,
        )
    )


def _encode(arguments: argparse.Namespace) -> None:
    texts = _texts(arguments.texts)
    if arguments.out:
        _check_writable(arguments.out)
    engine = _open(arguments)
    length = _chosen_length(arguments)
    options = {
        "prompt_name": arguments.prompt_name,
        "prompt": arguments.prompt,
        "truncate_dim": arguments.truncate_dim,
        "normalize_embeddings": arguments.normalize,
    }
    vectors = [
        row for part in _parts(len(texts), "encode") for row in engine.encode(texts[part], length, **options)
    ]
    if arguments.out:
        _save(arguments.out, vectors)
        _say(f"wrote {len(vectors)} x {len(vectors[0])} float32 to {arguments.out}", sys.stderr)
    if arguments.json:
        _print_json([[float(value) for value in row] for row in vectors])
    elif not arguments.out:
        for text, row in zip(texts, vectors, strict=True):
            _say(f"{render.one_line(text)}\t{render.vector(row)}")


def _classify(arguments: argparse.Namespace) -> None:
    texts = _texts(arguments.texts)
    pairs = _texts(arguments.pair) if arguments.pair else None
    if pairs is not None and len(pairs) != len(texts):
        raise InputError(
            f"there are {len(texts)} texts and {len(pairs)} texts in --pair; give one --pair per text"
        )
    engine = _open(arguments)
    length = _chosen_length(arguments)
    results = [
        result
        for part in _parts(len(texts), "classify")
        for result in engine.classify(texts[part], pairs and pairs[part], length, top_k=arguments.top_k)
    ]
    if arguments.json:
        _print_json(results)
        return
    _warn_of_cut([result["truncated"] for result in results])
    for text, result in zip(texts, results, strict=True):
        scores = result.get("scores", [result])
        _say(f"{render.one_line(text)}\t" + "  ".join(f"{s['label']} {s['score']:.4f}" for s in scores))


def _rank(arguments: argparse.Namespace) -> None:
    documents = _texts(arguments.documents)
    engine = _open(arguments)
    length = _chosen_length(arguments)
    options = {
        "raw_scores": arguments.raw_scores,
        "prompt_name": arguments.prompt_name,
        "prompt": arguments.prompt,
    }
    results = [
        result | {"index": part.start + result["index"]}
        for part in _parts(len(documents), "rank")
        for result in engine.rank(arguments.query, documents[part], length, **options)
    ]
    if not arguments.json:
        _warn_of_cut([result["truncated"] for result in results])
    results = sorted(results, key=lambda result: (-result["score"], result["index"]))[: arguments.top_k]
    if arguments.json:
        _print_json(results)
        return
    for result in results:
        _say(f"{result['score']:9.4f}  {result['index']:>4}  {render.one_line(documents[result['index']])}")


def _tag(arguments: argparse.Namespace) -> None:
    texts = _texts(arguments.texts)
    engine = _open(arguments)
    length = _chosen_length(arguments)
    options = {
        "aggregation_strategy": arguments.aggregation_strategy,
        "label_scheme": arguments.label_scheme,
        "ignore_labels": arguments.ignore_labels,
    }
    results = [spans for part in _parts(len(texts), "tag") for spans in engine.tag(texts[part], length, **options)]
    if arguments.json:
        _print_json(
            [
                {
                    "spans": list(spans),
                    "length": spans.length,
                    "length_config": spans.length_config,
                    "accuracy": spans.accuracy,
                    "macs": spans.macs,
                    "truncated": spans.truncated,
                    "budget_met": spans.budget_met,
                    **({"ran": spans.ran} if spans.ran else {}),
                }
                for spans in results
            ]
        )
        return
    _warn_of_cut([spans.truncated for spans in results])
    for text, spans in zip(texts, results, strict=True):
        _say(render.one_line(text))
        for span in spans:
            place = f"{span['start']}-{span['end']}"
            _say(f"  {span['label']:<8} {span['score']:.4f}  {place:>9}  {render.one_line(span['text'])}")


def _trace(arguments: argparse.Namespace) -> None:
    context = _text(arguments.context)
    lengths = [_length(text) for text in arguments.length] if arguments.length else None
    found = trace(_open(arguments), arguments.question, context, lengths)
    if arguments.html is not None:
        found.write_html(arguments.html)
        _say(f"wrote {arguments.html}", sys.stderr)
    if arguments.json:
        _print_json(found.json())
    elif arguments.html is None:
        plain = not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        print(found.text(styled=not plain, width=shutil.get_terminal_size().columns))


def _explain(arguments: argparse.Namespace) -> None:
    engine = _open(arguments)
    if not arguments.json:
        _say(engine.explain())
        return
    lengths = {name: dataclasses.asdict(entry) for name, entry in engine.lengths.items()}
    facts = {
        "name": engine.name,
        "path": str(engine.path),
        "task": engine.task,
        "num_threads": engine.num_threads,
    }
    _print_json(facts | {"lengths": lengths, "explain": engine.explain()})


def _convert(arguments: argparse.Namespace) -> None:
    from qla_runtime.convert import convert

    report = convert(
        arguments.checkpoint,
        arguments.out,
        arguments.calibrate,
        activations=arguments.activations,
        scales=arguments.scales,
        task=arguments.task,
        max_length=arguments.max_length,
        pooling=arguments.pooling,
        activation=arguments.activation,
        name=arguments.name,
        calibration_algo=arguments.algorithm,
        calibration_samples=arguments.samples,
        articles=arguments.articles,
        compare_activations=arguments.compare,
        skip_bad_rows=arguments.skip_bad_rows,
        no_answer=arguments.no_answer,
    )
    if arguments.json:
        _print_json(report)
    else:
        _say(f"wrote {arguments.out}")


def _train(arguments: argparse.Namespace) -> None:
    report = training.run(arguments, _length)
    if arguments.json:
        _print_json(report)
    else:
        _say(f"wrote {report['checkpoint']}")


def _search(arguments: argparse.Namespace) -> None:
    report = searching.run(arguments)
    if arguments.json:
        _print_json(report)
    else:
        _say(searching.text(report))


def _eval_squad(arguments: argparse.Namespace) -> None:
    questions = evaluate.read_squad(arguments.file, arguments.articles)[: arguments.limit]
    engine = _open(arguments)
    with _progress(len(questions), "squad") as progress:
        score = evaluate.answers(
            engine, questions, _chosen_length(arguments), progress=progress, options=_answer_options(arguments)
        )
    if arguments.json:
        run = {
            "articles": arguments.articles,
            "model": engine.name,
            "length": _length_in_words(arguments),
        }
        facts = dataclasses.asdict(score)
        official = facts.pop("squad2") or {}
        _print_json(facts | official | run)
        return
    print(f"exact match {score.exact_match:.2f}   F1 {score.f1:.2f}")
    which = f"{score.questions} questions ({arguments.articles} articles)"
    print(f"{which}, {score.macs / 1e9:.3f} G MACs each on average")
    if score.within_budget is not None:
        print(f"{score.within_budget:.1%} within {arguments.latency_ms:g} ms")
    print(f"{score.seconds:.1f} s, {score.questions / score.seconds:.1f} questions/s")
    for name, value in (score.squad2 or {}).items():
        print(f"  {name:<18} {value:g}" if "t" == name[-1] and "total" in name else f"  {name:<18} {value:.4f}")


def _eval_sts(arguments: argparse.Namespace) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the second reading, which is scored, warns
        pairs = len(evaluate.read_sts(arguments.file, skip_bad_rows=arguments.skip_bad_rows)[0])
    engine = _open(arguments)
    with _progress(pairs, "sts") as progress:
        score = evaluate.sts(
            engine,
            arguments.file,
            _chosen_length(arguments),
            progress=progress,
            skip_bad_rows=arguments.skip_bad_rows,
        )
    if arguments.json:
        _print_json(dataclasses.asdict(score) | {"model": engine.name, "length": _length_in_words(arguments)})
        return
    print(f"Spearman {score.spearman:.2f} over {score.pairs} pairs, {score.seconds:.1f} s")


def _eval_labels(arguments: argparse.Namespace) -> None:
    examples = arguments.read(arguments.file, skip_bad_rows=arguments.skip_bad_rows)[: arguments.limit]
    engine = _open(arguments)
    with _progress(len(examples), arguments.what) as progress:
        score = arguments.measure(engine, examples, _chosen_length(arguments), progress)
    if arguments.json:
        _print_json(dataclasses.asdict(score) | {"model": engine.name, "length": _length_in_words(arguments)})
    else:
        _say(str(score))


# ------------------------------------------------------------------------------------ command line


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments"):
            message += "; a text that begins with - stands after --"
        self.exit(_fail(f"{message} (see {self.prog} --help)"))


class _CMakeDir(argparse.Action):
    """Prints and exits as ``--version`` does, but asks for the folder only then."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(cmake_dir())
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="qla",
        description="INT8 transformer encoders on Intel CPUs; each call says how many tokens a layer keeps.",
    )
    parser.add_argument("--version", action="version", version=f"qla {__version__}")
    parser.add_argument(
        "--cmake-dir", action=_CMakeDir, help="print the folder for cmake -Dqla_DIR=..., to build C++ against this"
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    engine = argparse.ArgumentParser(add_help=False)
    engine.add_argument(
        "--model",
        help="package folder, minilm-l6-squad, all-minilm-l6-v2, or hub id (default: minilm-l6-squad)",
    )
    engine.add_argument(
        "--threads", type=positive, metavar="N", help="threads per call (default: what this process may use)"
    )
    engine.add_argument(
        "--isa",
        choices=("ref", "avx2", "avxvnni", "avx512vnni", "amx"),
        help="force an instruction set (default: the best that this CPU has)",
    )
    output = argparse.ArgumentParser(add_help=False)
    output.add_argument("--json", action="store_true", help="print JSON, and nothing else, on standard output")
    lengths = argparse.ArgumentParser(add_help=False)
    _add_lengths(lengths.add_mutually_exclusive_group())
    run = [engine, lengths, output]

    def add(
        name: str,
        command: Callable[[argparse.Namespace], None],
        parents: list[Any],
        text: str,
        to: Any = commands,
    ):
        added = to.add_parser(
            name,
            parents=parents,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.epilog = cli_words.example(added.prog.removeprefix("qla "))
        added.set_defaults(command=command)
        return added

    answer = add("answer", _answer, run, "find the answer to a question in a text")
    answer.add_argument("question", metavar="QUESTION")
    answer.add_argument("--context", required=True, metavar="TEXT|@FILE|-", help=_CONTEXT_HELP)
    answer.add_argument("--top-k", type=positive, default=1, metavar="N", help="answers to show (default: 1)")
    _add_answer_options(answer)
    answer.add_argument("--show-kept", action="store_true", help="draw the tokens that each layer keeps")

    follow = add("trace", _trace, [engine, output], "show which words survive each layer")
    follow.add_argument("question", metavar="QUESTION")
    follow.add_argument("--context", required=True, metavar="TEXT|@FILE|-", help=_CONTEXT_HELP)
    follow.add_argument(
        "--length",
        action="append",
        metavar="NAME|VALUES",
        help="a length config, as in qla answer; repeat it to compare (default: all that the package names)",
    )
    follow.add_argument("--html", metavar="FILE", help="write a page with a slider over the layers instead")

    encode = add("encode", _encode, run, "turn sentences into embeddings")
    encode.add_argument("texts", nargs="+", metavar="TEXT|@FILE|-", help=_TEXTS_HELP)
    encode.add_argument("--out", metavar="FILE.npy", help="write the vectors as a numpy array")
    _add_prompts(encode, "every text")
    encode.add_argument(
        "--truncate-dim", type=positive, metavar="N", help="give the first N numbers of each vector"
    )
    encode.add_argument("--normalize", action="store_true", help="bring every vector to length 1")

    classify = add("classify", _classify, run, "label texts, or pairs of texts")
    classify.add_argument("texts", nargs="+", metavar="TEXT|@FILE|-", help=_TEXTS_HELP)
    classify.add_argument(
        "--pair",
        action="append",
        metavar="TEXT|@FILE",
        help="the second text of each pair; repeat it, once per text",
    )
    classify.add_argument("--top-k", type=_top_k, default=1, metavar="N|all", help="labels to show (default: 1)")

    rank = add("rank", _rank, run, "order documents by how well they answer a query")
    rank.add_argument("query", metavar="QUERY")
    rank.add_argument("documents", nargs="+", metavar="DOCUMENT|@FILE|-", help=_TEXTS_HELP)
    rank.add_argument(
        "--top-k", type=_top_k, default=None, metavar="N|all", help="documents to show (default: all)"
    )

    rank.add_argument("--raw-scores", action="store_true", help="show logits, without the model's activation")
    _add_prompts(rank, "the query")

    tag = add("tag", _tag, run, "find labelled spans, such as names, in texts")
    tag.add_argument("texts", nargs="+", metavar="TEXT|@FILE|-", help=_TEXTS_HELP)
    tag.add_argument(
        "--aggregation-strategy",
        choices=STRATEGIES,
        default="words",
        help="how labels of word pieces become spans; docs/tags.md compares them (default: %(default)s)",
    )
    tag.add_argument(
        "--label-scheme", choices=tuple(SCHEMES), help="how labels are written (default: as their names say)"
    )
    tag.add_argument(
        "--ignore-label",
        action="append",
        dest="ignore_labels",
        metavar="LABEL",
        help="a label to leave out; repeat it for several (default: O)",
    )

    add(
        "explain",
        _explain,
        [engine, output],
        "say which kernels run here and why, and what the package holds",
    )
    _add_convert(add, output)

    sets = commands.add_parser("eval", help="measure accuracy on a test set", description="Measure accuracy.")
    kinds = sets.add_subparsers(title="test sets", metavar="SET", required=True)
    squad = add("squad", _eval_squad, run, "exact match and F1 on a SQuAD file, 1.1 or 2.0", kinds)
    squad.add_argument("file", metavar="FILE", help="the JSON file")
    squad.add_argument(
        "--articles", choices=evaluate.ARTICLES, default="all", help="by position; the first is odd"
    )
    squad.add_argument("--limit", type=positive, metavar="N", help="only the first N questions")
    _add_answer_options(squad)
    sts = add("sts", _eval_sts, run, "Spearman correlation on an STS benchmark file", kinds)
    sts.add_argument("file", metavar="FILE", help="an STS benchmark .csv, or a table that names its columns")
    sts.add_argument(
        "--skip-bad-rows", action="store_true", help="leave out rows that cannot be read, and count them"
    )

    evaluate_labels.add_commands(lambda name, text: add(name, _eval_labels, run, text, kinds), positive)

    train = commands.add_parser("train", help="fine-tune a checkpoint", description="Fine-tune a checkpoint.")
    recipes = train.add_subparsers(title="recipes", metavar="RECIPE", required=True)
    for name, recipe in RECIPES.items():
        command = add(name, _train, [output], recipe.summary, recipes)
        training.add_arguments(command, recipe)
        command.epilog = f"{cli_words.example(f'train {name}')}\n\n{command.epilog}"

    find = add("search", _search, [output], "find the length configs worth having, by evolution")
    searching.add_arguments(find)
    find.epilog = f"{cli_words.example('search')}\n\n{find.epilog}"
    _add_bench(commands)
    return parser


def _add_prompts(command: argparse.ArgumentParser, where: str) -> None:
    """The text that the model wants before its input, by name or outright."""
    group = command.add_mutually_exclusive_group()
    group.add_argument(
        "--prompt-name",
        metavar="NAME",
        help=f"put the model's prompt of this name before {where} (default: the model's own choice)",
    )
    group.add_argument("--prompt", metavar="TEXT", help=f"put this text before {where}; an empty one for none")


def _add_lengths(group: argparse._MutuallyExclusiveGroup) -> None:
    """The ways to choose a length; at most one is given."""
    group.add_argument(
        "--length",
        metavar="NAME|VALUES",
        help="a name of the package (full, balanced, fast), or one value per layer with commas between: "
        "ratios such as 1.0,.73,.71 or whole token counts such as 315,251,242 (default: full)",
    )
    group.add_argument(
        "--latency-ms",
        type=float,
        metavar="MS",
        help=f"the most accurate config that is predicted to fit in MS milliseconds (per call of up to {STEP} "
        "texts; in eval squad per question)",
    )
    group.add_argument(
        "--max-loss",
        type=float,
        metavar="POINTS",
        help="the cheapest config within POINTS of full, by the package's measured accuracy",
    )
    group.add_argument(
        "--escalate",
        metavar="CHEAP:DEAR[:THRESHOLD]",
        help="run CHEAP, and again with DEAR what scores below THRESHOLD (default: the package's for these two "
        "names, else 0.5); both as in --length",
    )


def _add_answer_options(parser: argparse.ArgumentParser) -> None:
    """The options of question answering, but for the number of answers."""
    parser.add_argument(
        "--max-answer-tokens",
        type=positive,
        metavar="N",
        help="tokens of an answer (default: the package's limit)",
    )
    parser.add_argument(
        "--doc-stride",
        type=int,
        metavar="N",
        help="tokens that neighbouring windows of a long text share (default: the package's)",
    )
    parser.add_argument(
        "--handle-impossible-answer",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="let 'no answer' win where it is likelier than every span (default: as the package says)",
    )
    parser.add_argument(
        "--null-threshold",
        type=float,
        metavar="P",
        help="say 'no answer' where the null score is above P (default: above the best span's score)",
    )
    parser.add_argument(
        "--score", choices=SCORES, help="what a score means; docs/question-answering.md has the rules"
    )


def _answer_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The same, as ``Engine.answer`` takes them."""
    names = ("top_k", "max_answer_tokens", "doc_stride", "handle_impossible_answer", "null_threshold", "score")
    return {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}


def _add_convert(add: Callable[..., argparse.ArgumentParser], output: argparse.ArgumentParser) -> None:
    convert = add("convert", _convert, [output], "turn a Hugging Face checkpoint into an INT8 package")
    convert.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint folder or hub id")
    convert.add_argument("out", metavar="OUT", help="folder of the package; an older package there is replaced")
    convert.add_argument(
        "--calibrate",
        metavar="TEXTS",
        help="file of typical texts (.txt, .tsv, .csv, .jsonl or SQuAD .json) for the accuracy report and for "
        "static scales (default: the report runs on a few built-in sentences)",
    )
    convert.add_argument(
        "--activations",
        choices=("per_token", "static"),
        default="per_token",
        help="scales of the linear layers' inputs; static ones need --calibrate (default: %(default)s)",
    )
    convert.add_argument(
        "--scales",
        choices=("neural-compressor", "max-abs"),
        help="where the scales come from; max-abs needs numpy alone, and gives the same weights with per_token "
        "activations (default: neural-compressor where it is installed)",
    )
    convert.add_argument("--task", help="what the model is for, where the checkpoint does not say")
    convert.add_argument("--max-length", type=positive, metavar="N", help="tokens that a text is cut at")
    convert.add_argument(
        "--pooling",
        choices=("mean", "cls"),
        help="how a sentence encoder without modules.json makes one vector (default there: mean)",
    )
    convert.add_argument(
        "--activation",
        metavar="NAME",
        help="what makes a reranker's score of its logit, such as sigmoid or identity (default: the checkpoint's)",
    )
    convert.add_argument("--name", help="the package's name (default: the output folder's)")
    convert.add_argument(
        "--algorithm",
        choices=("kl", "minmax"),
        default="kl",
        help="how static ranges are chosen (default: %(default)s)",
    )
    convert.add_argument(
        "--samples", type=positive, default=96, metavar="N", help="texts for static scales (default: 96)"
    )
    convert.add_argument(
        "--compare", action="store_true", help="report both kinds of --activations; calibrates the static one"
    )
    convert.add_argument(
        "--skip-bad-rows", action="store_true", help="leave out rows of TEXTS that cannot be read, and count them"
    )
    convert.add_argument(
        "--articles", choices=("all", "odd"), default="all", help="articles of a SQuAD file to take"
    )

    said = convert.add_mutually_exclusive_group()
    said.add_argument(
        "--no-answer",
        action="store_const",
        const=True,
        help="question answering: the model was trained on questions without an answer (SQuAD 2.0), and may "
        "say so (default: where the checkpoint's name or card says squad2)",
    )
    said.add_argument(
        "--always-answer",
        dest="no_answer",
        action="store_const",
        const=False,
        help="question answering: the model always gives an answer, whatever its name or card says",
    )


def _add_bench(commands: Any) -> None:
    """The benchmarks are in bench/ of a source checkout, which an installed package does not bring."""
    text = "measure speed, beside other runtimes too (needs a source checkout)"
    root = Path(__file__).resolve().parents[2]
    if (root / "bench" / "command.py").is_file():
        sys.path.insert(0, str(root))
        try:
            from bench import command as benchmarks
        finally:
            sys.path.remove(str(root))
        bench = commands.add_parser("bench", help=text, description="Measure speed.")
        bench.set_defaults(command=benchmarks.run)
        benchmarks.add_arguments(bench)
        return
    # Without its options every argument is just a word, so that all calls get the one helpful sentence.
    bench = commands.add_parser("bench", help=text, prefix_chars="\0", add_help=False)
    bench.add_argument("words", nargs="*")
    bench.set_defaults(command=_bench_is_elsewhere)


def _bench_is_elsewhere(_: argparse.Namespace) -> NoReturn:
    raise UnsupportedError(
        "qla bench runs from a source checkout only: clone the repository, pip install -e '.[bench]' there, and "
        "call its qla"
    )


def positive(text: str) -> int:
    """For argparse: a whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1; give a whole number of at least 1")
    return number


def _top_k(text: str) -> int | None:
    return None if text == "all" else positive(text)


positive.__name__ = _top_k.__name__ = "number"  # argparse: "invalid number value: 'x'"


# ------------------------------------------------------------------------------------------ inputs


def _open(arguments: argparse.Namespace) -> Engine:
    engine = Engine.from_pretrained(arguments.model, num_threads=arguments.threads, isa=arguments.isa)
    if getattr(arguments, "latency_ms", None) is not None:
        engine.warm_up()  # a budget is of calls, not of what a first call has to prepare
    return engine


def _chosen_length(arguments: argparse.Namespace) -> Length:
    """What ``--length``, ``--latency-ms``, ``--max-loss`` or ``--escalate`` says; None where none is given."""
    if arguments.latency_ms is not None:
        return LatencyBudget(arguments.latency_ms)
    if arguments.max_loss is not None:
        return MaxLoss(arguments.max_loss)
    if arguments.escalate is not None:
        return _escalation(arguments.escalate)
    return _length(arguments.length)


def _length_in_words(arguments: argparse.Namespace) -> str:
    """The same, as reports show it."""
    length = _chosen_length(arguments)
    return arguments.length or "full" if length is None or arguments.length else str(length)


def _escalation(text: str) -> Escalate:
    """``--escalate``: two lengths and perhaps a threshold, with colons between."""
    cheap, dear, *threshold = text.split(":") if 1 <= text.count(":") <= 2 else ("", "")
    try:
        thresholds = [float(part) for part in threshold]
    except ValueError:
        cheap = ""
    if not cheap or not dear:
        raise InputError(
            f"--escalate {shown(text)} is not CHEAP:DEAR or CHEAP:DEAR:THRESHOLD; give two lengths as in "
            "--length, and a threshold such as 0.5"
        )
    return Escalate(_length(cheap), _length(dear), *thresholds)


def _length(text: str | None) -> str | LengthConfig | None:
    """``--length``: a name, ratios (with a decimal point) or token counts (without)."""
    if text is None or not set(text) <= set("0123456789.,-+eE ") or not any(c.isdigit() for c in text):
        return text
    try:
        values = [float(part) for part in text.split(",")]
        if "inf" in map(str, values):  # digits beyond what a number holds
            raise ValueError
    except ValueError:
        raise InputError(
            f"--length {shown(text)} is neither a name nor numbers with commas between; give one ratio "
            "(1.0,.73,.71) or token count (315,251,242) per layer"
        ) from None
    if any(c in text for c in ".eE"):
        return LengthConfig.ratio(values)
    if not all(map(math.isfinite, values)):
        raise InputError(f"--length {shown(text)} holds a number of too many digits; token counts are below 2^31")
    if set(values) == {1.0}:
        raise InputError(
            f"--length {text!r} would keep 1 token per layer; write ratios with a point (1.0), or use 'full'"
        )
    return LengthConfig.tokens(int(value) for value in values)


def _texts(arguments: Sequence[str]) -> list[str]:
    """Texts of the command line, with the lines of ``@FILE`` and ``-`` in their place. Blank lines count."""
    texts: list[str] = []
    for argument in arguments:
        path = _path(argument)
        if path is None:
            texts.append(_literal(argument))
        else:
            texts += _from_file(path, text_files.read_lines)
    if not texts:
        raise InputError("there are no texts; give at least one line")
    return texts


def _text(argument: str) -> str:
    """A text of the command line, or the whole text of ``@FILE`` or ``-``."""
    path = _path(argument)
    return _literal(argument) if path is None else _from_file(path, text_files.read_text)


def _path(argument: str) -> str | None:
    """The file that an argument stands for, ``-`` for standard input; None where it is a text."""
    if argument == text_files.STANDARD_INPUT:
        return argument
    return argument[1:] if argument.startswith("@") and not argument.startswith("@@") else None


def _literal(argument: str) -> str:
    return argument[1:] if argument.startswith("@@") else argument


def _from_file(path: str, read: Callable[[str], Read]) -> Read:
    try:
        return read(path)
    except InputError as error:
        if os.path.exists(path) or path == text_files.STANDARD_INPUT:
            raise
        raise InputError(f"{error}; @ means a file, write @@ for a literal @") from None


# ----------------------------------------------------------------------------------------- outputs


def _say(text: str, stream: Any = None) -> None:
    """Prints what a person reads; nothing in it is obeyed by the terminal."""
    print(visible(text), file=stream or sys.stdout)


def _check_writable(path: str) -> None:
    """Refuses, before the work, a file that could not be written after it."""
    folder = os.path.dirname(path) or "."
    if (
        os.path.isdir(path)
        or not os.path.isdir(folder)
        or not os.access(path if os.path.exists(path) else folder, os.W_OK)
    ):
        raise InputError(f"--out {path}: cannot be written; give a file in a folder that you may write to")


def _save(path: str, vectors: Sequence[Any]) -> None:
    import numpy as np

    try:
        with open(path, "wb") as file:
            np.save(file, np.stack(vectors))
    except OSError as error:
        raise InputError(f"--out {path}: cannot be written ({error.strerror}); give another file") from None


def _print_json(value: Any) -> None:
    print(json.dumps(value, default=_jsonable))


def _jsonable(value: Any) -> Any:
    if isinstance(value, LengthConfig):
        return dataclasses.asdict(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)


def _parts(count: int, what: str) -> Iterable[slice]:
    """Slices of at most STEP, with a progress bar over them."""
    with _progress(count, what) as progress:
        for start in range(0, count, STEP):
            part = slice(start, min(start + STEP, count))
            yield part
            progress(part.stop - part.start)


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


def _warn_of_cut(truncated: Sequence[bool]) -> None:
    if any(truncated):
        _show_warning(f"{sum(truncated)} of {len(truncated)} texts are longer than the model reads, and were cut")


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    _complain("warning", str(message))


def _fail(message: str) -> int:
    _complain("error", message)
    return 2


def _complain(kind: str, message: str) -> None:
    """One line on standard error."""
    words = (word if len(word) <= 300 else f"{word[:200]}...{word[-50:]}" for word in message.split())
    with contextlib.suppress(OSError):  # nobody reads
        _say(f"qla: {kind}: {' '.join(words)}", sys.stderr)
        sys.stderr.flush()
