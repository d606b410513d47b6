"""Rules: GSM8K's against answers judged by hand and all of its gold answers, the others against known cases."""

from __future__ import annotations

import sys
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assent.data.formats import load_examples
from assent.data.records import Example, Message, Origin
from assent.errors import ConfigError, DataError
from assent.measures.numbers import final_number, gold_number
from assent.rewards.group import Group
from assent.rewards.rules import RULES, RuleReward, numeric, rule_reward

# Line of gsm8k_test.jsonl, an answer, and whether it is right: all judged by hand.
BY_HAND = [
    (1, "She sells 16 - 3 - 4 = 9 eggs, so she makes 9 * 2 = $18.", 1),
    (1, "Janet makes $18 every day.\n#### 18", 1),
    (1, "16 - 3 = 13, and 13 * 2 = $26.", 0),
    (3, "The profit is $70,000.00", 1),
    (3, "So he made a profit of 200,000-130,000=$<<200000-130000=70000>>70,000", 1),
    (3, "70,000 <<200000-130000=70001>>", 1),
    (3, "So the new value of the house is $200,000.", 0),
    (3, "#### 70,000 dollars, from a sale at 200,000", 1),
    (5, "sixty minus fifteen minus twenty-five is twenty", 0),
    (7, "20 sheep + 160 sheep + 80 sheep = 260 sheep.", 1),
    (13, "#### 13\n\nQuestion: what is 5 + 5?", 1),
    (13, "I lost count. 13\n#### ", 0),
    (20, "She has to walk at **6** mph...", 1),
    (20, "\\boxed{6}", 1),
    (20, "12/2", 1),
    (21, "9 + 6 = 15 liters of water\n#### 15", 1),
    (21, "Of the 24 liters, 15", 1),
    (21, "There are 15 liters of water in the 24 liters.", 0),  # the last number counts
    (35, "25-2", 0),
    (35, "Siobhan has 23 jewels", 1),
    (110, "They spent 30-2 = $28.00 per gallon", 1),
    (110, "28.", 1),
    (110, "$.28", 0),
    (147, "500 + 1500 + 125 = 2125 blocks", 1),
    (147, "#### 2,125", 1),
    (147, "2.125", 0),
    (202, "109,200+5000=$114,200", 1),
    (202, "114200", 1),
    (202, "114,2000", 0),
    (231, "264,000+12,000=276,000 dollars.", 1),
    (231, "276", 0),
    (490, "-30/3 = -10 degrees", 1),
    (490, "-30/3", 1),
    (490, "it is \u221210", 1),
    (490, "The average is 10 degrees Fahrenheit.", 0),
    (490, "somewhere in 0-10", 0),
    (612, "$1,450,000.", 1),
    (612, "1,350,000+100,000", 0),
    (998, "$2,200 x 3 = $6,600", 1),
    (1114, "-6 + 3 = -3 degrees.", 1),
    (1114, "2 - 8 + 3 = (-3)", 1),
    (1114, "It was 3 degrees.", 0),
]


@pytest.fixture(scope="module")
def gsm8k(real_data) -> list[Example]:
    return load_examples(real_data / "gsm8k_test.jsonl").examples


def group(*texts: str, prompt: str = "q", row: int = 1, **meta: object) -> Group:
    example = Example((Message("user", prompt),), origin=Origin("rows.jsonl", row), meta=meta)
    return Group(example, texts, (True,) * len(texts), tuple(len(text.split()) for text in texts))


@pytest.mark.parametrize("column", ["answer", "final_answer"])
def test_gsm8k_agrees_with_answers_judged_by_hand(gsm8k, column):
    rule = RuleReward("numeric", gold=column)
    for line, text, right in BY_HAND:
        example = gsm8k[line - 1]
        assert example.origin.row == line
        scores = rule.score([Group(example, (text,), (True,), (1,))])
        assert scores.values.tolist() == [float(right)], f"line {line}: {text!r}, gold {example.meta['final_answer']}"


def test_every_gold_answer_of_gsm8k_is_a_number_and_its_own_solution_is_right(gsm8k):
    assert len(gsm8k) == 1319
    RuleReward("numeric").check(gsm8k)
    golds = [gold_number(example.meta["answer"]) for example in gsm8k]
    assert golds == [Fraction(example.meta["final_answer"]) for example in gsm8k]
    for example, gold, other in zip(gsm8k, golds, golds[1:] + golds[:1], strict=True):
        solution = example.responses[0].text
        assert numeric(solution, example.meta["answer"]) == 1.0
        assert numeric(solution, str(other)) == float(gold == other)


