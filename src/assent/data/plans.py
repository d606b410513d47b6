"""Examples as the text that a chat template makes of them, cut into the pieces that become tokens."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from assent.data.marks import EMPTY_THOUGHT, THOUGHT_ENDS, Place
from assent.data.probes import Habits
from assent.data.records import Example, Message, Pair, RowError
from assent.data.spelling import STAND_INS, Spelling, any_of
from assent.data.steering import ANSWER
from assent.data.template import Conversation, Template, choices
from assent.data.turns import settled, trained_turns
from assent.errors import ModelError

OTHER_TURNS = "; --data.turns last trains the last turn alone, --data.turns each makes a row of each turn"


@dataclass(frozen=True, slots=True)
class Piece:
    """`text` is encoded on its own; `left` is what stands before it. Of a `trained` piece, `lead` is read only, and the
    turn's end is the end token behind `passed` others, or `added` where there is none."""

    left: str
    text: str
    trained: bool = True
    lead: str = ""
    passed: int = 0
    added: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """An example as rendered text, each response in one piece per trained turn. `prompt` is None for raw text. With
    `hidden` the tokenizer with renamed control tokens reads it."""

    prompt: str | None
    responses: tuple[tuple[Piece, ...], ...]
    hidden: bool

    @property
    def pieces(self) -> list[Piece]:
        prompt = [] if self.prompt is None else [Piece("", self.prompt)]
        return prompt + [
            part
            for pieces in self.responses
            for piece in pieces
            for part in ([piece, Piece(piece.left, piece.lead)] if piece.lead else [piece])
        ]


