"""The run folder: one run, everything about it.

resolved.yaml       every option as it was used (`assent sft --config resolved.yaml` repeats the run)
environment.json    versions, processor, ranks, code revision
data.json           what was read, used and left out
metrics.jsonl       one row per logged step
samples.jsonl       answers during training
checkpoints/        step-<number> folders
model/              the final model, a plain Hugging Face folder
summary.json        what the run has gained, and which step is in model/
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from assent import cpus, settings
from assent.config import RunConfig
from assent.errors import RunFolderError
from assent.train.checkpoint import find_resume, versions
from assent.train.progress import say

MAY_CHANGE = frozenset(
    {
        "out",
        "resume",
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
    }
)
"""Options that a resumed run may change: how long, how often, how fast. Anything else would be another run."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run folder that this process may write to. `checkpoint` is where to continue from, None for a new run;
    `threads` are the CPU threads of each rank, which a resumed run keeps, since sums depend on them."""

    path: Path
    run_id: str
    checkpoint: Path | None = None
    threads: int = 1

    @classmethod
    def create(cls, out: str | Path, config: RunConfig, resume: str | None = None, ranks: int = 1) -> RunFolder:
        """Makes or reopens the folder `out` and writes resolved.yaml and environment.json. On rank 0 only.

        Raises `RunFolderError` if the folder holds something and `resume` is not given, if it is no run folder, or if
        the run there was made with other options (all differences are listed); `CheckpointError` if an explicit
        checkpoint is damaged.
        """
        path = Path(out)
        try:
            path.mkdir(parents=True, exist_ok=True)
            checkpoint = _start(path, resume) if _is_free(path, resume) else _reopen(path, config, resume)
            before = _read_json(path / "environment.json") if checkpoint else {}
            now: dict[str, Any] = {"command": _command_line(), "configuration": type(config).__name__}
            now |= {"run_id": before.get("run_id", uuid.uuid4().hex[:12]), **environment(ranks)}
            if checkpoint:
                now["threads"] = _kept_threads(config, before, now)
                _tell_changes(before, now)
            _write(path / "environment.json", json.dumps(now, indent=1))
            _write(path / "resolved.yaml", settings.dump(config))
        except OSError as error:
            raise RunFolderError(f"--out {path}: cannot be used as a run folder: {error}.") from error
        return cls(path, now["run_id"], checkpoint, now["threads"])

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        return self.path / "samples.jsonl"

    @property
    def model(self) -> Path:
        return self.path / "model"

    def record_data(self, report: Mapping[str, Any]) -> None:
        """Writes data.json. `report["fingerprint"]` identifies the rows as they are trained; a resumed run must find
        the same. Raises `RunFolderError` otherwise."""
        file = self.path / "data.json"
        if self.checkpoint and file.exists():
            before = _read_json(file).get("fingerprint")
            if before != report["fingerprint"]:
                raise RunFolderError(
                    f"--resume: the data changed since this run began (fingerprint {before} in {file}, now "
                    f"{report['fingerprint']}). Restore the data files, or start a new run in another --out."
                )
        _write(file, json.dumps(report, indent=1, ensure_ascii=False))

    def data(self) -> dict[str, Any]:
        """What `record_data` wrote; nothing where there is none."""
        return _read_json(self.path / "data.json")


def config_hash(config: RunConfig) -> str:
    """Hash of the options that make a run what it is (those outside `MAY_CHANGE`)."""
    fixed = {name: value for name, value in _flat(_plain(config)).items() if name not in MAY_CHANGE}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16]


def environment(ranks: int = 1) -> dict[str, Any]:
    """What else decides the numbers: versions, hardware, ranks, code revision. No names of people, hosts or paths."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "versions": versions(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": cpus.usable(),
        "threads": torch.get_num_threads(),
        "threads wait": cpus.said(),
        "gpus": gpus,
        "ranks": ranks,
        "commit": _commit(),
    }


def _is_free(path: Path, resume: str | None) -> bool:
    """Whether a new run may begin here: nothing is in the folder, or only the preparations of a run that stopped before
    its first step (a mistyped file name, say)."""
    names = {child.name for child in path.iterdir()}
    prepared = "resolved.yaml" in names and names <= {"resolved.yaml", "environment.json", "data.json"}
    return not names or (prepared and resume is None)