@settings(max_examples=300, deadline=None)
@given(
    number=st.integers(-(10**9), 10**9),
    cents=st.integers(0, 99),
    before=st.sampled_from(["", "so ", "3 + 4 = ", "= ", "it costs (", "**", "x=", "5, 6 and\n"]),
    after=st.sampled_from(["", ".", " dollars.", ")", "**", "!", "%", "\n", ", done", " <<1+1=2>>"]),
)
def test_written_numbers_are_read_back(number: int, cents: int, before: str, after: str):
    value = abs(number) + Fraction(cents, 100)
    value = -value if number < 0 else value
    sign = "-" if number < 0 else ""
    for size in (f"{abs(number)}.{cents:02}", f"{abs(number):,}.{cents:02}"):
        for written in (f"{sign}{size}", f"{sign}${size}", f"${sign}{size}"):
            assert final_number(before + written + after) == value, before + written + after
        assert gold_number(f" {sign}{size}. ") == value


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("", None),
        ("no number", None),
        ("3/4", Fraction(3, 4)),
        ("1.5/2", Fraction(3, 4)),
        (".5", Fraction(1, 2)),
        ("$.20", Fraction(1, 5)),
        ("wait...5", Fraction(5)),
        ("1,2,3", Fraction(3)),
        ("12,34", Fraction(34)),
        ("1,2345", Fraction(2345)),
        ("7:30", None),  # a time
        ("7-3", Fraction(3)),
        ("7 - 3", Fraction(3)),
        ("f(x)-3", Fraction(3)),
        ("4/0", None),
        ("9" * 5000, None),  # more digits than Python turns into a number
        ("#### 4 #### 5 6", Fraction(5)),
    ],
)
def test_numbers_in_odd_places(text: str, number: Fraction | None):
    assert final_number(text) == number


@pytest.mark.parametrize("gold", ["about 18", "18 or 20", "eighteen", "#### ", "1/0", "18 dollars"])
def test_a_gold_answer_that_is_no_number_names_the_row(gold: str):
    with pytest.raises(DataError, match=r"rows\.jsonl:7: solution: expected a number, alone or at the end") as caught:
        RuleReward("numeric", gold="solution").score([group("18", row=7, solution=gold)])
    assert gold[:3] in str(caught.value)


@pytest.mark.parametrize(
    ("rule", "options", "text", "gold", "reward"),
    [
        ("exact", {}, " Paris\n", "Paris", 1.0),
        ("exact", {}, "paris", "Paris", 0.0),
        ("exact", {}, "Paris.", "Paris", 0.0),
        ("exact", {}, "18", 18, 1.0),
        ("contains", {}, "It is Paris.", " Paris ", 1.0),
        ("contains", {}, "It is Pari s.", "Paris", 0.0),
        ("regex", {"pattern": r"^\w+!$"}, "yes!", "", 1.0),
        ("regex", {"pattern": r"^\w+!$"}, "oh yes!", "", 0.0),
        ("regex", {"pattern": r"(?s)\Aa.*z\Z"}, "a\nz", "", 1.0),
        ("regex", {"pattern": "b"}, "abc", "", 1.0),
        ("format", {"tags": ["think", "answer"]}, "<think>a</think>\n<answer>b</answer>", "", 1.0),
        ("format", {"tags": ["think", "answer"]}, "x <think></think> y <answer>b</answer> z <p>", "", 1.0),
        ("format", {"tags": ["think", "answer"]}, "<answer>b</answer><think>a</think>", "", 0.0),
        ("format", {"tags": ["think", "answer"]}, "<think>a<answer>b</answer></think>", "", 0.0),
        ("format", {"tags": ["think", "answer"]}, "<think>a</think><answer>b", "", 0.0),
        ("format", {"tags": ["think"]}, "<think>a</think><think>b</think>", "", 0.0),
        ("format", {"tags": ["think"]}, "</think>a<think>", "", 0.0),
        ("format", {"tags": ["think"]}, "", "", 0.0),
        ("length", {"target": 2, "limit": 6}, "a", "", 0.0),
        ("length", {"target": 2, "limit": 6}, "a b", "", 0.0),
        ("length", {"target": 2, "limit": 6}, "a b c", "", -0.25),
        ("length", {"target": 2, "limit": 6}, "a b c d e f", "", -1.0),
        ("length", {"target": 2, "limit": 6}, "a b c d e f g h", "", -1.0),
    ],
)
def test_rules(rule: str, options: dict, text: str, gold: object, reward: float):
    meta = {"answer": gold} if gold else {}
    scores = RuleReward(rule, options).score([group(text, **meta)])
    assert scores.values.tolist() == [reward] and scores.values.dtype == "float64"


