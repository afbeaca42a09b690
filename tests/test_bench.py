"""The benchmarks' own machinery, on canned measurements and on a tiny package: no figure here means anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from package_tools import tiny_package

from qla_runtime import Engine, InputError, cli
from qla_runtime.evaluation import squad as evaluate

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # bench/ is no part of an installed package
from bench import kernels, length_adaptation, machine, models, peers, qa_scores, report, workloads  # noqa: E402

RECORD = {
    "machine": {"cpu": "Canned CPU"},
    "machine_in_words": "Canned CPU, 2 CPUs",
    "model": "canned",
    "threads": 2,
    "isa": None,
    "kernels": {"gemm_u8s8": "gemm_u8s8_amx"},
    "accuracy": {
        "full": {"metric": "f1", "value": 84.0, "data": "dev"},
        "fast": {"metric": "f1", "value": 80.0, "data": "dev"},
        "never-run": {"metric": "f1", "value": 70.0, "data": "dev"},
    },
    "peers": ["slow", "quick"],
    "versions": {"slow": {"torch": "2.8.0"}, "quick": {"torch": "2.13.0"}},
    "opening": {"qla": {"import_load_ms": [30, 20, 22], "first_call_ms": [5, 4, 6], "peak_rss_mb": [58, 58, 59]}},
    "times": {
        "1x32": {"qla": [1.0, 9.0, 1.1], "slow": [4.0, 4.0, 4.0]},
        "1x384": {
            "qla": [6.0, 6.2, 50.0],
            "qla fast": [3.1, 3.1, 3.1],
            "slow": [20, 20, 21],
            "quick": [12.4, 3, 13],
        },
    },
    "limits": {"isa": "avx512vnni", "threads": 2, "macs_per_second": 5e11, "bytes_per_second": 2e10},
    "work": {
        "1x32": {"macs": 110_000_000, "weight_bytes": 11_000_000},
        "1x384": {"macs": 1_240_000_000, "weight_bytes": 12_400_000},
    },
    "p99": {
        "1x32": {"qla": 9.0, "slow": 4.0},
        "1x384": {"qla": 50.0, "qla fast": 3.1, "slow": 21.0, "quick": 13.0},
    },
    "absent": {"gone": "ModuleNotFoundError: No module named 'gone'"},
    "refused": {"quick": {"1x32": "too short for it", "8x128": "too short for it"}},
}


def cells(text: str, name: str) -> list[str]:
    """The figures of a table's line."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {name} "))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


class TestReport:
    def test_medians_and_ratios_to_the_fastest_peer(self) -> None:
        text = report.peers_text(RECORD, markdown=True)
        assert cells(text, "case") == ["qla", "slow", "quick", "fastest peer", "ratio"]
        assert cells(text, "1x384") == ["6.20", "20.0", "12.4", "quick", "2.00x"]

    def test_a_length_config_is_compared_with_the_peers_whole_encoder(self) -> None:
        assert cells(report.peers_text(RECORD, markdown=True), "1x384 fast")[0] == "3.10"
        assert cells(report.peers_text(RECORD, markdown=True), "1x384 fast")[-2:] == ["quick", "4.00x"]

    def test_what_was_not_measured_is_a_dash_and_a_sentence(self) -> None:
        text = report.peers_text(RECORD, markdown=True)
        assert cells(text, "1x32") == ["1.10", "4.00", "-", "slow", "3.64x"]
        assert "gone is absent: ModuleNotFoundError: No module named 'gone'" in text
        assert "quick did not run 1x32, 8x128: too short for it" in text

    def test_no_peer_at_all(self) -> None:
        text = report.peers_text(RECORD | {"peers": []}, markdown=True)
        assert cells(text, "1x32") == ["1.10", "-", "-"]

    def test_says_what_the_figures_were_taken_with(self) -> None:
        text = report.peers_text(RECORD | {"isa": "avx2"}, markdown=False)
        for words in ("Canned CPU", "2 threads", "3 interleaved rounds", "capped to avx2", "gemm_u8s8_amx"):
            assert words in text
        assert "- slow: torch 2.8.0\n- quick: torch 2.13.0" in text

    def test_opening_shows_medians(self) -> None:
        assert cells(report.peers_text(RECORD, markdown=True), "qla")[-3:] == ["22", "5", "58"]

    def test_accuracy_against_latency_has_the_configs_that_were_run(self) -> None:
        assert report.accuracy_points(RECORD) == {"full": (6.2, 84.0), "fast": (3.1, 80.0)}

    def test_bounds_stand_beside_every_case(self) -> None:
        text = report.bounds_text(RECORD, markdown=True)
        assert "500 billion multiply-accumulates a second (avx512vnni, on registers), and 20.0 GB/s" in text
        # 1.24e9 / 6.2e-3 s = 2e11 of 5e11 a second; 12.4e6 bytes / 6.2e-3 s = 2e9 of 2e10.
        assert cells(text, "1x384") == ["6.20", "50.0", "12.4", "13.0", "40%", "10%"]
        assert cells(text, "1x32") == ["1.10", "9.00", "4.00", "4.00", "20%", "50%"]

    def test_percentile_99(self) -> None:
        assert report.percentile_99(range(1, 1001)) == 990
        assert report.percentile_99([3.0, 7.0, 5.0]) == 7.0, "the longest of few"

    def test_plots(self, tmp_path) -> None:
        pytest.importorskip("matplotlib")
        assert [path.name for path in report.draw(RECORD, tmp_path)] == ["speed.png", "accuracy.png"]
        assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.iterdir())

    def test_kernels_as_a_share_of_the_peak_of_their_instruction_set(self) -> None:
        kernels = [
            {"operation": "peak", "case": "registers", "isa": "amx", "macs": 4000, "bytes": 0, "ns": [1, 2, 9]},
            {"operation": "gemm", "case": "a", "isa": "amx", "macs": 1000, "bytes": 30, "ns": [1]},
            {"operation": "gemm", "case": "a", "isa": "ref", "macs": 1000, "bytes": 30, "ns": [100]},
        ]
        text = report.kernels_text({"machine_in_words": "Canned CPU", "kernels": kernels}, markdown=True)
        lines = [line for line in text.splitlines() if line.startswith("| gemm a")]
        assert [line.split("|")[-2].strip() for line in lines] == ["50%", "-"]
        assert [line.split("|")[4].strip() for line in lines] == ["2.000", "0.020"]

    def test_throughput_is_relative_to_one_thread_and_one_stream(self) -> None:
        found = [
            {"case": "8x384", "threads": 1, "streams": 1, "sequences_per_second": [50, 52, 51]},
            {"case": "8x384", "threads": 2, "streams": 1, "sequences_per_second": [99, 102, 103]},
        ]
        text = report.throughput_table(found, markdown=True)
        assert [line.split("|")[-2].strip() for line in text.splitlines()[2:]] == ["1.00x", "2.00x"]


