"""Answers that are compared as they are sampled: who is better, what is left out, and the loss of a step, by plain
loops and by the numbers of TRL 0.24, the last with XPO and Nash-MD."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from assent.algorithms.online.comparison import against_opponents, compared, comparison_loss, preference_of, selected
from assent.algorithms.online.method import OnlineMethod, method_with
from assent.algorithms.online.stages import advantages
from assent.cli import main
from assent.config import (
    METHODS,
    OBJECTIVES,
    DataConfig,
    JudgeConfig,
    KLConfig,
    ModelConfig,
    OnlineConfig,
    RewardsConfig,
    has_reference,
    online_config,
    settings,
)
from assent.config.online_preference import PairLoss
from assent.distributed import World
from assent.errors import ConfigError
from assent.losses import best_and_worst, desirability, win_probability
from assent.models.policy import TokenScores
from assent.rewards.group import RewardError
from assent.rollout.engine import Completion
from assent.rollout.rollout import Fields, Rollout, pack, rollout_of
from assent.train.log import read_metrics

ALONE = World(0, 1, 0, torch.device("cpu"))
LENGTHS = ((2, 3), (1, 2), (3, 1))
"""Tokens of the policy's answer and of its opponent's, for each of three prompts."""
TOKENS = 12


def config_of(method: str, **options: Any) -> OnlineConfig:
    shared: dict[str, Any] = {"model": ModelConfig("m"), "data": DataConfig("d.jsonl"), "out": "run"}
    return online_config(method, **{**shared, "rewards": RewardsConfig(("r",)), **options})


def method_of(method: str, **options: Any) -> OnlineMethod:
    return method_with(config_of(method, **options))


def rollout(rewards: Sequence[Sequence[float]], lengths: Sequence[Sequence[int]] | None = None) -> Rollout:
    """A prompt for each group of rewards; log-probs of the reference that differ from token to token."""
    sizes = lengths or [[1] * len(group) for group in rewards]
    groups = [[Completion(np.arange(n), np.zeros(n, np.float32), True) for n in group] for group in sizes]
    made = rollout_of([np.array([1])] * len(groups), np.arange(len(groups)), groups)
    flat = np.array([reward for group in rewards for reward in group], np.float32)
    reference = -(9 + 2 * np.arange(len(made.ids), dtype=np.float32)) / 10
    return replace(made, reward=flat, shaped=flat, reference=reference)


def against(rewards: Sequence[tuple[float, float]]) -> Rollout:
    """The policy's answer and its opponent's to each prompt."""
    made = rollout(rewards, LENGTHS)
    return replace(made, demonstration=np.arange(len(made)) % 2 == 1)


def sides(method: OnlineMethod, made: Rollout) -> Rollout:
    assert method.comparison is not None
    return compared(made, method.estimator, method.comparison)[0]


# ---- who is better


def test_the_best_answer_against_the_worst() -> None:
    rewards, prompt = torch.tensor([1.0, 3, 3, 0, 0, 2, 2, 5]), torch.tensor([0, 0, 0, 0, 0, 4, 4, 9])
    assert best_and_worst(rewards, prompt).tolist() == [0, 1, 0, 0, -1, 0, 0, 0]
    assert best_and_worst(rewards, prompt, ties="first").tolist() == [0, 1, 0, 0, -1, 1, -1, 0]
    assert best_and_worst(-rewards, prompt).tolist() == [0, 0, -1, 1, 0, 0, 0, 0]
    assert best_and_worst(torch.zeros(0), torch.zeros(0, dtype=torch.int64)).tolist() == []


def test_answers_above_their_prompts_mean_are_desirable() -> None:
    third = torch.tensor([0.1, 0.1, 0.1, 0.1, 0.2, 0.3], dtype=torch.float32).double()
    prompt = torch.tensor([0, 0, 0, 1, 1, 1])
    assert desirability(third, prompt).tolist() == [0, 0, 0, -1, 0, 1], "a mean that is one but for rounding"
    assert desirability(third, prompt, threshold=0.15).tolist() == [-1, -1, -1, -1, 1, 1]
    assert desirability(torch.tensor([2.0, 1.0]), prompt[:2], threshold=2.0).tolist() == [0, -1]


def test_two_rewards_as_a_chance_to_win() -> None:
    own, other = torch.tensor([1.0, 0.25, 0.0], dtype=torch.float64), torch.tensor([0.0, 0.75, 0.0])
    other = other.double()
    found = {how: win_probability(own, other, preference=how).tolist() for how in ("win_rate", "order")}
    assert found == {"win_rate": [1.0, 0.25, 0.5], "order": [1.0, 0.0, 0.5]}
    wanted = [1 / (1 + math.exp(-1)), 1 / (1 + math.exp(0.5)), 0.5]
    assert win_probability(own, other, preference="bradley_terry").tolist() == pytest.approx(wanted)
    with pytest.raises(ValueError, match="win rates at most 1 apart; got 3.0"):
        win_probability(3 * own, other, preference="win_rate")
    for function, options, said in (
        (win_probability, {"preference": "odds"}, "bradley_terry, win_rate, order; got 'odds'"),
        (best_and_worst, {"ties": "last"}, "ties among leave_out, first; got 'last'"),
    ):
        with pytest.raises(ValueError, match=said):
            function(own, torch.zeros(3), **options)
    for estimator in (best_and_worst, desirability):
        with pytest.raises(ValueError, match="`prompt` must not decrease"):
            estimator(own, torch.tensor([1, 0, 0]))
        with pytest.raises(ValueError, match="expected the same shape"):
            estimator(own, torch.tensor([0, 0]))


# ---- what is left out, and what is kept


def test_ties_and_prompts_with_one_answer_give_no_pair() -> None:
    method = method_of("online-dpo")
    made = rollout([(1, 2, 0), (3, 3, 3), (7,), (0, 5, 1)])
    judged, metrics = compared(made, method.estimator, method.comparison)
    assert judged.side.tolist() == [0, 1, -1, 0, 0, 0, 0, -1, 1, 0]
    assert metrics == {"no_signal": 0.5, "compared": 2.0}
    kept = selected(judged, method.comparison)
    assert (
        kept.rows.tolist() == [0, 3] and kept.reward.tolist() == [2, 0, 0, 5] and kept.side.tolist() == [1, -1, -1, 1]
    )
    trees = kept.trees()
    assert [tree.pairs for tree in trees] == [((0, 1, 2.0),), ((1, 0, 5.0),)]
    assert [tree.per_response["label"].tolist() for tree in trees] == [[1, 0], [0, 1]]
    first = method_of("online-dpo", loss={"ties": "first"})
    assert sides(first, made).side[3:6].tolist() == [1, 0, -1]


def test_a_rollout_without_any_pair_has_nothing_to_train_on() -> None:
    method = method_of("online-simpo")
    judged, metrics = compared(rollout([(1, 1), (2, 2)]), method.estimator, method.comparison)
    assert metrics == {"no_signal": 1.0, "compared": 0.0} and len(selected(judged, method.comparison)) == 0
    assert method.comparison.reads_before(judged)


def test_labels_and_their_point_of_reference() -> None:
    """z0 is the mean of log pi/pi_ref over all sampled answers, also those that no label is given."""
    method = method_of("online-kto")
    made = rollout([(1, 2, 3), (4, 4, 4)], [(1, 2, 1), (1, 1, 1)])
    made = replace(made, old=made.reference + np.float32(0.25))
    judged = sides(method, made)
    assert judged.side.tolist() == [-1, 0, 1, 0, 0, 0] and method.comparison.reads_before(judged)
    kept = selected(judged, method.comparison)
    assert kept.reward.tolist() == [1, 3] and kept.reference_point.tolist() == pytest.approx([0.25 * 7 / 6] * 2)
    low = selected(replace(judged, old=judged.reference - np.float32(1)), method.comparison)
    assert low.reference_point.tolist() == [0, 0]


def test_opponents_are_compared_with_and_not_trained_on() -> None:
    made = replace(against([(1, 0), (-1, 1), (2, 2)]), notes=tuple({"n": i} for i in range(6)))
    found, metrics = against_opponents(made, "bradley_terry")
    chances = [1 / (1 + math.exp(-gap)) for gap in (1, -2, 0)]
    assert found.shaped.tolist() == pytest.approx([p - 0.5 for p in chances], abs=1e-7)
    assert found.reward.tolist() == [1, -1, 2] and found.lengths.tolist() == [2, 1, 3]
    assert not found.demonstration.any() and [note["n"] for note in found.notes] == [0, 2, 4]
    assert [note["preference"] for note in found.notes] == pytest.approx(chances)
    assert metrics["win_rate"] == pytest.approx(sum(chances) / 3) and metrics["no_signal"] == pytest.approx(1 / 3)
    part = made.take(np.array([0, 1, 3, 4]))  # the second prompt's own answer and the third's opponent are unscored
    assert against_opponents(part, "order")[0].rows.tolist() == [0]
    with pytest.raises(RewardError, match="no prompt has a reward for both its answers"):
        against_opponents(made.take(np.array([0, 3, 4])), "order")
    with pytest.raises(RewardError, match="rewards of -1 and 1 are more than 1 apart, so they are no win rates"):
        against_opponents(made, "win_rate")


# ---- the loss of a step


def read(method: OnlineMethod, made: Rollout) -> tuple[float, list[float], dict[str, float]]:
    """Loss, its slope for each token's log-prob, and metrics, in float64."""
    made = replace(made, sampler=np.zeros(len(made.ids), np.float32))
    (batch,) = (packed := pack(made, micro_tokens=1000, flat=False, world=ALONE)).batches
    batch = replace(batch, per_token={name: x.double() for name, x in batch.per_token.items()})
    order = torch.tensor([int(key) for key in batch.keys])
    assert order.tolist() == sorted(order.tolist())
    x = (-(5 + 3 * torch.arange(len(made.ids), dtype=torch.float64)) / 10).requires_grad_()
    nothing = torch.zeros_like(x)
    total, metrics = comparison_loss(
        batch, TokenScores(x, nothing, nothing, nothing), Fields.of(batch), method.comparison, packed.counts
    )
    total.backward()
    return float(total.detach()), x.grad.tolist(), {k: float(torch.as_tensor(v)) / n for k, (v, n) in metrics.items()}


