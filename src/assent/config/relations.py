"""The relations between options: each a function of a configuration that gives the sentence that says what is wrong, or
None; `assent.config.online_relations` has those of online methods. `assent.config.settings.validate` applies the table
at the end."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from assent.config.apo import APO
from assent.config.base import PolicyRunConfig, RunConfig, SFTConfig
from assent.config.evaluation import EvalConfig
from assent.config.feedback_relations import FEEDBACK
from assent.config.inputs import INPUTS, is_input
from assent.config.iterate import ITERATE
from assent.config.label_relations import LABEL
from assent.config.merge import MERGES, MergeConfig
from assent.config.objectives import OBJECTIVES, SFT_TERM, objective_of
from assent.config.online_relations import (
    ONLINE,
    engine_is_asked,
    judge_is_asked,
    remote_weights,
    unread,
)
from assent.config.pairs import EXOConfig, SimPOConfig
from assent.config.preference import CustomConfig, PairConfig, PreferenceConfig, reference_of
from assent.config.ranges import in_float32
from assent.config.reward import AttributesConfig, EnsembleConfig, RewardGateConfig
from assent.config.reward_relations import REWARD
from assent.config.scoring import SourceConfig
from assent.config.serve import ServeConfig, is_loopback
from assent.config.steerlm import STEERLM
from assent.config.tools import CheckConfig, CompareConfig, GenerateConfig, InitConfig
from assent.config.training import TRAINERS, compared, named_methods
from assent.config.warp import WarpConfig, warped
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


def _measures_have_answers(config: PolicyRunConfig) -> str | None:
    options = config.eval
    if options.best is not None and options.best not in options.measures:
        return f"--eval.best {options.best} is measured only where --eval.measures names it. Add it there."
    if not options.measures:
        return None
    if len(set(options.measures)) < len(options.measures):
        return f"--eval.measures {' '.join(options.measures)}: each once."
    if config.data.eval is None and config.data.eval_fraction == 0:
        return "--eval.measures measures answers to held-out prompts. Give --data.eval or --data.eval_fraction."
    if isinstance(config, SFTConfig | PreferenceConfig) and config.probe.prompts == 0:
        return "--eval.measures measures sampled answers, and --probe.prompts 0 samples none. Give a number of prompts."
    return None


def _alarm_has_points(config: PolicyRunConfig) -> str | None:
    alarm = config.alarm
    asked = next((flag for flag, given in (("held_out", alarm.held_out), ("stop", alarm.stop)) if given), None)
    if asked is None:
        return None
    if not alarm.rate:
        return f"--alarm.{asked} is about the drift alarm, which --alarm.rate 0 turns off. Give a rate above 0."
    if not isinstance(config, SFTConfig | PreferenceConfig):
        return None
    if config.probe.prompts == 0 or config.train.eval_every == 0 or not (config.data.eval or config.data.eval_fraction):
        return (
            f"--alarm.{asked}: here the drift alarm looks at the answers that are sampled at evaluations. Give "
            "--probe.prompts, --train.eval_every, and --data.eval or --data.eval_fraction."
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
    runs = named_methods(config) if isinstance(config, CompareConfig) else {}
    kinds = [type(config), *(TRAINERS[method].config for method in runs.values() if method in TRAINERS)]
    known = [name for name in INPUTS if any(is_input(kind, name) for kind in kinds)]
    for name in config.resume_changed:
        if name not in known:
            return f"--resume_changed {name}: no such input.{suggestion(name, known)} There are: {', '.join(known)}."
    return None


def _quantized_adapters(config: RunConfig) -> str | None:
    if config.model.lora.quantize != "none" and config.model.lora.rank == 0:
        return (
            f"--model.lora.quantize {config.model.lora.quantize} needs adapters to train beside the frozen weights. "
            "Give --model.lora.rank, for example 16."
        )
    return None


def _frozen_backbone(config: RewardGateConfig) -> str | None:
    if config.model.lora.rank > 0 or config.model.activation_checkpointing:
        option = "lora.rank" if config.model.lora.rank > 0 else "activation_checkpointing"
        return f"--model.{option} is for models that are trained; reward-gate trains a gate over a frozen one."
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
        if name != SFT_TERM and other is None:
            return f"{start} no objective is called '{name}'. Known: {SFT_TERM}, {', '.join(_pairwise())}."
        if not (weight > 0 and in_float32(weight)):
            return f"{start} a weight must be > 0 and a number that float32 holds."
        if name == SFT_TERM and "sft_weight" in row.options:
            return f"{start} {key} has this term already. Set --loss.sft_weight."
        if name == SFT_TERM and key == "orpo":
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


def _own_options(config: CustomConfig | CheckConfig) -> str | None:
    for name, value in config.options.items():
        if not in_float32(value):
            return f"--options {name}:{value:g}: must be a finite number that float32 holds."
    return None


def _reached_without_key(config: ServeConfig) -> str | None:
    if is_loopback(config.host) or config.key_env is not None or config.without_key:
        return None
    return (
        f"--host {config.host} is reached by other machines, and anybody there could ask. Give --key_env VARIABLE, "
        "whose value clients must send, or say --without_key."
    )


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


def _attributes(config: AttributesConfig) -> str | None:
    section = config.attributes
    if "" in section.outputs or len(set(section.outputs)) < len(section.outputs):
        return f"--attributes.outputs: one is empty, or there twice. Got {' '.join(section.outputs)}."
    if (section.lowest is None) != (section.highest is None):
        return "--attributes.lowest and --attributes.highest are the two ends of a scale. Give both, or neither."
    if section.scale is not None and section.scale[0] >= section.scale[1]:
        return f"--attributes.lowest must be below --attributes.highest. Got {section.lowest} and {section.highest}."
    for name, weight in section.weights.items():
        if section.outputs and name not in section.outputs:
            return (
                f"--attributes.weights: '{name}' is none of --attributes.outputs.{suggestion(name, section.outputs)} "
                f"There are: {', '.join(section.outputs)}."
            )
        if not in_float32(weight):
            return f"--attributes.weights {name}:{weight:g}: a weight must be a finite number that float32 holds."
    if section.weights and not any(section.weights.values()):
        return "--attributes.weights: all are 0, so every answer would be worth the same."
    return None


def _small_enough(config: InitConfig) -> str | None:
    size = config.vocab_size * config.hidden_size + 12 * config.layers * config.hidden_size**2
    if size <= LARGEST_NEW and max(config.vocab_size, config.layers) <= 1 << 20:
        return None
    return (
        f"assent init makes models of up to {LARGEST_NEW:,} parameters, and vocabularies of up to {1 << 20:,} tokens. "
        f"--vocab_size {config.vocab_size}, --hidden_size {config.hidden_size} and --layers {config.layers} are about "
        f"{size:,} parameters."
    )


def _frozen_heads(config: EnsembleConfig) -> str | None:
    if config.ensemble.frozen and config.model.lora.rank > 0:
        return "--ensemble.frozen trains the heads alone, --model.lora.rank adapters beside them. Give one of the two."
    return None


def _others_are_asked(config: EvalConfig) -> str | None:
    if config.toxicity_label is not None and config.toxicity is None:
        return f"--toxicity_label {config.toxicity_label} is a label of the model of --toxicity. None is given."
    if config.context is not None and config.consistency is None:
        return f"--context {config.context} is what --consistency checks claims against. None is given."
    judges = [word.replace("judge=", "model=", 1) for word in config.judges]
    return unread(
        config.judge, judges, "openai=URL (--rewards, --consistency)", "judge=FOLDER (--rewards, --consistency)"
    )


def _merged(config: MergeConfig) -> str | None:
    row, flag = MERGES[config.method], f"--method {config.method}"
    least, most = row.models
    count, weights = len(config.models), config.weights
    if count < least or (most is not None and count > most):
        return f"{flag} merges {'exactly' if most else 'at least'} {least} model{'s'[: least > 1]}. Got {count}."
    if config.base is not None and not row.base:
        return f"{flag} has no base; --base {config.base} would have no effect. Methods with one: {_with('base')}."
    for option in ("weights", "granularity", "eta", "mu", "density", "seed"):
        given = getattr(config, option)
        if given not in (None, ()) and option not in row.options:
            return f"--{option} has no effect with {flag}. It is of {_with(option)}."
        if given is None and option in row.options and option in ("mu", "density"):
            return f"{flag} needs --{option}, which has no usual value. See docs/merging.md."
    if config.method == "liti" and config.eta is None:
        return "--method liti needs --eta, the share of the way from --base to the model."
    if not config.normalize and "normalize" not in row.options:
        return f"--no_normalize has no effect with {flag}. It is of {_with('normalize')}."
    if not weights:
        return None
    shown = " ".join(f"{w:g}" for w in weights)
    if not all(map(math.isfinite, weights)):
        return f"--weights {shown}: each must be a finite number."
    if len(weights) != count:
        return f"--weights {shown}: there are {count} models. Give a weight for each, in their order."
    if min(weights) < 0 and config.method not in ("linear", "task-arithmetic", "dare"):
        return f"--weights {shown}: {flag} has no place for weights below 0."
    if sum(weights) <= 0 and (config.method in ("slerp", "karcher", "ties", "dare-ties")):
        return f"--weights {shown} are all 0. Give one of the models some."
    if config.method == "linear" and config.normalize and abs(sum(weights)) < 1e-6 * max(map(abs, weights)):
        return (
            f"--weights {shown} add up to 0, and the average divides by their sum. Say --no_normalize, or give others."
        )
    return None


def _with(option: str) -> str:
    names = [name for name, row in MERGES.items() if (row.base if option == "base" else option in row.options)]
    return ", ".join(names)


RELATIONS: tuple[tuple[type, Callable[[Any], str | None]], ...] = (
    (RunConfig, _one_eval_source),
    (RunConfig, _eval_needs_data),
    (RunConfig, _best_needs_evaluations),
    (PolicyRunConfig, _measures_have_answers),
    (PolicyRunConfig, _alarm_has_points),
    (RunConfig, _turns_of_pairs),
    (RunConfig, _rendered_has_template),
    (RunConfig, _trackers_once),
    (RunConfig, _changed_inputs),
    *ONLINE,
    *REWARD,
    *ITERATE,
    *STEERLM,
    *APO,
    (GenerateConfig, engine_is_asked),
    (SourceConfig, judge_is_asked),
    (EvalConfig, judge_is_asked),
    (EvalConfig, _others_are_asked),
    *FEEDBACK,
    *LABEL,
    (InitConfig, _heads_divide),
    (InitConfig, _small_enough),
    (RunConfig, _quantized_adapters),
    (RewardGateConfig, _frozen_backbone),
    (SimPOConfig, _gamma_per_token),
    (EXOConfig, _smoothed_target),
    (PreferenceConfig, _reference_mode),
    (PairConfig, _added_objectives),
    (CustomConfig, _own_options),
    (CheckConfig, _own_options),
    (CompareConfig, compared),
    (WarpConfig, warped),
    (ServeConfig, _reached_without_key),
    (MergeConfig, _merged),
    (SourceConfig, remote_weights),
    (AttributesConfig, _attributes),
    (EnsembleConfig, _frozen_heads),
)
