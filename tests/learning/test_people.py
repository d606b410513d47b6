"""Simulated annotators of known quality at a real label server: what `assent aggregate` makes of their labels is nearer
to gold than they are, and it says who is careless; where ratings differ, the queue asks further annotators."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from assent.cli import main
from assent.data.formats import load_examples, to_row
from assent.data.jsonl import json_line
from assent.data.records import Example, Message, Pair, Rating, Response
from assent.lab.answers import COMPARISON_MIX, draw_style
from assent.lab.labellers import CROWD, Given, work
from assent.lab.world import AssistantWorld
from assent.measures.closest import needs_more
from assent.people.store import Store, accounts, projects, sessions
from tests.labserver import LabelProcess

PAIRS, RATED, FEW = 100, 25, 10
NAMES = [labeller.name for labeller in CROWD]
TASKS = {
    "pairs": ("kind: pair\noverlap: 5\nsecond_pass: 0.05\n", PAIRS),
    "one": ("kind: pair\noverlap: 3\n", FEW),
    "same": ("kind: pair\noverlap: 3\n", FEW),
    "rated": ("kind: attributes\noverlap: 3\nextra: {up_to: 5, when_differ_by: 2}\n", RATED),
}


def items(world: AssistantWorld, count: int) -> list[Example]:
    """Different prompts with two answers, of which one is clearly better."""
    rng, found = np.random.default_rng(5), {}
    while len(found) < count:
        prompt = world.draw_prompt(rng)
        task = world.lookup(prompt)
        texts = [world.respond(prompt, draw_style(task, COMPARISON_MIX, rng), rng) for _ in range(2)]
        one, other = (world.gold(prompt, text).reward for text in texts)
        if abs(one - other) > 0.8:
            found[prompt] = Example(prompt, tuple(Response((Message("assistant", text),)) for text in texts))
    return list(found.values())


@pytest.fixture(scope="module")
def labelled(tmp_path_factory, children) -> tuple[Path, dict[str, list[Given]]]:
    """The folder with every project's export, and what the annotators said."""
    folder, world, said = tmp_path_factory.mktemp("panel"), AssistantWorld(0), {}
    asked = items(world, PAIRS)
    files = {}
    for name, (options, count) in TASKS.items():
        rows = folder / f"{name}.jsonl"
        rows.write_text("".join(json_line(to_row(example)) for example in asked[:count]))
        files[name] = folder / f"{name}.yaml"
        files[name].write_text(f"name: {name}\nitems: {rows}\n{options}")
    with LabelProcess(children, folder, *files.values()) as server:
        with Store.open(server.db) as store, store.writing() as c:
            users = [accounts.add_user(c, name, None, "annotator", None) for name in NAMES]
            tokens = {user.name: sessions.api_token(c, user, None) for user in users}
            for name in TASKS:
                for user in users:
                    accounts.add_member(c, projects.project(c, name), user, "annotator", None)
        for name in TASKS:
            said[name] = work(server.url, name, tokens, world, seed=3, budget=600.0)
            words = [
                "label",
                "--db",
                str(server.db),
                "--project",
                name,
                "--export",
                str(folder / f"{name}-votes.jsonl"),
            ]
            assert main(words) == 0
        assert server.stop() in (0, 143)
    return folder, said


def gold(example: Example) -> list[float]:
    return [AssistantWorld(0).gold(example.prompt, response.text).reward for response in example.responses]


def right(rows: Sequence[Example]) -> float:
    """Share of the pairs whose chosen answer has more gold reward."""
    worth = {row.prompt: gold(row) for row in rows}
    marks = [
        worth[row.prompt][each.chosen] > worth[row.prompt][each.rejected]
        for row in rows
        for each in row.feedback
        if isinstance(each, Pair)
    ]
    return float(np.mean(marks))


def test_aggregates_are_nearer_to_gold_and_careless_annotators_are_named(labelled, tmp_path: Path, capsys) -> None:
    folder, _ = labelled
    votes = load_examples(folder / "pairs-votes.jsonl").examples
    assert [len(row.feedback) for row in votes] == [5] * PAIRS
    assert all(each.first is not None for row in votes for each in row.feedback)
    alone = {
        name: right([replace(row, feedback=tuple(e for e in row.feedback if e.annotator == name)) for row in votes])
        for name in NAMES
    }
    made = {}
    for method in ("majority", "dawid-skene", "mace"):
        out, summary = tmp_path / f"{method}.jsonl", tmp_path / f"{method}.json"
        words = ["aggregate", str(folder / "pairs-votes.jsonl"), "--out", str(out), "--method", method]
        assert main([*words, "--summary", str(summary)]) == 0
        made[method] = right(load_examples(out).examples)
    assert min(made.values()) > max(0.9, right(votes) + 0.05), (made, alone)
    assert min(made.values()) > min(alone.values()) + 0.2
    assert min(made["dawid-skene"], made["mace"]) >= made["majority"]
    found = json.loads((tmp_path / "dawid-skene.json").read_text())["annotators"]
    skill = {name: each["right"] for name, each in found.items()}
    careless = {labeller.name for labeller in CROWD if labeller.fault == "careless"}
    assert max(skill[name] for name in careless) < min(skill[n] for n in NAMES if n.startswith("expert")) - 0.15
    named = {line.split()[0] for line in capsys.readouterr().out.splitlines() if "hardly better than chance" in line}
    assert careless <= named and not any(name.startswith(("expert", "ordinary")) for name in named)


def test_everybody_is_shown_sides_and_the_same_seed_says_the_same(labelled) -> None:
    _, said = labelled
    for name, (_, count) in TASKS.items():
        where = [one.shown for one in said[name]]
        assert abs(np.mean([shown == (0, 1) for shown in where]) - 0.5) < 2.5 / np.sqrt(len(where)), name
        assert len(said[name]) >= 3 * count
    one, same = ([(each.name, each.value, each.shown) for each in said[name]] for name in ("one", "same"))
    assert one == same


def test_where_ratings_differ_further_annotators_are_asked(labelled, tmp_path: Path) -> None:
    folder, _ = labelled
    rows = load_examples(folder / "rated-votes.jsonl").examples
    counts = []
    for row in rows:
        ratings = [each for each in row.feedback if isinstance(each, Rating)]
        values = [[each.scores["helpfulness"] for each in ratings if each.response == place] for place in (0, 1)]
        counts.append(len(values[0]))
        assert not any(map(needs_more, values)), "everybody was asked who was to be"
        for have in range(3, counts[-1]):
            assert any(needs_more(own[:have]) for own in values), "nobody was asked who was not to be"
    assert len(rows) == RATED and 3 in counts and 5 in counts
    out = tmp_path / "ratings.jsonl"
    assert main(["aggregate", str(folder / "rated-votes.jsonl"), "--out", str(out), "--ratings", "helpsteer2"]) == 0
    made = load_examples(out).examples
    assert 0 < sum(len(row.feedback) for row in made) <= 2 * RATED
