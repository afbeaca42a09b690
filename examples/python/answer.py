"""One loaded model, three budgets: python examples/python/answer.py"""

from __future__ import annotations

from pathlib import Path

from qla_runtime import Engine, LengthConfig

context = (Path(__file__).parents[1] / "paragraph.txt").read_text()
questions = [
    "What mortar did Smeaton rediscover?",
    "What set fire to the lantern?",
    "When was the tower in use today lit?",
]

engine = Engine.from_pretrained()
budgets = ["full", "balanced", LengthConfig.ratio([1.0, 0.9, 0.8, 0.6, 0.5, 0.3])]
for budget in budgets:
    print(budget)
    # One call for all questions; a list of lengths would give each its own.
    for result in engine.answer(questions, [context] * len(questions), length=budget):
        print(f"  {result['macs'] / 1e9:5.2f} G MACs  {result['score']:.2f}  {result['answer']}")
