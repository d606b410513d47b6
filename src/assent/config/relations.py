"""The relations between options: each a function of a configuration that gives the sentence that says what is wrong, or
None. `assent.config.settings.validate` applies the table at the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from assent.config.base import RunConfig, SFTConfig
from assent.config.inputs import INPUTS, is_input
from assent.config.methods import METHODS, method_of
from assent.config.objectives import OBJECTIVES, SFT, objective_of
from assent.config.online import OnlineConfig, critic_of
from assent.config.pairs import EXOConfig, SimPOConfig
from assent.config.policy_gradient import PPOConfig
from assent.config.preference import PairConfig, PreferenceConfig, reference_of
from assent.config.ranges import in_float32
from assent.config.tools import CompareConfig, GenerateConfig, InitConfig
from assent.names import suggestion


def _one_eval_source(config: RunConfig) -> str | None:
    if config.data.eval is not None and config.data.eval_fraction > 0:
        return "--data.eval and --data.eval_fraction exclude each other. Give one of them."
    return None


def _eval_needs_data(config: RunConfig) -> str | None:
    if config.train.eval_every > 0 and config.data.eval is None and config.data.eval_fraction == 0:
        return "--train.eval_every needs something to evaluate on. Give --data.eval or --data.eval_fraction."
    return None


def _best_needs_evaluations(config: RunConfig) -> str | None:
    if config.train.final == "best" and config.train.eval_every == 0:
        return (
            "--train.final best chooses among the evaluations of a run. Give --train.eval_every STEPS, and --data.eval "
            "or --data.eval_fraction."
        )
    return None


def _turns_of_pairs(config: RunConfig) -> str | None:
    if config.data.turns == "each" and not isinstance(config, SFTConfig):
        return (
            "--data.turns each makes a row of each turn, which only sft can learn from: elsewhere feedback is on whole "
            "responses. Use --data.turns last."
        )
    return None


def _rendered_has_template(config: RunConfig) -> str | None:
    if config.data.rendered and config.model.template_kwargs:
        return "--model.template_kwargs goes to the chat template, which --data.rendered leaves out. Give one of them."
    if config.data.rendered and isinstance(config, CompareConfig):
        return "assent compare asks the models by their chat template, which --data.rendered leaves out."
    return None


def _trackers_once(config: RunConfig) -> str | None:
    if len(set(config.report_to)) < len(config.report_to):
        return f"--report_to names a tracker twice. Got {', '.join(config.report_to)}."
    return None


def _changed_inputs(config: RunConfig) -> str | None:
    if not config.resume_changed:
        return None
    if config.resume is None:
        return "--resume_changed is about a run that goes on. Give --resume auto with it."
    compared = config.objectives if isinstance(config, CompareConfig) else ()
    kinds = [type(config), *(OBJECTIVES[name].config for name in compared if name in OBJECTIVES)]
    known = [name for name in INPUTS if any(is_input(kind, name) for kind in kinds)]
    for name in config.resume_changed:
        if name not in known:
            return f"--resume_changed {name}: no such input.{suggestion(name, known)} There are: {', '.join(known)}."
    return None


def _needs_reward(config: OnlineConfig) -> str | None:
    if not any(getattr(config.rewards, kind) for kind in SOURCES):
        return (
            "Nothing says what an answer is worth. Give --rewards.model FOLDER (from: assent reward), --rewards.rules, "
            "--rewards.functions FILE.py:function or --rewards.servers SHAPE=URL."
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


SOURCES = ("model", "rules", "functions", "servers")
"""The options of `rewards` that name what answers are scored by."""


def _adaptive_kl(config: OnlineConfig) -> str | None:
    if config.kl.target is not None and config.kl.coef == 0:
        return "--kl.target moves --kl.coef, which must then begin above 0. Got 0."
    return None


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
    if METHODS[name].has_groups and config.rollout.responses < 2:
        return (
            f"--rollout.responses must be at least 2 for {name}: it compares answers to one prompt. Got "
            f"{config.rollout.responses}."
        )
    return None


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


def _quantized_adapters(config: RunConfig) -> str | None:
    if config.model.lora.quantize != "none" and config.model.lora.rank == 0:
        return (
            f"--model.lora.quantize {config.model.lora.quantize} needs adapters to train beside the frozen weights. "
            "Give --model.lora.rank, for example 16."
        )
    return None


def _gamma_per_token(config: SimPOConfig) -> str | None:
    if config.loss.gamma > 0 and not config.loss.length_normalised:
        return (
            f"--loss.gamma {config.loss.gamma:g} is a gap per token and means nothing for whole answers. Leave "
            "--loss.length_normalised on, or set --loss.gamma 0."
        )
    return None


def _smoothed_target(config: EXOConfig) -> str | None:
    if config.loss.label_smoothing == 0:
        return "--loss.label_smoothing must be > 0 for exo: the rejected answer keeps that probability. Got 0."
    return None


def _reference_mode(config: PreferenceConfig) -> str | None:
    """For every objective with a reference."""
    reference, plus = reference_of(config), config.plus if isinstance(config, PairConfig) else {}
    if reference is None:
        return None
    if reference.cache is not None and reference.mode != "cached":
        return f"--reference.cache is read only with --reference.mode cached. Got --reference.mode {reference.mode}."
    if reference.mode == "cached" and "tdpo" in {objective_of(config), *plus}:
        return (
            "--reference.mode cached keeps the log-probs of the answers' own tokens; tdpo compares whole "
            "distributions. Use --reference.mode frozen."
        )
    return None


def _added_objectives(config: PairConfig) -> str | None:
    """What --plus may name: pairwise objectives whose needs are met, each once."""
    key = objective_of(config)
    row = OBJECTIVES[key]
    for name, weight in config.plus.items():
        start = f"--plus {name}:{weight:g}:"
        other = OBJECTIVES.get(name)
        if name != SFT and other is None:
            return f"{start} no objective is called '{name}'. Known: {SFT}, {', '.join(_pairwise())}."
        if not (weight > 0 and in_float32(weight)):
            return f"{start} a weight must be > 0 and a number that float32 holds."
        if name == SFT and "sft_weight" in row.options:
            return f"{start} {key} has this term already. Set --loss.sft_weight."
        if name == SFT and key == "orpo":
            return f"{start} orpo has this term already, with weight 1."
        if other is None:
            continue
        if name == key:
            return f"{start} the sum has {key} already. Change its options instead."
        if other.feedback != "pairs":
            return f"{start} {name} learns from {WORDS[other.feedback]}, {key} from pairs: they share no data."
        if other.needs_reference and not row.needs_reference:
            return f"{start} {name} needs a reference, {key} has none. Turn it round: assent {name} --plus {key}:WEIGHT"
        if other.reference_mode == "moving":
            return f"{start} {name} is dpo with another reference. Use --reference.mode moving."
    return None


WORDS = {"binary": "yes/no labels", "ranking": "rankings", "rating": "ratings"}


def _pairwise() -> list[str]:
    return [name for name, row in OBJECTIVES.items() if row.feedback == "pairs" and row.reference_mode != "moving"]


def _compared(config: CompareConfig) -> str | None:
    unknown = [name for name in config.objectives if name not in OBJECTIVES]
    if unknown:
        return f"--objectives: no objective is called '{unknown[0]}'. Known: {', '.join(OBJECTIVES)}."
    if len(set(config.objectives)) < len(config.objectives):
        return f"--objectives names one twice. Got {' '.join(config.objectives)}."
    if config.scorer is None and config.reward_model is None:
        return "assent compare needs something that scores answers. Give --scorer FILE.py:function or --reward_model."
    for name in config.options:
        if name.partition(".")[0] not in config.objectives:
            return f"--options {name}: begins with none of --objectives ({', '.join(config.objectives)})."
    return None


def _engine_is_asked(config: OnlineConfig | GenerateConfig) -> str | None:
    """For every command that samples."""
    engine = config.engine
    if engine.compile and engine.name != "torch":
        return f"--engine.compile is for --engine.name torch; {engine.name} compiles by itself."
    if engine.url is not None and engine.name != "vllm":
        return f"--engine.url is read only with --engine.name vllm. Got --engine.name {engine.name}."
    if engine.weights is not None and (engine.name != "vllm" or isinstance(config, GenerateConfig)):
        return "--engine.weights is read only in training with --engine.name vllm."
    return None


def _heads_divide(config: InitConfig) -> str | None:
    if config.heads < 1 or config.kv_heads < 1:
        return None  # reported by the table
    if config.hidden_size % (2 * config.heads):
        return (
            f"--hidden_size must be a multiple of 2 x --heads ({2 * config.heads}): every head needs an even width. "
            f"Got {config.hidden_size}."
        )
    if config.heads % config.kv_heads:
        return f"--heads must be a multiple of --kv_heads ({config.kv_heads}). Got {config.heads}."
    return None


LARGEST_NEW = 2_000_000_000
"""Parameters that `assent init` makes at most: 8 GB."""


def _small_enough(config: InitConfig) -> str | None:
    size = config.vocab_size * config.hidden_size + 12 * config.layers * config.hidden_size**2
    if size <= LARGEST_NEW and max(config.vocab_size, config.layers) <= 1 << 20:
        return None
    return (
        f"assent init makes models of up to {LARGEST_NEW:,} parameters, and vocabularies of up to {1 << 20:,} tokens. "
        f"--vocab_size {config.vocab_size}, --hidden_size {config.hidden_size} and --layers {config.layers} are about "
        f"{size:,} parameters."
    )


RELATIONS: tuple[tuple[type, Callable[[Any], str | None]], ...] = (
    (RunConfig, _one_eval_source),
    (RunConfig, _eval_needs_data),
    (RunConfig, _best_needs_evaluations),
    (RunConfig, _turns_of_pairs),
    (RunConfig, _rendered_has_template),
    (RunConfig, _trackers_once),
    (RunConfig, _changed_inputs),
    (OnlineConfig, _needs_reward),
    (OnlineConfig, _reward_lists),
    (OnlineConfig, _ensemble),
    (OnlineConfig, _critic_start),
    (OnlineConfig, _needs_group),
    (OnlineConfig, _adaptive_kl),
    (OnlineConfig, _kl_horizon),
    (OnlineConfig, _rollout_size),
    (OnlineConfig, _curriculum),
    (OnlineConfig, _given),
    (PPOConfig, _shared_critic),
    (PPOConfig, _penalised),
    (OnlineConfig, _sampling_temperature),
    (OnlineConfig, _whole_distribution),
    (OnlineConfig, _rollout_minibatches),
    (OnlineConfig, _room_for_prompts),
    (OnlineConfig, _engine_is_asked),
    (GenerateConfig, _engine_is_asked),
    (InitConfig, _heads_divide),
    (InitConfig, _small_enough),
    (RunConfig, _quantized_adapters),
    (SimPOConfig, _gamma_per_token),
    (EXOConfig, _smoothed_target),
    (PreferenceConfig, _reference_mode),
    (PairConfig, _added_objectives),
    (CompareConfig, _compared),
)