PREFERRED = ((1, 0), (0, 1), (2, 1))
TRL: dict[str, tuple[float, list[float]]] = {
    # loss, and its slope for the policy's answers and the reference's, summed over the 3 columns that TRL pads to
    "dpo": (-0.5371398389128151, [-0.184034046, 0.484034046, 0.215965954, 0.084034046, -0.231729701, 0.531729701]),
    "ipo": (1.259166666666667, [-1.7, 2.0, 3.3, -3.0, -4.1, 4.4]),
}


@pytest.mark.parametrize("pairs", TRL)
def test_xpo_equals_trl(pairs: str) -> None:
    method = method_of("xpo", loss={"pairs": pairs, "beta": 0.4, "alpha": 0.3})
    value, slopes, metrics = read(method, selected(sides(method, against(PREFERRED)), method.comparison))
    wanted, by_answer = TRL[pairs]
    assert value == pytest.approx(wanted, rel=1e-6)
    lengths = [n for group in LENGTHS for n in group]
    assert slopes == pytest.approx([g / 3 for g, n in zip(by_answer, lengths) for _ in range(n)], abs=1e-6)
    assert metrics["logprob_sum/opponent"] == pytest.approx(-(4.2 + 4.9 + 3.8) / 3)
    assert metrics["objective"] == pytest.approx(wanted + 0.3 * 4.3, rel=1e-6)


