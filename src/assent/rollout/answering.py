"""Answers of a model to many prompts, several to each, in parts: what `assent generate` and loops sample by.

A part is some prompts with all their answers. How prompts are divided does not depend on the number of ranks, and each
part is sampled by one rank alone, so that one rank and several give the same answers; whoever keeps the parts loses no
more than those under way.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from assent.config import EngineConfig, ModelConfig, SamplingConfig
from assent.data.chat import Chat
from assent.data.records import Example, Message, Problem, Response, RowError
from assent.distributed import World, gathered
from assent.errors import ConfigError
from assent.models.folders import longest
from assent.models.loading import load_policy, load_tokenizer, resolve_precision, stored_config
from assent.models.saving import generation_config, stop_ids
from assent.models.sources import model_folder
from assent.models.vocabulary import check_vocabulary
from assent.rollout.build import engine_for, torch_engine
from assent.rollout.check import check_sampling
from assent.rollout.engine import Completion, Engine
from assent.rollout.vllm_engine import VllmEngine

MOST_ROUNDS, FEWEST_ROUNDS, PARTS = 16, 4, 8
"""A part has between these many times `max_batch` answers, and about an eighth of all: longer ones waste less where the
last answers end, shorter ones lose less when a process is killed."""
TOKENS, FINISHED = "tokens", "finished"
"""Columns of rows with several answers: of each answer its number of tokens, and whether it ended by itself."""
LONG = 1 << 24
Groups = list[list[Completion]]


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt, and the token ids that its answers begin from."""

    example: Example
    ids: np.ndarray


@dataclass(frozen=True, slots=True)
class Counts:
    """What answers are left out of rows, or are not what they seem.

    answers     in the rows
    empty       without any text, which no row can hold: left out
    unfinished  that reached `max_new_tokens` before they ended
    reread      of which the text, read again, is other tokens than were sampled
    tokens      sampled in all
    """

    answers: int = 0
    empty: int = 0
    unfinished: int = 0
    reread: int = 0
    tokens: int = 0

    def sentences(self) -> list[str]:
        """What is worth saying."""
        said = {
            f"{self.empty:,} of {self.answers + self.empty:,} answers have no text and are left out": self.empty,
            f"{self.unfinished:,} of {self.answers:,} answers reached --sampling.max_new_tokens": self.unfinished,
            f"{self.reread:,} of {self.answers:,} answers are other tokens when their text is read again, and are "
            "scored and trained as these": self.reread,
        }
        return [sentence for sentence, count in said.items() if count]

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, name) + getattr(other, name) for name in Counts.__slots__))


def opened(model: ModelConfig, engine: EngineConfig, sampling: SamplingConfig, world: World) -> tuple[Chat, Engine]:
    """The tokenizer with its template, and an engine with the weights, of a model, run or adapter folder or hub id.
    Every rank has one of its own. Raises ModelError; ConfigError for what this engine cannot do."""
    config = replace(model, layout="flat")
    chat = Chat(load_tokenizer(config), config.chat_template, config.template_kwargs)
    if engine.name == "vllm":
        if engine.url is None and world.size > 1:
            raise ConfigError(
                f"--engine.name vllm inside a run needs a run of one process; this one has {world.size}. Start a vLLM "
                "server, and give it as --engine.url."
            )
        precision = resolve_precision(config.precision, world.device.type)
        path = model_folder(config.path)
        return chat, engine_for(path, engine, stop_ids(chat, generation_config(path)), sampling, precision)
    if engine.compile and world.size > 1:
        raise ConfigError(f"--engine.compile needs a run of one process; this one has {world.size}. Leave it off.")
    policy = load_policy(config, max_length=sampling.max_new_tokens, device=world.device, trainable=False)
    check_vocabulary(policy.plain, chat.tokenizer, config.path)
    check_sampling(policy.model, sampling.max_new_tokens)
    return chat, torch_engine(policy, chat, compiled=engine.compile)


def close(engine: Engine) -> None:
    """Ends what an engine has started, and gives its memory back."""
    if isinstance(engine, VllmEngine):
        engine.close()


