"""Rewards credited to the tokens that they hang on: against gradients of single sequences in float64, sums, ensembles,
what is refused, and whole runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from assent.algorithms.online.method import method_with
from assent.algorithms.online.stages import advantages, shape
from assent.algorithms.online.train import train_online
from assent.cli import main
from assent.config import (
    DataConfig,
    ModelConfig,
    OnlineConfig,
    OptimConfig,
    RewardsConfig,
    SamplingConfig,
    ShapingConfig,
    TrainConfig,
    online_config,
)
from assent.data.chat import Chat
from assent.data.tree import Branch, TokenTree, collate
from assent.distributed import World
from assent.errors import ConfigError
from assent.losses import RunningMoments
from assent.models.attribution import attributed
from assent.models.gate import Gate, GateRule
from assent.models.gated import GatedScoreModel
from assent.models.heads import load_score_model
from assent.models.policy import ScoreModel
from assent.models.reward_head import HeadRule
from assent.rewards.credit import Credit, credit_of
from assent.rewards.ensemble import COMBINE, SLOPES, Ensemble
from assent.rewards.group import Nothing, WeightedSum
from assent.rewards.model import ModelReward
from assent.rollout.engine import Completion
from assent.rollout.rollout import Rollout, rollout_of
from assent.train.log import read_metrics

ALONE = World(0, 1, 0, torch.device("cpu"))
RULE = HeadRule(("helpfulness", "verbosity", "tone"), (0.5, -1.25, 2.0), offset=(0.1, 0.2, 0.3))
K = len(RULE)


def trees() -> list[TokenTree]:
    draw = np.random.default_rng(4)
    return [
        TokenTree(
            draw.integers(3, 260, width),
            tuple(Branch(draw.integers(3, 260, size), np.ones(size, bool)) for size in sizes),
        )
        for width, sizes in ((6, (3, 7)), (1, (5,)), (9, (20, 2, 4)))
    ]


@pytest.fixture(scope="module")
def scorer(scorer_dir: Path, tokenizer) -> ScoreModel:
    return load_score_model(ModelConfig(str(scorer_dir), precision="fp32"), tokenizer, max_length=64, trainable=False)


@pytest.fixture(scope="module")
def several(tiny_model_dir: Path, tokenizer, tmp_path_factory) -> Path:
    """A reward model of three outputs."""
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model_dir, num_labels=K, dtype=torch.float32)
    with torch.no_grad():
        model.score.weight.normal_()
    folder = tmp_path_factory.mktemp("several")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def alone(
    folder: Path, head: Callable[[Tensor, int], Tensor], given: list[TokenTree]
) -> tuple[list[float], list[float]]:
    """Rewards and attributions of one sequence after the other, in float64; `head` makes a reward of the final hidden
    states [L, h] of a sequence whose prompt has so many tokens."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    rewards, parts = [], []
    for tree in given:
        for branch in tree.branches:
            ids = torch.tensor([[*tree.prompt, *branch.ids]])
            looked_up = model.get_input_embeddings()(ids).detach().requires_grad_()
            reward = head(model.model(inputs_embeds=looked_up).last_hidden_state[0], len(tree.prompt))
            (slope,) = torch.autograd.grad(reward, looked_up)
            rewards.append(reward.item())
            parts += (slope * looked_up).sum(-1)[0, len(tree.prompt) :].tolist()
    return rewards, parts


def weights_of(folder: Path) -> Tensor:
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float64)
    return model.score.weight.detach()


def close(found: tuple[Tensor, Tensor], wanted: tuple[list[float], list[float]], within: float = 1e-5) -> None:
    for got, exact in zip(found, wanted, strict=True):
        size = max(map(abs, exact))
        assert got.numpy() == pytest.approx(np.array(exact), abs=within * size)


# ---- attributions


@pytest.mark.parametrize("layout", ["tree", "flat packing", "padded"])
def test_one_pass_over_trees_is_every_answer_alone(layout: str, scorer_dir: Path, tokenizer) -> None:
    options = {"layout": "flat"} if layout == "padded" else {}
    config = ModelConfig(str(scorer_dir), precision="fp32", **options)
    model = load_score_model(config, tokenizer, max_length=64, trainable=False)
    assert model.tree == (layout != "padded")
    head = weights_of(scorer_dir)[0]
    wanted = alone(scorer_dir, lambda states, _: states[-1] @ head, trees())
    before = [x.grad for x in model.parameters()]
    close(attributed(model, collate(trees(), flat=layout != "tree")), wanted)
    assert before == [x.grad for x in model.parameters()] == [None] * len(before), "nothing of it is left"
    assert not model.plain.get_input_embeddings()._forward_hooks


