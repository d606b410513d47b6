"""What a judge wrote, read strictly: a table of texts, the hostile ones among them."""

from __future__ import annotations

import math

import pytest

from assent.rewards.judge import parse
from assent.rewards.judge.ask import known
from assent.rewards.judge.openai import letter_chances
from assent.rewards.judge.parse import Unreadable
from assent.rewards.judge.prompt import Form

BRACKETS = Form("[[", "]]")
LAST = Form("[[", "]]", several="last")
TAGGED = Form("<answer>[[", "]]</answer>", sections=(("type",), ("rubric", "solution"), ("eval",)))
CHAT = "<type>Chat</type><rubric>r<justify>j</justify></rubric><eval>[[A]] or [[B]]?</eval>"


@pytest.mark.parametrize(
    ("form", "text", "want"),
    [
        (BRACKETS, "[[A]]", "A"),
        (BRACKETS, "Both are fine, but B is clearer.\n\n**[[B]]**", "B"),
        (BRACKETS, "[[ C ]]", "C"),
        (BRACKETS, "[[B]] because it is right. So: [[B]]", "B"),
        (BRACKETS, "<think>[[A]]? no, [[B]]</think>\n[[B]]", "B"),
        (BRACKETS, "thoughts [[A]] of a template that opened them</think>[[B]]", "B"),
        (BRACKETS, "", parse.EMPTY),
        (BRACKETS, " \n\t", parse.EMPTY),
        (BRACKETS, "<think>done</think>  ", parse.EMPTY),
        (BRACKETS, "<think>I prefer [[A]]", parse.THINKING),
        (BRACKETS, "<think>a</think>[[A]]<think>[[B]]", parse.THINKING),
        (BRACKETS, "A", parse.NONE),
        (BRACKETS, "[A]", parse.NONE),
        (BRACKETS, "[[A]", parse.NONE),
        (BRACKETS, "[[\nA\n]]", "A"),
        (BRACKETS, "[[A or B, whichever you, the reader, like better]]", parse.NONE),
        (BRACKETS, "[[a]]", parse.UNKNOWN),
        (BRACKETS, "[[D]]", parse.UNKNOWN),
        (BRACKETS, "[[A/B]]", parse.UNKNOWN),
        (BRACKETS, "[[]]", parse.UNKNOWN),
        (BRACKETS, "[[[A]]]", parse.UNKNOWN),
        (BRACKETS, "[[\u0410]]", parse.UNKNOWN),  # Cyrillic
        (BRACKETS, "[[A]] or [[B]]", parse.SEVERAL),
        (BRACKETS, '[[B]]\nNote that the answer says "[[A]]".', parse.SEVERAL),
        (BRACKETS, "[[A]] see [[1]]", parse.UNKNOWN),
        (LAST, "At first I thought [[A]]. No: [[B]]", "B"),
        (LAST, "[[A]] then [[Z]]", parse.UNKNOWN),
        (Form(), " B\n", "B"),
        (Form(), "B.", parse.UNKNOWN),
        (Form(), "Answer B", parse.UNKNOWN),
        (TAGGED, CHAT + "<answer>[[A]]</answer>", "A"),
        (TAGGED, CHAT + "\n<answer> [[B]] </answer>", parse.NONE),
        (TAGGED, CHAT.replace("rubric", "solution") + "<answer>[[B]]</answer>", "B"),
        (TAGGED, CHAT + "[[A]]", parse.NONE),
        (TAGGED, "<type>Chat</type><eval>e</eval><answer>[[A]]</answer>", "no <rubric> or <solution>"),
        (TAGGED, CHAT.replace("</eval>", "") + "<answer>[[A]]</answer>", "no <eval>"),
        (TAGGED, "<answer>[[A]]</answer>" + CHAT, "no <type>"),
        (TAGGED, CHAT + "<answer>[[A]]</answer><answer>[[B]]</answer>", parse.SEVERAL),
    ],
)
def test_letters(form: Form, text: str, want: str) -> None:
    if len(want) == 1:
        assert parse.letter(text, form, "ABC") == want
        return
    with pytest.raises(Unreadable) as error:
        parse.letter(text, form, "ABC")
    assert error.value.reason == want


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("[[7]]", 7.0),
        ("[[7.0]]", 7.0),
        ("[[1]]", 1.0),
        ("[[10]]", 10.0),
        ("7", parse.NONE),
        ("[7]", parse.NONE),
        ("Rating: 7/10", parse.NONE),
        ("[[7/10]]", parse.UNKNOWN),
        ("[[seven]]", parse.UNKNOWN),
        ("[[7,5]]", parse.UNKNOWN),
        ("[[１]]", parse.UNKNOWN),  # a full-width digit
        ("[[1e1]]", parse.UNKNOWN),
        ("[[nan]]", parse.UNKNOWN),
        ("[[inf]]", parse.UNKNOWN),
        ("[[" + "9" * 30 + "]]", parse.UNKNOWN),
        ("[[7.5]]", parse.FRACTION),
        ("[[0]]", parse.OUTSIDE),
        ("[[-3]]", parse.OUTSIDE),
        ("[[11]]", parse.OUTSIDE),
        ("[[0.99]]", parse.OUTSIDE),
        ("[[7]] out of [[10]]", parse.SEVERAL),
        ("[[7]], which is [[7.0]]", 7.0),
    ],
)
def test_numbers(text: str, want: float | str) -> None:
    if isinstance(want, float):
        assert parse.rating(text, BRACKETS, (1, 10), True) == want
        return
    with pytest.raises(Unreadable) as error:
        parse.rating(text, BRACKETS, (1, 10), True)
    assert error.value.reason == want
    if want == parse.FRACTION:
        assert parse.rating(text, BRACKETS, (1, 10), False) == 7.5


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ('{"true": 2, "short": 0}', [2.0, 0.0]),
        ('{"short": 0, "reasoning": "it is {long}", "true": 1.0}', [1.0, 0.0]),
        ('Here it is:\n```json\n{"true": 2, "short": 1}\n```', [2.0, 1.0]),
        ('{"a": {"true": 2, "short": 1}}', parse.NO_JSON),  # inside another
        ('{"other": 1} {"true": 2, "short": 1}', [2.0, 1.0]),
        ('{"true": 2, "short": 1} {"true": 2, "short": 1}', [2.0, 1.0]),
        ('{"true": 2, "short": 1} {"true": 1, "short": 1}', parse.SEVERAL),
        ("true: 2, short: 1", parse.NO_JSON),
        ("[2, 1]", parse.NO_JSON),
        ('{"true": 2, "short": 1', parse.NO_JSON),
        ('{"true": 2, "true": 0, "short": 1}', parse.NO_JSON),
        ('{"true": NaN, "short": 1}', parse.NO_JSON),
        ('{"true": 2}', parse.CRITERIA),
        ('{"true": 2, "short": 1, "polite": 2}', parse.CRITERIA),
        ('{"true": "2", "short": 1}', parse.NO_NUMBER),
        ('{"true": true, "short": 1}', parse.NO_NUMBER),
        ('{"true": null, "short": 1}', parse.NO_NUMBER),
        ('{"true": [2], "short": 1}', parse.NO_NUMBER),
        ('{"true": 3, "short": 1}', parse.OUTSIDE),
        ('{"true": 2, "short": -1}', parse.OUTSIDE),
        ('{"true": 1e400, "short": 1}', parse.OUTSIDE),
        ('{"true": ' + "9" * 400 + ', "short": 1}', parse.OUTSIDE),
        ('{"true": 1.5, "short": 1}', parse.FRACTION),
        ("{" * 5000, parse.NO_JSON),
        ('{"a":' * 5000, parse.NO_JSON),
        ("", parse.EMPTY),
    ],
)
def test_json(text: str, want: list[float] | str) -> None:
    if isinstance(want, list):
        assert parse.criteria(text, ["true", "short"], (0, 2), True) == want
        return
    with pytest.raises(Unreadable) as error:
        parse.criteria(text, ["true", "short"], (0, 2), True)
    assert error.value.reason == want