class TestShapes:
    def test_the_file_itself(self) -> None:
        cases = {case.name: case for case in workloads.read()}
        assert cases["8x384"].shape == (8, 384)
        assert cases["8x384"].lengths == ("balanced", "fast", "315,251,242,159,142,33")
        assert cases["squad"].shape is None

    def test_sections_are_models(self) -> None:
        text = "1x2\n[bert-base]\n1x2 # again\n1x4\n[packaged]\n1x8\n"
        assert [case.name for case in workloads.parse(text)] == ["1x2", "1x8"]
        assert [case.name for case in workloads.parse(text, section="bert-base")] == ["1x2", "1x4"]
        with pytest.raises(InputError, match=r"no case of \[bert-large\]"):
            workloads.parse(text, section="bert-large")

    def test_every_random_model_has_a_section(self) -> None:
        assert all(workloads.read(section=name) for name in models.SIZES)

    def test_comments_and_empty_lines(self) -> None:
        assert workloads.parse("# all\n\n1x2 fast # small\n") == [workloads.Case("1x2", ("fast",))]

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("1x32\n8by128", "line 2: '8by128' is no case; use BATCHxTOKENS"),
            ("0x32", "out of range"),
            ("1x513", "1 to 512 tokens"),
            ("glue", "squad, squad-sorted, sts, sts-sorted"),
            ("1x32\n1x32 fast", "line 2: '1x32' is there already"),
            ("1x32 315;251", "'315;251'; use a name, or counts"),
            ("# nothing", "there is no case"),
        ],
    )
    def test_errors_name_the_line_and_the_remedy(self, text: str, words: str) -> None:
        with pytest.raises(InputError) as error:
            workloads.parse(text)
        assert str(error.value).startswith("shapes.txt: ") and words in str(error.value)

    def test_an_unknown_choice(self) -> None:
        with pytest.raises(InputError, match="no case 3x3"):
            workloads.read(["1x32", "3x3"])


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    return Path(tiny_package("span-qa").save(tmp_path_factory.mktemp("bench") / "tiny"))


