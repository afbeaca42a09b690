"""transformers' pipelines on this engine: the same call, the same results, and ``length=`` beside it.

::

    from qla_runtime import pipeline

    oracle = pipeline("question-answering")
    oracle(question="Who wrote it?", context="It was written by Ada.", length="fast")

transformers is not needed, and neither is torch.
"""

from __future__ import annotations

import os
from typing import Any, Literal, overload

from qla_runtime.engine import Engine
from qla_runtime.errors import InputError, UnsupportedError, shown
from qla_runtime.hub import PACKAGED
from qla_runtime.pipelines.base import Pipeline
from qla_runtime.pipelines.feature_extraction import FeatureExtractionPipeline
from qla_runtime.pipelines.question_answering import QuestionAnsweringPipeline
from qla_runtime.pipelines.text_classification import TextClassificationPipeline
from qla_runtime.pipelines.token_classification import TokenClassificationPipeline
from qla_runtime.pipelines.zero_shot_classification import ZeroShotClassificationPipeline

PIPELINES: dict[str, type[Pipeline]] = {
    each.task: each
    for each in (
        QuestionAnsweringPipeline,
        TextClassificationPipeline,
        TokenClassificationPipeline,
        FeatureExtractionPipeline,
        ZeroShotClassificationPipeline,
    )
}
"""The pipeline of each task. Where no task is named, the first one that a package is for."""

ALIASES = {"sentiment-analysis": "text-classification", "ner": "token-classification"}
"""Other names of tasks."""

Model = str | os.PathLike[str] | Engine | None
"""What ``pipeline`` takes as a model."""

_MEANINGLESS = {
    "device_map": "the engine runs on CPUs",
    "dtype": "a package's numbers are those that it was converted to",
    "torch_dtype": "a package's numbers are those that it was converted to",
    "config": "a package has its own config.json",
    "trust_remote_code": "a package holds no code",
    "model_kwargs": "pass the engine's options (num_threads, streams, isa, weights) themselves",
    "token": "log in with huggingface_hub",
    "return_all_scores": "pass top_k=None",
}
"""Arguments of transformers' ``pipeline`` that mean nothing here, and why."""


@overload
def pipeline(
    task: Literal["question-answering"], model: Model = None, **options: Any
) -> QuestionAnsweringPipeline: ...


@overload
def pipeline(
    task: Literal["text-classification", "sentiment-analysis"], model: Model = None, **options: Any
) -> TextClassificationPipeline: ...


@overload
def pipeline(
    task: Literal["token-classification", "ner"], model: Model = None, **options: Any
) -> TokenClassificationPipeline: ...


@overload
def pipeline(
    task: Literal["feature-extraction"], model: Model = None, **options: Any
) -> FeatureExtractionPipeline: ...


@overload
def pipeline(
    task: Literal["zero-shot-classification"], model: Model = None, **options: Any
) -> ZeroShotClassificationPipeline: ...


@overload
def pipeline(task: str | None = None, model: Model = None, **options: Any) -> Pipeline: ...


def pipeline(
    task: str | None = None,
    model: Model = None,
    *,
    tokenizer: Any = None,
    framework: str | None = None,
    device: Any = None,
    revision: str | None = None,
    num_threads: int | None = None,
    streams: int = 1,
    isa: str | None = None,
    weights: str | None = None,
    **options: Any,
) -> Pipeline:
    """Opens a model for one of transformers' tasks.

    Args:
        task: ``"question-answering"``, ``"text-classification"`` (or ``"sentiment-analysis"``),
            ``"token-classification"`` (or ``"ner"``), ``"feature-extraction"``, ``"zero-shot-classification"``;
            None takes what the model was made for.
        model: as for :meth:`Engine.from_pretrained`, or an engine; None takes the packaged model of the task.
        tokenizer: None, or the same as ``model``: a package has its own tokenizer.
        framework: accepted as in transformers, without an effect.
        device: None, -1 or ``"cpu"``.
        revision: branch, tag or commit of a hub id.
        num_threads: as for :class:`Engine`.
        streams: as for :class:`Engine`.
        isa: as for :class:`Engine`.
        weights: as for :class:`Engine`.
        options: defaults of the options that the pipeline's calls take, ``length`` and ``latency_ms`` among them.

    Raises:
        InputError: an unknown task or option, or a task without a packaged model and no model.
        PackageError: there is no package, or it is damaged.
        UnsupportedError: the model is for another task.
    """
    if task is None and model is None:
        raise InputError("pipeline() needs a task, a model, or both; for example pipeline('question-answering')")
    if not isinstance(task, (str, type(None))):
        raise InputError(f"task is {shown(task)}; use one of {', '.join([*PIPELINES, *ALIASES])}")
    kind = None if task is None else _pipeline_of(task)
    _check_foreign(model, tokenizer, device, options)
    if isinstance(model, Engine):
        engine = model
    else:
        if model is None and kind is not None:
            model = _packaged(kind)
        engine = Engine.from_pretrained(
            model, num_threads=num_threads, streams=streams, isa=isa, weights=weights, revision=revision
        )
    if kind is None:
        kind = next(each for each in PIPELINES.values() if engine.task in each.kinds)
    return kind(engine, **options)


def _pipeline_of(task: str) -> type[Pipeline]:
    name = ALIASES.get(task, task)
    if name not in PIPELINES:
        raise InputError(f"task is {shown(task)}; use one of {', '.join([*PIPELINES, *ALIASES])}")
    return PIPELINES[name]


def _packaged(kind: type[Pipeline]) -> str:
    # Hidden states come from any model; those of sentence embeddings are what most people want.
    kinds = ("embedding",) if kind is FeatureExtractionPipeline else kind.kinds
    found = [PACKAGED[each] for each in kinds if each in PACKAGED]
    if not found:
        raise InputError(
            f"pipeline({kind.task!r}) needs a model, because none is packaged for it; convert one with "
            "qla convert CHECKPOINT PACKAGE, and pass the package's folder"
        )
    return found[0]


def _check_foreign(model: Any, tokenizer: Any, device: Any, options: dict[str, Any]) -> None:
    if tokenizer is not None and tokenizer != model:
        raise InputError(
            f"tokenizer is {shown(tokenizer)}, but a package has its own tokenizer, whose ids it was made for; "
            "leave tokenizer out"
        )
    if device is not None and str(device) not in ("-1", "cpu"):
        raise UnsupportedError(f"device is {shown(device)}, but the engine runs on CPUs; leave device out")
    for name in options:
        if name in _MEANINGLESS:
            raise InputError(f"{name} has no meaning here: {_MEANINGLESS[name]}. Leave {name} out")


__all__ = [
    "ALIASES",
    "PIPELINES",
    "FeatureExtractionPipeline",
    "Pipeline",
    "QuestionAnsweringPipeline",
    "TextClassificationPipeline",
    "TokenClassificationPipeline",
    "ZeroShotClassificationPipeline",
    "pipeline",
]
