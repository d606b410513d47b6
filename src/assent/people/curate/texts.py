"""What of a prompt is compared: its turns as text, and letters and words in one form."""

from __future__ import annotations

import importlib
import unicodedata
from typing import Any

from assent.data.records import Example
from assent.errors import ConfigError
from assent.measures.texts import words

EXTRAS = {"py3langid": "people", "sklearn": "people", "bertopic": "topics", "umap": "topics"}


def extra(module: str, what: str) -> Any:
    """A module of an extra. Raises ConfigError, with the command that installs it, where it cannot be imported."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = EXTRAS[module.partition(".")[0]]
        raise ConfigError(
            f"{what} needs a package that cannot be imported here ({error}). Install it: pip install 'assent[{name}]'"
        ) from None


def user_text(example: Example) -> str:
    """What the user wrote, all turns."""
    return "\n".join(message.content for message in example.prompt if message.role == "user")


def turns_text(example: Example) -> str:
    """All turns but system messages, which many prompts share."""
    return "\n".join(message.content for message in example.prompt if message.role not in ("system", "developer"))


def system_text(example: Example) -> str:
    return "\n".join(message.content for message in example.prompt if message.role in ("system", "developer"))


def many_turns(example: Example) -> bool:
    """Whether there are earlier turns that an assistant answered."""
    return any(message.role == "assistant" for message in example.prompt)


def plain(text: str) -> str:
    """NFKC, without case, one blank between words."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


def plain_words(text: str) -> list[str]:
    """Words of `plain` text without punctuation; of scripts without blanks between words, letters."""
    return [word for word in words(plain(text)) if word[0].isalnum() or word[0] == "_"]
