"""What an objective is made of, its row and its terms: those of the table, or of a function of the user's."""

from __future__ import annotations

from collections.abc import Sequence

from assent.algorithms.own import own_function, require_known
from assent.algorithms.preference.step_loss import LOSS_INPUTS, WITH_REFERENCE, Requirement, Term, needs_of, terms_of
from assent.config import OBJECTIVES, CustomConfig, Objective, PreferenceConfig, ReferenceConfig, objective_of
from assent.config.objectives import FeedbackKind
from assent.config.relations import WORDS
from assent.errors import ConfigError
from assent.losses.functions import Quantity

FLAG = "--objective"
MARKS: dict[FeedbackKind, str] = {
    "pairs": "policy_chosen",
    "binary": "desirable",
    "ranking": "level",
    "rating": "rating",
}
"""By kind of feedback, what a loss on it asks for."""
TOGETHER = "Give --whole_step, by which a loss of pairs sees all of a step at once, or write it item by item."
TRAINED = ("policy_chosen", "policy_rejected")
"""What a loss of the whole step may ask for of the policy."""


def offered() -> dict[str, Quantity]:
    """What an objective of the user's may ask for."""
    return {name: Quantity(each.size, each.words) for name, each in LOSS_INPUTS.items()}


def objective_with(config: PreferenceConfig) -> tuple[Objective, list[Term]]:
    """The objective of a configuration, and its terms. Raises ConfigError for a function of the user's that does not
    say what it learns from, or does not fit the options."""
    if not isinstance(config, CustomConfig):
        return OBJECTIVES[objective_of(config)], terms_of(config)
    loss = own_function(config.objective, FLAG, offered(), config.options, {}, None if config.whole_step else TOGETHER)
    require_known(config.options, "--options", loss)
    term = Term(config.objective, loss, whole_step=config.whole_step)
    who = f"{FLAG} {config.objective}"
    row = Objective(
        name=config.objective,
        summary="An objective of the user's own.",
        paper="",
        config=CustomConfig,
        loss=config.objective,
        use="",
        feedback=feedback_of(who, loss.inputs),
        reward="ratio" if needs_of([term]) & WITH_REFERENCE else "logprob",
        whole_step=config.whole_step,
    )
    _check(config, row, term, who)
    return row, [term]


def feedback_of(who: str, inputs: Sequence[str]) -> FeedbackKind:
    """The kind of feedback that follows from what a loss asks for. Raises ConfigError where that is none, or several,
    and where its tensors are of different lengths."""
    asked = {name: LOSS_INPUTS[name].feedback for name in inputs}
    kinds = list(dict.fromkeys(kind for kind in asked.values() if kind is not None))
    if not kinds:
        marks = ", ".join(f"{mark} ({kind})" for kind, mark in MARKS.items())
        raise ConfigError(
            f"{who} asks for {', '.join(inputs)}, which do not say what was judged better. Ask for one of: {marks}."
        )
    if len({LOSS_INPUTS[name].size for name in inputs}) > 1 or len(kinds) > 1:
        found = ", ".join(f"{name} ({kind or 'of single responses'})" for name, kind in asked.items())
        raise ConfigError(f"{who} asks for what no kind of feedback has together: {found}.")
    return kinds[0]


def _check(config: CustomConfig, row: Objective, term: Term, who: str) -> None:
    """What an option asks for, the function must be able to give."""
    if row.feedback != "binary" and config.threshold is not None:
        raise ConfigError(f"--threshold makes yes/no labels, and {who} learns from {row.feedback}.")
    if not row.needs_reference and config.reference != ReferenceConfig():
        raise ConfigError(f"--reference.* is not read: {who} asks for nothing of a reference (reference_chosen, ...).")
    if config.reference.mode == "cached" and Requirement.ANCHOR in needs_of([term]):
        raise ConfigError(
            f"--reference.mode cached keeps the log-probs of the answers' own tokens; {who} asks for "
            f"{' and '.join(n for n in term.inputs if LOSS_INPUTS[n].need is Requirement.ANCHOR)}, which compare whole "
            "distributions. Use --reference.mode frozen."
        )
    trained = {
        name for name in term.inputs if name.startswith("policy") or LOSS_INPUTS[name].need is Requirement.ANCHOR
    }
    if config.whole_step and not (trained and trained <= set(TRAINED)):
        raise ConfigError(
            f"--whole_step is for losses of pairs that ask for {' and '.join(TRAINED)} alone of the policy. {who} asks "
            f"for {', '.join(term.inputs)}."
        )


def described(term: Term, row: Objective) -> str:
    """An objective of the user's in words: its options, and what it learns from."""
    words = {"pairs": "pairs", **WORDS}
    options = ", ".join(f"{name} {value}" for name, value in term.loss.options.items())
    return f"{term.name}{f' ({options})' if options else ''}, from {words[row.feedback]}"
