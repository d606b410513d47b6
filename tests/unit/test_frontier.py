"""Over-optimisation in an evaluation, on made answers that follow the laws: the fits give the laws back, sentences say
what was seen and no more, front and tax are those of a plain search, figures are drawn of all of it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from assent.data.records import Message
from assent.evaluate.frontier import (
    front_sentence,
    law_sentences,
    over_optimised,
    start_of,
    track_sentences,
    tracks_of,
    with_frontier,
)
from assent.evaluate.frontier_plots import over_optimisation_chart, pareto_chart, tax_chart
from assent.evaluate.measured import Evaluated, evaluate_policies
from assent.evaluate.results import PolicyTable, Track, TrackPoint, needed
from assent.measures.aggregate import Difference, apart_difference, statistic_difference
from assent.measures.answers import Answers, Prompts
from assent.measures.estimates import Estimate
from assent.measures.shapes import Measured, Statistic
from assent.statistics import Interval, mean_interval

P = 40
TEXTS = tuple(f"question {i}" for i in range(P))
PROMPTS = Prompts(TEXTS, TEXTS, (("yes",),) * P, ("",) * P)
MEASURES = ("reward", "kl", "win-rate", "exact-match")


def gold_law(d: float, alpha: float = 1.1, beta: float = 0.55) -> float:
    return d * (alpha - beta * math.log(d)) if d else 0.0


def state(name: str, d: float, *, run: str = "", step: int | None = None, seed: int = 0, names=("gold", "proxy")):
    """Answers, one to each prompt, exactly d² nats from the reference, whose gold is the law's above the prompt's."""
    rng = np.random.default_rng(seed)
    level = np.random.default_rng(99).normal(size=P)
    noise = rng.normal(0, 0.2, P)
    log_prob = rng.normal(-40, 5, P)
    ratios = np.full(P, d * d) + (rng.normal(0, 0.3, P) if d else 0)
    ratios += d * d - ratios.mean()
    scores = {names[0]: level + gold_law(d) + noise - noise.mean(), names[1]: 5 * level + 2 * d + noise}
    answers = Answers(
        name,
        PROMPTS,
        np.arange(P),
        tuple("yes" if rng.random() < 0.7 - 0.1 * d else "no" for _ in range(P)),
        log_prob=log_prob,
        reference_log_prob=log_prob - ratios,
        scores=scores,
    )
    harness = Estimate(0.5 - 0.05 * d, 0.46 - 0.05 * d, 0.54 - 0.05 * d, 300)
    return Evaluated(answers, run=run, step=step, numbers={"harness/arc.acc": Measured(harness)})


DISTANCES = (0.7, 1.5, 2.5, 3.5, 4.4, 5.2)
RUN = [
    state(f"ppo@step-{10 * i}" if i < 6 else "ppo", d, run="ppo", step=10 * i, seed=i)
    for i, d in enumerate(DISTANCES, 1)
]
START = state("start", 0.0)


def table_of(*policies: Evaluated, **options) -> PolicyTable:
    prompts = [(Message("user", text),) for text in TEXTS]
    found = evaluate_policies(policies, prompts, policies[0].name, **{"measures": MEASURES} | options).table
    return with_frontier(found, policies)


@pytest.fixture(scope="module")
def table() -> PolicyTable:
    return table_of(START, *RUN)


# ---- laws


def test_the_law_of_a_run_is_given_back_with_its_peak(table: PolicyTable):
    gold, proxy = table.laws
    assert (gold.method, gold.name, gold.source, gold.proxy) == ("rl", "ppo", "gold", "")
    assert gold.start == "start, the reference itself" and (gold.prompts, gold.left_out) == (P, 0)
    assert [point.name for point in gold.points] == [state.name for state in RUN]
    noise = START.answers.scores["gold"].mean() - np.random.default_rng(99).normal(size=P).mean()
    assert noise == pytest.approx(0)
    assert gold.fit.alpha.value == pytest.approx(1.1) and gold.fit.beta.value == pytest.approx(0.55)
    assert gold.fit.peak.value == pytest.approx(math.e) and gold.fit.peak.low < math.e < gold.fit.peak.high
    assert gold.fit.spread < 1e-9 and gold.fit.alpha.n == P
    assert proxy.fit.beta.value == pytest.approx(0, abs=0.05) and proxy.fit.alpha.value == pytest.approx(2, abs=0.1)
    (said,) = law_sentences(table)
    assert said.startswith("ppo: gold is highest at KL 7.39 (") and "the last, ppo, stands at 27 nats" in said


def test_gain_has_a_start_or_there_is_no_law():
    table = table_of(*RUN)
    gold = table.laws[0]
    assert gold.start == "" and gold.fit.alpha.value is None and all(p.gain.value is None for p in gold.points)
    assert "measured from the reference itself, which is none of the policies" in law_sentences(table)[0]
    assert over_optimisation_chart(table) == []
    assert start_of([RUN[0], START]) is START and start_of(RUN) is None
    # A baseline that is not the reference is no start, wherever it stands.
    other = table_of(replace(RUN[0], run="", step=None), *RUN[1:])
    assert other.laws[0].fit.alpha.value is None


def test_the_sign_of_a_gain_turns_with_the_scores():
    def turned(policy: Evaluated) -> Evaluated:
        scores = {name: -values for name, values in policy.answers.scores.items()}
        return replace(policy, answers=replace(policy.answers, scores=scores))

    found = table_of(turned(START), *map(turned, RUN)).laws[0]
    assert found.fit.alpha.value == pytest.approx(-1.1) and found.fit.beta.value == pytest.approx(-0.55)
    assert found.fit.peak.value is None and found.points[2].gain.value == pytest.approx(-gold_law(2.5))


def test_a_peak_beyond_the_points_is_said_to_be_one():
    said = law_sentences(table_of(START, *RUN[:2], state("ppo@a", 1.9, run="ppo", step=21), *RUN[2:3]))[0]
    assert "still rises; by the law of RL up to KL 7.39" in said and "beyond all points" in said


def test_a_prompt_that_lacks_a_point_is_left_out_of_the_law_and_counted():
    scores = dict(RUN[1].answers.scores)
    scores["gold"] = np.where(np.arange(P) == 3, np.nan, scores["gold"])
    reasons = {"gold": tuple("no opinion" if i == 3 else "" for i in range(P))}
    lost = replace(RUN[1], answers=replace(RUN[1].answers, scores=scores, unscored=reasons))
    gold = table_of(START, RUN[0], lost, *RUN[2:]).laws[0]
    assert (gold.prompts, gold.left_out) == (P - 1, 1)
    assert gold.fit.alpha.n == P - 1 and gold.points[1].gain.n == P - 1 and gold.points[0].gain.n == P


def test_the_last_state_of_a_run_counts_once():
    twice = replace(RUN[-1], answers=replace(RUN[-1].answers, policy="ppo@step-60"))
    found = table_of(START, *RUN, twice)
    assert [point.name for point in found.laws[0].points] == [state.name for state in RUN]
    assert len(found.frontier) == len(RUN) + 2


def test_interval_of_a_law_covers_as_prompts_are_drawn_anew():
    from assent.measures.overoptimisation import fit

    d = np.array(DISTANCES)
    truth = np.array([gold_law(x) for x in d])
    hits = {"alpha": 0, "peak": 0}
    for seed in range(300):
        rng = np.random.default_rng([4, seed])
        own = rng.normal(0, 0.5, (30, 1)) * d  # what a prompt has it has at every point: points are not independent
        found = fit("rl", d, truth + own + rng.normal(0, 0.5, (30, len(d))))
        hits["alpha"] += found.alpha.low <= 1.1 <= found.alpha.high
        hits["peak"] += found.peak.low is not None and found.peak.low <= math.e <= found.peak.high
    assert all(0.92 <= count / 300 <= 0.98 for count in hits.values()), hits


# ---- best of n


def several(alpha: float, n: int = 8) -> Evaluated:
    rng = np.random.default_rng(7)
    prompt = np.repeat(np.arange(P), n)
    proxy = rng.normal(size=P * n)
    gold = alpha * proxy + 0.5 * rng.normal(size=P * n)
    return Evaluated(Answers("start", PROMPTS, prompt, ("a",) * P * n, scores={"gold": gold, "proxy": proxy}))


def test_best_of_n_is_that_of_all_subsets_and_its_kl_a_bound():
    import itertools

    policy = several(0.3, n=6)
    gold, proxy = table_of(policy, measures=("reward",)).laws
    assert [point.name for point in gold.points] == [f"best of {n}" for n in (2, 3, 4, 6)]
    scores = {name: values.reshape(P, 6) for name, values in policy.answers.scores.items()}
    for law in (gold, proxy):
        for point, n in zip(law.points, (2, 3, 4, 6), strict=True):
            subsets = list(itertools.combinations(range(6), n))
            best = [
                np.mean([scores[law.source][row][max(s, key=lambda i: scores["proxy"][row][i])] for s in subsets])
                for row in range(P)
            ]
            one = scores[law.source].mean(axis=1)
            assert point.score.value == pytest.approx(np.mean(best))
            assert point.gain.value == pytest.approx(np.mean(best - one))
            assert point.kl.value == pytest.approx(math.log(n) - (n - 1) / n) and point.kl.low is None
    assert gold.start == "one answer of start" and (gold.method, gold.proxy) == ("best-of-n", "proxy")
    assert proxy.fit.alpha.value is not None and gold.points[-1].gain.value > 0
    assert table_of(several(-0.3, n=6), measures=("reward",)).laws[0].points[-1].gain.value < 0


def test_best_of_n_needs_gold_and_several_answers_and_is_not_made_of_checkpoints(table: PolicyTable):
    assert all(law.method == "rl" for law in table.laws)
    policy = several(0.3)
    named = {"a": policy.answers.scores["gold"], "b": policy.answers.scores["proxy"]}
    plain = replace(policy, answers=replace(policy.answers, scores=named))
    assert table_of(plain, measures=("reward",)).laws == ()
    assert table_of(replace(policy, run="ppo", step=3), measures=("reward",)).laws == ()
    few = table_of(several(0.3, n=3), measures=("reward",))
    assert (
        "gold gains +0." in law_sentences(few)[0] and "no law is fitted: a law needs 4 points" in law_sentences(few)[0]
    )
    assert len(over_optimisation_chart(few)) == 1


def test_prompts_with_too_few_answers_are_left_out():
    policy = several(0.3)
    kept = ~((policy.answers.prompt < 3) & (np.arange(P * 8) % 8 > 4))
    answers = policy.answers
    scores = {name: values[kept] for name, values in answers.scores.items()}
    fewer = replace(answers, prompt=answers.prompt[kept], texts=("a",) * int(kept.sum()), scores=scores)
    gold = table_of(replace(policy, answers=fewer), measures=("reward",)).laws[0]
    assert (gold.prompts, gold.left_out) == (P - 3, 3) and gold.points[-1].name == "best of 8"


# ---- over-optimised or not


def track(gold: list[float], proxy: list[float], *, n: int = 60, half: float = 0.1) -> Track:
    def interval(value: float) -> Interval:
        return Interval(value, value - half, value + half, n)

    return Track("ppo", tuple(TrackPoint(10 * i, 2.0 * i, interval(g), interval(p)) for i, (g, p) in
                              enumerate(zip(gold, proxy, strict=True))))  # fmt: skip


def test_over_optimised_needs_a_fall_beyond_chance_and_a_proxy_that_rose():
    fallen = track([1, 3, 1.5], [0, 10, 20])
    said = over_optimised(fallen)
    assert (
        said.startswith("Over-optimised: gold peaked at 3.00 (step 10) and ended at 1.50") and "10.00 to 20.00" in said
    )
    for other in (
        track([1, 3, 4.5], [0, 10, 20]),  # gold rose
        track([1, 3, 1.5], [0, 10, 5]),  # proxy fell as well
        track([1, 3, 1.5], [0, 10, 20], half=1),  # intervals overlap
        track([-1, -3, -0.5], [0, 10, 20]),
    ):
        assert over_optimised(other).endswith("Gold has not clearly fallen while proxy rose."), other
    assert over_optimised(track([3, 1.5], [10, 20])).endswith("No verdict from 2 points; it takes 3.")
    assert "gold −1.50, proxy +10.00" in over_optimised(track([3, 1.5], [10, 20]))
    assert over_optimised(track([1, 3, 1.5], [0, 10, 20], n=29)).endswith("No verdict from 29 prompts; it takes 30.")
    assert over_optimised(track([1], [2])) == ""


def test_points_that_share_prompts_are_paired():
    """Levels of prompts that differ much make intervals overlap, and say nothing of the difference."""
    wide = track([1, 3, 2.5], [0, 10, 20], half=2)
    assert "Over-optimised" not in over_optimised(wide)

    def paired(gold: float, p: float, proxy: float) -> Track:
        falls = Difference(Estimate(gold, gold - 0.1, gold + 0.1, 60), p, p, p)
        rises = Difference(Estimate(proxy, proxy - 0.1, proxy + 0.1, 60), 0.0, 0.0, 0.0)
        points = [replace(point, gold_after=falls, proxy_after=rises) for point in wide.points[:-1]]
        return replace(wide, points=(*points, wide.points[-1]))

    assert over_optimised(paired(-0.5, 0.001, 10)).startswith("Over-optimised: gold peaked at 3.00 (step 10)")
    for other in (paired(-0.5, 0.2, 10), paired(0.5, 0.001, 10), paired(-0.5, 0.001, -10), paired(-0.5, 0.001, 0.05)):
        assert "Over-optimised" not in over_optimised(other)


def test_an_evaluation_of_checkpoints_says_it_of_its_runs(table: PolicyTable):
    (found,) = table.tracks
    assert found.name == "ppo" and [point.step for point in found.points] == [10, 20, 30, 40, 50, 60]
    assert found.points[2].gold_after is not None and found.points[-1].gold_after is None
    assert found.points[2].gold_after.difference.value == pytest.approx(gold_law(5.2) - gold_law(2.5))
    assert (
        track_sentences(table)[0].startswith("ppo: over-optimised: gold peaked at")
        and "(step 30)" in track_sentences(table)[0]
    )
    rising = table_of(START, *RUN[:3])
    assert track_sentences(rising)[0].endswith("Gold has not clearly fallen while proxy rose.")


def test_no_point_is_called_a_fall_by_chance_more_often_than_it_may():
    wrong = 0
    for seed in range(20):
        rng = np.random.default_rng([3, seed])
        points = [
            Answers("x", PROMPTS, np.arange(P), ("a",) * P, scores={"gold": rng.normal(size=P), "proxy": np.full(P, i)})
            for i in range(4)
        ]
        states = [Evaluated(each, run="x", step=i) for i, each in enumerate(points)]
        (found,) = tracks_of({"x": states}, ("gold", "proxy"), {})
        wrong += "Over-optimised" in over_optimised(found)
    assert wrong <= 3, "5 % of 20, and chance"


def test_words_follow_what_was_given():
    named = ("taste", "proxy")
    run = [state(f"r{i}", d, run="r", step=i, seed=i, names=named) for i, d in enumerate((0.7, 1.5, 2.5, 3.5, 4.4), 1)]
    table = table_of(state("start", 0.0, names=named), *run)
    assert table.tracks == () and len(table.laws) == 2
    said = " ".join((*law_sentences(table), front_sentence(table)))
    charts = [*over_optimisation_chart(table), *pareto_chart(table), *tax_chart(table)]
    assert "taste is highest at KL" in said and "gold" not in said
    assert len(charts) == 2 + 1 + 2 and not any("gold" in chart.svg + chart.caption + chart.title for chart in charts)


# ---- front, tax, prompts needed


def test_the_front_is_that_of_a_plain_search(table: PolicyTable):
    found = {point.name: (point.kl.value, point.scores["gold"].value, point.on_front) for point in table.frontier}
    assert len(found) == 7
    for name, (kl, gold, on_front) in found.items():
        beaten = any(
            other != name and k <= kl and g >= gold and (k < kl or g > gold) for other, (k, g, _) in found.items()
        )
        assert on_front == (not beaten), name
    assert [found[name][2] for name in ("start", "ppo@step-30", "ppo")] == [True, True, False]
    assert "start, ppo@step-10, ppo@step-20, ppo@step-30." in front_sentence(table)
    rows = {row["policy"]: row["on_front"] for row in table.rows()}
    assert rows["ppo@step-30"] is True and rows["ppo"] is False
    assert table.frontier[1].run == "ppo" and table.frontier[1].step == 10 and table.frontier[0].step is None


def test_differences_of_tasks_and_the_tax(table: PolicyTable):
    last = table.policies[-1]
    harness = last.differences["harness/arc.acc"]
    assert harness.difference.value == pytest.approx(-0.05 * 5.2) and math.isnan(harness.p)
    assert harness.difference.high - harness.difference.value == pytest.approx(math.hypot(0.04, 0.04))
    assert [chart.title for chart in tax_chart(table)] == ["Alignment tax: exact-match", "Alignment tax: arc.acc"]
    assert "Below the dashed line the policy is worse" in tax_chart(table)[0].caption
    unknown = apart_difference(Estimate(0.5), Estimate(0.25, 0.2, 0.3, 9))
    assert unknown.difference.value == 0.25 and unknown.difference.low is None
    assert apart_difference(Estimate(None), Estimate(1.0)).difference.value is None
    assert tax_chart(table_of(START, RUN[0], measures=("reward", "kl")))[0].title == "Alignment tax: arc.acc"


def test_the_difference_of_a_statistic_draws_prompts_for_both():
    rng = np.random.default_rng(0)
    level, gain = rng.normal(0, 10, P), rng.normal(1, 0.1, P)
    prompt, reasons = np.arange(P), ("",) * (P - 1) + ("unread",)

    def of(values: np.ndarray) -> Statistic:
        return Statistic(lambda rows: float(np.exp(values[rows].mean() / 10)), prompt, reasons)

    found = statistic_difference(of(level + gain), of(level))
    assert found.difference.value == pytest.approx(
        np.exp((level + gain)[:-1].mean() / 10) - np.exp(level[:-1].mean() / 10)
    )
    assert found.difference.low > 0 and math.isnan(found.p), "paired: the levels cancel"
    turned = statistic_difference(of(level), of(level + gain))
    assert turned.difference.high < 0
    mean = statistic_difference(*(Statistic.mean(values, prompt, ("",) * P) for values in (level + gain, level)))
    assert mean.difference.value == pytest.approx(gain.mean()) and mean.p < 0.001


def test_prompts_needed_stand_beside_every_number(table: PolicyTable):
    asked = table_of(START, *RUN[:1], within=0.05)
    ours = asked.policies[1]
    for key, found in ours.needed.items():
        number = ours.numbers[key]
        half = (number.number.high - number.number.low) / 2
        assert found.within == 0.05 and found.prompts == pytest.approx(P * (half / 0.05) ** 2, abs=1), key
    assert {"reward/gold", "reward/proxy", "kl", "exact-match", "win-rate/gold"} <= ours.needed.keys()
    row = next(row for row in asked.rows() if row["policy"] == ours.name and row["measure"] == "kl")
    assert (row["prompts"], row["within"], row["prompts_needed"]) == (P, 0.05, ours.needed["kl"].prompts)
    by_default = table.policies[1].needed["reward/gold"]
    half = table.policies[1].interval("reward/gold").half_width
    assert by_default.within == float(f"{half / 2:.1g}")
    gain, more = asked.gain(ours), asked.gain_needed(ours)
    assert gain is not None and more is not None and more.within == 0.05
    assert needed(Estimate(0.3), 9) is None and needed(Estimate(1.0, 1.0, 1.0, 9), 9) is None
    values = np.random.default_rng(1).normal(size=65)
    interval = mean_interval(values)
    one = needed(Estimate(interval.mean, interval.low, interval.high, 65), 65, interval.half_width / 2)
    assert one is not None and one.prompts == 260


# ---- what is saved and drawn


def test_save_and_load_give_the_same(table: PolicyTable, tmp_path: Path):
    both = replace(table, laws=(*table.laws, *table_of(several(0.3), measures=("reward",)).laws))
    both.save(tmp_path / "a.json")
    again = PolicyTable.load(tmp_path / "a.json")
    again.save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert again.laws[0] == both.laws[0] and again.frontier == both.frontier and again.tracks == both.tracks
    assert law_sentences(again) == law_sentences(both) and track_sentences(again) == track_sentences(both)
    unfitted = table_of(*RUN)
    unfitted.save(tmp_path / "c.json")
    assert PolicyTable.load(tmp_path / "c.json").laws[0].fit.alpha.problem


def test_figures_mark_their_axes_and_never_share_one(table: PolicyTable):
    both = replace(table, laws=(*table.laws, *table_of(several(0.3), measures=("reward",)).laws))
    run, best = over_optimisation_chart(both)
    assert "along RL" in run.svg and "best of n" not in run.svg and "highest at KL 7.39" in run.caption
    assert "root of the bound on its KL" in best.svg and "along RL" not in best.svg
    assert "KL is only bounded" in best.caption and "α 1.10" in run.caption
    (front,) = pareto_chart(both)
    assert "step 60" in front.svg and ">ppo</text>" in front.svg and "root scale" in front.svg
    assert pareto_chart(table_of(START)) == [] and over_optimisation_chart(table_of(START)) == []


def test_the_demo_pairs_the_answers_to_each_prompt(tmp_path: Path):
    import json
    from types import SimpleNamespace

    from assent.lab.demo import _track

    rows = [
        {"step": step, "held_out": held, "prompt": [{"role": "user", "content": TEXTS[i]}], "kl": 0.5 * step}
        | {"response": "x" * (10 + i - step), "reward": float(i + step)}
        for step, held in ((0, True), (1, True), (2, True), (2, False))
        for i in (range(P) if step != 1 else reversed(range(P)))
    ]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    world = SimpleNamespace(gold=lambda prompt, text: SimpleNamespace(reward=float(len(text))))
    found = _track(tmp_path, world)  # type: ignore[arg-type]
    assert found.name == "PPO" and [(p.step, p.kl) for p in found.points] == [(0, 0.0), (1, 0.5), (2, 1.0)]
    after = [point.gold_after.difference.value for point in found.points if point.gold_after is not None]
    assert after == pytest.approx([-2, -1]) and found.points[0].gold.n == P
    assert over_optimised(found).startswith("Over-optimised: gold peaked at 29.50 (step 0) and ended at 27.50")
