"""TASK.yaml: what it may hold, and what is said of what it may not."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from assent.data.formats.judged import HELPSTEER_ATTRIBUTES
from assent.data.records import Message
from assent.errors import ConfigError
from assent.people.exchange import SHAPES
from assent.people.kinds import KINDS
from assent.people.sources import batches
from assent.people.task import (
    ANSWERS,
    HELPSTEER,
    PRESENTED,
    SAMPLED,
    Attribute,
    Changes,
    Extra,
    Item,
    Screening,
    TaskDefinition,
    Thresholds,
    WorkedExample,
    changes,
    plain,
)
from assent.people.taskfile import NEEDS, OF_KINDS, dump_task, load_task, read_task

ROOT = Path(__file__).parents[2]
LEAST = "name: t\nkind: pair\nitems: x.jsonl\n"
FULL = """\
name: help-1.0_x
kind: attributes
title: How good?
question: Rate both.
instructions: |
  Read **all** of it.
examples:
- prompt: 2+2?
  responses: ["4", "5"]
  answer: the first
  why: it is right
items: prompts.jsonl
policies: [runs/sft, runs/dpo]
answers: 2
sampling: {temperature: 0.7, max_new_tokens: 64}
seed: 7
overlap: 3
extra: {up_to: 5, when_differ_by: 2, attribute: helpfulness}
second_pass: 0.05
gold: gold.jsonl
gold_share: 0.1
screening: {items: screen.jsonl, threshold: 0.9, at_least: 4}
thresholds: {gold: 0.7}
lease_minutes: 20
attributes:
  helpfulness: {about: how good, levels: {0: bad, 4: good}}
  verbosity: {lowest: 1, highest: 5}
