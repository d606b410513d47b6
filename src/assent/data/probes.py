"""What a chat template does by itself, learnt from a few made-up exchanges: which tokens end a turn, in the middle of a
conversation and at its end, which generation stops at, and which stand around messages."""

from __future__ import annotations

import re
from dataclasses import dataclass

from assent.data.records import Message, RowError, ToolCall
from assent.data.spelling import partners
from assent.data.template import Template
from assent.errors import ModelError

SYSTEM = Message("system", "Instruction.")
ASKED, AGAIN = Message("user", "Question?"), Message("user", "Whatever.")
ANSWER, SECOND = Message("assistant", "Certainly."), Message("assistant", "Definitely.")
THOUGHT = Message("assistant", "Certainly.", reasoning="Remember.")
CALL = Message("assistant", "", tool_calls=(ToolCall("lookup", '{"word": "egg"}', "abcdefghi"),))
RESULT = Message("tool", "Breakfast.", name="lookup", tool_call_id="abcdefghi")

OPENED = re.compile(r"(<\|?[^/|<>\s][^|<>\s]*>|\[[A-Z_]+\]|◁\w+▷)\s*$")


@dataclass(frozen=True, slots=True)
class Gap:
    """Added tokens that a template writes between two messages' texts; `left` and `right` are the messages' indices."""

    left: int | None
    right: int | None
    text: str
    tokens: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Habits:
    """What a template does by itself.

    ends      tokens that end an assistant turn somewhere in a conversation
    stops     those of them that generation stops at: not what stands inside a turn, between its reasoning and answer
    written   added tokens that it writes around plain messages
    around    added tokens that belong to no answer: starts and ends of messages
    added     the token that stands behind an answer in the middle of a conversation, where none does at its end;
              added_to_calls likewise behind a tool call
    tail      what it writes behind the last answer
    header    what it writes before an answer that is not the last
    start     what it writes before a first message of the user
    """

    ends: tuple[str, ...]
    stops: tuple[str, ...]
    written: frozenset[str]
    around: frozenset[str]
    added: str | None
    added_to_calls: str | None
    tail: str
    header: str
    start: str


def habits(template: Template) -> Habits:
    """Asks the template. Exchanges that it refuses teach nothing; but a question and its answer must be written, else
    it is a `ModelError`."""
    tokens = [
        token.content for token in template.tokenizer.added_tokens_decoder.values() if not token.content.isspace()
    ]
    known = set(tokens)
    pattern = re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)")

    def ask(*messages: Message, generate: bool = False) -> list[Gap]:
        try:
            return _gaps(template, messages, pattern, generate)
        except RowError:
            return []

    try:
        single = _gaps(template, (ASKED, ANSWER), pattern, False)
    except RowError as error:
        raise ModelError(f"the chat template of {template.source} is unusable: {error}") from None
    plain, prompt = ask(ASKED, ANSWER, AGAIN, SECOND), ask(ASKED, generate=True)
    system, thought = ask(SYSTEM, ASKED, ANSWER), ask(ASKED, THOUGHT)
    calls, called = ask(ASKED, CALL, RESULT, SECOND), ask(ASKED, CALL)
    tail = single[-1]
    middle = plain[2].tokens if plain else tail.tokens
    silent = {template.tokenizer.bos_token, template.tokenizer.eos_token, template.tokenizer.pad_token}
    paired = {token for token in known - silent if known.intersection(partners(token))}
    around = set[str]().union(*(_around(gaps, paired) for gaps in (plain, single, prompt, system)))
    results = {token for gap in calls[2:-1] for token in gap.tokens}
    around |= _around(calls, paired, answer=1) & results
    ends = _ends(middle, tail.tokens, around)
    call_ends = _ends(calls[2].tokens, called[-1].tokens, around) if calls and called else ends
    inside = {token for gap in thought if gap.left == gap.right for token in gap.tokens}
    return Habits(
        ends=tuple(dict.fromkeys([*ends, *call_ends])),
        stops=tuple(token for token in dict.fromkeys([*ends, *call_ends]) if token not in inside),
        written=frozenset(token for gap in [*plain, *single, *prompt, *system] for token in gap.tokens),
        around=frozenset(around) | {*ends, *call_ends},
        added=_missing(ends, tail.tokens),
        added_to_calls=_missing(call_ends, called[-1].tokens) if calls and called else None,
        tail=tail.text,
        header=plain[1].text if plain else "",
        start=single[0].text,
    )


def _gaps(template: Template, messages: tuple[Message, ...], pattern: re.Pattern[str], generate: bool) -> list[Gap]:
    """What stands between the messages' texts, in order; within a message, what parts its reasoning from its answer.
    Raises `RowError` for what the template cannot write."""
    talk = template.conversation(messages)
    rendered = template.render(talk, generate, "response")
    places = template.place(talk, rendered, generate, "response")
    made, position, before = list[Gap](), 0, None
    for index, (message, place) in enumerate(zip(messages, places, strict=True)):
        assert place is not None
        parts = [(place.start, place.end)]
        if message.reasoning:
            cut = rendered.index(message.content, place.start)
            parts = [(place.start, place.start + len(message.reasoning)), (cut, place.end)]
        for start, end in parts:
            if start < position:
                raise RowError(f"messages[{index}]", "the chat template writes it in another place")
            text = rendered[position:start]
            made.append(Gap(before, index, text, tuple(pattern.findall(text))))
            position, before = end, index
    text = rendered[position:]
    return [*made, Gap(before, None, text, tuple(pattern.findall(text)))]


def _around(gaps: list[Gap], paired: set[str], answer: int | None = None) -> set[str]:
    """Tokens of the gaps without those that open and close something within an answer: of the `paired` ones only those
    count that stand around a message (but the `answer`)."""
    wrapping = {
        token
        for gap, following in zip(gaps, gaps[1:], strict=False)
        if gap.right != answer
        for token in gap.tokens
        if set(partners(token)) & set(following.tokens)
    }
    wrapping |= {partner for token in wrapping for partner in partners(token)}
    return {token for gap in gaps for token in gap.tokens if token in wrapping or token not in paired}


def _ends(middle: tuple[str, ...], last: tuple[str, ...], around: set[str]) -> list[str]:
    """The tokens that end a turn: the last that both have at their beginning, else the first of each."""
    kept = [[token for token in tokens if token in around] for tokens in (middle, last)]
    common = []
    for one, other in zip(*kept, strict=False):
        if one != other:
            break
        common.append(one)
    return common[-1:] or [tokens[0] for tokens in kept if tokens]


def _missing(ends: list[str], last: tuple[str, ...]) -> str | None:
    return ends[0] if ends and not set(ends) & set(last) else None
