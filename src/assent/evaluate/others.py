"""What other models find in answers: toxicity by a text classifier, and claims that a text supports by a model of
natural language inference or a judge."""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

import numpy as np

from assent.config import EvalConfig, JudgeConfig
from assent.config.evaluation import JUDGES, kind_of
from assent.distributed import World, gathered, on_main
from assent.errors import ConfigError
from assent.evaluate.prompts import PromptSet
from assent.measures.answers import Answers, Claim, Claims, Verdict
from assent.measures.claims import claims_of
from assent.measures.column import Column
from assent.models.classifier import Classifier
from assent.rewards.judge.build import claims_judge
from assent.rewards.judge.claims import ClaimsJudge, Said
from assent.rewards.judge.folder import Place
from assent.rewards.judge.openai import OpenAIJudge, tried

log = logging.getLogger(__name__)

TOXIC = (("toxic", "toxicity"), ("hate", "hateful", "hate_speech", "offensive"))
"""What a label that means toxic is called: one of the first, or where there is none, one of the second."""
ROLES: tuple[tuple[str, Verdict], ...] = (
    ("entailment", "supported"),
    ("contradiction", "contradicted"),
    ("neutral", "neither"),
)
"""What the labels of natural language inference are called, and what each makes of a claim."""
EMPTY, NO_CONTEXT = "it is empty", "the prompt has no text to check claims against"
MADE_UP = "Two and two are four."
"""The text, and the answer, that a judge on a server is tried on before work is spent."""
TOXICITY, CONSISTENCY = "--toxicity", "--consistency"


class Checker(Protocol):
    """What finds the claims of answers and checks them."""

    note: str
    unanswered: Counter[str]

    def claims(self, answers: Answers) -> Claims: ...


class Others:
    """The other models that an evaluation names. Raises ModelError for what is no model of the kind, ConfigError for
    labels that are not known and for a judge that cannot be asked; all of it before anything is sampled."""

    def __init__(self, config: EvalConfig, prompts: PromptSet, world: World) -> None:
        self._toxicity = None if config.toxicity is None else Toxicity(config, config.toxicity, world)
        self._checker: Checker | None = None
        if config.consistency is not None:
            if kind_of(config.consistency) in JUDGES:
                self._checker = ByJudge(config, config.consistency, prompts, world)
            else:
                self._checker = ByModel(config, config.consistency, prompts, world)

    def added(self, answers: Answers) -> Answers:
        """The answers with what is found in them. Every rank must call it; the work is shared."""
        if self._toxicity is not None:
            answers = replace(answers, toxicity=self._toxicity.of(answers))
        if self._checker is not None:
            answers = replace(answers, claims=self._checker.claims(answers))
        return answers

    @property
    def notes(self) -> tuple[str, ...]:
        """How it was done, in sentences."""
        return tuple(each.note for each in (self._toxicity, self._checker) if each is not None)

    @property
    def unanswered(self) -> dict[str, Counter[str]]:
        """Questions that a judge's server did not answer, by why."""
        found = Counter[str]() if self._checker is None else self._checker.unanswered
        return {"consistency": found} if found else {}


def _classifier(flag: str, path: str, config: EvalConfig, world: World) -> Classifier:
    return Classifier(
        flag,
        path,
        world=world,
        precision=config.precision,
        micro_tokens=config.micro_tokens,
        trust_remote_code=config.trust_remote_code,
    )


