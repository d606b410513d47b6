"""A loop: stages that a person could have run one by one, each with its output in the folder of the loop.

loop.yaml    every option as it was used
loop.jsonl   a line for each finished stage: its name, what it made and read (digests), its numbers; the same bytes for
             the same loop, however often it was interrupted
times.jsonl  seconds of each stage, by this machine's mood
run.lock     while it runs: whose it is

A stage that is in loop.jsonl is not run again: that what it made and read is still the same is made sure of. One that
was interrupted is run again, and what it does is to go on by itself (training runs), or to write whole or not at all.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from assent import distributed, lock
from assent.config import RunConfig, settings
from assent.config.composed import target_of
from assent.config.loops import LoopConfig
from assent.distributed import World
from assent.errors import RunFolderError, ShutdownRequested
from assent.loops.inputs import check_inputs
from assent.models.digests import file_digest, files_digest, model_digests
from assent.models.loading import quiet_transformers
from assent.outputs import leftovers, write_text
from assent.train.closing import FILE as SUMMARY
from assent.train.history import command_key, flat
from assent.train.log import JsonlLog, read_jsonl
from assent.train.runfolder import owned

log = logging.getLogger(__name__)

OPTIONS, STATE, TIMES = "loop.yaml", "loop.jsonl", "times.jsonl"
MAY_CHANGE = frozenset(
    {"out", "resume", "report_to", "rounds", "train.threads", "train.save_every", "train.keep", "parallel"}
)
"""Options that a loop may be continued with other values of."""

Numbers = Mapping[str, float | None]


class Loop:
    """A loop under way. Every rank has one, and must go through the same stages."""

    def __init__(self, command: str, folder: Path, world: World) -> None:
        self.command, self.folder, self.world = command, folder, world
        self.done: dict[str, dict[str, Any]] = distributed.on_main(lambda: _read_state(folder / STATE))
        self._seen: set[str] = set()

    def stage(
        self,
        name: str,
        make: Callable[[Path], Numbers | None],
        *,
        reads: Sequence[str | Path] = (),
        about: str = "",
    ) -> Path:
        """The output of a stage, a file or folder `name` in the folder of the loop: made by `make`, which gives numbers
        about it, where it is not there yet. `reads` are files, model folders and names on the hub that it is made from.
        Every rank calls `make`.

        Raises RunFolderError where a finished stage's output, or what it was made from, is missing or another now."""
        assert name not in self._seen, f"{name}: two stages of one name"
        self._seen.add(name)
        path = self.folder / name
        named = {self._name(read): read for read in reads}
        if name in self.done:
            distributed.on_main(lambda: self._check(name, path, named))
            return path
        log.info(f"{self.command}: {name}{': ' + about if about else ''}")
        begun = time.monotonic()
        made_from = distributed.on_main(lambda: {each: digest_of(read) for each, read in named.items()})
        numbers = make(path) or {}
        row = {
            "stage": name,
            "output": distributed.on_main(lambda: digest_of(path)),
            "reads": made_from,
            "numbers": {key: _number(value) for key, value in numbers.items()},
        }
        distributed.on_main(lambda: self._add(row, time.monotonic() - begun))
        self.done[name] = row
        return path

    def train(self, name: str, config: RunConfig, *, reads: Sequence[str | Path] = (), about: str = "") -> Path:
        """A stage that is a training run: of the command that the configuration belongs to, in the folder `name`."""
        command = command_key(config)

        def make(path: Path) -> Numbers:
            module, _, function = target_of(command).partition(":")
            getattr(importlib.import_module(module), function)(replace(config, out=str(path), resume="auto"))
            return distributed.on_main(lambda: outcome(path))

        return self.stage(name, make, reads=reads, about=about or f"assent {command}")

    def numbers(self, name: str) -> Numbers:
        """What a finished stage said of its output."""
        found: Numbers = self.done[name]["numbers"]
        return found

    def say(self, text: str) -> None:
        """A line to whoever watches."""
        log.info(f"{self.command}: {text}")

    # ---- the state

    def _name(self, read: str | Path) -> str:
        """How the state calls what is read: within the loop's folder by its place there, so that it can be moved."""
        path = Path(read)
        inside = path.exists() and path.resolve().is_relative_to(self.folder.resolve())
        return path.resolve().relative_to(self.folder.resolve()).as_posix() if inside else str(read)

    def _check(self, name: str, path: Path, named: Mapping[str, str | Path]) -> None:
        row = self.done[name]
        if not path.exists():
            raise RunFolderError(f"--resume: {path} is missing, which {self.command} has made. Restore it.")
        if digest_of(path) != row["output"]:
            raise RunFolderError(
                f"--resume: {path} is not what {self.command} has made: changed, or cut. Restore it, or start a new "
                "loop in another --out."
            )
        then = list(row["reads"].values())
        for (where, read), before in zip(named.items(), then, strict=False):
            if digest_of(read) != before:
                raise RunFolderError(
                    f"--resume: {where} is not what {name} was made from. Restore it, or start a new loop in another "
                    "--out."
                )

    def _add(self, row: Mapping[str, Any], seconds: float) -> None:
        for file, line in ((STATE, row), (TIMES, {"stage": row["stage"], "seconds": round(seconds, 3)})):
            rows = JsonlLog(self.folder / file, (self.folder / file).stat().st_size)
            rows.write_row(line)
            rows.sync()
            rows.close()