class Planner:
    """Plans examples. `ends` are the spellings of tokens that end a turn, `ids` those of all added tokens; `rendered`
    rows are taken as they are; `parts` says whether two texts have the same ids together as each alone."""

    def __init__(
        self,
        template: Template,
        habits: Habits,
        spelling: Spelling,
        ends: Sequence[str],
        ids: Mapping[str, int],
        rendered: bool,
        parts: Callable[[str, str], bool],
    ) -> None:
        self.template, self.habits, self.spelling, self.ids, self.rendered = template, habits, spelling, ids, rendered
        self.parts = parts
        self._end_pattern = any_of(ends)

    def plan(self, example: Example) -> Plan:
        """Renders an example and cuts the text into pieces. Raises `RowError` where something of it gets lost."""
        if self.rendered:
            return self._plan_rendered(example)
        if any(message.role == "text" for response in example.responses for message in response.messages):
            return self._plan_text(example)
        if not example.prompt:
            raise RowError("prompt", "is empty: there is no message to answer")
        for index, response in enumerate(example.responses):
            ends = [message.role for message in (*response.messages[:1], *response.messages[-1:])]
            if ends != ["assistant", "assistant"]:
                raise RowError(column_of(example, index), "must begin and end with an assistant message")
            if not trained_turns(response.messages):
                raise RowError(column_of(example, index), "no turn is trained: all have weight 0")
        example = settled(example)
        own = [self.talk(example, example.prompt)]
        own += [self.talk(example, example.prompt + response.messages) for response in example.responses]
        hidden = any(self._spelled(talk) for talk in own[1:] or own)
        if hidden:
            for talk in own:
                _refuse_stand_ins("prompt", (talk.messages, talk.tools, talk.variables))
            own = [self._hidden(talk) for talk in own]
        prompt, *responses = own
        start = self.template.render(_begun(prompt, responses), True, "prompt")
        if not responses:
            places = self.template.place(prompt, start, True, "prompt")
            _check_order(prompt, places, len(places), len(start))
        reveal = self.spelling.reveal if hidden else str
        pieces = [
            self._cut_turns(talk, len(prompt.messages), start, column_of(example, index))
            for index, talk in enumerate(responses)
        ]
        return Plan(
            prompt=reveal(start),
            responses=tuple(
                tuple(replace(p, left=reveal(p.left), text=reveal(p.text), lead=reveal(p.lead)) for p in turns)
                for turns in pieces
            ),
            hidden=hidden,
        )

    def _spelled(self, talk: Conversation) -> bool:
        """Whether a text spells a token that it must not be read as."""
        return (
            any(
                self.spelling.spelled(value, message["role"] == "assistant")
                for message in talk.messages
                for key, value in message.items()
                if key != "role"
            )
            or self.spelling.spelled(talk.tools)
            or self.spelling.spelled(talk.variables)
        )

    def _hidden(self, talk: Conversation) -> Conversation:
        hide = self.spelling.hide
        messages = [
            {
                key: value if key == "role" else hide(value, message["role"] == "assistant")
                for key, value in message.items()
            }
            for message in talk.messages
        ]
        return replace(talk, messages=messages, tools=hide(talk.tools), variables=hide(talk.variables))

    def _plan_text(self, example: Example) -> Plan:
        """Raw text: trained as a whole, after one BOS (or EOS) token."""
        if example.prompt or any(len(response.messages) != 1 for response in example.responses):
            raise RowError("text", "raw text cannot be mixed with chat messages")
        texts = [response.text for response in example.responses]
        hidden = any(self.spelling.spelled(text) for text in texts)
        if hidden:
            _refuse_stand_ins("text", texts)
            texts = [self.spelling.reveal(self.spelling.hide(text)) for text in texts]
        return Plan(prompt=None, responses=tuple((Piece("", text),) for text in texts), hidden=hidden)

    def _plan_rendered(self, example: Example) -> Plan:
        """Text that a template has written: as it is, but for a BOS that the template would write and it lacks."""
        roles = [message.role for message in example.prompt]
        answers = [[message.role for message in response.messages] for response in example.responses]
        raw = not roles and answers in ([["text"]],)
        if not raw and (roles != ["user"] or any(answer != ["assistant"] for answer in answers)):
            raise RowError(None, "--data.rendered is for rows of text, or of a prompt's text and its answers'")
        texts = [response.text for response in example.responses]
        prompt = None if raw else self._with_bos(example.prompt[0].content)
        texts = [self._with_bos(text) for text in texts] if raw else texts
        pieces = []
        for text in texts:
            ends = list(self._end_pattern.finditer(text))
            ended = bool(ends) and not text[ends[-1].end() :].strip()
            pieces.append((Piece(prompt or "", text, passed=len(ends) - ended),))
        return Plan(prompt, tuple(pieces), hidden=False)

    def _with_bos(self, text: str) -> str:
        bos = self.template.tokenizer.bos_token
        return bos + text if self._writes_bos and not text.startswith(bos) else text

    @cached_property
    def _writes_bos(self) -> bool:
        bos, first = self.template.tokenizer.bos_token, self.template.tokenizer("a")["input_ids"][:1]
        if bos is None:
            return False
        return first == [self.template.tokenizer.bos_token_id] or bos in self.habits.start

    def _cut_turns(self, talk: Conversation, prompt: int, start: str, column: str) -> list[Piece]:
        """What the template writes after `start`, cut where each trained turn's generation prompt ends."""
        whole = self.template.render(talk, False, column)
        turns = [index for index in range(prompt, len(talk.messages)) if index not in talk.context]
        cuts = []
        for number, turn in enumerate(turns, 1):
            before = _asked(replace(talk, messages=talk.messages[:turn]), talk.messages[turn])
            left = start if turn == prompt else self.template.render(before, True, column)
            if not whole.startswith(left) or not whole.startswith(start):
                raise self._differs(talk, turn, number, left, column)
            cuts.append(len(left))
        try:
            places = self.template.place(talk, whole, False, column)
        except RowError as error:
            dropped = (error.column or "").endswith("reasoning_content") or _has_thought(talk, turns[:-1])
            raise RowError(error.column, error.reason + (OTHER_TURNS if dropped and len(turns) > 1 else "")) from None
        _check_order(talk, places, prompt, len(start))
        if not any(token in self.habits.tail for token in self.habits.ends):
            whole = whole.removesuffix(self.habits.tail) + self.habits.tail.rstrip()
        pieces = [] if cuts[0] == len(start) else [Piece(start, whole[len(start) : cuts[0]], trained=False)]
        begins = [
            cut if (place := places[turn]) is None else place.start for turn, cut in zip(turns, cuts, strict=True)
        ]
        heads = [whole[cut : max(cut, begin)] for cut, begin in zip(cuts, begins, strict=True)]
        for number, (turn, cut, head) in enumerate(zip(turns, cuts, heads, strict=True), 1):
            if head and not self._parts(whole[:cut], whole[cut:]):
                raise self._differs(talk, turn, number, whole[:cut], column)
            if THOUGHT_ENDS.search(head) and THOUGHT_ENDS.search(str(talk.messages[turn]["content"])):
                raise RowError(f"messages[{turn}]", "the chat template writes a thought before the answer's own; "
                               "give that as reasoning_content")  # fmt: skip
        leads = _leads(talk, turns, heads)
        for turn, lead, cut, end in zip(turns, leads, cuts, [*cuts[1:], len(whole)], strict=True):
            place = places[turn]
            passed = len(self._end_pattern.findall(whole[cut : cut if place is None else place.end]))
            calls = self.habits.added_to_calls if "tool_calls" in talk.messages[turn] else self.habits.added
            added = None if calls is None else self.ids[calls]
            pieces.append(Piece(whole[:cut], whole[cut:end], lead=lead, passed=passed, added=added))
        return pieces

    def _parts(self, left: str, right: str) -> bool:
        """Whether what the template writes on both sides of a cut is parted there as tokens, too."""
        around = (re.split(self.spelling.pattern, left)[-1][-40:], right[: len(right) - len(right.lstrip())])
        return self.parts(*around) if all(around) else True

    def _differs(self, talk: Conversation, turn: int, number: int, left: str, column: str) -> RowError:
        """Why a turn cannot be told from what stands before it, and what would help."""

        def fits(other: Conversation, at: int = turn) -> bool:
            try:
                before = _asked(replace(other, messages=other.messages[:at]), other.messages[at])
                opened = self.template.render(before, True, column)
                whole = self.template.render(replace(other, messages=other.messages[: at + 1]), False, column)
            except RowError:
                return False
            return whole.startswith(opened) and self._parts(opened, whole[len(opened) :])

        what = f"the chat template writes what comes before assistant turn {number} differently once the turn follows"
        starts = [match.start() for match in any_of(self.habits.around).finditer(left)]
        reason = f"{what}; its generation prompt ends with {left[max([len(left) - 60, *starts[-1:]]) :]!r}"
        last = max(index for index in range(turn, len(talk.messages)) if index not in talk.context)
        if (last > turn or number > 1) and fits(talk, last):
            return RowError(column, what + OTHER_TURNS)
        if switch := self.template.switch(talk, fits):
            return RowError(column, f"{reason}. {switch} would do, or the row's own chat_template_kwargs")
        return RowError(column, f"{reason}. {choices()}")

    def talk(self, example: Example, messages: Sequence[Message]) -> Conversation:
        """The messages, which begin with the example's prompt, as the template is given them."""
        context = frozenset(
            index
            for index, message in enumerate(messages)
            if index < len(example.prompt) or message.role != "assistant" or not message.trained
        )
        return self.template.conversation(messages, example.tools, example.template_kwargs, context)

    def require_template(self, examples: Sequence[Example]) -> None:
        """Raises `ModelError` where conversations need a chat template and there is none."""
        if self.template.joined is None or self.rendered:
            return
        lost = sum(
            bool(e.tools) or [m.role for m in e.prompt] != ["user"] or any(len(r.messages) > 1 for r in e.responses)
            for e in examples
            if e.prompt
        )
        if lost:
            raise ModelError(
                f"{self.template.source} has no chat template, and {lost} of {len(examples)} rows are conversations: "
                f"a system message, several turns or tools. {choices()}"
            )


