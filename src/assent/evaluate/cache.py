"""Answers that were sampled already, in the folder of an evaluation: a file for each policy, named by the digest of all
that decides its answers, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from assent.config import EvalConfig
from assent.evaluate.answers import Sampled
from assent.evaluate.policies import PolicySource
from assent.evaluate.prompts import PromptSet
from assent.measures.answers import Answers, Given
from assent.models.digests import model_digests
from assent.outputs import write_text

log = logging.getLogger(__name__)

FORMAT = 1
CACHE = "cache"
"""The folder in an evaluation's."""
INTEGERS = ("prompt", "tokens", "pairs", "one_of", "some_of")


class Cache:
    """The folder `cache` of an evaluation."""

    def __init__(self, out: Path, config: EvalConfig, prompts: PromptSet) -> None:
        self.folder, self.config, self.prompts = out / CACHE, config, prompts

    def key(self, source: PolicySource) -> str:
        """sha256 of the models' contents, the prompts and the options that answers depend on."""
        config = self.config
        made_by = {
            "format": FORMAT,
            "policy": model_digests(source.path),
            "reference": None if config.reference is None else model_digests(config.reference),
            "prompts": [self.prompts.digest, self.prompts.given_digest],
            "sampling": asdict(config.sampling),
            "answers": [config.answers, config.seed],
            "passes": [config.precision, config.max_length, config.micro_tokens],
        }
        return hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()

    def get(self, source: PolicySource, key: str) -> Sampled | None:
        """None for what is not there, and for a file that is not what was written."""
        file = self._file(key)
        try:
            raw = json.loads(file.read_bytes())
            if raw.pop("key") == key:
                return _loaded(raw, source.name, self.prompts)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError, AssertionError):
            pass
        log.warning(f"{file} is damaged: its policy answers again.")
        return None

    def put(self, key: str, sampled: Sampled) -> None:
        """Raises OutputError where it cannot be written."""
        write_text(self._file(key), json.dumps({"key": key} | _saved(sampled)), f"--out: {self.folder}")

    def _file(self, key: str) -> Path:
        return self.folder / f"{key[:32]}.json"


ANSWERS = ("prompt", "texts", "tokens", "finished", "log_prob", "reference_log_prob", "entropy")


def _saved(sampled: Sampled) -> dict[str, Any]:
    answers, given = sampled.answers, sampled.given
    return {
        "answers": {name: _listed(getattr(answers, name)) for name in ANSWERS},
        "unanswered": {str(place): reason for place, reason in answers.unanswered.items()},
        "ids": [ids.tolist() for ids in sampled.ids],
        "prompt_ids": {str(place): ids.tolist() for place, ids in sampled.prompt_ids.items()},
        "given": None
        if given is None
        else {one.name: _listed(getattr(given, one.name)) for one in fields(given) if one.name != "policy"},
        "without": dict(sampled.without),
    }


def _listed(column: object) -> object:
    """A column as JSON: NaN, which only floats have, is null."""
    if not isinstance(column, np.ndarray):
        return column
    if column.dtype.kind != "f":
        return column.tolist()
    return [None if np.isnan(value) else value for value in column.tolist()]


def _loaded(raw: Mapping[str, Any], name: str, prompts: PromptSet) -> Sampled:
    answers = Answers(
        name,
        prompts.columns,
        **{column: _column(column, values) for column, values in raw["answers"].items()},
        unanswered={int(place): reason for place, reason in raw["unanswered"].items()},
    )
    given = None
    if raw["given"] is not None:
        given = Given(name, **{column: _column(column, values) for column, values in raw["given"].items()})
        given = replace(given, pairs=given.pairs.reshape(-1, 2))
    return Sampled(
        answers,
        tuple(np.array(ids, np.int64) for ids in raw["ids"]),
        {int(place): np.array(ids, np.int32) for place, ids in raw["prompt_ids"].items()},
        given,
        dict(raw["without"]),
    )


def _column(name: str, values: Any) -> Any:
    if values is None:
        return None
    if name in ("texts", "unread"):
        return tuple(values)
    if name == "finished":
        return np.array(values, bool)
    if name == "pairs":
        return np.array(values, np.int64).reshape(-1, 2)
    kind = np.int64 if name in INTEGERS else np.float64
    return np.array([np.nan if value is None else value for value in values], kind)
