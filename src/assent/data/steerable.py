"""Chat templates made steerable by attributes (`assent.data.steering`), judged by their own rendering."""

from __future__ import annotations

from dataclasses import replace

import jinja2.nodes
import numpy as np
from jinja2.ext import loopcontrols
from numpy.typing import ArrayLike
from transformers import PreTrainedTokenizerBase

from assent.data.chat import Chat
from assent.data.records import Example, Message, Response, RowError
from assent.data.sandbox import Bounded
from assent.data.steering import ANSWER, NAME, PLACE, Steering, read_attributes, restated, steered, steering_of
from assent.data.template import RESERVED, Generation, Template, choices
from assent.errors import ConfigError, ModelError
from assent.foreign import brief

WORDS = {"and", "or", "not", "in", "is", "if", "else", "true", "false", "none", "True", "False", "None", "loop", "self"}
BEST = 0.1
"""Share of the answers, the best ones, that decide which values are asked for where nobody says any."""


def make_steerable(tokenizer: PreTrainedTokenizerBase, steering: Steering) -> Chat:
    """The tokenizer's chat with a template that writes the attributes. Raises `ConfigError` for names and lines that
    cannot be, `ModelError` for a template that cannot write the line where the answer begins."""
    source = tokenizer.name_or_path or "the tokenizer"
    own = tokenizer.chat_template
    if not isinstance(own, str):
        what = "no chat template" if own is None else "several chat templates"
        raise ModelError(f"{source} has {what}, and attributes are written by one. {choices()}")
    if (already := steering_of(own)) is not None:
        if (already.names, already.lowest, already.highest, already.line) != (
            steering.names,
            steering.lowest,
            steering.highest,
            steering.line,
        ):
            raise ModelError(
                f"{source} knows attributes already: {', '.join(already.names)} from {already.lowest} to "
                f"{already.highest}, written {already.line!r}. Begin with a model that knows none, or with these."
            )
        tokenizer.chat_template = restated(own, steering)
        return Chat(tokenizer, variables=dict(zip(steering.names, steering.defaults, strict=True)))
    _check_names(own, steering, source, set(tokenizer.special_tokens_map))
    try:
        tokenizer.chat_template = steered(own, steering, _lead(Template(tokenizer)))
        chat = Chat(tokenizer)
        for example in _examples(steering):
            chat.tree(example, 1 << 20)
    except (ModelError, RowError) as error:
        raise ModelError(
            f"{source}: its chat template cannot write attributes at the head of an answer: {brief(error)}"
        ) from None
    return chat


def _lead(template: Template) -> str:
    """White space that the template writes before an answer and not behind a generation prompt."""
    (example, *_) = _examples(Steering((), ()))
    answer = example.responses[0].messages
    start = template.render(template.conversation(example.prompt), True, "prompt")
    whole = template.render(template.conversation(example.prompt + answer), False, "response")
    lead = whole.removeprefix(start).partition(answer[0].content)[0]
    return lead if whole.startswith(start) and lead.isspace() else ""


def _check_names(template: str, steering: Steering, source: str, tokens: set[str]) -> None:
    if not steering.names:
        raise ConfigError("Attributes are needed, at least one.")
    tree = Bounded(extensions=[loopcontrols, Generation]).parse(template)
    used = {node.name for node in tree.find_all(jinja2.nodes.Name)} | RESERVED | tokens | WORDS
    used |= {ANSWER, "attributes", "wanted", "line", "said", "message"}
    for name in steering.names:
        if not NAME.fullmatch(name):
            raise ConfigError(f"An attribute is called by letters, digits and _, as a variable is. Got '{name}'.")
        if name in used:
            raise ConfigError(f"No attribute can be called '{name}': the chat template of {source} uses the name.")
    found = set(PLACE.findall(steering.line))
    lacking = set() if found == {"attributes"} else set(steering.names) ^ found
    if lacking or "#}" in steering.line:
        raise ConfigError(
            f"The line of attributes must hold {{attributes}}, or each of them once by its name, as {{NAME}}, and "
            f"nothing else in braces. Got {steering.line!r}" + (f": {', '.join(sorted(lacking))}." if lacking else ".")
        )


def _examples(steering: Steering) -> list[Example]:
    """Conversations whose turns have other values than the defaults, and than each other."""
    low, high = (tuple((name, value) for name in steering.names) for value in (steering.lowest, steering.highest))
    asked, again = Message("user", "Question?"), Message("user", "Whatever.")
    first, second = (
        Message("assistant", "Certainly.", attributes=low),
        Message("assistant", "So be it.", attributes=high),
    )
    return [
        Example((asked,), (Response((Message("assistant", "Certainly."),)),)),
        Example((asked,), (Response((first,)),)),
        Example((asked,), (Response((first, again, second)),)),
        Example((asked, first, again), (Response((second,)),)),
    ]


def asked_for(template: object, text: str, flag: str, source: str) -> dict[str, int]:
    """What `text` ("helpfulness=4,verbosity=0") asks of a model with this chat template, of every attribute. Raises
    `ConfigError`."""
    steering = steering_of(template)
    if steering is None:
        raise ConfigError(
            f"{flag} {text}: {source} knows no attributes, its chat template writes none. assent steerlm trains a "
            "model that does."
        )
    try:
        return steering.completed(steering.checked(read_attributes(text)))
    except ValueError as error:
        raise ConfigError(f"{flag} {text}: {error}.") from None


def always_asked(tokenizer: PreTrainedTokenizerBase, values: dict[str, int]) -> Chat:
    """The chat of a tokenizer that knows attributes, with these values of all of them as its defaults."""
    steering = steering_of(tokenizer.chat_template)
    assert steering is not None
    return make_steerable(tokenizer, replace(steering, defaults=tuple(values[name] for name in steering.names)))


def companions_of(labels: ArrayLike, rewards: ArrayLike, steering: Steering) -> tuple[tuple[int, ...], ...]:
    """For each value of each attribute the `best_values` of the answers labelled with it [., K], by their mean reward,
    the best first."""
    table, worth = np.asarray(labels), np.asarray(rewards, dtype=np.float64)
    found: dict[tuple[int, ...], float] = {}
    for column in table.T:
        for value in range(steering.lowest, steering.highest + 1):
            own = column == value
            if own.any():
                best = best_values(table[own], worth[own])
                found[best] = float(worth[(table == best).all(1)].mean())
    return tuple(sorted(found, key=lambda values: (-found[values], values)))


def best_values(labels: ArrayLike, rewards: ArrayLike) -> tuple[int, ...]:
    """The labels [n, K] that are the most frequent among the tenth of the answers with the highest rewards [n]: values
    that occur together, in answers that are good. Of equally frequent ones, those of the better answer."""
    table, order = np.asarray(labels), np.argsort(-np.asarray(rewards, dtype=np.float64), kind="stable")
    rows = [tuple(int(value) for value in table[index]) for index in order[: max(1, round(BEST * len(order)))]]
    return max(dict.fromkeys(rows), key=rows.count)
