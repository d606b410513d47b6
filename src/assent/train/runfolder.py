"""The run folder: one run, everything about it.

resolved.yaml       every option as it was used (`assent sft --config resolved.yaml` repeats the run)
environment.json    versions, processor, ranks, code revision; `history`: when it was resumed, and what was other then
data.json           what was read, used and left out; `inputs`: digests of all that the run reads
opening.json        what the run said before its first step, and its last step
metrics.jsonl       one row per logged step
samples.jsonl       answers during training
checkpoints/        step-<number> folders
model/              the final model, a plain Hugging Face folder
run.lock            while it runs: whose it is (assent.lock)
summary.json        what the run has gained, and which step is in model/
trust.json          of a reward model: how far it can be trusted on the held-out data
"""

from __future__ import annotations

import itertools
import json
import logging
import platform
import re
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import yaml

from assent import cpus, distributed, lock
from assent.config import RunConfig, settings
from assent.environment import versions
from assent.errors import CheckpointError, RunFolderError
from assent.outputs import leftovers, write_text
from assent.train.checkpoint import find_resume, read_manifest
from assent.train.history import (
    InputDigests,
    Options,
    changed_environment,
    changed_inputs,
    changed_options,
    command_key,
    flat,
    options_hash,
    resolved_options,
)

log = logging.getLogger(__name__)

PREPARED = {"resolved.yaml", "environment.json", "data.json"}
"""Files that are there before the first step."""
LOGS = ("metrics.jsonl", "samples.jsonl")
RESTORE = "Restore it; if that cannot be, remove it, and it is written anew."


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """A folder that no other process writes to meanwhile, for what makes several runs in it. Every rank must enter it;
    rank 0 owns it (`assent.lock`)."""
    distributed.on_main(lambda: lock.own(folder))
    try:
        yield
    finally:
        lock.release(folder)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run folder that this process owns. `checkpoint` is where to continue from, None for a new run; `threads` are
    the CPU threads of each rank, which a resumed run keeps, since sums depend on them.

    `resolved` and `environment` are what resolved.yaml and environment.json will hold; `made` is a hash of the options
    that make the run what it is, `accepted` the inputs that may have changed, `before` what the checkpoint's run had
    read (None: it does not say), `inputs` what this one has read."""

    path: Path
    run_id: str
    checkpoint: Path | None = None
    threads: int = 1
    resolved: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    made: str = ""
    accepted: tuple[str, ...] = ()
    before: InputDigests | None = None
    inputs: dict[str, Mapping[str, str]] = field(default_factory=dict)

    @classmethod
    def create(cls, out: str | Path, config: RunConfig, resume: str | None = None, ranks: int = 1) -> RunFolder:
        """Becomes the owner of the folder `out` and decides where the run begins. Writes nothing there before `record`.
        On rank 0 only.

        Raises `RunFolderError` if another process is at work there, if the folder holds something and `resume` is not
        given, if it is no run folder, or if the run there was made with other options (all differences are listed);
        `CheckpointError` if an explicit checkpoint, or every one, is damaged.
        """
        path = Path(out)
        lock.own(path)
        try:
            return _opened(path, config, resume, ranks)
        except BaseException as error:
            lock.release(path)
            if isinstance(error, OSError):
                raise RunFolderError(f"--out {path}: cannot be used as a run folder: {error}.") from error
            raise

    def close(self) -> None:
        """Gives the folder up."""
        lock.release(self.path)

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

    def record(self, report: Mapping[str, Any], inputs: InputDigests) -> None:
        """Writes resolved.yaml, environment.json and data.json, once all is read that says whether a resumed run is the
        same. Raises `RunFolderError` where it is not: where `inputs` differ from what the checkpoint's run has read."""
        self._accept(inputs)
        try:
            for name in leftovers(self.path):
                (self.path / name).unlink(missing_ok=True)
            if self.checkpoint is None:
                _keep_logs(self.path)
            write_text(self.path / "resolved.yaml", self.resolved)
            write_text(self.path / "environment.json", json.dumps(self.environment, indent=1))
            self._write_data(report)
        except OSError as error:
            raise RunFolderError(f"--out {self.path}: cannot be used as a run folder: {error}.") from error

    def record_more(self, inputs: InputDigests) -> None:
        """Adds to data.json what was read only later. Raises as `record`."""
        self._accept(inputs)
        self._write_data(self.data())

    def meta(self) -> dict[str, Any]:
        """What a checkpoint's manifest says of its run."""
        return {"run": self.run_id, "options": self.made, "ranks": self.environment["ranks"], "inputs": self.inputs}

    def data(self) -> dict[str, Any]:
        """What `record` wrote into data.json; nothing where there is none."""
        return _read_json(self.path / "data.json")

    def _accept(self, inputs: InputDigests) -> None:
        if self.before is not None:
            self.environment["history"][-1]["inputs"] |= changed_inputs(self.before, inputs, self.accepted)
        self.inputs.update(inputs)

    def _write_data(self, report: Mapping[str, Any]) -> None:
        text = json.dumps({**report, "inputs": self.inputs}, indent=1, ensure_ascii=False)
        write_text(self.path / "data.json", text)


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


