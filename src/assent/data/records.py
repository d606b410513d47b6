"""The one record of the system: a prompt, its responses, and feedback that points at responses by index.

SFT, preference, rating and prompt data are projections of it (`assent.data.views`); importing a file loses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from assent.errors import AssentError


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool that an assistant message makes. `arguments` is a JSON object as text."""

    name: str
    arguments: str
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `role` is "system", "developer", "user", "assistant" or "tool".

    reasoning     what an assistant thought before `content`, where it stands in a field of its own
    tool_calls    what an assistant message calls; its `content` may then be empty
    name          whose message it is: of a tool's result, the tool
    tool_call_id  which call a tool's result answers
    trained       False for an assistant turn that is context only (`weight` 0 or `train` false in its row)
    attributes    what an assistant turn is said to be, (name, value), for a model that is steered by attributes
    """

    role: str
    content: str
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    name: str | None = None
    tool_call_id: str | None = None
    trained: bool = True
    attributes: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Response:
    """What follows the prompt: usually one assistant message. In multi-turn SFT data it runs from the first assistant
    message to the end of the conversation, and every assistant message in it is trained. `finished` False says that it
    was cut off while it was sampled: no token ends it, and none is trained."""

    messages: tuple[Message, ...]
    source: str | None = None
    finished: bool = True

    @property
    def text(self) -> str:
        """The last message's content: the answer itself."""
        return self.messages[-1].content


@dataclass(frozen=True, slots=True)
class Pair:
    """`chosen` is preferred to `rejected` (response indices); `strength` is how clearly, in the annotator's own unit
    (a margin or a rating gap). A tie is kept as a `Ranking` with one level.

    `share` of a vote, or of several, prefer `chosen`, `tie` of them say that neither is better, the rest prefer
    `rejected`: the soft label of a judge that gives probabilities, or all votes together in a view
    (`assent.data.views.pair_view`). None: one vote, for `chosen`. `first` is the one that the annotator was shown first
    (on the left), where that is known."""

    chosen: int
    rejected: int
    strength: float | None = None
    annotator: str | None = None
    share: float | None = None
    tie: float = 0.0
    first: Literal["chosen", "rejected"] | None = None


@dataclass(frozen=True, slots=True)
class Ranking:
    """Levels of response indices, best first; responses of one level are tied."""

    levels: tuple[tuple[int, ...], ...]
    annotator: str | None = None


@dataclass(frozen=True, slots=True)
class Rating:
    """Named scores of one response, for example HelpSteer's five attributes from 0 to 4."""

    response: int
    scores: Mapping[str, float]
    annotator: str | None = None


@dataclass(frozen=True, slots=True)
class Binary:
    """Desirable (True) or undesirable (False)."""

    response: int
    label: bool
    annotator: str | None = None


@dataclass(frozen=True, slots=True)
class Critique:
    """Free text about one response."""

    response: int
    text: str
    annotator: str | None = None


Feedback = Pair | Ranking | Rating | Binary | Critique


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a row came from: file (or hub id) and 1-based row number; for jsonl the line."""

    file: str
    row: int

    def __str__(self) -> str:
        return f"{self.file}:{self.row}"


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt, responses to it, and feedback on them. `meta` has the row's other columns, `tools` what the assistant
    may call, as the text of a JSON list, and `template_kwargs` variables for the chat template. `prompt_text` is the
    prompt as the row has it where that is text and no messages: reward functions are shown what the row has.

    >>> Example(
    ...     prompt=(Message("user", "2+2?"),),
    ...     responses=(Response((Message("assistant", "4"),)), Response((Message("assistant", "5"),))),
    ...     feedback=(Pair(chosen=0, rejected=1),),
    ... )  # doctest: +ELLIPSIS
    Example(...)
    """

    prompt: tuple[Message, ...]
    responses: tuple[Response, ...] = ()
    feedback: tuple[Feedback, ...] = ()
    origin: Origin = Origin("<memory>", 0)
    meta: Mapping[str, object] = field(default_factory=dict)
    tools: str | None = None
    template_kwargs: Mapping[str, object] = field(default_factory=dict)
    prompt_text: str | None = None


def cut(reason: str, longest: int = 600) -> str:
    """The beginning and the end of a reason that quotes something long."""
    return reason if len(reason) <= longest else f"{reason[: longest * 2 // 3]} [...] {reason[-longest // 3 :]}"


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a row is not used: the column (None for the whole row) and a reason a person can act on. With `fault` False
    the row is sound but the task has no use for it (a tie, an undesirable answer): it is counted and shown, but not
    against the limit on bad rows."""

    origin: Origin
    column: str | None
    reason: str
    fault: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", cut(self.reason))
        object.__setattr__(self, "column", self.column and cut(self.column))

    def __str__(self) -> str:
        where = f"{self.origin}: " if self.column is None else f"{self.origin}: {self.column}: "
        return where + self.reason


ANNOTATED = "annotated"
"""The column of `assent label` with what each annotator said. A row that has it is sound also where nobody could judge
it, or where what was said is of no use to a task."""
LEVELS = 100
"""How deeply lists and objects of a row may be nested."""


def too_deep(value: object, levels: int = LEVELS) -> bool:
    """Whether lists and mappings are nested in more than so many levels."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return bool(inner) and (levels == 0 or any(too_deep(each, levels - 1) for each in inner))


class RowError(AssentError, ValueError):
    """One row cannot be used. Whoever knows the row's origin turns it into a `Problem`; it never stops a run alone."""

    def __init__(self, column: str | None, reason: str) -> None:
        super().__init__(reason if column is None else f"{column}: {reason}")
        self.column = column
        self.reason = reason

    def at(self, origin: Origin) -> Problem:
        """The same, with the row it is about."""
        return Problem(origin, self.column, self.reason)
