"""What judges wrote, on disk by what they were asked: the same question is asked and paid for once.

One file for each answer, named by the digest of all that decides it, written whole or not at all; so processes, and
machines with a common folder, may share a cache. What never arrived is not in it."""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
from collections.abc import Mapping
from pathlib import Path

from assent.outputs import cache_folder, try_file, whole_file
from assent.rewards.judge.ask import Answer

log = logging.getLogger(__name__)


def key_of(request: Mapping[str, object]) -> str:
    """sha256 of a request as JSON; the order of its fields does not count."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def _whole(answer: Answer) -> bool:
    """Whether its fields are what they should be."""
    chances = {} if answer.chances is None else answer.chances
    numbers = isinstance(chances, dict) and all(isinstance(value, float | int) for value in chances.values())
    return isinstance(answer.text, str) and isinstance(answer.ended, str) and numbers


class Cache:
    """A folder of answers; by default `judge` where caches lie."""

    def __init__(self, folder: str | None) -> None:
        self.folder = cache_folder("judge") if folder is None else Path(folder)

    def check(self) -> None:
        """Raises OutputError where it cannot be written to."""
        try_file(self.folder / f".{secrets.token_hex(8)}.try", f"--judge.cache {self.folder}")

    def get(self, key: str) -> Answer | None:
        """None for what is not there, and for a file that is not what was written."""
        file = self._file(key)
        try:
            found = json.loads(file.read_bytes())
            if found.pop("key") == key and _whole(answer := Answer(**found)):
                return answer
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            pass
        log.warning(f"{file} is damaged: the judge is asked again.")
        return None

    def put(self, key: str, answer: Answer) -> None:
        """Raises OutputError where it cannot be written."""
        fields = {"key": key, "text": answer.text, "ended": answer.ended, "chances": answer.chances}
        with whole_file(self._file(key), f"--judge.cache {self.folder}", forced=False) as temporary:
            temporary.write_text(json.dumps(fields), encoding="utf-8")

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"
