"""What an online method says of a run that begins: where responses come from, what they are worth, what holds the
policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from assent.algorithms.preference.objective import described
from assent.train.facts import Line, number, plural, rounded
from assent.train.opening import epochs

if TYPE_CHECKING:
    from assent.algorithms.online.train import Online


def about_online(algorithm: Online, total: int) -> list[Line]:
    """Where answers come from, what they are worth, what holds the policy."""
    config, rollout, sampling = algorithm.config, algorithm.config.rollout, algorithm.config.sampling
    prompts = len(algorithm.rollouts.examples)
    size, steps = min(config.train.batch_size, prompts), algorithm.steps_per_rollout
    per_epoch = -(-prompts // config.train.batch_size) * steps
    answers = f"{plural(size, 'prompt')} x {plural(rollout.responses, 'answer')}"
    most = rounded(size * rollout.responses * sampling.max_new_tokens)
    comparison = algorithm.method.comparison
    functions = {"Policy loss": config.loss.function, "Advantages": config.loss.estimator}
    if comparison is not None:
        functions = {"Loss": described(comparison.term, comparison.row), "Sides": config.loss.estimator}
    return [
        *(Line(name, spec) for name, spec in functions.items() if spec is not None),
        Line("Reference", _online_reference(algorithm)),
        *_teacher(algorithm),
        *_opponent(algorithm),
        Line("Rewards", _rewards(algorithm)),
        Line("Engine", _engine(algorithm)),
        Line(
            "Steps",
            f"{total:,} ({epochs(total, per_epoch)}), {steps:,} on each rollout of {answers}, at most {most} tokens",
        ),
    ]


def _online_reference(algorithm: Online) -> str:
    kl, reference = algorithm.config.kl, algorithm.models.reference
    if reference is None:
        why = "--kl.coef 0" if algorithm.method.comparison is None else "its loss has none"
        return f"none, nothing holds the policy near its start ({why})"
    what = "the model without its adapters" if reference.model is None else f"{kl.reference or 'the start'}, frozen"
    if algorithm.models.average is not None:
        moves = f"the policy's average ({number(kl.anchor_rate)} of the policy a step)"
        held = "in the loss" if kl.coef == 0 else f"{number(kl.coef)} x KL from it in the {kl.place}"
        return f"{moves}; {held}, beside it the KL from {what}"
    held = "" if kl.coef == 0 else f"; {number(kl.coef)} x KL in the {kl.place}"
    return what + held


def _opponent(algorithm: Online) -> list[Line]:
    """Who samples the second answer to each prompt, and what a reward against its is worth."""
    weight, preference = algorithm.method.opponent, algorithm.method.preference
    if weight is None:
        return []
    who = {0.0: "the policy itself", 1.0: "the reference"}.get(
        weight, f"policy^{number(1 - weight)} x reference^{number(weight)}, token by token"
    )
    return [Line("Opponent", who if preference is None else f"{who}; preference by {preference.replace('_', ' ')}")]


def _teacher(algorithm: Online) -> list[Line]:
    section, distilled = algorithm.config.distill, algorithm.method.distilled
    if section.teacher is None or distilled is None:
        return []
    how = f"{number(distilled.coef)} x (log policy - log teacher) in the reward"
    if distilled.in_loss:
        beta = {0.0: "KL(teacher || policy)", 1.0: "KL(policy || teacher)"}.get(distilled.beta)
        how = f"{number(distilled.coef)} x {beta or f'Jensen-Shannon({distilled.beta:g})'} in the loss"
    rows = f", {1 - distilled.on_policy:.0%} of the answers from the rows" if distilled.on_policy < 1 else ""
    return [Line("Teacher", f"{section.teacher}, frozen; {how}{rows}")]


def _rewards(algorithm: Online) -> str:
    source: Any = algorithm.rollouts.source
    models = algorithm.config.rewards.model
    parts = []
    for one, weight in zip(getattr(source, "sources", [source]), getattr(source, "weights", [1.0]), strict=True):
        name = f"model {', '.join(models)}" if one.name == "model" and models else one.name
        parts.append(name if weight == 1 else f"{number(weight)} x {name}")
    return " + ".join(parts)


def _engine(algorithm: Online) -> str:
    engine, sampler = algorithm.config.engine, algorithm.rollouts.sampler
    where = engine.name if engine.url is None else f"{engine.name} server"
    weights = "from a copy of the policy" if sampler.owns_weights else "from the policy itself"
    ahead = ", one rollout ahead" if algorithm.config.rollout.ahead else ""
    sampling = algorithm.config.sampling
    how = f"temperature {sampling.temperature:g}, at most {sampling.max_new_tokens:,} tokens"
    return f"{where}, {weights}{ahead}; {how}"