# ---- probabilities of letters


def token(word: str, **likeliest: float) -> dict:
    listed = likeliest or {word: 0.9}
    return {
        "token": word,
        "logprob": math.log(listed.get(word, 1e-9)),
        "top_logprobs": [{"token": name, "logprob": math.log(p)} for name, p in listed.items()],
    }


def chances(tokens: list[dict], form: Form, letters: str, tie: str | None) -> dict[str, float]:
    """Of a text that is its tokens."""
    return letter_chances(tokens, "".join(token["token"] for token in tokens), form, letters, tie)


def test_the_letters_stand_at_the_place_of_the_last_verdict() -> None:
    tokens = [token("A"), token(" or ["), token("["), token("A", A=0.9, B=0.05), token("]]"), token(" "), token("[[")]
    tokens += [token("B", B=0.6, A=0.3, C=0.1), token("]]"), token(".")]
    found = chances(tokens, BRACKETS, "AB", "C")
    assert found == pytest.approx({"A": math.log(0.3), "B": math.log(0.6)})
    tokens[7] = token("C", C=0.5, A=0.3, B=0.2)  # a tie is written, and the letters' probabilities are known
    assert chances(tokens, BRACKETS, "AB", "C") == pytest.approx({"A": math.log(0.3), "B": math.log(0.2)})
    alone = [token(" B", **{" B": 0.7, " A": 0.2, "A": 0.1}), token("\n")]
    assert chances(alone, Form(), "AB", None) == pytest.approx({"A": math.log(0.2), "B": math.log(0.7)})
    ended = [token("A", A=0.7, B=0.2), token("<|im_end|>")]  # vLLM lists the token that ended it
    assert letter_chances(ended, "A", Form(), "AB", None) == pytest.approx({"A": math.log(0.7), "B": math.log(0.2)})
    twice = token("A", A=0.6, B=0.3)  # a letter's byte is a token that reads like it
    twice["top_logprobs"].append({"token": "A", "logprob": math.log(1e-6)})
    assert chances([twice], Form(), "AB", None) == pytest.approx({"A": math.log(0.6), "B": math.log(0.3)})


def test_what_is_not_known_of_letters_is_left_out() -> None:
    assert chances([], BRACKETS, "AB", None) == {}
    assert chances([token("no"), token(" verdict")], BRACKETS, "AB", None) == {}
    assert chances([token("[[A"), token("]]")], BRACKETS, "AB", None) == {}  # what else could stand there?
    assert letter_chances([token("Hm A"), token("A")], "A", Form(), "AB", None) == {}  # thoughts that are not its text
    assert chances([{"token": "A", "logprob": -0.1}], Form(), "AB", None) == {}  # nothing is listed
    assert known({"A": math.log(0.9), "x": math.log(0.09)}, {"A": "A", "B": "B"}).keys() == {"A"}
    sure = known({"A": math.log(0.999), "x": math.log(0.0009)}, {"A": "A", "B": "B"})
    assert sure == {"A": math.log(0.999), "B": -math.inf}
    assert known({"x": math.log(0.9), "y": math.log(1e-6)}, {"A": "A", "B": "B"}) == {}
