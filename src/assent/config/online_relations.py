"""The relations between options of online methods, as in `assent.config.relations`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from assent.config.judge_relations import judge_is_asked as judge_is_asked
from assent.config.judge_relations import unread as unread
from assent.config.methods import METHODS, compares_with_reference, has_reference, method_of, objective_key
from assent.config.online import SOURCES, OnlineConfig, critic_of
from assent.config.online_preference import NashMDConfig, OnlineDPOConfig, OnlineKTOConfig, XPOConfig
from assent.config.policy_gradient import PPOConfig
from assent.config.ranges import in_float32
from assent.config.scoring import SourceConfig
from assent.config.token_relations import OF_TOKENS


def _needs_reward(config: OnlineConfig) -> str | None:
    if not config.rewards.named and config.distill.teacher is None and not METHODS[method_of(config)].needs_teacher:
        return (
            "Nothing says what an answer is worth. Give --rewards.model FOLDER (from: assent reward), --rewards.rules, "
            "--rewards.functions FILE.py:function, --rewards.servers SHAPE=URL, --rewards.judges openai=URL or "
            "--rewards.implicit FOLDER."
        )
    return None


def _reward_lists(config: OnlineConfig) -> str | None:
    for kind in SOURCES:
        given = getattr(config.rewards, kind)
        if "" in given or len(set(given)) < len(given):
            return f"--rewards.{kind}: one is empty, or there twice. Got {len(given)}, {len(set(given))} different."
    for name, weight in config.rewards.weights.items():
        if not in_float32(weight):
            return f"--rewards.weights {name}:{weight:g}: a weight must be a finite number that float32 holds."
    return None


def _ensemble(config: OnlineConfig) -> str | None:
    rewards = config.rewards
    if rewards.ensemble != "mean" and len(rewards.model) < 2:
        return (
            f"--rewards.ensemble {rewards.ensemble} is about several reward models. Give --rewards.model two or more. "
            f"Got {len(rewards.model)}."
        )
    return None


def _implicit(config: OnlineConfig) -> str | None:
    rewards = config.rewards
    for name in ("implicit_reference", "implicit_beta"):
        if getattr(rewards, name) is not None and not rewards.implicit:
            return f"--rewards.{name} is about the policies of --rewards.implicit. Give one of them."
    return None


def _output_weights(config: OnlineConfig) -> str | None:
    given = config.rewards.output_weights
    if given and not config.rewards.model:
        return "--rewards.output_weights is about a reward model of several outputs. Give --rewards.model FOLDER."
    for name, weight in given.items():
        if not in_float32(weight):
            return f"--rewards.output_weights {name}:{weight:g}: a weight must be a finite number that float32 holds."
    if given and not any(given.values()):
        return "--rewards.output_weights: all are 0, so every answer would be worth the same."
    return None


def remote_weights(config: OnlineConfig | SourceConfig) -> str | None:
    """For every command that asks servers."""
    weights = config.remote.weights
    servers = (
        config.source if isinstance(config, SourceConfig) else (*config.rewards.servers, config.alarm.held_out or "")
    )
    if not weights:
        return None
    if not any(spec.partition("=")[0] in ("vllm", "sglang") for spec in servers):
        return "--remote.weights is read only with the servers vllm=URL and sglang=URL."
    if not all(map(in_float32, weights)) or not any(weights):
        return f"--remote.weights: expected numbers that float32 holds, not all of them 0. Got {list(weights)}."
    return None


def _critic_start(config: OnlineConfig) -> str | None:
    critic = critic_of(config)
    if critic is None or critic.shared or critic.start != "reward" or len(config.rewards.model) == 1:
        return None
    if _needs_reward(config):
        return None  # said already
    return (
        "--critic.start reward copies the reward model, and there must be exactly one (--rewards.model). Got "
        f"{len(config.rewards.model)}. Use --critic.start policy."
    )


def _judges_are_there(config: OnlineConfig) -> str | None:
    judges = [*config.rewards.judges]
    if (kind := (config.alarm.held_out or "").partition("=")[0]) in ("openai", "judge"):
        judges.append("openai=" if kind == "openai" else "model=")
    return unread(config.judge, judges, "--rewards.judges openai=URL", "--rewards.judges model=FOLDER")


def _adaptive_kl(config: OnlineConfig) -> str | None:
    if config.kl.target is not None and config.kl.coef == 0:
        return "--kl.target moves --kl.coef, which must then begin above 0. Got 0."
    return None


def _moving_anchor(config: OnlineConfig) -> str | None:
    kl = config.kl
    if kl.anchor != "ema":
        usual = kl.anchor_rate == type(kl)().anchor_rate
        return None if usual else f"--kl.anchor_rate is read with --kl.anchor ema. Got {kl.anchor}."
    if objective_key(config) is not None:
        if compares_with_reference(config):
            return None
        return (
            f"--kl.anchor ema: the loss of {method_of(config)} ({objective_key(config)}) has no reference, so there is "
            "nothing that could follow the policy."
        )
    return None if kl.coef else "--kl.anchor ema is what the KL is measured from: --kl.coef must be above 0. Got 0."


MOST_ANSWERS = 1 << 24


def _rollout_size(config: OnlineConfig) -> str | None:
    answers = config.train.batch_size * config.rollout.responses
    if answers <= MOST_ANSWERS:
        return None
    return (
        f"--train.batch_size x --rollout.responses are the answers of one rollout, which are kept in memory together: "
        f"at most {MOST_ANSWERS:,}. Got {answers:,}."
    )


def _kl_horizon(config: OnlineConfig) -> str | None:
    if config.kl.target is None:
        return None
    answers = config.train.batch_size * config.rollout.responses
    if config.kl.horizon * 5 > answers:
        return None
    return (
        f"--kl.horizon must be above {answers // 5}, a fifth of the {answers} answers of a rollout (--train.batch_size "
        "x --rollout.responses): with a shorter one, one rollout could turn the weight of the KL negative. Got "
        f"{config.kl.horizon}."
    )


def _shared_critic(config: PPOConfig) -> str | None:
    if config.critic.shared and config.critic.lr is not None:
        return "--critic.lr has no place with --critic.shared: one optimiser step moves both. Use --critic.coef."
    return None


def _penalised(config: PPOConfig) -> str | None:
    if config.loss.penalty_target is not None and config.loss.objective != "penalty":
        return (
            "--loss.penalty_target moves the penalty of --loss.objective penalty. Got --loss.objective "
            f"{config.loss.objective}."
        )
    return None


def _own_options(config: OnlineConfig) -> str | None:
    loss = config.loss
    if loss.options and loss.function is None and loss.estimator is None and objective_key(config) is None:
        return "--loss.options are those of --loss.function or --loss.estimator. Give one of them."
    for name, value in loss.options.items():
        if not in_float32(value):
            return f"--loss.options {name}:{value:g}: must be a finite number that float32 holds."
    return None


def _own_loss(config: PPOConfig) -> str | None:
    if config.loss.function is not None and config.loss.objective != "clip":
        return (
            f"--loss.function takes the place of the loss that --loss.objective {config.loss.objective} chooses. Give "
            "one of them."
        )
    return None


def _curriculum(config: OnlineConfig) -> str | None:
    curriculum = config.curriculum
    if curriculum.column is not None and curriculum.order == "random":
        return "--curriculum.column is read with --curriculum.order easy or hard. Got random."
    if curriculum.rest and config.rollout.responses < 2:
        return (
            "--curriculum.rest looks at whether all answers to a prompt are worth the same: --rollout.responses must "
            f"be at least 2. Got {config.rollout.responses}."
        )
    return None


def _given(config: OnlineConfig) -> str | None:
    if (config.given.source == "hint") != (config.given.hint is not None):
        return "--given.source hint and --given.hint TEXT need each other."
    return None


def _needs_group(config: OnlineConfig) -> str | None:
    name = method_of(config)
    if isinstance(config, OnlineKTOConfig) and config.loss.threshold is not None:
        return None  # each answer is judged by itself
    if METHODS[name].has_groups and config.rollout.responses < 2:
        return (
            f"--rollout.responses must be at least 2 for {name}: it compares answers to one prompt. Got "
            f"{config.rollout.responses}."
        )
    return None


def _compares(config: OnlineConfig) -> str | None:
    """What has no meaning where answers are compared."""
    name, key = method_of(config), objective_key(config)
    if key is not None and config.kl.coef > 0:
        return (
            f"--kl.coef {config.kl.coef:g}: {name} compares answers, and what holds its policy near the reference is "
            "--loss.beta, inside its loss. Leave --kl.coef at 0; --kl.reference names the reference."
        )
    if key is not None and config.kl.reference is not None and not has_reference(config):
        return f"--kl.reference is not read: the loss of {name} ({key}) has no reference."
    if (key is not None or METHODS[name].opponent) and config.given.source != "none":
        return (
            f"--given.source {config.given.source}: {name} compares answers as they were sampled, and demonstrations "
            "have no place among them. Offline objectives (assent dpo) learn from pairs with them."
        )
    return None


def _pairs(config: OnlineDPOConfig | XPOConfig) -> str | None:
    loss = config.loss
    if loss.function is not None and loss.pairs != "dpo":
        return f"--loss.function takes the place of the loss that --loss.pairs {loss.pairs} chooses. Give one of them."
    if loss.pairs == "odpo" and loss.ties == "first":
        return "--loss.ties first makes pairs of no strength, and --loss.pairs odpo asks for strengths above 0."
    return None


def _opponent(config: OnlineConfig) -> str | None:
    name = method_of(config)
    if (who := METHODS[name].opponent) is None:
        return None
    whom = "the reference" if who == "reference" else "a mixture of it and the reference"
    if config.rollout.responses != 2:
        return (
            f"--rollout.responses must be 2 for {name}: one answer by the policy, one by {whom}. Got "
            f"{config.rollout.responses}. For more comparisons in a step raise --train.batch_size."
        )
    if config.engine.name != "torch":
        return (
            f"--engine.name {config.engine.name} samples from one set of weights; {name} also samples from {whom}, "
            "token by token. Use --engine.name torch."
        )
    if config.rollout.ahead:
        return (
            f"--rollout.ahead samples while the policy is trained; {name} also samples from {whom}, which training "
            "reads at the same time. Leave it off."
        )
    return None


def _nash_kl(config: NashMDConfig) -> str | None:
    if config.kl.coef > 0:
        return None
    return (
        "--kl.coef must be above 0 for nash-md: it seeks the equilibrium of a game in which both sides pay for their "
        "KL from the reference, and mixes its opponent with that. Got 0."
    )


def _sampling_temperature(config: OnlineConfig) -> str | None:
    if config.sampling.temperature == 0:
        return "--sampling.temperature must be > 0 to train: at 0 every answer has probability 1. Got 0."
    return None


def _whole_distribution(config: OnlineConfig) -> str | None:
    sampling = config.sampling
    if sampling.top_k == 0 and sampling.top_p == 1:
        return None
    given = f"top_p {sampling.top_p:g}" if sampling.top_p < 1 else f"top_k {sampling.top_k}"
    return (
        f"--sampling.{given} is for assent generate. In training every token counts by its probability among "
        "all tokens, as it is computed when the policy is trained; answers drawn among the likeliest have others, and "
        "the gradient would be that of no objective. Use --sampling.top_k 0 --sampling.top_p 1; --sampling.temperature "
        "is part of both."
    )


def _room_for_prompts(config: OnlineConfig) -> str | None:
    if config.sampling.max_new_tokens >= config.data.max_length:
        return (
            f"--sampling.max_new_tokens {config.sampling.max_new_tokens} leaves no room for a prompt within "
            f"--data.max_length {config.data.max_length}."
        )
    return None


def _rollout_minibatches(config: OnlineConfig) -> str | None:
    if config.rollout.minibatches > config.train.batch_size:
        return (
            f"--rollout.minibatches must be at most --train.batch_size ({config.train.batch_size}), the prompts of a "
            f"rollout. Got {config.rollout.minibatches}."
        )
    return None


def engine_is_asked(config: Any) -> str | None:
    """For every command that samples."""
    engine = config.engine
    if engine.compile and engine.name != "torch":
        return f"--engine.compile is for --engine.name torch; {engine.name} compiles by itself."
    if engine.url is not None and engine.name != "vllm":
        return f"--engine.url is read only with --engine.name vllm. Got --engine.name {engine.name}."
    if engine.weights is not None and (engine.name != "vllm" or not isinstance(config, OnlineConfig)):
        return "--engine.weights is read only in training with --engine.name vllm."
    return None


ONLINE: tuple[tuple[type, Callable[[Any], str | None]], ...] = (
    *OF_TOKENS,
    (OnlineConfig, _needs_reward),
    (OnlineConfig, _output_weights),
    (OnlineConfig, _reward_lists),
    (OnlineConfig, judge_is_asked),
    (OnlineConfig, _judges_are_there),
    (OnlineConfig, _ensemble),
    (OnlineConfig, remote_weights),
    (OnlineConfig, _implicit),
    (OnlineConfig, _critic_start),
    (OnlineConfig, _needs_group),
    (OnlineConfig, _compares),
    (OnlineDPOConfig, _pairs),
    (XPOConfig, _pairs),
    (OnlineConfig, _opponent),
    (NashMDConfig, _nash_kl),
    (OnlineConfig, _adaptive_kl),
    (OnlineConfig, _kl_horizon),
    (OnlineConfig, _moving_anchor),
    (OnlineConfig, _rollout_size),
    (OnlineConfig, _curriculum),
    (OnlineConfig, _given),
    (PPOConfig, _shared_critic),
    (PPOConfig, _penalised),
    (PPOConfig, _own_loss),
    (OnlineConfig, _own_options),
    (OnlineConfig, _sampling_temperature),
    (OnlineConfig, _whole_distribution),
    (OnlineConfig, _rollout_minibatches),
    (OnlineConfig, _room_for_prompts),
    (OnlineConfig, engine_is_asked),
)
"""The relations of methods that learn from rewards of sampled answers."""
