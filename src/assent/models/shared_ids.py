"""Whether two models mean the same by their token ids."""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from assent.errors import ModelError
from assent.models.sources import ask_hub, resolve
from assent.models.stored import configuration

TEXT = (
    "The quick brown fox's 12,345.67 jumps — don't you think?\n\n  def f(x):\n\treturn x**2  # été, naïve, Übergröße\n"
    "Привет, мир! 你好,世界。 こんにちは 안녕 🙂👍🏽 <b>tag</b> https://example.org/?q=1&r=%20 1e-5 ½ ﬁ"
)
"""Text in which tokenizers of other families differ."""


def check_shared_ids(
    option: str, path: str, tokenizer: PreTrainedTokenizerBase, *, revision: str | None, trust_remote_code: bool
) -> None:
    """Raises ModelError where the model at `path` would read ids of `tokenizer` as other text: every token must have
    the same id there, text must be split alike, and the model must have a row for each id. A chat template may differ.
    Without a tokenizer in its folder, only the last can be checked."""
    source = resolve(path, revision)
    ask_hub(source)
    config = configuration(source.base, source.revision, trust_remote_code).get_text_config()
    found = _difference(_tokenizer(*source.tokenizer(), trust_remote_code), tokenizer, config.vocab_size)
    if found is not None:
        raise ModelError(
            f"{option} {path} has another vocabulary than the model that is trained, whose token ids it is given: "
            f"{found}. Give a model of the same family."
        )


def _tokenizer(folder: str, revision: str | None, trust_remote_code: bool) -> Any:
    try:
        return AutoTokenizer.from_pretrained(folder, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError):
        return None  # a folder without one


def _difference(other: Any, tokenizer: PreTrainedTokenizerBase, rows: int) -> str | None:
    mine = tokenizer.get_vocab()
    highest = max(mine.values())
    if other is not None:
        its = other.get_vocab()
        moved = sorted((i, token) for token, i in mine.items() if its.get(token) != i)
        if moved:
            first = ", ".join(f"{token!r} is {i} here, {its.get(token, 'none')} there" for i, token in moved[:2])
            return f"{len(moved)} of {len(mine)} tokens differ ({first})"
        here, there = (each(TEXT, add_special_tokens=False)["input_ids"] for each in (tokenizer, other))
        if not np.array_equal(here, there):
            return "the same tokens, but text is split into them differently"
    if rows <= highest:
        return f"it knows ids up to {rows - 1}, the tokenizer has ids up to {highest}"
    return None