def _opened(path: Path, config: RunConfig, resume: str | None, ranks: int) -> RunFolder:
    """The folder, owned already, as it will be used."""
    before: dict[str, Any] = {}
    found: _Earlier | None = None
    if _is_free(path, resume):
        if resume not in (None, "auto"):
            raise RunFolderError(
                f"--resume {resume}: the checkpoint belongs to another run folder than --out {path}, which is empty. "
                "Give the folder that holds its checkpoints/ as --out."
            )
    else:
        before = _environment(path / "environment.json")
        found = _earlier(path, config, resume, before)
    now: dict[str, Any] = {"command": command_key(config), "command_line": lock.command_line()}
    now |= {"run_id": before.get("run_id", uuid.uuid4().hex[:12]), **environment(ranks)}
    resolved, made = settings.dump(config), options_hash(resolved_options(config))
    if found is None:
        return RunFolder(path, now["run_id"], None, now["threads"], resolved, now, made)
    now["run_id"] = before.get("run_id") or found.meta.get("run") or now["run_id"]
    now["threads"] = _kept_threads(config, before, now)
    entry: dict[str, Any] = {"when": datetime.now().astimezone().isoformat(timespec="seconds")}
    entry |= {"from": found.checkpoint.name, "command_line": now["command_line"]}
    entry |= {"options": found.changes, "inputs": {}, "environment": changed_environment(before, now)}
    now["history"] = [*before.get("history", []), entry]
    accepted, read = config.resume_changed, found.meta.get("inputs")
    return RunFolder(path, now["run_id"], found.checkpoint, now["threads"], resolved, now, made, accepted, read)


@dataclass(frozen=True, slots=True)
class _Earlier:
    """Where an earlier run goes on: its checkpoint, what the manifest says of the run, and what options changed."""

    checkpoint: Path
    meta: Mapping[str, Any]
    changes: Mapping[str, Any]


def _is_free(path: Path, resume: str | None) -> bool:
    """Whether a new run may begin here: nothing is in the folder, or only the preparations of a run that stopped before
    its first step. Raises RunFolderError where something else is in it."""
    names = lock.content(path)
    if "resolved.yaml" in names:
        if resume is None and not names <= PREPARED:
            raise RunFolderError(
                f"--out {path}: an earlier run is there. Continue it with --resume auto, or choose another --out."
            )
        return resume is None
    if names & {"checkpoints", *LOGS}:
        raise RunFolderError(
            f"{path / 'resolved.yaml'} is missing, so nobody can say what run is there. Restore it, or choose another "
            "--out."
        )
    if not names <= PREPARED:
        raise RunFolderError(f"--out {path}: the folder is not empty and is no run folder. Choose another --out.")
    return True


def _earlier(path: Path, config: RunConfig, resume: str | None, before: Mapping[str, Any]) -> _Earlier | None:
    """How the run that is there goes on; None where it was stopped before its first checkpoint and starts over.

    Raises RunFolderError where it is another run than `config` says, CheckpointError where a checkpoint is damaged or
    of another run."""
    if "configuration" in before:
        raise RunFolderError(
            f"--out {path}: that run was made by an earlier version of assent and cannot be continued by this one. "
            "Start a new run in another --out (from its model, if you like: --model.path)."
        )
    key = command_key(config)
    if (made := before.get("command", key)) != key:
        raise RunFolderError(f"--out {path}: that run was made with assent {made}, not with assent {key}.")
    checkpoint = find_resume(path / "checkpoints", resume)
    meta: Mapping[str, Any] = {}
    if checkpoint is None:
        if (path / "model").exists():
            raise RunFolderError(
                f"--resume auto: {path} holds a finished model but no complete checkpoint to continue from. Choose "
                "another --out."
            )
    else:
        if checkpoint.resolve().parent != (path / "checkpoints").resolve():
            raise RunFolderError(
                f"--resume {resume}: not a checkpoint of --out {path}. Give its own run folder as --out."
            )
        meta = read_manifest(checkpoint)["meta"]
        own, its = before.get("run_id"), meta.get("run")
        if own and its and own != its:
            raise CheckpointError(
                f"{checkpoint}: a checkpoint of the run {its}, but {path} is the folder of the run {own}. Move it "
                "away, or give its own folder as --out."
            )
    options = _options(path / "resolved.yaml", meta)
    fresh = checkpoint is None and lock.content(path) <= PREPARED
    way_on = "start a new run in another --out (from this run's model, if you like: --model.path)."
    way_on = f"Give the same options, or {'leave --resume away: no step was taken there.' if fresh else way_on}"
    changes = changed_options(options, config, meta.get("inputs", {}), way_on)
    if checkpoint is None:
        return None
    if "inputs" not in meta:
        log.warning(f"{checkpoint} was written by an earlier version: what its run has read cannot be compared.")
    return _Earlier(checkpoint, meta, changes)