def test_short_last_layer(scorer_dir: Path, tokenizer) -> None:
    """Few of many tokens are read: the last layer computes those alone."""
    model = load_score_model(ModelConfig(str(scorer_dir), precision="fp32"), tokenizer, max_length=64, trainable=False)
    draw = np.random.default_rng(1)
    long = [TokenTree(draw.integers(3, 260, 30), (Branch(draw.integers(3, 260, 9), np.ones(9, bool)),))]
    head = weights_of(scorer_dir)[0]
    wanted = alone(scorer_dir, lambda states, _: states[-1] @ head, long)
    for short in (False, True):
        model.short = short and model.short
        close(attributed(model, collate(long)), wanted)


def test_answers_do_not_leak_into_one_another(scorer: ScoreModel) -> None:
    base = trees()
    (first, second), *_ = base[0].branches[:2], None
    louder = replace(base[0], branches=(first, replace(second, ids=second.ids[::-1].copy() + 1)))
    one, two = (attributed(scorer, collate([tree]))[1] for tree in (base[0], louder))
    torch.testing.assert_close(one[:3], two[:3], atol=1e-6, rtol=0)
    assert (one[3:] - two[3:]).abs().max() > 1e-3


def test_several_outputs_are_attributed_by_their_rule(several: Path, tokenizer) -> None:
    model = load_score_model(ModelConfig(str(several), precision="fp32"), tokenizer, max_length=64, trainable=False)
    model.rule = RULE
    head, weights = weights_of(several), torch.tensor(RULE.weights, dtype=torch.float64)
    offset = torch.tensor(RULE.offset, dtype=torch.float64)
    close(
        attributed(model, collate(trees())),
        alone(several, lambda states, _: (head @ states[-1] + offset) @ weights, trees()),
    )


def test_a_gate_counts(several: Path, tokenizer) -> None:
    plain = load_score_model(ModelConfig(str(several), precision="fp32"), tokenizer, max_length=64, trainable=False)
    torch.manual_seed(0)
    gate = Gate(32, K, (8,), temperature=1.0)
    matrix = ((1.0, 0.0, 0.0), (-0.3, 1.0, -0.2), (0.0, 0.0, 1.0))
    gate.transform.copy_(torch.tensor(matrix))
    model = GatedScoreModel(
        plain.model,
        gate=gate,
        gate_rule=GateRule((8,), 1.0, matrix),
        precision="fp32",
        tree=True,
        rule=replace(RULE, offset=()),
    )
    exact = Gate(32, K, (8,), temperature=1.0).double()
    exact.load_state_dict(gate.state_dict())
    head, m = weights_of(several), torch.tensor(matrix, dtype=torch.float64)

    def reward(states: Tensor, prompt: int) -> Tensor:
        hidden = torch.relu(exact.layers[0](states[prompt - 1]))
        share = torch.softmax(exact.layers[1](hidden), -1) * exact.logit_scale
        return share @ ((head @ states[-1]) @ m)

    close(attributed(model, collate(trees())), alone(several, reward, trees()))


def test_bf16_is_near(scorer_dir: Path, tokenizer) -> None:
    found = {}
    for precision in ("bf16", "fp32"):
        config = ModelConfig(str(scorer_dir), precision=precision)
        model = load_score_model(config, tokenizer, max_length=64, trainable=False)
        found[precision] = attributed(model, collate(trees()))[1]
    size = found["fp32"].abs().max()
    assert found["bf16"].dtype == torch.float32 and (found["bf16"] - found["fp32"]).abs().max() < 0.1 * size


# ---- credit


def source(folder: Path, tokenizer, name: str = "model") -> ModelReward:
    model = load_score_model(ModelConfig(str(folder), precision="fp32"), tokenizer, max_length=64, trainable=False)
    chat = Chat(tokenizer)
    return ModelReward(name, model, chat, chat, max_length=64, micro_tokens=40, world=ALONE)


@pytest.fixture(scope="module")
def single(scorer_dir: Path, tokenizer) -> ModelReward:
    return source(scorer_dir, tokenizer)


@pytest.fixture(scope="module")
def pair(scorer_dir: Path, tokenizer) -> tuple[ModelReward, ModelReward]:
    second = source(scorer_dir, tokenizer, "second")
    with torch.no_grad():
        second.scorer.head.weight.copy_(torch.randn(1, 32, generator=torch.Generator().manual_seed(2)))
    return source(scorer_dir, tokenizer, "first"), second


