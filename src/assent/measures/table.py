"""The table of measures: every number that a policy's answers can be given, by name.

A new measure is a function and a row in the tuple `ROWS` of its module, and the module in `MODULES`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from assent.errors import ConfigError
from assent.measures import (
    basic,
    claims,
    diversity,
    form,
    length_controlled,
    likelihood,
    overlap,
    ranking,
    refusal,
    style,
    toxicity,
    wins,
)
from assent.measures.extras import extra
from assent.measures.shapes import Measure
from assent.names import suggestion

MODULES: dict[str, tuple[Measure, ...]] = {
    "Rewards and wins": (*basic.ROWS[:1], *wins.ROWS, *length_controlled.ROWS, *style.ROWS, *ranking.ROWS),
    "Answers": basic.ROWS[1:],
    "Right answers": overlap.ROWS,
    "Variety": diversity.ROWS,
    "Form": (form.json_with(),),
    "Refusal": refusal.ROWS,
    "What other models find": (*toxicity.ROWS, *claims.ROWS),
    "Answers that the prompt file gives": likelihood.ROWS,
}
"""Heading of the documentation -> rows."""

MEASURES: dict[str, Measure] = {row.name: row for rows in MODULES.values() for row in rows}
PASS = re.compile(r"pass@([1-9]\d{0,5})")
"""A family of measures: pass@K for any K."""


OWN = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
"""Names of measures that options make."""


def measure(name: str) -> Measure | None:
    """The measure of that name; None where there is none."""
    if found := PASS.fullmatch(name):
        return form.pass_at(int(found[1]), overlap.right, "the number of a right answer, else its text but for case")
    return MEASURES.get(name)


def required(name: str, flag: str) -> Measure:
    """The measure that the option `flag` names. Raises ConfigError where there is none of that name, and where it needs
    a package that is missing."""
    row = measure(name)
    if row is None:
        raise ConfigError(f"{flag}: there is no '{name}'.{suggestion(name, MEASURES)} See docs/evaluation.md.")
    if row.package:
        extra(row.package, f"{flag} {name}")
    return row


def own_rows(forms: Sequence[str], json_keys: Sequence[str]) -> list[Measure]:
    """The measures that --form NAME=REGEX and --json_keys ask for. Raises ConfigError for a word of another shape, a
    name that is taken, a pattern that is none, and an empty key."""
    rows: list[Measure] = []
    for word in forms:
        name, given, pattern = word.partition("=")
        if not given or not OWN.fullmatch(name) or not pattern:
            raise ConfigError(
                f"--form {word}: expected NAME=REGEX, the name of lower-case letters, digits and hyphens, as in "
                r"--form 'boxed=\\boxed\{.+\}'."
            )
        if measure(name) is not None or name in {row.name for row in rows}:
            raise ConfigError(f"--form {word}: there is already a measure '{name}'. Choose another name.")
        try:
            rows.append(form.matches(name, pattern))
        except ConfigError as error:
            raise ConfigError(f"--form {error}") from None
    if json_keys:
        if not all(json_keys) or len(set(json_keys)) < len(json_keys):
            raise ConfigError(f"--json_keys: expected keys, each once; got {', '.join(map(repr, json_keys))}.")
        rows.append(form.json_with(json_keys))
    return rows


def by_default() -> list[Measure]:
    """What is measured where nobody names measures, if its needs are met."""
    return [row for row in MEASURES.values() if not row.on_request]
