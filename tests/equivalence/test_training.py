"""One optimiser step is one set of examples: how it is cut into micro-batches, packed, ordered or shared over ranks
changes neither loss nor gradient nor the next weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

from assent.algorithms.online.method import method_with
from assent.algorithms.online.models import ForwardCache, Models
from assent.algorithms.online.samples import rollout_metrics
from assent.algorithms.online.stages import advantages
from assent.algorithms.online.train import Online, assemble
from assent.algorithms.preference.feedback import balanced
from assent.algorithms.preference.step_loss import terms_of
from assent.algorithms.preference.train import Preference
from assent.algorithms.reward.language import RegularisedScoreModel
from assent.algorithms.reward.odin import Odin, OdinScoreModel
from assent.algorithms.reward.pairs import RewardModelling
from assent.algorithms.reward.ranking import RewardRanking
from assent.algorithms.sft import SFT
from assent.config import (
    METHODS,
    OBJECTIVES,
    CriticConfig,
    DataConfig,
    GivenConfig,
    KLConfig,
    LoraConfig,
    ModelConfig,
    OdinSection,
    OptimConfig,
    RewardsConfig,
    RewardSection,
    RolloutConfig,
    SamplingConfig,
    ShapingConfig,
    TrainConfig,
    has_reference,
    online_config,
    preference_config,
)
from assent.data.chat import Chat
from assent.data.mismatch import with_mismatched
from assent.data.packing import Window, idle, order, window
from assent.data.records import Example, Message, Origin, Response
from assent.data.tree import Branch, TokenTree
from assent.distributed import World
from assent.errors import NonFiniteError
from assent.models import heads, loading
from assent.models.head import head_of
from assent.models.heads import WantedHead
from assent.models.policy import Policy, ScoreModel
from assent.models.references import Reference
from assent.rewards.model import ModelReward
from assent.rollout.engine import Completion
from assent.rollout.rollout import pack, rollout_of
from assent.train.loop import Loss, train_steps
from assent.train.optim import build_optimizer
from assent.train.session import Session

ONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
OPTIM = OptimConfig(lr=1e-3, eps=1e-4, warmup=0.0, schedule="constant", max_grad_norm=0.5)
"""eps well above the rounding of gradients: Adam's first step is otherwise their sign, whatever their size."""
LENGTH = 128
Make = Callable[[Path, object], object]


def pair_trees(number: int = 7, *, extra: Sequence[str] = ()) -> list[TokenTree]:
    """Pairs of very different lengths, with the fields of online methods beside them: `extra` are further ones."""
    draw = np.random.default_rng(11)
    made = []
    for key in range(number):
        branches = []
        for size in draw.integers(1, 30, 2):
            trained = draw.random(size) < 0.8
            trained[-1] = True
            n = int(trained.sum())
            fields = {
                "old": draw.uniform(-6, -5.6, n),
                "sampler": draw.uniform(-6, -5.6, n),
                "reference": draw.uniform(-6, -5.6, n),
                "values": draw.normal(size=n),
                "advantages": draw.normal(size=n),
                "returns": draw.normal(size=n),
            }
            if "ewma" in extra:
                fields["ewma"] = draw.uniform(-6, -5.6, n)
            if "sampled" in extra:
                fields["sampled"] = np.full(n, float(draw.random() >= 0.4))
            branches.append(Branch(draw.integers(3, 260, size), trained, fields))
        prompt = draw.integers(3, 260, draw.integers(1, 12))
        labels = {"label": np.array([1, 0], np.float32), "reference_point": np.full(2, 0.3, np.float32)}
        given = labels if "labels" in extra else {}
        made.append(TokenTree(prompt, tuple(branches), ((0, 1, float(draw.random())),), given, key=key))
    return made


READ: dict[str, Policy | ScoreModel] = {}


def a_copy(load: Callable, config: ModelConfig, *also, **options):
    """Of what a folder holds: it is read once for all tests."""
    key = repr((load.__name__, config, options))
    if key not in READ:
        READ[key] = load(config, *also, **options)
    return copy.deepcopy(READ[key])


