from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from assent.data.records import Message
from assent.errors import DataError, UserError
from assent.evaluate.results import Answer, PolicyTable, evaluate_policies
from assent.statistics import mean_interval, proportion_interval

PROMPTS = [(Message("user", f"question {i}"),) for i in range(12)]


def gold(prompt, text: str) -> float | None:
    return None if text == "?" else float(len(text))


def proxy(prompt, text: str) -> float:
    return 10.0 * len(text)


def answers(texts: list[str], **kwargs) -> list[Answer]:
    return [Answer(i, text, num_tokens=2 * len(text), finished=text != "cut", **kwargs) for i, text in enumerate(texts)]


@pytest.fixture
def table() -> PolicyTable:
    policies = {
        "sft": answers(["aa", "bb", "c", "dd"] * 3, kl=0.0),
        "ppo": answers(["aaa", "bb", "cccc", "cut"] * 3, kl=1.5),
    }
    return evaluate_policies(policies, PROMPTS, {"gold": gold, "proxy": proxy}, baseline="sft")


def test_numbers_of_the_table(table: PolicyTable):
    sft, ppo = table.policies
    assert table.scorers == ("gold", "proxy")
    assert sft.scores["gold"].mean == 7 / 4 and ppo.scores["gold"].mean == 12 / 4
    assert ppo.scores["proxy"].mean == 30.0
    assert ppo.scores["gold"] == mean_interval([3.0, 2.0, 4.0, 3.0] * 3)
    assert ppo.kl.mean == 1.5 and ppo.length.mean == 6.0
    assert ppo.unfinished == proportion_interval(3, 12)
    assert sft.win_rate is None and sft.gain is None
    assert ppo.win_rate is not None and ppo.gain is not None
    assert (ppo.win_rate.wins, ppo.win_rate.ties, ppo.win_rate.losses) == (9, 3, 0)
    assert ppo.win_rate.rate.mean == 10.5 / 12
    assert ppo.gain.difference.mean == 5 / 4
    assert table.best("gold") == "ppo"


def test_unscored_answers_are_left_out_and_counted():
    policies = {"sft": answers(["aa", "bb", "cc"]), "dpo": answers(["aaaa", "?", "cccc"])}
    result = evaluate_policies(policies, PROMPTS, {"gold": gold}, baseline="sft").policies[1]
    assert (result.scores["gold"].mean, result.scores["gold"].n, result.scores["gold"].missing) == (4.0, 2, 1)
    assert result.win_rate is not None and result.gain is not None
    assert (result.win_rate.rate.mean, result.win_rate.rate.missing) == (1.0, 1)
    assert result.gain.difference.missing == 1
    assert result.kl.n == 0 and math.isnan(result.kl.mean)


def test_answers_are_paired_by_prompt_not_by_position():
    sft = [Answer(i, "a" * (i + 1), 1, True) for i in range(6)]
    better = [Answer(i, "a" * (i + 2), 1, True) for i in reversed(range(6))]
    result = evaluate_policies({"sft": sft, "b": better}, PROMPTS, {"gold": gold}, baseline="sft").policies[1]
    assert result.win_rate is not None and result.gain is not None
    assert result.win_rate.wins == 6
    assert (result.gain.difference.low, result.gain.difference.high) == (1.0, 1.0)


def test_several_answers_of_one_prompt_are_one_cluster():
    single = [Answer(i, "a" * (i + 1), 1, True) for i in range(8)]
    repeated = [answer for answer in single for _ in range(4)]
    policies = {"sft": answers(["aaaa"] * 8), "one": single, "four": repeated}
    _, one, four = evaluate_policies(policies, PROMPTS, {"gold": gold}, baseline="sft").policies
    assert four.scores["gold"].half_width == pytest.approx(one.scores["gold"].half_width)
    assert four.scores["gold"].n == 32


def test_scores_carried_by_the_answers_are_used_and_not_asked_again():
    def fail(prompt, text):
        raise AssertionError("asked again")

    policies = {"sft": [Answer(0, "a", 1, True, scores={"gold": 2.5}), Answer(1, "a", 1, True, scores={"gold": None})]}
    result = evaluate_policies(policies, PROMPTS, {"gold": fail}, baseline="sft").policies[0]
    assert (result.scores["gold"].mean, result.scores["gold"].missing) == (2.5, 1)


def test_scorers_see_the_prompt():
    policies = {"sft": answers(["x"] * 12)}
    scorer = {"gold": lambda prompt, text: float(prompt[-1].content.split()[-1])}
    assert evaluate_policies(policies, PROMPTS, scorer, baseline="sft").policies[0].scores["gold"].mean == 5.5