def lengths() -> list[int]:
    return [len(branch) for tree in trees() for branch in tree.branches]


def sums(values: np.ndarray) -> np.ndarray:
    return np.add.reduceat(values.astype(np.float64), np.cumsum([0, *lengths()])[:-1])


def test_gradient_and_absolute(single: ModelReward) -> None:
    reward, parts = single.attributed(trees())
    signed = Credit((single,), None, weight=-0.5, share=1.0, absolute=False)(trees())
    assert signed == pytest.approx(-0.5 * parts, abs=1e-6)
    whole = Credit((single,), None, weight=-0.5, share=1.0, absolute=True)(trees())
    assert sums(whole) == pytest.approx(-0.5 * reward, abs=1e-5), "all of it is spread"
    assert np.abs(whole) == pytest.approx(
        np.repeat(np.abs(0.5 * reward) / sums(np.abs(parts)), lengths()) * np.abs(parts), abs=1e-5
    )
    half = Credit((single,), None, weight=-0.5, share=0.25, absolute=True)(trees())
    assert half == pytest.approx(0.25 * whole, abs=1e-6)


def test_without_any_gradient_all_stays_at_the_last_token(scorer_dir: Path, tokenizer) -> None:
    flat = source(scorer_dir, tokenizer)
    with torch.no_grad():
        flat.scorer.head.weight.zero_()
    for absolute in (False, True):
        assert not Credit((flat,), None, 1.0, 1.0, absolute)(trees()).any()


@pytest.mark.parametrize("combine", COMBINE)
def test_slopes_are_derivatives(combine: str) -> None:
    scores = np.random.default_rng(0).normal(size=(3, 7))
    options = {"k": 0.7} if combine == "lcb" else {}
    found = SLOPES[combine](scores, **options)
    for k in range(3):
        step = np.zeros_like(scores)
        step[k] = 1e-6
        rise = COMBINE[combine](scores + step, **options) - COMBINE[combine](scores - step, **options)
        assert found[k] == pytest.approx(rise / 2e-6, abs=1e-6)
    equal = np.ones((3, 2))
    assert SLOPES[combine](equal, **options).sum(0) == pytest.approx(1.0), "where all agree, the mean's or one's"


@pytest.mark.parametrize("combine", COMBINE)
def test_an_ensemble_is_attributed_by_its_rule(combine: str, pair) -> None:
    ensemble = Ensemble("model", pair, combine, k=0.7)
    found = Credit(pair, ensemble, 1.0, 1.0, False)(trees())
    (r1, a1), (r2, a2) = (one.attributed(trees()) for one in pair)
    r1, r2 = (np.repeat(r.astype(np.float64), lengths()) for r in (r1, r2))
    sign = np.sign(r1 - r2)  # the deviation of two is half their distance
    first = {"mean": 0.5 + 0 * sign, "min": (1 - sign) / 2, "lcb": (1 - 0.7 * sign) / 2}[combine]
    second = {"mean": 0.5 + 0 * sign, "min": (1 + sign) / 2, "lcb": (1 + 0.7 * sign) / 2}[combine]
    assert found == pytest.approx(first * a1 + second * a2, abs=1e-5)
    spread = Credit(pair, ensemble, 1.0, 1.0, True)(trees())
    own = np.stack([one.attributed(trees())[0] for one in pair]).astype(np.float64)
    assert sums(spread) == pytest.approx(ensemble.combine(own), abs=1e-5)


def rollout(credit: np.ndarray | None) -> Rollout:
    draw = np.random.default_rng(2)
    groups = [[Completion(b.ids, draw.normal(size=len(b)), True) for b in tree.branches] for tree in trees()]
    bare = rollout_of([tree.prompt for tree in trees()], np.arange(3), groups)
    reward = draw.normal(size=len(bare)).astype(np.float32)
    return replace(bare, reward=reward, credit=credit)


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("shaping", [ShapingConfig(), ShapingConfig(normalise="batch"), ShapingConfig(clip=0.5)])
def test_the_sum_over_an_answer_stays_its_reward(absolute: bool, shaping: ShapingConfig, single: ModelReward) -> None:
    credit = Credit((single,), None, 1.0, 1.0, absolute)(trees())
    config = online_config("reinforce", model={"path": "m"}, data={"train": "d"}, out="o", kl={"coef": 0.0})
    method = method_with(config)
    found = {}
    for name, given in (("credited", credit), ("last", None)):
        made = rollout(given)
        moments = RunningMoments()
        moments.update(torch.from_numpy(made.reward.astype(np.float64)))
        made = shape(made, shaping, moments, np.zeros(3), 20)
        made, metrics = advantages(made, method, config.kl, 0.0)
        found[name] = made
        assert ("credit" in metrics) == (given is not None)
    first = found["credited"].starts
    whole = found["credited"].advantages[first]  # all that is still to come at the first token
    assert whole == pytest.approx(found["last"].advantages[first], abs=1e-6)
    scale = 1.0 if shaping.normalise == "none" else rollout(None).reward.astype(np.float64).std()
    later = np.setdiff1d(np.arange(len(credit)), first)
    drop = found["credited"].advantages[later - 1] - found["credited"].advantages[later]
    assert drop == pytest.approx(np.delete(credit, np.cumsum(lengths()) - 1) / scale, abs=1e-5)