def test_online_dpo_equals_a_loop() -> None:
    """Of pairs out of four answers; a prompt without one does not count in the mean."""
    method = method_of("online-dpo", loss={"beta": 0.7})
    made = sides(method, rollout([(1, 4, 0, 2), (2, 2), (0, 3)], [(1, 2, 1, 1), (1, 1), (2, 1)]))
    value, slopes, metrics = read(method, selected(made, method.comparison))
    x = [-(5 + 3 * i) / 10 for i in range(6)]
    # what is left: 2 tokens of the chosen and 1 of the rejected answer, then 2 of the rejected and 1 of the chosen
    reference = [-(9 + 2 * i) / 10 for i in (1, 2, 3, 7, 8, 9)]
    ratio = [a - b for a, b in zip(x, reference)]
    gaps = [ratio[0] + ratio[1] - ratio[2], ratio[5] - ratio[3] - ratio[4]]
    assert value == pytest.approx(sum(math.log1p(math.exp(-0.7 * gap)) for gap in gaps) / 2, rel=1e-6)
    pull = [0.7 / (1 + math.exp(0.7 * gap)) / 2 for gap in gaps]
    assert slopes == pytest.approx([-pull[0]] * 2 + [pull[0]] + [pull[1]] * 2 + [-pull[1]], rel=1e-6)
    assert metrics["margin"] == pytest.approx(0.7 * sum(gaps) / 2, rel=1e-6)
    assert metrics["accuracy"] == sum(gap > 0 for gap in gaps) / 2
    assert {"implicit_reward/chosen", "implicit_reward/rejected", "logprob/chosen", "logprob_sum/rejected"} <= set(
        metrics
    )


