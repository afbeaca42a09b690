"""What INT8 costs in accuracy: the FP32 checkpoint in transformers against the engine, scored alike.

    python -m bench.accuracy squad dev-v1.1.json --checkpoint HF_FOLDER [--package QLA_FOLDER] [--articles even]
    python -m bench.accuracy sts sts-test.csv --checkpoint HF_FOLDER --package QLA_FOLDER

SQuAD: same windows, same span rule, same F1; only the logits come from another place. STS: sentence-transformers
computes the FP32 embeddings. Needs the packages of the `convert` extra (and sentence-transformers for STS).
"""

from __future__ import annotations

import argparse
import json

import numpy as np
from tqdm import tqdm

from qla_runtime import Engine
from qla_runtime.evaluation import squad as evaluate
from qla_runtime.tasks.answer import AnswerOptions, read_answers
from qla_runtime.texts.windows import QuestionWindows


class Fp32Answers:
    """Answers like Engine.answer, with start and end logits from transformers in float32."""

    def __init__(self, checkpoint: str, engine: Engine) -> None:
        from transformers import AutoModelForQuestionAnswering

        self.model = AutoModelForQuestionAnswering.from_pretrained(checkpoint, dtype="float32").eval()
        self.engine = engine

    def logits(self, windows: QuestionWindows, rows: int = 16) -> np.ndarray:
        """float32 (tokens, 2), in the windows' ragged order; padded batches of similar lengths inside."""
        import torch

        batch = windows.batch
        sizes = np.diff(batch.offsets)
        out = np.empty((len(batch.ids), 2), np.float32)
        order = np.argsort(sizes)
        for part in np.array_split(order, max(1, len(order) // rows)):
            longest = sizes[part].max()
            inputs = {k: np.zeros((len(part), longest), np.int64) for k in ("ids", "types", "mask")}
            for row, w in enumerate(part):
                span = slice(batch.offsets[w], batch.offsets[w + 1])
                inputs["ids"][row, : sizes[w]] = batch.ids[span]
                inputs["types"][row, : sizes[w]] = batch.type_ids[span]
                inputs["mask"][row, : sizes[w]] = 1
            with torch.inference_mode():
                result = self.model(
                    input_ids=torch.from_numpy(inputs["ids"]),
                    token_type_ids=torch.from_numpy(inputs["types"]),
                    attention_mask=torch.from_numpy(inputs["mask"]),
                )
            for row, w in enumerate(part):
                span = slice(batch.offsets[w], batch.offsets[w + 1])
                out[span, 0] = result.start_logits[row, : sizes[w]]
                out[span, 1] = result.end_logits[row, : sizes[w]]
        return out

    def answer(self, questions: list[str], contexts: list[str], length: object = None) -> list[dict]:
        windows = self.engine.windows(questions, contexts)
        logits = self.logits(windows)
        options = AnswerOptions.checked(self.engine.task_settings)
        found = read_answers(windows, logits, contexts, options)
        return [{"answer": answers.entries[0]["answer"], "macs": 0, "budget_met": None} for answers in found]


def squad(args: argparse.Namespace) -> dict:
    engine = Engine.from_pretrained(args.package)
    total = len(evaluate.read_squad(args.data, args.articles)[: args.limit])
    report = {}
    runs = [("int8 full", engine, None), ("fp32", Fp32Answers(args.checkpoint, engine), None)]
    runs += [(f"int8 {name}", engine, name) for name in args.lengths]
    for name, model, length in runs:
        with tqdm(total=total, desc=name) as bar:
            score = evaluate.squad(
                model, args.data, length, articles=args.articles, limit=args.limit, progress=bar.update
            )
        report[name] = {"f1": score.f1, "exact_match": score.exact_match, "seconds": score.seconds}
    return report


class Fp32Sentences:
    """Encodes like Engine.encode, in sentence-transformers."""

    def __init__(self, checkpoint: str) -> None:
        from sentence_transformers import SentenceTransformer

        self.model = SentenceTransformer(checkpoint, device="cpu")

    def encode(self, sentences: list[str], length: object = None) -> np.ndarray:
        return self.model.encode(sentences)


def sts(args: argparse.Namespace) -> dict:
    report = {}
    runs = {"int8 full": Engine.from_pretrained(args.package), "fp32": Fp32Sentences(args.checkpoint)}
    for name, model in runs.items():
        report[name] = {"spearman": evaluate.sts(model, args.data).spearman}
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("test", choices=["squad", "sts"])
    parser.add_argument("data")
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--package", help="package folder; none for the packaged default")
    parser.add_argument("--articles", choices=evaluate.ARTICLES, default="all")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--lengths", nargs="*", default=[], help="named length configs to score as well")
    args = parser.parse_args()
    print(json.dumps({"squad": squad, "sts": sts}[args.test](args), indent=1))


if __name__ == "__main__":
    main()