def room_of(model: ModelConfig, sampling: SamplingConfig) -> int:
    """The longest prompt that leaves the model room for an answer, in tokens."""
    return (longest(stored_config(model)) or LONG) - sampling.max_new_tokens


def asked(chat: Chat, examples: Sequence[Example], room: int) -> tuple[list[Asked], list[Problem]]:
    """The prompts of examples as tokens, and why others cannot be answered: the chat template refuses them, or they
    are longer than `room`."""
    found, problems = [], []
    for example in examples:
        try:
            ids = chat.prompt_ids(example)
            if len(ids) > room:
                raise RowError("prompt", f"has {len(ids)} tokens, and {room} leave room for an answer")
        except RowError as error:
            problems.append(error.at(example.origin))
        else:
            found.append(Asked(example, ids))
    return found, problems


def parts_of(prompts: int, answers: int, max_batch: int) -> list[slice]:
    """Which of P prompts are sampled together."""
    fewest, most = FEWEST_ROUNDS * max_batch, MOST_ROUNDS * max_batch
    size = max(1, min(max(prompts * answers // PARTS, fewest), most) // answers)
    return [slice(start, min(start + size, prompts)) for start in range(0, prompts, size)]


def sampled_parts(
    engine: Engine,
    prompts: Sequence[Asked],
    answers: int,
    sampling: SamplingConfig,
    seed: int,
    world: World,
    done: Collection[int] = (),
) -> Iterator[tuple[int, Sequence[Asked], Groups]]:
    """Each part that is not `done`: its number, its prompts, and their answers. Ranks sample a part each at the same
    time, and all get all of it; every rank must go through the whole of it."""
    parts = parts_of(len(prompts), answers, sampling.max_batch)
    left = [number for number in range(len(parts)) if number not in done]

    def sample(number: int | None) -> Groups:
        if number is None:
            return []
        where = parts[number]
        return engine.generate([one.ids for one in prompts[where]], answers, sampling, seed, where.start)

    for start in range(0, len(left), world.size):
        wave = left[start : start + world.size]
        mine = wave[world.rank] if world.rank < len(wave) else None
        for number, groups in zip(wave, gathered(partial(sample, mine)), strict=False):
            yield number, prompts[parts[number]], groups


def answered(chat: Chat, prompts: Sequence[Asked], groups: Groups, source: str | None) -> tuple[list[Example], Counts]:
    """Examples with the answers as responses, in order, and what there is to say of them. `meta` has, beside the row's
    own columns, for each response its number of tokens (EOS included) and whether it finished."""
    made, ids = [], []
    counts = Counts()
    for one, group in zip(prompts, groups, strict=True):
        texts = [chat.decode(each.ids, one.ids, finished=each.finished) for each in group]
        kept = [(each, text) for each, text in zip(group, texts, strict=True) if text.strip()]
        responses = tuple(Response((Message("assistant", text),), source, each.finished) for each, text in kept)
        own = {TOKENS: [len(each) for each, _ in kept], FINISHED: [each.finished for each, _ in kept]}
        made.append(replace(one.example, responses=responses, feedback=(), meta={**one.example.meta, **own}))
        ids.append([each.ids for each, _ in kept])
        counts += Counts(
            answers=len(kept),
            empty=len(group) - len(kept),
            unfinished=sum(not each.finished for each, _ in kept),
            tokens=sum(len(each) for each in group),
        )
    return made, counts + Counts(reread=sum(_reread(chat, made, ids)))


def _reread(chat: Chat, examples: Sequence[Example], ids: Sequence[Sequence[np.ndarray]]) -> Iterator[int]:
    """How many answers of each example are other tokens when their text is read again; all, where it cannot be."""
    there = [index for index, example in enumerate(examples) if example.responses]
    trees, problems = chat.trees([examples[index] for index in there], LONG)
    for tree in trees:
        own = ids[there[tree.key]]
        yield sum(not np.array_equal(branch.ids, mine) for branch, mine in zip(tree.branches, own, strict=True))
    refused = len(there) - len(trees)
    if refused:
        read = {tree.key for tree in trees}
        yield sum(len(ids[index]) for number, index in enumerate(there) if number not in read)
