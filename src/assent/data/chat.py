"""The one place where text becomes tokens.

    prompt     ids of template(prompt messages, add_generation_prompt=True): what generation starts from
    response   ids of what the template writes after exactly that text once the response's messages follow, up to and
               including the token that ends the last turn

Every token the model has to write itself is trained: each trained assistant turn from the end of its generation prompt
to its end-of-turn token. Role headers and other roles' turns inside a response are not, nor is what the template writes
by itself before some of a row's answers only (an empty thought). A row of which something gets lost, or whose spans
cannot be derived exactly, is rejected by `RowError`; nothing is guessed.

Message text is never read as control tokens, but for those that answers are made of (docs/chat.md).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from assent.data.extent import characters, too_long
from assent.data.feedback import pair_fields, response_fields, tree_pairs
from assent.data.marks import THOUGHT_ENDS
from assent.data.plans import Piece, Plan, Planner, column_of
from assent.data.probes import OPENED, habits
from assent.data.records import Example, Message, Problem, RowError
from assent.data.spelling import Spelling, partners
from assent.data.template import Template
from assent.data.tree import Branch, TokenTree
from assent.errors import ModelError

log = logging.getLogger(__name__)

CHUNK, CHUNK_CHARACTERS = 1024, 2**20
"""Examples encoded in one call, and about how many characters: encodings take some hundred bytes for each."""
NAMED_ENDS = re.compile("begin|start|end", re.IGNORECASE)
MARKER = re.compile(r"\s*(<[|｜][^|｜<>\s]+[|｜]>)")


class Chat:
    """A tokenizer and its chat template. `template` (a built-in name or a Jinja file) replaces the tokenizer's own;
    `variables` are given to it. With `rendered`, rows are text that a template has written already.

    `asked_for` are the template and the variables that were given.
    `eos_ids` are the ids that generation stops at: the tokenizer's EOS, and what the template writes after an answer;
    `end_ids` are all that end an assistant turn somewhere in a conversation.
    Without any template a prompt must be one user message; its text and the answer's are joined as they are.
    Errors: `ModelError` for a tokenizer that cannot be used, `ConfigError` for a bad template or variable.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str | Path | None = None,
        variables: Mapping[str, Any] | None = None,
        *,
        rendered: bool = False,
    ) -> None:
        if not tokenizer.is_fast:
            raise ModelError(f"{tokenizer.name_or_path} has no tokenizer.json; assent needs a fast tokenizer.")
        self.tokenizer = tokenizer
        self.rendered = rendered
        self.asked_for = (template, dict(variables or {}))
        self._template = Template(tokenizer, template, variables)
        self._source = self._template.source
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        if "strftime_now" in self._template.text:
            log.warning("the chat template of %s can write today's date: tokens may differ tomorrow", self._source)
        self._habits = habits(self._template)
        if (end := MARKER.match(self._habits.tail)) and end[1] not in tokenizer.added_tokens_encoder:
            log.warning("%s ends answers with %s, which is no token of the tokenizer but letters", self._source, end[1])
        self._learn_tokens()
        self._closed_pieces = self._encodes_pieces_alone()
        self._parted: dict[tuple[str, str], bool] = {}
        self._opened: dict[tuple[int, ...], str] = {(): ""}

    def _learn_tokens(self) -> None:
        tokenizer, found = self.tokenizer, self._habits
        ids: dict[str, int] = tokenizer.added_tokens_encoder
        eos = [i for i in [tokenizer.eos_token_id] if i is not None]
        self.eos_ids = frozenset([ids[token] for token in found.stops] + eos)
        if not self.eos_ids:
            raise ModelError(f"{self._source}: neither the tokenizer nor its chat template has an end-of-turn token.")
        self._eos_id = min(self.eos_ids) if tokenizer.eos_token_id is None else tokenizer.eos_token_id
        self.end_ids = frozenset([ids[token] for token in found.ends]) | self.eos_ids
        self._end_array = np.array(sorted(self.end_ids), dtype=np.int32)
        specials = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._controls = {token: ids[token] for token in sorted(specials | found.written | set(found.ends))}
        silent = {tokenizer.bos_token, tokenizer.pad_token, tokenizer.eos_token}
        self._silent_ids = {ids[token] for token in silent if token in ids} | self.eos_ids
        # What begins and ends something by name may be any protocol's; it belongs to answers if the template knows it.
        answers = {
            token
            for token in self._controls
            if token not in found.around | silent
            and any(partner in ids for partner in partners(token))
            and (token in self._template.text or not NAMED_ENDS.search(token))
        }
        self._spelling = Spelling(self._backend, self._controls, answers)
        spelled_ends = tokenizer.convert_ids_to_tokens(sorted(self.end_ids))
        self._planner = Planner(self._template, found, self._spelling, spelled_ends, ids, self.rendered, self._parts)

    # ------------------------------------------------------------------------------------------------ public face

    def prompt_ids(self, prompt: Example | Sequence[Message]) -> np.ndarray:
        """Token ids that generation starts from, [n] int32: of messages, or of an example's prompt with its tools and
        template variables. Errors: `RowError` where the template refuses."""
        plan = self._planner.plan(_prompt_of(prompt))
        return self._required(self._encode([plan])[0][0], "prompt")

    def prompt_text(self, prompt: Example | Sequence[Message]) -> str:
        """What the template writes for it, up to where the answer begins. Errors as in `prompt_ids`."""
        example = _prompt_of(prompt)
        return self._template.render(self._planner.talk(example, example.prompt), True, "prompt")

    def tree(self, example: Example, max_length: int, key: int = 0) -> TokenTree:
        """The example as token ids, with one branch per response, in order, its `Pair` feedback as pairs, and its other
        feedback as fields per response (`assent.data.feedback`).

        A prompt of more than `max_length` - 1 tokens is a `RowError`; a longer response is cut, then without EOS. A row
        that is `too_long` by its characters is a `RowError`, too.
        """
        if error := self.too_long(example, max_length):
            raise error
        plan = self._planner.plan(example)
        return self._build(example, plan, self._encode([plan])[0], max_length, key)

    def trees(self, examples: Sequence[Example], max_length: int) -> tuple[list[TokenTree], list[Problem]]:
        """Every example that can be tokens, and the problems of the others, both in order; `TokenTree.key` is the
        example's index. Raises `ModelError` where conversations need a chat template and there is none."""
        self._planner.require_template(examples)
        trees: list[TokenTree] = []
        problems: list[tuple[int, RowError]] = []
        for start, end in _chunks(examples):
            plans: list[tuple[int, Plan]] = []
            for index, example in enumerate(examples[start:end], start):
                try:
                    if error := self.too_long(example, max_length):
                        raise error
                    plans.append((index, self._planner.plan(example)))
                except RowError as error:
                    problems.append((index, error))
            for (index, plan), ids in zip(plans, self._encode([plan for _, plan in plans]), strict=True):
                try:
                    trees.append(self._build(examples[index], plan, ids, max_length, index))
                except RowError as error:
                    problems.append((index, error))
        problems.sort(key=lambda problem: problem[0])
        return trees, [error.at(examples[index].origin) for index, error in problems]

    def too_long(self, example: Example, max_length: int) -> RowError | None:
        """The error of a row with more characters than `max_length` tokens could ever hold (`assent.data.extent`)."""
        return too_long(example, self._longest_token, max_length)

    @cached_property
    def _longest_token(self) -> int:
        return max(map(len, self.tokenizer.get_vocab()))

    def decode(
        self, ids: Sequence[int] | np.ndarray, prompt: Sequence[int] | np.ndarray = (), *, finished: bool = False
    ) -> str:
        """Text of an answer, without BOS, pad and the tokens that generation stops at. Behind the ids of its `prompt`,
        it begins with what the generation prompt has opened ("<think>"). The last token of one that `finished` ended
        it, whichever it is, and is no text."""
        kept = [int(i) for i in (ids[:-1] if finished else ids) if int(i) not in self._silent_ids]
        return self._opening(prompt) + self._spell(kept)

    def spell(self, ids: Sequence[int] | np.ndarray) -> str:
        """All of the ids as text. The spelling of a control token that is only text stands between ⟪ and ⟫."""
        made: list[str] = []
        run: list[int] = []
        controls = set(self._controls.values())
        for i in [*map(int, ids), None]:
            if i is not None and i not in controls:
                run.append(i)
                continue
            made.append(self._spelling.pattern.sub(r"⟪\g<0>⟫", self._spell(run)) if run else "")
            made.append("" if i is None else self.tokenizer.convert_ids_to_tokens(i))
            run = []
        return "".join(made)

    def looks_rendered(self, example: Example) -> bool:
        """Whether a text of the example begins or ends with a control token, as if a template had written it."""
        messages = [*example.prompt, *(message for response in example.responses for message in response.messages)]
        texts = [message.content.strip() for message in messages]
        return any(self._spelling.pattern.match(text) or text.endswith((*self._controls,)) for text in texts)

    @property
    def template(self) -> str:
        """The text of the template that conversations are written by."""
        return self._template.joined or self.tokenizer.get_chat_template()

    def speaks_like(self, other: Chat) -> bool:
        """Whether the other gives every conversation the same token ids."""
        mine, its = [  # what pads a batch is in no conversation
            {name: token for name, token in chat.tokenizer.special_tokens_map.items() if name != "pad_token"}
            for chat in (self, other)
        ]
        return (self.template, self.rendered, mine) == (other.template, other.rendered, its) and _unset(
            self._backend
        ).to_str() == _unset(other._backend).to_str()

    # ------------------------------------------------------------------------------------------------ tokens

    def _encode(self, plans: Sequence[Plan]) -> list[list[np.ndarray | None]]:
        """Ids of every piece of every plan; None where a piece does not begin at a token boundary."""
        done: dict[bool, Iterator[np.ndarray | None]] = {}
        for hidden in {plan.hidden for plan in plans}:
            backend = self._spelling.backend if hidden else self._backend
            pieces = [piece for plan in plans if plan.hidden == hidden for piece in plan.pieces]
            done[hidden] = iter(self._encode_pieces(backend, pieces))
        return [[next(done[plan.hidden]) for _ in plan.pieces] for plan in plans]

    def _encode_pieces(self, backend: Tokenizer, pieces: list[Piece]) -> list[np.ndarray | None]:
        if self._closed_pieces:
            return [*_encode_texts(backend, [piece.text for piece in pieces])]
        # Tokenizers that put a space before every text: a piece is what follows the ids of the text before it.
        lefts = _encode_texts(backend, [piece.left for piece in pieces])
        wholes = _encode_texts(backend, [piece.left + piece.text for piece in pieces])
        return [
            whole[len(left) :] if np.array_equal(whole[: len(left)], left) else None
            for left, whole in zip(lefts, wholes, strict=True)
        ]

    def _build(
        self, example: Example, plan: Plan, ids: list[np.ndarray | None], max_length: int, key: int
    ) -> TokenTree:
        """Puts encoded pieces together under the length policy."""
        encoded = iter(ids)
        if self.rendered and plan.prompt is None:
            first = self._required(next(encoded), "text")
            if len(first) < 2:
                raise RowError("text", "is too short: nothing follows its first token")
            prompt, encoded = first[:1], iter([first[1:]])
        else:
            prompt = self._text_start if plan.prompt is None else self._required(next(encoded), "prompt")
        room = max_length - len(prompt)
        if room < 1:
            reason = f"has {len(prompt)} tokens: no room for an answer within {max_length} (--data.max_length)"
            raise RowError("prompt", reason)
        branches = []
        for index, pieces in enumerate(plan.responses):
            column = column_of(example, index)
            turns = [
                (piece, self._required(next(encoded), column), next(encoded) if piece.lead else None)
                for piece in pieces
            ]
            branches.append(self._branch(turns, room, column, example.responses[index].finished))
        pairs = tree_pairs(example, branches, self.eos_ids)
        fields = response_fields(example, branches, self.eos_ids)
        return TokenTree(prompt, tuple(branches), pairs, fields, key, pair_fields(example))

    def _branch(
        self, turns: list[tuple[Piece, np.ndarray, np.ndarray | None]], room: int, column: str, finished: bool
    ) -> Branch:
        """Joins pieces: each turn is trained up to its end-of-turn token; what follows is the next turn's lead. An
        answer that is not `finished` ends before it."""
        ids, trained = [], []
        for number, (piece, turn, lead) in enumerate(turns, 1):
            ends = np.flatnonzero(np.isin(turn, self._end_array))[piece.passed :]
            last = number == len(turns)
            if piece.trained and not len(ends) and not last:
                raise RowError(column, f"the chat template writes no end-of-turn token after assistant turn {number}")
            if last and not finished:
                if self._habits.tail[:1].isspace():
                    raise RowError(column, "was cut off, and the chat template would write blanks behind it")
                turn, ends = turn[: ends[0]] if len(ends) else turn, ends[:0]
            elif not len(ends) and last:
                turn = np.append(turn, np.int32(self._eos_id if piece.added is None else piece.added))
            length = (ends[0] + 1 if len(ends) else len(turn)) if piece.trained else 0
            skipped = 0 if lead is None else _agree(lead, turn)
            places = np.arange(len(turn))
            ids.append(turn)
            trained.append((places < length) & (places >= skipped))
        mask = np.concatenate(trained)[:room]
        if not mask.any():
            raise RowError(column, f"nothing trained is left within {room} tokens (--data.max_length)")
        end = np.flatnonzero(mask)[-1] + 1  # what the template writes after the last EOS, or a cut leaves, is dropped
        return Branch(ids=np.concatenate(ids)[:end], trained=mask[:end])

    @staticmethod
    def _required(ids: np.ndarray | None, column: str) -> np.ndarray:
        if ids is None:
            raise RowError(column, "its first token would reach back into the text before it")
        return ids

    # ------------------------------------------------------------------------------------------------ the tokenizer

    def _spell(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _opening(self, prompt: Sequence[int] | np.ndarray) -> str:
        """What the generation prompt has opened for the answer, if anything."""
        end = tuple(int(i) for i in prompt[-16:])
        if end not in self._opened:
            self._opened[end] = self._opened_by(end)
        return self._opened[end]

    def _opened_by(self, end: tuple[int, ...]) -> str:
        opened = OPENED.search(self._spell([*end]))
        if opened is None or self._habits.header.rstrip().endswith(opened[1]):
            return ""
        return opened[0] if any(THOUGHT_ENDS.fullmatch(partner) for partner in partners(opened[1])) else ""

    def _parts(self, left: str, right: str) -> bool:
        """Whether two texts have the same ids together as each alone."""
        if (left, right) not in self._parted:
            one, other, both = _encode_texts(self._backend, [left, right, left + right])
            self._parted[left, right] = not self._closed_pieces or np.array_equal(np.append(one, other), both)
        return self._parted[left, right]

    def _encodes_pieces_alone(self) -> bool:
        """Whether a piece has the same ids alone as behind other text (tokenizers that add a space have not)."""
        before = [".", "\n", *self._controls][:3]
        alone, *joined = _encode_texts(self._backend, ["Hello", *(text + "Hello" for text in before)])
        lefts = _encode_texts(self._backend, before)
        return all(np.array_equal(np.append(left, alone), both) for left, both in zip(lefts, joined, strict=True))

    @cached_property
    def _text_start(self) -> np.ndarray:
        bos = self.tokenizer.bos_token_id
        return np.array([self._eos_id if bos is None else bos], dtype=np.int32)


def _chunks(examples: Sequence[Example]) -> Iterator[tuple[int, int]]:
    """Where each run of examples begins and ends that is encoded in one call."""
    start = size = 0
    for index, example in enumerate(examples):
        if index > start and (index - start == CHUNK or size > CHUNK_CHARACTERS):
            yield start, index
            start, size = index, 0
        size += characters(example)
    if examples:
        yield start, len(examples)


def _prompt_of(prompt: Example | Sequence[Message]) -> Example:
    if isinstance(prompt, Example):
        return Example(prompt.prompt, tools=prompt.tools, template_kwargs=prompt.template_kwargs)
    return Example(tuple(prompt))


def _unset(backend: Tokenizer) -> Tokenizer:
    """Truncation and padding may have been left on by another user of the tokenizer."""
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = False
    return backend


def _encode_texts(backend: Tokenizer, texts: list[str]) -> list[np.ndarray]:
    encodings = _unset(backend).encode_batch_fast(texts, add_special_tokens=False)
    return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]


def _agree(one: np.ndarray, other: np.ndarray) -> int:
    """How many first tokens are the same."""
    size = min(len(one), len(other))
    differ = np.flatnonzero(one[:size] != other[:size])
    return int(differ[0]) if len(differ) else size