def test_each_answer_is_held_against_the_gold_of_its_own_row():
    groups = [group("4", "5", "4", answer="4"), group("4", "5", answer="5")]
    assert RuleReward("exact").score(groups).values.tolist() == [1.0, 0.0, 1.0, 0.0, 1.0]
    assert RuleReward("exact", name="right").name == "right" and RuleReward("exact").name == "exact"
    assert RuleReward("exact").score([]).values.shape == (0,)


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        ({"solution": "4", "hint": "h"}, "there is no such column. Columns beside the prompt: solution, hint."),
        ({}, "there is no such column. Columns beside the prompt: none."),
        ({"answer": " "}, "got ' '"),
        ({"answer": ["4"]}, r"got ['4']"),
        ({"answer": True}, "got True"),
    ],
)
@pytest.mark.parametrize("rule", ["exact", "contains", "numeric"])
def test_a_row_without_a_gold_answer_is_named(rule: str, meta: dict, words: str):
    example = group("4", row=3, **meta).example
    with pytest.raises(DataError) as caught:
        RuleReward(rule).check([group("", answer="4").example, example])
    assert f"rows.jsonl:3: answer: the rule '{rule}' needs the right answer" in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("rule", "options", "words"),
    [
        ("exakt", {}, "no rule 'exakt'. Perhaps you meant 'exact'. Known: exact, numeric"),
        ("length", {"targt": 1, "limit": 2}, "no option 'targt'. Its options: target, limit."),
        ("exact", {"target": 1}, "no option 'target'. Its options: none."),
        ("length", {"target": 1}, "needs the option 'limit'"),
        ("length", {"target": 3, "limit": 3}, "expected 0 <= target < limit; got target 3, limit 3"),
        ("length", {"target": -1, "limit": 3}, "expected 0 <= target < limit"),
        ("regex", {"pattern": "("}, "The rule 'regex': missing )"),
        ("regex", {"pattern": 3}, "The rule 'regex'"),
        ("format", {"tags": "think"}, "expected a list of names such as think, answer; got 'think'"),
        ("format", {"tags": []}, "expected a list of names"),
        ("format", {"tags": ["<think>"]}, "expected a list of names"),
    ],
)
def test_wrong_options_are_refused_before_training(rule: str, options: dict, words: str):
    with pytest.raises(ConfigError) as caught:
        RuleReward(rule, options)
    assert words in str(caught.value)


def test_expressions_are_compared_by_math_verify() -> None:
    pytest.importorskip("math_verify")
    rule = RuleReward("math")
    for gold, answer, right in [
        (r"\frac{1}{2}", r"So it is $\boxed{0.5}$.", 1),
        (r"$\frac{\sqrt{3}}{2}$", r"\boxed{\frac{\sqrt 3}{2}}", 1),
        (r"$[1, 2)$", r"\boxed{[1,2)}", 1),
        ("2x + 1", r"\boxed{1 + 2x}", 1),
        ("Two of four.\n#### 1/2", r"$\frac{2}{4}$", 1),
        ("Then $x = 3$ or so.", r"\boxed{3}", 1),
        ("7", "The answer is 7.", 1),
        ("7", "The answer is 8.", 0),
        ("7", "", 0),
        (r"\frac{1}{2}", r"\boxed{\frac{1}{3}}", 0),
    ]:
        assert rule.score([group(answer, answer=gold)]).values.tolist() == [float(right)], (gold, answer)
    with pytest.raises(DataError, match=r"rows\.jsonl:7: answer: expected an expression that math-verify can read"):
        rule.score([group("1", row=7, answer="only a $")])


def test_math_without_its_extra_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(ConfigError, match=r"The rule 'math': math-verify is not installed here. .*'assent\[math\]'"):
        rule_reward("math", "math")


def test_the_table_names_every_rule():
    assert list(RULES) == ["exact", "numeric", "math", "contains", "regex", "format", "length"]


def test_gold_answers_inside_another_column():
    example = Example(
        (Message("user", "2 + 2?"),), origin=Origin("rows.jsonl", 1), meta={"reward_model": {"ground_truth": "4"}}
    )
    groups = [Group(example, ("It is 4.", "It is 5."), (True, True), (3, 3))]
    rule = RuleReward("numeric", gold="reward_model.ground_truth")
    assert rule.score(groups).values.tolist() == [1.0, 0.0]
    with pytest.raises(
        DataError, match=r"there is no such column\. Columns beside the prompt: reward_model\.ground_truth"
    ):
        RuleReward("numeric", gold="reward_model.answer").check([example])