class TestRandomModels:
    def test_every_runtime_opens_the_checkpoint(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
        monkeypatch.setitem(models.SIZES, "tiny", models.Size(2, 64, 2, 128))
        engine = Engine(models.write_package("tiny", tmp_path), num_threads=1)
        original, report = transformers.AutoModel.from_pretrained(
            tmp_path / "checkpoint", add_pooling_layer=False, output_loading_info=True
        )
        assert not report["missing_keys"] and not report["unexpected_keys"]
        ids = [[101, 2054, 2003, 2023, 102]]
        with torch.no_grad():
            right = original(torch.tensor(ids))[0][0].numpy()
        ours = engine.forward(ids).last_hidden_state[0]
        cosine = (ours * right).sum() / np.linalg.norm(ours) / np.linalg.norm(right)
        assert cosine > 0.999
        assert machine.weight_bytes(engine) == models.SIZES["tiny"].linear_weights

    def test_unknown_sizes_are_refused(self) -> None:
        with pytest.raises(InputError, match="no random model 'bert-huge'; use one of bert-base, bert-large"):
            models.write_package("bert-huge", Path("nowhere"))


class TestBatches:
    def test_the_same_ids_each_time_and_never_padding(self, package: Path) -> None:
        engine = Engine.from_pretrained(package)
        first, second = (workloads.batches(workloads.Case("2x5"), engine, None, None) for _ in range(2))
        assert np.array_equal(first, second) and np.shape(first) == (1, 2, 5)
        assert np.min(first) > 0

    def test_real_texts_need_their_file(self, package: Path) -> None:
        with pytest.raises(InputError, match="squad-sorted needs --squad FILE"):
            workloads.batches(workloads.Case("squad-sorted"), Engine.from_pretrained(package), None, None)


class TestPeers:
    def test_one_run(self, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Ours for real; one peer whose interpreter cannot import it, one without an interpreter, one uncapped."""
        broken = tmp_path / "python"
        broken.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'openvino'\" >&2\nexit 1\n")
        broken.chmod(0o755)
        monkeypatch.setattr(workloads, "SHAPES", tmp_path / "shapes.txt")
        monkeypatch.setattr(peers, "FIRST_CALL", "1x4")
        monkeypatch.setattr(peers, "PAUSE", 0)
        monkeypatch.setattr(kernels, "limits", lambda threads, isa: RECORD["limits"])  # saves building it
        workloads.SHAPES.write_text("1x4 nonsense\n2x8\nsts\n")
        options = peers.Options(
            checkpoint="none",
            package=str(package),
            peers=["openvino-int8", "torch-fp32", "onnxruntime-int8"],
            pythons=[f"openvino={broken}", f"torch-fp32={tmp_path / 'nowhere'}"],
            threads=1,
            rounds=2,
            openings=1,
            turn_seconds=0,
            isa=next((isa for isa in peers.ISAS if isa in peers._core.available_isas()), None),
        )
        record = peers.compare(options)
        assert {case: list(runners) for case, runners in record["times"].items()} == {
            "1x4": ["qla"],
            "2x8": ["qla"],
        }
        assert [len(runners["qla"]) for runners in record["times"].values()] == [2, 2]
        assert record["absent"]["openvino-int8"] == "ModuleNotFoundError: No module named 'openvino'"
        assert "nowhere cannot be started" in record["absent"]["torch-fp32"]
        if options.isa:
            assert "cannot be capped" in record["absent"]["onnxruntime-int8"]
        assert "nonsense" in record["refused"]["qla nonsense"]["1x4"]
        assert record["refused"]["everybody"] == {"sts": "the case sts needs --sts FILE"}
        assert record["opening"]["qla"]["peak_rss_mb"][0] > 1
        assert "gemm_u8s8" in record["kernels"]
        assert str(package) not in json.dumps(record["explain"])
        report.peers_text(record, markdown=True)

    def test_a_worker_that_ends_is_absent_from_there_on(self) -> None:
        command = [sys.executable, "-c", "print('{}', flush=True); input(); raise MemoryError('too large')"]
        worker = peers.Worker(command, os.environ)
        with pytest.raises(peers.Absent, match="MemoryError: too large"):
            worker.ask("1x4")
        worker.close()

    def test_interpreters(self) -> None:
        pythons = ["ipex=/ipex", "/all", "openvino-bf16=/bf16"]
        chosen = {
            name: peers.interpreter(name, pythons) for name in ("ipex-int8", "openvino-bf16", "openvino-int8")
        }
        assert chosen == {"ipex-int8": "/ipex", "openvino-bf16": "/bf16", "openvino-int8": "/all"}
        assert peers.interpreter("torch-fp32", ["ipex=/ipex"]) == sys.executable

    def test_caps(self) -> None:
        ours = peers.environment("qla", 2, "avxvnni")
        assert (ours["QLA_MAX_ISA"], ours["ONEDNN_MAX_CPU_ISA"], ours["OMP_NUM_THREADS"]) == (
            "avxvnni",
            "AVX2_VNNI",
            "2",
        )
        assert peers.environment("ipex-int8", 2, "avxvnni")["ATEN_CPU_CAPABILITY"] == "avx2_vnni"
        with pytest.raises(peers.Absent, match="MLAS"):
            peers.environment("onnxruntime-int8", 2, "avx2")


class TestCommand:
    def test_unknown_peers_are_refused(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["bench", "peers", "--checkpoint", "none", "--peers", "tvm"]) == 2
        assert "no peer tvm; use openvino-int8" in capsys.readouterr().err

    def test_outside_a_checkout(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            "qla_runtime.cli.commands.bench.__file__", "/site-packages/qla_runtime/cli/commands/bench.py"
        )
        assert cli.main(["bench", "kernels", "--rounds", "3"]) == 2
        assert "source checkout" in capsys.readouterr().err


def test_the_history_of_pytest_benchmark_stands_by_cpu(tmp_path: Path) -> None:
    options = ["-k", "1x1-full", "--benchmark-autosave", "--benchmark-min-rounds=1", "--benchmark-max-time=0.01"]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(ROOT / "bench/test_encoder.py"),
        *options,
    ]
    # pytest-benchmark measures nothing in a process of pytest-xdist, and takes this one for it by the variable.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, env=environment)
    (run,) = tmp_path.rglob("*.json")
    folder = run.relative_to(tmp_path / ".benchmarks").parts[0]
    assert folder.endswith("-cpus") and machine.cpu_model().split()[0].lower() in folder


class TestQaScores:
    """The script behind docs/question-answering.md runs, on long contexts made of a file's paragraphs."""

    def test_the_tables_have_a_column_per_size(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = "Ada wrote the first program in London , and then slept for a long winter".split()
        paragraphs = []
        for i in range(12):
            context = " ".join((words[i:] + words[:i]) * 4)
            answers = [{"text": words[i - 3], "answer_start": context.index(words[i - 3])}]
            qas = [{"id": str(i), "question": f"What did {words[i]} do?", "answers": answers}]
            paragraphs.append({"context": context, "qas": qas})
        path = tmp_path / "dev.json"
        path.write_text(json.dumps({"data": [{"title": "one", "paragraphs": paragraphs}]}))
        options = ["--articles", "odd", "--questions", "2", "--windows", "3"]
        monkeypatch.setattr(sys, "argv", ["qa_scores", str(path), *options])
        qa_scores.main()
        text = capsys.readouterr().out
        assert text.startswith("2 questions of odd articles")
        assert text.count("| own paragraph | 2 windows | 3 windows |") >= 1


class TestLengthAdaptation:
    """The scripts behind docs/length-adaptation.md run, and their tables say what `qla eval` says."""

    @pytest.fixture
    def data(self, tmp_path: Path) -> Path:
        words = "the quick brown fox jumps over a lazy dog and some more of them".split()
        paragraphs = [
            {
                "context": " ".join(words[i:] + words[:i]),
                "qas": [{"id": str(i), "question": f"which {words[i]}?", "answers": [{"text": words[i - 3]}]}],
            }
            for i in range(9)
        ]
        path = tmp_path / "dev.json"
        path.write_text(json.dumps({"data": [{"title": "odd", "paragraphs": paragraphs}]}))
        return path

    @pytest.fixture
    def run(self, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        package = tiny_package(layers=3).save(tmp_path / "package")

        def run(command: str, *options: str) -> str:
            given = ["x", command, str(data), "--package", str(package), "--articles", "odd", *options]
            monkeypatch.setattr(sys, "argv", given)
            length_adaptation.main()
            return capsys.readouterr().out

        run.package, run.data = package, data
        return run

    def test_accuracy(self, run) -> None:
        engine, text = Engine(run.package), run("accuracy", "--beside", str(run.package))
        for name in engine.lengths:
            score = evaluate.squad(engine, run.data, name)
            assert cells(text, name)[0] == cells(text, name)[3] == f"{score.f1:.2f}"
        assert cells(text, "full")[1:3] == ["+0.00", "1.000"]

    def test_time(self, run) -> None:
        assert float(cells(run("time"), "fast")[1].replace(",", "")) > 0

    def test_budgets(self, run) -> None:
        found = cells(run("budgets", "--ms", "60000", "--questions", "4"), "60000 ms")
        assert found[:4] == ["100.0%"] * 4

    def test_escalate(self, run) -> None:
        text = run("escalate", "--thresholds", "0", "1")
        assert cells(text, "Escalate(fast, full, 0)")[0] == cells(text, "fast")[0]
        assert cells(text, "Escalate(fast, full, 1)")[2] == "100.0%"

    def test_losses(self, run) -> None:
        engine, text = Engine(run.package), run("losses")
        _, lost, out, still_there = cells(text, "fast")
        loss = evaluate.squad(engine, run.data).f1 - evaluate.squad(engine, run.data, "fast").f1
        assert float(lost) == pytest.approx(loss, abs=0.00501)  # printed to 0.01
        assert float(out) + float(still_there) == pytest.approx(loss, abs=0.01001)  # two such figures