def load_policy(config: ModelConfig, **options) -> Policy:
    return a_copy(loading.load_policy, config, **options)


def load_score_model(config: ModelConfig, tokenizer, **options) -> ScoreModel:
    return a_copy(heads.load_score_model, config, tokenizer, **options)


def model_config(folder: Path, **options) -> ModelConfig:
    return ModelConfig(str(folder), precision="fp32", **options)


def sft(folder: Path, tokenizer) -> SFT:
    return SFT(load_policy(model_config(folder), max_length=LENGTH), None)


def reward(readout: str, margin: bool, **options) -> Make:
    def make(folder: Path, tokenizer) -> RewardModelling:
        kind = ScoreModel
        if "regulariser" in options:
            start = load_policy(model_config(folder), max_length=LENGTH, trainable=False)
            language = head_of(start.plain, start.transform, start.dtype, constant=True)
            kind = partial(RegularisedScoreModel, language=language)
        scorer = load_score_model(model_config(folder), tokenizer, max_length=LENGTH, head=WantedHead(kind=kind))
        return RewardModelling(scorer, None, RewardSection(readout, margin, **options))

    return make


def ranking(loss: str) -> Make:
    def make(folder: Path, tokenizer) -> RewardRanking:
        return RewardRanking(load_score_model(model_config(folder), tokenizer, max_length=LENGTH), None, loss)

    return make


def odin(folder: Path, tokenizer) -> Odin:
    head = WantedHead(kind=partial(OdinScoreModel, seed=0))
    scorer = load_score_model(model_config(folder), tokenizer, max_length=LENGTH, head=head)
    return Odin(scorer, None, OdinSection(), ONE)


def counted_trees() -> list[TokenTree]:
    """The same with votes on the pairs; the first and the fourth are ties."""
    draw = np.random.default_rng(13)
    made = []
    for number, tree in enumerate(pair_trees()):
        tie = 1.0 if number in (0, 3) else float(draw.uniform(0, 0.4))
        share = (1 - tie) * draw.uniform(0.5, 1)
        fields = {"share": np.array([share], np.float32), "tie": np.array([tie], np.float32)}
        made.append(replace(tree, per_pair=fields))
    return made


def feedback_trees(objective: str, number: int = 7) -> list[TokenTree]:
    """Two to four answers of very different lengths to each prompt, with the feedback that an objective learns from."""
    draw = np.random.default_rng(12)
    kind = OBJECTIVES[objective].feedback
    made = []
    for key in range(number):
        branches = []
        size = int(draw.integers(2, 5))
        for length in draw.integers(1, 30, size):
            trained = draw.random(length) < 0.8
            trained[-1] = True
            branches.append(Branch(draw.integers(3, 260, length), trained))
        pairs = tuple((i, j, float(0.1 + draw.random())) for i in range(size) for j in range(i + 1, size))
        fields = {
            "pairs": {},
            "binary": {"label": (np.arange(size) % 2).astype(np.float32)},
            "ranking": {"level": draw.integers(0, 3, size).astype(np.float32)},
            "rating": {"rating": draw.normal(size=size).astype(np.float32)},
        }[kind]
        prompt = draw.integers(3, 260, draw.integers(1, 12))
        made.append(TokenTree(prompt, tuple(branches), pairs if kind == "pairs" else (), fields, key=key))
    return with_mismatched(made, 0, LENGTH) if objective == "kto" else made


def preference(objective: str, lora: int = 0, **options) -> Make:
    def make(folder: Path, tokenizer) -> Preference:
        model = model_config(folder, lora=LoraConfig(rank=lora))
        config = preference_config(objective, model=model, data=DataConfig("unused"), out="unused", **options)
        policy = load_policy(model, max_length=LENGTH)
        reference = None
        if OBJECTIVES[objective].needs_reference:
            other = None
            if not lora:
                other = load_policy(model_config(folder), max_length=LENGTH, trainable=False)
                with torch.no_grad():  # another model than the policy, so that its log-probs matter
                    for parameter in other.parameters():
                        parameter.mul_(1.1)
            reference = Reference(policy, other)
        terms = balanced(terms_of(config), feedback_trees(objective))
        return Preference(policy, reference, None, OBJECTIVES[objective], terms, ONE)

    return make


