"""What the studies of the label server share: a real server as a process of its own, annotators with tokens, items of
the assistant world, and its gold order."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx2
import numpy as np
import yaml
from sqlalchemy import Connection

from assent.cli import main
from assent.data.formats import load_examples, to_row
from assent.data.jsonl import json_line
from assent.data.records import Example, Feedback, Message, Pair, Ranking, Response
from assent.lab.answers import COMPARISON_MIX, draw_style
from assent.lab.world import AssistantWorld, Prompt
from assent.outputs import write_text
from assent.people.store import accounts, projects, sessions
from assent.people.store.board import Board
from assent.people.store.records import Role
from assent.people.store.store import Store
from benchmarks.reward_ensembles import write_start

COMMAND = (sys.executable, "-m", "assent", "label")
SLOW = 900.0
"""Seconds that a server has to begin, and to end."""


def start(root: Path, seed: int, scale: float) -> Path:
    """What reward models begin from; training it says nothing."""
    with contextlib.redirect_stdout(io.StringIO()):
        write_start(root, seed, scale)
    return root / "start"


# ---- items


def answers_to(
    world: AssistantWorld, prompt: Prompt, count: int, gap: float, rng: np.random.Generator
) -> list[str] | None:
    """Different answers whose gold rewards are at least `gap` apart, one from the next; None where chance gave none."""
    task = world.lookup(prompt)
    for _ in range(50):
        texts = [world.respond(prompt, draw_style(task, COMPARISON_MIX, rng), rng) for _ in range(count)]
        if np.diff(sorted(world.gold(prompt, text).reward for text in texts)).min() >= gap:
            return texts
    return None


def items(
    world: AssistantWorld, count: int, answers: int, gap: float, rng: np.random.Generator, leave: frozenset[Prompt]
) -> list[Example]:
    """Different prompts, none of `leave`, with so many answers each."""
    found: dict[Prompt, Example] = {}
    while len(found) < count:
        prompt = world.draw_prompt(rng)
        if prompt in leave or prompt in found:
            continue
        if (texts := answers_to(world, prompt, answers, gap, rng)) is not None:
            found[prompt] = Example(prompt, tuple(Response((Message("assistant", text),)) for text in texts))
    return list(found.values())


def gold_of(world: AssistantWorld, example: Example) -> list[float]:
    """The gold reward of each answer."""
    return [world.gold(example.prompt, response.text).reward for response in example.responses]


def with_gold(world: AssistantWorld, example: Example) -> Example:
    """The example with the gold order as its feedback: a pair, or a ranking of more."""
    order = np.argsort(gold_of(world, example))[::-1].tolist()
    said: Feedback = Pair(*order, annotator="gold") if len(order) == 2 else Ranking(tuple((i,) for i in order), "gold")
    return replace(example, feedback=(said,))


def write_examples(path: Path, examples: Sequence[Example]) -> Path:
    write_text(path, "".join(json_line(to_row(example)) for example in examples))
    return path


def read_examples(path: Path) -> list[Example]:
    """All rows; a row that cannot be read is an error of the study."""
    loaded = load_examples(path)
    assert not loaded.problems, loaded.problems[0]
    return loaded.examples


def write_task(path: Path, **task: Any) -> Path:
    path.write_text(yaml.safe_dump(task, sort_keys=False))
    return path


# ---- the server


class LabelServer:
    """`assent label TASK.yaml...` on a database, in a process of its own, while it is entered. `url` stays the same
    from one start to the next."""

    def __init__(self, tasks: Sequence[Path], db: Path, log: Path, port: int | None = None) -> None:
        self.tasks, self.db, self.log = tasks, db, log
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns once it answers."""
        words = [*COMMAND, *map(str, self.tasks), "--db", str(self.db), "--port", str(self.port)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=log, env=child_environment())
        until = time.monotonic() + SLOW
        while True:
            if self.process.poll() is not None:
                raise RuntimeError(f"the label server ended: {self.log.read_text()[-2000:]}")
            try:
                httpx2.get(f"{self.url}/health", timeout=5.0, trust_env=False)
                return
            except httpx2.HTTPError:
                pass
            if time.monotonic() > until:
                self.kill()
                raise RuntimeError(f"the label server does not answer: {self.log.read_text()[-2000:]}")
            time.sleep(0.1)

    def stop(self) -> int:
        """Ends it in order, as a service manager does; its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(SLOW)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> LabelServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None and self.process.poll() is None:
            self.stop()


def processor_seconds(server: LabelServer) -> float:
    """What a server's process has used so far."""
    assert server.process is not None
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def child_environment() -> dict[str, str]:
    """Of processes that run the source that this one runs."""
    import assent

    return os.environ | {"PYTHONPATH": str(Path(assent.__file__).parents[1])}


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return int(place.getsockname()[1])


def hired(db: Path, project: str, names: Sequence[str], role: Role = "annotator") -> Mapping[str, str]:
    """Name -> API token of a new account with that role in the project, also while a server runs on the database."""
    with Store.open(db, create=False) as store, store.writing() as c:
        place = projects.project(c, project)
        tokens = {}
        for name in names:
            user = accounts.add_user(c, name, None, role, None) if name not in known(c) else accounts.user(c, name)
            accounts.add_member(c, place, user, role, None)
            tokens[name] = sessions.api_token(c, user, None)
        return tokens


def known(c: Connection) -> set[str]:
    return {user.name for user in accounts.users(c)}


ODD = {
    "disagrees": "careless",
    "contradicts themselves": "careless",
    "hurries": "careless",
    "known answers": "careless",
    "prefers the longer": "length",
    "prefers the left": "left",
}
"""What the lead's page says of somebody -> the fault of a labeller that it tells of."""


def found_by_lead(db: Path, project: str) -> dict[str, list[str]]:
    """Fault -> who has it by the lead's page; "other": who is said to be what nobody here is."""
    with Store.open(db, create=False) as store:
        with store.reading() as c:
            place = projects.project(c, project)
        live = Board(store, place.id).look(wait=SLOW).live
    assert live is not None, "the labels could not be measured"
    found: dict[str, set[str]] = {}
    for name, report in live.annotators.items():
        for finding in report.odd:
            found.setdefault(ODD.get(finding.name, "other"), set()).add(name)
    return {fault: sorted(names) for fault, names in found.items()}


def exported(task: Path, db: Path, out: Path) -> list[Example]:
    """The labels of a task's project, in assent's own shape."""
    words = ["label", str(task), "--db", str(db), "--export", str(out), "--format", "assent"]
    if code := main(words):
        raise RuntimeError(f"assent {' '.join(words)} ended with {code}")
    return read_examples(out)