def _options(file: Path, meta: Mapping[str, Any]) -> Options:
    """The options of the run so far. Raises RunFolderError where the file does not give those of the checkpoint."""
    problem = "Restore it, or start a new run in another --out."
    try:
        options = flat(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (yaml.YAMLError, ValueError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunFolderError(f"{file}: not readable as the run's options ({reason}). {problem}") from error
    if meta.get("options", options_hash(options)) != options_hash(options):
        raise RunFolderError(f"{file}: not the options that its run was made with: cut, or edited. {problem}")
    return options


def _environment(file: Path) -> dict[str, Any]:
    """environment.json of an earlier run. Raises RunFolderError where it does not hold what it should."""
    found = _read_json(file)
    kinds = {"run_id": str, "command": str, "threads": int, "history": list}
    for name, kind in kinds.items():
        if name in found and (type(found[name]) is not kind or found[name] == 0):
            raise RunFolderError(f"{file}: damaged: '{name}' is {found[name]!r}. {RESTORE}")
    _read_json(file.with_name("data.json"))
    return found


def _keep_logs(path: Path) -> None:
    """Where an earlier run has logged steps but left no checkpoint, puts its logs aside: they are all that is left of
    it, and the run that starts over writes its own."""
    file = path / LOGS[0]
    steps = re.findall(rb'^\{"step": (\d+)', file.read_bytes(), re.MULTILINE) if file.exists() else []
    if not (last := max(map(int, steps), default=0)):
        return
    number = next(n for n in itertools.count(1) if not any(_aside(path / name, n).exists() for name in LOGS))
    for name in LOGS:
        if (path / name).exists():
            (path / name).rename(_aside(path / name, number))
    log.warning(
        f"{path}: an earlier run reached step {last} without a checkpoint; this one starts over from step 0. The old "
        f"log is kept as {_aside(file, number).name}. (--train.save_every N saves on the way.)"
    )


def _aside(file: Path, number: int) -> Path:
    return file.with_name(f"{file.stem}.before-{number}{file.suffix}")


def _kept_threads(config: RunConfig, before: Mapping[str, Any], now: Mapping[str, Any]) -> int:
    """The CPU threads of the run so far, unless the user asks for another number, or other ranks share the work."""
    threads = before.get("threads", now["threads"])
    if config.train.threads or before.get("ranks") != now["ranks"] or threads == now["threads"]:
        return now["threads"]
    log.info(
        f"Resuming with {threads} CPU threads, as the run began, not {now['threads']}: --train.threads changes it."
    )
    return threads


def _read_json(file: Path) -> dict[str, Any]:
    """The object in a file; an empty one where there is no file."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise RunFolderError(f"{file}: damaged: not valid JSON ({error}). {RESTORE}") from error
    if not isinstance(found, dict):
        raise RunFolderError(f"{file}: damaged: expected an object {{...}}, got {type(found).__name__}. {RESTORE}")
    return found


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _commit() -> str | None:
    """Revision of the code in the current folder, with + if it was changed; None outside a repository."""
    status = ("git", "status", "--porcelain=v2", "--branch", "-uno")  # the revision, then a line for each change
    try:
        lines = subprocess.run(status, capture_output=True, text=True, timeout=5, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    revision = next((line.rpartition(" ")[2] for line in lines if line.startswith("# branch.oid ")), "(initial)")
    changed = any(not line.startswith("#") for line in lines)
    return None if revision == "(initial)" else revision + "+" * changed