def test_online_kto_equals_a_loop() -> None:
    method = method_of("online-kto", loss={"beta": 0.4, "desirable_weight": 2.0, "undesirable_weight": 3.0})
    made = rollout([(1, 3)], [(2, 1)])
    made = replace(made, old=made.reference + np.float32(0.2))
    value, slopes, _ = read(method, selected(sides(method, made), method.comparison))
    ratio, z0 = [-0.5 - 0.8 + 0.9 + 1.1, -1.1 + 1.3], 0.3
    bad, good = (1 / (1 + math.exp(-x)) for x in (0.4 * (ratio[0] - z0), -0.4 * (ratio[1] - z0)))
    assert value == pytest.approx((3 * bad + 2 * good) / 2, rel=1e-6)
    assert slopes == pytest.approx([3 * 0.4 * bad * (1 - bad) / 2] * 2 + [-2 * 0.4 * good * (1 - good) / 2], rel=1e-6)


def test_nash_md_credits_the_chance_to_win_and_the_kl() -> None:
    """Each token gets P - 1/2 and the KL still to come, of which TRL counts its own alone: the same for one token."""
    method = method_of("nash-md", loss={"preference": "order"})
    made, _ = against_opponents(against([(1, 0), (0, 1), (1, 1)]), "order")
    made = replace(made, old=np.array([-0.5, -0.8, -2.0, -2.9, -3.2, -3.5], np.float32))
    kl = KLConfig(coef=9.0, place="reward", estimator="k1")
    found = advantages(made, method, kl, 0.4)[0].advantages
    gaps = made.old - made.reference
    starts, ends = (0, 2, 3), (2, 3, 6)
    wanted = [
        share - 0.4 * float(gaps[t:end].sum())
        for share, start, end in zip((0.5, -0.5, 0.0), starts, ends, strict=True)
        for t in range(start, end)
    ]
    assert found.tolist() == pytest.approx(wanted, abs=1e-6)
    one, _ = against_opponents(against([(0, 0), (0, math.log(9)), (0, 0)]), "bradley_terry")  # P = 0.1 there
    one = replace(one.of_prompts([1]), old=np.array([-2.0], np.float32), reference=np.array([-1.9], np.float32))
    trl = 3 * 0.11999999999999998  # its slope for that token, before its mean over three prompts
    assert -advantages(one, method, kl, 0.4)[0].advantages[0] == pytest.approx(trl, abs=1e-6)


# ---- which losses


