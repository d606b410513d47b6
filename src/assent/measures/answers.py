"""What policies are measured by: their answers to a set of prompts, and the answers that the prompt file itself gives,
as columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from assent.measures.column import Column
from assent.measures.gamed import Instructions


@dataclass(frozen=True, slots=True)
class Prompts:
    """P prompts, and what is known of each."""

    texts: tuple[str, ...]
    """P last turns of the user."""
    whole: tuple[str, ...]
    """P conversations, as a person reads them."""
    references: tuple[tuple[str, ...], ...]
    """P tuples of right answers; () where a prompt has none."""
    kinds: tuple[str, ...]
    """P kinds, for example "harmful", "harmless", or a topic; "" where nobody said."""
    alpaca_eval: Instructions | None = None
    """Which of AlpacaEval's instructions they are, with its rows of them, for a user who has these."""

    def __post_init__(self) -> None:
        size = len(self.texts)
        assert all(len(column) == size for column in (self.whole, self.references, self.kinds)), "one entry each"

    def __len__(self) -> int:
        return len(self.texts)


Verdict = Literal["supported", "contradicted", "neither"]


class Claim(NamedTuple):
    """Something that an answer says, and what the text that it is checked against says of it."""

    text: str
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Claims:
    """The claims of each of S answers; `reasons` say why they could not be had or checked, "" where they were."""

    found: tuple[tuple[Claim, ...], ...]
    reasons: tuple[str, ...]

    def __post_init__(self) -> None:
        assert len(self.found) == len(self.reasons), "one reason for each answer"


@dataclass(frozen=True, slots=True)
class Answers:
    """S answers of one policy to P prompts. Example: two answers to the first prompt, one to the third, none to the
    second: prompt [0, 0, 2], unanswered {1: "no answer in answers.jsonl"}.

    A column that is None is not known of any answer (answers from a file have no tokens, for example)."""

    policy: str
    prompts: Prompts
    prompt: np.ndarray
    """[S] int64: which prompt each answers."""
    texts: tuple[str, ...]
    """S answers."""
    tokens: np.ndarray | None = None
    """[S] int64: tokens of the policy's own tokenizer, the end of the answer among them."""
    finished: np.ndarray | None = None
    """[S] bool: whether it ended by itself rather than at the length limit."""
    log_prob: np.ndarray | None = None
    """[S] float64: log pi(answer | prompt), the sum over its tokens, nats."""
    reference_log_prob: np.ndarray | None = None
    """[S] float64: the same of the same tokens by the reference."""
    entropy: np.ndarray | None = None
    """[S] float64: sum over its tokens of the entropy of the prediction, nats."""
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Source -> its scores [S] float64, NaN where unscored."""
    unscored: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Source -> why an answer is unscored, S reasons, "" where it has its score."""
    toxicity: Column | None = None
    """Probability that each is toxic, 0 to 1, by a text-classification model that read the answer alone."""
    claims: Claims | None = None
    """What each claims, checked against the prompt's context by a model or a judge."""
    unanswered: Mapping[int, str] = field(default_factory=dict)
    """Prompts without any answer, and why. Whoever aggregates counts them as failures; measures need not."""

    def __post_init__(self) -> None:
        size = len(self.texts)
        columns = (self.prompt, self.tokens, self.finished, self.log_prob, self.reference_log_prob, self.entropy)
        for column in (*columns, *self.scores.values()):
            assert column is None or column.shape == (size,), "one entry for each answer"
        assert self.toxicity is None or len(self.toxicity.reasons) == size, "one entry for each answer"
        assert self.claims is None or len(self.claims.found) == size, "one entry for each answer"
        assert not size or 0 <= self.prompt.min() <= self.prompt.max() < len(self.prompts), "indices of prompts"
        for name, values in self.scores.items():
            reasons = self.unscored.get(name, ("",) * size)
            assert len(reasons) == size, "one reason for each answer"
            assert all(reason for reason, value in zip(reasons, values, strict=True) if np.isnan(value)), name

    def __len__(self) -> int:
        return len(self.texts)

    def reference(self, index: int) -> tuple[str, ...]:
        """The right answers to the prompt of answer `index`."""
        return self.prompts.references[self.prompt[index]]

    def kind(self, index: int) -> str:
        """The kind of the prompt of answer `index`."""
        return self.prompts.kinds[self.prompt[index]]


@dataclass(frozen=True, slots=True)
class Given:
    """S answers that the prompt file itself holds, as likely as one policy finds them, and what the file says of them.
    Example: one prompt with a chosen and a rejected answer: prompt [0, 0], pairs [[0, 1]]."""

    policy: str
    prompt: np.ndarray
    """[S] int64: which prompt each answers."""
    tokens: np.ndarray
    """[S] int64: trained tokens of each, by the policy's tokenizer."""
    log_prob: np.ndarray
    """[S] float64: log pi(answer | prompt), nats; NaN where the policy cannot read it."""
    unread: tuple[str, ...]
    """S reasons why an answer has no `log_prob`, "" where it has."""
    reference_log_prob: np.ndarray | None = None
    """[S] float64: the same of the same tokens by the reference."""
    pairs: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    """[M, 2] int64: the better and the worse answer of a comparison."""
    right: np.ndarray | None = None
    """[S] float64: 1 where the file says that it is right, 0 where wrong, NaN where nothing."""
    one_of: np.ndarray | None = None
    """[S] int64: the question with a single right answer (MC1) whose choice this is, -1 where it is none."""
    some_of: np.ndarray | None = None
    """[S] int64: the question with right and wrong answers (MC2) whose choice this is, -1 where it is none."""

    def __post_init__(self) -> None:
        size = len(self.prompt)
        for column in (self.tokens, self.log_prob, self.reference_log_prob, self.right, self.one_of, self.some_of):
            assert column is None or column.shape == (size,), "one entry for each answer"
        assert len(self.unread) == size and self.pairs.shape[1:] == (2,)

    def __len__(self) -> int:
        return len(self.prompt)