def test_comparisons_are_drawn_by_chance_from_the_prompts_that_all_answered():
    policies = {"sft": answers(["a"] * 12), "ppo": answers(["b"] * 3)}
    table = evaluate_policies(policies, PROMPTS, {"gold": gold}, baseline="sft", show=2)
    assert len(table.comparisons) == 2
    assert {c.prompt[0].content for c in table.comparisons} < {"question 0", "question 1", "question 2"}
    answer = table.comparisons[0].answers["ppo"]
    assert answer.text == "b" and answer.scores["gold"] == 1.0 and answer.prompt_index < 3
    drawn = {
        evaluate_policies(policies, PROMPTS, {"gold": gold}, baseline="sft", show=1, seed=seed).comparisons[0].prompt
        for seed in range(30)
    }
    assert len(drawn) == 3


def test_mistakes_are_named():
    good = {"sft": answers(["a"])}
    with pytest.raises(UserError, match="baseline"):
        evaluate_policies(good, PROMPTS, {"gold": gold}, baseline="ppo")
    with pytest.raises(UserError, match="no answers"):
        evaluate_policies({"sft": []}, PROMPTS, {"gold": gold}, baseline="sft")
    with pytest.raises(UserError, match="prompt 12, but there are 12"):
        evaluate_policies({"sft": [Answer(12, "a", 1, True)]}, PROMPTS, {"gold": gold}, baseline="sft")
    with pytest.raises(UserError, match="'gold'"):
        evaluate_policies(good, PROMPTS, {"proxy": proxy}, baseline="sft")


def test_rows_are_flat_and_complete(table: PolicyTable):
    row = table.rows()[1]
    assert row["policy"] == "ppo" and row["gold"] == 3.0 and row["wins"] == 9 and row["win_rate"] == 10.5 / 12
    assert row["gold_low"] < row["gold"] < row["gold_high"] and row["gold_missing"] == 0 and row["unfinished"] == 0.25
    assert "win_rate" not in table.rows()[0]
    assert all(isinstance(value, str | int | float) for value in row.values())


def test_save_and_load_give_the_same_table(tmp_path: Path):
    policies = {"sft": answers(["a", "?", "\ud800 lone"]), "ppo": answers(["bb", "?", "cut"])}
    table = evaluate_policies(policies, PROMPTS, {"gold": gold}, baseline="sft")
    path = tmp_path / "evaluation.json"
    table.save(path)
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    again = PolicyTable.load(path)
    again.save(tmp_path / "again.json")
    assert path.read_bytes() == (tmp_path / "again.json").read_bytes()
    assert again.policies[1].win_rate == table.policies[1].win_rate
    assert math.isnan(again.policies[0].kl.mean)
    assert again.comparisons[2].answers["sft"].text == "\ud800 lone"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"baseline": "a", "gold": "b", "policies": [1]}'])
def test_load_refuses_something_else(tmp_path: Path, content: str):
    path = tmp_path / "evaluation.json"
    path.write_text(content)
    with pytest.raises(DataError, match="evaluation.json"):
        PolicyTable.load(path)


def test_render_shows_means_intervals_and_unscored(table: PolicyTable):
    stream = io.StringIO()
    table.render(Console(file=stream, width=140))
    text = stream.getvalue()
    assert "1.75 ±" in text and "3.00 ±" in text and "88 ±" in text and "(25%)" in text and "baseline" in text
    unscored = evaluate_policies({"sft": answers(["a", "?"])}, PROMPTS, {"gold": gold}, baseline="sft")
    unscored.render(Console(file=stream, width=140))
    narrow = io.StringIO()
    table.render(Console(file=narrow, width=40))
    assert "…" not in narrow.getvalue() and "±" in narrow.getvalue()
    assert "1 answers had no gold score" in stream.getvalue()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e39, 10**400])
def test_a_score_that_is_not_finite_is_never_left_out(bad: float) -> None:
    from assent.rewards.group import NonFiniteReward

    answers = {"start": [Answer(0, "well", 1, True), Answer(1, "no", 1, True)]}
    prompts = [(Message("user", "a"),), (Message("user", "b"),)]
    with pytest.raises(NonFiniteReward, match="The scorer 'gold' gave .* for the answer 'no' to prompt 2") as error:
        evaluate_policies(answers, prompts, {"gold": lambda _, text: bad if text == "no" else 1.0}, "start")
    assert error.value.exit_code == 3


def test_a_score_that_is_no_number_is_named() -> None:
    from assent.rewards.group import RewardError

    with pytest.raises(RewardError, match="The scorer 'gold' gave '7' for the answer 'well' to prompt 1"):
        evaluate_policies(
            {"start": [Answer(0, "well", 1, True)]}, [(Message("user", "a"),)], {"gold": lambda *_: "7"}, "start"
        )