def test_the_losses_of_pairs_are_those_that_need_no_other_pair() -> None:
    names = [
        name
        for name, row in OBJECTIVES.items()
        if row.feedback == "pairs" and not row.whole_step and row.reference_mode != "moving" and "beta" in row.options
    ]
    assert list(PairLoss.__args__) == names


@pytest.mark.parametrize("pairs", PairLoss.__args__)
def test_every_loss_of_pairs_is_that_of_its_objective(pairs: str) -> None:
    row, method = OBJECTIVES[pairs], method_of("online-dpo", loss={"pairs": pairs})
    assert dict(method.comparison.term.loss.options) == dict(row.options)
    assert method_of("xpo", loss={"pairs": pairs, "beta": 0.25}).comparison.beta == 0.25
    assert has_reference(config_of("online-dpo", loss={"pairs": pairs})) == row.needs_reference
    assert has_reference(config_of("xpo", loss={"pairs": pairs})), "its opponent is the reference"


def test_further_options_of_a_loss() -> None:
    simpo = method_of("online-simpo", loss={"options": {"gamma": 0.5, "length_normalised": 0}})
    assert dict(simpo.comparison.term.loss.options) == {"beta": 2.0, "gamma": 0.5, "length_normalised": False}
    assert simpo.comparison.row.reward == "logprob" and not has_reference(config_of("online-simpo"))


@pytest.mark.parametrize(
    ("method", "loss", "said"),
    [
        ("online-dpo", {"options": {"gama": 0.5}}, "gama:0.5: dpo has no such option. It has none beside"),
        ("online-simpo", {"options": {"gama": 0.5}}, "Perhaps you meant 'gamma'"),
        ("online-simpo", {"options": {"gamma": -1.0}}, "'gamma' of simpo must be >= 0"),
        ("online-simpo", {"options": {"length_normalised": 2.0}}, "is off or on. Give 0 or 1"),
        ("online-simpo", {"options": {"beta": 2.0}}, "beta:2: simpo has no such option"),
        ("online-dpo", {"pairs": "f-dpo", "options": {"divergence": 1.0}}, "'js' here; it is chosen offline only"),
    ],
)
def test_options_that_a_loss_does_not_have(method: str, loss: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as wrong:
        method_of(method, loss=loss)
    assert said in str(wrong.value), wrong.value


OWN = """
import torch

def squared(policy_chosen, policy_rejected, reference_chosen, reference_rejected, *, beta=0.5):
    return (beta * (policy_chosen - reference_chosen - policy_rejected + reference_rejected) - 1) ** 2

def labels(policy, desirable):
    return -policy * desirable

def random(rewards, prompt):
    best = torch.zeros_like(rewards)
    best[0], best[-1] = 1, -1
    return best

def halves(rewards, prompt):
    return 0 * rewards + 0.5
"""


def test_functions_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "my.py").write_text(OWN)
    own = method_of("online-dpo", loss={"function": f"{tmp_path}/my.py:squared", "options": {"beta": 0.3}})
    assert own.comparison.term.loss.options == {"beta": 0.3} and own.comparison.row.needs_reference
    with pytest.raises(ConfigError, match="asks for policy, desirable; here answers are compared as pairs only"):
        method_of("online-dpo", loss={"function": f"{tmp_path}/my.py:labels"})
    chosen = method_of("online-dpo", loss={"estimator": f"{tmp_path}/my.py:random"})
    assert sides(chosen, rollout([(1, 2, 3)])).side.tolist() == [1, 0, -1]
    with pytest.raises(ConfigError, match="it gives each response its side: 1 preferred, -1 not, 0 neither"):
        sides(method_of("online-dpo", loss={"estimator": f"{tmp_path}/my.py:halves"}), rollout([(1, 2)]))
    both = config_of("online-dpo", loss={"function": f"{tmp_path}/my.py:squared", "pairs": "ipo"})
    with pytest.raises(ConfigError, match="--loss.function takes the place of the loss that --loss.pairs ipo chooses"):
        settings.validate(both)


