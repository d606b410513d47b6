"""Prompt files of judges: what a judge is asked, in which form it answers, and on which scale (docs/judges.md)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Literal, NamedTuple

import yaml

from assent.config.nodes import WrongType, composed, shown, value_as
from assent.data.records import Message
from assent.errors import ConfigError
from assent.files import not_a_file
from assent.names import suggestion
from assent.rewards.judge.template import CRITERIA, FENCE, PromptTemplate, check_texts, fence_of

FOLDER = Path(__file__).parent / "prompts"
BUILT_IN = tuple(sorted(file.stem for file in FOLDER.glob("*.yaml")))
CLAIMS = str(Path(__file__).parent / "claims.yaml")
"""What judges of consistency are asked; it is no reward, so it is none of `BUILT_IN`. `reference` is the context."""
VERDICT = "{verdict}"
SINGLE, PAIR, CHOICE = ("answer",), ("answer_a", "answer_b"), tuple(f"answer_{x.lower()}" for x in ascii_uppercase)
OTHERS = ("prompt", "reference")


class Mode(NamedTuple):
    """What a kind of prompt shows, and which fields its file must and may have beside `mode`, `user` and `system`."""

    answers: tuple[str, ...]
    required: frozenset[str]
    optional: frozenset[str]


WRITTEN = frozenset(("several", "sections"))
MODES: Mapping[str, Mode] = {
    "rating": Mode(SINGLE, frozenset(("form", "scale")), WRITTEN | {"whole"}),
    "criteria": Mode(SINGLE, frozenset(("criteria", "scale")), frozenset(("whole",))),
    "pairwise": Mode(PAIR, frozenset(("form",)), WRITTEN | {"tie"}),
    "choice": Mode(CHOICE, frozenset(("form",)), WRITTEN),
    "claims": Mode(SINGLE, frozenset(), frozenset()),
}
FIELDS: Mapping[str, Any] = {
    "mode": Literal["rating", "criteria", "pairwise", "choice", "claims"],
    "system": str,
    "user": str,
    "form": str,
    "tie": str,
    "several": Literal["refuse", "last"],
    "scale": tuple[float, ...],
    "whole": bool,
    "criteria": dict[str, str],
    "sections": tuple[str, ...],
}


@dataclass(frozen=True, slots=True)
class Criterion:
    """One of several things that an answer is rated on."""

    name: str
    text: str
    weight: float


@dataclass(frozen=True, slots=True)
class Form:
    """How a verdict stands in what the judge writes: between `before` and `after`; where both are empty it is all that
    the judge writes. `several` says what different verdicts in one text mean: that none can be read ("refuse"), or that
    the last counts. Each of `sections` (names of tags, any of several) must be there before it."""

    before: str = ""
    after: str = ""
    several: str = "refuse"
    sections: tuple[tuple[str, ...], ...] = ()

    def written(self, verdict: str) -> str:
        return f"{self.before}{verdict}{self.after}"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt file, read. `letters` are the answers that a comparison shows, and `tie` is its letter for a tie;
    `digest` is sha256 of the file."""

    source: str
    digest: str
    mode: str
    user: PromptTemplate
    system: PromptTemplate | None
    form: Form
    letters: tuple[str, ...]
    tie: str | None
    scale: tuple[float, float]
    whole: bool
    criteria: tuple[Criterion, ...]
    delimiters: tuple[str, ...]

    @property
    def compares(self) -> bool:
        """Whether it shows several answers."""
        return self.mode in ("pairwise", "choice")

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the row that it shows."""
        return self.user.columns + (self.system.columns if self.system else ())

    @property
    def needs_reference(self) -> bool:
        """Whether it shows the row's answer."""
        return "reference" in self.user.used

    def messages(
        self, prompt: str, answers: Sequence[str], reference: str | None, row: Mapping[str, str]
    ) -> tuple[Message, ...]:
        """What the judge is asked about these answers. Raises Forged where one of the texts, or the prompt, holds a
        delimiter of the template."""
        names = SINGLE if not self.compares else CHOICE[: len(self.letters)]
        texts = dict(zip(names, answers, strict=True)) | {"prompt": prompt}
        if self.needs_reference:
            assert reference is not None, "checked before"
            texts["reference"] = reference
        fence = fence_of([*texts.values()])
        check_texts([*texts.values()], self.delimiters, fence)
        values = {**texts, FENCE: fence, CRITERIA: self.criteria}
        system = () if self.system is None else (Message("system", self.system.render(values, row)),)
        return (*system, Message("user", self.user.render(values, row)))


