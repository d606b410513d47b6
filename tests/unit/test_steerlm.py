"""The loop of assent steerlm: its stages and what they hold, interruptions, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from assent import cli, config
from assent.config import SteerLMConfig
from assent.config.settings import validate
from assent.data.chat import Chat
from assent.data.records import Example, Message, Rating, Response
from assent.data.steering import Steering
from assent.errors import ConfigError, DataError, ModelError
from assent.loops import demonstrations
from assent.loops.demonstrations import Labeller, joined, unlabelled
from assent.loops.loop import opened
from assent.loops.steered import asked_at, summarised
from assent.loops.steerlm import relabelled, share_of, steerlm
from assent.measures.steering import correlation
from assent.models.loading import load_tokenizer
from assent.models.reward_head import HeadRule

TWO = Steering(("good", "long"), (4, 1))
LABELLER = Labeller(
    config.SourceConfig(source=("m",)), HeadRule(("long", "kind", "good"), (-1.0, 0.0, 2.0), ((0, 4),) * 3), TWO
)
ASKED = Message("user", "2+2?")
SWEPT = ("asked.jsonl", "asked-answers.jsonl", "asked-bare.jsonl", "asked-rated.jsonl", "steering.json", "steering.svg")


def rating(index: int = 0, **values: float) -> Rating:
    return Rating(index, {"reward": 0.0, **{f"model/{name}": value for name, value in values.items()}})


def test_labels_are_measured_in_the_order_of_the_policy_rounded_and_clamped():
    found = LABELLER.labels(rating(long=1.4, kind=9, good=4.8))
    assert found == ((("good", 4), ("long", 1)), 1)
    assert LABELLER.labels(rating(long=1.4)) is None
    assert LABELLER.worth([(("good", 4), ("long", 1)), (("good", 0), ("long", 3))]).tolist() == [7.0, -3.0]
    one = replace(LABELLER, rule=HeadRule(("good",), (0.5,)), steering=Steering(("good",), (0,)))
    assert one.labels(Rating(0, {"reward": 1.5})) == ((("good", 3),), 0)


def talk(*answers: str | Message) -> Example:
    turns: list[Message] = []
    for said in answers:
        turns += [Message("assistant", said) if isinstance(said, str) else said, Message("user", "And?")]
    return Example((ASKED,), (Response(tuple(turns[:-1])),))


def test_every_trained_turn_is_scored_as_the_answer_to_what_stands_before_it():
    given = Message("assistant", "b", attributes=(("good", 1.0), ("long", 2.0)))
    context = Message("assistant", "c", trained=False)
    rows = [talk("a", given, context, "d"), talk("e")]
    asked = [*unlabelled(rows)]
    assert [(one.meta[demonstrations.PLACE], one.responses[0].text, len(one.prompt)) for one in asked] == [
        ([0, 0], "a", 1),
        ([0, 6], "d", 7),
        ([1, 0], "e", 1),
    ]
    assert not any(turn.attributes for one in asked for turn in one.prompt)
    found, numbers = joined(rows, {(0, 0): rating(good=3, long=0), (0, 6): rating(good=9, long=0)}, LABELLER)
    assert numbers == {"turns": 3, "given": 1, "unscored": 1, "clamped": 1} and len(found) == 1
    labels = [turn.attributes for turn in found[0].responses[0].messages if turn.role == "assistant"]
    assert labels == [(("good", 3), ("long", 0)), given.attributes, (), (("good", 4), ("long", 0))]


def test_own_answers_get_the_labels_that_they_really_got():
    answers = tuple(Response((Message("assistant", text),), "policy", text != "cut") for text in ("a", "b", "cut"))
    example = Example((ASKED,), answers, (rating(0, good=1, long=3), rating(2, good=4, long=4)), meta={"tokens": [1]})
    made, numbers = relabelled([example], LABELLER)
    assert numbers == {"unfinished": 1, "unscored": 1, "clamped": 0}
    assert [one.responses[0].messages[0].attributes for one in made] == [(("good", 1), ("long", 3))]
    assert made[0].meta == {} and made[0].feedback == ()


def test_a_share_of_the_demonstrations():
    rows = [talk(str(n)) for n in range(10)]
    assert share_of(rows, 1.0, 3) == rows and share_of(rows, 0.0, 3) == []
    half = share_of(rows, 0.5, 3)
    assert len(half) == 5 and half == [row for row in rows if row in half] and half != share_of(rows, 0.5, 4)


def test_every_value_of_each_attribute_is_asked_for():
    rows = asked_at([Example((ASKED,), template_kwargs={"long": 2, "thinking": False})], ("long", "good"), TWO)
    assert len(rows) == 10 and rows[3].meta == {"asked": ["long", 3, 0]}
    assert rows[3].template_kwargs == {"good": 4, "long": 3, "thinking": False}
    assert rows[9].template_kwargs == {"good": 4, "long": 1, "thinking": False}


def test_asked_against_measured():
    def row(value: int, number: int, measured: float | None) -> Example:
        feedback = () if measured is None else (rating(good=4.0, long=measured, kind=0.0),)
        answer = (Response((Message("assistant", "x"),)),)
        return Example((ASKED,), answer, feedback, meta={"asked": ["long", value, number]})

    rows = [row(value, number, value + 0.1 * number) for value in range(5) for number in range(3)] + [row(0, 3, None)]
    found = summarised(rows, ("long",), LABELLER)
    own = found["attributes"]["long"]
    assert found["answers"] == 16 and found["unscored"] == 1
    assert own["measured"]["2"]["long"].mean == pytest.approx(2.1) and own["measured"]["2"]["good"].mean == 4.0
    assert own["measured"]["0"]["long"].missing == 1 and own["correlation"].mean > 0.99


def test_correlation_is_pearsons_and_its_interval_is_over_prompts():
    rng = np.random.default_rng(0)
    asked = np.tile(np.arange(5), 40)
    prompt = np.repeat(np.arange(40), 5)
    measured = asked + rng.normal(0, 1.0, 200)
    measured[7] = np.nan
    there = ~np.isnan(measured)
    found = correlation(asked, measured, prompt)
    assert found.mean == pytest.approx(np.corrcoef(asked[there], measured[there])[0, 1], abs=1e-12)
    assert (found.n, found.missing) == (199, 1) and found.low < found.mean < found.high
    assert correlation(asked, -measured, prompt).mean == pytest.approx(-found.mean)
    twice = correlation(np.tile(asked, 4), np.tile(measured, 4), np.tile(prompt, 4))  # no new prompt: no new evidence
    assert twice.high - twice.low == pytest.approx(found.high - found.low, rel=0.2)
    assert np.isnan(correlation(asked, np.zeros(200), prompt).mean)
    assert np.isnan(correlation(asked[:1], asked[:1].astype(float), prompt[:1]).low)


# ---- the loop as a whole


@pytest.fixture(scope="module")
def given(tiny_model_dir: Path, tmp_path_factory) -> SteerLMConfig:
    """Short answers of two lengths, some turns labelled already, and ratings of them."""
    folder = tmp_path_factory.mktemp("steerlm")
    words = ("yes", "yes indeed, it is so")
    said = [{"prompt": f"Is {n} more than 3?", "completion": words[n % 2]} for n in range(24)]
    labelled = [
        {"role": "user", "content": "Is it?"},
        {"role": "assistant", "content": "no", "attributes": {"good": 1, "long": 0}},
    ]
    rows = [
        {"messages": [{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r["completion"]}]}
        for r in said
    ]
    rated = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "responses": [{"messages": [{"role": "assistant", "content": row["completion"]}]}],
            "feedback": [{"kind": "rating", "response": 0, "scores": {"good": 3 + n % 2, "long": 4 * (n % 2)}}],
        }
        for n, row in enumerate(said)
    ]
    (folder / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"messages": labelled}]))
    (folder / "ratings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rated))
    (folder / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": f"Is {n} less than 9?"}) + "\n" for n in range(4))
    )
    return SteerLMConfig(
        model={"path": str(tiny_model_dir), "precision": "fp32"},
        data={"train": str(folder / "sft.jsonl"), "max_length": 96},
        out=str(folder / "loop"),
        rounds=2,
        answers=2,
        prompts=str(folder / "prompts.jsonl"),
        optim={"lr": 2e-2},
        train={"batch_size": 8, "max_steps": 12, "threads": 1},
        sampling={"max_new_tokens": 48},
        steering={"ratings": str(folder / "ratings.jsonl"), "wanted": "long=0", "limit": 2, "sweep": ("long",)},
        demonstrations=0.5,
    )


@pytest.fixture(scope="module")
def whole(given: SteerLMConfig) -> Path:
    steerlm(given)
    return Path(given.out)


def rows_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_the_loop_leaves_what_it_says(whole: Path):
    state = {row["stage"]: row for row in rows_of(whole / "loop.jsonl")}
    assert [*state] == [
        "attributes", "data/turns.jsonl", "data/rated.jsonl", "data/labelled.jsonl", "template.jinja",
        "round-1/sft", *(f"round-1/{name}" for name in SWEPT),
        *(f"round-2/{name}.jsonl" for name in ("answers", "bare", "rated", "labelled")), "round-2/sft",
        *(f"round-2/{name}" for name in SWEPT),
    ]  # fmt: skip
    numbers = state["data/labelled.jsonl"]["numbers"]
    assert (numbers["rows"], numbers["given"], numbers["unscored"]) == (25, 1, 0)
    last = rows_of(whole / "data" / "labelled.jsonl")[-1]["responses"][0]["messages"][0]
    assert last == {"role": "assistant", "content": "no", "attributes": {"good": 1.0, "long": 0.0}}
    assert state["template.jinja"]["numbers"]["default/long"] == 0
    own = state["round-2/labelled.jsonl"]["numbers"]
    assert own["own"] + own["unfinished"] + own["unscored"] == state["round-2/rated.jsonl"]["numbers"]["answers"]
    assert own["rows"] == own["own"] + round(0.5 * 25) and own["own"] > 0
    assert all("chat_template_kwargs" not in row for row in rows_of(whole / "round-1" / "asked-bare.jsonl"))
    assert len(rows_of(whole / "round-1" / "asked.jsonl")) == 2 * 5
    said = json.loads((whole / "round-2" / "steering.json").read_text())["attributes"]
    assert set(said) == {"long"} and set(said["long"]["measured"]["3"]) == {"good", "long"}
    assert (whole / "round-2" / "steering.svg").read_text().startswith("<?xml")


def test_the_policy_can_be_asked(whole: Path, capsys):
    prompts = str(whole / "round-1" / "asked.jsonl")
    words = ["generate", str(whole / "round-2" / "sft"), "--prompts", prompts, "--limit", "1"]
    assert cli.main([*words, "--attributes", "good=4,long=9"]) == 2
    assert "long must be from 0 to 4" in capsys.readouterr().err
    assert cli.main([*words, "--attributes", "good=4,long=2", "--sampling.max_new_tokens", "4"]) == 0


def test_attributes_of_the_file_alone_need_no_scores(given, whole, tmp_path):
    """All answers labelled: nothing is scored, and the order of names in a label does not matter."""
    rows = rows_of(whole / "data" / "labelled.jsonl")[:8]
    for row in rows:
        turn = row["responses"][0]["messages"][0]
        turn["attributes"] = dict(reversed(turn["attributes"].items()))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = replace(given.data, train=str(tmp_path / "rows.jsonl"))
    with opened("steerlm", replace(given, out=str(tmp_path / "loop"), data=data)) as loop:
        chat = Chat(load_tokenizer(given.model))
        labeller = replace(LABELLER, rule=HeadRule(("good", "long"), (1.0, 1.0)))
        made = demonstrations.demonstrations(loop, "data", data.train, data, labeller, chat)
    assert not (tmp_path / "loop" / "data" / "turns.jsonl").exists()
    assert [row["responses"] for row in rows_of(made)] == [row["responses"] for row in rows]


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ({"good": 1}, "lacks long: an answer is labelled with every attribute"),
        ({"good": 1, "long": 7}, "long must be from 0 to 4. Got 7"),
        ({"good": 1, "lonk": 1}, "there is no attribute 'lonk'. Perhaps you meant 'long'"),
    ],
)
def test_labels_of_the_file_that_do_not_fit_are_bad_rows(given, whole, label, words, tmp_path):
    rows = rows_of(whole / "data" / "labelled.jsonl")[:2]
    rows[1]["responses"][0]["messages"][0]["attributes"] = label
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    steering = {**vars(given.steering), "model": str(whole / "attributes"), "ratings": None}
    again = replace(
        given, data=replace(given.data, train=str(tmp_path / "rows.jsonl")), steering=steering, out=str(tmp_path / "l")
    )
    with pytest.raises(DataError, match=words) as wrong:
        steerlm(again)
    assert "rows.jsonl:2" in str(wrong.value)


@pytest.mark.parametrize(
    ("steering", "error", "words"),
    [
        ({"names": ("good", "lonk")}, ConfigError, "has no 'lonk'. Perhaps you meant 'long'"),
        ({"names": ("good", "good")}, ConfigError, "each once"),
        ({"names": ("good",), "sweep": ("long",), "wanted": None}, ConfigError, "--steering.sweep.*no 'long'"),
        ({"wanted": "long=9"}, ConfigError, "--steering.wanted long=9: long must be from 0 to 4"),
        ({"wanted": "loong=1"}, ConfigError, "Perhaps you meant 'long'"),
        ({"highest": 3, "wanted": None}, ConfigError, "ratings of good go from 3 to 4|ratings of long go from 0 to 4"),
        ({"line": "nothing\n"}, ConfigError, "must hold {attributes}"),
        ({"options": {"optim.rate": "1"}}, ConfigError, "--steering.options optim.rate"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_trained(given, steering, error, words, tmp_path):
    section = {**vars(given.steering), **steering}
    with pytest.raises(error, match=words):
        steerlm(replace(given, steering=section, out=str(tmp_path / "loop")))
    assert not (tmp_path / "loop" / "attributes").exists()


def test_a_model_that_measures_no_attributes_is_refused(given, scorer_dir, tiny_model_dir, tmp_path):
    for folder, words in ((scorer_dir, "outputs reward for one reward"), (tiny_model_dir, "no reward head")):
        section = {**vars(given.steering), "ratings": None, "model": str(folder)}
        with pytest.raises(ModelError, match=f"measures no attributes: it has {words}"):
            steerlm(replace(given, steering=section, out=str(tmp_path / folder.name)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steering": {}}, "Neither is given"),
        ({"steering": {"model": "m", "ratings": "r"}}, "Both are given"),
        ({"steering": {"model": "m", "options": {"optim.lr": "1"}}}, "Give --steering.ratings"),
        ({"steering": {"model": "m", "lowest": 4}}, "--steering.lowest 4 must be below"),
        ({"steering": {"model": "m", "line": "{attributes}\\n"}}, "stands there as two letters"),
        ({"data": {"train": "d", "rendered": True}, "steering": {"model": "m"}}, "--data.rendered leaves out"),
    ],
)
def test_options_that_contradict_each_other(given, change, words):
    with pytest.raises(ConfigError, match=words):
        validate(replace(given, **change))


def test_a_round_without_any_usable_answer(given, whole, tmp_path):
    """No answer ends within two tokens."""
    section = {**vars(given.steering), "ratings": None, "model": str(whole / "attributes")}
    short = replace(given, sampling={"max_new_tokens": 1}, steering=section, out=str(tmp_path / "loop"))
    with pytest.raises(DataError, match="no answer of the policy can be learnt from: . were cut off"):
        steerlm(replace(short, train=replace(given.train, max_steps=1)))
