"""``qla bench``: arguments and words."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from qla_runtime.cli.arguments import positive
from qla_runtime.cli.printing import json_text

PEERS_EPILOG = """\
Peers run in processes of their own, each in the interpreter that --peer-python gives it; what each needs is in
bench/requirements-peers.txt. One that cannot be imported is reported as absent, with the reason. Report figures of
an idle machine only.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``qla bench {kernels,encoder,peers,packages,serve}``."""
    kinds = parser.add_subparsers(title="benchmarks", metavar="BENCHMARK", required=True)
    printed = argparse.ArgumentParser(add_help=False)
    output = printed.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print JSON, and nothing else, on standard output")
    output.add_argument("--markdown", action="store_true", help="print the tables in Markdown")
    report = argparse.ArgumentParser(add_help=False, parents=[printed])
    report.add_argument(
        "--isa", metavar="ISA", help="go no higher than avx2, avxvnni, avx512vnni or amx; peers too"
    )
    cases = argparse.ArgumentParser(add_help=False)
    cases.add_argument("--cases", nargs="+", metavar="CASE", help="of bench/shapes.txt (default: all)")
    cases.add_argument(
        "--threads", type=positive, metavar="N", help="per call (default: what this process may use)"
    )
    cases.add_argument("--squad", metavar="FILE", help="dev-v1.1.json, for the cases squad and squad-sorted")
    cases.add_argument("--sts", metavar="FILE", help="sts-test.csv, for the cases sts and sts-sorted")

    kernels = kinds.add_parser(
        "kernels", parents=[report], help="every kernel on one core, as a share of that core's dot-product peak",
        description="Build and run kernel_bench: every kernel, every instruction set present, one core.",
    )  # fmt: skip
    _add_rounds(kernels, 9)
    kernels.add_argument("--build", type=Path, metavar="FOLDER", help="of CMake (default: build/bench)")
    kernels.set_defaults(benchmark=_kernels)

    encoder = kinds.add_parser(
        "encoder", parents=[report, cases], help="the whole encoder: shapes, real texts, length configs, streams",
        description="Time the whole encoder on the cases of bench/shapes.txt.",
    )  # fmt: skip
    _add_rounds(encoder, 15)
    model = encoder.add_mutually_exclusive_group()
    model.add_argument("--model", help="package folder or hub id (default: the packaged SQuAD model)")
    _add_random(model)
    encoder.set_defaults(benchmark=_encoder)

    peers = kinds.add_parser(
        "peers", parents=[report, cases], help="the same weights in other runtimes, round by round",
        description="Time the same weights and token ids in other runtimes, interleaved with ours.",
        epilog=PEERS_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    _add_rounds(peers, 15)
    model = peers.add_mutually_exclusive_group(required=True)
    model.add_argument("--checkpoint", metavar="FOLDER", help="Hugging Face folder that peers load")
    _add_random(model)
    peers.add_argument(
        "--package", metavar="FOLDER", help="the same weights as a qla package (default: the packaged model)"
    )
    peers.add_argument("--peers", nargs="*", metavar="PEER", help="which (default: all)")
    peers.add_argument(
        "--peer-python", action="append", default=[], metavar="[PEER=]PATH",
        help="interpreter of a peer (ipex-int8, or ipex for all that begin so), or of all; repeatable",
    )  # fmt: skip
    peers.add_argument("--openings", type=positive, default=3, metavar="N", help="fresh starts each (default: 3)")
    peers.add_argument(
        "--case-seconds", type=float, default=180.0, metavar="S",
        help="begin no round of a case after so long, but three in any case (default: 180)",
    )  # fmt: skip
    peers.add_argument(
        "--artifacts", metavar="FOLDER",
        help="keep converted models here and use them again; empty it when the checkpoint changes",
    )  # fmt: skip
    peers.add_argument(
        "--out", type=Path, metavar="FOLDER", help="write report.json, report.md and the plots here"
    )
    peers.set_defaults(benchmark=_peers)

    packages = kinds.add_parser(
        "packages", parents=[report], help="packages beside each other: INT8 and ternary, or two models",
        description="Time the same token ids in several packages, which take turns. Also their sizes and memory.",
    )  # fmt: skip
    _add_rounds(packages, 9)
    packages.add_argument("packages", nargs="*", metavar="PACKAGE", help="package folder or hub id, at least two")
    packages.add_argument(
        "--random", metavar="SIZE",
        help="instead, INT8 and ternary random weights of this size: bert-base, bert-large or minilm-l6",
    )  # fmt: skip
    packages.add_argument(
        "--cases", nargs="+", metavar="BxN", default=["1x8", "1x32", "1x128", "1x384", "8x128"],
        help="batches of B sequences of N tokens (default: 1x8 1x32 1x128 1x384 8x128)",
    )  # fmt: skip
    packages.add_argument(
        "--threads", type=positive, metavar="N", help="per call (default: what this process may use)"
    )
    packages.set_defaults(benchmark=_packages)

    serve = kinds.add_parser(
        "serve", parents=[printed],
        help="qla serve under load, beside the engine called directly and a peer's server",
        description="Send real sentences and questions to qla serve, from 1 to 512 clients at once.",
    )  # fmt: skip
    _add_rounds(serve, 3)
    serve.add_argument("--sts", metavar="FILE", help="sts-test.csv: sentences to embed")
    serve.add_argument("--squad", metavar="FILE", help="dev-v1.1.json: questions to answer")
    serve.add_argument("--threads", type=positive, metavar="N", help="of each server (default: what may be used)")
    serve.add_argument(
        "--clients", type=positive, nargs="+", default=[1, 8, 64, 512], metavar="N",
        help="at once, in turn (default: 1 8 64 512)",
    )  # fmt: skip
    serve.add_argument("--seconds", type=float, default=5.0, metavar="S", help="of each load (default: 5)")
    serve.add_argument(
        "--serve", action="append", default=[], metavar="OPTIONS",
        help="run qla serve with these options, in one word such as --serve='--workers 2'; repeatable",
    )  # fmt: skip
    serve.add_argument(
        "--peer-python", metavar="PATH",
        help="interpreter with sentence-transformers[openvino], uvicorn, starlette and orjson: the peer",
    )  # fmt: skip
    serve.add_argument(
        "--overload-ms", type=float, metavar="MS", help="also an overload, with --keep-latency MS and without"
    )
    serve.add_argument("--soak-s", type=float, metavar="S", help="also memory, over so long under full load")
    serve.set_defaults(benchmark=_serve)


def run(arguments: argparse.Namespace) -> None:
    """Runs the benchmark that the arguments of :func:`add_arguments` name, and prints its report."""
    record, text = arguments.benchmark(arguments)
    print(json_text(record, indent=1) if arguments.json else text)


def _add_random(parser: Any) -> None:
    parser.add_argument(
        "--random", metavar="SIZE", help="random weights of this size: bert-base, bert-large or minilm-l6"
    )


def _add_rounds(parser: argparse.ArgumentParser, default: int) -> None:
    parser.add_argument(
        "--rounds",
        type=positive,
        default=default,
        metavar="N",
        help="interleaved; figures are medians (default: %(default)s)",
    )


def _kernels(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from bench import kernels, report

    folder = arguments.build or kernels.BUILD
    record = kernels.record(folder, rounds=arguments.rounds, isa=arguments.isa)
    return record, report.kernels_text(record, arguments.markdown)


def _encoder(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from bench import encoder, report

    names = ("model", "random", "threads", "isa", "cases", "rounds", "squad", "sts")
    record = encoder.record(**{name: getattr(arguments, name) for name in names})
    return record, report.encoder_text(record, arguments.markdown)


def _packages(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from bench import packages

    names = ("packages", "random", "cases", "threads", "isa", "rounds")
    record = packages.record(**{name: getattr(arguments, name) for name in names})
    return record, packages.text(record, arguments.markdown)


def _serve(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from bench import serve

    names = ("sts", "squad", "threads", "clients", "seconds", "rounds", "serve")
    names += ("peer_python", "overload_ms", "soak_s")
    record = serve.record(**{name: getattr(arguments, name) for name in names})
    return record, serve.text(record, arguments.markdown)


def _peers(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from bench import peers, report

    options = peers.Options(
        checkpoint=arguments.checkpoint,
        random=arguments.random,
        package=arguments.package,
        peers=peers.PEERS if arguments.peers is None else arguments.peers,
        pythons=arguments.peer_python,
        cases=arguments.cases,
        threads=arguments.threads,
        isa=arguments.isa,
        rounds=arguments.rounds,
        openings=arguments.openings,
        case_seconds=arguments.case_seconds,
        squad=arguments.squad,
        sts=arguments.sts,
        artifacts=arguments.artifacts,
    )
    record = peers.compare(options)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "report.json").write_text(json_text(record, indent=1) + "\n")
        (arguments.out / "report.md").write_text(report.peers_text(record, markdown=True) + "\n")
        report.draw(record, arguments.out)
    return record, report.peers_text(record, arguments.markdown)
