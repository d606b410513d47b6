"""The one place where text becomes tokens.

    prompt     ids of template(prompt messages, add_generation_prompt=True): what generation starts from
    response   ids of what the template writes after exactly that text once the response's messages follow, up to and
               including the token that ends the last turn

Every token the model has to write itself is trained: each assistant turn from the end of its generation prompt to its
end-of-turn token. Role headers and other roles' turns inside a response are not. A row whose spans cannot be derived
exactly is rejected by `RowError`; nothing is guessed.

Message text is never read as control tokens. Rows whose text holds the spelling of one ("<|im_end|>") are rendered
with that spelling hidden, and encoded by a copy of the tokenizer in which the control tokens have unguessable names.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jinja2
import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from assent.data.feedback import response_fields, tree_pairs
from assent.data.records import Example, Message, Pair, Problem, RowError
from assent.data.tree import Branch, TokenTree
from assent.errors import ConfigError, ModelError

# Unicode noncharacters: valid in a string, never part of text. HIDE stands around a control token's spelling in
# message text, NAME around the new name of a control token.
HIDE, NAME = "\U0010fffe", "\U0010ffff"

# For tokenizers without a chat template: the prompt's text, then the answer's.
PLAIN_TEMPLATE = (
    "{%- if messages | length > 2 or messages[0]['role'] != 'user' -%}{{- raise_exception('the tokenizer has no chat "
    "template, so only a single user message can be a prompt; give a template with --model.chat_template FILE') -}}"
    "{%- endif -%}{%- for message in messages -%}{{- message['content'] -}}{%- endfor -%}"
)

log = logging.getLogger(__name__)

Turns = tuple[Message, ...]
CHUNK = 1024  # examples encoded in one call


@dataclass(frozen=True, slots=True)
class _Piece:
    """`text` is encoded on its own; `left` is what stands before it."""

    left: str
    text: str


@dataclass(frozen=True, slots=True)
class _Plan:
    """An example as rendered text, each response in one piece per assistant turn. `prompt` is None for raw text. With
    `hidden` the tokenizer with renamed control tokens reads it."""

    prompt: str | None
    responses: tuple[tuple[_Piece, ...], ...]
    hidden: bool

    @property
    def pieces(self) -> list[_Piece]:
        prompt = [] if self.prompt is None else [_Piece("", self.prompt)]
        return prompt + [piece for pieces in self.responses for piece in pieces]


class Chat:
    """A tokenizer and its chat template. `template_file` replaces the tokenizer's own template.

    `eos_ids` are the ids that end an assistant turn: the tokenizer's EOS, and what the template writes after an answer.
    Without any template a prompt must be one user message; its text and the answer's are joined as they are.
    Errors: `ModelError` for a tokenizer that cannot be used, `ConfigError` for a bad template file.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template_file: str | Path | None = None) -> None:
        if not tokenizer.is_fast:
            raise ModelError(f"{tokenizer.name_or_path} has no tokenizer.json; assent needs a fast tokenizer.")
        if template_file is not None:
            tokenizer.chat_template = _read_template(template_file)
        self.tokenizer = tokenizer
        self._source = str(template_file or tokenizer.name_or_path or "the tokenizer")
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        self.template: str = tokenizer.get_chat_template() if tokenizer.chat_template else self._plain_template()
        if "strftime_now" in str(tokenizer.chat_template):
            log.warning("the chat template of %s can write today's date: tokens may differ tomorrow", self._source)
        self._tail, ends, written = self._probe()
        self._ends_bare = not ends
        self.eos_ids = frozenset(ends[:1] + [i for i in [tokenizer.eos_token_id] if i is not None])
        if not self.eos_ids:
            raise ModelError(f"{self._source}: neither the tokenizer nor its chat template has an end-of-turn token.")
        self._eos_id = min(self.eos_ids) if tokenizer.eos_token_id is None else tokenizer.eos_token_id
        self._eos_array = np.array(sorted(self.eos_ids), dtype=np.int32)
        specials = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._controls = specials | written
        longest_first = sorted(self._controls, key=len, reverse=True)
        self._control_pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._closed_pieces = self._encodes_pieces_alone()

    # ------------------------------------------------------------------------------------------------ public face

    def prompt_ids(self, messages: Sequence[Message]) -> np.ndarray:
        """Token ids that generation starts from, [n] int32. Errors: `RowError` where the template refuses."""
        plan = self._plan(Example(prompt=tuple(messages)))
        return self._required(self._encode([plan])[0][0], "prompt")

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """What the template writes for them, up to where the answer begins. Errors as in `prompt_ids`."""
        return self._render(tuple(messages), generate=True, column="prompt")

    def tree(self, example: Example, max_length: int, key: int = 0) -> TokenTree:
        """The example as token ids, with one branch per response, in order, its `Pair` feedback as pairs, and its other
        feedback as fields per response (`assent.data.feedback`).

        A prompt of more than `max_length` - 1 tokens is a `RowError`; a longer response is cut, then without EOS.
        """
        plan = self._plan(example)
        return self._build(example, plan, self._encode([plan])[0], max_length, key)

    def trees(self, examples: Sequence[Example], max_length: int) -> tuple[list[TokenTree], list[Problem]]:
        """Every example that can be tokens, and the problems of the others, both in order; `TokenTree.key` is the
        example's index."""
        trees: list[TokenTree] = []
        problems: list[tuple[int, RowError]] = []
        for start in range(0, len(examples), CHUNK):
            plans: list[tuple[int, _Plan]] = []
            for index, example in enumerate(examples[start : start + CHUNK], start):
                try:
                    plans.append((index, self._plan(example)))
                except RowError as error:
                    problems.append((index, error))
            for (index, plan), ids in zip(plans, self._encode([plan for _, plan in plans]), strict=True):
                try:
                    trees.append(self._build(examples[index], plan, ids, max_length, index))
                except RowError as error:
                    problems.append((index, error))
        problems.sort(key=lambda problem: problem[0])
        return trees, [error.at(examples[index].origin) for index, error in problems]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of an answer; control tokens are left out."""
        kept = [int(i) for i in ids if int(i) not in self.eos_ids]
        return self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def speaks_like(self, other: Chat) -> bool:
        """Whether the other gives every conversation the same token ids."""
        mine, its = [  # what pads a batch is in no conversation
            {name: token for name, token in chat.tokenizer.special_tokens_map.items() if name != "pad_token"}
            for chat in (self, other)
        ]
        return (self.template, mine) == (other.template, its) and _unset(self._backend).to_str() == _unset(
            other._backend
        ).to_str()

    # ------------------------------------------------------------------------------------------------ text

    def _render(self, messages: Sequence[Message], generate: bool, column: str) -> str:
        chat = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return self.tokenizer.apply_chat_template(
                chat, chat_template=self.template, tokenize=False, add_generation_prompt=generate
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise RowError(column, f"the chat template refuses the conversation: {error}") from None

    def _plan(self, example: Example) -> _Plan:
        """Renders an example and cuts the text into pieces."""
        if any(message.role == "text" for response in example.responses for message in response.messages):
            return self._plan_text(example)
        if not example.prompt:
            raise RowError("prompt", "is empty: there is no message to answer")
        prompt, responses = example.prompt, [response.messages for response in example.responses]
        contents = [message.content for messages in (prompt, *responses) for message in messages]
        hidden = any(self._control_pattern.search(content) for content in contents)
        if hidden:
            if any(HIDE in content or NAME in content for content in contents):
                raise RowError("prompt", "the text holds control tokens and the noncharacters U+10FFFE or U+10FFFF")
            prompt, *responses = (self._hide(messages) for messages in (prompt, *responses))
        reveal = self._reveal if hidden else str
        start = self._render(prompt, generate=True, column="prompt")
        pieces = [
            self._cut_turns(prompt, start, messages, _column(example, index))
            for index, messages in enumerate(responses)
        ]
        return _Plan(
            prompt=reveal(start),
            responses=tuple(tuple(_Piece(reveal(p.left), reveal(p.text)) for p in turns) for turns in pieces),
            hidden=hidden,
        )

    def _plan_text(self, example: Example) -> _Plan:
        """Raw text: trained as a whole, after one BOS (or EOS) token."""
        if example.prompt or any(len(response.messages) != 1 for response in example.responses):
            raise RowError("text", "raw text cannot be mixed with chat messages")
        texts = [response.text for response in example.responses]
        hidden = any(self._control_pattern.search(text) for text in texts)
        return _Plan(prompt=None, responses=tuple((_Piece("", text),) for text in texts), hidden=hidden)

    def _cut_turns(self, prompt: Turns, start: str, response: Turns, column: str) -> list[_Piece]:
        """What the template writes after `start`, cut where each assistant turn's generation prompt ends."""
        if not response or response[0].role != "assistant" or response[-1].role != "assistant":
            raise RowError(column, "must begin and end with an assistant message")
        whole = self._render(prompt + response, generate=False, column=column)
        if self._ends_bare:
            whole = whole.removesuffix(self._tail) + self._tail.rstrip()
        turns = [index for index, message in enumerate(response) if message.role == "assistant"]
        cuts = []
        for number, turn in enumerate(turns, 1):
            left = self._render(prompt + response[:turn], generate=True, column=column) if turn else start
            if not whole.startswith(left):
                what = f"what comes before assistant turn {number}"
                raise RowError(column, f"the chat template writes {what} differently once the turn follows")
            cuts.append(len(left))
        pieces = [_Piece(whole[:a], whole[a:b]) for a, b in zip(cuts, [*cuts[1:], len(whole)], strict=True)]
        for number, (turn, piece) in enumerate(zip(turns, pieces, strict=True), 1):
            if not _holds(piece.text, response[turn].content):
                raise RowError(column, f"the chat template drops or changes text of assistant turn {number}")
        return pieces

    def _hide(self, messages: Turns) -> Turns:
        def stand_in(match: re.Match[str]) -> str:
            return f"{HIDE}{self._controls[match[0]]}{HIDE}"

        return tuple(Message(m.role, self._control_pattern.sub(stand_in, m.content)) for m in messages)

    def _reveal(self, rendered: str) -> str:
        """The template's own control tokens get their names, hidden ones become plain text again."""
        named = self._control_pattern.sub(lambda match: self._names[match[0]], rendered)
        return re.sub(f"{HIDE}(\\d+){HIDE}", lambda match: self._spellings[int(match[1])], named)

    # ------------------------------------------------------------------------------------------------ tokens

    def _encode(self, plans: Sequence[_Plan]) -> list[list[np.ndarray | None]]:
        """Ids of every piece of every plan; None where a piece does not begin at a token boundary."""
        done: dict[bool, Iterator[np.ndarray | None]] = {}
        for hidden in {plan.hidden for plan in plans}:
            backend = self._named_backend if hidden else self._backend
            pieces = [piece for plan in plans if plan.hidden == hidden for piece in plan.pieces]
            done[hidden] = iter(self._encode_pieces(backend, pieces))
        return [[next(done[plan.hidden]) for _ in plan.pieces] for plan in plans]

    def _encode_pieces(self, backend: Tokenizer, pieces: list[_Piece]) -> list[np.ndarray | None]:
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
        self, example: Example, plan: _Plan, ids: list[np.ndarray | None], max_length: int, key: int
    ) -> TokenTree:
        """Puts encoded pieces together under the length policy."""
        encoded = iter(ids)
        prompt = self._text_start if plan.prompt is None else self._required(next(encoded), "prompt")
        room = max_length - len(prompt)
        if room < 1:
            reason = f"has {len(prompt)} tokens: no room for an answer within {max_length} (--data.max_length)"
            raise RowError("prompt", reason)
        branches = []
        for index, pieces in enumerate(plan.responses):
            column = _column(example, index)
            branches.append(self._branch([self._required(next(encoded), column) for _ in pieces], room, column))
        pairs = tree_pairs(example, branches, self.eos_ids)
        return TokenTree(prompt, tuple(branches), pairs, response_fields(example, branches, self.eos_ids), key)

    def _branch(self, turns: list[np.ndarray], room: int, column: str) -> Branch:
        """Joins assistant turns: each is trained up to its end-of-turn token; what follows is the next turn's lead."""
        ids, trained = [], []
        for number, turn in enumerate(turns, 1):
            ends = np.flatnonzero(np.isin(turn, self._eos_array))
            last = number == len(turns)
            if not len(ends) and not last:
                raise RowError(column, f"the chat template writes no end-of-turn token after assistant turn {number}")
            if not len(ends):
                turn = np.append(turn, np.int32(self._eos_id))
            length = ends[0] + 1 if len(ends) else len(turn)
            ids.append(turn)
            trained.append(np.arange(len(turn)) < length)
        mask = np.concatenate(trained)[:room]
        end = np.flatnonzero(mask)[-1] + 1  # what the template writes after the last EOS, or a cut leaves, is dropped
        return Branch(ids=np.concatenate(ids)[:end], trained=mask[:end])

    @staticmethod
    def _required(ids: np.ndarray | None, column: str) -> np.ndarray:
        if ids is None:
            raise RowError(column, "its first token would reach back into the text before it")
        return ids

    # ------------------------------------------------------------------------------------------------ the tokenizer

    def _plain_template(self) -> str:
        first = self.tokenizer("a")["input_ids"][:1]
        adds_bos = self.tokenizer.bos_token_id is not None and first == [self.tokenizer.bos_token_id]
        return ("{{- bos_token -}}" if adds_bos else "") + PLAIN_TEMPLATE

    def _probe(self) -> tuple[str, list[int], dict[str, int]]:
        """Learns from one exchange what the template writes after an answer, the added tokens in it, and all added
        tokens that the template writes itself."""
        answer = "Certainly."
        messages = (Message("user", "Question?"), Message("assistant", answer))
        try:
            start = self._render(messages[:1], generate=True, column="prompt")
            whole = self._render(messages, generate=False, column="response")
        except RowError as error:
            raise ModelError(f"the chat template of {self._source} is unusable: {error.reason}") from None
        if answer not in whole:
            raise ModelError(f"the chat template of {self._source} leaves out the assistant's text.")
        tail = whole[whole.rindex(answer) + len(answer) :]
        added = self.tokenizer.added_tokens_decoder
        lead_ids, tail_ids = [
            [int(i) for i in ids if int(i) in added and not added[int(i)].content.isspace()]
            for ids in _encode_texts(self._backend, [start, tail])
        ]
        return tail, tail_ids, {added[i].content: i for i in lead_ids + tail_ids}

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

    @cached_property
    def _names(self) -> dict[str, str]:
        return {spelling: f"{NAME}{index}{NAME}" for spelling, index in self._controls.items()}

    @cached_property
    def _spellings(self) -> dict[int, str]:
        return {index: spelling for spelling, index in self._controls.items()}

    @cached_property
    def _named_backend(self) -> Tokenizer:
        """The tokenizer with its control tokens renamed: same ids, but no text can spell them."""
        state = json.loads(self._backend.to_str())
        for token in state["added_tokens"]:
            if token["content"] in self._names:
                token |= {"content": self._names[token["content"]], "normalized": False}
        model = state["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {self._names.get(piece, piece): index for piece, index in model["vocab"].items()}
        else:
            model["vocab"] = [[self._names.get(piece, piece), score] for piece, score in model["vocab"]]
        if model.get("unk_token"):
            model["unk_token"] = self._names.get(model["unk_token"], model["unk_token"])
        state["post_processor"] = None  # it only adds special tokens, which the template writes itself
        backend = Tokenizer.from_str(json.dumps(state))
        for spelling, index in self._controls.items():
            assert backend.token_to_id(self._names[spelling]) == index, f"renaming moved {spelling}"
        return backend


def _unset(backend: Tokenizer) -> Tokenizer:
    """Truncation and padding may have been left on by another user of the tokenizer."""
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = False
    return backend


def _encode_texts(backend: Tokenizer, texts: list[str]) -> list[np.ndarray]:
    encodings = _unset(backend).encode_batch_fast(texts, add_special_tokens=False)
    return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]


def _holds(rendered: str, content: str) -> bool:
    """Whether a rendered turn holds a message's text; templates may change white space around or inside it."""
    return content.strip() in rendered or "".join(content.split()) in "".join(rendered.split())


def _column(example: Example, index: int) -> str:
    """What a response is called in messages to people."""
    for pair in example.feedback:
        if isinstance(pair, Pair) and index in (pair.chosen, pair.rejected):
            return "chosen" if index == pair.chosen else "rejected"
    return "response" if len(example.responses) == 1 else f"response {index + 1}"


def _read_template(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--model.chat_template {path} cannot be read: {error}.") from None