# ---- how rewards become a preference


JUDGE = RewardsConfig(judges=("openai=http://x",))


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, "bradley_terry"),
        ({"loss": {"preference": "order"}}, "order"),
        ({"rewards": JUDGE}, "win_rate"),
        (
            {"rewards": JUDGE, "judge": JudgeConfig(prompt="rating")},
            "bradley_terry",
        ),
        (
            {"rewards": JUDGE, "judge": JudgeConfig(rule="bradley_terry")},
            "bradley_terry",
        ),
        ({"rewards": RewardsConfig(judges=("openai=http://x",), rules=("length=1,2",))}, None),
        ({"rewards": RewardsConfig(judges=("openai=http://x",), weights={"judge": 2.0})}, None),
    ],
)
def test_a_judges_win_rate_is_the_preference_itself(options: dict[str, Any], wanted: str | None) -> None:
    config = config_of("nash-md", **options)
    if wanted is None:
        with pytest.raises(ConfigError, match="--loss.preference auto: the reward is a judge's win rate together with"):
            preference_of(config)
    else:
        assert preference_of(config) == wanted


def test_only_nash_md_asks_for_one() -> None:
    assert {name for name in METHODS if preference_of(config_of(name))} == {"nash-md"}


# ---- runs


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("comparison") / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{i} red?"}) + "\n" for i in range(6)))
    (file.parent / "my.py").write_text(
        "calls = 0\n\ndef same(completions, **columns):\n    return [1.0] * len(completions)\n\n"
        "def late(completions, **columns):\n    global calls\n    calls += 1\n"
        "    return [1.0 if calls < 4 else float(len(c)) for c in completions]\n\n"
        "def some(completions, **columns):\n"
        "    return [None if i % 3 == 0 else float(i) for i in range(len(completions))]\n"
    )
    return file


def run(method: str, model: Path, prompts: Path, out: Path, *words: str) -> int:
    paths = ["--model.path", str(model), "--model.precision", "fp32", "--data.train", str(prompts), "--out", str(out)]
    short = (
        "--data.max_length 64 --sampling.max_new_tokens 4 --train.batch_size 3 --train.max_steps 3 --train.threads 1"
    )
    return main([method, *paths, *short.split(), "--train.threads", "1", *words])


def test_judges_that_decide_nothing_end_the_run(tiny_model_dir: Path, prompts: Path, tmp_path: Path, capsys) -> None:
    source = ("--rewards.functions", f"{prompts.parent}/my.py:same")
    assert run("online-dpo", tiny_model_dir, prompts, tmp_path / "run", *source) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "rollout 10: for 10 rollouts no answers to a prompt could be told apart, and no step was taken" in said
    assert run("online-dpo", tiny_model_dir, prompts, tmp_path / "ties", *source, "--loss.ties", "first") == 0


def test_rollouts_without_a_pair_are_passed_over_and_counted(
    tiny_model_dir: Path, prompts: Path, tmp_path: Path
) -> None:
    source = ("--rewards.functions", f"{prompts.parent}/my.py:late")
    assert run("online-simpo", tiny_model_dir, prompts, tmp_path / "run", *source) == 0
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert len(rows) == 3 and [row["rollout"] for row in rows][0] > 1
    assert [row.get("skipped", 0.0) for row in rows] == [rows[0]["rollout"] - 1, 0.0, 0.0]


@pytest.mark.parametrize("method", ["online-dpo", "xpo", "nash-md"])
def test_unscored_answers_are_in_no_comparison(
    method: str, tiny_model_dir: Path, prompts: Path, tmp_path: Path
) -> None:
    source = ("--rewards.functions", f"{prompts.parent}/my.py:some")
    assert run(method, tiny_model_dir, prompts, tmp_path / "run", *source) == 0
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert all(row["unscored"] == pytest.approx(1 / 3) for row in rows)  # of 6 answers the first and the fourth
    assert all(row["tokens"] <= (4 if method == "nash-md" else 8) for row in rows)  # one prompt keeps both
