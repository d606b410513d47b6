"""Rewards that can be checked: the answer against the row's gold answer, against a pattern, or its length.

A rule is a pure function. Its positional parameters say what it looks at (`answer`, the text; `gold`, the right answer
from the row's own column; `length`, the answer's tokens), its keyword-only parameters are its options.
"""

from __future__ import annotations

import inspect
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from assent.data.columns import column, column_names, has_column
from assent.data.records import Example
from assent.errors import ConfigError, DataError
from assent.measures.numbers import behind_mark, final_number, gold_number
from assent.measures.patterns import found, linear
from assent.names import suggestion
from assent.rewards.group import Group, Scores, checked

MATH_LIMIT = 5
"""Seconds in which math-verify must read or compare an expression; it counts as wrong otherwise."""
GOLD = "answer"
"""The column that holds the right answer, where none is named."""


def exact(answer: str, gold: str) -> float:
    """1.0 where the answer is the gold answer, blanks around them aside, else 0.0."""
    return float(answer.strip() == gold.strip())


def contains(answer: str, gold: str) -> float:
    """1.0 where the gold answer, blanks around it aside, stands somewhere in the answer, else 0.0."""
    return float(gold.strip() in answer)


def numeric(answer: str, gold: str) -> float:
    """1.0 where the answer's final number is the gold number, else 0.0 (GSM8K, arXiv 2110.14168).

    Which number that is says `assent.measures.numbers`. Numbers are compared exactly, as fractions: 540, $540.00,
    1,080/2 and 5.4e2 are the same.

    gold  the number alone, or a text that ends with "#### number" or holds \\boxed{number}

    Raises ValueError when `gold` has no such number.
    """
    return float(final_number(answer) == gold_number(gold))


def math(answer: str, gold: str) -> float:
    """1.0 where the answer's last expression equals the gold one in the judgement of math-verify (an extra), else 0.0:
    fractions, roots, intervals, sets, equations, in LaTeX or plainly.

    gold  the expression alone, behind "####", or within a text between $ signs or in \\boxed{}

    Raises ConfigError where math-verify is not installed, ValueError when it cannot read `gold`.
    """
    try:
        from math_verify import parse, verify
    except ImportError:
        raise ConfigError("math-verify is not installed here. Install it: pip install 'assent[math]'") from None
    # Its own limits are alarms, which only the main thread can set; whoever uses the rule sets another.
    limit = MATH_LIMIT if threading.current_thread() is threading.main_thread() else None
    written = behind_mark(gold) or gold
    marked = any(mark in written for mark in ("$", "\\(", "\\[", "\\boxed"))
    right = parse(written if marked else f"\\boxed{{{written.strip()}}}", parsing_timeout=limit)
    if not right:
        raise ValueError(f"expected an expression that math-verify can read; got '{gold.strip()[:40]}'")
    given = parse(answer, parsing_timeout=limit)
    return float(bool(given) and verify(right, given, timeout_seconds=limit))


def regex(answer: str, *, pattern: str) -> float:
    """1.0 where the pattern of Python's `re` is found in the answer, else 0.0. Anchors and flags stand in the pattern:
    r"(?s)\\A...\\Z".

    Raises re.error for a pattern that is none.
    """
    return float(found(pattern, answer))


def tags_in_order(answer: str, *, tags: Sequence[str]) -> float:
    """1.0 where each tag is opened and closed exactly once, one pair after the other in the order given, else 0.0.

    `tags=("think", "answer")` asks for <think>...</think>...<answer>...</answer>; text may stand around and between.

    Raises ValueError when `tags` is no list of names.
    """
    if isinstance(tags, str) or not tags or not all(re.fullmatch(r"[\w-]+", tag) for tag in tags):
        raise ValueError(f"tags: expected a list of names such as think, answer; got {tags!r}")
    marks = re.findall(rf"</?(?:{'|'.join(tags)})>", answer)
    return float(marks == [mark for tag in tags for mark in (f"<{tag}>", f"</{tag}>")])


def length_penalty(length: int, *, target: int, limit: int) -> float:
    """A penalty for answers that run past a target: 0 up to `target` tokens, -1 from `limit` tokens on.

        penalty = clamp((target - length) / (limit - target), -1, 0)

    Raises ValueError unless 0 <= target < limit.
    """
    if not 0 <= target < limit:
        raise ValueError(f"expected 0 <= target < limit; got target {target}, limit {limit}")
    return min(max((target - length) / (limit - target), -1.0), 0.0)


RULES: dict[str, Callable[..., float]] = {
    "exact": exact,
    "numeric": numeric,
    "math": math,
    "contains": contains,
    "regex": regex,
    "format": tags_in_order,
    "length": length_penalty,
}
"""Names of rules to functions."""


def is_slow(spec: str) -> bool:
    """Whether a rule can take long, or for ever: it runs in processes of its own then, with a time limit."""
    rule, _, argument = spec.partition("=")
    return rule == "math" or (rule == "regex" and linear(argument) is None)


