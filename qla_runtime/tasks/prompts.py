"""Prompts: the text that a model was trained to read before each sentence, such as ``"query: "``.

The rules are those of sentence-transformers, so that both give the same vectors for the same call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qla_runtime.errors import InputError, shown, warn


class Prompts:
    """The prompts of one model, by name.

    Args:
        config: the package's ``config.json``, with or without ``prompts`` and ``default_prompt``.
        always: names that the task knows even where the model brings no text for them; their prompt is then
            empty.
    """

    def __init__(self, config: Mapping[str, Any], always: Sequence[str] = ()) -> None:
        self.texts: dict[str, str] = dict.fromkeys(always, "") | config.get("prompts", {})
        self.default: str | None = config.get("default_prompt")

    def choose(self, prompt: str | None, prompt_name: str | None) -> str:
        """The text to put before every input: ``prompt``, the one called ``prompt_name``, or the default.

        Raises:
            InputError: the prompt is no text, or there is none of that name.
        """
        if prompt is not None and prompt_name is not None:
            warn("a prompt is given and the name of one, too; the name is ignored")
        if prompt is not None:
            return _checked(prompt)
        if prompt_name is None:
            return "" if self.default is None else self.texts[self.default]
        if not isinstance(prompt_name, str) or prompt_name not in self.texts:
            known = f"one of {', '.join(map(repr, self.texts))}" if self.texts else "left out: this model has none"
            raise InputError(
                f"the prompt's name is {shown(prompt_name)}; it must be {known}. Or give the prompt's text"
            )
        return self.texts[prompt_name]

    def query(self, prompt: str | None, prompt_name: str | None) -> str:
        """As :meth:`choose`, but the prompt called ``query`` where neither argument is given."""
        return self._for_role(prompt, prompt_name, "query")

    def document(self, prompt: str | None, prompt_name: str | None) -> str:
        """As :meth:`choose`, but the prompt called ``document`` where neither argument is given."""
        return self._for_role(prompt, prompt_name, "document")

    def _for_role(self, prompt: str | None, prompt_name: str | None, role: str) -> str:
        if prompt is None and prompt_name is None and role in self.texts:
            prompt_name = role
        return self.choose(prompt, prompt_name)


def _checked(prompt: Any) -> str:
    if not isinstance(prompt, str):
        raise InputError(f"the prompt is of type {type(prompt).__name__}; it must be a text (str)")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the prompt holds a lone surrogate at character {error.start}, which no tokenizer reads; decode the "
            "text's bytes with errors='replace'"
        ) from None
    return prompt
