"""What clients send (text, token ids, messages) as packed trees, and what the trees are worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from assent.data.chat import Chat
from assent.data.formats.message import messages, template_kwargs, tools
from assent.data.packing import packed_size, plan
from assent.data.records import Example, Message, Response, RowError
from assent.data.tree import Branch, TokenTree, collate
from assent.errors import ModelError
from assent.models.policy import ScoreModel
from assent.serve.shapes import Asked, Ids, Refusal, Talk

PROBE = (Message("user", "Hello!"),)


@dataclass(frozen=True, slots=True)
class Work:
    """A request: trees, and for each of its S texts which response of all trees it is. `passes` are the trees of each
    forward pass, `size` is the number of packed tokens in all of them, `tokens` the length of each text."""

    trees: Sequence[TokenTree]
    order: np.ndarray
    passes: Sequence[Sequence[int]]
    size: int
    tokens: Sequence[int]


class Reader:
    """How texts become trees: by the model's own tokenizer and template. For one thread."""

    def __init__(
        self, chat: Chat, *, vocabulary: int, longest: int, micro_tokens: int, flat: bool, gated: bool = False
    ) -> None:
        """`vocabulary` is the number of ids that the model has, `longest` the most tokens in one text. A `gated` model
        reads where prompts end, so no text is scored of which that is not known."""
        self.chat, self.gated = chat, gated
        self.vocabulary, self.longest = vocabulary, longest
        self.micro_tokens, self.flat = micro_tokens, flat
        self._around = self._added()
        self._opening = self._generation_prompt()

    def work(self, asked: Sequence[Asked], longest: int | None = None) -> Work:
        """The trees of a request, of at most `longest` tokens in each text. Raises Refusal, with the number of the text
        and the reason."""
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        prompts: dict[str, np.ndarray] = {}
        for number, one in enumerate(asked, 1):
            prompt, answer = self._split(one, number, prompts)
            length, most = len(prompt) + len(answer), min(self.longest, longest or self.longest)
            if length > most:
                raise Refusal(400, f"Text {number} has {length:,} tokens; the longest that is read has {most:,}.")
            parts.append((prompt, answer))
        trees, order = self._grown(parts)
        sizes = [packed_size(tree, self.flat) for tree in trees]
        passes = plan(sizes, micro_tokens=self.micro_tokens, ranks=1)[0]
        return Work(trees, order, passes, sum(sizes), [len(prompt) + len(answer) for prompt, answer in parts])

    def text_ids(self, text: str, *, adds: bool, number: int = 1) -> np.ndarray:
        """Token ids of a text with its special tokens; with `adds` also what the tokenizer puts around a text, where it
        is not there already. Raises Refusal for what is no Unicode."""
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Refusal(400, f"Text {number} has half of a surrogate pair in it: it is no Unicode text.") from None
        ids = list(self.chat.tokenizer(text, add_special_tokens=False)["input_ids"])
        if adds:
            before, behind = self._around
            ids = ids if ids[: len(before)] == before else before + ids
            ids = ids if not behind or ids[-len(behind) :] == behind else ids + behind
        return np.array(ids, np.int64)

    def talk_ids(self, talk: Talk, *, generation_prompt: bool) -> np.ndarray:
        """Token ids of a conversation: up to its end, or up to where an answer would begin. Raises Refusal."""
        if not generation_prompt:
            return np.concatenate(self._split(talk, 1, {}))
        try:
            return self.chat.prompt_ids(_example(talk, ends=False))
        except RowError as error:
            raise Refusal(400, f"{error}.") from None

    def _split(self, one: Asked, number: int, prompts: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of a text's prompt and of the answer that is scored; `prompts` keeps those that were given."""
        if isinstance(one, Talk):
            try:
                tree = self.chat.tree(_example(one, ends=True), self.longest + 1)
            except RowError as error:
                raise Refusal(400, f"{error}.") from None
            return tree.prompt, tree.branches[0].ids
        prompt: np.ndarray | None = None
        if isinstance(one, Ids):
            ids = self._known(one, number)
        else:
            ids = self.text_ids(one.text, adds=one.adds, number=number)
            if one.prompt:
                if one.prompt not in prompts:
                    prompts[one.prompt] = self.text_ids(one.prompt, adds=one.adds, number=number)
                prompt = prompts[one.prompt]
        if len(ids) < 2:
            raise Refusal(400, f"Text {number} has {len(ids)} tokens; a prompt with an answer has at least 2.")
        if prompt is None or not 0 < len(prompt) < len(ids) or not np.array_equal(ids[: len(prompt)], prompt):
            cut = self._opened(ids)
        else:
            cut = len(prompt)
        if cut == 0 and self.gated:
            raise Refusal(
                400,
                f"Text {number}: where its prompt ends cannot be told, and this model reads the prompt by itself. Send "
                "messages, or text as its chat template writes it.",
            )
        return ids[: cut or 1], ids[cut or 1 :]

    def _known(self, one: Ids, number: int) -> np.ndarray:
        for token in one.ids:
            if not 0 <= token < self.vocabulary:
                most = self.vocabulary - 1
                raise Refusal(400, f"Text {number}: {token} is no token id; those of this model are 0 to {most}.")
        return np.array(one.ids, np.int64)

    def _opened(self, ids: np.ndarray) -> int:
        """Where the last answer begins, behind what the template writes before one; 0 where none is found."""
        size = len(self._opening)
        if 0 < size < len(ids):
            windows = np.lib.stride_tricks.sliding_window_view(ids[:-1], size)
            if len(found := np.flatnonzero((windows == self._opening).all(1))):
                return int(found[-1]) + size
        return 0

    def _grown(self, parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[list[TokenTree], np.ndarray]:
        """Trees in which equal prompts stand once, as long as they stay within a forward pass."""
        grown: list[tuple[np.ndarray, list[Branch], list[int]]] = []
        current: dict[bytes, int] = {}
        sizes: list[int] = []
        for index, (prompt, answer) in enumerate(parts):
            key = prompt.astype(np.int64).tobytes()
            at = current.get(key)
            if at is None or sizes[at] + len(answer) > self.micro_tokens:
                at = current[key] = len(grown)
                grown.append((prompt, [], []))
                sizes.append(len(prompt))
            grown[at][1].append(Branch(answer, np.ones(len(answer), bool)))
            grown[at][2].append(index)
            sizes[at] += len(answer)
        trees = [TokenTree(prompt, tuple(branches)) for prompt, branches, _ in grown]
        stands = [index for _, _, indices in grown for index in indices]
        return trees, np.argsort(np.array(stands))

    def _added(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and behind every text."""
        plain = list(self.chat.tokenizer("a", add_special_tokens=False)["input_ids"])
        whole = list(self.chat.tokenizer("a")["input_ids"])
        for start in range(len(whole) - len(plain) + 1):
            if whole[start : start + len(plain)] == plain:
                return whole[:start], whole[start + len(plain) :]
        return [], []

    def _generation_prompt(self) -> np.ndarray:
        """The ids that the template writes before an answer, behind the end of the prompt."""
        try:
            ends = self.chat.tree(Example(PROBE, (Response((Message("assistant", "Hello!"),)),)), 1 << 20).prompt
        except RowError:
            return np.zeros(0, np.int64)
        ids = ends.tolist()
        last = max((at for at, token in enumerate(ids[:-1]) if token in self.chat.end_ids), default=-1)
        return np.array(ids[last + 1 :] if last >= 0 else [], np.int64)


def _example(talk: Talk, *, ends: bool) -> Example:
    """The conversation as a record; with `ends` its last message is the answer. Raises RowError."""
    turns = messages(talk.messages, "messages")
    if not turns:
        raise RowError("messages", "are empty")
    if ends and (turns[-1].role != "assistant" or len(turns) < 2):
        raise RowError("messages", "must end with the assistant's answer to what is before it: that is what is scored")
    prompt, answer = (turns[:-1], (Response(turns[-1:]),)) if ends else (turns, ())
    return Example(prompt, answer, tools=tools(talk.tools), template_kwargs=template_kwargs(talk.variables))


@dataclass(frozen=True, slots=True)
class Values:
    """Of S responses: rewards [S], NaN where nobody has said what they are, and the head's K numbers [S, K], fp32."""

    rewards: np.ndarray
    outputs: np.ndarray


class Scorer:
    """A frozen reward model. For one thread."""

    def __init__(self, model: ScoreModel) -> None:
        self.model = model

    @property
    def names(self) -> tuple[str, ...]:
        """What the head's K outputs are."""
        return self.model.rule.names

    @property
    def has_reward(self) -> bool:
        """Whether it is known how they become one."""
        try:
            self.model.require_reward("")
        except ModelError:
            return False
        return True

    @torch.no_grad()
    def values(self, trees: Sequence[TokenTree]) -> Values:
        """Of all responses of the trees, in one forward pass."""
        batch = collate(trees, flat=not self.model.tree).to(self.model.device)
        if not self.has_reward:
            outputs = self.model(batch, batch.last).float().cpu().numpy()
            return Values(np.full(len(outputs), np.nan, np.float32), outputs)
        scored = self.model.rewards(batch)
        return Values(scored.reward.float().cpu().numpy(), scored.outputs.float().cpu().numpy())