def test_estimators_of_whole_answers_see_the_sum(single: ModelReward) -> None:
    credit = Credit((single,), None, 1.0, 1.0, False)(trees())
    config = online_config("rloo", model={"path": "m"}, data={"train": "d"}, out="o", kl={"coef": 0.0})
    found = []
    for given in (credit, None):
        made = replace(rollout(given), shaped=rollout(given).reward)
        made = made.take(np.array([0, 1, 3, 4, 5])).of_prompts([0, 2])
        found.append(advantages(made, method_with(config), config.kl, 0.0)[0].advantages)
    assert found[0] == pytest.approx(found[1], abs=1e-5)


# ---- who is asked


def test_mixed_sources_spread_the_models_part(single: ModelReward) -> None:
    both = WeightedSum("w", [Nothing(), single], [3.0, -0.5])
    made = credit_of(both, RewardsConfig(("m",), credit="absolute", credit_share=0.5))
    assert made is not None and (made.members, made.weight, made.share) == ((single,), -0.5, 0.5)
    assert credit_of(both, RewardsConfig(("m",))) is None


def test_a_model_of_other_tokens_is_refused(scorer_dir: Path, single: ModelReward, tokenizer) -> None:
    other = Chat(tokenizer, rendered=True)
    reads = ModelReward("model", single.scorer, other, Chat(tokenizer), max_length=64, micro_tokens=40, world=ALONE)
    with pytest.raises(ConfigError, match="--rewards.credit gradient: path/m reads answers in the words of its own"):
        credit_of(WeightedSum("w", [reads], [1.0]), RewardsConfig(("path/m",), credit="gradient"))


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("ppo --rewards.rules length=1,2 --critic.start policy --rewards.credit gradient", "asks reward models for"),
        ("rloo --rewards.model r --rewards.credit absolute", "changes nothing in rloo, which compares whole answers"),
        ("grpo --rewards.model r --rewards.credit gradient", "changes nothing in grpo"),
        ("ppo --rewards.model r --rewards.credit_share 0.5", "--rewards.credit_share is about --rewards.credit"),
        ("ppo --rewards.model r --rewards.credit gradient --rewards.credit_share 0", "--rewards.credit_share must be"),
        (
            "ppo --rewards.model r --rewards.rules length=1,2 --rewards.weights model:0 --rewards.credit gradient",
            "--rewards.weights model:0 leaves none",
        ),
    ],
)
def test_contradictions(command: str, words: str, tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    assert main([*command.split(), "--model.path", "m", "--data.train", "d.jsonl", "--out", str(out)]) == 2
    assert words in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize("method", ["reinforce", "ppo"])
def test_a_run(method: str, tiny_model_dir: Path, scorer_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{i} red?"}) + "\n" for i in range(4)))

    def run(**rewards: Any) -> list[dict[str, float]]:
        config: OnlineConfig = online_config(
            method,
            model=ModelConfig(str(tiny_model_dir), precision="fp32"),
            data=DataConfig(str(file), max_length=64),
            out=str(tmp_path / rewards["credit"]),
            optim=OptimConfig(lr=1e-3, warmup=0.0),
            train=TrainConfig(batch_size=4, max_steps=2, threads=1),
            rollout={"responses": 2, "epochs": 1, "minibatches": 1},
            rewards=RewardsConfig((str(scorer_dir),), rules=("length=2,8",), **rewards),
            sampling=SamplingConfig(max_new_tokens=6),
        )
        train_online(config)
        return read_metrics(Path(config.out) / "metrics.jsonl", times=False)

    last, credited = run(credit="last"), run(credit="gradient")
    assert "credit" not in last[0] and credited[0]["credit"] > 0
    assert credited[0]["reward"] == last[0]["reward"], "the rewards are the same"
    assert credited[0]["policy_loss"] != last[0]["policy_loss"], "their places are not"
