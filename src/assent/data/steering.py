"""Attributes that an answer is asked to have, as a line of text at the head of the answer (SteerLM, arXiv 2310.05344).

The line belongs to the chat template, which writes it behind the generation prompt, from a variable for each attribute:

    <|im_start|>assistant
    helpfulness:4,verbosity:0
    Oslo.<|im_end|>

So it is prompt and never trained, it is saved with the tokenizer, and whoever renders a conversation with the template
(any command, transformers, a server) asks for the model's defaults, or for other values by the template's variables. An
assistant turn whose `attributes` say what it is has its own values instead. `assent.data.steerable` makes templates so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from assent.names import suggestion

PLAIN = "{attributes}\n"
NEMO = "<extra_id_2>{attributes}\n"
"""The line of NeMo's SteerLM models."""
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
PLACE = re.compile(r"\{(\w+)\}")
NOTE = re.compile(r"\{#- assent: attributes (\{.*?\}) -#\}", re.DOTALL)
ANSWER = "answer_attributes"
"""The template's variable for the values of the answer that is begun, by name; it wins over the single ones."""


@dataclass(frozen=True, slots=True)
class Steering:
    """The K attributes that a model knows, in their order. `defaults` are asked for where nothing else is given; each
    value is a whole number from `lowest` to `highest`. `line` is written before an answer: {attributes} stands for all,
    name:value with commas between, or {NAME} for the value of one. `companions` [., K] are values that go together in
    good answers, the best first: what is not asked for is as it goes with the rest (`completed`)."""

    names: tuple[str, ...]
    defaults: tuple[int, ...]
    lowest: int = 0
    highest: int = 4
    line: str = PLAIN
    companions: tuple[tuple[int, ...], ...] = ()

    def completed(self, given: Mapping[str, int]) -> dict[str, int]:
        """A value for every attribute: what is given, and the others as in the first of the defaults and `companions`
        that is nearest to it (by the sum of differences). Values that never occur together were never learnt."""
        pool = [dict(zip(self.names, values, strict=True)) for values in (self.defaults, *self.companions)]
        nearest = min(pool, key=lambda values: sum(abs(values[name] - value) for name, value in given.items()))
        return nearest | dict(given)

    def checked(self, given: Mapping[str, Any], *, whole: bool = False) -> dict[str, int]:
        """The given values in the order of `names`; with `whole` there must be one for each. Raises `ValueError` with
        the reason."""
        for name, value in given.items():
            if name not in self.names:
                known = ", ".join(self.names)
                raise ValueError(f"there is no attribute '{name}'.{suggestion(name, self.names)} Known: {known}")
            if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
                raise ValueError(f"{name} must be a whole number. Got {value!r}")
            if not self.lowest <= value <= self.highest:
                raise ValueError(f"{name} must be from {self.lowest} to {self.highest}. Got {value:g}")
        if whole and (missing := [name for name in self.names if name not in given]):
            raise ValueError(f"lacks {', '.join(missing)}: an answer is labelled with every attribute of the model")
        return {name: int(given[name]) for name in self.names if name in given}

    def rounded(self, measured: ArrayLike) -> tuple[np.ndarray, int]:
        """Measured values [..., K] as those that can be asked for: rounded (halves to even) and clamped; and how many
        lay outside of the scale, by more than rounding takes."""
        values = np.rint(np.asarray(measured, dtype=np.float64))
        made = np.clip(values, self.lowest, self.highest)
        return made.astype(np.int64), int((made != values).sum())


def read_attributes(text: str) -> dict[str, float]:
    """ "helpfulness=4,verbosity=0" (or with colons, as NeMo writes it) as values by name. Raises `ValueError` with the
    reason."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, mark, value = (piece.strip() for piece in part.partition("=" if "=" in part else ":"))
        if not name or not mark:
            raise ValueError(f"expected NAME=VALUE with commas between. Got {part.strip()!r}")
        if name in found:
            raise ValueError(f"{name} is given twice")
        try:
            found[name] = float(value)
        except ValueError:
            raise ValueError(f"{name} must be a number. Got {value!r}") from None
    return found


def steering_of(template: object) -> Steering | None:
    """The attributes of a chat template; None where it has none."""
    text = "\n".join(template.values()) if isinstance(template, dict) else template
    if not isinstance(text, str) or (note := NOTE.search(text)) is None:
        return None
    content: dict[str, Any] = json.loads(note[1])
    lists = {name: tuple(content[name]) for name in ("names", "defaults")}
    return Steering(**content | lists | {"companions": tuple(map(tuple, content.get("companions", ())))})


def restated(template: str, steering: Steering) -> str:
    """A template that writes attributes already, with other values that are asked for by default."""
    return NOTE.sub(lambda _: _note(steering), template)


def _note(steering: Steering) -> str:
    return f"{{#- assent: attributes {json.dumps(asdict(steering))} -#}}"


def steered(template: str, steering: Steering, lead: str = "") -> str:
    """A chat template that writes the line of `steering` before every answer, and behind every generation prompt.
    `lead` is what the template writes before an answer that its generation prompt does not end with."""
    defaults = "".join(
        f"{{%- if {name} is not defined %}}{{%- set {name} = {value} %}}{{%- endif %}}"
        for name, value in zip(steering.names, steering.defaults, strict=True)
    )
    asked = ", ".join(f"'{name}': {name}" for name in steering.names)
    line = _expression(steering)
    begun = f"dict(assent_asked, **({ANSWER} | default({{}}, true)))"
    body = template.removesuffix("\n")
    newline = template[len(body) :]  # Jinja drops it at the very end of a template, and only there
    return (
        _note(steering)
        + defaults
        + f"{{%- set assent_asked = {{{asked}}} %}}"
        + "{%- set assent_turns = namespace(all=[]) %}{%- for message in messages %}"
        + "{%- if message['role'] == 'assistant' %}"
        + "{%- set wanted = dict(assent_asked, **(message['attributes'] | default({}, true))) %}"
        + f"{{%- set line = {line} %}}"
        + "{%- set said = message['content'] | default('', true) %}"
        + "{%- set said = line ~ said if said is string else [{'type': 'text', 'text': line}] + said %}"
        + "{%- set assent_turns.all = assent_turns.all + [dict(message, content=said)] %}"
        + "{%- else %}{%- set assent_turns.all = assent_turns.all + [message] %}{%- endif %}{%- endfor %}"
        + "{%- set messages = assent_turns.all %}{{- '' }}"
        + body
        + f"{{%+ if add_generation_prompt %}}{{%- set wanted = {begun} %}}"
        + f"{{{{- {ascii(lead)} ~ {line} }}}}{{%- endif %}}"
        + newline
    )


def _expression(steering: Steering) -> str:
    """The line as an expression of Jinja, of the variable `wanted`."""
    each = [f"{ascii(name + ':')} ~ wanted['{name}']" for name in steering.names]
    parts = []
    for index, piece in enumerate(PLACE.split(steering.line)):
        if index % 2 == 0:
            parts.append(ascii(piece))
        elif piece == "attributes":
            parts.append(" ~ ',' ~ ".join(each))
        else:
            parts.append(f"wanted['{piece}']")
    return " ~ ".join(parts)