PROMPTS = [
    Example((Message("user", text),), (Response((Message("assistant", "So."),)),), origin=Origin("test", i))
    for i, text in enumerate(("Name three colours.", "How do I boil an egg?", "Hello", "What is 12 + 30?", "Why?"))
]


def online(method: str, **options) -> Make:
    def make(folder: Path, tokenizer) -> Online:
        config = online_config(
            method,
            model=model_config(folder),
            data=DataConfig("unused", max_length=LENGTH),
            out="unused",
            rewards=RewardsConfig((str(folder),)),
            sampling=SamplingConfig(temperature=0.9, max_new_tokens=12),
            **({"distill": {"teacher": str(folder), "beta": 0.5}} if METHODS[method].needs_teacher else {}),
            **options,
        )
        chat = Chat(tokenizer, None)
        scorer = load_score_model(config.model, tokenizer, max_length=LENGTH, trainable=False, seed=3)
        policy = load_policy(config.model, max_length=LENGTH)
        shared = METHODS[method].has_critic and config.critic.shared
        if shared:
            policy.add_value_head()
            torch.nn.init.normal_(policy.value_head.weight, generator=torch.Generator().manual_seed(4))
        own = METHODS[method].has_critic and not shared
        start = load_policy(config.model, max_length=LENGTH, trainable=False)
        models = Models(
            policy=policy,
            critic=load_score_model(config.model, tokenizer, max_length=LENGTH) if own else None,
            reference=Reference(policy, start) if has_reference(config) else None,
            teacher=None if config.distill.teacher is None else start,
        )
        source = ModelReward("model", scorer, chat, chat, max_length=LENGTH, micro_tokens=4096, world=ONE)
        return assemble(Session(config, ONE, None, tokenizer, chat), models, source, PROMPTS, config)

    return make


ppo = online("ppo")


ALGORITHMS: dict[str, Make] = {
    "sft": sft,
    "reward last": reward("last", False),
    "reward mean": reward("mean", False),
    "reward margin": reward("last", True),
    "reward mean margin": reward("mean", True),
    "reward scaled": reward("last", False, scaled=True, label_smoothing=0.1, centring=0.5),
    "reward votes mean": reward("mean", False, votes=True, label_smoothing=0.2),
    "reward davidson": reward("last", False, ties="davidson", votes=True),
    "reward sft": reward("last", False, regulariser="sft", regulariser_weight=0.3),
    "reward mean dpo": reward("mean", False, regulariser="dpo", regulariser_weight=0.3),
    "ranking kwise": ranking("kwise"),
    "ranking plackett-luce": ranking("plackett-luce"),
    "odin": odin,
    **{name: preference(name) for name in OBJECTIVES},
    "dpop": preference("dpop", loss={"penalty": 2.0}),  # 50 would multiply rounding as well
    "dpo + sft + ipo + aot": preference("dpo", plus={"sft": 0.5, "ipo": 0.1, "aot": 2.0}),
    **{name: online(name) for name in METHODS},
    "ppo without clip": online("ppo", loss={"objective": "none"}),
    "ppo with penalty": online("ppo", loss={"objective": "penalty", "penalty": 3.0}),
    "ppo, entropy": online("ppo", loss={"entropy": 0.05, "dual_clip": 3.0}),
    "ppo, shared": online("ppo", critic=CriticConfig("policy", shared=True, coef=0.3)),
    "ppo, ewma": online("ppo", loss={"ewma": 0.9}),
    "grpo, full KL": online("grpo", kl=vars(KLConfig(0.1, place="loss", estimator="full"))),
    "grpo, given": online("grpo", given=GivenConfig("row")),
    "xpo": online("xpo", loss={"alpha": 0.3}),
    "xpo, wpo": online("xpo", loss={"alpha": 0.3, "pairs": "wpo", "beta": 0.5}),
    "online-dpo, tdpo": online("online-dpo", loss={"pairs": "tdpo"}),
}
EXTRA = {
    "ppo, ewma": ("ewma",),
    "grpo, given": ("sampled",),
    "xpo": ("sampled",),
    "xpo, wpo": ("sampled",),
    "online-kto": ("labels",),
}
"""Fields that these read beside the others."""


