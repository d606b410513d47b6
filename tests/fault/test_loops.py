"""Loops that are killed at random moments, between stages and inside of them, and continued: the same bytes.

A loop is a row of `LOOPS`: its name, and a function that gives the words of its command line, but for --out and
--resume, in a small `World`."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from assent import cli
from assent.errors import ModelError
from assent.loops.inputs import READ, check_inputs
from assent.loops.loop import STATE, Loop, digest_of
from tests.looping import WORDS, World, words_of

from .commands import until

KILLS = {"iterate": 2}
"""How often each is killed; 1 where nothing else stands here."""


def iterate(world: World) -> list[str]:
    return words_of(
        "iterate",
        world.shared()
        | {
            "data.eval_fraction": 0.3,
            "labels.source": world.scorer,
            "labels.precision": "fp32",
            "rounds": 1,
            "answers": 3,
            "choose.fewer": "use",
            "choose.unfinished": "keep",
            "refresh.labels": world.function,
            "refresh.budget": 12,
        },
    )


def steerlm(world: World) -> list[str]:
    demonstrations, ratings = (world.prompts.with_name(f"{name}.jsonl") for name in ("few", "ratings"))
    few = [json.loads(line) for line in world.prompts.with_name("sft.jsonl").read_text().splitlines()[:24]]
    write(demonstrations, few)
    rated = [{**row, "kind": number % 5, "long": number % 3} for number, row in enumerate(few)]
    write(ratings, [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "responses": [{"messages": [{"role": "assistant", "content": row["completion"]}]}],
            "feedback": [{"kind": "rating", "response": 0, "scores": {name: row[name] for name in ("kind", "long")}}],
        }
        for row in rated
    ])  # fmt: skip
    return words_of(
        "steerlm",
        world.shared()
        | {
            "data.train": demonstrations,
            "prompts": world.prompts,
            "steering.ratings": ratings,
            "steering.limit": 3,
            "steering.sweep": "long",
            "demonstrations": 0.2,
        },
    )


def apo(world: World) -> list[str]:
    golden, pairs = (world.prompts.with_name(f"{name}.jsonl") for name in ("golden", "pairs"))
    write(golden, [json.loads(line) for line in world.prompts.with_name("sft.jsonl").read_text().splitlines()[:40]])
    write(pairs, [
        {"prompt": f"Name {number} things.", "chosen": f"{WORDS[number % 9]} water", "rejected": WORDS[number % 7]}
        for number in range(24)
    ])  # fmt: skip
    return words_of(
        "apo",
        world.shared()
        | {
            "data.train": golden,
            "data.eval_fraction": 0.3,
            "reward_model": world.scorer,
            "pairs": pairs,
            "prompts": world.prompts,
            "rounds": 1,
            "answers": 2,
            "no-stop": [],
        },
    )


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def warp(world: World) -> list[str]:
    options = world.shared() | {"policy": "rloo", "rounds": 1, "rewards.functions": world.function, "front": [0.5, 1]}
    return words_of("warp", options | {"prompts": world.prompts, "options": ["rollout.responses:2", "kl.coef:0.1"]})


CHOICE = """mode: pairwise
user: |
  {{ row.principle }}
  <q>
  {{ prompt }}
  </q>
  <a {{ fence }}>
  {{ answer_a }}
  </a {{ fence }}>
  <b {{ fence }}>
  {{ answer_b }}
  </b {{ fence }}>
  A or B?