def _asked(before: Conversation, turn: Mapping[str, Any]) -> Conversation:
    """A conversation up to an assistant turn, whose attributes the generation prompt asks for."""
    if "attributes" not in turn:
        return before
    return replace(before, variables={**before.variables, ANSWER: turn["attributes"]})


def _begun(prompt: Conversation, responses: Sequence[Conversation]) -> Conversation:
    """The prompt as it is rendered for its responses. Raises `RowError` where they are asked for otherwise."""
    firsts = [talk.messages[len(prompt.messages)] for talk in responses]
    if len({tuple(turn.get("attributes", {}).items()) for turn in firsts}) > 1:
        raise RowError("responses", "have different attributes, so they have no prompt in common: make a row of each")
    return _asked(prompt, firsts[0]) if firsts else prompt


def column_of(example: Example, index: int) -> str:
    """What a response is called in messages to people."""
    for pair in example.feedback:
        if isinstance(pair, Pair) and index in (pair.chosen, pair.rejected):
            return "chosen" if index == pair.chosen else "rejected"
    return "response" if len(example.responses) == 1 else f"response {index + 1}"


def _refuse_stand_ins(column: str, value: Any) -> None:
    if isinstance(value, str):
        if STAND_INS.search(value):
            raise RowError(column, "the text holds control tokens and the noncharacters U+10FFFE or U+10FFFF")
    elif isinstance(value, Mapping):
        _refuse_stand_ins(column, [*value.keys(), *value.values()])
    elif isinstance(value, list | tuple):
        for each in value:
            _refuse_stand_ins(column, each)


