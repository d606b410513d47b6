"""From answers as columns to the table: numbers against the formulas written here, failures, tests, ranks of sources,
what is saved and shown."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from assent.data.records import Message
from assent.errors import DataError, UserError
from assent.evaluate.headings import headed
from assent.evaluate.measured import Evaluated, evaluate_policies
from assent.evaluate.results import PolicyResult, PolicyTable
from assent.evaluate.terminal import render
from assent.measures import aggregate
from assent.measures.answers import Answers, Given, Prompts
from assent.measures.likelihood import ROWS as LIKELIHOOD
from assent.measures.margins import histograms
from assent.measures.shapes import Column, Duels
from assent.measures.wins import duels_by_score, reversed_duels
from assent.statistics import holm, mean_interval, proportion_interval, share_interval

PROMPTS = [(Message("user", f"question {i}"),) for i in range(12)]
CORE = ("reward", "win-rate", "length", "unfinished", "kl", "kl-per-token", "entropy", "perplexity")


def known(count: int = 12, references: tuple[tuple[str, ...], ...] | None = None) -> Prompts:
    texts = tuple(f"question {i}" for i in range(count))
    return Prompts(texts, texts, references or ((),) * count, ("",) * count)


COLUMNS = known()


def made(name: str, texts: list[str], prompt: list[int] | None = None, **columns) -> Answers:
    """Answers whose gold score is their length, "?" unscored, and whose proxy is ten times that."""
    gold = np.array([math.nan if text == "?" else float(len(text)) for text in texts])
    return Answers(
        name,
        columns.pop("prompts", COLUMNS),
        np.array(range(len(texts)) if prompt is None else prompt),
        tuple(texts),
        tokens=np.array([2 * len(text) for text in texts]),
        finished=np.array([text != "cut" for text in texts]),
        scores={"gold": gold, "proxy": np.array([10.0 * len(text) for text in texts])},
        unscored={"gold": tuple("no opinion" if text == "?" else "" for text in texts)},
        **columns,
    )


def table_of(*answers: Answers, baseline: str = "sft", **options) -> PolicyTable:
    return evaluate_policies(
        [Evaluated(each) for each in answers], PROMPTS, baseline, **{"measures": CORE} | options
    ).table


def last(*answers: Answers) -> PolicyResult:
    return table_of(*answers, measures=("reward", "win-rate", "length")).policies[-1]


SFT, PPO = ["aa", "bb", "c", "dd"] * 3, ["aaa", "bb", "cccc", "cut"] * 3


@pytest.fixture(scope="module")
def table() -> PolicyTable:
    log_prob, entropy = -np.arange(1.0, 13), np.arange(12.0)
    own = {"log_prob": log_prob, "reference_log_prob": log_prob - 1.5, "entropy": entropy}
    return table_of(made("sft", SFT, log_prob=log_prob, reference_log_prob=log_prob), made("ppo", PPO, **own))


def test_numbers_of_the_table(table: PolicyTable):
    sft, ppo = table.policies
    assert table.scorers == ("gold", "proxy") and table.by == "gold"
    assert sft.scores["gold"].mean == 7 / 4 and ppo.scores["gold"].mean == 12 / 4
    assert ppo.scores["proxy"].mean == 30.0
    assert ppo.scores["gold"] == mean_interval([3.0, 2.0, 4.0, 3.0] * 3)
    assert ppo.kl.mean == 1.5 and ppo.length.mean == 6.0
    assert ppo.unfinished == proportion_interval(3, 12)
    assert table.wins(sft) is None and table.gain(sft) is None
    wins, gain = table.wins(ppo), table.gain(ppo)
    assert wins is not None and gain is not None
    assert (wins.wins, wins.ties, wins.losses) == (9, 3, 0)
    assert wins.rate.mean == 10.5 / 12 and gain.difference.value == 5 / 4
    tokens = np.array([2 * len(text) for text in PPO])
    assert ppo.numbers["kl-per-token"].number.value == pytest.approx(12 * 1.5 / tokens.sum())
    assert ppo.numbers["entropy"].number.value == pytest.approx(66 / tokens.sum())
    assert ppo.numbers["perplexity"].number.value == pytest.approx(math.exp(78 / tokens.sum()))
    assert "entropy" in sft.absent and "entropy" not in table.left_out and not ppo.absent


def test_tests_against_the_baseline_are_scipys_and_corrected_together(table: PolicyTable):
    ppo = table.policies[1]
    gains = np.array([len(a) - len(b) for a, b in zip(PPO, SFT, strict=True)], float)
    exact = stats.permutation_test(
        (gains, np.zeros(12)),
        lambda x, y, axis=-1: (x - y).mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    )
    assert ppo.differences["reward/gold"].p == pytest.approx(exact.pvalue)
    cut = ppo.differences["unfinished"]  # three prompts got worse, none better: McNemar's exact test
    assert cut.p_sign == pytest.approx(stats.binomtest(3, 3).pvalue) and cut.difference.value == 0.25
    assert set(ppo.differences) == {"reward/gold", "reward/proxy", "unfinished", "win-rate/gold", "win-rate/proxy"}
    keys = list(ppo.differences)
    assert [ppo.differences[key].p_holm for key in keys] == pytest.approx(
        holm([ppo.differences[key].p for key in keys])
    )


def test_unscored_answers_are_left_out_and_counted():
    result = last(made("sft", ["aa", "bb", "cc"]), made("dpo", ["aaaa", "?", "cccc"]))
    assert (result.scores["gold"].mean, result.scores["gold"].n, result.scores["gold"].missing) == (4.0, 2, 1)
    found = result.numbers["win-rate/gold"]
    assert (found.number.value, found.number.n, found.failures) == (1.0, 2, {"no opinion": 1})
    assert result.differences["reward/gold"].difference.n == 2


def test_a_prompt_without_an_answer_is_a_failure_everywhere():
    lost = made("dpo", ["aaaa", "cccc"], [0, 2], unanswered={1: "no answer in its file"})
    table = table_of(made("sft", ["aa", "bb", "cc"]), lost)
    found = table.policies[1].numbers
    assert set(found) == {"reward/gold", "reward/proxy", "length", "unfinished", "win-rate/gold", "win-rate/proxy"}
    assert all(each.failures == {"no answer in its file": 1} for each in found.values())
    assert found["win-rate/gold"].number.n == 2
    turned = table_of(made("sft", ["aa", "bb", "cc"]), lost, baseline="dpo").policies[0]
    assert turned.numbers["win-rate/gold"].failures == {"no answer in its file (baseline)": 1}
    assert turned.numbers["reward/gold"].failures == {}


def test_answers_are_paired_by_prompt_not_by_position():
    better = made("b", ["a" * (i + 2) for i in reversed(range(6))], list(reversed(range(6))))
    table = table_of(made("sft", ["a" * (i + 1) for i in range(6)]), better)
    wins, gain = table.wins(table.policies[1]), table.gain(table.policies[1])
    assert wins is not None and gain is not None and wins.wins == 6
    assert (gain.difference.low, gain.difference.high) == (1.0, 1.0)


def test_the_sign_of_a_win_turns_with_the_sides():
    ours, theirs = made("a", ["aa", "b"]), made("b", ["a", "bb"])
    duels = duels_by_score("gold", ours, theirs)
    assert duels.outcome.tolist() == [1, 0] and reversed_duels(duels).outcome.tolist() == [0, 1]
    assert reversed_duels(duels).ours is theirs


def test_the_same_answer_ties_whatever_rounding_makes_of_its_scores():
    ours, theirs = made("a", ["aa", "cut", "?", "b"]), made("b", ["aa", "cut", "?", "c"])
    theirs.scores["gold"][:] += [-1e-7, 1e-7, 0, 1e-7]
    assert duels_by_score("gold", ours, theirs).outcome.tolist() == pytest.approx([0.5, 0.5, math.nan, 0], nan_ok=True)
    cut = replace(theirs, finished=np.zeros(4, bool))  # another answer: it did not come to its end
    assert duels_by_score("gold", ours, cut).outcome.tolist() == pytest.approx([1, 0.5, math.nan, 0], nan_ok=True)


def test_several_answers_of_one_prompt_are_one_cluster():
    texts = ["a" * (i + 1) for i in range(8)]
    four = made("four", [text for text in texts for _ in range(4)], [i for i in range(8) for _ in range(4)])
    table = table_of(made("sft", ["aaaa"] * 8), made("one", texts), four)
    _, single, repeated = table.policies
    assert repeated.scores["gold"].half_width == pytest.approx(single.scores["gold"].half_width)
    assert repeated.scores["gold"].n == 32
    assert repeated.numbers["unfinished"].number.high == single.numbers["unfinished"].number.high


def test_a_share_that_is_never_seen_is_not_certain_and_other_shares_are_bootstrapped():
    assert share_interval([0.0] * 20).high == pytest.approx(proportion_interval(0, 20).high)
    yes = aggregate.of_column(_row("unfinished"), Column.of([0.0, 1.0, 0.0, 0.0]), made("a", ["a"] * 4))
    assert yes.number.high == pytest.approx(proportion_interval(1, 4).high)
    part = aggregate.of_column(_row("unfinished"), Column.of([0.2, 0.3, 0.25, 0.2]), made("a", ["a"] * 4))
    assert part.number.high is not None and part.number.high <= 0.3
    with pytest.raises(UserError, match="from 0 to 1"):
        share_interval([1.5])


def _row(name: str):
    from assent.measures.table import MEASURES

    return MEASURES[name]


def test_the_first_source_decides_and_nothing_is_called_gold():
    mine = replace(made("sft", ["a"] * 12), scores={"taste": np.arange(12.0)}, unscored={})
    table = table_of(mine, replace(mine, policy="dpo"))
    assert table.by == "taste" and table.verdict(table.policies[1]).startswith("too few prompts (12)")
    bare = replace(mine, scores={})
    table = table_of(bare, replace(bare, policy="dpo"))
    assert table.by == "" and table.verdict(table.policies[1]) == "" and "win-rate" in table.left_out


def test_comparisons_are_drawn_by_chance_from_the_prompts_that_all_answered():
    both = made("sft", ["a"] * 12), made("ppo", ["b"] * 3)
    table = table_of(*both, show=2)
    assert len(table.comparisons) == 2
    assert {c.prompt[0].content for c in table.comparisons} < {"question 0", "question 1", "question 2"}
    answer = table.comparisons[0].answers["ppo"]
    assert answer.text == "b" and answer.scores["gold"] == 1.0 and answer.num_tokens == 2
    drawn = {table_of(*both, show=1, seed=seed).comparisons[0].prompt for seed in range(30)}
    assert len(drawn) == 3


def test_mistakes_are_named():
    with pytest.raises(UserError, match="baseline"):
        table_of(made("sft", ["a"]), baseline="ppo")
    with pytest.raises(UserError, match="no answers to evaluate: too long"):
        table_of(made("sft", [], unanswered={0: "too long"}))
    with pytest.raises(UserError, match="No source of verdicts is called 'judge'"):
        table_of(made("sft", ["a"]), by="judge")
    with pytest.raises(AssertionError):
        made("sft", ["a"], [12])  # an index outside the prompts


def test_rankings_use_every_two_policies_and_the_baseline_where_a_judge_did():
    three = [made("sft", ["a"] * 12), made("b", ["aa", "b"] * 6), made("c", ["a", "ccc", "cc"] * 4)]
    policies = [Evaluated(each) for each in three]
    for place in (1, 2):
        ours = three[place]
        pairs = np.stack([np.arange(12)] * 2, 1)
        judged = Duels("judge", ours, three[0], pairs, np.array([1.0, 0, 0.5] * 4), ("",) * 12)
        policies[place] = replace(policies[place], duels={"judge": judged})
    table = evaluate_policies(policies, PROMPTS, "sft", measures=("elo",)).table
    points = {key: [p.numbers[key].number.value for p in table.policies] for key in ("elo/gold", "elo/judge")}
    assert sum(points["elo/judge"]) == pytest.approx(3000, abs=1e-3)
    assert points["elo/gold"][0] < points["elo/gold"][1] and points["elo/judge"][1] == pytest.approx(
        points["elo/judge"][2]
    )


# ---- likelihood of given answers

ROWS = {row.name: row for row in LIKELIHOOD}


def given(log_prob: list[float], **columns) -> Given:
    size = len(log_prob)
    unread = tuple("too long" if math.isnan(value) else "" for value in log_prob)
    prompt = np.array(columns.pop("prompt", range(size)))
    tokens = np.array(columns.pop("tokens", [1] * size))
    return Given("a", prompt, tokens, np.array(log_prob), unread, **columns)


def number(name: str, of: Given):
    return aggregate.of_statistic(ROWS[name], ROWS[name].prepare(of), None)


def test_preference_accuracy_counts_ties_against_and_failures_apart():
    pairs = np.array([[0, 1], [2, 3], [4, 5], [6, 7]])
    of = given(
        [-1, -2, -3, -3, -9, -4, math.nan, -1],
        prompt=[0, 0, 1, 1, 2, 2, 3, 3],
        tokens=[1, 4, 1, 1, 9, 2, 1, 1],
        pairs=pairs,
        reference_log_prob=np.array([-1.0, -2, -4, -3, -9, -3, -1, -1]),
    )
    summed, averaged, implicit = (
        number(name, of)
        for name in ("preference-accuracy", "preference-accuracy-per-token", "implicit-reward-accuracy")
    )
    assert summed.number.value == pytest.approx(1 / 3) and summed.failures == {"too long": 1} and summed.number.n == 3
    assert averaged.number.value == pytest.approx(1 / 3)  # -1 < -0.5; a tie; -1 > -2
    assert implicit.number.value == pytest.approx(2 / 3)  # 0 and 0 tie; 1 > 0; 0 > -1


def test_perplexity_is_of_what_nobody_calls_worse():
    of = given([-1, -2, -3, -8], tokens=[1, 1, 2, 1], pairs=np.array([[0, 1]]), right=np.array([np.nan] * 3 + [0.0]))
    assert number("given-perplexity", of).number.value == pytest.approx(math.exp(4 / 3))


def test_multiple_choice_in_log_sum_exp_with_ties_against_the_policy():
    log_prob = [-1000.0, -1001, -1002, -5, -5, -900, -800]
    right = np.array([1.0, 0, 1, 1, 0, 0, 1])
    question = np.array([0, 0, 0, 1, 1, 2, 2])
    of = given(log_prob, prompt=[0, 0, 0, 1, 1, 2, 2], right=right, one_of=question, some_of=question)
    shares = [(1 + math.exp(-2)) / (1 + math.exp(-1) + math.exp(-2)), 0.5, 1.0]
    assert number("mc2", of).number.value == pytest.approx(np.mean(shares))
    assert number("mc1", of).number.value == pytest.approx(2 / 3)  # the tie of the second question is none
    turned = number("mc1", replace(of, log_prob=-of.log_prob)).number.value
    assert turned == pytest.approx(1 / 3)
    longer = replace(of, tokens=np.array([1, 1, 1, 1, 1, 1, 1000]))
    assert number("mc1-per-token", longer).number.value == pytest.approx(2 / 3)
    lost = replace(of, log_prob=np.array([*log_prob[:6], np.nan]), unread=("",) * 6 + ("too long",))
    assert number("mc1", lost).failures == {"too long": 1} and number("mc1", lost).number.n == 2


# ---- what is saved and shown


def test_rows_are_flat_and_complete(table: PolicyTable):
    rows = {(row["policy"], row["measure"], row["source"]): row for row in table.rows()}
    row = rows["ppo", "reward", "gold"]
    assert row["value"] == 3.0 and row["low"] < 3.0 < row["high"] and row["n"] == 12 and row["failures"] == 0
    assert row["difference"] == 5 / 4 and 0 < row["p"] <= row["p_holm"]
    assert ("sft", "win-rate", "gold") not in rows and rows["ppo", "unfinished", ""]["value"] == 0.25
    head, *lines = table.csv().splitlines()
    assert head.startswith("policy,measure,source,value,low,high,n,failures") and len(lines) == len(rows)


def test_save_and_load_give_the_same_table(tmp_path: Path):
    table = table_of(made("sft", ["a", "?", "\ud800 lone"]), made("ppo", ["bb", "?", "cut"]))
    path = tmp_path / "evaluation.json"
    table.save(path)
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    again = PolicyTable.load(path)
    again.save(tmp_path / "again.json")
    assert path.read_bytes() == (tmp_path / "again.json").read_bytes()
    assert again.policies[1].numbers == table.policies[1].numbers and math.isnan(again.policies[0].kl.mean)
    assert again.comparisons[2].answers["sft"].text == "\ud800 lone"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"baseline": "a", "by": "b", "policies": [1]}'])
def test_load_refuses_something_else(tmp_path: Path, content: str):
    path = tmp_path / "evaluation.json"
    path.write_text(content)
    with pytest.raises(DataError, match="evaluation.json"):
        PolicyTable.load(path)


def shown(table: PolicyTable, width: int = 140) -> str:
    stream = io.StringIO()
    render(table, Console(file=stream, width=width))
    return stream.getvalue()


def test_render_shows_means_intervals_and_failures(table: PolicyTable):
    text = shown(table)
    assert "1.75 ±" in text and "3.00 ±" in text and "88 ±" in text and "(25% ties)" in text and "baseline" in text
    assert "ppo: too few prompts (12) to tell from sft by gold" in text and "*" not in text.replace("* (p", "")
    assert "sft: without entropy; needs the policy itself" in text
    narrow = shown(table, 40)
    assert "…" not in narrow and "±" in narrow
    assert "sft: 1 left out of reward/gold: no opinion" in shown(table_of(made("sft", ["a", "?"])))


def test_a_sure_difference_is_marked_with_enough_prompts():
    many, noise = known(40), np.random.default_rng(0).normal(size=(2, 40))
    policies = [
        Evaluated(Answers(name, many, np.arange(40), ("a",) * 40, scores={"gold": noise[i] + 3 * i}))
        for i, name in enumerate(("sft", "ppo"))
    ]
    prompts = [(Message("user", text),) for text in many.texts]
    table = evaluate_policies(policies, prompts, "sft", measures=("reward",)).table
    assert "ppo is better than sft by gold." in shown(table) and "*" in shown(table).replace("* (p", "")
    turned = evaluate_policies(policies, prompts, "ppo", measures=("reward",)).table
    assert "sft is worse than ppo by gold." in shown(turned)


def test_a_long_table_begins_with_what_most_people_look_at_and_says_how_much_more_there_is(table: PolicyTable):
    ppo = table.policies[1]
    many = {f"distinct-{i}": ppo.numbers["length"] for i in range(30)}
    long = replace(table, policies=tuple(replace(p, numbers={**many, **p.numbers}) for p in table.policies))
    text, hidden = shown(long), len(long.keys) - 16
    assert [key in text for key in ("reward/gold", "win-rate/proxy", "unfinished", "kl (nats)")] == [True] * 4
    assert f"{hidden} more numbers are in evaluation.json; assent report shows them all." in text
    assert sum(f"distinct-{i} " in text for i in range(30)) == 30 - hidden
    assert text.index("Rewards and wins") < text.index("reward/gold") < text.index("Answers") < text.index("kl (nats)")
    assert "more numbers" not in shown(table), "a short table has all"
    assert set(headed(long)) == {"Rewards and wins", "Answers", "Variety", "Measured elsewhere"}
    assert sorted(key for keys in headed(long).values() for key in keys) == sorted(long.keys)


def test_every_two_policies_are_matched_by_each_source(tmp_path: Path):
    c = made("dpo", ["aaaa", "?", "cccc"])
    found = table_of(made("sft", ["aa", "bb", "cc"]), made("ppo", ["a", "bb", "ccc"]), c)
    matches = {(m.source, m.ours, m.theirs): m for m in found.matches}
    assert set(matches) == {
        (source, *pair) for source in ("gold", "proxy") for pair in (("sft", "ppo"), ("sft", "dpo"), ("ppo", "dpo"))
    }
    between = matches["gold", "sft", "ppo"]
    assert (between.outcomes.wins, between.outcomes.ties, between.outcomes.losses) == (1, 1, 1)
    expected = share_interval([1.0, 0.5, 0.0], [0, 1, 2])
    assert (between.rate.number.value, between.rate.number.low) == (0.5, expected.low) and between.rate.number.n == 3
    lost = matches["gold", "ppo", "dpo"]
    assert lost.rate.failures == {"no opinion": 1} and lost.outcomes.losses == 2 and lost.rate.number.value == 0
    back = lost.turned()
    assert (back.ours, back.theirs, back.outcomes.wins, back.rate.number.value) == ("dpo", "ppo", 2, 1)
    assert (back.rate.number.low, back.rate.number.high) == (1 - lost.rate.number.high, 1 - lost.rate.number.low)
    assert back.rate.failures == lost.rate.failures and back.turned() == lost
    found.save(tmp_path / "evaluation.json")
    assert PolicyTable.load(tmp_path / "evaluation.json").matches == found.matches


def test_margins_of_given_pairs_are_counted_between_common_edges(tmp_path: Path):
    own = np.array([-1.0, -3.0, -2.0, -2.5, -9.0, math.nan])
    given = Given(
        "sft", np.array([0, 0, 1, 1, 2, 2]), np.full(6, 2), own, ("", "", "", "", "", "too long"), own * 0 - 1.0,
        pairs=np.array([[0, 1], [2, 3], [4, 5]]),
    )  # fmt: skip
    better = replace(given, policy="ppo", log_prob=own * 2)
    policies = [Evaluated(made(name, SFT), one) for name, one in (("sft", given), ("ppo", better))]
    found = evaluate_policies(policies, PROMPTS, "sft", measures=("reward",)).table
    assert [one.of for one in found.margins] == ["likelihood", "implicit reward"]
    for one in found.margins:
        assert one.unread == {"sft": 1, "ppo": 1} and {name: sum(own) for name, own in one.counts.items()} == {
            "sft": 2,
            "ppo": 2,
        }
        for name, scale in (("sft", 1), ("ppo", 2)):
            inside = np.clip(np.array([2.0, 0.5]) * scale, one.edges[0], one.edges[-1])
            assert list(one.counts[name]) == np.histogram(inside, np.array(one.edges))[0].tolist()
    found.save(tmp_path / "evaluation.json")
    assert PolicyTable.load(tmp_path / "evaluation.json").margins == found.margins


def test_histograms_keep_what_lies_beyond_and_have_an_edge_at_zero():
    values = np.concatenate([np.linspace(-1, 2, 1000), [-50.0, 90.0, math.nan]])
    edges, counts = histograms({"a": values, "b": np.zeros(3)})
    assert counts["a"].sum() == 1002 and counts["b"].sum() == 3 and np.abs(edges).min() < 1e-12
    assert edges[0] > -1.5 and edges[-1] < 2.5
    assert counts["a"][edges[:-1] >= -1e-12].sum() == (values >= 0).sum()
    edges, counts = histograms({"a": np.full(4, 3.0)})
    assert counts["a"].sum() == 4 and edges[0] < 3 < edges[-1]
    assert len(histograms({"a": np.array([math.nan])})[0]) == 0


def test_a_table_of_an_earlier_version_has_no_more_than_it_had(table: PolicyTable, tmp_path: Path):
    path = tmp_path / "evaluation.json"
    table.save(path)
    raw = json.loads(path.read_text())
    for name in ("command", "matches", "margins", "comparisons", "tracks", "probes"):
        del raw[name]
    path.write_text(json.dumps(raw))
    again = PolicyTable.load(path)
    assert (again.command, again.matches, again.margins) == ("", (), ()) and again.keys == table.keys
