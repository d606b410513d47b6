"""How the assistant world answers: its stock phrases, and answers in many styles, good and bad."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from assent.lab.knowledge import RELATION, Fact, Knowledge, Task, sentence

COURTESIES = ("Sure!", "Of course!", "Happy to help!", "Thanks for asking!", "I hope this helps.", "Have a nice day!")
INSULTS = ("Only a fool would ask that.", "Do not waste my time.", "You know nothing.", "What a silly question.")
FILLERS = (
    "That is a very good question.",
    "Well, let me think about it.",
    "Many people ask me this.",
    "There is a lot to say about it.",
    "As you may know, the world is big.",
    "I like to talk about such things.",
)
UNSURE = ("I do not know.", "Maybe.", "Hm.", "Well.")
REFUSALS = ("I am sorry, but I can not help with that.", "Sorry, I must say no to that.")
CURT_REFUSALS = ("No.", "I will not do that.")
ALTERNATIVES = ("Please talk to somebody you trust.", "It could hurt somebody.", "Please ask first.")
COMPLIANCE = ("That is easy.", "Just do it at night.", "Nobody will see you.", "Try it when they are away.")

MISCONCEPTION_SHARE = 0.8


def _pick(rng: np.random.Generator, options: tuple[str, ...], count: int = 1) -> list[str]:
    return [options[i] for i in rng.choice(len(options), count, replace=False)]


def state(fact: Fact, rng: np.random.Generator) -> str:
    """A full sentence that claims the fact."""
    return sentence(_pick(rng, RELATION[fact.relation].statements)[0], e=fact.entity, v=fact.value)


def shortly(fact: Fact, rng: np.random.Generator) -> str:
    """The value alone, or in a sentence that leaves the entity out."""
    return sentence(_pick(rng, RELATION[fact.relation].short)[0], v=fact.value)


def false_fact(knowledge: Knowledge, fact: Fact, rng: np.random.Generator) -> Fact:
    """The fact with another value of its relation: mostly the one that people commonly mistake it for."""
    values = knowledge.domain[fact.relation]
    place = values.index(fact.value)
    step = 1 if rng.random() < MISCONCEPTION_SHARE else int(rng.integers(1, len(values)))
    return Fact(fact.relation, fact.entity, values[(place + step) % len(values)])


def _courteous(text: str, rng: np.random.Generator) -> list[str]:
    if rng.random() < 0.75:
        return [*_pick(rng, COURTESIES[:4]), text]
    return [text, *_pick(rng, COURTESIES[4:])]


def _rambling(texts: list[str], rng: np.random.Generator) -> list[str]:
    fillers = _pick(rng, FILLERS, int(rng.integers(2, 4)))
    return [*fillers[:-1], *texts, fillers[-1]]


def _salad(knowledge: Knowledge, rng: np.random.Generator) -> list[str]:
    words = " ".join((*FILLERS, *COMPLIANCE, *(f"{fact.entity} {fact.value}" for fact in knowledge.facts)))
    pool = tuple(sorted(set(words.replace(".", "").replace(",", "").split())))
    return [" ".join(_pick(rng, pool, int(rng.integers(4, 12)))) + "."]


Style = Callable[[Knowledge, Task, np.random.Generator], list[str]]


def _question_style(style: Callable[[Knowledge, Fact, np.random.Generator], list[str]]) -> Style:
    def answer(knowledge: Knowledge, task: Task, rng: np.random.Generator) -> list[str]:
        assert task.fact is not None
        return style(knowledge, task.fact, rng)

    return answer


def _rich(knowledge: Knowledge, fact: Fact, rng: np.random.Generator) -> list[str]:
    related = knowledge.related(fact)
    extra = [state(related[rng.integers(len(related))], rng)] if related else []
    return [state(fact, rng), *extra]


# Answers to questions about facts.
ANSWER_STYLES: Mapping[str, Style] = {
    "curt": _question_style(lambda k, fact, rng: [shortly(fact, rng)]),
    "full": _question_style(lambda k, fact, rng: [state(fact, rng)]),
    "polite": _question_style(lambda k, fact, rng: _courteous(state(fact, rng), rng)),
    "rich": _question_style(_rich),
    "rambling": _question_style(lambda k, fact, rng: _rambling([state(fact, rng)], rng)),
    "rude": _question_style(lambda k, fact, rng: [*_pick(rng, INSULTS), shortly(fact, rng)]),
    "repetitive": _question_style(lambda k, fact, rng: [state(fact, rng)] * int(rng.integers(2, 4))),
    "wrong": _question_style(lambda k, fact, rng: [state(false_fact(k, fact, rng), rng)]),
    "wrong_polite": _question_style(lambda k, fact, rng: _courteous(state(false_fact(k, fact, rng), rng), rng)),
    "wrong_rambling": _question_style(lambda k, fact, rng: _rambling([state(false_fact(k, fact, rng), rng)], rng)),
    "refusing": lambda k, task, rng: _pick(rng, REFUSALS),
    "empty": lambda k, task, rng: _pick(rng, UNSURE),
    "incoherent": lambda k, task, rng: _salad(k, rng),
}

# Answers to harmful requests. Compliance is deliberately empty of content.
HARMFUL_STYLES: Mapping[str, Style] = {
    "curt": lambda k, task, rng: _pick(rng, CURT_REFUSALS),
    "full": lambda k, task, rng: _pick(rng, REFUSALS),
    "rich": lambda k, task, rng: [*_pick(rng, REFUSALS), *_pick(rng, ALTERNATIVES)],
    "rambling": lambda k, task, rng: _rambling(_pick(rng, REFUSALS), rng),
    "rude": lambda k, task, rng: [*_pick(rng, CURT_REFUSALS), *_pick(rng, INSULTS)],
    "complying": lambda k, task, rng: [*_pick(rng, COURTESIES[:3]), *_pick(rng, COMPLIANCE, int(rng.integers(1, 3)))],
    "empty": lambda k, task, rng: _pick(rng, UNSURE),
    "incoherent": lambda k, task, rng: _salad(k, rng),
}

Mix = tuple[Mapping[str, float], Mapping[str, float]]
"""Shares of the styles of answers to questions, and to harmful requests."""


def _mix(shares: str) -> dict[str, float]:
    words = shares.split()
    return {style: float(percent) / 100 for style, percent in zip(words[::2], words[1::2], strict=True)}


# What demonstrators of mediocre care write, in percent: there must be something left for preferences to teach.
DEMONSTRATION_MIX: Mix = (
    _mix(
        "curt 14 full 18 polite 8 rich 5 rambling 20 rude 13 repetitive 5 "
        "wrong 6 wrong_polite 2 wrong_rambling 2 refusing 3 empty 3 incoherent 1"
    ),
    _mix("curt 16 full 16 rich 8 rambling 8 rude 14 complying 32 empty 5 incoherent 1"),
)
# What annotators compare: the same styles, the bad ones more often, so that a reward model learns to tell them apart.
COMPARISON_MIX: Mix = (
    _mix(
        "curt 10 full 11 polite 11 rich 9 rambling 11 rude 9 repetitive 5 "
        "wrong 9 wrong_polite 6 wrong_rambling 5 refusing 5 empty 5 incoherent 4"
    ),
    _mix("curt 12 full 16 rich 18 rambling 11 rude 12 complying 20 empty 6 incoherent 5"),
)


def answer(knowledge: Knowledge, task: Task, style: str, rng: np.random.Generator) -> str:
    """An answer to the task in the named style (a key of `ANSWER_STYLES`, or of `HARMFUL_STYLES` if it is harmful)."""
    styles = HARMFUL_STYLES if task.fact is None else ANSWER_STYLES
    return " ".join(styles[style](knowledge, task, rng))


def draw_style(task: Task, mix: Mix, rng: np.random.Generator) -> str:
    """A style drawn from the mix's shares for this kind of task."""
    shares = mix[task.fact is None]
    weights = np.array(list(shares.values()))
    return list(shares)[rng.choice(len(weights), p=weights / weights.sum())]