def _refusal(path: Path) -> str:
    if (path / "resolved.yaml").exists():
        return f"--out {path}: an earlier run is there. Continue it with --resume auto, or choose another --out."
    return f"--out {path}: the folder is not empty and is no run folder. Choose another --out."


def _start(path: Path, resume: str | None) -> Path | None:
    if resume not in (None, "auto"):
        raise RunFolderError(
            f"--resume {resume}: the checkpoint belongs to another run folder than --out {path}, which is empty. Give "
            "the folder that holds its checkpoints/ as --out."
        )
    return None


def _reopen(path: Path, config: RunConfig, resume: str | None) -> Path | None:
    """The checkpoint to continue from; None if the earlier run was stopped before its first."""
    if resume is None or not (path / "resolved.yaml").exists():
        raise RunFolderError(_refusal(path))
    checkpoint = find_resume(path / "checkpoints", resume)
    if checkpoint is None:
        if (path / "model").exists():
            raise RunFolderError(
                f"--resume auto: {path} holds a finished model but no complete checkpoint to continue from. Choose "
                "another --out."
            )
        return None
    if checkpoint.resolve().parent != (path / "checkpoints").resolve():
        raise RunFolderError(f"--resume {resume}: not a checkpoint of --out {path}. Give its own run folder as --out.")
    made = _read_json(path / "environment.json").get("configuration")
    if made != type(config).__name__:
        raise RunFolderError(f"--out {path}: that run was made with {made}, not {type(config).__name__}.")
    _compare(path / "resolved.yaml", config)
    return checkpoint


def _compare(file: Path, config: RunConfig) -> None:
    """Prints what differs from the run's options so far, and refuses what would make it another run."""
    try:
        before = _flat(yaml.safe_load(file.read_text(encoding="utf-8")) or {})
    except (yaml.YAMLError, AttributeError) as error:
        raise RunFolderError(f"{file}: not readable as the run's options: {error}.") from error
    now = _flat(_plain(config))
    changed = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    lines = {name: f"  --{name}: {before.get(name)!r} -> {now.get(name)!r}" for name in changed}
    if fixed := [lines[name] for name in changed if name not in MAY_CHANGE]:
        raise RunFolderError(
            "--resume: these options differ from those the run began with:\n" + "\n".join(fixed) + "\nGive the same "
            "options, or start a new run in another --out (from this run's model, if you like: --model.path)."
        )
    if visible := [lines[name] for name in changed if name not in ("out", "resume")]:
        say("Resuming with changed options:\n" + "\n".join(visible))


def _tell_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """A resumed run repeats the numbers only in the same environment; say where it is another one."""
    then, here = _flat(before), _flat(now)
    decides = {name: value for name, value in here.items() if name not in ("command", "threads wait")}
    changed = [f"  {name}: {then.get(name)} -> {value}" for name, value in decides.items() if then.get(name) != value]
    if changed:
        say("Resuming in another environment; numbers may differ in their last digits:\n" + "\n".join(changed))


def _kept_threads(config: RunConfig, before: Mapping[str, Any], now: Mapping[str, Any]) -> int:
    """The CPU threads of the run so far, unless the user asks for another number, or other ranks share the work."""
    threads = before.get("threads", now["threads"])
    if config.train.threads or before.get("ranks") != now["ranks"] or threads == now["threads"]:
        return now["threads"]
    say(f"Resuming with {threads} CPU threads, as the run began, not {now['threads']}: --train.threads changes it.")
    return threads


def _plain(config: RunConfig) -> dict[str, Any]:
    return yaml.safe_load(settings.dump(config))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined with dots; an empty mapping is a value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, Mapping) and value
        flat |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise RunFolderError(f"{file}: not valid JSON ({error}). Restore it, or choose another --out.") from error


def _write(file: Path, text: str) -> None:
    """Replaces the file as a whole, so that a kill leaves the old or the new one."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(file)


def _command_line() -> str:
    """What this process was started with."""
    program, *arguments = sys.argv or [""]
    name = Path(program).name
    words = ["python", "-m", Path(program).parent.name] if name == "__main__.py" else [name]
    return shlex.join([*words, *arguments])


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _commit() -> str | None:
    """Revision of the code in the current folder, with + if it was changed; None outside a repository."""

    def git(*arguments: str) -> str:
        done = subprocess.run(("git", *arguments), capture_output=True, text=True, timeout=5, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None
