"""What is evaluated, by the words that name it: model folders, runs, checkpoints, hub ids, files of answers."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from assent.config import EvalConfig, ModelConfig
from assent.errors import ConfigError, ModelError
from assent.models.loading import stored_config
from assent.models.sources import Source, resolve
from assent.names import suggestion

STEP = re.compile(r"step-(\d+)")
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")


@dataclass(frozen=True, slots=True)
class PolicySource:
    """One policy: `path` is a model (folder, run, checkpoint, hub id) or a file of answers; `run` the run folder that
    it is of, `series` what that run is called here, and `step` which step of it it is, where that is known."""

    name: str
    path: str
    is_file: bool = False
    run: Path | None = None
    series: str = ""
    step: int | None = None


def policies_of(config: EvalConfig) -> list[PolicySource]:
    """What the words name, each with a name of its own. Raises ConfigError for names that are there twice, a baseline
    that is none of them, and --checkpoints without a run; ModelError for what is no model."""
    found = [each for word in config.policies for each in _named(word, config.checkpoints, config.trust_remote_code)]
    names = [policy.name for policy in found]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ConfigError(f"POLICY: two are called '{twice[0]}'. Name them: NAME=PATH.")
    if config.baseline is not None and config.baseline not in names:
        raise ConfigError(
            f"--baseline {config.baseline}: no policy is called so.{suggestion(config.baseline, names)} There are: "
            f"{', '.join(names)}."
        )
    if config.checkpoints and not any("@" in name for name in names):
        raise ConfigError("--checkpoints: none of the policies is a run folder with checkpoints.")
    return found


def _named(word: str, checkpoints: bool, trust_remote_code: bool) -> list[PolicySource]:
    name, path = split_name(word)
    target = Path(path).expanduser()
    if target.is_file() or path.lower().removesuffix(".gz").endswith(SUFFIXES):
        return [PolicySource(name or target.name.partition(".")[0], path, is_file=True)]
    try:
        source = resolve(path)
    except ModelError as error:
        if not (checkpoints and any((target / "checkpoints").glob("step-*[0-9]"))):
            raise ModelError(f"POLICY {path}: {error}") from None
        source = None
    if source is not None and _scores(source, path, trust_remote_code):
        raise ModelError(f"POLICY {path} is a reward model. It scores answers: --rewards {path}.")
    run = run_folder(target)
    name = name or _name(target, run)
    series = "" if run is None else name if target in (run, run / "model") else run.resolve().name
    found = [] if source is None else [PolicySource(name, path, run=run, series=series, step=_step(target, run))]
    if checkpoints and target == run:
        found += [
            PolicySource(f"{name}@{each.name}", str(each), run=run, series=name, step=_step(each, run))
            for each in sorted((target / "checkpoints").glob("step-*[0-9]"))
        ]
    return found


def _step(path: Path, run: Path | None) -> int | None:
    """The step of a checkpoint by its name; that of a finished run as its summary has it."""
    if run is None:
        return None
    if (named := STEP.fullmatch(path.name)) is not None:
        return int(named[1])
    try:
        step = json.loads((run / "summary.json").read_text(encoding="utf-8"))["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return step if isinstance(step, int) else None


def _scores(source: Source, path: str, trust_remote_code: bool) -> bool:
    """Whether a model scores answers and cannot give any. Raises ModelError where its configuration cannot be had."""
    config = stored_config(ModelConfig(path, trust_remote_code=trust_remote_code))
    kinds = getattr(config, "architectures", None) or ()
    return source.is_scorer or any("ForSequenceClassification" in kind for kind in kinds)


def split_name(word: str) -> tuple[str, str]:
    """NAME and what stands behind it in NAME=..., or no name. A path that exists is one, whatever is in it."""
    name, given, rest = word.partition("=")
    if not given or os.path.exists(os.path.expanduser(word)) or "/" in name:
        return "", word
    if not name or not rest:
        raise ConfigError(f"Expected NAME=PATH; got '{word}'.")
    return name, rest


def run_folder(path: Path) -> Path | None:
    """The run folder that a model folder or a checkpoint is of, or is itself."""
    return next((p for p in (path, *path.absolute().parents[:2]) if (p / "resolved.yaml").is_file()), None)


def _name(path: Path, run: Path | None) -> str:
    if run is None or path == run:
        return path.resolve().name if path.exists() else path.name
    own = run.resolve().name
    return own if path.name == "model" else f"{own}@{path.name}"
