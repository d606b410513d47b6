"""Language models that are asked to write: each conversation is answered once, and kept."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import NamedTuple

import torch

from assent import distributed
from assent.config import EngineConfig, ModelConfig, SamplingConfig
from assent.config.judge import WriterConfig
from assent.config.online import PatienceConfig
from assent.data.chat import Chat
from assent.data.records import Message, RowError
from assent.distributed import World
from assent.models.digests import model_digests
from assent.models.loading import load_tokenizer
from assent.people.asked import Cost, called, cost_of
from assent.rewards.judge import parse
from assent.rewards.judge.ask import STOPPED, Answer, as_key
from assent.rewards.judge.asking import Asker
from assent.rewards.judge.build import writer
from assent.rewards.judge.cache import Cache, key_of
from assent.rewards.judge.folder import REFUSED, TOO_LONG, Place
from assent.rewards.judge.ledger import Ledger
from assent.rewards.judge.openai import OpenAIJudge, tried
from assent.rollout.answering import close, opened, room_of
from assent.rollout.engine import Engine

log = logging.getLogger(__name__)

HELLO = (Message("user", "Please say hello."),)
"""What a server is tried on before work is spent."""
CUT = "what it wrote was cut off"
ROUND = 16
"""A model that is sampled from answers in parts of this many times `max_batch`: what is lost when it is killed."""


class Written(NamedTuple):
    """What a model wrote, without what it thought before."""

    text: str


class AskedWriter:
    """A model on a server, or from a folder, that is asked in the words of a chat; `spec` is openai=URL or
    model=FOLDER. What a server does not answer is counted, and raises nothing."""

    def __init__(
        self, spec: str, name: str, config: WriterConfig, remote: PatienceConfig, place: Place, flag: str
    ) -> None:
        """Raises ConfigError and ModelError, OutputError where the cache cannot be written, UserError where a server
        does not answer."""
        self.name, self._ledger = name, Ledger()
        self._judge = writer(spec, name, config, remote, place, flag)
        self._asker = Asker(self._judge, "", config, remote.budget)
        self._asker.check()
        if isinstance(self._judge, OpenAIJudge):
            hello: Mapping[int, tuple[Message, ...]] = {0: HELLO}
            ask = partial(self._asker.readings, hello, _written, Ledger())
            distributed.on_main(partial(tried, flag, self._judge, ask))

    def write(self, asked: Mapping[int, tuple[Message, ...]]) -> dict[int, Written | str]:
        """What it says next in each of these conversations, or why nothing. Every rank must call it; rank 0 asks."""
        return distributed.on_main(partial(self._asker.readings, asked, _written, self._ledger))

    @property
    def cost(self) -> Cost:
        """Every rank must call it."""
        return cost_of(self._judge, self._ledger.metrics)

    def close(self) -> None:
        """As `SampledWriter.close`."""


def _written(answer: Answer) -> Written:
    return Written(parse.said(answer.text).strip())


@dataclass(frozen=True)
class SampledFrom:
    """How a model folder is sampled from."""

    model: ModelConfig
    sampling: SamplingConfig
    engine: EngineConfig
    seed: int
    cache: str | None


class SampledWriter:
    """A model from a folder whose answers are sampled by the engine, in parts that are kept whole: the same
    conversations, in the same order, give the same answers, also where a part was sampled earlier."""

    def __init__(self, options: SampledFrom) -> None:
        """Raises ModelError, and OutputError where the cache cannot be written."""
        self.name, self._options = called(options.model.path), options
        self._chat = Chat(load_tokenizer(options.model), options.model.chat_template, options.model.template_kwargs)
        self._room = room_of(options.model, options.sampling)
        self._cache = Cache(options.cache)
        self._cache.check()
        self._counts, self._seconds = Counter[str](), 0.0
        self._made: Engine | None = None

    def _engine(self) -> Engine:
        if self._made is None:  # not where all is in the cache
            alone = World(0, 1, 0, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
            _, self._made = opened(self._options.model, self._options.engine, self._options.sampling, alone)
        return self._made

    def close(self) -> None:
        """Ends the engine, and gives its memory back."""
        if self._made is not None:
            close(self._made)
        self._made = None

    @cached_property
    def _digests(self) -> Mapping[str, str]:
        return model_digests(self._options.model.path, self._options.model.revision)

    def write(self, asked: Mapping[int, tuple[Message, ...]]) -> dict[int, Written | str]:
        """As `AskedWriter.write`."""
        return distributed.on_main(partial(self._write, asked))

    def _write(self, asked: Mapping[int, tuple[Message, ...]]) -> dict[int, Written | str]:
        size = ROUND * self._options.sampling.max_batch
        numbers, found = list(asked), dict[int, Written | str]()
        for start in range(0, len(numbers), size):
            part = numbers[start : start + size]
            said = self._part([asked[number] for number in part], start)
            found |= dict(zip(part, said, strict=True))
        return found

    def _part(self, conversations: Sequence[tuple[Message, ...]], start: int) -> list[Written | str]:
        options = self._options
        key = key_of(
            {
                "format": "part",
                "model": self._digests,
                "engine": options.engine.name,
                "options": [asdict(options.model), asdict(options.sampling)],
                "seed": [options.seed, start],
                "messages": [as_key(messages) for messages in conversations],
            }
        )
        self._counts["questions"] += len(conversations)
        kept = self._cache.get(key)
        if kept is None:
            begun = time.monotonic()
            kept = Answer(json.dumps(self._sampled(conversations, start)), STOPPED)
            self._seconds += time.monotonic() - begun
            self._cache.put(key, kept)
        else:
            self._counts["cached"] += len(conversations)
        return [Written(text) if why is None else why for text, why in json.loads(kept.text)]

    def _sampled(self, conversations: Sequence[tuple[Message, ...]], start: int) -> list[tuple[str, str | None]]:
        """Text of each answer, and why it is none."""
        said: list[tuple[str, str | None]] = [("", REFUSED)] * len(conversations)
        prompts = {}
        for number, messages in enumerate(conversations):
            try:
                ids = self._chat.prompt_ids(messages)
            except RowError:
                continue
            said[number] = ("", TOO_LONG)
            if len(ids) <= self._room:
                prompts[number] = ids
        if prompts:
            made = self._engine().generate([*prompts.values()], 1, self._options.sampling, self._options.seed, start)
            for (number, ids), (completion,) in zip(prompts.items(), made, strict=True):
                text = self._chat.decode(completion.ids, ids, finished=completion.finished).strip()
                why = CUT if not completion.finished else parse.EMPTY if not text else None
                said[number] = (text, why)
                self._counts["tokens in"] += len(ids)
                self._counts["tokens out"] += len(completion)
        self._counts["requests"] += len(prompts)
        return said

    @property
    def cost(self) -> Cost:
        count, tokens = self._counts, (self._counts["tokens in"], self._counts["tokens out"])
        return Cost(count["questions"], count["cached"], count["requests"], self._seconds, *tokens, told=True)
