"""A reward model that vLLM or SGLang serves, made sure to be read as a folder of ours: the same token ids, the head's
own numbers.

vLLM's /classify and SGLang's /v1/embeddings take token ids and give the head's outputs at the last one. (vLLM's /score
is for models that read two texts; it adds special tokens and gives a sigmoid.)
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from assent.data.records import Example, Message, Response, RowError
from assent.data.tree import TokenTree
from assent.errors import ConfigError
from assent.http import ServerAnswerError
from assent.rewards.group import Group, Scores
from assent.rewards.reading import Reading
from assent.rewards.remote import SGLANG, RemoteReward, Server, WrittenAnswer, classify, embeddings

log = logging.getLogger(__name__)

TALK = (
    Message("user", "What is 12 + 30? Be brief, naïve reader; 你好!"),
    Message("assistant", "It is 42.\n\n  - so"),
    Message("user", "And\t7 × 6?"),
)
"""A conversation that tells tokenizers and chat templates apart."""
LONG = 1 << 20  # tokens
ANSWERS = ("42.", "I don't know, and neither does the cat.")


class ServedModel:
    """A vLLM or SGLang server as a source. `reading` is how the model there reads answers, and `length_flag` the option
    that says how long they may be."""

    def __init__(self, name: str, server: Server, reading: Reading, length_flag: str = "--data.max_length") -> None:
        """Raises ConfigError as `RemoteReward`."""
        self.length_flag = length_flag
        self.name = name
        self.reading = reading
        self.remote = RemoteReward(name, server, self._written)

    def check(self, examples: Sequence[Example]) -> None:
        """Asks the server what it is. Raises ConfigError for a server that reads with another tokenizer or template,
        has no reward model or one of other outputs than there are weights, or reads less than the longest answers."""
        self.remote.check(examples)
        self.reading.check(f"The reward model of {self.remote.who}", examples)
        self._check_name()
        talk, tree = self._talk()
        sequences = [[*tree.prompt.tolist(), *branch.ids.tolist()] for branch in tree.branches]
        self._check_tokenizer(sequences[0])
        self._check_template(talk, tree.prompt.tolist())
        self._check_head(sequences)

    def score(self, groups: Sequence[Group]) -> Scores:
        """As `RemoteReward.score`."""
        return self.remote.score(groups)

    def _written(self, group: Group) -> list[WrittenAnswer | None]:
        return [None if ids is None else WrittenAnswer("", ids) for ids in self.reading.sequences(group)]

    def _talk(self) -> tuple[Sequence[Message], TokenTree]:
        """A conversation that the template can write, and its ids."""
        answers = tuple(Response((Message("assistant", text),)) for text in ANSWERS)
        try:
            return TALK, self.reading.chat.tree(Example(TALK, answers), LONG)
        except RowError:
            return TALK[:1], self.reading.chat.tree(Example(TALK[:1], answers), LONG)

    def _check_name(self) -> None:
        served = self.remote.question("/v1/models", None, _models, '{"data": [{"id": name, ...}]}')
        name, names = self.remote.server.model, [model.name for model in served]
        if name and name not in names:
            raise ConfigError(f"{self.remote.who} has no model '{name}' (--remote.model). It has: {', '.join(names)}.")
        limit = next((model.longest for model in served if model.name == (name or names[0])), None)
        if limit is not None and limit < self.reading.max_length:
            raise ConfigError(
                f"{self.remote.who} reads at most {limit} tokens; {self.length_flag} allows {self.reading.max_length}. "
                f"Start it with --max-model-len {self.reading.max_length}, or lower {self.length_flag}."
            )

    def _check_tokenizer(self, ids: Sequence[int]) -> None:
        """Compares ids of one text, with all special tokens in it."""
        tokenizer = self.reading.chat.tokenizer
        text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        own = tokenizer(text, add_special_tokens=False)["input_ids"]
        try:
            its = self._tokenize({"prompt": text, "add_special_tokens": False})
        except ServerAnswerError as error:
            if self.remote.server.shape != SGLANG:
                raise
            log.warning("its tokenizer could not be compared with the %s: %s", self._whose, error)
            return
        if its != own:
            raise ConfigError(
                f"{self.remote.who} reads with another tokenizer: it makes {_some(its)} of a text of which the "
                f"{self._whose} tokenizer makes {_some(own)}. {ADVICE}"
            )

    def _check_template(self, talk: Sequence[Message], ids: Sequence[int]) -> None:
        """Compares the ids of a conversation, where the server has a chat template at all."""
        messages = [{"role": message.role, "content": message.content} for message in talk]
        try:
            its = self._tokenize({"messages": messages, "add_generation_prompt": True, "add_special_tokens": False})
        except ServerAnswerError:
            return
        if its != list(ids):
            raise ConfigError(
                f"{self.remote.who} has another chat template: it makes {_some(its)} of a conversation of which the "
                f"{self._whose} template makes {_some(ids)}. {ADVICE}"
            )

    def _check_head(self, sequences: Sequence[Sequence[int]]) -> None:
        model, weights, texts = self.remote.server.model, self.remote.server.weights, len(sequences)
        if self.remote.server.shape == SGLANG:
            raw = activated = self._outputs(embeddings(sequences, model), texts)
        else:
            raw, activated = (self._outputs(classify(sequences, model, activation=on), texts) for on in (False, True))
        expected = len(weights) or 1
        if sizes := {len(numbers) for numbers in raw} - {expected}:
            many = max(sizes)
            raise ConfigError(
                f"{self.remote.who} gives {many} numbers for a text (num_labels {many}), of which none is the reward. "
                + (
                    f"--remote.weights has {len(weights)}; give one weight for each."
                    if weights
                    else "Give --remote.weights, one for each, or serve a reward model with one output."
                )
            )
        if expected == 1 and raw == activated and all(0 <= number <= 1 for (number,) in raw):
            self._doubt(" and ".join(f"{number:.4g}" for (number,) in raw))

    def _outputs(self, body: dict[str, object], texts: int) -> list[list[float]]:
        """What the model gives for so many texts."""
        shape = self.remote.shape
        expected = f"{shape.expected}: a reward model (a sequence classifier) must be served"
        return self.remote.question(shape.path, body, lambda reply: _numbers(shape.read(reply), texts), expected)

    def _doubt(self, numbers: str) -> None:
        """Says that these may be no rewards but probabilities."""
        if self.remote.server.shape == SGLANG:
            return
        log.warning(
            "%s gives %s with and without its activation: between 0 and 1. If these are probabilities, this vLLM does "
            'not know "use_activation"; take a newer one, or set "problem_type": "regression" in config.json.',
            self.remote.who,
            numbers,
        )

    def _tokenize(self, body: dict[str, object]) -> list[int]:
        named = {"model": self.remote.server.model} if self.remote.server.model else {}
        return self.remote.question("/tokenize", named | body, _tokens, '{"tokens": [ids]}')

    @property
    def _whose(self) -> str:
        return "policy's" if self.reading.same_tokens else "given"


ADVICE = "Give the folder that it serves as --remote.tokenizer."


class _Model(NamedTuple):
    name: str
    longest: int | None


def _models(reply: Any) -> list[_Model]:
    found = [_Model(str(card["id"]), card.get("max_model_len")) for card in reply["data"]]
    if not found or not all(model.longest is None or type(model.longest) is int for model in found):
        raise ValueError("no model")
    return found


def _numbers(outputs: Any, texts: int) -> list[list[float]]:
    """Numbers for each of so many texts, as many for one as for another."""
    rows = [[number for number in row if type(number) in (int, float)] for row in outputs]
    if len(rows) != texts or [len(row) for row in rows] != [len(outputs[0])] * texts:
        raise ValueError("no numbers")
    return rows


def _tokens(reply: Any) -> list[int]:
    if not all(type(token) is int for token in reply["tokens"]):
        raise ValueError("no token ids")
    return list(reply["tokens"])


def _some(ids: Sequence[int]) -> str:
    """The beginning of token ids, for messages."""
    return f"{len(ids)} tokens ({' '.join(map(str, ids[:8]))}{' …' if len(ids) > 8 else ''})"