comment: required
"""


def load(text: str) -> TaskDefinition:
    return load_task(text, "task.yaml")


def complaints(text: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        load(text)
    return str(raised.value).splitlines()


def test_all_of_a_task_is_read():
    task = load(FULL)
    assert (task.name, task.kind, task.overlap, task.seed, task.lease_minutes) == ("help-1.0_x", "attributes", 3, 7, 20)
    assert task.instructions == "Read **all** of it.\n" and task.examples[0].responses == ("4", "5")
    assert task.attributes["helpfulness"] == Attribute(0, 4, "how good", {0: "bad", 4: "good"})
    assert task.attributes["verbosity"] == Attribute(1, 5)
    assert task.extra and task.extra.up_to == 5 and task.extra.when_differ_by == 2
    assert task.screening and (task.screening.threshold, task.screening.at_least) == (0.9, 4)
    assert task.thresholds.gold == 0.7 and task.policies == ("runs/sft", "runs/dpo")
    assert task.sampling.temperature == 0.7 and task.sampling.max_new_tokens == 64
    assert task.source == "task.yaml" and task.heading == "How good?" and load(LEAST).heading == "t"


def test_what_is_left_out_has_its_default():
    task = load("name: t\nkind: attributes\nitems: x\n")
    assert task.attributes == HELPSTEER and tuple(HELPSTEER) == HELPSTEER_ATTRIBUTES
    assert all((each.lowest, each.highest) == (0, 4) and each.about for each in HELPSTEER.values())
    assert {kind: load(f"name: t\nkind: {kind}\nitems: x\nlabels: {['a'] if kind == 'spans' else []}\n").sampled
            for kind in SAMPLED} == dict(SAMPLED)  # fmt: skip


@pytest.mark.parametrize("text", [LEAST, FULL, "name: t\nkind: spans\nlabels: ['é\\u2028', b]\nitems: x\nextra:\n"])
def test_a_definition_is_written_and_read_back(text: str):
    task = load(text)
    again = load(dump_task(task))
    assert again == task and again.digest == task.digest and again.meaning == task.meaning
    assert not changes(task, again)


def test_a_file_is_read_and_its_problems_are_named(tmp_path: Path):
    file = tmp_path / "task.yaml"
    file.write_text("\ufeff" + LEAST, encoding="utf-8")
    assert read_task(file).name == "t" and read_task(file).source == str(file)
    for path, words in (
        (tmp_path / "none.yaml", "none.yaml: No such file or directory."),
        (tmp_path, "it is a folder. Give a YAML file."),
    ):
        with pytest.raises(ConfigError) as raised:
            read_task(path)
        assert str(raised.value).endswith(words)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="it is not UTF-8 text"):
        read_task(file)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "task.yaml: the file is empty. A task has at least `name`, `kind` and `items`."),
        ("- a\n", "task.yaml:1: a task must hold `key: value` lines. Got a list."),
        ("name: [\n", "task.yaml:2: not valid YAML"),
        ("kind: pair\nitems: x\n", "task.yaml:1: 'name' is missing, and it has no default."),
        ("name: t\nkind: pair\n", "task.yaml:1: 'items' is missing, and it has no default."),
        ("name: t\nkind: pairs\nitems: x\n", "task.yaml:2: 'kind' must be one of pair, ranking, best"),
        (LEAST + "strenght: 2\n", "task.yaml:4: unknown key 'strenght'. Perhaps you meant 'strength'."),
        (LEAST + "zzz: 2\n", "task.yaml:4: unknown key 'zzz'. Known: name, kind"),
        (LEAST + "seed: 1\nseed: 2\n", "task.yaml:5: the key 'seed' is there already (line 4)."),
        (LEAST + "overlap: 0\n", "task.yaml:4: 'overlap' must be at least 1. Got '0' (whole number)."),
        (LEAST + "overlap: 1.5\n", "task.yaml:4: 'overlap' must be a whole number. Got '1.5' (number)."),
        (LEAST + "overlap: yes\n", "'overlap' must be a whole number. Got 'yes' (true or false)."),
        (LEAST + "lease_minutes: .nan\n", "task.yaml:4: 'lease_minutes' must be > 0."),
        (LEAST + "strength: 4\n", "task.yaml:4: 'strength' must be from 0 to 3. Got 4."),
        (LEAST + "second_pass: 1\n", "'second_pass' must be at least 0 and below 1"),
        (LEAST + "examples: {a: b}\n", "task.yaml:4: 'examples' must be a list. Got a mapping."),
        (LEAST + "examples:\n- respones: [a]\n", "task.yaml:5: unknown key 'examples[0].respones'."),
        (LEAST + "examples:\n- responses: [a]\n", "task.yaml:5: 'examples[0].prompt' is missing"),
        (LEAST + "sampling:\n  temprature: 1\n", "task.yaml:5: unknown key 'sampling.temprature'."),
        (LEAST + "policies: [a]\nsampling:\n  temperature: -1\n", "task.yaml:6: 'sampling.temperature' must be >= 0."),
        (LEAST + "screening: {threshold: 0.5}\n", "task.yaml:4: 'screening.items' is missing"),
        (LEAST + "gold: {file: x}\n", "task.yaml:4: 'gold' must be text"),
        ("name: a b\nkind: pair\nitems: x\n", "task.yaml:1: 'name' must be letters, digits"),
        ("name: ../x\nkind: pair\nitems: x\n", "task.yaml:1: 'name' must be letters, digits"),
        (LEAST + "policies: [a, a]\n", "task.yaml:4: 'policies' must be different model or run folders."),
        (LEAST + "policies: [a]\nanswers: 3\n", "task.yaml:5: a task of kind pair has 2 answers to an item. Got 3."),
        ("name: t\nkind: spans\nitems: x\n", "task.yaml:2: a task of kind spans needs 'labels'"),
        ("name: t\nkind: spans\nitems: x\nlabels: [a, a]\n", "task.yaml:4: 'labels' must be different words."),
        ("name: t\nkind: spans\nitems: x\nlabels: ['']\n", "task.yaml:4: 'labels' must be different words."),
        (FULL.replace("up_to: 5", "up_to: 3"), "task.yaml:18: 'extra.up_to' (3) must be above 'overlap' (3)"),
        (FULL.replace("e: helpfulness}", "e: helpfulnes}"), "task.yaml:18: 'extra.attribute' must be one of the"),
        (FULL.replace("highest: 5", "highest: 1"), "task.yaml:27: 'attributes.verbosity' must go from 'lowest'"),
        (FULL.replace("highest: 5", "highest: 12"), "task.yaml:27: 'attributes.verbosity' must go from 'lowest'"),
        (
            FULL.replace("4: good", "5: good"),
            "task.yaml:26: 'attributes.helpfulness.levels' has 5, which is not from 0",
        ),
        (FULL.replace("4: good", "x: good"), "task.yaml:26: 'attributes.helpfulness.levels' must be"),
        (FULL.replace("gold: gold.jsonl\n", ""), "'thresholds.gold' means nothing without 'gold'."),
        ("name: t\nkind: edit\nitems: x\ngold: g\n", "task.yaml:4: what is written has no known answer"),
    ],
)
def test_every_mistake_has_its_line(text: str, said: str):
    assert any(line.startswith(said) or said in line for line in complaints(text)), complaints(text)


def test_all_mistakes_come_at_once():
    assert len(complaints("name: a b\nkind: ranking\nitems: x\nstrength: 2\nanswers: 3\nlabels: [a]\n")) == 4
    many = complaints(LEAST + "".join(f"zz{number}: 1\n" for number in range(40)))
    assert len(many) == 21 and many[-1] == "There may be more."


@pytest.mark.parametrize("option", OF_KINDS)
def test_an_option_of_another_kind_is_refused(option: str):
    other = next(kind for kind in SAMPLED if kind not in (*OF_KINDS[option], "spans"))
    value = {
        "attributes": "{a: {highest: 3}}", "extra": "{up_to: 9}", "labels": "[a]", "strength": "2",
    }.get(option, "false")  # fmt: skip
    (line,) = complaints(f"name: t\nkind: {other}\nitems: x\n{option}: {value}\n")
    assert line.startswith(f"task.yaml:4: '{option}' is for kind ") and line.endswith("Remove it.")


@pytest.mark.parametrize("option", NEEDS)
def test_an_option_without_what_it_is_about_is_refused(option: str):
    value = {"sampling": "{top_k: 3}", "engine": "{compile: true}", "precision": "fp32", "gold_share": "0.2"}
    (line,) = complaints(f"{LEAST}{option}: {value.get(option, 2)}\n")
    assert line.startswith(f"task.yaml:4: '{option}' means nothing without '{NEEDS[option]}'.")


# ---- examples and their page


@pytest.mark.parametrize("file", sorted((ROOT / "examples" / "label").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_example_loads_with_its_items(file: Path, monkeypatch):
    monkeypatch.chdir(ROOT)
    task = read_task(file)
    if not task.policies:
        found = list(batches(task))
        assert found[-1].purpose == "work" and len(found[-1].items) == 2
    assert file.read_text().startswith("# ")


def test_there_is_an_example_of_each_kind():
    assert {read_task(file).kind for file in (ROOT / "examples" / "label").glob("*.yaml")} == set(ANSWERS)


def test_the_page_names_every_option_kind_and_shape():
    page = (ROOT / "docs" / "labelling.md").read_text(encoding="utf-8")
    options = re.search(r"\| option \|.*?\n\n", page, re.DOTALL)[0].strip()
    inner = (Attribute, WorkedExample, Extra, Screening, Thresholds)
    names = {each.name for each in dataclasses.fields(TaskDefinition)} - {"source"}
    assert names == set(re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in options.splitlines())))
    for cls in inner:
        for each in dataclasses.fields(cls):
            assert re.search(rf"\b{each.name}\b", options), f"{cls.__name__}.{each.name}"
    for each in dataclasses.fields(TaskDefinition):
        if isinstance(each.default, int | float) and not isinstance(each.default, bool):
            row = next(line for line in options.splitlines() if f"`{each.name}`" in line.split("|")[1])
            assert f"{each.default:g}" in row, each.name
    kinds, shapes = page.split("## Kinds")[1].split("## Export")
    for name, (fewest, most) in ANSWERS.items():
        assert f"| `{name}` | {fewest if fewest == most else f'{fewest}–{most}'} |" in kinds
    assert re.findall(r"^\| `(\w+)` \|", shapes, re.MULTILINE) == list(SHAPES)
    values = re.findall(r"`(\{\"(?:verdict|levels|best|text|labels|spans).*?\})`", kinds)
    assert len(values) == 6
    for value, kind in zip(values, ("pair", "ranking", "best", "yesno", "edit", "spans"), strict=True):
        item = Item((Message("user", "?"),), ("an answer", "another", "third")[: 2 if kind in ("pair", "yesno") else 3])
        labels = ("wrong",) if kind == "spans" else ()
        KINDS[kind].check(json.loads(value), item, TaskDefinition("t", kind, items="x", labels=labels))  # type: ignore


# ---- a changed definition


def test_every_option_belongs_to_one_kind_of_change():
    base = load(LEAST)
    other = {
        "kind": "yesno", "examples": load(FULL).examples, "attributes": dict(HELPSTEER), "labels": ("a",),
        "columns": {"a": "b"}, "policies": ("a",), "comment": "off", "precision": "fp32",
        "screening": load(FULL).screening,
        "extra": load(FULL).extra, "thresholds": load(FULL).thresholds, "sampling": load(FULL).sampling,
        "engine": replace(base.engine, compile=True), "limit": 3, "answers": 2, "gold": "g",
    }  # fmt: skip
    found: dict[str, str] = {}
    for each in dataclasses.fields(TaskDefinition):
        if each.name in ("name", "source"):
            continue
        value = getattr(base, each.name)
        new = other.get(
            each.name, not value if isinstance(value, bool) else value + 1 if isinstance(value, int | float) else "z"
        )
        changed = replace(base, **{each.name: new})
        what = changes(base, changed)
        ((found[each.name], names),) = [(name, got) for name in Changes.__slots__ if (got := getattr(what, name))]
        assert names == (each.name,)
        assert (base.meaning == changed.meaning) == (found[each.name] != "meaning"), each.name
        assert base.digest != changed.digest
    assert {name for name, what in found.items() if what == "presented"} == set(PRESENTED)
    assert {name for name, what in found.items() if what == "meaning"} == {
        "kind", "attributes", "labels", "strength", "ties", "both_bad", "cannot_judge",
    }  # fmt: skip
    assert set(found) == set(plain(base)) - {"name"}


def test_words_about_a_scale_are_presentation_and_its_ends_are_meaning():
    task = load(FULL)
    scale = task.attributes["verbosity"]
    words = replace(
        task, attributes={**task.attributes, "verbosity": replace(scale, about="long", levels={1: "short"})}
    )
    assert changes(task, words) == Changes(presented=("attributes",)) and words.meaning == task.meaning
    for new in ({**task.attributes, "verbosity": Attribute(1, 4)}, {"helpfulness": task.attributes["helpfulness"]}):
        changed = replace(task, attributes=new)
        assert changes(task, changed).meaning == ("attributes",) and changed.meaning != task.meaning


def test_labels_in_another_order_mean_the_same():
    task = load("name: t\nkind: spans\nitems: x\nlabels: [a, b]\n")
    turned = replace(task, labels=("b", "a"))
    assert changes(task, turned) == Changes(presented=("labels",)) and turned.meaning == task.meaning
    assert changes(task, replace(task, labels=("a", "c"))).meaning == ("labels",)


def test_what_yaml_reads_otherwise_than_people_write_it() -> None:
    assert load_task("name: p\nkind: pair\nitems: x\ncomment: off\n", "t").comment == "off"
    for text, read in (("010", 8), ("1:30", 90)):
        with pytest.raises(
            ConfigError, match=f"t:4: 'overlap' must be a whole number. Got '{text}', which YAML reads as {read}"
        ):
            load_task(f"name: p\nkind: pair\nitems: x\noverlap: {text}\n", "t")
    with pytest.raises(ConfigError, match="must be a mapping from whole numbers to text"):
        load_task("name: p\nkind: attributes\nitems: x\nattributes: {help: {levels: {no: bad}}}\n", "t")
