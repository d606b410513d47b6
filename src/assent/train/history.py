"""One run, one history: what a resumed run may change of its options and inputs, and what is said and kept of it."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from typing import Any

from assent.config import (
    OnlineConfig,
    PreferenceConfig,
    RewardModelConfig,
    RunConfig,
    SFTConfig,
    method_of,
    objective_of,
    reward_model_of,
    settings,
)
from assent.config.inputs import INPUTS, named
from assent.errors import RunFolderError

log = logging.getLogger(__name__)

MAY_CHANGE = frozenset(
    {
        "out",
        "resume",
        "resume_changed",
        "report_to",
        "model.activation_checkpointing",
        "model.save_dtype",
        "train.max_steps",
        "train.epochs",
        "train.micro_tokens",
        "train.eval_every",
        "train.save_every",
        "train.keep",
        "train.final",
        "train.log_every",
        "train.threads",
        "judge.cache",
        "alarm.rate",
        "alarm.stop",
    }
)
"""Options that a resumed run may change: how long, how often, how fast. Of those in `INPUTS` the content counts.
Anything else would be another run."""

Options = Mapping[str, Any]
"""Options by their dotted names."""
InputDigests = Mapping[str, Mapping[str, str]]
"""What was read: option -> part -> digest, perhaps with a count before it."""
Changes = dict[str, list[Any]]
"""Name -> [before, now]."""

_DIGEST = re.compile(r"\b([0-9a-f]{8})[0-9a-f]{56}\b")
_UNSAID = ("out", "resume", "resume_changed")


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined with dots; an empty mapping is a value."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, Mapping) and value
        found |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return found


def command_key(config: RunConfig) -> str:
    """The command that a configuration belongs to, as in `assent COMMAND`."""
    if isinstance(config, SFTConfig):
        return "sft"
    if isinstance(config, RewardModelConfig):
        return reward_model_of(config)
    if isinstance(config, PreferenceConfig):
        return objective_of(config)
    assert isinstance(config, OnlineConfig), type(config).__name__
    return method_of(config)


def resolved_options(config: RunConfig) -> Options:
    """The options as resolved.yaml has them."""
    return flat(settings.plain(config))


def options_hash(options: Options) -> str:
    """Hash of the options that make a run what it is: those outside `MAY_CHANGE` that name no input."""
    fixed = {name: value for name, value in options.items() if name not in MAY_CHANGE | INPUTS.keys()}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16]


def changed_options(before: Options, config: RunConfig, digested: InputDigests, way_on: str) -> Changes:
    """What differs from the run's options so far, said. An option that is in `digested` may name the same content in
    another place. Raises RunFolderError, ending with `way_on`, for what would make it another run."""
    now = resolved_options(config)
    usual = {option.name: option.default for option in settings.options(type(config))}
    then = {name: usual.get(name) for name in now.keys() - before.keys()} | dict(before)  # an option may be new
    changes = {
        name: [then.get(name), now.get(name)]
        for name in sorted(then.keys() | now.keys())
        if _listed(then.get(name)) != _listed(now.get(name))
    }
    lines = {name: f"  --{name}: {old!r} -> {new!r}" for name, (old, new) in changes.items()}
    movable = {
        name for name, (old, _) in changes.items() if name in digested and _count(old) == len(named(config, name))
    }
    if fixed := [lines[name] for name in changes if name not in MAY_CHANGE | movable]:
        raise RunFolderError(
            "--resume: these options differ from those the run began with:\n" + "\n".join(fixed) + f"\n{way_on}"
        )
    if visible := [lines[name] for name in changes if name not in _UNSAID]:
        log.info("Resuming with changed options:\n" + "\n".join(visible))
    return {name: change for name, change in changes.items() if name not in _UNSAID}


def changed_inputs(before: InputDigests, now: InputDigests, accepted: tuple[str, ...]) -> Changes:
    """What differs in content from what the run has read so far, said. Raises RunFolderError where it is not
    `accepted`."""
    changes = {
        f"{option}, {part}": [then.get(part, "none"), digests.get(part, "none")]
        for option, digests in now.items()
        if (then := before.get(option)) is not None
        for part in dict.fromkeys((*then, *digests))
        if then.get(part) != digests.get(part)
    }
    lines = {name: f"  --{name}: {_short(old)} -> {_short(new)}" for name, (old, new) in changes.items()}
    refused = [name for name in changes if name.partition(",")[0] not in accepted]
    if refused:
        options = dict.fromkeys(name.partition(",")[0] for name in refused)
        raise RunFolderError(
            "--resume: this is not what the run has read so far:\n"
            + "\n".join(lines[name] for name in refused)
            + "\nRestore it, start a new run in another --out, or go on with what is there now: --resume_changed "
            + " ".join([*accepted, *options])
        )
    if lines:
        log.info("Resuming with other content (--resume_changed):\n" + "\n".join(lines.values()))
    return changes


def changed_environment(before: Mapping[str, Any], now: Mapping[str, Any]) -> Changes:
    """A resumed run repeats the numbers only in the same environment; says where it is another one."""
    then, here = flat(before), flat(now)
    decides = {name for name in here if name not in ("command_line", "threads wait", "history")}
    changes = {name: [then.get(name), here[name]] for name in here if name in decides and then.get(name) != here[name]}
    if changes:
        lines = [f"  {name}: {old} -> {new}" for name, (old, new) in changes.items()]
        log.warning("Resuming in another environment; numbers may differ in their last digits:\n" + "\n".join(lines))
    return changes


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _count(value: Any) -> int:
    return len(value) if isinstance(value, list) else int(value is not None)


def _short(digest: str) -> str:
    return _DIGEST.sub(r"\1", digest)
