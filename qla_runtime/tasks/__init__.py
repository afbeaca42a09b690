"""What a model is for: from texts to what the encoder runs, and from its outputs to results. One file per task."""

from __future__ import annotations

from qla_runtime.tasks.answer import AnswerTask
from qla_runtime.tasks.embed import EmbedTask
from qla_runtime.tasks.labels import LabelTask
from qla_runtime.tasks.prepared import Task
from qla_runtime.tasks.tag import TagTask

TASKS: dict[str, type[Task]] = {task.kind: task for task in (AnswerTask, LabelTask, TagTask, EmbedTask)}
"""The task of each kind of package."""