def _check_order(talk: Conversation, places: list[Place | None], prompt: int, cut: int) -> None:
    """Messages must stand in their order, those of the prompt before the cut, those of the response behind it; only
    instructions may be moved."""
    last = 0
    for index, (message, place) in enumerate(zip(talk.messages, places, strict=True)):
        if place is None or message["role"] in ("system", "developer"):
            continue
        if place.core < last or (place.end > cut if index < prompt else place.core < cut):
            raise RowError(f"messages[{index}]", "the chat template writes it in another place")
        last = place.end if index >= prompt else place.core


def _leads(talk: Conversation, turns: list[int], heads: list[str]) -> list[str]:
    """Of what the template writes by itself before each turn's text, what is read only: an empty thought that not all
    turns without a thought of their own get, and what not all plain answers get. It is for the template to write, and
    would be learnt as a habit of some turns only."""
    own = [_has_thought(talk, [turn]) for turn in turns]
    empty = [EMPTY_THOUGHT.search(head) for head in heads]
    if {bool(found) for found, thought in zip(empty, own, strict=True) if not thought} == {True, False}:
        return [
            head[: found.end()] if found and not t else "" for head, found, t in zip(heads, empty, own, strict=True)
        ]
    plain = [not t and "tool_calls" not in talk.messages[turn] for turn, t in zip(turns, own, strict=True)]
    compared = [head for head, counts in zip(heads, plain, strict=True) if counts]
    if len({"".join(head.split()) for head in compared}) < 2:
        return [""] * len(heads)
    shared = len(os.path.commonprefix([head[::-1] for head in compared]))
    return [head[: len(head) - shared] if counts else "" for head, counts in zip(heads, plain, strict=True)]


def _has_thought(talk: Conversation, turns: list[int]) -> bool:
    return any(
        bool(talk.messages[turn].get("reasoning_content"))
        or bool(THOUGHT_ENDS.search(str(talk.messages[turn]["content"])))
        for turn in turns
    )
