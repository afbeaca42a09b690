"""From texts to tokens and back, as the model's package reads texts but without cutting them."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from qla_runtime.engine import Engine
from qla_runtime.errors import InputError
from qla_runtime.serve.errors import INVALID, ServeError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_uncut: WeakKeyDictionary[Engine, Tokenizer] = WeakKeyDictionary()
_making = Lock()


def tokenize_texts(
    engine: Engine, texts: Sequence[str], special: bool, prompt_name: str | None
) -> list[list[dict[str, Any]]]:
    """Per text its tokens: ``id``, ``text``, ``special``, and ``start`` and ``stop`` (characters of the text with
    its prompt; null for special tokens).

    Raises:
        InputError: the model has no prompt of that name.
    """
    before = _prompt(engine, prompt_name)
    found = []
    encoded = uncut(engine).encode_batch([before + text for text in texts], add_special_tokens=special)
    for text, encoding in zip(texts, encoded, strict=True):
        whole = before + text
        rows = zip(encoding.ids, encoding.tokens, encoding.special_tokens_mask, encoding.offsets, strict=True)
        found.append(
            [
                {"id": token, "text": name, "special": True, "start": None, "stop": None}
                if is_special
                else {"id": token, "text": whole[start:stop], "special": False, "start": start, "stop": stop}
                for token, name, is_special, (start, stop) in rows
            ]
        )
    return found


def decode_ids(engine: Engine, rows: Sequence[Sequence[int]], skip_special: bool) -> list[str]:
    """Per list of token ids its text.

    Raises:
        ServeError: an id that the model does not have.
    """
    size = engine.info["vocab_size"]
    for row in rows:
        largest = max(row, default=0)
        if largest >= size:
            raise ServeError(INVALID, f"ids holds {largest}; this model's ids end at {size - 1}", field="ids")
    return uncut(engine).decode_batch([list(row) for row in rows], skip_special_tokens=skip_special)


def uncut(engine: Engine) -> Tokenizer:
    """The package's tokenizer without truncation; the engine's own keeps its limit."""
    with _making:
        found = _uncut.get(engine)
        if found is None:
            own = engine.text_encoder.load()
            found = type(own).from_str(own.to_str())
            found.no_truncation()
            found.encode_special_tokens = own.encode_special_tokens
            _uncut[engine] = found
        return found


def _prompt(engine: Engine, name: str | None) -> str:
    name = engine.default_prompt if name is None else name
    if name is None:
        return ""
    if name not in engine.prompts:
        known = f"one of {', '.join(map(repr, engine.prompts))}" if engine.prompts else "left out: it has none"
        raise InputError(f"prompt_name is {name!r}; for this model it must be {known}")
    return engine.prompts[name]
