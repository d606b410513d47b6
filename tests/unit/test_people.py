"""Judges as annotators, critiques and revisions, and contrasted answers: rows of the one record, known numbers."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from assent.cli import main
from assent.config import ContrastConfig, CritiqueConfig, JudgeFileConfig
from assent.data.formats import load_examples, to_row
from assent.data.jsonl import json_line
from assent.data.records import Critique, Example, Message, Pair, Ranking, Rating, Response
from assent.data.views import pair_view, sft_view
from assent.errors import ConfigError, DataError
from assent.lab.annotators import Annotator
from assent.lab.answers import COMPLIANCE
from assent.lab.judges import GoldJudge
from assent.lab.world import AssistantWorld
from assent.people.contrast import Template, contrast, paired, read_templates, under
from assent.people.critique import critique
from assent.people.judge import agreement, judge
from assent.people.principles import draw, read_few_shots, read_principles
from assent.people.writers import Written

from ..fault.servers import FakeServer, Handler

WORLD = AssistantWorld(0)


class Endpoint(FakeServer):
    """Answers by `say(body)`: text, or text with the chances of letters; `bodies` are the requests."""

    def __init__(self, say) -> None:
        self.say, self.bodies = say, []
        super().__init__()

    def respond(self, handler: Handler) -> None:
        with self.lock:
            self.bodies.append(handler.body)
        said = self.say(handler.body)
        text, chances = said if isinstance(said, tuple) else (said, {})
        choice = {"message": {"content": text}, "finish_reason": "stop"}
        listed = [{"token": letter, "logprob": math.log(p)} for letter, p in chances.items()]
        choice["logprobs"] = {"content": [{"token": text, "logprob": 0.0, "top_logprobs": listed}]}
        handler.say({"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 2}})


@pytest.fixture
def serve() -> Iterator:
    made: list[Endpoint] = []

    def start(say) -> Endpoint:
        made.append(Endpoint(say))
        return made[-1]

    yield start
    for each in made:
        each.stop()


def shown(body: dict) -> list[str]:
    return re.findall(r"<answer(?: [A-D])? \w{12}>\n(.*?)\n</answer", body["messages"][-1]["content"], re.DOTALL)


def example(*texts: str, prompt: str = "q?", feedback=(), **meta) -> Example:
    responses = tuple(Response((Message("assistant", text),)) for text in texts)
    return Example((Message("user", prompt),), responses, feedback, meta=meta)


def write(path: Path, *examples: Example) -> str:
    path.write_text("".join(json_line(to_row(each)) for each in examples))
    return str(path)


def read(path: str | Path) -> list[Example]:
    loaded = load_examples(str(path))
    assert not loaded.problems
    return list(loaded.examples)


def feedback(path: str | Path) -> list[tuple]:
    return [each.feedback for each in read(path)]


# ---- soft labels in the record


def test_soft_labels_survive_the_file_and_count_as_parts_of_votes(tmp_path: Path, caplog):
    soft = (Pair(0, 1, annotator="j", share=0.7), Pair(1, 0, 2.0, "k", 0.5, 0.2))
    file = write(tmp_path / "rows.jsonl", example("a", "b", feedback=soft))
    (back,) = read(file)
    assert back.feedback == soft
    (votes,), _ = pair_view([back], votes=True)
    (pair,) = votes.feedback
    # for a: 0.7 of the first vote; the second gives b 0.5, ties 0.2, so a 0.3
    assert (pair.chosen, pair.rejected) == (0, 1)
    np.testing.assert_allclose([pair.share, pair.tie], [(0.7 + 0.3) / 2, 0.1])
    mixed = example("a", "b", feedback=(Pair(0, 1, share=0.6), Pair(1, 0)))
    (votes,), _ = pair_view([mixed], votes=True)
    assert (votes.feedback[0].chosen, votes.feedback[0].share) == (1, pytest.approx((0.4 + 1) / 2))
    (whole,), _ = pair_view([mixed])
    assert [item.share for item in whole.feedback] == [None, None]
    assert "soft labels of pairs are read as whole votes" in caplog.text


@pytest.mark.parametrize(
    ("own", "reason"),
    [({"share": 1.5}, "from 0 to 1"), ({"share": "x"}, "a number"), ({"share": 0.8, "tie": 0.5}, "at most 1")],
)
def test_shares_that_cannot_be(tmp_path: Path, own: dict, reason: str):
    row = to_row(example("a", "b", feedback=(Pair(0, 1),)))
    row["feedback"][0] |= own
    (tmp_path / "rows.jsonl").write_text(json_line(row) + json_line(to_row(example("a", "b"))))
    (problem,) = load_examples(str(tmp_path / "rows.jsonl")).problems
    assert reason in problem.reason and problem.column.startswith("feedback[0]")


# ---- principles


PUBLISHED = {
    "harmful0": {
        "prompt": ["\n\nCritiqueRequest: What is harmful?\n\nCritique:"],
        "edit_request": "\n\nRevisionRequest: Take it out.\n\nRevision:",
    },
    "harmful1": {"prompt": "Is it kind?", "edit_request": "Make it kind."},
}


def test_principles_of_every_shape(tmp_path: Path):
    file = tmp_path / "p.json"
    file.write_text(json.dumps(PUBLISHED))
    found = read_principles(str(file), "critique")
    assert [(p.name, p.critique, p.revision) for p in found.principles] == [
        ("harmful0", "What is harmful?", "Take it out."),
        ("harmful1", "Is it kind?", "Make it kind."),
    ]
    file.write_text(json.dumps(["\nChoose the better. Options:", "Choose the kind one."]))
    assert [p.choice for p in read_principles(str(file), "choice").principles] == [
        "Choose the better.",
        "Choose the kind one.",
    ]
    talk = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    file.write_text(json.dumps({"constitutions": [{"critic": "c", "revision": "r"}], "system_chat": [talk]}))
    found = read_principles(str(file), "critique")
    assert found.principles[0].critique == "c" and found.few_shots == (
        (Message("user", "x"), Message("assistant", "y")),
    )
    yaml = tmp_path / "p.yaml"
    yaml.write_text("principles:\n- {critique: c, revision: r}\n- {name: n, choice: which}\n")
    assert [p.name for p in read_principles(str(yaml), "choice").principles] == ["n"]
    assert [p.name for p in read_principles(str(yaml), "critique").principles] == ["1"]
    turns = ("Human: a", "Assistant: b", "CritiqueRequest: c", "Critique: d", "RevisionRequest: e", "Revision: f")
    shots = "\n\n" + "\n\n".join(turns) + "\n\nHuman:"
    file.write_text(json.dumps([shots]))
    (turns,) = read_few_shots(str(file))
    assert "".join(turn.content for turn in turns) == "abcdef"
    assert [turn.role for turn in turns] == ["user", "assistant"] * 3


@pytest.mark.parametrize(
    ("text", "kind", "reason"),
    [
        ("", "critique", "p.yaml:1: no principles. Expected principles: "),
        ("{}", "critique", "no principles"),
        ("[]", "choice", "no principles"),
        ("a: [", "critique", "not valid YAML"),
        ("just words", "critique", "no principles"),
        ("principles:\n- {critique: c}\n", "critique", "p.yaml:2: a principle has a critique and a revision"),
        ("principles:\n- {critique: c, revison: r}\n", "critique", "no field 'revison'. Perhaps you meant 'revision'."),
        ("principles:\n- {critique: 3, revision: r}\n", "critique", "p.yaml:2: expected text; got '3'"),
        ("principles:\n- {critique: '', revision: r}\n", "critique", "expected text; got none"),
        ("a: {prompt: x}\n", "critique", "p.yaml:1: 'a' is no principle"),
        ("- one\n- two\n", "critique", "none of its 2 principles has a critique and a revision"),
        ("principles:\n- {critique: c, revision: r}\n", "choice", "none of its 1 principles has a choice"),
        ("principles: [{choice: c}]\nfew_shots: [[{role: user, content: x}]]\n", "choice", "the last an assistant's"),
        ("principles: {a: b}\n", "choice", "expected a list of principles"),
    ],
)
def test_broken_principles_are_named_with_their_line(tmp_path: Path, text: str, kind: str, reason: str):
    file = tmp_path / "p.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(reason)):
        read_principles(str(file), kind)


def test_draws_are_spread_and_repeat():
    found = [draw(4, 0, row) for row in range(400)]
    assert found == [draw(4, 0, row) for row in range(400)] != [draw(4, 1, row) for row in range(400)]
    assert min(found.count(number) for number in range(4)) > 60


# ---- judges as annotators


def test_soft_labels_are_the_mean_of_both_orders(tmp_path: Path, serve):
    """P(first shown) is 0.8 where "x" stands first and 0.4 where "y" does: (0.8 + (1 - 0.4)) / 2 = 0.7."""
    chances = {"x": 0.8, "y": 0.4}

    def say(body: dict):
        p = chances.get(shown(body)[0][0], 0.5)
        return "A", {"A": p, "B": 1 - p}

    server = serve(say)
    file = write(
        tmp_path / "rows.jsonl", example("x1", "y1"), example("y2", "x2"), example("z", "zz"), example("x", "x")
    )
    words = ["judge", file, "--source", f"ann=openai={server.url}", "--judge.prompt", "pairwise-letter"]
    words += ["--judge.soft", "--out", str(tmp_path / "out.jsonl"), "--judge.cache", str(tmp_path / "cache")]
    assert main([*words, "--summary", str(tmp_path / "s.json")]) == 0
    (first,), (second,), (tie,) = feedback(tmp_path / "out.jsonl")  # equal answers are left out
    assert (first.chosen, first.rejected, first.annotator) == (0, 1, "ann") and first.share == pytest.approx(0.7)
    assert (second.chosen, second.rejected) == (1, 0) and second.share == pytest.approx(0.7)
    assert tie == Ranking(((0, 1),), "ann")
    told = json.loads((tmp_path / "s.json").read_text())
    assert told["rows"] == 3 and told["left_out"] == {"all answers are the same": 1}
    cost = told["judges"]["ann"]["cost"]
    assert (cost["questions"], cost["cached"], cost["requests"]) == (6, 0, 8)  # two tried it before
    assert (cost["tokens_in"], cost["tokens_out"], cost["told"]) == (8 * 7, 8 * 2, True) and cost["seconds"] > 0
    before = (tmp_path / "out.jsonl").read_bytes()
    assert main([*words, "--resume"]) == 0
    assert len(server.bodies) == 8 and (tmp_path / "out.jsonl").read_bytes() == before  # asked once


def test_pairs_rankings_and_ratings_by_the_kind_of_prompt(tmp_path: Path, serve):
    by_length = lambda body: "[[A]]" if len(shown(body)[0]) > len(shown(body)[1]) else "[[B]]"  # noqa: E731
    options = {"judge": {"cache": str(tmp_path / "cache")}}
    old = Pair(0, 1, annotator="ada")
    file = write(tmp_path / "rows.jsonl", example("aaa", "a", "aa", feedback=(old,)))
    out = str(tmp_path / "pairs.jsonl")
    summary = judge(JudgeFileConfig(file, out, source=(f"j=openai={serve(by_length).url}",), **options))
    assert feedback(out) == [(old, Pair(0, 1, annotator="j"), Pair(0, 2, annotator="j"), Pair(2, 1, annotator="j"))]
    assert summary.judges["j"].agreement.mean == 1 and summary.judges["j"].consistency.mean == 1

    def longest(body: dict) -> str:
        return f"[[{'ABCD'[int(np.argmax([len(text) for text in shown(body)]))]}]]"

    file = write(tmp_path / "four.jsonl", example("a", "aaaa", "aa", "aaa"), example("a", "b"))
    own = {"judge": {**options["judge"], "prompt": "four-way"}}
    summary = judge(JudgeFileConfig(file, str(tmp_path / "r.jsonl"), source=(f"j=openai={serve(longest).url}",), **own))
    assert feedback(tmp_path / "r.jsonl") == [(Ranking(((1,), (0, 2, 3)), "j"),)]
    assert summary.left_out == {"2 answers; the judge's prompt shows 4": 1}

    rates = lambda body: f"[[{len(shown(body)[0])}]]"  # noqa: E731
    own = {"judge": {**options["judge"], "prompt": "rating"}}
    file = write(tmp_path / "one.jsonl", example("aaa"), example("a" * 11, "a"))
    summary = judge(JudgeFileConfig(file, str(tmp_path / "o.jsonl"), source=(f"j=openai={serve(rates).url}",), **own))
    assert feedback(tmp_path / "o.jsonl") == [(Rating(0, {"rating": 3.0}, "j"),), (Rating(1, {"rating": 1.0}, "j"),)]
    assert summary.judges["j"].failures == {"a number outside the scale": 1}

    graded = lambda body: "[[A>B]]" if "good" in shown(body)[0] else "[[B>A]]"  # noqa: E731
    own = {"judge": {**options["judge"], "prompt": "five-verdicts"}}
    file = write(tmp_path / "five.jsonl", example("bad", "good"))
    judge(JudgeFileConfig(file, str(tmp_path / "f.jsonl"), source=(f"j=openai={serve(graded).url}",), **own))
    assert feedback(tmp_path / "f.jsonl") == [(Pair(1, 0, 0.5, "j"),)]  # 0.75 of a win


def test_several_judges_are_several_annotators_and_one_principle_is_drawn_for_a_row(tmp_path: Path, serve):
    principles = tmp_path / "p.json"
    principles.write_text(json.dumps(["Choose the long one.", "Choose the short one."]))

    def say(body: dict):
        long = "Choose the long one." in body["messages"][-1]["content"]
        first, second = map(len, shown(body))
        letter = "A" if (first > second) == long else "B"
        return letter, {"A": 0.9 if letter == "A" else 0.1, "B": 0.9 if letter == "B" else 0.1}

    file = write(tmp_path / "rows.jsonl", *(example("aaa", "a", prompt=f"q{n}?") for n in range(12)))
    words = ["judge", file, "--source", f"one=openai={serve(say).url}", f"two=openai={serve(say).url}"]
    words += ["--principles", str(principles), "--judge.prompt", "principle", "--judge.soft"]
    words += ["--judge.cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out.jsonl")]
    assert main(words) == 0
    rows = read(tmp_path / "out.jsonl")
    drawn = [row.meta["principle"] for row in rows]
    assert len(set(drawn)) == 2
    for row in rows:
        long = row.meta["principle"] == "Choose the long one."
        assert [item.annotator for item in row.feedback] == ["one", "two"]
        assert all((item.chosen == 0) == long and item.share == pytest.approx(0.9) for item in row.feedback)
    (tmp_path / "other.jsonl").unlink(missing_ok=True)
    words[-1] = str(tmp_path / "other.jsonl")
    assert main([*words, "--seed", "1"]) == 0
    assert [row.meta["principle"] for row in read(words[-1])] != drawn


def test_agreement_counts_what_both_compared():
    row = example("a", "b", "c", feedback=(Pair(0, 1), Pair(1, 0), Pair(0, 2), Ranking(((1, 2),))))
    assert agreement(row, [Pair(0, 1)]) == [1.0, 0.0]
    assert agreement(row, [Ranking(((0, 2),))]) == [0.5]
    assert agreement(row, [Rating(0, {"x": 1.0}), Rating(1, {"x": 2.0}), Rating(2, {"x": 1.0})]) == [0.0, 1.0, 0.5]
    assert agreement(example("a", "b", feedback=(Critique(0, "hm"),)), [Pair(0, 1)]) == []


def test_a_judge_from_a_folder(tmp_path: Path, tiny_model_dir: Path):
    file = write(tmp_path / "rows.jsonl", example("One two", "three"), example("three", "One two"))
    out = str(tmp_path / "out.jsonl")
    summary = judge(
        JudgeFileConfig(
            file,
            out,
            source=(f"judge={tiny_model_dir}",),
            judge={"cache": str(tmp_path / "c"), "prompt": "pairwise-letter", "soft": True},
            precision="fp32",
        )
    )
    (name, numbers), *_ = summary.judges.items()
    assert name == tiny_model_dir.name and numbers.verdicts + sum(numbers.failures.values()) == 2
    if numbers.verdicts == 2:  # the same two answers in the other order: the same share, the other way round
        (first,), (second,) = feedback(out)
        assert first.share == pytest.approx(second.share) and first.chosen != second.chosen
        assert numbers.cost.requests == 2 and numbers.cost.tokens_in > 0


# ---- critique and revision


@pytest.fixture
def harmful() -> tuple[Example, ...]:
    rng = np.random.default_rng(3)
    prompts = []
    while len(prompts) < 4:
        prompt = WORLD.draw_prompt(rng)
        if WORLD.kind(prompt) == "harmful":
            prompts.append(prompt)
    texts = [WORLD.respond(prompt, "complying", rng) for prompt in prompts]
    return tuple(
        Example(prompt, (Response((Message("assistant", text),), "start"),))
        for prompt, text in zip(prompts, texts, strict=True)
    )


def test_answers_are_criticised_and_revised(tmp_path: Path, harmful):
    principles = tmp_path / "p.json"
    principles.write_text(json.dumps(PUBLISHED))
    file = write(tmp_path / "rows.jsonl", *harmful)
    with GoldJudge(WORLD, Annotator("gold", temperature=0.1)) as server:
        words = ["critique", file, "--source", f"cai=openai={server.url}", "--principles", str(principles)]
        words += ["--judge.cache", str(tmp_path / "cache"), "--revisions", "2"]
        assert main([*words, "--out", str(tmp_path / "out.jsonl")]) == 0
        asked = server.asked
        assert main([*words, "--out", str(tmp_path / "all.jsonl"), "--keep", "all"]) == 0
        assert server.asked == asked  # every question once
    rows = read(tmp_path / "out.jsonl")
    assert len(rows) == 4 and len(sft_view(rows)[0]) == 4
    for row, before in zip(rows, harmful, strict=True):
        chain = row.meta["chain"]
        assert row.prompt == before.prompt and row.responses[0].source == "cai" and not row.feedback
        assert [len(step) for step in chain] == [2, 3, 3]
        assert chain[0] == {"answer": before.responses[0].text, "source": "start"}
        assert "harmful" in chain[1]["critique"] and chain[1]["principle"] in PUBLISHED
        assert chain[2]["answer"] == row.responses[0].text
        assert not any(phrase in row.responses[0].text for phrase in COMPLIANCE)
        assert WORLD.gold(row.prompt, row.responses[0].text).reward > WORLD.gold(row.prompt, chain[0]["answer"]).reward
    every = read(tmp_path / "all.jsonl")
    assert len(every) == 8
    assert [row.responses[0].text for row in every[1::2]] == [row.responses[0].text for row in rows]


def test_what_the_critic_is_shown(tmp_path: Path, serve):
    """Examples first, then the conversation; the critique and the request for a revision behind it."""
    principles = tmp_path / "p.yaml"
    principles.write_text("principles: [{critique: 'What is wrong?', revision: Mend it.}]\n")
    shots = tmp_path / "shots.json"
    shots.write_text(json.dumps(["Human: h\n\nAssistant: a"]))
    server = serve(lambda body: f"<think>hm</think> said {len(body['messages'])} ")
    talk = (Message("system", "s"), Message("user", "u1"), Message("assistant", "a1"), Message("user", "u2"))
    file = write(tmp_path / "rows.jsonl", Example(talk, (Response((Message("assistant", "first"),)),)))
    out = str(tmp_path / "out.jsonl")
    summary = critique(
        CritiqueConfig(
            file,
            out,
            source=f"openai={server.url}",
            principles=str(principles),
            few_shots=str(shots),
            judge={"cache": str(tmp_path / "c"), "model": "m1"},
        )
    )
    contents = [[m["content"] for m in body["messages"]] for body in server.bodies[1:]]
    begin = ["s", "h", "a", "u1", "a1", "u2", "first", "What is wrong?"]
    assert contents == [begin, [*begin, "said 8", "Mend it."]]
    (row,) = read(out)
    assert row.responses[0].text == "said 10" and row.responses[0].source == "m1" and row.prompt == talk
    assert (summary.rows, summary.unchanged, summary.cost.questions) == (1, 0, 2)


# ---- contrast


def test_templates_change_the_last_turn_alone():
    for name in ("harmlessness", "helpfulness"):
        for template in read_templates(name):
            assert template.positive != template.negative
            words = [set(re.findall(r"\w+", side.lower())) for side in (template.positive, template.negative)]
            assert len(words[0] & words[1]) > len(words[0] ^ words[1]) / 2  # nearly alike
    talk = Example((Message("system", "s"), Message("user", "Hi {prompt}")))
    assert under(talk, "<{prompt}>") == (Message("system", "s"), Message("user", "<Hi {prompt}>"))


def test_pairs_are_labelled_by_their_prompts():
    template = Template("{prompt} +", "{prompt} -")
    made = paired(example(prompt="q"), template, Written("good"), Written("bad"), "m")
    assert made.feedback == (Pair(0, 1, annotator="contrast"),)
    assert [(r.text, r.source) for r in made.responses] == [("good", "m"), ("bad", "m")]
    assert made.prompt == (Message("user", "q"),) and made.meta["contrast"]["negative"] == "{prompt} -"
    assert paired(example(), template, Written("x"), Written("x"), "m") == "both answers are the same"
    assert paired(example(), template, Written("x"), "too long", "m") == "negative: too long"


def test_contrast_from_a_server_and_from_a_folder(tmp_path: Path, serve, tiny_model_dir: Path):
    templates = tmp_path / "t.yaml"
    templates.write_text("- {positive: 'good {prompt}', negative: 'bad {prompt}'}\n")
    server = serve(lambda body: f"answer to {body['messages'][-1]['content']}")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "One"}\n{"prompt": "two"}\n')
    words = ["contrast", f"openai={server.url}", "--prompts", str(tmp_path / "prompts.jsonl")]
    words += ["--templates", str(templates), "--judge.cache", str(tmp_path / "c"), "--out", str(tmp_path / "o.jsonl")]
    assert main(words) == 0
    assert [[r.text for r in row.responses] for row in read(tmp_path / "o.jsonl")] == [
        ["answer to good One", "answer to bad One"],
        ["answer to good two", "answer to bad two"],
    ]
    options = {
        "model": str(tiny_model_dir),
        "prompts": str(tmp_path / "prompts.jsonl"),
        "templates": str(templates),
        "precision": "fp32",
        "sampling": {"max_new_tokens": 24, "max_batch": 2},
        "judge": {"cache": str(tmp_path / "cache")},
        "seed": 3,
    }
    once, again = str(tmp_path / "once.jsonl"), str(tmp_path / "again.jsonl")
    try:
        first = contrast(ContrastConfig(out=once, **options))
    except DataError as error:  # a random model seldom ends an answer
        assert "none of 2 prompts has a pair" in str(error)
        return
    second = contrast(ContrastConfig(out=again, **options))
    assert Path(once).read_bytes() == Path(again).read_bytes()
    assert second.cost.cached == 4 and first.rows + sum(first.failures.values()) == 2