WHOLE_STEP = {"odin", "kto", "aot", "aot-unpaired", "dpo + sft + ipo + aot"}
"""What needs the other ranks themselves before it has a loss; test_ranks.py runs two."""


def trees_of(name: str) -> list[TokenTree]:
    if any(word in name for word in ("votes", "davidson")):
        return counted_trees()
    objective = "pl-dpo" if name.startswith("ranking") else name.partition(" + ")[0]
    return feedback_trees(objective) if objective in OBJECTIVES else pair_trees(extra=EXTRA.get(name, ()))


def prepared(algorithm, made: Window) -> Window:
    return algorithm.prepare(made) if hasattr(algorithm, "prepare") else made


def gradient(algorithm, windows: Sequence[Window]) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradient of a step whose shares are the given windows, one for each rank."""
    total = 0.0
    for module in algorithm.modules.values():
        module.zero_grad()
    for made in windows:
        made = prepared(algorithm, made)
        for batch in made.batches:
            loss: Loss = algorithm.loss(batch, made.counts)
            loss.total.backward()
            total += loss.total.item()
    return total, {
        f"{name}.{key}": p.grad.clone()
        for name, module in algorithm.modules.items()
        for key, p in module.named_parameters()
        if p.grad is not None
    }


def close(got: tuple[float, dict[str, Tensor]], want: tuple[float, dict[str, Tensor]], tolerance: float = 1e-6) -> None:
    assert got[0] == pytest.approx(want[0], abs=tolerance, rel=tolerance)
    assert got[1].keys() == want[1].keys()
    for name, gradient in want[1].items():
        scale = max(1.0, gradient.abs().max().item())
        torch.testing.assert_close(
            got[1][name], gradient, atol=tolerance * scale, rtol=0, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("name", ALGORITHMS)
def test_cutting_packing_order_and_ranks_change_nothing(name: str, tiny_model_dir: Path, tokenizer) -> None:
    algorithm = ALGORITHMS[name](tiny_model_dir, tokenizer)
    trees = trees_of(name)
    whole = window(trees, micro_tokens=1 << 20)
    assert len(whole.batches) == 1
    want = gradient(algorithm, [whole])
    assert sum(g.abs().sum() for g in want[1].values()) > 1e-2

    alone = window(trees, micro_tokens=1)
    assert len(alone.batches) == len(trees)
    close(gradient(algorithm, [alone]), want)
    close(gradient(algorithm, [window(trees, micro_tokens=80)]), want)
    close(gradient(algorithm, [window(trees[::-1], micro_tokens=1 << 20)]), want)
    if name in WHOLE_STEP:
        return
    shares = [window(trees, micro_tokens=50, rank=rank, ranks=9) for rank in range(9)]
    assert any(not batch.keys for share in shares for batch in share.batches), "two ranks idle"
    close(gradient(algorithm, shares), want)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_sharing_prompts_changes_nothing(name: str, tiny_model_dir: Path, tokenizer) -> None:
    algorithm = ALGORITHMS[name](tiny_model_dir, tokenizer)
    trees = trees_of(name)
    want = gradient(algorithm, [window(trees, micro_tokens=200)])
    reference = getattr(algorithm, "reference", None)
    for module in filter(None, [*algorithm.modules.values(), getattr(reference, "model", None)]):
        module.tree = False
        module.model.set_attn_implementation("eager")
    close(gradient(algorithm, [window(trees, micro_tokens=200, flat=True)]), want, 2e-6)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_idle_rank_adds_zeros_to_every_gradient(name: str, tiny_model_dir: Path, tokenizer) -> None:
    """Every weight that a busy rank has a gradient for gets one, or a sharded backward pass would hang."""
    algorithm = ALGORITHMS[name](tiny_model_dir, tokenizer)
    trees = trees_of(name)
    busy = window(trees, micro_tokens=1 << 20)
    touched = gradient(algorithm, [busy])[1].keys()
    loss, grads = gradient(algorithm, [replace(busy, batches=(idle(trees[0]),))])
    assert loss == 0.0 and grads.keys() == touched
    assert not any(grad.any() for grad in grads.values())


ONCE = vars(RolloutConfig(responses=2))
READ_ONCE: dict[str, Make] = {
    "ppo": online("ppo", rollout=ONCE),
    "ppo, shared": online("ppo", rollout=ONCE, critic=CriticConfig("policy", shared=True, coef=0.3)),
    "ppo, entropy": online("ppo", rollout=ONCE, loss={"entropy": 0.05}),
    "ppo, ewma": online("ppo", rollout=ONCE, loss={"ewma": 0.9}),
    "ppo, full KL": online("ppo", rollout=ONCE, kl=vars(KLConfig(0.1, estimator="full"))),
    "ppo, full KL in the loss": online("ppo", rollout=ONCE, kl=vars(KLConfig(0.1, place="loss", estimator="full"))),
    "reinforce++": online("reinforce++", rollout=ONCE),
    "rloo": online("rloo", rollout=ONCE),
}


@pytest.mark.parametrize("name", READ_ONCE)
def test_a_forward_pass_kept_for_the_one_step_is_that_of_the_step(name: str, tiny_model_dir: Path, tokenizer) -> None:
    algorithm = READ_ONCE[name](tiny_model_dir, tokenizer)
    made, kept = next(filter(None, algorithm.windows())), algorithm.cache.passes
    assert list(kept) == [batch.keys for batch in made.batches]
    with patch.object(Policy, "forward", side_effect=AssertionError("read twice")):
        got = gradient(algorithm, [made])
    assert not kept
    close(got, gradient(algorithm, [made]), 1e-7)
    assert sum(g.abs().sum() for g in got[1].values()) > 1e-2


def test_a_forward_pass_is_kept_where_the_rollout_is_one_micro_batch_alone(tiny_model_dir: Path, tokenizer) -> None:
    for micro_tokens, kept in ((1 << 20, 1), (60, 0)):
        make = online("ppo", rollout=ONCE, train=TrainConfig(micro_tokens=micro_tokens))
        algorithm = make(tiny_model_dir, tokenizer)
        made = next(filter(None, algorithm.windows()))
        assert (len(made.batches) == 1) == bool(kept) == bool(algorithm.cache.passes)


class Fixed:
    """The algorithm with windows of its own."""

    def __init__(self, algorithm, made: Sequence[Window]) -> None:
        self.algorithm, self.made = algorithm, made
        self.modules, self.loss = algorithm.modules, algorithm.loss

    def windows(self) -> Iterator[Window]:
        return (prepared(self.algorithm, window) for window in self.made)

    def stepped(self, metrics: Mapping[str, float]) -> None:
        pass


@pytest.mark.parametrize("name", ALGORITHMS)
def test_next_weights_do_not_depend_on_the_budget(name: str, tiny_model_dir: Path, tokenizer) -> None:
    results = []
    for micro_tokens in (1 << 20, 60):
        algorithm = ALGORITHMS[name](tiny_model_dir, tokenizer)
        optimizer = build_optimizer([(module, OPTIM.lr) for module in algorithm.modules.values()], OPTIM)
        fixed = Fixed(algorithm, [window(trees_of(name), micro_tokens=micro_tokens)])
        before = {key: p.clone() for m in algorithm.modules.values() for key, p in m.named_parameters()}
        (step,) = train_steps(fixed, optimizer, OPTIM, ONE, start=0, total=1)
        weights = {f"{n}.{k}": p.detach() for n, m in algorithm.modules.items() for k, p in m.named_parameters()}
        moved = max(
            (p.detach() - before[k]).abs().max() for m in algorithm.modules.values() for k, p in m.named_parameters()
        )
        assert moved > 1e-4
        results.append((step.metrics, weights))
    (metrics, weights), (other_metrics, other) = results
    for key, value in metrics.items():
        if not key.startswith("time/"):
            assert other_metrics[key] == pytest.approx(value, abs=1e-5, rel=1e-5), key
    for key, value in weights.items():
        torch.testing.assert_close(other[key], value, atol=1e-6, rtol=0, msg=lambda text, k=key: f"{k}: {text}")


def test_the_mean_of_means_would_be_another_number(tiny_model_dir: Path, tokenizer) -> None:
    """The usual mistake, each micro-batch divided by its own count, is told apart by these data."""
    algorithm = sft(tiny_model_dir, tokenizer)
    made = window(pair_trees(), micro_tokens=60)
    right = gradient(algorithm, [made])
    algorithm.policy.zero_grad()
    for batch in made.batches:
        loss = -algorithm.policy(batch).logprobs.mean() / len(made.batches)
        loss.backward()
    wrong = {f"policy.{key}": p.grad for key, p in algorithm.policy.named_parameters() if p.grad is not None}
    assert max((wrong[key] - grad).abs().max().item() for key, grad in right[1].items()) > 1e-3


@pytest.mark.parametrize("lora", [0, 4], ids=["all weights", "lora"])
def test_dpo_begins_at_ln_2(lora: int, tiny_model_dir: Path, tokenizer) -> None:
    """Policy and reference are equal, to the bit: every margin is 0."""
    algorithm = preference("dpo", lora, loss={"beta": 0.7})(tiny_model_dir, tokenizer)
    policy = algorithm.policy
    if algorithm.reference.model is not None:
        algorithm.reference.model.load_state_dict(policy.state_dict())
    made = window(feedback_trees("dpo", 1), micro_tokens=1 << 20)
    (batch,) = made.batches
    loss = algorithm.loss(batch, made.counts)
    assert loss.total.item() == torch.tensor(math.log(2)).item()
    assert loss.metrics["margin"][0] == 0 and loss.metrics["accuracy"][0] == 0.5 * loss.metrics["accuracy"][1]
    loss.total.backward()
    assert any(p.grad is not None and p.grad.any() for p in policy.parameters())


def test_lora_reference_stays_the_start(tiny_model_dir: Path, tokenizer) -> None:
    algorithm = preference("dpo", lora=4)(tiny_model_dir, tokenizer)
    policy = algorithm.policy
    (batch,) = window(feedback_trees("dpo"), micro_tokens=1 << 20).batches
    start = policy(batch).logprobs.detach()
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if parameter.requires_grad:
                assert "lora_" in name
                parameter.add_(0.1)
    assert torch.equal(algorithm.reference.logprobs(batch), start)
    assert (policy(batch).logprobs - start).abs().max() > 1e-2


def test_a_number_that_is_not_finite_stops_before_the_update(tiny_model_dir: Path, tokenizer) -> None:
    algorithm = sft(tiny_model_dir, tokenizer)
    made = window(pair_trees(), micro_tokens=60)
    optimizer = build_optimizer([(algorithm.policy, OPTIM.lr)], OPTIM)

    class Broken(Fixed):
        def __init__(self) -> None:
            super().__init__(algorithm, [made])
            self.loss = self.poisoned

        def poisoned(self, batch, counts) -> Loss:
            loss = algorithm.loss(batch, counts)
            return Loss(loss.total * torch.where(torch.tensor(3 in batch.keys), torch.nan, 1.0), loss.metrics)

    before = {name: p.clone() for name, p in algorithm.policy.named_parameters()}
    with pytest.raises(NonFiniteError, match="step 1: (loss|grad_norm) is nan.* The update was not applied"):
        list(train_steps(Broken(), optimizer, OPTIM, ONE, start=0, total=1))
    assert all(torch.equal(p, before[name]) for name, p in algorithm.policy.named_parameters())


# ---- PPO: what a rollout says, and what training says of it


def test_rollout_and_training_agree_and_the_ratio_begins_at_one(tiny_model_dir: Path, tokenizer) -> None:
    algorithm = online(
        "ppo",
        train=TrainConfig(batch_size=4),
        rollout=vars(RolloutConfig(responses=3)),
        shaping=vars(ShapingConfig(missing_eos_penalty=0.5)),
    )(tiny_model_dir, tokenizer)
    rollout = algorithm.rollouts.make(0.1, steps=2, warming=False, cache=ForwardCache()).rollout
    assert len(rollout.ids) > 50
    np.testing.assert_allclose(rollout.old, rollout.sampler, atol=1e-4)
    np.testing.assert_allclose(rollout.old, rollout.reference, atol=1e-5)
    assert rollout_metrics(rollout)["kl"] == pytest.approx(0, abs=1e-4)
    made = pack(rollout.of_prompts([0, 1]), micro_tokens=200, flat=False, world=ONE)
    sums: dict[str, float] = {}
    for batch in made.batches:
        for name, (value, _) in algorithm.loss(batch, made.counts).metrics.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
    assert sums["ratio"] / made.counts.tokens == pytest.approx(1.0, abs=1e-6)
    assert sums["clip_fraction"] == 0.0


def test_every_rollout_is_whole(tiny_model_dir: Path, tokenizer) -> None:
    """Five prompts in rollouts of four: the orders of the epochs follow each other, and no minibatch is empty."""
    algorithm = ppo(tiny_model_dir, tokenizer)
    drawn = [index for _ in range(5) for index in algorithm.rollouts.prompts.next(4).tolist()]
    assert [sorted(drawn[start : start + 5]) for start in range(0, 20, 5)] == [list(range(5))] * 4
    assert drawn[:5] == order(5, seed=0, epoch=0).tolist() and drawn[5:10] == order(5, seed=0, epoch=1).tolist()
    responses = [[Completion(np.array([key]), np.zeros(1, np.float32), True)] for key in range(4)]
    algorithm.buffer = rollout_of([np.array([1])] * 4, np.arange(4), responses)
    for epoch in range(2):
        parts = [algorithm._minibatch(2 * epoch + part) for part in range(2)]
        assert sorted(row for part in parts for row in part.rows) == list(range(4)) and all(map(len, parts))


def test_advantages_are_gae_over_kl_and_reward(tiny_model_dir: Path, tokenizer) -> None:
    """Each answer by itself, in a loop: the KL at every token, the score (and the penalty) at the last."""
    config = ppo(tiny_model_dir, tokenizer).config
    config = replace(config, loss=replace(config.loss, whiten=False, gamma=0.9, lam=0.8))
    draw = np.random.default_rng(2)

    def response() -> Completion:
        size = int(draw.integers(1, 6))
        return Completion(draw.integers(3, 99, size), draw.normal(size=size), bool(draw.random() < 0.5))

    before = rollout_of([np.array([1, 2])] * 3, np.arange(3), [[response(), response()] for _ in range(3)])
    columns = {name: draw.normal(size=len(before.ids)) for name in ("old", "reference", "values", "entropy")}
    before = replace(before, shaped=draw.normal(size=6), reward=np.zeros(6), **columns)
    after, _ = advantages(before, method_with(config), config.kl, 0.3)
    for i, start in enumerate(before.starts.tolist()):
        own = slice(start, start + int(before.lengths[i]))
        rewards = -0.3 * (before.old - before.reference)[own]
        rewards[-1] += before.shaped[i]
        values, advantage, want = before.values[own], 0.0, []
        for t in reversed(range(len(rewards))):
            following = values[t + 1] if t + 1 < len(values) else 0.0
            advantage = rewards[t] + 0.9 * following - values[t] + 0.9 * 0.8 * advantage
            want.insert(0, advantage)
        np.testing.assert_allclose(after.advantages[own], want, atol=1e-6)
        np.testing.assert_allclose(after.returns[own], np.array(want) + values, atol=1e-6)