def prompt_file(name: str) -> Path:
    """The file of a built-in prompt, or the one at that path. Raises ConfigError where there is none."""
    if name in BUILT_IN:
        return FOLDER / f"{name}.yaml"
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(
            f"--judge.prompt: there is no prompt '{name}'.{suggestion(name, BUILT_IN)} Known: {', '.join(BUILT_IN)}; "
            "or give a file NAME.yaml."
        )
    if (kind := not_a_file(path)) is not None or not path.exists():
        raise ConfigError(f"--judge.prompt {name}: {f'it is {kind}' if kind else 'there is no such file'}.")
    return path


def read_prompt(name: str) -> Prompt:
    """A built-in prompt, or one from a YAML file. Raises ConfigError, with file and line, for what cannot be asked or
    whose answers could not be read."""
    file = prompt_file(name)
    try:
        text = file.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"--judge.prompt {file}: {reason}.") from None
    return _Reader(str(file), text).prompt()


class _Reader:
    """A prompt file, whose every complaint has file and line."""

    def __init__(self, source: str, text: str) -> None:
        self.source, self.digest = source, hashlib.sha256(text.encode()).hexdigest()
        node = composed(text, source)
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{source}:1: expected fields such as mode and user.")
        self.fields: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = str(key.value)
            if name in self.fields:
                raise self.error(key, f"the field '{name}' is there twice")
            if name not in FIELDS:
                raise self.error(key, f"unknown field '{name}'.{suggestion(name, FIELDS)} Known: {', '.join(FIELDS)}")
            self.fields[name] = value

    def error(self, node: yaml.Node | None, reason: str) -> ConfigError:
        return ConfigError(f"{self.source}:{node.start_mark.line + 1 if node else 1}: {reason}.")

    def value(self, name: str, default: Any = None) -> Any:
        if name not in self.fields:
            return default
        try:
            return value_as(self.fields[name], FIELDS[name])
        except WrongType as error:
            expected = {"mode": ", ".join(MODES), "several": "refuse or last", "scale": "[LOWEST, HIGHEST]"}.get(name)
            words = {str: "text", bool: "true or false"}.get(FIELDS[name], "a list of texts")
            got = error.got or shown(error.node)
            raise self.error(error.node, f"{name} must be {expected or words}; got {got}") from None

    def prompt(self) -> Prompt:
        for name in ("mode", "user"):
            if name not in self.fields:
                raise self.error(None, f"the field '{name}' is missing")
        mode = self.value("mode")
        kind = MODES[mode]
        for name in sorted(kind.required - self.fields.keys()):
            raise self.error(self.fields["mode"], f"mode {mode} needs the field '{name}'")
        for name, node in self.fields.items():
            if name not in kind.required | kind.optional | {"mode", "user", "system"}:
                raise self.error(node, f"the field '{name}' has no meaning in mode {mode}")
        criteria = self.criteria() if mode == "criteria" else ()
        user = self.template("user", (*kind.answers, *OTHERS))
        letters = self.letters(mode, user)
        return Prompt(
            source=self.source,
            digest=self.digest,
            mode=mode,
            user=user,
            system=self.template("system", ()) if "system" in self.fields else None,
            form=self.form(),
            letters=letters,
            tie=self.tie(letters),
            scale=self.scale() if "scale" in kind.required else (0.0, 1.0),
            whole=self.value("whole", True),
            criteria=criteria,
            delimiters=user.delimiters(criteria),
        )

    def template(self, name: str, texts: tuple[str, ...]) -> PromptTemplate:
        node, text = self.fields[name], self.value(name)
        block = isinstance(node, yaml.ScalarNode) and node.style in ("|", ">")
        names = (*texts, FENCE, *((CRITERIA,) if "criteria" in self.fields else ()))
        return PromptTemplate(text, self.source, node.start_mark.line + (2 if block else 1), texts, names)

    def letters(self, mode: str, user: PromptTemplate) -> tuple[str, ...]:
        """Raises where the user's text lacks the prompt or an answer."""
        answers = MODES[mode].answers
        if mode == "choice":
            count = max((n for n, name in enumerate(answers, 1) if name in user.used), default=0)
            answers = answers[: max(count, 3)]
        if missing := [name for name in ("prompt", *answers) if name not in user.used]:
            raise self.error(self.fields["user"], f"user lacks the placeholder {{{{ {missing[0]} }}}}")
        return tuple(ascii_uppercase[: len(answers)]) if len(answers) > 1 else ()

    def form(self) -> Form:
        if "form" not in self.fields:
            return Form()
        node, text = self.fields["form"], self.value("form")
        before, found, after = text.strip().partition(VERDICT)
        if not found or VERDICT in after or bool(before.strip()) != bool(after.strip()) or "\n" in text.strip():
            raise self.error(
                node,
                f"form must be one line with {VERDICT} once, either with text on both sides, as in [[{VERDICT}]], or "
                f"alone; got {text!r}",
            )
        sections = tuple(tuple(part.split("|")) for part in self.value("sections", ()))
        if not all(name.isidentifier() for names in sections for name in names):
            raise self.error(self.fields["sections"], "sections are names of tags, as in [type, rubric|solution]")
        return Form(before.strip(), after.strip(), self.value("several", "refuse"), sections)

    def tie(self, letters: tuple[str, ...]) -> str | None:
        tie: str | None = self.value("tie")
        if tie is not None and (not tie.isalnum() or tie in letters):
            raise self.error(self.fields["tie"], f"tie must be a word other than {', '.join(letters)}; got {tie!r}")
        return tie

    def scale(self) -> tuple[float, float]:
        scale = self.value("scale")
        if len(scale) != 2 or not all(map(math.isfinite, scale)) or not scale[0] < scale[1]:
            raise self.error(self.fields["scale"], f"scale must be [LOWEST, HIGHEST]; got {list(scale)}")
        return scale[0], scale[1]

    def criteria(self) -> tuple[Criterion, ...]:
        """Weights are those of the file, or 1/K each where it gives none."""
        node = self.fields["criteria"]
        if not isinstance(node, yaml.MappingNode) or not node.value:
            raise self.error(node, "criteria are NAME: {text: ..., weight: ...}; got " + shown(node))
        found: dict[str, tuple[str, float | None]] = {}
        for key, value in node.value:
            name = str(key.value)
            if name in found or not name.strip() or name == REASONING:
                raise self.error(key, f"a criterion cannot be called {name!r}{' as well' if name in found else ''}")
            found[name] = self._criterion(value)
        given = [weight for _, weight in found.values() if weight is not None]
        if given and (len(given) < len(found) or not any(given)):
            raise self.error(node, "give every criterion a weight, not all of them 0, or none (then they count alike)")
        equal = 1 / len(found)
        return tuple(Criterion(name, text, equal if w is None else w) for name, (text, w) in found.items())

    def _criterion(self, node: yaml.Node) -> tuple[str, float | None]:
        kinds: Mapping[str, Any] = {"text": str, "weight": float}
        if not isinstance(node, yaml.MappingNode) or {str(key.value) for key, _ in node.value} - kinds.keys():
            raise self.error(node, "a criterion has a text and a weight; got " + shown(node))
        try:
            own = {key.value: value_as(value, kinds[key.value]) for key, value in node.value}
        except WrongType as error:
            raise self.error(error.node, f"expected text, or a number as weight; got {shown(error.node)}") from None
        if not math.isfinite(own.get("weight", 0.0)):
            raise self.error(node, f"a weight must be a finite number; got {own['weight']}")
        return own.get("text", ""), own.get("weight")


REASONING = "reasoning"
"""The one further field that a verdict in JSON may have."""
