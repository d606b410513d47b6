"""In which language a prompt is written, and whether it is about code: told apart, since code looks like no language or
like any."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from assent.data.records import Example
from assent.errors import ConfigError
from assent.names import suggestion
from assent.people.curate.code import HOLDS, code_in, without_code
from assent.people.curate.sieve import Fate
from assent.people.curate.texts import extra, user_text

UNTOLD, NO_WORDS = "und", "zxx"
"""ISO 639: undetermined; no linguistic content."""
MEANT = {
    "arabic": "ar", "chinese": "zh", "cmn": "zh", "danish": "da", "dutch": "nl", "english": "en", "finnish": "fi",
    "french": "fr", "german": "de", "deutsch": "de", "greek": "el", "hindi": "hi", "indonesian": "id", "italian": "it",
    "japanese": "ja", "jp": "ja", "korean": "ko", "nb": "no", "norwegian": "no", "polish": "pl", "portuguese": "pt",
    "russian": "ru", "spanish": "es", "swedish": "sv", "turkish": "tr", "ukrainian": "uk", "vietnamese": "vi",
}  # fmt: skip
"""What people call a language -> its code here."""
READ = 600
"""Characters of a prompt that the detector reads."""
FEW = 6
"""Fewer words beside code are no language."""


@dataclass(frozen=True, slots=True)
class Told:
    """`language` is the detector's, `UNTOLD` where its `confidence` is too low, `NO_WORDS` where nothing but code and
    numbers is left; `script` the one of most letters; `code` is what `code_in` says."""

    language: str
    confidence: float
    script: str
    code: str


@lru_cache(maxsize=1)
def _detector() -> Any:
    module = extra("py3langid.langid", "the language of prompts")
    return module.LanguageIdentifier.from_model_file(module.MODEL_FILE, norm_probs=True)


def check_languages(wanted: Sequence[str]) -> None:
    """Raises ConfigError for a language that the detector does not know."""
    known = sorted(_detector().labels) if wanted else []
    for code in wanted:
        if code not in known:
            meant = MEANT.get(code.lower(), code.lower().partition("-")[0])
            hint = f" Perhaps you meant '{meant}'." if meant in known else suggestion(code, known)
            raise ConfigError(
                f"--filter.languages {code}: the detector does not know it.{hint} Codes of ISO 639: {', '.join(known)}."
            )


def told(examples: Sequence[Example], sure: float) -> list[Told]:
    """What is told of each prompt, by what the user wrote in it."""
    return [tell(user_text(example), sure) for example in examples]


def tell(text: str, sure: float) -> Told:
    code = code_in(text)
    words = without_code(text)[:READ] if code == HOLDS else text[:READ]
    letters = "".join(filter(str.isalpha, words))
    if len(letters) < 2 or (code == HOLDS and len(words.split()) < FEW):
        return Told(NO_WORDS, 1.0, "", code)
    language, confidence = _detector().classify(words)
    script = "LATIN" if letters.isascii() else Counter(map(_script, letters)).most_common(1)[0][0]
    return Told(language if confidence >= sure else UNTOLD, round(float(confidence), 4), script, code)


@lru_cache(maxsize=65536)
def _script(letter: str) -> str:
    """The first word of a letter's name: LATIN, CYRILLIC, CJK."""
    return unicodedata.name(letter, "UNKNOWN").split()[0]


def by_language(found: Sequence[Told], wanted: Sequence[str]) -> list[Fate | None]:
    """Rows in other languages than the wanted ones (none: all are). One whose language is not told stays, unless its
    script is none in which a prompt in a wanted language is written. One without words stays: it is no language."""
    if not wanted:
        return [None] * len(found)
    scripts = {each.script for each in found if each.language in wanted}
    fates: list[Fate | None] = []
    for each in found:
        notes = {"language": each.language, "confidence": each.confidence}
        if each.language in wanted or (each.language == NO_WORDS and not each.script):
            fates.append(None)
        elif each.language != UNTOLD:
            fates.append(Fate(f"in another language: {each.language}", None, notes))
        elif scripts and each.script not in scripts:
            fates.append(Fate(f"in a language that is not told, in {each.script.lower()} script", None, notes))
        else:
            fates.append(None)
    return fates


def by_code(found: Sequence[Told]) -> list[Fate | None]:
    """Rows that hold code or are about it."""
    return [Fate(each.code) if each.code else None for each in found]