def _plain(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", label.lower()).strip("_")


# ---- toxicity


class Toxicity:
    """A text classifier that reads each answer alone, without its prompt."""

    def __init__(self, config: EvalConfig, path: str, world: World) -> None:
        self._model = _classifier(TOXICITY, path, config, world)
        self._label = toxic_label(self._model.labels, config.toxicity_label, f"{TOXICITY} {path}")
        name, rule = self._model.labels[self._label], "softmax" if self._model.single else "sigmoid"
        self.note = (
            f"toxicity: the label '{name}' of {path} ({rule} over {', '.join(self._model.labels)}), of the answer "
            f"alone; of one beyond {self._model.limit} tokens the highest of its windows"
        )
        log.info(self.note)

    def of(self, answers: Answers) -> Column:
        """The probability of each answer to be toxic; an empty one has none."""
        there = [index for index, text in enumerate(answers.texts) if text.strip()]
        found = self._model.probabilities([(answers.texts[index],) for index in there])
        values = np.full(len(answers), math.nan)
        values[there] = [windows[:, self._label].max() for windows in found]
        return Column.of(values, EMPTY)


def toxic_label(labels: Sequence[str], asked: str | None, who: str) -> int:
    """Which of a classifier's labels means toxic. Raises ConfigError where `asked` is none of them, and where nobody
    asked and no label, or several, are called so."""
    known = f"Its labels: {', '.join(labels)}."
    if asked is not None:
        if asked not in labels:
            raise ConfigError(f"--toxicity_label {asked}: {who} has no such label. {known}")
        return labels.index(asked)
    for names in TOXIC:
        found = [place for place, label in enumerate(labels) if _plain(label) in names]
        if len(found) == 1:
            return found[0]
        if found:
            break
    which = "several of its labels may mean" if found else "none of its labels is known to mean"
    raise ConfigError(f"{who}: {which} toxic. {known} Name one with --toxicity_label.")


# ---- claims


class ByModel:
    """A model of natural language inference: premise is each of the prompt's texts, hypothesis each sentence of the
    answer that is a claim. A claim is supported where entailment is the likeliest label in any window of any text;
    contradicted where it is not, and contradiction is the likeliest in any."""

    def __init__(self, config: EvalConfig, path: str, prompts: PromptSet, world: World) -> None:
        self._model = _classifier(CONSISTENCY, path, config, world)
        self._verdicts = verdicts_of(self._model.labels, f"{CONSISTENCY} {path}")
        self._prompts, self.unanswered = prompts, Counter[str]()
        self.note = (
            f"consistency: each sentence that is a claim, by {path}, against {prompts.context_of}; a text beyond "
            f"{self._model.limit} tokens in windows, of which one that entails the claim is enough"
        )
        log.info(self.note)

    def claims(self, answers: Answers) -> Claims:
        said = [claims_of(text) for text in answers.texts]
        contexts = [self._prompts.contexts[place] for place in answers.prompt.tolist()]
        reasons = self._reasons(answers, said, contexts)
        asked = {
            (context, claim): None
            for own, texts, why in zip(said, contexts, reasons, strict=True)
            for claim in own
            for context in texts
            if not why
        }
        likeliest = [windows.argmax(axis=1) for windows in self._model.probabilities([*asked])]
        windows = [{self._verdicts[label] for label in one.tolist()} for one in likeliest]
        verdicts = dict(zip(asked, windows, strict=True))
        found = (
            () if why else tuple(Claim(claim, _settled([verdicts[text, claim] for text in texts])) for claim in own)
            for own, texts, why in zip(said, contexts, reasons, strict=True)
        )
        return Claims(tuple(found), reasons)

    def _reasons(
        self, answers: Answers, said: Sequence[Sequence[str]], contexts: Sequence[Sequence[str]]
    ) -> tuple[str, ...]:
        """Why the claims of answers cannot be checked."""
        most = self._model.longest_second
        every = list(dict.fromkeys(claim for own in said for claim in own))
        long = {claim for claim, size in zip(every, self._model.sizes(every), strict=True) if size > most}
        return tuple(
            EMPTY
            if not text.strip()
            else NO_CONTEXT
            if not texts
            else f"a claim of it has more than {most} tokens"
            if long.intersection(own)
            else ""
            for text, own, texts in zip(answers.texts, said, contexts, strict=True)
        )


def verdicts_of(labels: Sequence[str], who: str) -> list[Verdict]:
    """What each label makes of a claim. Raises ConfigError unless the labels are those of `ROLES`."""
    roles = dict(ROLES)
    names = [_plain(label) for label in labels]
    if sorted(names) != sorted(roles):
        raise ConfigError(
            f"{who}: expected a model of natural language inference with the labels entailment, neutral and "
            f"contradiction in its config.json. Its labels: {', '.join(labels)}."
        )
    return [roles[name] for name in names]


def _settled(found: Sequence[set[Verdict]]) -> Verdict:
    """Of one claim, by the verdicts of the windows of all texts."""
    every = set().union(*found)
    return "supported" if "supported" in every else "contradicted" if "contradicted" in every else "neither"


class ByJudge:
    """A judge that names the claims and checks them in one question (rewards/judge/claims.yaml)."""

    def __init__(self, config: EvalConfig, spec: str, prompts: PromptSet, world: World) -> None:
        kind, _, where = spec.partition("=")
        place = Place(
            world.device,
            config.judge.engine,
            config.precision,
            trust_remote_code=config.trust_remote_code,
            micro_tokens=config.micro_tokens,
        )
        word = f"{'model' if kind == 'judge' else kind}={where}"
        options = JudgeConfig(**vars(config.judge))
        self._judge: ClaimsJudge = claims_judge(word, "consistency", options, config.remote, place, CONSISTENCY)
        self._judge.check()
        if isinstance(served := self._judge.judge, OpenAIJudge):
            asked = [Said(prompts.examples[0].prompt, MADE_UP, MADE_UP)]
            on_main(partial(tried, CONSISTENCY, served, partial(self._judge.claims, asked)))
        self._prompts = prompts
        self._world = world
        self.note = f"consistency: claims named and checked by the judge {where} against {prompts.context_of}"
        log.info(self.note)

    @property
    def unanswered(self) -> Counter[str]:
        served = self._judge.judge
        own = served.unanswered if isinstance(served, OpenAIJudge) else Counter[str]()
        return sum(gathered(partial(Counter, own)), Counter[str]())

    def claims(self, answers: Answers) -> Claims:
        asked = [
            Said(self._prompts.examples[place].prompt, "\n\n".join(self._prompts.contexts[place]), text)
            for place, text in zip(answers.prompt.tolist(), answers.texts, strict=True)
        ]
        lacking = [EMPTY if not one.answer.strip() else NO_CONTEXT if not one.context else "" for one in asked]
        there = [number for number, why in enumerate(lacking) if not why]
        share = -(-len(there) // self._world.size) if there else 0
        mine = [asked[number] for number in there[self._world.rank * share :][:share]]
        said = [one for rank in gathered(lambda: self._judge.claims(mine) if mine else []) for one in rank]
        found: list[tuple[Claim, ...]] = [()] * len(asked)
        reasons = list(lacking)
        for number, one in zip(there, said, strict=True):
            if isinstance(one, str):
                reasons[number] = str(one)
            else:
                found[number] = one
        return Claims(tuple(found), tuple(reasons))
