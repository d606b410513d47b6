"""A judge that names the claims of answers and checks each against a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from assent.config import JudgeConfig
from assent.data.records import Message
from assent.measures.answers import Claim
from assent.rewards.judge import parse
from assent.rewards.judge.ask import Judge
from assent.rewards.judge.asking import Asker
from assent.rewards.judge.ledger import Ledger
from assent.rewards.judge.prompt import CLAIMS, read_prompt
from assent.rewards.judge.source import FORGED, conversation
from assent.rewards.judge.template import Forged


class Said(NamedTuple):
    """An answer to a prompt, and the text that it is checked against."""

    prompt: Sequence[Message]
    context: str
    answer: str


class ClaimsJudge:
    """A judge that is asked what claims.yaml says."""

    def __init__(self, name: str, judge: Judge, config: JudgeConfig, budget: float) -> None:
        """`budget` are the seconds for one call of `claims`."""
        self.name, self.judge, self.prompt = name, judge, read_prompt(CLAIMS)
        self._asker = Asker(judge, self.prompt.digest, config, budget)

    def check(self) -> None:
        """Raises OutputError where its cache cannot be written."""
        self._asker.check()

    def claims(self, asked: Sequence[Said]) -> list[tuple[Claim, ...] | str]:
        """The checked claims of each answer, or why they cannot be had. Raises what the judge raises."""
        questions = {}
        for number, said in enumerate(asked):
            try:
                prompt = conversation(said.prompt)
                questions[number] = self.prompt.messages(prompt, [said.answer], said.context, {})
            except Forged:
                continue
        found = self._asker.readings(questions, lambda answer: parse.claims(answer.text), Ledger())
        return [found.get(number, FORGED) for number in range(len(asked))]
