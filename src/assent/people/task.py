"""What annotators are asked: a task as its TASK.yaml defines it, and the items it is asked about.

`assent.people.taskfile` reads and checks the file, `assent.people.kinds` says what an answer to each kind is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from assent.config.ranges import BelowOne, Count, Named, NonzeroShare, Positive, Seed
from assent.config.sampling import EngineConfig, SamplingConfig
from assent.data.records import Message, Response

KindName = Literal["pair", "ranking", "best", "attributes", "yesno", "edit", "spans"]
Answers = tuple[int, int]
MOST_ANSWERS = 9
"""Answers that one item may have: each has a digit as its key."""
ANSWERS: Mapping[str, Answers] = {
    "pair": (2, 2),
    "ranking": (2, MOST_ANSWERS),
    "best": (2, MOST_ANSWERS),
    "attributes": (1, MOST_ANSWERS),
    "yesno": (1, MOST_ANSWERS),
    "edit": (0, MOST_ANSWERS),
    "spans": (1, MOST_ANSWERS),
}
"""Fewest and most answers of an item of each kind."""
SAMPLED: Mapping[str, int] = {"pair": 2, "ranking": 4, "best": 4, "attributes": 2, "yesno": 1, "edit": 1, "spans": 1}
"""Answers that are sampled to each prompt, where the task does not say how many."""


@dataclass(frozen=True, slots=True)
class Attribute:
    """What answers are rated in, on whole numbers."""

    lowest: int = 0
    """Lowest rating."""
    highest: int = 4
    """Highest rating; at most 10 above the lowest."""
    about: str = ""
    """What is rated, in a sentence."""
    levels: dict[int, str] = field(default_factory=dict)
    """What a rating means, for all of them or some."""


HELPSTEER: Mapping[str, Attribute] = {
    "helpfulness": Attribute(about="How well the answer does, all in all, what the user asked for."),
    "correctness": Attribute(about="Whether what it says is true, complete and to the point."),
    "coherence": Attribute(about="Whether it is clear, consistent and well put."),
    "complexity": Attribute(about="How much knowledge it took to write: 0 anybody's, 4 an expert's."),
    "verbosity": Attribute(about="How long it is for what was asked: 0 terse, 4 long-winded."),
}
"""The five attributes of HelpSteer, which a task of kind attributes has unless it names its own."""


@dataclass(frozen=True, slots=True)
class WorkedExample:
    """An item with its answer, shown with the instructions."""

    prompt: str
    """What the user asks."""
    responses: tuple[str, ...] = ()
    """The answers to it."""
    answer: str = ""
    """What a good annotator says of them, in words."""
    why: str = ""
    """Why."""


@dataclass(frozen=True, slots=True)
class Extra:
    """Further annotators for answers on which the first ones differ, as HelpSteer2 asked for them."""

    up_to: Count = 5
    """Most annotators of an item."""
    when_differ_by: Positive = 2.0
    """Ratings of an answer that are further apart ask for one more."""
    attribute: Named = "helpfulness"
    """The attribute whose ratings are compared."""


@dataclass(frozen=True, slots=True)
class Screening:
    """Items of known answer that each annotator is given first."""

    items: Named
    """File of rows with feedback, which are the known answers."""
    threshold: NonzeroShare = 0.8
    """Least share of right answers; below it the annotator is locked out, and the lead is told."""
    at_least: Count = 10
    """Answers given before it counts; at most as many as the file has rows."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What an annotator must keep up during the work; below it they are locked, and the lead is told."""

    gold: NonzeroShare | None = None
    """Least share of right answers to items of known answer."""
    at_least: Count = 5
    """Such answers given before it counts."""


@dataclass(frozen=True, slots=True)
class LabelSampling(SamplingConfig):
    """How answers are sampled."""

    max_new_tokens: Count = 512
    """Longest answer; a longer one is left out, with its prompt."""