@contextmanager
def opened(command: str, config: LoopConfig) -> Iterator[Loop]:
    """The loop of `assent COMMAND` in `config.out`, begun or continued. Every rank must enter it. What is refused
    before anything was made leaves no folder behind.

    Raises ConfigError for options that cannot be, RunFolderError where something else is in the folder, another process
    is at work there, or it was begun with other options; ModelError, ConfigError and DataError where something is not
    there that options name."""
    settings.validate(config)
    quiet_transformers()
    world, folder = distributed.init(config.train.threads), Path(config.out)
    with owned(folder):
        began = distributed.on_main(lambda: _prepare(folder, command, config))
        try:
            loop = Loop(command, folder, world)
            distributed.on_main(lambda: check_inputs(config, rows=not loop.done))
            yield loop
        except (KeyboardInterrupt, ShutdownRequested):
            log.info(f"{command}: finished stages are kept in {folder}. Go on with the same options and --resume auto.")
            raise
        except Exception:
            if began and world.is_main:  # without the others: one that failed alone waits for none
                _undo(folder)
            raise


def seed_of(seed: int, *words: object) -> int:
    """A seed for a part of a loop: the same for the same words, unlike that of any other part."""
    digest = hashlib.sha256(json.dumps([seed, *map(str, words)]).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def here(*names: str | Path | None) -> list[str | Path]:
    """Those of these files, folders and models that lie on this machine, for a stage's `reads`: what a hub holds, and
    what is not given, is left out."""
    return [name for name in names if name is not None and Path(name).exists()]


def digest_of(what: str | Path) -> str:
    """sha256 of a file, of what counts in a model (weights, configuration, tokenizer), or of all files of a folder."""
    path = Path(what)
    if path.is_file():
        return file_digest(path)
    if path.is_dir() and not any((path / name).exists() for name in ("model", "config.json", "adapter_config.json")):
        return files_digest(file for file in path.rglob("*") if file.is_file() and file.name != lock.NAME)
    return hashlib.sha256(json.dumps(model_digests(str(what)), sort_keys=True).encode()).hexdigest()


def _prepare(folder: Path, command: str, config: LoopConfig) -> bool:
    """Sees to it that the folder is new, or that of this loop; writes loop.yaml and empty logs. Whether nothing was
    made here yet."""
    names, file = lock.content(folder), folder / OPTIONS
    now = {"command": command, **settings.plain(config)}
    if began := _is_bare(folder):
        pass
    elif OPTIONS not in names:
        raise RunFolderError(f"--out {folder}: the folder is not empty and holds no loop. Choose another --out.")
    elif config.resume is None:
        raise RunFolderError(
            f"--out {folder}: an earlier loop is there. Continue it with --resume auto, or choose another --out."
        )
    else:
        _check_same(file, now)
    for place in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        for name in leftovers(place):  # of writes that were killed
            (place / name).unlink(missing_ok=True)
    write_text(file, yaml.safe_dump(now, sort_keys=False, allow_unicode=True))
    for log_file in (STATE, TIMES):
        (folder / log_file).touch()
    return began


def _is_bare(folder: Path) -> bool:
    """Whether nothing is there of what loops make."""
    return not lock.content(folder) - {OPTIONS, STATE, TIMES} and not _read_state(folder / STATE)


def _undo(folder: Path) -> None:
    """Takes back what `_prepare` has written, and empty folders, where nothing was made meanwhile."""
    for place in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        with suppress(OSError):
            place.rmdir()
    if _is_bare(folder):
        for name in (OPTIONS, STATE, TIMES):
            (folder / name).unlink(missing_ok=True)


def _check_same(file: Path, now: Mapping[str, Any]) -> None:
    """Raises RunFolderError where the loop was begun with other options."""
    try:
        then = flat(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValueError, AttributeError, RecursionError) as error:
        raise RunFolderError(f"{file}: not readable as the loop's options. Restore it.") from error
    here = flat(now)
    if then.get("command") != here["command"]:
        raise RunFolderError(f"{file.parent}: that loop is of assent {then.get('command')}, not {here['command']}.")
    changed = [
        f"  --{name}: {then.get(name)!r} -> {here.get(name)!r}"
        for name in sorted(then.keys() | here.keys())
        if then.get(name) != here.get(name) and name not in MAY_CHANGE
    ]
    if changed:
        raise RunFolderError(
            "--resume: these options differ from those the loop began with:\n" + "\n".join(changed) + "\nGive the same "
            "options, or start a new loop in another --out."
        )


def _read_state(file: Path) -> dict[str, dict[str, Any]]:
    """Finished stages by name; a last line that was cut off while it was written is none."""
    if not file.exists():
        return {}
    rows = read_jsonl(file)
    for row in rows:
        if not {"stage", "output", "reads", "numbers"} <= row.keys():
            raise RunFolderError(f"{file}: damaged: a line is no finished stage. Restore it.")
    return {row["stage"]: row for row in rows}


def outcome(run: Path) -> Numbers:
    """What a finished run says of itself: its steps, and its last evaluation."""
    summary = json.loads((run / SUMMARY).read_text(encoding="utf-8"))
    end = summary.get("end") or {}
    return {"steps": summary.get("steps", 0), **(end.get("metrics") or {})}


def _number(value: float | None) -> float | None:
    """JSON has no NaN: a number that could not be had is null."""
    return value if value is None or math.isfinite(value) else None