def counts_tokens(spec: str) -> bool:
    """Whether a rule looks at how many tokens an answer has."""
    rule = RULES.get(spec.partition("=")[0])
    return rule is not None and "length" in inspect.signature(rule).parameters


def _limits(text: str) -> dict[str, object]:
    try:
        target, limit = map(int, text.split(","))
    except ValueError:
        raise ConfigError(f"expected two whole numbers; got '{text}'.") from None
    return {"target": target, "limit": limit}


class RuleSpelling(NamedTuple):
    """How a rule is written where only text can be given, and what its argument means: its options. Without `read`,
    the argument is the column of the gold answer."""

    written: str
    read: Callable[[str], dict[str, object]] | None = None


SPELLINGS: dict[str, RuleSpelling] = {
    "exact": RuleSpelling("exact or exact=COLUMN"),
    "numeric": RuleSpelling("numeric or numeric=COLUMN"),
    "math": RuleSpelling("math or math=COLUMN"),
    "contains": RuleSpelling("contains or contains=COLUMN"),
    "regex": RuleSpelling("regex=PATTERN", lambda text: {"pattern": text}),
    "format": RuleSpelling("format=TAG,TAG", lambda text: {"tags": text.split(",")}),
    "length": RuleSpelling("length=TARGET,LIMIT", _limits),
}
"""How each of `RULES` is written on a command line."""


def rule_reward(spec: str, name: str) -> RuleReward:
    """The rule that `spec` spells, as in `SPELLINGS`. Raises ConfigError for one that does not exist or says too little
    or too much."""
    rule, _, argument = spec.partition("=")
    if rule not in RULES:
        raise ConfigError(f"There is no rule '{rule}'.{suggestion(rule, [*RULES])} Known: {', '.join(RULES)}.")
    spelling = SPELLINGS[rule]
    try:
        if spelling.read is None:
            return RuleReward(rule, gold=argument or GOLD, name=name)
        return RuleReward(rule, spelling.read(argument) if argument else {}, name=name)
    except ConfigError as error:
        raise ConfigError(f"{spec}: {error} It is written {spelling.written}.") from None


class RuleReward:
    """A rule of `RULES` as a source of rewards. Rules that need the right answer read it from the row's column `gold`:
    of GSM8K's, `answer` (the worked solution) and `final_answer` (the number) are there."""

    def __init__(
        self, rule: str, options: Mapping[str, object] | None = None, *, gold: str = GOLD, name: str | None = None
    ) -> None:
        """Raises ConfigError for a rule or an option that does not exist, and for options that contradict another."""
        if rule not in RULES:
            raise ConfigError(f"There is no rule '{rule}'.{suggestion(rule, [*RULES])} Known: {', '.join(RULES)}.")
        self.name = name or rule
        self.rule = rule
        self.gold = gold
        self._function = RULES[rule]
        self._options = dict(options or {})
        parameters = inspect.signature(self._function).parameters.values()
        self._looks_at = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
        self._check_options([p.name for p in parameters if p.kind is p.KEYWORD_ONLY])

    def check(self, examples: Sequence[Example]) -> None:
        """Raises DataError where a row has no gold answer that the rule can use: better before training than in it."""
        self.score([Group(example, ("",), (False,), (0,)) for example in examples])

    def score(self, groups: Sequence[Group]) -> Scores:
        """Raises DataError where a row has no gold answer that the rule can use."""
        values = [self._one(group, index) for group in groups for index in range(len(group))]
        return Scores(checked(f"The rule '{self.name}'", groups, values))

    def _one(self, group: Group, index: int) -> float:
        seen: dict[str, object] = {"answer": group.texts[index], "length": group.lengths[index]}
        if "gold" in self._looks_at:
            seen["gold"] = self._gold(group.example)
        try:
            return self._function(*(seen[name] for name in self._looks_at), **self._options)
        except ValueError as error:
            raise DataError(f"{group.example.origin}: {self.gold}: {error}.") from error

    def _gold(self, example: Example) -> str:
        value = column(example.meta, self.gold)
        if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
            found = ", ".join(column_names([example.meta])) or "none"
            got = f"got {value!r}" if has_column(example.meta, self.gold) else "there is no such column"
            raise DataError(
                f"{example.origin}: {self.gold}: the rule '{self.rule}' needs the right answer, as text or a number; "
                f"{got}. Columns beside the prompt: {found}."
            )
        return str(value)

    def _check_options(self, known: Sequence[str]) -> None:
        """Tries the rule out, so that whatever it says against its options is said before training."""
        its = f"Its options: {', '.join(known) or 'none'}."
        for name in self._options:
            if name not in known:
                raise ConfigError(f"The rule '{self.rule}' has no option '{name}'. {its}")
        for name in known:
            if name not in self._options:
                raise ConfigError(f"The rule '{self.rule}' needs the option '{name}'. {its}")
        seen = {"answer": "", "gold": "0", "length": 0}
        try:
            self._function(*(seen[name] for name in self._looks_at), **self._options)
        except (ValueError, TypeError, re.error) as error:
            raise ConfigError(f"The rule '{self.rule}': {error}.") from error