@dataclass(frozen=True)
class TaskDefinition:
    """One task: what is asked, of which items, of how many people. Paths are as on the command line: relative to the
    folder where assent is started."""

    name: Named
    """Name of the project, unique in a database: letters, digits, dots, dashes and underscores."""
    kind: KindName
    """What annotators do: pair (which of two answers is better), ranking, best (the best of several), attributes
    (ratings), yesno, edit (rewrite an answer, or write one), spans (mark passages)."""

    # what annotators read
    title: str = ""
    """Shown above the page; default: the name."""
    question: str = ""
    """One sentence beside the answers; default: the kind's own."""
    instructions: str = ""
    """How to decide, in Markdown; a key away."""
    examples: tuple[WorkedExample, ...] = ()
    """Items with their answers, shown with the instructions."""

    # what an answer may be
    attributes: dict[str, Attribute] = field(default_factory=dict)
    """attributes: what answers are rated in; default: HelpSteer's five, from 0 to 4."""
    labels: tuple[str, ...] = ()
    """spans: what a passage may be marked as."""
    strength: int = 3
    """pair: levels of how clearly one answer is better, 1 to 3; 0: none are asked for."""
    ties: bool = True
    """pair, ranking: answers may be equally good."""
    both_bad: bool = True
    """pair: both answers may be bad; best: none may be good."""
    cannot_judge: bool = True
    """pair, yesno: annotators may say that they cannot tell."""
    comment: Literal["optional", "required", "off"] = "optional"
    """Whether annotators explain their answer."""

    # items
    items: Named = ""
    """File, folder or hub id of prompts, with their answers unless they are sampled; any shape that `assent data`
    knows. A column `overlap` says how many annotators a row gets."""
    format: str = "auto"
    """items: shape of the rows; auto detects it."""
    columns: dict[str, str] = field(default_factory=dict)
    """items: column map, expected name to the file's name."""
    split: str = "train"
    """items: split of a hub id."""
    limit: Count | None = None
    """items: use only the first rows."""
    topic: Named = "topic"
    """items: column of a row's topic, by which agreement and progress are also shown."""
    policies: tuple[str, ...] = ()
    """Model or run folders that answer the prompts of `items`; of several, each prompt's are drawn."""
    answers: Count | None = None
    """policies: answers to each prompt; default: 2 for pair and attributes, 4 for ranking and best, else 1."""
    seed: Seed = 0
    """Seed of the sampling, of the order of items, and of the sides that answers are shown on."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """policies: compute precision."""
    sampling: LabelSampling = field(default_factory=LabelSampling)
    engine: EngineConfig = field(default_factory=EngineConfig)

    # people
    overlap: Count = 1
    """Annotators of each item."""
    extra: Extra | None = None
    """attributes: further annotators where the first ones differ, as HelpSteer2 had them."""
    second_pass: BelowOne = 0.0
    """Share of an annotator's items that they are shown again later, without being told."""
    gold: Named | None = None
    """File of rows with feedback, which are known answers; mixed in."""
    gold_share: BelowOne = 0.05
    """Share of the items shown that are of known answer."""
    screening: Screening | None = None
    """Items of known answer before the work."""
    thresholds: Thresholds = field(default_factory=Thresholds)
    lease_minutes: Positive = 30.0
    """Minutes after which an item that was opened and left goes to somebody else."""

    source: str = field(default="", compare=False)
    """Where the definition was read, for messages."""

    @property
    def heading(self) -> str:
        """The title that is shown."""
        return self.title or self.name

    @property
    def sampled(self) -> int:
        """Answers that are sampled to each prompt."""
        return self.answers or SAMPLED[self.kind]

    @property
    def digest(self) -> str:
        """Identifies all of the definition."""
        return digest_of(plain(self))

    @property
    def meaning(self) -> str:
        """Identifies what labels mean: a database holds labels of one meaning under a name."""
        values = {name: value for name, value in plain(self).items() if name in MEANING}
        return digest_of(values | {"labels": sorted(self.labels)} | _scales(self))


PRESENTED = ("title", "question", "instructions", "examples")
"""Options that change what annotators read, not what their answers may be."""
MEANING = ("kind", "labels", "strength", "ties", "both_bad", "cannot_judge")
"""Options that say what an answer may be, beside the names and ends of `attributes`."""


def plain(task: TaskDefinition) -> dict[str, Any]:
    """The definition as JSON has it, without where it was read."""
    return {each.name: _plain(getattr(task, each.name)) for each in fields(task) if each.name != "source"}


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def digest_of(value: Any) -> str:
    """SHA-256 of a value that JSON has."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _scales(task: TaskDefinition) -> dict[str, Any]:
    return {"attributes": {name: [each.lowest, each.highest] for name, each in task.attributes.items()}}


@dataclass(frozen=True, slots=True)
class Changes:
    """What differs between two definitions of one name: options by what they change."""

    meaning: tuple[str, ...] = ()
    """What an answer may be: labels from before and after do not mix."""
    presented: tuple[str, ...] = ()
    """What annotators read."""
    run: tuple[str, ...] = ()
    """Items, and who is asked how often."""

    def __bool__(self) -> bool:
        return bool(self.meaning or self.presented or self.run)


def changes(old: TaskDefinition, new: TaskDefinition) -> Changes:
    """What a definition changes of the one before. Words about an attribute are presentation; its name and its ends
    are meaning, and so are the labels of spans, but not their order."""
    before, after = plain(old), plain(new)
    differ = [name for name in before if before[name] != after[name] and name != "name"]
    meaning = [name for name in differ if name in MEANING]
    if sorted(old.labels) == sorted(new.labels) and "labels" in meaning:
        meaning.remove("labels")
    if _scales(old) != _scales(new):
        meaning.append("attributes")
    words = (*PRESENTED, "labels", "attributes")
    presented = [name for name in differ if name in words and name not in meaning]
    run = [name for name in differ if name not in meaning and name not in presented]
    return Changes(tuple(meaning), tuple(presented), tuple(run))


# ---- items


@dataclass(frozen=True, slots=True)
class Item:
    """One prompt with its answers, about which annotators are asked. `sources` (who wrote each answer) is never shown
    to them.

    overlap  how many annotators its row asks for
    answers  the answers as their row has them, where they are more than text (thoughts, cut off, attributes)
    """

    prompt: tuple[Message, ...]
    responses: tuple[str, ...]
    sources: tuple[str | None, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    topic: str | None = None
    overlap: int | None = None
    answers: tuple[Response, ...] = ()
    tools: str | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    prompt_text: str | None = None

    @property
    def digest(self) -> str:
        """Identifies prompt and answers: the same ones are one item, wherever they come from."""
        prompt = [[turn.role, turn.content, [[c.name, c.arguments] for c in turn.tool_calls]] for turn in self.prompt]
        return digest_of([prompt, list(self.responses), self.tools])