form: "{verdict}"
"""


def constitution(world: World) -> list[str]:
    """The policy is its own critic and judge."""
    folder = world.prompts.parent
    (folder / "principles.yaml").write_text("principles: [{critique: Bad, revision: Better, choice: Good}]\n")
    (folder / "choice.yaml").write_text(CHOICE)
    own = {"source": f"judge={world.policy}", "principles": folder / "principles.yaml"}
    own |= {"judge.prompt": folder / "choice.yaml", "judge.max_tokens": 12, "answers": 3}
    runs = ["rloo.rollout.responses:2", "sft.optim.lr:1e-3", "reward.optim.lr:1e-3"]
    return words_of("constitution", world.shared() | own | {"method": "rloo", "options": runs, "rounds": 1})


def rlcd(world: World) -> list[str]:
    folder = world.prompts.parent
    (folder / "templates.yaml").write_text("- {positive: '{prompt} What', negative: '{prompt} Paris'}\n")
    own = {"templates": folder / "templates.yaml", "method": "rloo", "options": ["rloo.rollout.responses:2"]}
    return words_of("rlcd", world.shared() | own | {"rounds": 1})


LOOPS: dict[str, Callable[[World], list[str]]] = {
    "iterate": iterate,
    "warp": warp,
    "apo": apo,
    "steerlm": steerlm,
    "constitution": constitution,
    "rlcd": rlcd,
}


NOT_THERE = {
    "iterate": ("data.eval", "refresh.data", "scorer"),
    "warp": ("data.eval", "scorer", "rewards.model", "rewards.implicit"),
    "apo": ("data.eval", "pairs_eval", "scorer"),
    "steerlm": ("data.eval", "steering.prompts"),
    "constitution": ("data.eval", "comparisons", "demonstrations", "scorer"),
    "rlcd": ("data.eval", "comparisons", "scorer", "contrasted"),
}
"""Loop -> what else it may be told to read."""


def refused(words: list[str], option: str, value: str) -> list[str]:
    """The command line with another value of an option."""
    flag = f"--{option}"
    if option == "data.eval" and "--data.eval_fraction" in words:
        place = words.index("--data.eval_fraction")
        words = [*words[:place], *words[place + 2 :]]
    if flag not in words:
        return [*words, flag, value]
    place = words.index(flag)
    return [*words[: place + 1], value, *words[place + 2 :]]


@pytest.mark.parametrize("name", LOOPS)
def test_what_is_not_there_is_said_before_any_work_and_leaves_no_folder(
    name: str, loop_world: World, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.setattr(Loop, "stage", lambda *_, **__: pytest.fail("work was spent"))
    words, away = LOOPS[name](loop_world), tmp_path / "deep" / "loop"
    given = [option for option in READ if f"--{option}" in words]
    for option in (*given, *NOT_THERE[name]):
        missing = str(tmp_path / "missing")
        value = {"code": f"{missing}.py:f", "rows": f"{missing}.jsonl", "source": f"judge={missing}"}.get(
            READ[option], missing
        )
        for kind in {value, "no/such"} if READ[option] == "model" else {value}:
            assert cli.main([*refused(words, option, kind), "--out", str(away)]) == 2, option
            said = capsys.readouterr().err
            assert f"--{option}" in said, (option, said)
            assert not away.parent.exists(), option


@pytest.mark.parametrize(
    ("name", "place", "option"),
    [
        ("iterate", "options", "reference.path"),
        ("warp", "options", "kl.reference"),
        ("warp", "options", "distill.teacher"),
        ("constitution", "options", "rloo.kl.reference"),
    ],
)
def test_so_is_what_the_options_of_runs_name(name: str, place: str, option: str, loop_world: World, tmp_path: Path):
    words = LOOPS[name](loop_world)
    given = words.index(f"--{place}") if f"--{place}" in words else None
    more = [f"{option}:{tmp_path / 'missing'}"]
    words = [*words, f"--{place}", *more] if given is None else [*words[: given + 1], *more, *words[given + 1 :]]
    config = cli.parse(name, [*words[1:], "--out", str(tmp_path / "out")])[1]
    with pytest.raises(ModelError, match=rf"--{place} {option}:.*missing: there is no such folder"):
        check_inputs(config, rows=True)


def lines(out: Path) -> int:
    """Finished stages."""
    return (out / STATE).read_bytes().count(b"\n") if (out / STATE).exists() else 0


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_that_is_killed_goes_on_to_the_same_bytes(name: str, loop_world: World, children, tmp_path: Path):
    out = tmp_path / "loop"
    words = [*LOOPS[name](loop_world), "--out", str(out), "--resume", "auto"]
    assert children.wait(children.start(words), 1200) == 0, children.log.read_text()
    seconds = [json.loads(line)["seconds"] for line in (out / "times.jsonl").read_text().splitlines()]
    whole = out.rename(tmp_path / "whole")

    rng, killed = random.Random(name), []
    for stage in sorted(rng.sample(range(len(seconds) - 1), KILLS.get(name, 1))):  # in the last one it could be late
        pid = children.start(words)
        until(lambda: lines(out) >= stage, 600)  # noqa: B023
        end = time.monotonic() + rng.uniform(0, 1.2 * seconds[stage])
        until(lambda: lines(out) > stage or time.monotonic() > end, 600)  # noqa: B023
        os.kill(pid, signal.SIGKILL)
        killed.append(children.wait(pid))
    assert {*killed} == {-signal.SIGKILL}
    assert children.wait(children.start(words), 1200) == 0, children.log.read_text()

    assert (out / STATE).read_text() == (whole / STATE).read_text()
    for line in (out / STATE).read_text().splitlines():
        stage = json.loads(line)["stage"]
        assert digest_of(out / stage) == digest_of(whole / stage), stage
    assert not list(out.rglob("*.parts")) and not list(out.rglob("*.part"))
