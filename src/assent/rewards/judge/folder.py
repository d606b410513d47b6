"""Judges that are run here: a frozen causal language model from a folder or the hub, by the torch engine or vLLM."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch

from assent.config import EngineConfig, ModelConfig, SamplingConfig
from assent.data.chat import Chat
from assent.data.packing import window
from assent.data.records import Example, Message, Response, RowError
from assent.data.tree import TokenTree
from assent.errors import ConfigError
from assent.models.digests import model_digests
from assent.models.folders import longest
from assent.models.loading import load_policy, load_tokenizer, resolve_precision, stored_config
from assent.models.policy import Policy
from assent.models.saving import generation_config, stop_ids
from assent.models.sources import model_folder
from assent.models.vocabulary import check_vocabulary
from assent.rewards.judge.ask import CUT, STOPPED, Answer, Keep, Question, Spent
from assent.rewards.judge.prompt import Form
from assent.rollout.build import engine_for, torch_engine
from assent.rollout.check import check_sampling
from assent.rollout.engine import Completion, Engine
from assent.rollout.vllm_engine import VllmEngine

TOO_LONG = "the judge's prompt is too long for it"
REFUSED = "the judge's chat template refuses what it is asked"
UNLIMITED = 1 << 30


@dataclass(frozen=True, slots=True)
class Place:
    """Where a judge runs: `engine` torch or vllm (with `memory`, its share of the machine's), `max_batch` sequences at
    once, `micro_tokens` packed tokens in a forward pass."""

    device: torch.device
    engine: str = "torch"
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    trust_remote_code: bool = False
    max_batch: int = 64
    micro_tokens: int = 4096
    memory: float = 0.4


class FolderJudge:
    """A model that writes its verdicts; with `letters` it writes nothing, and the probabilities of its whole answer
    being the form with each of them (`[[A]]`, then the end of its turn) are computed; by the torch engine in one pass,
    which reads the prompt once.

    At a temperature above 0 what is drawn depends on the question alone, so each is answered by itself: slower, but
    the same whatever else is asked beside it."""

    def __init__(
        self,
        name: str,
        path: str,
        place: Place,
        *,
        temperature: float = 0.0,
        max_tokens: int = 1024,
        form: Form | None = None,
        letters: Sequence[str] = (),
    ) -> None:
        """Raises ModelError where it cannot be loaded, ConfigError where it is too short for what it may write."""
        self.who = f"{name}: the judge {path}"
        self.path, self.place = path, place
        self.spent = Spent()
        self._sampling = SamplingConfig(max_new_tokens=max_tokens, temperature=temperature, max_batch=place.max_batch)
        self._form, self._letters = form or Form(), tuple(letters)
        self._model = ModelConfig(path, precision=place.precision, trust_remote_code=place.trust_remote_code)
        self.chat = Chat(load_tokenizer(self._model))
        if not letters and max_tokens >= self._limit:
            raise ConfigError(
                f"{self.who} reads at most {self._limit} tokens. Got --judge.max_tokens {max_tokens}, which leaves no "
                "room for what it is asked."
            )
        self._policy: Policy | None = None
        self._engine: Engine | None = None
        if place.engine == "torch":
            self._policy = load_policy(self._model, max_length=1, device=place.device, trainable=False).eval()
            check_vocabulary(self._policy.plain, self.chat.tokenizer, path)
            if not letters:
                check_sampling(self._policy.model, max_tokens)
                self._engine = torch_engine(self._policy, self.chat)

    @cached_property
    def identity(self) -> Mapping[str, object]:
        return {
            "model": model_digests(self.path),
            "engine": self.place.engine,
            "precision": resolve_precision(self.place.precision, self.place.device),
            "temperature": self._sampling.temperature,
            "max_tokens": self._sampling.max_new_tokens,
        }

    def ask(self, questions: Sequence[Question], keep: Keep, deadline: float) -> list[Answer | str]:
        """As `Judge.ask`."""
        begun = time.monotonic()
        try:
            return self._chances(questions, keep) if self._letters else self._texts(questions, keep)
        finally:
            self.spent.seconds += time.monotonic() - begun

    def _texts(self, questions: Sequence[Question], keep: Keep) -> list[Answer | str]:
        prompts: dict[int, np.ndarray] = {}
        answers: list[Answer | str] = [REFUSED] * len(questions)
        for number, question in enumerate(questions):
            try:
                ids = self.chat.prompt_ids(question.messages)
            except RowError:
                continue
            if len(ids) + self._sampling.max_new_tokens > self._limit:
                answers[number] = TOO_LONG
            else:
                prompts[number] = ids
        alone = self._sampling.temperature > 0
        for part in [[number] for number in prompts] if alone else self._parts(list(prompts)):
            seed = _seed_of(questions[part[0]]) if alone else 0
            made = self._writer.generate([prompts[number] for number in part], 1, self._sampling, seed)
            for number, (completion,) in zip(part, made, strict=True):
                answer = self._written(completion, prompts[number])
                answers[number] = answer
                keep(number, answer)
        return answers

    def _count(self, read: int, written: int) -> None:
        self.spent.requests += 1
        self.spent.read += read
        self.spent.written += written

    def _parts(self, numbers: list[int]) -> list[list[int]]:
        """What is asked at once: so that a run that is stopped has kept most of its answers."""
        size = 4 * self.place.max_batch
        return [numbers[first : first + size] for first in range(0, len(numbers), size)]

    def _written(self, completion: Completion, prompt: np.ndarray) -> Answer:
        self._count(len(prompt), len(completion))
        text = self.chat.decode(completion.ids, prompt, finished=completion.finished)
        return Answer(text, STOPPED if completion.finished else CUT)

    @property
    def _writer(self) -> Engine:
        if self._engine is None:
            path = model_folder(self.path)
            precision = resolve_precision(self.place.precision, self.place.device)
            config = EngineConfig(name="vllm", memory=self.place.memory)
            ends = stop_ids(self.chat, generation_config(path))
            self._engine = engine_for(path, config, ends, self._sampling, precision)
        return self._engine

    @cached_property
    def _limit(self) -> int:
        """Most tokens of a prompt with its answer."""
        return longest(stored_config(self._model)) or UNLIMITED

    # ---- probabilities of letters

    def _chances(self, questions: Sequence[Question], keep: Keep) -> list[Answer | str]:
        answers: list[Answer | str] = [REFUSED] * len(questions)
        trees: dict[int, TokenTree] = {}
        for number, question in enumerate(questions):
            try:
                tree = self.chat.tree(self._example(question), UNLIMITED)
            except RowError:
                continue
            spare = 0 if self._policy else 1  # vLLM writes a token behind what it reads
            if len(tree.prompt) + max(len(branch.ids) for branch in tree.branches) + spare > self._limit:
                answers[number] = TOO_LONG
            else:
                trees[number] = replace(tree, key=number)
        for number, logs in self._logprobs([*trees.values()]).items():
            self._count(len(trees[number].prompt) + sum(len(branch.ids) for branch in trees[number].branches), 0)
            answer = Answer("", STOPPED, dict(zip(self._letters, logs, strict=True)))
            answers[number] = answer
            keep(number, answer)
        return answers

    def _example(self, question: Question) -> Example:
        written = [Message("assistant", self._form.written(letter)) for letter in self._letters]
        return Example(question.messages, tuple(Response((message,)) for message in written))

    @torch.no_grad()
    def _logprobs(self, trees: Sequence[TokenTree]) -> dict[int, list[float]]:
        """Key of each tree -> the log-probability of each of its branches."""
        policy = self._policy
        found: dict[int, list[float]] = {}
        if not trees:
            return found
        if policy is None:
            return self._logprobs_by_vllm(trees)
        for batch in window(trees, micro_tokens=self.place.micro_tokens, flat=not policy.tree).batches:
            batch = batch.to(self.place.device)
            sums = batch.sum_by_response(policy(batch).logprobs.double()).reshape(-1, len(self._letters)).tolist()
            found |= dict(zip(batch.keys, sums, strict=True))
        return found

    def _logprobs_by_vllm(self, trees: Sequence[TokenTree]) -> dict[int, list[float]]:
        engine, count = self._writer, len(self._letters)
        assert isinstance(engine, VllmEngine), "it runs here"
        branches = [branch.ids for tree in trees for branch in tree.branches]
        sums = engine.logprobs_of([tree.prompt for tree in trees for _ in tree.branches], branches)
        return {tree.key: sums[count * place :][:count] for place, tree in enumerate(trees)}


def _seed_of(question: Question) -> int:
    """A number that depends on the question alone."""
    text = json.dumps([question.seed, *([message.role, message.content] for message in question.messages)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
